"""Streams: exact over every schema, and nothing is read that cannot be proved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgert.errors import MessageError, UsageError
from edgert.knowledge import schema
from edgert.knowledge.schema import Schema
from edgert.knowledge.stream import Decoder, Encoder, Transitions

STACK = Schema("transitions", (12, 10, 3), False, False, 4)
PLANES = Schema("transitions", (10, 10, 4), True, True, 6)


def rollout(one: Schema, n: int, seed: int = 0) -> Transitions:
    """Something that moves before something that stands."""
    rng = np.random.default_rng(seed)
    height, width, channels = one.obs_shape
    high = 2 if one.boolean else 256
    still = rng.integers(0, high, (height, width)).astype(np.uint8)
    frames = np.stack([still] * (n + channels))
    for i, frame in enumerate(frames):
        frame[i % height, : width // 2] = rng.integers(high)
    obs = np.stack([frames[i : i + channels].transpose(1, 2, 0) for i in range(n)])
    rewards = rng.choice([0, 0, 0, 1, -0.5], n).astype(np.float32)
    return Transitions(
        obs, rng.integers(0, one.columns, n).astype(np.uint8), rewards, (rng.random(n) < 0.1).astype(np.uint8)
    )


def part(steps: Transitions, at: int, end: int) -> Transitions:
    return Transitions(*(field[at:end] for field in steps))


def same(one: Transitions, other: Transitions) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one, other, strict=True)
    )


@st.composite
def streams(draw):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 4)))
    one = Schema("transitions", shape, draw(st.booleans()), draw(st.booleans()), draw(st.integers(1, 256)))
    n = draw(st.integers(1, 8))
    high = draw(st.sampled_from([1, 1, 255]))  # also where the schema promises booleans
    obs = draw(hnp.arrays(np.uint8, (n, *shape), elements=st.integers(0, high), fill=st.just(0)))
    for i in draw(st.lists(st.integers(1, n - 1), max_size=4)) if n > 1 else []:
        obs[i, ..., :-1] = obs[i - 1, ..., 1:]
    actions = draw(hnp.arrays(np.uint8, n, elements=st.integers(0, one.columns - 1)))
    rewards = draw(hnp.arrays(np.uint32, n)).view(np.float32)
    return one, Transitions(obs, actions, rewards, draw(hnp.arrays(np.uint8, n)))


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(1, 4), st.sets(st.integers(0, 8)))
def test_transitions_come_back_exactly(stream, size, keys):
    one, steps = stream
    writer, reader = Encoder(one, 1), Decoder(one)
    for at in range(0, len(steps.obs), size):
        if at in keys:
            writer.key()
        sent = part(steps, at, at + size)
        data = writer.transitions(sent)
        assert len(data) <= len(sent.obs) * one.step_bytes + 32
        back = reader.transitions(data)
        assert same(back, sent)
        assert all(field.flags.writeable for field in back)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint32, st.tuples(st.integers(1, 12), st.integers(1, 9))), st.integers(1, 5))
def test_values_come_back_bit_for_bit(bits, size):
    one = schema.values(bits.shape[1])
    writer, reader = Encoder(one, 0), Decoder(one)
    for at in range(0, len(bits), size):
        rows = bits[at : at + size].view(np.float32)
        assert np.array_equal(reader.values(writer.values(rows)).view(np.uint32), rows.view(np.uint32))


@pytest.mark.parametrize("one", [STACK, PLANES])
def test_a_step_costs_a_few_bytes(one):
    steps, writer = rollout(one, 200), Encoder(one, 1)
    sizes = [len(writer.transitions(part(steps, i, i + 1))) for i in range(200)]
    assert np.mean(sizes[100:]) < 25


def test_a_lost_message_is_noticed_and_a_key_mends_it():
    steps, writer, reader = rollout(STACK, 6), Encoder(STACK, 1), Decoder(STACK)
    sent = [writer.transitions(part(steps, i, i + 1)) for i in range(4)]
    assert reader.needs_key
    assert same(reader.transitions(sent[0]), part(steps, 0, 1))
    assert not reader.needs_key
    for late in sent[2:]:
        with pytest.raises(MessageError, match="lost"):
            reader.transitions(late)
    assert reader.needs_key
    writer.key()
    assert same(reader.transitions(writer.transitions(part(steps, 4, 5))), part(steps, 4, 5))
    assert not reader.needs_key
    assert same(reader.transitions(writer.transitions(part(steps, 5, 6))), part(steps, 5, 6))


def test_the_order_must_be_kept_and_a_refusal_leaves_no_trace():
    steps, writer, reader = rollout(PLANES, 5), Encoder(PLANES, 1), Decoder(PLANES)
    sent = [writer.transitions(part(steps, i, i + 1)) for i in range(5)]
    reader.transitions(sent[0])
    for wrong in (sent[2], sent[0], sent[3]):
        with pytest.raises(MessageError):
            reader.transitions(wrong)
    for i in range(1, 5):
        assert same(reader.transitions(sent[i]), part(steps, i, i + 1))
        with pytest.raises(MessageError, match="replayed"):
            reader.transitions(sent[i])


def test_sixteen_lost_messages_are_not_mistaken_for_none():
    steps, writer, reader = rollout(PLANES, 18), Encoder(PLANES, 1), Decoder(PLANES)
    sent = [writer.transitions(part(steps, i, i + 1)) for i in range(18)]
    reader.transitions(sent[0])
    with pytest.raises(MessageError):
        reader.transitions(sent[17])
    assert reader.needs_key
    assert same(reader.transitions(sent[1]), part(steps, 1, 2))


def test_old_keys_and_old_streams_are_refused():
    steps, reader = rollout(STACK, 1), Decoder(STACK)
    old, new = Encoder(STACK, 7), Encoder(STACK, 8)
    first = old.transitions(steps)
    old.key()
    second = old.transitions(steps)
    reader.transitions(second)
    for replayed in (first, second):
        with pytest.raises(MessageError, match="not new"):
            reader.transitions(replayed)
    reader.transitions(new.transitions(steps))
    old.key()
    with pytest.raises(MessageError, match="not new"):
        reader.transitions(old.transitions(steps))


def test_a_message_of_another_stream_is_refused():
    steps, reader = rollout(STACK, 3), Decoder(STACK)
    one, other = Encoder(STACK, 1), Encoder(STACK, 2)
    reader.transitions(one.transitions(part(steps, 0, 1)))
    other.transitions(part(steps, 1, 2))
    with pytest.raises(MessageError, match=r"checksum|announced"):
        reader.transitions(other.transitions(part(steps, 2, 3)))
    assert same(reader.transitions(one.transitions(part(steps, 1, 2))), part(steps, 1, 2))


@pytest.mark.parametrize("one", [STACK, PLANES])
def test_no_damaged_message_is_read(one):
    steps, writer, reader = rollout(one, 9), Encoder(one, 1), Decoder(one)
    rng = np.random.default_rng(5)
    for i in range(9):
        if i == 6:
            writer.key()
        data = writer.transitions(part(steps, i, i + 1))
        for _ in range(60):
            damaged = bytearray(data)
            if rng.random() < 0.3:
                del damaged[int(rng.integers(len(damaged))) :]
            else:
                damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            with pytest.raises(MessageError):
                reader.transitions(bytes(damaged))
        with pytest.raises(MessageError):
            reader.transitions(data + b"\1")
        assert same(reader.transitions(data), part(steps, i, i + 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_are_refused(data):
    with pytest.raises(MessageError):
        Decoder(PLANES).transitions(data)


def test_what_is_announced_is_capped():
    huge = Schema("transitions", (1000, 1000, 1), False, False, 2)
    head = Encoder(huge, 1).transitions(rollout(huge, 1))
    forged = bytes([head[0] | 2 << 4]) + head[1:23] + b"\xff\xff" + head[23:]
    with pytest.raises(MessageError, match="limit"):
        Decoder(huge).transitions(forged)


def test_both_ends_need_the_same_schema():
    data = Encoder(STACK, 1).transitions(rollout(STACK, 1))
    with pytest.raises(MessageError, match="schema"):
        Decoder(Schema("transitions", (12, 10, 3), False, False, 5)).transitions(data)


def test_noise_is_sent_as_it_is():
    one = Schema("transitions", (20, 20, 1), False, False, 2)
    noise = np.random.default_rng(6).integers(0, 256, (3, 20, 20, 1)).astype(np.uint8)
    steps = Transitions(noise, np.ones(3, np.uint8), np.ones(3, np.float32), np.zeros(3, np.uint8))
    writer, reader = Encoder(one, 1), Decoder(one)
    for _ in range(3):
        assert same(reader.transitions(writer.transitions(steps)), steps)


def test_wrong_content_is_refused():
    steps, rows = rollout(STACK, 2), np.zeros((2, 3), np.float32)
    with pytest.raises(UsageError):
        Encoder(schema.values(3), 1).transitions(steps)
    with pytest.raises(UsageError):
        Encoder(STACK, 1).values(rows)
    with pytest.raises(UsageError):
        Encoder(schema.values(4), 1).values(rows)
    with pytest.raises(UsageError):
        Encoder(STACK, 1).transitions(steps._replace(actions=np.full(2, 4, np.uint8)))
    with pytest.raises(UsageError):
        Encoder(STACK, 1).transitions(steps._replace(rewards=rows[0]))
    with pytest.raises(UsageError):
        Encoder(STACK, 1).transitions(part(steps, 0, 0))
    with pytest.raises(UsageError):
        Encoder(STACK, -1)
    with pytest.raises(UsageError):
        Decoder(STACK).values(b"")
    with pytest.raises(UsageError):
        Decoder(schema.values(3)).transitions(b"")
