from __future__ import annotations

from typing import Any

import pytest

from edgert.ports import adaptation, report

COLUMNS: dict[str, list[Any]] = {
    "t_s": [0.0, 10.0, 20.0, 30.0, 40.0],
    "temp_c": [40.0, None, 60.0, 80.0, 70.0],
    "battery_frac": [None] * 5,
    "load_frac": [0.1, 0.2, 0.3, 0.4, 0.5],
    "rtt_s": [0.01, 0.02, None, 2.0, 0.01],
    "link_up": [True, True, False, True, True],
    "teacher_bytes_per_s": [4000.0] * 5,
    "train_steps_hz": [20.0, 20.0, 5.0, 5.0, 20.0],
    "steps_hz": [None, 19.0, 6.0, 5.0, 20.0],
    "exits": [[], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    "why": [
        {"point": "ok"},
        {"point": "temp-high", "train_steps_hz": "temp-high"},
        {"point": "temp-high", "train_steps_hz": "throttled"},
        None,
        {"point": "deadline"},
    ],
}


def test_reasons_hold_from_where_they_are_named_to_where_they_are_not() -> None:
    assert adaptation.reasons(COLUMNS) == {"temp-high": [(10.0, 30.0)], "throttled": [(20.0, 30.0)]}
    assert adaptation.reasons({"t_s": []}) == {}


@pytest.mark.parametrize("without", ["", "temp_c", "rtt_s", "exits", "why", "steps_hz"])
def test_what_is_not_known_is_left_out(without: str) -> None:
    pytest.importorskip("matplotlib")
    columns = {name: values for name, values in COLUMNS.items() if name != without}
    svg = report.adapted(columns, "device-1")
    assert svg.startswith("<svg")
    assert ("temp-high" in svg) == (without != "why")
    assert ("round trip" in svg) == (without != "rtt_s")
    assert "charge" not in svg


def test_nothing_at_all_can_be_drawn_too() -> None:
    pytest.importorskip("matplotlib")
    assert "<svg" in report.adapted({"t_s": []})


def test_more_reasons_need_more_room() -> None:
    fewer = {**COLUMNS, "why": [{"point": "ok"}] * 5}
    assert adaptation.height(COLUMNS) > adaptation.height(fewer)
