"""Whom a device believes: signed messages, signed bundles, and the list of keys itself.

Pure: how a signature is verified is an argument (`ports.signing` has the one that counts), and so is the time. A device
that was given a list of keys obeys what came over the link only where one of them vouches for it; one without a list
believes whatever its broker lets through.

Time is a lower bound here: a board without a clock of its own knows at least when it last wrote something down. What is
over by then is over for sure; what is not may still be refused by its counter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edgert import wire
from edgert.bundle import Bundle
from edgert.errors import ArtifactError, MessageError
from edgert.modelfile import ModelBundle

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, message, signature) -> it is right."""
Use = Literal["bundle", "command", "keys"]
REMEMBERED = 64
"""Counters remembered of a key: so many of its messages may arrive in another order than they were signed in."""

Code = Literal[
    "unsigned",
    "unreadable",
    "unknown-key",
    "revoked-key",
    "expired-key",
    "wrong-use",
    "bad-signature",
    "not-for-this-device",
    "expired",
    "replayed",
    "old-key-list",
    "wrong-robot",
    "wrong-board",
    "older-version",
]


class Refusal(NamedTuple):
    """Why something is not believed.

    Attributes:
        code: its name.
        why: in words.
    """

    code: Code
    why: str


class Audience(NamedTuple):
    """Who a device is, for messages that are not for everybody.

    Attributes:
        fleet, device: its names.
        labels: of the device.
    """

    fleet: str
    device: str
    labels: tuple[str, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """What was heard of one key: write it down before the effect of what it said.

    Attributes:
        floor: nothing with a counter up to here is news.
        counters: above it, that were heard, in order.
    """

    floor: int = 0
    counters: tuple[int, ...] = ()


class Memory(msgspec.Struct, frozen=True):
    """What a device remembers of messages: key id -> what was heard of it."""

    seen: dict[str, Seen] = {}


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """On what terms a bundle is given out.

    Attributes:
        version: grows with each release; a device takes up none that is older than what it has kept.
        robots: names of the robots it is made for; empty for any.
        boards: models of the boards it may run on; empty for any.
        not_after_s: seconds since the Unix epoch after which it must not be taken up any more; None for never.
    """

    version: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    robots: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=16)] = ()
    boards: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=16)] = ()
    not_after_s: float | None = None


class Signature(msgspec.Struct, frozen=True):
    """One key's word: its id and, in hex, an Ed25519 signature of `sealed_bytes`."""

    key: wire.KeyId
    value: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """Who vouches for a bundle: the member `signature`, as JSON. One signature of a trusted key is enough."""

    format: Literal[1] = 1
    release: Release
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=4)]


def key_id(public: bytes) -> str:
    """A short name for a key.

    Args:
        public: 32 bytes.

    Returns:
        16 hex digits.

    Raises:
        Nothing.
    Source:
        ours: 64 bits of SHA-256; a lookup only, as the signature is verified with the whole key.
    """
    return hashlib.sha256(public).hexdigest()[:16]


def sealed_bytes(encoded: bytes, release: Release) -> bytes:
    """What a signature of a bundle is made of.

    Args:
        encoded: the manifest, as the bundle has it.
        release: the terms.

    Returns:
        The bytes.

    Raises:
        Nothing.
    Source:
        ours: the manifest has every member's hash; leading words and a length keep one part from passing for another.
    """
    terms = msgspec.json.encode(release, order="deterministic")
    return b"edgert-bundle-1\0" + len(terms).to_bytes(4, "big") + terms + encoded


def encode_seal(seal: Seal) -> bytes:
    """The member `signature` of a bundle.

    Args:
        seal: what it says.

    Returns:
        JSON; equal seals give equal bytes.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return msgspec.json.encode(seal, order="deterministic")


def read_seal(bundle: Bundle | ModelBundle) -> Seal | None:
    """Who vouches for a bundle, unverified.

    Args:
        bundle: as read.

    Returns:
        The seal; None where nobody does.

    Raises:
        ArtifactError: there is one that cannot be read.
    Source:
        ours.
    """
    if bundle.signature is None:
        return None
    try:
        return msgspec.json.decode(bundle.signature, type=Seal)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"bundle, signature: {error}") from error


def judge_bundle(
    bundle: Bundle | ModelBundle,
    keys: wire.KeyList | None,
    *,
    required: bool,
    robot: str | None,
    board: str | None,
    floor: int,
    now_s: float | None,
    verify: Verify,
) -> Release | Refusal | None:
    """May this bundle act here?

    Args:
        bundle: as read; its hashes are right.
        keys: the device's; None where it has none.
        required: refuse a bundle that nobody vouches for.
        robot: what this robot is called; None when nobody said.
        board: the model of this board; None when not known.
        floor: version of the newest bundle that was kept here; 0 before the first.
        now_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.

    Returns:
        The terms it comes on; None when nobody vouches for it and nobody need; or why not.

    Raises:
        Nothing.
    Source:
        ours, after what Mender and RAUC check. Terms that cannot be met because the device does not know what it is are
        not met: a policy for another robot may break this one.
    """
    try:
        seal = read_seal(bundle)
    except ArtifactError as error:
        return Refusal("unreadable", str(error))
    if seal is None:
        return Refusal("unsigned", "nobody vouches for this bundle: `edgert policy sign` does") if required else None
    if required or keys is not None:
        refusal = _vouched(seal, sealed_bytes(bundle.encoded, seal.release), keys, now_s, verify)
        if refusal is not None:
            return refusal
    terms = seal.release
    if terms.robots and robot not in terms.robots:
        return Refusal("wrong-robot", f"it is for {', '.join(terms.robots)}; device.robot is {robot or 'not set'}")
    if terms.boards and board not in terms.boards:
        return Refusal("wrong-board", f"it is for {', '.join(terms.boards)}; this board is {board or 'not known'}")
    if terms.not_after_s is not None and now_s is not None and now_s > terms.not_after_s:
        return Refusal("expired", "its time is over")
    if terms.version < floor:
        return Refusal("older-version", f"it is version {terms.version}; version {floor} was kept here")
    return terms


def _vouched(
    seal: Seal, message: bytes, keys: wire.KeyList | None, now_s: float | None, verify: Verify
) -> Refusal | None:
    """Is one of the signatures right? If none is, what is wrong with the first one."""
    first: Refusal | None = None
    for each in seal.signatures:
        found = _usable(keys, each.key, "bundle", now_s)
        if isinstance(found, wire.Key):
            if verify(found.public, message, bytes.fromhex(each.value)):
                return None
            found = Refusal("bad-signature", f"the signature of key {each.key} is not of this bundle")
        first = first or found
    return first


def _usable(keys: wire.KeyList | None, wanted: str, use: Use, now_s: float | None) -> wire.Key | Refusal:
    """The key, if it may be believed for this use."""
    if keys is not None and wanted in keys.revoked:
        return Refusal("revoked-key", f"key {wanted} was revoked")
    found = next((key for key in keys.keys if key.id == wanted), None) if keys is not None else None
    if found is None or key_id(found.public) != wanted:
        return Refusal("unknown-key", f"this device does not trust key {wanted}")
    if use not in found.uses:
        return Refusal("wrong-use", f"key {wanted} is for {', '.join(found.uses)}, not for {use}")
    if found.not_after_s is not None and now_s is not None and now_s > found.not_after_s:
        return Refusal("expired-key", f"the time of key {wanted} is over")
    return found


def judge(
    signed: wire.Signed,
    keys: wire.KeyList | None,
    memory: Memory,
    audience: Audience,
    *,
    now_s: float | None,
    verify: Verify,
    kept: bool = False,
) -> tuple[Memory, Refusal | None]:
    """May a device obey this command?

    Args:
        signed: as decoded; its payload is not looked at.
        keys: the device's; None where it has none, and then nothing is believed.
        memory: of former messages.
        audience: who the device is.
        now_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.
        kept: the broker says it again with every connection, and a number inside tells new from old: it is not
            remembered.

    Returns:
        The memory after, to be written down before the effect, and why not; None where it may be obeyed. The one code
        `replayed` may mean that the sender said it again because it heard no answer.

    Raises:
        Nothing.
    Source:
        RFC 4303, 3.4.3 (anti-replay window), over the counters heard instead of the last 64 numbers, so that counters
        may be times. The signature is verified before the window, or a forger could close it.
    """
    refusal = addressed(signed, audience, now_s) or _signed_by(signed, keys, now_s, verify)
    if refusal is not None or kept:
        return memory, refusal
    seen = memory.seen.get(signed.key, Seen())
    if signed.counter <= seen.floor or signed.counter in seen.counters:
        return memory, Refusal("replayed", f"counter {signed.counter} of key {signed.key} is no news")
    counters = tuple(sorted((*seen.counters, signed.counter)))
    floor = seen.floor
    if len(counters) > REMEMBERED:
        floor, counters = counters[0], counters[1:]
    return Memory({**memory.seen, signed.key: Seen(floor, counters)}), None


def addressed(signed: wire.Signed, audience: Audience, now_s: float | None) -> Refusal | None:
    """Is a message for this device, and still in time?

    Args:
        signed: as decoded; its signature is not looked at.
        audience: who the device is.
        now_s: a lower bound of the seconds since the Unix epoch; None when not known.

    Returns:
        Why not; None where it is.

    Raises:
        Nothing.
    Source:
        ours.
    """
    known = {"*", audience.device, *(f"label:{label}" for label in audience.labels)}
    if signed.fleet != audience.fleet or signed.to not in known:
        return Refusal("not-for-this-device", f"it is for {signed.to[:80]} of fleet {signed.fleet[:80]}")
    if now_s is not None and not now_s <= signed.not_after_s:  # written so that NaN is over, too
        return Refusal("expired", "its time is over")
    return None


def _signed_by(signed: wire.Signed, keys: wire.KeyList | None, now_s: float | None, verify: Verify) -> Refusal | None:
    found = _usable(keys, signed.key, "command", now_s)
    if not isinstance(found, wire.Key):
        return found
    if not verify(found.public, wire.signed_bytes(signed), signed.signature):
        return Refusal("bad-signature", f"the signature of key {signed.key} is not of this message")
    return None


def judge_offer(
    signed: wire.Signed, keys: wire.KeyList | None, audience: Audience, *, now_s: float | None, verify: Verify
) -> wire.PolicyOffer | Refusal:
    """May a device fetch what is offered? Whether it may act is for `judge_bundle` to say, once it is here.

    Args:
        signed: as decoded.
        keys: the device's; None where it has none, and then nobody need have signed it.
        audience: who the device is.
        now_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.

    Returns:
        The offer, or why not.

    Raises:
        Nothing.
    Source:
        ours: an offer is retained and comes back with every connection, so it is not its counter but its version that
        keeps an old one from being obeyed again.
    """
    refusal = addressed(signed, audience, now_s)
    if refusal is None and keys is not None:
        refusal = _signed_by(signed, keys, now_s, verify)
    return read_offer(signed.payload) if refusal is None else refusal


def read_offer(payload: bytes) -> wire.PolicyOffer | Refusal:
    """Read an offer and see whether it agrees with itself.

    Args:
        payload: encoded.

    Returns:
        The offer, or what is wrong with it.

    Raises:
        Nothing.
    Source:
        ours.
    """
    try:
        offer, _ = wire.decode(payload, wire.PolicyOffer)
    except MessageError as error:
        return Refusal("unreadable", str(error))
    chunks = -(-offer.size_bytes // offer.chunk_bytes)
    if not wire.is_name(offer.id):
        return Refusal("unreadable", f"id {offer.id[:80]!r} is no topic segment")
    if len(offer.hashes) != 16 * chunks:
        return Refusal("unreadable", f"{len(offer.hashes)} bytes of hashes for {chunks} chunks of 16 each")
    return offer


def next_keys(
    keys: wire.KeyList | None, signed: wire.Signed, *, now_s: float | None, verify: Verify
) -> wire.KeyList | Refusal:
    """Take over a newer list of keys.

    Args:
        keys: the device's.
        signed: the new list; its `counter` plays no part.
        now_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.

    Returns:
        The new list, or why the old one stays. What was once revoked stays so, whatever the new list says.

    Raises:
        Nothing.
    Source:
        ours, after the root role of The Update Framework (TUF 1.0.33, 5.3): a list is signed by a key of the list
        before it, and its number only grows.
    """
    if (signed.fleet, signed.to) != ("*", "*"):
        return Refusal("not-for-this-device", "a list of keys is for everybody who has the one before it")
    found = _usable(keys, signed.key, "keys", now_s)
    if not isinstance(found, wire.Key):
        return found
    if not verify(found.public, wire.signed_bytes(signed), signed.signature):
        return Refusal("bad-signature", f"the signature of key {signed.key} is not of this list")
    try:
        new = check_keys(wire.decode(signed.payload, wire.KeyList)[0])
    except MessageError as error:
        return Refusal("unreadable", str(error))
    if keys is not None and new.serial <= keys.serial:
        return Refusal("old-key-list", f"it is list {new.serial}; list {keys.serial} is in force")
    former: Sequence[str] = keys.revoked if keys is not None else ()
    return msgspec.structs.replace(new, revoked=tuple(sorted({*new.revoked, *former})))


def check_keys(keys: wire.KeyList) -> wire.KeyList:
    """See whether a list of keys agrees with itself.

    Args:
        keys: as decoded.

    Returns:
        The same list.

    Raises:
        MessageError: an id is not that of its key, or one is there twice, or none may sign the next list.
    Source:
        ours: a list without a key for the next one could never be changed again over the link.
    """
    for key in keys.keys:
        if key.id != key_id(key.public):
            raise MessageError(f"key {key.id} is really {key_id(key.public)}")
    ids = [key.id for key in keys.keys]
    if len(ids) != len(set(ids)):
        raise MessageError("a key is listed twice")
    if not any("keys" in key.uses and key.id not in keys.revoked for key in keys.keys):
        raise MessageError("no key may sign the next list: give one the use `keys`")
    return keys
