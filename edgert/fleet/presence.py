"""Who is there: a device that says so and makes sure that it is heard, and what others may believe of it.

A broker's own words are not enough. It answers pings while its subscriptions are gone, it publishes the last will of an
old connection after a newer one was made, and some tell neither of two devices with one name about the other. So a
device listens to its own births: each has a number, and one that does not come back, or that is not its own, says what
is wrong. Whoever looks on does so by session: a will ends the session that it names and no other.
"""

from __future__ import annotations

import msgspec

from edgert import wire

ECHO_S = 30.0
"""Patience with a birth that does not come back: it is said again, and then another connection is made."""
PROBE_S = 900.0
"""Between two births on a quiet link: 0.4 kB each."""
REBIRTH_S = 10.0
"""Between two births that somebody else caused."""
STRANGERS_MAX = 8
FORMER_TIMES = 3
CLONED_S = 600.0
"""Between two events about another device of the same name: whoever makes sessions up must not fill the store."""
SILENT_S = 15.0
SILENT_PERIODS = 4.0
SESSIONS_MAX = 8


class Herald(msgspec.Struct, frozen=True, kw_only=True):
    """A device that says that it is there.

    Attributes:
        birth: what is said, but for its number.
        seq: of the newest birth.
        up: the link is.
        awaited: number of the birth that is to come back; None while none is.
        due_s: until when; else when the next one is to be said.
        said_s: when the newest was said.
        misses: births on end that did not come back.
        heard: one did, once: this broker lets the device hear itself.
        owed: one is to be said as soon as the last is old enough.
        former: sessions that were heard of before the device heard itself: its own, of earlier days.
        strangers: other sessions -> how often they were heard since then, newest last.
        cloned_s: when people were last told so.
    """

    birth: wire.Status = wire.Status(online=True, session="")
    seq: int = 0
    up: bool = False
    awaited: int | None = None
    due_s: float | None = None
    said_s: float | None = None
    misses: int = 0
    heard: bool = False
    owed: bool = False
    former: tuple[str, ...] = ()
    strangers: dict[str, int] = {}
    cloned_s: float | None = None


class Up(msgspec.Struct, frozen=True):
    """The link came up."""


class Down(msgspec.Struct, frozen=True):
    """The link went down."""


class Heard(msgspec.Struct, frozen=True):
    """A status under the device's own name.

    Attributes:
        status: as it came.
        retained: the broker kept it, perhaps for long.
    """

    status: wire.Status
    retained: bool


class Wanted(msgspec.Struct, frozen=True):
    """Somebody lost sight of the device and wants it to say everything again."""


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time."""


class Say(msgspec.Struct, frozen=True):
    """Effect: publish this, retained."""

    status: wire.Status


class SayAll(msgspec.Struct, frozen=True):
    """Effect: publish again whatever the broker keeps of this device."""


class Reconnect(msgspec.Struct, frozen=True):
    """Effect: give the connection up and make another."""

    why: str


class Cloned(msgspec.Struct, frozen=True):
    """Effect: tell people that another device has this name; `session` is its."""

    session: str


Event = Up | Down | Heard | Wanted | Tick
Effect = Say | SayAll | Reconnect | Cloned


def step(herald: Herald, event: Event, now_s: float) -> tuple[Herald, list[Effect]]:
    """Advance by one event.

    Args:
        herald: the state before.
        event: what happened.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do. A second silence asks for another connection only where a birth came back
        before: a broker may forbid a device to hear itself.

    Raises:
        nothing.
    Source:
        Sparkplug 3.0 chapter 5 pairs births with deaths by a number and can ask for a birth; the echo is ours, as a
        connection that answers pings may still carry nothing.
    """
    replace = msgspec.structs.replace
    effects: list[Effect] = []
    match event:
        case Up():
            herald = _said(replace(herald, up=True, misses=0), now_s, effects)
        case Down():
            herald = replace(herald, up=False, awaited=None, due_s=None, owed=False)
        case Heard(status, retained):
            herald = _heard(herald, status, retained, now_s, effects)
        case Wanted() if herald.up and _old_enough(herald, now_s):
            herald = _said(herald, now_s, effects)
            effects.append(SayAll())
        case Tick() if herald.up and herald.owed and _old_enough(herald, now_s):
            herald = _said(herald, now_s, effects)
        case Tick() if herald.up and herald.due_s is not None and now_s >= herald.due_s:
            if herald.awaited is None:
                herald = _said(herald, now_s, effects)
            elif not herald.heard:  # it may never be: no reason to go on asking every half minute
                herald = replace(herald, awaited=None, due_s=now_s + PROBE_S)
            elif herald.misses == 0:
                herald = _said(replace(herald, misses=1), now_s, effects)
            else:
                herald = replace(herald, misses=0, awaited=None, due_s=None)
                effects.append(Reconnect(f"deaf: nothing comes back for {2 * ECHO_S:g} s"))
        case _:
            pass
    return herald, effects


def _heard(herald: Herald, status: wire.Status, retained: bool, now_s: float, effects: list[Effect]) -> Herald:
    replace = msgspec.structs.replace
    if not herald.up:
        return herald
    if status.online and status.session == herald.birth.session:
        herald = replace(herald, heard=True)
        if herald.awaited is not None and status.seq >= herald.awaited:
            herald = replace(herald, awaited=None, misses=0, due_s=now_s + PROBE_S)
        return herald
    if not status.online or retained:
        # A late will, or what one of the same name has left there: others must not go on believing it.
        herald = replace(herald, owed=True)
    if not herald.heard:
        return replace(herald, former=(*herald.former, status.session)[-STRANGERS_MAX:])
    times = herald.strangers.get(status.session, 0) + 1
    others = {session: count for session, count in herald.strangers.items() if session != status.session}
    herald = replace(herald, strangers=dict([*others.items(), (status.session, times)][-STRANGERS_MAX:]))
    # An earlier session of its own may have one word left, which is late. Two clients with one id hear of each other
    # only by what the other leaves behind: a broker lets in one of them at a time.
    enough = FORMER_TIMES if status.session in herald.former else 1
    if times < enough or (herald.cloned_s is not None and now_s - herald.cloned_s < CLONED_S):
        return herald
    effects.append(Cloned(status.session))
    return replace(herald, cloned_s=now_s)


def _old_enough(herald: Herald, now_s: float) -> bool:
    return herald.said_s is None or now_s - herald.said_s >= REBIRTH_S


def _said(herald: Herald, now_s: float, effects: list[Effect]) -> Herald:
    seq = herald.seq + 1
    effects.append(Say(msgspec.structs.replace(herald.birth, seq=seq)))
    return msgspec.structs.replace(herald, seq=seq, awaited=seq, due_s=now_s + ECHO_S, said_s=now_s, owed=False)


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What an onlooker knows of one device.

    Attributes:
        session: the newest.
        past: those before it, oldest first.
        online: as its births and wills say; None before the first.
        version, task: of its birth.
        births: number of its newest birth.
        heard_s: monotonic, of the newest telemetry; None before the first.
        period_s: between two of these, an exponential mean; None before the second.
        seq: number of the newest.
        missed: numbers that were skipped.
        clones: returns to a session that had been over, none for `CLONED_S` on end: two devices have this name.
        since_s: monotonic, of the first telemetry of the newest session; None before.
    """

    session: str = ""
    past: tuple[str, ...] = ()
    online: bool | None = None
    version: str = ""
    task: str = ""
    births: int = 0
    heard_s: float | None = None
    period_s: float | None = None
    seq: int = 0
    missed: int = 0
    clones: int = 0
    since_s: float | None = None


def saw_status(sighting: Sighting, status: wire.Status) -> Sighting:
    """A birth or a will.

    Args:
        sighting: before.
        status: as it came, perhaps late.

    Returns:
        The state after; the will of another session than the newest changes nothing.

    Raises:
        nothing.
    Source:
        Sparkplug 3.0, 5.13: a death counts for the birth that it belongs to.
    """
    replace = msgspec.structs.replace
    if not status.online:
        ours = sighting.session in ("", status.session)
        return replace(sighting, session=status.session, online=False) if ours else sighting
    sighting = _session(sighting, status.session)
    births = max(sighting.births, status.seq)
    return replace(sighting, online=True, version=status.version, task=status.task, births=births)


def saw_telemetry(sighting: Sighting, telemetry: wire.Telemetry, now_s: float) -> Sighting:
    """A status document.

    Args:
        sighting: before.
        telemetry: as it came.
        now_s: monotonic seconds.

    Returns:
        The state after.

    Raises:
        nothing.
    Source:
        ours: a device that is heard is there, whatever was said of it.
    """
    replace = msgspec.structs.replace
    session, seq = telemetry.status.get("session"), telemetry.seq
    if isinstance(session, str):
        sighting = _session(sighting, session)
    since_s = now_s if sighting.since_s is None else sighting.since_s
    clones = 0 if now_s - since_s >= CLONED_S else sighting.clones
    period_s = sighting.period_s
    if sighting.heard_s is not None and (seq == 0 or 0 < sighting.seq < seq):
        # By numbers: who was out of reach for a day does not speak once a day, and must not be waited for so long.
        apart_s = (now_s - sighting.heard_s) / max(1, seq - sighting.seq)
        period_s = apart_s if period_s is None else period_s + (apart_s - period_s) / 4
    missed = sighting.missed + (max(0, seq - sighting.seq - 1) if sighting.seq and seq else 0)
    return replace(
        sighting,
        online=True,
        heard_s=now_s,
        period_s=period_s,
        seq=max(seq, sighting.seq),
        missed=missed,
        since_s=since_s,
        clones=clones,
    )


def _session(sighting: Sighting, session: str) -> Sighting:
    if session == sighting.session:
        return sighting
    past = tuple(each for each in (*sighting.past, sighting.session) if each and each != session)[-SESSIONS_MAX:]
    clones = sighting.clones + (session in sighting.past)
    return msgspec.structs.replace(sighting, session=session, past=past, clones=clones, since_s=None, seq=0, births=0)


def state(sighting: Sighting, now_s: float) -> str:
    """How a device is, in one word.

    Args:
        sighting: what is known of it.
        now_s: monotonic seconds.

    Returns:
        `duplicate`: two have this name. `online`; `silent`: it should be there and nothing is heard of it any more;
        `offline`; `unknown`.

    Raises:
        nothing.
    Source:
        ours: a will tells only what a broker saw, so what is not heard counts as well.
    """
    if sighting.clones >= 2:
        return "duplicate"
    if sighting.online is None:
        return "unknown"
    if not sighting.online:
        return "offline"
    if sighting.heard_s is not None:
        patience_s = max(SILENT_S, SILENT_PERIODS * (sighting.period_s or 0.0))
        if now_s - sighting.heard_s > patience_s:
            return "silent"
    return "online"
