"""Read and overwrite the weights of a serialized ONNX model, without the `onnx` package.

New weights have the size of the old ones, so nothing is re-encoded: the bytes of each initializer's `raw_data` are
found once and replaced. Subgraphs (the branches of If) are searched too. Only what is needed of Protocol Buffers is
understood; whatever is not well-formed is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
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


_INSIDE: dict[str, dict[int, str]] = {
    "model": {_MODEL_GRAPH: "graph"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor"},
    "node": {_NODE_ATTRIBUTE: "attribute"},
    "attribute": {_ATTRIBUTE_GRAPH: "graph", _ATTRIBUTE_GRAPHS: "graph"},
}
"""Which fields lead to initializers."""


def _length(size: int) -> bytes:
    """A size as a varint."""
    encoded = bytearray()
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*encoded, size])


def _rewritten(data: memoryview, kind: str, tensor: Callable[[memoryview], bytes], depth: int = 0) -> bytes:
    """A message in which every initializer is what `tensor` makes of it; whatever holds it gets its new length."""
    if depth > 3 * _DEEPEST:
        raise ArtifactError("ONNX model: graphs nested too deep")
    parts: list[bytes | memoryview] = []
    done = 0
    for number, start, stop in _fields(data, 0, len(data)):
        inside = _INSIDE[kind].get(number)
        if inside is None or stop is None:
            continue
        content = data[start:stop]
        new = tensor(content) if inside == "tensor" else _rewritten(content, inside, tensor, depth + 1)
        head = start - len(_length(len(content))) - 1
        if head < done or data[head] != number << 3 | 2:
            raise ArtifactError(
                f"ONNX model: field {number} before byte {start} is oddly encoded; export it with edgert"
            )
        parts += [data[done : head + 1], _length(len(new)), new]
        done = stop
    return b"".join([*parts, data[done:]])


def _with_raw(data: memoryview, raw: Callable[[str, int, tuple[int, ...]], bytes | None]) -> bytes:
    """A TensorProto with other `raw_data`; `raw` is told name, data type and shape, and gives None to leave it."""
    shape: list[int] = []
    dtype, name, found = 0, "", (len(data), len(data))
    for number, start, stop in _fields(data, 0, len(data)):
        if stop is None:
            shape += [start] if number == _TENSOR_DIMS else []
            dtype = start if number == _TENSOR_DTYPE else dtype
        elif number == _TENSOR_NAME:
            name = bytes(data[start:stop]).decode("utf-8", "replace")
        elif number == _TENSOR_RAW:
            found = start - len(_length(stop - start)) - 1, stop
    new = raw(name, dtype, tuple(shape))
    if new is None:
        return bytes(data)
    field = bytes([_TENSOR_RAW << 3 | 2]) + _length(len(new)) + new
    return b"".join([data[: found[0]], field, data[found[1] :]])


def strip(model: bytes, names: Collection[str]) -> bytes:
    """Take the values of initializers out and leave their names and shapes.

    Args:
        model: a serialized ModelProto.
        names: the initializers to empty.

    Returns:
        A smaller model, of which only `fill` makes one that runs.

    Raises:
        ArtifactError: as `fill`.
    Source:
        ours: the weights lie in the bundle already; a second graph over them need not carry them again.
    """
    return _rewritten(
        memoryview(model), "model", lambda data: _with_raw(data, lambda name, *_: b"" if name in names else None)
    )


def fill(model: bytes, tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Put values into initializers that `strip` emptied.

    Args:
        model: of `strip`.
        tensors: name -> values, of the declared type and shape. What is not named stays.

    Returns:
        A model that can be run.

    Raises:
        ArtifactError: not a well-formed model, or a tensor is not there or has another type or shape.
    Source:
        protobuf.dev/programming-guides/encoding: a message that grows changes only the lengths of what holds it.
    """
    left = set(tensors)

    def raw(name: str, dtype: int, shape: tuple[int, ...]) -> bytes | None:
        if name not in tensors:
            return None
        values = tensors[name]
        if _DTYPES.get(dtype) != values.dtype or shape != values.shape:
            raise ArtifactError(
                f"ONNX model: cannot fill {name} with {values.dtype} {values.shape}, it is {_DTYPES.get(dtype)} {shape}"
            )
        left.discard(name)
        return np.asarray(values, values.dtype.newbyteorder("<")).tobytes()

    filled = _rewritten(memoryview(model), "model", lambda data: _with_raw(data, raw))
    if left:
        raise ArtifactError(f"ONNX model: cannot fill {min(left)}, the model has no such initializer")
    return filled


def skeleton(model: bytes) -> bytes:
    """What of a model does not change when its weights do.

    Args:
        model: a serialized ModelProto.

    Returns:
        The model without the values of any initializer: equal for all networks of one exporter and one shape.

    Raises:
        ArtifactError: as `fill`.
    Source:
        ours: what was measured of a network's speed still holds after it has learned.
    """
    return _rewritten(memoryview(model), "model", lambda data: _with_raw(data, lambda *_: b""))
