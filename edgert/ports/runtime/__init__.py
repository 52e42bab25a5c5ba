"""Runtimes: what runs a bundle's int8 network, one observation at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8
from edgert.policy.artifact import Policy
from edgert.policy.exits import effective_thresholds

Kind = Literal["auto", "onnx", "litert", "tflite", "numpy"]

PACKAGES: dict[Kind, str] = {
    "onnx": "onnxruntime",
    "litert": "ai_edge_litert",
    "tflite": "tflite_runtime",
    "numpy": "numpy",
}
"""What each runtime needs, in the order in which `auto` tries them."""


class Inference(NamedTuple):
    """One answer.

    Attributes:
        head: (n_actions + 1,) float32, the caller's own: Q-values, then the confidence logit.
        exit: which exit gave it.
    """

    head: F32
    exit: int


class Graph(NamedTuple):
    """A network from elsewhere, opened, for batches; `ports.models` makes a teacher of it.

    Attributes:
        run: one input array, batch first -> every output. ArtifactError where it cannot.
        shape: of the input; None for a dimension of any size, and as a whole where the file does not say.
        dtype: of the input, as numpy names it; empty where the file does not say.
        outputs: their names; empty where they have none.
        said: what the file itself says of its use.
    """

    run: Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]
    shape: tuple[int | None, ...] | None
    dtype: str
    outputs: tuple[str, ...]
    said: Mapping[str, str]


class Runtime(Protocol):
    """Runs one policy.

    Thread: one at a time; make one runtime a thread.
    """

    @property
    def name(self) -> str:
        """For people: `onnx`, `litert`, `tflite` or `numpy`."""

    @property
    def rounds_as_reference(self) -> bool:
        """Whether every kernel rounds as `quant.IntNet` does, so that heads differ by float noise only."""

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


def _construct_one(policy: Policy, kind: Kind) -> Runtime:
    # The imports stand here, because none of the packages need be installed.
    match kind:
        case "onnx":
            try:
                from edgert.ports.runtime.onnx import OnnxRuntime
            except Exception as error:  # whatever a broken installation raises; another runtime may still work
                raise UsageError(
                    f"onnxruntime cannot be used ({error}): pip install edgert[onnx], or set runtime to numpy"
                ) from error
            return OnnxRuntime(policy)
        case "litert" | "tflite":
            from edgert.ports.runtime.litert import LitertRuntime

            return LitertRuntime(policy, kind)
        case _:
            from edgert.ports.runtime.numpy import NumpyRuntime

            return NumpyRuntime(policy)


def _construct(policy: Policy, kind: Kind) -> Runtime:
    if kind not in get_args(Kind):
        raise UsageError(f"there is no runtime {kind!r}: choose {', '.join(get_args(Kind))}")
    if kind != "auto":
        return _construct_one(policy, kind)
    graphs = {"onnx": policy.onnx, "litert": policy.tflite, "tflite": policy.tflite, "numpy": True}
    for one, package in PACKAGES.items():
        if graphs[one] and find_spec(package):
            # A package that is there and does not work must not keep a board from acting.
            with contextlib.suppress(UsageError):
                return _construct_one(policy, one)
    raise UsageError("no runtime works, not even numpy: reinstall edgert")


def _bound(runtime: Runtime, policy: Policy) -> float:
    """By how much its heads may differ from the golden ones."""
    golden = policy.manifest.golden
    other = 0.0 if runtime.rounds_as_reference else golden.max_rounding_error
    return max(golden.max_head_error, other)


def _check(runtime: Runtime, policy: Policy, i: int, thresholds: F32, wanted_exit: int) -> float:
    """Ask for one golden answer; how far off it is."""
    bound = _bound(runtime, policy)
    head, exit_ = runtime.infer(policy.golden_obs[i], thresholds)
    wanted = policy.golden_head[i, wanted_exit]
    where = f"runtime {runtime.name}, golden observation {i}, exit {wanted_exit}"
    if exit_ != wanted_exit:
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
    return error


def verify(runtime: Runtime, policy: Policy) -> float:
    """Ask a runtime for every golden answer at every exit, and see that confidences decide which exit answers.

    Returns:
        The largest difference found.

    Raises:
        ArtifactError: the wrong exit answered, an answer is not finite, differs by more than the manifest allows, or
            prefers another action although the best two golden values are further apart than that.
    """
    last, worst = policy.spec.n_exits - 1, 0.0
    for k in range(last + 1):
        thresholds = effective_thresholds([1.0] * last, k)
        for i in range(len(policy.golden_obs)):
            worst = max(worst, _check(runtime, policy, i, thresholds, k))
    # An infinite threshold would also pass a graph that compares with something else than this exit's confidence.
    margin = _bound(runtime, policy)
    for k in range(last):
        confidence = policy.golden_head[0, k, -1]
        for threshold, wanted in ((confidence - 2 * margin, k), (confidence + 2 * margin, k + 1)):
            thresholds = effective_thresholds([1.0] * last, k + 1)
            thresholds[k] = threshold
            _check(runtime, policy, 0, thresholds, wanted)
    return worst


def open_runtime(policy: Policy, kind: Kind = "auto") -> Runtime:
    """Make a runtime, hold it against the golden vectors and leave it warm.

    Blocks: for some tens of milliseconds; call it in the background when something else must go on acting.

    Args:
        policy: of `policy.artifact.load`.
        kind: `auto` is the first of `PACKAGES` that is installed and works, of what the bundle has a graph for.

    Returns:
        A runtime that gave every golden answer.

    Raises:
        ArtifactError: the network cannot be built, or an answer is wrong.
        UsageError: an unknown kind, or a package is asked for that is missing or does not work.
    """
    runtime = _construct(policy, kind)
    try:
        verify(runtime, policy)
    except BaseException:
        runtime.close()
        raise
    return runtime
