from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.config import Govern
from edgert.govern.estimate import Estimate, Mean, mix, scales, update
from edgert.values import UNKNOWN, Reading, Readings

GOVERN = Govern()
RAW = Govern(smooth_s=0.0)
ANY = st.none() | st.floats()
READING = st.builds(Reading, ANY, st.floats())
READINGS = st.builds(
    Readings,
    load_frac=READING,
    temp_c=READING,
    battery_frac=READING,
    power_w=READING,
    link_rtt_s=READING,
    has_battery=st.booleans(),
)


def look(temps_c: list[float | None], govern: Govern = GOVERN, start: Estimate | None = None) -> list[Estimate]:
    """One look a second, each with this temperature."""
    estimate = start or Estimate()
    seen = []
    for temp_c in temps_c:
        now_s = 0.0 if estimate.at_s is None else estimate.at_s + 1.0
        estimate = update(estimate, Readings(temp_c=Reading(temp_c)), now_s, govern)
        seen.append(estimate)
    return seen


def test_first_sample_is_believed_whole() -> None:
    assert look([61.0])[-1].temp_c.value == 61.0


def test_average_follows_the_exponential() -> None:
    after = look([0.0, *[100.0] * 5])[-1]
    assert after.temp_c.value == pytest.approx(100.0 * (1 - math.exp(-5.0 / GOVERN.smooth_s)))


def test_average_does_not_depend_on_how_often_one_looks() -> None:
    often = look([0.0, *[100.0] * 4])[-1]
    once = update(look([0.0])[-1], Readings(temp_c=Reading(100.0)), 4.0, GOVERN)
    assert often.temp_c.value == pytest.approx(once.temp_c.value)


@pytest.mark.parametrize(
    ("temps_c", "level"),
    [
        ([74.9], 0),
        ([75.0], 1),
        ([85.0], 2),
        ([75.0, 72.0], 1),
        ([75.0, 71.0], 0),
        ([72.0], 0),
        ([85.0, 82.0], 2),
        ([85.0, 81.0], 1),
        ([85.0, 20.0], 0),
    ],
)
def test_bands_have_hysteresis(temps_c: list[float | None], level: int) -> None:
    assert look(temps_c, RAW)[-1].temp_c.level == level


@given(st.lists(st.floats(71.1, 74.9), max_size=30), st.sampled_from([20.0, 80.0]))
def test_no_flapping_inside_the_overlap(overlap_c: list[float], start_c: float) -> None:
    levels = {estimate.temp_c.level for estimate in look([start_c, *overlap_c], RAW)}
    assert len(levels) == 1


def test_one_silent_look_changes_nothing() -> None:
    before, after = look([80.0, None])
    assert after.temp_c == before.temp_c


def test_a_sensor_that_died_is_unknown_and_worst_when_its_value_is_too_old() -> None:
    seen = look([30.0, *[None] * 20])
    lost = [estimate.temp_c for estimate in seen if estimate.temp_c.value is None]
    assert len(lost) == 20 - GOVERN.stale_s
    assert {belief.level for belief in lost} == {2}
    assert all(belief.existed for belief in lost)


def test_a_sensor_that_comes_back_is_believed_again() -> None:
    assert look([30.0, *[None] * 20, 30.0])[-1].temp_c == look([30.0] * 22)[-1].temp_c


def test_a_sensor_that_never_was_sets_no_limit() -> None:
    last = look([None] * 100)[-1]
    assert (last.temp_c.level, last.load_frac.level, last.link_rtt_s.level) == (0, 0, 0)
    assert not last.temp_c.existed


def test_a_battery_whose_charge_cannot_be_read_is_worst_at_once() -> None:
    estimate = update(Estimate(), Readings(has_battery=True), 0.0, GOVERN)
    assert estimate.battery_frac.level == 2
    assert update(estimate, Readings(has_battery=False), 1.0, GOVERN).battery_frac.level == 0


def test_charge_falls_into_its_bands() -> None:
    def level(*charges_frac: float) -> int:
        estimate = Estimate()
        for now_s, charge_frac in enumerate(charges_frac):
            estimate = update(estimate, Readings(battery_frac=Reading(charge_frac), has_battery=True), now_s, RAW)
        return estimate.battery_frac.level

    assert [level(0.5), level(0.2), level(0.05), level(0.05, 0.07), level(0.05, 0.1)] == [0, 1, 2, 2, 1]
    assert [level(0.2, 0.22), level(0.2, 0.24)] == [1, 0]


def test_one_wrong_zero_from_the_gauge_moves_no_band() -> None:
    estimate = Estimate()
    for now_s, charge_frac in enumerate([0.6, 0.6, 0.0, 0.6]):
        estimate = update(estimate, Readings(battery_frac=Reading(charge_frac), has_battery=True), now_s, GOVERN)
        assert estimate.battery_frac.level == 0


@pytest.mark.parametrize("reading", [Reading(math.nan), Reading(math.inf), Reading(50.0, 1e6), Reading(50.0, math.nan)])
def test_impossible_and_stale_readings_are_unknown(reading: Reading) -> None:
    estimate = update(Estimate(), Readings(temp_c=reading), 0.0, GOVERN)
    assert estimate.temp_c.value is None


def test_age_counts_towards_staleness() -> None:
    old = update(Estimate(), Readings(temp_c=Reading(30.0, GOVERN.stale_s)), 0.0, GOVERN)
    assert old.temp_c.value == 30.0
    assert update(old, Readings(temp_c=UNKNOWN), 1.0, GOVERN).temp_c.value is None


def test_a_clock_that_steps_back_moves_no_average() -> None:
    first = look([30.0])[-1]
    assert update(first, Readings(temp_c=Reading(90.0)), -100.0, GOVERN).temp_c.value == 30.0


@given(st.lists(st.tuples(READINGS, st.floats(-1e9, 1e9)), max_size=8))
def test_update_is_total(looks: list[tuple[Readings, float]]) -> None:
    estimate = Estimate()
    for readings, now_s in looks:
        estimate = update(estimate, readings, now_s, GOVERN)
        for belief in (estimate.load_frac, estimate.temp_c, estimate.battery_frac, estimate.link_rtt_s):
            assert belief.value is None or math.isfinite(belief.value)
            assert 0 <= belief.level <= 2


@given(st.lists(st.tuples(st.floats(0, 120), st.floats(0, 50)), min_size=1, max_size=20))
def test_hotter_samples_never_give_a_milder_level(pairs: list[tuple[float, float]]) -> None:
    cool = look([temp_c for temp_c, _ in pairs])[-1]
    warm = look([temp_c + more_c for temp_c, more_c in pairs])[-1]
    assert warm.temp_c.level >= cool.temp_c.level


def test_scales_are_ordered_from_mild_to_worst() -> None:
    limits = scales(GOVERN)
    for scale in (limits.load_frac, limits.temp_c, limits.battery_frac, limits.link_rtt_s):
        sign = -1 if scale.falling else 1
        entries = [sign * band.enter for band in scale.bands]
        assert entries == sorted(entries)
        assert all(sign * band.leave <= sign * band.enter for band in scale.bands)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0, 1e6))
def test_a_larger_sample_never_gives_a_smaller_mean(samples: list[float], more: float) -> None:
    kind, harsh = Mean(), Mean()
    for second, sample in enumerate(samples):
        kind, harsh = mix(kind, sample, float(second), 5.0), mix(harsh, sample + more, float(second), 5.0)
    assert kind.mean is not None and harsh.mean is not None
    assert harsh.mean >= kind.mean - 1e-6 and min(samples) - 1e-6 <= kind.mean <= max(samples) + 1e-6


def test_a_mean_forgets_and_passes_over_nonsense() -> None:
    mean = Mean()
    for second in range(100):
        mean = mix(mean, 1.0 if second < 50 else 3.0, float(second), 5.0)
    for nonsense in (None, math.nan, math.inf, "3", 1e300):
        assert mix(mean, nonsense, 100.0, 5.0) is mean
    figure = mean.figure(101.0, "here")
    assert figure.mean == pytest.approx(3.0, abs=0.01) and (figure.age_s, figure.source) == (2.0, "here")
    assert Mean().figure(0.0, "here").mean is None


def test_waiting_for_memory_has_a_band_of_its_own() -> None:
    looks = [0.05, 0.2, 0.05, 0.02]
    levels, estimate = [], Estimate()
    for second, value in enumerate(looks):
        estimate = update(estimate, Readings(memory_pressure_frac=Reading(value)), 60.0 * second, Govern(smooth_s=0.0))
        levels.append(estimate.memory_pressure_frac.level)
    assert levels == [0, 1, 1, 0]
