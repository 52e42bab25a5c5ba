"""What boards of NVIDIA Jetson tell: the power rails behind an INA3221, and the power mode.

The rails are told by one of two drivers. The kernel's own (JetPack 5 and later, and mainline) is a hwmon chip: mV and
mA. NVIDIA's former one (JetPack 4) is an iio device, and also gives mW.

Sources: Documentation/hwmon/ina3221.rst; NVIDIA Jetson Linux Developer Guide, "Power Monitoring" and "nvpmodel"
(names of the rails, the files of both drivers); nvpmodel itself, for what it writes to its status file.
"""

from __future__ import annotations

import re
import shutil

import msgspec

from edgert.ports.board.files import Files, Program
from edgert.ports.board.pace import Seen
from edgert.values import Reading

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""Rails that feed the whole module: their power is the board's."""
_IIO = "sys/bus/i2c/drivers/ina3221x"
_STATUS = "var/lib/nvpmodel/status"
_MODES = "etc/nvpmodel.conf"
_PROGRAM = ("nvpmodel", "-q")
_PROGRAM_PERIOD_S = 600.0
_POWER_MAX_W = 1000.0


class Rail(msgspec.Struct, frozen=True):
    """One measured line.

    Attributes:
        name: as the device tree labels it.
        power: file of its power in milliwatt; empty when there is none.
        voltage, current: files of both, in millivolt and milliampere.
    """

    name: str
    power: str
    voltage: str
    current: str


class Jetson:
    """Reads the rails, on any board that has such a chip, and the power mode.

    Attributes:
        rails: as of the last `scan`.

    Blocks:
        A few milliseconds a rail: each file makes the driver talk to the chip.

    Thread:
        One at a time.
    """

    def __init__(self, files: Files) -> None:
        """Read nothing yet.

        Args:
            files: of the machine.
        """
        self.rails: tuple[Rail, ...] = ()
        self._files = files
        self._modes: dict[int, str] = {}
        self._is_jetson = False
        self._program: Program | None = None
        self._mode: int | None = None

    @property
    def cpu_s(self) -> float:
        """CPU time of programs that were asked."""
        return 0.0 if self._program is None else self._program.cpu_s

    def scan(self) -> None:
        """Find the rails and the names of the power modes."""
        files = self._files
        rails = []
        for chip in files.names("sys/class/hwmon", "hwmon"):
            if files.once(f"{chip}/name") != "ina3221":
                continue
            for channel in (1, 2, 3):  # 4 and 7 are sums that the chip makes itself
                name = files.once(f"{chip}/in{channel}_label")
                if name and files.once(f"{chip}/in{channel}_enable") != "0":
                    rails.append(Rail(name, "", f"{chip}/in{channel}_input", f"{chip}/curr{channel}_input"))
        for chip in files.names(_IIO):
            for device in files.names(chip, "iio:device"):
                for channel in (0, 1, 2):
                    name = files.once(f"{device}/rail_name_{channel}")
                    stem = f"{device}/in_"
                    if name:
                        paths = (f"{stem}{kind}{channel}_input" for kind in ("power", "voltage", "current"))
                        rails.append(Rail(name, *paths))
        self.rails = tuple(rail for rail in rails if rail.name != "NC")
        self._is_jetson = "nvidia,tegra" in (files.once("proc/device-tree/compatible") or "")
        if self._is_jetson:
            self._modes = modes(files.once(_MODES) or "")
            if files.real and self._program is None and files.once(_STATUS) is None and shutil.which(_PROGRAM[0]):
                self._program = Program(_PROGRAM, period_s=_PROGRAM_PERIOD_S)

    def read(self, now_s: float) -> Seen:
        """Power of each rail and of the board."""
        told: dict[str, Reading] = {}
        for rail in self.rails:
            power_w = self._power_w(rail)
            if power_w is None:
                continue
            found = Reading(power_w, 0.0, f"INA3221, {rail.name}")
            told[f"rail_{rail.name.lower()}_w"] = found
            if rail.name in TOTAL_RAILS:
                told["power_w"] = found
        return Seen(told)

    def mode(self, now_s: float) -> Seen:
        """Number of the power mode."""
        if not self._is_jetson:
            return Seen()
        status, source = self._files.once(_STATUS), self._files.source(_STATUS)
        found = re.search(r"pmode:(\d+)", status or "")
        if found is None and self._program is not None:
            # "NV Power Mode: 15W", and its number on a line of its own.
            found = re.search(r"^(\d+)$", self._program.look(now_s).text or "", re.MULTILINE)
            source = " ".join(_PROGRAM)
        self._mode = None if found is None else int(found[1])
        return Seen({} if self._mode is None else {"power_mode": Reading(float(self._mode), 0.0, source)})

    def _power_w(self, rail: Rail) -> float | None:
        milliwatt = self._files.number(rail.power) if rail.power else None
        if milliwatt is None:
            millivolt, milliampere = self._files.number(rail.voltage), self._files.number(rail.current)
            if millivolt is None or milliampere is None:
                return None
            milliwatt = millivolt * milliampere / 1e3
        return milliwatt / 1e3 if 0 < milliwatt / 1e3 <= _POWER_MAX_W else None

    def facts(self) -> dict[str, str]:
        """What was found, for people."""
        told = {f"rail {rail.name}": self._files.source(rail.voltage) for rail in self.rails}
        if self._mode is not None:
            told["power mode"] = f"{self._mode} {self._modes.get(self._mode, '')}".strip()
        return told


def modes(text: str) -> dict[int, str]:
    """Number -> name of the power modes in an nvpmodel.conf: `< POWER_MODEL ID=0 NAME=15W >`."""
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text)
    return {int(number): name for number, name in found}
