from __future__ import annotations

import numpy as np
import pytest

from edgert import quant
from edgert.nets import initialise
from edgert.policy.exits import effective_thresholds

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from tools import export
from tools.bench.rapidrl import latency
from tools.nets import student

SPEC = student((10, 10, 4), 3)


def made() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    params = initialise(SPEC, rng)
    obs = rng.integers(0, 2, (16, *SPEC.input_shape)).astype(np.uint8)
    return dict(quant.fit(params, obs).tensors), obs


def test_what_is_timed_answers_as_the_network_does() -> None:
    tensors, obs = made()
    heads = quant.forward(SPEC, tensors, obs)
    graph, whole = latency.Graph(export.build(SPEC, tensors)), latency.Graph(export.build(SPEC, tensors, "last"))
    for k in range(3):
        graph.held["threshold"][:] = effective_thresholds((1.0, 1.0), k)
        assert graph.timed_s(obs[3]) > 0
        assert graph.held["exit"].tolist() == [k]
        assert graph.held["head"][0] == pytest.approx(heads[k][3], rel=1e-5, abs=1e-5)
    whole.timed_s(obs[3])
    assert whole.held["head"][0] == pytest.approx(heads[2][3], rel=1e-5, abs=1e-5)


def test_ratios_are_of_the_same_pairs() -> None:
    found = latency.ratios(np.array([[1.0, 2.0]] * 50 + [[3.0, 4.0]] * 49) * 1e-6)
    assert (found["p50_us"], found["p50_ratio"]) == ([1.0, 2.0], 0.5)
    assert (found["p99_us"], found["p99_ratio"]) == ([3.0, 4.0], 0.75)
    assert found["samples"] == 99
    assert {0.5, 0.75} >= set(found["p50_ratio_draws"])


def test_a_measurement_has_all_its_parts() -> None:
    tensors, obs = made()
    found = latency.measure(SPEC, tensors, SPEC, tensors, (0.5, 0.5), obs, samples=12, paced_samples=2, rate_hz=200.0)
    assert found["hot"]["samples"] == found["deepest"]["samples"] == 12
    assert (found["paced"]["samples"], found["paced"]["rate_hz"]) == (2, 200.0)
    assert all(found[part]["p50_ratio"] > 0 for part in found)
