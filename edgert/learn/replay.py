"""What the device lived through and what teachers said about it, ready to be sampled."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.learn.dqn import Batch
from edgert.nets import F32, U8

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HELD_OUT_EVERY = 10
"""One observation in ten is never trained on: transitions from it judge the networks that want to act. It is chosen by
content, since a game shows the same picture again and again."""


def is_held_out(obs: U8) -> bool:
    """Is this observation kept for judging?

    Args:
        obs: (H, W, C) uint8.

    Returns:
        The same for every observation of the same content.

    Raises:
        Nothing.
    Source:
        ours: CRC-32 as a fixed, even hash.
    """
    return zlib.crc32(obs.tobytes()) % HELD_OUT_EVERY == 0


class Probe(NamedTuple):
    """Held-out transitions, newest first.

    Attributes:
        batch: the transitions.
        seq: (n,) their sequence numbers.
    """

    batch: Batch
    seq: Ints


class Replay:
    """The newest `capacity` transitions by sequence number, with the teacher's Q-values where they are known.

    A transition can be trained on once its successor is here (or nothing follows), so what came after it is never
    guessed.
    Truncated ones are left out: their successor belongs to another episode.
    """

    def __init__(self, capacity: int, obs_shape: tuple[int, int, int], n_actions: int) -> None:
        """Allocate everything at once.

        Args:
            capacity: transitions held.
            obs_shape: (H, W, C) of one uint8 observation.
            n_actions: size of the action set.

        Raises:
            UsageError: capacity is too small to hold anything out.
        """
        if capacity < 2 * HELD_OUT_EVERY:
            raise UsageError(
                f"a replay of {capacity} transitions holds nothing out; take at least {2 * HELD_OUT_EVERY}"
            )
        self.capacity = capacity
        self.newest_seq = 0
        self._seq = np.zeros(capacity, np.int64)
        self._obs = np.zeros((capacity, *obs_shape), np.uint8)
        self._action = np.zeros(capacity, np.int32)
        self._reward = np.zeros(capacity, np.float32)
        self._terminated = np.zeros(capacity, bool)
        self._truncated = np.zeros(capacity, bool)
        self._teacher_q = np.zeros((capacity, n_actions), np.float32)
        self._taught = np.zeros(capacity, bool)
        self._held_out = np.zeros(capacity, bool)
        self._usable: tuple[Ints, Ints] | None = None

    def add(
        self, seq: Ints, obs: U8, action: npt.NDArray[np.integer], reward: F32, terminated: Bools, truncated: Bools
    ) -> None:
        """Take in transitions; each overwrites the one `capacity` before it, and that one's teaching.

        Args:
            seq: (n,) sequence numbers, from 1, ascending.
            obs: (n, H, W, C) uint8.
            action: (n,) integer.
            reward: (n,) float32.
            terminated: (n,) bool.
            truncated: (n,) bool.

        Raises:
            UsageError: lengths differ.
        Source:
            Mnih et al. 2015, experience replay.
        """
        if not len(seq) == len(obs) == len(action) == len(reward) == len(terminated) == len(truncated):
            raise UsageError("transitions with columns of different lengths")
        if not len(seq):
            return
        slot = seq % self.capacity
        self._seq[slot], self._obs[slot], self._action[slot], self._reward[slot] = seq, obs, action, reward
        self._terminated[slot], self._truncated[slot] = terminated, truncated
        self._taught[slot] = False
        self._held_out[slot] = [is_held_out(row) for row in obs]
        self.newest_seq = max(self.newest_seq, int(seq[-1]))
        self._usable = None

    def teach(self, seq: int, q: F32) -> bool:
        """Note what a teacher answered.

        Args:
            seq: of the transition asked about.
            q: (n_actions,) float32.

        Returns:
            False when the transition is gone, or the values are not finite.

        Raises:
            Nothing.
        Source:
            ours: an answer may come so late that its transition was overwritten, which is no fault of anybody.
        """
        slot = seq % self.capacity
        if seq <= 0 or self._seq[slot] != seq or q.shape != self._teacher_q.shape[1:] or not np.isfinite(q).all():
            return False
        self._teacher_q[slot], self._taught[slot] = q, True
        return True

    def taught(self) -> tuple[Ints, U8, F32]:
        """All knowledge held.

        Returns:
            (n,) sequence numbers, (n, H, W, C) uint8 observations, (n, n_actions) float32 Q-values, copied.

        Raises:
            Nothing.
        Source:
            ours: what a checkpoint must carry, since a question costs bytes and a transition does not.
        """
        slots = np.flatnonzero(self._taught)
        return self._seq[slots], self._obs[slots], self._teacher_q[slots]

    def __len__(self) -> int:
        """Transitions that can be trained on now."""
        return len(self._usable_slots()[0])

    def _usable_slots(self) -> tuple[Ints, Ints]:
        """(slots to train on, slots held out), each by ascending sequence number."""
        if self._usable is None:
            follows = np.roll(self._seq, -1) == self._seq + 1
            # Where records were left out a slot was not overwritten; what it holds is too old all the same.
            held = self._seq > max(0, self.newest_seq - self.capacity)
            usable = np.flatnonzero(held & (self._terminated | follows) & ~self._truncated)
            usable = usable[np.argsort(self._seq[usable], kind="stable")]
            held_out = self._held_out[usable]
            self._usable = usable[~held_out], usable[held_out]
        return self._usable

    def _batch(self, slots: Ints) -> Batch:
        following = (slots + 1) % self.capacity
        return Batch(
            obs=self._obs[slots],
            action=self._action[slots],
            reward=self._reward[slots],
            next_obs=self._obs[following],
            terminated=self._terminated[slots],
            teacher_q=self._teacher_q[slots],
            taught=self._taught[slots],
        )

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """Draw transitions uniformly, with replacement, none of them held out.

        Args:
            rng: where chance comes from.
            n: how many.

        Returns:
            The batch, copied.

        Raises:
            UsageError: there is nothing to draw from.
        Source:
            Mnih et al. 2015, experience replay.
        """
        slots, _ = self._usable_slots()
        if not len(slots):
            raise UsageError("nothing to train on yet")
        return self._batch(slots[rng.integers(len(slots), size=n)])

    def probe(self, n: int) -> Probe:
        """The newest held-out transitions.

        Args:
            n: at most this many.

        Returns:
            Probe, possibly empty.

        Raises:
            Nothing.
        Source:
            ours: the newest, because they show the states that the acting policy visits now.
        """
        slots = self._usable_slots()[1][::-1][:n]
        return Probe(self._batch(slots), self._seq[slots])
