"""An operator's keys: a folder with private keys, the lists of those that devices trust, and a counter.

`<name>.key` is a private key, `keys.cbor` the newest list, to be put on devices as `trust.keys_file`, and
`lists/<serial>.cbor` every list there was, each signed by a key of the one before, so that a device that was away for
years can follow from one to the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgert import wire
from edgert.errors import ConfigError, MessageError, StoreError, UsageError
from edgert.fleet.trust import Use, check_keys
from edgert.ports.signing import Signer, new_signer, read_keys, read_signer, write_secret
from edgert.ports.store import store_error, write_atomic

ALL_USES: tuple[Use, ...] = ("bundle", "command", "keys")
FOREVER_S = 253_402_300_799.0
"""The last second of the year 9999: lists of keys are ended by their numbers, not by time."""


class Keyring:
    """The folder.

    Attributes:
        folder: its owner's alone.
    """

    def __init__(self, folder: Path) -> None:
        """Name it; nothing is touched."""
        self.folder = folder
        self.newest = folder / "keys.cbor"

    def keys(self) -> wire.KeyList | None:
        """The newest list; None where there is none yet.

        Raises:
            ConfigError: it cannot be read.
        """
        return read_keys(self.newest) if self.newest.exists() else None

    def lists(self) -> list[tuple[int, bytes]]:
        """Every list there was with its serial, oldest first, as devices are told of them.

        Raises:
            ConfigError: one cannot be read.
        """
        found = []
        for path in sorted((self.folder / "lists").glob("*.cbor")):
            found.append((read_keys(path).serial, path.read_bytes()))
        return sorted(found)

    def new(self, name: str, uses: Sequence[Use], not_after_s: float | None = None) -> wire.Key:
        """Draw a key, and make a list that trusts it.

        Args:
            name: of its file, and for people.
            uses: what it is for; none: everything for the first, and for others what needs no other list.
            not_after_s: seconds since the Unix epoch until when it is trusted; None for ever.

        Raises:
            ConfigError: no name, or nobody here may sign the list.
            UsageError: there is such a key already.
            StoreError: it cannot be written.
        """
        if not wire.is_name(name):
            raise ConfigError(f"{name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
        former = self.keys()
        if (self.folder / f"{name}.key").exists():
            raise UsageError(f"{self.folder / name}.key is there already")
        signer = new_signer()
        chosen = tuple(uses) or (ALL_USES if former is None else ALL_USES[:2])
        key = wire.Key(id=signer.id, public=signer.public, uses=chosen, name=name, not_after_s=not_after_s)
        listed = (key,) if former is None else (*former.keys, key)
        new = wire.KeyList(
            serial=1 if former is None else former.serial + 1,
            keys=listed,
            revoked=() if former is None else former.revoked,
        )
        by = signer if former is None else self.signer("keys")
        _checked(new)
        write_secret(self.folder / f"{name}.key", signer.pem())
        self._commit(new, by)
        return key

    def revoke(self, wanted: str) -> wire.KeyList:
        """Make a list that trusts this key no more, and never again.

        Args:
            wanted: name or id.

        Raises:
            ConfigError: there is no such key, or nobody else may sign lists.
            StoreError: it cannot be written.
        """
        former = self.keys()
        found = next((key for key in former.keys if wanted in (key.name, key.id)), None) if former else None
        if former is None or found is None:
            raise ConfigError(f"{self.newest}: no key {wanted!r}")
        new = wire.KeyList(
            serial=former.serial + 1,
            keys=tuple(key for key in former.keys if key.id != found.id),
            revoked=tuple(sorted({*former.revoked, found.id})),
        )
        _checked(new)
        # By another key wherever there is one: who has stolen this one must not be asked.
        others = msgspec.structs.replace(former, keys=tuple(key for key in former.keys if key.id != found.id))
        self._commit(new, self.signer("keys", others))
        return new

    def signer(self, use: Use, among: wire.KeyList | None = None) -> Signer:
        """A key of the list that is for this, and whose private half is here.

        Raises:
            ConfigError: there is none, or its file cannot be used.
        """
        keys = among or self.keys()
        for key in keys.keys if keys else ():
            path = self.folder / f"{key.name}.key"
            if use in key.uses and path.exists():
                return read_signer(path)
        raise ConfigError(f"{self.folder}: no private key for {use} here; `edgert key new` makes one")

    def say(
        self, payload: bytes, *, fleet: str, to: str, valid_s: float, use: Use = "command", now_s: float | None = None
    ) -> wire.Signed:
        """Sign a message for a device, a label (`label:x`) or all (`*`).

        Raises:
            ConfigError: there is no key for it.
            StoreError: the counter cannot be written.
        """
        now_s = time.time() if now_s is None else now_s
        signer = self.signer(use)
        return signer.say(payload, fleet=fleet, to=to, counter=self._count(now_s), not_after_s=now_s + valid_s)

    def _count(self, now_s: float) -> int:
        """Microseconds, and never the same or less, so that several folders with one key seldom collide."""
        path = self.folder / "counter"
        try:
            last = int(path.read_text()) if path.exists() else 0
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}; remove it if the clock is right") from error
        counter = max(last + 1, int(now_s * 1e6))
        write_atomic(path, str(counter).encode())
        return counter

    def _commit(self, new: wire.KeyList, by: Signer) -> None:
        said = by.say(wire.encode(new), fleet="*", to="*", counter=new.serial, not_after_s=FOREVER_S)
        try:
            (self.folder / "lists").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, "make", self.folder / "lists") from error
        data = wire.encode(said)
        write_atomic(self.folder / "lists" / f"{new.serial:08d}.cbor", data, mode=0o644)
        write_atomic(self.newest, data, mode=0o644)


def _checked(new: wire.KeyList) -> None:
    try:
        check_keys(new)
    except MessageError as error:
        raise ConfigError(str(error)) from error
