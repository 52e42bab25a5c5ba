from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.bench import fleet

FOUND: dict[str, dict[str, Any]] = {
    "storm": {
        "devices": 50,
        "wanted": 50,
        "storm_settled_s": 12.34567,
        "duplicate_effects": 1,
        "lost_events": 2,
        "command_rtt_p99_ms": 9.0,
        "command_rtt_p50_ms": 3.0,
        "curve": [(0.0, 0, 0, 50), (12.0, 50, 50, 0)],
    },
    "outage": {"roomy": {"lost": 1}, "tight": {"lost": 0}},
    "cuts": {"lost": ["one", "two"], "boots": [], "power_cuts": 10},
    "updates": {"duplicate_effects": 4, "bytes_ratio_max": 1.01},
    "fuzz": {"fuzz_messages": 100, "fuzz_crashes": 3},
    "idle": {"idle_bytes_per_day": 7},
}


def test_the_summary_adds_up_what_belongs_together() -> None:
    told = fleet.summary(FOUND)
    assert (told["lost_acknowledged"], told["duplicate_effects"]) == (5, 5)
    assert set(told) == {
        "devices",
        "storm_settled_s",
        "duplicate_effects",
        "lost_acknowledged",
        "power_cuts",
        "update_bytes_ratio",
        "fuzz_messages",
        "fuzz_crashes",
        "idle_bytes_per_day",
        "command_rtt_p99_ms",
        "command_rtt_p50_ms",
    }


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    asked: list[str] = []

    def parts(sizes: fleet.Sizes, notes: Path) -> dict[str, Any]:
        return {name: lambda name=name: asked.append(name) or FOUND[name] for name in FOUND}

    monkeypatch.setattr(fleet, "parts", parts)
    words = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert fleet.main([*words, "--parts", "storm", "fuzz"]) == 0
    assert not (tmp_path / "out").exists()
    assert fleet.main(words) == 0
    assert sorted(asked) == sorted(FOUND)
    document = json.loads((tmp_path / "out" / "fleet.json").read_text())
    assert document["summary"]["storm_settled_s"] == 12.35
    assert set(document["how"]) == set(document["parts"]) == set(FOUND)
    assert "<svg" in (tmp_path / "out" / "fleet.svg").read_text()
    assert fleet.main([*words, "--fresh", "--parts", "idle"]) == 0
    assert asked.count("idle") == 2


def test_every_part_can_be_asked_for() -> None:
    assert list(fleet.parts(fleet.QUICK, Path())) == list(fleet.HOW)
    assert fleet.QUICK.devices < fleet.Sizes().devices
