"""What the service manager is told: sd_notify(3) over the datagram socket named by $NOTIFY_SOCKET.

Nothing here raises, so that a process behaves the same with and without systemd.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Speaks sd_notify; silent when there is no socket.

    Blocks: never. A message the socket does not take at once is not sent, and the method says so by False.

    Attributes:
        watchdog_period_s: `watchdog()` must be called more often than this (half of it is customary), or the service
            manager kills the process; None when it does not watch this process.
    """

    def __init__(self, address: str | None, watchdog_period_s: float | None = None) -> None:
        """Use `from_environment` outside tests.

        Args:
            address: a path, or "@name" in the abstract namespace; None or anything else makes the notifier silent.
            watchdog_period_s: see the attribute.
        """
        self.watchdog_period_s = watchdog_period_s
        self._address: str | None = None
        self._socket: socket.socket | None = None
        if address and address[0] in "/@" and len(address) > 1:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            except OSError:
                self._socket = None
            self._address = "\0" + address[1:] if address[0] == "@" else address

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """Read $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID.

        Args:
            environ: os.environ when None.
        """
        environ = os.environ if environ is None else environ
        return cls(environ.get("NOTIFY_SOCKET"), _watchdog_period_s(environ))

    @property
    def active(self) -> bool:
        """Whether there is a service manager to talk to."""
        return self._socket is not None

    def ready(self) -> bool:
        """Start-up is finished. A unit of Type=notify waits for this: repeat it while it returns False."""
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        """One line that `systemctl status` shows."""
        return self._send("STATUS=" + " ".join(text.split()))

    def watchdog(self) -> bool:
        """The process has made progress since the last call."""
        return self._send("WATCHDOG=1")

    def stopping(self) -> bool:
        """The process has begun to shut down."""
        return self._send("STOPPING=1")

    def extend_timeout(self, duration_s: float) -> bool:
        """Grant the current start-up or shutdown `duration_s` more from now on."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(0, round(duration_s * 1e6))}")

    def close(self) -> None:
        """Fall silent for good."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> bool:
        if self._socket is None or self._address is None:
            return False
        try:
            # To the address each time: a connected socket would be lost when the manager makes its socket anew.
            self._socket.sendto(message.encode(errors="replace"), self._address)
        except (OSError, ValueError):
            return False
        return True


def _watchdog_period_s(environ: Mapping[str, str]) -> float | None:
    try:
        period_s = int(environ["WATCHDOG_USEC"]) * 1e-6
        watched = int(environ.get("WATCHDOG_PID") or os.getpid())
    except (KeyError, ValueError):
        return None
    return period_s if period_s > 0 and watched == os.getpid() else None
