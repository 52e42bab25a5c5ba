"""Parts of others' jobs here: started where the books allow it, fed, heard and ended."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import wire
from edgert.fleet import fetch
from edgert.learn.dqn import Batch
from edgert.ports import shards
from edgert.programs.placer.host import Host
from edgert.programs.placer.transport import chunk_topic

BUNDLE = (Path(__file__).parents[3] / "models" / "breakout.edgert").read_bytes()


def shard() -> bytes:
    obs = (np.random.default_rng(3).random((60, 10, 10, 4)) < 0.1).astype(np.uint8)
    ones = np.ones(60, bool)
    q = np.tile(np.array([0.0, 1.0, 0.0], np.float32), (60, 1))
    return shards.pack_shard(Batch(obs, np.zeros(60, np.int64), np.zeros(60, np.float32), obs, ones, q, ones))


FILES = {"bundle": BUNDLE, "shard": shard()}
OFFERS = {name: shards.offer(name, data, id_="j") for name, data in FILES.items()}


class Stand:
    """One device as a host, and what it tells."""

    def __init__(self, folder: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.told: list[tuple[str, Any]] = []
        self.wanted: set[str] = set()
        self.host = Host("me", folder, self.selector, lambda to, said: self.told.append((to, said)), self.listen, "f")

    def listen(self, wanted: list[str], unwanted: list[str]) -> None:
        self.wanted |= set(wanted)
        self.wanted -= set(unwanted)

    def states(self) -> list[str]:
        return [said.state for to, said in self.told if isinstance(said, wire.PlaceState) and to == "owner"]

    def until(self, condition: Callable[[], object], patience_s: float = 90.0) -> None:
        end_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < end_s, self.told
            for key, _ in self.selector.select(0.05):
                self.host.hear(key.fileobj)  # type: ignore[arg-type]
            self.host.turn(time.monotonic())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path / "files")
    yield made
    made.host.close()


def work(**changes: Any) -> wire.PlaceWork:
    order = {"job": "j", "kind": "data", "bundle": OFFERS["bundle"].sha256, "shard": OFFERS["shard"].sha256}
    order |= {"steps": 4, "batch": 8, "checkpoint_steps": 2, "rows": [50], **changes.pop("order", {})}
    common = {"job": "j", "attempt": 1, "part": 0, "files": tuple(OFFERS.values()), "hosts": ("me",)}
    return wire.PlaceWork(**{**common, "order": order, **changes})


def test_nothing_starts_that_the_books_do_not_know(host: Stand) -> None:
    host.host.work("owner", work(), 0.0)
    host.host.allow("j", 1, "owner", (0,))
    host.host.work("somebody", work(), 0.0)
    host.host.work("owner", work(attempt=2), 0.0)
    host.host.work("owner", work(hosts=("other",)), 0.0)
    assert not host.told and not host.host.parts


def test_a_part_is_fetched_run_and_brings_its_state(host: Stand) -> None:
    made = host.host
    made.link(True, 0.0)
    made.allow("j", 1, "owner", (0,))
    made.work("owner", work(), 0.0)
    assert host.states() == ["fetching"]
    while host.wanted:
        topic = next(iter(host.wanted))
        (offer,) = [each for each in OFFERS.values() if each.sha256[: fetch.NAME_DIGITS] in topic]
        index = fetch.index_of(topic.rpartition("/")[2], offer)
        assert index is not None and topic == chunk_topic("f", "owner", offer.sha256, index)
        start = index * offer.chunk_bytes
        name = next(name for name, each in OFFERS.items() if each is offer)
        made.chunk(topic.rpartition("/")[2], FILES[name][start : start + offer.chunk_bytes], 0.0)
    host.until(lambda: "ready" in host.states())
    made.work("owner", work(), 0.0)  # said again, it is answered again and not done again
    assert len(made.lines) == 1
    made.go("somebody", wire.PlaceGo(job="j", attempt=1))
    assert not any(each.going for each in made.parts.values())
    made.go("owner", wire.PlaceGo(job="j", attempt=1))

    def results() -> list[wire.PlaceData]:
        return [said for _, said in host.told if isinstance(said, wire.PlaceData) and said.kind == "result"]

    host.until(lambda: results() and results()[-1].index == results()[-1].count - 1)
    _, steps = shards.unpack_state(b"".join(said.data for said in results()))
    assert steps == 4 and {said.step for said in results()} == {4}
    assert made.shown()[0]["step"] == 4
    made.stop("j", 1)
    assert not made.parts and not made.lines and not made.allowed


def test_whoever_dies_is_told_of(host: Stand) -> None:
    for data in FILES.values():
        shards.keep(host.host.folder, data)
    host.host.allow("j", 1, "owner", (0,))
    host.host.work("owner", work(), 0.0)
    (hosted,) = host.host.parts.values()
    assert hosted.line is not None and not host.wanted, "what is here is not fetched"
    hosted.line.process.kill()
    host.until(lambda: "failed" in host.states())
    assert "killed" in host.told[-1][1].why
    host.host.work("owner", work(), 0.0)
    assert host.told[-1][1].state == "failed"


def test_what_cannot_be_done_is_refused_by_the_part(host: Stand) -> None:
    for data in FILES.values():
        shards.keep(host.host.folder, data)
    host.host.allow("j", 1, "owner", (0,))
    host.host.work("owner", work(order={"kind": "layers", "edges": [0, 9]}), 0.0)
    host.until(lambda: "failed" in host.states())
    assert "cannot be cut" in host.told[-1][1].why


def test_a_device_that_must_stop_gives_everything_back(host: Stand) -> None:
    host.host.allow("j", 1, "owner", (0,))
    host.host.work("owner", work(), 0.0)
    host.host.give_up("budget: hot")
    assert host.told[-1][1].why == "budget: hot" and host.states()[-1] == "failed"


def test_only_a_part_of_the_same_job_is_listened_to(host: Stand) -> None:
    for data in FILES.values():
        shards.keep(host.host.folder, data)
    host.host.allow("j", 1, "owner", (0,))
    host.host.work("owner", work(hosts=("me", "peer"), order={"parts": 2, "rows": [25, 25]}), 0.0)
    (hosted,) = host.host.parts.values()
    assert hosted.line is not None
    said: list[dict[str, object]] = []
    hosted.line.send = said.append  # type: ignore[method-assign]
    data = wire.PlaceData(job="j", attempt=1, kind="sum", of=1, to=0, step=0)
    host.host.data("stranger", data)
    host.host.data("peer", wire.PlaceData(job="j", attempt=0, kind="sum", of=1, to=0, step=0))
    assert not said
    host.host.data("peer", data)
    assert [each["t"] for each in said] == ["parcel"]
