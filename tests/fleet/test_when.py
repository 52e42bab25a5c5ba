"""Conditions: each holds, fails, and fails when nobody knows."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.fleet.when import Facts, When, unmet

# (condition, facts that meet it, facts that do not)
CASES = [
    ({"battery_above_frac": 0.5}, {"battery_frac": 0.5}, {"battery_frac": 0.49}),
    ({"battery_above_frac": 0.5}, {"mains": True}, {}),
    ({"battery_below_frac": 0.2}, {"battery_frac": 0.2}, {"battery_frac": 0.21}),
    ({"battery_below_frac": 0.2}, {"battery_frac": 0.1}, {"battery_frac": 0.1, "mains": True}),
    ({"battery_below_frac": 0.2}, {"battery_frac": 0.1}, {}),
    ({"temp_below_c": 60.0}, {"temp_c": 59.9}, {"temp_c": 60.0}),
    ({"temp_below_c": 60.0}, {"temp_c": -5.0}, {}),
    ({"link": "up"}, {"link_up": True}, {"metered": False}),
    ({"link": "unmetered"}, {"link_up": True, "metered": False}, {"link_up": True, "metered": True}),
    ({"link": "unmetered"}, {"link_up": True, "metered": False}, {"link_up": True}),
    ({"link": "unmetered"}, {"link_up": True, "metered": False}, {"metered": False}),
    ({"idle": True}, {"idle": True}, {"idle": False}),
    ({"idle": True}, {"idle": True}, {}),
    ({"charging": True}, {"charging": True}, {"charging": False}),
    ({"charging": True}, {"mains": True}, {}),
]


@pytest.mark.parametrize(("when", "met", "not_met"), CASES)
def test_conditions(when, met, not_met):
    assert unmet(When(**when), Facts(**met)) == ()
    (why,) = unmet(When(**when), Facts(**not_met))
    assert next(iter(when)) in why


def test_every_condition_has_a_case():
    assert {name for when, _, _ in CASES for name in when} == set(When.__struct_fields__)


@given(st.builds(Facts, battery_frac=st.none() | st.floats(0, 1), metered=st.none() | st.booleans()))
def test_nothing_asked_is_nothing_unmet(facts):
    assert unmet(When(), facts) == ()


def test_unknown_conditions_are_refused():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"battery_over": 0.5}, When)
