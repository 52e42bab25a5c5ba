from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (pip install -e '.[release]')")

from edgert.ports.runtime import Kind
from tools.arm import inside

HOUSE = Path(__file__).parents[2]
GOLDEN = HOUSE / "tools/arm/golden.json"


def golden() -> dict[str, dict[str, str]]:
    return dict(json.loads(GOLDEN.read_text()))


def test_the_golden_file_is_what_this_machine_finds(capsys: pytest.CaptureFixture[str]) -> None:
    wanted: list[Kind] = [kind for kind in inside.installed() if kind != "auto"]
    again = "`python -m tools.arm.inside --models models --golden tools/arm/golden.json --write` after a bundle changed"
    assert inside.compare(golden(), HOUSE / "models", wanted) == [], again


def test_every_policy_that_is_shipped_is_in_it() -> None:
    assert set(golden()) == set(inside.BUNDLES) <= {path.name for path in (HOUSE / "models").glob("*.edgert")}


def test_another_action_and_another_byte_are_found() -> None:
    (name,) = (one for one in golden() if one == "breakout.edgert")
    wrong = {name: {**golden()[name], "actions": "00", "values": "0"}}
    assert inside.compare(wrong, HOUSE / "models", ["numpy"]) == [
        "breakout.edgert on numpy: other actions",
        "breakout.edgert: other bytes of values",
    ]


def test_what_cannot_run_is_a_difference() -> None:
    found = inside.compare({"breakout.edgert": golden()["breakout.edgert"]}, HOUSE / "models", ["tflite"])
    if "tflite" in inside.installed():
        assert found == []
    else:
        assert len(found) == 1 and found[0].startswith("breakout.edgert on tflite: ")
