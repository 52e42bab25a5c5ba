from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.bench.srole import compare, judge, summary

PART = {"compute_core_s": 0.1, "cores": 1.0, "memory_bytes": 1.0, "flows": []}
PARTS = {"jobs": {"small": {"ship_bytes": 0, "splits": [{"kind": "data", "edges": [0], "parts": [PART]}]}}}


def job(name: str, took_s: float, node: str = "a", grants: int = 1) -> dict[str, Any]:
    asked = {"at_s": 99.0, "what": "proposed", "nodes": [node], "kind": "data", "cut": [0]}
    granted = {"at_s": 100.0, "what": "granted", "nodes": [node]}
    history = [asked, *[granted] * grants, {"at_s": 100.0 + took_s, "what": "trained"}]
    return {"id": name, "owner": "a", "kind": "small", "steps": 10, "history": history}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(judge, "available", lambda: False)
    boards = [{"name": name, "share": 0.5, "memory_bytes": 1e9} for name in "ab"]
    runs = {
        "srole-c/1": {
            "mean_s": 10.0,
            "own_cpu_s": {"a": 0.1, "b": 0.1},
            "jobs": [job("j", 5.4), job("k", 2.7, "b"), job("moved", 9.0, grants=2)],
        },
        "marl/1": {"mean_s": 20.0, "jobs": []},
    }
    (tmp_path / "srole-real.json").write_text(json.dumps({"boards": boards, "runs": runs}))
    (tmp_path / "srole-parts.json").write_text(json.dumps(PARTS))
    return tmp_path


def test_jobs_that_went_through_in_one_attempt_are_compared(results: Path) -> None:
    found = compare.compare(results / "srole-real.json", results / "srole-parts.json")["fluid"]
    speed = 0.5 - 0.1  # the daemons take the rest
    one_s = (10 * 0.1 + compare.START_CORE_S) / speed
    judged_s = one_s + max(0.0, one_s - 2.7)  # from when k was over on, its judging shares their owner's core
    assert found["jobs"] == 2
    assert found["mean_simulated_s"] == pytest.approx((one_s + judged_s) / 2, abs=0.02)
    assert found["mape_by_scheme"] == {"srole-c": found["mape"][0]}


def test_the_real_run_is_summed_up_and_its_absence_is_nothing(results: Path, tmp_path: Path) -> None:
    found = summary.real(results)
    assert found["time_vs_marl"] == [0.5, 0.5, 0.5] and found["time_vs_central"] is None
    assert found["simulator_mape"][0] > 0
    assert summary.real(tmp_path / "nowhere") == {}
