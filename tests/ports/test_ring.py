from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgert.errors import StoreError, UsageError
from edgert.ports import ring
from edgert.ports.ring import RingReader, RingWriter

SHAPE = (3, 4, 2)

APPEND_FOR_EVER = """
import sys
from edgert.ports.ring import RingWriter
writer = RingWriter(sys.argv[1], (10, 10, 4), 50, "test")
print(writer.newest_seq, flush=True)
for i in range(200_000):
    n = writer.newest_seq + 1
    writer.append(bytes([n % 251]) * 400, episode=n // 9, action=n % 6, reward=n % 7, flags=n % 16, exit=n % 3)
"""


def obs_of(seq: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seq).integers(0, 256, shape, dtype=np.uint8)


def append(writer: RingWriter) -> int:
    n = writer.newest_seq + 1
    place = {"episode": n // 5, "action": n % 6 - 1, "flags": n % 16, "exit": n % 3}
    return writer.append(obs_of(n), reward=n / 2, log_prob=-n / 4, **place)


def assert_as_appended(records: ring.Records) -> None:
    for i, n in enumerate(records.seq.tolist()):
        assert records.episode[i] == n // 5 and records.action[i] == n % 6 - 1 and records.reward[i] == n / 2
        assert records.flags[i] == n % 16 and records.exit[i] == n % 3
        assert records.log_prob[i] == -n / 4
        np.testing.assert_array_equal(records.obs[i], obs_of(n))


@settings(max_examples=40, deadline=None)
@example(capacity=2, steps=[2, -1, 1], first=0, count=2)
@given(
    capacity=st.integers(1, 9),
    steps=st.lists(st.one_of(st.integers(0, 12), st.just(-1)), max_size=8),
    first=st.integers(-2, 60),
    count=st.integers(0, 70),
)
def test_what_is_read_is_what_was_written_last(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, steps: list[int], first: int, count: int
) -> None:
    """Appends in bursts, reopening the writer at -1, and reads any range: the newest `capacity` come back, alone.

    Where the writer was opened again one number is missing.
    """
    path = tmp_path_factory.mktemp("ring") / "r"
    writer = RingWriter(path, SHAPE, capacity, "test")
    reader = RingReader(path)
    written, used, seqs = 0, 0, set[int]()  # the newest record, the newest number given away, all records
    for burst in steps:
        if burst < 0:
            writer.close()
            writer = RingWriter(path, SHAPE, capacity, "test")
            used = written + 1 if written else 0
            assert writer.newest_seq == used and writer.newest_episode == written // 5
        for _ in range(max(0, burst)):
            written = used = used + 1
            seqs.add(written)
            assert append(writer) == written
        assert reader.newest_seq() == written
    records = reader.read(first, first + count - 1)
    asked = range(max(1, first), min(first + count - 1, written) + 1)
    kept = [seq for seq in asked if seq > written - capacity and seq in seqs]
    assert records.seq.tolist() == kept
    assert records.left_out == len(asked) - len(kept)
    assert len(records) == len(kept) and records.obs.shape == (len(kept), *SHAPE)
    assert records.obs.flags.c_contiguous and records.obs.flags.writeable
    assert_as_appended(records)
    writer.close()


@pytest.mark.parametrize("offset", range(0, 52, 3))
def test_a_damaged_record_is_left_out_and_the_others_are_not(tmp_path: Path, offset: int) -> None:
    writer = RingWriter(tmp_path / "r", SHAPE, 8, "test")
    for _ in range(12):
        append(writer)
    slot_bytes = ((tmp_path / "r").stat().st_size - 4096) // 8
    raw = bytearray((tmp_path / "r").read_bytes())
    raw[4096 + (10 - 1) % 8 * slot_bytes + offset] ^= 0x40
    reader = RingReader(tmp_path / "r")
    with (tmp_path / "r").open("r+b") as file:
        file.write(raw)
    records = reader.read(1, 12)
    assert records.seq.tolist() == [5, 6, 7, 8, 9, 11, 12]
    assert records.left_out == 5
    assert_as_appended(records)
    writer.close()


def test_a_torn_newest_record_is_not_the_newest_and_its_number_stays_the_hole(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "r", SHAPE, 8, "test")
    for _ in range(3):
        append(writer)
    writer.close()
    raw = bytearray((tmp_path / "r").read_bytes())
    raw[4096 + 2 * ((len(raw) - 4096) // 8) + 30] ^= 1
    (tmp_path / "r").write_bytes(raw)
    assert RingReader(tmp_path / "r").newest_seq() == 2
    writer = RingWriter(tmp_path / "r", SHAPE, 8, "test")
    assert append(writer) == 4
    records = RingReader(tmp_path / "r").read(1, 9)
    assert records.seq.tolist() == [1, 2, 4] and records.left_out == 1
    writer.close()


def test_two_writers_in_turn_leave_one_number_between_them_however_often_it_is_opened(tmp_path: Path) -> None:
    RingWriter(tmp_path / "r", SHAPE, 8, "test").close()
    for expected in ([1, 2], [4, 5], [7, 8]):
        writer = RingWriter(tmp_path / "r", SHAPE, 8, "test")
        assert [append(writer) for _ in range(2)] == expected
        writer.close()
        RingWriter(tmp_path / "r", SHAPE, 8, "test").close()  # wrote nothing: no further hole
        assert RingReader(tmp_path / "r").newest_seq() == expected[-1]
    records = RingReader(tmp_path / "r").read(1, 99)
    assert records.seq.tolist() == [1, 2, 4, 5, 7, 8] and records.left_out == 2
    assert_as_appended(records)


@pytest.mark.parametrize(
    ("shape", "capacity", "schema"), [((3, 4, 3), 8, "test"), (SHAPE, 9, "test"), (SHAPE, 8, "other")]
)
def test_another_kind_of_ring_replaces_the_file_and_the_reader_follows(
    tmp_path: Path, shape: tuple[int, int, int], capacity: int, schema: str
) -> None:
    path = tmp_path / "r"
    old = RingWriter(path, SHAPE, 8, "test")
    for _ in range(5):
        append(old)
    reader = RingReader(path)
    assert reader.opened == 1 and reader.newest_seq() == 5
    new = RingWriter(path, shape, capacity, schema)
    assert new.newest_seq == 0
    assert reader.newest_seq() == 0 and reader.opened == 2
    assert reader.obs_shape == shape and reader.capacity == capacity
    new.append(obs_of(1, shape), episode=0, action=0, reward=0.0, flags=0, exit=0)
    append(old)  # an actor that was not told goes on unheard
    assert reader.read(1, 99).seq.tolist() == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["r"]
    old.close()
    new.close()


def test_a_reader_may_come_before_the_writer(tmp_path: Path) -> None:
    reader = RingReader(tmp_path / "r")
    assert reader.newest_seq() == 0 and reader.obs_shape is None
    assert reader.problem is not None and "there is no such file" in reader.problem
    with pytest.raises(UsageError, match="no ring to read"):
        reader.read(1, 2)
    writer = RingWriter(tmp_path / "r", SHAPE, 4, "test")
    append(writer)
    assert reader.newest_seq() == 1 and reader.problem is None and reader.obs_shape == SHAPE
    reader.close()
    assert reader.obs_shape is None
    assert reader.read(1, 1).seq.tolist() == [1]
    writer.close()


@pytest.mark.parametrize("damage", ["no ring", "empty", "header", "version", "older version", "short"])
def test_a_file_that_is_no_ring_is_a_problem_and_no_crash_and_the_writer_replaces_it(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "r"
    RingWriter(path, SHAPE, 4, "test").close()
    raw = bytearray(path.read_bytes())
    if damage == "header":
        raw[13] ^= 1
    elif "version" in damage:
        raw[8] = 1 if "older" in damage else 99
    contents = {"no ring": b"x" * 5000, "empty": b"", "short": raw[:-1]}
    path.write_bytes(contents.get(damage, raw))
    reader = RingReader(path)
    assert reader.newest_seq() == 0 and reader.problem is not None and str(path) in reader.problem
    writer = RingWriter(path, SHAPE, 4, "test")
    append(writer)
    assert reader.newest_seq() == 1
    writer.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"episode": -1},
        {"episode": 1 << 32},
        {"action": 1 << 31},
        {"reward": 1e300},
        {"flags": 256},
        {"exit": -1},
        {"obs": b"short"},
        {"obs": np.zeros((3, 4, 4), np.uint8)[:, :, ::2]},
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path, wrong: dict[str, object]) -> None:
    writer = RingWriter(tmp_path / "r", SHAPE, 4, "test")
    fitting = {"obs": bytes(24), "episode": 1, "action": 0, "reward": 0.0, "flags": 0, "exit": 0}
    writer.append(**fitting)  # type: ignore[arg-type]  # a table of arguments
    with pytest.raises(UsageError):
        writer.append(**{**fitting, **wrong})  # type: ignore[arg-type]  # likewise
    assert writer.newest_seq == 1 and RingReader(tmp_path / "r").newest_seq() == 1
    writer.close()


def test_wrong_arguments_and_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        RingWriter(tmp_path / "r", SHAPE, 0, "test")
    with pytest.raises(StoreError, match="create it"):
        RingWriter(tmp_path / "nowhere" / "r", SHAPE, 4, "test")


@pytest.mark.system
def test_kill_9_of_the_writer_never_shows_a_torn_record(tmp_path: Path) -> None:
    path = tmp_path / "r"
    rng = random.Random(3)
    reader = RingReader(path)
    newest, seen = 0, 0
    for restarts in range(12):
        child = subprocess.Popen([sys.executable, "-c", APPEND_FOR_EVER, path], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        try:
            resumed_at = int(child.stdout.readline())
            # One for the hole; and the hint may lag by the record that was whole when the kill came.
            assert newest <= resumed_at <= newest + 2
            until_s = time.monotonic() + rng.uniform(0.0, 0.03)
            while True:
                records = reader.read(reader.newest_seq() - 49, 1 << 60)
                n = records.seq.astype(np.int64)
                seen += len(n)
                assert np.all(np.diff(n) >= 1)
                np.testing.assert_array_equal(records.episode, n // 9)
                np.testing.assert_array_equal(records.action, n % 6)
                np.testing.assert_array_equal(records.reward, n % 7)
                np.testing.assert_array_equal(records.flags, n % 16)
                assert np.all(records.obs.reshape(len(n), 400) == (n % 251)[:, None])
                if time.monotonic() > until_s:
                    break
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        newest = reader.newest_seq()
        assert newest >= resumed_at - 1
        # At most the one record that was being written is lost, and a number at each restart.
        assert len(reader.read(newest - 49, newest)) >= min(newest, 50) - 1 - restarts
    assert reader.opened == 1 and seen > 0 and newest > 50


def test_the_reader_tells_the_writer_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "r"
    reader = RingReader(path)
    reader.done(5)  # there is none to be told yet
    assert reader.problem is not None
    writer = RingWriter(path, (1, 1, 1), 4, "s")
    assert writer.done_seq() == 0
    reader.done(7)
    assert writer.done_seq() == 7
    assert reader.newest_seq() == 0  # it is no record
    writer.close()
    assert RingWriter(path, (1, 1, 1), 4, "s").done_seq() == 7


def test_what_keeps_the_reader_from_telling_is_told_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RingWriter(tmp_path / "r", (1, 1, 1), 4, "s").close()
    reader = RingReader(tmp_path / "r")

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "pwrite", broken)
    reader.done(7)
    assert reader.problem is not None and "I/O error" in reader.problem


def test_where_nobody_says_how_likely_an_action_was_there_is_no_number(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "r", SHAPE, 4, "test")
    writer.append(bytes(24), episode=1, action=0, reward=0.0, flags=0, exit=0)
    assert np.isnan(RingReader(tmp_path / "r").read(1, 1).log_prob).all()
    writer.close()
