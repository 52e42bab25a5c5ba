"""PPO in the trainer: a policy's ring, its rollouts, its candidates, and what happens when one is taken back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, config, quant
from edgert.bundle import schema_hash
from edgert.errors import UsageError
from edgert.learn.dqn import softmax
from edgert.nets import forward, initialise
from edgert.policy import artifact, exits
from edgert.ports.process import Layout
from edgert.ports.ring import RingWriter
from edgert.programs.trainer import Trainer
from edgert.values import Budget, Candidate, Outcome, Swap

PARENT = artifact.load((Path(__file__).parents[2] / "models" / "breakout.edgert").read_bytes())
SPEC = PARENT.spec
LAST = SPEC.n_exits - 1
PLENTY = Budget(max_exit=LAST, train_steps_hz=1e4, teacher_bytes_per_s=1e6)


def untrained() -> bytes:
    params = initialise(SPEC, np.random.default_rng(0))
    made = artifact.derive(PARENT, params, quant.fit(params, PARENT.golden_obs), created="", provenance={})
    packed = bundle.read(made)
    manifest = msgspec.structs.replace(packed.manifest, kind="policy", thresholds=(0.5,) * LAST)
    return bundle.write(manifest, packed.members)


DATA = untrained()


@pytest.fixture
def make(folder: Path, line: Callable[[], Any]) -> Callable[..., Trainer]:
    def made(**changes: object) -> Trainer:
        (folder / "p.edgert").write_bytes(DATA)
        base = {
            "device.id": "d",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder / "run"),
            "policy.bundle": str(folder / "p.edgert"),
            "learn.ring_transitions": 2000,
            "learn.min_transitions": 50,
            "learn.batch": 32,
            "learn.rollout_transitions": 800,
            "learn.epochs": 2,
        }
        named = {key.replace("__", "."): value for key, value in changes.items()}
        told = config.parse(config.commented_default({**base, **named}), "test")
        layout = Layout(told)
        layout.make()
        trainer = Trainer(told, layout, artifact.load(DATA), seed=1)
        trainer.parent = line()  # type: ignore[assignment]  # what it needs of one
        trainer._heed(PLENTY, 0.0)
        return trainer

    return made


def live(trainer: Trainer, n: int, *, seed: int = 0) -> None:
    """`n` decisions of one step each, drawn from what acts; action 2 is paid."""
    ring = RingWriter(trainer.layout.ring, SPEC.input_shape, 2000, schema_hash(trainer.policy.manifest))
    rng = np.random.default_rng(seed)
    bars = exits.effective_thresholds(trainer.thresholds, LAST)
    for i in range(n):
        obs = PARENT.golden_obs[int(rng.integers(len(PARENT.golden_obs)))].copy()
        obs.flat[rng.integers(obs.size, size=2)] ^= 1  # few repeat, so that about a tenth of them is held out
        head, exit_ = trainer.acting.first_sure(obs[None], bars)
        drawn = exits.draw(head, rng.random())
        reward = float(drawn.action == 2)
        ring.append(
            obs, episode=i, action=drawn.action, reward=reward, flags=1, exit=exit_, log_prob=drawn.log_prob
        )  # fmt: skip
    ring.close()
    trainer.read_ring()


def practise(trainer: Trainer) -> int:
    """All steps that can be taken now; returns how many."""
    before = trainer.learner.steps
    assert trainer.practice is not None
    while trainer.practice.left(trainer.replay, trainer.learner):
        trainer._train(1.0)
    return trainer.learner.steps - before


def test_a_bundle_of_values_is_not_practised(make: Callable[..., Trainer], folder: Path) -> None:
    trainer = make()
    assert trainer.practice is not None
    assert Trainer(trainer.config, trainer.layout, PARENT, seed=1).practice is None


def test_a_rollout_is_gone_through_once_it_is_whole_and_then_a_network_is_offered(make: Callable[..., Trainer]) -> None:
    trainer = make()
    live(trainer, 700)
    assert practise(trainer) == 0 and not trainer._offers(True)
    live(trainer, 101)
    steps = practise(trainer)
    assert 0 < steps <= 2 * -(-800 // 32)
    assert trainer._offers(False) and not trainer._offers(True)
    assert trainer.offer().said.endswith("accepted")
    (told,) = trainer.parent.of(Candidate)  # type: ignore[attr-defined]  # `Told`
    assert told.checks.keys() == {"held-out", "finite", "rounding", "off-policy-return"}
    made = artifact.load(Path(told.path).read_bytes())
    assert made.manifest.kind == "policy" and (made.params.flat == trainer.learner.params.flat).all()
    assert practise(trainer) == 0  # what is old is not gone through again
    live(trainer, 800, seed=1)
    assert practise(trainer) > 0


def test_what_pays_is_done_more_often(make: Callable[..., Trainer]) -> None:
    trainer = make(learn__learning_rate=2e-3)
    for seed in range(6):
        live(trainer, 801, seed=seed)
        practise(trainer)
        assert trainer._offers(False) and trainer.offer().said.endswith("accepted")
    heads = trainer.acting.heads(PARENT.golden_obs)
    for k in range(SPEC.n_exits):
        assert softmax(heads[k][:, :-1])[0][:, 2].mean() > 0.6
    assert heads[LAST][:, -1].mean() > 0.2  # the value


def test_nothing_is_taken_up_while_training_is_paused(make: Callable[..., Trainer]) -> None:
    trainer = make()
    trainer._heed(msgspec.structs.replace(PLENTY, train_steps_hz=0.0), 0.0)
    live(trainer, 900)
    trainer._train(1.0)
    assert trainer.learner.steps == 0
    trainer._heed(PLENTY, 0.0)
    trainer._train(1.0)
    assert trainer.learner.steps > 0


def test_the_world_waits_while_a_rollout_is_gone_through(make: Callable[..., Trainer]) -> None:
    trainer = make()
    live(trainer, 800)
    assert trainer.practice is not None
    assert trainer.practice.done_seq(trainer.replay) == 800
    trainer._train(1.0)
    live(trainer, 20, seed=1)  # a hole and 20 more
    assert trainer.practice.done_seq(trainer.replay) == 800
    practise(trainer)
    assert trainer.practice.done_seq(trainer.replay) == 800  # until its network is offered
    trainer._offers(False)
    assert trainer.practice.done_seq(trainer.replay) == 821


def test_a_network_that_was_taken_back_is_trained_no_further(make: Callable[..., Trainer]) -> None:
    trainer = make()
    live(trainer, 801)
    practise(trainer)
    trainer._offers(False)
    assert trainer.offer().said.endswith("accepted")
    assert (trainer.learner.params.flat != trainer.policy.params.flat).any()
    trainer._heed(Outcome(None, 1, "rolled-back", "its returns are lower", 2.0, 1.0, 8), 0.0)
    assert (trainer.learner.params.flat == trainer.policy.params.flat).all()
    assert trainer.judged_by == 0 and trainer.counters["rolled_back"] == 1
    assert not trainer.learner.m.any() and trainer.learner.v.any()
    trainer._heed(Outcome(Swap(9, "/nowhere", ""), 1, "rolled-back"), 0.0)
    assert trainer.faults["acting-broken"] == 1


def test_a_harmful_candidate_is_undone(make: Callable[..., Trainer]) -> None:
    trainer = make()
    live(trainer, 801)
    practise(trainer)
    trainer._offers(False)
    trainer.learner.params.views[f"h{LAST}.out.b"][:] += np.float32([0.4, 0.4, -0.8, 0])  # does less of what pays
    trainer.learner.params.views["h0.out.b"][:] += np.float32([0.4, 0.4, -0.8, 0])
    assert trainer.offer().said == "candidate 1 refused: off-policy-return"
    assert (trainer.learner.params.flat == trainer.policy.params.flat).all()
    live(trainer, 801, seed=1)
    practise(trainer)
    assert trainer._offers(False) and trainer.offer().said.endswith("accepted")


def test_a_poisoned_rollout_is_left_and_changes_nothing(make: Callable[..., Trainer]) -> None:
    trainer = make()
    live(trainer, 801)
    trainer.replay._reward[:] = np.nan
    before = trainer.learner.params.flat.copy()
    trainer._train(1.0)
    assert trainer.faults == {"loss-not-finite": 1} or trainer.faults["loss-not-finite"] > 0
    assert (trainer.learner.params.flat == before).all() and practise(trainer) == 0
    with pytest.raises(UsageError, match="no rollout"):
        assert trainer.practice is not None
        trainer.practice.step(trainer.replay, trainer.learner, trainer.rng, 0.0, 1.0)


def test_a_trusted_teacher_is_imitated_also_beyond_the_rollout(make: Callable[..., Trainer]) -> None:
    wanted = []
    for weighing in ("full", "measured"):
        trainer = make(teacher__weighing=weighing, learn__learning_rate=2e-3)
        live(trainer, 801)
        for seq in range(1, 802):
            trainer.replay.teach(seq, np.float32([5, 0, 0, 0]))
        practise(trainer)
        _, log = softmax(forward(trainer.learner.params, PARENT.golden_obs)[LAST][:, :-1])
        wanted.append(float(np.exp(log[:, 0]).mean()))
        shutil.rmtree(trainer.config.device.state_dir)
        trainer.schooling.close()
    assert wanted[0] > 0.5 > wanted[1] + 0.1  # nobody has earned trust in the second
