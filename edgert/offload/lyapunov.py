"""Drift plus penalty: floors and budgets that must hold over time, kept by queues instead of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgert.offload.joint import F64, Joint, as_action, checked, costs
from edgert.offload.planner import DEPTH_ONE, Planner
from edgert.offload.saved import pack, unpack
from edgert.offload.space import Action, Allowed, Floor, Goal, Guess, Outcome, Space, State, reachable
from edgert.offload.system_model import SystemModel

KIND = "drift plus penalty"
BREADTH = 0.6


class DriftPlusPenalty:
    """Holds a mean accuracy, and a mean of bytes that are sent, over time; single answers may be below.

    Attributes:
        joint: the space; its floor is that of single joint actions (none).
        wanted_frac: mean accuracy over time.
        sent_bytes: mean over users and time of what may be sent for one request, None is no budget.
        patience: what a second is worth against the queues; more is faster and takes longer to meet the means.
        accuracy_owed, bytes_owed: the queues, as shares.
        steps: joint actions seen.
    """

    def __init__(
        self,
        space: Space,
        floor: Floor,
        goal: Goal = "response",
        sent_bytes: int | None = None,
        patience: int | float = 0.2,
    ) -> None:
        """Begin with empty queues.

        Args:
            space: to choose from.
            floor: the mean over time that is wanted, whatever its `per` says.
            goal: what is made small.
            sent_bytes: mean for one request.
            patience: see above.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.patience = Joint(space, Floor()), goal, patience
        self._floor, self.sent_bytes = floor, sent_bytes
        self.wanted_frac = reachable(space, floor)
        self.model = SystemModel(self.joint, goal)
        self.accuracy_owed = self.bytes_owed = 0.0
        self.steps = 0
        self._planner = Planner(self.joint)
        away = self.joint.place > 0
        self._sent = np.array([space.variants[choice.variant].input_bytes for choice in space.choices]) * away

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """The lowest sum of drift and penalty under a model that could be true; see `Learner.choose`.

        Masks hold; `allowed` is of a floor of 0 where accuracy is to hold on average over time.

        Source:
            Neely 2010, Stochastic Network Optimization, section 4.2.
        """
        return self._decide(state, allowed, self.model.sample(rng, BREADTH))

    def best(self, state: State, allowed: Allowed) -> Action:
        """The lowest sum under the expectation; see `Learner.best`.

        Source:
            Neely 2010, section 4.2.
        """
        return self._decide(state, allowed, self.model.mean)

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Teach the model and move the queues; see `Learner.observe`.

        Source:
            Neely 2010, equation 4.40: a queue grows by what was missed and never falls below zero.
        """
        chosen = np.array(action, np.intp)
        self.model.update(checked(state, self.joint.users), chosen, costs(outcomes, self.joint.users, self.goal))
        missed = self.wanted_frac - float(self.joint.accuracy_frac[chosen].mean())
        self.accuracy_owed = max(0.0, self.accuracy_owed + missed)
        if self.sent_bytes is not None:
            over = float(self._sent[chosen].mean()) / max(self.sent_bytes, 1) - 1.0
            self.bytes_owed = max(0.0, self.bytes_owed + over)
        self.steps += 1

    def guess(self, state: State) -> tuple[tuple[Guess, ...], ...]:
        """What the system model expects; see `Learner.guess`.

        Source:
            see `SystemModel`.
        """
        return self.model.guess(checked(state, self.joint.users))

    def save(self) -> bytes:
        """Freeze everything; see `Learner.save`.

        Source:
            ours.
        """
        owed = {"accuracy": self.accuracy_owed, "bytes": self.bytes_owed, "steps": self.steps}
        return pack(f"{KIND} {self.goal}", self.joint.space, self._floor, {"model": self.model.known(), **owed})

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known = unpack(f"{KIND} {self.goal}", self.joint.space, self._floor, data)
        self.model.recall(known["model"])
        self.accuracy_owed, self.bytes_owed = known["accuracy"], known["bytes"]
        self.steps = known["steps"]

    def _decide(self, state: State, allowed: Allowed, weights: F64) -> Action:
        mask = self.joint.mask(allowed)
        tables = self.model.tables(checked(state, self.joint.users), weights)
        price = -self.accuracy_owed * self.joint.accuracy_frac
        if self.sent_bytes is not None:
            price = price + self.bytes_owed * self._sent / max(self.sent_bytes, 1)
        worth = self.patience / (self.model.scale or 1.0)
        priced = tables._replace(alone=worth * tables.alone + price)
        found = self._planner.plan(
            lambda actions: (worth * self.joint.expect(tables, actions) + price[actions]).sum(axis=1),
            priced.alone,
            mask,
            self.joint.safest(mask)[None],
            DEPTH_ONE,
        )
        return as_action(found[0])
