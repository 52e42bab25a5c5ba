"""The processor and its memory: load, pressure, clocks, clusters.

Sources: proc(5); Documentation/accounting/psi.rst; Documentation/admin-guide/pm/cpufreq.rst;
Documentation/ABI/testing/sysfs-devices-system-cpu (cpu_capacity).
"""

from __future__ import annotations

import msgspec

from edgert.ports.board.files import Files, number
from edgert.ports.board.pace import Seen
from edgert.values import UNKNOWN, Reading

_CPU = "sys/devices/system/cpu"
_PRESSURES = (("cpu", "cpu_pressure_frac"), ("memory", "memory_pressure_frac"), ("io", "io_pressure_frac"))
_MEMORY = (
    ("MemAvailable:", "memory_available_bytes"),
    ("MemTotal:", "memory_total_bytes"),
    ("SwapFree:", "swap_free_bytes"),
)
_CORES_MAX = 64
_POLICIES_MAX = 16
_WORKS_FRAC = 0.1
"""A core is at work from this load on: below, its clock says how little there is to do, not how slow it is."""


class Cluster(msgspec.Struct, frozen=True):
    """Cores that share a clock, or at least a capacity.

    Attributes:
        cores: their numbers.
        capacity_frac: of the strongest core of this machine, at the highest clock; None when the kernel does not say.
        hw_max_hz: highest clock of the silicon; None when not known.
        governor: of cpufreq; empty without.
        policy: folder of cpufreq; empty without.
    """

    cores: tuple[int, ...]
    capacity_frac: float | None = None
    hw_max_hz: float | None = None
    governor: str = ""
    policy: str = ""


class Processor:
    """Reads /proc/stat, /proc/pressure, /proc/meminfo and cpufreq.

    Attributes:
        clusters: as of the last `scan`.

    Thread:
        One at a time.
    """

    def __init__(self, files: Files) -> None:
        """Read nothing yet.

        Args:
            files: of the machine.
        """
        self.clusters: tuple[Cluster, ...] = ()
        self._files = files
        self._ticks: dict[str, tuple[int, int]] = {}
        self._loads: dict[str, Reading] = {}
        self._looked_s = 0.0

    def scan(self) -> None:
        """Find the clusters."""
        files = self._files
        capacities = {
            int(path[len(f"{_CPU}/cpu") :]): capacity
            for path in files.names(_CPU, "cpu")
            if path[len(f"{_CPU}/cpu") :].isdigit()
            and (capacity := number(files.once(f"{path}/cpu_capacity"))) is not None
        }
        strongest = max(capacities.values(), default=0.0)

        def cluster(cores: tuple[int, ...], policy: str = "") -> Cluster:
            known = [capacities[core] for core in cores if core in capacities]
            hw_max_khz = number(files.once(f"{policy}/cpuinfo_max_freq")) if policy else None
            return Cluster(
                cores,
                max(known) / strongest if known and strongest > 0 else None,
                hw_max_khz * 1e3 if hw_max_khz is not None and hw_max_khz > 0 else None,
                (files.once(f"{policy}/scaling_governor") or "") if policy else "",
                policy,
            )

        policies = files.names(f"{_CPU}/cpufreq", "policy")[:_POLICIES_MAX]
        found = [cluster(_cores(files.once(f"{policy}/related_cpus")), policy) for policy in policies]
        if not found:
            alike = {
                size: tuple(c for c, each in sorted(capacities.items()) if each == size)
                for size in sorted(set(capacities.values()))
            }
            found = [cluster(cores) for cores in alike.values()]
        self.clusters = tuple(found)

    def load(self, now_s: float) -> Seen:
        """Busy share since the last call, of all cores together and of each; proc(5), /proc/stat."""
        told: dict[str, Reading] = {}
        for line in (self._files.text("proc/stat") or "").splitlines()[: _CORES_MAX + 1]:
            words = line.split()
            if not words or not words[0].startswith("cpu"):
                break
            core = words[0][3:]
            name = f"core{core}_load_frac" if core else "load_frac"
            busy = self._busy_frac(core, words[1:9])
            if busy is not None:
                told[name] = Reading(busy, 0.0, self._files.source("proc/stat"))
            elif name in self._loads:
                before = self._loads[name]
                told[name] = Reading(before.value, before.age_s + max(0.0, now_s - self._looked_s), before.source)
        self._loads, self._looked_s = told, now_s
        return Seen(told)

    def _busy_frac(self, core: str, words: list[str]) -> float | None:
        """User nice system idle iowait irq softirq steal; guest time is within user's."""
        try:
            counts = [int(word) for word in words]
        except ValueError:
            return None
        if len(counts) < 4:
            return None
        before, now = self._ticks.get(core), (sum(counts), sum(counts[3:5]))
        self._ticks[core] = now
        if before is None or now[0] <= before[0]:
            return None
        # iowait may run backwards (proc(5)), so the quotient may leave 0..1 by a little.
        return min(1.0, max(0.0, 1.0 - (now[1] - before[1]) / (now[0] - before[0])))

    def pressure(self, now_s: float) -> Seen:
        """Share of the last 10 s in which some task waited; psi.rst: `some avg10=1.23 avg60=...`, in percent."""
        told = {}
        for resource, name in _PRESSURES:
            path = f"proc/pressure/{resource}"
            percent = _after(self._files.text(path), "some avg10=")
            if percent is not None and 0 <= percent <= 100:
                told[name] = Reading(percent / 100, 0.0, self._files.source(path))
        return Seen(told)

    def memory(self, now_s: float) -> Seen:
        """What there is and what can be had without swapping; proc(5), /proc/meminfo, in KiB."""
        text = self._files.text("proc/meminfo")
        source = self._files.source("proc/meminfo")
        found = [(name, _after(text, word)) for word, name in _MEMORY]
        return Seen({name: Reading(kib * 1024, 0.0, source) for name, kib in found if kib is not None and kib >= 0})

    def clocks(self, now_s: float) -> Seen:
        """Clock and cap of each cluster, in Hz, and the clock of the slowest that has work as a share of its highest.

        Where no cluster has work, it is the lowest cap (`scaling_max_freq`): how fast it could be, since an idle clock
        says nothing. Where firmware slows cores down behind the kernel's back (Raspberry Pi), this is an upper bound.
        """
        told: dict[str, Reading] = {}
        shares: list[tuple[float, str]] = []
        caps: list[tuple[float, str]] = []
        for cluster in self.clusters:
            if not cluster.policy:
                continue
            short = cluster.policy.rpartition("/")[2]
            for name, file, into in (("freq_hz", "scaling_cur_freq", shares), ("cap_hz", "scaling_max_freq", caps)):
                path = f"{cluster.policy}/{file}"
                khz = self._files.number(path)
                if khz is None or khz <= 0:
                    continue
                source = self._files.source(path)
                told[f"{short}_{name}"] = Reading(khz * 1e3, 0.0, source)
                if cluster.hw_max_hz is not None and (into is caps or self._works(cluster)):
                    into.append((min(1.0, khz * 1e3 / cluster.hw_max_hz), source))
        if shares or caps:
            share, source = min(shares or caps)
            told["freq_frac"] = Reading(share, 0.0, source)
        return Seen(told)

    def _works(self, cluster: Cluster) -> bool:
        loads = [self._loads.get(f"core{core}_load_frac", UNKNOWN).value for core in cluster.cores]
        return any(load is not None and load >= _WORKS_FRAC for load in loads)

    def facts(self) -> dict[str, str]:
        """What was found at the last scan, for people."""
        told = {}
        for cluster in self.clusters:
            words = [] if cluster.capacity_frac is None else [f"capacity {cluster.capacity_frac:.2f}"]
            words += [] if cluster.hw_max_hz is None else [f"at most {cluster.hw_max_hz / 1e6:.0f} MHz"]
            words += [f"governor {cluster.governor}"] if cluster.governor else []
            told[f"cores {_spans(cluster.cores)}"] = ", ".join(words)
        return told


def _cores(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in (text or "").split())
    except ValueError:
        return ()


def _spans(cores: tuple[int, ...]) -> str:
    return f"{cores[0]}-{cores[-1]}" if len(cores) > 1 else ",".join(map(str, cores))


def _after(text: str | None, word: str) -> float | None:
    _, found, rest = (text or "").partition(word)
    try:
        return float(rest.split(maxsplit=1)[0]) if found else None
    except (ValueError, IndexError):
        return None
