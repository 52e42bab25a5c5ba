"""What jobs may be told."""

from __future__ import annotations

import pytest

from edgert.fleet.kinds import RULES, Bench, Evaluate, Fetch, Kind, NoArgs, Update, read_args

SHA = "0" * 64


@pytest.mark.parametrize(
    ("kind", "told", "read"),
    [
        (Kind.TRAIN, {}, NoArgs()),
        (Kind.UPLOAD, {}, NoArgs()),
        (Kind.EVALUATE, {"episodes": 3}, Evaluate(3)),
        (Kind.FETCH, {"for_s": 60, "bytes_per_s": 100}, Fetch(60.0, 100.0)),
        (Kind.BENCH, {"for_s": 10}, Bench(10.0)),
        (Kind.CALIBRATE, {}, Bench()),
        (Kind.UPDATE, {"sha256": SHA, "size_bytes": 5, "version": 2, "hashes": "ab"}, Update(SHA, 5, 2, "ab")),
    ],
)
def test_good_arguments(kind, told, read):
    assert read_args(kind, told) == read


@pytest.mark.parametrize(
    ("kind", "told", "why"),
    [
        (Kind.TRAIN, {"steps": 3}, "steps"),
        (Kind.EVALUATE, {"episodes": 0}, "episodes"),
        (Kind.EVALUATE, {"episodes": "many"}, "int"),
        (Kind.FETCH, {"for_s": 1e9}, "for_s"),
        (Kind.UPDATE, {"sha256": "../../etc", "size_bytes": 5}, "sha256"),
        (Kind.UPDATE, {}, "sha256"),
        (Kind.UPDATE, {"sha256": SHA, "size_bytes": 5, "version": 1, "hashes": "xy"}, "hashes"),
        (Kind.BENCH, {"for_s": 1 << 70}, "args"),
    ],
)
def test_bad_arguments_are_refused_with_words(kind, told, why):
    read = read_args(kind, told)
    assert isinstance(read, str)
    assert why in read


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_rules(kind):
    assert RULES[kind].timeout_s >= 60
