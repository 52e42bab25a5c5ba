from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import wire
from edgert.fleet import fetch
from edgert.offers import Arrived, Ask, Keep, Kept, Leave

RULES = fetch.Rules(window=2, steady=2, patience_s=10.0, patience_cap_s=40.0)


def content(n_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


def offer_of(data: bytes, chunk_bytes: int = 4096, budget_bytes: int = 0) -> wire.PolicyOffer:
    return wire.PolicyOffer(
        id="r1",
        name="n",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=chunk_bytes,
        hashes=fetch.hashes(data, chunk_bytes),
        version=1,
        budget_bytes=budget_bytes,
    )


class Wire:
    """A broker that retains the chunks, a device's disk, and a link that does what `draw` says at every delivery."""

    def __init__(self, data: bytes, offer: wire.PolicyOffer) -> None:
        self.data, self.offer = data, offer
        self.state = fetch.begin(offer, ())
        self.disk: dict[int, bytes] = {}
        self.wanted: Counter[int] = Counter()
        self.now_s = 0.0
        self.whole = 0
        self.over_link_bytes = 0  # what really crossed, counted here and not there
        self.asks = 0

    def chunk(self, k: int) -> bytes:
        return self.data[k * self.offer.chunk_bytes : (k + 1) * self.offer.chunk_bytes]

    def tell(self, event: fetch.Event) -> None:
        self.state, effects = fetch.step(self.state, event, self.now_s, RULES)
        for effect in effects:
            match effect:
                case Ask(index):
                    self.wanted[index] += 1
                    self.asks += 1
                    self.over_link_bytes += fetch.ask_bytes(self.offer)
                case Leave(index):
                    self.wanted.pop(index, None)
                case Keep(index, data):
                    self.disk[index] = data
                    self.tell(Kept(index))
                case fetch.Whole():
                    self.whole += 1

    def deliver(self, k: int, data: bytes | None = None) -> None:
        payload = self.chunk(k) if data is None else data
        self.over_link_bytes += len(payload) + len(fetch.topic("f", self.offer.sha256, k)) + 40
        self.tell(Arrived(k, payload))

    def restart(self) -> None:
        """Power is cut: the bitmap is found again from the disk."""
        there = [k for k, data in self.disk.items() if fetch.is_chunk(self.offer, k, data)]
        self.state = fetch.begin(self.offer, there, spent_bytes=self.state.spent_bytes)
        self.wanted.clear()

    def run(self, happen: Callable[[], str], steps: int = 20_000) -> None:
        for _ in range(steps):
            if self.whole or self.state.stopped:
                return
            self.now_s += 1.0
            what = happen()
            if what == "cut":
                self.tell(fetch.Down())
                self.wanted.clear()
            elif what == "restart":
                self.restart()
            if not self.state.up:
                self.tell(fetch.Up())
            waiting = sorted(self.wanted)
            if what == "bad" and waiting:
                self.deliver(waiting[0], b"\0" * len(self.chunk(waiting[0])))
            elif what == "duplicate" and self.disk:
                self.deliver(min(self.disk))
            elif what == "lose" or not waiting:
                self.now_s += 50.0
            elif what != "cut":
                self.deliver(waiting[-1] if what == "reorder" else waiting[0])
            self.tell(fetch.Tick())
        raise AssertionError("it never came to an end")

    def check(self) -> None:
        assert self.whole == 1
        assert b"".join(self.disk[k] for k in range(fetch.count(self.offer))) == self.data


@given(
    st.integers(1, 60_000), st.lists(st.sampled_from(["cut", "restart", "duplicate", "reorder", "lose", "ok", "bad"]))
)
@settings(max_examples=150)
def test_it_comes_whole_through_whatever_happens(n_bytes: int, trouble: list[str]) -> None:
    data = content(n_bytes)
    wire_ = Wire(data, offer_of(data, budget_bytes=1 << 40))
    happening = iter(trouble)
    wire_.run(lambda: next(happening, "ok"))
    if wire_.state.stopped != "bad-chunk":  # the same chunk three times wrong: that broker has another file
        wire_.check()
    else:
        assert trouble.count("bad") >= RULES.bad_max


@given(st.integers(150_000, 400_000), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
@settings(max_examples=40)
def test_cuts_and_restarts_between_chunks_keep_to_the_budget(n_bytes: int, cuts: set[int], restarts: set[int]) -> None:
    data = content(n_bytes)
    wire_ = Wire(data, offer_of(data, fetch.CHUNK_BYTES))
    done = -1

    def happen() -> str:
        nonlocal done
        count = len(wire_.disk)
        if count > done and count in restarts:
            done = count
            return "restart"
        if count > done and count in cuts:
            done = count
            return "cut"
        return "ok"

    wire_.run(happen)
    wire_.check()
    assert wire_.state.spent_bytes <= 1.02 * n_bytes + fetch.ask_bytes(wire_.offer) * len(restarts)
    assert wire_.over_link_bytes <= wire_.state.spent_bytes


def test_a_cut_at_every_chunk_boundary_costs_no_more_than_the_budget() -> None:
    data = content(20 * fetch.CHUNK_BYTES + 17)
    wire_ = Wire(data, offer_of(data, fetch.CHUNK_BYTES))
    before = -1

    def happen() -> str:
        nonlocal before
        count, now = before, len(wire_.disk)
        before = now
        return "cut" if now > count else "ok"

    wire_.run(happen)
    wire_.check()
    assert wire_.over_link_bytes <= wire_.state.spent_bytes <= 1.02 * len(data)


def test_what_must_come_again_is_paid_for_and_the_budget_is_never_passed() -> None:
    data = content(10 * fetch.CHUNK_BYTES)
    wire_ = Wire(data, offer_of(data, fetch.CHUNK_BYTES))
    wire_.tell(fetch.Up())
    for _ in range(8):
        wire_.deliver(0)
    wire_.run(lambda: "ok")
    assert wire_.state.stopped == "over-budget"
    assert wire_.whole == 0


@given(st.lists(st.sampled_from(["cut", "lose", "ok", "reorder"]), max_size=60), st.integers(0, 100_000))
@settings(max_examples=60)
def test_nothing_is_asked_for_beyond_the_budget(trouble: list[str], budget_bytes: int) -> None:
    data = content(60_000)
    wire_ = Wire(data, offer_of(data, budget_bytes=budget_bytes or 1))
    happening = iter(trouble)
    wire_.run(lambda: next(happening, "ok"))
    assert wire_.state.spent_bytes <= (budget_bytes or 1)
    assert wire_.whole or wire_.state.stopped == "over-budget"


def test_a_chunk_that_stays_wrong_ends_it() -> None:
    data = content(9000)
    wire_ = Wire(data, offer_of(data, budget_bytes=1 << 30))
    wire_.run(lambda: "bad")
    assert wire_.state.stopped == "bad-chunk" and not wire_.disk


def test_a_disk_that_takes_nothing_ends_it() -> None:
    data = content(9000)
    state, _ = fetch.step(fetch.begin(offer_of(data), ()), fetch.Up(), 0.0)
    state, effects = fetch.step(state, Arrived(0, data[:4096]), 1.0)
    assert Keep(0, data[:4096], state.offer.sha256) in effects
    state, effects = fetch.step(state, Kept(0, False), 1.0)
    assert state.stopped == "not-written" and not effects


def test_one_chunk_is_under_way_after_a_cut_and_more_once_the_link_holds() -> None:
    data = content(20 * 4096)
    wire_ = Wire(data, offer_of(data, budget_bytes=1 << 30))
    wire_.tell(fetch.Up())
    assert len(wire_.state.asked) == 1
    for k in range(2):
        wire_.deliver(k)
    assert len(wire_.state.asked) == 2
    wire_.tell(fetch.Down())
    wire_.tell(fetch.Up())
    wire_.deliver(2)
    assert len(wire_.state.asked) == 1


def test_a_file_that_is_there_already_asks_for_nothing() -> None:
    data = content(9000)
    state, effects = fetch.step(fetch.begin(offer_of(data), range(3)), fetch.Up(), 0.0)
    assert state.whole and not effects and state.left_bytes == 0


@pytest.mark.parametrize("free_bytes", [0, fetch.RESERVE_BYTES, fetch.RESERVE_BYTES + 8999])
def test_a_full_disk_is_seen_before_the_first_byte(free_bytes: int) -> None:
    state = fetch.begin(offer_of(content(9000)), ())
    assert "needed" in fetch.room(state, free_bytes)
    assert fetch.room(state, fetch.RESERVE_BYTES + 9000) == ""


def test_a_chunk_is_found_by_its_topic_and_no_other_is() -> None:
    offer = offer_of(content(9000))
    for k in range(3):
        assert fetch.index_of(wire.parse_topic(fetch.topic("f", offer.sha256, k)).id, offer) == k
    name = offer.sha256[: fetch.NAME_DIGITS]
    for strange in ("-", f"{name}.3", f"{name}.", "0" * fetch.NAME_DIGITS + ".0", f"{name}.1x", f"{name}0.1"):
        assert fetch.index_of(strange, offer) is None


def test_the_costs_that_are_reckoned_with_are_not_too_low() -> None:
    offer = offer_of(content(9000))
    payload = wire.encode(wire.PolicyChunk(data=content(4096)))
    real = len(payload) + len(fetch.topic("f" * 16, offer.sha256, 0)) + 9 + len(wire.CONTENT_TYPE) + 3
    assert fetch.chunk_bytes(offer, 4096) >= real
