"""What teacher knowledge brings to students of a library that never heard of us: stable-baselines3's DQN and PPO.

Each student learns with the same settings, seed and gradient updates: alone, and behind `edgert.client.gym.Taught` with
a real teacher process at a real mosquitto. It is judged on an environment of its own without wrapper, teacher or link.
Settings are stable-baselines3's but for what is named in `STUDENTS`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgert.client.gym import Taught, remembering
from edgert.client.teacher import Teacher
from edgert.ports import broker
from edgert.ports.plant import worlds

HOUSE = Path(__file__).parents[3]
RESULTS = HOUSE / "tools" / "bench" / "results"
GAMMA = 0.99
EPISODE_STEPS = 1000
"""A judged episode is cut off after so many: a ball that nobody misses and that hits nothing flies for ever."""
STUDENTS: dict[str, dict[str, Any]] = {
    "dqn": {
        "learning_rate": 3e-4,
        "learning_starts": 1000,
        "target_update_interval": 1000,
        "exploration_fraction": 0.2,
        "exploration_final_eps": 0.05,
        "buffer_size": 50_000,
        "gamma": GAMMA,
        "policy_kwargs": {"net_arch": [128, 128]},
    },
    "ppo": {
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 4,
        "ent_coef": 0.01,
        "gamma": GAMMA,
        "policy_kwargs": {"net_arch": [128, 128]},
    },
}
ENVS = {"dqn": 1, "ppo": 8}


class Arm(NamedTuple):
    """How a student is taught.

    Attributes:
        taught: at all.
        shaping: weight of the potential.
        advice: whether the teacher's actions are executed now and then.
    """

    taught: bool
    shaping: float = 1.0
    advice: bool = False


ARMS = {
    "dqn": {"alone": Arm(False), "shaping": Arm(True), "shaping and advice": Arm(True, advice=True)},
    "ppo": {"alone": Arm(False), "shaping": Arm(True)},
}


@contextmanager
def teaching(bundle: Path, folder: Path) -> Iterator[str]:
    """A broker and a teacher at it; gives the broker's url."""
    status = folder / "teacher.json"
    with broker.start("mosquitto", folder / "broker") as served, (folder / "teacher.log").open("wb") as log:
        command = [sys.executable, "-m", "edgert.programs.teacher", "--model", str(bundle), "--broker", served.url]
        process = subprocess.Popen([*command, "--status-file", str(status)], stderr=log, cwd=HOUSE)
        try:
            end_s = time.monotonic() + 60
            while not (status.exists() and json.loads(status.read_text()).get("up")):
                if process.poll() is not None or time.monotonic() > end_s:
                    raise SystemExit(f"no teacher: {(folder / 'teacher.log').read_text()}")
                time.sleep(0.1)
            yield served.url
        finally:
            process.terminate()
            process.wait(20)


def judged(act: Callable[[Any], int], env_id: str, episodes: int, seed: int) -> float:
    """Mean undiscounted return, with the environment as it is."""
    env, total = worlds.make(env_id), 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        for _ in range(EPISODE_STEPS):
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total += float(reward)
            if terminated or truncated:
                break
    env.close()
    return total / episodes


def live(
    student: str, arm: Arm, env_id: str, task: str, url: str, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """One student's life; returns its learning curve and what it cost."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    make = functools.partial(worlds.make, env_id)
    probe = make()
    n_actions = int(probe.action_space.n)
    probe.close()
    rng = np.random.default_rng(seed)
    curve: list[tuple[int, float]] = []

    class Judge(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= args.every * (len(curve) + 1):
                curve.append((self.num_timesteps, judged(self._act, env_id, args.episodes, 60_000_000)))
            return True

        def _act(self, obs: Any) -> int:
            if rng.random() < 0.01:
                return int(rng.integers(n_actions))
            return int(self.model.predict(obs, deterministic=student == "dqn")[0])

    with Teacher(url, task=task, n_actions=n_actions, gamma=GAMMA) as teacher:
        wrapped: dict[str, Any] = {}
        if arm.taught:
            advice = "exploration" if arm.advice else "none"
            wrapped["wrapper_class"] = Taught
            wrapped["wrapper_kwargs"] = {"teacher": teacher, "shaping": arm.shaping, "advice": advice}
        venv = make_vec_env(make, n_envs=ENVS[student], seed=seed, **wrapped)
        settings = dict(STUDENTS[student])
        if arm.advice:
            settings["replay_buffer_class"] = remembering(sb3.common.buffers.ReplayBuffer)
        model = getattr(sb3, student.upper())("MlpPolicy", venv, seed=seed, device="cpu", **settings)
        before_s, cpu = time.monotonic(), time.process_time()
        model.learn(args.steps[student], callback=Judge())
        told = teacher.status() if arm.taught else {}
        venv.close()
    return {
        "seed": seed,
        "curve": [(steps, round(value, 3)) for steps, value in curve],
        "gradient_updates": int(model._n_updates),
        "wall_s": round(time.monotonic() - before_s, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "teacher": told,
    }


def steps_to(curve: list[tuple[int, float]], threshold: float) -> int | None:
    """The first judgement from which on two in a row reach the threshold, in environment steps."""
    for (steps, value), (_, following) in itertools.pairwise(curve):
        if min(value, following) >= threshold:
            return steps
    return None


def main(argv: list[str]) -> int:
    """Live, judge, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench rlink foreign", description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--game", default="breakout", choices=("breakout", "space_invaders"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs=2, default=[200_000, 500_000], help="of DQN and of PPO")
    parser.add_argument("--every", type=int, default=10_000, help="steps between two judgements")
    parser.add_argument("--episodes", type=int, default=20, help="in each judgement")
    parser.add_argument("--threshold", type=float, default=8.0, help="return to be reached")
    parser.add_argument("--out", type=Path, default=RESULTS / "rlink-foreign.json")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps: does it run at all?")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that broker and teacher are stopped on the way out
    if args.quick:
        args.seeds, args.steps, args.every, args.episodes = 1, [10_000, 20_000], 5_000, 5
    args.steps = dict(zip(("dqn", "ppo"), args.steps, strict=True))
    env_id = {"breakout": "MinAtar/Breakout-v1", "space_invaders": "MinAtar/SpaceInvaders-v1"}[args.game]
    document: dict[str, Any] = {
        "command": "python -m tools.bench rlink foreign " + " ".join(argv),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread, beside other work",
        "env": env_id,
        "settings": STUDENTS,
        "envs": ENVS,
        "threshold": args.threshold,
        "students": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        bundle = HOUSE / "models" / f"{args.game}-teacher.edgert"
        with teaching(bundle, Path(folder)) as url:
            for student in args.students:
                arms: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS[student]}
                document["students"][student] = arms
                for seed in range(1, args.seeds + 1):
                    for name, arm in ARMS[student].items():
                        life = live(student, arm, env_id, args.game, url, args, seed)
                        life["steps_to_threshold"] = steps_to(life["curve"], args.threshold)
                        arms[name].append(life)
                        last = [value for _, value in life["curve"]]
                        print(
                            f"{student} {name}, seed {seed}: {[round(each, 1) for each in last]}, threshold at "
                            f"{life['steps_to_threshold']}, {life['gradient_updates']} updates, {life['cpu_s']} s CPU, "
                            f"weight {life['teacher'].get('weight')}",
                            flush=True,
                        )
    document["cpu_s"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_utime, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
