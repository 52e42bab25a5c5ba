"""One SQLite file in WAL mode that is ours: opened and checked, or set aside as `.broken` and begun anew."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgert.errors import StoreError


class _BrokenError(Exception):
    """The file is not one of ours any more."""


def open_database(
    path: Path,
    *,
    what: str,
    pragmas: Sequence[str],
    schema: str,
    tables: Mapping[str, Sequence[str]],
    check: Callable[[sqlite3.Connection], str],
    upgrade: Callable[[sqlite3.Connection], None] = lambda _: None,
) -> tuple[sqlite3.Connection, str | None]:
    """Open the file, or begin it.

    Args:
        path: the file; SQLite keeps a `-wal` file beside it.
        what: names it in errors.
        pragmas: of this use, such as `synchronous=FULL`.
        schema: statements that make an empty file one of ours, all or none.
        tables: name -> columns that it must have.
        check: looks at the content and says what is wrong with it, or "". It may raise what sqlite3 raises.
        upgrade: makes a file of a former version one of this; it may raise what sqlite3 raises.

    Returns:
        The connection, in autocommit mode; and why a former file was set aside, or None.

    Raises:
        StoreError: the folder cannot be written, or another process holds the file.

    Blocks: for the disk.
    """

    def begun() -> sqlite3.Connection:
        if path.exists() and path.stat().st_size == 0:
            raise _BrokenError("the file is empty")
        db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        try:
            # Exclusive locking keeps the WAL index in memory: no mapped -shm file that a full disk turns into SIGBUS.
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise sqlite3.OperationalError(f"this file system gives journal mode {mode}, not wal")
            for pragma in pragmas:
                db.execute(f"PRAGMA {pragma}")
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.executescript(f"BEGIN; {schema} COMMIT;")
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise _BrokenError(verdict)
            upgrade(db)
            for table, columns in tables.items():
                if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != list(columns):
                    raise _BrokenError(f"table {table} is not {list(columns)}")
            if fault := check(db):
                raise _BrokenError(fault)
        except sqlite3.OperationalError:
            db.close()
            raise
        except (sqlite3.DatabaseError, _BrokenError) as error:
            db.close()
            raise _BrokenError(str(error)) from error
        return db

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return begun(), None
        except _BrokenError as error:
            kept = path.with_name(path.name + ".broken")
            for end in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    path.with_name(path.name + end).replace(kept.with_name(kept.name + end))
            return begun(), f"{error}; kept as {kept}"
    except (OSError, sqlite3.Error, _BrokenError) as error:
        raise StoreError(f"cannot open {what} {path}: {error}; check its owner and free space") from error


@contextmanager
def transaction(db: sqlite3.Connection, what: str) -> Iterator[None]:
    """All that is written inside is kept, or, whatever goes wrong, none of it.

    Args:
        db: of `open_database`.
        what: is done, for errors: "write job 7 in /var/...".

    Raises:
        StoreError: the disk refused.

    Blocks: until the disk has it.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException as error:
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot {what}: {error}") from error
        raise
