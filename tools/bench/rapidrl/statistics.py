"""What the played episodes say, with intervals.

Everything is worked out for many draws at once, axis 0 of every array: draw 0 is the data themselves, the others
resample training seeds, and within each the episodes, with replacement (percentile bootstrap, Efron & Tibshirani 1993,
chapter 13). So an interval of any figure, however it is made of others, is that of its draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.rapidrl.evaluation import Record

F64 = npt.NDArray[np.float64]

DRAWS = 2000
GRID = np.round(np.arange(0.2, 0.8001, 0.01), 2)
"""Where fronts are compared."""


class Sample:
    """All records of one task.

    Attributes:
        seeds: of training, those that have both references.
        names: of all policies that any of them has.
        draws: how many, the data themselves included.
    """

    def __init__(
        self, records: Mapping[int, Mapping[str, Record]], whole: int, rng: np.random.Generator, draws: int = DRAWS
    ) -> None:
        """Resample.

        Args:
            records: training seed -> name -> what came of it; must have `random` and `full-int8` to count.
            whole: operations of the network without exits.
            rng: where chance comes from.
            draws: resamples.
        """
        self.seeds = sorted(seed for seed, held in records.items() if {"random", "full-int8"} <= held.keys())
        self._records = [records[seed] for seed in self.seeds]
        self.names = list(dict.fromkeys(name for held in self._records for name in held))
        self._whole, self._rng, self.draws = whole, rng, draws + 1
        n = len(self.seeds)
        self._slots = rng.integers(n, size=(self.draws, n)) if n else np.zeros((self.draws, 0), int)
        self._slots[0] = np.arange(n)
        self._kept: dict[str, tuple[F64, F64]] = {}

    def of(self, name: str) -> list[Record]:
        """A policy's records, a seed each."""
        return [held[name] for held in self._records if name in held]

    def _means(self, name: str) -> tuple[F64, F64]:
        """Mean return and mean operations of a tick, (draws, seeds) each; NaN where a seed has no such policy."""
        if name in self._kept:
            return self._kept[name]
        returns, spent = (np.full(self._slots.shape, np.nan) for _ in range(2))
        for i, held in enumerate(self._records):
            record = held.get(name)
            if record is None:
                continue
            scores, ticks = np.asarray(record.returns), np.asarray(record.exit_ticks)
            work = (ticks @ np.asarray(record.costs)) / self._whole
            lengths = ticks.sum(1) + np.asarray(record.held_ticks)
            here = np.nonzero(self._slots == i)
            picked = self._rng.integers(len(scores), size=(len(here[0]), len(scores)))
            picked[here[0] == 0] = np.arange(len(scores))
            returns[here] = scores[picked].mean(1)
            spent[here] = work[picked].sum(1) / lengths[picked].sum(1)
        self._kept[name] = returns, spent
        return returns, spent

    def returns(self, name: str) -> F64:
        """(draws,) mean return over the seeds that have the policy."""
        return mean_known(self._means(name)[0], 1)

    def ops(self, name: str) -> F64:
        """(draws,) operations of a tick as a share of the network without exits."""
        return mean_known(self._means(name)[1], 1)

    def normalised(self, name: str) -> F64:
        """(draws,) (J - J_random) / (J_full - J_random), J over the seeds that have the policy.

        NaN where the full network is no better than chance: nothing can be shared out then.
        """
        own = self._means(name)[0]
        random, full = (
            mean_known(np.where(np.isnan(own), np.nan, self._means(other)[0]), 1) for other in ("random", "full-int8")
        )
        gain = full - random
        return np.asarray((mean_known(own, 1) - random) / np.where(gain > 0, gain, np.nan))

    def front(self, names: Sequence[str], *, with_full: bool = False) -> tuple[F64, F64]:
        """Operations and normalised returns of several policies, (draws, points) each, from cheap to dear.

        Args:
            names: of policies; those that no seed has are left out, and what is the same as another under another
                name.
            with_full: the network without exits belongs to it, at (1, 1).
        """
        known: list[str] = []
        for name in names:
            if name in self.names and all(self.of(name) != self.of(other) for other in known):
                known.append(name)
        x, y = [self.ops(name) for name in known], [self.normalised(name) for name in known]
        if with_full:
            x, y = [*x, np.ones(self.draws)], [*y, np.ones(self.draws)]
        if not x:
            return np.zeros((self.draws, 0)), np.zeros((self.draws, 0))
        return by_cost(np.stack(x, 1), np.stack(y, 1))


def mean_known(values: F64, axis: int) -> F64:
    """Mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    n = known.sum(axis)
    return np.asarray(np.where(known, values, 0).sum(axis) / np.where(n, n, np.nan))


def by_cost(x: F64, y: F64) -> tuple[F64, F64]:
    """Sort the points of every draw by what they cost."""
    order = np.argsort(x, axis=1, kind="stable")
    return np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)


def gains(ours: tuple[F64, F64], theirs: tuple[F64, F64], grid: F64 = GRID) -> tuple[F64, F64]:
    """How far one front lies above another.

    Both are straight lines between their measured points: what lies between two settings, or two networks, is had by
    taking one for some episodes and the other for the rest. Neither front is improved by leaving out a point that
    another beats: that choice would be made on the test episodes.

    Args:
        ours: (draws, points) of costs, from cheap to dear, and of returns.
        theirs: the same of the other.
        grid: costs at which they are compared; those below the cheapest point of either are left out.

    Returns:
        The costs that were compared, (m,), and (draws, m) differences.
    """
    if not ours[0].shape[1] or not theirs[0].shape[1]:
        return np.zeros(0), np.zeros((len(ours[0]), 0))
    lowest = max(ours[0][0, 0], theirs[0][0, 0])
    at = grid[grid >= lowest]
    lines = [np.stack([np.interp(at, *points) for points in zip(*front, strict=True)]) for front in (ours, theirs)]
    return at, lines[0] - lines[1]


def interval(draws: F64, digits: int = 4) -> dict[str, Any]:
    """The figure and its 95 % interval; None where nothing is known."""
    known = draws[1:][np.isfinite(draws[1:])]
    if not len(draws) or not np.isfinite(draws[0]) or not len(known):
        return {"value": None, "ci": None}
    return {
        "value": round(float(draws[0]), digits),
        "ci": [round(float(x), digits) for x in np.percentile(known, (2.5, 97.5))],
    }


def over_seeds(values: Sequence[float], drawn: Sequence[Sequence[float]], rng: np.random.Generator) -> F64:
    """(draws,) mean over seeds of a figure that was measured once a seed.

    Args:
        values: a seed each.
        drawn: what each could as well have been, some draws a seed.
        rng: where chance comes from.
    """
    seeds = rng.integers(len(values), size=(DRAWS, len(values)))
    own = np.asarray(drawn, float)
    picked = own[seeds, rng.integers(own.shape[1], size=seeds.shape)]
    return np.concatenate(([np.mean(values)], picked.mean(1)))
