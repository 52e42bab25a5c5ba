"""The history of a device as two networks would have played it: what the off-policy check of the gate needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgert import quant
from edgert.learn.offpolicy import MIN_TRANSITIONS, Gain, Lived, compare
from edgert.learn.replay import Replay, is_held_out
from edgert.nets import F32, U8, ops
from edgert.policy import exits

MOST = 2000
"""Transitions looked at: from there on the error of the fit, which no error bar shows, is the larger one."""
OPS = 1e10
"""Operations spent on one candidate, but for the fewest transitions that say anything: seconds on a slow board."""
AT_ONCE = 64


def gain(
    replay: Replay,
    acting: quant.IntNet,
    acting_thresholds: Sequence[float],
    candidate: quant.IntNet,
    thresholds: Sequence[float],
    gamma: float,
) -> Gain:
    """What the candidate would have earned more than the acting network, lately.

    Blocks: seconds, with large observations.
    """
    spec = candidate.spec
    affordable = int(OPS / (2 * max(1, ops(spec)[-1])))
    history = replay.newest(min(MOST, max(affordable, MIN_TRANSITIONS)))
    batch, n = history.batch, len(history.seq)
    if n < MIN_TRANSITIONS:
        return Gain(None, 0.0, 0.0, n, f"{n} transitions, it takes {MIN_TRANSITIONS}")
    # Most of what followed is there already, as the state of the next transition.
    alone = np.append(np.diff(history.seq) != 1, True) & ~batch.terminated
    following = np.minimum(np.arange(n) + 1, n - 1)
    following[alone] = n + np.arange(int(alone.sum()))
    obs = np.concatenate([batch.obs, batch.next_obs[alone]])
    sides = [_played(net, obs, bars) for net, bars in ((acting, acting_thresholds), (candidate, thresholds))]
    features = np.concatenate([values for values, _ in sides], 1)
    actions = [chosen for _, chosen in sides]
    lived = Lived(
        features=features[:n],
        next_features=features[following],
        action=batch.action,
        reward=batch.reward,
        terminated=batch.terminated,
        acting=actions[0][:n],
        candidate=actions[1][:n],
        next_acting=actions[0][following],
        next_candidate=actions[1][following],
        judged=np.array([is_held_out(row) for row in batch.obs]),
    )
    return compare(lived, spec.n_actions, gamma)


def _played(net: quant.IntNet, obs: U8, thresholds: Sequence[float]) -> tuple[F32, npt.NDArray[np.int64]]:
    """(n, n_actions) float32 values at the last exit, and (n,) actions through the exits, as on the board."""
    values, actions = [], []
    for first in range(0, len(obs), AT_ONCE):
        heads = net.heads(obs[first : first + AT_ONCE])
        values.append(heads[net.spec.n_exits - 1][:, : net.spec.n_actions])
        actions.append(exits.decide(heads, thresholds))
    return np.concatenate(values), np.concatenate(actions)
