"""What two networks make of what a device has lived through: everything that the gate wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert import quant
from edgert.learn.accept import Evidence, unexplained
from edgert.learn.dqn import Batch
from edgert.learn.offpolicy import MIN_TRANSITIONS, Gain, Lived, compare
from edgert.learn.replay import Replay, is_held_out
from edgert.nets import F32, U8, Params, forward, ops
from edgert.policy import exits

MOST = 2000
"""Transitions looked at: from there on the error of the fit, which no error bar shows, is the larger one."""
OPS = 1e10
"""Operations spent on one candidate, but for the fewest transitions that say anything: seconds on a slow board."""
AT_ONCE = 64


class Side(NamedTuple):
    """A network as it acts: int8, through its exits."""

    net: quant.IntNet
    thresholds: Sequence[float]


def evidence(installed: Side, acting: Side, candidate: Side, params: Params, probe: Batch, gamma: float) -> Evidence:
    """What three networks do on held-out transitions; everything taught counts, and no history is looked at.

    Args:
        installed: came with the device.
        acting: is to be replaced.
        candidate: by this one,
        params: the float network that it was made of.
        probe: held out.
        gamma: discount per decision.
    """
    last, n_actions = params.spec.n_exits - 1, params.spec.n_actions
    before, offered = acting.net.heads(probe.obs), candidate.net.heads(probe.obs)
    in_float = forward(params, probe.obs)
    rows = np.arange(len(probe.action))
    targets = [
        probe.reward
        + np.float32(gamma)
        * np.where(probe.terminated, np.float32(0), side.net.heads(probe.next_obs)[last][:, :n_actions].max(1))
        for side in (acting, candidate)
    ]
    values = [heads[last][rows, probe.action] for heads in (before, offered)]
    return Evidence(
        installed=exits.decide(installed.net.heads(probe.obs), installed.thresholds),
        acting=exits.decide(before, acting.thresholds),
        candidate=exits.decide(offered, candidate.thresholds),
        candidate_float=exits.decide(in_float, candidate.thresholds),
        candidate_head=offered[last],
        float_q=in_float[last][:, :n_actions],
        teacher_q=probe.teacher_q,
        taught=probe.taught,
        acting_td=np.abs(values[0] - targets[0]),
        candidate_td=np.abs(values[1] - targets[0]),
        acting_unexplained=unexplained(values[0], targets[0]),
        candidate_unexplained=unexplained(values[1], targets[1]),
    )


def gain(replay: Replay, acting: Side, candidate: Side, gamma: float) -> Gain:
    """What the candidate would have earned more than the acting network, lately.

    Blocks: seconds, with large observations.
    """
    spec = candidate.net.spec
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
    sides = [_played(side, obs) for side in (acting, candidate)]
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


def _played(side: Side, obs: U8) -> tuple[F32, npt.NDArray[np.int64]]:
    """(n, n_actions) float32 values at the last exit, and (n,) actions through the exits, as on the board."""
    net, values, actions = side.net, [], []
    for first in range(0, len(obs), AT_ONCE):
        heads = net.heads(obs[first : first + AT_ONCE])
        values.append(heads[net.spec.n_exits - 1][:, : net.spec.n_actions])
        actions.append(exits.decide(heads, side.thresholds))
    return np.concatenate(values), np.concatenate(actions)
