"""Trust: good teachers are soon believed, useless and hostile ones never, and nothing is believed for ever."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.knowledge import trust as module
from edgert.knowledge.trust import BLOCK, CREDIT_BLOCKS, PATIENCE_BLOCKS, WINDOW, Lessons, Trust, TrustState

GAMMA = 0.9
SIDE = 12


class Corridor:
    """A walk with a reward at the right end, whose true values are known: state s, actions left, stay, right."""

    def __init__(self, seed: int, pays: float = 1.0) -> None:
        self.rng, self.pays = np.random.default_rng(seed), pays
        value = np.zeros(SIDE)
        for _ in range(200):
            value = self.q(value).max(1)
        self.true = self.q(value)

    def q(self, value: np.ndarray) -> np.ndarray:
        to = np.clip(np.arange(SIDE)[:, None] + [-1, 0, 1], 0, SIDE - 1)
        over = to == SIDE - 1
        return np.where(over, self.pays, GAMMA * value[to])

    def lessons(self, n: int, told: np.ndarray, wisdom: float = 0.3) -> Lessons:
        """Transitions of a student that walks at random, or as is right with probability `wisdom`."""
        state, rows = 0, []
        for _ in range(n):
            action = 2 if self.rng.random() < wisdom else int(self.rng.integers(3))
            to = int(np.clip(state + action - 1, 0, SIDE - 1))
            rows.append((state, action, to))
            state = 0 if to == SIDE - 1 else to
        s, a, to = np.array(rows).T
        over = to == SIDE - 1
        own = np.zeros(SIDE)
        return Lessons(
            told=told[s].astype(np.float32),
            value=told[s].max(1).astype(np.float32),
            next_value=told[to].max(1).astype(np.float32),
            action=a,
            reward=np.where(over, self.pays, 0).astype(np.float32),
            terminated=over,
            critic=own[s].astype(np.float32),
            next_critic=own[to].astype(np.float32),
            favourite=a,
        )


def judged(told: np.ndarray, world: Corridor, blocks: int = 40) -> Trust:
    trust = Trust("q", GAMMA)
    trust.judge(world.lessons(blocks * BLOCK, told))
    return trust


def turned(q: np.ndarray) -> np.ndarray:
    """The same values of states, but the worst action is called the best."""
    return q.max(1, keepdims=True) + q.min(1, keepdims=True) - q


def test_a_good_teacher_is_soon_believed_and_an_unknown_one_is_not() -> None:
    world, trust = Corridor(0), Trust("q", GAMMA)
    assert (trust.weight, trust.appetite) == (0.0, 1.0)
    trust.judge(world.lessons(20 * BLOCK, world.true))
    assert trust.weight == 1.0 and not trust.off
    trust.judge(world.lessons(400 * BLOCK, world.true, wisdom=0.95))
    assert trust.weight == 1.0, "nor is it lost when the student does nearly always what it says"


def test_one_that_is_vouched_for_is_believed_at_once_and_by_its_own_merit_in_the_end() -> None:
    world, trust = Corridor(0), Trust("q", GAMMA, vouched=True)
    assert trust.weight == 1.0 and not trust.state.shown
    for _ in range(20):
        trust.judge(world.lessons(BLOCK, world.true))
        assert trust.weight > 0.4
    assert trust.state.shown and trust.weight == 1.0


@pytest.mark.parametrize("bad", [lambda q: -q, turned, lambda q: np.random.default_rng(7).normal(0, 1, q.shape)])
def test_credit_runs_out(bad: object) -> None:
    world, trust = Corridor(3), Trust("q", GAMMA, vouched=True)
    for block in range(1, CREDIT_BLOCKS + 1):
        trust.judge(world.lessons(BLOCK, bad(world.true)))  # type: ignore[operator]  # a lambda
        assert trust.weight <= trust.proof <= 1 - block / CREDIT_BLOCKS + 0.2
    assert trust.weight == 0.0
    assert Trust("q", GAMMA, trust.state, vouched=True).weight == 0.0, "nor is it given anew after a restart"


def test_a_table_that_knows_nothing_is_hardly_ever_believed() -> None:
    """Eleven states are so few that some tables are right by chance; networks in real games are not."""
    believed = 0
    for seed in range(16):
        told = np.random.default_rng(100 + seed).normal(0, 1, (SIDE, 3))
        trust = judged(told, Corridor(seed), blocks=PATIENCE_BLOCKS * 5 // 4)
        believed += trust.weight > 0
        assert (
            trust.weight > 0
            or trust.state.shown
            or trust.off
            in (
                "nothing-shown",
                "preferences",
                "rewards",
                "disadvantage",
            )
        )
        assert not trust.off or trust.appetite == 0.0
    assert believed <= 2


@pytest.mark.parametrize("hostile", [lambda q: -q, turned, lambda q: -5 * q + 3])
def test_an_adversary_is_never_believed(hostile: object) -> None:
    world = Corridor(3)
    trust = Trust("q", GAMMA)
    for _ in range(PATIENCE_BLOCKS):
        trust.judge(world.lessons(BLOCK, hostile(world.true)))  # type: ignore[operator]  # a lambda
        assert trust.weight == 0.0
    assert trust.off


def test_a_teacher_that_turns_bad_is_found_out_by_name() -> None:
    world = Corridor(5)
    trust = judged(world.true, world)
    assert trust.weight == 1.0
    trust.judge(world.lessons(200 * BLOCK, turned(world.true)))
    assert trust.off == "preferences" and trust.weight == 0.0


def test_noise_is_forgiven() -> None:
    world = Corridor(7)
    told = world.true + np.random.default_rng(1).normal(0, 0.03, (SIDE, 3))
    assert judged(told, world, blocks=100).weight > 0.5


def test_scale_does_not_matter_but_for_claims() -> None:
    world = Corridor(9)
    assert judged(0.01 * world.true, world, blocks=60).weight == 1.0


def test_without_any_reward_preferences_are_half_believed_and_only_after_a_while() -> None:
    world = Corridor(11)
    lessons = world.lessons(20 * BLOCK, world.true, wisdom=0.0)
    silent = lessons._replace(reward=np.zeros_like(lessons.reward), terminated=np.zeros_like(lessons.terminated))
    trust = Trust("q", GAMMA)
    trust.judge(silent)
    assert trust.weight == 0.0
    trust.judge(silent)
    assert 0.0 < trust.weight <= 0.5


def without_reward(lessons: Lessons) -> Lessons:
    """A block of a walk in which none was met."""
    kept = np.resize(np.flatnonzero(~lessons.terminated), len(lessons.action))
    return Lessons._make(column[kept] for column in lessons)


@pytest.mark.parametrize("every", [1000, 24, 12])
def test_rare_rewards_do_not_switch_a_good_teacher_off(every: int) -> None:
    for seed in range(4):
        world, trust = Corridor(seed), Trust("q", GAMMA)
        for block in range(1, 500):
            lessons = world.lessons(BLOCK, world.true)
            trust.judge(lessons if block % every == 0 else without_reward(lessons))
            assert not trust.off
        assert trust.state.shown is (every < 1000)
        assert trust.state.shown or trust.appetite <= 1.0


def test_who_could_show_nothing_for_long_is_asked_little() -> None:
    world, trust = Corridor(2), Trust("q", GAMMA)
    lessons = without_reward(world.lessons(BLOCK, world.true))
    same = lessons._replace(told=np.ones_like(lessons.told), value=np.ones_like(lessons.value))
    for _ in range(PATIENCE_BLOCKS):
        assert trust.appetite == 1.0
        trust.judge(same._replace(next_value=same.value))
    assert trust.appetite == 0.1 and trust.weight == 0.0 and not trust.off


@pytest.mark.parametrize("reward", [np.nan, np.inf, -1e20])
def test_a_teacher_is_not_blamed_for_rewards_that_are_no_numbers(reward: float) -> None:
    world = Corridor(1)
    trust = judged(world.true, world)
    lessons = world.lessons(BLOCK, world.true)
    lessons.reward[3] = reward
    trust.judge(lessons)
    assert not trust.off and trust.weight == 1.0


def test_a_student_that_lost_its_mind_leaves_no_trace_in_the_evidence() -> None:
    world = Corridor(1)
    trust = judged(world.true, world)
    lessons = world.lessons(BLOCK, world.true)
    before = msgspec.json.encode(trust.state)
    trust.judge(lessons._replace(critic=np.full_like(lessons.critic, np.nan)))
    assert msgspec.json.encode(trust.state) == before


def test_policies_are_judged_by_their_logits_and_values() -> None:
    world = Corridor(13)
    lessons = world.lessons(60 * BLOCK, world.true)
    trust = Trust("policy", GAMMA)
    trust.judge(lessons._replace(told=3 * lessons.told))
    assert trust.weight == 1.0
    trust = Trust("policy", GAMMA)
    trust.judge(lessons._replace(told=-3 * lessons.told))
    assert trust.weight == 0.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_how_evidence_is_cut_does_not_matter(parts: list[int]) -> None:
    world = Corridor(1)
    lessons = world.lessons(sum(parts), world.true)
    whole, cut = Trust("q", GAMMA), Trust("q", GAMMA)
    whole.judge(lessons)
    start = 0
    for n in parts:
        cut.judge(Lessons._make(column[start : start + n] for column in lessons))
        start += n
    assert msgspec.json.encode(whole.state) == msgspec.json.encode(cut.state)


@pytest.mark.parametrize("size", [3e38, 1e20])
def test_values_beyond_all_sense_are_no_values(size: float) -> None:
    world = Corridor(0)
    trust = judged(world.true, world)
    trust.judge(world.lessons(2 * BLOCK, size * (world.true - 0.5)))
    assert trust.off == "not-finite" and trust.weight == 0.0
    assert msgspec.json.decode(msgspec.json.encode(trust.state), type=TrustState).off == "not-finite"


def test_columns_must_fit() -> None:
    lessons = Corridor(0).lessons(4, Corridor(0).true)
    with pytest.raises(UsageError, match="different lengths"):
        Trust("q", GAMMA).judge(lessons._replace(reward=lessons.reward[:2]))


def test_a_restart_goes_on_with_what_was_known() -> None:
    world = Corridor(2)
    trust = judged(world.true, world)
    trust.episode(1.0, 10, 0.9)
    other = Trust("q", GAMMA, msgspec.json.decode(msgspec.json.encode(trust.state), type=TrustState))
    assert other.weight == trust.weight == 1.0


def proven() -> Trust:
    trust = Trust("q", GAMMA)
    trust.state.shown = True
    return trust


def live(trust: Trust, value: float, n: int, *, length: int = 50, claim: float = 10.0, noise: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    for _ in range(n):
        trust.episode(value + noise * float(rng.normal()), length, claim)


@pytest.mark.parametrize(("first", "last", "claim"), [(0.0, 10.0, 10.0), (-100.0, -50.0, -60.0), (5.0, 6.0, 1.0)])
def test_who_was_overtaken_has_no_weight(first: float, last: float, claim: float) -> None:
    trust = proven()
    live(trust, first, 5, claim=claim)
    assert trust.weight == (1.0 if first < claim else 0.0)
    live(trust, last, WINDOW, claim=claim)
    assert trust.weight == 0.0 and not trust.off, "it may be needed again"
    assert 0 < trust.appetite <= 0.1


def test_half_of_the_way_is_half_of_the_weight_and_a_relapse_brings_it_back() -> None:
    trust = proven()
    live(trust, 0.0, 5)
    live(trust, 5.0, WINDOW)
    assert trust.weight == pytest.approx(0.5)
    live(trust, 0.0, WINDOW)
    assert trust.weight == pytest.approx(1.0)


def test_few_episodes_decide_nothing() -> None:
    trust = proven()
    live(trust, 100.0, 4)
    assert trust.weight == 1.0


def test_a_teacher_that_keeps_half_of_its_promises_has_less_weight() -> None:
    world = Corridor(21)
    chance = np.random.default_rng(4)
    told = np.stack([row if chance.random() < 0.5 else row[chance.permutation(3)] for row in world.true])
    half, whole = judged(told, world, blocks=100), judged(world.true, Corridor(21), blocks=100)
    assert half.kept < 0.9 and whole.kept == 1.0
    assert half.weight < whole.weight == 1.0


def test_a_luckless_spread_of_returns_is_not_called_overtaking() -> None:
    trust = proven()
    live(trust, 0.0, 5)
    live(trust, 10.0, 20, noise=40.0)
    assert trust.weight > 0.0


def test_a_claim_that_following_does_not_keep_is_corrected() -> None:
    trust = proven()
    trust.state.shortfall = -0.8
    live(trust, 0.0, 5)
    live(trust, 5.0, WINDOW)
    assert trust.weight == 0.0, "10 - 0.8 / (1 - 0.9) is 2, and the student earns 5"


def test_a_teacher_that_leads_nowhere_loses_patience_and_progress_keeps_it() -> None:
    stuck, rising = proven(), proven()
    for window in range(40):
        live(stuck, 0.0, 20, length=200)
        live(rising, 0.2 * window, 20, length=200)
    assert stuck.weight < 0.01
    assert rising.state.patience == 1.0


def test_who_does_what_the_teacher_says_and_gets_no_further_is_let_go_sooner() -> None:
    cloned, learning = proven(), proven()
    cloned.state.agreement = 0.9
    for trust in (cloned, learning):
        live(trust, 0.0, 200, length=50)
    assert cloned.weight == 0.0 < learning.weight


def test_what_was_won_with_the_teacher_and_lost_without_brings_it_back() -> None:
    trust = proven()
    live(trust, 5.0, 400, length=50)
    assert trust.state.patience < 0.5
    live(trust, 1.0, 100, length=50)
    assert trust.state.patience == 1.0


def test_what_was_won_without_the_teacher_does_not_bring_it_back() -> None:
    trust = proven()
    live(trust, 1.0, 600, length=50)
    patience = trust.state.patience
    live(trust, 5.0, 200, length=50)
    live(trust, 1.0, 200, length=50)
    assert trust.state.patience <= patience < module.LET_GO_FRAC


def test_credit_stands_in_for_promises_that_could_not_be_kept_yet() -> None:
    stranger, known = Trust("q", GAMMA), Trust("q", GAMMA, vouched=True)
    for trust in (stranger, known):
        trust.state.shown, trust.state.promised, trust.state.blocks = True, 1.0, 12
    assert (stranger.weight, known.weight) == (0.0, 0.75)


def test_who_went_its_own_way_and_earns_more_than_by_obeying_has_overtaken() -> None:
    trust = proven()
    live(trust, 0.0, 5)
    trust.state.likeness = 0.9
    live(trust, 3.0, WINDOW)
    assert trust.weight > 0.0, "the teacher claims 10, and who obeys it may still get there"
    trust.state.likeness = 0.5
    live(trust, 3.0, WINDOW)
    assert trust.weight > 0.0, "no more than by obeying"
    live(trust, 4.0, WINDOW)
    assert trust.weight == 0.0, "it was told how to earn 3, and earns 4 otherwise"
    live(trust, 1.0, WINDOW)
    assert trust.weight > 0.0, "which it has lost again"


def test_a_fall_after_a_swap_halves() -> None:
    trust = proven()
    trust.swapped(10.0, 12.0, 20)
    trust.swapped(10.0, 8.0, 3)
    assert trust.weight == 1.0
    trust.swapped(10.0, 8.0, 20)
    assert trust.weight == 0.5


@pytest.mark.parametrize(
    ("rows", "contradictions", "repeats", "not_finite", "off"),
    [
        (np.zeros((80, 3)), 0, 0, 0, "constant"),
        (np.arange(240).reshape(80, 3), 0, 0, 0, ""),
        (np.zeros((20, 3)), 0, 0, 0, ""),
        (np.zeros((0, 3)), 8, 10, 0, "contradictory"),
        (np.zeros((0, 3)), 8, 100, 0, ""),
        (np.zeros((0, 3)), 0, 0, 4, "not-finite"),
    ],
)
def test_answers_as_such(rows: np.ndarray, contradictions: int, repeats: int, not_finite: int, off: str) -> None:
    trust = Trust("q", GAMMA)
    trust.rows(rows.astype(np.float32), contradictions, repeats, not_finite)
    assert trust.off == off


def test_false_alarms_are_rare() -> None:
    """A teacher exactly at the edge of usefulness: evidence of mean 0, the worst that a sound one may give."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        trust = Trust("q", GAMMA)
        for seen in rng.uniform(-1, 1, 200):
            trust._watch("rewards", float(seen))
        alarms += bool(trust.off)
    assert alarms <= 20 + 5, f"{alarms} alarms: Ville's bound for 200 looks is {200 * np.exp(-module.ALARM):.2f} a run"


def test_believing_the_useless_is_rare() -> None:
    """Random evidence of mean `LEAST_PREFERENCE` or 0: at most one teacher in twenty is believed."""
    rng, believed = np.random.default_rng(1), 0
    for _ in range(200):
        bettor = TrustState().preferences
        worth = []
        for seen in rng.uniform(-0.9, 1.1, 128):
            bettor.see((float(seen) - module.LEAST_PREFERENCE) / (1 + module.LEAST_PREFERENCE))
            worth.append(bettor.log_wealth)
        believed += max(worth) >= module.SURE
    assert believed <= 0.05 * 200 + 6
