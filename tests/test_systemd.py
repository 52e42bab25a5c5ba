from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgert import cli
from edgert.config import Config, Device, Limits, Policy
from edgert.ports import children
from edgert.ports.board import pi
from edgert.ports.levers import NVPMODEL_S
from edgert.ports.process import Layout

UNITS = sorted((Path(__file__).parents[1] / "systemd").glob("*.service"))
DEVICE = next(unit for unit in UNITS if unit.name == "edgert.service")
SENSORS = Path(__file__).parents[1] / "systemd" / "edgert-sensors.conf"
HELPER = next(unit for unit in UNITS if unit.name == "edgert-limits.service")
RECOVERY = next(unit for unit in UNITS if unit.name == "edgert-recover.service")
SYSTEMD = DEVICE.parent
EXPOSURE_MAX = 20  # in tenths, as --threshold= counts
HELPER_EXPOSURE_MAX = 21  # root by its nature, with three capabilities left

named = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(unit: Path) -> dict[str, list[str]]:
    """Key -> its values, in order, over all sections."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def seconds(unit: Path, key: str) -> float:
    return float(settings(unit)[key][0])


@needs_systemd
@named
def test_systemd_finds_nothing_to_complain_about(unit: Path, tmp_path: Path) -> None:
    # The program is not installed here, a complaint too. A wrong value is one on stderr, with exit code 0.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/edgert/bin/edgert", "/bin/true"))
    told = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


@needs_systemd
@named
def test_the_sandbox_is_tight(unit: Path) -> None:
    most = HELPER_EXPOSURE_MAX if unit == HELPER else EXPOSURE_MAX
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(unit)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in told.stderr:
        pytest.skip("this systemd-analyze cannot look at a file: it is older than 250")
    assert told.returncode == 0, told.stdout


@named
def test_no_wrong_configuration_is_started_again(unit: Path) -> None:
    assert settings(unit)["RestartPreventExitStatus"] == [str(cli.BAD_CONFIG)]
    assert settings(unit)["Restart"] == ["on-failure"]


@named
def test_it_starts_a_verb_that_exists(unit: Path) -> None:
    (line,) = settings(unit)["ExecStart"]
    assert line.split()[0] == "/opt/edgert/bin/edgert"
    assert line.split()[1] in cli.VERBS


def test_the_defaults_of_the_configuration_are_the_folders_that_the_unit_makes() -> None:
    layout = Layout(Config(device=Device(id="x"), policy=Policy(bundle="x")))
    unit = settings(DEVICE)
    assert str(layout.state) == f"/var/lib/{unit['StateDirectory'][0]}"
    assert str(layout.run) == f"/run/{unit['RuntimeDirectory'][0]}"
    # Preserved, it would move below /run/private, where no other program could reach policy.sock.
    assert "RuntimeDirectoryPreserve" not in unit


def test_the_supervisor_has_time_to_stop_its_children() -> None:
    assert seconds(DEVICE, "TimeoutStopSec") > children.STOP_S
    # SIGTERM to all at once would end the actor before the supervisor could order anything; after a crash all must go.
    assert settings(DEVICE)["KillMode"] == ["mixed"]


def test_the_trainer_may_be_niced() -> None:
    refused = [value for value in settings(DEVICE)["SystemCallFilter"] if value.startswith("~")]
    assert not any("@resources" in value for value in refused)


def test_the_cpu_load_may_be_read() -> None:
    assert settings(DEVICE)["ProcSubset"] == ["all"]


def test_systemd_is_told_when_it_is_ready_and_that_it_progresses() -> None:
    assert settings(DEVICE)["Type"] == ["notify"]
    assert seconds(DEVICE, "WatchdogSec") == 30


def test_the_helper_may_do_what_it_is_there_for_and_nothing_else() -> None:
    unit, section = settings(HELPER), Limits()
    assert section.socket == f"/run/{unit['RuntimeDirectory'][0]}/limits.sock"
    assert section.state_dir == f"/var/lib/{unit['StateDirectory'][0]}"
    assert section.user == settings(DEVICE)["User"][0]
    assert unit["CapabilityBoundingSet"] == ["CAP_SYS_NICE CAP_CHOWN CAP_DAC_OVERRIDE"]
    assert unit["ReadWritePaths"] == ["-/sys/fs/cgroup -/sys/devices/system/cpu"]
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert seconds(HELPER, "TimeoutStopSec") > NVPMODEL_S


def test_the_drop_in_opens_the_devices_of_sensors_and_nothing_else() -> None:
    text = SENSORS.read_text()
    said = settings(SENSORS)
    assert said == {
        "PrivateDevices": ["no"],
        "DevicePolicy": ["closed"],
        "DeviceAllow": ["/dev/vcio rw"],
        "SupplementaryGroups": ["video"],
    }
    assert "#DeviceAllow=char-i2c rw" in text and "#SupplementaryGroups=i2c" in text
    assert settings(DEVICE)["PrivateDevices"] == ["yes"], "the unit itself stays tight"
    assert said["DeviceAllow"][0].split()[0] == pi.MAILBOX


@needs_systemd
def test_systemd_takes_the_drop_in_with_all_of_it_switched_on(tmp_path: Path) -> None:
    copy = tmp_path / DEVICE.name
    copy.write_text(DEVICE.read_text().replace("/opt/edgert/bin/edgert", "/bin/true"))
    folder = tmp_path / f"{DEVICE.name}.d"
    folder.mkdir()
    everything = re.sub(r"^#(?=[A-Z]\w+=)", "", SENSORS.read_text(), flags=re.MULTILINE)
    (folder / "sensors.conf").write_text(everything)
    told = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_a_crash_loop_is_counted_also_where_only_the_watchdog_ends_it() -> None:
    slowest_s = seconds(DEVICE, "StartLimitBurst") * (seconds(DEVICE, "RestartSec") + seconds(DEVICE, "WatchdogSec"))
    assert slowest_s < seconds(DEVICE, "StartLimitIntervalSec")


def test_after_a_crash_loop_the_recovery_starts_the_device_again() -> None:
    assert settings(DEVICE)["OnFailure"] == [RECOVERY.name]
    said = settings(RECOVERY)
    assert said["ExecStart"][0].split()[1] == "recover"
    assert [line.split()[-1] for line in said["ExecStartPost"]] == [DEVICE.name, DEVICE.name]
    assert "reset-failed" in said["ExecStartPost"][0] and "start" in said["ExecStartPost"][1]
    assert said["SuccessExitStatus"] == [str(cli.NOTHING_TO_DO)]
    for key in ("User", "DynamicUser", "StateDirectory", "StateDirectoryMode", "UMask"):
        assert said[key] == settings(DEVICE)[key], "it moves files that belong to the device's user"


def test_want_of_memory_ends_the_trainer_and_not_the_unit() -> None:
    assert settings(DEVICE)["OOMPolicy"] == ["continue"]


def test_the_groups_of_the_device_files_are_made() -> None:
    made = set(re.findall(r"^g (\S+)", (SYSTEMD / "edgert.sysusers").read_text(), re.MULTILINE))
    named = set(re.findall(r'GROUP="([^"]+)"', (SYSTEMD / "edgert.udev").read_text()))
    assert named <= made
