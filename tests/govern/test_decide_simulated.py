"""The governor on a board of simple physics: does the battery last, and is the energy used that there is?"""

from __future__ import annotations

import random

import msgspec
import pytest

from edgert.config import Goals, Govern
from edgert.govern.decide import decide
from edgert.govern.energy import Supply
from edgert.govern.state import Look, Setup, State
from edgert.ports.board import physics
from edgert.values import ActorReport, Budget, Choice, Clock, Prices, Reading, Readings, TrainerReport

HZ, STEP_S, HOURS = 12.0, 0.03, 6.0
EXITS_S = (0.010, 0.045)
POINTS = tuple(
    Choice(point=i, max_exit=1, ops_frac=0.17 + 0.83 * deep, shares=(1 - deep, deep), return_frac=0.4 + 0.6 * deep)
    for i, deep in enumerate((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
)
PRICES = Prices(rate_hz=HZ, exits_s=EXITS_S, spread_frac=0.1, source="bundle", own=POINTS[-1], points=POINTS)
MODEL = physics.Model(cores=2, idle_w=0.5, busy_w_per_core=1.5, static_w=1.0)
STEP = 10.0


class Run(msgspec.Struct):
    """What came of it."""

    lasted_s: float = 0.0
    value: float = 0.0
    charge_frac: float = 1.0
    switches: int = 0
    steps: float = 0.0
    said: tuple[str, ...] = ()


def run(capacity_j: float, goals: Goals, *, gauge: bool, seed: int, wrong: float = 1.0) -> Run:
    """Six hours on a battery, with somebody else's load that comes and goes; prices are `wrong` by so much."""
    dice, model = random.Random(seed), msgspec.structs.replace(MODEL, capacity_j=capacity_j)
    board, state, found = physics.initial(model), State(), Run()
    supply = Supply(cores=2, idle_w=1.5 * wrong, busy_w=3.0 * wrong, capacity_j=capacity_j)
    setup = Setup(govern=Govern(battery_low_frac=0.06), goals=goals, supply=supply, prices=PRICES, train_steps_hz=10.0)
    counts, took, squares, cpu_s, train_s, steps = [0, 0], [0.0, 0.0], [0.0, 0.0], 0.0, 0.0, 0
    point, hz, load, watts, others = 5, 0.0, 0.2, 2.0, 0.1
    for tick in range(int(HOURS * 3600 / STEP)):
        now_s = tick * STEP
        if tick % 60 == 0:
            others = dice.choice((0.05, 0.1, 0.3))
        choice = POINTS[point]
        for k, share in enumerate(choice.shares):
            n = round(HZ * STEP * share)
            counts[k], took[k] = counts[k] + n, took[k] + n * EXITS_S[k]
            squares[k] += n * EXITS_S[k] ** 2 * 1.01
        acting = HZ * (0.001 + sum(s * e for s, e in zip(choice.shares, EXITS_S, strict=True)))
        training = hz * STEP_S
        cpu_s, train_s, steps = cpu_s + STEP * acting, train_s + STEP * training, steps + round(STEP * hz)
        board, done = physics.advance(
            model, board, demand_cores=acting + training + others, ambient_c=25.0, elapsed_s=STEP
        )
        if not board.on:
            break
        load, watts = done.load_frac, done.energy_j / STEP / model.efficiency_frac
        charge = board.charge_j / capacity_j
        actor = ActorReport(
            pid=1, ticks=sum(counts), missed=0, safe=0, exits=list(counts), latency_p50_s=0.0, latency_p99_s=0.0,
            latency_max_s=0.0, episodes=0, returns=[], faults={}, generation=0, acting=True, first_action_s=1.0,
            cpu_s=cpu_s, rss_bytes=0, has_frontier=True, exits_s=list(took), exits_s2=list(squares),
        )  # fmt: skip
        trainer = TrainerReport(
            pid=2, steps=steps, loss=None, transitions=0, asked=0, answered=0, joined=0, candidates=0, accepted=0,
            generation=0, checkpoint=0, faults={}, cpu_s=train_s, rss_bytes=0,
        )  # fmt: skip
        readings = Readings(
            load_frac=Reading(min(1.0, max(0.0, load + dice.gauss(0, 0.02)))),
            temp_c=Reading(board.temp_c),
            has_battery=True,
            battery_frac=Reading(min(1.0, max(0.0, round(charge + dice.gauss(0, 0.003), 2)))),
            power_w=Reading(watts + dice.gauss(0, 0.05)) if gauge else Reading(None),
        )
        look = Look(readings=readings, actor=actor, trainer=trainer, clock=Clock(1, 8 * 3600 + now_s))
        state, budget = decide(state, setup, look, now_s)
        found.said += tuple({v.why for v in state.verdicts.values() if v.why} - set(found.said))
        now_at = _point(budget)
        found.switches += now_at != point
        point, hz = now_at, budget.train_steps_hz
        found.lasted_s, found.charge_frac = now_s + STEP, charge
        found.value += (choice.return_frac or 0.0) * STEP / (HOURS * 3600)
        found.steps += hz * STEP
    return found


def _point(budget: Budget) -> int:
    return 5 if budget.point is None else budget.point


@pytest.mark.parametrize("gauge", [True, False])
@pytest.mark.parametrize("wrong", [0.75, 1.0, 1.3])
def test_the_battery_lasts_as_long_as_it_is_to_and_little_is_left_of_it(gauge: bool, wrong: float) -> None:
    """There is more than the cheapest setting takes, and less than the full network alone."""
    found = run(58_000.0, Goals(last_until="14:00"), gauge=gauge, seed=1, wrong=wrong)
    assert found.lasted_s == pytest.approx(HOURS * 3600) and "until-infeasible" not in found.said
    assert 0.03 < found.charge_frac < 0.15 and found.value > 0.6
    assert found.switches <= 2 * HOURS


def test_what_is_not_needed_for_acting_is_used_for_training() -> None:
    found = run(90_000.0, Goals(last_until="14:00"), gauge=True, seed=2)
    assert found.value == pytest.approx(1.0, abs=0.05) and found.steps > 0.3 * 10.0 * HOURS * 3600


def test_what_cannot_last_is_said_at_the_first_look() -> None:
    found = run(20_000.0, Goals(last_until="14:00"), gauge=True, seed=3)
    assert "until-infeasible" in found.said and found.lasted_s < HOURS * 3600


def test_the_least_energy_for_a_return_is_not_more_than_that_return_takes() -> None:
    found = run(200_000.0, Goals(min_return_frac=0.75, least_energy=True), gauge=True, seed=4)
    assert found.value == pytest.approx(0.76, abs=0.01) and found.switches <= 2
