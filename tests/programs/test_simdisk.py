"""A simulated disk counts as the real store does."""

from __future__ import annotations

import random

from edgert.programs.events import STREAMS
from edgert.programs.simdisk import Spool


def test_numbers_of_events_are_never_given_twice_and_the_oldest_give_way() -> None:
    spool = Spool(random.Random(1), max_bytes=100)
    stream, other = spool.streams["events"], spool.streams["notices"]
    assert tuple(spool.streams) == STREAMS and stream.id != other.id
    assert stream.first_seq == 1
    for _ in range(5):
        spool.append("events", b"x" * 40, 0.0)
    assert (stream.first_seq, stream.last_seq, stream.dropped, stream.count) == (4, 5, 3, 2)
    spool.acknowledge("events", 4)
    assert spool.peek("events", 0, 9) == spool.peek("events", 4, 1) == [(5, b"x" * 40)]
    spool.acknowledge("events", 9)
    assert (stream.first_seq, stream.bytes) == (6, 0)
    assert (other.last_seq, other.count) == (0, 0)
