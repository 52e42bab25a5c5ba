from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import nets, quant
from edgert.errors import ArtifactError, UsageError
from edgert.policy import exits


@given(st.floats(1e-6, 1 - 1e-6))
def test_logit_and_confidence_are_inverse(share: float) -> None:
    assert exits.confidence(exits.logit(share)) == pytest.approx(share, rel=1e-9)


def test_the_ends_force_and_forbid() -> None:
    assert (exits.logit(0), exits.logit(1)) == (-math.inf, math.inf)
    assert (exits.confidence(-math.inf), exits.confidence(math.inf)) == (0, 1)
    assert exits.confidence(-1e9) == 0
    assert exits.confidence(1e9) == 1


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, math.inf])
def test_thresholds_outside_zero_to_one_are_refused(wrong: float) -> None:
    with pytest.raises(UsageError):
        exits.logit(wrong)
    with pytest.raises(UsageError):
        exits.effective_thresholds([0.5, wrong], 2)


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 9))
def test_the_deepest_allowed_exit_is_forced_and_those_before_keep_their_thresholds(
    thresholds: list[float], deepest: int
) -> None:
    logits = exits.effective_thresholds(thresholds, deepest)
    assert logits.dtype == np.float32
    assert logits.shape == (len(thresholds),)
    for k, logit in enumerate(logits):
        assert logit == (-math.inf if k >= deepest else np.float32(exits.logit(thresholds[k])))


def test_a_negative_exit_is_refused() -> None:
    with pytest.raises(UsageError, match="max_exit"):
        exits.effective_thresholds([0.5], -1)


@pytest.mark.parametrize(
    ("costs_s", "remaining_s", "deepest"),
    [
        ([1, 2, 3], 2.5, 1),
        ([1, 2, 3], 3, 2),
        ([1, 2, 3], 0.5, 0),
        ([1, 2, 3], -1, 0),
        ([1, 4, 3], 3, 2),
        ([1, math.nan, math.inf], 100, 0),
        ([1, 2], math.nan, 0),
        ([5], 0, 0),
    ],
)
def test_the_deepest_affordable_exit(costs_s: list[float], remaining_s: float, deepest: int) -> None:
    assert exits.deepest_affordable(costs_s, remaining_s) == deepest


def test_no_costs_are_refused() -> None:
    with pytest.raises(UsageError):
        exits.deepest_affordable([], 1.0)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=8),
    st.floats(0, 1, exclude_max=True),
)
def test_what_is_drawn_could_be_and_says_how_likely_it_was(values: list[float], chance: float) -> None:
    drawn = exits.draw(np.array(values, np.float32), chance)
    logits = np.array(values[:-1], np.float32).astype(np.float64)
    log = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert drawn.log_prob == pytest.approx(log[drawn.action], rel=1e-9, abs=1e-9)
    assert drawn.log_prob > -800  # what has no mass is not drawn


def test_actions_are_drawn_as_often_as_the_policy_says() -> None:
    head = np.array([0.0, 1.0, -30.0, 2.0, 9.0], np.float32)
    drawn = [exits.draw(head, chance).action for chance in (np.arange(10_000) + 0.5) / 10_000]
    share = np.bincount(drawn, minlength=4) / 10_000
    wanted = np.exp(head[:4]) / np.exp(head[:4]).sum()
    np.testing.assert_allclose(share, wanted, atol=2e-4)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_choose_is_argmax_and_sigmoid(values: list[float]) -> None:
    choice = exits.choose(np.array(values, np.float32))
    assert choice.action == int(np.argmax(values[:-1]))
    assert 0 <= choice.confidence <= 1
    assert (choice.confidence > 0.5) == (values[-1] > 1e-15) or abs(values[-1]) < 1e-15


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_head_that_is_not_finite_is_refused(poison: float, at: int) -> None:
    head = np.array([1, 2, 3], np.float32)
    head[at] = poison
    with pytest.raises(ArtifactError, match="not finite"):
        exits.choose(head)


def test_infinities_that_cancel_are_still_refused() -> None:
    with pytest.raises(ArtifactError):
        exits.choose(np.array([np.inf, -np.inf, 0], np.float32))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), max_size=30), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_the_fitted_threshold_is_the_smallest_good_one(pairs: list[tuple[int, int]], allowed: float) -> None:
    logits = np.array([logit for logit, _ in pairs], np.float32)
    regret = np.array([lost for _, lost in pairs], np.float32)
    threshold = exits.fit_threshold(logits, regret, allowed)
    good = [c for c in sorted(set(logits.tolist())) if regret[logits >= c].mean() <= allowed]
    assert threshold == (exits.confidence(good[0]) if good else 1.0)


def test_an_exit_that_always_costs_is_forbidden() -> None:
    assert exits.fit_threshold(np.ones(4, np.float32), np.ones(4, np.float32), 0.5) == 1.0
    with pytest.raises(UsageError):
        exits.fit_threshold(np.ones(4, np.float32), np.zeros(3, np.float32), 0.5)


def test_taken_is_the_first_exit_that_is_sure() -> None:
    heads = {
        k: np.array([[0, 0, c] for c in logits], np.float32)
        for k, logits in enumerate(([2, -2, -2], [2, 2, -2], [9, 9, 9]))
    }
    assert exits.taken(heads, [0.5, 0.5]).tolist() == [0, 1, 2]
    assert exits.taken(heads, [1, 1]).tolist() == [2, 2, 2]
    assert exits.taken(heads, [1, 0]).tolist() == [1, 1, 1]


def test_thresholds_are_fitted_on_what_reaches_the_exit() -> None:
    # Exit 0 is right and sure on the first two; exit 1 would be wrong there, and is right on the rest.
    heads = {
        0: np.array([[1, 0, 3], [1, 0, 3], [1, 0, -3], [1, 0, -3]], np.float32),
        1: np.array([[0, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]], np.float32),
        2: np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], np.float32),
    }
    assert exits.taken(heads, exits.fit_thresholds(heads)).tolist() == [0, 0, 1, 1]


def test_disagreeing_about_equals_costs_nothing() -> None:
    heads = {
        0: np.array([[0, 1, 2]] * 4, np.float32),
        1: np.array([[5, 5, 0], [5, 5, 0], [5, 5, 0], [9, 0, 0]], np.float32),
    }
    heads[0][3] = [1, 0, -2]
    assert exits.taken(heads, exits.fit_thresholds(heads)).tolist() == [0, 0, 0, 0]


def test_deciding_for_a_batch_is_deciding_one_by_one() -> None:
    rng = np.random.default_rng(0)
    heads = {k: rng.normal(size=(50, 4)).astype(np.float32) for k in range(3)}
    logits = exits.effective_thresholds([0.6, 0.4], 2)
    for i, action in enumerate(exits.decide(heads, [0.6, 0.4])):
        first = next(k for k in range(3) if k == 2 or heads[k][i, -1] >= logits[k])
        assert action == exits.choose(heads[first][i]).action


NET = nets.NetSpec(
    (6, 6, 2),
    3,
    trunk=((nets.Conv(4, 3), nets.Relu()), (nets.Conv(4, 3), nets.Relu()), (nets.Dense(8), nets.Relu())),
    heads=((nets.MaxPool(2, 2),), (), ()),
)


@given(st.integers(0, 9), st.lists(st.sampled_from([0.0, 0.48, 0.5, 0.52, 1.0]), min_size=2, max_size=2))
def test_a_batch_is_answered_bit_for_bit_like_each_observation_alone(seed: int, thresholds: list[float]) -> None:
    rng = np.random.default_rng(seed)
    params, obs = nets.initialise(NET, rng), rng.integers(0, 2, (7, *NET.input_shape)).astype(np.uint8)
    net = quant.IntNet(NET, quant.quantize(params, quant.calibrate(params, obs)))
    bars = exits.effective_thresholds(thresholds, 2)
    head, exit_ = exits.answer(net, obs, bars)
    alone = [net.first_sure(obs[i : i + 1], bars) for i in range(len(obs))]
    assert exit_.tolist() == [k for _, k in alone]
    assert np.array_equal(head, np.stack([one for one, _ in alone]))
    mixed = np.stack([bars if i % 2 else exits.effective_thresholds([0.0, 0.0], 2) for i in range(len(obs))])
    assert exits.answer(net, obs, mixed)[1].tolist() == [exit_[i] if i % 2 else 0 for i in range(len(obs))]


def test_a_stage_that_no_observation_goes_on_to_does_not_run() -> None:
    params, obs = nets.initialise(NET, np.random.default_rng(0)), np.zeros((3, *NET.input_shape), np.uint8)
    net = quant.IntNet(NET, quant.quantize(params, quant.calibrate(params, obs)))
    exits.answer(net, obs, exits.effective_thresholds([0.0, 0.0], 2))
    assert net.counts == [1, 0, 0]
    assert exits.answer(net, obs[:0], exits.effective_thresholds([0.0, 0.0], 2))[0].shape == (0, 4)


def test_a_policys_exit_is_believed_where_it_draws_as_the_last_one_does() -> None:
    """Sure, and of the same favourite everywhere; in one half of the states far too soft."""
    n, rng = 400, np.random.default_rng(0)
    last = np.tile(np.float32([0, 3, 0, 0]), (n, 1))
    soft = np.arange(n) % 2 == 0
    early = last.copy()
    early[soft, 1] = 0.5
    early[:, 3] = np.where(soft, -1, 1) + rng.uniform(-0.5, 0.5, n)
    heads = {0: early, 1: last}
    assert exits.fit_thresholds(heads) == (exits.confidence(float(early[:, 3].min())),)
    (fitted,) = exits.fit_policy_thresholds(heads)
    believed = exits.taken(heads, (fitted,)) == 0
    assert believed[~soft].all() and 0 < believed[soft].sum() < 0.4 * n
    assert exits.fit_policy_thresholds({0: early[soft], 1: last[soft]}) == (1.0,)
    assert exits.fit_policy_thresholds({0: last, 1: last, 2: last}, 0.0)[0] == exits.confidence(0.0)
