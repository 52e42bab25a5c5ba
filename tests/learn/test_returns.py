"""Returns of episodes against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.learn.returns import Episodes, Finished

GAMMA = 0.5


def run(rows: list[tuple[int, float, bool]], cuts: list[int]) -> tuple[list[int], list[Finished]]:
    """(seq, reward, ended) given in pieces; returns which numbers begin episodes, and the finished ones."""
    episodes, starts, finished, at = Episodes(GAMMA), [], [], 0
    for cut in [*sorted(cuts), len(rows)]:
        piece = rows[at : max(at, cut)]
        at = max(at, cut)
        seq = np.array([row[0] for row in piece], np.int64)
        begins, done = episodes.add(
            seq, np.array([row[1] for row in piece], np.float32), np.array([row[2] for row in piece], bool)
        )
        starts += seq[begins].tolist()
        finished += done
    return starts, finished


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.booleans()), max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_every_whole_episode_is_added_up_once(steps: list[tuple[int, bool, bool]], cuts: list[int]) -> None:
    """`steps`: reward, ended, and whether the record before was left out."""
    rows, seq = [], 0
    for reward, ended, gap in steps:
        seq += 1 + gap
        rows.append((seq, float(reward), ended))
    _, finished = run(rows, [min(cut, len(rows)) for cut in cuts])
    wanted, episode = [], []
    previous = (0, 0.0, True)
    for row in rows:
        if row[0] != previous[0] + 1:
            episode = None
        elif previous[2]:
            episode = []
        if episode is not None:
            episode.append(row)
        if row[2] and episode:
            value = sum(GAMMA**i * each[1] for i, each in enumerate(episode))
            wanted.append(Finished(episode[0][0], pytest.approx(value), len(episode)))
        previous = row
    assert finished == wanted


def test_starts_are_named() -> None:
    starts, finished = run([(1, 1.0, False), (2, 1.0, True), (3, 4.0, True), (9, 1.0, True), (10, 2.0, True)], [])
    assert starts == [1, 3, 10]
    assert finished == [Finished(1, 1.5, 2), Finished(3, 4.0, 1), Finished(10, 2.0, 1)]


def test_who_comes_late_counts_from_the_next_start() -> None:
    starts, finished = run([(100, 1.0, False), (101, 1.0, True), (102, 3.0, True)], [])
    assert starts == [102] and finished == [Finished(102, 3.0, 1)]


def test_what_is_not_a_number_is_no_return() -> None:
    assert run([(1, float("nan"), True), (2, 1.0, True)], [])[1] == [Finished(2, 1.0, 1)]
