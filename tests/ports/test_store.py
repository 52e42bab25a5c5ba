from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import StoreError, UsageError
from edgert.ports import store
from edgert.ports.store import Generations, remove, write_atomic

COMMIT_FOR_EVER = """
import sys
from edgert.ports.store import Generations
versions = Generations(sys.argv[1])
found = versions.latest()
number = found[0] if found else 0
while True:
    number += 1
    payload = number.to_bytes(4, "big") * 5000
    assert versions.commit(payload) == number
    print(number, flush=True)
"""


def sound(found: tuple[int, bytes] | None) -> int:
    if found is None:
        return 0
    number, payload = found
    assert payload == number.to_bytes(4, "big") * 5000
    return number


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.endswith(".tmp")]


@given(data=st.binary(max_size=300))
def test_write_atomic_writes_what_it_is_given(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "file"
    write_atomic(path, memoryview(data))
    assert path.read_bytes() == data
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_mode_is_what_was_asked_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "file", b"x", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_symbolic_link_is_replaced_and_its_target_spared(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"target"
    assert not (tmp_path / "link").is_symlink()


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / f".file.{child.pid}-0.tmp").write_bytes(b"dead")
    (tmp_path / f".file.{os.getppid()}-0.tmp").write_bytes(b"alive")
    (tmp_path / f".other.{child.pid}-0.tmp").write_bytes(b"not ours")
    write_atomic(tmp_path / "file", b"x")
    assert sorted(leftovers(tmp_path)) == sorted([f".file.{os.getppid()}-0.tmp", f".other.{child.pid}-0.tmp"])


def test_errors_say_what_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*/nowhere/file: its directory does not exist: create it"):
        write_atomic(tmp_path / "nowhere" / "file", b"x")
    full = store.store_error(OSError(errno.ENOSPC, "x"), "write", "/data/f")
    assert str(full) == "cannot write /data/f: the disk is full: free space or inodes on its filesystem"
    assert "read-only" in str(store.store_error(OSError(errno.EROFS, "x"), "write", "/data/f"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fchmod", "write", "fsync", "rename"])
def test_a_fault_in_any_system_call_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Fails the first, second, third... use of `call` until a commit needs fewer, and looks at the disk each time."""
    monkeypatch.setattr(store, "_CHUNK_BYTES", 6000)
    versions = Generations(tmp_path)
    versions.commit((1).to_bytes(4, "big") * 5000)
    real = getattr(os, call)
    failing_use = 0
    while True:
        failing_use += 1
        uses = 0

        def faulty(*args: object, **kwargs: object) -> object:
            nonlocal uses
            uses += 1
            if uses == failing_use:  # noqa: B023 - called only before failing_use changes
                raise OSError(number, "injected")
            return real(*args, **kwargs)

        before = sound(versions.latest())
        wanted = before + 1
        with monkeypatch.context() as patch:
            patch.setattr(os, call, faulty)
            try:
                wanted = versions.commit(wanted.to_bytes(4, "big") * 5000)
                failed = False
            except StoreError as error:
                assert str(tmp_path) in str(error)
                failed = True
        now = sound(Generations(tmp_path).latest())
        assert now in ((before, before + 1) if failed else (before + 1,))
        assert versions.faults == [] and leftovers(tmp_path) == []
        if not failed:
            break
    least = {"open": 2, "fchmod": 1, "write": 4, "fsync": 2, "rename": 1}[call]
    assert failing_use > least


def test_a_directory_that_cannot_be_synced_for_want_of_support_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def no_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no sync of directories")
        real(fd)

    monkeypatch.setattr(os, "fsync", no_directories)
    write_atomic(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_numbers_only_grow_and_old_versions_go(tmp_path: Path) -> None:
    versions = Generations(tmp_path, keep=2)
    assert versions.latest() is None
    assert [versions.commit(b"%d" % n) for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000004.gen", "0000000005.gen"]
    assert versions.latest() == (5, b"5")
    for path in tmp_path.iterdir():
        path.unlink()
    assert versions.latest() is None
    assert versions.commit(b"again") == 6
    assert Generations(tmp_path).commit(b"reopened") == 7


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "renamed"])
def test_a_broken_newest_gives_way_to_the_former_one(tmp_path: Path, damage: str) -> None:
    versions = Generations(tmp_path)
    versions.commit(b"former" * 100)
    versions.commit(b"newest" * 100)
    path = tmp_path / "0000000002.gen"
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(raw[:-1])
    elif damage == "flipped":
        raw[-3] ^= 1
        path.write_bytes(raw)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes((tmp_path / "0000000001.gen").read_bytes())
    assert versions.latest() == (1, b"former" * 100)
    assert len(versions.faults) == 1 and "0000000002.gen" in versions.faults[0]
    assert (tmp_path / "0000000002.gen.broken").exists() and not path.exists()
    assert versions.latest() == (1, b"former" * 100)
    assert len(versions.faults) == 1
    assert Generations(tmp_path).commit(b"next") == 3  # the broken one's number is not given again


def test_all_broken_is_none_and_keep_must_be_positive(tmp_path: Path) -> None:
    versions = Generations(tmp_path)
    versions.commit(b"x")
    (tmp_path / "0000000001.gen").write_bytes(b"torn")
    assert versions.latest() is None
    with pytest.raises(UsageError):
        Generations(tmp_path, keep=0)


@pytest.mark.system
def test_kill_9_at_any_moment_loses_nothing_committed(tmp_path: Path) -> None:
    rng = random.Random(7)
    committed = 0
    for _ in range(30):
        child = subprocess.Popen([sys.executable, "-c", COMMIT_FOR_EVER, tmp_path], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        committed = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:
            if line.endswith("\n"):
                committed = int(line)
        child.stdout.close()
        child.wait()
        versions = Generations(tmp_path)
        assert sound(versions.latest()) in (committed, committed + 1)
        assert versions.faults == []
    assert committed >= 30
    assert len(leftovers(tmp_path)) <= 1


COMMIT_AND_DIE_BEFORE_CALL = """
import os, signal, sys
from edgert.ports import store
store._CHUNK_BYTES = 6000
versions = store.Generations(sys.argv[1], keep=1)
left = int(sys.argv[2])
def mortal(real):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("open", "fchmod", "write", "fsync", "close", "rename", "unlink"):
    setattr(os, name, mortal(getattr(os, name)))
number = versions.latest()[0] + 1
versions.commit(number.to_bytes(4, "big") * 5000)
"""


@pytest.mark.system
def test_kill_before_each_system_call_of_a_commit(tmp_path: Path) -> None:
    Generations(tmp_path).commit((1).to_bytes(4, "big") * 5000)
    outcomes = []
    while True:
        before = sound(Generations(tmp_path).latest())
        done = subprocess.run([sys.executable, "-c", COMMIT_AND_DIE_BEFORE_CALL, tmp_path, f"{len(outcomes)}"])
        versions = Generations(tmp_path)
        now = sound(versions.latest())
        assert versions.faults == [] and now in (before, before + 1)
        outcomes.append(now - before)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    # Nothing happens up to the rename, and everything has from then on.
    assert outcomes == sorted(outcomes) and outcomes[0] == 0 and outcomes[-1] == 1
    assert len(outcomes) > 10
    assert len(leftovers(tmp_path)) == 0


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_the_former_generation_survives_a_file_size_limit(tmp_path: Path) -> None:
    program = """
import sys
from edgert.errors import StoreError
from edgert.ports.store import Generations
versions = Generations(sys.argv[1])
versions.commit(b"small")
try:
    versions.commit(b"large" * 4000)
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
        check=True,
    )
    assert "file-size limit" in done.stdout
    assert Generations(tmp_path).latest() == (1, b"small")
    assert leftovers(tmp_path) == []


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: a really full disk needs root to mount a tmpfs")
def test_the_former_generation_survives_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("NOT TESTED: a really full disk: tmpfs may not be mounted here")
    try:
        versions = Generations(disk / "versions")
        assert versions.commit(b"a" * 20_000) == 1
        with pytest.raises(StoreError, match="the disk is full: free space"):
            versions.commit(b"b" * 60_000)
        assert versions.latest() == (1, b"a" * 20_000)
        assert leftovers(disk / "versions") == []
        assert versions.commit(b"c") == 2
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreError, match="read-only"):
            versions.commit(b"d")
        assert Generations(disk / "versions").latest() == (2, b"c")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_what_is_removed_is_gone_and_so_is_its_name_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "mark", []
    monkeypatch.setattr(store.os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    path.touch()
    for _ in range(2):
        remove(path)
        assert not path.exists()
    assert synced == [tmp_path] * 2


def test_what_cannot_be_removed_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its directory does not exist"):
        remove(tmp_path / "nowhere" / "mark")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot remove"):
        remove(tmp_path / "folder")
