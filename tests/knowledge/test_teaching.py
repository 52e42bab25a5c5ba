"""The teacher's answers: right for whom they are right for, named refusals for the others, one run of the model."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.errors import ArtifactError, UsageError
from edgert.knowledge import codec
from edgert.knowledge.teaching import Subject, TeacherCache, answer_all, refusal

SHAPE = (5, 5, 2)
N_ACTIONS = 3
TEACHER = "0123456789abcdef"
ENTRY = 208 + 4 * N_ACTIONS  # bytes


def batch(*kinds: int) -> np.ndarray:
    obs = np.zeros((len(kinds), *SHAPE), np.uint8)
    obs[:, 0, 0, 0] = kinds
    return obs


def ask(obs: np.ndarray, **changes) -> wire.KnowAsk:
    said = {"task": "game", "obs_shape": SHAPE, "n_actions": N_ACTIONS, "count": len(obs), "codec": 1}
    return wire.KnowAsk(**({**said, "data": codec.encode_obs(obs)} | changes))


class Model:
    """Values an observation by its first pixel, and remembers what it was run for."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        kinds = obs[:, 0, 0, 0].astype(np.float32)
        self.runs.append(kinds.astype(int).tolist())
        q = np.stack([kinds, kinds * 2, -kinds], 1)
        q[kinds == 99] = np.nan
        return q


def subject(model, **changes) -> Subject:
    return Subject(
        **({"task": "game", "teacher": TEACHER, "obs_shape": SHAPE, "n_actions": N_ACTIONS} | changes), model=model
    )


def answer(ask: wire.KnowAsk, model, cache: TeacherCache | None = None, **changes) -> wire.KnowAnswer:
    [told] = answer_all([ask], subject(model, **changes), cache)
    return told


def first_column(told: wire.KnowAnswer) -> list[int]:
    assert told.error == ""
    return codec.decode_q(told.data, told.count, N_ACTIONS)[:, 0].astype(int).tolist()


def test_an_answer_is_in_the_order_asked():
    told = answer(ask(batch(3, 1, 2, 1)), Model())
    assert told.teacher == TEACHER
    assert np.array_equal(codec.decode_q(told.data, 4, 3), Model()(batch(3, 1, 2, 1)))


def test_the_questions_of_many_students_are_one_run_without_repetitions():
    model, cache = Model(), TeacherCache(100_000)
    told = answer_all([ask(batch(1, 2)), ask(batch(2, 3, 3)), ask(batch(1))], subject(model), cache)
    assert [first_column(each) for each in told] == [[1, 2], [2, 3, 3], [1]]
    assert model.runs == [[1, 2, 3]]
    assert (cache.hits, cache.misses) == (3, 3)


def test_what_was_answered_before_costs_nothing():
    model, cache = Model(), TeacherCache(100_000)
    answer(ask(batch(1, 2)), model, cache)
    assert first_column(answer(ask(batch(2, 1)), model, cache=cache)) == [2, 1]
    assert len(model.runs) == 1
    assert (cache.hits, cache.misses) == (2, 2)


def test_the_cache_is_bounded_and_forgets_the_least_recently_used():
    model, cache = Model(), TeacherCache(3 * ENTRY)
    for kind in (1, 2, 3, 1, 4):
        answer(ask(batch(kind)), model, cache=cache)
    assert len(cache) == 3
    answer(ask(batch(1, 3, 4)), model, cache=cache)
    assert model.runs == [[1], [2], [3], [4]]
    answer(ask(batch(2)), model, cache=cache)
    assert model.runs[-1] == [2]


def test_a_question_larger_than_the_cache_is_answered_whole():
    kinds = list(range(50))
    assert first_column(answer(ask(batch(*kinds)), Model(), cache=TeacherCache(7 * ENTRY))) == kinds


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"task": "other"}, "unknown-task"),
        ({"obs_shape": (5, 2, 5)}, "obs-shape"),
        ({"n_actions": 4}, "n-actions"),
        ({"actions": "89abcdef"}, "actions"),
        ({"codec": 99}, "codec"),
        ({"codec": -1}, "codec"),
        ({"count": 3}, "malformed-data"),
        ({"data": b""}, "malformed-data"),
        ({"data": b"\xff" * 100}, "malformed-data"),
        ({"task": "other", "n_actions": 4, "data": b""}, "unknown-task"),
    ],
)
def test_refusals_have_names_and_spoil_nothing_else(changes, error):
    model = Model()
    told = answer_all([ask(batch(1)), ask(batch(5, 6), **changes), ask(batch(2))], subject(model, actions="01234567"))
    assert [each.error for each in told] == ["", error, ""]
    assert (told[1].count, told[1].data) == (0, b"")
    assert model.runs == [[1, 2]]
    assert [first_column(told[0]), first_column(told[2])] == [[1], [2]]


def test_an_answer_that_would_not_fit_a_message_is_refused():
    model = Model()
    told = answer(ask(np.zeros((4096, *SHAPE), np.uint8), n_actions=64), model, n_actions=64)
    assert told.error == "too-many"
    assert not model.runs


def test_every_answer_that_is_given_fits_a_message():
    def noise(obs):
        return np.random.default_rng(0).normal(size=(len(obs), 63)).astype(np.float32)

    obs = np.zeros((4096, *SHAPE), np.uint8)
    obs[:, 0, 0, 0], obs[:, 0, 0, 1] = np.arange(4096) % 256, np.arange(4096) // 256
    told = answer(ask(obs, n_actions=63), noise, n_actions=63)
    assert told.error == ""
    assert wire.decode(wire.encode(told), wire.KnowAnswer)[0].count == 4096


def test_values_that_are_not_finite_are_refused_where_they_are_asked_and_not_remembered():
    model, cache = Model(), TeacherCache(10_000)
    told = answer_all([ask(batch(1, 99)), ask(batch(1, 2))], subject(model), cache)
    assert [each.error for each in told] == ["not-finite", ""]
    assert first_column(told[1]) == [1, 2]
    assert answer(ask(batch(99)), model, cache=cache).error == "not-finite"
    assert model.runs == [[1, 99, 2], [99]]


def test_an_empty_question_gets_an_empty_answer():
    model = Model()
    assert first_column(answer(ask(batch()), model)) == []
    assert answer_all([], subject(model)) == []
    assert not model.runs


@pytest.mark.parametrize("wrong", [np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float64), np.zeros(3, np.float32)])
def test_a_model_of_the_wrong_shape_is_our_own_fault(wrong):
    with pytest.raises(UsageError):
        answer(ask(batch(1)), lambda obs: wrong)


@given(st.data())
def test_no_peer_can_make_it_raise(data):
    side = st.integers(1, 4096)
    peer = wire.KnowAsk(
        task=data.draw(st.sampled_from(["game", "", "x"])),
        obs_shape=data.draw(st.just(SHAPE) | st.tuples(side, side, side)),
        n_actions=data.draw(st.just(N_ACTIONS) | side),
        count=data.draw(st.integers(0, 4096)),
        codec=data.draw(st.just(1) | st.integers()),
        actions=data.draw(st.text(max_size=9)),
        data=data.draw(st.binary(max_size=100) | st.just(codec.encode_obs(batch(1, 2)))),
    )
    told = answer(peer, Model())
    assert told.error or told.count == peer.count


def test_nobody_is_refused_for_actions_that_one_side_has_not_named():
    assert first_column(answer(ask(batch(1)), Model(), actions="01234567")) == [1]
    assert first_column(answer(ask(batch(1), actions="01234567"), Model())) == [1]
    assert first_column(answer(ask(batch(1), actions="01234567"), Model(), actions="01234567")) == [1]


def test_a_policy_answers_logits_and_the_value():
    told = answer(ask(batch(3, 1), n_actions=2), Model(), kind="policy", n_actions=2)
    assert (told.kind, told.error) == ("policy", "")
    assert np.array_equal(codec.decode_q(told.data, 2, 3), Model()(batch(3, 1)))
    assert answer(ask(batch(3)), Model(), kind="policy", n_actions=2).error == "n-actions"


def test_teachers_share_the_memory_of_a_cache_and_no_answer():
    one, other, cache = Model(), Model(), TeacherCache(10_000)
    answer(ask(batch(1)), one, cache)
    assert first_column(answer(ask(batch(1)), other, cache, teacher="f" * 16)) == [1]
    assert one.runs == other.runs == [[1]]
    assert len(cache) == 2


def test_a_cache_takes_about_the_memory_it_says():
    obs = np.zeros((4000, *SHAPE), np.uint8)
    obs[:, 0, 0, :] = np.stack([np.arange(4000) // 256, np.arange(4000) % 256], 1)
    asks = [ask(obs[first : first + 500]) for first in range(0, 4000, 500)]
    small, unlimited = TeacherCache(100_000), TeacherCache(1 << 30)
    taught = subject(Model())
    answer_all(asks[:1], taught, TeacherCache(0))
    tracemalloc.start()
    try:
        for each in asks:
            answer_all([each], taught, unlimited)
        gc.collect()
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(unlimited) == 4000
    assert 0.8 < unlimited.size_bytes / taken_bytes < 1.3
    for each in asks:
        answer_all([each], taught, small)
    assert len(small) == 100_000 // ENTRY
    assert small.size_bytes <= 100_000


def test_a_model_that_fails_fails_by_name_and_only_those_who_needed_it():
    cache = TeacherCache(10_000)
    answer(ask(batch(1)), Model(), cache)

    def broken(obs):
        raise ArtifactError("out of order")

    told = answer_all([ask(batch(1)), ask(batch(1, 2)), ask(batch(1), task="x")], subject(broken), cache)
    assert [each.error for each in told] == ["", "model-failed", "unknown-task"]


def test_a_refusal_says_when_to_come_back():
    told = refusal(subject(Model(), kind="policy"), "over-budget", 2.5)
    assert told == wire.KnowAnswer(
        teacher=TEACHER, count=0, codec=1, data=b"", error="over-budget", kind="policy", retry_s=2.5
    )
    assert wire.decode(wire.encode(told), wire.KnowAnswer)[0] == told
