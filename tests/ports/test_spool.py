from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import StoreError, UsageError
from edgert.ports.spool import DEFERRED_MAX, KNOWN_S, ROW_BYTES, Spool

ROOMY = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "events.db"


def test_first_in_first_out(path):
    with Spool(path, ROOMY) as spool:
        assert (spool.first_seq, spool.last_seq, spool.count, spool.bytes) == (1, 0, 0, 0)
        assert [spool.append(p, 0.0) for p in (b"a", b"", b"c" * 1000)] == [1, 2, 3]
        assert spool.peek(0, 2) == [(1, b"a"), (2, b"")]
        assert spool.peek(2, 9) == [(3, b"c" * 1000)]
        assert spool.acknowledge(2) == 2
        assert (spool.first_seq, spool.count, spool.bytes) == (3, 1, 1000 + ROW_BYTES)
        assert spool.acknowledge(2) == 0


def test_numbers_are_never_used_again(path):
    with Spool(path, ROOMY) as spool:
        for _ in range(5):
            spool.append(b"x", 0.0)
        spool.acknowledge(5)
        stream = spool.stream
    with Spool(path, ROOMY) as spool:
        assert (spool.first_seq, spool.last_seq, spool.count, spool.bytes) == (6, 5, 0, 0)
        assert spool.append(b"y", 0.0) == 6
        assert spool.stream == stream


def test_drop_oldest_counts_durably(path):
    room_for_three = 3 * (100 + ROW_BYTES)
    with Spool(path, room_for_three) as spool:
        for i in range(5):
            spool.append(bytes([i]) * 100, 0.0)
        assert (spool.first_seq, spool.last_seq, spool.dropped) == (3, 5, 2)
        spool.append(b"z" * 230, 0.0)
        assert [seq for seq, _ in spool.peek(0, 9)] == [5, 6]
    with Spool(path, room_for_three) as spool:
        assert (spool.dropped, spool.count, spool.first_seq) == (4, 2, 5)


def test_reject_newest_keeps_the_old_ones(path):
    with Spool(path, 2 * (10 + ROW_BYTES), policy="reject_newest") as spool:
        spool.append(b"a" * 10, 0.0)
        spool.append(b"b" * 10, 0.0)
        with pytest.raises(StoreError, match="full"):
            spool.append(b"c", 0.0)
        assert (spool.count, spool.last_seq, spool.dropped) == (2, 2, 1)
        spool.acknowledge(1)
        assert spool.append(b"c", 0.0) == 3
    with Spool(path, ROOMY) as spool:
        assert spool.dropped == 1


def test_minor_events_give_way_first_and_leave_their_place(path):
    room = 6 * (100 + ROW_BYTES)
    with Spool(path, room) as spool:
        for i in range(6):
            spool.append(bytes([i]) * 100, 0.0, minor=i in (1, 3, 4))
        spool.append(b"x" * 50, 0.0)
        assert [len(payload) for _, payload in spool.peek(0, 9)] == [100, 0, 100, 100, 100, 100, 50]
        assert (spool.first_seq, spool.count, spool.dropped, spool.bytes) == (1, 7, 1, room + ROW_BYTES - 50)
        spool.append(b"y" * 100, 0.0, minor=True)
        assert [seq for seq, payload in spool.peek(0, 9) if not payload] == [2, 4, 5]
        with pytest.raises(StoreError, match="full"):
            spool.append(b"z" * 200, 0.0, minor=True)
        assert (spool.dropped, spool.last_seq) == (4, 8)
        spool.append(b"z" * 400, 0.0)
        assert [(seq, len(payload)) for seq, payload in spool.peek(0, 9)] == [(6, 100), (7, 50), (8, 0), (9, 400)]
        assert spool.dropped == 4 + 1 + 2, "the minor one, and the two oldest; those that were empty counted before"
    with Spool(path, room) as spool:
        assert (spool.count, spool.dropped, spool.bytes) == (4, 7, 550 + 4 * ROW_BYTES)
        spool.append(b"z" * 500, 0.0)
        assert (spool.first_seq, spool.dropped) == (10, 10)


def test_what_is_too_old_gives_way_unless_its_clock_was_never_set(path):
    now_s = KNOWN_S + 1000.0
    with Spool(path, ROOMY, max_age_s=100.0) as spool:
        for at_s in (0.0, now_s, now_s):
            spool.append(b"x", at_s)
        spool.append(b"x", now_s + 200.0)
        assert (spool.first_seq, spool.dropped) == (1, 0), "who knows how old the first one is? numbers have no gap"
        spool.acknowledge(1)
        spool.append(b"x", 5.0)
        assert spool.first_seq == 2, "and nobody knows what time it is"
        spool.append(b"x", now_s + 200.0)
        assert (spool.first_seq, spool.dropped) == (4, 2)
        spool.acknowledge(6)
        assert (spool.append(b"x", now_s + 900.0), spool.first_seq, spool.dropped) == (7, 7, 2)


def test_what_can_wait_is_written_with_the_next_that_cannot(path):
    with Spool(path, ROOMY) as spool:
        spool.defer(b"a", 1.0)
        spool.defer(b"b", 2.0)
        assert (spool.count, spool.last_seq) == (0, 0), "without a number nobody can miss it"
        assert spool.append(b"c", 3.0) == 3
        assert spool.peek(0, 9) == [(1, b"a"), (2, b"b"), (3, b"c")]
        spool.defer(b"d", 4.0)
        assert (spool.settle(), spool.settle()) == (1, 0)
        spool.defer(b"lost", 5.0)
    with Spool(path, ROOMY) as spool:
        assert [payload for _, payload in spool.peek(0, 9)] == [b"a", b"b", b"c", b"d"]
        assert spool.append(b"e", 6.0) == 5
        for _ in range(DEFERRED_MAX):
            spool.defer(b"f", 7.0)
        assert spool.count == 5 + DEFERRED_MAX


def test_what_waited_gives_way_like_any_minor_event(path):
    with Spool(path, 3 * (10 + ROW_BYTES)) as spool:
        for _ in range(3):
            spool.append(b"x" * 10, 0.0)
        spool.defer(b"y" * 10, 0.0)
        assert spool.settle() == 1
        assert (spool.count, spool.dropped, spool.last_seq) == (3, 1, 3)
        with pytest.raises(UsageError):
            spool.defer(b"y" * 1000, 0.0)


def test_a_disk_that_takes_nothing_bounds_what_waits(path, monkeypatch):
    with Spool(path, ROOMY) as spool:
        for _ in range(DEFERRED_MAX - 1):
            spool.defer(b"x", 0.0)
        monkeypatch.setattr(spool, "_insert", lambda *_, **__: spool._db.execute("nonsense"))
        for _ in range(3):
            with pytest.raises(StoreError):
                spool.defer(b"x", 0.0)
        assert len(spool._deferred) == DEFERRED_MAX - 1
        monkeypatch.undo()
        assert spool.settle() == DEFERRED_MAX - 1


def test_a_file_of_before_there_were_minor_events_is_taken_up(path):
    with Spool(path, ROOMY) as spool:
        spool.append(b"old", 0.0)
    db = sqlite3.connect(path)
    db.execute("DROP TABLE minor")
    db.commit()
    db.close()
    with Spool(path, ROOMY) as spool:
        assert (spool.fault, spool.peek(0, 9)) == (None, [(1, b"old")])
        assert spool.append(b"new", 0.0, minor=True) == 2


def test_an_event_larger_than_the_store_is_the_callers_fault(path):
    with Spool(path, 100) as spool, pytest.raises(UsageError):
        spool.append(b"x" * 100, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 40), st.none()), max_size=30))
def test_counters_agree_with_the_file_and_the_budget_holds(acts):
    budget = 700
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.db"
        spool = Spool(path, budget)
        given_out = 0
        for act in acts:
            if isinstance(act, bytes):
                given_out += 1
                assert spool.append(act, 0.0) == given_out
            elif act is None:
                spool.close()
                spool = Spool(path, budget)
            else:
                spool.acknowledge(act)
            held = spool.peek(0, 1000)
            assert spool.count == len(held)
            assert spool.bytes == sum(len(p) + ROW_BYTES for _, p in held) <= budget
            assert spool.last_seq == given_out
            assert spool.first_seq == (held[0][0] if held else given_out + 1)
        spool.close()


CHILD = """
import sys
from pathlib import Path
from edgert.ports.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 20)
while True:
    seq = spool.append(b"event %d" % (spool.last_seq + 1), 0.0)
    print(seq, flush=True)
"""


def test_kill_minus_nine_loses_nothing_that_was_appended(path):
    promised = 0
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
        with Spool(path, ROOMY) as spool:
            assert spool.fault is None
            held = spool.peek(0, 10**6)
            assert [seq for seq, _ in held] == list(range(1, len(held) + 1))
            assert all(payload == b"event %d" % seq for seq, payload in held)
            assert promised <= spool.last_seq <= promised + 1


FULL = """
import os, resource, sys
from pathlib import Path
from edgert.errors import StoreError
from edgert.ports.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30)
spool.append(b"before", 0.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = 1
try:
    for _ in range(1000):
        kept = spool.append(os.urandom(10_000), 0.0)
except StoreError as error:
    print(kept, spool.count, spool.last_seq, flush=True)
    try:
        spool.append(os.urandom(10_000), 0.0)
    except StoreError:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(spool.append(b"after", 0.0), flush=True)
"""


def test_a_full_disk_is_a_store_error_and_passes(path):
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (kept, count, last), (after,) = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    assert 1 < kept < 1000
    assert (count, last, after) == (kept, kept, kept + 1)
    with Spool(path, 1 << 30) as spool:
        assert (spool.fault, spool.count) == (None, kept + 1)
        assert spool.peek(kept, 9) == [(kept + 1, b"after")]


def test_a_full_file_system(tmp_path):
    if os.geteuid() != 0:
        print("SKIPPED: mounting a small tmpfs needs root")
        pytest.skip("mounting a small tmpfs needs root")
    where = tmp_path / "small"
    where.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", where], check=False).returncode:
        print("SKIPPED: this machine does not let us mount a tmpfs")
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        with Spool(where / "s.db", 1 << 30) as spool:
            kept = 0
            with pytest.raises(StoreError):
                while True:
                    kept = spool.append(os.urandom(5_000), 0.0)
            assert spool.count == kept > 3
        with Spool(where / "s.db", 1 << 30) as spool:
            assert (spool.fault, spool.last_seq) == (None, kept)
    finally:
        subprocess.run(["umount", where], check=True)


def fill(path: Path, n: int = 50) -> str:
    with Spool(path, ROOMY) as spool:
        for i in range(n):
            spool.append(b"%03d" % i * 200, 0.0)
        return spool.stream


def tear_header(path):
    path.write_bytes(b"\0" * 512 + path.read_bytes()[512:])


def tear_middle(path):
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(bytes(data))


def cut_half(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 17)


def cut_all(path):
    path.write_bytes(b"")


def other_database(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE events (a, b)")
    db.close()


def two_identities(path):
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO meta VALUES ('x', 1)")
    db.close()


@pytest.mark.parametrize("harm", [tear_header, tear_middle, cut_half, cut_all, other_database, two_identities])
def test_a_torn_file_is_set_aside_and_the_device_starts(path, harm):
    stream = fill(path)
    harm(path)
    with Spool(path, ROOMY) as spool:
        assert spool.fault is not None
        assert spool.fault.startswith("spool-broken")
        assert spool.stream != stream
        assert spool.append(b"x", 0.0) == 1
    assert path.with_name("events.db.broken").exists()
    with Spool(path, ROOMY) as spool:
        assert (spool.fault, spool.count) == (None, 1)


def test_a_second_process_is_refused_and_harms_nothing(path):
    with Spool(path, ROOMY) as spool:
        spool.append(b"x", 0.0)
        with pytest.raises(StoreError, match="locked"):
            Spool(path, ROOMY)
        spool.append(b"y", 0.0)
    assert not path.with_name("events.db.broken").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot open"):
        Spool(tmp_path / "file" / "events.db", ROOMY)


def test_the_files_stay_near_the_budget(path):
    budget = 64 << 10
    with Spool(path, budget) as spool:
        for _ in range(600):
            spool.append(os.urandom(1000), time.time())
        assert spool.dropped > 400
        assert sum(p.stat().st_size for p in path.parent.iterdir()) < 3 * budget + (512 << 10)
