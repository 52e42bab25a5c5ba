"""The tutor against teachers of every kind: strangers, liars, quitters and those that refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import wire
from edgert.knowledge import codec
from edgert.knowledge import tutor as module
from edgert.knowledge.codec import digest
from edgert.knowledge.student import Student
from edgert.knowledge.tutor import Asks, Tutor
from edgert.nets import F32

SHAPE = (4, 4, 2)
TAU = 0.1
RICH = 1e9


def obs(kind: int) -> np.ndarray:
    row = np.zeros(SHAPE, np.uint8)
    row.reshape(-1)[:4] = list(kind.to_bytes(4, "big"))
    return row


def make(weighing: str = "measured", batch: int = 4, vouched: tuple[str, ...] = ()) -> Tutor:
    student = Student(capacity=1000, batch=batch, timeout_s=10.0, max_pending=4, wait_s=0.0)
    asks = Asks("game", SHAPE, 3, "abcd")
    return Tutor(student, asks, gamma=0.9, temperature=TAU, weighing=weighing, vouched=vouched)  # type: ignore[arg-type]  # a literal


class Talk:
    """Time, numbers of questions, and what was asked."""

    def __init__(self, tutor: Tutor) -> None:
        self.tutor, self.now_s, self.ask_id, self.seq = tutor, 1000.0, 0, 0
        tutor.plan(self.now_s, RICH)

    def see(self, kinds: range) -> None:
        for kind in kinds:
            self.seq += 1
            self.tutor.student.saw(self.seq, obs(kind), 1.0)

    def ask(self, passed_s: float = 1.0) -> int | None:
        self.now_s += passed_s
        plan = self.tutor.plan(self.now_s, RICH)
        if plan is None:
            return None
        self.ask_id += 1
        payload = self.tutor.question(plan)
        self.rows = plan.rows
        self.tutor.student.sent(self.ask_id, plan, len(payload), self.now_s)
        return self.ask_id

    def hear(self, ask_id: int, rows: F32, *, teacher: str = "t", kind: str = "q") -> list[tuple[int, F32]]:
        told = wire.KnowAnswer(teacher=teacher, count=len(rows), codec=1, data=codec.encode_q(rows), kind=kind)  # type: ignore[arg-type]  # a literal
        return self.tutor.answer(ask_id, wire.encode(told), self.now_s)

    def refuse(self, ask_id: int, error: str, retry_s: float = 0.0) -> None:
        told = wire.KnowAnswer(teacher="t", count=0, codec=1, data=b"", error=error, retry_s=retry_s)
        assert self.tutor.answer(ask_id, wire.encode(told), self.now_s) == []


def told(n: int, seed: int = 0, columns: int = 3) -> F32:
    return np.random.default_rng(seed).normal(0, 1, (n, columns)).astype(np.float32)


def test_a_question_says_whose_actions_are_meant() -> None:
    talk = Talk(make())
    talk.see(range(4))
    talk.now_s += 1
    plan = talk.tutor.plan(talk.now_s, RICH)
    assert plan is not None
    asked, _ = wire.decode(talk.tutor.question(plan), wire.KnowAsk)
    assert (asked.task, asked.obs_shape, asked.n_actions, asked.actions, asked.count) == ("game", SHAPE, 3, "abcd", 4)
    decoded = codec.CODECS[asked.codec].decode_obs(asked.data, asked.count, asked.obs_shape)
    assert all((a == b).all() for a, b in zip(decoded, plan.rows, strict=True))


def test_values_come_with_their_state() -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None
    rows = told(4)
    joined = talk.hear(ask_id, rows)
    assert len(joined) == 4 and talk.tutor.teacher == "q/t"
    assert {tuple(row[:3]) for _, row in joined} == {tuple(row) for row in rows}
    assert all(row[3] == row[:3].max() for _, row in joined)


def test_a_policy_is_aimed_at_by_its_own_softmax() -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None
    rows = told(4, columns=4)
    joined = talk.hear(ask_id, rows, kind="policy")
    by_value = {float(row[3]): row[:3] for row in rows}
    for _, row in joined:
        assert np.allclose(row[:3] / np.float32(TAU), by_value[float(row[3])], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "columns"), [("q", 4), ("policy", 3)], ids=["values too many", "a policy without a value"]
)
def test_columns_must_fit_the_kind(kind: str, columns: int) -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None and talk.hear(ask_id, told(4, columns=columns), kind=kind) == []
    assert talk.tutor.faults == {"answer-malformed": 1} and len(talk.tutor.news) == 1


@pytest.mark.parametrize("error", ["actions", "obs-shape", "n-actions", "unknown-task"])
def test_who_does_not_fit_is_left_alone_for_minutes_and_it_is_said_once(error: str) -> None:
    talk = Talk(make())
    talk.see(range(100))
    asked_s = []
    for _ in range(3600):
        ask_id = talk.ask()
        if ask_id is not None:
            asked_s.append(talk.now_s)
            talk.refuse(ask_id, error)
    assert len(asked_s) < 20, "an hour of refusals costs a few questions"
    assert min(np.diff(asked_s)[4:]) >= 300
    assert len(talk.tutor.news) == 1 and error in talk.tutor.news[0]
    assert talk.tutor.faults[f"refused-{error}"] == len(asked_s)


def test_an_older_teacher_is_asked_again_at_once_in_the_first_codec() -> None:
    talk = Talk(make())
    talk.tutor._codec = codec.CODEC_MIXED
    talk.see(range(100))
    ask_id = talk.ask()
    assert ask_id is not None
    talk.refuse(ask_id, "codec")
    talk.now_s += 0.1
    plan = talk.tutor.plan(talk.now_s, RICH)
    assert plan is not None
    assert wire.decode(talk.tutor.question(plan), wire.KnowAsk)[0].codec == codec.CODEC_FRAMES_ZSTD


def test_a_budget_is_waited_for_as_long_as_the_teacher_says() -> None:
    talk = Talk(make())
    talk.see(range(100))
    ask_id = talk.ask()
    assert ask_id is not None
    talk.refuse(ask_id, "over-budget", retry_s=7.0)
    assert talk.ask(6.5) is None
    assert talk.ask(0.6) is not None
    talk.refuse(talk.ask_id, "over-budget", retry_s=80_000.0)
    assert talk.ask(299.0) is None and talk.ask(2.0) is not None, "nobody silences us for a day"


def test_a_good_answer_ends_the_pause() -> None:
    talk = Talk(make())
    talk.see(range(100))
    first, second = talk.ask(), talk.ask()
    assert first is not None and second is not None
    talk.refuse(first, "unknown-task")
    assert talk.ask() is None
    talk.hear(second, told(4))
    assert talk.ask() is not None


def test_refusals_cannot_fill_the_memory() -> None:
    talk = Talk(make())
    for i in range(500):
        talk.see(range(4 * i, 4 * i + 4))
        ask_id = talk.ask(module.LONGEST_REFUSED_S)
        assert ask_id is not None
        talk.refuse(ask_id, f"reason {i}")
    assert len(talk.tutor.faults) <= 2 and len(talk.tutor.news) == 1


def test_another_teacher_beside_ours_is_not_listened_to_until_ours_is_silent() -> None:
    talk = Talk(make())
    talk.see(range(12))
    first, second, third = talk.ask(), talk.ask(), talk.ask()
    assert first is not None and second is not None and third is not None
    assert len(talk.hear(first, told(4))) == 4
    assert talk.hear(second, told(4), teacher="other") == []
    assert talk.tutor.faults["teacher-other"] == 1 and talk.tutor.teacher == "q/t"
    talk.now_s += module.OTHER_S
    assert len(talk.hear(third, told(4), teacher="other")) in (0, 4)
    assert talk.tutor.teacher == "q/other"
    assert talk.tutor.student.saw(99, obs(int.from_bytes(bytes(4), "big")), 1.0) == [], "what ours said is forgotten"


def test_nobody_who_was_not_asked_takes_the_place_of_a_silent_teacher() -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None and len(talk.hear(ask_id, told(4))) == 4
    talk.now_s += module.OTHER_S
    assert talk.hear(ask_id + 1, told(4), teacher="other") == []
    assert talk.hear(ask_id, told(4), teacher="other") == []
    assert talk.tutor.teacher == "q/t"
    assert talk.tutor.student.faults == {"answer-unknown": 1, "answer-twice": 1}
    assert talk.tutor.student.saw(99, obs(0), 1.0) != [], "what ours said is still known"


def test_nobody_who_was_not_asked_silences_us() -> None:
    talk = Talk(make())
    talk.see(range(4))
    talk.refuse(77, "unknown-task", retry_s=300.0)
    assert talk.ask() is not None and not talk.tutor.faults


def test_an_answer_to_more_than_was_asked_is_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None
    payload = wire.encode(wire.KnowAnswer(teacher="t", count=4_000, codec=1, data=codec.encode_q(told(4_000))))
    monkeypatch.setattr(module.codec, "CODECS", {1: None})
    assert talk.tutor.answer(ask_id, payload, talk.now_s) == []
    assert talk.tutor.faults == {"answer-malformed": 1} and "where 4 were asked" in talk.tutor.news[0]


def test_what_was_refused_may_be_asked_again_once_the_pause_is_over() -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None and talk.ask() is None
    talk.refuse(ask_id, "draining")
    assert talk.ask(0.5) is None
    assert talk.ask(0.6) == ask_id + 1, "long before the question's time was up"


@pytest.mark.parametrize("size", [1e15, 3e38])
def test_numbers_beyond_all_sense_are_refused_as_such(size: float) -> None:
    talk = Talk(make())
    talk.see(range(4))
    ask_id = talk.ask()
    assert ask_id is not None and talk.hear(ask_id, np.full((4, 3), -size, np.float32)) == []
    assert talk.tutor.student.faults == {"answer-not-finite": 1}


def test_nothing_is_chosen_while_nothing_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(make())
    found_out(talk)
    talk.tutor._quiet_until_s = talk.now_s + 50.0
    talk.see(range(5000, 5100))

    def chosen(*_: object) -> tuple[bytes, ...]:
        raise AssertionError("it takes milliseconds, in every turn of the loop that trains")

    monkeypatch.setattr(Student, "_cheapest", chosen)
    for _ in range(100):
        assert talk.ask() is None
    with pytest.raises(AssertionError):
        talk.ask(module.LOOK_S)


def found_out(talk: Talk) -> str:
    """Let the teacher be found out by saying the same of everything."""
    talk.see(range(1000, 1100))
    while not talk.tutor.trust.off:
        ask_id = talk.ask()
        assert ask_id is not None
        talk.hear(ask_id, np.ones((4, 3), np.float32))
    return talk.tutor.review(talk.now_s)


def test_who_was_found_out_is_forgotten_left_alone_and_asked_little_on_probation() -> None:
    talk = Talk(make())
    assert found_out(talk) == "q/t"
    assert talk.tutor.weight == 0.0 and talk.tutor.teacher == "" and "constant" in talk.tutor.news[-1]
    assert talk.tutor.student.saw(5000, obs(1000), 1.0) == [], "forgotten"
    assert talk.tutor.review(talk.now_s) == "", "said once"
    questions = 0
    for _ in range(1700):
        ask_id = talk.ask()
        if ask_id is not None:
            questions += 1
            assert talk.hear(ask_id, told(4)) == [], "not listened to"
    assert 5 < questions <= 1700 / module.LOOK_S + 1, "now and then it is seen whether another is there"
    talk.now_s += 200
    ask_id = talk.ask()
    assert ask_id is not None and len(talk.hear(ask_id, told(4))) >= 4, "probation"
    assert talk.tutor.weight == 0.0
    assert found_out(talk) == "q/t"
    assert talk.tutor._out["q/t"].times == 2 and talk.tutor._out["q/t"].until_s - talk.now_s == 2 * module.PROBATION_S


def test_another_teacher_is_welcome_while_one_is_out() -> None:
    talk = Talk(make())
    found_out(talk)
    talk.now_s += module.LOOK_S
    ask_id = talk.ask()
    assert ask_id is not None and len(talk.hear(ask_id, told(4), teacher="better")) == 4
    assert talk.tutor.teacher == "q/better"


def test_verdicts_survive_a_restart_and_junk_does_not() -> None:
    talk = Talk(make())
    found_out(talk)
    again = Talk(make())
    assert again.tutor.restore(talk.tutor.pack(), again.now_s)
    again.see(range(4))
    ask_id = again.ask()
    if ask_id is not None:
        assert again.hear(ask_id, told(4)) == []
    for junk in (b"", b"{}", b"\xff", talk.tutor.pack()[:-3]):
        assert not again.tutor.restore(junk, 0.0)
    assert again.tutor._out


def test_for_comparison_a_teacher_may_be_followed_whatever_it_says() -> None:
    tutor = make("full")
    assert tutor.weight == 1.0 and not tutor.proving
    talk = Talk(tutor)
    talk.see(range(400))
    for _ in range(60):
        ask_id = talk.ask()
        assert ask_id is not None
        talk.hear(ask_id, np.ones((4, 3), np.float32))
    assert tutor.review(talk.now_s) == "" and tutor.weight == 1.0


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(10)), st.lists(st.integers(0, 3), min_size=10, max_size=10), st.randoms())
def test_whatever_the_link_does_the_same_is_joined(order: list[int], copies: list[int], chance: object) -> None:
    """Answers out of order, twice, late or never, between junk: each is joined once, to what it is about."""
    talk = Talk(make())
    talk.tutor.student._max_pending = 10
    rows, payload_of = {}, {}
    talk.see(range(40))
    for _ in range(10):
        ask_id = talk.ask()
        assert ask_id is not None
        kinds = [int.from_bytes(row.reshape(-1)[:4].tobytes(), "big") for row in talk.rows]
        rows[ask_id] = np.stack([np.array([k, -k, k / 3], np.float32) for k in kinds])
        told_ = wire.KnowAnswer(teacher="t", count=4, codec=1, data=codec.encode_q(rows[ask_id]))
        payload_of[ask_id] = wire.encode(told_)
    talk.now_s += 30
    joined: list[tuple[int, F32]] = []
    for i in order:
        for _ in range(copies[i]):
            payload = payload_of[i + 1]
            talk.tutor.answer(i + 1, payload[:-5], talk.now_s)
            talk.tutor.answer(i + 77, payload, talk.now_s)
            joined += talk.tutor.answer(i + 1, payload, talk.now_s)
    # Numbers were given to observations in order, so what is right of each is known without the tutor.
    heard = [int(row[0]) for i in range(10) if copies[i] for row in rows[i + 1]]
    assert sorted(seq - 1 for seq, _ in joined) == sorted(heard)
    for seq, row in joined:
        assert row.tolist() == pytest.approx([seq - 1, 1 - seq, (seq - 1) / 3, seq - 1])
    assert {digest(obs(kind).tobytes()) for kind in heard} == set(talk.tutor.student.fresh)


def test_only_the_one_that_is_vouched_for_gets_credit_and_only_until_it_was_found_out() -> None:
    for name, weight in (("mine", 1.0), ("other", 0.0)):
        talk = Talk(make(vouched=("mine",)))
        talk.see(range(8))
        ask = talk.ask()
        assert ask is not None
        assert talk.tutor.weight == 0.0, "nobody answered yet"
        talk.hear(ask, told(4), teacher=name)
        assert talk.tutor.weight == weight
        again = make(vouched=("mine",))
        assert again.restore(talk.tutor.pack(), talk.now_s) and again.weight == weight
    talk = Talk(make(vouched=("mine",)))
    talk.see(range(400))
    for i in range(80):  # the same for every action: nothing to learn from
        ask = talk.ask()
        assert ask is not None
        talk.hear(ask, np.ones((len(talk.rows), 3), np.float32) * i, teacher="mine")
        if talk.tutor.review(talk.now_s):
            break
    assert "teacher-off-constant" in talk.tutor.faults
    talk.now_s += module.LONGEST_PROBATION_S
    ask = talk.ask()
    assert ask is not None
    talk.hear(ask, told(len(talk.rows)), teacher="mine")
    assert talk.tutor.teacher == "q/mine" and talk.tutor.weight == 0.0


def test_as_much_is_asked_at_once_as_fits() -> None:
    talk = Talk(make(batch=8))
    talk.see(range(8))
    talk.now_s += 1
    plan = talk.tutor.plan(talk.now_s, RICH)
    assert plan is not None
    whole = len(talk.tutor.question(plan))
    assert talk.tutor.fitting(plan, whole) == (plan, talk.tutor.question(plan))
    fitting = talk.tutor.fitting(plan, whole - 1)
    assert fitting is not None and len(fitting[1]) < whole
    assert [len(column) for column in fitting[0]] == [4, 4, 4] and fitting[0].digests == plan.digests[:4]
    assert talk.tutor.fitting(plan, 1) is None
    assert talk.tutor.faults == {"observation-too-large": 1} and len(talk.tutor.news) == 1
    again = talk.tutor.plan(talk.now_s + 1, RICH)
    assert again is not None and plan.digests[0] not in again.digests
