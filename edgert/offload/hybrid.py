"""Hybrid Learning: a table of what joint actions really cost, a learned system model for all others, and planning.

The model says what to expect of a joint action that nobody has tried; a table of averages says what those that were
tried really cost. Both are weighed by how sure they are. A decision draws one model that could be true and plans on it,
so it explores where it is unsure and nowhere else. When residuals say that something changed, what is affected becomes
unsure again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgert.offload.joint import F64, Ints, Joint, Tables, as_action, checked, costs
from edgert.offload.planner import BEAM, DEPTH_TWO, Planner
from edgert.offload.saved import pack, unpack
from edgert.offload.space import Action, Allowed, Floor, Goal, Guess, Outcome, Space, State, levels
from edgert.offload.system_model import SystemModel

KIND = "hybrid"
MODEL_FRAC = 0.015
"""How far the model may be off for one joint action, as a share: its features are not the world's."""
BREADTH = 0.8
"""Of the drawn models around the mean; bolder than Thompson's 1, since a neighbour teaches about all others."""
CALM, SELDOM, NARROW = 40, 6, 0.15
"""While nothing changes for so many joint actions, models are drawn close to the mean, by this share; but every sixth
time from as far as ever. What is learned late is seldom worth what it costs, and without it bad luck would last."""
ELITES = 12
"""Joint actions of one state that are remembered as good."""
MOST_STATES = 64
MOST_COUNT = 200
"""Averages over more joint actions than this begin to forget."""


class Hybrid:
    """The learner to deploy.

    Attributes:
        joint: space and floor.
        goal: what is made small.
        model: the system model.
        breadth: how far from the mean models are drawn that decisions are made by.
        calm: joint actions without a change after which it seldom explores.
        depth: how deep is planned at most; a caller with little CPU left lowers it between two decisions.
        steps: joint actions seen.
        changes: alarms so far.
    """

    def __init__(
        self,
        space: Space,
        floor: Floor,
        goal: Goal = "response",
        depth: int = DEPTH_TWO,
        breadth: int | float = BREADTH,
        calm: int = CALM,
    ) -> None:
        """Begin knowing nothing.

        Args:
            space: to choose from.
            floor: that every choice holds.
            goal: what is made small.
            depth: see `planner`.
            breadth: how far from the mean models are drawn; more of it learns sooner and answers slower meanwhile.
            calm: joint actions without a change after which it seldom explores.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.depth = Joint(space, floor), goal, depth
        self.breadth, self.calm = breadth, calm
        self.model = SystemModel(self.joint)
        self.steps = self.changes = 0
        self._quiet = 0  # joint actions since anything changed, as reported or as found
        self._key: tuple[int, ...] | None = None
        self._ones = np.ones(space.users)
        self._planner = Planner(self.joint)
        self._seen: dict[tuple[int, ...], dict[Action, list[float]]] = {}

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Decide by a model that could be true.

        Args:
            state: now.
            allowed: of `space.allowed`.
            rng: chance.

        Returns:
            One choice for each user; mask and floor hold.

        Raises:
            UsageError: state or mask of another number of users.
        Source:
            Thompson sampling (Agrawal & Goyal 2013) with a planner in place of an argmax: arXiv 2202.11098's
            model-based half, our reading.
        """
        if self.model.scale is None:
            return as_action(self.joint.safest(self.joint.mask(allowed)))
        return self._decide(
            checked(state, self.joint.users), allowed, self.model.sample(rng, self.breadth * self._calm()), rng
        )

    def best(self, state: State, allowed: Allowed) -> Action:
        """Decide by what is expected.

        Args:
            state: now.
            allowed: of `space.allowed`.

        Returns:
            One choice for each user; mask and floor hold.

        Raises:
            UsageError: state or mask of another number of users.
        Source:
            see `choose`.
        """
        if self.model.scale is None:
            return as_action(self.joint.safest(self.joint.mask(allowed)))
        return self._decide(checked(state, self.joint.users), allowed, self.model.mean, None)

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Teach the model and the table.

        Args:
            state: in which it was chosen.
            action: that was taken.
            outcomes: one for each user.

        Returns:
            Nothing.

        Raises:
            UsageError: another number of users or outcomes.
        Source:
            arXiv 2202.11098's model-free half, our reading; the table is a running mean since the task has no
            delayed rewards: it is a contextual bandit.
        """
        cost = costs(outcomes, self.joint.users, self.goal)
        alarms = self.model.update(checked(state, self.joint.users), np.array(action, np.intp), cost)
        key = levels(state)
        if alarms.any():
            self.changes += 1
            self._seen.clear()
        self._quiet = 0 if alarms.any() or self._key not in (key, None) else self._quiet + 1
        self._key = key
        self.steps += 1
        if np.isnan(cost).any():
            return
        if key not in self._seen and len(self._seen) >= MOST_STATES:
            self._seen.pop(next(iter(self._seen)))
        here = self._seen.setdefault(key, {})
        entry = here.setdefault(action, [0.0, 0.0])
        entry[0] = min(entry[0] + 1.0, MOST_COUNT)
        entry[1] += (float(cost.sum()) - entry[1]) / entry[0]
        if len(here) > 2 * ELITES:
            kept = sorted(here.items(), key=lambda each: each[1][1])[:ELITES]
            self._seen[key] = {**dict(kept), action: entry}

    def guess(self, state: State) -> tuple[tuple[Guess, ...], ...]:
        """What is expected of each choice of each user, others not counted.

        Args:
            state: now.

        Returns:
            (users, choices).

        Raises:
            UsageError: a state of another number of users.
        Source:
            see `SystemModel`.
        """
        tables = self.model.tables(checked(state, self.joint.users))
        std = self.model.std(state)
        alone = np.maximum(tables.alone, tables.least)
        return tuple(
            tuple(Guess(float(mean), float(sd)) for mean, sd in zip(*row, strict=True))
            for row in zip(alone, std, strict=True)
        )

    def save(self) -> bytes:
        """Freeze everything it knows.

        Returns:
            CBOR bytes.

        Raises:
            nothing.
        Source:
            ours.
        """
        seen = [
            [list(key), [[list(action), *entry] for action, entry in here.items()]] for key, here in self._seen.items()
        ]
        known = {"model": self.model.known(), "seen": seen, "steps": self.steps, "changes": self.changes}
        known |= {"quiet": self._quiet, "key": self._key}
        return pack(f"{KIND} {self.goal}", self.joint.space, self.joint.floor, known)

    @classmethod
    def load(cls, space: Space, floor: Floor, data: bytes, goal: Goal = "response", depth: int = DEPTH_TWO) -> Hybrid:
        """Go on where `save` stopped.

        Args:
            space: as they were.
            floor: as they were.
            goal: as they were.
            data: of `save`.
            depth: may be another one.

        Returns:
            A learner that takes the very same next step.

        Raises:
            ArtifactError: what was kept is of something else, or torn.
        Source:
            ours.
        """
        known: dict[str, Any] = unpack(f"{KIND} {goal}", space, floor, data)
        learner = cls(space, floor, goal, depth)
        learner.model.recall(known["model"])
        learner.steps, learner.changes, learner._quiet = known["steps"], known["changes"], known["quiet"]
        learner._key = None if known["key"] is None else tuple(known["key"])
        for key, here in known["seen"]:
            learner._seen[tuple(key)] = {tuple(action): [count, mean] for action, count, mean in here}
        return learner

    def _decide(self, state: State, allowed: Allowed, weights: F64, rng: np.random.Generator | None) -> Action:
        mask = self.joint.mask(allowed)
        tables = self.model.tables(state, weights)
        here = self._seen.get(levels(state), {})
        tried = np.array(list(here), np.intp).reshape(-1, self.joint.users)
        entries = np.array(list(here.values())).reshape(-1, 2)
        fine = mask[np.arange(self.joint.users), tried].all(axis=1) & self.joint.holds(tried)
        tried, entries = tried[fine], entries[fine]
        good = self._planner.plan(
            lambda actions: np.asarray(self.joint.expect(tables, actions) @ self._ones),
            tables.alone,
            mask,
            tried,
            self.depth,
        )
        new = [action for action in good[:BEAM] if as_action(action) not in here]
        actions = np.concatenate([tried, np.array(new, np.intp).reshape(-1, self.joint.users)])
        entries = np.concatenate([entries, np.zeros((len(new), 2))])
        return as_action(actions[int(self._weigh(tables, actions, entries, rng).argmin())])

    def _weigh(self, tables: Tables, actions: Ints, entries: F64, rng: np.random.Generator | None) -> F64:
        """Each joint action's cost: what the model expects and what the table saw, by how sure each is."""
        each = self.joint.expect(tables, actions)
        expected = each @ self._ones
        count, seen = entries.T
        doubt = np.square(MODEL_FRAC * expected)
        noise = self.model.scatter(actions, each) @ self._ones
        share = count * doubt / (count * doubt + noise)
        weighed = expected + share * (seen - expected)
        if rng is None:
            return np.asarray(weighed)
        left = self.breadth * self._calm() * np.sqrt(doubt * (1 - share)) * (count > 0)
        return np.asarray(weighed + left * rng.standard_normal(len(actions)))

    def _calm(self) -> float:
        return NARROW if self._quiet >= self.calm and self._quiet % SELDOM else 1.0
