"""Batteries and chargers of /sys/class/power_supply.

What is refused, and why:

- A charge outside 0..100 %, and a charge of 0 % from a gauge that also says 0 V or charging or full: a gauge that lost
  its bus or was not yet initialised. Acting on such a zero has switched off healthy machines.
- A power that is not above 0 or is above 1 kW; and any power while not discharging, since it then flows into the
  battery. The sign of a current differs between drivers and is ignored.
- A peripheral's battery (scope Device).

Sources: Documentation/ABI/testing/sysfs-class-power (microvolt, microampere, percent);
Documentation/power/power_supply_class.rst (microwatt-hour, microampere-hour).
"""

from __future__ import annotations

from edgert.ports.board.files import Files
from edgert.ports.board.pace import Seen
from edgert.values import Reading

_CLASS = "sys/class/power_supply"
_BATTERIES = ("Battery", "UPS")
_CHARGERS = ("Mains", "USB", "Wireless", "BrickID")
_POWER_MAX_W = 1000.0


class Supplies:
    """Reads the machine's batteries together, and whether anything feeds it.

    Blocks:
        Milliseconds where a gauge sits on a slow bus.

    Thread:
        One at a time.
    """

    def __init__(self, files: Files) -> None:
        """Read nothing yet.

        Args:
            files: of the machine.
        """
        self._files = files
        self._cells: tuple[str, ...] = ()
        self._chargers: tuple[str, ...] = ()

    def scan(self) -> None:
        """Find batteries and chargers."""
        files = self._files
        own = [path for path in files.names(_CLASS) if files.once(f"{path}/scope") != "Device"]
        self._cells = tuple(path for path in own if files.once(f"{path}/type") in _BATTERIES)
        self._chargers = tuple(path for path in own if (files.once(f"{path}/type") or "").startswith(_CHARGERS))

    def read(self, now_s: float) -> Seen:
        """Charge of all batteries together, weighted by their size where it is told, and the power drawn from them."""
        told: dict[str, Reading] = {}
        charges: list[tuple[float, float | None]] = []
        powers: list[float] = []
        statuses = []
        sources: dict[str, list[str]] = {"charge": [], "power": []}
        for cell in self._cells:
            if self._files.number(f"{cell}/present") == 0:
                continue
            status = self._files.text(f"{cell}/status") or ""
            statuses.append(status)
            charge = self._charge_frac(cell, status)
            if charge is not None:
                charges.append((charge, self._full_j(cell)))
                sources["charge"].append(self._files.source(cell))
            power_w = self._power_w(cell) if status == "Discharging" else None
            if power_w is not None:
                powers.append(power_w)
                sources["power"].append(self._files.source(cell))
            uv = self._files.number(f"{cell}/voltage_now")
            if uv is not None and uv > 0:
                name = "battery" if "battery_v" not in told else cell.rpartition("/")[2].lower()
                told[f"{name}_v"] = Reading(uv / 1e6, 0.0, self._files.source(cell))
        source = ", ".join(sources["charge"])
        if charges:
            told["battery_frac"] = Reading(_together(charges), 0.0, source)
        full = [size for _, size in charges]
        if charges and all(full):
            told["battery_full_j"] = Reading(sum(size for size in full if size), 0.0, source)
        if powers:
            told["power_w"] = Reading(sum(powers), 0.0, ", ".join(sources["power"]))
        return Seen(told, external_power=self._external(statuses))

    def _external(self, statuses: list[str]) -> bool | None:
        """A charger says so itself; without one, batteries tell by what they do."""
        online = [self._files.number(f"{charger}/online") for charger in self._chargers]
        known = [each > 0 for each in online if each is not None]
        if known:
            return any(known)
        if any(status in ("Charging", "Full", "Not charging") for status in statuses):
            return True
        return False if "Discharging" in statuses else None

    def _charge_frac(self, cell: str, status: str) -> float | None:
        percent = self._files.number(f"{cell}/capacity")
        if percent is None:
            for kind in ("energy", "charge"):
                now, full = (self._files.number(f"{cell}/{kind}_{when}") for when in ("now", "full"))
                if now is not None and full is not None and full > 0:
                    percent = 100 * now / full
        if percent is None or not 0 <= percent <= 100:
            return None
        if percent == 0 and (self._files.number(f"{cell}/voltage_now") == 0 or status in ("Charging", "Full")):
            return None
        return percent / 100.0

    def _full_j(self, cell: str) -> float | None:
        """Energy when full, joules: 1 uWh is 3.6 mJ."""
        energy_uwh = self._files.number(f"{cell}/energy_full")
        if energy_uwh is None:
            charge_uah, design_uv = (
                self._files.number(f"{cell}/{name}") for name in ("charge_full", "voltage_min_design")
            )
            if charge_uah is None or design_uv is None:
                return None
            energy_uwh = charge_uah * design_uv / 1e6
        return energy_uwh * 3.6e-3 if energy_uwh > 0 else None

    def _power_w(self, cell: str) -> float | None:
        power_uw = self._files.number(f"{cell}/power_now")
        if power_uw is None:
            voltage_uv, current_ua = (self._files.number(f"{cell}/{name}_now") for name in ("voltage", "current"))
            if voltage_uv is None or current_ua is None:
                return None
            power_uw = voltage_uv * current_ua / 1e6
        return abs(power_uw) / 1e6 if 0.0 < abs(power_uw) / 1e6 <= _POWER_MAX_W else None

    def facts(self) -> dict[str, str]:
        """What was found at the last scan, for people."""
        told = {f"battery {cell.rpartition('/')[2]}": self._files.source(cell) for cell in self._cells}
        return told | {f"charger {path.rpartition('/')[2]}": self._files.source(path) for path in self._chargers}


def _together(charges: list[tuple[float, float | None]]) -> float:
    """The charge of several batteries; all alike unless each says how big it is."""
    sizes = [size for _, size in charges]
    if any(size is None for size in sizes):
        return sum(charge for charge, _ in charges) / len(charges)
    total = sum(size for size in sizes if size is not None)
    return sum(charge * size for charge, size in charges if size is not None) / total
