"""Contextual bandits: every choice of every user has a linear model of its own, and others are not modelled at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from edgert.offload.joint import F64, Joint, as_action, checked, costs
from edgert.offload.saved import pack, unpack
from edgert.offload.space import Action, Allowed, Floor, Goal, Guess, Outcome, Space, State

Rule = Literal["ucb", "thompson"]
CONTEXT = 3
RTT_UNIT_S = 0.020
RIDGE = 0.1


class LinearBandit:
    """LinUCB or linear Thompson sampling, one disjoint model for each user and choice.

    Attributes:
        joint: space and floor.
        rule: how it explores.
        breadth: how much, in standard deviations.
        steps: joint actions seen.
    """

    KIND = "bandit"

    def __init__(
        self, space: Space, floor: Floor, goal: Goal = "response", rule: Rule = "ucb", breadth: int | float = 1.0
    ) -> None:
        """Begin with nothing but a ridge.

        Args:
            space: to choose from.
            floor: that every choice holds.
            goal: what is made small.
            rule: "ucb" or "thompson".
            breadth: of exploration.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.rule, self.breadth = Joint(space, floor), goal, rule, breadth
        self.steps = 0
        shape = (self.joint.users, self.joint.choices)
        self._inverse = np.broadcast_to(np.eye(CONTEXT) / RIDGE, (*shape, CONTEXT, CONTEXT)).copy()
        self._target = np.zeros((*shape, CONTEXT))
        self._scale = 0.0

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """The lowest that could be true; see `Learner.choose`.

        Source:
            Li et al. 2010 (LinUCB, disjoint; it uses no chance); Agrawal & Goyal 2013 (Thompson).
        """
        mean, std = self._belief(state)
        toss = rng.standard_normal(mean.shape) if self.rule == "thompson" else -1.0
        return as_action(self.joint.cheapest(mean + self.breadth * std * toss, self.joint.mask(allowed)))

    def best(self, state: State, allowed: Allowed) -> Action:
        """The lowest expectation; see `Learner.best`.

        Source:
            Li et al. 2010.
        """
        return as_action(self.joint.cheapest(self._belief(state)[0], self.joint.mask(allowed)))

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Move the model of each user's choice; see `Learner.observe`.

        Source:
            Sherman & Morrison 1950.
        """
        cost = costs(outcomes, self.joint.users, self.goal)
        context = self._context(state)
        self.steps += 1
        for user in np.flatnonzero(~np.isnan(cost)):
            self._scale = self._scale or float(cost[user])  # nothing is nothing in any unit
            row, inverse = context[user, action[user]], self._inverse[user, action[user]]
            turned = inverse @ row
            inverse -= np.outer(turned, turned) / (1.0 + row @ turned)
            self._target[user, action[user]] += row * cost[user] / (self._scale or 1.0)

    def guess(self, state: State) -> tuple[tuple[Guess, ...], ...]:
        """What each model expects; see `Learner.guess`.

        Source:
            Li et al. 2010.
        """
        mean, std = self._belief(state)
        return tuple(tuple(map(Guess, *rows)) for rows in zip(mean.tolist(), std.tolist(), strict=True))

    def save(self) -> bytes:
        """Freeze everything; see `Learner.save`.

        Source:
            ours.
        """
        known = {"inverse": self._inverse, "target": self._target, "scale": self._scale, "steps": self.steps}
        return pack(f"{self.KIND} {self.rule} {self.goal}", self.joint.space, self.joint.floor, known)

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known = unpack(f"{self.KIND} {self.rule} {self.goal}", self.joint.space, self.joint.floor, data)
        self._inverse, self._target = known["inverse"], known["target"]
        self._scale, self.steps = known["scale"], known["steps"]

    def _context(self, state: State) -> F64:
        """(N, C, 3): one, the round trip on the way there, and how busy it is there."""
        place = self.joint.place
        found = np.ones((self.joint.users, self.joint.choices, CONTEXT))
        beyond = state.cloud.rtt_s or 0.0
        remote = [state.edge.cpu_frac or 0.0, state.cloud.cpu_frac or 0.0]
        for user, load in enumerate(checked(state, self.joint.users).users):
            near = load.rtt_s or 0.0
            found[user, :, 1] = np.array([0.0, near, near + beyond])[place] / RTT_UNIT_S
            found[user, :, 2] = np.array([load.cpu_frac or 0.0, *remote])[place]
        return found

    def _belief(self, state: State) -> tuple[F64, F64]:
        context = self._context(state)
        weights = (self._inverse @ self._target[..., None])[..., 0]
        spread = ((self._inverse @ context[..., None])[..., 0] * context).sum(axis=-1)
        scale = self._scale or 1.0
        return (weights * context).sum(axis=-1) * scale, np.sqrt(np.maximum(spread, 0.0)) * scale
