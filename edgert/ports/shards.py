"""A training job as files and messages: its data, its state, and what its pieces say to one another.

Files go by the hash of their content, so that a device that has one already needs no other. Arrays travel as they lie
in memory, little-endian; whatever comes in is checked against what it says of itself before anybody computes with it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import numpy as np
import numpy.typing as npt

from edgert import wire
from edgert.errors import ArtifactError, MessageError, StoreError
from edgert.fleet import fetch
from edgert.learn.dqn import Batch, Losses
from edgert.learn.replay import is_held_out
from edgert.learn.split import Passed, Returned, Rows
from edgert.nets import F32
from edgert.ports.store import write_atomic

CHUNK_BYTES = 32 << 10
FORMAT = 1
MAX_BYTES = 1 << 28
"""Of a file, uncompressed: what is larger is no shard for a board."""
DTYPES = {"u1": np.uint8, "f4": np.float32, "f8": np.float64, "i8": np.int64, "b1": np.bool_}
_COLUMNS = {"obs": "u1", "action": "i8", "reward": "f4", "next_obs": "u1", "terminated": "b1", "teacher_q": "f4"}
_COLUMNS["taught"] = "b1"
NOTHING = [b"", "u1", [0]]

Array = npt.NDArray[Any]
TORN: tuple[type[Exception], ...] = (zlib.error, *wire.UNREADABLE)


def _array(array: Array) -> list[object]:
    kind = array.dtype.str[1:]
    return [np.ascontiguousarray(array).tobytes(), kind, list(array.shape)]


def _read_array(said: object, kind: str | None = None) -> Array:
    """An array as `_array` said it, a copy of its own; of one kind only, where one is given."""
    try:
        data, found, shape = msgspec.convert(said, tuple[bytes, str, tuple[int, ...]])
        if found not in DTYPES or (kind is not None and found != kind):
            raise ValueError(f"kind {found!r}")
        return np.frombuffer(data, DTYPES[found]).reshape(shape).copy()
    except (TypeError, ValueError) as error:
        raise MessageError(f"not an array: {error}") from error


def pack_shard(batch: Batch) -> bytes:
    """Transitions as a file.

    Args:
        batch: any number of rows.
    """
    columns = {name: _array(np.asarray(column, DTYPES[_COLUMNS[name]])) for name, column in batch._asdict().items()}
    return zlib.compress(cbor2.dumps({"format": FORMAT, "shard": columns}), 1)


def _unpack(data: bytes, key: str) -> dict[str, object]:
    try:
        plain = zlib.decompressobj().decompress(data, MAX_BYTES)
        document = cbor2.loads(plain)
        if document["format"] != FORMAT or not isinstance(document[key], dict):
            raise ValueError(f"format {document['format']}")
    except TORN as error:
        raise ArtifactError(f"not a file of kind {key}: {type(error).__name__}: {error}") from error
    found: dict[str, object] = document[key]
    return found


def unpack_shard(data: bytes) -> Batch:
    """The inverse of `pack_shard`.

    Raises:
        ArtifactError: it is no shard, or its columns do not fit one another.
    """
    columns = _unpack(data, "shard")
    try:
        batch = Batch(**{name: _read_array(columns.get(name), kind) for name, kind in _COLUMNS.items()})
    except MessageError as error:
        raise ArtifactError(f"shard: {error}") from error
    n = len(batch.action)
    fits = all(len(column) == n for column in batch) and batch.obs.shape == batch.next_obs.shape and batch.obs.ndim == 4
    if not n or not fits or batch.teacher_q.ndim != 2:
        raise ArtifactError("shard: columns of different lengths, or none")
    if batch.action.min() < 0 or batch.action.max() >= batch.teacher_q.shape[1]:
        raise ArtifactError("shard: an action that is not there")
    if not np.isfinite(batch.reward).all() or not np.isfinite(batch.teacher_q[batch.taught]).all():
        raise ArtifactError("shard: values that are not finite")
    return batch


def pick(batch: Batch, rows: slice | Array) -> Batch:
    """Some rows of a batch, copied."""
    return Batch._make(column[rows].copy() for column in batch)


def held_out(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which rows must not be trained on: the same ones on every device."""
    return np.array([is_held_out(row) for row in batch.obs], bool)


def shares(batch: Batch, n: int) -> list[bytes]:
    """What may be trained on, as one file for each of `n` workers, rows dealt out in turn."""
    usable = pick(batch, ~held_out(batch))
    return [pack_shard(pick(usable, slice(k, None, n))) for k in range(n)]


def pack_state(arrays: Mapping[str, F32], steps: int) -> bytes:
    """Optimiser state as a file.

    Args:
        arrays: of `dqn.Learner.arrays`.
        steps: taken.
    """
    content = {"steps": steps, "arrays": {name: _array(array) for name, array in arrays.items()}}
    return zlib.compress(cbor2.dumps({"format": FORMAT, "state": content}), 0)  # weights do not shrink


def unpack_state(data: bytes) -> tuple[dict[str, F32], int]:
    """The inverse of `pack_state`.

    Raises:
        ArtifactError: it is no such file.
    """
    content = _unpack(data, "state")
    arrays, steps = content.get("arrays"), content.get("steps")
    if not isinstance(arrays, dict) or not isinstance(steps, int):
        raise ArtifactError("state: no arrays, or no steps")
    try:
        return {str(name): _read_array(array, "f4") for name, array in arrays.items()}, steps
    except MessageError as error:
        raise ArtifactError(f"state: {error}") from error


def offer(name: str, data: bytes, *, id_: str, chunk_bytes: int = CHUNK_BYTES) -> wire.PolicyOffer:
    """What others must know of a file to fetch it in chunks.

    Args:
        name: for people.
        data: the file.
        id_: of the job.
        chunk_bytes: of each chunk but the last.
    """
    return wire.PolicyOffer(
        id=id_,
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=chunk_bytes,
        hashes=fetch.hashes(data, chunk_bytes),
        version=1,
        budget_bytes=16 * len(data) + (1 << 16),  # several jobs that fetch one file at once hear every chunk of all
    )


def keep(folder: Path, data: bytes) -> Path:
    """Write a file under the hash of its content, where `fetch.Part` looks for it.

    Raises:
        StoreError: the disk refused.
    """
    path = folder / f"{hashlib.sha256(data).hexdigest()}.edgert"
    if not path.exists():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: {error}") from error
        write_atomic(path, data)
    return path


def chunk(data: bytes, of: wire.PolicyOffer, index: int) -> bytes:
    """One chunk of a file, encoded."""
    start = index * of.chunk_bytes
    return wire.encode(wire.PolicyChunk(data=data[start : start + of.chunk_bytes]))


def pack_said(said: Passed | Returned | F32) -> bytes:
    """What one piece says to another: features, their gradient, or a whole gradient."""
    if isinstance(said, Passed):
        arrays = [NOTHING if each is None else _array(each) for each in (said.x, said.next_x, said.slow_x)]
        rows = [_array(np.asarray(each)) for each in said.rows[:5]]
        return cbor2.dumps(["passed", arrays, rows, said.rows.n, said.rows.n_told])
    if isinstance(said, Returned):
        arrays = [_array(said.d_x), _array(said.y), _array(np.asarray(said.best, np.int64))]
        return cbor2.dumps(["returned", arrays, [float(loss) for loss in said.losses], said.squared])
    return cbor2.dumps(["sum", _array(said)])


def unpack_said(data: bytes) -> Passed | Returned | F32:
    """The inverse of `pack_said`.

    Raises:
        MessageError: it is none of them.
    """
    try:
        kind, arrays, *rest = cbor2.loads(data)
        if kind == "passed":
            x, next_x, slow_x = (None if each == NOTHING else _read_array(each) for each in arrays)
            columns = [
                _read_array(each, dtype) for each, dtype in zip(rest[0], ("i8", "f4", "b1", "f4", "b1"), strict=True)
            ]
            if x is None:
                raise ValueError("no features")
            action, reward, terminated, teacher_q, told = columns
            rows = Rows(action, reward, terminated, teacher_q, told, int(rest[1]), int(rest[2]))
            return Passed(x, next_x, slow_x, rows)
        if kind == "returned":
            d_x, y, best = (_read_array(each, dtype) for each, dtype in zip(arrays, ("f4", "f4", "i8"), strict=True))
            return Returned(d_x, y, best, Losses(*(float(loss) for loss in rest[0])), float(rest[1]))
        if kind == "sum":
            return _read_array(arrays, "f4")
    except wire.UNREADABLE as error:
        raise MessageError(f"not what a piece says: {error}") from error
    raise MessageError(f"a piece says {kind!r}")


class Parcel(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A part of something large, on its way between pieces or to the owner.

    Attributes:
        kind: `ahead`, `back`, `commit`, `sum`, `state` or `result`.
        of, to: parts of the job; -1 is its owner.
        step, micro: of the training.
        index, count: of this parcel among those that belong together.
        data: the part.
    """

    kind: str
    of: int
    to: int
    step: int
    micro: int = 0
    index: int = 0
    count: int = 1
    data: bytes = b""


PARCEL_BYTES = 192 << 10
"""With its headers below what any broker takes by default."""


def parcels(
    kind: str, of: int, to: int, step: int, data: bytes, *, micro: int = 0, size_bytes: int = PARCEL_BYTES
) -> list[Parcel]:
    """Cut something large so that each part fits a message."""
    count = max(1, -(-len(data) // size_bytes))
    return [
        Parcel(
            kind=kind,
            of=of,
            to=to,
            step=step,
            micro=micro,
            index=k,
            count=count,
            data=data[k * size_bytes : (k + 1) * size_bytes],
        )
        for k in range(count)
    ]


class Whole(msgspec.Struct, frozen=True):
    """What parcels have become."""

    kind: str
    of: int
    step: int
    micro: int
    data: bytes


class Unpacking:
    """Puts parcels together, in whatever order and however often they come.

    Attributes:
        waiting: bytes of what is not whole yet.
    """

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        """Nothing came yet; beyond `most_bytes` the oldest is given up."""
        self._most_bytes = most_bytes
        self._there: dict[tuple[str, int, int, int], dict[int, bytes]] = {}
        self.waiting = 0

    def add(self, parcel: Parcel) -> Whole | None:
        """The whole, once, when its last parcel came."""
        key = parcel.kind, parcel.of, parcel.step, parcel.micro
        if not 0 <= parcel.index < parcel.count <= 4096:
            return None
        if parcel.count == 1:
            return Whole(*key, parcel.data)
        there = self._there.setdefault(key, {})
        if parcel.index not in there:
            there[parcel.index] = parcel.data
            self.waiting += len(parcel.data)
        if len(there) == parcel.count:
            del self._there[key]
            self.waiting -= sum(map(len, there.values()))
            return Whole(*key, b"".join(there[k] for k in range(parcel.count)))
        while self.waiting > self._most_bytes:
            oldest = next(iter(self._there))
            self.waiting -= sum(map(len, self._there.pop(oldest).values()))
        return None


def read_files(paths: Sequence[Path]) -> list[bytes]:
    """Files as bytes.

    Raises:
        StoreError: one cannot be read.
    """
    try:
        return [path.read_bytes() for path in paths]
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from error
