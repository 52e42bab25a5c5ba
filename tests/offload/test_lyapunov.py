from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgert.errors import ArtifactError
from edgert.offload.lyapunov import DriftPlusPenalty
from edgert.offload.space import Floor, Variant, accuracy_frac, allowed, full_space


def test_the_mean_over_time_comes_to_hold(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor, rng = full_space(variants, 2), Floor(0.86), np.random.default_rng(0)
    world, learner = toy(space), DriftPlusPenalty(space, floor)
    may, got = allowed(space, Floor()), []
    for _ in range(400):
        action = learner.choose(world.state, may, rng)
        learner.observe(world.state, action, world.outcomes(action, rng))
        got.append(accuracy_frac(space, action))
    assert np.mean(got[200:]) > 0.855
    assert min(got) < 0.8  # it is not done by the most accurate one alone


def test_bytes_are_spent_as_allowed_on_average(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor, rng = full_space(variants, 2), Floor(0.9), np.random.default_rng(0)
    world, learner = toy(space), DriftPlusPenalty(space, floor, sent_bytes=300)
    may, sent = allowed(space, floor), []
    for _ in range(300):
        action = learner.choose(world.state, may, rng)
        outcomes = world.outcomes(action, rng)
        learner.observe(world.state, action, outcomes)
        sent.append(np.mean([1000 * (space.choices[each].place != "device") for each in action]))
    assert 100 < np.mean(sent[100:]) < 330


def test_it_goes_on_where_it_stopped(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor = full_space(variants, 2), Floor(0.86)
    world, learner = toy(space), DriftPlusPenalty(space, floor)
    world.teach(learner, 30, np.random.default_rng(0))
    again = DriftPlusPenalty(space, floor)
    again.restore(learner.save())
    assert world.teach(learner, 20, np.random.default_rng(1)) == world.teach(again, 20, np.random.default_rng(1))
    with pytest.raises(ArtifactError):
        DriftPlusPenalty(space, Floor()).restore(learner.save())
