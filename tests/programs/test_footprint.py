from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import UsageError
from edgert.programs import footprint

BUNDLE = Path(__file__).parents[2] / "models/breakout.edgert"


def look(at_s: float, cpu_s: float, switches: int, written: int | None) -> footprint.Taken:
    return footprint.Taken(at_s, {"actor": cpu_s}, {"actor": switches}, {"actor": written})


def test_rates_are_differences_over_time() -> None:
    found = footprint.rates(look(10, 1.0, 100, 5000), look(30, 2.0, 400, 25_000))["actor"]
    assert found == {"cpu_frac": 0.05, "wakeups_hz": 15.0, "written_bytes_per_h": 3_600_000.0}


def test_what_the_kernel_does_not_say_is_unknown() -> None:
    assert footprint.rates(look(0, 0, 0, None), look(1, 0, 0, None))["actor"]["written_bytes_per_h"] is None


def test_a_process_is_read_as_the_kernel_counts_it() -> None:
    before = footprint.taken({"self": os.getpid()})
    end_s = time.process_time() + 0.05
    while time.process_time() < end_s:
        pass
    time.sleep(0.001)
    after = footprint.taken({"self": os.getpid()})
    assert after.cpu_s["self"] > before.cpu_s["self"] and after.switches["self"] > before.switches["self"]


def measured(supervisor_mb: float, actor_mb: float, written: float | None) -> dict[str, Any]:
    row = {"cpu_frac": 0.001, "wakeups_hz": 2.0, "written_bytes_per_h": written}
    return {
        "ready_s": 2.0,
        "rss_mb": {"supervisor": 40.0, "actor": 80.0, "trainer": 60.0},
        "pss_mb": {"supervisor": supervisor_mb, "actor": actor_mb, "trainer": 30.0},
        "idle": dict.fromkeys(footprint.ROLES, row),
        "acting": dict.fromkeys(footprint.ROLES, row),
    }


@pytest.mark.parametrize(("runtime", "most"), [("litert", 60.0), ("onnx", 85.0), ("numpy", None)])
def test_each_runtime_has_its_budget(runtime: str, most: float | None) -> None:
    found = {budget.name: (budget.most, value) for budget, value in footprint.verdicts(runtime, measured(20, 40, 0.0))}
    assert found.get("supervisor and actor, PSS") == (None if most is None else (most, 60.0))
    assert found["idle, CPU"] == (0.5, pytest.approx(0.3))


def test_the_table_says_what_is_kept_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"machine": "m", "seconds": 1.0, "import_s": {}, "runtimes": {"litert": measured(26, 30, None)}}
    footprint.show(document)
    lines = {line.strip().split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["supervisor, PSS"].endswith("NOT KEPT")
    assert lines["supervisor and actor, PSS"].endswith(" kept")
    assert lines["idle, written"].endswith("unknown")


@pytest.mark.system
def test_a_real_device_is_measured_idle_and_acting(
    folder: Path, mosquitto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "SETTLE_S", 0.0)
    found = footprint.measure("numpy", BUNDLE, mosquitto.url, folder, 1.0)
    assert set(found["pss_mb"]) == set(footprint.ROLES)
    assert found["pss_mb"]["supervisor"] < found["pss_mb"]["actor"] + found["pss_mb"]["trainer"]
    assert 0 < found["answers"] <= 20
    assert found["acting"]["actor"]["cpu_frac"] > 0


def test_without_a_runtime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "RUNTIMES", {"litert": "no_such_package"})
    with pytest.raises(UsageError, match="pip install"):
        footprint.main(["--runtime", "litert"])
