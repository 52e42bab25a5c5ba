"""The process that runs one command; what it leaves is tested with `edgert.ports.jobrun`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgert.ports.jobrun import Runs


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--folder", str(folder), "--id", "j", "--", *command]
    return subprocess.run(
        [sys.executable, "-m", "edgert.programs.job", *arguments], capture_output=True, text=True, check=False
    )


def test_it_leaves_an_outcome_and_yields_to_the_actor(tmp_path):
    own = os.nice(0)
    done = run(tmp_path, sys.executable, "-c", "import os; print(os.nice(0))")
    assert done.returncode == 0
    assert int(Runs(tmp_path).ended("j").out) == min(19, own + 10)


def test_what_cannot_be_started_is_said(tmp_path):
    done = run(tmp_path, "/no/such/program")
    assert done.returncode == 1
    assert "job j: cannot start /no/such/program" in done.stderr


def test_it_needs_no_numpy():
    code = "import edgert.programs.job, sys; assert 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
