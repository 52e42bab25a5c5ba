"""An onlooker at a real broker; `tests/cli/test_look.py` has what people see of it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from edgert import wire
from edgert.errors import LinkError
from edgert.ports import onlooker
from edgert.ports.link import LinkUp, Received
from edgert.ports.mqtt import Mqtt
from edgert.ports.onlooker import Onlooker

pytestmark = pytest.mark.system
LINK_UP = LinkUp(session_present=False, server_max_packet_bytes=None, shared_subscriptions_available=True)


def test_it_gathers_what_is_kept_and_hears_what_is_said(
    mosquitto: Any, until: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = f"o{secrets.token_hex(4)}"
    birth = str(wire.Topic(fleet, "a", "status", "device"))
    with Mqtt(mosquitto.url, f"device-{fleet}", session_expiry_s=0) as device:
        device.subscribe([(str(wire.Topic(fleet, "a", "cmd", "ack")), 1), (f"other/{fleet}", 1)])
        until(device.is_up)
        device.publish(birth, wire.encode(wire.Status(online=True, session="s", seq=1)), qos=1, retain=True)
        with Onlooker(mosquitto.url, fleet) as seen:
            until(lambda: list(seen.gather()) == ["a"])
            assert seen.rows()[0]["state"] == "online"
            for payload in (b"\xff", b"\xff\xff"):
                device.publish(birth, payload, qos=1)
            gone = wire.Status(online=False, session="s")
            device.publish(birth, wire.encode(gone), qos=1)
            told: list[Any] = []
            until(lambda: told.extend(seen.turn(0.1)) or told)
            assert [each.said for each in told] == [gone] and seen.rows()[0]["state"] == "offline"
            assert seen.strange == 2 and capsys.readouterr().err.count("is not told") == 1
            assert seen.publish("a", "cmd", "ack", wire.encode(wire.EventAck(stream="s", up_to=1)))
            assert seen.say(f"other/{fleet}", b"x")
            heard: list[Any] = []
            until(lambda: heard.extend(e for e in device.events() if isinstance(e, Received)) or len(heard) == 2)
        for topic in (birth, f"other/{fleet}"):
            device.publish(topic, b"", qos=1, retain=True)


def test_a_broker_that_is_not_there_is_told_in_time() -> None:
    with pytest.raises(LinkError, match="cannot connect"):
        Onlooker("mqtt://127.0.0.1:1", "f", patience_s=0.5)


class Lined:
    """A link that hands out, all at once, what came since the last time."""

    def __init__(self, *_: object, **__: object) -> None:
        self.waiting: list[Any] = [LINK_UP]
        self.subscribed: list[str] = []
        self._ends = socket.socketpair()
        self._ends[1].send(b"x")

    def start(self) -> None:
        pass

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        for each, _ in filters:
            self.subscribed.append(each)
            if "/status/" in each:
                birth = wire.encode(wire.Status(online=True, session="s", seq=1))
                self.waiting.append(Received(topic=each.replace("+", "a"), payload=birth, retain=True))

    def events(self) -> list[Any]:
        taken, self.waiting = self.waiting, []
        return taken

    def close(self) -> None:
        for end in self._ends:
            end.close()


def test_what_comes_with_the_link_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker may be quick, and the machine slow: the word of the link and all that is kept come in one turn."""
    monkeypatch.setattr(onlooker, "Mqtt", Lined)
    with Onlooker("mqtt://x", "f") as seen:
        assert len(list(seen.turn(0.0))) == 1 and list(seen.entries) == ["a"] and seen.links == 1
        seen._mqtt.waiting.append(LINK_UP)
        assert not list(seen.turn(0.0)) and seen.links == 2


def test_nothing_strange_commands_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onlooker, "Mqtt", Lined)
    with Onlooker("mqtt://x", "f") as seen:
        seen._mqtt.waiting.append(Received(topic="edgert/v1/f/\x1b[2J/status/device/-", payload=b""))
        list(seen.turn(0.0))
    assert capsys.readouterr().err.strip().isprintable()
