"""The governor's answer to "why?": every stated goal with what has become of it, and every estimate with its doubt."""

from __future__ import annotations

import math

from edgert.govern import cost, energy
from edgert.govern import goals as wants
from edgert.govern.estimate import Figure
from edgert.govern.goals import Verdict
from edgert.govern.state import Look, Setup, State, drawn_w
from edgert.values import Budget, Choice


def verdicts(
    state: State, setup: Setup, look: Look, choice: Choice, budget: Budget, now_s: float, *,
    unmet: str, short: bool, lasts_s: float, late_frac: float,
) -> dict[str, Verdict]:  # fmt: skip
    """Every stated goal, and whether it is met.

    Args:
        state: what is believed.
        setup: with the goals.
        look: what is seen now.
        choice: how the network is run.
        budget: as decided.
        now_s: monotonic time.
        unmet: the energy goal that not even the cheapest choice meets, by its reason.
        short: the battery may not last as long as it is to, by what is planned with.
        lasts_s: how long it lasts at the cheapest choice.
        late_frac: share of the decisions that are expected to be late.

    Returns:
        Goal -> verdict; that of the deadline is always there.

    Raises:
        nothing.
    Source:
        ours: a goal that cannot be judged is neither met nor unmet.
    """
    goals, found = setup.goals, {}
    missed = state.use.missed_frac.mean
    too_late = late_frac > goals.miss_frac or (missed is not None and missed > goals.miss_frac)
    found["deadline"] = Verdict(
        wanted=f"at most {100 * goals.miss_frac:g} % missed",
        found="not measured yet" if missed is None else f"{100 * missed:.2f} % missed",
        met=None if missed is None and not too_late else not too_late,
        why="goal-deadline-unmet" if too_late else "",
    )
    if goals.min_return_frac:
        value = choice.return_frac
        met = None if value is None else value >= goals.min_return_frac
        found["return"] = Verdict(
            wanted=f"at least {goals.min_return_frac:g}",
            found="not measured" if value is None else f"{value:.3f}",
            met=met,
            why="goal-return-unknown" if met is None else "" if met else "goal-return-unmet",
        )
    if goals.max_power_w:
        mean, std = drawn_w(state, setup, choice, train_steps_hz=budget.train_steps_hz, long=False)
        met = not wants.above(mean, goals.max_power_w, state.verdicts)
        why = "" if met else "goal-power-unmet"
        said = f"{mean:.2f} ± {std:.2f} W"
        found["power"] = Verdict(wanted=f"at most {goals.max_power_w:g} W", found=said, met=met, why=why)
    if goals.last_until is not None:
        found["until"] = _until(state, setup, look, now_s, unmet, short, lasts_s)
    if goals.memory_max_bytes:
        held = state.held_bytes
        met = held <= goals.memory_max_bytes
        found["memory"] = Verdict(
            wanted=f"at most {goals.memory_max_bytes / 2**20:.0f} MiB",
            found=f"{held / 2**20:.0f} MiB",
            met=met,
            why="" if met else "goal-memory-unmet",
        )
    if goals.bytes_per_day:
        used = state.carried.total_bytes if state.carried else 0
        met = used <= goals.bytes_per_day
        found["bytes"] = Verdict(
            wanted=f"at most {goals.bytes_per_day} bytes a day",
            found=f"{used} bytes today",
            met=met,
            why="" if met else "goal-bytes-unmet",
        )
    return found


def _until(state: State, setup: Setup, look: Look, now_s: float, unmet: str, short: bool, lasts_s: float) -> Verdict:
    wanted, readings = str(setup.goals.last_until), look.readings
    if not readings.has_battery:
        return Verdict(wanted=wanted, found="no battery", met=None, why="no-battery")
    if readings.external_power:
        return Verdict(wanted=wanted, found="charging", met=None, why="on-mains")
    left = wants.left_s(setup.goals, look.clock, now_s, setup.goals_since_s)
    if left is None:
        return Verdict(wanted=wanted, found="time of the day not known", met=None, why="clock-unknown")
    if left <= 0:
        counted = " since the start of the machine" if wanted.endswith("h") and not setup.goals_since_s else ""
        return Verdict(wanted=wanted, found=f"over{counted}", met=True)
    charge = state.estimate.battery_frac.value
    if charge is None:
        return Verdict(wanted=wanted, found="charge not known", met=None, why="battery-unknown")
    most = f", at the least {lasts_s / 3600:.1f} h" if lasts_s < math.inf else ""
    said = f"{100 * charge:.0f} % for {left / 3600:.1f} h{most}"
    if unmet == "until-infeasible":
        return Verdict(wanted=wanted, found=said, met=False, why=unmet)
    fell_frac = (state.charge_frac.mean or 0.0) - charge
    if short or fell_frac > energy.STEP_FRAC:  # a gauge that has just jumped may lie
        return Verdict(wanted=wanted, found=said, met=None, why="until-uncertain")
    return Verdict(wanted=wanted, found=said, met=True)


def figures(state: State, setup: Setup, choice: Choice, budget: Budget, now_s: float) -> dict[str, Figure]:
    """What is believed, with its doubt.

    Args:
        state: what is believed.
        setup: of this board.
        choice: how the network is run.
        budget: as decided.
        now_s: monotonic time.

    Returns:
        Name with its unit -> estimate.

    Raises:
        nothing.
    Source:
        ours: a figure without its doubt and its age is a rumour.
    """
    table = state.prices or setup.prices
    use, slow, supply = state.use, state.slow, setup.supply
    power = energy.model(supply) if state.power is None else state.power
    age_s = 0.0 if slow.at_s is None else max(0.0, now_s - slow.at_s)
    found = {"slowdown": Figure(mean=slow.mean, std=math.sqrt(slow.var), age_s=age_s, source=table.source)}
    for k in range(len(table.exits_s)):
        mean_s, std_s = cost.exit_s(table, slow, k)
        found[f"exit{k}_s"] = Figure(mean=mean_s, std=std_s, age_s=age_s, source=table.source)
    work_s = cost.work_s(choice, table)
    tick_s, std_s = energy.tick_cpu_s(use, work_s, slow.mean), work_s * math.sqrt(use.factor.var)
    found["decision_j"] = energy.joules(power, supply, tick_s, std_s, now_s)
    if use.step_s.mean is not None:
        found["train_step_j"] = energy.joules(power, supply, use.step_s.mean, math.sqrt(use.step_s.var), now_s)
    mean_w, std_w = drawn_w(state, setup, choice, train_steps_hz=budget.train_steps_hz, long=True)
    age_s = 0.0 if power.at_s is None else max(0.0, now_s - power.at_s)
    found["power_w"] = Figure(mean=mean_w, std=std_w, age_s=age_s, source=energy.sourced(power, supply))
    if state.estimate.has_battery:
        found["empty_s"] = energy.empty_s(power, supply, state.charge_frac.mean, (mean_w, std_w))
    found["link_rtt_s"] = state.rtt_s.figure(now_s, "broker")
    found["link_bytes_per_s"] = state.capacity_bytes_per_s.figure(now_s, "link")
    found["link_loss_frac"] = state.loss_frac.figure(now_s, "link")
    return found
