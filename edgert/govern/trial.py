"""Which network acts: swaps, the trial that each new network is on, and the way back.

A network that passed the gate acts on trial: what it earns is compared with what the best network before it earned
lately. On evidence of harm that one is put back, and the other never acts again. Compared with reports at every
wake-up (level, not edge), so a swap that nobody told of is found, and one that did not happen is told again. Of each
network that is offered the trainer hears once what became of it in the end: kept, rolled back, refused, or replaced by
another before anybody could tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec

from edgert import bus
from edgert.govern.evidence import LOOKS, Look, look, mean
from edgert.values import ActorReport, Fate, Note, Outcome, Record, Swap, Swapped

FALSE_ALARM_FRAC = 0.02
"""How likely a network that is as good as the one before it is rolled back all the same; a half for what is earned, a
half for deadlines. What it costs is one candidate: the training goes on."""
KEPT = 64
"""Figures remembered of a network, the newest."""
WINDOW_S = 5.0
"""Deadlines, and rewards where there are no episodes, are compared by windows of this length."""
PROVEN, PROVEN_WINDOWS = 10, 12
"""Episodes, and windows, in which a network that earned no less than the one before it has stood its trial."""
PATIENCE_S = 3600.0
"""After so long what is compared with is no longer recent: the network is kept, without a verdict."""
RETELL_S = 10.0
"""A swap that did not happen for so long is told again: loading takes seconds on a slow board."""
DEATHS_MAX = 3
"""An actor that dies so often on end gets no more chance to take over, or to keep, the network that is to blame: a new
one, or the one that is put back."""
REFUSED_MAX = 64
"""Rolled-back networks that are remembered; a trainer offers other ones."""
NOT_FINITE = "output-not-finite"
NO_VERDICT = "no evidence of harm in the time there is"
NEWER = "a newer one took its place"
DROPPED = "it was judged against a network that is being rolled back"


class Window(msgspec.Struct, frozen=True):
    """Where the window under way began."""

    began_s: float
    report: ActorReport


class Networks(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known about which network acts.

    Attributes:
        installed: how the actor is told of the installed network.
        acting: the one that should act, as noted, and what it earned.
        best: the one it is measured by and goes back to; None when it is on no trial.
        line: returns of all networks since `best`, in order: many small steps down are one big one, and steps up, too.
        since_s: when the trial began.
        blamed, deaths: the network that the actor's last deaths on end are held against, and how many they are.
        pending, told_s: the swap that the actor was told to make and has not made, and when.
        waiting: the newest offer that came meanwhile. The actor is told of one at a time: of a swap that is under way
            only the actor can say whether it was made.
        refused: rolled back, oldest first.
        window: under way.
    """

    installed: Swap
    acting: Record = Record()
    best: Record | None = None
    line: tuple[float, ...] = ()
    since_s: float = 0.0
    blamed: Swap | None = None
    deaths: int = 0
    pending: Swap | None = None
    told_s: float = 0.0
    waiting: Swap | None = None
    refused: tuple[Swap, ...] = ()
    window: Window | None = None

    @property
    def target(self) -> Swap:
        """How the actor is told of the network that should act."""
        return self.acting.swap or self.installed

    @property
    def note(self) -> Note:
        """What to write down."""
        swap = self.acting.swap or Swap(0, "", "")
        return Note(swap.generation, swap.path, swap.sha256, self.best, self.refused)


Effects = list[bus.Effect]


def open_networks(note: Note | None, bundle: str, now_s: float) -> Networks:
    """Take up what was written down.

    Args:
        note: of a predecessor; None when there is none, or it cannot be believed.
        bundle: path of the installed one.
        now_s: monotonic seconds.

    Returns:
        The state. A network that was on trial is on trial again, by the same measure, its own figures forgotten.

    Raises:
        nothing.
    Source:
        ours: the note is the only memory, so it is written before anybody is told.
    """
    note = note or Note(0, "", "")
    swap = Swap(note.generation, note.path, note.sha256) if note.generation else None
    best = note.best if swap is not None else None
    acting = Record(swap, max_exit=best.max_exit if best else None)
    return Networks(
        installed=Swap(0, bundle, ""), acting=acting, best=best, since_s=now_s, told_s=now_s, refused=note.refused
    )


def offered(networks: Networks, swap: Swap, now_s: float, effects: Effects) -> Networks:
    """The trainer has a network that passed the gate.

    Args:
        networks: the state before.
        swap: the network.
        now_s: monotonic seconds.
        effects: what to do is appended here.

    Returns:
        The state after.

    Raises:
        nothing.
    Source:
        ours: one that was rolled back is known by its content, whatever number it comes under.
    """
    if swap in (networks.pending, networks.waiting, networks.target):
        return networks  # the trainer said it twice
    why = ""
    if swap.sha256 in {bad.sha256 for bad in networks.refused}:
        why = "it was rolled back before"
    elif networks.pending is not None and networks.pending == networks.target:
        why = DROPPED
    if why:
        effects.append(bus.Record("swap-refused", {"generation": swap.generation, "why": why}))
        effects.append(_outcome(networks, swap.generation, "refused", why))
        return networks
    if networks.pending is None:
        return _tell(networks, swap, now_s, effects)
    if networks.waiting is not None:
        effects.append(_outcome(networks, networks.waiting.generation, "replaced", NEWER))
    return msgspec.structs.replace(networks, waiting=swap)


def swapped(networks: Networks, told: Swapped, now_s: float, effects: Effects) -> Networks:
    """The actor says what came of a swap.

    Args:
        networks: the state before.
        told: the outcome.
        now_s: monotonic seconds.
        effects: what to do is appended here.

    Returns:
        The state after.

    Raises:
        nothing.
    Source:
        ours: an answer about a swap that is not under way changes nothing; the next report says what acts.
    """
    return _go_on(_answered(networks, told, now_s, effects), now_s, effects)


def heard(
    networks: Networks,
    before: ActorReport | None,
    report: ActorReport,
    max_exit: int | None,
    now_s: float,
    out: Effects,
) -> Networks:
    """The actor reports: is the right network acting, and does it earn what it should?

    Args:
        networks: the state before.
        before: the report before this one, if there was one.
        report: the new one.
        max_exit: the deepest exit that the budget allows; None while there is no budget.
        now_s: monotonic seconds.
        out: what to do is appended here.

    Returns:
        The state after.

    Raises:
        nothing.
    Source:
        ours: returns are told with the network that played them, so an episode with a swap in it counts for nobody.
    """
    return _go_on(_looked(networks, before, report, max_exit, now_s, out), now_s, out)


def _looked(
    networks: Networks,
    before: ActorReport | None,
    report: ActorReport,
    max_exit: int | None,
    now_s: float,
    out: Effects,
) -> Networks:
    if report.network is None or not report.acting:
        return networks
    actual = report.network if report.network.generation else networks.installed
    if networks.pending is not None:
        if actual == networks.pending and actual != networks.target:
            return _made(msgspec.structs.replace(networks, pending=None), actual, now_s, out)
        if now_s - networks.told_s >= RETELL_S:
            networks = _tell(networks, networks.pending, now_s, out)
    if actual != networks.target:
        if networks.pending is not None:
            return networks  # what acts until the swap is made counts for nobody
        if actual in networks.refused:
            return _tell(networks, networks.target, now_s, out)
        out.append(bus.Record("swap-found", {"generation": actual.generation, "path": actual.path}))
        return _made(networks, actual, now_s, out)
    if networks.pending == networks.target:
        networks = msgspec.structs.replace(networks, pending=None)
    return _counted(networks, before, report, max_exit, now_s, out)


def died(networks: Networks, failures: int, now_s: float, effects: Effects) -> Networks:
    """The actor died; often enough on end, and the network on trial must be to blame, or the one it was to take up.

    Args:
        networks: the state before.
        failures: exits since it last lived long enough.
        now_s: monotonic seconds.
        effects: what to do is appended here.

    Returns:
        The state after; ask `given_up` next.

    Raises:
        nothing.
    Source:
        ours: a network can bring a runtime down, and the process with it, before any check of it can speak.
    """
    suspect = networks.pending or (networks.target if networks.best is not None else networks.installed)
    if suspect == networks.installed:
        return networks  # there is nothing else to act
    # Of deaths before it was told of it is innocent, and so is the one that is put back of those of the one before it.
    deaths = min(failures, 1 + (networks.deaths if networks.blamed == suspect else 0))
    networks = msgspec.structs.replace(networks, blamed=suspect, deaths=deaths)
    if networks.pending is not None or deaths < DEATHS_MAX:
        return networks
    return _roll_back(
        networks, f"the actor died {deaths} times on end with this network on trial", None, now_s, effects
    )


def given_up(networks: Networks) -> Swapped | None:
    """The answer about a swap that the actor cannot give, since it dies of it.

    Args:
        networks: the state.

    Returns:
        What to hand to `swapped`; None while the actor may have another try.

    Raises:
        nothing.
    Source:
        ours, see `DEATHS_MAX`.
    """
    pending = networks.pending
    if pending is None or pending != networks.blamed or networks.deaths < DEATHS_MAX:
        return None
    why = f"the actor died {networks.deaths} times on end while it was to take this network up"
    return Swapped(pending.generation, False, why, 0, 0, 0.0)


def waive(networks: Networks, effects: Effects) -> Networks:
    """The network that acts need stand no trial.

    Args:
        networks: the state before.
        effects: what to do is appended here.

    Returns:
        The state after.

    Raises:
        nothing.
    Source:
        ours: networks that no gate judged are compared with nothing later either.
    """
    return networks if networks.best is None else _keep(networks, "it stands no trial", effects)


def standing(networks: Networks) -> Outcome:
    """What a trainer that has just connected must know.

    Args:
        networks: the state.

    Returns:
        The message.

    Raises:
        nothing.
    Source:
        ours: level, not edge; whatever was said while it was away is contained in which network acts.
    """
    return Outcome(networks.acting.swap)


def shown(networks: Networks) -> dict[str, object]:
    """The trial for the status document.

    Args:
        networks: the state.

    Returns:
        Plain maps and numbers; unknown is None.

    Raises:
        nothing.
    Source:
        ours: a person asks first what is compared with what, and by how many figures.
    """
    record, best = networks.acting, networks.best
    measured = {"returns": len(record.returns), "return_mean": mean(record.returns)}
    if best is None:
        return {"trial": None, "refused": [bad.generation for bad in networks.refused], **measured}
    against = best.swap.generation if best.swap else 0
    trial = {"against": against, "returns": len(best.returns), "return_mean": mean(best.returns)}
    return {"trial": trial, "refused": [bad.generation for bad in networks.refused], **measured}


def _outcome(networks: Networks, generation: int, what: Fate, why: str = "", seen: Look | None = None) -> bus.Effect:
    before, after, n = (seen.before, seen.after, seen.n) if seen else (None, None, 0)
    return bus.Tell("trainer", Outcome(networks.acting.swap, generation, what, why, before, after, n))


def _tell(networks: Networks, swap: Swap, now_s: float, effects: Effects) -> Networks:
    effects.append(bus.Tell("actor", swap))
    return msgspec.structs.replace(networks, pending=swap, told_s=now_s)


def _go_on(networks: Networks, now_s: float, effects: Effects) -> Networks:
    """Nothing is under way any more: what waited is next."""
    swap = networks.waiting
    if networks.pending is not None or swap is None:
        return networks
    return _tell(msgspec.structs.replace(networks, waiting=None), swap, now_s, effects)


def _answered(networks: Networks, told: Swapped, now_s: float, effects: Effects) -> Networks:
    pending, acting = networks.pending, networks.acting.swap
    if pending is not None and pending.generation == told.generation:
        networks = msgspec.structs.replace(networks, pending=None)
        if told.ok:
            return _made(networks, pending, now_s, effects)
        if pending != networks.target:
            effects.append(_outcome(networks, told.generation, "refused", told.why))
        elif networks.best is not None:
            return _roll_back(networks, told.why, None, now_s, effects)
        elif acting is not None:
            # It was to come back, and cannot.
            return _tell(_take_up(networks, None, effects), networks.installed, now_s, effects)
    elif not told.ok and acting is not None and told.generation == acting.generation:
        # A starting actor could not take it up again, and has taken the installed one.
        if networks.best is not None:
            return _roll_back(networks, told.why, None, now_s, effects)
        return _take_up(networks, None, effects)
    return networks


def _made(networks: Networks, swap: Swap, now_s: float, effects: Effects) -> Networks:
    """This network acts now; where another was on trial, it never came to a verdict."""
    former, best, line = networks.target, networks.best, networks.line
    if swap == former:
        return networks
    if swap == networks.installed or (best is not None and swap == best.swap):
        return _take_up(networks, swap if swap.generation else None, effects)
    on_trial = best is not None
    if best is None:
        best, line = networks.acting, ()
    networks = msgspec.structs.replace(
        networks,
        acting=Record(swap, max_exit=best.max_exit),
        best=best,
        line=line,
        since_s=now_s,
        window=None,
    )
    effects.append(bus.Commit(networks.note))
    if on_trial:
        effects.append(_outcome(networks, former.generation, "replaced", NEWER))
    effects.append(_outcome(networks, swap.generation, "swapped"))
    return networks


def _take_up(networks: Networks, swap: Swap | None, effects: Effects) -> Networks:
    """A network acts that is on no trial: the installed one, or the one that another was to be measured by."""
    former, best = networks.target, networks.best
    acting = best if best is not None and best.swap == swap else Record(swap)
    networks = msgspec.structs.replace(networks, acting=acting, best=None, line=(), window=None)
    effects.append(bus.Commit(networks.note))
    if best is not None:
        why = f"the actor went back to generation {networks.target.generation}"
        effects.append(_outcome(networks, former.generation, "replaced", why))
    effects.append(_outcome(networks, 0, "acts"))
    return networks


def _roll_back(networks: Networks, why: str, seen: Look | None, now_s: float, effects: Effects) -> Networks:
    """Put the best network back: first written down, then told, so that no crash in between brings the bad one back."""
    bad, best = networks.acting, networks.best or Record()
    if bad.swap is None:
        return networks
    dropped = [swap.generation for swap in (networks.pending, networks.waiting) if swap is not None]
    refused = (*networks.refused, bad.swap)[-REFUSED_MAX:]
    networks = msgspec.structs.replace(
        networks, acting=best, best=None, line=(), window=None, refused=refused, waiting=None
    )
    effects.append(bus.Commit(networks.note))
    networks = _tell(networks, networks.target, now_s, effects)
    effects += [_outcome(networks, generation, "refused", DROPPED) for generation in dropped]
    effects.append(_outcome(networks, bad.swap.generation, "rolled-back", why, seen))
    detail: dict[str, object] = {
        "generation": bad.swap.generation,
        "back_to": networks.target.generation,
        "why": why,
        "episodes": len(bad.returns),
    }
    if seen is not None:
        detail |= {"before": seen.before, "after": seen.after, "n": seen.n, "p": seen.p}
    effects.append(bus.Record("policy-rolled-back", detail))
    return networks


def _keep(networks: Networks, why: str, effects: Effects) -> Networks:
    best = networks.best or Record()
    figures = (best.returns, networks.acting.returns) if best.returns else (best.rewards, networks.acting.rewards)
    seen = Look(False, None, mean(figures[0]), mean(figures[1]), len(figures[1]))
    networks = msgspec.structs.replace(networks, best=None, line=())
    generation = networks.target.generation
    effects += [bus.Commit(networks.note), _outcome(networks, generation, "kept", why, seen)]
    effects.append(
        bus.Record(
            "policy-kept",
            {"generation": generation, "why": why, "before": seen.before, "after": seen.after, "n": seen.n},
        )
    )
    return networks


def _counted(
    networks: Networks,
    before: ActorReport | None,
    report: ActorReport,
    max_exit: int | None,
    now_s: float,
    out: Effects,
) -> Networks:
    """Take in what the acting network did since the report before."""
    replace = msgspec.structs.replace
    same = before is not None and before.pid == report.pid
    known = report.faults.get(NOT_FINITE, 0) - (before.faults.get(NOT_FINITE, 0) if before and same else 0)
    if known > 0 and same and before is not None and before.network == report.network:
        networks = replace(networks, acting=replace(networks.acting, not_finite=networks.acting.not_finite + known))
        measure = networks.best or Record()
        if networks.acting.swap is not None and not measure.not_finite:
            return _roll_back(networks, f"{known} outputs were not finite", None, now_s, out)
    acting = networks.acting
    if max_exit != acting.max_exit:
        if networks.best is not None and acting.max_exit is not None:
            # Earned under other conditions than what it is compared with.
            networks = replace(networks, window=None)
            return _keep(networks, NO_VERDICT, out) if now_s - networks.since_s >= PATIENCE_S else networks
        networks = replace(networks, acting=Record(acting.swap, not_finite=acting.not_finite, max_exit=max_exit))
    target = networks.target
    count = report.episodes - (before.episodes if before is not None and same else 0)
    if len(report.played) == len(report.returns) and count > 0:
        for value, generation in list(zip(report.returns, report.played, strict=True))[-count:]:
            if generation == target.generation and isfinite(value):
                networks = _earned(networks, value, now_s, out)
            if networks.target != target:
                return networks
    return _timed(networks, report, now_s, out)


def _earned(networks: Networks, value: float, now_s: float, out: Effects) -> Networks:
    """One more return, and what it says."""
    acting, best = networks.acting, networks.best
    acting = msgspec.structs.replace(acting, returns=(*acting.returns, value)[-KEPT:])
    networks = msgspec.structs.replace(networks, acting=acting)
    if best is None:
        return networks
    line = (*networks.line, value) if len(networks.line) < LOOKS[-1] else (value,)
    networks = msgspec.structs.replace(networks, line=line)
    for whose, returns in (("its", acting.returns), ("its line's", line)):
        seen = look(best.returns, returns, FALSE_ALARM_FRAC / 4)
        if seen.worse:
            return _roll_back(networks, f"{whose} returns are lower than the best network's", seen, now_s, out)
    lately, of_several = line[-PROVEN:], len(line) > len(acting.returns)
    proven = len(lately) == PROVEN and sum(lately) * len(best.returns) >= sum(best.returns) * PROVEN
    if of_several and proven and len(line) in LOOKS:
        # Where a trainer offers one network after the other none of them comes to a verdict of its own.
        networks = msgspec.structs.replace(networks, acting=msgspec.structs.replace(acting, returns=lately))
        return _keep(networks, "its line earns no less", out)
    return networks


def _timed(networks: Networks, report: ActorReport, now_s: float, out: Effects) -> Networks:
    """Windows of time: deadlines always, rewards where there are no episodes; and the end of the trial."""
    replace = msgspec.structs.replace
    window = networks.window
    if window is None or window.report.pid != report.pid:
        return replace(networks, window=Window(now_s, report))
    ticks, rewarded = report.ticks - window.report.ticks, report.rewarded - window.report.rewarded
    if now_s - window.began_s < WINDOW_S or ticks <= 0:
        return networks
    acting, best = networks.acting, networks.best
    acting = replace(acting, missed=(*acting.missed, (report.missed - window.report.missed) / ticks)[-KEPT:])
    per_step = (report.reward - window.report.reward) / max(1, rewarded)
    rewarded = rewarded if isfinite(per_step) else 0
    if rewarded > 0:
        acting = replace(acting, rewards=(*acting.rewards, per_step)[-KEPT:])
    networks = replace(networks, acting=acting, window=Window(now_s, report))
    if best is None:
        return networks
    seen = look([-frac for frac in best.missed], [-frac for frac in acting.missed], FALSE_ALARM_FRAC / 2)
    if seen.worse:
        seen = Look(True, seen.p, mean(best.missed), mean(acting.missed), seen.n)
        return _roll_back(networks, "more deadlines are missed than with the best network", seen, now_s, out)
    endless = not best.returns and not acting.returns
    if endless and rewarded > 0:
        seen = look(best.rewards, acting.rewards, FALSE_ALARM_FRAC / 2)
        if seen.worse:
            return _roll_back(networks, "its reward a step is lower than the best network's", seen, now_s, out)
    why = _stood(best, acting, networks.line, endless, now_s - networks.since_s)
    return _keep(networks, why, out) if why else networks


def _stood(best: Record, acting: Record, line: Sequence[float], endless: bool, elapsed_s: float) -> str:
    """Why the trial is over, in words; empty while it is not."""
    before, after = (best.rewards, acting.rewards) if endless else (best.returns, acting.returns)
    enough = PROVEN_WINDOWS if endless else PROVEN
    if elapsed_s >= PATIENCE_S:
        return NO_VERDICT
    if len(acting.missed) < PROVEN_WINDOWS or len(after) < enough:
        return ""
    if not before:
        return "there is nothing to compare with"
    if sum(after) * len(before) >= sum(before) * len(after):
        return "it earns no less"
    return "no evidence of harm" if max(len(after), len(line)) >= LOOKS[-1] else ""
