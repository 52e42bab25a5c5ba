from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="NOT TESTED: matplotlib is not installed")

from tools.bench.rlink import draw, plan, summary
from tools.bench.rlink.judge import Judged, Point
from tools.bench.rlink.live import Fault, Run


def judged(value: float) -> Judged:
    points = [Point(100 * i, 2.0 * i, 10 * i, value * i) for i in range(5)]
    pace = [(float(i), 50 * i) for i in range(11)]
    return Judged(Run(500, 10.0, 1.0, pace, [(90, 1.0), (300, 2.0)], [], {}, {"trainer": {"steps": 9}}), points, 10)


def known(part: str, arm: str, value: float, **other: object) -> summary.Known:
    told = {"link": plan.USUAL, "teacher": "good", **other}
    run = plan.Planned(part=part, task="cartpole", arm=arm, seed=1, steps=500, settings={}, **told)  # type: ignore[arg-type]  # by name
    return summary.Known(run, judged(value))


def test_a_network_counts_until_the_next_one_acts() -> None:
    at, rows = draw.curve([judged(3.0)], 500)
    assert rows.shape == (1, draw.GRID) and rows[0, 0] == 0 and rows[0, -1] == 12
    assert np.interp(150, at, rows[0]) == pytest.approx(3.0)


def test_every_plot_is_drawn_for_which_there_is_something(tmp_path: Path) -> None:
    runs = [known("convergence", arm, 2.0 if arm == "ours" else 1.0) for arm in plan.ARMS]
    runs += [known("harm", "ours", 1.0, teacher="adversarial")]
    runs += [known("link", "ours", 1.0, link=link) for link in (plan.PERFECT, "500ms")]
    runs += [known("outage", "ours", 1.0, faults=(Fault(100, "outage", 3.0),))]
    rng = np.random.default_rng(0)
    task = summary.of_task("cartpole", [each for each in runs if each.plan.part != "link"], {"good": 8.0}, rng)
    assert task is not None
    links = summary.of_links(runs, {"cartpole": 4.0}, rng)
    document = {"tasks": {"cartpole": task.document}, "link": links["tasks"]}
    draw.draw(runs, document, tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {f"rlink-{what}.svg" for what in ("curves", "harm", "link", "outage")}
    draw.draw([], {"tasks": {}, "link": {}}, tmp_path / "nothing")
