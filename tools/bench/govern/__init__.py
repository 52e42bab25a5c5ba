"""One budget against everything comparable: `python -m tools.bench govern`.

Simulated boards of `firmware_configs` live through traces of heat, charge, load and link, made from seeds and read from
files, under our governor and under what people do instead; an oracle that knows the trace says what could have been
had. A real device on this machine, under a CPU quota and beside a hog, says what of it holds for a real actor.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgert import bundle
from edgert.bundle import Manifest
from edgert.config import Goals
from edgert.errors import EdgertError, UsageError
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import Scenario
from edgert.programs.sim import Moment, board_model
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
MODELS = Path(__file__).parents[3] / "models"
BUNDLES = ("drone", "pong", "breakout", "space_invaders")
BOARDS = (
    "raspberry-pi-3b-plus",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
    "jetson-nano",
    "jetson-orin-nano",
)
SHOWN = "day 0"
ENOUGH_FRAC = 0.95


def parse(argv: list[str]) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench govern", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few traces and one short real run; about a minute")
    parser.add_argument(
        "--set",
        choices=("look", "report"),
        default="report",
        help="seeds to look at while something is changed, or those that are reported (report)",
    )
    parser.add_argument("--no-real", action="store_true", help="simulate only")
    parser.add_argument(
        "--real-of", type=Path, metavar="FILE", help="simulate, and take the real run from this earlier result"
    )
    parser.add_argument("--controllers", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only traces of these kinds")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each arm of the real run (40)")
    parser.add_argument("--rounds", type=int, default=2, help="of the real run (2)")
    parser.add_argument("--cores", type=float, default=0.6, help="that device and hogs may use together (0.6)")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def energy_ratios(manifests: Sequence[Manifest], model: Model) -> list[dict[str, Any]]:
    """CPU energy of acting at the least that keeps the return, against fixed full depth, on a quiet board."""
    from tools.bench.govern.play import play
    from tools.bench.govern.traces import MISS_FRAC, Case, sized

    found = []
    goals = Goals(min_return_frac=ENOUGH_FRAC, least_energy=True, miss_frac=MISS_FRAC)
    for manifest in manifests:
        work = sized(manifest, 0.3, 0.0)
        case = Case("quiet", "quiet", model, Scenario(name="quiet"), work, goals, 1800.0, 5.0, 0.0, 0)
        least, most = (play(case, name) for name in ("ours", "full depth"))
        found.append(
            {
                "bundle": manifest.name,
                "ratio": least.acted_core_s / most.acted_core_s,
                "board_ratio": least.energy_j / most.energy_j,
                "return_frac": least.return_frac / most.return_frac,
            }
        )
    return found


def earlier(path: Path) -> dict[str, Any]:
    """The real run of an earlier result, with the commit that it was measured at.

    Raises:
        UsageError: that is no result with a real run.
    """
    try:
        document = json.loads(path.read_text())
        return {"commit": document["commit"], **document["real"], "arms": document["real"]["arms"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"--real-of {path}: no result with a real run: {error!r}") from error


def main(argv: list[str]) -> int:
    """Simulate, measure, write, print."""
    args = parse(argv)
    try:
        return run(args, argv)
    except EdgertError as error:
        print(f"govern: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Do what the command line says.

    Raises:
        UsageError: no such controller or kind, or the real device does not start.
    """
    from tools.bench.govern import draw, real, summary
    from tools.bench.govern.controllers import CONTROLLERS
    from tools.bench.govern.play import Row, builtins, play
    from tools.bench.govern.traces import cases, steady

    began_s = time.monotonic()
    names = args.controllers or list(CONTROLLERS)
    if unknown := set(names) - set(CONTROLLERS):
        raise UsageError(f"no controller {', '.join(unknown)}: choose among {', '.join(CONTROLLERS)}")
    manifests = [bundle.read((args.models / f"{name}.edgert").read_bytes()).manifest for name in BUNDLES]
    boards = [board_model(name)[0] for name in BOARDS]
    wanted = [
        each
        for each in cases(manifests, boards, seeds=args.set, quick=args.quick)
        if not args.kinds or each.kind in args.kinds
    ]
    if not wanted:
        raise UsageError(f"no trace of {', '.join(args.kinds)}")
    rows: list[Row] = []
    for case in wanted:
        for name in names:
            shown: list[Moment] = []
            rows.append(play(case, name, shown.extend if (case.name, name) == (SHOWN, "ours") else None))
            if shown and args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                draw.timeline(case, shown, args.out)
        told = "; ".join(f"{row.controller} {row.return_frac:.3f}" for row in rows[-len(names) :])
        print(f"{time.monotonic() - began_s:5.0f} s  {case.name:<14} {told}", flush=True)
    calm = steady(manifests, boards, seeds=args.set)
    restless = [play(case, "ours") for case in (calm[:3] if args.quick else calm)]
    quiet = energy_ratios(manifests, boards[1])
    measured: dict[str, Any] = {}
    if args.real_of:
        measured = earlier(args.real_of)
    elif not args.no_real:
        arms = ["ours"] if args.quick else list(real.ARMS)
        seconds, rounds = (15.0, 1) if args.quick else (args.seconds, args.rounds)
        measured = real.arms(seconds, rounds, arms, args.cores)
    document = {
        "command": " ".join(["python -m tools.bench govern", *argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "how": " ".join(summary.HOW.split()),
        "seeds": args.set,
        "traces": len(wanted),
        "summary": summary.of(rows, restless, quiet, measured, real.probe(8.0 if args.quick else 30.0)),
        "real": measured,
        "steady": [builtins(row) for row in restless],
        "rows": [builtins(row) for row in rows],
        "took_s": time.monotonic() - began_s,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "govern.json").write_text(json.dumps(summary.rounded(document), indent=1) + "\n")
    draw.bars(rows, args.out)
    print(draw.table(rows, summary.rounded(document["summary"])))
    return 0
