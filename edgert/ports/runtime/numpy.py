"""The numpy runtime: nothing but numpy, the same integers as onnxruntime, some three times its time on small nets."""

from __future__ import annotations

import numpy as np

from edgert.errors import UsageError
from edgert.nets import F32, U8, Params, run_layers, stages
from edgert.policy.artifact import Policy
from edgert.ports.runtime import Inference
from edgert.quant import IntNet


class FloatNet:
    """A float32 network, run as `quant.IntNet` is.

    Attributes:
        spec: the network.
        counts: how often each stage's trunk has run.
    """

    def __init__(self, params: Params) -> None:
        """Take the parameters; they are not copied."""
        self.spec, self.counts = params.spec, [0] * params.spec.n_exits
        self._params, self._stages = params, stages(params.spec)

    def first_sure(self, obs: U8, threshold_logits: F32) -> tuple[F32, int]:
        """As `quant.IntNet.first_sure`."""
        x: F32 | U8 = obs
        last = self.spec.n_exits - 1
        for k, stage in enumerate(self._stages):
            self.counts[k] += 1
            x = run_layers(stage.trunk, self._params, x, None)
            head = run_layers(stage.head, self._params, x, None)[0]
            if k == last or head[-1] >= threshold_logits[k]:
                break
        return head, k


class NumpyRuntime:
    """Runs a policy with `quant.IntNet`, or one in float32 with `FloatNet`; a stage that no exit asks for does not run.

    Attributes:
        name: `numpy`.
        net: the network; its `counts` say how often each stage ran.

    Thread: one at a time.
    """

    name = "numpy"
    rounds_as_reference = True

    def __init__(self, policy: Policy) -> None:
        """Prepare the weights."""
        is_float = policy.precision == "fp32"
        self.net: IntNet | FloatNet = FloatNet(policy.params) if is_float else IntNet(policy.spec, policy.tensors)

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        """See `Runtime.infer`."""
        spec = self.net.spec
        if obs.dtype != np.uint8 or obs.shape != spec.input_shape or threshold_logits.shape != (spec.n_exits - 1,):
            raise UsageError(
                f"this policy wants uint8 {spec.input_shape} and {spec.n_exits - 1} thresholds, "
                f"not {obs.dtype} {obs.shape} and {threshold_logits.shape}"
            )
        return Inference(*self.net.first_sure(np.ascontiguousarray(obs[None]), threshold_logits))

    def close(self) -> None:
        """Nothing to release."""
