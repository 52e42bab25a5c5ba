"""A stored event is sent as it is, and a damaged one as a stub with its number."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.programs import events
from edgert.programs.events import EVENT_GAVE_WAY, EVENT_UNREADABLE, encode

STORED = {"at_s": 7.5, "name": "swapped", "detail": {"ok": True}}


def test_an_event_is_sent_as_it_was_stored():
    encoded, why = encode("s", 4, 2, cbor2.dumps(STORED))
    assert wire.decode(encoded, wire.Event)[0] == wire.Event(stream="s", seq=4, first=2, **STORED)
    assert why == ""


@pytest.mark.parametrize("detail", [{"x": 1 << 80}, {1: 2}, {"x": [[[[0]]]] * 3, "y": {"z": 1 << 64}}])
def test_what_a_collector_would_refuse_is_not_sent(detail):
    encoded, why = encode("s", 4, 2, cbor2.dumps({**STORED, "detail": detail}))
    assert wire.decode(encoded, wire.Event)[0].name == EVENT_UNREADABLE
    assert why.startswith("event 4: ")


def test_what_gave_way_keeps_its_number_and_is_no_fault():
    encoded, why = encode("s", 4, 2, b"")
    assert (wire.decode(encoded, wire.Event)[0].name, why) == (EVENT_GAVE_WAY, "")


def test_what_a_stranger_can_cause_is_minor_and_what_was_done_is_not():
    assert {"bad-command", "command-refused", "budget-changed"} <= events.MINOR
    assert not events.MINOR & {"job-ended", "uploaded", "swapped", "update-kept", "child-exited", "policy-rolled-back"}


@given(st.binary(max_size=60))
def test_damage_never_stops_the_stream(payload):
    encoded, why = encode("s", 4, 2, payload)
    event, _ = wire.decode(encoded, wire.Event)
    assert (event.seq, event.first) == (4, 2)
    assert bool(why) is (event.name == EVENT_UNREADABLE)
