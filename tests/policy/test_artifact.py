from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, quant
from edgert.errors import ArtifactError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, initialise, macs
from edgert.policy import artifact

pytest.importorskip("onnx")
pytest.importorskip("gymnasium")
from tools import export

SPEC = NetSpec((6, 6, 2), 3, trunk=((Conv(4, 3), Relu()), (Dense(8), Relu())), heads=((MaxPool(2, 2),), ()))


def parts(seed: int = 0) -> tuple[bundle.Manifest, Params, bytes, np.ndarray]:
    rng = np.random.default_rng(seed)
    params, obs = initialise(SPEC, rng), rng.integers(0, 2, (12, *SPEC.input_shape)).astype(np.uint8)
    ranges = quant.calibrate(params, obs)
    manifest = bundle.Manifest(
        name="n",
        task="t",
        created="2026-01-01T00:00:00+00:00",
        edgert="0",
        observation=bundle.Observation(SPEC.input_shape, SPEC.input_scale),
        action=bundle.Action(SPEC.n_actions),
        control_rate_hz=20,
        gamma=0.99,
        net=msgspec.to_builtins(SPEC),
        thresholds=(0.5,),
        exits=tuple(bundle.Exit(cost) for cost in macs(SPEC)),
        safe_action=0,
        ranges=ranges,
        golden=bundle.Golden(1, 0),
    )
    return manifest, params, export.build(SPEC, quant.quantize(params, ranges)), obs


def packed() -> bytes:
    return artifact.pack(*parts(), {"later": 1})


def altered(members: dict[str, bytes] | None = None, **changed: Any) -> bytes:
    found = bundle.read(packed())
    return bundle.write(msgspec.structs.replace(found.manifest, **changed), {**found.members, **(members or {})})


def test_what_is_packed_is_loaded() -> None:
    manifest, params, onnx, obs = parts()
    policy = artifact.load(packed())
    assert policy.spec == SPEC
    assert np.array_equal(policy.params.flat, params.flat)
    assert policy.onnx == onnx
    assert np.array_equal(policy.golden_obs, obs)
    heads = quant.forward(SPEC, quant.quantize(params, manifest.ranges), obs)
    assert np.array_equal(policy.golden_head, np.stack([heads[0], heads[1]], 1))
    assert policy.manifest.golden.count == len(obs)
    assert packed() == packed()


def test_derived_bundles_carry_the_new_network_and_keep_the_rest() -> None:
    parent = artifact.load(packed())
    _, params, _, obs = parts(1)
    quantized = quant.fit(params, obs)
    made = {"created": "2026-02-02T00:00:00+00:00", "provenance": {"steps": 5}}
    child = artifact.load(artifact.derive(parent, params, quantized, **made))
    assert np.array_equal(child.params.flat, params.flat)
    assert all(np.array_equal(child.tensors[name], values) for name, values in quantized.tensors.items())
    assert np.array_equal(child.golden_obs, parent.golden_obs)
    assert not np.array_equal(child.golden_head, parent.golden_head)
    assert bundle.schema_hash(child.manifest) == bundle.schema_hash(parent.manifest)
    assert child.manifest.ranges == quantized.ranges
    assert (child.manifest.created, child.manifest.provenance) == (made["created"], made["provenance"])
    assert child.bundle.unknown == {"later": 1}
    assert child.manifest.thresholds == parent.manifest.thresholds
    other = artifact.load(artifact.derive(parent, params, quantized, thresholds=[0.25], **made))
    assert other.manifest.thresholds == (0.25,)


def test_deriving_from_a_broken_or_foreign_network_is_refused() -> None:
    parent, made = artifact.load(packed()), {"created": "", "provenance": {}}
    params, quantized = parent.params.copy(), quant.fit(parent.params, parent.golden_obs)
    params.flat[3] = np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        artifact.derive(parent, params, quantized, **made)
    foreign = Params(msgspec.structs.replace(SPEC, n_actions=4))
    with pytest.raises(ArtifactError, match="another network"):
        artifact.derive(parent, foreign, quantized, **made)


@pytest.mark.parametrize(
    "net",
    [
        {},
        {**msgspec.to_builtins(SPEC), "heads": []},
        {**msgspec.to_builtins(SPEC), "n_actions": 7},
        {**msgspec.to_builtins(SPEC), "input_shape": [6, 6, 3]},
        {**msgspec.to_builtins(SPEC), "input_scale": 0.5},
        {**msgspec.to_builtins(SPEC), "trunk": [[{"type": "conv", "channels": 4, "kernel": 3, "stride": 0}], []]},
        {**msgspec.to_builtins(SPEC), "trunk": [[{"type": "dense", "units": 10**12}], [{"type": "relu"}]]},
        {**msgspec.to_builtins(SPEC), "trunk": [[{"type": "dense", "units": -1}], [{"type": "relu"}]]},
        {**msgspec.to_builtins(SPEC), "trunk": [[{"type": "lstm"}], []]},
    ],
)
def test_a_network_that_is_not_the_bundles_is_refused(net: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="net"):
        artifact.load(altered(net=net))


@pytest.mark.parametrize(
    ("name", "content"), [("params.f32", b"\0" * 4), ("golden.obs", b""), ("golden.head", b"\0" * 8)]
)
def test_arrays_of_the_wrong_size_are_refused_by_name(name: str, content: bytes) -> None:
    with pytest.raises(ArtifactError, match=name):
        artifact.load(altered({name: content}))


@pytest.mark.parametrize("name", ["params.f32", "golden.head"])
def test_arrays_that_are_not_finite_are_refused_by_name(name: str) -> None:
    content = bytearray(bundle.read(packed()).members[name])
    content[:4] = np.float32(np.nan).tobytes()
    with pytest.raises(ArtifactError, match=name):
        artifact.load(altered({name: bytes(content)}))


def test_a_graph_of_another_network_is_refused() -> None:
    with pytest.raises(ArtifactError, match="ONNX"):
        artifact.load(altered({"policy.onnx": b"junk"}))
    other = msgspec.structs.replace(SPEC, n_actions=5)
    params = initialise(other, np.random.default_rng(0))
    tensors = quant.quantize(params, quant.calibrate(params, np.ones((2, 6, 6, 2), np.uint8)))
    with pytest.raises(ArtifactError, match="tensor"):
        artifact.load(altered({"policy.onnx": export.build(other, tensors)}))
