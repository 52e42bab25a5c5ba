"""`edgert board`: what this machine is, what it measures and what it costs to look, and what can be set on it."""

from __future__ import annotations

import argparse
import difflib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from edgert.cli import NOTHING_TO_DO, OK
from edgert.config import Board as BoardSection
from edgert.config import Config, Device, Policy
from edgert.errors import ConfigError, UsageError
from edgert.govern import energy
from edgert.hardware import BoardFile, Fragment, Hardware
from edgert.ports import boardfile, screen
from edgert.ports.board import open_board
from edgert.ports.board.linux import LinuxBoard
from edgert.ports.process import load_config
from edgert.values import Reading, Readings, Throttle

DEFAULT_CONFIG = Path("/etc/edgert/edgert.toml")
LOOKS = 20
"""To tell what one costs: not every sensor is due at every look."""
_PRESSURE = ("cpu_pressure_frac", "memory_pressure_frac")

_UNITS = {
    "_c": " °C",
    "_w": " W",
    "_v": " V",
    "_a": " A",
    "_j": " J",
    "_s": " s",
    "_dbm": " dBm",
    "_bytes_per_s": " B/s",
}
_MISSING = {
    "load_frac": "/proc/stat cannot be read, or has not advanced",
    "temp_c": "no thermal zone and no CPU sensor of hwmon gives a value",
    "battery_frac": "no battery of /sys/class/power_supply and no gauge of [[board.gauges]] gives one",
    "power_w": "nothing measures it: no rails, no discharging battery, no gauge; energy is estimated from CPU time",
    "link_rtt_s": "only a running device measures it",
    "trip_c": "no thermal zone has a passive trip point",
    "freq_frac": "the kernel has no cpufreq here",
    "memory_available_bytes": "/proc/meminfo cannot be read",
    **dict.fromkeys(_PRESSURE, "the kernel has no PSI"),
    "link_loss_frac": "not measured yet, or the kernel does not say",
    "link_bytes_per_s": "not measured yet: it is known after traffic",
    "rssi_dbm": "no radio, or it is not connected",
}


def main(argv: list[str]) -> int:
    """Run one of the verbs about boards.

    Returns:
        0, or 2 when there is nothing to do.

    Raises:
        ConfigError: a file is wrong, or no file fits this board.
        StoreError: a file may not be changed.
    """
    parser = argparse.ArgumentParser(
        prog="edgert board",
        description="The board this runs on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="what was detected and why, and every sensor")
    show.add_argument("--config", type=Path, help=f"its [board] and [battery] ({DEFAULT_CONFIG}, if it is there)")
    show.add_argument("--json", action="store_true", help="for programs")
    listing = verbs.add_parser("list", help="the boards that there are files for")
    listing.add_argument("--json", action="store_true", help="for programs")
    apply = verbs.add_parser("apply", help="set what the board's file recommends, in marked blocks")
    apply.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    apply.add_argument("--undo", action="store_true", help="take everything back")
    apply.add_argument("--with", dest="extra", metavar="NAME", action="append", default=[], help="this one as well")
    apply.add_argument("--only", metavar="NAME", action="append", default=[], help="this one and no other")
    for each in (show, apply):
        each.add_argument("--board", metavar="NAME", help="take this one, whatever is detected")
        each.add_argument("--root", type=Path, default=Path("/"), help="folder that stands for /, for tests (/)")
    parser.epilog = "".join(each.format_usage() for each in (show, listing, apply))
    args = parser.parse_args(argv)
    if args.verb == "list":
        return _list(args.json)
    return _show(args) if args.verb == "show" else _apply(args)


def _list(as_json: bool) -> int:
    boards = boardfile.load_all()
    found, _ = boardfile.match(boardfile.detect(), boards.values())
    if as_json:
        rows = [{"name": name, "title": board.hardware.title, "this": board is found} for name, board in boards.items()]
        print(json.dumps(rows, indent=2))
        return OK
    for line in table(
        [(name, board.hardware.title, "this one" if board is found else "") for name, board in boards.items()]
    ):
        print(line)
    return OK


def _show(args: argparse.Namespace) -> int:
    config = _config(args)
    root = config.board.sysfs_root
    detected = boardfile.detect(root)
    board, why = boardfile.load(args.board or config.board.model, root)
    readings, facts, cost_s = _look(config)
    core_frac = cost_s / config.govern.period_s
    rows = list(_rows(readings))
    missing = dict(_missing(readings, board.hardware if board else None))
    if args.json:
        document = {
            "detected": detected._asdict(),
            "board": None if board is None else {"name": board.name, "title": board.hardware.title},
            "why": why,
            "found": facts,
            "readings": {name: msgspec.to_builtins(reading) for name, reading in rows},
            "throttle": msgspec.to_builtins(readings.throttle),
            "missing": missing,
            "probe": {"look_s": cost_s, "period_s": config.govern.period_s, "core_frac": core_frac},
        }
        print(json.dumps(document, indent=2))
        return OK
    print(f"board    {board.hardware.title if board else 'unknown'}")
    print(f"model    {detected.model or '-'} ({detected.source})")
    print(f"file     {board.name if board else '-'}: {why}")
    if board is not None:
        advice = board.hardware.advice
        print(f"heat     {heat(board.hardware)}")
        share = screen.percent(advice.max_ops_frac)
        print(f"advice   {advice.precision} models, threads: {advice.threads}, {share} of the network's operations")
    if readings.throttle is not None:
        print(f"throttle {throttled(readings.throttle)}")
    print(f"power    {_power(config, board)}")
    print()
    for line in table([("found", ""), *facts.items()] if facts else []):
        print(line)
    print()
    cells = [(name, shown(name, reading), screen.number(reading.age_s, " s"), reading.source) for name, reading in rows]
    for line in table([("sensor", "value", "age", "source"), *cells]):
        print(line)
    print("\nmissing" if missing else "\nnothing is missing")
    for line in table(list(missing.items())):
        print(line)
    period = f"{config.govern.period_s:g} s"
    print(f"\none look costs {cost_s * 1e3:.1f} ms of CPU time: {core_frac:.2%} of a core, once in {period}")
    return OK


def _config(args: argparse.Namespace) -> Config:
    path = args.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() and args.root == Path("/") else None)
    if path is not None:
        return load_config(path)
    section = BoardSection(sysfs_root=str(args.root.absolute()))
    return Config(device=Device(id="x"), policy=Policy(bundle="x"), board=section)


def _power(config: Config, board: BoardFile | None) -> str:
    """What is assumed of its power before anything measured it."""
    supply = energy.supply_of(config, board, cores=1)
    whose = "a guess: state it in [board]" if supply.source == energy.ASSUMED else f"of {supply.source}"
    return f"{supply.idle_w:.2g} W at rest, {supply.busy_w:.2g} W more when all cores are busy ({whose})"


def _look(config: Config) -> tuple[Readings, dict[str, str], float]:
    """What there is to read, what was found and why, and the CPU time of a look once in `[govern] period_s`."""
    board = open_board(config)
    first = board
    board.read(time.monotonic())
    time.sleep(0.3)  # CPU load is a difference between two looks
    readings = board.read(time.monotonic())
    # A second one is told that a period has passed, without waiting: what is due is read, and rates mean nothing.
    board, now_s = open_board(config), time.monotonic()
    board.read(now_s)
    began_s = time.process_time()
    for i in range(LOOKS):
        board.read(now_s + (i + 1) * config.govern.period_s)
    cost_s = (time.process_time() - began_s) / LOOKS
    facts = first.facts() if isinstance(first, LinuxBoard) else {}
    return readings, {name: said for name, said in facts.items() if name != "model"}, cost_s


def _rows(readings: Readings) -> Iterator[tuple[str, Reading]]:
    """Everything that has a value; the named readings first."""
    named = [(name, getattr(readings, name)) for name in readings.__struct_fields__]
    for name, reading in [*named, *sorted(readings.detail.items())]:
        if isinstance(reading, Reading) and reading.value is not None:
            yield name, reading


def _missing(readings: Readings, hardware: Hardware | None) -> Iterator[tuple[str, str]]:
    for name in readings.__struct_fields__:
        reading = getattr(readings, name)
        if isinstance(reading, Reading) and reading.value is None:
            if name == "battery_frac" and not readings.has_battery:
                yield name, 'mains: [battery] kind is "none"'
            elif name in _PRESSURE and hardware and any(each.name == "pressure" for each in hardware.fragments):
                yield name, "the kernel has PSI switched off: see the setting `pressure` of `edgert board apply`"
            else:
                yield name, reading.source or _MISSING.get(name, "no sensor gives it")
    for name, reading in sorted(readings.detail.items()):
        if reading.value is None:
            yield name, reading.source or "it is there, and gives no value"
    names = " ".join(readings.detail)
    for rail in hardware.rails if hardware else ():
        if rail.name.lower() not in names.lower():
            yield rail.name, f"the board has this rail; the driver {rail.driver} does not show it"


def shown(name: str, reading: Reading) -> str:
    """A value in the unit of its name, as people read it."""
    value = reading.value
    if name.endswith("_frac"):
        return screen.percent(value, 1)
    if name.endswith("_bytes"):
        return screen.amount(value)
    if name.endswith("_hz") and value is not None:
        return f"{value / 1e6:.0f} MHz"
    unit = max((end for end in _UNITS if name.endswith(end)), key=len, default="")
    if not unit and value is not None and value == int(value):
        return str(int(value))  # the number of a mode
    return screen.number(value, _UNITS.get(unit, ""), 2 if unit in ("_w", "_v", "_a") else 1)


def heat(hardware: Hardware) -> str:
    """Where a board throttles, in one line."""
    words = {"soft_c": "a little slower", "throttle_c": "throttled", "hard_c": "hard", "critical_c": "shut down"}
    marks = {said: getattr(hardware.heat, field) for field, said in words.items()}
    return ", ".join(f"{said} at {mark:g} °C" for said, mark in marks.items() if mark is not None) or "not known"


def throttled(throttle: Throttle) -> str:
    """What the firmware says, in one line."""
    since = ", ".join(throttle.since_boot) or "nothing"
    return f"now {', '.join(throttle.now) or 'nothing'}; since boot {since}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, plain text in every place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _apply(args: argparse.Namespace) -> int:
    board, why = boardfile.load(args.board, args.root)
    if board is None:
        raise ConfigError(f"{why}; name one with --board, see `edgert board list`")
    fragments = _chosen(board, args.only, args.extra)
    files = [fragment for fragment in board.hardware.fragments if fragment.file]
    if args.undo:
        changes = boardfile.plan_undo(files, args.root)
    else:
        changes = boardfile.plan([fragment for fragment in fragments if fragment.file], args.root)
    print(f"{board.hardware.title}: {why}")
    for change in changes:
        print("\n".join(_diff(change)))
    if not changes:
        print("nothing to undo" if args.undo else _nothing(fragments, args.root))
    if not args.undo:
        _explain(board, fragments, args.root)
    if not changes:
        return NOTHING_TO_DO
    if args.dry_run:
        print("\nnothing was changed: this was a dry run")
        return OK
    boardfile.carry_out(changes)
    print(f"\nchanged {', '.join(str(change.path) for change in changes)}; reboot for it to take effect")
    return OK


def _nothing(fragments: Sequence[Fragment], root: Path) -> str:
    """Why nothing would change: a board without the files to set it in is not one that is set."""
    lacking = [each.name for each in fragments if each.file and boardfile.plan_target(each, root) is None]
    if lacking:
        return f"nothing to change: no file here to set {', '.join(lacking)} in"
    return "everything is set as it should be" if any(each.file for each in fragments) else "nothing is recommended"


def _chosen(board: BoardFile, only: Sequence[str], extra: Sequence[str]) -> list[Fragment]:
    known = {fragment.name: fragment for fragment in board.hardware.fragments}
    if strange := [name for name in (*only, *extra) if name not in known]:
        raise ConfigError(f"{board.name} has no {', '.join(strange)}; it has {', '.join(known) or 'nothing to set'}")
    if only and extra:
        raise UsageError("--only and --with exclude one another")
    if only:
        return [known[name] for name in only]
    return [fragment for fragment in known.values() if fragment.standard or fragment.name in extra]


def _explain(board: BoardFile, fragments: Sequence[Fragment], root: Path) -> None:
    rows = []
    for fragment in board.hardware.fragments:
        is_chosen = fragment in fragments
        without_file = is_chosen and fragment.file and not boardfile.plan_target(fragment, root)
        state = "no such file here" if without_file else "chosen" if is_chosen else f"--with {fragment.name}"
        rows.append((fragment.name, state, fragment.why))
    if rows:
        print()
        for line in table(rows):
            print(line)
    for fragment in fragments:
        for command in fragment.run:
            print(f"to type: {command}")


def _diff(change: boardfile.Change) -> Iterator[str]:
    before, after = (change.before or "").splitlines(), (change.after or "").splitlines()
    for line in difflib.unified_diff(before, after, str(change.path), str(change.path), lineterm="", n=2):
        colour = {"+": "green", "-": "red"}.get(line[:1], "")
        yield screen.paint(line, colour) if colour else line
