"""What the onnxruntime runtime promises beyond the contract in test_runtimes.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgert import onnxfile
from edgert.errors import ArtifactError
from edgert.policy import artifact
from edgert.policy.exits import effective_thresholds

pytest.importorskip("onnxruntime")
from edgert.ports.runtime import onnx
from edgert.ports.runtime.onnx import OnnxRuntime

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def made() -> artifact.Policy:
    return artifact.load((MODELS / "breakout.edgert").read_bytes())


def with_graph(policy: artifact.Policy, graph: bytes) -> artifact.Policy:
    return policy._replace(bundle=policy.bundle._replace(members={**policy.bundle.members, "policy.onnx": graph}))


def test_the_branch_that_is_not_taken_does_not_run(made: artifact.Policy) -> None:
    # A deeper stage whose one scale is zero gives other answers there, and must change nothing at exit 0.
    scale = made.tensors["t1.0.w.scale"]
    crippled = with_graph(made, onnxfile.patch(made.onnx, {"t1.0.w.scale": np.zeros_like(scale)}))
    runtime, shallow, deep = OnnxRuntime(crippled), *(effective_thresholds([1, 1], k) for k in (0, 2))
    obs = made.golden_obs[0]
    assert np.array_equal(runtime.infer(obs, shallow).head, made.golden_head[0, 0])
    assert not np.array_equal(runtime.infer(obs, deep).head, made.golden_head[0, 2])


def test_graphs_that_onnxruntime_refuses_and_graphs_of_another_shape_are_named(made: artifact.Policy) -> None:
    other = artifact.load((MODELS / "space_invaders.edgert").read_bytes())
    for graph, what in ((b"junk", "does not take"), (other.onnx, "where the network needs")):
        with pytest.raises(ArtifactError, match=what):
            OnnxRuntime(with_graph(made, graph))


def test_a_failure_while_running_is_ours_and_the_next_call_is_sound(made: artifact.Policy) -> None:
    runtime, logits = OnnxRuntime(made), effective_thresholds([1, 1], 2)
    run = runtime._run

    def failing() -> None:
        raise RuntimeError("out of memory")

    runtime._run = failing
    with pytest.raises(ArtifactError, match=r"cannot run policy\.onnx: out of memory"):
        runtime.infer(made.golden_obs[0], logits)
    runtime._run = run
    assert np.array_equal(runtime.infer(made.golden_obs[0], logits).head, made.golden_head[0, 2])


def test_a_session_without_an_inner_one_is_run_by_its_public_method(made: artifact.Policy) -> None:
    runtime = OnnxRuntime(made)

    class Public:
        """What an onnxruntime would be that hides everything."""

        def run_with_iobinding(self, binding: object) -> None:
            assert binding is runtime._binding
            session.run_with_iobinding(binding)

    session, logits = runtime._session, effective_thresholds([1, 1], 1)
    runtime._run = onnx.bound_run(Public(), runtime._binding)
    assert np.array_equal(runtime.infer(made.golden_obs[0], logits).head, made.golden_head[0, 1])


def test_one_core_is_used_and_none_is_kept_busy(made: artifact.Policy) -> None:
    options = onnx.session(made.onnx).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
