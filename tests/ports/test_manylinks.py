from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgert.fleet.session import LinkRules
from edgert.ports import manylinks
from edgert.ports.manylinks import Loop, Turned
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received

SWIFT = LinkRules(base_s=0.05, cap_s=0.2)
COUNT = 40


def many(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


class Crowd:
    """Links with a topic each, and all that they have heard."""

    def __init__(self, url: str, name: str, count: int = COUNT, birth: bool = False) -> None:
        self.loop = Loop()
        self.heard: dict[Turned, list[object]] = {}
        for k in range(count):
            topic = f"edgert/{name}/{k}"
            said = {"will": (f"{topic}/is", b"gone"), "birth": (f"{topic}/is", b"there")} if birth else {}
            link = Turned(self.loop, url, f"{name}-{k}", rules=SWIFT, session_expiry_s=600, **said)
            link.subscribe([(topic, 1)])
            self.heard[link.start()] = []

    def turn(self) -> None:
        for link in self.loop.turn(0.05):
            self.heard[link] += link.events()

    def until(self, condition) -> None:
        end_s = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < end_s
            self.turn()

    def count(self, kind: type) -> list[int]:
        return [sum(isinstance(each, kind) for each in heard) for heard in self.heard.values()]

    def close(self) -> None:
        for link in self.heard:
            link.close()
        self.loop.close()


@pytest.mark.system
def test_a_crowd_in_one_thread_hears_speaks_and_survives_a_broker_that_is_killed(fresh_mosquitto) -> None:
    threads = many("/proc/self/task")
    files = many("/proc/self/fd")
    crowd = Crowd(fresh_mosquitto.url, "crowd")
    crowd.until(lambda: min(crowd.count(LinkUp)) == 1)
    assert many("/proc/self/task") == threads
    assert many("/proc/self/fd") <= files + COUNT + 1, "a socket each, and one epoll"
    links = list(crowd.heard)
    for k, link in enumerate(links):
        assert link.publish(f"edgert/crowd/{(k + 1) % COUNT}", b"%d" % k, qos=1)
    crowd.until(lambda: min(crowd.count(Received)) == 1)
    for k, link in enumerate(links):
        (heard,) = [each for each in crowd.heard[link] if isinstance(each, Received)]
        assert heard.payload == b"%d" % ((k - 1) % COUNT)
    crowd.until(lambda: all(link.rtt_s() is not None for link in links))
    assert all(link.healthy() for link in links)
    fresh_mosquitto.kill9()
    crowd.until(lambda: min(crowd.count(LinkDown)) >= 1)
    assert not any(link.is_up() for link in links)
    fresh_mosquitto.restart()
    crowd.until(lambda: min(crowd.count(LinkUp)) == 2)
    links[0].publish("edgert/crowd/1", b"again", qos=1)
    crowd.until(lambda: crowd.count(Received)[1] == 2)
    crowd.close()
    assert many("/proc/self/fd") == files
    assert not any(link.healthy() or link.is_up() for link in links)


@pytest.mark.system
def test_one_that_is_cut_off_dies_without_a_word_and_comes_back_later(mosquitto) -> None:
    crowd = Crowd(mosquitto.url, "cut", 2, birth=True)
    with Mqtt(mosquitto.url, "cut-watch") as watch:
        watch.subscribe([("edgert/cut/+/is", 1)])
        seen: list[tuple[str, bytes]] = []

        def told(*wanted: tuple[str, bytes]) -> bool:
            seen.extend((each.topic, each.payload) for each in watch.events() if isinstance(each, Received))
            return seen[-len(wanted) :] == list(wanted)

        crowd.until(lambda: min(crowd.count(LinkUp)) == 1 and told() is not None and len(seen) == 2)
        link = next(iter(crowd.heard))
        link.cut(0.5)
        begun_s = time.monotonic()
        crowd.until(lambda: told(("edgert/cut/0/is", b"gone")))
        crowd.until(lambda: told(("edgert/cut/0/is", b"there")))
        assert time.monotonic() - begun_s >= 0.5
        assert crowd.count(LinkUp) == [2, 1]
        assert crowd.count(LinkDown)[1] == 0
        assert any(isinstance(each, LinkDown) and each.reason == "cut off" for each in crowd.heard[link])
        link.close(goodbye=False)
        crowd.until(lambda: told(("edgert/cut/0/is", b"gone")))
    crowd.close()


def test_whatever_goes_wrong_inside_costs_one_connection(monkeypatch) -> None:
    crowd = Crowd("mqtt://127.0.0.1:1", "lone", 2)
    monkeypatch.setattr(manylinks.Mqtt, "_connect", lambda self: 1 / 0)
    crowd.until(lambda: min(crowd.count(LinkDown)) >= 3)
    assert all(link.faults()["internal-error"] >= 3 for link in crowd.heard)
    crowd.close()


def test_only_so_many_are_turned_at_once(monkeypatch) -> None:
    monkeypatch.setattr(manylinks, "BATCH", 3)
    tried: list[Turned] = []
    monkeypatch.setattr(manylinks.Mqtt, "_connect", lambda self: tried.append(self))
    crowd = Crowd("mqtt://127.0.0.1:1", "lot", 7)
    found = [len(tried) for _ in range(3) if crowd.loop.turn(0.0) is not None]
    assert found == [3, 6, 7]
    crowd.close()
