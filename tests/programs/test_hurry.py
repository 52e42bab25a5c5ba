from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.programs import hurry
from edgert.programs.hurry import Hurry

PROBE = """
import select, selectors, threading, time
from edgert.ports import children
real = __import__("os").times
def took(wait):
    before, begun = time.monotonic(), real().elapsed
    wait()
    return time.monotonic() - before, real().elapsed - begun
print(took(lambda: time.sleep(20)))
print(took(lambda: select.poll().poll(20_000)))
print(took(lambda: select.select([], [], [], 20)))
print(took(lambda: selectors.DefaultSelector().select(20)))
print(time.time() - __import__("datetime").datetime.now().timestamp())
print(time.mktime(time.localtime()) - time.time(), time.strftime("%Y"))
"""


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@given(st.floats(1.0, 1000.0), st.floats(0.0, 500.0), st.floats(0.0, 500.0))
def test_time_never_runs_backwards_and_is_the_real_one_before(factor: float, before_s: float, after_s: float) -> None:
    clock = Clock()
    found = Hurry(factor, 100.0 + before_s, clock)
    assert found.monotonic() == 100.0 and found.ahead_s() == 0.0
    clock.now_s += before_s + after_s
    assert found.monotonic() - 100.0 == pytest.approx(before_s + factor * after_s)
    assert found.monotonic() == pytest.approx(clock.now_s + found.ahead_s())


@pytest.mark.parametrize(
    ("duration_s", "wanted_s"),
    [(0.0, 0.0), (5.0, 5.0), (10.0, 10.0), (110.0, 11.0), (0.001, 0.001)],
)
def test_a_wait_that_reaches_into_the_hurry_ends_when_its_clock_says_so(duration_s: float, wanted_s: float) -> None:
    clock = Clock()
    assert Hurry(100.0, 110.0, clock).real_s(duration_s) == pytest.approx(wanted_s)


def test_a_wait_that_would_only_spin_is_not_shortened_that_far() -> None:
    found = Hurry(100.0, 0.0, Clock())
    assert found.real_s(0.0005) == 0.0005
    assert found.real_s(0.1) == hurry.SHORTEST_S
    assert found.real_s(60.0) == 0.6


def test_a_process_that_is_started_so_hurries_in_all_that_it_waits_for(tmp_path: Path) -> None:
    set_so = hurry.environment(tmp_path, 400.0, 0.0, os.environ)
    command = [sys.executable, "-c", PROBE]
    told = subprocess.run(command, env={**os.environ, **set_so}, capture_output=True, text=True, check=False, cwd="/")
    assert told.returncode == 0, told.stderr
    *waits, wall, local = told.stdout.splitlines()
    for line in waits:
        by_its_clock_s, really_s = (float(word) for word in line.strip("()").split(","))
        assert by_its_clock_s >= 19.9 and really_s < by_its_clock_s / 10
    assert float(wall) > 3600.0  # hurrying since the machine was started
    assert abs(float(local.split()[0])) < 400 * 5.0


def test_nobody_else_hurries() -> None:
    before = time.monotonic, time.sleep, select.poll
    hurry.obey({"PATH": "/bin"})
    assert (time.monotonic, time.sleep, select.poll) == before
