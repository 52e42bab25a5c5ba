"""Messages by which training jobs are placed and carried out. `wire` encodes, decodes and names them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgert.offers import PolicyOffer

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
Few = Annotated[int, msgspec.Meta(ge=1, le=64)]
PartNumber = Annotated[int, msgspec.Meta(ge=-1, le=63)]
WorkState = Literal["fetching", "starting", "ready", "running", "done", "failed"]
Split = Literal["auto", "one", "data", "layers"]
GENERATIONS = 500_000_000
"""Networks that were trained elsewhere count from here on, and never meet the numbers of those trained here."""


class Placing(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="placing"):
    """What agents, shields and nodes say to each other; `placement.protocol.Message` says what `body` may be."""

    body: dict[str, object]
    v: int = 1


class PlaceSubmit(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-submit"):
    """A training job for a device, which places it, gets its result and judges it.

    Attributes:
        id: a topic segment, unique for ever; submitted again, it is not done again.
        bundle: the network to begin with; its chunks come from whoever submits.
        shard: what to train on, likewise; None: what the device's own policy has lived through lately.
        steps: gradient steps.
        batch: transitions of a step.
        checkpoint_steps: steps between two states that are kept against the loss of a host.
        split: how it may be cut; `auto` leaves it to the agent.
        hyper: fields of `learn.dqn.Hyper` that differ from its defaults.
        due_s: seconds that it should take at most; None when nobody waits.
        cuts: ways to cut it that were measured before, each a map with `kind`, `edges` and `parts` as in
            `placement.jobs.Split`; empty: the device measures.
    """

    id: Name
    bundle: PolicyOffer | None = None
    shard: PolicyOffer | None = None
    steps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    checkpoint_steps: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 200
    split: Split = "auto"
    hyper: dict[str, float] = {}
    due_s: Annotated[float, msgspec.Meta(gt=0, le=1e7)] | None = None
    cuts: Annotated[tuple[dict[str, object], ...], msgspec.Meta(max_length=16)] = ()
    v: int = 1


class PlaceTake(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-take"):
    """To a job's owner: what the training gave is to act here.

    Attributes:
        id: of the job, which is done. The gate judges it once more, by the network that acts now.
    """

    id: Name
    v: int = 1


class PlaceWork(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-work"):
    """A job's owner to a host: this part runs with you.

    Attributes:
        job, attempt, part: which.
        order: what it has to do, as the part's process reads it; files are named by their hash.
        files: that it needs.
        hosts: of all parts.
    """

    job: Name
    attempt: Count
    part: PartNumber
    order: dict[str, object]
    files: Annotated[tuple[PolicyOffer, ...], msgspec.Meta(max_length=8)]
    hosts: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
    v: int = 1


class PlaceGo(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-go"):
    """A job's owner to a host: all parts are ready, begin."""

    job: Name
    attempt: Count
    v: int = 1


class PlaceState(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-state"):
    """A host to a job's owner: where a part stands.

    Attributes:
        job, attempt, part: which.
        state: of the part.
        step: gradient steps taken.
        have_bytes: of its files.
        rss_bytes, cpu_s: of its process; 0 where there is none.
        why: it failed.
    """

    job: Name
    attempt: Count
    part: PartNumber
    state: WorkState
    step: Count = 0
    have_bytes: Count = 0
    rss_bytes: Count = 0
    cpu_s: float = 0.0
    why: str = ""
    v: int = 1


class PlaceData(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-data"):
    """Features, gradients or a state on the way between parts, or to the owner, which is part -1.

    Attributes:
        job, attempt: which.
        kind, of, to, step, micro, index, count, data: see `ports.shards.Parcel`.
    """

    job: Name
    attempt: Count
    kind: Literal["ahead", "back", "commit", "sum", "state", "result"]
    of: PartNumber
    to: PartNumber
    step: Count
    micro: Count = 0
    index: Count = 0
    count: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    data: bytes = b""
    v: int = 1


class PlaceJob(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-job"):
    """Where a job stands, retained by its owner until it is forgotten.

    Attributes:
        id: of the job.
        owner: its device.
        state: `measuring`, `waiting`, `asking`, `starting`, `running`, `judging`; in the end `done`, `refused` by the
            gate, or `failed`.
        why: of the state.
        attempt: how often it was placed.
        step, steps: taken, and wanted.
        nodes: where its parts are.
        history: what happened, oldest first; each a map with `at_s` (seconds since the Unix epoch) and `what`.
        result: the verdict of the gate, and the file that came of it.
    """

    id: Name
    owner: Name
    state: str
    why: str = ""
    attempt: Count = 0
    step: Count = 0
    steps: Count = 0
    nodes: tuple[str, ...] = ()
    history: tuple[dict[str, object], ...] = ()
    result: dict[str, object] = {}
    v: int = 1


class PlaceGone(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="place-gone"):
    """Last will of a device's placer: none of the parts that it hosted in this session runs any more."""

    session: Count
    v: int = 1
