from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import MessageError
from edgert.fleet.session import (
    PAST_STREAMS,
    REFUSED_CODES,
    SESSION_TAKEN_OVER,
    UNANSWERED_MAX,
    Acked,
    Collector,
    Connect,
    Dialect,
    Down,
    Fault,
    Forget,
    Link,
    LinkRules,
    Lost,
    Opened,
    Outbox,
    OutboxPhase,
    OutboxRules,
    Phase,
    Refused,
    Send,
    Stored,
    Tick,
    Up,
    collect,
    open_outbox,
    step_dialect,
    step_link,
    step_outbox,
)

NOW_S = 1000.0

# (phase, event) -> (phase after, effects); the links below are 10 s old, so not yet stable, and have failed twice.
LINK_TABLE = {
    (Phase.WAITING, Tick()): (Phase.CONNECTING, [Connect()]),
    (Phase.WAITING, Opened()): (Phase.WAITING, []),
    (Phase.WAITING, Lost()): (Phase.WAITING, []),
    (Phase.WAITING, Lost(0x8E)): (Phase.WAITING, []),
    (Phase.WAITING, Lost(0x86)): (Phase.WAITING, []),
    (Phase.CONNECTING, Tick()): (Phase.CONNECTING, []),
    (Phase.CONNECTING, Opened()): (Phase.UP, []),
    (Phase.CONNECTING, Lost()): (Phase.WAITING, []),
    (Phase.CONNECTING, Lost(0x8E)): (Phase.WAITING, [Fault("duplicate-identity")]),
    (Phase.CONNECTING, Lost(0x86)): (Phase.WAITING, [Fault("refused")]),
    (Phase.UP, Tick()): (Phase.UP, []),
    (Phase.UP, Opened()): (Phase.UP, []),
    (Phase.UP, Lost()): (Phase.WAITING, []),
    (Phase.UP, Lost(0x8E)): (Phase.WAITING, [Fault("duplicate-identity")]),
    (Phase.UP, Lost(0x86)): (Phase.WAITING, [Fault("refused")]),
}


def test_link_table_is_complete():
    assert set(LINK_TABLE) == {(p, e) for p in Phase for e in (Tick(), Opened(), Lost(), Lost(0x8E), Lost(0x86))}


@pytest.mark.parametrize(("phase", "event"), LINK_TABLE)
def test_link_table(phase, event):
    before = Link(phase, 2, NOW_S - 10.0)
    after, effects = step_link(before, event, NOW_S, 0.5)
    assert (after.phase, effects) == LINK_TABLE[phase, event]
    if after.phase is before.phase:
        assert after == before


def test_link_waits_until_its_time():
    link = Link(Phase.WAITING, 3, NOW_S + 1.0)
    assert step_link(link, Tick(), NOW_S, 0.5) == (link, [])
    assert step_link(link, Tick(), NOW_S + 1.0, 0.5)[1] == [Connect()]


V5, V3 = Dialect(), Dialect(v5=False)


@pytest.mark.parametrize(
    ("dialect", "phase", "code", "mute", "after"),
    [
        (V5, Phase.CONNECTING, 0x84, False, Dialect(v5=False, told=True)),  # the broker says that it knows no 5
        (Dialect(v5=False, told=True), Phase.UP, None, False, Dialect(v5=False, told=True)),
        (Dialect(v5=False, told=True), Phase.CONNECTING, 0x84, False, V5),  # another broker now, without 3.1.1
        (V5, Phase.CONNECTING, None, True, Dialect(mute=1)),
        (Dialect(mute=1), Phase.CONNECTING, None, True, Dialect(mute=2)),
        (Dialect(mute=2), Phase.CONNECTING, None, True, V3),
        (Dialect(mute=2), Phase.CONNECTING, None, False, V5),  # it was not there: that says nothing
        (Dialect(v5=False, mute=2), Phase.CONNECTING, None, True, V5),
        (V3, Phase.UP, None, False, V5),  # only guessed: perhaps it was a relay
        (V5, Phase.UP, 0x8E, False, V5),
        (V5, Phase.CONNECTING, 0x87, False, V5),
    ],
)
def test_which_mqtt_is_spoken_next(dialect, phase, code, mute, after):
    assert step_dialect(dialect, phase, code, mute=mute) == after


def fail(link: Link, now_s: float, u: float, code: int | None = None) -> Link:
    link, _ = step_link(Link(Phase.CONNECTING, link.failures, now_s), Lost(code), now_s, u)
    return link


def test_delays_double_to_the_cap_and_the_first_retry_is_immediate():
    link, delays = Link(), []
    for _ in range(10):
        link = fail(link, NOW_S, 1.0 - 2**-53)
        delays.append(link.at_s - NOW_S)
    assert delays == pytest.approx([0, 1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_a_century_of_failures_does_not_overflow():
    assert fail(Link(failures=10**9), NOW_S, 0.5).at_s == NOW_S + 30.0


@given(st.integers(0, 50), st.floats(0, 1, exclude_max=True))
def test_jitter_is_full(failures, u):
    low, high = fail(Link(failures=failures), 0.0, 0.0).at_s, fail(Link(failures=failures), 0.0, u).at_s
    assert low == 0.0 <= high <= 60.0


@pytest.mark.parametrize(("age_s", "failures_after"), [(59.9, 6), (60.0, 1)])
def test_only_a_stable_link_forgives(age_s, failures_after):
    after, _ = step_link(Link(Phase.UP, 5, NOW_S - age_s), Lost(), NOW_S, 0.9)
    assert after.failures == failures_after
    assert (after.at_s == NOW_S) is (failures_after == 1)


@pytest.mark.parametrize(("phase", "failures", "age_s", "named"), [
    (Phase.UP, 3, 10.0, True), (Phase.UP, 2, 10.0, False), (Phase.UP, 9, 61.0, False),
    (Phase.CONNECTING, 9, 1.0, False),
])  # fmt: skip
def test_only_young_links_lost_again_and_again_are_flapping(phase, failures, age_s, named):
    _, effects = step_link(Link(phase, failures, NOW_S - age_s), Lost(), NOW_S, 0.5)
    assert (effects == [Fault("flapping")]) is named


def test_connected_then_kicked_backs_off():
    link, waits = Link(), []
    now_s = 0.0
    for _ in range(8):
        link, effects = step_link(link, Tick(), now_s, 0.99)
        assert effects == [Connect()]
        link, _ = step_link(link, Opened(), now_s, 0.99)
        now_s += 5.0
        link, _ = step_link(link, Lost(), now_s, 0.99)
        waits.append(link.at_s - now_s)
        now_s = link.at_s
    assert waits == sorted(waits)
    assert waits[-1] > 50.0


@pytest.mark.parametrize("code", sorted(REFUSED_CODES | {0x8E}))
def test_refusals_hold_off_at_the_cap_at_once(code):
    for u in (0.0, 0.999):
        assert 60.0 <= fail(Link(), NOW_S, u, code).at_s - NOW_S <= 75.0


def test_a_busy_broker_is_not_a_refusal():
    after, effects = step_link(Link(Phase.CONNECTING, 0, 0.0), Lost(0x89), 0.0, 0.5, LinkRules())
    assert (after.at_s, effects) == (0.0, [])


# Of an outbox: (phase, event) -> (phase after, effects). Each phase is one concrete box, events 1..10 stored, window 4.
RULES = OutboxRules(window=4)
BOXES = {
    OutboxPhase.OFFLINE: Outbox(stream="s", floor=2, last=10, sent=2, reached=4, credit=4),
    OutboxPhase.IDLE: Outbox(stream="s", floor=10, last=10, sent=10, reached=10, up=True, credit=4),
    OutboxPhase.HELD: Outbox(stream="s", floor=2, last=10, sent=2, reached=4, up=True, credit=4, hold_s=NOW_S + 9),
    OutboxPhase.AWAITING: Outbox(stream="s", floor=2, last=10, sent=6, reached=6, up=True, credit=4, due_s=NOW_S + 9),
}
UP, DOWN, MORE, ODD, BACK, TICK = Up(), Down(), Stored(1, 12), Acked("s", 99), Refused(4), Tick()
FOREIGN, GOOD, STALE = Acked("t", 3), Acked("s", 4), Acked("s", 1)
O, I, H, A = OutboxPhase.OFFLINE, OutboxPhase.IDLE, OutboxPhase.HELD, OutboxPhase.AWAITING  # noqa: E741 - a table
BOX_TABLE = {
    (O, UP): (A, [Send(2, 6, 3)]),
    (O, DOWN): (O, []),
    (O, MORE): (O, []),
    (O, ODD): (O, [Fault("absurd-ack")]),
    (O, FOREIGN): (O, [Fault("foreign-ack")]),
    (O, GOOD): (O, [Forget(4)]),
    (O, STALE): (O, []),
    (O, BACK): (O, []),
    (O, TICK): (O, []),
    (I, UP): (I, []),
    (I, DOWN): (O, []),
    (I, MORE): (A, [Send(10, 12, 11)]),
    (I, ODD): (I, [Fault("absurd-ack")]),
    (I, FOREIGN): (I, [Fault("foreign-ack")]),
    (I, GOOD): (I, []),
    (I, STALE): (I, []),
    (I, BACK): (H, []),
    (I, TICK): (I, []),
    (H, UP): (A, [Send(2, 6, 3)]),
    (H, DOWN): (O, []),
    (H, MORE): (H, []),
    (H, ODD): (H, [Fault("absurd-ack")]),
    (H, FOREIGN): (H, [Fault("foreign-ack")]),
    (H, GOOD): (H, [Forget(4)]),
    (H, STALE): (H, []),
    (H, BACK): (H, []),
    (H, TICK): (H, []),
    (A, UP): (A, [Send(2, 6, 3)]),
    (A, DOWN): (O, []),
    (A, MORE): (A, []),
    (A, ODD): (A, [Fault("absurd-ack")]),
    (A, FOREIGN): (A, [Fault("foreign-ack")]),
    (A, GOOD): (A, [Forget(4), Send(6, 8, 5)]),
    (A, STALE): (A, []),
    (A, BACK): (H, []),
    (A, TICK): (A, []),
}


def test_outbox_table_is_complete():
    events = (UP, DOWN, MORE, ODD, FOREIGN, GOOD, STALE, BACK, TICK)
    assert set(BOX_TABLE) == {(p, e) for p in OutboxPhase for e in events}
    assert all(box.phase is phase for phase, box in BOXES.items())


@pytest.mark.parametrize(("phase", "event"), BOX_TABLE)
def test_outbox_table(phase, event):
    after, effects = step_outbox(BOXES[phase], event, NOW_S, RULES)
    assert (after.phase, effects) == BOX_TABLE[phase, event]


def test_silence_shrinks_to_one_event_and_doubles_patience():
    box, now_s, sends, gaps = BOXES[OutboxPhase.AWAITING], NOW_S, [], []
    for _ in range(9):
        assert box.wake_s is not None
        gaps.append(box.wake_s - now_s)
        now_s = box.wake_s
        box, effects = step_outbox(box, Tick(), now_s, RULES)
        sends += effects
    assert sends == [Send(2, 3, 3)] * 9
    assert gaps == [9, 10, 20, 40, 80, 160, 300, 300, 300]
    box, effects = step_outbox(box, Acked("s", 6), now_s, RULES)
    assert effects == [Forget(6), Send(6, 8, 7)]
    assert (box.silences, box.credit) == (0, 2)


def test_what_is_new_is_said_once_also_where_nobody_acknowledges():
    box, _ = step_outbox(open_outbox("s", 1, 3), Up(), 0.0)
    box, _ = step_outbox(box, Tick(), box.wake_s)
    assert (box.silences, box.sent) == (1, 1)
    box, effects = step_outbox(box, Stored(1, 4), 9.0)
    assert effects == [Send(3, 4, 1)] and box.sent == 1, "who only looks on sees it; the first one is still awaited"
    assert step_outbox(box, Stored(1, 4), 9.0)[1] == []
    assert step_outbox(box, Stored(1, 5), 9.0, behind=True)[1] == []
    box, effects = step_outbox(box, Acked("s", 4), 10.0)
    assert (box.floor, effects[0]) == (4, Forget(4)), "a collector that came meanwhile may have it"


def test_a_collector_that_comes_back_need_not_wait_until_patience_ends():
    box, _ = step_outbox(open_outbox("s", 4, 9), Up(), 0.0)
    assert step_outbox(box, Acked("s", 3), 0.1)[1] == [], "an echo of what is under way"
    for _ in range(9):
        box, _ = step_outbox(box, Tick(), box.wake_s)
    assert box.wake_s > 300
    back, effects = step_outbox(box, Acked("s", 2), 100.0)
    assert effects == [Send(3, 4, 4)] and back.silences == 0
    assert step_outbox(back, Acked("s", 2), 100.1)[1] == []


def test_refused_events_are_tried_again_after_the_hold():
    box, _ = step_outbox(BOXES[OutboxPhase.AWAITING], Refused(4), NOW_S, RULES)
    assert (box.sent, box.wake_s) == (3, NOW_S + RULES.hold_s)
    box, effects = step_outbox(box, Tick(), NOW_S + RULES.hold_s, RULES)
    assert effects == [Send(3, 6, 3)]


def test_a_session_taken_over_by_an_attempt_of_its_own_is_no_other_device():
    link = Link()
    for _ in range(5):  # nobody answers: a broker that is busy has them all the same
        link, _ = step_link(link, Tick(), link.at_s, 0.5)
        link, effects = step_link(link, Lost(), link.at_s + 10.0, 0.5)
        assert effects == []
    assert link.unanswered == UNANSWERED_MAX
    for left in reversed(range(UNANSWERED_MAX)):
        link, _ = step_link(link, Tick(), link.at_s, 0.5)
        link, _ = step_link(link, Opened(), link.at_s, 0.5)
        link, effects = step_link(link, Lost(SESSION_TAKEN_OVER), link.at_s + 1.0, 0.5)
        assert Fault("duplicate-identity") not in effects
        assert link.unanswered == left
    link, _ = step_link(link, Tick(), link.at_s, 0.5)
    link, _ = step_link(link, Opened(), link.at_s, 0.5)
    _, effects = step_link(link, Lost(SESSION_TAKEN_OVER), link.at_s + 1.0, 0.5)
    assert effects == [Fault("duplicate-identity")]


def test_a_stable_link_owes_nothing_to_former_attempts():
    link = Link(Phase.UP, 2, 0.0, unanswered=2)
    after, effects = step_link(link, Lost(SESSION_TAKEN_OVER), 1000.0, 0.5)
    assert (after.unanswered, effects) == (0, [Fault("duplicate-identity")])


def test_reconnecting_sends_everything_unacknowledged_again():
    box, _ = step_outbox(BOXES[OutboxPhase.AWAITING], Down(), NOW_S, RULES)
    _, effects = step_outbox(box, Up(), NOW_S, RULES)
    assert effects == [Send(2, 6, 3)]


def test_the_store_may_drop_what_is_on_its_way():
    box, effects = step_outbox(BOXES[OutboxPhase.AWAITING], Stored(9, 14), NOW_S, RULES)
    assert (box.floor, effects) == (8, [Send(8, 12, 9)])


def test_an_acknowledgement_of_an_earlier_run_is_believed():
    box = open_outbox("s", 3, 10)
    assert step_outbox(box, Acked("s", 10), NOW_S)[1] == [Forget(10)]
    assert step_outbox(box, Acked("s", 11), NOW_S)[1] == [Fault("absurd-ack")]


def test_an_acknowledgement_of_what_is_stored_but_was_never_sent_is_absurd():
    box = BOXES[OutboxPhase.AWAITING]
    assert box.reached < 7 <= box.last
    assert step_outbox(box, Acked("s", 7), NOW_S, RULES) == (box, [Fault("absurd-ack")])


def test_a_late_refusal_does_not_reach_below_the_floor():
    box, _ = step_outbox(BOXES[OutboxPhase.AWAITING], Refused(1), NOW_S, RULES)
    assert box.sent == box.floor == 2


def test_nothing_is_on_its_way_while_offline():
    box, _ = step_outbox(BOXES[OutboxPhase.AWAITING], Down(), NOW_S, RULES)
    assert (box.sent, box.wake_s) == (box.floor, None)


@pytest.mark.parametrize(("first", "seq"), [(0, 1), (3, 2), (-1, -1), (1, 2**63)])
def test_collector_rejects_impossible_numbers(first, seq):
    with pytest.raises(MessageError):
        collect(Collector(), "s", first, seq)


def test_collector_skips_what_the_sender_dropped():
    c, deliver, ack = collect(Collector("s", 4), "s", 9, 10)
    assert (c.wanted, c.skipped, deliver, ack) == (9, 5, False, 8)


def test_collector_skips_a_single_event():
    c, deliver, ack = collect(Collector("s", 4), "s", 5, 5)
    assert (c.wanted, c.skipped, deliver, ack) == (6, 1, True, 5)


def test_collector_begins_a_new_stream_and_delivers_nothing_of_the_old_one_twice():
    c, _, _ = collect(Collector("old", 500), "new", 1, 1)
    assert (c.stream, c.wanted) == ("new", 2)
    c, deliver, ack = collect(c, "old", 499, 499)
    assert (deliver, ack) == (False, 499)
    assert collect(c, "new", 1, 1)[1:] == (False, 1)


def test_two_stores_under_one_name_are_both_received():
    c, seen = Collector(), []
    for stream, seq in (("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2), ("b", 2), ("a", 3), ("a", 4), ("b", 3)):
        c, deliver, ack = collect(c, stream, 1, seq)
        assert ack == seq
        seen += [(stream, seq)] if deliver else []
    assert sorted(seen) == [("a", n) for n in (1, 2, 3, 4)] + [("b", n) for n in (1, 2, 3)]
    assert c.skipped == 0


def test_collector_memory_of_streams_is_bounded():
    c = Collector()
    for i in range(100):
        c, deliver, _ = collect(c, f"s{i}", 1, 1)
        assert deliver
    assert len(c.past) == PAST_STREAMS


@dataclass
class World:
    """A device, a net that loses, repeats and reorders, and a collector."""

    rng: random.Random
    window: int
    now_s: float = 0.0
    stored: dict[int, int] = field(default_factory=dict)
    last: int = 0
    dropped: set[int] = field(default_factory=set)
    to_collector: list[tuple[int, int]] = field(default_factory=list)
    to_device: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    full: bool = False

    def __post_init__(self):
        self.rules = OutboxRules(window=self.window)
        self.box, self.collector = open_outbox("s", 1, 0, self.rules), Collector()

    def device(self, event):
        self.box, effects = step_outbox(self.box, event, self.now_s, self.rules)
        assert self.box.sent - self.box.floor <= self.box.credit <= self.window
        for effect in effects:
            match effect:
                case Send(after=after, up_to=up_to, first=first):
                    assert self.box.up
                    for seq in range(after + 1, up_to + 1):
                        assert seq in self.stored
                        if self.full and self.rng.random() < 0.5:
                            self.device(Refused(seq))
                            break
                        self.to_collector.append((first, seq))
                case Forget(up_to=up_to):
                    for seq in [s for s in self.stored if s <= up_to]:
                        del self.stored[seq]
                case Fault(name=name):
                    raise AssertionError(name)

    def take(self, queue):
        index = self.rng.randrange(len(queue))
        return queue[index] if self.rng.random() < 0.3 else queue.pop(index)

    def arrive(self, message):
        self.collector, deliver, ack = collect(self.collector, "s", *message)
        if deliver:
            self.delivered.append(message[1])
        if ack is not None:
            self.to_device.append(ack)

    def act(self, name):
        match name:
            case "append":
                self.last += 1
                self.stored[self.last] = 0
                self.device(self.span())
            case "overflow" if self.stored:
                oldest = min(self.stored)
                del self.stored[oldest]
                self.dropped.add(oldest)
                self.device(self.span())
            case "event" if self.to_collector:
                self.arrive(self.take(self.to_collector))
            case "ack" if self.to_device:
                self.device(Acked("s", self.take(self.to_device)))
            case "lose" if self.to_collector:
                self.to_collector.pop(self.rng.randrange(len(self.to_collector)))
            case "lose-ack" if self.to_device:
                self.to_device.pop(self.rng.randrange(len(self.to_device)))
            case "up":
                self.device(Up())
            case "down":
                self.device(Down())
            case "full":
                self.full = not self.full
            case "tick":
                self.now_s += self.rng.choice([0.1, 1.0, 10.0, 500.0])
                self.device(Tick())
            case "restart":
                span = self.span()
                self.box = open_outbox("s", span.first, span.last, self.rules)

    def span(self):
        return Stored(min(self.stored, default=self.last + 1), self.last)

    def settle(self):
        self.full = False
        self.device(Up())
        for _ in range(20 * (len(self.stored) + 5)):
            while self.to_collector:
                self.arrive(self.to_collector.pop(0))
            while self.to_device:
                self.device(Acked("s", self.to_device.pop(0)))
            if self.box.wake_s is not None:
                self.now_s = max(self.now_s, self.box.wake_s)
            self.device(Tick())


ACTS = ("append", "append", "event", "event", "ack", "ack", "lose", "lose-ack", "up", "down", "full", "tick", "restart")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.lists(st.sampled_from(ACTS), max_size=120))
def test_each_event_is_delivered_exactly_once_in_order(seed, window, acts):
    world = World(random.Random(seed), window)
    for act in acts:
        world.act(act)
        assert world.delivered == list(range(1, len(world.delivered) + 1))
    world.settle()
    assert world.delivered == list(range(1, world.last + 1))
    assert not world.stored


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from((*ACTS, "overflow")), max_size=120))
def test_a_full_store_costs_only_what_it_dropped(seed, acts):
    world = World(random.Random(seed), 4)
    for act in acts:
        world.act(act)
    world.settle()
    assert world.delivered == sorted(set(world.delivered))
    missing = set(range(1, world.last + 1)) - set(world.delivered)
    assert missing <= world.dropped
    assert not world.stored
