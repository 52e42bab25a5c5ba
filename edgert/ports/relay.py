"""A bad link between a device and its broker: a TCP relay in a process of its own, for which nobody need be root.

What is emulated, in each direction by itself: one-way delay; a rate, counted with 40 bytes of TCP/IPv4 headers a
segment; loss of segments; outages. A relay cannot lose what TCP has promised to deliver, so loss is emulated by what it
does to TCP: a lost segment, and with it everything behind it, comes as much later as the sender takes to notice, which
is the retransmission timeout of RFC 6298 for a known, steady round trip (0.2 s as Linux has it, or the round trip and
four times a quarter of it, whichever is longer), twice as long each time the copy is lost as well, and each copy takes
its share of the rate. That is what happens to a few segments now and then, which is what a device sends. It is harder
than the truth for bulk, where fast retransmission notices within a round trip, and kinder in that acknowledgements are
never lost and the window never shrinks; nothing is emulated of bufferbloat, of jitter but that of loss, or of the
handshake.

`settings` is a JSON file of `Shape`, read again whenever it changes; so an outage is written into it. A blackhole holds
everything back, what is under way as well; when it ends that arrives, as TCP would send it again. `resets` counts up to
cut every connection at once. What passed is counted into `counts`, a JSON file too, about twice a second.

    python -m edgert.ports.relay --listen 0 --to 127.0.0.1:1883 --settings link.json --counts counts.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import time
from pathlib import Path

import msgspec

from edgert.errors import ConfigError, EdgertError
from edgert.ports.store import write_atomic

SEGMENT_BYTES = 1448
HEADER_BYTES = 40
WINDOW_BYTES = 256 * 1024
"""Most bytes of a direction under way: what comes above it waits at its sender, as with any receive window."""
RTO_MIN_S = 0.2
RTO_MAX_S = 120.0
LOOK_S = 0.05


class Shape(msgspec.Struct, frozen=True):
    """What the link is like.

    Attributes:
        delay_s: one way.
        rate_bytes_s: of each direction; 0 is without limit.
        loss_frac: of segments, in each direction, of their copies too.
        blackhole: nothing arrives.
        resets: every connection is cut when this grows.
        seed: of the losses.
    """

    delay_s: float = 0.0
    rate_bytes_s: float = 0.0
    loss_frac: float = 0.0
    blackhole: bool = False
    resets: int = 0
    seed: int = 0


class Counts(msgspec.Struct):
    """What passed in one direction: TCP payload, segments with their copies, copies alone."""

    bytes: int = 0
    segments: int = 0
    lost: int = 0

    @property
    def wire_bytes(self) -> int:
        """With headers, and with the payload of the copies at its mean size."""
        mean = self.bytes / max(1, self.segments - self.lost)
        return round(self.bytes + self.lost * mean + self.segments * HEADER_BYTES)


class Direction:
    """One direction of one connection: when does what is sent now arrive? Without clock and without sockets."""

    def __init__(self, rng: random.Random, counts: Counts) -> None:
        """Begin with an idle link."""
        self._rng, self._counts = rng, counts
        self._free_s = self._arrived_s = 0.0

    def send(self, n_bytes: int, shape: Shape, now_s: float) -> float:
        """Put a segment on the link.

        Args:
            n_bytes: of payload, 1..SEGMENT_BYTES.
            shape: of the link now.
            now_s: when it is ready to go.

        Returns:
            When it, and all before it, has arrived.
        """
        took_s = (n_bytes + HEADER_BYTES) / shape.rate_bytes_s if shape.rate_bytes_s > 0 else 0.0
        self._free_s = max(self._free_s, now_s) + took_s
        sent_s, rto_s = self._free_s, max(RTO_MIN_S, 2 * shape.delay_s * 2)
        self._counts.bytes += n_bytes
        self._counts.segments += 1
        while self._rng.random() < shape.loss_frac:
            self._counts.lost += 1
            self._counts.segments += 1
            # What is behind may go meanwhile: the link is taken only for the time of the copy.
            self._free_s += took_s
            sent_s = sent_s + rto_s + took_s
            rto_s = min(2 * rto_s, RTO_MAX_S)
        self._arrived_s = max(self._arrived_s, sent_s + shape.delay_s)
        return self._arrived_s


class Relay:
    """All connections through one link.

    Attributes:
        shape: of now.
        up, down: what passed from the clients, and to them.
        connections: how many there were.
    """

    def __init__(self, to: tuple[str, int], settings: Path, counts: Path | None) -> None:
        """Read the settings.

        Args:
            to: host and port of the broker.
            settings: JSON of `Shape`.
            counts: where to write what passed.

        Raises:
            ConfigError: the settings cannot be read.
        """
        self._to, self._settings, self._counts = to, settings, counts
        self._read_ns = 0
        self.shape = Shape()
        self.up, self.down, self.connections = Counts(), Counts(), 0
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._look()

    def _look(self) -> None:
        try:
            changed_ns = self._settings.stat().st_mtime_ns
            if changed_ns == self._read_ns:
                return
            shape = msgspec.json.decode(self._settings.read_bytes(), type=Shape)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{self._settings}: {error}; it holds JSON as edgert.ports.relay.Shape") from error
        self._read_ns, cut = changed_ns, shape.resets > self.shape.resets
        self.shape = shape
        if cut:
            for writer in self._open:
                writer.transport.abort()

    async def run(self, port: int, ready: asyncio.Future[int]) -> None:
        """Serve until cancelled; `ready` is told the port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        ready.set_result(int(server.sockets[0].getsockname()[1]))
        written_s = 0.0
        try:
            while True:
                self._look()
                if time.monotonic() - written_s > 10 * LOOK_S:
                    written_s = time.monotonic()
                    self.note()
                await asyncio.sleep(LOOK_S)
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await asyncio.sleep(0)  # what was aborted is closed in the loop's next turn

    def note(self) -> None:
        """Write down what passed so far."""
        if self._counts is not None:
            found = {
                "connections": self.connections,
                **{
                    f"{name}_{what}": getattr(each, what)
                    for name, each in (("up", self.up), ("down", self.down))
                    for what in ("bytes", "segments", "lost", "wire_bytes")
                },
            }
            write_atomic(self._counts, msgspec.json.encode(found))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._open |= ends
        rng = random.Random(self.shape.seed * 1_000_003 + self.connections)
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, Direction(rng, self.up)),
                self._pump(far_reader, writer, Direction(rng, self.down)),
            )
        except asyncio.CancelledError:
            return  # the relay ends, and asyncio's own callback would cry over a handler that was cancelled
        finally:
            self._open -= ends
            for each in ends:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction) -> None:
        arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW_BYTES // SEGMENT_BYTES)

        async def deliver() -> None:
            while True:
                at_s, data = await arriving.get()
                while self.shape.blackhole or time.monotonic() < at_s:
                    await asyncio.sleep(LOOK_S if self.shape.blackhole else at_s - time.monotonic())
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(SEGMENT_BYTES):
                    await arriving.put((way.send(len(data), self.shape, time.monotonic()), data))
            await arriving.put((time.monotonic() + self.shape.delay_s, b""))
            with contextlib.suppress(OSError):
                await delivery
        finally:
            delivery.cancel()


async def serve(relay: Relay, port: int) -> None:
    """Say the port on stdout, and serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[int] = loop.create_future()
    serving = asyncio.create_task(relay.run(port, ready))
    for ending in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(ending, serving.cancel)
    ready.add_done_callback(lambda told: print(told.result(), flush=True))
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    relay.note()


def main(argv: list[str] | None = None) -> int:
    """Run one link."""
    parser = argparse.ArgumentParser(prog="python -m edgert.ports.relay", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--listen", type=int, default=0, help="port; 0 draws one and prints it")
    parser.add_argument("--to", required=True, help="host:port of the broker")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--counts", type=Path)
    args = parser.parse_args(argv)
    host, _, port = args.to.rpartition(":")
    try:
        asyncio.run(serve(Relay((host, int(port)), args.settings, args.counts), args.listen))
    except (EdgertError, ValueError, OSError) as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
