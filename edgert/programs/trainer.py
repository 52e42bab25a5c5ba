"""The trainer: learns on the device from what happened and from what teachers say, and offers better networks.

It may be killed between any two instructions: only a committed checkpoint exists. It reads transitions from the ring
the actor writes, asks teachers through the supervisor, takes as many gradient steps as the budget allows, and every so
often rounds the network to int8, lets the gate judge it on transitions it was not trained on, and offers it to the
actor.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the trainer must never take a second core

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgert import quant, wire
from edgert.bundle import schema_hash
from edgert.config import Config
from edgert.errors import ArtifactError, MessageError, StoreError, UsageError
from edgert.knowledge import codec
from edgert.knowledge.student import Student
from edgert.learn.accept import Evidence, Limits, Verdict, judge
from edgert.learn.checkpoint import Checkpoint, pack
from edgert.learn.dqn import Batch, Hyper, Learner
from edgert.learn.replay import Replay
from edgert.nets import F32, U8, forward
from edgert.policy import artifact, exits
from edgert.ports.process import (
    INSTALLED,
    Layout,
    Parent,
    Stopping,
    identity,
    noted_network,
    read_bundle,
    run_role,
    usage,
)
from edgert.ports.ring import TERMINATED, TRUNCATED, RingReader
from edgert.ports.store import Generations, write_atomic
from edgert.values import Answer, Ask, Budget, Candidate, Stop, Told, TrainerReport

PAUSE_S = 0.02
READ_AT_ONCE = 2000
PROBE = 512
MIN_PROBE = 32
KEEP_NETWORKS = 3
RING_INODE = "ring_inode"
"""Which ring file the transitions of a checkpoint are in."""
ASK_BYTES = 200_000
"""Most raw observation bytes in one question: below what the link queues, however badly they compress."""
STEPS_PER_TRANSITION = 4.0
"""Most gradient steps a new transition pays for: a device that sees nothing new learns nothing more from the old."""
ORPHAN_S = 60.0
"""Without a supervisor for this long nobody says what may be spent."""
STEPS_AT_ONCE = 8
"""Gradient steps between two looks at the supervisor and the ring."""

log = logging.getLogger("edgert.trainer")


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
        )
        self.learner = Learner(policy.params.copy())
        self.replay = Replay(config.learn.ring_transitions, spec.input_shape, spec.n_actions)
        self.rng = np.random.default_rng(seed)
        self.reader = RingReader(layout.ring)
        self.ring_opened = self.reader.opened
        self.checkpoints = Generations(layout.checkpoints)
        self.student = Student(
            capacity=config.learn.ring_transitions,
            batch=max(1, min(config.teacher.batch, ASK_BYTES // int(np.prod(spec.input_shape)))),
            timeout_s=config.teacher.timeout_s,
            max_pending=4,
        )
        self.installed = self.acting = quant.IntNet(spec, policy.tensors)
        self.parent = Parent(layout.control, "trainer")
        self.budget = Budget(max_exit=spec.n_exits - 1, train_steps_hz=0.0, teacher_bytes_per_s=0.0)
        self.task = config.teacher.task or policy.manifest.task
        self.thresholds: Sequence[float] = config.policy.thresholds or policy.manifest.thresholds
        # Drawn, so that an answer to a question of a predecessor that was killed matches none of ours.
        self.next_ask_id = int.from_bytes(os.urandom(6), "big") << 8
        self.counters: dict[str, int] = {
            "transitions": 0,
            "candidates": 0,
            "accepted": 0,
            "generation": 0,
            "checkpoint": 0,
        }
        self.faults: dict[str, int] = {}
        self.loss: float | None = None
        self.owed = 0.0
        self.credit = 0.0
        self.offered_at = self.committed_at = 0

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
            if checkpoint.counters.pop(RING_INODE, None) == self._ring_inode():
                self.read_ring(up_to=checkpoint.newest_seq)
            else:
                # The numbers of another ring mean other transitions: none of what was taught finds its place.
                self._fault("ring-replaced")
            taught = checkpoint.restore(self.learner, self.replay, self.rng)
            _, known, q = self.replay.taught()
            for obs, row in zip(known, q, strict=True):
                self._teach(self.student.remember(obs, row))
        except ArtifactError as error:
            self._fault("checkpoint-refused")
            log.warning("checkpoint %d: %s", number, error)
            return
        self.counters |= checkpoint.counters | {"checkpoint": number}
        log.info("resumed at step %d with %d transitions, %d taught", checkpoint.steps, len(self.replay), taught)

    def _resume_acting(self) -> None:
        """Judge candidates against the network that acts, which need not be the installed one."""
        noted, fault = noted_network(self.layout)
        try:
            if noted is not None:
                policy = artifact.load(Path(noted.path).read_bytes())
                if policy.spec == self.spec:
                    self.acting = quant.IntNet(self.spec, policy.tensors)
                    self.thresholds = self.config.policy.thresholds or policy.manifest.thresholds
        except (ArtifactError, OSError) as error:
            fault = str(error)
        if fault:
            self._fault("acting-broken")
            log.warning("%s: candidates are judged against the installed network", fault)

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
            self._train(now_s - then_s)
            then_s = now_s
            if self.parent.lost_s is not None and now_s - self.parent.lost_s > ORPHAN_S:
                log.error("no supervisor for %.0f s: leaving", ORPHAN_S)
                stopping.asked = True
            if now_s >= candidate_s:
                candidate_s = now_s + self.config.learn.candidate_s
                self.offer()
            if now_s >= checkpoint_s:
                checkpoint_s = now_s + self.config.learn.checkpoint_s
                self.commit()
            if now_s >= report_s:
                report_s = now_s + 1.0
                self.parent.send(self._report())
            if self.owed < 1:
                time.sleep(PAUSE_S)
        self.commit()
        self.parent.close()
        return 0

    def read_ring(self, up_to: int | None = None) -> None:
        """Take in what the actor wrote since the last look."""
        newest = self.reader.newest_seq()
        if self.reader.opened != self.ring_opened:
            if self.ring_opened:
                self._fault("ring-replaced")
            self.ring_opened = self.reader.opened
            self.replay = Replay(self.config.learn.ring_transitions, self.spec.input_shape, self.spec.n_actions)
            self.student.forget_transitions()
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
            )
            self.counters["transitions"] += len(records)
            self.credit = min(self.credit + STEPS_PER_TRANSITION * len(records), STEPS_PER_TRANSITION * READ_AT_ONCE)
            if len(records) and self.config.teacher.enabled:
                for seq, row, unsure in zip(records.seq, records.obs, self._uncertainty(records.obs), strict=True):
                    self._teach(self.student.saw(int(seq), row, float(unsure)))

    def _uncertainty(self, obs: U8) -> F32:
        """How close the two best actions are: 0 (sure) to 1 (a tie). (n,) float32."""
        last = self.spec.n_exits - 1
        q = np.sort(forward(self.learner.params, obs, exits=(last,))[last][:, : self.spec.n_actions], axis=1)
        gap = q[:, -1] - q[:, -2] if q.shape[1] > 1 else np.ones(len(q), np.float32)
        return np.asarray(1 / (1 + gap / np.float32(self.hyper.temperature)), np.float32)

    def _ask(self, now_s: float) -> None:
        """Put one question to the teachers, if the budget and the outstanding ones allow."""
        self.student.expire(now_s)
        plan = self.student.plan(now_s, self.budget.teacher_bytes_per_s)
        if plan is None:
            return
        question = wire.KnowAsk(
            task=self.task,
            obs_shape=self.spec.input_shape,
            n_actions=self.spec.n_actions,
            count=len(plan.rows),
            codec=codec.CODEC_FRAMES_ZSTD,
            data=codec.encode_obs(np.stack(plan.rows)),
        )
        payload = wire.encode(question)
        if self.parent.send(Ask(self.next_ask_id + 1, payload)):
            self.next_ask_id += 1
            self.student.sent(self.next_ask_id, plan, len(payload), now_s)

    def _heed(self, told: Told, now_s: float) -> None:
        match told:
            case Budget():
                self.budget = told
            case Answer(ask_id, payload):
                self._join(ask_id, payload, now_s)
            case _:
                pass

    def _join(self, ask_id: int, payload: bytes, now_s: float) -> None:
        """Give an answer to the transitions it is about."""
        try:
            answer, _ = wire.decode(payload, wire.KnowAnswer)
            if answer.error:
                # Not a counter a reason: whoever may publish here could invent as many as our memory holds.
                self._fault_once("teacher-refused", f"answer {ask_id}: {answer.error:.80}")
                return
            q = codec.decode_q(answer.data, answer.count, self.spec.n_actions)
        except MessageError as error:
            self._fault_once("answer-malformed", f"answer {ask_id}: {error!s:.300}")
            return
        self._teach(self.student.answer(ask_id, q, len(payload), now_s))

    def _teach(self, joined: list[tuple[int, F32]]) -> None:
        for seq, q in joined:
            self.replay.teach(seq, q)

    def _train(self, elapsed_s: float) -> None:
        """Take the gradient steps that the elapsed time has earned; what comes too late is forgiven, not hoarded."""
        hz = self.budget.train_steps_hz
        self.owed = min(self.owed + hz * elapsed_s, max(1.0, 2 * hz * PAUSE_S) + STEPS_AT_ONCE) if hz > 0 else 0.0
        if len(self.replay) < self.config.learn.min_transitions:
            self.owed = 0.0
        for _ in range(min(int(self.owed), int(self.credit), STEPS_AT_ONCE)):
            self.step()
            self.owed, self.credit = self.owed - 1, self.credit - 1
        if self.credit < 1:
            self.owed = 0.0

    def step(self) -> None:
        """One gradient step."""
        try:
            losses = self.learner.step(self.replay.sample(self.rng, self.config.learn.batch), self.hyper)
        except UsageError as error:
            # Nothing was changed; a poisoned transition will be drawn again only by chance.
            self._fault_once("loss-not-finite", str(error))
            return
        self.loss = losses.total if self.loss is None else 0.99 * self.loss + 0.01 * losses.total

    def commit(self) -> None:
        """Write a checkpoint; a full disk costs the checkpoint, not the training."""
        if not self.learner.steps or self.learner.steps == self.committed_at:
            return
        try:
            counters = {**self.counters, RING_INODE: self._ring_inode()}
            payload = pack(self.learner, self.replay, self.rng, schema=self.schema, counters=counters)
            self.counters["checkpoint"] = self.checkpoints.commit(payload)
            self.committed_at = self.learner.steps
        except StoreError as error:
            self._fault("checkpoint-not-written")
            log.error("%s", error)

    def offer(self) -> None:
        """Round the network to int8, let the gate judge it, and offer it if it passes."""
        if self.learner.steps == self.offered_at:
            return  # the same network on nearly the same probe would pass by chance sooner or later
        probe = self.replay.probe(PROBE).batch
        if len(probe.obs) < MIN_PROBE:
            return
        self.counters["candidates"] += 1
        self.offered_at = self.learner.steps
        # Rounding and thresholds are fitted on one half of what was held out and judged on the other.
        fit, check = (Batch._make(column[start::2] for column in probe) for start in (0, 1))
        params = self.learner.params
        try:
            quantized = quant.fit(params, fit.obs)
            candidate = quant.IntNet(self.spec, quantized.tensors)
            thresholds = self.config.policy.thresholds or exits.fit_thresholds(candidate.heads(fit.obs))
            verdict = self._judge(candidate, thresholds, check)
            path = sha256 = ""
            if verdict.accepted:
                path, sha256 = self._store(self._bundle(quantized, thresholds, verdict))
                self.acting, self.thresholds = candidate, thresholds
        except (ArtifactError, StoreError) as error:
            self._fault("candidate-not-made")
            log.error("%s", error)
            return
        log.info("candidate %d %s: %s", self.counters["candidates"], "accepted" if path else "refused", verdict)
        offered = Candidate(self.counters["generation"], path, sha256, verdict.checks, verdict.detail)
        self.parent.send(offered, keep=bool(path))

    def _bundle(self, quantized: quant.Quantized, thresholds: Sequence[float], verdict: Verdict) -> bytes:
        taught, _, _ = self.replay.taught()
        trained = {"device": self.config.device.id, "steps": self.learner.steps, "taught": len(taught)}
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
        last, n_actions = self.spec.n_exits - 1, self.spec.n_actions
        acting, offered = self.acting.heads(probe.obs), candidate.heads(probe.obs)
        in_float = forward(self.learner.params, probe.obs)
        # The acting network says what follows is worth: by its own yardstick a collapsed candidate would be perfect.
        following = self.acting.heads(probe.next_obs)[last][:, :n_actions].max(1)
        y = probe.reward + np.float32(self.hyper.gamma) * np.where(probe.terminated, np.float32(0), following)
        rows = np.arange(len(y))
        return judge(
            Evidence(
                installed=exits.decide(
                    self.installed.heads(probe.obs), self.config.policy.thresholds or self.policy.manifest.thresholds
                ),
                acting=exits.decide(acting, self.thresholds),
                candidate=exits.decide(offered, thresholds),
                candidate_float=exits.decide(in_float, thresholds),
                candidate_head=offered[last],
                float_q=in_float[last][:, :n_actions],
                teacher_q=probe.teacher_q,
                taught=probe.taught,
                acting_td=np.abs(acting[last][rows, probe.action] - y),
                candidate_td=np.abs(offered[last][rows, probe.action] - y),
            ),
            Limits(),
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
        noted, _ = noted_network(self.layout)
        for old in there[: -(KEEP_NETWORKS - 1)]:
            if noted is None or str(old) != noted.path:
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
        totals = self.student.counters
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
            faults={**self.faults, **self.student.faults},
            cpu_s=cpu_s,
            rss_bytes=rss_bytes,
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
    policy = artifact.load(read_bundle(config))
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
