"""The adaptive coder under `edgert.knowledge`: frames and records to few bytes and back, the same bytes everywhere.

A context-mixing arithmetic coder that learns from message to message; both ends hold the same `Coder`, feed it the same
calls and stay in step. It proves nothing by itself: who decodes compares the checksum that comes out. A C extension
does the work and releases the GIL; where it could not be built, a twin in Python gives the same bytes, far more slowly.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import MessageError, UsageError
from edgert.kernels import _codec_twin

U8 = npt.NDArray[np.uint8]

HISTORY_MIN: Final = 4
HISTORY_MAX: Final = 200
RECORD_MAX: Final = 1 << 16
PIXELS_MAX: Final = 1 << 26
STATE_MAX_BYTES: Final = 1 << 28
"""A layout whose history needs more is refused."""
_EDGE_MAX: Final = 1 << 16
_BITS_MIN, _BITS_MAX = 10, 15
_ALIGNED: Final = 64
_U8: Final = np.dtype(np.uint8)


def _load() -> ModuleType | None:
    if os.environ.get("EDGERT_KERNELS") == "numpy":
        return None
    try:
        return importlib.import_module("edgert.kernels._codec")
    except ImportError:  # edgert.kernels, which is always imported first, has warned of the same build
        return None


_native = _load()
NATIVE: bool = _native is not None
"""True when the C extension serves, False when its twin does."""


class Layout(NamedTuple):
    """What both ends must agree on before the first byte.

    Attributes:
        height, width, channels: of one observation, uint8, interleaved; all 0 where there are records only.
        planes: True where each channel has a history of its own, False where channels show frames of one history, as
            stacks do.
        boolean: True where every pixel is 0 or 1.
        record: bytes of one record; 0 where there are none.
        history: frames kept of each history.
    """

    height: int
    width: int
    channels: int
    planes: bool
    boolean: bool
    record: int = 0
    history: int = 8


class Coder:
    """One end of a conversation. Not for two threads at once.

    Args:
        layout: as the other end has it.
        native: None for the C half where there is one; False for the twin.

    Raises:
        UsageError: a size out of its range, or the C half is asked for and missing.
    """

    def __init__(self, layout: Layout, *, native: bool | None = None) -> None:
        layout = Layout(*map(_whole, layout))
        h, w, c, record = layout.height, layout.width, layout.channels, layout.record
        if (
            not all(0 <= edge < _EDGE_MAX for edge in (h, w, c))
            or (min(h, w, c) == 0 < max(h, w, c))
            or h * w * c > PIXELS_MAX
            or not 0 <= record <= RECORD_MAX
            or not HISTORY_MIN <= layout.history <= HISTORY_MAX
        ):
            raise UsageError(f"{layout} cannot be coded: sizes over {PIXELS_MAX} pixels, or partly 0")
        tracks = c if layout.planes else 1
        kept = tracks * layout.history * (h + 4) * (w + 64)
        if kept > STATE_MAX_BYTES:
            raise UsageError(f"{layout} needs {kept} bytes of history, over the limit of {STATE_MAX_BYTES}")
        pixels = h * w * tracks
        bits = min(max(pixels.bit_length() + 3, _BITS_MIN), _BITS_MAX)
        self._sizes = _codec_twin.Sizes(h, w, c, int(layout.planes), int(layout.boolean), record, layout.history, bits)
        self._obs_shape, self._record_shape = (h, w, c), (record,)
        if native and _native is None:
            raise UsageError("edgert's C codec is missing: install a C compiler and reinstall edgert")
        self._native = _native if native is not False else None
        self._twin = None if self._native else _codec_twin.Model(self._sizes)
        self._saved: Any = None
        self._block = np.empty(0, np.uint8)
        self._out = np.empty(1, np.uint8)
        self._out_at = _address(self._out)
        if self._native is not None:
            size: int = self._native.size(*self._sizes)
            block = np.empty(size + _ALIGNED, np.uint8)
            self._block = block[-_address(block) % _ALIGNED :][:size]
            self._where = (_address(self._block), *self._sizes)
            self._native.reset(*self._where)

    def reset(self) -> None:
        """Forget everything: as new.

        Raises:
            Nothing.
        Source:
            ours: a reader who missed something can start here.

        """
        if self._native is not None:
            self._native.reset(*self._where)
        elif self._twin is not None:
            self._twin.reset()

    def save(self) -> None:
        """Remember the state for `undo`.

        Raises:
            Nothing.
        Source:
            ours: a message that proves wrong once it is decoded must leave no trace.

        """
        if self._twin is not None:
            self._saved = self._twin.snapshot()
        elif self._saved is None:
            self._saved = self._block.copy()
        else:
            self._saved[...] = self._block

    def undo(self) -> None:
        """Be as at the last `save`.

        Raises:
            UsageError: nothing was saved.
        Source:
            ours, as `save`.

        """
        if self._saved is None:
            raise UsageError("nothing to go back to: save first")
        if self._twin is not None:
            self._twin.restore(self._saved)
        else:
            self._block[...] = self._saved

    def encode(self, obs: U8 | None, records: U8 | None, check: int, room: int) -> tuple[bytes | None, int]:
        """Code a batch and learn from it.

        Args:
            obs: (n, H, W, C) uint8, or None.
            records: (m, record) uint8, or None; record i is coded after observation i, which sees the one before it.
            check: the checksum to go on from.
            room: bytes that the code may take.

        Returns:
            The code, None where it needs more room or a pixel of a boolean layout is neither 0 nor 1: then the coder
            must be reset or undone. And the checksum over what was coded: CRC-32 of the references, of the changed
            rows with their numbers, and of the records.

        Raises:
            UsageError: wrong dtype, shape or memory layout.

        Source:
            Mahoney 2005, Adaptive weighing of context models (logistic mixing); Martin 1979, Range encoding.

        """
        n_obs = self._length("obs", obs, self._obs_shape)
        n_records = self._length("records", records, self._record_shape)
        if self._twin is not None:
            return self._twin.encode(
                b"" if obs is None else obs.tobytes(),
                n_obs,
                b"" if records is None else records.tobytes(),
                n_records,
                room,
                check,
            )
        if len(self._out) < room:
            self._out = np.empty(room, np.uint8)
            self._out_at = _address(self._out)
        written, check = self._call(False, obs, n_obs, records, n_records, self._out_at, room, check)
        return (self._out[:written].tobytes() if written >= 0 else None), check

    def decode(self, data: bytes, n_obs: int, n_records: int, check: int) -> tuple[U8, U8, int]:
        """Undo `encode`, and learn the same.

        Args:
            data: the code, from anybody.
            n_obs: observations that it is said to hold; the caller has capped their size.
            n_records: records alike.
            check: the checksum to go on from.

        Returns:
            (n_obs, H, W, C) and (n_records, record) uint8, new arrays; and the checksum, which the caller compares:
            until then they are anything.

        Raises:
            MessageError: the code ends before what it is said to hold, or goes on after it. The coder must then be
                reset or undone.

        Source:
            ours, as `encode`. A decoder stops where the code ends, so short data costs little time whatever it claims.

        """
        s = self._sizes
        shape = (n_obs, s.height, s.width, s.channels)
        if self._twin is not None:
            pixels, fields, read, check = self._twin.decode(data, n_obs, n_records, check)
            if read < 0 or read < len(data):
                raise MessageError(f"{len(data)} bytes of code do not hold what was announced: damaged on the way")
            obs = np.frombuffer(bytearray(pixels), np.uint8).reshape(shape)
            return obs, np.frombuffer(bytearray(fields), np.uint8).reshape(n_records, s.record), check
        obs, records = np.empty(shape, np.uint8), np.empty((n_records, s.record), np.uint8)
        read, check = self._call(
            True, obs, n_obs, records, n_records, _address(np.frombuffer(data or b"\0", np.uint8)), len(data), check
        )
        if read < 0 or read < len(data):
            raise MessageError(f"{len(data)} bytes of code do not hold what was announced: damaged on the way")
        return obs, records, check

    def _call(
        self,
        decode: bool,
        obs: U8 | None,
        n_obs: int,
        records: U8 | None,
        n_records: int,
        data: int,
        n: int,
        check: int,
    ) -> tuple[int, int]:
        assert self._native is not None
        done: tuple[int, int] = self._native.code(
            *self._where,
            decode,
            0 if obs is None else _address(obs),
            n_obs,
            0 if records is None else _address(records),
            n_records,
            data,
            n,
            check,
        )
        return done

    def _length(self, name: str, array: U8 | None, shape: tuple[int, ...]) -> int:
        if array is None:
            return 0
        if not isinstance(array, np.ndarray) or array.dtype != _U8 or array.shape[1:] != shape:
            found = (array.dtype, array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            raise UsageError(f"{name} is {found}: give uint8 (n, {', '.join(map(str, shape))})")
        if 0 in shape:
            raise UsageError(f"{name} is given, but the layout has none")
        if not array.flags.c_contiguous:
            raise UsageError(f"{name} is not C-contiguous: give numpy.ascontiguousarray({name})")
        return len(array)


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _whole(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    raise UsageError(f"a layout has {value!r}: give integers and booleans")
