"""`edgert fleet status|show|watch`: what there is, all of one device, and what happens."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from edgert import wire
from edgert.cli import NOTHING_TO_DO, OK
from edgert.cli.talk import clean, named, shown, table
from edgert.errors import ConfigError
from edgert.fleet import presence, roster
from edgert.fleet.roster import Heard
from edgert.ports import screen
from edgert.ports.onlooker import Onlooker

COLOURS = {"online": "green", "silent": "yellow", "duplicate": "red"}


def status(argv: list[str]) -> int:
    """Show every device of a fleet, a line each.

    Returns:
        0; 2 when nobody ever said that it is there.

    Raises:
        ConfigError: names, labels or the broker's url are wrong.
        LinkError: no broker in time.
    """
    args = _parse("status", "Every device of a fleet, a line each.", argv, for_s=2.5)
    with Onlooker(args.broker, args.fleet, patience_s=args.timeout_s) as seen:
        seen.gather(args.for_s)
        rows = _picked(seen, args.label)
    if not rows:
        return shown(args, [], f"no device of fleet {args.fleet} ever said that it is there", NOTHING_TO_DO)
    head = ("device", "state", "policy", "update", "jobs", "battery", "heat", "load", "missed", "labels", "why")
    return shown(args, rows, table(head, [_cells(row) for row in rows]) + "\n" + _counted(rows), OK)


def _picked(seen: Onlooker, labels: list[str]) -> list[dict[str, Any]]:
    wanted = roster.chosen(roster.labels_of(seen.entries), [f"label:{each}" for each in labels]) if labels else None
    return [row for row in seen.rows() if wanted is None or row["device"] in wanted]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = row["state"] + (", drained" if row["drained"] else "")
    missed = "-"
    if row["ticks"] and row["missed"] is not None:
        missed = screen.percent(row["missed"] / row["ticks"], 2)
    return (
        row["device"],
        state,
        row["policy"] or "-",
        row["update"] or "-",
        str(row["jobs"]),
        screen.percent(row["battery_frac"]),
        screen.number(row["temp_c"], " °C", 0),
        screen.percent(row["load_frac"]),
        missed,
        row["labels"] or "-",
        row["why"],
    )


def _counted(rows: Iterable[dict[str, Any]]) -> str:
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    return ", ".join(f"{count} {screen.paint(state, COLOURS.get(state, 'bold'))}" for state, count in states.items())


def show(argv: list[str]) -> int:
    """Show all that is known of one device.

    Returns:
        0; 2 when nothing is.

    Raises:
        ConfigError: names or the broker's url are wrong.
        LinkError: no broker in time.
    """
    args = _parse("show", "All that is known of one device.", argv, for_s=2.5, device=True)
    with Onlooker(args.broker, args.fleet, named(args.device), patience_s=args.timeout_s) as seen:
        seen.gather(args.for_s)
        entry = seen.entries.get(args.device)
        rows = seen.rows()
    if entry is None:
        return shown(args, {}, f"nothing is known of {args.fleet}/{args.device}", NOTHING_TO_DO)
    plain: dict[str, Any] = msgspec.to_builtins(entry, builtin_types=(bytes,))
    document = {**rows[0], "known": plain}
    words = table(("what", "is"), [(name, _text(value)) for name, value in rows[0].items() if value not in ("", None)])
    words += f"\nsession {clean(entry.sighting.session) or '-'}, {entry.sighting.births} births"
    if entry.report is not None and entry.report.id:
        said = entry.report
        offer = f"policy offer {said.id}: {said.stage} {said.name} {said.version}"
        words += "\n" + clean(offer + (f", {said.code}: {said.why}" if said.code else ""))
    if entry.twin is not None:
        words += f"\ntwin version {entry.twin.version}"
        words += "".join("\n  " + clean(f"refused {name}: {why}") for name, why in entry.twin.refused.items())
    jobs = [(job.id, job.kind or "-", job.state, job.why) for job in entry.jobs.values()]
    words += "\n" + table(("job", "kind", "state", "why"), jobs) if jobs else ""
    return shown(args, document, words, OK)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def watch(argv: list[str]) -> int:
    """Print what happens as it happens, until Ctrl-C.

    Events come again until a collector holds them (`edgert fleet export --acknowledge` is one); none is printed twice.

    Returns:
        0.

    Raises:
        ConfigError: names or the broker's url are wrong.
        LinkError: no broker in time.
    """
    args = _parse("watch", "What happens, as it happens, a line each.", argv, for_s=0.0)
    end_s = time.monotonic() + args.for_s if args.for_s else None
    states: dict[str, str] = {}
    told: dict[tuple[str, str], set[int]] = {}
    with Onlooker(args.broker, args.fleet, patience_s=args.timeout_s) as seen:
        seen.gather()
        while end_s is None or time.monotonic() < end_s:
            for heard in seen.turn(0.5):
                _tell(args, heard.device, _happened(heard, told))
            for device, entry in seen.entries.items():
                state = presence.state(entry.sighting, time.monotonic())
                former = states.get(device)
                states[device] = state
                if former is not None and former != state:
                    _tell(args, device, {"what": "state", "state": state, "was": former})
                elif former is None:
                    _tell(args, device, {"what": "state", "state": state})
    return OK


def _happened(heard: Heard, told: dict[tuple[str, str], set[int]]) -> dict[str, object]:
    """What is worth a line; empty where nothing is."""
    match heard.said:
        case wire.Event(stream=stream, first=first, seq=seq) as event:
            former = told.get((heard.device, stream), set())
            told[heard.device, stream] = {each for each in former if each >= first} | {seq}  # others never come again
            if seq in former:
                return {}
            return {"what": "event", "name": event.name, "at_s": event.at_s, "detail": event.detail}
        case wire.JobState() as job:
            return {"what": "job", "id": job.id, "kind": job.kind, "state": job.state, "why": job.why}
        case wire.PolicyReport() as report if report.id:
            fields = ("stage", "name", "version", "code", "why")
            return {"what": "policy", **{field: getattr(report, field) for field in fields}}
        case wire.TwinReported() as twin:
            return {"what": "twin", "version": twin.version, "refused": twin.refused}
        case _:
            return {}


def _tell(args: argparse.Namespace, device: str, what: dict[str, object]) -> None:
    if not what:
        return
    if args.json:
        print(json.dumps({"device": device, **what}, default=lambda value: value.hex()), flush=True)
        return
    rest = " ".join(f"{name}={json.dumps(each, default=str)}" for name, each in what.items() if name != "what" and each)
    print(f"{time.strftime('%H:%M:%S')} {device} {what['what']} {rest}", flush=True)


def _parse(verb: str, description: str, argv: list[str], *, for_s: float, device: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"edgert fleet {verb}", description=description)
    if device:
        parser.add_argument("device")
    options(parser)
    if verb == "status":
        parser.add_argument("--label", nargs="+", default=[], metavar="NAME[=VALUE]", help="only those that have one")
    help_ = "for so long (until Ctrl-C)" if verb == "watch" else f"listen for so long ({for_s:g})"
    parser.add_argument("--for-s", type=float, default=for_s, help=help_)
    args = parser.parse_args(argv)
    named(args.fleet)
    if not args.for_s >= 0 or not args.timeout_s > 0:
        raise ConfigError("--for-s and --timeout-s are seconds, and patience is more than none")
    return args


def options(parser: argparse.ArgumentParser) -> None:
    """What whoever looks at a fleet has to say."""
    parser.add_argument("--fleet", default="default", help="(default)")
    parser.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8884][?ca=FILE&...]")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="patience with the broker (10)")
    parser.add_argument("--json", action="store_true", help="JSON")
