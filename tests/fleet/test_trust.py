from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import bundle, wire
from edgert.errors import ArtifactError, MessageError
from edgert.fleet import trust

NOW_S = 1_800_000_000.0
US = trust.Audience("f", "d1", ("lab", "canary"))


def public(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def sign(name: str, message: bytes) -> bytes:
    """A toy: whoever knows the public key could sign. What is tested here is who is believed, not the arithmetic."""
    return hashlib.sha512(public(name) + message).digest()


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    return signature == hashlib.sha512(key + message).digest()


def key(name: str, *uses: Any, not_after_s: float | None = None) -> wire.Key:
    return wire.Key(
        id=trust.key_id(public(name)),
        public=public(name),
        uses=uses or ("bundle", "command", "keys"),
        name=name,
        not_after_s=not_after_s,
    )


KEYS = wire.KeyList(
    serial=3,
    keys=(key("root", "keys"), key("ann"), key("bob", "bundle"), key("old", not_after_s=NOW_S - 1), key("lost")),
    revoked=(trust.key_id(public("lost")),),
)


def signed(name: str = "ann", *, payload: bytes = b"p", **changed: Any) -> wire.Signed:
    plain = wire.Signed(
        **{
            "fleet": "f",
            "to": "d1",
            "counter": 1,
            "not_after_s": NOW_S + 60,
            "payload": payload,
            "key": trust.key_id(public(name)),
            **changed,
        }
    )
    return msgspec.structs.replace(plain, signature=sign(name, wire.signed_bytes(plain)))


def judge(message: wire.Signed, memory: trust.Memory | None = None, keys: wire.KeyList | None = KEYS) -> str:
    _, refusal = trust.judge(message, keys, memory or trust.Memory(), US, now_s=NOW_S, verify=verify)
    return refusal.code if refusal else ""


@pytest.mark.parametrize("to", ["d1", "label:lab", "label:canary", "*"])
def test_a_signed_command_for_this_device_is_obeyed(to: str) -> None:
    assert judge(signed(to=to)) == ""


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (signed("eve"), "unknown-key"),
        (signed("lost"), "revoked-key"),
        (signed("old"), "expired-key"),
        (signed("bob"), "wrong-use"),
        (signed("root"), "wrong-use"),
        (signed(to="d2"), "not-for-this-device"),
        (signed(to="label:d1"), "not-for-this-device"),
        (signed(to="lab"), "not-for-this-device"),
        (signed(fleet="g"), "not-for-this-device"),
        (signed(not_after_s=NOW_S - 1), "expired"),
        (signed(not_after_s=float("nan")), "expired"),
        (msgspec.structs.replace(signed(), signature=b""), "bad-signature"),
    ],
)
def test_others_are_refused_by_name(message: wire.Signed, code: str) -> None:
    assert judge(message) == code


def test_without_keys_nothing_signed_is_believed() -> None:
    assert judge(signed(), keys=None) == "unknown-key"


@pytest.mark.parametrize(
    "changed", [{"fleet": "f", "to": "*"}, {"counter": 2}, {"not_after_s": NOW_S + 61}, {"payload": b"q"}]
)
def test_no_field_can_be_changed_under_a_signature(changed: dict[str, Any]) -> None:
    assert judge(msgspec.structs.replace(signed(), **changed)) == "bad-signature"


def test_a_board_without_a_clock_still_refuses_what_it_heard() -> None:
    message = signed(not_after_s=5.0)
    memory, refusal = trust.judge(message, KEYS, trust.Memory(), US, now_s=None, verify=verify)
    assert refusal is None
    _, refusal = trust.judge(message, KEYS, memory, US, now_s=None, verify=verify)
    assert refusal is not None and refusal.code == "replayed"


@given(st.lists(st.integers(0, 200), max_size=300), st.randoms(use_true_random=False))
def test_no_counter_is_obeyed_twice_in_whatever_order_they_come(counters: list[int], rng: random.Random) -> None:
    memory, obeyed = trust.Memory(), []
    for counter in counters:
        memory, refusal = trust.judge(signed(counter=counter), KEYS, memory, US, now_s=NOW_S, verify=verify)
        if refusal is None:
            obeyed.append(counter)
        if rng.random() < 0.1:  # a restart finds what was written down
            memory = msgspec.json.decode(msgspec.json.encode(memory), type=trust.Memory)
    assert len(obeyed) == len(set(obeyed))
    assert len(memory.seen.get(KEYS.keys[1].id, trust.Seen()).counters) <= trust.REMEMBERED


def test_some_disorder_is_borne() -> None:
    memory = trust.Memory()
    for counter in (5, 3, 4, 1, 2):
        memory, refusal = trust.judge(signed(counter=counter), KEYS, memory, US, now_s=NOW_S, verify=verify)
        assert refusal is None


def test_a_forged_counter_does_not_close_the_window() -> None:
    forged = msgspec.structs.replace(signed(), counter=1 << 60)
    memory, _ = trust.judge(forged, KEYS, trust.Memory(), US, now_s=NOW_S, verify=verify)
    assert judge(signed(), memory) == ""


def next_list(serial: int, *keys: wire.Key, revoked: tuple[str, ...] = (), by: str = "root") -> wire.Signed:
    return signed(by, fleet="*", to="*", payload=wire.encode(wire.KeyList(serial=serial, keys=keys, revoked=revoked)))


def follow(message: wire.Signed, keys: wire.KeyList | None = KEYS) -> wire.KeyList | trust.Refusal:
    return trust.next_keys(keys, message, now_s=NOW_S, verify=verify)


def test_keys_are_rotated_and_revoked_by_a_newer_list() -> None:
    new = follow(next_list(4, key("root2", "keys"), key("carl"), revoked=(trust.key_id(public("ann")),)))
    assert isinstance(new, wire.KeyList) and new.serial == 4
    assert judge(signed("carl"), keys=new) == ""
    assert judge(signed("ann"), keys=new) == "revoked-key"
    assert trust.key_id(public("lost")) in new.revoked  # the new list forgot it, the device does not
    assert not isinstance(follow(next_list(5, key("root2", "keys"), by="root2"), new), trust.Refusal)
    refused = follow(next_list(5, key("root", "keys")), new)
    assert isinstance(refused, trust.Refusal) and refused.code == "unknown-key"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (next_list(3, key("root", "keys")), "old-key-list"),
        (next_list(2, key("root", "keys")), "old-key-list"),
        (next_list(4, key("root", "keys"), by="bob"), "wrong-use"),
        (next_list(4, key("root", "keys"), by="lost"), "revoked-key"),
        (next_list(4, key("ann", "bundle")), "unreadable"),  # nobody could sign the next one
        (next_list(4, key("root"), key("root")), "unreadable"),
        (next_list(4, msgspec.structs.replace(key("eve"), id=trust.key_id(public("root")))), "unreadable"),
        (signed("root", fleet="*", to="*", payload=b"\xff"), "unreadable"),
        (signed("root", to="d2"), "not-for-this-device"),
        (msgspec.structs.replace(next_list(4, key("root", "keys")), payload=b""), "bad-signature"),
    ],
)
def test_no_other_list_is_taken_over(message: wire.Signed, code: str) -> None:
    refused = follow(message)
    assert isinstance(refused, trust.Refusal) and refused.code == code


def test_a_list_that_contradicts_itself_is_no_list() -> None:
    with pytest.raises(MessageError, match="really"):
        trust.check_keys(wire.KeyList(serial=1, keys=(msgspec.structs.replace(key("a"), id="0" * 16),)))


def sealed(by: str = "bob", encoded: bytes = b"{}", **terms: Any) -> bundle.Bundle:
    release = trust.Release(**{"version": 7, **terms})
    value = sign(by, trust.sealed_bytes(b"{}", release)).hex()
    seal = trust.Seal(release=release, signatures=(trust.Signature(trust.key_id(public(by)), value),))
    manifest: Any = None  # judging looks at its bytes only
    return bundle.Bundle(manifest, {}, {}, trust.encode_seal(seal), encoded)


def judge_bundle(found: bundle.Bundle, **changed: Any) -> str:
    known = {"keys": KEYS, "required": True, "robot": "arm", "board": "pi4", "floor": 7, "now_s": NOW_S}
    told = trust.judge_bundle(found, **{**known, "verify": verify, **changed})
    return told.code if isinstance(told, trust.Refusal) else ""


def test_a_signed_bundle_acts() -> None:
    assert judge_bundle(sealed()) == ""
    assert judge_bundle(sealed(robots=("arm", "leg"), boards=("pi4",), not_after_s=NOW_S + 1)) == ""


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (sealed("eve"), "unknown-key"),
        (sealed("lost"), "revoked-key"),
        (sealed("old"), "expired-key"),
        (sealed("root"), "wrong-use"),
        (sealed(encoded=b'{"a":1}'), "bad-signature"),
        (sealed(robots=("leg",)), "wrong-robot"),
        (sealed(boards=("pi3",)), "wrong-board"),
        (sealed(not_after_s=NOW_S - 1), "expired"),
        (sealed(version=6), "older-version"),
        (sealed()._replace(signature=None), "unsigned"),
        (sealed()._replace(signature=b"junk"), "unreadable"),
    ],
)
def test_a_bundle_is_refused_by_name(found: bundle.Bundle, code: str) -> None:
    assert judge_bundle(found) == code


def test_an_unsigned_bundle_is_of_use_where_none_need_be_signed() -> None:
    assert judge_bundle(sealed()._replace(signature=None), required=False) == ""
    assert judge_bundle(sealed()._replace(signature=None), required=False, keys=None) == ""


def test_what_a_device_does_not_know_of_itself_it_is_not() -> None:
    assert judge_bundle(sealed(robots=("arm",)), robot=None) == "wrong-robot"
    assert judge_bundle(sealed(boards=("pi4",)), board=None) == "wrong-board"


def test_one_right_signature_of_several_is_enough() -> None:
    seal = trust.read_seal(sealed("eve"))
    other = trust.read_seal(sealed("bob"))
    assert seal is not None and other is not None
    both = msgspec.structs.replace(seal, signatures=(*seal.signatures, *other.signatures))
    assert judge_bundle(sealed()._replace(signature=trust.encode_seal(both))) == ""


def test_terms_cannot_be_changed_under_a_signature() -> None:
    seal = trust.read_seal(sealed(version=6))
    assert seal is not None
    newer = msgspec.structs.replace(seal, release=trust.Release(version=9))
    assert judge_bundle(sealed()._replace(signature=trust.encode_seal(newer))) == "bad-signature"


def test_a_seal_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="signature"):
        trust.read_seal(sealed()._replace(signature=b"[]"))
    assert trust.read_seal(sealed()._replace(signature=None)) is None


def offer(**changed: Any) -> bytes:
    fields = {"id": "r1", "name": "n", "sha256": "0" * 64, "size_bytes": 5000, "chunk_bytes": 4096}
    return wire.encode(wire.PolicyOffer(**{**fields, "hashes": b"h" * 32, "version": 1, **changed}))


def judge_offer(message: wire.Signed) -> wire.PolicyOffer | trust.Refusal:
    return trust.judge_offer(message, KEYS, US, now_s=NOW_S, verify=verify)


def test_a_signed_offer_is_taken_again_and_again() -> None:
    for _ in range(2):
        assert isinstance(judge_offer(signed(payload=offer(), to="label:lab")), wire.PolicyOffer)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (signed("bob", payload=offer()), "wrong-use"),
        (signed(payload=offer(), to="d9"), "not-for-this-device"),
        (signed(payload=offer(), not_after_s=NOW_S - 1), "expired"),
        (msgspec.structs.replace(signed(payload=offer()), payload=offer(version=9)), "bad-signature"),
        (signed(payload=offer(hashes=b"h" * 16)), "unreadable"),
        (signed(payload=offer(id="a/b")), "unreadable"),
        (signed(payload=b"?"), "unreadable"),
    ],
)
def test_an_offer_is_refused_by_name(message: wire.Signed, code: str) -> None:
    refused = judge_offer(message)
    assert isinstance(refused, trust.Refusal) and refused.code == code
