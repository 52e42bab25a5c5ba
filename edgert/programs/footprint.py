"""`edgert bench footprint`: what a device takes of this machine while nobody asks it, and at 20 decisions a second.

One real device with a socket plant, once for every runtime that is installed: first idle, then with a program that asks
it. It needs neither a game nor a teacher, so that it runs on a board as it is. Memory is the proportional set of each
process, all three running: what they share counts a third each, and what a stranger shares with them (another program
of the same Python) counts less yet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from edgert.bundle import read
from edgert.config import commented_default
from edgert.errors import LinkError, UsageError
from edgert.ports import broker as brokers
from edgert.programs.bench import is_ready, memory, shipped

RUNTIMES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "tflite": "tflite_runtime", "numpy": "numpy"}
HZ = 20.0
SETTLE_S = 15.0
"""From READY to the first look: a device counts as idle when nobody has asked it for ten seconds."""
PATIENCE_S = 300.0
ROLES = ("supervisor", "actor", "trainer")
_TICKS_HZ = os.sysconf("SC_CLK_TCK")


class Budget(NamedTuple):
    """What something may take.

    Attributes:
        name: of the figure.
        unit: of it.
        most: it keeps its budget up to here.
        runtime: only of a device with this runtime; None means any.
    """

    name: str
    unit: str
    most: float
    runtime: str | None = None


BUDGETS = (
    Budget("supervisor, PSS", "MB", 25.0),
    Budget("supervisor and actor, PSS", "MB", 60.0, "litert"),
    Budget("supervisor and actor, PSS", "MB", 85.0, "onnx"),
    Budget("idle, CPU", "% of a core", 0.5),
    Budget("idle, written", "MB a day", 1.0),
    Budget("start to READY", "s", 3.0),
)


class Taken(NamedTuple):
    """What the processes of a device had taken by some moment.

    Attributes:
        at_s: monotonic clock.
        cpu_s: role -> processor seconds.
        switches: role -> how often it was put on a processor.
        written_bytes: role -> bytes that are to go to a disk; None where the kernel does not say.
    """

    at_s: float
    cpu_s: dict[str, float]
    switches: dict[str, int]
    written_bytes: dict[str, int | None]


def taken(pids: dict[str, int]) -> Taken:
    """Look at /proc.

    Raises:
        UsageError: a process is gone.
    """
    cpu_s, switches, written = {}, {}, {}
    for role, pid in pids.items():
        folder = Path(f"/proc/{pid}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            cpu_s[role] = (int(fields[11]) + int(fields[12])) / _TICKS_HZ
            lines = [
                line for task in (folder / "task").iterdir() for line in (task / "status").read_text().splitlines()
            ]
            switches[role] = sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        except OSError as error:
            raise UsageError(f"the {role} ended while it was measured: {error}") from error
        written[role] = _written_bytes(folder)
    return Taken(time.monotonic(), cpu_s, switches, written)


def _written_bytes(folder: Path) -> int | None:
    try:
        lines = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    except OSError:
        return None
    return int(lines["write_bytes"]) - int(lines["cancelled_write_bytes"])


def rates(before: Taken, after: Taken) -> dict[str, dict[str, float | None]]:
    """Role -> what it took a second, between two looks."""
    seconds = after.at_s - before.at_s
    found: dict[str, dict[str, float | None]] = {}
    for role in after.cpu_s:
        begun, ended = before.written_bytes[role], after.written_bytes[role]
        found[role] = {
            "cpu_frac": (after.cpu_s[role] - before.cpu_s[role]) / seconds,
            "wakeups_hz": (after.switches[role] - before.switches[role]) / seconds,
            "written_bytes_per_h": None if begun is None or ended is None else 3600 * (ended - begun) / seconds,
        }
    return found


class Started(NamedTuple):
    """A device, where it says READY, and the folder of its sockets."""

    process: subprocess.Popen[bytes]
    notified: socket.socket
    run: Path


def import_s(module: str, times: int = 3) -> float:
    """Seconds that importing a module takes beyond starting Python, the shortest of several."""

    def run_s(code: str) -> float:
        begun_s = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.monotonic() - begun_s

    return min(run_s(f"import {module}") for _ in range(times)) - min(run_s("") for _ in range(times))


@contextmanager
def device(folder: Path, bundle: Path, settings: dict[str, object]) -> Iterator[Started]:
    """A device with its files in a folder."""
    run = Path(tempfile.mkdtemp(prefix="edgert-", dir="/tmp"))  # a socket's path may have 107 bytes only
    given = {"device.id": "bench", "device.state_dir": str(folder / "state"), "device.run_dir": str(run)}
    (folder / "edgert.toml").write_text(commented_default({**given, "policy.bundle": str(bundle), **settings}))
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(run / "notify"))
    notified.setblocking(False)
    command = [sys.executable, "-m", "edgert", "run", "--config", str(folder / "edgert.toml")]
    environment = {**os.environ, "NOTIFY_SOCKET": str(run / "notify"), "ORT_DISABLE_TELEMETRY": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Started(process, notified, run)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        notified.close()
        shutil.rmtree(run, ignore_errors=True)


def members(supervisor: int) -> dict[str, int]:
    """Role -> process, as far as they run."""
    found = {"supervisor": supervisor}
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for pid in children:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found |= {role: int(pid) for role in ROLES if f"edgert.programs.{role}" in words}
    return found


PLAY = """
import sys, time
from edgert.client import Policy

hz, seconds, shape = float(sys.argv[2]), float(sys.argv[3]), tuple(map(int, sys.argv[4:]))
size, answers, next_s = shape[0] * shape[1] * shape[2], 0, time.monotonic()
end_s = next_s + seconds
with Policy(sys.argv[1], timeout_s=30.0) as policy:
    while next_s < end_s:
        time.sleep(max(0.0, next_s - time.monotonic()))
        next_s += 1 / hz
        obs = bytes((answers + i) % 13 == 0 for i in range(16)) * (size // 16) + bytes(size % 16)
        policy.decide(obs, float(answers % 3 == 0), answers % 50 == 49, shape=shape)
        answers += 1
print(answers)
"""


def play(path: Path, bundle: Path, hz: float, seconds: float) -> int:
    """Ask a device at a fixed rate, as a program beside it would; how often it answered.

    Raises:
        LinkError: it stopped answering.
    """
    shape = [str(size) for size in read(bundle.read_bytes()).manifest.observation.shape]
    command = [sys.executable, "-c", PLAY, str(path), str(hz), str(seconds), *shape]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise LinkError(f"the device stopped answering: {told.stderr.strip()[-500:]}")
    return int(told.stdout)


def measure(runtime: str, bundle: Path, url: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One device with one runtime.

    Args:
        runtime: key of `RUNTIMES`.
        bundle: the policy.
        url: of a broker.
        folder: for its files, on the kind of disk that a board would have.
        seconds: of each of the two parts.

    Returns:
        `ready_s`, `rss_mb`, `pss_mb`, `idle` and `acting`: role -> rates.

    Raises:
        LinkError: it did not come up.
    """
    settings: dict[str, object] = {"broker.url": url, "policy.runtime": runtime, "learn.min_transitions": 100}
    begun_s = time.monotonic()
    with device(folder, bundle, settings) as (process, notified, run):
        while not is_ready(notified):
            if process.poll() is not None or time.monotonic() - begun_s > PATIENCE_S:
                raise LinkError("the device did not come up: " + (folder / "log").read_text()[-2000:])
            time.sleep(0.005)
        ready_s = time.monotonic() - begun_s
        time.sleep(SETTLE_S)
        while set(pids := members(process.pid)) != set(ROLES):
            time.sleep(0.5)
        before = taken(pids)
        time.sleep(seconds)
        idle = rates(before, taken(pids))
        before = taken(pids)
        answers = play(run / "policy.sock", bundle, HZ, seconds)
        acting = rates(before, taken(pids))
        held = {role: found for role, pid in pids.items() if (found := memory(pid)) is not None}
    rss, pss = ({role: pair[k] for role, pair in held.items()} for k in (0, 1))
    return {"ready_s": ready_s, "rss_mb": rss, "pss_mb": pss, "idle": idle, "acting": acting, "answers": answers}


def verdicts(runtime: str, found: dict[str, Any]) -> list[tuple[Budget, float | None]]:
    """Each budget that is about this runtime, with what was found; None where it could not be measured."""
    pss, idle = found["pss_mb"], found["idle"]
    written = [role["written_bytes_per_h"] for role in idle.values()]
    figures: dict[str, float | None] = {
        "supervisor, PSS": pss.get("supervisor"),
        "supervisor and actor, PSS": pss["supervisor"] + pss["actor"]
        if {"supervisor", "actor"} <= pss.keys()
        else None,
        "idle, CPU": 100 * sum(role["cpu_frac"] for role in idle.values()),
        "idle, written": None if None in written else 24 * sum(written) / 1e6,
        "start to READY": found["ready_s"],
    }
    return [(budget, figures[budget.name]) for budget in BUDGETS if budget.runtime in (None, runtime)]


def show(document: dict[str, Any]) -> None:
    """Print the figures as a table of plain text."""
    print(f"{document['machine']}; idle and at {HZ:g} decisions/s, {document['seconds']:g} s each\n")
    print(f"{'import':<34}{'seconds':>9}")
    for module, seconds in document["import_s"].items():
        print(f"{module:<34}{seconds:>9.2f}")
    for runtime, found in document["runtimes"].items():
        print(f"\n{runtime:<12}{'RSS MB':>8}{'PSS MB':>8}{'CPU % of a core':>20}{'wake-ups/s':>20}{'written kB/h':>20}")
        print(f"{'':<28}" + f"{'idle':>10}{'acting':>10}" * 3)
        for role in ROLES:
            row = f"{role:<12}" + "".join(f"{found[key].get(role, float('nan')):>8.1f}" for key in ("rss_mb", "pss_mb"))
            for key, scale in (("cpu_frac", 100.0), ("wakeups_hz", 1.0), ("written_bytes_per_h", 1e-3)):
                for part in ("idle", "acting"):
                    value = found[part][role][key]
                    row += f"{'-' if value is None else format(value * scale, '.2f'):>10}"
            print(row)
        for budget, value in verdicts(runtime, found):
            here = "-" if value is None else f"{value:.2f}"
            kept = "unknown" if value is None else "kept" if value <= budget.most else "NOT KEPT"
            print(f"  {budget.name:<30}{f'{budget.most:g} {budget.unit}':>18}{here:>10}  {kept}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print; exit code 0 whatever the figures are, since a busy machine is no error."""
    parser = argparse.ArgumentParser(prog="edgert bench footprint", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=shipped(), help="the policy")
    parser.add_argument("--runtime", action="append", choices=RUNTIMES, help="may be repeated (litert, onnx)")
    parser.add_argument("--seconds", type=float, default=30.0, help="idle, and then acting (30)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk that counts (/var/tmp)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the device is stopped on the way out
    wanted = args.runtime or ["litert", "onnx"]
    names = [name for name in wanted if find_spec(RUNTIMES[name]) is not None]
    if not names:
        raise UsageError(f"none of {', '.join(wanted)} is installed: pip install 'edgert[litert]' or 'edgert[onnx]'")
    document: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seconds": args.seconds,
        "import_s": {f"edgert.programs.{role}": round(import_s(f"edgert.programs.{role}"), 3) for role in ROLES},
        "runtimes": {},
    }
    with tempfile.TemporaryDirectory(prefix="edgert-footprint-", dir=args.dir) as made:
        folder = Path(made)
        broker = brokers.start("auto", folder / "broker")
        try:
            for name in names:
                (folder / name).mkdir()
                document["runtimes"][name] = measure(
                    name, args.bundle.absolute(), broker.url, folder / name, args.seconds
                )
        finally:
            broker.stop()
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        show(document)
    return 0
