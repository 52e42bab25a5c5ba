"""Whoever is killed comes back by himself, and what was acknowledged is never lost.

One fleet lives through all of it, in the order of this file. A second one loses its broker for a whole minute
meanwhile: for half of it the broker is silent (the links are half-open), then it is gone (connections are refused).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgert import config, wire
from edgert.knowledge import codec
from edgert.ports.ring import SAFE
from edgert.ports.store import Generations
from edgert.programs import events

pytestmark = pytest.mark.system

SILENT_S, GONE_S = 30.0, 30.0
RATE_HZ = 20.0
GENEROUS_S = 10.0
"""What a restart may take on a machine that does something else besides; the figures measured are printed."""
Measured = Callable[..., None]


class Loop:
    """The act loop over a stretch of time: did it go on, by its own count and by what it wrote into the ring?"""

    def __init__(self, fleet: Any) -> None:
        self.fleet, self.ring = fleet, fleet.ring()
        self.actor = fleet.until_status(lambda s: s["actor"], "a report of the actor")["actor"]
        self.written, self.at_s = self.ring.newest_seq(), time.monotonic()

    def check(self) -> dict[str, object]:
        elapsed_s, written = time.monotonic() - self.at_s, self.ring.newest_seq() - self.written
        # The newest report may be older than the stretch: wait for one that covers it.
        ticks = self.actor["ticks"] + int(0.8 * RATE_HZ * elapsed_s)
        now = self.fleet.until_status(lambda s: s["actor"] and s["actor"]["ticks"] >= ticks, "ticks that go on")[
            "actor"
        ]
        assert now["pid"] == self.actor["pid"]
        missed, ticks = now["missed"] - self.actor["missed"], now["ticks"] - self.actor["ticks"]
        assert written >= 0.8 * RATE_HZ * elapsed_s - 2
        # Nothing in the loop waits for others; what a crowded machine takes from it is all that may be missed.
        assert missed <= max(2, 0.05 * ticks)
        return {"ticks": ticks, "missed": missed, "seconds": round(elapsed_s, 1)}


class Outage:
    """A fleet whose broker falls silent, and is then gone, while other tests run."""

    def __init__(self, fleet: Any) -> None:
        self.fleet = fleet
        self.began_s = 0.0
        self.before: dict[str, Any] = {}
        self.timer = threading.Timer(SILENT_S, self.vanish)

    def begin(self) -> None:
        self.before = self.fleet.until_status(
            lambda s: s["link"]["up"] and s["trainer"] and s["trainer"]["answered"] > 0, "a taught device"
        )
        self.loop = Loop(self.fleet)
        self.fleet.polled = False
        self.fleet.cluster.kill("broker", how=signal.SIGSTOP)
        self.began_s = time.monotonic()
        self.timer.start()

    def vanish(self) -> None:
        self.fleet.cluster.kill("broker")


@pytest.fixture(scope="module")
def outage(make_fleet: Callable[[str], Any]) -> Iterator[Outage]:
    made = Outage(make_fleet("outage"))
    yield made
    made.timer.cancel()


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[[str], Any]) -> Any:
    return make_fleet("fleet")


def test_both_fleets_play_learn_and_ask(fleet: Any, outage: Outage, acting: Any, measured: Measured) -> None:
    outage.begin()
    status = fleet.until_status(
        lambda s: acting(s) and s["trainer"] and s["trainer"]["steps"] > 20 and s["trainer"]["answered"] > 0,
        "acting, learning, being taught",
        90,
    )
    assert status["actor"]["generation"] >= fleet.GENERATION
    assert status["policy"]["generation"] >= fleet.GENERATION
    assert status["ready"]
    measured(first_action_s=status["actor"]["first_action_s"])


def test_a_killed_actor_comes_back_safe_first_and_then_with_the_same_network(
    fleet: Any, acting: Any, measured: Measured
) -> None:
    world, ring = fleet.pid("world"), fleet.ring()
    before = fleet.until_status(acting, "acting")
    pid = fleet.cluster.kill("actor")
    killed_s, last = time.monotonic(), ring.newest_seq()
    opened = ring.opened
    fleet.until(lambda: ring.newest_seq() > last, "the restarted actor's first record")
    gap_s = time.monotonic() - killed_s
    fleet.until(lambda: bool((ring.read(last + 1, ring.newest_seq()).flags & SAFE == 0).any()), "a policy acting again")
    recovery_s = time.monotonic() - killed_s
    records = ring.read(last + 1, ring.newest_seq())
    # One number is left out, so that nobody takes what the two actors saw for one transition. The killed one may have
    # written a last record after we looked.
    assert 1 <= records.left_out <= 1 + int(records.seq[0] == last + 1)
    assert records.seq[0] - last <= 2
    assert ring.opened == opened
    assert records.flags[0] & SAFE
    assert int(records.episode[0]) > 0
    after = fleet.until_status(lambda s: acting(s) and s["actor"]["pid"] != pid, "the new actor's report")
    assert fleet.pid("world") == world
    assert after["actor"]["generation"] == before["policy"]["generation"]
    assert after["actor"]["safe"] >= 1
    assert recovery_s <= GENEROUS_S
    assert not after["actor"]["faults"].get("observation-missing", 0) > 2
    measured(
        gap_ticks=round(gap_s * RATE_HZ),
        recovery_s=round(recovery_s, 2),
        safe_ticks=int((records.flags & SAFE > 0).sum()),
        start_to_first_action_s=after["actor"]["first_action_s"],
    )


def test_a_killed_supervisor_is_not_missed_by_the_act_loop(fleet: Any, measured: Measured) -> None:
    children = {role: fleet.pid(role) for role in ("world", "actor", "trainer")}
    loop, session = Loop(fleet), fleet.status()["session"]
    fleet.cluster.kill("supervisor")
    killed_s = time.monotonic()
    after = fleet.until_status(lambda s: s["session"] != session and s["link"]["up"], "a successor with a link")
    recovery_s = time.monotonic() - killed_s
    fleet.until_status(lambda s: s["trainer"] and s["actor"], "reports to the successor")
    assert {role: fleet.pid(role) for role in children} == children
    after = fleet.status()
    assert {role: child["pid"] for role, child in after["children"].items()} == children
    assert all(child["restarts"] == 0 for child in after["children"].values())
    assert after["policy"]["generation"] == after["actor"]["generation"] >= fleet.GENERATION
    measured(**loop.check(), link_up_again_s=round(recovery_s, 2))


def test_a_killed_trainer_resumes_from_its_checkpoint(fleet: Any, measured: Measured) -> None:
    loop, folder = Loop(fleet), fleet.cluster.state(fleet.DEVICE) / "checkpoints"
    fleet.until_status(lambda s: s["trainer"] and s["trainer"]["checkpoint"] > 0, "a checkpoint")
    reached = fleet.status()["trainer"]["steps"]
    pid = fleet.cluster.kill("trainer")
    killed_s = time.monotonic()
    found = Generations(folder).latest()
    assert found is not None
    committed = cbor2.loads(found[1])["steps"]
    first = fleet.until_status(lambda s: s["trainer"]["pid"] != pid, "the new trainer's report")["trainer"]
    back_s = time.monotonic() - killed_s
    assert committed > 0
    assert first["steps"] >= committed
    assert first["checkpoint"] >= found[0]
    again = fleet.until_status(lambda s: s["trainer"]["steps"] > first["steps"], "training that goes on")["trainer"]
    assert "checkpoint-broken" not in again["faults"]
    measured(steps=reached, committed=committed, resumed=first["steps"], back_s=round(back_s, 2), **loop.check())


def test_a_killed_teacher_is_asked_again_when_it_is_back(fleet: Any, measured: Measured) -> None:
    loop = Loop(fleet)
    fleet.cluster.kill("teacher")
    killed_s = time.monotonic()
    fleet.until(lambda: fleet.pid("teacher"), "another teacher")
    answered = fleet.until_status(lambda s: s["trainer"], "the trainer")["trainer"]["answered"]
    fleet.until_status(lambda s: s["trainer"]["answered"] > answered, "an answer of the new teacher", 60)
    measured(answered_again_s=round(time.monotonic() - killed_s, 2), **loop.check())


def test_a_hung_actor_is_killed_and_a_hung_trainer_does_not_matter(fleet: Any, acting: Any, measured: Measured) -> None:
    trainer = fleet.cluster.kill("trainer", how=signal.SIGSTOP)
    loop = Loop(fleet)
    actor = fleet.pid("actor")
    hung = fleet.names().count("child-hung")
    ticks = loop.actor["ticks"] + 3 * RATE_HZ
    fleet.until_status(lambda s: s["actor"]["ticks"] >= ticks, "an act loop beside a hung trainer")
    without_trainer = loop.check()
    os.kill(trainer, signal.SIGCONT)
    fleet.cluster.kill("actor", how=signal.SIGSTOP)
    stopped_s = time.monotonic()
    fleet.until_status(lambda s: acting(s) and s["actor"]["pid"] != actor, "another actor")
    assert fleet.pid("trainer") == trainer
    fleet.until(lambda: fleet.names().count("child-hung") == hung + 1, "the event")
    measured(acting_again_s=round(time.monotonic() - stopped_s, 2), **without_trainer)


class Hostile:
    """Somebody who may publish anything anywhere."""

    def __init__(self, port: int) -> None:
        self.ended: list[object] = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2, f"hostile-{random.random()}", protocol=paho.MQTTv5)
        self.client.on_disconnect = lambda *words: self.ended.append(words[3])
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def say(self, topic: str, payload: bytes, correlation: bytes | None = None, retain: bool = False) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if correlation is not None:
            properties.CorrelationData = correlation
        self.client.publish(topic, payload, 1, retain, properties).wait_for_publish(10)

    def throw(self, topic: str, size_bytes: int) -> None:
        """Send and do not wait: the broker may end the connection over it."""
        self.client.publish(topic, b"\xa1" * size_bytes, 0)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def poison(rng: random.Random) -> Iterator[bytes]:
    """Noise, and sound messages with something wrong."""
    ask = wire.KnowAsk(
        task="breakout",
        obs_shape=(10, 10, 4),
        n_actions=3,
        count=2,
        codec=codec.CODEC_FRAMES_ZSTD,
        data=codec.encode_obs(np.zeros((2, 10, 10, 4), np.uint8)),
    )
    q = codec.encode_q(np.zeros((2, 3), np.float32))
    answer = wire.KnowAnswer(teacher="t", count=2, codec=codec.CODEC_FRAMES_ZSTD, data=q)
    ack = wire.EventAck(stream="0" * 16, up_to=1 << 62)
    sound = [wire.encode(message) for message in (ask, answer, ack)]
    yield from sound
    for size_bytes in (0, 1, 7, 300, 5000, 900_000):
        yield rng.randbytes(size_bytes)
    for payload in sound:
        for _ in range(15):
            mutated = bytearray(payload)
            for _ in range(rng.choice((1, 1, 2, 8))):
                mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
            yield bytes(mutated)
        yield payload[:-1]
        yield payload + b"\0"
        for key, value in (
            ("schema", 10**5000),
            ("v", 10**5000),
            ("v", 2),
            ("count", -1),
            ("up_to", 1e300),
            ("error", "nonsense" * 100),
            ("data", b"\xff" * 500_000),
            ("stream", None),
            ("obs_shape", [1 << 40, 1, 1]),
        ):
            yield cbor2.dumps({**cbor2.loads(payload), key: value})
    for i in range(20):
        yield wire.encode(wire.KnowAnswer(teacher="t", count=0, codec=0, data=b"", error=f"reason {i} {'x' * 20_000}"))
    yield b"\x81" * 5000  # lists in lists
    yield b"\xd8\x1c\x81\xd8\x1d\x00"  # a list that holds itself
    yield cbor2.dumps({"schema": "know-answer", "v": 1, "x": {1: 2}})


def troubles(status: dict[str, Any]) -> int:
    """Messages that were found out, in whichever process."""
    faults = status["trainer"]["faults"] if status["trainer"] else {}
    named = ("answer-malformed", "teacher-refused")
    mine = ("malformed-messages", "foreign-ack", "absurd-ack")
    return sum(faults.get(name, 0) for name in named) + sum(status["counters"].get(name, 0) for name in mine)


def heard_by(fleet: Any) -> list[str]:
    """A topic for every subscription there is in the fleet."""
    name, task = fleet.cluster.fleet, fleet.status()["task"]
    places = [("know", "answer", task), ("cmd", "ack", "-"), ("cmd", "anything", "-"), ("cmd", "reboot", "now")]
    topics = [str(wire.Topic(name, fleet.DEVICE, *place)) for place in places]
    return [
        *topics,
        str(wire.Topic(name, fleet.DEVICE, "know", "ask", task)),
        str(wire.Topic(name, "x", "know", "ask", task)),
    ]


def untouched(fleet: Any, before: dict[str, Any]) -> dict[str, Any]:
    """The status once learning, asking and acting have gone on; nobody was started again, no link was lost."""
    now: dict[str, Any] = fleet.until_status(
        lambda s: (
            s["trainer"]["steps"] > before["trainer"]["steps"] + 10
            and s["trainer"]["answered"] > before["trainer"]["answered"]
        ),
        "learning that goes on",
        90,
    )
    assert {role: child["pid"] for role, child in now["children"].items()} == {
        role: child["pid"] for role, child in before["children"].items()
    }
    assert now["session"] == before["session"]
    assert now["link"]["ups"] == before["link"]["ups"]
    return now


def test_hostile_messages_on_every_topic_are_counted_and_change_nothing(fleet: Any, measured: Measured) -> None:
    topics, rng = heard_by(fleet), random.Random(1)
    before = fleet.until_status(lambda s: s["trainer"] and s["link"]["up"], "reports")
    teacher, loop = fleet.pid("teacher"), Loop(fleet)
    hostile = Hostile(fleet.cluster.port)
    said = 0
    try:
        for payload in poison(rng):
            for topic in topics:
                hostile.say(topic, payload, rng.choice((None, b"\0" * 8, rng.randbytes(8), b"abc")))
                said += 1
            fleet.look()
        hostile.say(topics[1], b"\xff retained", retain=True)
    finally:
        hostile.close()
    now = untouched(fleet, before)
    assert fleet.pid("teacher") == teacher
    assert now["counters"]["malformed-messages"] > before["counters"].get("malformed-messages", 0)
    assert troubles(now) - troubles(before) > said / len(topics)
    assert len(now["trainer"]["faults"]) < 20
    told = fleet.until(lambda: fleet.collector.teachers.get("teacher-1"), "the teacher's status")
    fleet.until(lambda: told[-1][1]["faults"].get("malformed", 0) > 50, "the teacher's count")
    faults = dict(told[-1][1]["faults"])
    measured(said=said, found_out=troubles(now) - troubles(before), teacher=faults, **loop.check())


def test_ten_megabytes_are_refused_by_the_broker(fleet: Any, measured: Measured) -> None:
    before = fleet.until_status(lambda s: s["trainer"] and s["link"]["up"], "reports")
    ended = 0
    for topic in heard_by(fleet):
        hostile = Hostile(fleet.cluster.port)
        hostile.throw(topic, 10 << 20)
        fleet.until(lambda h=hostile: h.ended, "the end of the hostile connection")
        ended += 1
        hostile.close()
    untouched(fleet, before)
    measured(thrown_out=ended)


def test_a_killed_broker_costs_no_event_and_no_tick(fleet: Any, measured: Measured) -> None:
    loop, before = Loop(fleet), fleet.status()
    trainer = fleet.cluster.kill("trainer")  # its end becomes an event that may be on its way when the broker dies
    fleet.cluster.kill("broker")
    killed_s = time.monotonic()
    # From here on it also takes what it refused before, so that the limits tested next are ours.
    config = fleet.cluster.out / "broker" / "mosquitto.conf"
    config.write_text(config.read_text().replace("max_packet_size 1048576", "max_packet_size 104857600"))
    fleet.until_status(lambda s: s["link"]["up"] and s["link"]["ups"] > before["link"]["ups"], "the link", 90)
    back_s = time.monotonic() - killed_s
    fleet.until_status(lambda s: s["trainer"]["pid"] != trainer, "another trainer")
    fleet.until_status(lambda s: s["link"]["events_waiting"] == 0, "an empty spool", 60)
    fleet.until_status(lambda s: s["trainer"]["answered"] > 0, "an answer to the new trainer", 60)
    assert fleet.collector.collected[fleet.DEVICE].skipped == 0
    measured(link_up_again_s=round(back_s, 2), events=len(fleet.collector.events), **loop.check())


def test_ten_megabytes_that_the_broker_lets_through_reach_nobody(fleet: Any, measured: Measured) -> None:
    before = fleet.until_status(lambda s: s["trainer"] and s["link"]["up"], "reports")
    teacher, loop = fleet.pid("teacher"), Loop(fleet)
    hostile = Hostile(fleet.cluster.port)
    try:
        for topic in heard_by(fleet):
            hostile.say(topic, b"\xa1" * (10 << 20))
        assert not hostile.ended
    finally:
        hostile.close()
    untouched(fleet, before)
    assert fleet.pid("teacher") == teacher
    measured(**loop.check())


def test_a_minute_without_a_broker(outage: Outage, measured: Measured) -> None:
    fleet, before, loop = outage.fleet, outage.before, outage.loop
    down = fleet.until_status(lambda s: not s["link"]["up"], "a link known to be down")
    assert down["budget"]["teacher_bytes_per_s"] == 0
    assert down["budget"]["why"]["teacher_bytes_per_s"] == "link-down"
    fleet.cluster.kill("trainer")
    down = fleet.until_status(
        lambda s: s["trainer"]["pid"] != down["trainer"]["pid"] and s["link"]["events_waiting"] > 0,
        "a waiting event",
        150,  # the trainer is niced: beside other work its start takes long
    )
    fleet.until(lambda: time.monotonic() - outage.began_s > SILENT_S + GONE_S, "the minute", 120)
    figures, waiting = loop.check(), fleet.status()["link"]["events_waiting"]
    fleet.polled = True  # the next look starts the broker again
    began_s = time.monotonic()
    fleet.until_status(lambda s: s["link"]["up"], "the link", 150)
    back_s = time.monotonic() - began_s
    fleet.until_status(lambda s: s["link"]["events_waiting"] == 0, "an empty spool", 60)
    after = fleet.until_status(lambda s: s["trainer"]["answered"] > down["trainer"]["answered"], "an answer", 180)
    assert after["session"] == before["session"]
    assert after["budget"]["why"]["teacher_bytes_per_s"] != "link-down"
    assert after["actor"]["pid"] == before["actor"]["pid"]
    measured(
        offline_s=round(began_s - outage.began_s),
        link_up_again_s=round(back_s, 1),
        events_waiting=waiting,
        asks_offline=after["counters"].get("asks-offline", 0),
        missed_in_all=after["actor"]["missed"],
        **figures,
    )


@pytest.mark.parametrize("which", ["fleet", "outage"])
def test_every_event_arrived_exactly_once(which: str, fleet: Any, outage: Outage, measured: Measured) -> None:
    each = fleet if which == "fleet" else outage.fleet
    each.until_status(lambda s: s["link"]["up"] and s["link"]["events_waiting"] == 0, "an empty spool", 90)
    streams = each.seqs()
    assert streams and all(seqs == list(range(1, len(seqs) + 1)) for seqs in streams.values())
    assert len(streams) <= len(events.bounds(config.Spool())), "the spool began anew"
    assert each.collector.collected[each.DEVICE].skipped == 0
    assert "Traceback" not in each.log()
    assert "Traceback" not in each.log("teacher-1")
    measured(events=len(each.collector.events), repeated=each.collector.again, names=sorted(set(each.names())))


@pytest.mark.parametrize("which", ["fleet", "outage"])
def test_a_fleet_that_is_stopped_leaves_in_good_order(which: str, fleet: Any, outage: Outage) -> None:
    each = fleet if which == "fleet" else outage.fleet
    stopped = each.cluster.halt()
    assert stopped.killed == []
    assert stopped.codes == {"device-1": 0, "teacher-1": 0}
    assert each.cluster.members() == []
