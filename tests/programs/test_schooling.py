"""What the trainer does with teachers of every kind, without a trainer: records made by hand, answers from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgert import config, wire
from edgert.bundle import schema_hash
from edgert.errors import StoreError
from edgert.knowledge import codec
from edgert.knowledge.worth import softmax
from edgert.learn.dqn import Hyper, Learner
from edgert.learn.replay import Replay
from edgert.nets import initialise
from edgert.policy import artifact
from edgert.ports.process import Layout
from edgert.ports.ring import TERMINATED, RingReader, RingWriter
from edgert.programs import schooling as module
from edgert.programs.schooling import Schooling

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
POLICY = artifact.load(BUNDLE.read_bytes())
SHAPE = POLICY.spec.input_shape
HYPER = Hyper(td_weight=0.1, distill_weight=1.0)
SIDE = 12
GAMMA = HYPER.gamma
Values = Callable[[np.ndarray], np.ndarray]


def shown(state: int, noise: int = 0) -> np.ndarray:
    obs = np.zeros(SHAPE, np.uint8)
    obs[state % 10, state // 10, 0] = 1
    obs[:, :, 1].flat[:7] = [noise >> i & 1 for i in range(7)]
    return obs


def right(obs: np.ndarray) -> np.ndarray:
    """The true values of a corridor whose right end pays 1; actions: left, stay, right."""
    row, column = (int(each[0]) for each in np.nonzero(obs[:, :, 0]))
    left = SIDE - 1 - (row + 10 * column)
    return np.array([GAMMA ** max(0, left + 1 - (a == 1) - 2 * (a == 2)) for a in range(3)], np.float32)


class Device:
    """A ring, a replay and a network, and what would be the link."""

    def __init__(self, folder: Path, **changes: object) -> None:
        named = {
            "device.id": "d",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder / "run"),
            "policy.bundle": str(BUNDLE),
            "learn.ring_transitions": 4000,
            "teacher.batch": 64,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        told = config.parse(config.commented_default(named), "test")
        self.layout = Layout(told)
        self.layout.make()
        self.ring = RingWriter(self.layout.ring, SHAPE, 4000, schema_hash(POLICY.manifest))
        self.reader = RingReader(self.layout.ring)
        self.replay = Replay(4000, SHAPE, 3)
        self.learner = Learner(initialise(POLICY.spec, np.random.default_rng(1)))
        self.schooling = Schooling(told, self.layout, POLICY, HYPER)
        self.rng = np.random.default_rng(0)
        self.state, self.episode, self.now_s, self.ask_id = 0, 1, 100.0, 0
        self.asked: dict[int, bytes] = {}

    def live(self, n: int) -> None:
        """Walk about at random, for the most part to the right."""
        first = self.replay.newest_seq + 1
        for _ in range(n):
            action = int(self.rng.choice(3, p=[0.25, 0.25, 0.5]))
            to = int(np.clip(self.state + action - 1, 0, SIDE - 1))
            over = to == SIDE - 1
            self.ring.append(
                shown(self.state, int(self.rng.integers(128))),
                episode=self.episode,
                action=action,
                reward=float(over),
                flags=TERMINATED * over,
                exit=0,
            )
            self.state, self.episode = (0, self.episode + 1) if over else (to, self.episode)
        self.read(first)

    def read(self, first: int, *, lived: bool = True) -> None:
        records = self.reader.read(first, self.reader.newest_seq())
        ended = (records.flags & TERMINATED) > 0
        seqs = records.seq.astype(np.int64)
        self.replay.add(seqs, records.obs, records.action, records.reward, ended, np.zeros(len(ended), bool))
        self.schooling.saw(records, self.replay, self.learner, lived=lived)

    def send(self, payload: bytes) -> int:
        self.ask_id += 1
        self.asked[self.ask_id] = payload
        return self.ask_id

    def talk(self, values: Values, *, turns: int = 1) -> None:
        for _ in range(turns):
            self.now_s += 1.0
            for _ in range(4):
                self.schooling.ask(self.now_s, 1e6, self.replay, self.send)
            for ask_id, payload in self.asked.items():
                told, _ = wire.decode(payload, wire.KnowAsk)
                rows = codec.CODECS[told.codec].decode_obs(told.data, told.count, told.obs_shape)
                q = np.stack([values(row) for row in rows]).astype(np.float32)
                data = codec.CODECS[told.codec].encode_q(q)
                answer = wire.KnowAnswer(teacher="t", count=told.count, codec=told.codec, data=data)
                self.schooling.answer(ask_id, wire.encode(answer), self.now_s, self.replay, self.learner)
            self.asked.clear()
            self.schooling.turn(self.now_s, self.replay)

    def taught(self) -> int:
        return len(self.replay.taught()[0])

    def close(self) -> None:
        self.schooling.close()
        self.ring.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    devices = []

    def make(**changes: object) -> Device:
        devices.append(Device(tmp_path, **changes))
        return devices[-1]

    yield make
    for device in devices:
        device.close()


def school(device: Device, values: Values, n: int) -> None:
    for _ in range(n // 100):
        device.live(100)
        device.talk(values, turns=2)


def test_alone_the_losses_weigh_as_if_there_were_no_teacher(made: Callable[..., Device]) -> None:
    hyper = made().schooling.hyper()
    assert (hyper.td_weight, hyper.distill_weight) == (1.0, 0.0)
    other = made(teacher__enabled=False)
    other.live(100)
    other.talk(right)
    assert other.schooling.hyper() == hyper and other.ask_id == 0 and not other.schooling.judges


def test_a_good_teacher_is_followed_soon(made: Callable[..., Device]) -> None:
    device = made(learn__taught_learning_rate=4 * HYPER.learning_rate)
    assert device.schooling.hyper().learning_rate == HYPER.learning_rate
    school(device, right, 1500)
    assert device.schooling.weight > 0.5 and device.schooling.judges
    hyper, weight = device.schooling.hyper(), device.schooling.weight
    assert hyper.td_weight == pytest.approx(1 - 0.9 * weight)
    assert hyper.distill_weight == pytest.approx(weight**2)
    assert hyper.learning_rate == pytest.approx((1 + 3 * weight) * HYPER.learning_rate)
    assert hyper.gamma == HYPER.gamma
    assert device.taught() > 1000


@pytest.mark.parametrize("bad", [lambda obs: -right(obs), lambda obs: np.ones(3), lambda obs: right(obs)[::-1]])
def test_a_bad_teacher_teaches_nothing_and_is_forgotten(made: Callable[..., Device], bad: Values) -> None:
    device = made()
    weights = []
    for _ in range(50):
        school(device, bad, 100)
        weights.append(device.schooling.weight)
        if device.schooling.tutor.faults:
            break
    assert max(weights) == 0.0, "not even for a while"
    assert any(fault.startswith("teacher-off-") for fault in device.schooling.all_faults())
    assert device.taught() == 0 and device.schooling.tutor.teacher == ""
    device.talk(bad, turns=2)
    device.schooling.keep()
    assert device.taught() == 0
    assert device.schooling._cache is not None and device.schooling._cache.count == 0, "nor does the disk remember"
    assert device.schooling.hyper().td_weight == 1.0


def test_nothing_is_asked_twice_not_even_after_a_restart(made: Callable[..., Device]) -> None:
    device = made()
    school(device, right, 500)
    known, packed = device.taught(), device.schooling.tutor.pack()
    assert known > 300
    device.close()
    asked: set[bytes] = {row.tobytes() for row in device.replay.taught()[1]}
    again = made()
    again.schooling.restore(packed, again.now_s)
    again.read(1, lived=False)
    assert again.taught() >= known, "what was known finds its transitions"
    again.talk(right, turns=20)
    questions = again.schooling.tutor.student.counters.asked
    assert questions <= 500 - known + 64
    assert asked <= {row.tobytes() for row in again.replay.taught()[1]}
    assert again.schooling.weight == device.schooling.weight


def test_what_only_the_disk_knows_is_looked_up_before_it_is_asked(made: Callable[..., Device]) -> None:
    device = made()
    school(device, right, 300)
    device.schooling.keep()
    known = device.taught()
    device.schooling.tutor.student._known.clear()
    device.replay.forget_taught()
    before = device.ask_id
    device.read(1, lived=False)
    while device.taught() < known and device.now_s < 1000:
        device.now_s += 1.0
        device.schooling.ask(device.now_s, 1e6, device.replay, device.send)
    assert device.taught() >= known
    assert device.ask_id - before <= 4


def test_a_full_disk_costs_asking_again_and_is_said(
    made: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = made()

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(module.KnowledgeCache, "put", full)
    school(device, right, 300)
    device.schooling.keep()
    assert device.schooling.faults["knowledge-not-kept"] >= 1 and device.taught() > 100
    assert device.schooling.tutor.student.fresh, "kept in memory for a better time"


def test_a_full_disk_is_tried_from_time_to_time_and_not_at_every_answer(
    made: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, tries = made(), 0

    def full(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise StoreError("the disk is full")

    monkeypatch.setattr(module.KnowledgeCache, "put", full)
    monkeypatch.setattr(module, "KEEP_ROWS", 10)
    school(device, right, 300)
    tries, first_s = 0, device.now_s
    for _ in range(100):
        device.now_s += 0.5
        device.schooling.turn(device.now_s, device.replay)
    assert 0 < tries <= (device.now_s - first_s) / module.KEEP_S + 1


def test_a_question_that_no_message_carries_is_not_asked_again(
    made: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = made()
    monkeypatch.setattr(module, "ASK_BYTES", 10)
    school(device, right, 100)
    assert not device.ask_id and device.schooling.all_faults()["observation-too-large"] > 1
    assert device.schooling.tutor.student.counters.forgotten > 1


def test_a_cache_that_cannot_be_opened_is_done_without(made: Callable[..., Device]) -> None:
    first, second = made(), made()  # two processes, one file
    assert second.schooling.faults == {"knowledge-not-kept": 1}
    school(second, right, 300)
    assert second.taught() > 100 and first.taught() == 0


def test_what_an_answer_would_not_change_is_hardly_asked(
    made: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = made(teacher__weighing="full")  # a teacher that need not prove itself
    monkeypatch.setattr(device.schooling.worth, "expected", lambda seen: np.zeros(len(seen), np.float32))
    device.live(400)
    counters = device.schooling.tutor.student.counters
    assert counters.spared > 200
    device.talk(right, turns=20)
    assert 0 < counters.asked < 200, "some are asked all the same, or nobody would notice a change"


def test_an_opinion_that_cannot_be_read_is_said(made: Callable[..., Device]) -> None:
    device = made()
    device.schooling.restore(b"", 0.0)
    assert not device.schooling.faults, "nobody had one"
    device.schooling.restore(b'{"teacher": 3}', 0.0)
    assert device.schooling.faults == {"trust-not-read": 1} and device.schooling.weight == 0.0


def test_evidence_of_a_former_life_is_not_counted_again(made: Callable[..., Device]) -> None:
    device = made()
    device.live(600)
    device.talk(right, turns=8)
    device.schooling.keep()
    packed = device.schooling.tutor.pack()
    blocks = device.schooling.tutor.trust.state.blocks
    assert blocks > 3
    device.schooling.close()
    for life in range(1, 4):  # killed again and again
        again = made()
        again.rng = np.random.default_rng(life)
        again.schooling.restore(packed, again.now_s)
        again.read(1, lived=False)
        assert again.taught() >= 600
        again.live(8)
        again.talk(right, turns=3)
        assert again.schooling.tutor.student.counters.answered > 0
        assert again.schooling.tutor.trust.state.blocks == blocks
        packed = again.schooling.tutor.pack()
        again.schooling.close()


def test_episodes_of_a_former_life_are_not_counted_again(made: Callable[..., Device]) -> None:
    device = made()
    device.live(300)
    n = len(device.schooling.tutor.trust.state.returns)
    assert n > 3
    device.replay = Replay(4000, SHAPE, 3)
    device.read(1, lived=False)
    assert len(device.schooling.tutor.trust.state.returns) == n


def test_a_student_that_is_a_policy_says_values_in_its_last_column_and_preferences_in_logits(
    made: Callable[..., Device],
) -> None:
    device = made()
    rows = np.float32([[1, 2, 3, -7], [0, 0, 0, 5]])
    assert device.schooling._value(rows).tolist() == [3, 0]
    np.testing.assert_array_equal(device.schooling._preferences(rows), rows[:, :3])
    device.schooling._is_policy = True
    assert device.schooling._value(rows).tolist() == [-7, 5]
    own = softmax(device.schooling._preferences(rows), HYPER.temperature)
    np.testing.assert_allclose(own, softmax(rows[:, :3], 1.0), rtol=1e-6)
    assert device.schooling.policy_temperature == pytest.approx(0.1 * HYPER.temperature)  # values: sharper
    device.schooling.tutor._kind = "policy"
    assert device.schooling.policy_temperature == HYPER.temperature
    school(device, right, 300)
    assert device.taught() > 100 and not device.schooling.all_faults()
