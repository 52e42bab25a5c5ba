"""The trainer: learns on the device from what happened and from what teachers say, and offers better networks.

It may be killed between any two instructions: only a committed checkpoint exists. It reads transitions from the ring
the actor writes, asks teachers through the supervisor, takes as many gradient steps as the budget allows, and every so
often rounds the network to int8, lets the gate judge it on transitions it was not trained on, and offers it to the
actor.
"""

from __future__ import annotations

import os

from edgert.programs import blas

os.environ.update(blas.environment(os.environ))  # before numpy; the trainer must never take a second core

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edgert import quant
from edgert.bundle import schema_hash
from edgert.config import Config
from edgert.errors import ArtifactError, StoreError, UsageError
from edgert.learn.accept import Limits, Verdict, judge
from edgert.learn.checkpoint import Checkpoint, pack
from edgert.learn.dqn import Batch, Hyper, Learner
from edgert.learn.replay import Replay
from edgert.policy import artifact, exits
from edgert.ports.process import (
    INSTALLED,
    Layout,
    Parent,
    Stopping,
    identity,
    noted_network,
    read_base,
    read_note,
    run_role,
    usage,
)
from edgert.ports.ring import TERMINATED, TRUNCATED, RingReader
from edgert.ports.store import Generations, write_atomic
from edgert.programs import judging
from edgert.programs.judging import Side
from edgert.programs.practising import Practice
from edgert.programs.schooling import Schooling
from edgert.values import (
    Answer,
    Ask,
    Budget,
    Candidate,
    Outcome,
    Stop,
    Swap,
    Told,
    TrainCode,
    TrainerReport,
    TrainOrder,
)

PAUSE_S, IDLE_PAUSE_S, FLOWS_S = 0.02, 1.0, 1.0
"""Between two looks while there is something to learn from, and else (a device that nobody asks should not wake a board
up); it is else when no transition came for so long."""
READ_AT_ONCE = 2000
PROBE = 512
MIN_PROBE = 32
"""Held-out observations of which half can be spared for fitting; with fewer, what was trained on has to do for that."""
LEAST_PROBE = 8
KEEP_NETWORKS = 3
RING_INODE = "ring_inode"
"""Which ring file the transitions of a checkpoint are in."""
ORPHAN_S = 60.0
"""Without a supervisor for this long nobody says what may be spent."""
BEAT_FRAC = 0.05
"""By how much a candidate must beat the network that was put back in the place of one that the gate had let through."""
TOLD_FIRST: list[TrainCode] = ["candidate-not-made", "checkpoint-not-written", "too-early", "done", "nothing-to-do"]
"""By which name an order goes of which the candidate and the checkpoint came out differently."""
STEPS_AT_ONCE = 8
"""Gradient steps between two looks at the supervisor and the ring."""

log = logging.getLogger("edgert.trainer")


class Offered(NamedTuple):
    """What came of offering a candidate, by name and in words."""

    code: TrainCode
    said: str


class Trainer:
    """One training. Deterministic given the ring, the answers and their order."""

    def __init__(self, config: Config, layout: Layout, policy: artifact.Policy, *, seed: int) -> None:
        """Start from the bundle; `resume` may replace that by a checkpoint.

        Args:
            config: checked.
            layout: of this device.
            policy: the installed one.
            seed: of the sampling.
        """
        spec = policy.spec
        self.config, self.layout, self.policy, self.spec = config, layout, policy, spec
        named = f"{schema_hash(policy.manifest)} {spec} {identity(policy.manifest)}"
        self.schema = hashlib.sha256(named.encode()).hexdigest()
        self.hyper = Hyper(
            learning_rate=config.learn.learning_rate,
            gamma=config.learn.gamma,
            td_weight=config.learn.td_weight,
            distill_weight=config.learn.distill_weight,
            target_every=config.learn.target_every,
        )
        self.learner = Learner(policy.params.copy())
        is_policy = policy.manifest.kind == "policy"
        self.practice = Practice(config, policy.params.flat) if is_policy else None
        self.replay = Replay(config.learn.ring_transitions, spec.input_shape, spec.n_actions)
        self.rng = np.random.default_rng(seed)
        self.reader = RingReader(layout.ring)
        self.ring_opened = self.reader.opened
        self.checkpoints = Generations(layout.checkpoints)
        self.schooling = Schooling(config, layout, policy, self.hyper)
        self.installed = self.acting = quant.IntNet(spec, policy.tensors)
        self.parent = Parent(layout.control, "trainer")
        self.budget = Budget(max_exit=spec.n_exits - 1, train_steps_hz=0.0, teacher_bytes_per_s=0.0)
        self.thresholds: Sequence[float] = config.policy.thresholds or policy.manifest.thresholds
        # Drawn, so that an answer to a question of a predecessor that was killed matches none of ours.
        self.next_ask_id = int.from_bytes(os.urandom(6), "big") << 8
        self.counters: dict[str, int] = {
            "transitions": 0,
            "candidates": 0,
            "accepted": 0,
            "rolled_back": 0,
            "generation": 0,
            "checkpoint": 0,
        }
        self.judged_by = 0  # generation of `acting`
        self.must_beat = False
        self.ordered = TrainOrder("", "now")
        self.order_told = ""
        self.order_code: TrainCode | None = None
        self.committed_s: float | None = None
        self.reported: tuple[float, int] | None = None
        self.faults: dict[str, int] = {}
        self.loss: float | None = None
        self.moved = (0, 0.0)  # the newest transition, and when it was seen first
        self.owed = 0.0
        self.credit = 0.0
        self.pays = config.learn.steps_per_transition
        self.offered_at = self.offered_seq = 0
        self.committed_at: int | None = 0

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, if there is one of this policy."""
        self._resume_acting()
        found = self.checkpoints.latest()
        for fault in self.checkpoints.faults:
            self._fault("checkpoint-broken")
            log.warning("%s", fault)
        if found is None:
            return
        number, payload = found
        try:
            checkpoint = Checkpoint(payload, schema=self.schema)
            checkpoint.restore(self.learner, self.rng)
            self.schooling.restore(checkpoint.tutor, time.monotonic())
            if checkpoint.counters.pop(RING_INODE, None) == self._ring_inode():
                self.read_ring(up_to=checkpoint.newest_seq)
            else:
                # The numbers of another ring mean other transitions.
                self._fault("ring-replaced")
        except ArtifactError as error:
            self._fault("checkpoint-refused")
            log.warning("checkpoint %d: %s", number, error)
            return
        self.counters |= checkpoint.counters | {"checkpoint": number}
        taught = self.replay.n_taught
        log.info("resumed at step %d with %d transitions, %d taught", checkpoint.steps, len(self.replay), taught)

    def _resume_acting(self) -> None:
        """Judge candidates against the network that acts, which need not be the installed one."""
        noted, fault = noted_network(self.layout)
        try:
            if noted is not None:
                self._judge_by(noted)
        except (ArtifactError, OSError) as error:
            fault = str(error)
        if fault:
            self._fault("acting-broken")
            log.warning("%s: candidates are judged against the installed network", fault)

    def _judge_by(self, swap: Swap | None) -> None:
        """Candidates are measured by this network from now on; None is the installed one.

        Raises:
            ArtifactError, OSError: it cannot be had; the former stays.
        """
        policy = self.policy if swap is None else artifact.load(Path(swap.path).read_bytes())
        if policy.spec == self.spec and policy.manifest.kind == self.policy.manifest.kind:
            self.acting = self.installed if swap is None else quant.IntNet(self.spec, policy.tensors)
            self.thresholds = self.config.policy.thresholds or policy.manifest.thresholds
            self.judged_by = 0 if swap is None else swap.generation
            if self.practice is not None:
                self.practice.acting = policy.params.flat.copy()

    def _learn_fate(self, told: Outcome) -> None:
        """What became of a network that was offered.

        Training goes on from where it is, but for practice: that begins again where the device went back to, since
        what acts is what it improves on.
        """
        if told.what == "replaced":
            return  # without a verdict; what acts is told with the one that took its place
        if told.what == "rolled-back":
            self.counters["rolled_back"] += 1
            self.must_beat = True
            if told.return_before is not None and told.return_after is not None and self.schooling.enabled:
                self.schooling.tutor.trust.swapped(told.return_before, told.return_after, told.n)
        elif told.what == "kept":
            self.must_beat = False
        acting = told.acting
        try:
            if self.judged_by != (acting.generation if acting else 0):
                self._judge_by(acting)
            if self.practice is not None and told.what == "rolled-back":
                self.practice.go_back(self.learner)
        except (ArtifactError, OSError) as error:
            self._fault("acting-broken")
            log.warning("%s: candidates are judged against generation %d", error, self.judged_by)

    def _obey(self, order: TrainOrder) -> None:
        """A candidate and a checkpoint at once, once for an order; what came of it is in the next report."""
        if order.id == self.ordered.id:
            return  # said again, by a supervisor that started anew and does not know
        offered, committed = self.offer(), self.commit()
        self.order_code = next(code for code in TOLD_FIRST if code in (offered.code, committed))
        failed = "not written, the last is " if committed == "checkpoint-not-written" else ""
        self.ordered, self.order_told = order, f"{offered.said}; checkpoint {failed}{self.counters['checkpoint']}"

    def _ring_inode(self) -> int:
        try:
            return self.layout.ring.stat().st_ino
        except OSError:
            return 0

    def run(self, stopping: Stopping) -> int:
        """Learn until told to stop; then commit what was learned."""
        then_s = time.monotonic()
        checkpoint_s, candidate_s = then_s + self.config.learn.checkpoint_s, then_s + self.config.learn.candidate_s
        report_s = then_s
        while not stopping:
            now_s = time.monotonic()
            for told in self.parent.receive():
                if isinstance(told, Stop):
                    stopping.asked = True
                self._heed(told, now_s)
            self.read_ring()
            self._ask(now_s)
            self.schooling.turn(now_s, self.replay)
            if self.schooling.parted:
                # Also where no step was taken since the last one: it is the verdict that must not be lost.
                self.schooling.parted, checkpoint_s, self.committed_at = False, now_s, None
            self._train(now_s - then_s)
            then_s = now_s
            if self.parent.lost_s is not None and now_s - self.parent.lost_s > ORPHAN_S:
                log.error("no supervisor for %.0f s: leaving", ORPHAN_S)
                stopping.asked = True
            if self._offers(now_s >= candidate_s):
                candidate_s = now_s + self.config.learn.candidate_s
                self.offer()
            if self.config.plant.lockstep_hz:
                self._tell_done()
            if now_s >= checkpoint_s:
                checkpoint_s = now_s + self.config.learn.checkpoint_s
                self.commit()
            if now_s >= report_s:
                report_s = now_s + 1.0
                self.parent.send(self._report())
            if self.owed < 1:
                time.sleep(self._pause_s(now_s))
        self.commit()
        self.schooling.close()
        self.parent.close()
        return 0

    def _pause_s(self, now_s: float) -> float:
        """How long to do nothing: longer where no step may be taken, or nothing has happened for a while."""
        if self.replay.newest_seq != self.moved[0]:
            self.moved = self.replay.newest_seq, now_s
        flows = now_s - self.moved[1] < FLOWS_S and self.budget.train_steps_hz > 0
        return PAUSE_S if self.owed or flows or self.config.plant.lockstep_hz else IDLE_PAUSE_S

    def _offers(self, time_is_up: bool) -> bool:
        """It is time for another network, by transitions where the configuration counts them."""
        if self.practice is not None:
            finished, self.practice.finished = self.practice.finished, False
            return finished
        every = self.config.learn.candidate_transitions
        if not every:
            return time_is_up
        if self.replay.newest_seq - self.offered_seq < every:
            return False
        self.offered_seq = self.replay.newest_seq
        return True

    def _tell_done(self) -> None:
        """Tell the actor up to which transition the gradient steps that are due have been taken."""
        if self.practice is not None:
            self.reader.done(self.practice.done_seq(self.replay))
            return
        waits = 0 if len(self.replay) < self.config.learn.min_transitions else int(self.credit / self.pays)
        self.reader.done(max(0, self.replay.newest_seq - waits))

    def read_ring(self, up_to: int | None = None) -> None:
        """Take in what the actor wrote since the last look."""
        newest = self.reader.newest_seq()
        if self.reader.opened != self.ring_opened:
            if self.ring_opened:
                self._fault("ring-replaced")
            self.ring_opened = self.reader.opened
            self.replay = Replay(self.config.learn.ring_transitions, self.spec.input_shape, self.spec.n_actions)
            self.schooling.tutor.student.forget_transitions()
        if not newest or self.reader.obs_shape != self.spec.input_shape:
            return
        first = max(self.replay.newest_seq + 1, newest - self.replay.capacity + 1, 1)
        last = newest if up_to is None else min(newest, up_to)
        while first <= last:
            records = self.reader.read(first, min(last, first + READ_AT_ONCE - 1))
            first += READ_AT_ONCE
            if records.left_out:
                self._fault("records-left-out", records.left_out)
            ended = records.flags
            self.replay.add(
                records.seq.astype(np.int64),
                records.obs,
                records.action,
                records.reward,
                (ended & TERMINATED) > 0,
                (ended & TRUNCATED) > 0,
                records.log_prob,
            )
            self.counters["transitions"] += len(records)
            self.credit = min(self.credit + self.pays * len(records), self.pays * READ_AT_ONCE)
            self.schooling.saw(records, self.replay, self.learner, lived=up_to is None)

    def _ask(self, now_s: float) -> None:
        """Put one question to the teachers, if the budget and the outstanding ones allow."""
        self.schooling.ask(now_s, self.budget.teacher_bytes_per_s, self.replay, self._send)

    def _send(self, payload: bytes) -> int | None:
        if not self.parent.send(Ask(self.next_ask_id + 1, payload)):
            return None
        self.next_ask_id += 1
        return self.next_ask_id

    def _heed(self, told: Told, now_s: float) -> None:
        match told:
            case Budget():
                self.budget = told
            case Answer(ask_id, payload):
                self.schooling.answer(ask_id, payload, now_s, self.replay, self.learner)
            case Outcome():
                self._learn_fate(told)
            case TrainOrder():
                self._obey(told)
            case _:
                pass

    def _train(self, elapsed_s: float) -> None:
        """Take the gradient steps that the elapsed time has earned; what comes too late is forgiven, not hoarded."""
        hz = self.budget.train_steps_hz
        self.owed = min(self.owed + hz * elapsed_s, max(1.0, 2 * hz * PAUSE_S) + STEPS_AT_ONCE) if hz > 0 else 0.0
        if len(self.replay) < self.config.learn.min_transitions:
            self.owed = 0.0
        if self.practice is not None:
            self.credit = float(self.practice.left(self.replay, self.learner)) if self.owed else 0.0
        for _ in range(min(int(self.owed), int(self.credit), STEPS_AT_ONCE)):
            self.step()
            self.owed, self.credit = self.owed - 1, self.credit - 1
            if self.practice is not None and self.practice.finished:
                break  # before it was gone through, since the policy has moved enough
        if self.credit < 1:
            self.owed = 0.0

    def step(self) -> None:
        """One gradient step."""
        hyper, fades = self.schooling.hyper(), self.config.learn.distill_transitions
        if fades:
            left = max(0.0, 1 - self.replay.newest_seq / fades)
            hyper = msgspec.structs.replace(hyper, distill_weight=left * hyper.distill_weight)
        try:
            if self.practice is not None:
                temperature = self.schooling.policy_temperature
                loss = self.practice.step(self.replay, self.learner, self.rng, hyper.distill_weight, temperature)
            else:
                loss = self.learner.step(self.replay.sample(self.rng, self.config.learn.batch), hyper).total
        except UsageError as error:
            # Nothing was changed; a poisoned transition will be drawn again only by chance.
            self._fault_once("loss-not-finite", str(error))
            return
        self.loss = loss if self.loss is None else 0.99 * self.loss + 0.01 * loss

    def commit(self) -> TrainCode:
        """Write a checkpoint; a full disk costs the checkpoint, not the training."""
        if self.learner.steps == self.committed_at:
            return "nothing-to-do"
        try:
            counters = {**self.counters, RING_INODE: self._ring_inode()}
            self.schooling.keep()
            payload = pack(
                self.learner,
                self.rng,
                newest_seq=self.replay.newest_seq,
                schema=self.schema,
                counters=counters,
                tutor=self.schooling.tutor.pack(),
            )
            self.counters["checkpoint"] = self.checkpoints.commit(payload)
            self.committed_at, self.committed_s = self.learner.steps, time.monotonic()
        except StoreError as error:
            self._fault("checkpoint-not-written")
            log.error("%s", error)
            return "checkpoint-not-written"
        return "done"

    def offer(self) -> Offered:
        """Round the network to int8, let the gate judge it, offer it if it passes."""
        if self.learner.steps == self.offered_at:
            # The same network on nearly the same probe would pass by chance sooner or later.
            return Offered("nothing-to-do", "no candidate: nothing was learned since the last one")
        probe = self.replay.probe(PROBE).batch
        least = MIN_PROBE if self.practice is not None else LEAST_PROBE
        if len(probe.obs) < least:
            said = f"no candidate: {len(probe.obs)} observations to judge it on, it takes {least}"
            return Offered("too-early", said)
        self.counters["candidates"] += 1
        # Rounding and thresholds are fitted on one half of what was held out and judged on the other.
        fit, check = (Batch._make(column[start::2] for column in probe) for start in (0, 1))
        if len(probe.obs) < MIN_PROBE:
            fit, check = self.replay.newest(PROBE).batch, probe
        params = self.learner.params
        try:
            quantized = quant.fit(params, fit.obs)
            candidate = quant.IntNet(self.spec, quantized.tensors)
            fitted = exits.fit_policy_thresholds if self.practice is not None else exits.fit_thresholds
            thresholds = self.config.policy.thresholds or fitted(candidate.heads(fit.obs))
            verdict = self._judge(candidate, thresholds, check)
            if not self.config.learn.gated:
                verdict = verdict._replace(checks={"finite": verdict.checks["finite"]})
            path = sha256 = ""
            if verdict.accepted:
                path, sha256 = self._store(self._bundle(quantized, thresholds, verdict))
                self.acting, self.thresholds = candidate, thresholds
                self.judged_by = self.counters["generation"]
            if self.practice is not None:
                self.practice.judged(self.learner, verdict)
        except (ArtifactError, StoreError) as error:
            self._fault("candidate-not-made")
            log.error("%s", error)
            return Offered("candidate-not-made", f"no candidate: {error}")
        self.offered_at = self.learner.steps
        log.info("candidate %d %s: %s", self.counters["candidates"], "accepted" if path else "refused", verdict)
        offered = Candidate(self.counters["generation"], path, sha256, verdict.checks, verdict.detail)
        self.parent.send(offered, keep=bool(path))
        failed = ", ".join(name for name, passed in verdict.checks.items() if not passed)
        came = f"refused: {failed}" if failed else "accepted"
        return Offered("done", f"candidate {self.counters['candidates']} {came}")

    def _bundle(self, quantized: quant.Quantized, thresholds: Sequence[float], verdict: Verdict) -> bytes:
        trained = {"device": self.config.device.id, "steps": self.learner.steps, "taught": self.replay.n_taught}
        trained["transitions"] = self.counters["transitions"]
        return artifact.derive(
            self.policy,
            self.learner.params,
            quantized,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            provenance={
                INSTALLED: identity(self.policy.manifest),
                "parent": self.policy.manifest.name,
                "trained_on_device": trained,
                "gate": verdict.detail,
            },
            thresholds=thresholds,
        )

    def _judge(self, candidate: quant.IntNet, thresholds: Sequence[float], probe: Batch) -> Verdict:
        """Candidate, acting and installed network, each through its own exits, on held-out observations."""
        if self.practice is not None:
            played = [(self.acting, self.thresholds), (candidate, thresholds)]
            return self.practice.judge(self.learner, played, probe.obs, Limits(min_held_out=MIN_PROBE // 2))
        installed = Side(self.installed, self.config.policy.thresholds or self.policy.manifest.thresholds)
        sides = Side(self.acting, self.thresholds), Side(candidate, thresholds)
        evidence = judging.evidence(installed, *sides, self.learner.params, probe, self.hyper.gamma)
        return judge(
            evidence._replace(
                taught=probe.taught & self.schooling.judges,
                gain=judging.gain(self.replay, *sides, self.hyper.gamma),
            ),
            Limits(beat_frac=BEAT_FRAC if self.must_beat else 0.0),
        )

    def _network_path(self, generation: int) -> Path:
        return self.layout.policies / f"gen-{generation:08d}.edgert"

    def _store(self, data: bytes) -> tuple[str, str]:
        """Write an accepted network under the next number; older ones go, the one that may still act excepted."""
        there = sorted(self.layout.policies.glob("gen-" + 8 * "[0-9]" + ".edgert"))
        newest = max((int(path.stem.removeprefix("gen-")) for path in there), default=0)
        generation = max(newest, self.counters["generation"]) + 1
        path = self._network_path(generation)
        write_atomic(path, data)
        self.counters["generation"] = generation
        self.counters["accepted"] += 1
        note, _ = read_note(self.layout)
        best = note.best.swap if note and note.best else None
        needed = {note.path if note else "", best.path if best else ""}
        for old in there[: -(KEEP_NETWORKS - 1)]:
            if str(old) not in needed:
                old.unlink(missing_ok=True)
        return str(path), hashlib.sha256(data).hexdigest()

    def _fault(self, name: str, by: int = 1) -> None:
        self.faults[name] = self.faults.get(name, 0) + by

    def _fault_once(self, name: str, why: str) -> None:
        """What a peer can say as fast as it likes is counted always and logged the first time."""
        self._fault(name)
        if self.faults[name] == 1:
            log.warning("%s: %s", name, why)

    def _report(self) -> TrainerReport:
        cpu_s, rss_bytes = usage()
        totals = self.schooling.tutor.student.counters
        now_s = time.monotonic()
        then = self.reported
        steps_hz = None if then is None or now_s <= then[0] else (self.learner.steps - then[1]) / (now_s - then[0])
        self.reported = now_s, self.learner.steps
        return TrainerReport(
            pid=os.getpid(),
            steps=self.learner.steps,
            loss=self.loss,
            transitions=self.counters["transitions"],
            asked=totals.asked,
            answered=totals.answered,
            joined=totals.joined,
            candidates=self.counters["candidates"],
            accepted=self.counters["accepted"],
            generation=self.counters["generation"],
            checkpoint=self.counters["checkpoint"],
            faults={**self.faults, **self.schooling.all_faults()},
            cpu_s=cpu_s,
            rss_bytes=rss_bytes,
            steps_hz=steps_hz,
            replay=len(self.replay),
            replay_max=self.replay.capacity,
            needed=self.config.learn.min_transitions,
            taught=self.replay.n_taught,
            rolled_back=self.counters["rolled_back"],
            trust=self.schooling.weight if self.schooling.enabled else None,
            checkpoint_age_s=None if self.committed_s is None else now_s - self.committed_s,
            order=self.ordered.id,
            order_told=self.order_told,
            order_code=self.order_code,
        )


def be_humble() -> None:
    """Take what is left over: lowest priority, first to be sacrificed when memory is short."""
    os.nice(19)
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError as error:
        log.info("oom_score_adj stays as it is: %s", error)


def _run(config: Config, config_path: Path, layout: Layout, stopping: Stopping) -> int:
    be_humble()
    policy = artifact.load(read_base(config, layout))
    seed = int.from_bytes(hashlib.sha256(config.device.id.encode()).digest()[:4], "big")
    trainer = Trainer(config, layout, policy, seed=seed)
    trainer.parent.receive()  # a hello before the long reading: who says none for too long counts as hung
    trainer.resume()
    return trainer.run(stopping)


def main(argv: list[str] | None = None) -> int:
    """Run one trainer; the supervisor starts it."""
    return run_role("trainer", "edgert-trainer", argv, _run)


if __name__ == "__main__":
    raise SystemExit(main())
