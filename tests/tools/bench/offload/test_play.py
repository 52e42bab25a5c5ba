from __future__ import annotations

from typing import Any

import pytest

from edgert.offload.space import Floor
from tools.bench.offload import play as module
from tools.bench.offload import summary
from tools.bench.offload.arms import ARMS
from tools.bench.offload.world import SETUP, Case, World, spaces

NAMES = {"machine": "fitted", "users": 2, "links": "A", "floor": "89", "per": "user"}


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World(Case(2, "A", flipped=turn), spaces(2)["full"], 0, SETUP) for turn in (False, True)]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REQUESTS": 80, "STEPS_LEAST": 40, "AFTER": 30, "STEADY": 20, "WARM_UP": 10}.items():
        monkeypatch.setattr(module, name, value)


def run(worlds: list[World], name: str, floor: Floor) -> dict[str, Any]:
    arm = ARMS[name]
    row = module.play(worlds, spaces(2)[arm.space], arm, arm.grid[0], floor, 0, {**NAMES, "arm": name}, curve=True)
    return row._asdict()


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.floor in ("mask", "none")])
def test_nobody_who_holds_the_floor_breaks_it_or_beats_the_oracle(worlds: list[World], short: None, name: str) -> None:
    row = run(worlds, name, Floor(0.89))
    assert row["broken"] == row["broken_late"] == 0
    assert row["steady_s"] >= row["oracle_s"] * (1 - 1e-6)
    assert len(row["curve_s"]) == 70


def test_the_published_way_breaks_it_while_it_learns(worlds: list[World], short: None) -> None:
    assert run(worlds, "published RL", Floor(0.89, "average"))["broken"] > 0


def test_the_summary_compares_seeds_that_both_have(worlds: list[World], short: None) -> None:
    rows = [run(worlds, name, Floor(0.89)) for name in ("hybrid", "offload RL", "offload RL, int8 too")]
    found = summary.of(rows)
    best = found["summary"]["response_vs_offload_rl_best"]
    assert best["value"] == pytest.approx(rows[0]["steady_s"] / rows[1]["steady_s"], abs=1e-4)
    assert 0.0 < best["accuracy_lost_points"] <= 0.4
    assert found["summary"]["violations"] == 0
    assert summary.table({**found, "parts": "1 of 1"})
