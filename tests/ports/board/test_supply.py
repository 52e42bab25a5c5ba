from __future__ import annotations

from pathlib import Path

import pytest

from edgert.ports.board.files import Files
from edgert.ports.board.pace import Seen
from edgert.ports.board.supply import Supplies

CLASS = "sys/class/power_supply"


def read(root: Path, **supplies: dict[str, str]) -> Seen:
    for name, files in supplies.items():
        folder = root / CLASS / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text + "\n")
    found = Supplies(Files(str(root)))
    found.scan()
    return found.read(0.0)


def battery(**files: str) -> dict[str, str]:
    return {"type": "Battery", **files}


def charge_frac(seen: Seen) -> float | None:
    return seen.readings["battery_frac"].value if "battery_frac" in seen.readings else None


def test_two_batteries_count_by_their_size(tmp_path: Path) -> None:
    big = battery(capacity="20", energy_full="30000000", energy_now="6000000")
    small = battery(capacity="100", energy_full="10000000", energy_now="10000000")
    seen = read(tmp_path, BAT0=big, BAT1=small)
    assert charge_frac(seen) == pytest.approx(0.4)
    assert seen.readings["battery_full_j"].value == pytest.approx(40 * 3600)
    assert seen.readings["battery_frac"].source.count("power_supply/BAT") == 2


def test_where_one_does_not_tell_its_size_they_count_alike(tmp_path: Path) -> None:
    seen = read(tmp_path, BAT0=battery(capacity="20", energy_full="30000000"), BAT1=battery(capacity="100"))
    assert charge_frac(seen) == pytest.approx(0.6)
    assert "battery_full_j" not in seen.readings


def test_a_size_in_ampere_hours_needs_a_voltage(tmp_path: Path) -> None:
    cell = battery(capacity="50", charge_full="2000000", voltage_min_design="3700000")
    assert read(tmp_path, BAT0=cell).readings["battery_full_j"].value == pytest.approx(2.0 * 3.7 * 3600)


@pytest.mark.parametrize(
    ("supplies", "external"),
    [
        ({}, None),
        ({"BAT0": battery(status="Unknown")}, None),
        ({"BAT0": battery(status="Discharging")}, False),
        ({"BAT0": battery(status="Charging")}, True),
        ({"BAT0": battery(status="Full")}, True),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": battery(status="Full")}, False),
        ({"AC": {"type": "Mains", "online": "1"}, "BAT0": battery(status="Discharging")}, True),
        ({"AC": {"type": "Mains", "online": "0"}, "usb": {"type": "USB_C", "online": "2"}}, True),
        ({"AC": {"type": "Mains", "online": "x"}, "BAT0": battery(status="Discharging")}, False),
        ({"mouse": {"type": "USB", "online": "1", "scope": "Device"}}, None),
        ({"BAT0": battery(status="Charging", present="0")}, None),
    ],
)
def test_whether_anything_feeds_it(tmp_path: Path, supplies: dict[str, dict[str, str]], external: bool | None) -> None:
    assert read(tmp_path, **supplies).external_power is external


def test_a_ups_is_a_battery_too(tmp_path: Path) -> None:
    seen = read(tmp_path, ups={"type": "UPS", "capacity": "70", "status": "Discharging", "power_now": "12000000"})
    assert charge_frac(seen) == pytest.approx(0.7)
    assert seen.readings["power_w"].value == pytest.approx(12.0)


def test_the_voltage_is_told(tmp_path: Path) -> None:
    seen = read(tmp_path, BAT0=battery(voltage_now="11400000"), BAT1=battery(voltage_now="3900000"))
    assert (seen.readings["battery_v"].value, seen.readings["bat1_v"].value) == pytest.approx((11.4, 3.9))
