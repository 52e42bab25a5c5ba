"""What teachers said, on disk, so that nothing is asked twice: a bounded file of answers by digest and teacher.

One SQLite file in WAL mode. Answers are written many at a time, because each commit wears the flash, and the oldest
give way. A file that cannot be trusted is set aside as `.broken` and a new one begins: what is lost is asked again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgert.errors import StoreError
from edgert.ports.database import open_database

F32 = npt.NDArray[np.float32]

ROW_BYTES = 120
"""What an answer takes beyond its values: digest, teacher, and their index."""
_AT_ONCE = 500

_SCHEMA = """
CREATE TABLE about (meaning TEXT NOT NULL);
CREATE TABLE answers (id INTEGER PRIMARY KEY, teacher TEXT NOT NULL, digest BLOB NOT NULL, row BLOB NOT NULL,
                      UNIQUE (teacher, digest));
"""
_TABLES = {"about": ["meaning"], "answers": ["id", "teacher", "digest", "row"]}


class KnowledgeCache:
    """Answers that survive; to be used from the thread that opened it, and by one process.

    Attributes:
        fault: why a former file was set aside at opening, or None.
        count: answers held.

    Blocks:
        everything waits for the disk; never to be called from the act loop.
    """

    def __init__(self, path: Path, max_bytes: int, *, meaning: str, columns: int) -> None:
        """Open the file, or begin it.

        Args:
            path: the file; SQLite keeps a `-wal` file beside it.
            max_bytes: most bytes of answers, counted with `ROW_BYTES` each.
            meaning: what observations, actions and values mean; answers kept under another are dropped.
            columns: values in an answer.

        Raises:
            StoreError: the folder cannot be written, or another process holds the file.
        """
        self._path, self._columns = path, columns
        self._most = max(1, max_bytes // (ROW_BYTES + 4 * columns))

        def check(db: sqlite3.Connection) -> str:
            if db.execute("SELECT meaning FROM about").fetchall() != [(meaning,)]:
                db.execute("BEGIN")
                db.execute("DELETE FROM about")
                db.execute("DELETE FROM answers")
                db.execute("INSERT INTO about VALUES (?)", (meaning,))
                db.execute("COMMIT")
            self.count = int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
            return ""

        self._db, broken = open_database(
            path,
            what="the answers in",
            # A power cut may cost the last commits, never the file: what is lost is asked again.
            pragmas=("synchronous=NORMAL", "cache_size=-512", "journal_size_limit=262144"),
            schema=_SCHEMA,
            tables=_TABLES,
            check=check,
        )
        self.fault = broken and f"knowledge-broken: {broken}"
        with self._changing():
            self._make_room()

    def put(self, teacher: str, answers: Iterable[tuple[bytes, F32]]) -> None:
        """Keep answers, all of them or none; one about the same observation takes the place of the former.

        Args:
            teacher: who gave them.
            answers: (digest, (columns,) float32).

        Raises:
            StoreError: disk full, read-only or broken; nothing was kept.
        """
        rows = [(teacher, digest, np.asarray(row, "<f4").tobytes()) for digest, row in answers]
        with self._changing():
            self._db.executemany("INSERT OR REPLACE INTO answers (teacher, digest, row) VALUES (?, ?, ?)", rows)
            self.count = int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])
            self._make_room()

    def get(self, teacher: str, digests: Sequence[bytes]) -> dict[bytes, F32]:
        """Look answers up.

        Args:
            teacher: whose.
            digests: of observations.

        Returns:
            digest -> (columns,) float32, for those that are known.

        Raises:
            StoreError: the file cannot be read.
        """
        found: dict[bytes, F32] = {}
        with self._reading():
            for start in range(0, len(digests), _AT_ONCE):
                some = digests[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT digest, row FROM answers WHERE teacher = ? AND digest IN ({marks})"
                found |= self._rows(self._db.execute(query, (teacher, *some)))
        return found

    def newest(self, teacher: str, n: int) -> dict[bytes, F32]:
        """The last answers.

        Args:
            teacher: whose.
            n: at most this many.

        Returns:
            digest -> (columns,) float32, oldest first.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._reading():
            query = "SELECT digest, row FROM answers WHERE teacher = ? ORDER BY id DESC LIMIT ?"
            found = self._rows(self._db.execute(query, (teacher, n)))
        return dict(reversed(found.items()))

    def forget(self, teacher: str) -> None:
        """Drop everything a teacher said.

        Args:
            teacher: who was found out.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._changing():
            self._db.execute("DELETE FROM answers WHERE teacher = ?", (teacher,))
            self.count = int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Let the file go; what was put is kept."""
        self._db.close()

    def _rows(self, found: Iterable[tuple[bytes, bytes]]) -> dict[bytes, F32]:
        size = 4 * self._columns
        return {digest: np.frombuffer(row, "<f4").astype(np.float32) for digest, row in found if len(row) == size}

    def _make_room(self) -> None:
        if self.count > self._most:
            # More than must be, so that not every batch has to: an eighth.
            gone = self.count - self._most * 7 // 8
            self._db.execute("DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY id LIMIT ?)", (gone,))
            self.count -= gone

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the answers in {self._path}: {error}; check the disk") from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        count = self.count
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self.count = count
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise StoreError(f"cannot keep answers in {self._path}: {error}; check free space") from error
