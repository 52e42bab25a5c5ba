"""One gradient step of an early-exit Q network: temporal difference, teacher and confidence, all exits at once."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import kernels
from edgert.errors import UsageError
from edgert.kernels.conv import Scratch
from edgert.learn.backprop import accumulate, parts
from edgert.nets import F32, U8, Params, forward


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
        micro_batch: most samples that go through the network at a time; None lets the network's size decide. It bounds
            the memory and changes no result beyond rounding.
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
    micro_batch: int | None = None


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
    """Means over the batch and over the exits, before weighting.

    Those by the teacher are over the part that it taught, and 0 where it has no weight: then it is not looked at.
    """

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
        grads: of the step under way; whoever makes it writes here.
        scratch: memory to make it in.
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
        self.grads = Params(params.spec)
        self.scratch = Scratch()

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
        losses = gradients(self.params, self.target, batch, hyper, self.grads, self.scratch)
        self.descend(losses.total, hyper.learning_rate, hyper.max_grad_norm)
        if self.steps % hyper.target_every == 0:
            self.target.flat[:] = self.params.flat
        return losses

    def descend(self, loss: float, learning_rate: float, max_grad_norm: float) -> None:
        """Follow the gradient that is in `grads`.

        Args:
            loss: whose gradient it is.
            learning_rate: of Adam.
            max_grad_norm: the whole gradient is scaled down to this Euclidean norm.

        Raises:
            UsageError: loss or gradient is not finite (the parameters are then untouched).
        Source:
            Adam: Kingma & Ba 2015 (arXiv 1412.6980) Algorithm 1; the norm: Pascanu et al. 2013 (arXiv 1211.5063).
        """
        grad = self.grads.flat
        norm = float(np.sqrt(np.dot(grad, grad)))
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise UsageError(
                f"training loss is {loss} with a gradient of {norm} at step {self.steps}: "
                "rewards or teacher values are not finite"
            )
        self.move(learning_rate, min(1.0, max_grad_norm / norm) if norm > 0 else 1.0)

    def move(self, learning_rate: float, scale: float) -> None:
        """Follow the gradient that is in `grads`, whatever its size.

        Args:
            learning_rate: of Adam.
            scale: that the gradient is multiplied by.

        Raises:
            Nothing.
        Source:
            as `descend`.
        """
        self.steps += 1
        kernels.adam(self.params.flat, self.grads.flat, self.m, self.v, step=self.steps, lr=learning_rate, scale=scale)


def td_targets(
    params: Params,
    target: Params,
    batch: Batch,
    gamma: float,
    *,
    micro_batch: int | None = None,
    scratch: Scratch | None = None,
) -> F32:
    """Double-DQN targets from the final exit.

    Args:
        params: chooses the next action.
        target: values it.
        batch: transitions.
        gamma: discount per decision.
        micro_batch: as in `Hyper`.
        scratch: memory to work in, or None for some of its own.

    Returns:
        (B,) float32.

    Raises:
        UsageError: shapes that do not fit.
    Source:
        van Hasselt et al. 2016 (arXiv 1509.06461) equation 4; all exits share the final exit's target: our reading of
        RAPID-RL (arXiv 2109.08231), so that shallow exits estimate the same policy's values.
    """
    last, n_actions = params.spec.n_exits - 1, params.spec.n_actions
    scratch = scratch or Scratch()
    values = np.empty(len(batch.action), np.float32)
    for part in parts(params.spec, len(values), micro_batch):
        q, slow = (forward(net, batch.next_obs[part], exits=(last,), scratch=scratch)[last] for net in (params, target))
        values[part] = slow[np.arange(len(q)), q[:, :n_actions].argmax(1)]
    return np.asarray(batch.reward + np.float32(gamma) * np.where(batch.terminated, np.float32(0), values), np.float32)


def softmax(x: F32) -> tuple[F32, F32]:
    """Softmax over the last axis and its logarithm.

    Args:
        x: (n, A) float32.

    Returns:
        Both, (n, A) float32.

    Raises:
        Nothing.
    Source:
        Goodfellow et al. 2016, section 4.1: the largest is taken off first, so that exp never overflows.
    """
    shifted = x - x.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(1, keepdims=True)
    return exponentials / total, shifted - np.log(total)


def gradients(
    params: Params, target: Params, batch: Batch, hyper: Hyper, grads: Params, scratch: Scratch | None = None
) -> Losses:
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
        scratch: memory to work in, or None for some of its own.

    Returns:
        The losses.

    Raises:
        UsageError: shapes that do not fit.
    Source:
        TD: Mnih et al. 2015 with arXiv 1509.06461; distillation: Rusu et al. 2016 (arXiv 1511.06295) equation 3;
        confidence as agreement with the final exit: our reading of RAPID-RL (arXiv 2109.08231).
    """
    n, n_actions, n_exits = len(batch.action), params.spec.n_actions, params.spec.n_exits
    scratch = scratch or Scratch()
    y = td_targets(params, target, batch, hyper.gamma, micro_batch=hyper.micro_batch, scratch=scratch)
    told = told_rows(batch, hyper)
    n_taught = int(np.count_nonzero(told))
    td = distill = matched = confidence = 0.0

    def loss_gradient(outputs: dict[int, F32], part: slice) -> dict[int, F32]:
        """Add a part's share to the losses; every mean is over the whole batch."""
        nonlocal td, distill, matched, confidence
        best = outputs[n_exits - 1][:, :n_actions].argmax(1)
        lesson = prepare(batch.action[part], batch.teacher_q[part], told[part], y[part], best, hyper, n, n_taught)
        d_outputs: dict[int, F32] = {}
        for k, out in outputs.items():
            d_outputs[k], shares = exit_gradient(out, lesson, hyper, n_exits, last=k == n_exits - 1)
            td, distill, matched, confidence = (
                td + shares.td,
                distill + shares.distill,
                matched + shares.match,
                confidence + shares.confidence,
            )
        return d_outputs

    accumulate(params, batch.obs, loss_gradient, grads, micro_batch=hyper.micro_batch, scratch=scratch)
    return mean_losses(Losses(0.0, td, distill, matched, confidence), hyper, n_exits)


class Lesson(NamedTuple):
    """What some rows of a batch are to teach every exit.

    Attributes:
        action: (b,) taken.
        y: (b,) float32 TD targets.
        best: (b,) what the last exit would do.
        taught: which rows a teacher answered.
        teacher: (t, A) float32, its values there.
        wanted, log_wanted: (t, A) float32, what it prefers there.
        n, n_taught: rows of the whole batch, and those of them that were taught: means are over these.
    """

    action: npt.NDArray[np.integer]
    y: F32
    best: npt.NDArray[np.integer]
    taught: npt.NDArray[np.intp]
    teacher: F32
    wanted: F32
    log_wanted: F32
    n: int
    n_taught: int


def told_rows(batch: Batch, hyper: Hyper) -> npt.NDArray[np.bool_]:
    """The rows of a batch that a teacher is followed in.

    Args:
        batch: transitions.
        hyper: weights.

    Returns:
        (B,) bool; all False where the teacher has no weight.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return batch.taught if hyper.distill_weight or hyper.match_weight else np.zeros_like(batch.taught)


def prepare(
    action: npt.NDArray[np.integer],
    teacher_q: F32,
    told: npt.NDArray[np.bool_],
    y: F32,
    best: npt.NDArray[np.integer],
    hyper: Hyper,
    n: int,
    n_taught: int,
) -> Lesson:
    """Put together what some rows of a batch are to teach.

    Args:
        action: (b,) taken.
        teacher_q: (b, A) float32.
        told: (b,) bool, of `told_rows`.
        y: (b,) float32, of `td_targets`.
        best: (b,) what the last exit would do.
        hyper: weights.
        n: rows of the whole batch.
        n_taught: those of them that are told.

    Returns:
        The lesson of these rows.

    Raises:
        Nothing.
    Source:
        as `gradients`.
    """
    taught = np.flatnonzero(told)
    teacher = teacher_q[taught]
    wanted, log_wanted = softmax(teacher / np.float32(hyper.temperature)) if len(taught) else (teacher, teacher)
    return Lesson(action, y, best, taught, teacher, wanted, log_wanted, n, n_taught)


def exit_gradient(out: F32, lesson: Lesson, hyper: Hyper, n_exits: int, *, last: bool) -> tuple[F32, Losses]:
    """The loss of one exit on some rows of a batch, by its outputs.

    Args:
        out: (b, A + 1) float32, what the exit says.
        lesson: of the same rows.
        hyper: weights.
        n_exits: of the whole network: the loss is the mean over them.
        last: this is the last exit, whose confidence nobody asks.

    Returns:
        (b, A + 1) float32, and these rows' share of the means over the batch, not yet over the exits; `total` is 0.

    Raises:
        Nothing.
    Source:
        as `gradients`.
    """
    n, n_taught, taught = lesson.n, lesson.n_taught, lesson.taught
    n_actions, tau = out.shape[1] - 1, np.float32(hyper.temperature)
    rows, q, logit = np.arange(len(lesson.action)), out[:, :n_actions], out[:, n_actions]
    distill = matched = confidence = 0.0
    d_out = np.zeros_like(out)

    error = q[rows, lesson.action] - lesson.y
    size = np.abs(error)
    td = float(np.where(size <= 1, 0.5 * error * error, size - 0.5).sum()) / n
    d_out[rows, lesson.action] += np.clip(error, -1, 1) * np.float32(hyper.td_weight / (n * n_exits))

    if len(taught):
        preferred, log_preferred = softmax(q[taught] / tau)
        distill = float((lesson.wanted * (lesson.log_wanted - log_preferred)).sum()) / n_taught
        distance = q[taught] - lesson.teacher
        matched = float((distance * distance).sum()) / (n_taught * n_actions)
        d_out[taught, :n_actions] += (preferred - lesson.wanted) * np.float32(
            hyper.distill_weight / (tau * n_taught * n_exits)
        )
        d_out[taught, :n_actions] += distance * np.float32(2 * hyper.match_weight / (n_taught * n_actions * n_exits))

    if not last:
        agrees = (q.argmax(1) == lesson.best).astype(np.float32)
        doubt = np.maximum(logit, 0) - logit * agrees + np.log1p(np.exp(-np.abs(logit)))
        confidence = float(doubt.sum()) / n
        sure = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
        d_out[:, n_actions] = (sure - agrees) * np.float32(hyper.confidence_weight / (n * n_exits))
    return d_out, Losses(0.0, td, distill, matched, confidence)


def mean_losses(sums: Losses, hyper: Hyper, n_exits: int) -> Losses:
    """The means over the exits, and their weighted sum.

    Args:
        sums: over the exits; `total` is not looked at.
        hyper: weights.
        n_exits: of the network.

    Returns:
        The losses.

    Raises:
        Nothing.
    Source:
        as `gradients`.
    """
    td, distill, matched, confidence = (loss / n_exits for loss in sums[1:])
    total = (
        hyper.td_weight * td
        + hyper.distill_weight * distill
        + hyper.match_weight * matched
        + hyper.confidence_weight * confidence
    )
    return Losses(total, td, distill, matched, confidence)
