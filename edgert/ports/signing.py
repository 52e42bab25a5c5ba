"""Ed25519 keys in files, and the signatures made and verified with them. The only home of `cryptography`'s signatures.

It is imported when the first key is needed: 7 MB of memory and 16 MB of disk that a device without keys does not pay.
A key's file must be its owner's alone, see `ports.credentials`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgert import wire
from edgert.errors import ConfigError, MessageError, UsageError
from edgert.fleet import trust
from edgert.ports.credentials import read_secret
from edgert.ports.store import store_error, write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MISSING = "the Python package cryptography is missing: pip install 'edgert[trust]'"


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Is this the signature of that message by that key?

    Raises:
        ConfigError: the package is missing.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError as error:
        raise ConfigError(_MISSING) from error
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Signer:
    """A private key, in memory.

    Attributes:
        public: 32 bytes.
        id: `fleet.trust.key_id` of it.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """See `new_signer` and `read_signer`."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = trust.key_id(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)

    def pem(self) -> bytes:
        """The private key in PKCS 8, not encrypted."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def say(self, payload: bytes, *, fleet: str, to: str, counter: int, not_after_s: float) -> wire.Signed:
        """Sign a message for a device, a label (`label:x`) or all (`*`)."""
        signed = wire.Signed(fleet=fleet, to=to, counter=counter, not_after_s=not_after_s, payload=payload, key=self.id)
        return msgspec.structs.replace(signed, signature=self.sign(wire.signed_bytes(signed)))

    def seal(self, encoded: bytes, release: trust.Release) -> trust.Signature:
        """Vouch for the bundle with this manifest."""
        return trust.Signature(self.id, self.sign(trust.sealed_bytes(encoded, release)).hex())


def new_signer() -> Signer:
    """Draw a key.

    Raises:
        ConfigError: the package is missing.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise ConfigError(_MISSING) from error
    return Signer(Ed25519PrivateKey.generate())


def read_signer(path: Path) -> Signer:
    """Read a private key from its file.

    Raises:
        ConfigError: it cannot be read, others can, it is no Ed25519 key, or the package is missing.
    """
    text = read_secret(path)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as error:
        raise ConfigError(_MISSING) from error
    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: no private key that can be used: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key; `edgert key new` makes one")
    return Signer(key)


def read_keys(path: Path) -> wire.KeyList:
    """The list of keys that somebody put here by hand; its own signature was of use on its way only.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; `edgert key new` makes one") from error
    try:
        signed, _ = wire.decode(data, wire.Signed)
        return trust.check_keys(wire.decode(signed.payload, wire.KeyList)[0])
    except MessageError as error:
        raise ConfigError(f"{path}: no list of keys: {error}") from error


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read; never over another.

    Raises:
        UsageError: it is there already.
        StoreError: it cannot be written.
    """
    if path.exists():
        raise UsageError(f"{path} is there already, and a key that is lost cannot be had again")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(error, "make", path.parent) from error
    write_atomic(path, data, mode=0o600)
