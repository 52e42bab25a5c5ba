from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (pip install -e '.[release]')")

from edgert.ports.runtime import Kind
from tools.arm import __main__ as arm
from tools.arm import inside

HOUSE = Path(__file__).parents[2]
GOLDEN = HOUSE / "tools/arm/golden.json"


def golden() -> dict[str, dict[str, Any]]:
    return dict(json.loads(GOLDEN.read_text()))


def test_the_golden_file_is_what_this_machine_finds(capsys: pytest.CaptureFixture[str]) -> None:
    wanted: list[Kind] = [kind for kind in inside.installed() if kind != "auto"]
    again = "`python -m tools.arm.inside --models models --golden tools/arm/golden.json --write`, where tflite is there"
    assert inside.compare(golden(), HOUSE / "models", wanted) == [], again


def test_every_policy_that_is_shipped_is_in_it() -> None:
    assert set(golden()) == set(inside.BUNDLES) <= {path.name for path in (HOUSE / "models").glob("*.edgert")}


def test_another_action_and_another_byte_are_found() -> None:
    (name,) = (one for one in golden() if one == "breakout.edgert")
    wrong = {name: {**golden()[name], "actions": {"numpy": "00"}, "values": "0"}}
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


def test_a_runtime_that_rounds_in_its_own_way_is_held_to_its_own_actions() -> None:
    differ, of = inside.apart(golden(), "tflite")
    assert of == sum(len(wants["actions"]["numpy"].split()) for wants in golden().values())
    assert 0 < differ < 0.02 * of, "ties within the bundles' bounds, and no more"
    assert inside.apart(golden(), "litert") == (0, 0)
    assert all(set(wants["actions"]) == {"numpy", *inside.OWN} for wants in golden().values())


def test_a_log_is_gone_on_with_only_for_the_same_wheel_on_the_same_processor(tmp_path: Path) -> None:
    log, head = tmp_path / "log", ["a wheel", "a processor"]
    assert arm.written(log, [*head, "ok  one"]) == [*head, "ok  one"]
    log.write_text("\n".join([*head, "ok  one", "NO  two: why"]))
    assert arm.written(log, [*head, "ok  one", "ok  two"]) == [*head, arm.PARTLY, "ok  one", "ok  two"]
    log.write_text("\n".join([*head, arm.PARTLY, "ok  one"]))
    assert arm.written(log, [*head, "ok  two"]) == [*head, arm.PARTLY, "ok  one", "ok  two"]
    assert arm.written(log, ["another wheel", "a processor", "ok  two"]) == ["another wheel", "a processor", "ok  two"]
