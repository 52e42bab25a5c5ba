from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.policy import hold
from edgert.policy.exits import confidence
from edgert.values import REPEAT_MAX, Operating

THRESHOLD = st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])
TICK = st.tuples(
    st.booleans(),  # the observation does not follow
    st.integers(0, 4),  # action that would be decided
    st.integers(0, 2),  # exit that would answer
    st.sampled_from([-50.0, -1.0, 0.0, 0.5, 1.0, 50.0]),  # its logit
)


@pytest.mark.parametrize(
    ("exit_", "logit", "repeat", "threshold", "more"),
    [
        (0, 2.0, 4, 0.5, 3),
        (0, 0.0, 4, 0.5, 3),  # from the threshold on
        (0, -0.01, 4, 0.5, 0),
        (1, 2.0, 4, 0.5, 3),
        (2, 99.0, 4, 0.0, 0),  # nobody trains the deepest exit's confidence
        (0, 99.0, 1, 0.0, 0),  # decides at every tick
        (0, 1e30, 4, 1.0, 0),  # 1 never holds, however saturated the confidence is
        (0, -1e30, 4, 0.0, 3),
        (0, math.nan, 4, 0.0, 0),
    ],
)
def test_only_a_sure_early_exit_is_held(exit_: int, logit: float, repeat: int, threshold: float, more: int) -> None:
    rule = hold.rule(Operating((0.5, 0.5), repeat, threshold))
    assert hold.more(rule, exit_, logit) == more


@pytest.mark.parametrize("wrong", [(0, 0.5), (REPEAT_MAX + 1, 0.5), (2, -0.1), (2, 1.1), (2, math.nan)])
def test_a_setting_out_of_range_is_refused(wrong: tuple[int, float]) -> None:
    with pytest.raises(UsageError):
        hold.rule(Operating((0.5,), *wrong))


def test_confidences_are_compared_as_the_networks_say_them() -> None:
    said = np.float32(0.1)
    rule = hold.rule(Operating((0.5,), 2, confidence(float(said))))
    assert hold.more(rule, 0, float(said)) == 1, "the float64 logit of this threshold may lie above the float32 one"


@given(
    st.lists(st.tuples(st.integers(1, 5), THRESHOLD), min_size=1, max_size=4),
    st.lists(st.lists(TICK, min_size=4, max_size=4), max_size=30),
    st.data(),
)
def test_many_environments_at_once_do_what_each_does_alone(
    settings: list[tuple[int, float]], ticks: list[list[tuple[bool, int, int, float]]], data: st.DataObject
) -> None:
    operating = [Operating((0.5, 0.5), repeat, threshold) for repeat, threshold in settings]
    together = hold.Holds(operating)
    alone: list[tuple[int, int]] = [(0, 0)] * len(operating)  # action, ticks left: what an act loop keeps
    for tick in ticks:
        some = data.draw(st.lists(st.sampled_from(range(len(operating))), min_size=1, unique=True))
        envs = np.array(some)
        fresh = np.array([tick[e][0] for e in some])
        decides = together.due(envs, fresh)
        asked = envs[decides]
        columns = [np.array([tick[e][i] for e in asked]) for i in (1, 2, 3)]
        together.decided(asked, columns[0].astype(int), columns[1].astype(int), columns[2].astype(np.float32))
        for row, e in enumerate(some):
            fresh_, action, exit_, logit = tick[e]
            held, left = alone[e]
            if left and not fresh_:
                alone[e] = held, left - 1
                assert not decides[row]
            else:
                alone[e] = action, hold.more(hold.rule(operating[e]), exit_, logit)
                assert decides[row]
            assert (together.action[e], together.left[e]) == alone[e]
