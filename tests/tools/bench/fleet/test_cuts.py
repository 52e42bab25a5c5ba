"""That the bench finds what is not durable: a check that never fails is none."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from edgert.fleet import fetch
from edgert.ports import fetch as files
from edgert.ports.jobs import JobStore
from edgert.ports.spool import Spool
from tools.bench.fleet import cuts, disk

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no power was cut")


@pytest.fixture(scope="module")
def life() -> list[disk.Op]:
    return cuts.record(1, 40)


@strace
@pytest.mark.system
def test_nothing_is_lost_and_everything_opens(life: list[disk.Op]) -> None:
    found = cuts.trial(life, 40, random.Random(1), 1)
    assert (found["lost"], found["boots"]) == ([], [])


@strace
@pytest.mark.system
def test_without_its_syncs_the_same_life_loses_things(life: list[disk.Op]) -> None:
    found = cuts.trial([op for op in life if op.what != "sync"], 40, random.Random(1), 1)
    assert found["lost"] or found["boots"]


def test_what_is_left_is_compared_with_what_may_be(tmp_path: Path) -> None:
    stores = cuts.Stores(tmp_path, 1)
    stores.spool.append("events", b"x", 0.0)
    stores.jobs.write_job("j", b"body")
    data, offer = cuts.offer_of(1, 0)
    part = files.Part(tmp_path / "fleet" / "bundles", offer)
    part.there()
    part.keep(3, data[3 * cuts.CHUNK_BYTES : 4 * cuts.CHUNK_BYTES])
    state = stores.state(0)
    assert state["policy 0"] == [3]
    assert fetch.count(offer) > 3
    stores.close()
    found = disk.Disk()
    found.folders |= {"fleet", "fleet/bundles"}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(tmp_path))
            for op in (disk.Op("create", name), disk.Op("write", name, path.read_bytes()), disk.Op("sync", name)):
                found.do(op)
    for folder in found.folders:
        found.do(disk.Op("sync", folder))
    rng = random.Random(1)
    now = {"end": "event", "number": 0, "state": json.loads(json.dumps(state))}
    assert cuts.examine(found, rng, [now], 1) == ("", "")
    other = {**now, "state": {**state, "jobs": "another"}}
    assert cuts.examine(found, rng, [other], 1)[0] == "lost"
    assert cuts.examine(found, rng, [other, now], 1) == ("", "")
    found.do(disk.Op("write", "jobs.db", b"rubbish" * 999))
    found.do(disk.Op("sync", "jobs.db"))
    assert cuts.examine(found, rng, [now], 1)[0] == "boots"


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: sys.executable)
    lives: list[int] = []
    monkeypatch.setattr(cuts, "record", lambda seed, ops: lives.append(seed) or [])
    monkeypatch.setattr(cuts, "trial", lambda ops, n, rng, seed: {"cuts": n, "calls": 9, "lost": [], "boots": ["b"]})
    first = cuts.run(cuts=10, lives=3, ops=5, notes=tmp_path)
    assert (first["power_cuts"], len(first["boots"]), lives) == (10, 3, [1, 2, 3])
    (tmp_path / "cuts-10-3-5-1-1.note").unlink()
    assert cuts.run(cuts=10, lives=3, ops=5, notes=tmp_path) == first
    assert lives == [1, 2, 3, 2]


def test_the_stores_are_the_real_ones(tmp_path: Path) -> None:
    stores = cuts.Stores(tmp_path, 1)
    assert (type(stores.spool), type(stores.jobs)) == (Spool, JobStore)
    stores.close()
