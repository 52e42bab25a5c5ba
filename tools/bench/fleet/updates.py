"""A policy for many devices whose links lose messages and whose power is cut: do all take it up, and at what price?

The devices' own code (`fleet.policies`, with real signatures) on simulated links, disks and time: no broker, no
processes. What crosses a link is counted here, message by message, and not by the code that is measured.

    python -m tools.bench.fleet.updates --devices 200 --loss 0.2 --kill 0.01
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgert import bundle, offers, wire
from edgert.config import parse
from edgert.fleet import fetch, policies, trust, update
from edgert.ports.keyring import Keyring
from edgert.ports.signing import verify

HOUSE = Path(__file__).parents[3]
PATIENCE_S = 60.0
PACKET_BYTES = 10
"""Fixed header, packet id and property length of a packet; its topic and payload are counted as they are."""
ASK_BYTES = 14
"""SUBSCRIBE or UNSUBSCRIBE without the topic, and its acknowledgement (MQTT 5.0, 3.8 to 3.11)."""
STEPS_MAX = 200_000


class Device:
    """One device: its disk outlives it, and nothing else does."""

    def __init__(self, number: int, keys: wire.KeyList, manifest: bundle.Manifest) -> None:
        """Begin with an empty disk."""
        text = f'[device]\nid = "d{number}"\nfleet = "f"\n[policy]\nbundle = "/x"\n'
        self.config, self.keys, self.manifest = parse(text, "bench"), keys, manifest
        self.note = b""
        self.chunks: dict[int, bytes] = {}
        self.kills = self.starts = self.crossed_bytes = self.lost_bytes = 0
        self.networks: set[int] = set()
        self.boot()

    def boot(self) -> None:
        """Power on: what was not written down is forgotten."""
        self.state, _ = policies.open_policies(
            self.config, self.manifest, board=None, keys=self.keys, found=policies.Found(note=self.note)
        )
        self.wanted: set[int] = set()
        self.starts += 1

    @property
    def stage(self) -> str:
        """Where its update stands."""
        return self.state.updates.document.stage

    def receive(self, topic: wire.Topic, payload: bytes, now_s: float) -> None:
        """A message that made it."""
        self.crossed_bytes += PACKET_BYTES + len(str(topic)) + len(payload) + len(wire.CONTENT_TYPE) + 8
        self.state, effects = policies.received(self.state, topic, payload, now_s=now_s, wall_s=None, verify=verify)
        self.perform([*effects], now_s)

    def tell(self, event: Any, now_s: float) -> None:
        """Something else happened."""
        self.state, effects = policies.stepped(self.state, event, now_s)
        self.perform([*effects], now_s)

    def perform(self, effects: list[Any], now_s: float) -> None:
        """The shell, in memory."""
        for effect in effects:
            match effect:
                case offers.Note(data):
                    self.note = data
                    self.tell(offers.Noted(), now_s)
                case offers.Open(offer):
                    self.tell(offers.Found(offer.sha256, tuple(sorted(self.chunks)), 1 << 40), now_s)
                case offers.Ask(index, sha256):
                    self.wanted.add(index)
                    self.crossed_bytes += ASK_BYTES + len(fetch.topic("f", sha256, index))
                case offers.Leave(index, sha256):
                    self.wanted.discard(index)
                    self.crossed_bytes += ASK_BYTES + len(fetch.topic("f", sha256, index))
                case offers.Keep(index, data):
                    self.chunks[index] = data
                    self.tell(offers.Kept(index), now_s)
                case offers.Check(offer):
                    data = b"".join(self.chunks[k] for k in range(fetch.count(offer)))
                    found = bundle.read(data)
                    self.tell(policies.check(self.state, found, offer, "/new", wall_s=None, verify=verify), now_s)
                case update.Activate(generation):
                    self.networks.add(generation)
                case update.Report():
                    self.crossed_bytes += len(wire.encode(policies.report(self.state))) + 60
                case _:
                    pass


def lives(
    device: Device, signed: bytes, chunks: list[bytes], rng: random.Random, loss: float, kill: float
) -> Iterator[str]:
    """One device's life, a turn at a time, until its policy is kept."""
    now_s, linked = 0.0, False
    for _ in range(STEPS_MAX):
        now_s += 0.1
        if rng.random() < kill:
            device.boot()
            device.kills += 1
            linked = False
        if not linked:
            linked = True
            device.tell(update.LinkUp(), now_s)
            # The broker keeps the offer, and the session too, of which retain handling 1 makes use (MQTT 5.0, 3.8.3.1).
            if not policies.offer_known(device.state):
                device.receive(wire.Topic("f", device.config.device.id, "policy", "offer"), signed, now_s)
        elif device.wanted:
            index = rng.choice(sorted(device.wanted))
            topic = wire.parse_topic(fetch.topic("f", hashlib.sha256(b"".join(chunks)).hexdigest(), index))
            payload = wire.encode(wire.PolicyChunk(data=chunks[index]))
            if rng.random() < loss:
                device.lost_bytes += len(payload)
                device.wanted.discard(index)
            else:
                device.wanted.discard(index)
                device.receive(topic, payload, now_s)
        elif device.state.updates.on_trial is not None:
            device.tell(update.Verdict(device.state.updates.on_trial, "kept", "as it played"), now_s)
        elif device.stage in ("kept", "refused", "held", "rolled-back"):
            return
        else:
            now_s += PATIENCE_S
            device.tell(fetch.Tick(), now_s)
        yield device.stage


def run(*, devices: int, loss: float, kill: float, seed: int, model: str = "breakout") -> dict[str, Any]:
    """Give one bundle to many devices.

    Args:
        devices: how many.
        loss: share of the messages with chunks that are lost.
        kill: how likely the power is cut, a turn.
        seed: of everything drawn.
        model: name of a shipped bundle.

    Returns:
        Figures.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        ring = Keyring(Path(folder) / "keys")
        ring.new("bench", ())
        plain = (HOUSE / "models" / f"{model}.edgert").read_bytes()
        found = bundle.read(plain)
        release = trust.Release(version=1)
        seal = trust.Seal(release=release, signatures=(ring.signer("bundle").seal(found.encoded, release),))
        data = bundle.with_signature(plain, trust.encode_seal(seal))
        size = fetch.CHUNK_BYTES
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        offer = wire.PolicyOffer(
            id="bench",
            name=model,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            chunk_bytes=size,
            hashes=fetch.hashes(data, size),
            version=1,
        )
        keys = ring.keys()
        assert keys is not None
        fleet = [Device(number, keys, found.manifest) for number in range(devices)]
        for device in fleet:
            said = ring.say(wire.encode(offer), fleet="f", to=device.config.device.id, valid_s=1e9)
            for _ in lives(device, wire.encode(said), chunks, rng, loss, kill):
                pass
    ratios = sorted(device.crossed_bytes / len(data) for device in fleet)
    return {
        "devices": devices,
        "bundle_bytes": len(data),
        "loss": loss,
        "kill": kill,
        "seed": seed,
        "kept": sum(device.stage == "kept" for device in fleet),
        "held": sum(device.stage == "held" for device in fleet),
        "duplicate_effects": sum(len(device.networks) > 1 for device in fleet),
        "power_cuts": sum(device.kills for device in fleet),
        "lost_messages_frac": round(
            sum(d.lost_bytes for d in fleet) / sum(d.lost_bytes + d.crossed_bytes for d in fleet), 4
        ),
        "bytes_ratio_mean": round(sum(ratios) / len(ratios), 4),
        "bytes_ratio_max": round(ratios[-1], 4),
        "bytes_ratio_with_lost_mean": round(
            sum((d.crossed_bytes + d.lost_bytes) / len(data) for d in fleet) / len(fleet), 4
        ),
    }


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.fleet.updates", description=__doc__)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--loss", type=float, default=0.2, help="share of the chunks that are lost (0.2)")
    parser.add_argument("--kill", type=float, default=0.01, help="chance of a power cut, a turn (0.01)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="breakout")
    args = parser.parse_args()
    print(json.dumps(run(devices=args.devices, loss=args.loss, kill=args.kill, seed=args.seed, model=args.model)))


if __name__ == "__main__":
    main()
