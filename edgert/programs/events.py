"""Events: in which stream of the store each is kept, and what is sent of it, whatever became of it on the disk."""

from __future__ import annotations

from pathlib import Path

import cbor2

from edgert import config, wire
from edgert.errors import UsageError
from edgert.ports.spool import Bounds, Spool

STREAMS = ("events", "uploads", "notices")
"""The most important first: they are sent in this order."""
UPLOADED = "uploaded"
"""What a job of kind `upload` brings: tens of kilobytes."""
NOTICES = frozenset(
    {"bad-command", "budget-changed", "command-refused", "goals-changed", "keys-refused", "offer-refused"}
)
"""What limits that flutter, or a stranger on the broker, can cause in any number: it may not push out all the rest."""
PATIENT = frozenset({"budget-changed"})
"""Telemetry says the same as it happens: it is written with others, or once in `PATIENT_S`, and may be lost till then.
"""
PATIENT_S = 3600.0
EVENT_UNREADABLE = "event-unreadable"
EVENT_TOO_LARGE = "event-too-large"
_FAULTS: tuple[type[Exception], ...] = (*wire.UNREADABLE, cbor2.CBOREncodeError, UsageError)
"""A damaged row can hold anything: what cannot be read, and what can but cannot be sent."""


def bounds(spool: config.Spool) -> dict[str, Bounds]:
    """How much of each stream is kept."""
    return {
        "events": Bounds(max_bytes=spool.max_bytes, max_age_s=spool.max_age_s, when_full=spool.when_full),
        "uploads": Bounds(
            max_bytes=spool.uploads_max_bytes,
            max_age_s=spool.uploads_max_age_s,
            when_full=spool.uploads_when_full,
        ),
        "notices": Bounds(
            max_bytes=spool.notices_max_bytes,
            max_age_s=spool.notices_max_age_s,
            when_full=spool.notices_when_full,
        ),
    }


def opened(path: Path) -> Spool:
    """The store of a device that does not run, to be read.

    Raises:
        StoreError: it cannot be opened.
    """
    return Spool(path, bounds(config.Spool()))


def stream_of(name: str) -> str:
    """In which stream an event of this name is kept."""
    if name == UPLOADED:
        return "uploads"
    return "notices" if name in NOTICES else "events"


def record(spool: Spool, name: str, detail: dict[str, object], now_s: float) -> None:
    """Keep an event.

    Args:
        spool: where.
        name: of the event.
        detail: that it tells.
        now_s: seconds since the Unix epoch.

    Raises:
        StoreError: the disk refused, or the stream is full and keeps what it has.
        UsageError: the event alone is larger than its stream may be.
    """
    payload = cbor2.dumps({"at_s": now_s, "name": name, "detail": detail})
    keep = spool.defer if name in PATIENT else spool.append
    keep(stream_of(name), payload, now_s)


def shown(spool: Spool) -> dict[str, object]:
    """How the store stands, for the status document."""
    streams = {
        name: {"count": each.count, "bytes": each.bytes, "dropped": each.dropped}
        for name, each in spool.streams.items()
        if each.count or each.dropped  # it is part of each telemetry
    }
    return {"spool": streams, "spool_dropped": sum(each.dropped for each in spool.streams.values())}


def encode(stream: str, seq: int, first: int, payload: bytes, most_bytes: int | None = None) -> tuple[bytes, str, str]:
    """The message for one event; a stub for one that cannot be sent, because a stream has no gap.

    Args:
        stream: identity of its stream.
        seq: number of the event.
        first: lowest number that the stream still has.
        payload: as stored: CBOR of `at_s`, `name` and `detail`.
        most_bytes: that the broker takes; None: any.

    Returns:
        The encoded `wire.Event`; and of a stub its name, and in words why; both empty where nothing is wrong.
    """
    try:
        stored = cbor2.loads(payload)
        encoded = wire.encode(wire.Event(stream=stream, seq=seq, first=first, **stored))
        wire.decode(encoded, wire.Event)  # a collector would refuse it for ever, and with it all that follow
    except _FAULTS as error:
        stub = wire.Event(stream=stream, seq=seq, first=first, at_s=0.0, name=EVENT_UNREADABLE)
        return wire.encode(stub), stub.name, f"event {seq}: {type(error).__name__}: {error}"
    if most_bytes is None or len(encoded) <= most_bytes:
        return encoded, "", ""
    was = {"was": stored["name"]}
    stub = wire.Event(stream=stream, seq=seq, first=first, at_s=stored["at_s"], name=EVENT_TOO_LARGE, detail=was)
    return wire.encode(stub), stub.name, f"event {seq}: {len(encoded)} bytes, and the broker takes {most_bytes}"
