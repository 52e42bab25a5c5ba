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
    assert replay.teach(3, np.array([1, 2, 3, 4], np.float32))
    assert not replay.teach(99, np.zeros(4, np.float32)), "not here"
    assert not replay.teach(0, np.zeros(4, np.float32))
    assert not replay.teach(4, np.array([1, np.nan, 3, 4], np.float32)), "not finite"
    assert not replay.teach(4, np.zeros(3, np.float32)), "another action set"
    assert (replay.value_told(3), replay.value_told(4), replay.value_told(0)) == (4.0, None, None)
    seq, obs, q = replay.taught()
    assert seq.tolist() == [3] and q.tolist() == [[1, 2, 3]] and (obs[0] == obs_of(3)).all()
    add(replay, list(range(16, 24)))
    assert len(replay.taught()[0]) == 0, "23 took the place of 3"
    assert not replay.teach(3, np.zeros(4, np.float32)) and replay.value_told(3) is None


def told(seq: int) -> np.ndarray:
    return np.array([seq, seq + 1, seq + 2, -seq], np.float32)


@given(st.permutations(range(1, 13)), st.integers(1, 20))
def test_each_transition_is_a_pair_once_however_its_answers_come(order: list[int], most: int) -> None:
    replay, found = Replay(20, SHAPE, 3), []
    add(replay, list(range(1, 13)), {4: "terminated", 8: "truncated"})
    for seq in order:
        replay.teach(seq, told(seq))
        pairs = replay.pairs(most)
        if pairs is None:
            continue
        for obs, value, following, over in zip(
            pairs.batch.obs, pairs.value, pairs.next_value, pairs.batch.terminated, strict=True
        ):
            number = int.from_bytes(obs.tobytes(), "big")
            found.append(number)
            assert value == -number and (over or following == -number - 1)
    assert len(found) == len(set(found))
    assert set(found) <= {*range(1, 12)} - {8}, "truncated, or nobody saw what followed"
    assert most < 20 or set(found) == {*range(1, 12)} - {8}


def test_pairs_may_be_counted_as_given() -> None:
    replay = Replay(20, SHAPE, 3)
    add(replay, [1, 2, 3])
    for seq in (1, 2):
        replay.teach(seq, told(seq))
    assert replay.pairs(0) is None and replay.pairs(9) is None
    replay.teach(3, told(3))
    add(replay, [4])
    pairs = replay.pairs(9)
    assert pairs is not None and pairs.value.tolist() == [-2], "the one that was not whole then"


def test_what_a_bad_teacher_said_is_forgotten() -> None:
    replay = Replay(20, SHAPE, 3)
    add(replay, [1, 2])
    for seq in (1, 2):
        replay.teach(seq, told(seq))
    replay.forget_taught()
    assert replay.pairs(9) is None and len(replay.taught()[0]) == 0
    replay.teach(1, told(1))
    assert replay.pairs(9) is None, "the other end is forgotten, too"
    replay.teach(2, told(2))
    assert replay.pairs(9) is not None, "another teacher is judged anew"


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


def test_a_rollout_is_the_newest_stretch_with_its_cuts() -> None:
    replay = Replay(40, SHAPE, 3)
    add(replay, [*range(1, 31), *range(32, 51)], {40: "terminated", 44: "truncated"})
    found = replay.rollout(25)
    wanted = [s for s in range(26, 51) if s != 31]
    assert found.seq.tolist() == wanted
    assert found.follows.tolist() == [s + 1 in wanted and s not in (40, 44) for s in wanted]
    assert found.seq[found.terminated].tolist() == [40]
    assert found.action.tolist() == [s % 3 for s in wanted] and found.reward.tolist() == [s / 8 for s in wanted]
    assert found.held_out.tolist() == [is_held_out(obs_of(s)) for s in wanted]
    assert np.isnan(found.log_prob).all()
    assert [int.from_bytes(obs.tobytes(), "big") for obs in found.obs] == wanted
    assert len(replay.rollout(1000).seq) == 39 and not len(Replay(40, SHAPE, 3).rollout(9).seq)


def test_log_probabilities_are_kept_with_their_transitions() -> None:
    replay = Replay(20, SHAPE, 3)
    for seq in range(1, 31):
        one = np.zeros(1, bool)
        replay.add(np.array([seq]), obs_of(seq)[None], np.zeros(1, int), np.zeros(1, np.float32), one, one,
                   np.array([-seq], np.float32))  # fmt: skip
    assert replay.rollout(99).log_prob.tolist() == [-seq for seq in range(11, 31)]


def test_what_was_told_is_looked_up_by_number_and_lessons_are_not_held_out() -> None:
    replay, rng = Replay(200, SHAPE, 3), np.random.default_rng(0)
    assert not len(replay.lessons(rng, 8))
    add(replay, list(range(1, 101)))
    for seq in range(1, 101, 2):
        assert replay.teach(seq, np.float32([seq, 0, 0, 0]))
    rows, taught = replay.told(np.array([7, 8, 99, 500]))
    assert taught.tolist() == [True, False, True, False] and rows[[0, 2], 0].tolist() == [7, 99]
    drawn = replay.lessons(rng, 500)
    assert set(drawn.tolist()) == {seq for seq in range(1, 101, 2) if not is_held_out(obs_of(seq))}
