"""What the parts of real training jobs cost: `python -m tools.bench.srole.parts`.

Every split of every job is run by the very processes that a device runs (`edgert.programs.placer.worker`), all on one
core, and joined here instead of by a broker. Written down are the processor time of a step, the peak of the resident
memory and the bytes between parts; nothing is estimated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgert.learn.dqn import Batch, Hyper
from edgert.nets import forward
from edgert.policy import artifact
from edgert.ports import ipc, shards
from edgert.ports.plant import worlds
from edgert.programs.placer.worker import Order

HOUSE = Path(__file__).parents[3]
RESULTS = HOUSE / "tools" / "bench" / "results" / "srole-parts.json"
STEPS = 40
HYPER = Hyper(td_weight=0.1)


class Job(NamedTuple):
    """A job to measure; `rows` are transitions of the shard."""

    name: str
    bundle: str
    teacher: str
    env: str
    batch: int
    rows: int
    layers: tuple[tuple[int, ...], ...]


JOBS = [
    Job("breakout-64", "breakout", "breakout-teacher", "MinAtar/Breakout-v1", 64, 4000, ((0, 1), (0, 2), (0, 1, 2))),
    Job("breakout-256", "breakout", "breakout-teacher", "MinAtar/Breakout-v1", 256, 4000, ((0, 1), (0, 2), (0, 1, 2))),
    Job(
        "invaders-128",
        "space_invaders",
        "space_invaders-teacher",
        "MinAtar/SpaceInvaders-v1",
        128,
        4000,
        ((0, 1), (0, 2), (0, 1, 2)),
    ),
    Job("wide-128", "breakout-teacher", "breakout-teacher", "MinAtar/Breakout-v1", 128, 4000, ()),
    Job("pong-16", "pong", "pong-teacher", "ALE/Pong-v5", 16, 300, ((0, 1),)),
]


def record(env_id: str, teacher: Path, rows: int, seed: int = 0) -> Batch:
    """Transitions of a teacher that explores, with what it says of them."""
    policy = artifact.load(teacher.read_bytes())
    rng = np.random.default_rng(seed)
    env = worlds.make(env_id)
    obs, _ = env.reset(seed=seed)
    last = policy.spec.n_exits - 1
    kept: list[tuple[Any, ...]] = []
    while len(kept) < rows:
        q = forward(policy.params, obs[None], exits=(last,))[last][0, : policy.spec.n_actions]
        action = int(rng.integers(policy.spec.n_actions)) if rng.random() < 0.2 else int(q.argmax())
        following, reward, terminated, truncated, _ = env.step(action)
        if not truncated:
            kept.append((obs, action, np.float32(reward), following, terminated, q, True))
        obs = env.reset()[0] if terminated or truncated else following
    columns = list(zip(*kept, strict=True))
    return Batch(
        np.stack(columns[0]),
        np.array(columns[1]),
        np.array(columns[2], np.float32),
        np.stack(columns[3]),
        np.array(columns[4], bool),
        np.stack(columns[5]).astype(np.float32),
        np.array(columns[6], bool),
    )


class Part:
    """A part's process, and what was seen of it."""

    def __init__(self, order: Order) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "edgert.programs.placer.worker", "--fd", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=HOUSE, env={**os.environ, "PYTHONPATH": str(HOUSE)}
        )
        theirs.close()
        self.channel = ipc.Channel(ours)
        self.channel.send_map(msgspec.to_builtins(order, builtin_types=(bytes,)))
        self.states: list[dict[str, Any]] = []
        self.ready = self.ended = False
        self.waiting: list[dict[str, object]] = []

    def send(self, message: dict[str, object]) -> None:
        """Say something, at once or as soon as there is room."""
        self.waiting.append(message)
        while self.waiting and self.channel.send_map(self.waiting[0]):
            self.waiting.pop(0)

    def peak_bytes(self) -> int:
        """The most that was resident so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


def run(orders: list[Order], patience_s: float = 300.0) -> dict[str, Any]:
    """Run all parts of a job, joined directly; what each used, and what went between them."""
    parts = [Part(order) for order in orders]
    selector = selectors.DefaultSelector()
    for k, part in enumerate(parts):
        selector.register(part.channel, selectors.EVENT_READ, k)
    moved: dict[tuple[int, int], int] = defaultdict(int)
    results, peaks, going = dict[int, bytes](), [0] * len(parts), False
    unpacking = shards.Unpacking()
    end_s = time.monotonic() + patience_s
    marks: list[list[tuple[int, float]]] = [[] for _ in parts]
    while not all(each and each[-1][0] >= orders[0].steps for each in marks) and time.monotonic() < end_s:
        for part in parts:
            part.channel.flush()
            while part.waiting and part.channel.send_map(part.waiting[0]):
                part.waiting.pop(0)
        for key, _ in selector.select(0.05):
            part = parts[key.data]
            for said in part.channel.receive_maps():
                match said["t"]:
                    case "ready":
                        part.ready = True
                    case "state":
                        marks[key.data].append((said["step"], said["cpu_s"]))
                    case "failed":
                        raise RuntimeError(said["why"])
                    case "parcel":
                        parcel = msgspec.convert(said["parcel"], shards.Parcel, builtin_types=(bytes,))
                        if parcel.to >= 0:
                            moved[parcel.of, parcel.to] += len(parcel.data)
                            parts[parcel.to].send(said)
                        elif (whole := unpacking.add(parcel)) is not None and whole.kind == "result":
                            results[parcel.of] = whole.data
            if part.channel.closed:
                raise RuntimeError("a part ended")
        if not going and all(part.ready for part in parts):
            going = True
            for part in parts:
                part.send({"t": "go"})
        peaks = [max(peak, part.peak_bytes()) for peak, part in zip(peaks, parts, strict=True)]
    for part in parts:
        part.send({"t": "stop"})
        part.process.terminate()
        part.process.wait()
    return {"peaks": peaks, "marks": marks, "moved": dict(moved), "results": results}


def orders_of(
    job: Job, kind: str, edges: tuple[int, ...], workers: int, batch: Batch, folder: Path, steps: int
) -> list[Order]:
    """What each part of a split has to do."""
    usable = shards.pick(batch, ~shards.held_out(batch))
    n = len(edges) if kind == "layers" else workers
    dealt = [shards.pick(usable, slice(k, None, workers)) for k in range(workers)]
    files = [shards.keep(folder, shards.pack_shard(each)) for each in dealt]
    return [
        Order(
            job=job.name,
            kind="layers" if kind == "layers" else "data",
            part=k,
            parts=n,
            edges=edges,
            bundle=str(HOUSE / "models" / f"{job.bundle}.edgert"),
            shard=str(files[k]) if kind == "data" else str(files[0]) if k == 0 else "",
            hyper=HYPER,
            batch=job.batch,
            steps=steps,
            checkpoint_steps=10**9,
            rows=tuple(len(each.action) for each in dealt) if kind == "data" else (len(usable.action),),
            told=tuple(each.taught.astype(np.uint8).tobytes() for each in dealt) if kind == "data" else (),
        )
        for k in range(n)
    ]


def measure(job: Job, kind: str, edges: tuple[int, ...], workers: int, batch: Batch, folder: Path) -> dict[str, Any]:
    """One split of one job, as a `placement.jobs.Split` with what else was seen."""
    n = len(edges) if kind == "layers" else workers
    seen = run(orders_of(job, kind, edges, workers, batch, folder, STEPS))
    # Said with the last step; what starting costs is not in it.
    compute = [seen["marks"][k][-1][1] / STEPS for k in range(n)]
    flows: dict[int, list[list[float]]] = defaultdict(list)
    for (of, to), size in seen["moved"].items():
        back = seen["moved"].get((to, of), 0)
        if of < to or not back:
            flows[of].append([to, (size + back) / STEPS])
    owner = 16 * artifact.load((HOUSE / "models" / f"{job.bundle}.edgert").read_bytes()).params.flat.size
    return {
        "kind": kind,
        "edges": list(edges) if kind == "layers" else [0],
        "state_bytes": owner,
        "parts": [
            {
                "compute_core_s": max(1e-6, compute[k]),
                "cores": 1.0 if kind == "data" else 1.0 / n,
                "memory_bytes": seen["peaks"][k],
                "flows": flows.get(k, []),
            }
            for k in range(n)
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Measure all jobs and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.srole.parts")
    parser.add_argument("--core", type=int, default=0, help="to measure on (0)")
    parser.add_argument("--job", action="append", help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, {args.core})
    found = json.loads(args.out.read_text())["jobs"] if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job in JOBS:
            if args.job and job.name not in args.job:
                continue
            batch = record(job.env, HOUSE / "models" / f"{job.teacher}.edgert", job.rows)
            usable = shards.pick(batch, ~shards.held_out(batch))
            ship = len(shards.pack_shard(usable)) + (HOUSE / "models" / f"{job.bundle}.edgert").stat().st_size
            splits = [measure(job, "data", (0,), workers, batch, folder) for workers in (1, 2, 4)]
            splits += [measure(job, "layers", edges, 1, batch, folder) for edges in job.layers]
            found[job.name] = {
                "bundle": f"models/{job.bundle}.edgert",
                "batch": job.batch,
                "rows": job.rows,
                "ship_bytes": ship,
                "splits": splits,
            }
            for each in splits:
                print(
                    job.name,
                    each["kind"],
                    each["edges"],
                    [
                        (
                            round(1e3 * p["compute_core_s"], 2),
                            p["memory_bytes"] >> 20,
                            [(f[0], round(f[1])) for f in p["flows"]],
                        )
                        for p in each["parts"]
                    ],
                    flush=True,
                )
            document = {
                "command": "python -m tools.bench.srole.parts",
                "machine": f"{platform.machine()}, one core",
                "what": "CPU seconds of a step, peak resident bytes, bytes between parts: real processes on one core",
                "steps": STEPS,
                "jobs": found,
            }
            args.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
