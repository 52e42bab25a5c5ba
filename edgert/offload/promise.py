"""What an answer in time takes: which choices may be tried, when the local model must begin, and what may be sent.

A request has a deadline. Something that runs elsewhere may never come back, so a choice is good only while a model of
the device's own can still answer after it. Free of numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from edgert.offload.admission import Pace
from edgert.offload.space import ROUNDING, Allowed, Floor, Guess, Load, Place, Space, reachable
from edgert.values import Budget

SLACK_S = 0.005
"""For what lies between a run and its answer on the device itself."""
SURE = 2.0
"""Standard deviations of an expectation that must still fit a deadline."""
SPENDING = ("link-metered", "link-capacity", "link-lossy", "goal-bytes")
"""Reasons of `govern.reasons` that spare the link; others spare the board, which is what offloading does too."""
SPARING = ("battery-low", "battery-critical", "battery-unknown", "goal-until", "goal-least-energy", "goal-power")
"""Reasons for which energy counts for more than time."""
STALL, REMEMBERED, _FEW = 3.0, 15, 4
LOAD_LIVES = 3.0
"""A node that was not heard for so many of its own intervals has gone."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What a node said last.

    Attributes:
        place: where it is.
        accepts: it takes questions.
        models: ids of those it runs.
        load: how busy it is; its age is 0 as of `at_s`.
        at_s: when it was heard.
        lives_s: how long that holds.
    """

    place: Place
    accepts: bool
    models: frozenset[str]
    load: Load
    at_s: float
    lives_s: float


def standing(nodes: Mapping[str, Node], place: Place, now_s: float) -> tuple[frozenset[str], Load]:
    """What a place can do now, all its nodes together.

    Args:
        nodes: name -> what it said last.
        place: edge or cloud.
        now_s: monotonic time.

    Returns:
        The models that every accepting node of it runs, as nobody knows which one a question will reach; and the mean
        load, of the age of the oldest word.

    Raises:
        Nothing.
    Source:
        ours: a broker deals the questions of a shared subscription out in turn.
    """
    alive = [node for node in nodes.values() if node.place == place and now_s - node.at_s <= node.lives_s]
    open_ = [node for node in alive if node.accepts]
    if not open_:
        return frozenset(), Load()

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    load = Load(
        cpu_frac=mean([node.load.cpu_frac for node in open_]),
        memory_frac=mean([node.load.memory_frac for node in open_]),
        rtt_s=mean([node.load.rtt_s for node in open_]),
        age_s=max(0.0, max(now_s - node.at_s for node in open_)),
    )
    return frozenset.intersection(*(node.models for node in open_)), load


def homes(space: Space, floor: Floor) -> list[int]:
    """Which choices run on the device and hold the floor?

    Args:
        space: of one user.
        floor: of the request.

    Returns:
        Indices of choices; empty where no local variant is good enough.

    Raises:
        Nothing.
    Source:
        ours.
    """
    wanted = reachable(space, floor) - ROUNDING
    return [
        i
        for i, choice in enumerate(space.choices)
        if choice.place == "device" and space.variants[choice.variant].accuracy_frac >= wanted
    ]


def fallback(space: Space, floor: Floor, paces: Mapping[int, Pace], left_s: float) -> int | None:
    """Which local choice answers when nothing else does?

    Args:
        space: of one user.
        floor: of the request.
        paces: choice -> what a row of it takes here; those that are missing cannot run.
        left_s: until the deadline.

    Returns:
        The most accurate that is likely to be in time; the quickest where none is; None where none holds the floor.

    Raises:
        Nothing.
    Source:
        ours: a floor is held even when a deadline cannot be.
    """
    able = [i for i in homes(space, floor) if i in paces]
    if not able:
        return None
    timely = [i for i in able if paces[i].likely_s + SLACK_S <= left_s]
    if not timely:
        return min(able, key=lambda i: paces[i].likely_s)
    return max(timely, key=lambda i: (space.variants[space.choices[i].variant].accuracy_frac, -paces[i].likely_s))


def cut_over_s(left_s: float, fallback_s: float | None, waits_s: float) -> float:
    """How long may be waited for an answer from elsewhere before the local model must begin?

    Args:
        left_s: until the deadline.
        fallback_s: what the local model is likely to take; None where there is none.
        waits_s: until the device is free to begin.

    Returns:
        Seconds from now, 0 or more. Where the local model cannot be in time in any case, it begins half way: an answer
        that is late is better late than never, and the other may still come.

    Raises:
        Nothing.
    Source:
        hedged requests: J. Dean, L. A. Barroso, "The Tail at Scale", CACM 56 (2013), with the deadline in place of a
        percentile: the second request goes out when it is needed, and not before.
    """
    if fallback_s is None:
        return max(0.0, left_s)
    spare_s = left_s - fallback_s - waits_s - SLACK_S
    return spare_s if spare_s > 0 else max(0.0, left_s / 2)


def timely(
    space: Space,
    allowed: Allowed,
    guesses: Sequence[Guess] | None,
    paces: Mapping[int, Pace],
    *,
    left_s: float,
    waits_s: float,
    fallback_s: float | None,
) -> Allowed:
    """What of the allowed may be tried with this deadline?

    Args:
        space: of one user.
        allowed: of `space.allowed`.
        guesses: what is expected of each choice; None where nothing is known.
        paces: as `fallback`.
        left_s: until the deadline.
        waits_s: until the device is free to begin.
        fallback_s: what the local model is likely to take; None where there is none.

    Returns:
        The mask without what is likely to be late. An answer from elsewhere must be likely to come before the local
        model has to begin; where no local model could be in time anyway, before the deadline. Empty where nothing is
        likely to be in time.

    Raises:
        Nothing.
    Source:
        ours.
    """
    spare_s = cut_over_s(left_s, fallback_s, waits_s)
    hopeless = fallback_s is None or fallback_s + waits_s + SLACK_S > left_s

    def good(i: int) -> bool:
        if space.choices[i].place == "device":
            return i in paces and paces[i].likely_s + waits_s + SLACK_S <= left_s
        if guesses is None:
            return True
        return guesses[i].response_s + SURE * guesses[i].std_s <= (left_s if hopeless else spare_s)

    return (tuple(may and good(i) for i, may in enumerate(allowed[0])),)


def bytes_per_s(budget: Budget | None, wanted_bytes_per_s: float, teacher_bytes_per_s: float) -> float:
    """What may be sent, both ways.

    Args:
        budget: the device's; None before the first.
        wanted_bytes_per_s: of the configuration.
        teacher_bytes_per_s: what teachers would get if nothing were scarce; the budget says what they get.

    Returns:
        The same share of what is wanted as teachers get of theirs, where the link is what is scarce; else all.

    Raises:
        Nothing.
    Source:
        ours: one judgement of the link for everybody who uses it.
    """
    if budget is None or budget.why.get("teacher_bytes_per_s") not in SPENDING:
        return wanted_bytes_per_s
    return wanted_bytes_per_s * min(1.0, max(0.0, budget.teacher_bytes_per_s / teacher_bytes_per_s))


def spares_energy(budget: Budget | None) -> bool:
    """Does energy count for more than time now?

    Args:
        budget: the device's; None before the first.

    Returns:
        Whether one of its limits was set to save energy.

    Raises:
        Nothing.
    Source:
        `govern.reasons`.
    """
    return budget is not None and any(why in SPARING for why in budget.why.values())


def tamed_s(took_s: float, before_s: Sequence[float]) -> float:
    """What a response time says about its choice.

    Args:
        took_s: the response time.
        before_s: the newest of the same choice, at most `REMEMBERED` of them.

    Returns:
        The time, at most `STALL` times the median of those before once there are a few.

    Raises:
        Nothing.
    Source:
        winsorizing: P. J. Huber, "Robust Statistics" (1981), 1.7. Now and then the machine or the air stalls for
        everybody; one stall of ten times a usual response would count like ten bad choices.
    """
    if len(before_s) < _FEW:
        return took_s
    return min(took_s, STALL * median(before_s))


class Purse(msgspec.Struct, frozen=True):
    """What may be sent now.

    Attributes:
        left_bytes: below zero is owed.
        at_s: when that was so.
    """

    left_bytes: float
    at_s: float


def filled(purse: Purse, rate_bytes_per_s: float, burst_bytes: int, now_s: float) -> Purse:
    """A purse, later.

    Args:
        purse: before.
        rate_bytes_per_s: of `bytes_per_s`.
        burst_bytes: most that is saved up.
        now_s: monotonic time.

    Returns:
        The purse now.

    Raises:
        Nothing.
    Source:
        token bucket: RFC 2697 section 3.
    """
    grown = purse.left_bytes + rate_bytes_per_s * max(0.0, now_s - purse.at_s)
    return Purse(min(float(burst_bytes), grown), now_s)
