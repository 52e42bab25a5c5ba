"""Fuel gauges and current meters on i2c: INA219, INA226, MAX17048, and the UPS HATs that are made of them.

Nothing is ever written to a chip: the calibration registers, which such chips forget in a brown-out, are not needed, as
the current follows from the drop over the shunt. Which bus, address, shunt and how many cells is configuration: none of
it can be asked of the chip, and a wrong number of cells is what made others switch off full batteries.

Sources: TI INA219 datasheet SBOS448, "Register Details" (shunt LSB 10 uV, bus LSB 4 mV in bits 15..3, bit 0 overflow);
TI INA226 datasheet SBOS547, "Register Maps" (shunt LSB 2.5 uV, bus LSB 1.25 mV); Maxim MAX17048/MAX17049 datasheet
19-6171, "Register Summary" (VCELL 02h 78.125 uV a cell, SOC 04h 1/256 %, VERSION 08h 001xh, CRATE 16h 0.208 %/h); Maxim
MAX17043/MAX17044 datasheet: the same VCELL and SOC (1.25 mV in bits 15..4 is 78.125 uV in all 16), and no rate.
All registers are big-endian, and the words of SMBus little-endian.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edgert.hardware import Gauge
from edgert.ports.board.pace import Seen
from edgert.values import Reading

CURVE = (
    (3.27, 0.0), (3.61, 0.05), (3.69, 0.1), (3.73, 0.2), (3.77, 0.3), (3.80, 0.4), (3.84, 0.5), (3.87, 0.6),
    (3.95, 0.7), (4.02, 0.8), (4.11, 0.9), (4.20, 1.0),
)  # fmt: skip
"""Resting volts of one cell -> charge. Ours: rounded from what makers of cobalt cells print; stretched between the
voltages that the configuration calls empty and full."""
_CELL_OHM = 0.05
"""Inner resistance of one cell, ours: of an 18650 of some age; its voltage is taken back to that at rest by it."""
_BELOW_EMPTY_V, _ABOVE_FULL_V = 0.2, 0.05
"""How far a cell can be from what the configuration calls empty and full. Beyond, the protection or the charger would
have stopped it: the bus is lost, or the number of cells is wrong."""
_RESTS_A = 0.02
"""Below, a current says neither charging nor discharging: offset of the chip and its shunt."""
_DROP_V = {"ina219": 0.3199, "ina226": 0.0819}
"""Drop over the shunt that the chip cannot tell from a larger one."""
_POWER_MAX_W = 1000.0
_OPEN_AGAIN = 30
"""Looks that a bus which failed to open is left alone for."""
_ADDRESSES = {"ina219": 0x40, "ina226": 0x40, "max17048": 0x36}


class Measured(NamedTuple):
    """What a chip says, in units.

    Attributes:
        voltage_v: of the battery or the line.
        current_a: positive as the chip is wired; None where it measures none.
        charge_frac: where the chip knows it itself.
        rate_frac_per_s: change of the charge, where the chip knows it.
    """

    voltage_v: float
    current_a: float | None = None
    charge_frac: float | None = None
    rate_frac_per_s: float | None = None


ReadWord = Callable[[int], int]
"""Register -> its 16 bits, the first byte being the higher one; raises OSError."""


def place(gauge: Gauge) -> str:
    """The chip and where it is, for people."""
    return f"{gauge.kind} at i2c-{gauge.bus} 0x{_address(gauge):02x}"


def measure(gauge: Gauge, word: ReadWord) -> Measured | None:
    """Read one chip once.

    Args:
        gauge: how it is wired.
        word: reads its registers.

    Returns:
        What it says, or None when it says itself that this is wrong.

    Raises:
        OSError: the bus fails.
    """
    if gauge.kind == "max17048":
        charge_frac, voltage_v = word(0x04) / 256 / 100, word(0x02) * 78.125e-6 * gauge.cells
        # The older ones of the family (version 0003h and the like) have no rate there.
        rate = _signed(word(0x16)) * 0.208 / 100 / 3600 if word(0x08) & 0xFFF0 == 0x0010 else None
        return Measured(voltage_v, None, charge_frac, rate)
    if gauge.kind == "ina219":
        bus, drop_v = word(0x02), _signed(word(0x01)) * 10e-6
        overflow, voltage_v = bool(bus & 1), (bus >> 3) * 4e-3
    else:
        overflow, voltage_v, drop_v = False, (word(0x02) & 0x7FFF) * 1.25e-3, _signed(word(0x01)) * 2.5e-6
    if overflow or abs(drop_v) >= _DROP_V[gauge.kind]:
        return None
    return Measured(voltage_v, drop_v / gauge.shunt_ohm)


def judge(gauge: Gauge, measured: Measured, capacity_j: float | None = None) -> Seen:
    """Turn what one chip says into readings, and leave out what cannot be.

    Args:
        gauge: how it is wired.
        measured: what it says.
        capacity_j: energy of the full battery; None when not known.

    Returns:
        Readings. Of a battery whose cells would be well below empty or above full nothing is believed: a lost bus reads
        0, a wrong number of cells mostly reads as flat or as overcharged.

    Raises:
        nothing.
    """
    source, current_a, voltage_v = place(gauge), measured.current_a, measured.voltage_v
    told: dict[str, Reading] = {}
    if gauge.measures == "supply":
        if voltage_v > 0:
            told["supply_v"] = Reading(voltage_v, 0.0, source)
        if current_a is not None and 0 < voltage_v * abs(current_a) <= _POWER_MAX_W:
            told["power_w"] = Reading(voltage_v * abs(current_a), 0.0, source)
        return Seen(told)
    cell_v, charge, external = voltage_v / gauge.cells, measured.charge_frac, None
    if not gauge.empty_cell_v - _BELOW_EMPTY_V <= cell_v <= gauge.full_cell_v + _ABOVE_FULL_V:
        return Seen()
    told["battery_v"] = Reading(voltage_v, 0.0, source)
    if current_a is not None:
        drawn_a = -current_a if gauge.charging_positive else current_a
        told["battery_drawn_a"] = Reading(drawn_a, 0.0, source)
        if abs(drawn_a) >= _RESTS_A:
            external = drawn_a < 0
        if 0 < voltage_v * drawn_a <= _POWER_MAX_W:
            told["power_w"] = Reading(voltage_v * drawn_a, 0.0, source)
        charge = charge_frac(cell_v + drawn_a * _CELL_OHM, gauge.empty_cell_v, gauge.full_cell_v)
    if charge is not None:
        # A MAX17048 goes a little above 100 %.
        told["battery_frac"] = Reading(min(1.0, max(0.0, charge)), 0.0, source)
    rate = measured.rate_frac_per_s
    if rate:
        external = rate > 0
        if rate < 0 and capacity_j is not None:
            told["power_w"] = Reading(-rate * capacity_j, 0.0, f"{source}, its rate times the configured capacity")
    return Seen(told, external_power=external)


def charge_frac(cell_v: float, empty_cell_v: float = CURVE[0][0], full_cell_v: float = CURVE[-1][0]) -> float:
    """Charge of a cell at rest, by the straight line between two points of the curve.

    Args:
        cell_v: its voltage.
        empty_cell_v: where the curve begins.
        full_cell_v: where it ends.

    Returns:
        Charge, 0..1.

    Raises:
        nothing.
    """
    if full_cell_v <= empty_cell_v:
        return 1.0 if cell_v >= full_cell_v else 0.0
    (low_v, low), (top_v, _) = CURVE[0], CURVE[-1]
    at_v = low_v + (cell_v - empty_cell_v) / (full_cell_v - empty_cell_v) * (top_v - low_v)
    if at_v <= low_v:
        return 0.0
    for high_v, high in CURVE[1:]:
        if at_v <= high_v:
            return low + (high - low) * (at_v - low_v) / (high_v - low_v)
        low_v, low = high_v, high
    return 1.0


class Gauges:
    """Reads the chips that the configuration names.

    Attributes:
        faults: chip -> why it gave nothing the last time, for people; empty when it gave something.

    Blocks:
        About a millisecond a chip at 100 kHz; the thread sleeps meanwhile.

    Thread:
        One at a time.
    """

    def __init__(
        self,
        gauges: Sequence[Gauge],
        *,
        capacity_j: float | None = None,
        bus: Callable[[int], Any] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            gauges: the chips; of two that say the same, the first one counts.
            capacity_j: energy of the full battery; None when not known.
            bus: number -> an open bus with `read_word_data(address, register)`; that of `smbus2` by default.
        """
        self.faults: dict[str, str] = {}
        self._gauges = tuple(gauges)
        self._capacity_j = capacity_j
        self._open = bus or _smbus
        self._buses: dict[int, Any] = {}
        self._rests: dict[int, int] = {}

    def read(self, now_s: float) -> Seen:
        """Read every chip once."""
        told: dict[str, Reading] = {}
        external: bool | None = None
        for gauge in self._gauges:
            seen = self._one(gauge)
            known = {name: each for name, each in told.items() if each.value is not None}
            told = {**told, **seen.readings, **known}
            if not seen.readings:
                # Unknown, and a person sees why; another gauge may know it.
                name = "battery_frac" if gauge.measures == "battery" else "power_w"
                told.setdefault(name, Reading(None, 0.0, f"{place(gauge)}: {self.faults[place(gauge)]}"))
            external = seen.external_power if external is None else external
        return Seen(told, external_power=external)

    def close(self) -> None:
        """Close the buses; reading opens them again."""
        for bus in self._buses.values():
            with contextlib.suppress(OSError):
                bus.close()
        self._buses.clear()

    def facts(self) -> dict[str, str]:
        """What is configured, and whether it answers, for people."""
        return {place(gauge): self.faults.get(place(gauge), "") or "answers" for gauge in self._gauges}

    def _one(self, gauge: Gauge) -> Seen:
        where, address = place(gauge), _address(gauge)
        try:
            bus = self._bus(gauge.bus)
            if bus is None:
                self.faults.setdefault(where, f"/dev/i2c-{gauge.bus} could not be opened")
                return Seen()
            measured = measure(gauge, lambda register: _swap(bus.read_word_data(address, register)))
        except OSError as error:
            # EBUSY: a driver of the kernel has the chip, and then hwmon or power_supply tells what it says.
            self.faults[where] = f"{type(error).__name__}: {error}"
            return Seen()
        seen = Seen() if measured is None else judge(gauge, measured, self._capacity_j)
        self.faults[where] = "" if seen.readings else f"says what cannot be: {measured or 'out of its range'}"
        return seen

    def _bus(self, number: int) -> Any:
        if number in self._buses:
            return self._buses[number]
        if self._rests.get(number, 0) > 0:
            self._rests[number] -= 1
            return None
        self._rests[number] = _OPEN_AGAIN
        opened = self._open(number)
        self._rests[number] = 0
        self._buses[number] = opened
        return opened


def _smbus(number: int) -> Any:
    try:
        import smbus2
    except ImportError as error:
        raise OSError("smbus2 is not installed: pip install edgert[i2c]") from error
    return smbus2.SMBus(number)


def _address(gauge: Gauge) -> int:
    return _ADDRESSES[gauge.kind] if gauge.address is None else gauge.address


def _swap(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8 & 0xFF


def _signed(word: int) -> int:
    return word - 0x10000 if word & 0x8000 else word
