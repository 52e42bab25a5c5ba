"""The act loop: observe, decide, apply, at a fixed rate, whatever the network, the disk and the training do.

Nothing in the loop waits for another process. Networks are loaded, checked and warmed in a thread of their own and
swapped in by one assignment between two ticks. While no network can act, the manifest's safe action is applied, from
the first tick on.
"""

from __future__ import annotations

import os

# Before numpy: a second BLAS thread would only fight the trainer for the core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gc
import logging
import math
import sys
import time
from pathlib import Path
from queue import Empty
from typing import NamedTuple

import numpy as np

from edgert.bundle import Manifest, read, schema_hash
from edgert.config import Config
from edgert.errors import ArtifactError, ConfigError, UsageError
from edgert.nets import F32
from edgert.policy import exits, frontier, hold
from edgert.ports.plant import Observation, Plant
from edgert.ports.process import (
    Layout,
    Parent,
    Stopping,
    noted_network,
    read_bundle,
    run_role,
    started_monotonic_s,
    usage,
)
from edgert.ports.ring import EXPLORED, SAFE, RingWriter
from edgert.ports.runtime import Runtime
from edgert.programs.loader import Loader
from edgert.programs.recorder import Recorder
from edgert.values import (
    EXITS_ORDER_ENDED,
    ActorReport,
    Budget,
    ExitsSet,
    Happened,
    SetExits,
    Stop,
    Swap,
    Swapped,
    Told,
)

LATENCIES = 1200
"""Decisions that the latency figures look back on: one minute at 20 Hz."""
ORPHAN_S = 60.0
"""Without a supervisor for this long nobody is coming back, and a policy without oversight should not act on."""
SLOW_DOWN = 0.9
"""Weight of the past in the running cost of an exit."""
DOUBT = 0.998
"""What is left, a tick, of the cost of an exit that was shunned because of it: only running it could tell that it is
fast again. Close to 1, since trying an exit that is still too slow misses a deadline."""
IDLE_S, QUIET_IDLE_S, QUIET_S = 0.2, 1.0, 10.0
"""A plant that does not pace the loop is waited for so long at a time, and longer when it said nothing for `QUIET_S`;
what it says is heard at once. A stop, or another network, may have to wait as long."""
LOADING_IDLE_S = 0.02
REPORT_S, QUIET_REPORT_S = 1.0, 2.0
"""From one report to the next, far below what `edgert.children` takes for hanging."""
LOCKSTEP_LAG = 64
"""Transitions that training may be behind when the plant waits for it."""
LOCKSTEP_PAUSE_S = 0.0005
PATIENCE_MAX = 64
"""How many times slower than by `DOUBT` that cost fades at most: it doubles with every trial that was late."""

log = logging.getLogger("edgert.actor")


class Held(NamedTuple):
    """A decision that is still to be applied for `left` ticks."""

    action: int
    exit: int
    confidence: float | None
    left: int
    log_prob: float


class Actor:
    """One act loop. `run` returns the process's exit code."""

    def __init__(self, config: Config, layout: Layout, manifest: Manifest, plant: Plant) -> None:
        """Take hold of the plant; the policy comes later, from the loader.

        Args:
            config: checked.
            layout: of this device.
            manifest: of the installed policy; sets the rate, the shapes and the safe action.
            plant: opened.
        """
        self.config, self.plant, self.manifest = config, plant, manifest
        self.period_s = 1.0 / manifest.control_rate_hz
        self.deadline_s = self.configured_s = config.policy.deadline_s or 0.8 * self.period_s
        self.n_exits = len(manifest.exits)
        self.max_exit = self.n_exits - 1
        self.costs_s = [0.0] * self.n_exits
        self.patience = [1] * self.n_exits
        self.parent = Parent(layout.control, "actor")
        former_ring = _inode(layout.ring)
        self.ring = RingWriter(
            layout.ring, manifest.observation.shape, config.learn.ring_transitions, schema_hash(manifest)
        )
        if former_ring not in (None, _inode(layout.ring)):
            log.warning("%s was broken, or of another size or schema: it begins anew", layout.ring)
            self.parent.send(Happened("ring-begun-anew", {"path": str(layout.ring)}), keep=True)
        self.recorder = Recorder(self.ring)
        self.loader = Loader(schema_hash(manifest), self.n_exits, config.policy.runtime, layout.measured)
        self.loading = 0
        self.lockstep_s = 0.0
        self.runtime: Runtime | None = None
        self.generation = 0
        self.network: Swap | None = None
        self.born_s = started_monotonic_s()
        self.asked_s = time.monotonic()
        self.first_action_s: float | None = None
        self.ticks = self.missed = self.safe = 0
        self.missed_at_swap = 0
        self.taken = [0] * self.n_exits
        self.exits_s, self.exits_s2 = [0.0] * self.n_exits, [0.0] * self.n_exits
        self.bench_s: tuple[float, ...] = ()
        self.held = 0
        self.latencies_s = np.zeros(LATENCIES)
        self.met_plant = False
        self.faults: dict[str, int] = {}
        self.rng = np.random.default_rng()
        self._held: Held | None = None
        self.max_ops_frac = 1.0
        self.point: int | None = None
        self.order: SetExits | None = None
        self.order_until_s: float | None = None
        self.acting = manifest
        self.setting = frontier.Setting(manifest.operating, None)
        try:
            self._settle(manifest, None)
        except UsageError as error:
            raise ConfigError(f"policy.thresholds: {error}") from error

    def run(self, first: Swap, stopping: Stopping) -> int:
        """Act until told to stop.

        Args:
            first: the network to begin with.
            stopping: set by a signal.

        Returns:
            0; 75 when the supervisor stayed away too long.
        """
        self.loader.start()
        self._load(first)
        next_s = report_s = time.monotonic()
        told_acting = False, False
        self._listen(stopping)  # and say hello: what is said before is said to nobody
        while not stopping:
            if self.plant.paced:
                now_s = time.monotonic()
                if now_s - next_s > self.period_s:
                    lost = int((now_s - next_s) / self.period_s)
                    self.missed += lost
                    next_s += lost * self.period_s
                time.sleep(max(0.0, next_s - now_s))
                due_s = next_s + self.deadline_s
                next_s += self.period_s
                observation = self.plant.observe(0.0)
            else:
                observation = None if self._stands_still() else self.plant.observe(self._idle_s())
                due_s = time.monotonic() + self.deadline_s
            if observation is not None or self.plant.paced:
                self._tick(observation, due_s)
            now_s = time.monotonic()
            acts = self.runtime is not None, self.first_action_s is not None
            wakes = observation is not None and self._quiet()
            self.asked_s = self.asked_s if observation is None else now_s
            # Said at once: a network and the first action, which make the device ready, and that somebody asks again.
            if now_s >= report_s or acts != told_acting or wakes:
                report_s, told_acting = now_s + (QUIET_REPORT_S if self._quiet() else REPORT_S), acts
                self.parent.send(self._report())
            self._listen(stopping)
            self._swap_if_ready()
            if self.order_until_s is not None and now_s >= self.order_until_s:
                self._forget_order("expired")
            if self.parent.lost_s is not None and now_s - self.parent.lost_s > ORPHAN_S:
                log.error("no supervisor for %.0f s: leaving", ORPHAN_S)
                break
        if self.plant.paced:
            self.plant.observe(self.period_s)  # a plant in lockstep takes no action while it owes an observation
        self.plant.apply(self.manifest.safe_action, exit=0, confidence=None, generation=self.generation)
        self.plant.close()
        self.ring.close()
        self.parent.close()
        return 0 if stopping else 75

    def _load(self, swap: Swap) -> None:
        self.loading += 1
        self.loader.ask(swap)

    def _quiet(self) -> bool:
        """Nobody has asked for long, and no network is on its way."""
        return not self.plant.paced and not self.loading and time.monotonic() - self.asked_s >= QUIET_S

    def _idle_s(self) -> float:
        """How long to wait for somebody to ask."""
        if self.loading:
            return LOADING_IDLE_S
        return max(self.period_s, QUIET_IDLE_S if self._quiet() else IDLE_S)

    def _stands_still(self) -> bool:
        """In lockstep nothing moves before its time, while a network is loaded, or while training is behind."""
        hz = self.config.plant.lockstep_hz
        if hz == 0:
            return False
        now_s = time.monotonic()
        behind = self.config.learn.enabled and self.ring.newest_seq - self.ring.done_seq() > LOCKSTEP_LAG
        if now_s < self.lockstep_s or self.loading or behind:
            time.sleep(LOCKSTEP_PAUSE_S)
            return True
        self.lockstep_s = max(self.lockstep_s, now_s - 1 / hz) + 1 / hz
        return False

    def _explore_frac(self) -> float:
        """As configured, by the transitions recorded so far, also those before a restart."""
        policy = self.config.policy
        left = max(0.0, 1 - self.ring.newest_seq / policy.explore_transitions) if policy.explore_transitions else 0.0
        return policy.explore_frac + left * (policy.explore_from_frac - policy.explore_frac)

    def _tick(self, observation: Observation | None, due_s: float) -> None:
        """One decision: the action leaves before anything is written down."""
        started_s = time.monotonic()
        action, exit_, confidence, flags, log_prob = self.manifest.safe_action, 0, None, SAFE, math.nan
        self.met_plant = self.met_plant or observation is not None
        held, self._held = self._held if self.recorder.goes_on(observation) else None, None
        if observation is None:
            if self.met_plant:  # before that it is starting, which is no fault
                self._fault("observation-missing")
        elif self.runtime is not None:
            try:
                if held is None:
                    inference = self.runtime.infer(observation.obs, self._within(due_s - started_s))
                    chosen = exits.choose(inference.head)
                    left = hold.more(self._rule, inference.exit, float(inference.head[-1]))
                    drawn = exits.Drawn(chosen.action, 0.0)
                    if self._draws():
                        drawn, left = exits.draw(inference.head, self.rng.random()), 0
                    now = Held(drawn.action, inference.exit, chosen.confidence, left, drawn.log_prob)
                else:  # decided by another observation than this one
                    now = held._replace(left=held.left - 1, log_prob=math.nan)
                action, confidence, exit_, flags, log_prob = now.action, now.confidence, now.exit, 0, now.log_prob
                self._held = now if now.left else None
            except ArtifactError as error:
                self._fault("output-not-finite")
                if self.faults["output-not-finite"] == 1:  # at the control rate it would fill the disk with logs
                    log.error("%s: safe action", error)
            if flags == 0 and not self._draws() and (explore_frac := self._explore_frac()) > 0:
                greedy, by_chance = action, explore_frac / self.manifest.action.n
                if self.rng.random() < explore_frac:
                    action, flags = int(self.rng.integers(self.manifest.action.n)), EXPLORED
                    self._held = None  # where chance leads, what was decided before need not hold
                log_prob += math.log(by_chance + (action == greedy) * (1 - explore_frac))
        decided_s = time.monotonic()
        self.plant.apply(action, exit=exit_, confidence=confidence, generation=self.generation)

        if flags & SAFE:
            self.safe += 1
        elif held is not None:
            self.held += 1
        else:
            took_s = decided_s - started_s
            self.latencies_s[sum(self.taken) % LATENCIES] = took_s
            self.exits_s[exit_] += took_s
            self.exits_s2[exit_] += took_s * took_s
            # One stall says little about an exit: it counts as no more than twice what was usual.
            usual_s = self.costs_s[exit_] or took_s
            self.costs_s[exit_] = SLOW_DOWN * usual_s + (1 - SLOW_DOWN) * min(took_s, 2 * usual_s)
            if decided_s <= due_s:
                self.patience[exit_] = 1
            elif started_s < due_s:
                self.patience[exit_] = min(2 * self.patience[exit_], PATIENCE_MAX)
            self.taken[exit_] += 1
            if self.first_action_s is None:
                self.first_action_s = decided_s - self.born_s
        self.ticks += 1
        self.missed += decided_s > due_s
        player = self.generation if self.runtime is not None else None
        self.recorder.remember(observation, action, exit_, flags, log_prob, player)

    def _draws(self) -> bool:
        """Actions are drawn from a policy that learns from what its own chance does; else the best is taken."""
        return self.acting.kind == "policy" and self.config.learn.enabled

    def _listen(self, stopping: Stopping) -> None:
        for told in self.parent.receive():
            if isinstance(told, Stop):
                stopping.asked = True
            self._heed(told)

    def _within(self, remaining_s: float) -> F32:
        """Thresholds that keep to the budget, and to the deadline when it is near."""
        if self.costs_s[self.max_exit] <= remaining_s:
            return self._logits
        self._fault("deadline-near")
        deepest = min(self.max_exit, exits.deepest_affordable(self.costs_s, remaining_s))
        if remaining_s > 0:  # with no time left every exit is too slow, which tells nothing about one
            for shunned in range(deepest + 1, self.max_exit + 1):
                self.costs_s[shunned] *= DOUBT ** (1 / self.patience[shunned])
        return exits.effective_thresholds(self.thresholds, deepest)

    def _heed(self, told: Told) -> None:
        match told:
            case Budget():
                self.max_exit = min(max(told.max_exit, 0), self.n_exits - 1)
                self.max_ops_frac, self.point = told.max_ops_frac, told.point
                self.deadline_s = told.deadline_s or self.configured_s
                self._settle(self.acting, self.order)
            case SetExits():
                self._obey(told)
            case Swap():
                self.missed_at_swap = self.missed
                self._load(told)
            case _:
                pass

    def _settle(self, manifest: Manifest, order: SetExits | None) -> None:
        """Put in force what configuration, fleet, budget and bundle make of the exits together.

        Raises:
            UsageError: the order, or the configuration, does not fit this bundle; nothing has changed.
        """
        if order is not None and order.max_ops_frac < 1 and manifest.frontier is None:
            raise UsageError("this network has no frontier to choose a cheaper setting from")
        setting = frontier.settle(
            manifest,
            pinned=self.config.policy.thresholds,
            wanted=order.operating if order else None,
            point=order.point if order else None,
            max_ops_frac=min(self.max_ops_frac, order.max_ops_frac if order else 1.0),
            advised=self.point,
        )
        if setting.operating != self.setting.operating:
            self._held = None
        self.setting, self.thresholds = setting, list(setting.operating.thresholds)
        self._rule = hold.rule(setting.operating)
        self._logits = exits.effective_thresholds(self.thresholds, self.max_exit)

    def _obey(self, order: SetExits) -> None:
        """Take an order of the fleet, or say why not; the configuration's thresholds stand above it."""
        wants_anything, why = order.operating is not None or order.point is not None or order.max_ops_frac < 1, ""
        try:
            if wants_anything and self.config.policy.thresholds is not None:
                raise UsageError("policy.thresholds in the device's configuration pins the exits")
            self._settle(self.acting, order)
        except UsageError as error:
            why = str(error)
        else:
            self.order, self.order_until_s = order if wants_anything else None, None
            if wants_anything and order.left_s is not None:
                self.order_until_s = time.monotonic() + order.left_s
        self.parent.send(
            ExitsSet(id=order.id, why=why, operating=self.setting.operating, point=self.setting.point), keep=True
        )

    def _forget_order(self, why: str) -> None:
        """Go back to the bundle's own setting."""
        if self.order is not None:
            self.parent.send(Happened(EXITS_ORDER_ENDED, {"id": self.order.id, "why": why}), keep=True)
        self.order = self.order_until_s = None
        self._settle(self.acting, None)

    def _swap_if_ready(self) -> None:
        """Between two ticks: one assignment, and the former network is let go."""
        try:
            made = self.loader.done.get_nowait()
        except Empty:
            return
        self.loading = max(0, self.loading - 1)
        if made.runtime is None or made.policy is None:
            self._fault("policy-refused")
            log.error("generation %d refused: %s", made.swap.generation, made.why)
            if self.runtime is None and made.swap.generation:
                self._load(Swap(0, self.config.policy.bundle, ""))
        else:
            former, self.runtime = self.runtime, made.runtime
            self.bench_s = made.costs_s
            for k, cost_s in enumerate(made.costs_s):
                self.costs_s[k] = self.costs_s[k] or cost_s  # what was met while acting is the better figure
            self.generation, self.network = made.swap.generation, made.swap
            self.recorder.swapped()
            self.acting, self._held = made.policy.manifest, None
            try:
                self._settle(self.acting, self.order)
            except UsageError as error:
                self._forget_order(str(error))
            if former is None:
                gc.freeze()  # what was loaded for good need never be scanned again
            else:
                former.close()
        first = self.first_action_s is None and made.swap.generation == 0
        if not first:
            missed = self.missed - self.missed_at_swap
            told = Swapped(made.swap.generation, made.runtime is not None, made.why, self.ticks, missed, made.prepare_s)
            self.parent.send(told, keep=True)
        elif made.runtime is None:
            self.parent.send(Happened("policy-refused", {"path": made.swap.path, "why": made.why}), keep=True)

    def _fault(self, name: str) -> None:
        self.faults[name] = self.faults.get(name, 0) + 1

    def _report(self) -> ActorReport:
        decided = min(sum(self.taken), LATENCIES)
        window = self.latencies_s[self.latencies_s > 0][:decided]
        p50, p99, worst = np.percentile(window, (50, 99, 100)) if len(window) else (0.0, 0.0, 0.0)
        cpu_s, rss_bytes = usage()
        return ActorReport(
            pid=os.getpid(),
            ticks=self.ticks,
            missed=self.missed,
            safe=self.safe,
            exits=list(self.taken),
            latency_p50_s=float(p50),
            latency_p99_s=float(p99),
            latency_max_s=float(worst),
            episodes=self.recorder.episodes,
            returns=list(self.recorder.returns),
            faults={**self.faults, **self.plant.faults},
            generation=self.generation,
            acting=self.runtime is not None,
            first_action_s=self.first_action_s,
            cpu_s=cpu_s,
            rss_bytes=rss_bytes,
            held=self.held,
            operating=self.setting.operating,
            point=self.setting.point,
            has_frontier=self.acting.frontier is not None and self.config.policy.thresholds is None,
            network=self.network,
            played=list(self.recorder.played),
            reward=self.recorder.reward,
            rewarded=self.recorder.rewarded,
            exits_s=list(self.exits_s),
            exits_s2=list(self.exits_s2),
            costs_s=list(self.bench_s),
        )


def acting_network(config: Config, layout: Layout) -> Swap:
    """The network to begin with: the one that acted last, or the installed one when that cannot be had."""
    swap, fault = noted_network(layout)
    if fault:
        log.warning("%s: beginning with the installed network", fault)
    return swap or Swap(0, config.policy.bundle, "")


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def open_plant(config: Config, layout: Layout, manifest: Manifest) -> Plant:
    """The plant that the configuration names."""
    if config.plant.kind == "simulated":
        from edgert.ports.plant.simulated import SimulatedPlant

        return SimulatedPlant(layout.world, manifest.observation.shape, paced=config.plant.lockstep_hz == 0)
    from edgert.ports.plant.local import LocalPlant

    return LocalPlant(layout.policy, manifest.observation.shape, manifest.action.n)


def _run(config: Config, config_path: Path, layout: Layout, stopping: Stopping) -> int:
    manifest = read(read_bundle(config)).manifest
    sys.setswitchinterval(0.001)  # the loader may hold the interpreter no longer than this against the loop
    actor = Actor(config, layout, manifest, open_plant(config, layout, manifest))
    return actor.run(acting_network(config, layout), stopping)


def main(argv: list[str] | None = None) -> int:
    """Run one actor; the supervisor starts it."""
    return run_role("actor", "edgert-actor", argv, _run)


if __name__ == "__main__":
    raise SystemExit(main())
