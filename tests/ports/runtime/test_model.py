from __future__ import annotations

import io
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgert import modelfile
from edgert.errors import ArtifactError, UsageError
from edgert.ports.runtime import model as models
from edgert.ports.runtime.model import open_model, open_policy, row_s, rows_of

MODELS = Path(__file__).parents[3] / "models"
SMALL = ("digits-0.25-early-fp32", "digits-0.25-full-int8", "digits-0.5-full-fp32")


def found(name):
    return modelfile.read((MODELS / f"{name}.edgert").read_bytes())


def golden(bundle):
    manifest = bundle.manifest
    return rows_of(bundle.members["golden.in"], manifest.input, manifest.golden.count)


@pytest.mark.parametrize("name", SMALL)
def test_every_runtime_gives_the_same_answers_one_at_a_time_and_all_at_once(name):
    bundle = found(name)
    rows = golden(bundle)
    wanted = open_model(bundle, "onnx").run(rows)
    assert wanted.shape == (8, 10) and wanted.dtype == np.float32
    kinds = ["numpy", *(["litert"] if modelfile.TFLITE_MEMBER in bundle.members else [])]
    for kind in kinds:
        if kind == "litert":
            pytest.importorskip("ai_edge_litert")
        opened = open_model(bundle, kind)
        bound = bundle.manifest.golden.max_head_error + (
            bundle.manifest.golden.max_rounding_error if kind == "litert" else 0
        )
        np.testing.assert_allclose(opened.run(rows), wanted, atol=bound + 1e-6)
        np.testing.assert_allclose(np.concatenate([opened.run(row[None]) for row in rows]), opened.run(rows), atol=1e-5)
        assert opened.runtime == kind and row_s(opened) > 0


def exchanged(bundle, **changes):
    """The bundle with other members, and hashes that say so: what only a runtime can find out."""
    return modelfile.read(modelfile.write(bundle.manifest, {**bundle.members, **changes}))


@pytest.mark.parametrize("kind", ["onnx", "numpy"])
def test_a_wrong_golden_answer_is_refused(kind):
    bundle = found("digits-0.25-full-int8")
    wrong = np.frombuffer(bundle.members["golden.out"], "<f4") + 1
    with pytest.raises(ArtifactError, match="golden row 0: off by"):
        open_model(exchanged(bundle, **{"golden.out": wrong.tobytes()}), kind)


@pytest.mark.parametrize("kind", ["onnx", "numpy", "auto"])
def test_a_graph_that_is_none_is_refused(kind):
    with pytest.raises((ArtifactError, UsageError)):
        open_model(exchanged(found("digits-0.25-full-int8"), **{"model.onnx": b"no graph"}), kind)


@pytest.mark.parametrize("net", [{"nonsense": 1}, None])
def test_a_net_that_does_not_fit_is_refused_by_numpy_only(net):
    bundle = found("digits-0.25-full-int8")
    changed = modelfile.read(modelfile.write(msgspec.structs.replace(bundle.manifest, net=net), bundle.members))
    with pytest.raises((ArtifactError, UsageError)):
        open_model(changed, "numpy")
    assert open_model(changed, "onnx").runtime == "onnx"


def test_a_model_without_tflite_says_what_to_do():
    with pytest.raises(UsageError, match="set runtime to"):
        open_model(found("digits-0.25-early-fp32"), "litert")


def test_a_graph_of_another_shape_is_refused():
    bundle, other = found("digits-0.25-full-int8"), found("digits-0.25-full-int8")
    manifest = msgspec.structs.replace(bundle.manifest, output=modelfile.Tensor(shape=(5, 2), dtype="float32"))
    with pytest.raises(ArtifactError, match="answers float32"):
        open_model(modelfile.read(modelfile.write(manifest, other.members)), "onnx")


TENSOR = modelfile.Tensor(shape=(2,), dtype="float32")


@pytest.mark.parametrize(
    ("data", "said"),
    [(bytes(7), "7 bytes"), (np.array([1, np.nan], "<f4").tobytes(), "finite"), (bytes(16), "16 bytes")],
)
def test_rows_that_make_no_sense_are_refused(data, said):
    with pytest.raises(UsageError, match=said):
        rows_of(data, TENSOR, 1)


def test_a_policy_is_a_model_of_its_actions():
    data = (MODELS / "breakout.edgert").read_bytes()
    opened = open_policy(data, "onnx")
    said = opened.manifest
    rows = np.zeros((2, *said.input.shape), np.uint8)
    assert opened.run(rows).shape == (2, *said.output.shape) and said.accuracy_frac == 1.0
    assert said.task == "breakout" and not said.accuracy[0].measured
    assert models.policy_as_model(data) == said


def test_a_policy_that_is_damaged_is_no_model():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        made.writestr("manifest.json", "{}")
    with pytest.raises(ArtifactError):
        open_policy(packed.getvalue())
