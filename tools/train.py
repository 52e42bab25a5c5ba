"""Train an early-exit Double DQN on a gymnasium environment: `python -m tools.train --env ... --out DIR`.

The learner is the one that runs on the board (`edgert.learn.dqn`); only the loop round it is different: several
environments at once, a replay in memory, epsilon-greedy exploration, greedy evaluation, the best network by evaluation
kept.

Run it again with the same `--out` and it goes on from its last checkpoint.
Implementation details follow Mnih et al. 2015 (replay, target copy, linear epsilon) and van Hasselt et al. 2016 (double
Q).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgert.learn.dqn import Batch, Hyper, Learner
from edgert.nets import U8, Params, forward, initialise
from tools.episodes import evaluate, make, to_obs
from tools.nets import NETS


class Replay:
    """The last `capacity` transitions in memory, drawn uniformly."""

    def __init__(self, capacity: int, obs_shape: tuple[int, ...]) -> None:
        self.obs = np.zeros((capacity, *obs_shape), np.uint8)
        self.next_obs = np.zeros_like(self.obs)
        self.action = np.zeros(capacity, np.int32)
        self.reward = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, bool)
        self.size = self.cursor = 0

    def add(self, obs: U8, action: int, reward: float, next_obs: U8, terminated: bool) -> None:
        """Overwrite the oldest transition."""
        i = self.cursor
        self.obs[i], self.next_obs[i] = obs, next_obs
        self.action[i], self.reward[i], self.terminated[i] = action, reward, terminated
        self.cursor = (i + 1) % len(self.obs)
        self.size = min(self.size + 1, len(self.obs))

    def sample(self, rng: np.random.Generator, n: int, n_actions: int) -> Batch:
        """Draw `n` transitions with replacement."""
        i = rng.integers(self.size, size=n)
        nobody = np.zeros((n, n_actions), np.float32)
        return Batch(
            self.obs[i], self.action[i], self.reward[i], self.next_obs[i], self.terminated[i], nobody, np.zeros(n, bool)
        )


def commit() -> str:
    """The commit this tree stands on, with a mark when it has changes."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__.splitlines()[0])
    parser.add_argument("--env", required=True, help="gymnasium id, for example MinAtar/Breakout-v1")
    parser.add_argument("--net", choices=NETS, default="student")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; made when missing")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--envs", type=int, default=8, help="environments stepped together")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--frames-per-update", type=int, default=4)
    parser.add_argument("--replay", type=int, default=100_000)
    parser.add_argument("--warm-up", type=int, default=5_000, help="frames before the first update")
    parser.add_argument(
        "--explore-frames", type=int, default=100_000, help="epsilon falls from 1 to --epsilon over these"
    )
    parser.add_argument("--epsilon", type=float, default=0.02)
    parser.add_argument("--learning-rate", type=float, default=2.5e-4)
    parser.add_argument("--eval-every", type=int, default=50_000)
    parser.add_argument("--eval-episodes", type=int, default=30)
    parser.add_argument(
        "--test-episodes", type=int, default=100, help="of the kept network, on seeds that chose nothing"
    )
    return parser.parse_args(argv)


def save(path: Path, learner: Learner, best: Params, state: dict[str, Any]) -> None:
    """Write a checkpoint beside the old one, then put it in its place."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        arrays: dict[str, Any] = dict(learner.arrays())
        np.savez(file, best=best.flat, state=np.frombuffer(json.dumps(state).encode(), np.uint8), **arrays)
    part.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, write `best.f32`, `curve.csv` and `run.json`."""
    args = parse(sys.argv[1:] if argv is None else argv)
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    envs = [make(args.env) for _ in range(args.envs)]
    obs = np.stack([to_obs(env.reset(seed=args.seed * 1000 + i)[0]) for i, env in enumerate(envs)])
    spec = NETS[args.net](obs.shape[1:], int(envs[0].action_space.n))
    learner = Learner(initialise(spec, rng))
    hyper = Hyper(learning_rate=args.learning_rate, td_weight=1.0)
    best, state = learner.params.copy(), {"frames": 0, "best": float("-inf"), "best_at": 0, "cpu_s": 0.0}
    checkpoint, curve = args.out / "checkpoint.npz", args.out / "curve.csv"
    if checkpoint.exists():
        with np.load(checkpoint) as saved:
            state = json.loads(saved["state"].tobytes())
            learner.restore({name: saved[name] for name in learner.arrays()}, state["steps"])
            best.flat[:] = saved["best"]
        print(f"going on from frame {state['frames']:,} (replay starts empty)", flush=True)
    else:
        with curve.open("w", newline="") as file:
            csv.writer(file).writerow(["frames", "cpu_s", "return_mean", "return_sem", "loss"])

    replay = Replay(args.replay, obs.shape[1:])
    start_frame, started_cpu_s, last = state["frames"], time.process_time() - state["cpu_s"], spec.n_exits - 1
    loss, owed, frames = 0.0, 0.0, start_frame
    while frames < args.frames:
        epsilon = max(args.epsilon, 1 - (1 - args.epsilon) * frames / args.explore_frames)
        greedy = forward(learner.params, obs, exits=(last,))[last][:, : spec.n_actions].argmax(1)
        actions = np.where(rng.random(args.envs) < epsilon, rng.integers(spec.n_actions, size=args.envs), greedy)
        for i, env in enumerate(envs):
            raw, reward, terminated, truncated, _ = env.step(int(actions[i]))
            following = to_obs(raw)
            replay.add(obs[i], int(actions[i]), float(reward), following, bool(terminated))
            obs[i] = to_obs(env.reset()[0]) if terminated or truncated else following
        frames += args.envs
        owed += args.envs / args.frames_per_update if frames - start_frame > args.warm_up else 0
        while owed >= 1:
            losses = learner.step(replay.sample(rng, args.batch, spec.n_actions), hyper)
            loss, owed = 0.99 * loss + 0.01 * losses.total, owed - 1
        if frames // args.eval_every > (frames - args.envs) // args.eval_every:
            returns = evaluate(learner.params, args.env, args.eval_episodes, seed=10_000_000 + args.seed * 1000)
            mean, sem = float(returns.mean()), float(returns.std(ddof=1) / len(returns) ** 0.5)
            state |= {"frames": frames, "steps": learner.steps, "cpu_s": time.process_time() - started_cpu_s}
            if mean > state["best"]:
                state |= {"best": mean, "best_at": frames}
                best.flat[:] = learner.params.flat
            with curve.open("a", newline="") as file:
                csv.writer(file).writerow(
                    [frames, round(state["cpu_s"]), round(mean, 3), round(sem, 3), round(loss, 5)]
                )
            save(checkpoint, learner, best, state)
            print(
                f"{frames:>10,} frames  return {mean:7.2f} +- {sem:.2f}  loss {loss:.4f}  cpu {state['cpu_s']:.0f} s",
                flush=True,
            )

    returns = evaluate(best, args.env, args.test_episodes, seed=20_000_000 + args.seed * 1000)
    (args.out / "best.f32").write_bytes(best.flat.tobytes())
    provenance = {
        "command": "python -m tools.train " + " ".join(sys.argv[1:] if argv is None else argv),
        "commit": commit(),
        "env": args.env,
        "net": args.net,
        "seed": args.seed,
        "frames": frames,
        "gradient_steps": learner.steps,
        "batch": args.batch,
        "cpu_s": round(time.process_time() - started_cpu_s),
        "kept_from_frame": state["best_at"],
        "test_episodes": args.test_episodes,
        "test_return_mean": round(float(returns.mean()), 3),
        "test_return_sem": round(float(returns.std(ddof=1) / len(returns) ** 0.5), 3),
        "curve": list(csv.DictReader(curve.open())),
    }
    (args.out / "run.json").write_text(json.dumps(provenance, indent=1) + "\n")
    print(f"test return {returns.mean():.2f} +- {provenance['test_return_sem']} over {args.test_episodes} episodes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
