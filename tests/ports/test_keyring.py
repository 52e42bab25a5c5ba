from __future__ import annotations

from pathlib import Path

import pytest

from edgert import wire
from edgert.errors import ConfigError, StoreError, UsageError
from edgert.fleet import trust
from edgert.ports.keyring import Keyring
from edgert.ports.signing import verify

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: no key was made")
US = trust.Audience("f", "d")


def test_a_device_follows_from_any_list_to_the_newest(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "k")
    ring.new("root", ("keys",))
    ring.new("ann", ("bundle", "command"))
    ring.new("root2", ("keys",))
    ring.revoke("root")
    ring.new("bob", ())
    told = [wire.decode(data, wire.Signed)[0] for _, data in ring.lists()]
    assert [serial for serial, _ in ring.lists()] == [1, 2, 3, 4, 5]
    first, _ = wire.decode(told[0].payload, wire.KeyList)
    keys: wire.KeyList = first
    for signed in told[1:]:
        followed = trust.next_keys(keys, signed, now_s=1.8e9, verify=verify)
        assert isinstance(followed, wire.KeyList), followed
        keys = followed
    assert keys == ring.keys()
    skipped = trust.next_keys(first, told[-1], now_s=1.8e9, verify=verify)
    assert isinstance(skipped, trust.Refusal) and skipped.code == "unknown-key"


def test_what_is_said_is_believed_once_and_numbers_only_grow(tmp_path: Path) -> None:
    ring, memory = Keyring(tmp_path / "k"), trust.Memory()
    ring.new("ann", ())
    for now_s in (2000.0, 1000.0, 1000.0):  # the clock of the workstation was set back
        said = ring.say(b"p", fleet="f", to="d", valid_s=10.0, now_s=now_s)
        memory, refusal = trust.judge(said, ring.keys(), memory, US, now_s=None, verify=verify)
        assert refusal is None
    _, refusal = trust.judge(said, ring.keys(), memory, US, now_s=None, verify=verify)
    assert refusal is not None and refusal.code == "replayed"


def test_the_key_that_is_revoked_does_not_sign_its_own_end_where_another_can(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "k")
    stolen = ring.new("stolen", ())
    other = ring.new("other", ("keys",))
    ring.revoke("stolen")
    signed, _ = wire.decode(ring.newest.read_bytes(), wire.Signed)
    assert signed.key == other.id != stolen.id


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "k")
    assert ring.keys() is None and ring.lists() == []
    with pytest.raises(ConfigError, match="next list"):
        ring.new("ann", ("bundle",))
    assert not (tmp_path / "k").exists()
    with pytest.raises(ConfigError, match="no private key"):
        ring.say(b"", fleet="f", to="d", valid_s=1.0)
    ring.new("ann", ())
    with pytest.raises(UsageError, match="already"):
        ring.new("ann", ())
    (tmp_path / "k" / "ann.key").unlink()
    with pytest.raises(ConfigError, match="no private key"):
        ring.signer("bundle")
    ring = Keyring(tmp_path / "l")
    ring.new("ann", ())
    (tmp_path / "l" / "counter").write_text("x")
    with pytest.raises(StoreError, match="counter"):
        ring.say(b"", fleet="f", to="d", valid_s=1.0)
