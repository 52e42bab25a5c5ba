"""Small cases against the best that can be: all jobs are there at once, every way to place and order them is tried.

The optimum sees everything, needs no time to decide, and its transfers meet no others: it is a little better than any
real schedule could be. CP-SAT and HiGHS get the same seconds; the better schedule counts, and the bound is reported.
Each runs in a process of its own, `python -m tools.bench.srole.optimum SOLVER SEED SECONDS`: OR-Tools brings another
build of HiGHS with it, and the two cannot be loaded together.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgert.placement import jobs as told
from edgert.placement.jobs import Job, Proposal
from edgert.placement.load import overloads, total
from tools.bench.srole import boards, play

GRID_S = 2.0


class Option(NamedTuple):
    """A way to place a job: how long it takes alone, and what it holds of each node."""

    split: int
    nodes: tuple[int, ...]
    duration_s: float
    cores: dict[int, float]
    memory: dict[int, float]


def options(job: Job, nodes: list[boards.Node]) -> list[Option]:
    """Every way to place a job that overloads no empty node."""
    index = {node.name: n for n, node in enumerate(nodes)}
    capacities = {node.name: node.capacity for node in nodes}
    found = []
    for s, split in enumerate(job.splits):
        count, where = len(split.parts), range(len(nodes))
        alike = itertools.combinations_with_replacement(where, count)
        for place in itertools.product(where, repeat=count) if split.kind == "layers" else alike:
            names = tuple(nodes[n].name for n in place)
            proposal = Proposal(job=job, attempt=0, split=s, nodes=names)
            held = told.footprint(proposal, names, capacities)
            sums = {name: total([amount for _, amount in each]) for name, each in held.items()}
            if any(overloads(capacities[name], amount) for name, amount in sums.items()):
                continue
            alone_s = play.alone(nodes, proposal)
            found.append(
                Option(
                    s,
                    tuple(place),
                    alone_s,
                    {index[name]: amount.cores for name, amount in sums.items()},
                    {index[name]: amount.memory_bytes for name, amount in sums.items()},
                )
            )
    return _undominated(found)


def _undominated(found: list[Option]) -> list[Option]:
    """Without those that another of the same nodes beats, to keep the model small."""
    best: dict[tuple[Any, ...], Option] = {}
    for each in found:
        key = tuple(sorted((n, round(c, 3)) for n, c in each.cores.items() if c > 0))
        if key not in best or each.duration_s < best[key].duration_s:
            best[key] = each
    return sorted(best.values(), key=lambda each: each.duration_s)


def cp_sat(
    queue: list[Job], nodes: list[boards.Node], every: list[list[Option]], limit_s: float
) -> tuple[float, float]:
    """(mean completion time of the best schedule found, lower bound), in seconds, by CP-SAT."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    slowest = [max(1, round(each[-1].duration_s / GRID_S)) for each in every]
    horizon = sum(slowest) + 1
    ends = []
    per_node: list[list[tuple[Any, int, int]]] = [[] for _ in nodes]
    for j, found in enumerate(every):
        chosen, end = [], model.new_int_var(0, horizon, f"end{j}")
        start = model.new_int_var(0, horizon, f"start{j}")
        for o, option in enumerate(found):
            took = max(1, round(option.duration_s / GRID_S))
            lit = model.new_bool_var(f"x{j}.{o}")
            interval = model.new_optional_fixed_size_interval_var(start, took, lit, f"i{j}.{o}")
            model.add(end >= start + took).only_enforce_if(lit)
            chosen.append(lit)
            for n, cores in option.cores.items():
                per_node[n].append((interval, round(cores * 100), round(option.memory.get(n, 0.0) / 1e6 + 0.5)))
        model.add_exactly_one(chosen)
        ends.append(end)
    for n, node in enumerate(nodes):
        intervals = [each[0] for each in per_node[n]]
        if intervals:
            model.add_cumulative(intervals, [each[1] for each in per_node[n]], int(node.capacity.cores * 100 + 1e-6))
            model.add_cumulative(intervals, [each[2] for each in per_node[n]], int(node.capacity.memory_bytes / 1e6))
    model.minimize(sum(ends))
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = limit_s  # seconds of a quiet core, however busy this one is
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return float("inf"), 0.0
    scale = GRID_S / len(queue)
    return solver.objective_value * scale, solver.best_objective_bound * scale


def highs(queue: list[Job], nodes: list[boards.Node], every: list[list[Option]], limit_s: float) -> float:
    """Mean completion time of the best schedule found by HiGHS, on a coarse grid of time; infinite if none."""
    import highspy

    tick_s = max(10.0, max(each[0].duration_s for each in every) / 4)
    slots = 24
    model: Any = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("time_limit", limit_s)
    model.setOptionValue("threads", 1)
    x: dict[tuple[int, int, int], Any] = {}
    for j, found in enumerate(every):
        for o, option in enumerate(found[:20]):
            for t in range(slots):
                x[j, o, t] = model.addBinary(obj=t * tick_s + option.duration_s)
        model.addConstr(sum(x[j, o, t] for o in range(min(20, len(found))) for t in range(slots)) == 1)
    for n, node in enumerate(nodes):
        for t in range(slots):
            cores, memory = [], []
            for (j, o, began), var in x.items():
                option = every[j][o]
                took = int(np.ceil(option.duration_s / tick_s))
                if began <= t < began + took and n in option.cores:
                    cores.append(option.cores[n] * var)
                    memory.append(option.memory.get(n, 0.0) / 1e6 * var)
            if cores:
                model.addConstr(sum(cores) <= node.capacity.cores + 1e-6)
                model.addConstr(sum(memory) <= node.capacity.memory_bytes / 1e6)
    model.run()
    value = model.getInfo().objective_function_value
    return float(value) / len(queue) if 0 < value < 1e20 else float("inf")


def case(seed: int, count: int = 8, size: int = 4) -> tuple[list[boards.Node], list[Job]]:
    """A small cluster and jobs that are all there at the start."""
    rng = np.random.default_rng([77, seed])
    while True:
        nodes = boards.cluster(size, rng)
        queue = boards.draw_jobs(nodes, count, 0.7, rng)
        queue = [_now(job) for job in queue]
        if all(options(job, nodes) for job in queue):
            return nodes, queue


def _now(job: Job) -> Job:
    return msgspec.structs.replace(job, born_s=0.0)


def solve(solver: str, seed: int, limit_s: float) -> tuple[float, float]:
    """(mean completion time of the best schedule found, lower bound or 0), in seconds, by a child."""
    asked = [sys.executable, "-m", "tools.bench.srole.optimum", solver, str(seed), str(limit_s)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    best, bound = json.loads(done.stdout.splitlines()[-1])
    return (float("inf") if best is None else float(best)), float(bound)


def main() -> None:
    """Solve one case with one solver and print [best, bound]."""
    solver, seed, limit_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    nodes, queue = case(seed)
    every = [options(job, nodes) for job in queue]
    found = cp_sat(queue, nodes, every, limit_s) if solver == "cp-sat" else (highs(queue, nodes, every, limit_s), 0.0)
    print(json.dumps([None if found[0] == float("inf") else found[0], found[1]]))


if __name__ == "__main__":
    main()
