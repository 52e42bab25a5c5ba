from __future__ import annotations

import pytest

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (pip install -e '.[release]')")

from edgert.errors import ArtifactError
from tools import booted


def test_every_part_is_a_method() -> None:
    assert [name for name in booted.PARTS if not callable(getattr(booted.Trial, name))] == []


def test_what_does_not_come_about_is_named() -> None:
    with pytest.raises(ArtifactError, match="the moon did not come about"):
        booted.wait(lambda: False, "the moon", 0.01)


def test_the_program_beside_the_device_compiles() -> None:
    compile(booted.PROGRAM, "program", "exec")


def test_the_last_log_says_that_all_of_it_was_so() -> None:
    lines = booted.LOG.read_text().splitlines()
    assert "systemd" in lines[0]
    assert all(line.startswith("ok  ") for line in lines[1:])
    assert len(lines) - 1 >= len(booted.PARTS)
