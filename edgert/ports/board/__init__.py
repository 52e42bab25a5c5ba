"""The board this runs on: one look at its sensors, whatever of them there is."""

from __future__ import annotations

from typing import Protocol

from edgert.config import Config
from edgert.ports.board.files import Files
from edgert.ports.board.linux import LinuxBoard
from edgert.ports.board.pace import CAP_S
from edgert.ports.board.proc import Processor
from edgert.values import UNKNOWN, Readings


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
        ConfigError: the scenario of a simulated board is not known, or its file makes no sense.
        StoreError: that file cannot be read.
    """
    board, battery = config.board, config.battery
    if board.kind == "fake":
        from edgert.ports.board.simulated import open_simulated  # a device in the field need not load it

        processor = Processor(Files(board.sysfs_root))
        return open_simulated(config, load=lambda now_s: processor.load(now_s).readings.get("load_frac", UNKNOWN).value)
    linux = LinuxBoard(
        board.sysfs_root,
        thermal_zone=board.thermal_zone,
        has_battery=battery.kind == "linux",
        # Without saying that the machine runs on that battery, a gauge at one is not asked.
        gauges=[gauge for gauge in board.gauges if battery.kind == "gauge" or gauge.measures == "supply"],
        capacity_j=battery.capacity_j,
        metered=board.metered,
        cap_s=min(CAP_S, config.govern.stale_s / 2),
    )
    if battery.kind == "simulated":
        from edgert.ports.board.physics import Model
        from edgert.ports.board.scenario import Scenario
        from edgert.ports.board.simulated import BatteryBoard, fitted

        calm = Scenario(name="calm", charge_frac=battery.initial_frac)
        return BatteryBoard(linux, fitted(battery, Model()), calm)
    return linux
