"""What early exits save in time: the nested-If int8 graph against the int8 graph without exits, on onnxruntime.

Both graphs answer the same observations in one process, in pairs whose order alternates, so that whatever else the
machine does meets both alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgert.nets import U8, NetSpec
from edgert.policy.exits import effective_thresholds
from edgert.ports.runtime.onnx import bound_run, session
from edgert.quant import Tensors
from tools import export

DRAWS = 200
"""The ratio of medians is kept with as many draws of it, from pairs drawn anew."""
WARM_UP = 50
_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64}


class Graph:
    """A session whose inputs and outputs are bound once to numpy memory, as the board's runtime does it.

    Attributes:
        held: name -> array, of inputs and outputs.
    """

    def __init__(self, model: bytes) -> None:
        """Of a serialized model with fixed shapes."""
        opened = session(model)
        binding = opened.io_binding()
        self.held: dict[str, npt.NDArray[Any]] = {}
        for nodes, bind in (
            (opened.get_inputs(), binding.bind_ortvalue_input),
            (opened.get_outputs(), binding.bind_ortvalue_output),
        ):
            for node in nodes:
                self.held[node.name] = np.zeros(node.shape, _TYPES[node.type])
                bind(node.name, ort.OrtValue.ortvalue_from_numpy(self.held[node.name]))
        self._run = bound_run(opened, binding)

    def timed_s(self, obs: U8) -> float:
        """Answer one observation; how long it took, its copy into the session included."""
        begun_ns = time.perf_counter_ns()
        self.held["obs"][0] = obs
        self._run()
        return (time.perf_counter_ns() - begun_ns) * 1e-9


def pairs(ours: Graph, whole: Graph, obs: U8, n: int, period_s: float = 0.0) -> npt.NDArray[np.float64]:
    """Time both graphs on the same observations.

    Args:
        ours: one.
        whole: the other.
        obs: (m, H, W, C) uint8, taken in turn.
        n: pairs.
        period_s: between two calls; 0 is one after the other.

    Returns:
        (n, 2) seconds.
    """
    found = np.zeros((n, 2))
    graphs = (ours, whole)
    for i in range(-min(WARM_UP, n) if not period_s else 0, n):
        for which in (0, 1) if i % 2 else (1, 0):
            if period_s:
                time.sleep(period_s)
            took_s = graphs[which].timed_s(obs[i % len(obs)])
            if i >= 0:
                found[i, which] = took_s
    return found


def ratios(times_s: npt.NDArray[np.float64]) -> dict[str, Any]:
    """What pairs of times say.

    Args:
        times_s: (n, 2) seconds, ours and the whole network.

    Returns:
        p50, p99 and mean of each in microseconds, their ratios, and draws of the ratio of medians.
    """
    us = times_s * 1e6
    p50, p99, mean = np.median(us, 0), np.percentile(us, 99, axis=0), us.mean(0)
    rng = np.random.default_rng(0)
    drawn = [np.median(us[rng.integers(len(us), size=len(us))], 0) for _ in range(DRAWS)]
    return {
        "samples": len(us),
        **{
            f"{name}_us": [round(float(x), 2) for x in pair]
            for name, pair in (("p50", p50), ("p99", p99), ("mean", mean))
        },
        **{
            f"{name}_ratio": round(float(pair[0] / pair[1]), 4)
            for name, pair in (("p50", p50), ("p99", p99), ("mean", mean))
        },
        "p50_ratio_draws": [round(float(each[0] / each[1]), 4) for each in drawn],
    }


def measure(
    spec: NetSpec,
    tensors: Tensors,
    whole_spec: NetSpec,
    whole_tensors: Tensors,
    thresholds: Sequence[float],
    obs: U8,
    *,
    samples: int,
    paced_samples: int,
    rate_hz: float,
) -> dict[str, Any]:
    """Time the exits at their chosen thresholds, and the deepest exit of the same graph.

    Args:
        spec: of the network with exits.
        tensors: its int8 form.
        whole_spec: of the network that is run without exits.
        whole_tensors: its int8 form.
        thresholds: confidences.
        obs: (n, H, W, C) uint8 that these thresholds lead to.
        samples: pairs, one after the other.
        paced_samples: pairs at the control rate.
        rate_hz: the control rate.

    Returns:
        `hot`, `paced` and `deepest`, see `ratios`.
    """
    ours, whole = Graph(export.build(spec, tensors, "if")), Graph(export.build(whole_spec, whole_tensors, "last"))
    ours.held["threshold"][:] = effective_thresholds(thresholds, spec.n_exits)
    found = {
        "hot": ratios(pairs(ours, whole, obs, samples)),
        "paced": {**ratios(pairs(ours, whole, obs, paced_samples, 1 / rate_hz)), "rate_hz": rate_hz},
    }
    ours.held["threshold"][:] = np.inf
    return {**found, "deepest": ratios(pairs(ours, whole, obs, samples))}
