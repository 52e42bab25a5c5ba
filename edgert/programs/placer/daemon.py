"""The placer: offers this device to training jobs of others, and finds places for its own.

It has a link of its own: what jobs move must not pass through the supervisor, whose loop feeds the watchdog. It decides
nothing by itself either: `placement` says who may run what where, `host` runs it, `own_jobs` keeps this device's own.
It obeys the budget: without room for jobs none is taken on, and what runs is given back when training must stop.
"""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections import deque
from pathlib import Path

import msgspec

from edgert import wire
from edgert.config import Config
from edgert.errors import MessageError
from edgert.fleet import fetch
from edgert.placement import keeper, owner, protocol, regions
from edgert.placement.jobs import HOST, Proposal, Verdict, footprint, urgency
from edgert.placement.load import Capacity, Load
from edgert.placement.protocol import (
    Alive,
    Commit,
    Held,
    Judged,
    Propose,
    Region,
    Release,
    Report,
    Reserve,
    Send,
    Tick,
    Times,
    Vote,
)
from edgert.ports import ipc
from edgert.ports.credentials import address_of
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received
from edgert.ports.process import Layout, Parent, Stopping, run_role, usage
from edgert.programs.placer import results
from edgert.programs.placer.host import Host
from edgert.programs.placer.own_jobs import AGAIN_S, ENDED, OwnJobs
from edgert.programs.placer.policy import PlacementPolicy
from edgert.programs.placer.record import Record
from edgert.programs.placer.submission import Submissions
from edgert.programs.placer.transport import Message, Outgoing, Transport, reasons_text, speaker
from edgert.values import Budget, Happened, ServiceReport, Stop

PAUSE_S = 0.2
REPORT_S = 1.0
QUEUE_BYTES = 4 << 20
BACKLOG_BYTES = 8 << 20
"""Beyond this nothing more is taken from the parts here: they wait, and those they work with."""
GIVE_UP_S = 30.0
"""Training that must stop for so long is better done elsewhere."""
PLACING_EXPIRY_S, DATA_EXPIRY_S, CHUNK_EXPIRY_S, JOB_EXPIRY_S = 15, 120, 3600, 30 * 86_400
REPLAY_ROWS = 4000
BEATS_MISSED = 3.5
"""Of a shield or a node, after which nothing that it said counts any more."""
HEAD = "head"
"""Instead of a region: whoever chooses for all is asked, and not a shield."""
TYPES: dict[type[msgspec.Struct], str] = {
    Report: "load",
    Alive: "load",
    Propose: "propose",
    Judged: "grant",
    Reserve: "grant",
    Vote: "grant",
    Commit: "grant",
    Held: "grant",
    Release: "release",
    wire.PlaceWork: "work",
    wire.PlaceGo: "work",
    wire.PlaceState: "state",
    wire.PlaceData: "data",
}
log = logging.getLogger("edgert.placer")


class Placer:
    """One device's part in the placing. See the module's text."""

    def __init__(self, config: Config, layout: Layout) -> None:
        """Open the link and find this device's jobs.

        Raises:
            ConfigError, ArtifactError, StoreError: with what to do about it.
        """
        self.config, self.layout = config, layout
        self.me, self.fleet, placement = config.device.id, config.device.fleet, config.placement
        beat_s = min(2.0, placement.lease_s / 6)
        self.times = Times(
            window_s=placement.window_s, lease_s=placement.lease_s, beat_s=beat_s, dead_s=BEATS_MISSED * beat_s
        )
        known = tuple(Region(each.name, each.members) for each in placement.regions)
        mine = protocol.regions_of(known, self.me) or (Region(self.me, (self.me,)),)
        now_s = time.monotonic()
        self.session = int(time.time() * 1000)
        self.parent = Parent(layout.control, "placer")
        self.budget: Budget | None = None
        self.stopped_s: float | None = None
        learned = layout.state / "placing" / "agent.state" if placement.learn else None
        self.policy = PlacementPolicy(config, self.me, learned)
        self.free = placement.shield == "none"
        self.shields = {region.name: regions.begin(self.me, region, now_s) for region in mine}
        self.owner = owner.State(node=self.me, region=mine[0])
        self.listeners = tuple(dict.fromkeys(name for region in mine for name in region.members))
        if placement.head is not None:
            self.listeners = tuple(dict.fromkeys((*self.listeners, placement.head)))
        self.loads: dict[str, Load] = {}
        self.selector = selectors.DefaultSelector()
        self.local: deque[Message] = deque()
        self.asked_head: dict[str, tuple[int, float]] = {}
        self.said: dict[str, str] = {}
        self.faults: dict[str, int] = {}
        gone = str(wire.Topic(self.fleet, self.me, "place", "gone"))
        self.mqtt = Mqtt(
            address_of(config.broker),
            f"edgert-{self.fleet}-{self.me}-place",
            will=(gone, wire.encode(wire.PlaceGone(session=self.session))),
            birth=(gone, wire.encode(wire.PlaceGone(session=0))),
            session_expiry_s=0,
            keepalive_s=config.broker.keepalive_s,
            max_queue_bytes=QUEUE_BYTES,
        )
        self.transport = Transport(self.mqtt, self.fleet, self.me)
        folder = layout.state / "placing"
        self.own_jobs = OwnJobs(
            self.me,
            folder,
            self.selector,
            self.tell,
            self.transport.lay_down,
            speed=placement.speed,
            stall_s=placement.stall_s,
            room=self._room,
            acting=lambda: results.acting(layout),
        )
        self.books = keeper.Books(node=self.me, session=self.session, capacity=self._keeps(self.capacity()))
        self.host = Host(self.me, folder / "files", self.selector, self.tell, self.transport.listen, self.fleet)
        self.submissions = Submissions(config, layout, self.own_jobs, self.transport)
        everybody = wire.Topic(self.fleet, "+", "place", "+", self.me)
        self.mqtt.subscribe(
            [
                (str(everybody), 1),
                (str(everybody._replace(type="gone", id="-")), 1),
                (str(everybody._replace(device=self.me, type="submit", id="+")), 1),
                (str(everybody._replace(device=self.me, type="take", id="+")), 1),
            ]
        )
        self.selector.register(self.mqtt, selectors.EVENT_READ, "link")

    def capacity(self) -> Capacity:
        """What jobs may take here now: nothing while the budget has no room for them."""
        placement, open_ = self.config.placement, self.budget is None or self.budget.accept_jobs
        return Capacity(
            cores=placement.cores if open_ else 0.0,
            speed=placement.speed,
            memory_bytes=max(0.0, placement.memory_bytes - self.own_jobs.held_bytes) if open_ else 0,
            link_bytes_per_s=placement.link_bytes_per_s if open_ else 0.0,
            watts_per_core=placement.watts_per_core,
        )

    def _room(self, needed_bytes: float) -> bool:
        """Is there room to measure or judge a job? Where there never is, nobody else's may be running."""
        taken = keeper.used(self.books).memory_bytes
        return not taken or taken + needed_bytes <= self.config.placement.memory_bytes

    def _keeps(self, capacity: Capacity) -> Capacity:
        """By which the books judge: without a shield anything is taken in, as long as jobs are at all."""
        if not self.free or not capacity.cores:
            return capacity
        endless = 1e18
        return msgspec.structs.replace(capacity, cores=endless, memory_bytes=endless, link_bytes_per_s=endless)

    # What goes out.

    def tell(self, to: str, message: msgspec.Struct) -> None:
        """Send a message to a device; to this one it comes in the next turn."""
        if isinstance(message, Report) and self.free:
            message = Report(msgspec.structs.replace(message.load, capacity=self.capacity()))
        if to == self.me:
            self.local.append(message)  # type: ignore[arg-type]  # only what `TYPES` names is ever told
            return
        type_ = TYPES[type(message)]
        if type_ in ("work", "state", "data"):
            payload = wire.encode(message)  # type: ignore[arg-type]  # of `wire`
            self.transport.put(Outgoing(self.transport.topic(type_, to), payload, 1, DATA_EXPIRY_S))
        else:
            payload = wire.encode(wire.Placing(body=msgspec.to_builtins(message)))
            self.transport.put(
                Outgoing(self.transport.topic(type_, to), payload, int(type_ != "load"), PLACING_EXPIRY_S)
            )

    def _publish_jobs(self) -> None:
        for id_ in list(self.own_jobs.changed):
            record = self.own_jobs.records.get(id_)
            if record is not None and self.transport.up:
                message = msgspec.structs.replace(self.own_jobs.message(record), step=self.own_jobs.step(record))
                self.transport.put(
                    Outgoing(self.transport.topic("job", id_), wire.encode(message), 1, JOB_EXPIRY_S, retain=True)
                )
                self.own_jobs.changed.discard(id_)
            if record is not None and record.state in ENDED and self.said.get(id_) != record.state:
                self.said[id_] = record.state
                why = Happened("placed-job-ended", {"job": id_, "state": record.state, "why": record.why})
                self.parent.send(why, keep=True)

    # What comes in.

    def _hear(self, event: Received, now_s: float) -> None:
        try:
            topic = wire.parse_topic(event.topic)
            match topic.type:
                case "load" | "propose" | "grant" | "release":
                    body = wire.decode(event.payload, wire.Placing)[0].body
                    self._deliver(topic.device, msgspec.convert(body, protocol.Message, str_keys=False), now_s)
                case "work":
                    self._work(topic.device, event.payload, now_s)
                case "state":
                    self._deliver(topic.device, wire.decode(event.payload, wire.PlaceState)[0], now_s)
                case "data":
                    self._deliver(topic.device, wire.decode(event.payload, wire.PlaceData)[0], now_s)
                case "chunk":
                    data = wire.decode(event.payload, wire.PolicyChunk)[0].data if event.payload else b""
                    if data:
                        self.host.chunk(topic.id, data, now_s)
                        self.submissions.chunk(topic.id, data, now_s)
                case "gone":
                    self._gone(topic.device, wire.decode(event.payload, wire.PlaceGone)[0].session)
                case "submit":
                    self.submissions.submit(topic.id, event.payload, now_s)
                case "take":
                    self.submissions.take(topic.id, event.payload)
                case _:
                    pass
        except (MessageError, msgspec.ValidationError) as error:
            self._fault("message-refused", f"{event.topic}: {error}")

    def _work(self, sender: str, payload: bytes, now_s: float) -> None:
        try:
            self._deliver(sender, wire.decode(payload, wire.PlaceWork)[0], now_s)
        except MessageError:
            self._deliver(sender, wire.decode(payload, wire.PlaceGo)[0], now_s)

    def _deliver(self, sender: str, message: Message, now_s: float) -> None:
        """Hand a message to whom it concerns; nobody speaks for another."""
        if speaker(message) not in (None, sender):
            self._fault("not-its-own-word", f"{sender} says what only {speaker(message)} may")
            return
        match message:
            case Report(load):
                self._heard(load, now_s)
                for name in self.shields:
                    self._shield(name, message, now_s)
            case Propose(region) if region == HEAD:
                self._choose_for(sender, message.proposal, now_s)
            case Propose(region):
                self._shield(region, message, now_s)
            case Vote():
                if message.region in self.shields:
                    self._shield(message.region, message, now_s)
                else:
                    self._own(message, now_s)
            case Alive():
                self._shield(message.region, message, now_s)
                self._own(message, now_s)
            case Judged(verdict) if verdict.region == HEAD:
                self._head_chose(verdict, now_s)
            case Judged(verdict):
                for load in message.loads:  # so that the next proposal is not made with what misled it in this one
                    self._heard(load, now_s)
                self._note_verdict(verdict)
                self._own(message, now_s)
            case Held():
                self._own(message, now_s)
            case Reserve() | Commit() | Release():
                self._keep(message, now_s)
            case wire.PlaceWork():
                self.host.work(sender, message, now_s)
            case wire.PlaceGo():
                self.host.go(sender, message)
            case wire.PlaceState():
                self.own_jobs.state(sender, message, now_s)
            case wire.PlaceData():
                if message.to != HOST:
                    self.host.data(sender, message)
                elif self.own_jobs.data(sender, message, now_s):
                    self._learn_from(self.owner.placing.get(message.job), now_s)
                    self._own(owner.End(message.job), now_s)

    def _heard(self, load: Load, now_s: float) -> None:
        known = self.loads.get(load.node)
        if known is None or (load.session, load.seq) > (known.session, known.seq):
            self.loads[load.node] = msgspec.structs.replace(load, at_s=now_s)

    def _learn_from(self, placing: owner.Placing | None, now_s: float) -> None:
        """A job was trained: how good was its place?"""
        if placing is not None:
            job = placing.proposal.job
            split = job.splits[placing.proposal.split]
            work_s = sum(part.compute_core_s for part in split.parts) * job.steps
            self.policy.ended(job.id, placing.nodes, now_s - job.born_s, work_s)

    def _send_all(self, done: list[Send]) -> None:
        for send in done:
            self.tell(send.to, send.message)

    def _shield(self, region: str, event: Tick | Propose | Vote | Report | Alive, now_s: float) -> None:
        state = self.shields.get(region)
        if state is not None:
            stepped = regions.step(state, event, now_s, self.times)
            self.shields[region] = stepped.state
            if region == self.owner.region.name and regions.leads(stepped.state):
                # Nobody sends itself a sign of life.
                alive = Alive(region=region, epoch=stepped.state.epoch, shield=self.me)
                self.owner, _ = owner.step(self.owner, alive, now_s, self.times, self.capacity())
            self._send_all(list(stepped.sends))
            for proposal, verdict in stepped.verdicts:
                if verdict.outcome != "granted":
                    log.info("shield %s: %s of %s: %s", region, verdict.outcome, proposal.job.id, verdict.reasons)

    def _keep(self, event: Tick | Reserve | Commit | Release, now_s: float) -> None:
        self.books, done = keeper.step(self.books, event, now_s, self.times, self.listeners)
        for each in done:
            match each:
                case Send():
                    self.tell(each.to, each.message)
                case keeper.Start():
                    self.host.allow(each.job, each.attempt, each.owner, each.parts)
                case keeper.Stop():
                    self.host.stop(each.job, each.attempt)

    def _own(self, event: Tick | owner.Place | owner.End | Alive | Judged | Vote | Held, now_s: float) -> None:
        self.owner, done = owner.step(self.owner, event, now_s, self.times, self._keeps(self.capacity()))
        for each in done:
            match each:
                case Send():
                    self.tell(each.to, each.message)
                case owner.Begin():
                    self.policy.forget(each.job)
                    record, placing = self.own_jobs.records[each.job], self.owner.placing[each.job]
                    self.own_jobs.begin(record, placing.proposal.split, each.nodes, now_s, alone=not placing.epoch)
                    if record.state == "failed":
                        self._own(owner.End(each.job), now_s)
                case owner.Failed():
                    self._placing_failed(each, now_s)

    def _placing_failed(self, failed: owner.Failed, now_s: float) -> None:
        record = self.own_jobs.records.get(failed.job)
        if record is not None and record.attempt == failed.attempt:
            wait_s = AGAIN_S if failed.ran else self.times.window_s
            self.own_jobs.again(record, reasons_text(failed.reasons), now_s, ran=failed.ran, wait_s=wait_s)

    def _note_verdict(self, verdict: Verdict) -> None:
        record = self.own_jobs.records.get(verdict.job)
        if record is not None and record.attempt == verdict.attempt and record.state == "asking":
            said = {
                "attempt": verdict.attempt,
                "outcome": verdict.outcome,
                "nodes": list(verdict.nodes),
                "region": verdict.region,
                "reasons": [msgspec.structs.asdict(reason) for reason in verdict.reasons],
            }
            self.own_jobs.note(record, "judged", said)
            if not verdict.nodes and any(reason.name == "no_room" for reason in verdict.reasons):
                self.policy.refused(verdict.job, verdict.split)

    def _gone(self, node: str, session: int) -> None:
        load = self.loads.get(node)
        if session and (load is None or session >= load.session):
            self.loads.pop(node, None)
            self.own_jobs.gone(node)

    # Jobs that go.

    def _place(self, now_s: float) -> None:
        """Ask for places for what waits."""
        if self.me not in self.loads:
            return
        at_s = time.time()
        waiting = [(self.own_jobs.job(record, now_s, at_s), record) for record in self.own_jobs.waiting(now_s)]
        for job, record in sorted(waiting, key=lambda each: urgency(each[0], 0, now_s)):
            head = self.config.placement.head
            if head not in (None, self.me):
                attempt, asked_s = self.asked_head.get(record.id, (-1, 0.0))
                if attempt != record.attempt or now_s - asked_s > self.times.patience_s:
                    self.asked_head[record.id] = record.attempt, now_s
                    bare = Proposal(job=job, attempt=record.attempt, nodes=(), session=self.session)
                    self.tell(str(head), Propose(HEAD, bare))
                continue
            chosen = self.policy.choose(job, self.loads, now_s, record.attempt + 1, self.session, self.times.dead_s)
            if chosen is None:
                self.own_jobs.retry_s[record.id] = now_s + self.times.window_s
            else:
                self._ask(record, chosen, now_s)

    def _choose_for(self, sender: str, asked: Proposal, now_s: float) -> None:
        """Another device leaves the choice to this one."""
        if self.me not in self.loads or sender not in self.loads:
            return
        chosen = self.policy.choose(
            asked.job, self.loads, now_s, asked.attempt, asked.session, self.times.dead_s, me=sender
        )
        if chosen is not None:
            verdict = Verdict(
                job=asked.job.id,
                attempt=asked.attempt,
                outcome="granted",
                split=chosen.split,
                nodes=chosen.nodes,
                region=HEAD,
            )
            self.tell(sender, Judged(verdict))

    def _head_chose(self, verdict: Verdict, now_s: float) -> None:
        record = self.own_jobs.records.get(verdict.job)
        if record is None or record.state != "waiting" or record.attempt != verdict.attempt:
            return
        job = self.own_jobs.job(record, now_s, time.time())
        if verdict.split < len(job.splits) and len(verdict.nodes) == len(job.splits[verdict.split].parts):
            chosen = Proposal(
                job=job, attempt=record.attempt + 1, split=verdict.split, nodes=verdict.nodes, session=self.session
            )
            self._ask(record, chosen, now_s)

    def _ask(self, record: Record, chosen: Proposal, now_s: float) -> None:
        attempt = self.own_jobs.asking(record, chosen.nodes, chosen.split)
        chosen = msgspec.structs.replace(chosen, attempt=attempt)
        if self.free:
            self._impose(chosen, now_s)
        else:
            self._own(owner.Place(chosen), now_s)

    def _impose(self, chosen: Proposal, now_s: float) -> None:
        """Without a shield: every node keeps the room that it is told to keep, whether it has it or not."""
        capacities = {node: load.capacity for node, load in self.loads.items()}
        if not all(node in capacities for node in chosen.nodes):
            self.own_jobs.again(self.own_jobs.records[chosen.job.id], "a node has gone", now_s)
            return
        amounts = footprint(chosen, chosen.nodes, capacities)
        placing = owner.Placing(
            proposal=chosen,
            phase="alone",
            nodes=chosen.nodes,
            places=tuple(dict.fromkeys((*amounts, self.me))),
            until_s=now_s + self.times.patience_s,
            retry_s=now_s + self.times.patience_s,
        )
        self.owner = msgspec.structs.replace(self.owner, placing={**self.owner.placing, chosen.job.id: placing})
        for node in placing.places:
            asked = Reserve(
                region="",
                epoch=0,
                shield=self.me,
                job=chosen.job.id,
                attempt=chosen.attempt,
                owner=self.me,
                parts=tuple(amounts.get(node, [])),
            )
            self.tell(node, asked)

    # Time.

    def turn(self, now_s: float) -> None:
        """Everything that is due."""
        rounds = 0
        while self.local and rounds < 1000:
            rounds += 1
            self._deliver(self.me, self.local.popleft(), now_s)
        self.books = msgspec.structs.replace(self.books, capacity=self._keeps(self.capacity()))
        for name in self.shields:
            self._shield(name, Tick(), now_s)
        self._keep(Tick(), now_s)
        self._own(Tick(), now_s)
        self.own_jobs.turn(now_s)
        self.host.turn(now_s)
        for id_, why in self.own_jobs.take_failed():
            self._own(owner.End(id_), now_s)
            self.own_jobs.again(self.own_jobs.records[id_], why, now_s, ran=True)
        for id_ in [id_ for id_ in self.owner.placing if self.own_jobs.records[id_].state in (*ENDED, "judging")]:
            self._own(owner.End(id_), now_s)
        results.offer(self.own_jobs, self.parent, self.layout)
        self._place(now_s)
        self.submissions.step(fetch.Tick(), now_s)
        running = self.own_jobs.running.values()
        self.transport.take_back({offer.sha256 for each in running for work in each.works for offer in work.files})
        self._publish_jobs()

    def _obey(self, budget: Budget, now_s: float) -> None:
        self.budget = budget
        stopped = not budget.accept_jobs and budget.train_steps_hz <= 0
        self.stopped_s = (self.stopped_s or now_s) if stopped else None
        if self.stopped_s is not None and now_s - self.stopped_s > GIVE_UP_S:
            self.host.give_up(f"budget: {', '.join(f'{k}: {v}' for k, v in sorted(budget.why.items()))}"[:300])

    def run(self, stopping: Stopping) -> int:
        """Place until told to stop."""
        self.mqtt.start()
        report_s = time.monotonic()
        while not stopping:
            now_s = time.monotonic()
            for told in self.parent.receive():
                if isinstance(told, Stop):
                    stopping.asked = True
                elif isinstance(told, Budget):
                    self._obey(told, now_s)
            self.turn(now_s)
            self.transport.flush()
            if now_s >= report_s:
                report_s = now_s + REPORT_S
                self.own_jobs.changed |= set(self.own_jobs.running)
                self.parent.send(ServiceReport(self.shown()))
            if not self.mqtt.healthy():
                log.error("the link's thread stands still")
                return 1
            full = self.transport.waiting_bytes > BACKLOG_BYTES
            ready = self.selector.select(0.0 if self.local else PAUSE_S / 10 if full else PAUSE_S)
            now_s = time.monotonic()
            for key, _ in ready:
                if key.fileobj is self.mqtt:
                    self._hear_link(now_s)
                elif isinstance(key.fileobj, ipc.Channel) and not full:
                    self.host.hear(key.fileobj)
                    self.own_jobs.hear(key.fileobj)
            if full:
                time.sleep(PAUSE_S / 20)  # what is not read stays readable
        self.close()
        return 0

    def _hear_link(self, now_s: float) -> None:
        for event in self.mqtt.events():
            match event:
                case LinkUp():
                    self.transport.link(True)
                    self.host.link(True, now_s)
                    self.submissions.step(fetch.Up(), now_s)
                    self.own_jobs.changed |= set(self.own_jobs.records)
                case LinkDown():
                    self.transport.link(False)
                    self.host.link(False, now_s)
                    self.submissions.step(fetch.Down(), now_s)
                case Received():
                    self._hear(event, now_s)
                case _:
                    pass

    def shown(self) -> dict[str, object]:
        """For the status."""
        cpu_s, rss_bytes = usage()
        return {
            "up": self.transport.up,
            "leads": [name for name, state in self.shields.items() if regions.leads(state)],
            "jobs": self.own_jobs.shown()[:16],
            "parts": self.host.shown()[:16],
            "nodes": len(self.loads),
            "faults": {**self.faults, **self.mqtt.faults()},
            "agent": self.policy.name,
            "cpu_s": round(cpu_s, 2),
            "rss_bytes": rss_bytes,
        }

    def _fault(self, name: str, why: str) -> None:
        self.faults[name] = self.faults.get(name, 0) + 1
        if self.faults[name] == 1:
            log.warning("%s: %s", name, why)

    def close(self) -> None:
        """Let go of everything; others hear of it by the will's words."""
        self.host.close()
        self.own_jobs.close()
        gone = wire.encode(wire.PlaceGone(session=self.session))
        self.mqtt.publish(self.transport.topic("gone", "-"), gone, qos=1, retain=True, content_type=wire.CONTENT_TYPE)
        self.mqtt.close()
        self.parent.close()


def _run(config: Config, config_path: Path, layout: Layout, stopping: Stopping) -> int:
    os.nice(5)
    placer = Placer(config, layout)
    placer.parent.receive()
    return placer.run(stopping)


def main(argv: list[str] | None = None) -> int:
    """Run one placer; the supervisor starts it."""
    return run_role("placer", "edgert-placer", argv, _run)
