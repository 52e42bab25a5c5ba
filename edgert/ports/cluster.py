"""A whole fleet on one machine, for the demo, system tests and benchmarks: broker, teachers, devices, collector.

`Cluster` starts real processes with real configuration files and starts again what ends, as systemd would. `Collector`
listens to the fleet over the broker, like any other collector.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgert import bundle, wire
from edgert.config import commented_default
from edgert.errors import LinkError, MessageError, UsageError
from edgert.fleet.session import Collector as Collected
from edgert.fleet.session import collect
from edgert.ports import broker as brokers
from edgert.ports import screen
from edgert.ports.mqtt import Mqtt, Received
from edgert.ports.screen import History

GAMES = {
    "breakout": "MinAtar/Breakout-v1",
    "space_invaders": "MinAtar/SpaceInvaders-v1",
    "asterix": "MinAtar/Asterix-v1",
    "freeway": "MinAtar/Freeway-v1",
    "seaquest": "MinAtar/Seaquest-v1",
    "pong": "ALE/Pong-v5",
    "boxing": "ALE/Boxing-v5",
    "drone": "edgert/Drone-v0",
    "cartpole": "CartPole-v1",
    "acrobot": "Acrobot-v1",
    "lunarlander": "LunarLander-v3",
}
"""What a game is called, here and in the names of its bundles -> gymnasium id."""
WEAK = ("breakout", "space_invaders")
"""Games whose shipped student is weak on purpose: minutes of training must better it. The others' are as good as their
teachers, and a gate that lets nothing new act does its work."""
MODELS = Path(__file__).parents[2] / "models"
RESTART_S = 1.0
"""As `RestartSec=` in the units."""
STOP_S = 15.0
"""A device may take `supervisor.STOP_S` and a goodbye to the broker."""
CHANNELS = ("status", "tele", "evt")
_BAD_CONFIG = 78
_MARK = "EDGERT_CLUSTER"


class Running(NamedTuple):
    """One thing the cluster keeps running.

    Attributes:
        name: `broker`, a teacher's or a device's.
        pid: None while it is down.
        restarts: how often it was started again.
        code: exit code of the last end, or None.
        failed: it will not be started again: its configuration is wrong.
    """

    name: str
    pid: int | None
    restarts: int
    code: int | None
    failed: bool


class Stopped(NamedTuple):
    """How a cluster ended: name -> exit code, and who had to be killed."""

    codes: dict[str, int | None]
    killed: list[str]


class _Service:
    """A child process that is started again when it ends, unless its configuration is wrong."""

    def __init__(self, name: str, arguments: list[str], log: Path, mark: str) -> None:
        self.name, self.log = name, log
        self.code: int | None = None
        self.restarts = 0
        self._argv = [sys.executable, "-m", "edgert", *arguments]
        # Children inherit the mark: that is how those are found that outlived their parent.
        self._env = {**os.environ, _MARK: f"{mark}/{name}", "PYTHONUNBUFFERED": "1"}
        self._next_s = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            # A session of its own: Ctrl-C in the terminal is for the demo, which then stops everything in good order.
            self.process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._env, start_new_session=True
            )

    def poll(self, now_s: float) -> Running:
        if self.process is not None and self.process.poll() is not None:
            self.code, self.process, self._next_s = self.process.returncode, None, now_s + RESTART_S
        if self.process is None and self.code != _BAD_CONFIG and now_s >= self._next_s:
            self.restarts += 1
            self.start()
        pid = None if self.process is None else self.process.pid
        return Running(self.name, pid, self.restarts, self.code, self.process is None and self.code == _BAD_CONFIG)

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        return ""


def playable(models: Path = MODELS) -> list[str]:
    """The games whose student and teacher are both in `models`."""
    return [game for game in GAMES if all(path.exists() for path in _bundles(game, models))]


def student(game: str, models: Path | None = None) -> bundle.Manifest:
    """The manifest of a game's student.

    Args:
        game: a key of `GAMES`.
        models: folder with `<game>.edgert` and `<game>-teacher.edgert`; the repository's by default.

    Raises:
        UsageError: no such game, or its student or teacher is missing.
        ArtifactError: the student is broken.
    """
    if game not in GAMES:
        raise UsageError(f"no game {game!r}: choose one of {', '.join(GAMES)}")
    models = models or MODELS
    missing = [str(path) for path in _bundles(game, models) if not path.exists()]
    if missing:
        there = playable(models)
        other = f"play {' or '.join(there)}, whose bundles are there, or " if there else ""
        raise UsageError(f"no {' and no '.join(missing)}: {other}name the folder that holds them with --models")
    return bundle.read(_bundles(game, models)[0].read_bytes()).manifest


def teacher_bundle(game: str, models: Path | None = None) -> Path:
    """Where the teacher of a game lies, there or not."""
    return _bundles(game, models or MODELS)[1]


def _bundles(game: str, models: Path) -> tuple[Path, Path]:
    return models / f"{game}.edgert", models / f"{game}-teacher.edgert"


class Cluster:
    """A broker, teachers and devices, as child processes on this machine.

    Attributes:
        out: everything it writes, but for the sockets.
        fleet: name of the fleet.
        devices, teachers: names.
        broker: the running broker, after `start`.
        capabilities: what the broker really does, after `start`.
        nominal_hz: the policy's control rate.
    """

    def __init__(
        self,
        out: Path,
        game: str = "breakout",
        *,
        devices: int = 2,
        teachers: int = 1,
        broker: Literal["auto", "mosquitto", "iotcore"] = "auto",
        device_config: Callable[[int], Mapping[str, object]] | Mapping[str, object] | None = None,
        models: Path | None = None,
    ) -> None:
        """Write every configuration file; nothing runs yet.

        Args:
            out: folder for configurations, state, logs; made if missing. A former run's state in it is taken up again.
            game: a key of `GAMES`.
            devices: how many.
            teachers: how many replicas.
            broker: which one; auto prefers mosquitto.
            device_config: dotted configuration key -> value, on top of the simulated plant; a function of the device's
                index gives each its own.
            models: folder with `<game>.edgert` and `<game>-teacher.edgert`; the repository's by default.

        Raises:
            UsageError: no such game, or a model is missing.
            ArtifactError: a model is broken.
        """
        self.nominal_hz = student(game, models).control_rate_hz
        self.student, self.teacher = (path.absolute() for path in _bundles(game, models or MODELS))
        self.out, self.fleet = out.absolute(), "demo"
        self.broker: brokers.Broker | None = None
        self.capabilities: brokers.Capabilities | None = None
        self.port = brokers.free_port()
        self._kind: Literal["auto", "mosquitto", "iotcore"] = broker
        self._broker_restarts = 0
        self._mark = secrets.token_hex(6)
        # Not under `out`: a Unix socket's path may have 107 bytes only.
        self._run = Path(tempfile.mkdtemp(prefix="edgert-", dir="/tmp"))
        self.devices = [f"device-{i + 1}" for i in range(devices)]
        self.teachers = [f"teacher-{i + 1}" for i in range(teachers)]
        url = f"mqtt://127.0.0.1:{self.port}"
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        self._services: dict[str, _Service] = {}
        for name in self.teachers:
            asked = ["--bundle", str(self.teacher), "--broker", url, "--fleet", self.fleet, "--id", name]
            self._add(name, ["teacher", *asked])
        for i, name in enumerate(self.devices):
            settings = {
                "device.id": name,
                "device.fleet": self.fleet,
                "device.state_dir": str(self.out / name / "state"),
                "device.run_dir": str(self._run / name),
                "broker.url": url,
                "policy.bundle": str(self.student),
                "plant.kind": "simulated",
                "plant.env": GAMES[game],
                "plant.seed": i + 1,
                "board.kind": "fake",
                "battery.kind": "simulated",
                **(device_config(i) if callable(device_config) else device_config or {}),
            }
            (self.out / name).mkdir(exist_ok=True)
            self.config(name).write_text(commented_default(settings))
            self._add(name, ["run", "--config", str(self.config(name))])

    def _add(self, name: str, arguments: list[str]) -> None:
        self._services[name] = _Service(name, arguments, self.out / "logs" / f"{name}.log", self._mark)

    @property
    def url(self) -> str:
        """The broker's."""
        return f"mqtt://127.0.0.1:{self.port}"

    def config(self, device: str) -> Path:
        """A device's configuration file; a change takes effect when its supervisor is started again."""
        return self.out / device / "edgert.toml"

    def state(self, device: str) -> Path:
        """A device's state folder."""
        return self.out / device / "state"

    def run_dir(self, device: str) -> Path:
        """A device's folder of sockets and locks."""
        return self._run / device

    def start(self) -> None:
        """Start the broker, see what it can do, then start everybody else.

        Blocks: about 3 s, for the probe.

        Raises:
            LinkError: no broker could be started, or it does not speak MQTT 5.
        """
        self.broker = brokers.start(self._kind, self.out / "broker", self.port)
        self.capabilities = brokers.probe(self.url)
        if not self.capabilities.mqtt5:
            raise LinkError(f"{self.broker.kind} on port {self.port} does not speak MQTT 5: try another with --broker")
        for service in self._services.values():
            service.start()

    def poll(self) -> list[Running]:
        """Start again what has ended, a second after it did; call it a few times a second.

        Blocks: only while a broker starts.
        """
        now_s = time.monotonic()
        found = [service.poll(now_s) for service in self._services.values()]
        if self.broker is not None:
            pid = None
            with contextlib.suppress(LinkError):
                pid = self.broker.pid
            if pid is None:
                self._broker_restarts += 1
                self.broker.restart()
                pid = self.broker.pid
            found.insert(0, Running("broker", pid, self._broker_restarts, None, False))
        return found

    def members(self) -> list[tuple[int, str, str]]:
        """(pid, name, role) of every process of this cluster but the broker, also of those whose parent is gone."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ, argv = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended, or is not ours
            marks = [each for each in environ.split(b"\0") if each.startswith(f"{_MARK}={self._mark}/".encode())]
            if marks and len(argv) > 3:
                program = argv[2].decode() if argv[2] != b"edgert" else argv[3].decode()
                role = program.rpartition(".")[2].replace("run", "supervisor")
                found.append((int(folder.name), marks[0].rpartition(b"/")[2].decode(), role))
        return found

    def kill(self, role: str, name: str = "", how: int = signal.SIGKILL) -> int:
        """Send a signal to one process.

        Args:
            role: broker, teacher, supervisor, actor, trainer or world.
            name: of the device or teacher; the first one by default.
            how: the signal.

        Returns:
            Its pid.

        Raises:
            UsageError: there is no such process now.
        """
        if role == "broker" and self.broker is not None:
            pid = self.broker.pid
        else:
            pids = [pid for pid, who, what in sorted(self.members()) if what == role and name in ("", who)]
            if not pids:
                raise UsageError(f"no {role} {name} runs in this cluster")
            pid = pids[0]
        os.kill(pid, how)
        return pid

    def halt(self) -> Stopped:
        """Stop everything but the broker: devices first, since they still have something to say; then who is left over.

        Blocks: until all are gone, `STOP_S` and a little at most.
        """
        codes: dict[str, int | None] = {}
        killed: list[str] = []
        for names, patience_s in ((self.devices, STOP_S), (self.teachers, 5.0)):
            running = {name: p for name in names if (p := self._services[name].process) is not None}
            for process in running.values():
                process.terminate()
            deadline_s = time.monotonic() + patience_s
            for name, process in running.items():
                try:
                    process.wait(max(0.0, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    killed.append(name)
                    process.kill()
                    process.wait()
                self._services[name].process = None
            codes |= {name: p.returncode if (p := running.get(name)) else self._services[name].code for name in names}
        for how, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 2.0)):
            deadline_s = time.monotonic() + patience_s
            left = self.members()
            for pid, name, role in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                if how == signal.SIGKILL:
                    killed.append(f"{name}'s {role}")
            while left and self.members() and time.monotonic() < deadline_s:
                time.sleep(0.05)
        return Stopped(codes, killed)

    def stop(self) -> Stopped:
        """Stop everything, and remove the sockets; configurations, state and logs stay."""
        stopped = self.halt()
        if self.broker is not None:
            self.broker.stop()
            self.broker = None
        shutil.rmtree(self._run, ignore_errors=True)
        return stopped

    def tail(self, name: str) -> str:
        """The last lines of a log."""
        return self._services[name].tail()


class Collector:
    """Listens to a fleet, acknowledges its events, and remembers everything.

    Attributes:
        devices: name -> history.
        teachers: name -> its last status documents, each with the time it was written.
        events: those delivered, in order, as (device, event).
        collected: device -> the receiver's state.
        online: device -> does it say so.
        again: events that arrived more than once, which is in order.
        malformed: messages that could not be read.
    """

    def __init__(self, url: str, fleet: str) -> None:
        """Connect, and stay connected."""
        self.devices: dict[str, History] = {}
        self.teachers: dict[str, deque[tuple[float, dict[str, Any]]]] = {}
        self.events: list[tuple[str, wire.Event]] = []
        self.collected: dict[str, Collected] = {}
        self.online: dict[str, bool] = {}
        self.again = self.malformed = 0
        self._fleet = fleet
        self._mqtt = Mqtt(url, f"edgert-collector-{secrets.token_hex(4)}", session_expiry_s=3600)
        self._mqtt.subscribe([(str(wire.Topic(fleet, "+", channel, "+", "+")), 1) for channel in CHANNELS])
        self._mqtt.start()

    def poll(self) -> None:
        """Take in what has arrived."""
        for event in self._mqtt.events():
            if isinstance(event, Received):
                try:
                    self._hear(wire.parse_topic(event.topic), event.payload)
                except MessageError:
                    self.malformed += 1

    def close(self) -> None:
        """Leave the broker."""
        self._mqtt.close()

    def waiting(self) -> int:
        """Events that devices said they still hold."""
        return sum((h.status.get("link") or {}).get("events_waiting", 0) for h in self.devices.values())

    def answer_rate(self, teacher: str) -> float | None:
        """Answers a second a teacher gave lately; None while unknown."""
        told = list(self.teachers.get(teacher, ()))
        if len(told) < 2 or told[-1][0] <= told[0][0]:
            return None
        return screen.grown([status.get("answers", 0) for _, status in told]) / (told[-1][0] - told[0][0])

    def _hear(self, topic: wire.Topic, payload: bytes) -> None:
        if topic.channel == "status":
            self.online[topic.device] = wire.decode(payload, wire.Status)[0].online
        elif topic.channel == "tele":
            told, _ = wire.decode(payload, wire.Telemetry)
            if topic.type == "device":
                self.devices.setdefault(topic.device, History()).add(told.status, told.at_s)
            else:
                self.teachers.setdefault(topic.device, deque(maxlen=6)).append((told.at_s, told.status))
        elif topic.channel == "evt":
            event, _ = wire.decode(payload, wire.Event)
            before = self.collected.get(topic.device, Collected())
            after, deliver, up_to = collect(before, event.stream, event.first, event.seq)
            self.collected[topic.device] = after
            if deliver:
                self.events.append((topic.device, event))
            else:
                self.again += 1
            if up_to:
                ack = wire.EventAck(stream=event.stream, up_to=up_to)
                where = str(wire.Topic(self._fleet, topic.device, "cmd", "ack"))
                self._mqtt.publish(where, wire.encode(ack), qos=1, content_type=wire.CONTENT_TYPE)
