"""One device's life over the real path: supervisor, actor, trainer, world, mosquitto and a teacher, link shaped.

Every network that acts is copied, with the transition at which it was made; who plays better is found out afterwards
(`judge`), with no link at all. What the device lived through is read from its own ring file, so nothing is asked over
the link to watch it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgert import bundle
from edgert.config import parse
from edgert.errors import EdgertError, LinkError, UsageError
from edgert.ports import ipc
from edgert.ports.broker import free_port
from edgert.ports.cluster import Cluster
from edgert.ports.process import Layout, noted_network
from edgert.ports.relay import Shape
from edgert.ports.ring import TERMINATED, TRUNCATED, RingReader
from edgert.ports.store import write_atomic
from edgert.values import StatusReply, StatusRequest

POLL_S = 0.02
START_S = 120.0
STUCK_S = 90.0
"""A run in which nothing happens for so long has failed: not even an outage stops a device."""


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong on the way, by the transition at which it begins.

    Attributes:
        at: transition.
        kind: `outage` is a blackhole, `broker` kills the broker (which is started again), `reset` cuts connections.
        lasts_s: of an outage.
    """

    at: int
    kind: str
    lasts_s: float = 0.0


class Copy(msgspec.Struct, frozen=True):
    """A network that acted: from which transition on, how long after the first one, and where it lies."""

    transitions: int
    wall_s: float
    wire_bytes: int
    path: str


class Run(msgspec.Struct, frozen=True):
    """What came of one life; kept as JSON.

    Attributes:
        transitions: recorded.
        wall_s: from the first to the last.
        cpu_s: of the trainer, the actor and the supervisor.
        pace: (seconds, transitions) about once a second.
        episodes: (transition at which it ended, return while exploring).
        copies: the networks, in order; the first is the installed one.
        link: what the link counted.
        status: the device's own totals at the end.
    """

    transitions: int
    wall_s: float
    cpu_s: float
    pace: list[tuple[float, int]]
    episodes: list[tuple[int, float]]
    copies: list[Copy]
    link: dict[str, int]
    status: dict[str, Any]


@contextlib.contextmanager
def shaped(shape: Shape, port: int, broker_port: int, folder: Path) -> Iterator[None]:
    """A link on `port` in front of a broker.

    Raises:
        LinkError: it does not start.
    """
    reshape(folder, shape)
    command = [
        sys.executable,
        "-m",
        "edgert.ports.relay",
        "--listen",
        str(port),
        "--to",
        f"127.0.0.1:{broker_port}",
    ]
    command += ["--settings", str(folder / "link.json"), "--counts", str(folder / "counts.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        told = process.stdout.readline() if process.stdout else ""
        if not told.strip().isdigit():
            raise LinkError(f"the link did not start: {' '.join(command)}")
        yield
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


def reshape(folder: Path, shape: Shape) -> None:
    """Change a link that runs."""
    write_atomic(folder / "link.json", msgspec.json.encode(shape))


def counted(folder: Path) -> dict[str, int]:
    """What passed through a link so far."""
    try:
        return msgspec.json.decode((folder / "counts.json").read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}


def on_wire(counts: Mapping[str, int]) -> int:
    """Bytes both ways, headers included."""
    return counts.get("up_wire_bytes", 0) + counts.get("down_wire_bytes", 0)


class _Watcher:
    """Reads what the device does from its files."""

    def __init__(self, cluster: Cluster, name: str, out: Path) -> None:
        self._out = out
        self._layout = Layout(parse(cluster.config(name).read_text(), name))
        self._ring = RingReader(self._layout.ring)
        self._return = 0.0
        self._acting, self._noted_ns = "", 0
        self.seq = 0
        self.began_s: float | None = None
        self.pace: list[tuple[float, int]] = []
        self.episodes: list[tuple[int, float]] = []
        self.copies = [Copy(0, 0.0, 0, str(self._keep(cluster.student, 0)))]

    def _keep(self, network: Path, transitions: int) -> Path:
        kept = self._out / "copies" / f"{transitions:08d}.edgert"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(network, kept)
        return kept

    @property
    def wall_s(self) -> float:
        return 0.0 if self.began_s is None else time.monotonic() - self.began_s

    def look(self) -> bool:
        """Take in what is new; was there anything?"""
        newest = self._ring.newest_seq()
        if newest <= self.seq:
            return False
        self.began_s = self.began_s or time.monotonic()
        records = self._ring.read(self.seq + 1, newest)
        for seq, reward, flags in zip(records.seq, records.reward, records.flags, strict=True):
            self._return += float(reward)
            if flags & (TERMINATED | TRUNCATED):
                self.episodes.append((int(seq), round(self._return, 4)))
                self._return = 0.0
        self.seq = newest
        if not self.pace or self.wall_s - self.pace[-1][0] >= 1:
            self.pace.append((round(self.wall_s, 3), newest))
        self._look_at_acting()
        return True

    def _look_at_acting(self) -> None:
        try:
            noted_ns = self._layout.acting.stat().st_mtime_ns
        except OSError:
            return
        if noted_ns == self._noted_ns:
            return
        acting, _ = noted_network(self._layout)
        if acting is None or acting.path == self._acting:
            self._noted_ns = noted_ns
            return
        path = acting.path
        try:
            manifest = bundle.read(Path(path).read_bytes()).manifest
        except (OSError, EdgertError):
            return  # between two networks; it will be there at the next look
        made: Any = manifest.provenance.get("trained_on_device", {})
        at = int(made.get("transitions", self.seq))
        if at <= self.copies[-1].transitions:  # it is put back
            at = self.seq
        self._acting, self._noted_ns = path, noted_ns
        wire = on_wire(counted(self._out))
        self.copies.append(Copy(at, round(self.wall_s, 3), wire, str(self._keep(Path(path), at))))


def status(cluster: Cluster, name: str) -> dict[str, Any]:
    """A device's own totals, by its socket and not by the link.

    Raises:
        LinkError: the supervisor does not answer.
    """
    channel = ipc.connect(cluster.run_dir(name) / "control.sock")
    if channel is None:
        raise LinkError(f"{name} does not answer at its socket")
    try:
        channel.send(StatusRequest())
        until_s = time.monotonic() + 10
        while time.monotonic() < until_s:
            channel.wait(0.2)
            for told in channel.receive():
                if isinstance(told, StatusReply):
                    return dict(told.status)
    finally:
        channel.close()
    raise LinkError(f"{name} says nothing of itself for 10 s")


def models(out: Path, game: str, student: Path, teacher: Path) -> Path:
    """A folder with the two bundles, named as `Cluster` wants them."""
    folder = out / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in ((f"{game}.edgert", student), (f"{game}-teacher.edgert", teacher)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(source.absolute())
    return folder


def live(
    game: str,
    *,
    student: Path,
    teacher: Path,
    steps: int,
    settings: Mapping[str, object],
    shape: Shape,
    seed: int,
    out: Path,
    faults: tuple[Fault, ...] = (),
) -> Run:
    """Let one device live for so many transitions.

    Args:
        game: key of `cluster.GAMES`.
        student: bundle it begins with.
        teacher: bundle of the teacher.
        steps: transitions.
        settings: dotted configuration keys.
        shape: of the link between the device and its broker; the teacher is beside the broker.
        seed: of the environment and of the link's losses.
        out: folder for copies and logs; emptied first.
        faults: in the order of their beginning.

    Returns:
        What came of it.

    Raises:
        LinkError, UsageError: it does not start, or stands still.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shape = msgspec.structs.replace(shape, seed=seed)
    # State on tmpfs: what is measured is not the disk of this machine.
    state = Path(tempfile.mkdtemp(prefix="edgert-rlink-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, state, ignore_errors=True)
        port = free_port()
        cluster = Cluster(
            state / "cluster",
            game,
            devices=1,
            broker="mosquitto",
            device_config={**settings, "broker.url": f"mqtt://127.0.0.1:{port}", "plant.seed": seed},
            models=models(out, game, student, teacher),
        )
        name = cluster.devices[0]
        stack.callback(_save_logs, cluster, out)
        stack.callback(cluster.stop)
        stack.enter_context(shaped(shape, port, cluster.port, out))
        cluster.start()
        watcher = _Watcher(cluster, name, out)
        _watch(cluster, watcher, steps, shape, faults, out)
        found = status(cluster, name)
        roles = [found.get(role) or {} for role in ("trainer", "actor", "supervisor")]
        cpu_s = sum(float(role.get("cpu_s") or 0.0) for role in roles)
        passed = counted(out)
        wall_s = watcher.wall_s
    return Run(
        watcher.seq, round(wall_s, 3), round(cpu_s, 2), watcher.pace, watcher.episodes, watcher.copies, passed, found
    )


def _save_logs(cluster: Cluster, out: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.copytree(cluster.out / "logs", out / "logs", dirs_exist_ok=True)


def _watch(cluster: Cluster, watcher: _Watcher, steps: int, shape: Shape, faults: tuple[Fault, ...], out: Path) -> None:
    """Until so many transitions have been recorded; what goes wrong on the way is done here."""
    now = shape
    moved_s = time.monotonic()
    ends_s: float | None = None
    waiting = list(faults)
    while watcher.seq < steps:
        cluster.poll()
        if watcher.look():
            moved_s = time.monotonic()
        elif time.monotonic() - moved_s > (STUCK_S if watcher.began_s else START_S):
            raise LinkError(
                f"{cluster.devices[0]} does nothing at transition {watcher.seq}: {cluster.tail('device-1')}"
            )
        while waiting and watcher.seq >= waiting[0].at:
            fault = waiting.pop(0)
            if fault.kind == "outage":
                now, ends_s = msgspec.structs.replace(now, blackhole=True), time.monotonic() + fault.lasts_s
            elif fault.kind == "reset":
                now = msgspec.structs.replace(now, resets=now.resets + 1)
            elif fault.kind == "broker" and cluster.broker is not None:
                os.kill(cluster.broker.pid, signal.SIGKILL)
            else:
                raise UsageError(f"no such fault: {fault}")
            reshape(out, now)
        if ends_s is not None and time.monotonic() >= ends_s:
            now, ends_s = msgspec.structs.replace(now, blackhole=False), None
            reshape(out, now)
        time.sleep(POLL_S)
