"""What the machine says of its clock, as far as a test can know that."""

from __future__ import annotations

import ctypes

import pytest

from edgert.ports import clock


def test_the_kernel_is_asked_and_may_say_nothing(monkeypatch):
    assert clock.synced() in (True, False, None)

    class Libc:
        state, status = 0, 0

        def adjtimex(self, pointer):
            ctypes.cast(pointer, ctypes.POINTER(clock._Timex)).contents.status = self.status
            return self.state

    libc = Libc()
    monkeypatch.setattr(clock, "_libc", libc)
    for libc.state, libc.status, known in ((0, 0x2001, True), (0, 0x40, False), (5, 0, False), (-1, 0, None)):
        assert clock.synced() is known


def test_a_boot_has_a_name_that_stays(monkeypatch, tmp_path):
    assert clock.boot_id() == clock.boot_id()
    monkeypatch.setattr(clock, "BOOT_ID", tmp_path / "none")
    assert clock.boot_id() == ""


@pytest.mark.parametrize("names", [[], ["rtc0"]])
def test_a_clock_that_goes_on_is_found(monkeypatch, tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(clock, "RTC", tmp_path)
    assert clock.has_rtc() is bool(names)
