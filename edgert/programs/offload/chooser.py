"""What is chosen for each request, and why: the learners, the loads it heard of, what may be sent, and its history."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edgert.config import Config
from edgert.errors import ArtifactError, MessageError, StoreError
from edgert.modelfile import ModelManifest
from edgert.offload import history, learners, promise
from edgert.offload.hybrid import Hybrid
from edgert.offload.planner import DEPTH_ONE, DEPTH_TWO
from edgert.offload.space import Floor, Goal, Guess, Learner, Load, Outcome, Place, Space, State, allowed, full_space
from edgert.offload.space import Variant as Offer
from edgert.ports import ipc
from edgert.ports.board.files import Files
from edgert.ports.board.proc import Processor
from edgert.ports.store import write_atomic
from edgert.programs.offload.local_models import LocalModels
from edgert.values import Budget

REMOTE: tuple[Place, ...] = ("edge", "cloud")
_GOALS: tuple[Goal, ...] = ("response", "energy")
LOOK_S = 1.0
ENERGY_EVERY = 8
KEPT_MOST = 16 << 20
"""Bytes of what was learned; a file that is larger is none of ours."""
RTT_GAIN = 0.5
PACKET_BYTES = 16
"""As the supervisor counts."""
PROBE_FRAC = 0.02
"""Of the requests, those that may try what is believed to be too slow: the local model still answers in time, and what
nobody tries can never be found to have become faster."""

log = logging.getLogger("edgert.offload")


class Known(NamedTuple):
    """A variant, as edge, cloud and learner know it."""

    id: str
    manifest: ModelManifest


class Refused(Exception):  # noqa: N818  # not an error of ours: an answer
    """A request cannot be answered; its name goes to the program that asked."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class Chosen(NamedTuple):
    """A decision.

    Attributes:
        choice: index in the space.
        why: for people.
        state: that it was made in.
    """

    choice: int
    why: str
    state: State


class Chooser:
    """Decides, and learns from what comes of it. Touches no socket.

    Attributes:
        known: the variants, in the order of the space.
        space: of one user.
        learners: one for each goal, as the configuration says.
        nodes: name -> what it said last.
        shy: choice -> not before, as a node said.
        up: the broker is connected.
        budget: the device's; None before the first.
        windows: the history.
        faults, counts: by name, since start.

    Thread: one.
    """

    def __init__(self, config: Config, known: Sequence[Known], here: set[int], local: LocalModels, kept: Path) -> None:
        """Recall what was learned before.

        Args:
            config: checked.
            known: the variants.
            here: indices of those that run on this device.
            local: what runs them.
            kept: where what was learned is kept.
        """
        self.config, self.said, self.local, self.kept = config, config.offload, local, kept
        self.known, self._here = list(known), here
        self.space = self._space()
        self.rng = np.random.default_rng()
        self.learners: dict[Goal, Learner] = {goal: self._learner(goal) for goal in _GOALS}
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.windows: tuple[history.Window, ...] = ()
        self._recall()
        self.nodes: dict[str, promise.Node] = {}
        self.shy: dict[int, float] = {}
        self.purse = promise.Purse(float(self.said.burst_bytes), time.monotonic())
        self.budget: Budget | None = None
        self.up = False
        self.decided_s = 0.0
        self.last: tuple[int, str] | None = None
        self._times: dict[int, deque[float]] = {}
        self._rtt_s: float | None = None
        self._rtt_at_s = 0.0
        self._own, self._processor = Load(), Processor(Files(config.board.sysfs_root))

    def _learner(self, goal: Goal) -> Learner:
        return learners.make(self.said.learner, self.space, Floor(), goal, self.rng)

    def _space(self) -> Space:
        offers = [
            Offer(
                name=each.manifest.name,
                accuracy_frac=each.manifest.accuracy_frac,
                macs=each.manifest.macs,
                precision="int8" if each.manifest.precision == "int8" else "float32",
                input_bytes=each.manifest.input.row_bytes + each.manifest.output.row_bytes,
                local=i in self._here,
            )
            for i, each in enumerate(self.known)
        ]
        return full_space(offers, 1)

    def label(self, choice: int) -> str:
        """A choice for people."""
        one = self.space.choices[choice]
        return f"{self.known[one.variant].manifest.name}@{one.place}"

    def _recall(self) -> None:
        try:
            if self.kept.stat().st_size > KEPT_MOST:
                raise ArtifactError(f"{self.kept}: too large")
            kept = ipc.decode_map(self.kept.read_bytes())
            ids = [each.id for each in self.known]
            if kept.get("ids") != ids or kept.get("learner") != self.said.learner or "learners" not in kept:
                log.info("other variants or another learner than before: what was learned is of no use")
                return
            saved = msgspec.convert(kept["learners"], dict[str, bytes])
            for goal in _GOALS:
                self.learners[goal].restore(saved[goal])
            self.windows = msgspec.convert(kept.get("windows"), tuple[history.Window, ...])
        except FileNotFoundError:
            pass
        except (OSError, ArtifactError, MessageError, msgspec.ValidationError, KeyError) as error:
            self.fault("learned-not-read", error)
            self.learners = {goal: self._learner(goal) for goal in _GOALS}

    def save(self) -> None:
        """Keep what was learned."""
        kept = {
            "ids": [each.id for each in self.known],
            "learner": self.said.learner,
            "learners": {goal: learner.save() for goal, learner in self.learners.items()},
            "windows": msgspec.to_builtins(self.windows),
        }
        try:
            write_atomic(self.kept, ipc.encode_map(kept))
        except StoreError as error:
            self.fault("learned-not-kept", error)

    def fault(self, name: str, why: object) -> None:
        """Count something that should not have been; the first of each kind is told."""
        self.faults[name] += 1
        log.log(logging.WARNING if self.faults[name] == 1 else logging.DEBUG, "%s: %s", name, why)

    def look(self, now_s: float) -> None:
        """See how busy this machine is, and forget nodes that have long gone."""
        self.nodes = {name: node for name, node in self.nodes.items() if now_s - node.at_s <= 10 * node.lives_s}
        seen = {**self._processor.load(now_s).readings, **self._processor.memory(now_s).readings}
        cpu, free, total = (
            seen[name].value if name in seen else None
            for name in ("load_frac", "memory_available_bytes", "memory_total_bytes")
        )
        memory = None if free is None or not total else min(1.0, max(0.0, 1 - free / total))
        self._own = Load(cpu_frac=cpu, memory_frac=memory)

    def granted(self, budget: Budget) -> None:
        """Obey a budget: with no CPU left for training there is little for planning."""
        self.budget = budget
        for learner in self.learners.values():
            if isinstance(learner, Hybrid):
                learner.depth = DEPTH_TWO if budget.train_steps_hz > 0 else DEPTH_ONE

    def measured(self, sample_s: float, now_s: float) -> None:
        """A round trip to the broker."""
        self._rtt_s = sample_s if self._rtt_s is None else self._rtt_s + RTT_GAIN * (sample_s - self._rtt_s)
        self._rtt_at_s = now_s

    def goal(self) -> Goal:
        """What is made small now."""
        return "energy" if self.said.minimise == "energy" or promise.spares_energy(self.budget) else "response"

    def now(self, now_s: float) -> State:
        """What is known before a choice."""
        own = self._own
        waits_frac = min(1.0, self.local.waits_s(now_s) / LOOK_S)
        cpu_frac = waits_frac if own.cpu_frac is None else max(own.cpu_frac, waits_frac)
        user = Load(
            cpu_frac=cpu_frac, memory_frac=own.memory_frac, rtt_s=self._rtt_s, age_s=max(0.0, now_s - self._rtt_at_s)
        )
        loads = {place: promise.standing(self.nodes, place, now_s)[1] for place in REMOTE}
        return State(users=(user,), edge=loads["edge"], cloud=loads["cloud"])

    def _rate(self) -> float:
        return promise.bytes_per_s(self.budget, self.said.max_bytes_per_s, self.config.teacher.max_bytes_per_s)

    def may_send(self, now_s: float) -> bool:
        """Whether the link may carry anything of ours."""
        return self._rate() > 0 or self._purse(now_s).left_bytes > 0

    def _purse(self, now_s: float) -> promise.Purse:
        self.purse = promise.filled(self.purse, self._rate(), self.said.burst_bytes, now_s)
        return self.purse

    def spend(self, size_bytes: int, now_s: float) -> None:
        """Something was sent or received."""
        left = self._purse(now_s)
        owed_most = -float(self.said.burst_bytes)  # what nodes say of themselves must not drown us in debt
        self.purse = promise.Purse(max(owed_most, left.left_bytes - size_bytes - PACKET_BYTES), now_s)
        self.counts["bytes"] += size_bytes + PACKET_BYTES

    def _obstacles(self, n: int, floor: Floor, left_s: float, now_s: float, state: State) -> list[str]:
        """For each choice why it cannot be taken now, by name; empty where it can."""
        models = {place: promise.standing(self.nodes, place, now_s)[0] for place in REMOTE}
        left_bytes = self._purse(now_s).left_bytes
        good = allowed(self.space, floor)[0]
        learner = self.learners["response"]
        waits_s = self.local.waits_s(now_s)
        home = self.home(n, floor, left_s)
        fallback_s = None if home is None else n * self.local.paces[home].likely_s
        paces = {
            i: msgspec.structs.replace(pace, row_s=n * (pace.row_s or 0.0), spread_s=n * pace.spread_s)
            for i, pace in self.local.paces.items()
        }
        guesses = self._guesses(learner, state) if learner.steps > len(self.space.choices) else None
        in_time = promise.timely(
            self.space,
            (tuple(True for _ in self.space.choices),),
            guesses,
            paces,
            left_s=left_s,
            waits_s=waits_s,
            fallback_s=fallback_s,
        )[0]

        def why(i: int) -> str:
            choice = self.space.choices[i]
            if not good[i]:
                return "floor"
            if choice.place == "device":
                return "failed" if i not in self.local.paces else "" if in_time[i] else "deadline"
            if not self.up:
                return "link-down"
            if not models[choice.place]:
                return "nobody-there"
            if self.known[choice.variant].id not in models[choice.place]:
                return "not-offered"
            if n * self.space.variants[choice.variant].input_bytes > left_bytes:
                return "bytes"
            if self.shy.get(i, 0.0) > now_s:
                return "busy"
            return "" if in_time[i] else "deadline"

        return [why(i) for i in range(len(self.space.choices))]

    def home(self, n: int, floor: Floor, left_s: float) -> int | None:
        """The local choice that answers `n` rows when nothing else does, if any."""
        return promise.fallback(self.space, floor, self.local.paces, left_s / n)

    def choose(self, n: int, floor: Floor, left_s: float, pinned: tuple[object, object] = (None, None)) -> Chosen:
        """Decide where a request runs, and with which model.

        Args:
            n: its rows.
            floor: that the answering model must hold.
            left_s: until its deadline.
            pinned: variant and place that were asked for by name, or None.

        Raises:
            Refused: nothing that may answer is within reach.
        """
        now_s, began_s = time.monotonic(), time.perf_counter()
        state = self.now(now_s)
        obstacles = self._obstacles(n, floor, left_s, now_s, state)
        home = self.home(n, floor, left_s)
        if home is not None and obstacles[home] == "" and self.rng.random() < PROBE_FRAC:
            places = [choice.place for choice in self.space.choices]
            obstacles = [
                "" if why == "deadline" and place != "device" else why
                for why, place in zip(obstacles, places, strict=True)
            ]
        mask = tuple(not each for each in obstacles)
        if any(each is not None for each in pinned):
            choice, why = self._pinned(pinned, obstacles), "asked for"
        elif any(mask):
            goal = self.goal()
            choice = self.learners[goal].choose(state, (mask,), self.rng)[0]
            why = self._reason(choice, goal, state, mask)
        elif home is not None:
            choice, why = home, "nothing else is possible"
        else:
            raise Refused("no-model", f"no model that may answer is within reach: {self._summary(obstacles)}")
        self.counts["decisions"] += 1
        self.decided_s += (time.perf_counter() - began_s - self.decided_s) / min(100, self.counts["decisions"])
        self.last = (choice, why)
        return Chosen(choice, why, state)

    def _reason(self, choice: int, goal: Goal, state: State, mask: Sequence[bool]) -> str:
        """For people. Asking the learner what looks best would cost as much as deciding."""
        learner = self.learners[goal]
        if not learner.steps:
            return "nothing was learned yet"
        guesses = self._guesses(learner, state)
        if guesses is None:
            return f"chosen by {self.said.learner}"
        best = min((i for i, may in enumerate(mask) if may), key=lambda i: guesses[i].response_s)
        near_s = guesses[best].response_s + guesses[best].std_s
        quickest = "least energy" if goal == "energy" else "quickest"
        return f"{quickest} by what was learned" if guesses[choice].response_s <= near_s else "to learn more of it"

    @staticmethod
    def _guesses(learner: Learner, state: State) -> Sequence[Guess] | None:
        """What is expected of each choice; None from a learner that cannot say how sure it is."""
        found = learner.guess(state)
        return None if found is None else found[0]

    def _summary(self, obstacles: Sequence[str]) -> str:
        return ", ".join(f"{self.label(i)} {why}" for i, why in enumerate(obstacles) if why and why != "floor")[:400]

    def _pinned(self, pinned: tuple[object, object], obstacles: Sequence[str]) -> int:
        variant, place = pinned
        fitting = [
            i
            for i, choice in enumerate(self.space.choices)
            if variant in (None, self.known[choice.variant].manifest.name) and place in (None, choice.place)
        ]
        if not fitting:
            raise Refused("unknown-choice", f"there is no {variant or 'variant'!s:.80} at {place or 'any place'!s:.80}")
        # Who asks for one by name has thought about its deadline.
        able = [i for i in fitting if obstacles[i] in ("", "deadline", "busy")]
        if not able:
            why = self._summary([each if i in fitting else "" for i, each in enumerate(obstacles)])
            raise Refused("not-available", why or "below the accuracy that was asked for")
        variants = self.space.variants
        return max(able, key=lambda i: (not obstacles[i], variants[self.space.choices[i].variant].accuracy_frac))

    def learn(self, chosen: Chosen, took_s: float, *, came: bool, run_s: float, spent_bytes: int) -> None:
        """Teach the learners what came of a choice.

        Args:
            chosen: it.
            took_s: until somebody answered, or nobody.
            came: the answer is that of the choice.
            run_s: that this device computed for it.
            spent_bytes: that were sent and received for it.
        """
        if came:
            before = self._times.setdefault(chosen.choice, deque(maxlen=promise.REMEMBERED))
            tamed_s = promise.tamed_s(took_s, before)
            before.append(took_s)
        outcome = Outcome(
            response_s=tamed_s if came else None,
            failed_s=0.0 if came else took_s,
            joules=self.said.core_w * run_s + self.said.radio_j_per_mb * spent_bytes / 1e6,
            sent_bytes=spent_bytes,
        )
        self.learners["response"].observe(chosen.state, (chosen.choice,), [outcome])
        # An energy hardly scatters, and a lesson costs time: now and then is enough while nobody asks for the least.
        if self.goal() == "energy" or self.learners["response"].steps % ENERGY_EVERY == 1:
            self.learners["energy"].observe(chosen.state, (chosen.choice,), [outcome])

    def note(self, choice: int, floor: Floor, took_s: float, *, late: bool, fell_back: bool) -> None:
        """Write an answer into the history."""
        self.counts["late"] += late
        done = history.Answered(
            at_s=time.time(),
            choice=self.label(choice),
            response_s=took_s,
            late=late,
            fell_back=fell_back,
            accuracy_frac=self.known[self.space.choices[choice].variant].manifest.accuracy_frac,
            below=not allowed(self.space, floor)[0][choice],
        )
        self.windows = history.added(self.windows, done)

    def report(self) -> dict[str, object]:
        """A few hundred bytes for the status document and the telemetry; counters are totals since start."""
        last = self.windows[-1] if self.windows else None
        return {
            "up": self.up,
            "choice": None if self.last is None else self.label(self.last[0]),
            "why": None if self.last is None else self.last[1],
            "response_s": None if last is None else round(last.response_s, 6),
            "accuracy_frac": None if last is None else round(last.accuracy_frac, 4),
            **{name: self.counts[name] for name in ("requests", "refused", "late", "fell_back", "bytes")},
            "decision_s": round(self.decided_s, 6),
            "learned": self.learners["response"].steps,
            "changes": learner.changes if isinstance(learner := self.learners["response"], Hybrid) else 0,
        }

    def shown(self) -> dict[str, object]:
        """What `edgert offload show` prints."""
        now_s = time.monotonic()
        state, floor = self.now(now_s), Floor(self.said.accuracy_frac)
        obstacles = self._obstacles(1, floor, self.said.deadline_s, now_s, state)
        goal, mask = self.goal(), tuple(not each for each in obstacles)
        learner = self.learners[goal]
        best = learner.best(state, (mask,))[0] if any(mask) else None
        quickness = self.learners["response"]
        guesses = self._guesses(quickness, state) if quickness.steps else None
        choices = [
            {
                "variant": self.known[choice.variant].manifest.name,
                "place": choice.place,
                "accuracy_frac": self.known[choice.variant].manifest.accuracy_frac,
                "measured": self.known[choice.variant].manifest.accuracy[0].measured,
                "source": self.known[choice.variant].manifest.accuracy[0].source,
                "expected_s": None if guesses is None else round(guesses[i].response_s, 6),
                "std_s": None if guesses is None else round(guesses[i].std_s, 6),
                "bytes": 0 if choice.place == "device" else self.space.variants[choice.variant].input_bytes,
                "joules": self._joules(i),
                "obstacle": obstacles[i],
                "best": i == best,
            }
            for i, choice in enumerate(self.space.choices)
        ]
        return {
            **self.report(),
            "task": self.known[0].manifest.task,
            "goal": goal,
            "floor_frac": floor.accuracy_frac,
            "deadline_s": self.said.deadline_s,
            "left_bytes": int(self.purse.left_bytes),
            "state": msgspec.to_builtins(state),
            "nodes": {name: msgspec.to_builtins(node.load) for name, node in self.nodes.items()},
            "choices": choices,
            "windows": msgspec.to_builtins(self.windows),
        }

    def _joules(self, i: int) -> float:
        """What a row costs this device, by the configuration's two figures."""
        if self.space.choices[i].place == "device":
            pace = self.local.paces.get(i)
            return 0.0 if pace is None else round(self.said.core_w * (pace.row_s or 0.0), 6)
        sent = self.space.variants[self.space.choices[i].variant].input_bytes
        return round(self.said.radio_j_per_mb * sent / 1e6, 6)
