"""Proximal policy optimisation of an early-exit `policy` network, on transitions that an older one may have chosen.

What acts is the int8 network, perhaps of some swaps ago, and perhaps an early exit of it. So three policies meet: the
behaviour `b`, whose log-probability each transition carries; the proximal policy `p`, the float network's last exit
when a rollout begins to be trained on; and the policy that is trained. Steps are clipped against `p`, and what `b` was
more or less eager to do than `p` is weighed by a bounded importance ratio. Where `b` is `p`, this is plain PPO.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.kernels.conv import Scratch
from edgert.learn.backprop import accumulate, parts
from edgert.learn.dqn import Learner, softmax
from edgert.learn.offpolicy import BLOCKS, Gain
from edgert.learn.replay import Rollout
from edgert.nets import F32, U8, Params, forward

F64 = npt.NDArray[np.float64]
Rows = npt.NDArray[np.integer]

WEIGHT_MAX = 2.0
"""Most that an importance ratio weighs. What the old policy hardly ever did would rule the gradient; what it did and
the new one does not counts for as little as its ratio says, so transitions that are too old drop out by themselves."""
RATIO_LOG_MAX = 20.0
MIN_JUDGED = 30
"""Held-out transitions it takes to say anything of a candidate's return."""
NEAR = 0.2
"""Mean divergence, in nats, up to which the advantages under one policy say anything of another."""


class Hyper(msgspec.Struct, frozen=True):
    """What the training is told.

    Attributes:
        learning_rate: of Adam.
        gamma: discount per decision.
        decay: of the advantage's traces, the lambda of GAE.
        clip: how far the probability of an action may move away from 1 times its former one before its gradient stops.
        value_weight: of the value's loss.
        entropy_weight: of the entropy, which is sought.
        imitation_weight: of the divergence of each early exit from the last.
        confidence_weight: of the confidence's cross entropy.
        distill_weight: of the cross entropy with the teacher's preferences.
        temperature: what a teacher's row is divided by before its softmax.
        max_grad_norm: the whole gradient is scaled down to this Euclidean norm.
        epochs: how often a rollout is gone through.
        max_divergence: mean divergence from the proximal policy, in nats, above which the rest is left; a nat more for
            a teacher of full weight, who is to be followed further than experience alone would lead.
        micro_batch: as in `dqn.Hyper`.
    """

    learning_rate: float = 5e-4
    gamma: float = 0.99
    decay: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    imitation_weight: float = 1.0
    confidence_weight: float = 1.0
    distill_weight: float = 0.0
    temperature: float = 1.0
    max_grad_norm: float = 0.5
    epochs: int = 4
    max_divergence: float = 0.03
    micro_batch: int | None = None


class Batch(NamedTuple):
    """Samples, `B` of them; `A` actions.

    Attributes:
        obs: (B, H, W, C) uint8.
        action: (B,) integer.
        log_prob: (B,) float32, of the action under the proximal policy.
        weight: (B,) float32, importance of the transition.
        advantage: (B,) float32.
        value: (B,) float32, what the state turned out to be worth.
        practised: (B,) bool: the former four mean something.
        teacher_q: (B, A) float32; anything where not `taught`.
        taught: (B,) bool.
    """

    obs: U8
    action: Rows
    log_prob: F32
    weight: F32
    advantage: F32
    value: F32
    practised: npt.NDArray[np.bool_]
    teacher_q: F32
    taught: npt.NDArray[np.bool_]


class Losses(NamedTuple):
    """Means over the practised part of the batch, before weighting; `divergence` is measured, not trained on.

    `distill` is a mean over the taught part, `imitation` and `confidence` are over all of it and the early exits.
    """

    total: float
    policy: float
    value: float
    entropy: float
    imitation: float
    confidence: float
    distill: float
    divergence: float


class Estimates(NamedTuple):
    """What a rollout says of its actions and states.

    Attributes:
        usable: (n,) bool: a policy drew the action, and what followed is known.
        weight: (n,) float32, min(`WEIGHT_MAX`, p/b); 0 where not usable, like those below.
        advantage: (n,) float32, in units of return.
        value: (n,) float32, of the state.
    """

    usable: npt.NDArray[np.bool_]
    weight: F32
    advantage: F32
    value: F32


def estimate(rollout: Rollout, value: F32, log_prob: F32, gamma: float, decay: float) -> Estimates:
    """Advantages and values of a rollout.

    Args:
        rollout: consecutive transitions; where the chain is cut, by a truncation, a lost record or the rollout's end,
            the state that is still seen stands for what came after it.
        value: (n,) float32, of each state, by the critic.
        log_prob: (n,) float32, of each action under the proximal policy.
        gamma: discount per decision.
        decay: of the traces.

    Returns:
        The estimates.

    Raises:
        UsageError: columns of different lengths.
    Source:
        GAE: Schulman et al. 2015 (arXiv 1506.02438) equation 16; its traces cut by min(1, p/b) for another behaviour:
        Espeholt et al. 2018 (arXiv 1802.01561) equation 1, of which the values are the targets.
    """
    n = len(rollout.reward)
    if not n == len(value) == len(log_prob):
        raise UsageError(f"{n} transitions with {len(value)} values and {len(log_prob)} log-probabilities")
    known = np.isfinite(rollout.log_prob)
    usable = known & (rollout.terminated | rollout.follows)
    log_ratio = np.where(usable, log_prob - np.where(known, rollout.log_prob, 0), 0)
    ratio = np.where(usable, np.exp(np.clip(log_ratio, -RATIO_LOG_MAX, RATIO_LOG_MAX)), 0).astype(np.float64)
    traced = np.minimum(1.0, ratio)
    advantage = np.zeros(n + 1)
    bootstrap = np.append(value[1:], 0).astype(np.float64) * rollout.follows
    surprise = rollout.reward + gamma * bootstrap - value
    reach = gamma * decay * np.append(traced[1:], 0) * rollout.follows
    for t in range(n - 1, -1, -1):
        if usable[t]:
            advantage[t] = surprise[t] + reach[t] * advantage[t + 1]
    advantage = advantage[:n]
    target = np.where(usable, value + traced * advantage, 0)
    weight = np.minimum(WEIGHT_MAX, ratio)
    return Estimates(usable, *(each.astype(np.float32) for each in (weight, advantage, target)))


def gradients(
    params: Params, batch: Batch, hyper: Hyper, grads: Params, scale: float = 1.0, scratch: Scratch | None = None
) -> Losses:
    """The loss on a batch and its gradient.

    With pi the policy of the last exit K, pi_k that of exit k, V its last column, r = pi(a|s) / p(a|s), w the weight,
    A the advantage, R the target and T the teacher:
    L = mean [ -w min(r A, clip(r, 1 - clip, 1 + clip) A) + value_weight Huber((V - R) / scale)
    - entropy_weight H(pi) ] + distill_weight mean H(softmax(T/tau), pi)
    + 1/(K-1) sum_k mean [ imitation_weight KL(pi || pi_k) + confidence_weight BCE(c_k, 1[argmax pi_k = argmax pi]) ],
    in which the early exits take pi as given.

    Args:
        params: differentiated.
        batch: samples.
        hyper: weights.
        grads: overwritten with the gradient.
        scale: one unit of the value's loss, so that it pulls at the features no harder in worlds that pay more.
        scratch: memory to work in, or None for some of its own.

    Returns:
        The losses.

    Raises:
        UsageError: shapes that do not fit.
    Source:
        Schulman et al. 2017 (arXiv 1707.06347) equations 7 and 9; the proximal policy apart from the behaviour: Hilton
        et al. 2021 (arXiv 2110.00641) equation 4; kickstarting: Schmitt et al. 2018 (arXiv 1803.03835) equation 3.
    """
    n, n_actions, n_exits = len(batch.action), params.spec.n_actions, params.spec.n_exits
    n_practised, n_taught = (max(1, int(np.count_nonzero(each))) for each in (batch.practised, batch.taught))
    n_early = max(1, n_exits - 1)
    found = dict.fromkeys(Losses._fields[1:], 0.0)

    def loss_gradient(outputs: dict[int, F32], part: slice) -> dict[int, F32]:
        """Add a part's share to the losses; every mean is over the whole batch."""
        out = outputs[n_exits - 1]
        chosen, log_chosen = softmax(out[:, :n_actions])
        d_outputs = {k: np.zeros_like(each) for k, each in outputs.items()}
        rows = np.flatnonzero(batch.practised[part])
        if len(rows):
            d_outputs[n_exits - 1][rows] = _practise(out[rows], chosen[rows], log_chosen[rows], part, rows)
        taught = np.flatnonzero(batch.taught[part])
        if len(taught):
            wanted, _ = softmax(batch.teacher_q[part][taught] / np.float32(hyper.temperature))
            found["distill"] -= float((wanted * log_chosen[taught]).sum()) / n_taught
            pull = np.float32(hyper.distill_weight / n_taught)
            d_outputs[n_exits - 1][taught, :n_actions] += (chosen[taught] - wanted) * pull
        best = out[:, :n_actions].argmax(1)
        for k in range(n_exits - 1):
            early, log_early = softmax(outputs[k][:, :n_actions])
            found["imitation"] += float((chosen * (log_chosen - log_early)).sum()) / (n * n_early)
            d_outputs[k][:, :n_actions] = (early - chosen) * np.float32(hyper.imitation_weight / (n * n_early))
            logit, agrees = outputs[k][:, n_actions], (early.argmax(1) == best).astype(np.float32)
            doubt = np.maximum(logit, 0) - logit * agrees + np.log1p(np.exp(-np.abs(logit)))
            found["confidence"] += float(doubt.sum()) / (n * n_early)
            sure = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
            d_outputs[k][:, n_actions] = (sure - agrees) * np.float32(hyper.confidence_weight / (n * n_early))
        return d_outputs

    def _practise(out: F32, chosen: F32, log_chosen: F32, part: slice, rows: Rows) -> F32:
        """The gradient by the last exit's outputs, of what follows from experience."""
        action, advantage, weight = (each[part][rows] for each in (batch.action, batch.advantage, batch.weight))
        at = np.arange(len(rows)), action
        log_ratio = np.clip(log_chosen[at] - batch.log_prob[part][rows], -RATIO_LOG_MAX, RATIO_LOG_MAX)
        ratio = np.exp(log_ratio)
        clipped = np.clip(ratio, 1 - hyper.clip, 1 + hyper.clip)
        found["policy"] -= float((weight * np.minimum(ratio * advantage, clipped * advantage)).sum()) / n_practised
        found["divergence"] += float((ratio - 1 - log_ratio).sum()) / n_practised
        moves = np.where(advantage >= 0, ratio <= 1 + hyper.clip, ratio >= 1 - hyper.clip)
        by_log = weight * advantage * ratio * moves
        entropy = -(chosen * log_chosen).sum(1, keepdims=True)
        found["entropy"] += float(entropy.sum()) / n_practised
        error = (out[:, n_actions] - batch.value[part][rows]) / np.float32(scale)
        size = np.abs(error)
        found["value"] += float(np.where(size <= 1, 0.5 * error * error, size - 0.5).sum()) / n_practised
        d_out = np.empty_like(out)
        d_out[:, :n_actions] = by_log[:, None] * chosen
        d_out[:, :n_actions] += np.float32(hyper.entropy_weight) * chosen * (log_chosen + entropy)
        d_out[at] -= by_log
        d_out[:, n_actions] = np.clip(error, -1, 1) * np.float32(hyper.value_weight / scale)
        return d_out / np.float32(n_practised)

    shaping = [n_actions] * (n_exits - 1) + [n_actions + 1]
    accumulate(params, batch.obs, loss_gradient, grads, micro_batch=hyper.micro_batch, shaping=shaping, scratch=scratch)
    total = found["policy"] + hyper.value_weight * found["value"] - hyper.entropy_weight * found["entropy"]
    total += hyper.imitation_weight * found["imitation"] + hyper.confidence_weight * found["confidence"]
    return Losses(total + hyper.distill_weight * found["distill"], **found)


class Course:
    """One rollout while it is trained on: a few times through it, in minibatches, as long as the policy stays near.

    Attributes:
        rollout: the transitions.
        estimates: made when the course began.
        left: minibatches to come.
    """

    def __init__(self, params: Params, rollout: Rollout, hyper: Hyper, batch: int, scratch: Scratch) -> None:
        """Look at the rollout with the network as it is.

        Args:
            params: the critic and the proximal policy.
            rollout: not empty.
            hyper: what to learn.
            batch: transitions of a minibatch.
            scratch: memory to work in.

        Raises:
            UsageError: the observations do not fit the network.
        """
        last, n_actions = params.spec.n_exits - 1, params.spec.n_actions
        outs = [
            forward(params, rollout.obs[part], exits=(last,), scratch=scratch)[last]
            for part in parts(params.spec, len(rollout.obs), hyper.micro_batch)
        ]
        out = np.concatenate(outs)
        self._log_prob = softmax(out[:, :n_actions])[1][np.arange(len(out)), rollout.action]
        self.rollout = rollout
        self.estimates = estimate(rollout, out[:, n_actions], self._log_prob, hyper.gamma, hyper.decay)
        rows = np.flatnonzero(self.estimates.usable & ~rollout.held_out)
        self._rows, self._batch, self._hyper = rows, batch, hyper
        trained = self.estimates.advantage[rows]
        centre, spread = (float(trained.mean()), float(trained.std())) if len(rows) else (0.0, 0.0)
        self._advantage = (self.estimates.advantage - np.float32(centre)) / np.float32(spread + 1e-8)
        self._value_scale = max(1.0, float(self.estimates.value[rows].std())) if len(rows) else 1.0
        self._an_epoch = -(-len(rows) // batch)
        self.left = hyper.epochs * self._an_epoch
        self._order, self._diverged = rows[:0], 0.0

    def draw(self, rng: np.random.Generator) -> Rows:
        """The next minibatch.

        Args:
            rng: shuffles each epoch.

        Returns:
            Rows of the rollout.

        Raises:
            UsageError: nothing is left.
        Source:
            Schulman et al. 2017 (arXiv 1707.06347) Algorithm 1.
        """
        if not self.left:
            raise UsageError("this rollout was gone through: begin another")
        if not len(self._order):
            self._order, self._diverged = rng.permutation(self._rows), 0.0
        rows, self._order = self._order[: self._batch], self._order[self._batch :]
        return rows

    def step(
        self,
        learner: Learner,
        rows: Rows,
        told: tuple[F32, npt.NDArray[np.bool_]],
        lessons: tuple[U8, F32] | None = None,
        *,
        distill_weight: float = 0.0,
        temperature: float = 1.0,
    ) -> Losses:
        """Take one gradient step.

        Args:
            learner: of the network.
            rows: of `draw`.
            told: what a teacher said about these rows: (b, A) float32, and (b,) bool where it said something.
            lessons: more observations, (m, H, W, C) uint8, and what a teacher said about them, (m, A) float32.
            distill_weight: of the teacher now.
            temperature: what the teacher's rows are divided by before their softmax.

        Returns:
            The losses before the step.

        Raises:
            UsageError: shapes that do not fit, or a loss that is not finite (the parameters are then untouched).
        Source:
            as `gradients`; leaving a rollout early: Achiam 2018, Spinning Up, PPO.
        """
        self.left -= 1
        made = Batch(
            obs=self.rollout.obs[rows],
            action=self.rollout.action[rows],
            log_prob=self._log_prob[rows],
            weight=self.estimates.weight[rows],
            advantage=self._advantage[rows],
            value=self.estimates.value[rows],
            practised=np.ones(len(rows), bool),
            teacher_q=told[0],
            taught=told[1] & (distill_weight > 0),
        )
        if lessons is not None and distill_weight > 0:
            made = _with_lessons(made, *lessons)
        hyper = msgspec.structs.replace(self._hyper, distill_weight=distill_weight, temperature=temperature)
        losses = gradients(learner.params, made, hyper, learner.grads, self._value_scale, learner.scratch)
        learner.descend(losses.total, hyper.learning_rate, hyper.max_grad_norm)
        self._diverged += losses.divergence / self._an_epoch
        if not len(self._order) and self._diverged > hyper.max_divergence + distill_weight:
            self.left = 0
        return losses

    def gain(self, acting: F32, candidate: F32) -> Gain:
        """What a candidate would earn more than the acting policy, by the actions on states that were held out.

        Args:
            acting: (m, A) float32, its logits on the observations of `judged`,
            candidate: (m, A) float32, and those of the candidate.

        Returns:
            The estimate, or why there is none.

        Raises:
            UsageError: not one row an observation.
        Source:
            Kakade & Langford 2002, equation 4.1, with the advantages of the rollout; what it leaves out, that another
            policy meets other states, is small while policies are near (Schulman et al. 2015, arXiv 1502.05477,
            theorem 1).
        """
        rows, gamma = self.judged, self._hyper.gamma
        n = len(rows)
        if len(acting) != n or len(candidate) != n:
            raise UsageError(f"{len(acting)} and {len(candidate)} rows of logits for {n} observations")
        if n < MIN_JUDGED:
            return Gain(None, 0.0, 0.0, n, f"{n} transitions, it takes {MIN_JUDGED}")
        before, after = softmax(acting), softmax(candidate)
        apart = float((before[0] * (before[1] - after[1])).sum(1).mean())
        if not apart <= NEAR:
            return Gain(
                None, 0.0, 0.0, n, f"policies are {apart:.2g} nats apart: what one did says little of the other"
            )
        at = np.arange(n), self.rollout.action[rows]
        behaved = self.rollout.log_prob[rows]
        was, would = (
            np.minimum(WEIGHT_MAX, np.exp(np.clip(log[at] - behaved, -RATIO_LOG_MAX, 1.0))).astype(np.float64)
            for _, log in (before, after)
        )
        each = (would - was) * self.estimates.advantage[rows]
        means = np.array([part.mean() for part in np.array_split(each, BLOCKS)]) / max(1 - gamma, 1e-3)
        error = float(means.std(ddof=1) / BLOCKS**0.5)
        return Gain(float(means.mean()), error, float(self.estimates.value[rows].mean()), n)

    @property
    def judged(self) -> Rows:
        """Rows that were not trained on: candidates are judged by them."""
        return np.flatnonzero(self.estimates.usable & self.rollout.held_out)


def _with_lessons(batch: Batch, obs: U8, teacher_q: F32) -> Batch:
    n = len(obs)
    nothing = np.zeros(n, np.float32)
    more = Batch(
        obs=obs,
        action=np.zeros(n, batch.action.dtype),
        log_prob=nothing,
        weight=nothing,
        advantage=nothing,
        value=nothing,
        practised=np.zeros(n, bool),
        teacher_q=teacher_q,
        taught=np.ones(n, bool),
    )
    columns = zip(batch, more, strict=True)
    return Batch._make(np.concatenate((np.asarray(own), np.asarray(other))) for own, other in columns)
