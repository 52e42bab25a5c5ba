"""A plant made of users' own programs: they ask for decisions over a Unix socket.

The frames are documented in edgert/client/__init__.py. Each connection is a stream of its own: what it says of a
previous action is about the last action it was given.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque

from edgert.errors import UsageError
from edgert.ports import ipc
from edgert.ports.plant import Fault, Observation, read_frame

MAX_CLIENTS = 32


class _Client:
    def __init__(self, channel: ipc.Channel, stream: int) -> None:
        self.channel = channel
        self.stream = stream
        self.malformed = 0
        self.asked: deque[dict[str, object]] = deque()
        self.episode = 0
        self.action: int | None = None


class LocalPlant:
    """Server for `edgert.client.Policy` and its kin; answers one request at a time, clients in turn. Meets `Plant`.

    A faulty request is answered by its named error, to its sender only, and the connection stays usable. A client whose
    answers pile up is disconnected.

    Blocks: only `observe`, and only while nobody asks. Thread: one.
    """

    paced = False

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        obs_shape: tuple[int, int, int],
        n_actions: int,
        mode: int = 0o660,
    ) -> None:
        """Start to listen.

        Args:
            socket_path: an address of at most 107 bytes.
            obs_shape: (H, W, C) the policy takes.
            n_actions: of the policy.
            mode: permission bits of the socket; who may write it may ask.

        Raises:
            ConfigError: the path is too long.
            UsageError: somebody listens there already.
            StoreError: the socket file cannot be made.
        """
        self.faults: dict[str, int] = {}
        self.last_fault = ""
        self._obs_shape = obs_shape
        self._n_actions = n_actions
        self._listener = ipc.listen(socket_path, mode)
        self._clients: deque[_Client] = deque()
        self._serving: _Client | None = None
        self._streams = self._episodes = self._seq = 0

    def observe(self, timeout_s: float) -> Observation | None:
        """The next client's observation; see `Plant.observe`."""
        deadline_s = time.monotonic() + timeout_s
        if self._serving is not None:
            self._refuse(self._serving, Fault("no-decision", "the actor came to no decision: ask again"))
            self._serving = None
        while True:
            self._pump()
            for _ in range(len(self._clients)):
                client = self._clients[0]
                self._clients.rotate(-1)
                if garbled := client.channel.malformed - client.malformed:
                    client.malformed += garbled
                    for _ in range(garbled):
                        self._count(client, Fault("malformed-frame", "the frame holds no CBOR map with text keys"))
                    return None
                if client.asked:
                    return self._read(client, client.asked.popleft())
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return None
            self._wait(remaining_s)

    def apply(self, action: int, *, exit: int, confidence: float | None, generation: int) -> None:
        """Answer the client whose observation was returned last; without one there is nobody to tell, and that is fine.

        Raises:
            UsageError: the policy has no such action.
        """
        if not 0 <= action < self._n_actions:
            raise UsageError(f"action {action} is not one of 0..{self._n_actions - 1}")
        client, self._serving = self._serving, None
        if client is None:
            return
        client.action = int(action)
        answer = {"action": int(action), "exit": exit, "confidence": confidence, "generation": generation}
        self._send(client, {**answer, "seq": self._seq})

    def close(self) -> None:
        """Stop listening and disconnect everybody."""
        self._listener.close()
        for client in self._clients:
            client.channel.close()
        self._clients.clear()
        self._serving = None

    def _pump(self) -> None:
        while (channel := ipc.accept(self._listener)) is not None:
            if len(self._clients) >= MAX_CLIENTS:
                channel.send_map({"error": "too-many-clients", "detail": f"at most {MAX_CLIENTS} are served"})
                channel.close()
                continue
            self._streams += 1
            # At the head, so that a newcomer is not overtaken for ever by those who ask without pause.
            self._clients.appendleft(_Client(channel, self._streams))
        for client in self._clients:
            client.channel.flush()
            # Not read while it waits for an answer: its own socket then holds back one that asks too fast.
            if not client.asked and client.channel.malformed == client.malformed:
                client.asked.extend(client.channel.receive_maps())
        gone = [
            client for client in self._clients if client.channel.closed and client.channel.malformed == client.malformed
        ]
        for client in gone:
            self._clients.remove(client)

    def _wait(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._listener.fileno(), select.POLLIN)
        for client in self._clients:
            if not client.channel.closed:
                writable = select.POLLOUT if client.channel.wants_write else 0
                poller.register(client.channel.fileno(), select.POLLIN | writable)
        poller.poll(timeout_s * 1e3)

    def _read(self, client: _Client, frame: dict[str, object]) -> Observation | None:
        shown = read_frame(frame, self._obs_shape)
        if isinstance(shown, Fault):
            self._count(client, shown)
            return None
        first = client.episode == 0
        if first or shown.terminated or shown.truncated:
            self._episodes += 1
            client.episode = self._episodes
        self._seq += 1
        self._serving = client
        return Observation(
            obs=shown.obs,
            reward=0.0 if first else shown.reward,
            terminated=shown.terminated and not first,
            truncated=shown.truncated and not first,
            episode=client.episode,
            seq=self._seq,
            action=client.action,
            stream=client.stream,
        )

    def _count(self, client: _Client, fault: Fault) -> None:
        self.faults[fault.name] = self.faults.get(fault.name, 0) + 1
        self.last_fault = fault.detail
        self._refuse(client, fault)

    def _refuse(self, client: _Client, fault: Fault) -> None:
        self._send(client, {"error": fault.name, "detail": fault.detail})

    def _send(self, client: _Client, message: dict[str, object]) -> None:
        if not client.channel.send_map(message):
            client.channel.close()
            client.asked.clear()
