"""Schemas: small, checked, and read from a bundle's manifest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.bundle import Action, Observation
from edgert.errors import MessageError, UsageError
from edgert.knowledge import schema
from edgert.knowledge.schema import Schema

EDGE = st.integers(1, 0xFFFF)
SCHEMAS = st.one_of(
    st.builds(
        Schema,
        st.just("transitions"),
        st.tuples(EDGE, EDGE, EDGE),
        st.booleans(),
        st.booleans(),
        st.integers(1, 256),
    ),
    st.builds(schema.values, st.integers(1, 0xFFFF // 4)),
)


@given(SCHEMAS)
def test_a_schema_comes_back(one):
    assert len(one.pack()) == schema.PACKED_BYTES
    assert schema.unpack(one.pack()) == one


@given(st.binary(min_size=schema.PACKED_BYTES, max_size=schema.PACKED_BYTES))
def test_any_bytes_are_a_schema_or_refused(data):
    with contextlib.suppress(MessageError):
        assert schema.unpack(data).pack() == data


@pytest.mark.parametrize("data", [b"", schema.values(3).pack() + b"\0", b"\2" + schema.values(3).pack()[1:]])
def test_other_sizes_and_versions_are_refused(data):
    with pytest.raises(MessageError):
        schema.unpack(data)


@pytest.mark.parametrize(
    "fields",
    [
        ("transitions", (0, 0, 0), False, False, 3),
        ("transitions", (84, 84, 4), False, False, 257),
        ("transitions", (84, 84, 1 << 16), False, False, 3),
        ("values", (84, 84, 4), False, False, 3),
        ("values", (0, 0, 0), False, True, 3),
        ("values", (0, 0, 0), False, False, 0),
    ],
)
def test_impossible_schemas_are_refused(fields):
    with pytest.raises(UsageError):
        Schema(*fields)


@pytest.mark.parametrize(
    ("observation", "planes", "boolean"),
    [
        (Observation((84, 84, 4), 1 / 255), False, False),
        (Observation((10, 10, 4), 1.0), True, True),
        (Observation((10, 10, 1), 1.0), False, True),
        (Observation((60, 80, 2), 0.1, channels=("distance [m]", "speed [m/s]")), True, False),
    ],
)
def test_the_kind_comes_from_the_manifest(observation, planes, boolean):
    found = schema.transitions(observation, Action(6))
    assert (found.planes, found.boolean, found.columns) == (planes, boolean, 6)
    assert found.step_bytes == observation.shape[0] * observation.shape[1] * observation.shape[2] + 6
