"""What a placer sends, and what it wants to hear: a queue before the broker, files laid down there, and topics."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from edgert import wire
from edgert.fleet import fetch
from edgert.placement import protocol
from edgert.placement.jobs import Reason
from edgert.placement.protocol import Alive, Commit, Held, Propose, Report, Reserve, Vote
from edgert.ports import shards
from edgert.ports.mqtt import Mqtt

Message = protocol.Message | wire.PlaceWork | wire.PlaceGo | wire.PlaceState | wire.PlaceData
CHUNK_EXPIRY_S = 3600


class Outgoing(NamedTuple):
    """What waits for the broker."""

    topic: str
    payload: bytes
    qos: int
    expiry_s: int
    retain: bool = False


def chunk_topic(fleet: str, owner: str, sha256: str, index: int) -> str:
    """Where a chunk of a job's file lies at the broker, retained by the job's owner."""
    return str(wire.Topic(fleet, owner, "place", "chunk", f"{sha256[: fetch.NAME_DIGITS]}.{index}"))


class Transport:
    """One placer's way to the broker. What is lost with the link is said again by whoever said it, or not needed.

    Attributes:
        waiting_bytes: of what the broker has not taken yet.
    """

    def __init__(self, mqtt: Mqtt, fleet: str, me: str) -> None:
        """Nothing waits.

        Args:
            mqtt: the link.
            fleet: of this device.
            me: this device.
        """
        self._mqtt, self._fleet, self._me = mqtt, fleet, me
        self._out: deque[Outgoing] = deque()
        self._topics: dict[str, int] = {}
        self._laid: dict[str, tuple[wire.PolicyOffer, bytes]] = {}
        self.waiting_bytes = 0
        self.up = False

    def topic(self, type_: str, id_: str) -> str:
        """Of this device."""
        return str(wire.Topic(self._fleet, self._me, "place", type_, id_))

    def put(self, outgoing: Outgoing) -> None:
        """Send something, as soon as the broker takes it; without a link it is lost."""
        if self.up:
            self._out.append(outgoing)
            self.waiting_bytes += len(outgoing.payload)

    def flush(self) -> None:
        """Hand over what the link takes now."""
        while self._out:
            topic, payload, qos, expiry_s, retain = self._out[0]
            content = wire.CONTENT_TYPE if payload else None
            if not self._mqtt.publish(topic, payload, qos=qos, expiry_s=expiry_s, retain=retain, content_type=content):
                return
            self.waiting_bytes -= len(self._out.popleft().payload)

    def link(self, up: bool) -> None:
        """The link came up or went down."""
        self.up = up
        if not up:
            self._out.clear()
            self._topics.clear()
            self.waiting_bytes = 0
        for offer, data in self._laid.values():
            self._lay(offer, data)

    def lay_down(self, offer: wire.PolicyOffer, data: bytes) -> None:
        """Lay a file's chunks down at the broker, once."""
        if offer.sha256 not in self._laid:
            self._laid[offer.sha256] = offer, data
            self._lay(offer, data)

    def _lay(self, offer: wire.PolicyOffer, data: bytes) -> None:
        for index in range(fetch.count(offer)):
            topic = chunk_topic(self._fleet, self._me, offer.sha256, index)
            self.put(Outgoing(topic, shards.chunk(data, offer, index), 1, CHUNK_EXPIRY_S, retain=True))

    def take_back(self, used: set[str]) -> None:
        """Files of jobs that are over need not lie at the broker; `used` are the hashes of the others."""
        for sha256 in [sha256 for sha256 in self._laid if sha256 not in used]:
            offer, _ = self._laid.pop(sha256)
            for index in range(fetch.count(offer)):
                topic = chunk_topic(self._fleet, self._me, sha256, index)
                self.put(Outgoing(topic, b"", 1, CHUNK_EXPIRY_S, retain=True))

    def listen(self, wanted: list[str], unwanted: list[str]) -> None:
        """Hear of topics, and of others no more. Several may want one: it is left when nobody does."""
        for topic in wanted:
            self._topics[topic] = self._topics.get(topic, 0) + 1
        if wanted:
            # What is retained comes with a subscription that is new.
            again = [topic for topic in wanted if self._topics[topic] > 1]
            if again:
                self._mqtt.unsubscribe(again, again=False)
            self._mqtt.subscribe([(topic, 0) for topic in wanted], again=False)
        for topic in unwanted:
            self._topics[topic] = self._topics.get(topic, 1) - 1
        ended = [topic for topic in unwanted if self._topics[topic] <= 0]
        for topic in ended:
            self._topics.pop(topic, None)
        if ended:
            self._mqtt.unsubscribe(ended, again=False)


def speaker(message: Message) -> str | None:
    """Who alone may say this; None where several may."""
    match message:
        case Report(load):
            return load.node
        case Propose():
            return message.proposal.job.owner
        case Vote():
            return message.load.node
        case Alive():
            return message.shield
        case Held():
            return message.node
        case Reserve():
            return message.shield
        case Commit():
            return message.owner
        case _:
            return None


def reasons_text(reasons: tuple[Reason, ...]) -> str:
    """Reasons in words."""
    said = []
    for each in reasons:
        where = f" at {each.node}" if each.node else ""
        much = f" (needs {each.need:g}, {each.room:g} left)" if each.need or each.room else ""
        said.append(f"{each.name}{where}{much}")
    return ", ".join(dict.fromkeys(said)) or "nobody says why"
