from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle
from edgert.bundle import Frontier, Point, Reference
from edgert.nets import NetSpec, macs, ops
from edgert.policy import artifact
from edgert.policy.frontier import full_ops

pytest.importorskip("onnx")
pytest.importorskip("minatar")
from edgert import quant
from edgert.nets import initialise
from tools import export
from tools.bench.rapidrl import players, quick
from tools.bench.rapidrl.quick import Figures
from tools.nets import student

SPEC = student((10, 10, 4), 3)


def shipped(models: Path, *, thresholds: tuple[float, ...] = (0.0, 0.0), frontier: bool = True) -> None:
    """A bundle whose setting is always to leave at the first exit."""
    rng = np.random.default_rng(0)
    params = initialise(SPEC, rng)
    obs = rng.integers(0, 2, (16, *SPEC.input_shape)).astype(np.uint8)
    ranges, tensors = quant.fit(params, obs)
    point = Point(
        thresholds=(0.0, 0.0),
        return_mean=1.0,
        return_frac=0.9,
        return_low=0.8,
        return_high=1.0,
        ops_frac=ops(SPEC)[0] / full_ops(SPEC),
        exit_share=(1.0, 0.0, 0.0),
        held_share=0.0,
        episodes=10,
    )
    measured = Frontier(
        env="MinAtar/Breakout-v1",
        random=Reference(-1.0, 10),
        full=Reference(1.0, 10),
        full_ops=full_ops(SPEC),
        points=(point,),
    )
    manifest = bundle.Manifest(
        name="small",
        task="breakout",
        created="",
        edgert="0",
        observation=bundle.Observation(SPEC.input_shape, SPEC.input_scale),
        action=bundle.Action(SPEC.n_actions),
        control_rate_hz=20.0,
        gamma=0.99,
        net=msgspec.to_builtins(SPEC),
        thresholds=thresholds,
        exits=tuple(map(bundle.Exit, macs(SPEC), ops(SPEC))),
        safe_action=0,
        ranges=ranges,
        golden=bundle.Golden(4, 0.0),
        frontier=measured if frontier else None,
    )
    models.mkdir(exist_ok=True)
    (models / "small.edgert").write_bytes(artifact.pack(manifest, params, export.build(SPEC, tensors), obs[:4]))


def test_other_models_and_policies_without_a_frontier_are_passed_over(tmp_path: Path) -> None:
    shipped(tmp_path)
    (tmp_path / "small.edgert").rename(tmp_path / "with.edgert")
    shipped(tmp_path, frontier=False)
    shutil.copy(Path(__file__).parents[4] / "models" / "digits-0.25-early-int8.edgert", tmp_path)
    assert list(quick.shipped(tmp_path)) == ["with"]


def test_a_bundle_is_played_at_its_own_setting(tmp_path: Path) -> None:
    assert isinstance(SPEC, NetSpec)
    shipped(tmp_path)
    ((policy, sha256),) = quick.shipped(tmp_path).values()
    assert len(sha256) == 64
    with players(1) as run:
        found = quick.play(policy, run, 0.0)
    assert found.episodes == 2 * quick.ROUND, "no fewer than two rounds"
    assert found.ops_ratio == pytest.approx((ops(SPEC)[0] / full_ops(SPEC),) * 3)
    assert found.return_ratio[1] <= found.return_ratio[0] <= found.return_ratio[2]


def test_agreement() -> None:
    figures = {"return_ratio_ci": [0.8, 1.0], "ops_ratio": 0.3}
    assert quick.agrees(Figures((0.75, 0.7, 0.85), (0.31, 0.30, 0.32), 16), figures)
    assert not quick.agrees(Figures((0.75, 0.7, 0.79), (0.31, 0.30, 0.32), 16), figures)
    assert not quick.agrees(Figures((1.2, 1.1, 1.3), (0.31, 0.30, 0.32), 16), figures)
    assert not quick.agrees(Figures((0.9, 0.8, 1.0), (0.34, 0.33, 0.35), 16), figures)
    assert not quick.agrees(Figures((float("nan"),) * 3, (0.3, 0.3, 0.3), 16), figures)


def with_figures(monkeypatch: pytest.MonkeyPatch, low: float, high: float) -> None:
    def play(*_: Any) -> Figures:
        return Figures((low, low, high), (ops(SPEC)[0] / full_ops(SPEC),) * 3, 16)

    monkeypatch.setattr(quick, "play", play)


def test_the_exit_code_says_whether_all_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Any) -> Any:
        raise AssertionError

    assert quick.main(tmp_path, tmp_path, run) == 1, "nothing to compare"
    shipped(tmp_path)
    with_figures(monkeypatch, 0.85, 0.95)
    assert quick.main(tmp_path, tmp_path, run) == 0
    ((name, found),) = quick.shipped(tmp_path).items()
    figures = quick.committed(*found)
    assert figures["return_ratio"] == 0.9
    other = {**figures, "return_ratio_ci": [0.1, 0.2]}
    (tmp_path / "rapidrl.json").write_text(json.dumps({"shipped": {name: other}}))
    assert quick.main(tmp_path, tmp_path, run) == 1, "the committed figures count"
    assert "DISAGREES" in capsys.readouterr().out
    (tmp_path / "rapidrl.json").write_text(json.dumps({"shipped": {name: {**other, "sha256": "old"}}}))
    assert quick.main(tmp_path, tmp_path, run) == 0
    assert "another bundle" in capsys.readouterr().out


def test_a_setting_that_was_not_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped(tmp_path, thresholds=(0.5, 0.5))
    with players(1) as run:
        assert quick.main(tmp_path, tmp_path, run) == 1
    assert "was not measured" in capsys.readouterr().out


def test_bundles_without_a_frontier_are_passed_over(tmp_path: Path) -> None:
    shipped(tmp_path, frontier=False)
    assert quick.shipped(tmp_path) == {}
