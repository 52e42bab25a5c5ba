"""A policy from the fleet, from the offer to the verdict, whatever is cut in between.

Pure. What is written down is one small document, and every effect waits until the stage that it belongs to is on the
disk. A supervisor that starts anew reads it and goes on: it finds the chunks that are there, looks at the whole file
again, or asks again whether the network that acts has stood its trial. Offers are retained and come back with every
connection; the same one again changes nothing.

Whether a network does harm is for `govern.trial` to say. Here the update is done only once the broker can be reached
with it: an update that nobody can hear of is not finished.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from edgert import bundle, wire
from edgert.errors import ArtifactError
from edgert.fleet import fetch, trust
from edgert.offers import (
    Arrived,
    Ask,
    Check,
    Checked,
    Found,
    Http,
    HttpEnded,
    Keep,
    Kept,
    Leave,
    Note,
    Noted,
    Open,
    Sweep,
)

GENERATIONS = 1_000_000_000
"""Networks from the fleet count from here on, and never meet the numbers of those that were trained here."""
Stage = Literal["none", "fetching", "held", "checking", "trial", "kept", "rolled-back", "refused", "withdrawn"]
OPEN: frozenset[Stage] = frozenset({"fetching", "held", "checking", "trial"})
ENDED: dict[Stage, str] = {
    "rolled-back": "update-rolled-back",
    "refused": "update-refused",
    "withdrawn": "update-withdrawn",
}
"""Events of the ends that are not `update-kept`."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down.

    Attributes:
        offer: that this is about; None before the first.
        stage: where it stands.
        code, why: named reason, and in words; of held, rolled-back and refused.
        generation: of its network, once it was to act.
        path: of the file, likewise.
        floor: version of the newest that was kept.
        kept: its SHA-256; empty before the first.
        bad: SHA-256 of those that stood no trial, newest last.
        spent_bytes: over the link for this offer, as far as it was written down.
        over: identity of the installed policy, in whose place this is about to act, or acts.
    """

    offer: wire.PolicyOffer | None = None
    stage: Stage = "none"
    code: str = ""
    why: str = ""
    generation: int = GENERATIONS
    path: str = ""
    floor: int = 0
    kept: str = ""
    bad: tuple[str, ...] = ()
    spent_bytes: int = 0
    over: str = ""


BAD_MAX = 64


class Updates(msgspec.Struct, frozen=True, kw_only=True):
    """The whole memory.

    Attributes:
        document: as it should be on the disk.
        noted: it is.
        begun: what the stage brings about was asked for since this process started.
        fetch: the file on its way, in stage fetching.
        http: it comes over HTTP for now.
        link_up: the link is.
        waiting: a newer offer, that is taken up after the verdict on this one.
        verdict: of the trial, that waits for the link.
    """

    document: Document = Document()
    noted: bool = True
    begun: bool = False
    fetch: fetch.Fetch | None = None
    http: bool = False
    link_up: bool = False
    waiting: wire.PolicyOffer | None = None
    verdict: Verdict | None = None

    @property
    def wake_s(self) -> float | None:
        """When it wants a `fetch.Tick`, or None."""
        return None if self.fetch is None or not self.fetch.up else self.fetch.wake_s

    @property
    def on_trial(self) -> int | None:
        """Generation of the update that acts on trial, or is to; None when there is none."""
        return self.document.generation if self.document.stage == "trial" else None


class Offered(msgspec.Struct, frozen=True):
    """Somebody whom the device believes offers a policy."""

    offer: wire.PolicyOffer


class Withdrawn(msgspec.Struct, frozen=True):
    """The offer was taken back."""


class Verdict(msgspec.Struct, frozen=True):
    """What the trial says of the network of this generation."""

    generation: int
    what: Literal["kept", "rolled-back", "refused"]
    why: str = ""


class LinkUp(msgspec.Struct, frozen=True):
    """The link came up."""


class LinkDown(msgspec.Struct, frozen=True):
    """The link went down."""


class Activate(msgspec.Struct, frozen=True):
    """Effect: offer this network for acting, on trial."""

    generation: int
    path: str
    sha256: str


class Say(msgspec.Struct, frozen=True):
    """Effect: record an event."""

    name: str
    detail: dict[str, object]


class Report(msgspec.Struct, frozen=True):
    """Effect: tell the fleet how it stands by now."""


Event = (
    Offered
    | Withdrawn
    | Noted
    | Found
    | HttpEnded
    | Checked
    | Verdict
    | LinkUp
    | LinkDown
    | Arrived
    | Kept
    | fetch.Tick
)
Effect = Note | Open | Http | Check | Activate | Say | Report | Sweep | Ask | Leave | Keep


class Compatible(NamedTuple):
    """What the installed policy demands of another.

    Attributes:
        schema: of observation and action.
        n_exits: of the network.
        control_rate_hz: decisions a second.
    """

    schema: str
    n_exits: int
    control_rate_hz: float

    @classmethod
    def of(cls, manifest: bundle.Manifest) -> Compatible:
        """Of an installed policy.

        Args:
            manifest: its.

        Returns:
            What another must agree with.

        Raises:
            Nothing.
        Source:
            ours.
        """
        return cls(bundle.schema_hash(manifest), len(manifest.exits), manifest.control_rate_hz)

    def refuses(self, manifest: bundle.Manifest) -> str:
        """Why another policy does not fit.

        Args:
            manifest: the other one's.

        Returns:
            In words; empty where it fits.

        Raises:
            Nothing.
        Source:
            ours: seen before the actor is bothered, which would refuse it too.
        """
        other = Compatible.of(manifest)
        if other.schema != self.schema:
            return "it has another observation or action schema than the installed policy"
        if other.n_exits != self.n_exits:
            return f"it has {other.n_exits} exits, the installed policy {self.n_exits}"
        if other.control_rate_hz != self.control_rate_hz:
            return f"it is made for {other.control_rate_hz:g} decisions a second, not {self.control_rate_hz:g}"
        return ""


def open_updates(data: bytes, installed: str = "") -> Updates:
    """Take up what was written down.

    Args:
        data: of a predecessor's `Note`; empty when there is none.
        installed: identity of the installed policy. With another than before, a person has put it there: what the fleet
            gave before is given up, but for the version that counts.

    Returns:
        The state; nothing has begun.

    Raises:
        ArtifactError: it cannot be read. Whoever begins without it forgets which version was kept.
    Source:
        ours.
    """
    try:
        found = msgspec.json.decode(data, type=Document) if data else Document(over=installed)
        if found.over != installed:
            found = Document(over=installed, floor=found.floor, bad=found.bad, generation=found.generation)
        return Updates(document=found)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ArtifactError(f"the note about the last update cannot be read: {error}") from error


def report(updates: Updates) -> wire.PolicyReport:
    """Where it stands, for the fleet.

    Args:
        updates: the state.

    Returns:
        The message.

    Raises:
        Nothing.
    Source:
        ours.
    """
    document, offer = updates.document, updates.document.offer
    size_bytes = offer.size_bytes if offer else 0
    have_bytes = size_bytes - updates.fetch.left_bytes if updates.fetch else size_bytes
    if document.stage in ("fetching", "held") and updates.fetch is None:
        have_bytes = 0
    return wire.PolicyReport(
        id=offer.id if offer else "",
        stage=document.stage,
        code=document.code,
        why=document.why[:500],
        name=offer.name if offer else "",
        sha256=offer.sha256 if offer else "",
        version=offer.version if offer else 0,
        have_bytes=have_bytes,
        size_bytes=size_bytes,
        spent_bytes=updates.fetch.spent_bytes if updates.fetch else document.spent_bytes,
        kept=document.kept,
        floor=document.floor,
    )


def step(
    updates: Updates, event: Event, now_s: float, rules: fetch.Rules = fetch.RULES
) -> tuple[Updates, list[Effect]]:
    """Advance by one event.

    Args:
        updates: the state before.
        event: what happened.
        now_s: monotonic seconds.
        rules: how eagerly chunks are fetched.

    Returns:
        The state after, and what to do, in order. After `Note` nothing is done before `Noted` came.

    Raises:
        Nothing.
    Source:
        ours, after Mender's states: download, install, reboot, commit, each to be repeated after a power cut.
    """
    replace = msgspec.structs.replace
    effects: list[Effect] = []
    match event:
        case Offered(offer):
            updates = _offered(updates, offer, effects)
        case Withdrawn():
            updates = _withdrawn(updates, effects)
        case Noted(ok):
            updates = replace(updates, noted=updates.noted or ok)
            if not ok:
                effects.append(Say("update-not-noted", {}))
        case Found():
            updates = _found(updates, event, effects)
        case HttpEnded(why):
            updates = replace(updates, http=False)
            if why and updates.document.stage == "fetching":
                effects.append(Say("update-http-ended", {"why": why[:500]}))
        case Checked():
            updates = _checked(updates, event, effects)
        case Verdict(generation=generation) if generation == updates.on_trial:
            updates = replace(updates, verdict=event)
        case LinkUp():
            updates = replace(updates, link_up=True)
            effects.append(Report())
        case LinkDown():
            updates = replace(updates, link_up=False)
        case _:
            pass
    updates = _fetched(updates, event, now_s, rules, effects)
    return _go_on(_settled(updates, effects), now_s, rules, effects), effects


def _moved(updates: Updates, document: Document, effects: list[Effect]) -> Updates:
    """Another stage: on the disk first."""
    effects.append(Note(msgspec.json.encode(document)))
    updates = msgspec.structs.replace(updates, document=document, noted=False, begun=False)
    if document.stage not in ("fetching", "held"):
        updates = msgspec.structs.replace(updates, fetch=None, http=False)
    effects.append(Report())
    return updates


def _ended(updates: Updates, stage: Stage, code: str, why: str, effects: list[Effect]) -> Updates:
    document = updates.document
    offer = document.offer
    bad = document.bad
    if offer is not None and document.stage == "trial" and offer.sha256 not in bad:
        bad = (*bad, offer.sha256)[-BAD_MAX:]
    detail: dict[str, object] = {"id": offer.id if offer else "", "code": code, "why": why[:500]}
    effects.append(Say(ENDED[stage], detail))
    ended = msgspec.structs.replace(document, stage=stage, code=code, why=why[:500], bad=bad)
    updates = _moved(updates, ended, effects)
    keep = (ended.kept,) if ended.kept else ()
    # One that was rolled back may act until the actor has gone back: its file goes with the next one.
    effects.append(Sweep((*keep, offer.sha256) if offer and stage == "rolled-back" else keep))
    return updates


def _offered(updates: Updates, offer: wire.PolicyOffer, effects: list[Effect]) -> Updates:
    replace, document = msgspec.structs.replace, updates.document
    if document.offer == offer or updates.waiting == offer:
        return updates
    if document.stage in ("checking", "trial"):
        return replace(updates, waiting=offer)
    stale = offer.version <= document.floor and offer.sha256 != document.kept
    if document.stage in OPEN and (stale or offer.sha256 in document.bad):
        return updates  # one that the broker has kept for long does not end one that is on its way
    updates = replace(updates, waiting=None)
    _leave(updates, effects)
    effects.append(Say("update-offered", {"id": offer.id, "sha256": offer.sha256, "version": offer.version}))
    same = document.offer is not None and document.offer.sha256 == offer.sha256 and document.stage in OPEN
    fresh = replace(
        document,
        offer=offer,
        stage="fetching",
        code="",
        why="",
        spent_bytes=report(updates).spent_bytes if same else 0,
    )
    updates = replace(updates, document=fresh, fetch=None, http=False)
    if offer.sha256 == document.kept:
        return _moved(updates, replace(fresh, stage="kept", why="it acts already"), effects)
    if offer.version <= document.floor:
        why = f"it is version {offer.version}; version {document.floor} was kept here"
        return _ended_lightly(updates, "older-version", why, effects)
    if offer.sha256 in document.bad:
        return _ended_lightly(updates, "rolled-back-before", "it was refused or rolled back here before", effects)
    return _moved(updates, fresh, effects)


def _ended_lightly(updates: Updates, code: str, why: str, effects: list[Effect]) -> Updates:
    """Refused for what the offer says, not for what the file is: the same file may come on better terms."""
    document = updates.document
    offer = document.offer
    effects.append(Say("update-refused", {"id": offer.id if offer else "", "code": code, "why": why}))
    return _moved(updates, msgspec.structs.replace(document, stage="refused", code=code, why=why), effects)


def _leave(updates: Updates, effects: list[Effect]) -> None:
    if updates.fetch is not None:
        effects += [Leave(index, updates.fetch.offer.sha256) for index in sorted(updates.fetch.asked)]


def _withdrawn(updates: Updates, effects: list[Effect]) -> Updates:
    """Before it acts it is dropped; on trial it is the trial that decides."""
    updates = msgspec.structs.replace(updates, waiting=None)
    if updates.document.stage not in ("fetching", "held", "checking"):
        return updates
    _leave(updates, effects)
    return _ended(updates, "withdrawn", "withdrawn", "the offer was taken back", effects)


def _found(updates: Updates, found: Found, effects: list[Effect]) -> Updates:
    document = updates.document
    offer = document.offer
    if offer is None or document.stage != "fetching" or found.sha256 != offer.sha256 or updates.fetch is not None:
        return updates
    there_bytes = sum(fetch.size(offer, index) for index in found.there)
    file = fetch.begin(offer, found.there, spent_bytes=max(document.spent_bytes, there_bytes))
    if full := fetch.room(file, found.free_bytes):
        return _held(updates, "no-space", full, effects)
    missing = tuple(k for k in range(file.chunks) if not file.have >> k & 1)
    updates = msgspec.structs.replace(updates, fetch=file, http=bool(offer.url and missing))
    if updates.http:
        effects.append(Http(offer, missing, file.budget_bytes - file.spent_bytes))
    return updates


def _held(updates: Updates, code: str, why: str, effects: list[Effect]) -> Updates:
    """Nothing more is done until somebody offers it anew, or the supervisor starts anew."""
    offer = updates.document.offer
    _leave(updates, effects)
    effects.append(Say("update-held", {"id": offer.id if offer else "", "code": code, "why": why}))
    spent_bytes = report(updates).spent_bytes
    held = msgspec.structs.replace(updates.document, stage="held", code=code, why=why, spent_bytes=spent_bytes)
    # Begun: only whoever starts anew, or is told anew, tries again.
    return msgspec.structs.replace(_moved(updates, held, effects), fetch=None, http=False, begun=True)


def _fetched(updates: Updates, event: Event, now_s: float, rules: fetch.Rules, effects: list[Effect]) -> Updates:
    """What concerns the file on its way."""
    replace = msgspec.structs.replace
    file = updates.fetch
    if file is None or updates.document.stage != "fetching":
        return updates
    told: list[fetch.Event] = []
    if isinstance(event, Arrived | Kept | fetch.Tick):
        told.append(event)
    up = updates.link_up and not updates.http and updates.noted
    if up != file.up:
        told.append(fetch.Up() if up else fetch.Down())
    whole = file.whole
    for each in told:
        file, wanted = fetch.step(file, each, now_s, rules)
        for effect in wanted:
            if isinstance(effect, fetch.Whole):
                whole = True
            else:
                effects.append(effect)
    updates = replace(updates, fetch=file)
    if whole:
        offer, spent_bytes = updates.document.offer, file.spent_bytes
        effects.append(Say("update-fetched", {"id": offer.id if offer else "", "spent_bytes": spent_bytes}))
        return _moved(updates, replace(updates.document, stage="checking", spent_bytes=spent_bytes), effects)
    if file.stopped == "bad-chunk":
        return _ended(updates, "refused", file.stopped, "a chunk came several times with the wrong content", effects)
    if file.stopped:
        why = f"{file.spent_bytes} of {file.budget_bytes} bytes" if file.stopped == "over-budget" else "see the log"
        return _held(updates, file.stopped, why, effects)
    return updates


def _checked(updates: Updates, told: Checked, effects: list[Effect]) -> Updates:
    document, offer = updates.document, updates.document.offer
    if document.stage != "checking" or offer is None or told.sha256 != offer.sha256:
        return updates
    code, why = told.code, told.why
    if not code and told.version != offer.version:
        code, why = "older-version", f"it is version {told.version}, and version {offer.version} was offered"
    if code == "not-written":
        return _held(updates, code, why, effects)
    if code:
        return _ended(updates, "refused", code, why, effects)
    trial = msgspec.structs.replace(
        document, stage="trial", code="", why="", path=told.path, generation=document.generation + 1
    )
    return _moved(updates, trial, effects)


def _settled(updates: Updates, effects: list[Effect]) -> Updates:
    """The verdict, once it can be heard of."""
    replace, verdict, document = msgspec.structs.replace, updates.verdict, updates.document
    offer = document.offer
    if verdict is None or offer is None or document.stage != "trial":
        return replace(updates, verdict=None) if verdict is not None else updates
    if verdict.what != "kept":
        updates = replace(updates, verdict=None)
        return _ended(updates, verdict.what, verdict.what, verdict.why, effects)
    if not updates.link_up:
        return updates
    kept = replace(document, stage="kept", why=verdict.why, floor=max(document.floor, offer.version), kept=offer.sha256)
    updates = _moved(replace(updates, verdict=None), kept, effects)
    effects.append(Say("update-kept", {"id": offer.id, "version": offer.version, "why": verdict.why[:500]}))
    effects.append(Sweep((offer.sha256,)))
    return updates


def _go_on(updates: Updates, now_s: float, rules: fetch.Rules, effects: list[Effect]) -> Updates:
    """What the stage brings about, once it is on the disk, and once in this process's life."""
    replace, document = msgspec.structs.replace, updates.document
    offer = document.offer
    if not updates.noted:
        return updates
    if updates.waiting is not None and document.stage not in ("checking", "trial"):
        waiting = updates.waiting
        return _offered(replace(updates, waiting=None), waiting, effects)
    if updates.begun or offer is None:
        return updates
    updates = replace(updates, begun=True)
    if document.stage == "fetching":
        effects.append(Open(offer))
    elif document.stage == "held":
        again = replace(document, stage="fetching", code="", why="")
        if document.code != "over-budget":  # what stood in the way may be gone after a restart
            return _moved(updates, again, effects)
    elif document.stage == "checking":
        effects.append(Check(offer))
    elif document.stage == "trial":
        effects.append(Activate(document.generation, document.path, offer.sha256))
    return updates


def fault_of(found: bundle.Bundle, needs: Compatible, told: trust.Release | trust.Refusal | None) -> tuple[str, str]:
    """Why a fetched bundle may not act.

    Args:
        found: as read.
        needs: of the installed policy.
        told: by `trust.judge_bundle`.

    Returns:
        A code and words; both empty where it may.

    Raises:
        Nothing.
    Source:
        ours.
    """
    if isinstance(told, trust.Refusal):
        return told.code, told.why
    why = needs.refuses(found.manifest)
    return ("wrong-shape", why) if why else ("", "")
