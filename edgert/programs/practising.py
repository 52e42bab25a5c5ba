"""The trainer's way of learning where the network is a policy: by PPO, one rollout after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgert import quant
from edgert.config import Config
from edgert.errors import UsageError
from edgert.learn.accept import Limits, PolicyEvidence, Verdict, judge_policy
from edgert.learn.dqn import Learner
from edgert.learn.ppo import Course, Hyper
from edgert.learn.replay import Replay
from edgert.nets import F32, U8, forward
from edgert.policy import exits

ROWS_AT_ONCE = 128
"""Observations judged in one forward pass: bounds its memory."""


class Practice:
    """Rollouts: when the next one is whole, the steps that are left on it, and what candidates are judged by.

    Attributes:
        finished: a rollout was gone through and its network was not offered yet.
        acting: (n_parameters,) float32, of the network that acts, to go back to.
    """

    def __init__(self, config: Config, acting: F32) -> None:
        """Wait for the first rollout.

        Args:
            config: checked.
            acting: copied.
        """
        learn = config.learn
        self.hyper = Hyper(
            learning_rate=learn.learning_rate,
            gamma=learn.gamma,
            decay=learn.gae_decay,
            entropy_weight=learn.entropy_weight,
            epochs=learn.epochs,
        )
        self._every, self._batch = min(learn.rollout_transitions, learn.ring_transitions), learn.batch
        self._course: Course | None = None
        self._begun_at = 0
        self.finished, self.acting = False, acting.copy()

    def left(self, replay: Replay, learner: Learner) -> int:
        """Gradient steps that can be taken now; takes a new rollout up when there is one.

        Blocks: for one forward pass over a rollout, once each.
        """
        if self._course is not None and self._course.left:
            return self._course.left
        if self._begun_at > replay.newest_seq:  # the ring began anew
            self._begun_at = 0
        if self.finished or replay.newest_seq - self._begun_at < self._every:
            return 0
        self._begun_at = replay.newest_seq
        rollout = replay.rollout(self._every)
        self._course = Course(learner.params, rollout, self.hyper, self._batch, learner.scratch)
        return self._course.left

    def step(
        self, replay: Replay, learner: Learner, rng: np.random.Generator, distill_weight: float, temperature: float
    ) -> float:
        """One gradient step, of those that are left; gives the loss before it.

        Raises:
            UsageError: the loss is not finite; nothing was changed, and the rest of the rollout is left out.
        """
        course = self._course
        if course is None:
            raise UsageError("no rollout to practise on")
        rows, lessons = course.draw(rng), None
        if distill_weight > 0:
            seqs = replay.lessons(rng, self._batch)
            lessons = (replay.obs(seqs), replay.told(seqs)[0]) if len(seqs) else None
        told = replay.told(course.rollout.seq[rows])
        try:
            losses = course.step(learner, rows, told, lessons, distill_weight=distill_weight, temperature=temperature)
        except UsageError:
            self.forget()
            raise
        self.finished = not course.left
        return losses.total

    def forget(self) -> None:
        """Leave the rollout."""
        self._course, self.finished = None, False

    def go_back(self, learner: Learner) -> None:
        """Begin again where the acting network is: what comes of its behaviour is all there is to learn from."""
        learner.params.flat[:] = self.acting
        learner.m[:] = 0.0  # it still points where the harm was; what is kept is the scale
        self.forget()

    def judged(self, learner: Learner, verdict: Verdict) -> None:
        """Go on from an accepted candidate; a harmful one is undone, or the next would be worse still."""
        if verdict.accepted:
            self.acting = learner.params.flat.copy()
        elif not (verdict.checks.get("off-policy-return", True) and verdict.checks["finite"]):
            self.go_back(learner)

    def done_seq(self, replay: Replay) -> int:
        """Up to which transition everything that is due has been done."""
        under_way = self.finished or (self._course is not None and self._course.left > 0)
        return self._begun_at if under_way else replay.newest_seq

    def judge(
        self,
        learner: Learner,
        sides: Sequence[tuple[quant.IntNet, Sequence[float]]],
        obs: U8,
        limits: Limits,
    ) -> Verdict:
        """May the candidate act?

        Args:
            learner: of the candidate's float network.
            sides: acting network and candidate, each int8 and with the thresholds of its exits.
            obs: (n, H, W, C) uint8, held out.
            limits: how strict to be.
        """
        acting, candidate = (self._answers(net, bars, obs) for net, bars in sides)
        heads = forward(learner.params, obs)
        in_float = np.stack([heads[k] for k in sorted(heads)])[exits.taken(heads, sides[1][1]), np.arange(len(obs))]
        gain = None
        if self._course is not None and len(seen := self._course.rollout.obs[self._course.judged]):
            gain = self._course.gain(*(self._answers(net, bars, seen)[:, :-1] for net, bars in sides))
        return judge_policy(PolicyEvidence(acting, candidate, in_float, gain), limits)

    def _answers(self, net: quant.IntNet, thresholds: Sequence[float], obs: U8) -> F32:
        """(n, n_actions + 1) float32: the heads that answer, as on the board."""
        bars = exits.effective_thresholds(thresholds, net.spec.n_exits - 1)
        parts = (obs[first : first + ROWS_AT_ONCE] for first in range(0, len(obs), ROWS_AT_ONCE))
        return np.concatenate([exits.answer(net, part, bars)[0] for part in parts])
