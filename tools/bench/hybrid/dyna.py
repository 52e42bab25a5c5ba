"""Hybrid Learning as it is usually built: a DQN, a network as system model, K planning updates for each real sample.

Our reading of arXiv 2202.11098, after Deep Dyna-Q. It is here to be compared with; `edgert.offload.hybrid` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.offload.dqn import Network
from edgert.offload.joint import MOST, Ints, Joint, as_action, costs
from edgert.offload.planner import DEPTH_ONE, Planner
from edgert.offload.space import Action, Allowed, Floor, Outcome, Space, State

F32 = npt.NDArray[np.float32]


class Planning(NamedTuple):
    """How it learns.

    Attributes:
        simulated: planning updates of the values for each real sample, each on a batch from the model.
        model_updates: of each network of the model for each real sample.
        networks: of the model; a simulated batch leaves out what they disagree about most.
        others: see `dqn.Training`.
    """

    simulated: int = 5
    model_updates: int = 4
    networks: int = 3
    hidden: int = 32
    learning_rate: float = 4e-3
    batch: int = 32
    decay: float = 0.01
    explore_least: float = 0.05
    kept_frac: float = 0.75


class Dyna:
    """The learner. It knows one state only."""

    def __init__(self, space: Space, floor: Floor, rng: np.random.Generator, planning: Planning) -> None:
        """Begin with drawn weights."""
        self.joint, self.planning = Joint(space, floor), planning
        size = space.users * self.joint.choices
        self.values = Network(size, planning.hidden, 1, rng)
        self.models = [Network(size, planning.hidden, space.users, rng) for _ in range(planning.networks)]
        self._planner = Planner(self.joint)
        self._last = self.joint.safest(np.ones((space.users, self.joint.choices), np.bool_))
        self._taken: list[Ints] = []
        self._cost: list[F32] = []
        self._scale = 0.0
        self._owed = False

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Learn, plan, then explore by chance or take the lowest value."""
        if self._owed:
            self._learn(allowed, rng)
        explore = max((1 - self.planning.decay) ** len(self._taken), self.planning.explore_least)
        if rng.random() < explore:
            return as_action(self.joint.draw(allowed, rng))
        self._last = self._lowest(allowed, [self.joint.draw(allowed, rng) for _ in range(4)])
        return as_action(self._last)

    def best(self, state: State, allowed: Allowed) -> Action:
        """The lowest value, sought from the last one."""
        return as_action(self._lowest(allowed, []))

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Remember."""
        cost = costs(outcomes, self.joint.users, "response")
        self._scale = self._scale or float(cost.mean())
        self._taken.append(np.array(action, np.intp))
        self._cost.append((cost / self._scale).astype(np.float32))
        self._owed = True

    def _rows(self, actions: Ints) -> F32:
        rows = np.zeros((len(actions), self.joint.users * self.joint.choices), np.float32)
        column = np.arange(self.joint.users) * self.joint.choices + actions
        rows[np.arange(len(actions))[:, None], column] = 1.0
        return rows

    def _lowest(self, allowed: Allowed, starts: list[Ints]) -> Ints:
        mask = self.joint.mask(allowed)
        begin = np.stack([self._last, self.joint.safest(mask), *starts])
        found = self._planner.plan(
            lambda actions: np.asarray(self.values.value(self._rows(actions))[:, 0], np.float64),
            None,
            mask,
            begin,
            DEPTH_ONE,
        )
        return np.asarray(found[0])

    def _drawn(self, allowed: Allowed, rng: np.random.Generator) -> Ints:
        """A batch of joint actions by chance."""
        size = self.planning.batch
        if np.prod(self.joint.mask(allowed).sum(axis=1).astype(float)) > MOST:
            return np.stack([self.joint.draw(allowed, rng, tries=2) for _ in range(size)])
        every = self.joint.every(allowed)
        return np.asarray(every[rng.integers(len(every), size=size)])

    def _learn(self, allowed: Allowed, rng: np.random.Generator) -> None:
        plan = self.planning
        self._owed = False
        taken, cost = np.array(self._taken), np.array(self._cost)
        one, each = np.ones((plan.batch, 1), np.float32), np.ones((plan.batch, self.joint.users), np.float32)

        def batch() -> tuple[F32, F32]:
            pick = rng.integers(len(taken), size=plan.batch)
            return self._rows(taken[pick]), cost[pick]

        rows, target = batch()
        self.values.train(rows, target.mean(axis=1, keepdims=True), one, plan.learning_rate)
        if not plan.simulated:
            return
        for network in self.models:
            for _ in range(plan.model_updates):
                rows, target = batch()
                network.train(rows, target, each, plan.learning_rate)
        for _ in range(plan.simulated):
            actions = self._drawn(allowed, rng)
            rows = self._rows(actions)
            told = np.stack([network.value(rows).mean(axis=1) for network in self.models])
            doubt = told.std(axis=0)
            sure = (doubt <= np.quantile(doubt, plan.kept_frac)).astype(np.float32)[:, None]
            self.values.train(rows, told.mean(axis=0)[:, None].astype(np.float32), sure, plan.learning_rate)
