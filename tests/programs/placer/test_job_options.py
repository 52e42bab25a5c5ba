"""What a submitted job may say of itself."""

from __future__ import annotations

import pytest

from edgert.errors import UsageError
from edgert.programs.placer.job_options import read_cuts, read_hyper

PART = {"compute_core_s": 0.1, "memory_bytes": 1e6}


def test_how_to_learn() -> None:
    hyper = read_hyper({"learning_rate": 0.5, "target_every": 7.0})
    assert (hyper.learning_rate, hyper.target_every, hyper.gamma) == (0.5, 7, 0.99)
    for wrong in (
        {"speed": 1.0},
        {"gamma": -1.0},
        {"gamma": float("nan")},
        {"target_every": 0.0},
        {"temperature": 0.0},
    ):
        with pytest.raises(UsageError):
            read_hyper(wrong)


def test_how_it_may_be_cut() -> None:
    said = (
        {"kind": "data", "edges": [0], "parts": [PART] * 2},
        {"kind": "layers", "edges": [0, 2], "parts": [PART] * 2},
    )
    cuts, splits = read_cuts(said, 3)
    assert cuts == ((0,), (0, 2))
    assert [(each.kind, len(each.parts)) for each in splits] == [("data", 2), ("layers", 2)]
    assert read_cuts((), 3) == ((), ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "layers", "edges": [0, 3], "parts": [PART] * 2},
        {"kind": "layers", "edges": [0, 1], "parts": [PART]},
        {"kind": "layers", "edges": [1], "parts": [PART]},
        {"kind": "layers", "edges": [0, 0], "parts": [PART] * 2},
        {"kind": "rows", "edges": [0], "parts": [PART]},
        {"kind": "data", "edges": [0], "parts": []},
        {"kind": "data", "parts": [PART]},
        {"kind": "data", "edges": [0], "parts": [{"compute_core_s": -1, "memory_bytes": 1}]},
    ],
)
def test_what_is_no_cut(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        read_cuts((wrong,), 3)
