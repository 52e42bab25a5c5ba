from __future__ import annotations

import threading

import numpy as np
import pytest

from edgert.client.infer import Inference, infer
from edgert.errors import LinkError, MessageError, UsageError
from edgert.ports import ipc

GOOD = {
    "data": np.array([1, 2], "<f4").tobytes(),
    "shape": [1, 2],
    "variant": "m",
    "place": "edge",
    "accuracy_frac": 0.9,
    "response_s": 0.01,
    "fell_back": False,
    "late": False,
    "why": "x",
}


@pytest.fixture
def device(folder):
    """A chooser that answers what it is given."""
    made = []

    def make(*answers):
        path = folder / "infer.sock"
        listener = ipc.listen(path)
        heard, stop = [], threading.Event()

        def run():
            channel, left = None, list(answers)
            while not stop.is_set():
                if (newer := ipc.accept(listener)) is not None:
                    if channel is not None:
                        channel.close()
                    channel = newer
                if channel is None or channel.closed:
                    stop.wait(0.01)
                    continue
                channel.wait(0.02)
                for message in channel.receive_maps():
                    heard.append(message)
                    answer = left.pop(0) if left else None
                    if answer == "hang up":
                        channel.close()
                    elif answer is not None:
                        channel.send_map({"id": message["id"]} | answer)
            if channel is not None:
                channel.close()
            listener.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        made.append((stop, thread))
        return path, heard

    yield make
    for stop, thread in made:
        stop.set()
        thread.join(5)


def test_an_answer_comes_back_as_it_was_given(device):
    path, heard = device(GOOD, GOOD | {"shape": [2, 1]})
    with Inference(path) as inference:
        answer = inference.infer(np.zeros((2, 2), np.float32), deadline_s=1.0, floor=0.5, place="edge")
        assert answer.values.tolist() == [1, 2] and answer.place == "edge" and answer.variant == "m"
        assert heard[0]["shape"] == [2, 2] and heard[0]["rows"] == 1 and heard[0]["floor"] == 0.5
        assert inference.infer(np.zeros((2, 3), np.uint8), rows=2).values.shape == (2, 1)
    assert heard[1]["shape"] == [3] and "deadline_s" not in heard[1]


def test_one_question_needs_no_connection_of_its_own(device):
    path, _ = device(GOOD)
    assert infer(np.zeros(3, np.uint8), path=path).values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (np.zeros(2, np.float64), {}),
        (np.zeros(2, np.int32), {}),
        (np.array(["a"]), {}),
        (np.array([np.nan], np.float32), {}),
        (np.array([np.inf], np.float32), {}),
        (np.zeros((2, 2), np.uint8), {"rows": 3}),
        (np.zeros(2, np.uint8), {"deadline_s": -1.0}),
        (np.zeros(2, np.uint8), {"deadline_s": float("nan")}),
        (np.zeros(2, np.uint8), {"floor": 2.0}),
    ],
)
def test_what_no_model_takes_is_said_before_it_is_sent(folder, x, options):
    with pytest.raises(UsageError):
        Inference(folder / "none.sock").infer(x, **options)


@pytest.mark.parametrize(
    "change",
    [{"data": b"abc"}, {"shape": [1, -2]}, {"shape": [1, 3]}, {"place": "moon"}, {"data": 5}, {"late": "no"}],
)
def test_an_answer_that_makes_no_sense_is_a_message_error_and_the_next_may_make_some(device, change):
    path, _ = device(GOOD | change, GOOD)
    with Inference(path) as inference:
        with pytest.raises(MessageError):
            inference.infer(np.zeros(2, np.uint8))
        assert inference.infer(np.zeros(2, np.uint8)).variant == "m"


@pytest.mark.parametrize(
    ("name", "error"),
    [("shape", UsageError), ("no-model", UsageError), ("no-answer", LinkError), ("new-name", LinkError)],
)
def test_refusals_say_who_is_at_fault(device, name, error):
    path, _ = device({"error": name, "detail": "because"})
    with Inference(path) as inference, pytest.raises(error, match="because"):
        inference.infer(np.zeros(2, np.uint8))


def test_who_hangs_up_or_says_nothing_is_a_link_error(device):
    path, _ = device("hang up", None, GOOD)
    with Inference(path, 0.2) as inference:
        with pytest.raises(LinkError, match="gone"):
            inference.infer(np.zeros(2, np.uint8))
        with pytest.raises(LinkError, match="within"):
            inference.infer(np.zeros(2, np.uint8))
        assert inference.infer(np.zeros(2, np.uint8), deadline_s=5.0).variant == "m"


def test_nobody_there_is_a_link_error(folder):
    with pytest.raises(LinkError, match="nobody listens"):
        Inference(folder / "none.sock", 0.05).show()


def test_what_is_shown_is_shown(device):
    path, _ = device({"show": {"up": True}}, {"show": 5})
    with Inference(path) as inference:
        assert inference.show() == {"up": True}
        with pytest.raises(MessageError):
            inference.show()
