"""A fleet's events and figures, from devices that the test plays at a real broker, into files and to other systems."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert import cli, wire
from edgert.cli import BAD_CONFIG, NOTHING_TO_DO, OK, export
from edgert.fleet import roster
from edgert.fleet.session import Acked, Outbox, Send, Stored, Tick, Up, open_outbox, step_outbox
from edgert.ports import onlooker
from edgert.ports.link import Received
from edgert.ports.mqtt import Mqtt

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broker keeps comes at once here."""
    monkeypatch.setattr(onlooker, "QUIET_S", 0.4)


class Device(threading.Thread):
    """The outbox of a device, and its telemetry, over a real broker."""

    def __init__(self, url: str, fleet: str, name: str, n_events: int) -> None:
        super().__init__(daemon=True)
        self.fleet, self.device, self.leave = fleet, name, threading.Event()
        self.n_events = n_events
        self.box: Outbox = open_outbox(f"stream-{name}", 1, n_events)
        self.mqtt = Mqtt(url, f"export-{fleet}-{name}", session_expiry_s=0).start()
        self.mqtt.subscribe([(str(wire.Topic(fleet, name, "cmd", "ack")), 1)])
        self.start()

    def say(self, *where: str, message: wire.Message, **options: Any) -> None:
        self.mqtt.publish(str(wire.Topic(self.fleet, self.device, *where)), wire.encode(message), qos=1, **options)

    def step(self, event: Any, now_s: float) -> None:
        self.box, effects = step_outbox(self.box, event, now_s)
        for effect in effects:
            if isinstance(effect, Send):
                for seq in range(effect.after + 1, effect.up_to + 1):
                    event_ = wire.Event(stream=self.box.stream, seq=seq, first=effect.first, at_s=float(seq), name="e")
                    self.say("evt", "device", message=event_)

    def run(self) -> None:
        up = False
        now_s = 0.0
        while not self.leave.wait(0.05):
            now_s += 1.0  # it is impatient
            for event in self.mqtt.events():
                if isinstance(event, Received):
                    ack, _ = wire.decode(event.payload, wire.EventAck)
                    self.step(Acked(ack.stream, ack.up_to), now_s)
            if not up and self.mqtt.is_up():
                up = True
                birth = wire.Status(online=True, session="s", version="1", task="t", seq=1)
                self.say("status", "device", message=birth, retain=True)
                self.step(Up(), now_s)
            self.step(Stored(1, self.n_events), now_s)
            self.step(Tick(), now_s)
            status = {"session": "s", "board": {"temp_c": 41.0}, "actor": {"ticks": int(now_s), "missed": 0}}
            self.say("tele", "device", message=wire.Telemetry(at_s=now_s, status=status))

    def close(self) -> None:
        self.leave.set()
        self.join(10)
        self.mqtt.publish(str(wire.Topic(self.fleet, self.device, "status", "device")), b"", qos=1, retain=True)
        self.mqtt.close()


@pytest.fixture
def device(mosquitto: Any) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []
    fleet = f"x{secrets.token_hex(4)}"

    def make(name: str, n_events: int) -> Device:
        made.append(Device(mosquitto.url, fleet, name, n_events))
        return made[-1]

    yield make
    for each in made:
        each.close()


def run(mosquitto: Any, fleet: str, *words: str, for_s: float = 3.0) -> int:
    return cli.main(["fleet", "export", "--fleet", fleet, "--broker", mosquitto.url, "--for-s", str(for_s), *words])


def events(path: Path) -> list[tuple[str, int]]:
    return [(row["device"], row["seq"]) for row in map(json.loads, path.read_text().splitlines())]


def test_every_event_is_in_the_file_once_and_devices_forget_only_what_is(
    device: Callable[..., Device], mosquitto: Any, tmp_path: Path
) -> None:
    one, two = device("a", 100), device("b", 3)
    path = tmp_path / "events.jsonl"

    def collect_all(*devices: Device) -> None:
        for _ in range(30):  # one run is enough, but for a machine that has much else to do
            assert run(mosquitto, one.fleet, "--events", str(path), "--acknowledge") == OK
            if all(each.box.floor == each.n_events for each in devices):
                return
        raise AssertionError([each.box.floor for each in devices])

    collect_all(one, two)
    # The power went after rows that nobody noted, and in the middle of one: the devices were never told of these.
    with path.open("ab") as file:
        file.write(b'{"device": "a", "seq": 101')
    one.n_events = 120
    collect_all(one)
    assert sorted(events(path)) == [("a", n) for n in range(1, 121)] + [("b", n) for n in range(1, 4)]
    assert [seq for name, seq in events(path) if name == "a"] == list(range(1, 121))


def test_who_only_looks_makes_no_device_forget(device: Callable[..., Device], mosquitto: Any, tmp_path: Path) -> None:
    one = device("a", 5)
    path = tmp_path / "events.csv"
    assert run(mosquitto, one.fleet, "--events", str(path), for_s=2.0) == OK
    assert one.box.floor == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "device,stream,seq,at_s,name,detail" and len(lines) == len(set(lines))


def test_figures_go_to_files_and_to_home_assistant(
    device: Callable[..., Device], mosquitto: Any, tmp_path: Path, until: Callable[..., None]
) -> None:
    pytest.importorskip("prometheus_client")
    one = device("a", 1)
    telemetry, prom = tmp_path / "t.csv", tmp_path / "f.prom"
    with Mqtt(mosquitto.url, f"home-{one.fleet}", session_expiry_s=0) as home:
        home.subscribe([(f"ha-{one.fleet}/#", 1), (f"edgert-home/{one.fleet}/#", 1)])
        until(home.is_up)
        more = ("--textfile", str(prom), "--home-assistant", f"ha-{one.fleet}", "--every-s", "1")
        assert run(mosquitto, one.fleet, "--telemetry", str(telemetry), *more, for_s=3.0) == OK
        said = {each.topic: each for each in home.events() if isinstance(each, Received)}
        for topic in said:
            home.publish(topic, b"", qos=1, retain=True)
    assert said[f"edgert-home/{one.fleet}/a/availability"].payload == b"online"
    assert said[f"edgert-home/{one.fleet}/-/availability"].payload == b"offline", "it left"
    assert f"ha-{one.fleet}/sensor/edgert-{one.fleet}-a/temp_c/config" in said
    assert f'edgert_device_temperature_celsius{{device="a",fleet="{one.fleet}"}} 41.0' in prom.read_text()
    head, *rows = telemetry.read_text().splitlines()
    assert head.startswith("at_s,device,state") and len(rows) >= 2 and ",a,online," in rows[0]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--acknowledge"],
        ["--events", "x.txt"],
        ["--textfile", "x"],
        ["--otlp", "x"],
        ["--every-s=0", "--otlp", "x"],
    ],
)
def test_what_cannot_be_is_said_before_anything_else(words: list[str], mosquitto: Any, tmp_path: Path) -> None:
    assert cli.main(["fleet", "export", "--broker", mosquitto.url, *words]) == BAD_CONFIG


def test_nobody_there_is_nothing(mosquitto: Any, tmp_path: Path) -> None:
    fleet = f"x{secrets.token_hex(4)}"
    assert run(mosquitto, fleet, "--events", str(tmp_path / "e.jsonl"), for_s=0.5) == NOTHING_TO_DO


def test_a_broker_that_lets_nobody_write_for_home_assistant_is_told(
    fresh_mosquitto: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    acl = fresh_mosquitto.dir / "acl"
    acl.write_text("topic readwrite edgert/#\n")
    acl.chmod(0o644)
    fresh_mosquitto.configure(f"acl_file {acl}\n")
    one = Device(fresh_mosquitto.url, "f", "a", 0)
    try:
        assert run(fresh_mosquitto, "f", "--home-assistant", "--every-s", "0.5", for_s=3.0) == OK
    finally:
        one.close()
    assert capsys.readouterr().err.count("access list") == 1


class Seen:
    """An onlooker, as far as Home Assistant is told by it."""

    def __init__(self) -> None:
        self.links, self.said = 1, list[str]()

    def say(self, topic: str, _: bytes) -> bool:
        self.said.append(topic)
        return True


def test_home_assistant_is_told_again_over_a_new_link() -> None:
    """What was on its way when the last one broke is lost, and a broker may have begun anew."""
    seen = Seen()
    home = export._Home(seen, "f", "ha")  # type: ignore[arg-type]  # all of it that is used
    rows = [roster.row("a", roster.Entry(), (), 0.0)]
    home.show(rows)
    alive, *first = seen.said
    assert alive == "edgert-home/f/-/availability"
    home.show(rows)
    assert seen.said == [alive, *first, alive], "a late will of a predecessor said otherwise"
    seen.links = 2
    home.show(rows)
    assert seen.said == [alive, *first, alive, alive, *first]
