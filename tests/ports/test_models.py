"""Teachers from anywhere: right answers whatever the layout, and a named error for whatever cannot teach."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgert import bundle
from edgert.bundle import action_set
from edgert.errors import ArtifactError, ConfigError, EdgertError
from edgert.nets import forward
from edgert.policy import artifact
from edgert.ports import models

BUNDLE = Path(__file__).parents[2] / "models" / "breakout-teacher.edgert"
H, W, C, A = 4, 3, 2, 5
SIZE = H * W * C
rng = np.random.default_rng(7)
WEIGHT = rng.normal(size=(SIZE, A + 1)).astype(np.float32)  # of an observation in H, W, C order
OBS = rng.integers(0, 256, (9, H, W, C), np.uint8)


def table(obs=OBS, scale=1.0, offset=0.0):
    return ((obs * np.float32(scale) + np.float32(offset)).reshape(len(obs), -1) @ WEIGHT).astype(np.float32)


def graph(  # one matrix product, its rows in the order of the layout
    layout="nchw", dtype="float", batch="n", sides=(H, W, C), outputs=("q",), widths=(A,), weight=WEIGHT, said=None
):
    height, width, channels = sides
    shape = {
        "nchw": [batch, channels, height, width],
        "nhwc": [batch, height, width, channels],
        "flat": [batch, "d" if "h" in sides else SIZE],
        "odd": [batch, SIZE, 1],
    }[layout]
    order = np.arange(SIZE).reshape(H, W, C)
    rows = weight[(order.transpose(2, 0, 1) if layout == "nchw" else order).reshape(-1)]
    nodes = [
        helper.make_node("Cast", ["obs"], ["float_obs"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float_obs"], ["flat"]),
    ]
    initializers, first = [], 0
    for name, columns in zip(outputs, widths, strict=True):
        initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(rows[:, first : first + columns]), f"{name}.w")
        )
        nodes.append(helper.make_node("MatMul", ["flat", f"{name}.w"], [name]))
        first += columns
    kind = {"float": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}[dtype]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("obs", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, said or {})
    return model


@pytest.fixture
def opened(tmp_path):
    def make(query="", task="game", name="net.onnx", **changes):
        path = tmp_path / name
        onnx.save(graph(**changes), str(path))
        said = f"{task}={path}" if task else str(path)
        return models.open_subject(models.parse_source(f"{said}?{query}" if query else said))

    return make


def test_a_bundle_teaches_what_it_was_made_for():
    policy = artifact.load(BUNDLE.read_bytes())
    subject = models.open_subject(models.parse_source(str(BUNDLE)))
    assert (subject.task, subject.kind, subject.n_actions, subject.actions) == ("breakout", "q", 3, "")
    obs = np.resize(policy.golden_obs, (models.FORWARD_ROWS + 1, *policy.spec.input_shape))
    last = policy.spec.n_exits - 1
    np.testing.assert_array_equal(subject.model(obs)[-1:], forward(policy.params, obs[-1:], exits=(last,))[last][:, :3])
    assert models.open_subject(models.parse_source(f"other={BUNDLE}"))._replace(model=subject.model) == (
        subject._replace(task="other")
    )
    with pytest.raises(ConfigError, match="remove scale"):
        models.open_subject(models.parse_source(f"{BUNDLE}?scale=2"))


def test_a_bundle_of_kind_policy_teaches_logits_and_the_value(tmp_path):
    policy = artifact.load(BUNDLE.read_bytes())
    manifest = msgspec.structs.replace(policy.manifest, kind="policy")
    (tmp_path / "p.edgert").write_bytes(bundle.write(manifest, policy.bundle.members))
    subject = models.open_subject(models.parse_source(str(tmp_path / "p.edgert")))
    assert (subject.kind, subject.n_actions, subject.columns) == ("policy", 3, 4)
    last = policy.spec.n_exits - 1
    wanted = forward(policy.params, policy.golden_obs, exits=(last,))[last]
    np.testing.assert_array_equal(subject.model(policy.golden_obs), wanted)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "flat"])
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_any_layout_and_any_size_of_batch(opened, layout, batch):
    size = f"&obs_shape={H},{W},{C}" if layout == "flat" else ""
    subject = opened(f"layout={layout}&scale=1/255&offset=-0.5{size}", layout=layout, batch=batch)
    assert (subject.obs_shape, subject.n_actions, subject.kind) == ((H, W, C), A, "q")
    np.testing.assert_allclose(subject.model(OBS), table(scale=1 / 255, offset=-0.5)[:, :A], rtol=1e-4, atol=1e-4)


def test_bytes_go_in_as_they_are(opened):
    subject = opened("layout=nchw", dtype="uint8")
    np.testing.assert_allclose(subject.model(OBS), table()[:, :A], rtol=1e-4, atol=1e-2)


def test_a_vector_is_one_row_of_one_pixel(opened):
    scale = ",".join(f"{1 + each}/7" for each in range(SIZE))
    subject = opened(f"scale={scale}", layout="flat")
    assert subject.obs_shape == (1, 1, SIZE)
    obs = OBS.reshape(-1, 1, 1, SIZE)
    wanted = (obs.reshape(-1, SIZE) * (1 + np.arange(SIZE)) / 7) @ WEIGHT[:, :A]
    np.testing.assert_allclose(subject.model(obs), wanted, rtol=1e-3, atol=1)


def test_a_scale_a_channel(opened):
    subject = opened("layout=nhwc&scale=0.5,0.25&offset=1,-1", layout="nhwc")
    wanted = table(scale=[0.5, 0.25], offset=[1, -1])[:, :A]
    np.testing.assert_allclose(subject.model(OBS), wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "query, changes, first",
    [
        ("", {"outputs": ("pi", "v"), "widths": (A, 1)}, 0),
        ("kind=policy", {"outputs": ("both",), "widths": (A + 1,)}, 0),
        ("outputs=pi,v", {"outputs": ("junk", "v", "pi"), "widths": (2, 1, 3)}, None),
    ],
)
def test_a_policy_is_logits_and_then_the_value(opened, query, changes, first):
    subject = opened(f"layout=nchw&scale=1&{query}".rstrip("&"), **changes)
    wanted = table() if first == 0 else table()[:, [3, 4, 5, 2]]
    assert (subject.kind, subject.n_actions, subject.columns) == ("policy", wanted.shape[1] - 1, wanted.shape[1])
    np.testing.assert_allclose(subject.model(OBS), wanted, rtol=1e-4, atol=1e-2)


def test_a_file_may_say_itself_how_it_is_used_and_the_command_line_has_the_last_word(opened):
    said = {"task": "from-file", "layout": "nchw", "scale": "1/255", "actions": "a,b,c,d,e", "nonsense": "x"}
    properties = {f"edgert.{key}": value for key, value in said.items()} | {"author": "somebody"}
    subject = opened(task="", said=properties)
    assert (subject.task, subject.actions) == ("from-file", action_set("abcde"))
    np.testing.assert_allclose(subject.model(OBS), table(scale=1 / 255)[:, :A], rtol=1e-4, atol=1e-4)
    other = opened("scale=1", task="mine", said=properties)
    assert other.task == "mine"
    assert other.teacher != subject.teacher, "they answer differently"
    assert opened(task="mine", said=properties).teacher == subject.teacher


@pytest.mark.parametrize(
    "query, changes, error, what",
    [
        ("", {"task": ""}, ConfigError, "layout"),
        ("layout=nchw&scale=1", {"task": ""}, ConfigError, "TASK="),
        ("scale=1", {}, ConfigError, "say layout="),
        ("layout=nchw", {}, ConfigError, "scale=1/255"),
        ("layout=flat&scale=1", {}, ConfigError, "layout"),
        ("layout=chwn&scale=1", {}, ConfigError, "layout"),
        ("layout=nchw&scale=2", {"dtype": "uint8"}, ConfigError, "float inputs"),
        ("layout=nchw&scale=1,2,3", {}, ConfigError, "one a channel"),
        ("layout=nchw&scale=1/0", {}, ConfigError, "scale=1/0"),
        ("layout=nchw&scale=many", {}, ConfigError, "scale=many"),
        ("layout=nchw&scale=nan", {}, ConfigError, "scale=nan"),
        ("layout=nchw&scale=1&obs_shape=9,9,9", {}, ConfigError, "obs_shape"),
        ("layout=nchw&scale=1&obs_shape=9", {}, ConfigError, "three whole numbers"),
        ("layout=nchw&scale=1", {"sides": ("h", "w", C)}, ConfigError, "say obs_shape"),
        ("layout=nchw&scale=1&obs_shape=0,1,2", {"sides": ("h", "w", C)}, ConfigError, "1 to 4096"),
        ("layout=nchw&scale=1&kind=v", {}, ConfigError, "kind=v"),
        ("layout=nchw&scale=1&outputs=no", {}, ConfigError, "it has q"),
        ("layout=nchw&scale=1&kind=q", {"outputs": ("p", "v"), "widths": (5, 1)}, ConfigError, "kind=q has one"),
        ("layout=nchw&scale=1", {"outputs": ("a", "b", "c"), "widths": (2, 2, 2)}, ConfigError, "say outputs="),
        ("layout=nchw&scale=1", {"outputs": ("v", "p"), "widths": (1, 5)}, ArtifactError, "and then"),
        ("layout=nchw&scale=1&kind=policy", {"widths": (1,)}, ArtifactError, "no action at all"),
        ("layout=nchw&scale=1&actions=up,down", {}, ConfigError, "2 names for the 5"),
        ("layout=nchw&scale=1", {"weight": WEIGHT * np.inf}, ArtifactError, "not finite"),
        ("layout=nchw&scale=1", {"dtype": "int64"}, ConfigError, "int64"),
        ("layout=nchw&scale=1", {"layout": "odd"}, ArtifactError, "rows or of images"),
    ],
)
def test_what_cannot_teach_is_refused_with_the_files_name(opened, query, changes, error, what):
    with pytest.raises(error, match=what) as caught:
        opened(query, **changes)
    assert "net.onnx" in str(caught.value)


def test_an_unknown_size_is_told(opened):
    subject = opened(f"layout=nchw&scale=1&obs_shape={H},{W},{C}", sides=("h", "w", "c"))
    np.testing.assert_allclose(subject.model(OBS), table()[:, :A], rtol=1e-4, atol=1e-2)


def test_answers_must_not_depend_on_what_else_is_asked(tmp_path):
    model = graph()
    model.graph.node.insert(2, helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.insert(3, helper.make_node("Sub", ["flat", "mean"], ["centred"]))
    model.graph.node[-1].input[0] = "centred"
    onnx.save(model, str(tmp_path / "net.onnx"))
    with pytest.raises(ArtifactError, match="evaluation mode"):
        models.open_subject(models.parse_source(f"game={tmp_path}/net.onnx?layout=nchw&scale=1"))


def test_a_torn_file_is_a_named_error(tmp_path):
    whole = graph().SerializeToString()
    path = tmp_path / "net.onnx"
    for size in (0, 1, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(EdgertError, match=r"net\.onnx"):
            models.open_subject(models.parse_source(f"game={path}?layout=nchw&scale=1"))


@pytest.mark.parametrize("name", ["no-such", "no-such.onnx", "no-such.edgert"])
def test_a_file_that_is_not_there(name, tmp_path):
    with pytest.raises(ConfigError, match=name):
        models.open_subject(models.parse_source(str(tmp_path / name)))


def test_a_folder_and_a_text_are_no_models(tmp_path):
    with pytest.raises(ConfigError):
        models.open_subject(models.parse_source(str(tmp_path)))
    with pytest.raises(ArtifactError):
        models.open_subject(models.parse_source(__file__))


@pytest.mark.parametrize(
    "text, path, task, said",
    [
        ("a.onnx", "a.onnx", "", {}),
        ("pong=a.onnx", "a.onnx", "pong", {}),
        ("/x=y/a.onnx", "/x=y/a.onnx", "", {}),
        ("pong=/x=y/a.onnx?scale=1/255&layout=nchw", "/x=y/a.onnx", "pong", {"scale": "1/255", "layout": "nchw"}),
        ("a.onnx?actions=UP,DO%26WN", "a.onnx", "", {"actions": "UP,DO&WN"}),
    ],
)
def test_how_a_model_is_named(text, path, task, said):
    assert models.parse_source(text) == (Path(path), task, said)


@pytest.mark.parametrize("text", ["a?scale", "a?scale=", "a?colour=1", "a?scale=1&scale=2", "a?=1", "a?scale=%ff"])
def test_how_it_is_not(text):
    with pytest.raises(ConfigError):
        models.parse_source(text)


@given(st.text(max_size=30))
def test_no_name_is_a_traceback(text):
    with contextlib.suppress(ConfigError):
        models.parse_source(text)
