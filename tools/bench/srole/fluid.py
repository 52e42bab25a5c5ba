"""A fast simulator for training: jobs flow at the speed that shared processors and links give them.

Every part and every transfer is busy for a share of a job's step. A part that runs beside others on a node meets, in
the mean, as many as their shares add up to, and is slowed down in proportion; so is a transfer on a link. The shares
depend on the steps and these on the shares: two rounds of a fixed point, begun at the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from tools.bench.srole.boards import HOT_SPEED_FRAC, PAGE_BYTES_PER_S, PASS_S, Node

ROUNDS = 2
Piece: TypeAlias = tuple[int, float, float, float]


class Start(NamedTuple):
    """A placed job, as a world runs it.

    Attributes:
        id: of the job.
        layers: parts wait for one another.
        steps: to do.
        parts: (node, core-seconds of a step on the reference core, cores, bytes) each.
        flows: (node, node, bytes of a step) of each exchange between two nodes.
        delay_s: until it begins: shipping, starting, deciding.
    """

    id: str
    layers: bool
    steps: float
    parts: tuple[Piece, ...]
    flows: tuple[tuple[int, int, float], ...]
    delay_s: float


def speeds(nodes: list[Node], running: Iterable[Iterable[Piece]]) -> list[float]:
    """How fast a core of each node is while these parts run: heat and paging slow it down."""
    heat, memory = [0.0] * len(nodes), [0.0] * len(nodes)
    for parts in running:
        for n, _, cores, size in parts:
            heat[n] += cores * nodes[n].watts_per_core
            memory[n] += size
    return [
        node.speed
        * (HOT_SPEED_FRAC if drawn > node.heat_w * 1.001 else 1.0)
        / (1 + max(0.0, held - node.memory_bytes) / (PAGE_BYTES_PER_S * PASS_S))
        for node, drawn, held in zip(nodes, heat, memory, strict=True)
    ]


class Ended(NamedTuple):
    """A job that is done, and when."""

    at_s: float
    id: str


class _Run:
    __slots__ = ("busy", "flows", "id", "layers", "left", "links", "parts", "ready_s", "step_s")

    def __init__(self, start: Start, now_s: float, nodes: list[Node]) -> None:
        self.id, self.layers, self.parts, self.flows = start.id, start.layers, start.parts, start.flows
        self.left, self.ready_s = float(start.steps), now_s + start.delay_s
        self.links: dict[int, float] = {}
        for a, b, size in start.flows:
            for end in (a, b):
                self.links[end] = self.links.get(end, 0.0) + size / nodes[end].link_bytes_per_s
        self.busy = [work_s / nodes[n].speed for n, work_s, _, _ in start.parts]
        self.step_s = (sum if self.layers else max)(self.busy) + max(self.links.values(), default=0.0)


class Fluid:
    """The world: nodes, what runs on them, and a clock that only `advance` moves."""

    def __init__(self, nodes: list[Node]) -> None:
        """Nothing runs at time 0."""
        self.nodes, self.now_s = nodes, 0.0
        self.runs: dict[str, _Run] = {}
        self._dirty = True

    def start(self, start: Start) -> None:
        """Run a job from `delay_s` on."""
        self.runs[start.id] = _Run(start, self.now_s, self.nodes)
        self._dirty = True

    def stop(self, job: str) -> float:
        """End a job before its end; gives the steps that are left."""
        run = self.runs.pop(job)
        self._dirty = True
        return run.left

    def left_s(self, job: str) -> float:
        """How long a job would still take if nothing changed."""
        run = self.runs[job]
        return max(0.0, run.ready_s - self.now_s) + run.left * run.step_s

    def advance(self, until_s: float) -> list[Ended]:
        """Let time pass; gives the jobs that ended, in order."""
        ended: list[Ended] = []
        while True:
            live = [run for run in self.runs.values() if run.ready_s <= self.now_s]
            if self._dirty:
                self._share(live)
                self._dirty = False
            next_s, first = until_s, None
            for run in live:
                end_s = self.now_s + run.left * run.step_s
                if end_s < next_s:
                    next_s, first = end_s, run
            for run in self.runs.values():
                if self.now_s < run.ready_s < next_s:
                    next_s, first = run.ready_s, None
                    self._dirty = True
            passed_s = next_s - self.now_s
            for run in live:
                run.left -= passed_s / run.step_s
            self.now_s = next_s
            if first is not None:
                del self.runs[first.id]
                self._dirty = True
                ended.append(Ended(next_s, first.id))
            elif next_s >= until_s:
                return ended

    def _share(self, live: list[_Run]) -> None:
        nodes = self.nodes
        speed = speeds(nodes, [run.parts for run in live])
        for _ in range(ROUNDS):
            cpu = [0.0] * len(nodes)
            link = [0.0] * len(nodes)
            for run in live:
                for (n, _, _, _), busy_s in zip(run.parts, run.busy, strict=True):
                    cpu[n] += busy_s / run.step_s
                for n, alone_s in run.links.items():
                    link[n] += alone_s / run.step_s
            for run in live:
                step_s = run.step_s
                for k, (n, work_s, _, _) in enumerate(run.parts):
                    others = cpu[n] - run.busy[k] / step_s
                    run.busy[k] = work_s / speed[n] * max(1.0, (1.0 + others) / nodes[n].cores)
                moved_s = 0.0
                for n, alone_s in run.links.items():
                    slowed_s = alone_s * (1.0 + max(0.0, link[n] - alone_s / step_s))
                    moved_s = max(moved_s, slowed_s)
                computed_s = sum(run.busy) if run.layers else max(run.busy)
                run.step_s = computed_s + moved_s
