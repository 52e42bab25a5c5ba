from __future__ import annotations

import contextlib
import math
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgert.ports import desk as port
from edgert.ports import ipc
from edgert.ports.desk import ASKS_AT_ONCE, MAX_ASKERS, Desk
from edgert.values import Answer, Ask, Budget, Stop


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "s"


@pytest.fixture
def desk(path: Path) -> Iterator[Desk]:
    made = Desk(path)
    yield made
    made.close()


@pytest.fixture
def come(path: Path) -> Iterator[Callable[[], ipc.Channel]]:
    made: list[ipc.Channel] = []

    def connect() -> ipc.Channel:
        channel = ipc.connect(path)
        assert channel is not None
        made.append(channel)
        return channel

    yield connect
    for channel in made:
        channel.close()


def hear(channel: ipc.Channel) -> list[object]:
    channel.wait(5.0)
    return list(channel.receive())


def test_questions_and_answers_of_two(desk: Desk, come: Callable[[], ipc.Channel]) -> None:
    one, two = come(), come()
    desk.receive()
    assert len(set(desk.numbers())) == 2
    one.send(Ask(1, b"first"))
    ((number, ask),) = desk.receive()
    assert ask == Ask(1, b"first") and number in desk.numbers()
    desk.tell(number, Answer(1, b"told"))
    desk.tell(number, Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=5.0))
    assert hear(one) == [Answer(1, b"told"), Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=5.0)]
    assert not two.wait(0.0)
    one.close()
    assert desk.receive() == [] and number not in desk.numbers()
    desk.tell(number, Answer(1, b"too late"))
    two.send(Ask(2, b"second"))
    assert [told for _, told in desk.receive()] == [Ask(2, b"second")]


def flood(channel: ipc.Channel) -> None:
    for i in range(ASKS_AT_ONCE + 1):
        channel.send(Ask(i, b""))


def too_long(channel: ipc.Channel) -> None:
    channel.send(Ask(0, bytes(port.MAX_FRAME_BYTES)))


@pytest.mark.parametrize(
    "misbehave",
    [
        flood,
        too_long,
        lambda channel: channel.send_map({"t": "nonsense"}),
        lambda channel: channel.send(Stop()),
        lambda channel: channel._socket.send(b"\xff\xff\xff\xff"),
    ],
)
def test_who_misbehaves_is_turned_away_and_the_others_do_not_notice(
    desk: Desk, come: Callable[[], ipc.Channel], misbehave: Callable[[ipc.Channel], object]
) -> None:
    good, bad = come(), come()
    desk.receive()
    misbehave(bad)
    while not bad.closed:
        assert desk.receive() == []
        bad.flush()
        bad.receive()
    assert len(desk.numbers()) == 1
    good.send(Ask(3, b"fine"))
    assert [ask for _, ask in desk.receive()] == [Ask(3, b"fine")]
    assert desk.turned_away == 1


def test_who_reads_nothing_is_turned_away_in_bounded_memory(desk: Desk, come: Callable[[], ipc.Channel]) -> None:
    come()
    desk.receive()
    (number,) = desk.numbers()
    told = 0
    while desk.numbers():
        desk.tell(number, Answer(1, bytes(1 << 19)))
        told += 1
        assert told < 100
    assert desk.turned_away == 1


def test_only_so_many_are_let_in(desk: Desk, come: Callable[[], ipc.Channel]) -> None:
    all_of_them = []
    for _ in range(MAX_ASKERS + 3):
        all_of_them.append(come())
        desk.receive()
    assert len(desk.numbers()) == MAX_ASKERS and desk.turned_away == 3
    all_of_them[0].close()
    desk.receive()
    come()
    desk.receive()
    assert len(desk.numbers()) == MAX_ASKERS


def test_who_connects_without_end_does_not_keep_us_at_the_door(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []

    def accept(*_: object) -> ipc.Channel:
        pairs.append(socket.socketpair())
        return ipc.Channel(pairs[-1][0])

    monkeypatch.setattr(port.ipc, "accept", accept)
    desk._welcome()
    assert len(pairs) == port.COME_BURST and len(desk.numbers()) == MAX_ASKERS
    for pair in pairs:
        pair[1].close()


def test_it_can_be_waited_for_like_a_file(desk: Desk, come: Callable[[], ipc.Channel]) -> None:
    poller = select.poll()
    poller.register(desk, select.POLLIN)
    assert not poller.poll(0)
    channel = come()
    assert poller.poll(5000)
    desk.receive()
    assert not poller.poll(0)
    channel.send(Ask(1, b""))
    assert poller.poll(5000)


class Clock:
    """Stands in for the time module."""

    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(port, "time", made)
    return made


def test_who_asks_much_is_heard_at_a_bounded_rate_and_costs_nothing_meanwhile(
    clock: Clock, path: Path, come: Callable[[], ipc.Channel]
) -> None:
    with contextlib.closing(Desk(path)) as desk:
        poller = select.poll()
        poller.register(desk, select.POLLIN)
        good, busy = come(), come()
        desk.receive()
        sent = heard = 0
        for _ in range(10_000):
            clock.now_s += 0.001
            desk.flush()
            while sent < heard + 4:  # a program in good order, which is answered at once
                busy.send(Ask(sent, b""))
                sent += 1
            heard += len(desk.receive())
        assert 4 * port.SAY_HZ < heard <= port.SAY_BURST + 10 * port.SAY_HZ + ASKS_AT_ONCE
        # What it says meanwhile wakes nobody, and the others are heard.
        for _ in range(100):
            if desk.wake_s() == math.inf:
                busy.send(Ask(0, b""))
                desk.receive()
        busy.send(Ask(0, b""))
        assert not poller.poll(0)
        good.send(Ask(3, b"fine"))
        assert [ask for _, ask in desk.receive()] == [Ask(3, b"fine")]
        clock.now_s = desk.wake_s()
        desk.flush()
        assert poller.poll(0) and desk.wake_s() == math.inf and desk.turned_away == 0


def test_who_comes_and_goes_all_the_time_is_let_in_at_a_bounded_rate(
    clock: Clock, path: Path, come: Callable[[], ipc.Channel]
) -> None:
    with contextlib.closing(Desk(path)) as desk:
        came = 0
        for _ in range(200):
            clock.now_s += 0.05
            desk.flush()
            channel = ipc.connect(path)
            before = set(desk.numbers())
            desk.receive()
            came += len(set(desk.numbers()) - before)
            if channel is not None:
                channel.close()
        assert came <= port.COME_BURST + 10 * port.COME_HZ + 16
        for _ in range(200):
            clock.now_s += 1.0
            desk.flush()
            desk.receive()
        come()
        desk.receive()
        assert len(desk.numbers()) == 1
