"""One gradient step of an early-exit Q network: temporal difference, teacher and confidence, all exits at once."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import kernels
from edgert.errors import UsageError
from edgert.learn.backprop import backward
from edgert.nets import F32, U8, Params, Tape, forward


class Hyper(msgspec.Struct, frozen=True):
    """What the training is told.

    Attributes:
        learning_rate: of Adam.
        gamma: discount per decision.
        td_weight: of the temporal-difference loss.
        distill_weight: of the cross entropy with the teacher's softened preferences.
        match_weight: of the squared distance to the teacher's Q-values. Off: their scale is the teacher's success, not
            the student's, and moving to it first costs a student on breakout half of its return after two minutes.
        temperature: softens Q-values into preferences, in units of Q.
        confidence_weight: of the confidence's cross entropy.
        target_every: steps between copies of the network into its target.
        max_grad_norm: the whole gradient is scaled down to this Euclidean norm.
    """

    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    td_weight: float = 0.1
    distill_weight: float = 1.0
    match_weight: float = 0.0
    temperature: float = 0.1
    confidence_weight: float = 1.0
    target_every: int = 1000
    max_grad_norm: float = 10.0


class Batch(NamedTuple):
    """Transitions, `B` of them; `A` actions.

    Attributes:
        obs: (B, H, W, C) uint8.
        action: (B,) integer.
        reward: (B,) float32, that followed the action.
        next_obs: (B, H, W, C) uint8; anything where `terminated`.
        terminated: (B,) bool: nothing follows.
        teacher_q: (B, A) float32; anything where not `taught`.
        taught: (B,) bool.
    """

    obs: U8
    action: npt.NDArray[np.integer]
    reward: F32
    next_obs: U8
    terminated: npt.NDArray[np.bool_]
    teacher_q: F32
    taught: npt.NDArray[np.bool_]


class Losses(NamedTuple):
    """Means over the batch (teacher losses: over its taught part) and over the exits, before weighting."""

    total: float
    td: float
    distill: float
    match: float
    confidence: float


class Learner:
    """Everything a training step reads and writes; `state`/`restore` move it as one flat piece.

    Attributes:
        params: the network.
        target: the slow copy that TD targets come from.
        m, v: Adam's moments, (n_parameters,) float32.
        steps: gradient steps taken.
    """

    def __init__(self, params: Params) -> None:
        """Start from a network; its target is a copy, the moments are zero.

        Args:
            params: adopted, not copied.
        """
        self.params = params
        self.target = params.copy()
        self.m, self.v = np.zeros_like(params.flat), np.zeros_like(params.flat)
        self.steps = 0
        self._grads = Params(params.spec)

    def arrays(self) -> dict[str, F32]:
        """The vectors of a checkpoint.

        Returns:
            `params`, `target`, `m` and `v`, each (n_parameters,) float32, not copied.

        Raises:
            Nothing.
        Source:
            Adam's state: Kingma & Ba 2015 (arXiv 1412.6980) Algorithm 1.
        """
        return {"params": self.params.flat, "target": self.target.flat, "m": self.m, "v": self.v}

    def restore(self, arrays: dict[str, F32], steps: int) -> None:
        """Put a checkpoint back.

        Args:
            arrays: as `arrays` gave them.
            steps: as it was then.

        Raises:
            UsageError: a vector is missing or has the wrong size.
        Source:
            as `arrays`.
        """
        for name, own in self.arrays().items():
            if name not in arrays or arrays[name].shape != own.shape:
                raise UsageError(f"checkpoint vector {name!r} does not fit this network of {own.size} parameters")
            own[:] = arrays[name]
        self.steps = steps

    def step(self, batch: Batch, hyper: Hyper) -> Losses:
        """Take one gradient step.

        Args:
            batch: transitions.
            hyper: what to learn from them.

        Returns:
            The losses before the step.

        Raises:
            UsageError: shapes that do not fit, or a loss that is not finite (the parameters are then untouched).
        Source:
            Adam: Kingma & Ba 2015 (arXiv 1412.6980) Algorithm 1; target copy: Mnih et al. 2015, Algorithm 1.
        """
        losses = gradients(self.params, self.target, batch, hyper, self._grads)
        if not np.isfinite(losses.total):
            raise UsageError(
                f"training loss is {losses.total} at step {self.steps}: rewards or teacher values are not finite"
            )
        grad = self._grads.flat
        norm = float(np.sqrt(np.dot(grad, grad)))
        if norm > hyper.max_grad_norm:
            grad *= np.float32(hyper.max_grad_norm / norm)
        self.steps += 1
        kernels.adam(self.params.flat, grad, self.m, self.v, step=self.steps, lr=hyper.learning_rate)
        if self.steps % hyper.target_every == 0:
            self.target.flat[:] = self.params.flat
        return losses


def td_targets(params: Params, target: Params, batch: Batch, gamma: float) -> F32:
    """Double-DQN targets from the final exit.

    Args:
        params: chooses the next action.
        target: values it.
        batch: transitions.
        gamma: discount per decision.

    Returns:
        (B,) float32.

    Raises:
        UsageError: shapes that do not fit.
    Source:
        van Hasselt et al. 2016 (arXiv 1509.06461) equation 4; all exits share the final exit's target: our reading of
        RAPID-RL (arXiv 2109.08231), so that shallow exits estimate the same policy's values.
    """
    last, n_actions = params.spec.n_exits - 1, params.spec.n_actions
    chosen = forward(params, batch.next_obs, exits=(last,))[last][:, :n_actions].argmax(1)
    values = forward(target, batch.next_obs, exits=(last,))[last][np.arange(len(chosen)), chosen]
    return np.asarray(batch.reward + np.float32(gamma) * np.where(batch.terminated, np.float32(0), values), np.float32)


def _softmax(x: F32) -> tuple[F32, F32]:
    """Softmax over the last axis and its logarithm."""
    shifted = x - x.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(1, keepdims=True)
    return exponentials / total, shifted - np.log(total)


def gradients(params: Params, target: Params, batch: Batch, hyper: Hyper, grads: Params) -> Losses:
    """The loss on a batch and its gradient.

    With q_k the Q-values of exit k of K, y the TD target, T the teacher, tau the temperature:
    L = 1/K sum_k [ td_weight * Huber(q_k(s,a) - y) + distill_weight * KL(softmax(T/tau) || softmax(q_k/tau))
    + match_weight * mean_a (q_k - T)^2 + confidence_weight * BCE(c_k, 1[argmax q_k = argmax q_K]) ],
    the teacher's terms averaged over the taught part of the batch only.

    Args:
        params: differentiated.
        target: the slow copy.
        batch: transitions.
        hyper: weights.
        grads: overwritten with the gradient.

    Returns:
        The losses.

    Raises:
        UsageError: shapes that do not fit.
    Source:
        TD: Mnih et al. 2015 with arXiv 1509.06461; distillation: Rusu et al. 2016 (arXiv 1511.06295) equation 3;
        confidence as agreement with the final exit: our reading of RAPID-RL (arXiv 2109.08231).
    """
    spec = params.spec
    n, n_actions, n_exits = len(batch.action), spec.n_actions, spec.n_exits
    rows = np.arange(n)
    y = td_targets(params, target, batch, hyper.gamma)
    tape = Tape()
    outputs = forward(params, batch.obs, tape=tape)
    best = outputs[n_exits - 1][:, :n_actions].argmax(1)

    taught = np.flatnonzero(batch.taught)
    teacher = batch.teacher_q[taught]
    tau = np.float32(hyper.temperature)
    wanted, log_wanted = _softmax(teacher / tau) if len(taught) else (teacher, teacher)

    td = distill = matched = confidence = 0.0
    d_outputs: dict[int, F32] = {}
    for k, out in outputs.items():
        q, logit = out[:, :n_actions], out[:, n_actions]
        d_out = np.zeros_like(out)

        error = q[rows, batch.action] - y
        size = np.abs(error)
        td += float(np.where(size <= 1, 0.5 * error * error, size - 0.5).mean())
        d_out[rows, batch.action] += np.clip(error, -1, 1) * np.float32(hyper.td_weight / (n * n_exits))

        if len(taught):
            preferred, log_preferred = _softmax(q[taught] / tau)
            distill += float((wanted * (log_wanted - log_preferred)).sum(1).mean())
            distance = q[taught] - teacher
            matched += float((distance * distance).mean())
            d_out[taught, :n_actions] += (preferred - wanted) * np.float32(
                hyper.distill_weight / (tau * len(taught) * n_exits)
            )
            d_out[taught, :n_actions] += distance * np.float32(2 * hyper.match_weight / (distance.size * n_exits))

        if k < n_exits - 1:
            agrees = (q.argmax(1) == best).astype(np.float32)
            confidence += float((np.maximum(logit, 0) - logit * agrees + np.log1p(np.exp(-np.abs(logit)))).mean())
            sure = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
            d_out[:, n_actions] = (sure - agrees) * np.float32(hyper.confidence_weight / (n * n_exits))
        d_outputs[k] = d_out

    backward(params, grads, tape, d_outputs)
    td, distill, matched, confidence = (loss / n_exits for loss in (td, distill, matched, confidence))
    total = (
        hyper.td_weight * td
        + hyper.distill_weight * distill
        + hyper.match_weight * matched
        + hyper.confidence_weight * confidence
    )
    return Losses(total, td, distill, matched, confidence)
