from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert import bus, control, status
from edgert.config import Config, commented_default, parse
from edgert.ports import ipc
from edgert.values import ActorReport, StatusReply, StatusRequest


@pytest.fixture
def config_file() -> Iterator[Path]:
    # Not tmp_path: a Unix socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="edgert-", dir="/tmp") as folder:
        path = Path(folder) / "edgert.toml"
        settings = {"device.id": "arm-7", "device.run_dir": folder, "device.state_dir": folder, "policy.bundle": "/p"}
        path.write_text(commented_default(settings))
        yield path


def document(config: Config) -> dict[str, Any]:
    """The real one, of a supervisor that has just heard its actor."""
    world = control.open_world(
        config, task="breakout", n_exits=3, note=None, streams={"events": ("s", 1, 0)}, now_s=0.0
    )
    report = ActorReport(
        pid=7, ticks=100, missed=1, safe=0, exits=[50, 30, 20], latency_p50_s=1e-3, latency_p99_s=2e-3,
        latency_max_s=3e-3, episodes=1, returns=[4.0], faults={}, generation=0, acting=True, first_action_s=1.5,
        cpu_s=2.0, rss_bytes=1 << 20,
    )  # fmt: skip
    world, _ = control.step(world, bus.Heard("actor", report), 1.0)
    return {**status.document(world, 2.0), "supervisor": {"pid": 1, "cpu_s": 0.5, "rss_bytes": 1 << 20}}


@pytest.fixture
def supervisor(config_file: Path) -> Iterator[dict[str, Any]]:
    """Answers like one; yields what it says."""
    config = parse(config_file.read_text(), "x")
    said, leave = document(config), threading.Event()
    listener = ipc.listen(Path(config.device.run_dir) / "control.sock")

    def serve() -> None:
        channels: list[ipc.Channel] = []
        while not leave.is_set():
            select.select([listener, *(c for c in channels if not c.closed)], [], [], 0.05)
            if (channel := ipc.accept(listener)) is not None:
                channels.append(channel)
            for each in channels:
                for told in [] if each.closed else each.receive():
                    assert isinstance(told, StatusRequest)
                    each.send(StatusReply(said))
        for each in channels:
            each.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield said
    leave.set()
    thread.join()
    listener.close()


def edgert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("verb", ["status", "top"])
def test_when_nothing_runs_it_says_so_and_ends_with_75(verb: str, config_file: Path) -> None:
    ended = edgert(verb, "--config", config_file)
    assert ended.returncode == 75
    assert "edgert run" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("verb", ["status", "top"])
def test_without_a_configuration_it_ends_with_78(verb: str, tmp_path: Path) -> None:
    assert edgert(verb, "--config", tmp_path / "none.toml").returncode == 78


def test_status_as_json_is_the_supervisors_document(config_file: Path, supervisor: dict[str, Any]) -> None:
    ended = edgert("status", "--config", config_file, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == json.loads(json.dumps(supervisor))


@pytest.mark.usefixtures("supervisor")
def test_status_for_people_is_plain_text_in_a_pipe(config_file: Path) -> None:
    ended = edgert("status", "--config", config_file)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert ended.stdout.startswith("default/arm-7: breakout")
    assert "50 % / 30 % / 20 %" in ended.stdout
    assert "1 missed (1.00 %)" in ended.stdout
    assert "not connected yet" in ended.stdout


@pytest.mark.usefixtures("supervisor")
def test_top_is_a_line_at_a_time_in_a_pipe(config_file: Path) -> None:
    ended = edgert("top", "--config", config_file, "--count", "2")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("default/arm-7: return 4.0") for line in lines)
