"""Read and overwrite the constants of a serialized TFLite model, without a FlatBuffers library.

New values have the size of the old ones, so nothing is laid out anew: the bytes of each constant and of each tensor's
quantization are found once and replaced. Only what is needed of FlatBuffers is understood, and every offset is checked
before it is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import ArtifactError

# tflite.TensorType, schema.fbs.
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    2: np.dtype(np.int32),
    3: np.dtype(np.uint8),
    4: np.dtype(np.int64),
    9: np.dtype(np.int8),
}
_DEEPEST_SHAPE = 8
_NAME_BYTES_MAX = 256
_BYTES_MAX = 1 << 31  # FlatBuffers' offsets are 32 bits wide

# Field numbers of schema.fbs.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS = 2, 4
_SUBGRAPH_TENSORS = 0
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTIZATION = range(5)
_QUANTIZATION_SCALE, _QUANTIZATION_ZERO_POINT = 2, 3
_BUFFER_DATA = 0


class Span(NamedTuple):
    """Where values lie.

    Attributes:
        dtype: of the values, little-endian in the file.
        shape: of the values.
        start, end: byte offsets into the model; `end` is exclusive.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


class _File:
    """The bytes of a model, and FlatBuffers' ways through them."""

    def __init__(self, model: bytes | bytearray | memoryview) -> None:
        self.data = memoryview(model).cast("B")
        if len(self.data) >= _BYTES_MAX:
            raise ArtifactError(f"TFLite model: {len(self.data)} bytes are more than FlatBuffers allow")
        if bytes(self.data[4:8]) != b"TFL3":
            raise ArtifactError("TFLite model: no TFL3 mark at byte 4; this is not a TFLite model")

    def number(self, at: int, size: int, *, signed: bool = False) -> int:
        """The integer at `at`."""
        if not 0 <= at <= len(self.data) - size:
            raise ArtifactError(f"TFLite model: an offset leads to byte {at} of {len(self.data)}; the file is damaged")
        return int.from_bytes(self.data[at : at + size], "little", signed=signed)

    def field(self, table: int, slot: int) -> int | None:
        """Where a field of the table at `table` lies, None where it has its default."""
        vtable = table - self.number(table, 4, signed=True)
        entry = 4 + 2 * slot
        offset = self.number(vtable + entry, 2) if entry + 2 <= self.number(vtable, 2) else 0
        return table + offset if offset else None

    def follow(self, table: int, slot: int) -> int | None:
        """Where the field's offset leads."""
        at = self.field(table, slot)
        return None if at is None else at + self.number(at, 4)

    def vector(self, table: int, slot: int, item_bytes: int) -> tuple[int, int]:
        """Where the first item of a vector lies, and how many there are."""
        at = self.follow(table, slot)
        if at is None:
            return 0, 0
        n = self.number(at, 4)
        if n * item_bytes > len(self.data) - at - 4:
            raise ArtifactError(f"TFLite model: {n} values at byte {at} do not fit the file; it is damaged")
        return at + 4, n

    def tables(self, table: int, slot: int) -> Iterator[int]:
        """Where each table of a vector lies."""
        first, n = self.vector(table, slot, 4)
        for at in range(first, first + 4 * n, 4):
            yield at + self.number(at, 4)


def _spans(file: _File, tensor: int, buffers: list[int]) -> Iterator[tuple[str, Span]]:
    """What of one tensor can be overwritten."""
    start, n = file.vector(tensor, _TENSOR_NAME, 1)
    if n > _NAME_BYTES_MAX:
        raise ArtifactError(f"TFLite model: a tensor's name of {n} bytes; export it with edgert")
    name = bytes(file.data[start : start + n]).decode("utf-8", "replace")
    quantization = file.follow(tensor, _TENSOR_QUANTIZATION)
    if quantization is not None:
        for suffix, slot, kind in (
            ("scale", _QUANTIZATION_SCALE, np.dtype(np.float32)),
            ("zp", _QUANTIZATION_ZERO_POINT, np.dtype(np.int64)),
        ):
            start, n = file.vector(quantization, slot, kind.itemsize)
            if n:
                yield f"{name}.{suffix}", Span(kind, (n,), start, start + n * kind.itemsize)
    at = file.field(tensor, _TENSOR_BUFFER)
    buffer = 0 if at is None else file.number(at, 4)
    if buffer >= len(buffers):
        raise ArtifactError(f"TFLite model: tensor {name!r} lies in buffer {buffer} of {len(buffers)}")
    start, n = file.vector(buffers[buffer], _BUFFER_DATA, 1)
    if not n:
        return
    at = file.field(tensor, _TENSOR_TYPE)
    kind_number = 0 if at is None else file.number(at, 1)
    if kind_number not in _DTYPES:
        raise ArtifactError(f"TFLite model: tensor {name!r} has data type {kind_number}, which edgert does not use")
    first, rank = file.vector(tensor, _TENSOR_SHAPE, 4)
    if rank > _DEEPEST_SHAPE:
        raise ArtifactError(f"TFLite model: tensor {name!r} claims {rank} dimensions")
    shape = tuple(file.number(first + 4 * i, 4) for i in range(rank))
    size = _DTYPES[kind_number].itemsize
    for length in shape:
        size *= length
    if size != n:
        raise ArtifactError(f"TFLite model: tensor {name!r} {_DTYPES[kind_number]} {shape} has {n} bytes")
    yield name, Span(_DTYPES[kind_number], shape, start, start + n)


def index(model: bytes | bytearray | memoryview) -> dict[str, Span]:
    """Find every constant, and the quantization of every tensor.

    Args:
        model: a serialized tflite.Model.

    Returns:
        Tensor name -> its values, `<tensor>.scale` and `<tensor>.zp` -> its quantization, in the order of the file.

    Raises:
        ArtifactError: not a well-formed model, more than one graph, or a name that occurs twice.
    Source:
        flatbuffers.dev/internals; tensorflow/lite/schema/schema.fbs (field numbers). What is read of a
        table is bounded, so the time is linear in the size.
    """
    file = _File(model)
    root = file.number(0, 4)
    buffers = list(file.tables(root, _MODEL_BUFFERS))
    graphs = list(file.tables(root, _MODEL_SUBGRAPHS))
    if len(graphs) != 1:
        raise ArtifactError(f"TFLite model: {len(graphs)} graphs instead of one; export it with edgert")
    found: dict[str, Span] = {}
    for tensor in file.tables(graphs[0], _SUBGRAPH_TENSORS):
        for name, span in _spans(file, tensor, buffers):
            if name in found:
                raise ArtifactError(f"TFLite model: {name!r} occurs twice")
            found[name] = span
    return found


def read(model: bytes) -> dict[str, npt.NDArray[Any]]:
    """Copy every constant and every quantization out.

    Args:
        model: a serialized tflite.Model.

    Returns:
        name, as in `index` -> array of the stored type and shape.

    Raises:
        ArtifactError: as `index`.
    Source:
        ours: shows what a file holds without a vendor's library.
    """
    return {
        name: np.frombuffer(model[span.start : span.end], span.dtype.newbyteorder("<"))
        .astype(span.dtype)
        .reshape(span.shape)
        for name, span in index(model).items()
    }


def patch(model: bytes, values: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Overwrite constants and quantizations.

    Args:
        model: a serialized tflite.Model.
        values: name, as in `index` -> new values, of the stored type and shape. What is not named stays.

    Returns:
        A model of the same size.

    Raises:
        ArtifactError: as `index`, or something is not there or has another type or shape.
    Source:
        ours: no converter and no FlatBuffers library on the board.
    """
    where, patched = index(model), bytearray(model)
    for name, new in values.items():
        span = where.get(name)
        if span is None or new.dtype != span.dtype or new.shape != span.shape:
            held = "no such tensor" if span is None else f"{span.dtype} {span.shape}"
            raise ArtifactError(f"TFLite model: cannot write {name} {new.dtype} {new.shape}, the model has {held}")
        patched[span.start : span.end] = np.asarray(new, span.dtype.newbyteorder("<")).tobytes()
    return bytes(patched)
