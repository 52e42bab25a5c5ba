from __future__ import annotations

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("gymnasium")
from tools.bench.rapidrl import draw


def figures(x: float | None, y: float | None) -> dict[str, object]:
    return {"ops_ratio": {"value": x, "ci": [x, x]}, "return_ratio": {"value": y, "ci": [y, y]}}


def test_points_of_a_group_go_from_cheap_to_dear_and_unknown_ones_are_left_out() -> None:
    policies = {
        "small34": figures(0.34, 0.8),
        "small20": figures(0.2, 0.5),
        "smaller": figures(0.1, 0.1),
        "small55": figures(0.5, None),
    }
    assert [point[:2] for point in draw.points(policies, "small")] == [(0.2, 0.5), (0.34, 0.8)]
    assert draw.points(policies, "gap@") == []


def test_no_policy_belongs_to_two_groups() -> None:
    prefixes = [prefix for prefix in draw.LOOKS if prefix != "small"]
    for one in prefixes:
        assert not [other for other in prefixes if other != one and other.startswith(one)]
