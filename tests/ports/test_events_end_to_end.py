"""Spool, outbox, broker and collector together: the broker is killed, and every event arrives once and in order."""

from __future__ import annotations

import time

import pytest

from edgert.fleet.session import (
    Acked,
    Collector,
    Down,
    Forget,
    LinkRules,
    OutboxRules,
    Refused,
    Send,
    Stored,
    Tick,
    Up,
    collect,
    open_outbox,
    step_outbox,
)
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received
from edgert.ports.spool import Bounds, Spool

pytestmark = pytest.mark.system
SWIFT = LinkRules(base_s=0.05, cap_s=0.2)


class Device:
    rules = OutboxRules(window=8, timeout_s=0.3, timeout_cap_s=0.6, hold_s=0.05)

    def __init__(self, url, path):
        self.spool = Spool(path, {"events": Bounds(max_bytes=1 << 20)})
        self.stream = self.spool.streams["events"]
        self.box = open_outbox(self.stream.id, self.stream.first_seq, self.stream.last_seq, self.rules)
        self.mqtt = Mqtt(url, "device", rules=SWIFT).start()
        self.mqtt.subscribe([("ack", 1)])

    def step(self, event):
        self.box, effects = step_outbox(self.box, event, time.monotonic(), self.rules)
        for effect in effects:
            match effect:
                case Send(after=after, up_to=up_to, first=first):
                    for seq, payload in self.spool.peek("events", after, up_to - after):
                        facts = [("stream", self.stream.id), ("first", str(first)), ("seq", str(seq))]
                        if not self.mqtt.publish("event", payload, qos=1, user=facts):
                            self.step(Refused(seq))
                            break
                case Forget(up_to=up_to):
                    self.spool.acknowledge("events", up_to)

    def happen(self, payload):
        self.spool.append("events", payload, time.time())
        self.step(Stored(self.stream.first_seq, self.stream.last_seq))

    def turn(self):
        for event in self.mqtt.events():
            match event:
                case LinkUp():
                    self.step(Up())
                case LinkDown():
                    self.step(Down())
                case Received(payload=payload):
                    stream, up_to = payload.decode().split()
                    self.step(Acked(stream, int(up_to)))
        self.step(Tick())


class Operator:
    def __init__(self, url):
        self.mqtt = Mqtt(url, "operator", rules=SWIFT).start()
        self.mqtt.subscribe([("event", 1)])
        self.collector, self.delivered = Collector(), []

    def turn(self):
        for event in self.mqtt.events():
            if isinstance(event, Received):
                facts = dict(event.user)
                self.collector, deliver, ack = collect(
                    self.collector, facts["stream"], int(facts["first"]), int(facts["seq"])
                )
                if deliver:
                    self.delivered.append(event.payload)
                self.mqtt.publish("ack", f"{facts['stream']} {ack}".encode(), qos=1)


def test_every_event_arrives_once_and_in_order(fresh_mosquitto, tmp_path, until):
    path = tmp_path / "events.db"
    device, operator = Device(fresh_mosquitto.url, path), Operator(fresh_mosquitto.url)

    def turn():
        device.turn()
        operator.turn()

    def settled(count):
        turn()
        return len(operator.delivered) >= count

    try:
        for n in range(150):
            device.happen(b"%d" % n)
            turn()
            match n:
                case 30 | 90:
                    fresh_mosquitto.kill9()
                case 45 | 105:
                    fresh_mosquitto.restart()
                case 60:
                    device.mqtt.close(goodbye=False)
                    device.spool.close()
                    device = Device(fresh_mosquitto.url, path)
        until(lambda: settled(150), "delivery of every event")
        until(lambda: turn() or device.stream.count == 0, "an empty store")
        assert operator.delivered == [b"%d" % n for n in range(150)]
        assert operator.collector.skipped == 0
    finally:
        device.mqtt.close()
        device.spool.close()
        operator.mqtt.close()
