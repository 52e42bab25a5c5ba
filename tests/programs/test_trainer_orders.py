"""What a trainer says came of an order, by name, and what it makes of the supervisor's last word on a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import config
from edgert.bundle import schema_hash
from edgert.errors import StoreError
from edgert.learn.accept import Verdict
from edgert.policy import artifact
from edgert.ports.process import Layout
from edgert.ports.ring import TERMINATED, RingWriter
from edgert.programs import trainer as program
from edgert.programs.trainer import Offered, Trainer
from edgert.values import Budget, Outcome, TrainCode, TrainOrder

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
POLICY = artifact.load(BUNDLE.read_bytes())


@pytest.fixture
def trainer(folder: Path, line: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """It has lived through 400 transitions and has taken 10 steps; every candidate passes."""
    settings = {
        "device.id": "d",
        "device.state_dir": str(folder / "state"),
        "device.run_dir": str(folder / "run"),
        "policy.bundle": str(BUNDLE),
        "learn.ring_transitions": 2000,
        "learn.min_transitions": 50,
        "learn.batch": 8,
    }
    told = config.parse(config.commented_default(settings), "test")
    layout = Layout(told)
    layout.make()
    made = Trainer(told, layout, POLICY, seed=1)
    made.parent = line()  # type: ignore[assignment]  # what it needs of one
    made.budget = Budget(max_exit=2, train_steps_hz=50.0, teacher_bytes_per_s=1e6)
    ring = RingWriter(layout.ring, POLICY.spec.input_shape, 2000, schema_hash(POLICY.manifest))
    rng = np.random.default_rng(0)
    for i in range(400):
        obs = POLICY.golden_obs[int(rng.integers(len(POLICY.golden_obs)))].copy()
        obs.flat[rng.integers(obs.size, size=2)] ^= 1
        flags = TERMINATED if i % 20 == 19 else 0
        ring.append(obs, episode=1 + i // 20, action=i % 3, reward=float(i % 2), flags=flags, exit=0)
    made.read_ring()
    for _ in range(10):
        made.step()
    monkeypatch.setattr(program, "judge", lambda *_: Verdict({"regret": True}, {}))
    return made


def full(*_: object) -> None:
    raise StoreError("the disk is full")


def ordered(trainer: Trainer) -> tuple[TrainCode | None, str]:
    trainer._heed(TrainOrder(f"after {trainer.ordered.id}", "now"), 0.0)
    told = trainer._report()
    return told.order_code, told.order_told


def test_before_the_first_order_nothing_is_said(trainer: Trainer) -> None:
    assert trainer._report().order_code is None


def test_what_was_done_and_that_there_is_nothing_more_to_do(trainer: Trainer) -> None:
    assert ordered(trainer) == ("done", "candidate 1 accepted; checkpoint 1")
    code, told = ordered(trainer)
    assert code == "nothing-to-do" and "nothing was learned" in told


def test_an_order_that_is_said_again_is_not_obeyed_again(trainer: Trainer) -> None:
    done = ordered(trainer)
    trainer.step()
    trainer._heed(TrainOrder(trainer.ordered.id, "now"), 0.0)
    told = trainer._report()
    assert (told.order_code, told.order_told) == done


def test_a_checkpoint_alone_is_something_that_was_done(trainer: Trainer) -> None:
    trainer.offer()
    assert ordered(trainer)[0] == "done"


def test_a_checkpoint_that_could_not_be_written_is_no_success(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer.checkpoints, "commit", full)
        assert ordered(trainer) == (
            "checkpoint-not-written",
            "candidate 1 accepted; checkpoint not written, the last is 0",
        )
    assert ordered(trainer)[0] == "done", "what failed is tried again"


def test_a_candidate_that_could_not_be_stored_is_no_success_and_is_made_again(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(program, "write_atomic", full)
        assert ordered(trainer) == ("candidate-not-made", "no candidate: the disk is full; checkpoint 1")
    assert ordered(trainer) == ("done", "candidate 2 accepted; checkpoint 1"), "although no step was taken since"


@pytest.mark.parametrize("least", [program.MIN_PROBE, 1000])
def test_few_that_are_held_out_all_judge_and_what_was_trained_on_does_for_fitting(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    fitted, judged = [], []
    fit = program.quant.fit
    monkeypatch.setattr(program, "MIN_PROBE", least)
    monkeypatch.setattr(program.quant, "fit", lambda params, obs: fitted.append(len(obs)) or fit(params, obs))
    monkeypatch.setattr(
        program, "judge", lambda told, _: judged.append(len(told.candidate)) or Verdict({"regret": True}, {})
    )
    held_out = len(trainer.replay.probe(program.PROBE).seq)
    assert 32 <= held_out < 400 and ordered(trainer)[0] == "done"
    few = least > held_out
    assert judged == [held_out if few else held_out // 2]
    assert fitted == [len(trainer.replay.newest(program.PROBE).seq) if few else held_out - held_out // 2]


def test_too_little_to_judge_by_is_said(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "LEAST_PROBE", 400)
    code, told = ordered(trainer)
    assert code == "too-early" and told.startswith("no candidate: ") and told.endswith("checkpoint 1")


@pytest.mark.parametrize(
    ("offered", "committed", "code"),
    [
        ("candidate-not-made", "checkpoint-not-written", "candidate-not-made"),
        ("nothing-to-do", "checkpoint-not-written", "checkpoint-not-written"),
        ("too-early", "checkpoint-not-written", "checkpoint-not-written"),
        ("too-early", "nothing-to-do", "too-early"),
        ("nothing-to-do", "done", "done"),
    ],
)
def test_of_two_names_the_worse_is_told(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, offered: TrainCode, committed: TrainCode, code: TrainCode
) -> None:
    monkeypatch.setattr(trainer, "offer", lambda: Offered(offered, "said"))
    monkeypatch.setattr(trainer, "commit", lambda: committed)
    assert ordered(trainer)[0] == code


def test_a_network_without_a_verdict_changes_nothing(trainer: Trainer) -> None:
    trainer.offer()
    accepted = trainer.acting
    trainer.must_beat = True
    trainer._heed(Outcome(None, 1, "replaced", "a newer one took its place"), 0.0)
    assert trainer.acting is accepted and trainer.must_beat and trainer.counters["rolled_back"] == 0


class Turns:
    """Stops the trainer after one turn."""

    asked = False

    def __init__(self) -> None:
        self.left = 1

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_verdict_on_a_teacher_is_committed_although_nothing_was_learned_since(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.commit()
    trainer.budget = Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=1e6)
    trainer.schooling.parted = True
    trainer.run(Turns())  # type: ignore[arg-type]  # what it needs of a `Stopping`
    assert trainer.counters["checkpoint"] == 2 and not trainer.schooling.parted
