"""What a decision costs here: a table of prices, and a filter of how much slower than the table this board is now.

The table comes from the bundle, from `edgert policy bench`, or from counted operations. What the actor reports then
tells how far off it is: one factor for the board as a whole, which moves fast (heat, a busy neighbour), and one for
each exit against the others, which moves slowly (another cache, another kernel). Both carry their uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edgert.bundle import Cost, Manifest
from edgert.values import ActorReport, Choice, Prices

SETTLED_S = 60.0
"""How fast a slow-down is forgotten that nothing confirms or denies: its variance grows back to `PRIOR_VAR` at most."""
PRIOR_VAR = 0.09
"""Of the factor before anything was seen, of a measured table: a third either way (ours)."""
GUESSED_VAR = 1.0
"""The same of a table that was counted and not measured."""
GAIN, PROCESS, NOISE, FORGET = 0.5, 1e-3, 1e-3, 0.3
"""Of the Kalman filter: first gain, least process variance, least measurement variance, and how fast it adapts."""
RATIO_GAIN = 0.05
"""Weight of a report in the ratio of one exit to the others."""
SPREAD_FLOOR = 0.05
JUMP = 2.0
"""One report says at most that the board is so many times slower than it was: a stall is not a slow board, and what is
true is said again in the next second."""
FACTOR_MIN, FACTOR_MAX = 1e-3, 1e4
GUESS_CALL_S, GUESS_OPS_PER_S = 2e-4, 1e9
"""Of a small ARM core, where nobody measured: what any call costs, and arithmetic operations a second (ours)."""


class Slowdown(msgspec.Struct, frozen=True, kw_only=True):
    """How much slower than its table this board is.

    Attributes:
        mean, var: of the factor that all exits share.
        process: what the filter adds to the variance at each report.
        gain: of the last report.
        ratios: of each exit against that factor; of exits nobody takes they stay where they were.
        spread_frac: how far single decisions lie from the mean, as one standard deviation.
        reports: taken in.
        at_s: of the last one.
    """

    mean: float = 1.0
    var: float = PRIOR_VAR
    process: float = PROCESS
    gain: float = GAIN
    ratios: tuple[float, ...] = ()
    spread_frac: float = 0.3
    reports: int = 0
    at_s: float | None = None


def prices(manifest: Manifest, board: str = "", cpu: str = "") -> Prices:
    """What a bundle says of its own cost on a board.

    Args:
        manifest: of the acting bundle.
        board: model of the device tree, or "linux".
        cpu: as /proc/cpuinfo names it; empty when not known.

    Returns:
        Seconds measured on a board and CPU of these names, the fastest runtime's where several were, else on such a
        board; else a guess from counted operations, which only their ratios make worth anything.

    Raises:
        nothing.
    Source:
        ours: `Slowdown` corrects a wrong level in seconds, so a guess must only be right in proportion.
    """
    here = [cost for cost in manifest.costs if cost.board == board and (not cpu or cost.cpu == cpu)]
    # "linux" is every board that does not say what it is: without its CPU's name that is no match.
    here = here or [cost for cost in manifest.costs if cost.board == board != "linux"]
    exits_s, source, spread_frac = tuple(_guess_s(each.ops or 2 * each.macs) for each in manifest.exits), "ops", 0.3
    if here:
        best = min(here, key=lambda cost: sum(each.p50_s for each in cost.exits))
        if all(each.p50_s > 0 for each in best.exits):
            exits_s, source, spread_frac = tuple(each.p50_s for each in best.exits), "bundle", _spread(best)
    last = len(manifest.exits) - 1
    points = manifest.frontier.points if manifest.frontier else ()
    choices = tuple(
        Choice(
            point=i,
            max_exit=last,
            ops_frac=point.ops_frac,
            shares=point.exit_share,
            repeat=point.repeat,
            return_frac=point.return_frac,
        )
        for i, point in enumerate(points)
    )
    found = next((i for i, point in enumerate(points) if point.operating == manifest.operating), None)
    deepest = Choice(max_exit=last, ops_frac=1.0, shares=(0.0,) * last + (1.0,), repeat=manifest.repeat)
    own = deepest if found is None else choices[found]
    return Prices(
        rate_hz=manifest.control_rate_hz,
        exits_s=exits_s,
        spread_frac=spread_frac,
        source="bundle" if source == "bundle" else "ops",
        own=own,
        points=choices,
    )


def unknown(n_exits: int, rate_hz: float = 20.0) -> Prices:
    """Prices of a network of which only the number of exits is known.

    Args:
        n_exits: at least 1.
        rate_hz: decisions a second.

    Returns:
        As if each exit cost as much again as the one before.

    Raises:
        nothing.
    Source:
        ours: something to measure against until a manifest was read.
    """
    n = max(1, n_exits)
    own = Choice(max_exit=n - 1, ops_frac=1.0, shares=(0.0,) * (n - 1) + (1.0,))
    return Prices(rate_hz=rate_hz, exits_s=tuple(_guess_s(1e6 * (k + 1)) for k in range(n)), own=own)


def _guess_s(ops: float) -> float:
    return GUESS_CALL_S + ops / GUESS_OPS_PER_S


def _spread(cost: Cost) -> float:
    """One standard deviation, from the 99th percentile as if answers were normally distributed."""
    return max(SPREAD_FLOOR, *(min(2.0, (each.p99_s / each.p50_s - 1.0) / 2.326) for each in cost.exits))


def measured(table: Prices, costs_s: Sequence[float]) -> Prices:
    """Prices with what `edgert policy bench` measured on this very board.

    Args:
        table: of the acting bundle.
        costs_s: median seconds an exit, as the actor reports them; anything else than one an exit changes nothing.

    Returns:
        The better table.

    Raises:
        nothing.
    Source:
        ours: measured here beats measured on one like it.
    """
    if len(costs_s) != len(table.exits_s) or not all(0 < each < math.inf for each in costs_s):
        return table
    return msgspec.structs.replace(table, exits_s=tuple(costs_s), source="bench")


def ladder(table: Prices, *, free: bool) -> tuple[Choice, ...]:
    """What can be chosen, so that each costs more and brings more than the one before.

    Args:
        table: of the acting network.
        free: the whole frontier is open, as goals were stated; else the bundle's own setting is the dearest.

    Returns:
        At least one choice, from cheap to dear. Without a frontier, the exits it may reach, one after the other.

    Raises:
        nothing.
    Source:
        Pareto dominance over (`ops_frac`, `return_frac`), as `policy.frontier.pareto`. A ladder, because whatever is
        scarce then takes away from its top, and two scarcities never choose something dearer than one of them.
    """
    own, last = table.own, len(table.exits_s) - 1
    if not table.points:
        # What it costs to reach exit k is known, what share of the ticks does is not: taken as all.
        return tuple(
            Choice(
                max_exit=k,
                ops_frac=min(1.0, table.exits_s[k] / table.exits_s[-1]),
                shares=tuple(float(k == j) for j in range(last + 1)),
                repeat=own.repeat,
            )
            for k in range(last + 1)
        )
    steps: list[Choice] = []
    for choice in sorted(table.points, key=lambda each: (each.ops_frac, -(each.return_frac or 0.0))):
        better = not steps or (choice.return_frac or 0.0) > (steps[-1].return_frac or 0.0)
        if better and (free or choice.ops_frac < own.ops_frac):
            steps.append(choice)
    if not free:
        steps = [each for each in steps if (each.return_frac or 0.0) < (own.return_frac or math.inf)]
        steps.append(own)
    return tuple(steps)


def floor(steps: Sequence[Choice], table: Prices) -> int:
    """The step below which scarcity alone pushes nobody.

    Args:
        steps: of `ladder`.
        table: of the acting network.

    Returns:
        Index of the cheapest that decides at every tick, or brings at least as much as the cheapest that does; of the
        cheapest where none does.

    Raises:
        nothing.
    Source:
        as `policy.frontier.pick`: to act blindly for several ticks has to be wanted, unless it was measured to be both
        cheaper and better than to look at each.
    """
    looking = [each for each in table.points if each.repeat == 1]
    least = min(looking, key=lambda each: each.ops_frac).return_frac if looking else None

    def fits(step: Choice) -> bool:
        return step.repeat == 1 or (least is not None and step.return_frac is not None and step.return_frac >= least)

    return next((i for i, step in enumerate(steps) if fits(step)), 0)


def follow(
    slow: Slowdown, table: Prices, before: ActorReport | None, after: ActorReport | None, now_s: float
) -> Slowdown:
    """Take a report of the actor into account.

    Args:
        slow: what was believed.
        table: of the network that acted in between.
        before: the report before, or None.
        after: this one; the same one again changes nothing but the doubt.
        now_s: monotonic time.

    Returns:
        What is believed now. Slower decisions never give a smaller factor.

    Raises:
        nothing: what is not finite, or counts backwards, is no measurement.
    Source:
        Wan et al. 2020, ALERT (USENIX ATC), equation 7 and section 3.3: latency = table * xi, xi normal, its mean by a
        Kalman filter whose process noise follows the innovations (their Q0 0.1, R 0.001 and K0 0.5 are for one answer;
        a report holds a second of them). The split into a common factor and one for each exit is ours: what slows a
        board slows all exits, also those that nobody takes.
    """
    n = len(table.exits_s)
    ratios = slow.ratios if len(slow.ratios) == n else (1.0,) * n
    seen = _answers(before, after, n)
    at_s = now_s if slow.at_s is None or not now_s < slow.at_s else slow.at_s
    if not seen:
        elapsed_s = 0.0 if slow.at_s is None else at_s - slow.at_s
        var = min(max(slow.var, PRIOR_VAR), slow.var + PRIOR_VAR * max(0.0, elapsed_s) / SETTLED_S)
        return msgspec.structs.replace(slow, var=var, ratios=ratios, at_s=at_s if slow.reports else None)
    taken = sum(count for _, count, _, _ in seen)
    observed = sum(count * total_s / (count * table.exits_s[k] * ratios[k]) for k, count, total_s, _ in seen) / taken
    observed = min(max(observed, FACTOR_MIN), FACTOR_MAX)
    first = not slow.reports
    # A table that nobody measured is only right in proportion: the first report sets its level.
    capped = observed if first and table.source == "ops" else min(observed, JUMP * slow.mean)
    spread_frac = _follow_spread(slow, seen, taken)
    innovation = capped - slow.mean
    process = max(PROCESS * slow.mean**2, FORGET * slow.process + (1 - FORGET) * (slow.gain * innovation) ** 2)
    noise = max(NOISE, spread_frac**2 / taken) * slow.mean**2
    prior_var = GUESSED_VAR if first and table.source == "ops" else slow.var
    gain = (prior_var + process) / (prior_var + process + noise)
    mean = min(max(slow.mean + gain * innovation, FACTOR_MIN), FACTOR_MAX)
    changed = list(ratios)
    if len(seen) > 1:  # of one exit alone nobody can say what is the board's and what the exit's
        for k, count, total_s, _ in seen:
            found = min(max(total_s / (count * table.exits_s[k] * observed), 0.1), 10.0)
            weight = RATIO_GAIN * min(1.0, count / 10)
            changed[k] = (1 - weight) * ratios[k] + weight * found
    return Slowdown(
        mean=mean,
        var=max(1e-9, (1 - gain) * (prior_var + process)),
        process=process,
        gain=gain,
        ratios=tuple(changed),
        spread_frac=spread_frac,
        reports=slow.reports + 1,
        at_s=at_s,
    )


def _answers(
    before: ActorReport | None, after: ActorReport | None, n_exits: int
) -> list[tuple[int, int, float, float]]:
    """(exit, answers, their seconds, sum of squares) of every exit that answered between two reports."""
    if after is None or before is None or before.pid != after.pid or before.network != after.network:
        return []
    lists = (before.exits, after.exits, before.exits_s, after.exits_s, before.exits_s2, after.exits_s2)
    if any(len(each) != n_exits for each in lists):
        return []
    found = []
    for k in range(n_exits):
        count = after.exits[k] - before.exits[k]
        total_s, squares = after.exits_s[k] - before.exits_s[k], after.exits_s2[k] - before.exits_s2[k]
        if count > 0 and 0 < total_s < math.inf and 0 <= squares < math.inf:
            found.append((k, count, total_s, squares))
    return found


def _follow_spread(slow: Slowdown, seen: list[tuple[int, int, float, float]], taken: int) -> float:
    """The relative deviation of single decisions, within each exit."""
    parts = []
    for _, count, total_s, squares in seen:
        mean_s = total_s / count
        variance = squares / count - mean_s * mean_s
        if count > 1:
            parts.append((count, max(0.0, variance) / (mean_s * mean_s) * count / (count - 1)))
    if not parts:
        return slow.spread_frac
    here = sum(count * var for count, var in parts) / sum(count for count, _ in parts)
    weight = min(0.5, taken / 200)
    return max(SPREAD_FLOOR, math.sqrt((1 - weight) * slow.spread_frac**2 + weight * min(here, 100.0)))


def exit_s(table: Prices, slow: Slowdown, k: int) -> tuple[float, float]:
    """What an answer of one exit takes on this board now.

    Args:
        table: of the acting network.
        slow: the board.
        k: the exit.

    Returns:
        Mean and standard deviation of single answers, seconds; the deviation holds what is not known of the mean.

    Raises:
        IndexError: no such exit.
    Source:
        product of independent factors: relative variances add up, to first order.
    """
    ratio = slow.ratios[k] if len(slow.ratios) == len(table.exits_s) else 1.0
    mean_s = table.exits_s[k] * slow.mean * ratio
    known = slow.var / slow.mean**2
    return mean_s, mean_s * math.sqrt(slow.spread_frac**2 + known)


def late_fracs(table: Prices, slow: Slowdown, deadline_s: float) -> tuple[float, ...]:
    """How many answers of each exit would come too late.

    Args:
        table: of the acting network.
        slow: the board.
        deadline_s: from observation to answer.

    Returns:
        Share of its answers, one entry an exit. Slower is never less.

    Raises:
        nothing.
    Source:
        Wan et al. 2020, ALERT, equation 6: P(latency > deadline) of a normal latency.
    """
    found = []
    for k in range(len(table.exits_s)):
        mean_s, std_s = exit_s(table, slow, k)
        found.append(_beyond((deadline_s - mean_s) / std_s if std_s > 0 else math.copysign(math.inf, deadline_s)))
    return tuple(found)


def mixed(choice: Choice, late: Sequence[float]) -> float:
    """How many ticks of a choice would be answered too late, by how late its exits are.

    Args:
        choice: of `ladder`.
        late: of `late_fracs`.

    Returns:
        Share of the ticks, 0..1; those that repeat an action are never late.

    Raises:
        nothing.
    Source:
        the mixture over the exits that answer.
    """
    return min(1.0, sum(share * each for share, each in zip(choice.shares, late, strict=False)))


def miss_frac(choice: Choice, table: Prices, slow: Slowdown, deadline_s: float) -> float:
    """How many ticks of a choice would be answered too late.

    Args:
        choice: of `ladder`.
        table: of the acting network.
        slow: the board.
        deadline_s: from observation to answer.

    Returns:
        As `mixed`.

    Raises:
        nothing.
    Source:
        `late_fracs` and `mixed`.
    """
    return mixed(choice, late_fracs(table, slow, deadline_s))


def _beyond(sigmas: float) -> float:
    return 0.5 * math.erfc(sigmas / math.sqrt(2.0))


def work_s(choice: Choice, table: Prices) -> float:
    """Seconds that the table says a tick of a choice takes on average.

    Args:
        choice: of `ladder`.
        table: of the acting network.

    Returns:
        Seconds; ticks that repeat an action take none.

    Raises:
        nothing.
    Source:
        as `policy.frontier.cost_s`.
    """
    return sum(share * each_s for share, each_s in zip(choice.shares, table.exits_s, strict=False))
