"""Commands of the fleet, judged before anything on the device hears of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from edgert import tables, wire
from edgert.config import Goals
from edgert.errors import MessageError
from edgert.values import Operating, SetExits


class Bad(msgspec.Struct, frozen=True):
    """A command that makes no sense.

    Attributes:
        id: of the command; None when it could not be read so far that a reply would find its asker.
        why: in words.
    """

    id: str | None
    why: str


class SetGoals(msgspec.Struct, frozen=True):
    """What the fleet wants of the device.

    Attributes:
        id: of the command.
        goals: the configuration's, with what the command names in their place.
        named: what it names.
        left_s: how long this holds from now on; None until further notice.
    """

    id: str
    goals: Goals
    named: tuple[str, ...]
    left_s: float | None


def read_goals(payload: bytes, configured: Goals) -> SetGoals | Bad:
    """Judge a command about the goals.

    Args:
        payload: as received.
        configured: goals of the device.

    Returns:
        The order, or what is wrong with it.

    Raises:
        nothing.
    Source:
        ours: what a configuration file may say, a command may say, and the same types check both.
    """
    try:
        told, _ = wire.decode(payload, wire.GoalsCommand)
    except MessageError as error:
        return Bad(None, str(error))
    if not wire.is_name(told.id):
        return Bad(None, f"id {told.id[:80]!r} is no topic segment")
    if told.valid_s is not None and not (math.isfinite(told.valid_s) and told.valid_s > 0):
        return Bad(told.id, f"valid_s {told.valid_s}: seconds from now, more than 0")
    goals = named_goals(told.goals, configured)
    if isinstance(goals, str):
        return Bad(told.id, goals)
    return SetGoals(told.id, goals, tuple(sorted(told.goals)), told.valid_s)


def named_goals(named: Mapping[str, object], configured: Goals) -> Goals | str:
    """Goals with some of them named anew.

    Args:
        named: name -> value, as somebody afar says.
        configured: gives the others.

    Returns:
        The goals, or what is wrong, in the words in which a configuration file is judged.

    Raises:
        nothing.
    Source:
        ours: one judge of goals, wherever they come from.
    """
    if unknown := sorted(named.keys() - set(Goals.__struct_fields__)):
        return f"goals: no such goal: {', '.join(unknown)[:200]}; there is {', '.join(Goals.__struct_fields__)}"
    faults: list[str] = []
    try:
        values = tables.read("goals", Goals, dict(named), faults)
    except (OverflowError, RecursionError) as error:
        return f"goals: {error}"
    if faults:
        return "; ".join(faults)
    goals = msgspec.structs.replace(configured, **{name: values[name] for name in named})
    if sorted(goals.priorities) != sorted(Goals().priorities):
        return "goals.priorities: all three of return, training, link, in your order"
    return goals


def read_exits(payload: bytes, n_exits: int) -> SetExits | Bad:
    """Judge a command about the exits.

    Args:
        payload: as received.
        n_exits: of the device's network.

    Returns:
        The order for the actor, or what is wrong with it. Whether a frontier has the point is the actor's to know.

    Raises:
        nothing.
    Source:
        ours: a foreign number reaches the actor only after it was found to lie where a network can be run with it.
    """
    try:
        told, _ = wire.decode(payload, wire.ExitsCommand)
    except MessageError as error:
        return Bad(None, str(error))
    if not wire.is_name(told.id):
        return Bad(None, f"id {told.id[:80]!r} is no topic segment")
    operating = None
    faults = []
    if told.thresholds is not None:
        operating = Operating(told.thresholds, told.repeat, told.hold_threshold)
        faults.append(operating.fault(n_exits))
        if told.point is not None:
            faults.append("thresholds and point: only one of them can be obeyed")
    elif told.repeat != 1 or told.hold_threshold != 1:
        faults.append("repeat and hold_threshold: they need thresholds beside them")
    if told.point is not None and told.point < 0:
        faults.append(f"point {told.point}: points are counted from 0")
    if not 0 <= told.max_ops_frac <= 1:
        faults.append(f"max_ops_frac {told.max_ops_frac}: a share lies in 0..1")
    if told.valid_s is not None and not (math.isfinite(told.valid_s) and told.valid_s > 0):
        faults.append(f"valid_s {told.valid_s}: seconds from now, more than 0")
    if why := "; ".join(filter(None, faults)):
        return Bad(told.id, why)
    return SetExits(
        id=told.id, operating=operating, point=told.point, max_ops_frac=told.max_ops_frac, left_s=told.valid_s
    )
