"""Commands of the fleet, judged before anything on the device hears of them."""

from __future__ import annotations

import math

import msgspec

from edgert import wire
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
