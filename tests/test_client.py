from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgert.client import Decision, Policy
from edgert.errors import ConfigError, LinkError, MessageError, UsageError
from edgert.ports import ipc
from edgert.ports.plant.local import LocalPlant

SHAPE = (2, 3, 2)
WAIT_S = 10.0


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    yield directory / "s"
    shutil.rmtree(directory)


@pytest.fixture
def serve(path: Path) -> Iterator[Callable[[], LocalPlant]]:
    """Starts actors that answer with the first byte of the observation and count how often they were asked."""
    stop = threading.Event()
    threads = []

    def start() -> LocalPlant:
        plant = LocalPlant(path, SHAPE, 256)

        def loop() -> None:
            while not stop.is_set():
                observation = plant.observe(0.02)
                if observation is not None:
                    sure = None if observation.obs[0, 0, 0] == 255 else observation.reward / 2
                    plant.apply(int(observation.obs[0, 0, 0]), exit=1, confidence=sure, generation=observation.episode)
            plant.close()

        threads.append(threading.Thread(target=loop))
        threads[-1].start()
        return plant

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_decisions_for_arrays_and_for_bytes(path: Path, serve: Callable[[], LocalPlant]) -> None:
    serve()
    with Policy(path, WAIT_S) as policy:
        assert policy.act(np.full(SHAPE, 5, np.uint8)) == 5
        assert policy.decide(bytes([6]) * 12, 1.0, shape=SHAPE) == Decision(6, 1, 0.5, 1)
        assert policy.decide(np.full(SHAPE, 7, np.uint8), reward=0.5, terminated=True) == Decision(7, 1, 0.25, 2)
        assert policy.decide(np.full(SHAPE, 255, np.uint8)).confidence is None
        # Not contiguous: what counts is the order of the elements, not that of the memory.
        assert policy.act(np.full((2, 2, 3), 8, np.uint8).transpose(0, 2, 1)) == 8


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (lambda: {"obs": np.zeros(SHAPE, np.float32)}, "uint8, not float32: convert it"),
        (lambda: {"obs": bytes(12)}, "needs its shape"),
        (lambda: {"obs": bytes(11), "shape": SHAPE}, "does not fit 11 bytes"),
        (lambda: {"obs": np.zeros(SHAPE, np.uint8), "shape": SHAPE}, "has its own"),
        (lambda: {"obs": [1, 2, 3]}, "not list"),
        (lambda: {"obs": np.zeros((1200, 1200, 3), np.uint8)}, "4320000 bytes: a message carries at most 4190208"),
        (lambda: {"obs": np.zeros((2, 2, 2), np.uint8)}, r"observation-shape: the policy takes \[2, 3, 2\]"),
        (lambda: {"obs": np.zeros(SHAPE, np.uint8), "reward": float("nan")}, "reward-not-finite"),
    ],
)
def test_what_the_policy_does_not_take_is_the_callers_fault_and_the_next_is_fine(
    path: Path, serve: Callable[[], LocalPlant], arguments: Callable[[], dict[str, object]], what: str
) -> None:
    serve()
    with Policy(path, WAIT_S) as policy:
        with pytest.raises(UsageError, match=what):
            policy.act(**arguments())  # type: ignore[arg-type]  # wrong on purpose
        assert policy.act(np.full(SHAPE, 9, np.uint8)) == 9


def test_nobody_there(path: Path) -> None:
    with pytest.raises(LinkError, match=f"nobody listens at {path}"):
        Policy(path, 0.05).act(bytes(12), shape=SHAPE)
    with pytest.raises(ConfigError, match="at most 107"):
        Policy(path.with_name("x" * 110)).act(bytes(12), shape=SHAPE)


def test_a_late_answer_is_not_taken_for_that_to_the_next_question(path: Path) -> None:
    plant = LocalPlant(path, SHAPE, 256)
    policy = Policy(path, 0.05)
    with pytest.raises(LinkError, match=r"no answer from .* within 0\.05 s"):
        policy.act(bytes(12), shape=SHAPE)
    plant.observe(0.0)
    plant.apply(1, exit=0, confidence=0.5, generation=0)
    with pytest.raises(LinkError, match="no answer"):
        policy.act(bytes([2]) * 12, shape=SHAPE)
    plant.close()
    policy.close()


def test_a_restarted_actor_is_found_again(path: Path, serve: Callable[[], LocalPlant]) -> None:
    plant = LocalPlant(path, SHAPE, 256)
    policy = Policy(path, WAIT_S)
    first = threading.Thread(target=lambda: policy.act(bytes(12), shape=SHAPE))
    first.start()
    assert plant.observe(WAIT_S) is not None
    plant.apply(0, exit=0, confidence=0.5, generation=0)
    first.join()
    plant.close()
    serve()
    assert policy.act(bytes([3]) * 12, shape=SHAPE) == 3
    policy.close()


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"\x00\x00\x00\x01\xff", MessageError),
        (b"\x00\x00\x00\x01\xa0", MessageError),
        (b"\xff\xff\xff\xff", MessageError),
        (b"", LinkError),
    ],
)
def test_an_answer_that_makes_no_sense(path: Path, payload: bytes, error: type[Exception]) -> None:
    with ipc.listen(path) as listener:

        def answer() -> None:
            listener.setblocking(True)
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.send(payload)

        thread = threading.Thread(target=answer)
        thread.start()
        policy = Policy(path, WAIT_S)
        with pytest.raises(error, match=str(path)):
            policy.act(bytes(12), shape=SHAPE)
        policy.close()
        thread.join()


def test_numpy_is_not_needed() -> None:
    program = "import sys, edgert.client; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
