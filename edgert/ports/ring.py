"""The way from actor to trainer: a memory-mapped file of fixed-size records that the actor overwrites in turn.

There are no locks and no system calls on the writing side. A record carries its number and a checksum over all of
itself; the reader copies first and believes afterwards, so a record that was torn by a kill, a power cut or by being
overwritten during the copy is left out.

Layout, little-endian: one page of header, then `capacity` slots; record `seq` (from 1) lies in slot
`(seq - 1) % capacity`.

    header  magic 8s, version u32, capacity u32, slot bytes u32, obs shape 3 x u32 (HWC), sha256 of the schema, crc32;
            at byte 128: u64 number of a recent record, a hint; at byte 136: u64 as far as the reader is done
    slot    seq u64, episode u32, action i32, reward f32, flags u8, exit u8, 2 pad, log-probability f32, obs uint8,
            crc32, pad to 8
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgert.errors import StoreError, UsageError
from edgert.ports.store import replace_atomic, store_error

TERMINATED = 1
TRUNCATED = 2
EXPLORED = 4
SAFE = 8

_MAGIC = b"edgering"
_VERSION = 2
_HEADER = struct.Struct("<8sIII3I32s")
_HEADER_BYTES = 4096
_HINT_AT = 128
_DONE_AT = 136
_UNMAP_EVERY = 1024  # records; pages already written stay in the page cache and need not count as this process's
_CRC = struct.Struct("<I")
_SEQ = struct.Struct("<Q")
_RECORD = struct.Struct("<QIifBB2xf")


def _slot_bytes(obs_bytes: int) -> int:
    return -(-(_RECORD.size + obs_bytes + _CRC.size) // 8) * 8


class RingWriter:
    """The actor's end. Goes on after the last sound record of the file it finds, if that file is of the same kind.

    It leaves a hole there, one number that is never given to a record: what the former writer saw last and what this
    one sees first did not follow one another, and must not be taken for a transition. Readers count the hole as one
    record left out.

    Blocks: `append` makes no system call. On a journalling filesystem the kernel may still hold the first write to a
    page that it is just writing back; where that jitter matters, `path` belongs on a tmpfs. Thread: one.

    Attributes:
        newest_seq: the last number used up, by a record or by the hole; 0 before the first.
        newest_episode: its episode, 0 before the first.
    """

    def __init__(
        self, path: str | os.PathLike[str], obs_shape: tuple[int, int, int], capacity: int, schema: str
    ) -> None:
        """Open the file, or replace it when its header does not match.

        Args:
            path: in an existing directory.
            obs_shape: (H, W, C) of the uint8 observations.
            capacity: records kept.
            schema: names what the observations mean, e.g. environment and encoding; another one starts the ring anew.

        Raises:
            UsageError: capacity or a dimension is not positive.
            StoreError: the file cannot be made at its full size, or not be mapped.

        Blocks: until a new file is allocated and synced.
        """
        if capacity < 1 or len(obs_shape) != 3 or min(obs_shape) < 1:
            raise UsageError(f"RingWriter: obs_shape {obs_shape} (H, W, C) and capacity {capacity} must be positive")
        self._obs_bytes = math.prod(obs_shape)
        self._capacity = capacity
        self._slot_bytes = _slot_bytes(self._obs_bytes)
        self._crc_at = _RECORD.size + self._obs_bytes
        size_bytes = _HEADER_BYTES + capacity * self._slot_bytes
        fields = (_MAGIC, _VERSION, capacity, self._slot_bytes, *obs_shape, hashlib.sha256(schema.encode()).digest())
        head = _HEADER.pack(*fields)
        head += _CRC.pack(zlib.crc32(head))
        found = _map(path, size_bytes, head)
        if found is None:

            def fill(fd: int) -> None:
                # Every block now: a hole that the disk has no room for later would kill the actor by SIGBUS.
                os.posix_fallocate(fd, 0, size_bytes)
                os.pwrite(fd, head, 0)

            replace_atomic(path, fill)
            found = _map(path, size_bytes, head)
        if found is None:
            raise StoreError(f"{os.fspath(path)}: another process replaced it while we made it: start only one actor")
        self._map = found
        newest, self.newest_episode = self._find_newest()
        self.newest_seq = newest + 1 if newest else 0
        self._map.madvise(mmap.MADV_DONTNEED)
        _SEQ.pack_into(self._map, _HINT_AT, newest)

    def append(
        self,
        obs: bytes | bytearray | memoryview | npt.NDArray[np.uint8],
        *,
        episode: int,
        action: int,
        reward: float,
        flags: int,
        exit: int,
        log_prob: float = math.nan,
    ) -> int:
        """Write one record over the oldest.

        Args:
            obs: H*W*C bytes in HWC order.
            episode: 0..2^32-1.
            action: -2^31..2^31-1.
            reward: within the range of float32.
            flags: sum of TERMINATED, TRUNCATED, EXPLORED, SAFE.
            exit: 0..255.
            log_prob: logarithm of the probability with which this action was chosen here; not a number where nobody
                can say.

        Returns:
            Its number.

        Raises:
            UsageError: an argument is out of its range; nothing was written.
        """
        seq = self.newest_seq + 1
        view = obs.data if isinstance(obs, np.ndarray) else memoryview(obs)
        if view.nbytes != self._obs_bytes or not view.c_contiguous:
            raise UsageError(f"observation of {view.nbytes} bytes; the ring holds {self._obs_bytes} (C order, uint8)")
        try:
            head = _RECORD.pack(seq, episode, action, reward, flags, exit, log_prob)
        except (struct.error, OverflowError) as error:
            told = f"episode={episode} action={action} reward={reward} flags={flags} exit={exit}"
            raise UsageError(f"ring record out of range: {told}: {error}") from error
        crc = zlib.crc32(view, zlib.crc32(head))
        at = _HEADER_BYTES + (seq - 1) % self._capacity * self._slot_bytes
        self._map[at : at + self._crc_at + _CRC.size] = b"".join((head, view, _CRC.pack(crc)))
        _SEQ.pack_into(self._map, _HINT_AT, seq)
        if seq % _UNMAP_EVERY == 0:
            self._map.madvise(mmap.MADV_DONTNEED)
        self.newest_seq = seq
        self.newest_episode = episode
        return seq

    def done_seq(self) -> int:
        """The number up to which the reader said it is done; 0 when it never did."""
        return int(_SEQ.unpack_from(self._map, _DONE_AT)[0])

    def close(self) -> None:
        """Unmap the file; the kernel writes it back in its own time."""
        self._map.close()

    def _find_newest(self) -> tuple[int, int]:
        slots = np.ndarray(
            (self._capacity,), dtype="<u8", buffer=self._map, offset=_HEADER_BYTES, strides=(self._slot_bytes,)
        )
        numbers = slots.copy()
        del slots  # the map could not be closed under a view of it
        for slot in np.argsort(numbers)[::-1]:
            seq = int(numbers[slot])
            at = _HEADER_BYTES + int(slot) * self._slot_bytes
            if seq == 0:
                break
            if (seq - 1) % self._capacity == slot:
                record = self._map[at : at + self._crc_at + _CRC.size]
                if zlib.crc32(record[: self._crc_at]) == _CRC.unpack_from(record, self._crc_at)[0]:
                    return seq, _RECORD.unpack_from(record)[1]
        return 0, 0


def _map(path: str | os.PathLike[str], size_bytes: int, head: bytes) -> mmap.mmap | None:
    """Map the ring at `path` for writing; None when there is none of this size and header."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, "open", path) from error
    try:
        if os.fstat(fd).st_size != size_bytes or os.pread(fd, len(head), 0) != head:
            return None
        return mmap.mmap(fd, size_bytes)
    except OSError as error:
        raise store_error(error, "map", path) from error
    finally:
        os.close(fd)


@dataclass(frozen=True, eq=False)
class Records:
    """Sound records in the order of their numbers, copied out of the ring; N may be 0.

    Attributes:
        seq: (N,) uint64.
        episode: (N,) uint32.
        action: (N,) int32.
        reward: (N,) float32.
        flags: (N,) uint8, sums of TERMINATED, TRUNCATED, EXPLORED, SAFE.
        exit: (N,) uint8.
        log_prob: (N,) float32, of the action where it was chosen; not a number where nobody can say.
        obs: (N, H, W, C) uint8.
        left_out: numbers asked for and used up, but torn or overwritten by now, or the hole that a writer leaves each
            time it opens the file: one a restart of the actor is no loss.
    """

    seq: npt.NDArray[np.uint64]
    episode: npt.NDArray[np.uint32]
    action: npt.NDArray[np.int32]
    reward: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]
    exit: npt.NDArray[np.uint8]
    log_prob: npt.NDArray[np.float32]
    obs: npt.NDArray[np.uint8]
    left_out: int

    def __len__(self) -> int:
        return len(self.seq)


class RingReader:
    """The trainer's end; follows the writer to a new file by itself.

    Attributes:
        obs_shape: (H, W, C) of the ring that is open, None while there is none.
        schema_sha256: of the writer's schema text, None while there is none.
        capacity: records the ring holds, 0 while there is none.
        opened: how often a ring file was opened. A change says that numbering began anew: forget your place.
        problem: why the file at `path` cannot be read, in words; None when it can.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Watch `path`, whether or not there is a ring yet."""
        self.obs_shape: tuple[int, int, int] | None = None
        self.schema_sha256: bytes | None = None
        self.capacity = 0
        self.opened = 0
        self.problem: str | None = None
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._map: mmap.mmap | None = None
        self._slots: npt.NDArray[np.uint8] | None = None
        self._layout: np.dtype[Any] | None = None
        self._record_bytes = 0
        self._follow()

    def newest_seq(self) -> int:
        """The number of the newest sound record; 0 when there is none."""
        self._follow()
        if self._map is None or self._slots is None:
            return 0
        hinted = int(_SEQ.unpack_from(self._map, _HINT_AT)[0])
        if hinted and self._sound(self._slots[(hinted - 1) % self.capacity], hinted):
            return hinted
        numbers = self._slots[:, : _SEQ.size].copy().view("<u8")[:, 0]
        for slot in np.argsort(numbers)[::-1]:
            seq = int(numbers[slot])
            if seq == 0:
                break
            if (seq - 1) % self.capacity == slot and self._sound(self._slots[slot], seq):
                return seq
        return 0

    def read(self, first_seq: int, last_seq: int) -> Records:
        """The sound ones among records first_seq..last_seq, both included.

        Raises:
            UsageError: there is no ring yet (`obs_shape` is None).
        """
        newest = self.newest_seq()
        if self._slots is None or self._layout is None:
            raise UsageError(f"no ring to read at {os.fspath(self._path)}: {self.problem}")
        first, last = max(1, first_seq), min(last_seq, newest)
        wanted = max(0, last - first + 1)
        first = max(first, newest - self.capacity + 1)  # an older one may have outlived a number that was never used
        count = max(0, last - first + 1)
        # Copied before it is judged: the writer goes on meanwhile.
        start = (first - 1) % self.capacity
        to_end = min(count, self.capacity - start)
        raw = np.concatenate((self._slots[start : start + to_end], self._slots[: count - to_end]))
        sound = [index for index in range(count) if self._sound(raw[index], first + index)]
        rows = raw[sound].view(self._layout)[:, 0]
        columns = {name: np.ascontiguousarray(rows[name]) for name in _COLUMNS}
        return Records(**columns, left_out=wanted - len(sound))

    def done(self, seq: int) -> None:
        """Tell a writer that waits for us how far we are; without a ring, or where none may write, nobody is told.

        Blocks: never; a system call or three.
        """
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, _SEQ.pack(seq), _DONE_AT)
            finally:
                os.close(fd)
        except OSError as error:
            self.problem = str(store_error(error, "write", self._path))

    def close(self) -> None:
        """Let the file go; `newest_seq` and `read` open it again."""
        # The map goes with its last view.
        self._map = self._slots = self._identity = self.obs_shape = self.schema_sha256 = None
        self.capacity = 0

    def _sound(self, slot: npt.NDArray[np.uint8], seq: int) -> bool:
        raw = slot.tobytes()
        (crc,) = _CRC.unpack_from(raw, self._record_bytes)
        return bool(_SEQ.unpack_from(raw)[0] == seq and zlib.crc32(raw[: self._record_bytes]) == crc)

    def _follow(self) -> None:
        """Open the file that is at `path` now, unless it is the one already open."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.problem = str(store_error(error, "read", self._path))
            self.close()
            return
        try:
            status = os.fstat(fd)
            # The number of an open file is not given to another: equal numbers are the same file.
            if self._identity == (status.st_dev, status.st_ino):
                return
            self.close()
            self.problem = self._open(fd, status.st_size)
            if self.problem is None:
                self._identity = (status.st_dev, status.st_ino)
                self.opened += 1
        except OSError as error:
            self.problem = str(store_error(error, "map", self._path))
        finally:
            os.close(fd)

    def _open(self, fd: int, size_bytes: int) -> str | None:
        """Map the open file; returns what is wrong with it, if anything."""
        head = os.pread(fd, _HEADER.size + _CRC.size, 0)
        name = os.fspath(self._path)
        if len(head) < _HEADER.size + _CRC.size or head[:8] != _MAGIC:
            return f"{name} is not a ring file"
        _, version, capacity, slot_bytes, *shape, schema_sha256 = _HEADER.unpack_from(head)
        if version != _VERSION:
            return f"{name} has ring version {version}, this program reads {_VERSION}"
        if zlib.crc32(head[: _HEADER.size]) != _CRC.unpack_from(head, _HEADER.size)[0]:
            return f"{name}: the header's checksum is wrong"
        obs_shape = (shape[0], shape[1], shape[2])
        obs_bytes = math.prod(obs_shape)
        if slot_bytes != _slot_bytes(obs_bytes) or size_bytes != _HEADER_BYTES + capacity * slot_bytes:
            return f"{name}: {size_bytes} bytes do not fit its header"
        names = [*_COLUMNS]
        formats = ["<u8", "<u4", "<i4", "<f4", "u1", "u1", "<f4", ("u1", obs_shape)]
        offsets = [0, 8, 12, 16, 20, 21, 24, _RECORD.size]
        self._layout = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": slot_bytes})
        self._map = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
        flat = np.frombuffer(self._map, np.uint8, count=capacity * slot_bytes, offset=_HEADER_BYTES)
        self._slots = flat.reshape(capacity, slot_bytes)
        self._record_bytes = _RECORD.size + obs_bytes
        self.obs_shape, self.schema_sha256, self.capacity = obs_shape, schema_sha256, capacity
        return None


_COLUMNS = ("seq", "episode", "action", "reward", "flags", "exit", "log_prob", "obs")
