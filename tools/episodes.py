"""Play whole episodes with a network: the one place where returns are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edgert.nets import U8
from edgert.ports.plant import worlds

Chooser = Callable[[U8], npt.NDArray[np.integer]]


def play(
    choose: Chooser, env_id: str, episodes: int, *, seed: int, parallel: int = 10, max_steps: int = 10_000
) -> npt.NDArray[np.float64]:
    """Play `episodes` episodes, several at a time, and return their undiscounted returns.

    Args:
        choose: (batch, H, W, C) uint8 -> (batch,) actions.
        env_id: as `worlds.make` takes it.
        episodes: how many; episode i is seeded with `seed + i`, so results do not depend on `parallel`.
        seed: of the first episode.
        parallel: environments at a time.
        max_steps: an episode is cut here (a policy that never dies would never end).
    """
    seeds = range(seed, seed + episodes)
    return play_each(lambda obs, _, __: choose(obs), env_id, seeds, parallel=parallel, max_steps=max_steps)


def play_each(
    choose: Callable[[U8, npt.NDArray[np.int64], npt.NDArray[np.bool_]], npt.NDArray[np.integer]],
    env_id: str,
    seeds: Sequence[int],
    *,
    parallel: int,
    max_steps: int,
    ended: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float64]:
    """As `play`, for choosers that remember: `choose` is also told which episodes, and which of them just begin.

    `ended` is called after each episode.
    """
    envs = [worlds.make(env_id) for _ in range(min(parallel, len(seeds)))]
    returns = np.zeros(len(seeds))
    running = {i: i for i in range(len(envs))}
    obs = np.stack([env.reset(seed=seeds[i])[0] for i, env in enumerate(envs)])
    steps, started = np.zeros(len(seeds), int), len(envs)
    while running:
        slots = sorted(running)
        episodes = np.array([running[slot] for slot in slots])
        actions = choose(obs[slots], episodes, steps[episodes] == 0)
        for slot, action in zip(slots, actions, strict=True):
            episode = running[slot]
            shown, reward, terminated, truncated, _ = envs[slot].step(int(action))
            returns[episode] += float(reward)
            steps[episode] += 1
            if terminated or truncated or steps[episode] >= max_steps:
                ended()
                if started < len(seeds):
                    running[slot] = started
                    shown, _ = envs[slot].reset(seed=seeds[started])
                    started += 1
                else:
                    del running[slot]
            obs[slot] = shown
    for env in envs:
        env.close()
    return returns
