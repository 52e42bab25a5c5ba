"""`edgert fleet`: commands to devices, from any machine that reaches their broker."""

from __future__ import annotations

import argparse
import importlib
import json
import secrets
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from edgert import wire
from edgert.cli import ERROR, OK, RETRY_LATER, duties
from edgert.cli.key import home, vouched
from edgert.config import Goals
from edgert.errors import ConfigError, MessageError
from edgert.fleet.command import Bad, read_exits, read_goals
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received
from edgert.tables import toml

OTHERS = {
    "ca": ("edgert.cli.ca", "ca"),
    "keys": ("edgert.cli.rollout", "keys"),
    "push": ("edgert.cli.rollout", "push"),
    "rollout": ("edgert.cli.rollout", "staged"),
}
"""Verbs with options of their own: about certificates, keys and policies, which are not for one device."""
EXPIRY_S = 60
"""A device that is away for longer never hears of the command: nobody waits for its reply by then."""


def main(argv: list[str]) -> int:
    """Send a command and wait for the device's reply.

    Returns:
        0 obeyed, 1 refused by the device, 75 no reply, or no broker, in time.

    Raises:
        ConfigError: names, settings, patience or the broker's url are wrong.
    """
    if argv and argv[0] in OTHERS:
        module, function = OTHERS[argv[0]]
        return int(getattr(importlib.import_module(module), function)(argv[1:]))
    args = _parse(argv)
    for word, name in (("fleet", args.fleet), ("device", args.device)):
        if not wire.is_name(name):
            raise ConfigError(f"{word} {name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    if args.verb in ("twin", "job", "schedule"):
        return duties.run(args)
    command = _goals(args) if args.verb == "goals" else _exits(args)
    payload = wire.encode(command)
    if isinstance(command, wire.ExitsCommand):
        # How many exits the device's network has is its to know; everything else can be said at once.
        told: object = read_exits(payload, 1 + len(command.thresholds or ()))
    else:
        told = read_goals(payload, Goals())
    if isinstance(told, Bad):
        raise ConfigError(f"a command that no device could obey: {told.why}")
    if not args.timeout_s > 0:
        raise ConfigError(f"--timeout-s {args.timeout_s:g}: it must be above 0")
    reply = _ask(args, command.id, vouched(args, payload))
    if isinstance(reply, str):
        print(f"edgert: {reply}", file=sys.stderr)
        return RETRY_LATER
    if args.json:
        print(json.dumps({"id": reply.id, "ok": reply.ok, "why": reply.why, **reply.detail}))
    elif reply.ok:
        print(f"{args.fleet}/{args.device}: " + ", ".join(_told(reply.detail)))
    else:
        print(f"edgert: {args.fleet}/{args.device} refused: {reply.why}", file=sys.stderr)
    return OK if reply.ok else ERROR


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
    try:
        named = tomllib.loads("\n".join(args.goal))
    except ValueError as error:
        raise ConfigError(f"goals: {error}; write name=value as in the configuration, text in quotes") from error
    return wire.GoalsCommand(id=secrets.token_hex(8), goals=named, valid_s=args.valid_s)


def _ask(args: argparse.Namespace, id_: str, payload: bytes) -> wire.CommandReply | str:
    """Publish until the broker takes it, and wait for the reply, or say why there is none.

    Blocks: up to `args.timeout_s`.
    """
    broker = args.broker.rpartition("@")[2]  # without a password
    why = f"no broker at {broker} within {args.timeout_s:g} s"
    topic = str(wire.Topic(args.fleet, args.device, "cmd", args.verb))
    mqtt = Mqtt(args.broker, f"edgert-fleet-{id_}", session_expiry_s=0)
    mqtt.subscribe([(str(wire.Topic(args.fleet, args.device, "tele", "reply", id_)), 1)])
    deadline_s = time.monotonic() + args.timeout_s
    with mqtt:
        poller = select.poll()
        poller.register(mqtt.fileno(), select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0:
            poller.poll(1000 * min(left_s, 60.0))
            for event in mqtt.events():
                match event:
                    case LinkUp():
                        why = f"no reply of {args.fleet}/{args.device} within {args.timeout_s:g} s"
                        mqtt.publish(
                            topic,
                            payload,
                            qos=1,
                            expiry_s=EXPIRY_S,
                            content_type=wire.CONTENT_TYPE,
                        )
                    case LinkDown():
                        why = f"no link to {broker}: {event.fault or event.reason}"
                    case Received():
                        try:
                            return wire.decode(event.payload, wire.CommandReply)[0]
                        except MessageError as error:
                            print(f"edgert: {event.topic}: {error}", file=sys.stderr)
                    case _:
                        pass
    return why


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert fleet", description="Command devices over MQTT.")
    verbs = parser.add_subparsers(dest="verb", required=True)
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
    for verb in (exits, goals, *duties.add(verbs)):
        verb.add_argument("--device", required=True)
        verb.add_argument("--fleet", default="default", help="(default)")
        verb.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
        verb.add_argument("--timeout-s", type=float, default=10.0, help="patience (10)")
        verb.add_argument("--json", action="store_true", help="the reply as JSON")
        verb.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="to sign with (%(default)s)")
    return parser.parse_args(argv)
