from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from edgert.govern.reasons import REASONS

GOVERN = Path(__file__).parents[2] / "edgert" / "govern"
NAMES = re.compile(r"^(cpu|temp|battery|link|memory|goal|until|on|no|clock|under|deadline|throttled|paused)(-[a-z]+)+$")


@pytest.mark.parametrize("module", ["estimate", "budget", "decide", "explain"])
def test_every_reason_that_is_given_is_in_the_catalogue(module: str) -> None:
    said = {
        node.value
        for node in ast.walk(ast.parse((GOVERN / f"{module}.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES.match(node.value)
    }
    said -= {"goals-order-ended", "train-energy"}
    assert said - {"power-unknown"} <= REASONS.keys(), "power is reported and not limited: its name is never given"


def test_every_entry_says_what_is_so_and_what_to_do() -> None:
    for name, reason in REASONS.items():
        assert reason.means.endswith(".") and reason.do.endswith("."), name


def test_the_readme_has_a_row_for_every_reason_and_for_no_other() -> None:
    text = (GOVERN.parents[1] / "README.md").read_text()
    section = text[text.index("## Budget: sensors, goals, reasons") :].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`([a-z-]+)`", row)) == sorted(REASONS)
