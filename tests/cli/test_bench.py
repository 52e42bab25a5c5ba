from __future__ import annotations

import importlib

import pytest

from edgert import cli
from edgert.cli import bench


@pytest.mark.parametrize("part", bench.PARTS)
def test_every_part_is_there_and_explains_itself(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", part, "--help"]) == cli.OK
    assert capsys.readouterr().out.startswith("usage: edgert bench")
    assert callable(importlib.import_module(bench.PARTS[part][0]).main)


def test_help_names_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == cli.OK
    said = capsys.readouterr().out
    assert all(f"  {part}" in said for part in bench.PARTS)


def test_another_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "moon"]) == cli.BAD_CONFIG
    assert "no part 'moon'" in capsys.readouterr().err


def test_without_a_word_it_is_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--core", "x"]) == cli.BAD_CONFIG
    assert "--core" in capsys.readouterr().err
