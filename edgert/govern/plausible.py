"""Which readings are believed at all, before anything is estimated from them.

Three things are asked of a sample. Is it possible (a charge of 300 %, a pack of 0 V or of 12,000 V are not)? Is it new
(a sample that is told twice is one sample)? And can what it measures have come so far from what was believed, in the
time since the sample before (a charge cannot fall by half in a second)? One that fails the last is not believed alone:
it takes `VOTES` of the last `WINDOW` new samples to agree with it. Until then the last believed value is told again,
growing old, so that a sensor which goes on lying ends as unknown and not as believed. So a lie, or two, move nothing,
and a real change arrives a few looks later.
"""

from __future__ import annotations

import math

import msgspec

from edgert.values import Reading, Readings

VOTES = 3
WINDOW = 5
_PACK_V = (2.0, 100.0)
"""Volts that a pack of lithium cells can have, one cell to 24 of them: 0 V is a lost bus, 3,700 V were millivolts."""
_SAME_S = 1e-3
"""Two samples measured less than this apart are one."""


class Rule(msgspec.Struct, frozen=True):
    """What a quantity can be, and how fast it can change, in its unit.

    Attributes:
        low, high: possible values, both ends included.
        rate_per_s: how fast it can change; infinite where it may jump.
        slack: how far apart two samples may be at any time: resolution, noise, and what jumps for good reasons.
        mild: lowest and highest value that is believed of the first sample alone. One that calls for measures at once
            is voted on like a jump.
    """

    low: float
    high: float
    rate_per_s: float = math.inf
    slack: float = 0.0
    mild: tuple[float, float] = (-math.inf, math.inf)


_SHARE = Rule(0.0, 1.0)
_COUNT = Rule(0.0, 1e15)
RULES = {
    "load_frac": _SHARE,
    # A die warms by its own watts through its own mass: 10 degC at once under a step of load, then some a second.
    "temp_c": Rule(-40.0, 150.0, rate_per_s=8.0, slack=12.0, mild=(-40.0, 95.0)),
    # Twelve times its capacity in an hour is more than any pack of a small board gives. The slack is what a voltage
    # under changing load is wrong by.
    "battery_frac": Rule(0.0, 1.0, rate_per_s=12 / 3600, slack=0.1, mild=(0.1, 1.0)),
    # No board runs on a tenth of a watt: less is watts told in thousands.
    "power_w": Rule(0.1, 1000.0, rate_per_s=20.0, slack=20.0),
    "link_rtt_s": Rule(0.0, 3600.0),
    "trip_c": Rule(20.0, 150.0),
    "freq_frac": _SHARE,
    "memory_available_bytes": _COUNT,
    "cpu_pressure_frac": _SHARE,
    "memory_pressure_frac": _SHARE,
    "link_loss_frac": _SHARE,
    "link_bytes_per_s": _COUNT,
    "rssi_dbm": Rule(-120.0, 0.0),
}
"""Ours, where no reason stands beside it: bounds of the definition. Field of `Readings` -> what it can be."""


class Track(msgspec.Struct, frozen=True):
    """What is remembered of one quantity.

    Attributes:
        believed: last value that was believed; None before the first.
        believed_s: when that was measured.
        sampled_s: when the newest sample was measured, possible or not.
        recent: the last `WINDOW` new and possible samples, believed or not.
        refused: samples that were not believed, since the start.
    """

    believed: float | None = None
    believed_s: float = -math.inf
    sampled_s: float = -math.inf
    recent: tuple[float, ...] = ()
    refused: int = 0


class Fed(msgspec.Struct, frozen=True):
    """What is remembered of the charger.

    Attributes:
        believed: whether it is there; None when not known.
        sampled_s: when the newest sample was measured.
        recent: what the last `WINDOW` new samples said.
    """

    believed: bool | None = None
    sampled_s: float = -math.inf
    recent: tuple[bool, ...] = ()


class State(msgspec.Struct, frozen=True):
    """All that is remembered. `State()` has seen nothing.

    Attributes:
        tracks: field of `Readings` -> its track.
        fed: of the charger.
    """

    tracks: dict[str, Track] = {}
    fed: Fed = Fed()

    @property
    def refused(self) -> dict[str, int]:
        """Field of `Readings` -> samples of it that were not believed, since the start; only where there were any."""
        return {name: track.refused for name, track in self.tracks.items() if track.refused}


def judge(state: State, readings: Readings, now_s: float) -> tuple[State, Readings]:
    """Put what is believed in the place of what was read.

    Args:
        state: of the last call; `State()` at the start.
        readings: as the board gave them.
        now_s: monotonic time of this look, seconds.

    Returns:
        The new state, and the readings: a quantity of which nothing new was believed is the last believed one, with
        the age it has; unknown before the first. Whether the supply is there changes after `VOTES` of `WINDOW` samples
        that say so; it is measured with the charge. What has no rule is passed on as it is. A second call with the
        same readings changes nothing.

    Raises:
        nothing: values that are not finite are unknown.

    Source:
        ours: bounds, rates and an N-of-M vote, because UPS boards were halted by single readings of 0.0 V, by
        millivolts taken for volts, and by a wrong cell count (geeekpi/upsplus pull request 14 and issue 3,
        odya/hass-ina219-ups-hat issue 7), and "on battery" by the sign of a noisy current (scttnlsn/ina219 issue 6).
    """
    tracks = dict(state.tracks)
    told: dict[str, Reading] = {}
    for name, rule in RULES.items():
        reading: Reading = getattr(readings, name)
        if name == "battery_frac" and not _pack_possible(readings):
            reading = Reading(math.nan, reading.age_s, reading.source)
        track = state.tracks.get(name)
        if track is None and reading.value is None:
            continue
        tracks[name], told[name] = _follow(track or Track(), reading, rule, now_s)
    fed = _supply(state.fed, readings.external_power, now_s - readings.battery_frac.age_s)
    return State(tracks, fed), msgspec.structs.replace(readings, **told, external_power=fed.believed)


def _follow(track: Track, reading: Reading, rule: Rule, now_s: float) -> tuple[Track, Reading]:
    value, age_s = reading.value, reading.age_s
    if value is None:
        # Silence is no lie: what follows decides for how long it is borne.
        return track, reading
    at_s = now_s - age_s
    if not (math.isfinite(at_s) and age_s >= 0) or at_s <= track.sampled_s + _SAME_S:
        return track, _held(track, reading, now_s)
    since_s = at_s - track.sampled_s
    track = msgspec.structs.replace(track, sampled_s=at_s)
    if not rule.low <= value <= rule.high:
        return _count(track), _held(track, reading, now_s)
    recent = (*track.recent, value)[-WINDOW:]
    if _believed(track, recent, rule, since_s):
        return Track(value, at_s, at_s, recent, track.refused), reading
    track = _count(msgspec.structs.replace(track, recent=recent))
    return track, _held(track, reading, now_s)


def _believed(track: Track, recent: tuple[float, ...], rule: Rule, since_s: float) -> bool:
    """The newest of `recent` follows from what was believed, or enough of them say the same."""
    value = recent[-1]
    if track.believed is None:
        if rule.mild[0] <= value <= rule.mild[1]:
            return True
    elif _near(value, track.believed, since_s, rule):
        return True
    return sum(_near(value, other, since_s, rule) for other in recent) >= VOTES


def _near(value: float, other: float, since_s: float, rule: Rule) -> bool:
    """Only the time since the last sample counts: what is refused must not become likely by waiting."""
    # An infinite rate times no time at all would be no number.
    return math.isinf(rule.rate_per_s) or abs(value - other) <= rule.slack + rule.rate_per_s * since_s


def _count(track: Track) -> Track:
    return msgspec.structs.replace(track, refused=track.refused + 1)


def _held(track: Track, reading: Reading, now_s: float) -> Reading:
    if track.believed is None:
        return Reading(None, 0.0, reading.source)
    return Reading(track.believed, max(0.0, now_s - track.believed_s), reading.source)


def _pack_possible(readings: Readings) -> bool:
    """A gauge that tells a voltage no pack has tells no charge either."""
    voltage = readings.detail.get("battery_v")
    return voltage is None or voltage.value is None or _PACK_V[0] <= voltage.value <= _PACK_V[1]


def _supply(fed: Fed, said: bool | None, at_s: float) -> Fed:
    if said is None:
        return fed if fed.recent else Fed()
    if not at_s > fed.sampled_s + _SAME_S:
        return fed
    recent = (*fed.recent, said)[-WINDOW:]
    agreed = sum(each == said for each in recent) >= VOTES
    return Fed(said if agreed or fed.believed is None else fed.believed, at_s, recent)
