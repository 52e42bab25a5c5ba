"""What a device must know after a power cut about its jobs, its schedules and the fleet's wishes: one SQLite file.

A write that returned is on the disk, whole; a job and the mark of the schedule it comes from are one write. A file that
cannot be trusted is set aside as `.broken` and a new one begins.
"""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path

from edgert.errors import StoreError
from edgert.ports.database import open_database, transaction

_SCHEMA = """
CREATE TABLE jobs (id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE marks (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, body BLOB NOT NULL);
"""
_TABLES = {"jobs": ["id", "body"], "marks": ["name", "body"], "facts": ["name", "body"]}


class JobStore:
    """Records by name, which the ledger, the agenda and the twin can read; to be used from the thread that opened it.

    Attributes:
        fault: why a former file was set aside at opening, or None.

    Blocks:
        everything that writes waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or begin it.

        Args:
            path: the file; SQLite keeps a `-wal` file beside it.

        Raises:
            StoreError: the folder cannot be written, or another process holds the file.
        """
        self._path = path
        self._db, broken = open_database(
            path,
            what="the job store",
            pragmas=("synchronous=FULL", "cache_size=-256", "wal_autocheckpoint=64", "journal_size_limit=262144"),
            schema=_SCHEMA,
            tables=_TABLES,
            check=lambda _: "",
        )
        self.fault: str | None = broken and f"jobs-broken: {broken}"

    def _commit(self, what: str) -> AbstractContextManager[None]:
        return transaction(self._db, f"{what} in {self._path}")

    def write_job(self, id_: str, body: bytes, mark: tuple[str, bytes] | None = None) -> None:
        """Write a job, and a schedule's mark with it.

        Args:
            id_: of the job.
            body: its record.
            mark: name of the schedule, and its mark.

        Raises:
            StoreError: the disk refused; the former records stand.
        """
        with self._commit(f"write job {id_}"):
            self._put("jobs", id_, body)
            if mark is not None:
                self._put("marks", *mark)

    def write_mark(self, name: str, body: bytes) -> None:
        """Write the mark of a schedule by itself.

        Raises:
            StoreError: the disk refused; the former mark stands.
        """
        with self._commit(f"write the mark of {name}"):
            self._put("marks", name, body)

    def write_fact(self, name: str, body: bytes) -> None:
        """Write anything else that has a name.

        Raises:
            StoreError: the disk refused; the former fact stands.
        """
        with self._commit(f"write {name}"):
            self._put("facts", name, body)

    def forget_jobs(self, ids: tuple[str, ...], fact: tuple[str, bytes]) -> None:
        """Forget jobs, and write a fact about it, in one stroke.

        Raises:
            StoreError: the disk refused; nothing is forgotten.
        """
        with self._commit("forget jobs"):
            self._db.executemany("DELETE FROM jobs WHERE id = ?", [(id_,) for id_ in ids])
            self._put("facts", *fact)

    def _put(self, table: str, key: str, body: bytes) -> None:
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, body))

    def jobs(self) -> dict[str, bytes]:
        """Id -> record of every job.

        Raises:
            StoreError: the file cannot be read.
        """
        return self._rows("jobs")

    def marks(self) -> dict[str, bytes]:
        """Name -> mark of every schedule that ever was.

        Raises:
            StoreError: the file cannot be read.
        """
        return self._rows("marks")

    def facts(self) -> dict[str, bytes]:
        """Name -> everything else.

        Raises:
            StoreError: the file cannot be read.
        """
        return self._rows("facts")

    def _rows(self, table: str) -> dict[str, bytes]:
        try:
            return dict(self._db.execute(f"SELECT * FROM {table}").fetchall())
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self._path}: {error}") from error

    def close(self) -> None:
        """Let go of the file; nothing is lost without it."""
        self._db.close()

    def __enter__(self) -> JobStore:
        """The store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
