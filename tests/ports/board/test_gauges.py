from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.hardware import Gauge
from edgert.ports.board import gauges
from edgert.ports.board.gauges import CURVE, Gauges, Measured, charge_frac, judge, measure

HAT = Gauge(kind="ina219", address=0x42, shunt_ohm=0.01, cells=2)


class Bus:
    """Chips by address; SMBus words come with their bytes swapped."""

    def __init__(self, chips: dict[int, dict[int, int]]) -> None:
        self.chips, self.open, self.reads = chips, True, 0

    def read_word_data(self, address: int, register: int) -> int:
        self.reads += 1
        if address not in self.chips:
            raise OSError(121, "Remote I/O error")
        word = self.chips[address][register]
        return (word & 0xFF) << 8 | word >> 8

    def close(self) -> None:
        self.open = False


def ina219(volts: float, shunt_v: float, flags: int = 2) -> dict[int, int]:
    return {0x01: round(shunt_v / 10e-6) & 0xFFFF, 0x02: round(volts / 4e-3) << 3 | flags}


def ina226(volts: float, shunt_v: float) -> dict[int, int]:
    return {0x01: round(shunt_v / 2.5e-6) & 0xFFFF, 0x02: round(volts / 1.25e-3)}


def max17048(volts: float, percent: float, percent_per_h: float = 0.0, version: int = 0x0012) -> dict[int, int]:
    rate = round(percent_per_h / 0.208) & 0xFFFF
    return {0x02: round(volts / 78.125e-6), 0x04: round(percent * 256), 0x08: version, 0x16: rate}


def read(gauge: Gauge, chip: dict[int, int], capacity_j: float | None = None) -> dict[str, float | None]:
    seen = Gauges([gauge], capacity_j=capacity_j, bus=lambda number: Bus({0x42: chip, 0x36: chip, 0x40: chip})).read(
        0.0
    )
    known = {name: each.value for name, each in seen.readings.items() if each.value is not None}
    return known | {"external": seen.external_power}


def test_the_examples_of_the_datasheets() -> None:
    # INA219: 32 V and 320 mV are 8000 and 32000; -320 mV is 8300h (tables of both registers).
    assert measure(HAT, {0x02: 8000 << 3, 0x01: 0}.__getitem__) == Measured(32.0, 0.0)
    assert measure(HAT, {0x02: 8000 << 3, 0x01: 0xE0C0}.__getitem__) == pytest.approx((32.0, -8.0, None, None))
    # INA226: 7FFFh is 40.96 V; 1 mV over 2 mOhm is 0.5 A.
    chip = Gauge(kind="ina226", shunt_ohm=0.002)
    assert measure(chip, {0x02: 0x2570, 0x01: 400}.__getitem__) == pytest.approx((11.98, 0.5, None, None))
    # MAX17048: full scale of VCELL is 5.12 V.
    told = measure(Gauge(kind="max17048"), {0x02: 0xC000, 0x04: 0x5080, 0x08: 0x11, 0x16: 0xFFF6}.__getitem__)
    assert told == pytest.approx((3.84, None, 0.80500, -10 * 0.208 / 100 / 3600), abs=1e-6, nan_ok=False)


def test_a_hat_that_discharges_tells_charge_power_and_that_it_is_alone() -> None:
    told = read(HAT, ina219(7.68, -0.010))
    assert told == pytest.approx(
        {
            "battery_v": 7.68,
            "battery_drawn_a": 1.0,
            "power_w": 7.68,
            "battery_frac": told["battery_frac"],
            "external": 0,
        }
    )
    assert told["external"] is False
    # 3.84 V under 1 A is 3.89 V at rest; the curve is stretched from 3.27..4.20 to 3.2..4.2.
    at_v = 3.27 + (3.89 - 3.2) * 0.93
    assert told["battery_frac"] == pytest.approx(0.6 + 0.1 * (at_v - 3.87) / 0.08)


def test_a_hat_that_charges_draws_nothing() -> None:
    told = read(HAT, ina219(8.0, 0.010))
    assert told["external"] is True and "power_w" not in told
    backwards = Gauge(kind="ina219", address=0x42, shunt_ohm=0.01, cells=2, charging_positive=False)
    assert read(backwards, ina219(8.0, 0.010))["external"] is False


def test_next_to_no_current_says_nothing_of_the_charger() -> None:
    assert read(HAT, ina219(8.0, 0.0001))["external"] is None


@pytest.mark.parametrize("volts", [0.0, 0.0076, 3.8, 5.9, 8.6, 11.4, 26.0])
def test_packs_that_cannot_be_are_not_believed(volts: float) -> None:
    """A lost bus, a bus of mV, one cell too few or too many."""
    assert read(HAT, ina219(volts, -0.01)) == {"external": None}


@given(st.integers(1, 6), st.integers(1, 6), st.floats(3.2, 4.2))
def test_a_wrong_number_of_cells_is_no_full_battery_and_mostly_nothing(real: int, said: int, cell_v: float) -> None:
    gauge = Gauge(kind="ina219", shunt_ohm=0.1, cells=said)
    seen = judge(gauge, Measured(real * cell_v, -0.5))
    if real / said >= 4 / 3 and cell_v > 3.3:
        assert seen.readings == {}
    if real / said <= 2 / 3:
        assert seen.readings == {}, "not even one that is empty"


@pytest.mark.parametrize("chip", [ina219(7.6, -0.01, flags=3), ina219(7.6, -0.32), ina219(7.6, 0.3199)])
def test_a_chip_out_of_its_range_says_nothing(chip: dict[int, int]) -> None:
    assert read(HAT, chip) == {"external": None}


def test_a_supply_tells_power_and_no_charge() -> None:
    gauge = Gauge(kind="ina226", shunt_ohm=0.01, measures="supply")
    assert read(gauge, ina226(5.1, 0.008)) == pytest.approx({"supply_v": 5.1, "power_w": 4.08, "external": None})


def test_a_fuel_gauge_knows_the_charge_and_its_rate() -> None:
    gauge = Gauge(kind="max17048")
    told = read(gauge, max17048(3.9, 62.5, -10.4), capacity_j=36_000.0)
    assert told == pytest.approx(
        {"battery_v": 3.9, "battery_frac": 0.625, "power_w": 0.104 * 36_000 / 3600, "external": False}, abs=1e-4
    )
    assert read(gauge, max17048(3.9, 62.5, 10.4))["external"] is True
    assert read(gauge, max17048(4.2, 101.5))["battery_frac"] == 1.0
    assert read(gauge, max17048(3.9, 62.5, -10.4, version=0x0003))["external"] is None, "the older ones have no rate"


def test_two_cells_of_a_max17049_are_both_counted() -> None:
    assert read(Gauge(kind="max17048", cells=2), max17048(3.9, 50.0))["battery_v"] == pytest.approx(7.8, abs=1e-3)


@given(st.floats(2.0, 5.0), st.floats(0.0, 0.5))
def test_more_volts_are_never_less_charge(cell_v: float, more_v: float) -> None:
    assert 0.0 <= charge_frac(cell_v) <= charge_frac(cell_v + more_v) <= 1.0


def test_the_curve_goes_through_its_points_and_through_both_ends_that_are_configured() -> None:
    assert [charge_frac(volts) for volts, _ in CURVE] == pytest.approx([charge for _, charge in CURVE])
    assert charge_frac(3.0, 3.0, 3.65) == 0.0 and charge_frac(3.65, 3.0, 3.65) == 1.0
    assert charge_frac(3.5, 4.0, 4.0) == 0.0 and charge_frac(4.1, 4.0, 4.0) == 1.0


def test_a_chip_that_does_not_answer_is_unknown_says_why_and_is_asked_again() -> None:
    bus = Bus({})
    found = Gauges([HAT], bus=lambda number: bus)
    told = found.read(0.0).readings
    assert list(told) == ["battery_frac"] and told["battery_frac"].value is None
    assert told["battery_frac"].source.startswith("ina219 at i2c-1 0x42: OSError: [Errno 121] Remote I/O error")
    assert "Remote I/O error" in found.facts()["ina219 at i2c-1 0x42"]
    bus.chips[0x42] = ina219(7.6, -0.01)
    told = found.read(1.0).readings["battery_v"]
    assert (told.value, told.source) == (pytest.approx(7.6), "ina219 at i2c-1 0x42")
    assert found.facts()["ina219 at i2c-1 0x42"] == "answers"
    found.close()
    assert not bus.open


def test_a_bus_that_is_not_there_is_left_alone_for_a_while_and_tried_again() -> None:
    tried = []

    def missing(number: int) -> Any:
        tried.append(number)
        if len(tried) == 1:
            raise FileNotFoundError(2, "No such file or directory: '/dev/i2c-1'")
        return Bus({0x42: ina219(7.6, -0.01)})

    found = Gauges([HAT], bus=missing)
    for turn in range(20):
        assert found.read(float(turn)).readings["battery_frac"].value is None
    assert tried == [1]
    assert "No such file" in found.facts()["ina219 at i2c-1 0x42"]
    for turn in range(20, 40):
        found.read(float(turn))
    assert tried == [1, 1] and found.facts()["ina219 at i2c-1 0x42"] == "answers"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smbus2", None)
    found = Gauges([HAT])
    assert found.read(0.0).readings["battery_frac"].value is None
    assert "pip install edgert[i2c]" in found.facts()["ina219 at i2c-1 0x42"]


def test_the_package_is_only_imported_when_a_gauge_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("smbus2")
    package.SMBus = lambda number: Bus({0x42: ina219(7.6, -0.01)})  # type: ignore[attr-defined]  # it is made here
    monkeypatch.setitem(sys.modules, "smbus2", package)
    assert not hasattr(gauges, "smbus2")
    assert Gauges([HAT]).read(0.0).readings["battery_v"].value == pytest.approx(7.6)


def test_a_chip_that_fails_leaves_it_to_the_other() -> None:
    other = Gauge(kind="ina219", address=0x43, shunt_ohm=0.01, cells=2)
    for chip in (0x42, 0x43):
        bus = Bus({chip: ina219(7.6, -0.01)})
        seen = Gauges([HAT, other], bus=lambda number, bus=bus: bus).read(0.0)
        assert seen.readings["battery_frac"].source == f"ina219 at i2c-1 0x{chip:02x}"


def test_of_two_chips_the_first_one_counts() -> None:
    supply = Gauge(kind="ina226", address=0x41, shunt_ohm=0.01, measures="supply")
    bus = Bus({0x42: ina219(7.6, -0.01), 0x41: ina226(5.0, 0.005)})
    for order, power_w in (([HAT, supply], 7.6), ([supply, HAT], 2.5)):
        seen = Gauges(order, bus=lambda number: bus).read(0.0)
        assert seen.readings["power_w"].value == pytest.approx(power_w)
        assert seen.readings["battery_v"].value == pytest.approx(7.6)
        assert seen.external_power is False
