"""Seeds to look at and seeds to report: two sets of traces that have nothing in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgert import bundle
from edgert.errors import UsageError
from edgert.ports.board.physics import Model
from tools.bench.govern import RESULTS, earlier, parse
from tools.bench.govern.traces import RECORDED, cases, steady

MODELS = Path(__file__).parents[4] / "models"
MANIFESTS = [bundle.read((MODELS / f"{name}.edgert").read_bytes()).manifest for name in ("pong", "breakout")]
BOARDS = [Model(), Model(cores=2, busy_w_per_core=2.0)]


def test_what_is_reported_was_not_looked_at() -> None:
    look, told = (
        {each.name: each for each in cases(MANIFESTS, BOARDS, seeds=s, quick=True)} for s in ("look", "report")
    )
    assert set(told) < set(look) and set(look) - set(told) <= {path.stem for path in RECORDED.glob("*.csv")}
    assert all(told[name].scenario != look[name].scenario for name in told)
    assert parse([]).set == "report" and parse(["--set", "look"]).set == "look"


def test_steady_traces_differ_by_their_noise_alone() -> None:
    look, told = (steady(MANIFESTS, BOARDS, seeds=seeds) for seeds in ("look", "report"))
    assert [each.name for each in look] == [each.name for each in told]
    assert look[0].scenario != told[0].scenario and look[0].goals == told[0].goals


def test_equal_seeds_give_equal_traces_and_names_are_told_once() -> None:
    first, again = (cases(MANIFESTS, BOARDS, seeds="report", quick=True) for _ in range(2))
    assert first == again and len({each.name for each in first}) == len(first)


def test_an_earlier_real_run_brings_its_commit(tmp_path: Path) -> None:
    told = earlier(RESULTS / "govern.json")
    assert told["commit"] and "value" in told["arms"]["ours"]
    (tmp_path / "x.json").write_text('{"commit": "c", "real": {}}')
    for wrong in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(UsageError, match="no result"):
            earlier(wrong)
