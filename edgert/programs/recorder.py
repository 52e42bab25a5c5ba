"""What the act loop did and what came of it: transitions for the trainer, returns for whoever judges the network."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from edgert.nets import U8
from edgert.ports.plant import Observation
from edgert.ports.ring import TERMINATED, TRUNCATED, RingWriter
from edgert.values import RETURNS_TOLD


class Former(NamedTuple):
    """The decision before this one, waiting for its reward."""

    obs: U8
    action: int
    exit: int
    episode: int
    stream: int
    flags: int
    log_prob: float


class Recorder:
    """Writes each transition once it is known what came of it, and adds rewards up.

    Attributes:
        episodes: how many were seen from their beginning to their end.
        returns: of the last of them.
        played: which generation played each of those; None where a swap came in between, or no network acted.
        reward, rewarded: the sum of all rewards seen, and how many there were.
    """

    def __init__(self, ring: RingWriter) -> None:
        """Begin with nothing; the ring stays its owner's."""
        self._ring = ring
        self.episodes = 0
        self.returns: deque[float] = deque(maxlen=RETURNS_TOLD)
        self.played: deque[int | None] = deque(maxlen=RETURNS_TOLD)
        self.reward, self.rewarded = 0.0, 0
        self._player: int | None = None  # of the episode under way, from its first decision on
        self._return = 0.0
        self._return_known = False  # not when an episode was joined in its middle, or a reward of it was missed
        self._former: Former | None = None

    def swapped(self) -> None:
        """Another network acts from here on: none will have played the whole of the episode under way."""
        self._player = None

    def goes_on(self, observation: Observation | None) -> bool:
        """Whether the observation follows from the action before, in the same episode."""
        former = self._former
        return (
            observation is not None
            and former is not None
            and observation.action is not None
            and observation.stream == former.stream
            and not (observation.terminated or observation.truncated)
        )

    def remember(
        self,
        observation: Observation | None,
        action: int,
        exit_: int,
        flags: int,
        log_prob: float,
        player: int | None,
    ) -> None:
        """Write the previous transition, now that it is known what came of it, and keep this decision for the next.

        When what followed was not seen (a missed observation, another client, a world that was restarted), the record
        is kept as truncated: nothing is learned from it, but it is still the successor of the record before it. The
        return of such an episode is unknown; it is neither told nor counted.

        Args:
            observation: what the decision was made on; None when it was missed.
            action: that was applied.
            exit_: that answered.
            flags: EXPLORED or SAFE of the decision, or 0.
            log_prob: of the action where it was chosen; not a number where nobody can say.
            player: generation of the network that acts; None while none does.
        """
        former, seen = self._former, False
        if former is not None:
            seen = observation is not None and observation.action is not None and observation.stream == former.stream
            reward, ended = 0.0, TRUNCATED
            if observation is not None and seen:
                reward = observation.reward
                ended = TERMINATED * observation.terminated | TRUNCATED * observation.truncated
                self._return += reward
                self.reward, self.rewarded = self.reward + reward, self.rewarded + 1
            self._ring.append(
                former.obs,
                episode=former.episode,
                action=former.action,
                reward=reward,
                flags=former.flags | ended,
                exit=former.exit,
                log_prob=former.log_prob,
            )
            if seen and ended and self._return_known:
                self.episodes += 1
                self.returns.append(self._return)
                self.played.append(self._player)
        self._former = None
        self._return_known = self._return_known and seen
        if observation is not None:
            ends = observation.action is not None and (observation.terminated or observation.truncated)
            newcomer = former is not None and observation.stream != former.stream and observation.action is None
            if observation.seq == 1 or ends or newcomer:
                self._return_known, self._return, self._player = True, 0.0, player
            self._former = Former(
                observation.obs.copy(), action, exit_, observation.episode, observation.stream, flags, log_prob
            )
