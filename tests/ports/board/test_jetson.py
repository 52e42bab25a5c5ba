from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert.ports.board.files import Files
from edgert.ports.board.jetson import Jetson, modes

HWMON = "sys/class/hwmon/hwmon3"
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def jetson(root: Path, files: dict[str, str]) -> Jetson:
    write(root, files)
    found = Jetson(Files(str(root)))
    found.scan()
    return found


def values(found: Jetson) -> dict[str, float | None]:
    return {name: each.value for name, each in found.read(0.0).readings.items()}


def hwmon(channel: int, label: str, millivolt: str, milliampere: str, enable: str = "1") -> dict[str, str]:
    return {
        f"{HWMON}/name": "ina3221",
        f"{HWMON}/in{channel}_label": label,
        f"{HWMON}/in{channel}_enable": enable,
        f"{HWMON}/in{channel}_input": millivolt,
        f"{HWMON}/curr{channel}_input": milliampere,
    }


def test_rails_of_hwmon_are_volts_times_amperes(tmp_path: Path) -> None:
    files = hwmon(1, "VDD_IN", "5000", "1200") | hwmon(2, "VDD_SOC", "5000", "300") | hwmon(7, "sum", "9", "9")
    assert values(jetson(tmp_path, files)) == pytest.approx(
        {"rail_vdd_in_w": 6.0, "power_w": 6.0, "rail_vdd_soc_w": 1.5}
    )


@pytest.mark.parametrize(
    ("millivolt", "milliampere"),
    [("5000", "0"), ("0", "100"), ("5000", "-20"), ("5000", ""), ("", "1"), ("5000000", "1000000")],
)
def test_powers_that_cannot_be_are_unknown(tmp_path: Path, millivolt: str, milliampere: str) -> None:
    assert values(jetson(tmp_path, hwmon(1, "VDD_IN", millivolt, milliampere))) == {}


def test_channels_that_are_off_or_not_connected_are_no_rails(tmp_path: Path) -> None:
    files = hwmon(1, "NC", "5000", "100") | hwmon(2, "VDD_IN", "5000", "100", enable="0")
    assert jetson(tmp_path, files).rails == ()


def test_rails_of_iio_tell_milliwatts_or_else_both_factors(tmp_path: Path) -> None:
    files = {
        f"{IIO}/rail_name_0": "POM_5V_IN",
        f"{IIO}/in_power0_input": "2487",
        f"{IIO}/rail_name_2": "POM_5V_CPU",
        f"{IIO}/in_voltage2_input": "5000",
        f"{IIO}/in_current2_input": "100",
    }
    assert values(jetson(tmp_path, files)) == pytest.approx(
        {"rail_pom_5v_in_w": 2.487, "power_w": 2.487, "rail_pom_5v_cpu_w": 0.5}
    )


def test_without_a_rail_that_feeds_it_all_the_power_of_the_board_is_unknown(tmp_path: Path) -> None:
    assert "power_w" not in values(jetson(tmp_path, hwmon(1, "GPU", "5000", "100")))


CONF = "< POWER_MODEL ID=0 NAME=MAXN >\nx\n<POWER_MODEL ID=12 NAME=MODE_10W_2CORE>\n< PM_CONFIG DEFAULT=0 >\n"


def test_modes_have_names() -> None:
    assert modes(CONF) == {0: "MAXN", 12: "MODE_10W_2CORE"}


@pytest.mark.parametrize(
    ("status", "mode"), [("pmode:0012", 12.0), ("pmode:0000 fmode:quiet", 0.0), ("", None), ("pmode:", None)]
)
def test_the_mode_of_the_status_file(tmp_path: Path, status: str, mode: float | None) -> None:
    files = {"proc/device-tree/compatible": "nvidia,p3767\0nvidia,tegra234", "etc/nvpmodel.conf": CONF}
    found = jetson(tmp_path, files | {"var/lib/nvpmodel/status": status})
    told = found.mode(0.0).readings.get("power_mode")
    assert (None if told is None else told.value) == mode
    if mode == 12.0:
        assert found.facts()["power mode"] == "12 MODE_10W_2CORE"


def test_other_boards_have_no_power_mode(tmp_path: Path) -> None:
    found = jetson(tmp_path, {"var/lib/nvpmodel/status": "pmode:0001"})
    assert found.mode(0.0).readings == {}


def test_nvpmodel_is_asked_where_there_is_no_status_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\nprintf "NV Fan Mode:quiet\\nNV Power Mode: 15W\\n2\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(Files, "real", property(lambda self: True))
    found = jetson(tmp_path, {"proc/device-tree/compatible": "nvidia,p3450-0000\0nvidia,tegra210"})
    until(lambda: bool(found.mode(0.0).readings), "nvpmodel")
    told = found.mode(0.0).readings["power_mode"]
    assert (told.value, told.source) == (2.0, "nvpmodel -q")
