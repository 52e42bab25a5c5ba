from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import archive, modelfile
from edgert.bundle import Cost, ExitCost, Golden
from edgert.errors import ArtifactError

MODELS = Path(__file__).parents[1] / "models"
MEMBERS = {"model.onnx": b"graph", "golden.in": bytes(4), "golden.out": bytes(8)}


def manifest(**changes):
    said = {
        "name": "m-1",
        "task": "t",
        "created": "2026-01-01T00:00:00Z",
        "edgert": "1",
        "input": modelfile.Tensor(shape=(2, 2, 1), dtype="uint8"),
        "output": modelfile.Tensor(shape=(2,), dtype="float32"),
        "precision": "int8",
        "macs": 8,
        "accuracy": (modelfile.Accuracy(metric="top-1", value_frac=0.9, measured=False, source="a table"),),
        "golden": Golden(count=1, max_head_error=0.1),
    }
    return modelfile.ModelManifest(**(said | changes))


def measured(**changes):
    said = {"metric": "top-1", "value_frac": 0.9, "measured": True, "source": "here", "samples": 10}
    return modelfile.Accuracy(**(said | changes))


def test_what_is_written_is_read():
    data = modelfile.write(manifest(), MEMBERS)
    found = modelfile.read(data)
    assert found.members == MEMBERS and found.manifest.accuracy_frac == 0.9
    assert modelfile.write(found.manifest, found.members) == data
    assert modelfile.is_model(data)


def test_a_signature_changes_neither_name_nor_content():
    data = modelfile.write(manifest(), MEMBERS)
    signed = modelfile.with_signature(data, b"sig")
    found = modelfile.read(signed)
    assert found.signature == b"sig" and found.members == MEMBERS
    assert modelfile.model_id(found.encoded) == modelfile.model_id(modelfile.read(data).encoded)
    assert modelfile.with_signature(signed, None) == data


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "no name"}, "name:"),
        ({"task": "a/b"}, "task:"),
        ({"output": modelfile.Tensor(shape=(8,), dtype="uint8")}, "output.dtype"),
        ({"output": modelfile.Tensor(shape=(2,), dtype="float32", names=("a",))}, "output.names"),
        ({"input": modelfile.Tensor(shape=(2000, 2000), dtype="uint8")}, "does not fit a message"),
        ({"accuracy": (measured(samples=0),)}, "measured on 0 samples"),
        ({"accuracy": (measured(low_frac=0.95),)}, "does not hold"),
        ({"golden": Golden(count=2, max_head_error=0.1)}, "golden rows"),
        (
            {
                "costs": (
                    Cost(
                        board="b",
                        cpu="c",
                        runtime="onnx",
                        version="1",
                        precision="int8",
                        rate_hz=1.0,
                        exits=(ExitCost(1, 1, 1),) * 2,
                        samples=1,
                    ),
                )
            },
            "costs",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(ArtifactError, match=said):
        modelfile.write(manifest(**changes), MEMBERS)


@pytest.mark.parametrize("missing", MEMBERS)
def test_nothing_may_be_missing(missing):
    with pytest.raises(ArtifactError, match="members"):
        modelfile.write(manifest(), {name: each for name, each in MEMBERS.items() if name != missing})


def changed(data, name, content):
    """The bundle with one member's bytes exchanged, and the manifest as it was."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename == name else old.read(info))
    return packed.getvalue()


@pytest.mark.parametrize("name", MEMBERS)
def test_other_bytes_than_the_manifest_lists_are_refused(name):
    with pytest.raises(ArtifactError, match=name):
        modelfile.read(changed(modelfile.write(manifest(), MEMBERS), name, b"evil"))


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"format": 2}', b"\xff"])
def test_a_broken_manifest_is_refused(broken):
    with pytest.raises(ArtifactError, match="model bundle"):
        modelfile.read(changed(modelfile.write(manifest(), MEMBERS), archive.MANIFEST, broken))


def test_keys_of_a_later_version_do_not_keep_it_from_being_read():
    data = modelfile.write(manifest(), MEMBERS)
    document = json.loads(modelfile.read(data).encoded) | {"later": 1}
    found = modelfile.read(changed(data, archive.MANIFEST, json.dumps(document).encode()))
    assert found.manifest == modelfile.read(data).manifest


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_damage_is_more_than_an_artifact_error(at, value):
    data = bytearray(modelfile.write(manifest(), MEMBERS))
    data[at % len(data)] = value
    try:
        modelfile.read(bytes(data))
    except ArtifactError:
        modelfile.is_model(bytes(data))


def test_a_policy_is_no_model_and_a_model_no_policy():
    assert not modelfile.is_model((MODELS / "breakout.edgert").read_bytes())
    assert not modelfile.is_model(b"nothing")
    with pytest.raises(ArtifactError):
        modelfile.read((MODELS / "breakout.edgert").read_bytes())


@pytest.mark.parametrize("path", sorted(MODELS.glob("digits-*.edgert")), ids=lambda path: path.stem)
def test_the_shipped_family_was_measured_on_what_was_held_out(path):
    said = modelfile.read(path.read_bytes()).manifest
    assert said.name == path.stem and said.task == "digits"
    assert said.accuracy[0].measured and said.accuracy[0].samples == 600
    assert said.accuracy[0].low_frac < said.accuracy_frac < said.accuracy[0].high_frac
    assert len(said.costs) == 1 and said.costs[0].exits[0].p50_s > 0


def test_a_manifest_is_plain_data():
    assert msgspec.convert(msgspec.to_builtins(manifest()), modelfile.ModelManifest) == manifest()
