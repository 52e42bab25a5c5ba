"""What must survive a power cut until a collector has it: a first-in first-out file of byte strings with a byte budget.

What gives way first: events that are too old, then minor ones, then the oldest. The place of a minor one stays, empty,
since numbers may have no gap; each that gave way is counted once.

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
_MINOR = "CREATE TABLE IF NOT EXISTS minor (seq INTEGER PRIMARY KEY, gone INTEGER NOT NULL)"
_GONE = "(SELECT seq FROM minor WHERE gone)"
DEFERRED_MAX = 256
KNOWN_S = 1_735_689_600.0
"""2025: a clock that showed less was never set, and says nothing about age."""
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
        self,
        path: Path,
        max_bytes: int,
        policy: Literal["drop_oldest", "reject_newest"] = "drop_oldest",
        max_age_s: float | None = None,
    ) -> None:
        """Open the file, or begin it.

        Args:
            path: the file; SQLite keeps a `-wal` file beside it.
            max_bytes: most bytes to hold, as counted by `bytes`.
            policy: what gives way when it is full.
            max_age_s: older ones give way as soon as another comes.

        Raises:
            StoreError: the folder cannot be written, or another process holds the file.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._policy, self._max_age_s = policy, max_age_s
        self._deferred: list[tuple[bytes, float]] = []
        self._db, broken = open_database(
            path,
            what="the event store",
            pragmas=("synchronous=FULL", "cache_size=-256", "wal_autocheckpoint=64", "journal_size_limit=262144"),
            schema=f"{_SCHEMA} {_MINOR}; INSERT INTO meta VALUES ('{os.urandom(8).hex()}', 0);",
            tables=_TABLES,
            check=self._check,
        )
        self.fault: str | None = broken and f"spool-broken: {broken}"

    def _check(self, db: sqlite3.Connection) -> str:
        rows = db.execute("SELECT count(*) FROM meta").fetchone()[0]
        if rows != 1:
            return f"{rows} rows of meta"
        db.execute(_MINOR)  # files of before do not have it
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

    def append(self, payload: bytes, now_s: float, *, minor: bool = False) -> int:
        """Keep an event; it is on the disk when this returns.

        Args:
            payload: the event, as it will be handed out.
            now_s: seconds since the Unix epoch, kept beside it.
            minor: it gives way to others, and others not to it.

        Returns:
            Its number.

        Raises:
            StoreError: the disk refused, or there is no room, and the policy is `reject_newest` or the event minor.
            UsageError: the event alone is larger than the budget.
        """
        self._must_fit(payload)
        with self._commit("append"):
            self._write_deferred()
            fits = self._insert(payload, now_s, minor)
        self._deferred.clear()
        if not fits:
            raise StoreError(f"the event store {self._path} is full ({self.bytes} of {self._max_bytes} bytes)")
        return self.last_seq

    def defer(self, payload: bytes, now_s: float) -> None:
        """Keep a minor event in memory until others are written, so that it costs the disk next to nothing.

        Args:
            payload: the event, as it will be handed out. Until then it has no number, and a power cut takes it.
            now_s: seconds since the Unix epoch, kept beside it.

        Raises:
            StoreError: so many were deferred that they are written now, and the disk refused.
            UsageError: the event alone is larger than the budget.
        """
        self._must_fit(payload)
        self._deferred.append((payload, now_s))
        if len(self._deferred) >= DEFERRED_MAX:
            try:
                self.settle()
            except StoreError:
                del self._deferred[0]  # memory is bounded, too
                raise

    def settle(self) -> int:
        """Write what was deferred, in one stroke; how many events that is.

        Raises:
            StoreError: the disk refused; they stay deferred.
        """
        count = len(self._deferred)
        if count:
            with self._commit("write what was deferred"):
                self._write_deferred()
            self._deferred.clear()
        return count

    def _must_fit(self, payload: bytes) -> None:
        if len(payload) + ROW_BYTES > self._max_bytes:
            raise UsageError(f"an event of {len(payload)} bytes can never fit in a store of {self._max_bytes} bytes")

    def _write_deferred(self) -> None:
        for payload, at_s in self._deferred:
            self._insert(payload, at_s, minor=True)

    def _insert(self, payload: bytes, now_s: float, minor: bool) -> bool:
        """Within a transaction: write an event, or count that there is no room for it."""
        cost = len(payload) + ROW_BYTES
        over = self.bytes + cost - self._max_bytes
        if over > 0 and (self._policy == "reject_newest" or (minor and over > self._yielding())):
            self._db.execute("UPDATE meta SET dropped = dropped + 1")
            self.dropped += 1
            return False
        gone, freed, dropped = self._make_room(cost, now_s)
        cursor = self._db.execute("INSERT INTO events (at_s, payload) VALUES (?, ?)", (now_s, payload))
        self.last_seq = int(cursor.lastrowid or 0)
        if minor:
            self._db.execute("INSERT INTO minor VALUES (?, 0)", (self.last_seq,))
        self.count += 1 - gone
        self.bytes += cost - freed
        self.dropped += dropped
        if gone or self._first is None:
            self._first = self._lowest()
        return True

    def _yielding(self) -> int:
        """Bytes that minor events would give way."""
        return int(self._sum("length(payload)", "seq IN (SELECT seq FROM minor WHERE NOT gone)"))

    def _sum(self, what: str, where: str) -> int:
        return int(self._db.execute(f"SELECT coalesce(sum({what}), 0) FROM events WHERE {where}").fetchone()[0])

    def _make_room(self, cost: int, now_s: float) -> tuple[int, int, int]:
        """Rows removed, bytes freed, and events that gave way with it."""
        gone = freed = dropped = 0
        if self._max_age_s is not None and self._first is not None:
            old = (KNOWN_S, now_s - self._max_age_s)
            young = self._db.execute("SELECT min(seq) FROM events WHERE at_s < ? OR at_s >= ?", old).fetchone()[0]
            if young != self._first:
                gone, freed, dropped = self._remove(self.last_seq if young is None else young - 1)
        lacking = self.bytes - freed + cost - self._max_bytes
        if lacking > 0:
            emptied, more = self._empty(lacking)
            dropped, freed, lacking = dropped + emptied, freed + more, lacking - more
        if lacking > 0 or dropped:
            up_to, found = self._first_rows(lacking)
            removed, more, fewer = self._remove(up_to) if found else (0, 0, 0)
            gone, freed, dropped = gone + removed, freed + more, dropped + fewer
        if dropped:
            self._db.execute("UPDATE meta SET dropped = dropped + ?", (dropped,))
        return gone, freed, dropped

    def _empty(self, lacking: int) -> tuple[int, int]:
        """Let minor events give way, the oldest first, until there is room; how many, and how many bytes that is."""
        query = "SELECT seq, length(payload) FROM events JOIN minor USING (seq) WHERE NOT gone ORDER BY seq"
        freed, chosen = 0, []
        for seq, size in self._db.execute(query):
            if freed >= lacking:
                break
            freed += size
            chosen.append((seq,))
        self._db.executemany("UPDATE events SET payload = x'' WHERE seq = ?", chosen)
        self._db.executemany("UPDATE minor SET gone = 1 WHERE seq = ?", chosen)
        return len(chosen), freed

    def _first_rows(self, lacking: int) -> tuple[int, bool]:
        """Up to where the oldest must go: until there is room, and all that are empty anyway."""
        up_to, freed = 0, 0
        for seq, size, empty in self._db.execute(
            f"SELECT seq, length(payload), seq IN {_GONE} FROM events ORDER BY seq"
        ):
            if freed >= lacking and not empty:
                break
            up_to, freed = seq, freed + size + ROW_BYTES
        return up_to, up_to > 0

    def _remove(self, up_to: int) -> tuple[int, int, int]:
        """Rows up to a number: how many, their bytes, and how many of them had not given way before."""
        where = f"seq <= {up_to}"
        gone, freed = self._sum("1", where), self._sum(f"length(payload) + {ROW_BYTES}", where)
        before = self._sum("1", f"{where} AND seq IN {_GONE}")
        self._db.execute(f"DELETE FROM events WHERE {where}")
        self._db.execute(f"DELETE FROM minor WHERE {where}")
        return gone, freed, gone - before

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
            self._db.execute("DELETE FROM minor WHERE seq <= ?", (up_to_seq,))
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
