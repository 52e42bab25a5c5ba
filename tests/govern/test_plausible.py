from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.govern.plausible import RULES, VOTES, WINDOW, State, judge
from edgert.values import UNKNOWN, Reading, Readings

CELL = "battery_frac"


def readings(name: str, value: float | None, age_s: float = 0.0, **more: object) -> Readings:
    return msgspec.structs.replace(Readings(), **{name: Reading(value, age_s, "here"), "has_battery": True}, **more)


def run(name: str, values: Iterable[float | None], step_s: float = 1.0) -> list[float | None]:
    """What is believed after each sample."""
    state, believed = State(), []
    for turn, value in enumerate(values):
        state, told = judge(state, readings(name, value), 100.0 + turn * step_s)
        believed.append(getattr(told, name).value)
    return believed


LIES = [
    (CELL, 0.6, 0.0),  # 0.0 V
    (CELL, 0.6, 600.0),  # a thousand times too much
    (CELL, 0.6, 1.0),  # one cell too few
    (CELL, 0.6, 0.05),  # one too many
    (CELL, 0.6, -0.1),
    (CELL, 0.6, math.nan),
    ("temp_c", 50.0, 85.0),  # power-on value of a sensor
    ("temp_c", 50.0, 127.0),
    ("temp_c", 50.0, -40.0),
    ("temp_c", 50.0, 50_000.0),  # millidegrees
    ("temp_c", 50.0, math.inf),
    ("power_w", 5.0, 0.0),
    ("power_w", 5.0, 5000.0),  # milliwatts
    ("power_w", 5.0, 99.0),
    ("load_frac", 0.5, 50.0),  # percent
    ("rssi_dbm", -56.0, 40.0),
]


@pytest.mark.parametrize(("name", "good", "lie"), LIES)
def test_a_lie_or_two_move_nothing(name: str, good: float, lie: float) -> None:
    assert run(name, [good] * 3 + [lie] + [good]) == [good] * 5
    assert run(name, [good] * 3 + [lie] * 2 + [good]) == [good] * 6


@pytest.mark.parametrize(("name", "good", "lie"), LIES)
def test_what_is_held_is_as_old_as_it_is_and_refusals_are_counted(name: str, good: float, lie: float) -> None:
    state, told = judge(State(), readings(name, good), 100.0)
    state, told = judge(state, readings(name, lie), 101.5)
    held = getattr(told, name)
    assert (held.value, held.age_s, held.source) == (good, 1.5, "here")
    assert state.refused == {name: 1}


@given(st.data())
@settings(max_examples=60)
def test_fewer_lies_than_votes_in_any_window_never_pass(data: st.DataObject) -> None:
    """Whatever they say, at any place, as long as the sensor is honest more often than not."""
    name, good, slack = data.draw(st.sampled_from([(CELL, 0.6, 0.11), ("temp_c", 50.0, 20.1), ("power_w", 5.0, 40.1)]))
    lying = data.draw(st.lists(st.booleans(), min_size=10, max_size=40))
    values, told = [good] * WINDOW, []
    for lies in lying:
        lies = lies and sum(value != good for value in values[-(WINDOW - 1) :]) < VOTES - 1
        values.append(data.draw(st.floats(allow_nan=True)) if lies else good)
    told = run(name, values)
    assert all(each is not None and abs(each - good) <= 2 * slack for each in told)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (CELL, 0.9, 0.2),
        (CELL, 0.3, 1.0),
        (CELL, 0.6, 0.0),
        ("temp_c", 45.0, 99.0),
        ("temp_c", 90.0, 30.0),
        ("power_w", 3.0, 60.0),
    ],
)
def test_a_real_change_gets_through_after_as_many_samples_as_are_asked_for(
    name: str, before: float, after: float
) -> None:
    assert run(name, [before] * WINDOW + [after] * VOTES) == [before] * (WINDOW + VOTES - 1) + [after]


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 20))
def test_whatever_a_sensor_goes_on_saying_is_believed_in_the_end(before: float, after: float, turns: int) -> None:
    assert run(CELL, [before] * turns + [after] * (VOTES + 1))[-1] == after


@settings(max_examples=30)
@given(st.lists(st.floats(-40.0, 150.0), min_size=1, max_size=30))
def test_a_die_that_warms_as_fast_as_it_can_is_followed_at_once(steps: list[float]) -> None:
    temps = [50.0]
    for step in steps:
        temps.append(min(94.0, max(-40.0, temps[-1] + max(-19.0, min(19.0, step)))))
    assert run("temp_c", temps) == temps


def test_the_charge_of_a_running_machine_is_followed_at_once() -> None:
    charges = [1.0 - turn / 3600 for turn in range(3600)]
    assert run(CELL, charges[:3000]) == charges[:3000]


def test_one_sample_told_again_and_again_is_one_vote() -> None:
    state, _ = judge(State(), readings(CELL, 0.9), 100.0)
    for turn in range(20):
        now_s = 102.0 + turn
        state, told = judge(state, readings(CELL, 0.1, age_s=now_s - 101.0), now_s)
        assert told.battery_frac.value == 0.9
        assert told.battery_frac.age_s == pytest.approx(now_s - 100.0)
    assert state.refused == {CELL: 1}


def test_a_sensor_that_goes_on_lying_impossibly_ends_as_old_as_its_last_good_word() -> None:
    state, _ = judge(State(), readings(CELL, 0.9), 100.0)
    for turn in range(60):
        state, told = judge(state, readings(CELL, 300.0), 101.0 + turn)
    assert told.battery_frac == Reading(0.9, 60.0, "here")


@pytest.mark.parametrize(("name", "first"), [(CELL, 0.0), (CELL, 0.04), ("temp_c", 127.0)])
def test_a_first_word_that_calls_for_measures_is_voted_on(name: str, first: float) -> None:
    assert run(name, [first] * VOTES) == [None] * (VOTES - 1) + [first]
    assert run(name, [first, 60.0 if name == "temp_c" else 0.6])[1] is not None


def test_a_mild_first_word_is_believed() -> None:
    assert run(CELL, [0.6]) == [0.6]
    assert run("temp_c", [50.0]) == [50.0]


@pytest.mark.parametrize(("volts", "believed"), [(3.7, 0.5), (0.0, None), (3700.0, None), (0.0037, None)])
def test_a_charge_beside_a_voltage_no_pack_has_is_not_believed(volts: float, believed: float | None) -> None:
    told = readings(CELL, 0.5, detail={"battery_v": Reading(volts, 0.0, "here")})
    assert judge(State(), told, 0.0)[1].battery_frac.value == believed


def test_silence_is_passed_on() -> None:
    assert run(CELL, [0.6, None, 0.6]) == [0.6, None, 0.6]
    state, told = judge(State(), Readings(), 0.0)
    assert (state, told) == (State(), Readings())


def test_whether_a_charger_is_there_is_voted_on() -> None:
    state, said = State(), [True, True, False, True, False, False, True, False, None, None]
    believed = []
    for turn, each in enumerate(said):
        state, told = judge(state, readings(CELL, 0.5, external_power=each), float(turn))
        believed.append(told.external_power)
    assert believed == [True] * 5 + [False] * 5


def test_one_look_at_the_charger_told_again_is_one_vote() -> None:
    state, _ = judge(State(), readings(CELL, 0.5, external_power=True), 0.0)
    for turn in range(1, 10):
        state, told = judge(state, readings(CELL, 0.5, age_s=turn - 1.0, external_power=False), float(turn))
        assert told.external_power is True


SAMPLES = st.builds(
    Reading,
    st.none() | st.floats(allow_nan=True),
    st.floats(allow_nan=True),
    st.just("here"),
)
ANYTHING = st.builds(
    Readings,
    **dict.fromkeys(RULES, SAMPLES),
    external_power=st.none() | st.booleans(),
    detail=st.dictionaries(st.sampled_from(["battery_v", "x_w"]), SAMPLES),
)


@settings(max_examples=40)
@given(st.lists(st.tuples(ANYTHING, st.floats(0, 1e6)), max_size=3))
def test_nothing_that_can_be_read_is_too_much_and_all_that_is_told_is_possible(
    looks: list[tuple[Readings, float]],
) -> None:
    state = State()
    for seen, now_s in looks:
        state, told = judge(state, seen, now_s)
        assert judge(state, seen, now_s)[0] == state, "a second call with the same readings"
        for name, rule in RULES.items():
            each = getattr(told, name)
            assert each.value is None or rule.low <= each.value <= rule.high


def test_a_second_call_with_the_same_readings_changes_nothing() -> None:
    seen = readings(CELL, 0.5, temp_c=Reading(300.0), external_power=True, power_w=UNKNOWN)
    state, told = judge(State(), seen, 10.0)
    assert judge(state, seen, 10.0) == (state, told)
