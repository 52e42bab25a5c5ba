"""What is sent of a stored event, whatever became of it on the disk."""

from __future__ import annotations

import cbor2

from edgert import wire
from edgert.errors import UsageError

EVENT_UNREADABLE = "event-unreadable"
EVENT_GAVE_WAY = "event-gave-way"
MINOR = frozenset({"bad-command", "budget-changed", "command-refused", "event-unreadable", "goals-changed"})
"""What limits that flutter, or a stranger on the broker, can cause in any number: it may not push out all the rest."""
PATIENT = frozenset({"budget-changed"})
"""Telemetry says the same as it happens: it is written with others, or once in `PATIENT_S`, and may be lost till then.
"""
PATIENT_S = 3600.0
_FAULTS: tuple[type[Exception], ...] = (*wire.UNREADABLE, cbor2.CBOREncodeError, UsageError)
"""A damaged row can hold anything: what cannot be read, and what can but cannot be sent."""


def encode(stream: str, seq: int, first: int, payload: bytes) -> tuple[bytes, str]:
    """The message for one event; a stub for a damaged one or one that gave way, because a stream has no gap.

    Args:
        stream: identity of the store.
        seq: number of the event.
        first: lowest number that the store still has.
        payload: as stored: CBOR of `at_s`, `name` and `detail`.

    Returns:
        The encoded `wire.Event`, and what is wrong with what was stored; empty where nothing is.
    """
    if not payload:
        stub = wire.Event(stream=stream, seq=seq, first=first, at_s=0.0, name=EVENT_GAVE_WAY)
        return wire.encode(stub), ""
    try:
        stored = cbor2.loads(payload)
        encoded = wire.encode(wire.Event(stream=stream, seq=seq, first=first, **stored))
        wire.decode(encoded, wire.Event)  # a collector would refuse it for ever, and with it all that follow
        return encoded, ""
    except _FAULTS as error:
        stub = wire.Event(stream=stream, seq=seq, first=first, at_s=0.0, name=EVENT_UNREADABLE)
        return wire.encode(stub), f"event {seq}: {type(error).__name__}: {error}"
