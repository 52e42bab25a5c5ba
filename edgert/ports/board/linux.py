"""Any Linux machine, by /proc and /sys alone. Every sensor is optional, and none is believed blindly.

What is refused, and why:

- Temperatures outside -40..150 degC: no silicon sensor is specified beyond, and the kernel's own "invalid" is -274 degC
  (THERMAL_TEMP_INVALID). Exactly 0: what drivers give while a sensor is off; a die at 0.000 degC is far rarer, and to
  take it for unknown errs on the careful side. 85 degC is *not* refused, though it is the power-on value of one common
  external sensor (DS18B20): it is also where a real die becomes critical, and a single sample moves no band anyway.
- The zone `PMIC-Die` of Jetson boards: a constant 100 degC, a placeholder in their device tree.
- A charge outside 0..100 %, and a charge of 0 % from a gauge that also says 0 V or charging or full: a gauge that lost
  its bus or was not yet initialised. Acting on such a zero has switched off healthy machines.
- A power that is not above 0 or is above 1 kW; and any power while not discharging, since it then flows into the
  battery. The sign of a current differs between drivers and is ignored.
"""

from __future__ import annotations

from pathlib import Path

from edgert.values import UNKNOWN, Reading, Readings

_PLACEHOLDER_ZONES = ("PMIC-Die",)
_CPU_CHIPS = ("coretemp", "cpu_thermal", "k10temp", "zenpower", "soc_thermal", "cpu")
_SYSFS_BYTES = 4096


class LinuxBoard:
    """Reads /proc/stat, thermal zones, CPU sensors among hwmon, and batteries.

    Attributes:
        name: the model the device tree names, or "linux".

    Blocks:
        A file of sysfs may take milliseconds where a driver talks to its chip over a slow bus.

    Thread:
        One at a time.
    """

    def __init__(self, root: str = "/", *, thermal_zone: str | None = None, has_battery: bool = False) -> None:
        """Look nowhere yet, but for the model's name.

        Args:
            root: directory that holds `proc` and `sys`.
            thermal_zone: type of the one zone to read; None reads them all and takes the hottest.
            has_battery: this machine runs on batteries of /sys/class/power_supply.
        """
        self._proc = Path(root) / "proc"
        self._class = Path(root) / "sys" / "class"
        self._thermal_zone = thermal_zone
        self._has_battery = has_battery
        self._ticks: tuple[int, int] | None = None
        self._load: tuple[float, float] | None = None
        model = (_text(self._proc / "device-tree" / "model") or "").rstrip("\0").strip()
        self.name = model or "linux"

    def read(self, now_s: float) -> Readings:
        """Look at every sensor once; see `Board.read`. The load is that between the last call and this one."""
        charge, power = self._batteries() if self._has_battery else (UNKNOWN, UNKNOWN)
        return Readings(
            load_frac=self._load_frac(now_s),
            temp_c=Reading(self._temp_c()),
            battery_frac=charge,
            power_w=power,
            has_battery=self._has_battery,
        )

    def _load_frac(self, now_s: float) -> Reading:
        """proc(5), /proc/stat: user nice system idle iowait irq softirq steal; guest time is within user's."""
        words = (_text(self._proc / "stat") or "").partition("\n")[0].split()
        try:
            counts = [int(word) for word in words[1:9]]
        except ValueError:
            return UNKNOWN
        if len(counts) < 4 or words[0] != "cpu":
            return UNKNOWN
        before, self._ticks = self._ticks, (sum(counts), sum(counts[3:5]))
        if before is not None:
            total, idle = self._ticks[0] - before[0], self._ticks[1] - before[1]
            if total > 0:
                # iowait may run backwards (proc(5)), so the quotient may leave 0..1 by a little.
                self._load = min(1.0, max(0.0, 1.0 - idle / total)), now_s
        return UNKNOWN if self._load is None else Reading(self._load[0], max(0.0, now_s - self._load[1]))

    def _temp_c(self) -> float | None:
        zones = [
            (_text(zone / "type") or "", zone / "temp") for zone in _entries(self._class / "thermal", "thermal_zone")
        ]
        if self._thermal_zone is not None:
            chosen = [temp for kind, temp in zones if kind == self._thermal_zone]
        else:
            chosen = [temp for kind, temp in zones if kind not in _PLACEHOLDER_ZONES]
        hottest = max(filter(None, map(_celsius, chosen)), default=None)
        if hottest is not None or self._thermal_zone is not None:
            return hottest
        chips = [chip for chip in _entries(self._class / "hwmon", "hwmon") if _text(chip / "name") in _CPU_CHIPS]
        inputs = [sensor for chip in chips for sensor in _entries(chip, "temp") if sensor.name.endswith("_input")]
        return max(filter(None, map(_celsius, inputs)), default=None)

    def _batteries(self) -> tuple[Reading, Reading]:
        """Charge and power of the machine's batteries together; a peripheral's (scope Device) is not among them."""
        cells = [
            supply
            for supply in _entries(self._class / "power_supply", "")
            if _text(supply / "type") == "Battery"
            and _text(supply / "scope") != "Device"
            and _number(supply / "present") != 0
        ]
        charges = [charge for cell in cells if (charge := _charge_frac(cell)) is not None]
        powers = [power for cell in cells if (power := _power_w(cell)) is not None]
        return (
            Reading(sum(charges) / len(charges)) if charges else UNKNOWN,
            Reading(sum(powers)) if powers else UNKNOWN,
        )


def _charge_frac(cell: Path) -> float | None:
    percent = _number(cell / "capacity")
    if percent is None:
        for kind in ("energy", "charge"):
            now, full = _number(cell / f"{kind}_now"), _number(cell / f"{kind}_full")
            if now is not None and full is not None and full > 0:
                percent = 100 * now / full
    if percent is None or not 0 <= percent <= 100:
        return None
    if percent == 0 and (_number(cell / "voltage_now") == 0 or _text(cell / "status") in ("Charging", "Full")):
        return None
    return percent / 100.0


def _power_w(cell: Path) -> float | None:
    """Watts drawn; sysfs counts in microwatts, microvolts and microamperes (power_supply_class)."""
    if _text(cell / "status") != "Discharging":
        return None
    power_uw, voltage_uv, current_ua = (_number(cell / f"{kind}_now") for kind in ("power", "voltage", "current"))
    if power_uw is None and voltage_uv is not None and current_ua is not None:
        power_uw = voltage_uv * current_ua / 1e6
    if power_uw is None or not 0.0 < abs(power_uw) <= 1e9:
        return None
    return abs(power_uw) / 1e6


def _celsius(path: Path) -> float | None:
    milli = _number(path)
    return None if milli is None or milli == 0 or not -40_000 <= milli <= 150_000 else milli / 1000.0


def _entries(folder: Path, prefix: str) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.name.startswith(prefix))
    except OSError:
        return []


def _number(path: Path) -> float | None:
    try:
        return float(int(_text(path) or ""))
    except (ValueError, OverflowError):
        return None


def _text(path: Path) -> str | None:
    """The file's text, or None: sensors vanish, refuse (EAGAIN, EIO, ENODATA) and give nonsense at any time."""
    try:
        with path.open("rb") as file:
            return file.read(_SYSFS_BYTES).decode().strip()
    except (OSError, ValueError):
        return None
