"""`edgert fleet`: commands to devices, from any machine that reaches their broker."""

from __future__ import annotations

import argparse
import json
import secrets
import select
import sys
import time

from edgert import wire
from edgert.cli import ERROR, OK, RETRY_LATER
from edgert.errors import ConfigError, MessageError
from edgert.fleet.command import Bad, read_exits
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received

EXPIRY_S = 60
"""A device that is away for longer never hears of the command: nobody waits for its reply by then."""


def main(argv: list[str]) -> int:
    """Send a command and wait for the device's reply.

    Returns:
        0 obeyed, 1 refused by the device, 75 no reply, or no broker, in time.

    Raises:
        ConfigError: names, settings, patience or the broker's url are wrong.
    """
    args = _parse(argv)
    for word, name in (("fleet", args.fleet), ("device", args.device)):
        if not wire.is_name(name):
            raise ConfigError(f"{word} {name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    command = wire.ExitsCommand(
        id=secrets.token_hex(8),
        thresholds=None if args.thresholds is None else tuple(args.thresholds),
        repeat=args.repeat,
        hold_threshold=args.hold_threshold,
        point=args.point,
        max_ops_frac=args.max_ops_frac,
        valid_s=args.valid_s,
    )
    payload = wire.encode(command)
    # How many exits the device's network has is its to know; everything else can be said at once.
    told = read_exits(payload, 1 + len(command.thresholds or ()))
    if isinstance(told, Bad):
        raise ConfigError(f"a command that no device could obey: {told.why}")
    if not args.timeout_s > 0:
        raise ConfigError(f"--timeout-s {args.timeout_s:g}: it must be above 0")
    reply = _ask(args, command.id, payload)
    if isinstance(reply, str):
        print(f"edgert: {reply}", file=sys.stderr)
        return RETRY_LATER
    if args.json:
        print(json.dumps({"id": reply.id, "ok": reply.ok, "why": reply.why, **reply.detail}))
    elif reply.ok:
        print(f"{args.fleet}/{args.device}: " + ", ".join(f"{key} {value}" for key, value in reply.detail.items()))
    else:
        print(f"edgert: {args.fleet}/{args.device} refused: {reply.why}", file=sys.stderr)
    return OK if reply.ok else ERROR


def _ask(args: argparse.Namespace, id_: str, payload: bytes) -> wire.CommandReply | str:
    """Publish until the broker takes it, and wait for the reply, or say why there is none.

    Blocks: up to `args.timeout_s`.
    """
    broker = args.broker.rpartition("@")[2]  # without a password
    why = f"no broker at {broker} within {args.timeout_s:g} s"
    topic = str(wire.Topic(args.fleet, args.device, "cmd", "exits"))
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
    exits.add_argument("--valid-s", type=float, help="for how long (until further notice)")
    exits.add_argument("--device", required=True)
    exits.add_argument("--fleet", default="default", help="(default)")
    exits.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
    exits.add_argument("--timeout-s", type=float, default=10.0, help="patience (10)")
    exits.add_argument("--json", action="store_true", help="the reply as JSON")
    return parser.parse_args(argv)
