"""Under which conditions a job may start: what must hold of the board and the link, and which of it does not."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is so now; None is unknown, and an unknown fact meets no condition.

    Attributes:
        battery_frac: charge, 0..1; `mains` True means there is no battery that could run down.
        temp_c: hottest zone that matters.
        link_up, metered: of the link; `metered` None is unknown.
        idle: the processor has little to do.
        charging: external power is there; a board without a battery always has it.
        accept_jobs: the governor has room for work that others bring.
        drained: the fleet wants no job begun here.
    """

    battery_frac: float | None = None
    mains: bool = False
    temp_c: float | None = None
    link_up: bool = False
    metered: bool | None = None
    idle: bool | None = None
    charging: bool | None = None
    accept_jobs: bool = True
    drained: bool = False


class When(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must hold before a job starts; at its defaults, nothing must.

    Attributes:
        battery_above_frac: charge, 0..1, to have at least; mains always has it.
        battery_below_frac: charge to have at most: for what only a low battery needs.
        temp_below_c: degrees Celsius.
        link: `up`: there is a broker; `unmetered`: and its bytes are known to be free.
        idle: the processor has little to do.
        charging: external power is there.
    """

    battery_above_frac: Share | None = None
    battery_below_frac: Share | None = None
    temp_below_c: Annotated[float, Meta(ge=-60, le=150)] | None = None
    link: Literal["any", "up", "unmetered"] = "any"
    idle: bool = False
    charging: bool = False


def unmet(when: When, facts: Facts) -> tuple[str, ...]:
    """Which conditions do not hold.

    Args:
        when: what must hold.
        facts: what does.

    Returns:
        Their names with what is so instead; empty when the job may start.

    Raises:
        nothing.
    Source:
        ours: a refusal is a set of named conditions, and what nobody measured holds nothing up silently.
    """
    charge, temp_c = facts.battery_frac, facts.temp_c
    holds = {
        _said("battery_above_frac", when.battery_above_frac, charge): when.battery_above_frac is None
        or facts.mains
        or (charge is not None and charge >= when.battery_above_frac),
        _said("battery_below_frac", when.battery_below_frac, charge): when.battery_below_frac is None
        or (not facts.mains and charge is not None and charge <= when.battery_below_frac),
        _said("temp_below_c", when.temp_below_c, temp_c): when.temp_below_c is None
        or (temp_c is not None and temp_c < when.temp_below_c),
        "link up": when.link == "any" or facts.link_up,
        "link unmetered": when.link != "unmetered" or facts.metered is False,
        "idle": not when.idle or facts.idle is True,
        "charging": not when.charging or facts.mains or facts.charging is True,
    }
    return tuple(name for name, held in holds.items() if not held)


def _said(name: str, wanted: float | None, is_now: float | None) -> str:
    return f"{name} {wanted}, is {'unknown' if is_now is None else round(is_now, 3)}"
