"""Every gymnasium environment that edgert plays is made here, one at a time or many side by side.

What comes out shows uint8 images of (height, width, channels) and takes actions 0..n-1, whatever the environment itself
does. Atari games, `ALE/<Game>-v5`, are shown as `ATARI` says, by the same C++ code alone and side by side, so that a
policy meets on the device exactly what it was trained on. Environments that show a few numbers instead of a picture,
as CartPole does, are shown as `Coarse` says.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgert.errors import ConfigError, UsageError

try:
    import gymnasium
except ImportError as missing:
    raise ConfigError("gymnasium is not installed: pip install 'edgert[sim]'") from missing

ATARI: dict[str, Any] = {
    "repeat_action_probability": 0.25,
    "frameskip": 4,
    "maxpool": True,
    "stack_num": 4,
    "img_height": 84,
    "img_width": 84,
    "grayscale": True,
    "noop_max": 30,
    "use_fire_reset": True,
    "episodic_life": False,
    "reward_clipping": False,
    "full_action_space": False,
    "max_num_frames_per_episode": 108_000,
}
"""How Atari games are played: sticky actions and all lives in one episode, as Machado et al. 2018 recommend; four
frames an action, the maximum of the last two of them, 84x84 grey, the last four of these stacked with the newest in the
last channel, up to 30 frames of doing nothing and then FIRE where the game has it at the start, as Mnih et al. 2015;
rewards as the game counts; the game's own few actions; half an hour at most."""

DRONE_NAMESPACE = "edgert"

U8 = npt.NDArray[np.uint8]


def make(env_id: str) -> Any:
    """Make one environment.

    Args:
        env_id: `ALE/<Game>-v5`, or as gymnasium knows it: "MinAtar/Breakout-v1", "package:Name-v0". Packages that
            declare environments of that namespace are asked to register them.

    Returns:
        A gymnasium.Env with uint8 (H, W, C) observations and actions 0..n-1, to be reset after each episode.

    Raises:
        ConfigError: no such environment, a package for it is missing, or its spaces are not uint8 or bool images, or a
            row of numbers, and discrete actions.
        BoardError: the drone's engine does not start.
    """
    if env_id.startswith("ALE/"):
        return _Atari(env_id)
    try:
        if env_id not in gymnasium.registry:
            _load_plugins(env_id.partition("/")[0])
        # The checker only repeats on stderr what the checks below refuse.
        env = gymnasium.make(env_id, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"environment {env_id}: {error} (is the package that brings it installed?)") from error
    shown, actions = env.observation_space, env.action_space
    image = isinstance(shown, gymnasium.spaces.Box) and shown.dtype in (np.bool_, np.uint8) and len(shown.shape) <= 3
    if not image and not (isinstance(shown, gymnasium.spaces.Box) and len(shown.shape) == 1):
        needed = "a uint8 or bool array of up to 3 dimensions, or one row of numbers, is needed"
        raise ConfigError(f"environment {env_id} shows {shown}: {needed}")
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise ConfigError(f"environment {env_id} takes {actions}: a Discrete action space is needed")
    return _Image(env if image else Coarse(env))


def vector(env_id: str, n: int) -> Any:
    """Make `n` environments that are stepped together, for training and evaluation.

    Args:
        env_id: as for `make`.
        n: how many.

    Returns:
        A gymnasium.vector.VectorEnv that resets by itself in the step after an episode's last (NEXT_STEP): that step
        ignores its action, gives no reward and shows the new episode. `reset(seed=s)` seeds environment i with s + i.

    Raises:
        ConfigError: as `make`.
        BoardError: as `make`.
    """
    return _AtariVector(env_id, n) if env_id.startswith("ALE/") else _Vector([make(env_id) for _ in range(n)])


def _load_plugins(namespace: str) -> None:
    """Run the registration hooks that packages declare for `namespace`; gymnasium 1.0 stopped doing so by itself."""
    if namespace == DRONE_NAMESPACE:
        # Not by its entry point, which a clone that was never installed, or installed before there was one, lacks.
        from edgert.ports.plant import drone

        drone.register()
        return
    for hook in importlib.metadata.entry_points(group="gymnasium.envs"):
        if hook.name == namespace:
            register = hook.load()
            if callable(register):
                register()


class _Image(gymnasium.Wrapper[U8, np.int64, Any, Any]):
    """Shows what has fewer dimensions with W or C of size 1, booleans as 0 and 1; counts actions from 0."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        self._shape = shape + (1,) * (3 - len(shape))
        self.observation_space = gymnasium.spaces.Box(0, 255, self._shape, np.uint8)
        self._first_action = int(env.action_space.start)
        self.action_space = gymnasium.spaces.Discrete(int(env.action_space.n))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[U8, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        game = getattr(self.env.unwrapped, "game", None)
        if game is not None and hasattr(game, "last_action"):  # MinAtar's, which the first sticky action would repeat
            game.last_action = 0
        return self._image(obs), info

    def step(self, action: Any) -> tuple[U8, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(np.int64(self._first_action + int(action)))
        return self._image(obs), float(reward), bool(terminated), bool(truncated), info

    def _image(self, obs: Any) -> U8:
        return np.ascontiguousarray(obs, dtype=np.uint8).reshape(self._shape)


COARSE_CELLS = 16
"""Cells a number is spread over."""
_CENTRED = 8.0
_UNBOUNDED = 1e6  # float32's own limits are no limits


class Coarse(gymnasium.ObservationWrapper[U8, np.int64, Any]):
    """Shows a row of n numbers as n rows of `COARSE_CELLS` cells, uint8 (1, n, COARSE_CELLS).

    A number is brought into -1..1, within finite limits by asinh(8 t) / asinh(8), where t is -1 and 1 at the limits,
    else by x / (1 + |x|): both are finest round the middle, where most values lie, and change their order nowhere. It
    then divides 255 between the two cells next to it, in proportion to nearness. So 3825 values are told apart, and a
    small network learns from them as from coarse coding (Sutton & Barto 2018, section 9.5.3), even with eight bits a
    weight; a number in one byte, or cut into two, would have to be unfolded first. What is not a number is shown as 0.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        low, high = (np.asarray(each, np.float64) for each in (env.observation_space.low, env.observation_space.high))
        self._limited = (low > -_UNBOUNDED) & (high < _UNBOUNDED) & (high > low)
        low, high = np.where(self._limited, low, -1.0), np.where(self._limited, high, 1.0)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._rows = np.arange(len(low))
        self.observation_space = gymnasium.spaces.Box(0, 255, (1, len(low), COARSE_CELLS), np.uint8)

    def observation(self, observation: Any) -> U8:
        """Spread every number over its cells."""
        x = np.nan_to_num(np.asarray(observation, np.float64), posinf=1e300, neginf=-1e300)
        t = (x - self._middle) / self._half
        inside = np.arcsinh(_CENTRED * np.clip(t, -1, 1)) / np.arcsinh(_CENTRED)
        z = np.where(self._limited, inside, t / (1 + np.abs(t)))
        place = (z + 1) / 2 * (COARSE_CELLS - 1)
        cell = np.clip(place.astype(np.int64), 0, COARSE_CELLS - 2)
        above = np.clip(np.rint(255 * (place - cell)), 0, 255)
        shown = np.zeros((1, len(x), COARSE_CELLS), np.uint8)
        shown[0, self._rows, cell] = 255 - above
        shown[0, self._rows, cell + 1] = above
        return shown


class _AtariVector(gymnasium.vector.VectorEnv[U8, npt.NDArray[np.int64], Any]):
    """ale-py's own vector environment, with the stacked frames as channels."""

    def __init__(self, env_id: str, n: int) -> None:
        try:
            from ale_py import roms
            from ale_py.vector_env import AtariVectorEnv
        except ImportError as error:
            raise ConfigError(f"environment {env_id}: ale-py is not installed: pip install 'edgert[atari]'") from error
        games = {rom.replace("_", ""): rom for rom in roms.get_all_rom_ids()}
        told = re.fullmatch(r"ALE/(\w+)-v5", env_id)
        game = games.get(told[1].lower()) if told else None
        if game is None:
            raise ConfigError(f"environment {env_id}: ale-py has no such game; one is named ALE/SpaceInvaders-v5")
        # With no number of threads told it would start one for each processor, even for one game.
        self._games = AtariVectorEnv(game, n, num_threads=1 if n == 1 else 0, **ATARI)
        self.num_envs = n
        self.metadata = self._games.metadata
        shape = (ATARI["img_height"], ATARI["img_width"], ATARI["stack_num"])
        self.single_observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = self._games.single_action_space
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, n)
        self.action_space = self._games.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[U8, dict[str, Any]]:
        obs, info = self._games.reset(seed=seed, options=options)
        return _hwc(obs), info

    def step(self, actions: Any) -> tuple[U8, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._games.step(np.asarray(actions, np.int64))
        return _hwc(obs), reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        self._games.close()


def _hwc(frames: Any) -> U8:
    return np.ascontiguousarray(np.moveaxis(frames, 1, -1))


class _Atari(gymnasium.Env[U8, np.int64]):
    """One Atari game: a vector of one, with the reset that follows an episode left to the caller."""

    def __init__(self, env_id: str) -> None:
        self._games = _AtariVector(env_id, 1)
        self.observation_space = self._games.single_observation_space
        self.action_space = self._games.single_action_space
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[U8, dict[str, Any]]:
        super().reset(seed=seed)
        obs, info = self._games.reset(seed=seed)
        self._over = False
        return obs[0], _only(info)

    def step(self, action: Any) -> tuple[U8, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise UsageError("the game is over: reset it first")
        obs, reward, terminated, truncated, info = self._games.step([int(action)])
        self._over = bool(terminated[0] or truncated[0])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _only(info)

    def close(self) -> None:
        self._games.close()


def _only(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in info.items()}


class _Vector(gymnasium.vector.VectorEnv[U8, npt.NDArray[np.int64], Any]):
    """Environments stepped one after the other, or at once where each waits for a process of its own, as drones do."""

    def __init__(self, envs: Sequence[Any]) -> None:
        self.num_envs = len(envs)
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        self.single_observation_space = envs[0].observation_space
        self.single_action_space = envs[0].action_space
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, len(envs))
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, len(envs))
        self._envs = envs
        self._over = np.zeros(len(envs), bool)
        waits = bool(envs[0].metadata.get("waits", False))
        self._pool = ThreadPoolExecutor(len(envs), thread_name_prefix="world") if waits else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[U8, dict[str, list[dict[str, Any]]]]:
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        shown = list(self._map(lambda env, s: env.reset(seed=s, options=options), self._envs, seeds))
        self._over[:] = False
        return np.stack([obs for obs, _ in shown]), {"each": [info for _, info in shown]}

    def step(self, actions: Any) -> tuple[U8, Any, Any, Any, dict[str, list[dict[str, Any]]]]:
        done = list(self._map(_advance, self._envs, actions, self._over))
        obs, reward, terminated, truncated, infos = zip(*done, strict=True)
        ended, cut = np.array(terminated, bool), np.array(truncated, bool)
        self._over = ended | cut
        return np.stack(obs), np.array(reward, np.float64), ended, cut, {"each": list(infos)}

    def close_extras(self, **kwargs: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        for env in self._envs:
            env.close()

    @property
    def _map(self) -> Any:
        return map if self._pool is None else self._pool.map


def _advance(env: Any, action: Any, over: Any) -> tuple[U8, float, bool, bool, dict[str, Any]]:
    if over:
        obs, info = env.reset()
        return obs, 0.0, False, False, info
    told: tuple[U8, float, bool, bool, dict[str, Any]] = env.step(action)
    return told
