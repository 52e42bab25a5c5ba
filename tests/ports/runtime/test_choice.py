"""What is remembered of a race, and when it is believed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgert import bundle, quant
from edgert.bundle import Cost, ExitCost
from edgert.errors import ArtifactError, UsageError
from edgert.policy import artifact
from edgert.ports.runtime import choice
from edgert.ports.runtime.choice import Choice, Key

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="module")
def policy() -> artifact.Policy:
    """Of a bundle that has nothing but what every bundle must have."""
    found = bundle.read((MODELS / "breakout.edgert").read_bytes())
    return artifact.load(bundle.write(found.manifest, {name: found.members[name] for name in bundle.MEMBERS}))


def costs(runtime: str, precision: str, *seconds: float) -> Cost:
    exits = tuple(ExitCost(each, 2 * each, each) for each in seconds)
    return Cost(
        board="b", cpu="c", runtime=runtime, version="1", precision=precision, rate_hz=20.0, exits=exits, samples=5
    )


def test_the_cpu_is_named_as_the_kernel_names_it(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc" / "cpuinfo"
    for text, name in (
        ("processor\t: 0\nmodel name\t: ARMv7 Processor rev 3 (v7l)\nprocessor\t: 1\nmodel name\t: other\n", None),
        ("processor : 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\nCPU revision\t: 3\n", "ARM 0x41 0xd08 3"),
        ("\xff no colon", "unknown"),
    ):
        info.write_text(text)
        assert choice.cpu_name(str(tmp_path)) == (name or "ARMv7 Processor rev 3 (v7l)")
    info.unlink()
    assert choice.cpu_name(str(tmp_path)) == "unknown"


def test_numpy_can_always_run_and_in_both_precisions(policy: artifact.Policy) -> None:
    found = choice.candidates(policy)
    assert {("numpy", "int8"), ("numpy", "fp32")} <= set(found)
    assert not {("litert", "int8"), ("tflite", "int8"), ("onnx", "fp32")} & set(found)


def test_float_gives_the_float_answers_and_only_where_it_exists(policy: artifact.Policy) -> None:
    runtime = choice.open_one(policy, "numpy", "fp32")
    golden = artifact.as_float(policy).golden_head
    for k in range(policy.spec.n_exits):
        logits = np.array([np.inf] * k + [-np.inf] * (policy.spec.n_exits - 1 - k), np.float32)
        head, exit_ = runtime.infer(policy.golden_obs[0], logits)
        assert exit_ == k
        assert head == pytest.approx(golden[0, k], rel=1e-4, abs=1e-4)
    with pytest.raises(UsageError, match="int8 only"):
        choice.open_one(policy, "litert", "fp32")


def test_float_runs_on_onnxruntime_where_the_bundle_has_its_graph(policy: artifact.Policy) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pytest.importorskip("gymnasium")
    from tools import export

    if ("onnx", "int8") not in choice.candidates(policy):
        pytest.skip("onnxruntime does not work here")
    with pytest.raises(ArtifactError):
        choice.open_one(policy, "onnx", "fp32").close()
    data = artifact.pack(
        policy.manifest, policy.params, policy.onnx, policy.golden_obs, float_onnx=export.build_float(policy.params)
    )
    richer = artifact.load(data)
    assert ("onnx", "fp32") in choice.candidates(richer)
    choice.open_one(richer, "onnx", "fp32").close()


def test_a_choice_is_recalled_for_the_same_board_and_shape_whatever_the_weights(
    policy: artifact.Policy, tmp_path: Path
) -> None:
    path = tmp_path / "runtime.json"
    assert choice.recall(path, policy) == (None, "never measured here")
    made = Choice(choice.key_of(policy), "numpy", "fp32", (costs("numpy", "fp32", 1e-3, 2e-3, 3e-3),))
    choice.remember(path, made)
    assert choice.recall(path, policy) == (made, "")
    params = policy.params.copy()
    params.flat += np.float32(0.01)
    learned = artifact.derive(policy, params, quant.fit(params, policy.golden_obs), created="", provenance={})
    assert choice.recall(path, artifact.load(learned)) == (made, "")
    other = artifact.load((MODELS / "space_invaders.edgert").read_bytes())
    assert choice.recall(path, other)[0] is None
    opened = choice.open_chosen(policy, "auto", path)
    assert (opened.runtime.name, opened.costs_s) == ("numpy", (1e-3, 2e-3, 3e-3))
    assert "fp32" in opened.why


@pytest.mark.parametrize("changed", ["board", "cpu", "versions"])
def test_a_stale_choice_is_ignored(policy: artifact.Policy, tmp_path: Path, changed: str) -> None:
    path, key = tmp_path / "runtime.json", choice.key_of(policy)
    stale = msgspec.structs.replace(key, **{changed: {"numpy": "0.1"} if changed == "versions" else "another"})
    choice.remember(path, Choice(stale, "numpy", "fp32", ()))
    found, why = choice.recall(path, policy)
    assert found is None and "another board" in why
    opened = choice.open_chosen(policy, "auto", path)
    assert opened.why.startswith("first that works") and opened.costs_s == ()


def test_a_configured_runtime_stands_above_the_measured_one(policy: artifact.Policy, tmp_path: Path) -> None:
    path = tmp_path / "runtime.json"
    both = (costs("numpy", "fp32", 1.0, 2.0, 3.0), costs("numpy", "int8", 4.0, 5.0, 6.0))
    choice.remember(path, Choice(choice.key_of(policy), "numpy", "fp32", both))
    opened = choice.open_chosen(policy, "numpy", path)
    assert (opened.why, opened.costs_s) == ("configured", (4.0, 5.0, 6.0))


def test_a_measured_runtime_that_no_longer_works_is_passed_over(
    policy: artifact.Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runtime.json"
    choice.remember(path, Choice(choice.key_of(policy), "litert", "int8", ()))  # this bundle has no models for it
    opened = choice.open_chosen(policy, "auto", path)
    assert opened.runtime.name in ("onnx", "numpy")
    assert "litert int8 was fastest here and fails" in opened.why


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"format": 2, "choices": []}',
        b'{"format": 1, "choices": 3}',
        b'{"later": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_no_choice_and_is_replaced(policy: artifact.Policy, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runtime.json"
    path.write_bytes(content)
    found, why = choice.recall(path, policy)
    assert found is None and "cannot be read" in why
    made = Choice(choice.key_of(policy), "numpy", "int8", ())
    choice.remember(path, made)
    assert choice.recall(path, policy) == (made, "")


def test_costs_of_another_number_of_exits_are_not_believed(policy: artifact.Policy, tmp_path: Path) -> None:
    path = tmp_path / "runtime.json"
    for seconds in ((1e-3,), (1e-3, 1e-3, 1e-3, 1e-3)):
        choice.remember(path, Choice(choice.key_of(policy), "numpy", "int8", (costs("numpy", "int8", *seconds),)))
        opened = choice.open_chosen(policy, "auto", path)
        assert opened.costs_s == () and "not one cost an exit" in opened.why


def test_the_newest_choices_are_kept_and_one_of_the_same_key_is_replaced(
    policy: artifact.Policy, tmp_path: Path
) -> None:
    path, key = tmp_path / "runtime.json", choice.key_of(policy)
    choice.remember(path, Choice(key, "numpy", "fp32", ()))
    for i in range(choice.KEPT - 1):
        choice.remember(path, Choice(Key("b", "c", {}, str(i)), "numpy", "int8", ()))
    assert choice.recall(path, policy)[0] is not None
    choice.remember(path, Choice(key, "numpy", "int8", ()))
    choice.remember(path, Choice(Key("b", "c", {}, "one more"), "numpy", "int8", ()))
    found, _ = choice.recall(path, policy)
    assert found is not None and found.precision == "int8"
