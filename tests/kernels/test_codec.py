"""The adaptive coder: exact there and back, both halves byte for byte alike, and safe whatever it is given to read."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgert.errors import MessageError, UsageError
from edgert.kernels import codec
from edgert.kernels.codec import Coder, Layout

HALVES = [
    pytest.param(None, id="native", marks=pytest.mark.skipif(not codec.NATIVE, reason="the C half is not built")),
    pytest.param(False, id="twin"),
]
ROOM = 1 << 20


@st.composite
def batches(draw):
    """A layout and what fits it: noise, stacks, standing pictures, and all of them one after the other."""
    h, w, c = draw(st.tuples(st.integers(1, 12), st.integers(1, 19), st.integers(1, 5)))
    boolean, planes = draw(st.booleans()), draw(st.booleans())
    n, record = draw(st.integers(1, 6)), draw(st.integers(0, 9))
    high = 1 if boolean else draw(st.sampled_from([1, 3, 255]))
    frames = draw(hnp.arrays(np.uint8, (n + c, h, w), elements=st.integers(0, high), fill=st.just(0)))
    stacks = np.stack([frames[i : i + c].transpose(1, 2, 0) for i in range(n)])
    for i in draw(st.lists(st.integers(0, n - 1), max_size=3)):
        stacks[i] = draw(st.sampled_from([0, *stacks[max(i - 1, 0)].ravel()[:1].tolist()]))
        stacks[i, :, : w // 2] = stacks[i - 1, :, : w // 2]
    records = draw(hnp.arrays(np.uint8, (n, record), fill=st.just(0))) if record else None
    return (
        Layout(h, w, c, planes, boolean, record, draw(st.sampled_from([4, 5, 16]))),
        np.ascontiguousarray(stacks),
        records,
    )


def encoded(layout, obs, records, native, room=ROOM):
    return Coder(layout, native=native).encode(np.ascontiguousarray(obs), records, 5, room)


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(1, 3))
def test_both_halves_give_the_same_bytes_and_read_each_other(batch, split):
    layout, obs, records = batch
    coders = [Coder(layout), Coder(layout, native=False)]
    readers = [Coder(layout), Coder(layout, native=False)]
    for at in range(0, len(obs), split):
        part, fields = obs[at : at + split], None if records is None else records[at : at + split]
        (data, check), (other, other_check) = (each.encode(part, fields, 5, ROOM) for each in coders)
        assert data is not None
        assert (data, check) == (other, other_check)
        for reader in readers:
            back, told, found = reader.decode(data, len(part), 0 if fields is None else len(fields), 5)
            assert np.array_equal(back, part)
            assert fields is None or np.array_equal(told, fields)
            assert found == check


@pytest.mark.parametrize("native", HALVES)
def test_the_format_does_not_change_by_accident(native):
    ramp = (np.arange(3 * 20 * 30 * 4).reshape(3, 20, 30, 4) * 7 // 31 % 251).astype(np.uint8)
    ramp[1, ..., :3], ramp[2, ..., :3] = ramp[0, ..., 1:], ramp[1, ..., 1:]
    ramp[2, 3:6, 4:9, 3] = ramp[1, 3:6, 3:8, 3]
    records = (np.arange(3 * 6).reshape(3, 6) % 5).astype(np.uint8)
    data, check = encoded(Layout(20, 30, 4, False, False, 6), ramp, records, native)
    bits = (ramp[..., :3] % 3 == 1).astype(np.uint8)
    planes, planes_check = encoded(Layout(20, 30, 3, True, True), bits, None, native)
    found = [(len(data), zlib.crc32(data), check), (len(planes), zlib.crc32(planes), planes_check)]
    assert found == GOLDEN, "other bytes: peers of an earlier version cannot read this; raise the codec's number"


GOLDEN = [(1025, 268771437, 2223596285), (238, 1977937427, 2578603473)]


@pytest.mark.parametrize("native", HALVES)
def test_a_frame_of_a_stack_is_sent_once(native):
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 16)).astype(np.uint8)
    stacks = np.stack([frames[i : i + 4].transpose(1, 2, 0) for i in range(5)])
    data, _ = encoded(Layout(16, 16, 4, False, False), stacks, None, native)
    assert data is not None
    assert len(data) < 1.3 * frames.nbytes


@pytest.mark.parametrize("native", HALVES)
def test_a_frame_as_foretold_costs_less_than_a_bit(native):
    frame = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 1)).astype(np.uint8)
    layout = Layout(16, 16, 1, False, False)
    alone, _ = encoded(layout, frame, None, native)
    again, _ = encoded(layout, np.repeat(frame, 65, axis=0), None, native)
    assert alone is not None and again is not None
    assert len(again) <= len(alone) + 8


@pytest.mark.parametrize("native", HALVES)
def test_undo_leaves_no_trace(native):
    rng = np.random.default_rng(2)
    layout = Layout(9, 11, 2, True, False, 3)
    obs, records = rng.integers(0, 4, (4, 9, 11, 2)).astype(np.uint8), rng.integers(0, 9, (4, 3)).astype(np.uint8)
    one, other = Coder(layout, native=native), Coder(layout, native=native)
    assert one.encode(obs[:1], records[:1], 0, ROOM) == other.encode(obs[:1], records[:1], 0, ROOM)
    one.save()
    one.encode(obs[1:3], records[1:3], 0, ROOM)
    one.undo()
    assert one.encode(obs[3:], records[3:], 0, ROOM) == other.encode(obs[3:], records[3:], 0, ROOM)
    one.reset()
    assert one.encode(obs, records, 0, ROOM) == Coder(layout, native=native).encode(obs, records, 0, ROOM)


@pytest.mark.parametrize("native", HALVES)
def test_no_room_and_no_boolean_are_told(native):
    noise = np.random.default_rng(3).integers(0, 256, (1, 16, 16, 1)).astype(np.uint8)
    assert encoded(Layout(16, 16, 1, False, False), noise, None, native, room=100)[0] is None
    assert encoded(Layout(16, 16, 1, True, True), noise, None, native)[0] is None


@pytest.mark.parametrize("native", HALVES)
@pytest.mark.parametrize("layout", [Layout(12, 20, 4, False, False, 6), Layout(10, 10, 3, True, True, 2)])
def test_whatever_is_read_ends_in_arrays_or_a_named_error(native, layout):
    rng = np.random.default_rng(4)
    obs = rng.integers(0, 2, (3, layout.height, layout.width, layout.channels)).astype(np.uint8)
    good, _ = encoded(layout, obs, rng.integers(0, 2, (3, layout.record)).astype(np.uint8), native)
    assert good is not None
    reader, outcomes = Coder(layout, native=native), set()
    for i in range(3000 if native is None else 60):
        if i % 3 == 0:
            data = rng.integers(0, 256, int(rng.integers(0, 120))).astype(np.uint8).tobytes()
        else:
            mutated = bytearray(good)
            for _ in range(int(rng.integers(1, 4))):
                mutated[int(rng.integers(len(mutated)))] ^= 1 << int(rng.integers(8))
            data = bytes(mutated[: int(rng.integers(1, len(mutated) + 1))] if i % 3 == 1 else mutated)
        try:
            back, _, _ = reader.decode(data, int(rng.integers(1, 5)), int(rng.integers(0, 5)), 0)
            outcomes.add(back.shape[1:] == obs.shape[1:])
        except MessageError:
            outcomes.add("refused")
        if i % 7 == 0:  # otherwise the next one meets whatever state this one left
            reader.reset()
    assert "refused" in outcomes
    assert False not in outcomes


@pytest.mark.parametrize("native", HALVES)
def test_little_data_costs_little_whatever_it_claims(native):
    reader = Coder(Layout(84, 84, 1, False, False), native=native)
    with pytest.raises(MessageError, match="do not hold"):
        reader.decode(b"\x55\xaa\x37", 2000 if native is None else 20, 0, 0)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(0, 4, 4, False, False),
        Layout(1 << 16, 1, 1, False, False),
        Layout(60000, 2, 60000, True, False),
        Layout(4, 4, 4, False, False, -1),
        Layout(4, 4, 4, False, False, 0, 3),
        Layout(8192, 8192, 1, False, False, 0, 200),
        Layout(4.0, 4, 4, False, False),  # type: ignore[arg-type]  # that is the point
    ],
)
def test_impossible_layouts_are_refused(layout):
    with pytest.raises(UsageError):
        Coder(layout)


@pytest.mark.parametrize(
    ("obs", "records"),
    [
        (np.zeros((1, 4, 4, 2), np.int8), None),
        (np.zeros((1, 4, 5, 2), np.uint8), None),
        (np.zeros((1, 4, 4, 4), np.uint8)[..., ::2], None),
        (None, np.zeros((1, 2), np.uint8)),
        ([[1]], None),
    ],
)
def test_wrong_arrays_are_refused(obs, records):
    with pytest.raises(UsageError):
        Coder(Layout(4, 4, 2, False, False)).encode(obs, records, 0, ROOM)
