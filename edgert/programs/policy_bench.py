"""Race every runtime and precision that can run a policy on this board, at its control rate, and find the fastest.

The calls are cold, as the actor's are: between two of them the process sleeps until the next tick, which makes a call
cost a multiple of one in a hot loop. Runners take turns in short bursts, so that all meet the same board.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, as in the actor

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import NamedTuple

import numpy as np

from edgert.bundle import Cost, ExitCost, Precision
from edgert.errors import EdgertError, UsageError
from edgert.nets import F32, U8
from edgert.policy.artifact import Policy
from edgert.policy.exits import effective_thresholds, taken
from edgert.ports.runtime import Kind, Runtime
from edgert.ports.runtime.choice import Key, open_one, versions

BURST = 6
"""Calls of one runner at one exit in a row; the first, which follows another runner's, is not counted."""
FLOAT_GAIN = 0.9
"""Float wins only below this share of the fastest int8 time: the thresholds were fitted on int8 heads."""


class Clock(NamedTuple):
    """What the race needs of time, so that a test can be its own clock."""

    now_s: Callable[[], float] = time.monotonic
    cpu_s: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Runner:
    """One runtime in one precision, and what was measured of it.

    Attributes:
        kind, precision: what it is.
        version: of its package.
        why: why it does not run; empty when it does.
        runtime: None when it does not run.
        took_s, cpu_s: exit -> seconds, and CPU seconds, of each counted call.
    """

    kind: Kind
    precision: Precision
    version: str
    why: str = ""
    runtime: Runtime | None = None
    took_s: dict[int, list[float]] = field(default_factory=dict)
    cpu_s: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind} {self.precision}"

    def costs(self) -> tuple[ExitCost, ...]:
        """Shallow to deep; empty when an exit was not measured."""
        if not self.took_s or not all(self.took_s.values()):
            return ()
        found = []
        for k in sorted(self.took_s):
            p50_s, p99_s = np.percentile(self.took_s[k], (50, 99))
            found.append(ExitCost(float(p50_s), float(p99_s), float(np.mean(self.cpu_s[k]))))
        return tuple(found)


def line_up(policy: Policy, wanted: Sequence[tuple[Kind, Precision]]) -> list[Runner]:
    """Open every runner; one that cannot be built, or fails the golden vectors, stays in the list with its reason."""
    installed, runners = versions(), []
    for kind, precision in wanted:
        runner = Runner(kind, precision, installed.get(kind, "not installed"))
        try:
            runner.runtime = open_one(policy, kind, precision)
        except EdgertError as error:
            runner.why = str(error)
        except Exception as error:  # a foreign package may raise anything, and the others are to be measured
            runner.why = f"{type(error).__name__}: {error}"
        runners.append(runner)
    return runners


def race(
    policy: Policy, runners: Sequence[Runner], rate_hz: float, seconds_s: float, clock: Clock | None = None
) -> int:
    """Measure every runner at every exit; fills them in.

    Args:
        policy: its golden observations are asked.
        runners: of `line_up`.
        rate_hz: calls a second, one at a time.
        seconds_s: for all together; every runner gets one burst at every exit however short it is.
        clock: real time unless a test brings its own.

    Returns:
        How many turns each took.

    Raises:
        UsageError: a rate or duration that is not above 0.
    """
    if not (0 < rate_hz < float("inf") and 0 < seconds_s < float("inf")):
        raise UsageError(f"rate {rate_hz} Hz for {seconds_s} s: both must be above 0")
    clock = clock or Clock()
    last, period_s = policy.spec.n_exits - 1, 1 / rate_hz
    logits = [effective_thresholds([1.0] * last, k) for k in range(last + 1)]
    observations = cycle(policy.golden_obs)
    for runner in runners:
        if runner.runtime is not None:
            runner.took_s = {k: [] for k in range(last + 1)}
            runner.cpu_s = {k: [] for k in range(last + 1)}
    start_s = next_s = clock.now_s()
    turns = 0
    while not turns or clock.now_s() - start_s < seconds_s:
        for k in range(last + 1):
            for runner in runners:
                for i in range(BURST):
                    if runner.runtime is None:
                        break
                    now_s = clock.now_s()
                    clock.sleep(max(0.0, next_s - now_s))
                    next_s = max(next_s, now_s) + period_s
                    _measure(runner, runner.runtime, k, next(observations), logits[k], clock, counts=i > 0)
        turns += 1
        if not any(runner.runtime for runner in runners):
            break
    return turns


def _measure(runner: Runner, runtime: Runtime, k: int, obs: U8, logits: F32, clock: Clock, *, counts: bool) -> None:
    """One call; a runner that breaks is out of the race."""
    began_cpu_s, began_s = clock.cpu_s(), clock.now_s()
    try:
        runtime.infer(obs, logits)
    except EdgertError as error:
        runner.why, runner.runtime = str(error), None
        runner.took_s, runner.cpu_s = {}, {}
        return
    took_s, cpu_s = clock.now_s() - began_s, clock.cpu_s() - began_cpu_s
    if counts:
        runner.took_s[k].append(took_s)
        runner.cpu_s[k].append(cpu_s)


def shares(policy: Policy) -> tuple[float, ...]:
    """How often each exit answers the golden observations, with the bundle's thresholds."""
    heads = {k: policy.golden_head[:, k] for k in range(policy.spec.n_exits)}
    counts = np.bincount(taken(heads, policy.manifest.thresholds), minlength=policy.spec.n_exits)
    return tuple(float(count) for count in counts / counts.sum())


def expected_s(costs: Sequence[ExitCost], share: Sequence[float]) -> float:
    """Mean over decisions of the median seconds of the exit that answers."""
    return sum(part * cost.p50_s for part, cost in zip(share, costs, strict=True))


def winner(runners: Sequence[Runner], share: Sequence[float], deadline_s: float) -> Runner | None:
    """Who decides fastest on average, among those whose deepest exit meets the deadline if any does."""
    running = [runner for runner in runners if runner.costs()]
    running = [runner for runner in running if runner.costs()[-1].p99_s <= deadline_s] or running

    def score(runner: Runner) -> float:
        return expected_s(runner.costs(), share) * (1.0 if runner.precision == "int8" else 1 / FLOAT_GAIN)

    return min(running, key=score, default=None)


def measured(runners: Sequence[Runner], key: Key, rate_hz: float) -> tuple[Cost, ...]:
    """What goes into bundle and cache: an entry for everyone who finished."""
    return tuple(
        Cost(
            board=key.board,
            cpu=key.cpu,
            runtime=runner.kind,
            version=runner.version,
            precision=runner.precision,
            rate_hz=rate_hz,
            exits=runner.costs(),
            samples=min(map(len, runner.took_s.values())),
        )
        for runner in runners
        if runner.costs()
    )
