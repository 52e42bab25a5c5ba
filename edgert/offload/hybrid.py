"""Hybrid Learning: a table of what joint actions really cost, a learned system model for all others, and planning.

The model says what to expect of a joint action that nobody has tried; a table of averages says what those that were
tried really cost. Both are weighed by how sure they are. A decision draws one model that could be true and plans on it;
what is found there is tried where it may teach more than it costs, and else what is known to be best is done. When
residuals say that something changed, what is affected becomes unsure again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgert.offload.joint import F64, Ints, Joint, Tables, as_action, checked, costs
from edgert.offload.knowledge_gradient import net_gain
from edgert.offload.planner import BEAM, DEPTH_NONE, DEPTH_ONE, DEPTH_TWO, Planner
from edgert.offload.saved import pack, unpack
from edgert.offload.space import Action, Allowed, Floor, Goal, Guess, Outcome, Space, State, levels
from edgert.offload.system_model import SystemModel

KIND = "hybrid"
MODEL_FRAC = 0.015
"""How far the model may be off for one joint action, as a share: its features are not the world's."""
HORIZON = 75
"""Joint actions for which what is learned is taken to be of use. More learns more surely, and costs more."""
ELITES = 12
"""Joint actions of one state that are remembered as good."""
MOST_STATES = 64
MOST_COUNT = 200
"""Averages over more joint actions than this begin to forget."""
LATE, SURE = 8, 3.0
"""Answers for which a report of a new state may be late, and the logarithm of how much likelier that must make them."""
_SHORTEST_S = 0.001


class _Seen(NamedTuple):
    """What came of a joint action, and what the model knew before."""

    state: State
    action: Action
    cost: F64
    model: dict[str, Any]


class Hybrid:
    """The learner to deploy.

    Attributes:
        joint: space and floor.
        goal: what is made small.
        model: the system model.
        horizon: joint actions for which what is learned is taken to be of use.
        depth: how deep is planned at most; a caller with little CPU left lowers it between two decisions.
        steps: joint actions seen.
        changes: alarms so far.
    """

    def __init__(
        self, space: Space, floor: Floor, goal: Goal = "response", depth: int = DEPTH_TWO, horizon: int = HORIZON
    ) -> None:
        """Begin knowing nothing.

        Args:
            space: to choose from.
            floor: that every choice holds.
            goal: what is made small.
            depth: see `planner`.
            horizon: joint actions for which what is learned is taken to be of use.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.depth, self.horizon = Joint(space, floor), goal, depth, horizon
        self.model = SystemModel(self.joint, goal)
        self.steps = self.changes = 0
        self._known: Action | None = None  # the best that was found by what is expected
        self._turned_down = False  # what was drawn last
        self._ones = np.ones(space.users)
        self._planner = Planner(self.joint)
        self._table: dict[tuple[int, ...], dict[Action, list[float]]] = {}
        self._late: deque[_Seen] = deque(maxlen=LATE)

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Try what is best by a model that could be true, if it may teach enough; see `Learner.choose`.

        Source:
            Thompson sampling (Agrawal & Goyal 2013) proposes, with a planner in place of an argmax: arXiv 2202.11098's
            model-based half, our reading. The knowledge gradient disposes, since sampling alone never stops to try what
            is nearly as good. There is time for one plan a decision: after a draw that was turned down, what is
            expected is planned on.
        """
        if self.model.scale is None or self._turned_down:
            self._turned_down = False
            self._known = self.best(state, allowed)
            return self._known
        checked(state, self.joint.users)
        drawn = self._decide(state, allowed, self.model.sample(rng), min(self.depth, DEPTH_ONE), rng=rng)
        self._known = self._decide(state, allowed, self.model.mean, DEPTH_NONE, drawn)
        if drawn == self._known:
            return drawn
        tried = self._most_worth(state, drawn, self._known)
        self._turned_down = tried is None
        return tried or self._known

    def best(self, state: State, allowed: Allowed) -> Action:
        """Decide by what is expected; see `Learner.best`.

        Source:
            arXiv 2202.11098, our reading.
        """
        if self.model.scale is None:
            return as_action(self.joint.safest(self.joint.mask(allowed)))
        return self._decide(checked(state, self.joint.users), allowed, self.model.mean, self.depth)

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Teach the model and the table; see `Learner.observe`.

        Source:
            arXiv 2202.11098's model-free half, our reading; the table is a running mean since the task has no
            delayed rewards: it is a contextual bandit.
        """
        checked(state, self.joint.users)
        cost = costs(outcomes, self.joint.users, self.goal)
        if self._late and _key(state) != _key(self._late[-1].state):
            self._look_back(state)
        self._learn(state, action, cost)
        self.steps += 1

    def guess(self, state: State) -> tuple[tuple[Guess, ...], ...]:
        """What the system model expects; see `Learner.guess`.

        Source:
            see `SystemModel`.
        """
        return self.model.guess(checked(state, self.joint.users))

    def save(self) -> bytes:
        """Freeze everything but the answers that it could still look back at; see `Learner.save`.

        Source:
            ours.
        """
        seen = [
            [list(key), [[list(action), *entry] for action, entry in here.items()]] for key, here in self._table.items()
        ]
        known = {"model": self.model.known(), "seen": seen, "steps": self.steps, "changes": self.changes}
        known |= {"known": self._known, "turned_down": self._turned_down}
        return pack(f"{KIND} {self.goal}", self.joint.space, self.joint.floor, known)

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known: dict[str, Any] = unpack(f"{KIND} {self.goal}", self.joint.space, self.joint.floor, data)
        self.model.recall(known["model"])
        self.steps, self.changes, self._turned_down = known["steps"], known["changes"], known["turned_down"]
        self._known = None if known["known"] is None else tuple(known["known"])
        self._table.clear()
        self._late.clear()
        for key, here in known["seen"]:
            self._table[tuple(key)] = {tuple(action): [count, mean] for action, count, mean in here}

    def _learn(self, state: State, action: Action, cost: F64) -> None:
        self._late.append(_Seen(state, action, cost, self.model.known()))
        if self.model.update(state, np.array(action, np.intp), cost).any():
            self.changes += 1
            self._table.clear()
        if not np.isnan(cost).any():
            self._enter(_key(state), action, float(cost.sum()))

    def _look_back(self, state: State) -> None:
        """A new state was reported. It may have been so for some time: then the last answers are of it.

        What was learned of them in the former state is taken back, as it would stand against the truth for long.
        Source: maximum likelihood of the time of a change (Hinkley 1970), among the answers kept.
        """
        now = self.model.known()
        self.model.recall(self._late[0].model)
        gains = []
        for each in self._late:
            action = np.array(each.action, np.intp)
            fits = [self.model.likelihood(when, action, each.cost) for when in (state, each.state)]
            gains.append(fits[0] - fits[1])
        after = np.cumsum(gains[::-1])[::-1]  # of a change before each of them
        first = int(after.argmax())
        if after[first] < SURE:
            self.model.recall(now)
            return
        seen = list(self._late)
        self.model.recall(seen[first].model)
        while len(self._late) > first:
            each = self._late.pop()
            self._take_out(_key(each.state), each.action, float(each.cost.sum()))
        for each in seen[first:]:
            self._learn(state, each.action, each.cost)

    def _enter(self, key: tuple[int, ...], action: Action, cost: int | float) -> None:
        if key not in self._table and len(self._table) >= MOST_STATES:
            self._table.pop(next(iter(self._table)))
        here = self._table.setdefault(key, {})
        entry = here.setdefault(action, [0.0, 0.0])
        entry[0] = min(entry[0] + 1.0, MOST_COUNT)
        entry[1] += (cost - entry[1]) / entry[0]
        if len(here) > 2 * ELITES:
            kept = sorted(here.items(), key=lambda each: each[1][1])[:ELITES]
            self._table[key] = {**dict(kept), action: entry}

    def _take_out(self, key: tuple[int, ...], action: Action, cost: int | float) -> None:
        here = self._table.get(key, {})
        if action in here and not np.isnan(cost):
            entry = here[action]
            entry[0] -= 1.0
            if entry[0] <= 0:
                del here[action]
            else:
                entry[1] -= (cost - entry[1]) / entry[0]

    def _decide(
        self,
        state: State,
        allowed: Allowed,
        weights: F64,
        depth: int,
        *more: Action,
        rng: np.random.Generator | None = None,
    ) -> Action:
        """The best of what was tried, of `more`, and of what planning on `weights` finds."""
        mask, tables = self.joint.mask(allowed), self.model.tables(state, weights)
        here = self._table.get(_key(state), {})
        more = tuple(each for each in (self._known, *more) if each is not None and each not in here)
        starts = np.array([*here, *more], np.intp).reshape(-1, self.joint.users)
        entries = np.array([*here.values(), *([0.0, 0.0] for _ in more)]).reshape(-1, 2)
        fine = mask[np.arange(self.joint.users), starts].all(axis=1) & self.joint.holds(starts)
        starts, entries = starts[fine], entries[fine]
        good = self._planner.plan(
            lambda actions: np.asarray(self.joint.expect(tables, actions) @ self._ones),
            tables.alone,
            mask,
            starts,
            depth,
        )
        new = [action for action in good[:BEAM] if as_action(action) not in here]
        actions = np.concatenate([starts, np.array(new, np.intp).reshape(-1, self.joint.users)])
        entries = np.concatenate([entries, np.zeros((len(new), 2))])
        cost, doubt, _ = self._weigh(tables, actions, entries)
        if rng is not None:
            cost = cost + np.sqrt(doubt) * (entries[:, 0] > 0) * rng.standard_normal(len(actions))
        return as_action(actions[int(cost.argmin())])

    def _weigh(self, tables: Tables, actions: Ints, entries: F64) -> tuple[F64, F64, F64]:
        """Of each joint action the cost, what the model expects and what the table saw weighed by how sure each is.

        Then the variance that is left of how far the model is off, and the variance of a single joint action.
        """
        each = self.joint.expect(tables, actions)
        expected = each @ self._ones
        count, seen = entries.T
        doubt = np.square(MODEL_FRAC * expected)
        scatter = self.model.scatter(actions, each) @ self._ones
        share = count * doubt / (count * doubt + scatter)
        return expected + share * (seen - expected), doubt * (1 - share), scatter

    def _most_worth(self, state: State, drawn: Action, known: Action) -> Action | None:
        """Of what was drawn, whole or for one user alone, that which is most worth a try; None where nothing is.

        The more users, the more of a draw is worse by chance: a user's good idea must not fail by those of others.
        """
        single = [(*known[:user], choice, *known[user + 1 :]) for user, choice in enumerate(drawn)]
        actions = np.array(list(dict.fromkeys((known, drawn, *single))), np.intp)
        actions = actions[self.joint.holds(actions)]
        here = self._table.get(_key(state), {})
        entries = np.array([here.get(as_action(each), [0.0, 0.0]) for each in actions])
        cost, doubt, scatter = self._weigh(self.model.tables(state), actions, entries)
        rows = self.model.spread(state, actions)
        gains = [
            net_gain(
                excess=max(float(cost[at] - cost[0]), 0.0),
                covariance=float((rows[at] - rows[0]) @ rows[at] + doubt[at]),
                variance=float(rows[at] @ rows[at] + doubt[at]),
                scatter=float(scatter[at]),
                horizon=self.horizon,
            )
            for at in range(1, len(actions))
        ]
        best = int(np.argmax(gains))
        return as_action(actions[1 + best]) if gains[best] > 0 else None


def _key(state: State) -> tuple[int, ...]:
    """Under which the table keeps a state: its levels, and the octave of every round trip."""
    links = (load.rtt_s or 0.0 for load in (*state.users, state.cloud))
    return (*levels(state), *(round(math.log2(max(rtt_s, _SHORTEST_S) / _SHORTEST_S)) for rtt_s in links))
