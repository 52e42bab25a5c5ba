"""How few real samples Hybrid Learning needs: `python -m tools.bench hybrid`.

In the ten actions a user of the published space, with an average floor, every learner learns until its greedy choice is
within 1 % (and 5 %) of the exhaustive oracle for 100 evaluations. Who never gets there is counted at the cap. Beside
the static settings: worlds that switch links and loads, and a space in which least squares' assumptions break.
Finished parts are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgert.errors import EdgertError
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
TUNED = RESULTS / "hybrid-tuned.json"
DQN_USERS, DQN_LINKS, DQN_FLOORS = (3, 5), ("A", "B"), ("85", "89")
SLOW_SEEDS = 3
"""Learners that take minutes are played with so many seeds only."""
FLOORS_OF = {"A": ("85", "89"), "B": ("85", "89"), "C": ("none", "89"), "D": ("80", "max")}
"""A fraction of all floors x links, fixed before anything was played with it."""
DEPTH_CELLS = ((5, "A", "85"),)


class Cell(NamedTuple):
    """One setting.

    Attributes:
        kind: "static", "switching" (links and loads change every few joint actions) or "full" (all 24 choices a user).
        users, links, floor: see `tools.bench.offload`.
    """

    kind: str
    users: int
    links: str
    floor: str


def parse(argv: list[str]) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench hybrid", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few settings and seeds; about a minute")
    parser.add_argument("--tune", action="store_true", help="choose settings on seeds that are not reported, then stop")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the part during which these have passed")
    parser.add_argument("--runs", type=Path, default=Path("runs/hybrid"), help="where finished parts are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def cells(*, quick: bool) -> Iterator[Cell]:
    """All settings."""
    if quick:
        yield from (Cell("static", 3, "A", "89"), Cell("static", 4, "B", "85"))
        return
    for users in (5, 4, 3):
        for links, floors in FLOORS_OF.items():
            yield from (Cell("static", users, links, floor) for floor in floors)
    for users in (3, 5):
        yield from (Cell("switching", users, "B", floor) for floor in ("85", "89"))
        yield from (Cell("full", users, "A", floor) for floor in ("85", "89"))


def part(cell: Cell, seed: int, *, quick: bool) -> list[dict[str, Any]]:
    """Every learner in one setting."""
    from tools.bench.hybrid.arms import ARMS, run_arm, scene

    where = scene(cell, seed)
    rows = []
    for name, arm in ARMS.items():
        if cell.kind not in arm.kinds or (quick and arm.slow > 1):
            continue
        fits = cell.users in DQN_USERS and cell.links in DQN_LINKS and cell.floor in DQN_FLOORS
        if arm.slow and not quick and not (fits and seed <= SLOW_SEEDS):
            continue
        if arm.depth and tuple(cell)[1:] not in DEPTH_CELLS:
            continue
        rows.append({**cell._asdict(), "arm": name, "seed": seed, **run_arm(arm, where, name, seed)._asdict()})
    return rows


def main(argv: list[str]) -> int:
    """Run what is missing, sum up, draw, write, and say how it ended."""
    args = parse(argv)
    try:
        if args.tune:
            from tools.bench.hybrid.arms import tune

            TUNED.write_text(json.dumps(tune(), indent=1) + "\n")
            return 0
        return run(args, argv)
    except EdgertError as error:
        print(f"hybrid: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Do what the command line says."""
    from tools.bench.hybrid import draw, summary

    began_s = time.monotonic()
    kept = args.runs / ("quick" if args.quick else "full")
    kept.mkdir(parents=True, exist_ok=True)
    seeds = range(1, 1 + (2 if args.quick else args.seeds))
    wanted = [(cell, seed) for seed in seeds for cell in cells(quick=args.quick)]
    rows: list[dict[str, Any]] = []
    done = 0
    for cell, seed in wanted:
        file = kept / f"{'-'.join(map(str, cell))}-{seed}.json"
        if not file.exists() and (time.monotonic() - began_s) / 60 < args.minutes:
            found = part(cell, seed, quick=args.quick)
            file.with_suffix(".tmp").write_text(json.dumps(found))
            file.with_suffix(".tmp").replace(file)
            told = "; ".join(f"{row['arm']} {row['samples'][0]}" for row in found)
            print(f"{time.monotonic() - began_s:6.0f} s  {' '.join(map(str, cell))} {seed}: {told}", flush=True)
        if file.exists():
            rows += json.loads(file.read_text())
            done += 1
    document = {
        "command": " ".join(["python -m tools.bench hybrid", *argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one core",
        "how": " ".join(summary.HOW.split()),
        "parts": f"{done} of {len(wanted)}",
        **summary.of(rows),
        "tuned": json.loads(TUNED.read_text()) if TUNED.exists() else None,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    name = "hybrid-quick" if args.quick else "hybrid"
    (args.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw.figure(rows, args.out / f"{name}.svg")
    print(summary.table(document))
    return 0
