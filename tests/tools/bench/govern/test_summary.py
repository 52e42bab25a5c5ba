from __future__ import annotations

import math

import numpy as np
import pytest

from edgert.errors import UsageError
from tools.bench.govern.play import Row
from tools.bench.govern.real import miss_rate
from tools.bench.govern.summary import mean, of, rounded, share


def row(trace: str, **changed: object) -> Row:
    figures: dict[str, object] = dict.fromkeys(Row.__struct_fields__, 0.0) | {
        "trace": trace, "kind": "battery", "board": "b", "bundle": "n", "controller": "ours", "feasible": True,
        "lasted": True, "announced_s": None, "kept": True, "return_frac": 0.9, "bound": 1.0, "bound_equal": 0.95,
    }  # fmt: skip
    return Row(**figures | changed)  # type: ignore[arg-type]  # figures of any kind


def test_the_six_figures_are_of_ours_alone() -> None:
    rows = [
        row("a"),
        row("b", return_frac=0.8, lasted=False),
        row("c", feasible=False, lasted=False, announced_s=5.0, bound=None, bound_equal=None),
        row("d", feasible=None, lasted=None),
        row("a", controller="full depth", return_frac=0.1, lasted=False),
    ]
    steady = [row("s", switches_per_hour=1.5), row("t", switches_per_hour=4.0)]
    ratios = [{"ratio": 0.5}, {"ratio": 1.0}]
    told = of(rows, steady, ratios, {"arms": {"ours": miss_rate(np.array([[20, 1], [20, 0]]))}}, {"value": 1e-3})
    assert set(told) == {
        "oracle_gap_max", "miss_rate_hog", "energy_ratio", "goals_met_frac", "switches_per_hour", "probe_core_frac",
    }  # fmt: skip
    assert told["oracle_gap_max"]["value"] == pytest.approx(0.2)
    assert told["oracle_gap_max"]["trace"] == "b"
    assert told["goals_met_frac"]["value"] == 0.5
    assert told["goals_met_frac"]["infeasible_announced"] == "1 of 1"
    assert told["switches_per_hour"]["value"] == 4.0
    assert told["energy_ratio"]["value"] == 0.75
    assert told["miss_rate_hog"]["value"] == pytest.approx(1 / 40)


def test_intervals_hold_what_they_are_about() -> None:
    told = mean([1.0, 2.0, 3.0, 4.0])
    assert 1.0 <= told["low"] <= told["value"] == 2.5 <= told["high"] <= 4.0
    hits = share(14, 14)
    assert hits["value"] == 1.0
    assert hits["low"] == pytest.approx(0.7847, abs=1e-4), "all of few is not all"
    assert share(0, 0)["value"] is None


def test_no_tick_is_no_rate() -> None:
    with pytest.raises(UsageError):
        miss_rate(np.zeros((0, 2)))


def test_what_is_not_finite_is_unknown() -> None:
    assert rounded({"a": math.inf, "b": [0.123456, "x", None, 3]}) == {"a": None, "b": [0.1235, "x", None, 3]}
