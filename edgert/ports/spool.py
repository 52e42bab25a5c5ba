"""What must survive a power cut until a collector has it: a first-in first-out file of byte strings with a byte budget.

One SQLite file in WAL mode. `append` returns after the disk has the event; numbers are given once and never again, also
after everything was acknowledged and the file was opened anew. A file that cannot be trusted is set aside as `.broken`
and a new one begins, under a new `stream` identity, so that receivers do not mistake its numbers for the old ones.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from edgert.errors import StoreError, UsageError
from edgert.ports.database import open_database

ROW_BYTES = 32
"""What one event costs beyond its payload, so that a flood of empty ones is bounded too."""

_SCHEMA = """
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, payload BLOB NOT NULL);
CREATE TABLE meta (stream TEXT NOT NULL, dropped INTEGER NOT NULL);
"""
_TABLES = {"events": ["seq", "at_s", "payload"], "meta": ["stream", "dropped"]}


class Spool:
    """A durable queue of events; to be used from the thread that opened it.

    Attributes:
        stream: identity of this file's numbers, 16 hex digits.
        fault: why a former file was set aside at opening, or None.
        bytes: payload bytes held, plus `ROW_BYTES` for each event.
        count: events held.
        dropped: events given up for lack of room, since the file began.
        last_seq: newest number ever given, 0 before the first.

    Blocks:
        `append` and `acknowledge` wait for the disk.
    """

    def __init__(
        self, path: Path, max_bytes: int, policy: Literal["drop_oldest", "reject_newest"] = "drop_oldest"
    ) -> None:
        """Open the file, or begin it.

        Args:
            path: the file; SQLite keeps a `-wal` file beside it.
            max_bytes: most bytes to hold, as counted by `bytes`.
            policy: what gives way when it is full.

        Raises:
            StoreError: the folder cannot be written, or another process holds the file.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._policy = policy
        self._db, broken = open_database(
            path,
            what="the event store",
            pragmas=("synchronous=FULL", "cache_size=-256", "wal_autocheckpoint=64", "journal_size_limit=262144"),
            schema=f"{_SCHEMA} INSERT INTO meta VALUES ('{os.urandom(8).hex()}', 0);",
            tables=_TABLES,
            check=self._check,
        )
        self.fault: str | None = broken and f"spool-broken: {broken}"

    def _check(self, db: sqlite3.Connection) -> str:
        rows = db.execute("SELECT count(*) FROM meta").fetchone()[0]
        if rows != 1:
            return f"{rows} rows of meta"
        self._load(db)
        return ""

    def _load(self, db: sqlite3.Connection) -> None:
        meta: tuple[str, int] = db.execute("SELECT stream, dropped FROM meta").fetchone()
        self.stream, self.dropped = meta
        total = db.execute(f"SELECT count(*), coalesce(sum(length(payload) + {ROW_BYTES}), 0) FROM events").fetchone()
        self.count: int = total[0]
        self.bytes: int = total[1]
        row = db.execute("SELECT seq FROM sqlite_sequence WHERE name='events'").fetchone()
        self.last_seq: int = row[0] if row else 0
        self._first: int | None = db.execute("SELECT min(seq) FROM events").fetchone()[0]

    @property
    def first_seq(self) -> int:
        """Lowest number held; `last_seq + 1` when nothing is."""
        return self.last_seq + 1 if self._first is None else self._first

    @contextmanager
    def _commit(self, what: str) -> Iterator[None]:
        """One transaction; the counters kept here are read again from the file when it fails."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._load(self._db)
            raise StoreError(f"cannot {what} in the event store {self._path}: {error}") from error

    def append(self, payload: bytes, now_s: float) -> int:
        """Keep an event; it is on the disk when this returns.

        Args:
            payload: the event, as it will be handed out.
            now_s: seconds since the Unix epoch, kept beside it.

        Returns:
            Its number.

        Raises:
            StoreError: the disk refused, or the budget is used up and the policy is `reject_newest`.
            UsageError: the event alone is larger than the budget.
        """
        cost = len(payload) + ROW_BYTES
        if cost > self._max_bytes:
            raise UsageError(f"an event of {len(payload)} bytes can never fit in a store of {self._max_bytes} bytes")
        if self._policy == "reject_newest" and self.bytes + cost > self._max_bytes:
            with self._commit("count a refusal"):
                self._db.execute("UPDATE meta SET dropped = dropped + 1")
            self.dropped += 1
            raise StoreError(f"the event store {self._path} is full ({self.bytes} of {self._max_bytes} bytes)")
        with self._commit("append"):
            gone, freed = self._make_room(cost)
            cursor = self._db.execute("INSERT INTO events (at_s, payload) VALUES (?, ?)", (now_s, payload))
            seq = int(cursor.lastrowid or 0)
        self.last_seq = seq
        self.count += 1 - gone
        self.bytes += cost - freed
        self.dropped += gone
        if gone or self._first is None:
            self._first = self._lowest()
        return seq

    def _make_room(self, cost: int) -> tuple[int, int]:
        gone = freed = 0
        up_to = None
        for seq, size in self._db.execute("SELECT seq, length(payload) FROM events ORDER BY seq"):
            if self.bytes - freed + cost <= self._max_bytes:
                break
            gone, freed, up_to = gone + 1, freed + size + ROW_BYTES, seq
        if up_to is not None:
            self._db.execute("DELETE FROM events WHERE seq <= ?", (up_to,))
            self._db.execute("UPDATE meta SET dropped = dropped + ?", (gone,))
        return gone, freed

    def _lowest(self) -> int | None:
        lowest: int | None = self._db.execute("SELECT min(seq) FROM events").fetchone()[0]
        return lowest

    def peek(self, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """Up to `limit` events whose number is above `after_seq`, oldest first.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            return self._db.execute(
                "SELECT seq, payload FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after_seq, limit)
            ).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the event store {self._path}: {error}") from error

    def acknowledge(self, up_to_seq: int) -> int:
        """Forget every event up to and including this number; returns how many those were.

        Raises:
            StoreError: the disk refused.
        """
        if up_to_seq < self.first_seq:
            return 0
        with self._commit("acknowledge"):
            gone, freed = self._db.execute(
                f"SELECT count(*), coalesce(sum(length(payload) + {ROW_BYTES}), 0) FROM events WHERE seq <= ?",
                (up_to_seq,),
            ).fetchone()
            self._db.execute("DELETE FROM events WHERE seq <= ?", (up_to_seq,))
        self.count -= gone
        self.bytes -= freed
        self._first = self._lowest()
        return int(gone)

    def close(self) -> None:
        """Let go of the file; nothing is lost without it."""
        self._db.close()

    def __enter__(self) -> Spool:
        """The spool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
