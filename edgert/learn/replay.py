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


class Rollout(NamedTuple):
    """Consecutive transitions, oldest first, with the numbers that their actions were drawn with.

    Attributes:
        seq: (n,) ascending.
        obs: (n, H, W, C) uint8.
        action: (n,) integer.
        reward: (n,) float32.
        terminated: (n,) bool.
        follows: (n,) bool: the next row is what this one led to.
        log_prob: (n,) float32, of the action under the policy that drew it; not a number where none did.
        held_out: (n,) bool: not to be trained on.
    """

    seq: Ints
    obs: U8
    action: npt.NDArray[np.integer]
    reward: F32
    terminated: Bools
    follows: Bools
    log_prob: F32
    held_out: Bools


class Pairs(NamedTuple):
    """Transitions of which a teacher has valued both ends, `n` of them.

    Attributes:
        batch: the transitions; where they are not terminated, `batch.next_obs` was valued, too.
        value: (n,) float32, of the state.
        next_value: (n,) float32, of the state that followed; anything where terminated.
    """

    batch: Batch
    value: F32
    next_value: F32


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
        self._log_prob = np.full(capacity, np.nan, np.float32)
        self._teacher_q = np.zeros((capacity, n_actions), np.float32)
        self._teacher_value = np.zeros(capacity, np.float32)
        self._taught = np.zeros(capacity, bool)
        self._paired = np.zeros(capacity, bool)
        self._held_out = np.zeros(capacity, bool)
        self._usable: tuple[Ints, Ints] | None = None

    def add(
        self,
        seq: Ints,
        obs: U8,
        action: npt.NDArray[np.integer],
        reward: F32,
        terminated: Bools,
        truncated: Bools,
        log_prob: F32 | None = None,
    ) -> None:
        """Take in transitions; each overwrites the one `capacity` before it, and that one's teaching.

        Args:
            seq: (n,) sequence numbers, from 1, ascending.
            obs: (n, H, W, C) uint8.
            action: (n,) integer.
            reward: (n,) float32.
            terminated: (n,) bool.
            truncated: (n,) bool.
            log_prob: (n,) float32, of the action where it was chosen; None where nobody knows.

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
        self._log_prob[slot] = np.nan if log_prob is None else log_prob
        self._taught[slot] = self._paired[slot] = False
        self._held_out[slot] = [is_held_out(row) for row in obs]
        self.newest_seq = max(self.newest_seq, int(seq[-1]))
        self._usable = None

    def teach(self, seq: int, row: F32) -> bool:
        """Note what a teacher answered.

        Args:
            seq: of the transition asked about.
            row: (n_actions + 1,) float32: of each action, and of the state.

        Returns:
            False when the transition is gone, or the values are not finite.

        Raises:
            Nothing.
        Source:
            ours: an answer may come so late that its transition was overwritten, which is no fault of anybody.
        """
        slot = seq % self.capacity
        wanted = (self._teacher_q.shape[1] + 1,)
        if seq <= 0 or self._seq[slot] != seq or row.shape != wanted or not np.isfinite(row).all():
            return False
        self._teacher_q[slot], self._teacher_value[slot], self._taught[slot] = row[:-1], row[-1], True
        return True

    def value_told(self, seq: int) -> float | None:
        """What a teacher said a state is worth.

        Args:
            seq: of the transition that begins there.

        Returns:
            Its value, or None when the transition is gone or nobody said anything.

        Raises:
            Nothing.
        Source:
            ours: what a return is compared with.
        """
        slot = seq % self.capacity
        known = seq > 0 and self._seq[slot] == seq and self._taught[slot]
        return float(self._teacher_value[slot]) if known else None

    def obs(self, seqs: Ints) -> U8:
        """Observations by number.

        Args:
            seqs: (n,) of transitions that are still here.

        Returns:
            (n, H, W, C) uint8, copied.

        Raises:
            Nothing.
        Source:
            ours: what an answer is compared with.
        """
        return self._obs[seqs % self.capacity]

    def pairs(self, n: int) -> Pairs | None:
        """Transitions that a teacher has valued at both ends, each given once; what is over `n` is skipped.

        Args:
            n: at most this many, the newest; with 0 all count as given.

        Returns:
            Pairs, oldest first, or None when there are none.

        Raises:
            Nothing.
        Source:
            ours: evidence for or against the teacher must not be counted twice.
        """
        follows = (np.roll(self._seq, -1) == self._seq + 1) & np.roll(self._taught, -1)
        fresh = self._taught & ~self._paired & ~self._truncated & (self._terminated | follows)
        slots = np.flatnonzero(fresh & (self._seq > max(0, self.newest_seq - self.capacity)))
        if not len(slots):
            return None
        self._paired[slots] = True
        if n == 0:
            return None
        slots = slots[np.argsort(self._seq[slots], kind="stable")][-n:]
        return Pairs(self._batch(slots), self._teacher_value[slots], self._teacher_value[(slots + 1) % self.capacity])

    def rollout(self, n: int) -> Rollout:
        """The newest transitions in order, those with a successor and those without.

        Args:
            n: at most this many.

        Returns:
            The rollout, copied.

        Raises:
            Nothing.
        Source:
            ours: a truncated transition, and one whose successor was left out, still show the state that the one
            before it led to.
        """
        slots = np.flatnonzero(self._seq > max(0, self.newest_seq - min(n, self.capacity)))
        slots = slots[np.argsort(self._seq[slots], kind="stable")]
        seq, ended = self._seq[slots], self._terminated[slots] | self._truncated[slots]
        return Rollout(
            seq=seq,
            obs=self._obs[slots],
            action=self._action[slots],
            reward=self._reward[slots],
            terminated=self._terminated[slots],
            follows=np.append(np.diff(seq) == 1, np.zeros(min(1, len(seq)), bool)) & ~ended,
            log_prob=self._log_prob[slots],
            held_out=self._held_out[slots],
        )

    def told(self, seqs: Ints) -> tuple[F32, Bools]:
        """What a teacher said of transitions that are still here.

        Args:
            seqs: (n,) numbers.

        Returns:
            (n, n_actions) float32, and (n,) bool: whether it said anything.

        Raises:
            Nothing.
        Source:
            ours: answers come late, so they are looked up when they are trained on.
        """
        slots = seqs % self.capacity
        return self._teacher_q[slots], self._taught[slots] & (self._seq[slots] == seqs)

    def lessons(self, rng: np.random.Generator, n: int) -> Ints:
        """Draw taught transitions uniformly, with replacement, none of them held out.

        Args:
            rng: where chance comes from.
            n: how many.

        Returns:
            (n,) sequence numbers, or none where nothing was taught.

        Raises:
            Nothing.
        Source:
            ours: an answer that was paid for is good for more than the rollout that it was asked about.
        """
        slots = np.flatnonzero(self._taught & ~self._held_out)
        return self._seq[slots[rng.integers(len(slots), size=n)]] if len(slots) else self._seq[:0]

    def forget_taught(self) -> None:
        """Forget everything teachers said.

        Raises:
            Nothing.
        Source:
            ours: what a bad teacher said would be trained on for as long as its transitions are here.
        """
        self._taught[:] = False
        self._paired[:] = False

    def taught(self) -> tuple[Ints, U8, F32]:
        """All knowledge held.

        Returns:
            (n,) sequence numbers, (n, H, W, C) uint8 observations, (n, n_actions) float32 Q-values, copied.

        Raises:
            Nothing.
        Source:
            ours: the whole of it, to be looked at.
        """
        slots = np.flatnonzero(self._taught)
        return self._seq[slots], self._obs[slots], self._teacher_q[slots]

    @property
    def n_taught(self) -> int:
        """Transitions kept that a teacher answered."""
        return int(self._taught.sum())

    def newest(self, n: int) -> Probe:
        """The newest transitions, held out or not, as they followed one another.

        Args:
            n: at most this many.

        Returns:
            By ascending sequence number, copied; possibly none.

        Raises:
            Nothing.
        Source:
            ours: what a policy would earn can only be told from what happened in order.
        """
        slots = np.concatenate(self._usable_slots())
        slots = slots[np.argsort(self._seq[slots], kind="stable")][-n:]
        return Probe(self._batch(slots), self._seq[slots])

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
