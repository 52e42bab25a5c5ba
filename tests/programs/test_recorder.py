"""Records hold what came of each action, and a return is told only where all of its rewards were seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgert import bundle
from edgert.ports.plant import Observation
from edgert.ports.ring import TERMINATED, TRUNCATED, RingReader, RingWriter
from edgert.programs.recorder import Recorder

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
MANIFEST = bundle.read(DATA).manifest

Step = dict[str, Any]


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(RingWriter(tmp_path / "ring.bin", MANIFEST.observation.shape, 100, bundle.schema_hash(MANIFEST)))


@pytest.fixture
def see(recorder: Recorder, shown: Callable[..., Observation]) -> Callable[..., None]:
    """One tick that sees `shown(seq, **fields)`, or nothing; action 1 is what is done then."""

    def tick(seq: int | None, player: int | None = 7, **fields: Any) -> None:
        observation = None if seq is None else shown(seq, **fields)
        recorder.remember(observation, 1, 2, 0, -0.5, player)

    return tick


def records(tmp_path: Path) -> Any:
    reader = RingReader(tmp_path / "ring.bin")
    return reader.read(1, reader.newest_seq())


def test_a_record_holds_what_came_of_its_action(recorder: Recorder, see: Callable[..., None], tmp_path: Path) -> None:
    see(1, action=None)
    see(2, reward=1.5)
    see(3, reward=2.0, terminated=True, episode=2)
    see(4, reward=4.0, truncated=True, episode=3)
    found = records(tmp_path)
    assert found.reward.tolist() == [1.5, 2.0, 4.0]
    assert found.flags.tolist() == [0, TERMINATED, TRUNCATED]
    assert found.episode.tolist() == [1, 1, 2]
    assert found.obs[:, 0, 0, 0].tolist() == [1, 0, 1]
    assert (set(found.action), set(found.exit), set(found.log_prob)) == ({1}, {2}, {-0.5})
    assert recorder.episodes == 2
    assert list(recorder.returns) == [3.5, 4.0]
    assert (recorder.reward, recorder.rewarded) == (7.5, 3)


@pytest.mark.parametrize(
    ("what", "following"),
    [
        ("missed", None),
        ("another stream", {"stream": 1}),
        ("a world that was restarted", {"action": None}),
    ],
)
def test_what_followed_unseen_is_truncated_and_brings_no_reward(
    recorder: Recorder, see: Callable[..., None], tmp_path: Path, what: str, following: Step | None
) -> None:
    see(1, action=None)
    see(None if following is None else 2, reward=7.0, **(following or {}))
    found = records(tmp_path)
    assert found.flags.tolist() == [TRUNCATED]
    assert found.reward.tolist() == [0.0]
    assert recorder.episodes == recorder.rewarded == 0
    assert list(recorder.returns) == []
    see(3, reward=1.0, terminated=True)
    # What came before the gap belongs to no return that is told; after a missed observation there is no record at all.
    assert len(records(tmp_path)) == (1 if following is None else 2)


@pytest.mark.parametrize(
    ("what", "gap"),
    [
        ("missed", None),
        ("reconnected", {"action": None}),
        ("a world that was restarted", {"action": None, "truncated": True}),
    ],
)
def test_the_return_of_an_episode_with_a_gap_is_neither_told_nor_counted(
    recorder: Recorder, see: Callable[..., None], what: str, gap: Step | None
) -> None:
    see(1, action=None)
    see(2, reward=1.0)
    see(None if gap is None else 3, **(gap or {}))
    see(4, reward=1.0)
    see(5, reward=1.0)
    see(6, reward=1.0, terminated=True, episode=2)
    assert (recorder.episodes, list(recorder.returns)) == (0, [])
    see(7, reward=2.0, episode=2)
    see(8, reward=3.0, terminated=True, episode=3)
    assert (recorder.episodes, list(recorder.returns)) == (1, [5.0])


def test_an_end_that_comes_right_after_a_gap_begins_a_whole_episode(
    recorder: Recorder, see: Callable[..., None]
) -> None:
    see(1, action=None)
    see(None)
    see(3, reward=9.0, terminated=True, episode=2)
    see(4, reward=2.0, terminated=True, episode=3)
    assert (recorder.episodes, list(recorder.returns)) == (1, [2.0])


def test_an_episode_joined_in_its_middle_is_not_counted_and_a_newcomers_first_is(
    recorder: Recorder, see: Callable[..., None]
) -> None:
    see(50, action=None)
    see(51, reward=1.0, terminated=True, episode=2)
    assert (recorder.episodes, list(recorder.returns)) == (0, [])
    see(52, action=None, stream=2, episode=3)
    see(53, reward=4.0, terminated=True, stream=2, episode=4)
    assert (recorder.episodes, list(recorder.returns)) == (1, [4.0])


def test_an_episode_with_a_swap_in_it_was_played_by_nobody(recorder: Recorder, see: Callable[..., None]) -> None:
    see(1, None, action=None)
    see(2, 1, terminated=True, episode=2)
    see(3, 1, terminated=True, episode=3)
    recorder.swapped()
    see(4, 2, terminated=True, episode=4)
    see(5, 2, terminated=True, episode=5)
    assert list(recorder.played) == [None, 1, None, 2], "of the first no network decided the beginning"


@pytest.mark.parametrize(
    ("following", "goes_on"),
    [
        ({}, True),
        ({"terminated": True}, False),
        ({"truncated": True}, False),
        ({"stream": 1}, False),
        ({"action": None}, False),
    ],
)
def test_what_follows_in_the_same_episode_goes_on(
    recorder: Recorder, see: Callable[..., None], shown: Callable[..., Observation], following: Step, goes_on: bool
) -> None:
    assert not recorder.goes_on(shown(1)) and not recorder.goes_on(None)
    see(1)
    assert recorder.goes_on(shown(2, **following)) == goes_on and not recorder.goes_on(None)


def test_one_that_is_made_again_does_not_go_on_with_the_former_ones_transition(
    shown: Callable[..., Observation], tmp_path: Path
) -> None:
    for _ in range(2):
        ring = RingWriter(tmp_path / "ring.bin", MANIFEST.observation.shape, 100, bundle.schema_hash(MANIFEST))
        recorder = Recorder(ring)
        for seq in (1, 2, 3):
            recorder.remember(shown(seq), 1, 0, 0, 0.0, 0)
        ring.close()
    assert records(tmp_path).seq.tolist() == [1, 2, 4, 5]
