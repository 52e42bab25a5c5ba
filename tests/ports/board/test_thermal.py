from __future__ import annotations

from pathlib import Path

import pytest

from edgert.ports.board.files import Files
from edgert.ports.board.thermal import Thermal, Trip

CLASS = "sys/class/thermal"


def zone(root: Path, number: int, kind: str, temp: int | str, trips: tuple[tuple[str, int], ...] = ()) -> Path:
    folder = root / CLASS / f"thermal_zone{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type").write_text(kind + "\n")
    (folder / "temp").write_text(f"{temp}\n")
    for index, (what, milli) in enumerate(trips):
        (folder / f"trip_point_{index}_type").write_text(what + "\n")
        (folder / f"trip_point_{index}_temp").write_text(f"{milli}\n")
    return folder / "temp"


def thermal(root: Path, only: str | None = None) -> Thermal:
    found = Thermal(Files(str(root)), only=only)
    found.scan()
    return found


def test_the_lowest_passive_trip_point_is_where_the_kernel_begins_to_slow_down(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", 50_000, (("critical", 100_000), ("active", 40_000), ("passive", 85_000)))
    zone(tmp_path, 1, "gpu-thermal", 51_000, (("passive", 80_000),))
    zone(tmp_path, 2, "iwlwifi_1", 60_000, (("passive", 45_000),))
    found = thermal(tmp_path)
    told = found.read(0.0).readings
    assert (told["trip_c"].value, told["trip_c"].source) == (80.0, "passive trip point of gpu-thermal")
    assert told["temp_c"].value == 51.0
    assert found.zones[0].trips == (Trip(40.0, "active"), Trip(85.0, "passive"), Trip(100.0, "critical"))
    assert found.facts()["zone gpu-thermal"] == "passive at 80"


def test_trip_points_that_nobody_set_are_none(tmp_path: Path) -> None:
    zone(tmp_path, 0, "x86_pkg_temp", 50_000, (("passive", 0), ("passive", -274_000)))
    assert "trip_c" not in thermal(tmp_path).read(0.0).readings


@pytest.mark.parametrize("kind", ["PMIC-Die", "thermal-fan-est", "iwlwifi_1", "nvme", "battery", "Tboard_tegra"])
def test_what_is_no_die_does_not_count(tmp_path: Path, kind: str) -> None:
    zone(tmp_path, 0, kind, 100_000)
    assert thermal(tmp_path).read(0.0).readings == {}
    assert thermal(tmp_path, only=kind).read(0.0).readings["temp_c"].value == 100.0


def test_of_many_zones_the_hottest_are_looked_at_each_time_and_the_others_in_turn(tmp_path: Path) -> None:
    temps = [zone(tmp_path, number, f"zone{number}", 40_000 + 1000 * number) for number in range(8)]
    found = thermal(tmp_path)
    assert found.read(0.0).readings["temp_c"].value == 47.0
    for temp in temps:
        temp.write_text("60000\n")
    told = found.read(1.0).readings
    assert sorted(name for name, each in told.items() if each.age_s == 0) == [
        "temp_c", "zone4_temp_c", "zone5_temp_c", "zone6_temp_c", "zone7_temp_c",
    ]  # fmt: skip
    assert told["zone1_temp_c"].value == 41.0 and told["zone1_temp_c"].age_s == 1.0
    for now_s in range(2, 7):
        told = found.read(float(now_s)).readings
    assert {each.value for each in told.values()} == {60.0}


def test_a_zone_that_becomes_the_hottest_unnoticed_is_found_within_a_round(tmp_path: Path) -> None:
    temps = [zone(tmp_path, number, f"zone{number}", 50_000 - 1000 * number) for number in range(8)]
    found = thermal(tmp_path)
    found.read(0.0)
    temps[7].write_text("90000\n")
    hottest = [found.read(1.0 + turn).readings["temp_c"].value for turn in range(5)]
    assert 90.0 in hottest


def test_when_a_zone_goes_silent_nothing_old_stands_for_it(tmp_path: Path) -> None:
    temps = [zone(tmp_path, number, f"zone{number}", 50_000 - 1000 * number) for number in range(8)]
    found = thermal(tmp_path)
    found.read(0.0)
    for temp in temps:
        temp.write_text("\n")
    assert found.read(100.0).readings == {}


def test_of_two_zones_of_one_name_the_hotter_is_shown(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu", 50_000)
    zone(tmp_path, 1, "cpu", 55_000)
    assert thermal(tmp_path).read(0.0).readings["cpu_temp_c"].value == 55.0


def test_cpu_chips_stand_in_when_no_zone_tells_anything(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", "")
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("k10temp\n")
    (chip / "temp1_input").write_text("63500\n")
    assert thermal(tmp_path).read(0.0).readings["temp_c"].value == 63.5


def test_cooling_devices_say_how_far_they_are_at_work(tmp_path: Path) -> None:
    for number, (kind, state, most) in enumerate((("Fan", "1", "4"), ("Processor", "0", "0"), ("LCD", "9", "4"))):
        folder = tmp_path / CLASS / f"cooling_device{number}"
        folder.mkdir(parents=True)
        for name, text in (("type", kind), ("cur_state", state), ("max_state", most)):
            (folder / name).write_text(text + "\n")
    told = thermal(tmp_path).cooling(0.0).readings
    assert {name: each.value for name, each in told.items()} == {"fan_0_cooling_frac": 0.25}
