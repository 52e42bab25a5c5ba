"""The processes of a device as the kernel knows them: started, watched whether ours or adopted, and stopped."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from edgert import bus
from edgert.config import Plant
from edgert.ports.process import Layout
from edgert.values import Role

STOP_S, TERM_S, KILL_S = 8.0, 2.0, 1.0
"""Children get this long to leave in good order (the trainer writes a checkpoint), then at SIGTERM, then at SIGKILL."""

log = logging.getLogger("edgert.children")


def waited_s(pid: int) -> float | None:
    """Seconds in which a process could have run and had no processor, in all its life; None when nobody knows.

    Of its first thread, which is the one that reports. Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return None


class Children:
    """Starts the processes and tells of their ends, by pidfd, so that one that outlived its parent is watched too."""

    def __init__(
        self,
        config_path: Path,
        layout: Layout,
        plant: Plant,
        selector: selectors.BaseSelector,
        tell: Callable[[bus.Spawned | bus.Exited], None],
    ) -> None:
        """No process is touched yet.

        Args:
            config_path: handed on to them.
            layout: of this device.
            plant: which environment the world hosts.
            selector: it wakes with a pidfd when a process has ended; that pidfd is then for `bury`.
            tell: what happened.
        """
        self.config_path, self.layout, self.plant = config_path, layout, plant
        self.selector, self.tell = selector, tell
        self._ours: dict[Role, subprocess.Popen[bytes]] = {}
        self.watched: dict[int, tuple[Role, int]] = {}  # pidfd -> role and pid, ours or adopted

    def start(self, role: Role) -> str:
        """Start a process and watch it. Why it could not be, or an empty text; either way the brain is told."""
        if role == "world":
            arguments = ["--env", str(self.plant.env), "--seed", str(self.plant.seed)]
            arguments += ["--socket", str(self.layout.world), "--lock", str(self.layout.lock(role))]
        else:
            arguments = ["--config", str(self.config_path)]
        command = [sys.executable, "-m", f"edgert.programs.{role}", *arguments]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=False)
        except OSError as error:
            self.tell(bus.Spawned(role, 0))
            self.tell(bus.Exited(role, 0, None))
            return str(error)
        self._ours[role] = process
        self.tell(bus.Spawned(role, process.pid))
        self.watch(role, process.pid)
        return ""

    def watch(self, role: Role, pid: int) -> None:
        """Learn of a process's end whether or not it is our child."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.tell(bus.Exited(role, pid, None))
            return
        self.watched[pidfd] = role, pid
        self.selector.register(pidfd, selectors.EVENT_READ)

    def bury(self, pidfd: int) -> None:
        """One has ended: collect its exit code, which only a parent gets, and tell."""
        role, pid = self.watched.pop(pidfd)
        self.selector.unregister(pidfd)
        os.close(pidfd)
        process = self._ours.get(role)
        code = None
        if process is not None and process.pid == pid:
            code = self._ours.pop(role).wait()
        self.tell(bus.Exited(role, pid, code))

    @staticmethod
    def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process that may be gone."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            log.info("pid %d is gone already", pid)

    def stop(self, asked: Collection[Role], wait: Callable[[], None]) -> None:
        """Have all of them leave, the world last, because the actor leaves its plant safe first.

        Args:
            asked: those that were told to stop and have an ear for it; the others are starting.
            wait: lets a moment pass and calls `bury` for whoever ends in it.
        """
        for role, pid in self.watched.values():
            if role != "world" and role not in asked:
                self.kill(pid, signal.SIGTERM)
        self._await_end(True, STOP_S, wait)
        for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
            for _, pid in self.watched.values():
                self.kill(pid, number)
            self._await_end(False, patience_s, wait)

    def _await_end(self, spare_world: bool, patience_s: float, wait: Callable[[], None]) -> None:
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s and any(
            not (spare_world and role == "world") for role, _ in self.watched.values()
        ):
            wait()
