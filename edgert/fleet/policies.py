"""What a device believes of what comes over the link, and the policies that it takes up: keys, commands, updates.

Pure. A device with keys obeys only what one of them signed; one without believes what its broker lets through, as it
always did: who may publish there is then the only question, and `edgert fleet ca` the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from edgert import bundle, wire
from edgert.config import Config
from edgert.errors import ArtifactError, MessageError
from edgert.fleet import fetch, trust, update
from edgert.fleet.kinds import Kind, Update, read_args
from edgert.fleet.update import Compatible, Effect, Updates
from edgert.offers import Arrived, Checked, Do, KeysNote, SeenNote

PENDING_MAX = 64
"""Lists of keys that wait for the one before them."""


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """The whole memory.

    Attributes:
        audience: who this device is.
        needs: what the installed policy demands of another.
        robot, board: what the device is; None when not known.
        keys: that it believes; None where it has none.
        lists: newer lists of keys that none of these signed; the ones in between may still come.
        memory: of commands.
        updates: of policies.
        refused: how often something was not believed, by code.
        spurned: signature of the offer that was refused last: retained, it comes back with every connection.
    """

    audience: trust.Audience
    needs: Compatible
    robot: str | None = None
    board: str | None = None
    keys: wire.KeyList | None = None
    lists: tuple[wire.Signed, ...] = ()
    memory: trust.Memory = trust.Memory()
    updates: Updates = Updates()
    refused: dict[str, int] = {}
    spurned: bytes = b""


class Found(NamedTuple):
    """What is on the disk; empty where there is nothing.

    Attributes:
        keys: the list that was followed to.
        memory: of commands.
        note: about the last update.
    """

    keys: bytes = b""
    memory: bytes = b""
    note: bytes = b""


def open_policies(
    config: Config,
    manifest: bundle.Manifest,
    *,
    board: str | None,
    keys: wire.KeyList | None,
    found: Found,
    installed: str = "",
) -> tuple[Policies, list[str]]:
    """Take up what is there.

    Args:
        config: of the device.
        manifest: of the installed policy.
        board: model of this board; None when not known.
        keys: that the configuration names.
        found: on the disk.
        installed: identity of the installed policy.

    Returns:
        The state; and what could not be read, in words. The configuration's keys are believed unless newer ones were
        followed to; without a memory of commands, old ones are told by their time alone.

    Raises:
        Nothing.
    Source:
        ours: a device that cannot read its memory must still be reachable for the one who mends it.
    """
    faults: list[str] = []
    memory, updates = trust.Memory(), Updates()
    try:
        stored = trust.check_keys(wire.decode(found.keys, wire.KeyList)[0]) if found.keys and keys else None
        if stored is not None and keys is not None and stored.serial > keys.serial:
            keys = stored
    except MessageError as error:
        faults.append(f"the keys that were followed to: {error}")
    try:
        memory = msgspec.json.decode(found.memory, type=trust.Memory) if found.memory else memory
    except (msgspec.MsgspecError, ValueError) as error:
        faults.append(f"the memory of commands: {error}")
    try:
        updates = update.open_updates(found.note, installed)
    except ArtifactError as error:
        faults.append(str(error))
    device = config.device
    state = Policies(
        audience=trust.Audience(device.fleet, device.id, device.labels),
        needs=Compatible.of(manifest),
        robot=device.robot,
        board=board,
        keys=keys,
        memory=memory,
        updates=updates,
    )
    return state, faults


def subscriptions(config: Config) -> list[str]:
    """Filters on which offers and keys come; each chunk has one of its own while it is wanted.

    Args:
        config: of the device.

    Returns:
        Topic filters.

    Raises:
        Nothing.
    Source:
        ours: an offer lies under the device it is for, so that what a label means is decided when it is given out.
    """
    return [offer_topic(config), str(wire.Topic(config.device.fleet, "-", "policy", "keys", "+"))]


def offer_topic(config: Config) -> str:
    """Where offers for a device lie, retained.

    Args:
        config: of the device.

    Returns:
        The topic.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return str(wire.Topic(config.device.fleet, config.device.id, "policy", "offer"))


def offer_known(policies: Policies) -> bool:
    """Whether the broker need not say again which offer it keeps.

    Args:
        policies: the state.

    Returns:
        True while a policy is fetched, over as many connections as that takes: a newer offer would wait in the session.

    Raises:
        Nothing.
    Source:
        ours: at any other time the offer is heard again with each connection, which mends whatever went wrong before.
    """
    return policies.updates.noted and policies.updates.document.stage == "fetching"


def report_topic(policies: Policies) -> str:
    """Where the device says how it stands.

    Args:
        policies: the state.

    Returns:
        The topic.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return str(wire.Topic(policies.audience.fleet, policies.audience.device, "policy", "report"))


class Believed(NamedTuple):
    """What a command says.

    Attributes:
        payload: of the command itself.
        refusal: why it is not believed; None where it is.
    """

    payload: bytes
    refusal: trust.Refusal | None


def believe(
    policies: Policies, payload: bytes, *, kept: bool, wall_s: float | None, verify: trust.Verify
) -> tuple[Policies, Believed, list[Do]]:
    """Unwrap a command that changes the device.

    Args:
        policies: the state before.
        payload: as received: a `Signed`, or the command itself.
        kept: the broker keeps it and says it again with every connection; it has a number of its own.
        wall_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.

    Returns:
        The state after; what the command says or why it is not believed; and what to write down before its effect.

    Raises:
        Nothing.
    Source:
        ours.
    """
    try:
        signed, _ = wire.decode(payload, wire.Signed)
    except MessageError as error:
        if policies.keys is None:
            return policies, Believed(payload, None), []  # whoever it is for says what is wrong with it
        return _refuse(policies, trust.Refusal("unsigned", f"this device has keys, and none signed this: {error}"))
    if policies.keys is None:
        refusal = trust.addressed(signed, policies.audience, wall_s)
        return (policies, Believed(signed.payload, None), []) if refusal is None else _refuse(policies, refusal)
    memory, refusal = trust.judge(
        signed, policies.keys, policies.memory, policies.audience, now_s=wall_s, verify=verify, kept=kept
    )
    if refusal is not None:
        return _refuse(policies, refusal)
    told: list[Do] = [] if memory == policies.memory else [SeenNote(msgspec.json.encode(memory))]
    return msgspec.structs.replace(policies, memory=memory), Believed(signed.payload, None), told


def _refuse(policies: Policies, refusal: trust.Refusal) -> tuple[Policies, Believed, list[Do]]:
    return _counted(policies, refusal.code), Believed(b"", refusal), []


def _counted(policies: Policies, code: str) -> Policies:
    refused = {**policies.refused, code: policies.refused.get(code, 0) + 1}
    return msgspec.structs.replace(policies, refused=refused)


def received(
    policies: Policies,
    topic: wire.Topic,
    payload: bytes,
    *,
    now_s: float,
    wall_s: float | None,
    verify: trust.Verify,
) -> tuple[Policies, list[Effect | KeysNote]]:
    """Something came on the channel `policy`.

    Args:
        policies: the state before.
        topic: of it.
        payload: as received.
        now_s: monotonic seconds.
        wall_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.

    Returns:
        The state after, and what to do.

    Raises:
        MessageError: it is malformed; nothing has changed.
    Source:
        ours.
    """
    if topic.type == "chunk":
        return _chunk(policies, topic, payload, now_s)
    if topic.type == "offer" and not payload:
        return stepped(policies, update.Withdrawn(), now_s)
    if topic.type not in ("offer", "keys"):
        raise MessageError(f"no device listens on policy/{topic.type}")
    signed, _ = wire.decode(payload, wire.Signed)
    if topic.type == "keys":
        return _followed(policies, signed, wall_s, verify)
    told = trust.judge_offer(signed, policies.keys, policies.audience, now_s=wall_s, verify=verify)
    if isinstance(told, trust.Refusal):
        said = update.Say("offer-refused", {"code": told.code, "why": told.why[:500]})
        state = msgspec.structs.replace(_counted(policies, told.code), spurned=signed.signature)
        return state, [] if signed.signature and signed.signature == policies.spurned else [said]
    return stepped(policies, update.Offered(told), now_s)


def _chunk(
    policies: Policies, topic: wire.Topic, payload: bytes, now_s: float
) -> tuple[Policies, list[Effect | KeysNote]]:
    file = policies.updates.fetch
    index = fetch.index_of(topic.id, file.offer) if file is not None else None
    if index is None:
        return policies, []  # asked for by a predecessor, or given up meanwhile
    try:
        data = wire.decode(payload, wire.PolicyChunk)[0].data
    except MessageError:
        data = b""  # as bad as one with another content, and it must end as that does
    return stepped(policies, Arrived(index, data), now_s)


def _followed(
    policies: Policies, signed: wire.Signed, wall_s: float | None, verify: trust.Verify
) -> tuple[Policies, list[Effect | KeysNote]]:
    """Newer keys, perhaps several lists on, in whatever order they come."""
    if policies.keys is None:
        return policies, []  # nobody here ever said whom to believe, so nobody can say it over the link
    waiting, keys, last = [*policies.lists, signed], policies.keys, None
    moved = True
    while moved:
        moved = False
        for each in waiting:
            told = trust.next_keys(keys, each, now_s=wall_s, verify=verify)
            if isinstance(told, wire.KeyList):
                keys, moved = told, True
                waiting.remove(each)
                break
            last = told if each is signed else last
    pending = tuple(each for each in waiting if _may_come(keys, each))[-PENDING_MAX:]
    effects: list[Effect | KeysNote] = []
    state = msgspec.structs.replace(policies, keys=keys, lists=pending)
    if keys != policies.keys:
        effects += [KeysNote(wire.encode(keys)), update.Say("keys-followed", {"serial": keys.serial})]
    elif last is not None and last.code != "old-key-list" and signed not in pending:
        effects.append(update.Say("keys-refused", {"code": last.code, "why": last.why[:500]}))
        state = _counted(state, last.code)
    return state, effects


def _may_come(keys: wire.KeyList, signed: wire.Signed) -> bool:
    """A list by an unknown key may be believed once the lists in between came."""
    known = {key.id for key in keys.keys} | set(keys.revoked)
    return signed.key not in known and signed.counter > keys.serial


def report(policies: Policies) -> wire.PolicyReport:
    """Where the device stands, and what it is.

    Args:
        policies: the state.

    Returns:
        The message, to be retained at `report_topic`.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return msgspec.structs.replace(
        update.report(policies.updates),
        labels=policies.audience.labels,
        robot=policies.robot,
        board=policies.board,
    )


def stepped(policies: Policies, event: update.Event, now_s: float) -> tuple[Policies, list[Effect | KeysNote]]:
    """Advance the update by one event.

    Args:
        policies: the state before.
        event: what happened.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do.

    Raises:
        Nothing.
    Source:
        see `fleet.update`.
    """
    updates, effects = update.step(policies.updates, event, now_s)
    return msgspec.structs.replace(policies, updates=updates), [*effects]


def offer_of(id_: str, args: Mapping[str, object]) -> wire.PolicyOffer | trust.Refusal:
    """The offer that a job of kind `update` is.

    Args:
        id_: of the job, and from now on of the offer.
        args: of the job.

    Returns:
        The offer, or what is wrong with it.

    Raises:
        Nothing.
    Source:
        ours: a job is signed as an offer is; there is one way for a policy into a device.
    """
    told = read_args(Kind.UPDATE, args)
    if not isinstance(told, Update):
        return trust.Refusal("unreadable", str(told))
    if len(told.hashes) % 2:
        return trust.Refusal("unreadable", "hashes: half a byte is none")
    named = {field: getattr(told, field) for field in told.__struct_fields__ if field != "hashes"}
    return trust.read_offer(wire.encode(wire.PolicyOffer(id=id_, hashes=bytes.fromhex(told.hashes), **named)))


def job_outcome(policies: Policies, id_: str) -> str | None:
    """What became of such a job, in words.

    Args:
        policies: the state.
        id_: of the job.

    Returns:
        Empty: its policy is kept. None: nothing yet.

    Raises:
        Nothing.
    Source:
        ours: level, not edge; a device that starts anew sees the same.
    """
    updates = policies.updates
    document = updates.document
    if document.offer is not None and document.offer.id == id_:
        if document.stage in update.OPEN or not updates.noted:
            return None
        return "" if document.stage == "kept" else f"{document.stage}: {document.code}: {document.why}"
    waits = updates.waiting is not None and updates.waiting.id == id_
    return None if waits else "another offer took its place"


def withdrawn_with(policies: Policies, id_: str) -> bool:
    """Does the offer end with this job?

    Args:
        policies: the state.
        id_: of the job.

    Returns:
        True: it is that job's, and acts not yet.

    Raises:
        Nothing.
    Source:
        ours: what acts on trial is for the trial to judge.
    """
    updates = policies.updates
    document = updates.document
    if updates.waiting is not None and updates.waiting.id == id_:
        return True
    return document.offer is not None and document.offer.id == id_ and document.stage in update.OPEN - {"trial"}


def check(
    policies: Policies,
    found: bundle.Bundle,
    offer: wire.PolicyOffer,
    path: str,
    *,
    wall_s: float | None,
    verify: trust.Verify,
) -> Checked:
    """May a file that came over the link act here?

    Args:
        policies: the state.
        found: what is in it.
        offer: under which it came.
        path: of the file.
        wall_s: a lower bound of the seconds since the Unix epoch; None when not known.
        verify: a signature.

    Returns:
        The answer to `offers.Check`.

    Raises:
        Nothing.
    Source:
        ours.
    """
    told = trust.judge_bundle(
        found,
        policies.keys,
        required=policies.keys is not None,
        robot=policies.robot,
        board=policies.board,
        floor=policies.updates.document.floor,
        now_s=wall_s,
        verify=verify,
    )
    code, why = update.fault_of(found, policies.needs, told)
    version = told.version if isinstance(told, trust.Release) else offer.version
    return Checked(offer.sha256, code, why, path, version)


def shown(policies: Policies) -> dict[str, object]:
    """The update and the keys for the status document.

    Args:
        policies: the state.

    Returns:
        Plain maps and numbers; unknown is None.

    Raises:
        Nothing.
    Source:
        ours.
    """
    told = msgspec.to_builtins(update.report(policies.updates))
    for name in ("schema", "v", "labels", "robot", "board"):
        del told[name]
    return {
        "update": told if told["id"] else None,
        "keys": None if policies.keys is None else policies.keys.serial,
        "refused": dict(policies.refused),
    }
