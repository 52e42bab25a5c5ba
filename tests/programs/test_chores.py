"""The hands of the supervisor: what it writes is there, what it starts runs once, and what it finds is evidence."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgert import bus, wire
from edgert.errors import StoreError
from edgert.fleet import records
from edgert.fleet.kinds import Kind
from edgert.fleet.ledger import Found, Job, Order, Outcome, State
from edgert.ports.jobrun import Runs
from edgert.ports.jobs import JobStore
from edgert.programs import chores, events
from edgert.programs.chores import Chores, Tail, benches


class Desk:
    """Chores with the little they need around them."""

    def __init__(self, folder: Path) -> None:
        self.layout: Any = SimpleNamespace(jobs=folder / "jobs.db", outcomes=folder / "jobs")
        self.spool = events.opened(folder / "events.db")
        self.selector = selectors.DefaultSelector()
        self.put: list[bus.FleetInput] = []
        self.chores = Chores(self.layout, self.spool, self.selector, self.put.append)

    def perform(self, effect: bus.FleetEffect, code: str = "") -> None:
        command = [sys.executable, "-c", code]
        self.chores.perform(effect, {Kind.BENCH: lambda args: [*command, str(args)]})

    def until_put(self) -> bus.FleetInput:
        for _ in range(300):
            for key, _ in self.selector.select(0.1):
                assert self.chores.hear(int(key.fd))
            if self.put:
                return self.put.pop(0)
        raise AssertionError("nothing came of it")

    def close(self) -> None:
        self.chores.close()
        self.spool.close()
        self.selector.close()


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[Callable[[], Desk]]:
    made: list[Desk] = []

    def again() -> Desk:
        if made:
            made[-1].close()
        made.append(Desk(tmp_path))
        return made[-1]

    yield again
    made[-1].close()


def body(id_: str, kind: str, state: State) -> bytes:
    return records.job_bytes(Job(order=Order(id=id_, kind=kind), number=1, state=state))


def test_records_are_written_answered_and_found_by_a_successor(open_desk):
    desk = open_desk()
    desk.perform(bus.WriteJob("j", b"job", ("night", b"mark")))
    desk.perform(bus.WriteMark("day", b"other"))
    desk.perform(bus.WriteFact("desired", b"wish"))
    assert desk.put == [bus.JobWritten("j")]
    desk = open_desk()
    found = desk.chores
    assert (found.jobs, found.marks, found.facts) == (
        {"j": b"job"}, {"night": b"mark", "day": b"other"}, {"desired": b"wish"},
    )  # fmt: skip
    desk.perform(bus.ForgetJobs(("j",), ("horizon", b"1")))
    assert open_desk().chores.jobs == {}


def test_a_disk_that_takes_nothing_is_told_and_counted(open_desk, monkeypatch):
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    desk = open_desk()
    for name in ("write_job", "write_mark", "write_fact", "forget_jobs"):
        monkeypatch.setattr(JobStore, name, full)
    for effect in (
        bus.WriteJob("j", b""),
        bus.WriteMark("s", b""),
        bus.WriteFact("f", b""),
        bus.ForgetJobs(("j",), ("h", b"")),
    ):
        desk.perform(effect)
    assert desk.put == [bus.JobWritten("j", "the disk is full")]
    assert set(desk.chores.faults) == {
        "job-not-written", "mark-not-written", "fact-not-written", "jobs-not-forgotten",
    }  # fmt: skip


def test_a_command_is_run_and_what_came_of_it_is_told(open_desk):
    desk = open_desk()
    desk.perform(bus.DoJob("j", "bench", {"for_s": 1}), 'import sys; print(\'{"told": "%s"}\' % sys.argv[1])')
    done = desk.until_put()
    assert (done.id, done.why, done.result) == ("j", "", {"told": "{'for_s': 1}"})


def test_a_kind_that_is_no_command_is_refused(open_desk):
    desk = open_desk()
    desk.perform(bus.DoJob("j", "train", {}))
    assert desk.put.pop(0) == bus.JobDone("j", "this device cannot train as a job")


def test_a_successor_finds_what_ended_and_who_is_still_at_work(open_desk, tmp_path):
    gate = tmp_path / "gate"
    desk = open_desk()
    for id_ in ("ended", "alive", "never"):
        desk.perform(bus.WriteJob(id_, body(id_, "bench", State.RUNNING)))
    runs = Runs(tmp_path / "jobs")
    runs.run("ended", [sys.executable, "-c", "print('{\"n\": 1}')"], lambda: False)
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)"
    worker = runs.start("alive", [sys.executable, "-c", waits])
    while runs.alive("alive") is None:
        time.sleep(0.02)
    desk = open_desk()
    assert desk.chores.found == {"ended": Found(Outcome(result={"n": 1})), "alive": Found(alive=True)}
    desk.perform(bus.DoJob("alive", "bench", {}), "raise SystemExit('begun a second time')")
    gate.touch()
    assert desk.until_put() == bus.JobDone("alive")
    worker.wait(20)


def test_what_an_ended_job_has_left_is_swept(open_desk, tmp_path):
    open_desk()
    runs = Runs(tmp_path / "jobs")
    runs.run("old", [sys.executable, "-c", ""], lambda: False)
    open_desk()
    assert runs.ids() == set()


def test_a_stopped_command_is_not_told_of_and_leaves_nothing(open_desk, tmp_path):
    desk = open_desk()
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    desk.perform(bus.DoJob("j", "bench", {}), code)
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.02)
    desk.perform(bus.StopJob("j"))
    for _ in range(300):
        for key, _ in desk.selector.select(0.1):
            desk.chores.hear(int(key.fd))
        if not desk.selector.get_map():
            break
    assert (desk.put, Runs(tmp_path / "jobs").ids()) == ([], set())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_one_that_has_only_just_been_started_is_stopped_too(open_desk, tmp_path):
    desk = open_desk()
    desk.perform(bus.DoJob("j", "bench", {}), f"open({str(tmp_path / 'ran')!r}, 'w')")
    desk.perform(bus.StopJob("j"))
    for _ in range(300):
        for key, _ in desk.selector.select(0.1):
            desk.chores.hear(int(key.fd))
        if not desk.selector.get_map():
            break
    assert desk.put == []
    assert not (tmp_path / "ran").exists()


def test_one_that_is_killed_is_told_of(open_desk, tmp_path):
    desk = open_desk()
    desk.perform(bus.DoJob("j", "bench", {}), "import time; time.sleep(600)")
    runs = Runs(tmp_path / "jobs")
    while (pid := runs.alive("j")) is None:
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    assert desk.until_put() == bus.JobDone("j", "whoever was at it was killed")


def test_an_upload_in_the_spool_is_its_evidence(open_desk):
    desk = open_desk()
    for id_ in ("u1", "u2"):
        desk.perform(bus.WriteJob(id_, body(id_, "upload", State.RUNNING)))
    desk.spool.append("uploads", b"\xffdamaged", 0.0)
    events.record(desk.spool, events.UPLOADED, {"id": "u1"}, 0.0)
    assert open_desk().chores.found == {"u1": Found(Outcome())}


def test_a_lost_store_makes_nothing_be_done_again(open_desk, tmp_path):
    open_desk().close()
    (tmp_path / "jobs.db").write_bytes(b"nonsense" * 999)
    desk = open_desk()
    assert "kept as" in desk.chores.fault
    horizon_s = records.read_time(desk.chores.facts[records.HORIZON])
    assert abs(horizon_s - time.time()) < 3600
    assert records.read_time(open_desk().chores.facts[records.HORIZON]) == horizon_s


@pytest.mark.parametrize(("synced", "known"), [(True, True), (None, False), (False, False)])
def test_the_time_before_one_that_was_noted_is_believed_from_a_time_service_only(open_desk, monkeypatch, synced, known):
    monkeypatch.setattr(chores.clock, "synced", lambda: synced)
    desk = open_desk()
    desk.perform(bus.WriteFact(records.SEEN, records.time_bytes(time.time() + 86_400)))
    assert (desk.chores.timed().wall_s is not None) is known


def test_the_commands_name_what_acts(tmp_path):
    run = benches(tmp_path / "b.edgert", tmp_path / "c.toml")
    bench, calibrate = run[Kind.BENCH]({"for_s": 3.0}), run[Kind.CALIBRATE]({})
    assert bench[1:6] == ["-m", "edgert", "policy", "bench", str(tmp_path / "b.edgert")]
    assert "--dry-run" in bench and "3.0" in bench
    assert calibrate[-2:] == ["--config", str(tmp_path / "c.toml")]


def test_the_log_has_a_tail():
    tail = Tail()
    log = logging.getLogger("edgert.something")
    for i in range(chores.TAIL_LINES + 5):
        log.warning("line %d", i)
    logging.getLogger("edgert").removeHandler(tail)
    assert len(tail.lines()) == chores.TAIL_LINES
    assert tail.lines()[-1].endswith(f"WARNING line {chores.TAIL_LINES + 4}")


def test_the_tail_fits_into_a_message_whatever_its_letters_are():
    tail = Tail()
    for i in range(chores.TAIL_LINES):
        tail.emit(logging.LogRecord("edgert", logging.INFO, "", 0, "%d " + 500 * "\U0001f600", (i,), None))
    tail.emit(logging.LogRecord("edgert", logging.INFO, "", 0, "a file named \udc80", (), None))
    logging.getLogger("edgert").removeHandler(tail)
    lines = tail.lines()
    reply = wire.encode(wire.CommandReply(id="l", ok=True, detail={"lines": lines}))
    assert len(reply) < 64 << 10 and lines[-1].endswith("?") and len(lines) > 10
