"""What early exits may be set to, what each setting brings and costs, and which one to take.

A setting (`values.Operating`) is thresholds and how long sure decisions are repeated. A frontier (`bundle.Frontier`) is
a list of settings with their measured return and cost. Here are the parts of making one that need no environment, and
the choice of a point on it, which the actor makes between two ticks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgert.bundle import Manifest, Point
from edgert.errors import UsageError
from edgert.nets import NetSpec, ops, without_exits
from edgert.policy.exits import confidence, taken
from edgert.values import Operating

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]

_COMBINATIONS = 4096  # of thresholds looked at in a search: a few seconds
_EXITS_COMBINED = 8  # with more exits than this all get the same quantile


class Setting(NamedTuple):
    """What is in force, and which point of the frontier it is, if it is one."""

    operating: Operating
    point: int | None


def full_ops(spec: NetSpec) -> int:
    """Operations of the same network without exits: the whole trunk and the last head.

    Args:
        spec: the network.

    Returns:
        The yardstick of `ops_frac`.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours: early heads are a cost of having exits, so they are left out here and counted there.
    """
    return ops(without_exits(spec))[0]


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats.

    Args:
        points: in any order.

    Returns:
        Those for which none is at most as dear and at least as good, from cheap to dear; of equals the first.

    Raises:
        UsageError: never.
    Source:
        Pareto dominance over (`ops_frac`, `return_frac`).
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.ops_frac, -each.return_frac)):
        if not found or point.return_frac > found[-1].return_frac:
            found.append(point)
    return found


def pick(points: Sequence[Point], max_ops_frac: float) -> int | None:
    """The best setting that is cheap enough.

    Args:
        points: of a frontier.
        max_ops_frac: mean cost of a tick as a share of the network without exits.

    Returns:
        Index of the point of the highest return within the limit, the cheaper of equals; None when there are no points.
        A limit below the cheapest point that decides at every tick is taken for that point's cost.

    Raises:
        UsageError: never.
    Source:
        ours: a tighter limit never picks a dearer point. Scarcity alone makes nobody act blindly for several ticks:
        repeating has to earn its place by its return.
    """
    if not points:
        return None
    every_tick = [point.ops_frac for point in points if point.repeat == 1]
    limit = max(max_ops_frac, min(every_tick or [point.ops_frac for point in points]))
    within = [i for i, point in enumerate(points) if point.ops_frac <= limit]
    return max(within, key=lambda i: (points[i].return_frac, -points[i].ops_frac))


def find(points: Sequence[Point], operating: Operating) -> int | None:
    """Which point a setting is.

    Args:
        points: of a frontier.
        operating: the setting.

    Returns:
        Index of the first point of exactly this setting, or None.

    Raises:
        UsageError: never.
    Source:
        ours: a setting that was not measured has no known return.
    """
    return next((i for i, point in enumerate(points) if point.operating == operating), None)


def settle(
    manifest: Manifest,
    *,
    pinned: Sequence[float] | None,
    wanted: Operating | None,
    point: int | None,
    max_ops_frac: float,
    advised: int | None = None,
) -> Setting:
    """Who has the say over the exits.

    The configuration pins them. Else it is the fleet's setting, or the budget's point, or the bundle's own, as long as
    the budget and the fleet allow what it costs.

    Args:
        manifest: of the acting bundle.
        pinned: thresholds of the configuration, or None.
        wanted: the fleet's setting, or
        point: the fleet's choice among the frontier's points; None both for the bundle's own.
        max_ops_frac: the smaller of what the budget and the fleet allow; 1 is no limit.
        advised: the budget's point, or None. It may be of another bundle's frontier for a moment, and is then passed
            over.

    Returns:
        The setting. Under a limit, one whose cost is known: with a frontier the one asked for if it is a point within,
        or else the budget's point, or the best one within. Without a frontier, and when pinned, the limit changes
        nothing here: the budget's deepest exit is what is left to save with.

    Raises:
        UsageError: thresholds of the wrong number or out of range, a wrong `repeat`, or no such point.
    Source:
        ours: an unmeasured setting is judged as too dear, as everything unknown is judged as the worst.
    """
    points = manifest.frontier.points if manifest.frontier else ()
    advice = points[advised] if advised is not None and 0 <= advised < len(points) else None
    if pinned is not None:
        asked = Operating(tuple(pinned))
    elif point is not None:
        if not 0 <= point < len(points):
            raise UsageError(f"point {point} of a frontier that has {len(points)}")
        asked = points[point].operating
    elif wanted is not None:
        asked = wanted
    else:
        asked = advice.operating if advice else manifest.operating
    if why := asked.fault(len(manifest.exits)):
        raise UsageError(why)
    found = find(points, asked)
    if pinned is None and max_ops_frac < 1 and (found is None or points[found].ops_frac > max_ops_frac):
        within = advised if advice and advice.ops_frac <= max_ops_frac else pick(points, max_ops_frac)
        if within is not None:
            return Setting(points[within].operating, within)
    return Setting(asked, found)


def normalised(returns: F64, full: F64, random: F64, rng: np.random.Generator, draws: int = 2000) -> list[float]:
    """The normalised return of a setting, with the interval that resampling gives.

    Args:
        returns: (n,) of its episodes.
        full: (m,) of the full network's.
        random: (k,) of the random policy's.
        rng: where chance comes from.
        draws: resamples.

    Returns:
        [estimate, low, high]: (J - J_random) / (J_full - J_random) and its 95 % interval.

    Raises:
        UsageError: the full network is not clearly better than the random policy, so there is nothing to share out.
    Source:
        percentile bootstrap (Efron & Tibshirani 1993, chapter 13) of a ratio of means; the three samples are drawn
        apart, since both references are estimates as well.
    """
    gain = float(full.mean() - random.mean())
    means = [sample[rng.integers(len(sample), size=(draws, len(sample)))].mean(1) for sample in (returns, full, random)]
    gains = means[1] - means[2]
    if gain <= 0 or (gains <= 0).mean() > 0.01:
        raise UsageError(
            f"the full network returns {full.mean():.3f} and a random policy {random.mean():.3f}: "
            "nothing can be normalised by the difference; train longer or play more episodes"
        )
    ratios = ((means[0] - means[2]) / np.where(gains > 0, gains, np.nan))[gains > 0]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return [float((returns.mean() - random.mean()) / gain), float(low), float(high)]


def candidates(
    heads: Mapping[int, F32], costs: Sequence[int], n: int, repeats: Sequence[int] = (2, 4)
) -> list[Operating]:
    """Settings worth measuring, so spread that their costs cover everything from the cheapest to the full network.

    Args:
        heads: exit -> (n, n_actions + 1) float32, every exit, on observations that policies like these meet.
        costs: per exit, operations of an answer there.
        n: how many settings of thresholds alone; a third as many again for each of `repeats`, once with all early
            decisions repeated and once with the surer half.
        repeats: how often sure decisions may be repeated.

    Returns:
        At most about `n * (1 + 2 * len(repeats) / 3)` settings, each once, from dear to cheap. Always there: the full
        network, and the first exit alone.

    Raises:
        UsageError: heads and costs of different length, or no observations.
    Source:
        ours: thresholds are quantiles of the confidences met; of all combinations those are kept that give away the
        least by the last exit's Q-values for what they cost. That is an estimate off-policy, good enough to choose
        what to measure and nothing else.
    """
    last = len(heads) - 1
    if len(costs) != len(heads) or not len(heads[last]):
        raise UsageError(f"{len(costs)} costs for {len(heads)} exits over {len(heads[last])} observations")
    if last == 0:
        return [Operating(())]
    q = heads[last][:, :-1]
    rows = np.arange(len(q))
    regret = np.stack([q.max(1) - q[rows, heads[k][:, :-1].argmax(1)] for k in range(last + 1)], 1)
    cost = np.asarray(costs, float)

    def judged(thresholds: tuple[float, ...]) -> tuple[float, float, tuple[float, ...]]:
        exit_of = taken(heads, thresholds)
        return float(cost[exit_of].mean()), float(regret[rows, exit_of].mean()), thresholds

    best: list[tuple[float, float, tuple[float, ...]]] = []
    for found in sorted(judged(thresholds) for thresholds in _combinations(heads)):
        if not best or found[1] < best[-1][1]:
            best.append(found)
    full, cheap = judged((1.0,) * last), judged((0.0,) * last)
    wanted = np.linspace(min(costs), full[0], max(2, n))
    near = [min(best, key=lambda each: abs(each[0] - at)) for at in wanted]
    plain = list(dict.fromkeys(each[2] for each in sorted([full, cheap, *near], reverse=True)))
    settings = [Operating(thresholds) for thresholds in plain]
    for thresholds in plain[1::3] if len(plain) > 3 else plain[1:]:
        exit_of = taken(heads, thresholds)
        early = [float(heads[k][i, -1]) for i, k in enumerate(exit_of) if k < last]
        if early:
            for repeat in repeats:
                settings += [Operating(thresholds, repeat, bar) for bar in (0.0, confidence(float(np.median(early))))]
    return list(dict.fromkeys(settings))


def _combinations(heads: Mapping[int, F32]) -> list[tuple[float, ...]]:
    """Thresholds from quantiles of each exit's confidences: every combination, as finely as is affordable."""
    last = len(heads) - 1
    together = last >= _EXITS_COMBINED
    steps = 41 if together else min(41, max(3, int(_COMBINATIONS ** (1 / last))))
    shares = np.linspace(0, 1, steps)[1:-1]
    levels = [
        [1.0, *(confidence(float(at)) for at in np.quantile(heads[k][:, -1], shares[::-1])), 0.0] for k in range(last)
    ]
    return list(zip(*levels, strict=True)) if together else list(itertools.product(*levels))


def as_point(
    operating: Operating, exit_ticks: Sequence[int], held_ticks: int, costs: Sequence[int], returns: F64, full_ops: int,
    interval: Sequence[float],
) -> Point:  # fmt: skip
    """Put one measurement into words.

    Args:
        operating: the setting.
        exit_ticks: ticks answered by each exit.
        held_ticks: ticks without inference.
        costs: per exit, operations of an answer there.
        returns: (n,) of the episodes.
        full_ops: what the network without exits costs.
        interval: of `normalised`.

    Returns:
        The point.

    Raises:
        UsageError: no tick was played.
    Source:
        ours: a tick that repeats an action costs no operations.
    """
    ticks = sum(exit_ticks) + held_ticks
    if not ticks:
        raise UsageError("a setting under which nothing was played cannot be a point of a frontier")
    spent = sum(n * cost for n, cost in zip(exit_ticks, costs, strict=True))
    return Point(
        thresholds=operating.thresholds,
        repeat=operating.repeat,
        hold_threshold=operating.hold_threshold,
        return_mean=float(returns.mean()),
        return_frac=interval[0],
        return_low=interval[1],
        return_high=interval[2],
        ops_frac=spent / ticks / full_ops,
        exit_share=tuple(n / ticks for n in exit_ticks),
        held_share=held_ticks / ticks,
        episodes=len(returns),
    )


def cost_s(point: Point, costs_s: Sequence[float]) -> float:
    """What a tick at this point takes on average.

    Args:
        point: of a frontier.
        costs_s: per exit, seconds from observation to answer, measured on the board in question.

    Returns:
        Seconds; ticks that repeat an action count as nothing.

    Raises:
        UsageError: not one cost an exit.
    Source:
        ours: shares belong to the network and its task, seconds to the board, so only the shares are stored.
    """
    if len(costs_s) != len(point.exit_share):
        raise UsageError(f"{len(costs_s)} costs for {len(point.exit_share)} exits")
    return sum(share * each_s for share, each_s in zip(point.exit_share, costs_s, strict=True))
