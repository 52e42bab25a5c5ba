"""Teachers behind a daemon of the test's own: late, twice, never, refused, gone, and wrong."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import wire
from edgert.client.teacher import JUDGED_LATER, Knowledge, Teacher
from edgert.errors import UsageError
from edgert.knowledge.codec import CODECS
from edgert.nets import F32, U8
from edgert.ports import ipc
from edgert.ports.desk import Desk
from edgert.ports.mqtt import Mqtt, Received
from edgert.values import Answer, Budget

CELLS, GAMMA = 6, 0.9


def corridor(cell: int) -> U8:
    obs = np.zeros((1, CELLS, 1), np.uint8)
    obs[0, cell] = 1
    return obs


def optimal() -> F32:
    """(cells, 2): what going left and right are worth where the end of the corridor on the right pays 1."""
    q = np.zeros((CELLS, 2))
    for _ in range(200):
        for cell in range(CELLS):
            right = 1.0 if cell == CELLS - 1 else GAMMA * q[cell + 1].max()
            q[cell] = GAMMA * q[max(0, cell - 1)].max(), right
    return q.astype(np.float32)


def taught(obs: U8) -> F32:
    return optimal()[obs[:, 0, :, 0].argmax(1)]


class Daemon:
    """A daemon with a teacher behind it."""

    def __init__(self, path: Path) -> None:
        self.model: Callable[[U8], F32] = taught
        self.kind = "q"
        self.refusal = ""
        self.copies = 1
        self.payload: bytes | None = None
        self.bytes_per_s = 1e6
        self.asked: list[wire.KnowAsk] = []
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        desk, told = Desk(self.path), ()
        while not self._stop.wait(0.005):
            asks = desk.receive()
            if told != desk.numbers():
                told = desk.numbers()
                for number in told:
                    budget = Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=self.bytes_per_s)
                    desk.tell(number, budget)
            for number, ask in asks:
                for _ in range(self.copies):
                    desk.tell(number, Answer(ask.ask_id, self.payload or wire.encode(self.answer(ask.payload))))
            desk.flush()
        desk.close()

    def answer(self, payload: bytes) -> wire.KnowAnswer:
        ask, _ = wire.decode(payload, wire.KnowAsk)
        self.asked.append(ask)
        said: dict[str, Any] = {"teacher": "t", "count": 0, "codec": ask.codec, "data": b""}
        if self.refusal:
            return wire.KnowAnswer(**said, error=self.refusal, retry_s=0.1)
        rows = self.model(CODECS[ask.codec].decode_obs(ask.data, ask.count, ask.obs_shape))
        told = {"kind": self.kind, "count": len(rows), "data": CODECS[ask.codec].encode_q(rows)}
        return wire.KnowAnswer(**(said | told))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    yield directory / "s"
    shutil.rmtree(directory)


@pytest.fixture
def serve(path: Path) -> Iterator[Callable[[], Daemon]]:
    started: list[Daemon] = []

    def start() -> Daemon:
        started.append(Daemon(path))
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Teacher]]:
    made: list[Teacher] = []

    def describe(**said: Any) -> Teacher:
        made.append(Teacher(path, **{"task": "corridor", "n_actions": 2, "gamma": GAMMA, "wait_s": 0.0, **said}))
        return made[-1]

    yield describe
    for teacher in made:
        teacher.close()


def walk(teacher: Teacher, steps: int, seed: int = 0) -> None:
    """A student that tries left and right at random."""
    rng, cell = np.random.default_rng(seed), 0
    number = teacher.saw(corridor(cell))
    for _ in range(steps):
        action = int(rng.integers(2))
        ended = action == 1 and cell == CELLS - 1
        cell = 0 if ended else max(0, cell + 2 * action - 1)
        before, number = number, teacher.saw(corridor(cell))
        teacher.lived(before, action, float(ended), None if ended else number)


def test_what_was_seen_becomes_known(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    daemon, teacher = serve(), make(actions="left right")
    numbers = [teacher.saw(corridor(cell)) for cell in (2, 3, 2)]
    assert numbers == [0, 1, 2]
    until(lambda: teacher.status()["known"] == 2, "both answers")
    q = optimal()
    for told, cell in zip(teacher.knowledge(numbers), (2, 3, 2), strict=True):
        assert told is not None and told.kind == "q" and told.action == 1
        np.testing.assert_array_equal(told.scores, q[cell])
        assert told.value == q[cell].max() and not told.scores.flags.writeable
        assert set(told.told()) == {"q", "value", "age_s"}
    assert teacher.known(corridor(3)) == teacher.knowledge([1])[0]
    assert teacher.known(corridor(5)) is None and teacher.knowledge([99, -1]) == [None, None]
    assert teacher.usual_value == pytest.approx(float(q[[2, 3]].max(1).mean()))
    assert {ask.actions for ask in daemon.asked} == {"left right"}
    assert teacher.status()["up"] and teacher.status()["faults"] == {}


def test_logits_and_a_value(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    daemon, teacher = serve(), make()
    daemon.kind, daemon.model = "policy", lambda obs: np.array([[1.0, -1.0, 7.0]] * len(obs), np.float32)
    teacher.saw(corridor(0))
    until(lambda: teacher.known(corridor(0)), "an answer")
    told = teacher.known(corridor(0))
    assert isinstance(told, Knowledge) and (told.kind, told.value, told.action) == ("policy", 7.0, 0)
    np.testing.assert_array_equal(told.told()["logits"], [1.0, -1.0])


def test_a_good_teacher_is_believed_and_one_that_turns_things_round_is_not(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    daemon, teacher = serve(), make()
    walk(teacher, 200)
    until(lambda: teacher.status()["known"] == CELLS, "all answers")
    assert teacher.weight == 0.0
    for seed in range(4):
        walk(teacher, 2 * JUDGED_LATER, seed)
        until(lambda: len(teacher._lived) < 2 * JUDGED_LATER, "the judgement")
    until(lambda: teacher.weight > 0.5, "trust")

    daemon.model = lambda obs: -taught(obs)
    liar = make()
    seeds = iter(range(1000))

    def caught() -> bool:
        walk(liar, JUDGED_LATER, next(seeds))
        return any(name.startswith("teacher-off-") for name in liar.status()["faults"])

    until(caught, "the liar to be found out")
    until(lambda: liar.status()["known"] == 0 and liar.weight == 0.0, "its words to be forgotten")


@pytest.mark.parametrize(
    ("misbehave", "fault"),
    [
        ({"refusal": "unknown-task"}, "refused-unknown-task"),
        ({"refusal": "over-budget"}, "refused-over-budget"),
        ({"payload": b"junk"}, "answer-malformed"),
        ({"copies": 2}, "answer-twice"),
        ({"model": lambda obs: np.full((len(obs), 2), np.nan, np.float32)}, "answer-not-finite"),
    ],
)
def test_what_goes_wrong_is_counted_by_name_and_harms_nobody(
    serve: Callable[[], Daemon],
    make: Callable[..., Teacher],
    until: Callable[..., None],
    misbehave: dict[str, Any],
    fault: str,
) -> None:
    daemon, teacher = serve(), make()
    for name, value in misbehave.items():
        setattr(daemon, name, value)
    walk(teacher, 50)
    until(lambda: fault in teacher.status()["faults"], fault)
    walk(teacher, 50)


def test_an_observation_too_large_for_a_message_is_named_and_is_in_nobodys_way(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    daemon, teacher = serve(), make()
    daemon.model = lambda obs: np.ones((len(obs), 2), np.float32)
    shape = (600, 600, 3)
    large = np.random.default_rng(0).integers(0, 256, shape, np.uint8)  # nothing makes it smaller
    plain = np.zeros(shape, np.uint8)
    for _ in range(3):
        teacher.saw(large)
    teacher.saw(plain)
    until(lambda: teacher.known(plain), "an answer about what fits")
    until(lambda: "observation-too-large" in teacher.status()["faults"], "the fault")
    assert set(teacher.status()["faults"]) == {"observation-too-large"} and teacher.status()["up"]
    assert teacher.known(large) is None and teacher.status()["forgotten"] == 3


def test_a_question_is_cut_to_what_the_daemon_takes(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    daemon, rng = serve(), np.random.default_rng(0)
    daemon.bytes_per_s = 6000.0  # 64 KiB at once, and four of these observations in it
    daemon.model = lambda obs: np.ones((len(obs), 2), np.float32)
    teacher = make(wait_s=0.5, batch=8)
    seen = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(8)]
    for obs in seen:
        teacher.saw(obs)
    until(lambda: teacher.status()["known"] >= 4, "the first answers")
    assert {ask.count for ask in daemon.asked} <= {1, 2, 4} and teacher.status()["faults"] == {}


def answer_over(mqtt: Mqtt) -> None:
    """A teacher at a broker: answer what was asked since the last time."""
    for event in mqtt.events():
        if isinstance(event, Received) and event.response_topic:
            ask, _ = wire.decode(event.payload, wire.KnowAsk)
            rows = CODECS[ask.codec].encode_q(taught(CODECS[ask.codec].decode_obs(ask.data, ask.count, ask.obs_shape)))
            told = wire.KnowAnswer(teacher="t", count=ask.count, codec=ask.codec, data=rows)
            mqtt.publish(event.response_topic, wire.encode(told), qos=1, correlation=event.correlation)


def test_a_link_whose_thread_died_is_replaced(mosquitto: Any, until: Callable[..., None]) -> None:
    with (
        Mqtt(mosquitto.url, "teacher-of-dying", session_expiry_s=0) as mqtt,
        Teacher(mosquitto.url, task="corridor", n_actions=2, fleet="dying", wait_s=0.0, timeout_s=1.0) as teacher,
    ):
        mqtt.subscribe([("edgert/v1/dying/+/know/ask/corridor", 1)])

        def knows(cell: int) -> bool:
            answer_over(mqtt)
            return teacher.known(corridor(cell)) is not None

        teacher.saw(corridor(0))
        until(lambda: knows(0), "an answer")
        teacher._link._mqtt._turn = lambda: False  # type: ignore[union-attr]  # the thread's body: it ends
        until(lambda: "link-thread-dead" in teacher.status()["faults"], "the death to be noticed")
        teacher.saw(corridor(1))
        until(lambda: knows(1), "an answer over another connection")
        assert teacher.status()["faults"]["link-thread-dead"] == 1


def test_nobody_there_and_then_somebody_and_then_another(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    teacher = make(timeout_s=0.2)
    walk(teacher, 20)
    assert teacher.known(corridor(0)) is None and not teacher.status()["up"]
    daemon = serve()
    until(lambda: teacher.known(corridor(0)), "an answer of the first")
    daemon.stop()
    until(lambda: not teacher.status()["up"], "the loss to be noticed")
    teacher.saw(corridor(5))
    serve()
    until(lambda: teacher.known(corridor(5)), "an answer of the second")


def test_a_stranger_at_the_path_is_survived(
    path: Path, make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    with ipc.listen(path) as listener:
        teacher = make()
        teacher.saw(corridor(0))
        channels = []
        until(lambda: channels.append(ipc.accept(listener)) or channels[-1], "a connection")
        channels[-1].send_map({"t": "nonsense"})
        channels[-1]._socket.send(b"\xff\xff\xff\xff")
        until(lambda: channels.append(ipc.accept(listener)) or channels[-1], "a new connection")
        for channel in channels:
            if channel is not None:
                channel.close()


def test_memory_is_bounded(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    serve()
    teacher = make(capacity=3)
    for cell in range(CELLS):
        teacher.saw(corridor(cell))
        until(lambda cell=cell: teacher.known(corridor(cell)), f"an answer about {cell}")
    assert teacher.status()["known"] == 3 and teacher.known(corridor(0)) is None
    assert teacher.knowledge([0])[0] is None and teacher.knowledge([CELLS - 1])[0] is not None


@pytest.mark.parametrize(
    "said",
    [{"task": "a/b"}, {"fleet": ""}, {"n_actions": 0}, {"gamma": 1.5}, {"bytes_per_s": 0.0}, {"timeout_s": 0.0}],
)
def test_a_description_that_makes_no_sense(make: Callable[..., Teacher], said: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(**said)


def test_observations_of_another_kind_are_the_callers_fault(make: Callable[..., Teacher]) -> None:
    teacher = make()
    teacher.saw(corridor(0))
    for wrong in (np.zeros((1, CELLS, 1), np.float32), np.zeros(CELLS, np.uint8), np.zeros((1, 1, 1), np.uint8)):
        with pytest.raises(UsageError, match="an observation is uint8"):
            teacher.saw(wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_a_broker_url_that_makes_no_sense_costs_the_knowledge_and_not_the_training(
    until: Callable[..., None],
) -> None:
    with Teacher("mqtt://user@", task="t", n_actions=2) as teacher:
        teacher.saw(corridor(0))
        until(lambda: "link-broken" in teacher.status()["faults"], "the fault")
        teacher.saw(corridor(0))


def test_pickled_it_is_the_same_description_and_asks_for_itself(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    serve()
    teacher = make()
    teacher.saw(corridor(0))
    until(lambda: teacher.known(corridor(0)), "an answer")
    with pickle.loads(pickle.dumps(teacher)) as twin:
        assert twin.known(corridor(0)) is None and twin.gamma == GAMMA
        twin.saw(corridor(0))
        until(lambda: twin.known(corridor(0)), "an answer for the twin")


def _in_a_fork(teacher: Teacher, pipe: Any) -> None:
    teacher.saw(corridor(1))
    while teacher.known(corridor(1)) is None:
        time.sleep(0.01)
    pipe.send(float(teacher.known(corridor(1)).value))  # type: ignore[union-attr]  # it is there
    teacher.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_it_asks_for_itself(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    serve()
    teacher = make()
    teacher.saw(corridor(0))
    until(lambda: teacher.known(corridor(0)), "an answer")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_a_fork, args=(teacher, theirs))
    child.start()
    assert ours.poll(30)
    assert ours.recv() == float(optimal()[1].max())
    child.join(30)
    assert child.exitcode == 0 and teacher.known(corridor(1)) is None


def _look_up(teacher: Teacher) -> None:
    assert teacher.known(corridor(0)) is None and teacher.knowledge([0]) == [None]
    teacher.lived(0, 0, 0.0, None)
    teacher.finished(0.0, 1, 0)
    assert teacher.status()["known"] == 0
    teacher.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_is_at_work_waits_for_nobody(make: Callable[..., Teacher]) -> None:
    teacher = make()
    teacher.saw(corridor(0))
    child = multiprocessing.get_context("fork").Process(target=_look_up, args=(teacher,))
    with teacher._lock:
        child.start()
    child.join(30)
    code = child.exitcode
    child.kill()
    child.join()
    assert code == 0


def test_an_environment_that_pays_nonsense_is_not_held_against_the_teacher(
    serve: Callable[[], Daemon], make: Callable[..., Teacher], until: Callable[..., None]
) -> None:
    serve()
    teacher = make()
    walk(teacher, 200)
    until(lambda: teacher.status()["known"] == CELLS, "all answers")
    for nonsense in (float("nan"), float("inf")):
        number = teacher.saw(corridor(0))
        teacher.lived(number, 0, nonsense, None)
        teacher.finished(nonsense, 5, number)
    for seed in range(4):
        walk(teacher, 2 * JUDGED_LATER, seed)
        until(lambda: len(teacher._lived) < 2 * JUDGED_LATER, "the judgement")
    until(lambda: teacher.weight > 0.5, "trust")
    faults = teacher.status()["faults"]
    assert faults["reward-not-finite"] == faults["return-not-finite"] == 2
    assert not any(name.startswith("teacher-off-") for name in faults)


def test_threads_that_show_the_first_observations_at_once_start_one_asker(
    make: Callable[..., Teacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, runs, together = make(), [], threading.Barrier(4)
    monkeypatch.setattr(Teacher, "_run", lambda self, tutor: runs.append(tutor))

    def slow(obs: U8) -> None:
        together.wait(10)
        start(obs)

    start = teacher._start
    monkeypatch.setattr(teacher, "_start", slow)
    threads = [threading.Thread(target=teacher.saw, args=(corridor(0),)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    teacher.close()
    assert len(runs) == 1 and runs[0] is teacher._tutor
