"""The verdict and the summary; the whole demo runs in tests/system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgert import wire
from edgert.config import Learn, commented_default, parse
from edgert.errors import UsageError
from edgert.fleet.session import Collector, collect
from edgert.ports.cluster import Stopped
from edgert.ports.screen import History
from edgert.programs import demo
from edgert.programs.events import opened

RATE, DEADLINES, TAUGHT, SWAPPED, EVENTS, STOPPED = range(6)
WELL = Stopped({"device-1": 0, "teacher-1": 0}, [])


def device(**changes: Any) -> dict[str, Any]:
    totals = {
        "nominal_hz": 20.0,
        "decisions_hz": 20.0,
        "missed_frac": 0.0,
        "joined": 100,
        "candidates": 3,
        "events_recorded": 5,
        "events_arrived": 5,
        "events_waiting": 0,
        "events_skipped": 0,
    }
    swaps = changes.pop("swaps", [{"generation": 1, "ok": True, "missed": 0}])
    return {"totals": {**totals, **changes}, "swaps": swaps}


def failed(devices: dict[str, dict[str, Any]], stopped: Stopped = WELL) -> set[int]:
    checks = demo.verdict(devices, stopped, weak=True)
    assert len(checks) == 6
    assert all(check.why for check in checks)
    return {i for i, check in enumerate(checks) if not check.passed}


def test_when_all_is_well_every_check_passes() -> None:
    assert failed({"device-1": device(), "device-2": device()}) == set()


@pytest.mark.parametrize(
    ("changes", "which"),
    [
        ({"decisions_hz": 19.8}, set()),
        ({"decisions_hz": 19.79}, {RATE}),
        ({"decisions_hz": None}, {RATE}),
        ({"missed_frac": 0.005}, set()),
        ({"missed_frac": 0.0051}, {DEADLINES}),
        ({"missed_frac": None}, {DEADLINES}),
        ({"joined": 0}, {TAUGHT}),
        ({"events_arrived": 4}, {EVENTS}),
        ({"events_arrived": 4, "events_waiting": 1}, set()),
        ({"events_arrived": 6}, {EVENTS}),
        ({"events_arrived": 4, "events_skipped": 1}, {EVENTS}),
        ({"events_recorded": None, "events_waiting": None}, {EVENTS}),
    ],
)
def test_one_device_that_broke_a_promise_fails_its_check(changes: dict[str, Any], which: set[int]) -> None:
    assert failed({"device-1": device(), "device-2": device(**changes)}) == which


@pytest.mark.parametrize(
    ("swaps", "passes"),
    [
        ([], False),
        ([{"generation": 1, "ok": True, "missed": 1}], False),
        ([{"generation": 0, "ok": True, "missed": 0}], False),
        ([{"generation": 1, "ok": False, "missed": 0}], False),
        ([{"generation": 1, "ok": True, "missed": 2}, {"generation": 2, "ok": True, "missed": 0}], True),
    ],
)
def test_one_clean_swap_somewhere_is_enough(swaps: list[dict[str, Any]], passes: bool) -> None:
    assert (SWAPPED not in failed({"device-1": device(swaps=[]), "device-2": device(swaps=swaps)})) is passes


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"swaps": []}, True),
        ({"swaps": [], "candidates": 0}, False),
        ({"swaps": [{"generation": 1, "ok": True, "missed": 1}]}, False),
        ({}, True),
    ],
)
def test_a_good_network_need_not_be_replaced_but_its_heirs_must_be_judged(
    changes: dict[str, Any], passes: bool
) -> None:
    assert demo.verdict({"device-1": device(**changes)}, WELL, weak=False)[SWAPPED].passed is passes


@pytest.mark.parametrize(
    "stopped",
    [Stopped({"device-1": 1}, []), Stopped({"device-1": None}, []), Stopped({"device-1": 0}, ["device-1's actor"])],
)
def test_who_did_not_stop_by_himself_is_named(stopped: Stopped) -> None:
    assert failed({"device-1": device()}, stopped) == {STOPPED}
    assert "device-1" in demo.verdict({"device-1": device()}, stopped, weak=True)[STOPPED].why


def test_a_fleet_that_was_never_heard_of_fails() -> None:
    assert failed({}) == {RATE, DEADLINES, TAUGHT, SWAPPED, EVENTS}


def status(second: int, *, pid: int = 7, missed: int = 3) -> dict[str, Any]:
    ticks = 20 * second
    actor = {
        "pid": pid, "ticks": ticks, "missed": missed, "safe": 0, "exits": [ticks // 2, ticks - ticks // 2],
        "latency_p50_s": 1e-3, "latency_p99_s": 2e-3, "latency_max_s": 3e-3, "episodes": second, "returns":
        [float(second)], "faults": {}, "generation": 0, "acting": True, "first_action_s": 1.5, "cpu_s": 0.1,
        "rss_bytes": 1000 + second,
    }  # fmt: skip
    trainer = {"steps": 10 * second, "joined": 5 * second, "cpu_s": 0.2, "rss_bytes": 2000}
    return {"actor": actor, "actor_age_s": 0.25, "trainer": trainer, "counters": {"ask-bytes": 100 * second}}


def summary(history: History, spool: Path, *, events: int = 0, stored: int = 0) -> dict[str, Any]:
    receiver, arrived = Collector(), []
    with opened(spool) as store:
        stream = store.streams["events"].id
        for seq in range(1, stored + 1):
            store.append("events", b"x", 0.0)
            if seq <= events:
                receiver, _, _ = collect(receiver, stream, 1, seq)
                detail = {"generation": seq, "ok": True, "missed": 0}
                arrived.append(
                    wire.Event(stream=stream, seq=seq, first=1, at_s=1000.0 + seq, name="swapped", detail=detail)
                )
        store.acknowledge("events", events)
    return demo.summarise(history, started_s=1000.0, nominal_hz=20.0, events=arrived, receiver=receiver, spool=spool)


def test_the_rate_counts_from_the_first_decision_and_over_a_restart_of_the_actor(tmp_path: Path) -> None:
    history = History()
    for second in range(11):  # 10 s from the first decision on
        history.add(status(second), 1000.0 + second)
    for second in range(1, 6):  # a new process, whose counters start again
        history.add(status(second, pid=8, missed=0), 1010.0 + second)
    totals = summary(history, tmp_path / "events.db")["totals"]
    assert totals["elapsed_s"] == pytest.approx(14.0)
    assert totals["decisions_hz"] == pytest.approx((180 + 100) / 14)
    assert (totals["ticks"], totals["missed"]) == (300, 3)
    assert totals["steps"] == 150
    assert totals["ask_bytes"] == 1500
    assert totals["episodes"] == 15  # one a second, none in second 0
    assert totals["rss_bytes"]["actor"] == 1010


def test_series_have_one_length_and_begin_at_the_start_of_the_run(tmp_path: Path) -> None:
    history = History()
    for second in range(5):
        history.add(status(second), 1000.0 + second)
    told = summary(history, tmp_path / "events.db")
    assert {len(column) for column in told["series"].values()} == {5}
    assert told["series"]["t_s"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert told["series"]["reported_s"][1] == 0.75
    assert told["returns"][1] == (1.75, 2.0)


@pytest.mark.parametrize(("stored", "arrived", "waiting"), [(0, 0, 0), (5, 5, 0), (5, 3, 2), (4, 0, 4)])
def test_events_are_counted_against_the_devices_own_store(
    stored: int, arrived: int, waiting: int, tmp_path: Path
) -> None:
    told = summary(History(), tmp_path / "events.db", events=arrived, stored=stored)
    totals = told["totals"]
    assert (totals["events_recorded"], totals["events_arrived"], totals["events_waiting"]) == (stored, arrived, waiting)
    assert len(told["swaps"]) == arrived
    assert totals["decisions_hz"] is None


def test_a_former_run_is_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / "device-1").mkdir()
    with pytest.raises(UsageError, match="--out"):
        demo.main(["--out", str(tmp_path)])


def test_big_observations_get_a_smaller_ring_and_a_wider_link_and_small_ones_the_same_as_ever() -> None:
    small, pong, huge = demo.settings(1000), demo.settings(84 * 84 * 4), demo.settings(1 << 30)
    usual = Learn().ring_transitions
    assert (small["learn.ring_transitions"], small["teacher.max_bytes_per_s"]) == (usual, 8000.0)
    assert pong["learn.ring_transitions"] == demo.RING_BYTES // (84 * 84 * 4) < usual
    assert pong["teacher.max_bytes_per_s"] == 4 * 84 * 84 * 4
    assert huge["learn.ring_transitions"] == huge["learn.min_transitions"]
    for told in (small, pong):
        text = commented_default({"device.id": "a", "policy.bundle": "p.edgert", **told})
        assert parse(text, "demo").learn.ring_transitions == told["learn.ring_transitions"]
