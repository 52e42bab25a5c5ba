from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.offload import joint
from edgert.offload.joint import Joint, Tables
from edgert.offload.space import Floor, Outcome, State, Variant, allowed, full_space, meets, paper_space


def test_all_joint_actions_that_hold_the_floor_are_listed(variants: tuple[Variant, ...]) -> None:
    space, floor = paper_space(variants, 2), Floor(0.87, "average")
    may = allowed(space, floor)
    wanted = [each for each in itertools.product(range(10), repeat=2) if meets(space, floor, each)]
    assert [tuple(row) for row in Joint(space, floor).every(may).tolist()] == wanted


def test_eight_million_are_not_listed(variants: tuple[Variant, ...]) -> None:
    space = full_space(variants, 5)
    with pytest.raises(UsageError, match="listed"):
        Joint(space, Floor()).every(allowed(space, Floor()))


@pytest.mark.parametrize("mask", [((True,) * 9,) * 2, ((True,) * 10,), ((True,) * 10, (False,) * 10)])
def test_a_mask_of_another_shape_is_refused(variants: tuple[Variant, ...], mask: tuple[tuple[bool, ...], ...]) -> None:
    with pytest.raises(UsageError, match="mask"):
        Joint(paper_space(variants, 2), Floor()).mask(mask)


@pytest.mark.parametrize("floor", [Floor(0.88), Floor(0.88, "average"), Floor(1.0, "average")])
def test_what_is_drawn_holds_the_floor_and_varies(variants: tuple[Variant, ...], floor: Floor) -> None:
    space = full_space(variants, 4)
    found, rng = Joint(space, floor), np.random.default_rng(0)
    drawn = [joint.as_action(found.draw(allowed(space, floor), rng)) for _ in range(50)]
    assert all(meets(space, floor, action) for action in drawn)
    assert len(set(drawn)) > 20


def test_sharing_counts_the_others_at_a_node_and_nobody_at_home(variants: tuple[Variant, ...]) -> None:
    found = Joint(full_space(variants, 4), Floor())
    others, load = found.sharing(np.array([[8, 9, 0, 16]]))  # edge, edge, home, cloud
    assert others.tolist() == [[1, 1, 0, 0]]
    assert np.allclose(load, [[317 / 569, 1.0, 0, 0]])


def test_expectations_add_up(variants: tuple[Variant, ...]) -> None:
    found = Joint(full_space(variants, 2), Floor())
    ones = np.ones(found.choices)
    tables = Tables(np.ones((2, found.choices)), 2 * ones, 3 * ones, 4 * ones, 0.0)
    assert found.expect(tables, np.array([[8, 8], [0, 8]])).tolist() == [[1 + 2 + 3 + 4] * 2, [1, 1]]


def test_accuracy_is_bought_where_it_is_cheapest(variants: tuple[Variant, ...]) -> None:
    space, floor = paper_space(variants, 2), Floor(0.82, "average")
    scores = np.array([[9.0, 8, 7, 1, 9, 9, 9, 9, 9, 9], [2.0, 9, 9, 1, 9, 9, 9, 9, 9, 9]])
    found = Joint(space, floor)
    assert found.cheapest(scores, found.mask(allowed(space, floor))).tolist() == [3, 0]


def test_unknown_costs_are_unknown() -> None:
    found = joint.costs([Outcome(response_s=1.0), Outcome(response_s=2.0, joules=3.0)], 2, "energy")
    assert np.isnan(found[0]) and found[1] == 3.0
    with pytest.raises(UsageError):
        joint.costs([], 1, "response")


def test_a_state_of_other_users_is_refused() -> None:
    with pytest.raises(UsageError):
        joint.checked(State(users=()), 1)


def test_users_are_spread_in_all_ways() -> None:
    assert len({tuple(row) for row in joint.all_places(3).tolist()}) == 27
