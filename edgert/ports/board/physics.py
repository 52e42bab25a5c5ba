"""The physics of a small board: heat, clock, cores and charge. Pure: no clock, no dice, no files.

Between two looks of the thermal governor everything is solved in closed form, so that how time is cut into calls does
not change where it leads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

_TIME_SLACK_S = 1e-9  # of sums of seconds that should be whole
_RISING_C_PER_S = 0.05  # slower than what a sensor's last digit shows from one look to the next
RESTART_FRAC = 0.05
"""An emptied board starts again at this charge: without it, a weak charger would switch it on and off for ever."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What a board is made of.

    Attributes:
        name: for people.
        cores: alike, and all on one clock.
        idle_w: of the chip at rest; it heats the chip.
        busy_w_per_core: more, for a core that is busy at the full clock; it heats the chip.
        static_w: of the rest of the board; it drains the battery and heats nothing that is measured.
        voltage_floor_frac: supply voltage that is left at a clock of 0, as a share of that at the full clock.
        capacity_j: what the battery's full charge gives; 0 is mains.
        efficiency_frac: share of the charge that reaches the board, and again of what the charger gives that is stored.
        charger_w: what a charger gives while it is there.
        r_c_per_w, tau_s: thermal resistances from the chip to the air, and the time constant of each; as many of one as
            of the other.
        hot_c: from here on the clock is stepped down.
        trip_c: from here on the lowest clock is taken at once.
        hysteresis_c: the clock is stepped up again below `hot_c` less this.
        min_freq_frac: the lowest clock, as a share of the highest.
        freq_steps: from the highest clock to the lowest.
        poll_s: between two looks of the thermal governor.
    """

    name: str = "generic"
    cores: int = 4
    idle_w: float = 0.7
    busy_w_per_core: float = 0.9
    static_w: float = 2.0
    voltage_floor_frac: float = 0.6
    capacity_j: float = 0.0
    efficiency_frac: float = 0.92
    charger_w: float = 15.0
    r_c_per_w: tuple[float, ...] = (2.0, 8.0)
    tau_s: tuple[float, ...] = (4.0, 180.0)
    hot_c: float = 80.0
    trip_c: float = 85.0
    hysteresis_c: float = 2.0
    min_freq_frac: float = 0.4
    freq_steps: int = 9
    poll_s: float = 1.0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A board at one moment; make the first with `initial`.

    Attributes:
        temp_c: of the chip.
        charge_j: left in the battery; 0 on mains.
        freq_frac: the clock that the thermal governor allows, as a share of the highest.
        at_s: since the beginning.
        on: it runs; False once the battery is empty.
        rises_c: what each thermal stage adds to the temperature.
        ambient_c: the air as the slowest stage feels it.
        level: steps that the clock was taken down.
        polled_s: since the last look of the thermal governor.
    """

    temp_c: float
    charge_j: float = 0.0
    freq_frac: float = 1.0
    at_s: float = 0.0
    on: bool = True
    rises_c: tuple[float, ...] = ()
    ambient_c: float = 25.0
    level: int = 0
    polled_s: float = 0.0


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a board did over a while.

    Attributes:
        executed_core_s: work, in seconds of one core at the full clock.
        energy_j: the board drew; from the battery it took that over `efficiency_frac`.
        load_frac: busy share of all cores; at a lower clock the same work keeps them busier.
        freq_frac: mean clock.
        on_s: how long it ran.
    """

    executed_core_s: float
    energy_j: float
    load_frac: float
    freq_frac: float
    on_s: float


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What wants the processor.

    Attributes:
        demand_cores: what it would take, in cores at the full clock.
        weight: of the scheduler; 1024 is nice 0, 15 is nice 19.
        threads: cores it can keep busy at once at most.
    """

    demand_cores: float
    weight: float = 1024.0
    threads: float = 1.0


def initial(
    model: Model, *, ambient_c: float = 25.0, charge_frac: float = 1.0, demand_cores: float = 0.0, at_s: float = 0.0
) -> State:
    """A board in thermal balance.

    Args:
        model: the board.
        ambient_c: air temperature, degrees Celsius.
        charge_frac: of the battery, 0..1.
        demand_cores: load it is in balance with, at the full clock.
        at_s: its time.

    Returns:
        The state; not throttled yet, however hot.

    Raises:
        nothing.
    Source:
        T = T_ambient + P sum(R): the steady state of the Foster network, see `advance`.
    """
    power_w = chip_w(model, min(max(0.0, demand_cores), model.cores), 1.0)
    rises = tuple(power_w * r for r in model.r_c_per_w)
    charge_j = model.capacity_j * min(1.0, max(0.0, charge_frac))
    return State(
        temp_c=ambient_c + sum(rises),
        charge_j=charge_j,
        at_s=at_s,
        on=charge_j > 0 or not model.capacity_j,
        rises_c=rises,
        ambient_c=ambient_c,
    )


def chip_w(model: Model, busy_cores: float, freq_frac: float) -> float:
    """Power that heats the chip.

    Args:
        model: the board.
        busy_cores: cores that are busy.
        freq_frac: their clock, 0..1.

    Returns:
        Watts.

    Raises:
        nothing.
    Source:
        dynamic power C V^2 f (Chandrakasan et al. 1992, Low-power CMOS digital design, eq. 1) with a supply voltage
        that is affine in the clock, as operating points of the kernel's device trees are within a few per cent.
    """
    voltage = model.voltage_floor_frac + (1.0 - model.voltage_floor_frac) * freq_frac
    return model.idle_w + model.busy_w_per_core * busy_cores * freq_frac * voltage * voltage


def freq_of(model: Model, level: int) -> float:
    """The clock that is left after so many steps down.

    Args:
        model: the board.
        level: 0 is the highest clock, `freq_steps` the lowest.

    Returns:
        Share of the highest clock.

    Raises:
        nothing.
    Source:
        ours: evenly spaced operating points; the tables of the boards are within one step of that.
    """
    return 1.0 - (1.0 - model.min_freq_frac) * level / max(1, model.freq_steps)


def shares(capacity_cores: float, tasks: Sequence[Task], freq_frac: float = 1.0) -> tuple[float, ...]:
    """Who gets how much of the processor.

    Args:
        capacity_cores: there is to give, in cores at the full clock.
        tasks: that want it.
        freq_frac: the clock: a thread cannot do more in a second than a core at this clock.

    Returns:
        What each executes, in cores at the full clock.

    Raises:
        nothing.
    Source:
        weighted max-min fairness by water-filling (Bertsekas & Gallager 1992, Data Networks, 6.5.2), which is what a
        fair-share scheduler gives in the long run (Linux, sched-design-CFS.rst).
    """
    wants = [max(0.0, min(task.demand_cores, task.threads * freq_frac)) for task in tasks]
    given = [0.0] * len(tasks)
    left, open_tasks = max(0.0, capacity_cores), [k for k, want in enumerate(wants) if want > 0]
    while open_tasks and left > 0:
        per_weight = left / sum(tasks[k].weight for k in open_tasks)
        content = [k for k in open_tasks if wants[k] <= per_weight * tasks[k].weight]
        for k in content or open_tasks:
            given[k] = min(wants[k], per_weight * tasks[k].weight)
        if not content:
            break
        left -= sum(wants[k] for k in content)
        open_tasks = [k for k in open_tasks if k not in content]
    return tuple(given)


def advance(
    model: Model,
    state: State,
    *,
    demand_cores: float,
    ambient_c: float,
    elapsed_s: float,
    freq_cap_frac: float = 1.0,
    extra_w: float = 0.0,
    supply_w: float = 0.0,
) -> tuple[State, Done]:
    """Let time pass.

    Args:
        model: the board.
        state: before.
        demand_cores: what everything together would execute, in cores at the full clock; what does not fit is not kept.
        ambient_c: air temperature, degrees Celsius.
        elapsed_s: how long, not negative.
        freq_cap_frac: clock that was set from outside at most, as a share of the highest.
        extra_w: drawn by what hangs on the board.
        supply_w: given by a charger.

    Returns:
        The state after, and what was done meanwhile. Work and energy stop when the battery is empty.

    Raises:
        nothing.
    Source:
        Foster network: rise_i' = (R_i P - rise_i) / tau_i, T = T_ambient + sum(rise_i), solved by exponentials while P
        is constant; the clock by the kernel's step_wise governor (drivers/thermal/gov_step_wise.c): at every look one
        step down while hot and rising, one step up while not hot and not rising. The air is felt through the slowest
        stage, as a board in a box does.
    """
    demand_cores, cap = max(0.0, demand_cores), min(1.0, max(model.min_freq_frac, freq_cap_frac))
    rises, felt_c, charge_j = list(state.rises_c), state.ambient_c, state.charge_j
    if len(rises) != len(model.tau_s):
        rises = [0.0] * len(model.tau_s)
    level, polled_s, on, battery = state.level, state.polled_s, state.on, model.capacity_j > 0
    stages = list(zip(model.r_c_per_w, model.tau_s, strict=True))
    slowest_s = max(model.tau_s)
    executed = energy_j = busy_core_s = clock_s = on_s = 0.0
    left_s = max(0.0, elapsed_s)
    while left_s > _TIME_SLACK_S:
        freq = min(cap, freq_of(model, level))
        rate = min(demand_cores, model.cores * freq) if on else 0.0
        chip = chip_w(model, rate / freq, freq) if on else 0.0
        power_w = chip + model.static_w + max(0.0, extra_w) if on else 0.0
        highest_c = max(felt_c, ambient_c) + sum(max(x, r * chip) for x, (r, _) in zip(rises, stages, strict=True))
        quiet = level == 0 and highest_c < model.hot_c
        dt_s = left_s if quiet else min(left_s, max(model.poll_s - polled_s, _TIME_SLACK_S))
        flow_w = 0.0  # into the cell
        if battery:
            surplus_w = supply_w - power_w
            flow_w = surplus_w * model.efficiency_frac if surplus_w >= 0 else surplus_w / model.efficiency_frac
            if flow_w < 0 and on:
                dt_s = min(dt_s, charge_j / -flow_w)
            elif not on and flow_w > 0:
                dt_s = min(dt_s, max(0.0, RESTART_FRAC * model.capacity_j - charge_j) / flow_w)
        felt_c = ambient_c + (felt_c - ambient_c) * math.exp(-dt_s / slowest_s)
        rises = [r * chip + (x - r * chip) * math.exp(-dt_s / tau) for x, (r, tau) in zip(rises, stages, strict=True)]
        executed += rate * dt_s
        energy_j += power_w * dt_s
        if on:
            busy_core_s += rate / freq * dt_s
            clock_s += freq * dt_s
            on_s += dt_s
        if battery:
            charge_j = min(model.capacity_j, max(0.0, charge_j + flow_w * dt_s))
            if on and flow_w < 0 and charge_j <= 1e-9 * model.capacity_j:
                on, charge_j = False, 0.0
            elif not on and charge_j >= RESTART_FRAC * model.capacity_j * (1 - 1e-9):
                on = True
        left_s -= dt_s
        polled_s += dt_s
        if quiet:
            polled_s %= model.poll_s
        elif polled_s >= model.poll_s - _TIME_SLACK_S:
            polled_s = 0.0
            temp_c = felt_c + sum(rises)
            trend = sum((r * chip - x) / tau for x, (r, tau) in zip(rises, stages, strict=True))
            level = _stepped(model, level, temp_c, trend + (ambient_c - felt_c) / slowest_s)
    after = State(
        temp_c=felt_c + sum(rises),
        charge_j=charge_j,
        freq_frac=freq_of(model, level),
        at_s=state.at_s + max(0.0, elapsed_s),
        on=on,
        rises_c=tuple(rises),
        ambient_c=felt_c,
        level=level,
        polled_s=polled_s,
    )
    return after, Done(
        executed_core_s=executed,
        energy_j=energy_j,
        load_frac=busy_core_s / (model.cores * on_s) if on_s else 0.0,
        freq_frac=clock_s / on_s if on_s else 0.0,
        on_s=on_s,
    )


def _stepped(model: Model, level: int, temp_c: float, trend_c_per_s: float) -> int:
    if temp_c >= model.trip_c:
        return model.freq_steps
    if temp_c >= model.hot_c:
        return min(model.freq_steps, level + 1) if trend_c_per_s > 0 else level
    if temp_c < model.hot_c - model.hysteresis_c and trend_c_per_s <= _RISING_C_PER_S:
        return max(0, level - 1)
    return level
