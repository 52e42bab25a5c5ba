from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.policy import risk

R, DELTA, BOUNDS = 0.2, 0.2, (0.0, 50.0)


def draw(rng: np.random.Generator, mean: float, n: int) -> np.ndarray:
    """Skewed returns as games give them, partly beyond the bounds."""
    return rng.gamma(3, mean / 3, n)


def clipped_mean(mean: float) -> float:
    return float(np.clip(draw(np.random.default_rng(99), mean, 400_000), *BOUNDS).mean())


def p_of(rng: np.random.Generator, mean: float, n: int) -> float:
    samples = [draw(rng, each, n) for each in (mean, 20.0, 2.0)]
    return risk.p_value(*samples, max_loss_frac=R, delta=DELTA, bounds=BOUNDS)


@pytest.fixture(scope="module")
def limit() -> float:
    low, high = 10.0, 20.0
    wanted = (1 - R) * clipped_mean(20.0) + R * clipped_mean(2.0)
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (low, middle) if clipped_mean(middle) >= wanted else (middle, high)
    return low  # just breaks the promise


@pytest.mark.parametrize("n", [20, 200])
def test_a_setting_that_just_breaks_the_promise_passes_no_more_often_than_delta(limit: float, n: int) -> None:
    rng = np.random.default_rng(n)
    passed = np.mean([p_of(rng, limit, n) <= DELTA for _ in range(2000)])
    assert passed <= DELTA + 3 * (DELTA * (1 - DELTA) / 2000) ** 0.5


def test_power_grows_with_episodes_and_is_not_nil() -> None:
    rng = np.random.default_rng(0)
    power = [np.mean([p_of(rng, 20.0, n) <= DELTA for _ in range(200)]) for n in (30, 100, 300)]
    assert power[0] < power[1] < power[2]
    assert power[2] > 0.9


def test_equal_seeds_are_allowed_and_help() -> None:
    rng = np.random.default_rng(1)
    luck = [rng.gamma(3, 1.0, 100) for _ in range(200)]
    paired = [
        risk.p_value(u * 20 / 3, u * 20 / 3, u * 2 / 3, max_loss_frac=R, delta=DELTA, bounds=BOUNDS) <= DELTA
        for u in luck
    ]
    apart = [p_of(rng, 20.0, 100) <= DELTA for _ in range(200)]
    assert np.mean(paired) > np.mean(apart)


def test_the_violation_rate_of_the_whole_choice_is_at_most_delta(limit: float) -> None:
    """Five settings from harmless to harmful; a violation is to end at one that loses more than R."""
    means, rng, violations, useful = (20.0, 19.5, 19.0, limit, limit - 2), np.random.default_rng(5), 0, 0
    for _ in range(600):
        full, random = draw(rng, 20.0, 300), draw(rng, 2.0, 300)
        plays = [lambda mean=mean: draw(rng, mean, 300) for mean in means]
        found = risk.risk_controlled(plays, full, random, max_loss_frac=R, delta=DELTA, bounds=BOUNDS)
        violations += found.chosen is not None and found.chosen >= 3
        useful += found.chosen is not None and found.chosen >= 1
    assert violations / 600 <= DELTA + 3 * (DELTA * (1 - DELTA) / 600) ** 0.5
    assert useful / 600 > 0.5


def test_nothing_is_played_after_a_failure() -> None:
    rng, played = np.random.default_rng(0), []

    def play(mean: float) -> np.ndarray:
        played.append(mean)
        return draw(rng, mean, 300)

    full, random = draw(rng, 20.0, 300), draw(rng, 2.0, 300)
    plays = [lambda mean=mean: play(mean) for mean in (40.0, 2.0, 40.0)]
    found = risk.risk_controlled(plays, full, random, max_loss_frac=R, delta=DELTA, bounds=BOUNDS)
    assert played == [40.0, 2.0]
    assert (found.chosen, len(found.p_values)) == (0, 2)
    none = risk.risk_controlled([], full, random, max_loss_frac=R, delta=DELTA, bounds=BOUNDS)
    assert none == risk.Controlled(None, ())


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_p_is_a_probability_and_the_worst_returns_prove_nothing(returns: list[float]) -> None:
    ones = np.ones(len(returns))
    p = risk.p_value(np.array(returns), ones * 30, ones, max_loss_frac=R, delta=DELTA, bounds=BOUNDS)
    assert 0 < p <= 1
    worst = risk.p_value(ones * 0, ones * 30, ones, max_loss_frac=R, delta=DELTA, bounds=BOUNDS)
    assert worst == 1


@pytest.mark.parametrize(
    ("n", "bounds", "value"),
    [(0, (0.0, 1.0), 1.0), (3, (1.0, 1.0), 1.0), (3, (0.0, float("inf")), 1.0), (3, (0.0, 1.0), float("nan"))],
)
def test_what_cannot_be_tested_is_refused(n: int, bounds: tuple[float, float], value: float) -> None:
    sample = np.full(n, value)
    with pytest.raises(UsageError):
        risk.p_value(sample, sample, sample, max_loss_frac=R, delta=DELTA, bounds=bounds)
    with pytest.raises(UsageError, match="as many"):
        risk.p_value(np.ones(2), np.ones(3), np.ones(3), max_loss_frac=R, delta=DELTA, bounds=(0.0, 1.0))
