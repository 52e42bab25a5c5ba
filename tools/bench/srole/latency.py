"""What a judgement costs: CPU time of `shield.judge` on proposals of the trained agents, cluster by cluster."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from edgert.placement import shield
from edgert.placement.jobs import Proposal
from edgert.placement.shield import Room
from tools.bench.srole import boards, fluid, play, policies
from tools.bench.srole.cells import Agent

REPEATS = 5


def measure(trained: Agent, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Judgements of windows of 5 s at loads of 0.7 and 0.95; each is timed several times and the least counts."""
    found = []
    for size in sizes:
        times: list[float] = []
        proposals: list[int] = []
        outcomes = {"granted": 0, "moved": 0, "deferred": 0, "search_limit": 0}
        for seed in range(2):
            for load in (0.7, 0.95):
                for asked, rooms in _windows(trained, size, load, seed):
                    best = float("inf")
                    for _ in range(REPEATS):
                        began = time.thread_time()
                        verdicts = shield.judge(asked, rooms)
                        best = min(best, time.thread_time() - began)
                    times.append(best * 1e3)
                    proposals.append(len(asked))
                    for verdict in verdicts:
                        outcomes[verdict.outcome] += 1
                        outcomes["search_limit"] += any(each.name == "search_limit" for each in verdict.reasons)
        found.append(
            {
                "nodes": size,
                "windows": len(times),
                "jobs_mean": float(np.mean(proposals)),
                "jobs_max": max(proposals),
                "median_ms": float(np.median(times)),
                "p99_ms": float(np.percentile(times, 99)),
                "max_ms": max(times),
                **outcomes,
            }
        )
    return found


def _windows(trained: Agent, size: int, load: float, seed: int) -> list[tuple[list[Proposal], dict[str, Room]]]:
    """What a shield saw in the windows of one play."""
    rng = np.random.default_rng([5, size, seed])
    nodes = boards.cluster(size, rng)
    queue = boards.draw_jobs(nodes, size + 10, load, rng)
    seen: list[tuple[list[Proposal], dict[str, Room]]] = []
    judge = shield.judge

    def watch(asked: list[Proposal], rooms: dict[str, Room], **more: int) -> Any:
        seen.append((list(asked), dict(rooms)))
        return judge(asked, rooms, **more)

    decide = policies.learned(trained.params, masked=True, explore=trained.explore)
    setting = play.Setting(shield="C", window_s=5.0, stale_s=15.0)
    play.play(nodes, queue, decide, fluid.Fluid(nodes), setting, np.random.default_rng(seed), limit_s=1e3, judge=watch)
    return seen
