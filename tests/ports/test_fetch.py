from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgert import wire
from edgert.errors import ArtifactError, LinkError, StoreError
from edgert.fleet import fetch
from edgert.ports.fetch import Came, Ended, Http, Part, sweep, wait_for

CHUNK = 4096


def content(n_bytes: int) -> bytes:
    return random.Random(n_bytes).randbytes(n_bytes)


def offer_of(data: bytes, url: str = "") -> wire.PolicyOffer:
    return wire.PolicyOffer(
        id="r1",
        name="n",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=CHUNK,
        hashes=fetch.hashes(data, CHUNK),
        version=1,
        url=url,
    )


def test_chunks_that_are_written_are_found_again_and_become_the_file(tmp_path: Path) -> None:
    data = content(3 * CHUNK + 5)
    part = Part(tmp_path / "store", offer_of(data))
    assert part.there() == set()
    for k in (3, 0, 2):
        part.keep(k, data[k * CHUNK : (k + 1) * CHUNK])
    assert Part(tmp_path / "store", offer_of(data)).there() == {0, 2, 3}
    part.keep(1, data[CHUNK : 2 * CHUNK])
    path = part.finish()
    assert path.read_bytes() == data and path.name == f"{offer_of(data).sha256}.edgert"
    assert part.there() == {0, 1, 2, 3} and part.finish() == path
    assert [each.name for each in (tmp_path / "store").iterdir()] == [path.name]


def test_a_torn_chunk_is_not_there(tmp_path: Path) -> None:
    data = content(2 * CHUNK)
    part = Part(tmp_path, offer_of(data))
    for k in (0, 1):
        part.keep(k, data[k * CHUNK : (k + 1) * CHUNK])
    file = tmp_path / f"{offer_of(data).sha256}.part"
    torn = bytearray(file.read_bytes())
    torn[CHUNK + 7] ^= 1
    file.write_bytes(torn)
    assert part.there() == {0}


def test_a_whole_that_is_not_what_was_offered_is_thrown_away(tmp_path: Path) -> None:
    data = content(2 * CHUNK)
    lied = msgspec.structs.replace(offer_of(data), sha256="0" * 64)  # its chunks have the right hashes
    part = Part(tmp_path, lied)
    for k in (0, 1):
        part.keep(k, data[k * CHUNK : (k + 1) * CHUNK])
    with pytest.raises(ArtifactError, match="not what was offered"):
        part.finish()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_says_so(tmp_path: Path) -> None:
    data = content(CHUNK)
    with pytest.raises(StoreError, match="does not exist"):
        Part(tmp_path / "gone", offer_of(data)).keep(0, data)
    assert Part(tmp_path, offer_of(data)).free_bytes() > 0


def test_what_nobody_needs_is_swept_away(tmp_path: Path) -> None:
    for name in ("a.edgert", "b.part", "c.edgert", "acting.json"):
        (tmp_path / name).write_bytes(b"12345")
    assert sweep(tmp_path, {"a"}) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.edgert", "acting.json"]


class Server:
    """An HTTP server that serves ranges of one file, and does with each answer what `cut` says."""

    def __init__(self, data: bytes, cut: Callable[[int], int | None], status: int = 0) -> None:
        self.data, self.cut, self.status = data, cut, status
        self.answers = self.sent_bytes = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/a.edgert?x=1"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), peer:
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += peer.recv(4096)
                begin, end = asked.split(b"bytes=")[1].split(b"\r\n")[0].split(b"-")
                body = self.data[int(begin) : int(end) + 1]
                if self.status:
                    self.answers += 1  # before its answer: who has that may look at this
                    peer.sendall(b"HTTP/1.1 %d no\r\nContent-Length: 0\r\n\r\n" % self.status)
                    continue
                head = b"HTTP/1.1 206 Partial\r\nContent-Length: %d\r\n" % len(body)
                head += b"Content-Range: bytes %s-%s/%d\r\n\r\n" % (begin, end, len(self.data))
                limit = self.cut(self.answers)
                self.answers += 1
                sent = head + body[:limit]
                self.sent_bytes += len(sent)
                peer.sendall(sent)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(data: bytes, cut: Callable[[int], int | None] = lambda _: None, status: int = 0) -> Server:
        servers.append(Server(data, cut, status))
        return servers[-1]

    yield make
    for server in servers:
        server.socket.close()


def http(server: Server, missing: list[int] | None = None, budget_bytes: int = 1 << 30) -> list[Came | Ended]:
    offer = offer_of(server.data, server.url)
    source = Http(offer, missing or list(range(fetch.count(offer))), budget_bytes, retry_s=0.001)
    source.start()
    with contextlib.closing(source):
        return wait_for(source, 30.0)


def test_everything_comes_over_http(serve: Callable[..., Server]) -> None:
    server = serve(content(5 * CHUNK + 1))
    *came, ended = http(server)
    assert ended == Ended("", 0) and server.answers == 1
    assert b"".join(each.data for each in came if isinstance(each, Came)) == server.data
    assert [each.index for each in came if isinstance(each, Came)] == list(range(6))


def test_what_came_before_a_cut_inside_a_chunk_is_not_fetched_again(serve: Callable[..., Server]) -> None:
    data = content(400_000)
    server = serve(data, lambda n: 40_123 if n < 9 else None)
    *came, ended = http(server)
    assert ended.why == "" and server.answers == 10  # type: ignore[union-attr]  # the last one is an `Ended`
    assert b"".join(each.data for each in came if isinstance(each, Came)) == data
    spent = sum(each.spent_bytes for each in came)
    assert server.sent_bytes <= spent <= 1.02 * len(data)


def test_only_what_is_missing_is_fetched(serve: Callable[..., Server]) -> None:
    server = serve(content(5 * CHUNK))
    *came, _ = http(server, [1, 3, 4])
    assert [each.index for each in came if isinstance(each, Came)] == [1, 3, 4]
    assert server.answers == 2 and server.sent_bytes < 3 * CHUNK + 400


@pytest.mark.parametrize(("status", "why"), [(404, "404"), (302, "302"), (200, "ranges")])
def test_a_server_that_has_it_not_is_given_up(serve: Callable[..., Server], status: int, why: str) -> None:
    server = serve(content(5 * CHUNK), status=status)
    (ended,) = http(server, [2])
    assert isinstance(ended, Ended) and why in ended.why and server.answers == 1


def test_a_server_that_is_ill_is_asked_again_and_then_given_up(serve: Callable[..., Server]) -> None:
    server = serve(content(CHUNK), status=503)
    (ended,) = http(server)
    assert isinstance(ended, Ended) and "503" in ended.why and server.answers == 8


def test_the_budget_is_kept(serve: Callable[..., Server]) -> None:
    server = serve(content(20 * CHUNK))
    *came, ended = http(server, budget_bytes=10 * CHUNK)
    assert isinstance(ended, Ended) and ended.why.startswith("over-budget")
    assert sum(each.spent_bytes for each in came) + ended.spent_bytes <= 10 * CHUNK + 400


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/a",
        "http://",
        "http://h:99999/a",
        "file:///etc/passwd",
        "http://h/\xe4",
        "http://h/a b",
        "http://\xe4\x00/a",
    ],
)
def test_only_http_is_spoken(url: str) -> None:
    source = Http(offer_of(content(9), url), [0], 1 << 20, retry_s=0.001)
    source.start()
    with contextlib.closing(source):
        (ended,) = wait_for(source, 30.0)
    assert isinstance(ended, Ended) and ended.why


@pytest.mark.parametrize(
    "url",
    [
        "http://user:canary@127.0.0.1:1/a?token=canary#canary",
        "http://h/a b?canary",
        "ftp://h/?canary",
        "http://[canary/",
    ],
)
def test_no_error_repeats_what_may_let_somebody_in(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgert.ports.fetch.TRIES_MAX", 1)
    source = Http(offer_of(content(9), url), [0], 1 << 20, retry_s=0.001)
    source.start()
    with contextlib.closing(source):
        (ended,) = wait_for(source, 30.0)
    assert isinstance(ended, Ended) and ended.why and "canary" not in ended.why


def test_patience_ends() -> None:
    source = Http(offer_of(content(9), "http://127.0.0.1:1/"), [0], 1 << 20, retry_s=60.0)
    source.start()
    with pytest.raises(LinkError, match="no end"):
        wait_for(source, 0.05)
    source.close()


def test_a_certificate_that_is_not_valid_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a ValueError as well as an OSError; a clock that was not set is, by the next attempt."""
    said = content(9)
    offer = offer_of(said, "https://h/a")
    tries: list[str] = []

    class Connection:
        def request(self, *_: object, **__: object) -> None:
            tries.append("once more")
            raise ssl.SSLCertVerificationError(1, "certificate is not yet valid")

        def close(self) -> None:
            pass

    monkeypatch.setattr(Http, "_connect", lambda _: Connection())
    source = Http(offer, [0], 1 << 20, retry_s=0.001)
    with pytest.raises(LinkError, match="not yet valid"):
        source._attempt()
    source.close()
