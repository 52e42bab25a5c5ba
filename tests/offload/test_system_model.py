from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgert.offload.joint import Joint
from edgert.offload.space import Floor, Load, Variant, allowed, full_space
from edgert.offload.system_model import SystemModel


def taught(joint: Joint, world: Any, steps: int, seed: int = 0) -> SystemModel:
    model, rng = SystemModel(joint), np.random.default_rng(seed)
    for _ in range(steps):
        action = joint.draw(allowed(joint.space, joint.floor), rng)
        outcomes = world.outcomes(tuple(action.tolist()), rng)
        model.update(world.state, action, np.array([each.response_s for each in outcomes]))
    return model


def test_it_learns_what_joint_actions_cost_that_it_never_saw(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 3), Floor())
    world = toy(joint.space, (True, False, False))
    rng = np.random.default_rng(9)
    errors = []
    for steps in (5, 150):
        model = taught(joint, world, steps)
        actions = np.array([joint.draw(allowed(joint.space, Floor()), rng) for _ in range(200)])
        expected = joint.expect(model.tables(world.state), actions)
        true = np.array([world.seconds(tuple(row)) for row in actions.tolist()])
        errors.append(float(np.mean(np.abs(expected - true)) / np.mean(true)))
    assert errors[1] < 0.12 < errors[0]


def test_what_was_seen_makes_it_sure(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 2), Floor())
    world = toy(joint.space)
    before, after = taught(joint, world, 1), taught(joint, world, 60)
    assert (after.std(world.state) < before.std(world.state)).mean() > 0.9
    action = np.array([0, 8])
    assert after.std(world.state, action).shape == (2,)


def test_tables_and_features_agree(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 2), Floor())
    world = toy(joint.space, (True, False))
    state = msgspec.structs.replace(world.state, edge=Load(cpu_frac=0.4))
    model = taught(joint, world, 20)
    assert model.scale is not None
    assert np.allclose(model.tables(state).alone, model.features(state) @ model.mean * model.scale)


def test_drawn_models_scatter_as_the_posterior_does(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 1), Floor())
    world = toy(joint.space)
    model, rng = taught(joint, world, 10), np.random.default_rng(0)
    drawn = np.array([model.tables(world.state, model.sample(rng)).alone[0] for _ in range(800)])
    assert np.allclose(drawn.std(axis=0), model.std(world.state)[0], rtol=0.15)


def test_the_root_stays_a_root_of_the_filters_covariance(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 1), Floor())
    world, model = toy(joint.space), SystemModel(joint)
    model.scale = 1.0
    before = model.root @ model.root.T
    row = model.features(world.state)[0, 3]
    noise = (model.noise_frac * max(float(row @ model.mean), 0.5)) ** 2
    model.update(world.state, np.array([3]), np.array([0.5]))
    spread = before @ row
    assert np.allclose(model.root @ model.root.T, before - np.outer(spread, spread) / (row @ spread + noise))


def test_a_jump_raises_an_alarm_and_makes_it_unsure(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 2), Floor())
    world = toy(joint.space)
    model = taught(joint, world, 100)
    action, rng = np.array([8, 0]), np.random.default_rng(2)
    sure = model.std(world.state, action)[0]
    world.slow = 3.0
    alarms = []
    while not any(alarms) and len(alarms) < 20:
        outcomes = world.outcomes((8, 0), rng)
        alarms.append(bool(model.update(world.state, action, np.array([o.response_s for o in outcomes])).any()))
    assert any(alarms[:10])
    assert model.std(world.state, action)[0] > 2 * sure


def test_nothing_known_teaches_nothing(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 1), Floor())
    model = SystemModel(joint)
    assert not model.update(toy(joint.space).state, np.array([0]), np.array([np.nan])).any()
    assert model.scale is None


def test_covariances_of_joint_actions_are_those_of_drawn_models(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 2), Floor())
    world = toy(joint.space)
    model, rng = taught(joint, world, 60), np.random.default_rng(0)
    actions = np.array([[0, 9], [10, 18]])
    drawn = np.array(
        [joint.expect(model.tables(world.state, model.sample(rng)), actions).sum(axis=1) for _ in range(1500)]
    )
    rows = model.spread(world.state, actions)
    assert np.allclose(np.cov(drawn.T), rows @ rows.T, rtol=0.2, atol=0.1 * (rows @ rows.T).max())


def test_an_answer_is_likelier_in_the_state_that_it_was_given_in(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 1), Floor())
    near, far = toy(joint.space, (False,)), toy(joint.space, (True,))
    model, rng = taught(joint, near, 60), np.random.default_rng(1)
    action = np.array([8])
    cost = np.array([near.outcomes((8,), rng)[0].response_s])
    assert model.likelihood(near.state, action, cost) > model.likelihood(far.state, action, cost) + 1.0
    assert SystemModel(joint).likelihood(near.state, action, cost) == 0.0
    assert model.likelihood(near.state, action, np.array([np.nan])) == 0.0


def test_a_round_trip_is_expected_to_cost_its_time_and_no_joules(variants: tuple[Variant, ...], toy: Any) -> None:
    joint = Joint(full_space(variants, 1), Floor())
    near, far = toy(joint.space, (False,)), toy(joint.space, (True,))
    edge = next(i for i, place in enumerate(joint.place) if place == 1)
    for goal, wanted in (("response", 0.038), ("energy", 0.0)):
        model = SystemModel(joint, goal)  # type: ignore[arg-type]  # one of its words
        model.update(near.state, np.array([0]), np.array([0.1]))
        apart = model.guess(far.state)[0][edge].response_s - model.guess(near.state)[0][edge].response_s
        assert abs(apart - wanted) < 0.005
