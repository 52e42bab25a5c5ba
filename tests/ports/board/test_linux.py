from __future__ import annotations

from pathlib import Path

import pytest

from edgert.hardware import Gauge
from edgert.ports.board.linux import LinuxBoard

ZONE = "sys/class/thermal/thermal_zone"
CELL = "sys/class/power_supply/BAT"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def cell(number: int = 0, **files: str) -> dict[str, str]:
    return {f"{CELL}{number}/{name}": text for name, text in {"type": "Battery", **files}.items()}


def temp_c(root: Path, files: dict[str, str], thermal_zone: str | None = None) -> float | None:
    write(root, files)
    return LinuxBoard(str(root), thermal_zone=thermal_zone).read(0.0).temp_c.value


def battery(root: Path, files: dict[str, str]) -> tuple[float | None, float | None]:
    write(root, files)
    readings = LinuxBoard(str(root), has_battery=True).read(0.0)
    return readings.battery_frac.value, readings.power_w.value


def test_load_is_the_busy_share_since_the_last_look(tmp_path: Path) -> None:
    board = LinuxBoard(str(tmp_path))
    write(tmp_path, {"proc/stat": "cpu  100 0 0 900 0 0 0 0 50 0"})
    assert board.read(0.0).load_frac.value is None
    write(tmp_path, {"proc/stat": "cpu  110 5 10 960 10 3 1 1 99 0"})
    assert board.read(1.0).load_frac.value == pytest.approx(0.3)


def test_load_of_no_time_is_the_last_one_grown_older(tmp_path: Path) -> None:
    board = LinuxBoard(str(tmp_path))
    for now_s, line in enumerate(["cpu 0 0 0 0", "cpu 50 0 0 50", "cpu 50 0 0 50"]):
        write(tmp_path, {"proc/stat": line})
        reading = board.read(float(now_s)).load_frac
    assert (reading.value, reading.age_s) == (0.5, 1.0)


def test_iowait_that_runs_backwards_stays_within_bounds(tmp_path: Path) -> None:
    board = LinuxBoard(str(tmp_path))
    for now_s, line in enumerate(["cpu 100 0 0 100 50", "cpu 110 0 0 100 45"]):
        write(tmp_path, {"proc/stat": line})
        reading = board.read(float(now_s)).load_frac
    assert reading.value == 1.0


def test_a_sensor_that_vanishes_is_unknown_and_back_when_it_is(tmp_path: Path) -> None:
    board = LinuxBoard(str(tmp_path), cpu_s=lambda: 0.0, wall_s=lambda: 0.0)  # a busy machine slows no probe down
    files = {f"{ZONE}0/type": "cpu-thermal", f"{ZONE}0/temp": "50000"}
    write(tmp_path, files)
    assert board.read(0.0).temp_c.value == 50.0
    (tmp_path / f"{ZONE}0/temp").unlink()
    assert board.read(1.0).temp_c.value is None
    write(tmp_path, files)
    assert board.read(2.0).temp_c.value == 50.0


@pytest.mark.parametrize(
    ("milli", "expected"),
    [
        ("45000", 45.0),
        ("-12500", -12.5),
        ("85000", 85.0),
        ("105000", 105.0),
        ("0", None),
        ("-274000", None),
        ("-273150", None),
        ("2147483647", None),
        ("", None),
        ("45.2", None),
    ],
)
def test_impossible_temperatures_are_unknown(tmp_path: Path, milli: str, expected: float | None) -> None:
    assert temp_c(tmp_path, {f"{ZONE}0/type": "cpu-thermal", f"{ZONE}0/temp": milli}) == expected


TWO_ZONES = {
    f"{ZONE}0/type": "cpu-thermal",
    f"{ZONE}0/temp": "50000",
    f"{ZONE}1/type": "gpu-thermal",
    f"{ZONE}1/temp": "60000",
    f"{ZONE}2/type": "PMIC-Die",
    f"{ZONE}2/temp": "100000",
}


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, 60.0), ("cpu-thermal", 50.0), ("PMIC-Die", 100.0), ("missing", None)]
)
def test_the_hottest_zone_counts_unless_one_is_named(
    tmp_path: Path, chosen: str | None, expected: float | None
) -> None:
    assert temp_c(tmp_path, TWO_ZONES, chosen) == expected


def test_hwmon_serves_where_there_is_no_thermal_zone(tmp_path: Path) -> None:
    files = {
        "sys/class/hwmon/hwmon0/name": "nvme",
        "sys/class/hwmon/hwmon0/temp1_input": "70000",
        "sys/class/hwmon/hwmon1/name": "coretemp",
        "sys/class/hwmon/hwmon1/temp1_input": "55000",
        "sys/class/hwmon/hwmon1/temp2_input": "57000",
        "sys/class/hwmon/hwmon1/temp2_crit": "100000",
    }
    assert temp_c(tmp_path, files) == 57.0


@pytest.mark.parametrize(
    ("files", "charge_frac"),
    [
        (cell(capacity="37"), 0.37),
        (cell(capacity="100", status="Full"), 1.0),
        (cell(capacity="0", status="Discharging", voltage_now="3300000"), 0.0),
        (cell(capacity="0", voltage_now="0"), None),
        (cell(capacity="0", status="Full"), None),
        (cell(capacity="0", status="Charging"), None),
        (cell(capacity="-1"), None),
        (cell(capacity="255"), None),
        (cell(capacity="37", present="0"), None),
        (cell(capacity="37", scope="Device"), None),
        (cell(charge_now="1500000", charge_full="6000000"), 0.25),
        (cell(energy_now="1", energy_full="0"), None),
        (cell(0, capacity="20") | cell(1, capacity="60"), 0.4),
        (cell(0, capacity="20") | cell(1), 0.2),
        ({f"{CELL}0/type": "Mains", f"{CELL}0/capacity": "50"}, None),
        ({}, None),
    ],
)
def test_charge(tmp_path: Path, files: dict[str, str], charge_frac: float | None) -> None:
    assert battery(tmp_path, files)[0] == (None if charge_frac is None else pytest.approx(charge_frac))


@pytest.mark.parametrize(
    ("files", "power_w"),
    [
        ({"power_now": "4500000"}, 4.5),
        ({"power_now": "-4500000"}, 4.5),
        ({"voltage_now": "3700000", "current_now": "-500000"}, 1.85),
        ({"voltage_now": "0", "current_now": "500000"}, None),
        ({"voltage_now": "3700000"}, None),
        ({"power_now": "0"}, None),
        ({"power_now": "4500000000000"}, None),
        ({"power_now": "4500000", "status": "Charging"}, None),
    ],
)
def test_power_is_what_a_discharging_battery_gives(
    tmp_path: Path, files: dict[str, str], power_w: float | None
) -> None:
    found = battery(tmp_path, cell(**{"status": "Discharging", **files}))[1]
    assert found == (None if power_w is None else pytest.approx(power_w))


def test_mains_boards_do_not_look_for_batteries(tmp_path: Path) -> None:
    write(tmp_path, cell(capacity="3"))
    readings = LinuxBoard(str(tmp_path)).read(0.0)
    assert (readings.has_battery, readings.battery_frac.value) == (False, None)


def test_name_is_the_device_trees_model(tmp_path: Path) -> None:
    assert LinuxBoard(str(tmp_path)).name == "linux"
    write(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"})
    assert LinuxBoard(str(tmp_path)).name == "NVIDIA Jetson Orin Nano"


def test_each_probe_says_what_it_takes_and_all_together_as_a_share_of_a_core(tmp_path: Path) -> None:
    cpu_s = 0.0

    def clock() -> float:
        nonlocal cpu_s
        cpu_s += 1e-4
        return cpu_s

    board = LinuxBoard(str(tmp_path), cpu_s=clock, wall_s=lambda: 0.0)
    assert board.cost_frac() is None
    assert "probe_core_frac" not in board.read(0.0).detail
    for now_s in range(1, 1001):
        readings = board.read(float(now_s))
    told = readings.detail["probe_core_frac"]
    assert told.value == board.cost_frac()
    assert 0.0 < (told.value or 0.0) < 0.01
    costs = board.costs()
    assert {"load", "thermal", "network"} <= set(costs)
    assert costs["memory"].looks < costs["load"].looks, "slow sensors are looked at less often"
    assert readings.cpu_pressure_frac.value is None


def test_a_gauge_at_the_battery_says_that_it_runs_on_one(tmp_path: Path) -> None:
    board = LinuxBoard(str(tmp_path), gauges=[Gauge(kind="ina219", bus=255)])
    readings = board.read(0.0)
    assert readings.has_battery and readings.battery_frac.value is None
    assert "ina219 at i2c-255 0x40" in board.facts()
    assert not LinuxBoard(str(tmp_path), gauges=[Gauge(kind="ina219", measures="supply")]).read(0.0).has_battery


def test_sensors_that_are_plugged_in_later_are_found(tmp_path: Path) -> None:
    board = LinuxBoard(str(tmp_path))
    assert board.read(0.0).temp_c.value is None
    write(tmp_path, {f"{ZONE}0/type": "cpu-thermal", f"{ZONE}0/temp": "50000"})
    assert board.read(61.0).temp_c.value == 50.0


def test_a_source_is_a_place_a_person_can_look_at(tmp_path: Path) -> None:
    write(tmp_path, {f"{ZONE}0/type": "cpu-thermal", f"{ZONE}0/temp": "50000"})
    assert LinuxBoard(str(tmp_path)).read(0.0).temp_c.source == str(tmp_path / f"{ZONE}0/temp")
