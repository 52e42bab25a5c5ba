"""A disk that loses power: replays what a process wrote, keeps what was synced, and of the rest what chance likes.

What a file system promises is that a file is on the disk once `fsync` of it returned, and a name once `fsync` of its
folder did. Until then writes to a file may be there or not, in any order, the last one torn between two sectors; names
come and go in the order in which they were changed, as with a journal, but independently of what is in the files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 512
CALL = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)")
TRACED = (
    "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,fallocate,close,mkdir,"
    "mkdirat,dup,dup2,dup3,fcntl,writev,pwritev,pwritev2,open,creat,truncate,link,linkat,copy_file_range,sendfile,mmap"
)
UNKNOWN = {"writev", "pwritev", "pwritev2", "creat", "truncate", "link", "linkat", "copy_file_range", "sendfile"}


class Op(NamedTuple):
    """Something done to the disk.

    Attributes:
        what: write, size, sync, create, rename, unlink, or mark (which is said, and not done to it).
        path: of the file, below the folder; for `mark` what was said.
        data: that was written.
        at: offset of a write, or the new size.
        to: new name.
    """

    what: str
    path: str
    data: bytes = b""
    at: int = 0
    to: str = ""


def command(trace: Path, program: list[str]) -> list[str]:
    """How a program is run so that `read` understands what it did."""
    return ["strace", "-f", "-xx", "-s", "4194304", "-e", f"trace={TRACED}", "-o", str(trace), *program]


def _text(word: str) -> bytes:
    return bytes.fromhex(word.strip('"').replace("\\x", ""))


def read(lines: Iterable[str], folder: str, marks: str) -> Iterator[Op]:
    """What a trace of one process without threads says about a folder.

    Args:
        lines: of strace.
        folder: absolute; only what is below it counts.
        marks: absolute path of a file; what is written to it is a mark.

    Raises:
        ValueError: something was done to the folder that is not understood here.
    """
    names: dict[int, str] = {}
    offsets: dict[int, int] = {}

    def resolved(at: str, word: str) -> str:
        path = _text(word).decode()
        return path if path.startswith("/") or at == "AT_FDCWD" else f"{names.get(int(at), '?')}/{path}"

    def inside(path: str) -> str | None:
        return path[len(folder) :].strip("/") if path == folder or path.startswith(f"{folder}/") else None

    for line in lines:
        found = CALL.match(line)
        if found is None or found[3].startswith("-"):
            continue
        call, words, result = found[1], found[2].split(", "), int(found[3])
        match call:
            case "openat":
                path = resolved(words[0], words[1])
                names[result], offsets[result] = path, 0
                where = inside(path)
                if where is not None and "O_CREAT" in words[2]:
                    yield Op("create", where)
                if where is not None and "O_TRUNC" in words[2]:
                    yield Op("size", where, at=0)
            case "close":
                names.pop(int(words[0]), None)
            case "write" | "pwrite64":
                fd = int(words[0])
                path, data = names.get(fd, ""), _text(words[1])[:result]
                if path == marks:
                    yield Op("mark", data.decode())
                    continue
                where = inside(path)
                if where is not None:
                    at = int(words[3]) if call == "pwrite64" else offsets[fd]
                    offsets[fd] = at + result if call == "write" else offsets[fd]
                    yield Op("write", where, data, at)
            case "ftruncate" | "fallocate":
                where = inside(names.get(int(words[0]), ""))
                if where is not None:
                    size = int(words[1]) if call == "ftruncate" else int(words[2]) + int(words[3])
                    yield Op("size" if call == "ftruncate" else "grow", where, at=size)
            case "fsync" | "fdatasync":
                where = inside(names.get(int(words[0]), ""))
                if where is not None:
                    yield Op("sync", where)
            case "rename" | "renameat" | "renameat2":
                old, new = (words[0], words[1]) if call == "rename" else (words[1], words[3])
                one, two = ("AT_FDCWD", "AT_FDCWD") if call == "rename" else (words[0], words[2])
                where, there = inside(resolved(one, old)), inside(resolved(two, new))
                if where is not None and there is not None:
                    yield Op("rename", where, to=there)
            case "unlink" | "unlinkat":
                where = inside(resolved("AT_FDCWD", words[0]) if call == "unlink" else resolved(words[0], words[1]))
                if where is not None:
                    yield Op("unlink", where)
            case "mkdir" | "mkdirat":
                where = inside(resolved("AT_FDCWD", words[0]) if call == "mkdir" else resolved(words[0], words[1]))
                if where is not None:
                    yield Op("mkdir", where)
            case "dup" | "dup2" | "dup3" if inside(names.get(int(words[0]), "")) is not None:
                raise ValueError(f"{call} of a file of ours is not understood")
            case "mmap" if "PROT_WRITE" in line and "MAP_SHARED" in line and words[4].isdigit():
                if inside(names.get(int(words[4]), "")) is not None:
                    raise ValueError("a file of ours is written through memory: a trace cannot show that")
            case _ if call in UNKNOWN and words[0].isdigit() and inside(names.get(int(words[0]), "")) is not None:
                raise ValueError(f"{call} of a file of ours is not understood")


class Inode:
    """What is in a file: for certain, and perhaps."""

    def __init__(self) -> None:
        """Empty."""
        self.stable = b""
        self.pending: list[Op] = []

    def settle(self) -> None:
        """All of it is on the disk."""
        self.stable = bytes(applied(self.stable, self.pending))
        self.pending.clear()


def applied(content: bytes, ops: Iterable[Op]) -> bytearray:
    """A file after some writes; what nobody wrote is zero."""
    found = bytearray(content)
    for op in ops:
        if op.what == "size":
            found = found[: op.at]
        end = op.at if op.what != "write" else op.at + len(op.data)
        found += b"\0" * (end - len(found))
        if op.what == "write":
            found[op.at : end] = op.data
    return found


class Disk:
    """A folder on it; names are relative to the folder, which itself is the empty name."""

    def __init__(self) -> None:
        """Empty."""
        self._now: dict[str, Inode] = {}
        self._stable: dict[str, Inode] = {}
        self._names: list[tuple[Op, Inode | None]] = []
        self.folders: set[str] = {""}

    def do(self, op: Op) -> None:
        """The next thing happens to it."""
        match op.what:
            case "create" if op.path not in self._now:
                self._now[op.path] = Inode()
                self._names.append((op, self._now[op.path]))
            case "write" | "size" | "grow":
                self._now[op.path].pending.append(op)
            case "rename":
                self._now[op.to] = self._now.pop(op.path)
                self._names.append((op, None))
            case "unlink":
                del self._now[op.path]
                self._names.append((op, None))
            case "mkdir":
                self.folders.add(op.path)  # folders are made once, long before anything is promised of them
            case "sync" if op.path in self.folders:
                self._sync_names(op.path)
            case "sync":
                self._now[op.path].settle()
            case _:
                pass

    def _sync_names(self, folder: str) -> None:
        left = []
        for op, inode in self._names:
            if op.path.rpartition("/")[0] == folder:
                _rename(self._stable, op, inode)
            else:
                left.append((op, inode))
        self._names = left

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        """What is found when the power comes back; name -> content."""
        names = dict(self._stable)
        for op, inode in self._names[: rng.randint(0, len(self._names))]:
            _rename(names, op, inode)
        return {name: _survived(inode, rng) for name, inode in names.items()}


def _rename(names: dict[str, Inode], op: Op, inode: Inode | None) -> None:
    if op.what == "create" and inode is not None:
        names[op.path] = inode
    elif op.path in names:
        moved = names.pop(op.path)
        if op.what == "rename":
            names[op.to] = moved


def _survived(inode: Inode, rng: random.Random) -> bytes:
    pending = inode.pending
    if not pending:
        return inode.stable
    match rng.randrange(4):
        case 0:
            kept: list[Op] = []
        case 1:
            kept = pending[: rng.randint(0, len(pending))]
        case 2:
            kept = [op for op in pending if rng.random() < 0.5]
        case _:
            kept = pending[: rng.randint(1, len(pending))]
            last = kept[-1]
            if last.what == "write":
                sectors = rng.randint(0, len(last.data) // SECTOR_BYTES)
                kept = [*kept[:-1], last._replace(data=last.data[: sectors * SECTOR_BYTES])]
    return bytes(applied(inode.stable, kept))
