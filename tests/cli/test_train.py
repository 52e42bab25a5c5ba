"""`edgert train`, against a supervisor's own brain behind a real socket."""

from __future__ import annotations

import json
import select
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from edgert import bus, control, status
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER, train
from edgert.config import commented_default, parse
from edgert.errors import ConfigError
from edgert.ports import ipc
from edgert.values import StatusReply, StatusRequest, TrainCode, TrainerReport, TrainOrder, TrainReply

TOLD = TrainerReport(
    pid=1, steps=1234, loss=0.25, transitions=9, asked=0, answered=0, joined=0, candidates=4, accepted=2, generation=2,
    checkpoint=7, faults={}, cpu_s=0.1, rss_bytes=5, steps_hz=9.5, replay=500, replay_max=1000, needed=50, taught=100,
    trust=0.75, rolled_back=1, checkpoint_age_s=12.0,
)  # fmt: skip


class Supervisor:
    """The brain and a socket; a trainer that does at once what it is told."""

    def __init__(self, path: Path) -> None:
        config = parse(path.read_text(), "x")
        self.world = control.open_world(
            config, task="t", n_exits=3, note=None, streams={"events": ("s", 1, 0)}, now_s=0.0
        )
        self.answers = "candidate 5 accepted; checkpoint 8"
        self.code: str | None = "done"
        self.leave = threading.Event()
        self.listener = ipc.listen(Path(config.device.run_dir) / "control.sock")
        self.thread = threading.Thread(target=self.serve)
        self.step(bus.Tick(), bus.Spawned("trainer", 1), bus.Connected("trainer", 1), bus.Heard("trainer", TOLD))

    def step(self, *events: bus.Input) -> None:
        for event in events:
            self.world, effects = control.step(self.world, event, 1.0)
            for effect in effects:
                if isinstance(effect, bus.Tell) and isinstance(effect.told, TrainOrder):
                    told = {"order": effect.told.id, "order_told": self.answers, "order_code": self.code}
                    self.step(bus.Heard("trainer", msgspec.structs.replace(TOLD, **told)))

    def serve(self) -> None:
        channels: list[ipc.Channel] = []
        while not self.leave.is_set():
            select.select([self.listener, *(each for each in channels if not each.closed)], [], [], 0.02)
            if (channel := ipc.accept(self.listener)) is not None:
                channels.append(channel)
            for each in channels:
                for told in [] if each.closed else each.receive():
                    if isinstance(told, StatusRequest):
                        each.send(StatusReply(status.document(self.world, 2.0)))
                    elif isinstance(told, TrainOrder):
                        each.send(TrainReply(told.id, status.refusal(self.world, told)))
                        self.step(bus.TrainOrdered(told))
        for each in channels:
            each.close()


def write(path: Path, **more: object) -> None:
    folder = str(path.parent)
    settings = {"device.id": "arm-7", "device.run_dir": folder, "device.state_dir": folder, "policy.bundle": "/p"}
    path.write_text(commented_default({**settings, **more}))


@pytest.fixture
def config_file() -> Iterator[Path]:
    # Not tmp_path: a Unix socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="edgert-", dir="/tmp") as folder:
        path = Path(folder) / "edgert.toml"
        write(path)
        yield path


@pytest.fixture
def supervisor(config_file: Path) -> Iterator[Supervisor]:
    made = Supervisor(config_file)
    made.thread.start()
    yield made
    made.leave.set()
    made.thread.join()
    made.listener.close()


def run(config_file: Path, verb: str, *more: str) -> int:
    return train.main([verb, "--config", str(config_file), *more])


def test_without_a_supervisor_it_ends_with_75(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "pause", "now"):
        assert run(config_file, verb) == RETRY_LATER
    assert "edgert run" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        run(config_file.with_name("none"), "status")


def test_status_says_all_there_is_to_know(
    config_file: Path, supervisor: Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_file, "status") == OK
    text = capsys.readouterr().out
    for words in ("learning", "1,234", "9.5/s", "0.2500", "500 of 1,000", "20 % taught", "0.75 of the teacher"):
        assert words in text
    assert "4 candidates, 2 accepted, 1 rolled back" in text and "7, 12 s old" in text
    assert run(config_file, "status", "--json") == OK
    told = json.loads(capsys.readouterr().out)
    assert (told["training"], told["taught_frac"], told["generation"], told["trial"]) == (True, 0.2, 0, None)


def test_pausing_and_resuming_say_whether_anything_changed(
    config_file: Path, supervisor: Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [run(config_file, verb) for verb in ("pause", "pause", "resume", "resume")] == [
        OK,
        NOTHING_TO_DO,
        OK,
        NOTHING_TO_DO,
    ]
    run(config_file, "pause")
    capsys.readouterr()
    run(config_file, "status")
    assert "not learning: paused" in capsys.readouterr().out


def test_now_waits_for_what_comes_of_it(
    config_file: Path, supervisor: Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config_file, "now", "--json") == OK
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["told"] == "candidate 5 accepted; checkpoint 8" and told["code"] == "done"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("done", OK),
        ("nothing-to-do", NOTHING_TO_DO),
        ("too-early", RETRY_LATER),
        ("candidate-not-made", ERROR),
        ("checkpoint-not-written", ERROR),
        (None, ERROR),
    ],
)
def test_the_exit_code_follows_the_name_of_what_came_of_it_and_not_its_words(
    config_file: Path, supervisor: Supervisor, capsys: pytest.CaptureFixture[str], code: str | None, exit_code: int
) -> None:
    supervisor.answers, supervisor.code = "no candidate: nothing was learned", code
    assert run(config_file, "now") == exit_code
    said = capsys.readouterr()
    assert supervisor.answers in (said.out if exit_code in (OK, NOTHING_TO_DO) else said.err)
    assert run(config_file, "now", "--json") == exit_code
    assert json.loads(capsys.readouterr().out)["code"] == code
    assert set(train.CODES) == set(get_args(TrainCode))


def test_a_trainer_that_is_away_is_no_reason_to_wait(
    config_file: Path, supervisor: Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.step(bus.Exited("trainer", 1, -9))
    assert run(config_file, "now") == RETRY_LATER
    assert "not there" in capsys.readouterr().err
    assert run(config_file, "pause") == OK, "it holds for the trainer that comes"


def test_a_device_that_does_not_learn_says_so(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(config_file, **{"learn.enabled": False})
    made = Supervisor(config_file)
    made.thread.start()
    try:
        assert run(config_file, "pause") == ERROR
        assert "does not learn" in capsys.readouterr().err
    finally:
        made.leave.set()
        made.thread.join()
        made.listener.close()


def test_a_trainer_that_never_answers_is_given_up(
    config_file: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "NOW_S", 0.2)
    monkeypatch.setattr(supervisor, "step", lambda *_: None)
    assert run(config_file, "now") == RETRY_LATER
