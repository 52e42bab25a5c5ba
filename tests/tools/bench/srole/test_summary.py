from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.bench.srole import cells, draw, summary
from tools.bench.srole.cells import Cell

CELL = Cell("simgrid", 10, 0.7, 5.0, 15.0, ())


def row(arm: str, seed: int, mean_s: float, **counts: float) -> dict[str, Any]:
    told = dict.fromkeys(("collisions", "overloads", "messages"), 0.0) | counts
    return {
        "cell": CELL._asdict(),
        "arm": arm,
        "seed": seed,
        "mean_s": mean_s,
        "median_s": mean_s / 2,
        "p95_s": 2 * mean_s,
        "goodput": 100 / mean_s,
        "counts": told,
        "use_median": {"cpu": 0.5, "memory": 0.2, "link": None},
        "use_mean": {"cpu": 0.5, "memory": 0.2, "link": 0.1},
        "decide_ms_median": 1.0,
        "replayed": [(10.0, 11.0), (10.0, 9.5)] if seed == 0 else [],
    }


ROWS = [
    each
    for seed in range(5)
    for each in (
        row("SROLE-C", seed, 50.0 + seed),
        row("MARL", seed, 100.0 + 2 * seed, collisions=4.0, overloads=9.0),
        row("HEFT", seed, 60.0),
        row("HEFT + shield", seed, 55.0 + (30 if seed == 0 else 0)),
        row("random + shield", seed, 200.0),
    )
]


def test_ratios_are_of_pairs_and_the_best_heuristic_is_that_of_the_mean() -> None:
    found = summary.summarise(ROWS, [], [], {"time_vs_marl": 0.4})
    assert found["time_vs_marl"] == [0.5, 0.5, 0.5]
    assert summary.best_heuristic(ROWS) == {cells.name(CELL): "HEFT"}
    assert found["time_vs_best_heuristic"][0] == pytest.approx(52 / 60, rel=0.01)
    assert found["collisions_vs_marl"][0] == 0.0 and found["overloads_when_feasible"] == 0
    assert found["goodput_vs_marl"][0] == pytest.approx(2.0)
    assert found["real_time_vs_marl"] == 0.4
    assert found["time_vs_central"] is None and found["time_vs_optimum"] is None


def test_an_overload_behind_a_shield_is_not_hidden() -> None:
    bad = [*ROWS, row("random + shield", 7, 9.0, overloads=1.0)]
    assert summary.summarise(bad, [], [], {})["overloads_when_feasible"] == 1


def test_how_far_apart_two_simulators_are() -> None:
    found = summary.simulators(ROWS)
    assert found["mape"][0] == pytest.approx(0.075) and found["bias"] == pytest.approx(0.025)
    assert summary.simulators([]) == {}


def test_a_plot_and_a_table_come_out(tmp_path: Path) -> None:
    document = {
        "cells": summary.cells_table(ROWS),
        "summary": summary.summarise(ROWS, [], [], {}),
        "curves": {"srole-s0": [{"spent_s": 1.0, "drawn": 3.0, "best": 2.0}]},
        "shield": [{"nodes": 25, "median_ms": 0.1}],
    }
    draw.overview(document, tmp_path)
    text = (tmp_path / "srole.svg").read_text()
    assert "SROLE-C" in text and "random + shield" in text
    assert "9.0" in summary.table(document) and "time_vs_marl" in summary.table(document)


def test_every_cell_and_arm_of_the_plan_can_be_played() -> None:
    for quick in (True, False):
        for cell in cells.plan(quick):
            names = tuple(f"n{n}" for n in range(cell.nodes))
            assert len(set(cell.arms)) == len(cell.arms)
            for arm in cell.arms:
                made = cells.setting(cell, arm, names)
                assert (made.shield == "none") == (not arm.startswith("SROLE") and not arm.endswith("shield"))
    assert {cell.nodes for cell in cells.plan(False)} >= {5, 10, 25, 50, 100}


def test_arms_of_a_cell_meet_the_same_jobs_and_a_finished_play_is_not_repeated(tmp_path: Path) -> None:
    cell = Cell("fluid", 3, 0.5, 5.0, 15.0, ("HEFT + shield", "random"))
    played: list[float] = []

    def clock() -> float:
        played.append(0.0)
        return 0.0

    assert cells.run([cell], 1, tmp_path, {}, 1.0, clock)
    assert len(played) == 2
    assert cells.run([cell], 1, tmp_path, {}, 1.0, clock) and len(played) == 2
    jobs = {each["jobs"] for each in summary.rows(tmp_path)}
    assert len(jobs) == 1 and all(np.isfinite(each["mean_s"]) for each in summary.rows(tmp_path))
    assert not cells.run([cell], 2, tmp_path, {}, -1.0, clock)
