"""The teacher's side of teaching: check what is asked, look it up or run the model once for all of it, and answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from edgert.errors import ArtifactError, MessageError, UsageError
from edgert.knowledge.codec import CODEC_FRAMES_ZSTD, CODECS, ObsShape, digest, q_bytes_bound
from edgert.nets import F32, U8
from edgert.wire import MAX_PAYLOAD_BYTES, KnowAnswer, KnowAsk

Model: TypeAlias = Callable[[U8], F32]
"""(n, H, W, C) uint8 -> (n, columns) float32, n >= 1. ArtifactError where it cannot."""
Kind: TypeAlias = Literal["q", "policy"]

_ENVELOPE_BYTES: Final = 1024  # more than everything in a KnowAnswer but its data
_ENTRY_BYTES: Final = 208  # what an answer in the cache takes beside its values: two bytes objects and a place


class Subject(NamedTuple):
    """One task, and the model that teaches it.

    Attributes:
        task: what is played.
        teacher: names the model and how it is used; two that may answer differently have different names.
        obs_shape: (H, W, C) that the model takes.
        n_actions: that it knows.
        model: values rows of observations.
        kind: `q`: a Q-value an action; `policy`: a logit an action, then the state's value.
        actions: name of its action set, as `bundle.action_set` gives; empty where nobody named its actions.
    """

    task: str
    teacher: str
    obs_shape: ObsShape
    n_actions: int
    model: Model
    kind: Kind = "q"
    actions: str = ""

    @property
    def columns(self) -> int:
        """Floats in a row of an answer."""
        return self.n_actions + (self.kind == "policy")


class TeacherCache:
    """Answers given before, by teacher and observation; the least recently used ones go first.

    Attributes:
        hits: observations found here, or asked twice at once.
        misses: observations that a model had to be run for.
        size_bytes: of memory, about.

    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty.

        Args:
            max_bytes: most memory taken, over all teachers; 0 remembers nothing.

        """
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self.hits = self.misses = self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, name: bytes) -> F32 | None:
        """Look an observation up.

        Args:
            name: of teacher and observation.

        Returns:
            (columns,) float32, read-only, or None.

        Raises:
            Nothing.

        Source:
            ours: students of one task meet the same observations, and start every episode with the same one.

        """
        row = self._known.get(name)
        if row is None:
            self.misses += 1
            return None
        self.hits += 1
        self._known.move_to_end(name)
        return np.frombuffer(row, np.float32)

    def put(self, name: bytes, row: F32) -> None:
        """Remember an answer.

        Args:
            name: of teacher and observation.
            row: (columns,) float32; copied.

        Raises:
            Nothing.

        Source:
            ours, see `get`.

        """
        gone = self._known.pop(name, None)
        self._known[name] = row.tobytes()
        self.size_bytes += row.nbytes + _ENTRY_BYTES - (0 if gone is None else len(gone) + _ENTRY_BYTES)
        while self.size_bytes > self._max_bytes:
            _, gone = self._known.popitem(last=False)
            self.size_bytes -= len(gone) + _ENTRY_BYTES


def answer_all(asks: Sequence[KnowAsk], subject: Subject, cache: TeacherCache | None = None) -> list[KnowAnswer]:
    """Answer questions about one task, perhaps of several students, with one run of its model.

    Args:
        asks: the questions.
        subject: the task and its model, which is run once, for every observation that is asked about and that `cache`
            does not know; not at all if there is none.
        cache: of any number of subjects.

    Returns:
        One answer a question, in order. What cannot be answered gets a named refusal: `unknown-task`, `obs-shape`,
        `n-actions`, `actions`, `codec`, `too-many`, `malformed-data`, `not-finite`, `model-failed`; the others are
        answered all the same.

    Raises:
        UsageError: the model gave an array of the wrong shape or dtype: never a peer's fault.

    Source:
        ours: batching over students, because one matrix product over many rows costs far less than many over few.

    """
    cache = TeacherCache(0) if cache is None else cache
    prefix = subject.teacher.encode()
    wanted: list[list[bytes]] = []
    errors: list[str] = []
    values: dict[bytes, F32] = {}
    unknown: dict[bytes, U8] = {}
    for ask in asks:
        error = _misfit(ask, subject)
        names: list[bytes] = []
        if not error:
            try:
                obs = CODECS[ask.codec].decode_obs(ask.data, ask.count, subject.obs_shape)
            except MessageError:
                error = "malformed-data"
            else:
                names = [prefix + digest(row.tobytes()) for row in obs]
                for name, row in zip(names, obs, strict=True):
                    if name not in values and name not in unknown:
                        known = cache.get(name)
                        if known is None:
                            unknown[name] = row
                        else:
                            values[name] = known
                    else:
                        cache.hits += 1
        wanted.append(names)
        errors.append(error)
    missing = "not-finite"
    if unknown:
        try:
            values |= _run(subject, unknown, cache)
        except ArtifactError:
            missing = "model-failed"
    told = []
    for ask, names, error in zip(asks, wanted, errors, strict=True):
        rows = [values[name] for name in names if name in values]
        error = error or (missing if len(rows) < len(names) else "")
        told.append(refusal(subject, error) if error else _told(ask, rows, subject))
    return told


def refusal(subject: Subject, error: str, retry_s: float = 0.0) -> KnowAnswer:
    """Say no.

    Args:
        subject: what was asked about.
        error: the reason's name.
        retry_s: how long there is no sense in asking again; 0 where time mends nothing.

    Returns:
        The answer.

    Raises:
        Nothing.

    Source:
        ours: a student that is told why can stop asking; one that hears nothing asks again.

    """
    return KnowAnswer(
        teacher=subject.teacher,
        count=0,
        codec=CODEC_FRAMES_ZSTD,
        data=b"",
        error=error,
        kind=subject.kind,
        retry_s=retry_s,
    )


def _misfit(ask: KnowAsk, subject: Subject) -> str:
    if ask.task != subject.task:
        return "unknown-task"
    if tuple(ask.obs_shape) != tuple(subject.obs_shape):
        return "obs-shape"
    if ask.n_actions != subject.n_actions:
        return "n-actions"
    if ask.actions and subject.actions and ask.actions != subject.actions:
        return "actions"
    if ask.codec not in CODECS:
        return "codec"
    return "too-many" if q_bytes_bound(ask.count, subject.columns) + _ENVELOPE_BYTES > MAX_PAYLOAD_BYTES else ""


def _run(subject: Subject, unknown: dict[bytes, U8], cache: TeacherCache) -> dict[bytes, F32]:
    rows = subject.model(np.stack(list(unknown.values())))
    if rows.shape != (len(unknown), subject.columns) or rows.dtype != np.float32:
        raise UsageError(
            f"the model gave {rows.dtype} {rows.shape} for {len(unknown)} observations, {subject.kind} of "
            f"{subject.n_actions} actions"
        )
    found = {name: row for name, row in zip(unknown, rows, strict=True) if np.isfinite(row).all()}
    for name, row in found.items():
        cache.put(name, row)
    return found


def _told(ask: KnowAsk, rows: list[F32], subject: Subject) -> KnowAnswer:
    table = np.stack(rows) if rows else np.zeros((0, subject.columns), np.float32)
    return KnowAnswer(
        teacher=subject.teacher,
        count=len(table),
        codec=ask.codec,
        data=CODECS[ask.codec].encode_q(table),
        kind=subject.kind,
    )
