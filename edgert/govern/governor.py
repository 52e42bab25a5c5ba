"""The governor at work: what it is told between two looks, and what it has to say when a budget changes."""

from __future__ import annotations

import math

import msgspec

from edgert import bus
from edgert.config import Config, Goals
from edgert.govern import cost, energy, plausible
from edgert.govern.decide import decide
from edgert.govern.state import Look, Setup, State
from edgert.hardware import BoardFile
from edgert.values import UNKNOWN, ActorReport, Budget, Carried, Clock, Prices, Readings, Swap, TrainerReport

PAUSED = "paused"
TELL_S = 10.0
"""Budgets that change faster than this are told as the last of them: a limit that flutters must not fill the disk."""
NOTE_S = 60.0
"""Bytes of the day are noted so often: a restart forgets at most what was carried since."""


class Wish(msgspec.Struct, frozen=True):
    """What a command wants instead of the goals of twin and file; see `setup`.

    Attributes:
        id: of the command.
        goals: of which those count that are named.
        named: by the command.
        since_s: when it came.
        until_s: how long it holds; None until further notice.
    """

    id: str
    goals: Goals
    named: tuple[str, ...]
    since_s: float
    until_s: float | None


class Governor(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the next budget rests on.

    Attributes:
        config: the user's.
        board: what is known of the kind of board; None where there is no file about it.
        prices, priced: what the acting network can be run as, and which network that is of.
        cores: of the processor.
        state: of `decide`.
        seen: of `plausible.judge`.
        readings: of the last look, as far as they are believed.
        clock, carried_bytes, own_bytes: of the last look.
        wish: of the fleet. In memory only: a supervisor that starts anew knows none.
        noted_s: when the bytes of the day were last noted.
        told, told_s: reasons and point of the budget that was told last, and when; None before the first.
        unmet, mended_s: goals that were told to be unmet, and since when none of these is any more.
    """

    config: Config
    board: BoardFile | None = None
    prices: Prices
    priced: Swap | None = None
    cores: int = 1
    state: State = State()
    seen: plausible.State = plausible.State()
    readings: Readings = Readings()
    clock: Clock | None = None
    carried_bytes: int | None = None
    own_bytes: int = 0
    wish: Wish | None = None
    noted_s: float = 0.0
    told: tuple[dict[str, str], int | None] | None = None
    told_s: float = -math.inf
    unmet: dict[str, str] = {}
    mended_s: float | None = None


def open_governor(
    config: Config,
    *,
    n_exits: int,
    prices: Prices | None,
    cores: int,
    carried: Carried | None,
    board: BoardFile | None = None,
) -> Governor:
    """A governor that has seen nothing yet.

    Args:
        config: checked.
        n_exits: of the policy.
        prices: of the installed network; None while nobody read them.
        cores: of the processor.
        carried: what the link carried lately, as a predecessor noted it.
        board: what is known of the kind of board.

    Returns:
        It.

    Raises:
        nothing.
    Source:
        ours.
    """
    known = prices or cost.unknown(n_exits)
    return Governor(config=config, board=board, prices=known, cores=cores, state=State(carried=carried))


def sensed(governor: Governor, event: bus.Sensed, now_s: float) -> Governor:
    """Take in a look at the board.

    Args:
        governor: before.
        event: the look.
        now_s: monotonic time.

    Returns:
        With what is believed of it.

    Raises:
        nothing.
    Source:
        `plausible.judge`.
    """
    seen, believed = plausible.judge(governor.seen, event.readings, now_s)
    return msgspec.structs.replace(
        governor,
        seen=seen,
        readings=believed,
        clock=event.clock,
        carried_bytes=event.carried_bytes,
        own_bytes=event.own_bytes,
    )


def acting(governor: Governor, network: Swap | None, effects: list[bus.Effect]) -> Governor:
    """Note which network acts; one whose prices are not known is looked up.

    Args:
        governor: before.
        network: as the actor says.
        effects: what to do, appended to.

    Returns:
        The former prices hold until the new ones are there: networks of one device have the same exits.

    Raises:
        nothing.
    Source:
        ours: level, not edge; whatever brought the network to act.
    """
    if network is None or network == governor.priced:
        return governor
    effects.append(bus.Price(network))
    return msgspec.structs.replace(governor, priced=network)


def priced(governor: Governor, event: bus.Priced) -> Governor:
    """Take in the prices of a network.

    Args:
        governor: before.
        event: prices, of which network.

    Returns:
        With these prices, if it still acts.

    Raises:
        nothing.
    Source:
        ours.
    """
    if event.network != governor.priced or event.prices is None:
        return governor
    return msgspec.structs.replace(governor, prices=event.prices)


def allot(
    governor: Governor,
    *,
    actor: ActorReport | None,
    trainer: TrainerReport | None,
    link_up: bool,
    paused: bool,
    now_s: float,
    effects: list[bus.Effect],
) -> tuple[Governor, Budget]:
    """Decide anew, and say what has changed.

    Args:
        governor: before.
        actor: its last report, or None.
        trainer: the same.
        link_up: the session with the broker stands.
        paused: a person paused the training.
        now_s: monotonic time.
        effects: what to do, appended to: events of a changed reason, point or goal, and bytes to be noted.

    Returns:
        After, and the budget.

    Raises:
        nothing.
    Source:
        `decide`.
    """
    replace = msgspec.structs.replace
    wish = governor.wish
    if wish is not None and wish.until_s is not None and now_s >= wish.until_s:
        effects.append(bus.Record("goals-order-ended", {"id": wish.id, "why": "expired"}))
        governor = replace(governor, wish=None)
    look = Look(
        readings=governor.readings,
        actor=actor,
        trainer=trainer,
        link_up=link_up,
        clock=governor.clock,
        carried_bytes=governor.carried_bytes,
        own_bytes=governor.own_bytes,
    )
    before = governor.state
    state, budget = decide(before, setup(governor), look, now_s)
    if paused:
        why = {**budget.why, "train_steps_hz": PAUSED, "teacher_bytes_per_s": PAUSED}
        budget = replace(budget, train_steps_hz=0.0, teacher_bytes_per_s=0.0, why=why)
    governor = _tell(governor, state, budget, now_s, effects)
    if state.carried is not None and state.carried != before.carried and now_s - governor.noted_s >= NOTE_S:
        effects.append(bus.Carry(state.carried))
        governor = replace(governor, noted_s=now_s)
    return replace(governor, state=state), budget


def _tell(governor: Governor, state: State, budget: Budget, now_s: float, effects: list[bus.Effect]) -> Governor:
    """Record what has changed: a goal that is unmet at once, and that it is met again when it has been for a while."""
    replace, now = msgspec.structs.replace, (budget.why, budget.point)
    if governor.told is None:
        governor = replace(governor, told=now)
    elif now != governor.told and not 0 <= now_s - governor.told_s < TELL_S:
        effects.append(bus.Record("budget-changed", {**budget.why, "at_point": budget.point}))
        governor = replace(governor, told=now, told_s=now_s)
    unmet = {name: each.why for name, each in state.verdicts.items() if each.why}
    worse = any(governor.unmet.get(name) != why for name, why in unmet.items())
    dropped = any(name not in state.verdicts for name in governor.unmet)
    if unmet == governor.unmet:
        return replace(governor, mended_s=None)
    since_s = now_s if governor.mended_s is None or now_s < governor.mended_s else governor.mended_s
    if not (worse or dropped or now_s - since_s >= governor.config.govern.dwell_s):
        return replace(governor, mended_s=since_s)
    effects.append(bus.Record("goals-changed", {"unmet": unmet}))
    return replace(governor, unmet=unmet, mended_s=None)


def setup(governor: Governor) -> Setup:
    """What is known beforehand, for `decide`.

    Args:
        governor: with configuration, wish and prices.

    Returns:
        Gathered anew each time, so that nothing of it can be out of date. Of goals a command names some, and those
        count; of the others what `config` says, in which the twin's goals have taken the place of the file's. So a
        command goes before the twin, and the twin before the file, each goal by itself. Hours of `last_until` begin
        with the command that says them; those of twin and file with the start of the machine.

    Raises:
        nothing.
    Source:
        ours.
    """
    config, wish = governor.config, governor.wish
    goals = config.goals
    if wish is not None:
        goals = msgspec.structs.replace(goals, **{name: getattr(wish.goals, name) for name in wish.named})
    return Setup(
        govern=config.govern,
        goals=goals,
        goals_since_s=wish.since_s if wish is not None and "last_until" in wish.named else 0.0,
        supply=energy.supply_of(
            config,
            governor.board,
            cores=governor.cores,
            full_j=governor.readings.detail.get("battery_full_j", UNKNOWN).value,
        ),
        prices=governor.prices,
        train_steps_hz=config.learn.train_steps_hz if config.learn.enabled else 0.0,
        teacher_bytes_per_s=config.teacher.max_bytes_per_s if config.teacher.enabled else 0.0,
        deadline_s=config.policy.deadline_s,
    )
