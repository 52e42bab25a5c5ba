from __future__ import annotations

import numpy as np
import pytest

from edgert.offload.joint import Joint, Tables
from edgert.offload.planner import DEPTH_NONE, DEPTH_ONE, DEPTH_SPREAD, DEPTH_TWO, Planner
from edgert.offload.space import Floor, Variant, allowed, full_space


def tables(joint: Joint, seed: int) -> Tables:
    rng = np.random.default_rng(seed)
    speed = np.array([1.0, 2.0, 4.0])[joint.place]
    alone = (0.2 + joint.macs) / speed * rng.uniform(0.7, 1.3, (joint.users, joint.choices)) + 0.1 * joint.place
    each = np.where(joint.place > 0, (0.1 + 0.3 * joint.macs) / speed, 0.0)
    return Tables(alone, each, np.zeros(joint.choices), each, 0.0)


@pytest.mark.parametrize("per", ["user", "average"])
def test_it_is_close_to_an_exhaustive_search(variants: tuple[Variant, ...], per: str) -> None:
    space = full_space(variants, 3)
    gaps = []
    for seed in range(12):
        floor = Floor(0.86, per)  # type: ignore[arg-type]  # parametrised words of a Literal
        joint = Joint(space, floor)
        may, model = allowed(space, floor), tables(joint, seed)

        def value(actions: np.ndarray, joint: Joint = joint, model: Tables = model) -> np.ndarray:
            return np.asarray(joint.expect(model, actions).sum(axis=1))

        every = joint.every(may)
        best = float(value(every).min())
        found = Planner(joint).plan(value, model.alone, joint.mask(may), every[:0], DEPTH_TWO)
        assert joint.holds(found).all() and joint.mask(may)[np.arange(3), found].all()
        gaps.append(float(value(found[:1])[0]) / best - 1)
    assert np.mean(gaps) < 0.005 and max(gaps) < 0.03


def test_deeper_is_never_worse(variants: tuple[Variant, ...]) -> None:
    space = full_space(variants, 4)
    joint = Joint(space, Floor())
    mask = joint.mask(allowed(space, Floor()))
    for seed in range(5):
        model, costs = tables(joint, seed), []
        for depth in (DEPTH_NONE, DEPTH_SPREAD, DEPTH_ONE, DEPTH_TWO):
            found = Planner(joint).plan(
                lambda actions, model=model: joint.expect(model, actions).sum(axis=1),  # type: ignore[misc]  # bound early
                model.alone,
                mask,
                joint.safest(mask)[None],
                depth,
            )
            costs.append(float(joint.expect(model, found[:1]).sum()))
        assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]


def test_it_ends_where_all_is_equal_or_negative(variants: tuple[Variant, ...]) -> None:
    space = full_space(variants, 2)
    joint = Joint(space, Floor())
    mask = joint.mask(allowed(space, Floor()))
    for level in (0.0, -3.0):
        alone = np.full(mask.shape, level)
        found = Planner(joint).plan(
            lambda actions, alone=alone: alone[np.arange(2), actions].sum(axis=1),  # type: ignore[misc]  # bound early
            alone,
            mask,
            np.empty((0, 2), np.intp),
        )
        assert len(found)


def test_what_may_not_be_taken_now_is_no_start(variants: tuple[Variant, ...]) -> None:
    space = full_space(variants, 2)
    joint = Joint(space, Floor())
    may = allowed(space, Floor(), places=[frozenset({"device"})] * 2)
    starts = np.array([[8, 16]])
    found = Planner(joint).plan(
        lambda actions: -actions.sum(axis=1).astype(float), None, joint.mask(may), starts, DEPTH_NONE
    )
    assert (found < 8).all()


def test_many_users_begin_from_what_is_known(variants: tuple[Variant, ...]) -> None:
    space = full_space(variants, 8)
    joint = Joint(space, Floor())
    mask = joint.mask(allowed(space, Floor()))
    model = tables(joint, 0)
    found = Planner(joint).plan(
        lambda actions: joint.expect(model, actions).sum(axis=1), model.alone, mask, joint.safest(mask)[None], DEPTH_ONE
    )
    assert joint.expect(model, found[:1]).sum() < joint.expect(model, joint.safest(mask)[None]).sum()
