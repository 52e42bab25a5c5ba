"""`edgert limits`: the privileged helper. A tiny root process, the only part of edgert that may change the system.

It listens on a Unix socket that belongs to one user, asks the kernel who connects, and understands one request: the
limits that should hold from now on. Each is checked, clamped to what the configuration allows, written down, and only
then set. When the client leaves, falls silent, or the helper is stopped, everything is undone; after a crash it is
undone at the next start, from what was written down. It imports neither numpy nor an MQTT client, and starts no shell.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import pwd
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

import msgspec

from edgert.config import Limits as Section
from edgert.errors import BoardError, ConfigError, EdgertError
from edgert.ports import ipc
from edgert.ports.levers import Clock, Cores, Entry, Group, Levers, Mode, Person
from edgert.ports.limits import LEASE_S, MAX_FRAME_BYTES, Request, Standing
from edgert.ports.notify import Notifier
from edgert.ports.process import load_config
from edgert.ports.store import write_atomic

TURN_S = 0.5
_RETRY_S = 5.0
_OWNER_S = 5.0
_Kind = TypeVar("_Kind", Group, Clock, Cores, Mode)


class Journal(msgspec.Struct, frozen=True):
    """What must be undone, as it lies on the disk.

    Attributes:
        boot_id: of the boot in which it was done; a reboot undoes all but a power mode by itself.
        entries: oldest first.
    """

    boot_id: str = ""
    entries: tuple[Entry, ...] = ()


class Helper:
    """Everything but the socket.

    Blocks: as its levers do.

    Attributes:
        journal: what holds, and must be undone.
    """

    def __init__(self, section: Section, levers: Levers) -> None:
        """Read what a helper before this one left behind; `recover` undoes it.

        Args:
            section: what may be done.
            levers: what it is done by.

        Raises:
            BoardError: what was left behind cannot be read, and so cannot be undone.
        """
        self._section = section
        self._levers = levers
        self._path = Path(section.state_dir) / "undo.json"
        self._again_s = 0.0
        try:
            self.journal = msgspec.json.decode(self._path.read_bytes(), type=Journal)
        except FileNotFoundError:
            self.journal = Journal()
        except (OSError, msgspec.DecodeError) as error:
            raise BoardError(f"{self._path}: {error}; reboot to undo what it was for, and remove it") from error

    def recover(self, now_s: float) -> list[str]:
        """Undo everything that holds, newest first.

        Args:
            now_s: monotonic time, seconds.

        Returns:
            What could not be undone, and why; `retry` tries again.
        """
        self._again_s = now_s + _RETRY_S
        if self.journal.entries and self.journal.boot_id != self._levers.boot_id():
            self._write(tuple(entry for entry in self.journal.entries if isinstance(entry, Mode)))
        faults = []
        for entry in reversed(self.journal.entries):
            try:
                self._undo(entry)
            except EdgertError as error:
                faults.append(str(error))
        return faults

    def retry(self, now_s: float) -> None:
        """Undo what is left of a conversation that is over, every few seconds."""
        if self.journal.entries and now_s >= self._again_s:
            self.recover(now_s)

    def obey(self, request: Request, uid: int) -> Standing:
        """Make what is wanted hold, and nothing else.

        Args:
            request: as it came.
            uid: of who asks; a process of another user is refused, unless root asks.

        Returns:
            What holds now, and what was refused and why.
        """
        wanted, trainer, actor = request.wanted, request.trainer_pid, request.actor_pid
        steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("trainer-cpu", lambda: self._cpu(wanted.trainer_cpu_frac, wanted.trainer_weight, trainer, uid)),
            ("clock", lambda: self._clock(wanted.cpu_cap_frac)),
            ("trainer-cores", lambda: self._cores(wanted.trainer_cores, trainer, actor, uid)),
            ("actor-cores", lambda: self._cores(wanted.actor_cores, actor, trainer, uid)),
            ("power-mode", lambda: self._mode(wanted.power_mode)),
        )
        held, refused = {}, {}
        for name, step in steps:
            try:
                if said := step():
                    held[name] = said
            except EdgertError as error:
                refused[name] = str(error)
        return Standing(held=held, refused=refused, connected=True)

    def _cpu(self, frac: float | None, weight: int | None, pid: int | None, uid: int) -> str:
        wants = (frac is not None or weight is not None) and pid is not None
        for former in self._held(Group):
            if not wants or former.who != self._levers.person(pid or 0):
                self._undo(former)
        if not wants:
            return ""
        self._allowed(self._section.cpu, "cpu")
        who = self._person(pid, uid)
        if frac is not None:
            frac = _clamped(frac, self._section.least_trainer_frac)
        weight = None if weight is None else min(10_000, max(1, weight))
        group = next(iter(self._held(Group)), None)
        if group is None:
            group = self._levers.plan_group(who)
            self._do(group, lambda: self._levers.make_group(group))
        self._levers.limit_group(group, frac, weight)
        said = [f"{frac:.0%} of {len(self._levers.online())} cores"] if frac is not None else []
        return ", ".join(said + ([f"weight {weight}"] if weight is not None else []))

    def _clock(self, frac: float | None) -> str:
        former = {entry.path: entry for entry in self._held(Clock)}
        if frac is None:
            for entry in former.values():
                self._undo(entry)
            return ""
        self._allowed(self._section.clock, "clock")
        plan = self._levers.plan_clock(_clamped(frac, self._section.least_clock_frac), former)
        for clock in plan:
            if former.get(clock.path) != clock:
                self._do(clock, functools.partial(self._levers.set_clock, clock), former.get(clock.path))
        return ", ".join(f"{Path(clock.path).parent.name} {clock.after_khz / 1e6:.2f} GHz" for clock in plan)

    def _cores(self, cores: tuple[int, ...] | None, pid: int | None, other_pid: int | None, uid: int) -> str:
        held = self._held(Cores)
        person = self._levers.person(pid) if pid is not None else None
        wants = cores is not None and pid is not None
        for former in held:
            is_mine = former.who == person
            # Of a process before this one; the other of the two looks after itself.
            if (is_mine and not wants) or (not is_mine and former.who.pid != other_pid):
                self._undo(former)
        if cores is None or pid is None:
            return ""
        self._allowed(self._section.affinity, "affinity")
        who = self._person(pid, uid)
        former_of_it = next((entry for entry in self._held(Cores) if entry.who == who), None)
        entry = self._levers.plan_cores(who, cores, former_of_it)
        if entry != former_of_it:
            self._do(entry, lambda: self._levers.set_cores(entry), former_of_it)
        return "cores " + ", ".join(map(str, entry.after))

    def _mode(self, mode: int | None) -> str:
        former = next(iter(self._held(Mode)), None)
        if mode is None:
            if former is not None:
                self._undo(former)
            return ""
        self._allowed(mode in self._section.power_modes, f"power_modes (of mode {mode})")
        if former is None or former.after != mode:
            entry = self._levers.plan_mode(mode, former)
            self._do(entry, lambda: self._levers.set_mode(mode), former)
        return f"mode {mode}"

    def _person(self, pid: int | None, uid: int) -> Person:
        who = self._levers.person(pid) if pid is not None and pid > 1 else None
        if who is None:
            raise BoardError(f"there is no process {pid}")
        if pid == os.getpid() or (uid != 0 and self._levers.uids(who.pid) != {uid}):
            raise BoardError(f"process {pid} is not yours")
        return who

    def _allowed(self, is_allowed: bool, key: str) -> None:
        if not is_allowed:
            raise BoardError(f"[limits] {key} in the configuration does not allow it")

    def _held(self, kind: type[_Kind]) -> list[_Kind]:
        return [entry for entry in self.journal.entries if isinstance(entry, kind)]

    def _do(self, entry: Entry, action: Callable[[], None], instead_of: Entry | None = None) -> None:
        """Write down what is about to be done, and do it; what fails half-way is undone at once.

        A crash in between leaves a note of what was never done, and undoing that is harmless.
        """
        self._write((*(each for each in self.journal.entries if each != instead_of), entry))
        try:
            action()
        except EdgertError:
            self._undo(entry)
            raise

    def _undo(self, entry: Entry) -> None:
        self._levers.undo(entry)
        self._write(tuple(each for each in self.journal.entries if each != entry))

    def _write(self, entries: tuple[Entry, ...]) -> None:
        journal = Journal(self._levers.boot_id(), entries)
        if journal.entries != self.journal.entries:
            write_atomic(self._path, msgspec.json.encode(journal))
            self.journal = journal


class Server:
    """The socket of the helper: one client at a time, and only the one it is meant for.

    Blocks: in `turn`.
    """

    def __init__(self, section: Section, helper: Helper) -> None:
        """Listen.

        Raises:
            StoreError: the socket cannot be made.
            UsageError: another helper listens there.
        """
        self._helper = helper
        self._user = section.user
        self._path = Path(section.socket)
        self._listener = ipc.listen(self._path)
        self._client: ipc.Channel | None = None
        self._uid = -1
        self._heard_s = 0.0
        self._owner_s = float("-inf")

    def turn(self, timeout_s: float) -> None:
        """Wait for something to do, and do it.

        Blocks: up to timeout_s, and as the levers do.
        """
        self._give_to_user(time.monotonic())
        waiting = [self._listener.fileno(), *([self._client.fileno()] if self._client else [])]
        select.select(waiting, [], [], timeout_s)
        self._accept(time.monotonic())
        if self._client is not None:
            self._hear(self._client, time.monotonic())
        else:
            self._helper.retry(time.monotonic())

    def close(self) -> None:
        """Undo everything and go."""
        if self._client is not None:
            self._client.close()
        for fault in self._helper.recover(time.monotonic()):
            _say(fault)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _give_to_user(self, now_s: float) -> None:
        """Only its owner may write to the socket; a dynamic user may appear late, and with another number next time."""
        if now_s - self._owner_s < _OWNER_S or os.getuid() != 0:
            return
        self._owner_s = now_s
        uid = _uid_of(self._user)
        with contextlib.suppress(OSError):
            if self._path.stat().st_uid != (uid or 0):
                os.chown(self._path, uid or 0, -1)

    def _accept(self, now_s: float) -> None:
        channel = ipc.accept(self._listener, MAX_FRAME_BYTES)
        if channel is None:
            return
        uid, pid = _peer(channel)
        why = ""
        if uid not in (0, os.getuid(), _uid_of(self._user)):
            why = f"user {uid} may not ask: [limits] user says {self._user}"
        elif self._client is not None:
            why = "somebody else is being served"
        if why:
            _say(f"process {pid} refused: {why}")
            channel.send_map(msgspec.to_builtins(Standing(refused={"request": why})))
            channel.close()
            return
        self._client, self._uid, self._heard_s = channel, uid, now_s

    def _hear(self, client: ipc.Channel, now_s: float) -> None:
        for message in client.receive_maps()[-1:]:  # each says all that should hold, so the last says enough
            self._heard_s = now_s
            try:
                request = msgspec.convert(message, Request)
            except msgspec.ValidationError as error:
                standing = Standing(refused={"request": f"not understood: {error}"}, connected=True)
            else:
                standing = self._helper.obey(request, self._uid)
            client.send_map(msgspec.to_builtins(standing))
        if client.closed or now_s - self._heard_s > LEASE_S:
            client.close()
            self._client = None
            for fault in self._helper.recover(now_s):
                _say(fault)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM.

    Returns:
        0.

    Raises:
        ConfigError: the configuration is wrong, or does not enable limits.
        EdgertError: the socket or the journal cannot be used.
    """
    parser = argparse.ArgumentParser(prog="edgert limits", description="The privileged helper that sets limits.")
    parser.add_argument(
        "--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(/etc/edgert/edgert.toml)"
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="folder that holds proc and sys, for tests (/)")
    args = parser.parse_args(argv)
    section = load_config(args.config).limits
    if not section.enabled:
        raise ConfigError(f"{args.config}: limits.enabled: is false; set it to true, or do not start this helper")
    going = True

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal going
        going = False

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    helper = Helper(section, Levers(args.root))
    for fault in helper.recover(time.monotonic()):
        _say(fault)
    server = Server(section, helper)
    notifier = Notifier.from_environment()
    notifier.ready()
    try:
        while going:
            server.turn(TURN_S)
    finally:
        server.close()
    return 0


def _clamped(share: float, least: float) -> float:
    if not math.isfinite(share):
        raise BoardError(f"{share} is no share")
    return min(1.0, max(least, share))


def _peer(channel: ipc.Channel) -> tuple[int, int]:
    """User and process at the other end, by the kernel's word: struct ucred of unix(7)."""
    with socket.socket(fileno=os.dup(channel.fileno())) as sock:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid, pid


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _say(text: str) -> None:
    print(f"edgert limits: {text}", file=sys.stderr, flush=True)
