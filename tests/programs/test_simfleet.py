from __future__ import annotations

from pathlib import Path

import pytest

from edgert.fleet.kinds import Kind
from edgert.programs import simfleet
from edgert.programs.simfleet import CHAOS, Plan, broken, live, started

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
KEPT = {
    "devices": 3,
    "up": 2,
    "believed": 2,
    "away": 1,
    "duplicate_effects": 0,
    "events_skipped": 4,
    "events_dropped": 4,
    "commands_open": 0,
    "events_waiting": 0,
    "clones_unnamed": 0,
    "malformed": 0,
}


def test_every_promise_has_its_word() -> None:
    assert broken(KEPT) == []
    for name, value in (
        ("duplicate_effects", 2),
        ("events_skipped", 5),
        ("commands_open", 1),
        ("events_waiting", 1),
        ("clones_unnamed", 1),
        ("up", 1),
        ("believed", 1),
        ("malformed", 1),
    ):
        assert len(broken({**KEPT, name: value})) == 1, name


@pytest.mark.system
def test_a_fleet_keeps_its_promises_in_chaos(mosquitto, tmp_path: Path, monkeypatch) -> None:
    for name, value in (
        ("CHAOS_S", 0.3),
        ("SHARE", 0.3),
        ("RESTART_S", 3.0),
        ("DOWN_S", 0.3),
        ("AGAIN_S", 2.0),
        ("QUIET_S", 1.5),
    ):
        monkeypatch.setattr(simfleet, name, value)
    monkeypatch.setattr(simfleet, "LASTS_S", {"slow": 0.5, "power": 0.0})
    # Clones take half a minute to be told from a bad link, and cut links as long to come back: for longer runs.
    chaos = tuple(each for each in CHAOS if each not in ("clone", "partition", "kick"))
    plan = Plan(devices=8, minutes=0.04, processes=2, chaos=chaos, commands_hz=20.0, bundle=BUNDLE)
    seen: list[str] = []
    with started(plan, tmp_path) as fleet:
        assert fleet.wait(lambda: fleet.up() >= 8, 60.0)
        assert fleet.wait(lambda: len(fleet.head.born) == 8, 30.0)
        for name in fleet.names()[:3]:
            fleet.head.ask(name)
        assert fleet.wait(lambda: len(fleet.head.rtts_s) == 3, 30.0)
        fetched = fleet.head.order(fleet.names()[0], Kind.FETCH)
        found = live(fleet, lambda at_s, totals, happened: seen.extend(happened))
    assert found["broken"] == []
    assert found["commands"] > 15
    assert found["effects"] == found["commands"]
    assert found["events_delivered"] == found["events_recorded"] > found["commands"] - 1
    assert fleet.head.ended[fetched] == "done"
    assert any("SIGKILL" in each for each in seen)
    assert found["faults"]["lost-links"] > 0
