"""The power goes at ten thousand moments: does a device find everything again that it said it had written?

A process uses the real stores (events, jobs, what the fleet wishes, policies on their way) under strace. What it wrote
is replayed up to a random call on a disk that has lost power (`disk`), and the stores are opened on what is left. Each
of them must be in the state after the last thing that returned, or after the one that was under way; nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from edgert import offers, wire
from edgert.errors import EdgertError, StoreError
from edgert.fleet import fetch
from edgert.ports import fetch as files
from edgert.ports.jobs import JobStore
from edgert.ports.mqtt import Mqtt
from edgert.ports.policies import Store
from edgert.ports.spool import KNOWN_S, Bounds, Spool
from tools.bench.fleet import disk

BOUNDS = {
    "events": Bounds(max_bytes=16_000, max_age_s=60_000.0),
    "uploads": Bounds(max_bytes=8_000, when_full="reject-newest"),
    "notices": Bounds(max_bytes=4_000, max_age_s=20_000.0),
}
CHUNK_BYTES, BUNDLE_BYTES = 4096, 40_000
FAST = Path("/dev/shm")


@functools.cache
def offer_of(seed: int, number: int) -> tuple[bytes, wire.PolicyOffer]:
    """A file and what is said of it; noise does as well as a bundle."""
    data = random.Random(f"{seed}/{number}").randbytes(BUNDLE_BYTES)
    offer = wire.PolicyOffer(
        id=f"o{number}",
        name="noise",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=CHUNK_BYTES,
        hashes=fetch.hashes(data, CHUNK_BYTES),
        version=number + 1,
    )
    return data, offer


class Stores:
    """Everything that a supervisor keeps on its disk, opened."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Open it.

        Raises:
            StoreError: it cannot be.
        """
        self.folder, self.seed = folder, seed
        self.spool = Spool(folder / "events.db", BOUNDS)
        self.jobs = JobStore(folder / "jobs.db")
        self.policies = Store(folder / "fleet", "f", cast("Mqtt", None))
        self.policies.found()

    def faults(self) -> list[str]:
        """What was set aside at opening."""
        return [fault for fault in (self.spool.fault, self.jobs.fault) if fault]

    def state(self, number: int) -> dict[str, Any]:
        """What each of them holds; of policies up to the one of this number, with the chunks that are there."""
        found = self.policies.found()
        folder, parts = self.folder / "fleet" / "bundles", {}
        for each in range(max(0, number - 2), number + 1):
            parts[f"policy {each}"] = sorted(files.Part(folder, offer_of(self.seed, each)[1]).there())
        return {
            "spool": {
                name: [each.first_seq, each.last_seq, each.dropped, _digest(self.spool.peek(name, 0, 1 << 20))]
                for name, each in self.spool.streams.items()
            },
            "jobs": _digest([self.jobs.jobs(), self.jobs.marks(), self.jobs.facts()]),
            "keys": _digest(found.keys),
            "seen": _digest(found.memory),
            "note": _digest(found.note),
            **parts,
        }

    def close(self) -> None:
        """Let go."""
        self.spool.close()
        self.jobs.close()
        self.policies.close()


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def work(folder: Path, marks: Path, seed: int, count: int) -> None:
    """Do things, and say before and after each what it is and what is there then."""
    rng = random.Random(seed)
    fd = os.open(marks, os.O_WRONLY | os.O_CREAT)
    stores = Stores(folder, seed)

    def say(**told: Any) -> None:
        os.write(fd, json.dumps(told).encode())

    missing: list[int] = []
    data, offer = offer_of(seed, 0)
    held: list[str] = []
    number = 0
    say(end="open", number=0, state=stores.state(0))
    for k in range(count):
        what = rng.choices(
            ("event", "ack", "job", "mark", "forget", "note", "keys", "seen", "part"), (8, 2, 6, 1, 1, 2, 1, 2, 5)
        )[0]
        say(begin=what)
        match what:
            case "event":
                _append(stores.spool, rng, k)
            case "ack":
                name = rng.choice(list(BOUNDS))
                stores.spool.acknowledge(name, rng.randint(0, stores.spool.streams[name].last_seq))
            case "job":
                id_ = rng.choice(held) if held and rng.random() < 0.6 else f"j{k}"
                held += [] if id_ in held else [id_]
                stores.jobs.write_job(id_, rng.randbytes(rng.randrange(50, 600)), ("s", b"%d" % k))
            case "mark":
                stores.jobs.write_mark(f"m{rng.randrange(3)}", b"%d" % k)
            case "forget":
                gone, held = tuple(held[:3]), held[3:]
                stores.jobs.forget_jobs(gone, ("horizon", b"%d" % k))
            case "note":
                stores.policies.perform(offers.Note(rng.randbytes(300)), _judge)
            case "keys":
                stores.policies.perform(offers.KeysNote(rng.randbytes(200)), _judge)
            case "seen":
                stores.policies.perform(offers.SeenNote(rng.randbytes(100)), _judge)
            case _ if not missing:
                number += 1
                data, offer = offer_of(seed, number)
                missing = list(range(fetch.count(offer)))
                rng.shuffle(missing)
                keep = (offer_of(seed, number - 1)[1].sha256, offer.sha256)
                stores.policies.perform(offers.Sweep(keep), _judge)
                stores.policies.perform(offers.Open(offer), _judge)
            case _:
                index = missing.pop()
                chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                (kept,) = stores.policies.perform(offers.Keep(index, chunk, offer.sha256), _judge)
                assert kept == offers.Kept(index, True)
                if not missing:
                    stores.policies.perform(offers.Check(offer), _judge)
        say(end=what, number=number, state=stores.state(number))
    stores.close()


def _append(spool: Spool, rng: random.Random, k: int) -> None:
    name, payload = rng.choice(list(BOUNDS)), rng.randbytes(rng.randrange(20, 1500))
    if name == "notices" and rng.random() < 0.3:
        spool.defer(name, payload, KNOWN_S + 1000.0 * k)  # nothing is promised of it
        return
    with contextlib.suppress(StoreError):  # a stream that is full, and keeps what it has
        spool.append(name, payload, KNOWN_S + 1000.0 * k)


def _judge(*_: object) -> offers.Checked:
    raise AssertionError("noise is no bundle")


def record(seed: int, count: int) -> list[disk.Op]:
    """What a process does to its disk.

    Raises:
        FileNotFoundError: strace is not installed.
        ValueError: it did something that is not understood.
    """
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as name:
        folder, marks, trace = Path(name) / "state", Path(name) / "marks", Path(name) / "trace"
        folder.mkdir()
        words = [sys.executable, "-m", "tools.bench.fleet.cuts", "--work", str(folder), "--marks", str(marks)]
        subprocess.run(
            disk.command(trace, [*words, "--seed", str(seed), "--ops", str(count)]), check=True, capture_output=True
        )
        with trace.open() as lines:
            return list(disk.read(lines, str(folder), str(marks)))


def trial(ops: list[disk.Op], cuts: int, rng: random.Random, seed: int) -> dict[str, Any]:
    """Cut the power `cuts` times in one recorded life.

    Returns:
        How many cuts there were, and what was found wrong: `lost` for what was written and is gone, `boots` for what
        cannot be opened, or was set aside.
    """
    marks = [json.loads(op.path) if op.what == "mark" else None for op in ops]
    first = next(k for k, mark in enumerate(marks) if mark)
    after: list[dict[str, Any]] = [{}] * len(ops)  # of each mark that begins something, the one that ends it
    last: dict[str, Any] = {}
    for k in range(len(ops) - 1, -1, -1):
        mark = marks[k]
        last = mark if mark and "end" in mark else last
        after[k] = last
    points = sorted(rng.randrange(first, len(ops)) for _ in range(cuts))
    found = disk.Disk()
    done: dict[str, Any] = {}
    wrong: dict[str, list[str]] = {"lost": [], "boots": []}
    at = 0
    for point in points:
        while at <= point:
            mark = marks[at]
            done = mark if mark and "end" in mark else done
            found.do(ops[at])
            at += 1
        begun = any(mark and "begin" in mark for mark in marks[_last_mark(marks, point) : point + 1])
        allowed = [done, after[point]] if begun else [done]
        kind, why = examine(found, rng, allowed, seed)
        if kind:
            wrong[kind].append(f"seed {seed}, call {point}, {after[point].get('end')}: {why}")
    return {"cuts": cuts, "calls": len(ops), **wrong}


def _last_mark(marks: list[dict[str, Any] | None], point: int) -> int:
    return next(k for k in range(point, -1, -1) if marks[k])


def examine(found: disk.Disk, rng: random.Random, allowed: list[dict[str, Any]], seed: int) -> tuple[str, str]:
    """Open what is left after a cut, and compare it with what it may be; what is wrong, or nothing."""
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as name:
        folder = Path(name)
        for each in sorted(found.folders):
            (folder / each).mkdir(exist_ok=True)
        for path, content in found.cut(rng).items():
            (folder / path).write_bytes(content)
        try:
            stores = Stores(folder, seed)
        except EdgertError as error:
            return "boots", str(error)
        try:
            if stores.faults():
                return "boots", "; ".join(stores.faults())
            state = stores.state(max(each["number"] for each in allowed))
            for part in state:
                wanted = [each["state"].get(part, []) for each in allowed]
                if state[part] not in wanted:
                    return "lost", f"{part} is {state[part]}, and not one of {wanted}"
            stores.spool.append("events", b"the first of the new life", 0.0)
            stores.jobs.write_fact("alive", b"1")
        except EdgertError as error:
            return "boots", str(error)
        finally:
            stores.close()
    return "", ""


def run(*, cuts: int, lives: int, ops: int, seed: int = 1, notes: Path | None = None) -> dict[str, Any]:
    """Record some lives, and cut the power in each of them.

    Args:
        cuts: in all.
        lives: recorded.
        ops: things done in each.
        seed: of everything drawn.
        notes: folder in which each life that was examined is noted, so that a stopped run goes on.
    """
    if shutil.which("strace") is None:
        raise FileNotFoundError("strace is not installed: apt install strace")
    total: dict[str, Any] = {"power_cuts": 0, "calls": 0, "lost": [], "boots": []}
    for life in range(lives):
        share = (cuts * (life + 1)) // lives - (cuts * life) // lives
        note = None if notes is None else notes / f"cuts-{cuts}-{lives}-{ops}-{seed}-{life}.note"
        if note is not None and note.exists():
            found = json.loads(note.read_bytes())
        else:
            found = trial(record(seed + life, ops), share, random.Random(seed + life), seed + life)
            if note is not None:
                note.write_text(json.dumps(found))
        total["power_cuts"] += found["cuts"]
        total["calls"] += found["calls"]
        total["lost"] += found["lost"]
        total["boots"] += found["boots"]
        print(
            f"cuts: {total['power_cuts']} of {cuts}, {len(total['lost'])} lost, {len(total['boots'])} boots", flush=True
        )
    return {**total, "lives": lives, "ops": ops, "seed": seed}


def main() -> None:
    """Be the process that is traced."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.fleet.cuts", description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--marks", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ops", type=int, default=100)
    args = parser.parse_args()
    work(args.work, args.marks, args.seed, args.ops)


if __name__ == "__main__":
    main()
