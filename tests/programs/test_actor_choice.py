"""What the act loop makes of what a network says: exploring, drawing, repeating, and who sets the exits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, quant
from edgert.policy import artifact, exits, hold
from edgert.ports.ring import EXPLORED
from edgert.ports.runtime.numpy import NumpyRuntime
from edgert.values import Budget, ExitsSet, Happened, Operating, SetExits, Swap

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
MANIFEST = bundle.read(DATA).manifest


def test_exploration_replaces_the_action_and_says_so_in_the_record(make_actor: Callable[..., Any]) -> None:
    actor = make_actor(policy__explore_frac=1.0)
    actor.give([9.0, 0.0, 0.0, 0.0])
    for seq in range(1, 42):
        actor.tick(seq)
    found = actor.records()
    assert (found.flags == EXPLORED).all()
    assert set(found.action.tolist()) == {0, 1, 2}
    assert actor.safe == 0


def drawing(actor: Any, kind: str = "policy") -> Any:
    """A network acts whose heads say logits."""
    actor.acting = msgspec.structs.replace(actor.acting, kind=kind)
    return actor


def test_a_policy_that_learns_is_drawn_from_and_the_record_says_how_likely_each_action_was(
    make_actor: Callable[..., Any],
) -> None:
    actor = make_actor(policy__explore_frac=1.0)
    actor.give([0.0, 1.0, -40.0, 0.0])
    drawing(actor)
    for seq in range(1, 82):
        actor.tick(seq)
    found = actor.records()
    assert not (found.flags & EXPLORED).any()  # it explores by itself
    assert set(found.action.tolist()) == {0, 1}
    log = np.float32([0, 1]) - np.log1p(np.exp(1))
    np.testing.assert_allclose(found.log_prob, log[found.action], rtol=1e-5)


def test_a_policy_that_does_not_learn_takes_the_best_action(make_actor: Callable[..., Any]) -> None:
    actor = make_actor(learn__enabled=False)
    actor.give([0.0, 0.1, -40.0, 0.0])
    drawing(actor)
    for seq in range(1, 32):
        actor.tick(seq)
    assert set(actor.records().action.tolist()) == {1} and (actor.records().log_prob == 0).all()


def test_a_policy_that_is_drawn_from_repeats_nothing(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    stub = actor.sure(1.0)
    drawing(actor)._heed(holding(repeat=9))
    for seq in range(1, 6):
        actor.tick(seq)
    assert len(stub.asked) == 5 and actor.held == 0


@pytest.mark.parametrize("explore_frac", [0.0, 0.25, 1.0])
def test_the_record_says_how_likely_exploring_made_each_action(
    make_actor: Callable[..., Any], explore_frac: float
) -> None:
    actor = make_actor(policy__explore_frac=explore_frac)
    actor.give([9.0, 0.0, 0.0, 0.0])
    for seq in range(1, 82):
        actor.tick(seq)
    found = actor.records()
    wanted = np.where(found.action == 0, 1 - explore_frac + explore_frac / 3, explore_frac / 3)
    np.testing.assert_allclose(np.exp(found.log_prob), wanted, rtol=1e-5)


def test_of_a_safe_or_repeated_action_nobody_can_say_how_likely_it_was(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    for seq in (1, 2):
        actor.tick(seq)
    actor.sure(1.0)
    actor._heed(holding(repeat=3))
    for seq in range(3, 8):
        actor.tick(seq)
    assert np.isnan(actor.records().log_prob).tolist() == [True, True, False, True, True, False]


def test_exploration_falls_with_the_transitions_recorded(make_actor: Callable[..., Any]) -> None:
    settings = {"policy__explore_frac": 0.1, "policy__explore_from_frac": 0.9, "policy__explore_transitions": 40}
    actor = make_actor(**settings)
    assert actor._explore_frac() == pytest.approx(0.9)
    actor.give([9.0, 0.0, 0.0, 0.0])
    for seq in range(1, 22):
        actor.tick(seq)
    assert actor._explore_frac() == pytest.approx(0.5)
    for seq in range(22, 60):
        actor.tick(seq)
    assert actor._explore_frac() == pytest.approx(0.1)
    actor.ring.close()
    assert make_actor(**settings)._explore_frac() == pytest.approx(0.1)  # a restart begins nothing anew
    assert make_actor(policy__explore_frac=0.3)._explore_frac() == 0.3


def order(**fields: Any) -> SetExits:
    return SetExits(id="c1", **fields)


def holding(repeat: int = 3, hold_threshold: float = 0.5) -> SetExits:
    return order(operating=Operating((0.5, 0.5), repeat, hold_threshold))


def test_a_sure_action_is_repeated_without_inference_and_recorded_as_what_was_done(
    make_actor: Callable[..., Any],
) -> None:
    actor = make_actor()
    stub = actor.sure(1.0)
    actor._heed(holding())
    for seq in range(1, 8):
        actor.tick(seq, reward=float(seq), action=None if seq == 1 else 1)
    assert actor.applied() == [0, 0, 0, 1, 1, 1, 2]
    assert len(stub.asked) == 3
    assert (actor.taken, actor.held, actor.ticks, actor.safe) == ([3, 0, 0], 4, 7, 0)
    assert np.count_nonzero(actor.latencies_s) <= 3, "a tick without inference says nothing about latency"
    found = actor.records()
    assert found.action.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.reward.tolist() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert found.obs[:, 0, 0, 0].tolist() == [1, 0, 1, 0, 1, 0], "each with the observation of its own tick"
    assert {confidence for _, _, confidence, _ in actor.plant.applied} == {exits.confidence(1.0)}
    report = actor._report()
    assert (report.held, report.exits, report.operating) == (4, [3, 0, 0], holding().operating)


@pytest.mark.parametrize("logit", [-0.1, 0.1])
def test_an_unsure_exit_and_the_deepest_are_not_repeated(make_actor: Callable[..., Any], logit: float) -> None:
    actor = make_actor()
    stub = actor.sure(logit)
    thresholds = (0.0, 0.0) if logit < 0 else (1.0, 1.0)  # believed without being sure; sure, but the deepest answers
    actor._heed(order(operating=Operating(thresholds, 3, 0.5)))
    for seq in range(1, 5):
        actor.tick(seq)
    assert len(stub.asked) == 4 and actor.held == 0


@pytest.mark.parametrize(
    ("what", "following"),
    [
        ("terminated", {"terminated": True, "episode": 2}),
        ("truncated", {"truncated": True, "episode": 2}),
        ("another client", {"stream": 1}),
        ("a world that was restarted", {"action": None}),
        ("missed", None),
    ],
)
def test_whatever_does_not_follow_ends_a_repetition(
    make_actor: Callable[..., Any], what: str, following: dict[str, Any] | None
) -> None:
    actor = make_actor()
    actor.sure(1.0)
    actor._heed(holding(repeat=9))
    actor.tick(1)
    actor.tick(None if following is None else 2, **(following or {}))
    assert actor.applied()[1] == (MANIFEST.safe_action if following is None else 1)
    assert actor.held == 0
    actor.tick(3, stream=(following or {}).get("stream", 0))
    assert actor.held == (0 if following is None else 1), "after a gap it is decided anew"
    assert actor.taken[0] == 2


def test_a_swap_or_another_setting_ends_a_repetition(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    stub = actor.sure(1.0)
    actor._heed(holding(repeat=9))
    actor.tick(1)
    other = actor.sure(1.0, generation=2)
    actor.tick(2)
    assert (len(stub.asked), len(other.asked)) == (1, 1)
    actor._heed(holding(repeat=8))
    actor.tick(3)
    assert len(other.asked) == 2
    actor._heed(holding(repeat=8))  # the same again changes nothing
    actor.tick(4)
    assert (len(other.asked), actor.held) == (2, 1)


def test_exploration_ends_a_repetition(make_actor: Callable[..., Any]) -> None:
    actor = make_actor(policy__explore_frac=1.0)
    stub = actor.sure(1.0)
    actor._heed(holding(repeat=9))
    for seq in range(1, 6):
        actor.tick(seq)
    assert len(stub.asked) == 5 and (actor.records().flags == EXPLORED).all()


def test_the_act_loop_repeats_what_a_measurement_of_the_same_setting_repeats(make_actor: Callable[..., Any]) -> None:
    """The loop and `policy.hold.Holds`, which frontiers are measured with, on the same heads and ends."""
    rng = np.random.default_rng(0)
    policy = artifact.load(DATA)
    net, pool = quant.IntNet(policy.spec, policy.tensors), policy.golden_obs
    for operating in (Operating((0.3, 0.6), 3, 0.0), Operating((0.3, 0.6), 4, 0.5), Operating((0.0, 1.0), 2, 0.45)):
        actor = make_actor()
        actor.take(Swap(0, "", ""), NumpyRuntime(policy), policy)
        actor._heed(order(operating=operating))
        bars = exits.effective_thresholds(operating.thresholds, 2)
        holds, me, wanted, decided = hold.Holds([operating]), np.array([0]), [], np.zeros(3, int)
        for seq in range(1, 120):
            obs, ends = pool[rng.integers(len(pool))], bool(rng.random() < 0.1)
            actor.tick(seq, obs=obs, terminated=ends)
            if holds.due(me, np.array([ends or seq == 1]))[0]:
                head, exit_ = exits.answer(net, obs[None], bars)
                holds.decided(me, head[:, :-1].argmax(1), exit_, head[:, -1])
                decided[exit_] += 1
            wanted.append(int(holds.action[0]))
        assert actor.applied() == wanted
        assert actor.taken == decided.tolist() and actor.held == 119 - decided.sum() > 0
        actor.ring.close()


def with_frontier(manifest: bundle.Manifest) -> bundle.Manifest:
    points = [
        bundle.Point(
            thresholds=thresholds, return_mean=1.0, return_frac=return_frac, return_low=0.0, return_high=1.0,
            ops_frac=ops_frac, exit_share=(1.0, 0.0, 0.0), held_share=0.0, episodes=3,
        )
        for thresholds, ops_frac, return_frac in (((0, 0), 0.3, 0.5), ((0.4, 0.4), 0.6, 0.9), ((1, 1), 1.0, 1.0))
    ]  # fmt: skip
    reference = bundle.Reference(1.0, 3)
    made = bundle.Frontier(random=reference, full=reference, full_ops=100, points=tuple(points))
    return msgspec.structs.replace(manifest, frontier=made)


def give_frontier(actor: Any) -> Any:
    actor.told()
    stub, policy = actor.sure(0.0), artifact.load(DATA)
    manifest = with_frontier(policy.manifest)
    policy = policy._replace(bundle=policy.bundle._replace(manifest=manifest))
    actor.take(Swap(1, "", ""), stub, policy)
    actor.parent.told.clear()
    return stub


def test_the_budget_picks_a_point_of_the_frontier_between_two_ticks(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    stub = give_frontier(actor)
    actor.tick(1)
    report = actor._report()
    assert (report.has_frontier, report.point, report.operating) == (True, None, MANIFEST.operating)
    for limit, point in ((0.7, 1), (0.1, 0), (1.0, None)):
        actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, max_ops_frac=limit))
        actor.tick(2)
        assert actor._report().point == point
    own = exits.effective_thresholds(MANIFEST.thresholds, 2).tolist()
    assert [asked.tolist() for asked in stub.asked] == [
        own,
        exits.effective_thresholds([0.4, 0.4], 2).tolist(),
        [-np.inf, -np.inf],
        own,
    ]


def test_the_budget_names_a_point_and_a_deadline_and_takes_both_back(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    give_frontier(actor)
    configured_s = actor.deadline_s
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, point=1, deadline_s=0.011))
    assert (actor.setting.point, actor.deadline_s) == (1, 0.011)
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    assert (actor.setting.operating, actor.deadline_s) == (MANIFEST.operating, configured_s)


def test_the_report_sums_what_each_exit_took(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    give_frontier(actor)
    for number in (1, 2, 3):
        actor.tick(number)
    report = actor._report()
    assert sum(report.exits) == 3
    for count, took_s, squares in zip(report.exits, report.exits_s, report.exits_s2, strict=True):
        assert (count > 0) == (took_s > 0) and took_s**2 <= count * squares * (1 + 1e-9)


def test_the_fleet_sets_the_exits_and_the_budget_may_still_lower_them(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    give_frontier(actor)
    actor._heed(order(point=2))
    (told,) = actor.told(ExitsSet, Happened)
    assert (told.id, told.why, told.point, told.operating.thresholds) == ("c1", "", 2, (1.0, 1.0))
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, max_ops_frac=0.7))
    assert actor.setting.point == 1
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    assert actor.setting.point == 2
    actor._heed(order(max_ops_frac=0.5))
    assert actor.setting.point == 0
    actor._heed(order())
    assert actor.setting.operating == MANIFEST.operating and actor.order is None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (order(point=3), "3 of a frontier that has 3"),
        (order(operating=Operating((0.5,))), "1 thresholds for 3 exits"),
        (order(operating=Operating((0.5, float("nan")))), "0..1"),
    ],
)
def test_an_order_that_does_not_fit_leaves_the_former_setting(
    make_actor: Callable[..., Any], wanted: SetExits, words: str
) -> None:
    actor = make_actor()
    give_frontier(actor)
    actor._heed(order(point=1))
    actor._heed(wanted)
    told = actor.told(ExitsSet, Happened)[-1]
    assert words in told.why and (told.point, actor.setting.point) == (1, 1)
    assert actor.order == order(point=1)


def test_pinned_thresholds_stand_above_the_fleet_and_the_frontier(make_actor: Callable[..., Any]) -> None:
    actor = make_actor(policy__thresholds=[0.2, 0.3])
    give_frontier(actor)
    actor._heed(order(point=1))
    assert "pins" in actor.told(ExitsSet, Happened)[-1].why
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, max_ops_frac=0.1))
    assert actor.thresholds == [0.2, 0.3]
    assert not actor._report().has_frontier, "the governor has only exits left to forbid"


def test_an_order_that_a_new_network_cannot_follow_ends_and_that_is_said(make_actor: Callable[..., Any]) -> None:
    for wanted in (order(point=1), order(max_ops_frac=0.7)):
        actor = make_actor()
        give_frontier(actor)
        actor._heed(wanted)
        assert actor.setting.point == 1
        actor.give([0.0, 1.0, 0.0, 0.0], generation=2)  # learned here: nobody measured it
        told = actor.told(ExitsSet, Happened)[-1]
        assert isinstance(told, Happened) and told.detail["id"] == "c1"
        assert actor.order is None and actor.setting.operating == MANIFEST.operating
        actor.ring.close()


def test_an_order_ends_with_its_time(make_actor: Callable[..., Any], clock: Any) -> None:
    actor = make_actor()
    give_frontier(actor)
    actor._heed(order(point=1, left_s=60.0))
    assert actor.order_until_s == clock.now_s + 60.0
    actor._forget_order("expired")
    assert actor.order_until_s is None and actor.setting.operating == MANIFEST.operating
    assert actor.told(ExitsSet, Happened)[-1].detail == {"id": "c1", "why": "expired"}
