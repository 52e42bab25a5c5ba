"""Counted misses: total, monotone, calm, and training before depth."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.govern import missed as module
from edgert.govern.missed import ALARM, KEEP_FRAC, RELAX_S, WARM_S, Missed, follow
from edgert.values import ActorReport

DWELL_S = 60.0
WARM = Missed(born_s=-1e3)


def report(ticks: int, missed: int, pid: int = 1) -> ActorReport:
    return ActorReport(
        pid=pid, ticks=ticks, missed=missed, safe=0, exits=[ticks], latency_p50_s=0.0, latency_p99_s=0.0,
        latency_max_s=0.0, episodes=0, returns=[], faults={}, generation=0, acting=True, first_action_s=None,
        cpu_s=0.0, rss_bytes=0,
    )  # fmt: skip


def step(missed: Missed, ticks: int, late: int, now_s: float, **changes: Any) -> Missed:
    """One report more, of so many ticks and misses."""
    told: dict[str, Any] = {"allowed_frac": 0.001, "used_frac": 1.0, "trains": True, "dwell_s": DWELL_S, **changes}
    return follow(missed, report(1000, 100), report(1000 + ticks, 100 + late), now_s=now_s, **told)


def lived(late: list[int], *, used_frac: float = 1.0, trains: bool = True) -> list[Missed]:
    """A report a second of 20 ticks each; the actor takes as much as it is left."""
    missed, found = WARM, []
    for second, count in enumerate(late):
        missed = step(missed, 20, count, float(second), used_frac=min(used_frac, missed.cap_frac), trains=trains)
        found.append(missed)
    return found


def test_training_gives_way_first_and_then_depth_a_share_at_a_time() -> None:
    found = lived([1] * 200)
    first = next(i for i, each in enumerate(found) if each.yields)
    second = next(i for i, each in enumerate(found) if each.cap_frac < 1)
    assert 3 <= first <= 6 and found[first].cap_frac == 1 and second == first + DWELL_S
    assert found[second].cap_frac == pytest.approx(KEEP_FRAC)
    assert not lived([1] * 200, trains=False)[-1].yields


def test_as_many_misses_as_are_allowed_take_nothing_away() -> None:
    assert lived(([1] + [0] * 49) * 40)[-1] == msgspec.structs.replace(WARM, excess=pytest.approx(0.0, abs=1.0))


def test_one_stall_takes_nothing_away() -> None:
    assert not any(each.yields or each.cap_frac < 1 for each in lived([0] * 50 + [20] + [0] * 50 + [20] + [0] * 50))


def test_a_step_comes_back_after_half_an_hour_and_training_last() -> None:
    missed = msgspec.structs.replace(WARM, cap_frac=KEEP_FRAC, yields=True, changed_s=0.0)
    assert step(missed, 20, 0, RELAX_S - 1) == missed
    back = step(missed, 20, 0, RELAX_S)
    assert (back.cap_frac, back.yields) == (1.0, True)
    assert step(back, 20, 0, 2 * RELAX_S) == msgspec.structs.replace(back, yields=False, changed_s=2 * RELAX_S)


def test_at_the_cheapest_setting_nothing_more_is_taken_away() -> None:
    missed = Missed(excess=ALARM, cap_frac=0.3, yields=True, changed_s=0.0, born_s=-1e3)
    assert step(missed, 20, 1, 1e3, used_frac=0.4).cap_frac == 0.3
    assert step(missed, 20, 1, 1e3, used_frac=0.2).cap_frac == pytest.approx(0.14)


def test_what_is_no_news_changes_nothing() -> None:
    missed = Missed(excess=2.0, born_s=-1e3)
    told: dict[str, Any] = {"allowed_frac": 0.001, "used_frac": 1.0, "trains": True, "dwell_s": DWELL_S, "now_s": 5.0}
    for before, after in (
        (None, None), (None, report(10, 5)), (report(10, 5), None), (report(10, 0), report(20, 9, pid=2)),
        (report(20, 5), report(10, 9)), (report(10, 5), report(20, 4)),
    ):  # fmt: skip
        assert follow(missed, before, after, **told).excess == 2.0


def test_while_an_actor_warms_up_misses_do_not_count() -> None:
    late = report(1000, 500)
    told: dict[str, Any] = {"allowed_frac": 0.001, "used_frac": 1.0, "trains": True, "dwell_s": DWELL_S}
    born = follow(WARM, report(5, 0), late, now_s=0.0, **told)
    assert born.yields, "it has run for long"
    born = follow(WARM, report(5, 0, pid=2), late, now_s=0.0, **told)
    assert (born.born_s, born.excess) == (0.0, 0.0)
    assert step(born, 1000, 500, WARM_S - 1) == born and step(born, 1000, 500, WARM_S).yields


def test_a_clock_that_is_set_back_makes_nothing_last() -> None:
    missed = Missed(yields=True, changed_s=1e9, born_s=1e9)
    back = step(missed, 20, 0, 10.0)
    assert (back.changed_s, back.born_s) == (10.0, 10.0)


STATES = st.builds(
    Missed,
    excess=st.floats(0, 2 * module.ALARM),
    cap_frac=st.floats(0.01, 1.0),
    yields=st.booleans(),
    changed_s=st.none() | st.floats(0, 1e5),
    born_s=st.none() | st.floats(0, 1e5),
)


@given(
    STATES,
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 100),
    st.floats(0.0, 1.5),
    st.booleans(),
    st.floats(0, 1e6),
    st.floats(1e-6, 1.0),
)
def test_more_misses_never_leave_more(
    missed: Missed, ticks: int, late: int, more: int, used_frac: float, trains: bool, now_s: float, allowed: float
) -> None:
    told: dict[str, Any] = {"used_frac": used_frac, "trains": trains, "allowed_frac": allowed}
    kind, harsh = (step(missed, ticks, each, now_s, **told) for each in (late, late + more))
    assert harsh.cap_frac <= kind.cap_frac and harsh.yields >= kind.yields
    for each in (kind, harsh):
        assert 0 <= each.excess <= 2 * ALARM and 0 <= each.cap_frac <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=400), st.floats(0.1, 1.4), st.booleans())
def test_nothing_changes_faster_than_the_dwell_and_it_turns_round_slower_still(
    late: list[int], used_frac: float, trains: bool
) -> None:
    found = lived(late, used_frac=used_frac, trains=trains)
    levels = [(each.cap_frac, -each.yields) for each in found]
    changes = [i for i, (a, b) in enumerate(pairwise(levels)) if a != b]
    assert all(b - a >= DWELL_S for a, b in pairwise(changes))
    assert levels == sorted(levels, reverse=True), "within the half hour nothing comes back"
