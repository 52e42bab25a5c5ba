"""Messages by which a device has a network run elsewhere. `wire` encodes, decodes and names them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

ModelId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""`modelfile.model_id` of a bundle: weights and all, so that an answer is never another network's."""
Rows = Annotated[int, msgspec.Meta(ge=0, le=256)]
Wait = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Refusal = Literal[
    "", "unknown-model", "rows", "busy", "late", "over-budget", "draining", "model-failed", "not-finite", "too-large"
]
"""Why a node does not answer; empty where it does."""
REFUSALS: tuple[str, ...] = get_args(Refusal)[1:]


class InferAsk(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="infer-ask"):
    """A device's question: what does this network say of these rows?

    Attributes:
        model: which one.
        rows: asked about.
        data: the rows, C order, little-endian, as the model's input says.
        left_s: after it was sent, an answer is of no use any more.
    """

    model: ModelId
    rows: Rows
    data: bytes
    left_s: Wait
    v: int = 1


class InferAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="infer-answer"):
    """A node's answer.

    Attributes:
        model: which one answered.
        rows: answered; 0 when `error` says why not.
        data: float32 rows in the order asked, little-endian, as the model's output says.
        error: a named refusal, or empty.
        retry_s: with a refusal, how long there is no sense in asking again; 0 where time mends nothing.
        waited_s: from its arrival to the beginning of the run.
        run_s: of the batch it was in.
    """

    model: ModelId
    rows: Rows
    data: bytes
    error: Refusal = ""
    retry_s: Wait = 0.0
    waited_s: Wait = 0.0
    run_s: Wait = 0.0
    v: int = 1


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a node runs.

    Attributes:
        id: of it.
        name: of the variant, for people.
        row_s: what a row takes lately; None before the first.
    """

    id: ModelId
    name: Annotated[str, msgspec.Meta(max_length=64)]
    row_s: Wait | None = None


class InferLoad(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="infer-load"):
    """What a node offers and how busy it is. Retained, and gone with its expiry when the node no longer says it.

    Attributes:
        place: where it is, `edge` or `cloud`.
        accepts: it takes questions.
        models: that it runs.
        cpu_frac: share of the last seconds in which it ran a model, or what waits would have kept it running.
        memory_frac: of the machine's, in use; None when not known.
        waiting_s: what waits would take.
        rtt_s: of its own link to the broker; None when not known.
        every_s: between two of these.
    """

    place: Annotated[str, msgspec.Meta(max_length=64)]
    accepts: bool
    models: Annotated[tuple[Offered, ...], msgspec.Meta(max_length=64)] = ()
    cpu_frac: Share | None = None
    memory_frac: Share | None = None
    waiting_s: Wait = 0.0
    rtt_s: Wait | None = None
    every_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 1.0
    v: int = 1
