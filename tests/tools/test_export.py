from __future__ import annotations

import collections
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import onnxfile, quant
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu, forward, initialise, macs
from edgert.policy import artifact

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
from tools import export  # noqa: E402 - after the skips
from tools.nets import student, teacher  # noqa: E402 - after the skips

SPECS = {
    "student": student((10, 10, 4), 3),
    "two exits": NetSpec((6, 6, 2), 3, trunk=((Conv(4, 3), Relu()), (Dense(8), Relu())), heads=((), ())),
    "teacher": teacher((10, 10, 4), 3),
    "padded": NetSpec(
        (12, 12, 3),
        5,
        trunk=((Conv(8, 3, 1, 1), Relu(), MaxPool(2, 2)), (Conv(8, 3), Relu()), (Dense(16), Relu())),
        heads=((Dense(12), Relu()), (MaxPool(2, 2),), ()),
        input_scale=1 / 255,
    ),
}


def made(spec: NetSpec, seed: int = 0) -> tuple[Any, np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    params = initialise(spec, rng)
    obs = rng.integers(0, 2 if spec.input_scale == 1 else 256, (16, *spec.input_shape)).astype(np.uint8)
    return params, obs, quant.quantize(params, quant.calibrate(params, obs))


def open_session(model: bytes, optimized: str = "") -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = optimized
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def count(graph: Any) -> collections.Counter[str]:
    """Operators of a graph and all its branches."""
    total: collections.Counter[str] = collections.Counter()
    for node in graph.node:
        total[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                total += count(attribute.g)
    return total


@pytest.mark.parametrize("name", SPECS)
def test_onnxruntime_fuses_every_layer_into_an_integer_kernel(name: str, tmp_path: Any) -> None:
    spec = SPECS[name]
    path = tmp_path / "optimized.onnx"
    open_session(export.build(spec, made(spec)[2]), str(path))
    operators = count(onnx.load(str(path)).graph)
    layers = [step.placed.layer for stage in quant.steps(spec) for step in (*stage.trunk, *stage.head)]
    assert operators["QLinearConv"] == sum(isinstance(layer, Conv) for layer in layers)
    assert operators["QGemm"] == sum(isinstance(layer, Dense) for layer in layers)
    assert operators["NhwcMaxPool"] + operators["MaxPool"] == sum(isinstance(layer, MaxPool) for layer in layers)
    assert not {"Conv", "Gemm", "FusedConv", "FusedGemm", "QuantizeLinear", "DequantizeLinear", "Relu"} & set(operators)
    assert "Transpose" not in operators, "tensors between layers must stay in the kernels' own order"


@pytest.mark.parametrize("name", SPECS)
def test_every_graph_gives_what_the_reference_gives(name: str) -> None:
    spec = SPECS[name]
    params, obs, tensors = made(spec)
    last = spec.n_exits - 1
    for build, heads, tolerance in (
        (lambda exits: export.build(spec, tensors, exits), quant.forward(spec, tensors, obs), 1e-6),
        (lambda exits: export.build_float(params, exits), forward(params, obs), 1e-5),
    ):
        decided, alone, flat = (open_session(build(exits)) for exits in ("if", "last", "all"))
        for i in range(len(obs)):
            one = {"obs": obs[i : i + 1]}
            for k in range(spec.n_exits):
                thresholds = np.array([np.inf] * k + [-np.inf] * (last - k), np.float32)
                head, exit_ = decided.run(["head", "exit"], {**one, "threshold": thresholds} if last else one)
                assert exit_.tolist() == [k]
                assert head[0] == pytest.approx(heads[k][i], rel=tolerance, abs=tolerance)
                assert flat.run([f"head.{k}"], one)[0][0] == pytest.approx(heads[k][i], rel=tolerance, abs=tolerance)
            assert alone.run(None, one)[0][0] == pytest.approx(heads[last][i], rel=tolerance, abs=tolerance)


def test_a_threshold_that_is_alone_is_compared_without_being_looked_up() -> None:
    for spec, looked_up in ((SPECS["two exits"], 1), (SPECS["student"], 4)):
        operators = count(onnx.load_model_from_string(export.build(spec, made(spec)[2])).graph)
        assert (operators["If"], operators["Gather"]) == (spec.n_exits - 1, looked_up)


def test_each_branch_owns_its_weights_and_all_can_be_patched() -> None:
    spec = SPECS["student"]
    _, _, tensors = made(spec)
    model = export.build(spec, tensors)
    outer = {tensor.name for tensor in onnx.load_model_from_string(model).graph.initializer}
    assert {"t0.0.w", "h0.out.w"} <= outer
    assert not any(name.startswith(("t1", "h1", "t2", "h2")) for name in outer)
    assert tensors.keys() <= onnxfile.index(model).keys()
    _, _, others = made(spec, 1)
    assert onnxfile.patch(model, others) == export.build(spec, others)
    assert export.build(spec, tensors) == model


@pytest.fixture
def run(tmp_path: Any) -> Any:
    """A run that was finished without having learnt anything."""
    folder = tmp_path / "run"
    folder.mkdir()
    spec = SPECS["student"]
    initialise(spec, np.random.default_rng(0)).flat.tofile(folder / "best.f32")
    (folder / "run.json").write_text(json.dumps({"env": "MinAtar/Breakout-v1", "spec": msgspec.to_builtins(spec)}))
    return folder


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["--golden", "0"], "--golden 0: at least 1"),
        (["--watch-episodes", "0"], "--watch-episodes 0"),
        (["--calibration", "0"], "--calibration 0"),
        (["--episodes", "-1"], "--episodes -1"),
        (["--regret", "nan"], "--regret nan"),
        (["--risk", "0.1"], "add --frontier-episodes"),
        (["--frontier-episodes", "-1"], "--frontier-episodes: 0 to"),
        (["--frontier-episodes", "9", "--risk", "1.5"], "between 0 and 1"),
        (["--frontier-episodes", "9", "--risk", "0.1", "--return-bounds", "1", "nan"], "--return-bounds"),
        (["--frontier-episodes", "9", "--repeats", "65"], "--repeats"),
        (["--frontier-episodes", "9", "--parallel", "0"], "--parallel"),
        (["--judged-in", "MinAtar/SpaceInvaders-v1"], "shows (10, 10, 6)"),
        (["--judged-in", "Nowhere-v0"], "environment Nowhere-v0"),
        (["--run", "/nowhere"], "no finished run"),
        (["--out", "/proc/nowhere/made.edgert"], "cannot make /proc/nowhere"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_played(
    run: Any, tmp_path: Any, said: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minatar")
    arguments = ["--run", str(run), "--task", "breakout", "--out", str(tmp_path / "made.edgert"), *said]
    assert export.main(arguments) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "made.edgert").exists()


def test_a_manifest_that_contradicts_itself_is_found_before_the_frontier_is_played(
    run: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minatar")
    monkeypatch.setattr("tools.frontier.measure", lambda *_: pytest.fail("it was played"))
    arguments = ["--run", str(run), "--out", str(tmp_path / "made.edgert"), "--episodes", "0", "--watch-episodes", "2"]
    assert export.main([*arguments, "--task", "a b"]) == 1
    assert "task: 'a b'" in capsys.readouterr().err
    assert export.main([*arguments, "--task", "a", "--safe-action", "77"]) == 1
    assert "77 of 3 actions" in capsys.readouterr().err


def test_the_command_line_makes_a_bundle_from_a_run(
    run: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minatar")
    out, spec = tmp_path / "made" / "small.edgert", SPECS["student"]
    arguments = [
        "--run",
        str(run),
        "--task",
        "breakout",
        "--out",
        str(out),
        "--episodes",
        "2",
        "--watch-episodes",
        "2",
        "--float",
    ]
    assert export.main([*arguments, "--golden", "8", "--calibration", "64"]) == 0
    policy = artifact.load(out.read_bytes())
    assert policy.spec == spec
    assert policy.manifest.task == "breakout"
    assert policy.manifest.provenance["run"]["env"] == "MinAtar/Breakout-v1"
    assert len(policy.golden_obs) <= 8
    rows = policy.manifest.provenance["export"]["exits"]
    assert [row["macs"] for row in rows] == macs(spec)
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)
    assert set(policy.manifest.provenance["export"]["returns"]) >= {"float, last exit", "int8, with thresholds"}
    assert onnx.load(str(out.with_suffix(".float.onnx"))).graph.input[0].name == "obs"
    assert str(out) in capsys.readouterr().out
