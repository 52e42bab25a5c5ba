"""How long each user will wait for a joint action: learned from what was seen, and knowing how unsure it is.

A Bayesian linear model in features that say who runs what where and who is there besides, with priors that let users
and variants resemble one another until they are seen to differ. It knows nothing of queues, speeds or networks: those
are in the weights. After every joint action a Kalman filter takes N answers in at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgert.offload.change import Cusum
from edgert.offload.joint import F64, Bools, Ints, Joint, Tables
from edgert.offload.space import PLACES, Goal, Guess, State

RTT_UNIT_S = 0.020
NOISE_FRAC = 0.5
"""Scatter of single answers before any was seen, as a share of the expectation. Too much costs a few requests more; too
little makes the model sure of what it saw by chance, and that it does not get over."""
NOISE_ANSWERS = 8.0
"""Answers that this counts for."""
NOISE_RATE = 0.005
NOISE_PRIOR = 6.0
"""Answers that the general share counts for, beside the scatter that a choice of its own was seen to have."""
NOISE_LEAST_FRAC = 0.02
OUTLIER = 9.0
"""One answer says so much about the scatter at most, in squares of what was expected."""
LEAST = 0.02
"""No answer is expected sooner than this share of the first ones."""
WALK_EVERY = 32
DRIFT = 1e-6
"""Variance that places gain with every step, in squares of the scale: what is not visited grows uncertain. Ten times as
much forgets within some fifty answers, and those cannot tell apart what differs by a few percent."""
TRIPS_STD = 0.5
"""Of how many round trips an answer from elsewhere takes; one is expected."""
SHARED = 5
WIDE = 0.5
"""Standard deviation that a change gives back to what has changed, in units of the scale."""


class SystemModel:
    """The learned model.

    Attributes:
        joint: the space.
        scale: seconds (or joules) that the weights are in; of the first answers.
        mean: (D,) weights.
        root: (D, D) whose product with its own transpose is the covariance of the weights.
        noise_frac: scatter of single answers as a share of the expectation, over all choices.
        seen: (C,) answers of each choice, and
        squares: (C,) the sum of their squared scatter, in squares of the scale.
        cusum: of each user at each place, then of each place.
    """

    def __init__(self, joint: Joint, goal: Goal = "response") -> None:
        """Begin with the priors.

        Args:
            joint: the space.
            goal: what costs are; of a response time a round trip is known to be a part.

        Raises:
            nothing.
        """
        self.joint, self._goal = joint, goal
        self.scale: float | None = None
        self.noise_frac = NOISE_FRAC
        self.seen, self.squares = np.zeros(joint.choices), np.zeros(joint.choices)
        users, places = joint.users, len(PLACES)
        self.cusum = Cusum(users * places + places)
        variants = int(joint.variant.max()) + 1
        stds: list[float] = []

        def block(count: int, std: float) -> int:
            stds.extend([std] * count)
            return len(stds) - count

        at_place, at_macs = block(places, 0.7), block(places, 1.0)
        at_small, at_small_macs = block(places, 0.3), block(places, 0.5)
        at_variant = block(places * variants, 0.1)
        at_user = block(places * users, 0.4)
        at_user_macs, at_user_variant = block(users, 0.4), block(users * variants, 0.05)
        self._rtt, self._busy, self._busy_macs = block(places, 0.7), block(places, 0.7), block(places, 0.7)
        self._shared = block(places * SHARED, 0.4)
        self._user, self._place = at_user, at_place
        place, macs, size = joint.place, joint.macs, len(stds)
        fixed = np.zeros((users, joint.choices, size))
        user, choice = np.arange(users)[:, None], np.arange(joint.choices)[None, :]
        home = np.where(place == 0, 1.0, 0.0)
        fixed[user, choice, at_place + place] = 1.0
        fixed[user, choice, at_macs + place] = macs
        fixed[user, choice, at_small + place] = joint.small
        fixed[user, choice, at_small_macs + place] = joint.small * macs
        fixed[user, choice, at_variant + place * variants + joint.variant] = 1.0
        fixed[user, choice, at_user + user * places + place] = 1.0
        fixed[user, choice, at_user_macs + user] = home * macs
        fixed[user, choice, at_user_variant + user * variants + joint.variant] = home
        self._fixed = fixed
        self._flat = np.ascontiguousarray(fixed.reshape(-1, size))
        self.mean = np.zeros(size)
        self.mean[at_place : at_place + places], self.mean[at_macs : at_macs + places] = 0.3, 0.7
        self.root = np.diag(stds)
        self._prior = np.square(stds)
        self._steps = 0

    def features(self, state: State) -> F64:
        """What the model sees of each choice, others not counted.

        Args:
            state: now.

        Returns:
            (N, C, D).

        Raises:
            nothing.
        Source:
            ours: one-hot place, variant and user; macs and precision as hints; reported load and round trip.
        """
        found = self._fixed.copy()
        user, choice = np.arange(self.joint.users)[:, None], np.arange(self.joint.choices)[None, :]
        place, macs = self.joint.place, self.joint.macs
        rtt, busy = _now(state)
        found[user, choice, self._rtt + place] = rtt[:, place]
        found[user, choice, self._busy + place] = busy[:, place]
        found[user, choice, self._busy_macs + place] = busy[:, place] * macs
        return found

    def tables(self, state: State, weights: F64 | None = None) -> Tables:
        """Get ready for many joint actions in one state.

        Args:
            state: now.
            weights: (D,) to believe in; None is the mean.

        Returns:
            See `Tables`.

        Raises:
            nothing.
        Source:
            ours: everything but sharing is the same for all joint actions.
        """
        weights = self.mean if weights is None else weights
        scale = self.scale or 1.0
        shared = weights[self._shared :].reshape(len(PLACES), SHARED)
        place, macs = self.joint.place, self.joint.macs
        rtt, busy = _now(state)
        far = weights[self._rtt + place]
        load = weights[self._busy + place] + weights[self._busy_macs + place] * macs
        alone = (self._flat @ weights).reshape(self.joint.users, -1) + rtt[:, place] * far + busy[:, place] * load
        number, square, work, own_number, own_work = (shared * scale).T
        each, others = number[place] + own_number[place] * macs, work[place] + own_work[place] * macs
        return Tables(alone * scale, each, square[place], others, LEAST * scale)

    def sample(self, rng: np.random.Generator, breadth: int | float = 1.0) -> F64:
        """Draw weights that could be true.

        Args:
            rng: chance.
            breadth: 1 draws from the posterior, less is bolder.

        Returns:
            (D,).

        Raises:
            nothing.
        Source:
            Thompson 1933; Agrawal & Goyal 2013 (linear contextual bandits).
        """
        return np.asarray(self.mean + breadth * (self.root @ rng.standard_normal(len(self.mean))))

    def std(self, state: State, actions: Ints | None = None) -> F64:
        """How unsure are the expectations?

        Args:
            state: now.
            actions: (N,) a joint action; None asks for every choice of every user, others not counted.

        Returns:
            (N,) or (N, C) seconds.

        Raises:
            nothing.
        Source:
            the posterior predictive of Bayesian linear regression without the noise (Bishop 2006, 3.59).
        """
        rows = self.features(state) if actions is None else self._rows(state, actions)
        return np.asarray(np.sqrt(np.square(rows @ self.root).sum(axis=-1)) * (self.scale or 1.0))

    def spread(self, state: State, actions: Ints) -> F64:
        """How sums over users may be off together.

        Args:
            state: now.
            actions: (M, N) joint actions.

        Returns:
            (M, D) whose inner products are the covariances of the M sums, in squares of seconds.

        Raises:
            nothing.
        Source:
            as `std`.
        """
        sums = np.stack([self._rows(state, action).sum(axis=0) for action in actions])
        return np.asarray(sums @ self.root * (self.scale or 1.0))

    def guess(self, state: State) -> tuple[tuple[Guess, ...], ...]:
        """Say what is expected of each choice of each user, others not counted.

        Args:
            state: now.

        Returns:
            (users, choices).

        Raises:
            nothing.
        Source:
            the mean and `std`.
        """
        tables = self.tables(state)
        mean, std = np.maximum(tables.alone, tables.least), self.std(state)
        return tuple(tuple(map(Guess, *rows)) for rows in zip(mean.tolist(), std.tolist(), strict=True))

    def scatter(self, actions: Ints, expected: F64) -> F64:
        """How much do single answers scatter?

        Args:
            actions: (M, N) joint actions.
            expected: (M, N) seconds, of `Joint.expect`.

        Returns:
            (M, N) variances of single answers, in squares of seconds.

        Raises:
            nothing.
        Source:
            ours: a share of the expectation until a choice has shown a scatter of its own.
        """
        scale = self.scale or 1.0
        general = np.square(self.noise_frac * expected)
        return np.asarray(
            (NOISE_PRIOR * general + self.squares[actions] * scale**2) / (NOISE_PRIOR + self.seen[actions])
        )

    def update(self, state: State, action: Ints, cost: F64) -> Bools:
        """Take in what came of a joint action.

        Args:
            state: in which it was chosen.
            action: (N,).
            cost: (N,) seconds or joules; nan is unknown and teaches nothing.

        Returns:
            (N * 3 + 3,) alarms: which user at which place has changed, then which place for everybody.

        Raises:
            nothing.
        Source:
            Kalman 1960 in Potter's square-root form (Bierman 1977, II.3), one answer after the other, with a random
            walk; scatter in proportion to the expectation; priors are given back to what
            has changed (ours: as much as a link or a neighbour can move it).
        """
        known = ~np.isnan(cost)
        z = np.full(len(self.cusum.up), np.nan)
        if not known.any() or (self.scale is None and not cost[known].any()):
            return self.cusum.feed(z)  # before anything costs something there is nothing to take shares of
        if self.scale is None:
            self._begin(float(cost[known].mean()))
        users, places = self.joint.users, len(PLACES)
        self._steps += 1
        if self._steps % WALK_EVERY == 0:
            walk = np.zeros(len(self.mean))
            walk[self._place : self._place + places] = DRIFT * WALK_EVERY
            walk[self._user : self._user + users * places] = DRIFT * WALK_EVERY
            self._add(walk)
        place = self.joint.place[action]
        rows = self._rows(state, action)
        left = []
        for user in np.flatnonzero(known):
            row, y = rows[user], cost[user] / self.scale
            expected = float(row @ self.mean)
            choice = action[user]
            general = (self.noise_frac * max(expected, y, LEAST)) ** 2  # a low guess must not pass for a sure one
            noise = (NOISE_PRIOR * general + self.squares[choice]) / (NOISE_PRIOR + self.seen[choice])
            seen = row @ self.root
            unsure = float(seen @ seen)
            residual = y - expected
            gain = (self.root @ seen) / (unsure + noise)
            self.mean += gain * residual
            self.root -= np.outer(gain / (1.0 + np.sqrt(noise / (unsure + noise))), seen)
            z[user * places + place[user]] = residual / np.sqrt(unsure + noise)
            share = min(residual**2 / (unsure + noise), OUTLIER)
            self.seen[choice] += 1.0
            self.squares[choice] += share * noise
            left.append(share * noise / general)
        for each in np.unique(place[known]):
            mine = z[np.flatnonzero(known & (place == each)) * places + each]
            z[users * places + each] = mine.sum() / np.sqrt(len(mine))
        rate = max(len(left) / (NOISE_ANSWERS + self.seen.sum()), NOISE_RATE)
        moved = self.noise_frac**2 * (1 + rate * (float(np.mean(left)) - 1))
        self.noise_frac = float(np.sqrt(max(moved, NOISE_LEAST_FRAC**2)))
        alarms = self.cusum.feed(z)
        self._widen(alarms)
        return alarms

    def likelihood(self, state: State, action: Ints, cost: F64) -> float:
        """How well does what came of a joint action fit a state?

        Args:
            state: in which it may have been.
            action: (N,).
            cost: (N,) seconds or joules; nan is unknown.

        Returns:
            The logarithm of the likelihood, but for a constant; 0 before anything was learned.

        Raises:
            nothing.
        Source:
            the posterior predictive of Bayesian linear regression (Bishop 2006, 3.58).
        """
        if self.scale is None:
            return 0.0
        rows = self._rows(state, action)
        expected = np.maximum(rows @ self.mean, LEAST) * self.scale
        unsure = np.square(rows @ self.root).sum(axis=1) * self.scale**2
        variance = unsure + self.scatter(action[None], expected[None])[0]
        return float(-0.5 * np.nansum(np.square(cost - expected) / variance + np.log(variance)))

    def known(self) -> dict[str, Any]:
        """Give away what was learned.

        Returns:
            For `saved.pack`, or for `recall`, once; arrays are copies.

        Raises:
            nothing.
        Source:
            ours.
        """
        arrays = {"seen": self.seen, "squares": self.squares, "mean": self.mean, "root": self.root}
        arrays |= {"up": self.cusum.up, "down": self.cusum.down}
        known = {name: array.copy() for name, array in arrays.items()}
        return {**known, "scale": self.scale, "noise_frac": self.noise_frac, "steps": self._steps}

    def recall(self, known: dict[str, Any]) -> None:
        """Take back what `known` gave.

        Args:
            known: of a model over the same space.

        Returns:
            Nothing.

        Raises:
            nothing.
        Source:
            ours.
        """
        self.scale, self.noise_frac = known["scale"], known["noise_frac"]
        self.seen, self.squares = known["seen"], known["squares"]
        self.mean, self.root, self._steps = known["mean"], known["root"], known["steps"]
        self.cusum.up, self.cusum.down = known["up"], known["down"]

    def _begin(self, scale: int | float) -> None:
        """The first answers say what the weights are shares of."""
        self.scale = scale
        if self._goal == "response":
            trip = np.arange(self._rtt, self._rtt + len(PLACES))
            self.mean[trip] = RTT_UNIT_S / scale
            self.root[trip, trip] = TRIPS_STD * RTT_UNIT_S / scale

    def _rows(self, state: State, action: Ints) -> F64:
        user, place, macs = np.arange(self.joint.users), self.joint.place[action], self.joint.macs[action]
        rows = self._fixed[user, action]
        rtt, busy = _now(state)
        rows[user, self._rtt + place] = rtt[user, place]
        rows[user, self._busy + place] = busy[user, place]
        rows[user, self._busy_macs + place] = busy[user, place] * macs
        if self.joint.users > 1:
            others, load = (each[0] for each in self.joint.sharing(action[None]))
            for index, column in enumerate((others, others * others, load, others * macs, load * macs)):
                rows[user, self._shared + place * SHARED + index] = column
        return rows

    def _widen(self, alarms: Bools) -> None:
        if not alarms.any():
            return
        users, places = self.joint.users, len(PLACES)
        changed = np.zeros(len(self.mean), np.bool_)
        changed[self._user : self._user + users * places] = alarms[: users * places]
        changed[self._place : self._place + places] = alarms[users * places :]
        for place in np.flatnonzero(alarms[users * places :]):
            changed[self._place + places + place] = True  # what a MAC costs there
        self._add(np.where(changed, np.minimum(self._prior, WIDE**2), 0.0))
        self.noise_frac = max(self.noise_frac, NOISE_FRAC / 4)

    def _add(self, variance: F64) -> None:
        """Make weights less sure."""
        size = len(variance)
        self.root = np.linalg.cholesky(self.root @ self.root.T + np.diag(variance) + 1e-12 * np.eye(size))


def _now(state: State) -> tuple[F64, F64]:
    """(N, places) round trips in units, and (N, places) busy shares; unknown is what a quiet machine says."""
    remote = [state.edge.cpu_frac or 0.0, state.cloud.cpu_frac or 0.0]
    beyond = (state.cloud.rtt_s or 0.0) / RTT_UNIT_S
    near = [(load.rtt_s or 0.0) / RTT_UNIT_S for load in state.users]
    rtt = np.array([[0.0, each, each + beyond] for each in near])
    return rtt, np.array([[load.cpu_frac or 0.0, *remote] for load in state.users])
