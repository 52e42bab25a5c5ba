from __future__ import annotations

import numpy as np
import pytest

from edgert import quant, tflitefile
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu, initialise

pytest.importorskip("ai_edge_litert")
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tools import tflite


def net(*trunk: object, heads: tuple[object, ...] = (), shape: tuple[int, int, int] = (11, 10, 3)) -> NetSpec:
    return NetSpec(shape, 4, trunk=(tuple(trunk),), heads=(heads,), input_scale=1 / 255)  # type: ignore[arg-type]


def run(model: bytes, x: np.ndarray, resolver: OpResolverType = OpResolverType.AUTO) -> list[np.ndarray]:
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()]


def operators(model: bytes) -> list[str]:
    interpreter = Interpreter(model_content=model)
    return [one["op_name"] for one in interpreter._get_ops_details()]


SPECS = {
    "conv": net(Conv(5, 3)),
    "strided": net(Conv(5, 4, 3), Relu()),
    "same": net(Conv(5, 3, 1, 1), Relu()),
    "half": net(Conv(5, 3, 2, 1), Relu(), shape=(11, 11, 3)),
    "padded": net(Conv(5, 3, 2, 1), shape=(10, 10, 3)),
    "far": net(Conv(5, 4, 2, 3)),
    "inside": net(Conv(5, 3), Conv(6, 2, 1, 1), Dense(4)),
    "pooled": net(Conv(5, 3), MaxPool(3, 2), Relu(), Dense(7), Relu()),
    "dense": net(Dense(6), heads=(Dense(3), Dense(2))),
    "wide": net(Dense(6), Relu(), shape=(84, 84, 4)),
}


def made(spec: NetSpec) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(3)
    params = initialise(spec, rng)
    for view in params.views.values():
        view += rng.normal(0, 0.05, view.shape).astype(np.float32)
    obs = rng.integers(0, 256, (6, *spec.input_shape)).astype(np.uint8)
    return quant.quantize(params, quant.calibrate(params, obs)), obs


@pytest.mark.parametrize("name", SPECS)
def test_every_layer_gives_the_bits_of_the_reference(name: str) -> None:
    tensors, obs = made(SPECS[name])
    (model,) = tflite.build(SPECS[name], tensors)
    wanted = quant.forward(SPECS[name], tensors, obs)[0]
    for i in range(len(obs)):
        assert np.array_equal(run(model, (obs[i : i + 1] ^ 128).view(np.int8))[0][0], wanted[i])


def test_padding_is_an_operator_of_its_own_only_where_it_must_be() -> None:
    for name, spec in SPECS.items():
        assert ("PAD" in operators(tflite.build(spec, made(spec)[0])[0])) == (name in ("padded", "far", "inside"))


def test_a_stage_hands_on_what_the_next_one_takes() -> None:
    spec = NetSpec(
        (8, 8, 2), 3, trunk=((Conv(4, 3), Relu()), (MaxPool(2, 2),), (Dense(5),)), heads=((), (Dense(6),), ())
    )
    tensors, obs = made(spec)
    files, wanted, x = tflite.build(spec, tensors), quant.forward(spec, tensors, obs), (obs[:1] ^ 128).view(np.int8)
    for k, model in enumerate(files):
        head, *rest = run(model, x)
        assert np.array_equal(head[0], wanted[k][0])
        assert len(rest) == (k < 2)
        x = rest[0] if rest else x


def test_tflites_own_kernels_are_off_by_no_more_than_a_step_a_layer() -> None:
    # These round in fixed point. A wrong zero point, scale or operator version would be off by far more.
    spec = SPECS["same"]
    tensors, obs = made(spec)
    (model,) = tflite.build(spec, tensors)
    wanted = quant.forward(spec, tensors, obs)[0]
    step = np.abs(tensors["h0.out.w"].astype(np.int64)).sum(0) * tensors["h0.out.x.scale"] * tensors["h0.out.w.scale"]
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    for i in range(len(obs)):
        head = run(model, (obs[i : i + 1] ^ 128).view(np.int8), plain)[0][0]
        assert (np.abs(head - wanted[i]) <= 0.05 * step).all()


def test_files_are_reproducible_and_their_constants_aligned() -> None:
    spec = SPECS["inside"]
    tensors, _ = made(spec)
    (model,) = tflite.build(spec, tensors)
    assert tflite.build(spec, tensors) == [model]
    spans = tflitefile.index(model)
    constants = [span for name, span in spans.items() if name.endswith((".w", ".b", ".unit", ".pads"))]
    assert len(constants) == 10
    assert all(span.start % 16 == 0 for span in constants)
