"""The shield: looks at what several agents want at once, and changes only what would overload a node.

What fits is granted untouched. Where choices collide, the fewest parts move, each as far up its own agent's list as
possible: an exact search, whose work is bounded, over the parts of the collision, and over all that is pending where
that is not enough. Where it is proven, or not disproved in the allowed work, that not everything has room, jobs get it
in the order of their urgency and the others wait, with the reason named. What was granted before never moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgert.placement import jobs
from edgert.placement.jobs import HOST, Outcome, Proposal, Reason, Verdict
from edgert.placement.load import RESOURCES, Capacity, Resources

WORK = 150
"""Placements of a part that one judgement may try, beyond those proposed; with traffic, a try takes 5 microseconds."""
UNRANKED = 2.0
"""What it costs to move a part to a node its agent did not name: twice a node it did name."""

_SAME = 1e-9  # of two costs
_NOWHERE = -1
_FOREIGN = -2  # an owner that no shield here keeps the books of
_SLACK_FRAC = 1e-10  # of a limit: what fits exactly must fit, though its sum was made in another order; see `overloads`


class Room(msgspec.Struct, frozen=True):
    """A node as the shield knows it: what placed work may take, and what is taken or promised."""

    capacity: Capacity
    used: Resources = Resources()


class _Part:
    """A part whose place is wanted; `peers` are (index into the board's parts or `HOST`, bytes of a step)."""

    def __init__(self, job: int, k: int, proposal: Proposal, at: Mapping[str, int]) -> None:
        split = proposal.job.splits[proposal.split]
        part = split.parts[k]
        self.job, self.k, self.layers = job, k, split.kind == "layers"
        self.cores, self.memory, self.core_s = part.cores, part.memory_bytes, part.compute_core_s
        self.steps = proposal.job.steps
        self.owner = at.get(proposal.job.owner, _FOREIGN)
        self.wanted = at.get(proposal.nodes[k], _NOWHERE)
        self.ranked: Sequence[str] = proposal.ranked[k] if k < len(proposal.ranked) else ()
        self.choosy = proposal.choosy
        self.peers: list[tuple[int, float]] = []
        self.order: list[tuple[float, int]] = []


class _Board:
    """What is left of every node while parts are put and taken back."""

    def __init__(self, nodes: Mapping[str, Room]) -> None:
        self.names = list(nodes)
        self.at = {name: n for n, name in enumerate(self.names)}
        slack, endless = 1 + _SLACK_FRAC, float("inf")
        rooms = [(room.capacity, room.used) for room in nodes.values()]
        self.cpu = [own.cores * slack - used.cores for own, used in rooms]
        self.memory = [own.memory_bytes * slack - used.memory_bytes for own, used in rooms]
        self.link = [own.link_bytes_per_s * slack - used.link_bytes_per_s for own, used in rooms]
        self.joule = [endless if own.energy_j is None else own.energy_j * slack - used.energy_j for own, used in rooms]
        self.heat = [endless if own.heat_w is None else own.heat_w * slack - used.heat_w for own, used in rooms]
        self.speed = [own.speed for own, _ in rooms]
        self.watts = [own.watts_per_core for own, _ in rooms]
        self.parts: list[_Part] = []
        self.where: list[int] = []
        self.trail: list[tuple[int, int, float, float, float, float, list[tuple[int, float]]]] = []
        self.tries = 0

    def add(self, job: int, proposal: Proposal) -> range:
        """Take the parts of a proposal on, none of them placed."""
        first = len(self.parts)
        split = proposal.job.splits[proposal.split]
        for k in range(len(split.parts)):
            self.parts.append(_Part(job, k, proposal, self.at))
            self.where.append(_NOWHERE)
        for (one, other), size in jobs.pairs(split).items():
            self.parts[first + other].peers.append((HOST if one == HOST else first + one, size))
            if one != HOST:
                self.parts[first + one].peers.append((first + other, size))
        return range(first, len(self.parts))

    def candidates(self, v: int) -> list[tuple[float, int]]:
        """(cost, node) of every node that has room, the cheapest first; traffic is not looked at."""
        p = self.parts[v]
        if not p.order:
            p.order = self._order(p)
        cpu, memory, cores, size = self.cpu, self.memory, p.cores, p.memory
        return [each for each in p.order if cpu[each[1]] >= cores and memory[each[1]] >= size]

    def _order(self, p: _Part) -> list[tuple[float, int]]:
        """(cost, node) of every node that it would go to, the cheapest first; the wanted one costs nothing."""
        at, seen, wanted = self.at, bytearray(len(self.names)), p.wanted
        order: list[tuple[float, int]] = []
        if wanted >= 0:
            order.append((0.0, wanted))
            seen[wanted] = 1
        step = 1.0 / (len(self.names) + 1)
        cost = 1.0
        for name in p.ranked:
            n = at.get(name, _NOWHERE)
            if n >= 0 and not seen[n]:
                seen[n] = 1
                order.append((cost, n))
                cost += step
        if not p.choosy:
            order.extend((UNRANKED, n) for n in range(len(self.names)) if not seen[n])
        return order

    def traffic(self, p: _Part, n: int, peer: int, m: int, size: float) -> float:
        """Bytes a second between a part on `n` and its peer on `m`; see `jobs.traffic`."""
        least_s = p.core_s / self.speed[n]
        if peer != HOST:
            other_s = self.parts[peer].core_s / self.speed[m]
            least_s = least_s + other_s if p.layers else max(least_s, other_s)
        return size / least_s if least_s > 0 else float("inf")

    def put(self, v: int, n: int, *, forced: bool = False) -> bool:
        """Place a part, unless something would be overloaded; `forced` places it all the same."""
        self.tries += not forced
        p = self.parts[v]
        if not forced and (self.cpu[n] < p.cores or self.memory[n] < p.memory):
            return False
        watts = self.watts[n]
        energy_j, heat_w = watts * p.core_s / self.speed[n] * p.steps, watts * p.cores
        if not forced and (self.joule[n] < energy_j or self.heat[n] < heat_w):
            return False
        links: list[tuple[int, float]] = []
        if p.peers:
            link, fits = self.link, True
            for peer, size in p.peers:
                m = p.owner if peer == HOST else self.where[peer]
                if m in (n, _NOWHERE):
                    continue
                moved = self.traffic(p, n, peer, m, size)
                for end in (n,) if m == _FOREIGN else (n, m):
                    links.append((end, link[end]))
                    link[end] -= moved
                    fits = fits and link[end] >= 0
            if not fits and not forced:
                for end, was in reversed(links):
                    link[end] = was
                return False
        self.trail.append((v, n, self.cpu[n], self.memory[n], self.joule[n], self.heat[n], links))
        self.cpu[n] -= p.cores
        self.memory[n] -= p.memory
        self.joule[n] -= energy_j
        self.heat[n] -= heat_w
        self.where[v] = n
        return True

    def take(self) -> None:
        """Undo the last `put` that placed something, to the last bit."""
        v, n, self.cpu[n], self.memory[n], self.joule[n], self.heat[n], links = self.trail.pop()
        for end, was in reversed(links):
            self.link[end] = was
        self.where[v] = _NOWHERE

    def back_to(self, depth: int) -> None:
        """Undo until `depth` placements are left."""
        while len(self.trail) > depth:
            self.take()

    def lacks(self) -> dict[int, list[str]]:
        """Which nodes are overloaded now, and of what."""
        found: dict[int, list[str]] = {}
        for name, column in zip(RESOURCES, (self.cpu, self.memory, self.link, self.joule, self.heat), strict=True):
            for n, left in enumerate(column):
                if left < 0:
                    found.setdefault(n, []).append(name)
        return found

    def fits_alone(self, v: int) -> bool:
        """Whether some node has room for this part and for nothing else that is pending; links are not looked at."""
        p = self.parts[v]
        work = p.core_s * p.steps
        if p.choosy:
            p.order = p.order or self._order(p)
            nodes: Sequence[int] = [n for _, n in p.order]
        else:
            nodes = range(len(self.names)) if p.wanted < 0 else (p.wanted, *range(len(self.names)))
        return any(
            self.cpu[n] >= p.cores
            and self.memory[n] >= p.memory
            and self.joule[n] >= self.watts[n] * work / self.speed[n]
            and self.heat[n] >= self.watts[n] * p.cores
            for n in nodes
        )


def _search(board: _Board, variables: Sequence[int], work: int) -> tuple[list[int] | None, bool]:
    """The cheapest way to place these parts: (a node for each, or None; whether nothing was left untried)."""
    best: list[int] | None = None
    best_cost = float("inf")
    end, depth, last = board.tries + work, len(board.trail), len(variables)
    cost = [0.0] * (last + 1)
    left = [iter(board.candidates(variables[0]))]
    while left:
        level = len(left) - 1
        for price, n in left[-1]:
            if cost[level] + price >= best_cost - _SAME:
                left[-1] = iter(())
                break
            if board.tries >= end:
                board.back_to(depth)
                return best, False
            if board.put(variables[level], n):
                cost[level + 1] = cost[level] + price
                if level + 1 < last:
                    left.append(iter(board.candidates(variables[level + 1])))
                else:
                    best, best_cost = [board.where[v] for v in variables], cost[last]
                    board.take()
                    if best_cost <= 0:
                        left = []
                break
        else:
            left.pop()
            if left:
                board.take()
    board.back_to(depth)
    return best, True


def _place(board: _Board, variables: Sequence[int], nodes: Sequence[int] | None = None) -> None:
    """Put parts where they are known to fit, or where it is to be seen whether they do: where they want to be."""
    for v, n in zip(variables, [board.parts[v].wanted for v in variables] if nodes is None else nodes, strict=True):
        board.put(v, n, forced=True)


def _hardest_first(board: _Board, variables: Sequence[int]) -> list[int]:
    """Large parts first: what is small finds a place later."""
    cpu = max(max(board.cpu), 1e-9)
    memory = max(max(board.memory), 1e-9)
    parts = board.parts
    return sorted(variables, key=lambda v: (-max(parts[v].cores / cpu, parts[v].memory / memory), v))


def _jointly(board: _Board, pending: Sequence[int], work: int) -> tuple[bool, bool]:
    """Place all parts that are pending: (done, whether it was proven when it was not)."""
    parts = board.parts
    free_cpu, free_memory = (sum(x for x in column if x > 0) for column in (board.cpu, board.memory))
    if sum(parts[v].cores for v in pending) > free_cpu or sum(parts[v].memory for v in pending) > free_memory:
        return False, True
    if all(parts[v].wanted >= 0 for v in pending):
        _place(board, pending)
        crowded = board.lacks()
        if not crowded:
            return True, True
        board.back_to(0)
        _place(board, [v for v in pending if parts[v].wanted not in crowded])
        rest = _hardest_first(board, [v for v in pending if parts[v].wanted in crowded])
        found = None if board.lacks() else _search(board, rest, work // 2)[0]
        if found is not None:
            _place(board, rest, found)
            return True, True
        board.back_to(0)
    variables = _hardest_first(board, pending)
    found, complete = _search(board, variables, work // 2)
    if found is None:
        return False, complete
    _place(board, variables, found)
    return True, True


def judge(proposals: Sequence[Proposal], nodes: Mapping[str, Room], *, work: int = WORK) -> list[Verdict]:
    """Let through what fits together, and change as little as possible of what does not.

    Args:
        proposals: of one window; of two for one job, the one with the newer attempt counts.
        nodes: all that parts may go to, with what is taken of them already.
        work: placements of parts that may be tried beyond those proposed: half of them until the parts of the collision
            and then all parts fit together, and as many again, in all, for one job after the other when they do not.

    Returns:
        A verdict each, in the same order. Placed as they say, no node's capacity is exceeded in any resource, unless
        `nodes` said already that it is. A job waits only with a reason: `no_room` is proven, of the job alone or of all
        jobs together; `search_limit` is not.

    Raises:
        UsageError: never; a proposal that contradicts itself is deferred.
    Source:
        minimal interference: Alshiekh et al. 2018 (arXiv 1708.08611), section 5; shields over joint choices that
        substitute a part of them: SROLE (arXiv 2206.00774), abstract. The search: branch and bound, ours.
    """
    latest: dict[str, int] = {}
    verdicts: list[Verdict | None] = [None] * len(proposals)
    for i, proposal in enumerate(proposals):
        other = latest.get(proposal.job.id)
        newer = other is None or proposals[other].attempt < proposal.attempt
        if other is not None:
            old = other if newer else i
            verdicts[old] = _deferred(proposals[old], [Reason("superseded")])
        if newer:
            latest[proposal.job.id] = i
    live: list[int] = []
    for i in latest.values():
        proposal = proposals[i]
        if (
            not nodes
            or proposal.split >= len(proposal.job.splits)
            or len(proposal.nodes) != len(proposal.job.splits[proposal.split].parts)
        ):
            verdicts[i] = _deferred(proposal, [Reason("unknown_node" if nodes else "no_room")])
        else:
            live.append(i)
    if live:
        for i, verdict in _judge(proposals, live, nodes, work).items():
            verdicts[i] = verdict
    return [verdict for verdict in verdicts if verdict is not None]


def _judge(
    proposals: Sequence[Proposal], live: Sequence[int], nodes: Mapping[str, Room], work: int
) -> dict[int, Verdict]:
    board = _Board(nodes)
    variables = {i: board.add(i, proposals[i]) for i in live}
    fitting: list[int] = []
    verdicts: dict[int, Verdict] = {}
    for i in live:
        without = [v for v in variables[i] if not board.fits_alone(v)]
        if without:
            verdicts[i] = _deferred(proposals[i], [_why(board, proposals[i], v, "no_room") for v in without])
        else:
            fitting.append(i)
    pending = [v for i in fitting for v in variables[i]]
    done, proven = _jointly(board, pending, work) if pending else (True, True)
    if not done:
        left, parts = work, board.parts
        waiting = sorted(fitting, key=lambda i: (proposals[i].urgency_s, proposals[i].job.born_s, proposals[i].job.id))
        for i in waiting:
            depth, spent = len(board.trail), board.tries
            if all(parts[v].wanted >= 0 and board.put(v, parts[v].wanted) for v in variables[i]):
                continue
            board.back_to(depth)
            board.tries = spent
            found, complete = _search(board, variables[i], min(left, work // 4))
            left -= board.tries - spent
            if found is None:
                name = "no_room" if proven or (complete and not board.trail) else "search_limit"
                reasons = [Reason(name), *(_why(board, proposals[i], v, name) for v in variables[i])]
                verdicts[i] = _deferred(proposals[i], [each for each in reasons if each.name != name or not each.node])
            else:
                _place(board, variables[i], found)
    for i in fitting:
        if i not in verdicts:
            verdicts[i] = _granted(board, proposals[i], variables[i])
    return verdicts


def _deferred(proposal: Proposal, reasons: Sequence[Reason]) -> Verdict:
    return Verdict(
        job=proposal.job.id,
        attempt=proposal.attempt,
        outcome="deferred",
        split=proposal.split,
        reasons=tuple(reasons),
    )


def _granted(board: _Board, proposal: Proposal, variables: range) -> Verdict:
    nodes = tuple(board.names[board.where[v]] for v in variables)
    reasons = [_why(board, proposal, v, "link") for v in variables if board.where[v] != board.parts[v].wanted]
    outcome: Outcome = "moved" if reasons else "granted"
    return Verdict(
        job=proposal.job.id,
        attempt=proposal.attempt,
        outcome=outcome,
        split=proposal.split,
        nodes=nodes,
        reasons=tuple(reasons),
    )


def _why(board: _Board, proposal: Proposal, v: int, otherwise: str) -> Reason:
    """What the node that was wanted lacks for this part, as things stand."""
    p = board.parts[v]
    if p.wanted < 0:
        return Reason("unknown_node", p.k, proposal.nodes[p.k])
    n = p.wanted
    watts = board.watts[n]
    needs = (p.cores, p.memory, 0.0, watts * p.core_s / board.speed[n] * p.steps, watts * p.cores)
    rooms = (board.cpu[n], board.memory[n], board.link[n], board.joule[n], board.heat[n])
    for name, need, room in zip(RESOURCES, needs, rooms, strict=True):
        if need > room:
            return Reason(name, p.k, board.names[n], need, max(0.0, room))
    return Reason(otherwise, p.k, board.names[n])
