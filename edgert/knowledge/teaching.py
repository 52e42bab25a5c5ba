"""The teacher's side of teaching: check what is asked, look it up or run the model once for all of it, and answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from edgert.errors import MessageError, UsageError
from edgert.knowledge.codec import CODEC_FRAMES_ZSTD, CODECS, ObsShape, digest, q_bytes_bound
from edgert.nets import F32, U8
from edgert.wire import MAX_PAYLOAD_BYTES, KnowAnswer, KnowAsk

Model: TypeAlias = Callable[[U8], F32]
"""(n, H, W, C) uint8 -> (n, A) float32, n >= 1."""

_ENVELOPE_BYTES: Final = 1024  # more than everything in a KnowAnswer but its data


class TeacherCache:
    """Answers given before, by observation; the least recently used ones go first.

    Attributes:
        hits: observations found here.
        misses: observations that the model had to be run for.

    """

    def __init__(self, capacity: int) -> None:
        """Start empty.

        Args:
            capacity: most observations remembered; 0 remembers none.

        """
        self._capacity = capacity
        self._known: OrderedDict[bytes, F32] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, name: bytes) -> F32 | None:
        """Look an observation up.

        Args:
            name: its digest.

        Returns:
            (A,) float32, or None.

        Raises:
            Nothing.

        Source:
            ours: students of one task meet the same observations, and start every episode with the same one.

        """
        row = self._known.get(name)
        if row is None:
            self.misses += 1
        else:
            self.hits += 1
            self._known.move_to_end(name)
        return row

    def put(self, name: bytes, row: F32) -> None:
        """Remember an answer.

        Args:
            name: the observation's digest.
            row: (A,) float32; copied.

        Raises:
            Nothing.

        Source:
            ours, see `get`.

        """
        self._known[name] = row.copy()
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)


def answer(
    ask: KnowAsk,
    model: Model,
    *,
    teacher: str,
    task: str,
    obs_shape: ObsShape,
    n_actions: int,
    cache: TeacherCache | None = None,
) -> KnowAnswer:
    """Answer one question; see `answer_all`.

    Args:
        ask: the question.
        model: run for what `cache` does not know.
        teacher: names the model in the answer.
        task: what is taught.
        obs_shape: (H, W, C) that the model takes.
        n_actions: that the model values.
        cache: of this model.

    Returns:
        The answer, or a named refusal.

    Raises:
        UsageError: the model gave an array of the wrong shape or dtype: never a peer's fault.

    Source:
        ours, see `answer_all`.

    """
    return answer_all([ask], model, teacher=teacher, task=task, obs_shape=obs_shape, n_actions=n_actions, cache=cache)[
        0
    ]


def answer_all(
    asks: Sequence[KnowAsk],
    model: Model,
    *,
    teacher: str,
    task: str,
    obs_shape: ObsShape,
    n_actions: int,
    cache: TeacherCache | None = None,
) -> list[KnowAnswer]:
    """Answer questions of any number of students with one run of the model.

    Args:
        asks: the questions.
        model: run at most once, for the distinct observations that `cache` does not know.
        teacher: names the model in the answers.
        task: what is taught.
        obs_shape: (H, W, C) that the model takes.
        n_actions: that the model values.
        cache: of this model; None remembers nothing between calls.

    Returns:
        One answer a question, in order. A question that cannot be answered gets `error`: `unknown-task`, `obs-shape`,
        `n-actions`, `codec`, `too-many` (the answer would not fit a message), `malformed-data`, or `not-finite` (the
        model has no finite value for something asked); it never spoils the others.

    Raises:
        UsageError: the model gave an array of the wrong shape or dtype: never a peer's fault.

    Source:
        ours: batching over students, because one matrix product over many rows costs far less than many over few.

    """
    cache = TeacherCache(0) if cache is None else cache
    wanted: list[list[bytes]] = []
    errors: list[str] = []
    values: dict[bytes, F32] = {}
    unknown: dict[bytes, U8] = {}
    for ask in asks:
        error = _refusal(ask, task, obs_shape, n_actions)
        names: list[bytes] = []
        if not error:
            try:
                obs = CODECS[ask.codec].decode_obs(ask.data, ask.count, obs_shape)
            except MessageError:
                error = "malformed-data"
            else:
                names = [digest(row.tobytes()) for row in obs]
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
    if unknown:
        values |= _run(model, unknown, n_actions, cache)
    return [
        _told(ask, [values.get(name) for name in names], error, teacher, n_actions)
        for ask, names, error in zip(asks, wanted, errors, strict=True)
    ]


def _refusal(ask: KnowAsk, task: str, obs_shape: ObsShape, n_actions: int) -> str:
    if ask.task != task:
        return "unknown-task"
    if tuple(ask.obs_shape) != tuple(obs_shape):
        return "obs-shape"
    if ask.n_actions != n_actions:
        return "n-actions"
    if ask.codec not in CODECS:
        return "codec"
    return "too-many" if q_bytes_bound(ask.count, n_actions) + _ENVELOPE_BYTES > MAX_PAYLOAD_BYTES else ""


def _run(model: Model, unknown: dict[bytes, U8], n_actions: int, cache: TeacherCache) -> dict[bytes, F32]:
    q = model(np.stack(list(unknown.values())))
    if q.shape != (len(unknown), n_actions) or q.dtype != np.float32:
        raise UsageError(f"the model gave {q.dtype} {q.shape} for {len(unknown)} observations and {n_actions} actions")
    found = {name: row for name, row in zip(unknown, q, strict=True) if np.isfinite(row).all()}
    for name, row in found.items():
        cache.put(name, row)
    return found


def _told(ask: KnowAsk, rows: list[F32 | None], error: str, teacher: str, n_actions: int) -> KnowAnswer:
    known = [row for row in rows if row is not None]
    if not error and len(known) < len(rows):
        error = "not-finite"
    if error:
        return KnowAnswer(teacher=teacher, count=0, codec=CODEC_FRAMES_ZSTD, data=b"", error=error)
    q = np.stack(known) if known else np.zeros((0, n_actions), np.float32)
    return KnowAnswer(teacher=teacher, count=len(q), codec=ask.codec, data=CODECS[ask.codec].encode_q(q))
