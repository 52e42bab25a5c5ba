"""What is sent of a stored event, whatever became of it on the disk."""

from __future__ import annotations

import cbor2

from edgert import wire

EVENT_UNREADABLE = "event-unreadable"


def encode(stream: str, seq: int, first: int, payload: bytes) -> tuple[bytes, str]:
    """The message for one event; a stub for a damaged one, because the stream may have no gap.

    Args:
        stream: identity of the store.
        seq: number of the event.
        first: lowest number that the store still has.
        payload: as stored: CBOR of `at_s`, `name` and `detail`.

    Returns:
        The encoded `wire.Event`, and what is wrong with what was stored; empty where nothing is.
    """
    try:
        stored = cbor2.loads(payload)
        encoded = wire.encode(wire.Event(stream=stream, seq=seq, first=first, **stored))
        wire.decode(encoded, wire.Event)  # a collector would refuse it for ever, and with it all that follow
        return encoded, ""
    # A damaged row can hold any CBOR, and cbor2 fails on it in as many ways: nothing is worth the supervisor.
    except Exception as error:
        stub = wire.Event(stream=stream, seq=seq, first=first, at_s=0.0, name=EVENT_UNREADABLE)
        return wire.encode(stub), f"event {seq}: {type(error).__name__}: {error}"
