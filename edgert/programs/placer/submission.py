"""Training jobs on their way to their owner: who may submit them, or take what they gave, and their files."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import numpy as np

from edgert import bundle as bundles
from edgert import wire
from edgert.config import Config
from edgert.errors import ArtifactError, ConfigError, MessageError, StoreError
from edgert.fleet import fetch, trust
from edgert.learn.dqn import Batch
from edgert.learn.replay import Replay
from edgert.offers import Arrived, Ask
from edgert.ports import shards
from edgert.ports.credentials import credential
from edgert.ports.process import Layout, identity, read_base
from edgert.ports.ring import TERMINATED, TRUNCATED, RingReader
from edgert.ports.signing import read_keys, verify
from edgert.programs.placer.host import Fetching
from edgert.programs.placer.own_jobs import OwnJobs
from edgert.programs.placer.transport import Outgoing, Transport, chunk_topic

REPLAY_ROWS = 4000
REFUSAL_EXPIRY_S = 86_400
FROM = "-"
"""Instead of a device: whoever submits lays files down for the whole fleet."""

log = logging.getLogger("edgert.placer")


class Coming(NamedTuple):
    """A job on its way here, with its files; None for those that are here."""

    submitted: wire.PlaceSubmit
    bundle: Fetching | None
    shard: Fetching | None


class Submissions:
    """The way in.

    Blocks: while it writes and hashes files.
    """

    def __init__(self, config: Config, layout: Layout, own_jobs: OwnJobs, transport: Transport) -> None:
        """Nothing comes yet.

        Raises:
            ConfigError: the keys cannot be used.
        """
        self._config, self._layout, self._own_jobs, self._transport = config, layout, own_jobs, transport
        self._keys = None if config.trust.keys_file is None else read_keys(credential(config.trust.keys_file))
        self._coming: dict[str, Coming] = {}

    def submit(self, id_: str, payload: bytes, now_s: float) -> None:
        """Somebody submits a job; said again, nothing happens again.

        Raises:
            MessageError: it is no such message, or nobody vouches for it who must.
        """
        submitted, _ = wire.decode(self._vouched(payload), wire.PlaceSubmit)
        if submitted.id != id_ or id_ in self._own_jobs.records or id_ in self._coming:
            return
        files = self._own_jobs.files
        try:
            bundle, shard = (
                None if offer is None else Fetching(files, offer) for offer in (submitted.bundle, submitted.shard)
            )
        except StoreError as error:
            self._refuse(submitted, str(error))
            return
        self._coming[id_] = Coming(submitted, bundle, shard)
        self.step(fetch.Up() if self._transport.up else fetch.Down(), now_s)

    def _vouched(self, payload: bytes) -> bytes:
        """What a message says, where somebody vouches for it who must.

        Raises:
            MessageError: nobody does.
        """
        if self._keys is None:
            return payload
        signed, _ = wire.decode(payload, wire.Signed)
        device = self._config.device
        audience = trust.Audience(device.fleet, device.id, device.labels)
        # A job of one name is done once and taken once for ever: an old message changes nothing and needs no memory.
        _, refusal = trust.judge(signed, self._keys, trust.Memory(), audience, now_s=time.time(), verify=verify)
        if refusal is not None:
            raise MessageError(f"{refusal.code}: {refusal.why}")
        return signed.payload

    def take(self, id_: str, payload: bytes) -> None:
        """What a job of this device gave is to act here; said again, nothing happens again.

        Raises:
            MessageError: it is no such message, nobody vouches for it who must, or it cannot act here.
        """
        told, _ = wire.decode(self._vouched(payload), wire.PlaceTake)
        record = self._own_jobs.records.get(id_)
        if told.id != id_ or record is None:
            raise MessageError(f"no job {id_} of this device to take the result of")
        try:
            own, (began,) = (
                read_base(self._config, self._layout),
                shards.read_files([self._own_jobs.path(record.bundle)]),
            )
            alike = identity(bundles.read(own).manifest) == identity(bundles.read(began).manifest)
        except (ArtifactError, ConfigError, StoreError) as error:
            raise MessageError(f"job {id_}: {error}") from error
        if not alike:
            raise MessageError(f"job {id_} began from another network than the one installed here: it cannot take over")
        self._own_jobs.take(record)

    def _refuse(self, submitted: wire.PlaceSubmit, why: str) -> None:
        log.warning("job %s: %s", submitted.id, why)
        owner = self._config.device.id
        said = wire.PlaceJob(id=submitted.id, owner=owner, state="failed", why=why[:500], steps=submitted.steps)
        topic = self._transport.topic("job", submitted.id)
        self._transport.put(Outgoing(topic, wire.encode(said), 1, REFUSAL_EXPIRY_S, retain=True))

    def step(self, event: fetch.Up | fetch.Down | fetch.Tick, now_s: float) -> None:
        """The link came or went, or time passed."""
        for id_, coming in list(self._coming.items()):
            files = [each for each in (coming.bundle, coming.shard) if each is not None and each.path is None]
            self._advance(id_, coming, [(each, event) for each in files], now_s)

    def chunk(self, name: str, data: bytes, now_s: float) -> None:
        """A chunk of a file came; `name` is the last segment of its topic."""
        for id_, coming in list(self._coming.items()):
            events: list[tuple[Fetching, fetch.Event]] = []
            for each in (coming.bundle, coming.shard):
                index = None if each is None else fetch.index_of(name, each.state.offer)
                if each is not None and index is not None and each.path is None:
                    events.append((each, Arrived(index, data)))
            if events:
                self._advance(id_, coming, events, now_s)

    def _advance(self, id_: str, coming: Coming, events: list[tuple[Fetching, fetch.Event]], now_s: float) -> None:
        fleet = self._config.device.fleet
        try:
            for each, event in events:
                ask, leave = list[str](), list[str]()
                for effect in each.step(event, now_s):
                    topic = chunk_topic(fleet, FROM, effect.sha256, effect.index)
                    (ask if isinstance(effect, Ask) else leave).append(topic)
                self._transport.listen(ask, leave)
            if all(each is None or each.path is not None for each in (coming.bundle, coming.shard)):
                del self._coming[id_]
                self._take_on(coming)
        except (ArtifactError, StoreError) as error:
            self._coming.pop(id_, None)
            self._refuse(coming.submitted, str(error))

    def _take_on(self, coming: Coming) -> None:
        bundle, shard = coming.bundle, coming.shard
        if bundle is None or bundle.path is None:
            network = read_base(self._config, self._layout)
        else:
            (network,) = shards.read_files([bundle.path])
        if shard is None or shard.path is None:
            rows = shards.pack_shard(self._lived())
        else:
            (rows,) = shards.read_files([shard.path])
        why = self._own_jobs.submit(coming.submitted, network, rows, time.time())
        if why:
            self._refuse(coming.submitted, why)

    def _lived(self) -> Batch:
        """What the actor here has lived through lately, as something to train on.

        Raises:
            ArtifactError: too little.
        """
        reader = RingReader(self._layout.ring)
        newest, shape = reader.newest_seq(), reader.obs_shape
        if newest < 2 or shape is None:
            raise ArtifactError("nothing was recorded here yet: name a shard to train on")
        records = reader.read(max(1, newest - REPLAY_ROWS), newest)
        replay = Replay(REPLAY_ROWS + 1, shape, self._n_actions())
        ended = records.flags
        replay.add(
            records.seq.astype(np.int64),
            records.obs,
            records.action,
            records.reward,
            (ended & TERMINATED) > 0,
            (ended & TRUNCATED) > 0,
            records.log_prob,
        )
        return replay.newest(REPLAY_ROWS).batch

    def _n_actions(self) -> int:
        return bundles.read(read_base(self._config, self._layout)).manifest.action.n
