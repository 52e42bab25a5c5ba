"""`edgert fleet twin|job|schedule` against the device's own logic, at a real broker."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgert import bus, wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER, fleet, talk
from edgert.cli import duties as commands
from edgert.config import Config, Device, Policy
from edgert.errors import ConfigError, LinkError, MessageError
from edgert.fleet import duties
from edgert.fleet.duties import Context
from edgert.fleet.when import Facts
from edgert.ports import onlooker
from edgert.ports.mqtt import LinkUp, Mqtt, Received
from edgert.programs import operator


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broker keeps comes at once here."""
    monkeypatch.setattr(talk, "QUIET_S", 0.4)
    monkeypatch.setattr(onlooker, "QUIET_S", 0.4)


class Peer:
    """A device whose disk is a dictionary, and whose jobs are done at once, but for those of the kind `bench`."""

    def __init__(self, url: str, name: str) -> None:
        config = Config(device=Device(id=name), policy=Policy(bundle="b"))
        self.context = Context(config=config, n_exits=3, facts=Facts(mains=True, link_up=True))
        self.duties, _ = duties.open_duties({}, {}, {}, {}, self.context, 0.0)
        self.done: list[bus.DoJob] = []
        self.up, self.leave = threading.Event(), threading.Event()
        self._mqtt = Mqtt(url, f"peer-{name}", session_expiry_s=0)
        self._mqtt.subscribe([(topic, 1) for topic in duties.subscriptions(config)])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._mqtt as mqtt:
            while not self.leave.wait(0.02):
                for event in mqtt.events():
                    if isinstance(event, LinkUp):
                        self._take(duties.link_up(self.duties, self.context))
                        self.up.set()
                    elif isinstance(event, Received):
                        message = bus.Received(event.topic, event.payload, None, event.retain)
                        try:
                            topic = wire.parse_topic(event.topic)
                            self._take(duties.receive(self.duties, topic, message, self.context, time.monotonic()))
                        except MessageError as error:
                            print(error)
                timed = bus.Timed(time.time(), "b")
                self._take(duties.tick(self.duties, timed, self.context, time.monotonic()))
                name = self.context.config.device.id
                shown = wire.Telemetry(at_s=0.0, status=duties.shown(self.duties, time.monotonic(), name))
                mqtt.publish(str(wire.Topic("default", name, "tele", "device")), wire.encode(shown), qos=0)

    def _take(self, answer: tuple[duties.Duties, list[bus.Effect]]) -> None:
        self.duties, effects = answer
        for effect in effects:
            match effect:
                case bus.Publish():
                    self._mqtt.publish(effect.topic, effect.payload, qos=effect.qos, retain=effect.retain)
                case bus.WriteJob(id_, _, _):
                    self._take(duties.written(self.duties, bus.JobWritten(id_), self.context, time.monotonic()))
                case bus.DoJob(id_, kind, _):
                    self.done.append(effect)
                    if kind != "bench":
                        result = bus.JobDone(id_, "", {"n": 1})
                        self._take(duties.done(self.duties, result, self.context, time.monotonic()))

    def close(self) -> None:
        self.leave.set()
        self._thread.join(10)


@pytest.fixture
def peer(mosquitto: Any, request: pytest.FixtureRequest) -> Any:
    made = Peer(mosquitto.url, f"p{abs(hash(request.node.name)) % 10**9}")
    assert made.up.wait(30)
    yield made
    made.close()


@pytest.fixture
def say(peer: Peer, mosquitto: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    def said(*words: str, timeout_s: float = 30.0) -> tuple[int, str]:
        device = peer.context.config.device.id
        code = fleet.main([*words, "--device", device, "--broker", mosquitto.url, "--timeout-s", str(timeout_s)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return said


def test_wishes_are_set_merged_shown_and_unset(say: Any) -> None:
    code, out = say("twin", "set", 'labels.site="north"', "goals.max_power_w=3.5", "learn.paused=true")
    assert (code, "version 1" in out) == (OK, True)
    assert say("twin", "set", 'labels.row="7"')[0] == OK
    document = json.loads(say("twin", "get", "--json")[1])
    assert document["taken"] is True
    assert document["reported"]["settings"]["labels"] == {"site": "north", "row": "7"}
    assert document["reported"]["settings"]["goals"]["max_power_w"] == 3.5
    assert say("twin", "set", "--unset", "labels.site", "goals")[0] == OK
    code, out = say("twin", "get")
    assert "north" not in out and '"row": "7"' in out
    assert say("twin", "set", 'labels.row="7"')[0] == NOTHING_TO_DO


def test_what_the_device_refuses_is_an_error_with_its_reason(say: Any) -> None:
    code, out = say("twin", "set", "goals.max_power_w=-1", 'labels.a="b"')
    assert code == ERROR
    assert "goals refused" in out and "labels refused" not in out
    code, out = say("twin", "get")
    assert "refused goals" in out


def test_schedules_are_added_listed_and_removed(say: Any, peer: Peer) -> None:
    assert say("schedule", "list")[0] == NOTHING_TO_DO
    added = say("schedule", "add", "night", "train", "--cron", "0 3 * * *", "--tz", "Europe/Berlin", "--charging")
    assert added[0] == OK, added
    assert say("schedule", "add", "often", "fetch", "--every-s", "60", "--arg", "for_s=5")[0] == OK
    assert peer.duties.twin.wishes.schedules["night"].when.charging
    code, out = say("schedule", "list")
    assert (code, "0 3 * * * Europe/Berlin" in out, "in force" in out) == (OK, True, True)
    assert say("schedule", "remove", "night")[0] == OK
    assert set(json.loads(say("schedule", "list", "--json")[1])) == {"often"}
    assert set(peer.duties.agenda.schedules) == {"often"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["schedule", "add", "x", "train", "--cron", "99 * * * *"], "minute"),
        (["schedule", "add", "x y", "train", "--cron", "* * * * *"], "letters"),
        (["schedule", "add", "x", "train", "--every-s", "1"], "every_s"),
        (["job", "start", "fetch", "--arg", "for_s=-1"], "for_s"),
        (["job", "start", "train", "--battery-above", "7"], "battery_above_frac"),
        (["job", "start", "train", "--arg", "x"], "write name=value"),
        (["job", "start", "train", "--bundle", "x"], "only a job of kind update"),
        (["twin", "set", "broker.url=1"], "cannot be set from afar"),
        (["twin", "set", "--unset", "labels"], "not set"),
    ],
)
def test_what_makes_no_sense_is_said_here(say: Any, words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        say(*words)


def test_a_job_is_started_done_once_shown_and_listed(say: Any, peer: Peer) -> None:
    assert say("job", "list")[0] == NOTHING_TO_DO
    code, out = say("job", "start", "upload", "--id", "j1", "--wait")
    assert (code, "j1 upload: done" in out) == (OK, True)
    assert say("job", "start", "upload", "--id", "j1", "--wait")[0] == OK
    assert [job.id for job in peer.done] == ["j1"]
    code, out = say("job", "show", "j1", "--json")
    assert (code, json.loads(out)["result"]) == (OK, {"n": 1})
    code, out = say("job", "list")
    assert (code, "j1" in out) == (OK, True)
    assert say("job", "show", "unknown")[0] == NOTHING_TO_DO


def test_a_running_job_is_cancelled(say: Any) -> None:
    code, out = say("job", "start", "bench", "--id", "j2")
    assert (code, "running" in out or "scheduled" in out) == (OK, True)
    code, out = say("job", "cancel", "j2")
    assert (code, "cancelled" in out) == (OK, True)
    assert say("job", "start", "bench", "--id", "j2", "--wait")[0] == ERROR


def test_a_job_that_waits_says_so_and_one_that_takes_long_is_said_later(say: Any) -> None:
    assert say("job", "start", "train", "--id", "j3", "--battery-below", "0.1")[0] == OK
    code, out = say("job", "start", "train", "--id", "j3", "--wait", timeout_s=2.0)
    assert (code, "scheduled within 2 s" in out) == (RETRY_LATER, True)


def test_a_drained_device_ends_what_it_runs_and_begins_nothing(say: Any, peer: Peer) -> None:
    assert say("job", "start", "bench", "--id", "j4")[0] == OK
    code, out = say("drain", timeout_s=3.0)
    assert code == RETRY_LATER and "j4 still run" in out
    assert say("job", "start", "upload", "--id", "j5")[0] == OK
    code, out = say("job", "show", "j5")
    assert "waits: drained" in out
    assert say("job", "cancel", "j4")[0] == OK
    code, out = say("drain", "--json")
    assert code == OK and json.loads(out.splitlines()[-1]) == {"drained": True}
    assert [job.id for job in peer.done] == ["j4"]
    assert say("drain", "--undo")[0] == OK
    assert say("job", "start", "upload", "--id", "j5", "--wait")[0] == OK
    assert [job.id for job in peer.done] == ["j4", "j5"]


def test_devices_are_meant_by_their_labels(
    say: Any, peer: Peer, mosquitto: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say("twin", "set", 'labels.site="barn-9"')[0] == OK
    whom = ["--label", "site=barn-9", "--broker", mosquitto.url, "--timeout-s", "30"]
    assert fleet.main(["job", "start", "upload", "--id", "j6", "--wait", *whom]) == OK
    assert [job.id for job in peer.done] == ["j6"]
    capsys.readouterr()
    both = ["--device", peer.context.config.device.id, "nobody-here", "--broker", mosquitto.url, "--timeout-s", "20"]
    assert fleet.main(["job", "list", "--json", *both]) == OK
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [job["id"] for job in first["told"]] == ["j6"] and second == {"device": "nobody-here", "told": []}
    with pytest.raises(ConfigError, match="no device"):
        fleet.main(["job", "list", "--label", "site=nowhere", "--broker", mosquitto.url])


def test_without_a_device_or_a_broker_it_is_said_in_time(mosquitto: Any, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ["--device", "nobody", "--broker", mosquitto.url, "--timeout-s", "3"]
    assert fleet.main(["twin", "set", "learn.paused=true", *nobody]) == RETRY_LATER
    assert "waits at the broker" in capsys.readouterr().err
    code = fleet.main(["twin", "get", *nobody])
    assert (code, "has not taken version 1 yet" in capsys.readouterr().out) == (OK, True)
    with pytest.raises(LinkError):
        fleet.main(["job", "list", "--device", "d", "--broker", "mqtt://127.0.0.1:1", "--timeout-s", "1"])


def test_a_bundle_is_one_version_for_all_and_goes_to_the_broker_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[object] = []

    class Operator:
        def __init__(self, *_: object) -> None:
            pass

        def publish_bundle(self, offer: wire.PolicyOffer, _: bytes) -> None:
            done.append(offer.version)

        def withdraw(self, devices: list[str]) -> None:
            done.append(devices)

        def close(self) -> None:
            pass

    def make_offer(_: bytes, **__: object) -> wire.PolicyOffer:
        fields = {"id": "u", "name": "n", "sha256": "0" * 64, "size_bytes": 1, "chunk_bytes": 1024, "hashes": bytes(16)}
        return wire.PolicyOffer(**fields, version=1 + len(done))  # type: ignore[arg-type]  # each is of its type

    monkeypatch.setattr(operator, "Operator", Operator)
    monkeypatch.setattr(operator, "make_offer", make_offer)
    (tmp_path / "b.edgert").write_bytes(b"x")
    told = argparse.Namespace(
        arg=[],
        bundle=tmp_path / "b.edgert",
        kind="update",
        offer=None,
        release=None,
        broker="",
        fleet="f",
        timeout_s=1.0,
    )
    args = []
    for device in ("a", "b"):
        told.device = device
        args.append(commands._args(told))
    assert args[0] == args[1] and args[0]["version"] == 1 and done == [1, ["a"], ["b"]]


def test_what_is_no_schedule_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever lies at the broker."""
    desired = wire.TwinDesired(epoch=1, version=1, settings={"schedules": {"odd": 1, "night": {"kind": "train"}}})
    assert commands._show_schedules(argparse.Namespace(json=False), desired, None) == OK
    out = capsys.readouterr().out
    assert "night" in out and "odd" not in out
