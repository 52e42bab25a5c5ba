"""Records come back as they went, and what is damaged harms nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.fleet import records
from edgert.fleet.ledger import Job, Order, State
from edgert.fleet.when import When

JOB = Job(
    order=Order(id="j", kind="fetch", args={"for_s": 60.0, "x": b"\x00"}, when=When(link="up"), origin="night"),
    number=3,
    state=State.RUNNING,
    attempt=2,
    why="begun again",
    result={"n": [1, None]},
)
DESIRED = wire.TwinDesired(epoch=5, version=2, settings={"labels": {"a": "b"}})


def test_records_come_back():
    assert records.read_job("j", records.job_bytes(JOB)) == JOB
    assert records.read_time(records.time_bytes(7.5)) == 7.5
    assert records.read_desired(wire.encode(DESIRED)) == DESIRED


def test_there_may_be_none():
    assert (records.read_time(None), records.read_desired(None)) == (None, None)


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_written(state):
    job = Job(order=Order(id="j", kind="train"), number=1, state=state)
    assert records.read_job("j", records.job_bytes(job)).state is state


@given(st.binary(max_size=80))
def test_damage_is_a_job_that_failed(body):
    job = records.read_job("j", body)
    assert (job.order.id, job.state) == ("j", State.FAILED)
    assert records.read_desired(body) is None
    records.read_time(body)


@given(st.integers(0, len(records.job_bytes(JOB)) - 1), st.integers(0, 255))
def test_a_flipped_byte_is_a_job_or_one_that_failed(at, byte):
    body = bytearray(records.job_bytes(JOB))
    body[at] = byte
    assert isinstance(records.read_job("j", bytes(body)).state, State)
