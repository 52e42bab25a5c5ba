"""What passes between a link to a broker and its owner: words, the queue they wait in, and broker URLs. No vendor."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from edgert.errors import ConfigError


class LinkUp(msgspec.Struct, frozen=True, kw_only=True):
    """The broker accepted us, and our subscriptions are on their way.

    Attributes:
        session_present: the broker still knew us; messages that waited there follow.
        server_max_packet_bytes: largest packet the broker takes, or None when it did not say.
        shared_subscriptions_available: what the broker claims; `broker.probe` finds out.
    """

    session_present: bool
    server_max_packet_bytes: int | None
    shared_subscriptions_available: bool


class LinkDown(msgspec.Struct, frozen=True, kw_only=True):
    """The link was lost, or an attempt to connect failed.

    Attributes:
        reason_code: MQTT 5 reason code the broker gave, or None.
        reason: in words.
        fault: `duplicate-identity` or `refused`, or None for an ordinary loss.
        retry_s: seconds until the next attempt.
        unconfirmed: tokens of publishes that were accepted and never confirmed; they may have arrived or not.
    """

    reason_code: int | None
    reason: str
    fault: str | None
    retry_s: float
    unconfirmed: tuple[object, ...]


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A message from the broker."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    user: tuple[tuple[str, str], ...] = ()


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """The broker answered a publish that carried a token (QoS 0: it was written to the socket).

    Attributes:
        token: the caller's.
        ok: the broker took it.
        reason_code: 0x87 not authorised, 0x97 quota exceeded, 0x10 nobody listens (which is ok).
    """

    token: object
    ok: bool
    reason_code: int


Happening = LinkUp | LinkDown | Received | Published


class Ack(NamedTuple):
    """What must be said to the broker once a received message was seen to.

    Attributes:
        generation: number of the connection it came over; on another one the message id means something else.
        mid: its message id there.
    """

    generation: int
    mid: int


class Wanted(NamedTuple):
    """How a filter is wanted.

    Attributes:
        qos: at most.
        known: whether what the broker keeps there is known already; asked when the broker is told of the filter.
    """

    qos: int
    known: Callable[[], bool]


class Subscriptions:
    """Filters that are wanted, and what of them the broker has not been told yet. Whoever uses it brings a lock."""

    def __init__(self) -> None:
        self._filters: dict[str, Wanted] = {}
        self._unwanted: set[str] = set()
        self._new: dict[str, Wanted] = {}
        self._old: set[str] = set()

    def want(self, filters: Mapping[str, Wanted], *, again: bool) -> None:
        """These from now on; with `again` on every connection to come."""
        self._filters.update(filters if again else {})
        self._unwanted -= set(filters)
        self._new.update(filters)
        self._old -= set(filters)

    def leave(self, filters: set[str], *, again: bool) -> None:
        """No more of these; with `again` that is said on every connection to come."""
        self._unwanted |= filters if again else set()
        self._old |= filters
        for name in filters:
            self._filters.pop(name, None)
            self._new.pop(name, None)

    def begin(self) -> None:
        """A connection came up: the broker is told everything that lasts."""
        self._new, self._old = dict(self._filters), set(self._unwanted)

    def take(self) -> tuple[dict[str, Wanted], set[str]]:
        """What is to be subscribed to and unsubscribed from now."""
        taken = self._new, self._old
        self._new, self._old = {}, set()
        return taken


class Inbox:
    """Events waiting for the owner, with a file descriptor that is readable while there are some.

    Link states and confirmations are never dropped. Of more than `max_received` messages the oldest of QoS 0 gives way,
    or else the oldest: brokers that ignore ReceiveMaximum exist (rumqttd; mosquitto 2.0.11 after a full window).

    Thread:
        Any; it has its own lock.
    """

    def __init__(self, max_received: int) -> None:
        self._max_received = max_received
        self._lock = threading.Lock()
        self._events: deque[tuple[Happening, Ack | None]] = deque()
        self._received = 0
        self._owed: list[Ack] = []
        self._reader, self._writer = wake_pair()

    def __len__(self) -> int:
        return len(self._events)

    def fileno(self) -> int:
        """Readable while events wait."""
        return self._reader.fileno()

    def put(self, event: Happening, ack: Ack | None = None) -> tuple[bool, Ack | None]:
        """Add an event; returns whether an older message was dropped for it, and what to acknowledge for that one."""
        dropped, owed = False, None
        with self._lock:
            if isinstance(event, Received):
                self._received += 1
                if self._received > self._max_received:
                    messages = [(e.qos, i) for i, (e, _) in enumerate(self._events) if isinstance(e, Received)]
                    _, index = min(messages)
                    owed = self._events[index][1]
                    del self._events[index]
                    self._received -= 1
                    dropped = True
            self._events.append((event, ack))
            with contextlib.suppress(OSError):
                self._writer.send(b"\0")
        return dropped, owed

    def take(self) -> list[Happening]:
        """Everything that waits, oldest first."""
        with self._lock:
            drain(self._reader)
            taken, self._events = self._events, deque()
            self._received = 0
            self._owed += [ack for _, ack in taken if ack is not None]
        return [event for event, _ in taken]

    def seen_to(self) -> list[Ack]:
        """What to acknowledge, once the owner has seen to everything that was taken."""
        with self._lock:
            owed, self._owed = self._owed, []
        return owed

    def close(self) -> None:
        """Close the file descriptors; what waits can still be taken."""
        self._reader.close()
        self._writer.close()


def wake_pair() -> tuple[socket.socket, socket.socket]:
    """A reader and a writer that never block."""
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


def drain(reader: socket.socket) -> None:
    """Read away all wake-ups; a closed reader has none."""
    with contextlib.suppress(OSError):
        while len(reader.recv(4096)) == 4096:
            pass


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker URL says."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def parse_url(url: str) -> Address:
    """Read `mqtt://[user:password@]host[:1883]` or `mqtts://...[:8883][?ca=FILE&cert=FILE&key=FILE]`.

    Raises:
        ConfigError: with the reason; it never repeats the password.
    """
    try:
        parts = urlsplit(url)
        port, query = parts.port, parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError(f"broker url: {error}; expected mqtt://host:port or mqtts://host:port") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError("broker url: expected mqtt://[user:password@]host[:1883] or mqtts://host[:8883]?ca=...")
    tls = parts.scheme == "mqtts"
    unknown = set(query) - ({"ca", "cert", "key"} if tls else set())
    if unknown:
        raise ConfigError(f"broker url: unknown option {sorted(unknown)}; mqtts:// takes ca, cert and key")
    return Address(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        ca_file=query.get("ca", [None])[0],
        cert_file=query.get("cert", [None])[0],
        key_file=query.get("key", [None])[0],
    )
