from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ConfigError
from edgert.ports.relay import HEADER_BYTES, SEGMENT_BYTES, Counts, Direction, Relay, Shape


def arrivals(shape: Shape, sizes: list[int], at_s: list[float] | None = None) -> tuple[list[float], Counts]:
    counts = Counts()
    way = Direction(random.Random(1), counts)
    return [way.send(n, shape, t) for n, t in zip(sizes, at_s or [0.0] * len(sizes), strict=True)], counts


def test_a_perfect_link_takes_no_time_and_a_long_one_its_delay() -> None:
    assert arrivals(Shape(), [100, 1000])[0] == [0.0, 0.0]
    assert arrivals(Shape(delay_s=0.25), [100, 1000], [0.0, 1.0])[0] == [0.25, 1.25]


def test_a_slow_link_passes_its_rate_headers_included() -> None:
    found, _ = arrivals(Shape(rate_bytes_s=8000, delay_s=0.1), [960] * 80)
    assert found[-1] == pytest.approx(80 * (960 + HEADER_BYTES) / 8000 + 0.1)


@given(loss=st.sampled_from([0.05, 0.2, 0.5]), rate=st.sampled_from([0.0, 8000.0]))
def test_as_many_are_lost_as_was_said_and_nothing_overtakes(loss: float, rate: float) -> None:
    n = 4000
    found, counts = arrivals(Shape(loss_frac=loss, rate_bytes_s=rate), [100] * n, [0.1 * i for i in range(n)])
    assert found == sorted(found)
    assert counts.segments == n + counts.lost and counts.bytes == 100 * n
    assert counts.lost / counts.segments == pytest.approx(loss, rel=0.15)
    assert counts.wire_bytes == counts.segments * (100 + HEADER_BYTES)


def test_a_loss_holds_up_what_is_behind_it_by_a_timeout() -> None:
    class Loses(random.Random):
        rolls = [0.9, 0.0, 0.0, 0.9, 0.9]  # noqa: RUF012  consumed by the one test that makes one

        def random(self) -> float:
            return self.rolls.pop(0)

    way = Direction(Loses(), Counts())
    shape = Shape(delay_s=0.01, loss_frac=0.5)
    assert way.send(10, shape, 0.0) == pytest.approx(0.01)
    assert way.send(10, shape, 0.0) == pytest.approx(0.2 + 0.4 + 0.01)  # and its first copy
    assert way.send(10, shape, 0.0) == pytest.approx(0.2 + 0.4 + 0.01)  # waits for it
    assert way._arrived_s > way._free_s


async def _through(relay: Relay, sent: list[bytes], answers: int, during: object = None) -> tuple[bytes, float]:
    """Send through the relay to a server that echoes; what came back, and how long it took."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay._to = server.sockets[0].getsockname()[:2]
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(relay.run(0, ready))
    reader, writer = await asyncio.open_connection("127.0.0.1", await ready)
    began_s = time.monotonic()
    for data in sent:
        writer.write(data)
    found = b""
    try:
        if callable(during):
            during()
        found = await asyncio.wait_for(reader.readexactly(answers), 60)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    took_s = time.monotonic() - began_s
    writer.transport.abort()
    running.cancel()
    await asyncio.wait({running})
    await asyncio.wait_for(ended.wait(), 60)
    server.close()
    await asyncio.sleep(0)
    return found, took_s


def through(shape: Shape, data: bytes, tmp_path: Path, during: object = None) -> tuple[bytes, float, dict[str, int]]:
    (tmp_path / "link.json").write_bytes(msgspec.json.encode(shape))
    relay = Relay(("", 0), tmp_path / "link.json", tmp_path / "counts.json")
    found, took_s = asyncio.run(_through(relay, [data], len(data), during))
    relay.note()
    return found, took_s, msgspec.json.decode((tmp_path / "counts.json").read_bytes())


def test_bytes_come_through_unchanged_delayed_and_counted(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(20 * SEGMENT_BYTES)
    found, took_s, counts = through(Shape(delay_s=0.15), data, tmp_path)
    assert found == data and took_s >= 0.3
    assert counts["up_bytes"] == counts["down_bytes"] == len(data)
    assert counts["up_segments"] >= 20 and counts["connections"] == 1


def test_a_rate_holds_in_both_directions(tmp_path: Path) -> None:
    data = bytes(30_000)
    found, took_s, _ = through(Shape(rate_bytes_s=60_000), data, tmp_path)
    assert found == data and took_s >= 0.5  # half a second up, and the end of it down again


def test_a_blackhole_holds_everything_back_until_it_ends(tmp_path: Path) -> None:
    lifted: list[float] = []

    def soon() -> None:
        async def lift() -> None:
            await asyncio.sleep(0.4)
            lifted.append(time.monotonic())
            (tmp_path / "link.json").write_bytes(msgspec.json.encode(Shape(seed=1)))

        tasks.append(asyncio.get_running_loop().create_task(lift()))

    tasks: list[object] = []
    found, took_s, _ = through(Shape(blackhole=True), b"abc", tmp_path, soon)
    assert found == b"abc" and lifted and took_s >= 0.4


def test_a_reset_cuts_the_connection(tmp_path: Path) -> None:
    def cut() -> None:
        (tmp_path / "link.json").write_bytes(msgspec.json.encode(Shape(blackhole=True, resets=1)))

    assert through(Shape(blackhole=True), b"abc", tmp_path, cut)[0] == b""


def test_settings_that_make_no_sense_are_told(tmp_path: Path) -> None:
    (tmp_path / "link.json").write_text("{")
    with pytest.raises(ConfigError, match=r"link\.json"):
        Relay(("", 0), tmp_path / "link.json", None)
