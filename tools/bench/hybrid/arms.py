"""The learners whose samples are counted, and their settings: tuned on seeds of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgert.offload.dqn import DQN, Training
from edgert.offload.hybrid import Hybrid
from edgert.offload.planner import DEPTH_NONE, DEPTH_ONE, DEPTH_SPREAD, DEPTH_TWO
from edgert.offload.space import Floor, Learner, Space
from edgert.offload.structured import Structured
from edgert.offload.tabular import Rates
from tools.bench.hybrid import TUNED, Cell
from tools.bench.hybrid.converge import Found, Scene, converge, table
from tools.bench.hybrid.dyna import Dyna, Planning
from tools.bench.offload.arms import TUNING_SEEDS
from tools.bench.offload.world import FLOORS, Case, World, machine, spaces

Make = Callable[[Space, Floor, np.random.Generator, Any], Learner | Dyna]
STATIC, SWITCHING, FULL = "static", "switching", "full"
BUSY = (0.0, 0.5, 0.0)
TUNED_SHARE = 5
SAME_AS = {"Dyna, 0": "Dyna, 5", "Dyna, 20": "Dyna, 5"}
SAME_AS |= {f"hybrid, depth {depth}": "hybrid" for depth in range(3)}
TUNED_CELLS = (Cell(STATIC, 3, "A", "85"), Cell(STATIC, 5, "B", "89"))


class Arm(NamedTuple):
    """One learner.

    Attributes:
        make: from space, floor, chance and a setting; None is the joint table.
        grid: settings that were tried.
        cap: samples after which it is given up.
        kinds: of settings in which it runs.
        slow: 1 runs in fewer settings, 2 not in a quick run either.
        depth: it belongs to the sweep of planning depth.
    """

    make: Make | None
    grid: tuple[Any, ...]
    cap: int
    kinds: tuple[str, ...] = (STATIC,)
    slow: int = 0
    depth: bool = False


def _hybrid(depth: int = DEPTH_TWO) -> Make:
    return lambda space, floor, rng, horizon: Hybrid(space, floor, depth=depth, horizon=horizon)


def _dqn(space: Space, floor: Floor, rng: np.random.Generator, training: Training) -> Learner:
    return DQN(space, floor, rng, training=training)


def _dyna(simulated: int) -> Make:
    return lambda space, floor, rng, planning: Dyna(space, floor, rng, planning._replace(simulated=simulated))


def _nets(updates: tuple[int, ...]) -> tuple[Training, ...]:
    return tuple(
        Training(hidden=32, learning_rate=rate, decay=decay, updates=each, explore_least=least)
        for each in updates
        for rate in (1e-3, 4e-3)
        for decay in (0.003, 0.01)
        for least in ((0.05, 0.3) if len(updates) == 1 else (0.05,))
    )


TABLES = tuple(
    Rates(decay=decay, explore_least=least, step_size=step)
    for decay in (0.0, 1e-4, 1e-3)
    for least in (0.1, 0.5)
    for step in (0.0, 0.1)
)
HORIZONS = (50, 100, 200, 400, 800, 1600, 5000, 20_000)
"""Of the knowledge gradient, in joint actions."""
PLANNINGS = tuple(
    Planning(learning_rate=rate, decay=decay, model_updates=updates)
    for rate in (4e-3, 1e-2)
    for decay in (0.01, 0.03)
    for updates in (4, 16)
)
ARMS: dict[str, Arm] = {
    "hybrid": Arm(_hybrid(), HORIZONS, 1000, kinds=(STATIC, SWITCHING, FULL)),
    "structured": Arm(
        lambda space, floor, rng, rates: Structured(space, floor, rates=rates),
        tuple(Rates(decay=decay, explore_least=least) for decay in (0.003, 0.01, 0.03, 0.1) for least in (0.02, 0.2)),
        1000,
        kinds=(STATIC, SWITCHING, FULL),
    ),
    "joint table": Arm(None, TABLES, 300_000, kinds=(STATIC,)),
    "DQN": Arm(_dqn, _nets((1,)), 3000, slow=1),
    "matched DQN": Arm(_dqn, _nets((8, 32)), 1500, slow=2),
    "Dyna, 0": Arm(_dyna(0), PLANNINGS, 800, slow=2, depth=True),
    "Dyna, 5": Arm(_dyna(5), PLANNINGS, 800, slow=2, depth=True),
    "Dyna, 20": Arm(_dyna(20), PLANNINGS, 800, slow=2, depth=True),
    "hybrid, depth 0": Arm(_hybrid(DEPTH_NONE), HORIZONS, 800, depth=True, slow=2),
    "hybrid, depth 1": Arm(_hybrid(DEPTH_SPREAD), HORIZONS, 800, depth=True, slow=2),
    "hybrid, depth 2": Arm(_hybrid(DEPTH_ONE), HORIZONS, 800, depth=True, slow=2),
}


def scene(cell: Cell, seed: int) -> Scene:
    """The worlds of a setting."""
    which = spaces(cell.users)
    cases = [Case(cell.users, cell.links)]
    if cell.kind == SWITCHING:
        cases = [Case(cell.users, cell.links, busy, flip) for flip in (False, True) for busy in ((0.0, 0.0, 0.0), BUSY)]
    whole = which["full" if cell.kind == FULL else "paper"]
    worlds = [World(case, whole, seed, machine("fitted")) for case in cases]
    return Scene(worlds, whole, Floor(FLOORS[cell.floor], "average"))


def run_arm(arm: Arm, where: Scene, name: str, seed: int, setting: Any = None) -> Found:
    """One run of one learner."""
    rng = np.random.default_rng([seed, where.space.users, 4242])
    if setting is None:
        tuned = json.loads(TUNED.read_text()) if TUNED.exists() else {}
        setting = arm.grid[tuned.get(SAME_AS.get(name, name), {"index": 0})["index"]]
    if arm.make is None:
        return table(where, setting, arm.cap, rng)
    return converge(arm.make(where.space, where.floor, rng, setting), where, arm.cap, rng)


def tune() -> dict[str, Any]:
    """Try every grid; the setting with the lowest mean logarithm of the gap to the oracle, over a run, is taken.

    Samples until converged would say nothing of those that do not converge. All have as many settings, and the same
    worlds; the joint table has four more. Dyna and the depths of planning take what was found for one of each.
    """
    chosen: dict[str, Any] = {}
    for name, arm in ARMS.items():
        if len(arm.grid) < 2 or name in SAME_AS:
            continue
        scores = np.zeros(len(arm.grid))
        brief = arm._replace(cap=arm.cap // TUNED_SHARE)
        for cell in TUNED_CELLS:
            where = scene(cell, TUNING_SEEDS[0])
            for index, setting in enumerate(arm.grid):
                found = run_arm(brief, where, name, TUNING_SEEDS[0], setting)
                scores[index] += found.log_gap / len(TUNED_CELLS)
        chosen[name] = {
            "index": int(scores.argmin()),
            "grid": [str(each) for each in arm.grid],
            "score": [round(float(each), 3) for each in scores],
        }
        print(f"tuned {name}: {chosen[name]['grid'][chosen[name]['index']]}", flush=True)
    return chosen
