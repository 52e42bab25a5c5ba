"""What a device can be told to do as a job: the kinds, what each may be told, and how much patience each deserves."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Kind(enum.Enum):
    """What a job does.

    TRAIN: the trainer offers a candidate and commits a checkpoint.
    EVALUATE: how well the acting network did lately, measured on this device.
    CALIBRATE: which runtime is fastest here, and what each exit costs; both are used from then on.
    FETCH: ask teachers more than usual, for a while.
    UPLOAD: the status document and what went wrong lately, as an event that is not lost.
    UPDATE: another bundle, taken up as one that is offered, once the job's conditions hold.
    BENCH: like CALIBRATE, but only measured.
    """

    TRAIN = "train"
    EVALUATE = "evaluate"
    CALIBRATE = "calibrate"
    FETCH = "fetch"
    UPLOAD = "upload"
    UPDATE = "update"
    BENCH = "bench"


class NoArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose."""


class Evaluate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to watch.

    Attributes:
        episodes: to watch from now on.
        windows: reports with rewards, one a second, to watch instead: for a plant without episodes.
    """

    episodes: Annotated[int, Meta(ge=1, le=1000)] = 10
    windows: Annotated[int, Meta(ge=0, le=1000)] = 0


class Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much, and how long.

    Attributes:
        for_s: seconds.
        bytes_per_s: both ways, instead of teacher.max_bytes_per_s; None takes four times that.
    """

    for_s: Annotated[float, Meta(ge=1, le=86_400)] = 600.0
    bytes_per_s: Annotated[float, Meta(gt=0, le=1_000_000_000)] | None = None


class Update(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle.

    Attributes:
        sha256: of the whole file, hex.
        size_bytes: of the whole file.
        version: of its release.
        hashes: the first 16 bytes of each chunk's SHA-256, hex, one after the other.
        chunk_bytes: of each chunk but the last.
        name: of the policy, for people.
        url: where it can be had; empty fetches it over the broker.
        budget_bytes: most bytes over the link to get it; 0 leaves it to the device.
    """

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size_bytes: Annotated[int, Meta(ge=1, le=1 << 28)]
    version: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    hashes: Annotated[str, Meta(pattern=r"^[0-9a-f]*\Z")]
    chunk_bytes: Annotated[int, Meta(ge=1024, le=1 << 18)] = 32 << 10
    name: Annotated[str, Meta(max_length=100)] = ""
    url: Annotated[str, Meta(max_length=1000)] = ""
    budget_bytes: Annotated[int, Meta(ge=0, le=1 << 40)] = 0


class Bench(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How thoroughly.

    Attributes:
        for_s: seconds, for all runtimes together.
    """

    for_s: Annotated[float, Meta(ge=1, le=600)] = 20.0


Args = NoArgs | Evaluate | Fetch | Update | Bench
Lane = Literal["compute", "link"]


class Rules(msgspec.Struct, frozen=True):
    """How a kind is treated.

    Attributes:
        args: what it may be told.
        lane: only one job of a lane runs at a time.
        timeout_s: patience with a running one that names none.
        attempts: how often it is begun, when the device keeps going down in the middle.
        heavy: it takes a core for as long as it lasts, and waits for the governor to have that to spare.
    """

    args: type[Args]
    lane: Lane
    timeout_s: float
    attempts: int = 3
    heavy: bool = False


RULES: Mapping[Kind, Rules] = {
    Kind.TRAIN: Rules(NoArgs, "compute", 600.0),
    Kind.EVALUATE: Rules(Evaluate, "compute", 3600.0),
    Kind.CALIBRATE: Rules(Bench, "compute", 1800.0, heavy=True),
    Kind.FETCH: Rules(Fetch, "link", 86_400.0),
    Kind.UPLOAD: Rules(NoArgs, "link", 300.0),
    # A download goes on where it stopped, so each start is progress.
    Kind.UPDATE: Rules(Update, "link", 86_400.0, attempts=100),
    Kind.BENCH: Rules(Bench, "compute", 1800.0, heavy=True),
}


def read_args(kind: Kind, told: Mapping[str, object]) -> Args | str:
    """Judge what a job is told.

    Args:
        kind: of the job.
        told: names and values, as they came.

    Returns:
        Them with a type, or what is wrong with them in words.

    Raises:
        nothing.
    Source:
        ours: unknown names are refused, because a job that does less than it was told looks done.
    """
    try:
        return msgspec.convert(dict(told), RULES[kind].args)
    except (msgspec.ValidationError, OverflowError) as error:
        return f"args: {error}"
