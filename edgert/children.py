"""The processes of a device: which should run, when a dead one starts again, and when a silent one is killed.

Pure, like `edgert.control`, whose level-not-edge rule it serves: `ensure_running` compares what should run with what
runs at every wake-up, so a missed exit or a lost message is mended at the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from edgert import bus
from edgert.config import Config
from edgert.values import Role

HANG_S = 5.0  # without a report a connected actor is hung: it reports from its own loop, every second or two
PATIENT_HANG_S = 60.0  # the others report between their tasks, and one network with its gate takes seconds on a board
START_PATIENCE_S = 20.0  # without a hello a child is hung; a cold SD card takes seconds, and a niced one more yet
SILENT_S = 2.0  # from here on it is worth a look why
RESTART_BASE_S, RESTART_CAP_S, STABLE_S = 0.5, 10.0, 60.0
"""The first restart is immediate; from the second on the delay doubles; a child that lived STABLE_S is forgiven."""


class Child(msgspec.Struct, frozen=True):
    """One process we keep running.

    Attributes:
        pid: of the running one, or None.
        connected: it said hello.
        since_s: of the present state.
        failures, restarts: exits since it last lived long enough, and in all.
        next_start_s: not before this.
        heard_s: its last report, or its hello; None before either.
        waited_s: all its life for a processor, as of the last look at one that is silent; None before a look.
        excused_s: of its silence, in which it could have run and no processor was free.
    """

    pid: int | None = None
    connected: bool = False
    since_s: float = 0.0
    failures: int = 0
    restarts: int = 0
    next_start_s: float = 0.0
    heard_s: float | None = None
    waited_s: float | None = None
    excused_s: float = 0.0

    @property
    def spoke_s(self) -> float:
        """Since when it is silent."""
        return self.heard_s if self.connected and self.heard_s is not None else self.since_s


Children = Mapping[Role, Child]


def roles(config: Config) -> tuple[Role, ...]:
    """Which processes a device of this configuration keeps running.

    Args:
        config: checked.

    Returns:
        In the order in which they start.

    Raises:
        nothing.
    Source:
        ours: what is not configured costs no process.
    """
    wanted: dict[Role, bool] = {
        "world": config.plant.kind == "simulated",
        "actor": True,
        "trainer": config.learn.enabled,
        "placer": config.placement.enabled,
        "offload": config.offload.enabled,
    }
    return tuple(role for role, yes in wanted.items() if yes)


def open_children(wanted: Iterable[Role], adopted: Mapping[Role, int], now_s: float) -> Children:
    """The processes as a supervisor finds them.

    Args:
        wanted: roles that should run.
        adopted: role -> pid of those that outlived a predecessor.
        now_s: monotonic seconds.

    Returns:
        A child for each role that should run.

    Raises:
        nothing.
    Source:
        ours.
    """
    return {role: Child(pid=adopted.get(role), since_s=now_s) for role in wanted}


def change(children: Children, role: Role, **changes: object) -> Children:
    """The children with one of them changed.

    Args:
        children: before.
        role: of the one.
        **changes: fields of `Child`.

    Returns:
        Children after.

    Raises:
        nothing.
    Source:
        ours.
    """
    return {**children, role: msgspec.structs.replace(children.get(role, Child()), **changes)}


def begin(children: Children, role: Role, now_s: float, **changes: object) -> Children:
    """A process entered another state: its silence is measured from here on.

    Args:
        children: before.
        role: of the one.
        now_s: monotonic seconds.
        **changes: fields of `Child`.

    Returns:
        Children after.

    Raises:
        nothing.
    Source:
        ours.
    """
    return change(children, role, since_s=now_s, waited_s=None, excused_s=0.0, **changes)


def heard(children: Children, role: Role, now_s: float) -> Children:
    """A process reported.

    Args:
        children: before.
        role: of the one.
        now_s: monotonic seconds.

    Returns:
        Children after.

    Raises:
        nothing.
    Source:
        ours.
    """
    return change(children, role, heard_s=now_s, waited_s=None, excused_s=0.0)


def silent(children: Children, now_s: float) -> dict[Role, int]:
    """Whose reports fail to come, so that it is worth a look whether they could have; a world gives none.

    Args:
        children: now.
        now_s: monotonic seconds.

    Returns:
        Role -> pid.

    Raises:
        nothing.
    Source:
        ours.
    """
    return {
        role: child.pid
        for role, child in children.items()
        if child.pid and role != "world" and now_s - child.spoke_s >= SILENT_S
    }


def excuse(children: Children, waited_s: Mapping[Role, float]) -> Children:
    """Waiting for a processor is not hanging: a starved process is served no better by being started again.

    Args:
        children: before.
        waited_s: role -> seconds of all its life in which it could have run and did not, of those that are `silent`.

    Returns:
        Children after.

    Raises:
        nothing.
    Source:
        ours; Documentation/scheduler/sched-stats.rst: the time spent waiting on a run queue. One that sleeps or is
        stopped waits for none, and one that runs in circles uses it.
    """
    for role, waited in waited_s.items():
        child = children.get(role)
        if child is not None:
            more_s = 0.0 if child.waited_s is None else max(0.0, waited - child.waited_s)
            children = change(children, role, waited_s=waited, excused_s=child.excused_s + more_s)
    return children


def bury(children: Children, event: bus.Exited, now_s: float, effects: list[bus.Effect]) -> Children | None:
    """A process ended: say so, and decide when the next one starts.

    Args:
        children: before.
        event: role, pid and exit code.
        now_s: monotonic seconds.
        effects: the record of it is added here.

    Returns:
        Children after; None where it was not the one that counts (a second instance that found the role taken).

    Raises:
        nothing.
    Source:
        ours: exponential back-off with a cap; a child that lived `STABLE_S` is forgiven.
    """
    child = children.get(event.role)
    if child is None or child.pid != event.pid:
        return None
    failures = 1 if now_s - child.since_s >= STABLE_S else child.failures + 1
    delay_s = 0.0 if failures == 1 else min(RESTART_CAP_S, RESTART_BASE_S * 2.0 ** min(failures - 2, 16))
    effects.append(bus.Record("child-exited", {"role": event.role, "code": event.code, "restart_in_s": delay_s}))
    return begin(
        children,
        event.role,
        now_s,
        pid=None,
        connected=False,
        failures=failures,
        restarts=child.restarts + 1,
        next_start_s=now_s + delay_s,
    )


def ensure_running(
    children: Children, now_s: float, effects: list[bus.Effect], listened_s: float | None = None
) -> tuple[Children, list[Role]]:
    """Start what should run and does not; kill what hangs.

    Args:
        children: before.
        now_s: monotonic seconds.
        effects: starts, kills and their records are added here.
        listened_s: when all that they said was heard; None means now. Who did not listen, since a disk or the machine
            held it up, cannot tell silence.

    Returns:
        Children after, and the roles that were found hung.

    Raises:
        nothing.
    Source:
        ours, after openpilot's `ensure_running`.
    """
    hung: list[Role] = []
    for role, child in children.items():
        if child.pid is None:
            if now_s >= child.next_start_s:
                effects.append(bus.Start(role))
                # Counted as running from here on, so that a slow spawn is not started twice; Spawned brings the pid.
                children = begin(children, role, now_s, pid=0, next_start_s=now_s + RESTART_CAP_S)
            continue
        if role == "world":
            continue  # it talks to the actor only
        patience_s = HANG_S if role == "actor" else PATIENT_HANG_S
        silent_s = (now_s if listened_s is None else listened_s) - child.spoke_s - child.excused_s
        if silent_s > (patience_s if child.connected else max(patience_s, START_PATIENCE_S)) and child.pid:
            effects += [
                bus.Record(
                    "child-hung",
                    {"role": role, "silent_s": round(silent_s, 1), "waited_s": round(child.excused_s, 1)},
                ),
                bus.Kill(role, child.pid),
            ]
            failures = 0 if child.connected and now_s - child.since_s >= STABLE_S else child.failures
            children = begin(children, role, now_s, connected=False, failures=failures)
            hung.append(role)
    return children, hung


def wake_times_s(children: Children) -> list[float]:
    """When something is due although nothing happens.

    Args:
        children: now.

    Returns:
        Monotonic seconds at which a dead child starts again.

    Raises:
        nothing.
    Source:
        ours.
    """
    return [child.next_start_s for child in children.values() if child.pid is None]
