"""What must survive a power cut until a collector has it: first-in first-out streams of byte strings, in one file.

Each stream has bounds of its own, in bytes and in age, and says what gives way when it is full: its oldest, or what
would be the newest. Nothing of one stream ever gives way to another's, and what gave way is counted, exactly.

One SQLite file in WAL mode. `append` returns after the disk has the event; numbers are given once and never again, also
after everything was acknowledged and the file was opened anew. A file that cannot be trusted is set aside as `.broken`
and a new one begins, with new identities of its streams, so that receivers do not mistake its numbers for the old ones.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from edgert.errors import StoreError, UsageError
from edgert.ports.database import open_database

ROW_BYTES = 32
"""What one event costs beyond its payload, so that a flood of empty ones is bounded too."""
DEFERRED_MAX = 256
KNOWN_S = 1_735_689_600.0
"""2025: a clock that showed less was never set, and says nothing about age."""
_STREAMS = "CREATE TABLE streams (name TEXT PRIMARY KEY, id TEXT NOT NULL, dropped INTEGER NOT NULL);"
_EVENTS = "(seq INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, payload BLOB NOT NULL)"


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a stream is kept.

    Attributes:
        max_bytes: most bytes, as `Stream.bytes` counts them.
        max_age_s: older events give way as soon as another comes; None: none is ever too old.
        when_full: what gives way.
    """

    max_bytes: int
    max_age_s: float | None = None
    when_full: Literal["drop-oldest", "reject-newest"] = "drop-oldest"


class Stream(msgspec.Struct, kw_only=True):
    """How one stream stands.

    Attributes:
        id: identity of its numbers, 16 hex digits.
        first_seq: lowest number held; `last_seq + 1` when nothing is.
        last_seq: newest number ever given, 0 before the first.
        count: events held.
        bytes: payload bytes held, plus `ROW_BYTES` for each event.
        dropped: events given up for age or lack of room, since the stream began.
    """

    id: str
    first_seq: int
    last_seq: int
    count: int
    bytes: int
    dropped: int


class Spool:
    """A file of streams; to be used from the thread that opened it.

    Attributes:
        streams: name -> how it stands, in the order in which they were named.
        fault: why a former file was set aside at opening, or None.

    Blocks:
        everything that writes waits for the disk.
    """

    def __init__(self, path: Path, bounds: Mapping[str, Bounds]) -> None:
        """Open the file, or begin it.

        Args:
            path: the file; SQLite keeps a `-wal` file beside it.
            bounds: name -> bounds, of each stream that is wanted. One that the file does not have begins; one that is
                not named stays in it as it is.

        Raises:
            StoreError: the folder cannot be written, or another process holds the file.
        """
        self._path, self._bounds = path, dict(bounds)
        self._deferred: list[tuple[str, bytes, float]] = []
        self.streams: dict[str, Stream] = {}
        self._db, broken = open_database(
            path,
            what="the event store",
            pragmas=("synchronous=FULL", "cache_size=-256", "wal_autocheckpoint=64", "journal_size_limit=262144"),
            schema=_STREAMS,
            tables={"streams": ["name", "id", "dropped"]},
            check=self._check,
            upgrade=_divide,
        )
        self.fault: str | None = broken and f"spool-broken: {broken}"

    def _check(self, db: sqlite3.Connection) -> str:
        known = {name for (name,) in db.execute("SELECT name FROM streams")}
        db.execute("BEGIN IMMEDIATE")
        for name in self._bounds:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
            if name not in known and not columns:
                db.execute(f"CREATE TABLE {name} {_EVENTS}")
                db.execute("INSERT INTO streams VALUES (?, ?, 0)", (name, os.urandom(8).hex()))
            elif name not in known or columns != ["seq", "at_s", "payload"]:
                return f"table {name} is no stream"
        db.execute("COMMIT")
        self._load(db)
        return ""

    def _load(self, db: sqlite3.Connection) -> None:
        """Count what the file holds."""
        for name in self._bounds:
            id_, dropped = db.execute("SELECT id, dropped FROM streams WHERE name = ?", (name,)).fetchone()
            last = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (name,)).fetchone()[0] or 0
            count, size = _total(db, name)
            first = _first(db, name, last)
            self.streams[name] = Stream(
                id=id_, first_seq=first, last_seq=last, count=count, bytes=size, dropped=dropped
            )

    @contextmanager
    def _commit(self, what: str) -> Iterator[None]:
        """One transaction; what is counted here is read again from the file when it fails."""
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

    def append(self, name: str, payload: bytes, now_s: float) -> int:
        """Keep an event, and with it those that were deferred; it is on the disk when this returns.

        Args:
            name: of the stream.
            payload: the event, as it will be handed out.
            now_s: seconds since the Unix epoch, kept beside it.

        Returns:
            Its number.

        Raises:
            StoreError: the disk refused, or the stream is full and keeps what it has.
            UsageError: the event alone is larger than the stream may be.
        """
        self._must_fit(name, payload)
        with self._commit("append"):
            self._write_deferred()
            fits = self._insert(name, payload, now_s)
        self._deferred.clear()
        if not fits:
            raise StoreError(
                f"the event store {self._path} is full: {name} may have {self._bounds[name].max_bytes} bytes"
            )
        return self.streams[name].last_seq

    def defer(self, name: str, payload: bytes, now_s: float) -> None:
        """Keep an event in memory until another is written, so that it costs the disk next to nothing.

        Args:
            name: of the stream.
            payload: the event, as it will be handed out. Until then it has no number, and a power cut takes it.
            now_s: seconds since the Unix epoch, kept beside it.

        Raises:
            StoreError: so many were deferred that they are written now, and the disk refused.
            UsageError: the event alone is larger than the stream may be.
        """
        self._must_fit(name, payload)
        self._deferred.append((name, payload, now_s))
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

    def _must_fit(self, name: str, payload: bytes) -> None:
        most = self._bounds[name].max_bytes
        if len(payload) + ROW_BYTES > most:
            raise UsageError(f"an event of {len(payload)} bytes can never fit in {most} bytes, the stream {name}")

    def _write_deferred(self) -> None:
        for name, payload, at_s in self._deferred:
            self._insert(name, payload, at_s)

    def _insert(self, name: str, payload: bytes, now_s: float) -> bool:
        """Within a transaction: write an event, or count that there is no room for it."""
        stream, bounds = self.streams[name], self._bounds[name]
        self._drop(name, self._outdated(name, now_s))
        cost = len(payload) + ROW_BYTES
        lacking = stream.bytes + cost - bounds.max_bytes
        if lacking > 0 and bounds.when_full == "reject-newest":
            self._count_dropped(name, 1)
            return False
        if lacking > 0:
            self._drop(name, self._oldest(name, lacking))
        cursor = self._db.execute(f"INSERT INTO {name} (at_s, payload) VALUES (?, ?)", (now_s, payload))
        stream.last_seq = int(cursor.lastrowid or 0)
        stream.count += 1
        stream.bytes += cost
        return True

    def _outdated(self, name: str, now_s: float) -> int:
        """Up to which number everything is too old."""
        stream, max_age_s = self.streams[name], self._bounds[name].max_age_s
        if max_age_s is None or not stream.count:
            return 0
        young = f"SELECT min(seq) FROM {name} WHERE at_s < ? OR at_s >= ?"
        (seq,) = self._db.execute(young, (KNOWN_S, now_s - max_age_s)).fetchone()
        return stream.last_seq if seq is None else int(seq) - 1

    def _oldest(self, name: str, lacking: int) -> int:
        """Up to which number the oldest must go for so many bytes."""
        up_to_seq = 0
        for seq, size in self._db.execute(f"SELECT seq, length(payload) FROM {name} ORDER BY seq"):
            if lacking <= 0:
                break
            up_to_seq, lacking = seq, lacking - size - ROW_BYTES
        return up_to_seq

    def _drop(self, name: str, up_to_seq: int) -> None:
        """Within a transaction: events up to this number give way."""
        if up_to_seq >= self.streams[name].first_seq:
            self._count_dropped(name, self._remove(name, up_to_seq))

    def _count_dropped(self, name: str, count: int) -> None:
        self.streams[name].dropped += count
        self._db.execute("UPDATE streams SET dropped = dropped + ? WHERE name = ?", (count, name))

    def _remove(self, name: str, up_to_seq: int) -> int:
        """Within a transaction: events up to this number are there no more; how many those were."""
        stream = self.streams[name]
        gone, freed = _total(self._db, f"{name} WHERE seq <= {up_to_seq}")
        self._db.execute(f"DELETE FROM {name} WHERE seq <= {up_to_seq}")
        stream.count -= gone
        stream.bytes -= freed
        stream.first_seq = _first(self._db, name, stream.last_seq)
        return gone

    def peek(self, name: str, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """Up to `limit` events of a stream whose number is above `after_seq`, oldest first.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            return self._db.execute(
                f"SELECT seq, payload FROM {name} WHERE seq > ? ORDER BY seq LIMIT ?", (after_seq, limit)
            ).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the event store {self._path}: {error}") from error

    def acknowledge(self, name: str, up_to_seq: int) -> int:
        """Forget every event of a stream up to and including this number; returns how many those were.

        Raises:
            StoreError: the disk refused.
        """
        if up_to_seq < self.streams[name].first_seq:
            return 0
        with self._commit("acknowledge"):
            return self._remove(name, up_to_seq)

    def close(self) -> None:
        """Let go of the file; nothing is lost without it, but for what was deferred."""
        self._db.close()

    def __enter__(self) -> Spool:
        """The spool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def _total(db: sqlite3.Connection, of: str) -> tuple[int, int]:
    """How many events there are, and their bytes."""
    query = f"SELECT count(*), coalesce(sum(length(payload) + {ROW_BYTES}), 0) FROM {of}"
    found: tuple[int, int] = db.execute(query).fetchone()
    return found


def _first(db: sqlite3.Connection, name: str, last_seq: int) -> int:
    """Lowest number of a stream whose newest is `last_seq`."""
    (seq,) = db.execute(f"SELECT min(seq) FROM {name}").fetchone()
    return last_seq + 1 if seq is None else int(seq)


def _divide(db: sqlite3.Connection) -> None:
    """A file of before there were several streams: what it holds is the stream `events`, under its former identity."""
    if [row[1] for row in db.execute("PRAGMA table_info(meta)")] == ["stream", "dropped"]:
        db.executescript(
            f"BEGIN IMMEDIATE; {_STREAMS} INSERT INTO streams SELECT 'events', stream, dropped FROM meta; "
            "DROP TABLE meta; DROP TABLE IF EXISTS minor; COMMIT;"
        )
