from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgert import offers, wire
from edgert.errors import StoreError
from edgert.fleet import fetch, update
from edgert.ports.link import LinkDown, LinkUp, Received
from edgert.ports.mqtt import Mqtt
from edgert.ports.policies import Store

CHUNK = 4096
DATA = random.Random(1).randbytes(10 * CHUNK + 3)


class NoLink:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.filters: list[str] = []

    def subscribe(self, filters: list[tuple[str, int]], *, again: bool) -> None:
        assert all(qos == 0 for _, qos in filters) and not again
        self.filters += [name for name, _ in filters]

    def unsubscribe(self, filters: list[str], *, again: bool) -> None:
        assert not again
        for name in filters:
            self.filters.remove(name)


def offer_of(data: bytes = DATA, **changed: Any) -> wire.PolicyOffer:
    fields = {
        "id": "r1",
        "name": "n",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "chunk_bytes": CHUNK,
        "hashes": fetch.hashes(data, CHUNK),
        "version": 1,
        "budget_bytes": 1 << 30,
    }
    return wire.PolicyOffer(**{**fields, **changed})


def judge(found: Any, offer: wire.PolicyOffer, path: str) -> offers.Checked:
    raise AssertionError("it is no bundle")


def store_in(folder: Path, mqtt: Any = None) -> Store:
    return Store(folder / "fleet", "f", mqtt or NoLink())


def test_what_is_noted_is_found_by_a_successor(tmp_path: Path) -> None:
    with contextlib.closing(store_in(tmp_path)) as store:
        assert store.found() == (b"", b"", b"")
        assert store.perform(offers.Note(b"n"), judge) == [offers.Noted(True)]
        assert store.perform(offers.KeysNote(b"k"), judge) == store.perform(offers.SeenNote(b"s"), judge) == []
    with contextlib.closing(store_in(tmp_path)) as store:
        assert store.found() == (b"k", b"s", b"n")


def test_a_file_comes_chunk_by_chunk_and_is_looked_at(tmp_path: Path) -> None:
    link = NoLink()
    with contextlib.closing(store_in(tmp_path, link)) as store:
        store.found()
        offer = offer_of()
        (found,) = store.perform(offers.Open(offer), judge)
        assert isinstance(found, offers.Found) and found.there == () and found.free_bytes > 0
        for k in range(11):
            store.perform(offers.Ask(k, offer.sha256), judge)
            told = store.perform(offers.Keep(k, DATA[k * CHUNK : (k + 1) * CHUNK], offer.sha256), judge)
            assert told == [offers.Kept(k, True)]
            store.perform(offers.Leave(k, offer.sha256), judge)
        assert link.filters == []
        (checked,) = store.perform(offers.Check(offer), judge)
        assert isinstance(checked, offers.Checked) and checked.code == "unreadable"  # the right bytes, and no bundle
        assert list((store.folder / "bundles").iterdir())
        store.perform(offers.Sweep(()), judge)
        assert not list((store.folder / "bundles").iterdir())


def test_a_chunk_of_another_file_is_not_kept(tmp_path: Path) -> None:
    with contextlib.closing(store_in(tmp_path)) as store:
        store.found()
        assert store.perform(offers.Keep(0, b"x", "0" * 64), judge) == [offers.Kept(0, False)]


def test_a_disk_that_does_not_work_is_told_and_nothing_breaks(tmp_path: Path) -> None:
    (tmp_path / "fleet").write_text("a file in the way")
    with contextlib.closing(store_in(tmp_path)) as store:
        with pytest.raises(StoreError):
            store.found()
        assert store.perform(offers.Note(b"n"), judge) == [offers.Noted(False)]
        assert store.perform(offers.Open(offer_of()), judge) == [offers.Found(offer_of().sha256, (), 0)]
        (checked,) = store.perform(offers.Check(offer_of()), judge)
        assert isinstance(checked, offers.Checked) and checked.code == "not-written"


def test_http_that_cannot_be_had_ends(tmp_path: Path, until: Callable[..., None]) -> None:
    with contextlib.closing(store_in(tmp_path)) as store:
        told: list[Any] = []
        store.perform(offers.Http(offer_of(url="ftp://h/x"), (0,), 1000), judge)
        until(lambda: told.extend(store.events()) or told, "the end")
        assert isinstance(told[0], offers.HttpEnded) and told[0].why


@pytest.mark.system
def test_a_policy_comes_over_a_real_broker_that_is_cut_again_and_again_within_its_budget(
    tmp_path: Path, mosquitto: Any, tcp_link: Callable[[int], Any], until: Callable[..., None]
) -> None:
    data = random.Random(2).randbytes(600_000)
    offer = offer_of(data, chunk_bytes=fetch.CHUNK_BYTES, hashes=fetch.hashes(data, fetch.CHUNK_BYTES), budget_bytes=0)
    with Mqtt(mosquitto.url, "publisher", session_expiry_s=0) as publisher:
        until(publisher.is_up, "the publisher")
        for k in range(fetch.count(offer)):
            at = k * offer.chunk_bytes
            chunk = wire.encode(wire.PolicyChunk(data=data[at : at + offer.chunk_bytes]))
            topic = fetch.topic("cuts", offer.sha256, k)
            until(lambda t=topic, c=chunk: publisher.publish(t, c, qos=1, retain=True), "room")
        until(lambda: publisher.rtt_s() is not None, "the broker's answer")
    link = tcp_link(mosquitto.port)
    with Mqtt(link.url, "fetcher", session_expiry_s=60) as mqtt:
        store = Store(tmp_path / "fleet", "cuts", mqtt)
        store.found()
        state, told, cuts, received_bytes = update.Updates(), list[Any]([update.Offered(offer)]), 0, 0

        def turn() -> bool:
            nonlocal state, cuts, received_bytes
            for event in mqtt.events():
                if isinstance(event, LinkUp | LinkDown):
                    told.append(update.LinkUp() if isinstance(event, LinkUp) else update.LinkDown())
                if isinstance(event, Received):
                    received_bytes += len(event.payload) + len(event.topic) + 30
                    index = fetch.index_of(wire.parse_topic(event.topic).id, offer)
                    assert index is not None
                    told.append(offers.Arrived(index, wire.decode(event.payload, wire.PolicyChunk)[0].data))
            while told:
                state, effects = update.step(state, told.pop(0), 0.0)
                for effect in effects:
                    if isinstance(effect, offers.Do.__args__):  # type: ignore[attr-defined]  # a union has them
                        told.extend(store.perform(effect, judge))
                    if isinstance(effect, offers.Keep) and effect.index % 3 == 2:
                        link.cut()
                        cuts += 1
            return state.document.stage == "refused"

        until(turn, "the whole file")
        assert state.document.code == "unreadable"  # the right bytes, and no bundle
        assert cuts >= 5
        assert received_bytes <= state.document.spent_bytes <= 1.02 * len(data)
        store.close()


def serve_ranges(data: bytes, cut_after_bytes: int) -> tuple[str, socket.socket]:
    """An HTTP server whose answers break off."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), peer:
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += peer.recv(4096)
                begin, end = asked.split(b"bytes=")[1].split(b"\r\n")[0].split(b"-")
                body = data[int(begin) : int(end) + 1]
                head = b"HTTP/1.1 206 P\r\nContent-Length: %d\r\nContent-Range: bytes %s-%s/9\r\n\r\n"
                peer.sendall(head % (len(body), begin, end) + body[:cut_after_bytes])

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/p", server


def test_a_policy_comes_over_http_that_breaks_off_and_the_broker_is_not_asked(
    tmp_path: Path, until: Callable[..., None]
) -> None:
    data = random.Random(3).randbytes(300_000)
    url, server = serve_ranges(data, 170_000)
    offer = offer_of(data, url=url, budget_bytes=0)
    link = NoLink()
    with contextlib.closing(store_in(tmp_path, link)) as store, contextlib.closing(server):
        store.found()
        state, told = update.Updates(), list[Any]([update.LinkUp(), update.Offered(offer)])

        def turn() -> bool:
            nonlocal state
            told.extend(store.events())
            while told:
                state, effects = update.step(state, told.pop(0), 0.0)
                for effect in effects:
                    if isinstance(effect, offers.Do.__args__):  # type: ignore[attr-defined]  # a union has them
                        told.extend(store.perform(effect, judge))
            return state.document.stage == "refused"

        until(turn, "the whole file")
        assert state.document.code == "unreadable"  # the right bytes, and no bundle
        assert state.document.spent_bytes <= 1.05 * len(data) and not link.filters
