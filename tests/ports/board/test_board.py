"""One contract for every board, fake or not, and whatever is the matter with its sensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert.config import Battery, Config, Device, Policy
from edgert.config import Board as BoardSection
from edgert.hardware import Gauge
from edgert.ports.board import Board, open_board
from edgert.ports.board.linux import LinuxBoard
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import Row, Scenario
from edgert.ports.board.simulated import BatteryBoard, SimulatedBoard
from edgert.values import Readings

RANGES = {
    "load_frac": (0.0, 1.0),
    "temp_c": (-40.0, 150.0),
    "battery_frac": (0.0, 1.0),
    "power_w": (0.0, 1e6),
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def healthy(root: Path) -> LinuxBoard:
    write(
        root,
        {
            "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 100 0 100 800 0 0 0 0 0 0\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": "37\n",
        },
    )
    return LinuxBoard(str(root), has_battery=True)


def absurd(root: Path) -> LinuxBoard:
    write(
        root,
        {
            "proc/stat": "cpu  -1 x \xff\n",
            "sys/class/thermal/thermal_zone0/type": "\n",
            "sys/class/thermal/thermal_zone0/temp": "9" * 4000,
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": "nan\n",
            "sys/class/hwmon": "a file where a folder should be",
        },
    )
    (root / "sys/class/thermal/thermal_zone1/temp").mkdir(parents=True)
    (root / "sys/class/power_supply/gone").symlink_to(root / "nowhere")
    (root / "sys/class/thermal/thermal_zone2").mkdir()
    (root / "sys/class/thermal/thermal_zone2/temp").write_bytes(b"\xff\xfe")
    return LinuxBoard(str(root), has_battery=True)


CELL = Model(capacity_j=10.0)
SILENT = Row(faults=tuple((name, "silent") for name in RANGES))

BOARDS: dict[str, Callable[[Path], Board]] = {
    "simulated": lambda root: SimulatedBoard(Model(), Scenario(name="calm"), demand=lambda now_s: 4.0),
    "simulated, load unknown": lambda root: SimulatedBoard(Model(), Scenario(name="calm"), demand=lambda now_s: None),
    "simulated on a battery": lambda root: SimulatedBoard(CELL, Scenario(name="calm"), demand=lambda now_s: 2.0),
    "simulated, silent": lambda root: SimulatedBoard(CELL, Scenario(name="silent", rows=(SILENT,))),
    "linux, healthy": healthy,
    "linux, absurd": absurd,
    "linux, nothing there": lambda root: LinuxBoard(str(root / "missing"), has_battery=True),
    "linux, this machine": lambda root: LinuxBoard(has_battery=True),
    "linux on a simulated battery": lambda root: BatteryBoard(healthy(root), CELL, Scenario(name="calm")),
}


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Board:
    return BOARDS[request.param](tmp_path)


def test_every_known_value_is_possible_and_every_age_is_too(board: Board) -> None:
    for now_s in (0.0, 1.0, 1.0, 0.5, 1e6, 2e6):
        readings = board.read(now_s)
        for name, (low, high) in RANGES.items():
            reading = getattr(readings, name)
            assert reading.value is None or low <= reading.value <= high
            assert reading.age_s >= 0.0
            assert math.isfinite(reading.age_s)


def test_the_link_is_not_the_boards(board: Board) -> None:
    assert board.read(0.0).link_rtt_s.value is None


def test_it_has_a_name_and_knows_what_it_runs_on(board: Board) -> None:
    assert board.name
    assert board.read(0.0).has_battery == board.read(1.0).has_battery


def config(board: BoardSection, battery: Battery) -> Config:
    return Config(device=Device(id="d"), policy=Policy(bundle="b"), board=board, battery=battery)


@pytest.mark.parametrize(
    ("kind", "battery", "temp_c", "charge_frac"),
    [
        ("linux", Battery(), 48.312, None),
        ("linux", Battery(kind="linux"), 48.312, 0.37),
        ("linux", Battery(kind="simulated", initial_frac=0.5), 48.312, 0.5),
        ("fake", Battery(), 32.0, None),
        ("fake", Battery(kind="simulated", initial_frac=0.5), 32.0, 0.5),
    ],
)
def test_open_board_builds_what_the_configuration_names(
    tmp_path: Path, kind: str, battery: Battery, temp_c: float, charge_frac: float | None
) -> None:
    healthy(tmp_path)
    section = BoardSection(kind="fake" if kind == "fake" else "linux", sysfs_root=str(tmp_path))
    readings = open_board(config(section, battery)).read(0.0)
    assert readings.temp_c.value == pytest.approx(temp_c)
    assert readings.battery_frac.value == charge_frac
    assert readings.has_battery == (battery.kind != "none")


def test_a_fake_board_drains_with_the_real_load(tmp_path: Path) -> None:
    battery = Battery(kind="simulated", capacity_j=1000.0, idle_w=1.0, busy_w=9.0)
    healthy(tmp_path)
    board = open_board(config(BoardSection(kind="fake", sysfs_root=str(tmp_path)), battery))
    board.read(0.0)
    write(tmp_path, {"proc/stat": "cpu  200 0 100 800 0 0 0 0 0 0\n"})
    readings: Readings = board.read(10.0)
    assert readings.load_frac.value == pytest.approx(1.0)
    assert readings.power_w.value == pytest.approx(10.0)
    assert readings.battery_frac.value == pytest.approx(0.9, abs=0.02), "a cell gives less than it takes"


def test_gauges_and_the_metered_link_come_from_the_configuration(tmp_path: Path) -> None:
    healthy(tmp_path)
    gauges = (Gauge(kind="ina219", bus=254), Gauge(kind="ina226", bus=254, measures="supply"))
    section = BoardSection(sysfs_root=str(tmp_path), gauges=gauges, metered=True)
    runs = open_board(config(section, Battery(kind="gauge")))
    assert runs.read(0.0).has_battery and runs.read(0.0).metered is True
    assert isinstance(runs, LinuxBoard)
    assert {"ina219 at i2c-254 0x40", "ina226 at i2c-254 0x40"} <= set(runs.facts())
    mains = open_board(config(section, Battery()))
    assert isinstance(mains, LinuxBoard)
    assert not mains.read(0.0).has_battery
    assert "ina219 at i2c-254 0x40" not in mains.facts(), "nobody said that it runs on that battery"
