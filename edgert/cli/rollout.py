"""`edgert fleet push`, `edgert fleet rollout`, `edgert fleet keys`: another policy for the devices of a fleet."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER
from edgert.cli.key import home
from edgert.errors import ConfigError
from edgert.fleet import rollout
from edgert.fleet.roster import chosen
from edgert.ports.keyring import Keyring
from edgert.ports.store import store_error

if TYPE_CHECKING:
    from edgert.programs.operator import Operator, Record


def push(argv: list[str]) -> int:
    """Offer a bundle to devices at once, and wait for what becomes of it.

    Returns:
        0 when every device keeps it, 1 when one refused it or went back, 75 when one has not decided in time.

    Raises:
        ArtifactError: the file is no sound bundle.
        ConfigError: names, keys or the broker's url are wrong.
        LinkError: the broker cannot be reached, or takes nothing.
        StoreError: the rollout cannot be written down.
    """
    parser = argparse.ArgumentParser(prog="edgert fleet push", description="Offer a bundle to devices, all at once.")
    _bundle_options(parser)
    _common_options(parser)
    parser.add_argument("--wait-s", type=float, default=0.0, help="for the verdicts of the devices (0)")
    args = parser.parse_args(argv)
    plan = rollout.Plan(id=f"push-{secrets.token_hex(4)}", canary_frac=1.0, abort_frac=1.0, soak_s=0.0)
    return _start(args, plan)


def staged(argv: list[str]) -> int:
    """Give a bundle to a fleet in waves.

    Returns:
        0 done, 1 aborted or a device did not keep it, 2 nothing to show, 75 when it goes on.

    Raises:
        ArtifactError: the file is no sound bundle.
        ConfigError: names, keys or the broker's url are wrong, or there is no such rollout.
        LinkError: the broker cannot be reached, or takes nothing.
        UsageError: another process drives it.
        StoreError: it cannot be written down.
    """
    args = _parse(argv)
    if args.verb == "start":
        plan = rollout.Plan(
            id=args.id or f"r-{secrets.token_hex(4)}",
            canary_frac=args.canary,
            wave_frac=args.wave,
            abort_frac=args.abort,
            soak_s=args.soak_s,
            patience_s=args.patience_s,
        )
        return _start(args, plan)
    from edgert.programs.operator import read_record, wish

    if args.verb == "status":
        return _status(args)
    if args.verb == "drive":
        return _drive(args, read_record(args.folder, args.id))
    wish(args.folder, args.id, args.verb)
    print(f"{args.id}: {args.verb}; heard by whoever drives it (`edgert fleet rollout drive {args.id}`)")
    return OK


def keys(argv: list[str]) -> int:
    """Publish the lists of keys that devices should follow to.

    Returns:
        0.

    Raises:
        ConfigError: there are no keys, or the broker's url is wrong.
        LinkError: the broker cannot be reached, or takes nothing.
    """
    parser = argparse.ArgumentParser(prog="edgert fleet keys", description="Let devices follow to the newest keys.")
    _common_options(parser)
    args = parser.parse_args(argv)
    with contextlib.closing(_operator(args)) as operator:
        print(f"lists of keys published to fleet {args.fleet}: {operator.publish_keys()}")
    return OK


def state_home() -> Path:
    """Where rollouts are written down."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edgert" / "rollouts"


def _operator(args: argparse.Namespace) -> Operator:
    from edgert.programs.operator import Operator

    if not wire.is_name(args.fleet):
        raise ConfigError(f"fleet {args.fleet!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    ring = Keyring(args.keys)
    signing = ring.keys() is not None
    if not signing:
        print(f"edgert: no keys in {args.keys}: devices that have keys will refuse this", file=sys.stderr)
    return Operator(args.broker, args.fleet, ring if signing else None, args.timeout_s)


def _start(args: argparse.Namespace, plan: rollout.Plan) -> int:
    from edgert.programs.operator import Record, make_offer

    if not wire.is_name(plan.id):
        raise ConfigError(f"--id {plan.id!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    try:
        data = args.bundle.read_bytes()
    except OSError as error:
        raise store_error(error, "read", args.bundle) from error
    offer = make_offer(data, id_=plan.id, release=args.release, url=args.url, budget_bytes=args.budget_bytes)
    with contextlib.closing(_operator(args)) as operator:
        labels = {device: report.labels for device, report in operator.gather().items()}
        devices = chosen(labels, [*(args.to or []), *(f"label:{each}" for each in args.label)] or ["*"])
        operator.publish_bundle(offer, data)
        record = Record(fleet=args.fleet, offer=offer, rollout=rollout.begin(plan, devices))
        return _driven(args, operator, record)


def _drive(args: argparse.Namespace, record: Record) -> int:
    args.fleet = record.fleet
    with contextlib.closing(_operator(args)) as operator:
        operator.gather()
        return _driven(args, operator, record)


def _driven(args: argparse.Namespace, operator: Operator, record: Record) -> int:
    from edgert.programs.operator import Drive

    until_s = None if getattr(args, "wait_s", None) is None else time.monotonic() + args.wait_s
    drive = Drive(operator, args.folder, record)
    try:
        state = drive.run(lambda told: _said(told) if not args.json else None, until_s)
    finally:
        drive.close()
    if args.json:
        print(json.dumps(_document(drive.record), indent=1))
    elif state.phase == "running":
        print(f"{state.plan.id} goes on: edgert fleet rollout drive {state.plan.id} --broker ...")
    harmed, _ = rollout.harm(state)
    if state.phase == "aborted" or harmed:
        return ERROR
    return OK if state.phase == "done" and "silent" not in state.fates.values() else RETRY_LATER


def _said(record: Record) -> None:
    state = record.rollout
    counted = Counter(state.fates.values())
    fates = ", ".join(f"{count} {fate}" for fate, count in sorted(counted.items()))
    print(f"{state.plan.id}: {state.phase}{f' ({state.why})' if state.why else ''}, wave {state.waves}: {fates}")


def _document(record: Record) -> dict[str, Any]:
    state = record.rollout
    return {
        "id": state.plan.id,
        "fleet": record.fleet,
        "phase": state.phase,
        "why": state.why,
        "waves": state.waves,
        "sha256": record.offer.sha256,
        "version": record.offer.version,
        "devices": dict(state.fates),
        "plan": msgspec.to_builtins(state.plan),
    }


def _status(args: argparse.Namespace) -> int:
    from edgert.programs.operator import read_record

    ids = [args.id] if args.id else sorted(path.stem for path in args.folder.glob("*.json"))
    records = [read_record(args.folder, id_) for id_ in ids]
    if args.json:
        print(json.dumps([_document(record) for record in records], indent=1))
    for record in () if args.json else records:
        _said(record)
        if args.id:
            for device in record.rollout.order:
                print(f"  {device:<32}{record.rollout.fates[device]}")
    return OK if records else NOTHING_TO_DO


def _bundle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    whom = "devices by name, label:NAME, or * (all of the fleet)"
    parser.add_argument("--to", "--device", nargs="+", action="extend", metavar="WHOM", help=whom)
    parser.add_argument(
        "--label",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[=VALUE]",
        help="every device that has one of these",
    )
    parser.add_argument("--release", type=int, metavar="N", help="of a bundle that nobody signed (the time)")
    parser.add_argument("--url", default="", help="where devices can have it over HTTP, with ranges")
    parser.add_argument(
        "--budget-bytes", type=int, default=0, help="most bytes over a device's link (1.02 times the bundle)"
    )


def _common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fleet", default="default", help="(default)")
    parser.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8884][?ca=FILE&...]")
    parser.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="folder of the keys (%(default)s)")
    parser.add_argument("--timeout-s", type=float, default=20.0, help="patience with the broker (20)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    _folder_option(parser)


def _folder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=state_home(), metavar="DIR", help="of rollouts (%(default)s)")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert fleet rollout", description="Give a bundle to a fleet in waves.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser("start", help="begin, and go on to the end")
    drive = verbs.add_parser("drive", help="go on with one that was left")
    for one in (start, drive):
        _common_options(one)
        one.add_argument("--wait-s", type=float, help="leave it after so long; `drive` goes on (to the end)")
    drive.add_argument("id")
    _bundle_options(start)
    start.add_argument("--id", help="of the rollout (drawn)")
    start.add_argument("--canary", type=_share, default=0.05, metavar="SHARE", help="that goes first (0.05)")
    start.add_argument("--wave", type=_share, default=0.25, metavar="SHARE", help="in each wave after that (0.25)")
    start.add_argument(
        "--abort",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="that may refuse it or go back before all stops (0.1)",
    )
    start.add_argument("--soak-s", type=float, default=600.0, help="after the last verdict of a wave (600)")
    start.add_argument("--patience-s", type=float, default=86_400.0, help="with a device that says nothing (86400)")
    status = verbs.add_parser("status", help="how far one is, or all")
    status.add_argument("id", nargs="?")
    status.add_argument("--json", action="store_true", help="print one JSON document")
    _folder_option(status)
    for verb, what in (
        ("pause", "no further device is offered it"),
        ("resume", "go on"),
        ("abort", "stop for good, and take open offers back"),
    ):
        one = verbs.add_parser(verb, help=what)
        one.add_argument("id")
        _folder_option(one)
    return parser.parse_args(argv)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share lies in 0..1")
    return value
