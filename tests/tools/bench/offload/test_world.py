from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgert.offload.joint import Joint
from edgert.offload.space import Floor, allowed
from tools.bench.offload.world import SETUP, Case, World, share, spaces


def world(users: int, links: str = "B", space: str = "full") -> World:
    return World(Case(users, links), spaces(users)[space], 0, SETUP)


@pytest.mark.parametrize(
    ("arrivals", "works", "ends"),
    [
        ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0)),
        ((0.0, 0.1), (1.0, 1.0), (1.9, 2.0)),
        ((0.0, 2.0), (1.0, 1.0), (1.0, 3.0)),
        ((0.0, 0.0), (1.0, 3.0), (2.0, 4.0)),
    ],
)
def test_who_is_there_at_a_time_shares(
    arrivals: tuple[float, ...], works: tuple[float, ...], ends: tuple[float, ...]
) -> None:
    rows = [np.array([[each] for each in row], np.float32) for row in (arrivals, works)]
    assert share(*rows, 0.0).ravel().tolist() == pytest.approx(ends, rel=1e-5)


def test_nobody_is_served_where_nobody_is() -> None:
    done = share(np.array([[0.0], [np.inf]], np.float32), np.array([[1.0], [np.inf]], np.float32), 0.5)
    assert done.ravel().tolist() == [1.0, np.inf]


@pytest.mark.parametrize("floor", [Floor(), Floor(0.85), Floor(0.86, "average"), Floor(1.0)])
def test_the_oracle_is_the_best_of_all(floor: Floor) -> None:
    where = world(2)
    every = Joint(where.space, floor).every(allowed(where.space, floor))
    means = where.means(every).mean(axis=1)
    action, lowest = where.oracle(floor)
    assert lowest == pytest.approx(float(means.min()), rel=1e-6)
    assert where.mean_s(action) == pytest.approx(lowest, rel=1e-6)


def test_answers_have_the_mean_that_is_known() -> None:
    where, rng = world(3), np.random.default_rng(0)
    action = (9, 9, 17)
    took = where.steps(np.array([action] * 4000), rng).mean(axis=0)
    assert np.allclose(took, where.means(np.array([action]))[0], rtol=0.03)


def test_neighbours_and_weak_links_cost_time() -> None:
    where = world(2, "A")
    alone, together = where.mean_s((8, 0)), where.means(np.array([[8, 8]]))[0]
    assert together[0] > 1.5 * where.means(np.array([[8, 0]]))[0][0] > 0 and alone > 0
    assert world(2, "C").mean_s((8, 8)) > where.mean_s((8, 8))


def test_a_flip_turns_every_link() -> None:
    plain, flipped = Case(4, "B"), Case(4, "B", flipped=True)
    assert [a != b for a, b in zip(plain.weak, flipped.weak, strict=True)] == [True] * 4


def test_one_seed_is_one_world() -> None:
    assert world(2).mean_s((1, 9)) == world(2).mean_s((1, 9))
    other = World(Case(2, "B"), spaces(2)["full"], 1, SETUP)
    assert other.mean_s((1, 9)) != world(2).mean_s((1, 9))


def test_what_monitors_tell_is_what_links_are() -> None:
    state = world(2).state()
    assert [load.rtt_s for load in state.users] == [SETUP.weak_rtt_s, SETUP.regular_rtt_s]
    assert msgspec.structs.replace(SETUP) == SETUP
