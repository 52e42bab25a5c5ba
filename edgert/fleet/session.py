"""The session with the rest of the fleet, as three small machines without a clock or a socket.

`Link` says when to connect again. `Outbox` says which stored events to hand to the link and when to forget them; a
device has one for each stream of its store, and `step_streams` lets the more important ones go first. `Collector` is
the other end of `Outbox`: it says which event to deliver and what to acknowledge.

A broker's own acknowledgement proves only that the broker had the message for a moment: it drops acknowledged messages
when a subscriber's queue overflows and when it is killed. So an event counts as delivered only when a collector says
so. Each event travels with three facts: the `stream` it belongs to (each kind of events has its own, and a store that
was lost starts new ones, whose numbers begin again), its number `seq`, and `first`, the lowest number the sender can
still send. A collector that is waiting for something below `first` will never get it, and skips to it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from edgert.errors import MessageError

SESSION_TAKEN_OVER = 0x8E
UNSUPPORTED = 0x84
REFUSED_CODES = frozenset({UNSUPPORTED, 0x85, 0x86, 0x87, 0x8A, 0x8C})
"""Unsupported protocol, client id not valid, bad password, not authorised, banned, bad method (MQTT 5, 2.4)."""


UNANSWERED_MAX = 3
"""Another device of the same name takes turns without end: it is named a little later."""


class Phase(enum.Enum):
    """Where the reconnecting stands."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    UP = "up"


class LinkRules(msgspec.Struct, frozen=True, kw_only=True):
    """How patient to be with the broker.

    Attributes:
        base_s: greatest delay before the second retry; the first one is immediate.
        cap_s: greatest delay of all, and the hold after a refusal.
        stable_s: an unbroken link this long forgives former failures.
        flapping: failures after which the loss of a young link is called a fault.
    """

    base_s: float = 1.0
    cap_s: float = 60.0
    stable_s: float = 60.0
    flapping: int = 3


LINK_RULES = LinkRules()


class Link(msgspec.Struct, frozen=True):
    """The reconnecting machine.

    Attributes:
        phase: where it stands.
        failures: links lost or refused since one was last stable.
        at_s: WAITING: when to connect. CONNECTING, UP: since when.
        unanswered: attempts given up before an answer came. A broker that was only slow still has them, and lets each
            take over the session of a later one: that is no other device.
    """

    phase: Phase = Phase.WAITING
    failures: int = 0
    at_s: float = 0.0
    unanswered: int = 0


class Tick(msgspec.Struct, frozen=True):
    """Nothing happened but time."""


class Opened(msgspec.Struct, frozen=True):
    """The broker accepted us."""


class Lost(msgspec.Struct, frozen=True):
    """The broker refused us, left, or cannot be reached.

    Attributes:
        reason_code: MQTT 5 reason code when the broker gave one, or None.
    """

    reason_code: int | None = None


class Connect(msgspec.Struct, frozen=True):
    """Effect: open a connection now."""


class Fault(msgspec.Struct, frozen=True):
    """Effect: count this named fault and tell somebody."""

    name: str


def step_link(
    link: Link, event: Tick | Opened | Lost, now_s: float, u: float, rules: LinkRules = LINK_RULES
) -> tuple[Link, list[Connect | Fault]]:
    """Advance the reconnecting machine by one event.

    An event that cannot happen in a phase is a late word of a connection already given up, and changes nothing.

    Args:
        link: the state before.
        event: what happened.
        now_s: monotonic seconds.
        u: a fresh uniform number in [0, 1); used only when a delay is drawn.
        rules: base, cap and stability.

    Returns:
        The state after, and what to do. Faults are `duplicate-identity`, `refused`, and `flapping`: accepted and lost
        again and again, by a bad radio, or by a duplicate identity at a broker that does not say so (mosquitto 2.0.11).

    Raises:
        nothing.

    Source:
        "Full jitter" of M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015. Holding off after a
        take-over is ours: two devices with one identity would otherwise throw each other out several times a second.
    """
    match link.phase, event:
        case Phase.WAITING, Tick() if now_s >= link.at_s:
            return Link(Phase.CONNECTING, link.failures, now_s, link.unanswered), [Connect()]
        case Phase.CONNECTING, Opened():
            return Link(Phase.UP, link.failures, now_s, link.unanswered), []
        case ((Phase.CONNECTING | Phase.UP), Lost(reason_code=code)):
            stable = link.phase is Phase.UP and now_s - link.at_s >= rules.stable_s
            failures, unanswered = (0, 0) if stable else (link.failures, link.unanswered)
            by_itself = code == SESSION_TAKEN_OVER and unanswered > 0
            if link.phase is Phase.CONNECTING and code is None:
                unanswered = min(unanswered + 1, UNANSWERED_MAX)
            elif by_itself:
                unanswered -= 1
            if (code == SESSION_TAKEN_OVER and not by_itself) or code in REFUSED_CODES:
                # A quarter of spread: after a password change a whole fleet is refused in the same second.
                delay_s = rules.cap_s * (1.0 + u / 4.0)
                faults = [Fault("duplicate-identity" if code == SESSION_TAKEN_OVER else "refused")]
            else:
                # The exponent is bounded so that a year offline cannot overflow a float.
                delay_s = u * min(rules.cap_s, rules.base_s * 2.0 ** min(failures - 1, 32)) if failures else 0.0
                young = link.phase is Phase.UP and not stable
                faults = [Fault("flapping")] if young and failures >= rules.flapping else []
            return Link(Phase.WAITING, failures + 1, now_s + delay_s, unanswered), [*faults]
    return link, []


MUTE_MAX = 3
"""Connections on end that the broker closed without a word, after which the other MQTT is tried."""


class Dialect(msgspec.Struct, frozen=True):
    """Which MQTT is spoken: 5, or 3.1.1 with a broker that understands nothing else.

    Attributes:
        v5: the next connection begins with 5.
        mute: connections on end that were closed without a word.
        told: the broker itself said that it does not understand 5.
    """

    v5: bool = True
    mute: int = 0
    told: bool = False


def step_dialect(dialect: Dialect, phase: Phase, reason_code: int | None, *, mute: bool) -> Dialect:
    """Which MQTT to speak after a connection was lost.

    Args:
        dialect: that was spoken.
        phase: in which it was lost.
        reason_code: the broker's, or None.
        mute: it closed the connection before it had answered, without a word.

    Returns:
        What to speak next.

    Raises:
        nothing.

    Source:
        MQTT 5.0 section 3.1.2.2 (a server answers 0x84 to a version it does not know) and MQTT 3.1.1 section 3.1.2.2
        (return code 1, which clients read as 0x84). Brokers that just hang up exist, and so do relays in front of
        brokers that are down: only the first are met in 3.1.1, and what was only guessed is tried anew after each link.
    """
    if reason_code == UNSUPPORTED:
        return Dialect(v5=not dialect.v5, told=dialect.v5)
    if phase is Phase.UP:
        return Dialect(v5=not dialect.told, told=dialect.told)
    if not mute:
        return msgspec.structs.replace(dialect, mute=0)
    if dialect.mute + 1 < MUTE_MAX:
        return msgspec.structs.replace(dialect, mute=dialect.mute + 1)
    return Dialect(v5=not dialect.v5)


class OutboxRules(msgspec.Struct, frozen=True, kw_only=True):
    """How eagerly events are sent.

    Attributes:
        window: most events on their way at once.
        timeout_s: patience for the first acknowledgement; doubles with each silence.
        timeout_cap_s: greatest patience: with no collector anywhere, the oldest event is sent this often, and each new
            one once.
        hold_s: pause after the link took no more.
    """

    window: int = 32
    timeout_s: float = 5.0
    timeout_cap_s: float = 300.0
    hold_s: float = 0.5


OUTBOX_RULES = OutboxRules()


class OutboxPhase(enum.Enum):
    """What the outbox waits for."""

    OFFLINE = "offline"
    IDLE = "idle"
    HELD = "held"
    AWAITING = "awaiting"


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of stored events. All numbers are sequence numbers of one stream.

    Attributes:
        stream: identity of the store.
        floor: everything up to here is acknowledged, or gone from the store.
        last: newest stored.
        sent: newest on its way; the window is `sent - floor`.
        reached: newest ever sent; an acknowledgement beyond it is absurd.
        up: the link is up.
        credit: events allowed on their way now, 1..window. Falls to 1 on silence, doubles with each acknowledgement.
        silences: time-outs since the last acknowledgement.
        due_s: when to give up waiting for an acknowledgement, or None.
        hold_s: until when the link must not be asked again, or None.
    """

    stream: str
    floor: int = 0
    last: int = 0
    sent: int = 0
    reached: int = 0
    up: bool = False
    credit: int = 1
    silences: int = 0
    due_s: float | None = None
    hold_s: float | None = None

    @property
    def phase(self) -> OutboxPhase:
        """What it waits for."""
        if not self.up:
            return OutboxPhase.OFFLINE
        if self.hold_s is not None:
            return OutboxPhase.HELD
        return OutboxPhase.AWAITING if self.sent > self.floor else OutboxPhase.IDLE

    @property
    def wake_s(self) -> float | None:
        """When it wants a `Tick` although nothing else happens, or None."""
        times = [t for t in (self.due_s, self.hold_s) if t is not None]
        return min(times, default=None)

    @property
    def gets_through(self) -> bool:
        """It has something to send, and nothing says that nobody takes it."""
        return self.up and self.last > self.floor and self.silences == 0


class Up(msgspec.Struct, frozen=True):
    """The link came up."""


class Down(msgspec.Struct, frozen=True):
    """The link went down; what was on its way may be lost."""


class Stored(msgspec.Struct, frozen=True):
    """The store changed.

    Attributes:
        first: lowest number it still holds; `last + 1` when it is empty.
        last: newest number it ever gave.
    """

    first: int
    last: int


class Refused(msgspec.Struct, frozen=True):
    """The link did not take the event `seq`, nor any after it."""

    seq: int


class Acked(msgspec.Struct, frozen=True):
    """A collector says it holds everything of `stream` up to and including `up_to`."""

    stream: str
    up_to: int


class Send(msgspec.Struct, frozen=True):
    """Effect: hand the stored events `after < seq <= up_to` to the link, in order, each saying `first`."""

    after: int
    up_to: int
    first: int


class Forget(msgspec.Struct, frozen=True):
    """Effect: the store may drop everything up to and including `up_to`."""

    up_to: int


def open_outbox(stream: str, first: int, last: int, rules: OutboxRules = OUTBOX_RULES) -> Outbox:
    """The outbox of a store as it was found at start.

    Args:
        stream: identity of the store.
        first: lowest number it holds; `last + 1` when it is empty.
        last: newest number it ever gave.
        rules: window and patience.

    Returns:
        An offline outbox.

    Raises:
        nothing.

    Source:
        ours: `reached` starts at `last`, since an earlier run of this process may have sent all of it and its
        acknowledgement may still be under way.
    """
    return Outbox(stream=stream, floor=first - 1, last=last, sent=first - 1, reached=last, credit=rules.window)


def step_outbox(
    box: Outbox,
    event: Up | Down | Stored | Refused | Acked | Tick,
    now_s: float,
    rules: OutboxRules = OUTBOX_RULES,
    *,
    behind: bool = False,
) -> tuple[Outbox, list[Send | Forget | Fault]]:
    """Advance the sender of events by one event.

    Args:
        box: the state before.
        event: what happened.
        now_s: monotonic seconds.
        rules: window and patience.
        behind: something more important is on its way: nothing is sent now.

    Returns:
        The state after, and what to do, in that order. Faults are `absurd-ack` (beyond what was ever sent) and
        `foreign-ack` (another stream); both are otherwise ignored.

    Raises:
        nothing.

    Source:
        Go-back-N with cumulative acknowledgement (J. Postel, RFC 793, 3.7) and doubling time-out (RFC 6298, 5.5); the
        credit of one after a silence is TCP's loss window (RFC 5681, 3.1), and one repeated acknowledgement its fast
        retransmit (3.2), since a silent collector repeats none.
    """
    effects: list[Send | Forget | Fault] = []
    replace = msgspec.structs.replace
    match event:
        case Up():
            box = replace(box, up=True, sent=box.floor, silences=0, due_s=None, hold_s=None)
        case Down():
            box = replace(box, up=False, sent=box.floor, due_s=None, hold_s=None)
        case Stored(first=first, last=last):
            if box.up and box.silences and box.hold_s is None and not behind and last > box.last > box.floor:
                # Nobody acknowledges anything, and somebody may only be looking on: what is new is said once.
                effects.append(Send(max(box.last, last - rules.window), last, first))
                box = replace(box, reached=max(box.reached, last))
            floor = max(box.floor, first - 1)
            box = replace(box, floor=floor, sent=max(box.sent, floor), last=max(box.last, last))
        case Refused(seq=seq) if box.up:
            box = replace(box, sent=max(box.floor, min(box.sent, seq - 1)), hold_s=now_s + rules.hold_s)
        case Acked(stream=stream, up_to=up_to):
            if stream != box.stream:
                return box, [Fault("foreign-ack")]
            if up_to > box.reached:
                return box, [Fault("absurd-ack")]
            if up_to > box.floor:
                credit = min(rules.window, box.credit * 2)
                box = replace(box, floor=up_to, sent=max(box.sent, up_to), credit=credit, silences=0, due_s=None)
                effects.append(Forget(up_to))
            elif box.silences:
                # A collector is there, and what it holds is behind: it is sent the next at once.
                box = replace(box, sent=box.floor, silences=0, due_s=None)
        case Tick():
            if box.hold_s is not None and now_s >= box.hold_s:
                box = replace(box, hold_s=None)
            if box.due_s is not None and now_s >= box.due_s:
                box = replace(box, sent=box.floor, credit=1, silences=box.silences + 1, due_s=None)
    if box.up and box.hold_s is None and not behind:
        end = min(box.last, box.floor + box.credit)
        if end > box.sent:
            effects.append(Send(box.sent, end, box.floor + 1))
            box = replace(box, sent=end, reached=max(box.reached, end))
    if box.sent == box.floor:
        box = replace(box, due_s=None)
    elif box.due_s is None:
        patience_s = min(rules.timeout_cap_s, rules.timeout_s * 2.0 ** min(box.silences, 32))
        box = replace(box, due_s=now_s + patience_s)
    return box, effects


def step_streams(
    boxes: Mapping[str, Outbox],
    event: Up | Down | Stored | Refused | Acked | Tick,
    now_s: float,
    rules: OutboxRules = OUTBOX_RULES,
    *,
    of: str | None = None,
) -> tuple[dict[str, Outbox], list[tuple[str, Send | Forget | Fault]]]:
    """Advance the senders of all streams of a store by one event.

    Args:
        boxes: name -> sender, the most important first. None sends while one before it gets through.
        event: what happened. An `Acked` finds its stream by itself.
        now_s: monotonic seconds.
        rules: window and patience.
        of: name of the stream that the event is about; None: of none of them alone.

    Returns:
        The states after, and what to do, in that order, each with the name of its stream.

    Raises:
        nothing.

    Source:
        ours: a stream that nobody acknowledges must not keep the others waiting, so only one that gets through does.
    """
    if isinstance(event, Acked):
        # The first one names the fault where it is of none of them.
        of = next((name for name, box in boxes.items() if box.stream == event.stream), next(iter(boxes), None))
    after: dict[str, Outbox] = {}
    effects: list[tuple[str, Send | Forget | Fault]] = []
    behind = False
    for name, box in boxes.items():
        told = event if of in (None, name) else Tick()
        after[name], wanted = step_outbox(box, told, now_s, rules, behind=behind)
        effects += [(name, effect) for effect in wanted]
        behind = behind or after[name].gets_through
    return after, effects


class Collector(msgspec.Struct, frozen=True):
    """The receiver of one device's events, of all its streams.

    Attributes:
        stream: of the newest event, or None before the first.
        wanted: the number to deliver next.
        skipped: events that the sender no longer had, of all streams.
        past: (stream, its number to deliver next) of those that were received before, oldest first. Each of them goes
            on where it was: nothing is delivered twice.
    """

    stream: str | None = None
    wanted: int = 1
    skipped: int = 0
    past: tuple[tuple[str, int], ...] = ()

    @property
    def streams(self) -> dict[str, int]:
        """Stream -> its number to deliver next, of all that are remembered."""
        return dict(self.past if self.stream is None else (*self.past, (self.stream, self.wanted)))


PAST_STREAMS = 12
"""A device has three streams, and one more time as many where another has its name or its store was lost."""
MAX_SEQ = 2**63 - 1


def collect(collector: Collector, stream: str, first: int, seq: int) -> tuple[Collector, bool, int]:
    """Judge one event that arrived, perhaps late, twice or out of order.

    Events that come too early are not kept: the sender repeats them, and a receiver of thousands stays small. One
    stream must be received by one collector (or by several that share this state).

    Args:
        collector: the state before.
        stream: identity of the sender's store.
        first: lowest number the sender could still send at that time.
        seq: number of this event.

    Returns:
        The state after; whether to deliver this event; and the number to acknowledge (everything up to it is held; 0
        for nothing yet). Acknowledge only after what was delivered is safe.

    Raises:
        MessageError: the numbers cannot be true.

    Source:
        ours: cumulative acknowledgement with a sender-side horizon, so that a full store may drop its oldest.
    """
    if not 1 <= first <= seq <= MAX_SEQ:
        raise MessageError(f"event {seq} of stream {stream!r} claims first={first}: expected 1 <= first <= seq < 2**63")
    if stream != collector.stream:
        wanted = dict(collector.past).get(stream, first)
        past = tuple(each for each in collector.past if each[0] != stream)
        if collector.stream is not None:
            past = (*past, (collector.stream, collector.wanted))[-PAST_STREAMS:]
        collector = Collector(stream, wanted, collector.skipped, past)
    if first > collector.wanted:
        lost = first - collector.wanted
        collector = msgspec.structs.replace(collector, wanted=first, skipped=collector.skipped + lost)
    deliver = seq == collector.wanted
    if deliver:
        collector = msgspec.structs.replace(collector, wanted=seq + 1)
    return collector, deliver, collector.wanted - 1
