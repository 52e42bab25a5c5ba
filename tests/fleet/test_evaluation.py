"""Evaluations count what happens while they last, and nothing twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgert.fleet.evaluation import Watched
from edgert.values import RETURNS_TOLD, ActorReport


def report(pid: int = 1, episodes: int = 0, returns: list[float] | None = None, **more) -> ActorReport:
    given_ = {"ticks": 0, "missed": 0, "reward": 0.0, "rewarded": 0, **more}
    return ActorReport(
        pid=pid, safe=0, exits=[], latency_p50_s=0.0, latency_p99_s=0.0, latency_max_s=0.0, episodes=episodes,
        returns=returns or [], faults={}, generation=4, acting=True, first_action_s=None, cpu_s=0.0, rss_bytes=0,
        **given_,
    )  # fmt: skip


def test_what_was_before_does_not_count():
    watched = Watched(wanted=1).seen(report(episodes=3, returns=[1.0, 2.0, 3.0], ticks=50, missed=9))
    assert watched.result() is None
    watched = watched.seen(report(episodes=4, returns=[1.0, 2.0, 3.0, 4.0], ticks=100, missed=10))
    assert watched.result() == {"mean": 4.0, "of": "returns", "n": 1, "missed_frac": 0.02, "generation": 4}


def test_windows_without_rewards_are_none():
    watched = Watched(wanted=2, windows=True)
    for rewarded, reward in ((5, 1.0), (5, 1.0), (10, 2.0), (10, 2.0), (20, 12.0)):
        assert watched.result() is None
        watched = watched.seen(report(rewarded=rewarded, reward=reward))
    assert (watched.rewards, watched.result()["mean"]) == ((0.2, 1.0), 0.6)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 99), max_size=5)), max_size=20))
def test_every_episode_counts_once_however_reports_fall(steps):
    """An actor may be another one at any time; of its first report nothing is of this evaluation."""
    watched, pid, played, expected = Watched(wanted=1000), 1, [], []
    watched = watched.seen(report(pid))
    for restarts, new in steps:
        if restarts:
            pid, played = pid + 1, []
            watched = watched.seen(report(pid))
        played += [float(each) for each in new]
        expected += [float(each) for each in new]
        watched = watched.seen(report(pid, len(played), played[-RETURNS_TOLD:]))
    assert list(watched.returns) == expected
