"""A stored event is sent as it is, and a damaged one as a stub with its number."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import config, guard, wire
from edgert.ports.spool import Bounds
from edgert.programs import events
from edgert.programs.events import EVENT_UNREADABLE, encode

STORED = {"at_s": 7.5, "name": "swapped", "detail": {"ok": True}}


def test_an_event_is_sent_as_it_was_stored():
    encoded, fault, why = encode("s", 4, 2, cbor2.dumps(STORED))
    assert wire.decode(encoded, wire.Event)[0] == wire.Event(stream="s", seq=4, first=2, **STORED)
    assert fault == why == ""


@pytest.mark.parametrize("detail", [{"x": 1 << 80}, {1: 2}, {"x": [[[[0]]]] * 3, "y": {"z": 1 << 64}}])
def test_what_a_collector_would_refuse_is_not_sent(detail):
    encoded, fault, why = encode("s", 4, 2, cbor2.dumps({**STORED, "detail": detail}))
    assert wire.decode(encoded, wire.Event)[0].name == EVENT_UNREADABLE
    assert fault == EVENT_UNREADABLE and why.startswith("event 4: ")


def test_what_the_broker_never_takes_does_not_stop_the_stream():
    large = cbor2.dumps({**STORED, "detail": {"log": "x" * 5000}})
    encoded, fault, why = encode("s", 4, 2, large, 4096)
    assert wire.decode(encoded, wire.Event)[0] == wire.Event(
        stream="s", seq=4, first=2, at_s=7.5, name="event-too-large", detail={"was": "swapped"}
    )
    assert why.startswith("event 4: 5") and len(encoded) < 4096
    assert encode("s", 4, 2, large, 6000)[1] == encode("s", 4, 2, large)[1] == ""
    assert fault == "event-too-large"


def test_what_a_stranger_can_cause_takes_no_room_of_what_was_done():
    assert {events.stream_of(name) for name in (*guard.NOISY, "budget-changed", "goals-changed")} == {"notices"}
    done = ("job-ended", "swapped", "update-kept", "child-exited", "policy-rolled-back")
    assert {events.stream_of(name) for name in done} == {"events"}
    assert events.stream_of(events.UPLOADED) == "uploads"


def test_the_streams_are_bounded_as_configured(tmp_path):
    section = config.Spool(max_bytes=70_000, max_age_s=60.0, notices_max_bytes=65_536, uploads_when_full="drop-oldest")
    bounds = events.bounds(section)
    assert tuple(bounds) == events.STREAMS
    assert bounds["events"] == Bounds(max_bytes=70_000, max_age_s=60.0)
    assert (bounds["notices"].max_bytes, bounds["uploads"].when_full) == (65_536, "drop-oldest")
    assert events.bounds(config.Spool())["uploads"].when_full == "reject-newest"


def test_each_event_is_kept_where_it_belongs_and_shown(tmp_path):
    with events.opened(tmp_path / "events.db") as spool:
        for name in ("swapped", "uploaded", "bad-command", "budget-changed"):
            events.record(spool, name, {"a": name}, 7.5)
        held = {name: [cbor2.loads(row)["name"] for _, row in spool.peek(name, 0, 9)] for name in events.STREAMS}
        assert held == {"events": ["swapped"], "uploads": ["uploaded"], "notices": ["bad-command"]}
        spool.settle()
        shown = events.shown(spool)
        assert (shown["spool"]["notices"]["count"], shown["spool_dropped"]) == (2, 0)


@given(st.binary(max_size=60))
def test_damage_never_stops_the_stream(payload):
    encoded, fault, why = encode("s", 4, 2, payload)
    event, _ = wire.decode(encoded, wire.Event)
    assert (event.seq, event.first) == (4, 2)
    assert bool(why) is bool(fault) is (event.name == EVENT_UNREADABLE)
