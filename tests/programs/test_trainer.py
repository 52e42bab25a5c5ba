"""One trainer without a process: a ring written by the test, a supervisor that only listens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, config, quant, wire
from edgert.bundle import schema_hash
from edgert.errors import StoreError
from edgert.knowledge import codec
from edgert.learn.accept import Verdict
from edgert.policy import artifact
from edgert.ports.process import Layout, noted_network
from edgert.ports.ring import TERMINATED, RingWriter
from edgert.programs import trainer as program
from edgert.programs.trainer import Trainer
from edgert.values import (
    Answer,
    Ask,
    Budget,
    Candidate,
    Note,
    Outcome,
    Record,
    Stop,
    Swap,
    TrainerReport,
    TrainOrder,
)

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
POLICY = artifact.load(DATA)
SHAPE = POLICY.spec.input_shape
PLENTY = Budget(max_exit=2, train_steps_hz=50.0, teacher_bytes_per_s=1e6)


@pytest.fixture
def layout(folder: Path) -> Layout:
    made = Layout(settings(folder))
    made.make()
    return made


def settings(folder: Path, **changes: object) -> config.Config:
    base = {
        "device.id": "d",
        "device.state_dir": str(folder / "state"),
        "device.run_dir": str(folder / "run"),
        "policy.bundle": str(BUNDLE),
        "learn.ring_transitions": 2000,
        "learn.min_transitions": 50,
        "learn.batch": 8,
        "teacher.batch": 16,
    }
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return config.parse(config.commented_default({**base, **named}), "test")


@pytest.fixture
def make(folder: Path, layout: Layout, line: Callable[[], Any]) -> Callable[..., Trainer]:
    def made(**changes: object) -> Trainer:
        trainer = Trainer(settings(folder, **changes), layout, POLICY, seed=1)
        trainer.parent = line()  # type: ignore[assignment]  # what it needs of one
        trainer._heed(PLENTY, 0.0)
        return trainer

    return made


def write(layout: Layout, n: int, seed: int = 0) -> RingWriter:
    """Another `n` transitions in the ring."""
    ring = RingWriter(layout.ring, SHAPE, 2000, schema_hash(POLICY.manifest))
    rng = np.random.default_rng(seed + ring.newest_seq)
    for i in range(n):
        obs = POLICY.golden_obs[int(rng.integers(len(POLICY.golden_obs)))].copy()
        obs.flat[rng.integers(obs.size, size=2)] ^= 1  # few repeat, so that about a tenth of them is held out
        flags = TERMINATED if i % 20 == 19 else 0
        ring.append(obs, episode=1 + i // 20, action=i % 3, reward=float(i % 2), flags=flags, exit=0)
    return ring


def answered(trainer: Trainer, ask: Ask, value: float = 1.0) -> Answer:
    """What a teacher would say that gives every action the same value."""
    asked, _ = wire.decode(ask.payload, wire.KnowAsk)
    q = np.full((asked.count, asked.n_actions), value, np.float32)
    data = codec.CODECS[asked.codec].encode_q(q)
    answer = wire.KnowAnswer(teacher="t", count=asked.count, codec=asked.codec, data=data)
    return Answer(ask.ask_id, wire.encode(answer))


def asked(trainer: Trainer) -> Ask:
    """The first question, once time has filled the bucket of bytes."""
    for now_s in (0.0, 10.0):
        trainer._ask(now_s)
    ask = trainer.parent.of(Ask)[0]  # type: ignore[attr-defined]  # `Told`
    assert isinstance(ask, Ask)
    return ask


def teach(trainer: Trainer) -> int:
    """Ask and answer once; returns how many transitions know something then."""
    trainer._heed(answered(trainer, asked(trainer)), 11.0)
    return len(trainer.replay.taught()[0])


def test_the_ring_is_read_once_and_on_from_there(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make()
    trainer.read_ring()
    assert trainer.counters["transitions"] == 0
    write(layout, 100).close()
    for _ in range(2):
        trainer.read_ring()
    assert trainer.counters["transitions"] == trainer.replay.newest_seq == 100
    write(layout, 30).close()
    trainer.read_ring()
    assert trainer.counters["transitions"] == 130
    assert trainer.faults == {"records-left-out": 1}, "the hole that the second writer left"


def test_a_ring_that_was_overrun_is_read_from_where_it_still_reaches(
    make: Callable[..., Trainer], layout: Layout
) -> None:
    trainer = make()
    write(layout, 5000).close()
    trainer.read_ring()
    assert trainer.counters["transitions"] == 2000
    assert trainer.replay.newest_seq == 5000


def test_another_ring_is_another_past(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make()
    write(layout, 100).close()
    trainer.read_ring()
    assert teach(trainer) > 0
    question, _ = wire.decode(asked(trainer).payload, wire.KnowAsk)
    rows = codec.CODECS[question.codec].decode_obs(question.data, question.count, question.obs_shape)
    known = {row.tobytes() for row in rows}
    layout.ring.unlink()
    write(layout, 20, seed=5).close()
    trainer.read_ring()
    assert trainer.faults["ring-replaced"] == 1
    assert trainer.replay.newest_seq == 20
    # What is known is known by content: numbers that mean something else now bring nothing with them.
    assert {row.tobytes() for row in trainer.replay.taught()[1]} <= known


def test_a_ring_of_other_observations_is_not_read(make: Callable[..., Trainer], layout: Layout) -> None:
    ring = RingWriter(layout.ring, (2, 2, 1), 100, "other")
    ring.append(bytes(4), episode=1, action=0, reward=0.0, flags=0, exit=0)
    ring.close()
    trainer = make()
    trainer.read_ring()
    assert trainer.counters["transitions"] == 0


def test_knowledge_finds_its_transitions(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make()
    write(layout, 100).close()
    trainer.read_ring()
    assert teach(trainer) >= 16
    _, _, q = trainer.replay.taught()
    assert (q == 1.0).all()
    assert trainer.schooling.tutor.student.counters.answered == 16


def test_knowledge_that_cannot_be_read_is_counted_and_logged_once(
    make: Callable[..., Trainer], layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make()
    write(layout, 100).close()
    trainer.read_ring()
    ask = asked(trainer)
    good, _ = wire.decode(answered(trainer, ask).payload, wire.KnowAnswer)
    encode_q = codec.CODECS[good.codec].encode_q
    bad_q = encode_q(np.full((16, 3), np.nan, np.float32))
    short_q = encode_q(np.zeros((3, 3), np.float32))
    for payload in (
        b"",
        b"\xff" * 100,
        wire.encode(msgspec.structs.replace(good, data=b"junk")),
        wire.encode(msgspec.structs.replace(good, count=4)),
        wire.encode(msgspec.structs.replace(good, data=bad_q)),
        wire.encode(msgspec.structs.replace(good, count=3, data=short_q)),
        *(wire.encode(msgspec.structs.replace(good, error=f"reason {i}")) for i in range(50)),
    ):
        trainer._heed(Answer(ask.ask_id, payload), 1.0)
    trainer._heed(Answer(ask.ask_id + 77, answered(trainer, ask).payload), 1.0)
    faults = trainer.schooling.all_faults()
    assert faults["answer-malformed"] >= 4
    assert faults["teacher-refused"] == faults["refused-other"] == 50
    assert len(faults) < 8, "a peer must not be able to invent counters"
    assert len(trainer.replay.taught()[0]) == 0
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 2
    trainer._heed(answered(trainer, ask), 1.0)
    assert len(trainer.replay.taught()[0]) >= 16, "the question is still open for its true answer"


def test_no_question_is_asked_without_a_budget(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make()
    trainer._heed(Budget(max_exit=2, train_steps_hz=1.0, teacher_bytes_per_s=0.0), 0.0)
    write(layout, 100).close()
    trainer.read_ring()
    for now_s in (1.0, 2.0, 3.0):
        trainer._ask(now_s)
    assert trainer.parent.of(Ask) == []  # type: ignore[attr-defined]  # `Told`


def test_time_earns_gradient_steps_once_there_is_enough_to_learn_from(
    make: Callable[..., Trainer], layout: Layout
) -> None:
    trainer = make()
    write(layout, 40).close()
    trainer.read_ring()
    trainer._train(10.0)
    assert trainer.learner.steps == 0
    write(layout, 100).close()
    trainer.read_ring()
    trainer._train(0.1)
    assert trainer.learner.steps == 5
    trainer._train(1e6)
    assert trainer.learner.steps == 5 + program.STEPS_AT_ONCE
    trainer._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0), 0.0)
    trainer._train(10.0)
    assert trainer.learner.steps == 5 + program.STEPS_AT_ONCE
    assert trainer.loss is not None


def trained(make: Callable[..., Trainer], layout: Layout, *, steps: int = 10, **changes: object) -> Trainer:
    trainer = make(**changes)
    write(layout, 400).close()
    trainer.read_ring()
    for _ in range(steps):
        trainer.step()
    return trainer


@pytest.mark.parametrize("taught", [True, False])
def test_a_killed_trainer_goes_on_where_it_committed(
    make: Callable[..., Trainer], layout: Layout, taught: bool
) -> None:
    trainer = trained(make, layout)
    known = teach(trainer) if taught else 0
    trainer.commit()
    for _ in range(5):
        trainer.step()
    trainer.schooling.close()  # as the kernel does for a process that was killed
    write(layout, 50).close()
    other = make()
    other.resume()
    assert other.faults == {}
    assert other.learner.steps == 10
    assert other.counters["checkpoint"] == trainer.counters["checkpoint"] == 1
    assert len(other.replay.taught()[0]) == known
    assert other.replay.newest_seq == 400
    # And from there it does what the killed one did.
    for _ in range(5):
        other.step()
    assert np.array_equal(other.learner.params.flat, trainer.learner.params.flat)
    other.read_ring()
    assert other.replay.newest_seq == 451  # one number is the hole that the second writer left


def test_what_was_taught_of_one_ring_is_not_said_of_another(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = trained(make, layout)
    assert teach(trainer) > 0
    trainer.commit()
    kept = layout.ring.with_suffix(".old")
    layout.ring.rename(kept)  # keeps its inode from being given again
    write(layout, 400, seed=9).close()
    other = make()
    other.resume()
    assert other.learner.steps == 10
    assert other.faults == {"ring-replaced": 1}
    assert len(other.replay.taught()[0]) == 0
    other.read_ring()
    assert other.counters["transitions"] >= 400


def test_broken_and_foreign_checkpoints_are_said_and_training_starts_from_the_bundle(
    make: Callable[..., Trainer], layout: Layout
) -> None:
    trainer = trained(make, layout)
    trainer.commit()
    (path,) = layout.checkpoints.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    other = make()
    other.resume()
    assert other.faults == {"checkpoint-broken": 1}
    assert np.array_equal(other.learner.params.flat, POLICY.params.flat)
    trainer.schema = "another network"
    trainer.step()
    trainer.commit()
    other = make()
    other.resume()
    assert other.faults == {"checkpoint-refused": 1}
    assert np.array_equal(other.learner.params.flat, POLICY.params.flat)
    assert other.learner.steps == 0


def test_a_full_disk_costs_the_checkpoint_and_the_candidate_but_not_the_training(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make, layout)

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(program, "write_atomic", full)
    monkeypatch.setattr(program, "judge", lambda *_: Verdict({"ok": True}, {}))
    monkeypatch.setattr(trainer.checkpoints, "commit", full)
    trainer.commit()
    trainer.offer()
    assert trainer.faults == {"checkpoint-not-written": 1, "candidate-not-made": 1}
    assert trainer.counters["generation"] == trainer.counters["accepted"] == 0
    trainer.step()
    assert trainer.learner.steps == 11


def test_a_network_that_passes_the_gate_is_stored_and_offered(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make, layout)
    monkeypatch.setattr(program, "judge", lambda *_: Verdict({"regret": True}, {"changed": 0.5}))
    before = trainer.acting
    trainer.offer()
    (offered,) = trainer.parent.of(Candidate)  # type: ignore[attr-defined]  # `Told`
    data = Path(offered.path).read_bytes()
    policy = artifact.load(data)
    assert (offered.generation, offered.checks, offered.detail) == (1, {"regret": True}, {"changed": 0.5})
    assert policy.manifest.provenance["trained_on_device"]["steps"] == 10
    assert schema_hash(policy.manifest) == schema_hash(POLICY.manifest)
    assert not np.array_equal(policy.params.flat, POLICY.params.flat)
    assert trainer.acting is not before, "the next one is judged against this one"
    assert (trainer.counters["accepted"], trainer.counters["candidates"]) == (1, 1)


def test_a_network_that_fails_the_gate_is_said_and_nothing_else(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make, layout)
    monkeypatch.setattr(program, "judge", lambda *_: Verdict({"regret": False, "finite": True}, {"regret_after": 2.0}))
    before = trainer.acting
    trainer.offer()
    (refused,) = trainer.parent.of(Candidate)  # type: ignore[attr-defined]  # `Told`
    assert (refused.path, refused.sha256) == ("", "")
    assert refused.checks == {"regret": False, "finite": True}
    assert trainer.acting is before
    assert list(layout.policies.glob("*.edgert")) == []
    assert (trainer.counters["accepted"], trainer.counters["candidates"]) == (0, 1)


def test_the_real_gate_refuses_a_network_that_unlearned(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = trained(make, layout, steps=1)
    trainer.learner.params.flat[:] = -50 * trainer.learner.params.flat
    trainer.offer()
    (refused,) = trainer.parent.of(Candidate)  # type: ignore[attr-defined]  # `Told`
    assert refused.path == ""
    assert not all(refused.checks.values())


def test_without_steps_or_held_out_transitions_nothing_is_offered(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = trained(make, layout, steps=0)
    trainer.offer()
    small = make()
    small.learner.steps = 5
    small.offer()
    assert trainer.parent.told == small.parent.told == []  # type: ignore[attr-defined]  # `Told`


def test_the_network_that_acts_is_never_deleted_and_numbers_never_come_back(
    make: Callable[..., Trainer], layout: Layout
) -> None:
    trainer = make()
    paths = [Path(trainer._store(DATA)[0])]
    noted = Swap(1, str(paths[0]), program.hashlib.sha256(DATA).hexdigest())
    layout.acting.write_bytes(msgspec.json.encode(noted))
    paths += [Path(trainer._store(DATA)[0]) for _ in range(5)]
    assert [path.name for path in sorted(layout.policies.glob("gen-*"))] == [
        f"gen-{n:08d}.edgert" for n in (1, 4, 5, 6)
    ]
    assert noted_network(layout) == (noted, "")
    # Killed before a checkpoint said so: the files remember which numbers were given.
    assert Path(make()._store(DATA)[0]).name == "gen-00000007.edgert"


def test_candidates_are_judged_against_the_network_that_acts(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make()
    manifest = msgspec.structs.replace(POLICY.manifest, thresholds=(0.1, 0.2))
    path, sha256 = trainer._store(bundle.write(manifest, POLICY.bundle.members))
    layout.acting.write_bytes(msgspec.json.encode(Swap(1, path, sha256)))
    other = make()
    other.resume()
    assert other.thresholds == (0.1, 0.2)
    forced = make(policy__thresholds=[0.9, 0.9])
    forced.resume()
    assert forced.thresholds == (0.9, 0.9)
    layout.acting.write_bytes(b"torn")
    other = make()
    other.resume()
    assert other.faults == {"acting-broken": 1}
    assert other.thresholds == POLICY.manifest.thresholds


def test_what_was_rolled_back_must_be_beaten_by_the_next(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def passed(evidence: object, told: program.Limits) -> Verdict:
        limits.append(told.beat_frac)
        return Verdict({"regret": True}, {})

    trainer = trained(make, layout)
    monkeypatch.setattr(program, "judge", passed)
    installed = trainer.acting
    trainer.offer()
    (offered,) = trainer.parent.of(Candidate)  # type: ignore[attr-defined]  # `Told`
    swap = Swap(1, offered.path, offered.sha256)
    accepted = trainer.acting
    trainer._heed(Outcome(swap, 1, "swapped"), 0.0)
    assert trainer.acting is accepted
    weights = trainer.learner.params.flat.copy()
    trainer._heed(Outcome(None, 1, "rolled-back", "worse", 10.0, 2.0, 8), 0.0)
    assert trainer.acting is installed and trainer.counters["rolled_back"] == 1
    assert np.array_equal(trainer.learner.params.flat, weights), "it goes on from what it has learned"
    trainer.step()
    trainer.offer()
    trainer._heed(Outcome(swap, 2, "kept"), 0.0)
    trainer.step()
    trainer.offer()
    assert limits == [0.0, program.BEAT_FRAC, 0.0]


def test_a_refused_candidate_is_not_what_the_next_is_judged_by(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make, layout)
    monkeypatch.setattr(program, "judge", lambda *_: Verdict({"regret": True}, {}))
    trainer.offer()
    trainer._heed(Outcome(None, 1, "refused", "golden"), 0.0)
    assert trainer.acting is trainer.installed and trainer.judged_by == 0
    trainer._heed(Outcome(Swap(9, str(layout.policies / "gone"), "x")), 0.0)
    assert trainer.faults == {"acting-broken": 1} and trainer.acting is trainer.installed


def test_the_network_to_go_back_to_stays_on_disk(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make()
    best, acts = (Swap(n, *trainer._store(DATA)) for n in (1, 2))
    note = Note(acts.generation, acts.path, acts.sha256, Record(best, returns=(1.0,)))
    layout.acting.write_bytes(msgspec.json.encode(note))
    for _ in range(5):
        trainer._store(DATA)
    assert Path(best.path).exists() and noted_network(layout) == (acts, "")


def test_asked_for_a_candidate_now_it_says_what_came_of_it(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = trained(make, layout)
    trainer._heed(TrainOrder("a", "now"), 0.0)
    told = trainer._report()
    assert told.order == "a" and told.order_told.startswith("candidate 1 ") and told.checkpoint == 1
    assert told.replay > 0 and told.replay_max == 2000 and told.needed == 50 and told.checkpoint_age_s is not None
    trainer._heed(TrainOrder("b", "now"), 0.0)
    assert "nothing was learned since" in trainer._report().order_told


class Asked:
    asked = False

    def __bool__(self) -> bool:
        return self.asked


def test_told_to_stop_it_commits_and_leaves(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = trained(make, layout)
    trainer.parent.says = [Stop()]  # type: ignore[attr-defined]  # `Told`
    assert trainer.run(Asked()) == 0  # type: ignore[arg-type]  # what it needs of a `Stopping`
    assert trainer.counters["checkpoint"] == 1
    (report,) = trainer.parent.of(TrainerReport)  # type: ignore[attr-defined]  # `Told`
    assert report.steps == 10
    assert report.transitions == 400


@pytest.mark.parametrize("parted", [True, False])
def test_a_verdict_on_a_teacher_is_committed_at_once(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch, parted: bool
) -> None:
    trainer, commits = trained(make, layout), []
    trainer.schooling.parted = parted
    monkeypatch.setattr(trainer, "commit", lambda: commits.append(1))
    turns = iter([False, False, True])
    monkeypatch.setattr(Asked, "__bool__", lambda _: next(turns))
    trainer.run(Asked())  # type: ignore[arg-type]  # what it needs of a `Stopping`
    assert len(commits) == 1 + parted and not trainer.schooling.parted


def test_a_device_that_sees_nothing_new_neither_trains_on_nor_offers_again(
    make: Callable[..., Trainer], layout: Layout
) -> None:
    trainer = trained(make, layout, steps=1)
    for _ in range(2000):
        trainer._train(1.0)
    steps = trainer.learner.steps
    assert steps == 1 + trainer.pays * trainer.counters["transitions"]
    trainer.offer()
    offered = trainer.counters["candidates"]
    trainer.offer()
    assert trainer.counters["candidates"] == offered == 1
    write(layout, 10).close()
    trainer.read_ring()
    trainer._train(1.0)
    assert trainer.learner.steps > steps


def test_what_was_learned_from_one_bundle_does_not_go_on_in_another(
    make: Callable[..., Trainer], layout: Layout, folder: Path
) -> None:
    trainer = trained(make, layout)
    trainer.commit()
    params = POLICY.params.copy()
    params.flat[0] += 1
    made = quant.fit(params, POLICY.golden_obs)
    other = artifact.load(artifact.derive(POLICY, params, made, created="", provenance={}))
    replaced = Trainer(settings(folder), layout, other, seed=1)
    replaced.resume()
    assert replaced.learner.steps == 0 and "checkpoint-refused" in replaced.faults


def test_candidates_may_be_counted_in_transitions(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make(learn__candidate_transitions=60)
    assert not trainer._offers(True)
    write(layout, 100).close()
    trainer.read_ring()
    assert trainer._offers(False) and not trainer._offers(True)
    assert make()._offers(True) and not make()._offers(False)


def test_a_plant_in_lockstep_is_told_what_is_paid_for(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make(learn__steps_per_transition=0.5, learn__min_transitions=50, plant__lockstep_hz=1000.0)
    ring = write(layout, 40)
    trainer.read_ring()
    trainer._tell_done()
    assert ring.done_seq() == 40  # nothing can be learned from so few
    ring.close()
    ring = write(layout, 60)
    trainer.read_ring()
    trainer._tell_done()
    behind = ring.newest_seq - ring.done_seq()
    assert behind == 100
    for _ in range(40):
        trainer._train(1.0)
    trainer._tell_done()
    assert ring.done_seq() == ring.newest_seq and trainer.learner.steps == 50


def test_without_a_gate_everything_sound_is_accepted(make: Callable[..., Trainer], layout: Layout) -> None:
    trainer = make(learn__gated=False)
    write(layout, 1500).close()
    trainer.read_ring()
    trainer.step()
    trainer._judge = lambda *_: Verdict({"finite": True, "td-error": False}, {})  # type: ignore[method-assign]
    trainer.offer()
    (offered,) = trainer.parent.of(Candidate)  # type: ignore[attr-defined]  # `Told`
    assert offered.path and offered.checks == {"finite": True}


def test_imitation_fades_with_the_transitions_where_it_shall(
    make: Callable[..., Trainer], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"learn__distill_transitions": 400, "teacher__weighing": "full", "learn__distill_weight": 2.0}
    trainer = make(**settings)
    write(layout, 100).close()
    trainer.read_ring()
    told = []
    learn = trainer.learner.step
    monkeypatch.setattr(trainer.learner, "step", lambda batch, hyper: (told.append(hyper), learn(batch, hyper))[1])
    trainer.step()
    write(layout, 500).close()
    trainer.read_ring()
    trainer.step()
    assert [hyper.distill_weight for hyper in told] == pytest.approx([1.5, 0.0])
