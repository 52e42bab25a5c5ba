from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgert.errors import ArtifactError
from edgert.offload.bandits import LinearBandit
from edgert.offload.space import Floor, Outcome, Variant, allowed, full_space, meets

RULES = ["ucb", "thompson"]


@pytest.mark.parametrize("rule", RULES)
def test_it_finds_what_is_good_for_one_device(variants: tuple[Variant, ...], toy: Any, rule: Any) -> None:
    space, floor = full_space(variants, 1), Floor(0.87)
    world, learner = toy(space), LinearBandit(space, floor, rule=rule)
    world.teach(learner, 200, np.random.default_rng(0))
    best = min(world.mean_s(tuple(each)) for each in learner.joint.every(allowed(space, floor)).tolist())
    assert world.mean_s(learner.best(world.state, allowed(space, floor))) < 1.05 * best


@pytest.mark.parametrize("rule", RULES)
def test_floor_and_checkpoint(variants: tuple[Variant, ...], toy: Any, rule: Any) -> None:
    space, floor = full_space(variants, 3), Floor(0.86, "average")
    world, learner = toy(space), LinearBandit(space, floor, rule=rule)
    may, rng = allowed(space, floor), np.random.default_rng(0)
    for _ in range(30):
        action = learner.choose(world.state, may, rng)
        assert meets(space, floor, action)
        learner.observe(world.state, action, world.outcomes(action, rng))
    again = LinearBandit(space, floor, rule=rule)
    again.restore(learner.save())
    assert world.teach(learner, 20, np.random.default_rng(1)) == world.teach(again, 20, np.random.default_rng(1))
    with pytest.raises(ArtifactError):
        LinearBandit(space, Floor(), rule=rule).restore(learner.save())


def test_what_nobody_measured_teaches_nothing(variants: tuple[Variant, ...], toy: Any) -> None:
    space = full_space(variants, 1)
    world, learner = toy(space), LinearBandit(space, Floor(), "energy")
    before = learner.best(world.state, allowed(space, Floor()))
    learner.observe(world.state, before, (Outcome(response_s=1.0),))
    assert learner.best(world.state, allowed(space, Floor())) == before
