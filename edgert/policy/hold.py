"""Deciding less often: an action that was decided surely enough is repeated for the next ticks, without inference.

A decision is repeated only if an early exit made it, and its confidence reached the setting's `hold_threshold`: nobody
trains the deepest exit's confidence, so what it decides is decided anew at the next tick. What ends a repetition, too,
is the end of the episode, or anything else after which the next observation does not follow from the last.

`more` is the rule for one decision, as the act loop needs it; `Holds` is the same for many environments at once, as a
measurement needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.policy.exits import logit
from edgert.values import Operating

I64: TypeAlias = npt.NDArray[np.int64]


class Rule(NamedTuple):
    """A setting's repetition in the numbers that are compared.

    Attributes:
        last: the deepest exit of the network.
        repeat: ticks that an action is applied for, the tick of its decision included.
        bar: confidence logit from which on it is repeated; a float32's value.
    """

    last: int
    repeat: int
    bar: float


def rule(operating: Operating) -> Rule:
    """Read a setting.

    Args:
        operating: the setting; its thresholds say how many exits there are.

    Returns:
        The rule.

    Raises:
        UsageError: as `Operating.fault` says.
    Source:
        ours: logits are compared, because confidences saturate; then 1 never holds and 0 always does.
    """
    if why := operating.fault(len(operating.thresholds) + 1):
        raise UsageError(why)
    return Rule(len(operating.thresholds), operating.repeat, float(np.float32(logit(operating.hold_threshold))))


def more(rule: Rule, exit_: int, logit: float) -> int:
    """For how many further ticks a decision is applied.

    Args:
        rule: of the setting.
        exit_: that decided.
        logit: its confidence logit.

    Returns:
        0, or all that `rule.repeat` allows.

    Raises:
        UsageError: never.
    Source:
        ours, after the learnt action repetition of Sharma et al. 2017 (arXiv 1702.06054), with the exit's confidence in
            the place of a second policy head.
    """
    return rule.repeat - 1 if exit_ < rule.last and logit >= rule.bar else 0


class Holds:
    """What many environments, each with a setting of its own, are still to repeat.

    Attributes:
        action: (n,) int64, decided last.
        left: (n,) int64, ticks for which it is still to be applied.
    """

    def __init__(self, operating: Sequence[Operating]) -> None:
        """Nothing is repeated yet.

        Args:
            operating: the setting of each environment.

        Raises:
            UsageError: as `rule`.
        """
        rules = [rule(each) for each in operating]
        self._last, self._repeat = (np.array([getattr(r, name) for r in rules], int) for name in ("last", "repeat"))
        self._bar = np.array([r.bar for r in rules], np.float32)
        self.action: I64 = np.zeros(len(rules), np.int64)
        self.left: I64 = np.zeros(len(rules), np.int64)

    def due(self, envs: I64, fresh: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Begin a tick: who has to decide? For the others one tick is used up, and `action` is what they do.

        Args:
            envs: (b,) which environments.
            fresh: (b,) the observation does not follow from the one before.

        Returns:
            (b,) True where an inference is due.

        Raises:
            UsageError: never; shapes are the caller's.
        Source:
            as `more`.
        """
        self.left[envs[fresh]] = 0
        decides = self.left[envs] == 0
        self.left[envs[~decides]] -= 1
        return np.asarray(decides)

    def decided(self, envs: I64, actions: I64, exits: I64, logits: npt.NDArray[np.float32]) -> None:
        """Take note of what was decided.

        Args:
            envs: (b,) which environments, those that were due.
            actions: (b,) decided.
            exits: (b,) which exit each.
            logits: (b,) float32, its confidence logit.

        Returns:
            None.

        Raises:
            UsageError: never; shapes are the caller's.
        Source:
            as `more`.
        """
        sure = (exits < self._last[envs]) & (logits >= self._bar[envs])
        self.action[envs] = actions
        self.left[envs] = np.where(sure, self._repeat[envs] - 1, 0)
