from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.ports.board.physics import (
    Model,
    State,
    Task,
    advance,
    chip_w,
    freq_of,
    initial,
    shares,
)

MAINS = Model()
BATTERY = Model(capacity_j=20_000.0)
loads = st.floats(0.0, 6.0)
airs = st.floats(-20.0, 60.0)


def run(model: Model, state: State, seconds: float, load: float, air: float, **more: float) -> State:
    return advance(model, state, demand_cores=load, ambient_c=air, elapsed_s=seconds, **more)[0]


@pytest.mark.parametrize("load", [0.0, 1.0, 2.5])
def test_the_steady_state_is_the_sum_of_the_resistances(load: float) -> None:
    state = run(MAINS, initial(MAINS, ambient_c=20.0), 1e5, load, 20.0)
    assert state.temp_c == pytest.approx(20.0 + sum(MAINS.r_c_per_w) * chip_w(MAINS, load, 1.0))
    assert initial(MAINS, ambient_c=20.0, demand_cores=load).temp_c == pytest.approx(state.temp_c)


def test_one_stage_warms_as_an_exponential() -> None:
    model = Model(r_c_per_w=(10.0,), tau_s=(100.0,))
    cold = initial(model, ambient_c=20.0)
    warm_c = 20.0 + 10.0 * chip_w(model, 2.0, 1.0)
    state = run(model, cold, 100.0, 2.0, 20.0)
    assert state.temp_c == pytest.approx(warm_c + (cold.temp_c - warm_c) * math.exp(-1.0))


@given(load=loads, air=airs, cuts=st.lists(st.floats(0.01, 300.0), min_size=1, max_size=8))
def test_how_time_is_cut_changes_nothing_while_the_governor_sleeps(load: float, air: float, cuts: list[float]) -> None:
    model = Model(capacity_j=20_000.0, hot_c=200.0, trip_c=210.0)
    whole = run(model, initial(model), sum(cuts), load, air)
    state = initial(model)
    for cut in cuts:
        state = run(model, state, cut, load, air)
    assert state.temp_c == pytest.approx(whole.temp_c, abs=1e-6)
    assert state.charge_j == pytest.approx(whole.charge_j, abs=1e-3)


def test_nor_does_it_at_the_governors_own_pace() -> None:
    once = run(MAINS, initial(MAINS, ambient_c=55.0), 600.0, 4.0, 55.0)
    often = initial(MAINS, ambient_c=55.0)
    for _ in range(1200):
        often = run(MAINS, often, 0.5, 4.0, 55.0)
    assert once.level > 0
    assert (often.level, often.temp_c) == (once.level, pytest.approx(once.temp_c))


@given(load=loads, air=airs, seconds=st.floats(1.0, 3000.0), extra=st.floats(0.0, 5.0), supply=st.floats(0.0, 20.0))
def test_energy_is_neither_made_nor_lost(load: float, air: float, seconds: float, extra: float, supply: float) -> None:
    before = initial(BATTERY, charge_frac=0.5)
    after, done = advance(
        BATTERY, before, demand_cores=load, ambient_c=air, elapsed_s=seconds, extra_w=extra, supply_w=supply
    )
    taken_j = before.charge_j - after.charge_j
    given_j = supply * seconds
    if supply == 0.0:
        assert taken_j * BATTERY.efficiency_frac == pytest.approx(done.energy_j)
    # What the board drew came from charger or cell; whatever the cell took in, the charger gave.
    assert done.energy_j <= given_j + max(0.0, taken_j) + 1e-6
    assert -taken_j <= given_j * BATTERY.efficiency_frac + 1e-6
    assert 0.0 <= after.charge_j <= BATTERY.capacity_j
    assert done.executed_core_s <= BATTERY.cores * done.on_s + 1e-6
    assert 0.0 <= done.load_frac <= 1.0 + 1e-9


@given(air=airs, low=loads, high=loads, seconds=st.floats(1.0, 2000.0))
def test_more_work_never_cools_and_never_saves(air: float, low: float, high: float, seconds: float) -> None:
    low, high = sorted((low, high))
    model = Model(capacity_j=1e6, hot_c=500.0, trip_c=501.0)
    less, more = (run(model, initial(model), seconds, load, air) for load in (low, high))
    assert more.temp_c >= less.temp_c - 1e-9
    assert more.charge_j <= less.charge_j + 1e-6


@given(low=airs, high=airs, load=loads)
def test_hotter_air_never_cools(low: float, high: float, load: float) -> None:
    low, high = sorted((low, high))
    model = Model(hot_c=500.0, trip_c=501.0)
    cool, warm = (run(model, initial(model, ambient_c=20.0), 500.0, load, air) for air in (low, high))
    assert warm.temp_c >= cool.temp_c - 1e-9


def test_a_hot_board_is_stepped_down_and_comes_back() -> None:
    hot = run(MAINS, initial(MAINS), 1800.0, 4.0, 60.0)
    assert hot.level > 0
    assert hot.freq_frac == freq_of(MAINS, hot.level) < 1.0
    assert hot.temp_c < MAINS.trip_c
    cool = run(MAINS, hot, 1800.0, 0.0, 20.0)
    assert (cool.level, cool.freq_frac) == (0, 1.0)


def test_at_the_trip_point_the_lowest_clock_is_taken_at_once() -> None:
    state = run(MAINS, State(temp_c=90.0, rises_c=(10.0, 40.0), ambient_c=40.0), MAINS.poll_s, 0.0, 40.0)
    assert state.level == MAINS.freq_steps
    assert state.freq_frac == pytest.approx(MAINS.min_freq_frac)


def test_a_capped_clock_does_less_and_draws_less() -> None:
    _, full = advance(MAINS, initial(MAINS), demand_cores=4.0, ambient_c=10.0, elapsed_s=10.0)
    _, half = advance(MAINS, initial(MAINS), demand_cores=4.0, ambient_c=10.0, elapsed_s=10.0, freq_cap_frac=0.5)
    assert half.executed_core_s == pytest.approx(0.5 * full.executed_core_s)
    assert half.energy_j < 0.8 * full.energy_j
    assert half.load_frac == pytest.approx(1.0)


def test_an_empty_board_stops_and_starts_again_when_charged() -> None:
    model = Model(capacity_j=1000.0)
    dead, done = advance(model, initial(model), demand_cores=4.0, ambient_c=20.0, elapsed_s=3600.0)
    assert not dead.on
    assert dead.charge_j == 0.0
    assert done.energy_j == pytest.approx(1000.0 * model.efficiency_frac)
    assert done.on_s == pytest.approx(done.energy_j / 6.3)
    assert dead.temp_c == pytest.approx(20.0, abs=1.0), "it has cooled down"
    again, done = advance(model, dead, demand_cores=0.0, ambient_c=20.0, elapsed_s=60.0, supply_w=20.0)
    assert again.on
    assert 0 < done.on_s < 60.0


def test_time_that_stands_still_does_nothing() -> None:
    state = initial(BATTERY)
    after, done = advance(BATTERY, state, demand_cores=4.0, ambient_c=80.0, elapsed_s=0.0)
    assert after == state
    assert (done.executed_core_s, done.energy_j, done.on_s) == (0.0, 0.0, 0.0)


tasks = st.lists(
    st.builds(
        Task, demand_cores=st.floats(0.0, 8.0), weight=st.sampled_from([15.0, 1024.0]), threads=st.floats(0.5, 4.0)
    ),
    max_size=5,
)


@given(capacity=st.floats(0.0, 8.0), wanted=tasks)
def test_shares_give_all_there_is_and_no_more_than_is_wanted(capacity: float, wanted: list[Task]) -> None:
    given_ = shares(capacity, wanted)
    wants = [min(task.demand_cores, task.threads) for task in wanted]
    assert all(0.0 <= got <= want + 1e-9 for got, want in zip(given_, wants, strict=True))
    assert sum(given_) == pytest.approx(min(capacity, sum(wants)), abs=1e-6)


def test_shares_follow_weights_among_those_who_want_more() -> None:
    nice, not_nice = Task(demand_cores=1.0, weight=15.0), Task(demand_cores=1.0)
    assert shares(1.0, [nice, not_nice]) == pytest.approx((15 / 1039, 1024 / 1039))
    assert shares(1.0, [Task(demand_cores=0.1), not_nice]) == pytest.approx((0.1, 0.9))
