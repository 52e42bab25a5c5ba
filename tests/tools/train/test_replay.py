"""n-step returns against a plain walk along each episode."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgert.errors import UsageError
from tools.train.replay import Replay

GAMMA = 0.9


def filled(steps, rows, seed=0, n_envs=3):
    """A replay whose observations are the number of their time step, and what went into it."""
    rng, replay, log = np.random.default_rng(seed), Replay(rows, n_envs, (1, 1, 2), 2), []
    resets = np.zeros(n_envs, bool)
    for t in range(steps):
        obs = np.zeros((n_envs, 1, 1, 2), np.uint8)
        obs[:, 0, 0, 0], obs[:, 0, 0, 1] = t, np.arange(n_envs)
        ended = (rng.random(n_envs) < 0.2) & ~resets
        terminated = ended & (rng.random(n_envs) < 0.5)
        reward = np.where(resets, 0, rng.normal(size=n_envs)).astype(np.float32)
        row = (obs, rng.integers(2, size=n_envs), reward, terminated, ended & ~terminated, resets.copy())
        replay.add(*row)
        log.append(row)
        resets = ended
    return replay, log


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("steps", [20, 70])  # the ring of 32 not full, and gone round twice
def test_against_a_walk(n_step, steps):
    replay, log = filled(steps, 32)
    batch = replay.sample(np.random.default_rng(1), 500, n_step=n_step, gamma=GAMMA)
    for i in range(500):
        t, env = batch.obs[i, 0, 0]
        assert t >= steps - 32
        assert not log[t][5][env], "a step that only resets was drawn"
        total, discount, following = 0.0, 1.0, t
        for step in range(n_step):
            _, _, reward, terminated, truncated, _ = log[t + step]
            total += GAMMA**step * reward[env]
            discount, following = GAMMA ** (step + 1), t + step + 1
            if terminated[env]:
                discount = 0
            if terminated[env] or truncated[env]:
                break
        assert batch.action[i] == log[t][1][env]
        assert batch.reward[i] == pytest.approx(total, abs=1e-5)
        assert batch.discount[i] == pytest.approx(discount)
        assert tuple(batch.next_obs[i, 0, 0]) == (following, env)


def test_teacher_is_nan_until_asked():
    replay, _ = filled(10, 16)
    assert np.isnan(replay.sample(np.random.default_rng(0), 4, n_step=1, gamma=GAMMA).teacher_q).all()


def test_too_little_to_draw_from():
    replay, _ = filled(3, 16)
    with pytest.raises(UsageError, match="3-step"):
        replay.sample(np.random.default_rng(0), 4, n_step=3, gamma=GAMMA)
