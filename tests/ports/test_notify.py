from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.ports.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[str, socket.socket]]:
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    address = str(directory / "notify") if request.param == "path" else f"@edgert-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(10)
        yield address, sock
    shutil.rmtree(directory)


def test_each_message_arrives_as_systemd_reads_it(manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert notifier.active
    cases = [
        (notifier.ready, b"READY=1"),
        (lambda: notifier.status("two\nlines  of\tit"), b"STATUS=two lines of it"),
        (notifier.watchdog, b"WATCHDOG=1"),
        (lambda: notifier.extend_timeout(1.5), b"EXTEND_TIMEOUT_USEC=1500000"),
        (notifier.stopping, b"STOPPING=1"),
    ]
    for call, expected in cases:
        assert call() is True
        assert sock.recv(4096) == expected
    notifier.close()
    assert not notifier.active and notifier.ready() is False


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "@"}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_socket_it_is_silent(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)
    assert not notifier.active
    assert notifier.ready() is False and notifier.status("x") is False


@pytest.mark.parametrize("address", ["/nowhere/at/all", "/" + "x" * 300, "/with\0zero"])
def test_an_address_that_cannot_be_reached_raises_nothing(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert notifier.watchdog() is False
    notifier.close()


def test_a_manager_that_does_not_read_is_not_waited_for(manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    notifier = Notifier(address)
    assert any(notifier.watchdog() is False for _ in range(5000))
    while sock.recv(4096, socket.MSG_DONTWAIT | socket.MSG_PEEK):
        sock.recv(4096)
        if notifier.watchdog():
            break
    else:
        pytest.fail("no message got through after the manager read again")
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "me"}, None),
    ],
)
def test_watchdog_period(environ: dict[str, str], period_s: float | None) -> None:
    assert Notifier.from_environment(environ).watchdog_period_s == period_s
