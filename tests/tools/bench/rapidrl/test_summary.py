from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
from edgert.nets import ops
from edgert.policy.frontier import full_ops
from tools.bench.rapidrl import draw, latency, summary
from tools.bench.rapidrl.evaluation import Book, Note, Record
from tools.bench.rapidrl.policies import Policy
from tools.nets import NETS

SPEC = NETS["camera"]((84, 84, 4), 6)
WANTED = (
    "atari_ops_ratio",
    "atari_return_ratio",
    "atari_return_ratio_min",
    "atari_latency_ratio",
    "drone_ops_ratio",
    "drone_return_ratio",
    "drone_latency_ratio",
    "deepest_exit_latency_ratio",
    "frontier_min_gain_over_distilled",
)


def book(rng: np.random.Generator, returned: float) -> Book:
    def of(mean: float, costs: list[int], shares: list[float]) -> Record:
        n = 12
        return Record(
            key="",
            policy=Policy(role="x"),
            costs=costs,
            returns=rng.normal(mean, 0.1, n).tolist(),
            exit_ticks=[[round(100 * share) for share in shares]] * n,
            held_ticks=[0] * n,
        )

    whole, exits = full_ops(SPEC), ops(SPEC)
    records = {
        "random": of(0, [0], [1]),
        "full-int8": of(10, [whole], [1]),
        "chosen": of(10 * returned, exits, [0.9, 0, 0.1]),
        "ours@0.34": of(10 * returned, exits, [0.9, 0, 0.1]),
        "ours@full": of(10, exits, [0, 0, 1]),
        "always-exit-0": of(3, exits[:1], [1]),
        "small20": of(5, [round(0.2 * whole)], [1]),
        "small34": of(8, [round(0.34 * whole)], [1]),
        "validation exits confidence 0": of(1, exits, [1, 0, 0]),
    }
    timed = latency.ratios(rng.normal([30e-6, 100e-6], 1e-6, (50, 2)))
    parts = {"hot": timed, "paced": {**timed, "rate_hz": 15.0}, "deepest": timed}
    return Book(records=records, notes={"latency": Note("", parts), "confidence": Note("", [])})


def made() -> dict[str, summary.Found]:
    rng = np.random.default_rng(0)
    return {
        task: summary.of_task(task, {seed: book(rng, returned) for seed in range(3)}, full_ops(SPEC), ops(SPEC), rng)
        for task, returned in (("pong", 0.9), ("boxing", 1.0), ("drone", 0.95))
    }


def test_the_summary_has_all_that_is_asked_for_each_with_its_interval() -> None:
    found = summary.together(made())
    for key in WANTED:
        assert found[f"{key}_ci"][0] <= found[key] <= found[f"{key}_ci"][1]
    assert found["atari_return_ratio"] == pytest.approx(0.95, abs=0.02)
    assert found["atari_return_ratio_min"] == pytest.approx(0.9, abs=0.02)
    assert found["drone_return_ratio"] == pytest.approx(0.95, abs=0.02)
    whole, exits = full_ops(SPEC), ops(SPEC)
    assert found["atari_ops_ratio"] == pytest.approx((0.9 * exits[0] + 0.1 * exits[2]) / whole, abs=1e-3)
    assert found["atari_latency_ratio"] == pytest.approx(0.3, abs=0.02)
    assert found["minatar_return_ratio"] is None
    assert found["frontier_min_gain_over_distilled"] == pytest.approx(
        np.mean([each.draws["frontier_min_gain"][0] for each in made().values()]), abs=0.02
    )


def test_verdicts() -> None:
    empty = summary.together({})
    assert set(summary.verdict(empty).values()) == {"unknown"}
    said = summary.verdict(
        {
            **empty,
            "atari_ops_ratio": 0.33,
            "atari_return_ratio": 0.9,
            "drone_return_ratio": 0.98,
            "drone_ops_ratio": 0.26,
            "deepest_exit_latency_ratio": 1.05,
            "frontier_min_gain_over_distilled": 0.0,
        }
    )
    assert said["atari_ops_ratio"] == "beats"
    assert said["atari_return_ratio"] == "matches"
    assert said["drone_return_ratio"] == "beats"
    assert said["drone_ops_ratio"] == "misses"
    assert said["deepest_exit_latency_ratio"] == "matches"
    assert said["frontier_min_gain_over_distilled"] == "matches"


def test_a_task_states_its_floor_and_leaves_validation_out() -> None:
    document = made()["pong"].document
    assert document["floor_ops_ratio"] == pytest.approx(ops(SPEC)[0] / full_ops(SPEC), abs=1e-4)
    assert not [name for name in document["policies"] if name.startswith("validation")]
    assert document["policies"]["chosen"]["exit_share"] == [0.9, 0, 0.1]
    assert document["policies"]["chosen"]["episodes"] == 36
    assert "p50_ratio_draws" not in document["latency"][0]["hot"]
    assert document["frontier_gain"]["ops_ratio"][0] >= 0.2


def test_table_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = made()
    together = summary.together(found)
    document = {
        "summary": together,
        "verdict": summary.verdict(together),
        "tasks": {name: each.document for name, each in found.items()},
        "missing": ["pong seed 9: not trained"],
    }
    shown = summary.table(document)
    assert "atari_return_ratio" in shown
    assert "missing: pong seed 9" in shown
    draw.draw(document, tmp_path / "a.svg")
    draw.draw(document, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes(), "equal figures, equal files"
