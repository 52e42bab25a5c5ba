"""The bundle: one `.edgert` file that holds a policy and everything needed to trust it. Bytes only, no numpy.

Format 1 is a ZIP archive with `manifest.json` and the members it lists, each with its SHA-256:
`policy.onnx` (int8), `params.f32` (float32 parameters, for going on learning), `golden.obs` and `golden.head`
(observations and the answers a runtime must give to them). `signature` has its place, an Ed25519 signature of the
bytes of `manifest.json`; it is neither made nor verified yet. What the arrays mean is `policy.artifact`'s business.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edgert import wire
from edgert.errors import ArtifactError

MEMBERS = ("policy.onnx", "params.f32", "golden.obs", "golden.head")
"""What every bundle holds beside its manifest, in this order."""

_MANIFEST, _SIGNATURE = "manifest.json", "signature"
_MANIFEST_BYTES_MAX = 1 << 20
_SIGNATURE_BYTES_MAX = 1 << 12
_BUNDLE_BYTES_MAX = 1 << 28  # packed and unpacked: no board loads a policy of a quarter GiB
_STAMP = (1980, 1, 1, 0, 0, 0)  # ZIP's first day: equal content gives equal bytes
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
    IndexError,
)

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=1, le=65_536)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Member(msgspec.Struct, frozen=True):
    """One member: SHA-256 in hex, and its size unpacked."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0, le=_BUNDLE_BYTES_MAX)]


class Observation(msgspec.Struct, frozen=True):
    """What the policy sees.

    Attributes:
        shape: (height, width, channels).
        scale: what one unit of the uint8 is worth.
        channels: a name each, with its unit where it has one, as in `distance [m]`; empty when nobody named them.
    """

    shape: tuple[Size, Size, Size]
    scale: Annotated[float, Meta(gt=0)]
    dtype: Literal["uint8"] = "uint8"
    channels: tuple[str, ...] = ()


class Action(msgspec.Struct, frozen=True):
    """What the policy can do: `n` discrete actions, perhaps named, perhaps with the unit of what they set."""

    n: Size
    names: tuple[str, ...] = ()
    unit: str = ""


class Exit(msgspec.Struct, frozen=True):
    """What leaving at this exit costs: multiply-accumulates from the observation on, all heads on the way included."""

    macs: Positive


class Golden(msgspec.Struct, frozen=True):
    """How many golden observations there are, and by how much a runtime's heads may differ from the golden ones."""

    count: Size
    max_head_error: Annotated[float, Meta(ge=0)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest.

    Attributes:
        format: of the bundle.
        name: of the policy, for people.
        task: what it was made for.
        created: UTC, ISO 8601.
        edgert: version that wrote the bundle.
        observation, action: the schema; two bundles with the same one can replace each other.
        control_rate_hz: decisions a second it was trained for.
        gamma: discount per decision.
        net: a `nets.NetSpec` as plain data.
        thresholds: confidence 0..1 from which on an exit is believed; one for every exit but the last.
        exits: one entry an exit, shallow to deep.
        safe_action: what to do when the policy cannot be asked.
        ranges: activation -> (low, high) with which `policy.onnx` was quantized.
        golden: of `golden.obs` and `golden.head`.
        provenance: where the network comes from; free.
        members: name -> hash and size.
    """

    format: Literal[1] = 1
    name: str
    task: str
    created: str
    edgert: str
    observation: Observation
    action: Action
    control_rate_hz: Annotated[float, Meta(gt=0)]
    gamma: Share
    net: dict[str, Any]
    thresholds: tuple[Share, ...]
    exits: Annotated[tuple[Exit, ...], Meta(min_length=1, max_length=32)]
    safe_action: Annotated[int, Meta(ge=0)]
    ranges: dict[str, tuple[float, float]]
    golden: Golden
    provenance: dict[str, Any] = {}
    members: dict[str, Member] = {}


class Bundle(NamedTuple):
    """A bundle whose every hash was right.

    Attributes:
        manifest: what this version understands of it.
        unknown: top-level manifest keys that it does not; kept, so that passing through here loses nothing.
        members: name -> content, those of `MEMBERS`.
        signature: as found, not verified; None when there is none.
    """

    manifest: Manifest
    unknown: dict[str, Any]
    members: dict[str, bytes]
    signature: bytes | None = None


def schema_hash(manifest: Manifest) -> str:
    """A name for what goes in and what comes out.

    Args:
        manifest: of a bundle.

    Returns:
        SHA-256 in hex over observation and action: equal for bundles that can replace each other on a device.

    Raises:
        UsageError: never.
    Source:
        ours: canonical JSON with sorted keys.
    """
    schema = msgspec.to_builtins({"observation": manifest.observation, "action": manifest.action})
    return hashlib.sha256(json.dumps(schema, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check(manifest: Manifest) -> None:
    """What the types cannot say."""
    faults = {
        f"task: {manifest.task[:100]!r} is not 1 to 64 letters, digits, '_', '.', '-', the first a letter or digit": (
            not wire.is_name(manifest.task)  # it is a topic segment
        ),
        f"thresholds: {len(manifest.thresholds)} for {len(manifest.exits)} exits, the last needs none": len(
            manifest.thresholds
        )
        != len(manifest.exits) - 1,
        f"safe_action: {manifest.safe_action} of {manifest.action.n} actions": manifest.safe_action
        >= manifest.action.n,
        "action.names: not one an action": len(manifest.action.names) not in (0, manifest.action.n),
        "observation.channels: not one a channel": len(manifest.observation.channels)
        not in (0, manifest.observation.shape[2]),
        f"members: {sorted(manifest.members)} instead of {sorted(MEMBERS)}": set(manifest.members) != set(MEMBERS),
    }
    wrong = [fault for fault, is_so in faults.items() if is_so]
    if wrong:
        raise ArtifactError(f"bundle, {_MANIFEST}: {'; '.join(wrong)}")


def write(manifest: Manifest, members: Mapping[str, bytes], unknown: Mapping[str, Any] | None = None) -> bytes:
    """Pack a bundle.

    Args:
        manifest: its `members` are filled in here.
        members: name -> content, exactly those of `MEMBERS`.
        unknown: manifest keys of a later version, carried along.

    Returns:
        The file. Equal arguments give equal bytes.

    Raises:
        ArtifactError: the manifest contradicts itself, or a member is missing.
    Source:
        ours: stored, not deflated; weights hardly shrink, and zlib's output differs from build to build.
    """
    listed = {
        name: Member(hashlib.sha256(members[name]).hexdigest(), len(members[name]))
        for name in MEMBERS
        if name in members
    }
    manifest = msgspec.structs.replace(manifest, members=listed)
    _check(manifest)
    try:
        document = {**(unknown or {}), **msgspec.to_builtins(manifest)}
        encoded = json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode()
        msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise ArtifactError(f"bundle, {_MANIFEST}: {error}") from error
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((_MANIFEST, encoded), *((name, members[name]) for name in MEMBERS)):
            info = zipfile.ZipInfo(name, _STAMP)
            info.create_system, info.external_attr = 3, 0o644 << 16  # as if made on Unix, wherever it is made
            archive.writestr(info, content)
    if packed.tell() > _BUNDLE_BYTES_MAX:
        raise ArtifactError(f"bundle: {packed.tell()} bytes, more than the {_BUNDLE_BYTES_MAX} that a device accepts")
    return packed.getvalue()


def _unpack(data: bytes) -> dict[str, bytes]:
    """Every member of the archive, bounded in number and size before anything is unpacked."""
    if len(data) > _BUNDLE_BYTES_MAX:
        raise ArtifactError(f"bundle: {len(data)} bytes, more than the {_BUNDLE_BYTES_MAX} that a device accepts")
    limits = {_MANIFEST: _MANIFEST_BYTES_MAX, _SIGNATURE: _SIGNATURE_BYTES_MAX}
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for info in archive.infolist():
                name = info.filename
                if name not in (_MANIFEST, _SIGNATURE, *MEMBERS) or name in found:
                    raise ArtifactError(f"bundle: {'second' if name in found else 'unexpected'} member {name!r}")
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ArtifactError(f"bundle: member {name} is encrypted or packed in an unknown way")
                room = min(limits.get(name, _BUNDLE_BYTES_MAX), _BUNDLE_BYTES_MAX - sum(map(len, found.values())))
                # The size in the directory is a claim: reading stops one byte after what is allowed, whatever it says.
                with archive.open(info) as member:
                    found[name] = member.read(min(info.file_size, room) + 1)
                if len(found[name]) > room or len(found[name]) != info.file_size:
                    raise ArtifactError(
                        f"bundle: member {name} is larger than it says or than the {room} bytes allowed"
                    )
    except _ZIP_ERRORS as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"bundle: not a readable ZIP archive ({error}); copy it again") from error
    return found


def read(data: bytes) -> Bundle:
    """Unpack a bundle and check all that can be checked without knowing what the arrays mean.

    Args:
        data: the file.

    Returns:
        The bundle; what `policy.artifact.load` adds is the check of the arrays.

    Raises:
        ArtifactError: it is no bundle, a member is missing, unexpected, too large or not what its hash says, or the
            manifest breaks the schema.
    Source:
        ours; limits against decompression bombs after CWE-409.
    """
    found = _unpack(data)
    encoded, signature = found.pop(_MANIFEST, None), found.pop(_SIGNATURE, None)
    if encoded is None:
        raise ArtifactError(f"bundle: no {_MANIFEST}; this is not an edgert bundle")
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
        document = msgspec.json.decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"bundle, {_MANIFEST}: {error}") from error
    _check(manifest)
    for name, member in manifest.members.items():
        content = found.get(name)
        if content is None or len(content) != member.bytes or hashlib.sha256(content).hexdigest() != member.sha256:
            raise ArtifactError(
                f"bundle: member {name} is {'missing' if content is None else 'not what the manifest says'}"
            )
    unknown = {key: value for key, value in document.items() if key not in Manifest.__struct_fields__}
    return Bundle(manifest, unknown, {name: found[name] for name in MEMBERS}, signature)
