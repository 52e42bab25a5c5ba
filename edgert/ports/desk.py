"""Where programs of the user's ask teachers through this device: a Unix socket, `ipc` frames, nothing decided here.

A program says `Ask`, with a `wire.KnowAsk` in it, and hears `Answer`, with a `wire.KnowAnswer` in it, and `Budget`
whenever its share changes. Nothing else may be said: whoever says it, floods, or does not read what it is told, is
disconnected. Whoever says much is listened to less often, and so are newcomers who keep coming: what waits in a socket
costs us nothing. The others and the device do not notice.
"""

from __future__ import annotations

import math
import os
import secrets
import select
import time

from edgert.ports import ipc
from edgert.values import Answer, Ask, Budget
from edgert.wire import MAX_PAYLOAD_BYTES

MAX_ASKERS = 16
MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES + 4096
ASKS_AT_ONCE = 64
"""So many questions between two looks of ours are a flood: a program in good order waits for its answers."""
SAY_HZ, SAY_BURST = 100.0, 100.0
"""Looks at one program and questions heard from it, together."""
COME_HZ, COME_BURST = 2.0, 32.0
"""Programs let in or sent away."""


class _Pace:
    """How often one of them may keep us busy."""

    def __init__(self, hz: float, burst: float) -> None:
        self._hz, self._burst = hz, burst
        self._left, self._at_s = burst, time.monotonic()

    def rest_s(self, spent: float) -> float:
        """How long to rest after so much."""
        now_s = time.monotonic()
        self._left = min(self._burst, self._left + self._hz * (now_s - self._at_s)) - spent
        self._at_s = now_s
        return max(0.0, -self._left / self._hz)


class Desk:
    """The listening socket and everybody connected to it.

    Blocks: never. Thread: the one that made it.

    Attributes:
        turned_away: programs that were disconnected, or not let in because too many are there.
    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o660) -> None:
        """Start to listen.

        Args:
            path: an address of at most 107 bytes.
            mode: permission bits of the socket; who may write it may ask.

        Raises:
            ConfigError: the path is too long.
            UsageError: somebody listens there already.
            StoreError: the socket file cannot be made.
        """
        self.turned_away = 0
        self._listener = ipc.listen(path, mode)
        self._poller = select.epoll()
        self._poller.register(self._listener, select.EPOLLIN)
        self._askers: dict[int, ipc.Channel] = {}
        self._numbers: dict[int, int] = {}  # descriptor -> number
        self._paces = {self._listener.fileno(): _Pace(COME_HZ, COME_BURST)}
        self._resting: dict[int, float] = {}  # descriptor -> until when

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""
        return self._poller.fileno()

    def numbers(self) -> tuple[int, ...]:
        """Who is connected: drawn numbers of 63 bits, so that none means somebody of an earlier run."""
        return tuple(self._askers)

    def receive(self) -> list[tuple[int, Ask]]:
        """What was asked since the last look, by whom; also lets newcomers in, and notices who left."""
        heard: list[tuple[int, Ask]] = []
        for fd, _ in self._poller.poll(0):
            if fd == self._listener.fileno():
                self._welcome()
            elif fd in self._numbers:
                heard += self._listen(self._numbers[fd])
        return heard

    def tell(self, number: int, told: Answer | Budget) -> None:
        """Tell one program something; it is gone, or reads nothing, and that is its own affair."""
        channel = self._askers.get(number)
        if channel is not None and not channel.send(told):
            self._turn_away(number)

    def flush(self) -> None:
        """Pass on what slow readers take now, and listen again to those who have rested."""
        for channel in self._askers.values():
            channel.flush()
        now_s = time.monotonic()
        for fd in [fd for fd, until_s in self._resting.items() if until_s <= now_s]:
            del self._resting[fd]
            self._poller.register(fd, select.EPOLLIN)

    def wake_s(self) -> float:
        """When `flush` is wanted at the latest, on the monotonic clock; infinity while nobody rests."""
        return min(self._resting.values(), default=math.inf)

    def close(self) -> None:
        """Stop listening and disconnect everybody."""
        self._poller.close()
        self._listener.close()
        for channel in self._askers.values():
            channel.close()
        self._askers.clear()

    def _welcome(self) -> None:
        came = 0
        # Whoever connects faster than we can accept must not keep us here; the rest wait for the next look.
        while came < COME_BURST and (channel := ipc.accept(self._listener, MAX_FRAME_BYTES)) is not None:
            came += 1
            if len(self._askers) >= MAX_ASKERS:
                self.turned_away += 1
                channel.close()
                continue
            number = 1 + secrets.randbits(62)
            self._askers[number] = channel
            self._numbers[channel.fileno()] = number
            self._paces[channel.fileno()] = _Pace(SAY_HZ, SAY_BURST)
            self._poller.register(channel, select.EPOLLIN)
        self._rest(self._listener.fileno(), came)

    def _rest(self, fd: int, spent: int) -> None:
        rest_s = self._paces[fd].rest_s(spent)
        if rest_s > 0:
            self._poller.unregister(fd)
            self._resting[fd] = time.monotonic() + rest_s

    def _listen(self, number: int) -> list[tuple[int, Ask]]:
        channel = self._askers[number]
        fd = channel.fileno()
        said = channel.receive()
        asks = [told for told in said if isinstance(told, Ask)]
        if channel.closed:
            self._forget(number, fd)
        else:
            self._rest(fd, 1 + len(said))
        if channel.malformed or len(asks) < len(said) or len(asks) > ASKS_AT_ONCE:
            self._turn_away(number)
            return []
        return [(number, ask) for ask in asks]

    def _turn_away(self, number: int) -> None:
        self.turned_away += 1
        channel = self._askers.get(number)
        if channel is not None:
            self._forget(number, channel.fileno())
            channel.close()

    def _forget(self, number: int, fd: int) -> None:
        """What is closed takes itself out of the poller."""
        del self._askers[number], self._numbers[fd], self._paces[fd]
        self._resting.pop(fd, None)
