"""Files that a fleet's events and telemetry are collected in: JSON lines or CSV, each row there once.

What was acknowledged to a device is on the disk: rows are synchronised first, then how far they reach is noted, and
only then is anything acknowledged. Rows beyond that note were acknowledged to nobody, come again, and are cut off when
the file is opened again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgert.errors import ConfigError, StoreError
from edgert.fleet.session import Collector
from edgert.ports.ipc import single_instance
from edgert.ports.store import store_error, write_atomic

HEAD_LETTERS = 4096


class Reached(msgspec.Struct, frozen=True):
    """How far a file reaches.

    Attributes:
        bytes: of it that count.
        collectors: device -> what of it is held.
    """

    bytes: int = 0
    collectors: dict[str, Collector] = {}


class Rows:
    """A file of rows; one process writes it at a time.

    Attributes:
        collectors: device -> what of it is held, as far as it was noted.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], *, noted: bool = False) -> None:
        """Open it, or go on where it was left.

        Args:
            path: ends in `.jsonl` or `.csv`; a CSV file that is there has these columns.
            columns: of a row.
            noted: how far it reaches is noted beside it, in `<path>.state`.

        Raises:
            ConfigError: another ending, other columns, or the note cannot be read.
            UsageError: another process writes it.
            StoreError: it cannot be written.
        """
        if path.suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"{path}: the name must end in .jsonl or .csv")
        self._path, self._columns, self._csv = path, columns, path.suffix == ".csv"
        self._state = path.with_name(path.name + ".state") if noted else None
        self._lock = single_instance(path.with_name(path.name + ".lock"))
        self.collectors: dict[str, Collector] = {}
        try:
            self._file = self._opened()
        except BaseException:
            os.close(self._lock)
            raise
        if self._csv and self._file.tell() == 0:
            self._write([dict.fromkeys(columns)], head=True)
            self.append([])

    def _opened(self) -> io.BufferedWriter:
        try:
            self._check_head()
            if self._state is None:
                return self._after_whole_rows()
            reached = Reached()
            if self._state.exists():
                reached = msgspec.json.decode(self._state.read_bytes(), type=Reached)
            size = self._path.stat().st_size if self._path.exists() else 0
            if size and not self._state.exists():
                raise ConfigError(f"{self._path}: no {self._state} says how far it counts: name another file")
            if size < reached.bytes:
                raise StoreError(f"{self._path}: is shorter than {self._state} says: move both away to begin anew")
            self.collectors = dict(reached.collectors)
            file = self._path.open("ab")
            file.truncate(reached.bytes)
            return file
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, "open", self._path) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._state}: cannot be read: {error}; move it and {self._path} away") from error

    def _check_head(self) -> None:
        """Columns of another version would make every row below them say something else."""
        if not self._csv or not self._path.exists() or not self._path.stat().st_size:
            return
        with self._path.open(newline="", encoding="utf-8", errors="replace") as file:
            head = file.readline(HEAD_LETTERS).rstrip("\r\n")
        if head != ",".join(self._columns):
            raise ConfigError(f"{self._path}: has other columns than {', '.join(self._columns)}: name another file")

    def _after_whole_rows(self) -> io.BufferedWriter:
        """A row that a power cut left half written must not swallow the next one."""
        file = self._path.open("ab")
        if file.tell():
            with self._path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                if written.read() != b"\n":
                    file.write(b"\n")
        return file

    def _write(self, rows: Iterable[Mapping[str, Any]], *, head: bool = False) -> None:
        if not self._csv:
            lines = [json.dumps({name: row.get(name) for name in self._columns}, default=_plain) for row in rows]
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            cells = self._columns if head else [_cell(row.get(name)) for name in self._columns]
            writer.writerow(cells)
        self._file.write(text.getvalue().encode())

    def append(self, rows: Iterable[Mapping[str, Any]], collectors: Mapping[str, Collector] | None = None) -> None:
        """Put rows on the disk, and note what of whom is held by now.

        Raises:
            StoreError: the disk took them not; nothing may be acknowledged.

        Blocks: until the disk has them.
        """
        try:
            self._write(rows)
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._state is not None:
                self.collectors |= dict(collectors or {})
                write_atomic(self._state, msgspec.json.encode(Reached(self._file.tell(), self.collectors)), 0o600)
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, "write", self._path) from error

    def close(self) -> None:
        """Let another process write it. Rows that the disk did not take are gone, as nobody was told of them."""
        with contextlib.suppress(OSError):  # closing writes what `append` could not, and its error was told already
            self._file.close()
        os.close(self._lock)


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: object) -> object:
    """What a spreadsheet takes for a formula is text of a stranger's: a quote keeps it text."""
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value, default=_plain)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
