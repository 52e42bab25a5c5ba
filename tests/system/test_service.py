"""One device as a service: readiness, watchdog, a stop in good order, and a start from torn files."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from edgert.ports.ring import RingReader
from edgert.ports.store import Generations

pytestmark = pytest.mark.system

HEAD_BYTES = 56
"""Of a generation file: magic, number, length, sha256."""


class Manager:
    """The service manager's end of sd_notify: a datagram socket, and when each message came."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="edgert-", dir="/tmp")
        self.path = f"{self.folder.name}/notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)
        self.said: list[str] = []

    def look(self) -> list[str]:
        while True:
            try:
                self.said.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return self.said

    def count(self, message: str) -> int:
        return self.look().count(message)


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    made.socket.close()
    made.folder.cleanup()


@pytest.fixture(scope="module")
def device(make_lone: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_lone(tmp_path_factory.mktemp("service"))


def test_ready_comes_with_the_first_decision_of_a_policy(
    device: Any, manager: Manager, until: Callable[..., None], acting: Any, measured: Callable[..., None]
) -> None:
    device.start(NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="10000000")
    started_s = time.monotonic()
    until(lambda: manager.count("READY=1"), "READY=1")
    ready_s = time.monotonic() - started_s
    status = device.status()
    assert acting(status)
    assert status["actor"]["ticks"] > status["actor"]["safe"]
    before = manager.look()[: manager.look().index("READY=1")]
    assert not [text for text in before if "generation" in text and "0 ticks" in text]
    measured(ready_s=round(ready_s, 2), first_action_s=status["actor"]["first_action_s"])
    until(lambda: manager.count("WATCHDOG=1") >= 3, "a watchdog that is fed")
    assert manager.count("READY=1") == 1
    assert any(text.startswith("STATUS=generation 0, ") for text in manager.look())


def test_the_watchdog_is_fed_only_while_ticks_progress(
    device: Any, manager: Manager, until: Callable[..., None], measured: Callable[..., None]
) -> None:
    pid = device.status()["actor"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.5)  # a report that was under way
        fed, ticks = manager.count("WATCHDOG=1"), device.status()["actor"]["ticks"]
        time.sleep(2.5)
        assert manager.count("WATCHDOG=1") == fed
        assert device.status()["actor"]["ticks"] == ticks
        # The supervisor lives all the while, and says so to whoever asks.
        assert device.status()["actor_age_s"] > 2
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: manager.count("WATCHDOG=1") > fed, "a watchdog that is fed again")
    measured(fed=fed, fed_while_stopped=0)


def test_a_stop_leaves_a_checkpoint_no_orphan_and_exit_code_0(
    device: Any, manager: Manager, measured: Callable[..., None]
) -> None:
    device.until_status(lambda s: s["trainer"] and s["trainer"]["checkpoint"] > 0, "a checkpoint")
    folder = device.state / "checkpoints"
    before, steps = Generations(folder).latest(), device.status()["trainer"]["steps"]
    assert len(device.group()) == 4
    began_s = time.monotonic()
    code = device.end()
    assert code == 0, device.log()
    assert device.group() == []
    after = Generations(folder).latest()
    assert after is not None
    assert before is None or after[0] > before[0]
    assert "STOPPING=1" in manager.look()
    assert "Traceback" not in device.log()
    measured(stop_s=round(time.monotonic() - began_s, 2), checkpoint=after[0], steps=steps)


def test_a_stop_ends_even_children_that_hang(device: Any, acting: Any, measured: Callable[..., None]) -> None:
    device.start()
    device.until_status(lambda s: acting(s) and s["trainer"], "acting")
    os.kill(device.status()["trainer"]["pid"], signal.SIGSTOP)
    began_s = time.monotonic()
    assert device.end(30) == 0
    assert device.group() == []
    measured(stop_s=round(time.monotonic() - began_s, 2))


def test_a_device_starts_from_torn_files_and_says_what_was_torn(
    device: Any, acting: Any, measured: Callable[..., None]
) -> None:
    state: Path = device.state
    former, newest = sorted((state / "checkpoints").glob("*.gen"))
    number, committed = int(newest.stem), cbor2.loads(former.read_bytes()[HEAD_BYTES:])["steps"]
    newest.write_bytes(newest.read_bytes()[:-1000])
    (state / "policies" / "acting.json").write_bytes(b'{"t":"swap","generation":3,"pa')
    (state / "events.db").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    ring = bytearray((state / "ring.bin").read_bytes())
    ring[3] ^= 1
    (state / "ring.bin").write_bytes(ring)
    said_before = len(device.log())
    device.start()
    status = device.until_status(
        lambda s: acting(s) and s["trainer"] and s["trainer"]["steps"] > 0 and s["trainer"]["transitions"] > 80,
        "acting and learning",
    )
    said = device.log()[said_before:]
    for words in ("spool-broken", "acting-broken", "ring-begun-anew", "torn", "the former generation is used"):
        assert words in said
    assert "Traceback" not in said
    assert status["actor"]["generation"] == 0
    assert status["trainer"]["faults"]["checkpoint-broken"] == 1
    assert status["trainer"]["steps"] >= committed > 0
    assert status["link"]["events_waiting"] >= 3
    assert (state / "events.db.broken").exists()
    measured(checkpoint=status["trainer"]["checkpoint"], torn=number, steps=status["trainer"]["steps"])


def test_a_torn_record_costs_that_record(device: Any, until: Callable[..., None]) -> None:
    path = device.state / "ring.bin"
    reader = RingReader(path)
    until(lambda: reader.newest_seq() > 40, "some records")
    device.end()
    newest, slot_bytes = reader.newest_seq(), (path.stat().st_size - 4096) // reader.capacity
    with path.open("r+b") as file:
        file.seek(4096 + (newest - 1) % reader.capacity * slot_bytes + 50)
        file.write(b"\xff\xff\xff")
    opened = reader.opened
    device.start()
    # Its number stays the hole that a restart leaves: the reader does not see what was torn.
    until(lambda: reader.newest_seq() > newest + 5, "new records")
    records = reader.read(newest - 5, newest + 5)
    assert records.seq.tolist() == [n for n in range(newest - 5, newest + 6) if n != newest]
    assert reader.opened == opened
    assert device.end() == 0
