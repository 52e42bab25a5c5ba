"""A part of a job, without its process: parts that talk to each other learn what one alone would have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert.errors import ArtifactError
from edgert.learn.dqn import Batch, Hyper
from edgert.policy import artifact
from edgert.ports import shards
from edgert.programs.placer import worker
from edgert.programs.placer.worker import Order, Worker

BUNDLE = Path(__file__).parents[3] / "models" / "breakout.edgert"
STEPS, BATCH = 3, 12
HYPER = Hyper(td_weight=0.5, learning_rate=1e-3)


def rows(n: int, seed: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    obs, following = ((rng.random((n, 10, 10, 4)) < 0.1).astype(np.uint8) for _ in range(2))
    wanted = np.tile(np.array([0.0, 1.0, 0.0], np.float32), (n, 1))
    ends = rng.random(n) < 0.3
    return Batch(obs, rng.integers(0, 3, n), rng.normal(size=n).astype(np.float32), following, ends, wanted, ends)


class WorkerProcess:
    """Takes the place of the socket to the placer."""

    closed = wants_write = False

    def __init__(self) -> None:
        self.said: list[dict[str, object]] = []

    def send_map(self, message: dict[str, object]) -> bool:
        self.said.append(message)
        return True

    def receive_maps(self) -> list[dict[str, object]]:
        return []


class Job:
    """Parts in one process; what they say goes from one to the other."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.owner = folder, shards.Unpacking()
        parts, kind = int(changes.get("parts", 1)), changes.get("kind", "data")
        batch = rows(60)
        dealt = [shards.pick(batch, slice(k, None, parts if kind == "data" else 1)) for k in range(parts)]
        self.workers: list[Worker] = []
        self.lines: list[WorkerProcess] = []
        self.results: dict[int, tuple[dict[str, Any], int]] = {}
        self.states: list[dict[str, object]] = []
        self.kept: list[int] = []
        for part in range(parts):
            share = shards.keep(folder, shards.pack_shard(dealt[part if kind == "data" else 0]))
            common = {"job": "j", "kind": kind, "bundle": str(BUNDLE), "steps": STEPS, "batch": BATCH, "hyper": HYPER}
            order = Order(
                **{
                    **common,
                    "part": part,
                    "shard": str(share) if kind == "data" or part == 0 else "",
                    "rows": tuple(len(each.action) for each in dealt) if kind == "data" else (),
                    "told": tuple(each.taught.astype(np.uint8).tobytes() for each in dealt) if kind == "data" else (),
                    "checkpoint_steps": 2,
                    **changes,
                }
            )
            order = msgspec.convert(msgspec.to_builtins(order, builtin_types=(bytes,)), Order, builtin_types=(bytes,))
            self.lines.append(WorkerProcess())
            self.workers.append(Worker(order, self.lines[-1], False))  # type: ignore[arg-type]

    def run(self) -> dict[int, tuple[dict[str, Any], int]]:
        for each in self.workers:
            each._hear({"t": "go"})
        for _ in range(10_000):
            said = [message for line in self.lines for message in line.said]
            for line in self.lines:
                line.said = []
            if not said:
                break
            for message in said:
                self._route(message)
        return self.results

    def _route(self, message: dict[str, object]) -> None:
        if message["t"] == "state":
            self.states.append(message)
        if message["t"] != "parcel":
            return
        parcel = msgspec.convert(message["parcel"], shards.Parcel, builtin_types=(bytes,))
        if parcel.to >= 0:
            for _ in range(2):  # twice is once
                self.workers[parcel.to]._hear(message)
        elif (whole := self.owner.add(parcel)) is not None:
            self.kept.append(whole.step)
            if whole.kind == "result":
                self.results[whole.of] = shards.unpack_state(whole.data)


def flat(results: dict[int, tuple[dict[str, Any], int]]) -> np.ndarray:
    return np.concatenate([results[k][0]["params"] for k in sorted(results)])


def test_one_part_learns_and_keeps_its_state(tmp_path: Path) -> None:
    job = Job(tmp_path)
    before = job.workers[0].piece.learner.params.flat.copy()
    found = job.run()
    assert found[0][1] == STEPS and job.kept == [2, 3]
    assert np.abs(flat(found) - before).max() > 1e-4
    assert job.states[-1]["step"] == STEPS and float(str(job.states[-1]["cpu_s"])) > 0
    assert np.array_equal(flat(found), flat(Job(tmp_path).run())), "the same order gives the same network"


@pytest.mark.parametrize("micros", [1, 2])
@pytest.mark.parametrize("edges", [(0, 1), (0, 1, 2)])
def test_a_chain_of_parts_is_the_whole_network(tmp_path: Path, edges: tuple[int, ...], micros: int) -> None:
    whole = Job(tmp_path, kind="layers", edges=(0,), parts=1, micros=micros).run()
    parts = Job(tmp_path, kind="layers", edges=edges, parts=len(edges), micros=micros).run()
    assert set(parts) == set(range(len(edges)))
    difference = np.abs(flat(parts) - flat(whole))
    # Adam moves a parameter without a gradient by the sign of rounding; hardly any have none.
    assert np.quantile(difference, 0.99) < 1e-5


def test_shares_of_a_batch_keep_one_network(tmp_path: Path) -> None:
    job = Job(tmp_path, kind="data", parts=3)
    found = job.run()
    assert set(found) == {0}, "the root alone brings the result"
    for each in job.workers:
        assert each.steps == STEPS
        assert np.array_equal(each.piece.learner.params.flat, flat(found))


def test_a_part_goes_on_from_a_state(tmp_path: Path) -> None:
    short = Job(tmp_path, steps=2).run()
    state = tmp_path / "state"
    state.write_bytes(shards.pack_state(*short[0]))
    long = Job(tmp_path, state=str(state)).run()
    assert np.array_equal(flat(long), flat(Job(tmp_path).run()))


def test_what_belongs_to_another_step_is_not_listened_to(tmp_path: Path) -> None:
    job = Job(tmp_path, kind="data", parts=2)
    (late,) = shards.parcels("sum", 1, 0, 7, shards.pack_said(np.zeros(3, np.float32)))
    job.workers[0]._hear({"t": "parcel", "parcel": msgspec.to_builtins(late, builtin_types=(bytes,))})
    assert job.workers[0].steps == 0 and not job.workers[0].sums


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    wrong = rows(60)._replace(obs=np.zeros((60, 4, 4, 1), np.uint8), next_obs=np.zeros((60, 4, 4, 1), np.uint8))
    path = shards.keep(tmp_path, shards.pack_shard(wrong))
    with pytest.raises(ArtifactError, match="observations"):
        Job(tmp_path, shard=str(path))


def test_what_parts_take_is_measured(tmp_path: Path) -> None:
    path = shards.keep(tmp_path, shards.pack_shard(rows(60)))
    order = Order(job="j", kind="measure", bundle=str(BUNDLE), shard=str(path), batch=BATCH, hyper=HYPER)
    found = worker.measure(order)
    assert [(each["kind"], len(each["parts"])) for each in found] == [  # type: ignore[arg-type]
        ("data", 1),
        ("data", 2),
        ("data", 4),
        ("layers", 2),
        ("layers", 2),
        ("layers", 3),
    ]
    for each in found:
        for part in each["parts"]:  # type: ignore[attr-defined]
            assert part["compute_core_s"] > 0 and part["memory_bytes"] > 1 << 20
    (peer, size), *_ = found[1]["parts"][0]["flows"]  # type: ignore[index]
    parameters = artifact.load(BUNDLE.read_bytes()).params.flat.nbytes
    assert peer == 1 and size == pytest.approx(2 * parameters, rel=0.01)
    assert len(worker.measure(msgspec.structs.replace(order, split="one"))) == 1


def test_the_gate_judges_what_came_of_it(tmp_path: Path) -> None:
    batch = rows(900, 9)._replace(taught=np.ones(900, bool))
    path, state = shards.keep(tmp_path, shards.pack_shard(batch)), tmp_path / "state"
    policy = artifact.load(BUNDLE.read_bytes())
    order = Order(
        job="j", kind="judge", bundle=str(BUNDLE), shard=str(path), state=str(state), result=str(tmp_path / "r")
    )
    state.write_bytes(shards.pack_state({"params": np.full_like(policy.params.flat, 1e-3)}, 5))
    refused = worker.judge_result(order)
    assert refused["path"] == "" and not all(refused["checks"].values())  # type: ignore[attr-defined]
    assert not (tmp_path / "r").exists()
