"""Who chooses where a device's jobs should go: the network that learned it, or one of the rules it is held against."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

import edgert
from edgert.config import Config
from edgert.errors import ArtifactError, ConfigError, StoreError, UsageError
from edgert.learn.backprop import accumulate
from edgert.learn.dqn import Learner
from edgert.nets import Params
from edgert.placement import agent, view
from edgert.placement.jobs import HOST, Job, Proposal, Split, pairs, traffic
from edgert.placement.load import Load
from edgert.placement.view import Sight
from edgert.policy import artifact
from edgert.ports import shards
from edgert.ports.store import write_atomic

BUNDLE = Path(edgert.__file__).parents[1] / "models" / "placer.edgert"
LESSON, LEARNING_RATE, MAX_GRAD_NORM = 8, 3e-4, 1.0
"""Outcomes that a step is taken from, and how far it goes."""
RECENT_S = 5.0
"""What this device has just proposed is in no report yet; after so long it is, or came to nothing."""

log = logging.getLogger("edgert.placer")


class PlacementPolicy:
    """Chooses places for jobs.

    Attributes:
        name: of who chooses.
    """

    def __init__(self, config: Config, me: str, state: Path | None = None) -> None:
        """Load the network, where one is to choose.

        Args:
            config: checked.
            me: this device.
            state: file of what was learned here; None learns nothing.

        Raises:
            ConfigError: the configuration names a bundle that cannot be used.
        """
        self.me, self.name = me, config.placement.agent
        self.masked = config.placement.shield != "none" or config.placement.head is not None
        self.rng = np.random.default_rng(int.from_bytes(me.encode()[-6:], "big"))
        self.params: Params | None = None
        self.draws = False
        """The network was better when it drew from its preferences than when it followed them."""
        self.lately: list[tuple[float, Proposal]] = []
        self._avoided: dict[str, set[int]] = {}
        self._state = state
        self._decided: dict[str, tuple[tuple[str, ...], tuple[agent.Choice, ...]]] = {}
        self._outcomes: list[agent.Outcome] = []
        if self.name == "learned":
            self._load(config.placement.bundle)
        self.learner = Learner(self.params) if self.params is not None and state is not None else None
        if self.learner is not None:
            self.draws = True
            self._resume(self.learner)

    def _load(self, named: str | None) -> None:
        path = Path(named) if named else BUNDLE
        try:
            policy = artifact.load(path.read_bytes())
            if policy.spec != agent.SPEC:
                raise ArtifactError("its network does not choose places")
            self.params = policy.params
            run = policy.manifest.provenance.get("run")
            self.draws = isinstance(run, dict) and run.get("acts") == "drawn"
        except (OSError, ArtifactError) as error:
            if named is not None:
                raise ConfigError(f"placement.bundle: {path}: {error}") from error
            log.warning("%s: %s: the least loaded device is chosen instead", path, error)
            self.name = "least-loaded"

    def _resume(self, learner: Learner) -> None:
        """Go on from what was learned here before; what cannot be read is learned anew."""
        try:
            assert self._state is not None
            learner.restore(*shards.unpack_state(self._state.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ArtifactError, UsageError) as error:
            log.warning("%s: %s: what was learned about placing is lost", self._state, error)

    def ended(self, job: str, nodes: tuple[str, ...], job_s: float, work_s: float) -> None:
        """A job of this device was trained: after some of them the network learns which choices were good.

        Args:
            job: its name.
            nodes: where it ran; a choice that the shield changed says nothing.
            job_s: from its submission on.
            work_s: of the reference core.
        """
        chosen, choices = self._decided.pop(job, ((), ()))
        if self.learner is None or chosen != nodes or not choices:
            return
        self._outcomes.append(agent.Outcome(choices, job_s, work_s))
        if len(self._outcomes) < LESSON:
            return
        outcomes, self._outcomes = self._outcomes, []
        made = [choice for each in outcomes for choice in each.choices]
        told = agent.lesson(self.learner.params, made, agent.worth(outcomes))
        grads = self.learner.grads
        accumulate(self.learner.params, told.obs, lambda _, part: {0: told.d_out[part]}, grads)
        try:
            self.learner.descend(told.loss, LEARNING_RATE, MAX_GRAD_NORM)
            if self._state is not None:
                write_atomic(self._state, shards.pack_state(self.learner.arrays(), self.learner.steps))
        except (StoreError, UsageError) as error:
            log.error("what was learned about placing is not kept: %s", error)

    def choose(
        self,
        job: Job,
        loads: Mapping[str, Load],
        now_s: float,
        attempt: int,
        session: int,
        dead_s: float,
        me: str | None = None,
    ) -> Proposal | None:
        """Where a job should go; None to wait.

        Args:
            job: to place.
            loads: node -> its last report.
            now_s: monotonic seconds.
            attempt: of the placement.
            session: of this daemon.
            dead_s: a report as old as that says nothing any more.
            me: for whom, where it is not this device.
        """
        mine = me or self.me
        offered, job = job, msgspec.structs.replace(job, splits=self._carried(job, loads))
        known = {node: load for node, load in loads.items() if now_s - load.at_s < dead_s or node == mine}
        known = {node: load for node, load in known.items() if load.capacity.cores > 0 or node == mine}
        self.lately = [(then_s, each) for then_s, each in self.lately if now_s - then_s < RECENT_S]
        sight = view.look(mine, known, now_s)
        for _, each in self.lately:
            if all(node in known for node in each.nodes) and each.job.id != job.id:
                sight = view.taken(sight, each)
        if self.params is not None:
            rng = self.rng if self.draws else None
            decided = agent.propose(
                self.params, job, sight, now_s, attempt=attempt, session=session, masked=self.masked, rng=rng
            )
            chosen = decided.proposal
            if chosen is not None and self.learner is not None and mine == self.me:
                self._decided[job.id] = chosen.nodes, decided.choices
        else:
            chosen = self._rule(job, sight, attempt, session)
        if chosen is None:
            return None
        at = offered.splits.index(job.splits[chosen.split])
        chosen = msgspec.structs.replace(chosen, job=offered, split=at)
        self.lately.append((now_s, chosen))
        return chosen

    def refused(self, job: str, split: int) -> None:
        """No room was found anywhere for a job cut like this: another way is tried before."""
        self._avoided.setdefault(job, set()).add(split)

    def forget(self, job: str) -> None:
        """A job has its places, or is over."""
        self._avoided.pop(job, None)

    def _carried(self, job: Job, loads: Mapping[str, Load]) -> tuple[Split, ...]:
        """The ways to cut a job that links can carry, those without that found no room lately; all, where that is none.

        What two parts exchange in a second is least between the slowest nodes.
        """
        slowest = min((load.capacity.speed for load in loads.values()), default=1.0)
        widest = max((load.capacity.link_bytes_per_s for load in loads.values()), default=0.0)
        possible = [k for k, split in enumerate(job.splits) if _traffic(split, slowest) <= widest] or [0]
        avoided = self._avoided.get(job.id, set())
        if avoided.issuperset(possible):
            self.forget(job.id)
            avoided = set()
        return tuple(job.splits[k] for k in possible if k not in avoided)

    def _rule(self, job: Job, sight: Sight, attempt: int, session: int) -> Proposal:
        """By a rule that knows nothing of the job: a whole job on the least loaded device, or anything anywhere."""
        open_ = np.flatnonzero(sight.cores > 0) if (sight.cores > 0).any() else np.arange(len(sight.names))
        if self.name == "random":
            split = int(self.rng.integers(len(job.splits)))
            at = self.rng.choice(open_, size=len(job.splits[split].parts))
        else:
            split = 0
            free = (sight.speed * sight.free_cores)[open_]
            at = np.resize(open_[np.argsort(-free, kind="stable")], len(job.splits[0].parts))
        nodes = tuple(sight.names[int(n)] for n in at)
        return Proposal(job=job, attempt=attempt, split=split, nodes=nodes, session=session)


def _traffic(split: Split, speed: float) -> float:
    """Bytes a second that the busiest part moves, each part on a node of its own of that speed."""
    moved = [0.0] * len(split.parts)
    for (one, other), size in pairs(split).items():
        rate = traffic(split, one, other, size, (speed, speed))
        for k in (one, other):
            if k != HOST:
                moved[k] += rate
    return max(moved)
