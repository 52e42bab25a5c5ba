"""What is to be run: tasks, arms, links and teachers, and the commands that make the bundles.

A run is named by a hash of everything that it depends on, so that what is finished is found, and a changed setting
is another run. Control is in lockstep and, but for the parts about the link, faster than real time: convergence is
counted in environment steps, and a round trip of 50 ms is then many more steps than the two or three it would be.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgert.ports.relay import Shape
from tools.bench.rlink.live import Fault

SHIPPED = Path(__file__).parents[3] / "models"
PARTS = ("convergence", "link", "harm", "outage")
Settings = dict[str, Any]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One environment, with what it takes to learn it.

    Attributes:
        game: key of `cluster.GAMES`.
        env: gymnasium id.
        net: of the student, key of `tools.nets.NETS`.
        steps: transitions of a run.
        every: transitions between two networks that act.
        episodes: test episodes of each judged network.
        judged: networks judged of each run, at most.
        seeds: runs of each arm.
        settings: of every arm alike.
        tuned: arm -> what a small grid found best for it; see `GRIDS`.
        teacher: arguments of `tools.train`, empty where the teacher is shipped.
        ceiling: no policy can do better; None where nobody knows.
        step_cpu_s: CPU seconds a transition costs in all processes, to foretell what a run takes.
    """

    game: str
    env: str
    net: str
    steps: int
    every: int
    episodes: int = 20
    judged: int = 40
    seeds: int = 10
    settings: Settings = {}
    tuned: dict[str, Settings] = {}
    teacher: tuple[str, ...] = ()
    ceiling: float | None = None
    step_cpu_s: float = 0.002


COMMON: Settings = {
    "govern.cpu_high_frac": 1.0,
    "policy.deadline_s": 0.5,
    "plant.lockstep_hz": 1000.0,
    "policy.explore_frac": 0.02,
    "learn.train_steps_hz": 1000.0,
    "learn.min_transitions": 300,
    "teacher.max_bytes_per_s": 100_000.0,
}

VALUES: Settings = {
    "learn.steps_per_transition": 0.5,
    "learn.batch": 64,
    "learn.learning_rate": 1e-3,
    "learn.target_every": 100,
    "learn.ring_transitions": 50_000,
}
MINATAR: Settings = {
    "learn.steps_per_transition": 0.25,
    "learn.batch": 32,
    "learn.learning_rate": 2.5e-4,
    "learn.target_every": 1000,
    "learn.ring_transitions": 100_000,
    "learn.min_transitions": 2000,
    "policy.explore_transitions": 50_000,
}
SMALL_TEACHER: tuple[str, ...] = (
    "--net",
    "values-teacher",
    "--n-envs",
    "8",
    "--batch",
    "128",
    "--frames-per-update",
    "8",
)
SMALL_TEACHER += ("--warm-up", "2000", "--replay", "50000", "--n-step", "3", "--epsilon", "0.05")

TASKS: dict[str, Task] = {
    "cartpole": Task(
        game="cartpole",
        env="CartPole-v1",
        net="values",
        steps=12_000,
        every=200,
        episodes=10,
        judged=60,
        settings={**VALUES, "policy.explore_transitions": 4000},
        tuned={
            "alone": {"learn.learning_rate": 2.5e-4},
            "alone-replay": {"learn.learning_rate": 2.5e-4},
            "alone-gated": {"learn.learning_rate": 2.5e-4},
            "ours": {"learn.learning_rate": 2.5e-4, "learn.taught_learning_rate": 1e-3},
        },
        teacher=(*SMALL_TEACHER, "--frames", "200000", "--explore-frames", "20000", "--learning-rate", "5e-4"),
        ceiling=500.0,
        step_cpu_s=0.0015,
    ),
    "acrobot": Task(
        game="acrobot",
        env="Acrobot-v1",
        net="values",
        steps=15_000,
        every=300,
        episodes=10,
        judged=40,
        settings={**VALUES, "policy.explore_transitions": 5000},
        tuned={
            "alone": {"learn.learning_rate": 2.5e-4},
            "alone-replay": {"learn.learning_rate": 2.5e-4},
            "alone-gated": {"learn.learning_rate": 2.5e-4},
            "ours": {"learn.learning_rate": 2.5e-4, "learn.taught_learning_rate": 1e-3},
        },
        teacher=(*SMALL_TEACHER, "--frames", "150000", "--explore-frames", "30000", "--learning-rate", "5e-4"),
        step_cpu_s=0.0017,
    ),
    "lunarlander": Task(
        game="lunarlander",
        env="LunarLander-v3",
        net="values",
        steps=100_000,
        every=1000,
        settings={**VALUES, "policy.explore_transitions": 20_000},
        teacher=(
            *(*SMALL_TEACHER, "--frames", "500000", "--explore-frames", "50000", "--learning-rate", "5e-4"),
            "--no-clip-reward",
        ),
        step_cpu_s=0.0018,
    ),
    **{
        name: Task(
            game=name,
            env=env,
            net="student",
            steps=300_000,
            every=4000,
            settings=MINATAR,
            teacher=teacher,
            step_cpu_s=0.003,
        )
        for name, env, teacher in (
            ("breakout", "MinAtar/Breakout-v1", ()),
            ("space_invaders", "MinAtar/SpaceInvaders-v1", ()),
            ("asterix", "MinAtar/Asterix-v1", ("--net", "teacher", "--frames", "3000000")),
        )
    },
    "pong": Task(
        game="pong",
        env="ALE/Pong-v5",
        net="camera2",
        steps=400_000,
        every=10_000,
        episodes=5,
        judged=20,
        seeds=3,
        settings={**MINATAR, "learn.ring_transitions": 30_000},
        ceiling=21.0,
        step_cpu_s=0.02,
    ),
}

# The gate is a part of what is compared: a baseline acts with what it has just learned, as its authors' did.
ALONE: Settings = {"teacher.enabled": False, "learn.gated": False, "learn.td_weight": 1.0}
DISTILLED: Settings = {"teacher.enabled": True, "learn.gated": False, "teacher.weighing": "full"}
OURS: Settings = {"teacher.enabled": True, "bench.vouched": True}
ARMS: dict[str, Settings] = {
    "alone": ALONE,
    "alone-replay": {**ALONE, "learn.steps_per_transition": 2.0},
    "alone-gated": {**ALONE, "learn.gated": True},
    "cloning": {**DISTILLED, "learn.td_weight": 0.0},
    "kickstarting": {**DISTILLED, "learn.td_weight": 1.0, "learn.distill_transitions": 0.5},
    "qdagger": {**DISTILLED, "learn.td_weight": 1.0, "teacher.weighing": "return"},
    "advising": {**ALONE, "bench.advice_frac": 0.25, "bench.ask_batch": 1},
    "sync": {**ALONE, "learn.td_weight": 0.1, "learn.distill_weight": 1.0, "bench.ask_batch": 1},
    "ours": OURS,
    "ours-stranger": {**OURS, "bench.vouched": False},
    "ours-ungated": {**OURS, "learn.gated": False},
}
"""Live over the whole path, but for `advising` and `sync`, which by their nature wait for the teacher: `baselines`, for
which the keys of `bench` are. Shares of a run are multiplied by its steps."""
IN_PROCESS = ("advising", "sync")
GATED = "alone-gated"
"""What ours is without a teacher: tells the price of the gate from the harm of a bad teacher, and is lived for that."""
ABLATIONS = ("ours-stranger", "ours-ungated")
"""Lived only where `--arms` names them: what a part of ours costs or brings."""
DISTILLATIONS = ("cloning", "kickstarting", "qdagger")

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "alone": {"learn.learning_rate": (2.5e-4, 5e-4, 1e-3, 2e-3), "learn.target_every": (50, 100, 250, 1000)},
    "alone-replay": {"learn.steps_per_transition": (1.0, 2.0, 4.0)},
    "cloning": {"learn.learning_rate": (5e-4, 1e-3, 2e-3)},
    "kickstarting": {"learn.distill_transitions": (0.25, 0.5, 1.0), "learn.distill_weight": (0.3, 1.0, 3.0)},
    "qdagger": {"learn.distill_weight": (0.3, 1.0, 3.0)},
    "advising": {"bench.advice_frac": (0.1, 0.25, 0.5)},
    "sync": {"bench.ask_batch": (1, 32)},
    "ours": {"learn.distill_weight": (0.3, 1.0, 3.0), "learn.learning_rate": (2.5e-4, 5e-4, 1e-3, 2e-3)},
}
"""What each arm may be tuned over, with seeds of its own (101, 102, 103); the best goes into `Task.tuned`."""
TUNING_SEEDS = (101, 102, 103)

PERFECT = "1ms"
USUAL = "50ms"
WORST = "64kbit-500ms-20%"
LINKS: dict[str, Shape] = {
    PERFECT: Shape(delay_s=0.0005),
    "20ms": Shape(delay_s=0.01),
    USUAL: Shape(delay_s=0.025),
    "100ms": Shape(delay_s=0.05),
    "500ms": Shape(delay_s=0.25),
    "100ms-5%": Shape(delay_s=0.05, loss_frac=0.05),
    "100ms-20%": Shape(delay_s=0.05, loss_frac=0.2),
    "64kbit": Shape(delay_s=0.025, rate_bytes_s=8000.0),
    WORST: Shape(delay_s=0.25, rate_bytes_s=8000.0, loss_frac=0.2),
}
"""By round trip; losses are of segments, in each direction."""
LINK_TASKS = ("cartpole", "breakout")
LINK_HZ = 50.0
"""CartPole's physics take 20 ms a step: at this rate they run in real time, and a round trip is as many steps long as
it would be on the cart."""
LINK_SEEDS = 3
LINK_FRAC = 1 / 3
"""Share of a run that is lived on each link: all of them have converged by then where the link is perfect."""
RATE_STEPS = 400
"""Steps of a blocking student that are timed on each link: its convergence in steps is the same on all of them."""

TEACHERS = ("good", "third", "random", "adversarial")
OUTAGE_TASK = "cartpole"


ELSEWHERE = (
    "codec_vs_zstd3_min_x",
    "codec_vs_zstd9_stream_min_x",
    "codec_vs_dedup_stream_min_x",
    "codec_time_vs_zstd9",
    "codec_encode_us_max",
    "wire_bytes_per_transition",
    "train_time_vs_torch_minatar",
    "train_time_vs_torch_nature",
    "train_time_vs_torch_drone",
    "train_peak_memory_vs_torch_max",
)
"""Keys of the result file that `python -m tools.bench rlink codec` and `python -m tools.bench train` measure."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        part: what it is for.
        task, arm, link, teacher: keys of the tables above.
        seed: of environment, link and initial network.
        steps: transitions.
        settings: of the device, all of them.
        faults: on the way.
    """

    part: str
    task: str
    arm: str
    link: str
    teacher: str
    seed: int
    steps: int
    settings: Settings
    faults: tuple[Fault, ...] = ()

    @property
    def key(self) -> str:
        """The same for the same run, whatever part it is wanted for."""
        told = {**msgspec.to_builtins(self), "part": "", "shape": msgspec.to_builtins(LINKS[self.link])}
        digest = hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:10]
        return f"{self.task}-{self.arm}-{self.link}-{self.teacher}-{self.seed}-{digest}"

    @property
    def estimate_s(self) -> float:
        """Wall-clock seconds on two busy cores: what it waits for and what it computes."""
        hz = float(self.settings.get("plant.lockstep_hz", 1000.0))
        acts_s = self.steps * max(1 / hz, TASKS[self.task].step_cpu_s * 1.5)
        waits = self.steps / int(self.settings.get("bench.ask_batch", 1)) if self.arm == "sync" else 0
        return 12 + acts_s + waits * 2 * LINKS[self.link].delay_s


def settings_of(task: Task, arm: str, steps: int) -> Settings:
    """All settings of a device; shares of a run become transitions."""
    found = {**COMMON, **task.settings, "learn.candidate_transitions": task.every}
    found |= {**ARMS[arm], **task.tuned.get(arm, {})}
    if "learn.distill_transitions" in found:
        found["learn.distill_transitions"] = max(1, round(found["learn.distill_transitions"] * steps))
    return found


def _run(part: str, task: str, arm: str, seed: int, **other: Any) -> Planned:
    about = TASKS[task]
    steps = int(other.pop("steps", about.steps))
    settings = {**settings_of(about, arm, steps), **other.pop("settings", {})}
    told = {"link": USUAL, "teacher": "good", **other}
    return Planned(part=part, task=task, arm=arm, seed=seed, steps=steps, settings=settings, **told)


def planned(
    parts: Iterable[str], tasks: Sequence[str], arms: Sequence[str] = (), seeds: int | None = None
) -> list[Planned]:
    """All runs of these parts, the first seed of everything first."""
    found: list[tuple[int, Planned]] = []
    for part in parts:
        for name in tasks:
            for run in _part(part, name, seeds):
                if run.arm in arms if arms else run.arm not in ABLATIONS:
                    found.append((run.seed, run))
    unique = {run.key: run for _, run in sorted(found, key=lambda pair: pair[0])}
    return list(unique.values())


def _part(part: str, name: str, seeds: int | None) -> Iterable[Planned]:
    task = TASKS[name]
    n = task.seeds if seeds is None else seeds
    if part == "convergence":
        for seed in range(1, n + 1):
            for arm in (arm for arm in ARMS if arm != GATED):
                # Asking for each observation by itself only waits longer: in steps it converges alike.
                asks = {"bench.ask_batch": 32} if arm == "sync" else {}
                yield _run(part, name, arm, seed, settings=asks)
    elif part == "harm":
        for seed in range(1, n + 1):
            yield _run(part, name, "alone", seed)
            yield _run(part, name, GATED, seed)
            for teacher in TEACHERS[1:]:
                yield _run(part, name, "ours", seed, teacher=teacher)
    elif part == "link" and name in LINK_TASKS:
        for seed in range(1, min(n, LINK_SEEDS) + 1):
            for link in LINKS:
                slow = {"plant.lockstep_hz": LINK_HZ}
                yield _run(part, name, "ours", seed, link=link, steps=round(LINK_FRAC * task.steps), settings=slow)
                if seed == 1:
                    yield _run(part, name, "sync", seed, link=link, steps=RATE_STEPS, settings=slow)
    elif part == "outage" and name == OUTAGE_TASK:
        for seed in range(1, min(n, LINK_SEEDS) + 1):
            begins = task.steps // 10
            for faults in ((Fault(begins, "outage", 30.0),), (Fault(begins, "broker"), Fault(2 * begins, "reset"))):
                yield _run(part, name, "ours", seed, faults=faults, settings={"plant.lockstep_hz": LINK_HZ})


class Made(msgspec.Struct, frozen=True):
    """A bundle: where it lies, and the commands that make it."""

    path: Path
    commands: tuple[tuple[str, ...], ...] = ()

    @property
    def there(self) -> bool:
        """Whether it is made."""
        return self.path.exists()


Role = Literal["student", "good", "third", "random", "adversarial"]


def made(runs: Path, name: str, role: str, seed: int = 1) -> Made:
    """A task's bundle: a student of random weights, or a teacher of some quality.

    Args:
        runs: folder of everything.
        name: of the task.
        role: `student`, or one of `TEACHERS`.
        seed: of the student's random weights.
    """
    task, folder = TASKS[name], runs / "models"
    python = (sys.executable, "-m")
    shipped = SHIPPED / f"{task.game}-teacher.edgert"
    good_run, good = folder / f"{name}-teacher", folder / f"{name}-teacher.edgert"

    def train(out: Path, *arguments: str) -> tuple[str, ...]:
        return (*python, "tools.train", "--env", task.env, "--out", str(out), *arguments)

    def export(run: Path, out: Path, *arguments: str) -> tuple[str, ...]:
        # Of a teacher, too, only one network is wanted, and nobody's word on how well it plays: `judge` finds out.
        return (
            *python,
            "tools.export",
            "--run",
            str(run),
            "--task",
            name,
            "--out",
            str(out),
            "--episodes",
            "0",
            *arguments,
        )

    untrained = ("--frames", "2", "--n-envs", "2", "--batch", "8", "--eval-episodes", "2", "--test-episodes", "2")
    if role == "student":
        run = folder / f"{name}-initial-{seed}"
        out = folder / f"{name}-{seed}.edgert"
        return Made(out, (train(run, "--net", task.net, "--seed", str(seed), *untrained), export(run, out)))
    if role == "good":
        if not task.teacher:
            return Made(shipped)
        return Made(good, (train(good_run, *task.teacher), export(good_run, good, "--without-exits")))
    if role == "random":
        run, out = folder / f"{name}-random", folder / f"{name}-random.edgert"
        return Made(out, (train(run, "--net", task.net, "--seed", "999", *untrained), export(run, out)))
    source = good if task.teacher else shipped
    out = folder / f"{name}-{role}.edgert"
    spoil = (*python, "tools.bench.rlink.models", role, "--bundle", str(source), "--env", task.env, "--out", str(out))
    return Made(out, (spoil,))


def bundles(runs: Path, wanted: Iterable[Planned]) -> list[Made]:
    """Everything that these runs need, in the order to make it."""
    found: dict[Path, Made] = {}
    for run in wanted:
        for role, seed in (("student", run.seed), ("good", 1), (run.teacher, 1)):
            each = made(runs, run.task, role, seed)
            found.setdefault(each.path, each)
    return list(found.values())
