"""One contract on the tree of every kind of board that `tests/boards` has, and on the simulated one."""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgert.ports.board.linux import LinuxBoard
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import Scenario
from edgert.ports.board.simulated import SimulatedBoard
from edgert.values import Reading, Readings, Throttle

TREES = sorted((Path(__file__).parents[2] / "boards").glob("*.tree"))
LATER_S = 100.0  # everything is due again, and what there is is looked for anew
BOUNDS = {"_frac": (0.0, 1.0), "_c": (-40.0, 150.0), "_w": (0.0, 1000.0), "_v": (0.0, 100.0), "_dbm": (-120.0, 0.0)}
GARBAGE = (b"", b"\n", b"\xff\xfe\x00", b"nan", b"-1", b"9" * 5000, b"0", b"cpu\ncpu0 x\nsome avg10=\nTcp:\nTcp:\n:")


def unpack(tree: Path, root: Path) -> None:
    """Make the files of a tree: `path = text`, `path <<` and indented lines, `path !` for one that cannot be read."""
    path: Path | None = None
    for line in tree.read_text().splitlines():
        if line.startswith("  ") and path is not None:
            with path.open("a") as file:
                file.write(line[2:] + "\n")
            continue
        path = None
        if line.startswith("#") or not line:
            continue
        name, kind, text = next(line.partition(mark) for mark in (" = ", " <<", " !") if mark in line)
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == " !":
            target.mkdir()  # reading a folder fails, as a file of a powered-down sensor does
        elif kind == " <<":
            path = target
            path.write_text("")
        else:
            target.write_text(text.replace("\\0", "\0") + "\n")


def work(root: Path, busy: int = 60, idle: int = 40) -> None:
    """Let the cores tick on, all of them as busy."""
    stat = root / "proc/stat"
    if not stat.exists():
        return
    lines = []
    for line in stat.read_text().splitlines():
        words = line.split()
        if line.startswith("cpu"):
            words[1], words[4] = str(int(words[1]) + busy), str(int(words[4]) + idle)
        lines.append(" ".join(words))
    stat.write_text("\n".join(lines) + "\n")


def look(root: Path, **options: Any) -> tuple[LinuxBoard, Readings]:
    """A board after its second look, between which its cores worked."""
    board = LinuxBoard(str(root), **options)
    board.read(0.0)
    work(root)
    return board, board.read(LATER_S)


def opened() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def every(readings: Readings) -> dict[str, Reading]:
    fields = {f.name: getattr(readings, f.name) for f in msgspec.structs.fields(Readings) if f.type is Reading}
    return {**fields, **readings.detail}


def check(readings: Readings) -> None:
    for name, each in every(readings).items():
        assert each.age_s >= 0.0 and math.isfinite(each.age_s), name
        if each.value is None:
            continue
        assert math.isfinite(each.value) and each.source, name
        low, high = next((ends for unit, ends in BOUNDS.items() if name.endswith(unit)), (-math.inf, math.inf))
        assert low <= each.value <= high, (name, each)
    assert readings.throttle is None or isinstance(readings.throttle, Throttle)


@pytest.fixture(params=TREES, ids=lambda tree: tree.stem)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    unpack(request.param, tmp_path)
    return tmp_path


def test_there_is_a_tree_of_every_kind_of_board_and_it_says_what_it_is_made_of() -> None:
    names = {"raspberry-pi-3b-plus", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2w", "jetson-nano"}
    names |= {"jetson-orin-nano", "x86-laptop", "generic-aarch64", "nothing"}
    assert {tree.stem for tree in TREES} == names
    for tree in TREES:
        head = tree.read_text().partition("\nproc/")[0]
        assert tree.stem == "nothing" or "Not recorded" in head, tree


HEADLINES: dict[str, dict[str, object]] = {
    "raspberry-pi-3b-plus": {
        "temp_c": 61.224,
        "freq_frac": 1200 / 1400,
        "memory_available_bytes": 600_000 * 1024,
        "throttle": Throttle(("soft-temp-limit",), ("soft-temp-limit",)),
        "cpu_pressure_frac": None,
        "trip_c": None,
        "power_w": None,
        "rssi_dbm": None,
        "metered": None,
    },
    "raspberry-pi-4": {
        "temp_c": 48.312,
        "freq_frac": 1.0,
        "throttle": Throttle(("under-voltage", "throttled"), ("under-voltage", "throttled")),
        "rssi_dbm": -56.0,
    },
    "raspberry-pi-5": {
        "temp_c": 62.15,
        "trip_c": None,
        "throttle": Throttle(),
        "cpu_pressure_frac": 0.125,
        "memory_pressure_frac": 0.0,
        "detail.io_pressure_frac": 0.01,
        "detail.pwm_fan_0_cooling_frac": 0.5,
    },
    "raspberry-pi-zero-2w": {"temp_c": 55.844, "freq_frac": 0.7, "rssi_dbm": None, "detail.policy0_cap_hz": 7e8},
    "jetson-nano": {
        "temp_c": 41.5,
        "trip_c": 97.0,
        "power_w": 2.487,
        "throttle": None,
        "detail.rail_pom_5v_cpu_w": 0.561,
        "detail.rail_pom_5v_gpu_w": None,
        "detail.power_mode": 1.0,
        "detail.pmic_die_temp_c": None,
    },
    "jetson-orin-nano": {
        "temp_c": 52.281,
        "trip_c": 95.0,
        "power_w": 4.944,
        "freq_frac": 729_600 / 1_728_000,
        "detail.rail_vdd_soc_w": 4.936 * 0.304,
        "detail.cv0_thermal_temp_c": None,
        "detail.power_mode": 0.0,
        "detail.pwm_fan_0_cooling_frac": 1 / 3,
    },
    "x86-laptop": {
        "temp_c": 58.0,
        "trip_c": None,
        "battery_frac": 0.5,
        "power_w": 6.5,
        "external_power": False,
        "freq_frac": 1500 / 4000,
        "memory_pressure_frac": 0.02,
        "metered": True,
        "detail.battery_v": 11.4,
        "detail.bat1_v": 11.1,
        "detail.battery_full_j": 40 * 3600.0,
    },
    "generic-aarch64": {
        "temp_c": 57.777,
        "trip_c": 70.0,
        "battery_frac": 0.63,
        "power_w": None,
        "external_power": True,
        "freq_frac": 1200 / 1800,
        "metered": True,
    },
    "nothing": {"temp_c": None, "load_frac": None, "throttle": None, "external_power": None, "metered": None},
}


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.stem)
def test_what_a_board_tells_is_what_is_written_there(tree: Path, tmp_path: Path) -> None:
    unpack(tree, tmp_path)
    _, readings = look(tmp_path, has_battery=True)
    told = every(readings)
    expected = dict(HEADLINES[tree.stem])
    if tree.stem != "nothing":
        expected["load_frac"] = 0.6
        expected["detail.core0_load_frac"] = 0.6
    for name, wanted in expected.items():
        key = name.removeprefix("detail.")
        found = getattr(readings, key) if hasattr(readings, key) else told.get(key, Reading(None))
        value = found.value if isinstance(found, Reading) else found
        assert value == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), name


def test_every_known_value_is_possible_has_an_age_and_says_where_it_comes_from(root: Path) -> None:
    board = LinuxBoard(str(root), has_battery=True)
    for now_s in (0.0, 0.1, 1.0, 1.0, 0.5, 30.0, 1e6):
        work(root)
        check(board.read(now_s))
    assert board.facts()["model"] == board.name


def test_the_simulated_board_keeps_the_same_contract() -> None:
    board = SimulatedBoard(Model(capacity_j=1000.0), Scenario(name="calm"), demand=lambda now_s: 2.0)
    for now_s in (0.0, 0.1, 1.0, 1.0, 0.5, 30.0, 1e6):
        check(board.read(now_s))


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda text: repr(text[:12]))
def test_nonsense_in_every_file_is_borne_and_passes(root: Path, garbage: bytes) -> None:
    board, before = look(root, has_battery=True)
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for path in files:
        path.write_bytes(garbage)
    check(board.read(2 * LATER_S))
    check(LinuxBoard(str(root), has_battery=True).read(0.0))
    for path, text in files.items():
        path.write_bytes(text)
    check(board.read(3 * LATER_S))
    after = board.read(4 * LATER_S)
    for name in ("temp_c", "battery_frac", "power_w", "rssi_dbm", "trip_c"):
        assert getattr(after, name).value == getattr(before, name).value, name


@pytest.mark.parametrize("seed", range(5))
def test_nonsense_in_some_files_is_borne(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    board = LinuxBoard(str(root), has_battery=True)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for turn in range(4):
        for path in files:
            if rng.random() < 0.2:
                path.write_bytes(rng.choice(GARBAGE))
        check(board.read(turn * LATER_S))


def test_errors_of_the_kernel_are_unknown_and_pass(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, before = look(root, has_battery=True)
    real: Callable[..., bytes] = os.pread

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    readings = board.read(2 * LATER_S)
    check(readings)
    told = (readings.load_frac, readings.temp_c, readings.battery_frac, readings.freq_frac)
    assert all(each.value is None for each in told), "a value nobody could read is not the last one"
    monkeypatch.setattr(os, "pread", real)
    assert board.read(3 * LATER_S).temp_c == before.temp_c


def test_what_vanishes_is_unknown_and_is_there_again_when_it_comes_back(root: Path, tmp_path: Path) -> None:
    board, before = look(root, has_battery=True)
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    shutil.move(root, aside)
    gone = board.read(2 * LATER_S)
    check(gone)
    assert gone.temp_c.value is None and gone.battery_frac.value is None and gone.throttle is None
    shutil.move(aside, root)
    back = board.read(3 * LATER_S)
    assert (back.temp_c, back.battery_frac) == (before.temp_c, before.battery_frac)


def test_nothing_is_left_open_when_the_board_goes(root: Path) -> None:
    board, _ = look(root)
    held = opened()
    del board
    assert opened() < held or not (root / "proc").exists()
