"""Teacher knowledge for a student of any library that learns from a gymnasium environment.

    teacher = Teacher("mqtt://broker.lan", task="breakout", n_actions=env.action_space.n, gamma=0.99)
    env = Taught(env, teacher)                       # learn from it with whatever you have

The library is not touched: what teachers know comes in through the environment, as reward, as advice and as `info`.
Nothing here waits: an observation is shown to the teacher's thread, and what has been answered by the next time it is
met is used then. How far teachers are believed is measured (`edgert.knowledge.trust`); evaluate without this wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np

from edgert.client.teacher import Knowledge, Teacher
from edgert.errors import ConfigError, UsageError
from edgert.nets import U8

try:
    import gymnasium
except ImportError as missing:
    raise ConfigError("gymnasium is not installed: pip install 'edgert[gym]'") from missing

ALONE_FRAC = 0.25
"""Share of the episodes without advice: they show how well the student does by itself."""

Buffer = TypeVar("Buffer", bound=type)


class Taught(gymnasium.Wrapper):
    """An environment that a teacher comments on.

    Three things reach the student:

    - reward: r + gamma Phi(s') - Phi(s) with Phi(s) = weight * V(s), V the teacher's value. A potential is fixed when
      its state is reached and the same number is used when it is left, so that answers which come late, and a weight
      that changes, do not change which policy is best; where nothing is known, Phi is the mean of the known values; it
      is 0 where an episode terminates, and where it is cut off it is not.
    - advice, for off-policy students only: now and then the teacher's action is executed instead of the student's.
      `info["action_executed"]` says which was; a replay buffer must store that one: `remembering(ReplayBuffer)` makes
      it so. An on-policy student (PPO, A2C) would take the teacher's actions for samples of its own policy: leave
      `advice` at "none".
    - targets: `info["teacher"]` has what is known of the state the action was taken in ("q" or "logits", "value",
      "age_s"), or is None; `info["transition"]` is its number, under which `knowledge` finds what came later.

    `info["shaping"]` is what was added to the reward.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        teacher: Teacher,
        *,
        observe: Callable[[Any], U8] | None = None,
        shaping: float = 1.0,
        advice: Literal["none", "exploration"] = "none",
        advice_frac: float = 0.5,
        advice_half_life: float = 20_000.0,
    ) -> None:
        """Wrap.

        Args:
            env: with discrete actions; shared by nobody else.
            teacher: shared by all environments of this process that have the same task.
            observe: makes of an observation what the teacher sees, uint8 (H, W, C); unset: the observation itself,
                which may be bool.
            shaping: weight of the potential at full trust; 0 leaves rewards alone.
            advice: "exploration" where the student learns off-policy and stores the executed action.
            advice_frac: share of the decisions that are the teacher's at full trust, at the start.
            advice_half_life: transitions of this environment after which that is half.

        Raises:
            UsageError: actions are not discrete, or not as many as the teacher's; or a number is out of range.
        """
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete) or int(space.n) != teacher.n_actions:
            raise UsageError(f"the environment takes {space}, the teacher values {teacher.n_actions} discrete actions")
        if advice not in ("none", "exploration") or not 0 <= advice_frac <= 1 or not advice_half_life > 0:
            raise UsageError(f"advice {advice!r}, advice_frac {advice_frac}, advice_half_life {advice_half_life}")
        self.teacher = teacher
        self._first_action = int(space.start)
        self._observe = _as_it_is if observe is None else observe
        self._shaping, self._advice = shaping, advice
        self._advice_frac, self._advice_half_life = advice_frac, advice_half_life
        self._rng = np.random.default_rng()
        self._steps = 0
        self._number = self._start = -1
        self._weight = self._unknown = self._potential = 0.0
        self._advised = False
        self._return, self._discount, self._length = 0.0, 1.0, 0

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a seed also decides which decisions will be the teacher's."""
        if how.get("seed") is not None:
            self._rng = np.random.default_rng(how["seed"])
        obs, info = self.env.reset(**how)
        # One weight an episode: when it changes within one, all that it changes is noise.
        self._weight, self._unknown = self._shaping * self.teacher.weight, self.teacher.usual_value
        self._advised = self._advice != "none" and self._rng.random() >= ALONE_FRAC
        self._return, self._discount, self._length = 0.0, 1.0, 0
        self._arrive(obs)
        self._start = self._number
        return obs, {**info, "teacher": self._told(), "transition": self._number}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute the student's action, or the teacher's."""
        if self._start < 0:
            raise UsageError("step() before reset()")
        executed = self._choose(action)
        told, number, before = self._told(), self._number, self._potential
        obs, reward, terminated, truncated, info = self.env.step(executed)
        self._steps += 1
        self._return += self._discount * float(reward)
        self._discount *= self.teacher.gamma
        self._length += 1
        if terminated:
            self._potential = 0.0
        else:
            self._arrive(obs)
        index = int(executed) - self._first_action
        self.teacher.lived(number, index, float(reward), None if terminated else self._number)
        if (terminated or truncated) and not self._advised:
            self.teacher.finished(self._return, self._length, self._start)
        shaping = self.teacher.gamma * self._potential - before
        said = {"teacher": told, "transition": number, "action_executed": executed, "shaping": shaping}
        return obs, float(reward) + shaping, terminated, truncated, {**info, **said}

    def knowledge(self, numbers: list[int]) -> list[Knowledge | None]:
        """What is known by now of the transitions with these numbers, for students that learn from targets.

        Of vectorized environments: `venv.env_method("knowledge", numbers, indices=i)`.
        """
        return self.teacher.knowledge(numbers)

    def _arrive(self, obs: Any) -> None:
        self._number = self.teacher.saw(self._observe(obs))
        known = self._known()
        self._potential = self._weight * (self._unknown if known is None else known.value)

    def _known(self) -> Knowledge | None:
        return self.teacher.knowledge([self._number])[0]

    def _told(self) -> dict[str, Any] | None:
        known = self._known()
        return None if known is None else known.told()

    def _choose(self, action: Any) -> Any:
        if not self._advised:
            return action
        frac = self._advice_frac * self.teacher.weight * 0.5 ** (self._steps / self._advice_half_life)
        if self._rng.random() >= frac:
            return action
        known = self._known()
        return action if known is None else self._first_action + known.action


def remembering(buffer: Buffer) -> Buffer:
    """A replay buffer class that stores which action was executed, not which was proposed.

    Args:
        buffer: a class with `add(obs, next_obs, action, reward, done, infos)`, such as stable-baselines3's
            ReplayBuffer.

    Returns:
        A subclass of it, for `DQN(..., replay_buffer_class=...)`.
    """

    def add(self: Any, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[Any]) -> None:
        executed = np.array(action)
        for i, info in enumerate(infos):
            executed[i] = info.get("action_executed", executed[i])
        super(made, self).add(obs, next_obs, executed, reward, done, infos)

    made: Any = type(f"Remembering{buffer.__name__}", (buffer,), {"add": add, "__module__": __name__})
    kept: Buffer = made
    return kept


def _as_it_is(obs: Any) -> U8:
    seen = np.asarray(obs)
    if seen.dtype not in (np.uint8, np.bool_) or seen.ndim != 3:
        raise UsageError(
            f"the teacher sees uint8 (height, width, channels), this is {seen.dtype} {seen.shape}: give `observe`"
        )
    return seen.astype(np.uint8)
