from __future__ import annotations

import hashlib
import selectors
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import StoreError
from edgert.placing import GENERATIONS
from edgert.programs.placer import results
from edgert.programs.placer.own_jobs import OwnJobs
from edgert.programs.placer.record import Record
from edgert.values import Candidate


def test_the_one_that_acts_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    made: list[tuple[int, Path, str]] = []
    for k in range(4):
        result = tmp_path / f"result-{k}"
        result.write_bytes(bytes([k]))
        acts = str(made[0][1]) if made else ""
        made.append(results.keep(tmp_path, result, acts))
    assert [generation for generation, _, _ in made] == [GENERATIONS + k for k in (1, 2, 3, 4)]
    assert [path.exists() for _, path, _ in made] == [True, False, True, True]
    assert made[3][2] == hashlib.sha256(made[3][1].read_bytes()).hexdigest()


class Parent:
    """A supervisor's ear."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, told: Any, *, keep: bool) -> None:
        assert keep
        self.told.append(told)


@pytest.fixture
def own_jobs(tmp_path: Path) -> OwnJobs:
    nothing = selectors.DefaultSelector()
    return OwnJobs("me", tmp_path, nothing, lambda *_: None, lambda *_: None, speed=1.0, stall_s=9.0)


class Layout:
    """Of a device; only where networks lie matters."""

    def __init__(self, folder: Path) -> None:
        self.policies = folder


def test_a_result_is_offered_once_and_a_missing_one_ends_its_job(
    own_jobs: OwnJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "acting", lambda _: "")
    parent, layout = Parent(), Layout(tmp_path)
    (tmp_path / "result").write_bytes(b"net")
    for id_, path in (("j1", "result"), ("j2", "nothing")):
        given = {"checks": {"finite": True}, "detail": {}, "path": str(tmp_path / path)}
        made = Record(id=id_, steps=1, batch=1, checkpoint_steps=1, state="done", install=True, result=given)
        own_jobs.records[id_] = made
    for _ in range(2):
        results.offer(own_jobs, parent, layout)  # type: ignore[arg-type]
    (told,) = parent.told
    assert isinstance(told, Candidate) and told.generation == GENERATIONS + 1 and Path(told.path).read_bytes() == b"net"
    assert own_jobs.records["j1"].generation == told.generation
    assert own_jobs.records["j2"].state == "failed" and own_jobs.records["j2"].why


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "result").write_bytes(b"net")
    with pytest.raises(StoreError):
        results.keep(tmp_path / "nowhere", tmp_path / "result", "")
