"""What all verbs of a fleet share; the conversation itself is in `test_fleet.py` and `test_duties.py`."""

from __future__ import annotations

import argparse
import os

import pytest

from edgert import wire
from edgert.cli import ERROR, talk
from edgert.errors import ConfigError

HEAD = ("device", "state")
ROWS = [("a", "online"), ("much-longer", "offline for so long that no terminal is wide enough for it")]


def test_in_a_pipe_a_table_is_whole_and_plain() -> None:
    lines = talk.table(HEAD, ROWS).splitlines()
    assert lines[0] == "device       state" and lines[2].endswith("enough for it")
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_it_is_no_wider_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((30, 24)))
    lines = talk.table(HEAD, ROWS).splitlines()
    assert all(len(line) <= 30 for line in lines[1:]) and lines[2].endswith("…")


def test_nothing_that_a_device_says_commands_a_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2Jok\n\u202e\x9b1m"
    (_, line) = talk.table(("a",), [(hostile,)]).splitlines()
    assert line.isprintable() and "ok" in line


def test_names_and_values_are_read_as_in_a_configuration() -> None:
    assert talk.read_toml(["a.b=1", 'c="x"'], "--arg") == {"a": {"b": 1}, "c": "x"}
    assert talk.read_toml(["a=\U0001f33b", 'b=say "so"'], "--arg") == {"a": "\U0001f33b", "b": 'say "so"'}
    assert talk.read_toml(["a=north", "b=18:00 h", "c=true", "d=[1]"], "--arg") == {
        "a": "north",
        "b": "18:00 h",
        "c": True,
        "d": [1],
    }
    with pytest.raises(ConfigError, match="--arg"):
        talk.read_toml(["a"], "--arg")


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "-x", "x" * 65])
def test_what_could_not_stand_in_a_topic_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="letters"):
        talk.named(name)


def test_patience_is_more_than_none() -> None:
    args = argparse.Namespace(timeout_s=0.0, broker="mqtt://x", fleet="f", device="d")
    with pytest.raises(ConfigError, match="timeout-s"), talk.conversation(args):
        pass


def test_a_terminal_that_does_not_know_its_width_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((0, 0)))
    assert "online" in talk.table(HEAD, ROWS)


def test_a_refusal_of_a_devices_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    class Peer:
        device = "f/d"

        def documents(self) -> tuple[None, None]:
            return None, None

        def publish(self, *_: object, **__: object) -> None:
            pass

        def answer(self, desired: wire.TwinDesired) -> wire.TwinReported:
            return wire.TwinReported(epoch=desired.epoch, version=desired.version, refused={"labels": "\x1b[2Jno"})

    args = argparse.Namespace(json=False, device="d")
    assert talk.edit(args, Peer(), lambda _: {"labels": {"a": "b"}}) == ERROR  # type: ignore[arg-type]  # all it needs
    assert capsys.readouterr().out.strip() == "labels refused: ?[2Jno"
