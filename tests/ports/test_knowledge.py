"""Answers on disk: none is lost by a kill, none is invented by a torn file, and the file stays within its bound."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import StoreError
from edgert.ports.knowledge import ROW_BYTES, KnowledgeCache

ONE = ROW_BYTES + 4 * 3


def name(i: int) -> bytes:
    return i.to_bytes(16, "big")


def row(i: int) -> np.ndarray:
    return np.array([i, -i, i / 7], np.float32)


def cache(path: Path, most: int = 1000, meaning: str = "m") -> KnowledgeCache:
    return KnowledgeCache(path / "k" / "knowledge.db", most * ONE, meaning=meaning, columns=3)


def held(kept: KnowledgeCache, teacher: str, numbers: range) -> set[int]:
    found = kept.get(teacher, [name(i) for i in numbers])
    for key, value in found.items():
        assert np.array_equal(value, row(int.from_bytes(key, "big")))
    return {int.from_bytes(key, "big") for key in found}


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("a", [(name(i), row(i)) for i in range(700)])
    kept.put("b", [(name(7), row(8))])
    kept.close()
    kept = cache(tmp_path)
    assert kept.fault is None and kept.count == 701
    assert held(kept, "a", range(800)) == set(range(700))
    assert list(kept.newest("a", 3)) == [name(697), name(698), name(699)]
    assert np.array_equal(kept.get("b", [name(7)])[name(7)], row(8)), "another teacher, another answer"
    assert kept.get("c", [name(7)]) == {} == kept.newest("c", 9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=12), st.integers(1, 20))
def test_it_stays_within_its_bound_and_keeps_the_newest(batches: list[list[int]], most: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kept, last = cache(Path(folder), most), []
        for batch in batches:
            kept.put("a", [(name(i), row(i)) for i in batch])
            last = [i for i in last if i not in batch] + list(dict.fromkeys(reversed(batch)))[::-1]
            assert kept.count <= most
            there = held(kept, "a", range(41))
            assert len(there) == kept.count
            assert there == set(last[len(last) - len(there) :]), "the oldest went first"
            assert len(there) >= min(len(set(last)), most * 7 // 8 - 1)
            last = last[len(last) - len(there) :]
        kept.close()


def test_a_smaller_bound_is_kept_at_once(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("a", [(name(i), row(i)) for i in range(100)])
    kept.close()
    assert cache(tmp_path, 10).count <= 10


def test_a_teacher_found_out_is_forgotten_alone(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    for teacher in "ab":
        kept.put(teacher, [(name(1), row(1))])
    kept.forget("a")
    assert held(kept, "a", range(9)) == set() and held(kept, "b", range(9)) == {1} and kept.count == 1


def test_answers_that_mean_something_else_are_dropped(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("a", [(name(1), row(1))])
    kept.close()
    other = cache(tmp_path, meaning="another game")
    assert other.count == 0 and other.newest("a", 9) == {}
    other.put("a", [(name(1), np.zeros(5, np.float32))])
    assert other.get("a", [name(1)]) == {}, "of another width"


KILLED = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    from edgert.ports.knowledge import KnowledgeCache
    kept = KnowledgeCache(Path(sys.argv[1]) / "k" / "knowledge.db", 10**7, meaning="m", columns=3)
    i = kept.count
    while True:
        kept.put("a", [(k.to_bytes(16, "big"), np.array([k, -k, k / 7], np.float32)) for k in range(i, i + 20)])
        i += 20
        print(i, flush=True)
""")


def test_a_kill_loses_nothing_that_was_put(tmp_path: Path) -> None:
    for turn in range(3):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(5 + turn):
                acknowledged = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
        kept = cache(tmp_path, 10**5)
        assert kept.fault is None
        assert held(kept, "a", range(acknowledged)) == set(range(acknowledged))
        kept.close()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 30_000), junk=st.binary(max_size=200), wal=st.booleans())
def test_a_torn_file_costs_answers_and_nothing_else(cut: int, junk: bytes, wal: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kept = cache(Path(folder))
        kept.put("a", [(name(i), row(i)) for i in range(100)])
        file = Path(folder) / "k" / "knowledge.db"
        log = file.with_name("knowledge.db-wal")
        whole, tail = file.read_bytes(), log.read_bytes()  # as a power cut finds them: never closed
        kept.close()
        file.write_bytes(whole if wal else whole[: cut % (len(whole) + 1)] + junk)
        log.write_bytes(tail[: cut % (len(tail) + 1)] + junk if wal else tail)
        again = cache(Path(folder))
        assert held(again, "a", range(100)) <= set(range(100))
        again.put("a", [(name(5), row(5))])
        assert held(again, "a", range(5, 6)) == {5}
        again.close()


def test_a_second_process_is_an_error_that_says_so(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("a", [(name(1), row(1))])
    with pytest.raises(StoreError, match="locked"):
        cache(tmp_path)


def test_a_full_disk_keeps_all_of_a_batch_or_none(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("a", [(name(1), row(1))])
    kept._db.execute(f"PRAGMA max_page_count={kept._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StoreError, match="free space"):
        kept.put("a", [(name(i), row(i)) for i in range(500)])
    assert kept.count == 1 and held(kept, "a", range(500)) == {1}


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("a file")
    with pytest.raises(StoreError, match="cannot open"):
        cache(tmp_path)


def test_a_foreign_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    with sqlite3.connect(tmp_path / "k" / "knowledge.db") as db:
        db.execute("CREATE TABLE answers (x)")
    db.close()
    kept = cache(tmp_path)
    assert kept.fault is not None and "knowledge-broken" in kept.fault
    assert (tmp_path / "k" / "knowledge.db.broken").exists()
