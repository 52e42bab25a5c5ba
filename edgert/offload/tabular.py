"""Tables of averages: one entry for each joint action, or for each choice of each user."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edgert.offload.joint import F64, Ints, Joint, as_action, checked, costs
from edgert.offload.saved import pack, unpack
from edgert.offload.space import Action, Allowed, Floor, Goal, Outcome, Space, State, level, levels


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """How a table learns.

    Attributes:
        step_size: of an update; 0 is the average of all that was seen.
        explore: chance of a random action at the beginning, 0..1.
        decay: share by which that chance falls with every joint action.
        explore_least: it falls no lower.
    """

    step_size: float = 0.0
    explore: float = 1.0
    decay: float = 1e-3
    explore_least: float = 0.05


DEFAULT = Rates()
STALE_MOST = 4
"""Times as long as a table its heap may become, with what has changed since it was pushed."""
_SHORTEST = 64


class JointQ:
    """Q-learning over joint actions: what the papers compare with.

    Attributes:
        joint: space and floor.
        rates: as given.
        steps: joint actions seen.
    """

    KIND = "joint table"

    def __init__(self, space: Space, floor: Floor, goal: Goal = "response", rates: Rates = DEFAULT) -> None:
        """Begin with an empty table.

        Args:
            space: with so few joint actions that they can be listed.
            floor: that every choice holds.
            goal: what is made small.
            rates: of learning.

        Raises:
            nothing: a space that is too large is found at the first choice.
        """
        self.joint, self.goal, self.rates = Joint(space, floor), goal, rates
        self.steps = 0
        self._tables: dict[tuple[int, ...], dict[Action, list[float]]] = {}
        # Entries as they were when they were pushed; one that has changed since is thrown away when it comes up.
        self._heaps: dict[tuple[int, ...], list[tuple[float, Action]]] = {}

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Explore by chance, else the best known; see `Learner.choose`.

        Source:
            Watkins 1989, epsilon-greedy; the next state does not depend on the action, so the discount is 0.
        """
        explore = max(self.rates.explore * (1 - self.rates.decay) ** self.steps, self.rates.explore_least)
        if rng.random() < explore:
            return as_action(self.joint.draw(allowed, rng))
        return self.best(state, allowed)

    def best(self, state: State, allowed: Allowed) -> Action:
        """The lowest entry; the most accurate choices where nothing allowed was ever seen; see `Learner.best`.

        Source:
            Watkins 1989.
        """
        key = levels(checked(state, self.joint.users))
        mask = self.joint.mask(allowed)
        table, heap = self._tables.get(key, {}), self._heaps.get(key, [])
        while heap and table[heap[0][1]][1] != heap[0][0]:
            heapq.heappop(heap)
        if heap and self._fine(heap[0][1], mask):
            return heap[0][1]
        fine = [action for action in table if self._fine(action, mask)]
        if not fine:
            return as_action(self.joint.safest(mask))
        return min(fine, key=lambda action: table[action][1])

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Move one entry; see `Learner.observe`.

        Source:
            Watkins 1989.
        """
        cost = float(costs(outcomes, self.joint.users, self.goal).sum())
        key = levels(checked(state, self.joint.users))
        self.steps += 1
        if np.isnan(cost):
            return
        table = self._tables.setdefault(key, {})
        entry = table.setdefault(action, [0.0, 0.0])
        entry[0] += 1.0
        rate = max(self.rates.step_size, 1.0 / entry[0])
        entry[1] += rate * (cost - entry[1])
        heap = self._heaps.setdefault(key, [])
        heapq.heappush(heap, (entry[1], action))
        if len(heap) > max(STALE_MOST * len(table), _SHORTEST):
            heap[:] = sorted((mean, each) for each, (_, mean) in table.items())

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
        tables = [
            [list(key), [[list(action), *entry] for action, entry in table.items()]]
            for key, table in self._tables.items()
        ]
        known = {"tables": tables, "steps": self.steps}
        return pack(f"{self.KIND} {self.goal}", self.joint.space, self.joint.floor, known)

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known: dict[str, Any] = unpack(f"{self.KIND} {self.goal}", self.joint.space, self.joint.floor, data)
        self.steps = known["steps"]
        for key, rows in known["tables"]:
            table = {tuple(action): [count, mean] for action, count, mean in rows}
            self._tables[tuple(key)] = table
            self._heaps[tuple(key)] = sorted((mean, action) for action, (_, mean) in table.items())

    def _fine(self, action: Action, mask: Any) -> bool:
        chosen: Ints = np.array(action, np.intp)
        return bool(mask[np.arange(self.joint.users), chosen].all() and self.joint.holds(chosen[None])[0])


class UserQ:
    """Q-learning of every user for itself: what AutoScale does on each phone.

    Attributes:
        joint: space and floor.
        rates: as given.
        steps: joint actions seen.
    """

    KIND = "user tables"

    def __init__(self, space: Space, floor: Floor, goal: Goal = "response", rates: Rates = DEFAULT) -> None:
        """Begin with empty tables.

        Args:
            space: to choose from.
            floor: that every choice holds.
            goal: what is made small.
            rates: of learning.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.rates = Joint(space, floor), goal, rates
        self.steps = 0
        # (N, levels of the user, edge and cloud, C)
        shape = (self.joint.users, 8**3, self.joint.choices)
        self._count, self._mean = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Each user explores by chance, else takes its best; see `Learner.choose`.

        Source:
            AutoScale (Kim & Wu, MICRO 2020), our reading; untried choices count as the best, so each is tried.
        """
        explore = max(self.rates.explore * (1 - self.rates.decay) ** self.steps, self.rates.explore_least)
        scores = self._scores(state)
        random = rng.random(scores.shape) * (np.ptp(scores) + 1e-9) + scores.min()
        turned = np.where(rng.random(self.joint.users)[:, None] < explore, random, scores)
        return as_action(self.joint.cheapest(turned, self.joint.mask(allowed)))

    def best(self, state: State, allowed: Allowed) -> Action:
        """Each user's lowest entry; see `Learner.best`.

        Source:
            AutoScale, our reading.
        """
        return as_action(self.joint.cheapest(self._scores(state), self.joint.mask(allowed)))

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Move one entry of each user; see `Learner.observe`.

        Source:
            Watkins 1989.
        """
        cost = costs(outcomes, self.joint.users, self.goal)
        row = self._row(state)
        self.steps += 1
        for user in np.flatnonzero(~np.isnan(cost)):
            at = (user, row[user], action[user])
            self._count[at] += 1
            rate = max(self.rates.step_size, 1.0 / float(self._count[at]))
            self._mean[at] += rate * (cost[user] - self._mean[at])

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
        known = {"count": self._count, "mean": self._mean, "steps": self.steps}
        return pack(f"{self.KIND} {self.goal}", self.joint.space, self.joint.floor, known)

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known = unpack(f"{self.KIND} {self.goal}", self.joint.space, self.joint.floor, data)
        self._count, self._mean, self.steps = known["count"], known["mean"], known["steps"]

    def _row(self, state: State) -> list[int]:
        shared = 8 * level(state.edge) + 64 * level(state.cloud)
        return [level(load) + shared for load in checked(state, self.joint.users).users]

    def _scores(self, state: State) -> F64:
        return np.asarray(self._mean[np.arange(self.joint.users), self._row(state)], np.float64)
