"""The bundle: one `.edgert` file that holds a policy and everything needed to trust it. Bytes only, no numpy.

Format 1 is a ZIP archive with `manifest.json` and the members it lists, each with its SHA-256:
`policy.onnx` (int8), `params.f32` (float32 parameters, for going on learning), `golden.obs` and `golden.head`
(observations and the answers a runtime must give to them). `stage0.tflite`, `stage1.tflite`, ... may follow: the same
int8 network once more, an exit a file, for TFLite runtimes; either all are there or none. `signature`, where it is,
says who vouches for the bytes of `manifest.json`, and with them for every member, and on what terms: `fleet.trust`
judges it. What the arrays mean is `policy.artifact`'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edgert import wire
from edgert.archive import MANIFEST, SIGNATURE, check_members, listed, pack, sealed, unpack
from edgert.archive import Member as Member
from edgert.errors import ArtifactError
from edgert.values import REPEAT_MAX, Operating

MEMBERS = ("policy.onnx", "params.f32", "golden.obs", "golden.head")
"""What every bundle holds beside its manifest, in this order."""
FLOAT_MEMBER = "float.onnx"
"""What it may hold as well: the float32 graph without its weights, which are those of `params.f32`."""

_EXITS_MAX = 32
_SHARES_SLACK = 1e-6  # of floats that add up to 1

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=1, le=65_536)]
Repeat = Annotated[int, Meta(ge=1, le=REPEAT_MAX)]
Seconds = Annotated[float, Meta(ge=0)]
Precision = Literal["int8", "fp32"]
NetKind = Literal["q", "policy"]


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
    """What leaving at this exit costs, from the observation on, all heads on the way included.

    Attributes:
        macs: multiply-accumulates.
        ops: arithmetic operations of any kind, of `nets.ops`; unknown in bundles that are older than this key.
    """

    macs: Positive
    ops: Positive | None = None


class ExitCost(msgspec.Struct, frozen=True):
    """Measured cost of one decision that leaves at an exit.

    Attributes:
        p50_s, p99_s: from observation in hand to answer.
        cpu_s: mean CPU time of all threads, which stands for the energy.
    """

    p50_s: Seconds
    p99_s: Seconds
    cpu_s: Seconds


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of board was measured to need for this network, at the control rate.

    Attributes:
        board: model of the device tree, or "linux".
        cpu: as /proc/cpuinfo names it.
        runtime, version: what ran it.
        precision: of its arithmetic.
        rate_hz: decisions a second; a cold call costs a multiple of a hot one.
        exits: shallow to deep.
        samples: calls measured at each exit.
    """

    board: str
    cpu: str
    runtime: str
    version: str
    precision: Precision
    rate_hz: Annotated[float, Meta(gt=0)]
    exits: Annotated[tuple[ExitCost, ...], Meta(min_length=1, max_length=_EXITS_MAX)]
    samples: Positive


class Golden(msgspec.Struct, frozen=True):
    """How many golden observations there are, and by how much a runtime's heads may differ from the golden ones.

    Attributes:
        count: golden observations.
        max_head_error: for a runtime that rounds as onnxruntime and numpy do.
        max_rounding_error: for one whose kernels round otherwise, in fixed point: twice what int8 itself costs these
            answers.
    """

    count: Size
    max_head_error: Annotated[float, Meta(ge=0)]
    max_rounding_error: Annotated[float, Meta(ge=0)] = 0.0


class Reference(msgspec.Struct, frozen=True):
    """A measured mean return, over how many episodes."""

    mean: float
    episodes: Positive


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the exits and what it was measured to bring and to cost, in episodes that it played itself.

    Attributes:
        thresholds, repeat, hold_threshold: the setting; see `values.Operating`.
        return_mean: mean undiscounted return of an episode.
        return_frac: the same, normalised as the frontier says; `return_low` and `return_high` bound it at 95 %.
        ops_frac: mean operations of a tick (`nets.ops`), as a share of the network without exits.
        exit_share: share of ticks answered by each exit; with measured costs an exit, the mean cost of a tick.
        held_share: share of ticks that repeated the action before; all shares add up to 1.
        episodes: played.
    """

    thresholds: tuple[Share, ...]
    repeat: Repeat = 1
    hold_threshold: Share = 1.0
    return_mean: float
    return_frac: float
    return_low: float
    return_high: float
    ops_frac: Annotated[float, Meta(gt=0)]
    exit_share: tuple[Share, ...]
    held_share: Share
    episodes: Positive

    @property
    def operating(self) -> Operating:
        """The setting."""
        return Operating(self.thresholds, self.repeat, self.hold_threshold)


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """What the exits can be set to, from cheap to dear, measured on the very network of the bundle.

    Attributes:
        env: gymnasium id of what was played; an episode is judged by its return there.
        rule: how returns are normalised: 0 is a random policy, 1 the full network.
        random, full: the two references.
        full_ops: operations of the network without exits.
        points: sorted by `ops_frac`.
    """

    env: str = ""
    rule: Literal["(J - J_random) / (J_full - J_random)"] = "(J - J_random) / (J_full - J_random)"
    random: Reference
    full: Reference
    full_ops: Positive
    points: Annotated[tuple[Point, ...], Meta(min_length=1, max_length=1024)]


class Risk(msgspec.Struct, frozen=True, kw_only=True):
    """A promise about the bundle's own setting of the exits, tested on episodes that chose nothing else.

    Attributes:
        max_loss_frac: at most this much of the normalised return is lost, in the mean over episodes,
        delta: unless the draw of test episodes was one of the unlucky share `delta` of all draws.
        low, high: returns are clipped to these before they are averaged.
        method: of the test.
        episodes: each of the random policy, the full network and every tested setting.
        p_values: of the tested settings, in the order of testing; the test ended with the first above `delta`.
        holds: a setting passed and is the bundle's; otherwise the full network acts.
    """

    max_loss_frac: Annotated[float, Meta(gt=0, lt=1)]
    delta: Annotated[float, Meta(gt=0, lt=1)]
    low: float
    high: float
    method: str
    episodes: Positive
    p_values: tuple[Share, ...]
    holds: bool


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
        kind: what its heads say. `q`: an action's value each. `policy`: an action's logit each, and in the last head's
            last column, which is nobody's confidence, the state's value.
        thresholds: confidence 0..1 from which on an exit is believed; one for every exit but the last.
        repeat, hold_threshold: with the thresholds, the setting of the exits; see `values.Operating`.
        exits: one entry an exit, shallow to deep.
        safe_action: what to do when the policy cannot be asked.
        ranges: activation -> (low, high) with which `policy.onnx` was quantized.
        golden: of `golden.obs` and `golden.head`.
        provenance: where the network comes from; free.
        members: name -> hash and size.
        frontier: other settings of the exits and what they bring; None when nobody measured this network.
        risk: what was promised of the setting above; None when nothing was.
        costs: measured by `edgert policy bench`, one entry a board, runtime, precision and rate.
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
    kind: NetKind = "q"
    thresholds: tuple[Share, ...]
    repeat: Repeat = 1
    hold_threshold: Share = 1.0
    exits: Annotated[tuple[Exit, ...], Meta(min_length=1, max_length=_EXITS_MAX)]
    safe_action: Annotated[int, Meta(ge=0)]
    ranges: dict[str, tuple[float, float]]
    golden: Golden
    provenance: dict[str, Any] = {}
    members: dict[str, Member] = {}
    frontier: Frontier | None = None
    risk: Risk | None = None
    costs: Annotated[tuple[Cost, ...], Meta(max_length=256)] = ()

    @property
    def operating(self) -> Operating:
        """The setting of the exits that the bundle asks for."""
        return Operating(self.thresholds, self.repeat, self.hold_threshold)


class Bundle(NamedTuple):
    """A bundle whose every hash was right.

    Attributes:
        manifest: what this version understands of it.
        unknown: top-level manifest keys that it does not; kept, so that passing through here loses nothing.
        members: name -> content, those of `MEMBERS`, and perhaps of `stage_members` and `FLOAT_MEMBER`.
        signature: as found, not verified; None when there is none.
        encoded: the manifest as found; what a signature is of.
    """

    manifest: Manifest
    unknown: dict[str, Any]
    members: dict[str, bytes]
    signature: bytes | None = None
    encoded: bytes = b""


def stage_members(n_exits: int) -> tuple[str, ...]:
    """What a bundle may hold beside `MEMBERS`, all or nothing.

    Args:
        n_exits: of the network.

    Returns:
        The name of each stage's TFLite file, shallow to deep.

    Raises:
        UsageError: never.
    Source:
        ours: TFLite's own If leaves its fast kernels, so each stage is a file and the decision lies between them.
    """
    return tuple(f"stage{k}.tflite" for k in range(n_exits))


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


def action_set(names: Sequence[str]) -> str:
    """A short name for what the actions of a policy do, for messages.

    Args:
        names: of the actions, in order, as in `Action.names`.

    Returns:
        8 hex digits, equal where the names and their order are; empty where nobody named the actions.

    Raises:
        UsageError: never.
    Source:
        ours: 32 bits of SHA-256 over canonical JSON tell a mistake from a fit, at 8 bytes a question.
    """
    said = json.dumps(list(names), separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()[:8] if names else ""


def _check(manifest: Manifest) -> None:
    """What the types cannot say."""
    points = manifest.frontier.points if manifest.frontier else ()
    stages = stage_members(len(manifest.exits))
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
        "frontier: a point has not one threshold an exit but the last, or not one share an exit": any(
            len(point.thresholds) != len(manifest.exits) - 1 or len(point.exit_share) != len(manifest.exits)
            for point in points
        ),
        "frontier: a point's shares do not add up to 1, or its interval begins above its end": any(
            abs(sum(point.exit_share) + point.held_share - 1) > _SHARES_SLACK or point.return_low > point.return_high
            for point in points
        ),
        "costs: not one entry an exit": any(len(cost.exits) != len(manifest.exits) for cost in manifest.costs),
        "frontier: points are not sorted by ops_frac": any(a.ops_frac > b.ops_frac for a, b in pairwise(points)),
        f"members: {sorted(manifest.members)} instead of {sorted(MEMBERS)}, or these and all of {list(stages)}": set(
            manifest.members
        )
        - {FLOAT_MEMBER}
        not in ({*MEMBERS}, {*MEMBERS, *stages}),
    }
    wrong = [fault for fault, is_so in faults.items() if is_so]
    if wrong:
        raise ArtifactError(f"bundle, {MANIFEST}: {'; '.join(wrong)}")


def write(manifest: Manifest, members: Mapping[str, bytes], unknown: Mapping[str, Any] | None = None) -> bytes:
    """Pack a bundle.

    Args:
        manifest: its `members` are filled in here.
        members: name -> content, those of `MEMBERS`, all or none of `stage_members`, perhaps `FLOAT_MEMBER`.
        unknown: manifest keys of a later version, carried along.

    Returns:
        The file. Equal arguments give equal bytes.

    Raises:
        ArtifactError: the manifest contradicts itself, or a member is missing.
    Source:
        ours: stored, not deflated; weights hardly shrink, and zlib's output differs from build to build.
    """
    order = (*MEMBERS, *stage_members(len(manifest.exits)), FLOAT_MEMBER)
    held = {name: members[name] for name in order if name in members}
    manifest = msgspec.structs.replace(manifest, members=listed(held))
    _check(manifest)
    try:
        document = {**(unknown or {}), **msgspec.to_builtins(manifest)}
        encoded = json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode()
        msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise ArtifactError(f"bundle, {MANIFEST}: {error}") from error
    return pack({MANIFEST: encoded, **held})


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
    found = unpack(data, (*MEMBERS, *stage_members(_EXITS_MAX), FLOAT_MEMBER))
    encoded, signature = found.pop(MANIFEST, None), found.pop(SIGNATURE, None)
    if encoded is None:
        raise ArtifactError(f"bundle: no {MANIFEST}; this is not an edgert bundle")
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
        document = msgspec.json.decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"bundle, {MANIFEST}: {error}") from error
    _check(manifest)
    check_members(manifest.members, found)
    unknown = {key: value for key, value in document.items() if key not in Manifest.__struct_fields__}
    return Bundle(manifest, unknown, {name: found[name] for name in manifest.members}, signature, encoded)


def with_signature(data: bytes, signature: bytes | None) -> bytes:
    """The same bundle with another signature.

    Args:
        data: the file.
        signature: to put in the place of the one it has; None for none.

    Returns:
        The file; manifest and members keep their bytes.

    Raises:
        ArtifactError: it is no sound bundle, or the signature is too large.
    Source:
        ours: stored, as `write` does it, so that equal content gives equal bytes.
    """
    found = read(data)
    order = (*MEMBERS, *stage_members(len(found.manifest.exits)), FLOAT_MEMBER)
    return sealed(found.encoded, {name: found.members[name] for name in order if name in found.members}, signature)
