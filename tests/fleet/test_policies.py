from __future__ import annotations

import hashlib
import itertools
from typing import Any

import msgspec
import pytest

from edgert import bundle, offers, wire
from edgert.config import Config, parse
from edgert.errors import MessageError
from edgert.fleet import fetch, policies, trust, update

NOW_S = 1_800_000_000.0
CONFIG: Config = parse(
    '[device]\nid = "d1"\nfleet = "f"\nlabels = ["lab"]\nrobot = "arm"\n[policy]\nbundle = "/x"\n', "test"
)
CONTENT = {"policy.onnx": b"graph", "params.f32": b"\0" * 64, "golden.obs": b"", "golden.head": b"h"}


def public(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    return signature == hashlib.sha512(key + message).digest()


def key(name: str, *uses: Any) -> wire.Key:
    known = uses or ("bundle", "command", "keys")
    return wire.Key(id=trust.key_id(public(name)), public=public(name), uses=known, name=name)


KEYS = wire.KeyList(serial=1, keys=(key("root", "keys"), key("ann")))


def say(payload: bytes, by: str = "ann", **changed: Any) -> bytes:
    fields = {"fleet": "f", "to": "d1", "counter": 1, "not_after_s": NOW_S + 60, "payload": payload}
    plain = wire.Signed(**{**fields, "key": trust.key_id(public(by)), **changed})
    value = hashlib.sha512(public(by) + wire.signed_bytes(plain)).digest()
    return wire.encode(msgspec.structs.replace(plain, signature=value))


def manifest(**changed: Any) -> bundle.Manifest:
    fields = {
        "name": "n",
        "task": "t",
        "created": "",
        "edgert": "0",
        "observation": bundle.Observation((2, 2, 1), 1.0),
        "action": bundle.Action(3),
        "control_rate_hz": 20.0,
        "gamma": 0.99,
        "net": {},
        "thresholds": (0.5,),
        "exits": (bundle.Exit(10), bundle.Exit(20)),
        "safe_action": 0,
        "ranges": {},
        "golden": bundle.Golden(1, 0.1),
    }
    return bundle.Manifest(**{**fields, **changed})


def file_of(by: str | None = "ann", version: int = 1, terms: dict[str, Any] | None = None, **changed: Any) -> bytes:
    data = bundle.write(manifest(**changed), CONTENT)
    if by is None:
        return data
    release = trust.Release(**{"version": version, **(terms or {})})
    message = trust.sealed_bytes(bundle.read(data).encoded, release)
    signature = trust.Signature(trust.key_id(public(by)), hashlib.sha512(public(by) + message).hexdigest())
    return bundle.with_signature(data, trust.encode_seal(trust.Seal(release=release, signatures=(signature,))))


def offer_of(data: bytes, version: int = 1) -> wire.PolicyOffer:
    return wire.PolicyOffer(
        id="r1",
        name="n",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=4096,
        hashes=fetch.hashes(data, 4096),
        version=version,
    )


def opened(keys: wire.KeyList | None = KEYS, memory: bytes = b"") -> policies.Policies:
    state, faults = policies.open_policies(
        CONFIG, manifest(), board="pi4", keys=keys, found=policies.Found(memory=memory)
    )
    assert not faults
    return state


def receive(state: policies.Policies, kind: str, payload: bytes, id_: str = "-") -> tuple[policies.Policies, list[Any]]:
    topic = wire.Topic("f", "d1", "policy", kind, id_)
    after, effects = policies.received(state, topic, payload, now_s=0.0, wall_s=NOW_S, verify=verify)
    return after, [*effects]


def names(effects: list[Any]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, update.Say)]


def believed(state: policies.Policies, payload: bytes, kept: bool = False) -> tuple[policies.Policies, str]:
    state, told, notes = policies.believe(state, payload, kept=kept, wall_s=NOW_S, verify=verify)
    assert bool(notes) == (told.refusal is None and not kept and state.keys is not None)
    return state, told.refusal.code if told.refusal else told.payload.decode()


def test_a_device_with_keys_obeys_what_is_signed_and_once() -> None:
    state, told = believed(opened(), say(b"go"))
    assert told == "go"
    state, told = believed(state, say(b"go"))
    assert told == "replayed"
    assert believed(state, wire.encode(wire.ExitsCommand(id="x")))[1] == "unsigned"
    assert believed(state, b"\xff")[1] == "unsigned"
    assert believed(state, say(b"go", "eve", counter=2))[1] == "unknown-key"
    assert state.refused == {"replayed": 1}


def test_what_the_broker_keeps_is_obeyed_each_time() -> None:
    state = opened()
    for _ in range(3):
        state, told = believed(state, say(b"go"), kept=True)
        assert told == "go"


def test_a_restart_remembers_what_was_heard() -> None:
    state, _ = believed(opened(), say(b"go"))
    again = opened(memory=msgspec.json.encode(state.memory))
    assert believed(again, say(b"go"))[1] == "replayed"


def test_a_device_without_keys_believes_its_broker() -> None:
    state = opened(None)
    plain = wire.encode(wire.ExitsCommand(id="x"))
    _, told, notes = policies.believe(state, plain, kept=False, wall_s=NOW_S, verify=verify)
    assert told == (plain, None) and not notes
    assert believed(state, say(b"go", "eve"))[1] == "go"
    assert believed(state, say(b"go", to="d2"))[1] == "not-for-this-device"


def test_an_offer_begins_an_update_and_a_forged_one_does_not() -> None:
    offer = wire.encode(offer_of(file_of()))
    state, effects = receive(opened(), "offer", say(offer))
    assert state.updates.document.stage == "fetching" and names(effects) == ["update-offered"]
    state, effects = receive(opened(), "offer", say(offer, "eve"))
    assert state.updates.document.stage == "none" and names(effects) == ["offer-refused"]
    assert state.refused == {"unknown-key": 1}
    state, effects = receive(state, "offer", say(offer, "eve"))
    assert state.refused == {"unknown-key": 2} and not effects  # retained: it comes with every connection
    with pytest.raises(MessageError):
        receive(opened(), "offer", offer)
    with pytest.raises(MessageError, match="no device listens"):
        receive(opened(), "report", b"")


def test_an_empty_offer_takes_the_former_back() -> None:
    state, _ = receive(opened(), "offer", say(wire.encode(offer_of(file_of()))))
    state, effects = receive(state, "offer", b"")
    assert state.updates.document.stage == "withdrawn" and names(effects) == ["update-withdrawn"]


def test_an_offer_need_not_come_again_while_its_policy_is_fetched_and_at_any_other_time_it_does() -> None:
    state = opened()
    assert not policies.offer_known(state)
    state, _ = receive(state, "offer", say(wire.encode(offer_of(file_of()))))
    assert not policies.offer_known(state), "a power cut would take it along"
    state, _ = policies.stepped(state, offers.Noted(), 0.0)
    assert policies.offer_known(state)
    again, _ = policies.open_policies(
        CONFIG,
        manifest(),
        board=None,
        keys=KEYS,
        found=policies.Found(note=msgspec.json.encode(state.updates.document)),
    )
    assert policies.offer_known(again), "it is found again after a restart"
    state, _ = receive(state, "offer", b"")
    state, _ = policies.stepped(state, offers.Noted(), 0.0)
    assert state.updates.document.stage == "withdrawn" and not policies.offer_known(state)


def test_a_chunk_that_nobody_asked_for_changes_nothing() -> None:
    state = opened()
    assert receive(state, "chunk", b"junk", "0" * 32 + ".0") == (state, [])


def key_list(serial: int, *keys: wire.Key, by: str) -> bytes:
    listed = wire.encode(wire.KeyList(serial=serial, keys=keys))
    return say(listed, by, fleet="*", to="*", counter=serial)


def test_keys_are_followed_in_whatever_order_the_lists_come() -> None:
    lists = [
        key_list(2, key("root", "keys"), key("root2", "keys"), by="root"),
        key_list(3, key("root2", "keys"), by="root2"),
        key_list(4, key("root3", "keys"), key("bob"), by="root2"),
    ]
    for order in itertools.permutations(lists):
        state = opened()
        for payload in order:
            state, _ = receive(state, "keys", payload)
        assert state.keys is not None and state.keys.serial == 4 and not state.lists
        assert believed(state, say(b"go", "bob"))[1] == "go"
        assert believed(state, say(b"go", "ann", counter=9))[1] == "unknown-key"


def test_followed_keys_are_written_down_and_a_forged_list_is_named() -> None:
    state, effects = receive(opened(), "keys", key_list(2, key("root2", "keys"), by="root"))
    (note,) = (effect for effect in effects if isinstance(effect, offers.KeysNote))
    assert names(effects) == ["keys-followed"]
    again, _ = policies.open_policies(CONFIG, manifest(), board=None, keys=KEYS, found=policies.Found(keys=note.data))
    assert again.keys == state.keys
    state, effects = receive(opened(), "keys", key_list(2, key("eve"), by="ann"))
    forged = wire.decode(key_list(2, key("eve"), by="root"), wire.Signed)[0]
    state, effects = receive(opened(), "keys", wire.encode(msgspec.structs.replace(forged, signature=b"\0" * 64)))
    assert names(effects) == ["keys-refused"] and state.keys == KEYS
    state, effects = receive(opened(None), "keys", key_list(2, key("eve"), by="eve"))
    assert state.keys is None and not effects


def test_what_cannot_be_read_is_told_and_the_device_goes_on() -> None:
    state, faults = policies.open_policies(
        CONFIG, manifest(), board=None, keys=KEYS, found=policies.Found(b"\xff", b"\xff", b"\xff")
    )
    assert len(faults) == 3 and state.keys == KEYS


CORPUS = {
    "unsigned": (file_of(None), "unsigned"),
    "by a stranger": (file_of("eve"), "unknown-key"),
    "by a key that is for lists only": (file_of("root"), "wrong-use"),
    "for another robot": (file_of(terms={"robots": ("leg",)}), "wrong-robot"),
    "for another board": (file_of(terms={"boards": ("pi3",)}), "wrong-board"),
    "too late": (file_of(terms={"not_after_s": NOW_S - 1}), "expired"),
    "of other observations": (file_of(observation=bundle.Observation((3, 2, 1), 1.0)), "wrong-shape"),
    "of other actions": (file_of(action=bundle.Action(4)), "wrong-shape"),
    "of more exits": (file_of(exits=(bundle.Exit(1),) * 3, thresholds=(0.5, 0.5)), "wrong-shape"),
    "at another rate": (file_of(control_rate_hz=10.0), "wrong-shape"),
}


@pytest.mark.parametrize("bad", CORPUS)
def test_a_bad_bundle_is_refused_by_name(bad: str) -> None:
    data, code = CORPUS[bad]
    told = policies.check(opened(), bundle.read(data), offer_of(data), "/x", wall_s=NOW_S, verify=verify)
    assert told.code == code and told.why


def test_a_good_bundle_may_act_also_unsigned_where_there_are_no_keys() -> None:
    data = file_of(terms={"robots": ("arm",), "boards": ("pi4", "pi5")})
    told = policies.check(opened(), bundle.read(data), offer_of(data), "/x", wall_s=NOW_S, verify=verify)
    assert told.code == "" and told.version == 1
    data = file_of(None)
    told = policies.check(opened(None), bundle.read(data), offer_of(data, 7), "/x", wall_s=NOW_S, verify=verify)
    assert told.code == "" and told.version == 7


def test_a_release_is_not_made_newer_by_the_offer_it_comes_under() -> None:
    data = file_of(version=3)
    told = policies.check(opened(), bundle.read(data), offer_of(data, 9), "/x", wall_s=NOW_S, verify=verify)
    assert told.version == 3  # and `update` refuses it, because 9 was offered


def test_the_status_shows_update_and_keys() -> None:
    assert policies.shown(opened()) == {"update": None, "keys": 1, "refused": {}}
    state, _ = receive(opened(), "offer", say(wire.encode(offer_of(file_of()))))
    shown: Any = policies.shown(state)
    assert shown["update"]["stage"] == "fetching" and "schema" not in shown["update"]


def test_it_listens_to_its_own_offers_and_to_everybodys_keys() -> None:
    assert policies.subscriptions(CONFIG) == [
        "edgert/v1/f/d1/policy/offer/-",
        "edgert/v1/f/-/policy/keys/+",
    ]
    assert policies.report_topic(opened()) == "edgert/v1/f/d1/policy/report/-"
