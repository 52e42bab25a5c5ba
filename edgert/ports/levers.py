"""What a privileged process may pull on a running system, and how each pull is taken back.

Every lever says first what it would change (an entry for the journal), then changes it, and can undo it from the entry
alone: after a crash the entry is all there is. Nothing here decides; nothing here goes through a shell.

- CPU time of a process: a control group of its own beside its siblings, by `cpu.max` and `cpu.weight` (v2) or
  `cpu.cfs_quota_us` and `cpu.shares` (v1). Within v2 the group is threaded, the only kind that may have processes both
  in it and beside it (cgroup-v2.rst, "Threads").
- Clock: `scaling_max_freq` of every cpufreq policy.
- Cores: the affinity of every thread of a process.
- Power mode: `nvpmodel` of Jetson boards.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import msgspec

from edgert.errors import BoardError

PERIOD_US = 100_000
"""Of a quota: cpu.max and cpu.cfs_period_us default to it (cgroup-v2.rst, sched-bwc.rst)."""
NVPMODEL_S = 20.0
_SHARES_PER_WEIGHT = 10.24
"""1024 shares of v1 and a weight of 100 in v2 are both everybody's own."""
_MOVE_TRIES = 20


class Person(msgspec.Struct, frozen=True):
    """A process, told from a later one of the same number.

    Attributes:
        pid: its number.
        started: field 22 of /proc/<pid>/stat, ticks since boot.
    """

    pid: int
    started: int


class Group(msgspec.Struct, frozen=True, tag="group"):
    """A control group was made for a process.

    Attributes:
        who: the process.
        path: of the group.
        version: of control groups, 1 or 2.
        enabled: the cpu controller was switched on in the parent for its sake.
    """

    who: Person
    path: str
    version: int
    enabled: bool = False


class Clock(msgspec.Struct, frozen=True, tag="clock"):
    """A cpufreq policy's highest clock was lowered.

    Attributes:
        path: of its scaling_max_freq.
        before_khz, after_khz: as it was read, and as it was written.
    """

    path: str
    before_khz: int
    after_khz: int


class Cores(msgspec.Struct, frozen=True, tag="cores"):
    """A process was bound to some cores.

    Attributes:
        who: the process.
        before: the cores it might run on.
        after: those it was bound to.
    """

    who: Person
    before: tuple[int, ...]
    after: tuple[int, ...]


class Mode(msgspec.Struct, frozen=True, tag="mode"):
    """A power mode was chosen; it outlives a reboot, and so does the duty to undo it."""

    before: int
    after: int


Entry = Group | Clock | Cores | Mode


class Levers:
    """The levers of one machine.

    Blocks: a few milliseconds, but up to 20 s for a power mode.
    """

    def __init__(self, root: str | Path = "/") -> None:
        """Touch nothing yet.

        Args:
            root: directory that holds `proc`, `sys` and `usr`; another one than / in tests.
        """
        self._root = Path(root)
        self._cpufreq = self._root / "sys/devices/system/cpu/cpufreq"

    def person(self, pid: int) -> Person | None:
        """Who has this number now; None when nobody has."""
        try:
            # The name in parentheses may hold anything, parentheses and spaces included.
            fields = self._read(f"proc/{pid}/stat").rpartition(")")[2].split()
            return Person(pid, int(fields[19]))
        except (OSError, ValueError, IndexError):
            return None

    def uids(self, pid: int) -> set[int]:
        """The real and effective users of a process; empty when it is gone."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._read(f"proc/{pid}/status").splitlines():
                if line.startswith("Uid:"):
                    return {int(word) for word in line.split()[1:3]}
        return set()

    def boot_id(self) -> str:
        """Names this boot; empty when the kernel does not say."""
        with contextlib.suppress(OSError):
            return self._read("proc/sys/kernel/random/boot_id").strip()
        return ""

    def online(self) -> tuple[int, ...]:
        """The cores that run."""
        try:
            return cpu_list(self._read("sys/devices/system/cpu/online"))
        except (OSError, ValueError):
            return tuple(range(os.cpu_count() or 1))

    # --- CPU time

    def plan_group(self, who: Person) -> Group:
        """Where a group for this process would be.

        Raises:
            BoardError: there is no cpu controller to be had there.
        """
        version, parent = self._cpu_cgroup(who.pid)
        enabled = False
        if version == 2:
            if "cpu" not in _words(parent / "cgroup.controllers"):
                raise BoardError(f"the cpu controller is not handed down to {parent}: add Delegate=cpu to the unit")
            enabled = "cpu" not in _words(parent / "cgroup.subtree_control")
        return Group(who, str(parent / f"edgert-{who.pid}"), version, enabled)

    def make_group(self, group: Group) -> None:
        """Make the group and put the process into it.

        Raises:
            BoardError: the kernel refused.
        """
        path = Path(group.path)
        try:
            path.mkdir(exist_ok=True)
            if group.version == 2:
                if path.parent / "cgroup.procs" != self._v2_root() / "cgroup.procs":
                    _write(path / "cgroup.type", "threaded")
                if group.enabled:
                    _write(path.parent / "cgroup.subtree_control", "+cpu")
            _write(path / "cgroup.procs", str(group.who.pid))
        except OSError as error:
            raise BoardError(f"cannot move process {group.who.pid} to {path}: {error}") from error
        if self.person(group.who.pid) != group.who:
            raise BoardError(f"process {group.who.pid} ended meanwhile")

    def limit_group(self, group: Group, cpu_frac: float | None, weight: int | None) -> None:
        """Set what the group may take.

        Args:
            group: that was made.
            cpu_frac: share of all cores; None is no limit.
            weight: against its siblings, which have 100. None is what the process had by its niceness: a group with a
                weight of 100 would stand above a sibling for which nice(2) had made room before.

        Raises:
            BoardError: the kernel refused.
        """
        path, n_cores = Path(group.path), len(self.online())
        quota_us = -1 if cpu_frac is None else max(1000, round(cpu_frac * n_cores * PERIOD_US))
        weight = self._nice_weight(group.who.pid) if weight is None else weight
        try:
            if group.version == 2:
                _write(path / "cpu.max", f"{'max' if quota_us < 0 else quota_us} {PERIOD_US}")
                _write(path / "cpu.weight", str(weight))
            else:
                _write(path / "cpu.cfs_period_us", str(PERIOD_US))
                _write(path / "cpu.cfs_quota_us", str(quota_us))
                _write(path / "cpu.shares", str(max(2, round(weight * _SHARES_PER_WEIGHT))))
        except OSError as error:
            raise BoardError(f"cannot limit {path}: {error}") from error

    def _nice_weight(self, pid: int) -> int:
        """What the scheduler makes of the niceness: every step is a factor of 1.25 (sched-nice-design.rst)."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            nice = int(self._read(f"proc/{pid}/stat").rpartition(")")[2].split()[16])
            return min(10_000, max(1, round(100 / 1.25**nice)))
        return 100

    def undo_group(self, group: Group) -> None:
        """Put everybody back into the parent and remove the group; whatever of that was done already stays done.

        Raises:
            BoardError: somebody is still in it.
        """
        path = Path(group.path)
        try:
            for _ in range(_MOVE_TRIES):  # who is in it may fork between the look and the move
                pids = _words(path / ("cgroup.threads" if group.version == 2 else "tasks"))
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        _write(path.parent / "cgroup.procs", pid)
                try:
                    path.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    # A process that has just ended leaves its group a moment later.
                    time.sleep(0.005)
            else:
                raise BoardError(f"cannot remove {path}: somebody is in it")
            if group.enabled and path.parent.exists():
                _write(path.parent / "cgroup.subtree_control", "-cpu")
        except OSError as error:
            raise BoardError(f"cannot undo {path}: {error}") from error

    def _cpu_cgroup(self, pid: int) -> tuple[int, Path]:
        try:
            rows = [line.split(":", 2) for line in self._read(f"proc/{pid}/cgroup").splitlines()]
            mounts = [line.split() for line in self._read("proc/mounts").splitlines()]
        except OSError as error:
            raise BoardError(f"control groups cannot be looked at: {error}") from error
        v1 = next((row[2] for row in rows if len(row) == 3 and "cpu" in row[1].split(",")), None)
        v2 = next((row[2] for row in rows if len(row) == 3 and row[0] == "0"), None)
        for mount in mounts:
            is_v1 = mount[2] == "cgroup" and "cpu" in mount[3].split(",") and v1 is not None
            # With the cpu controller in a v1 hierarchy, that of v2 has none to give.
            is_v2 = mount[2] == "cgroup2" and v1 is None and v2 is not None
            if is_v1 or is_v2:
                inside = (v1 if is_v1 else v2) or "/"
                if ".." in inside:
                    raise BoardError(f"process {pid} is in a control group outside of this container: {inside}")
                return (1 if is_v1 else 2), self._under(mount[1]) / inside.lstrip("/")
        raise BoardError("no control groups with a cpu controller are mounted")

    def _v2_root(self) -> Path:
        mounts = [line.split() for line in self._read("proc/mounts").splitlines()]
        return next((self._under(mount[1]) for mount in mounts if mount[2] == "cgroup2"), Path("/nowhere"))

    # --- clock

    def plan_clock(self, cap_frac: float, held: dict[str, Clock]) -> list[Clock]:
        """What capping the clock would change.

        Args:
            cap_frac: of the highest that each policy has, 0..1.
            held: path -> the cap that stands there now, whose `before` is remembered.

        Raises:
            BoardError: there is no cpufreq; or the kernel cools just now, and then what the file shows is the cooler's
                limit and not the user's, and would be restored for ever.
        """
        policies = sorted(self._cpufreq.glob("policy[0-9]*"))
        if not policies:
            raise BoardError("this machine has no cpufreq")
        plan = []
        for policy in policies:
            path = str(policy / "scaling_max_freq")
            try:
                least_khz, most_khz, now_khz = (
                    int((policy / name).read_text())
                    for name in ("cpuinfo_min_freq", "cpuinfo_max_freq", "scaling_max_freq")
                )
            except (OSError, ValueError) as error:
                raise BoardError(f"{policy} does not say its clocks: {error}") from error
            before = held.get(path)
            if before is None and self._cooling():
                raise BoardError("the kernel caps the clock already, to cool down")
            before_khz = before.before_khz if before else now_khz
            plan.append(Clock(path, before_khz, min(before_khz, max(least_khz, round(cap_frac * most_khz)))))
        return plan

    def set_clock(self, clock: Clock) -> None:
        """Lower the highest clock.

        Raises:
            BoardError: the kernel refused.
        """
        try:
            _write(Path(clock.path), str(clock.after_khz))
        except OSError as error:
            raise BoardError(f"cannot write {clock.path}: {error}") from error

    def undo_clock(self, clock: Clock) -> None:
        """Restore the highest clock, unless it is as high or higher by now.

        Raises:
            BoardError: the kernel refused.
        """
        path = Path(clock.path)
        try:
            # Not compared with what was written: the kernel may have rounded that, and cools when it has to.
            if path.exists() and int(path.read_text()) < clock.before_khz:
                _write(path, str(clock.before_khz))
        except (OSError, ValueError) as error:
            raise BoardError(f"cannot restore {path}: {error}") from error

    def _cooling(self) -> bool:
        for device in (self._root / "sys/class/thermal").glob("cooling_device*"):
            with contextlib.suppress(OSError, ValueError):
                kind = (device / "type").read_text()
                if "cpufreq" in kind and int((device / "cur_state").read_text()) > 0:
                    return True
        return False

    # --- cores

    def plan_cores(self, who: Person, cores: tuple[int, ...], held: Cores | None) -> Cores:
        """What binding a process to some cores would change.

        Raises:
            BoardError: the process is gone, or none of these cores runs.
        """
        wanted = tuple(sorted(set(cores) & set(self.online())))
        if not wanted:
            raise BoardError(f"none of the cores {', '.join(map(str, cores))} runs")
        try:
            before = held.before if held and held.who == who else tuple(sorted(os.sched_getaffinity(who.pid)))
        except OSError as error:
            raise BoardError(f"process {who.pid}: {error}") from error
        return Cores(who, before, wanted)

    def set_cores(self, entry: Cores) -> None:
        """Bind every thread of the process.

        Raises:
            BoardError: the kernel refused.
        """
        self._bind(entry.who, entry.after)

    def undo_cores(self, entry: Cores) -> None:
        """Set the process free again, unless somebody else has bound it meanwhile, or it is gone.

        Raises:
            BoardError: the kernel refused.
        """
        try:
            bound = self.person(entry.who.pid) == entry.who and os.sched_getaffinity(entry.who.pid) == set(entry.after)
        except OSError:
            return
        if bound:
            self._bind(entry.who, entry.before)

    def _bind(self, who: Person, cores: tuple[int, ...]) -> None:
        try:
            for thread in sorted((self._root / f"proc/{who.pid}/task").iterdir()):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)
        except (OSError, ValueError) as error:
            raise BoardError(f"cannot bind process {who.pid}: {error}") from error

    # --- power mode

    def plan_mode(self, mode: int, held: Mode | None) -> Mode:
        """What choosing a power mode would change.

        Raises:
            BoardError: this is no Jetson, or nvpmodel does not say its mode.
        """
        said = self._nvpmodel("-q").split()
        try:
            return Mode(held.before if held else int(said[-1]), mode)
        except (ValueError, IndexError) as error:
            raise BoardError("nvpmodel -q does not say which mode it is") from error

    def set_mode(self, mode: int) -> None:
        """Choose a power mode.

        Raises:
            BoardError: nvpmodel refused, or wants a reboot.
        """
        self._nvpmodel("-m", str(mode))

    def _nvpmodel(self, *arguments: str) -> str:
        program = self._root / "usr/sbin/nvpmodel"
        if not program.exists():
            raise BoardError("this machine has no nvpmodel")
        try:
            # A mode that needs a reboot asks whether to: an empty standard input says no.
            ended = subprocess.run(
                [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NVPMODEL_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise BoardError(f"nvpmodel {' '.join(arguments)}: {error}") from error
        if ended.returncode:
            raise BoardError(f"nvpmodel {' '.join(arguments)}: {(ended.stderr or ended.stdout).strip()[:200]}")
        return ended.stdout

    def undo(self, entry: Entry) -> None:
        """Take one lever back; done twice it does nothing.

        Raises:
            BoardError: it could not be.
        """
        if isinstance(entry, Group):
            self.undo_group(entry)
        elif isinstance(entry, Clock):
            self.undo_clock(entry)
        elif isinstance(entry, Cores):
            self.undo_cores(entry)
        else:
            self.set_mode(entry.before)

    def _read(self, path: str) -> str:
        return (self._root / path).read_text(errors="replace")

    def _under(self, absolute: str) -> Path:
        return self._root / absolute.lstrip("/")


def cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format, such as "0-3,6", as numbers.

    Raises:
        ValueError: it is not one.
    """
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return tuple(cores)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _write(path: Path, text: str) -> None:
    # Never made where it is not: these are the kernel's files.
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
