"""Files that are either the old or the new one, never half: the one atomic-write primitive, and numbered generations.

A write goes to a temporary file in the same directory, is synced, renamed over the target, and the directory is synced.
Whoever is killed or loses power between any two of these steps leaves the former file in place. One process writes a
given path; readers need no lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

from edgert.errors import StoreError, UsageError

_MAGIC = b"edgertg1"
_HEAD = struct.Struct("<8sQQ32s")  # magic, generation, payload bytes, sha256 of the payload
_NAME = re.compile(r"^(\d{10,})\.gen(\.broken)?$")
_CHUNK_BYTES = 1 << 20
_serial = itertools.count()

_ADVICE = {
    errno.ENOSPC: "the disk is full: free space or inodes on its filesystem",
    errno.EDQUOT: "the disk quota is used up: free space or raise the quota",
    errno.EFBIG: "the file-size limit is reached: raise it (ulimit -f, LimitFSIZE=)",
    errno.EROFS: "the filesystem is read-only: remount it writable, and check the card for errors",
    errno.EACCES: "permission denied: make it accessible to the user this process runs as",
    errno.EPERM: "not permitted: make it accessible to the user this process runs as",
    errno.ENOENT: "its directory does not exist: create it",
    errno.EIO: "the storage device reported an I/O error: check or replace it",
}


def store_error(error: OSError, doing: str, path: str | os.PathLike[str]) -> StoreError:
    """Put what the kernel said into words: what failed, where, and what to do.

    Args:
        error: as it came from the system call.
        doing: the attempt, e.g. "write".
        path: the file or directory concerned.

    Returns:
        The error to raise; nothing is raised here.
    """
    advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
    if error.errno == errno.ENOENT and doing == "read":
        advice = "there is no such file"
    return StoreError(f"cannot {doing} {os.fspath(path)}: {advice}")


def write_atomic(path: str | os.PathLike[str], data: bytes | bytearray | memoryview, mode: int = 0o600) -> None:
    """Replace the file at `path` by `data`, durably and all at once.

    Args:
        path: in an existing directory; a symbolic link is replaced, not followed.
        data: the whole new content.
        mode: permission bits of the new file, whatever the umask.

    Raises:
        StoreError: disk full, read-only, no permission, I/O error; the former file stays. Only if the very last step
            (syncing the directory) fails is the new file already in place, and then it may not survive a power cut.

    Blocks: until the device has the data; never call it from the act loop.
    """
    replace_atomic(path, lambda fd: _write_all(fd, data), mode)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove the file at `path` durably; one that is not there is fine.

    Raises:
        StoreError: read-only, no permission, I/O error.

    Blocks: until the device knows.
    """
    target = Path(path)
    try:
        target.unlink(missing_ok=True)
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise store_error(error, "remove", target) from error


def replace_atomic(path: str | os.PathLike[str], fill: Callable[[int], None], mode: int = 0o600) -> None:
    """`write_atomic` for content that is not one byte string: `fill` writes it into the open temporary file.

    Args:
        path: as in `write_atomic`.
        fill: is given the descriptor of an empty file, open for reading and writing; may raise OSError.
        mode: permission bits of the new file.

    Raises:
        StoreError: as in `write_atomic`.

    Blocks: until the device has the data.
    """
    target = Path(path)
    try:
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise store_error(error, "write", target) from error
    try:
        _sweep(target.name, directory)
        temporary = f".{target.name}.{os.getpid()}-{next(_serial)}.tmp"
        try:
            _fill_and_rename(directory, temporary, target.name, fill, mode)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise store_error(error, "write", target) from error
    finally:
        os.close(directory)


def _fill_and_rename(directory: int, temporary: str, name: str, fill: Callable[[int], None], mode: int) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(temporary, flags, mode, dir_fd=directory)
    try:
        os.fchmod(fd, mode)
        fill(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    _sync(directory)


def _sync(directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        # Some filesystems (FUSE among them) have no sync of directories; they are as durable as they will ever be.
        if error.errno != errno.EINVAL:
            raise


def _write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest[:_CHUNK_BYTES]) :]


def _sweep(name: str, directory: int) -> None:
    """Remove temporary files that killed writers of `name` left: on a full disk they would be what fills it."""
    pattern = re.compile(rf"^\.{re.escape(name)}\.(\d+)-\d+\.tmp$")
    try:
        entries = os.listdir(directory)
    except OSError:
        return  # a directory that may be entered but not listed: the write itself can still work
    for entry in entries:
        found = pattern.match(entry)
        if found and not _alive(int(found[1])):
            with contextlib.suppress(OSError):
                os.unlink(entry, dir_fd=directory)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        # Writes of one process to one path do not overlap, so what bears our pid is from a dead namesake.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Generations:
    """Numbered, hashed versions of one payload in one directory, e.g. checkpoints.

    Numbers start at 1 and only grow, also past versions that were deleted or found broken. One process commits.

    Attributes:
        faults: what was found broken and left aside, in words, oldest first.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2) -> None:
        """Open or create the directory.

        Args:
            directory: holds nothing else.
            keep: versions kept after a commit; with at least 2 a torn newest one still leaves a former one.

        Raises:
            StoreError: the directory cannot be made or listed.
            UsageError: keep < 1.
        """
        if keep < 1:
            raise UsageError(f"Generations(keep={keep}): keep at least 1")
        self.faults: list[str] = []
        self._directory = Path(directory)
        self._keep = keep
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, "create", self._directory) from error
        self._highest = max([0, *self._numbers(), *self._numbers(broken=True)])

    def commit(self, payload: bytes) -> int:
        """Make `payload` the newest version, durably; older ones beyond `keep` are then deleted.

        Returns:
            Its number.

        Raises:
            StoreError: it could not be written; the former version stays the newest.

        Blocks: until the device has the data.
        """
        # Listing anew, because a version restored by hand beside a running process must not be overwritten.
        number = max([self._highest, *self._numbers()]) + 1
        head = _HEAD.pack(_MAGIC, number, len(payload), hashlib.sha256(payload).digest())

        def fill(fd: int) -> None:
            _write_all(fd, head)
            _write_all(fd, payload)

        replace_atomic(self._path(number), fill)
        self._highest = number
        for broken, keep in ((False, self._keep), (True, 1)):
            for old in sorted(self._numbers(broken=broken), reverse=True)[keep:]:
                # One file too many is no reason to call a commit that is on the disk failed.
                with contextlib.suppress(OSError):
                    self._path(old, broken=broken).unlink()
        return number

    def latest(self) -> tuple[int, bytes] | None:
        """The newest version whose hash is right; a broken one is renamed to `.broken` and told in `faults`.

        Returns:
            (number, payload), or None when there is no sound version.

        Raises:
            StoreError: the directory or a file in it may not be read.
        """
        for number in sorted(self._numbers(), reverse=True):
            path = self._path(number)
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                continue  # pruned by the committing process since we listed
            except OSError as error:
                if error.errno != errno.EIO:
                    raise store_error(error, "read", path) from error
                self._set_aside(number, "the storage device reported an I/O error")
                continue
            wrong = _what_is_wrong(raw, number)
            if wrong is None:
                return number, raw[_HEAD.size :]
            self._set_aside(number, wrong)
        return None

    def _set_aside(self, number: int, wrong: str) -> None:
        path = self._path(number)
        self.faults.append(f"{path}: {wrong}; the former generation is used")
        # On a read-only disk it keeps its name, and is simply judged again next time.
        with contextlib.suppress(OSError):
            path.rename(self._path(number, broken=True))

    def _numbers(self, *, broken: bool = False) -> list[int]:
        try:
            found = [_NAME.match(entry.name) for entry in self._directory.iterdir()]
        except OSError as error:
            raise store_error(error, "list", self._directory) from error
        return [int(name[1]) for name in found if name and bool(name[2]) is broken]

    def _path(self, number: int, *, broken: bool = False) -> Path:
        return self._directory / f"{number:010d}.gen{'.broken' if broken else ''}"


def _what_is_wrong(raw: bytes, number: int) -> str | None:
    if len(raw) < _HEAD.size:
        return f"torn: {len(raw)} bytes, shorter than a header"
    magic, told_number, length_bytes, digest = _HEAD.unpack_from(raw)
    if magic != _MAGIC:
        return "not a generation file"
    if told_number != number:
        return f"is generation {told_number} under another name"
    payload = memoryview(raw)[_HEAD.size :]
    if len(payload) != length_bytes:
        return f"torn: {len(payload)} of {length_bytes} payload bytes"
    if hashlib.sha256(payload).digest() != digest:
        return "its sha256 does not match"
    return None
