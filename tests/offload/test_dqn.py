from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgert.errors import ArtifactError
from edgert.offload.dqn import DQN, OWED_MOST, Network, Training
from edgert.offload.space import Floor, Variant, allowed, meets, paper_space

HEADS = ["joint", "branches"]
SMALL = Training(hidden=24, decay=0.02, updates=2, learning_rate=3e-3)


def learner(space: Any, floor: Floor, head: Any) -> DQN:
    return DQN(space, floor, np.random.default_rng(7), head=head, training=SMALL)


def test_the_gradient_is_the_slope_of_the_error() -> None:
    rng = np.random.default_rng(0)
    net = Network(3, 4, 2, rng)
    x, target = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3), (5, 2)))
    ones = np.ones((5, 2), np.float32)
    net.params += 0.1 * rng.standard_normal(len(net.params)).astype(np.float32)
    before = net.params.copy()

    def loss() -> float:
        return float(0.5 * np.square(net.value(x).astype(np.float64) - target).sum() / len(x))

    slopes = []
    for at in range(len(before)):
        sides = []
        for step in (1e-2, -1e-2):
            net.params[at] = before[at] + step
            sides.append(loss())
        net.params[at] = before[at]
        slopes.append((sides[0] - sides[1]) / 2e-2)
    net.train(x, target, ones, 0.0)
    assert np.allclose(net._grads, slopes, atol=2e-2)


@pytest.mark.parametrize("head", HEADS)
def test_it_finds_what_is_good(variants: tuple[Variant, ...], toy: Any, head: Any) -> None:
    space, floor = paper_space(variants, 2), Floor(0.87)
    world, found = toy(space), learner(space, floor, head)
    world.teach(found, 300, np.random.default_rng(0))
    best = min(world.mean_s(tuple(each)) for each in found.joint.every(allowed(space, floor)).tolist())
    assert world.mean_s(found.best(world.state, allowed(space, floor))) < 1.3 * best


@pytest.mark.parametrize("head", HEADS)
def test_floor_and_checkpoint(variants: tuple[Variant, ...], toy: Any, head: Any) -> None:
    space, floor = paper_space(variants, 2), Floor(0.86, "average")
    world, found = toy(space), learner(space, floor, head)
    may, rng = allowed(space, floor), np.random.default_rng(0)
    for _ in range(40):
        action = found.choose(world.state, may, rng)
        assert meets(space, floor, action)
        found.observe(world.state, action, world.outcomes(action, rng))
    data = found.save()
    again = learner(space, floor, head)
    again.restore(data)
    assert world.teach(found, 20, np.random.default_rng(1)) == world.teach(again, 20, np.random.default_rng(1))
    with pytest.raises(ArtifactError):
        learner(space, Floor(), head).restore(data)


@pytest.mark.parametrize("head", HEADS)
def test_who_was_only_told_of_much_does_not_decide_late(variants: tuple[Variant, ...], toy: Any, head: Any) -> None:
    space = paper_space(variants, 1)
    world, dqn, rng = toy(space), learner(space, Floor(), head), np.random.default_rng(0)
    for _ in range(200):
        dqn.observe(world.state, (0,), world.outcomes((0,), rng))
    dqn.choose(world.state, allowed(space, Floor()), rng)
    assert 0 < dqn.network.steps <= OWED_MOST * SMALL.updates
