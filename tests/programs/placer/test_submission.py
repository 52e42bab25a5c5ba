"""Jobs on their way to their owner: files that come in chunks, and words that nobody vouches for."""

from __future__ import annotations

import selectors
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import wire
from edgert.config import Config, commented_default, parse
from edgert.errors import MessageError
from edgert.fleet import fetch
from edgert.learn.dqn import Batch
from edgert.ports import shards
from edgert.ports.process import Layout
from edgert.ports.ring import RingWriter
from edgert.programs.placer.own_jobs import OwnJobs
from edgert.programs.placer.submission import Submissions
from edgert.programs.placer.transport import Outgoing, Transport, chunk_topic

BUNDLE = Path(__file__).parents[3] / "models" / "breakout.edgert"


def shard() -> bytes:
    obs = (np.random.default_rng(3).random((200, 10, 10, 4)) < 0.1).astype(np.uint8)
    ones, zeros = np.ones(200, bool), np.zeros(200, np.float32)
    return shards.pack_shard(
        Batch(obs, np.zeros(200, np.int64), zeros, obs, ones, np.zeros((200, 3), np.float32), ones)
    )


class Way(Transport):
    """A way to the broker that leads nowhere."""

    def __init__(self) -> None:
        self.up, self.wanted, self.sent = True, set[str](), list[Outgoing]()
        self._fleet, self._me = "f", "me"

    def listen(self, wanted: list[str], unwanted: list[str]) -> None:
        self.wanted = (self.wanted | set(wanted)) - set(unwanted)

    def put(self, outgoing: Outgoing) -> None:
        self.sent.append(outgoing)


class In:
    """The way in of one device."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        text = commented_default(
            {
                "device.id": "me",
                "device.fleet": "f",
                "device.state_dir": str(folder),
                "device.run_dir": str(folder),
                "policy.bundle": str(BUNDLE),
                **settings,
            }
        )
        self.config: Config = parse(text, "test")
        self.layout, self.transport = Layout(self.config), Way()
        self.layout.make()
        self.own_jobs = OwnJobs(
            "me",
            folder / "placing",
            selectors.DefaultSelector(),
            lambda to, said: None,
            lambda offer, data: None,
            speed=1.0,
            stall_s=9.0,
        )
        self.submissions = Submissions(self.config, self.layout, self.own_jobs, self.transport)

    def submit(self, job: wire.PlaceSubmit) -> None:
        self.submissions.submit(job.id, wire.encode(job), 0.0)

    def refusal(self) -> str:
        return wire.decode(self.transport.sent[-1].payload, wire.PlaceJob)[0].why


FILES = {"bundle": BUNDLE.read_bytes(), "shard": shard()}
OFFERS = {name: shards.offer(name, data, id_="j1") for name, data in FILES.items()}
JOB = wire.PlaceSubmit(id="j1", steps=5, bundle=OFFERS["bundle"], shard=OFFERS["shard"])


def test_a_job_is_taken_on_when_its_files_are_here(tmp_path: Path) -> None:
    way = In(tmp_path)
    way.submit(JOB)
    way.submit(JOB)
    assert not way.own_jobs.records and way.transport.wanted
    while way.transport.wanted:
        name = sorted(way.transport.wanted)[0].rpartition("/")[2]
        offer = next(each for each in OFFERS.values() if each.sha256.startswith(name.partition(".")[0]))
        index = fetch.index_of(name, offer)
        assert index is not None and chunk_topic("f", "-", offer.sha256, index) in way.transport.wanted
        start = index * offer.chunk_bytes
        way.submissions.chunk(name, FILES[offer.name][start : start + offer.chunk_bytes], 0.0)
    assert way.own_jobs.records["j1"].state == "new"
    way.submit(JOB)
    assert not way.transport.wanted and not way.transport.sent


def test_a_job_of_what_the_device_has_lived_through(tmp_path: Path) -> None:
    way = In(tmp_path)
    way.submit(wire.PlaceSubmit(id="j1", steps=5))
    assert "nothing was recorded here" in way.refusal()
    writer = RingWriter(way.layout.ring, (10, 10, 4), 1000, "test")
    rng = np.random.default_rng(1)
    for _ in range(400):
        obs = (rng.random((10, 10, 4)) < 0.1).astype(np.uint8)
        writer.append(obs, episode=1, action=int(rng.integers(3)), reward=0.5, flags=0, exit=0)
    way.submit(wire.PlaceSubmit(id="j2", steps=5))
    assert way.own_jobs.records["j2"].history[0]["rows"] > 300


def test_a_job_that_cannot_be_done_is_refused_in_words(tmp_path: Path) -> None:
    way = In(tmp_path)
    for name, data in FILES.items():
        shards.keep(way.own_jobs.files, data)
        assert OFFERS[name].sha256
    way.submit(wire.PlaceSubmit(id="j3", steps=5, hyper={"speed": 1.0}, bundle=OFFERS["bundle"], shard=OFFERS["shard"]))
    assert "no such setting" in way.refusal() and not way.own_jobs.records
    way.submit(wire.PlaceSubmit(id="j4", steps=5, bundle=OFFERS["shard"], shard=OFFERS["shard"]))
    assert way.refusal()


def test_a_name_is_the_one_it_was_sent_under(tmp_path: Path) -> None:
    way = In(tmp_path)
    way.submissions.submit("other", wire.encode(JOB), 0.0)
    assert not way.transport.wanted
    with pytest.raises(MessageError):
        way.submissions.submit("j1", b"nothing", 0.0)


def test_where_there_are_keys_nothing_unsigned_counts(tmp_path: Path) -> None:
    from edgert.ports.keyring import Keyring

    ring = Keyring(tmp_path / "keys")
    ring.new("me", ("keys", "command"))
    keys = next(path for path in (tmp_path / "keys").iterdir() if path.suffix == ".cbor")
    way = In(tmp_path / "state", **{"trust.keys_file": str(keys)})
    with pytest.raises(MessageError):
        way.submit(JOB)
    signed = ring.say(wire.encode(JOB), fleet="f", to="other", valid_s=60.0)
    with pytest.raises(MessageError, match="not-for-this-device"):
        way.submissions.submit("j1", wire.encode(signed), 0.0)
    signed = ring.say(wire.encode(JOB), fleet="f", to="me", valid_s=60.0)
    way.submissions.submit("j1", wire.encode(signed), 0.0)
    assert way.transport.wanted
