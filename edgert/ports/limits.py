"""Asking the privileged helper for limits: what is wanted, what stands, and why something was refused.

The helper (`edgert limits`, a root process of its own) is the only part of edgert that may change the system. This side
has no rights: it says over a Unix socket what should hold, again whenever that changes and at least every few seconds.
The helper undoes everything when this side goes away, falls silent, or no longer wants it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgert.errors import ConfigError, LinkError, MessageError
from edgert.ports import ipc

MAX_FRAME_BYTES = 4096
REPEAT_S = 5.0
LEASE_S = 20.0
"""A client that says nothing for this long hangs: the helper takes it for gone."""
_RECONNECT_S = 5.0


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every limit that should hold from now on, all at once; None means none, and ends one that holds.

    Attributes:
        trainer_cpu_frac: most CPU time of the trainer, as a share of all cores, 0..1.
        trainer_weight: the trainer's share against others when all want the CPU, 1..10000; everybody else has 100.
        cpu_cap_frac: highest clock allowed, as a share of the highest that each cluster has, 0..1.
        trainer_cores, actor_cores: the cores that each may run on.
        power_mode: id of an nvpmodel mode of a Jetson.
    """

    trainer_cpu_frac: float | None = None
    trainer_weight: int | None = None
    cpu_cap_frac: float | None = None
    trainer_cores: tuple[int, ...] | None = None
    actor_cores: tuple[int, ...] | None = None
    power_mode: int | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Client -> helper.

    Attributes:
        wanted: the limits.
        trainer_pid, actor_pid: whom they are about; None while there is none.
    """

    wanted: Wanted = Wanted()
    trainer_pid: int | None = None
    actor_pid: int | None = None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Helper -> client: what came of the last request.

    Attributes:
        held: name of a limit -> what holds now, in words and units.
        refused: name of a limit -> why it does not hold; `request` when all of it was refused.
        connected: there is a helper that answers. Without one nothing is limited.
    """

    held: dict[str, str] = {}
    refused: dict[str, str] = {}
    connected: bool = False


class Limits:
    """The way to the helper.

    Blocks: never. Thread: the one that made it.
    """

    def __init__(self, path: str | Path | None) -> None:
        """Nothing is connected yet.

        Args:
            path: the helper's socket; None asks nobody, ever.
        """
        self._path = path
        self._channel: ipc.Channel | None = None
        self._standing = Standing()
        self._asked: Request | None = None
        self._asked_s = self._tried_s = float("-inf")

    def ask(
        self, wanted: Wanted, now_s: float, *, trainer_pid: int | None = None, actor_pid: int | None = None
    ) -> Standing:
        """Say what should hold, and hear what does; call it every second or so, also when nothing has changed.

        Args:
            wanted: all limits together; whatever is None in it is undone.
            now_s: monotonic time, seconds.
            trainer_pid: the trainer's process; None sets no limits of it.
            actor_pid: likewise.

        Returns:
            What the helper said last. Not the answer to this very call: that comes with the next.

        Raises:
            nothing: without a helper there are no limits, and the budget is obeyed by good will alone.
        """
        if self._path is None:
            return self._standing
        if self._channel is None:
            self._connect(now_s)
        if self._channel is not None:
            self._hear(self._channel)
            request = Request(wanted=wanted, trainer_pid=trainer_pid, actor_pid=actor_pid)
            if request != self._asked or now_s - self._asked_s >= REPEAT_S:
                self._asked, self._asked_s = request, now_s
                self._channel.send_map(msgspec.to_builtins(request))
            if self._channel.closed:
                self._lost("the helper ended the conversation")
        return self._standing

    def close(self) -> None:
        """Leave; the helper then undoes everything."""
        if self._channel is not None:
            self._channel.close()
        self._channel, self._standing = None, Standing()

    def _connect(self, now_s: float) -> None:
        if self._path is None or now_s - self._tried_s < _RECONNECT_S:
            return
        self._tried_s = now_s
        try:
            self._channel = ipc.connect(self._path)
        except (ConfigError, LinkError) as error:
            self._standing = Standing(refused={"request": str(error)})
            return
        if self._channel is None:
            self._standing = Standing(refused={"request": f"no helper listens on {self._path}"})
        self._asked = None

    def _hear(self, channel: ipc.Channel) -> None:
        for message in channel.receive_maps():
            try:
                self._standing = standing(message)
            except MessageError as error:
                self._standing = Standing(refused={"request": str(error)}, connected=True)

    def _lost(self, why: str) -> None:
        # What the helper said before it hung up (not this user, not now) says more than that it did.
        refused = self._standing.refused if "request" in self._standing.refused else {"request": why}
        self._channel, self._standing = None, Standing(refused=refused)


def standing(message: dict[str, object]) -> Standing:
    """What a helper's message says.

    Raises:
        MessageError: it is none.
    """
    try:
        return msgspec.convert({**message, "connected": True}, Standing)
    except msgspec.ValidationError as error:
        raise MessageError(f"the helper's answer: {error}") from error


def asymmetric(root: str | Path = "/") -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The small and the big cores of a machine that has both, by the kernel's own measure.

    Args:
        root: directory that holds `sys`.

    Returns:
        The cores of least capacity (for the trainer) and those of most (for the actor), ascending; None where all are
        alike or the kernel does not say.
    """
    capacities: dict[int, int] = {}
    for path in (Path(root) / "sys/devices/system/cpu").glob("cpu[0-9]*/cpu_capacity"):
        try:
            capacities[int(path.parent.name.removeprefix("cpu"))] = int(path.read_text())
        except (OSError, ValueError):
            return None
    if len(set(capacities.values())) < 2:
        return None
    least, most = min(capacities.values()), max(capacities.values())
    return (
        tuple(sorted(core for core, capacity in capacities.items() if capacity == least)),
        tuple(sorted(core for core, capacity in capacities.items() if capacity == most)),
    )
