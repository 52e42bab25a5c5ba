"""Boards that are not there: for the demo, for a laptop, and for tests. Deterministic: no dice, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from edgert.values import UNKNOWN, Reading, Readings

_SENSORS = ("load_frac", "temp_c", "battery_frac", "power_w")


class _Board(Protocol):
    name: str

    def read(self, now_s: float) -> Readings: ...


class ScriptedBoard:
    """Gives one reading after the other, and the last one for ever.

    Attributes:
        name: "scripted".
    """

    def __init__(self, script: Sequence[Readings]) -> None:
        """An empty script knows nothing.

        Args:
            script: what each call of `read` gives.
        """
        self.name = "scripted"
        self._script = list(script) or [Readings()]

    def read(self, now_s: float) -> Readings:
        """The next line of the script; see `Board.read`."""
        return self._script.pop(0) if len(self._script) > 1 else self._script[0]


class SimulatedBoard:
    """A CPU whose heat follows its load as a first-order thermal RC; mains, until a `BatteryBoard` holds it.

    Attributes:
        name: "simulated".
        dead: names of the readings that are silent for now; what they would measure goes on changing.
    """

    def __init__(
        self,
        *,
        load: Callable[[float], float | None] = lambda now_s: 0.0,
        ambient_c: float = 25.0,
        idle_rise_c: float = 15.0,
        busy_rise_c: float = 35.0,
        warming_s: float = 90.0,
    ) -> None:
        """Begin in balance at idle.

        Args:
            load: time, s -> CPU busy share since its last call, or None when that is not known.
            ambient_c: temperature around the board.
            idle_rise_c: how much warmer than that the idle CPU is in the end.
            busy_rise_c: how much warmer still at full load.
            warming_s: time constant; the defaults are those of a bare passively cooled board in its order of size.
        """
        self.name = "simulated"
        self.dead: set[str] = set()
        self._load = load
        self._idle_c = ambient_c + idle_rise_c
        self._busy_rise_c = busy_rise_c
        self._warming_s = warming_s
        self._temp_c = self._idle_c
        self._at_s: float | None = None

    def read(self, now_s: float) -> Readings:
        """Let the time since the last call pass; see `Board.read`."""
        load_frac = self._load(now_s)
        elapsed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._at_s = now_s
        target_c = self._idle_c + self._busy_rise_c * (load_frac or 0.0)
        self._temp_c += (1.0 - math.exp(-elapsed_s / self._warming_s)) * (target_c - self._temp_c)
        return silence(Readings(load_frac=Reading(load_frac), temp_c=Reading(self._temp_c)), self.dead)


class SimulatedBattery:
    """A charge that is drawn down by the CPU load.

    Attributes:
        charge_frac: what is left, 0..1; assign it to charge the battery.
    """

    def __init__(self, *, capacity_j: float, idle_w: float, busy_w: float, charge_frac: float = 1.0) -> None:
        """Begin with `charge_frac` of `capacity_j`.

        Args:
            capacity_j: energy when full.
            idle_w: drawn at load 0.
            busy_w: drawn in addition at load 1.
            charge_frac: at the start, 0..1.
        """
        self.charge_frac = charge_frac
        self._capacity_j = capacity_j
        self._idle_w = idle_w
        self._busy_w = busy_w

    def drain(self, load_frac: float, elapsed_s: float) -> float:
        """Give power for a while.

        Args:
            load_frac: CPU busy share over that while.
            elapsed_s: how long, not negative.

        Returns:
            The power given, watts; the charge stops at 0.
        """
        power_w = self._idle_w + self._busy_w * load_frac
        self.charge_frac = max(0.0, self.charge_frac - power_w * elapsed_s / self._capacity_j)
        return power_w


class BatteryBoard:
    """Any board, on a simulated battery.

    Attributes:
        name: the board's.
        battery: what it runs on.
        dead: names of the readings that are silent for now.
    """

    def __init__(self, board: _Board, battery: SimulatedBattery) -> None:
        """Put the battery in.

        Args:
            board: gives everything but the battery.
            battery: is drained by that board's load; by none while the load is unknown.
        """
        self.name = board.name
        self.battery = battery
        self.dead: set[str] = set()
        self._board = board
        self._at_s: float | None = None

    def read(self, now_s: float) -> Readings:
        """Let the time since the last call pass; see `Board.read`."""
        readings = self._board.read(now_s)
        elapsed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._at_s = now_s
        power_w = self.battery.drain(readings.load_frac.value or 0.0, elapsed_s)
        charged = msgspec.structs.replace(
            readings,
            battery_frac=Reading(self.battery.charge_frac),
            power_w=Reading(power_w),
            has_battery=True,
        )
        return silence(charged, self.dead)


def silence(readings: Readings, dead: set[str]) -> Readings:
    """The readings with some sensors silent.

    Args:
        readings: of a board.
        dead: field names of `Readings`; others than sensors are ignored.

    Returns:
        The same, those fields unknown.
    """
    return msgspec.structs.replace(readings, **{name: UNKNOWN for name in _SENSORS if name in dead})
