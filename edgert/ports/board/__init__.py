"""The board this runs on: one look at its sensors, whatever of them there is."""

from __future__ import annotations

from typing import Protocol

from edgert.config import Config
from edgert.ports.board.fake import BatteryBoard, SimulatedBattery, SimulatedBoard
from edgert.ports.board.linux import LinuxBoard
from edgert.values import Readings


class Board(Protocol):
    """Anything that can be looked at.

    Attributes:
        name: what it is, for people.
    """

    name: str

    def read(self, now_s: float) -> Readings:
        """Look at every sensor once.

        Args:
            now_s: monotonic time, seconds; what is averaged or simulated runs from the last call to this one.

        Returns:
            The readings. A sensor that is absent, silent or implausible is unknown. `link_rtt_s` is not the board's.

        Raises:
            nothing, ever: a board without a single working sensor is a board of which nothing is known.
        """


def open_board(config: Config) -> Board:
    """The board the configuration names.

    Args:
        config: its sections `board` and `battery`.

    Returns:
        A Linux board or a simulated one, behind a simulated battery where that is asked for. The simulated board takes
        the real CPU load of this machine, so that what edgert does heats and drains it.

    Raises:
        nothing.
    """
    board, battery = config.board, config.battery
    linux = LinuxBoard(board.sysfs_root, thermal_zone=board.thermal_zone, has_battery=battery.kind == "linux")
    found: Board = linux
    if board.kind == "fake":
        found = SimulatedBoard(load=lambda now_s: linux.read(now_s).load_frac.value)
    if battery.kind == "simulated":
        cell = SimulatedBattery(
            capacity_j=battery.capacity_j,
            charge_frac=battery.initial_frac,
            idle_w=battery.idle_w,
            busy_w=battery.busy_w,
        )
        found = BatteryBoard(found, cell)
    return found
