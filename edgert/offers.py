"""Messages by which policies, and the keys that vouch for them, travel. `wire` encodes, decodes and names them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A public key that is trusted for some uses.

    Attributes:
        id: `fleet.trust.key_id` of it.
        public: Ed25519, 32 bytes.
        uses: `bundle` signs policies, `command` what changes a device, `keys` the next list of keys.
        name: for people.
        not_after_s: seconds since the Unix epoch after which nothing that it signed is accepted; None for never.
    """

    id: KeyId
    public: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    uses: tuple[Literal["bundle", "command", "keys"], ...]
    name: Annotated[str, msgspec.Meta(max_length=100)] = ""
    not_after_s: float | None = None


class KeyList(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="key-list"):
    """The keys a fleet trusts; travels inside a `Signed`.

    Attributes:
        serial: grows with every list; an older one is refused.
        keys: that are trusted.
        revoked: ids that never will be again.
    """

    serial: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    keys: Annotated[tuple[Key, ...], msgspec.Meta(max_length=64)]
    revoked: Annotated[tuple[KeyId, ...], msgspec.Meta(max_length=1024)] = ()
    v: int = 1


class Signed(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="signed"):
    """Another message, and who says it to whom; `fleet.trust` judges it.

    Attributes:
        to: `<device>`, `label:<label>`, or `*` for a whole fleet.
        fleet: that it is for.
        counter: grows with every message that a key signs.
        not_after_s: seconds since the Unix epoch after which it says nothing any more.
        payload: the message, encoded.
        key: id of the key.
        signature: Ed25519 over `wire.signed_bytes`.
    """

    fleet: str
    to: Annotated[str, msgspec.Meta(max_length=80)]
    counter: Sequence
    not_after_s: float
    payload: bytes
    key: KeyId
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    v: int = 1


class PolicyOffer(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="policy-offer"):
    """A bundle that a device should act with; travels inside a `Signed`.

    Attributes:
        id: of the rollout, a topic segment; events and replies carry it.
        name: of the policy, for people.
        sha256: of the whole file, hex.
        size_bytes: of the whole file.
        chunk_bytes: of each chunk but the last.
        hashes: the first 16 bytes of each chunk's SHA-256, one after the other.
        version: of the bundle's release; never lower than what a device has acted with before.
        url: where it can be had over HTTP, with ranges; empty: from the chunks at the broker only.
        budget_bytes: most bytes over the link to get it, all counted; 0 leaves it to the device.
    """

    id: str
    name: Annotated[str, msgspec.Meta(max_length=100)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 28)]
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 18)]
    hashes: bytes
    version: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    url: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    budget_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0
    v: int = 1


class PolicyChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="policy-chunk"):
    """A piece of a bundle, retained at the broker under its place in the file; the offer has its hash."""

    data: bytes
    v: int = 1


class PolicyReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="policy-report"):
    """Where a device stands with what it was offered; retained, so whoever comes later knows it too.

    Attributes:
        id: of the offer; empty before the first.
        stage: see `fleet.update.Stage`.
        code, why: a named reason and words.
        name, sha256, version: of what was offered.
        have_bytes, size_bytes: of the file.
        spent_bytes: over the link for it.
        kept, floor: SHA-256 and version of the newest policy that stood its trial here.
        labels: of the device, for whoever gives policies out by label.
        robot, board: what the device is; None when not known.
    """

    id: str
    stage: str
    code: str = ""
    why: str = ""
    name: str = ""
    sha256: str = ""
    version: Sequence = 0
    have_bytes: int = 0
    size_bytes: int = 0
    spent_bytes: int = 0
    kept: str = ""
    floor: Sequence = 0
    labels: tuple[str, ...] = ()
    robot: str | None = None
    board: str | None = None
    v: int = 1


class Arrived(msgspec.Struct, frozen=True):
    """A chunk came, perhaps twice, late, or with the wrong content."""

    index: int
    data: bytes


class Kept(msgspec.Struct, frozen=True):
    """A chunk is on the disk, or it cannot be."""

    index: int
    ok: bool = True


class Ask(msgspec.Struct, frozen=True):
    """Effect: ask for this chunk of the file with this hash."""

    index: int
    sha256: str


class Leave(msgspec.Struct, frozen=True):
    """Effect: this chunk is wanted no more."""

    index: int
    sha256: str


class Keep(msgspec.Struct, frozen=True):
    """Effect: write this chunk to its place, then say `Kept`."""

    index: int
    data: bytes
    sha256: str


class Noted(msgspec.Struct, frozen=True):
    """The document is on the disk, or it cannot be."""

    ok: bool = True


class Found(msgspec.Struct, frozen=True):
    """What is there of the file: answer to `Open`."""

    sha256: str
    there: tuple[int, ...]
    free_bytes: int


class HttpEnded(msgspec.Struct, frozen=True):
    """HTTP brings nothing more; `why` is empty when everything came."""

    why: str


class Checked(msgspec.Struct, frozen=True):
    """What the whole file is: answer to `Check`. Without a code it may act.

    Attributes:
        sha256: of it.
        code, why: of a refusal.
        path: of the file.
        version: of its release; that of the offer where nobody vouches for it.
    """

    sha256: str
    code: str
    why: str
    path: str
    version: int = 0


class Note(msgspec.Struct, frozen=True):
    """Effect: write this down, then say `Noted`."""

    data: bytes


class Open(msgspec.Struct, frozen=True):
    """Effect: see what is there of the file, then say `Found`."""

    offer: PolicyOffer


class Http(msgspec.Struct, frozen=True):
    """Effect: fetch these chunks over HTTP."""

    offer: PolicyOffer
    missing: tuple[int, ...]
    budget_bytes: int


class Check(msgspec.Struct, frozen=True):
    """Effect: see what the whole file is, then say `Checked`."""

    offer: PolicyOffer


class Sweep(msgspec.Struct, frozen=True):
    """Effect: of the files in the store, only these need stay."""

    keep: tuple[str, ...]


class KeysNote(msgspec.Struct, frozen=True):
    """Effect: write down the keys that are believed from now on."""

    data: bytes


class SeenNote(msgspec.Struct, frozen=True):
    """Effect: write down which commands were heard, before anything of them is done."""

    data: bytes


Told = Arrived | Kept | Noted | Found | HttpEnded | Checked
"""What becomes of a policy on its way, as the shell tells `fleet.update`."""
Do = Note | Open | Http | Check | Sweep | Ask | Leave | Keep | KeysNote | SeenNote
"""What it wants of the shell."""
