"""The student: under any loss, duplication, reordering and lateness, each value it joins is that observation's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgert.errors import UsageError
from edgert.knowledge.codec import digest
from edgert.knowledge.student import REMEMBERED_ASKS, Student

SHAPE = (4, 4, 2)
N_ACTIONS = 3


def obs(kind: int) -> np.ndarray:
    """Observation number `kind`; equal numbers give equal content in separate arrays."""
    row = np.zeros(SHAPE, np.uint8)
    row.reshape(-1)[:4] = list(kind.to_bytes(4, "big"))
    return row


def kind_of(row: np.ndarray) -> int:
    return int.from_bytes(row.reshape(-1)[:4].tobytes(), "big")


def truth(kind: int) -> np.ndarray:
    """What the teacher says about observation number `kind`."""
    return np.array([kind, kind + 0.25, -kind], np.float32)


def truths(plan) -> np.ndarray:
    return np.stack([truth(kind_of(row)) for row in plan.rows])


def student(**changes) -> Student:
    return Student(**({"capacity": 1000, "batch": 8, "timeout_s": 10.0, "max_pending": 2, "wait_s": 0.0} | changes))


def rich(pupil: Student, now_s: float):
    """A plan where the budget is no obstacle."""
    pupil.plan(now_s - 1, 1e9)
    return pupil.plan(now_s, 1e9)


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.seq, self.ask_id = 100.0, 0, 0
        self.pupil = student(capacity=40, batch=4, max_pending=3, max_bytes=30 * 32)
        self.seen: dict[int, int] = {}
        self.joined: set[int] = set()
        self.plans: dict[int, object] = {}
        self.on_the_way: list[int] = []
        self.answered_ids: set[int] = set()

    def join(self, pairs) -> None:
        for seq, q in pairs:
            assert np.array_equal(q, truth(self.seen[seq]))
            assert not q.flags.writeable
            assert seq not in self.joined, "joined twice"
            self.joined.add(seq)

    @rule(kinds=st.lists(st.integers(0, 60), min_size=1, max_size=12), priority=st.floats(0, 1))
    def see(self, kinds, priority):
        for kind in kinds:
            self.seq += 1
            self.seen[self.seq] = kind
            self.join(self.pupil.saw(self.seq, obs(kind), priority))

    @rule(passed_s=st.floats(0, 30), expire=st.booleans())
    def wait(self, passed_s, expire):
        self.now_s += passed_s
        if expire:
            self.pupil.expire(self.now_s)

    @rule(lost_at_once=st.booleans())
    def ask(self, lost_at_once):
        plan = rich(self.pupil, self.now_s)
        if plan is None:
            return
        kinds = [kind_of(row) for row in plan.rows]
        assert 1 <= len(kinds) <= 4
        assert len(set(kinds)) == len(kinds)
        for seqs, kind in zip(plan.seqs, kinds, strict=True):
            assert {self.seen[seq] for seq in seqs} == {kind}
        self.ask_id += 1
        self.pupil.sent(self.ask_id, plan, 20 * len(kinds), self.now_s)
        self.plans[self.ask_id] = plan
        if not lost_at_once:
            self.on_the_way.append(self.ask_id)

    @precondition(lambda self: self.on_the_way)
    @rule(
        data=st.data(), keep=st.booleans(), fault=st.sampled_from([None, None, None, "count", "shape", "nan", "dtype"])
    )
    def deliver(self, data, keep, fault):
        """Any message that is on its way, out of order; `keep` leaves a duplicate on its way."""
        at = data.draw(st.integers(0, len(self.on_the_way) - 1))
        ask_id = self.on_the_way[at] if keep else self.on_the_way.pop(at)
        q = truths(self.plans[ask_id])
        match fault:
            case "count":
                q = q[:-1]
            case "shape":
                q = q.reshape(-1)
            case "nan":
                q[0, 0] = np.nan
            case "dtype":
                q = q.astype(np.float64)
        pairs = self.pupil.answer(ask_id, q, q.nbytes, self.now_s)
        if fault or ask_id in self.answered_ids:
            assert pairs == []
        else:
            self.answered_ids.add(ask_id)
        self.join(pairs)

    @rule(ask_id=st.integers(5000, 6000))
    def stranger(self, ask_id):
        before = self.pupil.faults.get("answer-unknown", 0)
        assert self.pupil.answer(ask_id, np.ones((2, 3), np.float32), 10, self.now_s) == []
        assert self.pupil.faults["answer-unknown"] == before + 1

    @rule()
    def renumber(self):
        self.pupil.forget_transitions()
        self.seen = dict.fromkeys(self.seen, -1)  # an old number must never come back

    @invariant()
    def bounded(self):
        pupil = self.pupil
        assert sum(len(w.seqs) for w in pupil._waiting.values()) == pupil._n_seqs <= 40
        assert sum(w.obs.nbytes for w in pupil._waiting.values()) == pupil._held_bytes <= 30 * 32
        assert sum(w.asked for w in pupil._waiting.values()) == pupil._n_asked
        assert sum(not s.late for s in pupil._asks.values()) == pupil._pending <= 3
        assert len(pupil._known) <= 40
        assert len(pupil._asks) <= 3 + REMEMBERED_ASKS
        assert len(pupil._done) <= REMEMBERED_ASKS

    @invariant()
    def accounted(self):
        counters = self.pupil.counters
        assert counters.joined == len(self.joined)
        assert counters.seen == self.seq
        assert counters.asks == self.ask_id


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_everything_is_joined_in_the_end(kinds, chance):
    """Half of the answers are lost; asking again finds them all, and what was answered is not asked again."""
    pupil, now_s, joined, answered = student(batch=4), 0.0, {}, set()
    for seq, kind in enumerate(kinds):
        joined |= dict(pupil.saw(seq, obs(kind), chance.random()))
        if chance.random() < 0.3:
            now_s += 20.0
            pupil.expire(now_s)
    for ask_id in range(1000):
        now_s += 20.0
        pupil.expire(now_s)
        plan = rich(pupil, now_s)
        if plan is None:
            break
        assert not {kind_of(row) for row in plan.rows} & answered
        pupil.sent(ask_id, plan, 50, now_s)
        if chance.random() < 0.5:
            answered |= {kind_of(row) for row in plan.rows}
            joined |= dict(pupil.answer(ask_id, truths(plan), 50, now_s))
    assert {seq: kind_of_truth(q) for seq, q in joined.items()} == dict(enumerate(kinds))


def kind_of_truth(q: np.ndarray) -> int:
    assert np.array_equal(q, truth(int(q[0])))
    return int(q[0])


@given(
    st.lists(
        st.tuples(st.floats(0.001, 3), st.sampled_from([0.0, 50.0, 400.0, 3000.0]), st.integers(0, 6)),
        min_size=5,
        max_size=120,
    ),
    st.floats(0, 0.9),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_the_budget_holds_over_any_window(steps, loss_frac, chance):
    """Bytes of the questions of any window and of their answers <= budget of that window + one batch."""
    out_bytes, in_bytes, batch = 7, 21, 5
    pupil = student(batch=batch, max_pending=1000, timeout_s=4.0)
    # One exchange tells the student what things cost; from then on its expectations are right.
    pupil.saw(0, obs(10**6), 1.0)
    plan = rich(pupil, 0.0)
    pupil.sent(1, plan, out_bytes, 0.0)
    pupil.answer(1, truths(plan), in_bytes, 0.0)

    now_s, seq, spent, earned, on_the_way = 0.0, 0, [], [], []
    for step, (passed_s, rate, fresh) in enumerate(steps):
        for _ in range(fresh):
            seq += 1
            pupil.saw(seq, obs(seq), chance.random())
        now_s += passed_s
        pupil.expire(now_s)
        earned.append(rate * passed_s)
        spent.append(0.0)
        while (plan := pupil.plan(now_s, rate)) is not None:
            n = len(plan.rows)
            ask_id = 10 + pupil.counters.asks
            pupil.sent(ask_id, plan, out_bytes * n, now_s)
            spent[-1] += out_bytes * n
            if chance.random() > loss_frac:
                on_the_way.append((ask_id, plan, step))
        chance.shuffle(on_the_way)
        for ask_id, plan, asked_at in on_the_way[len(on_the_way) // 2 :]:
            pupil.answer(ask_id, truths(plan), in_bytes * len(plan.rows), now_s)
            spent[asked_at] += in_bytes * len(plan.rows)
        del on_the_way[len(on_the_way) // 2 :]
    one_batch = batch * (out_bytes + in_bytes)
    for first in range(len(steps)):
        total_spent = total_earned = 0.0
        for last in range(first, len(steps)):
            total_spent += spent[last]
            total_earned += earned[last]
            assert total_spent <= total_earned + one_batch + 1e-6


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_long_run_keeps_to_its_budget_whatever_things_cost(worst_out, worst_in, seed):
    rng = np.random.default_rng(seed)
    pupil, rate_bytes_per_s, now_s, seq, total_bytes = student(max_pending=4), 500.0, 0.0, 0, 0
    pupil.plan(now_s, rate_bytes_per_s)
    while now_s < 400:
        now_s += 0.1
        for _ in range(3):
            seq += 1
            pupil.saw(seq, obs(seq), 0.5)
        plan = pupil.plan(now_s, rate_bytes_per_s)
        if plan is not None:
            n = len(plan.rows)
            out_bytes, in_bytes = int(rng.integers(1, worst_out + 1)) * n, int(rng.integers(1, worst_in + 1)) * n
            ask_id = 1 + pupil.counters.asks
            pupil.sent(ask_id, plan, out_bytes, now_s)
            pupil.answer(ask_id, truths(plan), in_bytes, now_s)
            total_bytes += out_bytes + in_bytes
    assert total_bytes <= 400 * rate_bytes_per_s + 2 * 8 * (worst_out + worst_in)
    busy = min(400 * rate_bytes_per_s, 3 * 10 * 400 * (worst_out + worst_in) / 2)
    assert total_bytes > 0.5 * busy, "a budget is there to be used"


def test_no_budget_no_question_even_if_some_is_left():
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    assert rich(pupil, 5.0) is not None
    assert pupil.plan(6.0, 0.0) is None
    assert pupil.plan(7.0, float("nan")) is None


def test_the_most_uncertain_are_asked_first_and_the_rest_forgotten():
    pupil = student(capacity=16, batch=4)
    for kind in range(40):
        pupil.saw(kind, obs(kind), float(kind % 20))
    plan = rich(pupil, 5.0)
    assert sorted(kind_of(row) % 20 for row in plan.rows) == [18, 18, 19, 19]
    assert pupil.counters.forgotten >= 24


def test_what_is_no_number_is_most_uncertain():
    pupil = student(batch=1)
    pupil.saw(1, obs(1), 1e9)
    pupil.saw(2, obs(2), float("nan"))
    pupil.saw(3, obs(3), 1.0)
    assert kind_of(rich(pupil, 5.0).rows[0]) == 2


def test_one_question_serves_all_transitions_that_look_alike():
    pupil = student()
    for seq in range(5):
        assert pupil.saw(seq, obs(7), 0.1) == []
    plan = rich(pupil, 5.0)
    assert plan.seqs == ((0, 1, 2, 3, 4),)
    pupil.sent(1, plan, 10, 5.0)
    assert pupil.saw(5, obs(7), 0.1) == []
    assert pupil.plan(6.0, 1e9) is None, "it is on its way already"
    assert [seq for seq, _ in pupil.answer(1, truths(plan), 10, 6.0)] == [0, 1, 2, 3, 4, 5]
    [(seq, q)] = pupil.saw(6, obs(7), 0.1)
    assert seq == 6
    assert np.array_equal(q, truth(7))
    assert rich(pupil, 9.0) is None


def test_late_is_used_twice_is_counted():
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    plan = rich(pupil, 0.0)
    pupil.sent(1, plan, 10, 0.0)
    assert pupil.expire(9.9) == 0
    assert pupil.expire(10.0) == 1
    again = rich(pupil, 12.0)
    assert kind_of(again.rows[0]) == 1
    pupil.sent(2, again, 10, 12.0)
    assert [seq for seq, _ in pupil.answer(1, truths(plan), 10, 13.0)] == [1]
    assert pupil.answer(2, truths(again), 10, 13.0) == []
    assert pupil.answer(1, truths(plan), 10, 13.0) == []
    assert pupil.faults == {"answer-twice": 1}
    assert (pupil.counters.expired, pupil.counters.late, pupil.counters.joined) == (1, 1, 1)


def test_a_wrong_answer_leaves_the_question_open_for_a_right_one():
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    plan = rich(pupil, 0.0)
    pupil.sent(1, plan, 10, 0.0)
    assert pupil.answer(1, np.full((1, 3), np.inf, np.float32), 10, 1.0) == []
    assert pupil.answer(1, np.ones((2, 3), np.float32), 10, 1.0) == []
    assert pupil.faults == {"answer-not-finite": 1, "answer-count": 1}
    assert [seq for seq, _ in pupil.answer(1, truths(plan), 10, 2.0)] == [1]


def test_a_part_filled_question_waits_for_more():
    pupil = student(wait_s=2.0, batch=2)
    pupil.plan(0.0, 1e9)
    pupil.saw(1, obs(1), 1.0)
    assert pupil.plan(1.9, 1e9) is None
    assert pupil.plan(2.0, 1e9) is not None
    pupil.saw(2, obs(2), 1.0)
    pupil.sent(1, pupil.plan(2.1, 1e9), 10, 2.1)
    pupil.saw(3, obs(3), 1.0)
    assert pupil.plan(3.0, 1e9) is None
    pupil.saw(4, obs(4), 1.0)
    assert pupil.plan(3.1, 1e9) is not None, "a full one does not wait"


def test_a_plan_that_was_never_sent_costs_nothing():
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    assert rich(pupil, 1.0) is not None
    assert rich(pupil, 1.0) is not None
    assert pupil.counters.asks == 0


def test_a_clock_that_jumps_back_earns_nothing():
    pupil = student(batch=1)
    pupil.plan(1000.0, 1.0)
    pupil.saw(1, obs(1), 1.0)
    for now_s in (0.0, 999.0, 5.0, 1000.0) * 20:
        assert pupil.plan(now_s, 1.0) is None


def test_what_is_remembered_is_not_asked():
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    [(seq, q)] = pupil.remember(digest(obs(1).tobytes()), truth(1))
    assert (seq, q.tolist()) == (1, truth(1).tolist())
    assert pupil.saw(2, obs(1), 1.0)[0][0] == 2
    assert rich(pupil, 5.0) is None


def test_what_cannot_be_asked_is_waited_for_no_more():
    pupil = student()
    for seq, kind in enumerate((1, 2, 2, 3)):
        pupil.saw(seq, obs(kind), 1.0)
    plan = rich(pupil, 1.0)
    pupil.sent(1, plan, 10, 1.0)
    pupil.forget([digest(obs(kind).tobytes()) for kind in (2, 9)])
    assert pupil.counters.forgotten == 2
    assert [seq for seq, _ in pupil.answer(1, truths(plan), 10, 2.0)] == [
        seq for seqs, row in zip(plan.seqs, plan.rows, strict=True) for seq in seqs if kind_of(row) != 2
    ]
    assert rich(pupil, 3.0) is None


def test_forgotten_numbers_do_not_come_back():
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    plan = rich(pupil, 0.0)
    pupil.sent(1, plan, 10, 0.0)
    pupil.forget_transitions()
    assert pupil.saw(1, obs(2), 1.0) == []
    assert pupil.answer(1, truths(plan), 10, 1.0) == []
    assert pupil.saw(3, obs(1), 1.0)[0][0] == 3, "the answer itself is kept"


@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=50, deadline=None)
def test_any_order_and_any_doubles_join_the_same(order, doubled):
    """Twelve questions, answered in any order, some twice, some after their time: the joined set is always the same."""
    pupil, plans, joined = student(batch=2, max_pending=12), {}, []
    for seq in range(48):
        pupil.saw(seq, obs(seq // 2), 1.0)
    for ask_id in range(12):
        plans[ask_id] = rich(pupil, 10.0 * ask_id + 1)
        pupil.sent(ask_id, plans[ask_id], 10, 10.0 * ask_id + 1)
    for position, ask_id in enumerate(order):
        pupil.expire(200.0 if position % 3 == 0 else 0.0)
        for _ in range(1 + doubled[position]):
            joined += pupil.answer(ask_id, truths(plans[ask_id]), 10, 200.0)
    assert sorted((seq, kind_of_truth(q)) for seq, q in joined) == [(seq, seq // 2) for seq in range(48)]


def test_what_shares_its_planes_is_asked_along():
    pupil = student(batch=4)
    kept = np.random.default_rng(0).integers(2, 250, (6, 4, 4, 2)).astype(np.uint8)
    pupil.saw(99, kept[0], 1.0)
    plan = rich(pupil, 5.0)
    pupil.sent(99, plan, 200, 5.0)  # planes are dear here
    pupil.answer(99, np.zeros((1, 3), np.float32), 4, 6.0)
    for i in range(1, 6):
        pupil.saw(i, kept[i], 1.0)
    twin = np.stack([kept[5][:, :, 0], kept[1][:, :, 1]], axis=2)  # nothing in it that two others do not show
    pupil.saw(6, twin, 0.9)
    pupil.saw(7, kept[5][:, :, ::-1], 0.9)
    chosen = {seqs[0] for seqs in rich(pupil, 20.0).seqs}
    assert {5, 7} <= chosen or {1, 5, 6} <= chosen, "value a byte, not value"


def test_what_is_not_worth_its_bytes_is_joined_only_if_known():
    pupil = student()
    assert pupil.saw(1, obs(1), 0.0, ask=False) == []
    assert rich(pupil, 5.0) is None and pupil.counters.spared == 1
    pupil.remember(digest(obs(1).tobytes()), truth(1))
    assert pupil.saw(2, obs(1), 0.0, ask=False)[0][0] == 2


def test_a_teacher_found_out_leaves_nothing():
    pupil = student(batch=1)
    pupil.saw(1, obs(1), 1.0)
    first = rich(pupil, 1.0)
    pupil.sent(1, first, 10, 1.0)
    pupil.answer(1, truths(first), 10, 2.0)
    assert list(pupil.fresh) == [digest(obs(1).tobytes())]
    pupil.saw(2, obs(2), 1.0)
    second = rich(pupil, 5.0)
    pupil.sent(2, second, 10, 5.0)
    pupil.forget_answers()
    assert not pupil.fresh
    assert pupil.answer(2, truths(second), 10, 6.0) == [], "under way when it was found out"
    assert pupil.saw(3, obs(1), 1.0) == [], "asked anew"
    assert {kind_of(row) for row in (rich(pupil, 9.0).rows)} <= {1, 2}


def test_a_refused_question_waits_no_more_but_takes_a_true_answer():
    pupil = student(max_pending=1)
    pupil.saw(1, obs(1), 1.0)
    plan = rich(pupil, 1.0)
    pupil.sent(1, plan, 10, 1.0)
    pupil.give_up(1)
    pupil.give_up(7)
    assert rich(pupil, 3.0) is not None, "may be asked again"
    assert [seq for seq, _ in pupil.answer(1, truths(plan), 10, 4.0)] == [1]


def test_answers_that_contradict_one_another_are_counted():
    pupil = student()
    name = digest(obs(1).tobytes())
    for row in (truth(1), truth(1) * 1.001, truth(2)):
        pupil.remember(name, row)
    assert (pupil.counters.repeats, pupil.counters.contradictions) == (2, 1)


def test_the_caller_may_reuse_its_array():
    pupil, row = student(), obs(3)
    pupil.saw(1, row, 1.0)
    row[:] = 255
    assert kind_of(rich(pupil, 5.0).rows[0]) == 3


def test_wrong_use_is_a_usage_error():
    pupil = student(max_pending=1)
    for row in (np.zeros(SHAPE, np.float32), np.zeros((4, 4), np.uint8)):
        with pytest.raises(UsageError):
            pupil.saw(1, row, 1.0)
    pupil.saw(1, obs(1), 1.0)
    plan = rich(pupil, 1.0)
    pupil.sent(1, plan, 10, 1.0)
    with pytest.raises(UsageError):
        pupil.sent(1, plan, 10, 1.0)
    with pytest.raises(UsageError):
        pupil.sent(2, plan, 10, 1.0)
    with pytest.raises(UsageError):
        student(batch=0)
    with pytest.raises(UsageError):
        student(timeout_s=float("nan"))


def test_what_nobody_asked_for_does_not_cost_the_right_to_ask() -> None:
    pupil = student()
    pupil.saw(1, obs(1), 1.0)
    assert pupil.plan(0.0, 1000.0) is None, "no budget has come yet"
    assert pupil.answer(77, truth(1)[None], 10 << 20, 0.5) == []
    assert pupil.plan(10.0, 1000.0) is not None
