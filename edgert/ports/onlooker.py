"""A connection that only listens: a whole fleet, or one device, as `fleet.roster` sees it."""

from __future__ import annotations

import secrets
import select
import sys
import time
from collections.abc import Iterator, Mapping

from edgert import wire
from edgert.errors import LinkError, MessageError
from edgert.fleet import roster
from edgert.fleet.roster import Entry, Heard
from edgert.ports.link import Address, LinkDown, LinkUp, Received
from edgert.ports.mqtt import Mqtt

QUIET_S = 1.0
"""What the broker keeps has come when nothing of it came for so long: MQTT has no word for that."""


class Onlooker:
    """One who listens to a fleet.

    Attributes:
        entries: device -> what is known.
        strange: messages that nobody could read.
        links: connections made so far; what was said shortly before a new one may be lost.

    Blocks: every method, as it says.
    """

    def __init__(
        self,
        url: str | Address,
        fleet: str,
        device: str = "+",
        patience_s: float = 10.0,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        """Connect.

        Args:
            url: of the broker.
            fleet: whose.
            device: one, or all.
            patience_s: with the broker.
            will: topic and payload that the broker publishes, retained, when it loses us.

        Raises:
            ConfigError: the url is wrong.
            LinkError: no broker in time.

        Blocks: up to `patience_s`.
        """
        self.entries: dict[str, Entry] = {}
        self.strange = 0
        self.links = 0
        self._fleet, self._patience_s = fleet, patience_s
        name = f"edgert-onlooker-{secrets.token_hex(8)}"
        self._mqtt = Mqtt(url, name, will=will, session_expiry_s=0, max_queue_bytes=4 << 20, max_events=16_384)
        self._mqtt.start()
        self._poller = select.poll()
        self._poller.register(self._mqtt.fileno(), select.POLLIN)
        self._newest_s = time.monotonic()
        end_s, why = time.monotonic() + patience_s, f"no broker within {patience_s:g} s"
        while (left_s := end_s - time.monotonic()) > 0:
            self._poller.poll(1000 * left_s)
            for event in self._mqtt.events():
                if isinstance(event, LinkUp):
                    self.links = 1
                    self._newest_s = time.monotonic()
                    # Not before: what came together with the word that the link is up would be thrown away here.
                    self._mqtt.subscribe(roster.subscriptions(fleet, device).items())
                    return
                if isinstance(event, LinkDown):
                    why = f"no link to the broker: {event.fault or event.reason}"
        self._mqtt.close()
        raise LinkError(why)

    def turn(self, timeout_s: float) -> Iterator[Heard]:
        """What comes within that time, taken in already."""
        self._poller.poll(1000 * max(0.0, timeout_s))
        for event in self._mqtt.events():
            if isinstance(event, LinkUp):
                self.links += 1
            elif isinstance(event, Received):
                self._newest_s = time.monotonic() if event.retain else self._newest_s
                try:
                    heard = roster.hear(self.entries, event.topic, event.payload, time.monotonic())
                except MessageError as error:
                    self.strange += 1
                    if self.strange == 1:
                        told = f"edgert: {event.topic!r}: {str(error)!r}; more of that kind is not told"
                        print(told, file=sys.stderr)
                    continue
                if heard is not None:
                    yield heard

    def gather(self, for_s: float = 0.0) -> Mapping[str, Entry]:
        """What the broker keeps, and what is said within `for_s`."""
        begun_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s - begun_s >= max(for_s, self._patience_s):
                break
            if now_s - self._newest_s > QUIET_S and now_s - begun_s >= for_s:
                break
            for _ in self.turn(0.1):
                pass
        return self.entries

    def say(self, topic: str, payload: bytes) -> bool:
        """Say something outside of `edgert/v1`, retained."""
        return self._mqtt.publish(topic, payload, qos=1, retain=True)

    def publish(self, device: str, channel: str, kind: str, payload: bytes) -> bool:
        """Say something that changes no device: acknowledge events."""
        topic = str(wire.Topic(self._fleet, device, channel, kind))
        return self._mqtt.publish(topic, payload, qos=1, content_type=wire.CONTENT_TYPE)

    def rows(self) -> list[dict[str, object]]:
        """Every device in one flat map."""
        now_s, labels = time.monotonic(), roster.labels_of(self.entries)
        return [roster.row(device, self.entries[device], labels[device], now_s) for device in sorted(self.entries)]

    def faults(self) -> dict[str, int]:
        """Named faults of the link -> how often."""
        return self._mqtt.faults()

    def close(self) -> None:
        """Leave."""
        self._mqtt.close()

    def __enter__(self) -> Onlooker:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self.close()
