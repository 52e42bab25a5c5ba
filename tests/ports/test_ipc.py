from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import values
from edgert.errors import ConfigError, MessageError, StoreError, UsageError
from edgert.ports import ipc

TOLD: list[values.Told] = [
    values.Hello("actor", 12),
    values.Stop(),
    values.Budget(1, 20.0, 1e4, {"max_exit": "hot"}),
    values.ActorReport(
        pid=1, ticks=2, missed=0, safe=1, exits=[1, 1], latency_p50_s=0.001, latency_p99_s=0.002, latency_max_s=0.003,
        episodes=1, returns=[1.5], faults={"plant-gone": 1}, generation=3, acting=True, first_action_s=None,
        cpu_s=1.0, rss_bytes=9,
    ),
    values.TrainerReport(
        pid=1, steps=2, loss=None, transitions=3, asked=1, answered=1, joined=1, candidates=2, accepted=1, generation=1,
        checkpoint=4, faults={}, cpu_s=2.0, rss_bytes=10,
    ),
    values.Ask(1 << 40, b"\x00\xff"),
    values.Answer(7, b""),
    values.Candidate(2, "/p", "ab", {"loss": True}, {"loss": 0.5}),
    values.Swap(2, "/p", "ab"),
    values.Swapped(2, False, "hash", 0, 1, 0.01),
    values.SetExits(id="c", operating=values.Operating((0.5,), 2, 0.9), max_ops_frac=0.5, left_s=1.5),
    values.ExitsSet(id="c", why="", operating=values.Operating((0.5, 1.0)), point=None),
    values.Outcome(values.Swap(2, "/p", "ab"), 3, "rolled-back", "returns", 3.5, 0.0, 5),
    values.TrainOrder("c", "now"),
    values.TrainReply("c", "no policy"),
    values.Happened("reboot", {"n": 1, "why": "x", "ok": True, "none": None, "f": 0.5}),
    values.ServiceReport({"jobs": 2, "why": "x"}, 7),
    values.StatusRequest(),
    values.StatusReply({"a": {"b": [1, None, "c"]}}),
]  # fmt: skip


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def pair() -> Iterator[tuple[ipc.Channel, ipc.Channel]]:
    one, other = (ipc.Channel(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    yield one, other
    one.close()
    other.close()


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@pytest.mark.parametrize("told", TOLD, ids=lambda told: type(told).__name__)
def test_what_is_told_is_what_is_heard(told: values.Told, pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    assert ipc.decode(ipc.encode(told)) == told
    assert pair[0].send(told)
    assert pair[1].receive() == [told]


def test_every_message_has_a_case() -> None:
    assert {type(told) for told in TOLD} == set(values.Told.__args__)


@given(st.binary(max_size=60))
def test_random_bytes_are_a_message_error_and_nothing_else(payload: bytes) -> None:
    for read in (ipc.decode, ipc.decode_map):
        with contextlib.suppress(MessageError):
            read(payload)


@pytest.mark.parametrize(
    "message",
    [
        {"t": "nobody"},
        {},
        {"t": 3},
        {"t": "hello", "role": "actor"},
        {"t": "hello", "role": "king", "pid": 1},
        {"t": "hello", "role": "actor", "pid": "1"},
        {"t": "ask", "ask_id": 1, "payload": "text"},
        {"t": "actor"},
        [1, 2],
        {1: 2},
        "text",
    ],
)
def test_a_map_that_is_no_message_is_a_message_error(message: object) -> None:
    with pytest.raises(MessageError):
        ipc.decode(cbor2.dumps(message))


def test_what_has_no_cbor_form_is_the_callers_fault() -> None:
    with pytest.raises(UsageError, match="cannot encode"):
        ipc.encode_map({"x": object()})


@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.binary(max_size=9) | st.none(), max_size=3)),
    st.integers(1, 7),
)
def test_frames_survive_any_cut_of_the_stream(messages: list[dict[str, object]], piece: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = ipc.Channel(right)
    stream = b"".join(frame(cbor2.dumps(message)) for message in messages)
    heard = []
    for start in range(0, len(stream), piece):
        left.send(stream[start : start + piece])
        heard += channel.receive_maps()
    left.close()
    heard += channel.receive_maps()
    assert heard == messages and channel.closed and channel.malformed == 0


def test_nonsense_in_a_sound_frame_is_skipped_and_counted(pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    one, other = pair
    one._socket.send(frame(b"\xff") + frame(b"") + frame(cbor2.dumps({"t": "nobody"})))
    one.send(values.Stop())
    assert other.receive() == [values.Stop()]
    assert other.malformed == 3 and not other.closed


def test_a_frame_over_the_limit_closes_but_what_came_before_is_heard(pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    one, other = pair
    one.send(values.Stop())
    one._socket.send(struct.pack(">I", ipc.MAX_FRAME_BYTES + 1))
    assert other.receive() == [values.Stop()]
    assert other.closed and other.malformed == 1 and other.fileno() == -1
    assert other.receive() == [] and not other.send(values.Stop()) and other.dropped == 1


def test_endless_nonsense_closes(pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    pair[0]._socket.send(frame(b"") * 5000)
    assert pair[1].receive() == []
    assert pair[1].closed and pair[1].malformed < 5000


def test_a_reader_that_sleeps_costs_messages_and_never_time(pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    one, other = pair
    sent = 0
    while one.send_map({"n": sent, "pad": bytes(100_000)}):
        sent += 1
        assert sent < 1000
    assert one.dropped == 1 and one.wants_write
    heard = []
    for _ in range(10_000):
        heard += [message["n"] for message in other.receive_maps()]
        one.flush()
        if len(heard) == sent:
            break
    assert heard == list(range(sent)) and not one.wants_write
    assert one.send_map({"n": sent}) and other.receive_maps() == [{"n": sent}]


def test_last_words_of_a_peer_are_heard_after_a_failed_send(pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    one, other = pair
    one.send(values.Stop())
    one.close()
    assert not other.send(values.StatusRequest()) and other.dropped == 1
    assert not other.closed and other.wait(5.0)
    assert other.receive() == [values.Stop()] and other.closed
    assert other.wait(0.0)


def test_wait_returns_false_when_nothing_comes(pair: tuple[ipc.Channel, ipc.Channel]) -> None:
    assert pair[0].wait(0.0) is False
    pair[1].send(values.Stop())
    assert pair[0].wait(5.0) is True


def test_listen_connect_accept(directory: Path) -> None:
    path = directory / "s"
    assert ipc.connect(path) is None
    before = os.umask(0o077)
    try:
        listener = ipc.listen(path, 0o660)
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert ipc.accept(listener) is None
        here = ipc.connect(path)
        there = ipc.accept(listener)
        assert here is not None and there is not None
        here.send(values.Hello("trainer", 5))
        assert there.receive() == [values.Hello("trainer", 5)]
        with pytest.raises(UsageError, match=rf"{path}: process {os.getpid()} listens there"):
            ipc.listen(path)
        here.close()
        there.close()
    assert ipc.connect(path) is None
    with ipc.listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_but_a_stale_socket_is_replaced(directory: Path) -> None:
    (directory / "file").write_text("precious")
    with pytest.raises(UsageError, match="not a socket"):
        ipc.listen(directory / "file")
    assert (directory / "file").read_text() == "precious"
    with pytest.raises(StoreError, match="create it"):
        ipc.listen(directory / "nowhere" / "s")


def test_a_path_of_108_bytes_is_refused_in_words(directory: Path) -> None:
    fitting = directory / ("x" * (107 - len(str(directory)) - 1))
    with ipc.listen(fitting):
        channel = ipc.connect(fitting)
        assert channel is not None
        channel.close()
    for use in (ipc.listen, ipc.connect):
        with pytest.raises(ConfigError, match="108 bytes long, at most 107"):
            use(f"{fitting}x")


def test_a_single_instance_names_its_holder_and_ends_with_it(directory: Path) -> None:
    path = directory / "lock"
    program = (
        "import sys; from edgert.ports import ipc; ipc.single_instance(sys.argv[1]); print(1, flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "1\n"
    with pytest.raises(UsageError, match=f"held by process {child.pid}"):
        ipc.single_instance(path)
    child.kill()
    child.communicate()
    fd = ipc.single_instance(path)
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(UsageError, match=str(os.getpid())):
        ipc.single_instance(path)
    os.close(fd)
    with pytest.raises(StoreError):
        ipc.single_instance(directory / "nowhere" / "lock")


@pytest.mark.parametrize("module", ["ipc", "store", "notify"])
def test_the_supervisors_ports_bring_no_numpy(module: str) -> None:
    program = f"import sys, edgert.ports.{module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
