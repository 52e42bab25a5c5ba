"""The ledger: every state and cause, and the power cut in every state, before and after every effect."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.fleet import ledger as ledgers
from edgert.fleet.kinds import RULES, Kind
from edgert.fleet.ledger import (
    ENDED_MAX,
    ENDS,
    HOLD_S,
    OPEN_MAX,
    OPENINGS_MAX,
    RECEIVED_S,
    TABLE,
    VALID_S,
    Cancel,
    Cause,
    Did,
    Do,
    Entry,
    Forget,
    Found,
    Job,
    Ledger,
    NotWritten,
    Order,
    Outcome,
    Say,
    State,
    Stop,
    Submit,
    Tick,
    Write,
    Written,
    open_ledger,
    step,
)
from edgert.fleet.when import Facts, When

FREE = Facts(mains=True, link_up=True, metered=False, idle=True)
NOW_S, WALL_S = 1000.0, 1_795_236_400.0


def order(id: str = "j", kind: str = "upload", **more) -> Order:
    return Order(id=id, kind=kind, issued_s=WALL_S, **more)


def entry(state: State, **more) -> Entry:
    job = Job(order=order(), number=1, state=state, attempt=int(state is State.RUNNING))
    return Entry(job=job, since_s=NOW_S, **more)


# What makes each cause so: (changes to the order, changes to the entry, seconds in the state, facts).
CAUSES = {
    Cause.ACCEPTED: ({}, {}, 0.0, FREE),
    Cause.REFUSED: ({"kind": "dance"}, {}, 0.0, FREE),
    Cause.STARTED: ({}, {}, 0.0, FREE),
    Cause.FINISHED: ({}, {"outcome": Outcome()}, 0.0, FREE),
    Cause.FAULT: ({}, {"outcome": Outcome("no room")}, 0.0, FREE),
    Cause.INTERRUPTED: ({}, {"interrupted": True}, 0.0, FREE),
    Cause.CANCEL: ({}, {"cancel": True}, 0.0, FREE),
    Cause.EXPIRY: ({"not_after_s": WALL_S - 1}, {}, 0.0, FREE),
    Cause.TIMEOUT: ({}, {}, 2 * VALID_S, Facts()),
}


def test_every_cause_can_come_about_here():
    assert set(CAUSES) == set(Cause)
    assert {cause for _, cause in TABLE} == set(Cause)


# Facts that mean nothing in a state leave it to what else is so.
OTHERWISE = {
    **{(State.RECEIVED, cause): State.SCHEDULED for cause in Cause},
    **{(State.SCHEDULED, cause): State.RUNNING for cause in Cause},
    (State.RUNNING, Cause.REFUSED): State.FAILED,
}


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("state", [state for state in State if state not in ENDS])
def test_every_state_and_cause(state, cause):
    told, known, lasted_s, facts = CAUSES[cause]
    before = entry(state, **known)
    before = msgspec.structs.replace(before, job=msgspec.structs.replace(before.job, order=order(**told)))
    world = Ledger(open={"j": before}, number=1)
    after, effects = step(world, Tick(), facts, NOW_S + lasted_s, WALL_S)
    expected = TABLE.get((state, cause), OTHERWISE.get((state, cause)))
    writes = [effect.job for effect in effects if isinstance(effect, Write)]
    assert [job.state for job in writes] == ([] if expected is None else [expected])
    assert effects == [Write(job) for job in writes], "nothing is done before it is written"
    assert after.open["j"].job.state is state, "nothing is so before it is written"


EVENTS = [Submit(order()), Cancel("j"), Written("j"), NotWritten("j", "full"), Did("j", Outcome("late")), Tick()]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", sorted(ENDS, key=lambda end: end.value))
def test_an_end_is_the_end(state, event):
    job = Job(order=order(), number=1, state=state)
    world = Ledger(ended={"j": job}, number=1)
    after, effects = step(world, event, FREE, NOW_S, WALL_S)
    assert after == world
    assert effects == ([Say(job)] if isinstance(event, Submit | Cancel) else [])


def test_every_state_that_is_no_end_has_a_way_there_by_time_alone():
    for state in set(State) - ENDS:
        assert TABLE[state, Cause.TIMEOUT] in ENDS
        assert TABLE[state, Cause.CANCEL] in ENDS
    assert all(rules.timeout_s > 0 and rules.attempts > 0 for rules in RULES.values())
    assert set(RULES) == set(Kind)


class PowerCutError(Exception):
    """Now."""


class Device:
    """A disk that keeps what was written, somebody who carries out jobs, and a plug that can be pulled."""

    def __init__(self, cuts: list[int], *, slow: bool = False) -> None:
        self.cuts, self.slow = list(cuts), slow
        self.jobs: dict[str, Job] = {}
        self.marks: list[str] = []
        self.horizon_s: float | None = None
        self.evidence: dict[str, Outcome] = {}
        self.effects: dict[str, int] = {}
        self.said: dict[str, set[State]] = {}
        self.events: list[tuple[str, State]] = []
        self.points = 0
        self.reached: set[State] = set()
        self.boot()

    def point(self) -> None:
        """The power may go here."""
        self.points += 1
        if self.cuts and self.points == self.cuts[0]:
            self.cuts.pop(0)
            self.points = 0
            raise PowerCutError

    def boot(self) -> None:
        self.now_s, self.inbox, self.working = 0.0, [], set()
        found = {id_: Found(outcome) for id_, outcome in self.evidence.items()}
        self.ledger, effects = open_ledger(self.jobs.values(), self.horizon_s, found, self.now_s)
        self.pending = effects

    def feed(self, event, facts: Facts, outcome: Outcome) -> None:
        self.perform(self.pending, outcome)
        self.pending = []
        events = [event]
        while events:
            self.ledger, effects = step(self.ledger, events.pop(0), facts, self.now_s, WALL_S + self.now_s)
            self.perform(effects, outcome)
            events += self.inbox
            self.inbox = []

    def perform(self, effects, outcome: Outcome) -> None:
        for effect in effects:
            self.point()
            match effect:
                case Write(job, mark):
                    self.jobs[job.order.id] = job
                    self.reached.add(job.state)
                    self.marks += [mark[0]] if mark else []
                    self.inbox.append(Written(job.order.id))
                case Do(job):
                    if self.slow:
                        self.working.add(job.order.id)
                    else:
                        self.work(job.order.id, outcome)
                case Stop(id_):
                    self.working.discard(id_)
                case Say(job, True, news) if job.state in ENDS:
                    self.said.setdefault(job.order.id, set()).add(job.state)
                    self.events += [(job.order.id, job.state)] if news else []
                case Forget(ids, horizon_s):
                    self.jobs = {id_: job for id_, job in self.jobs.items() if id_ not in ids}
                    self.horizon_s = horizon_s
                case _:
                    pass
            self.point()

    def work(self, id_: str, outcome: Outcome) -> None:
        if id_ not in self.evidence:
            self.evidence[id_] = outcome
            self.effects[id_] = self.effects.get(id_, 0) + 1
        self.inbox.append(Did(id_, self.evidence[id_]))


BUSY = Facts(mains=True)
WAITING = When(link="up")
SCENARIOS = {
    "done": ([Submit(order())], {}),
    "fault": ([Submit(order())], {"outcome": Outcome("it broke")}),
    "unknown kind": ([Submit(order(kind="dance"))], {}),
    "bad arguments": ([Submit(order(args={"x": 1}))], {}),
    "cancelled at once": ([Submit(order()), Cancel("j", WALL_S)], {}),
    "cancelled while it waits": ([Submit(order(when=WAITING)), Tick(), Cancel("j", WALL_S)], {"facts": BUSY}),
    "cancelled before it came": ([Cancel("j", WALL_S), Submit(order())], {}),
    "waits for ever": ([Submit(order(when=WAITING, valid_s=5.0))], {"facts": BUSY}),
    "came too late": ([Submit(order(not_after_s=WALL_S - 1))], {}),
    "takes for ever": ([Submit(order(timeout_s=4.0))], {"slow": True, "ends": False}),
    "cancelled while it runs": ([Submit(order()), Tick(), Cancel("j", WALL_S)], {"slow": True, "ends": False}),
    "takes its time": ([Submit(order())], {"slow": True}),
    "of a schedule": ([Submit(order(origin="s"), ("s", b"mark"))], {}),
}  # fmt: skip


def play(inputs, cuts, *, facts=FREE, outcome=None, slow=False, ends=True) -> Device:
    """Everything is delivered again from the beginning after each cut, as a broker may."""
    outcome = outcome or Outcome()
    device = Device(cuts, slow=slow)
    for _ in range(len(cuts) + 1):
        try:
            for event in inputs:
                device.feed(event, facts, outcome)
            for _ in range(40):
                device.now_s += 1.0
                if ends:
                    for id_ in sorted(device.working):
                        device.point()
                        device.working.discard(id_)
                        device.work(id_, outcome)
                        device.point()
                device.feed(Tick(), facts, outcome)
                if not device.ledger.open and device.now_s > 8:
                    return device
        except PowerCutError:
            device.boot()
    return device


def judge(device: Device, name: str) -> None:
    (job,) = device.jobs.values()
    assert job.state in ENDS, name
    assert device.said["j"] == {job.state}, f"{name}: two ends were told"
    assert set(device.events) == {("j", job.state)}, f"{name}: no event tells of the end"
    assert device.effects.get("j", 0) <= 1
    assert device.effects.get("j", 0) == 1 or job.state is not State.DONE
    if job.state in (State.REFUSED, State.EXPIRED):
        assert not device.effects
    assert job.attempt <= RULES[Kind.UPLOAD].attempts
    if "schedule" in name:
        assert device.marks[:1] == ["s"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut_in_every_state_and_before_and_after_every_effect(name):
    inputs, how = SCENARIOS[name]
    whole = play(inputs, [], **how)
    judge(whole, name)
    assert whole.points >= 4
    for first in range(1, whole.points + 1):
        once = play(inputs, [first], **how)
        judge(once, f"{name}, cut at {first}")
        for second in range(1, once.points + 1):
            twice = play(inputs, [first, second], **how)
            assert not twice.cuts
            judge(twice, f"{name}, cut at {first} and {second}")


def test_the_scenarios_go_through_every_state():
    reached = set()
    for inputs, how in SCENARIOS.values():
        reached |= play(inputs, [], **how).reached
    assert reached == set(State)


def test_a_device_that_always_goes_down_in_the_middle_gives_up():
    # Each life: one write to begin again, the effect is ordered, and then the power goes.
    device = Device([], slow=True)
    device.feed(Submit(order()), FREE, Outcome())
    for _ in range(RULES[Kind.UPLOAD].attempts + 1):
        device.boot()
        device.feed(Tick(), FREE, Outcome())
    assert device.jobs["j"].state is State.FAILED
    assert "went down in the middle" in device.jobs["j"].why
    assert device.jobs["j"].attempt == RULES[Kind.UPLOAD].attempts


def test_a_device_that_always_goes_down_while_a_job_waits_gives_up_too():
    device = Device([])
    device.feed(Submit(order(when=WAITING)), BUSY, Outcome())
    for _ in range(OPENINGS_MAX + 1):
        device.boot()
        device.feed(Tick(), BUSY, Outcome())
    assert device.jobs["j"].state is State.EXPIRED


def test_what_outlived_the_supervisor_is_not_begun_again():
    job = Job(order=order(), number=1, state=State.RUNNING, attempt=1)
    world, effects = open_ledger([job], None, {"j": Found(alive=True)}, NOW_S)
    assert effects == []
    world, effects = step(world, Tick(), FREE, NOW_S + 1, WALL_S)
    assert effects == []
    _, effects = step(world, Did("j", Outcome(result={"n": 1})), FREE, NOW_S + 2, WALL_S)
    assert [(effect.job.state, effect.job.result) for effect in effects] == [(State.DONE, {"n": 1})]


def test_what_is_still_at_work_for_an_ended_job_is_stopped():
    ended = Job(order=order(), number=1, state=State.CANCELLED, told=True)
    _, effects = open_ledger([ended], None, {"j": Found(alive=True)}, NOW_S)
    assert effects == [Stop("j")]


def drive(world: Ledger, event, facts: Facts = FREE, now_s: float = NOW_S, wall_s: float | None = WALL_S):
    """With a disk that always takes it; returns all effects."""
    events, seen = [event], []
    while events:
        world, effects = step(world, events.pop(0), facts, now_s, wall_s)
        seen += effects
        events += [Written(effect.job.order.id) for effect in effects if isinstance(effect, Write)]
    return world, seen


def test_one_of_a_lane_runs_at_a_time_in_the_order_of_arrival():
    world = Ledger()
    for id_, kind in (("a", "bench"), ("b", "train"), ("c", "upload"), ("d", "calibrate")):
        world, _ = drive(world, Submit(order(id_, kind)))
    assert [id_ for id_, each in world.open.items() if each.job.state is State.RUNNING] == ["a", "c"]
    assert world.open["b"].blocked == ("another job runs",)
    world, seen = drive(world, Did("a", Outcome()))
    assert [effect.job.order.id for effect in seen if isinstance(effect, Do)] == ["b"]


def test_what_the_governor_has_no_room_for_waits():
    full = msgspec.structs.replace(FREE, accept_jobs=False)
    assert drive(Ledger(), Submit(order("t", "train")), full)[0].open["t"].job.state is State.RUNNING
    world, _ = drive(Ledger(), Submit(order("a", "bench")), full)
    assert world.open["a"].blocked == ("the governor has no room",)
    world, seen = drive(world, Tick())
    assert any(isinstance(effect, Do) for effect in seen)


def test_a_disk_that_takes_nothing_accepts_nothing():
    world, effects = step(Ledger(), Submit(order()), FREE, NOW_S, WALL_S)
    assert isinstance(effects[0], Write)
    world, effects = step(world, NotWritten("j", "the disk is full"), FREE, NOW_S, WALL_S)
    assert not world.open
    assert [(effect.stored, effect.job.state) for effect in effects] == [(False, State.REFUSED)]
    assert "the disk is full" in effects[0].job.why
    # And later, under the same id, it is taken.
    _, seen = drive(world, Submit(order()))
    assert any(isinstance(effect, Do) for effect in seen)


def test_a_disk_that_fills_up_holds_a_job_where_it_stands():
    world, _ = drive(Ledger(), Submit(order(when=WAITING)), BUSY)
    world, effects = step(world, Tick(), FREE, NOW_S, WALL_S)
    assert [effect.job.state for effect in effects] == [State.RUNNING]
    world, effects = step(world, NotWritten("j", "full"), FREE, NOW_S, WALL_S)
    assert effects == []
    assert step(world, Tick(), FREE, NOW_S + HOLD_S - 0.1, WALL_S)[1] == []
    world, effects = step(world, Tick(), FREE, NOW_S + HOLD_S, WALL_S)
    assert [effect.job.state for effect in effects] == [State.RUNNING]


def test_a_cancel_that_comes_while_the_disk_is_asked_is_not_lost():
    world, effects = step(Ledger(), Submit(order()), FREE, NOW_S, WALL_S)
    world, effects = step(world, Cancel("j"), FREE, NOW_S, WALL_S)
    assert effects == []
    world, seen = drive(world, Written("j"))
    assert world.ended["j"].state is State.CANCELLED
    assert not any(isinstance(effect, Do) for effect in seen)


def test_ended_jobs_are_forgotten_with_a_horizon_that_keeps_them_from_being_done_again():
    world = Ledger()
    seen = []
    for i in range(ENDED_MAX + 3):
        world, effects = drive(world, Submit(Order(id=f"j{i}", kind="upload", issued_s=1000.0 + i)), wall_s=None)
        world, more = drive(world, Did(f"j{i}", Outcome()), wall_s=None)
        seen += effects + more
    assert len(world.ended) == ENDED_MAX
    assert [effect for effect in seen if isinstance(effect, Forget)] == [
        Forget((f"j{i}",), 1000.0 + i) for i in range(3)
    ]
    _, effects = drive(world, Submit(Order(id="j1", kind="upload", issued_s=1001.0)))
    assert [(effect.job.state, effect.stored) for effect in effects] == [(State.REFUSED, False)]
    assert "too old" in effects[0].job.why
    _, effects = drive(world, Submit(Order(id="new", kind="upload", issued_s=1003.0)))
    assert any(isinstance(effect, Do) for effect in effects)
    _, effects = drive(world, Submit(Order(id="s.1", kind="upload", issued_s=0.0, origin="s"), ("s", b"")))
    assert any(isinstance(effect, Do) for effect in effects), "a schedule's mark guards it"


def test_too_many_are_turned_away():
    world = Ledger()
    for i in range(OPEN_MAX):
        world, _ = drive(world, Submit(order(f"j{i}", when=WAITING)), BUSY)
    for event in (Submit(order("more")), Cancel("unknown", WALL_S)):
        after, effects = drive(world, event, BUSY)
        assert len(after.open) == OPEN_MAX
        assert [effect.stored for effect in effects] == [False]


def test_a_senders_clock_far_ahead_cannot_silence_the_others():
    _, effects = drive(Ledger(), Submit(Order(id="j", kind="upload", issued_s=WALL_S + 2 * 86_400)))
    assert [(effect.job.state, effect.stored) for effect in effects] == [(State.REFUSED, False)]


def test_a_schedules_mark_is_written_even_when_its_job_is_known_already():
    world, _ = drive(Ledger(), Submit(order("s.1")))
    world, _ = drive(world, Did("s.1", Outcome()))
    _, effects = drive(world, Submit(order("s.1", origin="s"), ("s", b"2")))
    assert [effect.mark for effect in effects if isinstance(effect, Write)] == [("s", b"2")]
    assert not any(isinstance(effect, Do) for effect in effects)


def test_the_number_of_a_restart_is_written():
    job = Job(order=order(when=WAITING), number=1, state=State.SCHEDULED)
    _, effects = open_ledger([job], None, {}, NOW_S)
    assert [effect.job.openings for effect in effects] == [1]


def test_a_job_stuck_where_it_was_received_ends():
    world = Ledger(open={"j": entry(State.RECEIVED)}, number=1)
    world, _ = drive(world, Tick(), now_s=NOW_S + RECEIVED_S + 1)
    assert world.ended["j"].state is State.FAILED


ALL = st.lists(
    st.tuples(
        st.sampled_from(["submit", "cancel", "did", "written", "not", "tick", "boot"]),
        st.sampled_from(["a", "b", "c"]),
        st.booleans(),
    ),
    max_size=50,
)


@given(ALL)
@settings(max_examples=150)
def test_any_events_in_any_order_lead_to_one_end_and_no_effect_before_its_write(events):
    world, disk, ends, unwritten = Ledger(), {}, {}, []
    for i, (what, id_, yes) in enumerate(events):
        event = {
            "submit": Submit(order(id_, "bench" if yes else "upload")),
            "cancel": Cancel(id_, WALL_S),
            "did": Did(id_, Outcome("" if yes else "broke")),
            "tick": Tick(),
        }.get(what)
        if what in ("written", "not"):
            if not unwritten:
                continue
            job = unwritten.pop(0)
            if what == "written":
                disk[job.order.id] = job
            event = Written(job.order.id) if what == "written" else NotWritten(job.order.id, "full")
        if what == "boot":
            world, effects = open_ledger(disk.values(), None, {}, NOW_S + i)
            unwritten = []
        else:
            world, effects = step(world, event, FREE, NOW_S + i, WALL_S)
        for effect in effects:
            match effect:
                case Write(job, _):
                    unwritten.append(job)
                case Do(job):
                    assert disk[job.order.id].state is State.RUNNING
                case Say(job, True):
                    assert disk[job.order.id].state is job.state or job.state not in ENDS
                    if job.state in ENDS:
                        assert ends.setdefault(job.order.id, job.state) is job.state
    assert ledgers.refusal(order()) == ""
