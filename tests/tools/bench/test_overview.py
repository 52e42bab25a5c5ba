from __future__ import annotations

import json

import pytest

from tools.bench import overview
from tools.bench.overview import Aim

LESS = Aim("time", ("x",), 1.0, 0.5)
MORE = Aim("return", ("x",), 0.9, more=True)


@pytest.mark.parametrize(
    ("aim", "value", "verdict"),
    [
        (LESS, 0.5, "beaten"),
        (LESS, 1.0, "met"),
        (LESS, 1.01, "missed"),
        (MORE, 0.9, "met"),
        (MORE, 2.0, "met"),
        (MORE, 0.89, "missed"),
    ],
)
def test_a_figure_is_held_against_its_aims(aim: Aim, value: float, verdict: str) -> None:
    assert overview._verdict(aim, value) == verdict


@pytest.mark.parametrize(
    ("summary", "path", "read"),
    [
        ({"x": 2}, ("x",), (2.0, [])),
        ({"x": 2, "x_ci": [1, 3]}, ("x",), (2.0, [1, 3])),
        ({"x": [2, 1, 3]}, ("x",), (2.0, [1, 3])),
        ({"x": {"value": 2, "ci": [1, 3]}}, ("x",), (2.0, [1, 3])),
        ({"x": {"value": 2, "low": 1, "high": 3}}, ("x",), (2.0, [1, 3])),
        ({"x": {"value": 2, "trace": "t"}}, ("x",), (2.0, [])),
        ({"y": {"x": 2}}, ("y", "x"), (2.0, [])),
        ({"shield_ms_25_nodes": [1, 2, 3]}, ("shield_ms_25_nodes",), (1.0, [])),
    ],
)
def test_intervals_are_read_as_each_benchmark_writes_them(
    summary: dict[str, object], path: tuple[str, ...], read: tuple[float, list[float]]
) -> None:
    assert overview._read(summary, path) == read


def test_programs_read_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert overview.main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == sum(len(aims) for _, aims in overview.AIMS.values())
    assert {row["verdict"] for row in rows} <= {"beaten", "met", "missed"}
    assert overview.main([]) == 0
    assert capsys.readouterr().out == overview.table()


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.94, "0.94"), (0.9983, "0.998"), (1.0, "1"), (0.005, "1/200")]
)
def test_a_figure_short_of_one_is_not_rounded_to_it(value: float, text: str) -> None:
    assert overview._number(value) == text


def test_a_single_run_has_no_interval() -> None:
    assert all(each.low is None or each.low < (each.high or 0.0) for each in overview.found())
