"""The arithmetic of `python -m tools.bench exits`, and one run of a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
from edgert.nets import Conv, Dense, NetSpec, Relu, macs, ops, without_exits
from tools.bench import exits

TINY = NetSpec((6, 6, 2), 3, trunk=((Conv(4, 3), Relu()), (Dense(8), Relu())), heads=((), ()))


@pytest.mark.parametrize("name", exits.NETS)
def test_the_network_without_exits_lacks_the_early_heads_and_their_tests_and_nothing_else(name: str) -> None:
    spec = exits.NETS[name]()
    alone = without_exits(spec)
    assert alone.n_exits == 1
    early = [
        NetSpec(spec.input_shape, spec.n_actions, (sum(spec.trunk[: k + 1], ()),), (spec.heads[k],), spec.input_scale)
        for k in range(spec.n_exits - 1)
    ]
    bare = [NetSpec(one.input_shape, 1, one.trunk, ((),), spec.input_scale) for one in early]
    trunks = [macs(one)[0] - 2 * int(np.prod(_features(one))) for one in bare]
    heads = sum(macs(one)[0] - trunk for one, trunk in zip(early, trunks, strict=True))
    assert macs(spec)[-1] - macs(alone)[0] == heads > 0
    assert ops(spec)[-1] - ops(alone)[0] > 2 * heads


def _features(spec: NetSpec) -> tuple[int, ...]:
    from edgert.nets import stages

    return stages(spec)[0].trunk[-1].out_shape


def test_a_ratio_is_of_the_same_round_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    # A machine that is now fast, now slow: the ratio of the two knows nothing of it.
    pace = rng.uniform(1, 10, (40, 1))
    base = pace * rng.normal(1, 0.001, (40, 9))
    found = exits.ratio(1.25 * base, base, rng)
    assert found == {"ratio": 1.25, "low": 1.25, "high": 1.25}
    noisy = exits.ratio(1.25 * pace * rng.normal(1, 0.1, (40, 9)), base, rng)
    assert noisy["low"] < noisy["ratio"] < noisy["high"]
    assert noisy["ratio"] == pytest.approx(1.25, abs=0.1)


def test_everything_is_compared_with_its_own_runtime_and_precision() -> None:
    took = {
        f"{runner} {what}": np.full((3, 4), us * 1e-6)
        for runner, us in (("onnx int8", 10.0), ("onnx fp32", 40.0))
        for what, us in (("without", us), ("exit 0", us / 2), ("exit 1", us * 1.1))
    }
    found = exits.judge(took)
    assert [found[f"onnx fp32 {what}"]["ratio"] for what in ("without", "exit 0", "exit 1")] == [1.0, 0.5, 1.1]
    assert found["onnx int8 exit 0"]["p50_us"] == 5.0


def test_a_run_writes_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exits, "NETS", {"tiny": lambda: TINY})
    arguments = ["--nets", "tiny", "--runtimes", "onnx", "numpy", "--rounds", "2", "--rate-rounds", "1"]
    assert exits.main([*arguments, "--rate", "2000", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "exits.json").read_text())
    figures = document["nets"]["tiny"]
    runners = ("onnx int8", "onnx fp32", "numpy int8", "numpy fp32")
    wanted = {f"{runner} {what}" for runner in runners for what in ("without", "exit 0", "exit 1")}
    assert set(figures["hot"]) == set(figures["at_rate"]) == wanted
    low_high = document["summary"]["deepest_exit_latency_ratio"]["hot"]["tiny"]
    assert low_high[0] == figures["hot"]["onnx int8 exit 1"]["ratio"]
    first = document["summary"]["first_exit_latency_ratio"]["at_rate"]["tiny"]
    assert first[0] == figures["at_rate"]["onnx int8 exit 0"]["ratio"]
    assert "tiny" in capsys.readouterr().out
