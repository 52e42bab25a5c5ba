"""Observations and Q-values: exact there and back, small, and proof against anything a peer may send."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgert.errors import MessageError, UsageError
from edgert.knowledge import codec

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))


@st.composite
def observations(draw: st.DrawFn) -> np.ndarray:
    n, shape = draw(st.integers(0, 12)), draw(SHAPES)
    high = draw(st.sampled_from([0, 1, 2, 255]))
    return draw(hnp.arrays(np.uint8, (n, *shape), elements=st.integers(0, high)))


def booleans(n: int = 40, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, 10, 10, 4)) < 0.03).astype(np.uint8)


EACH = pytest.mark.parametrize("one", [pytest.param(one, id=f"codec{n}") for n, one in codec.CODECS.items()])


@EACH
@given(obs=observations())
def test_observations_come_back_exactly(one, obs):
    back = one.decode_obs(one.encode_obs(obs), len(obs), obs.shape[1:])
    assert back.dtype == np.uint8
    assert back.shape == obs.shape
    assert np.array_equal(back, obs)
    assert back.flags.writeable


@EACH
@given(bits=hnp.arrays(np.uint32, st.tuples(st.integers(0, 20), st.integers(1, 20))))
def test_q_values_come_back_bit_for_bit(one, bits):
    q = bits.view(np.float32)
    data = one.encode_q(q)
    assert np.array_equal(one.decode_q(data, *q.shape).view(np.uint32), bits)
    assert len(data) <= codec.q_bytes_bound(*q.shape)


def test_q_bound_holds_for_what_does_not_compress():
    noise = np.random.default_rng(0).integers(0, 1 << 32, (4096, 60), np.uint32).view(np.float32)
    assert len(codec.encode_q(noise)) <= codec.q_bytes_bound(*noise.shape)


def test_more_frames_than_a_byte_can_count():
    obs = np.random.default_rng(1).integers(0, 256, (700, 3, 3, 1)).astype(np.uint8)
    assert np.array_equal(codec.decode_obs(codec.encode_obs(obs), 700, (3, 3, 1)), obs)


def test_a_frame_that_returns_costs_little():
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (67, 84, 84)).astype(np.uint8)
    stacks = np.stack([frames[i : i + 4].transpose(1, 2, 0) for i in range(64)])
    assert len(codec.encode_obs(stacks)) < 1.05 * frames.nbytes


def test_booleans_are_packed():
    dense = (np.random.default_rng(3).random((64, 10, 10, 4)) < 0.5).astype(np.uint8)
    assert len(codec.encode_obs(dense)) < dense.size / 8 * 1.2


def test_not_contiguous_input():
    obs = booleans()[:, ::-1, :, ::2]
    assert np.array_equal(codec.decode_obs(codec.encode_obs(obs), len(obs), obs.shape[1:]), obs)


@pytest.mark.parametrize(
    "obs",
    [
        np.zeros((2, 3, 3, 1), np.float32),
        np.zeros((3, 3, 1), np.uint8),
        np.zeros((2, 0, 3, 1), np.uint8),
        np.zeros((65_536, 1, 1, 1), np.uint8),
    ],
    ids=["dtype", "rank", "empty", "too-many"],
)
def test_what_cannot_be_coded_is_a_usage_error(obs):
    with pytest.raises(UsageError):
        codec.encode_obs(obs)


@given(st.binary(max_size=300), st.integers(-1, 70_000), SHAPES)
def test_random_bytes_are_message_errors(data, count, shape):
    with pytest.raises(MessageError):
        codec.decode_obs(data, count, shape)
    with pytest.raises(MessageError):
        codec.decode_q(data, count, shape[0])


GOOD_OBS = codec.encode_obs(booleans())
GOOD_Q = codec.encode_q(np.random.default_rng(4).normal(size=(40, 6)).astype(np.float32))


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    hurt = bytearray(data)
    match draw(st.sampled_from(["flip", "cut", "grow", "swap"])):
        case "flip":
            for at in draw(st.lists(st.integers(0, len(hurt) - 1), min_size=1, max_size=4)):
                hurt[at] ^= draw(st.integers(1, 255))
        case "cut":
            del hurt[draw(st.integers(0, len(hurt) - 1)) :]
        case "grow":
            hurt += draw(st.binary(min_size=1, max_size=20))
        case "swap":
            a, b = draw(st.integers(0, len(hurt) - 1)), draw(st.integers(0, len(hurt) - 1))
            hurt[a], hurt[b] = hurt[b], hurt[a]
    return bytes(hurt)


@given(damage(GOOD_OBS))
def test_damaged_observations_are_message_errors_or_unharmed(data):
    try:
        back = codec.decode_obs(data, 40, (10, 10, 4))
    except MessageError:
        return
    assert np.array_equal(back, booleans())


@given(damage(GOOD_Q))
def test_damaged_q_values_are_message_errors_or_unharmed(data):
    try:
        back = codec.decode_q(data, 40, 6)
    except MessageError:
        return
    assert np.array_equal(back, codec.decode_q(GOOD_Q, 40, 6))


@given(st.data(), st.booleans(), st.integers(0, 300), st.binary(max_size=1500))
def test_a_well_compressed_lie_is_a_message_error(data, packed, n_distinct, body):
    """The zstd frame is whole; what it holds, and the header, are not."""
    header = struct.pack("<BHII", packed, 40, n_distinct, data.draw(st.integers(0, 2**32 - 1)))
    size = 160 * (1 if n_distinct < 256 else 2) + n_distinct * (13 if packed else 100)
    lie = (body * (size // max(1, len(body)) + 1))[:size]
    with pytest.raises(MessageError):
        codec.decode_obs(header + zstandard.compress(lie), 40, (10, 10, 4))


@pytest.mark.parametrize("states_size", [True, False])
def test_a_bomb_is_refused_without_being_unpacked(states_size, monkeypatch):
    bomb = zstandard.ZstdCompressor(write_content_size=states_size).compress(bytes(256 << 20))
    unpacked = []
    real = zstandard.ZstdDecompressor

    class Watched:
        def __init__(self, **options):
            self.inner = real(**options)

        def decompress(self, data, max_output_size, **options):
            unpacked.append(max_output_size)
            body = self.inner.decompress(data, max_output_size=max_output_size, **options)
            unpacked.append(len(body))
            return body

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Watched)
    with pytest.raises(MessageError):
        codec.decode_obs(GOOD_OBS[:11] + bomb, 40, (10, 10, 4))
    with pytest.raises(MessageError):
        codec.decode_q(GOOD_Q[:4] + bomb, 40, 6)
    assert max(unpacked, default=0) <= 40 * 400 + 161


@pytest.mark.parametrize("count, shape", [(4096, (4096, 4096, 4096)), (65_535, (100, 100, 4)), (1, (8192, 8193, 1))])
def test_an_announced_size_beyond_the_limit_is_refused(count, shape):
    with pytest.raises(MessageError, match="limit"):
        codec.decode_obs(GOOD_OBS, count, shape)


def test_the_announced_shape_is_part_of_the_checksum():
    obs = np.zeros((2, 4, 6, 1), np.uint8)
    with pytest.raises(MessageError, match="checksum"):
        codec.decode_obs(codec.encode_obs(obs), 2, (6, 4, 1))


def test_wrong_counts_are_refused():
    for count in (39, 41, 0):
        with pytest.raises(MessageError):
            codec.decode_obs(GOOD_OBS, count, (10, 10, 4))
        with pytest.raises(MessageError):
            codec.decode_q(GOOD_Q, count, 6)


def test_the_table_of_codecs():
    one = codec.CODECS[codec.CODEC_FRAMES_ZSTD]
    assert np.array_equal(one.decode_obs(one.encode_obs(booleans()), 40, (10, 10, 4)), booleans())
    q = np.ones((2, 3), np.float32)
    assert np.array_equal(one.decode_q(one.encode_q(q), 2, 3), q)


def test_bytes_of_codec_1_do_not_change():
    """What a board in the field sent yesterday must be readable tomorrow: data written by the first release."""
    obs = np.zeros((3, 2, 2, 2), np.uint8)
    obs[0, 0, 1, 0] = obs[1, 0, 1, 0] = obs[2, 1, 1, 1] = 1
    golden_obs = bytes.fromhex(GOLDEN_OBS)
    assert np.array_equal(codec.decode_obs(golden_obs, 3, (2, 2, 2)), obs)
    q = np.array([[0.5, -1.25, 3.0], [0.0, 1e-6, -7.5]], np.float32)
    assert np.array_equal(codec.decode_q(bytes.fromhex(GOLDEN_Q), 2, 3), q)


GOLDEN_OBS = "010300030000005d604ef428b52ffd0000490000000100020200400010"
GOLDEN_Q = "ffa2da7728b52ffd0000c1000000000000bd0000000000370000a0400086f03fbf400035c0"


def mixed(obs: np.ndarray) -> bytes:
    return codec.encode_obs_mixed(obs)


@pytest.mark.parametrize("kind", ["stack", "planes", "noise"])
def test_codec_2_is_smaller_where_there_is_something_to_know(kind):
    rng = np.random.default_rng(7)
    if kind == "stack":
        frames = np.repeat(rng.integers(0, 256, (1, 20, 20)).astype(np.uint8), 35, axis=0)
        frames[np.arange(35), np.arange(35) % 20, 3] = 9
        obs = np.stack([frames[i : i + 4].transpose(1, 2, 0) for i in range(32)])
    elif kind == "planes":
        obs = np.zeros((32, 10, 10, 4), np.uint8)
        obs[np.arange(32), np.arange(32) % 10, 4, 1] = 1
    else:
        obs = rng.integers(0, 256, (4, 9, 9, 2)).astype(np.uint8)
    data = mixed(obs)
    assert len(data) <= (obs.nbytes + 5 if kind == "noise" else len(codec.encode_obs(obs)) * 0.9)
    assert np.array_equal(codec.decode_obs_mixed(data, len(obs), obs.shape[1:]), obs)


def test_codec_2_notices_every_flipped_bit():
    obs = booleans(6)
    data, q = mixed(obs), np.arange(12, dtype=np.float32).reshape(3, 4)
    answer = codec.encode_q_mixed(q)
    for i in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises(MessageError):
            codec.decode_obs_mixed(bytes(damaged), 6, (10, 10, 4))
    for i in range(8 * len(answer)):
        damaged = bytearray(answer)
        damaged[i // 8] ^= 1 << i % 8
        with pytest.raises(MessageError):
            codec.decode_q_mixed(bytes(damaged), 3, 4)


@given(st.binary(max_size=60), st.integers(0, 4), SHAPES)
def test_codec_2_refuses_random_bytes(data, count, shape):
    with pytest.raises(MessageError):
        codec.decode_obs_mixed(data, count, shape)
    with pytest.raises(MessageError):
        codec.decode_q_mixed(data, count, shape[2])


def test_codec_2_is_capped_before_anything_is_allocated():
    data = mixed(booleans(2))
    for count, shape in ((60_000, (200, 200, 4)), (1, (1, 1 << 20, 60)), (1, (65_000, 1, 1_000))):
        with pytest.raises(MessageError):
            codec.decode_obs_mixed(data, count, shape)
    with pytest.raises(MessageError):
        codec.decode_q_mixed(codec.encode_q_mixed(np.ones((1, 1), np.float32)), 1 << 20, 1 << 10)
