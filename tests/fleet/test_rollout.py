from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.fleet import rollout
from edgert.fleet.rollout import Abort, Offer, Pause, Plan, Resume, Rollout, Tick, Told, Withdraw, begin, step

DEVICES = [f"d{i}" for i in range(20)]
PLAN = Plan(id="r1", canary_frac=0.1, wave_frac=0.3, abort_frac=0.1, soak_s=10.0, patience_s=100.0)


def tell(state: Rollout, *events: Any, at_s: float = 0.0) -> tuple[Rollout, list[Any]]:
    done: list[Any] = []
    for event in events:
        state, effects = step(state, event, at_s)
        done += effects
    return state, done


def offered(effects: list[Any]) -> list[str]:
    return [effect.device for effect in effects if isinstance(effect, Offer)]


def test_the_canaries_go_first_and_the_rest_in_waves() -> None:
    state, effects = tell(begin(PLAN, DEVICES), Tick())
    sizes, now_s = [len(offered(effects))], 0.0
    while state.phase == "running":
        state, _ = tell(state, *[Told(device, "kept") for device in offered(effects)], at_s=now_s)
        state, early = tell(state, Tick(), at_s=now_s + 9.0)
        assert not early
        now_s += 10.0
        state, effects = tell(state, Tick(), at_s=now_s)
        sizes.append(len(offered(effects)))
    assert sizes[:-1] == [2, 6, 6, 6] and state.phase == "done"


def test_the_order_is_that_of_the_plan_and_of_nothing_else() -> None:
    assert begin(PLAN, DEVICES) == begin(PLAN, reversed([*DEVICES, "d3"]))
    assert begin(PLAN, DEVICES).order != begin(msgspec.structs.replace(PLAN, id="r2"), DEVICES).order


@pytest.mark.parametrize("fate", ["refused", "rolled-back"])
def test_harm_to_a_canary_stops_it_and_takes_back_what_is_open(fate: Any) -> None:
    state, effects = tell(begin(PLAN, DEVICES), Tick())
    bad, other = offered(effects)
    state, effects = tell(state, Told(bad, fate))
    assert state.phase == "aborted" and effects == [Withdraw(other)] and "1 of 1" in state.why
    assert tell(state, Resume(), Tick(), Told(other, "kept"), at_s=1e6) == (state, [])


def test_some_harm_is_borne_where_the_plan_says_so() -> None:
    plan = msgspec.structs.replace(PLAN, abort_frac=0.5)
    state, effects = tell(begin(plan, DEVICES), Tick())
    good, bad = offered(effects)
    state, effects = tell(state, Told(bad, "rolled-back"), Told(good, "kept"))
    assert state.phase == "running" and not effects


def test_a_pause_holds_the_next_wave_and_nothing_else() -> None:
    state, effects = tell(begin(PLAN, DEVICES), Tick())
    state, _ = tell(state, Pause(), *[Told(device, "kept") for device in offered(effects)])
    state, effects = tell(state, Tick(), at_s=50.0)
    assert state.phase == "paused" and not effects
    state, effects = tell(state, Resume(), at_s=51.0)
    assert len(offered(effects)) == 6


def test_whom_nobody_hears_holds_nobody_up_for_ever() -> None:
    state, effects = tell(begin(PLAN, DEVICES), Tick())
    heard, unheard = offered(effects)
    state, _ = tell(state, Told(heard, "kept"))
    assert not tell(state, Tick(), at_s=99.0)[1]
    state, _ = tell(state, Tick(), at_s=100.0)
    assert state.fates[unheard] == "silent"
    state, effects = tell(state, Tick(), at_s=110.0)
    assert len(offered(effects)) == 6
    state, _ = tell(state, Told(unheard, "rolled-back"), at_s=111.0)  # it comes back after days, and counts
    assert state.phase == "aborted"


def test_a_fleet_that_is_silent_gets_no_second_wave() -> None:
    state, _ = tell(begin(PLAN, DEVICES), Tick())
    state, effects = tell(state, *[Tick()] * 3, at_s=1e6)
    assert not effects and state.phase == "running" and state.why == "too few devices answer"


def test_reports_of_strangers_and_of_those_whose_turn_has_not_come_change_nothing() -> None:
    state, _ = tell(begin(PLAN, DEVICES), Tick())
    waiting = state.order[-1]
    assert tell(state, Told("stranger", "kept"), Told(waiting, "rolled-back")) == (state, [])


def test_an_empty_fleet_is_done_at_once() -> None:
    state, effects = tell(begin(PLAN, []), Tick())
    assert state.phase == "done" and not effects


def test_an_abort_by_hand_takes_back_what_is_open() -> None:
    state, effects = tell(begin(PLAN, DEVICES), Tick())
    first = offered(effects)
    state, effects = tell(state, Told(first[0], "kept"), Abort())
    assert state.phase == "aborted" and effects == [Withdraw(first[1])]


@given(
    st.integers(1, 40),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.sampled_from(["kept", "refused", "rolled-back", "none", "pause", "resume", "restart"]), max_size=120),
    st.randoms(use_true_random=False),
)
def test_no_more_devices_are_harmed_than_the_plan_allows_beyond_those_under_way(
    n: int, canary: float, wave: float, abort: float, script: list[str], rng: random.Random
) -> None:
    plan = Plan(id="x", canary_frac=canary, wave_frac=wave, abort_frac=abort, soak_s=1.0, patience_s=5.0)
    state, effects = tell(begin(plan, DEVICES[:n] if n < 20 else [f"e{i}" for i in range(n)]), Tick())
    now_s, ever = 0.0, offered(effects)
    for what in script:
        now_s += 1.0
        event: Any = Tick()
        if what in ("pause", "resume"):
            event = Pause() if what == "pause" else Resume()
        elif what == "restart":
            state = msgspec.json.decode(msgspec.json.encode(state), type=Rollout)
        elif what != "none" and ever:
            event = Told(rng.choice(ever), what)  # type: ignore[arg-type]  # the list holds fates only
        harmed, decided = rollout.harm(state)
        former = state
        state, effects = step(state, event, now_s)
        news = offered(effects)
        assert not set(news) & set(ever), "nobody is offered it twice"
        ever += news
        if news:
            assert harmed <= abort * max(decided, rollout.reach(state, 1))
            assert former.phase == "running" or what == "resume"
    assert len(ever) == rollout.reach(state, state.waves)
