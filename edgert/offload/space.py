"""The words of offloading: who may ask for what where, what is known before a choice, and what came of it.

One problem has N users (end devices) and one edge and one cloud node. Every user has the same list of choices, each
one variant of a model at one place. N = 1 is one device that chooses for itself, with what it measures and what edge
and cloud report. Free of numpy, so that a supervisor can speak it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from edgert.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Place = Literal["device", "edge", "cloud"]
PLACES: tuple[Place, ...] = ("device", "edge", "cloud")
Precision = Literal["float32", "int8"]
Goal = Literal["response", "energy"]
Action = tuple[int, ...]
"""For each user the index of its choice in `Space.choices`."""
Allowed = tuple[tuple[bool, ...], ...]
"""For each user and each choice: may it be taken now?"""
WEAK_RTT_S = 0.010
"""A link slower than this is "weak" to learners that know two levels only."""
BUSY_FRAC = 0.5
FULL_FRAC = 0.8
ROUNDING = 1e-9


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compute the same thing, as its bundle's manifest tells it.

    Attributes:
        name: for people, and the key under which a node serves it.
        accuracy_frac: 0..1, measured or published, known before any request.
        macs: multiply-accumulates of one inference: a hint of what it costs, never taken for a time.
        precision: of the weights.
        input_bytes: of one request that is sent elsewhere.
        local: whether an end device may hold it.
        remote: whether edge and cloud serve it.
    """

    name: str
    accuracy_frac: float
    macs: int
    precision: Precision = "float32"
    input_bytes: int = 0
    local: bool = True
    remote: bool = True


class Choice(msgspec.Struct, frozen=True):
    """A variant at a place.

    Attributes:
        variant: index in `Space.variants`.
        place: where it runs.
    """

    variant: int
    place: Place


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """All that may be chosen.

    Attributes:
        users: end devices that are decided for together, >= 1.
        variants: in the order that `Choice.variant` counts.
        choices: of every user.
    """

    users: int
    variants: tuple[Variant, ...]
    choices: tuple[Choice, ...]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine says of itself, or is known of it; None is unknown.

    Attributes:
        cpu_frac: busy with other people's work, 0..1.
        memory_frac: in use, 0..1.
        rtt_s: round trip from this end device to the edge; of the edge None; of the cloud from the edge.
        age_s: since it was said.
    """

    cpu_frac: float | None = None
    memory_frac: float | None = None
    rtt_s: float | None = None
    age_s: float = 0.0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before a choice.

    Attributes:
        users: (N,) of each end device.
        edge, cloud: of the two others.
    """

    users: tuple[Load, ...]
    edge: Load = Load()
    cloud: Load = Load()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one user's choice.

    Attributes:
        response_s: from the request to its answer; None when none came (a refusal, a dead link): `failed_s` counts.
        failed_s: how long was waited in vain before something else answered.
        joules: spent on the end device; None where nobody measures.
        sent_bytes: over the air, both ways; 0 at home.
    """

    response_s: float | None
    failed_s: float = 0.0
    joules: float | None = None
    sent_bytes: int = 0


class Floor(msgspec.Struct, frozen=True):
    """How accurate answers must be.

    Attributes:
        accuracy_frac: 0..1; 0 is no floor. The most accurate variant always meets a floor: one above it is that one's.
        per: "user" holds for every single answer, "average" for the mean over the users of one joint action.
    """

    accuracy_frac: float = 0.0
    per: Literal["user", "average"] = "user"


class Guess(msgspec.Struct, frozen=True):
    """What a learner expects of one user's choice.

    Attributes:
        response_s: the expectation.
        std_s: how unsure the expectation is (not how much single answers scatter).
    """

    response_s: float
    std_s: float


class Learner(Protocol):
    """What every learner of a joint choice can do. It has no clock and no dice.

    Attributes:
        steps: joint actions seen.
    """

    steps: int

    def choose(self, state: State, allowed: Allowed, rng: np.random.Generator) -> Action:
        """Decide, and explore: but never outside of `allowed` and the floor.

        Args:
            state: now.
            allowed: see the function of that name.
            rng: chance.

        Returns:
            One choice for each user.

        Raises:
            UsageError: state or mask of another number of users.
        Source:
            of each learner.
        """

    def best(self, state: State, allowed: Allowed) -> Action:
        """Say what looks best; explore nothing and change nothing.

        Args:
            state: now.
            allowed: see the function of that name.

        Returns:
            One choice for each user.

        Raises:
            UsageError: as `choose`.
        Source:
            of each learner.
        """

    def observe(self, state: State, action: Action, outcomes: Sequence[Outcome]) -> None:
        """Learn from what came of an action, of its own or of others.

        Args:
            state: in which it was chosen.
            action: that was taken.
            outcomes: one for each user.

        Returns:
            Nothing.

        Raises:
            UsageError: not as many outcomes as users.
        Source:
            of each learner.
        """

    def save(self) -> bytes:
        """Freeze everything that was learned.

        Returns:
            CBOR bytes.

        Raises:
            nothing.
        Source:
            of each learner.
        """

    def restore(self, data: bytes) -> None:
        """Go on where `save` stopped: the very same next step is taken.

        Args:
            data: of `save`, of a learner of the same kind, goal and settings over the same space and floor.

        Returns:
            Nothing.

        Raises:
            ArtifactError: what was kept is of something else, or torn; nothing was changed.
        Source:
            of each learner.
        """

    def guess(self, state: State) -> tuple[tuple[Guess, ...], ...] | None:
        """Say what is expected of each choice of each user, others not counted.

        Args:
            state: now.

        Returns:
            (users, choices); None from a learner that cannot say how sure it is.

        Raises:
            UsageError: a state of another number of users.
        Source:
            of each learner.
        """


def full_space(variants: Sequence[Variant], users: int) -> Space:
    """Every variant wherever it may run.

    Args:
        variants: at least one that may run on the device.
        users: >= 1.

    Returns:
        Choices ordered by place (device, edge, cloud), then as the variants are.

    Raises:
        UsageError: nobody to decide for, nothing to run, or accuracies that are not in 0..1.
    Source:
        ours: variant x place, the fuller space of which the ten actions of arXiv 2202.10541 are a part.
    """
    choices = [
        Choice(index, place)
        for place in PLACES
        for index, variant in enumerate(variants)
        if (variant.local if place == "device" else variant.remote)
    ]
    return _checked(users, variants, choices)


def paper_space(variants: Sequence[Variant], users: int) -> Space:
    """Each variant at home, and the most accurate one at the edge and in the cloud.

    Args:
        variants: eight of them make the ten actions of the paper.
        users: >= 1.

    Returns:
        len(variants) + 2 choices.

    Raises:
        UsageError: as `full_space`.
    Source:
        arXiv 2202.10541, our reading of its action space (no text of its inner sections was at hand).
    """
    full = most_accurate(variants)
    choices = [Choice(index, "device") for index in range(len(variants))]
    return _checked(users, variants, [*choices, Choice(full, "edge"), Choice(full, "cloud")])


def most_accurate(variants: Sequence[Variant]) -> int:
    """Which variant meets every floor?

    Args:
        variants: at least one.

    Returns:
        The index of the most accurate; of equals the first.

    Raises:
        UsageError: there is none.
    Source:
        the definition.
    """
    if not variants:
        raise UsageError("there is no variant to choose from")
    return max(range(len(variants)), key=lambda index: (variants[index].accuracy_frac, -index))


def accuracy_frac(space: Space, action: Action) -> float:
    """The mean accuracy of a joint action.

    Args:
        space: of the action.
        action: one choice for each user.

    Returns:
        0..1.

    Raises:
        nothing.
    Source:
        the definition.
    """
    return sum(space.variants[space.choices[each].variant].accuracy_frac for each in action) / len(action)


def meets(space: Space, floor: Floor, action: Action) -> bool:
    """Does an action hold the floor?

    Args:
        space: of the action.
        floor: to hold.
        action: one choice for each user.

    Returns:
        True where it does, by user or on average, as the floor says.

    Raises:
        nothing.
    Source:
        ours: an accuracy is a constant of a variant, so a floor is a mask and can be held from the first request.
    """
    wanted = reachable(space, floor) - ROUNDING
    if floor.per == "average":
        return accuracy_frac(space, action) >= wanted
    return all(space.variants[space.choices[each].variant].accuracy_frac >= wanted for each in action)


def reachable(space: Space, floor: Floor) -> float:
    """The floor, or the most that any variant has where that is less.

    Args:
        space: with the variants.
        floor: wanted.

    Returns:
        0..1.

    Raises:
        nothing.
    Source:
        ours: "max" is said as 1.0, and what nobody can reach must not leave a device without any choice.
    """
    best = max(space.variants[choice.variant].accuracy_frac for choice in space.choices)
    return min(floor.accuracy_frac, best)


def allowed(
    space: Space,
    floor: Floor,
    *,
    places: Sequence[frozenset[Place]] | None = None,
    bytes_left: Sequence[int | None] | None = None,
) -> Allowed:
    """What each user may choose now.

    Args:
        space: all there is.
        floor: a floor per user masks; one on average masks nothing here, learners hold it on the joint action.
        places: for each user, those that are up and admit it; None is all of them.
        bytes_left: for each user, what may still be sent for this request; None is no limit.

    Returns:
        (users, choices). Where limits and floor contradict each other the floor wins: a user that is left without a
        choice gets its local variants of the floor, then any variant of the floor.

    Raises:
        UsageError: lists of the wrong length.
    Source:
        ours: what is forbidden is never tried, not even to explore; an answer at home needs nobody's leave.
    """
    for given in (places, bytes_left):
        if given is not None and len(given) != space.users:
            raise UsageError(f"{len(given)} entries for {space.users} users")
    wanted = reachable(space, floor) - ROUNDING if floor.per == "user" else -math.inf
    rows = []
    for user in range(space.users):
        good = tuple(space.variants[choice.variant].accuracy_frac >= wanted for choice in space.choices)
        row = tuple(
            fine
            and (places is None or choice.place in places[user])
            and (bytes_left is None or _fits(space, choice, bytes_left[user]))
            for fine, choice in zip(good, space.choices, strict=True)
        )
        if not any(row):
            home = tuple(fine and choice.place == "device" for fine, choice in zip(good, space.choices, strict=True))
            row = home if any(home) else good
        rows.append(row)
    return tuple(rows)


def level(load: Load) -> int:
    """A machine's state in a few steps, for learners that keep tables.

    Args:
        load: as reported; unknown counts as the worse.

    Returns:
        0..7: busy CPU 1, full memory 2, weak link 4.

    Raises:
        nothing.
    Source:
        arXiv 2202.10541, our reading: CPU busy or free, memory busy or free, link regular or weak.
    """
    busy = load.cpu_frac is None or load.cpu_frac > BUSY_FRAC
    full = load.memory_frac is not None and load.memory_frac > FULL_FRAC
    weak = load.rtt_s is not None and load.rtt_s > WEAK_RTT_S
    return busy + 2 * full + 4 * weak


def levels(state: State) -> tuple[int, ...]:
    """A whole state in steps.

    Args:
        state: of N users.

    Returns:
        N + 2 levels: users, edge, cloud.

    Raises:
        nothing.
    Source:
        see `level`.
    """
    return tuple(level(load) for load in (*state.users, state.edge, state.cloud))


def cost(outcome: Outcome, goal: Goal) -> float | None:
    """What is to be made small.

    Args:
        outcome: of one request.
        goal: response or energy.

    Returns:
        Seconds of waiting, whether an answer came or not; or joules, None where nobody measured them.

    Raises:
        nothing.
    Source:
        ours: waiting in vain is waiting.
    """
    return outcome.joules if goal == "energy" else outcome.failed_s + (outcome.response_s or 0.0)


def _fits(space: Space, choice: Choice, left: int | None) -> bool:
    return choice.place == "device" or left is None or space.variants[choice.variant].input_bytes <= left


def _checked(users: int, variants: Sequence[Variant], choices: Sequence[Choice]) -> Space:
    if users < 1:
        raise UsageError(f"{users} users: there must be one at least")
    if not choices or not variants:
        raise UsageError("there is no variant to choose from")
    wrong = [variant.name for variant in variants if not 0.0 <= variant.accuracy_frac <= 1.0]
    if wrong:
        raise UsageError(f"accuracies are fractions, 0..1; not those of {', '.join(wrong)}")
    return Space(users=users, variants=tuple(variants), choices=tuple(choices))
