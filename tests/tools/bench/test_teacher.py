"""The arithmetic of `python -m tools.bench teacher`: questions that no cache knows, and rates that are rates."""

from __future__ import annotations

import numpy as np

from edgert.knowledge.teaching import Subject, TeacherCache, answer_all
from tools.bench import teacher

GOLDEN = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 2), np.uint8)


def nothing(obs):
    return np.zeros((len(obs), 3), np.float32)


def test_no_observation_is_asked_twice():
    obs = teacher.distinct(GOLDEN, 50, np.random.default_rng(0))
    cache = TeacherCache(1 << 20)
    [told] = answer_all(
        [teacher.question(subject := Subject("t", "f" * 16, (8, 8, 2), 3, nothing), obs)], subject, cache
    )
    assert (told.error, told.count, cache.hits, cache.misses) == ("", 50, 0, 50)


def test_what_is_done_beside_the_model_costs_something():
    subject = Subject("t", "f" * 16, (8, 8, 2), 3, nothing)
    model, whole = teacher.by_itself(subject, GOLDEN, 64, np.random.default_rng(0))
    assert 0 < whole < model
