"""The TFLite runtimes: the only file that imports ai_edge_litert and tflite_runtime, which have one interface.

A stage is a model of its own and the decision lies between them, so a stage that no exit asks for does not run.
Values are copied in and out: at these sizes that is quicker than a view of the interpreter's own memory, and nothing
of it can outlive a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8, stages
from edgert.policy.artifact import Policy
from edgert.ports.runtime import Inference

_SIGN = np.uint8(128)  # uint8 and int8 that mean the same differ in this bit
# tflite-runtime 2.14 with numpy 2: the import passes, and the first interpreter is a SystemError.
_BROKEN = (ImportError, SystemError, AttributeError, TypeError, OSError)
_CURES = {
    "litert": "pip install edgert[litert]",
    "tflite": "pip install edgert[tflite] (it wants numpy < 2 and Python < 3.12), or set runtime to litert",
}


def _interpreter(vendor: Literal["litert", "tflite"], model: bytes) -> Any:
    """Build an interpreter, which is also the only proof that the package works.

    Raises:
        UsageError: the package is missing or cannot construct an interpreter.
        ArtifactError: it does not take the model.
    """
    try:
        if vendor == "litert":
            from ai_edge_litert.interpreter import Interpreter
        else:
            from tflite_runtime.interpreter import Interpreter
    except (*_BROKEN, RuntimeError, ValueError) as error:
        raise UsageError(f"runtime {vendor} cannot be used ({error}): {_CURES[vendor]}") from error
    try:
        return Interpreter(model_content=model, num_threads=1)
    except (RuntimeError, ValueError) as error:  # what the packages say of a model
        raise ArtifactError(f"runtime {vendor} does not take the bundle's TFLite models: {error}") from error
    except _BROKEN as error:
        raise UsageError(f"runtime {vendor} cannot be used ({error.__cause__ or error}): {_CURES[vendor]}") from error


class _Stage(NamedTuple):
    """One stage's interpreter and the numbers of its tensors."""

    interpreter: Any
    x: int
    head: int
    features: int | None


class LitertRuntime:
    """Runs a policy stage by stage.

    Attributes:
        name: `litert` or `tflite`.

    Thread: one at a time.
    """

    rounds_as_reference = False  # where XNNPACK does not take a layer, TFLite's own kernels do

    def __init__(self, policy: Policy, vendor: Literal["litert", "tflite"]) -> None:
        """Build an interpreter a stage."""
        spec, self.name = policy.spec, vendor
        if not policy.tflite:
            raise ArtifactError(
                f"bundle {policy.manifest.name} has no TFLite models: export it again, or set runtime to onnx or numpy"
            )
        self._shape, self._last = spec.input_shape, spec.n_exits - 1
        self._gap_logits = [stage.head[-1].gap_logits for stage in stages(spec)]
        self._x = np.zeros((1, *spec.input_shape), np.uint8)
        self._signed = self._x.view(np.int8)
        self._stages = []
        wanted: tuple[int, ...] = self._x.shape
        for k, model in enumerate(policy.tflite):
            interpreter = _interpreter(vendor, model)
            try:
                interpreter.allocate_tensors()
                inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
            except (ValueError, RuntimeError) as error:  # a tensor's name that is no text is found by the second
                raise ArtifactError(f"runtime {vendor} does not take stage{k}.tflite: {error}") from error
            found = [(one["dtype"], tuple(one["shape"])) for one in (*inputs, *outputs[:1])]
            if found != [(np.int8, wanted), (np.float32, (1, spec.n_actions + 1))] or len(outputs) != 1 + (
                k < self._last
            ):
                raise ArtifactError(f"stage{k}.tflite has inputs and outputs {found} that do not fit the network")
            features = outputs[1] if k < self._last else None
            wanted = tuple(features["shape"]) if features else ()
            self._stages.append(
                _Stage(interpreter, inputs[0]["index"], outputs[0]["index"], features["index"] if features else None)
            )

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        """See `Runtime.infer`."""
        if obs.dtype != np.uint8 or obs.shape != self._shape or threshold_logits.shape != (self._last,):
            raise UsageError(
                f"this policy wants uint8 {self._shape} and {self._last} thresholds, "
                f"not {obs.dtype} {obs.shape} and {threshold_logits.shape}"
            )
        np.bitwise_xor(obs, _SIGN, out=self._x[0])
        x: Any = self._signed
        try:
            for k, (interpreter, x_index, head_index, features_index) in enumerate(self._stages):
                interpreter.set_tensor(x_index, x)
                interpreter.invoke()
                head = interpreter.get_tensor(head_index)[0]
                if self._gap_logits[k]:  # `add_gap` of one row: plain Python is quicker on a handful of numbers
                    *_, second, best = sorted(head[:-1].tolist())
                    head[-1] += self._gap_logits[k] * (best - second)
                if features_index is None or head[-1] >= threshold_logits[k]:
                    break
                x = interpreter.get_tensor(features_index)
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"runtime {self.name} cannot run stage{k}.tflite: {error}") from error
        return Inference(head, k)

    def close(self) -> None:
        """Drop the interpreters; they free their memory with their last reference."""
        self._stages.clear()


def open_model(vendor: Literal["litert", "tflite"], model: bytes) -> Callable[[U8], F32]:
    """Open the only stage of a network without exits, as `tools.tflite` writes it.

    Raises:
        UsageError: the package is missing or does not work.
        ArtifactError: it does not take the model.
    """
    interpreter = _interpreter(vendor, model)
    try:
        interpreter.allocate_tensors()
        (asked,), (answered,) = interpreter.get_input_details(), interpreter.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"runtime {vendor} does not take the model: {error}") from error
    if asked["dtype"] != np.int8 or answered["dtype"] != np.float32 or len(answered["shape"]) != 2:
        raise ArtifactError(f"runtime {vendor}: the model is not one of int8 in and float32 out")

    def run(row: U8) -> F32:
        try:
            interpreter.set_tensor(asked["index"], np.bitwise_xor(row, _SIGN).view(np.int8)[None])
            interpreter.invoke()
            head: F32 = interpreter.get_tensor(answered["index"])[0]
            return head
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"runtime {vendor} cannot run the model: {error}") from error

    return run
