"""The daemon in this process, with a broker that is not there: what programs may say, and what it makes of bundles."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from edgert.client.infer import Inference
from edgert.config import parse
from edgert.errors import ConfigError, LinkError, UsageError
from edgert.offload.space import Floor
from edgert.ports import ipc
from edgert.ports.process import Layout, Parent
from edgert.programs.offload import daemon as program
from edgert.values import Budget, Hello, ServiceReport, Stop

MODELS = Path(__file__).parents[3] / "models"
DIGITS = [MODELS / f"digits-{name}.edgert" for name in ("1-full-int8", "0.25-early-int8")]
PICTURE = np.zeros((8, 8, 1), np.uint8)


def config(folder, bundles=DIGITS, more=""):
    variants = "\n".join(f'[[offload.variants]]\nbundle = "{bundle}"' for bundle in bundles)
    return parse(
        f'[device]\nid = "a"\nrun_dir = "{folder}"\nstate_dir = "{folder}"\n[broker]\nurl = "mqtt://127.0.0.1:1"\n'
        f'[policy]\nbundle = "x"\n[offload]\nenabled = true\nruntime = "numpy"\n{more}\n{variants}\n',
        "test",
    )


class Flag:
    """In place of `Stopping`, which wants the main thread."""

    asked = False

    def __bool__(self):
        return self.asked


class Running:
    """A chooser at work on a thread of its own."""

    def __init__(self, folder, **options):
        said = config(folder, **options)
        self.daemon = program.Daemon(said, Layout(said), Parent(folder / "control.sock", "offload"))
        self.flag, self.ended = Flag(), []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.inference = Inference(said.offload.socket, 10.0)

    def _run(self):
        self.ended.append(self.daemon.run(self.flag))

    def stop(self):
        self.flag.asked = True
        self.inference.close()
        self.thread.join(10)
        assert self.ended == [0]


@pytest.fixture
def running(folder):
    made = []

    def make(**options):
        made.append(Running(folder, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_without_anybody_else_the_device_answers(running):
    one = running()
    answer = one.inference.infer(PICTURE, deadline_s=5.0)
    assert answer.place == "device" and answer.values.shape == (10,) and not answer.fell_back
    assert one.inference.infer(PICTURE, floor=0.97).variant == "digits-1-full-int8"
    assert one.inference.infer(np.stack([PICTURE] * 3), rows=3).values.shape == (3, 10)
    assert one.inference.show()["requests"] == 3


def test_a_choice_that_fails_at_once_is_not_learned_as_a_quick_one(folder, monkeypatch):
    said = config(folder)
    daemon = program.Daemon(said, Layout(said), Parent(folder / "control.sock", "offload"))
    taught = []
    monkeypatch.setattr(daemon.chooser, "home", lambda *_: None)
    monkeypatch.setattr(daemon.chooser, "learn", lambda _, took_s, **__: taught.append(took_s))
    client = Mock(closed=False, send_map=taught.append)
    request = program.Request(1, client, 7, PICTURE[None], time.monotonic() + 5.0, Floor())
    request.chosen = object()
    daemon._failed(request, "not sent")
    stopped = Flag()
    stopped.asked = True
    daemon.run(stopped)  # closes everything
    took_s, answer = taught
    assert took_s == pytest.approx(5.0, abs=0.5) and (answer["id"], answer["error"]) == (7, "no-answer")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({}, "malformed"),
        ({"data": "text"}, "malformed"),
        ({"data": bytes(64), "rows": 0}, "malformed"),
        ({"data": bytes(64), "rows": True}, "malformed"),
        ({"data": bytes(64), "rows": 257}, "malformed"),
        ({"data": bytes(64), "deadline_s": "soon"}, "malformed"),
        ({"data": bytes(64), "deadline_s": -1}, "malformed"),
        ({"data": bytes(64), "floor": float("nan")}, "malformed"),
        ({"data": bytes(64), "floor": 1.5}, "malformed"),
        ({"data": bytes(63)}, "shape"),
        ({"data": bytes(64), "shape": [64]}, "shape"),
        ({"data": bytes(64), "dtype": "float32"}, "shape"),
        ({"data": bytes(64), "variant": "none"}, "unknown-choice"),
        ({"data": bytes(64), "variant": [1]}, "unknown-choice"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_the_next_is_answered(running, message, said):
    one = running()
    with pytest.raises(UsageError, match=said):
        one.inference._ask(dict(message), 5.0)
    with pytest.raises(LinkError, match="not-available"):
        one.inference._ask({"data": bytes(64), "place": "edge"}, 5.0)
    assert one.inference.infer(PICTURE).place == "device"


def test_one_program_cannot_take_all_the_places_and_too_many_are_sent_away(running):
    one = running()
    channel = one.inference._connection._connected(time.monotonic() + 5)
    for i in range(program.MAX_EACH + 20):
        channel.send_map({"id": i + 1, "data": bytes(64 * 256), "rows": 256, "deadline_s": 60.0})
    told = []
    until_s = time.monotonic() + 20
    while len(told) < program.MAX_EACH + 20 and time.monotonic() < until_s:
        channel.wait(0.5)
        told += channel.receive_maps()
    assert len(told) == program.MAX_EACH + 20
    assert {each["error"] for each in told if "error" in each} <= {"too-many-requests"}
    crowd = [Inference(one.daemon.said.socket, 5.0) for _ in range(program.MAX_CLIENTS + 2)]
    refused = 0
    for each in crowd:
        try:
            each.show()
        except LinkError as error:
            refused += "too-many-clients" in str(error) or "gone" in str(error)
    assert refused == 3
    for each in crowd:
        each.close()


def test_a_supervisor_hears_of_it_and_is_obeyed(folder):
    with ipc.listen(folder / "control.sock") as listener:
        one = Running(folder)
        one.inference.infer(PICTURE)
        channel, heard = None, []
        until_s = time.monotonic() + 20
        while not any(isinstance(each, ServiceReport) for each in heard):
            assert time.monotonic() < until_s
            channel = channel or ipc.accept(listener)
            if channel is not None:
                channel.wait(0.2)
                heard += channel.receive()
        assert isinstance(heard[0], Hello) and heard[0].role == "offload"
        channel.send(Budget(0, 0.0, 0.0, {"max_exit": "battery-critical"}))
        while one.inference.show()["goal"] != "energy":
            assert time.monotonic() < until_s
        channel.send(Stop())
        one.thread.join(10)
        channel.close()
    assert one.ended == [0]
    one.inference.close()


def test_a_bundle_that_fails_is_left_out_and_the_last_one_must_not(folder, running, tmp_path):
    broken = tmp_path / "broken.edgert"
    broken.write_bytes(DIGITS[0].read_bytes()[:-50])
    one = running(bundles=[broken, tmp_path / "none.edgert", DIGITS[1], DIGITS[1]])
    shown = one.inference.show()
    assert {each["variant"] for each in shown["choices"]} == {"digits-0.25-early-int8"}
    assert shown["faults"]["variant-failed"] == 3
    with pytest.raises(ConfigError, match="no local variant"):
        program._load(config(folder, bundles=[broken]), Parent(folder / "none.sock", "offload"))
    with pytest.raises(ConfigError, match="another task"):
        both = [DIGITS[0], MODELS / "breakout.edgert"]
        program._load(config(folder, bundles=both), Parent(folder / "none.sock", "offload"))
