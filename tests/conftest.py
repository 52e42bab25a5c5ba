"""Shared fixtures: a real broker, a TCP link that can be broken, and waiting without wall-clock assertions."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from edgert.ports import broker as broker_port

# How fast examples come says something about the machine, which is shared, and nothing about the code.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-machine")


def _require_mosquitto() -> None:
    if broker_port.mosquitto_path() is None:
        reason = "mosquitto is not installed (apt install mosquitto): no test has met a real broker"
        print(f"\n*** SKIPPED: {reason} ***")
        pytest.skip(reason)


class Mosquitto:
    """A mosquitto of ours on a free port of 127.0.0.1, with its files in a temporary folder."""

    def __init__(self, directory: Path) -> None:
        self.broker = broker_port.start("mosquitto", directory)
        self.port, self.url, self.dir = self.broker.port, self.broker.url, self.broker.dir

    @property
    def pid(self) -> int:
        return self.broker.pid

    def kill9(self) -> None:
        """As a power cut would; `restart()` brings it back on the same port and folder."""
        self.broker.kill()

    def stop(self) -> None:
        """SIGTERM: it saves."""
        self.broker.stop()

    def restart(self) -> None:
        self.broker.restart()

    @contextlib.contextmanager
    def stop_cont(self) -> Iterator[None]:
        """Frozen inside the block: every link to it is half-open."""
        self.broker.freeze()
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                self.broker.thaw()

    def configure(self, text: str) -> None:
        """Add lines to its configuration and start it again."""
        config = self.dir / "mosquitto.conf"
        config.write_text(config.read_text() + text)
        self.restart()

    def log(self) -> str:
        return (self.dir / "broker.log").read_text()


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """One broker for all tests that leave it alive and use topics and client ids of their own."""
    _require_mosquitto()
    server = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    yield server
    server.stop()


@pytest.fixture
def fresh_mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of the test's own, to be killed, frozen and reconfigured."""
    _require_mosquitto()
    server = Mosquitto(tmp_path / "mosquitto")
    yield server
    server.stop()


class TcpLink:
    """A TCP relay to `port` that can be cut (reset), blackholed (silence both ways) and mended."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open = threading.Event()
        self._open.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                near.close()
                continue
            self._pairs.append((near, far))
            for a, b in ((near, far), (far, near)):
                a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def blackhole(self) -> None:
        """Nothing passes and nobody is told."""
        self._open.clear()

    def mend(self) -> None:
        """Let pass what waits, and everything after it."""
        self._open.set()

    def cut(self) -> None:
        """End every connection now."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.mend()
        self.cut()


@pytest.fixture
def tcp_link() -> Iterator[Callable[[int], TcpLink]]:
    """Makes `TcpLink`s and closes them."""
    links: list[TcpLink] = []

    def make(target_port: int) -> TcpLink:
        links.append(TcpLink(target_port))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """For sockets. Not tmp_path: its name can be longer than a socket's address may be."""
    made = Path(tempfile.mkdtemp(prefix="edgert-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def until() -> Callable[..., None]:
    """`until(condition)`: poll until it is true; fail, saying what was awaited, after a generous time."""

    def wait(condition: Callable[[], object], what: str = "the condition", patience_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{what} did not come true in {patience_s} s"
            time.sleep(0.02)

    return wait
