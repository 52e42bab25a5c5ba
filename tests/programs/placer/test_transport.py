"""What a placer sends and wants to hear, without a broker."""

from __future__ import annotations

from typing import Any

import pytest

from edgert import wire
from edgert.placement.jobs import Reason
from edgert.placement.load import Capacity, Load
from edgert.placement.protocol import Alive, Commit, Held, Release, Report
from edgert.ports import shards
from edgert.programs.placer.transport import Outgoing, Transport, chunk_topic, reasons_text, speaker


class Link:
    """Takes so many messages at a time."""

    def __init__(self) -> None:
        self.room, self.sent, self.said = 0, [], []
        self.filters: set[str] = set()

    def publish(self, topic: str, payload: bytes, **how: Any) -> bool:
        if self.room:
            self.room -= 1
            self.sent.append((topic, payload, how))
        return self.room >= 0 and bool(self.sent) and self.sent[-1][:2] == (topic, payload)

    def subscribe(self, filters: list[tuple[str, int]], *, again: bool) -> None:
        self.filters |= {name for name, _ in filters}

    def unsubscribe(self, filters: list[str], *, again: bool) -> None:
        self.filters -= set(filters)
        self.said.append(list(filters))


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def transport(link: Link) -> Transport:
    made = Transport(link, "f", "d1")  # type: ignore[arg-type]
    made.link(True)
    return made


def test_what_the_broker_does_not_take_waits_in_order(link: Link, transport: Transport) -> None:
    for k in range(3):
        transport.put(Outgoing(f"t{k}", bytes(10), 1, 60))
    transport.flush()
    assert (link.sent, transport.waiting_bytes) == ([], 30)
    link.room = 2
    transport.flush()
    assert [topic for topic, _, _ in link.sent] == ["t0", "t1"] and transport.waiting_bytes == 10
    transport.link(False)
    transport.put(Outgoing("t3", b"x", 1, 60))
    assert transport.waiting_bytes == 0


def test_a_file_lies_at_the_broker_until_nobody_needs_it(link: Link, transport: Transport) -> None:
    data = bytes(70_000)
    offer = shards.offer("shard", data, id_="j1")
    for _ in range(2):
        transport.lay_down(offer, data)
    link.room = 100
    transport.flush()
    assert [topic for topic, _, _ in link.sent] == [chunk_topic("f", "d1", offer.sha256, k) for k in range(3)]
    assert all(how["retain"] for _, _, how in link.sent)
    transport.link(False)
    transport.link(True)  # the broker may have lost what it kept
    transport.flush()
    assert len(link.sent) == 6
    transport.take_back({offer.sha256})
    transport.take_back(set())
    transport.take_back(set())
    transport.flush()
    assert [payload for _, payload, _ in link.sent[6:]] == [b""] * 3


def test_a_topic_is_left_when_nobody_wants_it(link: Link, transport: Transport) -> None:
    transport.listen(["a", "b"], [])
    transport.listen(["a"], [])
    assert link.said == [["a"]], "subscribed anew, so that what is retained comes again"
    transport.listen([], ["a", "b"])
    assert link.filters == {"a"}
    transport.listen([], ["a"])
    assert not link.filters


def test_nobody_speaks_for_another() -> None:
    capacity = Capacity(cores=1, memory_bytes=1, link_bytes_per_s=1)
    assert speaker(Report(Load(node="a", session=1, seq=1, capacity=capacity))) == "a"
    assert speaker(Alive(region="r", epoch=1, shield="b")) == "b"
    assert speaker(Commit(job="j", attempt=1, epoch=1, owner="c")) == "c"
    assert speaker(Held(node="d", job="j", attempt=1, ok=True)) == "d"
    assert speaker(Release(job="j", attempt=1)) is None
    assert speaker(wire.PlaceGo(job="j", attempt=1)) is None


def test_reasons_in_words() -> None:
    assert reasons_text(()) == "nobody says why"
    said = reasons_text((Reason("memory", 0, "d1", 3e6, 1e6), Reason("no_shield")))
    assert said == "memory at d1 (needs 3e+06, 1e+06 left), no_shield"
