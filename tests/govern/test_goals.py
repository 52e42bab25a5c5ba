from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.config import Goals
from edgert.govern import goals as wants
from edgert.govern.energy import Supply
from edgert.values import Carried, Clock


@pytest.mark.parametrize(
    ("said", "second_s", "now_s", "since_s", "left"),
    [
        (None, 0.0, 0.0, 0.0, math.inf),
        ("18:00", 17 * 3600.0, 5.0, 0.0, 3600.0),
        ("18:00", 18 * 3600.0, 5.0, 0.0, 86_400.0),
        ("18:00", 19 * 3600.0, 5.0, 0.0, 23 * 3600.0),
        ("0:05", 23 * 3600.0, 5.0, 0.0, 3900.0),
        ("2 h", 0.0, 3600.0, 0.0, 3600.0),
        ("2.5h", 0.0, 10_000.0, 9_000.0, 8000.0),
        ("2 h", 0.0, 99_999.0, 0.0, 0.0),
    ],
)
def test_until_when(said: str | None, second_s: float, now_s: float, since_s: float, left: float) -> None:
    assert wants.left_s(Goals(last_until=said), Clock(1, second_s), now_s, since_s) == pytest.approx(left)


def test_a_time_of_the_day_needs_a_clock_and_hours_do_not() -> None:
    assert wants.left_s(Goals(last_until="18:00"), None, 0.0) is None
    assert wants.left_s(Goals(last_until="1 h"), None, 0.0) == 3600.0


def test_the_power_that_lasts_leaves_the_reserve_and_the_doubt() -> None:
    supply = Supply(capacity_j=36_000.0, reserve_frac=0.05)
    plan_w, most_w = wants.spendable_w(supply, 0.55, 3600.0)
    assert most_w == pytest.approx(5.0) and plan_w == pytest.approx((0.5 - 0.01282) * 10)
    assert wants.spendable_w(supply, None, 3600.0) == (0.0, 0.0)
    assert wants.spendable_w(supply, 0.5, math.inf) == (math.inf, math.inf)
    assert wants.spendable_w(supply, 0.5, 0.0)[0] < math.inf


@given(st.floats(-1, 2), st.floats(0, 1), st.floats(0, 1e5))
def test_emptier_is_never_more_power(charge_frac: float, less: float, left: float) -> None:
    kind, harsh = (wants.spendable_w(Supply(), each, left) for each in (charge_frac, charge_frac - less))
    assert harsh[0] <= kind[0] <= kind[1] and harsh[1] <= kind[1]


def test_bytes_are_counted_by_the_day_of_the_wall() -> None:
    today, tomorrow = Clock(10, 0.0), Clock(11, 0.0)
    carried = wants.count(wants.count(None, today, 100), today, 50)
    assert carried == Carried(10, 150)
    assert wants.count(carried, None, 5) == Carried(10, 155)
    assert wants.count(carried, tomorrow, 7) == Carried(11, 7)
    assert wants.count(wants.count(None, None, 9), today, 1) == Carried(10, 10), "the clock was set later"
    assert wants.count(carried, today, -5).total_bytes == 150
    back = wants.count(carried, Clock(9, 86_000.0), 1)
    assert wants.count(back, today, 1) == Carried(10, 152), "a clock that is stepped to and fro makes no bytes"
    assert wants.count(Carried(99_999, 10**9), today, 1) == Carried(10, 1), "one that was years ahead is over"


def test_what_is_left_of_the_bytes_is_spread_over_what_is_left_of_the_day() -> None:
    goals = Goals(bytes_per_day=86_400)
    assert wants.byte_rate(Goals(), None, None) == math.inf
    assert wants.byte_rate(goals, None, None) == pytest.approx(1.0)
    assert wants.byte_rate(goals, Carried(1, 43_200), Clock(1, 43_200.0)) == pytest.approx(1.0)
    assert wants.byte_rate(goals, Carried(1, 99_999), Clock(1, 43_200.0)) == 0.0
    assert wants.byte_rate(goals, Carried(1, 0), Clock(1, 86_399.0)) == pytest.approx(144.0), "not all in one second"


@pytest.mark.parametrize(
    ("goals", "stated"),
    [
        (Goals(), False),
        (Goals(deadline_s=0.1, bytes_per_day=5, memory_max_bytes=9), False),
        (Goals(max_power_w=3.0), True),
        (Goals(last_until="1 h"), True),
        (Goals(min_return_frac=0.5), True),
        (Goals(least_energy=True), True),
    ],
)
def test_only_return_and_energy_open_the_whole_frontier(goals: Goals, stated: bool) -> None:
    assert wants.stated(goals) is stated
