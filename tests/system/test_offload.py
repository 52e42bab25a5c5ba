"""A device that has inferences run elsewhere: a real broker, a real node, a real chooser, and what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgert import cli, modelfile, wire
from edgert.client.infer import Inference
from edgert.errors import LinkError, UsageError
from edgert.nets import Conv, Dense, NetSpec, Relu, initialise
from edgert.ports.mqtt import Mqtt, Received
from tools import models

pytestmark = pytest.mark.system

HOUSE = Path(__file__).parents[2]
SIDE = 24
SHAPE = (SIDE, SIDE, 3)


def build(folder: Path, name: str, channels: int, accuracy_frac: float) -> Path:
    """A network whose integers take numpy many times as long as onnxruntime."""
    layers = (Conv(channels, 3), Relu(), Conv(channels, 3), Relu(), Dense(16), Relu())
    spec = NetSpec(input_shape=SHAPE, n_actions=4, trunk=(layers,), heads=((),), input_scale=1 / 255)
    rng = np.random.default_rng(0)
    params = initialise(spec, rng)
    seen = rng.integers(0, 256, (8, *SHAPE), np.uint8)
    members, golden, _ = models.built(params, "int8", ranges_of=seen, asked=seen[:2])
    accuracy = modelfile.Accuracy(metric="top-1", value_frac=accuracy_frac, measured=False, source="invented")
    said = models.manifest(params, "int8", golden, name=name, task="pictures", accuracy=[accuracy])
    path = folder / f"{name}.edgert"
    path.write_bytes(modelfile.write(said, members))
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [build(folder, "big", 48, 0.9), build(folder, "small", 4, 0.7)]


def alive(argv, log):
    with log.open("ab") as out:
        env = {**os.environ, "PYTHONPATH": str(HOUSE), "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", *argv], cwd=HOUSE, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


class Place:
    """A device and, where wanted, an edge node."""

    def __init__(self, folder: Path, bundles: list[Path], device_url: str, node_url: str) -> None:
        self.folder, self.bundles, self.node_url = folder, bundles, node_url
        self.processes: list[subprocess.Popen[bytes]] = []
        self.socket = folder / "infer.sock"
        variants = "\n".join(f'[[offload.variants]]\nbundle = "{each}"' for each in bundles)
        config = folder / "edgert.toml"
        config.write_text(
            f'[device]\nid = "dev"\nfleet = "{folder.name[-6:]}"\nrun_dir = "{folder}"\nstate_dir = "{folder}"\n'
            f'[broker]\nurl = "{device_url}"\n[policy]\nbundle = "none"\n'
            f'[offload]\nenabled = true\nruntime = "numpy"\ndeadline_s = 5.0\n{variants}\n'
        )
        self.device = self.start("edgert.programs.offload", "--config", str(config))
        self.inference = Inference(self.socket, 20.0)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        self.processes.append(alive(argv, self.folder / "log"))
        return self.processes[-1]

    def serve(self, *more: str) -> subprocess.Popen[bytes]:
        argv = ["edgert", "serve", "--broker", self.node_url, "--fleet", self.folder.name[-6:], "--runtime", "onnx"]
        for bundle in self.bundles:
            argv += ["--model", str(bundle)]
        return self.start(*argv, *more)

    def shown(self):
        try:
            return self.inference.show()
        except LinkError:
            return None

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        self.inference.close()
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def place(folder, bundles, mosquitto, tcp_link):
    made = []

    def make(*, node=True):
        link = tcp_link(mosquitto.port)
        device = Place(folder, bundles, link.url, mosquitto.url)
        made.append(device)
        if node:
            device.serve()
        end_s = time.monotonic() + 40
        while not ((shown := device.shown()) and shown["up"] and bool(shown["nodes"]) == node):
            assert time.monotonic() < end_s and device.device.poll() is None, device.log()
            time.sleep(0.05)
        return device, link

    yield make
    for each in made:
        each.stop()


def picture(seed: int = 0):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def test_requests_go_where_they_are_quicker_and_the_floor_is_held_from_the_first(place, bundles):
    device, _ = place()
    here = device.inference.infer(picture(), variant="big", place="device", deadline_s=5.0)
    there = device.inference.infer(picture(), variant="big", place="edge", deadline_s=5.0)
    assert (here.place, there.place) == ("device", "edge") and not there.fell_back
    np.testing.assert_allclose(here.values, there.values, atol=1e-3)

    answers = []
    while sum(answer.place == "edge" for answer in answers[-10:]) < 8:
        assert len(answers) < 300, "it does not learn that the edge is quicker"
        answers.append(device.inference.infer(picture(len(answers)), floor=0.8, deadline_s=5.0))
    assert all(answer.variant == "big" and answer.accuracy_frac >= 0.8 and not answer.late for answer in answers)

    shown = device.shown()
    best = next(each for each in shown["choices"] if each["best"])
    assert best["expected_s"] is not None and shown["learned"] == len(answers) + 2 and shown["windows"]
    assert shown["decision_s"] > 0 and shown["bytes"] > 8 * picture().nbytes

    with pytest.raises(UsageError, match="shape"):
        device.inference.infer(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(UsageError, match="unknown-choice"):
        device.inference.infer(picture(), variant="bigger")
    assert device.inference.infer(picture(), rows=None, place="device", variant="small").values.shape == (4,)
    batch = device.inference.infer(np.stack([picture(1), picture(2)]), rows=2, place="edge", variant="small")
    assert batch.values.shape == (2, 4)


def test_whatever_happens_elsewhere_the_device_answers_in_time(place, until):
    device, link = place()
    edge = {"variant": "big", "place": "edge"}
    assert device.inference.infer(picture(), **edge, deadline_s=5.0).place == "edge"

    # The link is silent: nobody is told, and only the clock says so.
    link.blackhole()
    answer = device.inference.infer(picture(), **edge, deadline_s=1.5)
    assert answer.place == "device" and answer.fell_back and not answer.late and answer.accuracy_frac >= 0.7
    link.mend()
    until(lambda: device.inference.infer(picture(), deadline_s=5.0, floor=0.8).place, "an answer")

    # The link is cut under a question: the fall-back begins at once, long before it would have to.
    link.blackhole()
    began = device.shown()["fell_back"]
    import threading

    threading.Timer(0.3, link.cut).start()
    answer = device.inference.infer(picture(), **edge, deadline_s=30.0)
    assert answer.fell_back and answer.place == "device" and answer.response_s < 15
    assert device.shown()["fell_back"] == began + 1
    link.mend()
    until(lambda: device.shown()["nodes"], "the link")

    # The node stands still, and then is killed.
    node = device.processes[-1]
    node.send_signal(signal.SIGSTOP)
    answer = device.inference.infer(picture(), **edge, deadline_s=1.5)
    assert answer.fell_back and not answer.late
    node.kill()
    until(lambda: not device.shown()["nodes"], "the last will of the node")
    with pytest.raises(LinkError, match="nobody-there"):
        device.inference.infer(picture(), **edge)
    assert device.inference.infer(picture(), floor=0.8).place == "device"


def test_a_node_that_cannot_be_in_time_refuses_and_the_device_answers_itself(place):
    device, _ = place()
    edge = {"variant": "big", "place": "edge"}
    device.inference.infer(picture(), **edge, deadline_s=5.0)
    # A deadline that no node can meet: it says so at once, and the device, which is late as well, still answers.
    answer = device.inference.infer(picture(), **edge, deadline_s=0.0005)
    assert answer.place == "device" and answer.fell_back and answer.late
    # It drains: it says that it takes no more, and leaves nothing behind for those who come later.
    device.processes[-1].terminate()
    assert device.processes[-1].wait(15) == 0
    shown = device.shown()
    assert not shown["nodes"] or not any(each["place"] == "edge" and not each["obstacle"] for each in shown["choices"])


def test_hostile_answers_are_named_and_never_believed(place, mosquitto, until):
    device, _ = place(node=False)
    fleet = device.folder.name[-6:]
    ids = [modelfile.model_id(modelfile.read(each.read_bytes()).encoded) for each in device.bundles]
    turn = {"n": 0}
    lies = [
        {"model": "f" * 16, "rows": 1, "data": bytes(16)},
        {"model": ids[0], "rows": 2, "data": bytes(32)},
        {"model": ids[0], "rows": 1, "data": bytes(12)},
        {"model": ids[0], "rows": 1, "data": np.full(4, np.nan, "<f4").tobytes()},
        None,
    ]
    mqtt = Mqtt(mosquitto.url, "liar")
    mqtt.subscribe([(f"$share/serve-edge/{wire.Topic(fleet, '+', 'infer', 'ask', 'edge')}", 1)])
    with mqtt:
        until(mqtt.is_up, "the liar")
        load = wire.InferLoad(
            place="edge", accepts=True, models=tuple(wire.Offered(id=each, name="x") for each in ids), every_s=60.0
        )
        topic = str(wire.Topic(fleet, "liar", "infer", "load", "edge"))
        mqtt.publish(str(wire.Topic(fleet, "a", "infer", "load", "cloud")), b"nonsense", qos=1)
        mqtt.publish(topic, wire.encode(load), qos=1)
        until(lambda: device.shown()["nodes"], "the liar's load")

        import threading

        def lie():
            while turn["n"] < len(lies):
                for event in mqtt.events():
                    if isinstance(event, Received):
                        said = lies[turn["n"]]
                        payload = b"\xff\xff" if said is None else wire.encode(wire.InferAnswer(**said))
                        turn["n"] += 1
                        mqtt.publish(event.response_topic, payload, qos=0, correlation=event.correlation)
                        mqtt.publish(event.response_topic, payload, qos=0, correlation=b"unknown!")
                time.sleep(0.01)

        thread = threading.Thread(target=lie, daemon=True)
        thread.start()
        for _ in lies:
            answer = device.inference.infer(picture(), variant="big", place="edge", deadline_s=10.0)
            assert answer.fell_back and answer.place == "device" and np.isfinite(answer.values).all()
        thread.join(5)
    shown = device.shown()
    assert shown["faults"]["answer-malformed"] == len(lies) and shown["faults"]["load-malformed"] == 1
    # A program that talks nonsense is told so, and hurts nobody.
    with Inference(device.socket) as program:
        program._connection._connected(time.monotonic() + 5).send_map({"id": "x", "data": 5})
        with pytest.raises(UsageError, match="malformed"):
            program._ask({"data": 5}, 5.0)
    kept = device.folder / "offload.cbor"
    device.device.terminate()
    assert device.device.wait(15) == 0 and kept.exists()


def test_the_supervisor_keeps_the_chooser_running_and_shows_it(make_lone, models, tmp_path, capsys):
    lone = make_lone(tmp_path, learn__enabled=False, plant__kind="socket")
    text = lone.config.read_text().replace("[offload]\n", '[offload]\nenabled = true\nruntime = "numpy"\n')
    # What `commented_default` cannot set: a table of an array, behind everything else.
    lone.config.write_text(text + f'\n[[offload.variants]]\nbundle = "{models / "digits-0.5-full-int8.edgert"}"\n')
    lone.start()
    status = lone.until_status(lambda s: s["services"].get("offload"), "the chooser")
    with Inference(lone.run / "infer.sock", 10.0) as inference:
        assert inference.infer(np.zeros((8, 8, 1), np.uint8)).variant == "digits-0.5-full-int8"
        pid = inference.show()["pid"]
    lone.until_status(lambda s: s["services"]["offload"]["requests"] == 1, "the request in the status")
    os.kill(pid, signal.SIGKILL)
    lone.until_status(lambda s: s["services"]["offload"]["pid"] != pid, "another chooser")
    assert cli.main(["offload", "show", "--config", str(lone.config)]) == 0
    assert "digits-0.5-full-int8 at device" in capsys.readouterr().out
    assert status["children"]["offload"]["connected"] and lone.end() == 0
