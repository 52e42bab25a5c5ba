"""The model bundle: one `.edgert` file that holds an inference network, how well it answers, and what that costs.

Where a policy's bundle (`edgert.bundle`) has an agent's network, with exits and what training needs, this one has any
graph of one input and one output: `model.onnx`, perhaps `model.tflite` (one row at a time), and `golden.in` and
`golden.out`, rows and the answers that a runtime must give to them. The archive, its limits, its hashes and its
signature are those of a policy's bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edgert import archive, wire
from edgert.archive import Member
from edgert.bundle import Cost, Golden, Positive, Precision, Share, Size
from edgert.errors import ArtifactError

MEMBERS = ("model.onnx", "golden.in", "golden.out")
TFLITE_MEMBER = "model.tflite"
_ALL = (*MEMBERS, TFLITE_MEMBER)
_ROW_BYTES_MAX = wire.MAX_PAYLOAD_BYTES - 4096  # a row is asked about in one message
_ITEM_BYTES = {"uint8": 1, "float32": 4}

Text = Annotated[str, Meta(min_length=1, max_length=500)]


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """What one row of the input or of the output is.

    Attributes:
        shape: without the batch.
        dtype: of its values; those that go over the wire are little-endian.
        names: of the last axis, one each; empty when nobody named them.
    """

    shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=4)]
    dtype: Literal["uint8", "float32"]
    names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Values in a row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.count * _ITEM_BYTES[self.dtype]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How well it answers, and how anybody knows.

    Attributes:
        metric: such as `top-1`.
        value_frac: 0 to 1.
        measured: by whoever made this bundle, with this very network; otherwise quoted.
        source: the held-out data it was measured on, or what is quoted.
        samples: it was measured on; 0 where it is quoted.
        low_frac, high_frac: 95 % interval of a measurement; None where it is quoted.
    """

    metric: Text
    value_frac: Share
    measured: bool
    source: Text
    samples: Annotated[int, Meta(ge=0)] = 0
    low_frac: Share | None = None
    high_frac: Share | None = None


class ModelManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a model bundle.

    Attributes:
        format: of the bundle.
        kind: tells it from a policy's.
        name: of this variant, a topic segment's letters.
        task: what it answers; variants of one task can stand in for one another.
        created: UTC, ISO 8601.
        edgert: version that wrote the bundle.
        input, output: the schema, equal for all variants of a task.
        precision: of its arithmetic.
        width: of its layers, as a share of the widest variant's.
        exit: where the network was cut, from 0; None where it is whole.
        macs: multiply-accumulates of a row.
        accuracy: the first is what floors are held against.
        net: a `nets.NetSpec` as plain data, for a runtime that is nothing but numpy; None where that cannot say it.
        golden: of `golden.in` and `golden.out`.
        costs: measured; the one entry of `exits` is the whole network.
        provenance: where the network comes from; free.
        members: name -> hash and size.
    """

    format: Literal[1] = 1
    kind: Literal["model"] = "model"
    name: str
    task: str
    created: str
    edgert: str
    input: Tensor
    output: Tensor
    precision: Precision
    width: Annotated[float, Meta(gt=0, le=1)] = 1.0
    exit: Annotated[int, Meta(ge=0, le=31)] | None = None
    macs: Positive
    accuracy: Annotated[tuple[Accuracy, ...], Meta(min_length=1, max_length=8)]
    net: dict[str, Any] | None = None
    golden: Golden
    costs: Annotated[tuple[Cost, ...], Meta(max_length=256)] = ()
    provenance: dict[str, Any] = {}
    members: dict[str, Member] = {}

    @property
    def accuracy_frac(self) -> float:
        """What floors are held against."""
        return self.accuracy[0].value_frac


class ModelBundle(NamedTuple):
    """A model bundle whose every hash was right.

    Attributes:
        manifest: what this version understands of it.
        members: name -> content.
        signature: as found, not verified; None when there is none.
        encoded: the manifest as found; what a signature is of.
    """

    manifest: ModelManifest
    members: dict[str, bytes]
    signature: bytes | None = None
    encoded: bytes = b""


def _check(manifest: ModelManifest) -> None:
    """What the types cannot say."""
    golden, first = manifest.golden, manifest.accuracy[0]
    rows = {"golden.in": manifest.input, "golden.out": manifest.output}
    wrong = [
        f"{key}: {said[:100]!r} is not 1 to 64 letters, digits, '_', '.', '-', the first a letter or digit"
        for key, said in (("name", manifest.name), ("task", manifest.task))
        if not wire.is_name(said)
    ]
    wrong += [
        f"{key}: a row of {tensor.row_bytes} bytes does not fit a message of {_ROW_BYTES_MAX}"
        for key, tensor in (("input", manifest.input), ("output", manifest.output))
        if tensor.row_bytes > _ROW_BYTES_MAX
    ]
    wrong += [
        f"{key}.names: {len(tensor.names)} for a last axis of {tensor.shape[-1]}"
        for key, tensor in (("input", manifest.input), ("output", manifest.output))
        if len(tensor.names) not in (0, tensor.shape[-1])
    ]
    faults = {
        "output.dtype: an answer is float32": manifest.output.dtype != "float32",
        f"accuracy: measured on {first.samples} samples": first.measured != (first.samples > 0),
        f"accuracy: {first.low_frac}..{first.high_frac} does not hold {first.value_frac}": not (
            (first.low_frac or 0.0) <= first.value_frac <= (1.0 if first.high_frac is None else first.high_frac)
        ),
        "costs: one entry each, of the whole network": any(len(cost.exits) != 1 for cost in manifest.costs),
        f"members: {sorted(manifest.members)} instead of {sorted(MEMBERS)}, perhaps with {TFLITE_MEMBER}": set(
            manifest.members
        )
        - {TFLITE_MEMBER}
        != {*MEMBERS},
        "members: golden rows of another size than the schema's": any(
            name in manifest.members and manifest.members[name].bytes != golden.count * tensor.row_bytes
            for name, tensor in rows.items()
        ),
    }
    wrong += [fault for fault, is_so in faults.items() if is_so]
    if wrong:
        raise ArtifactError(f"model bundle, {archive.MANIFEST}: {'; '.join(wrong)}")


def write(manifest: ModelManifest, members: Mapping[str, bytes]) -> bytes:
    """Pack a model bundle.

    Args:
        manifest: its `members` are filled in here.
        members: name -> content, those of `MEMBERS`, perhaps `TFLITE_MEMBER`.

    Returns:
        The file. Equal arguments give equal bytes.

    Raises:
        ArtifactError: the manifest contradicts itself, or a member is missing.
    Source:
        ours: as `bundle.write`.
    """
    found = {name: members[name] for name in _ALL if name in members}
    manifest = msgspec.structs.replace(manifest, members=archive.listed(found))
    _check(manifest)
    try:
        encoded = json.dumps(msgspec.to_builtins(manifest), sort_keys=True, indent=1, allow_nan=False).encode()
        msgspec.json.decode(encoded, type=ModelManifest)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise ArtifactError(f"model bundle, {archive.MANIFEST}: {error}") from error
    return archive.pack({archive.MANIFEST: encoded, **found})


def read(data: bytes) -> ModelBundle:
    """Unpack a model bundle and check all that can be checked without knowing what the arrays mean.

    Args:
        data: the file.

    Returns:
        The bundle; whether a runtime gives the golden answers is `ports.runtime.model`'s check.

    Raises:
        ArtifactError: it is no model bundle, a member is missing, unexpected, too large or not what its hash says, or
            the manifest breaks the schema.
    Source:
        ours: as `bundle.read`.
    """
    found = archive.unpack(data, _ALL)
    encoded, signature = found.pop(archive.MANIFEST, None), found.pop(archive.SIGNATURE, None)
    if encoded is None:
        raise ArtifactError(f"model bundle: no {archive.MANIFEST}; this is not an edgert bundle")
    try:
        manifest = msgspec.json.decode(encoded, type=ModelManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"model bundle, {archive.MANIFEST}: {error}") from error
    _check(manifest)
    archive.check_members(manifest.members, found)
    return ModelBundle(manifest, {name: found[name] for name in manifest.members}, signature, encoded)


def is_model(data: bytes) -> bool:
    """Which of the two kinds of bundles is this?

    Args:
        data: a file that may be a bundle, or anything.

    Returns:
        Whether it is an archive with a model's graph in it; nothing else about it has been looked at.

    Raises:
        Nothing.
    Source:
        ours: told by the members, as a policy's manifest is older than the key `kind`.
    """
    try:
        return MEMBERS[0] in archive.unpack(data, _ALL)
    except ArtifactError:
        return False


def model_id(encoded: bytes) -> str:
    """A short name for a model, weights and all, for messages.

    Args:
        encoded: the manifest, as the bundle has it: it has every member's hash.

    Returns:
        16 hex digits, equal for bundles that differ in their signature only.

    Raises:
        Nothing.
    Source:
        ours: 64 bits of SHA-256 (FIPS 180-4).
    """
    return hashlib.sha256(encoded).hexdigest()[:16]


def with_signature(data: bytes, signature: bytes | None) -> bytes:
    """The same bundle with another signature.

    Args:
        data: the file.
        signature: to put in the place of the one it has; None for none.

    Returns:
        The file; manifest and members keep their bytes.

    Raises:
        ArtifactError: it is no sound model bundle, or the signature is too large.
    Source:
        ours: as `bundle.with_signature`.
    """
    found = read(data)
    return archive.sealed(
        found.encoded, {name: found.members[name] for name in _ALL if name in found.members}, signature
    )
