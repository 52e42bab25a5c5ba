"""The shell of the supervisor, one effect at a time: nothing is started but what a test starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import msgspec
import pytest

from edgert import bus, config, control, wire
from edgert.errors import ArtifactError, ConfigError, StoreError, UsageError
from edgert.ports import boardfile, ipc
from edgert.ports import children as ports
from edgert.ports.process import Layout, Stopping
from edgert.ports.spool import ROW_BYTES
from edgert.programs import supervisor as program
from edgert.programs.events import STREAMS
from edgert.programs.supervisor import Supervisor
from edgert.values import (
    Answer,
    Ask,
    Budget,
    Happened,
    Hello,
    Note,
    StatusReply,
    StatusRequest,
    Stop,
    Swap,
    TrainOrder,
    TrainReply,
)

HOUSE = Path(__file__).parents[2]
BUNDLE = HOUSE / "models" / "breakout.edgert"


@pytest.fixture
def written(folder: Path) -> Callable[..., Path]:
    def write(**changes: object) -> Path:
        base = {
            "device.id": "d",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder / "run"),
            "policy.bundle": str(BUNDLE),
            "broker.url": "mqtt://127.0.0.1:1",
        }
        named = {key.replace("__", "."): value for key, value in changes.items()}
        (folder / "edgert.toml").write_text(config.commented_default({**base, **named}))
        return folder / "edgert.toml"

    return write


@pytest.fixture
def make(written: Callable[..., Path]) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def open_one(**changes: object) -> Supervisor:
        path = written(**changes)
        conf = config.parse(path.read_text(), str(path))
        layout = Layout(conf)
        layout.make()
        made.append(Supervisor(conf, path, layout))
        return made[-1]

    yield open_one
    for each in made:
        each.mqtt.close()
        each.chores.close()
        each.spool.close()
        each.listener.close()
        each.desk.close()
        each.selector.close()
        for channel in each.channels:
            channel.close()
        for pidfd in each.children.watched:
            os.close(pidfd)


def events(supervisor: Supervisor) -> list[tuple[str, dict[str, Any]]]:
    found = [cbor2.loads(payload) for name in STREAMS for _, payload in supervisor.spool.peek(name, 0, 1000)]
    return [(event["name"], event["detail"]) for event in found]


def full(*_: object, **__: object) -> None:
    raise StoreError("the disk is full")


def test_what_a_user_got_wrong_is_said_before_anything_is_opened(make: Callable[..., Supervisor], folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.thresholds has 3 numbers; .* has 2 exits that take one"):
        make(policy__thresholds=[0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="cannot be read"):
        make(policy__bundle=str(folder / "gone.edgert"))
    (folder / "junk.edgert").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"junk\.edgert: bundle: not a readable ZIP"):
        make(policy__bundle=str(folder / "junk.edgert"))


@pytest.mark.parametrize(
    ("say", "code"),
    [({"policy__bundle": "/nowhere.edgert"}, 78), ({"device__state_dir": "/proc/state"}, 78)],
)
def test_such_a_start_ends_with_78(
    written: Callable[..., Path], say: dict[str, object], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert program.main(["--config", str(written(**say))]) == code
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


def test_which_network_acts_is_noted_and_found_again(make: Callable[..., Supervisor], folder: Path) -> None:
    first = make()
    network = first.layout.policies / "gen-00000002.edgert"
    network.write_bytes(BUNDLE.read_bytes())
    swap = Swap(2, str(network), program.bundles.hashlib.sha256(BUNDLE.read_bytes()).hexdigest())
    first._perform(bus.Commit(Note(swap.generation, swap.path, swap.sha256)))
    assert events(first) == []
    first.chores.close()
    first.spool.close()
    first.listener.close()
    first.desk.close()
    again = make()
    assert again.world.networks.target == swap
    again.chores.close()
    again.spool.close()
    again.listener.close()
    again.desk.close()
    first.layout.acting.write_bytes(msgspec.json.encode(swap)[:-9])
    torn = make()
    assert torn.world.networks.target.generation == 0
    assert [name for name, _ in events(torn)] == ["acting-broken"]


def test_a_note_that_could_not_be_written_is_an_event(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make()
    monkeypatch.setattr(program, "write_atomic", full)
    supervisor._perform(bus.Commit(Note(2, "/x", "")))
    assert events(supervisor) == [("acting-not-noted", {"why": "the disk is full"})]


def test_a_pause_is_noted_and_found_again(make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = make()
    assert not supervisor.world.paused
    for paused in (True, True, False, False, True):
        supervisor._perform(bus.Pause(paused))
        assert supervisor.layout.paused.exists() == paused
    for port in (supervisor.spool, supervisor.chores, supervisor.listener, supervisor.desk):
        port.close()
    again = make()
    assert again.world.paused
    monkeypatch.setattr(program, "write_atomic", full)
    again._perform(bus.Pause(True))
    assert events(again) == [("pause-not-noted", {"why": "the disk is full"})]


@pytest.fixture
def childless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.Children, "start", lambda *_: "")


@pytest.mark.usefixtures("childless")
def test_a_client_may_order_the_training_and_a_child_may_not(
    make: Callable[..., Supervisor], until: Callable[..., None]
) -> None:
    supervisor = make()
    client, child = (ipc.connect(supervisor.layout.control) for _ in range(2))
    assert client is not None and child is not None
    child.send(Hello("actor", 4711))
    child.send(TrainOrder("x", "pause"))
    child.send(Happened("said", {}))
    client.send(TrainOrder("a", "now"))
    answers: list[Any] = []
    until(lambda: listen(supervisor) or answers.extend(client.receive()) or answers, "an answer")
    assert answers == [TrainReply("a", "the trainer is not there (yet)")]
    said = bus.Heard("actor", Happened("said", {}))
    until(lambda: listen(supervisor) or said in supervisor.inputs, "the child")
    assert not supervisor.world.paused and not supervisor.layout.paused.exists()
    client.send(TrainOrder("b", "pause"))
    until(lambda: listen(supervisor) or answers.extend(client.receive()) or answers[1:], "an answer")
    assert answers[1:] == [TrainReply("b", "")] and supervisor.world.paused and supervisor.layout.paused.exists()
    client.close()
    child.close()


@pytest.mark.usefixtures("childless")
def test_an_order_that_is_refused_changes_nothing(make: Callable[..., Supervisor]) -> None:
    supervisor = make(learn__enabled=False)
    assert "does not learn" in supervisor._order(TrainOrder("a", "pause"))
    assert not supervisor.world.paused and not supervisor.layout.paused.exists() and events(supervisor) == []


@pytest.mark.usefixtures("childless")
def test_a_pause_that_a_restart_would_not_find_is_not_called_done(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make()
    monkeypatch.setattr(program, "write_atomic", full)
    why = supervisor._order(TrainOrder("a", "pause"))
    assert why == "paused, but not after a restart: the disk is full" and supervisor.world.paused
    monkeypatch.undo()
    assert supervisor._order(TrainOrder("b", "pause")) == "" and supervisor.layout.paused.exists()


def test_a_store_that_takes_and_gives_nothing_costs_events_and_nothing_else(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = make()
    unchanged = [bus.Stored(name, 1, 0) for name in STREAMS[1:]]
    supervisor._perform(bus.Record("kept", {}))
    assert list(supervisor.inputs) == [bus.Stored("events", 1, 1), *unchanged]
    supervisor.inputs.clear()
    with monkeypatch.context() as broken:
        for method in ("append", "acknowledge", "peek"):
            broken.setattr(supervisor.spool, method, full)
        supervisor._perform(bus.Record("lost", {}))
        supervisor._perform(bus.ForgetEvents("events", 1))
        assert not supervisor.inputs
        supervisor._perform(bus.SendEvents("events", 0, 1, 1))
        assert list(supervisor.inputs) == [bus.Refused("events", 1)]
    told = supervisor._own_cost()["store_faults"]
    assert told == {"event-lost": 1, "events-not-forgotten": 1, "events-not-read": 1}
    assert "event-lost: lost: the disk is full" in caplog.text
    supervisor.inputs.clear()
    supervisor._perform(bus.ForgetEvents("events", 1))
    assert list(supervisor.inputs) == [bus.Stored("events", 2, 1), *unchanged]


def test_without_a_link_events_are_refused_from_the_first_on(make: Callable[..., Supervisor]) -> None:
    supervisor = make()
    for name in ("one", "two"):
        supervisor._perform(bus.Record(name, {}))
    supervisor.inputs.clear()
    supervisor._perform(bus.SendEvents("events", 0, 2, 1))
    assert list(supervisor.inputs) == [bus.Refused("events", 1)]


@pytest.mark.parametrize(
    "row",
    [
        b"\xa3\x61",
        cbor2.dumps({"at_s": 1.0, "detail": {}}),
        cbor2.dumps({"at_s": 1.0, "name": "x", "more": 1}),
        cbor2.dumps({"at_s": "soon", "name": 7}),
        cbor2.dumps([1]),
        cbor2.dumps(None),
    ],
)
def test_a_damaged_event_is_sent_as_a_stub_and_the_stream_goes_on(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch, row: bytes
) -> None:
    supervisor = make()
    sent: list[wire.Event] = []

    def publish(topic: str, payload: bytes, **_: object) -> bool:
        sent.append(wire.decode(payload, wire.Event)[0])
        return True

    monkeypatch.setattr(supervisor.mqtt, "publish", publish)
    supervisor._perform(bus.Record("before", {"a": 1}))
    supervisor.spool.append("events", row, 1.0)
    supervisor._perform(bus.Record("after", {}))
    supervisor._perform(bus.SendEvents("events", 0, 3, 1))
    assert [(event.seq, event.name) for event in sent] == [(1, "before"), (2, "event-unreadable"), (3, "after")]
    assert (sent[1].at_s, sent[1].detail, sent[1].stream) == (0.0, {}, sent[0].stream)
    assert supervisor._own_cost()["store_faults"] == {"event-unreadable": 1}


def test_an_event_too_large_for_the_store_costs_the_event(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise UsageError("can never fit")

    supervisor = make()
    monkeypatch.setattr(supervisor.spool, "append", never)
    supervisor._perform(bus.Record("huge", {}))
    assert supervisor.store_faults == {"event-lost": 1}


def test_what_telemetry_tells_anyway_is_written_with_the_next_event_and_at_the_end(
    make: Callable[..., Supervisor],
) -> None:
    supervisor = make()
    notices = supervisor.spool.streams["notices"]
    supervisor._perform(bus.Record("budget-changed", {}))
    assert notices.last_seq == 0
    supervisor._perform(bus.Record("swapped", {}))
    assert notices.last_seq == 1
    assert supervisor.inputs[-1] == bus.Stored("notices", 1, 1), "written with another stream's"
    supervisor._perform(bus.Record("budget-changed", {}))
    supervisor._settle_events()
    assert supervisor.inputs[-1] == bus.Stored("notices", 1, 2)


def test_an_upload_for_which_there_is_no_room_is_a_job_that_failed(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make(spool__uploads_max_bytes=65_536)
    supervisor.spool.append("uploads", bytes(60_000), 1.0)
    monkeypatch.setattr(supervisor.tail, "lines", lambda *_: ["x" * 6000])
    supervisor._perform(bus.DoJob("u1", "upload", {}))
    (done,) = [each for each in supervisor.inputs if isinstance(each, bus.JobDone)]
    assert done == bus.JobDone("u1", "the event store took nothing")
    told = supervisor._own_cost()
    assert told["spool"]["uploads"] == {"count": 1, "bytes": 60_000 + ROW_BYTES, "dropped": 1}
    assert (told["spool_dropped"], told["store_faults"]) == (1, {"event-lost": 1})


def test_readiness_is_repeated_until_the_service_manager_took_it(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, answers = make(), [False, False, True]
    monkeypatch.setattr(supervisor.notifier, "ready", lambda: answers.pop(0))
    supervisor._perform(bus.Notify(False, True, ""))
    assert len(answers) == 3, "not before the brain says so"
    supervisor._perform(bus.Notify(True, True, ""))
    for _ in range(4):
        supervisor._perform(bus.Notify(False, True, ""))
    assert answers == []


def test_a_device_that_leaves_in_good_order_says_so_before_it_goes(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make()
    done: list[object] = []
    close = supervisor.mqtt.close

    def publish(topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        done.append((topic, wire.decode(payload, wire.Status)[0], qos, retain))
        return True

    monkeypatch.setattr(supervisor.mqtt, "publish", publish)
    monkeypatch.setattr(supervisor.mqtt, "close", lambda: done.append("closed") or close())
    assert supervisor._stop() == 0
    device = supervisor.config.device
    topic = str(wire.Topic(device.fleet, device.id, "status", "device"))
    assert done == [(topic, wire.Status(online=False, session=supervisor.session), 1, True), "closed"]


def listen(supervisor: Supervisor) -> None:
    """One turn of the loop, without its clock."""
    for key, _ in supervisor.selector.select(0.05):
        supervisor._hear(key.fileobj)


def test_a_child_is_heard_after_its_hello_and_a_client_may_only_ask(
    make: Callable[..., Supervisor], until: Callable[..., None]
) -> None:
    supervisor = make()
    child, client = (ipc.connect(supervisor.layout.control) for _ in range(2))
    assert child is not None
    assert client is not None
    for channel in (child, client):
        channel.send(Happened("too-early", {}))
    child.send(Hello("actor", 4711))
    child.send(Happened("said", {}))
    client.send(Hello("client", 1))
    client.send(Happened("forged", {}))
    client.send(StatusRequest())
    answers: list[Any] = []
    until(lambda: listen(supervisor) or answers.extend(client.receive()) or answers, "an answer")
    until(lambda: listen(supervisor) or len(supervisor.inputs) >= 2, "the child")
    assert isinstance(answers[0], StatusReply)
    assert answers[0].status["device"] == "d"
    heard = [each for each in supervisor.inputs if not isinstance(each, bus.Connected)]
    assert heard == [bus.Heard("actor", Happened("said", {}))]
    supervisor._perform(bus.Tell("actor", Stop()))
    until(lambda: child.receive() == [Stop()], "what only the actor is told")
    assert client.receive() == []
    child.close()
    until(lambda: listen(supervisor) or len(supervisor.channels) == 1, "its leaving")
    client.close()
    until(lambda: listen(supervisor) or not supervisor.channels, "the other's")


def test_who_waited_at_the_door_is_heard_before_anybody_is_called_silent(
    make: Callable[..., Supervisor], until: Callable[..., None]
) -> None:
    supervisor = make()
    hellos = [Hello("actor", 4711), Hello("trainer", 4712)]
    peers = [ipc.connect(supervisor.layout.control) for _ in hellos]
    for channel, hello in zip(peers, hellos, strict=True):
        assert channel is not None
        channel.send(hello)
    until(lambda: listen(supervisor) or supervisor.inputs, "a hello")
    assert list(supervisor.inputs) == [bus.Connected(each.role, each.pid) for each in hellos]
    for channel in peers:
        assert channel is not None
        channel.close()


def test_a_look_that_may_excuse_silence_comes_before_the_verdict_about_it(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make()
    turns: list[list[type]] = []
    monkeypatch.setattr(supervisor, "_step_all", lambda: turns.append([type(each) for each in supervisor.inputs]))
    monkeypatch.setattr(supervisor, "_stop", lambda: 0)
    monkeypatch.setattr(control, "wake_s", lambda *_: 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    stopping = Stopping()
    monkeypatch.setattr(supervisor, "_flush", lambda: setattr(stopping, "asked", True))
    assert supervisor.run(stopping) == 0
    assert turns[0].index(bus.Sensed) < turns[0].index(bus.Tick)


STUBBORN = (
    "import signal, sys, time; from edgert.ports import ipc;"
    "ipc.single_instance(sys.argv[1]);"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
)


@pytest.fixture
def stubborn(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Holds the trainer's lock and does not heed SIGTERM."""
    (folder / "run").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, str(folder / "run" / "trainer.lock")], stdout=subprocess.PIPE, cwd=HOUSE
    )
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_child_that_outlived_a_predecessor_is_adopted_and_its_end_noticed(
    make: Callable[..., Supervisor], stubborn: subprocess.Popen[bytes], until: Callable[..., None]
) -> None:
    supervisor = make()
    assert supervisor.world.children["trainer"].pid == stubborn.pid
    assert supervisor.world.children["actor"].pid is None
    stubborn.kill()
    until(lambda: listen(supervisor) or supervisor.inputs, "its end")
    assert list(supervisor.inputs) == [bus.Exited("trainer", stubborn.pid, None)]
    assert not supervisor.children.watched


def test_a_stop_ends_with_sigkill_for_whom_nothing_else_helps(
    make: Callable[..., Supervisor], stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STOP_S", "TERM_S"):
        monkeypatch.setattr(ports, name, 0.1)
    supervisor = make()
    assert supervisor._stop() == 0
    assert stubborn.wait(5) == -signal.SIGKILL
    assert not supervisor.children.watched


def test_what_cannot_be_started_is_an_event_and_tried_again(
    make: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make()
    monkeypatch.setattr(ports.sys, "executable", "/nowhere/python")
    supervisor._perform(bus.Start("actor"))
    assert [name for name, _ in events(supervisor)] == ["start-failed"]
    told = [each for each in supervisor.inputs if not isinstance(each, bus.Stored)]
    assert told[-2:] == [bus.Spawned("actor", 0), bus.Exited("actor", 0, None)]


def test_killing_who_is_gone_is_no_fault(make: Callable[..., Supervisor]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    make()._perform(bus.Kill("actor", child.pid))


def test_a_program_at_the_desk_is_told_its_share_and_refused_while_there_is_no_link(
    make: Callable[..., Supervisor], until: Callable[..., None]
) -> None:
    supervisor, heard = make(), []
    supervisor.inputs.append(bus.Sensed(supervisor.board.read(0.0)))
    channel = ipc.connect(supervisor.layout.knowledge)
    assert channel is not None
    channel.send(Ask(4, b"anything"))

    def turn() -> bool:
        supervisor._hear(supervisor.desk)
        supervisor.inputs.append(bus.Tick())
        while supervisor.inputs:
            supervisor.guard, effects = program.guards.step(supervisor.guard, supervisor.inputs.popleft(), 0.0)
            for effect in effects:
                if isinstance(effect, bus.TellAsker):
                    supervisor._perform(effect)
        heard.extend(channel.receive())
        return len(heard) >= 2

    until(turn, "a budget and a refusal")
    assert isinstance(heard[0], Budget) and heard[0].teacher_bytes_per_s == 0.0
    assert isinstance(heard[1], Answer) and heard[1].ask_id == 4
    assert wire.decode(heard[1].payload, wire.KnowAnswer)[0].error == "over-budget"
    channel.close()
    supervisor._hear(supervisor.desk)
    assert supervisor.inputs.pop() == bus.AskersHere(())


def test_the_kind_of_board_is_named_or_detected_and_a_wrong_name_is_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def board(text: str) -> str | None:
        made = config.parse(f'[device]\nid = "d"\n[policy]\nbundle = "/p"\n[board]\n{text}\n', "x")
        found = program._board_file(made)
        return None if found is None else found.name

    assert board('model = "raspberry-pi-4"') == "raspberry-pi-4"
    assert board('kind = "fake"\nmodel = "jetson-nano"') == "jetson-nano"
    assert board('kind = "fake"') is None, "it is none of those that this machine may be"
    assert board(f'sysfs_root = "{tmp_path}"') is None
    with pytest.raises(ConfigError, match="no board 'raspbery'"):
        board('model = "raspbery"')
    (tmp_path / "broken.toml").write_text("[hardware]\nnonsense = 1\n")
    monkeypatch.setattr(boardfile, "folders", lambda: [tmp_path])
    assert board("") is None, "a file about another board keeps no device from starting"
