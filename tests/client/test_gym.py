"""What a student meets through the wrapper, with a teacher whose every word the test decides; and real libraries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

gymnasium = pytest.importorskip("gymnasium", reason="the wrapper is one of gymnasium's")

from edgert.client.gym import LOOKS, Taught, remembering, with_targets  # noqa: E402  # after the skip
from edgert.client.teacher import Knowledge, Teacher  # noqa: E402
from edgert.errors import UsageError  # noqa: E402

CELLS = 5


class Corridor(gymnasium.Env):
    """Pays 1 at its right end, where it terminates; cut off after `limit` steps. Actions are 3 (left) and 4 (right)."""

    def __init__(self, limit: int = 1000) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (1, CELLS, 1), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2, start=3)
        self.limit = limit

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.cell = self.steps = 0
        return self._obs(), {"own": True}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in (3, 4)
        self.steps += 1
        ended = action == 4 and self.cell == CELLS - 1
        self.cell = min(CELLS - 1, max(0, self.cell + 2 * (int(action) - 3) - 1))
        return self._obs(), float(ended), ended, self.steps >= self.limit, {"own": True}

    def _obs(self) -> Any:
        obs = np.zeros((1, CELLS, 1), np.uint8)
        obs[0, self.cell] = 1
        return obs


class Said:
    """A teacher in the test's hand: it knows what the test lets it know, from when on it does."""

    def __init__(self, weight: float = 1.0) -> None:
        self.n_actions, self.gamma, self.weight, self.usual_value, self.heard = 2, 0.9, weight, 0.0, "q/somebody"
        self.values: dict[bytes, float] = {}
        self.met: list[bytes] = []
        self.transitions: list[tuple[int, int, float, int | None]] = []
        self.episodes: list[tuple[float, int, int]] = []

    def saw(self, obs: Any) -> int:
        self.met.append(obs.tobytes())
        return len(self.met) - 1

    def knowledge(self, numbers: Sequence[int]) -> list[Knowledge | None]:
        values = [self.values.get(self.met[number]) for number in numbers]
        right = np.array([0.0, 1.0], np.float32)
        return [None if value is None else Knowledge("q", right, value, time.monotonic()) for value in values]

    def lived(self, before: int, action: int, reward: float, after: int | None) -> None:
        self.transitions.append((before, action, reward, after))

    def finished(self, discounted_return: float, length: int, start: int) -> None:
        self.episodes.append((discounted_return, length, start))


def at(cell: int) -> bytes:
    return bytes(int(i == cell) for i in range(CELLS))


def taught(said: Said, limit: int = 1000, **how: Any) -> Taught:
    return Taught(Corridor(limit), said, **how)  # type: ignore[arg-type]  # as good as a Teacher


@given(
    actions=st.lists(st.sampled_from([3, 4]), min_size=1, max_size=30),
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(0, CELLS - 1), st.floats(-9, 9)), max_size=12),
    weights=st.lists(st.floats(0, 1), min_size=31, max_size=31),
    usual=st.floats(-9, 9),
    cut=st.integers(1, 30),
)
def test_however_late_answers_come_an_episode_is_shaped_by_its_ends_alone(
    actions: list[int],
    arrivals: list[tuple[int, int, float]],
    weights: list[float],
    usual: float,
    cut: int,
) -> None:
    """The sum over an episode is gamma^T Phi(s_T) - Phi(s_0), and Phi is 0 where it terminates.

    Nothing that the student does on the way changes it, so that the best policy stays the best.
    """
    said = Said(weights[0])
    said.usual_value = usual
    env = taught(said, cut)
    for when, cell, value in arrivals:
        if when == 0:
            said.values[at(cell)] = value
    env.reset()
    first = weights[0] * said.values.get(at(0), usual)
    total, discount = 0.0, 1.0
    for step, action in enumerate(actions):
        for when, cell, value in arrivals:
            if when == step + 1:
                said.values[at(cell)] = value
        said.weight, said.usual_value = weights[step + 1], usual + step
        _, reward, terminated, truncated, info = env.step(action)
        assert reward == pytest.approx(float(terminated) + info["shaping"])
        total += discount * info["shaping"]
        discount *= said.gamma
        if terminated or truncated:
            break
    last = 0.0 if terminated else weights[0] * said.values.get(at(env.unwrapped.cell), usual)
    assert total == pytest.approx(discount * last - first, abs=1e-6)


def test_what_is_known_is_told_with_the_transition_and_later_by_its_number() -> None:
    said = Said()
    said.values[at(0)] = 2.0
    env = taught(said)
    _, info = env.reset(seed=1)
    assert info["own"] and info["transition"] == 0 and info["teacher"]["value"] == 2.0
    _, _, _, _, info = env.step(4)
    assert (info["transition"], info["action_executed"], info["own"]) == (0, 4, True)
    np.testing.assert_array_equal(info["teacher"]["q"], [0.0, 1.0])
    _, _, _, _, info = env.step(4)
    assert info["transition"] == 1 and info["teacher"] is None
    said.values[at(1)] = 3.0
    (told,) = env.knowledge([1])
    assert told is not None and told.value == 3.0


def test_the_teacher_hears_what_came_of_it_without_shaping() -> None:
    said = Said()
    said.values |= {at(cell): 5.0 for cell in range(CELLS)}
    env = taught(said)
    env.reset()
    for action in (3, 4, 4, 4, 4, 4):
        env.step(action)
    assert said.transitions[0] == (0, 0, 0.0, 1)
    assert said.transitions[-1] == (5, 1, 1.0, None)
    assert said.episodes == [(pytest.approx(0.9**5), 6, 0)]
    env.reset()
    assert env.unwrapped.cell == 0 and said.met[-1] == at(0)


def test_without_advice_the_students_action_is_executed() -> None:
    said = Said()
    said.values |= {at(cell): 5.0 for cell in range(CELLS)}
    env = taught(said, limit=40)
    for _ in range(10):
        env.reset()
        assert {env.step(3)[4]["action_executed"] for _ in range(20)} == {3}


def executed(env: Taught, episodes: int) -> list[float]:
    """Share of the actions that were the teacher's, by episode; the student would always go left."""
    shares = []
    for episode in range(episodes):
        env.reset(seed=7 if episode == 0 else None)
        told, ended = [], False
        while not ended:
            _, _, terminated, truncated, info = env.step(3)
            told.append(info["action_executed"] == 4)
            ended = terminated or truncated
        shares.append(sum(told) / len(told))
    return shares


def test_advice_is_for_some_episodes_and_the_others_show_how_the_student_does_alone() -> None:
    said = Said()
    said.values |= {at(cell): 5.0 for cell in range(CELLS)}
    shares = executed(taught(said, 50, advice="exploration", advice_half_life=1e9), 200)
    alone = sum(share == 0.0 for share in shares)
    assert 20 < alone < 90 and len(said.episodes) == alone
    assert 0.3 < np.mean([share for share in shares if share]) < 0.7
    # Of what is not known there is no advice, nor from a teacher who is not believed, and with time less and less.
    assert set(executed(taught(Said(), 50, advice="exploration"), 20)) == {0.0}
    said.weight = 0.0
    assert set(executed(taught(said, 50, advice="exploration"), 20)) == {0.0}
    said.weight = 1.0
    shares = executed(taught(said, 50, advice="exploration", advice_half_life=200), 200)
    assert np.mean(shares[:20]) > 4 * np.mean(shares[-100:])


def test_a_buffer_remembers_what_was_executed() -> None:
    class Buffer:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
            self.kept.append((obs, next_obs, action, reward, done, infos))

    buffer = remembering(Buffer)()
    assert isinstance(buffer, Buffer)
    proposed, infos = np.array([[0], [1]]), [{"action_executed": 1}, {}]
    buffer.add("s", "t", proposed, "r", "d", infos)
    ((_, _, action, *_),) = buffer.kept
    np.testing.assert_array_equal(action, [[1], [1]])
    np.testing.assert_array_equal(proposed, [[0], [1]])


def test_what_does_not_fit_is_said() -> None:
    said = Said()
    said.n_actions = 3
    with pytest.raises(UsageError, match="the teacher values 3"):
        taught(said)
    said.n_actions = 2
    with pytest.raises(UsageError, match="advice"):
        taught(said, advice="always")
    with pytest.raises(UsageError, match="before reset"):
        taught(said).step(3)
    env = taught(said, observe=lambda obs: obs.astype(np.float32))
    env.reset()
    env = Taught(gymnasium.wrappers.TransformObservation(Corridor(), lambda o: o / 2, None), said)  # type: ignore[arg-type]  # as good as a Teacher
    with pytest.raises(UsageError, match="give `observe`"):
        env.reset()


def test_booleans_are_shown_as_they_are_and_other_observations_through_a_function() -> None:
    said = Said()
    env = Taught(gymnasium.wrappers.TransformObservation(Corridor(), lambda o: o > 0, None), said)  # type: ignore[arg-type]  # as good as a Teacher
    obs, _ = env.reset()
    assert obs.dtype == np.bool_ and said.met == [at(0)]
    said = Said()
    env = taught(said, observe=lambda obs: obs * 7)
    env.reset()
    assert said.met == [bytes([7, 0, 0, 0, 0])]


def test_a_teacher_nobody_can_reach_leaves_the_environment_as_it_was() -> None:
    with Teacher("/nowhere/knowledge.sock", task="t", n_actions=2) as teacher:
        env = Taught(Corridor(), teacher)
        env.reset()
        rewards = [env.step(action)[1] for action in (4, 4, 3, 4, 4, 4, 4)]
        assert rewards == [0.0] * 6 + [1.0]


@pytest.mark.parametrize("processes", [False, True], ids=["one process", "processes"])
def test_students_of_another_library_learn_behind_it(processes: bool) -> None:
    reason = "stable-baselines3 is not installed: no foreign student has met the wrapper"
    sb3 = pytest.importorskip("stable_baselines3", reason=reason)
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    def corridor() -> Any:
        return gymnasium.wrappers.TransformAction(
            Corridor(30), lambda action: int(action) + 3, gymnasium.spaces.Discrete(2)
        )

    with Teacher("/nowhere/knowledge.sock", task="t", n_actions=2, gamma=0.9) as teacher:

        def vectorized(**how: Any) -> Any:
            kind = SubprocVecEnv if processes else DummyVecEnv
            wrapping = {"wrapper_class": Taught, "wrapper_kwargs": {"teacher": teacher, **how}}
            return make_vec_env(corridor, n_envs=2, seed=1, vec_env_cls=kind, **wrapping)

        venv = vectorized()
        sb3.PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, gamma=0.9, device="cpu").learn(128)
        assert len(venv.env_method("knowledge", [0, 1], indices=0)[0]) == 2
        venv.close()
        if processes:
            return
        venv = vectorized(advice="exploration")
        dqn = sb3.DQN(
            "MlpPolicy",
            venv,
            learning_starts=32,
            gamma=0.9,
            device="cpu",
            buffer_size=200,
            replay_buffer_class=remembering(ReplayBuffer),
        )
        dqn.learn(128)
        assert dqn.replay_buffer is not None and dqn.replay_buffer.size() == 64
        venv.close()


def test_a_foreign_student_is_handed_targets() -> None:
    sb3 = pytest.importorskip(
        "stable_baselines3", reason="stable-baselines3 is not installed: it was handed no targets"
    )
    from stable_baselines3.common.buffers import ReplayBuffer

    said = Said()
    said.values = {at(cell): 1.0 for cell in range(CELLS)}
    env = gymnasium.wrappers.TransformAction(
        taught(said, 30, shaping=0.0), lambda action: int(action) + 3, gymnasium.spaces.Discrete(2)
    )
    buffer = with_targets(remembering(ReplayBuffer), said, frac=1.0, half_life=1e9)  # type: ignore[arg-type]  # as good as a Teacher
    dqn = sb3.DQN("MlpPolicy", env, learning_starts=32, device="cpu", buffer_size=200, replay_buffer_class=buffer)
    dqn.learn(64)
    drawn = dqn.replay_buffer.sample(40)
    assert drawn.dones.all() and (drawn.rewards == drawn.actions - 1).all(), "action 1 gives nothing away, action 0 one"


class Rows(NamedTuple):
    """What a batch is of; the last one is not always there."""

    obs: Any
    action: Any
    reward: Any
    done: Any
    discount: Any = None


class Store:
    """A replay buffer as small as can be: batches are its rows in turn."""

    def __init__(self) -> None:
        self.rewards = np.zeros((100, 1), np.float32)
        self.reset()

    def reset(self) -> None:
        self.pos, self.size, self.rows = 0, 0, [(0, 0, 0)] * 100

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[Any]) -> None:
        self.rows[self.pos], self.rewards[self.pos] = (obs[0], action[0], done[0]), reward
        self.pos, self.size = (self.pos + 1) % 100, min(100, self.size + 1)

    def sample(self, n: int) -> Rows:
        places = np.arange(n) % self.size
        obs, action, done = (np.array([self.rows[place][k] for place in places]) for k in range(3))
        return Rows(obs, action, self.rewards[places, 0].copy(), done)


def lives(buffer: Any, said: Said, cells: Sequence[int]) -> None:
    """A student meets these, one after the other; each transition pays 0.5, and after the last it is over."""
    numbers = [said.saw(np.frombuffer(at(cell), np.uint8)) for cell in cells]
    for i, cell in enumerate(cells):
        following = numbers[i + 1] if i + 1 < len(cells) else None
        told = [{"transition": numbers[i], "following": following}]
        buffer.add(
            np.full((1, 1), cell), np.full((1, 1), cell + 1), np.array([1]), np.array([0.5]), np.array([0]), told
        )


def test_what_is_answered_late_shapes_what_was_stored_and_is_handed_out_as_targets() -> None:
    said = Said()
    buffer = with_targets(Store, said, frac=0.5, half_life=1e9)()  # type: ignore[arg-type]  # as good as a Teacher
    lives(buffer, said, [2, 3])
    assert buffer.rewards[:2, 0].tolist() == [0.5, 0.5] and not buffer.sample(64).done.any(), (
        "nobody knows anything yet"
    )
    said.usual_value, said.values[at(2)] = 4.0, 7.0
    lives(buffer, said, [1])
    # What is known, what is the mean of that, and nothing behind the end; the discount is 0.9.
    assert buffer.rewards[:3, 0] == pytest.approx([0.5 + 0.9 * 4 - 7, 0.5 - 4, 0.5 - 4])
    said.values[at(3)] = 5.0
    lives(buffer, said, [1])
    assert buffer.rewards[:2, 0] == pytest.approx([0.5 + 0.9 * 5 - 7, 0.5 - 5])
    drawn = buffer.sample(400)
    target = drawn.done == 1
    assert 120 < target.sum() < 280, "about a half"
    assert set(drawn.obs[target].ravel()) == {2, 3} and drawn.discount is None
    # It values action 1 at 1 and action 0 at 0, wherever; the best of the state is said apart.
    told = {
        (obs.item(), int(a), float(r))
        for obs, a, r in zip(drawn.obs[target], drawn.action[target], drawn.reward[target], strict=True)
    }
    assert told == {(2, 0, -7.0), (2, 1, -6.0), (3, 0, -5.0), (3, 1, -4.0)}


def test_shaping_ends_with_who_said_it_and_targets_go_with_trust_and_age() -> None:
    def share(said: Said, **how: float) -> float:
        buffer = with_targets(Store, said, **how)()  # type: ignore[arg-type]  # as good as a Teacher
        said.values[at(1)] = 1.0
        lives(buffer, said, [1] * 100)
        return float((buffer.sample(1000).done == 1).mean())

    assert share(Said(0.0), frac=1.0) == 0.0
    assert share(Said(1.0), frac=1.0, half_life=1e9) == 1.0
    assert share(Said(0.5), frac=0.5, half_life=100.0) == pytest.approx(0.125, abs=0.05)
    said = Said()
    buffer = with_targets(Store, said, frac=1.0, half_life=1e9)()  # type: ignore[arg-type]  # as good as a Teacher
    said.values[at(1)] = 1.0
    lives(buffer, said, [1] * 9)
    assert buffer.rewards[0, 0] == pytest.approx(0.5 + 0.9 - 1)
    said.weight = 0.0
    lives(buffer, said, [1])
    assert buffer.rewards[0, 0] == pytest.approx(0.5 + 0.9 - 1), (
        "a potential that fades would be another reward each time"
    )
    said.values.clear()
    said.heard = "q/somebody else"
    lives(buffer, said, [1])
    assert set(buffer.rewards[:11, 0].tolist()) == {0.5} and not buffer.sample(50).done.any()


def test_answers_do_not_pile_up_and_targets_are_for_one_environment() -> None:
    said = Said()
    buffer = with_targets(Store, said)()  # type: ignore[arg-type]  # as good as a Teacher
    lives(buffer, said, [2] * 40)
    said.values[at(2)] = 1.0
    lives(buffer, said, [3] * (40 // (LOOKS - 1) + 3))
    assert buffer.lessons.targets.size == 2 * 40
    with pytest.raises(UsageError, match="one"):
        buffer.add(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
    with pytest.raises(UsageError, match="Taught"):
        buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    for how in ({"frac": 1.5}, {"half_life": 0.0}):
        with pytest.raises(UsageError, match="half_life"):
            with_targets(Store, said, **how)  # type: ignore[arg-type]  # as good as a Teacher
