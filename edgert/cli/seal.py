"""`edgert policy sign` and `edgert policy verify`: who vouches for a bundle, and on what terms."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from edgert import bundle, modelfile, wire
from edgert.cli import NOT_ALLOWED, OK
from edgert.cli.key import home
from edgert.errors import ConfigError
from edgert.fleet import trust
from edgert.ports.keyring import Keyring
from edgert.ports.signing import read_keys, verify
from edgert.ports.store import write_atomic


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What can be typed."""
    sign = verbs.add_parser("sign", help="vouch for a bundle, so that devices take it up from over the link")
    check = verbs.add_parser("verify", help="see whether a device with these keys would take it up")
    for one in (sign, check):
        one.add_argument("bundle", type=Path, metavar="BUNDLE")
        one.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="folder of the keys (%(default)s)")
        one.add_argument("--json", action="store_true", help="print one JSON document")
        one.set_defaults(core=None)
    sign.add_argument("--release", type=int, required=True, metavar="N", help="grows with each release of a policy")
    sign.add_argument("--robot", action="append", default=[], help="made for robots of this name only; several times")
    sign.add_argument("--board", action="append", default=[], help="may run on this model of board only; several times")
    sign.add_argument("--days", type=float, help="must not be taken up later than this many days from now")
    sign.add_argument("--beside", action="store_true", help="sign beside the signatures there are, on their terms")
    check.add_argument("--robot", help="device.robot of the device")
    check.add_argument("--board", help="model of its board")
    check.add_argument("--trust", type=Path, metavar="FILE", help="its trust.keys_file (keys.cbor of --keys)")


def run(args: argparse.Namespace, data: bytes) -> int:
    """Sign, or verify.

    Returns:
        0; 77 where a device would refuse it.

    Raises:
        ArtifactError: the file is no sound bundle.
        ConfigError: the keys cannot be used.
        StoreError: the result cannot be written.
    """
    return _sign(args, data) if args.verb == "sign" else _verify(args, data)


def _sign(args: argparse.Namespace, data: bytes) -> int:
    is_model = modelfile.is_model(data)
    found = modelfile.read(data) if is_model else bundle.read(data)
    former = trust.read_seal(found)
    terms = trust.Release(
        version=args.release,
        robots=tuple(args.robot),
        boards=tuple(args.board),
        not_after_s=None if args.days is None else time.time() + 86_400.0 * args.days,
    )
    if args.release < 1 or not all(map(wire.is_name, (*args.robot, *args.board))):
        raise ConfigError("--release counts from 1; --robot and --board are names as device.robot and board.model are")
    others: tuple[trust.Signature, ...] = ()
    if args.beside:
        if former is None or former.release.version != args.release:
            raise ConfigError(f"--beside: {args.bundle} has no signature of release {args.release}")
        terms, others = former.release, former.signatures
    signature = Keyring(args.keys).signer("bundle").seal(found.encoded, terms)
    kept = tuple(each for each in others if each.key != signature.key)
    seal = trust.Seal(release=terms, signatures=(*kept, signature))
    with_signature = modelfile.with_signature if is_model else bundle.with_signature
    write_atomic(args.bundle, with_signature(data, trust.encode_seal(seal)), mode=0o644)
    if args.json:
        print(json.dumps({"bundle": str(args.bundle), "key": signature.key, "release": terms.version}))
    else:
        print(f"{args.bundle}: release {terms.version}, signed by key {signature.key}")
    return OK


def _verify(args: argparse.Namespace, data: bytes) -> int:
    found = modelfile.read(data) if modelfile.is_model(data) else bundle.read(data)
    keys = read_keys(args.trust or Keyring(args.keys).newest)
    told = trust.judge_bundle(
        found,
        keys,
        required=True,
        robot=args.robot,
        board=args.board,
        floor=0,
        now_s=time.time(),
        verify=verify,
    )
    refused = told if isinstance(told, trust.Refusal) else None
    if args.json:
        release = told.version if isinstance(told, trust.Release) else None
        code, why = (refused.code, refused.why) if refused else ("", "")
        print(json.dumps({"bundle": str(args.bundle), "ok": not refused, "release": release, "code": code, "why": why}))
    elif refused:
        print(f"{args.bundle}: {refused.code}: {refused.why}")
    elif isinstance(told, trust.Release):
        print(f"{args.bundle}: release {told.version}, signed by a key of list {keys.serial}")
    return NOT_ALLOWED if refused else OK
