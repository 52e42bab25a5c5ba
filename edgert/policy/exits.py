"""When an early exit answers: confidences, thresholds, and what the budget and the deadline make of them.

A threshold is the confidence, 0..1, from which on an exit is believed; 0 always believes it, 1 never. The networks
speak in logits, so that is what runtimes compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgert.errors import ArtifactError, UsageError
from edgert.quant import IntNet

F32: TypeAlias = npt.NDArray[np.float32]


class Choice(NamedTuple):
    """What one head says.

    Attributes:
        action: index of the largest Q-value; the first of equals.
        confidence: 0..1, how likely the full network is to agree. The last exit's means nothing: nobody judges it.
    """

    action: int
    confidence: float


def confidence(logit: float) -> float:
    """The logistic function.

    Args:
        logit: any float; infinities are fine.

    Returns:
        0..1.

    Raises:
        UsageError: `logit` is not a number.
    Source:
        Bishop 2006, equation 4.59, written so that exp never overflows.
    """
    if math.isnan(logit):
        raise UsageError("a confidence logit that is not a number")
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)


def logit(confidence_frac: float) -> float:
    """The inverse of `confidence`; 0 gives -inf and 1 gives +inf.

    Args:
        confidence_frac: 0..1.

    Returns:
        The logit.

    Raises:
        UsageError: outside 0..1, or not a number.
    Source:
        Bishop 2006, equation 4.60.
    """
    if not 0 <= confidence_frac <= 1:
        raise UsageError(f"threshold {confidence_frac} is no confidence: it must lie in 0..1")
    if confidence_frac in (0, 1):
        return math.inf if confidence_frac else -math.inf
    return math.log(confidence_frac) - math.log1p(-confidence_frac)


def effective_thresholds(thresholds: Sequence[float], max_exit: int) -> F32:
    """Turn a policy's thresholds and the budget's deepest exit into what a runtime compares.

    Args:
        thresholds: confidences 0..1 of every exit but the last.
        max_exit: deepest exit allowed, 0-based; deeper than the network is the same as no limit.

    Returns:
        (len(thresholds),) float32 logits; from `max_exit` on they are -inf, so the deepest allowed exit answers.

    Raises:
        UsageError: a threshold outside 0..1 or not a number, or a negative `max_exit`.
    Source:
        ours: one comparison in the network serves confidence, budget and deadline alike.
    """
    if max_exit < 0:
        raise UsageError(f"max_exit is {max_exit}: the shallowest exit is 0")
    logits = np.array([logit(threshold) for threshold in thresholds], np.float32)
    logits[max_exit:] = -np.inf
    return logits


def deepest_affordable(costs_s: Sequence[float], remaining_s: float) -> int:
    """The deepest exit that still fits before the deadline.

    Args:
        costs_s: per exit, measured seconds from observation to answer.
        remaining_s: until the deadline.

    Returns:
        The largest exit whose cost is at most `remaining_s`; 0 when none is, since something must answer.

    Raises:
        UsageError: no costs.
    Source:
        ours: costs are compared one by one, because measured ones need not grow with depth.
    """
    if not costs_s:
        raise UsageError("the cost of no exit is known: measure the policy first")
    return max((k for k, cost_s in enumerate(costs_s) if cost_s <= remaining_s), default=0)


def choose(head: F32) -> Choice:
    """Read one head.

    Args:
        head: (n_actions + 1,) float32: Q-values, then the confidence logit.

    Returns:
        The greedy action and the confidence.

    Raises:
        ArtifactError: a value is not finite; the policy that gave it must not act.
    Source:
        ours: plain Python, because on a handful of numbers it is faster than numpy.
    """
    *values, logit_ = head.tolist()
    # A sum of float32 values cannot overflow a float64, so it is finite exactly when all of them are.
    if not values or not math.isfinite(sum(values) + logit_):
        raise ArtifactError(f"the policy answered {head.tolist()}, which is not finite: it must not act")
    return Choice(values.index(max(values)), confidence(logit_))


class Drawn(NamedTuple):
    """An action that was drawn, and the logarithm of the probability with which it was."""

    action: int
    log_prob: float


def draw(head: F32, u: float) -> Drawn:
    """Draw an action from what a head of a `policy` network says.

    Args:
        head: (n_actions + 1,) float32: logits, then the confidence logit or the value; finite, see `choose`.
        u: uniform in 0..1, 1 excluded.

    Returns:
        The action and its log-probability.

    Raises:
        Nothing.
    Source:
        inversion of the distribution function (Devroye 1986, chapter III.2); plain Python, as `choose`.
    """
    logits = head.tolist()[:-1]
    best = max(logits)
    masses = [math.exp(value - best) for value in logits]
    total = sum(masses)
    left, action = u * total, 0
    while left >= masses[action] and action < len(masses) - 1:
        left -= masses[action]
        action += 1
    while masses[action] == 0.0:  # rounding carried us past the last that can be
        action -= 1
    return Drawn(action, logits[action] - best - math.log(total))


def taken(heads: Mapping[int, F32], thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Which exit answers each observation of a batch.

    Args:
        heads: exit -> (n, n_actions + 1) float32, every exit.
        thresholds: confidences 0..1 of every exit but the last.

    Returns:
        (n,) the first exit that is sure enough.

    Raises:
        UsageError: a threshold outside 0..1.
    Source:
        BranchyNet (Teerapittayanon et al. 2016) Algorithm 1, for many observations at once.
    """
    logits = effective_thresholds(thresholds, len(heads) - 1)
    sure = [heads[k][:, -1] >= logits[k] for k in range(len(heads) - 1)]
    return np.asarray(np.stack([*sure, np.ones(len(heads[0]), bool)], 1).argmax(1))


def decide(heads: Mapping[int, F32], thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """What the act loop would do on a batch of observations.

    Args:
        heads: exit -> (n, n_actions + 1) float32, every exit.
        thresholds: confidences 0..1 of every exit but the last.

    Returns:
        (n,) greedy actions, each of the exit that `taken` names.

    Raises:
        UsageError: a threshold outside 0..1.
    Source:
        as `taken`.
    """
    greedy = np.stack([heads[k][:, :-1].argmax(1) for k in range(len(heads))], 1)
    return np.asarray(greedy[np.arange(len(greedy)), taken(heads, thresholds)])


def answer(net: IntNet, obs: npt.NDArray[np.uint8], threshold_logits: F32) -> tuple[F32, npt.NDArray[np.int64]]:
    """Run a batch, each observation up to its first exit that is sure enough and no further.

    Args:
        net: the integer network.
        obs: (n, H, W, C) uint8.
        threshold_logits: (n_exits - 1,) float32, or (n, n_exits - 1) for a setting of its own each.

    Returns:
        (n, n_actions + 1) float32, the head that answered; and (n,) which exit it is.

    Raises:
        UsageError: never; shapes are the caller's.
    Source:
        `IntNet.first_sure` for many at once: the integer sums are exact, so both give the same bits.
    """
    last = net.spec.n_exits - 1
    head = np.empty((len(obs), net.spec.n_actions + 1), np.float32)
    exit_ = np.full(len(obs), last)
    bars = np.broadcast_to(threshold_logits, (len(obs), last))
    rows, x = np.arange(len(obs)), np.ascontiguousarray(obs)
    for k in range(last + 1):
        if not len(rows):
            break
        x = net.trunk(k, x)
        here = net.head(k, x)
        sure = here[:, -1] >= bars[rows, k] if k < last else np.ones(len(rows), bool)
        head[rows[sure]], exit_[rows[sure]] = here[sure], k
        rows, x = rows[~sure], x[~sure]
    return head, exit_


def fit_threshold(logits: F32, regret: F32, allowed_regret: float) -> float:
    """The smallest confidence from which on believing an exit costs little enough on average.

    Args:
        logits: (n,) float32 confidence logits of one exit, on observations that nothing was fitted to.
        regret: (n,) float32, what each of its answers gives away, >= 0.
        allowed_regret: mean regret of the believed answers, in the unit of `regret`.

    Returns:
        A threshold 0..1; 1 when no confidence is good enough.

    Raises:
        UsageError: shapes differ.
    Source:
        ours: selective classification's risk-coverage choice (Geifman & El-Yaniv 2017, arXiv 1705.08500) without its
            bound.
    """
    if logits.shape != regret.shape or logits.ndim != 1:
        raise UsageError(f"one regret a logit is needed, not {regret.shape} for {logits.shape}")
    order = np.argsort(-logits, kind="stable")
    ranked = logits[order]
    risk = np.cumsum(regret[order], dtype=np.float64) / np.arange(1, len(order) + 1)
    # Equal logits are believed or not together: only the last of a run is a possible cut.
    is_cut = np.append(ranked[1:] < ranked[:-1], True) if len(ranked) else np.zeros(0, bool)
    good = np.flatnonzero(is_cut & (risk <= allowed_regret))
    return confidence(float(ranked[good[-1]])) if len(good) else 1.0


def fit_thresholds(heads: Mapping[int, F32], regret_frac: float = 0.05) -> tuple[float, ...]:
    """A threshold for every exit but the last, each fitted on the observations that reach it.

    Args:
        heads: exit -> (n, n_actions + 1) float32, every exit, on observations that nothing was fitted to.
        regret_frac: what the believed answers of an exit may give away by the last exit's Q-values, as a share of the
            mean distance between its best and its worst action.

    Returns:
        (n_exits - 1) confidences 0..1.

    Raises:
        UsageError: heads of different lengths.
    Source:
        ours: regret rather than agreement. Where two actions are worth the same, disagreeing costs nothing: on
            space_invaders the first exit agrees with the last on 44 % of states and earns the same return.
    """
    last = len(heads) - 1
    q = heads[last][:, :-1]
    best, rows = q.max(1), np.arange(len(q))
    allowed = regret_frac * float((best - q.min(1)).mean()) if len(q) else 0.0
    return _fit_each(heads, [best - q[rows, heads[k][:, :-1].argmax(1)] for k in range(last)], allowed)


def fit_policy_thresholds(heads: Mapping[int, F32], delta: float = 0.05) -> tuple[float, ...]:
    """The same for a network of kind `policy` whose actions are drawn.

    Args:
        heads: exit -> (n, n_actions + 1) float32, every exit, on observations that nothing was fitted to.
        delta: mean divergence of the believed answers of an exit from the last exit's, in nats.

    Returns:
        (n_exits - 1) confidences 0..1.

    Raises:
        UsageError: heads of different lengths.
    Source:
        ours: an exit with the right favourite may still draw it half as often as the last exit does.
    """
    last, log = len(heads) - 1, []
    for k in range(last + 1):
        shifted = heads[k][:, :-1] - heads[k][:, :-1].max(1, keepdims=True)
        log.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    apart = [(np.exp(log[last]) * (log[last] - log[k])).sum(1) for k in range(last)]
    return _fit_each(heads, apart, delta)


def _fit_each(heads: Mapping[int, F32], losses: Sequence[F32], allowed: float) -> tuple[float, ...]:
    """One exit after the other, each on what reaches it."""
    reaching, found = np.ones(len(heads[0]), bool), []
    for k, lost in enumerate(losses):
        found.append(fit_threshold(heads[k][reaching, -1], lost[reaching], allowed))
        reaching &= heads[k][:, -1] < logit(found[-1])
    return tuple(found)
