"""From one look at everything to one budget: what the device may spend, at which point its network runs, and why.

`decide` is pure and total: whatever it is given, silent sensors and nonsense included, it gives a safe budget. It is
monotone: of two looks at the same state, the hotter, emptier or slower one never buys more of anything.

**What gives way, in this order.** Safety bands (heat, charge, memory, supply voltage) come first and are never traded.
Then the deadline, by what decisions should take and by the misses that were counted (`missed`). Then energy. Then the
wanted return. Within what these leave, `goals.priorities` are served strictly one after the other: with the return
first, training gets energy once the best return is paid for, and not before. So when things get scarce, work for the
last priority goes first, then that for the one before it, then depth is given up step by step down to
`min_return_frac`; where that is not enough, `min_return_frac` itself; at the cheapest point nothing is left to give,
and the goal is named as unmet. The first exit is never forbidden.

**Switching.** Each scarcity has a level of its own: it falls at once, and rises only after it could have for a while on
end, and to no more than it could have been all that while. Between the two lies a margin, so that noise moves nothing.

**Threads.** A runtime keeps one: a second one would wait in a spin between two decisions, which costs more than these
networks take, and to change the number means to load the network anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from edgert.config import Goals, Govern
from edgert.govern import cost, energy, explain
from edgert.govern import goals as wants
from edgert.govern import missed as counts
from edgert.govern.budget import BUSY_FLOOR_FRAC, allot
from edgert.govern.cost import Slowdown
from edgert.govern.estimate import Mean, mix, update
from edgert.govern.goals import SURE
from edgert.govern.state import Held, Look, Setup, State, drawn_w
from edgert.values import ActorReport, Budget, Choice, Prices, Reading, TrainerReport

SHARES = 16
"""Training is given in so many parts: fewer changes, each worth one."""
ENERGY_DWELL_S = 900.0
"""Energy that comes back is worth waiting for: it is what was saved meanwhile."""
YIELD_S, YIELD_DWELL_S = 30.0, 3600.0
"""Training yields where the deadline takes something away for most of so long, not for one stall; and comes back after
this, since to try costs late decisions."""
UNABLE_SIGMAS, GUESSED_SIGMAS, GUESSED_FRAC = 1.0, 2.0, 0.05
"""Standard deviations by which the cheapest must be too dear before the battery is said to be unable to last, which is
then so five times in six; and the same while its power is not known to so small a share. What is less sure is said at
once as well, but as a doubt."""
MENDED_S = 600.0
"""What a price is wrong by shows after so long, and is made up for in the time that is left: only of that is a plan for
the battery unsure."""
SLACK = 1.05
"""What was taken away for energy must fit by so much before it comes back, and for time by twice as much."""
OPS_SLACK_FRAC = 0.05
LOSS_FRAC = 0.05
"""Packets lost are normal up to here."""
CAPACITY_FRAC = 0.5
"""Of what the link was seen to carry: teachers may not fill it."""
TELEMETRY_BYTES, TELEMETRY_FRAC = 6000.0, 0.25
"""Of a status document, and the share of the day's bytes that they may take."""
TELEMETRY_MAX_S = 600.0
TELEMETRY_SLOW_S = 10.0
"""Where round trips are slow: a document a second fills the queue of a thin link by itself."""
MEMORY_LEFT_BYTES = 32 << 20
"""With less than this to be had, the kernel is about to kill something."""
PLANNED_FRAC = 0.01
"""Above the critical charge, where a low one begins while a plan makes the battery last."""
MISSED = "deadline-missed"
TRIP_MIN_C = 60.0
"""A trip point below this is a fan's, not the clock's."""
CRITICAL_CLOCK_FRAC = 0.6
"""Clock that is left where heat or the supply voltage is about to take more of it."""
SLOWED = frozenset({"throttled", "freq-capped", "soft-temp-limit"})


class _Energy(msgspec.Struct, frozen=True):
    """What energy leaves."""

    level: tuple[int, int]  # of the ladder: sure, possible
    train: tuple[int, int]  # of SHARES
    reason: str
    unmet: str = ""
    short: bool = False  # what is planned with does not even pay for the cheapest
    lasts_s: float = math.inf  # at the cheapest


def decide(state: State, setup: Setup, look: Look, now_s: float) -> tuple[State, Budget]:
    """Decide what the device may spend until the next look.

    Args:
        state: what this function returned at the last look; `State()` at the start.
        setup: what is known beforehand.
        look: what is seen now.
        now_s: monotonic time; 0 is the start of the machine.

    Returns:
        The state to come back with, and the budget. `why` names for each of its figures the reason of the tightest
        limit, or `ok`; `govern.reasons` explains each name. `state.verdicts` says of each goal whether it is met.

    Raises:
        nothing.
    Source:
        the choice under a slow-down estimate: Wan et al. 2020, ALERT, section 3.4, here over a ladder of measured
        points; bands after openpilot's thermal states; the order of sacrifice and the levels are ours.
    """
    state, table = _believe(state, setup, look, now_s)
    govern, goals = _in_force(setup, look, now_s), setup.goals
    steps = cost.ladder(table, free=wants.stated(goals))
    top, floor = len(steps) - 1, cost.floor(steps, table)
    train_hz, teach_bytes_per_s = _sane(setup.train_steps_hz), _sane(setup.teacher_bytes_per_s)
    bands = allot(
        state.estimate,
        govern,
        n_exits=len(table.exits_s),
        train_steps_hz=train_hz,
        teacher_bytes_per_s=teach_bytes_per_s,
        link_up=look.link_up,
        has_frontier=bool(table.points) if look.actor is None else look.actor.has_frontier,
    )
    wanted = _wanted(steps, goals)
    late = _late(steps, table, state.slow, _deadline_s(setup, table))
    on_time = tuple(_up_to(late(factor), goals.miss_frac, floor) for factor in (2 * SLACK - 1, 1.0))
    if not state.slow.reports:
        on_time = (top, top)  # the actor keeps to its deadline by what it met while it warmed up
    # A step may cost more than the full network: where nothing is taken away it must not count.
    capped = [step.ops_frac if state.missed.cap_frac < 1 else 0.0 for step in steps]
    late_frac = mix(state.late_frac, float(on_time[1] < wanted), now_s, YIELD_S)
    spend = _energy(state, setup, look, steps, wanted, floor, now_s)

    limits: dict[str, tuple[int, int, str, float]] = {
        "bands": (*_banded(bands, steps, table, floor), _first(bands.why, "max_exit", "max_ops_frac"), govern.dwell_s),
        "deadline": (*_pair(on_time), "deadline", govern.dwell_s),
        "missed": (*_pair([_up_to(capped, state.missed.cap_frac, floor)] * 2), MISSED, 0.0),
        "energy": (*spend.level, spend.reason, ENERGY_DWELL_S),
        "train-energy": (*spend.train, spend.reason, ENERGY_DWELL_S),
        "teach-energy": (*_pair([int(not (spend.unmet or spend.short))] * 2), spend.reason, ENERGY_DWELL_S),
    }
    late_now = _own_first(goals) and (late_frac.mean or 0.0) > 0.5
    for name, (bad, reason, dwell_s) in {
        "yield": (late_now, "deadline", YIELD_DWELL_S),
        "yield-missed": (state.missed.yields, MISSED, 0.0),
        **_gates(state, setup, look, govern.dwell_s),
    }.items():
        limits[name] = (int(not bad), int(not bad), reason, dwell_s)
    held = {name: _hold(state.held.get(name), *limit, now_s) for name, limit in limits.items()}

    ladder_of = {name: held[name] for name in ("bands", "deadline", "missed", "energy")}
    level = min(wanted, *(each.level for each in ladder_of.values()))
    point_why = next((each.reason for each in ladder_of.values() if each.level == level < min(top, wanted)), "ok")
    if level == wanted < top:
        point_why = "goal-least-energy"
    train_frac, train_why = _training(bands, held, train_hz)
    teach, teach_why = _teaching(state, setup, look, bands, held, teach_bytes_per_s)
    byte_rate = wants.byte_rate(goals, state.carried, look.clock)
    slow = state.estimate.link_rtt_s.level > 0
    paid_s = min(TELEMETRY_MAX_S, max(1.0, _over(TELEMETRY_BYTES, TELEMETRY_FRAC * byte_rate)))
    telemetry_s = max(paid_s, TELEMETRY_SLOW_S if slow else 1.0)
    why = {
        "max_exit": bands.why["max_exit"],
        "train_steps_hz": train_why,
        "teacher_bytes_per_s": teach_why,
        "max_ops_frac": bands.why["max_ops_frac"],
        "point": point_why,
        "telemetry_s": "goal-bytes" if telemetry_s == paid_s > 1 else "link-slow" if slow else "ok",
    }
    choice, limited = steps[level], level < top
    if not table.points and choice.max_exit < bands.max_exit:
        why["max_exit"] = point_why
    elif table.points and limited and choice.ops_frac < bands.max_ops_frac:
        why["max_ops_frac"] = point_why
    # Nothing is scarce where nothing more is wanted.
    plenty = ("ok", "goal-least-energy")
    scarce = next((why[name] for name in ("point", "train_steps_hz", "max_exit") if why[name] not in plenty), "ok")
    budget = Budget(
        max_exit=min(bands.max_exit, choice.max_exit),
        train_steps_hz=train_hz * train_frac,
        teacher_bytes_per_s=teach,
        why={**why, "accept_jobs": scarce},
        max_ops_frac=min(bands.max_ops_frac, choice.ops_frac) if table.points and limited else bands.max_ops_frac,
        point=choice.point if table.points and (limited or wants.stated(goals)) else None,
        deadline_s=goals.deadline_s or None,
        telemetry_s=telemetry_s,
        accept_jobs=scarce == "ok",
        trainer_cpu_frac=_trainer_cpu_frac(state, setup, train_hz * train_frac) if train_frac < 1 else None,
        clock_frac=CRITICAL_CLOCK_FRAC
        if "temp-critical" in bands.why.values() or not held["under-voltage"].level
        else None,
    )
    verdicts = explain.verdicts(
        state, setup, look, choice, budget, now_s,
        unmet=spend.unmet, short=spend.short, lasts_s=spend.lasts_s, late_frac=late(1.0)[level],
    )  # fmt: skip
    state = msgspec.structs.replace(
        state,
        held=held,
        late_frac=late_frac,
        used_frac=choice.ops_frac,
        infeasible=spend.unmet == "until-infeasible",
        short=spend.short,
        verdicts=verdicts,
        figures=explain.figures(state, setup, choice, budget, now_s),
        budget=budget,
    )
    return state, budget


def _believe(state: State, setup: Setup, look: Look, now_s: float) -> tuple[State, Prices]:
    """Take the look into every estimate."""
    replace, readings, stale_s = msgspec.structs.replace, look.readings, setup.govern.stale_s
    actor, trainer = look.actor, look.trainer
    table = setup.prices if actor is None else cost.measured(setup.prices, actor.costs_s)
    if actor is not None and not actor.has_frontier:
        table = replace(table, points=())
    if state.prices is None:
        state = replace(state, late_frac=Mean(0.0, 0.0, YIELD_S, now_s))
    if state.prices is None or state.prices.exits_s != table.exits_s:
        use = replace(state.use, factor=Mean())
        state = replace(state, slow=Slowdown(spread_frac=table.spread_frac), use=use, missed=counts.Missed())
    if state.prices is not None and state.prices.points != table.points:
        state = replace(state, held={})
    load_frac = _finite(readings.load_frac, stale_s)
    load_frac = None if load_frac is None else min(1.0, max(0.0, load_frac))
    estimate = update(state.estimate, readings, now_s, _in_force(setup, look, now_s))
    charge_frac = estimate.battery_frac.value if readings.has_battery else None
    power = energy.follow_power(
        energy.model(setup.supply) if state.power is None else state.power,
        setup.supply,
        load_frac=load_frac,
        gauge=readings.power_w,
        charge_frac=None if charge_frac is None else _finite(readings.battery_frac, stale_s),
        external=readings.external_power,
        stale_s=stale_s,
        now_s=now_s,
    )
    drawn = 0.0 if readings.external_power or load_frac is None else energy.watts(power, load_frac)[0]
    known = state.charge_frac if readings.has_battery else Mean()
    charge = energy.follow_charge(
        known, charge_frac, drawn, setup.supply, now_s, charging=readings.external_power is True
    )
    jumped = charge.mean is not None and charge_frac is not None and abs(charge_frac - charge.mean) > energy.STEP_FRAC
    news, more = _is_news(state.actor, actor), _is_news(state.trainer, trainer)
    slow = cost.follow(state.slow, table, state.actor if news else None, actor if news else None, now_s)
    use = energy.follow_use(
        state.use,
        table,
        setup.supply,
        actor=(state.actor, actor) if news else (None, None),
        actor_elapsed_s=now_s - state.actor_s,
        trainer=(state.trainer, trainer) if more else (None, None),
        trainer_elapsed_s=now_s - state.trainer_s,
        load_frac=load_frac,
        now_s=now_s,
    )
    new_bytes = 0
    if look.carried_bytes is not None:
        new_bytes = look.carried_bytes - (state.counted_bytes or 0)
    carried = state.carried
    if look.carried_bytes is not None and (setup.goals.bytes_per_day or carried is not None):
        carried = wants.count(carried, look.clock, new_bytes)
    state = replace(
        state,
        estimate=estimate,
        slow=slow,
        missed=counts.follow(
            state.missed,
            state.actor,
            actor if news else None,
            allowed_frac=setup.goals.miss_frac,
            used_frac=state.used_frac,
            trains=_own_first(setup.goals) and state.budget is not None and state.budget.train_steps_hz > 0,
            dwell_s=setup.govern.dwell_s,
            now_s=now_s,
        ),
        power=power,
        use=use,
        charge_frac=charge,
        jumped_s=now_s if jumped else state.jumped_s,
        loss_frac=mix(state.loss_frac, _finite(readings.link_loss_frac, stale_s), now_s, 60.0),
        capacity_bytes_per_s=mix(state.capacity_bytes_per_s, _finite(readings.link_bytes_per_s, stale_s), now_s, 300.0),
        rtt_s=mix(state.rtt_s, _finite(readings.link_rtt_s, stale_s), now_s, 60.0),
        prices=table,
        actor=actor if news else state.actor,
        actor_s=now_s if news else state.actor_s,
        trainer=trainer if more else state.trainer,
        trainer_s=now_s if more else state.trainer_s,
        carried=carried,
        counted_bytes=look.carried_bytes,
        own_bytes=look.own_bytes,
    )
    return state, table


def _is_news(before: ActorReport | TrainerReport | None, after: ActorReport | TrainerReport | None) -> bool:
    if after is None or after is before:
        return False
    return before is None or (before.pid, before.cpu_s) != (after.pid, after.cpu_s) or before != after


def _finite(reading: Reading, stale_s: float) -> float | None:
    value = reading.value
    return value if value is not None and math.isfinite(value) and reading.age_s <= stale_s else None


def _sane(value: float) -> float:
    return value if 0 < value < math.inf else 0.0


def _over(above: float, below: float) -> float:
    return above / below if below > 0 else math.inf


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


def _first(why: dict[str, str], *names: str) -> str:
    return next((why[name] for name in names if why[name] != "ok"), "ok")


def _in_force(setup: Setup, look: Look, now_s: float) -> Govern:
    """The safety bands of this look."""
    govern, trip_c = setup.govern, look.readings.trip_c.value
    if trip_c is not None and TRIP_MIN_C <= trip_c < govern.temp_high_c + govern.temp_hysteresis_c:
        # Act before the kernel does: what it takes away, it takes from the actor as well.
        govern = msgspec.structs.replace(govern, temp_high_c=trip_c - govern.temp_hysteresis_c)
    if look.readings.external_power or _until_s(setup, look, now_s) < math.inf:
        # The battery lasts, by charging or by a plan, from which it would be taken what a low charge takes away before.
        planned_frac = min(govern.battery_low_frac, govern.battery_critical_frac + PLANNED_FRAC)
        govern = msgspec.structs.replace(govern, battery_low_frac=planned_frac)
    return govern


def _deadline_s(setup: Setup, table: Prices) -> float:
    return _sane(setup.goals.deadline_s) or _sane(setup.deadline_s) or 0.8 / max(table.rate_hz, 1e-3)


def _own_first(goals: Goals) -> bool:
    return goals.priorities.index("return") < goals.priorities.index("training")


def _wanted(steps: Sequence[Choice], goals: Goals) -> int:
    """The step to take while nothing is scarce."""
    top = len(steps) - 1
    return _enough(steps, goals) if goals.least_energy and goals.min_return_frac else top


def _enough(steps: Sequence[Choice], goals: Goals) -> int:
    """The cheapest step of the wanted return; the best one where none has it."""
    fits = (i for i, step in enumerate(steps) if (step.return_frac or 0.0) >= goals.min_return_frac)
    return next(fits, len(steps) - 1)


def _late(steps: Sequence[Choice], table: Prices, slow: Slowdown, deadline_s: float) -> Callable[[float], list[float]]:
    """Factor of the slow-down -> share of late ticks at each step, never less at a dearer one."""

    def at(factor: float) -> list[float]:
        slower = msgspec.structs.replace(slow, mean=slow.mean * factor, var=slow.var * factor * factor)
        exits = cost.late_fracs(table, slower, deadline_s)
        return _rising([cost.mixed(step, exits) for step in steps])

    return at


def _rising(values: Sequence[float]) -> list[float]:
    highest, found = -math.inf, []
    for value in values:
        highest = max(highest, value)
        found.append(highest)
    return found


def _up_to(values: Sequence[float], most: float, least: int) -> int:
    """The last index whose value is at most `most`, and not below `least`."""
    fits = sum(value <= most for value in values)
    return max(least, fits - 1)


def _banded(bands: Budget, steps: Sequence[Choice], table: Prices, floor: int) -> tuple[int, int]:
    """The bands' ceiling as levels of the ladder."""
    top = len(steps) - 1
    if not table.points:
        return min(top, bands.max_exit), min(top, bands.max_exit)
    if bands.max_ops_frac >= 1:
        return top, top
    costs = [step.ops_frac for step in steps]
    return _up_to(costs, bands.max_ops_frac - OPS_SLACK_FRAC, floor), _up_to(costs, bands.max_ops_frac, floor)


def _hold(held: Held | None, sure: int, possible: int, reason: str, dwell_s: float, now_s: float) -> Held:
    """Move a level: down at once, up late; between `sure` and `possible` it stays where it is."""
    if held is None:
        return Held(possible, reason)
    target = min(possible, max(held.level, sure))
    if target <= held.level:
        return Held(target, reason)
    ready = target if held.ready is None else min(held.ready, target)
    since_s = now_s if held.ready is None or now_s < held.since_s else held.since_s
    if now_s - since_s >= dwell_s:
        return Held(ready, reason)
    return Held(held.level, held.reason, ready, since_s)


def _gates(state: State, setup: Setup, look: Look, dwell_s: float) -> dict[str, tuple[bool, str, float]]:
    """What switches something off altogether: name -> (it does, its reason, how long it must be over)."""
    now = frozenset(look.readings.throttle.now) if look.readings.throttle is not None else frozenset[str]()
    available = _finite(look.readings.memory_available_bytes, setup.govern.stale_s)
    most = setup.goals.memory_max_bytes
    return {
        "under-voltage": ("under-voltage" in now, "under-voltage", dwell_s),
        "throttled": (bool(now & SLOWED), "throttled", dwell_s),
        "memory": (available is not None and available < MEMORY_LEFT_BYTES, "memory-pressure", dwell_s),
        "goal-memory": (0 < most < state.held_bytes, "goal-memory", ENERGY_DWELL_S),
        "metered": (look.readings.metered is True and not setup.goals.use_metered, "link-metered", dwell_s),
    }


def _energy(
    state: State, setup: Setup, look: Look, steps: Sequence[Choice], wanted: int, floor: int, now_s: float
) -> _Energy:
    """What the energy goals leave, as levels of the ladder and of training."""
    goals, supply, top = setup.goals, setup.supply, len(steps) - 1
    lowest = min(_enough(steps, goals), floor) if goals.min_return_frac else floor
    left = _until_s(setup, look, now_s)
    charge_frac, read_frac = state.charge_frac.mean, state.estimate.battery_frac.value
    plan_w, _ = wants.spendable_w(supply, charge_frac, left)
    cap_w = goals.max_power_w or math.inf
    if min(plan_w, cap_w) == math.inf:
        return _Energy((top, top), (SHARES, SHARES), "ok")
    reason = "goal-until" if plan_w <= cap_w else "goal-power"

    def drawn(step: int, part: int, long: bool) -> tuple[float, float]:
        hz = part / SHARES * _sane(setup.train_steps_hz)
        return drawn_w(state, setup, steps[step], train_steps_hz=hz, long=long)

    unsure = SURE * min(1.0, _over(MENDED_S, left))

    def fits(step: int, part: int, slack: float) -> bool:
        for most, sigmas, long in ((plan_w, unsure, True), (cap_w, SURE, False)):
            if most < math.inf:
                mean, std = drawn(step, part, long)
                if slack * mean + sigmas * std > most:
                    return False
        return True

    first = _own_first(goals)
    levels, parts = [], []
    for slack in (SLACK, 1.0):
        base = 0 if first else SHARES
        level = lowest
        while level < top and fits(level + 1, base, slack):
            level += 1
        levels.append(level)
        on = wanted if first else lowest
        parts.append(max((part for part in range(SHARES + 1) if fits(on, part, slack)), default=0))
    cheapest_w, std_w = drawn(lowest, 0, True)
    now_w, _ = drawn(lowest, 0, False)
    again = SLACK if state.infeasible else 1.0  # once said, it is not taken back for a trifle
    unmet, lasts_s = "", math.inf
    if left < math.inf and charge_frac is not None and read_frac is not None:
        # A gauge that has jumped away from what was drawn may lie: by so much the charge is not known.
        _, most_w = wants.spendable_w(supply, charge_frac + abs(read_frac - charge_frac), left)
        lasts_s = _over(max(0.0, min(charge_frac, read_frac) - supply.reserve_frac) * supply.capacity_j, cheapest_w)
        gauge_w = energy.CHARGE_STD_FRAC * supply.capacity_j / max(left, wants.SOON_S)
        sigmas = UNABLE_SIGMAS if std_w <= GUESSED_FRAC * cheapest_w else GUESSED_SIGMAS
        calm = state.jumped_s is None or not 0 <= now_s - state.jumped_s < energy.CHARGE_S
        if (calm or state.infeasible) and again * cheapest_w - sigmas * math.hypot(std_w, gauge_w) > most_w:
            unmet = "until-infeasible"
    if not unmet and wants.above(now_w, cap_w, state.verdicts):
        unmet = "goal-power-unmet"
    short = left < math.inf and not fits(lowest, 0, SLACK if state.short else 1.0)
    return _Energy(_pair(levels), _pair(parts), unmet or reason, unmet, short, lasts_s)


def _until_s(setup: Setup, look: Look, now_s: float) -> float:
    """How long the battery must last; infinity when it need not, or is being charged."""
    if setup.goals.last_until is None or look.readings.external_power or not look.readings.has_battery:
        return math.inf
    left = wants.left_s(setup.goals, look.clock, now_s, setup.goals_since_s)
    if left is None:
        return wants.DAY_S
    return math.inf if left <= 0 else left


def _training(bands: Budget, held: dict[str, Held], train_hz: float) -> tuple[float, str]:
    """Share of the gradient steps, and the reason of the tightest limit."""
    found = [
        (bands.train_steps_hz / train_hz if train_hz > 0 else 0.0, bands.why["train_steps_hz"]),
        (held["train-energy"].level / SHARES, held["train-energy"].reason),
        *((0.0, held[name].reason) for name in ("under-voltage", "memory", "goal-memory") if not held[name].level),
        *(
            (BUSY_FLOOR_FRAC, held[name].reason)
            for name in ("throttled", "yield", "yield-missed")
            if not held[name].level
        ),
    ]
    share, reason = min(found, key=lambda each: each[0])
    return share, reason if share < 1 and train_hz > 0 else "ok"


def _trainer_cpu_frac(state: State, setup: Setup, train_hz: float) -> float:
    """What its steps need, and half as much again for what lies between them."""
    step_s = energy.STEP_S if state.use.step_s.mean is None else state.use.step_s.mean
    return min(1.0, max(0.02, 1.5 * train_hz * step_s / max(1, setup.supply.cores)))


def _teaching(
    state: State, setup: Setup, look: Look, bands: Budget, held: dict[str, Held], full: float
) -> tuple[float, str]:
    """Bytes a second for teachers, and the reason of the tightest limit."""
    goals = setup.goals
    found = [(bands.teacher_bytes_per_s, bands.why["teacher_bytes_per_s"])]
    if not held["metered"].level:
        found.append((0.0, held["metered"].reason))
    if not held["teach-energy"].level:
        found.append((0.0, held["teach-energy"].reason))
    elif goals.priorities.index("link") > goals.priorities.index("training"):
        found.append((full * held["train-energy"].level / SHARES, held["train-energy"].reason))
    loss = state.loss_frac.mean or 0.0
    if loss > LOSS_FRAC:
        found.append((full * max(0.0, 1.0 - loss), "link-lossy"))
    if state.capacity_bytes_per_s.mean is not None:
        found.append((CAPACITY_FRAC * max(0.0, state.capacity_bytes_per_s.mean), "link-capacity"))
    day = wants.byte_rate(goals, state.carried, look.clock)
    if day < math.inf:
        found.append(((1 - TELEMETRY_FRAC) * day, "goal-bytes"))
    rate, reason = min(found, key=lambda each: each[0])
    return min(rate, full), reason if rate < full else "ok"
