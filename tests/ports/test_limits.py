from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgert.errors import MessageError
from edgert.ports import ipc
from edgert.ports.limits import REPEAT_S, Limits, Request, Standing, Wanted, asymmetric, standing

WANTED = Wanted(trainer_cpu_frac=0.5)


def requests(channel: ipc.Channel) -> list[Request]:
    return [msgspec.convert(message, Request) for message in channel.receive_maps()]


def test_nobody_is_asked_without_a_socket() -> None:
    assert Limits(None).ask(WANTED, 0.0) == Standing()


def test_without_a_helper_it_says_so_and_tries_again_later(folder: Path) -> None:
    limits = Limits(folder / "s")
    assert "no helper listens" in limits.ask(WANTED, 0.0).refused["request"]
    listener = ipc.listen(folder / "s")
    assert not limits.ask(WANTED, 1.0).connected
    assert ipc.accept(listener) is None, "it asks only every few seconds"
    limits.ask(WANTED, 6.0)
    channel = ipc.accept(listener)
    assert channel is not None
    assert requests(channel) == [Request(wanted=WANTED)]
    for each in (limits, channel, listener):
        each.close()


def test_what_changes_is_said_at_once_and_what_does_not_from_time_to_time(
    folder: Path, until: Callable[..., None]
) -> None:
    listener = ipc.listen(folder / "s")
    limits = Limits(folder / "s")
    limits.ask(WANTED, 0.0, trainer_pid=7)
    channel = ipc.accept(listener)
    assert channel is not None
    assert requests(channel) == [Request(wanted=WANTED, trainer_pid=7)]
    limits.ask(WANTED, 1.0, trainer_pid=7)
    assert requests(channel) == []
    limits.ask(WANTED, 2.0, trainer_pid=8)
    assert requests(channel) == [Request(wanted=WANTED, trainer_pid=8)]
    limits.ask(WANTED, 2.0 + REPEAT_S, trainer_pid=8)
    assert len(requests(channel)) == 1

    said = Standing(held={"trainer-cpu": "50% of 4 cores"}, connected=True)
    channel.send_map(msgspec.to_builtins(said))
    until(lambda: limits.ask(WANTED, 8.0, trainer_pid=8) == said)
    channel.send_map({"held": 3})
    until(lambda: "answer" in limits.ask(WANTED, 8.0, trainer_pid=8).refused.get("request", ""))
    channel.close()
    until(lambda: not limits.ask(WANTED, 8.0, trainer_pid=8).connected)
    limits.close()
    listener.close()


def test_why_the_helper_hung_up_is_not_lost(folder: Path, until: Callable[..., None]) -> None:
    listener = ipc.listen(folder / "s")
    limits = Limits(folder / "s")
    limits.ask(WANTED, 0.0)
    channel = ipc.accept(listener)
    assert channel is not None
    channel.send_map(msgspec.to_builtins(Standing(refused={"request": "user 5 may not ask"})))
    channel.close()
    until(lambda: not limits.ask(WANTED, 1.0).connected)
    assert limits.ask(WANTED, 1.0).refused == {"request": "user 5 may not ask"}
    listener.close()


def test_an_answer_of_another_shape_is_malformed() -> None:
    assert standing({"held": {}, "refused": {"clock": "no"}}) == Standing(refused={"clock": "no"}, connected=True)
    with pytest.raises(MessageError, match="answer"):
        standing({"held": 7})


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [
        ({0: 446, 1: 446, 2: 1024, 3: 1024}, ((0, 1), (2, 3))),
        ({0: 1024, 1: 1024}, None),
        ({0: 400, 1: 700, 2: 1024}, ((0,), (2,))),
        ({}, None),
        ({0: "x", 1: 1024}, None),
    ],
)
def test_small_and_big_cores_are_told_by_their_capacity(
    tmp_path: Path, capacities: dict[int, object], expected: object
) -> None:
    for core, capacity in capacities.items():
        cpu = tmp_path / f"sys/devices/system/cpu/cpu{core}"
        cpu.mkdir(parents=True)
        (cpu / "cpu_capacity").write_text(f"{capacity}\n")
    assert asymmetric(tmp_path) == expected
