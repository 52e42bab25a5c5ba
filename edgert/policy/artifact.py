"""A bundle as arrays: the network, its parameters and its golden vectors, checked against one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import __version__, bundle, onnxfile, quant, tflitefile
from edgert.bundle import Bundle, Cost, Golden, Manifest
from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8, Conv, NetSpec, Params, Placed, forward, macs, matrix_shape, ops, stages, weighted
from edgert.policy.frontier import full_ops

_EDGE_MAX = 1 << 16
_UNITS_A_STEP = (2.0**-32, 255.0)  # of any multiplier: outside, everything rounds to 0 or saturates, whatever it is
_HEAD_ERROR_FRAC = 1e-3  # of the largest golden value: far above float rounding, far below one wrong weight


class Policy(NamedTuple):
    """A bundle that passed every check short of running it.

    Attributes:
        bundle: manifest and members.
        spec: the network.
        params: float32 parameters, a copy of its own.
        tensors: of `policy.onnx`, by name; holds at least `quant.layout(spec)`.
        golden_obs: (n, H, W, C) uint8.
        golden_head: (n, n_exits, n_actions + 1) float32.
        precision: what `onnx` and `golden_head` are in; see `as_float`.
    """

    bundle: Bundle
    spec: NetSpec
    params: Params
    tensors: quant.Tensors
    golden_obs: U8
    golden_head: F32
    precision: bundle.Precision = "int8"

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def onnx(self) -> bytes:
        """The serialized graph; empty where the bundle has none in this precision."""
        return self.bundle.members["policy.onnx"]

    @property
    def tflite(self) -> tuple[bytes, ...]:
        """The same graph as one TFLite model a stage; empty in a bundle without them."""
        members = self.bundle.members
        return tuple(members[name] for name in bundle.stage_members(self.spec.n_exits) if name in members)


def _needs_pad(placed: Placed) -> bool:
    """Whether a layer pads its input in a way that TFLite's SAME does not mean."""
    if not isinstance(placed.layer, Conv) or not placed.layer.padding:
        return False
    _, kernel, stride, padding = msgspec.structs.astuple(placed.layer)
    for size, wanted in zip(placed.in_shape[:2], placed.out_shape[:2], strict=True):
        added = max((wanted - 1) * stride + kernel - size, 0)
        if wanted != -(-size // stride) or added // 2 != padding:
            return True
    return False


def tflite_tensors(spec: NetSpec, tensors: quant.Tensors) -> list[dict[str, npt.NDArray[Any]]]:
    """What the TFLite model of each stage holds.

    Every activation has the scale 1 there and a zero point 128 below ours, since TFLite wants int8: the network counts
    in steps of its own quantization, and a layer's weight scale is the multiplier from its sums to the next layer's
    steps. So an output layer's input is a whole number even as a float, its sums are exact, and one multiplication at
    the end gives the very bits of `quant.IntNet`.

    Args:
        spec: the network.
        tensors: of `quant.quantize`.

    Returns:
        For each stage, name as in `tflitefile` -> array. `x` is its input; `<layer>.y` is what a layer gives;
        weights are (out, row, column, in) int8, or (out, in), which is float32 in output layers.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours; the order of the float32 products in the multiplier is onnxruntime's and XNNPACK's.
    """
    zero = {"obs": np.array([-128], np.int64)}
    found = []
    for stage in quant.steps(spec):
        held: dict[str, npt.NDArray[Any]] = {"x.zp": zero[stage.trunk[0].source]}
        for step in (*stage.trunk, *stage.head):
            name = step.placed.name
            if not step.weighted:
                held[f"{name}.y.zp"] = zero[step.source]
                continue
            weight, bias = tensors[f"{name}.w"], tensors[f"{name}.b"]
            if _needs_pad(step.placed):
                held[f"{name}.padded.zp"] = zero[step.source]
            scale = tensors[f"{name}.x.scale"] * tensors[f"{name}.w.scale"]
            weight = weight.transpose(0, 2, 3, 1) if isinstance(step.placed.layer, Conv) else weight.T
            if step.is_output:
                held[f"{name}.w"], held[f"{name}.b"] = weight.astype(np.float32), bias.astype(np.float32)
                held[f"{name}.unit"] = scale
                continue
            scale = np.clip(scale / tensors[f"{name}.y.scale"], *_UNITS_A_STEP).astype(np.float32)
            zero[name] = tensors[f"{name}.y.zp"].reshape(1).astype(np.int64) - 128
            held[f"{name}.w"], held[f"{name}.b"] = weight, bias
            held[f"{name}.w.scale"] = held[f"{name}.b.scale"] = scale
            held[f"{name}.y.zp"] = zero[name]
        found.append(held)
    return found


def _spec(manifest: Manifest) -> NetSpec:
    """The network that a manifest describes, buildable and as large as it says."""
    try:
        spec = msgspec.convert(manifest.net, NetSpec)
        layers = [layer for part in (*spec.trunk, *spec.heads) for layer in part]
        for layer in layers:
            for field, size in msgspec.structs.asdict(layer).items():
                if not (field != "padding") <= size <= _EDGE_MAX:
                    raise ArtifactError(f"bundle, manifest.json, net: {field} is {size}")
        stages(spec)
    except (msgspec.ValidationError, UsageError) as error:
        raise ArtifactError(f"bundle, manifest.json, net: {error}") from error
    said = (manifest.observation.shape, manifest.action.n, manifest.observation.scale)
    fits = (tuple(spec.input_shape), spec.n_actions, spec.input_scale) == said
    fits = fits and [e.macs for e in manifest.exits] == macs(spec)
    if not fits or any(e.ops not in (None, n) for e, n in zip(manifest.exits, ops(spec), strict=True)):
        raise ArtifactError("bundle, manifest.json: net does not fit observation, action and exits")
    _check_frontier(manifest, spec)
    return spec


def _check_frontier(manifest: Manifest, spec: NetSpec) -> None:
    """What the points cost must be what the network costs at the exits they say they took."""
    if manifest.frontier is None:
        return
    whole, cost = full_ops(spec), ops(spec)
    for i, point in enumerate(manifest.frontier.points):
        spent_frac = sum(share * each for share, each in zip(point.exit_share, cost, strict=True)) / whole
        if manifest.frontier.full_ops != whole or abs(point.ops_frac - spent_frac) > 1e-6:
            raise ArtifactError(
                f"bundle, manifest.json, frontier: point {i} costs {point.ops_frac:g} of {manifest.frontier.full_ops}"
                f" operations, and this network {spent_frac:g} of {whole}; export it again"
            )


def load(data: bytes) -> Policy:
    """Read a bundle and check that its arrays belong together.

    Args:
        data: the file.

    Returns:
        The policy; whether a runtime answers the golden vectors is `ports.runtime.open_runtime`'s check.

    Raises:
        ArtifactError: as `bundle.read`, or network, parameters, graph and golden vectors do not fit one another.
    Source:
        ours: everything is checked before the first tick, so that a tick can trust its arrays.
    """
    packed = bundle.read(data)
    spec = _spec(packed.manifest)
    sizes = {"params.f32": 4 * sum(rows * columns + columns for rows, columns in map(matrix_shape, weighted(spec)))}
    n = packed.manifest.golden.count
    golden_shapes = {"golden.obs": (n, *spec.input_shape), "golden.head": (n, spec.n_exits, spec.n_actions + 1)}
    sizes["golden.obs"] = int(np.prod(golden_shapes["golden.obs"], dtype=object))
    sizes["golden.head"] = 4 * int(np.prod(golden_shapes["golden.head"], dtype=object))
    for name, size in sizes.items():
        if len(packed.members[name]) != size:
            raise ArtifactError(
                f"bundle: {name} has {len(packed.members[name])} bytes, the manifest's network needs {size}"
            )
    flat = np.frombuffer(packed.members["params.f32"], "<f4").astype(np.float32)
    golden_obs = np.frombuffer(packed.members["golden.obs"], np.uint8).reshape(golden_shapes["golden.obs"])
    golden_head = (
        np.frombuffer(packed.members["golden.head"], "<f4").astype(np.float32).reshape(golden_shapes["golden.head"])
    )
    for name, values in (("params.f32", flat), ("golden.head", golden_head)):
        if not np.isfinite(values).all():
            raise ArtifactError(f"bundle: {name} holds values that are not finite")
    largest, allowed = float(np.abs(golden_head).max()), packed.manifest.golden.max_head_error
    if allowed > largest + 1e-6:
        raise ArtifactError(f"bundle: max_head_error {allowed:g} lets any answer pass, none is above {largest:g}")
    tensors = onnxfile.read(packed.members["policy.onnx"])
    quant.IntNet(spec, tensors)
    policy = Policy(packed, spec, Params(spec, flat), tensors, golden_obs, golden_head)
    for k, (stage, held) in enumerate(zip(policy.tflite, tflite_tensors(spec, tensors), strict=False)):
        if tflitefile.patch(stage, held) != stage:
            raise ArtifactError(f"bundle: stage{k}.tflite holds other values than policy.onnx; export it again")
    return policy


def pack(
    manifest: Manifest,
    params: Params,
    onnx: bytes,
    golden_obs: U8,
    unknown: Mapping[str, Any] | None = None,
    *,
    tflite: Sequence[bytes] = (),
    float_onnx: bytes = b"",
) -> bytes:
    """Make a bundle; the golden answers come from the integer reference on the graph's own tensors.

    Args:
        manifest: its `golden` and `members` are filled in here.
        params: float32 parameters.
        onnx: the int8 graph, its tensors already those of the parameters.
        golden_obs: (n, H, W, C) uint8, n >= 1.
        unknown: manifest keys of a later version, carried along.
        tflite: the same graph as one TFLite model a stage, or none.
        float_onnx: the float32 graph, with weights or without, or none.

    Returns:
        The file.

    Raises:
        ArtifactError: the parts do not fit one another.
        UsageError: observations of the wrong shape or dtype.
    Source:
        ours: a bundle that this function cannot load again is never handed out.
    """
    heads = quant.forward(params.spec, onnxfile.read(onnx), golden_obs)
    golden_head = np.stack([heads[k] for k in range(params.spec.n_exits)], 1)
    bound = _HEAD_ERROR_FRAC * float(np.abs(golden_head).max(initial=0)) + 1e-6
    # Two roundings of one network may lie on either side of it.
    floats = forward(params, golden_obs)
    rounding = max(float(np.abs(heads[k] - floats[k]).max()) for k in heads)
    manifest = msgspec.structs.replace(manifest, golden=Golden(len(golden_obs), bound, max(bound, 2 * rounding)))
    members = {
        "policy.onnx": onnx,
        "params.f32": params.flat.astype("<f4").tobytes(),
        "golden.obs": golden_obs.tobytes(),
        "golden.head": golden_head.astype("<f4").tobytes(),
        **dict(zip(bundle.stage_members(len(tflite)), tflite, strict=True)),
    }
    if float_onnx:
        members[bundle.FLOAT_MEMBER] = onnxfile.strip(float_onnx, params.views.keys())
        onnxfile.fill(members[bundle.FLOAT_MEMBER], float_tensors(params))
    data = bundle.write(manifest, members, unknown)
    load(data)
    return data


def derive(
    parent: Policy,
    params: Params,
    quantized: quant.Quantized,
    *,
    created: str,
    provenance: Mapping[str, Any],
    thresholds: Sequence[float] | None = None,
) -> bytes:
    """Make a new bundle from a network that went on learning.

    Args:
        parent: the policy it started from; graph, schema and golden observations are taken from there.
        params: the new parameters.
        quantized: of `quant.fit` with them.
        created: UTC, ISO 8601.
        provenance: where the new network comes from.
        thresholds: confidences 0..1; None keeps the parent's.

    Returns:
        The file; equal arguments give equal bytes. It has no frontier, no promise and repeats no action: those were
        measured on the parent.

    Raises:
        ArtifactError: parameters or ranges are not finite or do not fit the parent.
    Source:
        ours: overwriting same-size tensors needs no exporter on the board.
    """
    if params.spec != parent.spec:
        raise ArtifactError("the new parameters belong to another network than the bundle they should replace")
    onnx = onnxfile.patch(parent.onnx, quantized.tensors)
    held = tflite_tensors(parent.spec, quantized.tensors) if parent.tflite else []
    tflite = [tflitefile.patch(*stage) for stage in zip(parent.tflite, held, strict=True)]
    float_onnx = parent.bundle.members.get(bundle.FLOAT_MEMBER, b"")
    manifest = msgspec.structs.replace(
        parent.manifest,
        created=created,
        edgert=__version__,
        ranges=quantized.ranges,
        provenance=dict(provenance),
        thresholds=parent.manifest.thresholds if thresholds is None else tuple(thresholds),
        # Measured on the parent: they say nothing about this network, whose confidences have moved.
        repeat=1,
        hold_threshold=1.0,
        frontier=None,
        risk=None,
    )
    return pack(manifest, params, onnx, parent.golden_obs, parent.bundle.unknown, tflite=tflite, float_onnx=float_onnx)


def float_tensors(params: Params) -> dict[str, F32]:
    """What the float32 graph holds.

    Args:
        params: float32 parameters.

    Returns:
        `<layer>.w` and `<layer>.b` as ONNX wants them: convolutions (out, in, row, column), dense (in, out).

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ONNX operator specification, Conv and Gemm.
    """
    found = dict(params.views)
    for name, layer, in_shape, *_ in weighted(params.spec):
        if isinstance(layer, Conv):
            rows = found[f"{name}.w"].reshape(layer.kernel, layer.kernel, in_shape[-1], -1)
            found[f"{name}.w"] = np.ascontiguousarray(rows.transpose(3, 2, 0, 1))
    return found


def as_float(policy: Policy) -> Policy:
    """The same network in float32, for boards on which that is faster than int8.

    Args:
        policy: of `load`.

    Returns:
        A policy whose graph and golden answers are those of the float parameters; its TFLite models are left out. The
        thresholds are the bundle's, fitted on int8 heads, which differ from these by no more than rounding does.

    Raises:
        ArtifactError: the float graph does not fit the parameters.
    Source:
        ours: int8 can be slower than float on small networks and on cores without integer dot products.
    """
    members = {name: policy.bundle.members[name] for name in bundle.MEMBERS}
    stripped = policy.bundle.members.get(bundle.FLOAT_MEMBER)
    members["policy.onnx"] = b"" if stripped is None else onnxfile.fill(stripped, float_tensors(policy.params))
    heads = forward(policy.params, policy.golden_obs)
    golden_head = np.stack([heads[k] for k in range(policy.spec.n_exits)], 1)
    bound = _HEAD_ERROR_FRAC * float(np.abs(golden_head).max(initial=0)) + 1e-6
    manifest = msgspec.structs.replace(policy.manifest, golden=Golden(len(golden_head), bound, bound))
    return policy._replace(
        bundle=policy.bundle._replace(manifest=manifest, members=members), golden_head=golden_head, precision="fp32"
    )


def with_costs(policy: Policy, costs: Sequence[Cost]) -> bytes:
    """Write measured costs into a bundle.

    Args:
        policy: of `load`.
        costs: what was measured; an older entry of the same board, runtime, precision and rate is replaced.

    Returns:
        The file, unsigned.

    Raises:
        ArtifactError: not one entry an exit.
    Source:
        ours: a fleet of equal boards is measured once.
    """

    def key(cost: Cost) -> tuple[object, ...]:
        return cost.board, cost.cpu, cost.runtime, cost.precision, cost.rate_hz

    new = {key(cost) for cost in costs}
    kept = [cost for cost in policy.manifest.costs if key(cost) not in new]
    manifest = msgspec.structs.replace(policy.manifest, costs=(*kept, *costs))
    return bundle.write(manifest, policy.bundle.members, policy.bundle.unknown)
