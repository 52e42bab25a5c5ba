"""`edgert doctor`: is this machine fit to run, and if not, what mends it?"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from edgert import __version__
from edgert import bundle as bundles
from edgert.cli import BAD_CONFIG, ERROR, OK
from edgert.config import Config
from edgert.errors import ArtifactError, ConfigError, EdgertError
from edgert.ports import screen
from edgert.ports.process import Layout, load_config

Verdict = Literal["ok", "warn", "fail"]
ROOM_BYTES = 64 << 20
"""A ring of 20,000 transitions, a few bundles and checkpoints, and the event spool."""
CHILD_S = 60.0
_TIME_ERROR = 5
"""TIME_ERROR of adjtimex(2): the clock is not synchronised."""

# In a process of its own: a broken native package ends the process that imports it, and that should not be the doctor.
_RUNTIME_CHILD = """
import sys
from pathlib import Path
from edgert.errors import EdgertError
from edgert.policy import artifact
from edgert.ports.runtime import open_runtime
try:
    policy = artifact.load(Path(sys.argv[1]).read_bytes())
    open_runtime(policy, sys.argv[2]).close()
except (EdgertError, OSError) as error:
    sys.exit(str(error))
print(len(policy.golden_obs))
"""
_VARIANT_CHILD = """
import sys
from pathlib import Path
from edgert.errors import EdgertError
from edgert.ports.variants import read_variant
try:
    variant = read_variant(Path(sys.argv[1]), sys.argv[2])
    runtime = variant.open().runtime if sys.argv[3] == "here" else "elsewhere only"
except (EdgertError, OSError) as error:
    sys.exit(str(error))
best = variant.manifest.accuracy[0]
print(f"{variant.manifest.name}: {best.metric} {best.value_frac:.1%}{'' if best.measured else ', quoted'}; {runtime}")
"""
# As `ports.runtime.PACKAGES`, which cannot be imported where numpy is what is broken.
_RUNTIMES = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "tflite": "tflite_runtime", "numpy": "numpy"}
_KERNELS_CHILD = "from edgert import kernels; print(kernels.NATIVE)"


RENEW_DAYS = 30.0
"""A certificate with less than that left is to be renewed: a device may be away for weeks."""


class Finding(NamedTuple):
    """What one check found; `mend` says what to do about it, empty when nothing is needed."""

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


def doctor(argv: list[str]) -> int:
    """Check everything and say how to mend what is wrong.

    Returns:
        0 when nothing failed (warnings may), 1 when something did, 78 when it was the configuration.
    """
    parser = argparse.ArgumentParser(
        prog="edgert doctor", description="Check this machine, its configuration and broker."
    )
    parser.add_argument(
        "--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(/etc/edgert/edgert.toml)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    findings = []
    for finding in examine(args.config):
        findings.append(finding)
        if not args.json:
            _print(finding)
    worst = {finding.verdict for finding in findings}
    if args.json:
        print(json.dumps({"ok": "fail" not in worst, "findings": [f._asdict() for f in findings]}, indent=2))
    else:
        counts = ", ".join(f"{sum(f.verdict == v for f in findings)} {v}" for v in ("ok", "warn", "fail"))
        print(f"\n{counts}")
    if any(f.name == "configuration" and f.verdict == "fail" for f in findings):
        return BAD_CONFIG
    return ERROR if "fail" in worst else OK


def examine(path: Path) -> Iterator[Finding]:
    """Every check in turn; those that need a configuration are left out without one."""
    yield _versions()
    yield _kernels()
    yield _clock()
    try:
        config = load_config(path)
    except ConfigError as error:
        yield Finding("configuration", "fail", str(error), f"edit {path}, or write a new one with `edgert init`")
        return
    yield Finding("configuration", "ok", f"{path}: device {config.device.id} of fleet {config.device.fleet}")
    yield from _bundle(config)
    yield from _variants(config)
    yield from _folders(config)
    yield _instance(config)
    checks: list[Callable[[Config], Finding]] = [_sensors, _plant, _broker, _trust]
    for check in checks:
        yield check(config)


def _print(finding: Finding) -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.verdict]
    lines = finding.found.splitlines() or [""]
    print(f"{screen.paint(f'{finding.verdict:<4}', colour)} {finding.name:<14} {lines[0]}", flush=True)
    for more in lines[1:]:
        print(f"{'':<19} {more}")
    if finding.mend:
        print(f"{'':<19} -> {finding.mend}", flush=True)


def _versions() -> Finding:
    packages = []
    runtimes = ("onnxruntime", "ai-edge-litert", "tflite-runtime")
    others = ("cbor2", "msgspec", "paho-mqtt", "zstandard", "cronsim", "psutil", "gymnasium", "rich")
    for name in ("numpy", *runtimes, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages.append(f"{name} {importlib.metadata.version(name)}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    found = f"edgert {__version__}, Python {platform.python_version()}, {machine}; {', '.join(packages)}"
    return Finding("versions", "ok", found)


def _child(code: str, *arguments: str) -> tuple[bool, str]:
    """Run Python code in a process of its own: did it end well, and its last words."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_S, check=False)
    except subprocess.TimeoutExpired:
        return False, f"did not end within {CHILD_S:.0f} s"
    except OSError as error:
        return False, str(error)
    if ended.returncode == 0:
        return True, ended.stdout.strip()
    if ended.returncode < 0:
        return False, f"crashed the process with signal {-ended.returncode}"
    words = ended.stderr.strip().splitlines()
    return False, words[-1] if words else f"exit code {ended.returncode}"


def _kernels() -> Finding:
    ended_well, said = _child(_KERNELS_CHILD)
    if not ended_well:
        return Finding("kernels", "fail", said, "reinstall edgert, or set EDGERT_KERNELS=numpy")
    if said == "True":
        return Finding("kernels", "ok", "C")
    mend = "install a C compiler and the Python headers, and reinstall edgert"
    return Finding("kernels", "warn", "numpy: the same results, but learning is slower", mend)


def _bundle(config: Config) -> Iterator[Finding]:
    path = Path(config.policy.bundle)
    try:
        manifest = bundles.read(path.read_bytes()).manifest
    except (OSError, ArtifactError) as error:
        yield Finding("bundle", "fail", f"{path}: {error}", "copy it again, or set policy.bundle to another")
        return
    shape = "x".join(map(str, manifest.observation.shape))
    about = f"{manifest.name}: {shape} observations, {manifest.action.n} actions, {len(manifest.exits)} exits"
    yield Finding("bundle", "ok", f"{about}, {manifest.control_rate_hz:g} Hz")
    wanted, has_tflite, first = config.policy.runtime, "stage0.tflite" in manifest.members, True
    for kind, package in _RUNTIMES.items():
        name, needed, is_extra = f"runtime {kind}", wanted == kind, kind in ("litert", "tflite")
        if not find_spec(package):
            if needed or not is_extra:
                verdict: Verdict = "fail" if needed else "warn"
                mend = f"pip install 'edgert[{kind}]'; numpy is slower"
                yield Finding(name, verdict, f"{package} is not installed", mend)
            continue
        if is_extra and not (needed or has_tflite):
            continue
        ended_well, said = _child(_RUNTIME_CHILD, str(path), kind)
        used, first = needed or (wanted == "auto" and first), False
        if ended_well:
            yield Finding(name, "ok", f"gave all {said} golden answers{', and will act' if used else ''}")
        else:
            other = "onnx" if kind == "numpy" else "numpy"
            mend = f'set policy.runtime = "{other}", or reinstall the package'
            yield Finding(name, "fail" if used else "warn", said, mend)


def _variants(config: Config) -> Iterator[Finding]:
    if not config.offload.enabled:
        return
    for i, each in enumerate(config.offload.variants):
        where = "here" if each.local else "there"
        ended_well, said = _child(_VARIANT_CHILD, each.bundle, config.offload.runtime, where)
        mend = "" if ended_well else f"copy it again, or take it out of offload.variants (number {i + 1})"
        yield Finding(f"variant {i + 1}", "ok" if ended_well else "fail", said, mend)


def _folders(config: Config) -> Iterator[Finding]:
    for key, folder in (("state_dir", Path(config.device.state_dir)), ("run_dir", Path(config.device.run_dir))):
        there = folder
        while not there.exists():
            there = there.parent
        mend = f"mkdir -p {folder} and give it to the user that runs edgert, or set device.{key} to another folder"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(key, "fail", f"{there} may not be written by uid {os.getuid()}", mend)
            continue
        free_bytes, kind = shutil.disk_usage(there).free, file_system(there)
        found = f"{folder} on {kind or 'an unknown file system'}, {screen.amount(free_bytes)} free"
        found += "" if there == folder else f" (will be made in {there})"
        if key == "state_dir" and free_bytes < ROOM_BYTES:
            yield Finding(key, "warn", found, f"make room: {screen.amount(ROOM_BYTES)} are wanted")
        elif key == "state_dir" and kind in ("tmpfs", "ramfs", "overlay"):
            yield Finding(
                key, "warn", found, "what is learned there is lost at the next boot: choose a folder on a disk"
            )
        else:
            yield Finding(key, "ok", found)


def file_system(path: Path) -> str | None:
    """The kind of file system that holds a path, or None."""
    best, kind = "", None
    with contextlib.suppress(OSError):
        resolved = str(path.resolve())
        for row in Path("/proc/self/mounts").read_text().splitlines():
            fields = row.split()
            where = fields[1].replace("\\040", " ")
            inside = resolved == where or resolved.startswith(where.rstrip("/") + "/")
            if inside and len(where) >= len(best):
                best, kind = where, fields[2]
    return kind


def _instance(config: Config) -> Finding:
    import fcntl  # only where there are Unix locks

    lock = Layout(config).lock("supervisor")
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = file.read(32).decode(errors="replace").strip()
                return Finding("instance", "ok", f"runs already, pid {pid}", "`edgert status` shows what it does")
    except FileNotFoundError:
        return Finding("instance", "ok", "none runs")
    except OSError as error:
        return Finding("instance", "warn", str(error), f"see who owns {lock}")
    return Finding("instance", "ok", "none runs")


def _sensors(config: Config) -> Finding:
    from edgert.ports.board import open_board

    board = open_board(config)
    board.read(time.monotonic())
    time.sleep(0.3)  # CPU load is a difference between two looks
    readings = board.read(time.monotonic())
    figures = {
        "CPU load": screen.percent(readings.load_frac.value),
        "temperature": screen.number(readings.temp_c.value, " °C"),
        "battery": screen.percent(readings.battery_frac.value) if readings.has_battery else "mains",
        "power": screen.number(readings.power_w.value, " W"),
    }
    found = f"{board.name}: " + ", ".join(f"{name} {value}" for name, value in figures.items())
    # What `govern.estimate` makes of a sensor that never gave a value.
    meanings = {
        "CPU load": "no CPU load is known, so training is not slowed for it",
        "temperature": "no temperature is known, so no heat limit holds",
        "battery": "the battery's charge is not known, so it is judged as empty: no training, first exit only",
    }
    silent = [meaning for name, meaning in meanings.items() if figures[name] == "-"]
    if silent:
        words = "; ".join(silent)
        return Finding("sensors", "warn", f"{found}; {words}", "see [board] and [battery] in the configuration")
    return Finding("sensors", "ok", found)


def _plant(config: Config) -> Finding:
    plant = config.plant
    if plant.kind == "socket":
        return Finding("plant", "ok", f"your program asks on {plant.socket}")
    if find_spec("gymnasium") is None:
        return Finding("plant", "fail", "gymnasium is not installed", "pip install 'edgert[sim]', and the environment")
    return Finding("plant", "ok", f"simulated: {plant.env}")


def _broker(config: Config) -> Finding:
    from edgert.ports import broker

    url = config.broker.url
    needs = [key for key in ("username", "password_file", "ca_file", "cert_file") if getattr(config.broker, key)]
    if needs:
        found = f"{url} is not probed, since it wants {', '.join(needs)}"
        return Finding("broker", "warn", found, "`edgert run`, then `edgert status`, shows whether the link stands")
    try:
        able = broker.probe(url)
    except EdgertError as error:
        return Finding("broker", "fail", f"{url}: {error}", "set broker.url")
    if not able.mqtt5:
        mend = "start it, open its port, or set broker.url; the device works on without it, and is not taught"
        return Finding("broker", "fail", f"{url} does not answer, or does not speak MQTT 5", mend)
    lacks = [
        name
        for name in ("shared_subscriptions", "retained", "offline_queue", "message_expiry", "large_packets")
        if not getattr(able, name)
    ]
    if lacks:
        found = f"{url} answers, but does not do: {', '.join(name.replace('_', ' ') for name in lacks)}"
        return Finding("broker", "warn", found, "mosquitto does; without shared subscriptions use one teacher only")
    return Finding(
        "broker", "ok", f"{url}: MQTT 5, and shared subscriptions, retained and queued messages were delivered"
    )


def _trust(config: Config) -> Finding:
    """Keys and certificates: whether they can be read by those who may, and by nobody else, and for how long."""
    from edgert.ports.ca import days_left
    from edgert.ports.credentials import address_of, credential
    from edgert.ports.signing import read_keys, verify

    try:
        address = address_of(config.broker)
        words = []
        if address.cert_file is not None:
            left = days_left(Path(address.cert_file), datetime.datetime.now(datetime.timezone.utc))
            words.append(f"the certificate is valid for {left:.0f} days")
            if left < RENEW_DAYS:
                mend = "`edgert fleet ca renew` where the authority is, then `edgert fleet ca install` here"
                return Finding("trust", "fail" if left <= 0 else "warn", words[0], mend)
        if config.trust.keys_file is not None:
            keys = read_keys(credential(config.trust.keys_file))
            verify(b"", b"", b"")
            words.append(f"{len(keys.keys)} keys of list {keys.serial}; nothing unsigned from the link counts")
        else:
            words.append("no keys: commands and policies of whoever may publish at the broker are obeyed")
    except ConfigError as error:
        return Finding("trust", "fail", str(error), "mend or remove what the configuration names")
    return Finding("trust", "ok", "; ".join(words))


def _clock() -> Finding:
    mend = "timedatectl set-ntp true; signatures and event times need a right clock"
    with contextlib.suppress(OSError, AttributeError):
        # struct timex of adjtimex(2), zeroed: modes = 0 only reads. 512 bytes are more than it has anywhere.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
        if state == _TIME_ERROR:
            return Finding("clock", "warn", f"not synchronised; it says {time.strftime('%Y-%m-%d %H:%M:%S %Z')}", mend)
        if state >= 0:
            return Finding("clock", "ok", "synchronised")
    return Finding("clock", "warn", "cannot tell whether it is synchronised", mend)
