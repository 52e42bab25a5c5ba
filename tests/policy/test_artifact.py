from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, quant, tflitefile
from edgert.errors import ArtifactError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, forward, initialise, macs, ops
from edgert.policy import artifact
from edgert.policy.frontier import full_ops
from edgert.values import Operating

pytest.importorskip("onnx")
pytest.importorskip("gymnasium")
pytest.importorskip("ai_edge_litert")
from tools import export, tflite

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


def frontier_of(spec: NetSpec, **changed: Any) -> bundle.Frontier:
    """One point, half of whose ticks leave at the first exit."""
    whole, reference = full_ops(spec), bundle.Reference(1.0, 9)
    point = bundle.Point(
        thresholds=(0.5,), return_mean=1.0, return_frac=1.0, return_low=0.9, return_high=1.1,
        ops_frac=sum(ops(spec)) / 2 / whole, exit_share=(0.5, 0.5), held_share=0.0, episodes=9,
    )  # fmt: skip
    point = msgspec.structs.replace(point, **changed)
    return bundle.Frontier(random=reference, full=reference, full_ops=whole, points=(point,))


def test_a_frontier_that_another_network_was_measured_for_is_refused() -> None:
    sound = frontier_of(SPEC)
    assert artifact.load(altered(frontier=sound)).manifest.frontier == sound
    for wrong in (
        frontier_of(SPEC, ops_frac=0.01),
        frontier_of(SPEC, exit_share=(1.0, 0.0)),
        msgspec.structs.replace(sound, full_ops=5),
    ):
        with pytest.raises(ArtifactError, match="frontier: point 0 costs"):
            artifact.load(altered(frontier=wrong))


def test_a_bound_that_lets_any_answer_pass_is_refused() -> None:
    golden = bundle.read(packed()).manifest.golden
    with pytest.raises(ArtifactError, match="lets any answer pass"):
        artifact.load(altered(golden=msgspec.structs.replace(golden, max_head_error=1e9)))


def test_a_derived_bundle_drops_what_was_measured_on_its_parent() -> None:
    """Its confidences have moved: the frontier, the promise and repeating would be those of another network."""
    risk = bundle.Risk(
        max_loss_frac=0.1, delta=0.1, low=0.0, high=1.0, method="m", episodes=9, p_values=(0.01,), holds=True
    )
    measured = {
        "repeat": 3,
        "hold_threshold": 0.5,
        "risk": risk,
        "frontier": frontier_of(SPEC),
    }
    parent = artifact.load(altered(**measured))
    assert parent.manifest.risk == risk and parent.manifest.operating.repeat == 3
    _, params, _, obs = parts(1)
    made = artifact.load(artifact.derive(parent, params, quant.fit(params, obs), created="", provenance={})).manifest
    assert (made.frontier, made.risk, made.operating) == (None, None, Operating(parent.manifest.thresholds))


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


COST = bundle.Cost(
    board="linux", cpu="c", runtime="onnx", version="1", precision="int8", rate_hz=20.0,
    exits=(bundle.ExitCost(1e-4, 2e-4, 1e-4),) * 2, samples=9,
)  # fmt: skip


def test_operations_that_are_not_the_networks_are_refused_and_unknown_ones_are_not() -> None:
    right = tuple(map(bundle.Exit, macs(SPEC), ops(SPEC)))
    assert artifact.load(altered(exits=right)).manifest.exits == right
    with pytest.raises(ArtifactError, match="exits"):
        artifact.load(altered(exits=(right[0], bundle.Exit(right[1].macs, right[1].ops + 1))))


def with_float() -> artifact.Policy:
    manifest, params, onnx, obs = parts()
    return artifact.load(artifact.pack(manifest, params, onnx, obs, float_onnx=export.build_float(params)))


def test_the_float_form_has_the_graph_that_was_exported_and_the_float_answers() -> None:
    policy = with_float()
    found = artifact.as_float(policy)
    assert len(policy.bundle.members[bundle.FLOAT_MEMBER]) < 4 * policy.params.flat.size
    assert found.onnx == export.build_float(policy.params)
    heads = forward(policy.params, policy.golden_obs)
    assert np.array_equal(found.golden_head, np.stack([heads[0], heads[1]], 1))
    assert (policy.precision, found.precision) == ("int8", "fp32")
    assert policy.onnx != found.onnx  # the int8 policy is as it was
    assert artifact.as_float(artifact.load(packed())).onnx == b""  # a bundle without the graph still has the weights


def test_a_derived_bundle_has_the_float_graph_of_its_own_weights_and_the_costs_of_its_shape() -> None:
    _, params, _, obs = parts(1)
    parent = artifact.load(artifact.with_costs(with_float(), [COST]))
    made = artifact.derive(parent, params, quant.fit(params, obs), created="", provenance={})
    child = artifact.load(made)
    assert artifact.as_float(child).onnx == export.build_float(params)
    assert child.manifest.costs == (COST,)


def test_costs_are_added_and_replace_those_of_the_same_board_and_runtime() -> None:
    newer = msgspec.structs.replace(COST, samples=20, version="2")
    other = msgspec.structs.replace(COST, runtime="numpy")
    policy = artifact.load(artifact.with_costs(artifact.load(packed()), [COST, other]))
    policy = artifact.load(artifact.with_costs(policy, [newer]))
    assert policy.manifest.costs == (other, newer)
    assert policy.bundle.unknown == {"later": 1}
    with pytest.raises(ArtifactError, match="costs"):
        artifact.with_costs(policy, [msgspec.structs.replace(COST, exits=COST.exits[:1])])


# Layers whose zero points move with the weights, padding that needs them, and a ReLU of its own.
ODD = NetSpec(
    (9, 7, 3),
    2,
    trunk=((Conv(4, 3, 2, 1), MaxPool(2, 1), Conv(5, 3, 1, 1)), (Relu(), Conv(3, 2, 2, 1)), (Dense(6), Relu())),
    heads=((Dense(7), Relu()), (Dense(5),), ()),
    input_scale=1 / 255,
)


def with_stages(spec: NetSpec, seed: int = 0) -> bytes:
    manifest, _, _, _ = parts()
    rng = np.random.default_rng(seed)
    params, obs = initialise(spec, rng), rng.integers(0, 256, (12, *spec.input_shape)).astype(np.uint8)
    quantized = quant.fit(params, obs)
    manifest = msgspec.structs.replace(
        manifest,
        observation=bundle.Observation(spec.input_shape, spec.input_scale),
        action=bundle.Action(spec.n_actions),
        net=msgspec.to_builtins(spec),
        thresholds=(0.5,) * (spec.n_exits - 1),
        exits=tuple(bundle.Exit(cost) for cost in macs(spec)),
        ranges=quantized.ranges,
    )
    graph, stages = export.build(spec, quantized.tensors), tflite.build(spec, quantized.tensors)
    return artifact.pack(manifest, params, graph, obs, tflite=stages)


@pytest.mark.parametrize("spec", [SPEC, ODD])
def test_derived_tflite_models_are_those_that_the_exporter_would_write(spec: NetSpec) -> None:
    parent = artifact.load(with_stages(spec))
    params = initialise(spec, np.random.default_rng(5))
    params.flat += 0.1
    quantized = quant.fit(params, parent.golden_obs)
    child = artifact.load(artifact.derive(parent, params, quantized, created="", provenance={}))
    assert child.tflite == tuple(tflite.build(spec, quantized.tensors))
    assert all(new != old for new, old in zip(child.tflite, parent.tflite, strict=True))


def test_a_derived_network_acts_on_litert_as_its_integers_say() -> None:
    from edgert.ports.runtime.litert import LitertRuntime

    parent = artifact.load(with_stages(ODD))
    rng = np.random.default_rng(6)
    params = parent.params.copy()
    params.flat += rng.normal(0, 0.2, len(params.flat)).astype(np.float32)
    quantized = quant.fit(params, parent.golden_obs)
    # Moved as training moves it: scales, and zero points that are no longer the parent's.
    moved = [name for name, value in quantized.tensors.items() if not np.array_equal(value, parent.tensors[name])]
    assert any(name.endswith(".y.zp") for name in moved)
    child = artifact.load(artifact.derive(parent, params, quantized, created="", provenance={}))
    runtime, net = LitertRuntime(child, "litert"), quant.IntNet(ODD, quantized.tensors)
    for obs in rng.integers(0, 256, (40, *ODD.input_shape)).astype(np.uint8):
        for k, head in net.heads(obs[None]).items():
            logits = np.array([np.inf] * k + [-np.inf] * (2 - k), np.float32)
            answer = runtime.infer(obs, logits)
            assert answer.exit == k
            assert np.array_equal(answer.head, head[0])


def test_tflite_models_that_are_not_the_onnx_graphs_are_refused_by_name() -> None:
    found, other = bundle.read(with_stages(ODD)), bundle.read(with_stages(ODD, 1))
    for k in range(3):
        name = f"stage{k}.tflite"
        with pytest.raises(ArtifactError, match=f"{name} holds other values"):
            artifact.load(bundle.write(found.manifest, {**found.members, name: other.members[name]}))
    zero = tflitefile.read(found.members["stage1.tflite"])["x.zp"] + 1
    moved = tflitefile.patch(found.members["stage1.tflite"], {"x.zp": zero})
    for content in (b"junk", found.members["stage0.tflite"], moved):
        with pytest.raises(ArtifactError, match=r"TFLite|stage1"):
            artifact.load(bundle.write(found.manifest, {**found.members, "stage1.tflite": content}))


def test_a_bundle_without_tflite_models_derives_one_without() -> None:
    parent = artifact.load(packed())
    quantized = quant.fit(parent.params, parent.golden_obs)
    child = artifact.load(artifact.derive(parent, parent.params, quantized, created="", provenance={}))
    assert parent.tflite == child.tflite == ()
