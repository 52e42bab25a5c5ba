"""How far a teacher is believed: measured on what really happened, never scheduled, and lost by name.

A teacher is not believed until it has shown something. It claims what states and actions are worth; the student lives
through transitions; each block of them gives two correlations, and both must be positive for a teacher to be of use:

- preferences: among states it values alike, is an action the teacher prefers really followed by more,
  r + gamma V(s') against its advantage of the action taken? A network that knows nothing of this world has a
  correlation near 0, one whose preferences were turned round has at most that.
- rewards: is the reward it implies, Q(s, a) - gamma V(s'), the one that came, high where that is high? Values that
  were negated are as consistent with one another as before, and wrong here.

Values that pass both satisfy the Bellman equation of this world well enough to be worth following. Each correlation is
bounded, so that tests by betting decide, valid whenever one looks. From then on the weight is what the student has
left to gain from this teacher, times the share of what its preferences promise that they keep, and the same tests go
on watching for the teacher to turn bad. A teacher that a person vouches for is believed on credit, which runs out as
the evidence should be coming in. In a world of a dozen states a table of random numbers may pass by chance; then
what it claims and keeps is left to hold it back.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.knowledge.student import HUGE
from edgert.nets import F32

BLOCK = 32
"""Transitions that make one bounded piece of evidence."""
LEAST_PREFERENCE = 0.1
"""Mean correlation that must be exceeded: seven random networks on two MinAtar games gave -0.11 to 0.10, good ones 0.25
to 0.98, a good one under noise as large as a reward 0.10 to 0.72."""
LEAST_CONSTANT = 0.15
"""Mean cosine asked for where every reward of a block is the same, as in balancing: a good teacher of CartPole gave
0.34 to 0.55, random networks -0.05 to 0.12, and a negated one -0.26 and less."""
SURE = math.log(20)
"""Wealth at which a bettor against "this teacher knows nothing" has shown the contrary (5 %)."""
ALARM = math.log(1000)
"""Wealth at which a bettor against "this teacher is sound" is right. A sound one makes each of the three bettors wrong
once in a thousand blocks, on the average, if its correlations are just 0; far more rarely if they are positive."""
PATIENCE_BLOCKS = 128
"""Blocks with evidence of a kind after which a teacher that has not shown this kind is not asked any more; after so
many without evidence, as where rewards are rare, it is asked little."""
CREDIT_BLOCKS = 48
"""Blocks over which the credit of a teacher that somebody vouches for runs out: good ones need 12 to 25 to prove
themselves, and a bad one does its harm in the first 1500 transitions or not at all."""
SILENT_BLOCKS = 32
"""Blocks without any reward after which preferences alone are believed, by half."""
WINDOW = 30
"""Episodes that make the student's live return, at most."""
KEPT_FRAC = 0.8
"""Share of its promise that a teacher must keep for full weight: good ones kept 0.55 and more, half-good ones 0 to 0.5
where the student had become able to tell."""
MEMORY_BLOCKS = 32
LEAST_EPISODES = 5
DULL_EPISODES = 20
DULL = 0.7
"""What a window of episodes without progress leaves of the weight,"""
DULL_TRANSITIONS = 3000
"""if the student had at least so many transitions to make some,"""
CLONED_TRANSITIONS = 1000
"""or, when it does what the teacher says already, so many."""
CLONED_FRAC = 0.8
LET_GO_FRAC = 0.3
"""Progress with at least so much patience is the teacher's doing, too: it restores the rest, and so does losing it.
With less the student is let go altogether: a preference that is hardly pulled at is still never tried otherwise."""
HYSTERESIS = 0.05
LEAST_ROWS = 64
TINY = 1e-6

Off = Literal["", "preferences", "rewards", "disadvantage", "constant", "contradictory", "not-finite", "nothing-shown"]


class Lessons(NamedTuple):
    """Transitions of which the teacher has valued both ends.

    Attributes:
        told: (n, A) float32, what it says of the actions.
        value: (n,) float32, what it says of the state.
        next_value: (n,) float32, of the state that followed; anything where `terminated`.
        action: (n,) integer, that was taken.
        reward: (n,) float32, that followed.
        terminated: (n,) bool.
        critic: (n,) float32, what the student itself says of the state.
        next_critic: (n,) float32, of the state that followed.
        favourite: (n,) integer, what the student would do if it did not explore; `action` where nobody knows.
    """

    told: F32
    value: F32
    next_value: F32
    action: npt.NDArray[np.integer]
    reward: F32
    terminated: npt.NDArray[np.bool_]
    critic: F32
    next_critic: F32
    favourite: npt.NDArray[np.integer]


class _Bettor(msgspec.Struct):
    """Bets that a number within -1..1 has a positive mean, with stakes from what it saw before."""

    log_wealth: float = 0.0
    n: int = 0
    total: float = 0.0
    squares: float = 0.25

    def see(self, gain: float) -> None:
        mean, square = self.total / (self.n + 1), self.squares / (self.n + 1)
        stake = min(0.9, max(0.0, mean / square)) if self.n else 0.5
        self.log_wealth += math.log1p(stake * gain)
        self.n, self.total, self.squares = self.n + 1, self.total + gain, self.squares + gain * gain


class TrustState(msgspec.Struct):
    """Everything a trust remembers, to be carried over a restart."""

    off: Off = ""
    preferences: _Bettor = msgspec.field(default_factory=_Bettor)
    rewards: _Bettor = msgspec.field(default_factory=_Bettor)
    alarms: dict[str, float] = msgspec.field(default_factory=dict)
    blocks: int = 0
    shown: bool = False
    rows: int = 0
    dull_rows: int = 0
    shortfall: float = 0.0
    agreed: float = 0.0
    disagreed: float = 0.0
    promised: float = 0.0
    returns: list[float] = msgspec.field(default_factory=list)
    lengths: list[int] = msgspec.field(default_factory=list)
    claims: list[float] = msgspec.field(default_factory=list)
    first: list[float] = msgspec.field(default_factory=list)
    agreement: float = 0.0
    likeness: float = 0.0
    obeying: float | None = None
    overtaken: bool = False
    best: float | None = None
    best_taught: bool = False
    since: int = 0
    lead: float = 1.0
    patience: float = 1.0


class Trust:
    """What is known about one teacher.

    Attributes:
        state: to be carried over a restart.
    """

    def __init__(
        self, kind: Literal["q", "policy"], gamma: float, state: TrustState | None = None, *, vouched: bool = False
    ) -> None:
        """Start with nothing shown.

        Args:
            kind: what the teacher says of an action: its value, or a logit.
            gamma: discount of the student; a teacher of nearly the same passes as well.
            state: of a former run.
            vouched: a person stands up for it.
        """
        self.state = TrustState() if state is None else state
        self._in_value_units = kind == "q"
        self._gamma, self._vouched = gamma, vouched
        self._rest: Lessons | None = None

    @property
    def off(self) -> Off:
        """Why the teacher is not believed any more; empty while it is, or may yet be."""
        return self.state.off

    @property
    def proof(self) -> float:
        """0 to 1: how much it has shown of what it takes to be believed, or is credited with."""
        return 1.0 if self.state.shown else max(self._credit, self._shown_so_far())

    @property
    def _credit(self) -> float:
        return max(0.0, 1 - self.state.blocks / CREDIT_BLOCKS) if self._vouched else 0.0

    def _shown_so_far(self) -> float:
        told = self.state
        preferences = min(1.0, max(0.0, told.preferences.log_wealth / SURE))
        if not told.rewards.n:
            return 0.5 * preferences if told.blocks >= SILENT_BLOCKS else 0.0
        return min(preferences, max(0.0, told.rewards.log_wealth / SURE))

    @property
    def weight(self) -> float:
        """0 to 1: share of the full weight that the teacher's loss should have now."""
        told = self.state
        if told.off or told.overtaken or told.patience < LET_GO_FRAC:
            return 0.0
        return self.proof * max(self._credit, self.kept) * told.lead * told.patience

    @property
    def kept(self) -> float:
        """0 to 1: how much better than others its favourite actions prove to be, as a share of what it says."""
        told = self.state
        if not self._in_value_units or told.promised <= TINY:
            return 1.0  # a logit promises no value
        return min(1.0, max(0.0, (told.agreed - told.disagreed) / told.promised / KEPT_FRAC))

    @property
    def appetite(self) -> float:
        """0 to 1: share of the budget worth spending on questions now."""
        told = self.state
        if told.off:
            return 0.0
        return 1.0 if not told.shown and told.blocks < PATIENCE_BLOCKS else min(1.0, max(0.1, 2 * self.weight))

    def judge(self, lessons: Lessons) -> None:
        """Weigh what the teacher said against what happened.

        Args:
            lessons: each transition once, in any order.

        Raises:
            UsageError: columns of different lengths.
        Source:
            betting on bounded means: Waudby-Smith & Ramdas 2020 (arXiv 2010.09686), section 4, one block a bet: what
            follows in time depends on what went before, so that only the conditional mean may be assumed. Going on
            watching: e-detectors of CUSUM kind, Shin, Ramdas & Rinaldo 2022 (arXiv 2203.03532). Bellman consistency
            as the evidence: ours, because a network must have learnt this world to have it, and because the student
            need not be good yet to see it.
        """
        if len({len(column) for column in lessons}) != 1:
            raise UsageError("lessons with columns of different lengths")
        if self._rest is not None:
            lessons = Lessons._make(np.concatenate(pair) for pair in zip(self._rest, lessons, strict=True))
        whole = len(lessons.action) // BLOCK * BLOCK
        self._rest = Lessons._make(column[whole:] for column in lessons)
        for start in range(0, whole, BLOCK):
            self._block(Lessons._make(column[start : start + BLOCK] for column in lessons))

    def _block(self, seen: Lessons) -> None:
        told = self.state
        going_on = np.where(seen.terminated, 0.0, self._gamma)
        doubles = seen.told.astype(np.float64)
        advantage = doubles[np.arange(BLOCK), seen.action] - doubles.max(1)
        agrees = advantage > -TINY
        values = bool(np.ptp(seen.value) > TINY)
        gained = seen.reward + going_on * seen.next_critic - seen.critic
        surprise = seen.reward + going_on * seen.next_value - seen.value if values else gained
        if not np.abs(gained).max() < HUGE:
            return  # a reward, or what the student itself says: no fault of the teacher's
        told.blocks += 1
        if not (np.abs(seen.told).max() < HUGE and np.abs(surprise).max() < HUGE):
            told.off = told.off or "not-finite"  # finite, but no number that anything can be learned from
            return
        if BLOCK // 8 <= agrees.sum() <= BLOCK - BLOCK // 8:
            base = seen.value if values else seen.critic
            preference, own = _partial(advantage, surprise + base, base), _correlation(advantage, gained)
            told.preferences.see((preference - LEAST_PREFERENCE) / (1 + LEAST_PREFERENCE))
            self._watch("preferences", preference)
            self._watch("disadvantage", own + LEAST_PREFERENCE)
        if values and seen.reward.any():
            claimed = seen.value - going_on * seen.next_value
            if np.ptp(seen.reward) > TINY:
                right = _correlation(claimed + (advantage if self._in_value_units else 0.0), seen.reward)
            else:
                # Not of the action taken: that lies below the best, which alone would look like a negative reward.
                right = (_cosine(claimed, seen.reward) - LEAST_CONSTANT) / (1 + LEAST_CONSTANT)
            told.rewards.see(right)
            self._watch("rewards", right)
        lately = max(1 / told.blocks, 1 / MEMORY_BLOCKS)
        told.agreement += lately * (float(agrees.mean()) - told.agreement)
        alike = doubles[np.arange(BLOCK), seen.favourite] > doubles.max(1) - TINY
        told.likeness += lately * (float(alike.mean()) - told.likeness)
        if values and agrees.any():
            share = max(1 / told.blocks, 1 / PATIENCE_BLOCKS)
            told.shortfall += share * (float(surprise[agrees].mean()) - told.shortfall)
        if values and agrees.any() and not agrees.all():
            share = max(1 / told.blocks, 1 / MEMORY_BLOCKS)
            told.agreed += share * (float(surprise[agrees].mean()) - told.agreed)
            told.disagreed += share * (float(surprise[~agrees].mean()) - told.disagreed)
            told.promised += share * (-float(advantage[~agrees].mean()) - told.promised)
        told.shown |= min(told.preferences.log_wealth, told.rewards.log_wealth) >= SURE
        tried = (each for each in (told.preferences, told.rewards) if each.n >= PATIENCE_BLOCKS)
        if not told.shown and not told.off and any(each.log_wealth < SURE for each in tried):
            told.off = "nothing-shown"

    def _watch(self, name: Off, seen: float) -> None:
        """A bettor against "the mean is 0 or more", who may begin anew at any time."""
        wealth = max(0.0, self.state.alarms.get(name, 0.0)) + math.log1p(-0.5 * max(-1.0, min(1.0, seen)))
        self.state.alarms[name] = wealth
        if wealth >= ALARM and not self.state.off:
            self.state.off = name

    def rows(self, rows: F32, contradictions: int, repeats: int, not_finite: int) -> None:
        """Look at answers as such.

        Args:
            rows: (n, A) float32, new answers about different observations.
            contradictions: answers so far that differ from an earlier one about the very same observation,
            repeats: of so many that were about one.
            not_finite: answers so far that were not numbers.

        Raises:
            Nothing.
        Source:
            ours: a function has one value for one argument, and one that is the same for all says nothing.
        """
        told = self.state
        told.rows += len(rows)
        told.dull_rows += int((np.ptp(rows, axis=1) <= TINY * (1 + np.abs(rows).max(1, initial=0.0))).sum())
        if told.off:
            return
        if told.rows >= LEAST_ROWS and told.dull_rows > 0.9 * told.rows:
            told.off = "constant"
        elif contradictions >= 8 and contradictions > repeats / 2:
            told.off = "contradictory"
        elif not_finite >= 4:
            told.off = "not-finite"

    def episode(self, value: float, length: int, claim: float | None) -> None:
        """The student finished an episode by itself.

        Args:
            value: its discounted return from the start.
            length: decisions in it.
            claim: what the teacher says the start state is worth, if it was asked.

        Raises:
            Nothing.
        Source:
            QDagger's lambda, Agarwal et al. 2022 (arXiv 2206.01626) section 4, with the student's return when teaching
            began as zero, so that returns may be negative; the teacher's own return, which nobody measures here, is
            its claim plus what following it falls short of its claims (performance difference: Kakade & Langford
            2002, lemma 6.1). Patience is ours: a claim that is too high would hold the student down for ever. So is
            that a student which earns more its own way than it ever did by doing as told is let go.
        """
        told = self.state
        told.returns, told.lengths = [*told.returns, value][-WINDOW:], [*told.lengths, length][-WINDOW:]
        if claim is not None and math.isfinite(claim):
            told.claims = [*told.claims, claim][-WINDOW:]
        if len(told.first) < LEAST_EPISODES:
            told.first.append(value)
        n = len(told.returns)
        mean = sum(told.returns) / n
        error = math.sqrt(sum((each - mean) ** 2 for each in told.returns) / max(1, n - 1) / n)
        if n >= LEAST_EPISODES and told.likeness >= CLONED_FRAC:
            told.obeying = max(mean + error, -math.inf if told.obeying is None else told.obeying)
        if n >= LEAST_EPISODES and len(told.claims) >= LEAST_EPISODES:
            self._compare(mean - error)
        if not told.shown:
            return
        told.since += length
        enough = CLONED_TRANSITIONS if told.agreement >= CLONED_FRAC else DULL_TRANSITIONS
        if told.since < enough or n < DULL_EPISODES:
            return
        told.since = 0
        if told.best is None or mean > told.best + error:
            told.best, told.best_taught = mean, told.patience >= LET_GO_FRAC
            told.patience = 1.0 if told.best_taught else told.patience
        elif told.best_taught and mean < told.best - 3 * error:
            told.patience = 1.0
        else:
            told.patience *= DULL

    def _compare(self, student: float) -> None:
        told = self.state
        steps = sum(told.lengths) / len(told.lengths)
        reach = steps if self._gamma >= 1 else (1 - self._gamma**steps) / (1 - self._gamma)
        teacher = sum(told.claims) / len(told.claims) + min(0.0, told.shortfall) * reach
        first = sum(told.first) / len(told.first)
        left = max(0.0, min(1.0, (teacher - student) / (teacher - first))) if teacher > first else 0.0
        if abs(left - told.lead) > HYSTERESIS or left in (0.0, 1.0):
            told.lead = left
        # What it claims may be more than it can; what doing as told brought at the best is known, within its error.
        own_way = told.likeness < CLONED_FRAC
        told.overtaken = own_way and told.obeying is not None and student > told.obeying

    def swapped(self, return_before: float, return_after: float, n: int) -> None:
        """A network that was taught took over from an earlier one.

        Args:
            return_before: mean live return of the earlier one,
            return_after: and of the taught one,
            n: over so many episodes of the taught one.

        Raises:
            Nothing.
        Source:
            ours: whatever the reason, less weight for what was believed when it got worse.
        """
        if n >= LEAST_EPISODES and return_after < return_before:
            self.state.patience *= 0.5


def _correlation(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> float:
    return _cosine(x - x.mean(), y - y.mean())


def _partial(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating], given: npt.NDArray[np.floating]) -> float:
    """Correlation of what a straight line through `given` leaves of both."""
    given = given - given.mean()
    size = float((given * given).sum())
    x, y = x - x.mean(), y - y.mean()
    if size > TINY * TINY:
        x, y = (each - given * (float((given * each).sum()) / size) for each in (x, y))
    return _cosine(x, y)


def _cosine(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> float:
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > TINY * TINY else 0.0
