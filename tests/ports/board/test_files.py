from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert.ports.board.files import Files, Program, Told, number


def opened() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_file_is_read_anew_each_time_through_one_descriptor(tmp_path: Path) -> None:
    files, path = Files(str(tmp_path)), tmp_path / "temp"
    path.write_text("41000\n")
    assert files.text("temp") == "41000"
    held = opened()
    path.write_text("42500\n")
    assert (files.text("temp"), files.number("temp"), opened()) == ("42500", 42500.0, held)
    files.close()
    assert opened() == held - 1
    assert files.text("temp") == "42500"


def test_a_file_that_was_replaced_or_removed_does_not_go_on_telling_what_it_told(tmp_path: Path) -> None:
    files, path, other = Files(str(tmp_path)), tmp_path / "temp", tmp_path / "other"
    path.write_text("1")
    assert files.text("temp") == "1"
    other.write_text("2")
    other.rename(path)
    assert files.text("temp") == "2"
    path.unlink()
    assert files.text("temp") is None
    path.write_text("3")
    assert files.text("temp") == "3"


def test_what_is_no_readable_text_is_none(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    held = opened()
    for name in ("folder", "bytes", "gone", "missing", "a\0b"):
        assert files.text(name) is None and files.once(name) is None and files.number(name) is None
    assert opened() == held
    assert files.names("missing") == [] and files.names("bytes") == []


def test_a_fifo_that_nobody_writes_to_does_not_stop_the_board(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert Files(str(tmp_path)).text("fifo") is None


def test_more_files_than_are_kept_can_be_read(tmp_path: Path) -> None:
    files = Files(str(tmp_path))
    for index in range(150):
        (tmp_path / str(index)).write_text(f"{index}")
    assert [files.number(str(index)) for index in range(150)] == list(range(150))
    held = opened()
    assert [files.number(str(index)) for index in range(150)] == list(range(150))
    assert opened() == held


def test_zones_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (10, 9, 1):
        (tmp_path / "class" / f"zone{index}").mkdir(parents=True)
    (tmp_path / "class" / "other").mkdir()
    assert Files(str(tmp_path)).names("class", "zone") == ["class/zone1", "class/zone9", "class/zone10"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12.0), ("-3", -3.0), ("", None), ("1.5", None), ("x", None), (None, None), ("9" * 400, None)],
)
def test_number(text: str | None, value: float | None) -> None:
    assert number(text) == value


def test_a_program_is_asked_without_waiting_and_again_only_when_it_is_time(
    tmp_path: Path, until: Callable[..., None]
) -> None:
    log = tmp_path / "log"
    code = f"import time; time.sleep(0.2); open({str(log)!r}, 'a').write('x'); print('throttled=0x0')"
    program = Program((sys.executable, "-c", code), period_s=100.0)
    began_s = time.monotonic()
    assert program.look(0.0) == Told()
    assert time.monotonic() - began_s < 5.0
    until(lambda: program.look(1.0).text is not None, "the program's answer")
    assert program.look(2.0) == Told("throttled=0x0", 1.0)
    assert program.cpu_s > 0.0
    program.look(50.0)
    assert log.read_text() == "x"
    program.look(100.0)
    until(lambda: program.look(101.0).at_s == 101.0, "its next answer")
    assert log.read_text() == "xx"


def test_a_program_that_fails_or_is_missing_tells_nothing(until: Callable[..., None]) -> None:
    assert Program(("no-such-program",), period_s=1.0).look(0.0) == Told()
    failing = Program((sys.executable, "-c", "print(1); raise SystemExit(1)"), period_s=1e6)
    failing.look(0.0)
    until(lambda: failing.look(1.0) == Told() and failing.cpu_s > 0.0, "its end")


def test_a_program_that_hangs_is_killed(until: Callable[..., None]) -> None:
    program = Program((sys.executable, "-c", "import time; time.sleep(600)"), period_s=1e6)
    program.look(0.0)
    program.look(100.0)
    until(lambda: program.look(101.0) == Told() and program.cpu_s > 0.0, "its end")
