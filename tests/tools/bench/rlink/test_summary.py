from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench.rlink import plan, summary
from tools.bench.rlink.judge import Judged, Point
from tools.bench.rlink.live import Fault, Run

RNG = np.random.default_rng


def judged(values: list[float], *, every: int = 100, hz: float = 50.0, **other: Any) -> Judged:
    """A run whose networks are worth this, one each `every` transitions."""
    n = every * len(values)
    points = [Point(i * every, i * every / hz, 10 * i * every, value) for i, value in enumerate(values)]
    told = {"episodes": [], "link": {"up_wire_bytes": 10 * n}, "status": {"trainer": {"steps": n // 4}}, **other}
    pace = [(i / 2, int(hz * i / 2)) for i in range(int(2 * n / hz) + 1)]
    return Judged(Run(n, n / hz, 1.0, pace, copies=[], **told), points, 10)


def known(task: str, arm: str, runs: list[Judged], part: str = "convergence", **other: Any) -> list[summary.Known]:
    told = {"link": plan.USUAL, "teacher": "good", **other}
    return [
        summary.Known(plan.Planned(part=part, task=task, arm=arm, seed=i, steps=1000, settings={}, **told), run)
        for i, run in enumerate(runs)
    ]


def test_the_interquartile_mean_leaves_a_quarter_out_on_either_side() -> None:
    assert summary.iqm(np.array([1.0, 2.0, 3.0, 100.0])) == pytest.approx(2.5)
    assert summary.iqm(np.array([7.0])) == pytest.approx(7.0)
    assert summary.iqm(np.array([1.0, 2.0, 9.0])) == pytest.approx((0.25 * 1 + 1 * 2 + 0.25 * 9) / 1.5)
    assert summary.iqm(np.array([[1.0, 3.0], [5.0, 5.0]])).tolist() == [2.0, 5.0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_the_interquartile_mean_lies_between_and_moves_with_all(values: list[float]) -> None:
    row = np.array(values)
    found = float(summary.iqm(row))
    assert row.min() - 1e-6 <= found <= row.max() + 1e-6
    assert float(summary.iqm(row + 5)) == pytest.approx(found + 5, abs=1e-4)


def test_one_lucky_network_does_not_reach_the_threshold() -> None:
    assert summary.reached(judged([0, 10, 0, 0, 9, 11, 10]), 9.5).steps == 400
    assert summary.reached(judged([0, 10, 0, 0, 9, 11, 10]), 9.5).wire_bytes == 4000
    never = summary.reached(judged([0, 1, 2, 3]), 9.5)
    assert never.censored and never.steps == 400 and never.wall_s == 8.0


def test_what_a_life_is_worth_weighs_networks_by_how_long_they_acted() -> None:
    assert summary.life(judged([0, 10, 20, 30])) == pytest.approx(15)
    assert summary.final(judged([0.0] * 6 + [4.0, 8.0])) == pytest.approx(6)


def test_the_threshold_lies_above_what_cloning_reaches() -> None:
    assert summary.threshold_of(60.0, 100.0, 0.0) == (80.0, False)
    assert summary.threshold_of(100.0, 100.0, 0.0) == (90.0, True)
    assert summary.threshold_of(-150.0, -80.0, -500.0) == (-115.0, False)
    threshold, reaches = summary.threshold_of(-81.0, -80.0, -500.0)
    assert reaches and threshold == pytest.approx(-122.0)


def figures() -> tuple[list[summary.Known], dict[str, float]]:
    slow, fast, cloned = [0, 0, 0, 0, 0, 5, 5, 9, 9, 9], [0, 9, 10, 11, 11, 11, 11, 11, 11, 11], [0, 2, 6, 6, 6, 6, 6]
    runs = known("cartpole", "alone", [judged(slow)] * 3) + known("cartpole", "ours", [judged(fast)] * 3)
    runs += known("cartpole", "cloning", [judged(cloned)] * 3)
    runs += known("cartpole", "qdagger", [judged([0, 0, 0, 9, 9, 9])] * 3)
    runs += known("cartpole", "ours", [judged([0, 0, 0, 3, 3, 4, 4, 4, 4, 4])] * 2, "harm", teacher="adversarial")
    return runs, {"good": 10.0, "adversarial": 0.0}


def test_ratios_say_how_many_fewer_steps_were_needed() -> None:
    runs, levels = figures()
    task = summary.of_task("cartpole", runs, levels, RNG(0))
    assert task is not None
    assert task.document["threshold"] == 8.0 and not task.document["cloning_reaches"]
    assert task.document["arms"]["cloning"]["censored"] == 3
    assert task.document["steps_vs_alone_x"] == {"value": 7.0, "ci": [7.0, 7.0]}
    assert task.document["steps_vs_best_distillation_x"]["value"] == 3.0
    assert task.document["arms"]["qdagger"]["steps_vs_alone_x"]["value"] == pytest.approx(700 / 300, rel=1e-3)
    assert task.document["final_vs_teacher"]["value"] == pytest.approx(1.1)
    harm = task.document["harm"]["adversarial"]
    assert harm["final_vs_alone"]["value"] == pytest.approx(4 / 9, abs=1e-3)
    assert harm["life_vs_alone"]["value"] == pytest.approx(26 / 37, abs=1e-3)
    assert task.harm["adversarial"][0] == pytest.approx(4 / 9)


def test_what_the_gate_costs_is_told_from_what_a_teacher_does() -> None:
    runs, levels = figures()
    runs += known("cartpole", "alone-gated", [judged([0, 0, 0, 0, 0, 0, 4, 8, 8, 8])] * 3, "harm")
    task = summary.of_task("cartpole", runs, levels, RNG(0))
    assert task is not None and task.gate is not None
    assert task.document["gate"]["final_vs_alone"]["value"] == pytest.approx(8 / 9, abs=1e-3)
    assert task.document["harm"]["adversarial"]["final_vs_gated"]["value"] == pytest.approx(4 / 8, abs=1e-3)
    found = summary.summary({"cartpole": task}, summary.of_links(runs, {"cartpole": 8.0}, RNG(0)))
    assert found["gate_price_ratio"] == pytest.approx(28 / 37, abs=1e-3)
    assert found["harm_worst_beside_gate"] == pytest.approx(4 / 8, abs=1e-3)
    assert "the gate: life" in summary.table({"tasks": {"cartpole": task.document}, "link": {}, "summary": found})


def test_the_summary_has_every_key_and_a_reason_for_what_is_missing() -> None:
    runs, levels = figures()
    task = summary.of_task("cartpole", runs, levels, RNG(0))
    assert task is not None
    found = summary.summary({"cartpole": task}, summary.of_links(runs, {"cartpole": 8.0}, RNG(0)))
    assert set(summary.KEYS) <= found.keys()
    assert found["convergence_median_x"] == found["convergence_best_x"] == 7.0
    assert found["harm_worst_ratio"] == pytest.approx(4 / 9, abs=1e-3)
    assert found["harm_worst_is"] == "cartpole, teacher adversarial"
    assert found["async_step_rate_at_500ms"] is None and "500 ms" in found["async_step_rate_at_500ms_why"]
    nothing = summary.summary({}, summary.of_links([], {}, RNG(0)))
    assert all(nothing[key] is None and nothing[f"{key}_why"] for key in summary.KEYS)


def test_links_are_compared_with_the_perfect_one() -> None:
    curve = [0.0, 9, 9, 9, 9, 9]
    runs = known("cartpole", "ours", [judged(curve)], "link", link=plan.PERFECT)
    runs += known("cartpole", "ours", [judged(curve, hz=40.0)], "link", link="500ms")
    runs += known("cartpole", "ours", [judged([0, 0, *curve])], "link", link=plan.WORST)
    runs += known("cartpole", "sync", [judged(curve, hz=2.0)], "link", link="500ms")
    links = summary.of_links(runs, {"cartpole": 8.0}, RNG(0))
    assert links["tasks"]["cartpole"]["500ms"]["sync_steps_per_s"] == pytest.approx(2.0, rel=0.05)
    found = summary.summary({}, links)
    assert found["async_step_rate_at_500ms"] == pytest.approx(0.8, rel=0.05)
    assert found["bad_link_convergence_ratio"] == pytest.approx(3.0)


def test_returns_through_an_outage_are_told_apart() -> None:
    run = judged([5.0] * 20, episodes=[(100 * i, 2.0 if 500 <= 100 * i < 1000 else 8.0) for i in range(20)])
    runs = known("cartpole", "ours", [run], "outage", faults=(Fault(500, "outage", 10.0),))
    (told,) = summary.of_outages(runs)
    assert told["before"]["return"] == told["after"]["return"] == 8.0 and told["during"]["return"] == 2.0
    assert told["steps_during"] == 500
