"""What a node offers to others' jobs, what is taken of it, and what it says of both. No numpy: daemons carry it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

NodeId = Annotated[str, Meta(min_length=1, max_length=64)]
Amount = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]

RESOURCES = ("cpu", "memory", "link", "battery", "heat")
"""What a placement can run out of, in the order of `Resources`."""


class Resources(msgspec.Struct, frozen=True, array_like=True):
    """An amount of everything that placed work takes.

    Attributes:
        cores: processor cores kept busy.
        memory_bytes: resident.
        link_bytes_per_s: both ways together, over the node's own link.
        energy_j: until the work is done; above the board's idle draw.
        heat_w: power drawn above idle.
    """

    cores: Amount = 0.0
    memory_bytes: Amount = 0.0
    link_bytes_per_s: Amount = 0.0
    energy_j: Amount = 0.0
    heat_w: Amount = 0.0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What others' jobs may take of a node. The node's own margin is already left out: above this is overload.

    Attributes:
        cores: that placed work may keep busy.
        speed: of one core, relative to the core on which jobs were measured (2 is twice as fast).
        memory_bytes: that placed work may hold.
        link_bytes_per_s: that it may move.
        energy_j: that the battery may spend on it; None on mains.
        heat_w: that it may draw before the board gets hot; None when nobody can say that it would.
        watts_per_core: what one busy core draws above idle; 0 when unknown.
    """

    cores: Amount
    speed: Annotated[float, Meta(gt=0)] = 1.0
    memory_bytes: Amount
    link_bytes_per_s: Amount
    energy_j: Amount | None = None
    heat_w: Amount | None = None
    watts_per_core: Amount = 0.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself, now and then. Whoever holds it knows how old it is.

    Attributes:
        node: who.
        session: of its daemon; a higher one is a later start.
        seq: counts within the session; an older number than one that was seen is dropped.
        at_s: when it was true, by the clock of whoever received it (the sender's clock says nothing to others).
        capacity: see there.
        used: by all that it holds.
        holds: (job, attempt) of all that `used` counts.
        waiting: own jobs that are not placed yet.
        left_s: how long the running parts still take, in the order in which they end, as far as their owners said.
    """

    node: NodeId
    session: Count
    seq: Count
    at_s: float = 0.0
    capacity: Capacity
    used: Resources = Resources()
    holds: tuple[tuple[str, int], ...] = ()
    waiting: Count = 0
    left_s: tuple[Amount, ...] = ()


def total(amounts: list[Resources]) -> Resources:
    """Add up.

    Args:
        amounts: any number.

    Returns:
        Their sum, resource by resource.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return Resources(
        sum(each.cores for each in amounts),
        sum(each.memory_bytes for each in amounts),
        sum(each.link_bytes_per_s for each in amounts),
        sum(each.energy_j for each in amounts),
        sum(each.heat_w for each in amounts),
    )


def limits(capacity: Capacity) -> Resources:
    """A node's capacity as an amount.

    Args:
        capacity: of the node.

    Returns:
        Every limit; what has none is infinite.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return Resources(
        capacity.cores,
        capacity.memory_bytes,
        capacity.link_bytes_per_s,
        float("inf") if capacity.energy_j is None else capacity.energy_j,
        float("inf") if capacity.heat_w is None else capacity.heat_w,
    )


def overloads(capacity: Capacity, used: Resources) -> tuple[str, ...]:
    """What is taken beyond the limit.

    Args:
        capacity: of the node.
        used: of it.

    Returns:
        Names of `RESOURCES`; empty where all is within its limit.

    Raises:
        Nothing.
    Source:
        ours: a tolerance of 1e-9 of the limit, for sums of floats.
    """
    pairs = zip(RESOURCES, _row(used), _row(limits(capacity)), strict=True)
    return tuple(name for name, amount, limit in pairs if amount > limit * (1 + TOLERANCE_FRAC))


TOLERANCE_FRAC = 1e-9
"""How far a sum of floats may lie above a limit and still be within it."""


def _row(amount: Resources) -> tuple[float, float, float, float, float]:
    return amount.cores, amount.memory_bytes, amount.link_bytes_per_s, amount.energy_j, amount.heat_w
