from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from edgert.nets import forward, initialise
from tools.bench.rapidrl.choice import avoided
from tools.nets import NETS
from tools.train import judge, kept

SPEC = NETS["board2"]((10, 10, 4), 3)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_fit_is_where_the_cross_entropy_has_no_slope(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, gap = rng.normal(size=(400, 3)).astype(np.float32), rng.exponential(size=400).astype(np.float32)
    truth = features @ rng.normal(size=3) + 2 * gap - 1
    wanted = (1 / (1 + np.exp(-truth))).astype(np.float32)
    found = judge.fit(features, gap, wanted, ridge=1e-9)
    said = features @ found.weight + found.bias + found.gap_logits * gap
    assert np.abs(said - truth).max() < 1e-2
    constant = judge.fit(features, gap, np.full(400, 0.8, np.float32), ridge=1.0)
    assert constant.bias == pytest.approx(logit(0.8), abs=1e-3)
    assert np.abs(constant.weight).max() < 1e-3


def test_a_gap_that_would_lower_the_confidence_does_not_count() -> None:
    rng = np.random.default_rng(0)
    features, gap = rng.normal(size=(300, 2)).astype(np.float32), rng.exponential(size=300).astype(np.float32)
    found = judge.fit(features, gap, (gap < 0.5).astype(np.float32))
    assert found.gap_logits == 0
    without = judge.fit(features, None, (gap < 0.5).astype(np.float32))
    assert (found.weight.tolist(), found.bias) == (without.weight.tolist(), without.bias)


def test_only_confidences_change_and_they_order_better_than_before() -> None:
    rng = np.random.default_rng(3)
    params, teacher = initialise(SPEC, rng), initialise(SPEC, rng)
    for each in (params, teacher):
        each.flat += rng.normal(0, 0.05, each.flat.shape).astype(np.float32)
    obs = rng.integers(0, 2, (900, 10, 10, 4)).astype(np.uint8)
    made = judge.judge(params, teacher, obs[:600], "regret", use_gap=True)
    before, after = (forward(each, obs[600:]) for each in (params, made))
    assert np.array_equal(before[0][:, :-1], after[0][:, :-1])
    assert np.array_equal(before[1], after[1])
    values = forward(teacher, obs[600:])[1][:, :-1]
    regret = values.max(1) - values[np.arange(300), after[0][:, :-1].argmax(1)]
    ordered = [avoided(head[0][:, -1].astype(float), regret.astype(float)) or 0.0 for head in (before, after)]
    assert ordered[1] > max(ordered[0], 0.0)


def test_a_run_is_judged_and_is_a_run_again(tmp_path: Path) -> None:
    for name, seed in (("exits", 0), ("full", 1)):
        (tmp_path / name).mkdir()
        params = initialise(SPEC, np.random.default_rng(seed))
        params.flat.tofile(tmp_path / name / "best.f32")
        document = {"spec": msgspec.to_builtins(SPEC), "env": "MinAtar/Breakout-v1"}
        (tmp_path / name / "run.json").write_text(json.dumps(document))
    pytest.importorskip("minatar")
    arguments = ["--run", str(tmp_path / "exits"), "--teacher", str(tmp_path / "full"), "--out", str(tmp_path / "out")]
    assert judge.main([*arguments, "--episodes", "2", "--observations", "40"]) == 0
    made, document = kept(tmp_path / "out")
    assert "--observations 40" in document["judged"]["command"]
    assert len(made.spec.gap_logits) in (0, 1)
    assert judge.main([*arguments, "--deep-frac", "2"]) == 1


def test_what_has_one_exit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = NETS["board-34"]((10, 10, 4), 3)
    initialise(spec, np.random.default_rng(0)).flat.tofile(tmp_path / "best.f32")
    (tmp_path / "run.json").write_text(json.dumps({"spec": msgspec.to_builtins(spec), "env": "MinAtar/Breakout-v1"}))
    assert judge.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "two of each" in capsys.readouterr().err
