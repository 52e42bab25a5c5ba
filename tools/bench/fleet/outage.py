"""An hour without a broker, with kill -9 in the middle: is anything lost, and is what gave way counted exactly?

The device's own outbox, session and spool file, against a real broker that is killed; its clock runs faster while the
broker is away. It says of every event that the disk has it, once it has; the collector counts what arrives.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgert import bundle, config, wire
from edgert.fleet.session import Collector, collect
from edgert.ports import broker as brokers
from edgert.ports.link import Received
from edgert.ports.mqtt import Mqtt
from edgert.ports.spool import Spool
from edgert.programs import events
from edgert.programs.simdevices import FLEET, Town

MODEL = Path(__file__).parents[3] / "models" / "breakout.edgert"
HOUR_S = 3600.0
EVENT_S = 2.0
"""Of the device's time, between two events."""
PATIENCE_S = 120.0
QUIET_S = 4.0
NAME = "outage-test"


def device(url: str, path: Path, max_bytes: int, speed: float, first: int) -> None:
    """Be the device, until killed: a line for each event that is on the disk, its number and the time.

    Args:
        url: of the broker.
        path: of the spool.
        max_bytes: of it.
        speed: of the clock while there is no broker.
        first: events that happen also while there is one.
    """
    town = Town(url, 0, 1, 1, bundle.read(MODEL.read_bytes()).manifest)
    (one,) = town.devices
    spool = opened(path, max_bytes)
    one.disk.spool = spool
    now_s = real_s = begun_s = time.monotonic()
    next_s, number = now_s + 5.0, 0
    stream = spool.streams["events"]
    rng = random.Random(stream.last_seq)
    while True:
        for link in town.loop.turn(0.01):
            if link is one.link:
                one.hear(now_s)
        passed_s, real_s = time.monotonic() - real_s, time.monotonic()
        # A broker that is there answers in real time, and must not seem slow.
        now_s += passed_s * (1.0 if one.up else speed)
        if one.link is None:
            one.boot(now_s)
        one.beat(now_s)
        while now_s >= next_s:
            next_s += EVENT_S
            if one.up and number >= first:
                continue
            number += 1
            one.record(NAME, {"number": number, "noise": rng.randbytes(60)})
            one.work(now_s)
            print(stream.last_seq, round(now_s - begun_s), flush=True)


def opened(path: Path, max_bytes: int) -> Spool:
    """The device's store; the stream of what happens in this test has so many bytes."""
    return Spool(path, events.bounds(config.Spool(max_bytes=max_bytes)))


class Listener:
    """A collector of one device's events."""

    def __init__(self, url: str) -> None:
        """Connect, and stay connected."""
        self.state, self.seqs = Collector(), list[int]()
        self.again, self.heard_s = 0, 0.0
        self.mqtt = Mqtt(url, "outage-collector", session_expiry_s=0, max_queue_bytes=4 << 20, max_events=10_000)
        self.mqtt.subscribe([(str(wire.Topic(FLEET, "+", "evt", "+", "+")), 1)])
        self.mqtt.start()

    def hear(self) -> None:
        """Take what has come, and say so."""
        for each in self.mqtt.events():
            if isinstance(each, Received):
                event, _ = wire.decode(each.payload, wire.Event)
                self.state, deliver, up_to = collect(self.state, event.stream, event.first, event.seq)
                self.again += not deliver
                self.heard_s = time.monotonic()
                if deliver:
                    self.seqs.append(event.seq)
                if up_to:
                    topic = str(wire.Topic(FLEET, "sim-00000", "cmd", "ack"))
                    ack = wire.encode(wire.EventAck(stream=event.stream, up_to=up_to))
                    self.mqtt.publish(topic, ack, qos=1, content_type=wire.CONTENT_TYPE)


def run(*, max_bytes: int, speed: float, hours: float = 1.0) -> dict[str, Any]:
    """One outage.

    Args:
        max_bytes: of the spool.
        speed: of the device's clock.
        hours: of the outage, by that clock.
    """
    with tempfile.TemporaryDirectory() as name, brokers.start("mosquitto", Path(name) / "broker") as broker:
        path = Path(name) / "events.db"
        words = ["--url", broker.url, "--spool", str(path), "--max-bytes", str(max_bytes), "--speed", str(speed)]
        told = Path(name) / "written"
        listener = Listener(broker.url)

        def start(first: int) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tools.bench.fleet.outage", *words, "--first", str(first)]
            with told.open("wb") as out:
                return subprocess.Popen(command, stdout=out)

        def wait(until: Any, patience_s: float) -> bool:
            end_s = time.monotonic() + patience_s
            while time.monotonic() < end_s and not until():
                listener.hear()
                time.sleep(0.02)
            return bool(until())

        def written() -> tuple[int, float]:
            lines = told.read_bytes().split(b"\n")
            number, at_s = lines[-2].split() if len(lines) > 1 else (0, 0)
            return int(number), float(at_s)

        def pass_by(seconds: float) -> None:
            began_s = written()[1]
            assert wait(lambda: written()[1] >= began_s + seconds, PATIENCE_S), "the device does not go on"

        process = start(10)
        try:
            assert wait(lambda: len(listener.seqs) > 5, PATIENCE_S), "nothing came before the outage"
            broker.kill()
            before = len(listener.seqs)
            pass_by(hours * HOUR_S / 2)
            process.kill()
            process.wait()
            kept, _ = written()
            process = start(0)
            pass_by(hours * HOUR_S / 2)
            at_return, _ = written()
            broker.restart()
            caught = wait(lambda: listener.seqs[-1] >= at_return, PATIENCE_S)
            wait(lambda: time.monotonic() - listener.heard_s > QUIET_S, PATIENCE_S)
            process.kill()
            process.wait()
            with opened(path, max_bytes) as spool:
                stream = spool.streams["events"]
        finally:
            process.kill()
            listener.mqtt.close()
    # What was said to be on the disk has arrived, waits there still, or gave way and was counted.
    arrived = set(listener.seqs)
    held = set(range(stream.first_seq, stream.last_seq + 1))
    promised = set(range(1, stream.last_seq + 1))
    missing = promised - arrived - held
    return {
        "max_bytes": max_bytes,
        "outage_s": hours * HOUR_S,
        "speed": speed,
        "written": stream.last_seq,
        "written_by_return": at_return,
        "written_before_kill": kept,
        "delivered": len(listener.seqs),
        "delivered_before": before,
        "delivered_twice": listener.again,
        "waiting": stream.count,
        "gave_way": stream.dropped,
        "collector_skipped": listener.state.skipped,
        "lost": max(0, len(missing) - stream.dropped),
        "count_exact": len(missing) == listener.state.skipped == stream.dropped,
        "in_order": listener.seqs == sorted(arrived),
        "caught_up": caught,
    }


def main() -> None:
    """Be the device."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.fleet.outage", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--max-bytes", type=int, required=True)
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    device(args.url, args.spool, args.max_bytes, args.speed, args.first)


if __name__ == "__main__":
    main()
