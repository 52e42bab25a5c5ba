"""The real run, as root: `python -m tools.bench srole --real`.

Five devices as real daemons, each in a network of its own behind a shaped link, with a share of a core and so much
memory; a real broker; real training jobs. What is emulated: boards by shares of one core of this machine (CFS quotas)
and by memory limits (cgroup v1), links by token buckets. Nothing else: placing, shipping, training, dying for want of
memory, and the gate are what a fleet runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgert import wire
from edgert.config import commented_default
from edgert.placement.protocol import chain
from edgert.ports import shards
from edgert.ports.mqtt import Mqtt, Received
from edgert.programs.placer.transport import chunk_topic
from tools.bench.srole.parts import record

HOUSE = Path(__file__).parents[3]
RESULTS = HOUSE / "tools" / "bench" / "results"
CGROUP = Path("/sys/fs/cgroup")
FLEET, NET, PORT = "real", "10.91.0", 18830
LINK_BIT = 20_000_000
PERIOD_US = 100_000


class Board(NamedTuple):
    """A device: its share of a core, and what jobs may hold of its memory."""

    name: str
    share: float
    memory_bytes: int


BOARDS = [
    Board("d0", 0.25, 115 << 20),
    Board("d1", 0.20, 115 << 20),
    Board("d2", 0.15, 60 << 20),
    Board("d3", 0.12, 60 << 20),
    Board("d4", 0.10, 60 << 20),
]


PROBE = Board("probe", 0.05, 0)
"""Nobody's device: a loop beside them that never rests. What it gets of its share, they could have had of theirs."""


class Scheme(NamedTuple):
    """Who chooses, and who watches. `bundle` is a file in the folder of learned policies."""

    agent: str
    shield: str = "regions"
    bundle: str = ""
    regions: int = 1
    head: bool = False


SCHEMES = {
    "srole-c": Scheme("learned", bundle="placer"),
    "srole-d": Scheme("learned", bundle="placer", regions=2),
    "no-shield": Scheme("learned", shield="none", bundle="placer"),
    "marl": Scheme("learned", shield="none", bundle="marl"),
    "central": Scheme("learned", shield="none", bundle="central", head=True),
    "least-loaded": Scheme("least-loaded", shield="none"),
    "least-loaded+shield": Scheme("least-loaded"),
    "random+shield": Scheme("random"),
}


class Arrival(NamedTuple):
    """A job that comes."""

    id: str
    at_s: float
    owner: str
    kind: str
    steps: int


KINDS = {"breakout-256": 90, "invaders-128": 220, "wide-128": 260}
"""Jobs of `srole-parts.json`, and the steps that make about 1.3 seconds of a whole core."""


def arrivals(seed: int, count: int, every_s: float) -> list[Arrival]:
    """Jobs at random, the same for every scheme."""
    rng = np.random.default_rng(seed)
    at_s, found = 0.0, []
    for k in range(count):
        kind = str(rng.choice(list(KINDS)))
        owner = BOARDS[int(rng.integers(len(BOARDS)))].name
        steps = int(KINDS[kind] * rng.uniform(0.6, 1.6))
        found.append(Arrival(f"j{k}", at_s, owner, kind, steps))
        at_s += float(rng.exponential(every_s))
    return found


def sh(*words: str, check: bool = True) -> None:
    """Run a command; its output goes nowhere."""
    subprocess.run(words, check=check, stdout=subprocess.DEVNULL, stderr=None if check else subprocess.DEVNULL)


class Groups:
    """Control groups of one run."""

    def __init__(self) -> None:
        self.name = f"srole-{os.getpid()}"
        for kind in ("cpu", "cpuacct", "memory"):
            for board in (*BOARDS, PROBE):
                (CGROUP / kind / self.name / board.name).mkdir(parents=True, exist_ok=True)
        (CGROUP / "cpu" / self.name / "cpu.shares").write_text("262144")

    def path(self, kind: str, board: str) -> Path:
        """Of one board."""
        return CGROUP / kind / self.name / board

    def join(self, board: str) -> None:
        """This process, and what it starts."""
        for kind in ("cpu", "cpuacct", "memory"):
            (self.path(kind, board) / "cgroup.procs").write_text(str(os.getpid()))

    def stat(self, board: str) -> dict[str, int]:
        """What the memory is used for."""
        lines = (self.path("memory", board) / "memory.stat").read_text().splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    def limit(self, board: Board) -> int:
        """Narrow it: its share of a core, and so much memory beside what the device itself holds by now."""
        own = self.stat(board.name)["rss"]
        (self.path("cpu", board.name) / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self.path("cpu", board.name) / "cpu.cfs_quota_us").write_text(str(int(board.share * PERIOD_US)))
        limit = int(own + 1.05 * board.memory_bytes + (24 << 20))  # and some file pages, without which nothing runs
        (self.path("memory", board.name) / "memory.limit_in_bytes").write_text(str(limit))
        return own

    def kills(self, board: str) -> int:
        """How often the kernel killed something there for want of memory."""
        for line in (self.path("memory", board) / "memory.oom_control").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def cpu_s(self, board: str) -> float:
        """Used so far."""
        return int((self.path("cpuacct", board) / "cpuacct.usage").read_text()) / 1e9

    def close(self) -> None:
        """Kill what is left, and remove them."""
        for board in (*BOARDS, PROBE):
            for _ in range(50):
                pids = (self.path("memory", board.name) / "cgroup.procs").read_text().split()
                for pid in pids:
                    try:
                        os.kill(int(pid), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                if not pids:
                    break
                time.sleep(0.1)
        for kind in ("cpu", "cpuacct", "memory"):
            for board in (*BOARDS, PROBE):
                (CGROUP / kind / self.name / board.name).rmdir()
            (CGROUP / kind / self.name).rmdir()


class Net:
    """A bridge in this network, and behind it a network for each board, shaped both ways."""

    def __init__(self) -> None:
        self.bridge = "srole0"
        self.close()
        sh("ip", "link", "add", self.bridge, "type", "bridge")
        sh("ip", "addr", "add", f"{NET}.1/24", "dev", self.bridge)
        sh("ip", "link", "set", self.bridge, "up")
        for k, board in enumerate(BOARDS):
            space, outer, inner = f"srole-{board.name}", f"sro{k}", f"sri{k}"
            sh("ip", "netns", "add", space)
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            sh("ip", "link", "set", inner, "netns", space)
            sh("ip", "link", "set", outer, "master", self.bridge)
            sh("ip", "link", "set", outer, "up")
            sh("ip", "-n", space, "addr", "add", f"{NET}.{10 + k}/24", "dev", inner)
            sh("ip", "-n", space, "link", "set", inner, "up")
            sh("ip", "-n", space, "link", "set", "lo", "up")
            shape = ["tbf", "rate", f"{LINK_BIT}bit", "burst", "32kb", "latency", "400ms"]
            sh("tc", "qdisc", "add", "dev", outer, "root", *shape)
            sh("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", inner, "root", *shape)

    def close(self) -> None:
        """Remove all of it."""
        for k, board in enumerate(BOARDS):
            sh("ip", "netns", "del", f"srole-{board.name}", check=False)
            sh("ip", "link", "del", f"sro{k}", check=False)
        sh("ip", "link", "del", self.bridge, check=False)


class Run:
    """One scheme on one list of arrivals."""

    def __init__(self, scheme: Scheme, policies: Path, folder: Path, parts: dict[str, Any], core: int) -> None:
        self.scheme, self.policies, self.folder, self.parts, self.core = scheme, policies, folder, parts, core
        self.run_dirs = Path(tempfile.mkdtemp(prefix="srole-", dir="/tmp"))
        self.groups, self.net = Groups(), Net()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.jobs: dict[str, wire.PlaceJob] = {}
        self.heard: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.own_cpu: dict[str, float] = {}
        """Share of a core that a device takes while nothing is placed."""
        conf = folder / "mosquitto.conf"
        conf.write_text(
            f"listener {PORT} {NET}.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 20000\n"
            f"log_dest file {folder}/mosquitto.log\nuser root\n"
        )
        self.broker = subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(conf)], stdin=subprocess.DEVNULL)
        self.mqtt = Mqtt(f"mqtt://{NET}.1:{PORT}", "srole-harness", session_expiry_s=0, max_queue_bytes=32 << 20)
        self.mqtt.subscribe([(str(wire.Topic(FLEET, "+", "place", "job", "+")), 1)])
        self.mqtt.start()

    def config(self, board: Board) -> Path:
        """The configuration of a board."""
        scheme, folder = self.scheme, self.folder / board.name
        folder.mkdir()
        names = tuple(each.name for each in BOARDS)
        regions = chain(names, len(names) if scheme.regions == 1 else 3, 1 if scheme.regions > 1 else 0)
        settings: dict[str, object] = {
            "device.id": board.name,
            "device.fleet": FLEET,
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(self.run_dirs / board.name),
            "broker.url": f"mqtt://{NET}.1:{PORT}",
            "policy.bundle": str(HOUSE / "models" / "breakout.edgert"),
            "board.kind": "fake",
            "learn.enabled": False,
            "teacher.enabled": False,
            "placement.enabled": True,
            "placement.agent": scheme.agent,
            "placement.shield": scheme.shield,
            "placement.cores": 1.0,
            "placement.speed": board.share,
            "placement.memory_bytes": board.memory_bytes,
            "placement.link_bytes_per_s": LINK_BIT / 8 * 0.9,
            "placement.stall_s": 60.0,
        }
        if scheme.bundle:
            settings["placement.bundle"] = str(self.policies / f"{scheme.bundle}.edgert")
        if scheme.head:
            settings["placement.head"] = BOARDS[0].name
        text = commented_default(settings)
        said = "".join(
            f'[[placement.regions]]\nname = "{region.name}"\nmembers = {json.dumps(list(region.members))}\n'
            for region in regions
        )
        path = folder / "edgert.toml"
        path.write_text(text.replace("#[[placement.regions]]\n", said + "#", 1))
        return path

    def start(self) -> dict[str, int]:
        """Start all boards at full speed, wait until they lead and follow, and then narrow them."""
        for board in BOARDS:
            with (self.folder / f"{board.name}.log").open("ab") as log:
                command = ["ip", "netns", "exec", f"srole-{board.name}", sys.executable, "-m", "edgert", "run"]
                self.processes[board.name] = subprocess.Popen(
                    [*command, "--config", str(self.config(board))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=HOUSE,
                    env={**os.environ, "PYTHONPATH": str(HOUSE)},
                    preexec_fn=partial(self._confine, board.name),
                    start_new_session=True,
                )
        end_s = time.monotonic() + 60
        while not all(self._places(board.name) for board in BOARDS):
            if time.monotonic() > end_s:
                raise RuntimeError("the devices do not start; see their logs")
            time.sleep(0.5)
        before, began_s = {board.name: self.groups.cpu_s(board.name) for board in BOARDS}, time.monotonic()
        time.sleep(9.0)  # until somebody leads every region
        waited_s = time.monotonic() - began_s
        self.own_cpu = {name: round((self.groups.cpu_s(name) - spent) / waited_s, 4) for name, spent in before.items()}
        found = {board.name: self.groups.limit(board) for board in BOARDS}
        (self.groups.path("cpu", PROBE.name) / "cpu.cfs_quota_us").write_text(str(int(PROBE.share * PERIOD_US)))
        self.processes[PROBE.name] = subprocess.Popen(
            [sys.executable, "-c", "while True: pass"], preexec_fn=partial(self._confine, PROBE.name)
        )
        return found

    def _confine(self, name: str) -> None:
        self.groups.join(name)
        os.sched_setaffinity(0, {self.core})

    def _places(self, name: str) -> bool:
        return (self.folder / name / "state" / "placing" / "files").exists()

    def files(self, kind: str, rows: int = 1000) -> tuple[bytes, bytes]:
        """Bundle and shard of a kind of job; the shard is recorded once."""
        env = {"breakout": "MinAtar/Breakout-v1", "invaders": "MinAtar/SpaceInvaders-v1", "wide": "MinAtar/Breakout-v1"}
        teacher = {"breakout": "breakout", "invaders": "space_invaders", "wide": "breakout"}
        name = kind.partition("-")[0]
        kept = Path(tempfile.gettempdir()) / f"edgert-srole-{teacher[name]}-{rows}.shard"
        if not kept.exists():
            recorded = record(env[name], HOUSE / "models" / f"{teacher[name]}-teacher.edgert", rows)
            kept.write_bytes(shards.pack_shard(recorded))
        return (HOUSE / str(self.parts[kind]["bundle"])).read_bytes(), kept.read_bytes()

    def lay_down(self) -> dict[str, dict[str, wire.PolicyOffer]]:
        """Files of all kinds at the broker, for whoever gets jobs."""
        offers: dict[str, dict[str, wire.PolicyOffer]] = {}
        for kind in KINDS:
            offers[kind] = {}
            for name, data in zip(("bundle", "shard"), self.files(kind), strict=True):
                offer = offers[kind][name] = shards.offer(name, data, id_="files")
                for index in range(-(-offer.size_bytes // offer.chunk_bytes)):
                    topic = chunk_topic(FLEET, "-", offer.sha256, index)
                    while not self.mqtt.publish(topic, shards.chunk(data, offer, index), qos=1, retain=True):
                        time.sleep(0.05)
        return offers

    def _listen(self, now_s: float) -> None:
        for event in self.mqtt.events():
            if isinstance(event, Received):
                job, _ = wire.decode(event.payload, wire.PlaceJob)
                self.jobs[job.id] = job
                self.heard.setdefault(job.id, now_s)
                if job.state in ("judging", "done", "refused", "failed"):
                    self.ended.setdefault(job.id, now_s)

    def play(self, jobs: list[Arrival], patience_s: float) -> dict[str, Any]:
        """All jobs, until they have ended or patience has."""
        offers = self.lay_down()
        began_s = time.monotonic()
        cpu_before = {board.name: self.groups.cpu_s(board.name) for board in (*BOARDS, PROBE)}
        samples: dict[str, list[tuple[float, int]]] = defaultdict(list)
        submitted: dict[str, tuple[float, float]] = {}
        sample_s = began_s
        while True:
            now_s = time.monotonic()
            since_s = now_s - began_s
            for each in jobs:
                first, last = submitted.get(each.id, (None, 0.0))
                if each.at_s <= since_s and each.id not in self.jobs and now_s - last > 3.0:
                    submitted[each.id] = now_s if first is None else first, now_s
                    job = wire.PlaceSubmit(
                        id=each.id,
                        steps=each.steps,
                        batch=int(each.kind.rpartition("-")[2]),
                        checkpoint_steps=50,
                        cuts=tuple(
                            {name: split[name] for name in ("kind", "edges", "parts")}
                            for split in self.parts[each.kind]["splits"]
                        ),
                        bundle=offers[each.kind]["bundle"],
                        shard=offers[each.kind]["shard"],
                    )
                    topic = str(wire.Topic(FLEET, each.owner, "place", "submit", each.id))
                    self.mqtt.publish(topic, wire.encode(job), qos=1)
            self._listen(now_s)
            if now_s >= sample_s:
                sample_s = now_s + 1.0
                for board in BOARDS:
                    samples[board.name].append((self.groups.cpu_s(board.name), self.groups.stat(board.name)["rss"]))
            if len(self.ended) == len(jobs) or since_s > patience_s:
                break
            time.sleep(0.05)
        took_s = time.monotonic() - began_s
        times = {id_: self.ended[id_] - submitted[id_][0] for id_ in self.ended if id_ in submitted}
        used = {board.name: self.groups.cpu_s(board.name) - cpu_before[board.name] for board in (*BOARDS, PROBE)}
        busy = [
            (b[0] - a[0]) / board.share
            for board in BOARDS
            for a, b in zip(samples[board.name], samples[board.name][1:], strict=False)
        ]
        return {
            "jobs": [self._job(each, submitted, began_s) for each in jobs],
            "ended": len(self.ended),
            "undisturbed_frac": round(used.pop(PROBE.name) / (PROBE.share * took_s), 3),
            "took_s": round(took_s, 2),
            "mean_s": round(statistics.mean(times.values()), 2) if times else None,
            "median_s": round(statistics.median(times.values()), 2) if times else None,
            "p95_s": round(float(np.percentile(list(times.values()), 95)), 2) if times else None,
            "oom_kills": sum(self.groups.kills(board.name) for board in BOARDS),
            **collisions(self.jobs, self.parts, {each.id: each.kind for each in jobs}),
            "cpu_s": {name: round(value, 2) for name, value in used.items()},
            "median_cpu_frac": round(statistics.median(busy), 3) if busy else None,
            "goodput_steps_s": round(sum(job.step for job in self.jobs.values()) / took_s, 2),
        }

    def _job(self, each: Arrival, submitted: dict[str, tuple[float, float]], began_s: float) -> dict[str, Any]:
        job = self.jobs.get(each.id)
        start_s = submitted.get(each.id, (None,))[0]
        ended_s = self.ended.get(each.id)
        return {
            **each._asdict(),
            "submitted_s": None if start_s is None else round(start_s - began_s, 2),
            "took_s": None if start_s is None or ended_s is None else round(ended_s - start_s, 2),
            "state": job.state if job else "lost",
            "attempts": job.attempt if job else 0,
            "history": [
                {
                    k: v
                    for k, v in event.items()
                    if k in ("at_s", "what", "nodes", "kind", "cut", "outcome", "why", "step")
                }
                for event in (job.history if job else ())
            ],
        }

    def close(self) -> None:
        """Stop everything."""
        self.mqtt.close()
        self.groups.close()
        for process in self.processes.values():
            process.wait()
        self.broker.terminate()
        self.broker.wait()
        self.net.close()
        shutil.rmtree(self.run_dirs, ignore_errors=True)


def collisions(jobs: dict[str, wire.PlaceJob], parts: dict[str, Any], kinds: dict[str, str]) -> dict[str, int]:
    """Grants that put a node over its limits, and those of them that another job's grant had made one.

    From what owners recorded: a part holds its node from the grant until its attempt ends.
    """
    events: list[tuple[float, int, str, str, float, float]] = []
    for job in jobs.values():
        held: list[tuple[str, float, float]] = []
        cut: tuple[str, list[int], int] = ("data", [0], 1)
        for each in job.history:
            at_s = float(str(each["at_s"]))
            if each["what"] == "proposed":
                cut = str(each["kind"]), list(each["cut"]), len(list(each["nodes"]))  # type: ignore[call-overload]
            elif each["what"] == "granted":
                nodes = list(each["nodes"])  # type: ignore[call-overload]  # a list, by the record
                split = next(
                    split
                    for split in parts[kinds[job.id]]["splits"]
                    if (split["kind"], len(split["parts"])) == (cut[0], len(nodes))
                    and (cut[0] == "data" or split["edges"] == cut[1])
                )
                held = [(n, p["cores"], p["memory_bytes"]) for n, p in zip(nodes, split["parts"], strict=True)]
                events += [(at_s, 1, job.id, *each_) for each_ in held]
            elif each["what"] in ("broke-off", "trained", "failed", "restarted") and held:
                events += [(at_s, 0, job.id, *each_) for each_ in held]
                held = []
    limits = {board.name: (1.0, board.memory_bytes) for board in BOARDS}
    on: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    over = collided = 0
    for _, begins, id_, node, cores, memory in sorted(events):
        if not begins:
            on[node].remove((id_, cores, memory))
            continue
        on[node].append((id_, cores, memory))
        total = sum(c for _, c, _ in on[node]), sum(m for _, _, m in on[node])
        if any(t > limit * (1 + 1e-6) for t, limit in zip(total, limits[node], strict=True)):
            over += 1
            mine = [(c, m) for job_id, c, m in on[node] if job_id == id_]
            alone = sum(c for c, _ in mine), sum(m for _, m in mine)
            collided += all(amount <= limit * (1 + 1e-6) for amount, limit in zip(alone, limits[node], strict=True))
    return {"overloads": over, "collisions": collided}


def main(argv: list[str] | None = None) -> int:
    """Run schemes one after the other, and write down what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench srole --real")
    parser.add_argument("--scheme", action="append", choices=list(SCHEMES), help="only these")
    parser.add_argument("--seed", type=int, action="append", help="of the arrivals (1)")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--every-s", type=float, default=3.5, help="mean time between two jobs (3.5)")
    parser.add_argument("--patience-s", type=float, default=120.0, help="for all jobs of a run (120)")
    parser.add_argument("--core", type=int, default=0, help="that all devices share (0)")
    parser.add_argument("--policies", type=Path, default=HOUSE / "models", help="folder of learned policies (models)")
    parser.add_argument("--keep", type=Path, help="leave the logs in this folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "srole-real.json")
    args = parser.parse_args(argv)
    if os.geteuid():
        print("the real run needs root: network namespaces and control groups", file=sys.stderr)
        return 77
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # networks and groups must not stay
    parts = json.loads((RESULTS / "srole-parts.json").read_text())["jobs"]
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    document |= {
        "command": "python -m tools.bench srole --real",
        "emulated": "boards as shares of one x86-64 core (CFS quotas) with memory limits, links by token buckets of "
        f"{LINK_BIT / 1e6:g} Mbit/s; the daemons, the broker and the jobs are real",
        "boards": [board._asdict() for board in BOARDS],
    }
    runs = document.setdefault("runs", {})
    for seed in args.seed or [1]:
        jobs = arrivals(seed, args.jobs, args.every_s)
        for name in args.scheme or SCHEMES:
            scheme = SCHEMES[name]
            if scheme.bundle and not (args.policies / f"{scheme.bundle}.edgert").exists():
                print(f"{name}: no {scheme.bundle}.edgert in {args.policies}: left out", flush=True)
                continue
            folder = args.keep / f"{name}-{seed}" if args.keep else Path(tempfile.mkdtemp(prefix="srole-run-"))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run = Run(scheme, args.policies, folder, parts, args.core)
            try:
                own = run.start()
                found = run.play(jobs, args.patience_s)
            finally:
                run.close()
            runs[f"{name}/{seed}"] = {"scheme": name, "seed": seed, "own_bytes": own, "own_cpu_s": run.own_cpu, **found}
            shown = {k: v for k, v in found.items() if k not in ("jobs", "cpu_s")}
            print(name, seed, json.dumps(shown), flush=True)
            args.out.write_text(json.dumps(document, indent=1) + "\n")
            if not args.keep:
                shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
