"""The act loop with a scripted plant and a stub runtime: no process, no socket, no waiting for a rate."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, config
from edgert.errors import ArtifactError, ConfigError
from edgert.nets import F32, U8
from edgert.policy import artifact
from edgert.ports import ipc
from edgert.ports.plant import Observation
from edgert.ports.plant.simulated import SimulatedPlant
from edgert.ports.process import Layout
from edgert.ports.ring import SAFE, RingReader
from edgert.ports.runtime import Inference
from edgert.programs import actor as program
from edgert.values import ActorReport, Budget, Happened, Hello, Swap, Swapped

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
MANIFEST = bundle.read(DATA).manifest
SHAPE = MANIFEST.observation.shape


def test_without_a_network_the_safe_action_is_applied(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    actor.tick(1, action=None)
    assert actor.plant.applied == [(MANIFEST.safe_action, 0, None, 0)]
    assert (actor.ticks, actor.safe, actor.first_action_s) == (1, 1, None)
    actor.tick(2, action=MANIFEST.safe_action, reward=1.0)
    assert actor.records().flags.tolist() == [SAFE]
    assert actor.records().reward.tolist() == [1.0]


def test_the_greedy_action_is_applied_and_counted_at_its_exit(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    actor.give([0.0, 5.0, 1.0, 0.0], generation=3)
    actor._heed(Budget(max_exit=1, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    actor.tick(1)
    assert actor.plant.applied == [(1, 1, 0.5, 3)]
    assert actor.taken == [0, 1, 0]
    assert actor.safe == 0
    assert actor.first_action_s is not None
    for silly in (-5, 99):
        actor._heed(Budget(max_exit=silly, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
        actor.tick(2)
    assert actor.taken == [1, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_the_safe_action_and_is_logged_once(
    make_actor: Callable[..., Any], bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    actor = make_actor(policy__explore_frac=1.0)
    actor.give([bad, 1.0, 2.0, 0.0])
    for seq in (1, 2, 3):
        actor.tick(seq)
    assert {action for action, *_ in actor.plant.applied} == {MANIFEST.safe_action}
    assert actor.faults == {"output-not-finite": 3}
    assert (actor.safe, actor.taken) == (3, [0, 0, 0])
    assert [r.levelname for r in caplog.records] == ["ERROR"]


def test_a_runtime_that_breaks_while_it_acts_is_the_safe_action(make_actor: Callable[..., Any]) -> None:
    def broken(obs: U8, threshold_logits: F32) -> Inference:
        raise ArtifactError("cannot run")

    actor = make_actor()
    actor.give([0.0, 1.0, 0.0, 0.0]).infer = broken
    actor.tick(1)
    assert actor.safe == 1


def test_near_the_deadline_the_deepest_exit_that_fits_answers(make_actor: Callable[..., Any]) -> None:
    actor = make_actor(policy__thresholds=[1.0, 1.0])
    actor.give([0.0, 1.0, 0.0, 0.0])
    actor.costs_s = [0.001, 0.2, 0.5]
    actor.tick(1, within_s=1.0)
    assert actor.taken == [0, 0, 1]
    assert "deadline-near" not in actor.faults
    actor.costs_s = [0.001, 0.2, 0.5]
    actor.tick(2, within_s=0.4)
    assert actor.taken == [0, 1, 1]
    actor.costs_s = [0.001, 0.2, 0.5]
    actor.tick(3, within_s=0.1)
    # Nothing fits: something must answer all the same, and the tick counts as missed.
    actor.costs_s = [0.001, 0.2, 0.5]
    actor.tick(4, within_s=-1.0)
    assert actor.taken == [2, 1, 1]
    assert actor.faults["deadline-near"] == 3
    assert actor.missed == 1


class Slow:
    """Takes `costs_s[exit]` of the clock's seconds for the first exit whose threshold is -inf, or the last."""

    name = "slow"

    def __init__(self, clock: Any, costs_s: list[float]) -> None:
        self.clock, self.costs_s = clock, costs_s

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        taken = [*np.isneginf(threshold_logits), True].index(True)
        self.clock.now_s += self.costs_s[taken]
        return Inference(np.array([0.0, 1.0, 0.0, 0.0], np.float32), taken)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("good_s", [0.001, 0.037])
def test_one_stall_does_not_forbid_the_deepest_exit_for_ever(
    make_actor: Callable[..., Any], clock: Any, good_s: float
) -> None:
    actor = make_actor(policy__thresholds=[1.0, 1.0])
    stub = actor.give(Slow(clock, [0.0005, 0.0007, good_s]))
    for seq in range(1, 21):
        actor.tick(seq, within_s=0.04)
    stub.costs_s[2] = 0.5
    actor.tick(21, within_s=0.04)
    assert actor.taken == [0, 0, 21]
    stub.costs_s[2] = good_s
    for seq in range(22, 222):
        actor.tick(seq, within_s=0.04)
    assert actor.taken[2] > 21 + 100
    assert actor.missed == 1


def test_an_exit_that_stays_too_slow_is_shunned_and_tried_again_seldom(
    make_actor: Callable[..., Any], clock: Any
) -> None:
    actor = make_actor(policy__thresholds=[1.0, 1.0])
    actor.give(Slow(clock, [0.0005, 0.0007, 0.08]))
    for seq in range(1, 1001):
        actor.tick(seq, within_s=0.04)
    assert 2 <= actor.taken[2] == actor.missed <= 8
    before = actor.costs_s[2]
    actor.tick(1001, within_s=-0.1)  # everything is too slow for a tick that is late already
    assert actor.costs_s[2] == before


def test_what_was_measured_on_the_board_keeps_the_first_decision_within_its_deadline(
    make_actor: Callable[..., Any], clock: Any
) -> None:
    missed = []
    for costs_s in ((), (0.0005, 0.0007, 0.08)):
        actor, stub = make_actor(policy__thresholds=[1.0, 1.0]), Slow(clock, [0.0005, 0.0007, 0.08])
        swap = Swap(0, "", "")
        actor.take(swap, stub, artifact.load(DATA), costs_s)
        actor.tick(1, within_s=0.04)
        missed.append(actor.missed)
        if costs_s:
            assert actor.taken == [0, 1, 0]
            actor.costs_s[0] = 0.002  # met while acting: the better figure, also after a swap
            actor.take(Swap(1, "", ""), stub, artifact.load(DATA), costs_s)
            assert actor.costs_s[0] == 0.002
    assert missed == [1, 0]


def test_the_deadline_never_reaches_deeper_than_the_budget(make_actor: Callable[..., Any]) -> None:
    actor = make_actor(policy__thresholds=[1.0, 1.0])
    actor.give([0.0, 1.0, 0.0, 0.0])
    actor._heed(Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
    actor.costs_s = [0.5, 0.0, 0.0]  # the only one allowed is too slow, the others would fit
    actor.tick(1, within_s=0.1)
    assert actor.taken == [1, 0, 0]


def test_in_lockstep_the_plant_waits_for_the_network_and_for_training(make_actor: Callable[..., Any]) -> None:
    assert not make_actor()._stands_still()
    actor = make_actor(plant__lockstep_hz=1e6)
    actor._load(Swap(0, str(BUNDLE), ""))
    assert actor._stands_still()
    actor.give([9.0, 0.0, 0.0, 0.0])
    assert not actor._stands_still()
    for seq in range(1, program.LOCKSTEP_LAG + 3):
        actor.tick(seq)
    assert actor._stands_still()
    RingReader(Layout(actor.config).ring).done(1)
    assert not actor._stands_still()
    actor._heed(Swap(1, str(BUNDLE), ""))
    assert actor._stands_still()


def test_lockstep_goes_no_faster_than_told(make_actor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(program.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(program.time, "sleep", lambda _: None)
    actor = make_actor(plant__lockstep_hz=10.0)
    moved = 0
    for _ in range(100):
        now[0] += 0.01
        moved += not actor._stands_still()
    assert 9 <= moved <= 11


def test_a_return_is_told_with_the_network_that_played_it_all(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    actor.give([0.0, 1.0, 0.0, 0.0], generation=1)
    actor.tick(1, action=None)
    actor.tick(2, reward=1.0, terminated=True, episode=2)
    actor.give([0.0, 1.0, 0.0, 0.0], generation=2)
    actor.tick(3, reward=2.0, terminated=True, episode=3)
    actor.tick(4, reward=3.0, terminated=True, episode=4)
    told = actor._report()
    assert (told.returns, told.played) == ([1.0, 2.0, 3.0], [1, None, 2])
    assert (told.reward, told.rewarded, told.network) == (6.0, 3, actor.network)
    assert actor.network is not None and actor.network.generation == 2


def test_a_missed_observation_is_the_safe_action_and_a_fault_only_once_the_plant_was_met(
    make_actor: Callable[..., Any],
) -> None:
    actor = make_actor()
    actor.give([0.0, 1.0, 0.0, 0.0])
    actor.tick(None)
    assert actor.faults == {}
    actor.tick(1)
    actor.tick(None)
    assert actor.faults == {"observation-missing": 1}
    assert actor.applied() == [0, 1, 0]


def test_a_late_decision_is_missed(make_actor: Callable[..., Any]) -> None:
    actor = make_actor()
    actor.give([0.0, 1.0, 0.0, 0.0])
    actor.tick(1, within_s=-0.5)
    assert (actor.ticks, actor.missed) == (1, 1)


def test_a_sound_network_takes_over_between_two_ticks(
    make_actor: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    actor = make_actor()
    actor.told()
    former = actor.give([0.0, 1.0, 0.0, 0.0])
    actor.tick(1)
    path = tmp_path / "new.edgert"
    manifest = msgspec.structs.replace(MANIFEST, thresholds=(0.25, 0.75))
    path.write_bytes(bundle.write(manifest, bundle.read(DATA).members))
    actor.load(Swap(5, str(path), hashlib.sha256(path.read_bytes()).hexdigest()), until)
    assert former.closed
    assert actor.generation == 5
    assert actor.thresholds == [0.25, 0.75]
    assert actor._logits.tolist() == pytest.approx([-1.0986, 1.0986], abs=1e-4)
    (told,) = actor.told(Swapped)
    assert (told.generation, told.ok, told.why, told.tick, told.missed) == (5, True, "", 1, 0)
    actor.tick(2)
    assert actor.safe == 0
    assert actor.plant.applied[-1][3] == 5


def test_a_refused_network_leaves_the_former_one(
    make_actor: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    actor = make_actor()
    actor.told()
    former = actor.give([0.0, 1.0, 0.0, 0.0], generation=2)
    actor.parent.told.clear()
    path = tmp_path / "new.edgert"
    path.write_bytes(b"junk")
    actor.load(Swap(5, str(path), ""), until)
    (told,) = actor.told(Swapped)
    assert not told.ok
    assert told.why.startswith("ArtifactError: bundle: not a readable ZIP")
    assert actor.faults == {"policy-refused": 1}
    assert actor.runtime is former
    assert not former.closed
    actor.tick(1)
    assert actor.plant.applied == [(1, 2, 0.5, 2)]


def test_a_starting_actor_whose_last_network_is_refused_acts_with_the_installed_one(
    make_actor: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    actor = make_actor()
    actor.told()
    path = tmp_path / "gen.edgert"
    path.write_bytes((BUNDLE.parent / "space_invaders.edgert").read_bytes())
    actor.load(Swap(4, str(path), ""), until)
    until(lambda: actor.loader.done.qsize(), "the installed network")
    actor._swap_if_ready()
    assert actor.runtime is not None
    assert actor.generation == 0
    assert [told.ok for told in actor.told(Swapped)] == [False]


def test_an_installed_network_that_is_refused_is_an_event_and_not_tried_again(
    make_actor: Callable[..., Any], until: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "installed.edgert"
    path.write_bytes(b"junk")
    actor = make_actor()
    actor.told()
    actor.load(Swap(0, str(path), ""), until)
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
    make_actor: Callable[..., Any], configured: Callable[..., config.Config], caplog: pytest.LogCaptureFixture
) -> None:
    kept = "ring-begun-anew"
    first = make_actor()
    assert not first.parent._kept
    first.ring.close()
    again = make_actor()
    assert not again.parent._kept, "the same ring was taken up again"
    again.ring.close()
    other = make_actor(learn__ring_transitions=200)
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
    shown: Callable[..., Observation], make_actor: Callable[..., Any], folder: Path, until: Callable[..., None]
) -> None:
    supervisor = Supervisor(folder / "control.sock")
    actor, stopping = make_actor(), Asked()
    plant = actor.plant
    plant.shows = [shown(seq) for seq in range(1, 10_000)]
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


class Silent:
    """A plant that nobody asks."""

    paced, last_fault = False, ""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.waits_s: list[float] = []

    def observe(self, timeout_s: float) -> Observation | None:
        self.waits_s.append(timeout_s)
        time.sleep(0.002)
        return None

    def apply(self, action: int, **how: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_an_actor_that_nobody_asks_says_at_once_that_it_can_act_and_then_wakes_up_seldom(
    make_actor: Callable[..., Any], folder: Path, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"QUIET_S": 0.05, "REPORT_S": 1000.0, "QUIET_REPORT_S": 1000.0}.items():
        monkeypatch.setattr(program, name, value)
    supervisor, plant, stopping = Supervisor(folder / "control.sock"), Silent(), Asked()
    actor = make_actor(plant)
    loop = threading.Thread(
        daemon=True,
        target=lambda: actor.run(Swap(0, str(BUNDLE), ""), stopping),  # type: ignore[arg-type]  # `Asked`
    )
    loop.start()
    try:
        until(lambda: [t for t in supervisor.look() if isinstance(t, ActorReport) and t.acting], "that it can act")
        until(lambda: plant.waits_s[-1] == program.QUIET_IDLE_S, "long waits")
    finally:
        stopping.asked = True
        loop.join(10)
    supervisor.close()
    assert isinstance(supervisor.heard[0], Hello)
    assert [t.acting for t in supervisor.heard if isinstance(t, ActorReport)] == [False, True]
    assert plant.waits_s[0] == program.LOADING_IDLE_S


def test_a_world_in_lockstep_gets_the_last_safe_action_too(
    make_actor: Callable[..., Any], folder: Path, until: Callable[..., None]
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
    actor = make_actor(SimulatedPlant(folder / "world.sock", SHAPE))

    actor.give([0.0, 0.0, 5.0, 0.0])  # anything but the safe action
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
    make_actor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ORPHAN_S", 0.1)
    actor = make_actor()
    assert actor.run(Swap(0, str(BUNDLE), ""), Asked()) == 75  # type: ignore[arg-type]  # `Asked`
    assert actor.applied()[-1] == MANIFEST.safe_action


def test_thresholds_of_the_configuration_that_do_not_fit_are_its_fault(make_actor: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.thresholds: 1 thresholds for 3 exits"):
        make_actor(policy__thresholds=[0.5])
