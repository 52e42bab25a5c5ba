"""What an answer is worth is learned from answers, bounded, and never a reason to stop looking."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgert.knowledge.worth import FEATURES, Worth, features, moved, softmax

TAU = 0.1


def outputs(seed: int, n: int = 50, exits: int = 3, actions: int = 4) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 0.2, (n, actions + 1)).astype(np.float32) for k in range(exits)}


def test_features_say_doubt_dissent_and_surprise() -> None:
    sure = np.array([[5, 0, 0, 9.0]], np.float32)
    torn = np.array([[5, 5, 0, 9.0]], np.float32)
    other = np.array([[0, 5, 0, 9.0]], np.float32)
    calm, doubt = features({0: sure, 1: sure}, np.zeros(1), 3, TAU)[0], features([torn, torn], np.ones(1), 3, TAU)[0]
    dissent = features([other, sure], np.zeros(1), 3, TAU)[0]
    assert calm[1] < 0.05 and doubt[1] == 1.0, "a gap of 5 against a tie"
    assert calm[2] == 0.0 and dissent[2] > 0.99
    assert (calm[3], doubt[3]) == (0.0, 0.5)


@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 9))
def test_everything_is_between_none_and_all(own: np.ndarray, seed: int) -> None:
    told = np.random.default_rng(seed).normal(0, 1, (4, 3)).astype(np.float32)
    did = moved(told, own, TAU)
    assert ((did >= 0) & (did <= 1 + 1e-6)).all()
    assert np.allclose(softmax(own, TAU).sum(1), 1, atol=1e-5)
    seen = features([np.hstack([own, own[:, :1]])], np.full(4, np.nan, np.float32), 3, TAU)
    assert seen.shape == (4, FEATURES) and ((seen >= 0) & (seen <= 1)).all()


def test_agreement_moves_nothing() -> None:
    q = np.array([[1, 2, 3]], np.float32)
    assert moved(q + 7, q, TAU)[0] < 1e-6, "only differences between actions count"


def test_one_action_is_never_in_doubt() -> None:
    assert features([np.zeros((2, 2), np.float32)], np.zeros(2), 1, TAU)[:, 1].max() == 0.0


def test_what_did_matter_is_found() -> None:
    """Here only dissent among the exits tells what the teacher changes; the prior would have asked by doubt."""
    worth = Worth()
    for seed in range(40):
        seen = features(outputs(seed), np.zeros(50), 4, TAU)
        worth.learn(seen, seen[:, 2] * np.float32(0.5))
    seen = features(outputs(99), np.zeros(50), 4, TAU)
    assert np.abs(worth.expected(seen) - seen[:, 2] * 0.5).max() < 0.05


def test_where_nothing_moves_any_more_nothing_is_worth_asking_and_that_can_change_again() -> None:
    worth = Worth()
    for seed in range(200):
        worth.learn(features(outputs(seed), np.zeros(50), 4, TAU), np.zeros(50, np.float32))
    assert worth.expected(features(outputs(1), np.zeros(50), 4, TAU)).max() < 0.02
    for seed in range(60):
        worth.learn(features(outputs(seed, n=32), np.zeros(32), 4, TAU), np.ones(32, np.float32))
    assert worth.expected(features(outputs(1), np.zeros(50), 4, TAU)).min() > 0.5


def test_a_student_out_of_its_mind_does_not_spoil_the_fit() -> None:
    worth, seen = Worth(), features(outputs(1), np.zeros(50), 4, TAU)
    before = worth.expected(seen)
    worth.learn(seen, np.full(50, np.nan, np.float32))
    assert np.array_equal(worth.expected(seen), before)
