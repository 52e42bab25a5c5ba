"""The numpy runtime: nothing but numpy, the same integers as onnxruntime, some three times its time on small nets."""

from __future__ import annotations

import numpy as np

from edgert.errors import UsageError
from edgert.nets import F32, U8
from edgert.policy.artifact import Policy
from edgert.ports.runtime import Inference
from edgert.quant import IntNet


class NumpyRuntime:
    """Runs a policy with `quant.IntNet`; a stage that no exit asks for does not run.

    Attributes:
        name: `numpy`.
        net: the network; its `counts` say how often each stage ran.

    Thread: one at a time.
    """

    name = "numpy"

    def __init__(self, policy: Policy) -> None:
        """Prepare the weights."""
        self.net = IntNet(policy.spec, policy.tensors)

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
