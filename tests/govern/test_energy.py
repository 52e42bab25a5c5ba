from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import config
from edgert.govern import cost, energy
from edgert.govern.energy import Power, Supply, Use
from edgert.govern.estimate import Mean
from edgert.hardware import BoardFile, parse_board
from edgert.values import ActorReport, Reading, TrainerReport

SUPPLY = Supply(cores=4, idle_w=2.0, busy_w=4.0, capacity_j=36_000.0, source="[board]")
NOTHING = Reading(None)
BOARDS = Path(__file__).parents[2] / "firmware_configs"


def follow(power: Power, now_s: float, **changes: object) -> Power:
    values = {"load_frac": 0.2, "gauge": NOTHING, "charge_frac": None, "external": None, "stale_s": 15.0, **changes}
    return energy.follow_power(power, SUPPLY, now_s=now_s, **values)  # type: ignore[arg-type]  # a table of changes


def test_before_anything_was_measured_it_says_that_it_is_a_model() -> None:
    power = energy.model(SUPPLY)
    mean_w, std_w = energy.watts(power, 0.5)
    assert (power.source, mean_w) == ("model", 4.0) and std_w == pytest.approx(0.3 * math.hypot(2.0, 2.0))


def test_a_gauge_is_learned_from_in_both_figures() -> None:
    dice, power = random.Random(1), energy.model(SUPPLY)
    for second in range(600):
        load = 0.1 if second // 60 % 2 else 0.8
        power = follow(power, float(second), load_frac=load, gauge=Reading(3.0 + 2.0 * load + dice.gauss(0, 0.05)))
    assert power.source == "gauge"
    for load in (0.1, 0.5, 0.8):
        mean_w, std_w = energy.watts(power, load)
        assert mean_w == pytest.approx(3.0 + 2.0 * load, abs=0.15) and std_w < 0.2


def test_without_a_gauge_the_charge_tells() -> None:
    power, charge = energy.model(SUPPLY), 1.0
    for second in range(0, 7200, 10):
        charge -= 3.6 * 10 / SUPPLY.capacity_j
        power = follow(power, float(second), charge_frac=round(charge, 2))
    mean_w, std_w = energy.watts(power, 0.2)
    assert power.source == "battery" and mean_w == pytest.approx(3.6, abs=0.25) and std_w < 0.4


@pytest.mark.parametrize("changes", [{"external": True}, {"load_frac": None}, {"charge_frac": None}])
def test_a_charge_that_says_nothing_of_the_load_is_not_learned_from(changes: dict[str, object]) -> None:
    power = energy.model(SUPPLY)
    for second in range(0, 7200, 60):
        power = follow(power, float(second), **{"charge_frac": 1.0 - second / 1e4, **changes})
    assert (power.source, power.base_w, power.busy_w) == ("model", 2.0, 4.0)


@pytest.mark.parametrize("gauge", [Reading(0.0), Reading(-3.0), Reading(math.nan), Reading(1e9), Reading(3.0, 99.0)])
def test_a_gauge_that_talks_nonsense_is_passed_over(gauge: Reading) -> None:
    assert follow(energy.model(SUPPLY), 1.0, gauge=gauge).source == "model"


def test_what_was_measured_is_doubted_again() -> None:
    power = energy.model(SUPPLY)
    for second in range(100):
        power = follow(power, float(second), gauge=Reading(2.8))
    fresh = energy.watts(power, 0.2)[1]
    assert fresh < 0.2 < energy.watts(follow(power, 20_000.0), 0.2)[1]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 50)), max_size=50))
def test_it_stays_a_model_of_a_board_whatever_the_gauge_says(samples: list[tuple[float, float]]) -> None:
    power = energy.model(SUPPLY)
    for second, (load, drawn_w) in enumerate(samples):
        power = follow(power, float(second), load_frac=load, gauge=Reading(drawn_w))
        assert power.base_w >= 0 and power.busy_w >= 0
        assert all(math.isfinite(each) and each >= 0 for each in energy.watts(power, load))


def report(ticks: int, took_s: float, cpu_s: float, missed: int = 0) -> ActorReport:
    return ActorReport(
        pid=1, ticks=ticks, missed=missed, safe=0, exits=[ticks], latency_p50_s=0.0, latency_p99_s=0.0,
        latency_max_s=0.0, episodes=0, returns=[], faults={}, generation=0, acting=True, first_action_s=None,
        cpu_s=cpu_s, rss_bytes=0, exits_s=[took_s], exits_s2=[took_s],
    )  # fmt: skip


def trained(steps: int, cpu_s: float) -> TrainerReport:
    return TrainerReport(
        pid=2, steps=steps, loss=None, transitions=0, asked=0, answered=0, joined=0, candidates=0, accepted=0,
        generation=0, checkpoint=0, faults={}, cpu_s=cpu_s, rss_bytes=0,
    )  # fmt: skip


def test_who_uses_the_processor() -> None:
    table = cost.unknown(1)
    use = energy.follow_use(
        Use(), table, SUPPLY, actor=(report(0, 0.0, 1.0), report(20, 0.04, 1.1, missed=1)), actor_elapsed_s=1.0,
        trainer=(trained(0, 5.0), trained(10, 5.5)), trainer_elapsed_s=1.0, load_frac=0.5, now_s=1.0,
    )  # fmt: skip
    assert (use.actor_cores.mean, use.trainer_cores.mean) == (pytest.approx(0.1), pytest.approx(0.5))
    assert use.others_cores.mean == pytest.approx(4 * 0.5 - 0.1 - 0.5)
    assert use.step_s.mean == pytest.approx(0.05) and use.missed_frac.mean == pytest.approx(0.05)
    assert use.overhead_s.mean == pytest.approx((0.1 - 0.04) / 20)
    assert energy.tick_cpu_s(use, table.exits_s[0]) == pytest.approx(0.1 / 20)


def test_waiting_for_the_processor_costs_no_energy() -> None:
    table = cost.unknown(1)
    use = energy.follow_use(
        Use(), table, SUPPLY, actor=(report(0, 0.0, 0.0), report(20, 0.9, 0.05)), actor_elapsed_s=1.0,
        trainer=(None, None), trainer_elapsed_s=1.0, load_frac=None, now_s=1.0,
    )  # fmt: skip
    assert energy.tick_cpu_s(use, table.exits_s[0]) == pytest.approx(0.05 / 20)


def test_joules_carry_the_doubt_of_both_factors() -> None:
    figure = energy.joules(energy.model(SUPPLY), SUPPLY, 0.01, 0.004, 0.0)
    assert figure.mean == pytest.approx(0.01) and figure.source == "model of [board]"
    assert figure.std == pytest.approx(0.01 * math.hypot(0.3, 0.4))


def test_time_to_empty_is_energy_over_power() -> None:
    power = energy.model(SUPPLY)
    figure = energy.empty_s(power, SUPPLY, 0.5, (2.0, 0.2))
    assert figure.mean == pytest.approx(9000.0)
    assert figure.std == pytest.approx(9000 * math.hypot(0.1, 0.02))
    assert energy.empty_s(power, SUPPLY, None, (2.0, 0.2)).mean is None
    assert energy.empty_s(power, SUPPLY, 0.5, (1e-300, 1.0)).mean is None, "no board draws nothing"


def test_the_whole_board_is_acting_training_and_everybody_else() -> None:
    use = Use(others_cores=Mean(1.0), others_slow_cores=Mean(2.0), overhead_s=Mean(0.001), step_s=Mean(0.02))
    now, lasting = (
        energy.board_w(
            energy.model(SUPPLY), use, SUPPLY, work_s=0.01, scale=1.0, rate_hz=20.0, train_steps_hz=10.0, long=long
        )[0]
        for long in (False, True)
    )
    assert now == pytest.approx(2.0 + 4.0 * (0.22 + 0.2 + 1.0) / 4) and lasting == pytest.approx(now + 1.0)


def test_the_charge_is_known_between_the_per_cents_of_its_gauge() -> None:
    charge, true = Mean(), 0.9
    for second in range(3000):
        true -= 3.0 / SUPPLY.capacity_j
        charge = energy.follow_charge(charge, round(true, 2), 3.0, SUPPLY, float(second))
    assert charge.mean == pytest.approx(true, abs=0.003)
    silent = energy.follow_charge(charge, None, 3.0, SUPPLY, charge.at_s + 1200.0)
    assert silent.mean == pytest.approx(charge.mean - 0.1), "3,600 J of 36,000"
    assert energy.follow_charge(silent, None, 3.0, SUPPLY, 1e9).mean == 0.0
    assert energy.follow_charge(Mean(), None, 3.0, SUPPLY, 3001.0).mean is None


def test_a_gauge_that_lies_for_ten_minutes_moves_the_charge_a_little_and_a_charger_is_followed() -> None:
    charge = Mean()
    for second in range(600):
        charge = energy.follow_charge(charge, 0.5, 0.0, SUPPLY, float(second))
    lied, fed = charge, charge
    for second in range(600, 1200):
        lied = energy.follow_charge(lied, 0.0005, 0.0, SUPPLY, float(second))
        fed = energy.follow_charge(fed, 0.9, 0.0, SUPPLY, float(second), charging=True)
    assert lied.mean == pytest.approx(0.44, abs=1e-3) and fed.mean is not None and fed.mean > 0.8
    for second in range(1200, 6600):
        lied = energy.follow_charge(lied, 0.0005, 0.0, SUPPLY, float(second))
    assert lied.mean is not None and lied.mean < 0.03, "after an hour and a half it was no lie"


def said(text: str, hardware: BoardFile | None = None, full_j: float | None = None) -> tuple[float, float, float, str]:
    made = config.parse('[device]\nid = "d"\n[policy]\nbundle = "/p"\n' + text, "x")
    found = energy.supply_of(made, hardware, cores=4, full_j=full_j)
    return found.idle_w, found.busy_w, found.capacity_j, found.source


def test_the_watts_are_those_of_whoever_knows_them_best_and_say_who() -> None:
    pi = parse_board((BOARDS / "raspberry-pi-4.toml").read_text(), "raspberry-pi-4")
    physics = pi.hardware.physics
    assert said("") == (2.0, 4.0, 36_000.0, "assumed")
    known = (physics.idle_w + physics.static_w, 4 * physics.busy_w_per_core, 36_000.0, "raspberry-pi-4.toml")
    assert said("", pi) == said('[battery]\nkind = "linux"\nidle_w = 9.0\n', pi) == pytest.approx(known)
    assert said("[board]\nidle_w = 15.0\n", pi) == pytest.approx((15.0, known[1], 36_000.0, "[board]"))
    drained = '[battery]\nkind = "simulated"\nidle_w = 1.0\nbusy_w = 2.0\n'
    assert said(drained, pi) == (1.0, 2.0, 36_000.0, "[battery]"), "what drains it"
    assert said(drained + '[board]\nkind = "fake"\n', pi)[3] == "raspberry-pi-4.toml"


@pytest.mark.parametrize(
    ("kind", "full_j", "taken_j"),
    [
        ("linux", 180_000.0, 180_000.0),
        ("linux", 50.0, 36_000.0),
        ("linux", 1e12, 36_000.0),
        ("linux", math.nan, 36_000.0),
        ("linux", None, 36_000.0),
        ("none", 180_000.0, 36_000.0),
    ],
)
def test_a_battery_that_tells_its_energy_is_believed_within_reason(
    kind: str, full_j: float | None, taken_j: float
) -> None:
    assert said(f'[battery]\nkind = "{kind}"\n', full_j=full_j)[2] == taken_j


def test_a_charge_that_steps_down_was_set_right_and_not_drawn() -> None:
    power = energy.model(SUPPLY)
    for second in range(0, 1000, 10):
        power = follow(power, float(second), charge_frac=0.9 if second < 250 else 0.2)
    assert power.base_w < 3.0, "not the 25 kJ of the step"
