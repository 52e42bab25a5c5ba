"""Giving a fleet another policy a few devices at a time, and stopping when it does harm.

Pure, and the same for the same plan: which device comes when is a hash of the plan's id and its name. Devices say where
they stand in retained reports, so whoever drives a rollout may die and be replaced: what is written down is the plan,
the devices, and how far it went.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from math import ceil
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
Fate = Literal["waiting", "offered", "kept", "refused", "rolled-back", "silent"]
Phase = Literal["running", "paused", "aborted", "done"]
DECIDED: tuple[Fate, ...] = ("kept", "refused", "rolled-back")
HARM: tuple[Fate, ...] = ("refused", "rolled-back")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to go about it.

    Attributes:
        id: a topic segment; offers and reports carry it.
        canary_frac: share of the devices that go first; at least one does.
        wave_frac: share of the devices in each wave after that; at least one.
        abort_frac: share of the devices with a verdict that may have refused it or gone back; beyond it all stops.
        soak_s: to wait after the last verdict of a wave before the next.
        patience_s: a device that says nothing for so long after its offer is waited for no more.
        quorum_frac: share of a wave's devices whose verdict is needed before the next.
    """

    id: str
    canary_frac: Share = 0.05
    wave_frac: Share = 0.25
    abort_frac: Share = 0.1
    soak_s: Annotated[float, Meta(ge=0)] = 600.0
    patience_s: Annotated[float, Meta(gt=0)] = 86_400.0
    quorum_frac: Share = 0.5


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """Where it stands; can be written down as it is.

    Attributes:
        plan: how to go about it.
        order: devices, in the order of their turn.
        phase: of the whole.
        why: of the phase.
        waves: begun.
        fates: device -> how it stands there.
        offered_s: device -> when it was offered, seconds since the Unix epoch.
        settled_s: when the last verdict of the waves so far came; None while some are open.
    """

    plan: Plan
    order: tuple[str, ...]
    phase: Phase = "running"
    why: str = ""
    waves: int = 0
    fates: dict[str, Fate] = {}
    offered_s: dict[str, float] = {}
    settled_s: float | None = None


class Told(msgspec.Struct, frozen=True):
    """A device reports."""

    device: str
    fate: Fate


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time."""


class Pause(msgspec.Struct, frozen=True):
    """No further device is offered it; those that were go on."""


class Resume(msgspec.Struct, frozen=True):
    """Go on after a pause."""


class Abort(msgspec.Struct, frozen=True):
    """Stop for good, and take back the offers that nobody has decided on."""

    why: str = "the operator said so"


class Offer(msgspec.Struct, frozen=True):
    """Effect: offer it to this device; doing so twice changes nothing."""

    device: str


class Withdraw(msgspec.Struct, frozen=True):
    """Effect: take the offer back."""

    device: str


Event = Told | Tick | Pause | Resume | Abort
Effect = Offer | Withdraw


def begin(plan: Plan, devices: Iterable[str]) -> Rollout:
    """Set out.

    Args:
        plan: how to go about it.
        devices: that are meant.

    Returns:
        The state before the first wave.

    Raises:
        Nothing.
    Source:
        ours: a hash of plan and name is a lot that everybody can draw again, and another one for each rollout, so that
        it is not always the same device that goes first.
    """

    def lot(device: str) -> bytes:
        return hashlib.sha256(f"{plan.id}/{device}".encode()).digest()

    order = tuple(sorted(set(devices), key=lot))
    return Rollout(plan=plan, order=order, fates=dict.fromkeys(order, "waiting"))


def reach(rollout: Rollout, waves: int) -> int:
    """How many devices were offered it after so many waves.

    Args:
        rollout: the state.
        waves: the canaries are the first.

    Returns:
        A count, up to all.

    Raises:
        Nothing.
    Source:
        ours.
    """
    total, plan = len(rollout.order), rollout.plan
    if waves <= 0 or not total:
        return 0
    return min(total, max(1, ceil(plan.canary_frac * total)) + (waves - 1) * max(1, ceil(plan.wave_frac * total)))


def step(rollout: Rollout, event: Event, now_s: float) -> tuple[Rollout, list[Effect]]:
    """Advance by one event.

    Args:
        rollout: the state before.
        event: what happened.
        now_s: seconds since the Unix epoch.

    Returns:
        The state after, and what to do.

    Raises:
        Nothing.
    Source:
        ours, after the thresholds and the emergency stop of hawkBit's rollout groups.
    """
    replace = msgspec.structs.replace
    effects: list[Effect] = []
    if rollout.phase in ("aborted", "done"):
        return rollout, effects
    match event:
        case Told(device, fate) if rollout.fates.get(device, "waiting") not in ("waiting", fate):
            rollout = replace(rollout, fates={**rollout.fates, device: fate})
        case Pause():
            rollout = replace(rollout, phase="paused", why="the operator said so")
        case Resume():
            rollout = replace(rollout, phase="running", why="")
        case Abort(why):
            return _aborted(rollout, why, effects), effects
        case _:
            pass
    rollout = _hushed(rollout, now_s)
    harmed, decided = harm(rollout)
    if harmed > rollout.plan.abort_frac * max(decided, _first(rollout)):
        why = f"{harmed} of {decided} devices with a verdict refused it or went back"
        return _aborted(rollout, why, effects), effects
    return _go_on(rollout, now_s, effects), effects


def harm(rollout: Rollout) -> tuple[int, int]:
    """How many devices it did no good, and of how many that is known.

    Args:
        rollout: the state.

    Returns:
        Those that refused it or went back, and those with a verdict.

    Raises:
        Nothing.
    Source:
        ours.
    """
    counted = Counter(rollout.fates.values())
    return sum(counted[fate] for fate in HARM), sum(counted[fate] for fate in DECIDED)


def _first(rollout: Rollout) -> int:
    """As long as canaries are open, a single bad one is measured against all of them, not against the first few."""
    return reach(rollout, 1)


def _aborted(rollout: Rollout, why: str, effects: list[Effect]) -> Rollout:
    effects += [Withdraw(device) for device in rollout.order if rollout.fates[device] in ("offered", "silent")]
    return msgspec.structs.replace(rollout, phase="aborted", why=why)


def _hushed(rollout: Rollout, now_s: float) -> Rollout:
    """Whom nobody heard for too long is waited for no more; the offer stands, and the device may still speak."""
    late: dict[str, Fate] = {
        device: "silent"
        for device, at_s in rollout.offered_s.items()
        if rollout.fates[device] == "offered" and now_s - at_s >= rollout.plan.patience_s
    }
    return msgspec.structs.replace(rollout, fates={**rollout.fates, **late}) if late else rollout


def _go_on(rollout: Rollout, now_s: float, effects: list[Effect]) -> Rollout:
    """The next wave, once the ones before are settled and have soaked."""
    replace, plan = msgspec.structs.replace, rollout.plan
    reached = reach(rollout, rollout.waves)
    begun = rollout.order[:reached]
    if any(rollout.fates[device] == "offered" for device in begun):
        return replace(rollout, settled_s=None)
    _, decided = harm(rollout)
    if begun and decided < ceil(plan.quorum_frac * len(begun)):
        return replace(rollout, settled_s=None, why="too few devices answer" if not rollout.why else rollout.why)
    if begun and rollout.settled_s is None:
        rollout = replace(rollout, settled_s=now_s)
    if reached >= len(rollout.order):
        return replace(rollout, phase="done", why="every device had its turn")
    soaked = not begun or (rollout.settled_s is not None and now_s - rollout.settled_s >= plan.soak_s)
    if rollout.phase != "running" or not soaked:
        return rollout
    turn = rollout.order[reached : reach(rollout, rollout.waves + 1)]
    effects += [Offer(device) for device in turn]
    fates: dict[str, Fate] = dict.fromkeys(turn, "offered")
    return replace(
        rollout,
        waves=rollout.waves + 1,
        why="",
        fates={**rollout.fates, **fates},
        offered_s={**rollout.offered_s, **dict.fromkeys(turn, now_s)},
        settled_s=None,
    )
