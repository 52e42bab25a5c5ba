"""What is trained: tasks, the networks of each, and the exact command of every run."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Group = Literal["atari", "drone", "minatar"]
Value = str | int | float | bool

NICENESS = 10


class Task(NamedTuple):
    """What is played.

    Attributes:
        group: tasks whose figures are averaged.
        env: gymnasium id.
        family: of networks: `camera` or `board`; static ones have a size behind it.
        exits_net: the network whose exits are tuned.
        reinforced: hyperparameters of the runs that learn from rewards.
        distilled: of those that imitate.
        seeds: of training.
        max_ops_frac: the chosen setting may cost so much of the network without exits.
        rate_hz: decisions a second at which latency is measured.
        parallel: episodes side by side.
        judged_in: gymnasium id of the environment in which policies are judged; empty is `env`.
        ablated: whether the ablations are trained as well.
        exits_extra: hyperparameters of the roles that start from `full`.
        judging: arguments of the roles whose confidences are taught apart.
    """

    group: Group
    env: str
    family: str
    exits_net: str
    reinforced: Mapping[str, Value]
    distilled: Mapping[str, Value]
    seeds: int = 3
    max_ops_frac: float = 0.34
    rate_hz: float = 15.0
    parallel: int = 30
    judged_in: str = ""
    ablated: bool = False
    exits_extra: Mapping[str, Value] = {}
    judging: Mapping[str, Value] = {}

    @property
    def arena(self) -> str:
        """Gymnasium id of the environment in which policies are judged."""
        return self.judged_in or self.env


_CAMERA: dict[str, Value] = {"half": True, "batch": 64, "frames-per-update": 16}
_DISTILLED: dict[str, Value] = {
    "frames": 100_000,  # twice as many improve neither the exits nor the small networks
    "frames-per-update": 8,
    "epsilon": 0.05,
    "explore-frames": 10_000,
    "warm-up": 5_000,
}
_DRONE: dict[str, Value] = {
    **_CAMERA,
    "clip-reward": False,
    "gamma": 0.95,
    "eval-every": 50_000,
    "eval-episodes": 16,
}
_DRONE_DISTILLED: dict[str, Value] = {
    **_DRONE,
    **_DISTILLED,
    # Values of 17 differ by 0.6 between best and worst action: as heavy as the preferences they would drown them.
    "value-weight": 0.02,
    "learning-rate": 1e-3,
    "adam-eps": 1e-7,
    "epsilon": 0.02,
    "hold-max": 8,
}
_FIRST_EXIT_ALONE: dict[str, Value] = {"frozen": True, "eval-every": 100_000, "eval-episodes": 8, "test-episodes": 8}
"""The last exit remains the full network's: only the first learns."""
_BOARD_REINFORCED: dict[str, Value] = {"frames": 500_000, "explore-frames": 50_000}
_BOARD_DISTILLED: dict[str, Value] = {"frames": 150_000, "epsilon": 0.05, "explore-frames": 10_000, "warm-up": 5_000}


def _atari(game: str) -> Task:
    learning: dict[str, Value] = {"eval-every": 100_000, "eval-episodes": 8, "checkpoint-every": 100_000}
    return Task(
        "atari",
        f"ALE/{game}-v5",
        "camera",
        "camera2",
        {"frames": 1_000_000, **_CAMERA, **learning},
        {**_CAMERA, **_DISTILLED, "eval-every": 50_000, "eval-episodes": 8},
        judging={"episodes": 8, "observations": 8_000},
    )


def _minatar(game: str, *, ablated: bool = False) -> Task:
    return Task(
        "minatar",
        f"MinAtar/{game}-v1",
        "board",
        "board2",
        _BOARD_REINFORCED,
        _BOARD_DISTILLED,
        seeds=10,
        rate_hz=20.0,
        ablated=ablated,
    )


TASKS: dict[str, Task] = {
    "pong": _atari("Pong"),
    "boxing": _atari("Boxing"),
    "drone": Task(
        "drone",
        "edgert/Drone-v0",
        "camera",
        "camera2-wide",
        {"frames": 400_000, **_DRONE, "explore-frames": 60_000},
        _DRONE_DISTILLED,
        max_ops_frac=0.25,
        rate_hz=20.0,
        parallel=8,
        judged_in="edgert/DroneTest-v0",
        exits_extra=_FIRST_EXIT_ALONE,
        judging={"episodes": 48, "observations": 8_000},
    ),
    "breakout": _minatar("Breakout", ablated=True),
    "space_invaders": _minatar("SpaceInvaders", ablated=True),
    "asterix": _minatar("Asterix"),
    "freeway": _minatar("Freeway"),
    "seaquest": _minatar("Seaquest"),
}


class Role(NamedTuple):
    """A network of a task and seed.

    Attributes:
        net: of `tools.nets.NETS`, without the family's name in front; None is the task's `exits_net`.
        distilled: imitates `full`; otherwise learns from rewards.
        started: starts from the layers of `full`.
        extra: hyperparameters of its own.
        ablation: trained only where ablations are.
        judged: its exits are those of `exits`, and only their confidences are taught, with these arguments.
    """

    net: str | None = ""
    distilled: bool = False
    started: bool = False
    extra: Mapping[str, Value] = {}
    ablation: bool = False
    judged: Mapping[str, Value] | None = None


ROLES: dict[str, Role] = {
    # No gradient of an exit reaches the trunk, so trunk and last exit are exactly the network without exits.
    "full": Role(extra={"detached": True}),
    "exits": Role(None, distilled=True, started=True),
    "small34": Role("-34", distilled=True),
    "small20": Role("-20", distilled=True),
    "small55": Role("-55", distilled=True),
    "alone34": Role("-34"),
    "joint": Role(ablation=True),
    "exits-agreement": Role(None, distilled=True, started=True, extra={"meaning": "agreement"}, ablation=True),
    "judged": Role(judged={}),
    "judged-agreement": Role(judged={"meaning": "agreement"}, ablation=True),
    "apart": Role(judged={"gap": False}, ablation=True),
    "apart-agreement": Role(judged={"gap": False, "meaning": "agreement"}, ablation=True),
}


class Planned(NamedTuple):
    """One run.

    Attributes:
        task, role, seed: what it is.
        folder: where it lies.
        module: the program.
        arguments: its.
        needs: the run that must be finished before, or None.
    """

    task: str
    role: str
    seed: int
    folder: Path
    module: str
    arguments: tuple[str, ...]
    needs: Path | None

    @property
    def finished(self) -> bool:
        """Whether its network is there."""
        return (self.folder / "run.json").exists()

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.finished:
            return "finished"
        curve = self.folder / "curve.csv"
        with contextlib.suppress(OSError, IndexError, KeyError):
            return f"at {int(list(csv.DictReader(curve.read_text().splitlines()))[-1]['frames']):,} frames"
        return "begun" if self.folder.exists() else "missing"


def folder(runs: Path, task: str, role: str, seed: int) -> Path:
    """Where a run lies."""
    return runs / task / f"{role}-s{seed}"


def _options(values: Mapping[str, Value]) -> list[str]:
    options = []
    for name, value in values.items():
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        else:
            options += [f"--{name}", str(value)]
    return options


def planned(
    runs: Path, tasks: Sequence[str], seeds: int | None = None, frames: int | None = None, roles: Sequence[str] = ()
) -> list[Planned]:
    """All runs of these tasks, in an order in which each has what it needs.

    Args:
        runs: folder of all runs.
        tasks: names.
        seeds: of each task; its own number by default.
        frames: of every run, for a trial; the table's by default.
        roles: only these; all by default.
    """
    found = []
    for name in tasks:
        task = TASKS[name]
        for seed in range(task.seeds if seeds is None else seeds):
            full = folder(runs, name, "full", seed)
            for role_name, role in ROLES.items():
                if (role.ablation and not task.ablated) or (roles and role_name not in roles):
                    continue
                own = folder(runs, name, role_name, seed)
                if role.judged is not None:
                    found.append(_judged(runs, task, name, role_name, seed))
                    continue
                hyper = {**(task.distilled if role.distilled else task.reinforced), **role.extra}
                if role.started:
                    hyper |= task.exits_extra
                if frames is not None:
                    hyper["frames"] = frames
                net = task.exits_net if role.net is None else task.family + role.net
                arguments = ["--env", task.env, "--net", net, "--out", str(own), "--seed", str(seed)]
                if role.distilled:
                    arguments += ["--teacher", str(full)]
                if role.started:
                    arguments += ["--start", str(full)]
                needs = full if role.distilled else None
                found.append(Planned(name, role_name, seed, own, "tools.train", (*arguments, *_options(hyper)), needs))
    return found


def _judged(runs: Path, task: Task, name: str, role_name: str, seed: int) -> Planned:
    own, exits, full = (folder(runs, name, each, seed) for each in (role_name, "exits", "full"))
    arguments = ["--run", str(exits), "--teacher", str(full), "--out", str(own), "--seed", str(seed)]
    options = {**task.judging, **(ROLES[role_name].judged or {})}
    return Planned(name, role_name, seed, own, "tools.train.judge", (*arguments, *_options(options)), exits)


def show(plan: Sequence[Planned]) -> None:
    """Print every command and how far it is."""
    for run in plan:
        print(f"{run.state:<20} python -m {run.module} {' '.join(run.arguments)}")


def train(plan: Sequence[Planned]) -> int:
    """Train what is missing, one run after the other; what was interrupted goes on.

    Returns:
        Runs that are still missing.
    """
    missing = 0
    for run in plan:
        if run.finished:
            continue
        if run.needs is not None and not (run.needs / "run.json").exists():
            print(f"{run.folder}: left out, {run.needs} is not there", flush=True)
            missing += 1
            continue
        log = run.folder.with_name(run.folder.name + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{run.folder}: {run.state}, training; see {log}", flush=True)
        command = ["nice", "-n", str(NICENESS), sys.executable, "-u", "-m", run.module, *run.arguments]
        with log.open("a") as file:
            ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if ended:
            print(f"{run.folder}: failed with {ended}; see {log}", flush=True)
            missing += 1
    return missing
