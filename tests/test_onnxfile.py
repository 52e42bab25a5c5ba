from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import onnxfile
from edgert.errors import ArtifactError

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402 - after the skip

OUTER = {
    "a": np.arange(6, dtype=np.int8).reshape(2, 3),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 4), np.int64),
}
INNER = {"in.then": np.array([1, -2], np.int32), "in.else": np.array([[True]]), "deep": np.array([1.5], np.float64)}


def model() -> bytes:
    def tensors(*names: str) -> list[object]:
        return [numpy_helper.from_array({**OUTER, **INNER}[name], name) for name in names]

    def branch(name: str, nodes: list[object], *names: str) -> object:
        return helper.make_graph(nodes, name, [], [], tensors(*names))

    deepest = helper.make_node("If", ["c"], [], then_branch=branch("d", [], "deep"), else_branch=branch("e", []))
    split = helper.make_node(
        "If", ["c"], [], then_branch=branch("t", [], "in.then"), else_branch=branch("f", [deepest], "in.else")
    )
    other = helper.make_node("Gather", ["a", "b"], ["y"], axis=1)
    return bytes(helper.make_model(helper.make_graph([other, split], "g", [], [], tensors(*OUTER))).SerializeToString())


def test_every_initializer_is_found_also_inside_branches() -> None:
    found = onnxfile.read(model())
    assert found.keys() == {*OUTER, *INNER}
    for name, wanted in {**OUTER, **INNER}.items():
        assert found[name].dtype == wanted.dtype
        assert found[name].shape == wanted.shape
        assert np.array_equal(found[name], wanted)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=6, max_size=6), st.floats(width=32, allow_nan=False), st.integers(-(2**31), 2**31 - 1))
def test_patched_bytes_are_what_onnx_reads(raw: bytes, scalar: float, integer: int) -> None:
    new = {
        "a": np.frombuffer(raw, np.int8).reshape(2, 3),
        "scalar": np.array(scalar, np.float32),
        "in.then": np.array([integer, 0], np.int32),
    }
    before = model()
    after = onnxfile.patch(before, new)
    assert len(after) == len(before)
    oracle = onnx.load_model_from_string(after)
    initializers = {t.name: numpy_helper.to_array(t) for t in oracle.graph.initializer}
    initializers |= {t.name: numpy_helper.to_array(t) for t in oracle.graph.node[1].attribute[1].g.initializer}
    initializers |= {t.name: numpy_helper.to_array(t) for t in oracle.graph.node[1].attribute[0].g.initializer}
    for name, values in new.items():
        assert np.array_equal(initializers[name], values)
    assert np.array_equal(onnxfile.read(after)["deep"], INNER["deep"])
    assert onnxfile.patch(after, onnxfile.read(before)) == before


def test_a_transposed_array_is_written_in_row_order() -> None:
    new = np.arange(6, dtype=np.int8).reshape(3, 2).T
    assert np.array_equal(onnxfile.read(onnxfile.patch(model(), {"a": new}))["a"], new)


@pytest.mark.parametrize(
    "tensors",
    [
        {"b": np.zeros(1, np.int8)},
        {"a": np.zeros((3, 2), np.int8)},
        {"a": np.zeros((2, 3), np.uint8)},
        {"scalar": np.zeros(1, np.float32)},
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(ArtifactError, match=next(iter(tensors))):
        onnxfile.patch(model(), tensors)


def test_initializers_without_raw_data_or_with_equal_names_are_refused() -> None:
    listed = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    with pytest.raises(ArtifactError, match="raw_data"):
        onnxfile.index(helper.make_model(helper.make_graph([], "g", [], [], [listed])).SerializeToString())
    twice = [numpy_helper.from_array(np.zeros(1, np.int8), "w")] * 2
    with pytest.raises(ArtifactError, match="two initializers"):
        onnxfile.index(helper.make_model(helper.make_graph([], "g", [], [], twice)).SerializeToString())


def varint(n: int) -> bytes:
    return bytes([n & 0x7F | 0x80]) + varint(n >> 7) if n > 0x7F else bytes([n])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_graphs_nested_without_end_are_refused_not_followed() -> None:
    graph = b""
    for depth in range(3_000):
        graph = message(1, message(5, message(6, graph)))  # a node with an attribute with a graph
        if depth == 40:
            assert onnxfile.index(message(7, graph)) == {}
    with pytest.raises(ArtifactError, match="nested"):
        onnxfile.index(message(7, graph))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(junk: bytes) -> None:
    with contextlib.suppress(ArtifactError):
        onnxfile.read(junk)
    with pytest.raises(ArtifactError, match="graphs"):
        onnxfile.read(b"")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless_never_a_foreign_error(data: st.DataObject) -> None:
    damaged = bytearray(model())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for candidate in (bytes(damaged), cut):
        with contextlib.suppress(ArtifactError):
            for tensor in onnxfile.index(candidate).values():
                assert 0 <= tensor.start <= tensor.end <= len(candidate)
            onnxfile.read(candidate)


def test_what_is_stripped_can_be_filled_again_and_holds_no_weight_meanwhile() -> None:
    values = {**OUTER, **INNER}
    stripped = onnxfile.strip(model(), values)
    assert onnx.load_model_from_string(stripped).graph.initializer[0].raw_data == b""
    assert onnxfile.fill(stripped, values) == model() == onnxfile.fill(model(), values)
    assert onnxfile.strip(model(), ["deep"]) != onnxfile.strip(model(), ["a"])
    large = {"a": np.zeros((200, 300), np.int8)}
    for held, size in ((values, 6), (large, 60_000)):  # lengths of one byte and of three
        named = onnx.load_model_from_string(model())
        named.graph.initializer[0].CopyFrom(numpy_helper.from_array(held["a"], "a"))
        whole = bytes(named.SerializeToString())
        small = onnxfile.strip(whole, ["a"])
        assert len(whole) - len(small) >= size
        assert onnxfile.fill(small, {"a": held["a"]}) == whole


def test_the_skeleton_is_what_other_weights_leave_alone() -> None:
    other = onnxfile.patch(model(), {"scalar": np.array(9, np.float32), "deep": np.array([7.0])})
    assert onnxfile.skeleton(other) == onnxfile.skeleton(model()) != model()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("scalar", np.zeros(1, np.float32)),
        ("scalar", np.zeros((), np.float64)),
        ("nowhere", np.zeros((), np.float32)),
    ],
)
def test_a_tensor_that_does_not_fit_is_not_filled_in(name: str, values: np.ndarray) -> None:
    with pytest.raises(ArtifactError, match=name):
        onnxfile.fill(onnxfile.strip(model(), [*OUTER, *INNER]), {name: values})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_met_while_filling_is_never_a_foreign_error(data: st.DataObject) -> None:
    damaged = bytearray(model())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for use in (onnxfile.skeleton, lambda m: onnxfile.strip(m, OUTER), lambda m: onnxfile.fill(m, OUTER)):
        with contextlib.suppress(ArtifactError):
            use(bytes(damaged))
