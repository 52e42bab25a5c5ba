from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgert import __version__, cli
from edgert.errors import ArtifactError, BoardError, ConfigError, LinkError, StoreError, UsageError


def edgert(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_it_says_which_edgert_it_is() -> None:
    ended = edgert("--version")
    assert (ended.returncode, ended.stdout) == (0, f"edgert {__version__}\n")


def test_help_names_every_verb_and_every_exit_code() -> None:
    ended = edgert("--help")
    assert ended.returncode == 0
    assert all(f"\n  {verb}" in ended.stdout for verb in cli.VERBS)
    assert all(code in ended.stdout for code in ("0 ok", "1 error", "2 nothing", "75 retry", "77 not", "78 bad"))


@pytest.mark.parametrize(
    "arguments", [(), ("launch",), ("init", "--colour"), ("run",), ("demo", "--minutes", "0"), ("demo", "--game", "go")]
)
def test_a_command_line_it_does_not_understand_is_bad_configuration(arguments: tuple[str, ...]) -> None:
    ended = edgert(*arguments)
    assert ended.returncode == 78, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "bench"])
def test_every_verb_explains_itself(verb: str) -> None:
    ended = edgert(verb, "--help")
    assert ended.returncode == 0, ended.stderr
    assert f"edgert {verb}" in ended.stdout


def test_the_command_line_itself_imports_nothing_heavy() -> None:
    code = """
import sys
from edgert.cli import main
main(["--version"])
heavy = {"numpy", "rich", "paho", "msgspec", "cbor2", "psutil", "matplotlib"} & sys.modules.keys()
assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 78),
        (ArtifactError("x"), 78),
        (UsageError("x"), 1),
        (StoreError("x"), 1),
        (BoardError("x"), 1),
        (LinkError("x"), 75),
        (PermissionError("x"), 77),
        (FileNotFoundError("x"), 1),
    ],
)
def test_the_type_of_an_error_is_its_exit_code(error: Exception, code: int) -> None:
    assert cli.code_of(error) == code


def test_what_was_forbidden_is_not_allowed_whatever_it_was_wrapped_in() -> None:
    error = StoreError("cannot write")
    error.__cause__ = PermissionError("denied")
    assert cli.code_of(error) == 77


def test_an_unreadable_configuration_of_a_device_ends_with_78(tmp_path: Path) -> None:
    ended = edgert("run", "--config", str(tmp_path / "nowhere.toml"))
    assert ended.returncode == 78
    assert "edgert init" in ended.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = f"{sys.executable} -m edgert --help | head -c 1"
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {code}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
