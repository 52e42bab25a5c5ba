from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import bundle
from edgert.bundle import Frontier, Manifest, Point, Reference
from edgert.errors import UsageError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu, ops
from edgert.policy import exits, frontier
from edgert.values import Operating

HEADS = {k: np.random.default_rng(k).normal(size=(400, 5)).astype(np.float32) for k in range(3)}
COSTS = [30, 70, 110]


def point(ops_frac: float, return_frac: float, thresholds: tuple[float, ...] = (0.5, 0.5), repeat: int = 1) -> Point:
    return Point(
        thresholds=thresholds, repeat=repeat, return_mean=1.0, return_frac=return_frac, return_low=0.0,
        return_high=1.0, ops_frac=ops_frac, exit_share=(0.5, 0.25, 0.25), held_share=0.0, episodes=3,
    )  # fmt: skip


POINTS = st.lists(
    st.builds(
        point,
        st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.1]),
        st.sampled_from([0.0, 0.4, 0.8, 1.0]),
        repeat=st.sampled_from([1, 1, 3]),
    ),
    max_size=8,
)


def manifest(points: list[Point] | None) -> Manifest:
    made = None
    if points is not None:
        made = Frontier(random=Reference(0.0, 1), full=Reference(1.0, 1), full_ops=100, points=tuple(points))
    return Manifest(
        name="n", task="t", created="", edgert="", observation=bundle.Observation((1, 1, 1), 1.0),
        action=bundle.Action(2), control_rate_hz=20.0, gamma=0.9, net={}, thresholds=(0.7, 0.7),
        exits=(bundle.Exit(1), bundle.Exit(2), bundle.Exit(3)), safe_action=0, ranges={},
        golden=bundle.Golden(1, 0.0), frontier=made,
    )  # fmt: skip


def test_the_yardstick_is_the_network_with_one_head() -> None:
    spec = NetSpec(
        (8, 8, 2), 3, trunk=((Conv(4, 3), Relu()), (Conv(4, 3), Relu()), (Dense(16), Relu())),
        heads=((MaxPool(2, 2),), (), ()),
    )  # fmt: skip
    alone = NetSpec((8, 8, 2), 3, trunk=((Conv(4, 3), Relu(), Conv(4, 3), Relu(), Dense(16), Relu()),), heads=((),))
    assert [frontier.full_ops(spec)] == ops(alone)
    assert frontier.full_ops(alone) == ops(alone)[0] < ops(spec)[-1]


@given(POINTS)
def test_nothing_beats_a_pareto_point_and_something_beats_every_other(points: list[Point]) -> None:
    best = frontier.pareto(points)
    for each in points:
        beaten = any(
            other.ops_frac <= each.ops_frac
            and other.return_frac >= each.return_frac
            and (other.ops_frac, other.return_frac) != (each.ops_frac, each.return_frac)
            for other in points
        )
        assert beaten != ((each.ops_frac, each.return_frac) in {(b.ops_frac, b.return_frac) for b in best})
    assert [b.ops_frac for b in best] == sorted({b.ops_frac for b in best})


@given(POINTS, st.floats(0, 1.2), st.floats(0, 1.2))
def test_the_best_point_within_the_limit_is_picked_and_tighter_is_never_dearer(
    points: list[Point], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    tight, wide = frontier.pick(points, low), frontier.pick(points, high)
    if not points:
        assert tight is wide is None
        return
    assert tight is not None and wide is not None
    assert points[tight].ops_frac <= points[wide].ops_frac
    within = [p.return_frac for p in points if p.ops_frac <= high]
    cheapest = min([p.ops_frac for p in points if p.repeat == 1] or [p.ops_frac for p in points])
    if high >= cheapest:
        assert points[wide].return_frac == max(within)
    else:
        assert points[wide].ops_frac <= cheapest


def test_scarcity_does_not_make_anybody_act_blindly() -> None:
    points = [point(0.1, 0.03, repeat=4), point(0.2, 0.3, repeat=2), point(0.3, 0.5), point(0.5, 0.9, repeat=2)]
    assert [frontier.pick(points, limit) for limit in (0.0, 0.1, 0.2, 0.3, 0.5)] == [2, 2, 2, 2, 3]
    assert frontier.pick([point(0.1, 0.6, repeat=4), point(0.3, 0.5)], 0.0) == 0, "unless it is better, too"
    assert frontier.pick(points[:2], 0.0) == 0


@pytest.mark.parametrize(
    ("pinned", "wanted", "point_", "limit", "thresholds"),
    [
        (None, None, None, 1.0, (0.7, 0.7)),  # the bundle's own
        (None, Operating((0.1, 0.2)), None, 1.0, (0.1, 0.2)),
        (None, None, 2, 1.0, (0.3, 0.3)),
        ((0.9, 0.9), Operating((0.1, 0.2)), 2, 0.1, (0.9, 0.9)),  # the configuration stands above all
        (None, None, None, 0.6, (0.2, 0.2)),  # dearer than allowed: the best within
        (None, Operating((0.1, 0.1)), None, 0.6, (0.1, 0.1)),  # asked for, and cheap enough as measured
        (None, Operating((0.1, 0.2)), None, 0.6, (0.2, 0.2)),  # of unknown cost
        (None, None, 2, 0.1, (0.1, 0.1)),  # nothing is that cheap: the cheapest
    ],
)
def test_who_has_the_say(
    pinned: tuple[float, ...] | None,
    wanted: Operating | None,
    point_: int | None,
    limit: float,
    thresholds: tuple[float, ...],
) -> None:
    made = manifest([point(0.3, 0.5, (0.1, 0.1)), point(0.5, 0.9, (0.2, 0.2)), point(0.8, 1.0, (0.3, 0.3))])
    found = frontier.settle(made, pinned=pinned, wanted=wanted, point=point_, max_ops_frac=limit)
    assert found.operating.thresholds == thresholds
    assert found.point == {(0.1, 0.1): 0, (0.2, 0.2): 1, (0.3, 0.3): 2}.get(thresholds)


@pytest.mark.parametrize(
    ("advised", "changes", "thresholds"),
    [
        (2, {}, (0.3, 0.3)),  # what the budget advises, where nobody else says anything
        (0, {"max_ops_frac": 0.3}, (0.1, 0.1)),
        (0, {"max_ops_frac": 0.5, "point": 2}, (0.1, 0.1)),  # what the fleet wants is too dear
        (0, {"point": 2}, (0.3, 0.3)),  # and here it is not
        (2, {"max_ops_frac": 0.6}, (0.2, 0.2)),  # the fleet's limit is below it
        (9, {}, (0.7, 0.7)),  # of another bundle's frontier
        (-1, {}, (0.7, 0.7)),
        (1, {"pinned": (0.9, 0.9)}, (0.9, 0.9)),
    ],
)
def test_what_the_budget_advises(advised: int, changes: dict[str, object], thresholds: tuple[float, ...]) -> None:
    made = manifest([point(0.3, 0.5, (0.1, 0.1)), point(0.5, 0.9, (0.2, 0.2)), point(0.8, 1.0, (0.3, 0.3))])
    asked: dict[str, object] = {"pinned": None, "wanted": None, "point": None, "max_ops_frac": 1.0, **changes}
    found = frontier.settle(made, advised=advised, **asked)  # type: ignore[arg-type]  # a table of changes
    assert found.operating.thresholds == thresholds


@pytest.mark.parametrize("points", [None, []])
def test_without_a_frontier_a_limit_changes_nothing_here(points: list[Point] | None) -> None:
    found = frontier.settle(manifest(points), pinned=None, wanted=None, point=None, max_ops_frac=0.1)
    assert found == frontier.Setting(Operating((0.7, 0.7)), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"wanted": Operating((0.5,))},
        {"wanted": Operating((0.5, 0.5, 0.5))},
        {"wanted": Operating((0.5, 1.5))},
        {"wanted": Operating((0.5, math.nan))},
        {"wanted": Operating((0.5, 0.5), repeat=0)},
        {"wanted": Operating((0.5, 0.5), hold_threshold=math.nan)},
        {"pinned": (0.5,)},
        {"pinned": (0.5, math.nan)},
        {"point": 1},
        {"point": -1},
    ],
)
def test_a_setting_that_cannot_be_run_is_refused(changes: dict[str, object]) -> None:
    asked: dict[str, object] = {"pinned": None, "wanted": None, "point": None, "max_ops_frac": 1.0, **changes}
    with pytest.raises(UsageError):
        frontier.settle(manifest([point(0.3, 0.5)]), **asked)  # type: ignore[arg-type]  # a table of changes


def test_normalised_is_one_for_the_full_network_and_its_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    full, random = rng.normal(20, 5, 400), rng.normal(2, 1, 400)
    assert frontier.normalised(full, full, random, rng)[0] == 1
    covered = 0
    for _ in range(200):
        made = (rng.normal(11, 5, 40), rng.normal(20, 5, 160), rng.normal(2, 1, 160))
        estimate, low, high = frontier.normalised(*made, rng, draws=400)
        assert low < estimate < high
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_full_network_that_is_as_bad_as_chance_normalises_nothing() -> None:
    rng = np.random.default_rng(0)
    for full in (np.zeros(5), rng.normal(0.01, 1, 30)):
        with pytest.raises(UsageError, match="nothing can be normalised"):
            frontier.normalised(np.ones(5), full, np.zeros(30) if len(full) == 5 else rng.normal(0, 1, 30), rng)


def test_candidates_spread_from_the_first_exit_alone_to_the_full_network() -> None:
    settings = frontier.candidates(HEADS, COSTS, 10)
    plain = [each for each in settings if each.repeat == 1]
    assert len(settings) == len(set(settings)) and len(plain) <= 12 < len(settings) <= 12 * 3
    assert Operating((1.0, 1.0)) in plain and Operating((0.0, 0.0)) in plain
    assert all(each.fault(3) == "" for each in settings)
    costs = sorted(float(np.array(COSTS)[exits.taken(HEADS, each.thresholds)].mean()) for each in plain)
    assert (costs[0], costs[-1]) == (30, 110)
    assert max(np.diff(costs)) < 25, "no wide gap"
    assert {each.repeat for each in settings} == {1, 2, 4}


def test_candidates_of_a_confidence_that_knows_keep_what_is_right() -> None:
    rng, n = np.random.default_rng(0), 500
    easy = rng.random(n) < 0.5
    last = np.zeros((n, 3), np.float32)
    last[:, 0] = 1.0
    first = last.copy()
    first[~easy] = [0.0, 1.0, 0.0]
    first[:, 2] = np.where(easy, 2.0, -2.0) + rng.normal(0, 0.1, n)
    found = frontier.candidates({0: first, 1: last}, [10, 100], 8, repeats=())
    half = min(found, key=lambda each: abs(float(exits.taken({0: first, 1: last}, each.thresholds).mean()) - 0.5))
    assert (exits.taken({0: first, 1: last}, half.thresholds) == 0)[easy].mean() > 0.9
    assert not (exits.taken({0: first, 1: last}, half.thresholds) == 0)[~easy].any()


@pytest.mark.parametrize("n_exits", [1, 2, 5, 10])
def test_candidates_for_any_number_of_exits(n_exits: int) -> None:
    heads = {k: np.random.default_rng(k).normal(size=(60, 4)).astype(np.float32) for k in range(n_exits)}
    found = frontier.candidates(heads, list(range(10, 10 + n_exits)), 6)
    assert all(each.fault(n_exits) == "" for each in found)
    assert found == [Operating(())] if n_exits == 1 else len(found) > 3


def test_candidates_need_observations_and_costs() -> None:
    for heads, costs in ((HEADS, [1, 2]), ({0: np.zeros((0, 4), np.float32)}, [1])):
        with pytest.raises(UsageError):
            frontier.candidates(heads, costs, 5)


def test_a_point_says_what_was_played() -> None:
    made = frontier.as_point(
        Operating((0.5, 0.5), 2, 0.9), [60, 20, 10], 10, COSTS, np.array([1.0, 3.0]), 100, [0.5, 0.2, 0.8]
    )
    assert made.ops_frac == pytest.approx((60 * 30 + 20 * 70 + 10 * 110) / 100 / 100)
    assert (made.exit_share, made.held_share, made.return_mean, made.episodes) == ((0.6, 0.2, 0.1), 0.1, 2.0, 2)
    assert made.operating == Operating((0.5, 0.5), 2, 0.9)
    assert frontier.cost_s(made, [1.0, 2.0, 4.0]) == pytest.approx(0.6 + 0.4 + 0.4)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Point) == made
    with pytest.raises(UsageError):
        frontier.cost_s(made, [1.0])
    with pytest.raises(UsageError):
        frontier.as_point(Operating(()), [0], 0, [1], np.array([1.0]), 1, [0.0, 0.0, 0.0])
