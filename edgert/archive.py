"""The archive of a bundle: a ZIP file whose members a manifest lists by hash and size. Bytes only, no numpy."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Collection, Mapping
from io import BytesIO
from typing import Annotated

import msgspec
from msgspec import Meta

from edgert.errors import ArtifactError

MANIFEST, SIGNATURE = "manifest.json", "signature"

_MANIFEST_BYTES_MAX = 1 << 20
_SIGNATURE_BYTES_MAX = 1 << 12
_BUNDLE_BYTES_MAX = 1 << 28  # packed and unpacked: no board loads a network of a quarter GiB
_STAMP = (1980, 1, 1, 0, 0, 0)  # ZIP's first day: equal content gives equal bytes
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
    IndexError,
)

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class Member(msgspec.Struct, frozen=True):
    """One member: SHA-256 in hex, and its size unpacked."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0, le=_BUNDLE_BYTES_MAX)]


def listed(members: Mapping[str, bytes]) -> dict[str, Member]:
    """How a manifest lists its members.

    Args:
        members: name -> content.

    Returns:
        Name -> hash and size.

    Raises:
        Nothing.
    Source:
        FIPS 180-4 (SHA-256).
    """
    return {name: Member(hashlib.sha256(content).hexdigest(), len(content)) for name, content in members.items()}


def pack(content: Mapping[str, bytes]) -> bytes:
    """The archive itself, whatever it holds.

    Args:
        content: name -> bytes, in the order wanted.

    Returns:
        The file. Equal arguments give equal bytes.

    Raises:
        ArtifactError: it is larger than a device accepts.
    Source:
        ours: as `write`.
    """
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, each in content.items():
            info = zipfile.ZipInfo(name, _STAMP)
            info.create_system, info.external_attr = 3, 0o644 << 16  # as if made on Unix, wherever it is made
            archive.writestr(info, each)
    if packed.tell() > _BUNDLE_BYTES_MAX:
        raise ArtifactError(f"bundle: {packed.tell()} bytes, more than the {_BUNDLE_BYTES_MAX} that a device accepts")
    return packed.getvalue()


def unpack(data: bytes, names: Collection[str]) -> dict[str, bytes]:
    """Every member of the archive, bounded in number and size before anything is unpacked.

    Args:
        data: the file.
        names: of the members that there may be, beside manifest and signature.

    Returns:
        Name -> content of those found, not yet held against any hash.

    Raises:
        ArtifactError: no readable archive, or a member is unexpected, there twice, or too large.
    Source:
        ours; limits against decompression bombs after CWE-409.
    """
    if len(data) > _BUNDLE_BYTES_MAX:
        raise ArtifactError(f"bundle: {len(data)} bytes, more than the {_BUNDLE_BYTES_MAX} that a device accepts")
    limits = {MANIFEST: _MANIFEST_BYTES_MAX, SIGNATURE: _SIGNATURE_BYTES_MAX}
    known = (MANIFEST, SIGNATURE, *names)
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            for info in archive.infolist():
                name = info.filename
                if name not in known or name in found:
                    raise ArtifactError(f"bundle: {'second' if name in found else 'unexpected'} member {name!r}")
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ArtifactError(f"bundle: member {name} is encrypted or packed in an unknown way")
                room = min(limits.get(name, _BUNDLE_BYTES_MAX), _BUNDLE_BYTES_MAX - sum(map(len, found.values())))
                # The size in the directory is a claim: reading stops one byte after what is allowed, whatever it says.
                with archive.open(info) as member:
                    found[name] = member.read(min(info.file_size, room) + 1)
                if len(found[name]) > room or len(found[name]) != info.file_size:
                    raise ArtifactError(
                        f"bundle: member {name} is larger than it says or than the {room} bytes allowed"
                    )
    except _ZIP_ERRORS as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"bundle: not a readable ZIP archive ({error}); copy it again") from error
    return found


def check_members(wanted: Mapping[str, Member], found: Mapping[str, bytes]) -> None:
    """Are the members those that the manifest lists?

    Args:
        wanted: of the manifest.
        found: of the archive, without manifest and signature.

    Raises:
        ArtifactError: one is missing, not what its hash says, or not listed.
    Source:
        FIPS 180-4 (SHA-256).
    """
    for name, member in wanted.items():
        content = found.get(name)
        if content is None or len(content) != member.bytes or hashlib.sha256(content).hexdigest() != member.sha256:
            raise ArtifactError(
                f"bundle: member {name} is {'missing' if content is None else 'not what the manifest says'}"
            )
    if unlisted := found.keys() - wanted.keys():
        raise ArtifactError(f"bundle: unexpected member {min(unlisted)!r}: the manifest does not list it")


def sealed(encoded: bytes, members: Mapping[str, bytes], signature: bytes | None) -> bytes:
    """Pack a manifest and its members as they are, with a signature.

    Args:
        encoded: the manifest.
        members: name -> content, in the order wanted.
        signature: of it; None for none.

    Returns:
        The file.

    Raises:
        ArtifactError: the signature or the whole is too large.
    Source:
        ours: as `with_signature`.
    """
    content = {MANIFEST: encoded, **members}
    if signature is not None:
        if len(signature) > _SIGNATURE_BYTES_MAX:
            raise ArtifactError(f"bundle, {SIGNATURE}: {len(signature)} bytes are too many")
        content[SIGNATURE] = signature
    return pack(content)
