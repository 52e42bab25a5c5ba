"""Teacher knowledge for a student of any library that learns from a gymnasium environment.

    teacher = Teacher("mqtt://broker.lan", task="breakout", n_actions=env.action_space.n, gamma=0.99)
    env = Taught(env, teacher)                       # learn from it with whatever you have

The library is not touched: what teachers know comes in through the environment, as reward, as advice and as `info`.
Nothing here waits: an observation is shown to the teacher's thread, and what has been answered by the next time it is
met is used then. How far teachers are believed is measured (`edgert.knowledge.trust`); evaluate without this wrapper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

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

ANSWER_TRANSITIONS = 4096
"""Transitions after which an answer that has not come is not waited for any more."""
LOOKS = 8
"""Transitions looked at for answers when one is added: many at once, so that none pile up."""

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
    - targets: `with_targets(ReplayBuffer, teacher)` teaches DQN and its like by what is known when it is drawn. For
      others `info["teacher"]` has what is known of the state the action was taken in ("q" or "logits", "value",
      "age_s"), or is None; `info["transition"]` is its number, `info["following"]` that of the next one (None where the
      episode terminated), under which `knowledge` finds what came later.

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
        following = None if terminated else self._number
        said: dict[str, Any] = {"teacher": told, "transition": number, "following": following}
        said |= {"action_executed": executed, "shaping": shaping}
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


def with_targets(buffer: Buffer, teacher: Teacher, *, frac: float = 0.5, half_life: float = 20_000.0) -> Buffer:
    """A replay buffer class that teaches by what it hands out, once that is known, however late.

    It is for students that learn the values of discrete actions from (observation, action, reward, next observation,
    done), as DQN does. From when on the teacher is believed until it is found out,

    - rewards in the buffer are r + gamma V(s') - V(s), V the teacher's value, or the mean of the known ones while it is
      not known: the same policy is best, and the student has only to learn by how much an action is worse;
    - a share of each batch are targets: transitions whose reward is what the teacher thinks that an action gives away,
      and after which nothing follows, one for each action of an observation that was met. They are fewer as the
      teacher is believed less and as the student gets older.

    The number of gradient steps stays as it was. Leave `Taught(..., shaping=0)`: it would shape a second time. Rewards
    and discount of the teacher have to be the student's; a teacher of kind "policy" gives no targets.

    Args:
        buffer: as for `remembering`, with `sample(batch_size, ...)`, which gives a tuple of arrays, `reset()`, `pos`,
            the place of the next transition, and `rewards`, (places, environments); it stores those of one environment.
        teacher: of the `Taught` environment whose transitions it stores.
        frac: share of a batch at full trust, at the start.
        half_life: transitions after which that is half.

    Returns:
        A subclass of it, for `DQN(..., replay_buffer_class=...)`.

    Raises:
        UsageError: a number is out of range.
    """
    if not 0 <= frac <= 1 or not half_life > 0:
        raise UsageError(f"frac {frac}, half_life {half_life}: 0 to 1; positive")

    def init(self: Any, *args: Any, **how: Any) -> None:
        super(made, self).__init__(*args, **how)
        self.lessons = _Lessons(self.rewards, buffer(*args, **how), teacher, frac, half_life)

    def add(self: Any, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[Any]) -> None:
        if len(infos) != 1:
            raise UsageError(f"transitions of {len(infos)} environments at once: targets are for those of one")
        place = int(self.pos)
        super(made, self).add(obs, next_obs, action, reward, done, infos)
        self.lessons.met(place, float(reward[0]), obs, infos[0])

    def sample(self: Any, batch_size: int, *args: Any, **how: Any) -> Any:
        drawn = super(made, self).sample(batch_size, *args, **how)
        n = self.lessons.due(batch_size)
        if n:
            for column, told in zip(drawn, self.lessons.targets.sample(n, *args, **how), strict=True):
                if column is not None:
                    column[:n] = told
        return drawn

    own = {"__init__": init, "add": add, "sample": sample, "__module__": __name__}
    made: Any = type(f"Taught{buffer.__name__}", (buffer,), own)
    kept: Buffer = made
    return kept


class _Met(NamedTuple):
    """A transition of which something is not known yet: its place, the numbers of both its ends, what it began with."""

    place: int
    number: int
    following: int | None
    obs: Any
    told: bool


class _Lessons:
    """What a teacher says of the transitions in a buffer, and its targets, in a buffer of their own."""

    def __init__(self, rewards: Any, targets: Any, teacher: Teacher, frac: float, half_life: float) -> None:
        self._rewards, self.targets, self._teacher = rewards, targets, teacher
        self._frac, self._half_life = frac, half_life
        self._raw = np.zeros(len(rewards), np.float32)
        self._before, self._after = np.full((2, len(rewards)), np.nan)
        self._terminated = np.zeros(len(rewards), bool)
        self._number = np.full(len(rewards), -1)
        self._rng = np.random.default_rng(0)
        self._unanswered = deque[_Met](maxlen=ANSWER_TRANSITIONS)
        self._heard, self._believed = "", False
        self._transitions = self._known = 0

    def met(self, place: int, reward: float, obs: Any, info: dict[str, Any]) -> None:
        """Shape one more transition by what is known, and some earlier ones by what has come since."""
        if "transition" not in info:
            raise UsageError("a transition without a number: put the environment into `Taught`")
        self._transitions += 1
        self._listen()
        met = _Met(place, info["transition"], info["following"], np.array(obs), False)
        self._raw[place], self._number[place] = reward, met.number
        self._before[place] = self._after[place] = np.nan
        self._terminated[place] = met.following is None
        self._unanswered.append(met)
        for _ in range(min(LOOKS, len(self._unanswered))):
            self._look(self._unanswered.popleft())
        self._shape(slice(place, place + 1))

    def due(self, batch_size: int) -> int:
        """How many transitions of a batch are to be targets."""
        share = self._frac * self._teacher.weight * 0.5 ** (self._transitions / self._half_life)
        return int(self._rng.binomial(batch_size, share)) if self._known else 0

    def _listen(self) -> None:
        """Begin to believe; what one who is not listened to any more has said is worth nothing."""
        if self._heard != self._teacher.heard:
            self._heard, self._believed, self._known = self._teacher.heard, False, 0
            self.targets.reset()
            self._before[:] = self._after[:] = np.nan
            self._shape(slice(None))
        if not self._believed and self._teacher.weight > 0:
            self._believed = True
            self._shape(slice(None))

    def _look(self, met: _Met) -> None:
        if self._number[met.place] != met.number:
            return  # another one took its place
        numbers = [met.number] if met.following is None else [met.number, met.following]
        before, *after = self._teacher.knowledge(numbers)
        if before is not None and not met.told:
            self._before[met.place] = before.value
            met = met._replace(told=True)
            for action, value in enumerate(before.scores if before.kind == "q" else ()):
                lost = np.array([value - before.value])
                self.targets.add(met.obs, met.obs, np.array([action]), lost, np.array([True]), [{}])
                self._known += 1
        if after and after[0] is not None:
            self._after[met.place] = after[0].value
        self._shape(slice(met.place, met.place + 1))
        if not met.told or (after and after[0] is None):
            self._unanswered.append(met)

    def _shape(self, places: slice) -> None:
        shaped: Any = self._raw[places]
        if self._believed:
            before, after = (
                np.where(np.isnan(values), self._teacher.usual_value, values)
                for values in (self._before[places], self._after[places])
            )
            shaped = shaped + self._teacher.gamma * np.where(self._terminated[places], 0.0, after) - before
        self._rewards[places, 0] = shaped


def _as_it_is(obs: Any) -> U8:
    seen = np.asarray(obs)
    if seen.dtype not in (np.uint8, np.bool_) or seen.ndim != 3:
        raise UsageError(
            f"the teacher sees uint8 (height, width, channels), this is {seen.dtype} {seen.shape}: give `observe`"
        )
    return seen.astype(np.uint8)
