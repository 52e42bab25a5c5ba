"""The two ways from a program to its teachers, without anybody who learns."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert import wire
from edgert.client.links import Broker, Daemon
from edgert.errors import ConfigError
from edgert.govern.askers import BURST_S, QUESTION_BYTES
from edgert.ports.desk import Desk
from edgert.values import Answer, Budget


@pytest.fixture
def desk() -> Iterator[Desk]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    made = Desk(directory / "s")
    made.path = directory / "s"  # type: ignore[attr-defined]  # for those who connect
    yield made
    made.close()
    shutil.rmtree(directory)


def test_the_daemon_says_what_may_be_spent_and_carries_questions_both_ways(
    desk: Any, until: Callable[..., None]
) -> None:
    link = Daemon(str(desk.path))
    assert not link.up() and not link.send(1, b"q") and link.fileno() == -1 and not link.mend()
    assert link.most_bytes() == QUESTION_BYTES
    until(lambda: [link.receive(), desk.receive(), desk.numbers()][-1], "the connection")
    (number,) = desk.numbers()
    desk.tell(number, Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=9000.0))
    until(lambda: [link.receive(), link.bytes_per_s][-1] == 9000.0, "the budget")
    assert link.most_bytes() == BURST_S * 9000 and link.up()
    assert link.send(7, b"q")
    heard: list[Any] = []
    until(lambda: heard.extend(desk.receive()) or heard, "the question")
    assert heard[0][1].ask_id == 7
    desk.tell(number, Answer(7, b"a"))
    answers: list[tuple[int, bytes]] = []
    until(lambda: answers.extend(link.receive()) or answers, "the answer")
    assert answers == [(7, b"a")]
    desk.tell(number, Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=1e9))
    until(lambda: [link.receive(), link.bytes_per_s][-1] == 1e9, "another budget")
    assert link.most_bytes() == wire.MAX_PAYLOAD_BYTES
    link.close()


def test_a_link_takes_what_its_broker_takes(fresh_mosquitto: Any, until: Callable[..., None]) -> None:
    link = Broker(fresh_mosquitto.url, "default", "s", "t", 1e6)
    assert link.most_bytes() == 0
    until(link.up, "the link")
    assert 0.99 * wire.MAX_PAYLOAD_BYTES < link.most_bytes() <= wire.MAX_PAYLOAD_BYTES
    assert link.send(1, bytes(link.most_bytes()))
    fresh_mosquitto.configure("max_packet_size 20000\n")
    until(lambda: 0 < link.most_bytes() < 20_000, "the new limit")
    assert link.send(2, bytes(link.most_bytes())) and not link.send(3, bytes(20_000))
    link.close()


def test_a_thread_that_stands_still_is_replaced_like_one_that_died(
    mosquitto: Any, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Broker(mosquitto.url, "default", "s", "t", 1e6)
    until(link.up, "the link")
    assert not link.mend()
    former = link._mqtt
    monkeypatch.setattr(former, "healthy", lambda: False)
    assert link.mend() and link._mqtt is not former and not former._thread.is_alive()
    until(link.up, "the link, again")
    assert not link.mend() and link.fileno() >= 0
    link.close()


def test_a_url_that_makes_no_sense_is_said_at_once() -> None:
    with pytest.raises(ConfigError):
        Broker("mqtt://user@", "default", "s", "t", 1e6)
