"""The arithmetic of `edgert bench`; the run itself is a benchmark, not a test."""

from __future__ import annotations

import os
from typing import Any

import pytest

from edgert.programs import bench


def status(up_s: float, ticks: int, steps: int, cpu_s: float) -> dict[str, Any]:
    actor = {
        "ticks": ticks, "missed": 1, "exits": [ticks // 2, ticks - ticks // 2], "cpu_s": cpu_s, "first_action_s": 1.25,
        "latency_p50_s": 300e-6, "latency_p99_s": 400e-6, "latency_max_s": 500e-6,
    }  # fmt: skip
    trainer, supervisor = {"steps": steps, "cpu_s": 2 * cpu_s}, {"cpu_s": cpu_s / 10}
    return {"up_s": up_s, "actor": actor, "actor_age_s": 0.5, "trainer": trainer, "supervisor": supervisor}


FIGURES = {"start_to_ready_s": 1.5} | bench.summarise(
    "breakout",
    0,
    status(10.0, 200, 250, 1.0),
    status(70.0, 1400, 1750, 2.5),
    {"actor": (72.0, 45.0), "supervisor": (31.0, 19.0), "trainer": None},
    {"p50_s": 280e-6, "p99_s": 390e-6, "max_s": 600e-6},
)


def test_figures_are_differences_over_the_window() -> None:
    assert FIGURES["decisions_hz"] == pytest.approx(20.0)
    assert FIGURES["train_steps_hz"] == pytest.approx(25.0)
    assert FIGURES["deadline_misses"] == 0
    assert FIGURES["exits"] == [600, 600]
    assert FIGURES["processes"]["actor"] == {"rss_mb": 72.0, "pss_mb": 45.0, "cpu_frac": 0.025}
    assert FIGURES["processes"]["trainer"]["rss_mb"] is None
    assert FIGURES["decision_over_bare_p50_us"] == pytest.approx(20.0)


def test_a_budget_that_is_not_kept_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: ok for name, (_, ok) in bench.verdicts(FIGURES).items()}
    assert kept.pop("supervisor RSS") is False and all(kept.values())
    bench.show(FIGURES)
    told = capsys.readouterr().out
    assert "NOT KEPT" in told and "decision" in told


def test_what_could_not_be_measured_is_shown_as_such_and_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    bench.show({**FIGURES, "start_to_ready_s": None})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("start to READY"))
    assert line.split()[-3:] == ["-", "NOT", "KEPT"]


def test_memory_of_a_process_and_of_one_that_is_gone() -> None:
    held = bench.memory(os.getpid())
    assert held is not None and held[0] >= held[1] > 1
    assert bench.memory(2**22 + 1) is None
