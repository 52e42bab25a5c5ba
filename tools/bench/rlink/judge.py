"""How well each network of a run plays: int8, through its exits, with no link, no exploration and no teacher."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from edgert import quant
from edgert.errors import StoreError
from edgert.policy import artifact, exits
from edgert.ports.store import write_atomic
from tools.bench.rlink.live import Copy, Run
from tools.bench.rlink.plan import TASKS, Task
from tools.episodes import play

TEST_SEED = 60_000_000
"""Episodes that are used for nothing else."""


class Point(msgspec.Struct, frozen=True):
    """A network that acted: from which transition on, and what it is worth."""

    transitions: int
    wall_s: float
    wire_bytes: int
    value: float


class Judged(msgspec.Struct, frozen=True):
    """A run with its networks' returns; kept as JSON beside it."""

    run: Run
    points: list[Point]
    episodes: int


def returns(network: Path, env: str, episodes: int) -> list[float]:
    """Undiscounted returns of a bundle's network."""
    policy = artifact.load(network.read_bytes())
    net, thresholds = quant.IntNet(policy.spec, policy.tensors), policy.manifest.thresholds
    found = play(lambda obs: exits.decide(net.heads(obs), thresholds), env, episodes, seed=TEST_SEED)
    return [float(each) for each in found]


def picked(copies: list[Copy], at_most: int) -> list[Copy]:
    """As many as may be judged, closer together where the run is young, the first and the last among them."""
    if len(copies) <= at_most:
        return copies
    places = np.unique(((len(copies) - 1) * np.linspace(0, 1, at_most) ** 2).round().astype(int))
    return [copies[i] for i in places]


def judge(run: Run, task: Task) -> Judged:
    """Play with the networks of a run."""
    points = []
    for copy in picked(run.copies, task.judged):
        value = float(np.mean(returns(Path(copy.path), task.env, task.episodes)))
        points.append(Point(copy.transitions, copy.wall_s, copy.wire_bytes, round(value, 4)))
    return Judged(run, points, task.episodes)


def keep(judged: Judged, path: Path) -> None:
    """Write it down."""
    write_atomic(path, msgspec.json.encode(judged))


def kept(path: Path) -> Judged | None:
    """What was written down; None where nothing was.

    Raises:
        StoreError: the file is there and broken.
    """
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Judged)
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path}: {error}; remove it and run that one again") from error


def level(network: Path, name: str, runs: Path) -> float:
    """A teacher's mean return by the same rule, played once and remembered."""
    task = TASKS[name]
    book = runs / "levels.json"
    told: dict[str, float] = msgspec.json.decode(book.read_bytes()) if book.exists() else {}
    key = f"{network.name} {network.stat().st_size} {network.stat().st_mtime_ns} {task.episodes}"
    if key not in told:
        told[key] = float(np.mean(returns(network, task.env, 2 * task.episodes)))
        write_atomic(book, msgspec.json.encode(told))
    return told[key]
