from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import warnings
import zipfile
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import bundle
from edgert.errors import ArtifactError
from edgert.values import Operating

CONTENT = {"policy.onnx": b"graph" * 50, "params.f32": b"\0" * 64, "golden.obs": b"", "golden.head": b"h"}


def manifest(**changed: Any) -> bundle.Manifest:
    fields = {
        "name": "n",
        "task": "t",
        "created": "2026-01-01T00:00:00+00:00",
        "edgert": "0",
        "observation": bundle.Observation((2, 2, 1), 1.0),
        "action": bundle.Action(3),
        "control_rate_hz": 20.0,
        "gamma": 0.99,
        "net": {"any": "thing"},
        "thresholds": (0.5,),
        "exits": (bundle.Exit(10), bundle.Exit(20)),
        "safe_action": 0,
        "ranges": {"t0.0": (0.0, 1.0)},
        "golden": bundle.Golden(1, 0.1),
        "provenance": {"seed": 1},
    }
    return bundle.Manifest(**{**fields, **changed})


def unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", compression) as archive:
        warnings.simplefilter("ignore")  # a duplicate name is the point of one test
        for name, content in members:
            archive.writestr(name, content)
    return packed.getvalue()


def edited(**changed: Any) -> bytes:
    """A bundle whose manifest says something else."""
    members = unzip(bundle.write(manifest(), CONTENT))
    document = {**json.loads(members["manifest.json"]), **changed}
    return rezip([*{**members, "manifest.json": json.dumps(document).encode()}.items()])


def test_what_is_written_is_read() -> None:
    found = bundle.read(bundle.write(manifest(), CONTENT, {"later": [1, 2]}))
    assert found.members == CONTENT
    assert found.unknown == {"later": [1, 2]}
    assert found.signature is None
    assert found.manifest == msgspec.structs.replace(manifest(), members=found.manifest.members)
    for name, member in found.manifest.members.items():
        assert member == bundle.Member(hashlib.sha256(CONTENT[name]).hexdigest(), len(CONTENT[name]))


def test_equal_content_gives_equal_bytes_and_rewriting_loses_nothing() -> None:
    first = bundle.write(manifest(), CONTENT, {"later": {"b": 1, "a": 2}})
    again = bundle.read(first)
    assert bundle.write(again.manifest, again.members, again.unknown) == first


def test_a_deflated_bundle_and_one_with_a_signature_are_read() -> None:
    members = unzip(bundle.write(manifest(), CONTENT))
    found = bundle.read(rezip([*members.items(), ("signature", b"s" * 64)], zipfile.ZIP_DEFLATED))
    assert found.members == CONTENT
    assert found.signature == b"s" * 64


@pytest.mark.parametrize("name", bundle.MEMBERS)
def test_a_changed_or_missing_member_is_refused_by_name(name: str) -> None:
    members = unzip(bundle.write(manifest(), CONTENT))
    with pytest.raises(ArtifactError, match=name):
        bundle.read(rezip([*{**members, name: members[name] + b"x"}.items()]))
    if members[name]:
        with pytest.raises(ArtifactError, match=name):
            bundle.read(rezip([*{**members, name: b"?" * len(members[name])}.items()]))
    with pytest.raises(ArtifactError, match=name):
        bundle.read(rezip([(k, v) for k, v in members.items() if k != name]))
    with pytest.raises(ArtifactError, match=name):
        bundle.write(manifest(), {k: v for k, v in CONTENT.items() if k != name})


def test_tflite_models_are_there_for_every_stage_or_not_at_all() -> None:
    stages = {"stage0.tflite": b"a", "stage1.tflite": b"bb"}
    packed = bundle.write(manifest(), {**CONTENT, **stages})
    assert bundle.read(packed).members == {**CONTENT, **stages}
    again = bundle.read(packed)
    assert bundle.write(again.manifest, again.members, again.unknown) == packed
    for name in stages:
        with pytest.raises(ArtifactError, match=r"members: .*stage1\.tflite"):
            bundle.write(manifest(), {**CONTENT, name: b"a"})
        with pytest.raises(ArtifactError, match=f"member {name} is missing"):
            bundle.read(rezip([(key, content) for key, content in unzip(packed).items() if key != name]))
    with pytest.raises(ArtifactError, match=r"unexpected member 'stage0\.tflite': the manifest does not list it"):
        bundle.read(rezip([*unzip(bundle.write(manifest(), CONTENT)).items(), *stages.items()]))


@pytest.mark.parametrize("name", ["../policy.onnx", "/etc/passwd", "extra", "policy.onnx", "dir/", "Manifest.json"])
def test_unexpected_and_second_members_are_refused(name: str) -> None:
    members = unzip(bundle.write(manifest(), CONTENT))
    with pytest.raises(ArtifactError, match="member"):
        bundle.read(rezip([*members.items(), (name, b"")]))


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"format": 2}, "format"),
        ({"thresholds": []}, "thresholds"),
        ({"thresholds": [0.5, 0.5]}, "thresholds"),
        ({"thresholds": [1.5]}, "thresholds"),
        ({"thresholds": [None]}, "thresholds"),
        ({"safe_action": 3}, "safe_action"),
        ({"safe_action": -1}, "safe_action"),
        ({"exits": []}, "exits"),
        ({"gamma": 2}, "gamma"),
        ({"control_rate_hz": 0}, "control_rate_hz"),
        ({"observation": {"shape": [2, 2], "scale": 1}}, "shape"),
        ({"observation": {"shape": [2, 2, 1], "scale": 1, "dtype": "float32"}}, "dtype"),
        ({"observation": {"shape": [2, 2, 1], "scale": 1, "channels": ["a", "b"]}}, "channels"),
        ({"action": {"n": 3, "names": ["a"]}}, "names"),
        ({"members": {}}, "members"),
        ({"members": {"../x": {"sha256": "0" * 64, "bytes": 0}}}, "members"),
        ({"golden": {"count": 0, "max_head_error": 0}}, "golden"),
        ({"golden": {"count": 1, "max_head_error": -1}}, "golden"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused_by_key(changed: dict[str, Any], where: str) -> None:
    with pytest.raises(ArtifactError, match=where):
        bundle.read(edited(**changed))


def test_what_cannot_be_written_in_json_is_refused() -> None:
    for poison in (float("nan"), object()):
        with pytest.raises(ArtifactError, match="manifest"):
            bundle.write(manifest(provenance={"x": poison}), CONTENT)
    with pytest.raises(ArtifactError, match="safe_action"):
        bundle.write(manifest(safe_action=9), CONTENT)


def test_a_bomb_is_not_unpacked() -> None:
    members = unzip(bundle.write(manifest(), CONTENT))
    big = rezip([*{**members, "manifest.json": b" " * (2 << 20)}.items()], zipfile.ZIP_DEFLATED)
    assert len(big) < 100_000
    with pytest.raises(ArtifactError, match="larger"):
        bundle.read(big)
    honest = rezip([("manifest.json", b" " * 50_000)], zipfile.ZIP_DEFLATED)
    at = honest.index(b"PK\x01\x02") + 24
    lying = honest[:at] + (10).to_bytes(4, "little") + honest[at + 4 :]
    with pytest.raises(ArtifactError):
        bundle.read(lying)


def test_the_schema_hash_names_observation_and_action_only() -> None:
    one = bundle.schema_hash(manifest())
    assert one == bundle.schema_hash(manifest(name="other", thresholds=(0.1,), net={}))
    assert one != bundle.schema_hash(manifest(action=bundle.Action(4)))
    assert one != bundle.schema_hash(manifest(observation=bundle.Observation((2, 2, 1), 0.5)))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(junk: bytes) -> None:
    with pytest.raises(ArtifactError):
        bundle.read(junk)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_refused_or_outside_what_is_read(data: st.DataObject) -> None:
    whole = bundle.write(manifest(), CONTENT)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for candidate in (bytes(damaged), whole[: data.draw(st.integers(0, len(whole) - 1))]):
        with contextlib.suppress(ArtifactError):
            assert bundle.read(candidate).members == CONTENT


def test_importing_the_format_does_not_import_numpy() -> None:
    code = "import sys, edgert.bundle; raise SystemExit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("task", ["", "a/b", "+", "#", "-x", "two words", "x" * 65])
def test_a_task_that_cannot_be_a_topic_segment_is_refused(task: str) -> None:
    with pytest.raises(ArtifactError, match="task: "):
        bundle.write(manifest(task=task), CONTENT)
    with pytest.raises(ArtifactError, match="task: "):
        bundle.read(edited(task=task))


COST = bundle.Cost(
    board="linux", cpu="c", runtime="onnx", version="1", precision="int8", rate_hz=20.0,
    exits=(bundle.ExitCost(1e-4, 2e-4, 1e-4), bundle.ExitCost(2e-4, 3e-4, 2e-4)), samples=9,
)  # fmt: skip


def test_a_bundle_says_what_its_heads_are_and_older_ones_give_values() -> None:
    members = unzip(bundle.write(manifest(), CONTENT))
    told = json.loads(members["manifest.json"])
    assert told.pop("kind") == "q"
    assert bundle.read(edited(kind="policy")).manifest.kind == "policy"
    with pytest.raises(ArtifactError, match="kind"):
        bundle.read(edited(kind="actor"))
    older = {**members, "manifest.json": json.dumps(told).encode()}
    assert bundle.read(rezip([*older.items()])).manifest.kind == "q"


def test_costs_and_operations_are_kept_and_older_bundles_have_none() -> None:
    made = manifest(costs=(COST,), exits=(bundle.Exit(10, 25), bundle.Exit(20, 50)))
    assert bundle.read(bundle.write(made, CONTENT)).manifest.costs == (COST,)
    document = json.loads(unzip(bundle.write(manifest(), CONTENT))["manifest.json"])
    assert [each.pop("ops") for each in document["exits"]] == [None, None]
    del document["costs"]
    members = [("manifest.json", json.dumps(document).encode()), *CONTENT.items()]
    old = bundle.read(rezip(members)).manifest
    assert old.costs == () and [each.ops for each in old.exits] == [None, None]


@pytest.mark.parametrize(
    "changed",
    [{"exits": COST.exits[:1]}, {"samples": 0}, {"precision": "int4"}, {"rate_hz": 0.0}],
)
def test_costs_that_make_no_sense_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="cost"):
        bundle.write(manifest(costs=(msgspec.structs.replace(COST, **changed),)), CONTENT)


def test_a_float_graph_may_be_there() -> None:
    content = {**CONTENT, bundle.FLOAT_MEMBER: b"small"}
    assert bundle.read(bundle.write(manifest(), content)).members == content


def point(**changed: Any) -> dict[str, Any]:
    fields = {"return_mean": 1.0, "return_frac": 1.0, "return_low": 0.9, "return_high": 1.1, "episodes": 9}
    shares = {"exit_share": [0.5, 0.5], "held_share": 0.0}
    return {"thresholds": [0.5], "ops_frac": 0.5, **shares, **fields, **changed}


def frontier_of(*points: dict[str, Any]) -> dict[str, Any]:
    reference = {"mean": 1.0, "episodes": 9}
    return {"random": reference, "full": reference, "full_ops": 20, "points": points}


def test_a_frontier_is_read_and_older_bundles_have_none() -> None:
    found = bundle.read(edited(frontier=frontier_of(point(), point(ops_frac=0.9, repeat=4, hold_threshold=0.9))))
    assert found.manifest.frontier is not None
    assert [each.operating for each in found.manifest.frontier.points] == [
        Operating((0.5,)),
        Operating((0.5,), 4, 0.9),
    ]
    old = bundle.read(bundle.write(manifest(), CONTENT)).manifest
    assert (old.frontier, old.risk, old.operating) == (None, None, Operating((0.5,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"frontier": frontier_of()},
        {"frontier": frontier_of(point(thresholds=[0.5, 0.5]))},
        {"frontier": frontier_of(point(exit_share=[1.0]))},
        {"frontier": frontier_of(point(exit_share=[1.0, 1.0]))},
        {"frontier": frontier_of(point(held_share=0.5))},
        {"frontier": frontier_of(point(return_low=1.2))},
        {"frontier": frontier_of(point(thresholds=[1.5]))},
        {"frontier": frontier_of(point(thresholds=[float("nan")]))},
        {"frontier": frontier_of(point(repeat=0))},
        {"frontier": frontier_of(point(repeat=65))},
        {"frontier": frontier_of(point(ops_frac=0.0))},
        {"frontier": frontier_of(point(ops_frac=0.9), point())},
        {"thresholds": [0.5, 0.5]},
        {"thresholds": []},
        {"thresholds": [-0.1]},
        {"thresholds": [float("nan")]},
        {"repeat": 0},
        {"hold_threshold": 1.5},
        {"risk": {"max_loss_frac": 0.1}},
    ],
)
def test_a_setting_that_cannot_be_run_or_was_not_measured_on_these_exits_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        bundle.read(edited(**wrong))


def test_an_action_set_has_a_name_where_its_actions_have():
    names = ("NOOP", "UP", "DOWN")
    assert bundle.action_set(()) == ""
    assert bundle.action_set(names) == bundle.action_set(list(names)) == "ee11b24b"
    others = (("UP", "NOOP", "DOWN"), ("NOOP,UP", "DOWN"), names[:2])
    assert len({bundle.action_set(each) for each in (names, *others)}) == 4


def test_a_signature_is_put_beside_the_members_and_changes_none_of_them() -> None:
    plain = bundle.write(manifest(), CONTENT)
    signed = bundle.with_signature(plain, b"word")
    assert bundle.read(signed)._replace(signature=None) == bundle.read(plain)
    assert bundle.read(signed).signature == b"word"
    assert bundle.with_signature(signed, None) == plain == bundle.with_signature(plain, None)
    assert bundle.read(plain).encoded == unzip(plain)["manifest.json"]
    with pytest.raises(ArtifactError, match="too many"):
        bundle.with_signature(plain, b"x" * 5000)
    with pytest.raises(ArtifactError):
        bundle.with_signature(b"PK", b"word")
