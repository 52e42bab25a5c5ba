"""Any Linux machine, by /proc and /sys alone. Every sensor is optional, and none is believed blindly.

This file only puts together what its neighbours read: `proc` (load, pressure, memory, clocks), `thermal`, `pi`,
`jetson`, `supply`, `gauges` and `network`; each of them says what it refuses and why. psutil is not used: it knows
nothing that these files do not say, and on ARM boards less (no temperatures, no clocks).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from edgert.hardware import Gauge
from edgert.ports.board.files import Files
from edgert.ports.board.gauges import Gauges
from edgert.ports.board.jetson import Jetson
from edgert.ports.board.network import Network
from edgert.ports.board.pace import CAP_S, Cost, Probe, Seen
from edgert.ports.board.pi import Firmware
from edgert.ports.board.proc import Processor
from edgert.ports.board.supply import Supplies
from edgert.ports.board.thermal import Thermal
from edgert.values import Reading, Readings

_HEADLINES = frozenset(field.name for field in msgspec.structs.fields(Readings) if field.type is Reading)
_SCAN_S = 60.0


class LinuxBoard:
    """Reads what there is, each sensor as often as its cost allows.

    Attributes:
        name: the model the device tree names, or "linux".

    Blocks:
        A file of sysfs may take milliseconds where a driver talks to its chip over a slow bus.

    Thread:
        One at a time.
    """

    def __init__(
        self,
        root: str = "/",
        *,
        thermal_zone: str | None = None,
        has_battery: bool = False,
        gauges: Sequence[Gauge] = (),
        capacity_j: float | None = None,
        metered: bool | None = None,
        cap_s: float = CAP_S,
        cpu_s: Callable[[], float] = time.thread_time,
        wall_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Look nowhere yet, but for the model's name.

        Args:
            root: directory that holds `proc` and `sys`.
            thermal_zone: type of the one zone to read; None reads them all and takes the hottest.
            has_battery: this machine runs on the batteries of /sys/class/power_supply; a gauge at a battery says that
                it runs on that one.
            gauges: chips on i2c.
            capacity_j: energy of the full battery behind a gauge; None when not known.
            metered: what the configuration says of the link; None is not said.
            cap_s: longest time between two looks at one sensor.
            cpu_s: the thread's CPU time so far.
            wall_s: any clock that runs evenly.
        """
        files = Files(root)
        self.name = (files.once("proc/device-tree/model") or "").rstrip("\0").strip() or "linux"
        self._has_battery = has_battery or any(gauge.measures == "battery" for gauge in gauges)
        self._processor = processor = Processor(files)
        self._thermal = thermal = Thermal(files, only=thermal_zone)
        self._firmware = firmware = Firmware(files)
        self._jetson = jetson = Jetson(files)
        self._supplies = supplies = Supplies(files)
        self._gauges = Gauges(gauges, capacity_j=capacity_j)
        self._network = network = Network(files, metered=metered)

        def probe(name: str, look: Callable[[float], Seen], share: float, period_s: float = 0.0) -> Probe:
            return Probe(name, look, share=share, period_s=period_s, cap_s=cap_s, cpu_s=cpu_s, wall_s=wall_s)

        # What comes first is believed before what comes later: a gauge that someone configured before the kernel's
        # batteries, and those before the rails, which leave out what hangs on other lines.
        self._probes = (
            *([probe("gauges", self._gauges.read, 0.05, 2.0)] if gauges else []),
            *([probe("supplies", supplies.read, 0.05, 5.0)] if has_battery else []),
            probe("rails", jetson.read, 0.1, 1.0),
            probe("load", processor.load, 0.2),
            probe("pressure", processor.pressure, 0.15),
            probe("clocks", processor.clocks, 0.1, 1.0),
            probe("memory", processor.memory, 0.05, 2.0),
            probe("thermal", thermal.read, 0.2),
            probe("cooling", thermal.cooling, 0.02, 10.0),
            probe("firmware", firmware.read, 0.05, 2.0),
            probe("power mode", jetson.mode, 0.01, 10.0),
            probe("network", network.read, 0.05, 2.0),
        )
        self._scanned_s: float | None = None
        self._cpu = cpu_s
        self._first_s: float | None = None
        self._spent_s = 0.0
        self._last_s = 0.0

    def read(self, now_s: float) -> Readings:
        """Look at every sensor whose time has come; see `Board.read`. The ages tell when each was looked at."""
        began_s = self._cpu()
        if self._scanned_s is None or not 0 <= now_s - self._scanned_s < _SCAN_S:
            self._scan()
            self._scanned_s = now_s
        found: dict[str, Reading] = {}
        throttle = external = metered = None
        for probe in self._probes:
            seen = probe.read(now_s)
            for name, each in seen.readings.items():
                if name not in found or found[name].value is None:
                    found[name] = each
            throttle = seen.throttle if throttle is None else throttle
            external = seen.external_power if external is None else external
            metered = seen.metered if metered is None else metered
        if self._first_s is None or now_s < self._first_s:
            # The first look finds out what there is, and is not like the others.
            self._first_s, self._spent_s = now_s, 0.0
        else:
            self._spent_s += self._cpu() - began_s
        self._last_s = now_s
        spent = self.cost_frac()
        if spent is not None:
            found["probe_core_frac"] = Reading(spent, 0.0, "CPU time of the thread that looks")
        return Readings(
            **{name: each for name, each in found.items() if name in _HEADLINES},
            has_battery=self._has_battery,
            external_power=external if self._has_battery else None,
            throttle=throttle,
            metered=metered,
            detail={name: each for name, each in found.items() if name not in _HEADLINES},
        )

    def cost_frac(self) -> float | None:
        """CPU time of looking since the first look, and of programs that were asked, as a share of one core."""
        if self._first_s is None or self._last_s <= self._first_s:
            return None
        programs_s = self._firmware.cpu_s + self._jetson.cpu_s
        return (self._spent_s + programs_s) / (self._last_s - self._first_s)

    def costs(self) -> dict[str, Cost]:
        """What each probe takes, and the period that follows from it."""
        return {probe.name: probe.cost for probe in self._probes}

    def facts(self) -> dict[str, str]:
        """What was detected and where it is read, by name, for people."""
        self._scan()
        told = {"model": self.name}
        for part in (self._processor, self._thermal, self._firmware, self._jetson, self._supplies, self._gauges):
            told |= part.facts()
        return told | self._network.facts()

    def _scan(self) -> None:
        """Find out what there is: sensors come and go with what is plugged in."""
        for part in (self._processor, self._thermal, self._firmware, self._jetson, self._supplies, self._network):
            part.scan()
