"""Swaps, trials and the way back, one event at a time, and in any order with crashes in between."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import bus
from edgert.govern import trial
from edgert.govern.trial import Effects, Networks
from edgert.values import ActorReport, Note, Outcome, Record, Swap, Swapped

BUNDLE = "/p.edgert"
INSTALLED = Swap(0, BUNDLE, "")


def network(generation: int) -> Swap:
    return Swap(generation, f"/gen-{generation}", f"sha-{generation}")


class Device:
    """The actor and the disk, as far as they matter here, and a supervisor that may be cut off after any effect."""

    def __init__(self) -> None:
        self.note: Note | None = None
        self.acts, self.wanted = INSTALLED, INSTALLED
        self.now_s, self.pid, self.ticks, self.missed, self.reward, self.not_finite = 0.0, 1, 0, 0, 0.0, 0
        self.returns: list[tuple[float, int]] = []
        self.networks = trial.open_networks(None, BUNDLE, 0.0)
        self.before: ActorReport | None = None
        self.told: list[Outcome] = []
        self.events: list[bus.Record] = []
        self.cut: int | None = None

    def perform(self, networks: Networks, effects: Effects) -> None:
        for i, effect in enumerate(effects):
            if self.cut is not None and i >= self.cut:
                self.restart_supervisor()
                return
            match effect:
                case bus.Commit(note):
                    self.note = msgspec.json.decode(msgspec.json.encode(note), type=Note)
                case bus.Tell("actor", told):
                    assert isinstance(told, Swap)
                    self.wanted = told
                case bus.Tell("trainer", told):
                    assert isinstance(told, Outcome)
                    self.told.append(told)
                case bus.Record():
                    self.events.append(effect)
                case _:
                    pytest.fail(f"no such effect was expected: {effect}")
        self.networks = networks

    def restart_supervisor(self) -> None:
        self.cut, self.before = None, None
        self.networks = trial.open_networks(self.note, BUNDLE, self.now_s)

    def offer(self, generation: int) -> None:
        effects: Effects = []
        self.perform(trial.offered(self.networks, network(generation), self.now_s, effects), effects)

    def make(self, ok: bool = True, lost: bool = False) -> None:
        """The actor makes the swap it was last told of, and says so."""
        if self.wanted == self.acts:
            return
        told = Swapped(self.wanted.generation, ok, "" if ok else "golden", 1, 0, 0.1)
        if ok:
            self.acts = self.wanted
        self.wanted = self.acts
        effects: Effects = []
        if not lost:
            self.perform(trial.swapped(self.networks, told, self.now_s, effects), effects)

    def crash_actor(self) -> None:
        self.pid += 1
        self.ticks = self.missed = self.not_finite = 0
        self.reward, self.returns = 0.0, []
        noted = self.note.generation if self.note else 0
        self.acts = Swap(noted, self.note.path, self.note.sha256) if noted and self.note else INSTALLED
        self.wanted = self.networks.pending or self.acts

    def act(self, *returns: float, missed_frac: float = 0.0, reward: float = 0.0, max_exit: int = 2) -> None:
        """A second of acting, with these returns."""
        self.now_s += 1.0
        self.ticks += 20
        self.missed += round(20 * missed_frac)
        self.reward += 20 * reward
        self.returns += [(value, self.acts.generation) for value in returns]
        report = ActorReport(
            pid=self.pid, ticks=self.ticks, missed=self.missed, safe=0, exits=[self.ticks], latency_p50_s=0.0,
            latency_p99_s=0.0, latency_max_s=0.0, episodes=len(self.returns), first_action_s=0.1, cpu_s=0.0,
            returns=[value for value, _ in self.returns[-32:]], played=[player for _, player in self.returns[-32:]],
            faults={"output-not-finite": self.not_finite}, generation=self.acts.generation, acting=True, rss_bytes=1,
            network=self.acts, reward=self.reward, rewarded=self.ticks,
        )  # fmt: skip
        effects: Effects = []
        networks = trial.heard(self.networks, self.before, report, max_exit, self.now_s, effects)
        self.before = report
        self.perform(networks, effects)

    def die(self, failures: int) -> None:
        """The actor's process ends, and another begins with what is noted."""
        effects: Effects = []
        networks = trial.died(self.networks, failures, self.now_s, effects)
        unsaid = trial.given_up(networks)
        if unsaid is not None:
            networks = trial.swapped(networks, unsaid, self.now_s, effects)
        self.perform(networks, effects)
        self.crash_actor()

    def fail_to_start(self) -> None:
        """A new actor cannot load the network that is noted, and begins with the installed one."""
        self.crash_actor()
        told = Swapped(self.acts.generation, False, "out of memory", 0, 0, 0.1)
        if self.acts == INSTALLED:
            return
        self.acts = INSTALLED
        effects: Effects = []
        self.perform(trial.swapped(self.networks, told, self.now_s, effects), effects)

    def swap(self, generation: int) -> None:
        self.offer(generation)
        self.make()

    def ends(self, generation: int) -> list[str]:
        return [what for what in self.fates(generation) if what != "swapped"]

    def fates(self, generation: int) -> list[str]:
        return [told.what for told in self.told if told.generation == generation]


def played(rng: random.Random, device: Device, mean: float, episodes: int, **how: Any) -> None:
    for _ in range(episodes):
        if device.fates(device.acts.generation)[-1:] in (["rolled-back"], ["kept"]):
            return
        device.act(rng.gauss(mean, 1), **how)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture
def device(rng: random.Random) -> Device:
    """The installed network has earned about 10 in each of 20 episodes, and has missed no deadline."""
    made = Device()
    played(rng, made, 10, 20)
    return made


def test_a_worse_network_goes_and_the_one_before_it_is_back(device: Device, rng: random.Random) -> None:
    device.swap(1)
    assert device.note == Note(1, "/gen-1", "sha-1", device.networks.best) and device.fates(1) == ["swapped"]
    played(rng, device, 3, 20)
    assert len(device.networks.refused) == 1 and device.fates(1) == ["swapped", "rolled-back"]
    assert device.wanted == INSTALLED, "told between two ticks"
    (event,) = [event for event in device.events if event.name == "policy-rolled-back"]
    assert event.detail["n"] <= 5 and event.detail["after"] < event.detail["before"]
    device.make()
    device.offer(1)
    assert device.wanted == INSTALLED and device.fates(1)[-1] == "refused", "by name from now on"
    assert device.note == Note(0, "", "", refused=(network(1),))
    assert len(device.networks.acting.returns) >= 20, "what it had earned still measures the next one"


def test_a_better_network_is_kept_and_measures_the_next(device: Device, rng: random.Random) -> None:
    device.swap(1)
    played(rng, device, 20, 100)
    kept = device.told[-1]
    assert (kept.generation, kept.what, device.networks.best) == (1, "kept", None)
    assert kept.return_before is not None and kept.return_after is not None and kept.return_after > kept.return_before
    played(rng, device, 20, 20)
    device.swap(2)
    played(rng, device, 10, 100)
    assert device.fates(2) == ["swapped", "rolled-back"] and device.wanted == network(1)


def test_many_networks_each_too_short_lived_to_judge_are_judged_together(device: Device, rng: random.Random) -> None:
    for generation in range(1, 20):
        device.swap(generation)
        device.act(rng.gauss(7, 1))
        if device.networks.refused:
            break
    assert 3 <= generation <= 8 and device.wanted == INSTALLED
    assert device.told[-1].what == "rolled-back" and device.told[-1].n == generation


def test_what_many_short_lived_networks_won_is_not_lost_again(device: Device, rng: random.Random) -> None:
    best: Swap | None = None
    for generation in range(1, 200):
        device.swap(generation)
        device.act(rng.gauss(10 + generation if generation < 40 else 50 - 0.7 * (generation - 40), 1))
        if "kept" in device.fates(generation):
            best = network(generation)
        if device.networks.refused:
            break
    assert best is not None and device.wanted == best, "back to the newest that its line has proven"
    assert generation < 80 and device.told[-1].what == "rolled-back", "long before all of it was lost"
    assert device.told[-1].return_before is not None and device.told[-1].return_before > 30


def test_an_episode_with_a_swap_in_it_counts_for_nobody(device: Device) -> None:
    device.swap(1)
    device.returns.append((-1000.0, None))  # type: ignore[arg-type]  # what the actor says of such an episode
    device.act(10.0)
    assert device.networks.acting.returns == (10.0,)


def test_missed_deadlines_put_a_network_out_whatever_it_earns(device: Device, rng: random.Random) -> None:
    for _ in range(60):
        device.act()
    device.swap(1)
    for _ in range(60):
        if device.networks.refused:
            break
        device.act(rng.gauss(12, 1), missed_frac=0.2)
    assert device.networks.refused == (network(1),)
    assert "deadlines" in device.told[-1].why


def test_without_episodes_the_reward_a_step_is_compared() -> None:
    device = Device()
    for i in range(100):
        device.act(reward=1.0 + 0.01 * (i % 7))
    device.swap(1)
    for i in range(60):
        if device.networks.refused:
            break
        device.act(reward=0.5 + 0.01 * (i % 7))
    assert device.networks.refused == (network(1),) and "reward a step" in device.told[-1].why


def test_an_output_that_is_not_finite_is_enough(device: Device) -> None:
    device.swap(1)
    device.act(10.0)
    device.not_finite += 1
    device.act()
    assert device.networks.refused == (network(1),) and device.wanted == INSTALLED


def test_what_was_earned_under_another_limit_is_not_compared(device: Device, rng: random.Random) -> None:
    device.swap(1)
    for _ in range(30):
        device.act(rng.gauss(1, 1), max_exit=0)
    assert not device.networks.refused and device.networks.acting.returns == ()
    played(rng, device, 1, 10)
    assert device.networks.refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_return_that_is_no_number_is_not_counted_and_leaves_a_note_that_can_be_read(
    device: Device, value: float
) -> None:
    device.act(value, reward=value)
    device.swap(1)
    for _ in range(20):
        device.act(value, reward=value)
    assert device.note is not None and device.note.generation == 1 and len(device.networks.acting.returns) == 0


def test_patience_ends(device: Device) -> None:
    device.swap(1)
    device.act()
    device.now_s += trial.PATIENCE_S
    for _ in range(8):
        device.act()
    assert device.fates(1) == ["swapped", "kept"] and device.networks.best is None


def test_deaths_far_apart_are_not_held_against_a_network(device: Device) -> None:
    device.swap(1)
    for _ in range(2 * trial.DEATHS_MAX):
        device.perform(trial.died(device.networks, 1, device.now_s, []), [])
    assert device.networks.target == network(1) and not device.networks.refused


def test_patience_ends_under_another_limit_too(device: Device) -> None:
    device.swap(1)
    device.act(1.0, max_exit=0)
    device.now_s += trial.PATIENCE_S
    device.act(1.0, max_exit=0)
    assert device.fates(1) == ["swapped", "kept"] and device.networks.best is None


def test_with_nothing_to_compare_with_a_network_is_kept(rng: random.Random) -> None:
    device = Device()
    device.act()
    device.swap(1)
    played(rng, device, 1, 100)
    assert device.fates(1) == ["swapped", "kept"] and "nothing to compare" in device.told[-1].why


def test_a_swap_that_nobody_told_of_is_found_and_noted(device: Device) -> None:
    device.offer(1)
    device.restart_supervisor()  # which knows of no offer
    device.make(lost=True)
    device.act(10.0)
    assert device.note is not None and device.note.generation == 1 and device.networks.target == network(1)
    assert [event.name for event in device.events] == ["swap-found"]


@pytest.mark.parametrize("done", range(5))
def test_a_supervisor_that_dies_in_the_middle_of_a_roll_back_leaves_it_to_its_successor(
    device: Device, rng: random.Random, done: int
) -> None:
    device.swap(1)
    device.cut = done
    while device.cut is not None:
        device.act(rng.gauss(0, 1))
        assert device.now_s < 60, "no roll-back"
        if "policy-rolled-back" in [event.name for event in device.events]:
            break  # all of it was done
    for _ in range(20):
        device.act(rng.gauss(0, 1))
        device.make()
        if done:
            assert device.networks.target == INSTALLED, "it is written down"
    assert device.acts == INSTALLED and device.networks.refused == (network(1),)


def test_a_lost_roll_back_is_told_again(device: Device, rng: random.Random) -> None:
    device.swap(1)
    played(rng, device, 0, 10)
    device.wanted = device.acts  # the message never arrived
    for _ in range(11):
        device.act()
    assert device.wanted == INSTALLED


def test_when_the_best_network_cannot_be_loaded_the_installed_one_acts(device: Device, rng: random.Random) -> None:
    device.swap(1)
    played(rng, device, 20, 100)
    played(rng, device, 20, 20)
    device.swap(2)
    played(rng, device, 0, 20)
    assert device.wanted == network(1)
    device.make(ok=False)
    assert device.wanted == INSTALLED and device.note is not None and device.note.generation == 0
    device.make()
    device.act(1.0)
    assert device.acts == device.networks.target == INSTALLED and device.networks.pending is None


def test_an_actor_that_keeps_dying_on_trial_gets_its_former_network(device: Device) -> None:
    device.swap(1)
    effects: Effects = []
    # It died twice before the swap, of something else.
    for failures in range(3, 3 + trial.DEATHS_MAX):
        assert device.networks.target == network(1)
        device.perform(trial.died(device.networks, failures, device.now_s, effects), effects)
    assert device.networks.target == INSTALLED and device.note is not None and device.note.refused == (network(1),)
    assert trial.died(device.networks, 4, device.now_s, effects) == device.networks, "nothing is on trial any more"


def test_a_refused_candidate_changes_nothing_and_the_trainer_hears_of_it(device: Device) -> None:
    device.offer(1)
    device.make(ok=False)
    assert device.told[-1] == Outcome(None, 1, "refused", "golden") and device.note is None


def test_of_networks_in_a_hurry_the_newest_is_next_and_of_none_is_nothing_heard(device: Device) -> None:
    for generation in (1, 2, 3, 3):
        device.offer(generation)
    assert device.wanted == network(1), "what is under way only the actor knows: one at a time"
    assert [device.fates(generation) for generation in (1, 2, 3)] == [[], ["replaced"], []]
    device.make()
    assert device.acts == network(1) and device.wanted == network(3)
    device.make()
    assert [device.fates(generation) for generation in (1, 3)] == [["swapped", "replaced"], ["swapped"]]
    assert device.told[-2].acting == network(3) and device.told[-2].why == trial.NEWER


def test_a_network_that_is_refused_makes_room_for_the_one_that_waits(device: Device) -> None:
    device.offer(1)
    device.offer(2)
    device.make(ok=False)
    assert device.ends(1) == ["refused"] and device.wanted == network(2)
    device.offer(3)
    for _ in range(2 * trial.DEATHS_MAX):
        device.die(9)
    assert [device.fates(generation) for generation in (2, 3)] == [["refused"], ["refused"]]
    assert "died 3 times on end" in device.told[-1].why and device.networks.pending is None


def test_what_is_on_its_way_when_the_acting_network_goes_is_refused(device: Device, rng: random.Random) -> None:
    device.swap(1)
    device.offer(2)
    device.offer(3)
    device.wanted = device.acts  # the actor has not heard of it
    while not device.ends(1):
        device.act(rng.gauss(0, 1))
    assert [device.fates(generation) for generation in (2, 3)] == [["refused"], ["refused"]]
    assert device.fates(1) == ["swapped", "rolled-back"] and device.networks.waiting is None


def test_the_network_that_is_put_back_has_the_same_patience(device: Device, rng: random.Random) -> None:
    device.swap(1)
    played(rng, device, 20, 100)
    device.swap(2)
    failures = iter(range(1, 99))
    for _ in range(trial.DEATHS_MAX):
        assert device.networks.target == network(2)
        device.die(next(failures))
    assert device.ends(2) == ["rolled-back"] and device.networks.target == network(1)
    for _ in range(trial.DEATHS_MAX):
        assert device.networks.target == device.wanted == network(1), "the last that is known to be good"
        device.die(next(failures))
    assert device.networks.target == device.wanted == INSTALLED
    device.die(next(failures))
    assert device.networks.target == INSTALLED and device.networks.refused == (network(2),)


def test_a_network_on_trial_that_a_new_actor_cannot_load_gives_way_to_the_best_one(
    device: Device, rng: random.Random
) -> None:
    device.swap(1)
    played(rng, device, 20, 100)
    device.swap(2)
    device.fail_to_start()
    assert device.ends(2) == ["rolled-back"] and device.told[-1].why == "out of memory"
    assert device.networks.target == device.wanted == network(1)


def test_an_actor_that_is_back_at_the_best_network_ends_the_trial(device: Device, rng: random.Random) -> None:
    device.swap(1)
    played(rng, device, 20, 100)
    earned = device.networks.acting.returns
    device.swap(2)
    device.acts = device.wanted = network(1)  # the note of the swap could not be written, and the actor began anew
    device.act()
    assert device.networks.target == network(1) and device.networks.acting.returns == earned
    assert device.ends(2) == ["replaced"] and device.ends(1) == ["kept"]


def test_equal_networks_are_seldom_rolled_back() -> None:
    rng, swaps, wrong = random.Random(3), 0, 0
    for _ in range(25):
        device = Device()
        for _ in range(15):
            device.act(float(int(rng.expovariate(0.1))))
        for generation in range(1, 5):
            device.swap(generation)
            swaps += 1
            for _ in range(rng.randrange(4, 20)):
                device.act(float(int(rng.expovariate(0.1))))
                device.make()
        wrong += len(device.networks.refused)
    assert wrong <= 2 * trial.FALSE_ALARM_FRAC * swaps


BAD = ["bad", "bad", "misses"]
CRASHES = ["crash-actor", "crash-supervisor", "cut"]
steps = st.sampled_from(["offer", "again", "make", "refuse", "lost", "good", *BAD, *CRASHES])


@settings(max_examples=150)
@given(history=st.lists(st.tuples(steps, st.integers(0, 3)), max_size=40), seed=st.integers(0, 99))
def test_in_whatever_order_one_network_is_noted_and_no_rolled_back_one_returns(
    history: list[tuple[str, int]], seed: int
) -> None:
    rng, device, newest = random.Random(seed), Device(), 0
    for _ in range(12):
        device.act(rng.gauss(10, 1))
    gone: set[int] = set()
    for what, extra in history:
        match what:
            case "offer":
                newest += 1
                device.offer(newest)
            case "again":
                device.offer(max(1, newest - extra))
            case "make" | "refuse" | "lost":
                device.make(ok=what != "refuse", lost=what == "lost")
            case "good" | "bad":
                for _ in range(1 + 2 * extra):
                    device.act(rng.gauss(10 if what == "good" else 0, 1))
            case "misses":
                for _ in range(10 * extra):
                    device.act(missed_frac=0.5)
            case "crash-actor":
                device.crash_actor()
            case "crash-supervisor":
                device.restart_supervisor()
            case "cut":
                device.cut = extra
        gone |= {bad.generation for bad in device.note.refused} if device.note else set()
        assert device.networks.target.generation not in gone
    device.cut = None
    device.restart_supervisor()
    for _ in range(40):
        device.act()
        device.make()
    noted = device.note.generation if device.note else 0
    assert device.acts == device.networks.target and device.acts.generation == noted
    assert noted not in gone and device.networks.pending is None
    device.crash_actor()
    assert device.acts.generation == noted, "an actor that starts anew begins with the same one"


@settings(max_examples=150)
@given(
    history=st.lists(
        st.tuples(
            st.sampled_from(["offer", "offer", "make", "refuse", "lost", "good", *BAD, "die", "fail"]),
            st.integers(0, 3),
        ),
        max_size=40,
    ),
    seed=st.integers(0, 99),
)
def test_of_every_network_that_was_offered_the_end_is_heard_once(history: list[tuple[str, int]], seed: int) -> None:
    rng, device, newest, failures = random.Random(seed), Device(), 0, 0
    for _ in range(12):
        device.act(rng.gauss(10, 1))
    for what, extra in history:
        failures = failures + 1 if what == "die" else failures * (what not in ("good", "bad"))
        match what:
            case "offer":
                newest += 1
                device.offer(newest)
            case "make" | "refuse" | "lost":
                device.make(ok=what != "refuse", lost=what == "lost")
            case "good" | "bad":
                for _ in range(1 + 2 * extra):
                    device.act(rng.gauss(10 if what == "good" else 0, 1))
            case "misses":
                for _ in range(10 * extra):
                    device.act(missed_frac=0.5)
            case "die":
                device.die(failures)
            case "fail":
                device.fail_to_start()
    for _ in range(60):
        device.act()
        device.make()
    assert device.networks.pending is device.networks.waiting is None and device.acts == device.networks.target
    on_trial = {device.networks.target.generation} if device.networks.best is not None else set()
    for generation in range(1, newest + 1):
        fates = device.fates(generation)
        assert len(device.ends(generation)) == (generation not in on_trial), fates
        assert fates.count("swapped") <= 1, fates


def test_a_note_of_a_trial_is_taken_up_again() -> None:
    best = Record(None, returns=(10.0, 11.0), max_exit=2)
    networks = trial.open_networks(Note(3, "/gen-3", "sha-3", best, (network(2),)), BUNDLE, 5.0)
    assert networks.best == best and networks.target == network(3) and networks.acting.returns == ()
    assert trial.standing(networks) == Outcome(network(3))
    shown = trial.shown(networks)
    assert shown["refused"] == [2] and shown["trial"] == {"against": 0, "returns": 2, "return_mean": 10.5}
