"""Is something that looks worse worth a try? It is where what it may teach is worth more than what it costs."""

from __future__ import annotations

import math

BATCHES = (1, 3, 10, 30, 100)
"""Tries in a row that are weighed: where answers scatter, one try hardly ever changes a mind, and ten may."""
_ROOT = math.sqrt(2 * math.pi)


def improvement(excess: int | float, std: int | float) -> float:
    """How much is gained on average by whoever may still change a mind.

    Args:
        excess: by how much the other is expected to be worse, >= 0.
        std: of how far that expectation will move.

    Returns:
        The mean of max(0, Z - excess), Z normal with `std`.

    Raises:
        nothing.
    Source:
        expected improvement: Mockus et al. 1978; Jones et al. 1998, equation 15.
    """
    if std <= 0:
        return 0.0
    z = excess / std
    return std * (math.exp(-z * z / 2) / _ROOT - z * math.erfc(z / math.sqrt(2)) / 2)


def net_gain(
    *, excess: int | float, covariance: int | float, variance: int | float, scatter: int | float, horizon: int
) -> int | float:
    """What is gained by trying something that is expected to be worse.

    Args:
        excess: by how much it is expected to be worse than the best known, >= 0.
        covariance: of what is believed of it, and of what is believed of its excess.
        variance: of what is believed of it.
        scatter: variance of single answers.
        horizon: decisions for which what is learned will be of use, >= 2.

    Returns:
        What the best number of tries gains over the decisions that are left after them, less what they cost: below
        zero where it is not worth a try.

    Raises:
        nothing.
    Source:
        the knowledge gradient for bandits on line (Ryzhov, Powell & Frazier 2012), over batches of tries, as the value
        of information is not concave (Frazier & Powell 2010, KG(*)); correlated beliefs (Frazier et al. 2009).
    """
    return max(
        (horizon - tries) * improvement(excess, max(covariance, 0.0) / math.sqrt(variance + scatter / tries))
        - tries * excess
        for tries in BATCHES
        if tries < horizon
    )
