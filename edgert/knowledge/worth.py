"""What an answer is worth before it is there: how far the teacher will turn the student's preferences.

What a student can see for itself (how near its two best actions are, whether its exits disagree, by how much the last
reward surprised it) says something about that, differently in each world and at each stage of learning. So it is not
guessed but fitted, to what the answers so far did change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgert.nets import F32

FEATURES = 4
FLOOR = 0.02
"""An answer expected to move less than this share of the preferences is not worth asking for,"""
KEPT_EVERY = 16
"""but for every so manieth, without which nobody would see that the expectation has become wrong."""
_FORGET = 0.998
_PRIOR_ROWS = 20.0
_PRIOR = np.array([0.1, 0.5, 0.5, 0.0])


def softmax(q: F32, temperature: float) -> F32:
    """Preferences.

    Args:
        q: (n, A) float32.
        temperature: in units of q.

    Returns:
        (n, A) float32, rows that add up to 1.

    Raises:
        Nothing.
    Source:
        Rusu et al. 2016 (arXiv 1511.06295) equation 3, as the training's.
    """
    shifted = np.exp((q - q.max(1, keepdims=True)) / np.float32(temperature))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float32)


def moved(told: F32, own: F32, temperature: float) -> F32:
    """How much of the student's preferences the teacher places elsewhere.

    Args:
        told: (n, A) float32, the teacher's values.
        own: (n, A) float32, the student's.
        temperature: in units of both.

    Returns:
        (n,) float32, 0 (none) to 1 (all): the total variation distance.

    Raises:
        Nothing.
    Source:
        ours: bounded, unlike the divergence that is trained on, so that single answers cannot rule the fit.
    """
    apart = np.abs(softmax(told, temperature) - softmax(own, temperature))
    return np.asarray(0.5 * apart.sum(1), np.float32)


def features(outputs: Mapping[int, F32] | Sequence[F32], surprise: F32, n_actions: int, temperature: float) -> F32:
    """What the student itself can see of an observation.

    Args:
        outputs: of each exit, in order, (n, A + 1) float32.
        surprise: (n,) float32, size of the temporal-difference error of what followed; 0 where unknown.
        n_actions: A.
        temperature: softens.

    Returns:
        (n, FEATURES) float32, each within 0..1: a constant, how near the two best actions are, how far the exits are
        from the last one, and the surprise.

    Raises:
        Nothing.
    Source:
        margin sampling (Scheffer et al. 2001) and query by committee (Seung et al. 1992), the exits as the committee.
    """
    heads = [np.asarray(outputs[k][:, :n_actions], np.float32) for k in range(len(outputs))]
    best = np.sort(heads[-1], axis=1)
    gap = best[:, -1] - best[:, -2] if n_actions > 1 else np.full(len(best), np.inf, np.float32)
    apart = [moved(head, heads[-1], temperature) for head in heads[:-1]]
    seen = (
        np.ones(len(best)),
        1 / (1 + np.abs(gap) / temperature),
        np.max(apart, axis=0) if apart else np.zeros(len(best)),
        np.abs(surprise) / (1 + np.abs(surprise)),
    )
    return np.asarray(np.nan_to_num(np.stack(seen, axis=1), nan=1.0, posinf=1.0), np.float32)


class Worth:
    """A linear fit of `moved` to `features`, in which old answers count less and less."""

    def __init__(self) -> None:
        """Start with what is right of most worlds: doubt is worth asking about."""
        self._squares = np.eye(FEATURES) * _PRIOR_ROWS
        self._products = self._squares @ _PRIOR

    def expected(self, seen: F32) -> F32:
        """What answers would move.

        Args:
            seen: (n, FEATURES) float32.

        Returns:
            (n,) float32 within 0..1.

        Raises:
            Nothing.
        Source:
            recursive least squares with exponential forgetting, e.g. Haykin, Adaptive Filter Theory, chapter 9.
        """
        return np.asarray(np.clip(seen @ np.linalg.solve(self._squares, self._products), 0, 1), np.float32)

    def learn(self, seen: F32, did: F32) -> None:
        """Take in what answers did move.

        Args:
            seen: (n, FEATURES) float32, when the observations were seen.
            did: (n,) float32, 0 to 1; what is not a number is left out, or nothing could be expected ever after.

        Raises:
            Nothing.
        Source:
            as `expected`; the prior's weight is forgotten no further than one row, so that there is always a solution.
        """
        sound = np.isfinite(did) & np.isfinite(seen).all(1)
        seen, did = seen[sound], did[sound]
        kept = _FORGET ** len(did)
        prior = np.eye(FEATURES) * (1 - kept)
        self._squares = kept * self._squares + seen.T.astype(np.float64) @ seen + prior
        self._products = kept * self._products + seen.T.astype(np.float64) @ did + prior @ _PRIOR
