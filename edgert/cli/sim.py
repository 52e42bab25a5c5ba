"""`edgert sim board`: a simulated board lives through a scenario, with the real governor, in accelerated time."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgert.cli import OK, simfleet
from edgert.errors import ConfigError
from edgert.ports import screen
from edgert.ports.store import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgert.ports.board.scenario import Scenario
    from edgert.programs.sim import Moment

LINES = 24
"""Of the table, at most about so many."""
NAMES = ("heatwave", "low-battery", "bad-link", "cpu-hog", "flaky-sensors")


def main(argv: list[str]) -> int:
    """Simulate.

    Returns:
        0.

    Raises:
        ConfigError: no such board or scenario, or a trace file makes no sense.
        ArtifactError: the bundle is broken.
        StoreError: a file cannot be read or written.
        UsageError: a report is wanted and matplotlib is not installed.
    """
    if argv[:1] == ["fleet"]:
        return simfleet.main(argv[1:])
    args = _parse(argv)
    # Here, because `edgert sim --help` should not wait for numpy.
    from edgert.ports.board import scenario as scenarios
    from edgert.programs import sim

    model, ops_per_s = sim.board_model(args.board)
    seconds = args.hours * 3600
    if args.scenario in scenarios.SCENARIOS:
        told = scenarios.make(args.scenario, model, seed=args.seed, hours=args.hours)
    else:
        told = scenarios.load(Path(args.scenario))
    work = sim.workload(sim.manifest(args.bundle), ops_per_s)
    model = sim.powered(model, told)
    governor = sim.Governor(work, model, sim.config(args.config))
    moments = list(sim.simulate(model, told, work, governor, seconds=seconds, period_s=args.period, seed=args.seed))
    goals = {name: f"{said.found}; wanted {said.wanted}" for name, said in governor.state.verdicts.items()}
    document = {
        "board": model.name,
        "scenario": told.name,
        "seed": args.seed,
        "hours": args.hours,
        "bundle": work.manifest.name,
        "simulated": "board, its processes and what happens to it; the governor and the bundle's frontier are real",
        "summary": {**sim.summary(moments), **goals},
        "columns": sim.columns(moments, model),
    }
    if args.record is not None:
        write_atomic(args.record, trace(told, moments, args, argv).encode(), mode=0o644)
    if args.report is not None:
        from edgert.ports import report

        write_atomic(args.report, report.board_page(document).encode(), mode=0o644)
    if args.json:
        print(json.dumps(document, indent=1))
        return OK
    print(f"{screen.paint(model.name, 'bold')} through {told.name}, seed {args.seed}, {work.manifest.name}")
    _show(moments)
    print()
    for name, value in document["summary"].items():
        print(f"  {name:<22} {value if isinstance(value, str) else screen.number(value, digits=3)}")
    for what, path in (("trace", args.record), ("report", args.report)):
        if path is not None:
            print(f"{what}: {path}")
    return OK


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert sim", description="Simulate a board or a fleet.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    board = verbs.add_parser("board", help="a board lives through a scenario with the real governor, in seconds")
    verbs.add_parser("fleet", help="thousands of devices over a real broker, and what goes wrong", add_help=False)
    board.add_argument("--board", default="generic", metavar="NAME", help="of firmware_configs, or a file (generic)")
    board.add_argument("--scenario", default="heatwave", metavar="NAME", help=f"{', '.join(NAMES)}, or a trace file")
    board.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    board.add_argument("--hours", type=float, default=8.0, metavar="H", help="from beginning to end (8)")
    board.add_argument("--period", type=float, default=1.0, metavar="S", help="between two looks of the governor (1)")
    board.add_argument("--bundle", type=Path, metavar="FILE", help="what acts (the shipped breakout)")
    board.add_argument("--config", type=Path, metavar="FILE", help="of a device, for its goals and limits (defaults)")
    board.add_argument("--record", type=Path, metavar="FILE", help="write a trace as CSV, which --scenario reads")
    board.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots")
    board.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.epilog = f"{board.format_usage()} {simfleet.parser().format_usage()}"
    args = parser.parse_args(argv)
    if not 0 < args.hours <= 24 * 366 or not 0.1 <= args.period <= 600:
        raise ConfigError("--hours must be above 0 and at most a year, --period between 0.1 and 600")
    return args


def trace(told: Scenario, moments: Sequence[Moment], args: argparse.Namespace, argv: Sequence[str]) -> str:
    """What happened to the board and what it did, as a trace file; one row where something changed, or a minute."""
    from edgert.ports.board.scenario import Row, cells

    out = io.StringIO()
    out.write(f"# simulated: edgert sim {' '.join(argv)}\n")
    first = {"capacity_j": "" if told.capacity_j is None else f"{told.capacity_j:.9g}"}
    first["charge_frac"] = f"{told.charge_frac:.9g}"
    results = ("temp_c", "charge_frac", "freq_frac", "load_frac", "power_w", "return_frac", "steps")
    writer = csv.DictWriter(out, [*cells(Row()), *first, *(f"out_{name}" for name in results), "out_why"])
    writer.writeheader()
    last = None
    for moment in moments:
        if moment.row == last:
            continue
        last = moment.row
        values = {f"out_{name}": _cell(getattr(moment, name)) for name in results}
        why = " ".join(sorted({reason for reason in moment.budget.why.values() if reason != "ok"}))
        writer.writerow({**cells(moment.row), **first, **values, "out_why": why})
        first = dict.fromkeys(first, "")
    return out.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _show(moments: Sequence[Moment]) -> None:
    """A table of at most `LINES` rows, and one wherever the reasons changed in between."""
    head = ("hour", "air °C", "chip °C", "clock", "charge", "load", "rtt s", "return", "train/s", "ask B/s")
    print("".join(f"{name:>9}" for name in head) + "  because")
    stride = max(1, len(moments) // LINES)
    for moment in moments[stride - 1 :: stride]:
        row, budget = moment.row, moment.budget
        figures: list[Any] = [
            screen.number(moment.t_s / 3600, digits=2),
            screen.number(row.ambient_c),
            screen.number(moment.temp_c),
            screen.percent(moment.freq_frac),
            screen.percent(moment.charge_frac),
            screen.percent(moment.load_frac),
            screen.number(row.rtt_s, digits=2) if row.link_up else "down",
            screen.number(moment.return_frac, digits=2),
            screen.number(moment.steps / moment.lasted_s),
            screen.number(budget.teacher_bytes_per_s, digits=0),
        ]
        why = ", ".join(dict.fromkeys(reason for reason in budget.why.values() if reason != "ok"))
        off = "OFF: the battery is empty" if not moment.on_frac else ""
        print("".join(f"{figure:>9}" for figure in figures) + f"  {off or why or '-'}")
