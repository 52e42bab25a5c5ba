"""What would another policy have earned? Answered from what was lived through, without letting it act.

Importance weights cannot say it here: two greedy policies that differ in a few states in a hundred have no episode in
common, and the few random actions in between would carry all the weight. So the values of both policies are fitted to
the same transitions, as functions of what both networks say of a state, and their difference gets an error bar. The fit
may be wrong about what was never tried; then its error bar is wide, or its figures are absurd, and it says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.nets import F32

BLOCKS = 10
"""Stretches of the history that are left out in turn: neighbours in time are not independent, stretches nearly are."""
ONE_SIDED_T = 2.82
"""Student's t with BLOCKS - 1 degrees of freedom: 1 % on one side."""
MARGIN_FRAC = 0.2
"""Share of the acting network's value below which a difference is not called harm. The acting network's own values are
half of what the fit can see, which favours it: on breakout a teacher of twice its return came out at up to 0.2 less."""
MIN_TRANSITIONS = 300
RIDGE, ACTION_RIDGE = 1e-3, 3e-2
"""Of the part that all actions share and of each action's own, per transition: an action that was never tried is taken
for as good as the others."""

F64 = npt.NDArray[np.float64]
Actions = npt.NDArray[np.integer]


class Lived(NamedTuple):
    """Transitions in the order in which they were lived through, and what two policies make of them.

    Attributes:
        features: (n, d) float32, of the states; both policies share them.
        next_features: (n, d) float32, of what followed; anything where `terminated`.
        action: (n,) integer, that was taken, whoever chose it.
        reward: (n,) float32, that followed.
        terminated: (n,) bool.
        acting, candidate: (n,) integer, what each policy would do there.
        next_acting, next_candidate: (n,) integer, what each would do next.
        judged: (n,) bool: states that the difference is averaged over.
    """

    features: F32
    next_features: F32
    action: Actions
    reward: F32
    terminated: npt.NDArray[np.bool_]
    acting: Actions
    candidate: Actions
    next_acting: Actions
    next_candidate: Actions
    judged: npt.NDArray[np.bool_]


class Gain(NamedTuple):
    """What the candidate would earn more than the acting network.

    Attributes:
        gain: mean difference of discounted return; None when there is not enough to tell.
        error: standard error of it.
        acting: mean discounted return of the acting network.
        n: transitions.
        why: there is not enough, in words.
    """

    gain: float | None
    error: float
    acting: float
    n: int
    why: str = ""

    @property
    def harmful(self) -> bool:
        """Evidence that the candidate earns less: even the upper end of the difference lies beyond the margin."""
        margin = MARGIN_FRAC * abs(self.acting)
        return self.gain is not None and self.gain + ONE_SIDED_T * self.error < -margin


def compare(lived: Lived, n_actions: int, gamma: float) -> Gain:
    """Estimate both policies' values from the same transitions, and the difference with its error.

    Args:
        lived: what happened.
        n_actions: size of the action set.
        gamma: discount per decision.

    Returns:
        The estimate, or why there is none.

    Raises:
        Nothing.
    Source:
        LSTD-Q (Lagoudakis & Parr 2003, equation 5.8), which is fitted-Q evaluation (Le et al. 2019, arXiv 1903.08738)
        carried to its end for functions linear in their weights; delete-a-group jackknife (Kott 2001) for the error.
    """
    n = len(lived.reward)
    if n < MIN_TRANSITIONS or not lived.judged.any():
        return Gain(None, 0.0, 0.0, n, f"{n} transitions, it takes {MIN_TRANSITIONS}")
    differ = lived.acting != lived.candidate
    if not (differ & lived.judged).any():
        return Gain(0.0, 0.0, 0.0, n)
    centre, spread = lived.features.mean(0), lived.features.std(0)
    kept = spread > 1e-6
    now, then = (
        np.column_stack([np.ones(n), ((x - centre) / np.where(kept, spread, 1))[:, kept]]).astype(np.float64)
        for x in (lived.features, lived.next_features)
    )
    then[lived.terminated] = 0
    block = (np.arange(n) * BLOCKS + BLOCKS - 1) // n
    usual = np.bincount(lived.action, minlength=n_actions) / n
    taken = _expand(now, lived.action, usual)
    at = {name: _expand(now, getattr(lived, name), usual)[lived.judged] for name in ("acting", "candidate")}
    ridge = np.full(taken.shape[1], ACTION_RIDGE)
    ridge[: now.shape[1]] = RIDGE
    values = {}
    for name in at:
        following = _expand(then, getattr(lived, f"next_{name}"), usual)
        values[name] = _values(taken, taken - gamma * following, lived.reward, at[name], block[lived.judged], ridge)
    worst = float(np.abs(lived.reward).max()) / max(1 - gamma, 1e-3)
    every = np.concatenate(list(values.values()))
    if not np.isfinite(every).all() or np.abs(every).max() > worst:
        return Gain(None, 0.0, 0.0, n, "the fit gives values beyond anything that could be earned")
    gains = values["candidate"] - values["acting"]
    parts = gains[1:]
    error = float(np.sqrt((BLOCKS - 1) / BLOCKS * ((parts - parts.mean()) ** 2).sum()))
    return Gain(float(gains[0]), error, float(values["acting"][0]), n)


def _expand(features: F64, action: Actions, usual: F64) -> F64:
    """What all actions share, then a place for what each action's own is beyond the usual."""
    own = np.eye(len(usual))[action] - usual
    return np.concatenate([features, (own[:, :, None] * features[:, None, :]).reshape(len(own), -1)], 1)


def _values(taken: F64, ahead: F64, reward: F32, at: F64, at_block: Actions, ridge: F64) -> F64:
    """(1 + BLOCKS,) mean value at `at` with everything, and with each block left out."""
    n = len(taken)
    cut = [slice(n * k // BLOCKS, n * (k + 1) // BLOCKS) for k in range(BLOCKS)]
    matrices = np.stack([taken[part].T @ ahead[part] for part in cut])
    vectors = np.stack([taken[part].T @ reward[part] for part in cut])
    sums = np.stack([at[at_block == k].sum(0) for k in range(BLOCKS)])
    counts = np.bincount(at_block, minlength=BLOCKS)
    means = []
    for left_out in range(-1, BLOCKS):
        use = np.arange(BLOCKS) != left_out
        weights = np.linalg.solve(matrices[use].sum(0) + np.diag(n * use.mean() * ridge), vectors[use].sum(0))
        means.append(sums[use].sum(0) @ weights / max(counts[use].sum(), 1))
    return np.array(means)
