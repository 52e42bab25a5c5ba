"""`edgert key`: the keys that policies and commands are signed with."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgert import wire
from edgert.cli import NOTHING_TO_DO, OK
from edgert.errors import MessageError

if TYPE_CHECKING:
    from edgert.ports.keyring import Keyring

VALID_S = 86_400.0
"""A command is no command any more after a day; a device that has heard it never obeys it again anyway."""
WAITING_S = 30 * 86_400.0
"""A job may wait for a device that is away; the job itself says for how long."""
KEPT_S = 10 * 365 * 86_400.0
"""What the broker keeps is as good as it was, until something newer takes its place."""


def key(argv: list[str]) -> int:
    """Make, list and revoke keys.

    Returns:
        0; 2 when there is nothing to list.

    Raises:
        ConfigError: names, files or their modes are wrong.
        UsageError: there is such a key already.
        StoreError: a file cannot be written.
    """
    args = _parse(argv)
    from edgert.ports.keyring import Keyring

    ring = Keyring(args.keys)
    if args.verb == "list":
        return _list(ring, args)
    if args.verb == "new":
        not_after_s = None if args.days is None else time.time() + 86_400.0 * args.days
        made = ring.new(args.name, args.use or (), not_after_s)
        print(f"{made.name}: key {made.id} for {', '.join(made.uses)}, private in {args.keys / made.name}.key")
    else:
        ring.revoke(args.name)
        print(f"{args.name} is trusted no more")
    keys = ring.keys()
    serial = keys.serial if keys else 0
    print(f"list {serial} is in {ring.newest}: copy it to new devices as trust.keys_file")
    print("devices in the field: `edgert fleet keys` publishes it; they follow at once, or when they are back")
    return OK


def home() -> Path:
    """Where an operator's keys are unless somebody says otherwise."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgert" / "keys"


def vouched(args: argparse.Namespace, payload: bytes, valid_s: float = VALID_S) -> bytes:
    """A message for `args.device`, signed where there are keys in `args.keys`; otherwise as it is.

    Raises:
        ConfigError: the keys cannot be used.
        StoreError: their counter cannot be written.
    """
    from edgert.ports.keyring import Keyring

    ring = Keyring(args.keys)
    if ring.keys() is None:
        return payload
    return wire.encode(ring.say(payload, fleet=args.fleet, to=args.device, valid_s=valid_s))


def unwrapped(payload: bytes) -> bytes:
    """What a message says, whoever signed it: for whoever only shows it."""
    try:
        return wire.decode(payload, wire.Signed)[0].payload
    except MessageError:
        return payload


def _list(ring: Keyring, args: argparse.Namespace) -> int:
    keys = ring.keys()
    if keys is None:
        print(f"no keys in {args.keys}; `edgert key new NAME` makes one")
        return NOTHING_TO_DO
    rows = [
        {
            "name": each.name,
            "id": each.id,
            "uses": list(each.uses),
            "private": (args.keys / f"{each.name}.key").exists(),
            "until": None if each.not_after_s is None else _day(each.not_after_s),
        }
        for each in keys.keys
    ]
    if args.json:
        print(json.dumps({"serial": keys.serial, "keys": rows, "revoked": list(keys.revoked)}, indent=1))
        return OK
    print(f"list {keys.serial} in {ring.newest}")
    print(f"  {'name':<20}{'id':<18}{'for':<24}{'until':<12}private key")
    for row, each in zip(rows, keys.keys, strict=True):
        here = "here" if row["private"] else "elsewhere"
        print(f"  {each.name:<20}{each.id:<18}{', '.join(each.uses):<24}{row['until'] or '-':<12}{here}")
    for gone in keys.revoked:
        print(f"  {'revoked':<20}{gone}")
    return OK


def _day(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).date().isoformat()


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgert key", description="The keys that policies and commands are signed with."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser("new", help="make a key, and a list of keys that trusts it")
    new.add_argument("name", help="of its file, and for people")
    new.add_argument(
        "--use",
        action="append",
        choices=("bundle", "command", "keys"),
        help="what for; may be given several times (all for the first key; bundle and command for others)",
    )
    new.add_argument("--days", type=float, help="for how long it is trusted (for ever)")
    listing = verbs.add_parser("list", help="the keys that devices trust")
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    revoke = verbs.add_parser("revoke", help="trust a key no more")
    revoke.add_argument("name", help="name or id")
    for one in (new, listing, revoke):
        one.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="folder of the keys (%(default)s)")
    return parser.parse_args(argv)
