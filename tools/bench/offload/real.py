"""The real set-up: end daemons, an edge and a cloud node as processes under CPU quotas, a broker, and shaped links.

`python -m tools.bench.offload.real measure` asks for joint actions by name and writes what each took; what the
simulator is fitted to, and held against, comes from here. `... online` lets the learners of the daemons decide, and
lets one orchestrator decide for all, beside what everybody else does.

What is real: the programs (`edgert.programs.offload`, `edgert serve`), mosquitto, the messages, MobileNetV1 in its true
shapes, waiting, batching, contention. What is scaled: the published set-up has machines of 1, 2 and 4 processors; here
an end device has 10 % of one core, the edge 20 % and the cloud 40 %, so that five of them fit one core (a request that
is sent away leaves its device idle, so it is never asked for more than it has). What is emulated: a link is a TCP proxy
that holds each message back: 20 ms for a weak one, one way, and 5 ms between broker and cloud (25 ms where it is weak).
Broker, proxies and whoever asks stand for the network and the users, and have no quota.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgert.client.infer import Answer, Inference
from edgert.errors import EdgertError, LinkError
from edgert.offload.hybrid import Hybrid
from edgert.offload.space import Choice, Floor, Load, Outcome, Space, State, Variant, allowed, full_space
from edgert.offload.tabular import JointQ, Rates
from edgert.ports.store import write_atomic
from tools import mobilenet

CGROUP = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 10_000
QUOTAS = {"device": 0.1, "edge": 0.2, "cloud": 0.4}
SHARES = 100 * 1024  # whatever else runs on this machine is no part of the measurement
WEAK_S, CLOUD_S = 0.020, 0.005
"""Each way, each message."""
USERS = 5
LINKS = ("A", "B", "C", "D")
OUT = Path(__file__).parents[1] / "results" / "offload-real.json"
PATIENCE_S = 10.0
PRECISIONS = ("fp32", "int8")
NAMES = {
    f"mobilenet-{width:g}-{precision}": f"{width:.2g}".ljust(3, ".").replace("1..", "1.0")
    + ("-int8" if precision == "int8" else "")
    for width in mobilenet.PUBLISHED
    for precision in PRECISIONS
}
"""Of the bundles -> as results name them, `1.0` and `1.0-int8`."""
FULL = "mobilenet-1-fp32"


def weak_links(users: int, links: str) -> tuple[bool, ...]:
    """Whose link is weak: A nobody's; B every other one's; C and D everybody's, and in D the cloud's too."""
    return tuple(links in "CD" or (links == "B" and user % 2 == 0) for user in range(users))


class Proxy:
    """A link: passes bytes on, each chunk so much later, in both directions.

    Attributes:
        delay_s: one way; may be changed at any time.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target, self.delay_s = port, target, 0.0

    async def serve(self) -> None:
        """Listen for ever."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def emit() -> None:
            while True:
                at_s, chunk = await waiting.get()
                if (left_s := at_s - loop.time()) > 0:
                    await asyncio.sleep(left_s)
                if not chunk:
                    writer.close()
                    return
                writer.write(chunk)

        emitting = asyncio.create_task(emit())
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 18):
                waiting.put_nowait((loop.time() + self.delay_s, chunk))
        waiting.put_nowait((loop.time(), b""))
        with contextlib.suppress(OSError):
            await emitting


class Setup:
    """Everything that runs.

    Attributes:
        bundles: the variants.
        notes: what was scaled and how, for the results.
        status: folder of what the nodes write about themselves.
    """

    def __init__(self, folder: Path, bundles: Sequence[Path], users: int, *, core: int, deadline_s: float) -> None:
        """Prepare; nothing runs before `start`."""
        self.folder, self.bundles, self.users, self.core = folder, list(bundles), users, core
        self.deadline_s = deadline_s
        self.port = 20_000 + os.getpid() % 20_000
        self.links = [Proxy(self.port + 1 + i, self.port) for i in range(users + 1)]
        self.groups: dict[str, Path] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.clients: list[Inference] = []
        self.pool = ThreadPoolExecutor(users)

    @property
    def cloud(self) -> Proxy:
        """The link between broker and cloud."""
        return self.links[self.users]

    def _group(self, name: str, share: float) -> Path:
        group = CGROUP / f"edgert-offload-{os.getpid()}-{name}"
        try:
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(int(PERIOD_US * share) if share else -1))
            (group / "cpu.shares").write_text(str(SHARES))
        except OSError as error:
            raise LinkError(f"{group}: {error}: quotas need root and control groups of version 1") from error
        self.groups[name] = group
        return group

    def _start(self, name: str, argv: Sequence[str], group: Path | None) -> None:
        # The shell puts itself into the group before it becomes the program, so that nothing is ever outside.
        enter = f"echo $$ > {group}/tasks && " if group is not None else ""
        with (self.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                ["/bin/sh", "-c", f'{enter}exec taskset -c {self.core} "$@"', "sh", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def start(self) -> None:
        """Bring everything up, and wait until every device knows both nodes."""
        (self._group("network", 0.0) / "cgroup.procs").write_text(str(os.getpid()))
        conf = self.folder / "mosquitto.conf"
        conf.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_packet_size 2097152\n"
        )
        self.processes["broker"] = subprocess.Popen(["mosquitto", "-c", str(conf)], stderr=subprocess.DEVNULL)
        threading.Thread(target=lambda: asyncio.run(self._serve_links()), daemon=True).start()
        self.cloud.delay_s = CLOUD_S
        for place, port in (("edge", self.port), ("cloud", self.cloud.port)):
            argv = [sys.executable, "-m", "edgert", "serve", "--broker", f"mqtt://127.0.0.1:{port}", "--fleet", "bench"]
            argv += ["--place", place, "--name", place, "--batch", "1"]
            argv += ["--status-file", str(self.folder / f"{place}.json")]
            for bundle in self.bundles:
                argv += ["--model", str(bundle)]
            self._start(place, argv, self._group(place, QUOTAS[place]))
        for i in range(self.users):
            name = f"d{i}"
            config = self.folder / f"{name}.toml"
            variants = "\n".join(f'[[offload.variants]]\nbundle = "{bundle}"' for bundle in self.bundles)
            config.write_text(
                f'[device]\nid = "{name}"\nfleet = "bench"\nrun_dir = "{self.folder / name}"\n'
                f'state_dir = "{self.folder / name}"\n[broker]\nurl = "mqtt://127.0.0.1:{self.links[i].port}"\n'
                f'[policy]\nbundle = "none"\n[board]\nsysfs_root = "{self.folder}"\n[offload]\nenabled = true\n'
                f"deadline_s = {self.deadline_s}\nmax_bytes_per_s = 1e9\nburst_bytes = 1000000000\n{variants}\n"
            )
            argv = [sys.executable, "-m", "edgert.programs.offload", "--config", str(config)]
            self._start(name, argv, self._group(name, QUOTAS["device"]))
        self.clients = [Inference(self.folder / f"d{i}" / "infer.sock", 60.0) for i in range(self.users)]
        until_s = time.monotonic() + 240
        for client in self.clients:
            while time.monotonic() < until_s:
                with contextlib.suppress(EdgertError):
                    if len(client.show()["nodes"]) == 2:
                        break
                ended = [name for name, process in self.processes.items() if process.poll() is not None]
                if ended:
                    raise LinkError(f"{ended[0]} ended: {(self.folder / f'{ended[0]}.log').read_text()[-500:]}")
                time.sleep(0.5)
            else:
                raise LinkError(f"not everybody is there after 240 s; the logs are in {self.folder}")

    async def _serve_links(self) -> None:
        await asyncio.gather(*(link.serve() for link in self.links))

    def shape(self, weak: Sequence[bool], cloud_weak: bool) -> None:
        """Make links weak or regular."""
        for link, is_weak in zip(self.links, weak, strict=False):
            link.delay_s = WEAK_S if is_weak else 0.0
        self.cloud.delay_s = CLOUD_S + (WEAK_S if cloud_weak else 0.0)

    def epoch(self, picture: Any, asks: Sequence[dict[str, Any]]) -> list[tuple[float, Answer | None]]:
        """All users ask at once.

        Args:
            picture: asked about.
            asks: of each user, what it asks for besides.

        Returns:
            For each user how long it took, and the answer.
        """
        barrier = threading.Barrier(len(asks))

        def one(user: int) -> tuple[float, Answer | None]:
            barrier.wait()
            began_s = time.perf_counter()
            try:
                answer: Answer | None = self.clients[user].infer(picture, **asks[user])
            except EdgertError as error:
                print(f"user {user}: {error}", file=sys.stderr)
                self.clients[user].close()
                answer = None
            return time.perf_counter() - began_s, answer

        return list(self.pool.map(one, range(len(asks))))

    def stop(self) -> None:
        """End everything that was started here."""
        for client in self.clients:
            client.close()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        (CGROUP / "cgroup.procs").write_text(str(os.getpid()))
        for group in self.groups.values():
            for _ in range(50):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)


@contextlib.contextmanager
def running(bundles: Sequence[Path], users: int, *, core: int, deadline_s: float) -> Iterator[Setup]:
    """A set-up that runs, and is ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="edgert-offload-") as folder:
        setup = Setup(Path(folder), bundles, users, core=core, deadline_s=deadline_s)
        try:
            setup.start()
            yield setup
        finally:
            setup.stop()


def _notes(setup: Setup) -> dict[str, Any]:
    return {
        "quotas": {place: f"{share:.0%} of one core" for place, share in QUOTAS.items()},
        "period_s": PERIOD_US / 1e6,
        "scaled": "1:2:4 processors as shares of one core, everything else as it is",
        "delays": {"weak_one_way_s": WEAK_S, "cloud_one_way_s": CLOUD_S, "cloud_weak_one_way_s": CLOUD_S + WEAK_S},
    }


def _rtts(setup: Setup) -> dict[str, float]:
    """Round trips of empty messages, as the programs themselves measure them."""
    found: dict[str, float] = {}
    for name, weak in (("regular_rtt_s", False), ("weak_rtt_s", True)):
        setup.shape([weak] * setup.users, False)
        samples = []
        for _ in range(4):
            time.sleep(5.2)  # a probe of the daemon lies between
            samples.append(setup.clients[0].show()["state"]["users"][0]["rtt_s"])
        found[name] = float(np.median(samples[1:]))
    setup.shape([False] * setup.users, False)
    time.sleep(2)
    cloud = setup.clients[0].show()["state"]["cloud"]["rtt_s"]
    found["cloud_rtt_s"] = cloud if cloud is not None else float("nan")
    return found


def measure(setup: Setup, epochs: int, seed: int, until_s: float) -> dict[str, Any]:
    """Random joint actions, and every single choice alone."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (mobilenet.SIDE, mobilenet.SIDE, 3), np.uint8)
    variants = [bundle.stem for bundle in setup.bundles]
    choices = [(variant, place) for place in QUOTAS for variant in variants]
    services, runs = [], []
    for variant, place in choices:
        setup.shape([False] * setup.users, False)
        took = [
            setup.epoch(picture, [{"variant": variant, "place": place, "deadline_s": PATIENCE_S}])[0][0]
            for _ in range(8)
        ]
        services.append(
            {
                "variant": NAMES[variant],
                "precision": "int8" if variant.endswith("int8") else "float32",
                "place": place,
                "batch": 1,
                "median_s": float(np.median(took[2:])),
            }
        )
    links = _rtts(setup)
    for n in range(epochs):
        if time.monotonic() > until_s:
            break
        users = 1 + n % setup.users
        shaped = LINKS[int(rng.integers(len(LINKS)))]
        weak = weak_links(users, shaped)
        setup.shape(weak, shaped == "D")
        # Half of the epochs from all choices, half from the paper's: full models elsewhere, any of them at home.
        pool = choices if rng.random() < 0.5 else [c for c in choices if c[1] == "device" or c[0] == FULL]
        action = [pool[int(rng.integers(len(pool)))] for _ in range(users)]
        time.sleep(float(rng.uniform(0, 0.02)))
        told = setup.epoch(picture, [{"variant": v, "place": p, "deadline_s": PATIENCE_S} for v, p in action])
        if any(answer is None or answer.fell_back for _, answer in told):
            continue
        runs.append(
            {
                "users": users,
                "links": shaped,
                "weak": list(weak),
                "action": [[NAMES[v], p] for v, p in action],
                "response_s": [round(took_s, 6) for took_s, _ in told],
            }
        )
    nodes = {place: json.loads((setup.folder / f"{place}.json").read_text()) for place in ("edge", "cloud")}
    monitoring = {
        "bytes": round(sum(node["load_bytes"] / max(1, node["loads"]) for node in nodes.values()) / 2, 1),
        "every_s": 1.0,
        "ms": _telling_ms(),
    }
    return {"services": services, "links": links, "runs": runs, "monitoring": monitoring, **_notes(setup)}


def _telling_ms() -> float:
    """CPU time of one word about the load, encoding and reading it, on a whole core."""
    from edgert import wire

    offered = tuple(wire.Offered(id=f"{i:016x}", name="mobilenet-1-int8", row_s=0.01) for i in range(8))
    load = wire.InferLoad(place="edge", accepts=True, models=offered, cpu_frac=0.5, memory_frac=0.5, rtt_s=0.01)
    began_s, n = time.process_time(), 300
    for _ in range(n):
        wire.decode(wire.encode(load), wire.InferLoad)
    return round(1e3 * (time.process_time() - began_s) / n, 4)


class Arm(NamedTuple):
    """One way to decide, in epochs."""

    name: str
    ask: Callable[[int], list[dict[str, Any]]]
    learn: Callable[[Sequence[tuple[float, Answer | None]]], None]
    trains: int


def _space(bundles: Sequence[Path], users: int, only: str = "") -> Space:
    """What the orchestrator chooses from; with `only`, one variant at three places."""
    accuracy = {
        f"mobilenet-{width:g}-{precision}": (row.fp32 if precision == "fp32" else row.int8)[1]
        for width, row in mobilenet.PUBLISHED.items()
        for precision in PRECISIONS
    }
    variants = [
        Variant(
            name=bundle.stem,
            accuracy_frac=accuracy[bundle.stem],
            macs=mobilenet.PUBLISHED[float(bundle.stem.split("-")[1])].mmacs * 1_000_000,
            precision="int8" if bundle.stem.endswith("int8") else "float32",
            input_bytes=150_528,
        )
        for bundle in bundles
        if only in ("", bundle.stem)
    ]
    return full_space(variants, users)


def _state(setup: Setup, users: int, weak: Sequence[bool], cloud_weak: bool) -> State:
    """What an orchestrator on the edge knows: whose link is how slow; it is alone with its users."""
    rtts = [2 * WEAK_S + 0.004 if each else 0.004 for each in weak]
    cloud_s = 2 * (CLOUD_S + (WEAK_S if cloud_weak else 0.0))
    return State(
        users=tuple(Load(cpu_frac=0.0, memory_frac=0.1, rtt_s=rtt_s) for rtt_s in rtts),
        edge=Load(cpu_frac=0.0, memory_frac=0.1),
        cloud=Load(cpu_frac=0.0, memory_frac=0.1, rtt_s=cloud_s),
    )


def _orchestrated(
    name: str, learner: Any, space: Space, state: State, floor: Floor, trains: int, rng: np.random.Generator
) -> Arm:
    mask = allowed(space, floor)
    chosen: list[tuple[int, ...]] = []

    def ask(epoch: int) -> list[dict[str, Any]]:
        action = learner.choose(state, mask, rng) if epoch < trains else learner.best(state, mask)
        chosen.append(action)
        picked: list[Choice] = [space.choices[each] for each in action]
        return [{"variant": space.variants[c.variant].name, "place": c.place, "deadline_s": PATIENCE_S} for c in picked]

    def learn(told: Sequence[tuple[float, Answer | None]]) -> None:
        if len(chosen) <= trains:
            outcomes = [
                Outcome(
                    response_s=None if a is None or a.fell_back else t, failed_s=0.0 if a and not a.fell_back else t
                )
                for t, a in told
            ]
            learner.observe(state, chosen[-1], outcomes)

    return Arm(name, ask, learn, trains)


def _fixed(place: str, users: int) -> Arm:
    ask = [{"variant": FULL, "place": place, "deadline_s": PATIENCE_S}] * users
    return Arm(f"{place}-only", lambda _: ask, lambda _: None, 2)


def online(
    setup: Setup, links: str, users: int, floor_frac: float, trains: int, judged: int, seed: int, until_s: float
) -> dict[str, Any]:
    """Every arm in one setting: so many epochs of learning, then so many that are judged."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (mobilenet.SIDE, mobilenet.SIDE, 3), np.uint8)
    weak, cloud_weak = weak_links(users, links), links == "D"
    setup.shape(weak, cloud_weak)
    state, floor = _state(setup, users, weak, cloud_weak), Floor(floor_frac)
    space, only = _space(setup.bundles, users), _space(setup.bundles, users, FULL)
    by_itself = [{"floor": floor_frac, "deadline_s": setup.deadline_s}] * users
    arms = [
        *(_fixed(place, users) for place in QUOTAS),
        _orchestrated(
            "offload-only RL, full model",
            JointQ(only, Floor(), rates=Rates(decay=0.01)),
            only,
            state,
            Floor(),
            3 * trains,
            rng,
        ),
        _orchestrated("orchestrator, Hybrid", Hybrid(space, floor), space, state, floor, trains, rng),
        Arm("each device by itself, Hybrid", lambda _: by_itself, lambda _: None, trains),
    ]
    results: dict[str, Any] = {}
    for arm in arms:
        curve, judged_s, accuracy, violations = [], [], [], 0
        places: dict[str, int] = {}
        for epoch in range(arm.trains + judged):
            if time.monotonic() > until_s:
                break
            told = setup.epoch(picture, arm.ask(epoch))
            arm.learn(told)
            curve.append(round(float(np.mean([took_s for took_s, _ in told])), 5))
            for took_s, answer in told:
                if answer is None:
                    continue
                violations += answer.accuracy_frac < floor_frac - 1e-9
                if epoch >= arm.trains:
                    judged_s.append(took_s)
                    accuracy.append(answer.accuracy_frac)
                    key = f"{NAMES[answer.variant]}@{answer.place}"
                    places[key] = places.get(key, 0) + 1
        if judged_s:
            results[arm.name] = {
                "epochs_learning": arm.trains,
                "epochs_judged": judged,
                "response_mean_s": round(float(np.mean(judged_s)), 5),
                "response_p95_s": round(float(np.quantile(judged_s, 0.95)), 5),
                "response_p99_s": round(float(np.quantile(judged_s, 0.99)), 5),
                "accuracy_mean_frac": round(float(np.mean(accuracy)), 4),
                "violations": violations,
                "choices": dict(sorted(places.items(), key=lambda each: -each[1])),
                "curve_s": curve,
            }
            print(links, users, arm.name, {k: v for k, v in results[arm.name].items() if k != "curve_s"}, flush=True)
    return {"links": links, "users": users, "floor_frac": floor_frac, "seed": seed, "arms": results}


def _laid_out(document: dict[str, Any]) -> bytes:
    """JSON with one line for each measurement: two thousand of them, one number a line, are no text."""
    parts = []
    for key, value in document.items():
        many = isinstance(value, list) and key in ("runs", "services")
        rows = ",\n".join(f"  {json.dumps(each)}" for each in value) if many else ""
        parts.append(f"{json.dumps(key)}: " + (f"[\n{rows}\n ]" if many else json.dumps(value)))
    return ("{\n " + ",\n ".join(parts) + "\n}\n").encode()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or run online, and add the results to the file."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.offload.real", description=__doc__)
    parser.add_argument("what", choices=("measure", "online"))
    parser.add_argument("--bundles", type=Path, required=True, help="folder of `tools.mobilenet`")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--epochs", type=int, default=1000, help="joint actions to measure (%(default)s)")
    parser.add_argument("--trains", type=int, default=150, help="epochs of learning, online (%(default)s)")
    parser.add_argument("--judged", type=int, default=40, help="epochs judged, online (%(default)s)")
    parser.add_argument("--links", default="A", help="online: of A, B, C, D; several letters for several settings")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--floor", type=float, default=0.89)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=int, default=0, help="everything under a quota runs there (%(default)s)")
    parser.add_argument("--most-s", type=float, default=780.0, help="wall time (%(default)s)")
    args = parser.parse_args(argv)
    until_s = time.monotonic() + args.most_s
    bundles = [args.bundles / f"{name}.edgert" for name in NAMES]
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    with running(bundles, args.users, core=args.core, deadline_s=2.0) as setup:
        if args.what == "measure":
            document |= measure(setup, args.epochs, args.seed, until_s)
            print(f"{len(document['runs'])} epochs")
        else:
            for links in args.links:
                found = online(setup, links, args.users, args.floor, args.trains, args.judged, args.seed, until_s)
                kept = [
                    each
                    for each in document.get("online", [])
                    if (each["links"], each["users"], each["floor_frac"]) != (links, args.users, args.floor)
                ]
                document["online"] = [*kept, found]
    write_atomic(args.out, _laid_out(document), 0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main())
