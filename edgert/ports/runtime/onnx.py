"""The onnxruntime runtime: the only file that imports onnxruntime.

Inputs and outputs are bound once to numpy memory (`OrtValue.ortvalue_from_numpy` is backed by the array's own buffer
on the CPU), so a call copies the observation in, runs, and copies the head out: about 2 us less than `session.run`
with a dictionary.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: a board reports to its owner and nobody else

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8
from edgert.policy.artifact import Policy
from edgert.ports.runtime import Inference

if not hasattr(ort, "InferenceSession"):  # what an uninstall leaves behind can still be imported
    raise ImportError("its folder is there and its content is not")


def session(model: bytes) -> Any:
    """Open a session for one observation at a time on one core.

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
        raise ArtifactError(f"onnxruntime {ort.__version__} does not take policy.onnx: {error}") from error


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

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        """See `Runtime.infer`."""
        if obs.dtype != np.uint8 or obs.shape != self._shape or threshold_logits.shape != self._thresholds.shape:
            raise UsageError(
                f"this policy wants uint8 {self._shape} and {len(self._thresholds)} thresholds, "
                f"not {obs.dtype} {obs.shape} and {threshold_logits.shape}"
            )
        self._obs[0] = obs
        self._thresholds[:] = threshold_logits
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # as in `session`
            raise ArtifactError(f"onnxruntime {ort.__version__} cannot run policy.onnx: {error}") from error
        exit_ = int(self._exit[0])
        if not 0 <= exit_ <= len(self._thresholds):
            raise ArtifactError(f"policy.onnx says that exit {exit_} answered, of {len(self._thresholds) + 1}")
        return Inference(self._head[0].copy(), exit_)

    def close(self) -> None:
        """Drop the session; onnxruntime frees it with its last reference."""
        del self._binding, self._session
