"""The operator's end of a command, against a device played by the test at a real broker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from edgert import cli, wire
from edgert.cli import ERROR, OK, RETRY_LATER, fleet
from edgert.errors import ConfigError
from edgert.ports.mqtt import LinkUp, Mqtt, Received


class Device:
    """Answers each command with what `reply` makes of it."""

    def __init__(self, url: str, name: str, reply: Callable[[wire.ExitsCommand], bytes]) -> None:
        self.commands: list[wire.ExitsCommand] = []
        self.up, self.leave = threading.Event(), threading.Event()
        self._reply, self._name = reply, name
        self._mqtt = Mqtt(url, f"device-{name}", session_expiry_s=0)
        self._mqtt.subscribe([(str(wire.Topic("default", name, "cmd", "+", "+")), 1)])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._mqtt as mqtt:
            while not self.leave.wait(0.02):
                for event in mqtt.events():
                    if isinstance(event, LinkUp):
                        self.up.set()
                    elif isinstance(event, Received):
                        command, _ = wire.decode(event.payload, wire.ExitsCommand)
                        self.commands.append(command)
                        topic = wire.Topic("default", self._name, "tele", "reply", command.id)
                        mqtt.publish(str(topic), self._reply(command), qos=1)

    def close(self) -> None:
        self.leave.set()
        self._thread.join(10)


@pytest.fixture
def device(mosquitto: Any) -> Any:
    made: list[Device] = []

    def make(name: str, reply: Callable[[wire.ExitsCommand], bytes]) -> Device:
        made.append(Device(mosquitto.url, name, reply))
        assert made[-1].up.wait(30)
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_command_reaches_the_device_and_its_reply_is_shown(
    device: Any, mosquitto: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = device(
        "obeys",
        lambda command: wire.encode(wire.CommandReply(id=command.id, ok=True, detail={"repeat": command.repeat})),
    )
    arguments = ["exits", "--device", "obeys", "--broker", mosquitto.url, "--timeout-s", "30"]
    assert fleet.main([*arguments, "--thresholds", "0.7", "0.9", "--repeat", "3", "--hold-threshold", "0.8"]) == OK
    assert "default/obeys: repeat 3" in capsys.readouterr().out
    assert fleet.main([*arguments, "--max-ops-frac", "0.4", "--valid-s", "60", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["ok"] is True
    first, second = peer.commands
    assert (first.thresholds, first.repeat, first.hold_threshold) == ((0.7, 0.9), 3, 0.8)
    assert (second.thresholds, second.max_ops_frac, second.valid_s) == (None, 0.4, 60.0)
    assert first.id != second.id


def test_a_refusal_is_an_error_with_its_reason(device: Any, mosquitto: Any, capsys: pytest.CaptureFixture[str]) -> None:
    device("refuses", lambda command: wire.encode(wire.CommandReply(id=command.id, ok=False, why="pinned")))
    arguments = ["exits", "--device", "refuses", "--broker", mosquitto.url, "--timeout-s", "30", "--point", "2"]
    assert fleet.main(arguments) == ERROR
    assert "refused: pinned" in capsys.readouterr().err


def test_silence_and_nonsense_are_no_reply(device: Any, mosquitto: Any, capsys: pytest.CaptureFixture[str]) -> None:
    device("babbles", lambda command: b"\xff")
    for name in ("nobody", "babbles"):
        assert fleet.main(["exits", "--device", name, "--broker", mosquitto.url, "--timeout-s", "1"]) == RETRY_LATER
        assert f"no reply of default/{name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["max_power_w=-1"], "max_power_w"),
        (["no_goal=1"], "no such goal"),
        (["last_until"], "write name=value"),
        (["last_until='later'"], 'must be a time such as "18:00", or hours'),
        (["max_power_w=nan"], "max_power_w: is nan; must be a number"),
        (["--valid-s", "0"], "valid_s"),
    ],
)
def test_goals_that_no_device_could_have_are_not_sent(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fleet.main(["goals", "--device", "a", "--broker", "mqtt://127.0.0.1:1", *arguments])


@pytest.mark.parametrize("arguments", [["--device", "a/b"], ["--device", "a", "--fleet", "+"]])
def test_names_that_are_no_topic_segment_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        fleet.main(["exits", *arguments, "--broker", "mqtt://localhost"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeat", "3"], "they need thresholds"),
        (["--thresholds", "nan"], "confidence lies in 0..1"),
        (["--thresholds", "0.5", "--repeat", "65"], "repeat 65"),
        (["--thresholds", "0.5", "--hold-threshold", "1.5"], "hold_threshold 1.5"),
        (["--point", "-1"], "counted from 0"),
        (["--point", "9" * 30], "64 bits"),
        (["--max-ops-frac", "nan"], "max_ops_frac"),
        (["--valid-s", "0"], "valid_s"),
        (["--timeout-s", "nan"], "timeout-s"),
        (["--timeout-s", "0"], "timeout-s"),
    ],
)
def test_what_no_device_could_obey_is_not_sent(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fleet.main(["exits", "--device", "a", "--broker", "mqtt://127.0.0.1:1", *arguments])


def test_devices_named_one_after_the_other_are_all_meant() -> None:
    words = ["logs", "--broker", "x", "--device", "a", "b", "--device", "c", "--label", "x", "--label", "y=z"]
    args = fleet._parse(words)
    assert (args.device, args.label) == (["a", "b", "c"], ["x", "y=z"])


def test_endless_patience_is_taken_for_what_it_is(device: Any, mosquitto: Any) -> None:
    device("late", lambda command: wire.encode(wire.CommandReply(id=command.id, ok=True)))
    assert fleet.main(["exits", "--device", "late", "--broker", mosquitto.url, "--timeout-s", "inf"]) == OK


def test_a_broker_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["exits", "--device", "a", "--broker", "mqtt://me:secret@127.0.0.1:1", "--timeout-s", "1"]
    assert cli.main(["fleet", *arguments]) == RETRY_LATER
    told = capsys.readouterr().err
    assert "127.0.0.1:1" in told and "secret" not in told


def test_a_setting_and_a_point_exclude_one_another() -> None:
    with pytest.raises(SystemExit):
        fleet.main(["exits", "--device", "a", "--broker", "mqtt://x", "--point", "1", "--thresholds", "0.5"])
