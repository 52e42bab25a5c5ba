"""A million messages that nobody meant: does anything crash, and does anything grow?

Valid messages of every schema are bent, cut, spliced and filled with other types, and go to a device's guard under the
topics that it listens on, and to the decoders that the rest of the fleet uses. Whatever is not refused as a
`MessageError` inside has crashed.
"""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import msgspec

from edgert import bundle, bus, control, guard, wire
from edgert import device as devices
from edgert.config import parse
from edgert.errors import MessageError
from edgert.fleet import fetch, policies
from edgert.fleet.kinds import Kind
from edgert.fleet.ledger import Found
from edgert.ports.process import usage

HOUSE = Path(__file__).parents[3]
MODEL, GOLDEN = HOUSE / "models" / "breakout.edgert", HOUSE / "tests" / "golden" / "wire"
CONFIG = '[device]\nid = "d"\nfleet = "f"\n[policy]\nbundle = "/x"\n'
SHA = "ab" * 32
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 31, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.0, -0.0, 1e308, float("inf"), float("nan"), "",
    "\0", "x" * 5000, "../../etc/passwd", "+/#", b"", b"\xff" * 300, [], {}, [[[[[]]]]], {"a": {"b": {}}}, ["x"] * 100,
)  # fmt: skip
ODD = tuple(cbor2.dumps(each) for each in _ODD)
"""Coded, so that each use is a value of its own."""
WARM = 0.3
"""Share of the messages after which growth is counted: pools, caches and the ledger's memory fill up first."""
BURST = 256


def samples(now_s: float) -> list[tuple[str, bytes]]:
    """Valid messages: (topic, payload); those that every schema has among the tests come without a topic."""
    offer = wire.PolicyOffer(
        id="o", name="n", sha256=SHA, size_bytes=9000, chunk_bytes=4096, hashes=bytes(3 * fetch.HASH_BYTES), version=2
    )
    order = wire.JobOrder(id="j", kind=Kind.UPLOAD.value, issued_s=now_s, when={"battery_above_frac": 0.5})
    settings = {
        "goals": {"max_power_w": 3.0},
        "labels": {"site": "north"},
        "schedules": {"nightly": {"kind": "train", "cron": "0 3 * * *", "tz": "Europe/Berlin"}},
        "exits": {"thresholds": [0.5]},
    }
    answer = wire.KnowAnswer(teacher="t", count=1, codec=0, data=b"\0" * 16)
    here = [
        ("know/answer/-", answer),
        ("cmd/exits/-", wire.ExitsCommand(id="e", thresholds=(0.5, 0.6), valid_s=5.0)),
        ("cmd/goals/-", wire.GoalsCommand(id="g", goals={"max_power_w": 3.0}, valid_s=9.0)),
        ("cmd/ack/-", wire.EventAck(stream="s", up_to=3)),
        ("twin/desired/-", wire.TwinDesired(epoch=1, version=1, settings=settings)),
        ("job/order/j", order),
        ("job/cancel/j", wire.JobCancel(id="j", issued_s=now_s)),
        (
            "policy/offer/-",
            wire.Signed(fleet="f", to="d", counter=0, not_after_s=now_s + 9, payload=wire.encode(offer), key="0" * 16),
        ),
    ]
    said: list[tuple[str, Any]] = [(f"{wire.ROOT}/f/d/{where}", message) for where, message in here]
    keys = wire.KeyList(serial=1, keys=(wire.Key(id="0" * 16, public=bytes(32), uses=("command",)),))
    said += [
        (f"{wire.ROOT}/f/-/policy/keys/1", keys),
        (fetch.topic("f", SHA, 0), wire.PolicyChunk(data=b"x" * 100)),
        (f"{wire.ROOT}/f/d/cmd/rebirth/-", wire.Rebirth()),
    ]
    here_too = [("", path.read_bytes()) for path in sorted(GOLDEN.glob("*.cbor"))]
    return [*((topic, wire.encode(message)) for topic, message in said), *here_too]


def places(document: Any) -> list[tuple[Any, ...]]:
    """The way to every value in a document."""
    found: list[tuple[Any, ...]] = []
    todo: list[tuple[Any, tuple[Any, ...]]] = [(document, ())]
    while todo:
        each, way = todo.pop()
        inner = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list) else ()
        below = [(value, (*way, key)) for key, value in inner]
        found += [further for _, further in below]
        todo += below
    return found


class Sample(NamedTuple):
    """A valid message, its topic (none for those that devices do not hear), and the ways to its values."""

    topic: str
    payload: bytes
    schema: Any
    ways: list[tuple[Any, ...]]


def bent(sample: Sample, others: list[Sample], rng: random.Random) -> bytes:
    """Another message, made of valid ones."""
    payload, chance = sample.payload, rng.random()
    at = int(rng.random() * len(payload))
    if chance < 0.1:
        return rng.randbytes(rng.randrange(64))
    if chance < 0.2:
        return payload[:at]
    if chance < 0.3:
        other = rng.choice(others).payload
        return payload[:at] + other[rng.randrange(len(other)) :]
    if chance < 0.5:
        flipped = bytearray(payload)
        for _ in range(rng.choice((1, 1, 2, 8))):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        return bytes(flipped)
    if chance < 0.6:
        return payload[:at] + rng.randbytes(rng.randrange(1, 9)) + payload[at:]
    document = cbor2.loads(payload)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _bend(document, rng.choice(sample.ways), rng)
    return cbor2.dumps(document)


def _bend(document: Any, way: tuple[Any, ...], rng: random.Random) -> None:
    holder = document
    try:
        for key in way[:-1]:
            holder = holder[key]
        chance = rng.random()
        if chance < 0.2:
            del holder[way[-1]]
        elif chance < 0.4 and isinstance(holder, dict):
            holder[rng.choice(("x", "id", "v", "schema", "", "kind"))] = cbor2.loads(rng.choice(ODD))
        else:
            holder[way[-1]] = cbor2.loads(rng.choice(ODD))
    except (KeyError, IndexError, TypeError):
        return  # what was there has been bent away


class Target:
    """A device that hears all of it; what it wants done is done, as far as that makes it remember things."""

    def __init__(self) -> None:
        """Begin."""
        config = parse(CONFIG, "fuzz")
        manifest = bundle.read(MODEL.read_bytes()).manifest
        world = control.open_world(
            config, task="t", n_exits=len(manifest.exits), note=None, streams={"events": ("s", 1, 5)}, now_s=0.0
        )
        device, _ = devices.open_device(world, {}, {}, {}, dict[str, Found](), 0.0)
        state, _ = policies.open_policies(config, manifest, board=None, keys=None, found=policies.Found())
        self.guard = guard.Guard(device=device, policies=state, verify=lambda *_: False)
        self.step(bus.LinkUp(), 0.0)
        self.step(bus.Timed(time.time(), "b"), 0.0)

    def step(self, event: Any, now_s: float) -> None:
        """An event, and the answers of a disk that works."""
        todo = [event]
        while todo:
            self.guard, effects = guard.step(self.guard, todo.pop(), now_s)
            for effect in effects:
                match effect:
                    case bus.WriteJob(id_):
                        todo.append(bus.JobWritten(id_))
                    case bus.DoJob(id_):
                        todo.append(bus.JobDone(id_))
                    case _:
                        pass


def run(*, messages: int, seed: int = 1) -> dict[str, Any]:
    """Send them.

    Args:
        messages: how many.
        seed: of everything drawn.
    """
    rng, begun_s = random.Random(seed), time.time()
    valid = samples(begun_s)
    kinds: dict[str, Any] = {str(each.__struct_config__.tag): each for each in wire.Message.__args__}
    every = []
    for topic, payload in valid:
        document = cbor2.loads(payload)
        every.append(Sample(topic, payload, kinds[document["schema"]], places(document)))
    topics = [each.topic for each in every if each.topic]
    target = Target()
    crashes: Counter[str] = Counter()
    refused = accepted = 0
    warm_bytes = 0
    now_s = 0.0
    for k in range(messages):
        sample = rng.choice(every)
        payload, topic = bent(sample, every, rng), sample.topic
        if rng.random() < 0.05:
            topic = rng.choice(
                [*topics, topic + "/x", topic.replace("/d/", "/e/"), rng.randbytes(20).hex(), topic.upper()]
            )
        elif topic.startswith(f"{wire.ROOT}/f/d/job") and rng.random() < 0.5:
            # Its id is in the topic as well: without a match nothing below would ever be reached.
            topic = topic.rpartition("/")[0] + f"/j{k}"
            payload = payload.replace(b"bidaj", b"bid" + cbor2.dumps(f"j{k}"), 1)
        try:
            if topic:
                target.step(bus.Received(topic, payload, b"", rng.random() < 0.1), now_s)
            else:
                wire.decode(payload, sample.schema)
                accepted += 1
        except MessageError:
            refused += 1
        except Exception:
            crashes[traceback.format_exc(limit=-3)] += 1
        if k % BURST == 0:
            now_s += 1.0
            target.step(bus.Tick(), now_s)
            target.step(bus.Timed(begun_s + now_s, "b"), now_s)
        if k == int(WARM * messages):
            gc.collect()
            warm_bytes = usage()[1]
    gc.collect()
    counters = target.guard.device.world.counters
    return {
        "fuzz_messages": messages,
        "fuzz_crashes": sum(crashes.values()),
        "crashes": dict(crashes.most_common(5)),
        "grown_bytes": usage()[1] - warm_bytes,
        "state_bytes": len(msgspec.json.encode(msgspec.to_builtins(target.guard.device.duties.twin))),
        "refused_by_decoders": refused,
        "accepted_by_decoders": accepted,
        "counted_by_the_device": {name: count for name, count in counters.items() if count > 0},
        "jobs_open": len(target.guard.device.duties.ledger.open),
        "jobs_ended": len(target.guard.device.duties.ledger.ended),
        "seed": seed,
        "took_s": round(time.time() - begun_s, 1),
    }
