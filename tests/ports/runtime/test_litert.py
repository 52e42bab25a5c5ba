"""What the TFLite runtimes promise beyond the contract in test_runtimes.py."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import quant, tflitefile
from edgert.errors import ArtifactError, UsageError
from edgert.policy import artifact
from edgert.policy.exits import effective_thresholds

pytest.importorskip("ai_edge_litert")
from edgert.ports.runtime.litert import LitertRuntime
from tools import tflite

MODELS = Path(__file__).parents[3] / "models"


def with_stages(policy: artifact.Policy, stages: list[bytes]) -> artifact.Policy:
    files = {f"stage{k}.tflite": stage for k, stage in enumerate(stages)}
    members = {**policy.bundle.members, **files}
    return policy._replace(bundle=policy.bundle._replace(members=members))


def shipped(game: str) -> artifact.Policy:
    policy = artifact.load((MODELS / f"{game}.edgert").read_bytes())
    return with_stages(policy, tflite.build(policy.spec, policy.tensors))


@pytest.fixture(scope="module")
def made() -> artifact.Policy:
    return shipped("breakout")


def test_a_stage_that_no_exit_asked_for_does_not_run(made: artifact.Policy) -> None:
    runtime = LitertRuntime(made, "litert")
    ran: list[int] = []

    class Counting:
        def __init__(self, k: int, inner: Any) -> None:
            self.k, self.inner = k, inner

        def __getattr__(self, name: str) -> Any:
            if name == "invoke":
                ran.append(self.k)
            return getattr(self.inner, name)

    runtime._stages = [stage._replace(interpreter=Counting(k, stage[0])) for k, stage in enumerate(runtime._stages)]
    for k in range(made.spec.n_exits):
        ran.clear()
        answer = runtime.infer(made.golden_obs[0], effective_thresholds([1, 1], k))
        assert ran == list(range(k + 1))
        assert np.array_equal(answer.head, made.golden_head[0, k])


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_it_gives_the_very_bits_of_the_reference(game: str) -> None:
    policy = shipped(game)
    runtime = LitertRuntime(policy, "litert")
    for i, obs in enumerate(policy.golden_obs):
        for k in range(policy.spec.n_exits):
            assert np.array_equal(runtime.infer(obs, effective_thresholds([1, 1], k)).head, policy.golden_head[i, k])


def test_multipliers_out_of_bounds_round_as_they_should(made: artifact.Policy) -> None:
    # Channels without weights and layers whose outputs are tiny make multipliers that kernels refuse.
    params = made.params.copy()
    params.views["t0.0.w"][:, 0] = 0
    params.views["t0.0.b"][1] = 1e4
    ranges = {**made.manifest.ranges, "t0.0": (0.0, 1e5), "t1.0": (0.0, 1e-4)}
    tensors = quant.quantize(params, ranges)
    held = artifact.tflite_tensors(made.spec, tensors)
    assert held[0]["t0.0.w.scale"].min() == 2.0**-32
    assert held[1]["t1.0.w.scale"].max() == 255
    policy = with_stages(made._replace(tensors=tensors), tflite.build(made.spec, tensors))
    runtime, wanted = LitertRuntime(policy, "litert"), quant.forward(made.spec, tensors, made.golden_obs)
    for i, obs in enumerate(made.golden_obs):
        for k in range(3):
            head = runtime.infer(obs, effective_thresholds([1, 1], k)).head
            assert head == pytest.approx(wanted[k][i], rel=1e-6, abs=1e-6)


def test_models_that_the_package_refuses_and_models_of_another_shape_are_named(made: artifact.Policy) -> None:
    other, (first, second, third) = shipped("space_invaders"), made.tflite
    for stages, what in (
        ([b"junk", second, third], "does not take"),
        ([b"", second, third], "does not take"),
        ([first, second[:200], third], "does not take"),
        (list(other.tflite), "do not fit the network"),
        ([second, first, third], "do not fit the network"),
        ([first, second, second], "do not fit the network"),
    ):
        with pytest.raises(ArtifactError, match=what):
            LitertRuntime(with_stages(made, stages), "litert")


def test_a_model_with_a_name_that_is_no_text_is_refused(made: artifact.Policy) -> None:
    first, *others = made.tflite
    broken = first.replace(b"head", b"h\xffad")
    assert broken != first
    with pytest.raises(ArtifactError, match=r"does not take stage0.tflite"):
        LitertRuntime(with_stages(made, [broken, *others]), "litert")


def test_a_failure_while_running_is_ours_and_the_next_call_is_sound(made: artifact.Policy) -> None:
    runtime, logits = LitertRuntime(made, "litert"), effective_thresholds([1, 1], 2)
    whole = list(runtime._stages)

    class Failing:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("out of memory")

    runtime._stages[1] = whole[1]._replace(interpreter=Failing())
    with pytest.raises(ArtifactError, match=r"cannot run stage1\.tflite: out of memory"):
        runtime.infer(made.golden_obs[0], logits)
    runtime._stages[:] = whole
    assert np.array_equal(runtime.infer(made.golden_obs[0], logits).head, made.golden_head[0, 2])


@pytest.mark.parametrize("fault", [SystemError("broken"), AttributeError("_ARRAY_API not found"), OSError("no .so")])
def test_a_package_that_imports_and_cannot_construct_is_named_with_cause_and_cure(
    fault: Exception, made: artifact.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interpreter(**_: object) -> None:
        raise fault from ImportError("numpy.core.multiarray failed to import")

    module: Any = types.ModuleType("tflite_runtime.interpreter")
    module.Interpreter = interpreter
    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)
    with pytest.raises(UsageError, match=r"multiarray failed to import.*pip install edgert\[tflite\].*numpy < 2"):
        LitertRuntime(made, "tflite")


def test_one_thread_is_asked_for(made: artifact.Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    from ai_edge_litert import interpreter as vendor

    asked: list[int] = []
    inner = vendor.Interpreter

    def recording(**options: Any) -> Any:
        asked.append(options["num_threads"])
        return inner(**options)

    monkeypatch.setattr(vendor, "Interpreter", recording)
    LitertRuntime(made, "litert")
    assert asked == [1, 1, 1]


def test_every_layer_is_taken_by_the_fast_kernels(made: artifact.Policy) -> None:
    # One delegate node a stage: a second one would mean that an operator between them was left to TFLite's own kernels.
    for stage in LitertRuntime(made, "litert")._stages:
        names = [one["op_name"] for one in stage.interpreter._get_ops_details()]
        assert names.count("DELEGATE") == 1


def test_the_models_are_not_written_to(made: artifact.Policy) -> None:
    before = [tflitefile.read(stage) for stage in made.tflite]
    LitertRuntime(made, "litert").infer(made.golden_obs[0], effective_thresholds([1, 1], 2))
    for stage, held in zip(made.tflite, before, strict=True):
        assert all(np.array_equal(values, held[name]) for name, values in tflitefile.read(stage).items())
