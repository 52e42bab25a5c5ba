"""The agent of a device: where it would put the parts of its jobs, by a small network that scores one place at a time.

A choice is made part by part. Each time every place that the part could go to is described by `FEATURES` numbers, and
one network scores them all alike, so it works with any number of neighbours. The first choice is of the split as well,
or to wait. What is known of the neighbours is what they reported, and how long ago.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.nets import F32, U8, Dense, NetSpec, Params, Relu, forward
from edgert.placement.jobs import HOST, Job, Proposal, Split, pairs, urgency
from edgert.placement.load import Load

FEATURES = 28
"""Numbers that describe a place; see `_describe`."""
SPEC = NetSpec(
    input_shape=(1, 1, FEATURES),
    n_actions=1,
    trunk=((Dense(48), Relu(), Dense(32), Relu()),),
    heads=((),),
    input_scale=1 / 255,
)
"""The network: one action's value is the score of the place; its softmax over all places is the choice."""
ACCEPT_LOG = 3.0
"""A place whose probability is smaller than the chosen one's by e to the power of this is not worth having: rather the
job waits. A part on a slow node slows all the others of its job."""
WAIT_MAX_S = 60.0
"""A job that has waited so long goes where there is room: an agent may be wrong, but no job may starve by it."""
START_S = 2.0
"""What starting a part takes on the reference core: a process, its imports, its data."""

_LOG_SPAN = np.log(64.0)  # a logarithm of 1/64..64 fills a feature
_LINK_FLOOR = 0.05  # of a link: a share that one more flow gets in any case
F64 = npt.NDArray[np.float64]


class Sight(NamedTuple):
    """What a device knows of the nodes it may use, as columns; N nodes, itself among them.

    Attributes:
        names: in the order of the columns.
        me: its own index.
        cores, memory, link: capacity, each (N,) float64 in the units of `load.Resources`.
        free_cores, free_memory, free_link: what is left; below 0 where a node is overloaded.
        heat, energy: W and J that may be drawn still, infinite without a limit.
        watts: of a busy core.
        speed: of a core.
        age_s: of the report.
        waiting: jobs that its owner has not placed.
        soonest_s: until the first of its parts ends; 0 where nothing runs or nobody knows.
        known, cluster: what the network is told of each node and of all of them, whatever the job; made of the above.
    """

    names: tuple[str, ...]
    me: int
    cores: F64
    memory: F64
    link: F64
    free_cores: F64
    free_memory: F64
    free_link: F64
    heat: F64
    energy: F64
    watts: F64
    speed: F64
    age_s: F64
    waiting: F64
    soonest_s: F64
    known: F64
    cluster: F64


class Choice(NamedTuple):
    """One choice among places.

    Attributes:
        places: (C, FEATURES) uint8, one row a place.
        allowed: (C,) bool; the others could not be chosen.
        chosen: row.
        log_prob: of it, by the policy that chose.
    """

    places: U8
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


def look(me: str, loads: Mapping[str, Load], now_s: float) -> Sight:
    """Put what is known into columns.

    Args:
        me: the device.
        loads: node -> its last report, the device's own among them; `at_s` is when it came.
        now_s: by the same clock.

    Returns:
        The columns.

    Raises:
        UsageError: the device does not know itself.
    Source:
        ours.
    """
    if me not in loads:
        raise UsageError(f"device {me} places jobs without a report of itself")
    rows = [
        (
            load.capacity.cores,
            load.capacity.memory_bytes,
            load.capacity.link_bytes_per_s,
            load.capacity.cores - load.used.cores,
            load.capacity.memory_bytes - load.used.memory_bytes,
            load.capacity.link_bytes_per_s - load.used.link_bytes_per_s,
            float("inf") if load.capacity.heat_w is None else load.capacity.heat_w - load.used.heat_w,
            float("inf") if load.capacity.energy_j is None else load.capacity.energy_j - load.used.energy_j,
            load.capacity.watts_per_core,
            load.capacity.speed,
            now_s - load.at_s,
            load.waiting,
            load.left_s[0] if load.left_s else 0.0,
        )
        for load in loads.values()
    ]
    names = tuple(loads)
    columns = np.array(rows, np.float64).T.copy()
    return renewed(Sight._make((names, names.index(me), *columns, np.zeros(0), np.zeros(0))))


def renewed(sight: Sight) -> Sight:
    """Tell the network anew what is known, after a column was changed.

    Args:
        sight: of which `known` and `cluster` are out of date.

    Returns:
        The same with new ones.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return sight._replace(known=_known(sight), cluster=_cluster(sight))


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
) -> Decided:
    """Decide where the parts of a job should go.

    Args:
        params: of the network, see `SPEC`.
        job: the job.
        sight: what is known.
        now_s: by the clock of `job.born_s`.
        attempt: of the placement.
        session: of the daemon.
        masked: places that lack room, as far as is known, are not chosen.
        rng: draws from the policy; None takes the best.

    Returns:
        The proposal, with every other place ranked behind the chosen one, or None to wait.

    Raises:
        UsageError: the network is not one of `SPEC`.
    Source:
        one network over a varying number of choices: Mao et al. 2019 (arXiv 1810.01963), section 5.2.
    """
    return _walk(params, job, sight, now_s, masked, rng, attempt=attempt, session=session)


def retrace(
    params: Params, job: Job, sight: Sight, now_s: float, split: int, nodes: Sequence[str], *, masked: bool = True
) -> Decided:
    """The choices that lead to a placement somebody else found: a shield, or a planner to learn from.

    Args:
        params: of the network, for the probabilities.
        job: the job.
        sight: what was known.
        now_s: by the clock of `job.born_s`.
        split: of the job.
        nodes: one for each part; none for to wait.
        masked: as in `propose`; the choices of the placement are allowed in any case.

    Returns:
        The decision, as if the agent had taken it.

    Raises:
        UsageError: a node is not in sight, or the network is not one of `SPEC`.
    Source:
        ours.
    """
    if unseen := set(nodes) - set(sight.names):
        raise UsageError(f"job {job.id}: nodes {sorted(unseen)} are not among those in sight")
    rows = [sight.names.index(name) for name in nodes]
    return _walk(params, job, sight, now_s, masked, None, told=(split, rows))


def _walk(
    params: Params,
    job: Job,
    sight: Sight,
    now_s: float,
    masked: bool,
    rng: np.random.Generator | None,
    *,
    attempt: int = 0,
    session: int = 0,
    told: tuple[int, Sequence[int]] | None = None,
) -> Decided:
    """One choice after the other, until all parts have a place or the job waits; `told` makes the choices."""
    count = len(sight.names)
    choices: list[Choice] = []
    ranked: list[tuple[str, ...]] = []
    placed: list[int] = []
    chosen = 0
    choosy = now_s - job.born_s < WAIT_MAX_S
    while not placed or len(placed) < len(job.splits[chosen].parts):
        first = not placed
        features, fits = _describe(job, job.splits if first else (job.splits[chosen],), placed, sight, now_s)
        allowed = fits if masked else np.ones(len(fits), bool)
        if first:
            features = np.concatenate([features, _waiting(job, sight, now_s)])
            allowed = np.append(allowed, not fits.any() or now_s - job.born_s < WAIT_MAX_S)
        row = -1
        if told is not None:
            waits = len(features) - 1
            row = told[1][len(placed)] + (told[0] * count if first else 0) if told[1] else waits
            allowed[row] = True
        if not allowed.any():  # the parts placed so far took the last room
            return Decided(None, tuple(choices))
        places = (np.clip(features, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
        scores = score(params, places)
        row, log_prob = _draw(scores, allowed, rng, row)
        choices.append(Choice(places, allowed, row, log_prob))
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


def score(params: Params, places: U8) -> F32:
    """Score places.

    Args:
        params: of the network.
        places: (C, FEATURES) uint8.

    Returns:
        (C,) float32.

    Raises:
        UsageError: the network is not one of `SPEC`.
    Source:
        as `propose`.
    """
    return forward(params, places[:, None, None, :])[0][:, 0]


def taken(sight: Sight, proposal: Proposal) -> Sight:
    """What will be left when a proposal of one's own comes true.

    Args:
        sight: what is known.
        proposal: that was just made.

    Returns:
        The same, with less room.

    Raises:
        Nothing.
    Source:
        ours: an agent that places two jobs at once must not collide with itself.
    """
    cores, memory = sight.free_cores.copy(), sight.free_memory.copy()
    heat, energy = sight.heat.copy(), sight.energy.copy()
    split = proposal.job.splits[proposal.split]
    for part, name in zip(split.parts, proposal.nodes, strict=True):
        n = sight.names.index(name)
        cores[n] -= part.cores
        memory[n] -= part.memory_bytes
        heat[n] -= part.cores * sight.watts[n]
        energy[n] -= part.compute_core_s / sight.speed[n] * sight.watts[n] * proposal.job.steps
    return renewed(sight._replace(free_cores=cores, free_memory=memory, heat=heat, energy=energy))


class Fit(NamedTuple):
    """What the next part of each split would find at each node, each (S, N).

    Attributes:
        cores, memory, heat, energy: what would be left; below 0 it does not fit.
        step_s: a step of the job, the parts that are not placed yet taken to do alike.
        ship_s: until the part has begun.
    """

    cores: F64
    memory: F64
    heat: F64
    energy: F64
    step_s: F64
    ship_s: F64

    @property
    def fits(self) -> npt.NDArray[np.bool_]:
        """Where there is room, as far as is known; (S, N)."""
        return (self.cores >= 0) & (self.memory >= 0) & (self.heat >= 0) & (self.energy >= 0)


def estimate(job: Job, splits: Sequence[Split], placed: Sequence[int], sight: Sight) -> Fit:
    """How the next part would do on each node, as far as is known.

    Args:
        job: to place.
        splits: to look at; where parts are placed already, the one they are of.
        placed: the node of each part that is placed, by its index in `sight`.
        sight: what is known.

    Returns:
        See there.

    Raises:
        Nothing.
    Source:
        earliest finish time: Topcuoglu et al. 2002 (HEFT), section 4, with processors and links shared in equal parts.
    """
    k, me = len(placed), sight.me
    parts = [split.parts[k] for split in splits]
    free, memory, heat, energy = sight.free_cores, sight.free_memory, sight.heat, sight.energy
    for there, n in zip(splits[0].parts, placed, strict=False):
        free, memory, heat, energy = free.copy(), memory.copy(), heat.copy(), energy.copy()
        free[n] -= there.cores
        memory[n] -= there.memory_bytes
        heat[n] -= there.cores * sight.watts[n]
        energy[n] -= there.compute_core_s / sight.speed[n] * sight.watts[n] * job.steps
    cores = np.array([[part.cores] for part in parts])
    left = free - cores
    share = np.minimum(1.0, sight.cores / np.maximum(sight.cores - left, 1e-9))
    own_s = np.array([[part.compute_core_s] for part in parts]) / (sight.speed * share)
    link = np.maximum(sight.free_link, sight.link * _LINK_FLOOR) + 1e-9
    to_me = 1.0 / np.minimum(link, link[me])
    to_me[me] = 0.0
    step_s = np.empty_like(own_s)
    for i, split in enumerate(splits):
        rest = len(split.parts) - k
        moved, spent_s = np.zeros(len(link)), 0.0
        for (one, other), size in pairs(split).items():
            if one == HOST:
                if other == k:
                    moved = moved + size * to_me
                elif other < k:
                    spent_s += size * to_me[placed[other]]
            elif other == k:
                between = size / np.minimum(link, link[placed[one]])
                between[placed[one]] = 0.0
                moved = moved + between
            elif other < k and placed[one] != placed[other]:
                spent_s += size / min(link[placed[one]], link[placed[other]])
        others_s = [
            each.compute_core_s / (sight.speed[n] * min(1.0, sight.cores[n] / max(sight.cores[n] - free[n], 1e-9)))
            for each, n in zip(split.parts, placed, strict=False)
        ]
        if split.kind == "layers":
            step_s[i] = sum(others_s) + own_s[i] * rest + spent_s + moved * rest
        else:
            step_s[i] = np.maximum(own_s[i], max(others_s, default=0.0)) + spent_s + moved * rest
    ship_s = np.broadcast_to(job.ship_bytes * to_me + START_S / sight.speed, step_s.shape)
    room = memory - np.array([[part.memory_bytes] for part in parts])
    drawn_j = np.array([[part.compute_core_s] for part in parts]) / sight.speed * sight.watts * job.steps
    return Fit(left, room, heat - cores * sight.watts, energy - drawn_j, step_s, ship_s)


def _describe(
    job: Job, splits: Sequence[Split], placed: Sequence[int], sight: Sight, now_s: float
) -> tuple[F64, npt.NDArray[np.bool_]]:
    """All that is said of putting the next part of each split on each node: (S * N, FEATURES), and (S * N,) its fit."""
    k, count = len(placed), len(sight.names)
    fit = estimate(job, splits, placed, sight)
    columns = np.empty((len(splits), count, FEATURES))
    work_s = [sum(part.compute_core_s for part in split.parts) for split in splits]
    times = np.stack([(fit.step_s * job.steps + fit.ship_s) / 60.0, fit.step_s / np.array(work_s)[:, None]], axis=2)
    columns[:, :, 0:2] = _log(times)
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
    columns[:, :, 21:] = _circumstances(job, sight, now_s)
    return columns.reshape(-1, FEATURES), fit.fits.reshape(-1)


def _known(sight: Sight) -> F64:
    """What is said of each node whatever the job: (N, 7)."""
    columns = np.zeros((len(sight.names), 7))
    columns[:, 0] = _log(sight.speed)
    columns[:, 1] = sight.free_link / np.maximum(sight.link, 1.0)
    columns[sight.me, 2] = 1.0
    columns[:, 3] = sight.age_s / 30.0
    columns[:, 4] = sight.waiting / 8.0
    columns[:, 5] = sight.soonest_s / 120.0
    columns[:, 6] = sight.memory / 4e9
    return columns


def _cluster(sight: Sight) -> F64:
    """What is said of all nodes together: (4,)."""
    room = np.maximum(sight.free_cores, 0.0)
    fast = sight.speed >= np.median(sight.speed)
    return np.array(
        [
            (sight.speed * room).sum() / max(float((sight.speed * sight.cores).sum()), 1e-9),
            room[fast].sum() / max(float(sight.cores[fast].sum()), 1e-9),
            float(sight.waiting.mean()) / 2.0,
            float(sight.waiting[sight.me]) / 4.0,
        ]
    )


def _circumstances(job: Job, sight: Sight, now_s: float) -> F64:
    """What is the same for all places: (7,)."""
    work_s = sum(part.compute_core_s for part in job.splits[0].parts) * job.steps
    waited_s = max(0.0, now_s - job.born_s)
    own = [float(_log(work_s / 60.0)), *sight.cluster, waited_s / 120.0, job.ship_bytes / 2e7]
    return np.array(own)


def _waiting(job: Job, sight: Sight, now_s: float) -> F64:
    """To wait, as a place: (1, FEATURES)."""
    return np.concatenate([np.zeros(20), [1.0], _circumstances(job, sight, now_s)])[None]


def _log(x: F64 | float) -> F64:
    return np.asarray(np.clip(0.5 + 0.5 * np.log(np.maximum(x, 1e-9)) / _LOG_SPAN, 0.0, 1.0), np.float64)


def _softmax(scores: F32 | F64, allowed: npt.NDArray[np.bool_]) -> F64:
    x = np.where(allowed, scores.astype(np.float64), -np.inf)
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum(), np.float64)


def _draw(scores: F32, allowed: npt.NDArray[np.bool_], rng: np.random.Generator | None, row: int) -> tuple[int, float]:
    """A row by its probability, the best without dice, or the given one if not negative; and its logarithm."""
    prob = _softmax(scores, allowed)
    if row < 0 and rng is None:
        row = int(prob.argmax())
    elif row < 0 and rng is not None:
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
    scores = score(params, places)
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
