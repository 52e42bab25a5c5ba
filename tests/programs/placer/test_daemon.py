"""Placers that talk over a broker in memory: who may say what, what the budget closes, and jobs from end to end."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import wire
from edgert.config import commented_default, parse
from edgert.learn.dqn import Batch
from edgert.placement.load import Capacity, Load
from edgert.placement.protocol import Release, Report, Reserve
from edgert.ports import shards
from edgert.ports.link import LinkDown, LinkUp, Received
from edgert.ports.process import Layout
from edgert.programs.placer import daemon as program
from edgert.programs.placer.daemon import Placer
from edgert.programs.placer.transport import chunk_topic
from edgert.values import Budget

BUNDLE = Path(__file__).parents[3] / "models" / "breakout.edgert"
NAMES = ("a", "b")
CUTS: tuple[dict[str, object], ...] = (
    {"kind": "data", "edges": [0], "parts": [{"compute_core_s": 0.01, "memory_bytes": 5e7}]},
)
"""Measured before, so that no test need."""


class Bus:
    """A broker."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.kept: dict[str, bytes] = {}

    def publish(self, topic: str, payload: bytes, retain: bool) -> None:
        if retain:
            self.kept[topic] = payload
            if not payload:
                del self.kept[topic]
        for link in self.links:
            if any(matches(name, topic) for name in link.filters):
                link.inbox.append(Received(topic=topic, payload=payload))


def matches(name: str, topic: str) -> bool:
    return len(name.split("/")) == len(topic.split("/")) and all(
        a in ("+", b) for a, b in zip(name.split("/"), topic.split("/"), strict=True)
    )


class Link:
    """Takes the place of `Mqtt`."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.filters, self.inbox = bus, set[str](), deque[Any]([up()])
        self.reader, self.writer = os.pipe()
        bus.links.append(self)

    def fileno(self) -> int:
        return self.reader

    def subscribe(self, filters: list[tuple[str, int]], *, again: bool = True) -> None:
        for name, _ in filters:
            self.filters.add(name)
            self.inbox += [Received(topic=t, payload=p) for t, p in self.bus.kept.items() if matches(name, t)]

    def unsubscribe(self, filters: list[str], *, again: bool = True) -> None:
        self.filters -= set(filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, **_: Any) -> bool:
        self.bus.publish(topic, payload, retain)
        return True

    def events(self) -> list[Any]:
        taken, self.inbox = list(self.inbox), deque()
        return taken

    def faults(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


def up() -> LinkUp:
    return LinkUp(session_present=False, server_max_packet_bytes=None, shared_subscriptions_available=True)


class Fleet:
    """Two devices."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.bus = Bus()
        monkeypatch.setattr(program, "Mqtt", lambda *_, **__: Link(self.bus))
        self.placers: dict[str, Placer] = {}
        for name in NAMES:
            said = {
                "device.id": name,
                "device.fleet": "f",
                "device.state_dir": str(folder / name),
                "device.run_dir": str(folder / name),
                "policy.bundle": str(BUNDLE),
                "placement.agent": "least-loaded",
                "placement.lease_s": 1.5,
                "placement.window_s": 0.1,
                "placement.link_bytes_per_s": 1e9,
                "placement.cores": 0.0 if name == "a" else 2.0,
            }
            text = commented_default({**said, **{f"placement.{key}": value for key, value in settings.items()}})
            region = '[[placement.regions]]\nname = "r"\nmembers = ["a", "b"]\n#'
            config = parse(text.replace("#[[placement.regions]]\n", region, 1), "test")
            layout = Layout(config)
            layout.make()
            self.placers[name] = Placer(config, layout)

    def turn(self) -> None:
        for placer in self.placers.values():
            now_s = time.monotonic()
            placer._hear_link(now_s)
            placer.turn(now_s)
            placer.transport.flush()
            for key, _ in placer.selector.select(0):
                if key.data != "link":
                    placer.host.hear(key.fileobj)  # type: ignore[arg-type]
                    placer.own_jobs.hear(key.fileobj)  # type: ignore[arg-type]

    def until(self, condition: Callable[[], object], patience_s: float = 120.0) -> None:
        end_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < end_s, {name: each.shown() for name, each in self.placers.items()}
            self.turn()
            time.sleep(0.01)

    def job(self, id_: str = "j1") -> wire.PlaceJob | None:
        payload = self.bus.kept.get(f"edgert/v1/f/a/place/job/{id_}")
        return None if payload is None else wire.decode(payload, wire.PlaceJob)[0]

    def submit(self, id_: str = "j1", steps: int = 6, cuts: tuple[dict[str, object], ...] = ()) -> None:
        files = {"bundle": BUNDLE.read_bytes(), "shard": shard()}
        offers = {name: shards.offer(name, data, id_=id_) for name, data in files.items()}
        for name, offer in offers.items():
            for k in range(-(-offer.size_bytes // offer.chunk_bytes)):
                self.bus.publish(chunk_topic("f", "-", offer.sha256, k), shards.chunk(files[name], offer, k), True)
        common = {"id": id_, "steps": steps, "batch": 8, "checkpoint_steps": 1 + steps // 2, "split": "one"}
        job = wire.PlaceSubmit(**common, cuts=cuts, **offers)
        for _ in range(2):  # said again, it is not done again
            self.bus.publish(f"edgert/v1/f/a/place/submit/{id_}", wire.encode(job), False)

    def close(self) -> None:
        for placer in self.placers.values():
            placer.close()


def shard() -> bytes:
    obs = (np.random.default_rng(3).random((300, 10, 10, 4)) < 0.1).astype(np.uint8)
    ones = np.ones(300, bool)
    q = np.tile(np.array([0.0, 1.0, 0.0], np.float32), (300, 1))
    return shards.pack_shard(Batch(obs, np.zeros(300, np.int64), np.zeros(300, np.float32), obs, ones, q, ones))


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    made = Fleet(tmp_path, monkeypatch)
    yield made
    made.close()


def test_a_job_runs_where_the_shield_kept_room_for_it(fleet: Fleet) -> None:
    fleet.until(lambda: fleet.placers["a"].shown()["leads"] == ["r"] and len(fleet.placers["a"].loads) == 2)
    fleet.submit()
    fleet.until(lambda: (job := fleet.job()) and job.state in ("done", "refused", "failed"))
    job = fleet.job()
    assert job is not None and job.state in ("done", "refused"), job
    assert (job.step, job.attempt) == (6, 1)
    said = {each["what"]: each for each in job.history}
    assert said["judged"]["outcome"] == "granted" and said["judged"]["region"] == "r"
    assert said["granted"]["nodes"] == ["b"] and not said["granted"]["alone"]
    fleet.until(lambda: not fleet.placers["b"].host.parts)
    assert not fleet.placers["b"].books.holds, "its room is free again"
    fleet.until(lambda: not any("/a/place/chunk/" in topic for topic in fleet.bus.kept))


def test_without_a_link_nothing_waits_for_one(fleet: Fleet) -> None:
    placer = fleet.placers["a"]
    fleet.turn()
    placer.mqtt.inbox.append(LinkDown(reason_code=None, reason="cut", fault=None, retry_s=1.0, unconfirmed=()))  # type: ignore[attr-defined]
    fleet.turn()
    assert not placer.transport.up and not placer.transport.waiting_bytes
    placer.tell("b", Release(job="j", attempt=1))
    assert not placer.transport.waiting_bytes


def test_nobody_speaks_for_another_and_nonsense_is_counted(fleet: Fleet) -> None:
    placer = fleet.placers["b"]
    capacity = Capacity(cores=9, memory_bytes=9, link_bytes_per_s=9)
    placer._deliver("a", Report(Load(node="b", session=1 << 60, seq=1, capacity=capacity)), 0.0)
    placer._deliver("a", Reserve(region="r", epoch=1, shield="c", job="j", attempt=1, owner="a", parts=()), 0.0)
    assert placer.faults == {"not-its-own-word": 2} and not placer.books.holds
    for type_ in ("load", "grant", "work", "state", "data", "gone", "submit"):
        placer._hear(Received(topic=f"edgert/v1/f/a/place/{type_}/b", payload=b"\x01"), 0.0)
    assert placer.faults["message-refused"] == 7


def test_the_budget_closes_and_empties_a_device(fleet: Fleet) -> None:
    placer, now_s = fleet.placers["b"], time.monotonic()
    assert placer.capacity().cores == 2.0
    closed = Budget(
        max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=0.0, why={"train_steps_hz": "hot"}, accept_jobs=False
    )
    given: list[str] = []
    placer.host.give_up = given.append  # type: ignore[method-assign]
    placer._obey(closed, now_s)
    placer.turn(now_s)
    assert (placer.capacity().cores, placer.books.capacity.memory_bytes) == (0.0, 0.0)
    placer._obey(closed, now_s + program.GIVE_UP_S + 1)
    assert given == ["budget: train_steps_hz: hot"]
    placer._obey(Budget(max_exit=0, train_steps_hz=5.0, teacher_bytes_per_s=0.0), now_s + 40)
    assert placer.capacity().cores == 2.0 and placer.stopped_s is None


def test_without_a_shield_everything_is_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, monkeypatch, shield="none", lease_s=9.0)
    try:
        fleet.until(lambda: len(fleet.placers["a"].loads) == 2)
        assert fleet.placers["a"].loads["b"].capacity.cores == 2.0, "what is told is the truth"
        for k in range(4):
            fleet.submit(f"j{k}", steps=10_000, cuts=CUTS)
        fleet.until(lambda: len(fleet.placers["b"].books.holds) == 4)
    finally:
        fleet.close()


def test_the_shortest_job_is_placed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, monkeypatch, lease_s=9.0)
    placer = fleet.placers["a"]
    asked: list[str] = []
    monkeypatch.setattr(placer.policy, "choose", lambda job, *_, **__: asked.append(job.id))
    try:
        for id_, steps in (("long", 9000), ("short", 9)):
            fleet.submit(id_, steps=steps, cuts=CUTS)
        fleet.until(lambda: {"long", "short"} <= set(asked))
        asked.clear()
        placer.own_jobs.retry_s.clear()
        placer._place(time.monotonic())
        assert asked == ["short", "long"]
    finally:
        fleet.close()


def test_one_may_choose_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, monkeypatch, head="b", shield="none", lease_s=9.0)
    chosen: list[str] = []
    head = fleet.placers["b"].policy
    choose = head.choose
    monkeypatch.setattr(head, "choose", lambda job, *args, **how: chosen.append(job.owner) or choose(job, *args, **how))
    try:
        fleet.until(lambda: len(fleet.placers["b"].loads) == 2)
        fleet.submit(steps=10_000, cuts=CUTS)
        fleet.until(lambda: (job := fleet.job()) and job.state == "starting")
        assert set(chosen) == {"a"}
    finally:
        fleet.close()
