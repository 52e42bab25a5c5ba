"""The ledger's file: what was written is there after a kill, a full disk keeps the former state, damage is no crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgert.errors import StoreError
from edgert.ports.jobs import JobStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.db"


def test_what_is_written_is_found_again(path):
    with JobStore(path) as store:
        assert (store.jobs(), store.marks(), store.facts()) == ({}, {}, {})
        store.write_job("j", b"1")
        store.write_job("j", b"2", ("night", b"mark"))
        store.write_job("k", b"3")
        store.write_mark("day", b"other")
        store.write_fact("seen", b"9")
    with JobStore(path) as store:
        assert store.fault is None
        assert store.jobs() == {"j": b"2", "k": b"3"}
        assert store.marks() == {"night": b"mark", "day": b"other"}
        store.forget_jobs(("j", "unknown"), ("horizon", b"7"))
    with JobStore(path) as store:
        assert store.jobs() == {"k": b"3"}
        assert store.facts() == {"seen": b"9", "horizon": b"7"}


CHILD = """
import sys
from pathlib import Path
from edgert.ports.jobs import JobStore
store = JobStore(Path(sys.argv[1]))
number = len(store.jobs())
while True:
    number += 1
    store.write_job("j%d" % number, b"x" * number, ("s", b"%d" % number))
    print(number, flush=True)
"""


def test_kill_minus_nine_loses_nothing_that_was_written_and_tears_nothing_apart(path):
    for round_ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(5 + 7 * round_):
            promised = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.stdout.close()
        child.wait()
        promised = int(rest[-1]) if rest else promised
        with JobStore(path) as store:
            assert store.fault is None
            newest = len(store.jobs())
            assert store.jobs() == {f"j{n}": b"x" * n for n in range(1, newest + 1)}
            assert promised <= newest <= promised + 1
            assert store.marks() == {"s": b"%d" % newest}, "the mark and its job are one write"


FULL = """
import resource, sys
from pathlib import Path
from edgert.errors import StoreError
from edgert.ports.jobs import JobStore
store = JobStore(Path(sys.argv[1]))
store.write_job("j", b"received")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = 0
try:
    for number in range(1, 1000):
        store.write_job("j%d" % number, b"x" * 10_000, ("s", b"%d" % number))
        kept = number
except StoreError:
    try:
        store.write_job("j", b"running" + b"x" * 10_000, ("s", b"other"))
    except StoreError:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(kept, len(store.jobs()), store.jobs()["j"].decode(), store.marks()["s"].decode(), flush=True)
    store.write_job("after", b"")
"""


def test_a_full_disk_keeps_the_former_state_and_passes(path):
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept, count, state, mark = done.stdout.split()
    assert 1 < int(kept) < 1000
    assert (int(count), state, mark) == (int(kept) + 1, "received", kept)
    with JobStore(path) as store:
        assert store.fault is None
        assert len(store.jobs()) == int(kept) + 2


def test_a_really_full_file_system(tmp_path):
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", where]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        print("SKIPPED: mounting a small tmpfs needs root, and a machine that lets it")
        pytest.skip("mounting a small tmpfs needs root, and a machine that lets it")
    try:
        kept = 0
        with JobStore(where / "jobs.db") as store, pytest.raises(StoreError, match=r"write job j\d+"):
            for number in range(1000):
                store.write_job(f"j{number}", b"x" * 5000)
                kept += 1
        with JobStore(where / "jobs.db") as store:
            assert store.fault is None
            assert store.jobs().keys() == {f"j{number}" for number in range(kept)}
    finally:
        subprocess.run(["umount", where], check=True)


def test_a_file_that_is_none_of_ours_is_set_aside(path):
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 1000)
    with JobStore(path) as store:
        assert "kept as" in store.fault
        assert store.jobs() == {}
        store.write_job("j", b"")
    assert path.with_name("jobs.db.broken").exists()


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="job store"):
        JobStore(tmp_path / "file" / "jobs.db")
