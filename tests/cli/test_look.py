"""What people see of a fleet: of devices that the test plays at a real broker."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgert import cli, wire
from edgert.cli import NOTHING_TO_DO, OK, RETRY_LATER
from edgert.ports import onlooker
from edgert.ports.link import Published
from edgert.ports.mqtt import Mqtt

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broker keeps comes at once here."""
    monkeypatch.setattr(onlooker, "QUIET_S", 0.4)


class Fleet:
    """Says what devices say, under a fleet's name of its own."""

    def __init__(self, url: str, until: Callable[..., None]) -> None:
        self.name, self.url, self.until = f"f{secrets.token_hex(4)}", url, until
        self.kept: set[str] = set()
        self.mqtt = Mqtt(url, f"look-{self.name}", session_expiry_s=0).start()
        until(self.mqtt.is_up)

    def say(self, device: str, *where: str, message: wire.Message | None, retain: bool = True) -> None:
        topic, token = str(wire.Topic(self.name, device, *where)), object()
        payload = b"" if message is None else wire.encode(message)
        assert self.mqtt.publish(topic, payload, qos=1, retain=retain, token=token)
        said: list[Any] = []
        self.until(lambda: said.extend(self.mqtt.events()) or any(getattr(e, "token", 0) is token for e in said))
        assert all(e.ok for e in said if isinstance(e, Published))
        self.kept |= {topic} if retain else set()

    def run(self, *words: str) -> int:
        return cli.main(["fleet", *words, "--fleet", self.name, "--broker", self.url])

    def close(self) -> None:
        for topic in self.kept:
            self.mqtt.publish(topic, b"", qos=1, retain=True)
        self.mqtt.close()


@pytest.fixture
def made(mosquitto: Any, until: Callable[..., None]) -> Iterator[Fleet]:
    fleet = Fleet(mosquitto.url, until)
    yield fleet
    fleet.close()


def there(fleet: Fleet, device: str, label: str = "") -> None:
    birth = wire.Status(online=True, session=device, version="1", task="t", seq=1)
    fleet.say(device, "status", "device", message=birth)
    report = wire.PolicyReport(id="", stage="none", labels=(label,) if label else ())
    fleet.say(device, "policy", "report", message=report)


def test_a_fleet_is_shown_a_line_each_and_as_json(made: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.run("status", "--for-s", "0") == NOTHING_TO_DO
    there(made, "a", "lab")
    there(made, "b")
    made.say("b", "status", "device", message=wire.Status(online=False, session="b"))
    capsys.readouterr()
    assert made.run("status", "--for-s", "0") == OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["device", "state"], ["a", "online"], ["b", "offline"]]
    assert "\x1b" not in "".join(lines)  # a pipe gets no colours
    assert made.run("status", "--for-s", "0", "--json", "--label", "lab") == OK
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["device"], row["state"], row["labels"]) == ("a", "online", "lab")
    assert made.run("status", "--for-s", "0", "--label", "nowhere") == cli.BAD_CONFIG


def test_a_late_will_of_an_old_session_leaves_a_device_where_it_is(made: Fleet, capsys: Any) -> None:
    done = threading.Event()

    def late() -> None:
        there(made, "a")
        made.say("a", "status", "device", message=wire.Status(online=False, session="older"))
        done.set()

    thread = threading.Timer(0.8, late)
    thread.start()
    assert made.run("watch", "--for-s", "2.5", "--json") == OK
    thread.join()
    assert done.is_set()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["state"] for each in told if each["what"] == "state"] == ["online"]


def test_all_of_one_device(made: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.run("show", "a", "--for-s", "0") == NOTHING_TO_DO
    there(made, "a")
    made.say("a", "job", "state", "j1", message=wire.JobState(id="j1", kind="bench", state="scheduled", why="waits"))
    twin = wire.TwinReported(epoch=1, version=3, settings={"labels": {"site": "barn"}}, refused={"goals": "no"})
    made.say("a", "twin", "reported", message=twin)
    capsys.readouterr()
    assert made.run("show", "a", "--for-s", "0") == OK
    told = capsys.readouterr().out
    assert "twin version 3" in told and "refused goals: no" in told and "site=barn" in told and "j1" in told
    assert made.run("show", "a", "--for-s", "0", "--json") == OK
    assert json.loads(capsys.readouterr().out)["known"]["twin"]["version"] == 3
    assert made.run("show", "a/b") == cli.BAD_CONFIG


def test_what_happens_is_told_once(made: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    event = wire.Event(stream="s", seq=4, first=1, at_s=1.0, name="boiled", detail={"blob": b"\x01"})

    def happen() -> None:
        for _ in range(3):
            made.say("a", "evt", "device", message=event, retain=False)
        made.say("a", "job", "state", "j", message=wire.JobState(id="j", kind="train", state="done"))

    thread = threading.Timer(0.8, happen)
    thread.start()
    assert made.run("watch", "--for-s", "2.5", "--json") == OK
    thread.join()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["name"] for each in told if each["what"] == "event"] == ["boiled"]
    assert [each["state"] for each in told if each["what"] == "job"] == ["done"]


def test_nobody_there_is_for_later(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["status"], ["show", "a"], ["watch"]):
        code = cli.main(["fleet", *verb, "--broker", "mqtt://me:secret@127.0.0.1:1", "--timeout-s", "0.5"])
        assert code == RETRY_LATER
    assert "secret" not in capsys.readouterr().err
