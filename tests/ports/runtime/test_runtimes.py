"""One contract for all runtimes, and what each promises beyond it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import bundle, onnxfile, quant
from edgert.errors import ArtifactError, UsageError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu, initialise, macs
from edgert.policy import artifact
from edgert.policy.exits import choose, effective_thresholds
from edgert.ports.runtime import Runtime, open_runtime, verify
from edgert.ports.runtime.numpy import NumpyRuntime

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
from edgert.ports.runtime.onnx import OnnxRuntime
from tools import export
from tools.nets import student, teacher

# onnxruntime 1.23, the last for Python 3.10, has no Max for uint8, which is what a ReLU on its own becomes.
VERSION = tuple(int(part) for part in version("onnxruntime").split(".")[:2])
LONE_RELU = (Relu(),) if VERSION > (1, 23) else ()

SPECS = {
    "student": student((10, 10, 4), 3),
    "teacher": teacher((10, 10, 6), 6),
    "odd": NetSpec(
        (9, 7, 3),
        2,
        trunk=(
            (Conv(4, 3, 2, 1), MaxPool(2, 1), *LONE_RELU, Conv(5, 2)),
            (*LONE_RELU, Conv(3, 1), Relu()),
            (Dense(6),),
            (Dense(4), Relu()),
        ),
        heads=((Dense(7), Relu()), (), (Dense(5),), ()),
        input_scale=1 / 255,
    ),
    "dense": NetSpec((1, 1, 5), 4, trunk=((Dense(6), Relu()), (Dense(6), Relu())), heads=((), ())),
}
KINDS = {"onnx": OnnxRuntime, "numpy": NumpyRuntime}


def policy(spec: NetSpec, seed: int = 0) -> artifact.Policy:
    rng = np.random.default_rng(seed)
    params = initialise(spec, rng)
    for name, view in params.views.items():
        view += rng.normal(0, 0.3 if name.endswith(".b") else 0.02, view.shape).astype(np.float32)
    obs = rng.integers(0, 2 if spec.input_scale == 1 else 256, (24, *spec.input_shape)).astype(np.uint8)
    ranges = quant.calibrate(params, obs)
    manifest = bundle.Manifest(
        name="n",
        task="t",
        created="",
        edgert="0",
        observation=bundle.Observation(spec.input_shape, spec.input_scale),
        action=bundle.Action(spec.n_actions),
        control_rate_hz=20,
        gamma=0.99,
        net=msgspec.to_builtins(spec),
        thresholds=(0.5,) * (spec.n_exits - 1),
        exits=tuple(bundle.Exit(cost) for cost in macs(spec)),
        safe_action=0,
        ranges=ranges,
        golden=bundle.Golden(1, 0),
    )
    return artifact.load(artifact.pack(manifest, params, export.build(spec, quant.quantize(params, ranges)), obs))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("name", SPECS)
def test_golden_vectors_are_answered_to_the_last_bits(name: str, kind: Any) -> None:
    made = policy(SPECS[name])
    runtime = open_runtime(made, kind)
    assert runtime.name == kind
    assert verify(runtime, made) <= 1e-6 * np.abs(made.golden_head).max()
    runtime.close()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["student", "odd"]))
def test_runtimes_give_equal_actions_and_heads_on_random_networks(seed: int, name: str) -> None:
    made = policy(SPECS[name], seed)
    runtimes: list[Runtime] = [make(made) for make in KINDS.values()]
    bound = made.manifest.golden.max_head_error
    rng = np.random.default_rng(seed)
    for obs in rng.integers(0, 256, (10, *made.spec.input_shape)).astype(np.uint8):
        for k in range(made.spec.n_exits):
            logits = effective_thresholds([float(t) for t in rng.random(made.spec.n_exits - 1)], k)
            one, two = (runtime.infer(obs, logits) for runtime in runtimes)
            assert one.exit == two.exit <= k
            assert choose(one.head).action == choose(two.head).action
            assert np.abs(one.head - two.head).max() <= bound


def test_thresholds_choose_the_exit(kind: Any) -> None:
    made = policy(SPECS["odd"])
    runtime = open_runtime(made, kind)
    for i, obs in enumerate(made.golden_obs):
        confidences = made.golden_head[i, :-1, -1]
        for logits in (
            [-np.inf] * 3,
            [np.inf] * 3,
            confidences,
            np.nextafter(confidences, np.float32(np.inf)),
            np.zeros(3),
        ):
            answer = runtime.infer(obs, np.array(logits, np.float32))
            assert answer.exit == [*(confidences >= np.array(logits, np.float32)), True].index(True)
            assert np.array_equal(answer.head, made.golden_head[i, answer.exit])


def test_an_answer_belongs_to_the_caller(kind: Any) -> None:
    made = policy(SPECS["student"])
    runtime = open_runtime(made, kind)
    deep, shallow = (effective_thresholds([1, 1], k) for k in (2, 0))
    first = runtime.infer(made.golden_obs[0], deep)
    kept = first.head.copy()
    for obs in made.golden_obs[1:]:
        runtime.infer(obs, shallow)
        runtime.infer(obs, deep)
    assert np.array_equal(first.head, kept)
    assert first.head.flags.owndata or first.head.base is not None


def test_observations_that_are_views_are_read_right(kind: Any) -> None:
    made = policy(SPECS["student"])
    runtime = open_runtime(made, kind)
    logits = effective_thresholds([1, 1], 2)
    flipped = made.golden_obs[0][::-1].transpose(1, 0, 2)
    assert np.array_equal(runtime.infer(flipped, logits).head, runtime.infer(flipped.copy(), logits).head)


@pytest.mark.parametrize(
    ("obs", "logits"),
    [
        (np.zeros((10, 10, 3), np.uint8), np.zeros(2, np.float32)),
        (np.zeros(4, np.uint8), np.zeros(2, np.float32)),
        (np.zeros((1, 10, 10, 4), np.uint8), np.zeros(2, np.float32)),
        (np.zeros((10, 10, 4), np.float32), np.zeros(2, np.float32)),
        (np.zeros((10, 10, 4), np.uint8), np.zeros(3, np.float32)),
        (np.zeros((10, 10, 4), np.uint8), np.zeros((), np.float32)),
    ],
)
def test_wrong_shapes_are_refused(obs: np.ndarray, logits: np.ndarray, kind: Any) -> None:
    with pytest.raises(UsageError):
        open_runtime(policy(SPECS["student"]), kind).infer(obs, logits)


def test_a_network_that_fails_its_golden_vectors_is_not_opened(kind: Any) -> None:
    made = policy(SPECS["student"])
    tensors = {**made.tensors, "h1.out.w": (made.tensors["h1.out.w"] // 2).astype(np.int8)}
    members = {**made.bundle.members, "policy.onnx": onnxfile.patch(made.onnx, tensors)}
    with pytest.raises(ArtifactError, match="exit 1: off by"):
        open_runtime(made._replace(bundle=made.bundle._replace(members=members), tensors=tensors), kind)


def test_a_network_that_answers_with_nan_is_not_opened(kind: Any) -> None:
    made = policy(SPECS["student"])
    tensors = {
        **made.tensors,
        "h0.out.w.scale": np.full(4, 3e38, np.float32),
        "h0.out.x.scale": np.array(3e38, np.float32),
    }
    members = {**made.bundle.members, "policy.onnx": onnxfile.patch(made.onnx, tensors)}
    with pytest.raises(ArtifactError):
        open_runtime(made._replace(bundle=made.bundle._replace(members=members), tensors=tensors), kind)


def test_auto_takes_onnxruntime_where_it_is_and_numpy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(SPECS["dense"])
    assert open_runtime(made).name == "onnx"
    monkeypatch.setattr("edgert.ports.runtime.find_spec", lambda name: None)
    assert open_runtime(made).name == "numpy"
    monkeypatch.delitem(sys.modules, "edgert.ports.runtime.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install edgert\[onnx\]"):
        open_runtime(made, "onnx")
    with pytest.raises(UsageError, match="tflite"):
        open_runtime(made, "tflite")  # type: ignore[arg-type]  # the point of the test
