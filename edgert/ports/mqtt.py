"""The broker, seen through one thread: bytes in, bytes out, and no decisions.

Only this file and `packets` know paho. It is used through its external-loop calls from a thread of ours, and a new
paho client is made for every connection, so that nothing paho remembers (its unbounded queue, its message states)
outlives one: a message that the broker answers by closing the connection cannot come back by itself. Whoever published
it is told that it is `unconfirmed`, and decides. When to connect again is decided by `fleet.session`.
"""

from __future__ import annotations

import contextlib
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgert.errors import UsageError
from edgert.fleet.session import (
    LINK_RULES,
    UNSUPPORTED,
    Connect,
    Dialect,
    Fault,
    Link,
    LinkRules,
    Lost,
    Opened,
    Phase,
    Tick,
    step_dialect,
    step_link,
)
from edgert.ports import packets
from edgert.ports.link import (
    Ack,
    Address,
    Happening,
    Inbox,
    LinkDown,
    LinkUp,
    Published,
    Received,
    Subscriptions,
    Wanted,
    drain,
    parse_url,
    wake_pair,
)

__all__ = ["Address", "Happening", "LinkDown", "LinkUp", "Mqtt", "Published", "Received", "parse_url"]

CONNACK_S = 10.0
MAX_FLIGHT = 20
"""QoS 1 messages on their way at once: what paho allows by default, lowered to the broker's ReceiveMaximum."""


class Mqtt:
    """One identity at one broker.

    Thread:
        One daemon thread owns the connection. All methods may be called from any other thread. Wait on `fileno()`
        (with `selectors`, `poll`, ...) and call `events()` when it is readable. A received QoS 1 message is
        acknowledged to the broker once the owner has it, or has seen to it (`done`), so a slow owner slows the broker
        down instead of filling this memory, and one that dies is sent it again.

    Blocks:
        Only `close()`.
    """

    def __init__(
        self,
        url: str | Address,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        birth: tuple[str, bytes] | None = None,
        session_expiry_s: int = 86_400,
        receive_maximum: int = 64,
        max_packet_bytes: int = 1 << 20,
        keepalive_s: int = 30,
        max_queue_bytes: int = 256 << 10,
        max_events: int = 1024,
        rules: LinkRules = LINK_RULES,
    ) -> None:
        """Prepare; nothing happens before `start()`.

        Args:
            url: see `parse_url`; an `Address` also when the password comes from elsewhere.
            client_id: unique at the broker; two with one name throw each other out.
            will: (topic, payload) the broker publishes, retained, when it loses us.
            birth: (topic, payload) published, retained, first thing on each connection.
            session_expiry_s: how long the broker keeps subscriptions and messages for us after we left.
            receive_maximum: unacknowledged messages the broker may send us.
            max_packet_bytes: largest packet accepted, and sent even when the broker would take more.
            keepalive_s: a silent link is given up after 1.5 times this.
            max_queue_bytes: most bytes accepted by `publish` and not yet confirmed.
            max_events: most received messages waiting for `events()`.
            rules: how patient to be when reconnecting.

        Raises:
            ConfigError: the url is wrong.
        """
        self._address = parse_url(url) if isinstance(url, str) else url
        self._client_id = client_id
        self._will, self._birth = will, birth
        self._session_expiry_s, self._receive_maximum = session_expiry_s, receive_maximum
        self._max_packet_bytes, self._max_queue_bytes, self._max_events = max_packet_bytes, max_queue_bytes, max_events
        # paho probes a silent link after its keepalive and gives up one more keepalive later: 2 x 0.75 = 1.5.
        self._keepalive_s = max(1, int(keepalive_s * 0.75))
        self._rules = rules

        self._lock = threading.RLock()
        self._wake_r, self._wake_w = wake_pair()
        self._inbox = Inbox(max_events)
        # Under the lock.
        self._acks: list[Ack] = []
        self._out: deque[packets.Outgoing] = deque()
        self._out_bytes = 0
        self._subscriptions = Subscriptions()
        self._faults: dict[str, int] = {}
        self._limit_bytes: int | None = None
        self._rtt_s: float | None = None
        self._closing = False
        self._kick = ""
        self._flush_until_s = 0.0
        self._goodbye = True
        # Of the thread only.
        self._client: paho.Client | None = None
        self._generation = 0
        self._link = Link()
        self._dialect = Dialect()
        self._mute = False
        self._lost: tuple[int | None, str] | None = None
        self._flight: dict[int, packets.Outgoing] = {}
        self._flight_max = MAX_FLIGHT
        self._beat_s = time.monotonic()
        self._thread = self._new_thread("")

    # What the owner calls.

    def start(self) -> Mqtt:
        """Begin to connect, and stay connected until `close()`."""
        self._thread.start()
        return self

    def _new_thread(self, after: str) -> threading.Thread:
        return threading.Thread(target=self._run, args=(after,), name=f"mqtt {self._client_id}", daemon=True)

    def fileno(self) -> int:
        """Readable when `events()` has something."""
        return self._inbox.fileno()

    def events(self, *, done: bool = True) -> list[Happening]:
        """Everything that happened since the last call, in order; without `done` the owner calls that later."""
        events = self._inbox.take()
        if done:
            self.done()
        return events

    def done(self) -> None:
        """What was handed out is seen to: it is acknowledged, and the broker does not send it again."""
        acks = self._inbox.seen_to()
        if acks:
            with self._lock:
                self._acks += acks
            self._wake()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        expiry_s: int | None = None,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user: Sequence[tuple[str, str]] = (),
        token: object = None,
    ) -> bool:
        """Hand a message over, if there is a link and room for it.

        Args:
            topic: without wildcards.
            payload: the bytes.
            qos: 0 or 1.
            retain: the broker keeps it for those who come later.
            expiry_s: the broker drops it after this long.
            content_type: of the payload.
            response_topic: where an answer is expected.
            correlation: comes back with the answer.
            user: user properties.
            token: comes back in `Published` or in `LinkDown.unconfirmed`; None asks for neither.

        Returns:
            True when it was accepted; False when offline, full (fault `outbound-full`), or larger than the broker takes
            (fault `outbound-oversize`, which will never succeed: see `max_payload_bytes`).

        Raises:
            UsageError: the topic has wildcards, the QoS is not 0 or 1, or a property cannot be said in MQTT.
        """
        if qos not in (0, 1) or not topic or "+" in topic or "#" in topic or len(topic.encode()) > 65_535:
            raise UsageError(f"cannot publish to {topic!r} at QoS {qos}: QoS is 0 or 1 and a topic has no wildcards")
        properties, properties_bytes = packets.properties(
            PacketTypes.PUBLISH,
            MessageExpiryInterval=expiry_s,
            ContentType=content_type,
            ResponseTopic=response_topic,
            CorrelationData=correlation,
            UserProperty=list(user) or None,
        )
        # 9 = fixed header (5 at most), topic length and packet id (2 each); the packed properties count themselves.
        size_bytes = 9 + len(topic.encode()) + properties_bytes + len(payload)
        with self._lock:
            if self._limit_bytes is None or self._closing:
                return False
            if size_bytes > self._limit_bytes:
                self._count("outbound-oversize")
                return False
            if self._out_bytes + size_bytes > self._max_queue_bytes or len(self._inbox) >= 2 * self._max_events:
                self._count("outbound-full")
                return False
            self._out.append(packets.Outgoing(topic, payload, qos, retain, properties, token, size_bytes))
            self._out_bytes += size_bytes
        self._wake()
        return True

    def subscribe(
        self, filters: Iterable[tuple[str, int]], *, again: bool = True, known: Callable[[], bool] = lambda: False
    ) -> None:
        """Receive what matches these (filter, QoS) pairs, now and, with `again`, after every reconnection.

        `known` is asked by the thread each time: True, and what the broker keeps there comes only where this session is
        new to it (MQTT 5.0, 3.8.3.1: retain handling 1; in 3.1.1 it always comes).
        """
        with self._lock:
            self._subscriptions.want({name: Wanted(qos, known) for name, qos in filters}, again=again)
        self._wake()

    def unsubscribe(self, filters: Iterable[str], *, again: bool = True) -> None:
        """Receive no more of these; `again`: say so at every connection, as a lasting session may remember them."""
        with self._lock:
            self._subscriptions.leave(set(filters), again=again)
        self._wake()

    def max_payload_bytes(self, topic: str) -> int | None:
        """Size of a payload that surely fits, with this topic and 256 bytes of properties; None while offline."""
        with self._lock:
            limit = self._limit_bytes
        return None if limit is None else max(0, min(limit, self._max_queue_bytes) - 9 - 256 - len(topic.encode()))

    def is_up(self) -> bool:
        """The broker has accepted us and the link is not known to be lost."""
        with self._lock:
            return self._limit_bytes is not None

    def rtt_s(self) -> float | None:
        """QoS 1 publish to acknowledgement, exponential mean (1/8, RFC 6298); None offline or before the first."""
        with self._lock:
            return self._rtt_s if self._limit_bytes is not None else None

    def faults(self) -> dict[str, int]:
        """Named fault -> how often since start."""
        with self._lock:
            return dict(self._faults)

    def healthy(self) -> bool:
        """The thread is alive and has turned within the last minute; False before `start()` and after `close()`."""
        return self._thread.is_alive() and time.monotonic() - self._beat_s < 60.0

    def revive(self) -> bool:
        """Put a new thread in the place of one that died (fault `thread-replaced`); False where one hangs instead."""
        if not self._thread.is_alive() and not self._closing and self._thread.ident is not None:
            self._count("thread-replaced")
            self._beat_s = time.monotonic()
            self._thread = self._new_thread("the thread that talked to the broker died")
            self._thread.start()
        return self.healthy()

    def reconnect(self, why: str) -> None:
        """Give the connection up, because of something that cannot be seen from in here, and make another."""
        with self._lock:
            self._kick = why
        self._wake()

    def close(self, *, goodbye: bool = True, flush_s: float = 2.0) -> None:
        """Leave, waiting at most `flush_s` for confirmations; without `goodbye` the broker publishes the will."""
        with self._lock:
            self._flush_until_s = time.monotonic() + flush_s
            self._goodbye = goodbye
            self._closing = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(flush_s + 2.0)
        if not self._thread.is_alive():
            if self._client is not None:
                packets.abandon(self._client)
            for end in (self._wake_r, self._wake_w, self._inbox):
                end.close()

    def __enter__(self) -> Mqtt:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    # What both sides call.

    def _wake(self) -> None:
        # A full pair is already awake; a closed one has nobody left to wake.
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def _count(self, fault: str) -> None:
        with self._lock:
            self._faults[fault] = self._faults.get(fault, 0) + 1

    def _tell(self, event: Happening, ack: Ack | None = None) -> None:
        dropped, owed = self._inbox.put(event, ack)
        if dropped:
            self._count("inbound-overflow")
        self._owe(owed)

    def _owe(self, ack: Ack | None) -> None:
        if ack is not None:
            with self._lock:
                self._acks.append(ack)

    # The thread.

    def _run(self, after: str) -> None:
        if after:
            self._drop(None, after)
        while True:
            self._beat_s = time.monotonic()
            try:
                if not self._turn():
                    return
            except Exception as error:
                # Whatever paho or this file did wrong costs one connection, never the thread.
                self._count("internal-error")
                self._drop(None, f"internal error: {error!r}")
                # A bug that strikes on every turn must not become a busy loop.
                time.sleep(0.2)

    def _turn(self) -> bool:
        now_s = time.monotonic()
        with self._lock:
            closing, until_s = self._closing, self._flush_until_s
            idle = not self._out and not self._flight
            kick, self._kick = self._kick, ""
        if closing and (idle or now_s >= until_s or self._link.phase is not Phase.UP):
            self._leave()
            return False
        self._step(Tick(), now_s)
        client = self._client
        if client is not None:
            if self._link.phase is Phase.UP:
                self._work(client)
            elif now_s - self._link.at_s > CONNACK_S:
                self._lost = (None, f"no CONNACK within {CONNACK_S:g} s")
            client.loop_misc()
            if kick and self._link.phase is Phase.UP:
                self._lost = (None, kick)
        self._check_lost()
        self._wait()
        return True

    def _wait(self) -> None:
        client, poller = self._client, select.poll()
        poller.register(self._wake_r.fileno(), select.POLLIN)
        timeout_s = 1.0
        fd, sock = -1, None if client is None else client.socket()
        if client is None:
            timeout_s = min(timeout_s, max(0.0, self._link.at_s - time.monotonic()))
        elif sock is not None:
            fd = sock.fileno()
            if fd >= 0:
                poller.register(fd, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            timeout_s = min(timeout_s, self._keepalive_s / 4)
        # poll rounds down to whole milliseconds: without the added one the last fraction of a wait would spin.
        ready = dict(poller.poll(timeout_s * 1000.0 + 1.0))
        if self._wake_r.fileno() in ready:
            drain(self._wake_r)
        if client is None or fd not in ready:
            return
        if ready[fd] & select.POLLOUT:
            client.loop_write()
        if ready[fd] & ~select.POLLOUT:
            client.loop_read()
            # TLS may hold decrypted packets that the socket will not announce again.
            while client.socket() is sock and getattr(sock, "pending", int)():
                client.loop_read()
        self._check_lost()

    def _step(self, event: Tick | Opened | Lost, now_s: float) -> str | None:
        self._link, effects = step_link(self._link, event, now_s, random.random(), self._rules)
        fault = None
        for effect in effects:
            match effect:
                case Connect():
                    self._connect()
                case Fault(name=name):
                    fault = name
                    self._count(name)
        return fault

    def _connect(self) -> None:
        self._generation += 1
        self._lost, self._mute = None, False
        address, v5 = self._address, self._dialect.v5
        client = packets.new_client(address, self._client_id, self._will, v5=v5, lasting=self._session_expiry_s > 0)
        self._client = client
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        properties, _ = packets.properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=self._session_expiry_s,
            ReceiveMaximum=self._receive_maximum,
            MaximumPacketSize=self._max_packet_bytes,
        )
        try:
            if address.tls:
                client.tls_set(address.ca_file, address.cert_file, address.key_file)
            where = address.host, address.port, self._keepalive_s
            if v5:
                client.connect(*where, clean_start=False, properties=properties)
            else:
                client.connect(*where)
        except (OSError, ValueError) as error:
            self._lost = (None, f"cannot connect to {address.host}:{address.port}: {error}")

    def _work(self, client: paho.Client) -> None:
        with self._lock:
            acks, self._acks = self._acks, []
        for generation, mid in acks:
            # The message ids of a former connection mean something else now; the broker sends those messages again.
            if generation == self._generation:
                client.ack(mid, 1)
        while not client.want_write() and client.socket() is not None:
            with self._lock:
                # Looked at anew before each message: who subscribes and then publishes may wait for what comes of it.
                wanted, unwanted = self._subscriptions.take()
                message = None
                room = self._out and not (self._out[0].qos and len(self._flight) >= self._flight_max)
                if room and not wanted and not unwanted:
                    message = self._out.popleft()
            if unwanted:
                client.unsubscribe(sorted(unwanted))
            if wanted:
                client.subscribe(packets.filters(wanted, v5=self._dialect.v5))
            if message is not None:
                self._publish(client, message)
            elif not wanted and not unwanted:
                return

    def _publish(self, client: paho.Client, message: packets.Outgoing) -> None:
        message.sent_s = time.monotonic()
        properties = message.properties if self._dialect.v5 else None
        info = client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            with self._lock:
                self._out.appendleft(message)
        elif message.qos:
            self._flight[info.mid] = message
        else:
            self._confirm(message, 0)

    def _confirm(self, message: packets.Outgoing, reason_code: int) -> None:
        with self._lock:
            self._out_bytes -= message.size_bytes
        if message.token is not None:
            self._tell(Published(token=message.token, ok=reason_code < 0x80, reason_code=reason_code))

    def _check_lost(self) -> None:
        client = self._client
        if client is not None and (self._lost is not None or client.socket() is None):
            self._drop(*(self._lost or (None, "the connection was closed")))

    def _drop(self, reason_code: int | None, reason: str) -> None:
        client, self._client, self._lost = self._client, None, None
        if client is not None:
            packets.abandon(client)
        now_s, spoken = time.monotonic(), self._dialect
        self._dialect = step_dialect(spoken, self._link.phase, reason_code, mute=self._mute)
        self._mute = False
        fallen_back = spoken.v5 and reason_code == UNSUPPORTED
        fault = self._step(Lost(None if fallen_back else reason_code), now_s)
        retry_s, lost = max(0.0, self._link.at_s - now_s), self._forget()
        self._tell(LinkDown(reason_code=reason_code, reason=reason, fault=fault, retry_s=retry_s, unconfirmed=lost))

    def _forget(self) -> tuple[object, ...]:
        with self._lock:
            tokens = tuple(m.token for m in (*self._flight.values(), *self._out) if m.token is not None)
            self._flight.clear()
            self._out.clear()
            self._out_bytes = 0
            self._limit_bytes = None
            self._acks.clear()
        return tokens

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            if self._goodbye and client.is_connected():
                self._work(client)
                client.disconnect()
            packets.abandon(client)
        self._forget()

    # What paho calls, always in the thread.

    def _on_connect(
        self, client: paho.Client, _: object, flags: paho.ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._lost = (code.value, f"the broker refused: {code}")
            return
        said = vars(properties) if properties is not None else {}
        server_max: int | None = said.get("MaximumPacketSize")
        self._flight_max = min(MAX_FLIGHT, said.get("ReceiveMaximum", MAX_FLIGHT))
        self._step(Opened(), time.monotonic())
        if not self._dialect.v5:
            self._count("mqtt-3.1.1")
        with self._lock:
            if self._birth is not None:
                self._out.appendleft(
                    packets.Outgoing(*self._birth, 1, True, packets.properties(PacketTypes.PUBLISH)[0], None, 0)
                )
            self._subscriptions.begin()
            self._limit_bytes = min(self._max_packet_bytes, server_max or self._max_packet_bytes)
        self._tell(
            LinkUp(
                session_present=flags.session_present,
                server_max_packet_bytes=server_max,
                shared_subscriptions_available=bool(said.get("SharedSubscriptionAvailable", 1)),
            )
        )

    def _on_disconnect(
        self, client: paho.Client, _: object, flags: paho.DisconnectFlags, code: ReasonCode, __: Properties | None
    ) -> None:
        if self._lost is None:
            from_server = flags.is_disconnect_packet_from_server
            self._mute = self._link.phase is Phase.CONNECTING
            self._lost = (code.value, f"the broker said: {code}") if from_server else (None, f"link lost: {code}")

    def _on_message(self, client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        ack = Ack(self._generation, message.mid) if message.qos else None
        try:
            # Brokers that ignore our MaximumPacketSize exist (rumqttd).
            if len(message.payload) > self._max_packet_bytes:
                raise ValueError("inbound-oversize")
            event = packets.received(message)
        except Exception as error:
            # It is acknowledged all the same: a message we cannot read would otherwise come back for ever.
            self._count("inbound-oversize" if str(error) == "inbound-oversize" else "inbound-unreadable")
            self._owe(ack)
            return
        self._tell(event, ack)

    def _on_publish(self, client: paho.Client, _: object, mid: int, code: ReasonCode, __: Properties | None) -> None:
        message = self._flight.pop(mid, None)
        if message is None:
            return
        sample_s = time.monotonic() - message.sent_s
        with self._lock:
            self._rtt_s = sample_s if self._rtt_s is None else self._rtt_s + (sample_s - self._rtt_s) / 8
        if code.is_failure:
            self._count("publish-refused")
        self._confirm(message, code.value)

    def _on_subscribe(
        self, client: paho.Client, _: object, __: int, codes: list[ReasonCode], ___: Properties | None
    ) -> None:
        for code in codes:
            if code.is_failure:
                self._count("subscribe-refused")
