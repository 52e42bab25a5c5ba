from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgert.ports import broker
from tools.bench import rlink
from tools.bench.rlink import foreign


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        ([], None),
        ([(10, 1.0), (20, 9.0)], None),
        ([(10, 9.0), (20, 1.0), (30, 9.0), (40, 8.0), (50, 0.0)], 30),
    ],
)
def test_a_threshold_is_reached_when_it_is_held(curve: list[tuple[int, float]], steps: int | None) -> None:
    assert foreign.steps_to(curve, 8.0) == steps


def life(steps: int | None, *values: float) -> dict[str, Any]:
    return {"steps_to_threshold": steps, "curve": [(i, value) for i, value in enumerate(values)]}


def test_a_life_that_never_gets_there_counts_as_a_whole_one() -> None:
    lives = {
        "alone": [life(None, 0, 1, 2, 2), life(800, 0, 1, 2, 4)],
        "targets": [life(100, 0, 5, 5, 6)] * 2,
        "none": [],
    }
    found = foreign.compared(lives, 1000)
    assert found["alone"]["never"] == 1 and found["alone"]["steps_to_threshold"]["value"] == 900
    assert found["targets"]["fewer_than_alone_x"]["value"] == 9 and found["targets"]["final"]["value"] == 6
    assert "none" not in found


def test_a_command_is_told_without_where_its_files_lie() -> None:
    told = ["--game", "acrobot", "--out", "/x.json", "--seeds", "1"]
    assert foreign.without(told, "--out", "--runs") == ["--game", "acrobot", "--seeds", "1"]


@pytest.mark.system
def test_it_runs_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("stable_baselines3", "minatar"):
        pytest.importorskip(package, reason="stable-baselines3 and minatar are not installed: no foreign student lived")
    if broker.mosquitto_path() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto): no foreign student lived")
    out = tmp_path / "foreign.json"
    few = ["foreign", "--game", "breakout", "--students", "dqn", "ppo", "--seeds", "1", "--steps", "1500"]
    few += ["--every", "1000", "--episodes", "1", "--out", str(out)]
    assert rlink.main(few) == 0
    for student, arms in foreign.ARMS.items():
        told = json.loads(out.read_text())[f"breakout, {student}"]
        lives = told["lives"]
        assert lives.keys() == arms.keys() == told["arms"].keys()
        assert len({life["gradient_updates"] for (life,) in lives.values()}) == 1
        assert all(life["teacher"]["known"] > 50 for name, (life,) in lives.items() if name != foreign.ALONE)
    capsys.readouterr()
    assert rlink.main(few) == 0 and not capsys.readouterr().out, "nothing is lived twice"
