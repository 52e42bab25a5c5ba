"""The arithmetic of `python -m tools.bench train`, and that its contestants take the same step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu
from tools.bench import train

TINY = NetSpec(
    (8, 8, 2),
    3,
    trunk=((Conv(4, 3, 1, 1), Relu(), MaxPool(2, 2)), (Dense(8), Relu())),
    heads=((MaxPool(2, 2), Dense(5), Relu()), ()),
)


@pytest.mark.parametrize(("net", "parameters"), [("minatar", 181e3), ("nature", 1.94e6), ("drone", 1.31e6)])
def test_the_networks_have_three_exits_and_the_size_that_is_claimed(net: str, parameters: float) -> None:
    assert train.NETS[net].n_exits == 3
    assert Params(train.NETS[net]).flat.size == pytest.approx(parameters, rel=5e-3)


def test_all_contestants_take_the_same_steps() -> None:
    losses = {peer: [step() for _ in range(4)] for peer, (make, _) in train.PEERS.items() for step in [make(TINY)]}
    assert losses["edgert"][-1] < losses["edgert"][0]
    for peer, found in losses.items():
        assert found == pytest.approx(losses["edgert"], rel=1e-4), peer


def test_ratios_are_of_the_same_round() -> None:
    pace = np.random.default_rng(0).uniform(1, 10, 40)
    assert train.ratio(0.5 * pace, pace) == [0.5, 0.5, 0.5]
    middle, low, high = train.ratio(0.5 * pace * np.random.default_rng(1).normal(1, 0.1, 40), pace)
    assert low < middle < high and middle == pytest.approx(0.5, abs=0.05)


def test_the_summary_names_what_is_claimed() -> None:
    took = {"edgert": [1.0, 2.0], "torch": [2.0, 4.0], "torch channels_last": [1.0, 2.0]}
    memory = {peer: {"peak_bytes": 10 * i, "imported_bytes": i} for i, peer in enumerate(took, 1)}
    judged = train.judge({"step_s": took, "memory": memory})
    assert judged["edgert"]["time_vs_channels_last"] == [1.0, 1.0, 1.0]
    heavier = {**judged, "edgert": {**judged["edgert"], "peak_vs_torch": 0.7}}
    assert train.summarise({"minatar": judged, "nature": heavier}) == {
        "train_time_vs_torch_minatar": [0.5, 0.5, 0.5],
        "train_time_vs_torch_nature": [0.5, 0.5, 0.5],
        "train_peak_memory_vs_torch_max": 0.7,
    }


def test_a_run_writes_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "PEERS", {peer: made for peer, made in train.PEERS.items() if "alone" not in peer})
    monkeypatch.setattr(train, "ROUNDS", (2, 2))
    monkeypatch.setattr(train, "STEPS", {"minatar": 1})
    assert train.main(["--nets", "minatar", "--quick", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "train.json").read_text())
    assert set(document["nets"]["minatar"]) == set(train.PEERS)
    assert document["summary"]["train_peak_memory_vs_torch_max"] < 1
    assert "minatar" in capsys.readouterr().out
