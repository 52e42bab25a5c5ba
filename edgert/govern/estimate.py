"""From raw readings to what is believed: averaged values, and the band each of them is in.

**Unknown.** One silent look changes nothing: the last belief is held until it is older than `stale_s`. Then the value
is unknown, and an unknown value is in the worst band of its scale, *if the sensor ever existed*. A sensor that never
gave one good value since the start is not broken but absent: many boards have no thermal zone and no power gauge, and
such a board must not live in the worst band for ever. The one exception is the battery: where the board says that it
runs on one, a charge that cannot be read is the worst from the first second.
"""

from __future__ import annotations

import math

import msgspec

from edgert.config import Govern
from edgert.values import Reading, Readings

LINK_LEAVE_FRAC = 0.8
"""A slow link counts as good again below this share of `rtt_high_s` (ours: one retransmission more or less)."""
MEMORY_ENTER_FRAC, MEMORY_LEAVE_FRAC = 0.1, 0.03
"""Share of the time that tasks wait for memory: from the first on the machine is about to thrash, and the kernel to
kill (ours; systemd-oomd acts at 0.6 over 30 s, when it is too late for a control loop)."""


ABSURD = 1e15
"""No quantity of a small board is so large in its unit; the square of a sample must stay finite."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its uncertainty, for people.

    Attributes:
        mean, std: of what is believed; None when nothing is.
        age_s: since the newest measurement behind it.
        source: where it comes from.
    """

    mean: float | None = None
    std: float | None = None
    age_s: float = 0.0
    source: str = ""


class Mean(msgspec.Struct, frozen=True):
    """A mean that forgets.

    Attributes:
        mean: None before the first sample.
        var: of single samples.
        n: samples, up to those that still count.
        at_s: of the last one.
    """

    mean: float | None = None
    var: float = 0.0
    n: float = 0.0
    at_s: float = 0.0

    def figure(self, now_s: float, source: str) -> Figure:
        """The mean as an estimate.

        Args:
            now_s: monotonic time.
            source: where the samples come from.

        Returns:
            With the standard error of the mean.

        Raises:
            nothing.
        Source:
            var / n, as if samples were independent.
        """
        if self.mean is None:
            return Figure(source=source)
        std = math.sqrt(self.var / max(1.0, self.n))
        return Figure(mean=self.mean, std=std, age_s=max(0.0, now_s - self.at_s), source=source)


def mix(known: Mean, sample: object, now_s: float, over_s: float) -> Mean:
    """Take in one more sample.

    Args:
        known: the mean so far.
        sample: one more; what is no number, or an absurd one, is passed over.
        now_s: monotonic time.
        over_s: time constant of forgetting.

    Returns:
        The new mean. A larger sample never gives a smaller one.

    Raises:
        nothing.
    Source:
        exponentially weighted mean and variance (Finch 2009, Incremental calculation of weighted mean and variance,
        section 9), begun as the plain mean.
    """
    if not isinstance(sample, int | float) or not abs(sample) <= ABSURD:
        return known
    if known.mean is None:
        return Mean(float(sample), 0.0, 1.0, now_s)
    elapsed_s = max(0.0, now_s - known.at_s)
    gain = max(1.0 / (known.n + 1.0), 1.0 - math.exp(-elapsed_s / over_s))
    off = sample - known.mean
    return Mean(
        known.mean + gain * off, (1.0 - gain) * (known.var + gain * off * off), 1.0 / gain, max(now_s, known.at_s)
    )


class Band(msgspec.Struct, frozen=True):
    """One limit with its hysteresis, in the unit of its scale.

    Attributes:
        reason: the name this limit has wherever it is reported.
        enter: the limit holds from here on.
        leave: once it holds, it does so until the value is kinder than this.
    """

    reason: str
    enter: float
    leave: float


class Scale(msgspec.Struct, frozen=True):
    """All limits of one quantity.

    Attributes:
        unknown: the reason reported when the value is unknown.
        bands: from the mildest to the worst; their `enter` and `leave` are ordered alike.
        falling: small values are the bad ones (a battery's charge).
    """

    unknown: str
    bands: tuple[Band, ...]
    falling: bool = False


class Belief(msgspec.Struct, frozen=True):
    """What is believed of one quantity.

    Attributes:
        value: averaged, or None when unknown.
        sampled_s: when the last good sample was measured.
        level: how many of the scale's bands hold: 0 is no limit, len(bands) the worst.
        existed: at least one good sample was seen since the start.
    """

    value: float | None = None
    sampled_s: float = -math.inf
    level: int = 0
    existed: bool = False


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of the board. `Estimate()` knows nothing yet.

    Attributes:
        at_s: time of the last look, or None before the first.
        load_frac: CPU busy share, 0..1.
        temp_c: degrees Celsius.
        battery_frac: state of charge, 0..1; no limit without a battery.
        power_w: watts drawn; reported, not limited.
        link_rtt_s: round trip to the broker.
        memory_pressure_frac: share of the time that tasks wait for memory.
        has_battery: runs on a battery.
    """

    at_s: float | None = None
    load_frac: Belief = Belief()
    temp_c: Belief = Belief()
    battery_frac: Belief = Belief()
    power_w: Belief = Belief()
    link_rtt_s: Belief = Belief()
    memory_pressure_frac: Belief = Belief()
    has_battery: bool = False


class Scales(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of every quantity that has any; the fields are named as in `Estimate`."""

    load_frac: Scale
    temp_c: Scale
    battery_frac: Scale
    link_rtt_s: Scale
    memory_pressure_frac: Scale


_POWER = Scale("power-unknown", ())


def scales(govern: Govern) -> Scales:
    """Lay out the configured limits as data.

    Args:
        govern: the checked section of the configuration.

    Returns:
        One scale a limited quantity, in that quantity's unit.

    Raises:
        nothing.

    Source:
        ours: hysteresis bands, because on/off control without them oscillated in the field (openpilot issue 1687).
    """
    cool, gain = govern.temp_hysteresis_c, govern.battery_hysteresis_frac
    return Scales(
        load_frac=Scale("cpu-unknown", (Band("cpu-high", govern.cpu_high_frac, govern.cpu_low_frac),)),
        temp_c=Scale(
            "temp-unknown",
            (
                Band("temp-high", govern.temp_high_c, govern.temp_high_c - cool),
                Band("temp-critical", govern.temp_critical_c, govern.temp_critical_c - cool),
            ),
        ),
        battery_frac=Scale(
            "battery-unknown",
            (
                Band("battery-low", govern.battery_low_frac, govern.battery_low_frac + gain),
                Band("battery-critical", govern.battery_critical_frac, govern.battery_critical_frac + gain),
            ),
            falling=True,
        ),
        link_rtt_s=Scale("link-slow", (Band("link-slow", govern.rtt_high_s, LINK_LEAVE_FRAC * govern.rtt_high_s),)),
        memory_pressure_frac=Scale("memory-unknown", (Band("memory-pressure", MEMORY_ENTER_FRAC, MEMORY_LEAVE_FRAC),)),
    )


def update(previous: Estimate, readings: Readings, now_s: float, govern: Govern) -> Estimate:
    """Take one look at the board into account.

    Args:
        previous: the last estimate; `Estimate()` at the start.
        readings: what the board gave. A value that is not finite, or older than `govern.stale_s`, is unknown.
        now_s: monotonic time of this look, seconds; an earlier time than the last one changes no average.
        govern: time constant, age limit and bands.

    Returns:
        The new estimate. Harsher samples never give a milder level.

    Raises:
        nothing.

    Source:
        ours: first-order low-pass v += (1 - exp(-dt / smooth_s)) (x - v), exact for any dt between two looks; a single
        wrong sample of a battery gauge therefore moves no band.
    """
    elapsed_s = 0.0 if previous.at_s is None else max(0.0, now_s - previous.at_s)
    keep_frac = math.exp(-elapsed_s / govern.smooth_s) if govern.smooth_s > 0 else 0.0
    limits = scales(govern)

    def follow(belief: Belief, reading: Reading, scale: Scale) -> Belief:
        return _follow(belief, reading, scale, now_s, keep_frac, govern.stale_s)

    battery = Belief()
    if readings.has_battery:
        known = previous.battery_frac if previous.has_battery else Belief(existed=True)
        battery = follow(known, readings.battery_frac, limits.battery_frac)
    return Estimate(
        at_s=now_s if previous.at_s is None else max(now_s, previous.at_s),
        load_frac=follow(previous.load_frac, readings.load_frac, limits.load_frac),
        temp_c=follow(previous.temp_c, readings.temp_c, limits.temp_c),
        battery_frac=battery,
        power_w=follow(previous.power_w, readings.power_w, _POWER),
        link_rtt_s=follow(previous.link_rtt_s, readings.link_rtt_s, limits.link_rtt_s),
        memory_pressure_frac=follow(
            previous.memory_pressure_frac, readings.memory_pressure_frac, limits.memory_pressure_frac
        ),
        has_battery=readings.has_battery,
    )


def _follow(belief: Belief, reading: Reading, scale: Scale, now_s: float, keep_frac: float, stale_s: float) -> Belief:
    sample = reading.value
    if sample is None or not math.isfinite(sample) or not reading.age_s <= stale_s:
        if not belief.existed or (belief.value is not None and now_s - belief.sampled_s <= stale_s):
            return belief
        return Belief(None, belief.sampled_s, len(scale.bands), True)
    value = sample if belief.value is None else keep_frac * belief.value + (1.0 - keep_frac) * sample
    return Belief(value, now_s - max(0.0, reading.age_s), _level(value, belief.level, scale), True)


def _level(value: float, level: int, scale: Scale) -> int:
    """The number of bands that hold, given how many held before."""
    sign = -1.0 if scale.falling else 1.0
    held = 0
    for number, band in enumerate(scale.bands, start=1):
        entered = sign * value >= sign * band.enter
        if entered or (level >= number and sign * value > sign * band.leave):
            held = number
    return held
