"""The disk of a simulated device, in memory: it survives what the device does not."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque

from edgert.fleet import records
from edgert.fleet.ledger import Found, Outcome, State
from edgert.ports.spool import Spool as FileSpool
from edgert.ports.spool import Stream
from edgert.programs import events

SPOOL_BYTES = 256 << 10


class Spool:
    """What `ports.spool` keeps, in memory: drop-oldest, exact numbers.

    Attributes:
        streams: name -> how it stands.
    """

    def __init__(self, rng: random.Random, max_bytes: int = SPOOL_BYTES) -> None:
        """Begin empty; so many bytes are for each stream."""
        self._max_bytes = max_bytes
        self._rows: dict[str, deque[tuple[int, bytes]]] = {name: deque() for name in events.STREAMS}
        self.streams = {
            name: Stream(id=f"{rng.getrandbits(64):016x}", first_seq=1, last_seq=0, count=0, bytes=0, dropped=0)
            for name in events.STREAMS
        }

    def peek(self, name: str, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """Up to `limit` events whose number is above `after_seq`, oldest first."""
        skip = max(0, after_seq + 1 - self.streams[name].first_seq)
        return list(itertools.islice(self._rows[name], skip, skip + limit))

    def append(self, name: str, payload: bytes, now_s: float) -> None:
        """Keep an event; the oldest give way."""
        stream = self.streams[name]
        stream.last_seq += 1
        stream.count += 1
        stream.bytes += len(payload)
        self._rows[name].append((stream.last_seq, payload))
        while stream.bytes > self._max_bytes and stream.count > 1:
            self._remove_first(name)
            stream.dropped += 1

    def acknowledge(self, name: str, up_to_seq: int) -> None:
        """Forget what a collector has."""
        while self.streams[name].count and self.streams[name].first_seq <= up_to_seq:
            self._remove_first(name)

    def _remove_first(self, name: str) -> None:
        stream, (_, payload) = self.streams[name], self._rows[name].popleft()
        stream.first_seq += 1
        stream.count -= 1
        stream.bytes -= len(payload)


class Disk:
    """What a device finds again after a power cut.

    Attributes:
        spool: events; that of `ports.spool` does as well.
        jobs, marks, facts: records.
        effects: id of a job -> how often it was carried out; more than once is what must never be.
    """

    def __init__(self, rng: random.Random) -> None:
        """An empty one."""
        self.spool: Spool | FileSpool = Spool(rng)
        self.jobs: dict[str, bytes] = {}
        self.marks: dict[str, bytes] = {}
        self.facts: dict[str, bytes] = {}
        self.effects: Counter[str] = Counter()

    def evidence(self) -> dict[str, Found]:
        """Of jobs that were running when the power went."""
        read = [records.read_job(id_, body) for id_, body in self.jobs.items() if self.effects[id_]]
        return {job.order.id: Found(Outcome()) for job in read if job.state is State.RUNNING}
