"""What things cost in joules: a model of the board's power, corrected by whatever measures it, and who uses how much.

power = base + busy * load. Where the board has a rail or a gauge, both figures follow it; where it has only a battery,
they follow its charge; where it has neither, they stay what `supply_of` found, and their source names where: `model of`
the board's file, `[board]`, or merely `assumed`.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from edgert.config import Config
from edgert.govern.estimate import Figure, Mean, mix
from edgert.hardware import BoardFile
from edgert.values import ActorReport, Prices, Reading, TrainerReport

MODEL_STD_FRAC = 0.3
"""What a configured power may be off by, as one standard deviation: boards of one name differ, and so do their HATs."""
GAUGE_STD_FRAC, GAUGE_STD_W = 0.1, 0.05
"""Of one sample of a rail against the load of the same look: load and current are not measured at the same instant."""
CHARGE_STD_FRAC = 0.01
"""Of a reading of the charge: gauges count in per cents."""
FADE_S = 21_600.0
"""How fast what was measured is doubted again, until nothing is believed but the configuration."""
DRAIN_S, DRAIN_FRAC = 300.0, 0.02
"""A battery's power is measured over so long or so much charge, whichever is later, and anew after DRAIN_MAX_S."""
DRAIN_MAX_S = 3600.0
STEP_FRAC, STEP_FRAC_PER_S = 0.1, 12 / 3600
"""A charge that falls faster than a load makes it fall (ours: twelve times what it holds in an hour) was set right."""
FAST_S, SLOW_S = 30.0, 3600.0
"""Averages of what others load this board with: for what must hold now, and for what must hold until the evening."""
STEP_S = 0.01
"""CPU seconds of a gradient step before one was measured (ours; small networks on small cores)."""
OVERHEAD_S = 1e-3
"""CPU seconds of a tick besides the network, before one was measured (ours)."""
REPORT_MIN_S = 0.2
NO_W = 1e-6
"""No board draws less: it would last for ever, and the square of its doubt is no number."""
ASSUMED = "assumed"
FULL_J = (360.0, 3.6e7)
"""Energy that a battery of such a machine can hold: 0.1 Wh to 10 kWh. Others are wrong units."""
CHARGE_S, CHARGE_FRAC_PER_S = 300.0, 1e-4
"""How slowly the charge follows its gauge, and how fast it does at most: a gauge that lies for ten minutes moves it by
0.06, one that was set right by a fifth is followed in about half an hour."""

Source = Literal["model", "gauge", "battery"]


class Supply(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the board's power beforehand.

    Attributes:
        cores: of the processor.
        idle_w: drawn while the CPU idles.
        busy_w: drawn in addition when all cores are busy.
        capacity_j: of a full battery.
        reserve_frac: charge that is not for spending.
        source: who says the watts, for people.
    """

    cores: int = 4
    idle_w: float = 2.0
    busy_w: float = 4.0
    capacity_j: float = 36_000.0
    reserve_frac: float = 0.05
    source: str = ASSUMED


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """Watts at any load: `base_w + busy_w * load_frac`.

    Attributes:
        base_w, busy_w: the model.
        var_base, var_both, var_busy: covariance of the two.
        source: what they rest on.
        at_s: of the last measurement.
        since_s, since_frac, load_s: where the measurement of the battery under way began, and the load since, summed.
        looked_s, looked_frac: the last look, and the charge it saw.
    """

    base_w: float
    busy_w: float
    var_base: float
    var_both: float
    var_busy: float
    source: Source = "model"
    at_s: float | None = None
    since_s: float | None = None
    since_frac: float = 0.0
    load_s: float = 0.0
    looked_s: float | None = None
    looked_frac: float | None = None


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Who uses the processor, in cores and CPU seconds.

    Attributes:
        actor_cores, trainer_cores: lately.
        others_cores, others_slow_cores: everybody else, over a short and a long while.
        ticks_hz: decisions a second.
        overhead_s: CPU seconds of a tick besides the network.
        factor: CPU seconds of the network against its table.
        step_s: of a gradient step.
        missed_frac: share of the ticks that missed their deadline, over ten minutes.
    """

    actor_cores: Mean = Mean()
    trainer_cores: Mean = Mean()
    others_cores: Mean = Mean()
    others_slow_cores: Mean = Mean()
    ticks_hz: Mean = Mean()
    overhead_s: Mean = Mean()
    factor: Mean = Mean()
    step_s: Mean = Mean()
    missed_frac: Mean = Mean()


def supply_of(
    config: Config,
    hardware: BoardFile | None,
    *,
    cores: int,
    full_j: float | None = None,
) -> Supply:
    """What is known of a machine's power before anything was measured, from who knows it best.

    Args:
        config: of the user.
        hardware: the board's file, as it was named or detected; None without.
        cores: of the processor.
        full_j: energy of the full battery, as its own gauge tells it; None where none does.

    Returns:
        Watts of a simulated battery as `[battery]` says, as these are what drains it. Of any other, what `[board]`
        says, else the board's file (`hardware.physics`: the chip at rest and the rest of the board), else that of
        `[battery]`, which without a board is a guess.

    Raises:
        nothing.
    Source:
        ours: measured on this machine beats measured on its kind, and that beats a default.
    """
    board, battery = config.board, config.battery
    idle_w, busy_w, source = battery.idle_w, battery.busy_w, ASSUMED
    if battery.kind == "simulated" and not (board.kind == "fake" and hardware is not None):
        source = "[battery]"
    else:
        if hardware is not None:
            physics = hardware.hardware.physics
            idle_w, busy_w = physics.idle_w + physics.static_w, physics.cores * physics.busy_w_per_core
            source = f"{hardware.name}.toml"
        if board.idle_w is not None or board.busy_w is not None:
            idle_w = idle_w if board.idle_w is None else board.idle_w
            busy_w = busy_w if board.busy_w is None else board.busy_w
            source = "[board]"
    told = battery.kind == "linux" and full_j is not None and FULL_J[0] <= full_j <= FULL_J[1]
    return Supply(
        cores=max(1, cores),
        idle_w=idle_w,
        busy_w=busy_w,
        capacity_j=full_j if told and full_j is not None else battery.capacity_j,
        reserve_frac=config.govern.battery_critical_frac,
        source=source,
    )


def model(supply: Supply) -> Power:
    """What the configuration says.

    Args:
        supply: of this board.

    Returns:
        A model nobody has measured yet.

    Raises:
        nothing.
    Source:
        power is affine in CPU load to within 10 % on small boards (Kaup et al. 2014, PowerPi, section IV).
    """
    return Power(
        base_w=supply.idle_w,
        busy_w=supply.busy_w,
        var_base=(MODEL_STD_FRAC * max(supply.idle_w, 0.1)) ** 2,
        var_both=0.0,
        var_busy=(MODEL_STD_FRAC * max(supply.busy_w, 0.1)) ** 2,
    )


def sourced(power: Power, supply: Supply) -> str:
    """What a figure of power rests on.

    Args:
        power: what is believed.
        supply: of this board.

    Returns:
        For people: `gauge`, `battery`, or whose model it is.

    Raises:
        nothing.
    Source:
        ours.
    """
    if power.source != "model":
        return power.source
    return ASSUMED if supply.source == ASSUMED else f"model of {supply.source}"


def follow_power(
    power: Power,
    supply: Supply,
    *,
    load_frac: float | None,
    gauge: Reading,
    charge_frac: float | None,
    external: bool | None,
    stale_s: float,
    now_s: float,
) -> Power:
    """Take one look at the board into account.

    Args:
        power: what was believed.
        supply: of this board.
        load_frac: CPU busy share over all cores, or None.
        gauge: watts drawn.
        charge_frac: of the battery; None without one, or while it is not known.
        external: something charges it.
        stale_s: age from which a gauge is not believed.
        now_s: monotonic time.

    Returns:
        What is believed now. A battery's charge counts only where no gauge does: it is the slower and the coarser.

    Raises:
        nothing.
    Source:
        recursive least squares with a prior, that is Bayesian linear regression (Bishop 2006, PRML, equations 3.53 and
        3.54), one sample at a time; doubt grows back at a rate of 1 / FADE_S (ours), as boards get new loads.
    """
    elapsed_s = 0.0 if power.looked_s is None else max(0.0, now_s - power.looked_s)
    fell_frac = 0.0 if charge_frac is None or power.looked_frac is None else power.looked_frac - charge_frac
    stepped = fell_frac > STEP_FRAC + STEP_FRAC_PER_S * elapsed_s
    power = msgspec.structs.replace(_fade(power, supply, elapsed_s), looked_s=now_s, looked_frac=charge_frac)
    drawn_w = gauge.value
    if drawn_w is not None and 0 < drawn_w < 1e4 and gauge.age_s <= stale_s and load_frac is not None:
        learned = _learn(power, load_frac, drawn_w, (GAUGE_STD_FRAC * drawn_w + GAUGE_STD_W) ** 2)
        return msgspec.structs.replace(learned, source="gauge", at_s=now_s, since_s=None)
    if charge_frac is None or load_frac is None or external:
        return msgspec.structs.replace(power, since_s=None)
    if power.since_s is None or stepped or charge_frac > power.since_frac + CHARGE_STD_FRAC:
        return msgspec.structs.replace(power, since_s=now_s, since_frac=charge_frac, load_s=0.0)
    power = msgspec.structs.replace(power, load_s=power.load_s + load_frac * elapsed_s)
    span_s, spent_frac = now_s - (power.since_s or 0.0), power.since_frac - charge_frac
    if span_s < DRAIN_S or (spent_frac < DRAIN_FRAC and span_s < DRAIN_MAX_S):
        return power
    drawn_w, noise_w = (spent * supply.capacity_j / span_s for spent in (spent_frac, math.sqrt(2) * CHARGE_STD_FRAC))
    if power.source != "gauge" or power.at_s is None or now_s - power.at_s > DRAIN_MAX_S:
        power = _learn(power, power.load_s / span_s, drawn_w, noise_w**2 + (0.02 * drawn_w) ** 2)
        power = msgspec.structs.replace(power, source="battery", at_s=now_s)
    return msgspec.structs.replace(power, since_s=now_s, since_frac=charge_frac, load_s=0.0)


def follow_charge(
    charge: Mean, read_frac: float | None, drawn_w: float, supply: Supply, now_s: float, *, charging: bool = False
) -> Mean:
    """The charge between the per cents that a gauge counts in.

    Args:
        charge: what was believed; `Mean()` at the start.
        read_frac: what its gauge says; None while it says nothing.
        drawn_w: by the board since the last look; 0 while it is charged.
        supply: with the capacity.
        now_s: monotonic time.
        charging: what flows in is not known, so the gauge is followed wherever it goes.

    Returns:
        What is believed now; nothing where nothing was ever read. While the gauge is silent, what is drawn counts.
        A fuller reading never gives less.

    Raises:
        nothing.
    Source:
        an observer: what was drawn is subtracted, and the rest follows the gauge, as coulomb counters do it; its pull
        is bounded as in Huber 1964, Robust estimation of a location parameter, section 1 (ours).
    """
    if charge.mean is None:
        return mix(charge, read_frac, now_s, CHARGE_S)
    spent_frac = drawn_w * max(0.0, now_s - charge.at_s) / supply.capacity_j
    counted = msgspec.structs.replace(charge, mean=max(0.0, charge.mean - spent_frac))
    if read_frac is None:
        return msgspec.structs.replace(counted, at_s=max(now_s, charge.at_s))
    followed, most_frac = mix(counted, read_frac, now_s, CHARGE_S), CHARGE_FRAC_PER_S * max(0.0, now_s - charge.at_s)
    if charging or counted.mean is None or followed.mean is None:
        return followed
    mean = min(counted.mean + most_frac, max(counted.mean - most_frac, followed.mean))
    return msgspec.structs.replace(followed, mean=mean)


def _fade(power: Power, supply: Supply, elapsed_s: float) -> Power:
    """Doubt again what was measured, at most as much as the configuration is doubted."""
    prior, share = model(supply), min(1.0, elapsed_s / FADE_S)
    return msgspec.structs.replace(
        power,
        var_base=min(prior.var_base, power.var_base + share * prior.var_base),
        var_busy=min(prior.var_busy, power.var_busy + share * prior.var_busy),
        var_both=(1 - share) * power.var_both,
    )


def _learn(power: Power, load_frac: float, drawn_w: float, noise: float) -> Power:
    x = min(1.0, max(0.0, load_frac))
    to_base, to_busy = power.var_base + power.var_both * x, power.var_both + power.var_busy * x
    total = to_base + to_busy * x + noise
    if not (math.isfinite(total) and total > 0):
        return power
    wrong = drawn_w - power.base_w - power.busy_w * x
    return msgspec.structs.replace(
        power,
        base_w=max(0.0, power.base_w + to_base / total * wrong),
        busy_w=max(0.0, power.busy_w + to_busy / total * wrong),
        var_base=max(1e-9, power.var_base - to_base * to_base / total),
        var_both=power.var_both - to_base * to_busy / total,
        var_busy=max(1e-9, power.var_busy - to_busy * to_busy / total),
    )


def watts(power: Power, load_frac: float) -> tuple[float, float]:
    """What the board draws at a load.

    Args:
        power: what is believed.
        load_frac: CPU busy share over all cores.

    Returns:
        Mean and standard deviation, watts.

    Raises:
        nothing.
    Source:
        Bishop 2006, PRML, equation 3.59, of the mean and without the noise of a sample.
    """
    x = min(1.0, max(0.0, load_frac))
    var = power.var_base + 2 * power.var_both * x + power.var_busy * x * x
    return power.base_w + power.busy_w * x, math.sqrt(max(0.0, var))


def follow_use(
    use: Use,
    table: Prices,
    supply: Supply,
    *,
    actor: tuple[ActorReport | None, ActorReport | None],
    actor_elapsed_s: float,
    trainer: tuple[TrainerReport | None, TrainerReport | None],
    trainer_elapsed_s: float,
    load_frac: float | None,
    now_s: float,
) -> Use:
    """Take what the processes reported into account.

    Args:
        use: what was believed.
        table: of the acting network.
        supply: of this board.
        actor: its report before and its newest; the same twice is no news.
        actor_elapsed_s: between these two.
        trainer: the same of the trainer.
        trainer_elapsed_s: between these two.
        load_frac: CPU busy share over all cores, or None.
        now_s: monotonic time.

    Returns:
        What is believed now.

    Raises:
        nothing.
    Source:
        ours: CPU time of a process is known exactly, and what a decision takes more than its network is overhead.
    """
    replace = msgspec.structs.replace
    before, after = actor
    if before is not None and after is not None and before.pid == after.pid and actor_elapsed_s >= REPORT_MIN_S:
        ticks, cpu_s = after.ticks - before.ticks, after.cpu_s - before.cpu_s
        if ticks > 0 and cpu_s >= 0:
            use = replace(
                use,
                ticks_hz=mix(use.ticks_hz, ticks / actor_elapsed_s, now_s, FAST_S),
                actor_cores=mix(use.actor_cores, cpu_s / actor_elapsed_s, now_s, FAST_S),
                missed_frac=mix(use.missed_frac, max(0, after.missed - before.missed) / ticks, now_s, 600.0),
            )
            use = _follow_decisions(use, table, before, after, ticks, cpu_s, now_s)
    old, new = trainer
    if old is not None and new is not None and old.pid == new.pid and trainer_elapsed_s >= REPORT_MIN_S:
        steps, cpu_s = new.steps - old.steps, new.cpu_s - old.cpu_s
        if cpu_s >= 0:
            use = replace(use, trainer_cores=mix(use.trainer_cores, cpu_s / trainer_elapsed_s, now_s, FAST_S))
        if steps > 0 and cpu_s > 0:
            use = replace(use, step_s=mix(use.step_s, cpu_s / steps, now_s, 300.0))
    if load_frac is not None:
        busy = load_frac * supply.cores
        others = max(0.0, busy - (use.actor_cores.mean or 0.0) - (use.trainer_cores.mean or 0.0))
        use = replace(
            use,
            others_cores=mix(use.others_cores, others, now_s, FAST_S),
            others_slow_cores=mix(use.others_slow_cores, others, now_s, SLOW_S),
        )
    return use


def _follow_decisions(
    use: Use, table: Prices, before: ActorReport, after: ActorReport, ticks: int, cpu_s: float, now_s: float
) -> Use:
    n = len(table.exits_s)
    if any(len(each) != n for each in (before.exits, after.exits, before.exits_s, after.exits_s)):
        return use
    counts = [new - old for old, new in zip(before.exits, after.exits, strict=True)]
    listed_s = sum(count * each_s for count, each_s in zip(counts, table.exits_s, strict=True))
    took_s = sum(after.exits_s) - sum(before.exits_s)
    if min(counts) < 0 or not (listed_s > 0 and 0 < took_s < math.inf):
        return use
    network_s = min(cpu_s, took_s)  # one thread: what took longer than its CPU time was waiting for the processor
    return msgspec.structs.replace(
        use,
        overhead_s=mix(use.overhead_s, (cpu_s - network_s) / ticks, now_s, FAST_S),
        factor=mix(use.factor, network_s / listed_s, now_s, FAST_S),
    )


def tick_cpu_s(use: Use, work_s: float, scale: float = 1.0) -> float:
    """CPU time of a tick.

    Args:
        use: what is believed.
        work_s: of the network, by its table.
        scale: of CPU time against the table, as long as no CPU time was measured.

    Returns:
        CPU seconds, network and all the rest.

    Raises:
        nothing.
    Source:
        ours: the overhead is the same at every exit.
    """
    known = scale if use.factor.mean is None else use.factor.mean
    overhead_s = OVERHEAD_S if use.overhead_s.mean is None else use.overhead_s.mean
    return overhead_s + known * work_s


def board_w(
    power: Power,
    use: Use,
    supply: Supply,
    *,
    work_s: float,
    scale: float,
    rate_hz: float,
    train_steps_hz: float,
    long: bool,
) -> tuple[float, float]:
    """What the whole board would draw.

    Args:
        power: what is believed.
        use: who uses the processor.
        supply: of this board.
        work_s: of the network in a tick, by its table.
        scale: as in `tick_cpu_s`.
        rate_hz: decisions a second, where none were counted yet.
        train_steps_hz: gradient steps a second.
        long: others load it as they do over an hour, not as they do now.

    Returns:
        Mean and standard deviation, watts.

    Raises:
        nothing.
    Source:
        ours: `watts` at the sum of what acting, training and everybody else keep busy.
    """
    acting = (use.ticks_hz.mean or rate_hz) * tick_cpu_s(use, work_s, scale)
    training = train_steps_hz * (STEP_S if use.step_s.mean is None else use.step_s.mean)
    others = (use.others_slow_cores if long else use.others_cores).mean or 0.0
    return watts(power, (acting + training + others) / max(1, supply.cores))


def joules(power: Power, supply: Supply, cpu_s: float, std_s: float, now_s: float) -> Figure:
    """What some CPU time costs beyond what the board draws anyway.

    Args:
        power: what is believed.
        supply: of this board.
        cpu_s: CPU time.
        std_s: its standard deviation.
        now_s: monotonic time.

    Returns:
        Joules.

    Raises:
        nothing.
    Source:
        marginal energy: the slope of `watts` over the cores; relative variances of a product add up to first order.
    """
    per_core_w = power.busy_w / max(1, supply.cores)
    mean_j = per_core_w * cpu_s
    relative = power.var_busy / max(power.busy_w, 1e-6) ** 2 + (std_s / cpu_s) ** 2 if cpu_s > 0 else 0.0
    age_s = 0.0 if power.at_s is None else max(0.0, now_s - power.at_s)
    return Figure(mean=mean_j, std=mean_j * math.sqrt(relative), age_s=age_s, source=sourced(power, supply))


def empty_s(power: Power, supply: Supply, charge_frac: float | None, drawn: tuple[float, float]) -> Figure:
    """How long the battery lasts if everything goes on like this.

    Args:
        power: what is believed; its source is named.
        supply: of this board.
        charge_frac: of the battery, or None.
        drawn: mean and standard deviation of the power, watts.

    Returns:
        Seconds until nothing is left; unknown without a charge.

    Raises:
        nothing.
    Source:
        energy over power; relative variances of a quotient add up to first order.
    """
    mean_w, std_w = drawn
    if charge_frac is None or not mean_w > NO_W:
        return Figure(source=sourced(power, supply))
    charge_frac = min(1.0, max(0.0, charge_frac))
    mean_s = charge_frac * supply.capacity_j / mean_w
    relative = (CHARGE_STD_FRAC / max(charge_frac, CHARGE_STD_FRAC)) ** 2 + (std_w / mean_w) ** 2
    return Figure(mean=mean_s, std=mean_s * math.sqrt(relative), source=sourced(power, supply))
