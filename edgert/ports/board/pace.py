"""How often each sensor is looked at, so that all of them together take next to nothing of one core."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from edgert.values import Reading, Throttle

TOTAL_FRAC = 0.0007
"""Share of one core that all probes together may take. Theirs add up to one; what puts them together comes on top."""
_SLOW_FRAC = 0.01
"""Share of the time that a probe may keep its thread waiting for a slow bus."""
_FOLLOW_FRAC = 0.25
_CLIMB_FRAC = 0.1
"""Waiting is believed slowly, and disbelieved at once: a look that was only preempted by others must not slow down the
sensing of just that."""
_NEAR_FRAC = 0.9
"""A look this near to the end of a period is in time: looks come at intervals that jitter."""
CAP_S = 10.0
"""No probe waits longer by itself: what is older than 15 s counts as unknown by default."""


class Seen(msgspec.Struct, frozen=True):
    """What one probe found.

    Attributes:
        readings: name with its unit -> reading; the names of fields of `Readings`, and any others.
        throttle, external_power, metered: as in `Readings`; None when this probe has nothing to say about it.
    """

    readings: dict[str, Reading] = {}
    throttle: Throttle | None = None
    external_power: bool | None = None
    metered: bool | None = None

    def aged(self, age_s: float) -> Seen:
        """The same, seen some time ago."""
        if age_s <= 0:
            return self
        older = {name: Reading(each.value, each.age_s + age_s, each.source) for name, each in self.readings.items()}
        return Seen(older, self.throttle, self.external_power, self.metered)


class Cost(msgspec.Struct, frozen=True):
    """What a probe takes.

    Attributes:
        looks: times it looked.
        cpu_s: CPU time of one look, averaged.
        wall_s: time that one look took, averaged.
        period_s: time between two looks that follows from it.
    """

    looks: int
    cpu_s: float
    wall_s: float
    period_s: float


class Probe:
    """Looks with a function, no more often than that function's cost allows.

    Its period is its CPU time over its share of `TOTAL_FRAC`, and its waiting time over `_SLOW_FRAC` when that is
    longer, between the period it was given and `cap_s`.

    Attributes:
        name: for people.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[float], Seen],
        *,
        share: float,
        period_s: float = 0.0,
        cap_s: float = CAP_S,
        cpu_s: Callable[[], float] = time.thread_time,
        wall_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Look at nothing yet.

        Args:
            name: for people.
            look: monotonic time, s -> what it found; raises nothing.
            share: of `TOTAL_FRAC`, 0..1.
            period_s: shortest time between two looks.
            cap_s: longest.
            cpu_s: the thread's CPU time so far.
            wall_s: any clock that runs evenly.
        """
        self.name = name
        self._look = look
        self._budget_frac = TOTAL_FRAC * share
        self._period_s, self._cap_s = period_s, max(period_s, cap_s)
        self._clocks = cpu_s, wall_s
        self._seen: tuple[Seen, float] | None = None
        self._looks = 0
        self._cpu_s = self._wall_s = 0.0

    @property
    def cost(self) -> Cost:
        """What it takes, as measured so far."""
        needed_s = max(self._cpu_s / self._budget_frac, self._wall_s / _SLOW_FRAC)
        return Cost(self._looks, self._cpu_s, self._wall_s, min(self._cap_s, max(self._period_s, needed_s)))

    def read(self, now_s: float) -> Seen:
        """Look when it is time, or else say again what was seen, older."""
        if self._seen is not None:
            seen, at_s = self._seen
            # A clock that runs backwards says nothing about how long ago it was.
            if 0 <= now_s - at_s < _NEAR_FRAC * self.cost.period_s:
                return seen.aged(now_s - at_s)
        cpu, wall = self._clocks
        cpu_s, wall_s = cpu(), wall()
        seen = self._look(now_s)
        self._seen = seen, now_s
        self._looks += 1
        self._learn(cpu() - cpu_s, wall() - wall_s)
        return seen

    def forget(self) -> None:
        """Look at the next call, whenever that is."""
        self._seen = None

    def _learn(self, cpu_s: float, wall_s: float) -> None:
        # The first look opens the files, and is not like the others.
        if self._looks <= 1:
            return
        follow = 1.0 if self._looks == 2 else _FOLLOW_FRAC
        self._cpu_s += follow * (cpu_s - self._cpu_s)
        climb = follow if self._looks == 2 else _CLIMB_FRAC
        self._wall_s = wall_s if wall_s < self._wall_s else self._wall_s + climb * (wall_s - self._wall_s)
