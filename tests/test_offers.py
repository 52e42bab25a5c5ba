"""What the words about policies and keys may say; `test_wire` has their bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgert import wire
from edgert.errors import MessageError
from edgert.fleet import trust

KEY = wire.Key(id=trust.key_id(bytes(32)), public=bytes(32), uses=("keys",))
SIGNED = wire.Signed(fleet="f", to="d", counter=1, not_after_s=2.0, payload=b"p", key=KEY.id)
OFFER = wire.PolicyOffer(id="r", name="n", sha256="0" * 64, size_bytes=9, chunk_bytes=4096, hashes=bytes(16), version=1)


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (OFFER, {"sha256": "0" * 63}),
        (OFFER, {"sha256": "0" * 64 + "\n"}),
        (OFFER, {"size_bytes": 0}),
        (OFFER, {"size_bytes": (1 << 28) + 1}),
        (OFFER, {"chunk_bytes": 1023}),
        (OFFER, {"version": 0}),
        (OFFER, {"budget_bytes": -1}),
        (SIGNED, {"key": "0" * 15}),
        (SIGNED, {"key": "G" * 16}),
        (SIGNED, {"counter": -1}),
        (SIGNED, {"signature": bytes(65)}),
        (SIGNED, {"to": "x" * 81}),
        (wire.KeyList(serial=1, keys=(KEY,)), {"serial": 0}),
        (wire.KeyList(serial=1, keys=(KEY,)), {"keys": (KEY,) * 65}),
        (wire.KeyList(serial=1, keys=()), {"keys": (msgspec.structs.replace(KEY, public=bytes(31)),)}),
    ],
)
def test_what_cannot_be_is_not_read(message: Any, changed: dict[str, Any]) -> None:
    wire.decode(wire.encode(message), type(message))
    with pytest.raises(MessageError):
        wire.decode(wire.encode(msgspec.structs.replace(message, **changed)), type(message))


def test_every_field_but_the_signature_is_signed() -> None:
    said = wire.signed_bytes(SIGNED)
    other = {"fleet": "g", "to": "e", "counter": 2, "not_after_s": 3.0, "payload": b"q", "key": "0" * 16}
    assert set(other) | {"signature", "v"} == set(wire.Signed.__struct_fields__)
    for field, value in other.items():
        assert wire.signed_bytes(msgspec.structs.replace(SIGNED, **{field: value})) != said
    assert wire.signed_bytes(msgspec.structs.replace(SIGNED, signature=b"x")) == said
    assert said.startswith(b"edgert-signed-1\0")
