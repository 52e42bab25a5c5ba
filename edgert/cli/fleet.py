"""`edgert fleet`: commands to devices, from any machine that reaches their broker."""

from __future__ import annotations

import argparse
import importlib
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER, duties
from edgert.cli.key import home
from edgert.cli.talk import clean, conversation, named, read_toml, shown
from edgert.config import Goals
from edgert.errors import ConfigError
from edgert.fleet.command import Bad, read_exits, read_goals
from edgert.fleet.roster import chosen, labels_of
from edgert.ports.onlooker import Onlooker
from edgert.tables import toml

OTHERS = {
    "ca": ("edgert.cli.ca", "ca"),
    "export": ("edgert.cli.export", "export"),
    "keys": ("edgert.cli.rollout", "keys"),
    "place": ("edgert.cli.place", "place"),
    "push": ("edgert.cli.rollout", "push"),
    "rollout": ("edgert.cli.rollout", "staged"),
    "show": ("edgert.cli.look", "show"),
    "status": ("edgert.cli.look", "status"),
    "watch": ("edgert.cli.look", "watch"),
}
"""Verbs with options of their own: about certificates, keys and policies, which are not for one device."""
SEVERITY = (NOTHING_TO_DO, OK, RETRY_LATER, ERROR)
"""Of what came of several devices the worst is told."""


def main(argv: list[str]) -> int:
    """Carry a verb out.

    Returns:
        0 obeyed or shown, 1 refused by a device, 2 nothing to show, 75 no reply, or no broker, in time.

    Raises:
        ConfigError: names, settings, patience or the broker's url are wrong.
        LinkError: no broker in time.
    """
    if argv and argv[0] in OTHERS:
        module, function = OTHERS[argv[0]]
        return int(getattr(importlib.import_module(module), function)(argv[1:]))
    args = _parse(argv)
    named(args.fleet)
    devices = _devices(args)
    args.many = len(devices) > 1
    codes = []
    for device in devices:
        args.device = named(device)
        if args.many and not args.json:
            print(f"{args.fleet}/{device}:")
        codes.append(duties.run(args) if args.verb in duties.VERBS else _command(args))
    return max(codes, key=SEVERITY.index)


def _devices(args: argparse.Namespace) -> list[str]:
    """Those that are meant by their names, or by what they say of themselves."""
    if not args.label:
        return list(dict.fromkeys(args.device))
    with Onlooker(args.broker, args.fleet, patience_s=args.timeout_s) as seen:
        seen.gather()
        return chosen(labels_of(seen.entries), [*(args.device or []), *(f"label:{each}" for each in args.label)])


def _command(args: argparse.Namespace) -> int:
    """Say a command and show the reply."""
    command = _COMMANDS[args.verb](args)
    payload = wire.encode(command)
    told: object = None
    if isinstance(command, wire.ExitsCommand):
        # How many exits the device's network has is its to know; everything else can be said at once.
        told = read_exits(payload, 1 + len(command.thresholds or ()))
    elif isinstance(command, wire.GoalsCommand):
        told = read_goals(payload, Goals())
    if isinstance(told, Bad):
        raise ConfigError(f"a command that no device could obey: {told.why}")
    try:
        with conversation(args) as talk:
            reply = talk.command(args.verb, command.id, payload)
    except TimeoutError as error:
        print(clean(f"edgert: {error}"), file=sys.stderr)
        return RETRY_LATER
    if args.json:
        return shown(
            args, {**reply.detail, "id": reply.id, "ok": reply.ok, "why": reply.why}, "", OK if reply.ok else ERROR
        )
    if not reply.ok:
        print(f"edgert: {args.fleet}/{args.device} refused: {clean(reply.why)}", file=sys.stderr)
    elif isinstance(command, wire.LogsCommand):
        lines = reply.detail.get("lines")
        print("\n".join(clean(str(line)) for line in lines) if isinstance(lines, list) else "")
    else:
        print(f"{args.fleet}/{args.device}: " + clean(", ".join(_told(reply.detail))))
    return OK if reply.ok else ERROR


def _logs(args: argparse.Namespace) -> wire.LogsCommand:
    if not 1 <= args.lines <= 200:
        raise ConfigError(f"--lines {args.lines}: 1 to 200; what is older is in the journal of the device")
    return wire.LogsCommand(id=secrets.token_hex(8), lines=args.lines)


def _told(detail: dict[str, object], of: str = "") -> Iterator[str]:
    """What is in force, as it is written in a configuration."""
    for key, value in detail.items():
        if isinstance(value, dict):
            yield from _told(value, f"{key}.")
        elif of:
            yield f"{of}{key} = {'unset' if value is None else toml(value)}"
        else:
            yield f"{key} {value}"


def _exits(args: argparse.Namespace) -> wire.ExitsCommand:
    return wire.ExitsCommand(
        id=secrets.token_hex(8),
        thresholds=None if args.thresholds is None else tuple(args.thresholds),
        repeat=args.repeat,
        hold_threshold=args.hold_threshold,
        point=args.point,
        max_ops_frac=args.max_ops_frac,
        valid_s=args.valid_s,
    )


def _goals(args: argparse.Namespace) -> wire.GoalsCommand:
    """`name=value`, as in the section [goals] of a configuration file."""
    return wire.GoalsCommand(id=secrets.token_hex(8), goals=read_toml(args.goal, "goals"), valid_s=args.valid_s)


_COMMANDS: dict[str, Callable[[argparse.Namespace], wire.ExitsCommand | wire.GoalsCommand | wire.LogsCommand]] = {
    "exits": _exits,
    "goals": _goals,
    "logs": _logs,
}


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert fleet", description="Command devices over MQTT.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("status", help="every device of a fleet, a line each", add_help=False)
    verbs.add_parser("show", help="all that is known of one device", add_help=False)
    verbs.add_parser("watch", help="what happens, as it happens", add_help=False)
    verbs.add_parser("export", help="events and telemetry for files and for other systems", add_help=False)
    verbs.add_parser("place", help="training jobs, placed over the devices", add_help=False)
    verbs.add_parser("push", help="another policy for devices, at once", add_help=False)
    verbs.add_parser("rollout", help="another policy for devices, in waves", add_help=False)
    verbs.add_parser("keys", help="let devices follow to newer keys", add_help=False)
    verbs.add_parser("ca", help="certificates for broker, devices and people", add_help=False)
    exits = verbs.add_parser(
        "exits",
        help="how early the network of a device may answer",
        description="Set the exits of a device's network between two of its decisions. Without any of the settings, the"
        " bundle's own come back. A device whose configuration has policy.thresholds refuses; its governor may always"
        " lower what decisions cost.",
    )
    setting = exits.add_mutually_exclusive_group()
    setting.add_argument(
        "--thresholds", type=float, nargs="+", help="confidence 0..1 from which each exit but the last is believed"
    )
    setting.add_argument("--point", type=int, help="a point of the bundle's frontier, from 0, the cheapest")
    exits.add_argument("--repeat", type=int, default=1, help="ticks that a sure action is applied for (1)")
    exits.add_argument(
        "--hold-threshold", type=float, default=1.0, help="confidence of an early exit that is sure enough for it (1)"
    )
    exits.add_argument(
        "--max-ops-frac", type=float, default=1.0, help="mean cost of a decision, as a share of the full network's (1)"
    )
    goals = verbs.add_parser(
        "goals",
        help="what is wanted of a device: how long its battery lasts, what it draws, sends, earns",
        description="Set goals of a device in place of those of its configuration. Without any, these come back.",
    )
    goals.add_argument(
        "goal", nargs="*", metavar="name=value", help="as in the section [goals], such as 'last_until=\"18:00\"'"
    )
    for verb in (exits, goals):
        verb.add_argument("--valid-s", type=float, help="for how long (until further notice)")
    logs = verbs.add_parser(
        "logs",
        help="the last lines of a device's log",
        description="Show the last lines that the supervisor of a device logged, its events among them.",
    )
    logs.add_argument("--lines", type=int, default=50, help="at most (50)")
    for verb in (exits, goals, logs, *duties.add(verbs)):
        verb.add_argument("--device", nargs="+", action="extend", help="by name")
        verb.add_argument(
            "--label", nargs="+", action="extend", metavar="NAME[=VALUE]", help="every device that has one of these"
        )
        verb.add_argument("--fleet", default="default", help="(default)")
        verb.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
        verb.add_argument("--timeout-s", type=float, default=10.0, help="patience (10)")
        verb.add_argument("--json", action="store_true", help="the reply as JSON")
        verb.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="to sign with (%(default)s)")
    args = parser.parse_args(argv)
    if not args.device and not args.label:
        parser.error("--device or --label: for whom?")
    return args
