from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgert.errors import ArtifactError
from edgert.offload.space import Floor, Variant, allowed, full_space, meets, paper_space
from edgert.offload.structured import Structured
from edgert.offload.tabular import Rates


def test_where_its_assumptions_hold_it_finds_the_best(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor = paper_space(variants, 3), Floor(0.87)
    world = toy(space)
    learner = Structured(space, floor, rates=Rates(decay=0.05))
    world.teach(learner, 120, np.random.default_rng(0))
    best = min(world.mean_s(tuple(each)) for each in learner.joint.every(allowed(space, floor)).tolist())
    assert world.mean_s(learner.best(world.state, allowed(space, floor))) < 1.02 * best


@pytest.mark.parametrize("users", [2, 5])
def test_floor_and_checkpoint(variants: tuple[Variant, ...], toy: Any, users: int) -> None:
    space, floor = full_space(variants, users), Floor(0.86, "average")
    world, learner = toy(space), Structured(space, floor, rates=Rates(decay=0.2))
    may, rng = allowed(space, floor), np.random.default_rng(0)
    for _ in range(25):
        action = learner.choose(world.state, may, rng)
        assert meets(space, floor, action)
        learner.observe(world.state, action, world.outcomes(action, rng))
    again = Structured(space, floor, rates=Rates(decay=0.2))
    again.restore(learner.save())
    assert world.teach(learner, 10, np.random.default_rng(1)) == world.teach(again, 10, np.random.default_rng(1))
    with pytest.raises(ArtifactError):
        Structured(space, Floor()).restore(learner.save())
