"""One device's learning in one process and in virtual time: the real trainer, a fake link and a teacher of any quality.

`python -m tools.bench.rlink.simulate --world catch --teacher adversarial --transitions 12000 --seeds 3` prints what the
student earns with this teacher and how far it was believed. Nothing here claims a speed: it is for judging how a
teacher is weighed, in minutes instead of hours. What acts is the last network that the gate let through, as on a board.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from edgert import config, quant, wire
from edgert.bundle import schema_hash
from edgert.knowledge import codec
from edgert.nets import F32, U8, Params, forward, initialise
from edgert.policy import artifact, exits
from edgert.ports.cluster import GAMES
from edgert.ports.plant import worlds
from edgert.ports.process import Layout
from edgert.ports.ring import TERMINATED, TRUNCATED, RingWriter
from edgert.programs.trainer import STEPS_AT_ONCE, Trainer
from edgert.values import Answer, Ask, Budget

MODELS = Path(__file__).parents[3] / "models"
Values = Callable[[U8], F32]
"""(n, H, W, C) uint8 -> (n, A) float32."""
NAME = "simulated"
"""Of every teacher, for those who vouch for theirs."""
TEACHERS = ("none", "good", "weak", "muddled", "early", "random", "adversarial", "reversed")


class World(Protocol):
    """What is played."""

    def reset(self) -> U8:
        """Begin an episode."""

    def step(self, action: int) -> tuple[U8, float, bool, bool]:
        """Observation, reward, terminated, truncated."""


class Catch:
    """A ball falls and bounces between two walls; a paddle that is there when it comes down earns 1, else -1.

    Its values are known exactly, so that a teacher of any quality can be made without training one.
    """

    SIDE, GAMMA = 10, 0.99

    def __init__(self, seed: int) -> None:
        """Start between two episodes."""
        self._rng = np.random.default_rng(seed)

    def reset(self) -> U8:
        """Begin an episode."""
        self.row, self.column = 0, int(self._rng.integers(self.SIDE))
        self.drift, self.paddle = int(self._rng.integers(-1, 2)), int(self._rng.integers(self.SIDE))
        return self._show()

    def step(self, action: int) -> tuple[U8, float, bool, bool]:
        """Move the paddle by action - 1, then the ball."""
        self.paddle = min(self.SIDE - 1, max(0, self.paddle + action - 1))
        self.row += 1
        self.column, self.drift = _bounced(self.column, self.drift)
        over = self.row == self.SIDE - 1
        return self._show(), (1.0 if self.column == self.paddle else -1.0) if over else 0.0, over, False

    def _show(self) -> U8:
        shown = np.zeros((self.SIDE, self.SIDE, 4), np.uint8)
        shown[self.row, self.column, 0] = 1
        shown[self.SIDE - 1, self.paddle, 1] = 1
        shown[:, 0, 2] = self.drift > 0
        shown[:, 0, 3] = self.drift < 0
        return shown

    @classmethod
    def values(cls, obs: U8, *, drifts: bool = True) -> F32:
        """What each action is really worth, or would be if balls fell straight."""
        q = np.zeros((len(obs), 3), np.float32)
        for i, shown in enumerate(obs):
            row, column = (int(each[0]) for each in np.nonzero(shown[:, :, 0]))
            paddle = int(np.flatnonzero(shown[cls.SIDE - 1, :, 1])[0])
            drift = (int(shown[0, 0, 2]) - int(shown[0, 0, 3])) * drifts
            left = cls.SIDE - 1 - row
            for _ in range(left):
                column, drift = _bounced(column, drift)
            for action in range(3):
                moved = min(cls.SIDE - 1, max(0, paddle + action - 1))
                q[i, action] = cls.GAMMA ** (left - 1) * (1 if abs(column - moved) <= left - 1 else -1)
        return q


def _bounced(column: int, drift: int) -> tuple[int, int]:
    if not 0 <= column + drift < Catch.SIDE:
        drift = -drift
    return column + drift, drift


class Game:
    """A MinAtar game as a `World`."""

    def __init__(self, env_id: str, seed: int) -> None:
        """Make it."""
        self._env, self._seed = worlds.make(env_id), seed

    def reset(self) -> U8:
        """Begin an episode."""
        shown, _ = self._env.reset(seed=self._seed)
        self._seed += 1
        return np.asarray(shown, np.uint8)

    def step(self, action: int) -> tuple[U8, float, bool, bool]:
        """One decision."""
        shown, reward, terminated, truncated, _ = self._env.step(action)
        return np.asarray(shown, np.uint8), float(reward), bool(terminated), bool(truncated)


def network(params: Params) -> Values:
    """What a network says of actions, at its last exit."""
    last, n_actions = params.spec.n_exits - 1, params.spec.n_actions
    return lambda obs: np.asarray(forward(params, obs, exits=(last,))[last][:, :n_actions], np.float32)


def teacher(name: str, world: str, seed: int) -> Values | None:
    """A teacher by its quality; answers of all of them depend on the observation alone."""
    stem = "breakout" if world == "catch" else world
    policy = artifact.load((MODELS / f"{stem}-teacher.edgert").read_bytes())

    good = Catch.values if world == "catch" else network(policy.params)
    rng = np.random.default_rng(seed)

    def muddled(obs: U8) -> F32:
        """Says in most states, always the same ones, what is right of another action."""
        q = good(obs).copy()
        for row, shown in zip(q, obs, strict=True):
            chance = np.random.default_rng(int.from_bytes(codec.digest(shown.tobytes())[:8], "big") + seed)
            if chance.random() < 0.7:
                row[:] = row[chance.permutation(len(row))]
        return q

    noisy = policy.params.copy()
    noisy.flat[:] += 0.7 * float(noisy.flat.std()) * rng.standard_normal(noisy.flat.size).astype(np.float32)
    spoilt = network(noisy)

    def reversed_(obs: U8) -> F32:
        q = good(obs)
        return np.asarray(q.max(1, keepdims=True) + q.min(1, keepdims=True) - q, np.float32)

    made: dict[str, Values | None] = {
        "none": None,
        "good": good,
        "weak": lambda obs: Catch.values(obs, drifts=False) if world == "catch" else spoilt(obs),
        "muddled": muddled,
        "early": network(artifact.load((MODELS / f"{stem}.edgert").read_bytes()).params),
        "random": network(initialise(policy.spec, rng)),
        "adversarial": lambda obs: -good(obs),
        "reversed": reversed_,
    }
    return made[name]


class Link:
    """Stands in for the supervisor, the broker and the teacher's process.

    Attributes:
        now_s: virtual time, the caller's to set.
        bytes: of questions and answers so far.
    """

    lost_s = None

    def __init__(self, values: Values | None, rtt_s: float, loss: float, seed: int) -> None:
        """Begin with nothing under way; without `values` nobody answers."""
        self.now_s, self.bytes = 0.0, 0
        self._values, self._rtt_s, self._loss = values, rtt_s, loss
        self._rng = np.random.default_rng(seed)
        self._coming: list[tuple[float, int, bytes]] = []

    def send(self, told: Any, *, keep: bool = False) -> bool:
        """Take a question to the teacher; whatever else is told is heard by nobody."""
        if isinstance(told, Ask) and self._values is not None:
            self.bytes += len(told.payload)
            if self._rng.random() >= self._loss:
                asked, _ = wire.decode(told.payload, wire.KnowAsk)
                q = self._values(codec.CODECS[asked.codec].decode_obs(asked.data, asked.count, asked.obs_shape))
                answer = wire.KnowAnswer(
                    teacher=NAME,
                    count=asked.count,
                    codec=asked.codec,
                    data=codec.CODECS[asked.codec].encode_q(q),
                )
                due_s = self.now_s + self._rtt_s * (0.5 + self._rng.random())
                heapq.heappush(self._coming, (due_s, told.ask_id, wire.encode(answer)))
        return True

    def receive(self) -> list[Any]:
        """Give the answers that have arrived by now."""
        came = []
        while self._coming and self._coming[0][0] <= self.now_s:
            _, ask_id, payload = heapq.heappop(self._coming)
            self.bytes += len(payload)
            came.append(Answer(ask_id, payload))
        return came

    def close(self) -> None:
        """Hold nothing, let nothing go."""


def simulate(
    world: str,
    values: Values | None,
    *,
    transitions: int,
    seed: int,
    rate_hz: float = 50.0,
    steps_per_transition: float = 0.5,
    rtt_s: float = 0.05,
    loss: float = 0.0,
    bytes_per_s: float = 8000.0,
    candidate_transitions: int = 500,
    settings: dict[str, object] | None = None,
    student: Path | None = None,
) -> dict[str, Any]:
    """Let one student learn.

    Args:
        world: `catch` or the stem of a bundle.
        values: the teacher; None for learning alone.
        transitions: how long.
        seed: of everything.
        rate_hz: decisions a virtual second.
        steps_per_transition: gradient steps.
        rtt_s: to the teacher and back, on the average.
        loss: share of questions without an answer.
        bytes_per_s: both ways.
        candidate_transitions: between two networks offered.
        settings: more of the device's configuration.
        student: bundle to begin with; random weights of this seed in the shape of the shipped one without it.

    Returns:
        The returns of its episodes as (transition, return), how far the teacher was believed, and totals.
    """
    rng = np.random.default_rng(seed)
    fresh = _fresh("breakout" if world == "catch" else world, rng) if student is None else student.read_bytes()
    plays: World = Catch(seed) if world == "catch" else Game(GAMES[world], 1000 * seed)
    with tempfile.TemporaryDirectory(prefix="edgert-") as name:
        folder = Path(name)
        (folder / "student.edgert").write_bytes(fresh)
        chosen: dict[str, object] = {
            "device.id": f"simulated-{seed}",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder / "run"),
            "policy.bundle": str(folder / "student.edgert"),
            "teacher.enabled": values is not None,
            "learn.steps_per_transition": steps_per_transition,
            **(settings or {}),
        }
        told = config.parse(config.commented_default(chosen), "simulated")
        layout = Layout(told)
        layout.make()
        policy = artifact.load(fresh)
        trainer = Trainer(told, layout, policy, seed=seed)
        link = Link(values, rtt_s, loss, seed)
        trainer.parent = link  # type: ignore[assignment]  # what the trainer needs of one
        hz = rate_hz * max(1.0, steps_per_transition)
        budget = Budget(max_exit=policy.spec.n_exits - 1, train_steps_hz=hz, teacher_bytes_per_s=bytes_per_s)
        trainer._heed(budget, 0.0)
        ring = RingWriter(layout.ring, policy.spec.input_shape, 20_000, schema_hash(policy.manifest))
        try:
            return _live(trainer, link, plays, ring, rng, transitions, rate_hz, candidate_transitions)
        finally:
            ring.close()
            trainer.schooling.close()


def _fresh(stem: str, rng: np.random.Generator) -> bytes:
    """A shipped bundle with random weights."""
    parent = artifact.load((MODELS / f"{stem}.edgert").read_bytes())
    params = initialise(parent.spec, rng)
    return artifact.derive(parent, params, quant.fit(params, parent.golden_obs), created="", provenance={})


def _explore_frac(policy: config.Policy, step: int, transitions: int) -> float:
    """As the device is told; where it is told nothing, down to 5 % in the first quarter."""
    end, over = policy.explore_frac, policy.explore_transitions
    if not over:
        end, over = 0.05, transitions // 4
    return end + (policy.explore_from_frac - end) * max(0.0, 1.0 - step / over)


def _live(
    trainer: Trainer,
    link: Link,
    plays: World,
    ring: RingWriter,
    rng: np.random.Generator,
    transitions: int,
    rate_hz: float,
    candidate_transitions: int,
) -> dict[str, Any]:
    obs, episode, total = plays.reset(), 1, 0.0
    returns: list[tuple[int, float]] = []
    trust: list[tuple[int, float]] = []
    for step in range(1, transitions + 1):
        link.now_s = step / rate_hz
        explore = _explore_frac(trainer.config.policy, step, transitions)
        greedy = int(exits.decide(trainer.acting.heads(obs[None]), trainer.thresholds)[0])
        action = int(rng.integers(trainer.spec.n_actions)) if rng.random() < explore else greedy
        following, reward, terminated, truncated = plays.step(action)
        flags = TERMINATED * terminated + TRUNCATED * truncated
        ring.append(obs, episode=episode, action=action, reward=reward, flags=flags, exit=0)
        obs, total = following, total + reward
        if flags:
            returns.append((step, total))
            obs, episode, total = plays.reset(), episode + 1, 0.0
        if step % STEPS_AT_ONCE == 0:
            for said in link.receive():
                trainer._heed(said, link.now_s)
            trainer.read_ring()
            trainer._ask(link.now_s)
            trainer.schooling.turn(link.now_s, trainer.replay)
            trainer._train(STEPS_AT_ONCE / rate_hz)
        if step % candidate_transitions == 0:
            trainer.offer()
            trust.append((step, round(trainer.schooling.weight, 3)))
    return {
        "returns": returns,
        "trust": trust,
        "faults": trainer.schooling.all_faults(),
        "bytes": link.bytes,
        "counters": msgspec.to_builtins(trainer.schooling.tutor.student.counters),
        "accepted": trainer.counters["accepted"],
        "steps": trainer.learner.steps,
    }


def earned(found: dict[str, Any], parts: int = 6) -> list[float]:
    """Mean return of the episodes that ended in each equal part of the run."""
    last = max(step for step, _ in found["returns"])
    by_part = [[each for step, each in found["returns"] if (step - 1) * parts // last == i] for i in range(parts)]
    return [round(float(np.mean(part)), 3) if part else float("nan") for part in by_part]


def main() -> None:
    """Print one line a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--world", default="catch")
    parser.add_argument("--teacher", nargs="+", default=["none"], choices=TEACHERS)
    parser.add_argument("--transitions", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps-per-transition", type=float, default=0.5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="of the device's configuration")
    args = parser.parse_args()
    settings = {key: json.loads(value) for key, _, value in (each.partition("=") for each in args.set)}
    for seed in range(args.seeds):
        for name in args.teacher:
            found = simulate(
                args.world,
                teacher(name, args.world, seed),
                transitions=args.transitions,
                seed=seed,
                steps_per_transition=args.steps_per_transition,
                settings=settings,
            )
            line = {"teacher": name, "seed": seed, "earned": earned(found), "trust": [w for _, w in found["trust"]]}
            line |= {key: found[key] for key in ("faults", "bytes", "accepted", "steps")}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
