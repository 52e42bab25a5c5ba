"""The act loop with a scripted plant and a stub runtime: no process, no socket, no waiting for a rate."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, config, quant
from edgert.errors import ArtifactError, ConfigError
from edgert.nets import F32, U8
from edgert.policy import artifact, exits, hold
from edgert.ports import ipc
from edgert.ports.plant import Observation
from edgert.ports.plant.simulated import SimulatedPlant
from edgert.ports.process import Layout
from edgert.ports.ring import EXPLORED, SAFE, TERMINATED, TRUNCATED, RingReader
from edgert.ports.runtime import Inference
from edgert.ports.runtime.numpy import NumpyRuntime
from edgert.programs import actor as program
from edgert.programs.actor import Actor
from edgert.values import ActorReport, Budget, ExitsSet, Happened, Hello, Operating, SetExits, Swap, Swapped

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
MANIFEST = bundle.read(DATA).manifest
SHAPE = MANIFEST.observation.shape


class Plant:
    """Shows what the test put on its list, and remembers what it was told to do."""

    paced = True
    last_fault = ""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.shows: list[Observation | None] = []
        self.applied: list[tuple[int, int, float | None, int]] = []
        self.calls: list[str] = []
        self.closed = False

    def observe(self, timeout_s: float) -> Observation | None:
        self.calls.append("observe")
        return self.shows.pop(0) if self.shows else None

    def apply(self, action: int, *, exit: int, confidence: float | None, generation: int) -> None:
        self.calls.append("apply")
        self.applied.append((action, exit, confidence, generation))

    def close(self) -> None:
        self.closed = True


class Stub:
    """Answers with what it was given, at the first exit whose threshold is -inf, or the last."""

    name = "stub"

    def __init__(self, head: list[float]) -> None:
        self.head = head
        self.asked: list[F32] = []
        self.closed = False

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        self.asked.append(threshold_logits.copy())
        taken = [*np.isneginf(threshold_logits), True].index(True)
        return Inference(np.array(self.head, np.float32), taken)

    def close(self) -> None:
        self.closed = True


def shown(
    seq: int,
    *,
    reward: float = 0.0,
    terminated: bool = False,
    truncated: bool = False,
    episode: int = 1,
    action: int | None = 1,
    stream: int = 0,
) -> Observation:
    obs = np.full(SHAPE, seq % 2, np.uint8)
    return Observation(
        obs=obs, reward=reward, terminated=terminated, truncated=truncated, episode=episode, seq=seq, action=action,
        stream=stream,
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    made = Path(tempfile.mkdtemp(prefix="edgert-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def configured(folder: Path) -> Callable[..., config.Config]:
    def make(**settings: object) -> config.Config:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        base = {
            "device.id": "d",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder),
            "policy.bundle": str(BUNDLE),
            "policy.runtime": "numpy",
            "learn.ring_transitions": 100,
            "learn.min_transitions": 50,
        }
        made = config.parse(config.commented_default({**base, **named}), "test")
        Layout(made).make()
        return made

    return make


@pytest.fixture
def make(configured: Callable[..., config.Config]) -> Callable[..., Actor]:
    def made(plant: Any = None, **settings: object) -> Actor:
        conf = configured(**settings)
        return Actor(conf, Layout(conf), MANIFEST, plant or Plant())

    return made


def give(actor: Actor, runtime: Stub, generation: int = 0) -> None:
    """As the loader does, a network that was learnt here and that nobody has measured."""
    policy = artifact.load(DATA)
    policy = policy._replace(
        bundle=policy.bundle._replace(manifest=msgspec.structs.replace(policy.manifest, frontier=None))
    )
    actor.loader.done.put(program.Prepared(Swap(generation, "", ""), runtime, policy, "", 0.1))
    actor._swap_if_ready()


def tick(actor: Actor, observation: Observation | None, within_s: float = 1.0) -> None:
    actor._tick(observation, program.time.monotonic() + within_s)


def records(actor: Actor) -> Any:
    reader = RingReader(actor.config.device.state_dir + "/ring.bin")
    return reader.read(1, reader.newest_seq())


def test_without_a_network_the_safe_action_is_applied(make: Callable[..., Actor]) -> None:
    actor, plant = make(), None
    plant = actor.plant
    tick(actor, shown(1, action=None))
    assert plant.applied == [(MANIFEST.safe_action, 0, None, 0)]  # type: ignore[attr-defined]  # the scripted one
    assert (actor.ticks, actor.safe, actor.first_action_s) == (1, 1, None)
    tick(actor, shown(2, action=MANIFEST.safe_action, reward=1.0))
    assert records(actor).flags.tolist() == [SAFE]
    assert records(actor).reward.tolist() == [1.0]


def test_the_greedy_action_is_applied_and_counted_at_its_exit(make: Callable[..., Actor]) -> None:
    actor = make()
    give(actor, Stub([0.0, 5.0, 1.0, 0.0]), generation=3)
    actor._heed(Budget(max_exit=1, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    tick(actor, shown(1))
    assert actor.plant.applied == [(1, 1, 0.5, 3)]  # type: ignore[attr-defined]  # the scripted one
    assert actor.taken == [0, 1, 0]
    assert actor.safe == 0
    assert actor.first_action_s is not None
    for silly in (-5, 99):
        actor._heed(Budget(max_exit=silly, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
        tick(actor, shown(2))
    assert actor.taken == [1, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_the_safe_action_and_is_logged_once(
    make: Callable[..., Actor], bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    actor = make(policy__explore_frac=1.0)
    give(actor, Stub([bad, 1.0, 2.0, 0.0]))
    for seq in (1, 2, 3):
        tick(actor, shown(seq))
    assert {action for action, *_ in actor.plant.applied} == {MANIFEST.safe_action}  # type: ignore[attr-defined]  # as above
    assert actor.faults == {"output-not-finite": 3}
    assert (actor.safe, actor.taken) == (3, [0, 0, 0])
    assert [r.levelname for r in caplog.records] == ["ERROR"]


def test_a_runtime_that_breaks_while_it_acts_is_the_safe_action(make: Callable[..., Actor]) -> None:
    class Broken(Stub):
        def infer(self, obs: U8, threshold_logits: F32) -> Inference:
            raise ArtifactError("cannot run")

    actor = make()
    give(actor, Broken([]))
    tick(actor, shown(1))
    assert actor.safe == 1


def test_near_the_deadline_the_deepest_exit_that_fits_answers(make: Callable[..., Actor]) -> None:
    actor, stub = make(policy__thresholds=[1.0, 1.0]), Stub([0.0, 1.0, 0.0, 0.0])
    give(actor, stub)
    actor.costs_s = [0.001, 0.2, 0.5]
    tick(actor, shown(1), within_s=1.0)
    assert actor.taken == [0, 0, 1]
    assert "deadline-near" not in actor.faults
    actor.costs_s = [0.001, 0.2, 0.5]
    tick(actor, shown(2), within_s=0.4)
    assert actor.taken == [0, 1, 1]
    actor.costs_s = [0.001, 0.2, 0.5]
    tick(actor, shown(3), within_s=0.1)
    # Nothing fits: something must answer all the same, and the tick counts as missed.
    actor.costs_s = [0.001, 0.2, 0.5]
    tick(actor, shown(4), within_s=-1.0)
    assert actor.taken == [2, 1, 1]
    assert actor.faults["deadline-near"] == 3
    assert actor.missed == 1


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Slow(Stub):
    """Takes `costs_s[exit]` of the clock's seconds."""

    def __init__(self, clock: Clock, costs_s: list[float]) -> None:
        super().__init__([0.0, 1.0, 0.0, 0.0])
        self.clock, self.costs_s = clock, costs_s

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        inference = super().infer(obs, threshold_logits)
        self.clock.now_s += self.costs_s[inference.exit]
        return inference


@pytest.mark.parametrize("good_s", [0.001, 0.037])
def test_one_stall_does_not_forbid_the_deepest_exit_for_ever(
    make: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch, good_s: float
) -> None:
    actor, clock = make(policy__thresholds=[1.0, 1.0]), Clock()
    monkeypatch.setattr(program.time, "monotonic", clock)
    stub = Slow(clock, [0.0005, 0.0007, good_s])
    give(actor, stub)
    for seq in range(1, 21):
        tick(actor, shown(seq), within_s=0.04)
    stub.costs_s[2] = 0.5
    tick(actor, shown(21), within_s=0.04)
    assert actor.taken == [0, 0, 21]
    stub.costs_s[2] = good_s
    for seq in range(22, 222):
        tick(actor, shown(seq), within_s=0.04)
    assert actor.taken[2] > 21 + 100
    assert actor.missed == 1


def test_an_exit_that_stays_too_slow_is_shunned_and_tried_again_seldom(
    make: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, clock = make(policy__thresholds=[1.0, 1.0]), Clock()
    monkeypatch.setattr(program.time, "monotonic", clock)
    stub = Slow(clock, [0.0005, 0.0007, 0.08])
    give(actor, stub)
    for seq in range(1, 1001):
        tick(actor, shown(seq), within_s=0.04)
    assert 2 <= actor.taken[2] == actor.missed <= 8
    before = actor.costs_s[2]
    tick(actor, shown(1001), within_s=-0.1)  # everything is too slow for a tick that is late already
    assert actor.costs_s[2] == before


def test_what_was_measured_on_the_board_keeps_the_first_decision_within_its_deadline(
    make: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, missed = Clock(), []
    monkeypatch.setattr(program.time, "monotonic", clock)
    for costs_s in ((), (0.0005, 0.0007, 0.08)):
        actor, stub = make(policy__thresholds=[1.0, 1.0]), Slow(clock, [0.0005, 0.0007, 0.08])
        swap = Swap(0, "", "")
        actor.loader.done.put(program.Prepared(swap, stub, artifact.load(DATA), "", 0.1, costs_s))
        actor._swap_if_ready()
        tick(actor, shown(1), within_s=0.04)
        missed.append(actor.missed)
        if costs_s:
            assert actor.taken == [0, 1, 0]
            actor.costs_s[0] = 0.002  # met while acting: the better figure, also after a swap
            actor.loader.done.put(program.Prepared(Swap(1, "", ""), stub, artifact.load(DATA), "", 0.1, costs_s))
            actor._swap_if_ready()
            assert actor.costs_s[0] == 0.002
    assert missed == [1, 0]


def test_the_deadline_never_reaches_deeper_than_the_budget(make: Callable[..., Actor]) -> None:
    actor, stub = make(policy__thresholds=[1.0, 1.0]), Stub([0.0, 1.0, 0.0, 0.0])
    give(actor, stub)
    actor._heed(Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    actor.costs_s = [0.5, 0.0, 0.0]  # the only one allowed is too slow, the others would fit
    tick(actor, shown(1), within_s=0.1)
    assert actor.taken == [1, 0, 0]


def test_exploration_replaces_the_action_and_says_so_in_the_record(make: Callable[..., Actor]) -> None:
    actor = make(policy__explore_frac=1.0)
    give(actor, Stub([9.0, 0.0, 0.0, 0.0]))
    for seq in range(1, 42):
        tick(actor, shown(seq))
    found = records(actor)
    assert (found.flags == EXPLORED).all()
    assert set(found.action.tolist()) == {0, 1, 2}
    assert actor.safe == 0


def drawing(actor: Actor, kind: str = "policy") -> Actor:
    """A network acts whose heads say logits."""
    actor.acting = msgspec.structs.replace(actor.acting, kind=kind)
    return actor


def test_a_policy_that_learns_is_drawn_from_and_the_record_says_how_likely_each_action_was(
    make: Callable[..., Actor],
) -> None:
    actor = make(policy__explore_frac=1.0)
    give(actor, Stub([0.0, 1.0, -40.0, 0.0]))
    drawing(actor)
    for seq in range(1, 82):
        tick(actor, shown(seq))
    found = records(actor)
    assert not (found.flags & EXPLORED).any()  # it explores by itself
    assert set(found.action.tolist()) == {0, 1}
    log = np.float32([0, 1]) - np.log1p(np.exp(1))
    np.testing.assert_allclose(found.log_prob, log[found.action], rtol=1e-5)


def test_a_policy_that_does_not_learn_takes_the_best_action(make: Callable[..., Actor]) -> None:
    actor = make(learn__enabled=False)
    give(actor, Stub([0.0, 0.1, -40.0, 0.0]))
    drawing(actor)
    for seq in range(1, 32):
        tick(actor, shown(seq))
    assert set(records(actor).action.tolist()) == {1} and (records(actor).log_prob == 0).all()


def test_a_policy_that_is_drawn_from_repeats_nothing(make: Callable[..., Actor]) -> None:
    actor, stub = make(), Sure(1.0)
    give(actor, stub)
    drawing(actor)._heed(holding(repeat=9))
    for seq in range(1, 6):
        tick(actor, shown(seq))
    assert len(stub.asked) == 5 and actor.held == 0


@pytest.mark.parametrize("explore_frac", [0.0, 0.25, 1.0])
def test_the_record_says_how_likely_exploring_made_each_action(make: Callable[..., Actor], explore_frac: float) -> None:
    actor = make(policy__explore_frac=explore_frac)
    give(actor, Stub([9.0, 0.0, 0.0, 0.0]))
    for seq in range(1, 82):
        tick(actor, shown(seq))
    found = records(actor)
    wanted = np.where(found.action == 0, 1 - explore_frac + explore_frac / 3, explore_frac / 3)
    np.testing.assert_allclose(np.exp(found.log_prob), wanted, rtol=1e-5)


def test_of_a_safe_or_repeated_action_nobody_can_say_how_likely_it_was(make: Callable[..., Actor]) -> None:
    actor = make()
    for seq in (1, 2):
        tick(actor, shown(seq))
    give(actor, Sure(1.0))
    actor._heed(holding(repeat=3))
    for seq in range(3, 8):
        tick(actor, shown(seq))
    assert np.isnan(records(actor).log_prob).tolist() == [True, True, False, True, True, False]


def test_exploration_falls_with_the_transitions_recorded(make: Callable[..., Actor]) -> None:
    settings = {"policy__explore_frac": 0.1, "policy__explore_from_frac": 0.9, "policy__explore_transitions": 40}
    actor = make(**settings)
    assert actor._explore_frac() == pytest.approx(0.9)
    give(actor, Stub([9.0, 0.0, 0.0, 0.0]))
    for seq in range(1, 22):
        tick(actor, shown(seq))
    assert actor._explore_frac() == pytest.approx(0.5)
    for seq in range(22, 60):
        tick(actor, shown(seq))
    assert actor._explore_frac() == pytest.approx(0.1)
    actor.ring.close()
    assert make(**settings)._explore_frac() == pytest.approx(0.1)  # a restart begins nothing anew
    assert make(policy__explore_frac=0.3)._explore_frac() == 0.3


def test_in_lockstep_the_plant_waits_for_the_network_and_for_training(make: Callable[..., Actor]) -> None:
    assert not make()._stands_still()
    actor = make(plant__lockstep_hz=1e6)
    actor._load(Swap(0, str(BUNDLE), ""))
    assert actor._stands_still()
    give(actor, Stub([9.0, 0.0, 0.0, 0.0]))
    assert not actor._stands_still()
    for seq in range(1, program.LOCKSTEP_LAG + 3):
        tick(actor, shown(seq))
    assert actor._stands_still()
    RingReader(Layout(actor.config).ring).done(1)
    assert not actor._stands_still()
    actor._heed(Swap(1, str(BUNDLE), ""))
    assert actor._stands_still()


def test_lockstep_goes_no_faster_than_told(make: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(program.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(program.time, "sleep", lambda _: None)
    actor = make(plant__lockstep_hz=10.0)
    moved = 0
    for _ in range(100):
        now[0] += 0.01
        moved += not actor._stands_still()
    assert 9 <= moved <= 11


def test_a_record_holds_what_came_of_its_action(make: Callable[..., Actor]) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, shown(1, action=None))
    tick(actor, shown(2, reward=1.5))
    tick(actor, shown(3, reward=2.0, terminated=True, episode=2))
    tick(actor, shown(4, reward=4.0, truncated=True, episode=3))
    found = records(actor)
    assert found.reward.tolist() == [1.5, 2.0, 4.0]
    assert found.flags.tolist() == [0, TERMINATED, TRUNCATED]
    assert found.episode.tolist() == [1, 1, 2]
    assert found.obs[:, 0, 0, 0].tolist() == [1, 0, 1]
    assert actor.episodes == 2
    assert list(actor.returns) == [3.5, 4.0]


@pytest.mark.parametrize(
    ("what", "following"),
    [
        ("missed", None),
        ("another stream", shown(2, reward=7.0, stream=1)),
        ("a world that was restarted", shown(2, reward=7.0, action=None)),
    ],
)
def test_what_followed_unseen_is_truncated_and_brings_no_reward(
    make: Callable[..., Actor], what: str, following: Observation | None
) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, shown(1, action=None))
    tick(actor, following)
    found = records(actor)
    assert found.flags.tolist() == [TRUNCATED]
    assert found.reward.tolist() == [0.0]
    assert actor.episodes == 0
    assert list(actor.returns) == []
    tick(actor, shown(3, reward=1.0, terminated=True))
    # What came before the gap belongs to no return that is told; after a missed observation there is no record at all.
    assert len(records(actor)) == (1 if following is None else 2)


@pytest.mark.parametrize(
    ("what", "gap"),
    [
        ("missed", None),
        ("reconnected", shown(3, action=None)),
        ("a world that was restarted", shown(3, action=None, truncated=True)),
    ],
)
def test_the_return_of_an_episode_with_a_gap_is_neither_told_nor_counted(
    make: Callable[..., Actor], what: str, gap: Observation | None
) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, shown(1, action=None))
    tick(actor, shown(2, reward=1.0))
    tick(actor, gap)
    tick(actor, shown(4, reward=1.0))
    tick(actor, shown(5, reward=1.0))
    tick(actor, shown(6, reward=1.0, terminated=True, episode=2))
    assert (actor.episodes, list(actor.returns)) == (0, [])
    tick(actor, shown(7, reward=2.0, episode=2))
    tick(actor, shown(8, reward=3.0, terminated=True, episode=3))
    assert (actor.episodes, list(actor.returns)) == (1, [5.0])


def test_a_return_is_told_with_the_network_that_played_it_all(make: Callable[..., Actor]) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]), generation=1)
    tick(actor, shown(1, action=None))
    tick(actor, shown(2, reward=1.0, terminated=True, episode=2))
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]), generation=2)
    tick(actor, shown(3, reward=2.0, terminated=True, episode=3))
    tick(actor, shown(4, reward=3.0, terminated=True, episode=4))
    told = actor._report()
    assert (told.returns, told.played) == ([1.0, 2.0, 3.0], [1, None, 2])
    assert (told.reward, told.rewarded, told.network) == (6.0, 3, actor.network)
    assert actor.network is not None and actor.network.generation == 2


def test_an_end_that_comes_right_after_a_gap_begins_a_whole_episode(make: Callable[..., Actor]) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, shown(1, action=None))
    tick(actor, None)
    tick(actor, shown(3, reward=9.0, terminated=True, episode=2))
    tick(actor, shown(4, reward=2.0, terminated=True, episode=3))
    assert (actor.episodes, list(actor.returns)) == (1, [2.0])


def test_an_episode_joined_in_its_middle_is_not_counted_and_a_newcomers_first_is(make: Callable[..., Actor]) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, shown(50, action=None))
    tick(actor, shown(51, reward=1.0, terminated=True, episode=2))
    assert (actor.episodes, list(actor.returns)) == (0, [])
    tick(actor, shown(52, action=None, stream=2, episode=3))
    tick(actor, shown(53, reward=4.0, terminated=True, stream=2, episode=4))
    assert (actor.episodes, list(actor.returns)) == (1, [4.0])


def test_an_actor_that_is_started_again_does_not_go_on_with_the_former_ones_transition(
    make: Callable[..., Actor],
) -> None:
    for _ in range(2):
        actor = make()
        for seq in (1, 2, 3):
            tick(actor, shown(seq))
        actor.ring.close()
    assert records(actor).seq.tolist() == [1, 2, 4, 5]


def test_a_missed_observation_is_the_safe_action_and_a_fault_only_once_the_plant_was_met(
    make: Callable[..., Actor],
) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, None)
    assert actor.faults == {}
    tick(actor, shown(1))
    tick(actor, None)
    assert actor.faults == {"observation-missing": 1}
    assert [action for action, *_ in actor.plant.applied] == [0, 1, 0]  # type: ignore[attr-defined]  # the scripted one


def test_a_late_decision_is_missed(make: Callable[..., Actor]) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]))
    tick(actor, shown(1), within_s=-0.5)
    assert (actor.ticks, actor.missed) == (1, 1)


class Told:
    """Takes the place of the line to the supervisor."""

    lost_s = None

    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, told: Any, *, keep: bool = False) -> bool:
        self.told.append(told)
        return True


def swapped(actor: Actor) -> list[Swapped]:
    return [told for told in actor.parent.told if isinstance(told, Swapped)]  # type: ignore[attr-defined]  # `Told`


def load(actor: Actor, swap: Swap, until: Callable[..., None]) -> None:
    """Let the real loader prepare it, and swap."""
    if not actor.loader.is_alive():
        actor.loader.start()
    actor._heed(swap)
    until(lambda: actor.loader.done.qsize(), "the loader")
    actor._swap_if_ready()


def test_a_sound_network_takes_over_between_two_ticks(
    make: Callable[..., Actor], until: Callable[..., None], tmp_path: Path
) -> None:
    actor, former = make(), Stub([0.0, 1.0, 0.0, 0.0])
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one
    give(actor, former)
    tick(actor, shown(1))
    path = tmp_path / "new.edgert"
    manifest = msgspec.structs.replace(MANIFEST, thresholds=(0.25, 0.75))
    path.write_bytes(bundle.write(manifest, bundle.read(DATA).members))
    load(actor, Swap(5, str(path), hashlib.sha256(path.read_bytes()).hexdigest()), until)
    assert former.closed
    assert actor.generation == 5
    assert actor.thresholds == [0.25, 0.75]
    assert actor._logits.tolist() == pytest.approx([-1.0986, 1.0986], abs=1e-4)
    (told,) = swapped(actor)
    assert (told.generation, told.ok, told.why, told.tick, told.missed) == (5, True, "", 1, 0)
    tick(actor, shown(2))
    assert actor.safe == 0
    assert actor.plant.applied[-1][3] == 5  # type: ignore[attr-defined]  # the scripted one


@pytest.mark.parametrize(
    ("data", "sha256", "words"),
    [
        (b"junk", "", "ArtifactError: bundle: not a readable ZIP"),
        (DATA, "0" * 64, "ArtifactError: .*sha256 differs"),
        (None, "", "FileNotFoundError"),
        ((BUNDLE.parent / "space_invaders.edgert").read_bytes(), "", "another observation or action schema"),
    ],
)
def test_a_refused_network_leaves_the_former_one(
    make: Callable[..., Actor],
    until: Callable[..., None],
    tmp_path: Path,
    data: bytes | None,
    sha256: str,
    words: str,
) -> None:
    import re

    actor, former = make(), Stub([0.0, 1.0, 0.0, 0.0])
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one
    give(actor, former, generation=2)
    actor.parent.told.clear()
    path = tmp_path / "new.edgert"
    if data is not None:
        path.write_bytes(data)
    load(actor, Swap(5, str(path), sha256), until)
    (told,) = swapped(actor)
    assert not told.ok
    assert re.search(words, told.why)
    assert actor.faults == {"policy-refused": 1}
    assert actor.runtime is former
    assert not former.closed
    tick(actor, shown(1))
    assert actor.plant.applied == [(1, 2, 0.5, 2)]  # type: ignore[attr-defined]  # the scripted one


def test_whatever_breaks_while_a_network_is_loaded_is_a_refusal_and_the_next_one_is_loaded(
    make: Callable[..., Actor], until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = make()
    give(actor, Stub([0.0, 1.0, 0.0, 0.0]), generation=2)
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one

    def broken(data: bytes) -> artifact.Policy:
        raise KeyError("a tensor nobody thought of")

    with monkeypatch.context() as patched:
        patched.setattr(artifact, "load", broken)
        load(actor, Swap(5, str(BUNDLE), ""), until)
    load(actor, Swap(6, str(BUNDLE), ""), until)
    refused, taken = swapped(actor)
    assert not refused.ok and refused.why == "KeyError: 'a tensor nobody thought of'"
    assert taken.ok and actor.generation == 6


def test_a_starting_actor_whose_last_network_is_refused_acts_with_the_installed_one(
    make: Callable[..., Actor], until: Callable[..., None], tmp_path: Path
) -> None:
    actor = make()
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one
    path = tmp_path / "gen.edgert"
    path.write_bytes((BUNDLE.parent / "space_invaders.edgert").read_bytes())
    load(actor, Swap(4, str(path), ""), until)
    until(lambda: actor.loader.done.qsize(), "the installed network")
    actor._swap_if_ready()
    assert actor.runtime is not None
    assert actor.generation == 0
    assert [told.ok for told in swapped(actor)] == [False]


def test_an_installed_network_that_is_refused_is_an_event_and_not_tried_again(
    make: Callable[..., Actor], until: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "installed.edgert"
    path.write_bytes(b"junk")
    actor = make()
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one
    load(actor, Swap(0, str(path), ""), until)
    (told,) = actor.parent.told
    assert isinstance(told, Happened)
    assert told.name == "policy-refused"
    assert actor.loader.done.empty()
    assert actor.loader._todo.empty()


def test_acting_network_is_the_noted_one_while_its_note_and_its_file_are_sound(
    configured: Callable[..., config.Config], caplog: pytest.LogCaptureFixture
) -> None:
    conf = configured()
    layout, installed = Layout(conf), Swap(0, str(BUNDLE), "")
    assert program.acting_network(conf, layout) == installed
    assert not caplog.records
    path = layout.policies / "gen-00000003.edgert"
    path.write_bytes(DATA)
    note = Swap(3, str(path), hashlib.sha256(DATA).hexdigest())
    layout.acting.write_bytes(msgspec.json.encode(note))
    assert program.acting_network(conf, layout) == note
    path.write_bytes(DATA[:-1])
    assert program.acting_network(conf, layout) == installed
    assert "sha256 differs" in caplog.text
    for torn in (b"", b'{"t":"swap","gen', b"[]", b'{"t":"stop"}', b"\xff\xfe"):
        caplog.clear()
        layout.acting.write_bytes(torn)
        assert program.acting_network(conf, layout) == installed
        assert len(caplog.records) == 1
    layout.acting.write_bytes(msgspec.json.encode(note))
    path.unlink()
    caplog.clear()
    assert program.acting_network(conf, layout) == installed
    assert "is gone" in caplog.text


def test_a_ring_of_another_kind_is_begun_anew_and_that_is_said(
    make: Callable[..., Actor], configured: Callable[..., config.Config], caplog: pytest.LogCaptureFixture
) -> None:
    kept = "ring-begun-anew"
    first = make()
    assert not first.parent._kept
    first.ring.close()
    again = make()
    assert not again.parent._kept, "the same ring was taken up again"
    again.ring.close()
    other = make(learn__ring_transitions=200)
    (told,) = other.parent._kept
    assert isinstance(told, Happened)
    assert told.name == kept
    assert "begins anew" in caplog.text


class Supervisor:
    """The other end of the control socket."""

    def __init__(self, path: Path) -> None:
        self.listener = ipc.listen(path)
        self.channel: ipc.Channel | None = None
        self.heard: list[Any] = []

    def look(self) -> list[Any]:
        self.channel = self.channel or ipc.accept(self.listener)
        if self.channel is not None:
            self.heard += self.channel.receive()
        return self.heard

    def close(self) -> None:
        self.listener.close()
        if self.channel is not None:
            self.channel.close()


class Asked:
    """Takes the place of `Stopping`, whose handlers only a main thread may set."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


def test_the_loop_acts_reports_and_leaves_the_plant_in_the_safe_action(
    make: Callable[..., Actor], folder: Path, until: Callable[..., None]
) -> None:
    supervisor = Supervisor(folder / "control.sock")
    plant, stopping = Plant(), Asked()
    plant.shows = [shown(seq) for seq in range(1, 10_000)]
    actor = make(plant)
    codes: list[int] = []
    thread = threading.Thread(
        daemon=True,
        target=lambda: codes.append(actor.run(Swap(0, str(BUNDLE), ""), stopping)),  # type: ignore[arg-type]  # `Asked`
    )
    thread.start()
    try:
        until(lambda: [t for t in supervisor.look() if isinstance(t, ActorReport) and t.first_action_s], "a report")
        assert isinstance(supervisor.heard[0], Hello)
    finally:
        stopping.asked = True
        thread.join(10)
    supervisor.close()
    assert codes == [0]
    assert plant.closed
    assert plant.applied[-1][:3] == (MANIFEST.safe_action, 0, None)
    assert any(confidence is not None for _, _, confidence, _ in plant.applied)
    # A plant in lockstep takes an action only after it was looked at.
    assert plant.calls[-2:] == ["observe", "apply"]


def test_a_world_in_lockstep_gets_the_last_safe_action_too(
    make: Callable[..., Actor], folder: Path, until: Callable[..., None]
) -> None:
    listener, told, stopping, ended = ipc.listen(folder / "world.sock"), [], Asked(), threading.Event()

    def world() -> None:
        channel, seq = None, 1
        while not ended.wait(0.002):
            if channel is None:
                channel = ipc.accept(listener)
                actions: list[Any] = [None] if channel is not None else []
            else:
                actions = [message["action"] for message in channel.receive_maps()]
            for action in actions:
                told.append(action)
                frame = {"obs": bytes(SHAPE[0] * SHAPE[1] * SHAPE[2]), "shape": list(SHAPE), "dtype": "uint8"}
                outcome = {"reward": 0.0, "terminated": False, "truncated": False, "episode": 1, "world": 1}
                if channel is not None:
                    channel.send_map({**frame, **outcome, "seq": seq, "action": action})
                seq += 1
        if channel is not None:
            channel.close()

    server = threading.Thread(target=world, daemon=True)
    server.start()
    actor = make(SimulatedPlant(folder / "world.sock", SHAPE))

    class Certain(Stub):
        """Anything but the safe action."""

    give(actor, Certain([0.0, 0.0, 5.0, 0.0]))
    loop = threading.Thread(
        daemon=True,
        target=lambda: actor.run(Swap(1, "/nowhere", ""), stopping),  # type: ignore[arg-type]  # `Asked`
    )
    loop.start()
    try:
        until(lambda: told.count(2) > 5, "actions of the policy")
    finally:
        stopping.asked = True
        loop.join(10)
    until(lambda: told[-1] == MANIFEST.safe_action, "the safe action")
    ended.set()
    server.join(10)
    listener.close()


def test_without_a_supervisor_for_too_long_the_actor_leaves(
    make: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ORPHAN_S", 0.1)
    plant = Plant()
    actor = make(plant)
    assert actor.run(Swap(0, str(BUNDLE), ""), Asked()) == 75  # type: ignore[arg-type]  # `Asked`
    assert plant.applied[-1][0] == MANIFEST.safe_action


class Sure(Stub):
    """Exit 0 answers whenever its threshold allows, with this confidence logit; the best action counts upwards."""

    def __init__(self, logit: float) -> None:
        super().__init__([])
        self.logit = logit

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        self.asked.append(threshold_logits.copy())
        head = np.zeros(4, np.float32)
        head[(len(self.asked) - 1) % 3], head[3] = 1.0, self.logit
        return Inference(head, 0 if self.logit >= threshold_logits[0] else 2)


def order(**fields: Any) -> SetExits:
    return SetExits(id="c1", **fields)


def holding(repeat: int = 3, hold_threshold: float = 0.5) -> SetExits:
    return order(operating=Operating((0.5, 0.5), repeat, hold_threshold))


def applied(actor: Actor) -> list[int]:
    return [action for action, *_ in actor.plant.applied]  # type: ignore[attr-defined]  # the scripted one


def test_a_sure_action_is_repeated_without_inference_and_recorded_as_what_was_done(make: Callable[..., Actor]) -> None:
    actor, stub = make(), Sure(1.0)
    give(actor, stub)
    actor._heed(holding())
    for seq in range(1, 8):
        tick(actor, shown(seq, reward=float(seq), action=None if seq == 1 else 1))
    assert applied(actor) == [0, 0, 0, 1, 1, 1, 2]
    assert len(stub.asked) == 3
    assert (actor.taken, actor.held, actor.ticks, actor.safe) == ([3, 0, 0], 4, 7, 0)
    assert np.count_nonzero(actor.latencies_s) <= 3, "a tick without inference says nothing about latency"
    found = records(actor)
    assert found.action.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.reward.tolist() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert found.obs[:, 0, 0, 0].tolist() == [1, 0, 1, 0, 1, 0], "each with the observation of its own tick"
    assert {confidence for _, _, confidence, _ in actor.plant.applied} == {exits.confidence(1.0)}  # type: ignore[attr-defined]  # the scripted one
    report = actor._report()
    assert (report.held, report.exits, report.operating) == (4, [3, 0, 0], holding().operating)


@pytest.mark.parametrize("logit", [-0.1, 0.1])
def test_an_unsure_exit_and_the_deepest_are_not_repeated(make: Callable[..., Actor], logit: float) -> None:
    actor, stub = make(), Sure(logit)
    give(actor, stub)
    thresholds = (0.0, 0.0) if logit < 0 else (1.0, 1.0)  # believed without being sure; sure, but the deepest answers
    actor._heed(order(operating=Operating(thresholds, 3, 0.5)))
    for seq in range(1, 5):
        tick(actor, shown(seq))
    assert len(stub.asked) == 4 and actor.held == 0


@pytest.mark.parametrize(
    ("what", "following"),
    [
        ("terminated", shown(2, terminated=True, episode=2)),
        ("truncated", shown(2, truncated=True, episode=2)),
        ("another client", shown(2, stream=1)),
        ("a world that was restarted", shown(2, action=None)),
        ("missed", None),
    ],
)
def test_whatever_does_not_follow_ends_a_repetition(
    make: Callable[..., Actor], what: str, following: Observation | None
) -> None:
    actor, stub = make(), Sure(1.0)
    give(actor, stub)
    actor._heed(holding(repeat=9))
    tick(actor, shown(1))
    tick(actor, following)
    assert applied(actor)[1] == (MANIFEST.safe_action if following is None else 1)
    assert actor.held == 0
    tick(actor, shown(3, stream=following.stream if following else 0))
    assert actor.held == (0 if following is None else 1), "after a gap it is decided anew"
    assert actor.taken[0] == 2


def test_a_swap_or_another_setting_ends_a_repetition(make: Callable[..., Actor]) -> None:
    actor, stub = make(), Sure(1.0)
    give(actor, stub)
    actor._heed(holding(repeat=9))
    tick(actor, shown(1))
    other = Sure(1.0)
    give(actor, other, generation=2)
    tick(actor, shown(2))
    assert (len(stub.asked), len(other.asked)) == (1, 1)
    actor._heed(holding(repeat=8))
    tick(actor, shown(3))
    assert len(other.asked) == 2
    actor._heed(holding(repeat=8))  # the same again changes nothing
    tick(actor, shown(4))
    assert (len(other.asked), actor.held) == (2, 1)


def test_exploration_ends_a_repetition(make: Callable[..., Actor]) -> None:
    actor, stub = make(policy__explore_frac=1.0), Sure(1.0)
    give(actor, stub)
    actor._heed(holding(repeat=9))
    for seq in range(1, 6):
        tick(actor, shown(seq))
    assert len(stub.asked) == 5 and (records(actor).flags == EXPLORED).all()


def test_the_act_loop_repeats_what_a_measurement_of_the_same_setting_repeats(make: Callable[..., Actor]) -> None:
    """The loop and `policy.hold.Holds`, which frontiers are measured with, on the same heads and ends."""
    rng = np.random.default_rng(0)
    policy = artifact.load(DATA)
    net, pool = quant.IntNet(policy.spec, policy.tensors), policy.golden_obs
    for operating in (Operating((0.3, 0.6), 3, 0.0), Operating((0.3, 0.6), 4, 0.5), Operating((0.0, 1.0), 2, 0.45)):
        actor = make()
        actor.loader.done.put(program.Prepared(Swap(0, "", ""), NumpyRuntime(policy), policy, "", 0.1))
        actor._swap_if_ready()
        actor._heed(order(operating=operating))
        bars = exits.effective_thresholds(operating.thresholds, 2)
        holds, me, wanted, decided = hold.Holds([operating]), np.array([0]), [], np.zeros(3, int)
        for seq in range(1, 120):
            obs, ends = pool[rng.integers(len(pool))], bool(rng.random() < 0.1)
            frame = Observation(
                obs=obs, reward=0.0, terminated=ends, truncated=False, episode=1, seq=seq, action=1, stream=0
            )
            tick(actor, frame)
            if holds.due(me, np.array([ends or seq == 1]))[0]:
                head, exit_ = exits.answer(net, obs[None], bars)
                holds.decided(me, head[:, :-1].argmax(1), exit_, head[:, -1])
                decided[exit_] += 1
            wanted.append(int(holds.action[0]))
        assert applied(actor) == wanted
        assert actor.taken == decided.tolist() and actor.held == 119 - decided.sum() > 0
        actor.ring.close()


def told_about_exits(actor: Actor) -> list[Any]:
    return [told for told in actor.parent.told if isinstance(told, ExitsSet | Happened)]  # type: ignore[attr-defined]  # `Told`


def with_frontier(manifest: bundle.Manifest) -> bundle.Manifest:
    points = [
        bundle.Point(
            thresholds=thresholds, return_mean=1.0, return_frac=return_frac, return_low=0.0, return_high=1.0,
            ops_frac=ops_frac, exit_share=(1.0, 0.0, 0.0), held_share=0.0, episodes=3,
        )
        for thresholds, ops_frac, return_frac in (((0, 0), 0.3, 0.5), ((0.4, 0.4), 0.6, 0.9), ((1, 1), 1.0, 1.0))
    ]  # fmt: skip
    reference = bundle.Reference(1.0, 3)
    made = bundle.Frontier(random=reference, full=reference, full_ops=100, points=tuple(points))
    return msgspec.structs.replace(manifest, frontier=made)


def give_frontier(actor: Actor) -> Sure:
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one
    stub, policy = Sure(0.0), artifact.load(DATA)
    manifest = with_frontier(policy.manifest)
    policy = policy._replace(bundle=policy.bundle._replace(manifest=manifest))
    actor.loader.done.put(program.Prepared(Swap(1, "", ""), stub, policy, "", 0.1))
    actor._swap_if_ready()
    actor.parent.told.clear()
    return stub


def test_the_budget_picks_a_point_of_the_frontier_between_two_ticks(make: Callable[..., Actor]) -> None:
    actor = make()
    stub = give_frontier(actor)
    tick(actor, shown(1))
    report = actor._report()
    assert (report.has_frontier, report.point, report.operating) == (True, None, MANIFEST.operating)
    for limit, point in ((0.7, 1), (0.1, 0), (1.0, None)):
        actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, max_ops_frac=limit))
        tick(actor, shown(2))
        assert actor._report().point == point
    own = exits.effective_thresholds(MANIFEST.thresholds, 2).tolist()
    assert [asked.tolist() for asked in stub.asked] == [
        own,
        exits.effective_thresholds([0.4, 0.4], 2).tolist(),
        [-np.inf, -np.inf],
        own,
    ]


def test_the_fleet_sets_the_exits_and_the_budget_may_still_lower_them(make: Callable[..., Actor]) -> None:
    actor = make()
    give_frontier(actor)
    actor._heed(order(point=2))
    (told,) = told_about_exits(actor)
    assert (told.id, told.why, told.point, told.operating.thresholds) == ("c1", "", 2, (1.0, 1.0))
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, max_ops_frac=0.7))
    assert actor.setting.point == 1
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    assert actor.setting.point == 2
    actor._heed(order(max_ops_frac=0.5))
    assert actor.setting.point == 0
    actor._heed(order())
    assert actor.setting.operating == MANIFEST.operating and actor.order is None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (order(point=3), "3 of a frontier that has 3"),
        (order(operating=Operating((0.5,))), "1 thresholds for 3 exits"),
        (order(operating=Operating((0.5, float("nan")))), "0..1"),
    ],
)
def test_an_order_that_does_not_fit_leaves_the_former_setting(
    make: Callable[..., Actor], wanted: SetExits, words: str
) -> None:
    actor = make()
    give_frontier(actor)
    actor._heed(order(point=1))
    actor._heed(wanted)
    told = told_about_exits(actor)[-1]
    assert words in told.why and (told.point, actor.setting.point) == (1, 1)
    assert actor.order == order(point=1)


def test_pinned_thresholds_stand_above_the_fleet_and_the_frontier(make: Callable[..., Actor]) -> None:
    actor = make(policy__thresholds=[0.2, 0.3])
    give_frontier(actor)
    actor._heed(order(point=1))
    assert "pins" in told_about_exits(actor)[-1].why
    actor._heed(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0, max_ops_frac=0.1))
    assert actor.thresholds == [0.2, 0.3]
    assert not actor._report().has_frontier, "the governor has only exits left to forbid"


def test_an_order_that_a_new_network_cannot_follow_ends_and_that_is_said(make: Callable[..., Actor]) -> None:
    for wanted in (order(point=1), order(max_ops_frac=0.7)):
        actor = make()
        give_frontier(actor)
        actor._heed(wanted)
        assert actor.setting.point == 1
        give(actor, Stub([0.0, 1.0, 0.0, 0.0]), generation=2)  # learned here: nobody measured it
        told = told_about_exits(actor)[-1]
        assert isinstance(told, Happened) and told.detail["id"] == "c1"
        assert actor.order is None and actor.setting.operating == MANIFEST.operating
        actor.ring.close()


def test_an_order_ends_with_its_time(make: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch) -> None:
    actor, clock = make(), Clock()
    monkeypatch.setattr(program.time, "monotonic", clock)
    give_frontier(actor)
    actor._heed(order(point=1, left_s=60.0))
    assert actor.order_until_s == clock.now_s + 60.0
    actor._forget_order("expired")
    assert actor.order_until_s is None and actor.setting.operating == MANIFEST.operating
    assert told_about_exits(actor)[-1].detail == {"id": "c1", "why": "expired"}


def test_a_network_with_other_exits_is_refused(
    make: Callable[..., Actor], until: Callable[..., None], tmp_path: Path
) -> None:
    actor, former = make(policy__thresholds=[0.5, 0.5]), Stub([0.0, 1.0, 0.0, 0.0])
    actor.parent = Told()  # type: ignore[assignment]  # what it needs of one
    give(actor, former, generation=1)
    path = tmp_path / "one-exit.edgert"
    path.write_bytes((BUNDLE.parent / "breakout-teacher.edgert").read_bytes())
    load(actor, Swap(5, str(path), ""), until)
    assert "has 1 exits, the installed policy 3" in swapped(actor)[-1].why
    assert actor.runtime is former


def test_thresholds_of_the_configuration_that_do_not_fit_are_its_fault(make: Callable[..., Actor]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.thresholds: 1 thresholds for 3 exits"):
        make(policy__thresholds=[0.5])
