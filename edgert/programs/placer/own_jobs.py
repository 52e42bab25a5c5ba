"""This device's own training jobs: measured, placed, sent out, kept against the loss of a host, and judged at the end.

Where a job may run is decided elsewhere (`placement`); this has it run there. Whatever happens to a host, the job goes
on from the last state that came back; whatever happens to this device, it goes on from the last one on its disk.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert import wire
from edgert.errors import ArtifactError, StoreError, UsageError
from edgert.learn import split as splits
from edgert.learn.dqn import Batch, Learner
from edgert.placement.jobs import Job
from edgert.policy import artifact
from edgert.ports import ipc, shards
from edgert.ports.store import Generations, store_error, write_atomic
from edgert.programs.placer.host import OWNER, Tell, WorkerProcess
from edgert.programs.placer.job_options import read_cuts, read_hyper
from edgert.programs.placer.record import Record

AGAIN_S = 2.0
HISTORY = 64
KEPT = 32
"""Ended jobs that are remembered."""
ENDED = ("done", "refused", "failed")
FAILURES = 20
"""Attempts that began and broke off, after which a job is given up."""
ROOM_WAIT_S = 60.0
UNMEASURED_BYTES = 64e6
"""Of a job that nobody has measured yet: mostly the interpreter and its libraries."""
SILENT_S = 10.0
"""Without a word of a host it is taken to be lost; it speaks once a second."""

log = logging.getLogger("edgert.placer")


class Running:
    """An attempt that began."""

    def __init__(self, works: list[wire.PlaceWork], now_s: float) -> None:
        """All hosts are still to be told."""
        self.works = works
        self.states: dict[int, wire.PlaceState] = {}
        self.heard_s = dict.fromkeys(range(len(works)), now_s)
        self.said_s = 0.0
        self.going = False
        self.progress: tuple[int, ...] = ()
        self.progress_s = now_s
        self.began_s = now_s
        self.unpacking = shards.Unpacking()
        self.arrays: dict[int, dict[int, dict[str, Any]]] = {}


class OwnJobs:
    """The jobs of one device.

    Attributes:
        records: by id.

    Blocks: while it reads and writes files.
    """

    def __init__(
        self,
        me: str,
        folder: Path,
        selector: selectors.BaseSelector,
        tell: Tell,
        offer_chunks: Callable[[wire.PolicyOffer, bytes], None],
        *,
        speed: float,
        stall_s: float,
        room: Callable[[float], bool] = lambda _: True,
        acting: Callable[[], str] = str,
    ) -> None:
        """Find what is there; what was running is waiting again.

        Args:
            me: this device.
            folder: of jobs; `files` in it holds files by their hash.
            selector: it wakes with the channel of a `WorkerProcess`.
            tell: sends a message to a device.
            offer_chunks: makes a file available to hosts.
            speed: of a core here.
            stall_s: without progress for so long an attempt is given up.
            room: are so many bytes of memory free here, beside what jobs of others hold?
            acting: file of the network that acts here, empty for the installed one.

        Raises:
            StoreError: the folder cannot be made or read.
        """
        self.me, self.folder, self.files = me, folder, folder / "files"
        self.selector, self.tell, self.offer_chunks = selector, tell, offer_chunks
        self.speed, self.stall_s, self.room, self.acting = speed, stall_s, room, acting
        self.records: dict[str, Record] = {}
        self.running: dict[str, Running] = {}
        self.lines: dict[ipc.Channel, tuple[str, WorkerProcess]] = {}
        self.changed: set[str] = set()
        self.retry_s: dict[str, float] = {}
        self.failed: list[tuple[str, str]] = []
        self.waits_s: dict[str, float] = {}
        try:
            self.files.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = sorted(folder.glob("*/record.json"))
        except OSError as error:
            raise store_error(error, "make", folder) from error
        for path in found:
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.MsgspecError) as error:
                log.error("%s: %s: this job is forgotten", path, error)
                continue
            self.records[record.id] = record
            if record.state not in ENDED:
                self.note(record, "restarted", {})
                done = record.measured and record.step >= record.steps
                record.state = "judging" if done else "waiting" if record.measured else "new"
            self.changed.add(record.id)

    def note(self, record: Record, what: str, detail: dict[str, Any]) -> None:
        """Remember what happened, on the disk and for whoever asks."""
        if what == "checkpoint" and record.history and record.history[-1]["what"] == what:
            record.history.pop()  # of a row of them the last one says enough
        record.history.append({"at_s": round(time.time(), 3), "what": what, **detail})
        if len(record.history) > HISTORY:
            record.history = record.history[:4] + record.history[-(HISTORY - 4) :]
        self.keep(record)

    def keep(self, record: Record) -> None:
        """Write a job down; a disk that takes nothing costs what a restart would remember."""
        self.changed.add(record.id)
        try:
            (self.folder / record.id).mkdir(mode=0o700, exist_ok=True)
            write_atomic(self.folder / record.id / "record.json", msgspec.json.encode(record))
        except (OSError, StoreError) as error:
            log.error("job %s: not written down: %s", record.id, error)

    def message(self, record: Record) -> wire.PlaceJob:
        """What others are told of a job."""
        return wire.PlaceJob(
            id=record.id,
            owner=self.me,
            state=record.state,
            why=record.why[:500],
            attempt=record.attempt,
            step=record.step,
            steps=record.steps,
            nodes=record.nodes,
            history=tuple(record.history),
            result=record.result,
        )

    def submit(self, submitted: wire.PlaceSubmit, bundle: bytes, shard: bytes, at_s: float) -> str:
        """Take a job on; why not, or empty. Submitted again it changes nothing.

        Raises:
            StoreError: it cannot be written down.
        """
        if submitted.id in self.records:
            return ""
        try:
            policy = artifact.load(bundle)
            batch = shards.unpack_shard(shard)
            hyper = read_hyper(submitted.hyper)
            cuts, measured = read_cuts(submitted.cuts, policy.spec.n_exits)
        except (ArtifactError, UsageError) as error:
            return str(error)
        if batch.obs.shape[1:] != tuple(policy.spec.input_shape) or batch.teacher_q.shape[1] != policy.spec.n_actions:
            held = f"{batch.obs.shape[1:]} and {batch.teacher_q.shape[1]} actions"
            return f"the shard holds {held}: not what the bundle sees"
        if policy.manifest.kind != "q":
            return "only bundles of kind q are trained elsewhere"
        n_held = int(shards.held_out(batch).sum())
        if n_held < 2 or n_held == len(batch.action):
            return f"{len(batch.action)} transitions, of which {n_held} are held out: too few to train and to judge"
        self._sweep()
        record = Record(
            id=submitted.id,
            steps=submitted.steps,
            batch=submitted.batch,
            checkpoint_steps=submitted.checkpoint_steps,
            split=submitted.split,
            hyper=msgspec.to_builtins(hyper),
            bundle=shards.keep(self.files, bundle).stem,
            shard=shards.keep(self.files, shard).stem,
            born_at_s=at_s,
            due_at_s=None if submitted.due_s is None else at_s + submitted.due_s,
            state="waiting" if measured else "new",
            cuts=cuts,
            measured=measured,
        )
        self.records[record.id] = record
        self.note(record, "submitted", {"steps": record.steps, "rows": len(batch.action)})
        return ""

    def _sweep(self) -> None:
        """Forget the oldest ended jobs; files that nobody names any more go with them."""
        ended = [record for record in self.records.values() if record.state in ENDED]
        for record in sorted(ended, key=lambda each: each.born_at_s)[: max(0, len(ended) - KEPT)]:
            del self.records[record.id]
            for path in (self.folder / record.id).glob("*"):
                path.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Of a file."""
        return self.files / f"{sha256}.edgert"

    def _order(self, record: Record, kind: str, **more: object) -> dict[str, object]:
        common = {"job": record.id, "kind": kind, "hyper": record.hyper, "batch": record.batch, "steps": record.steps}
        return {**common, "checkpoint_steps": record.checkpoint_steps, **more}

    def _spawn(self, record: Record, order: dict[str, object]) -> None:
        line = WorkerProcess(order)
        self.lines[line.channel] = record.id, line
        self.selector.register(line.channel, selectors.EVENT_READ)

    def _mend(self, record: Record, doing: Callable[[], None]) -> None:
        """Do something with files; what is wrong with them ends the job."""
        try:
            doing()
        except (ArtifactError, StoreError, UsageError) as error:
            self.end(record, "failed", str(error))

    def turn(self, now_s: float) -> None:
        """What time brings."""
        for record in list(self.records.values()):
            if record.state == "judging" and record.id not in self.begun and self._may_begin(record, now_s):
                self._mend(record, partial(self._judge, record))
            if record.state == "new" and self._may_begin(record, now_s):
                record.state = "measuring"
                more = {
                    "bundle": str(self.path(record.bundle)),
                    "shard": str(self.path(record.shard)),
                    "split": record.split,
                }
                self._mend(record, partial(self._spawn, record, self._order(record, "measure", **more)))
                self.changed.add(record.id)
        for id_, running in list(self.running.items()):
            self._chase(self.records[id_], running, now_s)
        for _, line in list(self.lines.values()):
            line.flush()

    def waiting(self, now_s: float) -> list[Record]:
        """Jobs that want a place now, the oldest first."""
        due = [r for r in self.records.values() if r.state == "waiting" and now_s >= self.retry_s.get(r.id, 0.0)]
        return sorted(due, key=lambda record: (record.born_at_s, record.id))

    def job(self, record: Record, now_s: float, at_s: float) -> Job:
        """A job as agents and shields see it."""
        ship = sum(path.stat().st_size for path in (self.path(record.bundle), self.path(record.shard)) if path.exists())
        return Job(
            id=record.id,
            owner=self.me,
            splits=record.measured,
            steps=max(1, record.steps - record.step),
            ship_bytes=ship,
            due_s=None if record.due_at_s is None else record.due_at_s - at_s + now_s,
            born_s=record.born_at_s - at_s + now_s,
        )

    def asking(self, record: Record, nodes: tuple[str, ...], split: int) -> int:
        """An agent proposes a place: the attempt that this is, written down before anybody hears of it."""
        record.attempt += 1
        record.state, record.why = "asking", ""
        measured = record.measured[split]
        said = {"attempt": record.attempt, "nodes": list(nodes), "kind": measured.kind, "cut": list(record.cuts[split])}
        self.note(record, "proposed", said)
        return record.attempt

    def again(self, record: Record, why: str, now_s: float, *, ran: bool = False, wait_s: float = AGAIN_S) -> None:
        """An attempt came to nothing, or broke off: the job wants another place."""
        self.running.pop(record.id, None)
        record.nodes = ()
        if record.state in ENDED:
            return
        record.failures += ran
        record.state, record.why = "waiting", why
        self.retry_s[record.id] = now_s + wait_s
        self.note(
            record, "broke-off" if ran else "not-placed", {"attempt": record.attempt, "why": why, "step": record.step}
        )
        if record.failures >= FAILURES:
            self.end(record, "failed", f"{record.failures} attempts broke off, the last: {why}")

    def end(self, record: Record, state: str, why: str) -> None:
        """A job is over."""
        self.running.pop(record.id, None)
        record.state, record.why, record.nodes = state, why, ()
        self.note(record, state, {"why": why} if why else {})

    def begin(self, record: Record, split: int, nodes: tuple[str, ...], now_s: float, *, alone: bool) -> None:
        """All parts have their places: send out what they need. `alone`: no shield was asked."""
        record.state, record.nodes = "starting", nodes
        measured, edges = record.measured[split], record.cuts[split]
        self.note(record, "granted", {"attempt": record.attempt, "nodes": list(nodes), "alone": alone})
        self._mend(record, lambda: self._send_out(record, measured.kind, edges, nodes, now_s))

    def _send_out(
        self, record: Record, kind: str, edges: tuple[int, ...], nodes: tuple[str, ...], now_s: float
    ) -> None:
        (packed,) = shards.read_files([self.path(record.shard)])
        batch = shards.unpack_shard(packed)
        usable = shards.pick(batch, ~shards.held_out(batch))
        workers = len(nodes) if kind == "data" else 1
        dealt: list[Batch] = [shards.pick(usable, slice(k, None, workers)) for k in range(workers)]
        shares = [shards.keep(self.files, shards.pack_shard(each)) for each in dealt]
        state = self._checkpoint(record)
        common = [self.path(record.bundle)] + ([state] if state else [])
        works = []
        for part in range(len(nodes)):
            share = shares[part] if kind == "data" else shares[0] if part == 0 else None
            paths = common + ([share] if share else [])
            contents = shards.read_files(paths)
            offers = [
                shards.offer(name, data, id_=record.id)
                for name, data in zip(
                    ("bundle", "state", "shard") if state else ("bundle", "shard"), contents, strict=False
                )
            ]
            order = self._order(
                record,
                kind,
                part=part,
                parts=len(nodes),
                edges=list(edges),
                bundle=record.bundle,
                shard=share.stem if share else "",
                state=state.stem if state else "",
                seed=int.from_bytes(record.id.encode()[-4:], "big"),
                rows=[len(each.action) for each in dealt],
                told=[each.taught.astype(np.uint8).tobytes() for each in dealt] if kind == "data" else [],
            )
            if nodes[part] != self.me:
                for offer, data in zip(offers, contents, strict=True):
                    self.offer_chunks(offer, data)
            works.append(
                wire.PlaceWork(
                    job=record.id, attempt=record.attempt, part=part, order=order, files=tuple(offers), hosts=nodes
                )
            )
        self.running[record.id] = Running(works, now_s)

    def _generations(self, record: Record) -> Generations:
        return Generations(self.folder / record.id)

    def _checkpoint(self, record: Record) -> Path | None:
        """The last state as a file by its hash; None before the first."""
        found = self._generations(record).latest()
        return None if found is None else shards.keep(self.files, found[1])

    def _chase(self, record: Record, running: Running, now_s: float) -> None:
        """Say again what a host did not hear, begin when all are ready, and give up what does not move."""
        parts = range(len(running.works))
        states = [running.states.get(k) for k in parts]
        if now_s >= running.said_s:
            running.said_s = now_s + AGAIN_S
            for work, state in zip(running.works, states, strict=True):
                if state is None:
                    self.tell(work.hosts[work.part], work)
            if running.going and any(state is not None and state.state == "ready" for state in states):
                running.going = False
        if not running.going and all(
            state is not None and state.state in ("ready", "running", "done") for state in states
        ):
            running.going = True
            if record.state != "running":
                record.state = "running"
                self.note(record, "running", {"attempt": record.attempt, "after_s": round(now_s - running.began_s, 3)})
            for host in dict.fromkeys(running.works[0].hosts):
                self.tell(host, wire.PlaceGo(job=record.id, attempt=record.attempt))
        progress = tuple(0 if state is None else state.step + state.have_bytes for state in states)
        if progress != running.progress:
            running.progress, running.progress_s = progress, now_s
        silent = [running.works[k].hosts[k] for k in parts if now_s - running.heard_s[k] > SILENT_S]
        if silent:
            self.failed.append((record.id, f"nothing was heard of {', '.join(dict.fromkeys(silent))}"))
        elif now_s - running.progress_s > self.stall_s:
            self.failed.append((record.id, f"no progress in {self.stall_s:g} s"))

    def state(self, sender: str, said: wire.PlaceState, now_s: float) -> None:
        """A host says where a part stands."""
        running, record = self.running.get(said.job), self.records.get(said.job)
        if running is None or record is None or said.attempt != record.attempt or said.part not in running.heard_s:
            return
        if running.works[said.part].hosts[said.part] != sender:
            return
        running.states[said.part], running.heard_s[said.part] = said, now_s
        if said.state == "failed":
            self.failed.append((record.id, f"{sender}: {said.why}"))
        elif said.part == 0 and said.step > record.step:
            self.changed.add(record.id)

    def gone(self, node: str) -> None:
        """The broker has lost a device: whatever ran there does not any more, as far as anybody knows."""
        for id_, running in self.running.items():
            if node in running.works[0].hosts:
                self.failed.append((id_, f"{node} is gone"))

    def take_failed(self) -> list[tuple[str, str]]:
        """Jobs whose attempt has failed, and why, since the last call."""
        failed, self.failed = dict(reversed(self.failed)), []
        return list(failed.items())

    def data(self, sender: str, said: wire.PlaceData, now_s: float) -> bool:
        """A state came back, in part; True when it was the last one, and the job's hosts are needed no more."""
        running, record = self.running.get(said.job), self.records.get(said.job)
        if running is None or record is None or said.attempt != record.attempt or said.to != OWNER:
            return False
        if not 0 <= said.of < len(running.works) or running.works[said.of].hosts[said.of] != sender:
            return False
        running.heard_s[said.of] = now_s
        running.progress_s = now_s
        parcel = shards.Parcel(
            kind=said.kind, of=said.of, to=said.to, step=said.step, index=said.index, count=said.count, data=said.data
        )
        whole = running.unpacking.add(parcel)
        if whole is None or whole.kind not in ("state", "result"):
            return False
        try:
            return self._came_back(record, running, whole)
        except (ArtifactError, StoreError, UsageError) as error:
            self.failed.append((record.id, str(error)))
            return False

    def _came_back(self, record: Record, running: Running, whole: shards.Whole) -> bool:
        arrays, steps = shards.unpack_state(whole.data)
        of_step = running.arrays.setdefault(steps, {})
        of_step[whole.of] = arrays
        layers = running.works[0].order["kind"] == "layers"
        needed = len(running.works) if layers else 1
        if len(of_step) < needed or steps <= record.step:
            return False
        if layers:
            policy = artifact.load(shards.read_files([self.path(record.bundle)])[0])
            learner = Learner(policy.params)
            edges = [int(edge) for edge in running.works[0].order["edges"]]  # type: ignore[attr-defined]  # made above
            for k, cut in enumerate(splits.cut(policy.spec, edges)):
                splits.put(learner, cut, of_step[k], steps)
            arrays = learner.arrays()
        self._generations(record).commit(shards.pack_state(arrays, steps))
        record.step = steps
        running.arrays = {step: each for step, each in running.arrays.items() if step > steps}
        if steps < record.steps:
            self.note(record, "checkpoint", {"step": steps})
            return False
        self.running.pop(record.id)
        record.state, record.nodes = "judging", ()
        self.note(record, "trained", {"step": steps})
        return True

    def _judge(self, record: Record) -> None:
        more = {"bundle": str(self.path(record.bundle)), "shard": str(self.path(record.shard))}
        more |= {"state": str(self._checkpoint(record)), "result": str(self.folder / record.id / "result.edgert")}
        more |= {"acting": self.acting() if record.install else ""}
        self._spawn(record, self._order(record, "judge", **more))

    def take(self, record: Record) -> None:
        """What a job gave is to act here: the gate looks once more, by what acts now."""
        if record.state == "done" and not record.install:
            record.install, record.state = True, "judging"
            self.note(record, "taken", {})

    def _may_begin(self, record: Record, now_s: float) -> bool:
        """Measuring and judging take memory as well: they wait a while for what others' jobs hold here."""
        since_s = self.waits_s.setdefault(record.id, now_s)
        return not self.begun and (self.room(self.needed(record)) or now_s - since_s > ROOM_WAIT_S)

    @staticmethod
    def needed(record: Record) -> float:
        """Bytes of memory to measure or to judge a job."""
        return record.measured[0].parts[0].memory_bytes if record.measured else UNMEASURED_BYTES

    @property
    def begun(self) -> set[str]:
        """Jobs that are being measured or judged here."""
        return {id_ for id_, _ in self.lines.values()}

    @property
    def held_bytes(self) -> float:
        """What measuring and judging hold of the memory that is there for jobs."""
        return sum(self.needed(self.records[id_]) for id_ in self.begun)

    def hear(self, channel: ipc.Channel) -> None:
        """A process that measures or judges has said something, or has gone."""
        if channel not in self.lines:
            return
        id_, line = self.lines[channel]
        record = self.records[id_]
        for said in channel.receive_maps():
            match said.get("t"):
                case "measured":
                    self._measured(record, said)
                case "verdict":
                    self._judged(record, said)
                case "failed":
                    self.end(record, "failed", str(said.get("why")))
                case _:
                    pass
        if channel.closed:
            self.selector.unregister(channel) if channel in {
                k.fileobj for k in self.selector.get_map().values()
            } else None
            del self.lines[channel]
            self.waits_s.pop(id_, None)
            line.process.wait()
            if record.state in ("measuring", "judging"):
                # Killed, perhaps for want of memory: another one does better later.
                record.state = "new" if record.state == "measuring" else record.state
                record.failures += 1
                if record.failures >= FAILURES:
                    self.end(record, "failed", f"its process ended with {line.process.returncode}")

    def _measured(self, record: Record, said: dict[str, object]) -> None:
        found = msgspec.convert(said["splits"], tuple[dict[str, object], ...])
        record.cuts, measured = read_cuts(found, 64)
        record.measured = tuple(
            msgspec.structs.replace(
                each,
                parts=tuple(
                    msgspec.structs.replace(part, compute_core_s=part.compute_core_s * self.speed)
                    for part in each.parts
                ),
            )
            for each in measured
        )
        record.state = "waiting"
        one = record.measured[0].parts[0]
        self.note(
            record, "measured", {"step_core_s": round(one.compute_core_s, 6), "memory_bytes": int(one.memory_bytes)}
        )

    def _judged(self, record: Record, said: dict[str, object]) -> None:
        record.result = {name: said[name] for name in ("checks", "detail", "path")}
        failed = [name for name, passed in dict(said["checks"]).items() if not passed]  # type: ignore[call-overload]  # own
        self.end(record, "refused" if failed else "done", ", ".join(failed))

    def used_files(self) -> set[str]:
        """Hashes of files that jobs still need."""
        return {name for r in self.records.values() if r.state not in ENDED for name in (r.bundle, r.shard)}

    def shown(self) -> list[dict[str, object]]:
        """For the status."""
        return [
            {
                "job": record.id,
                "state": record.state,
                "step": self.step(record),
                "steps": record.steps,
                "nodes": list(record.nodes),
            }
            for record in self.records.values()
            if record.state not in ENDED
        ]

    def step(self, record: Record) -> int:
        """Steps taken, as far as anybody has said."""
        running = self.running.get(record.id)
        said = running.states.get(0) if running is not None else None
        return max(record.step, said.step if said is not None else 0)

    def close(self) -> None:
        """Leave nothing running."""
        for _, line in self.lines.values():
            line.end()
