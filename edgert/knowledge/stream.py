"""A stream of knowledge: each message leans on all earlier ones, and is refused where that cannot be proved.

For one writer and one reader (a student and its recorder, a teacher of its own); replicas that share questions use the
codecs of `codec`. A key message starts afresh and needs nothing; every other one needs all since the last key. After a
loss the reader asks the writer for a key, over whatever way they have.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import MessageError, UsageError
from edgert.kernels.codec import Coder
from edgert.knowledge.codec import MAX_DECODED_BYTES
from edgert.knowledge.schema import PACKED_BYTES, TRANSITION, Schema
from edgert.nets import F32, U8

STEPS_MAX: Final = 0xFFFF
_U8: Final = np.dtype(np.uint8)
_REWARD: Final = TRANSITION["reward"]

# byte 0: key?, stored?, how many steps (2 bits), sequence number modulo 16; then CRC-32
_HEADER = struct.Struct("<BI")
_KEY_HEADER = struct.Struct(f"<{PACKED_BYTES}sII")  # schema, stream, sequence number
_STEPS = struct.Struct("<H")
_CHAIN = struct.Struct("<IIIH")  # checksum of the message before, stream, sequence number, steps
_KEY, _STORED = 0x80, 0x40
_ONE, _AS_BEFORE, _TOLD = 0, 1, 2  # steps
_SEQ_MAX: Final = 0xFFFFFFFF


class Transitions(NamedTuple):
    """Steps in the order they were made.

    Attributes:
        obs: (n, H, W, C) uint8, what was seen.
        actions: (n,) uint8, what was done then.
        rewards: (n,) float32, what it gave.
        ended: (n,) uint8, how: 0 it went on; else as the writer defines, such as 1 terminated, 2 cut.
    """

    obs: U8
    actions: U8
    rewards: F32
    ended: U8


class Encoder:
    """The writing end. Not for two threads at once.

    Args:
        schema: what the messages hold.
        stream: names this writer's run, and must grow from one run to the next (a boot count, seconds since 1970), so
            that nobody can pass off an old stream as a new one.

    Raises:
        UsageError: `stream` does not fit 32 bits, or the schema's history would be too large.
    """

    def __init__(self, schema: Schema, stream: int) -> None:
        if not 0 <= stream <= _SEQ_MAX:
            raise UsageError(f"stream {stream} does not fit 32 bits")
        self.schema = schema
        self._stream = stream
        self._coder = Coder(schema.layout)
        self._step_bytes = schema.step_bytes
        self._seq = self._steps = self._check = 0
        self._key = True

    def key(self) -> None:
        """Make the next message one that can be read without the ones before.

        Raises:
            Nothing.
        Source:
            ours: what a reader who lost a message asks for.

        """
        self._key = True

    def transitions(self, steps: Transitions) -> bytes:
        """Code transitions.

        Args:
            steps: 1 to 65535 of them.

        Returns:
            The message: at least 5 bytes, at most 32 more than the raw content.

        Raises:
            UsageError: not as the schema says.
        Source:
            ours, on `kernels.codec`.

        """
        obs, actions, rewards, ended = steps
        n, one = len(obs), (len(obs),)
        if self.schema.content != "transitions" or obs.dtype != _U8:
            raise UsageError(f"a stream of {self.schema.content} cannot hold transitions of {obs.dtype}")
        if obs.shape[1:] != self.schema.obs_shape or not actions.shape == rewards.shape == ended.shape == one:
            raise UsageError(f"{[field.shape for field in steps]} are not transitions of {self.schema.obs_shape}")
        if n and int(actions.max()) >= self.schema.columns:
            raise UsageError(f"action {actions.max()} where there are {self.schema.columns}")
        records = np.empty((n, TRANSITION.itemsize), np.uint8)
        records[:, 0], records[:, 1] = actions, ended
        records[:, 2:] = rewards.astype(_REWARD, copy=False).reshape(n, 1).view(_U8)
        return self._encode(obs if obs.flags.c_contiguous else np.ascontiguousarray(obs), records)

    def values(self, rows: F32) -> bytes:
        """Code rows of float32, exactly.

        Args:
            rows: (n, columns) float32, 1 to 65535 of them; every bit pattern survives.

        Returns:
            The message, as of `transitions`.

        Raises:
            UsageError: not as the schema says.
        Source:
            ours, on `kernels.codec`.

        """
        if self.schema.content != "values" or rows.dtype != np.float32 or rows.shape[1:] != (self.schema.columns,):
            raise UsageError(f"{rows.dtype} {rows.shape} are no {self.schema.content} of {self.schema.columns} columns")
        return self._encode(None, np.ascontiguousarray(rows, ">f4").view(np.uint8).reshape(len(rows), -1))

    def _encode(self, obs: U8 | None, records: U8) -> bytes:
        n = len(records)
        room = n * self._step_bytes
        if not 1 <= n <= STEPS_MAX or room > MAX_DECODED_BYTES:
            raise UsageError(f"{n} steps in a message: give 1 to {STEPS_MAX}, of {MAX_DECODED_BYTES} bytes at most")
        if self._seq == _SEQ_MAX:
            raise UsageError("the stream has used up its numbers: start another")
        self._seq += 1
        code = None
        if not self._key:
            seed = zlib.crc32(_CHAIN.pack(self._check, self._stream, self._seq, n))
            code, check = self._coder.encode(obs, records, seed, room)
        key = code is None
        stored = False
        if key:
            seed = zlib.crc32(self.schema.pack(), zlib.crc32(_CHAIN.pack(0, self._stream, self._seq, n)))
            self._coder.reset()
            code, check = self._coder.encode(obs, records, seed, room)
            stored = code is None
        if code is None:
            self._coder.reset()
            code = (b"" if obs is None else obs.tobytes()) + records.tobytes()
            check = seed
        count = _ONE if n == 1 else _AS_BEFORE if n == self._steps and not key else _TOLD
        first = _KEY * key | _STORED * stored | count << 4 | self._seq & 15
        check = _over(check, first, code)
        head = _HEADER.pack(first, check)
        if key:
            head += _KEY_HEADER.pack(self.schema.pack(), self._stream, self._seq)
        if count == _TOLD:
            head += _STEPS.pack(n)
        self._check, self._steps, self._key = check, n, False
        return head + code


class Decoder:
    """The reading end. A message that it refuses leaves it as it was. Not for two threads at once.

    Args:
        schema: what the messages hold.

    Attributes:
        needs_key: nothing but a key message can be read: ask the writer for one.

    Raises:
        UsageError: the schema's history would be too large.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.needs_key = True
        self._coder = Coder(schema.layout)
        self._step_bytes, self._record = schema.step_bytes, schema.layout.record
        self._stream = self._seq = -1
        self._steps = self._check = 0

    def transitions(self, data: bytes) -> Transitions:
        """Undo `Encoder.transitions`.

        Args:
            data: as received.

        Returns:
            New arrays.

        Raises:
            MessageError: damaged, of another schema, seen before, or one before it is missing.
            UsageError: the schema has no transitions.
        Source:
            ours, as `Encoder.transitions`.

        """
        if self.schema.content != "transitions":
            raise UsageError(f"a stream of {self.schema.content} has no transitions")
        obs, records = self._decode(data)
        fields = records.reshape(-1).view(TRANSITION)
        return Transitions(obs, fields["action"].copy(), fields["reward"].astype(np.float32), fields["ended"].copy())

    def values(self, data: bytes) -> F32:
        """Undo `Encoder.values`.

        Args:
            data: as received.

        Returns:
            (n, columns) float32, a new array; not necessarily finite.

        Raises:
            MessageError: as `transitions`.
            UsageError: the schema has no values.
        Source:
            ours, as `Encoder.values`.

        """
        if self.schema.content != "values":
            raise UsageError(f"a stream of {self.schema.content} has no values")
        _, records = self._decode(data)
        rows: npt.NDArray[np.float32] = records.view(">f4").astype(np.float32)
        return rows

    def _decode(self, data: bytes) -> tuple[U8, U8]:
        if len(data) < _HEADER.size:
            raise MessageError(f"{len(data)} bytes are shorter than a header of {_HEADER.size}")
        first, check = _HEADER.unpack_from(data)
        at, key, count = _HEADER.size, bool(first & _KEY), first >> 4 & 3
        stream, seq = self._stream, self._seq + 1
        if key:
            if len(data) < at + _KEY_HEADER.size:
                raise MessageError(f"{len(data)} bytes are too short for a key message")
            packed, stream, seq = _KEY_HEADER.unpack_from(data, at)
            at += _KEY_HEADER.size
            if packed != self.schema.pack():
                raise MessageError("key message of another schema: both ends need the same bundle")
            if (stream, seq) <= (self._stream, self._seq):
                raise MessageError(f"key message {seq} of stream {stream} is not new: replayed, or late")
        elif self._seq < 0:
            raise MessageError("the first message is missing: ask for a key message")
        if seq & 15 != first & 15:
            self.needs_key = self.needs_key or (first - seq) & 15 < 8
            raise MessageError(f"message {first & 15} (modulo 16) where {seq & 15} is due: lost, late or replayed")
        if count == _TOLD:
            if len(data) < at + _STEPS.size:
                raise MessageError(f"{len(data)} bytes end before the number of steps")
            steps: int = _STEPS.unpack_from(data, at)[0]
            at += _STEPS.size
        elif count == _ONE or (count == _AS_BEFORE and not key):
            steps = 1 if count == _ONE else self._steps
        else:
            raise MessageError("a message of an unknown kind: from a newer version, or damaged on the way")
        if steps == 0 or steps * self._step_bytes > MAX_DECODED_BYTES:
            raise MessageError(f"{steps} steps are none, or over the limit of {MAX_DECODED_BYTES} bytes")
        if first & _STORED and not key:
            raise MessageError("a raw message that is no key: damaged on the way")
        seed = zlib.crc32(_CHAIN.pack(0 if key else self._check, stream, seq, steps))
        seed = zlib.crc32(packed, seed) if key else seed
        obs, records = self._content(data[at:], steps, first, seed, check)
        self._stream, self._seq, self._steps, self._check, self.needs_key = stream, seq, steps, check, False
        return obs, records

    def _content(self, code: bytes, steps: int, first: int, seed: int, check: int) -> tuple[U8, U8]:
        shape, record = self.schema.obs_shape, self._record
        n_obs = steps if shape[0] else 0
        if first & _STORED:
            if len(code) != steps * self._step_bytes or _over(seed, first, code) != check:
                raise MessageError("a raw message does not match its size or checksum: damaged on the way")
            raw = np.frombuffer(bytearray(code), np.uint8)
            pixels = len(raw) - steps * record
            self._coder.reset()
            return raw[:pixels].reshape(n_obs, *shape), raw[pixels:].reshape(steps, record)
        self._coder.save()
        if first & _KEY:
            self._coder.reset()
        try:
            obs, records, found = self._coder.decode(code, n_obs, steps, seed)
            if _over(found, first, code) != check:
                raise MessageError(
                    "a message does not match its checksum: damaged on the way, or another one before it is missing"
                )
        except MessageError:
            self._coder.undo()
            self.needs_key = True
            raise
        return obs, records


def _over(check: int, first: int, code: bytes) -> int:
    """The checksum of the content, extended over what carries it: no bit may change unnoticed, be it of no use."""
    return zlib.crc32(code, zlib.crc32(bytes([first]), check))
