"""This device's own jobs, without any host: submitted, placed, kept, resumed and judged."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import wire
from edgert.learn.dqn import Batch, Learner
from edgert.learn.split import cut, take
from edgert.policy import artifact
from edgert.ports import shards
from edgert.programs.placer.own_jobs import SILENT_S, OwnJobs

BUNDLE = (Path(__file__).parents[3] / "models" / "breakout.edgert").read_bytes()
POLICY = artifact.load(BUNDLE)
PART = {"compute_core_s": 0.01, "memory_bytes": 5e7}
CUTS: tuple[dict[str, object], ...] = (
    {"kind": "data", "edges": [0], "parts": [PART]},
    {"kind": "layers", "edges": [0, 2], "parts": [PART, PART]},
)


def shard(n: int = 200) -> bytes:
    obs = (np.random.default_rng(3).random((n, 10, 10, 4)) < 0.1).astype(np.uint8)
    ones = np.ones(n, bool)
    q = np.tile(np.array([0.0, 1.0, 0.0], np.float32), (n, 1))
    return shards.pack_shard(Batch(obs, np.zeros(n, np.int64), np.zeros(n, np.float32), obs, ones, q, ones))


class Owner:
    """OwnJobs, and what it tells and offers."""

    def __init__(self, folder: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.told: list[tuple[str, Any]] = []
        self.offered: dict[str, bytes] = {}
        self.own_jobs = OwnJobs(
            "me",
            folder,
            self.selector,
            lambda to, said: self.told.append((to, said)),
            self.offer,
            speed=0.5,
            stall_s=20.0,
        )

    def offer(self, offer: wire.PolicyOffer, data: bytes) -> None:
        self.offered[offer.sha256] = data

    def submit(self, **changes: Any) -> str:
        job = wire.PlaceSubmit(**{"id": "j1", "steps": 9, "checkpoint_steps": 3, "cuts": CUTS, **changes})
        return self.own_jobs.submit(job, BUNDLE, shard(), 1000.0)

    def begin(self, nodes: tuple[str, ...], split: int, now_s: float = 0.0) -> list[wire.PlaceWork]:
        record = self.own_jobs.records["j1"]
        self.own_jobs.asking(record, nodes, split)
        self.own_jobs.begin(record, split, nodes, now_s, alone=False)
        self.told.clear()
        self.own_jobs.turn(now_s)
        return [said for _, said in self.told if isinstance(said, wire.PlaceWork)]

    def ready(self, nodes: tuple[str, ...], now_s: float = 0.0, state: str = "ready", step: int = 0) -> None:
        attempt = self.own_jobs.records["j1"].attempt
        for part, node in enumerate(nodes):
            said = wire.PlaceState(job="j1", attempt=attempt, part=part, state=state, step=step)  # type: ignore[arg-type]
            self.own_jobs.state(node, said, now_s)

    def bring(self, node: str, of: int, arrays: dict[str, Any], steps: int, kind: str = "state") -> bool:
        attempt, came = self.own_jobs.records["j1"].attempt, False
        for parcel in shards.parcels(kind, of, -1, steps, shards.pack_state(arrays, steps)):
            data = wire.PlaceData(
                job="j1",
                attempt=attempt,
                kind=kind,  # type: ignore[arg-type]
                of=of,
                to=-1,
                step=steps,
                index=parcel.index,
                count=parcel.count,
                data=parcel.data,
            )
            came = self.own_jobs.data(node, data, 1.0) or came
        return came

    def until(self, condition: Callable[[], object], patience_s: float = 90.0) -> None:
        end_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < end_s
            for key, _ in self.selector.select(0.05):
                self.own_jobs.hear(key.fileobj)  # type: ignore[arg-type]
            self.own_jobs.turn(time.monotonic())


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    made = Owner(tmp_path)
    yield made
    made.own_jobs.close()


def state(seed: int) -> dict[str, Any]:
    learner = Learner(POLICY.params.copy())
    learner.params.flat[:] += (
        np.random.default_rng(seed).normal(size=learner.params.flat.shape).astype(np.float32) * 1e-4
    )
    return learner.arrays()


def test_a_job_is_submitted_once(owner: Owner) -> None:
    assert owner.submit() == "" == owner.submit()
    (record,) = owner.own_jobs.waiting(0.0)
    assert (record.state, record.cuts) == ("waiting", ((0,), (0, 2)))
    job = owner.own_jobs.job(record, 50.0, 1003.0)
    assert (job.steps, job.born_s, len(job.splits)) == (9, 47.0, 2) and job.ship_bytes > len(BUNDLE)


@pytest.mark.parametrize(
    ("bundle", "data", "changes"),
    [
        (b"no bundle", shard(), {}),
        (BUNDLE, b"no shard", {}),
        (BUNDLE, shard(2), {}),
        (BUNDLE, shard(), {"hyper": {"speed": 1.0}}),
        (BUNDLE, shard(), {"cuts": ({"kind": "layers", "edges": [0, 7], "parts": [PART, PART]},)}),
        ((Path(__file__).parents[3] / "models" / "space_invaders.edgert").read_bytes(), shard(), {}),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(
    owner: Owner, bundle: bytes, data: bytes, changes: dict[str, Any]
) -> None:
    job = wire.PlaceSubmit(id="j1", steps=9, **changes)
    assert owner.own_jobs.submit(job, bundle, data, 0.0) != ""
    assert not owner.own_jobs.records


def test_what_a_job_takes_is_measured_where_nobody_did(owner: Owner) -> None:
    assert owner.submit(cuts=(), split="one", batch=8) == ""
    record = owner.own_jobs.records["j1"]
    owner.until(lambda: record.state == "waiting")
    assert record.cuts == ((0,),) and record.measured[0].parts[0].memory_bytes > 1 << 20
    assert [each["what"] for each in record.history] == ["submitted", "measured"]


def test_hosts_are_told_until_they_answer_and_begin_together(owner: Owner) -> None:
    owner.submit()
    works = owner.begin(("a", "me"), 1)
    assert [each.part for each in works] == [0, 1] and works[0].order["edges"] == [0, 2]
    assert len(works[0].files) == 2 and len(works[1].files) == 1, "only the first part sees observations"
    assert {offer.sha256 for offer in works[0].files} == set(owner.offered), "what stays here is not laid down"
    owner.told.clear()
    owner.own_jobs.state("stranger", wire.PlaceState(job="j1", attempt=1, part=0, state="ready"), 0.0)
    owner.own_jobs.turn(3.0)
    assert len(owner.told) == 2
    owner.ready(("a", "me"), 3.0)
    owner.told.clear()
    owner.own_jobs.turn(3.1)
    assert [(to, type(said)) for to, said in owner.told] == [("a", wire.PlaceGo), ("me", wire.PlaceGo)]
    assert owner.own_jobs.records["j1"].state == "running"


def test_a_job_goes_on_elsewhere_from_what_came_back(owner: Owner, tmp_path: Path) -> None:
    owner.submit()
    owner.begin(("a", "b"), 1)
    whole, learner = state(1), Learner(POLICY.params.copy())
    learner.restore(whole, 3)
    pieces = [take(learner, of).arrays() for of in cut(POLICY.spec, (0, 2))]
    assert not owner.bring("a", 0, pieces[0], 3)
    record = owner.own_jobs.records["j1"]
    assert record.step == 0, "half a state is none"
    owner.bring("a", 1, pieces[1], 3)
    assert record.step == 0, "only its host speaks for a part"
    owner.bring("b", 1, pieces[1], 3)
    assert record.step == 3
    owner.own_jobs.gone("b")
    assert owner.own_jobs.take_failed() == [("j1", "b is gone")] and not owner.own_jobs.take_failed()
    owner.own_jobs.again(record, "b is gone", 5.0, ran=True)
    assert not owner.own_jobs.waiting(5.0) and owner.own_jobs.waiting(8.0) == [record]
    (work,) = owner.begin(("c",), 0, 8.0)
    (offer,) = [each for each in work.files if each.name == "state"]
    arrays, steps = shards.unpack_state(owner.offered[offer.sha256])
    assert steps == 3 and all(np.array_equal(arrays[name], array) for name, array in whole.items())
    assert owner.own_jobs.job(record, 0.0, 0.0).steps == 6

    owner.own_jobs.close()
    restarted = Owner(tmp_path)
    again = restarted.own_jobs.records["j1"]
    assert (again.state, again.step, again.attempt) == ("waiting", 3, 2)
    assert again.history[-1]["what"] == "restarted"


def test_who_is_silent_or_stands_still_is_given_up(owner: Owner) -> None:
    owner.submit()
    owner.begin(("a",), 0)
    owner.ready(("a",), 1.0)
    owner.own_jobs.turn(1.0 + SILENT_S + 1)
    assert owner.own_jobs.take_failed() == [("j1", "nothing was heard of a")]
    owner.own_jobs.again(owner.own_jobs.records["j1"], "silent", 20.0, ran=True)
    owner.begin(("a",), 0, 100.0)
    for now_s in range(100, 124, 2):
        owner.ready(("a",), float(now_s), "running", 1)
        owner.own_jobs.turn(float(now_s))
    assert owner.own_jobs.take_failed() == [("j1", "no progress in 20 s")]


def test_a_host_that_fails_says_why(owner: Owner) -> None:
    owner.submit()
    owner.begin(("a",), 0)
    owner.own_jobs.state("a", wire.PlaceState(job="j1", attempt=1, part=0, state="failed", why="no room"), 1.0)
    assert owner.own_jobs.take_failed() == [("j1", "a: no room")]


def test_the_gate_has_the_last_word(owner: Owner) -> None:
    owner.submit()
    owner.begin(("a",), 0)
    bad = {name: np.zeros_like(array) for name, array in state(1).items()}
    assert owner.bring("a", 0, bad, 9, "result"), "its hosts are not needed any more"
    record = owner.own_jobs.records["j1"]
    owner.until(lambda: record.state in ("done", "refused", "failed"))
    assert record.state == "refused" and record.result["path"] == "" and record.why
    assert owner.own_jobs.message(record).history[-1]["what"] == "refused"
    assert not owner.own_jobs.shown()


def test_judging_waits_for_the_memory_that_others_hold(owner: Owner, tmp_path: Path) -> None:
    full = True
    owner.own_jobs.room = lambda needed_bytes: not full
    owner.submit()
    owner.begin(("a",), 0)
    owner.bring("a", 0, state(1), 9, "result")
    owner.own_jobs.turn(1.0)
    assert not owner.own_jobs.begun and owner.own_jobs.held_bytes == 0
    restarted = Owner(tmp_path)
    assert restarted.own_jobs.records["j1"].state == "judging", "what is trained is not trained again"
    full = False
    owner.own_jobs.turn(2.0)
    assert owner.own_jobs.begun == {"j1"} and owner.own_jobs.held_bytes == 5e7
