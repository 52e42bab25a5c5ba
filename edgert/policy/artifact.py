"""A bundle as arrays: the network, its parameters and its golden vectors, checked against one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgert import __version__, bundle, onnxfile, quant
from edgert.bundle import Bundle, Golden, Manifest
from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8, NetSpec, Params, macs, matrix_shape, stages, weighted

_EDGE_MAX = 1 << 16
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
    """

    bundle: Bundle
    spec: NetSpec
    params: Params
    tensors: quant.Tensors
    golden_obs: U8
    golden_head: F32

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def onnx(self) -> bytes:
        """The serialized int8 graph."""
        return self.bundle.members["policy.onnx"]


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
    if (tuple(spec.input_shape), spec.n_actions, spec.input_scale) != said or [e.macs for e in manifest.exits] != macs(
        spec
    ):
        raise ArtifactError("bundle, manifest.json: net does not fit observation, action and exits")
    return spec


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
    tensors = onnxfile.read(packed.members["policy.onnx"])
    quant.IntNet(spec, tensors)
    return Policy(packed, spec, Params(spec, flat), tensors, golden_obs, golden_head)


def pack(
    manifest: Manifest, params: Params, onnx: bytes, golden_obs: U8, unknown: Mapping[str, Any] | None = None
) -> bytes:
    """Make a bundle; the golden answers come from the integer reference on the graph's own tensors.

    Args:
        manifest: its `golden` and `members` are filled in here.
        params: float32 parameters.
        onnx: the int8 graph, its tensors already those of the parameters.
        golden_obs: (n, H, W, C) uint8, n >= 1.
        unknown: manifest keys of a later version, carried along.

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
    manifest = msgspec.structs.replace(manifest, golden=Golden(len(golden_obs), bound))
    members = {
        "policy.onnx": onnx,
        "params.f32": params.flat.astype("<f4").tobytes(),
        "golden.obs": golden_obs.tobytes(),
        "golden.head": golden_head.astype("<f4").tobytes(),
    }
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
        The file; equal arguments give equal bytes.

    Raises:
        ArtifactError: parameters or ranges are not finite or do not fit the parent.
    Source:
        ours: overwriting same-size tensors needs no exporter on the board.
    """
    if params.spec != parent.spec:
        raise ArtifactError("the new parameters belong to another network than the bundle they should replace")
    onnx = onnxfile.patch(parent.onnx, quantized.tensors)
    manifest = msgspec.structs.replace(
        parent.manifest,
        created=created,
        edgert=__version__,
        ranges=quantized.ranges,
        provenance=dict(provenance),
        thresholds=parent.manifest.thresholds if thresholds is None else tuple(thresholds),
    )
    return pack(manifest, params, onnx, parent.golden_obs, parent.bundle.unknown)
