from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from edgert import cli
from edgert.config import commented_default
from edgert.ports.process import Layout, load_config

MODEL = Path(__file__).parents[2] / "models/breakout.edgert"


@pytest.fixture
def device(tmp_path: Path) -> tuple[Path, Layout]:
    """The configuration of a device that has learned, and its files."""
    settings: dict[str, Any] = {
        "device.id": "x",
        "device.state_dir": str(tmp_path / "state"),
        "device.run_dir": str(tmp_path / "run"),
        "policy.bundle": str(MODEL),
    }
    config = tmp_path / "edgert.toml"
    config.write_text(commented_default(settings))
    layout = Layout(load_config(config))
    layout.make()
    layout.acting.write_bytes(b"{}")
    (layout.checkpoints / "1.gen").write_bytes(b"learned")
    layout.ring.write_bytes(b"seen")
    layout.spool.write_bytes(b"events")
    layout.fleet.mkdir()
    (layout.fleet / "keys").write_bytes(b"keys")
    return config, layout


def test_what_was_learned_is_set_aside_and_nothing_else(device: tuple[Path, Layout]) -> None:
    config, layout = device
    assert cli.main(["recover", "--config", str(config)]) == cli.OK
    assert not layout.acting.exists() and not layout.ring.exists() and not layout.checkpoints.exists()
    assert (layout.state / "set-aside/policies/acting.json").read_bytes() == b"{}"
    assert (layout.state / "set-aside/checkpoints/1.gen").read_bytes() == b"learned"
    assert layout.paused.exists()
    assert (layout.spool.read_bytes(), (layout.fleet / "keys").read_bytes()) == (b"events", b"keys")


def test_only_the_last_is_kept_and_nothing_is_no_reason_to_forget_it(device: tuple[Path, Layout]) -> None:
    config, layout = device
    assert cli.main(["recover", "--config", str(config)]) == cli.OK
    assert cli.main(["recover", "--config", str(config)]) == cli.NOTHING_TO_DO
    assert (layout.state / "set-aside/ring.bin").exists()
    layout.make()
    (layout.checkpoints / "2.gen").write_bytes(b"again")
    assert cli.main(["recover", "--config", str(config)]) == cli.OK
    assert [path.name for path in (layout.state / "set-aside").iterdir()] == ["checkpoints"]


def test_a_device_that_runs_is_left_alone(device: tuple[Path, Layout], capsys: pytest.CaptureFixture[str]) -> None:
    config, layout = device
    with layout.lock("actor").open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["recover", "--config", str(config)]) == cli.ERROR
    assert f"actor is process {os.getpid()}" in capsys.readouterr().err
    assert layout.acting.exists()


@pytest.mark.parametrize("broken", ["bundle", "configuration"])
def test_a_wrong_configuration_is_no_reason_to_set_anything_aside(
    device: tuple[Path, Layout], tmp_path: Path, broken: str
) -> None:
    config, layout = device
    if broken == "bundle":
        (tmp_path / "broken.edgert").write_bytes(MODEL.read_bytes()[:-100])
        config.write_text(config.read_text().replace(str(MODEL), str(tmp_path / "broken.edgert")))
    else:
        config.write_text("[device")
    assert cli.main(["recover", "--config", str(config)]) == cli.BAD_CONFIG
    assert layout.acting.exists() and layout.ring.exists()
