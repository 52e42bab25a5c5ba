"""What the operator wants, as numbers: how long it must last, and what may be spent of energy and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from edgert.config import Goals
from edgert.govern.energy import CHARGE_STD_FRAC, Supply
from edgert.values import Carried, Clock

SURE = 1.282
"""Standard deviations that a plan keeps away from a limit: one in ten misses it if the next look did not correct it."""
DAY_S = 86_400.0
BACK_DAYS = 1
"""A clock that is set back by more than this was wrong before, not now."""
ROOM = 1.05
"""What was too dear must fit by so much before it counts as mended."""
SOON_S = 60.0
"""A plan for less time than this is one for so long: no power divides what is left by nothing."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One goal and what has become of it.

    Attributes:
        wanted, found: in words and units.
        met: None while nobody can tell.
        why: the named reason; empty when it is met.
    """

    wanted: str
    found: str
    met: bool | None
    why: str = ""


def stated(goals: Goals) -> bool:
    """Does the operator want anything that the whole frontier is needed for?

    Args:
        goals: of the configuration or the fleet.

    Returns:
        True where a return or an energy was stated: then the best that satisfies it is sought among all points.
        Without, the bundle's own setting is the most that is ever spent.

    Raises:
        nothing.
    Source:
        ours: who states nothing gets what the bundle's maker chose.
    """
    return bool(goals.min_return_frac or goals.least_energy or goals.last_until or goals.max_power_w)


def above(drawn_w: float, cap_w: float, before: Mapping[str, Verdict]) -> bool:
    """Is more drawn than may be?

    Args:
        drawn_w: by the whole board.
        cap_w: that may be drawn.
        before: the verdicts before this one.

    Returns:
        Once it was so, it is until there is a little room.

    Raises:
        nothing.
    Source:
        ours: a load that comes and goes is no news each time.
    """
    was = before.get("power")
    return drawn_w * (ROOM if was is not None and was.met is False else 1.0) > cap_w


def left_s(goals: Goals, clock: Clock | None, now_s: float, since_s: float = 0.0) -> float | None:
    """How long the battery is to last from now on.

    Args:
        goals: with or without `last_until`.
        clock: of the wall, or None while it is not known.
        now_s: monotonic time.
        since_s: when the goal was stated, for one in hours; 0 is the start of the machine.

    Returns:
        Seconds to the next such time of the day, or of the hours stated; 0 when these are over. infinity without such a
        goal, None when the time of the day is not known.

    Raises:
        nothing.
    Source:
        ours: after 18:00 the next 18:00 is meant, since nobody promised a charge in between; a charger that is there
        suspends the goal.
    """
    said = goals.last_until
    if said is None:
        return math.inf
    if said.endswith("h"):
        return max(0.0, 3600.0 * float(said.removesuffix("h")) - (now_s - since_s))
    if clock is None or not 0 <= clock.second_s <= DAY_S:
        return None
    hours, _, minutes = said.partition(":")
    ahead_s = 3600.0 * int(hours) + 60.0 * int(minutes) - clock.second_s
    return ahead_s if ahead_s > 0 else ahead_s + DAY_S


def spendable_w(supply: Supply, charge_frac: float | None, last_s: float) -> tuple[float, float]:
    """The power at which a battery lasts as long as it is to.

    Args:
        supply: capacity and reserve.
        charge_frac: left in it; unknown is empty.
        last_s: how long it is to last, as `left_s` gives it.

    Returns:
        Watts, so that the reserve is left: to plan by; and if the gauge were exact.

    Raises:
        nothing.
    Source:
        ours: energy over time, the energy less `SURE` standard deviations of the gauge; planned anew at every look, so
        that whatever was wrong in the prices is made up for while there is time.
    """
    if last_s == math.inf:
        return math.inf, math.inf
    over_s = max(last_s, SOON_S)
    charge_frac = max(0.0, charge_frac or 0.0)
    free_frac = max(0.0, charge_frac - supply.reserve_frac)
    sure_frac = max(0.0, free_frac - SURE * CHARGE_STD_FRAC)
    return sure_frac * supply.capacity_j / over_s, free_frac * supply.capacity_j / over_s


def count(carried: Carried | None, clock: Clock | None, more_bytes: int) -> Carried:
    """Note bytes that crossed the link.

    Args:
        carried: what was noted, perhaps by a supervisor before this one.
        clock: of the wall, or None while it is not known.
        more_bytes: since then.

    Returns:
        The account of this day; a new day begins with nothing. Without a clock the last day goes on, and so it does
        where the clock is set back across midnight: a clock that is stepped to and fro makes no bytes.

    Raises:
        nothing.
    Source:
        ours: a tariff's day is the calendar's.
    """
    day = clock.day if clock is not None else (0 if carried is None else carried.day)
    # A clock that was set only after the start begins no new day for what was counted before.
    if carried is None or not (carried.day == 0 or 0 <= carried.day - day <= BACK_DAYS):
        return Carried(day, max(0, more_bytes))
    return Carried(max(day, carried.day), carried.total_bytes + max(0, more_bytes))


def byte_rate(goals: Goals, carried: Carried | None, clock: Clock | None) -> float:
    """What may be sent and received a second.

    Args:
        goals: with or without `bytes_per_day`.
        carried: today.
        clock: of the wall; None plans as if the day had just begun.

    Returns:
        Bytes a second until midnight; infinity without such a goal.

    Raises:
        nothing.
    Source:
        ours: what is left over what is left of the day, so that a busy morning costs the evening a little and not all.
    """
    if not goals.bytes_per_day:
        return math.inf
    left_bytes = max(0, goals.bytes_per_day - (carried.total_bytes if carried else 0))
    remaining_s = DAY_S if clock is None else min(DAY_S, max(600.0, DAY_S - clock.second_s))
    return left_bytes / remaining_s
