from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from edgert import cli
from edgert.errors import UsageError
from edgert.programs import boardbench
from edgert.values import Reading, Readings, Throttle

BUNDLE = Path(__file__).parents[2] / "models/breakout.edgert"


def test_one_file_has_everything_and_no_name_of_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "reports/board.json"
    command = ["bench", "board", "--seconds", "0.3", "--bundle", str(BUNDLE), "--report", str(file)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    text = file.read_text()
    found = json.loads(text)
    assert found["format"] == boardbench.FORMAT
    assert found["identity"]["edgert"] and found["identity"]["cores"] >= 1 and found["identity"]["runtimes"]["numpy"]
    (table,) = found["costs"]
    for cost in table["costs"]:
        assert len(cost["exits"]) == 3
        assert 0 < table["expected_s"][f"{cost['runtime']} {cost['precision']}"] < 10
    assert found["training"][0]["p50_s"] > 0
    assert found["jitter"]["p50_s"] <= found["jitter"]["p99_s"] <= found["jitter"]["max_s"]
    assert found["heat"]["speed_frac"] > 0
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    assert "a training step of 32" in said and str(file) in said


def test_what_no_sensor_tells_is_none() -> None:
    found = boardbench.seen(Readings())
    assert found["temp_c"] is None and found["power_w"] is None and found["throttled"] is None


def test_heat_keeps_what_the_board_said_under_load() -> None:
    temps = iter([40.0, 55.0, 70.0, *[80.0] * 100])

    def look() -> Readings:
        return Readings(temp_c=Reading(next(temps)), throttle=Throttle(now=("throttled",)))

    found = boardbench.heat(1.0, look, every_s=0.0)
    assert found["idle"]["temp_c"] == 40.0
    assert [each["temp_c"] for each in found["series"]][:2] == [55.0, 70.0][: len(found["series"])]
    assert found["series"][0]["throttled"] == ["throttled"]


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such bundle"):
        boardbench.report([tmp_path / "none.edgert"], 0.1)
