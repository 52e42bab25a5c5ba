"""A space as arrays: what joint actions there are, which hold the floor, and who shares a node with whom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.offload.space import PLACES, ROUNDING, Action, Allowed, Floor, Goal, Outcome, Space, State, cost, reachable

F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
MOST = 1 << 18
"""Joint actions that are listed one by one at most; 24 choices of five users are 8 million."""
HALVINGS = 16


class Tables(NamedTuple):
    """A model in one state, ready for many joint actions.

    Attributes:
        alone: (N, C) expected seconds where nobody else is.
        each, square, load: (C,) what others at the same place add: by their number, its square, and their macs.
        least: no expectation is below.
    """

    alone: F64
    each: F64
    square: F64
    load: F64
    least: float


class Joint:
    """A space and a floor as arrays.

    Attributes:
        space, floor: as given.
        users, choices: how many of them.
        place: (C,) index in PLACES of each choice.
        macs: (C,) of each choice's variant, the largest is 1.
        small: (C,) 1 where it is int8.
        variant: (C,) index of the variant.
        accuracy_frac: (C,) of each choice.
    """

    def __init__(self, space: Space, floor: Floor) -> None:
        """Lay the arrays out.

        Args:
            space: to choose from.
            floor: to hold.

        Raises:
            nothing.
        """
        self.space, self.floor = space, floor
        self.users, self.choices = space.users, len(space.choices)
        variants = [space.variants[choice.variant] for choice in space.choices]
        self.place = np.array([PLACES.index(choice.place) for choice in space.choices])
        self.variant = np.array([choice.variant for choice in space.choices])
        self.macs = np.array([each.macs for each in variants], np.float64) / max(1, *(v.macs for v in space.variants))
        self.small = np.array([each.precision == "int8" for each in variants], np.float64)
        self.accuracy_frac = np.array([each.accuracy_frac for each in variants])
        self._user = np.arange(self.users)
        self._ones = np.ones(self.users)  # a product with it sums short rows faster than a sum does
        self._remote = [
            (here, here * self.macs) for here in (np.where(self.place == place, 1.0, 0.0) for place in (1, 2))
        ]
        self.sum_wanted = reachable(space, floor) * space.users - ROUNDING if floor.per == "average" else -np.inf
        self._mask: tuple[Allowed | None, Bools] = (None, np.ones((self.users, self.choices), np.bool_))
        self._listed: tuple[Allowed | None, Ints] = (None, np.empty((0, self.users), np.intp))

    def mask(self, allowed: Allowed) -> Bools:
        """See what may be chosen.

        Args:
            allowed: of `space.allowed`.

        Returns:
            (N, C), at least one choice a user.

        Raises:
            UsageError: of another shape, or a user without a choice.
        Source:
            ours: the last mask is kept, since it seldom changes.
        """
        if self._mask[0] is not allowed and self._mask[0] != allowed:
            found = np.array(allowed, np.bool_)
            if found.shape != (self.users, self.choices) or not found.any(axis=1).all():
                raise UsageError(
                    f"a mask of {self.users} users and {self.choices} choices, one each at least, is wanted"
                )
            self._mask = (allowed, found)
        return self._mask[1]

    def holds(self, actions: Ints) -> Bools:
        """Do joint actions hold a floor on average?

        Args:
            actions: (M, N) choices.

        Returns:
            (M,); all True where the floor is one per user, since masks hold that.

        Raises:
            nothing.
        Source:
            see `space.meets`.
        """
        if not np.isfinite(self.sum_wanted):
            return np.ones(len(actions), np.bool_)
        return np.asarray(self.accuracy_frac[actions] @ self._ones >= self.sum_wanted)

    def every(self, allowed: Allowed) -> Ints:
        """List all joint actions that may be taken.

        Args:
            allowed: of `space.allowed`.

        Returns:
            (M, N) in lexical order. Where masks and an average floor leave none: the most accurate one.

        Raises:
            UsageError: there are more than MOST.
        Source:
            the definition.
        """
        mask = self.mask(allowed)
        if self._listed[0] is not allowed and self._listed[0] != allowed:
            rows = [np.flatnonzero(row) for row in mask]
            if np.prod([float(len(row)) for row in rows]) > MOST:
                raise UsageError(f"more than {MOST} joint actions cannot be listed")
            actions = np.stack([axis.ravel() for axis in np.meshgrid(*rows, indexing="ij")], axis=1)
            held = actions[self.holds(actions)]
            self._listed = (allowed, held if len(held) else self.safest(mask)[None])
        return self._listed[1]

    def safest(self, mask: Bools) -> Ints:
        """Choose for accuracy alone.

        Args:
            mask: (N, C).

        Returns:
            (N,) the most accurate choice of each user; of equals the one at home.

        Raises:
            nothing.
        Source:
            ours: what to do while nothing else is known to hold the floor.
        """
        worth = np.where(mask, self.accuracy_frac - 1e-6 * self.place, -np.inf)
        return np.asarray(worth.argmax(axis=1))

    def sharing(self, actions: Ints) -> tuple[F64, F64]:
        """Who is at the same remote node, besides oneself?

        Args:
            actions: (M, N) joint actions.

        Returns:
            (M, N) how many others, and (M, N) the sum of their macs; 0 for who stays at home.

        Raises:
            nothing.
        Source:
            the definition.
        """
        others, load = np.zeros(actions.shape), np.zeros(actions.shape)
        for there, work in self._remote:
            here, mine = there[actions], work[actions]
            others += here * (here @ self._ones - 1.0)[:, None]
            load += here * (mine @ self._ones)[:, None] - mine
        return others, load

    def expect(self, tables: Tables, actions: Ints) -> F64:
        """How long will everybody wait?

        Args:
            tables: of a model in one state.
            actions: (M, N) joint actions.

        Returns:
            (M, N) seconds.

        Raises:
            nothing.
        Source:
            ours: a sum of squares, products and counts; no queue.
        """
        found = tables.alone[self._user, actions]
        if self.users > 1:
            others, load = self.sharing(actions)
            found += others * (tables.each[actions] + tables.square[actions] * others) + load * tables.load[actions]
        return np.maximum(found, tables.least, out=found)

    def cheapest(self, scores: F64, mask: Bools) -> Ints:
        """The lowest sum of scores that holds mask and floor.

        Args:
            scores: (N, C) of each user's choices, whatever the others do.
            mask: (N, C) of what may be chosen.

        Returns:
            (N,) choices. At an average floor accuracy is bought at one price for all, the lowest that suffices.

        Raises:
            nothing.
        Source:
            Lagrangian relaxation of the multiple-choice knapsack (Sinha & Zoltners 1979), without its last exchange.
        """
        fine = np.where(mask, scores, np.inf)
        action = np.asarray(fine.argmin(axis=1))
        if self.holds(action[None])[0]:
            return action
        lost = self.accuracy_frac.max() - self.accuracy_frac
        low, high = 0.0, float(np.ptp(scores[mask]) / lost[lost > 0].min())
        found = self.safest(mask)
        for _ in range(HALVINGS):
            price = (low + high) / 2
            action = np.asarray((fine + price * lost).argmin(axis=1))
            if self.holds(action[None])[0]:
                found, high = action, price
            else:
                low = price
        return found

    def draw(self, allowed: Allowed, rng: np.random.Generator, tries: int = 16) -> Ints:
        """Choose by chance among what holds the floor.

        Args:
            allowed: of `space.allowed`.
            rng: chance.
            tries: at an average floor, before accuracy is bought user by user.

        Returns:
            (N,) choices.

        Raises:
            UsageError: as `mask`.
        Source:
            ours: rejection first, since it is uniform; then users drawn by chance go to one of their most
            accurate choices.
        """
        mask = self.mask(allowed)
        action = np.empty(self.users, np.intp)
        for _ in range(tries):
            noise = rng.random(mask.shape)
            action = np.asarray(np.where(mask, noise, -1.0).argmax(axis=1))
            if self.holds(action[None])[0]:
                return action
        tied = rng.random(mask.shape) * ROUNDING
        best = np.where(mask, self.accuracy_frac + tied, -1.0).argmax(axis=1)
        for user in rng.permutation(self.users):
            action[user] = best[user]
            if self.holds(action[None])[0]:
                break
        return action


def all_places(users: int) -> Ints:
    """All ways to spread users over the places.

    Args:
        users: N.

    Returns:
        (3 ** N, N) indices in PLACES.

    Raises:
        nothing.
    Source:
        the definition.
    """
    return np.array(list(itertools.product(range(len(PLACES)), repeat=users)), np.intp)


def costs(outcomes: Sequence[Outcome], users: int, goal: Goal) -> F64:
    """What came of a joint action, as figures.

    Args:
        outcomes: one for each user.
        users: N.
        goal: what is to be made small.

    Returns:
        (N,) seconds or joules; nan where unknown.

    Raises:
        UsageError: another number of outcomes.
    Source:
        see `space.cost`.
    """
    if len(outcomes) != users:
        raise UsageError(f"{len(outcomes)} outcomes for {users} users")
    found = (cost(outcome, goal) for outcome in outcomes)
    return np.array([np.nan if each is None else each for each in found])


def checked(state: State, users: int) -> State:
    """Is it a state of so many users?

    Args:
        state: as reported.
        users: N.

    Returns:
        The same state.

    Raises:
        UsageError: it is not.
    Source:
        the definition.
    """
    if len(state.users) != users:
        raise UsageError(f"a state of {len(state.users)} users where there are {users}")
    return state


def as_action(choices: Ints) -> Action:
    """Leave the arrays.

    Args:
        choices: (N,).

    Returns:
        The same as plain whole numbers.

    Raises:
        nothing.
    Source:
        ours: an action is hashable and travels.
    """
    return tuple(int(each) for each in choices)
