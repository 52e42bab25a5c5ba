from __future__ import annotations

import threading

import pytest

from edgert.client.connection import Connection
from edgert.errors import LinkError
from edgert.ports import ipc


@pytest.fixture
def peer(folder):
    """Answers each question with all the maps that are given, and counts connections."""
    path, stop, made = folder / "peer.sock", threading.Event(), []
    listener = ipc.listen(path)

    def run(answers):
        channel = None
        while not stop.is_set():
            accepted = ipc.accept(listener)
            if accepted is not None:
                made.append(channel := accepted)
            if channel is None or channel.closed:
                stop.wait(0.01)
                continue
            channel.wait(0.02)
            for _ in channel.receive_maps():
                for answer in answers:
                    channel.send_map(answer)

    threads = []

    def start(*answers):
        threads.append(threading.Thread(target=run, args=(answers,), daemon=True))
        threads[-1].start()
        return path, made

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)
    for channel in made:
        channel.close()
    listener.close()


def test_an_answer_to_an_earlier_question_is_skipped(peer):
    path, _ = peer({"id": 1}, {"id": 2})
    connection = Connection(path)
    assert connection.ask({"id": 2}, 5.0, lambda told: told["id"] == 2) == {"id": 2}
    connection.close()


def test_a_question_that_was_given_up_costs_the_connection_only_where_answers_have_no_number(peer):
    path, made = peer()
    connection = Connection(path)
    for _ in range(2):
        with pytest.raises(LinkError, match="no answer"):
            connection.ask({}, 0.1, lambda told: True)
    assert len(made) == 1
    for _ in range(2):
        with pytest.raises(LinkError, match="no answer"):
            connection.ask({}, 0.1)
    assert len(made) == 2
    connection.close()


def test_nobody_there_is_said(folder):
    with pytest.raises(LinkError, match="nobody listens"):
        Connection(folder / "none.sock").ask({}, 0.05)
