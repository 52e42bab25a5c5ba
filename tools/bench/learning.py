"""What some minutes on the device make of a student, with a teacher and without: `python -m tools.bench learning`.

Real devices (supervisor, actor, trainer, world), a real broker and a real teacher, at the real rate. Some devices may
ask the teacher, the others may not; the number of gradient steps is the same for all. Every two minutes the network
that acts is copied aside. Afterwards, with every process stopped and no link, each copy plays episodes that were used
for nothing else, int8 and through its exits, exactly as the board would.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import quant
from edgert.errors import LinkError
from edgert.policy import artifact, exits
from edgert.ports.cluster import GAMES, Cluster, Collector
from edgert.values import Swap
from tools.episodes import play
from tools.train import commit

RESULTS = Path(__file__).parent / "results"
ARMS = ("taught", "alone")
STEP_SIZES = {
    # From one trial run each at 2.5e-4, 5e-4 and 1e-3: the baseline is given its best.
    "breakout": {"taught": 5e-4, "alone": 2.5e-4},
    "space_invaders": {"taught": 5e-4, "alone": 1e-3},
}
SETTINGS = {
    "learn.train_steps_hz": 25.0,
    "learn.candidate_s": 30.0,
    "policy.explore_frac": 0.02,
    "teacher.max_bytes_per_s": 8000.0,
    # All arms take the same number of gradient steps, however busy this machine is.
    "govern.cpu_high_frac": 1.0,
}
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t at 97.5 % for n - 1 degrees of freedom, by n."""


def returns(network: Path, game: str, episodes: int, seed: int) -> npt.NDArray[np.float64]:
    """Undiscounted returns of a bundle's int8 network through its exits; no exploration, no teacher."""
    policy = artifact.load(network.read_bytes())
    net, thresholds = quant.IntNet(policy.spec, policy.tensors), policy.manifest.thresholds
    return play(lambda obs: exits.decide(net.heads(obs), thresholds), GAMES[game], episodes, seed=seed)


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of its 95 % confidence interval over seeds)."""
    n = len(values)
    half = T_975.get(n, 1.96) * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else float("nan")
    return float(np.mean(values)), half


def live(game: str, seeds: int, minutes: float, every_s: float, out: Path) -> dict[str, Any]:
    """Let all devices of one game live together; returns each device's totals and where its copies lie."""

    def settings(i: int) -> dict[str, object]:
        arm = ARMS[i % len(ARMS)]
        chosen = {"teacher.enabled": arm == "taught", "learn.learning_rate": STEP_SIZES[game][arm]}
        return {**SETTINGS, **chosen, "plant.seed": 1 + i // len(ARMS)}

    cluster = Cluster(out, game, devices=len(ARMS) * seeds, device_config=settings)
    copies: dict[str, list[tuple[float, str]]] = {name: [] for name in cluster.devices}
    try:
        cluster.start()
        collector = Collector(cluster.url, cluster.fleet)
        start_s = time.monotonic()
        next_s = every_s
        while (now_s := time.monotonic() - start_s) < minutes * 60:
            cluster.poll()
            collector.poll()
            silent = [name for name in cluster.devices if name not in collector.devices]
            if silent and now_s > 60:
                raise LinkError(f"nothing heard of {', '.join(silent)}: {cluster.tail(silent[0])}")
            if now_s >= next_s:
                next_s += every_s
                for name in cluster.devices:
                    copies[name].append((now_s / 60, str(snapshot(cluster, name, now_s, out))))
                print(f"{game}: {now_s / 60:.0f} of {minutes:.0f} minutes", flush=True)
            time.sleep(0.2)
        for name in cluster.devices:
            copies[name].append((minutes, str(snapshot(cluster, name, minutes * 60, out))))
        collector.poll()
        found = {name: collector.devices[name].status for name in cluster.devices}
    finally:
        cluster.stop()
    return {
        name: {"arm": ARMS[i % len(ARMS)], "seed": 1 + i // len(ARMS), "copies": copies[name], "status": found[name]}
        for i, name in enumerate(cluster.devices)
    }


def snapshot(cluster: Cluster, name: str, now_s: float, out: Path) -> Path:
    """Copy the network that acts now."""
    note = cluster.state(name) / "policies" / "acting.json"
    acting = Path(msgspec.json.decode(note.read_bytes(), type=Swap).path) if note.exists() else cluster.student
    copy = out / "copies" / f"{name}-{now_s:06.0f}.edgert"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(acting, copy)
    return copy


def judge(game: str, devices: dict[str, Any], cluster_models: tuple[Path, Path], episodes: int) -> dict[str, Any]:
    """Play with every copy; the figures of one game."""
    student, teacher = cluster_models
    seed = 60_000_000
    rows = []
    for name, device in devices.items():
        curve = [
            (round(at, 2), float(returns(Path(copy), game, episodes, seed).mean())) for at, copy in device["copies"]
        ]
        status = device["status"]
        rows.append(
            {
                "device": name,
                "arm": device["arm"],
                "seed": device["seed"],
                "return_by_minute": curve,
                "gradient_steps": status["trainer"]["steps"],
                "transitions": status["trainer"]["transitions"],
                "observations_asked": status["trainer"]["asked"],
                "ask_bytes": status["counters"].get("ask-bytes", 0),
                "answer_bytes": status["counters"].get("answer-bytes", 0),
                "swaps": status["counters"].get("swaps", 0),
                "networks_refused": status["counters"].get("networks-refused", 0),
                "missed_ticks": status["actor"]["missed"],
            }
        )
        print(f"{game} {name} ({device['arm']}): {curve}", flush=True)
    before = returns(student, game, episodes, seed)
    best = returns(teacher, game, episodes, seed)
    arms = {}
    for arm in ARMS:
        last = [row["return_by_minute"][-1][1] for row in rows if row["arm"] == arm]
        mean, half = interval(last)
        arms[arm] = {"return": round(mean, 3), "return_ci95": round(half, 3), "by_seed": [round(x, 3) for x in last]}
    return {
        "before": {"return": float(before.mean()), "sem": float(before.std(ddof=1) / len(before) ** 0.5)},
        "teacher_int8": {"return": float(best.mean()), "sem": float(best.std(ddof=1) / len(best) ** 0.5)},
        "after": arms,
        "devices": rows,
    }


def draw(document: dict[str, Any], path: Path) -> None:
    """Return over minutes: a line a device, a thick one for the mean of each arm."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    games = document["games"]
    figure, axes = plt.subplots(1, len(games), figsize=(5.2 * len(games), 3.8), squeeze=False)
    colours = {"taught": "#1f6fb4", "alone": "#c2571a"}
    for axis, (game, figures) in zip(axes[0], games.items(), strict=True):
        before = figures["before"]["return"]
        for arm in ARMS:
            curves = [row["return_by_minute"] for row in figures["devices"] if row["arm"] == arm]
            for curve in curves:
                axis.plot(
                    [0, *(at for at, _ in curve)],
                    [before, *(r for _, r in curve)],
                    color=colours[arm],
                    lw=0.8,
                    alpha=0.45,
                )
            at = [0, *(at for at, _ in curves[0])]
            mean = [before, *np.mean([[r for _, r in curve] for curve in curves], axis=0)]
            axis.plot(at, mean, color=colours[arm], lw=2.4, label=f"{arm}, mean of {len(curves)}")
        axis.axhline(before, color="#777777", lw=1, ls=":", label="as installed")
        axis.axhline(figures["teacher_int8"]["return"], color="#777777", lw=1, ls="--", label="teacher")
        axis.set(
            title=game,
            xlabel="minutes on the device at 20 decisions/s",
            ylabel=f"return, {document['episodes']} episodes",
        )
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
        axis.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str]) -> int:
    """Live, judge, write the JSON and the plot."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench learning", description=__doc__.splitlines()[0])
    parser.add_argument("--games", nargs="+", choices=GAMES, default=["breakout", "space_invaders"])
    parser.add_argument("--seeds", type=int, default=3, help="devices in each arm")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=120.0, help="seconds between two copies of the acting network")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--together", action="store_true", help="all games at once, where there are cores enough")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-learning"), help="folder for devices and copies")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one seed, two minutes, 20 episodes: does it run at all?")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is stopped on the way out
    if args.quick:
        args.seeds, args.minutes, args.every, args.episodes = 1, 2.0, 60.0, 20
    document: dict[str, Any] = {
        "command": "python -m tools.bench learning " + " ".join(argv),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}; no board, plant and battery simulated",
        "seeds": args.seeds,
        "minutes": args.minutes,
        "episodes": args.episodes,
        "settings": SETTINGS,
        "step_sizes": STEP_SIZES,
        "games": {},
    }
    shutil.rmtree(args.work, ignore_errors=True)
    with ThreadPoolExecutor(len(args.games) if args.together else 1) as threads:
        lives = {
            game: threads.submit(live, game, args.seeds, args.minutes, args.every, args.work / game)
            for game in args.games
        }
    for game in args.games:
        devices = lives[game].result()
        models = Path(__file__).parents[2] / "models"
        document["games"][game] = judge(
            game, devices, (models / f"{game}.edgert", models / f"{game}-teacher.edgert"), args.episodes
        )
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "learning.json").write_text(json.dumps(document, indent=1) + "\n")
        draw(document, args.out / "learning.svg")
    for game, figures in document["games"].items():
        print(f"\n{game}: installed {figures['before']['return']:.2f}, teacher {figures['teacher_int8']['return']:.2f}")
        for arm, row in figures["after"].items():
            print(
                f"  {arm:<14} {row['return']:.2f} +- {row['return_ci95']:.2f} (95 %, n = {args.seeds}) {row['by_seed']}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
