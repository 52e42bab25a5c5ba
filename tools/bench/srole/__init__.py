"""Placing training jobs: `python -m tools.bench srole`.

Agents that were trained behind shields against the same agents trained without, against one head that decides for all,
and against the rules of the field, with a shield and without, on drawn clusters of the boards of `firmware_configs`.
The judge of 10 and 25 nodes is SimGrid; a fast simulator of our own, compared with it job by job, does the sweeps.
The agents are those of `python -m tools.train.placer`, read with their curves from `--agents`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from edgert.errors import EdgertError
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
RUNS = Path(__file__).parents[3] / "runs" / "srole"


def parse(argv: list[str]) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench srole", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small cell and one seed; about a minute")
    parser.add_argument("--real", action="store_true", help="the real run instead, with options of its own; as root")
    parser.add_argument("--seeds", type=int, default=5, help="clusters and arrivals of each cell (5)")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop playing after these; a later run goes on")
    parser.add_argument("--solver-s", type=float, default=15.0, help="of each solver on each small case (15)")
    parser.add_argument("--cases", type=int, default=8, help="small cases that two solvers work on; 0 for none (8)")
    parser.add_argument("--agents", type=Path, default=Path("runs/placer"), help="what tools.train.placer made")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished plays are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Play, measure, write, print."""
    if "--real" in argv:
        from tools.bench.srole import real

        return real.main([each for each in argv if each != "--real"])
    args = parse(argv)
    try:
        return run(args, argv)
    except EdgertError as error:
        print(f"srole: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Do what the command line says.

    Raises:
        UsageError: no agents, or SimGrid is missing.
    """
    from edgert.errors import UsageError
    from tools.bench.srole import cells, draw, latency, summary

    agents = cells.load_agents(args.agents, 8)
    if "srole" not in agents:
        raise UsageError(f"no trained agent in {args.agents}: run python -m tools.train.placer --method srole first")
    runs = args.runs / "quick" if args.quick else args.runs
    until = time.monotonic() + 60 * args.minutes
    seeds = 1 if args.quick else args.seeds
    done = cells.run(cells.plan(args.quick), seeds, runs, agents, until, time.monotonic)
    shields = latency.measure(agents["srole"][0], (5, 25) if args.quick else (5, 10, 25, 50, 100))
    optimum: list[dict[str, Any]] = []
    if args.cases:
        cases, solver_s = (1, 3.0) if args.quick else (args.cases, args.solver_s)
        optimum = summary.small_cases(agents, cases, solver_s, runs)
    rows = summary.rows(runs)
    real = summary.real(args.out)
    document = {
        "command": " ".join(["python -m tools.bench srole", *argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "how": " ".join(summary.HOW.split()),
        "complete": done,
        "summary": summary.summarise(rows, shields, optimum, real),
        "cells": summary.cells_table(rows),
        "shield": shields,
        "optimum": optimum,
        "simulators": summary.simulators(rows),
        "curves": summary.curves(args.agents),
        "real": real,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "srole.json").write_text(json.dumps(document, indent=1))
    draw.overview(document, args.out)
    print(summary.table(document))
    return 0
