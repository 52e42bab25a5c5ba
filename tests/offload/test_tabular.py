from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgert.errors import ArtifactError
from edgert.offload.space import Floor, Outcome, Variant, allowed, meets, paper_space
from edgert.offload.tabular import JointQ, Rates, UserQ

KINDS = [JointQ, UserQ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_is_good(variants: tuple[Variant, ...], toy: Any, kind: Any) -> None:
    space, floor = paper_space(variants, 2), Floor(0.87)
    world = toy(space)
    learner = kind(space, floor, rates=Rates(decay=0.01))
    world.teach(learner, 400, np.random.default_rng(0))
    best = min(world.mean_s(tuple(each)) for each in learner.joint.every(allowed(space, floor)).tolist())
    assert world.mean_s(learner.best(world.state, allowed(space, floor))) < 1.25 * best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [Floor(0.88), Floor(0.86, "average")])
def test_the_floor_holds_from_the_first_request(
    variants: tuple[Variant, ...], toy: Any, kind: Any, floor: Floor
) -> None:
    space, rng = paper_space(variants, 3), np.random.default_rng(0)
    world, learner = toy(space), kind(space, floor)
    for _ in range(60):
        action = learner.choose(world.state, allowed(space, floor), rng)
        assert meets(space, floor, action)
        learner.observe(world.state, action, world.outcomes(action, rng))


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_where_it_stopped(variants: tuple[Variant, ...], toy: Any, kind: Any) -> None:
    space = paper_space(variants, 2)
    world, learner = toy(space), kind(space, Floor())
    world.teach(learner, 50, np.random.default_rng(0))
    again = kind(space, Floor())
    again.restore(learner.save())
    assert world.teach(learner, 30, np.random.default_rng(1)) == world.teach(again, 30, np.random.default_rng(1))
    with pytest.raises(ArtifactError):
        kind(space, Floor(0.5)).restore(learner.save())


def test_an_entry_that_rises_is_the_best_no_more(variants: tuple[Variant, ...], toy: Any) -> None:
    space = paper_space(variants, 1)
    world, learner = toy(space), JointQ(space, Floor(), rates=Rates(step_size=1.0))
    may, rng = allowed(space, Floor()), np.random.default_rng(0)
    for choice in (0, 3):
        learner.observe(world.state, (choice,), world.outcomes((choice,), rng))
    assert learner.best(world.state, may) == (3,)
    world.weak, dear = (False,), world.outcomes((0,), rng)
    for _ in range(2):
        learner.observe(world.state, (3,), (dear[0].__class__(response_s=9.0),))
    assert learner.best(world.state, may) == (0,)


def test_what_is_remembered_of_one_action_does_not_grow_for_ever(variants: tuple[Variant, ...], toy: Any) -> None:
    space = paper_space(variants, 1)
    state, learner = toy(space).state, JointQ(space, Floor())
    for step in range(1, 2000):
        learner.observe(state, (0,), [Outcome(response_s=1.0 + 1.0 / step)])
        if step % 7 == 0:
            learner.observe(state, (1,), [Outcome(response_s=0.5 + step)])
    assert sum(map(len, learner._heaps.values())) < 100
    assert learner.best(state, allowed(space, Floor())) == (0,)
