"""The one decision: total, monotone, calm, and each of its reasons by name."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edgert.config import Goals, Govern
from edgert.govern import decide as module
from edgert.govern.decide import SHARES, decide
from edgert.govern.energy import Supply
from edgert.govern.reasons import REASONS
from edgert.govern.state import Look, Setup, State
from edgert.values import (
    ActorReport,
    Budget,
    Choice,
    Clock,
    Prices,
    Reading,
    Readings,
    Throttle,
    TrainerReport,
)

EXITS_S = (0.005, 0.010, 0.020)
POINTS = tuple(
    Choice(point=i, max_exit=2, ops_frac=ops, shares=shares, repeat=repeat, return_frac=value)
    for i, (ops, shares, repeat, value) in enumerate(
        [
            (0.15, (0.5, 0.0, 0.0), 2, 0.2),
            (0.25, (1.0, 0.0, 0.0), 1, 0.5),
            (0.45, (0.6, 0.4, 0.0), 1, 0.7),
            (0.65, (0.4, 0.2, 0.4), 1, 0.9),
            (0.85, (0.2, 0.1, 0.7), 1, 0.85),  # dearer and worse: never chosen
            (1.0, (0.0, 0.0, 1.0), 1, 1.0),
        ]
    )
)
PRICES = Prices(rate_hz=20.0, exits_s=EXITS_S, spread_frac=0.1, source="bundle", own=POINTS[-1], points=POINTS)
BARE = msgspec.structs.replace(PRICES, points=(), own=Choice(max_exit=2, ops_frac=1.0, shares=(0.0, 0.0, 1.0)))
SETUP = Setup(
    govern=Govern(smooth_s=0.0),
    prices=PRICES,
    train_steps_hz=20.0,
    teacher_bytes_per_s=4000.0,
    supply=Supply(cores=4, idle_w=2.0, busy_w=4.0, capacity_j=36_000.0),
)
FINE: dict[str, Any] = {
    "load_frac": Reading(0.1),
    "temp_c": Reading(40.0),
    "link_rtt_s": Reading(0.05),
    "battery_frac": Reading(0.9),
    "has_battery": True,
    "memory_available_bytes": Reading(1e9),
}
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # to make one of these looks smaller takes minutes
NOON = Clock(738_000, 12 * 3600.0)


def setup(**changes: Any) -> Setup:
    """The usual one, with goals and other things changed."""
    goals = {name: changes.pop(name) for name in list(changes) if name in Goals.__struct_fields__}
    return msgspec.structs.replace(SETUP, goals=msgspec.structs.replace(SETUP.goals, **goals), **changes)


def report(
    *counts: int, pid: int = 7, factor: float = 1.0, cpu_s: float = 0.0, frontier: bool = True, **more: Any
) -> ActorReport:
    """An actor that has answered so often at each exit, so many times slower than the table."""
    took = [count * each_s * factor for count, each_s in zip(counts, EXITS_S, strict=True)]
    squares = [count * (each_s * factor) ** 2 * 1.01 for count, each_s in zip(counts, EXITS_S, strict=True)]
    values: dict[str, Any] = {
        "pid": pid, "ticks": sum(counts), "missed": 0, "safe": 0, "exits": list(counts), "latency_p50_s": 0.01,
        "latency_p99_s": 0.02, "latency_max_s": 0.02, "episodes": 0, "returns": [], "faults": {}, "generation": 0,
        "acting": True, "first_action_s": 1.0, "cpu_s": cpu_s or sum(took), "rss_bytes": 50 << 20,
        "has_frontier": frontier, "exits_s": took, "exits_s2": squares,
    }  # fmt: skip
    return ActorReport(**{**values, **more})


def trainer(steps: int, cpu_s: float, rss_bytes: int = 100 << 20) -> TrainerReport:
    return TrainerReport(
        pid=8, steps=steps, loss=None, transitions=0, asked=0, answered=0, joined=0, candidates=0, accepted=0,
        generation=0, checkpoint=0, faults={}, cpu_s=cpu_s, rss_bytes=rss_bytes,
    )  # fmt: skip


def after(*looks: Look, of: Setup = SETUP, every_s: float = 1.0) -> tuple[State, Budget]:
    state, budget = State(), None
    for i, look in enumerate(looks):
        state, budget = decide(state, of, look, i * every_s)
    assert budget is not None
    return state, budget


def look(**changes: Any) -> Look:
    readings = {name: changes.pop(name) for name in list(changes) if name in Readings.__struct_fields__}
    return Look(**{"clock": NOON, "readings": Readings(**{**FINE, **readings}), **changes})


def test_where_nothing_is_scarce_and_nothing_was_stated_the_bundle_acts_as_it_asks_to() -> None:
    state, budget = after(look())
    assert (budget.max_exit, budget.point, budget.max_ops_frac) == (2, None, 1.0)
    assert (budget.train_steps_hz, budget.teacher_bytes_per_s, budget.accept_jobs) == (20.0, 4000.0, True)
    assert set(budget.why.values()) == {"ok"}
    assert set(state.verdicts) == {"deadline"} and state.verdicts["deadline"].met is None


SLOW = [look(actor=report(20 * i, 20 * i, 20 * i, factor=1.95)) for i in range(1, 40)]
LAST = report(780, 780, 780, factor=1.95)
HOGGED = [look(actor=report(20 * i, 20 * i, 20 * i, factor=8.0)) for i in range(1, 40)]


@pytest.mark.parametrize(
    ("of", "looks", "name", "why"),
    [
        (SETUP, [look(temp_c=Reading(80.0))], "max_ops_frac", "temp-high"),
        (SETUP, [look(temp_c=Reading(90.0))], "max_exit", "temp-critical"),
        (SETUP, [look(temp_c=Reading(72.0), trip_c=Reading(70.0))], "train_steps_hz", "temp-high"),
        (SETUP, [look(battery_frac=Reading(0.1))], "train_steps_hz", "battery-low"),
        (SETUP, [look(battery_frac=Reading(0.01))], "train_steps_hz", "battery-critical"),
        (SETUP, [look(battery_frac=Reading(None))], "max_exit", "battery-unknown"),
        (SETUP, [look(load_frac=Reading(1.0))], "train_steps_hz", "cpu-high"),
        (SETUP, [look(), *[look(load_frac=Reading(None))] * 20], "train_steps_hz", "cpu-unknown"),
        (SETUP, [look(), *[look(temp_c=Reading(None))] * 20], "train_steps_hz", "temp-unknown"),
        (SETUP, [look(memory_pressure_frac=Reading(0.2))], "train_steps_hz", "memory-pressure"),
        (SETUP, [look(memory_available_bytes=Reading(1e6))], "train_steps_hz", "memory-pressure"),
        (
            SETUP,
            [look(memory_pressure_frac=Reading(0.0)), *[look(memory_pressure_frac=Reading(None))] * 20],
            "train_steps_hz",
            "memory-unknown",
        ),
        (setup(memory_max_bytes=120 << 20), [look(actor=report(1, 1, 1), trainer=trainer(1, 0.1))], "train_steps_hz",
         "goal-memory"),
        (SETUP, [look(throttle=Throttle(("under-voltage",)))], "train_steps_hz", "under-voltage"),
        (SETUP, [look(throttle=Throttle(("throttled",)))], "train_steps_hz", "throttled"),
        (SETUP, [look(link_up=False)], "teacher_bytes_per_s", "link-down"),
        (SETUP, [look(link_rtt_s=Reading(5.0))], "teacher_bytes_per_s", "link-slow"),
        (SETUP, [look(link_loss_frac=Reading(0.3))], "teacher_bytes_per_s", "link-lossy"),
        (SETUP, [look(link_bytes_per_s=Reading(1000.0))], "teacher_bytes_per_s", "link-capacity"),
        (SETUP, [look(metered=True)], "teacher_bytes_per_s", "link-metered"),
        (SETUP, SLOW, "point", "deadline"),
        (SETUP, SLOW, "train_steps_hz", "deadline"),
        (setup(max_power_w=2.8), [look()], "point", "goal-power"),
        (setup(last_until="15:00"), [look()], "point", "goal-until"),
        (setup(last_until="23:59", max_power_w=900.0), [look()], "point", "until-infeasible"),
        (setup(max_power_w=0.5), [look()], "train_steps_hz", "goal-power-unmet"),
        (setup(least_energy=True, min_return_frac=0.8), [look()], "point", "goal-least-energy"),
        (setup(bytes_per_day=10_000_000), [look(carried_bytes=0)], "teacher_bytes_per_s", "goal-bytes"),
        (setup(bytes_per_day=10_000_000), [look(carried_bytes=0)], "telemetry_s", "goal-bytes"),
    ],
)  # fmt: skip
def test_each_scarcity_has_its_name(of: Setup, looks: list[Look], name: str, why: str) -> None:
    _, budget = after(*looks, of=of)
    assert budget.why[name] == why
    least = {
        "max_exit": budget.max_exit < 2,
        "train_steps_hz": budget.train_steps_hz < 20,
        "teacher_bytes_per_s": budget.teacher_bytes_per_s < 4000,
        "max_ops_frac": budget.max_ops_frac < 1,
        "point": budget.max_ops_frac < 1,
        "telemetry_s": budget.telemetry_s > 1,
    }
    assert least[name], "a reason without a price"
    assert set(budget.why.values()) <= REASONS.keys()


@pytest.mark.parametrize(
    ("of", "looks", "goal", "met", "why"),
    [
        (SETUP, SLOW, "deadline", True, ""),
        (setup(deadline_s=0.002), SLOW, "deadline", False, "goal-deadline-unmet"),
        (setup(min_return_frac=0.8), [look()], "return", True, ""),
        (setup(min_return_frac=1.2), [look()], "return", False, "goal-return-unmet"),
        (setup(min_return_frac=0.8), [look(temp_c=Reading(90.0))], "return", False, "goal-return-unmet"),
        (setup(min_return_frac=0.8, prices=BARE), [look()], "return", None, "goal-return-unknown"),
        (setup(max_power_w=4.0), [look()], "power", True, ""),
        (setup(max_power_w=0.5), [look()], "power", False, "goal-power-unmet"),
        (setup(last_until="13:00"), [look()], "until", True, ""),
        (setup(last_until="1 h"), [look()], "until", True, ""),
        (setup(last_until="0 h"), [look()], "until", True, ""),
        (setup(last_until="11:59"), [look()], "until", False, "until-infeasible"),
        (setup(last_until="13:00"), [look(has_battery=False)], "until", None, "no-battery"),
        (setup(last_until="11:59"), [look(external_power=True)], "until", None, "on-mains"),
        (setup(last_until="13:00"), [look(clock=None)], "until", None, "clock-unknown"),
        (setup(memory_max_bytes=1), [look(actor=report(1, 1, 1))], "memory", False, "goal-memory-unmet"),
        (setup(bytes_per_day=100), [look(carried_bytes=101)], "bytes", False, "goal-bytes-unmet"),
        (setup(bytes_per_day=10**9), [look(carried_bytes=101)], "bytes", True, ""),
    ],
)
def test_each_goal_has_its_verdict(of: Setup, looks: list[Look], goal: str, met: bool | None, why: str) -> None:
    state, _ = after(*looks, of=of)
    verdict = state.verdicts[goal]
    assert (verdict.met, verdict.why) == (met, why), verdict
    assert (why or "ok") in REASONS and verdict.wanted and verdict.found


def test_what_gives_way_first_is_what_was_named_last() -> None:
    """The energy that is left is given out strictly by priority."""
    supply = Supply(cores=1, idle_w=2.0, busy_w=4.0)
    counted = [
        look(actor=report(0, 0, 1200 * i, cpu_s=24.0 * i), trainer=trainer(600 * i, 24.0 * i), load_frac=Reading(0.8))
        for i in range(1, 90)
    ]
    found = {}
    for cap_w in (2.6, 3.4, 3.8, 4.2, 9.0):
        for order in (("return", "training", "link"), ("training", "return", "link")):
            of = setup(max_power_w=cap_w, priorities=order, supply=supply)
            looks = [msgspec.structs.replace(each, readings=msgspec.structs.replace(
                each.readings, power_w=Reading(2.0 + 4.0 * 0.8))) for each in counted]  # fmt: skip
            _, budget = after(*looks, of=of, every_s=60.0)
            found[cap_w, order[0]] = (budget.max_ops_frac, budget.train_steps_hz)
    caps = sorted({cap for cap, _ in found})
    assert all(found[cap, "return"][1] == 0 or found[cap, "return"][0] == 1 for cap in caps)
    assert all(found[cap, "training"][0] <= 0.25 or found[cap, "training"][1] == 20 for cap in caps)
    assert found[caps[-1], "return"] == found[caps[-1], "training"] == (1.0, 20.0)
    assert found[3.8, "return"][0] > found[3.8, "training"][0]
    assert found[4.2, "training"][1] > found[4.2, "return"][1] or found[3.8, "training"][1] > found[3.8, "return"][1]


def test_with_goals_the_best_point_is_sought_and_without_the_bundles_own_is_the_dearest() -> None:
    modest = msgspec.structs.replace(PRICES, own=POINTS[2])
    assert after(look(), of=setup(prices=modest))[1].point is None
    assert after(look(), of=setup(prices=modest, max_power_w=50.0))[1].point == 5
    assert after(look(temp_c=Reading(82.0)), of=setup(prices=modest))[1].point == 1
    assert after(look(), of=setup(prices=modest, min_return_frac=0.8, least_energy=True))[1].point == 3


def test_a_point_that_repeats_actions_has_to_be_wanted() -> None:
    """No heat, and no deadline, makes it decide blindly; a battery that would not last may, where the return allows."""
    assert after(look(temp_c=Reading(84.9)))[1].point == 1
    assert after(*HOGGED)[1].point == 1
    cheap = setup(last_until="20:00", min_return_frac=0.1)
    assert after(look(battery_frac=Reading(0.5)), of=cheap)[1].point == 0
    assert after(look(battery_frac=Reading(0.5)), of=setup(last_until="20:00"))[1].point == 1


def test_without_a_frontier_exits_are_what_there_is_to_give_up() -> None:
    bare = setup(prices=BARE)
    looks = [msgspec.structs.replace(each, actor=report(*each.actor.exits, factor=1.95, frontier=False))
             for each in SLOW if each.actor]  # fmt: skip
    _, budget = after(*looks, of=bare)
    assert (budget.max_exit, budget.point, budget.why["max_exit"]) == (1, None, "deadline")
    _, pinned = after(*looks)
    assert (pinned.max_exit, pinned.point) == (1, None), "pinned exits: the actor says that it has no choice"


def test_infeasible_is_said_at_once_and_not_taken_back_for_a_trifle() -> None:
    of = setup(last_until="15:00")
    state, _ = after(look(battery_frac=Reading(0.9)), of=of)
    assert state.verdicts["until"].met is True
    state, budget = decide(state, of, look(battery_frac=Reading(0.89)), 1000.0)
    now_s = 1000.0
    while state.verdicts["until"].met is not False:
        charge = (state.estimate.battery_frac.value or 0.0) - 0.04
        assert charge > 0.1
        now_s += 1000.0
        state, budget = decide(state, of, look(battery_frac=Reading(charge)), now_s)
    assert (budget.point, budget.train_steps_hz, budget.teacher_bytes_per_s) == (1, 0.0, 0.0)
    state, _ = decide(state, of, look(battery_frac=Reading(charge + 0.011)), now_s + 1000.0)
    assert state.verdicts["until"].met is False
    for minute in range(60):
        state, _ = decide(state, of, look(battery_frac=Reading(charge + 0.3)), now_s + 2000.0 + 60.0 * minute)
    assert state.verdicts["until"].met is True


def test_a_gauge_that_is_silent_or_lies_is_no_empty_battery() -> None:
    """It lasts easily; then its gauge says nothing, and then thousandths, as one that lost its unit."""
    of = setup(last_until="14:00")
    looks = [look(battery_frac=Reading(0.8))] * 400
    silent = [look(battery_frac=Reading(None))] * 30
    state, budget = after(*looks, *silent, of=of)
    assert state.verdicts["until"].why == "battery-unknown" and budget.point == 1
    state, _ = after(*looks, *[look(battery_frac=Reading(0.0008))] * 30, of=of)
    assert state.verdicts["until"].why == "until-uncertain"
    half = [look(battery_frac=Reading(0.5))]
    state, _ = after(*half, *[look(battery_frac=Reading(0.0008))] * 60, of=of, every_s=60.0)
    assert state.verdicts["until"].why == "until-infeasible", "an hour later it is no lie"
    state, _ = after(look(battery_frac=Reading(0.08)), of=of)
    assert state.verdicts["until"].why == "until-infeasible", "who begins with it is told at once"


def test_what_was_taken_away_comes_back_late_and_only_as_far_as_it_could_all_the_while() -> None:
    state, budget = after(look(temp_c=Reading(84.0)))
    points = []
    for second in range(1, 200):
        temp_c = 81.5 if second == 30 else 40.0
        state, budget = decide(state, SETUP, look(temp_c=Reading(temp_c)), float(second))
        points.append(budget.max_ops_frac if budget.point is not None else 1.0)
    assert points[:60] == [0.25] * 60
    assert points[60:120] == [0.45] * 60, "what the relapse allowed, and no more"
    assert points[-1] == 1.0


def test_training_that_was_in_the_way_of_a_deadline_yields_and_comes_back_after_an_hour() -> None:
    state, budget = after(*SLOW)
    assert budget.train_steps_hz == 5.0
    now_s = float(len(SLOW))
    for minute in range(120):
        counts = [20 * (40 + minute)] * 3
        since = 20 * (minute + 1)
        fast = report(
            *counts,
            exits_s=[a + since * b for a, b in zip(LAST.exits_s, EXITS_S, strict=True)],
            exits_s2=[a + since * b * b for a, b in zip(LAST.exits_s2, EXITS_S, strict=True)],
        )
        state, budget = decide(state, SETUP, look(actor=fast), now_s + 60.0 * minute)
        if minute < 55:
            assert budget.train_steps_hz == 5.0
    assert budget.train_steps_hz == 20.0


def test_one_stall_and_a_start_without_reports_take_no_training_away() -> None:
    tight = setup(deadline_s=0.03)
    assert after(look(), of=tight)[1].train_steps_hz == 20.0
    calm = [look(actor=report(20 * i, 20 * i, 20 * i)) for i in range(1, 40)]
    stall = look(actor=report(800, 800, 800, factor=1.02))
    state, budget = after(*calm, stall, of=tight)
    assert budget.train_steps_hz == 20.0 and state.slow.mean > 1.2


def test_misses_that_latencies_do_not_explain_take_training_first_and_then_depth() -> None:
    """Each answer is in time by what it took, and each second one tick is missed."""
    of = setup(min_return_frac=0.1)
    looks = [look(actor=report(10 * i, 5 * i, 5 * i, missed=max(0, i - 60))) for i in range(1, 300)]
    state, told = State(), []
    for second, seen in enumerate(looks):
        state, budget = decide(state, of, seen, float(second))
        told.append(budget)
    assert told[60].point == 5 and told[60].train_steps_hz == 20.0
    yields = next(i for i, each in enumerate(told) if each.why["train_steps_hz"] == "deadline-missed")
    cheaper = next(i for i, each in enumerate(told) if each.why["point"] == "deadline-missed")
    assert 60 < yields < cheaper and told[yields].point == 5 and told[yields].train_steps_hz == 5.0
    points = [each.point for each in told]
    assert points == sorted(points, reverse=True) and points[-1] == 1, "down to the first exit, and no further"
    assert state.verdicts["deadline"].why == "goal-deadline-unmet"


def test_bytes_of_the_day_outlive_a_restart_and_end_with_the_day() -> None:
    of = setup(bytes_per_day=1000)
    state, _ = after(look(carried_bytes=0), look(carried_bytes=600), of=of)
    again = State(carried=state.carried)
    again, budget = decide(again, of, look(carried_bytes=300), 0.0)
    assert again.carried is not None and again.carried.total_bytes == 900 and budget.teacher_bytes_per_s > 0
    again, budget = decide(again, of, look(carried_bytes=500), 1.0)
    assert again.verdicts["bytes"].why == "goal-bytes-unmet" and budget.teacher_bytes_per_s == 0
    assert budget.telemetry_s == module.TELEMETRY_MAX_S
    morning = Clock(NOON.day + 1, 10.0)
    again, budget = decide(again, of, look(carried_bytes=600, clock=morning), 2.0)
    assert again.carried is not None and again.carried.total_bytes == 100 and budget.teacher_bytes_per_s > 0


ANY = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -1.0, 1e308, math.inf, math.nan]))
READ = st.builds(Reading, ANY, st.one_of(st.just(0.0), st.floats()))
READINGS = st.builds(
    Readings,
    **{name: READ for name in Readings.__struct_fields__ if isinstance(getattr(Readings(), name), Reading)},
    has_battery=st.booleans(),
    external_power=st.sampled_from([None, True, False]),
    metered=st.sampled_from([None, True, False]),
    throttle=st.sampled_from([None, Throttle(), Throttle(("under-voltage", "throttled"))]),
)
COUNTS = st.lists(st.integers(0, 10**6), min_size=0, max_size=4)
SUMS = st.lists(st.floats(), max_size=4)
REPORTS = st.builds(
    lambda counts, sums, squares, costs, cpu_s, **more: report(
        1, 1, 1, cpu_s=cpu_s or 0.1, exits=counts, exits_s=sums, exits_s2=squares, costs_s=costs, **more
    ),
    COUNTS, SUMS, SUMS, SUMS, st.floats(), pid=st.integers(1, 2), ticks=st.integers(0, 10**6),
    missed=st.integers(0, 10**6), has_frontier=st.booleans(),
)  # fmt: skip
GOALS = st.builds(
    Goals,
    deadline_s=st.sampled_from([0.0, 0.01]),
    miss_frac=st.sampled_from([0.001, 0.5]),
    min_return_frac=st.sampled_from([0.0, 0.6, 2.0]),
    last_until=st.sampled_from([None, "18:00", "00:00", "3 h", "0.5h"]),
    max_power_w=st.sampled_from([None, 0.1, 3.0, 50.0]),
    least_energy=st.booleans(),
    memory_max_bytes=st.sampled_from([0, 1, 10**9]),
    bytes_per_day=st.sampled_from([0, 10**6]),
    priorities=st.permutations(["return", "training", "link"]).map(tuple),
)
SETUPS = st.builds(
    lambda goals, prices, hz: msgspec.structs.replace(
        SETUP, goals=goals, prices=prices, train_steps_hz=hz, govern=Govern()
    ),
    GOALS,
    st.sampled_from([PRICES, BARE]),
    st.sampled_from([0.0, 20.0, math.nan, math.inf]),
)
LOOKS = st.builds(
    Look,
    readings=READINGS,
    actor=st.one_of(st.none(), REPORTS),
    trainer=st.one_of(st.none(), st.builds(trainer, st.integers(0, 10**6), st.floats(), st.integers(0, 1 << 40))),
    link_up=st.booleans(),
    clock=st.sampled_from([None, NOON, Clock(0, 0.0), Clock(5, math.nan)]),
    carried_bytes=st.one_of(st.none(), st.integers(0, 10**9)),
)


@settings(max_examples=60, deadline=None, phases=QUICK)
@given(SETUPS, st.lists(st.tuples(st.floats(-10, 5000), LOOKS), min_size=1, max_size=6))
def test_whatever_is_seen_the_budget_is_safe(of: Setup, looks: list[tuple[float, Look]]) -> None:
    state, now_s = State(), 0.0
    for wait_s, seen in looks:
        now_s += wait_s
        state, budget = decide(state, of, seen, now_s)
        assert 0 <= budget.max_exit <= 2
        assert 0 <= budget.train_steps_hz <= 20 and 0 <= budget.teacher_bytes_per_s <= 4000
        assert 0 <= budget.max_ops_frac <= 1 and 1 <= budget.telemetry_s <= 600
        assert budget.point is None or (of.prices.points and budget.point in range(6))
        assert budget.trainer_cpu_frac is None or 0 < budget.trainer_cpu_frac <= 1
        assert set(budget.why.values()) <= REASONS.keys()
        assert {each.why for each in state.verdicts.values()} - {""} <= REASONS.keys()
        for figure in state.figures.values():
            assert figure.mean is None or (math.isfinite(figure.mean) and figure.std is not None and figure.std >= 0)
        msgspec.json.encode(state.figures)


def grade(budget: Budget, of: Setup) -> tuple[float, ...]:
    """Everything a budget buys: none of it may be more when things are worse."""
    ops_frac = 1.0 if budget.point is None else POINTS[budget.point].ops_frac
    value = 1.0 if budget.point is None else POINTS[budget.point].return_frac or 0.0
    return (
        budget.max_exit, budget.max_ops_frac, ops_frac, value, budget.train_steps_hz, budget.teacher_bytes_per_s,
        float(budget.accept_jobs), -budget.telemetry_s, budget.trainer_cpu_frac or 9.0, budget.clock_frac or 9.0,
    )  # fmt: skip


SANE = st.fixed_dictionaries(
    {
        "temp_c": st.floats(20, 95),
        "battery_frac": st.floats(0, 1),
        "link_rtt_s": st.floats(0, 3),
        "link_loss_frac": st.floats(0, 0.9),
        "memory_pressure_frac": st.floats(0, 0.3),
        "load_frac": st.floats(0, 1),
    }
)
WORSE = st.fixed_dictionaries(
    {
        "temp_c": st.floats(0, 60),
        "battery_frac": st.floats(-1, 0),
        "link_rtt_s": st.floats(0, 10),
        "link_loss_frac": st.floats(0, 0.5),
        "memory_pressure_frac": st.floats(0, 0.5),
        "load_frac": st.just(0.0),
    }
)
FLAGS = ((), ("throttled",), ("throttled", "under-voltage"))


@settings(max_examples=60, deadline=None, phases=QUICK)
@given(
    GOALS,
    st.sampled_from([PRICES, BARE]),
    st.lists(st.tuples(st.floats(0.5, 2000), SANE, st.floats(0.2, 8)), min_size=1, max_size=6),
    WORSE,
    st.floats(1, 5),
    st.tuples(st.integers(0, 2), st.integers(0, 2)).map(sorted),
    st.booleans(),
    st.booleans(),
)
def test_hotter_emptier_or_slower_never_buys_more(
    goals: Goals,
    prices: Prices,
    history: list[tuple[float, dict[str, float], float]],
    worse: dict[str, float],
    slower: float,
    flags: list[int],
    loses_link: bool,
    metered: bool,
) -> None:
    of = setup(prices=prices, govern=Govern())
    of = msgspec.structs.replace(of, goals=goals)
    state, now_s, counts, took, squares = State(), 0.0, 0, [0.0] * 3, [0.0] * 3

    def told(factor: float) -> ActorReport:
        mine = [a + 7 * each_s * factor for a, each_s in zip(took, EXITS_S, strict=True)]
        squared = [a + 7 * (each_s * factor) ** 2 for a, each_s in zip(squares, EXITS_S, strict=True)]
        return report(
            counts, counts, counts, cpu_s=0.1 + 0.01 * counts, exits_s=mine, exits_s2=squared,
            has_frontier=bool(prices.points),
        )  # fmt: skip

    for i, (wait_s, values, factor) in enumerate(history):
        now_s, counts = now_s + wait_s, counts + 7
        kind = look(**{name: Reading(value) for name, value in values.items()}, actor=told(factor))
        if i < len(history) - 1:
            took, squares = list(kind.actor.exits_s), list(kind.actor.exits_s2)  # type: ignore[union-attr]  # just made
            state, _ = decide(state, of, kind, now_s)
    harsh = look(
        **{name: Reading(values[name] + worse[name]) for name in values},
        actor=told(factor * slower),
        link_up=not loses_link,
        metered=metered,
        throttle=Throttle(FLAGS[flags[1]]),
    )
    kind = msgspec.structs.replace(
        kind, readings=msgspec.structs.replace(kind.readings, throttle=Throttle(FLAGS[flags[0]]))
    )
    _, bought = decide(state, of, kind, now_s)
    _, left = decide(state, of, harsh, now_s)
    assert all(less <= more + 1e-9 for less, more in zip(grade(left, of), grade(bought, of), strict=True))


@pytest.mark.parametrize(
    "of",
    [SETUP, setup(max_power_w=3.0), setup(last_until="20:00", min_return_frac=0.3), setup(deadline_s=0.0205)],
    ids=["none", "power", "until", "deadline"],
)
def test_in_a_steady_state_it_switches_at_most_twice_an_hour(of: Setup) -> None:
    of = msgspec.structs.replace(of, govern=Govern())
    dice, state, points, shares = random.Random(1), State(), [], []
    counts, took, squares, charge = 0, [0.0] * 3, [0.0] * 3, 0.9
    for second in range(0, 3 * 3600, 5):
        counts += 100
        for k, each_s in enumerate(EXITS_S):
            factor = max(0.3, dice.gauss(1.0, 0.05))
            took[k] += 100 * each_s * factor
            squares[k] += 100 * (each_s * factor) ** 2 * 1.01
        charge -= 5 * 2.6 / of.supply.capacity_j / 1.4
        seen = look(
            temp_c=Reading(dice.gauss(70.0, 1.5)),
            load_frac=Reading(min(1.0, max(0.0, dice.gauss(0.2, 0.08)))),
            power_w=Reading(max(0.5, dice.gauss(2.6, 0.2))),
            battery_frac=Reading(round(max(0.3, charge) + dice.gauss(0, 0.005), 2)),
            link_rtt_s=Reading(abs(dice.gauss(0.3, 0.2))),
            actor=report(counts, counts, counts, exits_s=list(took), exits_s2=list(squares), cpu_s=1 + second * 0.3),
            clock=Clock(NOON.day, NOON.second_s + second),
        )
        state, budget = decide(state, of, seen, float(second))
        if second >= 1800:
            points.append((budget.point, budget.max_exit))
            shares.append(budget.train_steps_hz * SHARES)
    hours = len(points) * 5 / 3600
    assert sum(a != b for a, b in pairwise(points)) / hours <= 2
    assert sum(a != b for a, b in pairwise(shares)) / hours <= 4
