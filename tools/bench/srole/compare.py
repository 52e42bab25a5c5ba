"""How far the simulators are from the real run: the same placements at the same times, job by job.

What is compared is the time from the grant of the attempt that was carried to its end until the last step was done:
shipping, starting, training. Placing is not simulated here; attempts that failed are left out. Three overheads of the
real devices are in the simulation, each as it was measured and not as it would fit: what the daemons take all the time
(in every run, before the jobs come), what starting a part takes, and what judging takes on the owner's device.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert.placement.jobs import Job, Proposal, Split
from edgert.placement.load import Capacity
from tools.bench.srole import fluid, judge, play
from tools.bench.srole.boards import Node
from tools.bench.srole.fluid import Start

START_CORE_S = 0.35
"""What starting a part takes of a whole core, as measured beside the real run."""
JUDGE_CORE_S = 0.42
"""What judging a result takes of its owner's core: the mean of three jobs whose owner did nothing else."""
LINK_BYTES_PER_S = 20e6 / 8


def nodes_of(told: list[dict[str, Any]], own_cpu: dict[str, float]) -> list[Node]:
    """The boards of a real run; the daemons of each take so much of a core."""
    made = []
    for each in told:
        share, memory = float(each["share"]) - own_cpu.get(each["name"], 0.0), float(each["memory_bytes"])
        capacity = Capacity(cores=1.0, speed=share, memory_bytes=memory, link_bytes_per_s=LINK_BYTES_PER_S)
        made.append(Node(each["name"], "quota", 1.0, share, memory, 0.0, LINK_BYTES_PER_S, 1e9, 0.0, capacity))
    return made


def _start(job: dict[str, Any], nodes: list[Node], parts: dict[str, Any]) -> tuple[float, float, Start] | None:
    """(when granted, how long it took, the placement) of a job that was carried to its end in one attempt."""
    history = job["history"]
    ends = [event["at_s"] for event in history if event["what"] == "trained"]
    grants = [k for k, event in enumerate(history) if event["what"] == "granted"]
    if not ends or len(grants) != 1:
        return None
    granted = history[grants[0]]
    asked = next(event for event in reversed(history[: grants[0]]) if event["what"] == "proposed")
    kind = parts[job["kind"]]
    for told in kind["splits"]:
        same = told["kind"] == asked["kind"] and len(told["parts"]) == len(granted["nodes"])
        if same and list(told["edges"]) == list(asked["cut"]):
            break
    else:
        return None
    split = msgspec.convert({"kind": told["kind"], "parts": told["parts"]}, Split)
    begun = START_CORE_S / job["steps"]  # a part that starts meets others on its node, as one that trains
    parts_ = tuple(msgspec.structs.replace(p, compute_core_s=p.compute_core_s + begun) for p in split.parts)
    split = msgspec.structs.replace(split, parts=parts_)
    made = Job(id=job["id"], owner=job["owner"], splits=(split,), steps=job["steps"], ship_bytes=kind["ship_bytes"])
    names = tuple(granted["nodes"])
    index = {node.name: n for n, node in enumerate(nodes)}
    start = play.as_start(nodes, index, Proposal(job=made, attempt=0, nodes=names), names, 0.0)
    delay_s = max(0.0 if name == job["owner"] else kind["ship_bytes"] / LINK_BYTES_PER_S for name in names)
    return granted["at_s"], ends[-1] - granted["at_s"], start._replace(delay_s=delay_s)


def _judging(job: dict[str, Any], nodes: list[Node]) -> tuple[float, Start] | None:
    """(when, the load) of judging what a job gave, on its owner."""
    ends = [event["at_s"] for event in job["history"] if event["what"] == "trained"]
    owner = next(n for n, node in enumerate(nodes) if node.name == job["owner"])
    return (
        (ends[-1], Start(f"judge {job['id']}", False, 1, ((owner, JUDGE_CORE_S, 1.0, 0.0),), (), 0.0)) if ends else None
    )


def compare(real: Path, parts: Path) -> dict[str, Any]:
    """Every run of the real fleet again in both simulators."""
    document = json.loads(real.read_text())
    measured = json.loads(parts.read_text())["jobs"]
    worlds: dict[str, Callable[[list[Node]], fluid.Fluid | judge.SimGrid]] = {"fluid": fluid.Fluid}
    if judge.available():
        worlds["simgrid"] = judge.SimGrid
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in worlds}
    by_scheme: dict[str, dict[str, list[float]]] = {name: {} for name in worlds}
    for title, run in document["runs"].items():
        nodes = nodes_of(document["boards"], run.get("own_cpu_s", {}))
        found = [each for each in (_start(job, nodes, measured) for job in run["jobs"]) if each is not None]
        if not found:
            continue
        first_s = min(at_s for at_s, _, _ in found)
        starts = sorted(((at_s - first_s, start) for at_s, _, start in found), key=lambda each: each[0])
        took = {start.id: took_s for _, took_s, start in found}
        beside = [each for each in (_judging(job, nodes) for job in run["jobs"]) if each is not None]
        loads = sorted([*starts, *((at_s - first_s, load) for at_s, load in beside)], key=lambda each: each[0])
        loads = [each for each in loads if each[0] >= 0]
        for name, make in worlds.items():
            world = make(nodes)
            ends = play.replay(loads, world)
            if isinstance(world, judge.SimGrid):
                world.close()
            both = [(took[start.id], ends[start.id] - at_s) for at_s, start in starts]
            pairs[name] += both
            by_scheme[name].setdefault(title.partition("/")[0], []).extend(abs(b - a) / a for a, b in both)
    made: dict[str, Any] = {}
    for name, both in pairs.items():
        errors = np.array([(b - a) / a for a, b in both])
        drawn = np.abs(np.random.default_rng(0).choice(errors, (4000, len(errors)))).mean(1)
        made[name] = {
            "jobs": len(both),
            "mape": [round(float(x), 4) for x in (np.abs(errors).mean(), *np.percentile(drawn, (2.5, 97.5)))],
            "bias": round(float(errors.mean()), 4),
            "mape_by_scheme": {scheme: round(float(np.mean(each)), 4) for scheme, each in by_scheme[name].items()},
            "mean_real_s": round(float(np.mean([a for a, _ in both])), 2),
            "mean_simulated_s": round(float(np.mean([b for _, b in both])), 2),
        }
    return made
