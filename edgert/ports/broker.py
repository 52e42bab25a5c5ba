"""A broker as a child process, for the demo and the tests; and a probe of what any broker really does.

mosquitto is preferred where it is installed. `iotcore` (rumqttd in a wheel) needs only pip and is good enough for a
demo: it keeps nothing on disk, ignores message and session limits of its clients, and says so only by not obeying them.
That is why `probe` measures with real messages instead of believing the CONNACK.

A broker of ours listens on 127.0.0.1 only and lets everybody in. It expects to be killed at any moment and to be
started again on the same port and folder.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edgert.errors import LinkError
from edgert.ports.link import Happening, LinkDown, LinkUp, Published, Received
from edgert.ports.mqtt import Mqtt

MAX_PACKET_BYTES = 1 << 20

_MOSQUITTO = """\
per_listener_settings false
persistence true
persistence_location {dir}/
# A killed broker forgets what came since its last save; end-to-end acknowledgements cover that, this only shortens it.
autosave_interval 5
max_packet_size {max_packet_bytes}
max_inflight_messages 64
# Without it an answer waits 40 ms behind the acknowledgement of its question (Nagle and delayed acknowledgements).
set_tcp_nodelay true
max_queued_messages 10000
persistent_client_expiration 7d
allow_anonymous true
connection_messages true
log_type error
log_type warning
log_type notice
log_dest file {dir}/broker.log
user {user}
listener {port} 127.0.0.1
socket_domain ipv4
"""

# Only the MQTT 5 listener: rumqttd's other one speaks 3.1.1 on a port of its own.
_IOTCORE = """\
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 0
[v5.1.connections]
connection_timeout_ms = 5000
max_payload_size = {max_packet_bytes}
max_inflight_count = 200
dynamic_filters = true
"""

_IOTCORE_CHILD = """
import sys
from iotcore import Broker
Broker(config_path=sys.argv[1]).run_forever()
"""


def mosquitto_path() -> str | None:
    """Where mosquitto is; Debian puts it where a user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


class Broker:
    """A running broker.

    Attributes:
        kind: which one.
        port: on 127.0.0.1.
        url: for `Mqtt`.
        dir: its configuration, log and stored messages.
    """

    def __init__(self, kind: Literal["mosquitto", "iotcore"], directory: Path, port: int) -> None:
        """See `start`."""
        self.kind = kind
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self.dir = directory
        self._child: subprocess.Popen[bytes] | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            text = _MOSQUITTO if kind == "mosquitto" else _IOTCORE
            self._config = directory / ("mosquitto.conf" if kind == "mosquitto" else "iotcore.toml")
            values = {"dir": directory, "port": port, "max_packet_bytes": MAX_PACKET_BYTES, "user": getpass.getuser()}
            self._config.write_text(text.format(**values))
        except OSError as error:
            raise LinkError(f"cannot write the broker's configuration into {directory}: {error}") from error
        self.restart()

    @property
    def pid(self) -> int:
        """Of the broker.

        Raises:
            LinkError: it is not running.
        """
        if self._child is None or self._child.poll() is not None:
            raise LinkError(f"the broker on port {self.port} is not running; see {self.dir / 'broker.log'}")
        return self._child.pid

    def restart(self) -> None:
        """Start it (again) on the same port and folder; a running one is stopped first.

        Blocks:
            Until it accepts connections, at most 15 s.

        Raises:
            LinkError: it did not start.
        """
        self.stop()
        if _accepts(self.port):
            raise LinkError(f"{self.kind} did not start: something else listens on port {self.port}; choose another")
        if self.kind == "mosquitto":
            command = [mosquitto_path() or "mosquitto", "-c", str(self._config)]
        else:
            command = [sys.executable, "-c", _IOTCORE_CHILD, str(self._config)]
        log = self.dir / "broker.log"
        try:
            with log.open("ab") as out:
                # A session of its own: Ctrl-C in the terminal must reach the devices before it reaches the broker.
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.dir, start_new_session=True
                )
        except OSError as error:
            raise LinkError(f"cannot start {command[0]}: {error}") from error
        child = self._child
        _until(lambda: child.poll() is not None or _accepts(self.port), 15.0)
        if child.poll() is not None or not _accepts(self.port):
            self.kill()
            said = log.read_text(errors="replace")[-400:].strip()
            raise LinkError(f"{self.kind} did not start on port {self.port}: {said}")

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it with SIGTERM, so that it saves; with SIGKILL if it does not listen."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        # A stopped (SIGSTOP) process does not see SIGTERM until it goes on.
        for number in (how, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)
        try:
            child.wait(5.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def freeze(self) -> None:
        """Stop it without closing a connection: every link to it is half-open until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Broker:
        """The broker."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def start(kind: Literal["auto", "mosquitto", "iotcore"], directory: Path, port: int = 0) -> Broker:
    """Start a broker on 127.0.0.1.

    Args:
        kind: "auto" takes mosquitto where it is installed, else iotcore; `Broker.kind` says which it became.
        directory: for its files; made if missing.
        port: 0 takes a free one.

    Raises:
        LinkError: neither is installed, or it did not start.
    """
    if kind == "auto":
        kind = "mosquitto" if mosquitto_path() else "iotcore"
    if kind == "mosquitto" and not mosquitto_path():
        raise LinkError("mosquitto is not installed: apt install mosquitto, or pip install iotcore")
    if kind == "iotcore" and importlib.util.find_spec("iotcore") is None:
        raise LinkError("no broker is installed: apt install mosquitto, or pip install iotcore")
    return Broker(kind, directory.absolute(), port or free_port())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe_:
        probe_.bind(("127.0.0.1", 0))
        port: int = probe_.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


def _until(condition: Callable[[], bool], patience_s: float) -> bool:
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker did when asked, not what it said it would.

    Attributes:
        mqtt5: accepted an MQTT 5 client.
        shared_subscriptions: two members of a group got every message once between them.
        retained: a late subscriber got the retained message.
        offline_queue: a client that was away got a QoS 1 message when it came back.
        message_expiry: it did not get one that had expired meanwhile.
        large_packets: a message of `LARGE_BYTES` arrived whole.
        max_packet_bytes: largest packet the broker says it takes, or None.
    """

    mqtt5: bool
    shared_subscriptions: bool = False
    retained: bool = False
    offline_queue: bool = False
    message_expiry: bool = False
    large_packets: bool = False
    max_packet_bytes: int | None = None


LARGE_BYTES = 200_000
_SHARED = 12


class _Party:
    """One client of the probe, and all it has seen."""

    def __init__(self, url: str, name: str, session_expiry_s: int = 0) -> None:
        self.mqtt = Mqtt(url, name, session_expiry_s=session_expiry_s, max_queue_bytes=1 << 20).start()
        self.seen: list[Happening] = []

    def wait(self, done: Callable[[list[Happening]], bool], patience_s: float) -> bool:
        def look() -> bool:
            self.seen += self.mqtt.events()
            return done(self.seen)

        return _until(look, patience_s)

    def up(self, patience_s: float) -> LinkUp | None:
        def ended(seen: list[Happening]) -> bool:
            return any(isinstance(e, LinkUp) or (isinstance(e, LinkDown) and e.reason_code) for e in seen)

        self.wait(ended, patience_s)
        return next((e for e in self.seen if isinstance(e, LinkUp)), None)

    def got(self, topic: str) -> list[bytes]:
        self.seen += self.mqtt.events()
        return [e.payload for e in self.seen if isinstance(e, Received) and e.topic == topic]

    def say(
        self, topic: str, payload: bytes, patience_s: float, *, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        token = object()
        if self.mqtt.publish(topic, payload, qos=1, retain=retain, expiry_s=expiry_s, token=token):
            self.wait(lambda seen: any(isinstance(e, Published) and e.token is token for e in seen), patience_s)

    def settle(self, topic: str, patience_s: float) -> None:
        """Nothing tells when a subscription is in force; a message to oneself behind it does."""
        self.mqtt.subscribe([(topic, 1)])
        self.say(topic, b"", patience_s)
        self.wait(lambda _: bool(self.got(topic)), patience_s)


def probe(url: str, patience_s: float = 2.0) -> Capabilities:
    """Measure a broker with real messages under `edgert/probe/`.

    Args:
        url: see `mqtt.parse_url`.
        patience_s: how long to wait for each thing that may never come.

    Blocks:
        About 3 s at a good broker; several times `patience_s` at one that grants and does not deliver.
    """
    mark = secrets.token_hex(4)
    root = f"edgert/probe/{mark}"
    parties: list[_Party] = []

    def join(name: str, session_expiry_s: int = 0) -> _Party:
        parties.append(_Party(url, f"probe-{mark}-{name}", session_expiry_s))
        return parties[-1]

    try:
        speaker = join("speaker")
        welcome = speaker.up(patience_s)
        if welcome is None:
            return Capabilities(mqtt5=False)
        away, one, two = join("away", 60), join("one"), join("two")
        away.mqtt.subscribe([(f"{root}/away", 1)])
        for member in (one, two):
            member.mqtt.subscribe([(f"$share/{mark}/{root}/shared", 1)])
        for party in (away, one, two):
            party.up(patience_s)
            party.settle(f"{root}/echo/{id(party)}", patience_s)
        away.mqtt.close()
        speaker.say(f"{root}/away", b"short", patience_s, expiry_s=1)
        speaker.say(f"{root}/away", b"long", patience_s)
        expired_s = time.monotonic() + 2.1
        for i in range(_SHARED):
            speaker.say(f"{root}/shared", b"%d" % i, patience_s)
        one.wait(lambda _: len(one.got(f"{root}/shared") + two.got(f"{root}/shared")) >= _SHARED, patience_s)
        shares = one.got(f"{root}/shared"), two.got(f"{root}/shared")
        speaker.say(f"{root}/kept", b"kept", patience_s, retain=True)
        one.mqtt.subscribe([(f"{root}/kept", 1), (f"{root}/large", 1)])
        retained = one.wait(lambda _: b"kept" in one.got(f"{root}/kept"), patience_s)
        speaker.say(f"{root}/large", b"l" * LARGE_BYTES, patience_s)
        large = one.wait(lambda _: [len(p) for p in one.got(f"{root}/large")] == [LARGE_BYTES], patience_s)
        speaker.say(f"{root}/kept", b"", patience_s, retain=True)
        time.sleep(max(0.0, expired_s - time.monotonic()))
        # The same name again finds its session; with no expiry this time, so that it ends with us.
        back = join("away")
        queued = back.wait(lambda _: b"long" in back.got(f"{root}/away"), patience_s)
        everything = sorted(b"%d" % i for i in range(_SHARED))
        return Capabilities(
            mqtt5=True,
            shared_subscriptions=all(shares) and sorted(shares[0] + shares[1]) == everything,
            retained=retained,
            offline_queue=queued,
            message_expiry=queued and b"short" not in back.got(f"{root}/away"),
            large_packets=large,
            max_packet_bytes=welcome.server_max_packet_bytes,
        )
    finally:
        for party in parties:
            party.mqtt.close()
