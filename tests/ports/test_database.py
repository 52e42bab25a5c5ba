"""A file that is ours is opened, one that is not is set aside, and what the machine does wrong is said as such."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import StoreError
from edgert.ports.database import open_database, transaction


def sound(db: sqlite3.Connection) -> str:
    return ""


def opened(path: Path, check: Callable[[sqlite3.Connection], str] = sound) -> tuple[sqlite3.Connection, str | None]:
    return open_database(
        path,
        what="the things in",
        pragmas=("synchronous=FULL",),
        schema="CREATE TABLE things (name TEXT); INSERT INTO things VALUES ('first');",
        tables={"things": ["name"]},
        check=check,
    )


def names(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM things")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "things.db"


def test_a_new_file_is_begun_and_an_old_one_goes_on(path: Path) -> None:
    db, fault = opened(path)
    assert fault is None and names(db) == ["first"]
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    db.execute("INSERT INTO things VALUES ('second')")
    db.close()
    db, fault = opened(path)
    assert fault is None and names(db) == ["first", "second"]
    db.close()


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"SQLite format 3\0" + bytes(2000)])
def test_what_is_no_database_is_set_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    db, fault = opened(path)
    kept = path.with_name("things.db.broken")
    assert fault is not None and fault.endswith(f"kept as {kept}") and kept.read_bytes() == content
    assert names(db) == ["first"]
    db.close()


def test_another_programs_database_is_set_aside_with_its_log(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE things (name TEXT, more TEXT)")
        log = path.with_name("things.db-wal")
        whole, tail = path.read_bytes(), log.read_bytes()
    db.close()
    path.write_bytes(whole)
    log.write_bytes(tail)
    db, fault = opened(path)
    assert fault is not None and "table things is not ['name']" in fault and names(db) == ["first"]
    db.close()


def test_content_that_its_owner_does_not_believe_is_set_aside_once(path: Path) -> None:
    opened(path)[0].close()
    says = iter(["no thing of mine", ""])
    db, fault = opened(path, lambda _: next(says))
    assert fault is not None and fault.startswith("no thing of mine")
    db.close()
    with pytest.raises(StoreError, match=r"cannot open the things in .*nothing is right"):
        opened(path, lambda _: "nothing is right")


def test_what_the_machine_does_wrong_leaves_the_file_where_it_is(path: Path) -> None:
    db, _ = opened(path)
    with pytest.raises(StoreError, match="locked"):
        opened(path)
    assert names(db) == ["first"]
    db.close()

    def full(_: Any) -> str:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(StoreError, match=r"full.*free space"):
        opened(path, full)
    assert not path.with_name("things.db.broken").exists()
    path.parent.rename(path.parent.with_name("old"))
    path.parent.write_text("a file")
    with pytest.raises(StoreError, match="cannot open"):
        opened(path)


def test_all_of_a_transaction_is_kept_or_nothing(path: Path) -> None:
    db, _ = opened(path)
    with transaction(db, "add"):
        db.execute("INSERT INTO things VALUES ('second')")
    with pytest.raises(StoreError, match="cannot add in it: "), transaction(db, "add in it"):
        db.execute("INSERT INTO things VALUES ('third')")
        db.execute("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(ZeroDivisionError), transaction(db, "add"):  # a fault of ours leaves nothing half done either
        db.execute("INSERT INTO things VALUES ('fourth')")
        1 / 0  # noqa: B018  # what goes wrong
    assert names(db) == ["first", "second"] and not db.in_transaction
    db.close()
