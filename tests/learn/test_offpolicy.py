"""Values of policies that never acted, against a chain of states whose values can be worked out."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.learn.offpolicy import MIN_TRANSITIONS, Gain, Lived, compare

N_STATES, GAMMA = 5, 0.9


def walk(n: int, seed: int, explore_frac: float = 0.3) -> Lived:
    """A ring of states: action 1 goes on, action 0 stays; arriving in state 0 again pays 1. Who acts mostly goes on."""
    rng = np.random.default_rng(seed)
    state, states, actions, rewards, following = 0, [], [], [], []
    for _ in range(n):
        action = int(rng.integers(2)) if rng.random() < explore_frac else 1
        after = (state + action) % N_STATES
        states.append(state)
        actions.append(action)
        rewards.append(float(after == 0 and action == 1))
        following.append(after)
        state = after
    seen = np.eye(N_STATES, dtype=np.float32)
    ones = np.ones(n, np.int64)
    return Lived(
        features=seen[states],
        next_features=seen[following],
        action=np.array(actions),
        reward=np.array(rewards, np.float32),
        terminated=np.zeros(n, bool),
        acting=ones,
        candidate=ones,
        next_acting=ones,
        next_candidate=ones,
        judged=np.ones(n, bool),
    )


def test_the_value_of_going_on_and_the_loss_of_staying_are_found() -> None:
    lived = walk(2000, 0)
    never = np.zeros(2000, np.int64)
    told = compare(lived._replace(candidate=never, next_candidate=never), 2, GAMMA)
    per_state = [GAMMA ** (N_STATES - 1 - s) / (1 - GAMMA**N_STATES) for s in range(N_STATES)]
    true = float((lived.features @ np.array(per_state)).mean())
    assert told.acting == pytest.approx(true, rel=0.1)
    assert told.gain is not None and told.gain == pytest.approx(-true, rel=0.2) and told.harmful


def test_going_on_is_better_than_staying_and_never_refused() -> None:
    lived = walk(1000, 1, explore_frac=0.8)
    never = np.zeros(1000, np.int64)
    told = compare(lived._replace(acting=never, next_acting=never), 2, GAMMA)
    assert told.gain is not None and told.gain > 0 and not told.harmful


def test_what_was_never_tried_is_no_evidence() -> None:
    """Nobody ever stayed: staying is taken for as good as going on."""
    lived = walk(1000, 2, explore_frac=0.0)
    never = np.zeros(1000, np.int64)
    told = compare(lived._replace(candidate=never, next_candidate=never), 2, GAMMA)
    assert not told.harmful


@pytest.mark.parametrize("seed", range(5))
def test_two_policies_that_differ_where_it_does_not_matter_are_equal(seed: int) -> None:
    """A third action does what the second does."""
    rng = np.random.default_rng(seed)
    lived = walk(1000, seed)
    renamed = np.where((lived.action == 1) & (rng.random(1000) < 0.5), 2, lived.action)
    other = np.full(1000, 2)
    told = compare(lived._replace(action=renamed, candidate=other, next_candidate=other), 3, GAMMA)
    assert not told.harmful and told.gain is not None and abs(told.gain) < 0.1 * told.acting


def test_the_same_actions_are_the_same_return() -> None:
    assert compare(walk(500, 0), 2, GAMMA) == Gain(0.0, 0.0, 0.0, 500)


def test_too_few_transitions_are_not_enough() -> None:
    told = compare(walk(MIN_TRANSITIONS - 1, 0), 2, GAMMA)
    assert told.gain is None and not told.harmful and "it takes" in told.why


def test_absurd_values_are_not_enough() -> None:
    """What followed has nothing to do with the states, and is far larger."""
    lived, rng = walk(400, 0), np.random.default_rng(0)
    wild = (100 * rng.normal(size=lived.next_features.shape)).astype(np.float32)
    never = np.zeros(400, np.int64)
    told = compare(lived._replace(next_features=wild, candidate=never, next_candidate=never), 2, 0.99)
    assert told.gain is None or np.isfinite(told.gain)
    assert not told.harmful
