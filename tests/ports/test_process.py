from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgert import config
from edgert.bundle import read
from edgert.errors import ArtifactError, ConfigError, StoreError, UsageError
from edgert.fleet.update import GENERATIONS
from edgert.ports import ipc, process
from edgert.ports.process import Layout, Parent, Stopping
from edgert.values import Happened, Hello, Note, Record, Stop, Swap

MINIMAL = '[device]\nid = "d"\n[policy]\nbundle = "/p.edgert"\n'


@pytest.fixture
def layout(folder: Path) -> Layout:
    text = MINIMAL.replace("[policy]", f'state_dir = "{folder}/state"\nrun_dir = "{folder}/run"\n[policy]')
    made = Layout(config.parse(text, "test"))
    made.make()
    return made


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read.*edgert init"):
        process.load_config(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b'[device]\nid = "\xff"\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        process.load_config(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        process.load_config(tmp_path)
    (tmp_path / "good.toml").write_text(MINIMAL)
    assert process.load_config(tmp_path / "good.toml").device.id == "d"


def test_a_bundle_that_cannot_be_read_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    made = config.parse(MINIMAL.replace("/p.edgert", str(tmp_path / "p.edgert")), "test")
    with pytest.raises(ConfigError, match=r"p\.edgert: cannot be read: No such file.*policy\.bundle"):
        process.read_bundle(made)
    (tmp_path / "p.edgert").write_bytes(b"data")
    assert process.read_bundle(made) == b"data"


def test_folders_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = MINIMAL.replace("[policy]", f'state_dir = "{tmp_path}/file/state"\nrun_dir = "{tmp_path}/run"\n[policy]')
    with pytest.raises(ConfigError, match=r"file/state: .*device\.state_dir"):
        Layout(config.parse(text, "test")).make()


def test_the_holder_of_a_lock_is_told_while_it_lives(layout: Layout) -> None:
    path = layout.lock("actor")
    assert process.lock_holder(path) is None
    code = "import sys; from edgert.ports import ipc; ipc.single_instance(sys.argv[1]); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    assert process.lock_holder(path) == holder.pid
    assert process.lock_holder(path) == holder.pid, "looking takes nothing"
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert process.lock_holder(path) is None
    path.write_text("nonsense\n")
    assert process.lock_holder(path) is None


def test_a_note_is_believed_only_with_its_file(layout: Layout) -> None:
    assert process.noted_network(layout) == (None, "")
    network = layout.policies / "gen-00000001.edgert"
    network.write_bytes(b"network")
    swap = Swap(1, str(network), hashlib.sha256(b"network").hexdigest())
    layout.acting.write_bytes(msgspec.json.encode(swap))
    assert process.noted_network(layout) == (swap, "")
    network.write_bytes(b"other")
    found, fault = process.noted_network(layout)
    assert found is None
    assert "sha256 differs" in fault
    network.unlink()
    found, fault = process.noted_network(layout)
    assert found is None
    assert "is gone" in fault
    layout.acting.write_bytes(b'{"t":"swap"')
    found, fault = process.noted_network(layout)
    assert found is None
    assert "acting.json" in fault


def test_a_note_that_cannot_be_believed_still_says_what_may_never_act(layout: Layout) -> None:
    assert process.read_note(layout) == (None, "")
    bad = Swap(4, "/gen-4", "ab")
    layout.acting.write_bytes(msgspec.json.encode(Note(5, "/gone", "cd", Record(None, (1.0,)), (bad,))))
    note, fault = process.read_note(layout)
    assert note == Note(0, "", "", refused=(bad,)) and "/gone is gone" in fault
    layout.acting.write_bytes(msgspec.json.encode(Note(0, "", "", refused=(bad,))))
    assert process.read_note(layout) == (note, "")
    assert process.noted_network(layout) == (None, "")
    layout.acting.write_bytes(b"{}")
    assert process.read_note(layout)[0] is None and process.read_note(layout)[1]


def test_the_cost_of_this_process_is_plausible() -> None:
    cpu_s, rss_bytes = process.usage()
    assert 0 < cpu_s < time.monotonic()
    assert 1 << 20 < rss_bytes < 1 << 36


def test_a_process_knows_when_it_began() -> None:
    code = (
        "import time; from edgert.ports.process import started_monotonic_s as s; a = s();"
        "print(repr(a), repr(time.monotonic()))"
    )
    before_s = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    began_s, asked_s = map(float, said.stdout.split())
    assert before_s - 0.05 <= began_s <= asked_s


def test_a_child_finds_every_successor_of_its_supervisor(
    layout: Layout, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RECONNECT_S", 0.02)
    parent = Parent(layout.control, "actor")
    assert parent.receive() == []
    assert not parent.send(Stop())
    assert parent.fileno() is None
    assert parent.lost_s is not None
    for _ in range(2):
        listener = ipc.listen(layout.control)
        until(lambda: parent.receive() == [] and parent.lost_s is None, "a connection")
        channel = ipc.accept(listener)
        assert channel is not None
        assert parent.fileno() is not None
        until(lambda c=channel: c.receive() == [Hello("actor", os.getpid())], "a hello")
        channel.send(Stop())
        until(lambda: parent.receive() == [Stop()], "a word of the supervisor")
        channel.close()
        listener.close()
        until(lambda: parent.receive() == [] and parent.lost_s is not None, "the loss")


def test_what_must_be_said_waits_for_a_supervisor_and_what_need_not_does_not(
    layout: Layout, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RECONNECT_S", 0.02)
    parent = Parent(layout.control, "trainer")
    for i in range(process.KEPT + 10):
        assert not parent.send(Happened(f"e{i}", {}), keep=True)
    parent.send(Stop())
    listener = ipc.listen(layout.control)
    until(lambda: parent.receive() == [] and parent.lost_s is None, "a connection")
    channel = ipc.accept(listener)
    assert channel is not None
    heard = channel.receive()
    assert heard == [Hello("trainer", os.getpid()), *(Happened(f"e{i}", {}) for i in range(10, process.KEPT + 10))]
    assert parent.send(Happened("now", {}), keep=True)
    assert channel.receive() == [Happened("now", {})], "what was sent is not kept"
    parent.close()
    assert not parent.send(Stop())
    channel.close()
    listener.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_only_ask(number: signal.Signals) -> None:
    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        stopping = Stopping()
        assert not stopping
        os.kill(os.getpid(), number)
        assert stopping
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_no_folder_is_no_fault_of_the_configuration(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match="cannot make"):
        layout.make()


@pytest.fixture
def handlers() -> Iterator[None]:
    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in former.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 78), (ArtifactError, 78), (UsageError, 1), (StoreError, 1), (None, 0)]
)
def test_only_what_the_user_can_mend_ends_with_78(folder: Path, error: type[Exception] | None, code: int) -> None:
    text = MINIMAL.replace("[policy]", f'state_dir = "{folder}/state"\nrun_dir = "{folder}/run"\n[policy]')
    (folder / "edgert.toml").write_text(text)

    def body(*_: object) -> int:
        if error is not None:
            raise error("why")
        return 0

    assert process.run_role("actor", "prog", ["--config", str(folder / "edgert.toml")], body) == code


@pytest.mark.usefixtures("handlers")
def test_a_role_that_is_taken_ends_with_78(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(_: object) -> int:
        raise UsageError("held by process 1")

    text = MINIMAL.replace("[policy]", f'state_dir = "{folder}/state"\nrun_dir = "{folder}/run"\n[policy]')
    (folder / "edgert.toml").write_text(text)
    monkeypatch.setattr(process.ipc, "single_instance", taken)
    assert process.run_role("actor", "prog", ["--config", str(folder / "edgert.toml")], lambda *_: 0) == 78


def test_training_begins_from_what_the_fleet_gave_and_kept(layout: Layout) -> None:
    models = Path(__file__).parents[2] / "models"
    made = config.parse(MINIMAL.replace("/p.edgert", str(models / "breakout.edgert")), "test")
    layout.bundle = models / "breakout.edgert"
    installed = process.identity(read(layout.bundle.read_bytes()).manifest)
    assert process.read_base(made, layout) == layout.bundle.read_bytes()
    data = (models / "breakout-teacher.edgert").read_bytes()
    kept = hashlib.sha256(data).hexdigest()
    path = layout.fleet / process.fleet_folder(installed) / f"{kept}.edgert"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert process.read_base(made, layout) == layout.bundle.read_bytes()  # it is there, and on trial yet
    layout.update.write_bytes(msgspec.json.encode({"kept": kept, "stage": "kept"}))
    assert process.read_base(made, layout) == data
    layout.acting.write_bytes(msgspec.json.encode(Note(GENERATIONS + 1, str(path), kept)))
    assert process.noted_network(layout) == (Swap(GENERATIONS + 1, str(path), kept), "")
    elsewhere = layout.fleet / "0123456789abcdef" / path.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(data)
    layout.acting.write_bytes(msgspec.json.encode(Note(GENERATIONS + 1, str(elsewhere), kept)))
    assert "another bundle" in process.noted_network(layout)[1]
    path.write_bytes(data[:-1])
    assert process.read_base(made, layout) == layout.bundle.read_bytes()
