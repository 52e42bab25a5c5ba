"""The gap between the two best actions, and what it says about an exit's confidence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def add_gap(head: npt.NDArray[np.float32], weight: float) -> None:
    """Add the gap between the two best Q-values to the confidence logit, in place.

    Args:
        head: (n, n_actions + 1) float32, two actions at least; its last column changes.
        weight: logits that a unit of Q-value is worth.

    Returns:
        Nothing: head has changed.

    Raises:
        Nothing.

    Source:
        ours: an exit errs mostly where its two best actions are close, which no linear function of its features can
        say; the gap alone is the margin of active learning (Scheffer et al. 2001).
    """
    best = np.partition(head[:, :-1], -2, axis=1)
    head[:, -1] += np.float32(weight) * (best[:, -1] - best[:, -2])
