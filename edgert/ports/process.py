"""What every process of a device does at its edges: find its files, hold on to the supervisor, know its own cost.

Numpy-free: the supervisor uses it too.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import logging
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgert.bundle import Manifest, read
from edgert.config import Config, parse
from edgert.errors import ArtifactError, ConfigError, EdgertError, UsageError
from edgert.fleet.update import GENERATIONS
from edgert.ports import ipc
from edgert.ports.store import store_error
from edgert.values import Hello, Note, Role, Swap, Told

RECONNECT_S = 0.5
INSTALLED = "installed"
"""Key of a bundle's provenance: `identity` of the installed bundle that it grew from."""
KEPT = 64
"""What waits for a supervisor that is away, at most: a child says such a thing every few seconds."""
_CLOCK_TICKS_HZ = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: it cannot be read, or has faults; all of them are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; write one with `edgert init`") from error
    return parse(text, str(path))


def read_bundle(config: Config) -> bytes:
    """The bundle file that the configuration names.

    Raises:
        ConfigError: it cannot be read.
    """
    path = config.policy.bundle
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; policy.bundle names a .edgert file") from error


class Layout:
    """Where a device keeps its files.

    Attributes:
        bundle: the installed policy.
        control: socket on which children and command-line tools reach the supervisor.
        world: socket of the simulated plant.
        policy: socket for users' programs.
        knowledge: socket on which users' programs ask teachers.
        ring: transitions, actor to trainer.
        spool: durable events.
        policies: folder of networks trained here.
        acting: which of them acts.
        fleet: what came from the fleet: policies, keys, and what is remembered of them.
        jobs: what the fleet wants and what was done of it.
        outcomes: folder of what commands of jobs have left.
        paused: there while a person has paused the training.
        carried: what the link carried today.
        checkpoints: folder of training checkpoints.
        knowledge_cache: what teachers said.
        measured: which runtime is fastest here, as `edgert policy bench` found.
    """

    def __init__(self, config: Config) -> None:
        """Derive the paths; nothing is touched."""
        run, state = Path(config.device.run_dir), Path(config.device.state_dir)
        self.run, self.state = run, state
        self.bundle = Path(config.policy.bundle)
        self.control, self.world = run / "control.sock", run / "world.sock"
        self.knowledge = run / "knowledge.sock"
        self.policy = Path(config.plant.socket) if config.plant.socket else run / "policy.sock"
        self.ring, self.spool = state / "ring.bin", state / "events.db"
        self.policies, self.acting = state / "policies", state / "policies" / "acting.json"
        self.fleet, self.update = state / "fleet", state / "fleet" / "update.json"
        self.jobs, self.outcomes = state / "jobs.db", state / "jobs"
        self.paused, self.carried = state / "paused", state / "carried.json"
        self.knowledge_cache = state / "knowledge.db"
        self.checkpoints, self.measured = state / "checkpoints", state / "runtime.json"

    def lock(self, role: str) -> Path:
        """The file that keeps a role from running twice, and names the process that holds it."""
        return self.run / f"{role}.lock"

    def make(self) -> None:
        """Make the folders.

        Raises:
            ConfigError: one cannot be made or not be written.
            StoreError: the disk is full or read-only, which may pass.
        """
        for folder in (self.run, self.state, self.policies, self.checkpoints):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno in (errno.EROFS, errno.ENOSPC):
                    raise store_error(error, "make", folder) from error
                raise ConfigError(
                    f"{folder}: {error.strerror}; set device.run_dir and device.state_dir to folders you may write"
                ) from error
            if os.statvfs(folder).f_flag & os.ST_RDONLY:
                raise store_error(OSError(errno.EROFS, os.strerror(errno.EROFS)), "write to", folder)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"{folder}: not writable by uid {os.getuid()}; set device.run_dir and device.state_dir accordingly"
                )


def lock_holder(path: Path) -> int | None:
    """The process that holds a role's lock (`ipc.single_instance`), or None when nobody does."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(path.read_bytes() or 0) or None
    except (OSError, ValueError):
        return None
    return None


def read_note(layout: Layout) -> tuple[Note | None, str]:
    """The note of `bus.Commit`, which network acts, and what is wrong with it.

    Returns:
        The note; None where there is none. One whose network cannot be believed says that the installed one acts, and
        still which never may; and why, empty where all is well.
    """
    try:
        note = msgspec.json.decode(layout.acting.read_bytes(), type=Note)
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        return None, f"{layout.acting}: {error}"
    fault = _fault_of(layout, note) if note.generation else ""
    return (Note(0, "", "", refused=note.refused) if fault else note), fault


def noted_network(layout: Layout) -> tuple[Swap | None, str]:
    """The network that acted last by the note, and what is wrong with that note.

    Returns:
        The network, or None where the installed one acts; and why, empty where all is well.
    """
    note, fault = read_note(layout)
    return (Swap(note.generation, note.path, note.sha256) if note and note.generation else None), fault


def _fault_of(layout: Layout, note: Note) -> str:
    try:
        data = Path(note.path).read_bytes()
    except FileNotFoundError:
        return f"{layout.acting}: {note.path} is gone"
    except OSError as error:
        return f"{layout.acting}: {error}"
    if hashlib.sha256(data).hexdigest() != note.sha256:
        return f"{layout.acting}: {note.path} is not the file that was noted: its sha256 differs"
    try:
        grown_from = read(data).manifest.provenance.get(INSTALLED)
        installed = identity(read(layout.bundle.read_bytes()).manifest)
    except (OSError, ArtifactError):
        return ""  # whoever loads them says what is wrong with them
    if note.generation >= GENERATIONS:
        if Path(note.path).parent != layout.fleet / fleet_folder(installed):
            return f"{layout.acting}: {note.path} was to take the place of another bundle than {layout.bundle}"
    elif grown_from not in (None, installed):
        base = _kept(layout, installed)
        if base is None or grown_from != identity(read(base).manifest):
            return f"{layout.acting}: {note.path} grew from another bundle than {layout.bundle}"
    return ""


class _Update(msgspec.Struct):
    """What counts here of the note of `fleet.update`."""

    kept: str = ""


def fleet_folder(installed: str) -> str:
    """Where policies of the fleet are, by the identity of the installed one: with another, they are of no use."""
    return installed[:16]


def _kept(layout: Layout, installed: str) -> bytes | None:
    """The newest policy of the fleet's that stood its trial here; None where there is none, or it is damaged."""
    try:
        kept = msgspec.json.decode(layout.update.read_bytes(), type=_Update).kept
        data = (layout.fleet / fleet_folder(installed) / f"{kept}.edgert").read_bytes()
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return data if hashlib.sha256(data).hexdigest() == kept else None


def read_base(config: Config, layout: Layout) -> bytes:
    """The bundle that training begins from: the fleet's, where one stood its trial, or else the installed one.

    Raises:
        ConfigError: it cannot be read.
        ArtifactError: it is no sound bundle.
    """
    data = read_bundle(config)
    return _kept(layout, identity(read(data).manifest)) or data


def identity(manifest: Manifest) -> str:
    """Which installed network this is: what was learned from one must not act in the place of another."""
    return manifest.members["params.f32"].sha256


def usage() -> tuple[float, int]:
    """(CPU seconds used so far, resident bytes) of this process."""
    times = os.times()
    resident_pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return times.user + times.system, resident_pages * _PAGE_BYTES


def started_monotonic_s() -> float:
    """When this process was started, on the clock of `time.monotonic`, to a hundredth of a second."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot_s = int(fields[19]) / _CLOCK_TICKS_HZ
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)


class Parent:
    """A child's line to the supervisor: outlives the supervisor, and finds its successor by itself.

    Blocks: never. Thread: one.
    """

    def __init__(self, path: Path, role: Role) -> None:
        """Connect at the first `receive`."""
        self._path, self._role = path, role
        self._channel: ipc.Channel | None = None
        self._retry_s = 0.0
        self._kept: deque[Told] = deque(maxlen=KEPT)
        self.lost_s: float | None = time.monotonic()
        """Since when there is no supervisor, or None."""

    def receive(self) -> list[Told]:
        """Everything the supervisor said; connects when it is time to."""
        now_s = time.monotonic()
        if self._channel is None and now_s >= self._retry_s:
            # A little jitter, so that two children of one dead supervisor do not knock in step.
            self._retry_s = now_s + RECONNECT_S * random.uniform(0.8, 1.2)
            self._channel = ipc.connect(self._path)
            if self._channel is not None:
                self._channel.send(Hello(self._role, os.getpid()))
                self.lost_s = None
                while self._kept and self._channel.send(self._kept[0]):
                    self._kept.popleft()
        if self._channel is None:
            return []
        self._channel.flush()
        heard = self._channel.receive()
        if self._channel.closed:
            self._channel, self.lost_s = None, now_s
        return heard

    def send(self, told: Told, *, keep: bool = False) -> bool:
        """Tell the supervisor something; False when it is not there or too slow.

        Args:
            told: the message.
            keep: say it to the successor then, instead of never; the oldest of over `KEPT` are given up.
        """
        sent = self._channel is not None and self._channel.send(told)
        if keep and not sent:
            self._kept.append(told)
        return sent

    def close(self) -> None:
        """Say no more."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def fileno(self) -> int | None:
        """To select on, while there is a supervisor."""
        return None if self._channel is None or self._channel.closed else self._channel.fileno()


class Stopping:
    """Becomes true at SIGTERM or SIGINT; the loop looks at it and leaves in good order."""

    def __init__(self) -> None:
        """Install the handlers; main thread only."""
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        """Has anybody asked us to stop?"""
        return self.asked


def run_program(name: str, body: Callable[[], int]) -> int:
    """Run a program to its end, with a log that says whose it is, and turn what ended it into an exit code.

    Args:
        name: of the program, for the log.
        body: the program; returns its own exit code.

    Returns:
        `body`'s; 78 when the user must mend something before another start can help, 1 for any other known error. What
        is not an `EdgertError` or an `OSError` is a bug, and its traceback is shown.
    """
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s {name}: %(message)s")
    log = logging.getLogger(f"edgert.{name}")
    try:
        return body()
    except (ConfigError, ArtifactError, UsageError) as error:
        log.error("%s", error)
        return 78
    except (EdgertError, OSError) as error:
        log.error("%s: %s", type(error).__name__, error)
        return 1


def run_role(
    role: str, prog: str, argv: Sequence[str] | None, body: Callable[[Config, Path, Layout, Stopping], int]
) -> int:
    """Run one process of a device: read its configuration, make its folders, take its lock, then `body`.

    Args:
        role: whose lock to take; also the name in the log.
        prog: name of the program in its usage line.
        argv: without the program's name; sys.argv when None.
        body: (configuration, its path, layout, stopping) -> exit code.

    Returns:
        As `run_program`, but 1 for a `UsageError` of `body`: at work it is a bug, not something the user can mend, and
        another start may help.
    """
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    stopping = Stopping()

    def run() -> int:
        config = load_config(args.config)
        layout = Layout(config)
        layout.make()
        ipc.single_instance(layout.lock(role))
        try:
            return body(config, args.config, layout, stopping)
        except UsageError as error:
            logging.getLogger(f"edgert.{role}").error("UsageError: %s", error, exc_info=True)
            return 1

    return run_program(role, run)
