"""Heat: thermal zones with their trip points, cooling devices, and CPU sensors among hwmon where there is no zone.

What is refused, and why:

- Temperatures outside -40..150 degC: no silicon sensor is specified beyond, and the kernel's own "invalid" is -274 degC
  (THERMAL_TEMP_INVALID). Exactly 0: what drivers give while a sensor is off; a die at 0.000 degC is far rarer, and to
  take it for unknown errs on the careful side. 85 degC is *not* refused, though it is the power-on value of one common
  external sensor (DS18B20): it is also where a real die becomes critical, and a single sample moves no band anyway.
- The zone `PMIC-Die` of Jetson boards: a constant 100 degC, a placeholder in their device tree. Zones that are no die:
  estimates for the fan, radios, disks, batteries.
- Trip points at or below 0: how x86 says that one is not set.

Sources: Documentation/ABI/testing/sysfs-class-thermal; Documentation/hwmon/sysfs-interface.rst.
"""

from __future__ import annotations

import msgspec

from edgert.ports.board.files import Files, number
from edgert.ports.board.pace import Seen
from edgert.values import Reading

_OTHER_ZONES = ("pmic-die", "thermal-fan-est", "iwlwifi", "nvme", "battery", "bat", "charger", "tboard", "tdiode")
_CPU_CHIPS = ("coretemp", "cpu_thermal", "k10temp", "zenpower", "soc_thermal", "cpu")
_CLASS = "sys/class/thermal"
_TRIPS_MAX = 16
_HOTTEST = 3
"""Zones looked at every time; of the others one, in turn."""


class Trip(msgspec.Struct, frozen=True):
    """Where the kernel does something.

    Attributes:
        temp_c: from here on.
        kind: passive slows down, active turns a fan, hot tells, critical switches off.
    """

    temp_c: float
    kind: str


class Zone(msgspec.Struct, frozen=True):
    """One sensor.

    Attributes:
        kind: its type, which names it.
        path: of its temperature.
        trips: from the coolest to the hottest.
    """

    kind: str
    path: str
    trips: tuple[Trip, ...] = ()


class Thermal:
    """Reads the zones that matter: the hottest ones at every look, the others in turn.

    Attributes:
        zones: as of the last `scan`.

    Thread:
        One at a time.
    """

    def __init__(self, files: Files, *, only: str | None = None) -> None:
        """Read nothing yet.

        Args:
            files: of the machine.
            only: type of the one zone to read; None reads them all and takes the hottest.
        """
        self.zones: tuple[Zone, ...] = ()
        self._files = files
        self._only = only
        self._last: dict[str, tuple[float | None, float]] = {}
        self._cooling: tuple[tuple[str, str, float], ...] = ()

    def scan(self) -> None:
        """Find the zones, their trip points, and what cools."""
        zones = [self._zone(path) for path in self._files.names(_CLASS, "thermal_zone")]
        if self._only is not None:
            zones = [zone for zone in zones if zone.kind == self._only]
        else:
            zones = [zone for zone in zones if not zone.kind.lower().startswith(_OTHER_ZONES)]
            if not any(_celsius(number(self._files.once(zone.path))) for zone in zones):
                zones += self._chips()
        self.zones = tuple(zones)
        devices = [
            (path, self._files.once(f"{path}/type") or "", number(self._files.once(f"{path}/max_state")))
            for path in self._files.names(_CLASS, "cooling_device")
        ]
        self._cooling = tuple((path, kind, most) for path, kind, most in devices if most is not None and most > 0)

    def read(self, now_s: float) -> Seen:
        """The hottest temperature, the lowest passive trip point, and each of them."""
        chosen = self._chosen()
        told_all = [self._look(zone, now_s) for zone in chosen]
        if not all(told_all):
            # What the others said last must not stand for one that went silent.
            for zone in self.zones:
                if zone not in chosen:
                    self._look(zone, now_s)
        told: dict[str, Reading] = {}
        for zone in self.zones:
            value, at_s = self._last.get(zone.path, (None, now_s))
            name = f"{_key(zone.kind)}_temp_c"
            # Two zones may have one name; a person wants to see the hotter.
            if value is not None and (name not in told or value > (told[name].value or 0.0)):
                told[name] = Reading(value, max(0.0, now_s - at_s), self._files.source(zone.path))
        if told:
            told["temp_c"] = max(told.values(), key=lambda each: each.value or -273.0)
        trips = [(trip.temp_c, zone.kind) for zone in self.zones for trip in zone.trips if trip.kind == "passive"]
        if trips:
            lowest, kind = min(trips)
            told["trip_c"] = Reading(lowest, 0.0, f"passive trip point of {kind}")
        return Seen(told)

    def cooling(self, now_s: float) -> Seen:
        """How far each cooling device is at work, as a share of what it can do."""
        told = {}
        for path, kind, most in self._cooling:
            state = self._files.number(f"{path}/cur_state")
            if state is not None and 0 <= state <= most:
                name = f"{_key(kind)}_{path.rpartition('cooling_device')[2]}_cooling_frac"
                told[name] = Reading(state / most, 0.0, self._files.source(f"{path}/cur_state"))
        return Seen(told)

    def facts(self) -> dict[str, str]:
        """What was found at the last scan, for people."""
        told = {}
        for zone in self.zones:
            trips = ", ".join(f"{trip.kind} at {trip.temp_c:g}" for trip in zone.trips)
            told[f"zone {zone.kind}"] = trips or "no trip points"
        for path, kind, most in self._cooling:
            told[f"cooling {path.rpartition('cooling_device')[2]}"] = f"{kind}, {most:g} steps"
        return told

    def _look(self, zone: Zone, now_s: float) -> bool:
        """Read one zone; False when it told something before, and does no more."""
        before, _ = self._last.get(zone.path, (None, now_s))
        value = _celsius(self._files.number(zone.path))
        self._last[zone.path] = value, now_s
        return value is not None or before is None

    def _chosen(self) -> list[Zone]:
        if len(self.zones) <= _HOTTEST + 1 or any(zone.path not in self._last for zone in self.zones):
            return list(self.zones)

        def heat(zone: Zone) -> float:
            value, _ = self._last[zone.path]
            return -273.0 if value is None else value

        ranked = sorted(self.zones, key=heat, reverse=True)
        others = ranked[_HOTTEST:]
        oldest = min(others, key=lambda zone: self._last[zone.path][1])
        return [*ranked[:_HOTTEST], oldest]

    def _zone(self, path: str) -> Zone:
        trips = []
        for index in range(_TRIPS_MAX):
            kind = self._files.once(f"{path}/trip_point_{index}_type")
            if kind is None:
                break
            temp_c = _celsius(number(self._files.once(f"{path}/trip_point_{index}_temp")))
            if temp_c is not None and temp_c > 0:
                trips.append(Trip(temp_c, kind))
        kind = self._files.once(f"{path}/type") or ""
        return Zone(kind, f"{path}/temp", tuple(sorted(trips, key=lambda trip: trip.temp_c)))

    def _chips(self) -> list[Zone]:
        found = []
        for chip in self._files.names("sys/class/hwmon", "hwmon"):
            name = self._files.once(f"{chip}/name")
            if name in _CPU_CHIPS:
                inputs = [path for path in self._files.names(chip, "temp") if path.endswith("_input")]
                found += [Zone(str(name), path) for path in inputs]
        return found


def _celsius(milli: float | None) -> float | None:
    return None if milli is None or milli == 0 or not -40_000 <= milli <= 150_000 else milli / 1000.0


def _key(kind: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in kind.lower()) or "zone"
