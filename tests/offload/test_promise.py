from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.offload import promise
from edgert.offload.admission import Pace
from edgert.offload.space import Floor, Guess, Load, Variant, allowed, full_space
from edgert.values import Budget

VARIANTS = (
    Variant(name="big", accuracy_frac=0.9, macs=100),
    Variant(name="small", accuracy_frac=0.7, macs=10),
    Variant(name="huge", accuracy_frac=0.95, macs=1000, local=False),
)
SPACE = full_space(VARIANTS, 1)
BIG, SMALL = 0, 1
PACES = {BIG: Pace(0.1), SMALL: Pace(0.01)}


def at(variant, place):
    return next(i for i, c in enumerate(SPACE.choices) if (VARIANTS[c.variant].name, c.place) == (variant, place))


def test_choices_at_home_come_first_in_the_order_of_the_variants():
    assert [SPACE.choices[i].place for i in (BIG, SMALL)] == ["device", "device"]
    assert SPACE.choices[2].place == "edge"


@pytest.mark.parametrize(
    ("floor", "left_s", "wanted"),
    [
        (0.0, 1.0, BIG),  # the most accurate that is in time
        (0.0, 0.05, SMALL),
        (0.0, 0.001, SMALL),  # nothing is in time: the quickest
        (0.8, 0.05, BIG),  # a floor is held even when a deadline cannot be
        (0.92, 1.0, None),  # no local model is so accurate
    ],
)
def test_who_answers_when_nobody_else_does(floor, left_s, wanted):
    assert promise.fallback(SPACE, Floor(floor), PACES, left_s) == wanted


def test_a_model_that_failed_answers_nothing():
    assert promise.fallback(SPACE, Floor(), {SMALL: Pace(0.01)}, 1.0) == SMALL
    assert promise.fallback(SPACE, Floor(), {}, 1.0) is None


@given(st.floats(0, 10), st.none() | st.floats(0, 10), st.floats(0, 10))
def test_the_cut_over_is_never_in_the_past_nor_after_the_deadline(left_s, fallback_s, waits_s):
    cut_s = promise.cut_over_s(left_s, fallback_s, waits_s)
    assert 0 <= cut_s <= left_s


@given(st.floats(0.05, 10), st.floats(0, 1), st.floats(0, 1))
def test_after_the_cut_over_the_local_model_is_in_time_whenever_it_can_be(left_s, fallback_s, waits_s):
    cut_s = promise.cut_over_s(left_s, fallback_s, waits_s)
    if fallback_s + waits_s + promise.SLACK_S <= left_s:
        assert cut_s + waits_s + fallback_s <= left_s + 1e-9


def mask(guesses, left_s=0.3, waits_s=0.0, fallback_s=0.1):
    everything = allowed(SPACE, Floor())
    found = promise.timely(SPACE, everything, guesses, PACES, left_s=left_s, waits_s=waits_s, fallback_s=fallback_s)
    return {i for i, good in enumerate(found[0]) if good}


def guesses(response_s, std_s=0.0):
    return [Guess(response_s, std_s)] * len(SPACE.choices)


def test_before_anything_is_known_everything_elsewhere_may_be_tried():
    assert mask(None) == set(range(len(SPACE.choices)))


def test_elsewhere_must_answer_before_the_local_model_has_to_begin():
    assert mask(guesses(0.19)) == set(range(len(SPACE.choices)))
    assert mask(guesses(0.21)) == {BIG, SMALL}
    assert mask(guesses(0.15, 0.05)) == {BIG, SMALL}


def test_where_no_local_model_is_in_time_elsewhere_has_all_the_time_there_is():
    assert at("big", "edge") in mask(guesses(0.29), fallback_s=0.5)
    assert at("big", "edge") not in mask(guesses(0.31), fallback_s=0.5)


def test_a_local_model_that_would_be_late_is_not_chosen():
    assert mask(guesses(9.0), left_s=0.05) == {SMALL}
    assert mask(guesses(9.0), left_s=0.05, waits_s=0.2) == set()


def test_a_stall_counts_for_little_and_a_lasting_change_for_what_it_is():
    before = [0.1] * 10
    assert promise.tamed_s(5.0, before) == pytest.approx(0.3)
    assert promise.tamed_s(0.2, before) == 0.2 and promise.tamed_s(5.0, before[:3]) == 5.0
    told = []
    for _ in range(promise.REMEMBERED):
        told.append(promise.tamed_s(5.0, before[-promise.REMEMBERED :]))
        before.append(5.0)
    assert told[0] == pytest.approx(0.3) and told[-1] == 5.0


def node(place="edge", accepts=True, models=("m",), cpu=0.5, at_s=0.0, lives_s=4.0):
    load = Load(cpu_frac=cpu, memory_frac=None, rtt_s=0.01)
    return promise.Node(place=place, accepts=accepts, models=frozenset(models), load=load, at_s=at_s, lives_s=lives_s)


def test_a_place_is_the_mean_of_its_nodes_and_offers_what_all_of_them_do():
    nodes = {"a": node(models=("m", "n"), cpu=0.2), "b": node(models=("m",), cpu=0.6, at_s=1.0)}
    models, load = promise.standing(nodes, "edge", 2.0)
    assert models == {"m"} and load.cpu_frac == pytest.approx(0.4)
    assert load.age_s == 2.0 and load.memory_frac is None


@pytest.mark.parametrize(
    ("nodes", "now_s"),
    [({}, 0.0), ({"a": node(accepts=False)}, 0.0), ({"a": node()}, 5.0), ({"a": node(place="cloud")}, 0.0)],
)
def test_nobody_there_offers_nothing(nodes, now_s):
    assert promise.standing(nodes, "edge", now_s) == (frozenset(), Load())


def budget(why, bytes_per_s=1000.0):
    return Budget(1, 1.0, bytes_per_s, {"teacher_bytes_per_s": why})


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (None, 8000.0),
        (budget("ok"), 8000.0),
        (budget("temp-critical", 0.0), 8000.0),  # heat is a reason to compute elsewhere, not to stay
        (budget("link-metered", 0.0), 0.0),
        (budget("goal-bytes", 1000.0), 2000.0),
        (budget("link-capacity", 9e9), 8000.0),
    ],
)
def test_what_spares_the_link_counts_and_what_spares_the_board_does_not(given_, wanted):
    assert promise.bytes_per_s(given_, 8000.0, 4000.0) == wanted


def test_a_low_battery_makes_energy_count():
    assert promise.spares_energy(budget("battery-low"))
    assert not promise.spares_energy(budget("ok")) and not promise.spares_energy(None)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(0, 1 << 20), st.floats(0, 1e5))
def test_a_purse_fills_and_never_overflows(left_bytes, rate, burst, later_s):
    found = promise.filled(promise.Purse(left_bytes, 10.0), rate, burst, 10.0 + later_s)
    assert found.left_bytes <= max(burst, left_bytes) and found.left_bytes >= min(burst, left_bytes)
    assert promise.filled(promise.Purse(left_bytes, 10.0), rate, burst, 5.0).left_bytes <= max(burst, left_bytes)
