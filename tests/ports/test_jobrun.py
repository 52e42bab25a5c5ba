"""One command for one id: once, however often it is started, and whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert.errors import StoreError
from edgert.ports.jobrun import ERR_BYTES, OUT_BYTES, Ended, Runs


def until(holds: Callable[[], object]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came about")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "jobs")


def test_what_came_of_a_command_is_found_by_anyone(runs, tmp_path):
    assert runs.run("j", python("print('{\"n\": 3}')"), lambda: False) == 0
    ended = Runs(tmp_path / "jobs").ended("j")
    assert (ended.why, ended.result) == ("", {"n": 3})
    assert runs.ids() == {"j"}


def test_a_command_that_ended_is_not_run_again(runs, tmp_path):
    add = python(f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    for _ in range(3):
        assert runs.run("j", add, lambda: False) == 0
    assert (tmp_path / "count").read_text() == "x"
    runs.forget("j")
    assert (runs.ended("j"), runs.ids()) == (None, set())


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.exit('no such bundle')", "ended with 1: no such bundle"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9: it said nothing"),
    ],
)
def test_a_fault_has_its_last_word(runs, code, why):
    runs.run("j", python(code), lambda: False)
    assert runs.ended("j").why == why


def test_what_it_says_is_bounded(runs):
    runs.run("j", python("import sys; print('x' * 200_000); sys.stderr.write('y' * 9000 + 'end')"), lambda: False)
    ended = runs.ended("j")
    assert (len(ended.out), len(ended.err)) == (OUT_BYTES, ERR_BYTES)
    assert ended.err.endswith("end")
    assert len(ended.result["out"]) == ERR_BYTES


def test_a_command_that_is_stopped_leaves_nothing_and_nobody(runs, tmp_path):
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    assert runs.run("j", python(code), pid_file.exists) == 1
    assert runs.ended("j") is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text() or 0), 0)


def test_started_twice_it_runs_once_and_outlives_whoever_started_it(runs, tmp_path):
    gate, count = tmp_path / "gate", tmp_path / "count"
    code = (
        f"import pathlib, time; open({str(count)!r}, 'a').write('x')\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)"
    )
    first = runs.start("j", python(code))
    until(count.exists)
    assert runs.alive("j") == first.pid
    second = runs.start("j", python(code))
    assert second.wait(60) == 2
    gate.touch()
    assert first.wait(60) == 0
    assert (runs.ended("j"), runs.alive("j"), count.read_text()) == (Ended(0), None, "x")
    assert runs.start("j", python(code)).wait(60) == 0
    assert count.read_text() == "x"


def test_it_can_be_stopped_from_elsewhere_and_begun_again(runs, tmp_path):
    pids = tmp_path / "pids"
    code = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
    process = runs.start("j", python(code))
    until(pids.exists)
    runs.stop("j")
    assert process.wait(60) == 1
    assert runs.ended("j") is None
    process = runs.start("j", python(code))
    until(lambda: pids.read_text().count("\n") == 2)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert (runs.ended("j"), runs.alive("j")) == (None, None)
    # Whoever begins it again must not find the former one still at work.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split()))


def test_a_torn_outcome_is_none(runs, tmp_path):
    (tmp_path / "jobs" / "j.json").write_bytes(b'{"code": 0, "ou')
    assert runs.ended("j") is None


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Runs(tmp_path / "file" / "jobs")


def test_a_command_that_is_not_there_is_a_store_error(runs):
    with pytest.raises(StoreError):
        runs.run("j", ["/no/such/program"], lambda: False)
