from __future__ import annotations

import json
from pathlib import Path

import pytest

import tools.bench.offload as bench
from tools.bench.offload.arms import ARMS, SETTINGS
from tools.bench.offload.world import FLOORS, LINKS


def test_all_who_have_settings_have_as_many_of_them() -> None:
    assert {len(arm.grid) for arm in ARMS.values()} == {1, SETTINGS}
    assert all(len(set(arm.grid)) == len(arm.grid) for arm in ARMS.values())


def test_every_floor_is_played_with_every_number_of_users_and_every_kind_of_link() -> None:
    cells = [
        cell for users in range(1, 6) for links in LINKS for cell in bench.cells("fitted", users, links, quick=False)
    ]
    plain = [cell for cell in cells if cell.per == "user"]
    for floor in FLOORS:
        mine = [cell for cell in plain if cell.floor == floor]
        assert {cell.users for cell in mine} == set(range(1, 6)) and {cell.links for cell in mine} == set(LINKS)
    assert sum(cell.floor == bench.ALWAYS for cell in plain) == 20
    assert {cell.floor for cell in cells if cell.per == "average"} == {"80", "85", "89"}


def test_tuning_takes_the_lowest_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    def score(users: int, links: str, floor: str, seed: int) -> dict[str, list[float]]:
        played.append(seed)
        return {name: [2.0, 1.0, *[3.0] * 6] for name, arm in ARMS.items() if len(arm.grid) > 1}

    monkeypatch.setattr(bench, "tuned_in", score)
    monkeypatch.setattr(bench, "TUNED", tmp_path / "tuned.json")
    for _ in range(2):
        bench.tune(tmp_path)
    assert len(played) == 2 * len(bench.TUNED_CASES) and min(played) >= 1000
    assert set(bench.settings().values()) == {1}
    assert json.loads(bench.TUNED.read_text())["hybrid"]["score"][1] == 1.0
