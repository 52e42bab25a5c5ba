"""What a device does by itself at its time: cron expressions and intervals that survive clocks nobody can trust.

A cron schedule remembers the stretches of time it has settled, and an occurrence that lies in one is never looked at
again: however the clock is set, nothing fires twice. An interval goes by a clock that nobody sets, and by a number.
Each firing becomes a job whose id is made of the schedule and the occurrence, and the schedule's mark is written in the
same stroke as the job.

A window is an occurrence that stays open: the job may wait for its conditions until `open_s` is over. What was not
fired while it was open is missed, and `misfire` says what then.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import datetime, timezone, tzinfo
from typing import Annotated, Literal
from zoneinfo import ZoneInfo  # a table that comes with the system, like the calendar itself: not counted as I/O

import msgspec
from cronsim import CronSim, CronSimError
from msgspec import Meta

from edgert.fleet import ledger
from edgert.fleet.when import When

SETTLED_MAX = 8
SCHEDULES_MAX = 64
DAY_S = 86_400.0
SYNC_S = 1.0
"""A clock set back by less than this was only slewed."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to do what; exactly one of `cron` and `every_s`.

    Attributes:
        kind, args, when, timeout_s: of the jobs.
        cron: minute, hour, day of the month, month and day of the week, as in crontab(5).
        tz: in which zone that is meant, as the IANA database names it. An hour that a day does not have is made up for
            right after it, one that it has twice counts once, as in Debian's cron; `*` and `*/n` go by real time.
        every_s: seconds between two jobs, by a clock that nobody sets.
        open_s: so long after its time a job may still start.
        jitter_s: each device is late by its own share of this, the same every time.
        misfire: what becomes of occurrences that passed unseen: none, the newest, or the newest `run_max` of them.
        not_before_s, not_after_s: seconds since the Unix epoch between which the schedule holds.
    """

    kind: Annotated[str, Meta(max_length=64)]
    args: dict[str, object] = {}
    cron: Annotated[str, Meta(min_length=9, max_length=200)] | None = None
    tz: Annotated[str, Meta(max_length=64)] = "UTC"
    every_s: Annotated[float, Meta(ge=10, le=366 * 86_400)] | None = None
    open_s: Annotated[float, Meta(ge=1, le=366 * 86_400)] = 300.0
    jitter_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    misfire: Literal["skip", "run_once", "run_all"] = "skip"
    run_max: Annotated[int, Meta(ge=1, le=24)] = 3
    when: When = When()
    timeout_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] | None = None
    not_before_s: float | None = None
    not_after_s: float | None = None


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule has done, as it is written down.

    Attributes:
        settled: stretches of time, from and to (both of them included, Unix epoch, without jitter), oldest first: what
            lies in them was decided on.
        at_s: where the last look at the clock was.
        runs: of an interval, so far.
        ran_s, boot: monotonic, and of which start of the machine: the last run of an interval.
        ran_wall_s: the same by the wall; None while that clock could not be trusted.
    """

    settled: tuple[tuple[float, float], ...] = ()
    at_s: float | None = None
    runs: int = 0
    ran_s: float | None = None
    boot: str = ""
    ran_wall_s: float | None = None


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Now, by every clock there is.

    Attributes:
        now_s: monotonic.
        wall_s: Unix epoch; None while it cannot be trusted (`trusted`).
        boot: names this start of the machine, in which `now_s` counts.
    """

    now_s: float
    wall_s: float | None = None
    boot: str = ""


class Due(msgspec.Struct, frozen=True):
    """A job to start, and what to remember of it."""

    order: ledger.Order
    mark: Mark


def trusted(wall_s: float, *, built_s: float, seen_s: float, synced: bool | None, rtc: bool) -> float | None:
    """The time of the wall, unless it cannot be right.

    Args:
        wall_s: as the system says, Unix epoch.
        built_s: when the software was: it is later.
        seen_s: the latest time that was written down.
        synced: whether a time service vouches for the clock; None where nobody knows. Such a clock may be earlier than
            what was once written down, from a clock that was wrong; any other may not.
        rtc: the board has a clock that goes on while it is off. Without one, and without a time service, it is where
            it was switched off, or in 1970.

    Returns:
        `wall_s`, or None.

    Raises:
        nothing.
    Source:
        ours, after erlinit's floor for boards without a clock of their own, which start in 1970 or where they were
        switched off.
    """
    known = synced or (wall_s >= seen_s and (rtc or synced is None))
    return wall_s if known and wall_s >= built_s else None


def jitter(schedule: Schedule, name: str, device: str) -> float:
    """How late this device is, in seconds.

    Args:
        schedule: with the most it may be.
        name: of the schedule.
        device: id of the device.

    Returns:
        In [0, jitter_s), the same every time.

    Raises:
        nothing.
    Source:
        ours: drawn from the names, so that a fleet spreads and no restart draws again.
    """
    digest = hashlib.sha256(f"{device}/{name}".encode()).digest()
    return schedule.jitter_s * int.from_bytes(digest[:6], "big") / 2**48


def fault(name: str, schedule: Schedule) -> str:
    """What keeps a schedule from ever being of use, in words.

    Args:
        name: of the schedule; it becomes part of its jobs' ids.
        schedule: as told.

    Returns:
        Empty when nothing does.

    Raises:
        nothing.
    Source:
        ours: a schedule is judged when it is set, not in the night when it is due.
    """
    if len(name) > 40:
        return "a name of more than 40 letters"
    if (schedule.cron is None) == (schedule.every_s is None):
        return "exactly one of cron and every_s"
    if why := ledger.refusal(ledger.Order(id=name, kind=schedule.kind, args=schedule.args)):
        return why
    zone = _zone(schedule.tz)
    if zone is None:
        return f"tz {schedule.tz!r}: no such time zone on this device"
    if schedule.cron is not None:
        if len(schedule.cron.split()) != 5:
            return f"cron {schedule.cron!r}: five fields, as in crontab(5)"
        try:
            next(CronSim(schedule.cron, datetime(2026, 1, 1, tzinfo=zone)))
        except (CronSimError, StopIteration, ValueError, OverflowError) as error:
            return f"cron {schedule.cron!r}: {error or 'never'}"
    bounds_s = (schedule.not_before_s, schedule.not_after_s)
    if not all(each is None or math.isfinite(each) for each in bounds_s):
        return "not_before_s and not_after_s: seconds since 1970"
    return ""


def look(name: str, schedule: Schedule, mark: Mark | None, moment: Moment, device: str) -> tuple[Mark, Due | None]:
    """See whether a job is due; one at a time, so look again after each.

    Args:
        name: of the schedule.
        schedule: without fault.
        mark: of the last look, None before the first: what was before is not made up for.
        moment: now.
        device: id of the device.

    Returns:
        The mark of this look, and a job with the mark that is to be written together with it. While a job is due,
        the mark that comes alone must not be kept.

    Raises:
        nothing.
    Source:
        ours: misfire policies after APScheduler's and Quartz's; the settled stretches are why no step of the clock
        fires an occurrence twice.
    """
    if schedule.every_s is not None:
        return _interval(name, schedule, mark, moment, device)
    wall_s = moment.wall_s
    if wall_s is None or _outside(schedule, wall_s):
        return (mark or Mark()), None
    late_s = jitter(schedule, name, device)
    at_s = wall_s - late_s
    if mark is None or mark.at_s is None:
        return Mark(settled=((at_s, at_s),), at_s=at_s), None
    settled, since_s = mark.settled, mark.at_s
    if at_s < since_s:
        # Slewed by a little, the stretch in between is settled; set back, it may come again, all but what was fired.
        return (mark if since_s - at_s <= SYNC_S else _replace(mark, at_s=at_s)), None
    missed = _newest(schedule, settled, max(since_s, (schedule.not_before_s or since_s) - 1.0), at_s)
    chosen = missed[-1:] if missed and at_s - missed[-1] <= schedule.open_s else []
    if not chosen and schedule.misfire == "run_once":
        chosen = missed[-1:]
    if schedule.misfire == "run_all":
        chosen = missed[-schedule.run_max :]
    if not chosen:
        settled = settled if missed else _settle(settled, since_s, at_s)
        return Mark(settled=settled, at_s=at_s), None
    time_s = chosen[0]
    settled = _settle(settled, since_s if chosen == missed else time_s, time_s)
    left_s = schedule.open_s - (at_s - time_s)
    order = _order(name, schedule, int(time_s), time_s, left_s if left_s > 0 else schedule.open_s)
    return mark, Due(order, Mark(settled=settled, at_s=time_s))


def _outside(schedule: Schedule, wall_s: float) -> bool:
    before, after = schedule.not_before_s, schedule.not_after_s
    return (before is not None and wall_s < before) or (after is not None and wall_s > after)


def next_s(name: str, schedule: Schedule, mark: Mark | None, moment: Moment, device: str) -> float | None:
    """When the next job is due, for people.

    Args:
        name: of the schedule.
        schedule: without fault.
        mark: of the last look.
        moment: now.
        device: id of the device.

    Returns:
        Seconds from now; None while nobody can know, or never.

    Raises:
        nothing.
    Source:
        ours: an operator asks this first.
    """
    if schedule.every_s is not None:
        ran = mark is not None and mark.ran_s is not None and mark.boot == moment.boot
        return max(0.0, schedule.every_s - (moment.now_s - (mark.ran_s or 0.0))) if ran and mark is not None else None
    if moment.wall_s is None:
        return None
    late_s = jitter(schedule, name, device)
    start_s = max(moment.wall_s - late_s, schedule.not_before_s or 0.0)
    try:
        time_s = next(CronSim(str(schedule.cron), _local(schedule, start_s))).timestamp()
    except (StopIteration, OverflowError, ValueError):
        return None
    over = schedule.not_after_s is not None and time_s + late_s > schedule.not_after_s
    return None if over else time_s + late_s - moment.wall_s


def _interval(name: str, schedule: Schedule, mark: Mark | None, moment: Moment, device: str) -> tuple[Mark, Due | None]:
    every_s = schedule.every_s or 0.0
    wall_s = moment.wall_s
    if mark is None:  # the first is due at once, but for the jitter
        mark = Mark(ran_s=moment.now_s - every_s + jitter(schedule, name, device), boot=moment.boot, ran_wall_s=None)
    elsewhere = mark.boot != moment.boot or mark.ran_s is None or mark.ran_s > moment.now_s
    if elsewhere:
        # Of the time between two starts of the machine only the wall's clock can tell; without it, none has passed.
        if wall_s is not None and mark.ran_wall_s is not None:
            passed_s = min(every_s, max(0.0, wall_s - mark.ran_wall_s))
            mark = _replace(mark, ran_s=moment.now_s - passed_s, boot=moment.boot, ran_wall_s=None)
        else:
            mark = _replace(mark, ran_s=moment.now_s, boot=moment.boot)
    if (schedule.not_before_s, schedule.not_after_s) != (None, None) and (wall_s is None or _outside(schedule, wall_s)):
        return mark, None
    if moment.now_s - (mark.ran_s or 0.0) < every_s:
        return mark, None
    runs = mark.runs + 1
    order = _order(name, schedule, runs, wall_s or 0.0, schedule.open_s)
    return mark, Due(order, _replace(mark, runs=runs, ran_s=moment.now_s, boot=moment.boot, ran_wall_s=wall_s))


def _order(name: str, schedule: Schedule, number: int, issued_s: float, valid_s: float) -> ledger.Order:
    return ledger.Order(
        id=f"{name}.{number}",
        kind=schedule.kind,
        args=schedule.args,
        issued_s=issued_s,
        valid_s=valid_s,
        timeout_s=schedule.timeout_s,
        when=schedule.when,
        origin=name,
    )


def _newest(schedule: Schedule, settled: tuple[tuple[float, float], ...], since_s: float, at_s: float) -> list[float]:
    """The newest occurrences in (since_s, at_s] that are not settled, oldest first; one more than is made up for."""
    found: list[float] = []
    from_s = at_s
    while True:
        for time_s in _backwards(schedule, from_s):
            if time_s <= since_s or len(found) > schedule.run_max:
                return found[::-1]
            begun_s = next((first for first, last in settled if first <= time_s <= last), None)
            if begun_s is not None:
                from_s = math.ceil(begun_s) - 1.0  # over the whole stretch at once: it may be years
                break
            found.append(time_s)
        else:
            return found[::-1]


def _backwards(schedule: Schedule, at_s: float) -> Iterator[float]:
    """Occurrences at or before `at_s`, newest first."""
    try:
        # The search begins a second before its argument.
        for time in CronSim(str(schedule.cron), _local(schedule, math.floor(at_s) + 1.0), reverse=True):
            yield time.timestamp()
    except (OverflowError, ValueError, OSError):
        return


def _local(schedule: Schedule, time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, _zone(schedule.tz) or timezone.utc)


def _zone(name: str) -> tzinfo | None:
    if name == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return None


def _settle(settled: tuple[tuple[float, float], ...], first_s: float, last_s: float) -> tuple[tuple[float, float], ...]:
    """One stretch more; beyond SETTLED_MAX the two nearest become one, and what lay between them is given up."""
    stretches: list[tuple[float, float]] = []
    for first, last in sorted([*settled, (first_s, last_s)]):
        if stretches and first <= stretches[-1][1]:
            stretches[-1] = stretches[-1][0], max(stretches[-1][1], last)
        else:
            stretches.append((first, last))
    while len(stretches) > SETTLED_MAX:
        at = min(range(len(stretches) - 1), key=lambda i: stretches[i + 1][0] - stretches[i][1])
        stretches[at : at + 2] = [(stretches[at][0], stretches[at + 1][1])]
    return tuple(stretches)


_replace = msgspec.structs.replace
