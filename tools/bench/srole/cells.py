"""What is played, by whom and in which world; each play is kept, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgert.nets import Params
from edgert.placement import agent
from edgert.placement.protocol import chain
from tools.bench.srole import boards, fluid, judge, play, policies

REGION, SHARED = 8, 3
"""Nodes of a region of D that are its own, and that it shares with the next."""
DIES_S = 60.0
"""So often the shield of the arm that is named after it dies."""
LEARNED = ("SROLE-C", "SROLE-D", "MARL", "MARL, masked", "central RL", "SROLE-C, shield dies")
TRAINED_AS = {
    "SROLE-C": "srole",
    "SROLE-D": "srole",
    "MARL": "marl",
    "MARL, masked": "masked",
    "central RL": "central",
    "SROLE-C, shield dies": "srole",
}
HEURISTICS = tuple(f"{name}{shield}" for name in policies.rules() for shield in ("", " + shield"))
KEY = (*LEARNED, "HEFT", "HEFT + shield", "HEFT, 2 at most + shield", "HEFT, split + shield", "random + shield")
FEW = ("SROLE-C", "SROLE-D", "MARL", "HEFT, 2 at most + shield")


class Cell(NamedTuple):
    """One point of the sweep.

    Attributes:
        world: `simgrid` or `fluid`.
        nodes, load, window_s, stale_s: of the scene.
        arms: who plays there.
    """

    world: str
    nodes: int
    load: float
    window_s: float
    stale_s: float
    arms: tuple[str, ...]


def plan(quick: bool) -> list[Cell]:
    """What is played, what matters most first."""
    everybody = (*LEARNED[:1], *LEARNED[2:], *HEURISTICS)
    if quick:
        return [Cell("fluid", 5, 0.7, 5.0, 15.0, (*KEY, "least loaded + shield"))]
    cells = [Cell("simgrid", 10, 0.7, 5.0, 15.0, everybody)]
    cells += [Cell("simgrid", 10, load, 5.0, 15.0, KEY) for load in (0.9, 0.4)]
    cells += [Cell("fluid", nodes, 0.7, 5.0, 15.0, KEY) for nodes in (5, 25)]
    cells += [
        Cell("fluid", 10, 0.7, window_s, stale_s, FEW) for window_s in (2.0, 15.0) for stale_s in (0.0, 15.0, 45.0)
    ]
    cells += [Cell("simgrid", 25, 0.7, 5.0, 15.0, FEW)]
    cells += [Cell("fluid", nodes, 0.7, 5.0, 15.0, FEW) for nodes in (50, 100)]
    return cells


class Agent(NamedTuple):
    """A trained agent: its parameters, and whether it draws from its policy or takes the best."""

    params: Params
    explore: bool


def load_agents(folder: Path, seeds: int) -> dict[str, list[Agent]]:
    """The agents of each method, one a training seed, at the point of their curve that validated best."""
    found: dict[str, list[Agent]] = {}
    for method in dict.fromkeys(TRAINED_AS.values()):
        for seed in range(seeds):
            at = folder / f"{method}-s{seed}"
            if (at / "best.npy").exists():
                curve = json.loads((at / "curve.json").read_text())["curve"]
                best = min(curve, key=lambda each: min(each["drawn"], each["best"]))
                made = Agent(Params(agent.SPEC, np.load(at / "best.npy")), best["drawn"] < best["best"])
                found.setdefault(method, []).append(made)
    return found


def _decide(arm: str, agents: dict[str, list[Agent]], seed: int) -> policies.Decide:
    if arm in LEARNED:
        trained = agents[TRAINED_AS[arm]]
        chosen = trained[seed % len(trained)]
        return policies.learned(chosen.params, masked=arm != "MARL", explore=chosen.explore)
    return policies.rules()[arm.removesuffix(" + shield")]


def setting(cell: Cell, arm: str, names: tuple[str, ...]) -> play.Setting:
    """How an arm plays a cell."""
    shield = "D" if arm == "SROLE-D" else "C" if arm.startswith("SROLE-C") or arm.endswith(" + shield") else "none"
    return play.Setting(
        shield=shield,
        window_s=cell.window_s,
        stale_s=cell.stale_s,
        central=arm == "central RL",
        charge=True,
        measured=True,
        regions=chain(names, REGION, SHARED) if shield == "D" else (),
        dies_every_s=DIES_S if arm == "SROLE-C, shield dies" else np.inf,
    )


def one(cell: Cell, arm: str, seed: int, agents: dict[str, list[Agent]]) -> dict[str, Any]:
    """Play one arm in one cell, with clusters and arrivals that depend on cell and seed only."""
    drawn = zlib.crc32(f"{cell.nodes} {cell.load} {seed}".encode())
    rng = np.random.default_rng(drawn)
    nodes = boards.cluster(cell.nodes, rng)
    queue = boards.draw_jobs(nodes, 4 * cell.nodes + 10, cell.load, rng)
    where = setting(cell, arm, tuple(node.name for node in nodes))
    world = judge.SimGrid(nodes) if cell.world == "simgrid" else fluid.Fluid(nodes)
    try:
        played = play.play(
            nodes, queue, _decide(arm, agents, seed), world, where, np.random.default_rng([drawn, 1]), limit_s=3e4
        )
    finally:
        if isinstance(world, judge.SimGrid):
            world.close()
    times = np.array(list(played.times_s.values()))
    work_s = sum(sum(part.compute_core_s for part in job.splits[0].parts) * job.steps for job in queue)
    found = {
        "mean_s": float(times.mean()),
        "median_s": float(np.median(times)),
        "p95_s": float(np.percentile(times, 95)),
        "jobs": len(times),
        "goodput": work_s / played.done_s,
        "done_s": played.done_s,
        "counts": played.counts,
        "use_median": {name: float(np.median(each)) if each else None for name, each in played.use.items()},
        "use_mean": {name: float(np.mean(each)) if each else None for name, each in played.use.items()},
        "judge_ms_median": float(np.median(played.judge_ms)) if played.judge_ms else None,
        "decide_ms_median": float(np.median(played.decide_ms)),
    }
    if cell.world == "simgrid" and seed == 0 and arm in KEY:
        ends = play.replay(played.starts, fluid.Fluid(nodes))
        found["replayed"] = [(played.spans[start.id][1] - at_s, ends[start.id] - at_s) for at_s, start in played.starts]
    return found


def name(cell: Cell) -> str:
    """A cell's name, for files and for people."""
    return f"{cell.world} {cell.nodes} nodes load {cell.load:g} window {cell.window_s:g} s stale {cell.stale_s:g} s"


def run(cells: list[Cell], seeds: int, folder: Path, agents: dict[str, list[Agent]], until: float, now: Any) -> bool:
    """Play what is not kept yet, until the clock says stop; gives whether all is done."""
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        for seed in range(seeds):
            for arm in cell.arms:
                if arm in LEARNED and TRAINED_AS[arm] not in agents:
                    continue
                kept = folder / f"{name(cell)} {arm} {seed}.json".replace(" ", "_").replace(",", "")
                if kept.exists():
                    continue
                if now() > until:
                    return False
                found = one(cell, arm, seed, agents)
                kept.write_text(json.dumps({"cell": cell._asdict(), "arm": arm, "seed": seed, **found}))
                print(f"{name(cell)}, {arm}, {seed}: mean {found['mean_s']:.0f} s", flush=True)
    return True
