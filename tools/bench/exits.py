"""What early exits cost the deepest one, and save the others: `python -m tools.bench exits`.

Each network is measured with its exits, always leaving at one of them, and without any: the same trunk and last head as
a network of one exit, in the same runtime and precision. All take turns in short rounds, hot (call after call) and at a
control rate (asleep in between, as the actor is). A ratio is taken within each round, so that both of its sides met the
same machine; its interval is a bootstrap over rounds. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.errors import EdgertError
from edgert.nets import Conv, Dense, NetSpec, Relu, initialise, macs, ops, without_exits
from edgert.policy import artifact
from edgert.policy.exits import effective_thresholds
from edgert.ports.runtime.choice import candidates, cpu_name, open_one, versions
from tools import export
from tools.nets import board, camera, camera2, student
from tools.train import commit

RESULTS = Path(__file__).parent / "results"
BURST = 5
"""Calls at the control rate in a row; the first comes after another network's and is not counted."""
HOT_CALLS = 20
COLUMNS = {"hot": ("hot p50", 10), "at_rate": ("at rate p50", 14)}
Times = npt.NDArray[np.float64]


def nature(input_shape: tuple[int, int, int], n_actions: int) -> NetSpec:
    """Nature-DQN (Mnih et al. 2015) with an exit after each convolution that is not the last."""
    return NetSpec(
        input_shape,
        n_actions,
        trunk=(
            (Conv(32, 8, 4), Relu()),
            (Conv(64, 4, 2), Relu()),
            (Conv(64, 3, 1), Relu(), Dense(512), Relu()),
        ),
        heads=((), (), ()),
        input_scale=1 / 255,
    )


NETS: dict[str, Callable[[], NetSpec]] = {
    "pong": lambda: camera2((84, 84, 4), 6),
    "pong-gap": lambda: msgspec.structs.replace(camera2((84, 84, 4), 6), gap_logits=(10.0,)),
    "drone": lambda: camera2((60, 80, 3), 25),
    "board": lambda: board((10, 10, 4), 3),
    "student": lambda: student((10, 10, 4), 3),
    "camera": lambda: camera((84, 84, 4), 6),
    "nature": lambda: nature((84, 84, 4), 6),
}


def policy_of(spec: NetSpec, seed: int = 0) -> artifact.Policy:
    """A bundle of random weights, through every step that a trained one takes."""
    rng = np.random.default_rng(seed)
    params = initialise(spec, rng)
    obs = rng.integers(0, 2 if spec.input_scale == 1 else 256, (16, *spec.input_shape)).astype(np.uint8)
    return artifact.load(export.untrained(params, obs, task="latency", rate_hz=15.0, threshold=0.5))


def subjects(spec: NetSpec, wanted: list[str]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """What is to be called, and what cannot be and why.

    Names are runtime and precision, then `exit <k>` or `without`.
    """
    found: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for one in (without_exits(spec), spec):
        policy, last = policy_of(one), one.n_exits - 1
        for kind, precision in candidates(policy):
            runner = f"{kind} {precision}"
            if kind not in wanted or runner in failed:
                continue
            try:
                runtime = open_one(policy, kind, precision)
            except EdgertError as error:
                failed[runner] = str(error)
                continue
            for k in range(one.n_exits):
                logits, obs = effective_thresholds([1.0] * last, k), policy.golden_obs[0]
                name = f"{runner} exit {k}" if last else f"{runner} without"
                found[name] = lambda runtime=runtime, obs=obs, logits=logits: runtime.infer(obs, logits)  # type: ignore[misc]  # lambdas with defaults have no type
    return {name: call for name, call in found.items() if name.rpartition(" exit")[0] not in failed}, failed


def hot(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Seconds of each call, (rounds, HOT_CALLS), one right after the other."""
    took: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            row = []
            for _ in range(HOT_CALLS):
                began_s = time.perf_counter()
                call()
                row.append(time.perf_counter() - began_s)
            took[name].append(row)
    return {name: np.array(rows) for name, rows in took.items()}


def at_rate(calls: dict[str, Callable[[], object]], rounds: int, rate_hz: float) -> dict[str, Times]:
    """Seconds of each call, (rounds, BURST - 1), asleep until the next is due."""
    took: dict[str, list[list[float]]] = {name: [] for name in calls}
    next_s = time.perf_counter()
    for _ in range(rounds):
        for name, call in calls.items():
            row = []
            for _ in range(BURST):
                next_s = max(next_s + 1 / rate_hz, time.perf_counter())
                time.sleep(max(0.0, next_s - time.perf_counter()))
                began_s = time.perf_counter()
                call()
                row.append(time.perf_counter() - began_s)
            took[name].append(row[1:])
    return {name: np.array(rows) for name, rows in took.items()}


def ratio(taken_s: Times, base_s: Times, rng: np.random.Generator) -> dict[str, float]:
    """Median over rounds of the ratio of both medians, with a 95 % bootstrap interval over rounds."""
    each = np.median(taken_s, 1) / np.median(base_s, 1)
    drawn = np.median(each[rng.integers(0, len(each), (2000, len(each)))], 1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"ratio": round(float(np.median(each)), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def judge(took: dict[str, Times]) -> dict[str, dict[str, float]]:
    """p50 and p99 of each, and its ratio to the network without exits in the same runtime and precision."""
    rng, found = np.random.default_rng(0), {}
    for name, taken_s in took.items():
        base = took[f"{' '.join(name.split()[:2])} without"]
        p50_s, p99_s = (float(each) for each in np.percentile(taken_s, (50, 99)))
        found[name] = {"p50_us": round(p50_s * 1e6, 2), "p99_us": round(p99_s * 1e6, 2), **ratio(taken_s, base, rng)}
    return found


def summarise(nets: dict[str, Any]) -> dict[str, Any]:
    """The first and the deepest exit of each network on onnxruntime in int8, and the means over networks."""
    summary: dict[str, Any] = {}
    for which in ("deepest", "first"):
        rows: dict[str, Any] = {}
        for how in ("hot", "at_rate"):
            found = {
                net: figures[how][name]
                for net, figures in nets.items()
                for name in [f"onnx int8 exit {figures['n_exits'] - 1 if which == 'deepest' else 0}"]
                if name in figures[how]
            }
            rows[how] = {net: [row["ratio"], row["low"], row["high"]] for net, row in found.items()}
            if found:
                rows[how]["mean"] = round(float(np.mean([row["ratio"] for row in found.values()])), 4)
        summary[f"{which}_exit_latency_ratio"] = rows
    return summary


def show(nets: dict[str, Any]) -> None:
    """Print plain tables."""
    for net, figures in nets.items():
        print(f"\n{net}: MACs by exit {figures['macs']}, without exits {figures['macs_without']}")
        titles = "".join(f"{what:>{width}}{'p99 us':>9}{'ratio':>8}{'95 %':>16}" for what, width in COLUMNS.values())
        print(f"{'':<24}{titles}")
        for name in figures["hot"]:
            cells = ""
            for how, (_, width) in COLUMNS.items():
                each = figures[how][name]
                interval = f"{each['low']:.3f}..{each['high']:.3f}"
                cells += f"{each['p50_us']:>{width}.1f}{each['p99_us']:>9.1f}{each['ratio']:>8.3f}{interval:>16}"
            print(f"{name:<24}{cells}")
        for name, why in figures["failed"].items():
            print(f"{name:<24} {why}")


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench exits", description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--runtimes", nargs="+", default=["onnx", "litert"])
    parser.add_argument("--rounds", type=int, default=60, help="hot")
    parser.add_argument("--rate", type=float, default=15.0, metavar="HZ")
    parser.add_argument("--rate-rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    nets: dict[str, Any] = {}
    for net in args.nets:
        spec = NETS[net]()
        calls, failed = subjects(spec, args.runtimes)
        nets[net] = {
            "n_exits": spec.n_exits,
            "macs": macs(spec),
            "macs_without": macs(without_exits(spec))[0],
            "ops": ops(spec),
            "ops_without": ops(without_exits(spec))[0],
            "failed": failed,
            "hot": judge(hot(calls, args.rounds)),
            "at_rate": judge(at_rate(calls, args.rate_rounds, args.rate)),
        }
    document = {
        "command": "python -m tools.bench exits " + " ".join(argv),
        "commit": commit(),
        "machine": f"{platform.machine()}, {cpu_name()}, Python {platform.python_version()}",
        "runtimes": versions(),
        "rate_hz": args.rate,
        "summary": summarise(nets),
        "nets": nets,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "exits.json").write_text(json.dumps(document, indent=1) + "\n")
    show(nets)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
