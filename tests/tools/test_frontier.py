"""Frontiers on a game whose right answers are known: what is measured must be what is true."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgert import quant
from edgert.errors import UsageError
from edgert.nets import Dense, NetSpec, Params, ops
from edgert.policy import frontier
from edgert.values import Operating

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("rich")
from tools import frontier as tool  # noqa: E402 - after the skips

ENV = "EdgertTest/Cue-v0"
LENGTH = 20


class Cue(gymnasium.Env):  # type: ignore[misc]  # untyped where gymnasium ships no types
    """A cell shows the action that pays 1, another whether the cheap exit can know it."""

    observation_space = gymnasium.spaces.Box(0, 1, (1, 1, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def _show(self) -> np.ndarray:
        self.right, self.hard = int(self.np_random.integers(2)), int(self.np_random.integers(2))
        return np.array([[[self.right, self.hard, 1 - self.right]]], np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = LENGTH
        return self._show(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, self.left = float(action == self.right), self.left - 1
        return self._show(), reward, self.left == 0, False, {}


class Guess(Cue):
    """Pays for the number that it draws next."""

    def _show(self) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.right = int(self.np_random.integers(2))
        return super().step(action)


SPEC = NetSpec((1, 1, 3), 2, trunk=((Dense(3),), (Dense(8),)), heads=((), ()))


def solved() -> quant.Tensors:
    """Exit 0 knows the easy half and says so; on the hard half it is always wrong, and unsure. Exit 1 knows all."""
    params = Params(SPEC)
    views = params.views
    views["t0.0.w"][:] = np.eye(3)
    # Q0 = right - hard * (2 * right - 1) is no linear function, so: Q0(0) = the opposite where hard, by weights of 2.
    views["h0.out.w"][:] = [[-1.0, 1.0, 0.0], [4.0, 0.0, -8.0], [0.0, 0.0, 0.0]]
    views["h0.out.b"][:] = [0.5, -0.5, 4.0]
    views["t1.0.w"][:3, :3] = np.eye(3)
    views["h1.out.w"][:3] = [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 2, (64, 1, 1, 3)).astype(np.uint8)
    return quant.quantize(params, quant.calibrate(params, obs))


@pytest.fixture(scope="module")
def player() -> Iterator[tool.Player]:
    gymnasium.register(ENV, Cue)
    yield tool.Player(SPEC, solved(), ENV, parallel=8)
    del gymnasium.registry[ENV]


def observations() -> np.ndarray:
    return np.array([[[[r, h, 1 - r]]] for r in (0, 1) for h in (0, 1) for _ in range(8)], np.uint8)


def test_the_exits_really_decide_and_every_tick_is_accounted_for(player: tool.Player) -> None:
    jobs = [
        (setting, 5 + i)
        for setting in (Operating((1.0,)), Operating((0.5,)), Operating((0.0,)), None)
        for i in range(12)
    ]
    played = player.play(jobs)
    full, gated, early, random = np.split(played.returns, 4)
    assert (full == LENGTH).all() and (gated == LENGTH).all()
    assert abs(early.mean() - 0.75 * LENGTH) < 0.1 * LENGTH, "on the hard half exit 0 always says the same"
    assert abs(random.mean() - 0.5 * LENGTH) < 0.15 * LENGTH
    ticks = played.exit_ticks.reshape(4, 12, 2).sum(1)
    assert ticks[0].tolist() == [0, 12 * LENGTH] and ticks[2].tolist() == [12 * LENGTH, 0]
    assert abs(ticks[1, 0] / (12 * LENGTH) - 0.5) < 0.15 and ticks[1].sum() == 12 * LENGTH
    assert ticks[3].sum() == 0 and not played.held_ticks.any()


def test_repeated_actions_cost_nothing_and_their_loss_is_felt(player: tool.Player) -> None:
    played = player.play([(Operating((0.5,), 4, 0.0), i) for i in range(20)])
    assert (played.exit_ticks.sum(1) + played.held_ticks == LENGTH).all()
    assert played.held_ticks.sum() > 0.4 * 20 * LENGTH
    assert played.returns.mean() < 0.9 * LENGTH, "what was right is not right three ticks later"


def test_what_is_played_does_not_depend_on_how(player: tool.Player) -> None:
    jobs = [(setting, i) for setting in (Operating((0.5,), 2, 0.5), None) for i in range(9)]
    one = player.play(jobs)
    other = player._replace(parallel=1).play(jobs)
    assert np.array_equal(one.returns, other.returns) and np.array_equal(one.exit_ticks, other.exit_ticks)
    assert len(one.met) == 0 and 30 <= len(player.play(jobs, keep=30).met) <= 60


def test_random_actions_are_not_drawn_from_the_environments_own_numbers(player: tool.Player) -> None:
    gymnasium.register("EdgertTest/Guess-v0", Guess)
    returns = player._replace(env_id="EdgertTest/Guess-v0").play([(None, seed) for seed in range(40)]).returns
    assert returns.mean() == pytest.approx(LENGTH / 2, abs=2.0)


def test_a_sweep_finds_that_the_gate_costs_nothing(player: tool.Player) -> None:
    done: list[int] = []
    with tool.running(player, 1, done.append) as run:
        default = Operating((0.5,))
        measured, bounds = tool.sweep(run, player, observations(), always=[default], n=5, episodes=20)
    assert done == list(range(1, len(done) + 1))
    assert measured.full.mean == LENGTH == bounds[1] and measured.full.episodes == 20 * tool.REFERENCE_TIMES
    assert [p.ops_frac for p in measured.points] == sorted(p.ops_frac for p in measured.points)
    found = frontier.find(measured.points, default)
    assert found is not None
    point = measured.points[found]
    assert point.return_frac == 1.0 and point.return_low <= 1.0 <= point.return_high
    costs = ops(SPEC)
    share = point.exit_share[0]
    assert point.ops_frac == pytest.approx((share * costs[0] + (1 - share) * costs[1]) / frontier.full_ops(SPEC))
    best = frontier.pareto(measured.points)
    assert best[-1].return_frac == 1.0 and best[-1].ops_frac < 0.95 * costs[1] / frontier.full_ops(SPEC)
    assert any(p.held_share > 0 for p in measured.points)
    assert tool.table(measured).count("\n") == len(measured.points)


def test_a_promise_keeps_the_gate_and_not_what_loses_a_quarter(player: tool.Player) -> None:
    with tool.running(player, 1) as run:
        measured, bounds = tool.sweep(run, player, observations(), n=5, episodes=20)
        kept, setting = tool.promise(run, measured, max_loss_frac=0.3, delta=0.1, episodes=120, bounds=bounds)
        assert kept.holds and all(p <= 0.1 for p in kept.p_values[:-1])
        point = measured.points[frontier.find(measured.points, setting) or 0]
        assert point.return_frac > 0.7 and point.ops_frac < measured.points[-1].ops_frac
        none, setting = tool.promise(run, measured, max_loss_frac=0.01, delta=0.01, episodes=2, bounds=bounds)
        assert not none.holds and setting == Operating((1.0,))


def arguments(*said: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(said)


def test_the_command_line_measures_only_what_it_is_asked_for(player: tool.Player) -> None:
    default = Operating((0.5,))
    given = (player.spec, player.tensors, ENV, observations(), default)
    assert tool.measure(arguments(), *given) == (None, None, default)
    with pytest.raises(UsageError, match="frontier-episodes"):
        tool.measure(arguments("--risk", "0.1"), *given)
    said = ["--frontier-episodes", "8", "--frontier-settings", "3", "--repeats", "2", "--risk", "0.4"]
    measured, kept, setting = tool.measure(arguments(*said, "--risk-episodes", "60"), *given)
    assert measured is not None and kept is not None
    assert frontier.find(measured.points, default) is not None and setting.fault(2) == ""


def test_a_network_that_learned_nothing_has_no_frontier(player: tool.Player) -> None:
    params = Params(SPEC)
    tensors = quant.quantize(params, quant.calibrate(params, observations()))
    with tool.running(player._replace(tensors=tensors), 1) as run, pytest.raises(UsageError, match="normalised"):
        tool.sweep(run, player, observations(), n=3, episodes=5)
