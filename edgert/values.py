"""The words that cross a floor: readings, budgets, and what the three processes tell one another.

Everything here is immutable and free of numpy, so that the supervisor can speak it. Messages between processes are
tagged structs: the tag travels as key `t`, and `Told` is the union of all of them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["actor", "trainer", "world", "placer", "offload", "client"]
Fate = Literal["acts", "swapped", "kept", "refused", "replaced", "rolled-back"]
"""What became of a network, see `Outcome`."""
TrainCode = Literal["done", "nothing-to-do", "too-early", "candidate-not-made", "checkpoint-not-written"]
"""What came of an order `now`, see `TrainerReport`."""


class Reading(msgspec.Struct, frozen=True):
    """One sensor value with its age; `value is None` means unknown, and unknown is judged as the worst.

    Attributes:
        value: in the unit the holding field's name says, or None.
        age_s: seconds since it was measured.
        source: where it comes from, for people: a path, a bus address, a program. Empty when there is no such place.
    """

    value: float | None
    age_s: float = 0.0
    source: str = ""


UNKNOWN = Reading(None)
RETURNS_TOLD = 32
REPEAT_MAX = 64
"""Ticks that one decision may be applied for at most: what the plant shows meanwhile is not looked at."""


class Throttle(msgspec.Struct, frozen=True):
    """What the firmware says about slowing the processor down; None where it does not say.

    Attributes:
        now: named conditions that hold: under-voltage, freq-capped, throttled, soft-temp-limit.
        since_boot: those that held at some time since the machine was started.
    """

    now: tuple[str, ...] = ()
    since_boot: tuple[str, ...] = ()


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at the board gave. Decisions are made from the named fields, `detail` is for people.

    Attributes:
        load_frac: CPU busy share over all cores, 0..1.
        temp_c: hottest thermal zone that matters, degrees Celsius.
        battery_frac: state of charge, 0..1. `has_battery` False means mains, and then this is ignored.
        power_w: drawn from the supply, watts.
        link_rtt_s: application-level round trip to the broker.
        has_battery: runs on a battery.
        external_power: the charger or supply is there; None when not known.
        trip_c: lowest temperature at which the kernel itself starts to cool passively.
        freq_frac: clock of the slowest cluster that has work, as a share of the highest the silicon has, 0..1.
        throttle: what the firmware says; None where it does not.
        memory_available_bytes: what can be had without swapping.
        cpu_pressure_frac, memory_pressure_frac: share of the last 10 s in which some task waited for it (PSI avg10).
        link_loss_frac: share of what was sent that was lost or sent again lately, 0..1.
        link_bytes_per_s: what the link carried at best lately, both ways.
        rssi_dbm: of the radio.
        metered: every byte costs money; None when not known.
        detail: everything else that was read: name with its unit -> reading.
    """

    load_frac: Reading = UNKNOWN
    temp_c: Reading = UNKNOWN
    battery_frac: Reading = UNKNOWN
    power_w: Reading = UNKNOWN
    link_rtt_s: Reading = UNKNOWN
    has_battery: bool = False
    external_power: bool | None = None
    trip_c: Reading = UNKNOWN
    freq_frac: Reading = UNKNOWN
    throttle: Throttle | None = None
    memory_available_bytes: Reading = UNKNOWN
    cpu_pressure_frac: Reading = UNKNOWN
    memory_pressure_frac: Reading = UNKNOWN
    link_loss_frac: Reading = UNKNOWN
    link_bytes_per_s: Reading = UNKNOWN
    rssi_dbm: Reading = UNKNOWN
    metered: bool | None = None
    detail: dict[str, Reading] = {}


class Budget(msgspec.Struct, frozen=True, tag_field="t", tag="budget"):
    """What the device may spend until the next budget.

    Attributes:
        max_exit: deepest exit the actor may reach, 0-based.
        train_steps_hz: gradient steps a second the trainer may take.
        teacher_bytes_per_s: bytes a second, both ways, for teacher knowledge.
        why: limit name -> the named reason that set it; `govern.reasons` explains each.
        max_ops_frac: what a tick may cost on average, as a share of the network without exits; 1 is no limit.
        point: index of the acting bundle's frontier point to run at; None leaves it to the bundle, and to
            `max_ops_frac`.
        deadline_s: observation in hand -> action chosen; None leaves it to the configuration.
        telemetry_s: between two status documents over the link.
        accept_jobs: there is room for work that others bring.
        trainer_cpu_frac: most CPU time of the trainer, as a share of all cores, where it can be enforced; None: any.
        clock_frac: highest clock of the CPU, as a share of what it has, where it can be enforced; None: any.
    """

    max_exit: int
    train_steps_hz: float
    teacher_bytes_per_s: float
    why: dict[str, str] = {}
    max_ops_frac: float = 1.0
    point: int | None = None
    deadline_s: float | None = None
    telemetry_s: float = 1.0
    accept_jobs: bool = True
    trainer_cpu_frac: float | None = None
    clock_frac: float | None = None


class Clock(msgspec.Struct, frozen=True):
    """The time of the wall, for goals that a person states in it.

    Attributes:
        day: local date, as days since 1 January of the year 1.
        second_s: of that day.
    """

    day: int
    second_s: float


class Carried(msgspec.Struct, frozen=True):
    """Bytes that crossed the link on one local day, both ways, as far as they were counted."""

    day: int
    total_bytes: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the acting network, and what was measured of it.

    Attributes:
        point: index of the frontier's point, if it is one.
        max_exit: the deepest exit it may reach.
        ops_frac: mean operations of a tick, as a share of the network without exits.
        shares: of the ticks, that each exit answers; what is missing to 1 repeats the action before.
        repeat: ticks that an action is applied for once it was decided surely enough.
        return_frac: normalised return; None where nobody measured it.
    """

    point: int | None = None
    max_exit: int
    ops_frac: float
    shares: tuple[float, ...]
    repeat: int = 1
    return_frac: float | None = None


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What the acting network can be run as, and what that should cost on this board.

    Attributes:
        rate_hz: decisions a second.
        exits_s: seconds from observation to answer, one entry an exit, shallow to deep.
        spread_frac: how far single answers lie from these, as one standard deviation.
        source: bundle: measured on a board like this; bench: on this very one; ops: from counted operations.
        own: what the bundle asks for.
        points: of its frontier, from cheap to dear; empty where it has none.
    """

    rate_hz: float = 20.0
    exits_s: tuple[float, ...]
    spread_frac: float = 0.3
    source: Literal["bundle", "bench", "ops"] = "ops"
    own: Choice
    points: tuple[Choice, ...] = ()


class Operating(msgspec.Struct, frozen=True):
    """How an early-exit network is run: a setting between much and little computing.

    Attributes:
        thresholds: confidence 0..1 from which on an exit is believed; one for every exit but the last.
        repeat: ticks that an action is applied for once it was decided surely enough; 1 decides at every tick.
        hold_threshold: confidence 0..1 from which on an early exit's action is repeated; 1 never repeats.
    """

    thresholds: tuple[float, ...]
    repeat: int = 1
    hold_threshold: float = 1.0

    def fault(self, n_exits: int) -> str:
        """What keeps a network of `n_exits` exits from being run like this, in words; empty when nothing does."""
        if len(self.thresholds) != n_exits - 1:
            return f"{len(self.thresholds)} thresholds for {n_exits} exits: every exit but the last needs one"
        for name, shares in (("thresholds", self.thresholds), ("hold_threshold", (self.hold_threshold,))):
            if not all(0 <= share <= 1 for share in shares):  # written so that NaN fails as well
                return f"{name} {', '.join(map(str, shares))}: a confidence lies in 0..1"
        if not 1 <= self.repeat <= REPEAT_MAX:
            return f"repeat {self.repeat}: an action is applied for 1 to {REPEAT_MAX} ticks"
        return ""


class SetExits(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="set-exits"):
    """Supervisor -> actor: the fleet wants the exits set like this; with nothing set, like the bundle says.

    Attributes:
        id: of the command, for the answer.
        operating: a setting, or
        point: the index of a point of the acting bundle's frontier.
        max_ops_frac: what a tick may cost on average, as a share of the network without exits.
        left_s: how long this holds from now on; None until further notice.
    """

    id: str
    operating: Operating | None = None
    point: int | None = None
    max_ops_frac: float = 1.0
    left_s: float | None = None


EXITS_ORDER_ENDED = "exits-order-ended"
"""What happened when an actor gives up a `SetExits`: its time is over, or it does not fit a new network."""


class ExitsSet(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="exits-set"):
    """Actor -> supervisor: what came of a `SetExits`.

    Attributes:
        id: of the command.
        why: empty when it was obeyed; otherwise what was wrong, and the former setting stands.
        operating: in force from the next tick on.
        point: index of the frontier's point that this is, if it is one.
    """

    id: str
    why: str
    operating: Operating
    point: int | None


class Hello(msgspec.Struct, frozen=True, tag_field="t", tag="hello"):
    """First words of a child on the control socket."""

    role: Role
    pid: int


class Swap(msgspec.Struct, frozen=True, tag_field="t", tag="swap"):
    """Supervisor -> actor: make this bundle the acting one between two ticks; generation 0 is the installed one."""

    generation: int
    path: str
    sha256: str


class Stop(msgspec.Struct, frozen=True, tag_field="t", tag="stop"):
    """Finish what is in hand and exit 0."""


class ActorReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="actor"):
    """The actor's last second. Counters are totals since the process started.

    Attributes:
        ticks: decisions whose action was applied.
        missed: ticks whose action came after its deadline or not at all.
        safe: ticks answered by the manifest's safe action.
        exits: decisions per exit, one entry an exit.
        latency_p50_s, latency_p99_s, latency_max_s: observation in hand -> action chosen, over the last window.
        episodes: episodes that ended.
        returns: undiscounted returns of the newest of them, at most RETURNS_TOLD, newest last. Reports may be skipped
            on their way; with `episodes` the reader knows which are new.
        faults: named fault -> count since start.
        generation: of the policy that acts now; 0 is the installed bundle.
        acting: a policy decides (False: safe action only).
        first_action_s: process start -> first action applied by a policy, or None.
        cpu_s, rss_bytes: of the process.
        held: ticks that repeated the action before, without inference; counted in no exit.
        operating: the setting of the exits in force.
        point: index of the frontier's point that it is, if it is one.
        has_frontier: compute can be taken away by choosing another point; without, only by forbidding exits.
        network: the one that acts, as it was told; None while none does.
        played: for each of `returns` the generation that played all of that episode; None when a swap fell into it.
        reward, rewarded: sum of the rewards that were seen, and how many.
        exits_s, exits_s2: seconds from observation to answer, one entry an exit: their sum, and that of their squares.
        costs_s: median seconds at each exit that `edgert policy bench` measured on this board; empty when nobody did.
    """

    pid: int
    ticks: int
    missed: int
    safe: int
    exits: list[int]
    latency_p50_s: float
    latency_p99_s: float
    latency_max_s: float
    episodes: int
    returns: list[float]
    faults: dict[str, int]
    generation: int
    acting: bool
    first_action_s: float | None
    cpu_s: float
    rss_bytes: int
    held: int = 0
    operating: Operating | None = None
    point: int | None = None
    has_frontier: bool = False
    network: Swap | None = None
    played: list[int | None] = []
    reward: float = 0.0
    rewarded: int = 0
    exits_s: list[float] = []
    exits_s2: list[float] = []
    costs_s: list[float] = []


class TrainerReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="trainer"):
    """The trainer's last second. Counters survive restarts through the checkpoint unless said otherwise.

    Attributes:
        steps: gradient steps.
        loss: exponential mean of the training loss, or None before the first step.
        transitions: seen in the ring.
        asked, answered, joined: observations asked, answered, and joined to a transition.
        candidates, accepted: networks offered to the gate and let through.
        generation: last accepted.
        checkpoint: last committed generation number.
        faults: named fault -> count since the process started.
        cpu_s, rss_bytes: of the process.
        steps_hz: gradient steps a second lately; None before two reports.
        replay, replay_max: transitions to train on now, and how many are kept at most.
        needed: transitions it takes to train at all.
        taught: of the kept transitions, those that a teacher answered.
        trust: weight of the teacher, 0..1; None where it is not measured.
        rolled_back: networks that acted and were taken back.
        checkpoint_age_s: since the last checkpoint of this process; None before it.
        order, order_told: the last `TrainOrder` that was carried out, and what came of it, in words.
        order_code: and by name: `done`; `nothing-to-do`, as nothing was learned since the last time; `too-early`, as
            there is too little yet to judge a candidate by; or the fault. None before the first.
    """

    pid: int
    steps: int
    loss: float | None
    transitions: int
    asked: int
    answered: int
    joined: int
    candidates: int
    accepted: int
    generation: int
    checkpoint: int
    faults: dict[str, int]
    cpu_s: float
    rss_bytes: int
    steps_hz: float | None = None
    replay: int = 0
    replay_max: int = 0
    needed: int = 0
    taught: int = 0
    trust: float | None = None
    rolled_back: int = 0
    checkpoint_age_s: float | None = None
    order: str = ""
    order_told: str = ""
    order_code: TrainCode | None = None


class Ask(msgspec.Struct, frozen=True, tag_field="t", tag="ask"):
    """Trainer -> supervisor: put this question to a teacher.

    Attributes:
        ask_id: unique on this device; the answer carries it back.
        payload: an encoded `wire.KnowAsk`.
    """

    ask_id: int
    payload: bytes


class Answer(msgspec.Struct, frozen=True, tag_field="t", tag="answer"):
    """Supervisor -> trainer: what came back for `ask_id` (an encoded `wire.KnowAnswer`)."""

    ask_id: int
    payload: bytes


class Candidate(msgspec.Struct, frozen=True, tag_field="t", tag="candidate"):
    """Trainer -> supervisor: a network went through the gate (or did not).

    Attributes:
        generation: its number, from 1.
        path: the bundle file; empty when refused.
        sha256: of the whole file, hex.
        checks: named check -> passed; accepted is `all(checks.values())`.
        detail: named figure -> value, for the log.
    """

    generation: int
    path: str
    sha256: str
    checks: dict[str, bool]
    detail: dict[str, float]


class Swapped(msgspec.Struct, frozen=True, tag_field="t", tag="swapped"):
    """Actor -> supervisor: the outcome of a swap.

    Attributes:
        ok: the new policy acts; otherwise the former one still does and `why` says what was wrong.
        tick: the first tick the new policy decided.
        missed: ticks missed while preparing and swapping.
        prepare_s: background time spent loading, checking and warming.
    """

    generation: int
    ok: bool
    why: str
    tick: int
    missed: int
    prepare_s: float


class Record(msgspec.Struct, frozen=True):
    """What a network earned lately, while it alone acted; newest last.

    Attributes:
        swap: the network; None is the installed one.
        returns: of whole episodes.
        rewards: mean reward a step, one figure a window: for plants without episodes.
        missed: share of the ticks whose deadline was missed, one figure a window.
        not_finite: outputs that were not finite.
        max_exit: the deepest exit that the budget allowed meanwhile: under another, returns mean something else.
    """

    swap: Swap | None = None
    returns: tuple[float, ...] = ()
    rewards: tuple[float, ...] = ()
    missed: tuple[float, ...] = ()
    not_finite: int = 0
    max_exit: int | None = None


class Note(msgspec.Struct, frozen=True):
    """Which network acts, as it is written down: whole or not at all.

    Attributes:
        generation, path, sha256: of it; generation 0 is the installed one, and then `path` is empty.
        best: the network it goes back to, and what it is measured by; None when it need not be measured any more.
        refused: those that were rolled back. They never act again.
    """

    generation: int
    path: str
    sha256: str
    best: Record | None = None
    refused: tuple[Swap, ...] = ()


class Outcome(msgspec.Struct, frozen=True, tag_field="t", tag="outcome"):
    """Supervisor -> trainer: which network acts, and what became of one that it offered.

    Attributes:
        acting: the network that acts now; None is the installed one.
        generation: what this is about; 0 when it is about none, and a trainer that connects is told where it stands.
        what: `swapped` acts now, on trial. Then, once for each network: `kept` stood its trial; `refused` by the actor,
            or known to be bad; `replaced` by another before there was a verdict, perhaps before it acted;
            `rolled-back` was put out again, and `acting` is in its place. A supervisor that starts anew knows only
            which one acts: of one that was on its way there nothing more may be heard.
        why: of all but `swapped` and `acts`.
        return_before, return_after: mean return of what it was measured by, and its own; None when not known. Mean
            reward a step where there are no episodes.
        n: episodes (or windows) that `return_after` is the mean of.
    """

    acting: Swap | None
    generation: int = 0
    what: Fate = "acts"
    why: str = ""
    return_before: float | None = None
    return_after: float | None = None
    n: int = 0


class TrainOrder(msgspec.Struct, frozen=True, tag_field="t", tag="train"):
    """Command-line client -> supervisor, and for `now` on to the trainer.

    Attributes:
        id: the trainer's report carries that of the last `now` it has carried out.
        verb: `now` offers a candidate and commits a checkpoint at once; pausing outlives restarts.
    """

    id: str
    verb: Literal["pause", "resume", "now"]


class TrainReply(msgspec.Struct, frozen=True, tag_field="t", tag="train-reply"):
    """Supervisor -> command-line client: heard; `why` is empty, or why it is of no use."""

    id: str
    why: str = ""


class Happened(msgspec.Struct, frozen=True, tag_field="t", tag="happened"):
    """Any child -> supervisor: something a person would want to know; becomes a durable event."""

    name: str
    detail: dict[str, str | int | float | bool | None]


class ServiceReport(msgspec.Struct, frozen=True, tag_field="t", tag="service"):
    """Placer or chooser -> supervisor, once a second: it lives, and this is what its part of the status shows.

    Attributes:
        detail: plain maps, lists, numbers and text; a few hundred bytes, for it travels with every telemetry.
        carried_bytes: over a link of its own, both ways, since it started.
    """

    detail: dict[str, object] = {}
    carried_bytes: int = 0


class StatusRequest(msgspec.Struct, frozen=True, tag_field="t", tag="status?"):
    """A command-line client -> supervisor."""


class StatusReply(msgspec.Struct, frozen=True, tag_field="t", tag="status"):
    """Supervisor -> command-line client: the document `edgert status --json` prints."""

    status: dict[str, object]


Told = (
    Hello
    | Stop
    | Budget
    | ActorReport
    | TrainerReport
    | Ask
    | Answer
    | Candidate
    | Swap
    | Swapped
    | SetExits
    | ExitsSet
    | Outcome
    | TrainOrder
    | TrainReply
    | Happened
    | ServiceReport
    | StatusRequest
    | StatusReply
)
