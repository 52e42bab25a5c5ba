"""Devices, an edge box and a cloud node in which requests wait for one another: an event simulator, and its oracle.

A request that stays at home takes its service time. One that is sent arrives after a delay and shares the node with all
that are there at that moment; each gets an equal share of the node's speed, less what switching costs. Service times,
delays and scatter are measured (`SETUP`, or `fitted` to real processes). A world holds a number of draws of service and
network for every combination of requests at a node, and answers scatter around those with a mean that is known, so what
a joint action costs on average is known exactly: that average is what the oracle minimises. Learners see single answers
only, and nothing of this file.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.offload.joint import all_places
from edgert.offload.space import (
    PLACES,
    Action,
    Choice,
    Floor,
    Load,
    Outcome,
    Space,
    State,
    Variant,
    full_space,
    paper_space,
    reachable,
)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
FITTED = Path(__file__).parents[1] / "results" / "offload-fit.json"
# Top-5 accuracies and MACs as published for MobileNetV1 at 224 x 224 (tensorflow/models, slim/nets/mobilenet_v1.md).
FAMILY = (
    ("1.0", 569, 0.899, "float32"),
    ("0.75", 317, 0.882, "float32"),
    ("0.5", 150, 0.849, "float32"),
    ("0.25", 41, 0.742, "float32"),
    ("1.0-int8", 569, 0.895, "int8"),
    ("0.75-int8", 317, 0.881, "int8"),
    ("0.5-int8", 150, 0.845, "int8"),
    ("0.25-int8", 41, 0.738, "int8"),
)
VARIANTS = tuple(
    Variant(name=name, accuracy_frac=accuracy, macs=mmacs * 1_000_000, precision=kind, input_bytes=150_528)  # type: ignore[arg-type]  # the table's words are a Literal
    for name, mmacs, accuracy, kind in FAMILY
)
FLOORS = {"none": 0.0, "80": 0.80, "85": 0.85, "89": 0.89, "max": 1.0}
LINKS = ("A", "B", "C", "D")
SKEW = 4.0
LEAST_S = 0.001
TENTH = 0.001
"""Accuracies are published in tenths of a point; the oracle counts what an average floor may lose in these."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    Attributes:
        core_s: of each variant, seconds on one whole core.
        speed: of device, edge and cloud, in whole cores.
        regular_rtt_s, weak_rtt_s: between device and edge.
        cloud_rtt_s, cloud_weak_rtt_s: between edge and cloud.
        network_std, service_std: of the logarithms.
        jitter_s: within which users ask "at once".
        scatter_s: standard deviation that an answer has besides, by place: whatever else runs on a machine.
        stall_frac, stall_s: how often something else holds a request up, and the mean of how long.
        switching_frac: speed that each further request at a node costs.
        devices_std: of the logarithm of how fast end devices are, drawn anew for every world.
    """

    core_s: tuple[float, ...] = (0.0134, 0.0096, 0.0048, 0.0020, 0.0056, 0.0054, 0.0031, 0.0024)
    speed: tuple[float, float, float] = (0.1, 0.2, 0.4)
    regular_rtt_s: float = 0.003
    weak_rtt_s: float = 0.043
    cloud_rtt_s: float = 0.012
    cloud_weak_rtt_s: float = 0.032
    network_std: float = 0.15
    service_std: float = 0.06
    jitter_s: float = 0.004
    scatter_s: tuple[float, float, float] = (0.004, 0.004, 0.004)
    stall_frac: float = 0.02
    stall_s: float = 0.010
    switching_frac: float = 0.03
    devices_std: float = 0.10


SETUP = Setup()


def machine(name: str) -> Setup:
    """Either "fitted" to real processes under quotas, or "idle": as measured on a core where nothing else runs."""
    if name == "idle" or not FITTED.exists():
        return SETUP
    return msgspec.convert(json.loads(FITTED.read_text())["setup"], Setup)


class Case(NamedTuple):
    """One setting.

    Attributes:
        users: 1 to 5.
        links: A all regular; B every other one weak; C all weak; D all weak and the edge's way to the cloud, too.
        busy: share of device, edge and cloud that is other people's.
        flipped: every link of users is the other one.
    """

    users: int
    links: str
    busy: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flipped: bool = False

    @property
    def weak(self) -> tuple[bool, ...]:
        """Of each user's link."""
        plain = {"A": [], "B": range(0, self.users, 2), "C": range(self.users), "D": range(self.users)}[self.links]
        return tuple((user in plain) != self.flipped for user in range(self.users))


class World:
    """One case, with all its noise drawn.

    Attributes:
        case, space: as given.
        draws: of the noise.
    """

    def __init__(self, case: Case, space: Space, seed: int, setup: Setup, draws: int = 6) -> None:
        """Draw everything.

        Args:
            case: the setting.
            space: what may be chosen.
            seed: of the noise.
            setup: what was measured.
            draws: of the noise.
        """
        self.case, self.space, self.draws, self.setup = case, space, draws, setup
        self._oracles: dict[Floor, tuple[Action, float]] = {}
        rng = np.random.default_rng([seed, case.users, ord(case.links), int(case.flipped)])
        users = case.users
        self._place = np.array([PLACES.index(choice.place) for choice in space.choices])
        remote = sorted({choice.variant for choice in space.choices if choice.place != "device"})
        self._digit = np.array([remote.index(c.variant) + 1 if c.place != "device" else 0 for c in space.choices])
        self._variant = np.array([choice.variant for choice in space.choices])
        self._powers = (len(remote) + 1) ** np.arange(users)
        core = np.array(setup.core_s)

        def service(shape: tuple[int, ...], place: int, variant: Ints) -> F64:
            plain = core[variant] / (setup.speed[place] * (1 - case.busy[place]))
            return np.asarray(plain * np.exp(setup.service_std * _even(rng, shape)))

        variants = len(space.variants)
        # Of one seed the same device stays the same, whatever becomes of links and loads.
        unlike = np.exp(setup.devices_std * np.random.default_rng([seed, users]).standard_normal((users, 1)))
        self.home = service((draws, users, variants), 0, np.arange(variants)) * unlike
        combos = np.arange(int(self._powers[-1]) * (len(remote) + 1))
        digit = combos[:, None] // self._powers % (len(remote) + 1)  # (combos, N)
        variant = np.array([0, *remote])[digit]
        self.away = []
        beyond = setup.cloud_weak_rtt_s if case.links == "D" else setup.cloud_rtt_s
        near = np.where(case.weak, setup.weak_rtt_s, setup.regular_rtt_s)
        start = rng.random((draws, users)) * setup.jitter_s if users > 1 else np.zeros((draws, users))
        noise = [np.exp(setup.network_std * _even(rng, (draws, users))) for _ in range(2)]
        for place in (1, 2):
            rtt = near * noise[0] + (beyond * noise[1] if place == 2 else 0.0)  # (draws, N)
            # (N, draws, combinations): what is added up over users lies one behind the other.
            here = np.ascontiguousarray(digit.T > 0)[:, None]
            job = service((draws, *digit.shape), place, variant).astype(np.float32).transpose(2, 0, 1)
            work = np.where(here, job, np.inf).reshape(users, -1)
            arrival = np.where(here, (start + rtt / 2).T[:, :, None].astype(np.float32), np.inf).reshape(users, -1)
            done = share(arrival.astype(np.float32), work.astype(np.float32), setup.switching_frac)
            back = (rtt / 2 - start).T[:, :, None].astype(np.float32)
            response = np.where(here, done.reshape(users, draws, -1) + back, 0.0)
            self.away.append(np.ascontiguousarray(response.transpose(1, 2, 0), np.float32))

    @cached_property
    def home_mean(self) -> F64:
        """(N, variants) seconds at home on average."""
        return np.asarray(self.home.mean(axis=0))

    @cached_property
    def away_mean(self) -> tuple[F64, F64]:
        """(combinations, N) seconds at the edge and in the cloud on average; 0 for who is not there."""
        edge, cloud = (np.asarray(each.mean(axis=0, dtype=np.float64)) for each in self.away)
        return edge, cloud

    def means(self, actions: Ints) -> F64:
        """(M, N) what joint actions cost on average."""
        place, digit = self._place[actions], self._digit[actions]
        user = np.arange(self.case.users)
        found = np.where(place == 0, self.home_mean[user, self._variant[actions]], 0.0)
        for remote, table in zip((1, 2), self.away_mean, strict=True):
            found += table[(np.where(place == remote, digit, 0) * self._powers).sum(axis=1)]
        return np.asarray(found + self.setup.stall_frac * self.setup.stall_s)

    def mean_s(self, action: Action) -> float:
        """The mean over users of what a joint action costs on average."""
        return float(self.means(np.array([action]))[0].mean())

    def steps(self, actions: Ints, rng: np.random.Generator) -> F64:
        """(M, N) seconds that joint actions took this time."""
        place, digit = self._place[actions], self._digit[actions]
        draw = rng.integers(self.draws, size=(self.case.users + 2, len(actions)))
        user = np.arange(self.case.users)
        found = np.where(place == 0, self.home[draw[2:].T, user, self._variant[actions]], 0.0)
        for remote, table in zip((1, 2), self.away, strict=True):
            combo = (np.where(place == remote, digit, 0) * self._powers).sum(axis=1)
            found += table[draw[remote - 1], combo]
        late = (rng.random(place.shape) < self.setup.stall_frac) * rng.exponential(self.setup.stall_s, place.shape)
        # Skewed, of mean 0: means stay exact.
        skewed = rng.gamma(SKEW, 1 / np.sqrt(SKEW), place.shape) - np.sqrt(SKEW)
        return np.asarray(np.maximum(found + late + skewed * np.take(self.setup.scatter_s, place), LEAST_S))

    def outcomes(self, action: Action, rng: np.random.Generator) -> tuple[Outcome, ...]:
        """The same, as learners get it."""
        return tuple(
            Outcome(
                response_s=float(seconds),
                sent_bytes=self.space.variants[self._variant[each]].input_bytes if self._place[each] else 0,
            )
            for each, seconds in zip(action, self.steps(np.array([action]), rng)[0], strict=True)
        )

    def state(self, reported: Case | None = None) -> State:
        """What monitors say; of `reported` where they have not noticed yet."""
        case, setup = reported or self.case, self.setup
        device, edge, cloud = case.busy
        beyond = setup.cloud_weak_rtt_s if case.links == "D" else setup.cloud_rtt_s
        rtts = [setup.weak_rtt_s if weak else setup.regular_rtt_s for weak in case.weak]
        users = tuple(Load(cpu_frac=device, memory_frac=0.3, rtt_s=rtt) for rtt in rtts)
        return State(users=users, edge=Load(cpu_frac=edge, memory_frac=0.3), cloud=Load(cpu_frac=cloud, rtt_s=beyond))

    def oracle(self, floor: Floor) -> tuple[Action, float]:
        """The joint action with the lowest mean, and that mean over users: exhaustive.

        Nodes do not disturb one another, so the best of every set of users at a node and of every loss of accuracy is
        found once, and all ways to spread the users are put together from those.
        """
        if floor not in self._oracles:
            self._oracles[floor] = self._oracle(floor)
        return self._oracles[floor]

    def _oracle(self, floor: Floor) -> tuple[Action, float]:
        users = self.case.users
        accuracy = np.array([variant.accuracy_frac for variant in self.space.variants])
        top = max(accuracy[choice.variant] for choice in self.space.choices)
        lost = np.rint((top - accuracy) / TENTH).astype(np.intp)
        wanted = reachable(self.space, floor)
        room = int(np.floor((top - wanted) / TENTH + 1e-6))
        average = floor.per == "average"
        width = (room * users if average else 0) + 1
        here = np.array([[choice.place == place for choice in self.space.choices] for place in PLACES])
        fine = np.ones(len(self.space.choices), np.bool_) if average else accuracy[self._variant] >= wanted - 1e-9
        options = [np.flatnonzero(here[place] & fine) for place in range(3)]
        tables = [self._best_at(place, options[place], lost, width, average) for place in range(3)]
        best: tuple[float, Action] = (np.inf, ())
        for spread in all_places(users):
            sets = [frozenset(np.flatnonzero(spread == place).tolist()) for place in range(3)]
            ways = [tables[place].get(sets[place]) for place in range(3)]
            if any(way is None for way in ways):
                continue
            (c0, a0), (c1, a1), (c2, a2) = (way for way in ways if way is not None)
            if width == 1:
                total = c0[0] + c1[0] + c2[0]
                picks = (0, 0, 0)
            else:
                total, picks = _cheapest(c0, c1, c2, width)
            if total < best[0]:
                action = np.zeros(users, np.intp)
                for members, chosen, pick in zip(sets, (a0, a1, a2), picks, strict=True):
                    for user, choice in zip(sorted(members), chosen[pick], strict=True):
                        action[user] = choice
                best = (float(total), tuple(int(each) for each in action))
        return best[1], best[0] / users + self.setup.stall_frac * self.setup.stall_s

    def _best_at(
        self, place: int, options: Ints, lost: Ints, width: int, average: bool
    ) -> dict[frozenset[int], tuple[F64, list[tuple[int, ...]]]]:
        """For each set of users at a place: the lowest sum of seconds by loss of accuracy, and the choices."""
        users = self.case.users
        found: dict[frozenset[int], tuple[F64, list[tuple[int, ...]]]] = {}
        for bits in range(1 << users):
            members = [user for user in range(users) if bits >> user & 1]
            if not members:
                found[frozenset()] = (np.zeros(width), [()] * width)
                continue
            if not len(options):
                continue
            picks = np.stack([axis.ravel() for axis in np.meshgrid(*[options] * len(members), indexing="ij")], axis=1)
            if place == 0:
                cost = self.home_mean[members, self._variant[picks]].sum(axis=1)
            else:
                combo = (self._digit[picks] * self._powers[members]).sum(axis=1)
                cost = self.away_mean[place - 1][combo].sum(axis=1)
            spent = lost[self._variant[picks]].sum(axis=1) if average else np.zeros(len(picks), np.intp)
            lowest, choice = np.full(width, np.inf), [tuple[int, ...]()] * width
            order = np.lexsort((cost, spent))
            first = np.r_[True, np.diff(spent[order]) > 0]
            for index in order[first]:
                at = spent[index]
                if at < width:
                    lowest[at], choice[at] = cost[index], tuple(int(each) for each in picks[index])
            for at in range(1, width):
                if lowest[at - 1] <= lowest[at]:
                    lowest[at], choice[at] = lowest[at - 1], choice[at - 1]
            if np.isfinite(lowest).any():
                found[frozenset(members)] = (lowest, choice)
        return found


def _cheapest(a: F64, b: F64, c: F64, width: int) -> tuple[float, tuple[int, int, int]]:
    """The lowest sum of three entries whose indices sum to at most width - 1; entries fall with the index."""
    first, at = np.full(width, np.inf), np.zeros(width, np.intp)
    for index in range(width):
        if not np.isfinite(a[index]) or (index and a[index] == a[index - 1]):
            continue
        total = a[index] + b[: width - index]
        better = total < first[index:]
        first[index:][better] = total[better]
        at[index:][better] = index
    total = first + c[::-1]
    best = int(total.argmin())
    return float(total[best]), (int(at[best]), best - int(at[best]), width - 1 - best)


def _even(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    """Normal draws along the first axis, spread evenly, in an order of chance: few of them have the right mean."""
    level = (np.arange(shape[0]) + 0.5) / shape[0]
    quantile = np.array([NormalDist().inv_cdf(each) for each in level], np.float32)
    quantile /= quantile.std()
    return quantile[rng.random(shape, np.float32).argsort(axis=0)]


def share(arrival: F32, work: F32, switching_frac: float) -> F32:
    """(N, M) when jobs end that share one processor equally, those present at a time; inf where there is no job."""
    left, done = work.copy(), np.full(work.shape, np.inf, np.float32)
    now = np.zeros(work.shape[1], np.float32)
    ahead = arrival.copy()  # inf once a job has arrived, or where there is none
    for _ in range(2 * len(work)):
        comes = ahead.min(axis=0)
        present = np.isfinite(left) & np.isinf(ahead) & np.isinf(done)
        count = present.sum(axis=0).astype(np.float32)
        slowness = np.maximum(count, 1) * (1.0 + switching_frac * np.maximum(count - 1, 0))
        ends = now + np.where(present, left, np.inf).min(axis=0) * slowness
        then = np.minimum(ends, comes)
        moving = np.isfinite(then)
        if not moving.any():
            break
        then = np.where(moving, then, now)
        left -= np.where(present, (then - now) / slowness, 0.0)
        done = np.where(present & (left <= 1e-7), then, done)
        ahead = np.where(ahead <= then, np.inf, ahead)
        now = then
    return done


def spaces(users: int) -> dict[str, Space]:
    """What may be chosen: the paper's ten, all twenty-four, and what those who do not choose models may."""
    full = full_space(VARIANTS, users)

    def only(name: str, *wanted: tuple[int, str]) -> tuple[str, Space]:
        choices = [Choice(variant, place) for place in PLACES for variant, where in wanted if where in (place, "*")]
        return name, Space(users=users, variants=VARIANTS, choices=tuple(choices))

    return {
        "full": full,
        "paper": paper_space(VARIANTS, users),
        **dict(
            [
                only("offload", (0, "*")),
                only("offload-int8", (0, "*"), (4, "*")),
                only("models", *((variant, "device") for variant in range(len(VARIANTS)))),
                only("device", (0, "device")),
                only("edge", (0, "edge")),
                only("cloud", (0, "cloud")),
            ]
        ),
    }
