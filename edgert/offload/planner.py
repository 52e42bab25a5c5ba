"""The best joint action under a model: all ways to spread users over places, then better neighbours until none is left.

How much is planned is said in joint actions that may be looked at, so that a decision costs what the budget allows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgert.offload.joint import F64, Bools, Ints, Joint, all_places
from edgert.offload.space import PLACES

Value = Callable[[Ints], F64]
"""(M, N) joint actions to (M,) what they cost."""
SPREAD_USERS = 6
"""So many users are spread over places in all 3 ** N ways; more of them start from what is known."""
PRICES = np.r_[0.0, np.geomspace(3e-3, 1.0, 4)]
BEAM = 3
LEAST_GAIN = 1e-9
"""A share of the cost: less is rounding, and rounding could go round in circles."""
DEPTH_NONE, DEPTH_SPREAD, DEPTH_ONE, DEPTH_TWO = range(4)
"""What is planned: only what is handed in; all spreads; better single users; better pairs of users."""


class Planner:
    """Searches the joint actions of one space.

    Attributes:
        joint: the space.
    """

    def __init__(self, joint: Joint) -> None:
        """Prepare what is the same for every search.

        Args:
            joint: the space.

        Raises:
            nothing.
        """
        self.joint = joint
        users = joint.users
        self._spreads = all_places(users) if users <= SPREAD_USERS else np.empty((0, users), np.intp)
        self._at = [joint.place == place for place in range(len(PLACES))]
        self._lost = joint.accuracy_frac.max() - joint.accuracy_frac
        # Of two choices at one place the one that is no slower, no heavier and no less accurate makes the other idle.
        burden = [joint.macs, self._lost] if np.isfinite(joint.sum_wanted) else [joint.macs]
        self._lighter = joint.place[:, None] == joint.place
        for each in burden:
            self._lighter &= each[:, None] <= each

    def plan(self, value: Value, alone: F64 | None, mask: Bools, starts: Ints, depth: int = DEPTH_TWO) -> Ints:
        """Search.

        Args:
            value: the model.
            alone: (N, C) what each choice costs where nobody else is: only to have good places to begin at
                and to leave out what cannot be good. None where the model cannot say.
            mask: (N, C) of what may be chosen.
            starts: (S, N) known joint actions, S >= 0; those that may not be taken now are left out.
            depth: DEPTH_NONE, DEPTH_SPREAD, DEPTH_ONE or DEPTH_TWO.

        Returns:
            (K, N) good joint actions, K >= 1, the best first. All hold mask and floor.

        Raises:
            nothing.
        Source:
            ours: with the users' places fixed, choosing variants is nearly separable; local search mends the rest.
            Its distance to an exhaustive search is tested.
        """
        useful = mask if alone is None else self._useful(alone, mask)
        actions = self._good(starts, mask)
        if depth >= DEPTH_SPREAD and alone is not None and len(self._spreads):
            spread = self._spread(alone, mask)
            actions = np.concatenate([actions, spread[self.joint.holds(spread)]])
        if not len(actions):
            actions = self.joint.safest(mask)[None]
        cost = value(actions)
        order = np.argsort(cost, kind="stable")[:BEAM]
        best, costs = actions[order], cost[order]
        if depth >= DEPTH_ONE:
            best, costs = self._descend(value, useful, best, costs)
        if depth >= DEPTH_TWO and self.joint.users > 1:
            while True:
                pairs = self._good(self._pairs(best[0], useful), mask)
                if not len(pairs):
                    break
                cost = value(pairs)
                lowest = int(cost.argmin())
                if cost[lowest] >= costs[0] - LEAST_GAIN * abs(costs[0]):
                    break
                top, top_cost = self._descend(value, useful, pairs[lowest][None], cost[lowest][None])
                best, costs = np.concatenate([top, best]), np.concatenate([top_cost, costs])
        return best

    def _good(self, actions: Ints, mask: Bools) -> Ints:
        fine = mask[np.arange(self.joint.users), actions].all(axis=1) & self.joint.holds(actions)
        return np.asarray(actions[fine])

    def _useful(self, alone: F64, mask: Bools) -> Bools:
        """(N, C) choices that no other one of the same place beats in everything."""
        cost = np.where(mask, alone, np.inf)
        beaten = self._lighter & (cost[:, :, None] < cost[:, None, :])
        return np.asarray(mask & ~beaten.any(axis=1))

    def _spread(self, alone: F64, mask: Bools) -> Ints:
        """Each way to spread the users, each with the variants that are best at several prices of accuracy."""
        prices = PRICES[:1]
        if np.isfinite(self.joint.sum_wanted) and self._lost.any():
            costs = alone[mask]
            prices = PRICES * (costs.max() - costs.min()) / self._lost[self._lost > 0].min()
        priced = np.where(mask, alone, np.inf) + prices[:, None, None] * self._lost
        at = [np.where(here, priced, np.inf) for here in self._at]
        choice = np.stack([each.argmin(axis=2) for each in at])  # (places, prices, N)
        possible = np.stack([np.isfinite(each.min(axis=2)).all(axis=0) for each in at])  # (places, N)
        user = np.arange(self.joint.users)
        spreads = self._spreads[possible[self._spreads, user].all(axis=1)]
        return np.asarray(choice[spreads, :, user].transpose(0, 2, 1).reshape(-1, self.joint.users))

    def _descend(self, value: Value, mask: Bools, best: Ints, costs: F64) -> tuple[Ints, F64]:
        """Move one user at a time, from several places at once, as long as it helps."""
        who, what = np.nonzero(mask)
        moves = len(who)
        row = np.arange(moves)
        moving = np.arange(len(best))
        while len(moving):
            near = np.repeat(best[moving][:, None], moves, axis=1)
            near[:, row, who] = what
            flat = near.reshape(-1, self.joint.users)
            fine = self.joint.holds(flat)
            cost = np.where(fine, value(flat), np.inf).reshape(len(moving), moves)
            lowest = cost.argmin(axis=1)
            each = np.arange(len(moving))
            better = cost[each, lowest] < costs[moving] - LEAST_GAIN * np.abs(costs[moving])
            best[moving[better]] = near[each, lowest][better]
            costs[moving[better]] = cost[each, lowest][better]
            moving = moving[better]
        order = np.argsort(costs, kind="stable")
        return best[order], costs[order]

    def _pairs(self, action: Ints, mask: Bools) -> Ints:
        """All joint actions that differ for two users."""
        found = []
        for first in range(self.joint.users):
            for second in range(first):
                a, b = np.flatnonzero(mask[first]), np.flatnonzero(mask[second])
                near = np.repeat(action[None], len(a) * len(b), axis=0)
                near[:, first], near[:, second] = np.repeat(a, len(b)), np.tile(b, len(a))
                found.append(near)
        return np.concatenate(found)
