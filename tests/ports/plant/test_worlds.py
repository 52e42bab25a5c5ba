from __future__ import annotations

import importlib.metadata
import sys

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", reason="NOT TESTED: gymnasium is not installed (extra `sim`)")

from edgert.errors import ConfigError, UsageError  # noqa: E402  after the skip above
from edgert.ports.plant import worlds  # noqa: E402


class Count(gymnasium.Env):  # type: ignore[misc]  # of an untyped vendor
    """Shows the seed and the step; ends after as many steps as its seed says."""

    observation_space = gymnasium.spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3, start=10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ends = self.ends if seed is None else seed
        self.here = 0
        return self.show(), {"ends": self.ends}

    def step(self, action):
        assert action in (10, 11, 12)
        self.here += 1
        return self.show(), action / 2, self.here == self.ends, False, {}

    def show(self):
        return np.array([[self.ends, self.here, 0], [1, 2, 3]], np.uint8)


class Bits(Count):
    observation_space = gymnasium.spaces.Box(0, 1, (2, 3, 4), np.bool_)

    def show(self):
        return np.ones((2, 3, 4), bool)


class Waiting(Count):
    metadata = {"render_modes": [], "waits": True}  # noqa: RUF012  gymnasium declares it so


class Wide(Count):
    observation_space = gymnasium.spaces.Box(0, 1, (3, 2), np.float32)


class Numbers(Count):
    """Shows what the test wants: a number within limits, one within none, and one that is limited on one side."""

    observation_space = gymnasium.spaces.Box(
        np.array([-2, -np.inf, 0], np.float32), np.array([6, np.inf, np.finfo(np.float32).max], np.float32)
    )
    shows = (0.0, 0.0, 0.0)

    def show(self):
        return np.array(self.shows, np.float64)


class Steered(Count):
    action_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)


for each in (Count, Bits, Waiting, Wide, Numbers, Steered):
    gymnasium.register(f"{each.__name__}-v0", each)


def test_every_observation_becomes_uint8_of_three_dimensions_and_actions_count_from_0() -> None:
    env = worlds.make("Count-v0")
    obs, _ = env.reset(seed=3)
    assert obs.shape == env.observation_space.shape == (2, 3, 1) and obs.dtype == np.uint8
    assert obs[:, :, 0].tolist() == [[3, 0, 0], [1, 2, 3]]
    assert env.action_space == gymnasium.spaces.Discrete(3)
    assert env.step(2)[1] == 6.0
    bits = worlds.make("Bits-v0")
    assert bits.reset(seed=1)[0].tolist() == np.ones((2, 3, 4), int).tolist()
    assert bits.reset()[0].dtype == bits.observation_space.dtype == np.uint8


@pytest.mark.parametrize(
    ("env_id", "what"),
    [
        ("NoSuch/Thing-v1", "NoSuch"),
        ("nosuchpackage:Thing-v1", "nosuchpackage"),
        ("Wide-v0", "one row of numbers"),
        ("Steered-v0", "Discrete"),
    ],
)
def test_what_cannot_be_played_is_told(env_id: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as told:
        worlds.make(env_id)
    assert env_id in str(told.value)


def placed(env, *numbers: float) -> list[float]:
    """Where each number is shown, in cells."""
    env.unwrapped.shows = numbers
    shown = env.step(0)[0]
    assert shown.shape == env.observation_space.shape == (1, 3, worlds.COARSE_CELLS) and shown.dtype == np.uint8
    assert (shown.sum(-1) == 255).all() and ((shown > 0).sum(-1) <= 2).all()
    return [float(row @ np.arange(worlds.COARSE_CELLS) / 255) for row in shown[0].astype(int)]


def test_a_row_of_numbers_is_spread_over_cells_in_their_order() -> None:
    env = worlds.make("Numbers-v0")
    env.reset(seed=200)
    middle, last = (worlds.COARSE_CELLS - 1) / 2, worlds.COARSE_CELLS - 1
    assert placed(env, -2, 0, 0) == pytest.approx([0, middle, middle], abs=0.01)
    assert placed(env, 2, 1e30, 1e30) == pytest.approx([middle, last, last], abs=0.01)
    assert placed(env, 6, -1e30, 1) == pytest.approx([last, 0, middle + last / 4], abs=0.01)
    places = [placed(env, x, x, x) for x in np.linspace(-2, 6, 60)]
    assert (np.diff(places, axis=0) > 0).all()
    assert placed(env, 99, np.inf, -np.inf) == pytest.approx([last, last, 0], abs=0.01)
    assert placed(env, np.nan, np.nan, np.nan)[1] == pytest.approx(middle, abs=0.01)


def test_small_differences_of_numbers_are_seen() -> None:
    env = worlds.make("Numbers-v0")
    env.reset(seed=200)
    assert placed(env, 2.0, 0.0, 0.0)[0] != placed(env, 2.002, 0.0, 0.0)[0]
    assert placed(env, 2.0, 0.0, 0.0)[1] != placed(env, 2.0, 0.002, 0.0)[1]


def test_a_package_is_asked_to_register_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Hook:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self):
            return lambda: (loaded.append(self.name), gymnasium.register("toys/Count-v0", Count))

    monkeypatch.delitem(gymnasium.registry, "toys/Count-v0", raising=False)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Hook("others"), Hook("toys")])
    assert worlds.make("toys/Count-v0").reset(seed=1)[1] == {"ends": 1}
    assert loaded == ["toys"]


def test_the_drone_is_known_without_being_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(ConfigError, match=r"pip install 'edgert\[drone\]'"):
        worlds.make("edgert/Drone-v0")
    with pytest.raises(ConfigError, match="edgert/Nothing-v0"):
        worlds.make("edgert/Nothing-v0")


@pytest.mark.parametrize("env_id", ["Count-v0", "Waiting-v0"])
def test_side_by_side_the_step_after_the_last_begins_the_next_episode(env_id: str) -> None:
    envs = worlds.vector(env_id, 3)
    assert envs.single_observation_space.shape == (2, 3, 1) and envs.single_action_space.n == 3
    obs, _ = envs.reset(seed=2)
    assert obs.shape == (3, 2, 3, 1) and obs[:, 0, 0, 0].tolist() == [2, 3, 4]
    seen = []
    for _ in range(5):
        obs, reward, terminated, truncated, _ = envs.step(np.array([0, 1, 2]))
        seen.append([obs[:, 0, 1, 0].tolist(), reward.tolist(), terminated.tolist(), truncated.tolist()])
    never = [False, False, False]
    assert seen == [
        [[1, 1, 1], [5.0, 5.5, 6.0], never, never],
        [[2, 2, 2], [5.0, 5.5, 6.0], [True, False, False], never],
        [[0, 3, 3], [0.0, 5.5, 6.0], [False, True, False], never],
        [[1, 0, 4], [5.0, 0.0, 6.0], [False, False, True], never],
        [[2, 1, 0], [5.0, 5.5, 0.0], [True, False, False], never],
    ]
    envs.close()


def test_an_episode_of_minatar_does_not_depend_on_the_one_before() -> None:
    pytest.importorskip("minatar", reason="NOT TESTED: MinAtar is not installed (extra `minatar`)")
    env = worlds.make("MinAtar/Breakout-v1")

    def first_steps(seed: int) -> list[bytes]:
        shown = [env.reset(seed=seed)[0]]
        shown += [env.step(0)[0] for _ in range(3)]
        return [each.tobytes() for each in shown]

    # In one of ten episodes the first action is the sticky one.
    alone = [first_steps(seed) for seed in range(60)]
    after_moving = []
    for seed in range(60):
        env.step(2)
        after_moving.append(first_steps(seed))
    assert alone == after_moving


def test_atari_needs_ale_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    for make in (worlds.make, lambda env_id: worlds.vector(env_id, 2)):
        with pytest.raises(ConfigError, match=r"ALE/Pong-v5.*pip install 'edgert\[atari\]'"):
            make("ALE/Pong-v5")


@pytest.mark.parametrize("env_id", ["ALE/NoSuch-v5", "ALE/Pong-v4", "ALE/Pong", "ALE/../Pong-v5"])
def test_what_is_no_atari_game_is_told(env_id: str) -> None:
    pytest.importorskip("ale_py", reason="NOT TESTED: ale-py is not installed (extra `atari`)")
    with pytest.raises(ConfigError, match="no such game"):
        worlds.make(env_id)


def test_every_atari_game_is_found_by_its_gymnasium_id() -> None:
    ale_py = pytest.importorskip("ale_py", reason="NOT TESTED: ale-py is not installed (extra `atari`)")
    gymnasium.register_envs(ale_py)
    ids = [env_id for env_id in gymnasium.registry if env_id.startswith("ALE/") and env_id.endswith("-v5")]
    assert len(ids) > 50
    for env_id in (*ids[:: len(ids) // 8], "ALE/UpNDown-v5"):
        worlds.make(env_id).close()


def test_an_atari_game_is_shown_alone_exactly_as_side_by_side() -> None:
    pytest.importorskip("ale_py", reason="NOT TESTED: ale-py is not installed (extra `atari`)")
    envs, alone = worlds.vector("ALE/Boxing-v5", 2), worlds.make("ALE/Boxing-v5")
    n = int(envs.single_action_space.n)
    assert envs.single_observation_space.shape == alone.observation_space.shape == (84, 84, 4)
    shown, _ = envs.reset(seed=7)
    assert shown.dtype == np.uint8 and shown.flags.c_contiguous
    assert np.array_equal(alone.reset(seed=8)[0], shown[1]) and not np.array_equal(shown[0], shown[1])
    rng, over, ended = np.random.default_rng(0), False, 0
    for _ in range(1850):  # a round of Boxing takes at most 2 minutes of 60 frames a second
        actions = rng.integers(n, size=2)
        shown, reward, terminated, truncated, _ = envs.step(actions)
        if over:
            (obs, _), paid, over = alone.reset(), 0.0, False
        else:
            obs, paid, end, cut, _ = alone.step(actions[1])
            over = end or cut
        assert np.array_equal(obs, shown[1]) and paid == reward[1] and over == (terminated[1] or truncated[1])
        ended += over
    assert ended == 1
    envs.close()


def test_atari_frames_are_stacked_with_the_newest_last_and_a_finished_game_must_be_reset() -> None:
    pytest.importorskip("ale_py", reason="NOT TESTED: ale-py is not installed (extra `atari`)")
    env = worlds.make("ALE/Boxing-v5")
    with pytest.raises(UsageError, match="reset"):
        env.step(0)
    before, _ = env.reset(seed=1)
    done = False
    while not done:
        after, _, end, cut, _ = env.step(5)
        assert np.array_equal(after[:, :, :3], before[:, :, 1:])
        before, done = after, end or cut
    with pytest.raises(UsageError, match="reset"):
        env.step(0)
    env.reset()
    env.step(0)
