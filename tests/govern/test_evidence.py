"""The test behind a roll-back: exact where it can be counted, quiet where nothing changed."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.govern.evidence import LEVELS, LOOKS, look, mean, p_lower

small = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=5)


@given(before=small, after=small)
def test_it_is_the_share_of_all_ways_to_cut_the_list(before: list[float], after: list[float]) -> None:
    pooled = after + before
    low, high = min(pooled), max(pooled)
    levels = [round((v - low) / ((high - low) / LEVELS)) if high > low else 0 for v in pooled]
    sums = [sum(chosen) for chosen in combinations(levels, len(after))]
    assert p_lower(before, after) == pytest.approx(sum(s <= sum(levels[: len(after)]) for s in sums) / len(sums))


@given(before=small, after=small, scale=st.floats(0.01, 1e6), shift=st.floats(-1e3, 1e3))
def test_the_unit_of_a_return_is_nothing_to_it(
    before: list[float], after: list[float], scale: float, shift: float
) -> None:
    moved = p_lower([scale * v + shift for v in before], [scale * v + shift for v in after])
    # A figure that lies just between two steps may fall on either of them.
    assert moved == pytest.approx(p_lower(before, after), abs=0.2)


def test_equal_figures_are_no_evidence() -> None:
    assert p_lower([3.0] * 20, [3.0] * 20) == 1.0
    assert not look([0.0] * 20, [0.0] * 5, 1.0).worse


@pytest.mark.parametrize(("n_before", "found_at"), [(5, 12), (10, 5), (20, 3), (64, 3)])
def test_a_collapse_is_found_within_a_few_figures(n_before: int, found_at: int) -> None:
    rng = random.Random(0)
    before = [rng.gauss(10, 1) for _ in range(n_before)]
    after = [rng.gauss(0, 1) for _ in range(LOOKS[-1])]
    assert next(n for n in range(1, LOOKS[-1] + 1) if look(before, after[:n], 0.005).worse) == found_at


@pytest.mark.parametrize("draw", [lambda rng: rng.gauss(0, 1), lambda rng: float(int(rng.expovariate(0.5)))])
def test_false_alarms_are_no_more_often_than_promised(draw: object) -> None:
    rng, promised, runs = random.Random(1), 0.2, 300
    false = 0
    for _ in range(runs):
        before = [draw(rng) for _ in range(15)]  # type: ignore[operator]  # a lambda of the table
        after = [draw(rng) for _ in range(27)]  # type: ignore[operator]  # as above
        false += any(look(before, after[:n], promised).worse for n in LOOKS if n <= 27)
    assert false / runs <= promised


def test_between_two_looks_and_without_a_measure_nothing_is_said() -> None:
    assert look([5.0] * 9 + [6.0], [0.0] * 4, 0.5).p is None
    assert look([], [0.0] * 5, 0.5) == (False, None, None, 0.0, 5)
    assert mean([]) is None


def test_figures_beyond_counting_are_no_evidence_and_no_crash() -> None:
    for before, after in (([1e308] * 5, [-1e308] * 5), ([5e-324] * 5, [0.0] * 5)):
        assert p_lower(before, after) == 1.0
