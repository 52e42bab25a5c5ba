"""The verbs without a broker; `tests/programs/test_operator.py` has them with one, and devices."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import pytest

from edgert import cli
from edgert.cli import rollout
from edgert.errors import ConfigError
from edgert.fleet import fetch, roster
from edgert.fleet.rollout import Plan, begin
from edgert.offers import PolicyOffer
from edgert.ports.store import write_atomic
from edgert.programs import operator

MODEL = Path(__file__).parents[2] / "models" / "breakout.edgert"


def left_behind(folder: Path) -> None:
    offer = PolicyOffer(
        id="r1", name="n", sha256="0" * 64, size_bytes=1, chunk_bytes=1024, hashes=fetch.hashes(b"x", 1024), version=4
    )
    record = operator.Record(fleet="f", offer=offer, rollout=begin(Plan(id="r1"), ["a", "b"]))
    write_atomic(operator.path_of(folder, "r1"), msgspec.json.encode(record))


def test_what_was_left_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fleet", "rollout", "status", "--folder", str(tmp_path)]
    assert cli.main(words) == cli.NOTHING_TO_DO
    left_behind(tmp_path)
    assert cli.main([*words, "--json"]) == cli.OK
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["id"], told["version"], told["devices"]) == ("r1", 4, {"a": "waiting", "b": "waiting"})


def test_a_word_about_a_rollout_is_left_for_whoever_drives_it(tmp_path: Path) -> None:
    left_behind(tmp_path)
    for verb in ("pause", "resume", "abort"):
        assert cli.main(["fleet", "rollout", verb, "r1", "--folder", str(tmp_path)]) == cli.OK
        assert (tmp_path / "r1.wish").read_text() == verb
    assert cli.main(["fleet", "rollout", "pause", "r2", "--folder", str(tmp_path)]) == cli.BAD_CONFIG


@pytest.mark.parametrize(
    "words",
    [
        ["rollout", "start", str(MODEL), "--canary", "2", "--broker", "mqtt://h"],
        ["rollout", "start", str(MODEL), "--id", "a/b", "--broker", "mqtt://127.0.0.1:1"],
        ["push", str(MODEL), "--fleet", "+", "--broker", "mqtt://127.0.0.1:1"],
        ["push", str(MODEL), "--broker", "http://h"],
        ["keys", "--broker", "http://h"],
    ],
)
def test_what_cannot_be_is_a_bad_configuration(words: list[str], tmp_path: Path) -> None:
    assert cli.main(["fleet", *words, "--keys", str(tmp_path / "none")]) == cli.BAD_CONFIG


def test_a_bundle_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert cli.main(["fleet", "push", str(tmp_path / "x"), "--broker", "mqtt://h"]) == cli.ERROR


def test_shares_lie_in_0_to_1() -> None:
    assert rollout._share("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError):
        rollout._share("-1")


def test_nobody_is_meant_by_a_name_that_nobody_has() -> None:
    with pytest.raises(ConfigError, match="no device"):
        roster.chosen({}, ["*"])
