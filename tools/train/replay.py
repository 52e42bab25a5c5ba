"""Replay of what several environments did side by side, with n-step returns worked out when a batch is drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.nets import F32, U8


class Batch(NamedTuple):
    """`B` steps.

    Attributes:
        obs: (B, H, W, C) uint8.
        action: (B,) int64.
        reward: (B,) float32, the discounted sum of up to n rewards.
        next_obs: (B, H, W, C) uint8, what was seen after the last of them.
        discount: (B,) float32, of the value of `next_obs`; 0 where the episode had ended by then.
        teacher_q: (B, A) float32; NaN where nobody was asked.
    """

    obs: U8
    action: npt.NDArray[np.int64]
    reward: F32
    next_obs: U8
    discount: F32
    teacher_q: F32


class Replay:
    """A ring of `rows` time steps of `n_envs` environments.

    Environments reset themselves at the step *after* the one that ended their episode (gymnasium's NEXT_STEP), so the
    last observation of an episode has a place of its own; the step that only resets is never drawn.
    """

    def __init__(self, rows: int, n_envs: int, obs_shape: tuple[int, ...], n_actions: int) -> None:
        """Reserve the memory; the system only hands it out as it is filled."""
        self.obs = np.zeros((rows, n_envs, *obs_shape), np.uint8)
        self.action = np.zeros((rows, n_envs), np.int64)
        self.reward = np.zeros((rows, n_envs), np.float32)
        self.terminated = np.zeros((rows, n_envs), bool)
        self.ended = np.zeros((rows, n_envs), bool)
        self.resets = np.zeros((rows, n_envs), bool)
        self.teacher_q = np.full((rows, n_envs, n_actions), np.nan, np.float32)
        self.cursor = self.size = 0

    def add(
        self,
        obs: U8,
        action: npt.NDArray[np.integer],
        reward: F32,
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
        resets: npt.NDArray[np.bool_],
        teacher_q: F32 | None = None,
    ) -> None:
        """Overwrite the oldest time step.

        Args:
            obs: (n_envs, H, W, C) uint8, before the action.
            action: (n_envs,) what was done.
            reward: (n_envs,) what it brought.
            terminated: (n_envs,) whether it ended the episode for good.
            truncated: (n_envs,) whether the episode was cut after it.
            resets: (n_envs,) whether the environment ignored the action because it only reset itself.
            teacher_q: (n_envs, A) what the teacher thinks of `obs`.
        """
        i = self.cursor
        self.obs[i], self.action[i], self.reward[i] = obs, action, reward
        self.terminated[i], self.ended[i], self.resets[i] = terminated, terminated | truncated, resets
        self.teacher_q[i] = np.nan if teacher_q is None else teacher_q
        self.cursor = (i + 1) % len(self.obs)
        self.size = min(self.size + 1, len(self.obs))

    def sample(self, rng: np.random.Generator, n: int, *, n_step: int, gamma: float) -> Batch:
        """Draw `n` steps, uniformly and with replacement, among those whose n-step return is known.

        Raises:
            UsageError: fewer than n_step + 1 time steps are there.
        """
        if self.size <= n_step:
            raise UsageError(f"{n_step}-step returns need more than {self.size} time steps")
        rows, envs = len(self.obs), self.obs.shape[1]
        first = self.cursor - self.size  # negative indices are as good as any modulo `rows`
        age, env = rng.integers(self.size - n_step, size=n), rng.integers(envs, size=n)
        stale = self.resets[(first + age) % rows, env]
        while stale.any():
            age[stale] = rng.integers(self.size - n_step, size=int(stale.sum()))
            stale = self.resets[(first + age) % rows, env]
        at = (first + age) % rows
        reward, discount = np.zeros(n, np.float32), np.ones(n, np.float32)
        alive, following = np.ones(n, bool), at.copy()
        for step in range(n_step):
            now = (at + step) % rows
            reward += np.float32(gamma**step) * np.where(alive, self.reward[now, env], 0)
            following = np.where(alive, (now + 1) % rows, following)
            discount = np.where(alive, np.float32(gamma ** (step + 1)), discount)
            discount = np.where(alive & self.terminated[now, env], np.float32(0), discount)
            alive &= ~self.ended[now, env]
        return Batch(
            self.obs[at, env],
            self.action[at, env],
            reward.astype(np.float32),
            self.obs[following, env],
            discount.astype(np.float32),
            self.teacher_q[at, env],
        )
