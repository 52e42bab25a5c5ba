"""What a transition costs in bytes and in time, against general coders: `python -m tools.bench rlink codec`.

A message holds 1 or 32 transitions (observation, action, reward, how it ended). Every coder gets the same transitions,
in short turns within one process; those that keep state are warmed by the first half of a rollout, and the second is
counted. All are decoded and compared. Times are of this thread's CPU clock.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from edgert.errors import EdgertError
from edgert.kernels import codec as kernel
from edgert.knowledge import schema
from edgert.knowledge.codec import CODECS
from edgert.knowledge.schema import TRANSITION, Schema
from edgert.knowledge.stream import Decoder, Encoder, Transitions
from edgert.nets import F32, U8
from edgert.policy import artifact
from edgert.ports.plant import worlds
from edgert.ports.runtime import open_runtime
from edgert.ports.runtime.choice import cpu_name
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
MODELS = Path(__file__).parents[3] / "models"
DESIGNED_ON = (
    "ALE/Pong-v5",
    "ALE/Breakout-v5",
    "ALE/SpaceInvaders-v5",
    "MinAtar/Breakout-v1",
    "MinAtar/SpaceInvaders-v1",
    "MinAtar/Asterix-v1",
    "MinAtar/Seaquest-v1",
)
HELD_OUT = (
    "ALE/MsPacman-v5",
    "ALE/Freeway-v5",
    "ALE/Seaquest-v5",
    "ALE/Boxing-v5",
    "MinAtar/Freeway-v1",
)
BUNDLES = {
    "ALE/Pong-v5": "pong",
    "MinAtar/Breakout-v1": "breakout-teacher",
    "MinAtar/SpaceInvaders-v1": "space_invaders-teacher",
}
BATCHES = (1, 32)
WIRE_BYTES = 57
"""MQTT PUBLISH, TCP and IPv4 headers of one message: a topic of 12 characters, no TLS, no TCP options."""
SEGMENT = 250
"""Steps that one player plays before the other takes over."""
NOISE = 0.05
TURN = 20
"""Messages that a coder gets in a row: it meets its own state in the cache, and the machine as the others meet it."""
OURS, OURS_ALONE = "ours, stream", "ours, stateless, observations only"
ZSTD3, ZSTD9, DEDUP9 = "zstd -3 per message", "zstd -9 stream", "zstd -9 stream, frames once"
Times = list[int]


class Rollout(NamedTuple):
    """One game."""

    task: str
    steps: Transitions
    q: F32 | None
    players: str


class Coded(NamedTuple):
    """One coder of one rollout: of the second half, a message each."""

    sizes: list[int]
    encode_ns: Times
    decode_ns: Times


class Raw(NamedTuple):
    """One message before coding, as others get it."""

    steps: Transitions
    whole: bytes
    once: bytes  # newest frames only


Coder = tuple[Callable[[Raw], bytes], Callable[[bytes, Raw], None]]


def roll(task: str, steps: int, seed: int) -> Rollout:
    """Play: a shipped bundle and random actions, held for a few steps, by turns; random actions alone without one."""
    env, rng = worlds.make(task), np.random.default_rng(seed)
    n_actions = int(env.action_space.n)
    policy = runtime = None
    if task in BUNDLES:
        policy = artifact.load((MODELS / f"{BUNDLES[task]}.edgert").read_bytes())
        runtime = open_runtime(policy)
    last = None if policy is None else np.full(policy.spec.n_exits - 1, np.inf, np.float32)
    obs, _ = env.reset(seed=seed)
    rows: list[tuple[U8, int, float, int]] = []
    q: list[F32] = []
    held = action = 0
    for i in range(steps):
        values = None
        if runtime is not None and last is not None:
            values = runtime.infer(obs, last).head
            q.append(values[:n_actions])
        if values is not None and i // SEGMENT % 2 == 0 and rng.random() > NOISE:
            action, held = int(np.argmax(values[:n_actions])), 0
        elif held <= 0:
            action, held = int(rng.integers(n_actions)), int(rng.geometric(0.2))
        held -= 1
        shown, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs.copy(), action, float(reward), int(terminated) | int(truncated) << 1))
        obs = env.reset()[0] if terminated or truncated else shown
    env.close()
    if runtime is not None:
        runtime.close()
    fields = list(zip(*rows, strict=True))
    done = Transitions(
        np.ascontiguousarray(np.stack(fields[0])),
        np.array(fields[1], np.uint8),
        np.array(fields[2], np.float32),
        np.array(fields[3], np.uint8),
    )
    players = "bundle and random" if runtime is not None else "random"
    return Rollout(task, done, np.stack(q) if q else None, players)


def messages(rollout: Rollout, batch: int) -> Iterator[Raw]:
    """The rollout in messages, also as bytes for coders that know nothing of it."""
    steps, stack = rollout.steps, rollout.task.startswith("ALE/")
    for at in range(0, len(steps.obs) // batch * batch, batch):
        here = slice(at, at + batch)
        now = Transitions(steps.obs[here], steps.actions[here], steps.rewards[here], steps.ended[here])
        records = np.empty(batch, TRANSITION)
        records["action"], records["ended"], records["reward"] = now.actions, now.ended, now.rewards
        told = [record.tobytes() for record in records]
        whole = b"".join(obs.tobytes() + record for obs, record in zip(now.obs, told, strict=True))
        once = whole
        if stack:
            once = b"".join(obs[..., -1].tobytes() + record for obs, record in zip(now.obs, told, strict=True))
        yield Raw(now, whole, once)


def zstd_stream(level: int, field: str) -> Coder:
    """Keeps its window from message to message."""
    writer = zstandard.ZstdCompressor(level=level).compressobj()
    reader = zstandard.ZstdDecompressor().decompressobj()

    def encode(raw: Raw) -> bytes:
        return writer.compress(getattr(raw, field)) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def decode(data: bytes, raw: Raw) -> None:
        if reader.decompress(data) != getattr(raw, field):
            raise AssertionError("zstd lost something")

    return encode, decode


def per_message(compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]) -> Coder:
    """Each message by itself."""

    def decode(data: bytes, raw: Raw) -> None:
        if decompress(data) != raw.whole:
            raise AssertionError("a coder lost something")

    return lambda raw: compress(raw.whole), decode


def ours(rollout: Rollout) -> Coder:
    """The stream codec, with the schema that the bundle would give."""
    shape, planes = rollout.steps.obs.shape[1:], rollout.task.startswith("MinAtar/")
    told = Schema("transitions", (shape[0], shape[1], shape[2]), planes, planes, int(rollout.steps.actions.max()) + 1)
    writer, reader = Encoder(told, 1), Decoder(told)

    def decode(data: bytes, raw: Raw) -> None:
        back: list[npt.NDArray[Any]] = list(reader.transitions(data))
        if any(a.tobytes() != np.asarray(b).tobytes() for a, b in zip(back, raw.steps, strict=True)):
            raise AssertionError("our codec lost something")

    return lambda raw: writer.transitions(raw.steps), decode


def ours_alone() -> Coder:
    """Codec 2, as questions to teachers use it."""
    codec = CODECS[2]

    def decode(data: bytes, raw: Raw) -> None:
        obs = raw.steps.obs
        if codec.decode_obs(data, len(obs), obs.shape[1:]).tobytes() != obs.tobytes():
            raise AssertionError("our codec lost something")

    return lambda raw: codec.encode_obs(raw.steps.obs), decode


def x265(shape: tuple[int, ...]) -> Coder:
    """A lossless grey film of the newest frames, none of them late; what else a transition has is sent as it is."""
    av: Any = importlib.import_module("av")
    writer, reader = av.CodecContext.create("libx265", "w"), av.CodecContext.create("hevc", "r")
    writer.height, writer.width = shape[:2]
    writer.pix_fmt, writer.framerate, writer.time_base = "gray", Fraction(60), Fraction(1, 60)
    writer.thread_count = reader.thread_count = 1
    threads = "pools=none:frame-threads=1"  # CPU time of other threads would not be counted
    writer.options = {
        "preset": "medium",
        "tune": "zerolatency",
        "x265-params": f"lossless=1:log-level=none:keyint=-1:{threads}",
    }
    lengths: deque[list[int]] = deque()

    def encode(raw: Raw) -> bytes:
        frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(obs[..., -1]), "gray") for obs in raw.steps.obs)
        packets = [bytes(packet) for frame in frames for packet in writer.encode(frame)]
        lengths.append([len(packet) for packet in packets])
        rest = raw.steps.actions.tobytes() + raw.steps.rewards.tobytes() + raw.steps.ended.tobytes()
        return b"".join(packets) + rest

    def decode(data: bytes, raw: Raw) -> None:
        shown, at = [], 0
        for n in lengths.popleft():
            shown += [frame.to_ndarray(format="gray") for frame in reader.decode(av.Packet(data[at : at + n]))]
            at += n
        if not np.array_equal(np.stack(shown), raw.steps.obs[..., -1]):
            raise AssertionError("x265 lost something")

    return encode, decode


def coders(rollout: Rollout, batch: int, slow: bool) -> dict[str, Coder]:
    """All that take turns."""
    whole = [raw.whole for raw in messages(rollout, batch)]
    samples = whole[: len(whole) // 2]
    zstd3, unzstd = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    found: dict[str, Coder] = {
        OURS: ours(rollout),
        OURS_ALONE: ours_alone(),
        "zlib -6 per message": per_message(lambda data: zlib.compress(data, 6), zlib.decompress),
        ZSTD3: per_message(zstd3.compress, unzstd.decompress),
        ZSTD9: zstd_stream(9, "whole"),
        DEDUP9: zstd_stream(9, "once"),
    }
    if slow:
        found["zstd -19 stream"] = zstd_stream(19, "whole")
        found["zstd -19 stream, frames once"] = zstd_stream(19, "once")
        if importlib.util.find_spec("brotli"):
            brotli: Any = importlib.import_module("brotli")
            found["brotli -5 per message"] = per_message(
                lambda data: bytes(brotli.compress(data, quality=5)), brotli.decompress
            )
        if rollout.task.startswith("ALE/") and importlib.util.find_spec("av"):
            found["x265 lossless, frames once"] = x265(rollout.steps.obs.shape[1:])
        if batch == 1:
            learnt = zstandard.train_dictionary(1 << 16, list(samples[:400]))
            small = zstandard.ZstdCompressor(level=9, dict_data=learnt)
            unsmall = zstandard.ZstdDecompressor(dict_data=learnt)
            found["zstd -9 with dictionary"] = per_message(small.compress, unsmall.decompress)
    return found


def race(rollout: Rollout, batch: int, slow: bool) -> dict[str, Coded]:
    """All coders by turns."""
    all_coders = coders(rollout, batch, slow)
    n = len(rollout.steps.obs) // batch
    found = {name: Coded([], [], []) for name in all_coders}
    raws = list(messages(rollout, batch))
    for start in range(0, n, TURN):
        turn = raws[start : start + TURN]
        for name, (encode, decode) in all_coders.items():
            sent = []
            for i, raw in enumerate(turn, start):
                before = time.thread_time_ns()
                data = encode(raw)
                after = time.thread_time_ns()
                sent.append(data)
                if i >= n // 2:
                    found[name].sizes.append(len(data))
                    found[name].encode_ns.append(after - before)
            for i, (data, raw) in enumerate(zip(sent, turn, strict=True), start):
                before = time.thread_time_ns()
                decode(data, raw)
                after = time.thread_time_ns()
                if i >= n // 2:
                    found[name].decode_ns.append(after - before)
    return found


def answers(rollout: Rollout) -> float | None:
    """Bytes a row of the teacher's Q-values, by 32, in the smaller of a stream and codec 2."""
    if rollout.q is None:
        return None
    writer = Encoder(schema.values(rollout.q.shape[1]), 1)
    parts = [rollout.q[at : at + 32] for at in range(0, len(rollout.q) - 31, 32)]
    sizes = [len(writer.values(part)) for part in parts]
    alone = [len(CODECS[2].encode_q(part)) for part in parts]
    return min(float(np.mean(sizes)), float(np.mean(alone))) / 32


def figures(rollout: Rollout, batch: int, found: dict[str, Coded]) -> dict[str, Any]:
    """What is kept of one race."""
    rows = {
        name: {
            "bytes_per_step": round(float(np.mean(coded.sizes)) / batch, 3),
            "wire_bytes_per_step": round((float(np.mean(coded.sizes)) + WIRE_BYTES) / batch, 3),
            "encode_us_p50": round(float(np.median(coded.encode_ns)) / batch / 1e3, 2),
            "encode_us_mean": round(float(np.mean(coded.encode_ns)) / batch / 1e3, 2),
            "decode_and_compare_us_p50": round(float(np.median(coded.decode_ns)) / batch / 1e3, 2),
        }
        for name, coded in found.items()
    }

    def smaller(name: str) -> float:
        return round(rows[name]["bytes_per_step"] / rows[OURS]["bytes_per_step"], 2)

    def slower(name: str) -> float:
        mine, theirs = np.array(found[OURS].encode_ns), np.array(found[name].encode_ns)
        return round(float(np.median(mine) / np.median(theirs)), 3)

    return {
        "task": rollout.task,
        "held_out": rollout.task in HELD_OUT,
        "players": rollout.players,
        "steps_per_message": batch,
        "coders": rows,
        "vs_zstd3_x": smaller(ZSTD3),
        "vs_zstd9_stream_x": smaller(ZSTD9),
        "vs_dedup_stream_x": smaller(DEDUP9),
        "time_vs_zstd9": slower(ZSTD9),
        "time_vs_zstd3": slower(ZSTD3),
    }


def summarise(races: list[dict[str, Any]], q_bytes: dict[str, float]) -> dict[str, Any]:
    """The figures of the table, over every game and both sizes of message, and by kind."""
    frames = [one for one in races if one["task"].startswith("ALE/")]
    batched = [one for one in races if one["steps_per_message"] == 32]

    def of(some: list[dict[str, Any]]) -> dict[str, float]:
        return {
            "codec_vs_zstd3_min_x": min(one["vs_zstd3_x"] for one in some),
            "codec_vs_zstd9_stream_min_x": min(one["vs_zstd9_stream_x"] for one in some),
            "codec_vs_dedup_stream_min_x": min(one["vs_dedup_stream_x"] for one in some),
            "codec_time_vs_zstd9": max(one["time_vs_zstd9"] for one in some),
            "codec_time_vs_zstd3": max(one["time_vs_zstd3"] for one in some),
        }

    def kind(prefix: str, batch: int, held_out: bool) -> list[dict[str, Any]]:
        return [
            one
            for one in races
            if one["task"].startswith(prefix) and one["steps_per_message"] == batch and one["held_out"] == held_out
        ]

    worst_up = max(one["coders"][OURS]["wire_bytes_per_step"] for one in batched)
    worst_down = max(q_bytes.values(), default=0.0) + WIRE_BYTES / 32
    groups = {
        f"{prefix.rstrip('/')}, {batch} a message, {'held out' if held_out else 'designed on'}": of(some)
        for prefix in ("ALE/", "MinAtar/")
        for batch in BATCHES
        for held_out in (False, True)
        if (some := kind(prefix, batch, held_out))
    }
    return {
        **of(races),
        "codec_encode_us_max": max(one["coders"][OURS]["encode_us_p50"] for one in frames),
        "wire_bytes_per_transition": round(worst_up + worst_down, 2),
        "groups": groups,
    }


def main(argv: list[str]) -> int:
    """Roll out, race, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench rlink codec", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="few steps of three games, no slow coders, nothing written"
    )
    parser.add_argument("--steps", type=int, default=3000, help="of each rollout")
    parser.add_argument("--tasks", nargs="+", default=[*DESIGNED_ON, *HELD_OUT])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "rlink-codec.json")
    options = parser.parse_args(argv)
    tasks = ["ALE/Pong-v5", "ALE/Boxing-v5", "MinAtar/Breakout-v1"] if options.quick else options.tasks
    steps = min(options.steps, 800) if options.quick else options.steps
    missing = [name for name in ("brotli", "av") if not importlib.util.find_spec(name)]
    print(f"not installed, so not raced: {', '.join(missing) or 'nothing'}; C codec: {kernel.NATIVE}")
    races: list[dict[str, Any]] = []
    q_bytes: dict[str, float] = {}
    for task in tasks:
        try:
            rollout = roll(task, steps, options.seed)
        except EdgertError as error:
            print(f"{task}: {error}")
            return 1
        told = answers(rollout)
        if told is not None:
            q_bytes[task] = round(told, 2)
        for batch in BATCHES:
            one = figures(rollout, batch, race(rollout, batch, not options.quick))
            races.append(one)
            print(f"\n{task}{' (held out)' if one['held_out'] else ''}, {batch} a message, {rollout.players}")
            for name, row in one["coders"].items():
                print(
                    f"  {name:<36} {row['bytes_per_step']:9.2f} B  wire {row['wire_bytes_per_step']:9.2f} B"
                    f"  encode {row['encode_us_p50']:8.1f} us  decode {row['decode_and_compare_us_p50']:8.1f} us"
                )
    summary = summarise(races, q_bytes)
    print("\n" + json.dumps(summary, indent=1))
    if not options.quick:
        known = {
            "edgert": commit(),
            "cpu": cpu_name(),
            "python": platform.python_version(),
            "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
            "steps": steps,
            "seed": options.seed,
            "not_installed": missing,
            "q_bytes_per_row": q_bytes,
        }
        options.out.write_text(json.dumps({"summary": summary, "how": known, "races": races}, indent=1) + "\n")
    return 0
