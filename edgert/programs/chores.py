"""The supervisor's hands for what the fleet wants: records on the disk, and commands that are run once for a job."""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import cbor2

from edgert import bus, wire
from edgert.errors import StoreError
from edgert.fleet import records, schedule
from edgert.fleet.kinds import Kind
from edgert.fleet.ledger import Found, Outcome, State
from edgert.ports import clock
from edgert.ports.jobrun import Runs
from edgert.ports.jobs import JobStore
from edgert.ports.process import Layout
from edgert.ports.spool import Spool
from edgert.programs.events import UPLOADED, stream_of

LOOK_S = 1.0
"""Between two looks at the clocks: cron knows minutes."""

TAIL_LINES = 200
TAIL_BYTES = 48 << 10
"""Of the lines that are shown, as UTF-8: with room to spare in the smallest packet that brokers are set to take."""

log = logging.getLogger("edgert.supervisor")
Put = Callable[[bus.FleetInput], None]


class Tail(logging.Handler):
    """The last lines of the log, for an upload: a journal cannot be asked from afar."""

    def __init__(self) -> None:
        """Listen to everything that this process logs from now on."""
        super().__init__()
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        logging.getLogger("edgert").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        line = f"{record.created:.3f} {record.levelname} {record.getMessage()[:500]}"
        self._lines.append(line.encode(errors="replace").decode())  # a message takes no half of a surrogate pair

    def lines(self, newest: int = TAIL_LINES) -> list[str]:
        """The newest, oldest first, as far as they fit into a message."""
        lines = list(self._lines)[-newest:]
        while sum(len(line.encode()) for line in lines) > TAIL_BYTES:
            del lines[0]
        return lines


class Chores:
    """Everything that outlives a supervisor, besides its spool.

    Attributes:
        faults: named fault -> count.
        jobs, marks, facts: records as they were found.
        found: id -> what jobs that ran have left.

    Blocks:
        `perform` waits for the disk where it writes.
    """

    def __init__(self, layout: Layout, spool: Spool, selector: selectors.BaseSelector, put: Put) -> None:
        """Open the stores, and find who is still at work.

        Args:
            layout: of the device.
            spool: evidence of what was uploaded.
            selector: is told of processes to watch; what is readable comes back to `hear`.
            put: takes what came of things.

        Raises:
            StoreError: a folder cannot be written, or another process holds a file.
        """
        self.faults: dict[str, int] = {}
        self._selector, self._put = selector, put
        self._store = JobStore(layout.jobs)
        self._runs = Runs(layout.outcomes)
        self._watched: dict[int, str] = {}  # pidfd -> id
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped: set[str] = set()
        self.jobs, self.marks, self.facts = self._store.jobs(), self._store.marks(), self._store.facts()
        if self._store.fault is not None:
            # With the file went the memory of what was done: whatever was ordered before now is not done again.
            self.facts[records.HORIZON] = records.time_bytes(time.time())
            self._write("horizon", lambda: self._store.write_fact(records.HORIZON, self.facts[records.HORIZON]))
        self.found = self._evidence(spool)
        self._seen_s = records.read_time(self.facts.get(records.SEEN)) or 0.0
        self._boot, self._rtc = clock.boot_id(), clock.has_rtc()

    @property
    def fault(self) -> str | None:
        """Why a former file was set aside at opening, or None."""
        return self._store.fault

    def _evidence(self, spool: Spool) -> dict[str, Found]:
        read = [records.read_job(id_, body) for id_, body in self.jobs.items()]
        running = {job.order.id: job.order.kind for job in read if job.state is State.RUNNING}
        found: dict[str, Found] = {}
        if Kind.UPLOAD.value in running.values():
            found.update({id_: Found(Outcome()) for id_ in _uploaded(spool) if id_ in running})
        for id_ in self._runs.ids():
            ended, pid = self._runs.ended(id_), self._runs.alive(id_)
            if ended is not None and id_ in running:
                found[id_] = Found(Outcome(ended.why, ended.result))
            elif pid is not None:
                found[id_] = Found(alive=True)
                self._watch(id_, pid)
            elif id_ not in running:
                self._runs.forget(id_)
        return found

    def timed(self) -> bus.Timed:
        """What the clocks say."""
        synced = clock.synced()
        wall_s = schedule.trusted(
            time.time(), built_s=clock.RELEASED_S, seen_s=self._seen_s, synced=synced, rtc=self._rtc
        )
        return bus.Timed(wall_s, self._boot)

    def perform(self, effect: bus.FleetEffect, run: Mapping[Kind, Callable[[Mapping[str, object]], list[str]]]) -> None:
        """Carry an effect out.

        Args:
            effect: what is wanted.
            run: kind -> the command that does a job of that kind, given its arguments; other kinds are not for here.
        """
        match effect:
            case bus.WriteJob(id_, body, mark):
                why = self._write("job-not-written", lambda: self._store.write_job(id_, body, mark))
                self._put(bus.JobWritten(id_, why))
            case bus.WriteMark(name, body):
                self._write("mark-not-written", lambda: self._store.write_mark(name, body))
            case bus.WriteFact(name, body):
                self._write("fact-not-written", lambda: self._store.write_fact(name, body))
                if name == records.SEEN:
                    self._seen_s = records.read_time(body) or self._seen_s
            case bus.ForgetJobs(ids, fact):
                self._write("jobs-not-forgotten", lambda: self._store.forget_jobs(ids, fact))
                for id_ in ids:
                    self._runs.forget(id_)
            case bus.DoJob(id_, kind, args):
                command = run.get(Kind(kind))
                if command is None:
                    self._put(bus.JobDone(id_, f"this device cannot {kind} as a job"))
                else:
                    self._start(id_, command(args))
            case bus.StopJob(id_):
                if id_ in self._watched.values():
                    self._stopped.add(id_)
                    self._stop(id_)
                else:
                    self._runs.forget(id_)

    def _write(self, fault: str, write: Callable[[], None]) -> str:
        try:
            write()
        except StoreError as error:
            self.faults[fault] = self.faults.get(fault, 0) + 1
            log.error("%s: %s", fault, error)
            return str(error)
        return ""

    def _start(self, id_: str, command: list[str]) -> None:
        self._stopped.discard(id_)
        if id_ in self._watched.values():
            return  # somebody is at it: a predecessor's, that outlived it
        try:
            process = self._runs.start(id_, command)
        except StoreError as error:
            self._put(bus.JobDone(id_, str(error)))
            return
        self._processes[id_] = process
        self._watch(id_, process.pid)

    def _stop(self, id_: str) -> None:
        process = self._processes.get(id_)
        if process is None:
            self._runs.stop(id_)
        else:
            process.terminate()  # it may be so young that it holds no lock yet

    def _watch(self, id_: str, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended(id_)
            return
        self._watched[pidfd] = id_
        self._selector.register(pidfd, selectors.EVENT_READ)

    def hear(self, pidfd: int) -> bool:
        """A watched process may have ended.

        Returns:
            False where it is none of these.
        """
        id_ = self._watched.pop(pidfd, None)
        if id_ is None:
            return False
        self._selector.unregister(pidfd)
        os.close(pidfd)
        process = self._processes.pop(id_, None)
        if process is not None:
            process.wait()
        self._ended(id_)
        return True

    def _ended(self, id_: str) -> None:
        ended = self._runs.ended(id_)
        if id_ in self._stopped:
            self._stopped.discard(id_)
            self._runs.forget(id_)
        elif ended is None:
            self._put(bus.JobDone(id_, "whoever was at it was killed"))
        else:
            self._put(bus.JobDone(id_, ended.why, ended.result))

    def close(self) -> None:
        """Stop what runs, to be begun again by a successor, and let go of the files."""
        for pidfd, id_ in self._watched.items():
            self._stop(id_)
            self._selector.unregister(pidfd)
            os.close(pidfd)
        self._watched.clear()
        self._store.close()


def python(*words: str) -> list[str]:
    """`edgert` with these words, by the Python that this is."""
    return [sys.executable, "-m", "edgert", *words]


def benches(bundle: Path, config_path: Path) -> dict[Kind, Callable[[Mapping[str, object]], list[str]]]:
    """The kinds of jobs that are commands.

    Args:
        bundle: that acts.
        config_path: of the device.
    """

    def bench(args: Mapping[str, object], *more: str) -> list[str]:
        return python("policy", "bench", str(bundle), "--json", "--seconds", str(args.get("for_s", 20.0)), *more)

    return {
        Kind.CALIBRATE: lambda args: bench(args, "--config", str(config_path)),
        Kind.BENCH: lambda args: bench(args, "--dry-run"),
    }


def _uploaded(spool: Spool) -> set[str]:
    """Ids of jobs whose upload is in the spool: it is there, or it has been delivered after the job was done."""
    found: set[str] = set()
    stream = stream_of(UPLOADED)
    for _, payload in spool.peek(stream, 0, spool.streams[stream].count):
        try:
            event = cbor2.loads(payload)
            if event["name"] == UPLOADED:
                found.add(str(event["detail"]["id"]))
        except wire.UNREADABLE:  # a damaged row can hold anything, and is no evidence
            continue
    return found
