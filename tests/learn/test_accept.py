"""The gate: table of verdicts, and what it must never let through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.learn.accept import Evidence, Limits, PolicyEvidence, judge, judge_policy, regret, unexplained
from edgert.learn.offpolicy import Gain


def evidence(n: int = 100, taught: int = 100, seed: int = 0, **changes: object) -> Evidence:
    """A candidate that is exactly the acting network, on random teacher values."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(n, 4)).astype(np.float32)
    acting = rng.integers(0, 4, n)
    base = {
        "installed": acting,
        "acting": acting,
        "candidate": acting,
        "candidate_float": acting,
        "candidate_head": rng.normal(size=(n, 5)).astype(np.float32),
        "float_q": rng.normal(size=(n, 4)).astype(np.float32),
        "teacher_q": q,
        "taught": np.arange(n) < taught,
        "acting_td": np.ones(n, np.float32),
        "candidate_td": np.ones(n, np.float32),
    }
    return Evidence(**{**base, **changes})  # type: ignore[arg-type]  # a table of changes is not typed per field


def test_an_equal_network_passes_and_a_better_one_too() -> None:
    assert judge(evidence(), Limits()).accepted
    e = evidence()
    better = judge(e._replace(candidate=e.teacher_q.argmax(1), candidate_float=e.teacher_q.argmax(1)), Limits())
    assert better.accepted and better.detail["regret_after"] == 0 < better.detail["regret_before"]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"n": 49, "taught": 49}, {"held-out"}),
        ({"candidate_head": np.full((100, 5), np.nan, np.float32)}, {"finite"}),
        ({"taught": 29, "candidate_td": np.full(100, 1.2, np.float32)}, {"td-error"}),
    ],
)
def test_each_check_fails_by_name(changes: dict[str, object], failed: set[str]) -> None:
    verdict = judge(evidence(**changes), Limits())  # type: ignore[arg-type]  # as above
    assert not verdict.accepted and {name for name, passed in verdict.checks.items() if not passed} == failed


def told(better: int, worse: int, equal: int) -> Evidence:
    """A candidate whose actions the teacher prefers so many times, and does not so many times."""
    e = evidence(n=better + worse + equal, taught=better + worse + equal)
    best, worst = e.teacher_q.argmax(1), e.teacher_q.argmin(1)
    kind = np.repeat([0, 1, 2], [better, worse, equal])
    acting = np.where(kind == 1, best, worst)
    candidate = np.where(kind == 0, best, worst)
    return e._replace(acting=acting, installed=acting, candidate=candidate, candidate_float=candidate)


@pytest.mark.parametrize(
    ("better", "worse", "equal", "accepted"),
    [(4, 0, 8, True), (3, 0, 20, False), (10, 1, 0, True), (7, 3, 10, False), (0, 0, 49, False), (0, 8, 4, False)],
)
def test_a_clear_gain_needs_few_observations(better: int, worse: int, equal: int, accepted: bool) -> None:
    assert judge(told(better, worse, equal), Limits()).checks["held-out"] is accepted


def test_near_equals_by_the_teachers_judgement_are_equals_but_no_step_back_is_free() -> None:
    e = evidence(n=100, taught=100)
    spread = float((e.teacher_q.max(1) - e.teacher_q.min(1)).mean())
    near = e.teacher_q.copy()
    near[0, 0], near[0, 1] = 0.0, 0.5 * spread
    e = e._replace(teacher_q=near, acting=np.where(np.arange(100) == 0, 1, e.acting))
    other = np.where(np.arange(100) == 0, 0, e.acting)
    verdict = judge(e._replace(installed=other, candidate=other, candidate_float=other), Limits())
    assert verdict.accepted and verdict.detail["regret_after"] > verdict.detail["regret_before"]
    strict = judge(e._replace(installed=other, candidate=other, candidate_float=other), Limits(regret_slack_frac=0))
    assert not strict.checks["regret"]
    behind = judge(e._replace(installed=e.acting, candidate=other, candidate_float=other), Limits())
    assert not behind.checks["regret-installed"]


def test_a_student_that_has_learned_what_its_world_is_worth_is_not_held_to_what_a_blank_network_says() -> None:
    """A blank network expects nothing: values of 10 to 20 are far from its targets, and explain what happens."""
    rng = np.random.default_rng(0)
    blank, worth = np.float32(0.01) * rng.normal(size=100), rng.uniform(10, 20, 100)
    y = np.float32(1) + np.float32(0.99) * blank
    wiser = evidence(taught=0, acting_td=np.abs(blank - y), candidate_td=np.abs(worth - y))
    assert not judge(wiser, Limits()).checks["td-error"]
    follows = worth + rng.normal(0, 0.3, 100)
    known = wiser._replace(
        acting_unexplained=unexplained(blank, y), candidate_unexplained=unexplained(worth, follows.astype(np.float32))
    )
    verdict = judge(known, Limits())
    assert verdict.checks["td-error"] and verdict.detail["unexplained_after"] < verdict.detail["unexplained_before"]
    blind = judge(known._replace(acting_unexplained=np.inf), Limits())
    assert blind.checks["td-error"] and np.isfinite(list(blind.detail.values())).all()
    drifted = known._replace(candidate_unexplained=unexplained(worth, worth * 1e6))
    assert not judge(drifted, Limits()).checks["td-error"]
    same = np.full(100, 5.0, np.float32)
    assert unexplained(same, same * 0.9) == np.inf, "saying the same of everything explains nothing"
    assert unexplained(same[:0], same[:0]) == 0.0


def test_rounding_that_flips_good_actions_is_refused_and_ties_are_forgiven() -> None:
    e = evidence()
    best, worst = e.float_q.argmax(1), e.float_q.argmin(1)
    assert not judge(e._replace(candidate=worst, candidate_float=best), Limits()).checks["rounding"]
    tied = np.repeat(e.float_q[:, :1], 4, 1) + np.array([0, 0, 0, -1], np.float32)
    other = np.where(best == 3, 0, best)
    verdict = judge(e._replace(float_q=tied, candidate=(other + 1) % 3, candidate_float=other % 3), Limits())
    assert verdict.checks["rounding"] and verdict.detail["int8_agreement"] == 0


def test_nothing_held_out_is_a_refusal_not_a_crash() -> None:
    assert not judge(evidence(n=0, taught=0), Limits()).accepted


@given(seed=st.integers(0, 10_000))
def test_the_teachers_worst_actions_never_pass(seed: int) -> None:
    e = evidence(seed=seed)
    best, worst = e.teacher_q.argmax(1), e.teacher_q.argmin(1)
    assert not judge(e._replace(acting=best, candidate=worst, candidate_float=worst), Limits()).accepted
    drifted = judge(e._replace(installed=best, acting=worst, candidate=worst, candidate_float=worst), Limits())
    assert drifted.checks["regret"] and not drifted.checks["regret-installed"], "many small steps back"


def test_a_network_without_preferences_is_refused() -> None:
    flat = np.zeros((100, 4), np.float32)
    assert not judge(evidence(float_q=flat, taught=0), Limits()).checks["rounding"]


@given(seed=st.integers(0, 10_000))
def test_regret_is_zero_for_the_best_and_never_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(20, 3)).astype(np.float32)
    assert (regret(q, q.argmax(1)) == 0).all()
    assert (regret(q, rng.integers(0, 3, 20)) >= 0).all()


def test_after_a_roll_back_as_good_is_not_good_enough() -> None:
    strict = Limits(beat_frac=0.05)
    e = evidence()
    assert not judge(e, strict).checks["regret"]
    better = e.teacher_q.argmax(1)
    assert judge(e._replace(candidate=better, candidate_float=better), strict).checks["regret"]
    alone = evidence(taught=0, candidate_td=np.full(100, 1.05, np.float32))
    assert judge(alone, Limits()).checks["td-error"] and not judge(alone, strict).checks["td-error"]


@pytest.mark.parametrize(
    ("gain", "passes", "figures"),
    [
        (Gain(-5.0, 0.5, 10.0, 2000), False, 3),
        (Gain(-5.0, 2.0, 10.0, 2000), True, 3),
        (Gain(-1.0, 0.1, 10.0, 2000), True, 3),
        (Gain(None, 0.0, 0.0, 20, "not enough"), True, 0),
    ],
)
def test_off_policy_it_refuses_on_evidence_only(gain: Gain, passes: bool, figures: int) -> None:
    verdict = judge(evidence(gain=gain), Limits())
    assert verdict.checks["off-policy-return"] == verdict.accepted == passes
    assert len([name for name in verdict.detail if name.startswith("off_policy_")]) == figures + 1
    assert "off-policy-return" not in judge(evidence(), Limits()).checks


def policy_evidence(n: int = 100, **changes: object) -> PolicyEvidence:
    """A candidate that is its float network, which disagrees with the acting one everywhere."""
    acting = np.tile(np.float32([2, 0, 0, 7]), (n, 1))
    candidate = np.tile(np.float32([0, 0, 2, -7]), (n, 1))
    return PolicyEvidence(acting, candidate, candidate)._replace(**changes)


def test_a_policy_may_disagree_with_what_acts() -> None:
    verdict = judge_policy(policy_evidence(gain=Gain(1.0, 0.5, 3.0, 100)), Limits())
    assert verdict.accepted and verdict.detail["changed"] > 1 and verdict.detail["rounding_divergence"] == 0
    assert judge_policy(policy_evidence(gain=Gain(None, 0.0, 0.0, 9)), Limits(beat_frac=0.5)).accepted


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"n": 49}, {"held-out"}),
        ({"n": 0}, {"held-out"}),
        ({"candidate": np.full((100, 4), np.inf, np.float32)}, {"finite"}),
        ({"candidate_float": np.tile(np.float32([1, 0, 2, 0]), (100, 1))}, {"rounding"}),
        ({"gain": Gain(-3.0, 0.1, 3.0, 100)}, {"off-policy-return"}),
    ],
)
def test_each_check_of_a_policy_fails_by_name(changes: dict[str, object], failed: set[str]) -> None:
    verdict = judge_policy(policy_evidence(**changes), Limits())  # type: ignore[arg-type]  # as above
    assert {name for name, passed in verdict.checks.items() if not passed} == failed
