"""An episode: jobs arrive, agents decide in windows on what they know, a shield or none judges, a world runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np

from edgert.placement import jobs, view
from edgert.placement import shield as shields
from edgert.placement.agent import Choice
from edgert.placement.jobs import HOST, Job, Proposal, Verdict
from edgert.placement.load import Load, Resources, overloads, total
from edgert.placement.protocol import Region, regions_of
from edgert.placement.shield import Room
from edgert.placement.view import Sight
from tools.bench.srole.boards import Node
from tools.bench.srole.fluid import Ended, Fluid, Start
from tools.bench.srole.policies import Decide

A_WINDOW = 8  # proposals that a device makes in one window at most, for its shortest jobs
MESSAGE_S = 0.01  # one way through the broker of a local network, several times what was measured
OOM_S = 3.0  # until a process has touched the memory that it does not get, and is killed
DOWN_S = 7.0  # of silence, until another device takes a dead shield's region over
BEAT_S = 2.0  # between two reports of a node and two signs of life of a shield, where staleness asks for no more


Judge: TypeAlias = Callable[..., list[Verdict]]
"""`shield.judge`, or something that looks on."""


class World(Protocol):
    """What runs the jobs."""

    now_s: float

    def start(self, start: Start) -> None: ...  # noqa: D102 - as in Fluid
    def stop(self, job: str) -> float: ...  # noqa: D102
    def left_s(self, job: str) -> float: ...  # noqa: D102
    def advance(self, until_s: float) -> list[Ended]: ...  # noqa: D102


class Setting(NamedTuple):
    """How an episode is played.

    Attributes:
        shield: none, `C`: one for all, `D`: one a region.
        window_s: between two rounds of decisions.
        stale_s: between two reports of a node.
        central: one head decides for all, one job after the other, and knows what it decided.
        charge: decisions cost the time they take here, on a core as slow as the board's.
        measured: use and overload are sampled, every window until the last job came.
        work: of one judgement.
        regions: of D.
        dies_every_s: so often the device that judges loses its power; infinite: never.
    """

    shield: str = "none"
    window_s: float = 5.0
    stale_s: float = 10.0
    central: bool = False
    charge: bool = False
    measured: bool = False
    work: int = shields.WORK
    regions: tuple[Region, ...] = ()
    dies_every_s: float = np.inf


class Made(NamedTuple):
    """A decision and what it was for: for the learner."""

    at_s: float
    job: str
    choices: tuple[Choice, ...]


class Played(NamedTuple):
    """What came of an episode.

    Attributes:
        times_s: job -> from its arrival to its end.
        done_s: when the last one ended.
        counts: see `_Episode.counts`.
        use: resource -> use of each node, as a share of what is offered, sampled every window.
        made: decisions.
        in_system: (time, jobs that wait or run) at every window.
        judge_ms: of each judgement.
        decide_ms: of each decision.
        spans: job -> when it was placed last, and when it ended.
        starts: (when, what was started), for a comparison of worlds; those that were killed are not among them.
    """

    times_s: dict[str, float]
    done_s: float
    counts: dict[str, float]
    use: dict[str, list[float]]
    made: list[Made]
    in_system: list[tuple[float, int]]
    judge_ms: list[float]
    decide_ms: list[float]
    spans: dict[str, tuple[float, float]]
    starts: list[tuple[float, Start]]


class _Episode:
    def __init__(self, nodes: list[Node], queue: list[Job], world: World, setting: Setting, rng: np.random.Generator):
        self.nodes, self.world, self.setting, self.rng = nodes, world, setting, rng
        self.index = {node.name: n for n, node in enumerate(nodes)}
        self.capacities = {node.name: node.capacity for node in nodes}
        self.coming = sorted(queue, key=lambda job: job.born_s)
        self.waiting: dict[str, list[Job]] = {node.name: [] for node in nodes}
        self.attempts: dict[str, int] = {}
        self.held: dict[str, dict[str, list[tuple[int, Resources]]]] = {}
        self.placed: dict[str, Proposal] = {}
        self.used = {node.name: Resources() for node in nodes}
        self.spent_j = {node.name: 0.0 for node in nodes}
        self.reports: dict[str, Load] = {}
        self.phase = rng.random(len(nodes))
        self.told: dict[str, dict[str, Load]] = {}
        self.killed: list[tuple[float, Job]] = []
        self.times_s: dict[str, float] = {}
        self.counts = dict.fromkeys(
            (
                "decisions", "waits", "placements", "interventions", "moved_parts", "deferred", "search_limit",
                "collisions", "wanted_collisions", "overloads", "overload_node_s", "killed", "refused", "messages",
                "messages_max", "alone",
            ),
            0.0,
        )  # fmt: skip
        self.by_shield: dict[str, float] = {}
        self.use: dict[str, list[float]] = {"cpu": [], "memory": [], "link": []}
        self.made: list[Made] = []
        self.in_system: list[tuple[float, int]] = []
        self.judge_ms: list[float] = []
        self.decide_ms: list[float] = []
        self.spans: dict[str, tuple[float, float]] = {}
        self.starts: list[tuple[float, Start]] = []

    def load(self, name: str, now_s: float) -> Load:
        left = sorted(self.world.left_s(job) for job, held in self.held.items() if name in held)
        capacity = self.capacities[name]
        return Load(
            node=name,
            session=1,
            seq=0,
            at_s=now_s,
            capacity=capacity,
            used=self.used[name],
            waiting=len(self.waiting[name]),
            left_s=tuple(left[:1]),
        )

    def report(self, now_s: float) -> None:
        stale_s = max(self.setting.stale_s, 1e-9)
        for n, node in enumerate(self.nodes):
            ticks = [np.floor(at_s / stale_s + self.phase[n]) for at_s in (now_s, now_s - self.setting.window_s)]
            fresh = node.name not in self.reports or self.setting.stale_s <= 0 or ticks[0] != ticks[1]
            if fresh:
                self.reports[node.name] = self.load(node.name, now_s)

    def room(self, name: str) -> float:
        """Bytes that a node can hold, with what it pages."""
        node = self.nodes[self.index[name]]
        return node.memory_bytes + node.swap_bytes

    def resum(self, names: set[str]) -> None:
        for name in names:
            self.used[name] = total([amount for held in self.held.values() for _, amount in held.get(name, ())])

    def end(self, job: str, now_s: float) -> None:
        held = self.held.pop(job)
        for name, amounts in held.items():
            capacity = self.capacities[name]
            if capacity.energy_j is not None:
                spent = sum(amount.energy_j for _, amount in amounts)
                self.spent_j[name] += spent
                self.capacities[name] = msgspec.structs.replace(capacity, energy_j=max(0.0, capacity.energy_j - spent))
        self.resum(set(held))
        del self.placed[job]

    def begin(self, proposal: Proposal, nodes: tuple[str, ...], now_s: float, delay_s: float) -> None:
        job = proposal.job
        held = jobs.footprint(proposal, nodes, self.capacities)
        self.held[job.id] = held
        self.placed[job.id] = proposal
        self.resum(set(held))
        self.counts["placements"] += 1
        full = any(self.used[name].memory_bytes > self.room(name) for name in held)
        if full or any("battery" in overloads(self.capacities[name], self.used[name]) for name in held):
            # The kernel, or the device's own governor, does not let it run.
            self.end(job.id, now_s)
            self.killed.append((now_s + OOM_S + delay_s, job))
            self.counts["killed"] += 1
            self.counts["overloads"] += 1
            return
        start = as_start(self.nodes, self.index, proposal, nodes, delay_s)
        self.world.start(start)
        self.starts.append((now_s, start))
        self.spans[job.id] = (now_s, 0.0)

    def crowded(self, placements: list[tuple[Proposal, tuple[str, ...]]]) -> tuple[int, int]:
        """Nodes that these overload: (that each alone would not, all)."""
        extra: dict[str, list[tuple[str, Resources]]] = {}
        for proposal, nodes in placements:
            for name, held in jobs.footprint(proposal, nodes, self.capacities).items():
                amount = total([each for _, each in held])
                extra.setdefault(name, []).append((proposal.job.owner, amount))
        joint = every = 0
        for name, amounts in extra.items():
            capacity, used = self.capacities[name], self.used[name]
            if overloads(capacity, total([used, *(amount for _, amount in amounts)])):
                every += 1
                alone = any(overloads(capacity, total([used, amount])) for _, amount in amounts)
                joint += not alone and len({owner for owner, _ in amounts}) > 1
        return joint, every


def as_start(
    nodes: list[Node], index: dict[str, int], proposal: Proposal, names: tuple[str, ...], delay_s: float
) -> Start:
    """A placed job as a world runs it: its parts where they are, and what they exchange between nodes."""
    job = proposal.job
    split = job.splits[proposal.split]
    at, owner = [index[name] for name in names], index[job.owner]
    flows = []
    for (one, other), size in jobs.pairs(split).items():
        a, b = owner if one == HOST else at[one], at[other]
        if a != b:
            flows.append((a, b, size))
    ship_s = 0.0
    for n in at:
        link = min(nodes[n].link_bytes_per_s, nodes[owner].link_bytes_per_s)
        began_s = view.START_S / nodes[n].speed + (0.0 if n == owner else job.ship_bytes / link)
        ship_s = max(ship_s, began_s)
    parts = tuple(
        (n, part.compute_core_s, part.cores, part.memory_bytes) for n, part in zip(at, split.parts, strict=True)
    )
    return Start(job.id, split.kind == "layers", job.steps, parts, tuple(flows), delay_s + ship_s)


def alone(nodes: list[Node], proposal: Proposal) -> float:
    """How long a job takes where it is proposed, with nothing else anywhere."""
    world = Fluid(nodes)
    world.start(as_start(nodes, {node.name: n for n, node in enumerate(nodes)}, proposal, proposal.nodes, 0.0))
    return world.advance(1e7)[0].at_s


def play(
    nodes: list[Node],
    queue: list[Job],
    decide: Decide,
    world: World,
    setting: Setting,
    rng: np.random.Generator,
    *,
    limit_s: float = 1e5,
    judge: Judge = shields.judge,
) -> Played:
    """Play until every job is done."""
    e = _Episode(nodes, queue, world, setting, rng)
    count, t, head_free_s = len(queue), 0.0, 0.0
    while len(e.times_s) < count and t < limit_s:
        for ended in world.advance(t):
            born_s = e.placed[ended.id].job.born_s
            e.times_s[ended.id] = ended.at_s - born_s
            e.spans[ended.id] = (e.spans[ended.id][0], ended.at_s)
            e.end(ended.id, ended.at_s)
        while e.coming and e.coming[0].born_s <= t:
            job = e.coming.pop(0)
            e.waiting[job.owner].append(job)
        for at_s, job in [each for each in e.killed if each[0] <= t]:
            e.killed.remove((at_s, job))
            e.waiting[job.owner].append(job)
        e.report(t)
        asked: list[tuple[Proposal, float]] = []
        sights: dict[str, Sight] = {}
        central = view.look(nodes[0].name, {n.name: e.load(n.name, t) for n in nodes}, t) if setting.central else None
        for node in nodes:
            mine = sorted(e.waiting[node.name], key=lambda job: jobs.urgency(job, 0, t))
            for job in mine[:A_WINDOW]:
                if central is not None:
                    sight = central._replace(me=e.index[node.name])
                    sight = view.renewed(sight)
                else:
                    if node.name not in sights:
                        near = regions_of(setting.regions, node.name)[:1]
                        known = {name: e.reports[name] for name in (near[0].members if near else e.index)}
                        for name, load in e.told.get(node.name, {}).items():
                            if load.at_s > known[name].at_s:
                                known[name] = load
                        known[node.name] = e.load(node.name, t)
                        sights[node.name] = view.look(node.name, known, t)
                    sight = sights[node.name]
                attempt = e.attempts[job.id] = e.attempts.get(job.id, -1) + 1
                began = time.thread_time()
                decided = decide(job, sight, t, attempt, rng)
                took_s = time.thread_time() - began
                e.decide_ms.append(took_s * 1e3)
                e.counts["decisions"] += 1
                if decided.choices:
                    e.made.append(Made(t, job.id, decided.choices))
                if decided.proposal is None:
                    e.counts["waits"] += 1
                    continue
                seen = view.taken(sight, decided.proposal)
                speed = node.speed
                if central is not None:
                    central, speed = seen, max(each.speed for each in nodes)
                else:
                    sights[node.name] = seen
                delay_s = 0.0
                if setting.charge:
                    if central is not None:
                        head_free_s = max(head_free_s, t) + took_s / speed
                        delay_s = head_free_s - t + 2 * MESSAGE_S
                    else:
                        delay_s = took_s / speed + MESSAGE_S
                asked.append((decided.proposal, delay_s))
        e.in_system.append((t, sum(map(len, e.waiting.values())) + len(e.placed) + len(e.killed)))
        _resolve(e, asked, t, judge)
        if setting.measured and e.coming:
            for node in nodes:
                used = e.used[node.name]
                e.use["cpu"].append(used.cores / node.cores)
                e.use["memory"].append(used.memory_bytes / node.memory_bytes)
                e.use["link"].append(used.link_bytes_per_s / node.link_bytes_per_s)
                over = overloads(e.capacities[node.name], used)
                e.counts["overload_node_s"] += setting.window_s * bool(over)
        t += setting.window_s
        if not asked and not any(e.waiting.values()) and e.coming and not e.placed and not e.killed:
            t = max(t, np.floor(e.coming[0].born_s / setting.window_s) * setting.window_s)
    windows = t / setting.window_s
    if setting.shield == "C":
        e.by_shield[""] = e.by_shield.get("", 0.0) + len(nodes) * t / max(setting.stale_s, BEAT_S)
    for region in setting.regions:
        e.by_shield[region.name] = e.by_shield.get(region.name, 0.0) + 2 * len(region.members) * t / max(
            setting.stale_s, BEAT_S
        )
    if e.by_shield:
        e.counts["messages"] = float(np.mean(list(e.by_shield.values())))
        e.counts["messages_max"] = max(e.by_shield.values())
    e.counts["windows"] = windows
    unfinished = [proposal.job for proposal in e.placed.values()] + [job for _, job in e.killed] + e.coming
    for job in (*unfinished, *(job for each in e.waiting.values() for job in each)):
        e.times_s[job.id] = max(setting.window_s, t - job.born_s)
    return Played(e.times_s, t, e.counts, e.use, e.made, e.in_system, e.judge_ms, e.decide_ms, e.spans, e.starts)


def replay(starts: list[tuple[float, Start]], world: World) -> dict[str, float]:
    """Run the same placements at the same times in another world; gives when each job ended."""
    ends: dict[str, float] = {}
    for at_s, start in starts:
        ends.update({ended.id: ended.at_s for ended in world.advance(at_s)})
        world.start(start)
    ends.update({ended.id: ended.at_s for ended in world.advance(1e6)})
    return ends


def _alone(e: _Episode, asked: list[Proposal], t: float, delays: dict[str, float]) -> None:
    """Nobody judges: a device burdens itself alone, as far as it has room."""
    for proposal in asked:
        job = proposal.job
        nodes = (job.owner,) * len(proposal.nodes)
        amounts = jobs.footprint(proposal, nodes, e.capacities)[job.owner]
        if not overloads(e.capacities[job.owner], total([e.used[job.owner], *(amount for _, amount in amounts)])):
            e.counts["alone"] += 1
            e.waiting[job.owner].remove(job)
            e.begin(proposal, nodes, t, delays[job.id])


def _resolve(e: _Episode, asked: list[tuple[Proposal, float]], t: float, judge: Judge) -> None:
    """Let the shield, or nobody, judge, and begin what may begin."""
    if not asked:
        return
    setting = e.setting
    wanted = [(proposal, proposal.nodes) for proposal, _ in asked]
    joint, _ = e.crowded(wanted)
    e.counts["wanted_collisions"] += joint
    if setting.shield == "none":
        e.counts["collisions"] += joint
        for proposal, delay_s in asked:
            e.waiting[proposal.job.owner].remove(proposal.job)
            before = {name: bool(overloads(e.capacities[name], e.used[name])) for name in set(proposal.nodes)}
            e.begin(proposal, proposal.nodes, t, delay_s)
            e.counts["overloads"] += sum(
                bool(overloads(e.capacities[name], e.used[name])) and not was for name, was in before.items()
            )
        return
    delays = {proposal.job.id: delay_s for proposal, delay_s in asked}
    if t >= setting.dies_every_s and t % setting.dies_every_s < DOWN_S:
        _alone(e, [proposal for proposal, _ in asked], t, delays)
        return
    groups: dict[str, list[Proposal]] = {}
    for proposal, _ in asked:
        region = regions_of(setting.regions, proposal.job.owner)[0].name if setting.regions else ""
        groups.setdefault(region, []).append(proposal)
    members = {region.name: region.members for region in setting.regions}
    judged: list[tuple[Proposal, Verdict, float, str]] = []
    for region, proposals in groups.items():
        names = members.get(region) or tuple(e.index)
        rooms = {name: Room(e.capacities[name], e.used[name]) for name in names}
        began = time.thread_time()
        verdicts = judge(proposals, rooms, work=setting.work)
        took_s = time.thread_time() - began
        e.judge_ms.append(took_s * 1e3)
        speed = max(e.nodes[e.index[name]].speed for name in names)
        delay_s = took_s / speed + 4 * MESSAGE_S if setting.charge else 0.0
        judged.extend(
            (proposal, verdict, delay_s, region) for proposal, verdict in zip(proposals, verdicts, strict=True)
        )
    order = e.rng.permutation(len(judged)) if setting.regions else np.arange(len(judged))
    places = {name for _, verdict, _, _ in judged for name in verdict.nodes}
    before_all = {name: bool(overloads(e.capacities[name], e.used[name])) for name in places}
    begun: list[tuple[Proposal, tuple[str, ...]]] = []
    for i in order:
        proposal, verdict, delay_s, region = judged[int(i)]
        e.counts["interventions"] += verdict.outcome != "granted"
        e.by_shield[region] = e.by_shield.get(region, 0.0) + 2
        if not verdict.nodes:
            e.counts["deferred"] += 1
            e.told[proposal.job.owner] = {name: e.load(name, t) for name in members.get(region) or e.index}
            e.counts["search_limit"] += any(reason.name == "search_limit" for reason in verdict.reasons)
            continue
        e.counts["moved_parts"] += len(verdict.reasons)
        held = jobs.footprint(proposal, verdict.nodes, e.capacities)
        e.by_shield[region] += 2 * len(held)
        if setting.regions and any(
            overloads(e.capacities[name], total([e.used[name], *(amount for _, amount in amounts)]))
            for name, amounts in held.items()
        ):
            e.counts["refused"] += 1  # a node of the boundary, by what it holds for another region
            e.by_shield[region] += len(held)
            continue
        begun.append((proposal, verdict.nodes))
        e.waiting[proposal.job.owner].remove(proposal.job)
        e.begin(proposal, verdict.nodes, t, delay_s + delays[proposal.job.id])
    e.counts["overloads"] += sum(
        bool(overloads(e.capacities[name], e.used[name])) and not before_all[name] for name in places
    )
