"""A teacher in this process, without a broker: turns, budgets, failing models, metrics, the last goodbye."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from edgert import wire
from edgert.errors import ArtifactError
from edgert.knowledge import codec, teaching
from edgert.knowledge.teaching import Subject
from edgert.ports.mqtt import LinkDown, Received
from edgert.programs import teacher as program


class Wire:
    """A broker's place: hands out what was put in, keeps what is published."""

    def __init__(self):
        self.near, self.far = socket.socketpair()
        self.coming, self.said, self.takes = [], [], True

    def ask(self, device, obs, task="game", **changes):
        told = {"task": task, "obs_shape": obs.shape[1:], "n_actions": 3, "count": len(obs), "codec": 1}
        payload = wire.encode(wire.KnowAsk(**({**told, "data": codec.encode_obs(obs)} | changes)))
        topic = str(wire.Topic("f", device, "know", "ask", task))
        self.coming.append(Received(topic=topic, payload=payload, qos=1, correlation=b"%d" % len(self.coming)))
        self.far.send(b"x")

    def fileno(self):
        return self.near.fileno()

    def events(self):
        if self.coming:
            self.near.recv(4096)
        events, self.coming = self.coming, []
        return events

    def publish(self, topic, payload, **_):
        if self.takes:
            self.said.append((wire.parse_topic(topic).device, wire.decode(payload, wire.KnowAnswer)[0]))
        return self.takes

    def max_payload_bytes(self, topic):
        return 1 << 20

    def faults(self):
        return {}

    def is_up(self):
        return True

    def rtt_s(self):
        return None

    def unsubscribe(self, filters):
        self.left = filters


@pytest.fixture
def alone():
    """A teacher in this process, of models that are plain functions."""
    made = []

    def make(*models, **options):
        made.append(Wire())
        subjects = [Subject(task, task[:1] * 16, (2, 2, 1), 3, model) for task, model in models]
        return program.Teacher(subjects, made[-1], fleet="f", name="t1", **options), made[-1]

    yield make
    for each in made:
        each.near.close()
        each.far.close()


def thrice(obs):
    return np.repeat(obs.reshape(len(obs), -1)[:, :1].astype(np.float32), 3, 1)


def rows(*kinds):
    return np.repeat(np.array(kinds, np.uint8), 4).reshape(-1, 2, 2, 1)


def test_a_flood_is_refused_and_nobody_waits_behind_it(alone):
    teacher, mqtt = alone(("game", thrice), ("quiet", thrice))
    for _ in range(program.WAITING_EACH + 5):
        mqtt.ask("flood", np.resize(rows(*range(200)), (1000, 2, 2, 1)))
    mqtt.ask("modest", rows(1))
    mqtt.ask("flood", rows(2), task="quiet")
    for _ in range(2):
        assert teacher.turn(0.0)
    assert [(device, told.error) for device, told in mqtt.said if told.error] == [("flood", "over-budget")] * 5
    assert all(told.retry_s == program.BUSY_RETRY_S for _, told in mqtt.said if told.error)
    served = [(device, told.count) for device, told in mqtt.said if not told.error]
    assert served[:4] == [("modest", 1), ("flood", 1000), ("flood", 1000), ("flood", 1)]
    while teacher.turn(0.0):
        pass
    assert teacher.status()["answers"] == program.WAITING_EACH + 7
    assert teacher.status("quiet")["answers"] == 1
    assert teacher.status()["waiting_asks"] == 0


def test_a_budget_counts_both_ways_but_not_its_own_refusals(alone):
    teacher, mqtt = alone(("game", thrice), student_bytes_per_s=20.0)
    for device in ("a", "a", "a", "b"):
        mqtt.ask(device, rows(1, 2))
        teacher.turn(0.0)
    assert [(device, told.error) for device, told in mqtt.said] == [
        ("a", ""),
        ("a", "over-budget"),
        ("a", "over-budget"),
        ("b", ""),
    ]
    first, second = mqtt.said[1][1].retry_s, mqtt.said[2][1].retry_s
    assert 0 < second <= first < 60, "refusals are not charged for"


def test_a_model_that_fails_or_gives_nonsense_is_survived(alone, caplog):
    def broken(obs):
        if obs.max() == 9:
            raise ArtifactError("the graph fell apart")
        return np.full((len(obs), 3), np.nan, np.float32) if obs.max() == 8 else thrice(obs)

    teacher, mqtt = alone(("game", broken))
    for kind in (9, 8, 1, 9):
        mqtt.ask("a", rows(kind))
        teacher.turn(0.0)
    assert [told.error for _, told in mqtt.said] == ["model-failed", "not-finite", "", "model-failed"]
    assert teacher.status()["faults"] == {"model-failed": 2, "not-finite": 1}
    assert caplog.text.count("fell apart") == 1


def test_answers_wait_for_a_broker_that_takes_none_and_questions_with_them(alone, monkeypatch):
    monkeypatch.setattr(program, "BACKLOG_BYTES", 200)
    teacher, mqtt = alone(("game", thrice))
    mqtt.takes = False
    for number in range(4):
        mqtt.ask("a", rows(number))
        teacher.turn(0.0)
    assert len(mqtt.coming) > 0, "they stay with the broker"
    assert teacher.status()["waiting_answers"] < 4
    mqtt.takes = True
    while teacher.turn(0.0) or mqtt.coming:
        pass
    assert len(mqtt.said) == 4


def test_what_cannot_be_answered_in_time_is_refused_when_it_leaves(alone, monkeypatch):
    teacher, mqtt = alone(("game", thrice))
    monkeypatch.setattr(program, "QUIET_S", 0.0)
    mqtt.ask("a", rows(1))
    teacher.drain()
    assert mqtt.left == ["$share/teachers-game/edgert/v1/f/+/know/ask/game"]
    for _ in range(5):
        mqtt.ask("a", np.resize(rows(*range(200)), (2000, 2, 2, 1)))
    assert teacher.turn(0.0)
    monkeypatch.setattr(program, "DRAIN_S", 0.0)
    teacher.drain()
    assert [told.error for _, told in mqtt.said] == ["", "", *["draining"] * 4]


def test_its_metrics_name_every_refusal(alone):
    teacher, mqtt = alone(("game", thrice), ("quiet", thrice))
    mqtt.ask("a", rows(1, 2, 3))
    mqtt.ask("a", rows(1), n_actions=4)
    mqtt.ask("a", rows(1), task="quiet")
    while teacher.turn(0.0):
        pass
    said = dict(line.rsplit(" ", 1) for line in teacher.metrics().splitlines() if not line.startswith("#"))
    expected = {
        'asks_total{task="game"}': "2",
        'rows_total{task="game"}': "3",
        'cache_misses_total{task="game"}': "3",
        'cache_misses_total{task="quiet"}': "1",
        'faults_total{task="game",reason="n-actions"}': "1",
        'run_rows_bucket{task="game",le="1"}': "0",
        'run_rows_bucket{task="game",le="4"}': "1",
        'run_rows_sum{task="game"}': "3",
        'waiting_asks{task="game"}': "0",
        "up": "0",
    }
    assert {key: said[f"edgert_teacher_{key}"] for key in expected} == expected


def test_its_metrics_count_what_made_no_sense_as_well(alone):
    teacher, mqtt = alone(("game", thrice))
    for topic, payload in (
        ("edgert/v1/f/a/know/ask/game", b"junk"),
        ("edgert/v1/f/a/know/ask/unknown", bytes(100)),
        ("nowhere", bytes(1000)),
    ):
        mqtt.coming.append(Received(topic=topic, payload=payload, qos=1))
        mqtt.far.send(b"x")
    teacher.turn(0.0)
    said = dict(line.rsplit(" ", 1) for line in teacher.metrics().splitlines() if not line.startswith("#"))
    assert said['edgert_teacher_received_bytes_total{task="game"}'] == "4"
    assert said['edgert_teacher_received_bytes_total{task=""}'] == "1100"
    assert said['edgert_teacher_asks_total{task=""}'] == "2"
    assert teacher.status()["bytes_in"] == 1104


def test_answers_that_wait_are_weighed_until_they_are_gone(alone):
    teacher, mqtt = alone(("game", thrice))
    mqtt.takes = False
    for number in range(3):
        mqtt.ask("a", rows(number))
        teacher.turn(0.0)

    def weight():
        return sum(program.ITEM_BYTES + len(each.payload) for each in teacher.answers)

    assert len(teacher.answers) == 3 and teacher.answers_bytes == weight() > 0
    mqtt.coming.append(
        LinkDown(reason_code=None, reason="gone", fault=None, retry_s=1.0, unconfirmed=(teacher.answers[0], "other"))
    )
    mqtt.far.send(b"x")
    teacher.turn(0.0)
    assert len(teacher.answers) == 4 and teacher.answers_bytes == weight()
    mqtt.takes = True
    teacher.turn(0.0)
    assert not teacher.answers and teacher.answers_bytes == 0


def test_many_small_questions_are_not_taken_in_beyond_the_memory_there_is(alone, monkeypatch):
    monkeypatch.setattr(program, "BACKLOG_BYTES", 20 * program.ITEM_BYTES)
    # As one busy batch after another would: nothing is answered meanwhile.
    monkeypatch.setattr(program.Turns, "take", lambda self, most: ("", []))
    teacher, mqtt = alone(("game", thrice))
    for i in range(40):
        mqtt.ask(f"device-{i}", rows(1))
        teacher.turn(0.0)
    assert 10 < len(teacher.turns) <= 20 and len(teacher.turns) + len(mqtt.coming) == 40
    monkeypatch.undo()
    while teacher.turn(0.0) or mqtt.coming:
        pass
    assert teacher.status()["answers"] == 40


def test_an_answer_that_its_codec_makes_too_large_is_refused_and_the_others_are_answered(alone, monkeypatch):
    teacher, mqtt = alone(("game", thrice))
    large = codec.CODECS[1]._replace(encode_q=lambda q: bytes(wire.MAX_PAYLOAD_BYTES))
    mqtt.ask("a", rows(1))
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "CODECS", {1: large})
        assert teacher.turn(0.0)
    mqtt.ask("b", rows(1))
    assert teacher.turn(0.0)
    assert [(device, told.error) for device, told in mqtt.said] == [("a", "too-many"), ("b", "")]
