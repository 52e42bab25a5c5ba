"""What finished episodes brought the student: the discounted return from their start."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.nets import F32


class Finished(NamedTuple):
    """One episode that was seen from its start to its end.

    Attributes:
        start_seq: its first transition.
        value: discounted return.
        length: transitions.
    """

    start_seq: int
    value: float
    length: int


class Episodes:
    """Adds up rewards as transitions come in."""

    def __init__(self, gamma: float) -> None:
        """Start between two episodes, or in the middle of one that is then not counted.

        Args:
            gamma: discount per decision.
        """
        self._gamma = gamma
        self._newest = 0
        self._start = 0  # 0: this episode was not seen from its start
        self._value, self._factor, self._length = 0.0, 1.0, 0
        self._fresh = True

    def add(
        self, seq: npt.NDArray[np.int64], reward: F32, ended: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], list[Finished]]:
        """Take in transitions.

        Args:
            seq: (n,) sequence numbers, ascending.
            reward: (n,) float32.
            ended: (n,) bool: terminated or truncated.

        Returns:
            (n,) bool, which begin an episode; and the episodes that ended, without those that have a gap.

        Raises:
            Nothing.
        Source:
            Sutton & Barto 2018, equation 3.8; what is truncated counts as far as it was seen.
        """
        starts = np.zeros(len(seq), bool)
        finished: list[Finished] = []
        for i, (number, gain, over) in enumerate(zip(seq.tolist(), reward.tolist(), ended.tolist(), strict=True)):
            follows = number == self._newest + 1
            if self._fresh and follows:
                starts[i] = True
                self._start, self._value, self._factor, self._length = number, 0.0, 1.0, 0
            elif not follows:
                self._start = 0
            self._value += self._factor * gain
            self._factor *= self._gamma
            self._length += 1
            if over and self._start and np.isfinite(self._value):
                finished.append(Finished(self._start, self._value, self._length))
            self._fresh, self._newest = over, number
        return starts, finished
