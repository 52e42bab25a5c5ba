"""The trainer's dealings with teachers: what it asks, what it knows on disk, and how far it lets itself be taught."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import numpy as np

from edgert.bundle import action_set, schema_hash
from edgert.config import Config
from edgert.errors import StoreError
from edgert.knowledge.student import Student
from edgert.knowledge.trust import BLOCK, Lessons
from edgert.knowledge.tutor import Asks, Tutor
from edgert.knowledge.worth import FEATURES, FLOOR, KEPT_EVERY, Worth, features, moved
from edgert.learn.dqn import Hyper, Learner
from edgert.learn.replay import Replay
from edgert.learn.returns import Episodes
from edgert.nets import F32, U8, forward
from edgert.policy import artifact
from edgert.ports.knowledge import KnowledgeCache
from edgert.ports.process import Layout
from edgert.ports.ring import TERMINATED, TRUNCATED, Records

ASK_BYTES = 200_000
"""Most bytes of one question: below what the link queues. So many raw ones always fit."""
MAX_PENDING = 4
ROWS_AT_ONCE = 128
"""Observations in one forward pass: bounds the memory of looking at what is new."""
KEEP_S = 10.0
"""Answers are kept on disk together, once in so many seconds, or when there are"""
KEEP_ROWS = 1024
"""of them."""
RUN = 64
"""While a teacher has yet to prove itself, every other stretch of so many transitions is asked about without a gap."""
JUDGED_AT_ONCE = 1024
WATCHED_AT_ONCE = 2 * BLOCK
"""Most transitions looked at after one answer before and after a teacher has shown what it is worth."""
SHARPER = 0.1
"""Share of the temperature at which a teacher's values are a policy to imitate. A student that takes its best action
gains from softer ones, which say how much the others are worth; one that draws its actions would play as badly as
they are soft."""
TRUSTED_FRAC = 0.25
"""Weight from which a teacher may judge candidates: it has shown that it knows this world and that there is something
to gain from it, which is all it takes to know the better of two networks."""

log = logging.getLogger("edgert.trainer")


class Schooling:
    """Everything between the replay and the teachers; does nothing where no teacher may be asked.

    Attributes:
        tutor: who is listened to, and how far.
        parted: a teacher was found out since somebody last looked: a verdict that is not to be lost.
        faults: named fault -> count, of the cache.
    """

    def __init__(self, config: Config, layout: Layout, policy: artifact.Policy, hyper: Hyper) -> None:
        """Open what is known.

        Args:
            config: checked.
            layout: of this device.
            policy: the installed one.
            hyper: of the training while a teacher is fully trusted.
        """
        spec, manifest = policy.spec, policy.manifest
        self.spec, self.enabled = spec, config.teacher.enabled
        self._is_policy = manifest.kind == "policy"
        self.parted = False
        self.faults: dict[str, int] = {}
        task = config.teacher.task or manifest.task
        student = Student(
            capacity=config.learn.ring_transitions,
            batch=max(1, min(config.teacher.batch, ASK_BYTES // int(np.prod(spec.input_shape)))),
            timeout_s=config.teacher.timeout_s,
            max_pending=MAX_PENDING,
        )
        self.tutor = Tutor(
            student,
            Asks(task, spec.input_shape, spec.n_actions, action_set(manifest.action.names)),
            gamma=hyper.gamma,
            temperature=hyper.temperature,
            weighing=config.teacher.weighing,
            vouched=config.teacher.vouched,
        )
        self.worth = Worth()
        self._measured = config.teacher.weighing == "measured"
        self._capacity = config.learn.ring_transitions
        self._hyper = hyper
        self._taught_rate = config.learn.taught_learning_rate or hyper.learning_rate
        self._seen = np.zeros((self._capacity, FEATURES), np.float32)
        self._episodes = Episodes(hyper.gamma)
        self._kept_s, self._unkept = 0.0, False
        self._cache: KnowledgeCache | None = None
        if not self.enabled:
            return
        try:
            meaning = f"{schema_hash(manifest)} {task} {hyper.temperature}"
            self._cache = KnowledgeCache(
                layout.knowledge_cache, config.teacher.cache_bytes, meaning=meaning, columns=spec.n_actions + 1
            )
            if self._cache.fault:
                self._fault("knowledge-broken", self._cache.fault)
        except StoreError as error:
            self._fault("knowledge-not-kept", str(error))

    @property
    def weight(self) -> float:
        """0 to 1: how far the teacher is trusted now."""
        return self.tutor.weight if self.enabled else 0.0

    @property
    def policy_temperature(self) -> float:
        """What to divide a teacher's row by, for a policy to draw from."""
        return self._hyper.temperature * (SHARPER if self.tutor.kind == "q" else 1.0)

    @property
    def judges(self) -> bool:
        """The teacher is trusted enough to say which of two networks is the better one."""
        return self.weight >= TRUSTED_FRAC

    def all_faults(self) -> dict[str, int]:
        """What went wrong on either side, and on the way."""
        return {**self.faults, **self.tutor.faults, **self.tutor.student.faults}

    def hyper(self) -> Hyper:
        """What the next gradient step is told: with no trust, exactly what a learner without teachers would be.

        The teacher's weight goes faster than the other comes, because the cross entropy, at a low temperature, pulls
        about ten times as hard as a temporal difference of the same weight.
        """
        weight = self.weight
        pull = weight * weight if self._measured else weight
        return msgspec.structs.replace(
            self._hyper,
            learning_rate=(1.0 - weight) * self._hyper.learning_rate + weight * self._taught_rate,
            td_weight=1.0 - weight * (1.0 - self._hyper.td_weight),
            distill_weight=pull * self._hyper.distill_weight,
        )

    def saw(self, records: Records, replay: Replay, learner: Learner, *, lived: bool = True) -> None:
        """Look at new transitions, which are in the replay already.

        Args:
            records: one or more.
            replay: gets what is known about them.
            learner: whose network doubts.
            lived: False for what an earlier run has looked at, too: its episodes have been counted, and what its
                teacher said of it has been judged.
        """
        if not self.enabled or not len(records):
            return
        seqs = records.seq.astype(np.int64)
        starts, finished = self._episodes.add(seqs, records.reward, (records.flags & (TERMINATED | TRUNCATED)) > 0)
        seen = self._features(records, learner)
        self._seen[seqs % self._capacity] = seen
        value = np.where(starts, 1.0, self.worth.expected(seen))
        ask = (value >= FLOOR) | (seqs % KEPT_EVERY == 0)
        if self.tutor.proving:
            value = value + (seqs // RUN % 2)
            ask[:] = True
        for seq, row, worth, wanted in zip(seqs.tolist(), records.obs, value.tolist(), ask.tolist(), strict=True):
            self._teach(self.tutor.student.saw(seq, row, worth, ask=wanted), replay)
        if lived:
            for episode in finished:
                self.tutor.trust.episode(episode.value, episode.length, replay.value_told(episode.start_seq))
        else:
            replay.pairs(0)

    def ask(self, now_s: float, bytes_per_s: float, replay: Replay, send: Callable[[bytes], int | None]) -> None:
        """Put one question to the teachers, if the budget and the outstanding ones allow.

        Args:
            now_s: monotonic time.
            bytes_per_s: what the budget allows.
            replay: gets what turns out to be known.
            send: gives a payload on; returns its number, or None when it could not.
        """
        if not self.enabled:
            return
        plan = self.tutor.plan(now_s, bytes_per_s)
        if plan is None:
            return
        known = self._look_up(list(plan.digests))
        if known:
            for name, row in known.items():
                self._teach(self.tutor.student.remember(name, row), replay)
            return  # the next plan has others in their places
        fitting = self.tutor.fitting(plan, ASK_BYTES)
        if fitting is None:
            return
        plan, payload = fitting
        ask_id = send(payload)
        if ask_id is not None:
            self.tutor.student.sent(ask_id, plan, len(payload), now_s)

    def answer(self, ask_id: int, payload: bytes, now_s: float, replay: Replay, learner: Learner) -> None:
        """Give an answer to the transitions it is about, and hold it against what happened."""
        if not self.enabled:
            return
        teacher = self.tutor.teacher
        joined = self.tutor.answer(ask_id, payload, now_s)
        if teacher != self.tutor.teacher:
            log.info("listening to teacher %s", self.tutor.teacher)
            if teacher:
                replay.forget_taught()
        taught = self._teach(joined, replay)
        if taught:
            seqs, rows = np.array([seq for seq, _ in taught]), np.stack([row for _, row in taught])
            own = self._preferences(self._last(replay.obs(seqs), learner))
            told = rows[:, : self.spec.n_actions]
            self.worth.learn(self._seen[seqs % self._capacity], moved(told, own, self._hyper.temperature))
        self._judge(replay, learner)
        self.turn(now_s, replay)

    def turn(self, now_s: float, replay: Replay) -> None:
        """What is due from time to time: parting with a teacher that was found out, and keeping what was learned."""
        bad = self.tutor.review(now_s)
        if bad:
            self.parted = True
            replay.forget_taught()
            self._change(lambda cache: cache.forget(bad))
        for line in self.tutor.news:
            log.warning("%s", line)
        self.tutor.news.clear()
        crowded = len(self.tutor.student.fresh) >= KEEP_ROWS and not self._unkept
        if now_s - self._kept_s >= KEEP_S or crowded:
            self._kept_s = now_s
            self.keep()

    def keep(self) -> None:
        """Write down what was learned since the last time; a full disk costs asking again, not the training."""
        fresh = self.tutor.student.fresh
        if not fresh:
            return
        self._unkept = not self._change(lambda cache: cache.put(self.tutor.teacher, fresh.items()))
        if not self._unkept:
            fresh.clear()

    def restore(self, data: bytes, now_s: float) -> None:
        """Go on with a former run's opinion of its teacher, and with what that teacher said."""
        if not self.enabled or not data:
            return
        if not self.tutor.restore(data, now_s):
            self._fault("trust-not-read", "what was thought of the teachers cannot be read: they begin as strangers")
        if self._cache is None or not self.tutor.teacher:
            return
        try:
            for name, row in self._cache.newest(self.tutor.teacher, self._capacity).items():
                self.tutor.student.remember(name, row)
        except StoreError as error:
            self._fault("knowledge-not-read", str(error))

    def close(self) -> None:
        """Keep what there is to keep."""
        self.keep()
        if self._cache is not None:
            self._cache.close()

    def _judge(self, replay: Replay, learner: Learner) -> None:
        pairs = replay.pairs(JUDGED_AT_ONCE if self.tutor.proving else WATCHED_AT_ONCE)
        if pairs is None:
            return
        batch = pairs.batch
        last = self._last(batch.obs, learner)
        self.tutor.judge(
            Lessons(
                told=batch.teacher_q,
                value=pairs.value,
                next_value=pairs.next_value,
                action=batch.action,
                reward=batch.reward,
                terminated=batch.terminated,
                critic=self._value(last),
                next_critic=self._value(self._last(batch.next_obs, learner)),
                favourite=last[:, : self.spec.n_actions].argmax(1),
            )
        )

    def _last(self, obs: U8, learner: Learner) -> F32:
        last = self.spec.n_exits - 1
        parts = (obs[start : start + ROWS_AT_ONCE] for start in range(0, len(obs), ROWS_AT_ONCE))
        return np.concatenate([forward(learner.params, part, exits=(last,))[last] for part in parts])

    def _preferences(self, rows: F32) -> F32:
        """(n, n_actions), in units of which the temperature makes the student's own preferences."""
        unit = self._hyper.temperature if self._is_policy else 1.0
        return np.asarray(rows[:, : self.spec.n_actions] * np.float32(unit), np.float32)

    def _value(self, rows: F32) -> F32:
        """(n,) float32, what the last exit says that the state is worth."""
        return rows[:, -1] if self._is_policy else np.asarray(rows[:, : self.spec.n_actions].max(1), np.float32)

    def _features(self, records: Records, learner: Learner) -> F32:
        parts = []
        n_actions, last = self.spec.n_actions, self.spec.n_exits - 1
        for start in range(0, len(records), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            outputs = forward(learner.params, records.obs[rows])
            value, flags, seq = self._value(outputs[last]), records.flags[rows], records.seq[rows]
            following = np.append(value[1:], 0.0) * ((flags & TERMINATED) == 0)
            known = np.append(seq[1:] == seq[:-1] + 1, False) & ((flags & TRUNCATED) == 0) | ((flags & TERMINATED) > 0)
            chosen = value if self._is_policy else outputs[last][np.arange(len(value)), records.action[rows]]
            surprise = records.reward[rows] + np.float32(self._hyper.gamma) * following - chosen
            heads = [self._preferences(outputs[k]) for k in range(last + 1)]
            parts.append(features(heads, np.where(known, surprise, 0), n_actions, self._hyper.temperature))
        return np.concatenate(parts)

    def _teach(self, joined: list[tuple[int, F32]], replay: Replay) -> list[tuple[int, F32]]:
        """Those whose transitions are still there."""
        return [(seq, row) for seq, row in joined if replay.teach(seq, row)]

    def _look_up(self, names: list[bytes]) -> dict[bytes, F32]:
        if self._cache is None or not self._cache.count or not self.tutor.teacher:
            return {}
        try:
            return self._cache.get(self.tutor.teacher, names)
        except StoreError as error:
            self._fault("knowledge-not-read", str(error))
            return {}

    def _change(self, change: Callable[[KnowledgeCache], None]) -> bool:
        if self._cache is None:
            return True
        try:
            change(self._cache)
        except StoreError as error:
            self._fault("knowledge-not-kept", str(error))
            return False
        return True

    def _fault(self, name: str, why: str) -> None:
        self.faults[name] = self.faults.get(name, 0) + 1
        if self.faults[name] == 1:
            log.warning("%s", why)
