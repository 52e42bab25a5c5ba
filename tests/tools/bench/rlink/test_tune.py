from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tools.bench.rlink import plan, tune
from tools.bench.rlink.command import grids


def test_a_point_of_a_grid_is_lived_without_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minatar", reason="minatar is not installed: nothing was tuned")
    run = next(run for run in grids(["breakout"], ["ours"]) if run.seed == plan.TUNING_SEEDS[0])
    shipped = plan.Made(plan.SHIPPED / "breakout.edgert")
    monkeypatch.setattr(plan, "made", lambda runs, name, role, seed=1: shipped)
    settings = {**run.settings, "learn.min_transitions": 180}
    came = tune.lived(tmp_path, msgspec.structs.replace(run, steps=200, settings=settings))
    assert 0 <= came < 5, "it explores"
