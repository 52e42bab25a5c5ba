"""What the machine knows of the time: whether anybody has set its clock, and when it was started."""

from __future__ import annotations

import ctypes
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RTC = Path("/sys/class/rtc")
RELEASED_S = 1_795_219_200.0
"""2026-11-21: no part of this was there before, so no clock that shows less is right."""
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5
_libc = ctypes.CDLL(None, use_errno=True)


class _Timex(ctypes.Structure):
    """The beginning of struct timex (adjtimex(2)); the kernel writes 208 bytes at most, on 64 bits."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def synced() -> bool | None:
    """Has a time service set the clock, and does it still vouch for it?

    Returns:
        None where the kernel does not say: a container may be forbidden to ask.
    """
    timex = _Timex()
    state = _libc.adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC


def boot_id() -> str:
    """Which start of the machine this is; empty where nobody says."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def has_rtc() -> bool:
    """Has the board a clock that goes on while it is off?"""
    return any(RTC.glob("rtc*"))
