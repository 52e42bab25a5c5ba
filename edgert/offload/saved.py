"""What a learner knows as bytes, and back: only for the same kind of learner over the same space and floor."""

from __future__ import annotations

from typing import Any

import cbor2
import msgspec
import numpy as np

from edgert import wire
from edgert.errors import ArtifactError
from edgert.offload.space import Floor, Space

FORMAT = 3
_ARRAY = "array"


def pack(kind: str, space: Space, floor: Floor, known: dict[str, Any]) -> bytes:
    """Freeze.

    Args:
        kind: of learner.
        space: it was made for.
        floor: it was made for.
        known: numbers, strings, lists, dicts and arrays.

    Returns:
        CBOR bytes.

    Raises:
        nothing.
    Source:
        ours: a learner that is loaded over another space would take choices for what they are not.
    """
    return cbor2.dumps({"format": FORMAT, "kind": kind, "for": _for(space, floor), "known": _plain(known)})


def unpack(kind: str, space: Space, floor: Floor, data: bytes) -> dict[str, Any]:
    """Thaw and check.

    Args:
        kind: of learner.
        space: it is made for now.
        floor: it is made for now.
        data: of `pack`.

    Returns:
        What was known; arrays are copies of their own.

    Raises:
        ArtifactError: not of `pack`, or of another kind, space or floor.
    Source:
        see `pack`.
    """
    try:
        document = cbor2.loads(data)
        matches = [document["format"] == FORMAT, document["kind"] == kind, document["for"] == _for(space, floor)]
        known = _arrays(document["known"])
    except wire.UNREADABLE as error:
        raise ArtifactError(f"what the learner knew cannot be read: {error}; delete it and it learns anew") from error
    if not all(matches) or not isinstance(known, dict):
        raise ArtifactError(f"what was kept is not of a {kind} learner over these choices and this floor; delete it")
    return known


def _for(space: Space, floor: Floor) -> str:
    return msgspec.json.encode([msgspec.to_builtins(space), msgspec.to_builtins(floor)]).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {_ARRAY: [value.dtype.str, list(value.shape), value.tobytes()]}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {_ARRAY}:
        dtype, shape, data = value[_ARRAY]
        return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()
    if isinstance(value, dict):
        return {key: _arrays(each) for key, each in value.items()}
    return [_arrays(each) for each in value] if isinstance(value, list) else value
