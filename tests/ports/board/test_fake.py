from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.ports.board.fake import BatteryBoard, ScriptedBoard, SimulatedBattery, SimulatedBoard, silence
from edgert.values import UNKNOWN, Reading, Readings


def test_script_is_played_once_and_its_end_stays() -> None:
    first, last = Readings(temp_c=Reading(50.0)), Readings(temp_c=Reading(60.0))
    board = ScriptedBoard([first, last])
    assert [board.read(0.0) for _ in range(3)] == [first, last, last]


def test_heat_follows_the_load_as_an_rc() -> None:
    board = SimulatedBoard(load=lambda now_s: 1.0, ambient_c=20.0, idle_rise_c=10.0, busy_rise_c=40.0, warming_s=100.0)
    assert board.read(0.0).temp_c.value == 30.0
    assert board.read(100.0).temp_c.value == pytest.approx(70.0 - 40.0 * 0.36787944)
    assert board.read(1e6).temp_c.value == pytest.approx(70.0)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=20))
def test_heat_and_charge_do_not_depend_on_how_often_one_looks(steps_s: list[float]) -> None:
    def board() -> BatteryBoard:
        cell = SimulatedBattery(capacity_j=10_000.0, idle_w=1.0, busy_w=2.0)
        return BatteryBoard(SimulatedBoard(load=lambda now_s: 0.5), cell)

    often, once = board(), board()
    often.read(0.0)
    once.read(0.0)
    now_s = 0.0
    for step_s in steps_s:
        now_s += step_s
        many = often.read(now_s)
    single = once.read(now_s)
    assert many.temp_c.value == pytest.approx(single.temp_c.value)
    assert many.battery_frac.value == pytest.approx(single.battery_frac.value)


def test_battery_integrates_idle_and_busy_power() -> None:
    battery = SimulatedBattery(capacity_j=1000.0, idle_w=2.0, busy_w=4.0)
    assert battery.drain(0.5, 10.0) == 4.0
    assert battery.charge_frac == pytest.approx(0.96)
    battery.drain(1.0, 1e9)
    assert battery.charge_frac == 0.0


def test_dead_sensors_are_silent_and_the_world_goes_on() -> None:
    board = BatteryBoard(SimulatedBoard(), SimulatedBattery(capacity_j=100.0, idle_w=1.0, busy_w=0.0))
    board.read(0.0)
    board.dead = {"battery_frac"}
    readings = board.read(10.0)
    assert (readings.battery_frac, readings.has_battery, readings.temp_c.value) == (UNKNOWN, True, 40.0)
    board.dead.clear()
    assert board.read(20.0).battery_frac.value == pytest.approx(0.8)


def test_a_clock_that_steps_back_gives_no_energy() -> None:
    board = BatteryBoard(SimulatedBoard(), SimulatedBattery(capacity_j=100.0, idle_w=1.0, busy_w=0.0))
    board.read(50.0)
    assert board.read(0.0).battery_frac.value == 1.0


def test_silence_names_only_sensors() -> None:
    readings = Readings(temp_c=Reading(1.0), has_battery=True)
    assert silence(readings, {"temp_c", "has_battery"}) == Readings(has_battery=True)
