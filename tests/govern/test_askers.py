from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import bus, wire
from edgert.errors import MessageError
from edgert.govern import askers
from edgert.govern.askers import ACTIVE_S, QUESTION_BYTES, RETRY_MOST_S, TRAINER, Askers
from edgert.values import Answer, Ask, Budget

BYTES_PER_S = 4000.0


def know(size: int, task: str = "t") -> bytes:
    return wire.encode(wire.KnowAsk(task=task, obs_shape=(1, 1, 1), n_actions=2, count=1, codec=1, data=bytes(size)))


def ask(
    state: Askers, number: int, payload: bytes, now_s: float, total: float = BYTES_PER_S, ask_id: int = 5
) -> tuple[Askers, bus.Publish | bus.TellAsker]:
    asked = bus.Asked(number, Ask(ask_id, payload))
    return askers.ask(state, asked, fleet="f", device="d", total_bytes_per_s=total, now_s=now_s)


def here(state: Askers, numbers: tuple[int, ...], now_s: float, total: float = BYTES_PER_S) -> Askers:
    return askers.here(state, numbers, total_bytes_per_s=total, now_s=now_s)


def answered(
    state: Askers, payload: bytes, correlation: bytes | None, now_s: float = 0.0
) -> tuple[Askers, bus.Effect | None]:
    message = bus.Received("x", payload, correlation)
    return askers.answered(state, message, total_bytes_per_s=BYTES_PER_S, now_s=now_s)


def why(effect: bus.Effect) -> wire.KnowAnswer:
    assert isinstance(effect, bus.TellAsker) and isinstance(effect.told, Answer)
    return wire.decode(effect.told.payload, wire.KnowAnswer)[0]


def test_a_question_goes_out_and_its_answer_comes_back_to_who_asked() -> None:
    state = here(Askers(), (7, 8), 0.0)
    state, sent = ask(state, 7, know(100), 0.0)
    assert isinstance(sent, bus.Publish) and sent.topic == "edgert/v1/f/d/know/ask/t"
    assert sent.response_topic == "edgert/v1/f/d/know/answer/t"
    owed = state.accounts[7].tokens_bytes
    state, told = answered(state, b"answer", sent.correlation)
    assert told == bus.TellAsker(7, Answer(5, b"answer"))
    assert state.accounts[7].tokens_bytes == owed - len(b"answer")
    gone, nobody = answered(here(state, (8,), 1.0), b"answer", sent.correlation)
    assert nobody is None and 7 not in gone.accounts


def test_the_trainers_answers_are_the_trainers() -> None:
    sent = askers.publish("f", "d", "t", b"q", (9).to_bytes(8, "big"))
    assert answered(Askers(), b"a", sent.correlation)[1] == bus.Tell("trainer", Answer(9, b"a"))
    for nonsense in (None, b"", bytes(7), bytes(17)):
        with pytest.raises(MessageError, match="without the correlation data"):
            answered(Askers(), b"a", nonsense)
    # A correlation that names the trainer in the words of a program reaches nobody.
    state = askers.asked(Askers(), TRAINER, 0.0)
    assert answered(state, b"a", bytes(16)) == (state, None)


def test_who_asks_shares_and_who_is_silent_does_not() -> None:
    state = here(Askers(), (7, 8), 0.0)
    budget = Budget(max_exit=2, train_steps_hz=9.0, teacher_bytes_per_s=BYTES_PER_S)

    def told(state: Askers, now_s: float) -> list[float]:
        said = askers.budgets(state, budget, now_s)
        assert isinstance(said[0], bus.Tell) and said[0].role == "trainer"
        return [each.told.teacher_bytes_per_s for each in said]  # type: ignore[union-attr]  # all are budgets

    assert told(state, 0.0) == [BYTES_PER_S] * 3
    state = askers.asked(state, TRAINER, 1.0)
    assert told(state, 1.0) == [BYTES_PER_S, BYTES_PER_S / 2, BYTES_PER_S / 2]
    state, _ = ask(state, 7, know(1), 2.0)
    assert told(state, 2.0) == [BYTES_PER_S / 2, BYTES_PER_S / 2, BYTES_PER_S / 3]
    assert told(state, 2.0 + ACTIVE_S) == [BYTES_PER_S] * 3
    assert told(here(state, (), 2.0), 2.0) == [BYTES_PER_S]


@pytest.mark.parametrize(
    ("payload", "ask_id", "error"),
    [
        (b"junk", 5, "malformed-data"),
        (know(1, task="a/b"), 5, "malformed-data"),
        (know(1, task="+"), 5, "malformed-data"),
        (know(1), -1, "malformed-data"),
        (know(1), 1 << 64, "malformed-data"),
        (know(QUESTION_BYTES), 5, "too-many"),
    ],
)
def test_what_makes_no_sense_does_not_cross_the_link_and_costs_nothing(payload: bytes, ask_id: int, error: str) -> None:
    state = here(Askers(), (7,), 0.0)
    after, effect = ask(state, 7, payload, 0.0, ask_id=ask_id)
    assert why(effect).error == error and after.accounts[7].tokens_bytes == 0.0


def test_without_a_budget_nothing_passes() -> None:
    state = here(Askers(), (7,), 0.0)
    for effect in (ask(state, 7, know(1), 0.0, total=0.0)[1], ask(state, 99, know(1), 0.0)[1]):
        assert (why(effect).error, why(effect).retry_s) == ("over-budget", 1.0)


def test_a_refusal_says_when_to_come_again_and_then_it_passes() -> None:
    state = here(Askers(), (7,), 0.0)
    state, sent = ask(state, 7, know(20_000), 0.0)
    assert isinstance(sent, bus.Publish)
    state, refused = ask(state, 7, know(10), 1.0)
    assert why(refused).error == "over-budget"
    assert isinstance(ask(state, 7, know(10), 1.0 + why(refused).retry_s * 0.99)[1], bus.TellAsker)
    assert isinstance(ask(state, 7, know(10), 1.001 + why(refused).retry_s)[1], bus.Publish)


def test_coming_anew_sheds_no_debt() -> None:
    state = here(Askers(), (7,), 0.0)
    state, _ = ask(state, 7, know(20_000), 0.0)
    state = here(here(state, (), 1.0), (8,), 1.0)
    refused = why(ask(state, 8, know(10), 1.0)[1])
    assert refused.error == "over-budget"
    assert isinstance(ask(state, 8, know(10), 1.001 + refused.retry_s)[1], bus.Publish)


def test_any_number_that_come_and_go_spend_one_budget() -> None:
    state, spent, payload = Askers(), 0, know(30_000)
    for second in range(60):
        numbers = tuple(range(1 + 16 * second, 17 + 16 * second))
        state = here(state, numbers, float(second))
        for number in numbers:
            state, effect = ask(state, number, payload, float(second))
            spent += len(payload) * isinstance(effect, bus.Publish)
        state = here(state, (), float(second))
    assert BYTES_PER_S * 60 < spent <= BYTES_PER_S * 60 + 16 * len(payload)


def test_a_debt_that_time_has_paid_is_not_left_behind() -> None:
    state, _ = ask(here(Askers(), (7,), 0.0), 7, know(20_000), 0.0)
    assert here(state, (), 100.0).owed_bytes == 0.0
    state = here(state, (), 1.0)
    assert state.owed_bytes > 0 and here(state, (8,), 100.0).owed_bytes == 0.0


def test_who_leaves_before_its_answer_leaves_the_debt() -> None:
    state, sent = ask(here(Askers(), (7,), 0.0), 7, know(10), 0.0)
    assert isinstance(sent, bus.Publish)
    state, nobody = answered(here(state, (), 1.0), bytes(100_000), sent.correlation, 1.0)
    state = here(state, (8,), 1.0)
    refused = why(ask(state, 8, know(10), 1.0)[1])
    assert nobody is None and refused.retry_s == pytest.approx(100_000 / BYTES_PER_S, rel=0.01)
    # Answers that nobody asked for do not shut the door for good.
    for _ in range(100):
        state, _ = answered(state, bytes(1_000_000), bytes(7) + b"\1" + bytes(8), 1.0)
    assert why(ask(state, 8, know(10), 1.0)[1]).retry_s == RETRY_MOST_S
    assert isinstance(ask(state, 8, know(10), 1.001 + RETRY_MOST_S)[1], bus.Publish)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30_000), st.floats(0, 5), st.booleans()), max_size=60),
    st.sampled_from([100.0, BYTES_PER_S]),
)
def test_over_any_time_programs_spend_their_budget_and_a_question_each(
    asks: list[tuple[int, int, float, bool]], total: float
) -> None:
    state, now_s, spent, largest = here(Askers(), (1, 2, 3), 0.0), 0.0, 0, 0
    for number, size, wait_s, leaves in asks:
        now_s += wait_s
        payload = know(size)
        state, effect = ask(state, number, payload, now_s, total)
        if isinstance(effect, bus.Publish):
            spent, largest = spent + len(payload), max(largest, len(payload))
        if leaves:
            others = tuple(each for each in (1, 2, 3) if each != number)
            state = here(here(state, others, now_s, total), (1, 2, 3), now_s, total)
    # Each alone may fill its share of all of it while the others are silent: three times the budget is the worst case,
    # and it needs all of them to fall silent in turn.
    saved = 3 * askers.BURST_S * total
    assert spent <= 3 * total * now_s + saved + 3 * largest


def test_everybody_asking_all_the_time_spends_one_budget() -> None:
    state, spent, largest = here(Askers(), (1, 2, 3), 0.0), 0, 0
    payload = know(500)
    for step in range(6000):
        now_s = step / 10
        for number in (1, 2, 3):
            state, effect = ask(state, number, payload, now_s)
            spent += len(payload) * isinstance(effect, bus.Publish)
            largest = max(largest, len(payload))
    assert 0.95 * BYTES_PER_S * 600 < spent < BYTES_PER_S * (600 + askers.BURST_S) + 3 * largest


def test_state_can_be_stored() -> None:
    state, _ = ask(here(Askers(), (7,), 0.0), 7, know(1), 0.0)
    assert msgspec.json.decode(msgspec.json.encode(state), type=Askers) == state
