"""A clock that runs faster: what a soak gives to the processes it starts, so that they live through days in minutes.

Every process runs as it is; only what it reads off the clock, and how long it waits when it wants to wait, is changed.
Processor time, disks and the broker keep their own pace, so that whatever takes real time seems slow by the factor.
Before the start of the hurry, which is the same instant for all, time passes as it does: starting takes real seconds.
"""

from __future__ import annotations

import functools
import select
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SHORTEST_S = 0.005
"""Of a real wait that was to be at least as long: one that the factor makes shorter would only spin."""
FACTOR, FROM = "EDGERT_HURRY_FACTOR", "EDGERT_HURRY_FROM_S"
HOOK = """import os
from edgert.programs import hurry
hurry.obey(os.environ)
"""


class Hurry:
    """How the hurried clock follows from the real one.

    Attributes:
        factor: how many times as fast.
        from_s: real monotonic time from which on.
    """

    def __init__(self, factor: float, from_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Change nothing yet.

        Args:
            factor: 1 or more.
            from_s: on the clock of `monotonic`.
            monotonic: the real clock.
        """
        self.factor, self.from_s, self._real = factor, from_s, monotonic

    def ahead_s(self) -> float:
        """By how much the hurried clock is ahead of the real one."""
        return (self.factor - 1) * max(0.0, self._real() - self.from_s)

    def monotonic(self) -> float:
        """The hurried clock, seconds."""
        now_s = self._real()
        return now_s + (self.factor - 1) * max(0.0, now_s - self.from_s)

    def real_s(self, duration_s: float) -> float:
        """How long a wait of that long on the hurried clock takes, begun now."""
        calm_s = min(duration_s, max(0.0, self.from_s - self._real()))
        return max(calm_s + (duration_s - calm_s) / self.factor, min(duration_s, SHORTEST_S))


def environment(folder: Path, factor: float, from_s: float, inherited: Mapping[str, str]) -> dict[str, str]:
    """What a process has to be started with, so that it and all it starts hurry.

    Args:
        folder: a hook that Python runs as it starts is written into it.
        factor: see `Hurry`.
        from_s: see `Hurry`.
        inherited: environment so far.

    Returns:
        The variables to set.
    """
    (folder / "sitecustomize.py").write_text(HOOK)
    paths = [str(folder), str(Path(__file__).parents[2]), inherited.get("PYTHONPATH", "")]
    return {"PYTHONPATH": ":".join(path for path in paths if path), FACTOR: str(factor), FROM: str(from_s)}


def obey(environ: Mapping[str, str]) -> None:
    """Hurry from here on, when the environment says so; to be called before anything looks at the clock."""
    if FACTOR in environ:
        install(Hurry(float(environ[FACTOR]), float(environ[FROM])))


def install(hurry: Hurry) -> None:
    """Put the hurried clock in the place of this process's own."""
    wall, sleep, local, utc, text = time.time, time.sleep, time.localtime, time.gmtime, time.strftime

    def now_s() -> float:
        return wall() + hurry.ahead_s()

    def dated(function: Callable[[float], time.struct_time]) -> Callable[[float | None], time.struct_time]:
        return functools.wraps(function)(lambda at_s=None: function(now_s() if at_s is None else at_s))

    clock: dict[str, Any] = {
        "monotonic": hurry.monotonic,
        "time": now_s,
        "sleep": lambda duration_s: sleep(hurry.real_s(duration_s)),
        "localtime": dated(local),
        "gmtime": dated(utc),
        "strftime": lambda form, at=None: text(form, local(now_s()) if at is None else at),
    }
    for name, function in clock.items():
        setattr(time, name, function)
    _hurry_waits(hurry)
    if "run" in sys.orig_argv:
        _hurry_scheduler(hurry)


def _hurry_waits(hurry: Hurry) -> None:
    """Waiting for something to happen, by whichever call."""
    real_poll, real_select = select.poll, select.select
    epoll_select = selectors.EpollSelector.select

    class Poll:
        """`select.poll`, whose time-outs are on the hurried clock."""

        def __init__(self) -> None:
            poller = real_poll()
            self._poll = poller.poll
            self.register, self.modify, self.unregister = poller.register, poller.modify, poller.unregister

        def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
            if timeout_ms is None or timeout_ms <= 0:
                return self._poll(timeout_ms)
            return self._poll(1e3 * hurry.real_s(timeout_ms * 1e-3))

    def epoll(self: Any, timeout: float | None = None) -> Any:
        return epoll_select(self, None if timeout is None else hurry.real_s(timeout))

    def plain(r: Any, w: Any, x: Any, timeout: float | None = None) -> Any:
        return real_select(r, w, x) if timeout is None else real_select(r, w, x, hurry.real_s(timeout))

    for where, name, function in (
        (select, "poll", Poll),
        (select, "select", plain),
        (selectors.EpollSelector, "select", epoll),
    ):
        setattr(where, name, function)


def _hurry_scheduler(hurry: Hurry) -> None:
    """What a supervisor holds against its children: they work in real time, and the kernel counts their waits in it."""
    from edgert import children
    from edgert.ports import children as ports

    for name in ("HANG_S", "PATIENT_HANG_S", "START_PATIENCE_S"):
        setattr(children, name, hurry.factor * getattr(children, name))
    waited_s = ports.waited_s

    def waited(pid: int) -> float | None:
        found = waited_s(pid)
        return None if found is None else hurry.factor * found

    ports.waited_s = waited
