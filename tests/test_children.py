from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import bus, children, config
from edgert.children import Child, bury, change, ensure_running, open_children, wake_times_s
from edgert.values import Role

BASE = config.Config(device=config.Device(id="d"), policy=config.Policy(bundle="p"))


def test_what_is_not_configured_costs_no_process() -> None:
    simulated = config.Plant(kind="simulated", env="E")
    assert children.roles(msgspec.structs.replace(BASE, plant=simulated)) == ("world", "actor", "trainer")
    bare = msgspec.structs.replace(
        BASE, plant=config.Plant(kind="socket", socket="s"), learn=config.Learn(enabled=False)
    )
    assert children.roles(bare) == ("actor",)
    more = msgspec.structs.replace(bare, placement=config.Placement(enabled=True), offload=config.Offload(enabled=True))
    assert children.roles(more) == ("actor", "placer", "offload")


def test_an_adopted_one_is_not_started_again() -> None:
    found = open_children(("actor", "trainer"), {"actor": 7}, 1.0)
    effects: list[bus.Effect] = []
    found, _ = ensure_running(found, 1.0, effects)
    assert effects == [bus.Start("trainer")] and found["actor"].pid == 7
    again: list[bus.Effect] = []
    ensure_running(found, 1.1, again)
    assert again == []  # it is being started


@pytest.mark.parametrize(("role", "patience_s"), [("actor", children.HANG_S), ("offload", children.PATIENT_HANG_S)])
def test_a_silent_one_is_killed_once(role: Role, patience_s: float) -> None:
    found = {role: Child(pid=5, connected=True, heard_s=100.0)}
    assert ensure_running(found, 100.0 + patience_s, [])[1] == []
    effects: list[bus.Effect] = []
    found, hung = ensure_running(found, 100.1 + patience_s, effects)
    assert hung == [role] and effects[-1] == bus.Kill(role, 5)
    assert ensure_running(found, 100.2 + patience_s, [])[1] == []


def test_a_second_instance_that_found_the_role_taken_does_not_count() -> None:
    found = {"actor": Child(pid=5)}
    effects: list[bus.Effect] = []
    assert bury(found, bus.Exited("actor", 6, 0), 1.0, effects) is None  # type: ignore[arg-type]  # str literal key
    assert bury(found, bus.Exited("placer", 5, 0), 1.0, effects) is None  # type: ignore[arg-type]
    assert effects == []


@given(st.lists(st.floats(0.0, 3.0 * children.STABLE_S), min_size=1, max_size=40))
def test_restarts_back_off_to_a_cap_and_a_long_life_is_forgiven(lives_s: list[float]) -> None:
    found = open_children(("actor",), {}, 0.0)
    now_s = 0.0
    for life_s in lives_s:
        found, _ = ensure_running(found, now_s, [])
        assert found["actor"].pid == 0
        found = change(found, "actor", pid=9, connected=True, since_s=now_s, heard_s=now_s)
        now_s += life_s
        left = bury(found, bus.Exited("actor", 9, 1), now_s, [])
        assert left is not None
        found = left
        wait_s = found["actor"].next_start_s - now_s
        assert 0.0 <= wait_s <= children.RESTART_CAP_S + 1e-6
        if life_s >= children.STABLE_S:
            assert wait_s == 0.0 and found["actor"].failures == 1
        assert wake_times_s(found) == [found["actor"].next_start_s]
        now_s = max(now_s, found["actor"].next_start_s)
    assert found["actor"].restarts == len(lives_s)


def test_waiting_for_a_processor_is_not_hanging() -> None:
    found: children.Children = {"trainer": Child(pid=5, connected=True, heard_s=0.0)}
    assert children.silent(found, children.SILENT_S - 0.1) == {}
    assert children.silent(found, children.SILENT_S) == {"trainer": 5}
    starved = found
    for second in range(2, 900):  # nine tenths of the time
        starved = children.excuse(starved, {"trainer": 40.0 + 0.9 * second})
        if ensure_running(starved, float(second), [])[1]:
            break
    assert second > 5 * children.PATIENT_HANG_S
    asleep = found
    for _ in range(2, 100):
        asleep = children.excuse(asleep, {"trainer": 40.0})
    effects: list[bus.Effect] = []
    assert ensure_running(asleep, children.PATIENT_HANG_S + 1, effects)[1] == ["trainer"]
    assert isinstance(effects[0], bus.Record) and effects[0].detail["waited_s"] == 0.0


def test_what_was_excused_is_forgotten_with_the_next_word() -> None:
    found: children.Children = {"actor": Child(pid=5, connected=True, heard_s=0.0)}
    for waited in (1.0, 9.0):
        found = children.excuse(found, {"actor": waited})
    assert found["actor"].excused_s == 8.0
    for again in (children.heard(found, "actor", 9.0), children.begin(found, "actor", 9.0, pid=6)):
        assert again["actor"].excused_s == 0.0 and again["actor"].waited_s is None
    assert children.excuse(found, {"world": 3.0}) == found
