"""A promise about a setting of the exits that holds whatever the returns are distributed like.

"At most a share r of the normalised return is lost, with probability 1 - delta": over the draw of the test episodes,
and in the mean over all episodes there could be. Returns need bounds; what lies beyond them is clipped, and the promise
is then about clipped returns. Both references are estimates too. That is dealt with by testing one sample of triples:
an episode of the setting, one of the full network and one of the random policy give one bounded number whose mean is
at least 0 exactly when the promise holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError

F64: TypeAlias = npt.NDArray[np.float64]

METHOD = "fixed-sequence testing, betting on triples of episodes with predictable plug-in stakes"

_PRIOR = 0.25  # of the variance, in half-widths of the range, before anything was seen
_STAKE_MAX = 0.9  # of what would lose everything in the worst case


class Controlled(NamedTuple):
    """What the test found.

    Attributes:
        chosen: index of the cheapest setting that the promise holds for; None: for none but the full network.
        p_values: of the settings that were tested, in their order.
    """

    chosen: int | None
    p_values: tuple[float, ...]


def p_value(
    returns: F64, full: F64, random: F64, *, max_loss_frac: float, delta: float, bounds: tuple[float, float]
) -> float:
    """How well the episodes would fit to a setting that breaks the promise.

    Args:
        returns: (n,) of the setting's episodes, independent and identically distributed, as are
        full: (n,) the full network's and
        random: (n,) the random policy's; what has equal index may depend on one another (equal seeds).
        max_loss_frac: the share r of J_full - J_random that may be lost.
        delta: at which the stakes are tuned; the p-value is valid at any other level, too, but weaker.
        bounds: (low, high) of returns, chosen without looking at these episodes; the rest is clipped.

    Returns:
        p in 0..1: where J < (1 - r) J_full + r J_random, the probability of p <= u is at most u, for each u.

    Raises:
        UsageError: samples of different length, empty or not finite; bounds out of order; shares out of range.
    Source:
        the capital process with predictable plug-in stakes of Waudby-Smith & Ramdas 2020 (arXiv 2010.09686), section
        4: a bettor against the hypothesis who gets rich refutes it; p = 1 / max wealth by Ville's inequality. One
        sample of triples instead of three samples: ours; it leaves nothing to be unioned.
    """
    low, high = bounds
    if not len(returns) == len(full) == len(random) or not len(returns):
        raise UsageError(f"{len(returns)}, {len(full)} and {len(random)} episodes: the test needs as many of each")
    if not (math.isfinite(low) and math.isfinite(high) and low < high and 0 < max_loss_frac < 1 and 0 < delta < 1):
        raise UsageError(f"max_loss_frac {max_loss_frac} and delta {delta} within 0..1, bounds {low} below {high}?")
    kept, kept_full, kept_random = (np.clip(sample, low, high) for sample in (returns, full, random))
    gains = (kept - (1 - max_loss_frac) * kept_full - max_loss_frac * kept_random) / (high - low)
    if not np.isfinite(gains).all():
        raise UsageError("a return that is not a number cannot be tested")
    # Every stake depends on earlier gains only; a gain of -1 costs at most `_STAKE_MAX` of the wealth.
    seen = np.arange(1, len(gains) + 1)
    before = np.concatenate([[0.0], np.cumsum(gains)[:-1]]) / seen
    squares = (_PRIOR + np.concatenate([[0.0], np.cumsum(gains**2)[:-1]])) / seen
    variance = np.maximum(squares - before**2, 1e-6)
    stakes = np.minimum(np.sqrt(2 * math.log(1 / delta) / (len(gains) * variance)), _STAKE_MAX)
    wealth = float(np.cumsum(np.log1p(stakes * gains)).max())
    return math.exp(-max(0.0, wealth))


def risk_controlled(
    candidates: Iterable[Callable[[], F64]],
    full: F64,
    random: F64,
    *,
    max_loss_frac: float,
    delta: float,
    bounds: tuple[float, float],
) -> Controlled:
    """The cheapest setting that loses at most so much, except with a small probability.

    Args:
        candidates: from dear to cheap, each plays its (n,) test episodes when it is called; none is called after one
            failed. Which they are and their order must not depend on test episodes.
        full: (n,) returns of the full network.
        random: (n,) returns of the random policy.
        max_loss_frac: share r of J_full - J_random that may be lost.
        delta: probability that the chosen one loses more.
        bounds: as of `p_value`.

    Returns:
        The last candidate before the first that failed.

    Raises:
        UsageError: as `p_value`.
    Source:
        Learn then Test with fixed-sequence testing: Angelopoulos et al. 2021 (arXiv 2110.01052): it needs
        no share of delta for each candidate, and p-values may depend on one another.
    """
    p_values: list[float] = []
    for play in candidates:
        p_values.append(p_value(play(), full, random, max_loss_frac=max_loss_frac, delta=delta, bounds=bounds))
        if p_values[-1] > delta:
            break
    passed = sum(p <= delta for p in p_values)
    return Controlled(passed - 1 if passed else None, tuple(p_values))
