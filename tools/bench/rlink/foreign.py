"""What teacher knowledge brings to students of a library that never heard of us: stable-baselines3's DQN and PPO.

Each student learns with the same settings, seed and gradient updates: alone, and behind `edgert.client.gym.Taught` with
a real teacher process at a real mosquitto. It is judged on an environment of its own without wrapper, teacher or link.
Settings are stable-baselines3's but for what is named in `GAMES`; a life that is in the result file with the same
settings is not lived again. Of CartPole and Acrobot the student sees the numbers, the teacher their picture.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from edgert.client.gym import Taught, remembering, with_targets
from edgert.client.teacher import Teacher
from edgert.ports import broker
from edgert.ports.models import teacher_name
from edgert.ports.plant import worlds
from edgert.ports.store import write_atomic
from tools.bench.rlink import plan, summary
from tools.train import commit

HOUSE = Path(__file__).parents[3]
RESULTS = HOUSE / "tools" / "bench" / "results"
GAMMA = 0.99
EPISODE_STEPS = 1000
"""A judged episode is cut off after so many: a ball that nobody misses and that hits nothing flies for ever."""
JUDGED_SEED = 60_000_000
START_S = 300.0
"""Until the teacher is there, on a machine that is busy otherwise."""
ENVS = {"dqn": 1, "ppo": 8}


class Game(NamedTuple):
    """What is learned.

    Attributes:
        env_id: of gymnasium.
        steps: of a life, by student.
        every: steps between two judgements.
        threshold: return to be reached.
        students: settings by student.
        half_life: transitions after which advice and targets are half as frequent.
    """

    env_id: str
    steps: Mapping[str, int]
    every: int
    threshold: float
    students: Mapping[str, Mapping[str, Any]]
    half_life: float


SMALL_DQN: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "learning_starts": 300,
    "train_freq": 4,
    "gradient_steps": 2,
    "target_update_interval": 500,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.05,
    "buffer_size": 50_000,
    "gamma": GAMMA,
    "policy_kwargs": {"net_arch": [128, 128]},
}
MINATAR: dict[str, dict[str, Any]] = {
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
MINATAR_STEPS = {"dqn": 200_000, "ppo": 500_000}
GAMES = {
    "cartpole": Game("CartPole-v1", {"dqn": 30_000}, 1000, 475.0, {"dqn": SMALL_DQN}, 10_000.0),
    "acrobot": Game("Acrobot-v1", {"dqn": 30_000}, 1000, -100.0, {"dqn": SMALL_DQN}, 10_000.0),
    "breakout": Game("MinAtar/Breakout-v1", MINATAR_STEPS, 10_000, 8.0, MINATAR, 20_000.0),
    "space_invaders": Game("MinAtar/SpaceInvaders-v1", MINATAR_STEPS, 10_000, 8.0, MINATAR, 20_000.0),
}


class Arm(NamedTuple):
    """How a student is taught.

    Attributes:
        taught: at all.
        shaping: weight of the potential.
        advice: whether the teacher's actions are executed now and then.
        targets: whether its values are handed out among the transitions.
    """

    taught: bool
    shaping: float = 1.0
    advice: bool = False
    targets: bool = False


ALONE = "alone"
ARMS = {
    "dqn": {
        ALONE: Arm(False),
        "shaping and advice": Arm(True, advice=True),
        # A potential would change what actions are worth, and the targets would be of something else.
        "targets and advice": Arm(True, shaping=0.0, advice=True, targets=True),
    },
    "ppo": {ALONE: Arm(False), "shaping": Arm(True)},
}


@contextmanager
def teaching(bundle: Path, folder: Path) -> Iterator[str]:
    """A broker and a teacher at it; gives the broker's url."""
    status = folder / "teacher.json"
    with broker.start("mosquitto", folder / "broker") as served, (folder / "teacher.log").open("wb") as log:
        command = [sys.executable, "-m", "edgert.programs.teacher", "--model", str(bundle), "--broker", served.url]
        process = subprocess.Popen([*command, "--status-file", str(status)], stderr=log, cwd=HOUSE)
        try:
            end_s = time.monotonic() + START_S
            while not (status.exists() and json.loads(status.read_text()).get("up")):
                if process.poll() is not None or time.monotonic() > end_s:
                    raise SystemExit(f"no teacher: {(folder / 'teacher.log').read_text()}")
                time.sleep(0.1)
            yield served.url
        finally:
            process.terminate()
            process.wait(20)


def shows_numbers(env_id: str) -> bool:
    """Whether a library would be given a row of numbers instead of a picture."""
    return not env_id.startswith("MinAtar/")


def world(env_id: str) -> Any:
    """The environment as a user of the library knows it."""
    return gymnasium.make(env_id) if shows_numbers(env_id) else worlds.make(env_id)


def judged(act: Callable[[Any], int], env_id: str, episodes: int, seed: int) -> float:
    """Mean undiscounted return, with the environment as it is."""
    env, total = world(env_id), 0.0
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
    student: str, arm: Arm, game: Game, task: str, url: str, args: argparse.Namespace, seed: int, vouched: str
) -> dict[str, Any]:
    """One student's life; returns its learning curve and what it cost."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    make = functools.partial(world, game.env_id)
    probe = make()
    n_actions = int(probe.action_space.n)
    rng = np.random.default_rng(seed)
    curve: list[tuple[int, float]] = []
    every = args.every or game.every

    class Judge(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= every * (len(curve) + 1):
                curve.append((self.num_timesteps, judged(self._act, game.env_id, args.episodes, JUDGED_SEED)))
            return True

        def _act(self, obs: Any) -> int:
            if rng.random() < 0.01:
                return int(rng.integers(n_actions))
            return int(self.model.predict(obs, deterministic=student == "dqn")[0])

    with Teacher(url, task=task, n_actions=n_actions, gamma=GAMMA, vouched=[vouched]) as teacher:
        settings, wrapped = dict(game.students[student]) | args.set, dict[str, Any]()
        if arm.taught:
            told = {"teacher": teacher, "shaping": arm.shaping, "advice": "exploration" if arm.advice else "none"}
            told |= {"advice_half_life": game.half_life}
            if shows_numbers(game.env_id):
                told["observe"] = worlds.Coarse(probe).observation
            wrapped = {"wrapper_class": Taught, "wrapper_kwargs": told}
        if arm.advice:
            settings["replay_buffer_class"] = remembering(sb3.common.buffers.ReplayBuffer)
        if arm.targets:
            buffer = settings["replay_buffer_class"]
            settings["replay_buffer_class"] = with_targets(buffer, teacher, half_life=game.half_life)
        venv = make_vec_env(make, n_envs=ENVS[student], seed=seed, **wrapped)
        model = getattr(sb3, student.upper())("MlpPolicy", venv, seed=seed, device="cpu", **settings)
        before_s, cpu_s = time.monotonic(), time.process_time()
        model.learn(args.steps or game.steps[student], callback=Judge())
        status = teacher.status() if arm.taught else {}
        venv.close()
    return {
        "seed": seed,
        "curve": [(steps, round(value, 3)) for steps, value in curve],
        "gradient_updates": int(model._n_updates),
        "wall_s": round(time.monotonic() - before_s, 1),
        "cpu_s": round(time.process_time() - cpu_s, 1),
        "teacher": status,
    }


def steps_to(curve: Sequence[Sequence[float]], threshold: float) -> int | None:
    """The first judgement from which on two in a row reach the threshold, in environment steps."""
    for (steps, value), (_, following) in itertools.pairwise(curve):
        if min(value, following) >= threshold:
            return int(steps)
    return None


def compared(arms: Mapping[str, Sequence[Mapping[str, Any]]], steps: int) -> dict[str, Any]:
    """Steps to the threshold, a life that never reaches it counting as a whole one, and returns, arm by arm."""
    rng, found = np.random.default_rng(0), dict[str, Any]()
    to = {
        name: summary.resampled([life["steps_to_threshold"] or steps for life in lives], rng)
        for name, lives in arms.items()
    }
    for name, lives in arms.items():
        if lives:
            values = [[value for _, value in life["curve"]] for life in lives]
            last = [float(np.mean(each[-max(1, len(each) // 4) :])) for each in values]
            found[name] = {
                "seeds": len(lives),
                "never": sum(life["steps_to_threshold"] is None for life in lives),
                "steps_to_threshold": summary.interval(to[name], 0),
                "fewer_than_alone_x": summary.interval(to.get(ALONE, np.array([np.nan])) / to[name], 2),
                "final": summary.interval(summary.resampled(last, rng), 1),
            }
    return found


def without(argv: Sequence[str], *options: str) -> list[str]:
    """A command line less what only says where files lie."""
    return [each for i, each in enumerate(argv) if each not in options and (i == 0 or argv[i - 1] not in options)]


def main(argv: list[str]) -> int:
    """Live, judge, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench rlink foreign", description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", choices=ENVS, default=["dqn"])
    parser.add_argument("--game", default="cartpole", choices=GAMES)
    parser.add_argument("--arms", nargs="+", help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, help="of every life; by default the game's own")
    parser.add_argument("--every", type=int, help="steps between two judgements; by default the game's own")
    parser.add_argument("--episodes", type=int, default=20, help="in each judgement")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="other settings, for tuning")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/rlink"), help="folder of the teachers that are not shipped"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "rlink-foreign.json")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that broker and teacher are stopped on the way out
    game = GAMES[args.game]
    about = {
        "command": "python -m tools.bench rlink foreign " + shlex.join(without(argv, "--out", "--runs")),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread, beside other work",
        "env": game.env_id,
        "envs": ENVS,
        "threshold": game.threshold,
        "half_life": game.half_life,
        "episodes": args.episodes,
    }
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    bundle = plan.made(args.runs, args.game, "good").path
    with tempfile.TemporaryDirectory() as folder, teaching(bundle, Path(folder)) as url:
        for student in set(args.students) & game.students.keys():
            settings, steps = {**game.students[student], **args.set}, args.steps or game.steps[student]
            told = document.setdefault(f"{args.game}, {student}", {"settings": settings, "steps": steps, "lives": {}})
            if (told["settings"], told["steps"]) != (settings, steps):
                told |= {"settings": settings, "steps": steps, "lives": {}}
            arms = {name: arm for name, arm in ARMS[student].items() if not args.arms or name in args.arms}
            for seed, (name, arm) in itertools.product(args.seeds, arms.items()):
                lives = told["lives"].setdefault(name, [])
                if any(life["seed"] == seed for life in lives):
                    continue
                life = live(student, arm, game, args.game, url, args, seed, teacher_name(bundle.read_bytes()))
                life["steps_to_threshold"] = steps_to(life["curve"], game.threshold)
                lives.append(life)
                told |= {**about, "arms": compared(told["lives"], steps)}
                write_atomic(args.out, (json.dumps(document, indent=1) + "\n").encode(), mode=0o644)
                print(
                    f"{student} {name}, seed {seed}: {[round(value, 1) for _, value in life['curve']]}, threshold at "
                    f"{life['steps_to_threshold']}, {life['gradient_updates']} updates, {life['cpu_s']} s CPU, "
                    f"weight {life['teacher'].get('weight')}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
