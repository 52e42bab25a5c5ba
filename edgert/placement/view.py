"""What a device knows of the nodes that it may use, and how a part of a job would do on each, as far as is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.placement.jobs import HOST, Job, Proposal, Split, pairs
from edgert.placement.load import Load

START_S = 0.7
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


def completion(job: Job, splits: Sequence[Split], placed: Sequence[int], fit: Fit, *, masked: bool = True) -> F64:
    """How long the whole job would take with the next part at each node and the rest where it would do best.

    Args:
        job: to place.
        splits: to look at, as for `estimate`.
        placed: as for `estimate`.
        fit: that `estimate` found.
        masked: what does not fit is not done; else processors are shared.

    Returns:
        (S, N) seconds; infinite where there is no room for the rest.

    Raises:
        Nothing.
    Source:
        ours: a look-ahead of one job by the same cost model. Parts that work on shares of a batch are alike, so the
        rest takes the quickest free cores; a chain is taken to do alike at every node.
    """
    takes_s = fit.step_s * job.steps + fit.ship_s
    open_ = fit.fits if masked else np.ones_like(fit.fits)
    whole_s = np.where(open_, takes_s, np.inf)
    for i, split in enumerate(splits):
        rest = len(split.parts) - len(placed) - 1
        if rest <= 0 or split.kind != "data":
            continue
        part = split.parts[len(placed)]
        free = np.minimum(fit.cores[i] / max(part.cores, 1e-9), fit.memory[i] / max(part.memory_bytes, 1.0)) + 1 + 1e-9
        slots = np.where(open_[i], np.maximum(np.floor(free), 1.0), 0.0)
        order = np.argsort(whole_s[i], kind="stable")
        reach, sorted_s = np.cumsum(slots[order]), np.append(whole_s[i][order], np.inf)
        last, beyond = np.searchsorted(reach, (rest, rest + 1))
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        others_s = np.where(position <= last, sorted_s[beyond], sorted_s[last])
        whole_s[i] = np.maximum(whole_s[i], others_s)
    return whole_s


class Prospect(NamedTuple):
    """What a job could hope for.

    Attributes:
        ideal_s: it would take at the best place if nothing else ran anywhere.
        later_s: until its end if it waits for the first parts of others to end and goes there; infinite if none runs.
    """

    ideal_s: float
    later_s: float


def prospect(job: Job, sight: Sight) -> Prospect:
    """How long a job would take at best, and how long if it waited for room.

    Args:
        job: to place.
        sight: what is known.

    Returns:
        See there.

    Raises:
        Nothing.
    Source:
        ours: what a place is worth, and what waiting is, shows only beside what could be had.
    """
    empty = sight._replace(free_cores=sight.cores, free_memory=sight.memory, free_link=sight.link)
    fit = estimate(job, job.splits, (), empty)
    taken_s = (fit.step_s * job.steps + fit.ship_s).min(0)
    freed_s = np.maximum(0.0, sight.soonest_s - sight.age_s)
    later_s = np.where(sight.soonest_s > 0, freed_s + taken_s, np.inf)
    return Prospect(max(float(taken_s.min()), 1e-6), float(later_s.min()))


def _known(sight: Sight) -> F64:
    """What is said of each node whatever the job: (N, 7)."""
    columns = np.zeros((len(sight.names), 7))
    columns[:, 0] = scaled_log(sight.speed)
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


def scaled_log(x: F64 | float) -> F64:
    """A ratio or a time as a feature.

    Args:
        x: 0 or more; any shape.

    Returns:
        0..1, one half for 1; `x` = 1/64 and 64 fill the range.

    Raises:
        Nothing.
    Source:
        ours: what jobs and boards differ by are factors.
    """
    return np.asarray(np.clip(0.5 + 0.5 * np.log(np.maximum(x, 1e-9)) / _LOG_SPAN, 0.0, 1.0), np.float64)
