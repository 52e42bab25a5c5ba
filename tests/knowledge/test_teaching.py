"""The teacher's answers: right for whom they are right for, named refusals for the others, one run of the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.errors import UsageError
from edgert.knowledge import codec
from edgert.knowledge.teaching import TeacherCache, answer, answer_all

SHAPE = (5, 5, 2)
N_ACTIONS = 3
WHO = {"teacher": "0123456789abcdef", "task": "game", "obs_shape": SHAPE, "n_actions": N_ACTIONS}


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


def first_column(told: wire.KnowAnswer) -> list[int]:
    assert told.error == ""
    return codec.decode_q(told.data, told.count, N_ACTIONS)[:, 0].astype(int).tolist()


def test_an_answer_is_in_the_order_asked():
    told = answer(ask(batch(3, 1, 2, 1)), Model(), **WHO)
    assert told.teacher == WHO["teacher"]
    assert np.array_equal(codec.decode_q(told.data, 4, 3), Model()(batch(3, 1, 2, 1)))


def test_the_questions_of_many_students_are_one_run_without_repetitions():
    model, cache = Model(), TeacherCache(100)
    told = answer_all([ask(batch(1, 2)), ask(batch(2, 3, 3)), ask(batch(1))], model, cache=cache, **WHO)
    assert [first_column(each) for each in told] == [[1, 2], [2, 3, 3], [1]]
    assert model.runs == [[1, 2, 3]]
    assert (cache.hits, cache.misses) == (3, 3)


def test_what_was_answered_before_costs_nothing():
    model, cache = Model(), TeacherCache(100)
    answer(ask(batch(1, 2)), model, cache=cache, **WHO)
    assert first_column(answer(ask(batch(2, 1)), model, cache=cache, **WHO)) == [2, 1]
    assert len(model.runs) == 1
    assert (cache.hits, cache.misses) == (2, 2)


def test_the_cache_is_bounded_and_forgets_the_least_recently_used():
    model, cache = Model(), TeacherCache(3)
    for kind in (1, 2, 3, 1, 4):
        answer(ask(batch(kind)), model, cache=cache, **WHO)
    assert len(cache) == 3
    answer(ask(batch(1, 3, 4)), model, cache=cache, **WHO)
    assert model.runs == [[1], [2], [3], [4]]
    answer(ask(batch(2)), model, cache=cache, **WHO)
    assert model.runs[-1] == [2]


def test_a_question_larger_than_the_cache_is_answered_whole():
    kinds = list(range(50))
    assert first_column(answer(ask(batch(*kinds)), Model(), cache=TeacherCache(7), **WHO)) == kinds


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"task": "other"}, "unknown-task"),
        ({"obs_shape": (5, 2, 5)}, "obs-shape"),
        ({"n_actions": 4}, "n-actions"),
        ({"codec": 2}, "codec"),
        ({"codec": -1}, "codec"),
        ({"count": 3}, "malformed-data"),
        ({"data": b""}, "malformed-data"),
        ({"data": b"\xff" * 100}, "malformed-data"),
        ({"task": "other", "n_actions": 4, "data": b""}, "unknown-task"),
    ],
)
def test_refusals_have_names_and_spoil_nothing_else(changes, error):
    model = Model()
    told = answer_all([ask(batch(1)), ask(batch(5, 6), **changes), ask(batch(2))], model, **WHO)
    assert [each.error for each in told] == ["", error, ""]
    assert (told[1].count, told[1].data) == (0, b"")
    assert model.runs == [[1, 2]]
    assert [first_column(told[0]), first_column(told[2])] == [[1], [2]]


def test_an_answer_that_would_not_fit_a_message_is_refused():
    many = {**WHO, "n_actions": 64}
    model = Model()
    told = answer(ask(np.zeros((4096, *SHAPE), np.uint8), n_actions=64), model, **many)
    assert told.error == "too-many"
    assert not model.runs


def test_every_answer_that_is_given_fits_a_message():
    many = {**WHO, "n_actions": 63}

    def noise(obs):
        return np.random.default_rng(0).normal(size=(len(obs), 63)).astype(np.float32)

    obs = np.zeros((4096, *SHAPE), np.uint8)
    obs[:, 0, 0, 0], obs[:, 0, 0, 1] = np.arange(4096) % 256, np.arange(4096) // 256
    told = answer(ask(obs, n_actions=63), noise, **many)
    assert told.error == ""
    assert wire.decode(wire.encode(told), wire.KnowAnswer)[0].count == 4096


def test_values_that_are_not_finite_are_refused_where_they_are_asked_and_not_remembered():
    model, cache = Model(), TeacherCache(10)
    told = answer_all([ask(batch(1, 99)), ask(batch(1, 2))], model, cache=cache, **WHO)
    assert [each.error for each in told] == ["not-finite", ""]
    assert first_column(told[1]) == [1, 2]
    assert answer(ask(batch(99)), model, cache=cache, **WHO).error == "not-finite"
    assert model.runs == [[1, 99, 2], [99]]


def test_an_empty_question_gets_an_empty_answer():
    model = Model()
    assert first_column(answer(ask(batch()), model, **WHO)) == []
    assert answer_all([], model, **WHO) == []
    assert not model.runs


@pytest.mark.parametrize("wrong", [np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float64), np.zeros(3, np.float32)])
def test_a_model_of_the_wrong_shape_is_our_own_fault(wrong):
    with pytest.raises(UsageError):
        answer(ask(batch(1)), lambda obs: wrong, **WHO)


@given(st.data())
def test_no_peer_can_make_it_raise(data):
    side = st.integers(1, 4096)
    peer = wire.KnowAsk(
        task=data.draw(st.sampled_from(["game", "", "x"])),
        obs_shape=data.draw(st.just(SHAPE) | st.tuples(side, side, side)),
        n_actions=data.draw(st.just(N_ACTIONS) | side),
        count=data.draw(st.integers(0, 4096)),
        codec=data.draw(st.just(1) | st.integers()),
        data=data.draw(st.binary(max_size=100) | st.just(codec.encode_obs(batch(1, 2)))),
    )
    told = answer(peer, Model(), **WHO)
    assert told.error or told.count == peer.count
