"""Small files of /proc and /sys, read again and again, and programs that are asked where there is no file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import msgspec

_READ_BYTES = 8192
"""More than one page, which is all that sysfs gives; /proc/stat of 60 cores fits."""
_KEEP_MAX = 96
_LIMIT_S = 5.0


class Files:
    """Reads files below a root, and keeps open those that are read often: pread costs a fifth of open, read, close.

    A file that fails is closed and opened anew at the next read: sensors vanish, refuse (EAGAIN, EIO, ENODATA) and
    come back at any time.

    Blocks:
        As long as the driver behind a file does: milliseconds where it talks to its chip over a slow bus.

    Thread:
        One at a time.
    """

    def __init__(self, root: str = "/") -> None:
        """Open nothing yet.

        Args:
            root: directory that holds `proc`, `sys` and the rest; all paths are relative to it.
        """
        # Strings, as joining a Path takes longer than reading a file.
        self._root = root.rstrip("/") + "/"
        self._kept: dict[str, int] = {}

    def __del__(self) -> None:
        self.close()

    @property
    def real(self) -> bool:
        """These are the files of this machine, so that its devices and programs belong to them."""
        return self._root == "/"

    def text(self, path: str) -> str | None:
        """The file's text without white space around it, by a file descriptor that is kept; None when it has none."""
        try:
            kept = self._kept.get(path)
            # A file of a plain file system can be unlinked or replaced, and would go on giving what it held.
            if kept is not None and os.fstat(kept).st_nlink == 0:
                self._drop(path)
                kept = None
            if kept is None:
                kept = self._open(path)
            found = os.pread(kept, _READ_BYTES, 0)
            if path not in self._kept:
                os.close(kept)
            return found.decode().strip()
        except (OSError, ValueError):
            self._drop(path)
            return None

    def once(self, path: str) -> str | None:
        """The same of a file that says what does not change: nothing is kept."""
        try:
            with Path(self._root, path).open("rb") as file:
                return file.read(_READ_BYTES).decode().strip()
        except (OSError, ValueError):
            return None

    def number(self, path: str) -> float | None:
        """The integer that is all the file holds; None when that is anything else."""
        return number(self.text(path))

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Paths of what a folder holds, shorter names first, so that zone10 comes after zone9."""
        try:
            found = [entry.name for entry in Path(self._root, folder).iterdir() if entry.name.startswith(prefix)]
        except (OSError, ValueError):
            return []
        return [f"{folder}/{name}" for name in sorted(found, key=lambda name: (len(name), name))]

    def source(self, path: str) -> str:
        """The path as a person would type it."""
        return self._root + path

    def close(self) -> None:
        """Close what is kept; reading opens it again."""
        for path in list(self._kept):
            self._drop(path)

    def _open(self, path: str) -> int:
        opened = os.open(self._root + path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if len(self._kept) < _KEEP_MAX:
            self._kept[path] = opened
        return opened

    def _drop(self, path: str) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            with contextlib.suppress(OSError):
                os.close(kept)


def number(text: str | None) -> float | None:
    """The integer that a text is; None when it is anything else."""
    try:
        return float(int(text or ""))
    except (ValueError, OverflowError):
        return None


class Told(msgspec.Struct, frozen=True):
    """What a program said last.

    Attributes:
        text: its output, or None before it said anything.
        at_s: monotonic time at which that was collected.
    """

    text: str | None = None
    at_s: float = 0.0


class Program:
    """A program that is asked from time to time. Nobody waits for it: its answer is there at a later look.

    Attributes:
        cpu_s: CPU time that its runs took, all together.

    Blocks:
        For the fork.

    Thread:
        One at a time.
    """

    def __init__(self, command: tuple[str, ...], *, period_s: float) -> None:
        """Start nothing yet.

        Args:
            command: the program and its arguments.
            period_s: from one start to the next.
        """
        self.cpu_s = 0.0
        self._command = command
        self._period_s = period_s
        self._told = Told()
        self._started_s: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, now_s: float) -> Told:
        """Collect an answer that is there, and ask again when it is time."""
        if self._process is not None:
            self._collect(self._process, now_s)
        if self._process is None and (self._started_s is None or now_s - self._started_s >= self._period_s):
            self._started_s = now_s
            with contextlib.suppress(OSError, ValueError):
                quiet = subprocess.DEVNULL
                self._process = subprocess.Popen(self._command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet)
        return self._told

    def _collect(self, process: subprocess.Popen[bytes], now_s: float) -> None:
        try:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        except OSError:
            self._forget(process, -1)
            return
        if pid == 0:
            if self._started_s is not None and now_s - self._started_s > _LIMIT_S:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGKILL)
            return
        self.cpu_s += usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        if code == 0 and process.stdout is not None:
            # It has ended, so that all there is to read is in the pipe, and the end of the file behind it.
            with contextlib.suppress(OSError, ValueError):
                self._told = Told(os.read(process.stdout.fileno(), _READ_BYTES).decode().strip(), now_s)
        self._forget(process, code)

    def _forget(self, process: subprocess.Popen[bytes], code: int) -> None:
        if process.stdout is not None:
            process.stdout.close()
        process.returncode = code
        self._process = None
