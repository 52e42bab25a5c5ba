from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.config import Govern
from edgert.govern.budget import BUSY_FLOOR_FRAC, SLOW_FLOOR_FRAC, allot
from edgert.govern.estimate import Estimate, update
from edgert.values import Budget, Reading, Readings

RAW = Govern(smooth_s=0.0)
NOMINAL = {"load_frac": 0.1, "temp_c": 40.0, "battery_frac": 0.9, "link_rtt_s": 0.05}


def budget(
    *looks: dict[str, float | None],
    n_exits: int = 3,
    link_up: bool = True,
    govern: Govern = RAW,
    has_frontier: bool = False,
) -> Budget:
    """The budget after these looks, one a minute; what a look does not name is nominal."""
    estimate = Estimate()
    for number, look in enumerate(looks or ({},)):
        given_values = {name: Reading(value) for name, value in {**NOMINAL, **look}.items()}
        estimate = update(estimate, Readings(has_battery=True, **given_values), 60.0 * number, govern)
    return allot(
        estimate,
        govern,
        n_exits=n_exits,
        train_steps_hz=20.0,
        teacher_bytes_per_s=4000.0,
        link_up=link_up,
        has_frontier=has_frontier,
    )


def test_nothing_scarce_buys_everything() -> None:
    names = ("max_exit", "train_steps_hz", "teacher_bytes_per_s", "max_ops_frac")
    assert budget() == Budget(2, 20.0, 4000.0, dict.fromkeys(names, "ok"), 1.0)


@pytest.mark.parametrize(
    ("look", "max_exit", "train_steps_hz", "teacher_bytes_per_s", "why"),
    [
        ({"load_frac": 1.0}, 2, 20.0 * BUSY_FLOOR_FRAC, 4000.0, ("ok", "cpu-high", "ok")),
        ({"temp_c": 76.25}, 2, 5.0, 1000.0, ("ok", "temp-high", "temp-high")),
        ({"temp_c": 79.0}, 1, 0.0, 0.0, ("temp-high",) * 3),
        ({"temp_c": 84.999}, 1, pytest.approx(0.0, abs=0.01), pytest.approx(0.0, abs=1), ("temp-high",) * 3),
        ({"temp_c": 85.0}, 0, 0.0, 0.0, ("temp-critical",) * 3),
        ({"battery_frac": 0.185}, 2, pytest.approx(10.0), pytest.approx(2000.0), ("ok", "battery-low", "battery-low")),
        ({"battery_frac": 0.13}, 1, 0.0, 0.0, ("battery-low",) * 3),
        ({"battery_frac": 0.05}, 0, 0.0, 0.0, ("battery-critical",) * 3),
        ({"battery_frac": 0.0}, 0, 0.0, 0.0, ("battery-critical",) * 3),
        ({"link_rtt_s": 1.6}, 2, 20.0, pytest.approx(2000.0), ("ok", "ok", "link-slow")),
        ({"link_rtt_s": 500.0}, 2, 20.0, 4000.0 * SLOW_FLOOR_FRAC, ("ok", "ok", "link-slow")),
        ({"link_rtt_s": None}, 2, 20.0, 4000.0 * SLOW_FLOOR_FRAC, ("ok", "ok", "link-slow")),
        ({"battery_frac": None}, 0, 0.0, 0.0, ("battery-unknown",) * 3),
        ({"temp_c": None, "load_frac": None}, 2, 20.0, 4000.0, ("ok", "ok", "ok")),
        ({"temp_c": 90.0, "battery_frac": 0.14}, 0, 0.0, 0.0, ("temp-critical",) * 3),
    ],
)
def test_each_scarcity_has_its_price_and_name(
    look: dict[str, float | None],
    max_exit: int,
    train_steps_hz: float,
    teacher_bytes_per_s: float,
    why: tuple[str, str, str],
) -> None:
    found = budget(look)
    assert (found.max_exit, found.train_steps_hz, found.teacher_bytes_per_s) == (
        max_exit,
        train_steps_hz,
        teacher_bytes_per_s,
    )
    assert tuple(found.why[name] for name in ("max_exit", "train_steps_hz", "teacher_bytes_per_s")) == why


@pytest.mark.parametrize(
    ("look", "max_exit", "max_ops_frac", "why"),
    [
        ({}, 2, 1.0, "ok"),
        ({"load_frac": 1.0}, 2, 1.0, "ok"),
        ({"temp_c": 77.0}, 2, 1.0, "ok"),
        ({"temp_c": 81.5}, 2, 0.5, "temp-high"),
        ({"battery_frac": 0.095}, 2, pytest.approx(0.5), "battery-low"),
        ({"temp_c": 79.0, "load_frac": 1.0, "battery_frac": 0.068}, 2, pytest.approx(0.2, abs=0.01), "battery-low"),
        ({"temp_c": 85.0}, 0, 0.0, "temp-critical"),
        ({"battery_frac": None}, 0, 0.0, "battery-unknown"),
        ({"link_rtt_s": 500.0}, 2, 1.0, "ok"),
    ],
)
def test_with_a_frontier_scarcity_buys_a_cheaper_setting_and_forbids_exits_only_when_critical(
    look: dict[str, float | None], max_exit: int, max_ops_frac: float, why: str
) -> None:
    found = budget(look, has_frontier=True)
    assert (found.max_exit, found.max_ops_frac, found.why["max_ops_frac"]) == (max_exit, max_ops_frac, why)
    assert found.why["max_exit"] == ("ok" if max_exit == 2 else why)


def test_sensors_that_died_cost_as_much_as_their_worst_band() -> None:
    dead = budget({}, {"temp_c": None})
    assert (dead.max_exit, dead.train_steps_hz, dead.why["train_steps_hz"]) == (0, 0.0, "temp-unknown")
    blind = budget({}, {"load_frac": None})
    assert (blind.train_steps_hz, blind.why["train_steps_hz"]) == (20.0 * BUSY_FLOOR_FRAC, "cpu-unknown")


def test_a_link_that_is_down_buys_no_bytes_whatever_its_delay_was() -> None:
    down = budget({"link_rtt_s": 0.01}, link_up=False)
    assert (down.teacher_bytes_per_s, down.why["teacher_bytes_per_s"]) == (0.0, "link-down")
    assert (down.max_exit, down.train_steps_hz) == (2, 20.0)


def test_mains_power_ignores_the_charge() -> None:
    estimate = update(Estimate(), Readings(battery_frac=Reading(0.0)), 0.0, RAW)
    found = allot(estimate, RAW, n_exits=2, train_steps_hz=20.0, teacher_bytes_per_s=1.0, link_up=True)
    assert (found.max_exit, found.train_steps_hz) == (1, 20.0)


@pytest.mark.parametrize("n_exits", [1, 2, 3, 6])
def test_exit_zero_is_always_allowed(n_exits: int) -> None:
    assert budget({"temp_c": 200.0, "battery_frac": 0.0}, n_exits=n_exits).max_exit == 0
    assert budget({"temp_c": 79.0}, n_exits=n_exits).max_exit == max(0, n_exits - 2)
    assert budget(n_exits=n_exits).max_exit == n_exits - 1


def test_training_is_back_in_full_where_the_hysteresis_ends() -> None:
    """No step in the price at the cool end of a band: just above `leave` is just below everything."""
    still = budget({"temp_c": 76.0}, {"temp_c": 71.001})
    assert still.why["train_steps_hz"] == "temp-high"
    assert still.train_steps_hz == pytest.approx(20.0, abs=0.01)
    assert budget({"temp_c": 76.0}, {"temp_c": 71.0}).why["train_steps_hz"] == "ok"


def test_a_processor_that_others_keep_busy_is_not_relieved_by_deciding_worse() -> None:
    estimate = update(Estimate(), Readings(load_frac=Reading(1.0), temp_c=Reading(40.0)), 0.0, RAW)
    found = allot(
        estimate, RAW, n_exits=3, train_steps_hz=20.0, teacher_bytes_per_s=0.0, link_up=True, has_frontier=True
    )
    assert (found.max_ops_frac, found.max_exit) == (1.0, 2)
    assert found.train_steps_hz == 20.0 * BUSY_FLOOR_FRAC


LOOK = st.fixed_dictionaries(
    {
        "load_frac": st.floats(0, 1),
        "temp_c": st.floats(-40, 130),
        "battery_frac": st.floats(0, 1),
        "link_rtt_s": st.floats(0, 100),
    }
)
WORSE = st.fixed_dictionaries(
    {
        "load_frac": st.floats(0, 1),
        "temp_c": st.floats(0, 100),
        "battery_frac": st.floats(-1, 0),
        "link_rtt_s": st.floats(0, 100),
    }
)


@given(
    st.lists(st.tuples(LOOK, WORSE), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0.0, 5.0, 60.0]),
)
def test_hotter_emptier_busier_or_slower_never_buys_more(
    looks: list[tuple[dict[str, float], dict[str, float]]], n_exits: int, loses_link: bool, smooth_s: float
) -> None:
    govern = Govern(smooth_s=smooth_s)
    kind = budget(*[look for look, _ in looks], n_exits=n_exits, govern=govern)
    harsh = budget(
        *[{name: look[name] + worse[name] for name in look} for look, worse in looks],
        n_exits=n_exits,
        link_up=not loses_link,
        govern=govern,
    )
    assert harsh.max_exit <= kind.max_exit
    assert harsh.train_steps_hz <= kind.train_steps_hz
    assert harsh.teacher_bytes_per_s <= kind.teacher_bytes_per_s
    assert harsh.max_ops_frac <= kind.max_ops_frac


@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(NOMINAL)), st.none() | st.floats()), max_size=4),
    st.integers(-3, 40),
    st.floats(),
)
def test_allot_is_total_and_bounded(looks: list[dict[str, float | None]], n_exits: int, train_steps_hz: float) -> None:
    estimate = Estimate()
    for now_s, look in enumerate(looks):
        given_values = {name: Reading(value) for name, value in look.items()}
        estimate = update(estimate, Readings(has_battery=True, **given_values), 20.0 * now_s, RAW)
    found = allot(estimate, RAW, n_exits=n_exits, train_steps_hz=train_steps_hz, teacher_bytes_per_s=9.0, link_up=True)
    assert 0 <= found.max_exit <= max(0, n_exits - 1)
    assert 0.0 <= found.teacher_bytes_per_s <= 9.0
    assert 0.0 <= found.max_ops_frac <= 1.0
    assert not math.isfinite(train_steps_hz) or 0.0 <= found.train_steps_hz <= max(0.0, train_steps_hz)
