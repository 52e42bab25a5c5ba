from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import offers, wire
from edgert.errors import ArtifactError
from edgert.fleet import fetch, update
from edgert.fleet.update import Activate, LinkDown, LinkUp, Offered, Report, Say, Updates, Verdict, Withdrawn

CHUNK = 1024
RULES = fetch.Rules(window=2, steady=2, patience_s=10.0)


def content(seed: int, n_bytes: int = 5000) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


def offer_of(data: bytes, version: int = 1, **changed: Any) -> wire.PolicyOffer:
    fields = {
        "id": f"r{version}",
        "name": "n",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "chunk_bytes": CHUNK,
        "hashes": fetch.hashes(data, CHUNK),
        "version": version,
        "budget_bytes": 1 << 30,
    }
    return wire.PolicyOffer(**{**fields, **changed})


class Device:
    """A device whose power can be cut before and after every effect; its disk and the trial are what outlives it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files  # at the broker, by their hash
        self.note = b""
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.whole: set[str] = set()
        self.networks: dict[int, str] = {}  # generation -> sha256, as the trial knows them: one swap each
        self.verdicts: dict[int, str] = {}
        self.bad: set[str] = set()
        self.said: list[str] = []
        self.reports: list[wire.PolicyReport] = []
        self.offer: wire.PolicyOffer | None = None
        self.free_bytes = 1 << 40
        self.checks: dict[str, tuple[str, str]] = {}
        self.now_s = 0.0
        self.cut: Callable[[], bool] = lambda: False
        self.boot()

    def boot(self) -> None:
        self.state: Updates = update.open_updates(self.note)
        self.todo: list[Any] = []
        self.asked: set[int] = set()

    def tell(self, event: Any) -> None:
        self.state, effects = update.step(self.state, event, self.now_s, RULES)
        self.todo += effects

    def work(self, steps: int = 5000) -> None:
        """Until nothing is left to do; a cut forgets what was not done."""
        for _ in range(steps):
            self.now_s += 0.1
            if self.cut():
                self.boot()
                continue
            if not self.state.link_up:
                self.tell(LinkUp())
                if self.offer is not None:
                    self.tell(Offered(self.offer))
                continue
            self.verdict()
            if self.todo:
                effect = self.todo.pop(0)
                self.perform(effect)
                if self.cut():
                    self.boot()
            elif self.asked and self.state.document.offer is not None:
                index = min(self.asked)
                offer = self.state.document.offer
                self.asked.discard(index)
                if offer.sha256 in self.files:
                    data = self.files[offer.sha256]
                    self.tell(offers.Arrived(index, data[index * CHUNK : (index + 1) * CHUNK]))
            elif self.state.document.stage not in update.OPEN or self.state.document.stage == "held":
                return
            else:
                self.now_s += 20.0
                self.tell(fetch.Tick())
        raise AssertionError(f"it never came to an end: {self.state.document.stage}")

    def verdict(self) -> None:
        """Level: what the trial says is said again and again."""
        generation = self.state.on_trial
        if generation is not None and generation in self.networks:
            what: Any = "rolled-back" if self.networks[generation] in self.bad else "kept"
            self.verdicts[generation] = what
            self.tell(Verdict(generation, what, "as it played"))

    def perform(self, effect: Any) -> None:
        match effect:
            case offers.Note(data):
                self.note = data
                self.tell(offers.Noted())
            case offers.Open(offer):
                there = tuple(sorted(self.chunks.get(offer.sha256, {})))
                self.tell(offers.Found(offer.sha256, there, self.free_bytes))
            case offers.Ask(index):
                self.asked.add(index)
            case offers.Leave(index):
                self.asked.discard(index)
            case offers.Keep(index, data):
                assert self.state.document.offer is not None
                self.chunks.setdefault(self.state.document.offer.sha256, {})[index] = data
                self.tell(offers.Kept(index))
            case offers.Check(offer):
                data = b"".join(part for _, part in sorted(self.chunks[offer.sha256].items()))
                assert hashlib.sha256(data).hexdigest() == offer.sha256
                code, why = self.checks.get(offer.sha256, ("", ""))
                self.tell(offers.Checked(offer.sha256, code, why, f"/{offer.sha256}", offer.version))
            case Activate(generation, _, sha256):
                assert self.networks.get(generation, sha256) == sha256, "one number, one network"
                self.networks[generation] = sha256
            case offers.Sweep(keep):
                self.chunks = {sha: parts for sha, parts in self.chunks.items() if sha in keep}
            case Say(name):
                self.said.append(name)
            case Report():
                self.reports.append(update.report(self.state))


def device_with(*datas: bytes) -> Device:
    return Device({hashlib.sha256(data).hexdigest(): data for data in datas})


def give(device: Device, offer: wire.PolicyOffer) -> update.Document:
    device.offer = offer
    if device.state.link_up:
        device.tell(Offered(offer))
    device.work()
    return device.state.document


def test_a_good_policy_is_fetched_checked_tried_and_kept() -> None:
    device = device_with(content(1))
    document = give(device, offer_of(content(1)))
    assert (document.stage, document.floor) == ("kept", 1) and document.kept == offer_of(content(1)).sha256
    assert device.said == ["update-offered", "update-fetched", "update-kept"]
    assert [report.stage for report in device.reports if report.id][-1] == "kept"
    assert list(device.networks) == [update.GENERATIONS + 1]


@given(st.integers(0, 400), st.integers(0, 400), st.booleans())
@settings(max_examples=120)
def test_power_cuts_before_and_after_every_effect_change_nothing_of_the_end(one: int, two: int, bad: bool) -> None:
    device = device_with(content(1))
    calls = 0

    def cut() -> bool:
        nonlocal calls
        calls += 1
        return calls in (one, two)

    device.cut = cut
    if bad:
        device.bad.add(offer_of(content(1)).sha256)
    document = give(device, offer_of(content(1)))
    assert document.stage == ("rolled-back" if bad else "kept")
    assert set(device.networks.values()) == {offer_of(content(1)).sha256} and len(device.networks) == 1
    assert msgspec.json.decode(device.note, type=update.Document) == document


def test_a_power_cut_at_each_single_point_leaves_one_effect_and_one_end() -> None:
    ends = set()
    for at in range(1, 140):
        device = device_with(content(1))
        counted = iter(range(10_000))
        device.cut = lambda counted=counted, at=at: next(counted) == at  # type: ignore[misc]  # a lambda has no types
        ends.add((give(device, offer_of(content(1))).stage, len(device.networks)))
    assert ends == {("kept", 1)}


def test_a_policy_that_does_harm_is_rolled_back_and_never_taken_again() -> None:
    device = device_with(content(1))
    device.bad.add(offer_of(content(1)).sha256)
    assert give(device, offer_of(content(1))).stage == "rolled-back"
    document = give(device, offer_of(content(1), version=2))
    assert (document.stage, document.code, document.floor) == ("refused", "rolled-back-before", 0)
    assert len(device.networks) == 1


def test_an_older_version_is_refused_before_a_byte_is_fetched() -> None:
    device = device_with(content(1), content(2))
    give(device, offer_of(content(1), version=5))
    for version in (4, 5):
        document = give(device, offer_of(content(2), version=version))
        assert (document.stage, document.code) == ("refused", "older-version")
    assert offer_of(content(2)).sha256 not in device.chunks
    assert give(device, offer_of(content(2), version=6)).stage == "kept"
    assert give(device, offer_of(content(2), version=6, id="again")).stage == "kept"
    assert len(device.networks) == 2


@pytest.mark.parametrize("code", ["bad-signature", "wrong-robot", "wrong-shape", "expired-key", "unsigned"])
def test_a_file_that_is_not_believed_never_acts(code: str) -> None:
    device = device_with(content(1))
    device.checks[offer_of(content(1)).sha256] = (code, "because")
    document = give(device, offer_of(content(1)))
    assert (document.stage, document.code) == ("refused", code) and not device.networks
    assert not device.chunks, "its file is thrown away"


def test_a_disk_that_fails_while_the_file_is_looked_at_only_holds_it() -> None:
    device = device_with(content(1))
    device.checks[offer_of(content(1)).sha256] = ("not-written", "read-only")
    assert give(device, offer_of(content(1))).stage == "held"
    device.checks.clear()
    device.boot()
    device.work()
    assert device.state.document.stage == "kept"


def test_a_file_of_another_version_than_was_offered_never_acts() -> None:
    device = device_with(content(1))
    device.tell(LinkUp())
    device.tell(Offered(offer_of(content(1), version=9)))
    state = msgspec.structs.replace(
        device.state, document=msgspec.structs.replace(device.state.document, stage="checking"), noted=True
    )
    told = offers.Checked(offer_of(content(1)).sha256, "", "", "/x", 8)
    state, effects = update.step(state, told, 0.0)
    assert state.document.code == "older-version" and not any(isinstance(e, Activate) for e in effects)


def test_a_full_disk_holds_it_and_a_new_start_tries_again() -> None:
    device = device_with(content(1))
    device.free_bytes = 10
    document = give(device, offer_of(content(1)))
    assert (document.stage, document.code) == ("held", "no-space")
    device.free_bytes = 1 << 40
    device.boot()
    device.work()
    assert device.state.document.stage == "kept"


def test_a_budget_that_is_spent_holds_it_until_the_operator_gives_more() -> None:
    device = device_with(content(1))
    document = give(device, offer_of(content(1), budget_bytes=3000))
    assert (document.stage, document.code) == ("held", "over-budget")
    device.boot()
    device.work()
    assert device.state.document.stage == "held"
    assert give(device, offer_of(content(1), budget_bytes=30_000, id="more")).stage == "kept"


def test_a_newer_offer_takes_the_place_of_one_that_is_being_fetched() -> None:
    device = device_with(content(2))
    device.tell(LinkUp())
    for offer in (offer_of(content(1)), offer_of(content(2), version=2)):
        device.tell(Offered(offer))
    device.offer = offer_of(content(2), version=2)
    device.work()
    assert device.state.document.stage == "kept" and device.state.document.floor == 2


def test_a_newer_offer_waits_for_the_verdict_on_the_one_before() -> None:
    device = device_with(content(1), content(2))
    device.verdict = lambda: None  # type: ignore[method-assign]  # it takes its time
    with pytest.raises(AssertionError, match="never came"):
        give(device, offer_of(content(1)))
    device.tell(Offered(offer_of(content(2), version=2)))
    assert device.state.document.stage == "trial" and device.state.waiting is not None
    del device.verdict  # type: ignore[method-assign]  # the class's own again
    device.offer = offer_of(content(2), version=2)
    device.work()
    assert device.state.document.floor == 2 and device.said.count("update-kept") == 2


def test_an_offer_that_is_taken_back_is_dropped_unless_it_acts() -> None:
    device = device_with(content(1))
    device.tell(LinkUp())
    device.tell(Offered(offer_of(content(1))))
    device.tell(Withdrawn())
    device.offer = None
    device.work()
    assert device.state.document.stage == "withdrawn" and not device.networks
    other = device_with(content(1))
    give(other, offer_of(content(1)))
    other.tell(Withdrawn())
    assert other.state.document.stage == "kept"


def test_it_is_kept_only_once_the_broker_can_be_reached() -> None:
    device = device_with(content(1))
    device.tell(LinkUp())
    device.tell(Offered(offer_of(content(1))))
    state = msgspec.structs.replace(
        device.state, document=msgspec.structs.replace(device.state.document, stage="trial"), noted=True, begun=True
    )
    state, _ = update.step(state, LinkDown(), 0.0)
    state, effects = update.step(state, Verdict(update.GENERATIONS, "kept"), 0.0)
    assert state.document.stage == "trial" and not effects
    state, _ = update.step(state, LinkUp(), 0.0)
    assert state.document.stage == "kept"


def test_what_cannot_be_written_down_is_not_done() -> None:
    state, _ = update.step(Updates(link_up=True), Offered(offer_of(content(1))), 0.0)
    for _ in range(3):
        state, effects = update.step(state, offers.Noted(False), 0.0)
        assert [type(effect) for effect in effects] == [Say]
    state, effects = update.step(state, offers.Noted(), 0.0)
    assert any(isinstance(effect, offers.Open) for effect in effects)


def test_over_http_the_broker_is_asked_only_for_what_http_did_not_bring() -> None:
    offer = offer_of(content(1), url="https://h/a")
    state, effects = update.step(Updates(link_up=True), Offered(offer), 0.0)
    state, _ = update.step(state, offers.Noted(), 0.0)
    state, effects = update.step(state, offers.Found(offer.sha256, (2,), 1 << 40), 0.0)
    (http,) = (effect for effect in effects if isinstance(effect, offers.Http))
    assert http.missing == (0, 1, 3, 4) and not any(isinstance(effect, offers.Ask) for effect in effects)
    state, effects = update.step(state, offers.Arrived(0, content(1)[:CHUNK]), 0.0)
    assert any(isinstance(effect, offers.Keep) for effect in effects)
    state, effects = update.step(state, offers.Kept(0), 0.0)
    state, effects = update.step(state, offers.HttpEnded("404"), 0.0)
    assert [effect.index for effect in effects if isinstance(effect, offers.Ask)] == [1]


def test_a_note_that_cannot_be_read_is_an_error() -> None:
    assert update.open_updates(b"").document == update.Document()
    with pytest.raises(ArtifactError, match="note"):
        update.open_updates(b"{")


def test_a_policy_that_does_not_fit_the_device_is_told_apart() -> None:
    needs = update.Compatible("s", 3, 20.0)
    assert needs == update.Compatible(schema="s", n_exits=3, control_rate_hz=20.0)


def test_another_installed_policy_ends_what_the_fleet_gave_but_not_the_version_that_counts() -> None:
    device = device_with(content(1))
    give(device, offer_of(content(1), version=4))
    assert update.open_updates(device.note).document == device.state.document
    after = update.open_updates(device.note, "another").document
    assert (after.stage, after.kept, after.offer, after.floor) == ("none", "", None, 4)
    assert after.over == "another" and after.generation == device.state.document.generation
