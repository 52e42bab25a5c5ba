from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
from tools.bench.rapidrl import statistics
from tools.bench.rapidrl.evaluation import Record
from tools.bench.rapidrl.policies import Policy
from tools.bench.rapidrl.statistics import Sample

WHOLE = 100


def record(returns: list[float], cost: int = WHOLE, ticks: int = 10, held: int = 0) -> Record:
    n = len(returns)
    return Record(
        key="",
        policy=Policy(role="x"),
        costs=[cost],
        returns=returns,
        exit_ticks=[[ticks]] * n,
        held_ticks=[held] * n,
    )


def sample(seeds: int = 3, episodes: int = 40, noise: float = 1.0) -> Sample:
    rng = np.random.default_rng(0)

    def around(mean: float) -> list[float]:
        return list(rng.normal(mean, noise, episodes))

    held = {
        seed: {"random": record(around(0), 0), "full-int8": record(around(10)), "half": record(around(5), 30)}
        for seed in range(seeds)
    }
    held[0]["once"] = record(around(8), 50, 10, 10)
    held[9] = {"random": record([0.0])}
    return Sample(held, WHOLE, np.random.default_rng(1), draws=400)


def test_draw_0_is_the_data_themselves() -> None:
    found = sample(noise=0)
    assert found.seeds == [0, 1, 2], "a seed without both references counts for nothing"
    assert found.normalised("half")[0] == pytest.approx(0.5)
    assert found.ops("half")[0] == pytest.approx(0.3)
    assert found.normalised("full-int8")[0] == pytest.approx(1)
    assert found.ops("once")[0] == pytest.approx(0.25), "ticks that repeat an action cost nothing"
    assert set(np.unique(found.normalised("half").round(9))) == {0.5}


def test_intervals_hold_the_truth_and_shrink_with_episodes() -> None:
    few, many = (statistics.interval(sample(episodes=n).normalised("half")) for n in (10, 400))
    for found in (few, many):
        assert found["ci"][0] < 0.5 < found["ci"][1]
    assert many["ci"][1] - many["ci"][0] < few["ci"][1] - few["ci"][0]


def test_a_policy_that_only_one_seed_has_is_normalised_by_that_seed() -> None:
    held = {
        0: {"random": record([0.0] * 5), "full-int8": record([10.0] * 5), "once": record([8.0] * 5)},
        1: {"random": record([0.0] * 5), "full-int8": record([100.0] * 5)},
    }
    found = Sample(held, WHOLE, np.random.default_rng(0), draws=200).normalised("once")
    known = found[np.isfinite(found)]
    assert found[0] == pytest.approx(0.8)
    assert known == pytest.approx(0.8)


def test_nothing_is_shared_out_where_the_full_network_is_no_better_than_chance() -> None:
    held = {0: {"random": record([5.0] * 4), "full-int8": record([5.0] * 4), "x": record([9.0] * 4)}}
    found = Sample(held, WHOLE, np.random.default_rng(0), draws=50).normalised("x")
    assert statistics.interval(found) == {"value": None, "ci": None}


def test_fronts_are_compared_along_straight_lines() -> None:
    x, y = statistics.by_cost(np.array([[1.0, 0.2]]), np.array([[1.0, 0.6]]))
    assert (x.tolist(), y.tolist()) == ([[0.2, 1.0]], [[0.6, 1.0]])
    theirs = np.array([[0.4, 1.0]]), np.array([[0.5, 1.0]])
    at, above = statistics.gains((x, y), theirs, np.array([0.2, 0.4, 0.7, 1.0]))
    assert at.tolist() == [0.4, 0.7, 1.0], "below the cheapest of theirs nothing is compared"
    assert above[0] == pytest.approx([0.7 - 0.5, 0.85 - 0.75, 0])


@given(st.lists(st.tuples(st.floats(0.2, 1), st.floats(-1, 2)), min_size=1, max_size=6))
def test_a_front_gains_nothing_over_itself(points: list[tuple[float, float]]) -> None:
    front = statistics.by_cost(*(np.array([column]) for column in zip(*points, strict=True)))
    at, above = statistics.gains(front, front)
    assert len(at) == above.shape[1]
    assert not above.any()


def test_an_empty_front_cannot_be_compared() -> None:
    found = sample()
    assert statistics.gains(found.front(["half"]), found.front(["nobody"]))[1].shape == (401, 0)
    x, y = found.front(["half"], with_full=True)
    assert (x[0, -1], y[0, -1]) == (1, 1)


def test_intervals_of_nothing() -> None:
    assert statistics.interval(np.full(10, np.nan)) == {"value": None, "ci": None}
    assert statistics.mean_known(np.array([[1.0, np.nan, 3.0], [np.nan] * 3]), 1).tolist()[0] == 2


def test_figures_measured_once_a_seed() -> None:
    rng = np.random.default_rng(0)
    drawn = [list(rng.normal(mean, 0.01, 50)) for mean in (0.4, 0.6)]
    found = statistics.over_seeds([0.4, 0.6], drawn, rng)
    assert found[0] == pytest.approx(0.5)
    assert found[1:].min() < 0.42
    assert found[1:].max() > 0.58
