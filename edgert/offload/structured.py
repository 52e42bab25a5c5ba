"""Structured least squares: one weight for each user's choice, one for each neighbour at a node, and exact search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgert.offload.joint import F64, MOST, Joint, Tables, as_action, checked, costs
from edgert.offload.planner import DEPTH_TWO, Planner
from edgert.offload.saved import pack, unpack
from edgert.offload.space import PLACES, Action, Allowed, Floor, Goal, Outcome, Space, State
from edgert.offload.tabular import DEFAULT, Rates

RIDGE = 1e-3
LISTED = 2_000
"""Joint actions that are searched one by one by default; more of them take longer than 1 ms."""


class Structured:
    """The baseline that shows how much of the gain needs no learning of models or policies at all.

    Attributes:
        joint: space and floor.
        rates: of exploration; `step_size` is not used.
        listed: joint actions that are searched one by one.
        steps: joint actions seen.
    """

    KIND = "structured"

    def __init__(
        self, space: Space, floor: Floor, goal: Goal = "response", rates: Rates = DEFAULT, listed: int = LISTED
    ) -> None:
        """Begin with nothing but a ridge.

        Args:
            space: to choose from.
            floor: that every choice holds.
            goal: what is made small.
            rates: of exploration.
            listed: so many joint actions are searched one by one; among more of them the planner seeks.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.rates, self.listed = Joint(space, floor), goal, rates, min(listed, MOST)
        self.steps = 0
        self._planner = Planner(self.joint)
        # Of each user's choice, then of others at each place: their number and its square.
        size = self.joint.users * self.joint.choices + 2 * len(PLACES)
        self._inverse = np.eye(size) / RIDGE
        self._target = np.zeros(size)

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Explore by chance, else search; see `Learner.choose`.

        Source:
            congestion games (Rosenthal 1973): what a resource costs depends on how many use it.
        """
        explore = max(self.rates.explore * (1 - self.rates.decay) ** self.steps, self.rates.explore_least)
        if rng.random() < explore:
            return as_action(self.joint.draw(allowed, rng))
        return self.best(state, allowed)

    def best(self, state: State, allowed: Allowed) -> Action:
        """Search all joint actions where they can be listed, else as the planner does; see `Learner.best`.

        Source:
            ours: exact where that takes less than 1 ms.
        """
        checked(state, self.joint.users)
        mask = self.joint.mask(allowed)
        users, choices = self.joint.users, self.joint.choices
        weights = self._inverse @ self._target
        alone = weights[: users * choices].reshape(users, choices)
        number, square = weights[users * choices :].reshape(2, len(PLACES))[:, self.joint.place]
        tables = Tables(alone, number, square, np.zeros(choices), -np.inf)
        if np.prod(mask.sum(axis=1).astype(float)) <= self.listed:
            every = self.joint.every(allowed)
            return as_action(every[int(self.joint.expect(tables, every).sum(axis=1).argmin())])
        starts = self.joint.safest(mask)[None]
        found = self._planner.plan(
            lambda actions: np.asarray(self.joint.expect(tables, actions).sum(axis=1)), alone, mask, starts, DEPTH_TWO
        )
        return as_action(found[0])

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Least squares, one answer after the other; see `Learner.observe`.

        Source:
            Sherman & Morrison 1950.
        """
        checked(state, self.joint.users)
        cost = costs(outcomes, self.joint.users, self.goal)
        self.steps += 1
        for row, seconds in zip(self._rows(action), cost, strict=True):
            if np.isnan(seconds):
                continue
            turned = self._inverse @ row
            self._inverse -= np.outer(turned, turned / (1.0 + row @ turned))
            self._target += row * seconds

    def guess(self, state: State) -> None:
        """Nothing: it cannot say how sure it is; see `Learner.guess`.

        Source:
            ours.
        """

    def save(self) -> bytes:
        """Freeze everything; see `Learner.save`.

        Source:
            ours.
        """
        known = {"inverse": self._inverse, "target": self._target, "steps": self.steps}
        return pack(f"{self.KIND} {self.goal}", self.joint.space, self.joint.floor, known)

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known = unpack(f"{self.KIND} {self.goal}", self.joint.space, self.joint.floor, data)
        self._inverse, self._target, self.steps = known["inverse"], known["target"], known["steps"]

    def _rows(self, action: Action) -> F64:
        users, choices = self.joint.users, self.joint.choices
        chosen = np.array(action, np.intp)
        rows = np.zeros((users, users * choices + 2 * len(PLACES)))
        user, place = np.arange(users), self.joint.place[chosen]
        others = self.joint.sharing(chosen[None])[0][0]
        rows[user, user * choices + chosen] = 1.0
        rows[user, users * choices + place] = others
        rows[user, users * choices + len(PLACES) + place] = others * others
        return rows
