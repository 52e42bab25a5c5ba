"""Fetching a bundle in chunks, over a link that may end at any byte, within a budget of bytes.

Pure. What is there is a bitmap, and after a restart it is found again by hashing the file against the hashes of the
offer, so there is no second file that could contradict the first. Chunks are retained at the broker under their place
in the file: asking for one is subscribing to it. At QoS 0, since what a broker keeps for a session that ended would
come beside what is asked for anew; and anew only once everything that came before the link broke was looked at, so that
nothing comes twice.

Every byte that is known to have crossed the link is counted, useful or not. What came of a chunk before the link broke
inside it is not known here, and lost: a cut between two chunks costs nothing, one inside costs at most the chunks under
way. Where that is too much, HTTP with ranges keeps what came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from edgert import wire
from edgert.offers import Arrived, Ask, Keep, Kept, Leave

HASH_BYTES = 16
"""Of each chunk's SHA-256, in an offer: 128 bits, and the whole file's hash stands behind them."""
NAME_DIGITS = 16
"""Of the file's SHA-256, in the name of a chunk: it tells files apart, and the hashes say which is the right one."""
CHUNK_BYTES = 32 << 10
"""With some 400 bytes for asking and wrapping, 1.2 % more than the file."""
BUDGET_FRAC = 1.02
"""Bytes over the link, as a share of the file, unless the offer says how many."""
RESERVE_BYTES = 8 << 20
"""What a disk must have left when the file is whole: events and checkpoints go on meanwhile."""
PACKET_BYTES = 16
"""Headers of one MQTT packet with a topic, without the topic, over-estimated."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How eagerly chunks are fetched.

    Attributes:
        window: chunks under way at once while the link holds; one after it broke.
        steady: chunks that must come on end before the link is trusted again.
        patience_s: for the next chunk; doubles with each silence. A slow link needs its time for one.
        patience_cap_s: greatest patience.
        bad_max: times that the same chunk may come with the wrong content.
    """

    window: int = 2
    steady: int = 8
    patience_s: float = 60.0
    patience_cap_s: float = 3600.0
    bad_max: int = 3


RULES = Rules()
Why = Literal["", "over-budget", "bad-chunk", "not-written"]


class Fetch(msgspec.Struct, frozen=True, kw_only=True):
    """A file on its way.

    Attributes:
        offer: what it should become.
        have: bitmap of the chunks that are there; bit k is chunk k.
        asked: chunk -> when to ask again.
        keeping: chunks that came and are being written.
        up: the link is.
        spent_bytes, budget_bytes: over the link so far, and at most.
        silences: times that patience ended on end.
        run: chunks that came on end since the link last broke.
        bad: chunk -> how often its content was wrong.
        stopped: why nothing more is asked for; empty while all is well.
    """

    offer: wire.PolicyOffer
    have: int = 0
    asked: dict[int, float] = {}
    keeping: frozenset[int] = frozenset()
    up: bool = False
    spent_bytes: int = 0
    budget_bytes: int
    silences: int = 0
    run: int = 0
    bad: dict[int, int] = {}
    stopped: Why = ""

    @property
    def chunks(self) -> int:
        """How many there are."""
        return count(self.offer)

    @property
    def whole(self) -> bool:
        """Everything is there."""
        return self.have == (1 << self.chunks) - 1

    @property
    def left_bytes(self) -> int:
        """Of the file, still to come."""
        return sum(size(self.offer, k) for k in range(self.chunks) if not self.have >> k & 1)

    @property
    def wake_s(self) -> float | None:
        """When it wants a `Tick`, or None."""
        return min(self.asked.values(), default=None)


class Up(msgspec.Struct, frozen=True):
    """The link came up."""


class Down(msgspec.Struct, frozen=True):
    """The link went down."""


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time."""


class Whole(msgspec.Struct, frozen=True):
    """Effect: every chunk is there; see whether the file is what it should be."""


Event = Up | Down | Arrived | Kept | Tick
Effect = Ask | Leave | Keep | Whole


def count(offer: wire.PolicyOffer) -> int:
    """How many chunks a file has.

    Args:
        offer: of the file.

    Returns:
        At least one.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return -(-offer.size_bytes // offer.chunk_bytes)


def size(offer: wire.PolicyOffer, index: int) -> int:
    """How many bytes a chunk has.

    Args:
        offer: of the file.
        index: of the chunk, below `count`.

    Returns:
        `chunk_bytes`, fewer for the last.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return min(offer.chunk_bytes, offer.size_bytes - index * offer.chunk_bytes)


def is_chunk(offer: wire.PolicyOffer, index: int, data: bytes) -> bool:
    """Is this the content of that chunk?

    Args:
        offer: of the file.
        index: of the chunk.
        data: what came, or what is on the disk.

    Returns:
        True when size and hash are right.

    Raises:
        Nothing.
    Source:
        FIPS 180-4 (SHA-256), shortened to 128 bits.
    """
    if not 0 <= index < count(offer) or len(data) != size(offer, index):
        return False
    digest = hashlib.sha256(data).digest()[:HASH_BYTES]
    return digest == offer.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def hashes(data: bytes, chunk_bytes: int) -> bytes:
    """What an offer says of the chunks of a file.

    Args:
        data: the file.
        chunk_bytes: of each chunk but the last.

    Returns:
        The shortened hashes, one after the other.

    Raises:
        Nothing.
    Source:
        FIPS 180-4, as in `is_chunk`.
    """
    starts = range(0, len(data), chunk_bytes)
    return b"".join(hashlib.sha256(data[k : k + chunk_bytes]).digest()[:HASH_BYTES] for k in starts)


def topic(fleet: str, sha256: str, index: int) -> str:
    """Where a chunk lies at the broker.

    Args:
        fleet: whose.
        sha256: of the file.
        index: of the chunk.

    Returns:
        A topic of the whole fleet: a hundred devices fetch what was published once.

    Raises:
        Nothing.
    Source:
        ours: content-addressed, so that publishing it twice changes nothing.
    """
    return str(wire.Topic(fleet, "-", "policy", "chunk", f"{sha256[:NAME_DIGITS]}.{index}"))


def index_of(topic_id: str, offer: wire.PolicyOffer) -> int | None:
    """Which chunk lies there.

    Args:
        topic_id: last segment of a received topic.
        offer: of the file that is being fetched.

    Returns:
        Its index; None where it is of another file.

    Raises:
        Nothing.
    Source:
        ours, see `topic`.
    """
    name, _, number = topic_id.rpartition(".")
    if name != offer.sha256[:NAME_DIGITS] or not number.isdecimal() or len(number) > 6 or int(number) >= count(offer):
        return None
    return int(number)


def ask_bytes(offer: wire.PolicyOffer, fleet: str = "x" * 16) -> int:
    """What asking for one chunk costs on the link: subscribing and unsubscribing, each with its answer.

    Args:
        offer: of the file.
        fleet: whose.

    Returns:
        Bytes, over-estimated.

    Raises:
        Nothing.
    Source:
        MQTT 5.0 sections 3.8 to 3.11.
    """
    return 2 * (len(topic(fleet, offer.sha256, count(offer))) + PACKET_BYTES) + 2 * PACKET_BYTES


def chunk_bytes(offer: wire.PolicyOffer, n_bytes: int, fleet: str = "x" * 16) -> int:
    """What a chunk costs on the link.

    Args:
        offer: of the file.
        n_bytes: of its content.
        fleet: whose.

    Returns:
        Bytes, over-estimated: topic, headers and the map round the content.

    Raises:
        Nothing.
    Source:
        MQTT 5.0 section 3.3; RFC 8949.
    """
    wrapping = len(wire.encode(wire.PolicyChunk(data=b""))) + 4 + len(wire.CONTENT_TYPE) + 3
    return n_bytes + len(topic(fleet, offer.sha256, count(offer))) + PACKET_BYTES + wrapping


def begin(offer: wire.PolicyOffer, there: Iterable[int], *, spent_bytes: int = 0) -> Fetch:
    """Take up a file.

    Args:
        offer: what it should become.
        there: chunks that are on the disk already, as their hashes say.
        spent_bytes: over the link before a restart.

    Returns:
        The state; the link is down.

    Raises:
        Nothing.
    Source:
        ours.
    """
    budget = offer.budget_bytes or int(BUDGET_FRAC * offer.size_bytes)
    return Fetch(offer=offer, have=sum(1 << k for k in set(there)), budget_bytes=budget, spent_bytes=spent_bytes)


def room(fetch: Fetch, free_bytes: int) -> str:
    """Does the disk hold what is still to come?

    Args:
        fetch: the state.
        free_bytes: of the disk.

    Returns:
        Why not, in words; empty where it does.

    Raises:
        Nothing.
    Source:
        ours: seen to before the first byte, since a full disk costs events and checkpoints too.
    """
    needed = fetch.left_bytes + RESERVE_BYTES
    return "" if free_bytes >= needed else f"{free_bytes} bytes are free, and {needed} are needed"


def step(fetch: Fetch, event: Event, now_s: float, rules: Rules = RULES) -> tuple[Fetch, list[Effect]]:
    """Advance the fetching by one event.

    Args:
        fetch: the state before.
        event: what happened.
        now_s: monotonic seconds.
        rules: how eager to be.

    Returns:
        The state after, and what to do, in order. With every chunk there, `Whole` is said once.

    Raises:
        Nothing.
    Source:
        ours: a window as in `fleet.session`, narrowed to one chunk where the link breaks, because each one under way is
        what a break can cost.
    """
    replace = msgspec.structs.replace
    effects: list[Effect] = []
    match event:
        case Up():
            fetch = replace(fetch, up=True, asked={})
        case Down():
            fetch = replace(fetch, up=False, run=0)
        case Arrived(index, data):
            fetch = _arrived(fetch, index, data, effects, rules)
            fetch = replace(fetch, asked=_later(fetch, now_s, rules))
        case Kept(index, ok) if index in fetch.keeping:
            have = fetch.have | 1 << index if ok else fetch.have
            fetch = replace(fetch, have=have, keeping=fetch.keeping - {index})
            if not ok:
                fetch = replace(fetch, stopped="not-written")
            elif fetch.whole:
                effects.append(Whole())
        case Tick() if fetch.up:
            fetch = _out_of_patience(fetch, now_s, effects, rules)
        case _:
            pass
    return _ask(fetch, now_s, effects, rules), effects


def _patience(fetch: Fetch, rules: Rules) -> float:
    return min(rules.patience_cap_s, rules.patience_s * 2.0 ** min(fetch.silences, 32))


def _later(fetch: Fetch, now_s: float, rules: Rules) -> dict[int, float]:
    return dict.fromkeys(fetch.asked, now_s + _patience(fetch, rules))


def _arrived(fetch: Fetch, index: int, data: bytes, effects: list[Effect], rules: Rules) -> Fetch:
    replace = msgspec.structs.replace
    fetch = replace(fetch, spent_bytes=fetch.spent_bytes + chunk_bytes(fetch.offer, len(data)))
    if not 0 <= index < fetch.chunks:
        return fetch
    known = fetch.have >> index & 1 or index in fetch.keeping
    asked = {k: at for k, at in fetch.asked.items() if k != index}
    if index in fetch.asked:
        effects.append(Leave(index, fetch.offer.sha256))
    if known:
        return replace(fetch, asked=asked)
    if not is_chunk(fetch.offer, index, data):
        times = fetch.bad.get(index, 0) + 1
        stopped: Why = "bad-chunk" if times >= rules.bad_max else fetch.stopped
        return replace(fetch, asked=asked, bad={**fetch.bad, index: times}, run=0, stopped=stopped)
    effects.append(Keep(index, data, fetch.offer.sha256))
    return replace(fetch, asked=asked, keeping=fetch.keeping | {index}, silences=0, run=fetch.run + 1)


def _out_of_patience(fetch: Fetch, now_s: float, effects: list[Effect], rules: Rules) -> Fetch:
    """The first of those that are late is asked for again; the others are given up until it came."""
    late = sorted(k for k, at in fetch.asked.items() if now_s >= at)
    if not late:
        return fetch
    effects += [Leave(k, fetch.offer.sha256) for k in sorted(fetch.asked)]
    return msgspec.structs.replace(fetch, asked={}, silences=fetch.silences + 1, run=0)


def _ask(fetch: Fetch, now_s: float, effects: list[Effect], rules: Rules) -> Fetch:
    """Keep the window full, as far as the budget goes."""
    replace = msgspec.structs.replace
    if not fetch.up or fetch.stopped:
        return fetch
    window = rules.window if fetch.run >= rules.steady else 1
    for index in range(fetch.chunks):
        if len(fetch.asked) >= window:
            break
        if fetch.have >> index & 1 or index in fetch.keeping or index in fetch.asked:
            continue
        under_way = sum(chunk_bytes(fetch.offer, size(fetch.offer, k)) for k in fetch.asked)
        asking = ask_bytes(fetch.offer)
        wanted = asking + chunk_bytes(fetch.offer, size(fetch.offer, index))
        if fetch.spent_bytes + under_way + wanted > fetch.budget_bytes:
            return fetch if fetch.asked else replace(fetch, stopped="over-budget")
        effects.append(Ask(index, fetch.offer.sha256))
        asked = {**fetch.asked, index: now_s + _patience(fetch, rules)}
        fetch = replace(fetch, asked=asked, spent_bytes=fetch.spent_bytes + asking)
    return fetch
