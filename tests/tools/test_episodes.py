from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="NOT TESTED: gymnasium is not installed (extra `sim`)")

from tools import episodes  # noqa: E402  after the skip above

closed: list[int] = []


class Dice(gymnasium.Env):  # type: ignore[misc]  # of an untyped vendor
    """Pays what the seed rolls, for as many steps as the seed says; action 1 pays double."""

    observation_space = gymnasium.spaces.Box(0, 255, (1, 1, 2), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = seed % 5 + 1
        return np.full((1, 1, 2), self.left, np.uint8), {}

    def step(self, action):
        self.left -= 1
        paid = int(self.np_random.integers(6)) * (1 + action)
        return np.full((1, 1, 2), self.left, np.uint8), paid, self.left == 0, False, {}

    def close(self):
        closed.append(1)


gymnasium.register("Dice-v0", Dice)


def expected(seed: int, steps: int) -> int:
    env = Dice()
    env.reset(seed=seed)
    return sum(env.step(1)[1] for _ in range(steps))


@pytest.mark.parametrize("parallel", [1, 3, 20])
def test_returns_are_of_whole_episodes_whatever_runs_beside_them(parallel: int) -> None:
    closed.clear()
    returns = episodes.play(lambda obs: np.ones(len(obs), int), "Dice-v0", 7, seed=10, parallel=parallel)
    assert returns.tolist() == [expected(seed, seed % 5 + 1) for seed in range(10, 17)]
    assert len(closed) == min(parallel, 7)


def test_an_episode_is_cut_and_choosers_are_told_where_they_are() -> None:
    seen: list[tuple[int, bool]] = []

    def choose(
        obs: npt.NDArray[np.uint8], which: npt.NDArray[np.int64], begins: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        seen.extend(zip(which.tolist(), begins.tolist(), strict=True))
        return np.ones(len(obs), int)

    ends: list[int] = []
    returns = episodes.play_each(
        choose, "Dice-v0", [14, 13, 10], parallel=1, max_steps=2, ended=lambda: ends.append(len(seen))
    )
    assert returns.tolist() == [expected(14, 2), expected(13, 2), expected(10, 1)]
    assert seen == [(0, True), (0, False), (1, True), (1, False), (2, True)]
    assert ends == [2, 4, 5]
