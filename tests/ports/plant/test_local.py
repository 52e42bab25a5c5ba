from __future__ import annotations

import math
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from edgert.errors import UsageError
from edgert.ports import ipc
from edgert.ports.plant import Observation, Plant
from edgert.ports.plant.local import MAX_CLIENTS, LocalPlant

SHAPE = (2, 3, 2)
WAIT_S = 10.0  # generous: passed only when something is broken


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    yield directory / "s"
    shutil.rmtree(directory)


def request(value: int = 0, **changes: object) -> dict[str, object]:
    frame = {"obs": bytes([value]) * 12, "shape": list(SHAPE), "dtype": "uint8", "reward": 0.5}
    return {**frame, "terminated": False, "truncated": False, **changes}


FAULTY = [
    ({"shape": [2, 3, 3]}, "observation-shape"),
    ({"dtype": "float32"}, "observation-dtype"),
    ({"reward": math.nan}, "reward-not-finite"),
    ({"obs": "text"}, "malformed-frame"),
]


def act(plant: Plant, action: int) -> None:
    plant.apply(action, exit=0, confidence=0.9, generation=0)


def observed(plant: Plant) -> Observation:
    observation = plant.observe(WAIT_S)
    assert observation is not None, plant.last_fault
    return observation


def client(path: Path) -> ipc.Channel:
    channel = ipc.connect(path)
    assert channel is not None
    return channel


@pytest.fixture
def local(path: Path) -> Iterator[LocalPlant]:
    plant = LocalPlant(path, SHAPE, 3)
    yield plant
    plant.close()


def answer(channel: ipc.Channel) -> dict[str, object]:
    assert channel.wait(WAIT_S)
    (message,) = channel.receive_maps()
    return message


def test_a_request_is_answered(path: Path, local: LocalPlant) -> None:
    asker = client(path)
    asker.send_map(request(7, reward=3.0, terminated=True))
    first = observed(local)
    # Nothing came before the first request, so it says nothing about what came before.
    assert (first.reward, first.terminated, first.action, first.seq, first.episode) == (0.0, False, None, 1, 1)
    assert first.obs.tobytes() == bytes([7]) * 12
    local.apply(2, exit=1, confidence=0.75, generation=4)
    assert answer(asker) == {"action": 2, "exit": 1, "confidence": 0.75, "generation": 4, "seq": 1}
    asker.send_map(request(8, reward=3.0, truncated=True))
    second = observed(local)
    assert (second.reward, second.truncated, second.action, second.seq, second.episode) == (3.0, True, 2, 2, 2)
    local.apply(0, exit=0, confidence=None, generation=4)
    assert answer(asker)["confidence"] is None
    asker.close()


@pytest.mark.parametrize(("changes", "name"), FAULTY)
def test_a_faulty_request_is_answered_by_its_name_to_its_sender_only(
    path: Path, local: LocalPlant, changes: dict[str, object], name: str
) -> None:
    offender, bystander = client(path), client(path)
    offender.send_map(request(**changes))
    assert local.observe(WAIT_S) is None
    assert local.faults == {name: 1} and local.last_fault
    act(local, 0)  # the safe action of an actor that was given nothing: reaches nobody
    refusal = answer(offender)
    assert refusal["error"] == name and refusal["detail"]
    offender.send_map(request(1))
    assert observed(local).obs[0, 0, 0] == 1
    act(local, 1)
    assert answer(offender)["action"] == 1
    assert bystander.receive_maps() == [] and not bystander.closed
    offender.close()
    bystander.close()


@pytest.mark.parametrize("payload", [b"\xff", b"", cbor2.dumps([1])])
def test_a_frame_that_holds_no_map_is_refused(path: Path, local: LocalPlant, payload: bytes) -> None:
    offender = client(path)
    offender._socket.send(struct.pack(">I", len(payload)) + payload)
    assert local.observe(WAIT_S) is None
    assert local.faults == {"malformed-frame": 1}
    assert answer(offender)["error"] == "malformed-frame"
    offender.send_map(request())
    assert observed(local)
    offender.close()


def test_an_absurd_length_ends_that_connection_only(path: Path, local: LocalPlant) -> None:
    offender, other = client(path), client(path)
    offender._socket.send(b"\xff\xff\xff\xff")
    assert local.observe(WAIT_S) is None
    assert local.faults == {"malformed-frame": 1}
    assert offender.wait(WAIT_S) and offender.receive_maps() == [] and offender.closed
    other.send_map(request(3))
    assert observed(local).obs[0, 0, 0] == 3
    other.close()


def test_clients_are_served_in_turn_and_are_streams_of_their_own(path: Path, local: LocalPlant) -> None:
    greedy, modest = client(path), client(path)
    for value in range(10):
        greedy.send_map(request(value))
    modest.send_map(request(100))
    modest.send_map(request(101, terminated=True))
    served = []
    for _ in range(12):
        observation = observed(local)
        served.append(int(observation.obs[0, 0, 0]))
        act(local, served[-1] % 3)
        if served[-1] == 101:
            assert observation.action == 100 % 3 and observation.terminated
    assert served.index(100) <= 1 and served.index(101) <= 3
    assert sorted(served) == [*range(10), 100, 101]
    assert local.observe(0.0) is None
    greedy.send_map(request(50))
    modest.send_map(request(51))
    two = []
    for _ in range(2):
        two.append(observed(local))
        act(local, 0)
    assert len({observation.stream for observation in two}) == 2
    assert len({observation.episode for observation in two}) == 2
    greedy.close()
    modest.close()


def test_a_client_that_dies_or_never_reads_costs_the_others_nothing(path: Path, local: LocalPlant) -> None:
    dead, deaf, half, good = client(path), client(path), client(path), client(path)
    dead.send_map(request(1))
    assert observed(local).obs[0, 0, 0] == 1
    dead.close()
    act(local, 0)  # to nobody
    half._socket.send(struct.pack(">I", 1000) + b"\xa1")  # and never the rest
    good_answers = 0
    for _ in range(200):
        while deaf.send_map({**request(dtype="int8"), "x": bytes(1000)}) and not deaf.wants_write:
            pass
        good.send_map(request(9))
        for _ in range(50):
            observation = local.observe(0.0)
            if observation is not None:
                act(local, 1)
                break
        good_answers += len(good.receive_maps())
    assert good_answers == 200
    for channel in (deaf, half, good):
        channel.close()


def test_a_client_that_left_before_it_was_served_is_not_served(path: Path, local: LocalPlant) -> None:
    hasty = client(path)
    hasty.send_map(request(1))
    hasty.close()
    assert local.observe(0.0) is None and local.faults == {}


def test_an_observation_without_a_decision_is_refused_when_the_next_is_wanted(path: Path, local: LocalPlant) -> None:
    asker = client(path)
    asker.send_map(request())
    observed(local)
    assert local.observe(0.0) is None
    assert answer(asker)["error"] == "no-decision"
    asker.close()


def test_too_many_clients_are_told_so(path: Path, local: LocalPlant) -> None:
    askers = []
    for _ in range(MAX_CLIENTS):
        askers.append(client(path))
        local.observe(0.0)
    surplus = client(path)
    local.observe(0.0)
    assert answer(surplus)["error"] == "too-many-clients"
    assert surplus.wait(WAIT_S) and surplus.receive_maps() == [] and surplus.closed
    askers[0].close()
    local.observe(0.0)
    local.observe(0.0)
    late = client(path)
    late.send_map(request(4))
    assert observed(local).obs[0, 0, 0] == 4
    for channel in (*askers, late):
        channel.close()


def test_wrong_uses_are_refused(path: Path, local: LocalPlant) -> None:
    for action in (-1, 3):
        with pytest.raises(UsageError, match="not one of"):
            act(local, action)
    with pytest.raises(UsageError, match="listens there already"):
        LocalPlant(path, SHAPE, 3)


def test_closing_disconnects_everybody(path: Path) -> None:
    plant = LocalPlant(path, SHAPE, 3)
    asker = client(path)
    plant.observe(0.0)
    plant.close()
    assert asker.wait(WAIT_S) and asker.receive_maps() == [] and asker.closed
    assert ipc.connect(path) is None
    with socket.socket(socket.AF_UNIX) as raw, pytest.raises(ConnectionRefusedError):
        raw.connect(str(path))
