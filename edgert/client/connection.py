"""Questions to a process of this device, one by one, over its Unix socket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from edgert.errors import LinkError, MessageError
from edgert.ports import ipc

_RETRY_S = 0.02


class Connection:
    """Made at the first question, and again after it was lost.

    Thread: one at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Connect later.

        Args:
            path: the socket that the device's configuration names.
        """
        self._path = path
        self._channel: ipc.Channel | None = None

    def __str__(self) -> str:
        return os.fspath(self._path)

    def ask(
        self, request: dict[str, object], wait_s: float, mine: Callable[[dict[str, object]], bool] | None = None
    ) -> dict[str, object]:
        """Send a question and wait for its answer.

        Args:
            request: one CBOR map.
            wait_s: for connecting and for the answer, together.
            mine: tells the answer from those that came too late for earlier questions; None where answers carry no
                number, so that a question that was given up costs the connection.

        Returns:
            The answer.

        Raises:
            LinkError: nobody answers at the path in time.
            MessageError: the answer is no CBOR map.
            ConfigError: the socket path is too long.

        Blocks: up to wait_s.
        """
        until_s = time.monotonic() + wait_s
        channel = self._connected(until_s)
        while not channel.send_map(request):
            # The other end went away (was restarted) since the last answer.
            self.close()
            if time.monotonic() >= until_s:
                raise LinkError(f"{self} does not take the question: look at `edgert status`")
            channel = self._connected(until_s)
        while True:
            for told in channel.receive_maps():
                if mine is None or mine(told):
                    return told
            if channel.malformed:
                self.close()
                raise MessageError(f"{self} sent no CBOR map: is that socket edgert's?")
            if channel.closed:
                self.close()
                raise LinkError(f"{self}: the other end has gone: ask again")
            remaining_s = until_s - time.monotonic()
            if remaining_s <= 0:
                if mine is None:
                    self.close()
                raise LinkError(f"no answer from {self} within {wait_s:g} s")
            channel.wait(remaining_s)

    def close(self) -> None:
        """End the connection; the next question makes a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connected(self, until_s: float) -> ipc.Channel:
        while self._channel is None or self._channel.closed:
            self._channel = ipc.connect(self._path)
            if self._channel is None:
                if time.monotonic() >= until_s:
                    raise LinkError(f"nobody listens at {self}: look at `edgert status`")
                time.sleep(_RETRY_S)
        return self._channel
