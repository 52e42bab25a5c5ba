from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.ports.board.pace import CAP_S, TOTAL_FRAC, Probe, Seen
from edgert.values import Reading, Throttle


class Work:
    """A look that takes what it is told, on clocks of its own."""

    def __init__(self, cpu_s: float = 0.0, wall_s: float = 0.0) -> None:
        self.cost_s, self.wait_s = cpu_s, wall_s
        self.cpu_s = self.wall_s = 0.0
        self.looks = 0

    def probe(self, *, share: float = 1.0, period_s: float = 0.0, cap_s: float = CAP_S) -> Probe:
        return Probe(
            "work",
            self.look,
            share=share,
            period_s=period_s,
            cap_s=cap_s,
            cpu_s=lambda: self.cpu_s,
            wall_s=lambda: self.wall_s,
        )

    def look(self, now_s: float) -> Seen:
        self.looks += 1
        self.cpu_s += self.cost_s
        self.wall_s += self.cost_s + self.wait_s
        return Seen({"x_s": Reading(now_s, 0.0, "here")}, throttle=Throttle(), external_power=True, metered=False)


def test_between_two_looks_the_last_one_is_told_again_and_says_how_old_it_is() -> None:
    work = Work()
    probe = work.probe(period_s=5.0)
    assert probe.read(100.0).readings["x_s"] == Reading(100.0, 0.0, "here")
    again = probe.read(103.0)
    assert again.readings["x_s"] == Reading(100.0, 3.0, "here")
    assert (again.throttle, again.external_power, again.metered) == (Throttle(), True, False)
    assert probe.read(105.0).readings["x_s"].value == 105.0
    assert work.looks == 2


def test_a_look_that_comes_a_little_early_is_in_time() -> None:
    work = Work()
    probe = work.probe(period_s=1.0)
    for now_s in (0.0, 0.99, 1.97, 2.96):
        probe.read(now_s)
    assert work.looks == 4


def test_a_clock_that_runs_backwards_is_no_reason_to_wait() -> None:
    work = Work()
    probe = work.probe(period_s=5.0)
    probe.read(100.0)
    assert probe.read(50.0).readings["x_s"].value == 50.0


@settings(max_examples=30)
@given(st.floats(1e-6, 1e-3), st.floats(0.05, 1.0))
def test_a_probe_takes_no_more_than_its_share_whatever_it_costs(cpu_s: float, share: float) -> None:
    work = Work(cpu_s)
    probe = work.probe(share=share, cap_s=1e6)
    for turn in range(500):
        probe.read(turn * 0.1)
    begun_s, begun = work.cpu_s, probe.cost.looks
    for turn in range(500, 1500):
        probe.read(turn * 0.1)
    assert probe.cost.looks >= begun
    # Looks come every 0.1 s, one is in time from 90 % of its period on, and one may fall on either end.
    assert work.cpu_s - begun_s <= 100.0 * TOTAL_FRAC * share / 0.9 + 2 * cpu_s


def test_what_is_cheap_is_looked_at_every_time() -> None:
    work = Work(cpu_s=1e-6)
    probe = work.probe()
    for turn in range(100):
        probe.read(turn * 0.1)
    assert work.looks == 100


def test_a_slow_bus_is_asked_less_often_but_no_less_than_the_cap() -> None:
    work = Work(wall_s=0.05)
    probe = work.probe(cap_s=4.0)
    for turn in range(100):
        probe.read(float(turn))
    assert probe.cost.period_s == pytest.approx(4.0)
    assert work.looks == pytest.approx(25, abs=2)
    work.wait_s = 0.0
    for turn in range(100, 200):
        probe.read(float(turn))
    assert probe.cost.period_s == 0.0, "faster again, it is asked more often again"


def test_one_look_that_others_kept_waiting_does_not_slow_the_sensing_down() -> None:
    work = Work(wall_s=1e-4)
    probe = work.probe()
    for turn in range(10):
        probe.read(float(turn))
    work.wait_s = 0.05
    probe.read(10.0)
    work.wait_s = 1e-4
    assert probe.cost.period_s < 1.0


def test_the_first_look_opens_files_and_says_nothing_about_the_others() -> None:
    work = Work(cpu_s=1.0)
    probe = work.probe()
    probe.read(0.0)
    work.cost_s = 1e-6
    assert probe.cost.period_s == 0.0
    probe.read(1.0)
    assert (probe.cost.looks, probe.cost.cpu_s) == (2, pytest.approx(1e-6))


def test_a_period_is_never_below_the_one_that_was_given_even_above_the_cap() -> None:
    assert Work().probe(period_s=60.0, cap_s=10.0).cost.period_s == 60.0
