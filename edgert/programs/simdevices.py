"""Many devices in one process, for `programs.simfleet`: the supervisor's own brain, guard and session, on real sockets.

Simulated are the board, the actor, the disk (it survives what the device does not), and how jobs are carried out.
Everything is in memory and in one thread, so thousands fit into a process. Orders come as JSON lines on standard input;
once a second a line about all of them goes to standard output.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import os
import random
import select
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import cbor2
import msgspec

from edgert import __version__, bundle, bus, control, wire
from edgert import device as devices
from edgert import guard as guards
from edgert.config import Config, parse
from edgert.fleet import duties, policies, presence
from edgert.fleet.kinds import Kind
from edgert.govern.cost import prices
from edgert.ports.board.scenario import SCENARIOS, Scenario, make
from edgert.ports.board.simulated import SimulatedBoard, physics_of
from edgert.ports.boardfile import load_all
from edgert.ports.link import LinkDown, LinkUp, Received
from edgert.ports.manylinks import Loop, Turned
from edgert.ports.process import usage
from edgert.programs import events
from edgert.programs.simdisk import Disk
from edgert.status import document
from edgert.values import ActorReport, Operating, Prices, Reading

FLEET = "sim"
BEAT_S = 2.5
"""Between two reports of an actor, half of what it may be silent."""
SENSE_S, TELEMETRY_S = 30.0, 60.0
"""A device of its own looks and tells once a second: thousands on one processor cannot."""
SPEED = 30.0
"""Scenarios pass so many times as fast as they are told: eight hours in a quarter of an hour."""
JOB_S = 2.0
LAG_S = 0.5
"""Time of the devices goes on by so much a turn at most: on a busy machine it slows, and no actor seems hung."""
CUT_EFFECTS = 24
"""The power goes after so many effects at most, so that it also goes between a write and what it was for."""
NAMES = ("duplicate-identity", "flapping")
CONFIG = f"""
[device]
id = "x"
fleet = "{FLEET}"
[policy]
bundle = "/simulated"
[learn]
enabled = false
[teacher]
enabled = false
[govern]
period_s = {SENSE_S}
stale_s = {5 * SENSE_S}
"""


class Make(msgspec.Struct, frozen=True, kw_only=True):
    """What all devices of a process share."""

    url: str
    loop: Loop
    config: Config
    manifest: bundle.Manifest
    prices: Prices
    boards: tuple[tuple[Any, Scenario], ...]


class Device:
    """One device; what it knows goes with its power, but for its disk.

    Attributes:
        disk: see `Disk`.
        link: None while it is off.
        session: of its newest start.
        up, up_s: the session stands, and since when (monotonic).
        slow_until_s: it does not take what the broker has for it.
        counters: of all its lives.
    """

    def __init__(self, number: int, common: Make, disk: Disk, seed: int) -> None:
        """Switched off."""
        self.number, self.disk, self._common = number, disk, common
        self.rng = random.Random(seed)
        plain = common.config
        self.config = msgspec.structs.replace(
            plain, device=msgspec.structs.replace(plain.device, id=f"sim-{number:05d}")
        )
        self.link: Turned | None = None
        self.session = ""
        self.up, self.up_s = False, 0.0
        self.slow_until_s = self.off_until_s = 0.0
        self.counters: Counter[str] = Counter()
        model, scenario = common.boards[number % len(common.boards)]
        self._board = SimulatedBoard(model, scenario, demand=lambda _: 0.2, speed=SPEED, seed=seed)
        self._inputs: deque[Any] = deque()
        self._running: list[tuple[float, str]] = []
        self._cut_after: int | None = None
        self._sense_s = self._telemetry_s = 0.0
        self._starts = self._ticks = self._told = 0

    @property
    def id(self) -> str:
        """Its name in the fleet."""
        return self.config.device.id

    def boot(self, now_s: float) -> None:
        """Switch it on: a supervisor begins with what is on the disk."""
        disk, config, manifest = self.disk, self.config, self._common.manifest
        self._starts += 1
        self.session = f"{self.rng.getrandbits(64):016x}"
        world = control.open_world(
            config,
            task=manifest.task,
            n_exits=len(manifest.exits),
            note=None,
            streams={name: (each.id, each.first_seq, each.last_seq) for name, each in disk.spool.streams.items()},
            now_s=now_s,
            prices=self._common.prices,
            cores=self._board.model.cores,
        )
        device, effects = devices.open_device(world, disk.jobs, disk.marks, disk.facts, disk.evidence(), now_s)
        state, _ = policies.open_policies(config, manifest, board=None, keys=None, found=policies.Found())
        birth = wire.Status(online=True, session=self.session, version=__version__, task=manifest.task)
        herald = presence.Herald(birth=birth)
        self.guard = guards.Guard(device=device, policies=state, verify=lambda *_: False, herald=herald)
        topic = guards.status_topic(config)
        self.link = Turned(
            self._common.loop,
            self._common.url,
            client_id(self.id),
            will=(topic, wire.encode(wire.Status(online=False, session=self.session))),
            session_expiry_s=config.broker.session_expiry_s,
            keepalive_s=60,
        )
        self.link.subscribe([*((name, 1) for name in guards.subscriptions(config)), (topic, 0)])
        self.link.start()
        # Not all at once: a fleet was not switched on in one moment either.
        self._sense_s = now_s + self.rng.random() * SENSE_S
        self._telemetry_s = now_s + self.rng.random() * TELEMETRY_S
        self._inputs.append(bus.Tick())
        for effect in effects:
            self._perform(effect, now_s)
        self.work(now_s)

    def power_cut(self, now_s: float, off_s: float) -> None:
        """Everything is gone but the disk; the broker finds a dead socket."""
        link, self.link = self.link, None
        self.up, self._cut_after = False, None
        self._inputs.clear()
        self._running.clear()
        self.off_until_s = now_s + off_s
        self.counters["power-cuts"] += 1
        if link is not None:
            self._named(link, self.counters)
            link.close(goodbye=False)

    def cut_soon(self) -> None:
        """The power will go in the middle of something."""
        self._cut_after = self.rng.randrange(CUT_EFFECTS)

    def away(self) -> bool:
        """It has no session, and that is meant."""
        return not self.up and (self.link is None or time.monotonic() < self.link.cut_until_s)

    def faults(self, into: dict[str, int]) -> None:
        """Add named faults of the link, by whoever noticed them, of all its lives."""
        for name, count in self.counters.items():
            into[name] = into.get(name, 0) + count
        if self.link is not None:
            self._named(self.link, into)

    def _named(self, link: Turned, into: dict[str, int]) -> None:
        for name, count in link.faults().items():
            into[name] = into.get(name, 0) + count
        known = self.guard.device.world.counters
        for name in ("link-deaf", *NAMES):
            if name in known:
                into[name] = into.get(name, 0) + known[name]

    def beat(self, now_s: float) -> None:
        """What comes without anybody sending it."""
        if self.link is None:
            return
        self._ticks += int(20 * BEAT_S)
        exits = [0] * len(self._common.manifest.exits)
        exits[0] = self._ticks
        if now_s >= self._sense_s:
            self._sense_s = now_s + SENSE_S
            readings = msgspec.structs.replace(self._board.read(now_s), link_rtt_s=Reading(self.link.rtt_s()))
            self._inputs.append(bus.Sensed(readings, None, 0, 0))
            if not self._board.row.link_up:
                self.link.cut(SENSE_S)
        report = ActorReport(
            pid=self._starts,
            ticks=self._ticks,
            missed=0,
            safe=0,
            exits=exits,
            latency_p50_s=1e-3,
            latency_p99_s=2e-3,
            latency_max_s=3e-3,
            episodes=0,
            returns=[],
            faults={},
            generation=0,
            acting=True,
            first_action_s=0.1,
            cpu_s=0.01 * self._ticks,
            rss_bytes=60 << 20,
            operating=Operating(self._common.manifest.thresholds),
        )
        self._inputs += [bus.Timed(time.time(), f"boot-{self._starts}"), bus.Heard("actor", report), bus.Tick()]
        self.work(now_s)
        if now_s >= self._telemetry_s and self.link is not None:
            self._telemetry_s = now_s + TELEMETRY_S
            self._told += 1
            told = wire.encode(wire.Telemetry(at_s=time.time(), status=self._document(now_s), seq=self._told))
            topic = str(wire.Topic(FLEET, self.id, "tele", "device"))
            self.link.publish(topic, told, qos=1, expiry_s=10, content_type=wire.CONTENT_TYPE)

    def hear(self, now_s: float) -> None:
        """What the broker has for it."""
        if self.link is None or now_s < self.slow_until_s:
            return
        for event in self.link.events():
            match event:
                case LinkUp():
                    self.up, self.up_s = True, time.monotonic()
                    self.counters["links"] += 1
                    self._inputs.append(bus.LinkUp())
                case LinkDown():
                    self.counters["lost-links"] += self.up
                    self.up = False
                    self._inputs.append(bus.LinkDown(event.fault or event.reason))
                case Received():
                    self._inputs.append(bus.Received(event.topic, event.payload, event.correlation, event.retain))
                case _:
                    pass
        self.work(now_s)

    def work(self, now_s: float) -> None:
        """Feed the brain until nothing new has come of it, or the power goes."""
        for job in [job for job in self._running if job[0] <= now_s]:
            self._running.remove(job)
            self._done(job[1], now_s)
        while self._inputs and self.link is not None:
            self.guard, effects = guards.step(self.guard, self._inputs.popleft(), now_s)
            for effect in effects:
                if self._cut_after is not None:
                    self._cut_after -= 1
                    if self._cut_after < 0:
                        self.power_cut(now_s, 5.0 * self.rng.random())
                        return
                self._perform(effect, now_s)

    def _perform(self, effect: bus.Effect, now_s: float) -> None:
        disk, link = self.disk, self.link
        match effect:
            case bus.Publish() if link is not None:
                link.publish(
                    effect.topic,
                    effect.payload,
                    qos=effect.qos,
                    expiry_s=effect.expiry_s,
                    content_type=wire.CONTENT_TYPE,
                    correlation=effect.correlation,
                    response_topic=effect.response_topic,
                    retain=effect.retain,
                )
            case bus.SendEvents():
                self._send(effect)
            case bus.ForgetEvents(stream, up_to):
                disk.spool.acknowledge(stream, up_to)
                self._stored(stream)
            case bus.Record(name, detail):
                self.record(name, detail)
            case bus.Reconnect(why) if link is not None:
                link.reconnect(why)
            case bus.Start(role):
                self._inputs += [bus.Spawned(role, self._starts), bus.Connected(role, self._starts)]
            case bus.WriteJob(id_, body, mark):
                disk.jobs[id_] = body
                disk.marks.update([] if mark is None else [mark])
                self._inputs.append(bus.JobWritten(id_))
            case bus.ForgetJobs(ids, fact):
                for id_ in ids:
                    disk.jobs.pop(id_, None)
                disk.facts.update([fact])
            case bus.WriteMark(name, body):
                disk.marks[name] = body
            case bus.WriteFact(name, body):
                disk.facts[name] = body
            case bus.DoJob(id_, kind, _):
                if kind == Kind.UPLOAD.value:
                    self.record(events.UPLOADED, {"id": id_, "status": self._document(now_s)})
                    self._done(id_, now_s)
                else:
                    self._running.append((now_s + JOB_S * self.rng.random(), id_))
            case bus.StopJob(id_):
                self._running = [job for job in self._running if job[1] != id_]
            case _:
                pass  # children, policies and systemd are not there

    def _done(self, id_: str, now_s: float) -> None:
        """The effect and its evidence, in one stroke."""
        self.disk.effects[id_] += 1
        self._inputs.append(bus.JobDone(id_))

    def record(self, name: str, detail: dict[str, object]) -> None:
        """Something happened that must not be lost."""
        payload, stream = cbor2.dumps({"at_s": time.time(), "name": name, "detail": detail}), events.stream_of(name)
        self.disk.spool.append(stream, payload, time.time())
        self._stored(stream)

    def _stored(self, name: str) -> None:
        stream = self.disk.spool.streams[name]
        self._inputs.append(bus.Stored(name, stream.first_seq, stream.last_seq))

    def _send(self, wanted: bus.SendEvents) -> None:
        topic, spool, name = str(wire.Topic(FLEET, self.id, "evt", "device")), self.disk.spool, wanted.stream
        for seq, payload in spool.peek(name, wanted.after, wanted.up_to - wanted.after):
            if seq <= wanted.up_to and self.link is not None:
                told, _, _ = events.encode(spool.streams[name].id, seq, wanted.first, payload)
                if not self.link.publish(topic, told, qos=1, content_type=wire.CONTENT_TYPE):
                    self._inputs.append(bus.Refused(name, seq))
                    return

    def _document(self, now_s: float) -> dict[str, object]:
        device = self.guard.device
        return {**document(device.world, now_s), **duties.shown(device.duties, now_s, self.id), "session": self.session}


def client_id(device: str) -> str:
    """Under which the broker knows a device."""
    return f"edgert-{FLEET}-{device}"


class Town:
    """All devices of this process, and what befalls them.

    Attributes:
        devices: in the order of their numbers.
        clones: (pretender, whose id it has, until when, faults that both had named before).
        named, unnamed: clones that somebody called by a name, and that nobody did.
        marks: how many there were; sessions are counted that are newer than the last.
        now_s: time of the devices.
    """

    def __init__(self, url: str, first: int, count: int, seed: int, manifest: bundle.Manifest) -> None:
        """Make them; they are switched on one after the other."""
        self.loop, self.rng = Loop(), random.Random(seed)
        boards: list[tuple[Any, Scenario]] = []
        for each in load_all().values():
            model = physics_of(each.hardware)
            boards.append((model, Scenario(name="calm")))
            boards += [(model, make(name, model, seed=seed)) for name in sorted(SCENARIOS)]
        common = Make(
            url=url,
            loop=self.loop,
            config=parse(CONFIG, "simulated"),
            manifest=manifest,
            prices=prices(manifest, "simulated"),
            boards=tuple(boards),
        )
        self._common = common
        self.devices = [
            Device(number, common, Disk(self.rng), self.rng.getrandbits(32)) for number in range(first, first + count)
        ]
        self.clones: list[tuple[Device, Device, float, int]] = []
        self.named = self.unnamed = 0
        self.marks, self._mark_s = 0, 0.0
        self.now_s = self._real_s = time.monotonic()
        self._kicks: list[tuple[Turned, float]] = []
        self._by_link: dict[Turned, Device] = {}
        self._beats: list[tuple[float, int, Device]] = []
        self._serial = 0
        for k, device in enumerate(self.devices):
            self._beat_at(self.now_s + BEAT_S * k / max(1, count), device)

    def _beat_at(self, at_s: float, device: Device) -> None:
        self._serial += 1
        heapq.heappush(self._beats, (at_s, self._serial, device))

    def turn(self, timeout_s: float) -> None:
        """Let time go on."""
        ready = self.loop.turn(timeout_s)
        real_s = time.monotonic()
        now_s = self.now_s = self.now_s + min(LAG_S, real_s - self._real_s)
        self._real_s = real_s
        for link in ready:
            device = self._by_link.get(link)
            if device is not None and device.link is link:
                device.hear(now_s)
        while self._beats and self._beats[0][0] <= now_s:
            at_s, _, device = heapq.heappop(self._beats)
            if device.number < 0:
                continue  # a pretender that has left
            if device.link is None and now_s >= device.off_until_s:
                device.boot(now_s)
                if device.link is not None:
                    self._by_link[device.link] = device
            device.hear(now_s)  # what it was too slow for before
            device.beat(now_s)
            self._beat_at(max(at_s + BEAT_S, now_s), device)
        self._end_chaos(now_s)

    def befall(self, what: str, count: int, for_s: float) -> None:
        """Let something happen to some devices.

        Args:
            what: kick, partition, clone, slow or power; or `mark`: only sessions from here on count as renewed.
            count: to how many.
            for_s: how long it lasts.
        """
        now_s = self.now_s
        if what == "mark":
            self.marks, self._mark_s = self.marks + 1, time.monotonic()
            return
        for device in self.rng.sample(self.devices, min(count, len(self.devices))):
            if device.link is None:
                continue
            match what:
                case "kick":
                    kick = Turned(self.loop, self._common.url, client_id(device.id), session_expiry_s=172_800)
                    self._kicks.append((kick.start(), now_s + 10.0))
                case "partition":
                    device.link.cut(for_s)
                case "slow":
                    device.slow_until_s = now_s + for_s
                case "power":
                    device.cut_soon()
                case "clone" if all(device is not other for _, other, _, _ in self.clones):
                    clone = Device(device.number, self._common, Disk(self.rng), self.rng.getrandbits(32))
                    self.clones.append((clone, device, now_s + for_s, self._names(device)))
                    self._beat_at(now_s, clone)
                case _:
                    pass

    def _names(self, *found: Device) -> int:
        faults: dict[str, int] = {}
        for device in found:
            device.faults(faults)
        return sum(faults.get(name, 0) for name in NAMES)

    def _end_chaos(self, now_s: float) -> None:
        for clone, device, until_s, before in list(self.clones):
            if now_s >= until_s:
                self.clones.remove((clone, device, until_s, before))
                called = self._names(clone, device) > before
                self.named, self.unnamed = self.named + called, self.unnamed + (not called)
                clone.power_cut(now_s, 0.0)
                clone.number = -1
        for kick, until_s in list(self._kicks):
            if now_s >= until_s or any(isinstance(event, LinkUp) for event in kick.events()):
                self._kicks.remove((kick, until_s))
                kick.close()
        if len(self._by_link) > 2 * len(self.devices) + 100:
            self._by_link = {link: device for link, device in self._by_link.items() if device.link is link}

    def report(self) -> dict[str, Any]:
        """Totals."""
        streams = [stream for device in self.devices for stream in device.disk.spool.streams.values()]
        effects = [count for device in self.devices for count in device.disk.effects.values()]
        faults: dict[str, int] = {}
        for device in self.devices:
            device.faults(faults)
        cpu_s, rss_bytes = usage()
        return {
            "devices": len(self.devices),
            "on": sum(device.link is not None for device in self.devices),
            "up": sum(device.up for device in self.devices),
            "marks": self.marks,
            "renewed": sum(device.up and device.up_s >= self._mark_s for device in self.devices),
            "away": sum(device.away() for device in self.devices),
            "effects": sum(effects),
            "duplicate_effects": sum(count - 1 for count in effects),
            "events_waiting": sum(stream.count for stream in streams),
            "events_dropped": sum(stream.dropped for stream in streams),
            "events_recorded": sum(stream.last_seq for stream in streams),
            "clones": len(self.clones),
            "clones_named": self.named,
            "clones_unnamed": self.unnamed,
            "faults": dict(sorted(faults.items())),
            "cpu_s": round(cpu_s, 2),
            "rss_bytes": rss_bytes,
        }

    def close(self) -> None:
        """All leave in good order."""
        for device in [*self.devices, *(clone for clone, _, _, _ in self.clones)]:
            if device.link is not None:
                device.link.close()
        for kick, _ in self._kicks:
            kick.close()
        self.loop.close()


def main(argv: list[str] | None = None) -> int:
    """Be a process of devices until standard input ends.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m edgert.programs.simdevices", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, required=True)
    args = parser.parse_args(argv)
    manifest = bundle.read(args.bundle.read_bytes()).manifest
    town = Town(args.url, args.first, args.count, args.seed, manifest)
    os.set_blocking(sys.stdin.fileno(), False)
    poller, said_s, rest, ended, settled = select.poll(), 0.0, b"", False, False
    poller.register(sys.stdin.fileno(), select.POLLIN)
    while not ended:
        town.turn(0.05)
        if poller.poll(0):
            data = os.read(sys.stdin.fileno(), 65_536)
            ended = not data
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                town.befall(order["do"], order["count"], order["for_s"])
        if time.monotonic() >= said_s:
            said_s = time.monotonic() + 1.0
            told = town.report()
            print(json.dumps(told), flush=True)
            if not settled and told["up"] == told["devices"]:
                # A full collection looks at all that thousands of devices remember, for seconds: not at this any more.
                settled = True
                gc.collect()
                gc.freeze()
    town.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
