"""One trace under one controller, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec

from edgert.programs.sim import Controller, Moment, simulate
from edgert.values import ActorReport, Budget, Readings, TrainerReport
from tools.bench.govern.controllers import CONTROLLERS
from tools.bench.govern.oracle import bound, feasible, offer
from tools.bench.govern.traces import MISS_FRAC, RESERVE_FRAC, Case

ANNOUNCE_S = 300.0
"""`At once`: within so many seconds of the beginning; until then the governor may still be measuring its board."""
UNMET = "until-infeasible"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one trace under one controller.

    Attributes:
        trace, kind, board, bundle, controller: which.
        size: share of one core that the full network would keep busy.
        return_frac: normalised return a tick that was due, 0 while off and for late ones.
        missed_frac: share of the ticks that were late, while on.
        on_frac: share of the time that the board ran.
        work_core_s: of actor and trainer, seconds of one core at the full clock.
        acted_core_s: of the actor alone.
        energy_j, own_j: drawn by the board; and by the work, at the full clock's price.
        steps, link_bytes: training done, and bytes for teachers.
        throttled_frac: share of the time in which the firmware had taken the clock down.
        switches_per_hour: changes of the operating point.
        feasible: the battery could last, by the oracle; None on mains.
        lasted: it did, with its reserve; None on mains.
        announced_s: when the governor first said that it cannot; None when it did not.
        kept: every constraint was: battery and deadlines.
        bound: the oracle's return under the same constraints; None where nobody can meet them.
        bound_equal: the same with no more work than this controller had done.
        decide_s: CPU time of a decision of the controller, mean.
    """

    trace: str
    kind: str
    board: str
    bundle: str
    controller: str
    size: float
    return_frac: float
    missed_frac: float
    on_frac: float
    work_core_s: float
    acted_core_s: float
    energy_j: float
    own_j: float
    steps: float
    link_bytes: float
    throttled_frac: float
    switches_per_hour: float
    feasible: bool | None
    lasted: bool | None
    announced_s: float | None
    kept: bool
    bound: float | None
    bound_equal: float | None
    decide_s: float

    @property
    def gap(self) -> float | None:
        """To the oracle under the same constraints, as a share of what that gets."""
        return None if self.bound is None else 1.0 - self.return_frac / self.bound

    @property
    def gap_equal(self) -> float | None:
        """To the oracle that does no more work."""
        return None if self.bound_equal is None else 1.0 - self.return_frac / self.bound_equal


class Timed:
    """A controller whose CPU time is counted."""

    def __init__(self, controller: Controller) -> None:
        """Nothing was decided yet."""
        self._controller = controller
        self.spent_s, self.calls = 0.0, 0

    def __call__(
        self, readings: Readings, actor: ActorReport | None, trainer: TrainerReport | None, now_s: float
    ) -> Budget:
        """Decide, and count."""
        began_s = time.process_time()
        budget = self._controller(readings, actor, trainer, now_s)
        self.spent_s += time.process_time() - began_s
        self.calls += 1
        return budget


def play(case: Case, name: str, keep: Callable[[list[Moment]], None] | None = None) -> Row:
    """Let a controller govern a trace.

    Args:
        case: the trace.
        name: a key of `CONTROLLERS`.
        keep: is given every moment, for a plot.
    """
    controller = Timed(CONTROLLERS[name](case))
    moments = list(
        simulate(
            case.model,
            case.scenario,
            case.work,
            controller,
            seconds=case.seconds,
            period_s=case.period_s,
            seed=case.seed,
        )
    )
    if keep is not None:
        keep(moments)
    told = offer(case)
    due = case.work.prices.rate_hz * sum(m.lasted_s for m in moments)
    ticks = sum(m.ticks for m in moments)
    return_frac = sum(m.return_frac * (m.ticks - m.missed) for m in moments) / due
    acted, trained = sum(m.acted_core_s for m in moments), sum(m.trained_core_s for m in moments)
    missed = sum(m.missed for m in moments) / ticks if ticks else 1.0
    can = feasible(told) if case.until_s else None
    lasted = None
    if case.until_s:
        spared = [m for m in moments if m.t_s <= case.until_s + 1e-6]
        lasted = all(m.on_frac > 0.999 for m in spared) and (spared[-1].charge_frac or 0.0) >= RESERVE_FRAC - 1e-3
    changes = sum(before.choice != after.choice for before, after in pairwise(moments))
    announced = next((m.t_s for m in moments if UNMET in m.budget.why.values()), None)
    return Row(
        trace=case.name,
        kind=case.kind,
        board=case.model.name,
        bundle=case.work.manifest.name,
        controller=name,
        size=case.work.prices.exits_s[-1] * case.work.prices.rate_hz,
        return_frac=return_frac,
        missed_frac=missed,
        on_frac=sum(m.on_frac * m.lasted_s for m in moments) / sum(m.lasted_s for m in moments),
        work_core_s=acted + trained,
        acted_core_s=acted,
        energy_j=sum(m.energy_j for m in moments),
        own_j=case.model.busy_w_per_core * (acted + trained),
        steps=sum(m.steps for m in moments),
        link_bytes=sum(m.link_bytes for m in moments),
        throttled_frac=sum((m.freq_frac < 1) * m.lasted_s for m in moments) / case.seconds,
        switches_per_hour=changes / (case.seconds / 3600),
        feasible=can,
        lasted=lasted,
        announced_s=announced,
        kept=lasted is not False and missed <= MISS_FRAC,
        bound=None if can is False else bound(told),
        bound_equal=None if can is False else bound(told, acted + trained),
        decide_s=controller.spent_s / max(1, controller.calls),
    )


def builtins(row: Row) -> dict[str, Any]:
    """A row for the result file, rounded to what it is worth."""
    found: dict[str, Any] = {}
    for name, value in [*msgspec.structs.asdict(row).items(), ("gap", row.gap), ("gap_equal", row.gap_equal)]:
        found[name] = float(f"{value:.5g}") if isinstance(value, float) else value
    return found
