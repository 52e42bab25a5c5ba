"""Who decides: ours, and what people do instead. Each is told the same, through the same readings and reports."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgert.config import Config, Device, Govern, Policy
from edgert.govern import cost
from edgert.govern.budget import allot
from edgert.govern.cost import Slowdown
from edgert.govern.estimate import Estimate, update
from edgert.programs.sim import REST_CORES, Controller, Governor, Workload, powered
from edgert.values import ActorReport, Budget, Choice, Readings, TrainerReport
from tools.bench.govern.traces import RESERVE_FRAC, Case

TEACHER_BYTES_PER_S = 4000.0


def _all(work: Workload, choice: Choice, train: float = 1.0) -> Budget:
    last = len(work.prices.exits_s) - 1
    return Budget(
        max_exit=last,
        train_steps_hz=train * work.train_steps_hz,
        teacher_bytes_per_s=train * TEACHER_BYTES_PER_S,
        point=choice.point,
        max_ops_frac=1.0,
    )


def deepest(work: Workload) -> Choice:
    """The full network at every tick."""
    return max(work.prices.points, key=lambda each: (each.shares[-1], each.ops_frac))


def shallowest(work: Workload) -> Choice:
    """The first exit at every tick."""
    return max(work.prices.points, key=lambda each: (each.shares[0], -each.ops_frac))


def ours(case: Case) -> Controller:
    """The product's governor, in whole."""
    config = Config(device=Device(id="bench"), policy=Policy(bundle="-"), goals=case.goals)
    return Governor(case.work, powered(case.model, case.scenario), config)


def full(case: Case) -> Controller:
    """Fixed full depth, and everything else at its full rate."""
    budget = _all(case.work, deepest(case.work))
    return lambda readings, actor, trainer, now_s: budget


def shallow(case: Case) -> Controller:
    """Fixed first exit, and everything else at its full rate."""
    budget = _all(case.work, shallowest(case.work))
    return lambda readings, actor, trainer, now_s: budget


def thermal(case: Case) -> Controller:
    """On/off by heat, with the hysteresis that a careful engineer gives it: full depth and training, or neither."""
    hot, work, limits = [False], case.work, Govern()
    high_c = min(limits.temp_high_c, case.model.hot_c - limits.temp_hysteresis_c)

    def decide(readings: Readings, actor: ActorReport | None, trainer: TrainerReport | None, now_s: float) -> Budget:
        temp_c = readings.temp_c.value
        if temp_c is not None:
            hot[0] = temp_c >= high_c or (hot[0] and temp_c > high_c - limits.temp_hysteresis_c)
        return _all(work, shallowest(work), 0.0) if hot[0] else _all(work, deepest(work))

    return decide


def knobs(case: Case) -> Controller:
    """Bands for each quantity by itself, each with its hysteresis; no goals, no prices: what edgert had before."""
    estimate, work, limits = [Estimate()], case.work, Govern()

    def decide(readings: Readings, actor: ActorReport | None, trainer: TrainerReport | None, now_s: float) -> Budget:
        estimate[0] = update(estimate[0], readings, now_s, limits)
        budget = allot(
            estimate[0],
            limits,
            n_exits=len(work.prices.exits_s),
            train_steps_hz=work.train_steps_hz,
            teacher_bytes_per_s=TEACHER_BYTES_PER_S,
            link_up=readings.link_rtt_s.value is not None,
            has_frontier=True,
        )
        if budget.max_ops_frac < 1:
            return budget
        return msgspec.structs.replace(budget, point=deepest(work).point)

    return decide


def alert(case: Case) -> Controller:
    """ALERT (Wan et al. 2020): a Kalman filter of the slow-down, and at each look the best setting that should fit.

    It is given more than the paper's: the true power of the board, the battery as an energy budget over the time that
    is left, and training with what the best setting leaves of it. What it has not is what ALERT has not: hysteresis,
    bands for heat, and doubts about its sensors.
    """
    work, model, goals = case.work, case.model, case.goals
    table = work.prices
    capacity_j = (case.scenario.capacity_j or 0.0) * model.efficiency_frac
    rest_w = model.idle_w + model.static_w + REST_CORES * model.busy_w_per_core
    slow = [Slowdown(spread_frac=table.spread_frac)]
    before: list[ActorReport | None] = [None]

    def watts(choice: Choice) -> float:
        return model.busy_w_per_core * table.rate_hz * (work.tick_s + cost.work_s(choice, table))

    ranked = sorted(table.points, key=lambda each: (-(each.return_frac or 0.0), each.ops_frac))
    cheapest = min(table.points, key=lambda each: each.ops_frac)

    def decide(readings: Readings, actor: ActorReport | None, trainer: TrainerReport | None, now_s: float) -> Budget:
        slow[0] = cost.follow(slow[0], table, before[0], actor, now_s)
        before[0] = actor
        left_w = float("inf")
        charge = readings.battery_frac.value
        if case.until_s > now_s and charge is not None:
            left_w = (charge - RESERVE_FRAC) * capacity_j / (case.until_s - now_s) - rest_w
        chosen = next(
            (
                each
                for each in ranked
                if watts(each) <= left_w and cost.miss_frac(each, table, slow[0], work.deadline_s) <= goals.miss_frac
            ),
            cheapest,
        )
        train_w = model.busy_w_per_core * work.train_steps_hz * work.step_s
        train = 1.0 if left_w == float("inf") else min(1.0, max(0.0, (left_w - watts(chosen)) / train_w))
        return _all(work, chosen, train)

    return decide


CONTROLLERS: dict[str, Callable[[Case], Controller]] = {
    "ours": ours,
    "full depth": full,
    "first exit": shallow,
    "on/off by heat": thermal,
    "a band each": knobs,
    "ALERT-style": alert,
}
