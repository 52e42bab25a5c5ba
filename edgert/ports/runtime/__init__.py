"""Runtimes: what runs a bundle's int8 network, one observation at a time."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, NamedTuple, Protocol

import numpy as np

from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8
from edgert.policy.artifact import Policy
from edgert.policy.exits import effective_thresholds

Kind = Literal["auto", "onnx", "numpy"]


class Inference(NamedTuple):
    """One answer.

    Attributes:
        head: (n_actions + 1,) float32, the caller's own: Q-values, then the confidence logit.
        exit: which exit gave it.
    """

    head: F32
    exit: int


class Runtime(Protocol):
    """Runs one policy.

    Thread: one at a time; make one runtime a thread.
    """

    @property
    def name(self) -> str:
        """For people: `onnx` or `numpy`."""

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        """Answer one observation with the first exit whose confidence logit reaches its threshold, or the last.

        Blocks: for the computation only; a few array allocations, no I/O.

        Args:
            obs: (H, W, C) uint8.
            threshold_logits: (n_exits - 1,) float32; -inf takes an exit, +inf passes it.

        Raises:
            UsageError: wrong shape or dtype.
            ArtifactError: the network cannot be run.
        """

    def close(self) -> None:
        """Release what the runtime holds; it must not be asked afterwards."""


def _construct(policy: Policy, kind: Kind) -> Runtime:
    if kind not in ("auto", "onnx", "numpy"):
        raise UsageError(f"there is no runtime {kind!r}: choose auto, onnx or numpy")
    if kind == "onnx" or (kind == "auto" and find_spec("onnxruntime")):
        try:
            from edgert.ports.runtime.onnx import OnnxRuntime  # here, because it may not be installed
        except ImportError as error:
            raise UsageError(
                f"onnxruntime cannot be used ({error}): pip install edgert[onnx], or set runtime to numpy"
            ) from error
        return OnnxRuntime(policy)
    from edgert.ports.runtime.numpy import NumpyRuntime

    return NumpyRuntime(policy)


def verify(runtime: Runtime, policy: Policy) -> float:
    """Ask a runtime for every golden answer at every exit.

    Returns:
        The largest difference found.

    Raises:
        ArtifactError: the wrong exit answered, an answer is not finite, differs by more than the manifest allows, or
            prefers another action although the best two golden values are further apart than that.
    """
    never, n_exits, bound = (
        [1.0] * (policy.spec.n_exits - 1),
        policy.spec.n_exits,
        policy.manifest.golden.max_head_error,
    )
    worst = 0.0
    for k in range(n_exits):
        thresholds = effective_thresholds(never, k)
        for i, obs in enumerate(policy.golden_obs):
            wanted, (head, exit_) = policy.golden_head[i, k], runtime.infer(obs, thresholds)
            where = f"runtime {runtime.name}, golden observation {i}, exit {k}"
            if exit_ != k:
                raise ArtifactError(f"{where}: exit {exit_} answered")
            if head.shape != wanted.shape or not np.isfinite(head).all():
                raise ArtifactError(f"{where}: answered {head.tolist()}")
            error = float(np.abs(head - wanted).max())
            if error > bound:
                raise ArtifactError(
                    f"{where}: off by {error:g}, at most {bound:g} is allowed; the bundle or the runtime is broken"
                )
            chosen, best = int(head[:-1].argmax()), int(wanted[:-1].argmax())
            if chosen != best and wanted[best] - wanted[chosen] > bound:
                raise ArtifactError(f"{where}: chose action {chosen} instead of {best}")
            worst = max(worst, error)
    return worst


def open_runtime(policy: Policy, kind: Kind = "auto") -> Runtime:
    """Make a runtime, hold it against the golden vectors and leave it warm.

    Blocks: for some tens of milliseconds; call it in the background when something else must go on acting.

    Args:
        policy: of `policy.artifact.load`.
        kind: `auto` is onnx where onnxruntime is installed, and numpy elsewhere.

    Returns:
        A runtime that gave every golden answer.

    Raises:
        ArtifactError: the network cannot be built, or an answer is wrong.
        UsageError: an unknown kind, or onnxruntime is asked for and missing.
    """
    runtime = _construct(policy, kind)
    try:
        verify(runtime, policy)
    except BaseException:
        runtime.close()
        raise
    return runtime
