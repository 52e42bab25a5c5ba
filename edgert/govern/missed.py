"""What counted misses say that latencies do not: the deadline limit, corrected by what became of it.

A price list and a slow-down say how late decisions should be. Where the processor is taken away altogether, or single
answers lie further from the mean than a normal distribution has them, more deadlines are missed than that. The actor
counts them. When they are more than the goal allows, training yields first, then the dearest settings go, a share at a
time; what was taken away comes back as slowly as it must, since to try costs late decisions.
"""

from __future__ import annotations

import math

import msgspec

from edgert.values import ActorReport

ALARM = 4.0
"""Misses beyond what is allowed, before something is done: one or two say nothing of a rate of one in a thousand."""
SLACK = 1.5
"""What is allowed counts so much, or a device that misses just as many as it may would be slowed in the end."""
STALL_FRAC = 0.05
"""One report counts at most so many of its ticks, and at most one where they are few: a stall is not a slow board."""
WARM_S = 60.0
"""What is missed while an actor and all that starts beside it warm up says nothing of how it will be."""
KEEP_FRAC = 0.7
"""Work of a tick that is left when something is taken away (ours: three steps reach a third)."""
RELAX_S = 1800.0
"""One step comes back after so long without a step down. To try costs as many misses as raise an alarm, which in half
an hour are a fifth of those that are allowed by default at 20 decisions a second."""


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """What the count of misses has led to.

    Attributes:
        excess: misses beyond what is allowed, as far as they are not made up for yet.
        cap_frac: work that a tick may take, as a share of the full network's.
        yields: training has given way.
        changed_s: when one of the two last changed; None before.
        born_s: when the acting process was first heard of; None before.
    """

    excess: float = 0.0
    cap_frac: float = 1.0
    yields: bool = False
    changed_s: float | None = None
    born_s: float | None = None


def follow(
    missed: Missed,
    before: ActorReport | None,
    after: ActorReport | None,
    *,
    allowed_frac: float,
    used_frac: float,
    trains: bool,
    dwell_s: float,
    now_s: float,
) -> Missed:
    """Take a report of the actor into account.

    Args:
        missed: what was believed.
        before: the report before, or None.
        after: this one; None when there is nothing new.
        allowed_frac: share of the ticks that may be missed.
        used_frac: work of a tick at the setting in force, as a share of the full network's.
        trains: training is on and has to give way before decisions do.
        dwell_s: something is taken away at most once in so long, so that its effect is seen before the next step.
        now_s: monotonic time.

    Returns:
        What is believed now. More misses never leave more.

    Raises:
        nothing: counts that go backwards, or come from another process or network, are no news.
    Source:
        one-sided cumulative sum of Page 1954, Continuous inspection schemes (Biometrika 41), section 2; the order and
        the steps are ours.
    """
    replace = msgspec.structs.replace
    newborn = after is not None and (before is None or before.pid != after.pid)
    if newborn or missed.born_s is None or now_s < missed.born_s:
        missed = replace(missed, born_s=now_s)
    elif now_s - missed.born_s >= WARM_S:
        excess = missed.excess + _beyond(before, after, allowed_frac)
        missed = replace(missed, excess=min(2 * ALARM, max(0.0, excess)))
    since_s = math.inf if missed.changed_s is None else now_s - missed.changed_s
    if since_s < 0:  # a clock that was set back must not make anything last
        return replace(missed, changed_s=now_s)
    if missed.excess >= ALARM:
        if since_s < dwell_s:
            return missed
        if trains and not missed.yields:
            return replace(missed, excess=0.0, yields=True, changed_s=now_s)
        if missed.cap_frac < min(1.0, used_frac):  # there is nothing cheaper
            return missed
        cap_frac = KEEP_FRAC * min(missed.cap_frac, max(0.0, used_frac))
        return replace(missed, excess=0.0, cap_frac=cap_frac, changed_s=now_s)
    if since_s < RELAX_S or missed.excess > 0 or not (missed.yields or missed.cap_frac < 1):
        return missed
    if missed.cap_frac < 1:
        return replace(missed, cap_frac=min(1.0, missed.cap_frac / KEEP_FRAC), changed_s=now_s)
    return replace(missed, yields=False, changed_s=now_s)


def _beyond(before: ActorReport | None, after: ActorReport | None, allowed_frac: float) -> float:
    """Misses between two reports, less those that are allowed."""
    if before is None or after is None or (before.pid, before.network) != (after.pid, after.network):
        return 0.0
    ticks, late = after.ticks - before.ticks, after.missed - before.missed
    if ticks <= 0 or late < 0:
        return 0.0
    return min(late, max(1.0, STALL_FRAC * ticks)) - SLACK * allowed_frac * ticks
