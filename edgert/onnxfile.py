"""Read and overwrite the weights of a serialized ONNX model, without the `onnx` package.

New weights have the size of the old ones, so nothing is re-encoded: the bytes of each initializer's `raw_data` are
found once and replaced. Subgraphs (the branches of If) are searched too. Only what is needed of Protocol Buffers is
understood; whatever is not well-formed is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import ArtifactError

# TensorProto.DataType, onnx.proto3.
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
}
_DEEPEST = 64  # graphs inside graphs: one level an exit, with room
_BYTES_MAX = 1 << 31  # the limit of Protocol Buffers themselves

# Field numbers of onnx.proto3.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9


class Tensor(NamedTuple):
    """Where an initializer's values lie.

    Attributes:
        dtype: of the values, little-endian in the file.
        shape: () is a scalar.
        start, end: byte offsets into the model; `end` is exclusive.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Value and the offset after it."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ArtifactError(f"ONNX model: broken number before byte {at}; the file is damaged")


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """(field number, start, end) of each field of a message; (field number, value, None) for a varint."""
    while at < end:
        key, at = _varint(data, at, end)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(data, at, end)
            yield number, value, None
            continue
        if wire_type == 2:
            size, at = _varint(data, at, end)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ArtifactError(f"ONNX model: unknown wire type {wire_type} before byte {at}; the file is damaged")
        if size > end - at:
            raise ArtifactError(
                f"ONNX model: field {number} at byte {at} is longer than what holds it; the file is damaged"
            )
        yield number, at, at + size
        at += size


def _tensor(data: memoryview, at: int, end: int) -> tuple[str, Tensor]:
    shape: list[int] = []
    dtype, name, raw = 0, "", None
    for number, start, stop in _fields(data, at, end):
        if number == _TENSOR_DIMS and stop is None:
            shape.append(start)
        elif number == _TENSOR_DIMS and stop is not None:
            while start < stop:
                size, start = _varint(data, start, stop)
                shape.append(size)
        elif number == _TENSOR_DTYPE and stop is None:
            dtype = start
        elif number == _TENSOR_NAME and stop is not None:
            name = bytes(data[start:stop]).decode("utf-8", "replace")
        elif number == _TENSOR_RAW and stop is not None:
            raw = start, stop
    if dtype not in _DTYPES:
        raise ArtifactError(f"ONNX model: initializer {name!r} has data type {dtype}, which edgert does not use")
    n = 1
    for size in shape:
        n *= size
        if n > _BYTES_MAX:
            raise ArtifactError(f"ONNX model: initializer {name!r} claims the shape {tuple(shape)}")
    if raw is None or raw[1] - raw[0] != n * _DTYPES[dtype].itemsize:
        held = "no raw_data" if raw is None else f"{raw[1] - raw[0]} bytes of raw_data"
        raise ArtifactError(
            f"ONNX model: initializer {name!r} {_DTYPES[dtype]} {tuple(shape)} has {held}; export it with edgert"
        )
    return name, Tensor(_DTYPES[dtype], tuple(shape), *raw)


def index(model: bytes | bytearray | memoryview) -> dict[str, Tensor]:
    """Find every initializer, in the main graph and in all subgraphs.

    Args:
        model: a serialized ModelProto.

    Returns:
        name -> where it lies, in the order of the file.

    Raises:
        ArtifactError: not a well-formed model, an initializer without raw_data, or a name that occurs twice.
    Source:
        protobuf.dev/programming-guides/encoding; onnx/onnx.proto3 (field numbers). Every byte is read once per level
        at most, and levels are bounded, so the time is linear in the size.
    """
    data = memoryview(model).cast("B")
    if len(data) >= _BYTES_MAX:
        raise ArtifactError(f"ONNX model: {len(data)} bytes are more than Protocol Buffers allow")
    found: dict[str, Tensor] = {}

    def graph(at: int, end: int, depth: int) -> None:
        if depth > _DEEPEST:
            raise ArtifactError(f"ONNX model: graphs nested deeper than {_DEEPEST} at byte {at}")
        for number, start, stop in _fields(data, at, end):
            if stop is None:
                continue
            if number == _GRAPH_INITIALIZER:
                name, tensor = _tensor(data, start, stop)
                if name in found:
                    raise ArtifactError(f"ONNX model: two initializers are named {name!r}")
                found[name] = tensor
            elif number == _GRAPH_NODE:
                for attribute, inner, inner_stop in _fields(data, start, stop):
                    if attribute == _NODE_ATTRIBUTE and inner_stop is not None:
                        for kind, body, body_stop in _fields(data, inner, inner_stop):
                            if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and body_stop is not None:
                                graph(body, body_stop, depth + 1)

    graphs = [
        (start, stop)
        for number, start, stop in _fields(data, 0, len(data))
        if number == _MODEL_GRAPH and stop is not None
    ]
    if len(graphs) != 1:
        raise ArtifactError(f"ONNX model: {len(graphs)} graphs instead of one; this is not an ONNX model")
    graph(*graphs[0], 0)
    return found


def read(model: bytes) -> dict[str, npt.NDArray[Any]]:
    """Copy every initializer out.

    Args:
        model: a serialized ModelProto.

    Returns:
        name -> array of the stored type and shape.

    Raises:
        ArtifactError: as `index`.
    Source:
        ours: lets the numpy runtime run the very file that onnxruntime runs.
    """
    return {
        name: np.frombuffer(
            model, tensor.dtype.newbyteorder("<"), offset=tensor.start, count=int(np.prod(tensor.shape))
        )
        .astype(tensor.dtype)
        .reshape(tensor.shape)
        for name, tensor in index(model).items()
    }


def patch(model: bytes, tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Overwrite initializers.

    Args:
        model: a serialized ModelProto.
        tensors: name -> new values, of the stored type and shape. What is not named stays.

    Returns:
        A model of the same size.

    Raises:
        ArtifactError: as `index`, or a tensor is not there or has another type or shape.
    Source:
        ours: 2-12 ms instead of an export, and no `onnx` package on the board.
    """
    where, patched = index(model), bytearray(model)
    for name, values in tensors.items():
        tensor = where.get(name)
        if tensor is None or values.dtype != tensor.dtype or values.shape != tensor.shape:
            held = "no such initializer" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise ArtifactError(f"ONNX model: cannot write {name} {values.dtype} {values.shape}, the model has {held}")
        # Not np.ascontiguousarray: it would make a scalar one-dimensional.
        patched[tensor.start : tensor.end] = np.asarray(values, tensor.dtype.newbyteorder("<")).tobytes()
    return bytes(patched)
