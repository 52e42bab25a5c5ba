from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from edgert import cli
from edgert.cli import board, setup
from edgert.config import parse
from edgert.hardware import Hardware
from edgert.ports import boardfile
from edgert.values import Reading, Throttle

HOUSE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def only_the_shipped_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boardfile, "folders", lambda: [HOUSE / "firmware_configs"])


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    """The root of a Raspberry Pi 4."""
    files = {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
        "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
        "proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "51200\n",
        "boot/firmware/cmdline.txt": "console=tty1 root=PARTUUID=1-02 rootwait\n",
        "boot/firmware/config.txt": "arm_64bit=1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_board_is_listed_and_one_of_them_is_this(capsys: pytest.CaptureFixture[str]) -> None:
    assert board.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all("\t" not in line and "\x1b" not in line for line in lines)
    assert board.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == {line.split()[0] for line in lines}


def test_it_shows_what_was_detected_and_why_and_what_is_missing(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert board.main(["show", "--root", str(pi)]) == 0
    said = capsys.readouterr().out
    for words in (
        "board    Raspberry Pi 4 Model B",
        'raspberry-pi-4: the device tree is compatible with "raspberrypi,4-model-b"',
        "throttled at 80 °C, hard at 85 °C, shut down at 90 °C",
        "51.2 °C",
        "power    3.1 W at rest, 3.1 W more when all cores are busy (of raspberry-pi-4.toml)",
        "zone cpu-thermal",
        "of a core, once in 1 s",
    ):
        assert words in said
    assert "battery_frac" in said.partition("missing")[2]
    assert "\x1b" not in said


def test_the_same_for_programs(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert board.main(["show", "--root", str(pi), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["board"] == {"name": "raspberry-pi-4", "title": "Raspberry Pi 4 Model B"}
    assert told["detected"]["model"] == "Raspberry Pi 4 Model B Rev 1.5"
    assert told["readings"]["temp_c"]["value"] == 51.2
    assert told["found"]["zone cpu-thermal"] == "no trip points"
    assert "mains" in told["missing"]["battery_frac"]
    assert set(told["readings"]) & set(told["missing"]) == set()
    assert told["probe"]["core_frac"] >= 0


def test_a_rail_that_the_board_has_and_the_kernel_does_not_show_is_missed(
    pi: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert board.main(["show", "--root", str(pi), "--board", "jetson-orin-nano", "--json"]) == 0
    assert "ina3221" in json.loads(capsys.readouterr().out)["missing"]["VDD_IN"]


def test_a_dry_run_shows_a_diff_and_changes_nothing(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cmdline = pi / "boot/firmware/cmdline.txt"
    before = cmdline.read_text()
    assert board.main(["apply", "--dry-run", "--root", str(pi)]) == 0
    said = capsys.readouterr().out
    assert "+console=tty1 root=PARTUUID=1-02 rootwait edgert.begin psi=1 cgroup_enable=memory edgert.end" in said
    assert "dry run" in said
    assert "--with i2c" in said
    assert cmdline.read_text() == before


def test_a_board_without_the_files_is_not_one_that_is_set(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(pi / "boot")
    assert board.main(["apply", "--dry-run", "--root", str(pi)]) == 2
    said = capsys.readouterr().out
    assert "nothing to change: no file here to set pressure, memory-limit in" in said
    assert "as it should be" not in said


def test_files_of_another_machine_are_not_taken_for_this_processors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert board.main(["show", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no file knows a machine without a name (processor unknown)" in said and "a guess" in said
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/arch").write_text("aarch64\n")
    assert board.main(["show", "--root", str(tmp_path)]) == 0
    assert "generic-aarch64: no file knows this board" in capsys.readouterr().out


def test_it_applies_once_and_undoes(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cmdline, config = pi / "boot/firmware/cmdline.txt", pi / "boot/firmware/config.txt"
    before = cmdline.read_text(), config.read_text()
    assert board.main(["apply", "--root", str(pi), "--with", "i2c"]) == 0
    assert "psi=1" in cmdline.read_text() and "dtparam=i2c_arm=on" in config.read_text()
    assert board.main(["apply", "--root", str(pi), "--with", "i2c"]) == cli.NOTHING_TO_DO
    assert board.main(["apply", "--root", str(pi), "--undo"]) == 0
    assert (cmdline.read_text(), config.read_text()) == before
    assert board.main(["apply", "--root", str(pi), "--undo"]) == cli.NOTHING_TO_DO
    assert "reboot" in capsys.readouterr().out


def test_commands_are_told_and_not_run(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["apply", "--root", str(pi), "--board", "jetson-nano", "--only", "mode-5w"]
    assert board.main(arguments) == cli.NOTHING_TO_DO
    assert "to type: sudo nvpmodel -m 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["apply", "--only", "i2d"], "has no i2d"),
        (["apply", "--board", "pi"], "no board 'pi'"),
        (["show", "--board", "pi"], "there are"),
    ],
)
def test_wrong_names_are_configuration(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["board", *arguments]) == cli.BAD_CONFIG
    assert why in capsys.readouterr().err


def test_without_permission_it_is_refused_with_77(
    pi: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may everything
    before = (pi / "boot/firmware/cmdline.txt").read_text()
    assert cli.main(["board", "apply", "--root", str(pi)]) == cli.NOT_ALLOWED
    assert "run it as root" in capsys.readouterr().err
    assert (pi / "boot/firmware/cmdline.txt").read_text() == before


@pytest.mark.parametrize("name", sorted(boardfile.load_all([HOUSE / "firmware_configs"])))
def test_init_starts_from_a_boards_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "edgert.toml"
    assert setup.init(["--path", str(path), "--board", name, "--device", "d-1"]) == 0
    config = parse(path.read_text(), "edgert.toml")
    shipped = parse((HOUSE / f"firmware_configs/{name}.toml").read_text(), name)
    assert (config.device.id, config.board, config.govern) == ("d-1", shipped.board, shipped.govern)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("load_frac", 0.25, "25.0%"),
        ("temp_c", 51.25, "51.2 °C"),
        ("power_w", 3.456, "3.46 W"),
        ("cpu0_hz", 1.8e9, "1800 MHz"),
        ("link_bytes_per_s", 100.0, "100.0 B/s"),
        ("power_mode", 2.0, "2"),
        ("temp_c", None, "-"),
    ],
)
def test_values_are_shown_in_the_unit_of_their_name(name: str, value: float | None, words: str) -> None:
    assert board.shown(name, Reading(value)).replace(" %", "%") == words


def test_what_the_firmware_says_is_one_line() -> None:
    assert board.throttled(Throttle()) == "now nothing; since boot nothing"
    assert board.throttled(Throttle(("throttled",), ("under-voltage",))) == "now throttled; since boot under-voltage"


def test_a_board_of_which_nothing_is_known_says_so() -> None:
    files = boardfile.load_all([HOUSE / "firmware_configs"])
    hardware: Hardware = files["generic-aarch64"].hardware
    assert board.heat(hardware) == "not known"
