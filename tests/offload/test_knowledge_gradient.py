from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.offload.knowledge_gradient import improvement, net_gain

positive = st.floats(0.01, 100.0)


@pytest.mark.parametrize(("excess", "std"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_improvement_is_what_draws_say(excess: float, std: float) -> None:
    drawn = np.maximum(0.0, std * np.random.default_rng(0).standard_normal(400_000) - excess).mean()
    assert improvement(excess, std) == pytest.approx(drawn, abs=3e-3)


@given(positive, positive)
def test_who_knows_for_sure_gains_nothing_and_nobody_loses(excess: float, std: float) -> None:
    assert improvement(excess, 0.0) == 0.0
    assert 0.0 <= improvement(excess, std) <= improvement(0.0, std)


def worth(excess: float = 1.0, belief: float = 4.0, scatter: float = 1.0, horizon: int = 50) -> bool:
    return net_gain(excess=excess, covariance=belief, variance=belief, scatter=scatter, horizon=horizon) > 0


def test_a_try_is_worth_less_the_worse_the_surer_and_the_later_it_is() -> None:
    assert worth()
    assert not worth(excess=50.0)
    assert not worth(belief=0.01)
    assert not worth(horizon=2)
    assert net_gain(excess=0.1, covariance=-1.0, variance=4.0, scatter=1.0, horizon=50) == pytest.approx(-0.1)


def test_where_answers_scatter_many_tries_may_be_worth_what_one_is_not() -> None:
    scatter, excess, belief = 100.0, 0.5, 1.0
    one = improvement(excess, belief / np.sqrt(belief + scatter))
    assert one * 1000 < excess  # a single answer never changes a mind
    assert worth(excess=excess, belief=belief, scatter=scatter, horizon=1000)
