"""The operator's side of policies: publish a bundle, offer it to devices in waves, and hear what became of it.

What is written down is enough for another run to go on; every message is retained or repeated, so going on twice
changes nothing. It may be killed at any time: devices that were offered a policy go on without it.
"""

from __future__ import annotations

import hashlib
import os
import select
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from edgert import bundle, wire
from edgert.errors import ConfigError, LinkError, MessageError
from edgert.fleet import fetch, rollout, trust
from edgert.ports.ipc import single_instance
from edgert.ports.keyring import Keyring
from edgert.ports.link import Address, LinkUp, Published, Received
from edgert.ports.mqtt import Mqtt
from edgert.ports.store import store_error, write_atomic

VALID_S = 30 * 86_400
"""Offers and chunks are gone from the broker after this: a device that was away for longer is offered it anew."""
QUIET_S = 1.0
"""Retained reports have all come once none did for so long."""
NOBODY = "0" * 16
"""Key of what nobody signed."""
Wish = Literal["pause", "resume", "abort"]
"""What a person wants of a rollout that perhaps another process drives."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as it is written down.

    Attributes:
        fleet: whose.
        offer: of the policy, but for the device.
        rollout: where it stands.
    """

    fleet: str
    offer: wire.PolicyOffer
    rollout: rollout.Rollout


def fate_of(report: wire.PolicyReport) -> rollout.Fate:
    """What a device's report means for a rollout."""
    if report.stage == "kept" or report.stage == "rolled-back" or report.stage == "refused":
        return report.stage  # type: ignore[return-value]  # mypy does not narrow a str by comparing it
    return "offered"


def make_offer(
    data: bytes, *, id_: str, release: int | None = None, url: str = "", budget_bytes: int = 0
) -> wire.PolicyOffer:
    """What is said of a bundle.

    Args:
        data: the file.
        id_: of the rollout.
        release: version of a bundle that nobody signed.
        url: where else it can be had.
        budget_bytes: most bytes over a device's link for it; 0 for 1.02 times its size.

    Raises:
        ArtifactError: it is no bundle.
        ConfigError: a release was named, and the signature says another.
    """
    found = bundle.read(data)
    seal = trust.read_seal(found)
    if seal is not None and release not in (None, seal.release.version):
        raise ConfigError(f"--release {release}: the bundle is signed as release {seal.release.version}")
    version = seal.release.version if seal else release or int(time.time())
    return wire.PolicyOffer(
        id=id_,
        name=found.manifest.name[:100],
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=fetch.CHUNK_BYTES,
        hashes=fetch.hashes(data, fetch.CHUNK_BYTES),
        version=version,
        url=url,
        budget_bytes=budget_bytes,
    )


class Operator:
    """One connection of a person to the broker of a fleet.

    Blocks: all methods but `reports`, each up to a patience.
    """

    def __init__(self, url: str | Address, fleet: str, ring: Keyring | None, patience_s: float = 20.0) -> None:
        """Connect.

        Args:
            url: of the broker.
            fleet: whose.
            ring: keys to sign with; None signs nothing.
            patience_s: with the broker.

        Raises:
            ConfigError: the url is wrong.
            LinkError: the broker cannot be reached.
        """
        self.fleet, self._ring, self._patience_s = fleet, ring, patience_s
        self.devices: dict[str, wire.PolicyReport] = {}
        self._confirmed: set[object] = set()
        self._refused: dict[object, int] = {}
        self._heard_s = time.monotonic()
        name = f"edgert-operator-{hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:12]}"
        self._mqtt = Mqtt(url, name, session_expiry_s=0, max_queue_bytes=4 << 20).start()
        self._mqtt.subscribe([(str(wire.Topic(fleet, "+", "policy", "report")), 1)])
        if not self.wait(self._mqtt.is_up, patience_s):
            self._mqtt.close()
            raise LinkError(f"no broker within {patience_s:g} s")

    def close(self) -> None:
        """Leave."""
        self._mqtt.close()

    def turn(self, timeout_s: float) -> None:
        """Hear what there is to hear."""
        poller = select.poll()
        poller.register(self._mqtt.fileno(), select.POLLIN)
        poller.poll(1000 * timeout_s)
        for event in self._mqtt.events():
            match event:
                case Published(token=token, ok=ok, reason_code=code):
                    self._confirmed.add(token)
                    if not ok:
                        self._refused[token] = code
                case Received():
                    self._hear(event)
                case LinkUp():
                    self._heard_s = time.monotonic()
                case _:
                    pass

    def _hear(self, event: Received) -> None:
        try:
            device = wire.parse_topic(event.topic).device
            self.devices[device] = wire.decode(event.payload, wire.PolicyReport)[0]
            self._heard_s = time.monotonic()
        except MessageError:
            return  # a stranger's, or of a later version: that device is not known here

    def wait(self, condition: Callable[[], object], patience_s: float) -> bool:
        """Turn until it is true; False when it does not become so in time."""
        end_s = time.monotonic() + patience_s
        while not condition():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            self.turn(min(left_s, 0.2))
        return True

    def gather(self) -> dict[str, wire.PolicyReport]:
        """Every device that ever told the broker how it stands."""
        self._heard_s = time.monotonic()
        self.wait(lambda: time.monotonic() - self._heard_s > QUIET_S, self._patience_s)
        return dict(self.devices)

    def publish_bundle(self, offer: wire.PolicyOffer, data: bytes) -> None:
        """Put every chunk where devices look for it.

        Raises:
            LinkError: the broker does not take them.
        """
        for index in range(fetch.count(offer)):
            at = index * offer.chunk_bytes
            payload = wire.encode(wire.PolicyChunk(data=data[at : at + offer.chunk_bytes]))
            self._publish(fetch.topic(self.fleet, offer.sha256, index), payload, ("chunk", index))
        tokens: set[object] = {("chunk", index) for index in range(fetch.count(offer))}
        if not self.wait(lambda: tokens <= self._confirmed, self._patience_s * 3):
            raise LinkError("the broker did not take every chunk of the bundle")
        self._check(tokens)

    def offer(self, offer: wire.PolicyOffer, devices: Iterable[str]) -> None:
        """Offer a policy to these devices.

        Raises:
            ConfigError: there is no key to sign with.
            LinkError: the broker does not take it.
        """
        for device in devices:
            self._say(device, wire.encode(self._signed(wire.encode(offer), device)))

    def withdraw(self, devices: Iterable[str]) -> None:
        """Take offers back.

        Raises:
            LinkError: the broker does not take it.
        """
        for device in devices:
            self._say(device, b"")

    def publish_keys(self) -> int:
        """Put every list of keys where devices find it; how many there are.

        Raises:
            ConfigError: there are none.
            LinkError: the broker does not take them.
        """
        lists = self._ring.lists() if self._ring else []
        if not lists:
            raise ConfigError("no keys to publish: `edgert key new` makes one")
        tokens = set[object]()
        for serial, data in lists:
            topic = str(wire.Topic(self.fleet, "-", "policy", "keys", str(serial)))
            self._publish(topic, data, ("keys", serial), expiry_s=None)
            tokens.add(("keys", serial))
        if not self.wait(lambda: tokens <= self._confirmed, self._patience_s):
            raise LinkError("the broker did not take every list of keys")
        self._check(tokens)
        return len(lists)

    def _signed(self, payload: bytes, device: str) -> wire.Signed:
        if self._ring is not None:
            return self._ring.say(payload, fleet=self.fleet, to=device, valid_s=VALID_S)
        end_s = time.time() + VALID_S
        return wire.Signed(fleet=self.fleet, to=device, counter=0, not_after_s=end_s, payload=payload, key=NOBODY)

    def _say(self, device: str, payload: bytes) -> None:
        token = ("offer", device, time.monotonic_ns())
        self._publish(str(wire.Topic(self.fleet, device, "policy", "offer")), payload, token)
        if not self.wait(lambda: token in self._confirmed, self._patience_s):
            raise LinkError(f"the broker did not take the offer to {device}")
        self._check({token})

    def _publish(self, topic: str, payload: bytes, token: object, expiry_s: int | None = VALID_S) -> None:
        def said() -> bool:
            return self._mqtt.publish(
                topic,
                payload,
                qos=1,
                retain=True,
                expiry_s=expiry_s if payload else None,
                content_type=wire.CONTENT_TYPE,
                token=token,
            )

        if not self.wait(said, self._patience_s):
            raise LinkError(f"the broker takes nothing: {self._mqtt.faults()}")

    def _check(self, tokens: set[object]) -> None:
        codes = {code for token, code in self._refused.items() if token in tokens}
        if codes:
            raise LinkError(f"the broker refused to take it: {', '.join(hex(code) for code in sorted(codes))}")


class Drive:
    """Drives one rollout to its end, from wherever it stands.

    Attributes:
        record: as it is written down.
    """

    def __init__(self, operator: Operator, folder: Path, record: Record) -> None:
        """Take it up, alone.

        Args:
            operator: connected.
            folder: of all rollouts.
            record: new, or as `read_record` gave it.

        Raises:
            UsageError: another process drives it.
            StoreError: it cannot be written.
        """
        self.operator, self.record = operator, record
        self.path = path_of(folder, record.rollout.plan.id)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, "make", folder) from error
        self._lock = single_instance(self.path.with_suffix(".lock"))
        self._save()

    def close(self) -> None:
        """Let another process drive it."""
        os.close(self._lock)

    def step(self, event: rollout.Event) -> None:
        """Advance, write down, and then do it."""
        former = self.record.rollout
        state, effects = rollout.step(former, event, time.time())
        if state != former:
            self.record = msgspec.structs.replace(self.record, rollout=state)
            self._save()
        for effect in effects:
            if isinstance(effect, rollout.Offer):
                self.operator.offer(self.record.offer, [effect.device])
            else:
                self.operator.withdraw([effect.device])

    def run(self, said: Callable[[Record], None], until_s: float | None = None) -> rollout.Rollout:
        """Go on until it has ended, or until that moment (monotonic).

        Args:
            said: is told each time something changed.
            until_s: to stop at, leaving the rollout where it is; None for never.

        Raises:
            ConfigError, LinkError, StoreError: it can be taken up again later.
        """
        # Who was killed between writing down and doing has not said it: devices know what they were offered.
        open_ = [device for device, fate in self.record.rollout.fates.items() if fate == "offered"]
        self.operator.offer(self.record.offer, open_)
        shown = None
        while True:
            for event in self._events():
                self.step(event)
            if self.record.rollout != shown:
                shown = self.record.rollout
                said(self.record)
            if shown.phase in ("aborted", "done") or (until_s is not None and time.monotonic() >= until_s):
                return shown
            self.operator.turn(0.2)

    def _events(self) -> list[rollout.Event]:
        wishes: dict[str, rollout.Event] = {
            "pause": rollout.Pause(),
            "resume": rollout.Resume(),
            "abort": rollout.Abort(),
        }
        wanted = self.path.with_suffix(".wish")
        events: list[rollout.Event] = []
        if wanted.exists():
            events += [wishes[word] for word in [wanted.read_text().strip()] if word in wishes]
            wanted.unlink()
        plan_id = self.record.rollout.plan.id
        events += [
            rollout.Told(device, fate_of(report))
            for device, report in sorted(self.operator.devices.items())
            if report.id == plan_id
        ]
        return [*events, rollout.Tick()]

    def _save(self) -> None:
        write_atomic(self.path, msgspec.json.encode(self.record))


def path_of(folder: Path, id_: str) -> Path:
    """Where a rollout is written down."""
    return folder / f"{id_}.json"


def read_record(folder: Path, id_: str) -> Record:
    """A rollout as it was written down.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = path_of(folder, id_)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; `edgert fleet rollout status` lists them"
        ) from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: no rollout: {error}") from error


def wish(folder: Path, id_: str, what: Wish) -> None:
    """Tell whoever drives a rollout what is wanted of it; heard at once, or by the next who drives it.

    Raises:
        ConfigError: there is no such rollout.
        StoreError: it cannot be written.
    """
    read_record(folder, id_)
    write_atomic(path_of(folder, id_).with_suffix(".wish"), what.encode())
