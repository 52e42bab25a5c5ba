"""Real processes: a fleet with its broker, teacher and collector, and a lone device without any of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgert.config import commented_default
from edgert.ports import broker as brokers
from edgert.ports import ipc
from edgert.ports.cluster import Cluster, Collector
from edgert.ports.ring import RingReader
from edgert.values import StatusReply, StatusRequest, Swap

HOUSE = Path(__file__).parents[2]
MODELS = HOUSE / "models"
TICK_S = 0.05
LEARN = {
    "learn.train_steps_hz": 10.0,
    "learn.min_transitions": 64,
    "learn.checkpoint_s": 2.0,
    "learn.candidate_s": 10.0,
    "learn.ring_transitions": 4000,
}


def wait(condition: Callable[[], Any], what: str, patience_s: float, look: Callable[[], object]) -> Any:
    """What `condition` gave once it was true; `look` is called all the while."""
    deadline_s = time.monotonic() + patience_s
    while True:
        look()
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline_s, f"{what} did not come true in {patience_s} s"
        time.sleep(0.02)


def ask_status(control: Path) -> dict[str, Any] | None:
    """The status document of the supervisor at this socket, None while there is none."""
    channel = ipc.connect(control)
    if channel is None:
        return None
    try:
        channel.send(StatusRequest())
        deadline_s = time.monotonic() + 5.0
        while not channel.closed and time.monotonic() < deadline_s:
            channel.wait(0.1)
            for told in channel.receive():
                if isinstance(told, StatusReply):
                    return told.status
    finally:
        channel.close()
    return None


def note_acting(state: Path, bundle: Path, generation: int) -> None:
    """Leave behind what a device leaves behind whose network of this generation acts."""
    import hashlib

    policies = state / "policies"
    policies.mkdir(parents=True)
    path = policies / f"gen-{generation:08d}.edgert"
    shutil.copy(bundle, path)
    swap = Swap(generation, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    (policies / "acting.json").write_bytes(msgspec.json.encode(swap))


class Fleet:
    """A cluster with one device, whose acting network is of `GENERATION`, and a collector."""

    GENERATION = 7
    DEVICE = "device-1"

    def __init__(self, out: Path) -> None:
        self.cluster = Cluster(out, devices=1, teachers=1, broker="mosquitto", device_config=LEARN)
        note_acting(self.cluster.state(self.DEVICE), self.cluster.student, self.GENERATION)
        self.collector: Collector | None = None
        self.polled = True

    def start(self) -> None:
        self.cluster.start()
        self.collector = Collector(self.cluster.url, self.cluster.fleet)

    def stop(self) -> Any:
        if self.collector is not None:
            self.collector.close()
        return self.cluster.stop()

    def look(self) -> None:
        """What a machine's service manager and a collector do all the time."""
        if self.polled:
            self.cluster.poll()
        assert self.collector is not None
        self.collector.poll()

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = 40.0) -> Any:
        return wait(condition, what, patience_s, self.look)

    def status(self) -> dict[str, Any]:
        """Of the device, from its supervisor's own mouth; the supervisor must be there."""
        found: dict[str, Any] = self.until(
            lambda: ask_status(self.cluster.run_dir(self.DEVICE) / "control.sock"), "a supervisor that answers"
        )
        return found

    def until_status(self, condition: Callable[[dict[str, Any]], Any], what: str, patience_s: float = 40.0) -> Any:
        """The first status document that meets the condition."""
        latest: dict[str, Any] = {}

        def met() -> bool:
            latest.update(ask_status(self.cluster.run_dir(self.DEVICE) / "control.sock") or {})
            return bool(latest and condition(latest))

        try:
            self.until(met, what, patience_s)
        except AssertionError:
            print(latest, self.cluster.tail(self.DEVICE), sep="\n")
            raise
        return latest

    def pid(self, role: str) -> int | None:
        return next((pid for pid, who, what in self.cluster.members() if what == role), None)

    def ring(self) -> RingReader:
        return RingReader(self.cluster.state(self.DEVICE) / "ring.bin")

    def log(self, name: str = DEVICE) -> str:
        return (self.cluster.out / "logs" / f"{name}.log").read_text(errors="replace")

    def seqs(self) -> dict[str, list[int]]:
        """Numbers of the events that the collector delivered, in order, by the stream that each belongs to."""
        assert self.collector is not None
        seqs: dict[str, list[int]] = {}
        for _, event in self.collector.events:
            seqs.setdefault(event.stream, []).append(event.seq)
        return seqs

    def names(self) -> list[str]:
        assert self.collector is not None
        return [event.name for _, event in self.collector.events]


class Lone:
    """A device without a broker; its supervisor is our child, its files lie in `folder`."""

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Not under `folder`: a Unix socket's path may have 107 bytes only.
        self.run = Path(tempfile.mkdtemp(prefix="edgert-", dir="/tmp"))
        self.state, self.config, self.log_path = folder / "state", folder / "edgert.toml", folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.config.write_text(
            commented_default(
                {
                    "device.id": "lone",
                    "device.state_dir": str(self.state),
                    "device.run_dir": str(self.run),
                    "broker.url": f"mqtt://127.0.0.1:{brokers.free_port()}",
                    "policy.bundle": str(MODELS / "breakout.edgert"),
                    "plant.kind": "simulated",
                    "plant.env": "MinAtar/Breakout-v1",
                    "board.kind": "fake",
                    "teacher.enabled": False,
                    **LEARN,
                    **{key.replace("__", "."): value for key, value in settings.items()},
                }
            )
        )

    def start(self, **environ: str) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgert", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=HOUSE,
                env={**os.environ, "PYTHONPATH": str(HOUSE), **environ},
                start_new_session=True,
            )

    def end(self, patience_s: float = 20.0) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(patience_s)

    def clean(self) -> None:
        """Whatever became of the test: nobody stays."""
        if self.process is not None:
            for pid in self.group():
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.run, ignore_errors=True)

    def group(self) -> list[int]:
        """Everybody of this device: the session that its supervisor leads."""
        assert self.process is not None
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(folder.name))
        return found

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return ask_status(self.run / "control.sock") or {}

    def until_status(self, condition: Callable[[dict[str, Any]], Any], what: str, patience_s: float = 40.0) -> Any:
        def met() -> dict[str, Any] | None:
            latest = self.status()
            return latest if latest and condition(latest) else None

        try:
            return wait(met, what, patience_s, lambda: None)
        except AssertionError:
            print(self.status(), self.log()[-3000:], sep="\n")
            raise


def is_acting(status: dict[str, Any]) -> bool:
    return bool(status["actor"] and status["actor"]["acting"] and status["actor"]["first_action_s"])


@pytest.fixture(scope="session")
def acting() -> Callable[[dict[str, Any]], bool]:
    """Does a policy act, by this status document?"""
    return is_acting


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS


@pytest.fixture(scope="module")
def make_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Fleet]]:
    """Starts fleets, and stops them."""
    if brokers.mosquitto_path() is None:
        reason = "mosquitto is not installed (apt install mosquitto): no test has met a real broker"
        print(f"\n*** SKIPPED: {reason} ***")
        pytest.skip(reason)
    fleets: list[Fleet] = []

    def make(name: str) -> Fleet:
        fleets.append(Fleet(tmp_path_factory.mktemp(name)))
        fleets[-1].start()
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.stop()


@pytest.fixture(scope="module")
def make_lone() -> Iterator[Callable[..., Lone]]:
    """Makes lone devices, and leaves none behind."""
    devices: list[Lone] = []

    def make(folder: Path, **settings: object) -> Lone:
        devices.append(Lone(folder, **settings))
        return devices[-1]

    yield make
    for device in devices:
        device.clean()


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Write down what was measured: in the JUnit report, and on the screen with -s."""

    def say(**figures: object) -> None:
        for name, value in figures.items():
            record_property(name, value)
        print(f"\n[measured] {', '.join(f'{name}={value}' for name, value in figures.items())}")

    return say
