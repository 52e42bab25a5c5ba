from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgert.cli import setup
from edgert.config import parse
from edgert.errors import ConfigError


def written(path: Path, *arguments: str) -> str:
    assert setup.init(["--path", str(path), *arguments]) == 0
    return path.read_text()


def test_the_file_it_writes_is_accepted_and_says_what_was_asked(tmp_path: Path) -> None:
    text = written(
        tmp_path / "a.toml",
        *("--bundle", "p.edgert", "--broker", "mqtt://broker.lan", "--device", "arm-7", "--fleet", "lab"),
        *("--plant", "simulated", "--env", "MinAtar/Breakout-v1", "--state-dir", "/tmp/s", "--run-dir", "/tmp/r"),
    )
    config = parse(text, "a.toml")
    assert (config.device.id, config.device.fleet, config.broker.url) == ("arm-7", "lab", "mqtt://broker.lan")
    assert (config.plant.kind, config.plant.env, config.board.kind) == ("simulated", "MinAtar/Breakout-v1", "fake")
    assert (config.device.state_dir, config.device.run_dir) == ("/tmp/s", "/tmp/r")


def test_a_relative_bundle_is_written_as_an_absolute_path(tmp_path: Path) -> None:
    config = parse(written(tmp_path / "a.toml", "--bundle", "models/p.edgert"), "a.toml")
    assert config.policy.bundle == str(Path("models/p.edgert").absolute())


def test_without_any_option_the_file_is_still_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(written(tmp_path / "a.toml"), "a.toml")
    assert config.device.id == setup.host_name()
    said = capsys.readouterr().out
    assert "policy.bundle" in said
    assert "edgert doctor --config" in said


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("mine")
    command = [sys.executable, "-m", "edgert", "init", "--path", str(path), "--device", "x"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, path.read_text()) == (2, "mine")
    assert "--force" in ended.stdout
    assert subprocess.run([*command, "--force"], capture_output=True, check=False).returncode == 0
    assert parse(path.read_text(), "a.toml").device.id == "x"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--broker", "http://x"),
        ("--broker", "mqtt://user:secret@x"),
        ("--device", "a/b"),
        ("--plant", "simulated"),
        ("--run-dir", "/" + "x" * 120),
    ],
)
def test_what_no_configuration_may_have_is_refused_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError):
        setup.init(["--path", str(tmp_path / "a.toml"), *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["pi.local", "-a-", "ä b", "", "x" * 80, "9.", "..."])
def test_a_device_can_have_the_name_of_any_host(host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup.socket, "gethostname", lambda: host)
    written(tmp_path / "a.toml")
