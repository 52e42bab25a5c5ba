"""Is what comes now worse than what came before? A sequential test that may be looked at while the figures come in.

Plain Python: the supervisor asks it, and the supervisor loads no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, inf
from typing import NamedTuple

LOOKS = (3, 5, 8, 12, 18, 27, 40, 60)
"""After so many figures the test is made. Few at first: a collapse should be found while it is young."""
LEVELS = 64
"""Figures are compared on so many equal steps between the lowest and the highest of them: whole numbers can be counted
exactly, and nothing that is a step or less apart is worth a roll-back."""


class Look(NamedTuple):
    """One look at the figures.

    Attributes:
        worse: the evidence suffices.
        p: how likely figures this low are if nothing has changed; None where no look was due, or nothing to compare.
        before, after: means; None of nothing.
        n: figures after.
    """

    worse: bool
    p: float | None
    before: float | None
    after: float | None
    n: int


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean.

    Args:
        values: any number of them.

    Returns:
        None of nothing.

    Raises:
        nothing.
    Source:
        the definition; unknown is None, never a number.
    """
    return sum(values) / len(values) if values else None


def p_lower(before: Sequence[float], after: Sequence[float]) -> float:
    """How likely a mean of `after` this low or lower is, were the two lists one list cut in two by chance.

    Args:
        before: (m,) figures, m >= 1.
        after: (n,) figures, n >= 1.

    Returns:
        The share, 0..1, of all choices of n out of the m + n figures with a sum, on LEVELS steps, of at most the one
        seen. 1 where all figures are equal, or further apart than can be counted.

    Raises:
        nothing.
    Source:
        Fisher's permutation test (Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses, section 3.2),
        one-sided. Exact whatever the distribution, as long as the order of the figures carries no meaning; counted by
        the recurrence of Pagano & Tritchler 1983 with all counts of one size packed in a single whole number.
    """
    low, high = min(*before, *after), max(*before, *after)
    step = (high - low) / LEVELS
    if not 0 < step < inf:
        return 1.0
    levels = [round((value - low) / step) for value in (*after, *before)]
    n, total = len(after), len(before) + len(after)
    wanted = sum(levels[:n])
    bits = comb(total, n).bit_length() + 1  # no count can carry into its neighbour
    within = (1 << bits * (wanted + 1)) - 1  # larger sums are never asked for
    counts = [1] + [0] * n
    for taken, level in enumerate(levels, 1):
        for size in range(min(taken, n), 0, -1):
            counts[size] += (counts[size - 1] << bits * level) & within
    packed, one, as_low = counts[n], (1 << bits) - 1, 0
    raw = packed.to_bytes(packed.bit_length() // 8 + 1, "little")
    for k in range(wanted + 1):
        first = bits * k
        piece = int.from_bytes(raw[first // 8 : (first + bits) // 8 + 1], "little")
        as_low += piece >> first % 8 & one
    return as_low / comb(total, n)


def look(before: Sequence[float], after: Sequence[float], false_alarm_frac: float) -> Look:
    """Look once more, after one more figure came in.

    Args:
        before: (m,) what to compare with; the same list at every look.
        after: (n,) all that came since, in the order of their coming.
        false_alarm_frac: how likely all looks together may cry out although nothing has changed.

    Returns:
        What was seen. A test is made at LOOKS only, so that waiting for a lucky moment gains nothing.

    Raises:
        nothing.
    Source:
        group-sequential testing (Pocock 1977) with the error spent evenly by Bonferroni's inequality, which needs no
        model of how the looks depend on one another.
    """
    p = p_lower(before, after) if len(after) in LOOKS and before else None
    worse = p is not None and p <= false_alarm_frac / len(LOOKS)
    return Look(worse, p, mean(before), mean(after), len(after))
