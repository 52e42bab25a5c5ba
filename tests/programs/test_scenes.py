from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgert.ports.board.scenario import load
from edgert.ports.screen import History
from edgert.programs import scenes
from edgert.programs.scenes import BOARD, SCENES, Stage


def status(t: float, temp_c: float, why: str, exits: list[int], steps: int) -> dict[str, object]:
    return {
        "board": {"temp_c": temp_c, "load_frac": 0.5},
        "budget": {"train_steps_hz": 20.0, "teacher_bytes_per_s": 100.0, "max_exit": 1, "why": {"point": why}},
        "actor": {
            "exits": exits, "ticks": sum(exits), "latency_p50_s": 0.0, "latency_p99_s": 0.0, "latency_max_s": 0.0,
        },
        "trainer": {"steps": steps},
        "link": {"up": True, "rtt_s": 0.01},
    }  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_a_stage_tells_what_happens_from_beginning_to_end(name: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]  # pytest's own
    monkeypatch.setattr(Stage, "_hog", lambda self, count: None)
    stage = Stage(name, tmp_path, 2.0)
    told = {stage.poll(elapsed_s) for elapsed_s in range(0, 121, 2)}
    assert len({each.partition(": ")[2] for each in told}) > 1, "something changes"
    assert stage.speed * 120 == pytest.approx(SCENES[name].hours * 3600)
    stage.stop()


@pytest.mark.parametrize("name", BOARD)
def test_the_trace_of_a_simulated_board_lies_in_a_file(name: str, tmp_path: Path) -> None:
    stage = Stage(name, tmp_path, 1.0)
    trace = load(Path(str(stage.config["board.scenario"])))
    assert trace.rows == stage.scenario.rows
    assert (trace.capacity_j, trace.charge_frac) == (stage.scenario.capacity_j, stage.scenario.charge_frac)


def test_a_bad_link_is_a_relay_that_follows_the_trace(tmp_path: Path) -> None:
    stage = Stage("bad-link", tmp_path, 1.0)
    stage.start(1)
    try:
        gone = next(row for row in stage.scenario.rows if not row.link_up)
        assert "down" in stage.poll(gone.t_s / stage.speed + 0.01)
        assert json.loads((tmp_path / "link.json").read_text())["blackhole"] is True
        assert str(stage.config["broker.url"]).startswith("mqtt://127.0.0.1:")
    finally:
        stage.stop()


def test_hogs_come_and_go_and_none_is_left(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]  # pytest's own
    monkeypatch.setattr(scenes, "HOG", "import time; time.sleep(60)")
    stage = Stage("cpu-hog", tmp_path, 1.0)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for row in stage.scenario.rows:
            stage.poll(row.t_s / stage.speed)
            started += [hog for hog in stage._hogs if hog not in started]
        assert started
    finally:
        stage.stop()
    assert all(hog.poll() is not None for hog in started)


def test_what_devices_said_becomes_columns_and_a_verdict(tmp_path: Path) -> None:
    stage, history = Stage("heatwave", tmp_path, 1.0), History()
    for k, why in enumerate(("ok", "ok", "temp-high")):
        history.add(status(k, 40.0 + k, why, [10 * k, 30 * k], 20 * k), 1000.0 + k)
        stage.note({"device-1": history}, 1000.0)
        stage.note({"device-1": history}, 1000.0)
    columns = stage.columns("device-1")
    assert columns["t_s"] == [0.0, 1.0, 2.0]
    assert columns["temp_c"] == [40.0, 41.0, 42.0]
    assert columns["exits"] == [[], [0.25, 0.75], [0.25, 0.75]]
    assert columns["steps_hz"] == [None, 20.0, 20.0]
    assert columns["trip_c"] == [80.0] * 3
    assert stage.adapted(["device-1"]) == (True, "device-1: temp-high")
    assert stage.adapted(["device-1", "device-2"])[0] is False
    assert stage.adapted([])[0] is False
    assert stage.columns("device-2") == {"t_s": [], "exits": [], "steps_hz": []}
