"""The wire, version 1: topics, messages and their CBOR bytes. The only file that knows them.

Topics have a fixed depth, `edgert/v1/<fleet>/<device>/<channel>/<type>/<id>`, with `-` for an empty segment, so that
every access rule and every subscription is one filter. A payload is a CBOR map that carries its schema name and
version; keys a reader does not know are kept and handed on, never dropped, so that old and new devices can share a
broker.
"""

from __future__ import annotations

import io
import re
from typing import Annotated, Literal, NamedTuple, TypeVar

import cbor2
import msgspec

from edgert.errors import MessageError, UsageError
from edgert.inference import InferAnswer as InferAnswer
from edgert.inference import InferAsk as InferAsk
from edgert.inference import InferLoad as InferLoad
from edgert.inference import Offered as Offered
from edgert.offers import Key as Key
from edgert.offers import KeyId as KeyId
from edgert.offers import KeyList as KeyList
from edgert.offers import PolicyChunk as PolicyChunk
from edgert.offers import PolicyOffer as PolicyOffer
from edgert.offers import PolicyReport as PolicyReport
from edgert.offers import Signed as Signed
from edgert.placing import PlaceData as PlaceData
from edgert.placing import PlaceGo as PlaceGo
from edgert.placing import PlaceGone as PlaceGone
from edgert.placing import PlaceJob as PlaceJob
from edgert.placing import PlaceState as PlaceState
from edgert.placing import PlaceSubmit as PlaceSubmit
from edgert.placing import PlaceTake as PlaceTake
from edgert.placing import PlaceWork as PlaceWork
from edgert.placing import Placing as Placing

ROOT = "edgert/v1"
VERSION = 1
CONTENT_TYPE = "application/cbor"
MAX_PAYLOAD_BYTES = 1 << 20
"""A payload beyond this is refused unread; bigger things travel in chunks."""

Count = Annotated[int, msgspec.Meta(ge=0, le=4096)]
Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Wait = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

UNREADABLE: tuple[type[Exception], ...] = (
    cbor2.CBORDecodeError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    LookupError,
)
"""What the CBOR library raises at bytes that are none: tags make it try to build dates, fractions, expressions."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Topic(NamedTuple):
    """A topic taken apart; `id` is `-` where a message needs none."""

    fleet: str
    device: str
    channel: str
    type: str
    id: str = "-"

    def __str__(self) -> str:
        """The topic as it goes over the wire, or a filter where a segment is `+`."""
        return "/".join((ROOT, *self))


def is_name(text: str) -> bool:
    """May this be a fleet, a device or a task?

    Args:
        text: the candidate.

    Returns:
        True for 1 to 64 letters, digits, `_`, `.` and `-`, the first a letter or digit.

    Raises:
        Nothing.
    Source:
        ours: the intersection of what MQTT topics, file names and host names allow without quoting.
    """
    return _NAME.fullmatch(text) is not None


def parse_topic(text: str) -> Topic:
    """Take a received topic apart.

    Args:
        text: as the broker delivered it.

    Returns:
        Its five segments.

    Raises:
        MessageError: not a version 1 topic.
    Source:
        MQTT 5.0 section 4.7 (topic levels); the layout is ours.
    """
    segments = text.split("/")
    if len(segments) != 7 or "/".join(segments[:2]) != ROOT or not all(s == "-" or is_name(s) for s in segments[2:]):
        raise MessageError(f"topic {text[:120]!r} is not {ROOT}/<fleet>/<device>/<channel>/<type>/<id>")
    return Topic(*segments[2:])


class Status(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="status"):
    """Birth (retained, `online` true) and last will (`online` false) of a device.

    Attributes:
        online: the device holds a session.
        session: drawn anew at each start of the supervisor; pairs a will with its birth, so that a late will of an
            old session cannot declare a newer one dead.
        version: of edgert.
        task: what its policy does.
        seq: counts the births of a session from 1; 0 in a will.
    """

    online: bool
    session: str
    version: str = ""
    task: str = ""
    v: int = VERSION
    seq: Sequence = 0


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="telemetry"):
    """The status document of `edgert status --json`, about once a second, expendable.

    Attributes:
        at_s: seconds since the Unix epoch, by the device's clock.
        status: the document.
        seq: counts those of a session from 1; 0 where nobody counts.
    """

    at_s: float
    status: dict[str, object]
    v: int = VERSION
    seq: Sequence = 0


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="event"):
    """Something that must not be lost: kept on the device's disk until a collector acknowledges it.

    Attributes:
        stream: identity of one of the device's streams of events, which are received each by itself; a store that was
            lost starts new ones, whose numbers begin again.
        seq: counts from 1 and never repeats within a stream.
        first: lowest number the device can still send.
        at_s: seconds since the Unix epoch, by the device's clock.
        name: what happened.
        detail: named facts.
    """

    stream: str
    seq: Sequence
    first: Sequence
    at_s: float
    name: str
    detail: dict[str, object] = {}
    v: int = VERSION


class EventAck(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="event-ack"):
    """A collector holds every event of this device's `stream` up to and including `up_to`."""

    stream: str
    up_to: Sequence
    v: int = VERSION


class ExitsCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="exits-command"):
    """How the exits of a device's network are to be set; `fleet.command` judges it. With nothing set: the bundle's own.

    Attributes:
        id: of this command, a topic segment; the reply is found under it.
        thresholds, repeat, hold_threshold: a setting, or
        point: the index of a point of the acting bundle's frontier.
        max_ops_frac: what a tick may cost on average, as a share of the network without exits.
        valid_s: how long this holds, from its arrival on; None until further notice.
    """

    id: str
    thresholds: tuple[float, ...] | None = None
    repeat: int = 1
    hold_threshold: float = 1.0
    point: int | None = None
    max_ops_frac: float = 1.0
    valid_s: float | None = None
    v: int = VERSION


class GoalsCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="goals-command"):
    """What is wanted of a device instead of its configured goals, `fleet.command` judges it; nothing: those come back.

    Attributes:
        id: of this command, a topic segment; the reply is found under it.
        goals: names of the configuration's section [goals] -> values; what is not named stays as configured.
        valid_s: how long this holds, from its arrival on; None until further notice, or the next start.
    """

    id: str
    goals: dict[str, object] = {}
    valid_s: float | None = None
    v: int = VERSION


class Rebirth(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="rebirth"):
    """Whoever lost sight of a device wants it to publish again what the broker keeps of it; changes nothing there."""

    v: int = VERSION


class LogsCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="logs-command"):
    """The last lines of a device's log are wanted; they come as the detail of the reply.

    Attributes:
        id: of this command, a topic segment; the reply is found under it.
        lines: at most; the reply is bounded as well.
    """

    id: str
    lines: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    v: int = VERSION


class CommandReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="command-reply"):
    """What a device made of a command; expendable, an event tells the same.

    Attributes:
        id: of the command.
        ok: it was obeyed.
        why: it was not.
        detail: what is in force now.
    """

    id: str
    ok: bool
    why: str = ""
    detail: dict[str, object] = {}
    v: int = VERSION


class TwinDesired(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="twin-desired"):
    """All that the fleet wants of a device, whole and retained; `fleet.twin` judges it.

    Attributes:
        epoch, version: the greater epoch counts, then the greater version.
        settings: name -> value; what is not named is as configured.
    """

    epoch: Sequence
    version: Sequence
    settings: dict[str, object] = {}
    v: int = VERSION


class TwinReported(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="twin-reported"):
    """What a device has made of the fleet's wishes, whole and retained.

    Attributes:
        epoch, version, digest: of the document that this answers; 0, 0 and empty when there was none yet.
        settings: name -> value in force, for everything that can be set.
        refused: name -> why it is not as wished.
    """

    epoch: Sequence
    version: Sequence
    digest: str = ""
    settings: dict[str, object] = {}
    refused: dict[str, str] = {}
    v: int = VERSION


class JobOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="job-order"):
    """Something to be done once; sent again under the same id, it is answered again and not done again.

    Attributes:
        id: a topic segment, unique for ever.
        kind, args: what to do, see `fleet.kinds`.
        issued_s: seconds since the Unix epoch, by the sender's clock.
        not_after_s: not to be started later than this, likewise.
        valid_s: how long it may wait from its arrival on.
        timeout_s: patience with it once it runs.
        when: conditions that must hold before it starts, see `fleet.when`.
    """

    id: str
    kind: str
    args: dict[str, object] = {}
    issued_s: float
    not_after_s: float | None = None
    valid_s: float | None = None
    timeout_s: float | None = None
    when: dict[str, object] = {}
    v: int = VERSION


class JobCancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="job-cancel"):
    """Not to be done, or not to be gone on with; also of a job that has not arrived yet."""

    id: str
    issued_s: float
    v: int = VERSION


class JobState(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="job-state"):
    """Where a job stands, retained until it is forgotten; under the schedule's name where it comes from one.

    Attributes:
        id, kind: of the job.
        state: `received`, `scheduled`, `running`; in the end `done`, `failed`, `cancelled`, `expired` or `refused`.
        why: of the state.
        attempt: how often it was begun.
        origin: the schedule it comes from, or empty.
        result: what came of it.
    """

    id: str
    kind: str
    state: str
    why: str = ""
    attempt: int = 0
    origin: str = ""
    result: dict[str, object] = {}
    v: int = VERSION


class KnowAsk(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="know-ask"):
    """A student's question: what is each action worth in these observations?

    Attributes:
        task: what is being played.
        obs_shape: (height, width, channels) of one observation.
        n_actions: size of the student's action set.
        count: observations asked about.
        codec: how `data` is coded (`knowledge.codec`).
        data: the observations.
        actions: names the student's action set (`bundle.action_set`); empty where nobody named the actions.
    """

    task: str
    obs_shape: tuple[Side, Side, Side]
    n_actions: Side
    count: Count
    codec: int
    data: bytes
    v: int = VERSION
    actions: str = ""


class KnowAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="know-answer"):
    """A teacher's answer.

    Attributes:
        teacher: which model answered (bundle hash, first 16 hex digits).
        count: observations answered; 0 when `error` says why not.
        codec: how `data` is coded.
        data: float32 rows in the order asked: of kind `q` (count, n_actions) Q-values, of kind `policy`
            (count, n_actions + 1), an action's logit a column and then the state's value.
        error: a named refusal, or empty.
        kind: what a row is.
        retry_s: with a refusal, how long there is no sense in asking again; 0 where time mends nothing.
    """

    teacher: str
    count: Count
    codec: int
    data: bytes
    error: str = ""
    v: int = VERSION
    kind: Literal["q", "policy"] = "q"
    retry_s: Wait = 0.0


Message = (
    Status
    | Telemetry
    | Event
    | EventAck
    | ExitsCommand
    | GoalsCommand
    | Rebirth
    | LogsCommand
    | CommandReply
    | TwinDesired
    | TwinReported
    | JobOrder
    | JobCancel
    | JobState
    | KnowAsk
    | KnowAnswer
    | InferAsk
    | InferAnswer
    | InferLoad
    | KeyList
    | Signed
    | PolicyOffer
    | PolicyChunk
    | PolicyReport
    | PlaceData
    | PlaceGo
    | PlaceGone
    | PlaceJob
    | PlaceState
    | PlaceSubmit
    | PlaceTake
    | PlaceWork
    | Placing
)
M = TypeVar(
    "M",
    Status,
    Telemetry,
    Event,
    EventAck,
    ExitsCommand,
    GoalsCommand,
    Rebirth,
    LogsCommand,
    CommandReply,
    TwinDesired,
    TwinReported,
    JobOrder,
    JobCancel,
    JobState,
    KnowAsk,
    KnowAnswer,
    InferAsk,
    InferAnswer,
    InferLoad,
    KeyList,
    Signed,
    PolicyOffer,
    PolicyChunk,
    PolicyReport,
    PlaceData,
    PlaceGo,
    PlaceGone,
    PlaceJob,
    PlaceState,
    PlaceSubmit,
    PlaceTake,
    PlaceWork,
    Placing,
)


_LATER: dict[type, dict[str, object]] = {
    KnowAsk: {"actions": ""},
    KnowAnswer: {"kind": "q", "retry_s": 0.0},
    Status: {"seq": 0},
    Telemetry: {"seq": 0},
}
"""Keys that version 1 did not have from the start. At these, their defaults, they are not said: what can be said in the
old words is the old bytes, and links are paid by the byte."""


class Decoded(NamedTuple):
    """A validated message and the keys this version does not know."""

    message: Message
    unknown: dict[str, object]


def encode(message: Message, unknown: dict[str, object] | None = None) -> bytes:
    """Turn a message into its payload.

    Args:
        message: to send.
        unknown: keys that came with the message it answers or forwards.

    Returns:
        CBOR bytes, at most MAX_PAYLOAD_BYTES.

    Raises:
        UsageError: it is larger than that.
    Source:
        RFC 8949 (CBOR).
    """
    document = {**(unknown or {}), **msgspec.to_builtins(message, builtin_types=(bytes,))}
    for key, default in _LATER.get(type(message), {}).items():
        if document[key] == default:
            del document[key]
    payload = cbor2.dumps(document)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise UsageError(
            f"a {type(message).__name__} of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}: "
            "send less at once"
        )
    return payload


def signed_bytes(signed: Signed) -> bytes:
    """What a signature of a `Signed` is made of.

    Args:
        signed: its own signature plays no part.

    Returns:
        The bytes: 16 that say what they are for, then a CBOR array of everything else in the order of the fields.

    Raises:
        Nothing.
    Source:
        RFC 8949 section 4.2 (deterministic encoding); the leading words keep a signature from being taken for one of
        something else.
    """
    said = [signed.fleet, signed.to, signed.counter, signed.not_after_s, signed.payload, signed.key]
    return b"edgert-signed-1\0" + cbor2.dumps(said)


def decode(payload: bytes, expected: type[M]) -> tuple[M, dict[str, object]]:
    """Read and validate a payload.

    Args:
        payload: as received.
        expected: the message this topic carries.

    Returns:
        The message, and the keys this version does not know.

    Raises:
        MessageError: too large, not CBOR, not a map, another schema, a newer version, or a field that does not
            validate.
    Source:
        RFC 8949; unknown keys kept: ours, so that a message survives a passage through an older node.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"payload of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    try:
        stream = io.BytesIO(payload)
        document = cbor2.load(stream)
    except UNREADABLE as error:
        raise MessageError(f"payload is not CBOR: {type(error).__name__}: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise MessageError(f"payload is a CBOR {type(document).__name__}, not a map with text keys")
    if stream.read(1):
        raise MessageError("payload goes on after its map")
    _check_plain(document, len(payload))
    if document.get("schema") != expected.__struct_config__.tag:
        raise MessageError(f"payload schema is {document.get('schema')!r}, not {expected.__struct_config__.tag!r}")
    version = document.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise MessageError(f"payload version is {version!r}; this edgert speaks up to {VERSION}")
    try:
        message = msgspec.convert(document, expected)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise MessageError(f"payload is no {expected.__name__}: {error}") from error
    known = {"schema", *(field.name for field in msgspec.structs.fields(expected))}
    return message, {key: value for key, value in document.items() if key not in known}


def _check_plain(document: object, size_bytes: int) -> None:
    """Only what JSON has, and bytes: whatever is accepted can be stored and forwarded.

    A value takes a byte at least, so a document with more values than bytes is one that refers to itself.
    """
    values: list[tuple[object, int]] = [(document, 0)]
    for value, depth in values:
        if len(values) > size_bytes or depth > 32:
            raise MessageError("payload is nested too deeply or refers to itself")
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            values += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            values += [(each, depth + 1) for each in value]
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            # Python refuses to print one of over 4300 digits, and an error message would be the place to find out.
            raise MessageError("payload holds an integer of more than 64 bits")
        elif value is not None and not isinstance(value, bool | int | float | str | bytes):
            raise MessageError(f"payload holds a {type(value).__name__}")
