from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import quant, tflitefile
from edgert.errors import ArtifactError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu, initialise
from edgert.policy import artifact

pytest.importorskip("ai_edge_litert")
from tools import tflite

SPEC = NetSpec(
    (7, 6, 2),
    3,
    trunk=((Conv(4, 3, 2, 1), MaxPool(2, 1)), (Dense(8), Relu())),
    heads=((Dense(5), Relu()), ()),
)


def made(seed: int = 0) -> tuple[list[bytes], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    params = initialise(SPEC, rng)
    obs = rng.integers(0, 2, (12, *SPEC.input_shape)).astype(np.uint8)
    tensors = quant.quantize(params, quant.calibrate(params, obs))
    return tflite.build(SPEC, tensors), tensors


FILES, TENSORS = made()


def test_every_value_of_the_network_is_found_and_read() -> None:
    for stage, held in zip(FILES, artifact.tflite_tensors(SPEC, TENSORS), strict=True):
        found = tflitefile.read(stage)
        for name, values in held.items():
            assert np.array_equal(found[name], values)
            assert found[name].dtype == values.dtype
        rest = found.keys() - held.keys()
        # What is not listed there is the same in every network of this shape.
        assert all(
            name.endswith((".y.scale", ".padded.scale", ".w.zp", ".b.zp", ".pads")) or name == "x.scale"
            for name in rest
        )


def test_spans_are_the_bytes_of_the_values_and_do_not_overlap() -> None:
    for stage in FILES:
        end = 0
        for name, span in sorted(tflitefile.index(stage).items(), key=lambda item: item[1].start):
            assert span.start >= end, name
            end = span.end
            values = np.frombuffer(stage[span.start : span.end], span.dtype).reshape(span.shape)
            assert np.array_equal(values, tflitefile.read(stage)[name])


def test_a_patched_model_is_the_one_that_would_have_been_written() -> None:
    other, tensors = made(1)
    for stage, held, wanted in zip(FILES, artifact.tflite_tensors(SPEC, tensors), other, strict=True):
        assert stage != wanted
        assert tflitefile.patch(stage, held) == wanted


def test_what_does_not_fit_is_refused_by_name() -> None:
    bias = tflitefile.read(FILES[0])["t0.0.b"]
    for name, values in (("t9.0.b", bias), ("t0.0.b", bias[1:]), ("t0.0.b", bias.astype(np.int64))):
        with pytest.raises(ArtifactError, match=f"cannot write {name}"):
            tflitefile.patch(FILES[0], {name: values})


@pytest.mark.parametrize("junk", [b"", b"junk", b"\0" * 64, b"\x08\0\0\0TFL3", b"\xff" * 4 + b"TFL3" + b"\xff" * 64])
def test_what_is_no_model_is_refused(junk: bytes) -> None:
    with pytest.raises(ArtifactError, match="TFLite model"):
        tflitefile.index(junk)


@settings(max_examples=300)
@given(st.data())
def test_damage_is_refused_or_leaves_every_span_inside_the_file(data: st.DataObject) -> None:
    broken = bytearray(FILES[0])
    at = data.draw(st.integers(0, len(broken) - 4))
    if data.draw(st.booleans()):
        broken = broken[:at]
    else:
        number = data.draw(st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)))
        broken[at : at + 4] = struct.pack("<I", number)
    try:
        found = tflitefile.read(bytes(broken))
    except ArtifactError:
        return
    assert all(0 <= span.start <= span.end <= len(broken) for span in tflitefile.index(broken).values())
    assert found.keys() == tflitefile.index(broken).keys()


def test_a_name_that_occurs_twice_is_refused() -> None:
    stage = FILES[0]
    assert stage.count(b"t0.0.b") == 1
    with pytest.raises(ArtifactError, match="twice"):
        tflitefile.index(stage.replace(b"t0.0.b", b"t0.0.w"))
