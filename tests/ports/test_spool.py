from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import StoreError, UsageError
from edgert.ports.spool import DEFERRED_MAX, KNOWN_S, ROW_BYTES, Bounds, Spool

ROOMY = {"events": Bounds(max_bytes=1 << 20)}


def bounded(n_events: int, size: int = 100, **more) -> dict[str, Bounds]:
    return {"events": Bounds(max_bytes=n_events * (size + ROW_BYTES), **more)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "events.db"


def held(spool: Spool, name: str = "events") -> list[tuple[int, bytes]]:
    return spool.peek(name, 0, 10**6)


def test_first_in_first_out(path):
    with Spool(path, ROOMY) as spool:
        stream = spool.streams["events"]
        assert (stream.first_seq, stream.last_seq, stream.count, stream.bytes) == (1, 0, 0, 0)
        assert [spool.append("events", p, 0.0) for p in (b"a", b"", b"c" * 1000)] == [1, 2, 3]
        assert spool.peek("events", 0, 2) == [(1, b"a"), (2, b"")]
        assert spool.peek("events", 2, 9) == [(3, b"c" * 1000)]
        assert spool.acknowledge("events", 2) == 2
        assert (stream.first_seq, stream.count, stream.bytes) == (3, 1, 1000 + ROW_BYTES)
        assert spool.acknowledge("events", 2) == 0


def test_numbers_are_never_used_again(path):
    with Spool(path, ROOMY) as spool:
        for _ in range(5):
            spool.append("events", b"x", 0.0)
        spool.acknowledge("events", 5)
        id_ = spool.streams["events"].id
    with Spool(path, ROOMY) as spool:
        stream = spool.streams["events"]
        assert (stream.first_seq, stream.last_seq, stream.count, stream.bytes) == (6, 5, 0, 0)
        assert spool.append("events", b"y", 0.0) == 6
        assert stream.id == id_


def test_drop_oldest_counts_durably(path):
    with Spool(path, bounded(3)) as spool:
        for i in range(5):
            spool.append("events", bytes([i]) * 100, 0.0)
        stream = spool.streams["events"]
        assert (stream.first_seq, stream.last_seq, stream.dropped) == (3, 5, 2)
        spool.append("events", b"z" * 230, 0.0)
        assert [seq for seq, _ in held(spool)] == [5, 6]
    with Spool(path, bounded(3)) as spool:
        stream = spool.streams["events"]
        assert (stream.dropped, stream.count, stream.first_seq) == (4, 2, 5)


def test_reject_newest_keeps_the_old_ones(path):
    with Spool(path, bounded(2, size=10, when_full="reject-newest")) as spool:
        spool.append("events", b"a" * 10, 0.0)
        spool.append("events", b"b" * 10, 0.0)
        with pytest.raises(StoreError, match="full"):
            spool.append("events", b"c", 0.0)
        stream = spool.streams["events"]
        assert (stream.count, stream.last_seq, stream.dropped) == (2, 2, 1)
        spool.acknowledge("events", 1)
        assert spool.append("events", b"c", 0.0) == 3
    with Spool(path, ROOMY) as spool:
        assert spool.streams["events"].dropped == 1


def test_no_stream_takes_the_place_of_another(path):
    bounds = {
        "events": Bounds(max_bytes=2 * (100 + ROW_BYTES)),
        "uploads": Bounds(max_bytes=1 * (100 + ROW_BYTES), when_full="reject-newest"),
        "notices": Bounds(max_bytes=3 * (100 + ROW_BYTES), max_age_s=50.0),
    }
    with Spool(path, bounds) as spool:
        for _ in range(5):
            for name in ("events", "notices"):
                spool.append(name, name.encode() * 12, KNOWN_S)
            with suppress(StoreError):
                spool.append("uploads", b"u" * 100, KNOWN_S)
        spool.append("notices", b"late", KNOWN_S + 60.0)
    with Spool(path, bounds) as spool:
        stands = {name: (each.first_seq, each.last_seq, each.dropped) for name, each in spool.streams.items()}
        assert stands == {"events": (4, 5, 3), "uploads": (1, 1, 4), "notices": (6, 6, 5)}
        assert len({each.id for each in spool.streams.values()}) == 3
        assert spool.acknowledge("notices", 6) == 1
        assert len(held(spool)) == 2
        assert list(spool.streams) == list(bounds), "in the order in which they are named"


def test_what_is_too_old_gives_way_unless_its_clock_was_never_set(path):
    now_s = KNOWN_S + 1000.0
    with Spool(path, bounded(100, max_age_s=100.0)) as spool:
        stream = spool.streams["events"]
        for at_s in (0.0, now_s, now_s):
            spool.append("events", b"x", at_s)
        spool.append("events", b"x", now_s + 200.0)
        assert (stream.first_seq, stream.dropped) == (1, 0), "who knows how old the first one is? numbers have no gap"
        spool.acknowledge("events", 1)
        spool.append("events", b"x", 5.0)
        assert stream.first_seq == 2, "and nobody knows what time it is"
        spool.append("events", b"x", now_s + 200.0)
        assert (stream.first_seq, stream.dropped) == (4, 2)
        spool.acknowledge("events", 6)
        assert (spool.append("events", b"x", now_s + 900.0), stream.first_seq, stream.dropped) == (7, 7, 2)


def test_where_the_newest_are_rejected_the_outdated_make_room_first(path):
    with Spool(path, bounded(2, max_age_s=100.0, when_full="reject-newest")) as spool:
        for _ in range(2):
            spool.append("events", b"x" * 100, KNOWN_S)
        assert spool.append("events", b"y" * 100, KNOWN_S + 500.0) == 3
        assert (len(held(spool)), spool.streams["events"].dropped) == (1, 2)


def test_what_can_wait_is_written_with_the_next_that_cannot_of_whichever_stream(path):
    bounds = {**ROOMY, "notices": Bounds(max_bytes=1 << 20)}
    with Spool(path, bounds) as spool:
        notices = spool.streams["notices"]
        spool.defer("notices", b"a", 1.0)
        spool.defer("notices", b"b", 2.0)
        assert (notices.count, notices.last_seq) == (0, 0), "without a number nobody can miss it"
        assert spool.append("events", b"c", 3.0) == 1
        assert held(spool, "notices") == [(1, b"a"), (2, b"b")]
        spool.defer("notices", b"d", 4.0)
        assert (spool.settle(), spool.settle()) == (1, 0)
        spool.defer("notices", b"lost", 5.0)
    with Spool(path, bounds) as spool:
        assert [payload for _, payload in held(spool, "notices")] == [b"a", b"b", b"d"]
        for _ in range(DEFERRED_MAX):
            spool.defer("notices", b"f", 7.0)
        assert spool.streams["notices"].count == 3 + DEFERRED_MAX


def test_what_waited_is_bounded_like_the_rest_of_its_stream(path):
    with Spool(path, bounded(3, size=10, when_full="reject-newest")) as spool:
        for _ in range(3):
            spool.append("events", b"x" * 10, 0.0)
        spool.defer("events", b"y" * 10, 0.0)
        assert spool.settle() == 1
        stream = spool.streams["events"]
        assert (stream.count, stream.dropped, stream.last_seq) == (3, 1, 3)
        with pytest.raises(UsageError):
            spool.defer("events", b"y" * 1000, 0.0)


def test_a_disk_that_takes_nothing_bounds_what_waits(path, monkeypatch):
    with Spool(path, ROOMY) as spool:
        for _ in range(DEFERRED_MAX - 1):
            spool.defer("events", b"x", 0.0)
        monkeypatch.setattr(spool, "_insert", lambda *_: spool._db.execute("nonsense"))
        for _ in range(3):
            with pytest.raises(StoreError):
                spool.defer("events", b"x", 0.0)
        assert len(spool._deferred) == DEFERRED_MAX - 1
        monkeypatch.undo()
        assert spool.settle() == DEFERRED_MAX - 1


@pytest.mark.parametrize("minor", [True, False])
def test_a_file_of_before_there_were_streams_goes_on_as_the_stream_of_events(path, minor):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "PRAGMA journal_mode=WAL; CREATE TABLE meta (stream TEXT NOT NULL, dropped INTEGER NOT NULL);"
            "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, payload BLOB NOT NULL);"
            "INSERT INTO meta VALUES ('0123456789abcdef', 7);"
            "INSERT INTO events VALUES (41, 1.0, x'61'), (42, 2.0, x'');"
        )
        if minor:
            db.executescript(
                "CREATE TABLE minor (seq INTEGER PRIMARY KEY, gone INTEGER); INSERT INTO minor VALUES (42, 1)"
            )
    for _ in range(2):
        with Spool(path, {**ROOMY, "notices": Bounds(max_bytes=1000)}) as spool:
            assert spool.fault is None
            stream = spool.streams["events"]
            assert (stream.id, stream.dropped, stream.first_seq) == ("0123456789abcdef", 7, 41)
            assert held(spool)[:2] == [(41, b"a"), (42, b"")]
            assert spool.append("events", b"new", 0.0) == stream.last_seq > 42
            assert spool.streams["notices"].last_seq == 0


def test_a_stream_that_is_wanted_no_more_stays_and_a_new_one_begins(path):
    with Spool(path, ROOMY) as spool:
        spool.append("events", b"x", 0.0)
    with Spool(path, {"others": Bounds(max_bytes=1000)}) as spool:
        assert list(spool.streams) == ["others"]
        assert spool.append("others", b"y", 0.0) == 1
    with Spool(path, ROOMY) as spool:
        assert (spool.fault, held(spool)) == (None, [(1, b"x")])


def test_an_event_larger_than_its_stream_is_the_callers_fault(path):
    with Spool(path, bounded(1, size=50)) as spool, pytest.raises(UsageError):
        spool.append("events", b"x" * 100, 0.0)


ACTS = st.one_of(st.binary(max_size=300), st.integers(0, 40), st.none())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["events", "uploads"]), ACTS), max_size=40))
def test_counters_agree_with_the_file_the_bounds_hold_and_every_event_is_accounted_for(acts):
    bounds = {"events": Bounds(max_bytes=700), "uploads": Bounds(max_bytes=500, when_full="reject-newest")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.db"
        spool = Spool(path, bounds)
        given_out, rejected, forgotten = Counter(), Counter(), Counter()
        for name, act in acts:
            if act is None:
                spool.close()
                spool = Spool(path, bounds)
            elif isinstance(act, int):
                forgotten[name] += spool.acknowledge(name, act)
            else:
                try:
                    given_out[name] += 1
                    assert spool.append(name, act, 0.0) == given_out[name]
                except StoreError:
                    given_out[name] -= 1
                    rejected[name] += 1
            for each, stream in spool.streams.items():
                rows = held(spool, each)
                assert stream.count == len(rows)
                assert stream.bytes == sum(len(p) + ROW_BYTES for _, p in rows) <= bounds[each].max_bytes
                assert stream.last_seq == given_out[each]
                assert stream.first_seq == (rows[0][0] if rows else given_out[each] + 1)
                gone = given_out[each] - forgotten[each] - stream.count
                assert stream.dropped == (rejected[each] if each == "uploads" else gone)
                assert gone == 0 or each == "events"
        spool.close()


CHILD = """
import sys
from pathlib import Path
from edgert.ports.spool import Bounds, Spool
spool = Spool(Path(sys.argv[1]), {"events": Bounds(max_bytes=1 << 20), "notices": Bounds(max_bytes=2000)})
events = spool.streams["events"]
while True:
    spool.defer("notices", b"notice", 0.0)
    print(spool.append("events", b"event %d" % (events.last_seq + 1), 0.0), flush=True)
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
            rows = held(spool)
            assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
            assert all(payload == b"event %d" % seq for seq, payload in rows)
            assert promised <= spool.streams["events"].last_seq <= promised + 1
    with Spool(path, {**ROOMY, "notices": Bounds(max_bytes=2000)}) as spool:
        events, notices = spool.streams["events"], spool.streams["notices"]
        assert notices.last_seq == events.last_seq, "one stroke for both"


FULL = """
import os, resource, sys
from pathlib import Path
from edgert.errors import StoreError
from edgert.ports.spool import Bounds, Spool
spool = Spool(Path(sys.argv[1]), {"events": Bounds(max_bytes=1 << 30), "notices": Bounds(max_bytes=2000)})
spool.append("events", b"before", 0.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = 1
try:
    for _ in range(1000):
        kept = spool.append("events", os.urandom(10_000), 0.0)
except StoreError as error:
    events = spool.streams["events"]
    print(kept, events.count, events.last_seq, flush=True)
    spool.defer("notices", b"waits", 0.0)
    try:
        spool.append("events", os.urandom(10_000), 0.0)
    except StoreError:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(spool.append("events", b"after", 0.0), flush=True)
"""


def test_a_full_disk_is_a_store_error_and_passes(path):
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (kept, count, last), (after,) = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    assert 1 < kept < 1000
    assert (count, last, after) == (kept, kept, kept + 1)
    with Spool(path, {"events": Bounds(max_bytes=1 << 30), "notices": Bounds(max_bytes=2000)}) as spool:
        assert (spool.fault, spool.streams["events"].count) == (None, kept + 1)
        assert spool.peek("events", kept, 9) == [(kept + 1, b"after")]
        assert held(spool, "notices") == [(1, b"waits")]


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
        huge = {"events": Bounds(max_bytes=1 << 30)}
        with Spool(where / "s.db", huge) as spool:
            kept = 0
            with pytest.raises(StoreError):
                while True:
                    kept = spool.append("events", os.urandom(5_000), 0.0)
            assert spool.streams["events"].count == kept > 3
        with Spool(where / "s.db", huge) as spool:
            assert (spool.fault, spool.streams["events"].last_seq) == (None, kept)
    finally:
        subprocess.run(["umount", where], check=True)


def fill(path: Path, n: int = 50) -> str:
    with Spool(path, ROOMY) as spool:
        for i in range(n):
            spool.append("events", b"%03d" % i * 200, 0.0)
        return spool.streams["events"].id


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


def other_meta(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (key, value)")
    db.close()


def lost_identity(path):
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM streams")
    db.close()


def other_columns(path):
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE events RENAME payload TO content")
    db.close()


@pytest.mark.parametrize(
    "harm", [tear_header, tear_middle, cut_half, cut_all, other_database, other_meta, lost_identity, other_columns]
)
def test_a_torn_file_is_set_aside_and_the_device_starts(path, harm):
    stream = fill(path)
    harm(path)
    with Spool(path, ROOMY) as spool:
        assert spool.fault is not None
        assert spool.fault.startswith("spool-broken")
        assert spool.streams["events"].id != stream
        assert spool.append("events", b"x", 0.0) == 1
    assert path.with_name("events.db.broken").exists()
    with Spool(path, ROOMY) as spool:
        assert (spool.fault, spool.streams["events"].count) == (None, 1)


def test_a_second_process_is_refused_and_harms_nothing(path):
    with Spool(path, ROOMY) as spool:
        spool.append("events", b"x", 0.0)
        with pytest.raises(StoreError, match="locked"):
            Spool(path, ROOMY)
        spool.append("events", b"y", 0.0)
    assert not path.with_name("events.db.broken").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot open"):
        Spool(tmp_path / "file" / "events.db", ROOMY)


def test_the_files_stay_near_the_budget(path):
    budget = 64 << 10
    with Spool(path, {"events": Bounds(max_bytes=budget)}) as spool:
        for _ in range(600):
            spool.append("events", os.urandom(1000), time.time())
        assert spool.streams["events"].dropped > 400
        assert sum(p.stat().st_size for p in path.parent.iterdir()) < 3 * budget + (512 << 10)
