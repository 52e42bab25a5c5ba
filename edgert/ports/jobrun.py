"""A command that is carried out once under a job's id, whoever starts it and however often: its lock and its outcome.

The outcome is one file, written all at once when the command has ended. It is the evidence: as long as it is there,
nobody runs the command again. The lock says that somebody is at it, who need not be a child of the one who asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgert.errors import StoreError
from edgert.ports.process import lock_holder
from edgert.ports.store import remove, store_error, write_atomic

OUT_BYTES, ERR_BYTES = 64 << 10, 2 << 10
KILL_S = 5.0
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Ended(msgspec.Struct, frozen=True):
    """What came of a command.

    Attributes:
        code: its exit code, negative for a signal.
        out: the beginning of what it wrote.
        err: the end of what it wrote to standard error.
    """

    code: int
    out: str = ""
    err: str = ""

    @property
    def why(self) -> str:
        """Empty when it succeeded; otherwise its last word."""
        if not self.code:
            return ""
        last = self.err.strip().splitlines()[-1:] or ["it said nothing"]
        return f"ended with {self.code}: {last[0]}"

    @property
    def result(self) -> dict[str, object]:
        """What it wrote: a JSON document as such, anything else as text."""
        try:
            document = json.loads(self.out)
        except ValueError:
            document = None
        return document if isinstance(document, dict) else {"out": self.out[-ERR_BYTES:]} if self.out else {}


class Runs:
    """The folder of outcomes; several processes may look at it at once."""

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Args:
            folder: holds nothing else.

        Raises:
            StoreError: it cannot be made.
        """
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, "make", folder) from error

    def lock(self, id_: str) -> Path:
        """The file whose lock is held while a command runs."""
        return self._folder / f"{id_}.lock"

    def _outcome(self, id_: str) -> Path:
        return self._folder / f"{id_}.json"

    def ids(self) -> set[str]:
        """Of all that left anything here."""
        return {path.name.rpartition(".")[0] for path in self._folder.iterdir()}

    def ended(self, id_: str) -> Ended | None:
        """What came of a command; None where nothing did yet, or the record cannot be read."""
        try:
            return msgspec.json.decode(self._outcome(id_).read_bytes(), type=Ended)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def alive(self, id_: str) -> int | None:
        """The process that is at it, or None."""
        return lock_holder(self.lock(id_))

    def start(self, id_: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Have a command run by a process that outlives this one.

        Args:
            id_: of the job; a file name.
            command: program and arguments.

        Returns:
            The process that runs it, and leaves its outcome here.

        Raises:
            StoreError: it cannot be started.
        """
        run = [sys.executable, "-m", "edgert.programs.job", "--folder", str(self._folder), "--id", id_, "--", *command]
        try:
            return subprocess.Popen(run, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise store_error(error, "start", run[0]) from error

    def stop(self, id_: str) -> None:
        """Ask whoever is at it to end; the command ends with it."""
        pid = self.alive(id_)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def forget(self, id_: str) -> None:
        """Remove what a command left; a job that ended needs no evidence."""
        with contextlib.suppress(StoreError):
            remove(self._outcome(id_))
            remove(self.lock(id_))

    def run(self, id_: str, command: Sequence[str], stopping: Callable[[], bool]) -> int:
        """Run a command, unless it has ended before, and leave its outcome.

        Args:
            id_: of the job.
            command: program and arguments.
            stopping: asked a few times a second; once true, the command is ended and leaves no outcome.

        Returns:
            0 when there is an outcome now, 1 when it was stopped.

        Raises:
            StoreError: the outcome cannot be written, or the command not be started.

        Blocks: until it has ended.
        """
        if self.ended(id_) is not None:
            return 0
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise store_error(error, "start", command[0]) from error
        while True:
            try:
                out, err = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if stopping():
                    _end(process)
                    return 1
        ended = Ended(
            process.returncode, out[:OUT_BYTES].decode(errors="replace"), err[-ERR_BYTES:].decode(errors="replace")
        )
        write_atomic(self._outcome(id_), msgspec.json.encode(ended))
        return 0


def _die_with_parent() -> None:
    """Without whoever would write the outcome down, the command is run again: it must not be running still."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The command and what it started: they are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=KILL_S)
            return
