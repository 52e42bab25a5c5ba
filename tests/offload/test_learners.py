from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from edgert.offload import learners
from edgert.offload.space import Floor, Learner, Outcome, Variant, allowed, full_space
from edgert.sections import LearnerName

NAMES = get_args(LearnerName)


def made(name: Any, variants: tuple[Variant, ...]) -> Learner:
    return learners.make(name, full_space(variants, 1), Floor(), "response", np.random.default_rng(5))


@pytest.mark.parametrize("name", NAMES)
def test_one_device_learns_with_any_of_them_and_never_leaves_the_mask(
    variants: tuple[Variant, ...], toy: Any, name: Any
) -> None:
    world, learner, rng = toy(full_space(variants, 1)), made(name, variants), np.random.default_rng(0)
    may = allowed(world.space, Floor(0.88))
    for step in range(40):
        action = learner.choose(world.state, may, rng)
        assert may[0][action[0]] and may[0][learner.best(world.state, may)[0]]
        learner.observe(world.state, action, world.outcomes(action, rng))
        assert learner.steps == step + 1
    guesses = learner.guess(world.state)
    assert guesses is None or len(guesses[0]) == len(world.space.choices)


@pytest.mark.parametrize("name", NAMES)
def test_what_one_saved_another_of_its_kind_goes_on_with(variants: tuple[Variant, ...], toy: Any, name: Any) -> None:
    world, learner = toy(full_space(variants, 1)), made(name, variants)
    world.teach(learner, 20, np.random.default_rng(0))
    again = made(name, variants)
    again.restore(learner.save())
    assert world.teach(learner, 10, np.random.default_rng(1)) == world.teach(again, 10, np.random.default_rng(1))


@pytest.mark.parametrize("name", NAMES)
def test_first_answers_that_cost_nothing_leave_it_able_to_learn(
    variants: tuple[Variant, ...], toy: Any, name: Any
) -> None:
    """A radio that is not counted makes the first joules 0, and a unit that small made all that came later huge."""
    space, rng = full_space(variants, 1), np.random.default_rng(3)
    learner = learners.make(name, space, Floor(), "energy", rng)
    state, may = toy(space).state, allowed(space, Floor())
    joules = [1.0 + each for each in range(len(space.choices))]
    joules[3] = 0.1

    def tell(choice: int, cost_j: float) -> None:
        learner.observe(state, (choice,), [Outcome(response_s=0.1, joules=cost_j)])

    tell(0, 0.0)
    for step in range(400):
        (choice,) = (step % len(joules),) if step < 6 * len(joules) else learner.choose(state, may, rng)
        tell(choice, joules[choice] * float(rng.uniform(0.9, 1.1)))
    learner.choose(state, may, rng)
    assert learner.best(state, may) == (3,)
