"""`edgert fleet twin|job|schedule` against the device's own logic, at a real broker."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from edgert import bus, wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER, fleet
from edgert.config import Config, Device, Policy
from edgert.errors import ConfigError, LinkError, MessageError
from edgert.fleet import duties
from edgert.fleet.duties import Context
from edgert.fleet.when import Facts
from edgert.ports.mqtt import LinkUp, Mqtt, Received


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
        (["job", "start", "train", "--arg", "x"], "TOML"),
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


def test_without_a_device_or_a_broker_it_is_said_in_time(mosquitto: Any, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ["--device", "nobody", "--broker", mosquitto.url, "--timeout-s", "3"]
    assert fleet.main(["twin", "set", "learn.paused=true", *nobody]) == RETRY_LATER
    assert "waits at the broker" in capsys.readouterr().err
    code = fleet.main(["twin", "get", *nobody])
    assert (code, "has not taken version 1 yet" in capsys.readouterr().out) == (OK, True)
    with pytest.raises(LinkError):
        fleet.main(["job", "list", "--device", "d", "--broker", "mqtt://127.0.0.1:1", "--timeout-s", "1"])
