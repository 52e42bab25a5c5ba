from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from edgert import bundle
from edgert.cli import main
from edgert.config import commented_default
from edgert.nets import ops
from edgert.policy import artifact
from edgert.policy.frontier import full_ops
from edgert.programs import policy_bench

MODEL = Path(__file__).parents[2] / "models" / "breakout.edgert"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_bench, "BURST", 2)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A configuration of a device whose state lies in `tmp_path`."""
    path = tmp_path / "edgert.toml"
    settings = {"device.id": "d", "device.state_dir": str(tmp_path), "policy.bundle": str(MODEL)}
    path.write_text(commented_default(settings))
    return path


FAST = ["--rate", "1000", "--seconds", "0.05", "--runtimes", "numpy"]


def test_the_race_is_told_and_its_winner_remembered(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "bench", str(MODEL), *FAST, "--config", str(device)]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told  # a pipe
    assert "numpy int8" in told and "numpy fp32" in told and "fastest here: numpy" in told
    path = device.parent / "runtime.json"
    assert str(path) in told
    assert json.loads(path.read_text())["choices"][0]["runtime"] == "numpy"


def test_for_programs_it_is_one_document(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "bench", str(MODEL), *FAST, "--config", str(device), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rate_hz"] == 1000
    assert {cost["precision"] for cost in found["costs"]} == {"int8", "fp32"}
    assert {len(cost["exits"]) for cost in found["costs"]} == {len(bundle.read(MODEL.read_bytes()).manifest.exits)}
    assert found["winner"]["runtime"] == "numpy"


def test_costs_can_be_written_into_the_bundle(tmp_path: Path, device: Path) -> None:
    copy = tmp_path / "copy.edgert"
    shutil.copy(MODEL, copy)
    assert main(["policy", "bench", str(copy), *FAST, "--config", str(device), "--write"]) == 0
    assert {cost.runtime for cost in bundle.read(copy.read_bytes()).manifest.costs} == {"numpy"}


@pytest.mark.parametrize(
    "arguments", [["--core", "-1"], ["--core", "9" * 30], ["--rate", "0"], ["--seconds", "nan"], ["--rate", "inf"]]
)
def test_a_core_or_rate_that_cannot_be_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "bench", str(MODEL), "--runtimes", "numpy", *arguments]) == 78
    assert arguments[0] in capsys.readouterr().err


def test_a_bundle_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(tmp_path / "none.edgert")]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_a_runtime_that_cannot_run_it_is_a_row_with_its_reason(
    tmp_path: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, plain = bundle.read(MODEL.read_bytes()), tmp_path / "plain.edgert"
    plain.write_bytes(bundle.write(found.manifest, {name: found.members[name] for name in bundle.MEMBERS}))
    arguments = ["policy", "bench", str(plain), "--rate", "1000", "--seconds", "0.05", "--config", str(device)]
    assert main([*arguments, "--runtimes", "tflite", "numpy"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("tflite"))
    assert "fails" in row
    assert main([*arguments, "--runtimes", "tflite"]) == 1  # nobody is left
    assert main([*arguments, "--runtimes", "torch"]) == 78
    assert "choose from" in capsys.readouterr().err


def test_a_bundle_is_checked_and_summarised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(MODEL)]) == 0
    told = capsys.readouterr().out
    manifest = bundle.read(MODEL.read_bytes()).manifest
    assert all(str(each.macs) in told for each in manifest.exits)
    assert "numpy int8" in told and "ok" in told
    assert main(["policy", "check", str(MODEL), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["macs"] for each in found["exits"]] == [each.macs for each in manifest.exits]
    assert found["runtimes"]["numpy int8"] == "ok"


def test_the_frontier_is_shown_with_what_a_tick_takes_here(
    tmp_path: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bundle.read(MODEL.read_bytes())
    spec = artifact.load(MODEL.read_bytes()).spec
    whole, reference = full_ops(spec), bundle.Reference(1.0, 9)
    points = [
        bundle.Point(
            thresholds=(0.0, 0.0), repeat=repeat, hold_threshold=0.0, return_mean=1.0, return_frac=0.5, return_low=0.4,
            return_high=0.6, ops_frac=ops(spec)[0] / repeat / whole, exit_share=(1 / repeat, 0.0, 0.0),
            held_share=1 - 1 / repeat, episodes=9,
        )
        for repeat in (4, 1)
    ]  # fmt: skip
    frontier = bundle.Frontier(random=reference, full=reference, full_ops=whole, points=tuple(points))
    copy = tmp_path / "copy.edgert"
    copy.write_bytes(bundle.write(msgspec.structs.replace(found.manifest, frontier=frontier), found.members))
    assert main(["policy", "check", str(copy)]) == 0
    told = capsys.readouterr().out
    assert "0.40 .. 0.60" in told and "4 ticks from 0.000 on" in told and "mean us" not in told
    assert main(["policy", "bench", str(copy), *FAST, "--config", str(device), "--write"]) == 0
    capsys.readouterr()
    assert main(["policy", "check", str(copy), "--json"]) == 0
    found_json = json.loads(capsys.readouterr().out)
    held, decided = (point["cost_s"] for point in found_json["frontier"])
    assert held == pytest.approx(decided / 4) and found_json["frontier_cost_on"].startswith("numpy")
    assert main(["policy", "check", str(copy)]) == 0
    assert "mean us, numpy" in capsys.readouterr().out


def test_what_is_no_bundle_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "b.edgert"
    broken.write_bytes(b"junk")
    assert main(["policy", "check", str(broken)]) == 78
    assert main(["policy", "bench", str(tmp_path / "nowhere")]) == 1
    assert main(["policy"]) == 78
    assert main(["policy", "bench", str(MODEL), "--config", str(tmp_path / "nowhere.toml")]) == 78
    assert "nowhere.toml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rate", "-3"], ["--seconds", "0"], ["--core", "4096"]])
def test_figures_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    assert main(["policy", "bench", str(MODEL), "--runtimes", "numpy", *arguments]) == 78
