"""Play whole episodes with a network: the one place where returns are measured."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from edgert.nets import U8, Params, forward

Chooser = Callable[[U8], npt.NDArray[np.integer]]


def make(env_id: str) -> Any:
    """Make a gymnasium environment by id, after letting installed packages register theirs."""
    if env_id not in gymnasium.registry:
        for plugin in entry_points(group="gymnasium.envs"):
            plugin.load()()
    return gymnasium.make(env_id, disable_env_checker=True)


def to_obs(raw: Any) -> U8:
    """An environment's observation as uint8 (height, width, channels)."""
    return np.ascontiguousarray(raw, dtype=np.uint8)


def play(
    choose: Chooser, env_id: str, episodes: int, *, seed: int, parallel: int = 10, max_steps: int = 10_000
) -> npt.NDArray[np.float64]:
    """Play `episodes` episodes, several at a time, and return their undiscounted returns.

    Args:
        choose: (batch, H, W, C) uint8 -> (batch,) actions.
        env_id: gymnasium id.
        episodes: how many; episode i is seeded with `seed + i`, so results do not depend on `parallel`.
        seed: of the first episode.
        parallel: environments at a time.
        max_steps: an episode is cut here (a policy that never dies would never end).
    """
    envs = [make(env_id) for _ in range(min(parallel, episodes))]
    returns = np.zeros(episodes)
    running = {i: i for i in range(len(envs))}
    obs = np.stack([to_obs(env.reset(seed=seed + i)[0]) for i, env in enumerate(envs)])
    steps, started = np.zeros(episodes, int), len(envs)
    while running:
        slots = sorted(running)
        actions = choose(obs[slots])
        for slot, action in zip(slots, actions, strict=True):
            episode = running[slot]
            raw, reward, terminated, truncated, _ = envs[slot].step(int(action))
            returns[episode] += float(reward)
            steps[episode] += 1
            if terminated or truncated or steps[episode] >= max_steps:
                if started < episodes:
                    running[slot] = started
                    raw, _ = envs[slot].reset(seed=seed + started)
                    started += 1
                else:
                    del running[slot]
            obs[slot] = to_obs(raw)
    return returns


def evaluate(
    params: Params, env_id: str, episodes: int, *, seed: int, exit_: int | None = None
) -> npt.NDArray[np.float64]:
    """Greedy returns of a float network at one exit (the last by default)."""
    k = params.spec.n_exits - 1 if exit_ is None else exit_
    return play(
        lambda obs: forward(params, obs, exits=(k,))[k][:, : params.spec.n_actions].argmax(1),
        env_id,
        episodes,
        seed=seed,
    )
