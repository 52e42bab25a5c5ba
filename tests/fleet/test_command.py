from __future__ import annotations

import math

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.config import Goals
from edgert.fleet.command import Bad, SetGoals, read_exits, read_goals
from edgert.values import Operating, SetExits


def command(**fields: object) -> bytes:
    return cbor2.dumps({"schema": "exits-command", "v": 1, "id": "c1", **fields})


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({}, SetExits(id="c1")),
        ({"thresholds": [0.0, 1]}, SetExits(id="c1", operating=Operating((0.0, 1.0)))),
        (
            {"thresholds": [0.2, 0.3], "repeat": 4, "hold_threshold": 0.9, "max_ops_frac": 0.5, "valid_s": 60},
            SetExits(id="c1", operating=Operating((0.2, 0.3), 4, 0.9), max_ops_frac=0.5, left_s=60.0),
        ),
        ({"point": 7}, SetExits(id="c1", point=7)),
        ({"max_ops_frac": 0.25, "of a later version": 1}, SetExits(id="c1", max_ops_frac=0.25)),
    ],
)
def test_a_sound_command_becomes_an_order(fields: dict[str, object], order: SetExits) -> None:
    assert read_exits(command(**fields), 3) == order


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"thresholds": [0.5]}, "1 thresholds for 3 exits"),
        ({"thresholds": [0.5] * 3}, "3 thresholds for 3 exits"),
        ({"thresholds": [0.5, 1.1]}, "0..1"),
        ({"thresholds": [0.5, -0.1]}, "0..1"),
        ({"thresholds": [0.5, math.nan]}, "0..1"),
        ({"thresholds": [0.5, math.inf]}, "0..1"),
        ({"thresholds": [0.5, 0.5], "repeat": 0}, "repeat"),
        ({"thresholds": [0.5, 0.5], "repeat": 65}, "repeat"),
        ({"thresholds": [0.5, 0.5], "hold_threshold": math.nan}, "hold_threshold"),
        ({"thresholds": [0.5, 0.5], "point": 1}, "only one"),
        ({"repeat": 2}, "need thresholds"),
        ({"point": -1}, "counted from 0"),
        ({"max_ops_frac": math.nan}, "max_ops_frac"),
        ({"max_ops_frac": 1.5}, "max_ops_frac"),
        ({"valid_s": 0}, "valid_s"),
        ({"valid_s": math.inf}, "valid_s"),
        ({"valid_s": math.nan}, "valid_s"),
    ],
)
def test_what_makes_no_sense_is_named_and_answered(fields: dict[str, object], words: str) -> None:
    bad = read_exits(command(**fields), 3)
    assert isinstance(bad, Bad) and bad.id == "c1" and words in bad.why


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        command(id="a/b"),
        command(id=""),
        command(id=3),
        command(thresholds="0.5"),
        command(thresholds=[[]]),
    ],
)
def test_what_cannot_be_read_has_nobody_to_answer(payload: bytes) -> None:
    bad = read_exits(payload, 3)
    assert isinstance(bad, Bad) and bad.id is None and bad.why


@given(
    st.dictionaries(
        st.sampled_from(["thresholds", "repeat", "hold_threshold", "point", "max_ops_frac", "valid_s"]),
        st.none() | st.integers(-3, 70) | st.floats() | st.lists(st.floats(), max_size=3),
    ),
    st.integers(1, 4),
)
def test_only_settings_that_can_be_run_pass(fields: dict[str, object], n_exits: int) -> None:
    told = read_exits(command(**fields), n_exits)
    if isinstance(told, SetExits):
        assert told.operating is None or told.operating.fault(n_exits) == ""
        assert 0 <= told.max_ops_frac <= 1
        assert told.left_s is None or 0 < told.left_s < math.inf
        wire.decode(command(**fields), wire.ExitsCommand)


def goals(**fields: object) -> bytes:
    return cbor2.dumps({"schema": "goals-command", "v": 1, "id": "g1", **fields})


def test_goals_name_what_they_change_and_the_rest_stays_as_configured() -> None:
    configured = Goals(max_power_w=5.0, bytes_per_day=9)
    told = read_goals(goals(goals={"max_power_w": 3, "last_until": "18:00"}, valid_s=60), configured)
    assert told == SetGoals(
        "g1", Goals(max_power_w=3.0, last_until="18:00", bytes_per_day=9), ("last_until", "max_power_w"), 60.0
    )
    assert read_goals(goals(goals={"max_power_w": None}), configured) == SetGoals(
        "g1", Goals(bytes_per_day=9), ("max_power_w",), None
    )
    assert read_goals(goals(), configured) == SetGoals("g1", configured, (), None)


@given(
    st.dictionaries(
        st.sampled_from([*Goals.__struct_fields__, "other"]),
        st.none() | st.integers(-3, 70) | st.floats() | st.text(max_size=5) | st.lists(st.text(), max_size=3),
    ),
    st.none() | st.floats(),
)
def test_only_goals_that_a_file_could_state_pass(named: dict[str, object], valid_s: float | None) -> None:
    told = read_goals(goals(goals=named, valid_s=valid_s), Goals())
    if isinstance(told, SetGoals):
        assert msgspec.convert(msgspec.to_builtins(told.goals), Goals) == told.goals
        assert told.goals.max_power_w is None or 0 < told.goals.max_power_w <= 1000
        assert told.left_s is None or 0 < told.left_s < math.inf
    else:
        assert told.why
