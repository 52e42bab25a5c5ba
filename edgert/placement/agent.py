"""The agent of a device: where it would put the parts of its jobs, by a look ahead and what a small network learned.

A choice is made part by part. For every place that the part could go to a cost model looks ahead to the end of the
job, and says what is lost to others' jobs meanwhile. What that model cannot know is learned: each place is described by
`FEATURES` numbers, and one network corrects the score of them all alike, so it works with any number of neighbours. The
first choice is of the split as well, or to wait. Of the neighbours is known what they reported, and how long ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.nets import F32, U8, Dense, NetSpec, Params, Relu, forward
from edgert.placement.jobs import Job, Proposal, Split, urgency
from edgert.placement.view import F64, Fit, Prospect, Sight, completion, estimate, prospect, scaled_log

FEATURES = 31
"""Numbers that describe a place; see `_describe`."""
SPEC = NetSpec(
    input_shape=(1, 1, FEATURES),
    n_actions=1,
    trunk=((Dense(48), Relu(), Dense(32), Relu()),),
    heads=((),),
    input_scale=1 / 255,
)
"""The network: one action's value is added to the score of the place; the softmax of that over all places chooses."""
SHARPNESS = 10.0
"""Score of a place per logarithm of its cost: what takes a tenth longer is chosen 2.6 times as seldom."""
ACCEPT_LOG = 4.0
"""A place whose score is smaller than the chosen one's by this, half as much time again, is not worth having: rather
the job waits. A part on a slow node slows all the others of its job."""
RATIO_MAX = 64.0
"""Times the best: longer than that is no worse, for the score stays finite where there is no room."""


class Rule(NamedTuple):
    """The cost model's constants, tuned by `python -m tools.train.placer --tune` without a network.

    Attributes:
        base, busy, queue: what a core of mean speed costs: `base + busy * use + queue * jobs that wait a node`, in
            quarters of the time that the job holds it.
        accept: a place that takes more than so many times what the best one would take empty is not worth it: wait.
        patience: but not for longer than so many times that; then it goes where there is room. An agent may be wrong,
            but no job may starve by it.
    """

    base: float = -0.94
    busy: float = 3.38
    queue: float = 0.43
    accept: float = 2.16
    patience: float = 5.64


RULE = Rule()


class Choice(NamedTuple):
    """One choice among places.

    Attributes:
        places: (C, FEATURES) uint8, one row a place.
        prior: (C,) float32, by the cost model; the network's scores are added.
        allowed: (C,) bool; the others could not be chosen.
        chosen: row.
        log_prob: of it, by the policy that chose.
    """

    places: U8
    prior: F32
    allowed: npt.NDArray[np.bool_]
    chosen: int
    log_prob: float


class Decided(NamedTuple):
    """What an agent decided for a job: the proposal, None to wait; and how, for learning from what becomes of it."""

    proposal: Proposal | None
    choices: tuple[Choice, ...]


class Lesson(NamedTuple):
    """What `learn.backprop.accumulate` needs to follow what is learned from choices.

    Attributes:
        obs: (B, 1, 1, FEATURES) uint8, all places of all choices.
        d_out: (B, 2) float32, the gradient of the loss by the network's outputs.
        loss: mean over the choices.
        entropy: mean over the choices, in nats.
    """

    obs: U8
    d_out: F32
    loss: float
    entropy: float


def propose(
    params: Params,
    job: Job,
    sight: Sight,
    now_s: float,
    *,
    attempt: int = 0,
    session: int = 0,
    masked: bool = True,
    rng: np.random.Generator | None = None,
    rule: Rule = RULE,
) -> Decided:
    """Decide where the parts of a job should go.

    Args:
        params: of the network, see `SPEC`.
        job: the job.
        sight: what is known.
        now_s: by the clock of `job.born_s`.
        attempt: of the placement.
        session: of the daemon.
        masked: places that lack room, as far as is known, are not chosen; else they are slower.
        rng: draws from the policy; None takes the best.
        rule: of the cost model.

    Returns:
        The proposal, with every other place ranked behind the chosen one, or None to wait.

    Raises:
        UsageError: the network is not one of `SPEC`.
    Source:
        one network over a varying number of choices: Mao et al. 2019 (arXiv 1810.01963), section 5.2; learning what
        corrects a known policy: Silver et al. 2018 (arXiv 1812.06298).
    """
    count = len(sight.names)
    choices: list[Choice] = []
    ranked: list[tuple[str, ...]] = []
    placed: list[int] = []
    chosen = 0
    hoped = prospect(job, sight)
    choosy = now_s - job.born_s < patience_s(hoped.ideal_s, rule)
    while not placed or len(placed) < len(job.splits[chosen].parts):
        first = not placed
        splits = job.splits if first else (job.splits[chosen],)
        fit = estimate(job, splits, placed, sight)
        ratio = np.minimum(completion(job, splits, placed, fit, masked=masked) / hoped.ideal_s, RATIO_MAX)
        features = _describe(job, splits, placed, sight, fit, ratio, _circumstances(job, sight, now_s, hoped))
        prior = _prior(splits, len(placed), sight, ratio, rule)
        allowed = fit.fits.reshape(-1) if masked else np.ones(len(features), bool)
        if first:
            features = np.concatenate([features, _waiting(job, sight, now_s, hoped)])
            best = int(np.where(allowed, prior, -np.inf).argmax())
            prior = np.append(prior, prior[best] + SHARPNESS * np.log(ratio.reshape(-1)[best] / rule.accept))
            allowed = np.append(allowed, choosy or not allowed.any())
        if not allowed.any():  # the parts placed so far took the last room
            return Decided(None, tuple(choices))
        places = (np.clip(features, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
        prior32 = prior.astype(np.float32)
        scores = score(params, places, prior32)
        row, log_prob = _draw(scores, allowed, rng)
        choices.append(Choice(places, prior32, allowed, row, log_prob))
        if first and row == len(places) - 1:
            return Decided(None, tuple(choices))
        start = row // count * count
        chosen = row // count if first else chosen
        own = np.where(allowed, scores, scores - 1e3)[start : start + count]
        worth_it = float(scores[row]) - ACCEPT_LOG if choosy else -np.inf
        ranked.append(tuple(sight.names[n] for n in np.argsort(-own, kind="stable") if own[n] >= worth_it))
        placed.append(row - start)
    proposal = Proposal(
        job=job,
        attempt=attempt,
        split=chosen,
        nodes=tuple(sight.names[n] for n in placed),
        ranked=tuple(ranked),
        choosy=choosy,
        session=session,
        urgency_s=urgency(job, chosen, now_s),
    )
    return Decided(proposal, tuple(choices))


def _prior(splits: Sequence[Split], k: int, sight: Sight, ratio: F64, rule: Rule) -> F64:
    """What the cost model thinks of putting part `k` of each split on each node: (S * N,)."""
    power = float((sight.speed * sight.cores).sum())
    use = 1 - float((sight.speed * np.maximum(sight.free_cores, 0.0)).sum()) / power
    waiting = min(3.0, float(sight.waiting.mean()))
    price = max(0.0, rule.base + rule.busy * use + rule.queue * waiting) / 4 * float(sight.cores.sum()) / power
    held = np.array([[len(split.parts) * split.parts[k].cores] for split in splits])
    return np.asarray(-SHARPNESS * np.log(ratio * (1 + price * held * sight.speed)), np.float64).reshape(-1)


def patience_s(ideal_s: float, rule: Rule = RULE) -> float:
    """How long a job may wait for a better place than there is.

    Args:
        ideal_s: it would take at best.
        rule: of the cost model.

    Returns:
        Seconds since it came.

    Raises:
        Nothing.
    Source:
        ours: to wait for a fast node pays for a long job where a short one is done sooner on a slow node.
    """
    return rule.patience * ideal_s


def score(params: Params, places: U8, prior: F32) -> F32:
    """Score places.

    Args:
        params: of the network.
        places: (C, FEATURES) uint8.
        prior: (C,) float32, by the cost model.

    Returns:
        (C,) float32.

    Raises:
        UsageError: the network is not one of `SPEC`.
    Source:
        as `propose`.
    """
    return np.asarray(forward(params, places[:, None, None, :])[0][:, 0] + prior, np.float32)


def _describe(
    job: Job, splits: Sequence[Split], placed: Sequence[int], sight: Sight, fit: Fit, ratio: F64, same: F64
) -> F64:
    """All that is said of putting the next part of each split on each node: (S * N, FEATURES)."""
    k, count = len(placed), len(sight.names)
    columns = np.empty((len(splits), count, FEATURES))
    work_s = [sum(part.compute_core_s for part in split.parts) for split in splits]
    whole_s = fit.step_s * job.steps + fit.ship_s
    times = np.stack([whole_s / 60.0, fit.step_s / np.array(work_s)[:, None]], axis=2)
    columns[:, :, 0:2] = scaled_log(times)
    columns[:, :, 2:4] = sight.known[:, 0:2]
    columns[:, :, 4:9] = sight.known[:, 2:7]
    columns[:, :, 9] = 0.0
    for n in placed:
        columns[:, n, 9] = 1.0
    columns[:, :, 10] = 0.5 + 0.125 * fit.cores
    columns[:, :, 11] = 0.5 + 0.5 * fit.memory / sight.memory
    columns[:, :, 12] = fit.cores >= 0
    columns[:, :, 13] = fit.memory >= 0
    columns[:, :, 14] = 0.5 + 0.125 * np.minimum(fit.heat, 8.0)
    for i, split in enumerate(splits):
        size = len(split.parts)
        columns[i, :, 15:20] = size == 1, size == 2, size > 2, split.kind == "layers", k / 4.0
    columns[:, :, 20] = 0.0
    columns[:, :, 21:30] = same
    columns[:, :, 30] = scaled_log(ratio)
    return columns.reshape(-1, FEATURES)


def _circumstances(job: Job, sight: Sight, now_s: float, hoped: Prospect) -> F64:
    """What is the same for all places: (9,)."""
    work_s = sum(part.compute_core_s for part in job.splits[0].parts) * job.steps
    waited_s = max(0.0, now_s - job.born_s)
    later, waited = scaled_log(np.array([hoped.later_s, waited_s + 1e-3]) / hoped.ideal_s)
    work = float(scaled_log(work_s / 60.0))
    own = [work, *sight.cluster, waited_s / 120.0, job.ship_bytes / 2e7, float(later), float(waited)]
    return np.array(own, np.float64)


def _waiting(job: Job, sight: Sight, now_s: float, hoped: Prospect) -> F64:
    """To wait, as a place: (1, FEATURES)."""
    row = np.zeros((1, FEATURES))
    row[0, 20] = 1.0
    row[0, 21:30] = _circumstances(job, sight, now_s, hoped)
    row[0, 30] = float(scaled_log(hoped.later_s / hoped.ideal_s))
    return row


def _softmax(scores: F32 | F64, allowed: npt.NDArray[np.bool_]) -> F64:
    x = np.where(allowed, scores.astype(np.float64), -np.inf)
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum(), np.float64)


def _draw(scores: F32, allowed: npt.NDArray[np.bool_], rng: np.random.Generator | None) -> tuple[int, float]:
    """A row by its probability, or the best without dice; and its logarithm."""
    prob = _softmax(scores, allowed)
    if rng is None:
        row = int(prob.argmax())
    else:
        row = min(int(np.searchsorted(prob.cumsum(), rng.random(), side="right")), len(prob) - 1)
    return row, float(np.log(max(prob[row], 1e-12)))


def lesson(
    params: Params,
    choices: Sequence[Choice],
    advantages: Sequence[float],
    *,
    clip: float = 0.2,
    entropy_weight: float = 0.01,
) -> Lesson:
    """What choices and their worth say about the scores.

    Args:
        params: of the network that is to learn; it may have changed since it chose.
        choices: of any number of jobs.
        advantages: how much better than expected each turned out; dimensionless, of unit size or so.
        clip: how far a probability may move before its gradient stops.
        entropy_weight: of the entropy, which is sought.

    Returns:
        The gradient by the outputs, to be carried back through the network by `learn.backprop.accumulate`.

    Raises:
        UsageError: no choices, or not as many advantages.
    Source:
        Schulman et al. 2017 (arXiv 1707.06347) equation 7, with a softmax over the places of each choice.
    """
    if not choices or len(choices) != len(advantages):
        raise UsageError(f"{len(choices)} choices with {len(advantages)} advantages")
    places = np.concatenate([choice.places for choice in choices])
    scores = score(params, places, np.concatenate([choice.prior for choice in choices]))
    allowed = np.concatenate([choice.allowed for choice in choices])
    sizes = np.array([len(choice.places) for choice in choices])
    starts, group = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
    x = np.where(allowed, scores.astype(np.float64), -1e9)
    x -= np.maximum.reduceat(x, starts)[group]
    e = np.exp(x)
    prob = e / np.add.reduceat(e, starts)[group]
    log_prob = np.log(np.maximum(prob, 1e-12))
    rows = starts + np.array([choice.chosen for choice in choices])
    advantage = np.asarray(advantages, np.float64)
    ratio = np.exp(np.clip(log_prob[rows] - np.array([choice.log_prob for choice in choices]), -20.0, 20.0))
    clipped = np.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    entropy = -np.add.reduceat(prob * log_prob, starts)
    pull = np.where(clipped, 0.0, ratio * advantage)  # gradient of the surrogate by the chosen log-probability
    d = prob * (pull[group] + entropy_weight * (log_prob + entropy[group]))
    d[rows] -= pull
    d_out = np.zeros((len(places), 2), np.float32)
    d_out[:, 0] = np.where(allowed, d, 0.0) / len(sizes)
    loss = -float(surrogate.mean()) - entropy_weight * float(entropy.mean())
    return Lesson(places[:, None, None, :], d_out, loss, float(entropy.mean()))


class Outcome(msgspec.Struct, frozen=True):
    """What became of a decision: choices, how long the job took since it came, and its work on the reference core."""

    choices: tuple[Choice, ...]
    job_s: float
    work_s: float


def worth(outcomes: Sequence[Outcome]) -> list[float]:
    """How much better than the others each outcome was.

    Args:
        outcomes: of one device, of jobs that are done.

    Returns:
        An advantage for every choice, in the order of outcomes: minus the logarithm of the slow-down, less the mean.

    Raises:
        Nothing.
    Source:
        Williams 1992 (REINFORCE) with the mean as the baseline; the logarithm because jobs differ by factors.
    """
    if not outcomes:
        return []
    gains = -np.log([max(each.job_s, 1e-3) / max(each.work_s, 1e-3) for each in outcomes])
    spread = float(gains.std()) + 0.1
    scaled = (gains - gains.mean()) / spread
    return [float(gain) for gain, each in zip(scaled, outcomes, strict=True) for _ in each.choices]
