"""What is compared, a network and the rule by which its exits answer, and how it is played.

Every rule is the same comparison, a number an exit gives against a threshold, so all of them run through the code that
the board's thresholds run through. They differ in the number: the learnt confidence; the gap between the two best
Q-values; the entropy of their softmax (BranchyNet, Teerapittayanon et al. 2016); chance. For all but the first it takes
the confidence's place in what the head gives. What computing it costs is not counted, in their favour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.nets import F32, U8, NetSpec, Params, ops, run_layers, stages, without_exits
from edgert.policy.exits import answer, effective_thresholds
from edgert.policy.hold import Holds
from edgert.quant import IntNet, Tensors
from edgert.values import Operating
from tools.bench.rapidrl.plan import Task
from tools.episodes import play_each
from tools.frontier import Played

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Gate = Literal["confidence", "gap", "entropy", "chance"]

ENTROPY_TEMPERATURE_FRAC = 0.1
"""Of the softmax over Q-values, in units of their spread: that of the distillation."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How actions are chosen.

    Attributes:
        role: whose network; empty for random actions.
        precision: of its arithmetic.
        only: the network ends here and has no other exit; None means its exits answer by the gate.
        gate: what is compared with the thresholds.
        operating: thresholds, in the gate's own confidence, and repetition.
        scale: typical spread of the Q-values, the unit of gap and entropy.
    """

    role: str
    precision: Literal["int8", "fp32"] = "int8"
    only: int | None = None
    gate: Gate = "confidence"
    operating: Operating = Operating(())
    scale: float = 1.0


class Net(Protocol):
    """What `quant.IntNet` shows of itself."""

    spec: NetSpec

    def trunk(self, k: int, x: Any) -> Any:
        """One stage's features."""

    def head(self, k: int, x: Any) -> F32:
        """One head."""


class FloatNet:
    """A float network, stage by stage."""

    def __init__(self, params: Params) -> None:
        """Of these parameters."""
        self.spec, self._params, self._stages = params.spec, params, stages(params.spec)

    def trunk(self, k: int, x: Any) -> Any:
        """As `IntNet.trunk`."""
        return run_layers(self._stages[k].trunk, self._params, x, None)

    def head(self, k: int, x: Any) -> F32:
        """As `IntNet.head`."""
        return run_layers(self._stages[k].head, self._params, x, None)


class Only:
    """A network that ends at one exit and has no other."""

    def __init__(self, net: Net, exit_: int) -> None:
        """Of `net`."""
        self.spec, self._net, self._exit = without_exits(net.spec, exit_), net, exit_

    def trunk(self, k: int, x: Any) -> Any:
        """All stages up to the exit."""
        for stage in range(self._exit + 1):
            x = self._net.trunk(stage, x)
        return x

    def head(self, k: int, x: Any) -> F32:
        """The exit's."""
        return self._net.head(self._exit, x)


class Gated:
    """A network whose heads end with what the gate compares, in the confidence's place."""

    def __init__(self, net: Net, gate: Gate, scale: float, rng: np.random.Generator) -> None:
        """Of `net`; `scale` as in `Policy`."""
        self.spec, self._net, self._gate, self._scale, self._rng = net.spec, net, gate, scale, rng

    def trunk(self, k: int, x: Any) -> Any:
        """As ever."""
        return self._net.trunk(k, x)

    def head(self, k: int, x: Any) -> F32:
        """Q-values and the gate's number."""
        return judged(self._net.head(k, x), self._gate, self._scale, self._rng)


def judged(head: F32, gate: Gate, scale: float, rng: np.random.Generator) -> F32:
    """Put what a gate compares in the place of the confidence logit.

    Args:
        head: (n, n_actions + 1) float32.
        gate: which.
        scale: typical spread of the Q-values.
        rng: of the gate that leaves it to chance.

    Returns:
        (n, n_actions + 1) float32; larger is surer.
    """
    q = head[:, :-1].astype(np.float64) / scale
    match gate:
        case "confidence":
            return head
        case "gap":
            best = np.partition(q, -2, axis=1)
            score = best[:, -1] - best[:, -2]
        case "entropy":
            logits = (q - q.max(1, keepdims=True)) / ENTROPY_TEMPERATURE_FRAC
            shares = np.exp(logits)
            shares /= shares.sum(1, keepdims=True)
            score = (shares * np.log(np.maximum(shares, 1e-300))).sum(1)
        case "chance":
            drawn = rng.uniform(1e-12, 1, len(q))
            score = np.log(drawn) - np.log1p(-drawn)
    return np.concatenate((head[:, :-1], score[:, None].astype(np.float32)), 1)


def by_chance(exit_share: Sequence[float]) -> Operating:
    """Thresholds at which the gate `chance` takes every exit as often as this."""
    thresholds, left = [], 1.0
    for share in exit_share[:-1]:
        thresholds.append(float(np.clip(1 - share / left if left > 0 else 0.0, 0, 1)))
        left -= share
    return Operating(tuple(thresholds))


def costs(policy: Policy, spec: NetSpec) -> list[int]:
    """Operations of an answer at each exit that the policy can take."""
    return ops(spec if policy.only is None else without_exits(spec, policy.only))


class Trial(NamedTuple):
    """A policy to be played, in this process or in another.

    Attributes:
        task: what is played.
        policy: by what rule.
        spec: of the network; for random actions of any network of the task.
        flat: float32 parameters, of a policy that needs them.
        tensors: of `quant.quantize`, of a policy that needs them.
        seeds: one an episode.
        max_steps: an episode is cut here.
        keep: about how many observations to bring back, at most twice as many.
    """

    task: Task
    policy: Policy
    spec: NetSpec
    flat: F32 | None
    tensors: Tensors | None
    seeds: Sequence[int]
    max_steps: int = 10_000
    keep: int = 0


def net_of(trial: Trial) -> Net:
    """The network of a trial, with its gate."""
    policy = trial.policy
    net: Net
    if policy.precision == "int8":
        assert trial.tensors is not None
        net = IntNet(trial.spec, trial.tensors)
    else:
        net = FloatNet(Params(trial.spec, trial.flat))
    if policy.only is not None:
        return Only(net, policy.only)
    return Gated(net, policy.gate, policy.scale, np.random.default_rng(trial.seeds[0]))


def play(trial: Trial) -> Played:
    """Play every episode of a trial, several side by side."""
    n, env_id, parallel = len(trial.seeds), trial.task.arena, trial.task.parallel
    if not trial.policy.role:
        return _play_at_random(trial)
    net = net_of(trial)
    last = net.spec.n_exits - 1
    operating = trial.policy.operating if trial.policy.only is None else Operating(())
    bars, holds = effective_thresholds(operating.thresholds, last), Holds([operating] * n)
    exit_ticks, held_ticks = np.zeros((n, last + 1), np.int64), np.zeros(n, np.int64)
    met: list[U8] = []
    rng, share = np.random.default_rng(trial.seeds[0]), 1.0

    def choose(obs: U8, episodes: I64, fresh: npt.NDArray[np.bool_]) -> I64:
        nonlocal share, met
        if trial.keep:
            met += list(obs[rng.random(len(obs)) < share])  # indexing by a mask copies
            if len(met) > 2 * trial.keep:
                met, share = met[::2], share / 2
        decides = holds.due(episodes, fresh)
        held_ticks[episodes[~decides]] += 1
        if decides.any():
            asked = episodes[decides]
            head, exit_ = answer(cast(IntNet, net), obs[decides], bars)
            holds.decided(asked, head[:, :-1].argmax(1), exit_, head[:, -1])
            exit_ticks[asked, exit_] += 1
        return holds.action[episodes]

    returns = play_each(choose, env_id, trial.seeds, parallel=parallel, max_steps=trial.max_steps)
    return Played(returns, exit_ticks, held_ticks, np.array(met, np.uint8).reshape(-1, *net.spec.input_shape))


def _play_at_random(trial: Trial) -> Played:
    # Not the environment's own stream, which gymnasium draws from the bare seed.
    dice = [np.random.default_rng((seed, 1)) for seed in trial.seeds]
    n, n_actions = len(dice), trial.spec.n_actions
    ticks = np.zeros((n, 1), np.int64)

    def choose(obs: U8, episodes: I64, fresh: npt.NDArray[np.bool_]) -> I64:
        ticks[episodes, 0] += 1
        return np.array([dice[i].integers(n_actions) for i in episodes])

    parallel, env_id = trial.task.parallel, trial.task.arena
    returns = play_each(choose, env_id, trial.seeds, parallel=parallel, max_steps=trial.max_steps)
    return Played(returns, ticks, np.zeros(n, np.int64), np.zeros((0, 1, 1, 1), np.uint8))
