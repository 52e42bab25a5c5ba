from __future__ import annotations

import json
from pathlib import Path

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


@pytest.mark.system
def test_it_runs(tmp_path: Path) -> None:
    for package in ("stable_baselines3", "minatar"):
        pytest.importorskip(package, reason="stable-baselines3 and minatar are not installed: no foreign student lived")
    if broker.mosquitto_path() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto): no foreign student lived")
    out = tmp_path / "foreign.json"
    few = ["--seeds", "1", "--steps", "1500", "2048", "--every", "1000", "--episodes", "1", "--out", str(out)]
    assert rlink.main(["foreign", *few]) == 0
    lives = json.loads(out.read_text())["students"]
    assert {name: list(arms) for name, arms in lives.items()} == {name: list(a) for name, a in foreign.ARMS.items()}
    for arms in lives.values():
        assert len({life["gradient_updates"] for (life,) in arms.values()}) == 1
        assert all(life["teacher"]["known"] > 50 for name, (life,) in arms.items() if name != "alone")
