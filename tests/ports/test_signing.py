from __future__ import annotations

from pathlib import Path

import pytest

from edgert import wire
from edgert.errors import ConfigError, UsageError
from edgert.fleet import trust
from edgert.ports import signing

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: no signature was made")


def keys_file(path: Path, signer: signing.Signer) -> None:
    key = wire.Key(id=signer.id, public=signer.public, uses=("bundle", "command", "keys"))
    listed = wire.KeyList(serial=1, keys=(key,))
    signed = signer.say(wire.encode(listed), fleet="f", to="*", counter=1, not_after_s=2e9)
    path.write_bytes(wire.encode(signed))


def test_what_is_signed_is_verified_and_nothing_else() -> None:
    signer, other = signing.new_signer(), signing.new_signer()
    signature = signer.sign(b"message")
    assert signing.verify(signer.public, b"message", signature)
    assert not signing.verify(signer.public, b"massage", signature)
    assert not signing.verify(other.public, b"message", signature)
    for junk in (b"", signature[:-1], bytes(64)):
        assert not signing.verify(signer.public, b"message", junk)
    assert not signing.verify(b"short", b"message", signature)


def test_the_arithmetic_is_that_of_rfc_8032() -> None:
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert signing.verify(public, b"\x72", signature)  # section 7.1, test 2


def test_a_message_that_is_said_is_believed() -> None:
    signer = signing.new_signer()
    said = signer.say(b"p", fleet="f", to="*", counter=1, not_after_s=2e9)
    listed = wire.KeyList(serial=1, keys=(wire.Key(id=signer.id, public=signer.public, uses=("command", "keys")),))
    over_the_wire, _ = wire.decode(wire.encode(said), wire.Signed)
    memory, refusal = trust.judge(
        over_the_wire, listed, trust.Memory(), trust.Audience("f", "d"), now_s=1.8e9, verify=signing.verify
    )
    assert refusal is None and memory.seen


def test_a_key_is_read_back_from_its_file(tmp_path: Path) -> None:
    signer, path = signing.new_signer(), tmp_path / "keys" / "a.key"
    signing.write_secret(path, signer.pem())
    assert path.stat().st_mode & 0o777 == 0o600
    assert signing.read_signer(path).id == signer.id
    with pytest.raises(UsageError, match="already"):
        signing.write_secret(path, b"")


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="no private key"):
        signing.read_signer(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        signing.read_signer(tmp_path / "b.key")


def test_a_list_of_keys_is_read(tmp_path: Path) -> None:
    signer, path = signing.new_signer(), tmp_path / "keys.cbor"
    keys_file(path, signer)
    assert signing.read_keys(path).keys[0].id == signer.id
    path.write_bytes(b"junk")
    with pytest.raises(ConfigError, match="no list of keys"):
        signing.read_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        signing.read_keys(tmp_path / "none")


def test_a_bundle_is_sealed() -> None:
    signer, release = signing.new_signer(), trust.Release(version=1)
    signature = signer.seal(b"{}", release)
    assert signature.key == signer.id
    assert signing.verify(signer.public, trust.sealed_bytes(b"{}", release), bytes.fromhex(signature.value))
