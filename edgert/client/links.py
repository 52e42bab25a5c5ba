"""How questions of a program reach teachers: through the daemon of the device, or straight over a broker."""

from __future__ import annotations

import secrets
import time
from typing import Protocol

from edgert import wire
from edgert.govern.askers import BURST_S, QUESTION_BYTES
from edgert.ports import ipc
from edgert.ports.link import Received
from edgert.ports.mqtt import Mqtt
from edgert.values import Answer, Ask, Budget

RECONNECT_S = 0.5
MAX_PENDING = 4
"""Questions that may be on their way at once."""
PACKET_BYTES = wire.MAX_PAYLOAD_BYTES + 4096
"""A message of any size that the wire knows, with its topic and properties."""


class Link(Protocol):
    """Where questions go out and answers come in.

    Thread: one. Blocks: `close` and `mend`, for a moment.

    Attributes:
        bytes_per_s: that may be spent, both ways.
    """

    bytes_per_s: float

    def fileno(self) -> int:
        """Readable when `receive` has something; -1 while there is no connection."""

    def up(self) -> bool:
        """Whether there is one."""

    def mend(self) -> bool:
        """Replace what is dead for good; True when something was."""

    def most_bytes(self) -> int:
        """Largest question that it takes now."""

    def send(self, ask_id: int, payload: bytes) -> bool:
        """Put a question on its way; False when it was not taken."""

    def receive(self) -> list[tuple[int, bytes]]:
        """What was answered: of which question, and how."""

    def close(self) -> None:
        """End the connection."""


class Daemon:
    """A `Link` through the daemon of this device, which says what may be spent, and counts."""

    def __init__(self, path: str) -> None:
        """Connect at the first `receive`.

        Args:
            path: of its knowledge.sock.
        """
        self.bytes_per_s = 0.0
        self._path = path
        self._channel: ipc.Channel | None = None
        self._tried_s = 0.0

    def mend(self) -> bool:
        """Nothing: each `receive` connects anew where that is needed."""
        return False

    def most_bytes(self) -> int:
        """What the daemon would not refuse."""
        return min(wire.MAX_PAYLOAD_BYTES, int(max(QUESTION_BYTES, BURST_S * self.bytes_per_s)))

    def fileno(self) -> int:
        """As `Link.fileno`."""
        return -1 if self._channel is None else self._channel.fileno()

    def send(self, ask_id: int, payload: bytes) -> bool:
        """As `Link.send`."""
        return self._channel is not None and self._channel.send(Ask(ask_id, payload))

    def receive(self) -> list[tuple[int, bytes]]:
        """As `Link.receive`.

        Raises:
            ConfigError: the path is too long.
            LinkError: we may not connect there.
        """
        now_s = time.monotonic()
        if (self._channel is None or self._channel.closed) and now_s - self._tried_s >= RECONNECT_S:
            self._tried_s, self.bytes_per_s = now_s, 0.0
            self._channel = ipc.connect(self._path)
        if self._channel is None:
            return []
        self._channel.flush()
        heard = []
        for told in self._channel.receive():
            match told:
                case Budget():
                    self.bytes_per_s = told.teacher_bytes_per_s
                case Answer(ask_id, payload):
                    heard.append((ask_id, payload))
        return heard

    def up(self) -> bool:
        """As `Link.up`."""
        return self._channel is not None and not self._channel.closed

    def close(self) -> None:
        """As `Link.close`."""
        if self._channel is not None:
            self._channel.close()


class Broker:
    """A `Link` straight to a broker."""

    def __init__(self, url: str, fleet: str, name: str, task: str, bytes_per_s: float) -> None:
        """Connect, and stay connected until `close`.

        Args:
            url: see `ports.link.parse_url`.
            fleet: whose teachers are asked.
            name: of this student in its topics.
            task: what is asked about.
            bytes_per_s: that may be spent.

        Raises:
            ConfigError: the url is wrong.
        """
        self.bytes_per_s = bytes_per_s
        self._url = url
        self._topic = wire.Topic(fleet, name, "know", "ask", task)
        self._answers = str(self._topic._replace(type="answer"))
        self._mqtt = self._open()

    def _open(self) -> Mqtt:
        made = Mqtt(
            self._url,
            f"edgert-student-{secrets.token_hex(8)}",
            session_expiry_s=0,  # a question that is late teaches nothing: no session outlives the connection
            max_packet_bytes=PACKET_BYTES,
            max_queue_bytes=MAX_PENDING * PACKET_BYTES,
        )
        made.subscribe([(self._answers, 1)])
        return made.start()

    def mend(self) -> bool:
        """Begin anew where the thread that owns the connection is dead or stands still."""
        if self._mqtt.healthy():
            return False
        self._mqtt.close(goodbye=False, flush_s=0.0)
        self._mqtt = self._open()
        return True

    def most_bytes(self) -> int:
        """What the wire and this broker allow; 0 while there is none."""
        return min(wire.MAX_PAYLOAD_BYTES, self._mqtt.max_payload_bytes(str(self._topic)) or 0)

    def fileno(self) -> int:
        """As `Link.fileno`."""
        return self._mqtt.fileno()

    def send(self, ask_id: int, payload: bytes) -> bool:
        """As `Link.send`."""
        return self._mqtt.publish(
            str(self._topic),
            payload,
            qos=1,
            expiry_s=30,
            content_type=wire.CONTENT_TYPE,
            correlation=ask_id.to_bytes(8, "big"),
            response_topic=self._answers,
        )

    def receive(self) -> list[tuple[int, bytes]]:
        """As `Link.receive`."""
        return [
            (int.from_bytes(event.correlation, "big"), event.payload)
            for event in self._mqtt.events()
            if isinstance(event, Received) and event.correlation
        ]

    def up(self) -> bool:
        """As `Link.up`."""
        return self._mqtt.is_up()

    def close(self) -> None:
        """As `Link.close`."""
        self._mqtt.close(flush_s=0.2)
