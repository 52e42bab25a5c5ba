"""What the governor knows beforehand, sees at one moment, and remembers from one to the next."""

from __future__ import annotations

import msgspec

from edgert.config import Goals, Govern
from edgert.govern import cost
from edgert.govern.cost import Slowdown
from edgert.govern.energy import Power, Supply, Use, board_w, model
from edgert.govern.estimate import Estimate, Figure, Mean
from edgert.govern.goals import Verdict
from edgert.govern.missed import Missed
from edgert.values import ActorReport, Budget, Carried, Choice, Clock, Prices, Readings, TrainerReport


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beforehand, and changes seldom.

    Attributes:
        govern: bands and time constants.
        goals: what the operator wants.
        goals_since_s: when that was said, monotonic; 0 is the start of the machine.
        supply: of the board.
        prices: of the acting network: `cost.prices(manifest, board, cpu)`.
        train_steps_hz: gradient steps a second when nothing is scarce; 0 when training is off.
        teacher_bytes_per_s: bytes a second for teachers when nothing is scarce; 0 when they are not asked.
        deadline_s: of the configuration, for goals that state none; 0 takes 0.8 of the control period.
    """

    govern: Govern = Govern()
    goals: Goals = Goals()
    goals_since_s: float = 0.0
    supply: Supply = Supply()
    prices: Prices = cost.unknown(1)
    train_steps_hz: float = 0.0
    teacher_bytes_per_s: float = 0.0
    deadline_s: float = 0.0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen at one moment.

    Attributes:
        readings: of the board, judged plausible.
        actor, trainer: their last reports, or None.
        link_up: the session with the broker stands.
        clock: of the wall, or None while it is not known.
        carried_bytes: what this process sent and received over the link since its start; None where nobody counts.
        own_bytes: resident bytes of the process that decides.
    """

    readings: Readings = Readings()
    actor: ActorReport | None = None
    trainer: TrainerReport | None = None
    link_up: bool = True
    clock: Clock | None = None
    carried_bytes: int | None = None
    own_bytes: int = 0


class Held(msgspec.Struct, frozen=True):
    """A level that falls at once and rises late.

    Attributes:
        level: in force.
        reason: why it is not higher.
        ready: the most it could have been all the while since `since_s`; None while it could not be higher.
        since_s: when it could first have been higher.
    """

    level: int
    reason: str = "ok"
    ready: int | None = None
    since_s: float = 0.0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered from one look to the next. `State()` knows nothing yet.

    Attributes:
        estimate: what is believed of the board, in bands.
        slow: how much slower than its table it is.
        power: what it draws; None before the first look.
        use: who uses the processor.
        charge_frac: of the battery, between what its gauge says; nothing without one.
        jumped_s: when the gauge last told another charge than what was drawn explains; None when it never did.
        loss_frac, capacity_bytes_per_s, rtt_s: of the link.
        late_frac: share of the looks, lately, at which the deadline took something away.
        missed: what counted misses have led to.
        used_frac: work of a tick at the setting in force, as a share of the full network's.
        held: name of a scarcity -> its level.
        prices: that `slow` and `held` are about.
        actor, actor_s, trainer, trainer_s: the last reports, and when they came.
        carried, counted_bytes: bytes of this day, and `Look.carried_bytes` of the last look.
        own_bytes: of the last look.
        infeasible, short: the battery cannot, or may not, last as long as it is to.
        verdicts: goal -> what became of it.
        figures: estimates for people: name with its unit -> estimate.
        budget: the last one.
    """

    estimate: Estimate = Estimate()
    slow: Slowdown = Slowdown()
    power: Power | None = None
    use: Use = Use()
    charge_frac: Mean = Mean()
    jumped_s: float | None = None
    loss_frac: Mean = Mean()
    capacity_bytes_per_s: Mean = Mean()
    rtt_s: Mean = Mean()
    late_frac: Mean = Mean()
    missed: Missed = Missed()
    used_frac: float = 1.0
    held: dict[str, Held] = {}
    prices: Prices | None = None
    actor: ActorReport | None = None
    actor_s: float = 0.0
    trainer: TrainerReport | None = None
    trainer_s: float = 0.0
    carried: Carried | None = None
    counted_bytes: int | None = None
    own_bytes: int = 0
    infeasible: bool = False
    short: bool = False
    verdicts: dict[str, Verdict] = {}
    figures: dict[str, Figure] = {}
    budget: Budget | None = None

    @property
    def held_bytes(self) -> int:
        """Resident bytes of the process that decides and of those that reported; pages they share count for each."""
        return self.own_bytes + sum(each.rss_bytes for each in (self.actor, self.trainer) if each is not None)


def drawn_w(state: State, setup: Setup, choice: Choice, *, train_steps_hz: float, long: bool) -> tuple[float, float]:
    """Watts of the whole board at a choice.

    Args:
        state: what is believed.
        setup: of this board.
        choice: how the network is run.
        train_steps_hz: gradient steps a second.
        long: as in `energy.board_w`.

    Returns:
        Mean and standard deviation.

    Raises:
        nothing.
    Source:
        `energy.board_w`.
    """
    table = state.prices or setup.prices
    return board_w(
        model(setup.supply) if state.power is None else state.power,
        state.use,
        setup.supply,
        work_s=cost.work_s(choice, table),
        scale=state.slow.mean,
        rate_hz=table.rate_hz,
        train_steps_hz=train_steps_hz,
        long=long,
    )
