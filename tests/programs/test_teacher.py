"""Teachers as real processes at a real broker: shared work, death, poison, and a goodbye in good order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgert import wire
from edgert.bundle import action_set
from edgert.knowledge import codec
from edgert.nets import forward
from edgert.policy import artifact
from edgert.ports.mqtt import LinkUp, Mqtt, Received
from edgert.programs import teacher as program

HOUSE = Path(__file__).parents[2]
BUNDLE = HOUSE / "models" / "breakout-teacher.edgert"
OTHER = HOUSE / "models" / "space_invaders-teacher.edgert"

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def policy():
    return artifact.load(BUNDLE.read_bytes())


@pytest.fixture
def fleet():
    return f"f{uuid.uuid4().hex[:8]}"


class Process:
    """A teacher process."""

    def __init__(self, url, fleet, name, directory, models, *more):
        self.file = directory / f"{name}.json"
        self.log = (directory / f"{name}.log").open("wb")
        said = [
            *(word for each in models for word in ("--model", each)),
            "--broker",
            url,
            "--fleet",
            fleet,
            "--name",
            name,
            "--status-file",
            self.file,
            *more,
        ]
        command = [sys.executable, "-m", "edgert.programs.teacher", *map(str, said)]
        self.process = subprocess.Popen(
            command, stderr=self.log, cwd=HOUSE, env={**os.environ, "PYTHONPATH": str(HOUSE)}
        )

    def status(self):
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def up(self):
        assert self.process.poll() is None, Path(self.log.name).read_text()
        return self.status().get("up", False)

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(20)


@pytest.fixture
def teachers(tmp_path, until):
    started = []

    def start(url, fleet, *names, models=(BUNDLE,), more=()):
        new = [Process(url, fleet, name, tmp_path, models, *more) for name in names]
        started.extend(new)
        for each in new:
            until(each.up, "the teacher to be up")
        return new

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        each.log.close()


class Student:
    """Asks by hand and keeps what comes back."""

    def __init__(self, url, fleet, until, policy, device="pi-1"):
        self.policy, self.until, self.device = policy, until, device
        self.topic = str(wire.Topic(fleet, device, "know", "ask", policy.manifest.task))
        self.answer_topic = self.topic.replace("/ask/", "/answer/")
        self.mqtt = Mqtt(url, f"student-{uuid.uuid4().hex[:8]}", session_expiry_s=0).start()
        self.answers: dict[bytes, list[wire.KnowAnswer]] = {}
        self.telemetry: list[dict] = []
        self.heard: list[Received] = []
        self.was_up = False
        self.mqtt.subscribe([(self.answer_topic, 1), (str(wire.Topic(fleet, "+", "tele", "teacher", "+")), 0)])
        until(self.look, "the student to be connected")

    def look(self):
        for event in self.mqtt.events():
            match event:
                case LinkUp():
                    self.was_up = True
                case Received() if "/tele/" in event.topic:
                    self.telemetry.append(wire.decode(event.payload, wire.Telemetry)[0].status)
                case Received():
                    self.heard.append(event)
                    told, _ = wire.decode(event.payload, wire.KnowAnswer)
                    self.answers.setdefault(event.correlation, []).append(told)
        return self.was_up

    def publish(self, payload, correlation=None, **options):
        assert self.mqtt.publish(self.topic, payload, qos=1, correlation=correlation, **options)

    def ask(self, obs, number, **changes):
        spec, told = self.policy.spec, {"count": len(obs), "codec": 1, "data": codec.encode_obs(obs)}
        said = {"task": self.policy.manifest.task, "obs_shape": spec.input_shape, "n_actions": spec.n_actions, **told}
        correlation = number.to_bytes(8, "big")
        self.publish(wire.encode(wire.KnowAsk(**(said | changes))), correlation, response_topic=self.answer_topic)
        return correlation

    def wait(self, *correlations):
        def all_there():
            self.look()
            return set(correlations) <= set(self.answers)

        self.until(all_there, "the answers")
        return [self.answers[each][0] for each in correlations]

    def truth(self, obs):
        last = self.policy.spec.n_exits - 1
        return forward(self.policy.params, obs, exits=(last,))[last][:, : self.policy.spec.n_actions]

    def agrees(self, told, obs):
        assert told.error == ""
        q = codec.decode_q(told.data, told.count, self.policy.spec.n_actions)
        np.testing.assert_allclose(q, self.truth(obs), rtol=1e-4, atol=1e-4)


@pytest.fixture
def student(policy, until):
    made = []

    def make(url, fleet, device="pi-1", of=policy):
        made.append(Student(url, fleet, until, of, device))
        return made[-1]

    yield make
    for each in made:
        each.mqtt.close()


def vector_policy(weight):
    """Two outputs, logits and value, of a vector."""
    rows, columns = weight.shape
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["obs", "w"], ["all"]),
                helper.make_node("Split", ["all", "sizes"], ["pi", "v"], axis=1),
            ],
            "g",
            [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["n", rows])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("pi", "v")],
            [
                numpy_helper.from_array(weight, "w"),
                numpy_helper.from_array(np.array([columns - 1, 1], np.int64), "sizes"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


def observations(policy, n, seed):
    return (np.random.default_rng(seed).random((n, *policy.spec.input_shape)) < 0.1).astype(np.uint8)


def test_two_teachers_share_the_work_and_agree(mosquitto, fleet, teachers, student, policy, until):
    pair = teachers(mosquitto.url, fleet, "t1", "t2")
    pupils = [student(mosquitto.url, fleet, f"pi-{i}") for i in range(2)]
    batches = {pupil: [observations(policy, 5, 100 * i + j) for j in range(15)] for i, pupil in enumerate(pupils)}
    asked = {pupil: [pupil.ask(obs, j) for j, obs in enumerate(batches[pupil])] for pupil in pupils}
    for pupil in pupils:
        for told, obs in zip(pupil.wait(*asked[pupil]), batches[pupil], strict=True):
            pupil.agrees(told, obs)
            assert told.teacher == pair[0].status()["teacher"]
        assert {event.topic for event in pupil.heard} == {pupil.answer_topic}, "nobody hears another's answers"
        assert all(event.content_type == wire.CONTENT_TYPE for event in pupil.heard)
        assert all(0 < event.expiry_s <= 30 for event in pupil.heard)
    until(lambda: sum(each.status()["answers"] for each in pair) == 30, "the counters")
    assert all(each.status()["answers"] > 0 for each in pair)
    until(lambda: pupils[0].look() and len({t["cpu_s"] for t in pupils[0].telemetry}) > 1, "telemetry")


def test_what_waits_is_answered_at_once_and_repetitions_from_memory(mosquitto, fleet, teachers, student, policy, until):
    [only] = teachers(mosquitto.url, fleet, "t1")
    pupil = student(mosquitto.url, fleet)
    obs = observations(policy, 8, 1)
    only.process.send_signal(signal.SIGSTOP)
    asked = [pupil.ask(obs, number) for number in range(10)]
    only.process.send_signal(signal.SIGCONT)
    for told in pupil.wait(*asked):
        pupil.agrees(told, obs)
    until(lambda: only.status()["answers"] == 10, "the counters")
    status = only.status()
    assert status["cache_hits"] == 72
    assert status["cache_misses"] == 8
    assert status["largest_batch"] > 1
    assert status["faults"] == {}


def test_one_is_killed_and_the_other_goes_on(mosquitto, fleet, teachers, student, policy, until):
    doomed, other = teachers(mosquitto.url, fleet, "t1", "t2")
    pupil = student(mosquitto.url, fleet)
    obs = observations(policy, 3, 2)
    doomed.process.send_signal(signal.SIGSTOP)
    asked = [pupil.ask(obs, number) for number in range(10)]
    until(lambda: pupil.look() and len(pupil.answers) >= 5, "the other one's share")
    doomed.process.kill()
    doomed.process.wait()
    # A broker may hand on what the dead one had been given; mosquitto 2.0.11 drops it. Whoever asks again is answered.
    later = [pupil.ask(obs, number) for number in range(10, 20)]
    for told in pupil.wait(*later):
        pupil.agrees(told, obs)
    lost = [correlation for correlation in asked if correlation not in pupil.answers]
    again = [pupil.ask(obs, 100 + number) for number, _ in enumerate(lost)]
    for told in pupil.wait(*again):
        pupil.agrees(told, obs)
    assert other.process.poll() is None


def test_poison_is_counted_and_never_fatal(mosquitto, fleet, teachers, student, policy, until):
    [only] = teachers(mosquitto.url, fleet, "t1")
    pupil = student(mosquitto.url, fleet)
    rng, obs = np.random.default_rng(3), observations(policy, 4, 3)
    for size in rng.integers(0, 400, 40):
        pupil.publish(rng.bytes(int(size)))
    good = wire.encode(wire.EventAck(stream="s", up_to=1))
    pupil.publish(good)
    pupil.publish(bytes([0x81]) * 20_000)
    pupil.publish(good, response_topic=pupil.answer_topic.replace("pi-1", "pi-2"))
    pupil.publish(good, response_topic="$SYS/x")
    refused = {
        "unknown-task": pupil.ask(obs, 1, task="another"),
        "obs-shape": pupil.ask(obs, 2, obs_shape=(1, 2, 3)),
        "n-actions": pupil.ask(obs, 3, n_actions=policy.spec.n_actions + 1),
        "codec": pupil.ask(obs, 4, codec=77),
        "malformed-data": pupil.ask(obs, 5, count=4096),
    }
    told = pupil.wait(*refused.values(), right := pupil.ask(obs, 6))
    assert [each.error for each in told] == [*refused, ""]
    pupil.agrees(pupil.answers[right][0], obs)
    until(lambda: only.status()["asks"] == 50, "the counters")
    assert only.status()["faults"] == {**dict.fromkeys(refused, 1), "malformed": 42, "response-topic": 2}


def test_three_replicas_one_is_killed_in_the_middle_of_the_work(mosquitto, fleet, teachers, student, policy, until):
    trio = teachers(mosquitto.url, fleet, "t1", "t2", "t3")
    pupils = [student(mosquitto.url, fleet, f"pi-{i}") for i in range(2)]
    obs = {number: observations(policy, 2, 1000 + number) for number in range(120)}
    for number in range(0, 60):
        pupils[number % 2].ask(obs[number], number)
    until(lambda: [pupil.look() for pupil in pupils] and sum(len(pupil.answers) for pupil in pupils) >= 20, "work")
    trio[1].process.kill()
    for number in range(60, 120):
        pupils[number % 2].ask(obs[number], number)
    trio[1].process.wait()

    def complete():
        # What a student does: whatever was not answered in time is asked again.
        missing = [n for n in obs if pupils[n % 2].look() and n.to_bytes(8, "big") not in pupils[n % 2].answers]
        for number in missing:
            pupils[number % 2].ask(obs[number], number)
        time.sleep(0.3 if missing else 0)
        return not missing

    until(complete, "all answers")
    for number, each in obs.items():
        for told in pupils[number % 2].answers[number.to_bytes(8, "big")]:
            pupils[number % 2].agrees(told, each)
    for each in (trio[0], trio[2]):
        assert each.process.poll() is None
        assert each.stop() == 0
        assert each.status()["answers"] > 0


def test_one_process_teaches_several_tasks(mosquitto, fleet, teachers, student, policy, until, tmp_path):
    metrics, foreign = tmp_path / "teacher.prom", tmp_path / "net.onnx"
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    onnx.save(vector_policy(weight), str(foreign))
    other = artifact.load(OTHER.read_bytes())
    [only] = teachers(
        mosquitto.url,
        fleet,
        "t1",
        models=(BUNDLE, OTHER, f"walk={foreign}?scale=0.5&actions=l,m,r"),
        more=("--metrics", metrics),
    )
    pupils = {each.manifest.task: student(mosquitto.url, fleet, of=each) for each in (policy, other)}
    for pupil in pupils.values():
        obs = observations(pupil.policy, 5, 8)
        asked = [pupil.ask(obs, 1), pupil.ask(obs, 2)]
        for told in pupil.wait(*asked):
            pupil.agrees(told, obs)
    walker = student(mosquitto.url, fleet, device="pi-2")
    walker.topic, walker.answer_topic = (
        each.replace("/breakout", "/walk") for each in (walker.topic, walker.answer_topic)
    )
    walker.mqtt.subscribe([(walker.answer_topic, 1)])
    obs = np.random.default_rng(9).integers(0, 256, (3, 1, 1, 6), np.uint8)
    walk = {"task": "walk", "obs_shape": (1, 1, 6), "n_actions": 3}
    right, wrong, size = walker.wait(
        walker.ask(obs, 1, **walk, actions=action_set("lmr")),
        walker.ask(obs, 2, **walk, actions=action_set("rml")),
        walker.ask(obs, 3, **(walk | {"n_actions": 4})),
    )
    assert (right.kind, wrong.error, size.error) == ("policy", "actions", "n-actions")
    np.testing.assert_allclose(
        codec.decode_q(right.data, 3, 4), (obs.reshape(3, 6) * np.float32(0.5)) @ weight, rtol=1e-4, atol=1e-3
    )
    until(lambda: only.status()["answers"] == 7, "the counters")
    status = only.status()
    assert {task: each["answers"] for task, each in status["tasks"].items()} == {
        "breakout": 2,
        "space_invaders": 2,
        "walk": 3,
    }
    assert status["faults"] == status["tasks"]["walk"]["faults"] == {"actions": 1, "n-actions": 1}
    assert status["tasks"]["breakout"]["cache_hits"] == 5
    assert len({each["teacher"] for each in status["tasks"].values()}) == 3
    until(lambda: walker.look() and {t["task"] for t in walker.telemetry} == {*status["tasks"]}, "telemetry")

    def value(line):
        return [float(each.rsplit(" ", 1)[1]) for each in metrics.read_text().splitlines() if each.startswith(line)]

    until(lambda: value('edgert_teacher_answers_total{task="walk"}') == [3], "metrics")
    assert value('edgert_teacher_faults_total{task="walk",reason="actions"}') == [1]
    assert value('edgert_teacher_run_rows_count{task="breakout"}') <= [2]
    assert value('edgert_teacher_model_seconds_total{task="breakout"}') > [0]


def test_a_student_beyond_its_budget_is_told_when_to_come_back_and_the_others_are_served(
    mosquitto, fleet, teachers, student, policy, until
):
    [only] = teachers(mosquitto.url, fleet, "t1", more=("--student-bytes-per-s", 100))
    greedy, modest = student(mosquitto.url, fleet, "greedy"), student(mosquitto.url, fleet, "modest")
    obs = observations(policy, 60, 10)
    told = greedy.wait(*[greedy.ask(obs, number) for number in range(6)])
    refused = [each for each in told if each.error]
    assert [each.error for each in told[:1]] == [""]
    assert refused
    assert all(each.error == "over-budget" and 0 < each.retry_s <= 3600 and not each.data for each in refused)
    few = observations(policy, 1, 11)
    modest.agrees(modest.wait(modest.ask(few, 1))[0], few)
    until(lambda: only.status()["faults"] == {"over-budget": len(refused)}, "the counters")


def test_a_message_of_more_than_a_megabyte_harms_nobody(fresh_mosquitto, fleet, teachers, student, policy):
    fresh_mosquitto.configure("max_packet_size 4000000\n")
    [only] = teachers(fresh_mosquitto.url, fleet, "t1")
    pupil = student(fresh_mosquitto.url, fleet)
    big = Mqtt(fresh_mosquitto.url, f"big-{uuid.uuid4().hex[:8]}", max_packet_bytes=4 << 20, max_queue_bytes=8 << 20)
    with big:
        pupil.until(big.is_up, "the link of the big one")
        for size in ((1 << 20) - 3000, (1 << 20) + 1000, (1 << 21)):
            assert big.publish(pupil.topic, bytes(size), qos=1)
        obs = observations(policy, 2, 4)
        pupil.agrees(pupil.wait(pupil.ask(obs, 1))[0], obs)
    assert only.process.poll() is None


def test_it_waits_for_its_broker(fresh_mosquitto, fleet, teachers, student, policy, until):
    [only] = teachers(fresh_mosquitto.url, fleet, "t1")
    fresh_mosquitto.kill9()
    until(lambda: not only.status()["up"], "the loss to be noticed")
    fresh_mosquitto.restart()
    until(only.up, "the link to be back")
    pupil, obs = student(fresh_mosquitto.url, fleet), observations(policy, 2, 5)
    pupil.agrees(pupil.wait(pupil.ask(obs, 1))[0], obs)


def test_sigterm_answers_what_is_in_hand(mosquitto, fleet, teachers, student, policy, until):
    [only] = teachers(mosquitto.url, fleet, "t1")
    pupil = student(mosquitto.url, fleet)
    obs = observations(policy, 4, 6)
    only.process.send_signal(signal.SIGSTOP)
    asked = [pupil.ask(obs, number) for number in range(12)]
    token = object()
    assert pupil.mqtt.publish(pupil.topic.replace("/ask/", "/sync/"), b"", qos=1, token=token)
    until(
        lambda: any(getattr(event, "token", None) is token for event in pupil.mqtt.events()), "the broker to have all"
    )
    assert only.stop() == 0
    for told in pupil.wait(*asked):
        pupil.agrees(told, obs)
    assert only.status()["answers"] == 12


def test_all_fleets(mosquitto, fleet, teachers, student, policy, until):
    task = f"task-{fleet}"
    [only] = teachers(mosquitto.url, "+", "t1", more=("--task", task))
    for name in (fleet, f"other-{fleet}"):
        pupil = student(mosquitto.url, name)
        pupil.topic, old = pupil.topic.replace("/breakout", f"/{task}"), pupil.answer_topic
        pupil.answer_topic = old.replace("/breakout", f"/{task}")
        pupil.mqtt.subscribe([(pupil.answer_topic, 1)])
        obs = observations(policy, 2, 7)
        pupil.agrees(pupil.wait(pupil.ask(obs, 1, task=task))[0], obs)
    assert only.process.poll() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"--model": "no-such-file"},
        {"--model": __file__},
        {"--broker": "http://localhost"},
        {"--fleet": "a/b"},
        {"--task": "#"},
        {"--name": "x y"},
        {"--model": f"a={BUNDLE}", "--bundle": f"a={OTHER}"},
        {"--bundle": str(OTHER), "--task": "one-for-two"},
        {"--model": f"{BUNDLE}?layout=nchw"},
        {"--student-bytes-per-s": "nan"},
        {"--cache-bytes": "-1"},
        {"--metrics": "x.txt"},
    ],
    ids=str,
)
def test_wrong_arguments_end_with_78(changes, caplog):
    said = {"--model": str(BUNDLE), "--broker": "mqtt://127.0.0.1:1"} | changes
    assert program.main([word for pair in said.items() for word in pair]) == 78
    assert caplog.records[-1].levelname == "ERROR"
