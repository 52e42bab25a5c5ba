from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.govern import cost
from edgert.govern.cost import Slowdown
from edgert.values import ActorReport, Choice, Prices

EXITS_S = (0.002, 0.004)
OWN = Choice(point=2, max_exit=1, ops_frac=1.0, shares=(0.0, 1.0), return_frac=1.0)
POINTS = (
    Choice(point=0, max_exit=1, ops_frac=0.3, shares=(0.5, 0.0), repeat=2, return_frac=0.3),
    Choice(point=1, max_exit=1, ops_frac=0.5, shares=(1.0, 0.0), return_frac=0.6),
    OWN,
    Choice(point=3, max_exit=1, ops_frac=1.01, shares=(0.0, 1.0), return_frac=0.9),
)
TABLE = Prices(exits_s=EXITS_S, own=OWN, points=POINTS, source="bundle")


def report(counts: tuple[int, int], took_s: tuple[float, float], pid: int = 1, spread: float = 0.0) -> ActorReport:
    squares = [s * s / max(1, n) * (1 + spread**2) for n, s in zip(counts, took_s, strict=True)]
    return ActorReport(
        pid=pid, ticks=sum(counts), missed=0, safe=0, exits=list(counts), latency_p50_s=0.0, latency_p99_s=0.0,
        latency_max_s=0.0, episodes=0, returns=[], faults={}, generation=0, acting=True, first_action_s=None, cpu_s=0.1,
        rss_bytes=0, exits_s=list(took_s), exits_s2=squares,
    )  # fmt: skip


def run(factors: list[float], table: Prices = TABLE, ratio: float = 1.0) -> Slowdown:
    """Reports of ten decisions an exit, so many times slower than the table, the second exit `ratio` times more."""
    slow, before, counts, took = Slowdown(), report((0, 0), (0.0, 0.0)), 0, [0.0, 0.0]
    for i, factor in enumerate(factors):
        counts += 10
        took = [took[0] + 10 * EXITS_S[0] * factor, took[1] + 10 * EXITS_S[1] * factor * ratio]
        after = report((counts, counts), (took[0], took[1]))
        squares = [before.exits_s2[k] + 10 * ((took[k] - before.exits_s[k]) / 10) ** 2 for k in range(2)]
        after = msgspec.structs.replace(after, exits_s2=squares)
        slow = cost.follow(slow, table, before, after, float(i))
        before = after
    return slow


def test_a_steady_slow_down_is_found_and_the_doubt_shrinks() -> None:
    slow = run([3.0] * 30)
    assert slow.mean == pytest.approx(3.0, rel=0.01)
    assert slow.var < Slowdown().var and slow.ratios == pytest.approx((1.0, 1.0), abs=0.01)


def test_it_follows_a_change_within_seconds() -> None:
    assert run([1.0] * 30 + [4.0] * 5).mean == pytest.approx(4.0, rel=0.15)
    assert run([4.0] * 30 + [1.0] * 5).mean == pytest.approx(1.0, rel=0.25)


def test_one_stall_is_not_a_slow_board() -> None:
    assert run([1.0] * 30 + [500.0]).mean <= 2.0


def test_a_table_that_was_only_counted_is_set_right_by_the_first_report() -> None:
    guessed = msgspec.structs.replace(TABLE, source="ops")
    assert run([40.0], guessed).mean == pytest.approx(40.0, rel=0.1)
    assert run([40.0]).mean <= 2.0


def test_an_exit_that_costs_more_than_its_table_is_told_from_a_slow_board() -> None:
    slow = run([1.0] * 300, ratio=2.0)
    first, second = (cost.exit_s(TABLE, slow, k)[0] for k in range(2))
    assert second / first == pytest.approx(4.0, rel=0.1)


def test_what_nobody_confirms_is_doubted_more_and_more() -> None:
    slow = run([1.0] * 30)
    later = cost.follow(slow, TABLE, None, None, 500.0)
    assert slow.var < later.var <= cost.PRIOR_VAR and later.mean == slow.mean


def test_reports_that_cannot_be_compared_say_nothing() -> None:
    a, b = report((10, 0), (0.1, 0.0)), report((20, 0), (0.3, 0.0), pid=2)
    for before, after in ((None, a), (a, b), (b, a), (a, a), (a, msgspec.structs.replace(b, pid=1, exits_s=[1.0]))):
        assert cost.follow(Slowdown(), TABLE, before, after, 1.0).mean == 1.0


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=10), st.floats(0.1, 20), st.floats(1, 10))
def test_a_slower_report_never_gives_a_smaller_factor(past: list[float], last: float, slower: float) -> None:
    kind, harsh = run([*past, last]), run([*past, last * slower])
    assert harsh.mean >= kind.mean - 1e-9
    assert harsh.mean + 3.1 * harsh.var**0.5 >= kind.mean + 3.1 * kind.var**0.5 - 1e-9, "nor one that is surer of less"


@given(st.floats(0.01, 100), st.floats(1e-6, 10), st.floats(1e-4, 1), st.floats(1, 10))
def test_slower_is_never_less_often_late(mean: float, var: float, deadline_s: float, slower: float) -> None:
    slow = Slowdown(mean=mean, var=var * mean**2, spread_frac=0.2)
    more = msgspec.structs.replace(slow, mean=mean * slower, var=slow.var * slower**2)
    for choice in POINTS:
        late, later = (cost.miss_frac(choice, TABLE, each, deadline_s) for each in (slow, more))
        assert 0 <= late <= later + 1e-12 <= 1 + 1e-12


def test_lateness_is_that_of_a_normal_latency() -> None:
    slow = Slowdown(mean=1.0, var=0.0, spread_frac=0.5)
    choice = POINTS[1]
    assert cost.miss_frac(choice, TABLE, slow, 0.002) == pytest.approx(0.5)
    assert cost.miss_frac(choice, TABLE, slow, 0.002 * (1 + 0.5 * 1.6449)) == pytest.approx(0.05, abs=1e-4)
    assert cost.miss_frac(POINTS[0], TABLE, slow, 0.0) == pytest.approx(0.5, abs=0.02), "held ticks are never late"


def test_the_ladder_holds_what_nothing_beats() -> None:
    assert [step.point for step in cost.ladder(TABLE, free=True)] == [0, 1, 2]
    cheap = msgspec.structs.replace(TABLE, own=POINTS[1])
    assert [step.point for step in cost.ladder(cheap, free=False)] == [0, 1]
    unmeasured = msgspec.structs.replace(TABLE, own=Choice(max_exit=1, ops_frac=1.0, shares=(0.0, 1.0)))
    assert [step.point for step in cost.ladder(unmeasured, free=False)] == [0, 1, None]
    bare = msgspec.structs.replace(TABLE, points=())
    assert [(step.max_exit, step.ops_frac) for step in cost.ladder(bare, free=True)] == [(0, 0.5), (1, 1.0)]
    assert cost.floor(cost.ladder(TABLE, free=True), TABLE) == 1 and cost.floor(POINTS[:1], TABLE) == 0


def test_to_hold_an_action_is_no_last_resort_where_it_was_measured_to_be_cheaper_and_better() -> None:
    """All that decides at every tick and is cheaper than the full network is worse than the setting that holds."""
    held = Choice(point=0, max_exit=1, ops_frac=0.1, shares=(0.5, 0.0), repeat=2, return_frac=0.9)
    poor = Choice(point=1, max_exit=1, ops_frac=0.2, shares=(1.0, 0.0), return_frac=0.8)
    full = Choice(point=2, max_exit=1, ops_frac=1.0, shares=(0.0, 1.0), return_frac=1.0)
    table = msgspec.structs.replace(TABLE, points=(held, poor, full), own=full)
    steps = cost.ladder(table, free=True)
    assert [step.point for step in steps] == [0, 2] and cost.floor(steps, table) == 0
    worse = msgspec.structs.replace(table, points=(msgspec.structs.replace(held, return_frac=0.7), poor, full))
    assert cost.floor(cost.ladder(worse, free=True), worse) == 1


def test_prices_measured_here_beat_those_of_the_bundle() -> None:
    assert cost.measured(TABLE, [0.1, 0.2]).exits_s == (0.1, 0.2)
    for wrong in ([], [0.1], [0.1, math.nan], [0.1, 0.0]):
        assert cost.measured(TABLE, wrong) is TABLE
    assert cost.unknown(3).source == "ops" and len(cost.unknown(0).exits_s) == 1


def test_work_counts_only_ticks_that_decide() -> None:
    assert cost.work_s(POINTS[0], TABLE) == pytest.approx(0.001)
