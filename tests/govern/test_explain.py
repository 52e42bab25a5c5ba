from __future__ import annotations

import math

import msgspec
import pytest

from edgert.config import Goals
from edgert.govern import cost, explain
from edgert.govern.energy import Use
from edgert.govern.estimate import Belief, Estimate, Mean
from edgert.govern.goals import Verdict
from edgert.govern.state import Look, Setup, State, drawn_w
from edgert.values import Budget, Reading, Readings

TABLE = cost.unknown(2)
BUDGET = Budget(1, 0.0, 0.0)


def judged(goals: Goals, state: State | None = None, **changes: object) -> dict[str, Verdict]:
    said = {"unmet": "", "short": False, "lasts_s": math.inf, "late_frac": 0.0, **changes}
    readings = Readings(has_battery=True, battery_frac=Reading(0.5))
    return explain.verdicts(
        state or State(prices=TABLE), Setup(goals=goals, prices=TABLE), Look(readings=readings), TABLE.own, BUDGET, 0.0,
        **said,  # type: ignore[arg-type]  # a table of changes
    )  # fmt: skip


@pytest.mark.parametrize(
    ("missed", "late_frac", "met"), [(None, 0.0, None), (0.0, 0.0, True), (0.01, 0.0, False), (0.0, 0.01, False)]
)
def test_a_deadline_is_judged_by_what_was_missed_and_what_will_be(
    missed: float | None, late_frac: float, met: bool | None
) -> None:
    state = State(prices=TABLE, use=Use(missed_frac=Mean() if missed is None else Mean(missed, 0.0, 9.0)))
    assert judged(Goals(miss_frac=0.001), state, late_frac=late_frac)["deadline"].met is met


def test_a_battery_that_may_not_last_is_neither_met_nor_unmet() -> None:
    goals = Goals(last_until="1 h")
    state = State(prices=TABLE, estimate=Estimate(battery_frac=Belief(0.5, 0.0, 0, True)))
    assert judged(goals, state)["until"].met is True
    assert judged(goals, state, short=True)["until"].why == "until-uncertain"
    unable = judged(goals, state, unmet="until-infeasible", lasts_s=1800.0)["until"]
    assert (unable.met, unable.found) == (False, "50 % for 1.0 h, at the least 0.5 h")
    unknown = judged(goals, unmet="until-infeasible")["until"]
    assert (unknown.met, unknown.why) == (None, "battery-unknown"), "what nobody reads is not empty"


def test_every_figure_has_its_doubt_age_and_source() -> None:
    state = State(prices=TABLE, use=Use(step_s=Mean(0.01, 1e-6, 4.0)))
    figures = explain.figures(state, Setup(prices=TABLE), TABLE.own, BUDGET, 1.0)
    assert {"slowdown", "exit0_s", "exit1_s", "decision_j", "train_step_j", "power_w", "link_rtt_s"} <= figures.keys()
    for figure in figures.values():
        assert figure.source and (figure.mean is None) == (figure.std is None)
    assert figures["power_w"].source == "assumed" and "empty_s" not in figures
    assert msgspec.to_builtins(figures)["slowdown"]["mean"] == 1.0


def test_power_is_that_of_the_choice_in_force() -> None:
    setup = Setup(prices=TABLE)
    wanted, idle = (drawn_w(State(prices=TABLE), setup, TABLE.own, train_steps_hz=hz, long=False) for hz in (50.0, 0.0))
    assert wanted[0] > idle[0] > 0
