"""`python -m tools.train.placer`: train the agent that places jobs, and those that it is measured against.

Every method goes the same way, with the same clusters, jobs and processor time. It begins with a network that changes
nothing of what the agent's cost model says, and goes on with PPO over places, several plays of the same arrivals being
each other's baseline. Jobs come one by one, in bursts, or all at once.
Methods differ in what they are trained within: `srole` behind a shield, `marl` without one, `masked` without one but
with places that look full left out, `central` one head that decides for all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

import edgert
from edgert import bundle, quant
from edgert.learn.backprop import accumulate
from edgert.learn.dqn import Learner
from edgert.nets import Params, initialise, macs, ops
from edgert.placement import agent
from edgert.placement.agent import Choice
from edgert.placement.jobs import Job
from edgert.policy import artifact
from tools.bench.srole import boards, fluid, play, policies
from tools.export import build
from tools.train import commit

METHODS = {  # shield, central, masked
    "srole": ("C", False, True),
    "marl": ("none", False, False),
    "masked": ("none", False, True),
    "central": ("none", True, True),
}
NODES = (4, 5, 10, 10)
LOADS = (0.4, 0.7, 0.9)
BURSTS = (1, 1, 1, 4, 0)
"""Jobs that come together; 0 for all at once."""
WINDOWS_S = (1.0, 2.0, 5.0, 10.0)
STALES_S = (0.0, 5.0, 15.0, 30.0)
ROLLOUTS = 4
HORIZON_S = 300.0  # discounting of what a decision does to everybody else
VALIDATION = (
    *((10, load, 5.0, 15.0, 10_000 + i, 1) for i, load in enumerate((0.5, 0.8, 0.7) * 2)),
    *((4, 0.7, 1.0, 0.0, 11_000 + i, 0) for i in range(3)),
)


class Hyper(msgspec.Struct, frozen=True):
    """What the training is told; the same for every method."""

    learning_rate: float = 3e-4
    final_rate: float = 3e-5
    entropy_weight: float = 0.003
    final_entropy: float = 0.0003
    own_weight: float = 0.5
    clip: float = 0.2
    epochs: int = 2
    batch: int = 256


class Scene(NamedTuple):
    """A cluster, its jobs and the setting they are played in."""

    nodes: list[boards.Node]
    queue: list[Job]
    setting: play.Setting


def scene(method: str, nodes: int, load: float, window_s: float, stale_s: float, seed: int, burst: int = 1) -> Scene:
    """Draw a scene; `burst` jobs come together, 0 for all at once."""
    rng = np.random.default_rng(seed)
    shield, central, _ = METHODS[method]
    made = boards.cluster(nodes, rng)
    queue = boards.draw_jobs(made, 4 * nodes + 10 if burst else 2 * nodes, load, rng)
    together = burst or len(queue)
    first = [0.0 if not burst else queue[k - k % together].born_s for k in range(len(queue))]
    queue = [msgspec.structs.replace(job, born_s=born_s) for job, born_s in zip(queue, first, strict=True)]
    return Scene(made, queue, play.Setting(shield=shield, window_s=window_s, stale_s=stale_s, central=central))


def drawn(method: str, rng: np.random.Generator, first_seed: int) -> Scene:
    """A scene to train in."""
    nodes, load, burst = int(rng.choice(NODES)), float(rng.choice(LOADS)), int(rng.choice(BURSTS))
    window_s, stale_s = float(rng.choice(WINDOWS_S)), float(rng.choice(STALES_S))
    return scene(method, nodes, load, window_s, stale_s, first_seed + int(rng.integers(1 << 30)), burst)


def run(where: Scene, decide: policies.Decide, seed: int) -> play.Played:
    """Play a scene in the fast simulator."""
    rng = np.random.default_rng(seed)
    return play.play(where.nodes, where.queue, decide, fluid.Fluid(where.nodes), where.setting, rng, limit_s=5e3)


def follow(
    learner: Learner, choices: list[Choice], advantages: list[float], rate: float, clip: float, entropy: float
) -> float:
    """One step of Adam on these choices; gives their entropy."""
    told = agent.lesson(learner.params, choices, advantages, clip=clip, entropy_weight=entropy)
    accumulate(learner.params, told.obs, lambda _, part: {0: told.d_out[part]}, learner.grads, scratch=learner.scratch)
    learner.descend(told.loss, rate, 1.0)
    return told.entropy


def tune(rounds: int = 3, draws: int = 12) -> agent.Rule:
    """Constants of the cost model, by the cross-entropy method; one rule for all methods, in the settings of all."""
    rng = np.random.default_rng(0)
    kinds = ((10, 0.5, 1), (10, 0.8, 1), (5, 0.7, 4), (4, 0.7, 0)) * 2 + ((10, 0.9, 4), (5, 0.8, 0))
    methods = ("srole", "central", "marl", "srole", "masked") * 2
    scenes = [
        (method, scene(method, nodes, load, 5.0 if burst == 1 else 1.0, 10.0, 50_000 + i, burst))
        for i, (method, (nodes, load, burst)) in enumerate(zip(methods, kinds, strict=True))
    ]

    def cost(told: npt.NDArray[np.float64]) -> float:
        rule, nothing, times = agent.Rule(*map(float, told)), Params(agent.SPEC), []
        for i, (method, where) in enumerate(scenes):
            decide = policies.learned(nothing, masked=METHODS[method][2], explore=False, rule=rule)
            times.append(np.mean(list(run(where, decide, i).times_s.values())))
        return float(np.mean(np.log(times)))

    centre, spread = np.array(agent.RULE), np.array([1.0, 2.5, 1.0, 0.7, 1.0])
    best, best_cost = centre.copy(), cost(centre)
    print(f"{np.exp(best_cost):.1f} s", agent.RULE, flush=True)
    for _ in range(rounds):
        tried = [centre + spread * rng.normal(size=len(centre)) for _ in range(draws)]
        tried = [np.maximum(each, (-np.inf, 0.0, 0.0, 1.1, 0.5)) for each in tried]
        costs = np.array([cost(each) for each in tried])
        elite = np.array(tried)[np.argsort(costs)[: max(2, draws // 4)]]
        centre, spread = elite.mean(0), 0.7 * spread + 0.3 * elite.std(0)
        if costs.min() < best_cost:
            best, best_cost = tried[int(costs.argmin())], float(costs.min())
        print(f"{np.exp(best_cost):.1f} s", agent.Rule(*map(float, np.round(best, 2))), flush=True)
    return agent.Rule(*map(float, best))


def begin(seed: int) -> Params:
    """A network that says 0 of every place."""
    params = initialise(agent.SPEC, np.random.default_rng(seed))
    for name in list(params.views)[-2:]:
        params.views[name][:] = 0.0
    return params


def advantages(plays: list[play.Played], own_weight: float) -> tuple[list[Choice], list[float]]:
    """How much better than in the other plays of the same arrivals each decision went: for its job, and for all."""
    names = list(plays[0].times_s)
    times = np.array([[np.log(each.times_s[name]) for name in names] for each in plays])
    own = times.mean(0) - times
    own /= own.std() + 1e-6
    at = {name: k for k, name in enumerate(names)}
    grids = []
    window_s = max(1e-9, plays[0].in_system[1][0] - plays[0].in_system[0][0])
    end_s = max(each.done_s for each in plays)
    grid = np.arange(0.0, end_s + window_s, window_s)
    for each in plays:
        times_s, counts = np.array(each.in_system).T
        index = np.clip(np.searchsorted(times_s, grid, side="right") - 1, 0, len(counts) - 1)
        busy = np.where(grid <= each.done_s, counts[index], 0.0)
        cost = np.zeros(len(grid) + 1)
        decay = np.exp(-window_s / HORIZON_S)
        for k in range(len(grid) - 1, -1, -1):
            cost[k] = busy[k] + decay * cost[k + 1]
        grids.append(cost[:-1])
    shared = np.mean(grids, 0) - np.array(grids)
    shared /= shared.std() + 1e-6
    choices: list[Choice] = []
    gains: list[float] = []
    for r, each in enumerate(plays):
        for made in each.made:
            k = min(int(made.at_s / window_s), len(grid) - 1)
            gain = own_weight * own[r, at[made.job]] + (1 - own_weight) * shared[r, k]
            choices.extend(made.choices)
            gains.extend([float(gain)] * len(made.choices))
    spread = float(np.std(gains)) + 1e-6
    return choices, [gain / spread for gain in gains]


def validate(params: Params, method: str) -> dict[str, float]:
    """Mean job time on scenes that nothing is trained on, drawn from the policy and with its best choice."""
    found: dict[str, float] = {}
    for name, explore in (("drawn", True), ("best", False)):
        means = []
        counts: dict[str, float] = {}
        for nodes, load, window_s, stale_s, seed, burst in VALIDATION:
            where = scene(method, nodes, load, window_s, stale_s, seed, burst)
            played = run(where, policies.learned(params, masked=METHODS[method][2], explore=explore), seed)
            means.append(np.mean(list(played.times_s.values())))
            for key in ("interventions", "decisions", "collisions", "overloads", "killed"):
                counts[key] = counts.get(key, 0.0) + played.counts[key]
        found[name] = float(np.mean(means))
        found.update({f"{name} {key}": value for key, value in counts.items()})
    return found


class Run:
    """A training that can be stopped and taken up again: parameters, moments and the curve lie in its folder."""

    def __init__(self, method: str, seed: int, folder: Path, hyper: Hyper) -> None:
        """Begin, or go on where the folder says."""
        self.method, self.seed, self.hyper, self.folder = method, seed, hyper, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(begin(seed))
        self.curve: list[dict[str, Any]] = []
        self.spent_s, self.updates, self.plays = 0.0, 0, 0
        if (folder / "curve.json").exists():
            state = json.loads((folder / "curve.json").read_text())
            with np.load(folder / "state.npz") as arrays:
                self.learner.restore({name: arrays[name] for name in arrays.files}, state["steps"])
            self.curve, self.spent_s = state["curve"], state["spent_s"]
            self.updates, self.plays = state["updates"], state["plays"]

    def point(self) -> None:
        """Validate, and note it."""
        found = validate(self.learner.params, self.method)
        self.curve.append({"spent_s": self.spent_s, "updates": self.updates, "plays": self.plays, **found})
        print(self.method, self.seed, f"{self.spent_s:.0f} s", self.updates, found, flush=True)
        best = min(self.curve, key=lambda each: min(each["drawn"], each["best"]))
        if best is self.curve[-1]:
            np.save(self.folder / "best.npy", self.learner.params.flat)

    def keep(self) -> None:
        """Write everything down."""
        np.savez(self.folder / "state.npz", **self.learner.arrays())  # type: ignore[arg-type]  # a vector each
        state = {
            "method": self.method,
            "seed": self.seed,
            "rule": agent.RULE._asdict(),
            "hyper": msgspec.to_builtins(self.hyper),
            "steps": self.learner.steps,
            "spent_s": self.spent_s,
            "updates": self.updates,
            "plays": self.plays,
            "curve": self.curve,
        }
        (self.folder / "curve.json").write_text(json.dumps(state, indent=1))

    def update(self, done_frac: float) -> None:
        """Play the same arrivals several times and learn from the differences."""
        hyper, rng = self.hyper, np.random.default_rng([self.seed, self.updates, 1_000_000])
        where = drawn(self.method, rng, 1 << 31)
        decide = policies.learned(self.learner.params, masked=METHODS[self.method][2], explore=True)
        plays = [run(where, decide, int(rng.integers(1 << 30))) for _ in range(ROLLOUTS)]
        self.plays += len(plays)
        choices, gains = advantages(plays, hyper.own_weight)
        rate = hyper.learning_rate * (hyper.final_rate / hyper.learning_rate) ** done_frac
        entropy = hyper.entropy_weight * (hyper.final_entropy / hyper.entropy_weight) ** done_frac
        for _ in range(hyper.epochs):
            order = rng.permutation(len(choices))
            for start in range(0, len(order), hyper.batch):
                rows = order[start : start + hyper.batch]
                follow(self.learner, [choices[i] for i in rows], [gains[i] for i in rows], rate, hyper.clip, entropy)
        self.updates += 1


def export(folder: Path, out: Path) -> None:
    """Write the agent that validated best as a bundle, with its curve as provenance."""
    state = json.loads((folder / "curve.json").read_text())
    params = Params(agent.SPEC, np.load(folder / "best.npy"))
    best = min(state["curve"], key=lambda each: min(each["drawn"], each["best"]))
    seen: list[Choice] = []
    where = scene(state["method"], 10, 0.8, 5.0, 15.0, 40_000)
    for made in run(where, policies.learned(params, masked=True, explore=True), 0).made:
        seen.extend(made.choices)
    obs = np.concatenate([choice.places for choice in seen])[:, None, None, :]
    obs = obs[np.random.default_rng(0).permutation(len(obs))[:2000]]
    ranges, tensors = quant.fit(params, obs)
    manifest = bundle.Manifest(
        name="placer",
        task="placer",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgert=edgert.__version__,
        observation=bundle.Observation(agent.SPEC.input_shape, agent.SPEC.input_scale),
        action=bundle.Action(1, ("place",)),
        control_rate_hz=1.0,
        gamma=0.0,
        net=msgspec.to_builtins(agent.SPEC),
        thresholds=(),
        exits=tuple(map(bundle.Exit, macs(agent.SPEC), ops(agent.SPEC))),
        safe_action=0,
        ranges=ranges,
        golden=bundle.Golden(8, 0.0),
        provenance={
            "command": f"python -m tools.train.placer --method {state['method']} --seed {state['seed']}",
            "commit": commit(),
            "run": {
                **{name: state[name] for name in ("method", "seed", "rule", "hyper", "spent_s", "updates", "plays")},
                "acts": "drawn" if best["drawn"] < best["best"] else "best",
                "curve": state["curve"],
            },
        },
    )
    out.write_bytes(artifact.pack(manifest, params, build(agent.SPEC, tensors), obs[:8]))


def main(argv: list[str] | None = None) -> int:
    """Train one method for so many seconds of processor time, all told, in slices."""
    parser = argparse.ArgumentParser(prog="python -m tools.train.placer", description=__doc__)
    parser.add_argument("--method", choices=list(METHODS), default="srole")
    parser.add_argument("--tune", action="store_true", help="find constants of the cost model instead, and print them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-s", type=float, default=400.0, help="processor time of the whole training")
    parser.add_argument("--slice-s", type=float, default=1e9, help="stop after this much, to go on another time")
    parser.add_argument("--every-s", type=float, default=40.0, help="between two points of the curve")
    parser.add_argument("--folder", type=Path, default=Path("runs/placer"))
    parser.add_argument("--export", type=Path, help="write the bundle of a finished training there, and train no more")
    args = parser.parse_args(argv)
    if args.tune:
        tune()
        return 0
    if args.export:
        export(args.folder / f"{args.method}-s{args.seed}", args.export)
        return 0
    made = Run(args.method, args.seed, args.folder / f"{args.method}-s{args.seed}", Hyper())
    if not made.curve:
        made.point()
    slice_s, last_s = 0.0, made.curve[-1]["spent_s"]
    while made.spent_s < args.budget_s and slice_s < args.slice_s:
        began = time.process_time()
        made.update(made.spent_s / args.budget_s)
        took_s = time.process_time() - began
        made.spent_s += took_s
        slice_s += took_s
        if made.spent_s - last_s >= args.every_s or made.spent_s >= args.budget_s:
            made.point()
            last_s = made.spent_s
        if slice_s >= args.slice_s or made.spent_s >= args.budget_s or made.updates % 10 == 0:
            made.keep()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
