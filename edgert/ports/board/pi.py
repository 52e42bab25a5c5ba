"""What the firmware of a Raspberry Pi says about slowing the processor down.

Three ways to it. The mailbox asks the firmware itself and needs the group `video`. The file of sysfs holds what some
driver asked last: raspberrypi-hwmon does every 2 s, and without that driver the file, where there is one, stays at what
it was at boot. That driver also clears the firmware's memory each time it asks, so that "since boot" is short-lived
there; what was ever seen by this process is therefore kept. `vcgencmd` comes last, as it costs a process.
Kernels without any of it (mainline) have at least the under-voltage alarm of that driver.

Sources: raspberrypi/documentation, os/vcgencmd, `get_throttled` (the bits); raspberrypi/linux,
include/soc/bcm2835/raspberrypi-firmware.h (tags), drivers/char/broadcom/vcio.c (ioctl), drivers/firmware/raspberrypi.c
(the file), drivers/hwmon/raspberrypi-hwmon.c (the clearing).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct

from edgert.ports.board.files import Files, Program
from edgert.ports.board.pace import Seen
from edgert.values import Reading, Throttle

BITS = ("under-voltage", "freq-capped", "throttled", "soft-temp-limit")
"""Bit n is that it is so now, bit n + 16 that it was at some time."""

MAILBOX = "/dev/vcio"
_GET_THROTTLED = 0x0003_0046
_GET_CLOCK_MEASURED = 0x0003_0047
_CLOCK_ARM = 3
_STATUS_SUCCESS = 0x8000_0000
_IOCTL_PROPERTY = (3 << 30) | (struct.calcsize("P") << 16) | (100 << 8)
"""_IOWR(100, 0, char *)"""
_PROGRAM = ("vcgencmd", "get_throttled")
_PROGRAM_PERIOD_S = 30.0
_PLATFORM = "sys/devices/platform"


class Firmware:
    """Asks the firmware of a Raspberry Pi, and of nothing else.

    Attributes:
        source: the way that worked last; empty when none did.

    Blocks:
        A mailbox call takes well under a millisecond; the kernel gives up after one second.

    Thread:
        One at a time.
    """

    def __init__(self, files: Files) -> None:
        """Ask nothing yet.

        Args:
            files: of the machine.
        """
        self.source = ""
        self._files = files
        self._since_boot = 0
        self._paths: list[str] = []
        self._alarms: list[str] = []
        self._mailbox: int | None = None
        self._program: Program | None = None
        self._is_pi = False

    def __del__(self) -> None:
        if self._mailbox is not None:
            os.close(self._mailbox)

    @property
    def cpu_s(self) -> float:
        """CPU time of programs that were asked."""
        return 0.0 if self._program is None else self._program.cpu_s

    def scan(self) -> None:
        """Find out whether this is such a board, and which ways there are."""
        files = self._files
        self._is_pi = "raspberrypi," in (files.once("proc/device-tree/compatible") or "")
        if not self._is_pi:
            return
        self._paths = [
            f"{device}/get_throttled"
            for soc in files.names(_PLATFORM, "soc")
            for device in files.names(soc, "soc")
            if device.endswith(":firmware")
        ]
        chips = [chip for chip in files.names("sys/class/hwmon", "hwmon") if files.once(f"{chip}/name") == "rpi_volt"]
        self._alarms = [f"{chip}/in0_lcrit_alarm" for chip in chips]
        if files.real and self._mailbox is None:
            try:
                self._mailbox = os.open(MAILBOX, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                self._mailbox = None
        if files.real and self._program is None and shutil.which(_PROGRAM[0]) is not None:
            self._program = Program(_PROGRAM, period_s=_PROGRAM_PERIOD_S)

    def read(self, now_s: float) -> Seen:
        """The bits by name, and the clock that the cores really have where the mailbox tells it."""
        if not self._is_pi:
            return Seen()
        bits = self._bits(now_s)
        told = {}
        if self._mailbox is not None:
            clock = self._property(_GET_CLOCK_MEASURED, struct.pack("<II", _CLOCK_ARM, 0))
            hz = 0 if clock is None else struct.unpack("<II", clock)[1]
            if hz > 0:
                told["arm_clock_hz"] = Reading(float(hz), 0.0, f"{MAILBOX}, measured")
        return Seen(told) if bits is None else Seen(told, throttle=self._throttle(bits))

    def _throttle(self, bits: int) -> Throttle:
        self._since_boot |= (bits >> 16) | bits
        return Throttle(named(bits), named(self._since_boot))

    def _bits(self, now_s: float) -> int | None:
        if self._mailbox is not None:
            # The word that is sent names the bits to clear: none.
            answer = self._property(_GET_THROTTLED, bytes(4))
            if answer is not None:
                self.source = MAILBOX
                return int.from_bytes(answer, "little")
        for path in self._paths:
            bits = _hex(self._files.text(path))
            if bits is not None:
                self.source = self._files.source(path)
                return bits
        if self._program is not None:
            bits = _hex((self._program.look(now_s).text or "").partition("throttled=")[2])
            if bits is not None:
                self.source = " ".join(_PROGRAM)
                return bits
        for path in self._alarms:
            # That it is not on says nothing about the other bits: unknown, unless something was seen before.
            alarm = self._files.number(path)
            if alarm == 1 or (alarm == 0 and self._since_boot):
                self.source = self._files.source(path)
                return int(alarm)
        self.source = ""
        return None

    def _property(self, tag: int, value: bytes) -> bytes | None:
        """One property call: size, request, (tag, size of value, request, value), end; all words are 32 bit."""
        if self._mailbox is None:
            return None
        message = bytearray(struct.pack("<IIIII", 24 + len(value), 0, tag, len(value), 0) + value + bytes(4))
        try:
            fcntl.ioctl(self._mailbox, _IOCTL_PROPERTY, message, True)
        except OSError:
            return None
        status = int.from_bytes(message[4:8], "little")
        return bytes(message[20 : 20 + len(value)]) if status == _STATUS_SUCCESS else None

    def facts(self) -> dict[str, str]:
        """Where the bits come from, for people."""
        if not self._is_pi:
            return {}
        return {"throttling": self.source or "the firmware cannot be asked: neither mailbox, file, nor vcgencmd"}


def named(bits: int) -> tuple[str, ...]:
    """Names of the conditions in the lower 16 bits; those that have none yet are left out."""
    return tuple(name for bit, name in enumerate(BITS) if bits >> bit & 1)


def _hex(text: str | None) -> int | None:
    try:
        bits = int(text or "", 16)
    except ValueError:
        return None
    return bits if 0 <= bits <= 0xFFFF_FFFF else None
