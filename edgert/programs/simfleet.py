"""`edgert sim fleet`: a fleet on one machine, over a real broker, and everything that goes wrong with fleets.

Devices live in processes of `programs.simdevices`. Here are the broker, whoever commands the fleet and collects its
events, and chance, which lets things happen. What is counted is what was promised: a job is carried out once, and an
event that a device wrote down arrives.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import secrets
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgert import wire
from edgert.errors import LinkError, MessageError
from edgert.fleet.kinds import Kind
from edgert.fleet.ledger import ENDS
from edgert.fleet.presence import Sighting, saw_status
from edgert.fleet.session import Collector, LinkRules, collect
from edgert.ports import broker as brokers
from edgert.ports.link import LinkDown, LinkUp, Received
from edgert.ports.mqtt import Mqtt
from edgert.programs.simdevices import FLEET

Chaos = Literal["kick", "partition", "clone", "slow", "power", "restart"]
CHAOS: tuple[Chaos, ...] = ("kick", "partition", "clone", "slow", "power", "restart")
CHAOS_S = 5.0
"""Between two things that happen."""
SHARE = 0.02
"""Of the devices, to which one thing happens."""
LASTS_S = {"kick": 0.0, "partition": 20.0, "clone": 30.0, "slow": 15.0, "power": 0.0}
RESTART_S = 60.0
DOWN_S = 2.0
AGAIN_S = 20.0
"""Until a command without an answer is said again, under the same id."""
SETTLE_S, QUIET_S = 180.0, 3.0
"""Rest is waited for so long; it has come when nothing was open for a while: what is known of devices is a second old.
"""
ENDED = frozenset(state.value for state in ENDS)
HEAD = LinkRules(base_s=0.1, cap_s=1.0)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate.

    Attributes:
        devices: how many.
        minutes: how long things happen.
        processes: that the devices are spread over.
        chaos: what happens.
        seed: of all that is drawn.
        url: of a broker; None starts one.
        commands_hz: jobs a second for the whole fleet.
        bundle: what the devices are said to run.
    """

    devices: int = 1000
    minutes: float = 2.0
    processes: int = 1
    chaos: tuple[Chaos, ...] = ()
    seed: int = 0
    url: str | None = None
    commands_hz: float = 10.0
    bundle: Path


class Head:
    """Who commands the fleet, and collects its events.

    Attributes:
        up: its session stands.
        born: device -> how often it said that it is there.
        sightings: device -> what whoever looks on believes of it.
        collected: device -> the receiver's state.
        delivered: events.
        uploads: job -> how often its upload was delivered.
        sent: job that has not ended -> device, kind, and when it was last said.
        ended: job -> state.
        rtts_s: of commands that were replied to.
        malformed: messages that nobody could read.
    """

    def __init__(self, url: str) -> None:
        """Connect, and stay connected."""
        self.up = False
        self.born: Counter[str] = Counter()
        self.sightings: dict[str, Sighting] = {}
        self.collected: dict[str, Collector] = {}
        self.uploads: Counter[str] = Counter()
        self.sent: dict[str, tuple[str, str, float]] = {}
        self.ended: dict[str, str] = {}
        self.rtts_s: list[float] = []
        self.delivered = self.malformed = 0
        self._asked: dict[str, float] = {}
        self._run, self._serial = secrets.token_hex(4), 0
        self.mqtt = Mqtt(
            url,
            f"edgert-head-{self._run}",
            session_expiry_s=3600,
            max_queue_bytes=16 << 20,
            max_events=20_000,
            rules=HEAD,
        )
        kinds = (("status", "device", "+"), ("evt", "+", "+"), ("job", "state", "+"), ("tele", "reply", "+"))
        self.mqtt.subscribe([(str(wire.Topic(FLEET, "+", *kind)), 1) for kind in kinds])
        self.mqtt.start()

    def order(self, device: str, kind: Kind = Kind.UPLOAD, id_: str | None = None) -> str:
        """Have a device do something once; said again until it has ended."""
        self._serial += 1
        id_ = id_ or f"{self._run}-{self._serial}"
        told = wire.encode(wire.JobOrder(id=id_, kind=kind.value, issued_s=time.time()))
        topic = str(wire.Topic(FLEET, device, "job", "order", id_))
        said = self.mqtt.publish(topic, told, qos=1, content_type=wire.CONTENT_TYPE)
        self.sent[id_] = device, kind.value, time.monotonic() if said else 0.0
        return id_

    def ask(self, device: str) -> None:
        """A command that a device replies to at once; the round trip is measured."""
        self._serial += 1
        id_ = f"{self._run}-{self._serial}"
        told = wire.encode(wire.GoalsCommand(id=id_, goals={"max_power_w": 5.0}, valid_s=60.0))
        self._asked[id_] = time.perf_counter()
        self.mqtt.publish(str(wire.Topic(FLEET, device, "cmd", "goals")), told, qos=1, content_type=wire.CONTENT_TYPE)

    def repeat(self) -> None:
        """Say again what has not ended."""
        now_s = time.monotonic()
        for id_, (device, kind, at_s) in list(self.sent.items()):
            if self.up and now_s - at_s >= AGAIN_S:
                self.order(device, Kind(kind), id_)

    def hear(self) -> None:
        """What has arrived."""
        for event in self.mqtt.events():
            match event:
                case LinkUp():
                    self.up = True
                case LinkDown():
                    self.up = False
                case Received() if event.payload:
                    try:
                        self._hear(wire.parse_topic(event.topic), event.payload, event.retain)
                    except MessageError:
                        self.malformed += 1
                case _:
                    pass

    def _hear(self, topic: wire.Topic, payload: bytes, kept: bool) -> None:
        match topic.channel:
            case "status":
                status, _ = wire.decode(payload, wire.Status)
                self.sightings[topic.device] = saw_status(self.sightings.get(topic.device, Sighting()), status)
                # What the broker kept tells of a session that may be over.
                self.born[topic.device] += status.online and not kept
            case "tele":
                begun_s = self._asked.pop(wire.decode(payload, wire.CommandReply)[0].id, None)
                if begun_s is not None:
                    self.rtts_s.append(time.perf_counter() - begun_s)
            case "job":
                state, _ = wire.decode(payload, wire.JobState)
                if state.state in ENDED and self.sent.pop(state.id, None) is not None:
                    self.ended[state.id] = state.state
            case "evt":
                self._collect(topic.device, wire.decode(payload, wire.Event)[0])

    def _collect(self, device: str, event: wire.Event) -> None:
        before = self.collected.get(device, Collector())
        after, deliver, up_to = collect(before, event.stream, event.first, event.seq)
        self.collected[device] = after
        self.delivered += deliver
        if deliver and event.name == "uploaded":
            self.uploads[str(event.detail.get("id"))] += 1
        if up_to:
            ack = wire.encode(wire.EventAck(stream=event.stream, up_to=up_to))
            topic = str(wire.Topic(FLEET, device, "cmd", "ack"))
            self.mqtt.publish(topic, ack, qos=1, content_type=wire.CONTENT_TYPE)

    @property
    def skipped(self) -> int:
        """Events that devices had no more when they could be sent."""
        return sum(each.skipped for each in self.collected.values())


class Fleet:
    """Broker, head, and processes of devices.

    Attributes:
        head: see `Head`.
        broker: ours; None where one was named.
        rng: of what happens.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Start everything.

        Args:
            plan: what.
            folder: for the broker's files.

        Raises:
            LinkError: no broker, or a process did not start.
        """
        # A socket a device, here for the broker's process and those of the devices, which inherit it.
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
        self.plan, self.rng = plan, random.Random(plan.seed)
        self.broker = brokers.start("auto", folder) if plan.url is None else None
        self._url = plan.url or (self.broker.url if self.broker else "")
        self.head = Head(self._url)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._told: dict[int, dict[str, Any]] = {}
        self._rest: dict[int, bytes] = {}
        self._marks = 0
        self._poller = select.poll()
        self._poller.register(self.head.mqtt.fileno(), select.POLLIN)
        share = -(-plan.devices // plan.processes)
        for first in range(0, plan.devices, share):
            self._start(first, min(share, plan.devices - first))

    def _start(self, first: int, count: int) -> None:
        words = ["--url", self._url, "--first", str(first), "--count", str(count)]
        words += ["--seed", str(self.plan.seed + first), "--bundle", str(self.plan.bundle)]
        command = [sys.executable, "-m", "edgert.programs.simdevices", *words]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise LinkError(f"cannot start {command[0]}: {error}") from error
        self._processes.append(process)
        assert process.stdout is not None
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        self._rest[fd] = b""
        self._poller.register(fd, select.POLLIN)

    def names(self) -> list[str]:
        """Of all devices."""
        return [f"sim-{number:05d}" for number in range(self.plan.devices)]

    def turn(self, timeout_s: float) -> None:
        """Hear what there is to hear.

        Raises:
            LinkError: a process of devices has died.
        """
        for fd, _ in self._poller.poll(1000 * timeout_s):
            if fd in self._rest:
                data = os.read(fd, 1 << 20)
                if not data:
                    raise LinkError("a process of devices has died; what it said stands above")
                *lines, self._rest[fd] = (self._rest[fd] + data).split(b"\n")
                if lines:
                    self._told[fd] = json.loads(lines[-1])
        self.head.hear()

    def wait(self, condition: Callable[[], object], patience_s: float) -> bool:
        """Turn until it is true; False when it does not become so in time."""
        end_s = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() >= end_s:
                return False
            self.turn(0.05)
        return True

    def up(self) -> int:
        """Devices whose session stands, as of a second ago."""
        return int(sum(told["up"] for told in self._told.values()))

    def mark(self) -> None:
        """Count sessions anew, see `renewed`."""
        self._marks += 1
        self.befall("mark", 0, 0.0)

    def renewed(self) -> int:
        """Devices whose session began after the last mark, as of a second ago."""
        return int(sum(told["renewed"] for told in self._told.values() if told["marks"] == self._marks))

    def totals(self) -> dict[str, Any]:
        """Of all devices, as of a second ago, and of the head."""
        total: dict[str, Any] = {}
        faults: Counter[str] = Counter()
        for told in self._told.values():
            faults.update(told["faults"])
            for name, value in told.items():
                if name != "faults":
                    total[name] = total.get(name, 0) + value
        head = self.head
        return {
            **total,
            "faults": dict(sorted(faults.items())),
            "believed": sum(sighting.online is True for sighting in head.sightings.values()),
            "commands": len(head.sent) + len(head.ended),
            "commands_open": len(head.sent),
            "events_delivered": head.delivered,
            "events_skipped": head.skipped,
            "uploads_twice": sum(count - 1 for count in head.uploads.values()),
            "malformed": head.malformed,
        }

    def befall(self, what: str, count: int, for_s: float) -> None:
        """Let something happen to some devices, the same number of each process."""
        line = json.dumps({"do": what, "count": max(1, count // len(self._processes)), "for_s": for_s}) + "\n"
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line.encode())
            process.stdin.flush()

    def close(self) -> None:
        """End everything."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(20.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.head.mqtt.close()
        if self.broker is not None:
            self.broker.stop()


@contextlib.contextmanager
def started(plan: Plan, folder: Path) -> Iterator[Fleet]:
    """A fleet that is ended in any case."""
    fleet = Fleet(plan, folder)
    try:
        yield fleet
    finally:
        fleet.close()


def live(fleet: Fleet, told: Callable[[float, dict[str, Any], list[str]], None]) -> dict[str, Any]:
    """Let a fleet live through what its plan says, and then come to rest.

    Args:
        fleet: started.
        told: is told once a second: seconds since the beginning, totals, and the last things that happened.

    Returns:
        Totals at the end, with `broken`: promises that were not kept, in words.
    """
    plan, begun_s = fleet.plan, time.monotonic()
    happened: list[str] = []

    def say(what: str) -> None:
        happened.append(f"{time.monotonic() - begun_s:6.0f} s  {what}")
        del happened[:-8]

    kinds = [kind for kind in plan.chaos if kind != "restart"]
    end_s = begun_s + 60.0 * plan.minutes
    chaos_s, restart_s, said_s, order_s = begun_s + CHAOS_S, begun_s + RESTART_S / 2, 0.0, begun_s
    back_s: float | None = None
    busy_s = begun_s
    names = fleet.names()
    if "restart" in plan.chaos and fleet.broker is None:
        say("the broker is not ours: it is not restarted")
    while True:
        now_s = time.monotonic()
        over = now_s >= end_s
        totals = fleet.totals()
        if over and back_s is None:
            quiet = not fleet.head.sent and totals.get("events_waiting") == 0 and not totals.get("clones")
            quiet = quiet and totals["up"] + totals["away"] >= totals["devices"] and totals["believed"] >= totals["up"]
            busy_s = busy_s if quiet else now_s
            if now_s >= busy_s + QUIET_S or now_s >= end_s + SETTLE_S:
                break
        if now_s >= said_s:
            said_s = now_s + 1.0
            fleet.head.repeat()
            told(now_s - begun_s, totals, happened)
        if not over and fleet.head.up and plan.commands_hz > 0 and now_s >= order_s:
            order_s = max(order_s + 1.0 / plan.commands_hz, now_s - 1.0)
            fleet.head.order(fleet.rng.choice(names))
        if not over and kinds and now_s >= chaos_s:
            chaos_s = now_s + CHAOS_S
            what, count = fleet.rng.choice(kinds), max(1, round(SHARE * plan.devices))
            fleet.befall(what, count, LASTS_S[what])
            say(f"{what}: {count} devices")
        if not over and "restart" in plan.chaos and fleet.broker is not None and now_s >= restart_s:
            restart_s, back_s = now_s + RESTART_S, now_s + DOWN_S
            fleet.broker.kill()
            say("the broker is killed (SIGKILL)")
        if fleet.broker is not None and back_s is not None and now_s >= back_s:
            back_s = None
            fleet.broker.restart()
            say("the broker is there again")
        fleet.turn(0.05)
    totals = fleet.totals()
    return {**totals, "seconds": round(time.monotonic() - begun_s, 1), "broken": broken(totals)}


def broken(totals: dict[str, Any]) -> list[str]:
    """Promises that were not kept.

    Args:
        totals: at the end.

    Returns:
        In words; empty when all were kept.
    """
    lost = totals["events_skipped"] - totals["events_dropped"]
    missing = totals["devices"] - totals["up"] - totals["away"]
    unseen = totals["up"] - totals["believed"]
    faults = {
        f"{totals['duplicate_effects']} jobs were carried out more than once": totals["duplicate_effects"],
        f"{lost} events were lost beyond those that gave way": lost > 0,
        f"{totals['commands_open']} commands have not ended": totals["commands_open"],
        f"{totals['events_waiting']} events still wait": totals["events_waiting"],
        f"{totals['clones_unnamed']} clones were not noticed": totals["clones_unnamed"],
        f"{missing} devices have no session": missing > 0,
        f"{unseen} devices are there and believed to be gone": unseen > 0,
        f"{totals['malformed']} messages could not be read": totals["malformed"],
    }
    return [why for why, so in faults.items() if so]
