from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgert.errors import ArtifactError, UsageError
from edgert.offload.hybrid import Hybrid
from edgert.offload.space import Floor, Learner, Outcome, Space, State, Variant, allowed, full_space, meets, paper_space


def lowest(space: Space, floor: Floor, world: Any) -> float:
    actions = Hybrid(space, floor).joint.every(allowed(space, floor)).tolist()
    return float(min(world.mean_s(tuple(action)) for action in actions))


@pytest.mark.parametrize("floor", [Floor(), Floor(0.88), Floor(0.86, "average")])
def test_it_is_close_to_the_best_after_few_requests(variants: tuple[Variant, ...], toy: Any, floor: Floor) -> None:
    space = full_space(variants, 3)
    world = toy(space, (True, False, False))
    best = lowest(space, floor, world)
    gaps = []
    for seed in range(3):
        learner = Hybrid(space, floor)
        world.teach(learner, 60, np.random.default_rng(seed))
        gaps.append(world.mean_s(learner.best(world.state, allowed(space, floor))) / best - 1)
    assert np.median(gaps) < 0.02


@pytest.mark.parametrize("floor", [Floor(0.88), Floor(0.86, "average"), Floor(1.0)])
def test_the_floor_holds_from_the_first_request(variants: tuple[Variant, ...], toy: Any, floor: Floor) -> None:
    space, rng = full_space(variants, 4), np.random.default_rng(0)
    world, learner = toy(space), Hybrid(space, floor)
    may = allowed(space, floor)
    for _ in range(40):
        action = learner.choose(world.state, may, rng)
        assert meets(space, floor, action)
        assert meets(space, floor, learner.best(world.state, may))
        learner.observe(world.state, action, world.outcomes(action, rng))


def test_after_a_change_it_finds_the_new_best(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor, rng = full_space(variants, 2), Floor(0.89), np.random.default_rng(1)
    world, learner = toy(space), Hybrid(space, floor)
    world.teach(learner, 80, rng)
    world.slow = 8.0  # nobody reports it
    world.teach(learner, 40, rng)
    assert learner.changes > 0
    gap = world.mean_s(learner.best(world.state, allowed(space, floor))) / lowest(space, floor, world) - 1
    assert gap < 0.05


def test_one_device_uses_what_is_reported(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor, rng = full_space(variants, 1), Floor(0.9), np.random.default_rng(2)
    near, far = toy(space, (False,)), toy(space, (True,))
    learner = Hybrid(space, floor)
    for _ in range(30):
        near.teach(learner, 1, rng)
        far.teach(learner, 1, rng)
    may = allowed(space, floor)
    for world in (near, far):
        assert world.mean_s(learner.best(world.state, may)) < 1.05 * lowest(space, floor, world)


def test_a_place_that_is_down_is_not_chosen(variants: tuple[Variant, ...], toy: Any) -> None:
    space, rng = full_space(variants, 2), np.random.default_rng(0)
    world, learner = toy(space), Hybrid(space, Floor())
    world.teach(learner, 30, rng)
    may = allowed(space, Floor(), places=[frozenset({"device"})] * 2)
    for action in (learner.choose(world.state, may, rng), learner.best(world.state, may)):
        assert all(space.choices[each].place == "device" for each in action)


@pytest.mark.parametrize("floor", [Floor(0.88), Floor(0.86, "average")])
def test_it_goes_on_where_it_stopped(variants: tuple[Variant, ...], toy: Any, floor: Floor) -> None:
    space = paper_space(variants, 3)
    world, learner = toy(space), Hybrid(space, floor)
    learner_protocol: Learner = learner
    world.teach(learner_protocol, 40, np.random.default_rng(0))
    again = Hybrid(space, floor)
    again.restore(learner.save())
    assert again.save() == learner.save()
    assert world.teach(learner, 20, np.random.default_rng(3)) == world.teach(again, 20, np.random.default_rng(3))
    with pytest.raises(ArtifactError):
        Hybrid(space, Floor()).restore(learner.save())


def test_a_lost_answer_is_dear(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor, rng = full_space(variants, 1), Floor(0.9), np.random.default_rng(0)
    world, learner = toy(space), Hybrid(space, floor)
    world.teach(learner, 20, rng)
    may = allowed(space, floor)
    there = learner.best(world.state, may)
    assert space.choices[there[0]].place != "device"
    for _ in range(12):
        learner.observe(world.state, there, (Outcome(response_s=0.1, failed_s=1.0),))
    assert learner.best(world.state, may) != there


def test_guesses_say_how_sure_they_are(variants: tuple[Variant, ...], toy: Any) -> None:
    space = full_space(variants, 1)
    world, learner = toy(space), Hybrid(space, Floor())
    world.teach(learner, 40, np.random.default_rng(0))
    (row,) = learner.guess(world.state)
    assert len(row) == len(space.choices)
    best = learner.best(world.state, allowed(space, Floor()))[0]
    assert row[best].response_s == pytest.approx(world.seconds((best,))[0], rel=0.15)
    assert row[best].std_s < max(each.std_s for each in row)


def test_energy_may_be_the_goal(variants: tuple[Variant, ...], toy: Any) -> None:
    space, rng = full_space(variants, 1), np.random.default_rng(0)
    world, learner = toy(space), Hybrid(space, Floor(0.9), "energy")
    may = allowed(space, Floor(0.9))
    for _ in range(30):
        action = learner.choose(world.state, may, rng)
        joules = 5.0 if space.choices[action[0]].place == "device" else 1.0 + action[0] * 0.05
        outcome = Outcome(response_s=1.0, joules=joules * float(rng.uniform(0.97, 1.03)))
        learner.observe(world.state, action, (outcome,))
    assert space.choices[learner.best(world.state, may)[0]].place == "edge"


def test_states_of_others_are_refused(variants: tuple[Variant, ...]) -> None:
    space = full_space(variants, 2)
    learner = Hybrid(space, Floor())
    with pytest.raises(UsageError):
        learner.observe(State(users=()), (0, 0), [Outcome(response_s=1.0)] * 2)
    with pytest.raises(UsageError):
        learner.guess(State(users=()))


def test_the_words_need_no_numpy() -> None:
    assert msgspec.to_builtins(Floor()) == {"accuracy_frac": 0.0, "per": "user"}


def test_answers_before_a_late_report_are_put_down_to_the_new_state(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor = full_space(variants, 1), Floor(0.9)
    near, far = toy(space, (False,)), toy(space, (True,))
    there = next(i for i, choice in enumerate(space.choices) if choice.place == "cloud")

    def learned(reported_late: bool) -> float:
        rng, learner = np.random.default_rng(0), Hybrid(space, floor)
        near.teach(learner, 30, rng)
        for _ in range(12):
            learner.observe(near.state, (there,), near.outcomes((there,), rng))
        for step in range(7):  # the link has become slow, and nobody says so before the seventh
            told = near.state if reported_late and step < 6 else far.state
            learner.observe(told, (there,), far.outcomes((there,), rng))
        return learner.guess(near.state)[0][there].response_s

    truth = near.seconds((there,))[0]
    assert abs(learned(True) - learned(False)) < 0.05 * truth
    assert learned(True) == pytest.approx(truth, rel=0.2)


def test_once_it_knows_it_seldom_tries_anything_else(variants: tuple[Variant, ...], toy: Any) -> None:
    space, floor = full_space(variants, 2), Floor(0.88)
    world, learner = toy(space), Hybrid(space, floor)
    costs = world.teach(learner, 200, np.random.default_rng(0))
    assert np.mean(costs[150:]) < 1.02 * lowest(space, floor, world)
    assert np.mean(costs[150:]) < np.mean(costs[:50])
