"""One contract for all runtimes, and what each promises beyond it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import bundle, onnxfile, quant, tflitefile
from edgert.errors import ArtifactError, UsageError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu, initialise, macs
from edgert.policy import artifact
from edgert.policy.exits import choose, effective_thresholds
from edgert.ports.runtime import Inference, Runtime, open_runtime, verify
from edgert.ports.runtime.numpy import NumpyRuntime

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
pytest.importorskip("ai_edge_litert")
from edgert.ports.runtime.litert import LitertRuntime
from edgert.ports.runtime.onnx import OnnxRuntime
from tools import export, tflite
from tools.nets import student, teacher

# onnxruntime 1.23, the last for Python 3.10, has no Max for uint8, which is what a ReLU on its own becomes.
VERSION = tuple(int(part) for part in version("onnxruntime").split(".")[:2])
LONE_RELU = (Relu(),) if VERSION > (1, 23) else ()

SPECS = {
    "student": student((10, 10, 4), 3),
    "gap": msgspec.structs.replace(student((10, 10, 4), 3), gap_logits=(3.0, 0.5)),
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
    "frames": NetSpec(
        (84, 84, 4),
        6,
        trunk=(
            (Conv(16, 6, 6), Relu(), Conv(16, 3, 2), Relu()),
            (Conv(24, 3, 1, 1), Relu()),
            (Conv(24, 3, 2, 2), Relu(), Dense(32), Relu()),
        ),
        heads=((Dense(16), Relu()), (), ()),
        input_scale=1 / 255,
    ),
}


def litert(policy: artifact.Policy) -> LitertRuntime:
    return LitertRuntime(policy, "litert")


def tflite_runtime(policy: artifact.Policy) -> LitertRuntime:
    return LitertRuntime(policy, "tflite")


KINDS = {"onnx": OnnxRuntime, "litert": litert, "tflite": tflite_runtime, "numpy": NumpyRuntime}


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
    tensors = quant.quantize(params, ranges)
    files = tflite.build(spec, tensors)
    return artifact.load(artifact.pack(manifest, params, export.build(spec, tensors), obs, tflite=files))


def why_not() -> str:
    """Why tflite-runtime cannot be tried here; empty where it can."""
    try:
        tflite_runtime(policy(SPECS["dense"])).close()
    except UsageError as error:
        return str(error)
    return ""


WITHOUT_TFLITE = why_not()
WORKING = [name for name in KINDS if name != "tflite" or not WITHOUT_TFLITE]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param not in WORKING:
        pytest.skip(WITHOUT_TFLITE)
    return request.param


def altered(made: artifact.Policy, tensors: dict[str, np.ndarray]) -> artifact.Policy:
    """The same policy with other weights in every graph, as if it had been broken after its checks."""
    changed = {**made.tensors, **tensors}
    members = {**made.bundle.members, "policy.onnx": onnxfile.patch(made.onnx, tensors)}
    with np.errstate(over="ignore"):
        held = artifact.tflite_tensors(made.spec, changed)
    for k, values in enumerate(held):
        members[f"stage{k}.tflite"] = tflitefile.patch(made.tflite[k], values)
    return made._replace(bundle=made.bundle._replace(members=members), tensors=changed)


def bound(made: artifact.Policy, kind: str) -> float:
    """How far off a head may be: nothing, but where TFLite's own kernels round in fixed point."""
    if kind == "tflite":
        return made.manifest.golden.max_rounding_error
    return 1e-6 * float(np.abs(made.golden_head).max())


@pytest.mark.parametrize("name", SPECS)
def test_golden_vectors_are_answered_to_the_last_bits(name: str, kind: Any) -> None:
    made = policy(SPECS[name])
    runtime = open_runtime(made, kind)
    assert runtime.name == kind
    assert verify(runtime, made) <= bound(made, kind)
    runtime.close()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["student", "odd"]))
def test_runtimes_give_equal_actions_and_heads_on_random_networks(seed: int, name: str) -> None:
    made = policy(SPECS[name], seed)
    runtimes: dict[str, Runtime] = {kind: KINDS[kind](made) for kind in WORKING}
    rng = np.random.default_rng(seed)
    for obs in rng.integers(0, 256, (10, *made.spec.input_shape)).astype(np.uint8):
        reference = quant.forward(made.spec, made.tensors, obs[None])
        for k in range(made.spec.n_exits):
            logits = effective_thresholds([float(t) for t in rng.random(made.spec.n_exits - 1)], k)
            wanted = runtimes["numpy"].infer(obs, logits)
            for kind, runtime in runtimes.items():
                answer = runtime.infer(obs, logits)
                assert answer.exit <= k
                # Golden vectors bound what rounding may do; these observations are others, and wilder.
                off = np.abs(answer.head - reference[answer.exit][0]).max()
                if kind == "tflite":
                    assert off <= 3 * bound(made, kind)
                    continue
                assert answer.exit == wanted.exit
                assert off <= bound(made, kind)
                assert choose(answer.head).action == choose(wanted.head).action


@pytest.mark.parametrize("name", SPECS)
def test_golden_actions_are_equal_but_where_values_are_closer_than_the_bound(name: str, kind: Any) -> None:
    made = policy(SPECS[name])
    runtime, last = open_runtime(made, kind), made.spec.n_exits - 1
    for i, obs in enumerate(made.golden_obs):
        for k in range(last + 1):
            wanted = made.golden_head[i, k, :-1]
            action = choose(runtime.infer(obs, effective_thresholds([1.0] * last, k)).head).action
            assert action == wanted.argmax() or wanted.max() - wanted[action] <= bound(made, kind)


def test_thresholds_choose_the_exit(kind: Any) -> None:
    made = policy(SPECS["odd"])
    runtime, off = open_runtime(made, kind), np.float32(0 if kind != "tflite" else bound(made, kind))
    for i, obs in enumerate(made.golden_obs):
        confidences = made.golden_head[i, :-1, -1]
        for logits in (
            [-np.inf] * 3,
            [np.inf] * 3,
            confidences - off,
            np.nextafter(confidences, np.float32(np.inf)) + off,
            np.zeros(3),
        ):
            answer = runtime.infer(obs, np.array(logits, np.float32))
            if not off or np.abs(confidences - np.array(logits, np.float32)).min() >= off:
                assert answer.exit == [*(confidences >= np.array(logits, np.float32)), True].index(True)
            assert np.abs(answer.head - made.golden_head[i, answer.exit]).max() <= off


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


@pytest.mark.parametrize("k", range(3))
def test_a_network_that_fails_its_golden_vectors_is_not_opened(k: int, kind: Any) -> None:
    made = policy(SPECS["student"])
    name = f"h{k}.out.w"
    with pytest.raises(ArtifactError, match=f"exit {k}: off by"):
        open_runtime(altered(made, {name: (made.tensors[name] // 2).astype(np.int8)}), kind)


@pytest.mark.parametrize("k", range(3))
def test_a_network_that_answers_with_nan_is_not_opened(k: int, kind: Any) -> None:
    made = policy(SPECS["student"])
    huge = {
        f"h{k}.out.w.scale": np.full(4, 3e38, np.float32),
        f"h{k}.out.x.scale": np.array(3e38, np.float32),
    }
    with pytest.raises(ArtifactError):
        open_runtime(altered(made, huge), kind)


class Faulty:
    """A runtime whose exit `k` is wrong in one way."""

    name, rounds_as_reference = "faulty", True

    def __init__(self, policy: artifact.Policy, fault: str, k: int) -> None:
        self.inner, self.fault, self.k, self.last = NumpyRuntime(policy), fault, k, policy.spec.n_exits - 1

    def infer(self, obs: np.ndarray, threshold_logits: np.ndarray) -> Inference:
        logits = threshold_logits.copy()
        if self.fault == "never taken" and self.k < self.last:
            logits[self.k] = np.inf
        elif self.fault == "never taken":
            logits[-1] = -np.inf
        elif self.fault == "compares with a constant" and np.isfinite(logits[self.k]):
            logits[self.k] = np.inf
        elif self.fault == "taken whatever the threshold" and np.isfinite(logits[self.k]):
            logits[self.k] = -np.inf
        head, taken = self.inner.infer(obs, logits)
        if self.fault == "nan" and taken == self.k:
            head[0] = np.nan
        if self.fault == "infinite confidence" and taken == self.k:
            head[-1] = np.inf
        return Inference(head, taken)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("name", ["student", "odd", "dense"])
@pytest.mark.parametrize("fault", ["never taken", "nan", "infinite confidence"])
def test_an_exit_that_is_never_taken_or_answers_with_what_is_no_number_is_found(fault: str, name: str) -> None:
    made = policy(SPECS[name])
    verify(Faulty(made, "", 0), made)
    for k in range(made.spec.n_exits):
        with pytest.raises(ArtifactError, match=f"exit {k}: (exit . answered|answered)"):
            verify(Faulty(made, fault, k), made)


@pytest.mark.parametrize("fault", ["compares with a constant", "taken whatever the threshold"])
def test_an_exit_that_its_confidence_does_not_decide_is_found(fault: str) -> None:
    made = policy(SPECS["odd"])
    for k in range(made.spec.n_exits - 1):
        with pytest.raises(ArtifactError, match="answered"):
            verify(Faulty(made, fault, k), made)


def test_auto_takes_the_first_that_is_there_works_and_has_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(SPECS["dense"])
    members = {name: made.bundle.members[name] for name in bundle.MEMBERS}
    without = made._replace(bundle=made.bundle._replace(members=members))
    assert open_runtime(made).name == "onnx"
    # Its file is still loaded: what is missing must be missing for a fresh import.
    monkeypatch.delitem(sys.modules, "edgert.ports.runtime.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(
        "edgert.ports.runtime.find_spec", lambda name: name in ("onnxruntime", "ai_edge_litert", "numpy")
    )
    assert open_runtime(made).name == "litert"
    assert open_runtime(without).name == "numpy"
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert open_runtime(made).name == "numpy"


@pytest.mark.parametrize("content", ["", "raise SystemError('built for another numpy')", "raise OSError('no libomp')"])
def test_an_onnxruntime_that_is_broken_keeps_no_board_from_acting(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("edgert.ports.runtime.onnx", "onnxruntime"):
        monkeypatch.delitem(sys.modules, module)
    made = policy(SPECS["dense"])
    assert open_runtime(made).name == "litert"
    with pytest.raises(UsageError, match="onnxruntime cannot be used"):
        open_runtime(made, "onnx")


def test_a_graph_that_names_an_exit_that_there_is_not_gives_no_answer() -> None:
    made = policy(SPECS["dense"])
    runtime = OnnxRuntime(made)
    logits = effective_thresholds([1.0], 0)
    assert runtime.infer(made.golden_obs[0], logits).exit == 0
    runtime._run = lambda: None
    for exit_ in (-1, 2):
        runtime._exit[0] = exit_
        with pytest.raises(ArtifactError, match=f"exit {exit_} answered, of 2"):
            runtime.infer(made.golden_obs[0], logits)


def test_a_runtime_that_is_missing_unknown_or_without_a_graph_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = policy(SPECS["dense"])
    monkeypatch.delitem(sys.modules, "edgert.ports.runtime.onnx")
    for module in ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    for kind in ("onnx", "litert", "tflite"):
        with pytest.raises(UsageError, match=rf"pip install edgert\[{kind}\]"):
            open_runtime(made, kind)  # type: ignore[arg-type]  # a str that is one of them
    with pytest.raises(UsageError, match="'torch': choose auto, onnx, litert, tflite, numpy"):
        open_runtime(made, "torch")  # type: ignore[arg-type]  # the point of the test
    members = {name: made.bundle.members[name] for name in bundle.MEMBERS}
    with pytest.raises(ArtifactError, match="bundle n has no TFLite models: export it again"):
        open_runtime(made._replace(bundle=made.bundle._replace(members=members)), "litert")
