from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgert.ports.board import pi
from edgert.ports.board.files import Files
from edgert.ports.board.pi import Firmware, named
from edgert.values import Throttle

FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def firmware(root: Path, bits: str | None, compatible: str = "raspberrypi,4-model-b\0brcm,bcm2711") -> Firmware:
    (root / "proc/device-tree").mkdir(parents=True, exist_ok=True)
    (root / "proc/device-tree/compatible").write_text(compatible + "\0")
    if bits is not None:
        (root / FILE).parent.mkdir(parents=True, exist_ok=True)
        (root / FILE).write_text(bits + "\n")
    found = Firmware(Files(str(root)))
    found.scan()
    return found


@pytest.mark.parametrize(
    ("bits", "now", "since_boot"),
    [
        ("0", (), ()),
        ("1", ("under-voltage",), ("under-voltage",)),
        ("50000", (), ("under-voltage", "throttled")),
        ("50005", ("under-voltage", "throttled"), ("under-voltage", "throttled")),
        ("80008", ("soft-temp-limit",), ("soft-temp-limit",)),
        ("e0006", ("freq-capped", "throttled"), ("freq-capped", "throttled", "soft-temp-limit")),
        ("0x20002", ("freq-capped",), ("freq-capped",)),
    ],
)
def test_the_bits_by_name(tmp_path: Path, bits: str, now: tuple[str, ...], since_boot: tuple[str, ...]) -> None:
    found = firmware(tmp_path, bits)
    assert found.read(0.0).throttle == Throttle(now, since_boot)
    assert found.source == str(tmp_path / FILE)


def test_what_was_once_seen_stays_when_a_driver_clears_it(tmp_path: Path) -> None:
    found = firmware(tmp_path, "50005")
    found.read(0.0)
    (tmp_path / FILE).write_text("0\n")
    assert found.read(1.0).throttle == Throttle((), ("under-voltage", "throttled"))


@pytest.mark.parametrize("bits", [None, "", "zz", "-1", "1ffffffff", "80008 80008"])
def test_what_is_no_word_of_32_bits_says_nothing(tmp_path: Path, bits: str | None) -> None:
    found = firmware(tmp_path, bits)
    assert found.read(0.0).throttle is None
    assert "cannot be asked" in found.facts()["throttling"]


def test_the_alarm_of_a_kernel_that_has_nothing_else_tells_of_under_voltage(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon1"
    chip.mkdir(parents=True)
    (chip / "name").write_text("rpi_volt\n")
    (chip / "in0_lcrit_alarm").write_text("0\n")
    found = firmware(tmp_path, None)
    assert found.read(0.0).throttle is None, "nothing is known of the other bits"
    (chip / "in0_lcrit_alarm").write_text("1\n")
    assert found.read(1.0).throttle == Throttle(("under-voltage",), ("under-voltage",))
    (chip / "in0_lcrit_alarm").write_text("0\n")
    assert found.read(2.0).throttle == Throttle((), ("under-voltage",))
    assert found.source.endswith("in0_lcrit_alarm")


def test_other_boards_are_not_asked(tmp_path: Path) -> None:
    found = firmware(tmp_path, "1", compatible="pine64,pinebook-pro\0rockchip,rk3399")
    assert found.read(0.0).throttle is None
    assert found.facts() == {}


def test_bits_without_a_name_are_left_out() -> None:
    assert named(0xFFFF_FFF0) == ()


class Mailbox:
    """/dev/vcio, answering as the firmware does."""

    def __init__(self, bits: int = 0x50000, clock_hz: int = 600_000_000, status: int = 0x8000_0000) -> None:
        self.bits, self.clock_hz, self.status = bits, clock_hz, status
        self.cleared: list[int] = []

    def ioctl(self, fd: int, request: int, message: bytearray, mutate: bool) -> int:
        size, zero, tag, room, asked = struct.unpack_from("<IIIII", message)
        assert (size, zero, asked, mutate) == (len(message), 0, 0, True)
        assert request == 0xC0006400 | struct.calcsize("P") << 16
        assert message[20 + room :] == bytes(4), "the end tag"
        if tag == 0x00030046:
            self.cleared.append(struct.unpack_from("<I", message, 20)[0])
            answer = struct.pack("<I", self.bits)
        else:
            assert tag == 0x00030047 and struct.unpack_from("<I", message, 20)[0] == 3
            answer = struct.pack("<II", 3, self.clock_hz)
        message[4:8] = struct.pack("<I", self.status)
        message[20 : 20 + room] = answer
        return 0


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mailbox:
    """A firmware behind a device that is a file here; the tree is that of the machine itself."""
    device = tmp_path / "vcio"
    device.write_bytes(b"")
    box = Mailbox()
    monkeypatch.setattr(pi, "MAILBOX", str(device))
    monkeypatch.setattr(fcntl, "ioctl", box.ioctl)
    monkeypatch.setattr(Files, "real", property(lambda self: True))
    return box


def test_the_mailbox_is_asked_first_and_clears_nothing(tmp_path: Path, mailbox: Mailbox) -> None:
    found = firmware(tmp_path, "1")
    seen = found.read(0.0)
    assert seen.throttle == Throttle((), ("under-voltage", "throttled"))
    assert seen.readings["arm_clock_hz"].value == 6e8
    assert (found.source, mailbox.cleared) == (pi.MAILBOX, [0])


@pytest.mark.parametrize("how", ["error", "refused"])
def test_a_mailbox_that_fails_leaves_it_to_the_file(
    tmp_path: Path, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl")

    if how == "error":
        monkeypatch.setattr(fcntl, "ioctl", broken)
    else:
        mailbox.status = 0x8000_0001
    found = firmware(tmp_path, "2")
    assert found.read(0.0).throttle == Throttle(("freq-capped",), ("freq-capped",))
    assert found.source.endswith("get_throttled")


def test_vcgencmd_comes_last(
    tmp_path: Path, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(pi, "MAILBOX", str(tmp_path / "missing"))
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = firmware(tmp_path, None)
    until(lambda: found.read(0.0).throttle is not None, "vcgencmd")
    assert found.read(1.0).throttle == Throttle(("under-voltage", "throttled"), ("under-voltage", "throttled"))
    assert found.source == "vcgencmd get_throttled"
    assert found.cpu_s > 0.0
