from __future__ import annotations

import random

import pytest

from tools.bench.fleet.disk import Disk, Op, applied, read

TRACE = r"""
12 openat(AT_FDCWD, "\x2f\x73", O_RDONLY|O_CLOEXEC|O_DIRECTORY) = 3
12 openat(3, "\x2e\x61", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 4
12 write(4, "\x68\x69\x21", 3) = 2
12 write(4, "\x21", 1) = 1
12 fsync(4) = 0
12 close(4) = 0
12 renameat(3, "\x2e\x61", 3, "\x61") = 0
12 fsync(3) = 0
12 openat(AT_FDCWD, "\x2f\x65\x6c\x73\x65", O_WRONLY|O_CREAT, 0600) = 4
12 write(4, "\x78", 1) = 1
12 openat(AT_FDCWD, "\x2f\x6d", O_WRONLY|O_CREAT, 0600) = 5
12 write(5, "\x64\x6f\x6e\x65", 4) = 4
12 unlink("\x2f\x73\x2f\x6e\x6f\x6e\x65") = -1 ENOENT (No such file or directory)
12 openat(AT_FDCWD, "\x2f\x73\x2f\x64\x62", O_RDWR|O_CREAT, 0644) = 6
12 pwrite64(6, "\x41\x42", 2, 4096) = 2
12 ftruncate(6, 5) = 0
12 unlink("\x2f\x73\x2f\x64\x62") = 0
"""


def test_a_trace_is_understood() -> None:
    assert list(read(TRACE.splitlines(), "/s", "/m")) == [
        Op("create", ".a"),
        Op("write", ".a", b"hi", 0),
        Op("write", ".a", b"!", 2),
        Op("sync", ".a"),
        Op("rename", ".a", to="a"),
        Op("sync", ""),
        Op("mark", "done"),
        Op("create", "db"),
        Op("write", "db", b"AB", 4096),
        Op("size", "db", at=5),
        Op("unlink", "db"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        'writev(6, [{iov_base="", iov_len=0}], 1) = 3',
        "dup2(6, 7) = 7",
        "mmap(NULL, 9, PROT_WRITE, MAP_SHARED, 6, 0) = 1",
    ],
)
def test_what_is_not_understood_is_no_result(line: str) -> None:
    lines = [*(each for each in TRACE.splitlines() if "unlink" not in each), line]
    with pytest.raises(ValueError):
        list(read(lines, "/s", "/m"))


def cuts(*ops: Op, times: int = 200) -> list[dict[str, bytes]]:
    disk = Disk()
    for op in ops:
        disk.do(op)
    return [disk.cut(random.Random(k)) for k in range(times)]


def test_what_was_synced_is_there_and_what_was_not_may_be_anything() -> None:
    new = [Op("create", "a"), Op("write", "a", b"x" * 1000), Op("sync", "a"), Op("sync", "")]
    assert {each["a"] for each in cuts(*new)} == {b"x" * 1000}
    found = {each["a"] for each in cuts(*new, Op("write", "a", b"y" * 1024), Op("write", "a", b"z" * 4, at=2000))}
    both = b"y" * 1024 + b"\0" * 976 + b"zzzz"
    torn = b"y" * 512 + b"x" * 488
    late = b"x" * 1000 + b"\0" * 1000 + b"zzzz"
    assert {b"x" * 1000, b"y" * 1024, both, torn, late} <= found


def test_a_name_is_only_there_once_its_folder_was_synced() -> None:
    new = [Op("create", "a"), Op("write", "a", b"x"), Op("sync", "a")]
    assert {tuple(each.items()) for each in cuts(*new)} == {(), (("a", b"x"),)}
    moved = [*new, Op("sync", ""), Op("create", "b"), Op("write", "b", b"y"), Op("rename", "b", to="a")]
    contents = {tuple(sorted(each.items())) for each in cuts(*moved)}
    assert (("a", b""),) in contents, "renamed without a sync: the classic of empty files"
    assert (("a", b"x"),) in contents
    safe = [*moved[:-1], Op("sync", "b"), moved[-1]]
    assert {each["a"] for each in cuts(*safe)} == {b"x", b"y"}
    assert {each["a"] for each in cuts(*safe, Op("sync", ""))} == {b"y"}
    assert {tuple(each) for each in cuts(*safe, Op("sync", ""), Op("unlink", "a"))} == {("a",), ()}


def test_a_file_is_cut_and_filled_up() -> None:
    assert applied(b"abcdef", [Op("size", "a", at=2), Op("grow", "a", at=4)]) == b"ab\0\0"
