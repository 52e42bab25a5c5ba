"""A node in this process, without a broker: admission, batches, refusals, its load, the last goodbye."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from edgert import modelfile, wire
from edgert.bundle import Golden
from edgert.errors import ArtifactError, ConfigError
from edgert.inference import REFUSALS
from edgert.ports.mqtt import LinkDown, LinkUp, Received
from edgert.ports.runtime.model import Model
from edgert.programs import serve as program

A, B = "a" * 16, "b" * 16


class Wire:
    """A broker's place: hands out what was put in, keeps what is published."""

    def __init__(self):
        self.near, self.far = socket.socketpair()
        self.coming, self.said, self.loads, self.takes, self.left = [], [], [], True, []

    def ask(self, model=A, rows=None, device="d", **changes):
        rows = np.zeros((1, 2), np.float32) if rows is None else rows
        told = {"model": model, "rows": len(rows), "data": rows.astype("<f4").tobytes(), "left_s": 5.0} | changes
        topic = str(wire.Topic("f", device, "infer", "ask", "edge"))
        payload = wire.encode(wire.InferAsk(**told))
        self.put(Received(topic=topic, payload=payload, qos=1, correlation=b"%d" % len(self.said)))

    def put(self, *events):
        self.coming += events
        self.far.send(b"x")

    def fileno(self):
        return self.near.fileno()

    def events(self):
        if self.coming:
            self.near.recv(4096)
        events, self.coming = self.coming, []
        return events

    def publish(self, topic, payload, **said):
        if not self.takes:
            return False
        if "/load/" in topic:
            self.loads.append(payload and wire.decode(payload, wire.InferLoad)[0])
            assert said["retain"]
        else:
            self.said.append((wire.parse_topic(topic).device, wire.decode(payload, wire.InferAnswer)[0]))
        return True

    def faults(self):
        return {}

    def is_up(self):
        return True

    def rtt_s(self):
        return 0.25

    def unsubscribe(self, filters):
        self.left += filters


def model(run, name="m"):
    manifest = modelfile.ModelManifest(
        name=name,
        task="t",
        created="",
        edgert="",
        input=modelfile.Tensor(shape=(2,), dtype="float32"),
        output=modelfile.Tensor(shape=(3,), dtype="float32"),
        precision="fp32",
        macs=1,
        accuracy=(modelfile.Accuracy(metric="top-1", value_frac=0.9, measured=False, source="x"),),
        golden=Golden(count=1, max_head_error=1.0),
    )
    return Model(manifest, "onnx", run)


def thrice(rows):
    return np.repeat(rows[:, :1], 3, 1).astype(np.float32)


@pytest.fixture
def quiet():
    """A broker's place where nothing happens."""
    link = Wire()
    yield link
    link.near.close()
    link.far.close()


@pytest.fixture
def node():
    made = []

    def make(run=thrice, **options):
        link = Wire()
        said = {"fleet": "f", "name": "n", "place": "edge"} | options
        one = program.Node([(A, model(run)), (B, model(thrice, "other"))], link, **said)
        made.append((one, link))
        return one, link

    yield make
    for one, link in made:
        one.close()
        link.near.close()
        link.far.close()


def until_said(one, link, n):
    for _ in range(500):
        if len(link.said) >= n:
            return [answer for _, answer in link.said]
        one.turn(0.02)
    raise AssertionError(f"{len(link.said)} answers instead of {n}")


def test_rows_are_answered_in_the_order_asked(node):
    one, link = node()
    link.ask(rows=np.array([[1, 0], [2, 0]], np.float32))
    (answer,) = until_said(one, link, 1)
    assert answer.model == A and answer.rows == 2 and not answer.error
    assert np.frombuffer(answer.data, "<f4").tolist() == [1, 1, 1, 2, 2, 2]
    assert answer.run_s >= 0 and answer.waited_s >= 0


def test_what_waits_is_run_together(node):
    hold, sizes = threading.Event(), []

    def run(rows):
        sizes.append(len(rows))
        if len(sizes) > 4:  # those before were to see what a row takes
            hold.wait(10)
        return thrice(rows)

    one, link = node(run)
    for device in "abc":
        link.ask(device=device)
        one.turn(0.02)
    hold.set()
    until_said(one, link, 3)
    assert sizes[-1] == 2 and {device for device, _ in link.said} == set("abc")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "c" * 16}, "unknown-model"),
        ({"rows": np.zeros((0, 2), np.float32)}, "rows"),
        ({"data": b"x"}, "rows"),
        ({"rows": np.full((1, 2), np.nan, np.float32)}, "not-finite"),
        ({"left_s": 0.0}, "late"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(node, changes, said):
    one, link = node()
    link.ask(**changes)
    (answer,) = until_said(one, link, 1)
    assert answer.error == said and said in REFUSALS and answer.rows == 0
    assert one.status()["refused"] == {said: 1}


def test_a_model_that_fails_while_it_is_tried_is_not_served(quiet):
    def run(rows):
        raise ArtifactError("broken")

    with pytest.raises(ArtifactError):
        program.Node([(A, model(run))], quiet, fleet="f", name="n", place="edge")


def test_a_model_that_fails_later_costs_its_questions_only(node):
    state = {"broken": False}

    def run(rows):
        if state["broken"]:
            raise ArtifactError("broken")
        return thrice(rows)

    one, link = node(run)
    state["broken"] = True
    link.ask()
    assert until_said(one, link, 1)[0].error == "model-failed"
    link.ask(model=B)
    assert not until_said(one, link, 2)[1].error
    state["broken"] = False
    link.ask()
    assert not until_said(one, link, 3)[2].error


def test_an_answer_that_is_not_finite_is_not_given(node):
    one, link = node(lambda rows: np.full((len(rows), 3), np.nan, np.float32))
    link.ask()
    assert until_said(one, link, 1)[0].error == "not-finite"


def test_a_device_over_its_budget_is_told_when_to_come_again(node):
    one, link = node(device_bytes_per_s=10.0)
    link.ask(rows=np.zeros((16, 2), np.float32))
    until_said(one, link, 1)
    link.ask()
    answer = until_said(one, link, 2)[1]
    assert answer.error == "over-budget" and answer.retry_s > 0


def test_nonsense_is_counted_and_not_answered(node):
    one, link = node()
    topic = str(wire.Topic("f", "d", "infer", "ask", "edge"))
    good = wire.encode(wire.InferAsk(model=A, rows=1, data=bytes(8), left_s=1.0))
    link.put(
        Received(topic="nonsense", payload=good),
        Received(topic=topic, payload=b"\xff"),
        Received(topic=topic, payload=good, response_topic="elsewhere"),
    )
    one.turn(0.1)
    assert not link.said and one.faults == {"malformed": 2, "response-topic": 1}


def test_the_load_says_what_is_offered_and_how_busy_it_is(node):
    one, link = node()
    link.put(LinkUp(session_present=False, server_max_packet_bytes=None, shared_subscriptions_available=True))
    one.turn(0.1)
    load = link.loads[-1]
    assert load.place == "edge" and load.accepts and {each.id for each in load.models} == {A, B}
    assert load.rtt_s == 0.25 and 0 <= load.cpu_frac <= 1 and load.models[0].row_s >= 0
    link.put(LinkDown(reason_code=None, reason="gone", fault=None, retry_s=1.0, unconfirmed=()))
    one.turn(0.1)
    assert not one.up and one.status()["asks"] == 0


def test_who_leaves_answers_what_it_has_and_forgets_its_load(node):
    one, link = node()
    link.ask()
    one.drain()
    assert not link.said[0][1].error and link.left == [one.filter] and link.loads[-1] == b""
    link.ask()
    assert until_said(one, link, 2)[1].error == "draining"


def test_a_broker_that_takes_nothing_costs_answers_and_nothing_else(node):
    one, link = node()
    link.takes = False
    link.ask()
    for _ in range(100):
        one.turn(0.02)
        if one.faults:
            break
    assert one.faults == {"answer-lost": 1}


def test_metrics_can_be_read(node):
    one, link = node()
    link.ask()
    until_said(one, link, 1)
    told = one.metrics()
    assert "edgert_serve_answers_total 1" in told and 'edgert_serve_refusals_total{reason="busy"} 0' in told


@pytest.mark.parametrize(
    ("options", "said"),
    [({"place": "moon"}, "place"), ({"name": "a/b"}, "name"), ({"fleet": "#"}, "fleet"), ({"batch_rows": 0}, "batch")],
)
def test_what_cannot_be_reached_is_not_started(quiet, options, said):
    with pytest.raises(ConfigError, match=said):
        program.Node([], quiet, **({"fleet": "f", "name": "n", "place": "edge"} | options))


def test_wrong_arguments_are_bad_configuration(tmp_path, capsys):
    argv = ["--model", str(tmp_path / "none.edgert"), "--broker", "mqtt://127.0.0.1"]
    assert program.main(argv) == 78
    assert program.main([*argv, "--device-bytes-per-s", "-1"]) == 78
    assert program.main([*argv, "--name", "a/b"]) == 78
