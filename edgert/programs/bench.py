"""`edgert bench`: what a device costs on this machine, next to the bare runtime on the same model.

Starts a broker, a teacher and one real device that plays, asks and trains; beside it, at the same time and at the same
rate, a process that does nothing but call onnxruntime on the same network. Both see the same machine in the same
minutes, so the difference is ours and the noise is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgert.errors import LinkError
from edgert.ports.cluster import GAMES, MODELS, Cluster, Collector

BUDGETS: dict[str, tuple[str, float]] = {
    "actor RSS": ("MB", 75.0),
    "supervisor RSS": ("MB", 30.0),
    "start to READY": ("s", 3.0),
    "decision over bare session, p50": ("us", 100.0),
    "deadline misses": ("", 0.0),
}
SETTLE_S = 10.0

BARE = """
import json, sys, time
import numpy as np
import onnxruntime
from edgert.policy import artifact, exits
from pathlib import Path

policy, hz, seconds = artifact.load(Path(sys.argv[1]).read_bytes()), float(sys.argv[2]), float(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(policy.onnx, options, providers=["CPUExecutionProvider"])
feed = {"threshold": exits.effective_thresholds(policy.manifest.thresholds, policy.spec.n_exits - 1)}
took_s, next_s, i = [], time.monotonic(), 0
while len(took_s) < hz * seconds:
    time.sleep(max(0.0, next_s - time.monotonic()))
    next_s += 1 / hz
    feed["obs"] = policy.golden_obs[i % len(policy.golden_obs)][None]
    i += 1
    start_s = time.monotonic()
    session.run(None, feed)
    took_s.append(time.monotonic() - start_s)
p50, p99, worst = np.percentile(took_s[int(hz):], (50, 99, 100))
print(json.dumps({"p50_s": p50, "p99_s": p99, "max_s": worst}))
"""


def shipped() -> Path:
    """The policy that is measured unless another is named: the repository's, or what an installation brought."""
    found = (MODELS / "breakout.edgert", Path(sys.prefix) / "share/edgert/models/breakout.edgert")
    return next((path for path in found if path.exists()), found[0])


def memory(pid: int) -> tuple[float, float] | None:
    """(resident, proportional) megabytes of a process, or None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    fields = {name: float(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if rest}
    return fields["Rss"], fields["Pss"]


def is_ready(notified: socket.socket) -> bool:
    """Did the device say READY to its service manager, which is us?"""
    try:
        while True:
            if b"READY=1" in notified.recv(4096):
                return True
    except BlockingIOError:
        return False


def measure(game: str, seconds: float, core: int | None, out: Path) -> dict[str, Any]:
    """Run one device for `seconds` and return the figures.

    Args:
        game: key of `GAMES`.
        seconds: measured, after `SETTLE_S` of settling.
        core: pin the device to this core, so that actor and trainer share it; None leaves it to the scheduler.
        out: folder for what the device writes.
    """
    settings = {"learn.min_transitions": 100, "learn.train_steps_hz": 25.0, "govern.cpu_high_frac": 1.0}
    os.environ["NOTIFY_SOCKET"] = str(out / "notify")
    cluster = Cluster(out, game, devices=1, device_config=settings)
    del os.environ["NOTIFY_SOCKET"]  # for the device, not for a broker that says READY itself
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(out / "notify"))
    notified.setblocking(False)
    ready_s: float | None = None
    allowed = os.sched_getaffinity(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        cluster.start()
        started_s = time.monotonic()
        os.sched_setaffinity(0, allowed)
        collector = Collector(cluster.url, cluster.fleet)
        bare: subprocess.Popen[str] | None = None
        first: dict[str, Any] | None = None
        first_s = 0.0
        status: dict[str, Any] = {}
        while True:
            cluster.poll()
            collector.poll()
            status = collector.devices[cluster.devices[0]].status if cluster.devices[0] in collector.devices else {}
            now_s = time.monotonic()
            if ready_s is None and is_ready(notified):
                ready_s = now_s - started_s
            if first is None and status.get("trainer") and now_s - started_s > SETTLE_S:
                first, first_s = status, now_s
                command = [sys.executable, "-c", BARE, str(cluster.student), str(cluster.nominal_hz), str(seconds)]
                pin = {} if core is None else {"preexec_fn": lambda: os.sched_setaffinity(0, {core})}
                bare = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **pin)  # type: ignore[call-overload]  # a conditional argument
            if first is not None and now_s - first_s >= seconds:
                break
            if now_s - started_s > seconds + 60:
                raise LinkError(f"the device did not come up: {cluster.tail(cluster.devices[0])}")
            time.sleep(0.1)
        held = {role: memory(pid) for pid, _, role in cluster.members()}
        assert bare is not None and first is not None
        bare_figures = json.loads(bare.communicate(timeout=60)[0])
    finally:
        notified.close()
        os.sched_setaffinity(0, allowed)
        cluster.stop()
    return {
        **summarise(game, core, first, status, held, bare_figures),
        "start_to_ready_s": ready_s and round(ready_s, 3),
    }


def summarise(
    game: str,
    core: int | None,
    first: dict[str, Any],
    last: dict[str, Any],
    held: dict[str, tuple[float, float] | None],
    bare: dict[str, float],
) -> dict[str, Any]:
    """Turn two status documents, and what was measured beside them, into figures."""
    window_s = last["up_s"] - first["up_s"]
    processes = {}
    for role in ("supervisor", "actor", "trainer", "world", "teacher"):
        rss_pss = held.get(role)
        cpu_s = (last.get(role) or {}).get("cpu_s", 0.0) - (first.get(role) or {}).get("cpu_s", 0.0)
        processes[role] = {
            "rss_mb": None if rss_pss is None else round(rss_pss[0], 1),
            "pss_mb": None if rss_pss is None else round(rss_pss[1], 1),
            "cpu_frac": round(cpu_s / window_s, 4) if role in ("supervisor", "actor", "trainer") else None,
        }
    actor, trainer = last["actor"], last["trainer"]
    acted_s = window_s - (last["actor_age_s"] - first["actor_age_s"])  # reports come once a second
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "game": game,
        "core": core,
        "seconds": round(window_s, 1),
        "decisions_hz": round((actor["ticks"] - first["actor"]["ticks"]) / acted_s, 3),
        "deadline_misses": actor["missed"] - first["actor"]["missed"],
        "train_steps_hz": round((trainer["steps"] - first["trainer"]["steps"]) / window_s, 2),
        "start_to_first_action_s": round(actor["first_action_s"], 3),
        "decision_us": {k: round(actor[f"latency_{k}_s"] * 1e6, 1) for k in ("p50", "p99", "max")},
        "bare_session_us": {k: round(bare[f"{k}_s"] * 1e6, 1) for k in ("p50", "p99", "max")},
        "decision_over_bare_p50_us": round((actor["latency_p50_s"] - bare["p50_s"]) * 1e6, 1),
        "exits": [b - a for a, b in zip(first["actor"]["exits"], actor["exits"], strict=True)],
        "processes": processes,
    }


def verdicts(figures: dict[str, Any]) -> dict[str, tuple[float | None, bool]]:
    """Budget name -> (figure, kept); what could not be measured is None, and not kept."""
    found = {
        "actor RSS": figures["processes"]["actor"]["rss_mb"],
        "supervisor RSS": figures["processes"]["supervisor"]["rss_mb"],
        "start to READY": figures["start_to_ready_s"],
        "decision over bare session, p50": figures["decision_over_bare_p50_us"],
        "deadline misses": figures["deadline_misses"],
    }
    return {name: (value, value is not None and value <= BUDGETS[name][1]) for name, value in found.items()}


def show(figures: dict[str, Any]) -> None:
    """Print the figures as tables of plain text."""
    where = "any core" if figures["core"] is None else f"device pinned to core {figures['core']}"
    print(f"{figures['game']}, {figures['seconds']:.0f} s, {where}; {figures['machine']}")
    print(f"{figures['decisions_hz']} decisions/s, {figures['train_steps_hz']} gradient steps/s", end=", ")
    print(f"decisions by exit {figures['exits']}\n")
    print(f"{'process':<12}{'RSS MB':>8}{'PSS MB':>8}{'CPU %':>8}")
    for role, row in figures["processes"].items():
        cells = [row["rss_mb"], row["pss_mb"], None if row["cpu_frac"] is None else round(100 * row["cpu_frac"], 1)]
        print(f"{role:<12}" + "".join(f"{'-' if cell is None else cell:>8}" for cell in cells))
    print(f"\n{'latency us':<12}{'p50':>8}{'p99':>8}{'max':>8}")
    for name, key in (("decision", "decision_us"), ("bare session", "bare_session_us")):
        print(f"{name:<12}" + "".join(f"{figures[key][k]:>8}" for k in ("p50", "p99", "max")))
    print(f"\n{'budget':<34}{'aim':>8}{'here':>9}")
    for name, (value, kept) in verdicts(figures).items():
        unit, limit = BUDGETS[name]
        here = "-" if value is None else f"{value:g}"
        print(f"{name:<34}{f'{limit:g} {unit}':>8}{here:>9}  {'kept' if kept else 'NOT KEPT'}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 0 whatever the figures are, since a busy machine is no error."""
    parser = argparse.ArgumentParser(prog="edgert bench", description=__doc__.splitlines()[0])
    parser.add_argument("--game", choices=GAMES, default="breakout")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--core", type=int, help="pin the device and the bare session to this core")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is stopped on the way out
    with tempfile.TemporaryDirectory(prefix="edgert-bench-") as folder:
        figures = measure(args.game, args.seconds, args.core, Path(folder))
    if args.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
