"""All streams of a store behind one link: which goes first, and that each arrives once and in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.fleet.session import (
    Acked,
    Collector,
    Down,
    Fault,
    Forget,
    Outbox,
    OutboxRules,
    Refused,
    Send,
    Stored,
    Tick,
    Up,
    collect,
    open_outbox,
    step_streams,
)

NAMES = ("first", "second", "third")


def opened(*spans: tuple[int, int]) -> dict[str, Outbox]:
    return {name: open_outbox(f"id-{name}", *span, RULES) for name, span in zip(NAMES, spans, strict=False)}


RULES = OutboxRules(window=4)


def sends(effects) -> list[tuple[str, int, int]]:
    return [(name, effect.after, effect.up_to) for name, effect in effects if isinstance(effect, Send)]


def test_what_is_more_important_goes_first_and_the_rest_follows_at_once():
    boxes, effects = step_streams(opened((1, 6), (1, 0), (1, 2)), Up(), 0.0, RULES)
    assert sends(effects) == [("first", 0, 4)]
    boxes, effects = step_streams(boxes, Acked("id-first", 4), 1.0, RULES)
    assert sends(effects) == [("first", 4, 6)]
    boxes, effects = step_streams(boxes, Acked("id-first", 6), 2.0, RULES)
    assert sends(effects) == [("third", 0, 2)]
    assert [name for name, effect in effects if isinstance(effect, Forget)] == ["first"]
    boxes, effects = step_streams(boxes, Stored(1, 3), 3.0, RULES, of="second")
    assert sends(effects) == [("second", 0, 3)]
    boxes, effects = step_streams(boxes, Stored(1, 3), 3.0, RULES, of="third")
    assert sends(effects) == [], "the second is on its way"


def test_a_stream_that_nobody_takes_keeps_no_other_waiting():
    boxes, _ = step_streams(opened((1, 2), (1, 2)), Up(), 0.0, RULES)
    boxes, effects = step_streams(boxes, Tick(), boxes["first"].wake_s, RULES)
    assert sends(effects) == [("first", 0, 1), ("second", 0, 2)]
    boxes, effects = step_streams(boxes, Acked("id-second", 2), 9.0, RULES)
    assert boxes["second"].floor == 2


def test_a_link_that_takes_no_more_is_the_first_ones_again():
    boxes, _ = step_streams(opened((1, 2), (1, 2)), Up(), 0.0, RULES)
    boxes, effects = step_streams(boxes, Refused(1), 1.0, RULES, of="first")
    assert sends(effects) == []
    _, effects = step_streams(boxes, Tick(), boxes["first"].wake_s, RULES)
    assert sends(effects) == [("first", 0, 2)]


@pytest.mark.parametrize(
    ("event", "faults"),
    [(Acked("unknown", 1), [("first", "foreign-ack")]), (Acked("id-second", 9), [("second", "absurd-ack")])],
)
def test_an_acknowledgement_that_cannot_be_is_named_once(event, faults):
    boxes = opened((1, 2), (1, 2))
    after, effects = step_streams(boxes, event, 0.0, RULES)
    assert [(name, effect.name) for name, effect in effects] == faults
    assert after == boxes


def test_a_store_without_streams_sends_nothing():
    assert step_streams({}, Acked("x", 1), 0.0) == ({}, [])


def test_what_is_of_no_stream_changes_none():
    boxes = opened((1, 2), (1, 2))
    assert step_streams(boxes, Stored(1, 9), 0.0, RULES, of="unknown") == (boxes, [])


class Streams:
    """A device with three streams, a net that loses, repeats and reorders, and one collector for all of them."""

    def __init__(self, seed: int) -> None:
        self.rng, self.now_s = random.Random(seed), 0.0
        self.boxes, self.collector = opened((1, 0), (1, 0), (1, 0)), Collector()
        self.last = dict.fromkeys(NAMES, 0)
        self.first = dict.fromkeys(NAMES, 1)
        self.dropped = dict.fromkeys(NAMES, 0)
        self.net: list[tuple[str, int, int]] = []
        self.acks: list[Acked] = []
        self.delivered: dict[str, list[int]] = {name: [] for name in NAMES}

    def device(self, event, of=None):
        before = self.boxes
        self.boxes, effects = step_streams(before, event, self.now_s, RULES, of=of)
        for name, effect in effects:
            match effect:
                case Send(after, up_to, first):
                    ahead = NAMES[: NAMES.index(name)]
                    assert not any(self.boxes[each].gets_through for each in ahead), "it had to wait"
                    self.net += [(name, first, seq) for seq in range(after + 1, up_to + 1)]
                case Forget(up_to):
                    self.first[name] = max(self.first[name], up_to + 1)
                    assert len(self.delivered[name]) + self.dropped[name] >= up_to
                case Fault(name=fault):
                    raise AssertionError(fault)

    def arrive(self, index: int, keep: bool = False):
        name, first, seq = self.net[index] if keep else self.net.pop(index)
        self.collector, deliver, up_to = collect(self.collector, f"id-{name}", first, seq)
        self.delivered[name] += [seq] if deliver else []
        self.acks += [Acked(f"id-{name}", up_to)] if up_to else []

    def act(self, what: str, name: str):
        match what:
            case "append":
                self.last[name] += 1
                self.device(Stored(self.first[name], self.last[name]), name)
            case "overflow" if self.first[name] <= self.last[name]:
                self.first[name] += 1
                self.dropped[name] += 1
                self.device(Stored(self.first[name], self.last[name]), name)
            case "event" if self.net:
                self.arrive(self.rng.randrange(len(self.net)), keep=self.rng.random() < 0.3)
            case "ack" if self.acks:
                self.device(self.acks.pop(self.rng.randrange(len(self.acks))))
            case "lose" if self.net:
                self.net.pop(self.rng.randrange(len(self.net)))
            case "up" | "down":
                self.device(Up() if what == "up" else Down())
            case "refused":
                self.device(Refused(self.rng.randint(1, self.last[name] + 1)), name)
            case "tick":
                self.now_s += self.rng.choice([0.1, 1.0, 10.0, 500.0])
                self.device(Tick())
            case "restart":
                self.boxes = opened(*((self.first[each], self.last[each]) for each in NAMES))

    def settle(self):
        self.device(Up())
        for _ in range(20 * (sum(self.last.values()) + 5)):
            while self.net:
                self.arrive(0)
            while self.acks:
                self.device(self.acks.pop(0))
            due = [box.wake_s for box in self.boxes.values() if box.wake_s is not None]
            self.now_s = max([self.now_s, *due])
            self.device(Tick())


DONE = ("append", "append", "event", "event", "ack", "lose", "up", "down", "refused", "tick", "restart", "overflow")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.sampled_from(DONE), st.sampled_from(NAMES)), max_size=120))
def test_every_stream_arrives_in_order_once_and_what_gave_way_is_counted(seed, acts):
    world = Streams(seed)
    for act in acts:
        world.act(*act)
    world.settle()
    assert all(box.floor == box.last for box in world.boxes.values())
    for name, seqs in world.delivered.items():
        assert seqs == sorted(set(seqs))
        assert world.last[name] - len(seqs) <= world.dropped[name]
    assert world.collector.skipped <= sum(world.dropped.values())
