"""Parts of others' jobs on this device: their files, their processes, and what goes between them and elsewhere.

Nothing is started here but what this device's own books (`placement.keeper`) say may run.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgert import wire
from edgert.errors import ArtifactError, StoreError
from edgert.fleet import fetch
from edgert.offers import Arrived, Ask, Keep, Kept, Leave
from edgert.ports import fetch as files
from edgert.ports import ipc
from edgert.ports.shards import Parcel
from edgert.programs.placer.transport import chunk_topic

RULES = fetch.Rules(window=4, steady=0, patience_s=5.0, patience_cap_s=60.0)
SAY_S = 1.0
OWNER = -1
Tell = Callable[[str, msgspec.Struct], None]
"""Sends a message to a device, this one included."""

log = logging.getLogger("edgert.placer")


class WorkerProcess:
    """A process that works on one part, and the socket to it.

    Attributes:
        channel: to it; closed when it is gone.
    """

    def __init__(self, order: dict[str, object]) -> None:
        """Start it.

        Raises:
            StoreError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "edgert.programs.placer.worker", "--fd", str(theirs.fileno())]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        except OSError as error:
            ours.close()
            raise StoreError(f"a part's process cannot be started: {error}") from error
        finally:
            theirs.close()
        self.channel = ipc.Channel(ours)
        self._waiting: deque[dict[str, object]] = deque()
        self.send(order)

    def send(self, message: dict[str, object]) -> None:
        """Say something, at once or as soon as there is room."""
        self._waiting.append(message)
        self.flush()

    def flush(self) -> None:
        """Say what waits."""
        self.channel.flush()
        while self._waiting and self.channel.send_map(self._waiting[0]):
            self._waiting.popleft()

    def end(self) -> int | None:
        """Kill it; what it was killed by before, as an exit code, or None."""
        self.channel.close()
        code = self.process.poll()
        if code is None:
            self.process.kill()
        self.process.wait()
        return code


class Fetching:
    """A file on its way here."""

    def __init__(self, folder: Path, offer: wire.PolicyOffer) -> None:
        """See what is there already."""
        self.part = files.Part(folder, offer)
        self.state = fetch.begin(offer, self.part.there())
        self.path: Path | None = None
        self.have_bytes = offer.size_bytes - self.state.left_bytes

    def step(self, event: fetch.Event, now_s: float) -> list[Ask | Leave]:
        """Advance; what to ask the broker for.

        Raises:
            ArtifactError, StoreError: the file cannot be had.
        """
        asks: list[Ask | Leave] = []
        events = deque([event])
        while events:
            self.state, effects = fetch.step(self.state, events.popleft(), now_s, RULES)
            for effect in effects:
                if isinstance(effect, Keep):
                    self.part.keep(effect.index, effect.data)
                    events.append(Kept(effect.index))
                elif isinstance(effect, Ask | Leave):
                    asks.append(effect)
        self.have_bytes = self.state.offer.size_bytes - self.state.left_bytes
        if self.state.whole and self.path is None:
            self.path = self.part.finish()
        if self.state.stopped:
            raise ArtifactError(f"{self.state.offer.name}: {self.state.stopped}")
        return asks


class Hosted:
    """One part here.

    Attributes:
        work: what its owner wants.
        owner: its device.
        state, why: as its owner is told.
    """

    def __init__(self, work: wire.PlaceWork, owner: str) -> None:
        """Nothing is done yet."""
        self.work, self.owner = work, owner
        self.state = "fetching"
        self.why = ""
        self.step = self.rss_bytes = 0
        self.cpu_s = 0.0
        self.fetching: dict[str, Fetching] = {}
        self.line: WorkerProcess | None = None
        self.going = False
        self.said_s = 0.0

    def message(self) -> wire.PlaceState:
        """Where it stands."""
        work = self.work
        return wire.PlaceState(
            job=work.job,
            attempt=work.attempt,
            part=work.part,
            state=self.state,  # type: ignore[arg-type]  # only the states of `wire` are ever set
            step=self.step,
            have_bytes=sum(each.have_bytes for each in self.fetching.values()),
            rss_bytes=self.rss_bytes,
            cpu_s=self.cpu_s,
            why=self.why[:500],
        )


class Host:
    """All parts here.

    Blocks: while it writes and hashes files.
    """

    def __init__(
        self,
        me: str,
        folder: Path,
        selector: selectors.BaseSelector,
        tell: Tell,
        subscribe: Callable[[list[str], list[str]], None],
        fleet: str,
    ) -> None:
        """Nothing runs yet.

        Args:
            me: this device.
            folder: for files, by their hash.
            selector: it wakes with a `WorkerProcess`'s channel.
            tell: sends a message to a device.
            subscribe: topics to hear from now on, and no more.
            fleet: of this device.
        """
        self.me, self.folder, self.selector, self.tell, self.subscribe, self.fleet = (
            me,
            folder,
            selector,
            tell,
            subscribe,
            fleet,
        )
        self.allowed: dict[tuple[str, int], tuple[str, tuple[int, ...]]] = {}
        self.parts: dict[tuple[str, int, int], Hosted] = {}
        self.lines: dict[ipc.Channel, Hosted] = {}
        self.up = False

    def allow(self, job: str, attempt: int, owner: str, parts: tuple[int, ...]) -> None:
        """The books say that these may run."""
        self.allowed[job, attempt] = owner, parts

    def stop(self, job: str, attempt: int) -> None:
        """The books say that they may not run any more."""
        self.allowed.pop((job, attempt), None)
        for key in [key for key in self.parts if key[:2] == (job, attempt)]:
            self._end(self.parts.pop(key))

    def _end(self, hosted: Hosted) -> None:
        if hosted.line is not None:
            self._forget_line(hosted)
        leave = [
            self._topic(hosted.owner, each.state.offer, k)
            for each in hosted.fetching.values()
            for k in each.state.asked
        ]
        hosted.fetching = {}
        if leave:
            self.subscribe([], leave)

    def _forget_line(self, hosted: Hosted) -> int | None:
        assert hosted.line is not None
        if not hosted.line.channel.closed:
            self.selector.unregister(hosted.line.channel)
        self.lines = {channel: each for channel, each in self.lines.items() if each is not hosted}
        code = hosted.line.end()
        hosted.line = None
        return code

    def work(self, sender: str, work: wire.PlaceWork, now_s: float) -> None:
        """An owner wants a part done; said again, it is answered again."""
        key = work.job, work.attempt, work.part
        known = self.parts.get(key)
        if known is not None:
            if known.owner == sender:
                self.tell(sender, known.message())
            return
        owner, parts = self.allowed.get((work.job, work.attempt), ("", ()))
        if owner != sender or work.part not in parts or work.hosts[work.part] != self.me:
            return  # the books know nothing of it (any more): late, or twice
        hosted = Hosted(work, sender)
        self.parts[key] = hosted
        try:
            hosted.fetching = {offer.sha256: Fetching(self.folder, offer) for offer in work.files}
        except StoreError as error:
            self._fail(hosted, str(error))
            return
        self._fetch(hosted, fetch.Up() if self.up else fetch.Down(), now_s)
        self.tell(sender, hosted.message())

    def _topic(self, owner: str, offer: wire.PolicyOffer, index: int) -> str:
        return chunk_topic(self.fleet, owner, offer.sha256, index)

    def _fetch(self, hosted: Hosted, event: fetch.Event, now_s: float, only: str = "") -> None:
        ask, leave = list[str](), list[str]()
        try:
            for sha256, each in hosted.fetching.items():
                if each.path is None and only in ("", sha256):
                    for effect in each.step(event, now_s):
                        (ask if isinstance(effect, Ask) else leave).append(
                            self._topic(hosted.owner, each.state.offer, effect.index)
                        )
        except (ArtifactError, StoreError) as error:
            self._fail(hosted, str(error))
        if ask or leave:
            self.subscribe(ask, leave)
        if hosted.state == "fetching" and all(each.path is not None for each in hosted.fetching.values()):
            self._start(hosted)

    def _start(self, hosted: Hosted) -> None:
        order = dict(hosted.work.order)
        for name in ("bundle", "shard", "state"):
            if order.get(name):
                fetching = hosted.fetching.get(str(order[name]))
                if fetching is None:
                    self._fail(hosted, f"{name}: no such file in the order")
                    return
                order[name] = str(fetching.path)
        try:
            hosted.line = WorkerProcess(order)
        except StoreError as error:
            self._fail(hosted, str(error))
            return
        hosted.state = "starting"
        self.lines[hosted.line.channel] = hosted
        self.selector.register(hosted.line.channel, selectors.EVENT_READ)

    def _fail(self, hosted: Hosted, why: str) -> None:
        log.warning("job %s, part %d: %s", hosted.work.job, hosted.work.part, why)
        hosted.state, hosted.why = "failed", why
        self._end(hosted)
        self.tell(hosted.owner, hosted.message())

    def give_up(self, why: str) -> None:
        """Nothing of others may run here any more; their owners are told at once."""
        for hosted in self.parts.values():
            if hosted.state not in ("failed", "done"):
                self._fail(hosted, why)

    def go(self, sender: str, go: wire.PlaceGo) -> None:
        """All parts of a job are ready."""
        for (job, attempt, _), hosted in self.parts.items():
            if (job, attempt) == (go.job, go.attempt) and hosted.owner == sender and hosted.line and not hosted.going:
                hosted.going = True
                hosted.line.send({"t": "go"})

    def chunk(self, name: str, data: bytes, now_s: float) -> None:
        """A chunk of a file came; `name` is the last segment of its topic."""
        for hosted in list(self.parts.values()):
            for sha256, each in list(hosted.fetching.items()):
                index = fetch.index_of(name, each.state.offer)
                if index is not None and each.path is None:
                    self._fetch(hosted, Arrived(index, data), now_s, sha256)

    def link(self, up: bool, now_s: float) -> None:
        """The link came up or went down."""
        self.up = up
        for hosted in list(self.parts.values()):
            self._fetch(hosted, fetch.Up() if up else fetch.Down(), now_s)

    def data(self, sender: str, said: wire.PlaceData) -> None:
        """Another part says something to one of those here."""
        hosted = self.parts.get((said.job, said.attempt, said.to))
        if hosted is None or hosted.line is None or not 0 <= said.of < len(hosted.work.hosts):
            return
        if hosted.work.hosts[said.of] == sender:
            parcel = [said.kind, said.of, said.to, said.step, said.micro, said.index, said.count, said.data]
            hosted.line.send({"t": "parcel", "parcel": parcel})

    def hear(self, channel: ipc.Channel) -> None:
        """A part's process has said something, or has gone."""
        hosted = self.lines.get(channel)
        if hosted is None or hosted.line is None:
            return
        for said in channel.receive_maps():
            self._hear(hosted, said)
        if channel.closed and hosted.line is not None:
            self.selector.unregister(channel) if channel in self._registered() else None
            self.lines.pop(channel, None)
            hosted.line.process.wait()
            code = hosted.line.process.returncode
            hosted.line = None
            if hosted.state not in ("done", "failed"):
                killed = " (killed, as a machine without memory does)" if code == -9 else ""
                self._fail(hosted, f"its process ended with {code}{killed}")

    def _registered(self) -> set[object]:
        return {key.fileobj for key in self.selector.get_map().values()}

    def _hear(self, hosted: Hosted, said: dict[str, object]) -> None:
        work = hosted.work
        match said.get("t"):
            case "ready":
                hosted.state = "ready"
                self.tell(hosted.owner, hosted.message())
            case "state":
                hosted.step, hosted.rss_bytes = int(str(said["step"])), int(str(said["rss_bytes"]))
                hosted.cpu_s = float(str(said["cpu_s"]))
                if hosted.going:
                    hosted.state = "running"
            case "failed":
                self._fail(hosted, str(said.get("why")))
            case "parcel":
                parcel = msgspec.convert(said.get("parcel"), Parcel, builtin_types=(bytes,))
                to = hosted.owner if parcel.to == OWNER else work.hosts[parcel.to]
                message = wire.PlaceData(
                    job=work.job,
                    attempt=work.attempt,
                    kind=parcel.kind,  # type: ignore[arg-type]  # the process is our own
                    of=parcel.of,
                    to=parcel.to,
                    step=parcel.step,
                    micro=parcel.micro,
                    index=parcel.index,
                    count=parcel.count,
                    data=parcel.data,
                )
                self.tell(to, message)
            case _:
                pass

    def turn(self, now_s: float) -> None:
        """What time brings: reports, and chunks asked for again."""
        for hosted in list(self.parts.values()):
            if hosted.line is not None:
                hosted.line.flush()
            if any(each.path is None for each in hosted.fetching.values()):
                self._fetch(hosted, fetch.Tick(), now_s)
            if now_s >= hosted.said_s:
                hosted.said_s = now_s + SAY_S
                self.tell(hosted.owner, hosted.message())

    def shown(self) -> list[dict[str, object]]:
        """For the status."""
        return [
            {"job": job, "part": part, "state": hosted.state, "step": hosted.step, "owner": hosted.owner}
            for (job, _, part), hosted in self.parts.items()
        ]

    def close(self) -> None:
        """Leave nothing running."""
        for hosted in self.parts.values():
            with contextlib.suppress(OSError):
                self._end(hosted)
