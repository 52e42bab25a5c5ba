from __future__ import annotations

import re

import pytest

from edgert import cli
from edgert.cli.simfleet import facts, line
from edgert.programs import simfleet

TOTALS = {
    "devices": 3,
    "up": 2,
    "away": 1,
    "commands": 5,
    "commands_open": 1,
    "duplicate_effects": 0,
    "events_recorded": 7,
    "events_delivered": 6,
    "events_waiting": 1,
    "events_dropped": 0,
    "clones": 0,
    "clones_named": 2,
    "clones_unnamed": 0,
    "faults": {"flapping": 2, "links": 9},
    "cpu_s": 1.5,
    "rss_bytes": 3 << 20,
}


def test_the_help_names_everything_that_can_happen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sim", "fleet", "--help"]) == cli.OK
    told = " ".join(capsys.readouterr().out.split())
    assert ", ".join(simfleet.CHAOS) in told


@pytest.mark.parametrize(
    "wrong",
    [
        ["--chaos", "kick,rain"],
        ["--devices", "0"],
        ["--devices", "99999", "--processes", "1"],
        ["--processes", "0"],
        ["--minutes", "-1"],
        ["--commands", "nan"],
    ],
)
def test_what_makes_no_sense_is_a_bad_configuration(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sim", "fleet", *wrong]) == cli.BAD_CONFIG
    assert wrong[0].removeprefix("--") in capsys.readouterr().err


def test_a_line_says_it_all() -> None:
    told = line(TOTALS)
    for figure in ("2 of 3 up", "5, 1 open", "7 written, 6 delivered", "2 noticed", "flapping 2", "1.5 s", "3 MiB"):
        assert figure in told
    assert dict(facts({**TOTALS, "faults": {}}))["links"] == "none"


@pytest.mark.system
def test_a_small_fleet_is_shown_in_a_pipe(mosquitto, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(simfleet, "QUIET_S", 1.5)
    words = ["sim", "fleet", "--devices", "5", "--minutes", "0.02", "--broker", mosquitto.url]
    assert cli.main(words) == cli.OK
    shown = capsys.readouterr().out
    assert re.search(r"^ +0 s  devices 5 of 5 up", shown, re.M)
    assert "every promise was kept" in shown
