"""The most that anybody could get who knew the trace: an upper bound on the return under the same constraints.

Settings may be mixed within a period, switching costs nothing, nothing needs to be measured, and the firmware never
takes the clock down; the battery must last and keep its reserve, and deadlines may be missed as rarely as is said.
That is a linear program with one constraint on energy and one on deadlines, and by weak duality every pair of prices
for the two gives a bound (Boyd & Vandenberghe 2004, section 5.2.2); the lowest is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.programs.sim import REST_CORES, crowd, late_frac
from tools.bench.govern.traces import MISS_FRAC, RESERVE_FRAC, Case

F64 = npt.NDArray[np.float64]
STEPS = 60


class Offer(NamedTuple):
    """What could be had in each period of a trace.

    Attributes:
        gain: (periods, settings) return of a tick, late ones being worth nothing.
        late: (periods, settings) share of late ticks.
        work_core_s: (settings,) CPU time of a tick.
        before: (periods,) the battery must still be spared.
        energy_core_s: CPU time that the battery allows until then; infinite on mains.
        ticks: of a period.
    """

    gain: F64
    late: F64
    work_core_s: F64
    before: npt.NDArray[np.bool_]
    energy_core_s: float
    ticks: float


def offer(case: Case) -> Offer:
    """All that the trace allows."""
    work, model, table = case.work, case.model, case.work.prices
    n = max(1, math.ceil(case.seconds / case.period_s))
    rows = [case.scenario.at(k * case.period_s) for k in range(n)]
    returns = np.array([each.return_frac or 0.0 for each in table.points])
    work_s = np.array(
        [work.tick_s + sum(s * t for s, t in zip(p.shares, table.exits_s, strict=True)) for p in table.points]
    )
    stretches = [crowd(row.hog_cores, model.cores) for row in rows]
    late_at = {stretch: [late_frac(work, point, 1.0, stretch) for point in table.points] for stretch in set(stretches)}
    late = np.array([late_at[stretch] for stretch in stretches])
    ticks = table.rate_hz * case.period_s
    before = np.array([k * case.period_s < case.until_s for k in range(n)])
    energy_core_s = math.inf
    if case.until_s:
        charge_j = (case.scenario.charge_frac - RESERVE_FRAC) * (case.scenario.capacity_j or 0.0)
        rest_w = model.idle_w + model.static_w
        others = sum(
            min(model.cores, row.hog_cores + REST_CORES) * case.period_s
            for row, spared in zip(rows, before, strict=True)
            if spared
        )
        spare_j = charge_j * model.efficiency_frac - rest_w * case.until_s
        energy_core_s = spare_j / model.busy_w_per_core - others
    return Offer(returns * (1.0 - late), late, work_s, before, energy_core_s, ticks)


def feasible(told: Offer) -> bool:
    """Whether the battery can last at all: at the cheapest setting, and without training."""
    return float(told.before.sum() * told.ticks * told.work_core_s.min()) <= told.energy_core_s


def bound(told: Offer, work_core_s: float = math.inf) -> float:
    """The most return a tick, averaged over the trace.

    Args:
        told: of `offer`.
        work_core_s: CPU time of the whole trace at most, besides.

    Returns:
        The bound; where no setting meets every constraint, that of the cheapest choice counts for nothing better.
    """
    n = len(told.gain)
    everywhere = np.ones(n, bool)

    def dual(price_energy: float, price_late: float, price_work: float) -> float:
        value = told.gain - price_late * told.late
        value = value - price_energy * np.outer(told.before, told.work_core_s)
        value = value - price_work * np.outer(everywhere, told.work_core_s)
        total = float(value.max(1).sum()) + price_late * MISS_FRAC * n
        if price_energy:
            total += price_energy * told.energy_core_s / told.ticks
        if price_work:
            total += price_work * work_core_s / told.ticks
        return total / n

    scale = float(told.gain.max()) / float(told.work_core_s.min())
    limits = [
        scale * 20 if math.isfinite(told.energy_core_s) else 0.0,
        1000.0 if told.late.max() > MISS_FRAC else 0.0,
        scale * 20 if math.isfinite(work_core_s) else 0.0,
    ]
    prices = [0.0, 0.0, 0.0]
    best = dual(*prices)
    for _ in range(3 if sum(limit > 0 for limit in limits) > 1 else 1):
        for axis, limit in enumerate(limits):
            if not limit:
                continue

            def along(price: float, axis: int = axis) -> float:
                tried = list(prices)
                tried[axis] = price
                return dual(*tried)

            price, value = lowest(along, limit)
            if value < best:
                prices[axis], best = price, value
    return best


def lowest(value: Callable[[float], float], limit: float) -> tuple[float, float]:
    """Where a convex function is smallest on 0..limit, by golden section in a stretched scale.

    Any point gives a bound, so an inexact one only makes it a little too high.
    """

    def at(u: float) -> float:
        return limit * u**6  # prices span many powers of ten

    ratio = (math.sqrt(5) - 1) / 2
    low, high = 0.0, 1.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    f_left, f_right = value(at(left)), value(at(right))
    for _ in range(STEPS):
        if f_left <= f_right:
            high, right, f_right = right, left, f_left
            left = high - ratio * (high - low)
            f_left = value(at(left))
        else:
            low, left, f_left = left, right, f_right
            right = low + ratio * (high - low)
            f_right = value(at(right))
    found = min([(value(at(u)), at(u)) for u in (0.0, left, right)])
    return found[1], found[0]
