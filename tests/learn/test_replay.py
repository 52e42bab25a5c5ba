"""Replay against a list-based oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.learn.replay import Replay, is_held_out

SHAPE = (2, 3, 1)


def obs_of(seq: int) -> np.ndarray:
    """An observation that says its own number."""
    return np.frombuffer(int(seq).to_bytes(6, "big"), np.uint8).reshape(SHAPE)


def add(replay: Replay, seqs: list[int], ended: dict[int, str] | None = None) -> None:
    ended = ended or {}
    replay.add(
        np.array(seqs, np.int64),
        np.stack([obs_of(s) for s in seqs]) if seqs else np.zeros((0, *SHAPE), np.uint8),
        np.array([s % 3 for s in seqs], np.int32),
        np.array([s / 8 for s in seqs], np.float32),
        np.array([ended.get(s) == "terminated" for s in seqs], bool),
        np.array([ended.get(s) == "truncated" for s in seqs], bool),
    )


@given(
    data=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["", "", "", "terminated", "truncated"])), min_size=2, max_size=150
    ),
    capacity=st.integers(20, 60),
)
def test_every_sample_is_a_true_transition_that_was_not_held_out(data: list[tuple[int, str]], capacity: int) -> None:
    replay, seq, ended = Replay(capacity, SHAPE, 3), 0, {}
    for gap, how in data:  # gaps: records that were torn and left out
        seq += gap
        if how:
            ended[seq] = how
        add(replay, [seq], ended)
    there = {s for s in ended_or_seen(data) if s > seq - capacity}
    usable = {s for s in there if ended.get(s) != "truncated" and (ended.get(s) == "terminated" or s + 1 in there)}
    trained = {s for s in usable if not is_held_out(obs_of(s))}
    assert len(replay) == len(trained)
    if trained:
        batch = replay.sample(np.random.default_rng(0), 64)
        for obs, action, reward, following, terminated in zip(*batch[:5], strict=True):
            number = int.from_bytes(obs.tobytes(), "big")
            assert number in trained
            assert (action, reward) == (number % 3, number / 8)
            assert terminated == (ended.get(number) == "terminated")
            assert terminated or int.from_bytes(following.tobytes(), "big") == number + 1
    held = replay.probe(1000).seq
    assert set(held.tolist()) == usable - trained
    assert list(held) == sorted(held, reverse=True)


def ended_or_seen(data: list[tuple[int, str]]) -> set[int]:
    return set(np.cumsum([gap for gap, _ in data]).tolist())


def test_knowledge_goes_with_its_transition() -> None:
    replay = Replay(20, SHAPE, 3)
    add(replay, list(range(1, 16)))
    assert replay.teach(3, np.array([1, 2, 3], np.float32))
    assert not replay.teach(99, np.zeros(3, np.float32)), "not here"
    assert not replay.teach(0, np.zeros(3, np.float32))
    assert not replay.teach(4, np.array([1, np.nan, 3], np.float32)), "not finite"
    assert not replay.teach(4, np.zeros(2, np.float32)), "another action set"
    seq, obs, q = replay.taught()
    assert seq.tolist() == [3] and q.tolist() == [[1, 2, 3]] and (obs[0] == obs_of(3)).all()
    add(replay, list(range(16, 24)))
    assert len(replay.taught()[0]) == 0, "23 took the place of 3"
    assert not replay.teach(3, np.zeros(3, np.float32))


def test_misuse_is_named() -> None:
    with pytest.raises(UsageError, match="at least 20"):
        Replay(19, SHAPE, 3)
    replay = Replay(20, SHAPE, 3)
    with pytest.raises(UsageError, match="nothing to train on"):
        replay.sample(np.random.default_rng(0), 1)
    with pytest.raises(UsageError, match="different lengths"):
        replay.add(np.array([1]), np.zeros((2, *SHAPE), np.uint8), *[np.zeros(1)] * 2, *[np.zeros(1, bool)] * 2)  # type: ignore[arg-type]  # wrong on purpose


def test_what_is_judged_on_is_never_trained_on_though_the_game_shows_it_again() -> None:
    rng, replay = np.random.default_rng(0), Replay(2000, SHAPE, 3)
    obs = rng.integers(0, 2, (2000, *SHAPE)).astype(np.uint8)  # 64 pictures, each seen many times
    no = np.zeros(2000, bool)
    replay.add(np.arange(1, 2001), obs, np.zeros(2000, np.int32), np.zeros(2000, np.float32), no, no)
    trained = {row.tobytes() for row in replay.sample(rng, 5000).obs}
    judged = {row.tobytes() for row in replay.probe(2000).batch.obs}
    assert trained and judged and not trained & judged
