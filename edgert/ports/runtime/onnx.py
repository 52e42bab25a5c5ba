"""The onnxruntime runtime: the only file that imports onnxruntime.

Inputs and outputs are bound once to numpy memory (`OrtValue.ortvalue_from_numpy` is backed by the array's own buffer
on the CPU), so a call copies the observation in, runs, and copies the head out: about 2 us less than `session.run`
with a dictionary. At a control rate every call is a cold one, whose time goes to code and not to arithmetic: what can
be looked up once is looked up when the session is opened.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: a board reports to its owner and nobody else

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8
from edgert.policy.artifact import Policy
from edgert.ports.runtime import Graph, Inference

if not hasattr(ort, "InferenceSession"):  # what an uninstall leaves behind can still be imported
    raise ImportError("its folder is there and its content is not")

_OURS = "edgert."  # of metadata properties
_DTYPES = {"float": "float32", "double": "float64"}
_UINT8 = np.dtype(np.uint8)


def session(model: bytes, name: str = "policy.onnx") -> Any:
    """Open a session on one core.

    Raises:
        ArtifactError: onnxruntime does not take the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Spinning burns half a core between two decisions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # x86 without VNNI adds pairs of uint8 x int8 products in saturating int16; this makes it take the exact way there.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ArtifactError(f"onnxruntime {ort.__version__} does not take {name}: {error}") from error


def open_graph(model: bytes, name: str) -> Graph:
    """Open a graph from elsewhere, for batches.

    Args:
        model: the file, with its weights inside.
        name: of the file, for errors.

    Raises:
        ArtifactError: onnxruntime does not take it, or it wants more than one input.
    """
    opened = session(model, name)
    inputs = opened.get_inputs()
    if len(inputs) != 1:
        raise ArtifactError(f"{name} has inputs {', '.join(node.name for node in inputs)}: one is what can be asked")
    kind = inputs[0].type.removeprefix("tensor(").removesuffix(")")
    said = opened.get_modelmeta().custom_metadata_map

    def run(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        try:
            return list(opened.run(None, {inputs[0].name: rows}))
        except Exception as error:  # as in `session`
            raise ArtifactError(f"onnxruntime {ort.__version__} cannot run {name}: {error}") from error

    return Graph(
        run=run,
        shape=tuple(side if isinstance(side, int) else None for side in inputs[0].shape),
        dtype=_DTYPES.get(kind, kind),
        outputs=tuple(node.name for node in opened.get_outputs()),
        said={key.removeprefix(_OURS): value for key, value in said.items() if key.startswith(_OURS)},
    )


def bound_run(opened: Any, binding: Any) -> Callable[[], object]:
    """What runs a session on its binding.

    The public method looks after WebGPU first (1.31), which a cold call pays for with 5 % of its time; the call below
    it has been the same since 1.17.
    """
    inner, bound = getattr(opened, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return partial(opened.run_with_iobinding, binding)
    return partial(inner.run_with_iobinding, bound, None)


class OnnxRuntime:
    """Runs a policy in one session.

    Attributes:
        name: `onnx`.

    Thread: one at a time; the buffers are shared between calls.
    """

    name = "onnx"
    rounds_as_reference = True

    def __init__(self, policy: Policy) -> None:
        """Build the session and bind its buffers."""
        spec = policy.spec
        self._shape = spec.input_shape
        self._obs = np.zeros((1, *spec.input_shape), np.uint8)
        self._thresholds = np.zeros(spec.n_exits - 1, np.float32)
        self._head = np.zeros((1, spec.n_actions + 1), np.float32)
        self._exit = np.zeros(1, np.int64)
        self._session = session(policy.onnx)
        inputs: dict[str, npt.NDArray[Any]] = {"obs": self._obs}
        if spec.n_exits > 1:
            inputs["threshold"] = self._thresholds
        outputs: dict[str, npt.NDArray[Any]] = {"head": self._head, "exit": self._exit}
        for said, wanted in ((self._session.get_inputs(), inputs), (self._session.get_outputs(), outputs)):
            found = {node.name: tuple(node.shape) for node in said}
            if found != {name: array.shape for name, array in wanted.items()}:
                raise ArtifactError(
                    f"policy.onnx has {found} where the network needs { ({n: a.shape for n, a in wanted.items()}) }"
                )
        self._binding = self._session.io_binding()
        try:
            for name, array in inputs.items():
                self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            for name, array in outputs.items():
                self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        except Exception as error:  # as in `session`
            raise ArtifactError(
                f"onnxruntime {ort.__version__} does not take the buffers of policy.onnx: {error}"
            ) from error
        self._run = bound_run(self._session, self._binding)
        self._last = spec.n_exits - 1
        self._logits_shape = self._thresholds.shape
        self._obs_in, self._head_out, self._exit_out = self._obs[0], self._head[0], self._exit.data

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        """See `Runtime.infer`."""
        if obs.dtype != _UINT8 or obs.shape != self._shape or threshold_logits.shape != self._logits_shape:
            raise UsageError(
                f"this policy wants uint8 {self._shape} and {self._last} thresholds, "
                f"not {obs.dtype} {obs.shape} and {threshold_logits.shape}"
            )
        self._obs_in[...] = obs
        self._thresholds[...] = threshold_logits
        try:
            self._run()
        except Exception as error:  # as in `session`
            raise ArtifactError(f"onnxruntime {ort.__version__} cannot run policy.onnx: {error}") from error
        exit_ = self._exit_out[0]
        if not 0 <= exit_ <= self._last:
            raise ArtifactError(f"policy.onnx says that exit {exit_} answered, of {self._last + 1}")
        return Inference(self._head_out.copy(), exit_)

    def close(self) -> None:
        """Drop the session; onnxruntime frees it with its last reference."""
        del self._run, self._binding, self._session
