"""Many identities at one broker in one thread: each is a `ports.mqtt.Mqtt` without a thread, turned by one epoll loop.

A thread and four descriptors each are right for a device, and out of the question for a machine that plays thousands of
them. What a session does is decided where it always is; only who waits for its socket differs.
"""

from __future__ import annotations

import heapq
import select
import time
from typing import Any

from edgert.fleet.session import LINK_RULES, LinkRules, Phase
from edgert.ports.link import Address
from edgert.ports.mqtt import Mqtt

BATCH = 64
"""So many connect in one turn: connecting takes a while, and others want to be heard."""
SILENT_S = 12.0
"""A link on which nothing happens is looked at so often."""


class Turned(Mqtt):
    """One identity, turned by a `Loop`; everything happens in the thread that calls `Loop.turn`.

    Thread:
        That of the loop, for all methods.

    Attributes:
        cut_until_s: monotonic time until which there is no way to the broker.
        due_s: when the loop looks at it, although nothing happened.
        watched: the socket that the loop waits for, and for what; None while there is none.
    """

    def __init__(
        self,
        loop: Loop,
        url: str | Address,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        birth: tuple[str, bytes] | None = None,
        session_expiry_s: int = 86_400,
        keepalive_s: int = 30,
        receive_maximum: int = 64,
        rules: LinkRules = LINK_RULES,
    ) -> None:
        """Prepare, as `Mqtt` does; nothing happens before `start()`."""
        super().__init__(
            url,
            client_id,
            will=will,
            birth=birth,
            session_expiry_s=session_expiry_s,
            keepalive_s=keepalive_s,
            receive_maximum=receive_maximum,
            rules=rules,
        )
        # Nobody waits for these; what is put into a closed inbox can still be taken.
        for end in (self._wake_r, self._wake_w, self._inbox):
            end.close()
        self._loop = loop
        self._on = False
        self.cut_until_s = self.due_s = 0.0
        self.watched: tuple[Any, int] | None = None

    def start(self) -> Turned:
        """Begin to connect, when the loop comes to it."""
        self._on = True
        self._loop.add(self)
        return self

    def waiting(self) -> bool:
        """`events()` has something."""
        return len(self._inbox) > 0

    def waits(self) -> bool:
        """It has no connection, and makes one when its time has come."""
        return self._link.phase is Phase.WAITING

    def healthy(self) -> bool:
        """Between `start()` and `close()`; its thread is the loop's."""
        return self._on

    def cut(self, for_s: float) -> None:
        """Lose the broker at once and without a word, for a while."""
        self.cut_until_s = time.monotonic() + for_s
        if self._client is not None:
            self._drop(None, "cut off")
        self._wake()

    def close(self, *, goodbye: bool = True, flush_s: float = 0.0) -> None:
        """Leave, with what is written by now; without `goodbye` the broker publishes the will."""
        if self._on:
            self._on, self._goodbye = False, goodbye
            self._leave()
            self._loop.forget(self)

    def turn(self) -> None:
        """Do what is due; whatever goes wrong costs one connection."""
        if not self._on:
            return
        try:
            self._turn()
        except Exception as error:  # one loop turns thousands: what ails one must not stop the others
            self._count("internal-error")
            self._drop(None, f"internal error: {error!r}")

    def io(self, ready: int) -> None:
        """The socket is ready for something."""
        client = self._client
        if client is None or client.socket() is None:
            return
        try:
            if ready & select.EPOLLOUT:
                client.loop_write()
            if ready & ~select.EPOLLOUT:
                sock: Any = client.socket()
                client.loop_read()
                while sock is not None and client.socket() is sock and getattr(sock, "pending", int)():
                    client.loop_read()
        except Exception as error:  # as in `turn`
            self._count("internal-error")
            self._drop(None, f"internal error: {error!r}")
        self._check_lost()

    def wants(self) -> tuple[Any, int] | None:
        """Its socket, and what to wait for; None while there is none."""
        client = self._client
        sock: Any = None if client is None else client.socket()
        if client is None or sock is None or sock.fileno() < 0:
            return None
        return sock, select.EPOLLIN | (select.EPOLLOUT if client.want_write() else 0)

    def next_s(self, now_s: float) -> float:
        """When to look at it again although nothing happens."""
        return self._link.at_s if self.waits() else now_s + SILENT_S

    def _wake(self) -> None:
        self._loop.wake(self)

    def _wait(self) -> None:
        """The loop waits."""

    def _connect(self) -> None:
        if time.monotonic() < self.cut_until_s:
            self._drop(None, "cut off")
        else:
            super()._connect()


class Loop:
    """Turns links.

    Blocks:
        `turn`, up to its timeout, and while a link connects: thousands connect one after the other.
    """

    def __init__(self) -> None:
        """Begin without a link."""
        self._epoll = select.epoll()
        self._by_fd: dict[int, Turned] = {}
        self._due: list[tuple[float, int, Turned]] = []
        self._awake: dict[Turned, None] = {}
        self._serial = 0

    def add(self, link: Turned) -> None:
        """Look at a link from now on."""
        self._push(link, 0.0)

    def wake(self, link: Turned) -> None:
        """Look at a link in the next turn."""
        if link.healthy():
            self._awake[link] = None

    def forget(self, link: Turned) -> None:
        """A link has left."""
        self._awake.pop(link, None)
        self._unwatch(link)

    def turn(self, timeout_s: float) -> list[Turned]:
        """Wait until something happens, and let it.

        Args:
            timeout_s: at most so long.

        Returns:
            Links whose `events()` have something.
        """
        now_s = time.monotonic()
        if self._awake:
            timeout_s = 0.0
        elif self._due:
            timeout_s = max(0.0, min(timeout_s, self._due[0][0] - now_s))
        touched: dict[Turned, None] = {}
        for fd, ready in self._epoll.poll(timeout_s):
            link = self._by_fd.get(fd)
            if link is not None:
                link.io(ready)
                touched[link] = None
        awake, self._awake = self._awake, {}
        touched |= awake
        now_s = time.monotonic()
        connecting = 0
        while self._due and self._due[0][0] <= now_s and connecting < BATCH:
            at_s, _, link = heapq.heappop(self._due)
            if at_s == link.due_s:  # otherwise it has a later entry, or an earlier one
                touched[link] = None
                connecting += link.waits()
        for link in touched:
            link.turn()
            self._settle(link, now_s)
        return [link for link in touched if link.waiting()]

    def close(self) -> None:
        """Let go; links are closed one by one."""
        self._epoll.close()

    def _settle(self, link: Turned, now_s: float) -> None:
        if not link.healthy():
            return
        wanted = link.wants()
        if wanted != link.watched:
            same = wanted is not None and link.watched is not None and wanted[0] is link.watched[0]
            if wanted is not None and same:
                self._epoll.modify(wanted[0].fileno(), wanted[1])
            else:
                self._unwatch(link)
                if wanted is not None:
                    # A descriptor is reused as soon as it is closed: whoever had it has it no more.
                    self._by_fd[wanted[0].fileno()] = link
                    self._epoll.register(*wanted)
            link.watched = wanted
        due_s = link.next_s(now_s)
        # Of links that are up an entry that comes too early does no harm, and one each time would fill the heap.
        if due_s < link.due_s or link.due_s <= now_s:
            self._push(link, due_s)

    def _push(self, link: Turned, due_s: float) -> None:
        link.due_s = due_s
        self._serial += 1
        heapq.heappush(self._due, (due_s, self._serial, link))

    def _unwatch(self, link: Turned) -> None:
        if link.watched is None:
            return
        fd = link.watched[0].fileno()
        if fd >= 0:  # the kernel forgets a closed one by itself
            self._epoll.unregister(fd)
            del self._by_fd[fd]
        link.watched = None
