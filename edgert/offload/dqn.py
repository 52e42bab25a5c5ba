"""Networks in place of tables: one that judges whole joint actions, and one with a branch for each user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import kernels
from edgert.offload.joint import Ints, Joint, as_action, checked, costs
from edgert.offload.planner import DEPTH_ONE, Planner
from edgert.offload.saved import pack, unpack
from edgert.offload.space import Action, Allowed, Floor, Goal, Outcome, Space, State, levels

F32 = npt.NDArray[np.float32]
Head = Literal["joint", "branches"]
LEVEL_BITS = 3
OWED_MOST = 16
"""Joint actions whose updates one choice makes at most: who was only told of many must not decide late for it."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """How a network learns.

    Attributes:
        hidden: units of each of two layers.
        learning_rate: of Adam.
        batch: rows of one update.
        updates: made for every joint action that was seen.
        replay: joint actions that are remembered.
        explore, decay, explore_least: see `tabular.Rates`.
        starts: joint actions, drawn by chance, from which the lowest value is sought besides the last one.
    """

    hidden: int = 64
    learning_rate: float = 1e-3
    batch: int = 32
    updates: int = 1
    replay: int = 10_000
    explore: float = 1.0
    decay: float = 5e-3
    explore_least: float = 0.05
    starts: int = 4


DEFAULT = Training()


class Network:
    """Two hidden layers with ReLU, trained by Adam on squared errors of chosen outputs.

    Attributes:
        params: all weights, flat.
        steps: updates made.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, rng: np.random.Generator) -> None:
        """Draw the weights.

        Args:
            inputs: sizes.
            hidden: sizes.
            outputs: sizes.
            rng: chance.

        Raises:
            nothing.
        """
        self._shapes = [(inputs, hidden), (hidden,), (hidden, hidden), (hidden,), (hidden, outputs), (outputs,)]
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        self.params = np.zeros(sum(sizes), np.float32)
        self._grads, self._m, self._v = (np.zeros_like(self.params) for _ in range(3))
        self._layers, self._slopes = self._cut(self.params), self._cut(self._grads)
        self.steps = 0
        for layer in self._layers[:4:2]:
            layer[:] = rng.standard_normal(layer.shape) * np.sqrt(2.0 / layer.shape[0])

    def value(self, x: F32) -> F32:
        """Evaluate.

        Args:
            x: (B, inputs).

        Returns:
            (B, outputs).

        Raises:
            nothing.
        Source:
            the definition.
        """
        w1, b1, w2, b2, w3, b3 = self._layers
        first = np.maximum(x @ w1 + b1, 0.0)
        return np.asarray(np.maximum(first @ w2 + b2, 0.0) @ w3 + b3)

    def train(self, x: F32, target: F32, chosen: F32, learning_rate: float) -> None:
        """Make one step.

        Args:
            x: (B, inputs).
            target: (B, outputs).
            chosen: (B, outputs) 1 where the target counts.
            learning_rate: of Adam.

        Returns:
            Nothing.

        Raises:
            nothing.
        Source:
            Rumelhart et al. 1986; Kingma & Ba 2015.
        """
        w1, b1, w2, b2, w3, b3 = self._layers
        first = np.maximum(x @ w1 + b1, 0.0)
        second = np.maximum(first @ w2 + b2, 0.0)
        error = (second @ w3 + b3 - target) * chosen / len(x)
        back = (error @ w3.T) * (second > 0)
        under = (back @ w2.T) * (first > 0)
        for slope, value in zip(
            self._slopes,
            (x.T @ under, under.sum(0), first.T @ back, back.sum(0), second.T @ error, error.sum(0)),
            strict=True,
        ):
            slope[:] = value
        self.steps += 1
        kernels.adam(self.params, self._grads, self._m, self._v, step=self.steps, lr=learning_rate)

    def arrays(self) -> dict[str, F32]:
        """Everything that a resumed training needs.

        Returns:
            Weights and both moments; the arrays themselves.

        Raises:
            nothing.
        Source:
            ours.
        """
        return {"params": self.params, "m": self._m, "v": self._v}

    def _cut(self, flat: F32) -> list[F32]:
        parts, at = [], 0
        for shape in self._shapes:
            size = int(np.prod(shape))
            parts.append(flat[at : at + size].reshape(shape))
            at += size
        return parts


class DQN:
    """Deep Q-learning. The next state does not depend on the action, so the discount is 0 and there is no target net.

    Attributes:
        joint: space and floor.
        training: as given.
        head: "joint" judges whole joint actions, "branches" adds up one value for each user.
        network: the values, as shares of the first cost.
        steps: joint actions seen.
    """

    KIND = "dqn"

    def __init__(
        self,
        space: Space,
        floor: Floor,
        rng: np.random.Generator,
        goal: Goal = "response",
        head: Head = "joint",
        training: Training = DEFAULT,
    ) -> None:
        """Begin with drawn weights.

        Args:
            space: to choose from.
            floor: that every choice holds.
            rng: chance, for the weights.
            goal: what is made small.
            head: "joint" or "branches".
            training: of the network.

        Raises:
            nothing.
        """
        self.joint, self.goal, self.head, self.training = Joint(space, floor), goal, head, training
        self._bits = LEVEL_BITS * (self.joint.users + 2)
        one_hot = self.joint.users * self.joint.choices
        inputs, outputs = (self._bits + one_hot, 1) if head == "joint" else (self._bits + 1, one_hot)
        self.network = Network(inputs, training.hidden, outputs, rng)
        self.steps = 0
        self._scale = 0.0
        self._owed = 0
        self._planner = Planner(self.joint)
        self._last = self.joint.safest(np.ones((self.joint.users, self.joint.choices), np.bool_))
        self._seen = np.zeros((training.replay, self._bits), np.float32)
        self._taken = np.zeros((training.replay, self.joint.users), np.int32)
        self._cost = np.zeros((training.replay, self.joint.users), np.float32)
        self._filled = 0

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Learn from what is remembered, then explore by chance or take the lowest value; see `Learner.choose`.

        Source:
            Mnih et al. 2015; branches after Tavakoli et al. 2018 and Sunehag et al. 2018 (sums of values).
        """
        self._train(rng)
        rates = self.training
        if rng.random() < max(rates.explore * (1 - rates.decay) ** self.steps, rates.explore_least):
            return as_action(self.joint.draw(allowed, rng))
        starts = [self.joint.draw(allowed, rng) for _ in range(rates.starts if self.head == "joint" else 0)]
        self._last = self._lowest(state, allowed, starts)
        return as_action(self._last)

    def best(self, state: State, allowed: Allowed) -> Action:
        """The lowest value, sought from the last one; see `Learner.best`.

        Source:
            ours: coordinate descent stands for the argmin over all joint actions.
        """
        return as_action(self._lowest(state, allowed, []))

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Remember; what is owed is learned at the next choice, where chance is at hand; see `Learner.observe`.

        Source:
            Lin 1992, experience replay.
        """
        cost = costs(outcomes, self.joint.users, self.goal)
        seen = self._state(state)
        self.steps += 1
        if np.isnan(cost).any():
            return
        self._scale = self._scale or float(cost.mean())  # nothing is nothing in any unit
        at = self._filled % self.training.replay
        self._seen[at], self._taken[at], self._cost[at] = seen, action, cost / (self._scale or 1.0)
        self._filled += 1
        self._owed = min(self._owed + self.training.updates, OWED_MOST * self.training.updates)

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
        full = min(self._filled, self.training.replay)
        known = {
            "network": self.network.arrays(),
            "updates": self.network.steps,
            "scale": self._scale,
            "last": self._last,
            "seen": self._seen[:full],
            "taken": self._taken[:full],
            "cost": self._cost[:full],
            "filled": self._filled,
            "owed": self._owed,
            "steps": self.steps,
        }
        return pack(self._kind(), self.joint.space, self.joint.floor, known)

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped; see `Learner.restore`.

        Source:
            ours.
        """
        known = unpack(self._kind(), self.joint.space, self.joint.floor, data)
        for name, array in self.network.arrays().items():
            array[:] = known["network"][name]
        self.network.steps, self._scale, self._last = known["updates"], known["scale"], known["last"]
        full = len(known["seen"])
        self._seen[:full], self._taken[:full] = known["seen"], known["taken"]
        self._cost[:full] = known["cost"]
        self._filled, self._owed, self.steps = known["filled"], known["owed"], known["steps"]

    def _kind(self) -> str:
        return f"{self.KIND} {self.head} {self.goal} {self.training.hidden} {self.training.replay}"

    def _state(self, state: State) -> F32:
        found = levels(checked(state, self.joint.users))
        return np.array([level >> bit & 1 for level in found for bit in range(LEVEL_BITS)], np.float32)

    def _rows(self, seen: F32, actions: Ints) -> F32:
        """(M, inputs) of joint actions, or of states alone where there are branches."""
        if self.head == "branches":
            return np.concatenate([seen, np.ones((len(seen), 1), np.float32)], axis=1)
        rows = np.zeros((len(actions), self._bits + self.joint.users * self.joint.choices), np.float32)
        rows[:, : self._bits] = seen
        column = self._bits + np.arange(self.joint.users) * self.joint.choices + actions
        rows[np.arange(len(actions))[:, None], column] = 1.0
        return rows

    def _lowest(self, state: State, allowed: Allowed, starts: list[Ints]) -> Ints:
        mask, seen = self.joint.mask(allowed), self._state(state)[None]
        if self.head == "branches":
            scores = self.network.value(self._rows(seen, self._last[None]))[0].reshape(mask.shape)
            return self.joint.cheapest(np.asarray(scores, np.float64), mask)
        begin = np.stack([self._last, self.joint.safest(mask), *starts])
        found = self._planner.plan(
            lambda actions: np.asarray(self.network.value(self._rows(seen, actions))[:, 0], np.float64),
            None,
            mask,
            begin,
            DEPTH_ONE,
        )
        return np.asarray(found[0])

    def _train(self, rng: np.random.Generator) -> None:
        full = min(self._filled, self.training.replay)
        while self._owed and full:
            self._owed -= 1
            pick = rng.integers(full, size=self.training.batch)
            taken, cost = self._taken[pick], self._cost[pick]
            rows = self._rows(self._seen[pick], taken.astype(np.intp))
            if self.head == "joint":
                target, chosen = cost.mean(axis=1, keepdims=True), np.ones((len(pick), 1), np.float32)
            else:
                target = np.zeros((len(pick), self.joint.users * self.joint.choices), np.float32)
                chosen = np.zeros_like(target)
                column = np.arange(self.joint.users) * self.joint.choices + taken
                target[np.arange(len(pick))[:, None], column] = cost
                chosen[np.arange(len(pick))[:, None], column] = 1.0
            self.network.train(rows, target, chosen, self.training.learning_rate)
