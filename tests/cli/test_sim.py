from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgert import cli
from edgert.cli.sim import NAMES
from edgert.ports.board.scenario import SCENARIOS, load

SHORT = ["--hours", "0.2", "--period", "10"]


def run(*argv: str) -> int:
    return cli.main(["sim", "board", *SHORT, *argv])


def test_the_help_names_every_scenario() -> None:
    assert tuple(SCENARIOS) == NAMES


@pytest.mark.parametrize("scenario", NAMES)
def test_every_scenario_can_be_shown(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--scenario", scenario) == cli.OK
    shown = capsys.readouterr().out
    assert scenario in shown
    assert "because" in shown
    assert "switches_per_hour" in shown


def test_a_recorded_trace_is_lived_through_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.csv"
    assert run("--scenario", "low-battery", "--seed", "3", "--record", str(trace), "--json") == cli.OK
    first = json.loads(capsys.readouterr().out)
    assert trace.read_text().startswith("# simulated: edgert sim board --hours 0.2")
    assert len(load(trace).rows) == 12
    assert run("--scenario", str(trace), "--json") == cli.OK
    again = json.loads(capsys.readouterr().out)
    figures = {name: value for name, value in first["summary"].items() if isinstance(value, float)}
    assert len(figures) > 5
    assert {name: again["summary"][name] for name in figures} == pytest.approx(figures, rel=1e-4)
    assert again["columns"]["why"] == first["columns"]["why"]


def test_a_report_is_one_page_with_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "r.html"
    assert run("--report", str(page)) == cli.OK
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "throttles from" in text


def test_what_makes_no_sense_is_a_bad_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.csv").write_text("t_s,ambient_c\n0,20\n60")
    for wrong in (
        ["--scenario", "rain"],
        ["--scenario", str(tmp_path / "torn.csv")],
        ["--board", "toaster"],
        ["--hours", "0"],
        ["--period", "0"],
    ):
        assert run(*wrong) in (cli.BAD_CONFIG, cli.ERROR)
    shown = capsys.readouterr().err
    assert "torn.csv, line 3: 1 cells for 2 columns; is it torn?" in shown
    assert "no board 'toaster'" in shown
