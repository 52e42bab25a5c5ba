"""Turn a training run into a bundle.

`python -m tools.export --run runs/breakout-student --task breakout --out models/breakout.edgert`

The graph: one ONNX model, exits as nested `If`. Each branch owns its initializers (in the outer graph they would not be
prepacked, 3-4 times slower). Observations and the tensors between stages are uint8 in NHWC, which is how onnxruntime's
integer kernels want them: the transposes written here to satisfy ONNX's NCHW all cancel, and dense weights keep their
row order. Inputs: `obs` uint8 (1, H, W, C); `threshold` float32 (n_exits - 1,), logits (absent with one exit). Outputs:
`head` float32 (1, n_actions + 1); `exit` int64 (1,).
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgert
from edgert import bundle, quant
from edgert.errors import EdgertError, UsageError
from edgert.nets import U8, Conv, Dense, MaxPool, NetSpec, Params, Placed, Relu, forward, macs, ops, stages, strip_exits
from edgert.policy import artifact
from edgert.policy.exits import decide, fit_thresholds, taken
from edgert.ports.plant import worlds
from edgert.ports.store import store_error, write_atomic
from edgert.values import Operating
from tools import frontier, tflite
from tools.episodes import Chooser, play
from tools.train import commit, kept

Exits = Literal["if", "last", "all"]
OPSET, IR_VERSION = 17, 9  # the newest that onnxruntime 1.17 reads
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


class _Graph:
    """Nodes and initializers of one (sub)graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], output: str, *unused: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output, *unused], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def windowed(self, op: str, inputs: Sequence[str], output: str, layer: Conv | MaxPool) -> str:
        """A Conv or MaxPool, on NCHW as ONNX wants it."""
        pads = [layer.padding] * 4 if isinstance(layer, Conv) else [0] * 4
        return self.node(op, inputs, output, kernel_shape=[layer.kernel] * 2, strides=[layer.stride] * 2, pads=pads)


Layer = Callable[[_Graph, Any, str], str]


def _int8_layer(tensors: quant.Tensors) -> Layer:
    """How a quantized layer is written."""

    def add(graph: _Graph, step: quant.Step, x: str) -> str:
        name, layer, in_shape, *_ = step.placed

        def own(suffix: str) -> str:
            return graph.constant(f"{name}.{suffix}", tensors[f"{name}.{suffix}"])

        if isinstance(layer, Relu):
            return graph.node("Max", [x, own("floor")], f"{name}.q")
        if isinstance(layer, Conv | MaxPool):
            x = graph.node("Transpose", [x], f"{name}.nchw", perm=TO_NCHW)
        elif len(in_shape) > 1:
            x = graph.node("Flatten", [x], f"{name}.flat", axis=1)
        if isinstance(layer, MaxPool):
            pooled = graph.windowed("MaxPool", [x], f"{name}.pooled", layer)
            return graph.node("Transpose", [pooled], f"{name}.q", perm=TO_NHWC)
        n = len(tensors[f"{name}.b"])
        # Zero points that are always zero, and still written: onnxruntime does not fuse a Gemm without them.
        zeros = {"w": np.zeros(n, np.int8), "b": np.zeros(n, np.int32)}
        operands = [graph.node("DequantizeLinear", [x, own("x.scale"), own("x.zp")], f"{name}.x")]
        for part, axis in (("w", 0 if isinstance(layer, Conv) else 1), ("b", 0)):
            parts = [own(part), own(f"{part}.scale"), graph.constant(f"{name}.{part}.zp", zeros[part])]
            operands.append(graph.node("DequantizeLinear", parts, f"{name}.{part}.float", axis=axis))
        if step.is_output:
            return graph.node("Gemm", operands, f"{name}.y")
        # No Relu: it is the lower end of an unsigned output whose zero point is 0.
        y = (
            graph.windowed("Conv", operands, f"{name}.y", layer)
            if isinstance(layer, Conv)
            else graph.node("Gemm", operands, f"{name}.y")
        )
        y = graph.node(
            "QuantizeLinear",
            [y, own("y.scale"), own("y.zp")],
            f"{name}.rounded" if isinstance(layer, Conv) else f"{name}.q",
        )
        return graph.node("Transpose", [y], f"{name}.q", perm=TO_NHWC) if isinstance(layer, Conv) else y

    return add


def _float_layer(params: Params) -> Layer:
    """How a float layer is written."""

    def add(graph: _Graph, placed: Placed, x: str) -> str:
        name, layer, in_shape, *_ = placed
        if x == "obs":
            x = graph.node("Cast", [x], "obs.float", to=TensorProto.FLOAT)
            x = graph.node("Mul", [x, graph.constant("obs.scale", np.float32(params.spec.input_scale))], "obs.scaled")
        if isinstance(layer, Relu):
            return graph.node("Relu", [x], f"{name}.y")
        if isinstance(layer, Conv | MaxPool):
            x = graph.node("Transpose", [x], f"{name}.nchw", perm=TO_NCHW)
        elif len(in_shape) > 1:
            x = graph.node("Flatten", [x], f"{name}.flat", axis=1)
        inputs = [x]
        if isinstance(layer, Conv | Dense):
            weight, bias = params.views[f"{name}.w"], params.views[f"{name}.b"]
            if isinstance(layer, Conv):
                weight = weight.reshape(layer.kernel, layer.kernel, in_shape[-1], -1).transpose(3, 2, 0, 1)
            inputs += [graph.constant(f"{name}.w", np.ascontiguousarray(weight)), graph.constant(f"{name}.b", bias)]
        if isinstance(layer, Dense):
            return graph.node("Gemm", inputs, f"{name}.y")
        y = graph.windowed("Conv" if isinstance(layer, Conv) else "MaxPool", inputs, f"{name}.nchw.y", layer)
        return graph.node("Transpose", [y], f"{name}.y", perm=TO_NHWC)

    return add


def _value(name: str, dtype: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def _write(spec: NetSpec, laid: Sequence[tuple[Any, Any]], layer: Layer, exits: Exits) -> bytes:
    """Wire trunks and heads together."""
    last, n_outputs = spec.n_exits - 1, spec.n_actions + 1
    heads = [_value("head", TensorProto.FLOAT, [1, n_outputs]), _value("exit", TensorProto.INT64, [1])]

    def through(graph: _Graph, layers: Any, x: str) -> str:
        for one in layers:
            x = layer(graph, one, x)
        return x

    def asked(graph: _Graph, k: int, x: str) -> tuple[str, ...]:
        """Append a head: the name of all its columns, or of its Q-values and of a confidence that counts their gap."""
        head, gap_logits = through(graph, laid[k][1], x), stages(spec)[k].head[-1].gap_logits
        if not gap_logits:
            return (head,)
        columns, two = np.array([spec.n_actions, 1]), graph.constant(f"gap.two.{k}", np.array([2]))
        q = graph.node("Split", [head, graph.constant(f"gap.columns.{k}", columns)], f"q.{k}", f"plain.{k}", axis=1)
        best = graph.node("TopK", [q, two], f"best.{k}", f"best.at.{k}")
        # One product subtracts, scales and adds: each node is some per cent of a cold early exit.
        scale = graph.constant(f"gap.{k}", np.array([[gap_logits], [-gap_logits]], np.float32))
        return q, graph.node("Gemm", [best, scale, f"plain.{k}"], f"confidence.{k}")

    def answered(graph: _Graph, head: tuple[str, ...], name: str) -> None:
        """Name a head's columns, with a node only where the last one does not give them."""
        if len(head) > 1:
            graph.node("Concat", head, name, axis=1)
        elif graph.nodes and graph.nodes[-1].output[0] == head[0]:
            graph.nodes[-1].output[0] = name
        else:
            graph.node("Identity", head, name)

    def decided(graph: _Graph, k: int, head: tuple[str, ...], at: str) -> _Graph:
        """End `graph` with a head and its exit number."""
        answered(graph, head, f"head.{at}" if at else "head")
        graph.node(
            "Identity",
            [graph.constant(f"exit.{at or 'last'}.{k}", np.array([k], np.int64))],
            f"exit.{at}" if at else "exit",
        )
        return graph

    def branch(graph: _Graph, at: str) -> onnx.GraphProto:
        outputs = [
            _value(f"head.{at}", TensorProto.FLOAT, [1, n_outputs]),
            _value(f"exit.{at}", TensorProto.INT64, [1]),
        ]
        return helper.make_graph(graph.nodes, at, [], outputs, graph.initializers)

    def from_stage(graph: _Graph, k: int, x: str, at: str) -> _Graph:
        """Append stage k and all after it; the outputs are `head` and `exit`, or `head.<at>` and `exit.<at>`."""
        x = through(graph, laid[k][0], x)
        head = asked(graph, k, x)
        if k == last:
            return decided(graph, k, head, at)
        sure = head[-1]
        if len(head) == 1:
            # Gather with a scalar index, not a second Gemm: the confidence is a column of the head's only product.
            column = graph.constant(f"column.{k}", np.int64(spec.n_actions))
            sure = graph.node("Gather", [sure, column], f"confidence.{k}", axis=1)
        bar = "threshold"
        if last > 1:  # a threshold that is alone needs no node: each is some per cent of a cold early exit
            bar = graph.node("Gather", [bar, graph.constant(f"row.{k}", np.int64(k))], f"threshold.{k}", axis=0)
        taken = graph.node("GreaterOrEqual", [sure, bar], f"taken.{k}")
        yes = branch(decided(_Graph(), k, head, f"taken{k}"), f"taken{k}")
        no = branch(from_stage(_Graph(), k + 1, x, f"deeper{k}"), f"deeper{k}")
        outputs = [f"head.{at}", f"exit.{at}"] if at else ["head", "exit"]
        graph.nodes.append(helper.make_node("If", [taken], outputs, name=f"exit{k}", then_branch=yes, else_branch=no))
        return graph

    inputs, graph = [_value("obs", TensorProto.UINT8, [1, *spec.input_shape])], _Graph()
    if exits == "if":
        if last:
            inputs.append(_value("threshold", TensorProto.FLOAT, [last]))
        from_stage(graph, 0, "obs", "")
    else:
        x, heads = "obs", []
        for k, (trunk, _) in enumerate(laid):
            x = through(graph, trunk, x)
            if exits == "all" or k == last:
                name = f"head.{k}" if exits == "all" else "head"
                answered(graph, asked(graph, k, x), name)
                heads.append(_value(name, TensorProto.FLOAT, [1, n_outputs]))
    made = helper.make_graph(graph.nodes, "edgert", inputs, heads, graph.initializers)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgert"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def build(spec: NetSpec, tensors: quant.Tensors, exits: Exits = "if") -> bytes:
    """Write the int8 graph (QDQ, for onnxruntime to fuse).

    Args:
        spec: the network.
        tensors: of `quant.quantize`.
        exits: `if` decides inside; `last` is the full network alone; `all` gives `head.0`, `head.1`, ... (the latter
            two to measure against).

    Returns:
        A serialized ModelProto.
    """
    return _write(spec, quant.steps(spec), _int8_layer(tensors), exits)


def build_float(params: Params, exits: Exits = "if") -> bytes:
    """Write the float32 graph, with the same inputs and outputs as `build`."""
    return _write(params.spec, stages(params.spec), _float_layer(params), exits)


def untrained(
    params: Params,
    obs: U8,
    *,
    task: str,
    rate_hz: float,
    threshold: float,
    kind: bundle.NetKind = "q",
    golden: int = 4,
    every_runtime: bool = True,
) -> bytes:
    """Make a bundle of a network that nobody has trained or judged, for benchmarks.

    Args:
        params: the network.
        obs: (n, H, W, C) uint8, what it is quantized by.
        task: what it says it is for.
        rate_hz: at which it would act.
        threshold: of every exit but the last.
        kind: what its heads say.
        golden: how many of `obs` go along as golden vectors.
        every_runtime: with the graphs of all runtimes; otherwise onnxruntime's int8 graph alone.

    Returns:
        The file.
    """
    spec = params.spec
    ranges, tensors = quant.fit(params, obs)
    manifest = bundle.Manifest(
        name="untrained",
        task=task,
        created="",
        edgert=edgert.__version__,
        observation=bundle.Observation(spec.input_shape, spec.input_scale),
        action=bundle.Action(spec.n_actions),
        control_rate_hz=rate_hz,
        gamma=0.99,
        net=msgspec.to_builtins(spec),
        kind=kind,
        thresholds=(threshold,) * (spec.n_exits - 1),
        exits=tuple(map(bundle.Exit, macs(spec), ops(spec))),
        safe_action=0,
        ranges=ranges,
        golden=bundle.Golden(golden, 0.0),
    )
    return artifact.pack(
        manifest,
        params,
        build(spec, tensors),
        obs[:golden],
        tflite=tflite.build(spec, tensors) if every_runtime else (),
        float_onnx=build_float(params) if every_runtime else b"",
    )


def watch(params: Params, env: str, *, episodes: int, wanted: int, seed: int) -> U8:
    """Observations that the full network meets while it acts, `wanted` of them at most, in random order."""
    seen: list[U8] = []
    last, rng = params.spec.n_exits - 1, np.random.default_rng(seed)

    def choose(obs: U8) -> npt.NDArray[np.integer]:
        seen.append(obs.copy())
        return np.asarray(forward(params, obs, exits=(last,))[last][:, :-1].argmax(1))

    play(choose, env, episodes, seed=seed, max_steps=2_000)
    everything = np.concatenate(seen)
    return everything[rng.permutation(len(everything))[:wanted]]


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder written by tools.train")
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="of the policy; the run's folder name by default")
    parser.add_argument("--float", action="store_true", help="write the float32 graph beside it, as <out>.float.onnx")
    parser.add_argument("--control-rate-hz", type=float, default=20.0)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--safe-action", type=int, default=0)
    parser.add_argument("--action-names", nargs="*", default=[])
    parser.add_argument("--channels", nargs="*", default=[])
    parser.add_argument(
        "--regret", type=float, default=0.05, help="what an exit may give away, as a share of the spread of Q-values"
    )
    parser.add_argument("--watch-episodes", type=int, default=20, help="played to collect observations")
    parser.add_argument(
        "--calibration", type=int, default=2048, help="observations that set the ranges; as many again the thresholds"
    )
    parser.add_argument("--without-exits", action="store_true", help="only the full network, for a teacher")
    parser.add_argument("--judged-in", help="environment of all evaluations; by default the one it was trained in")
    parser.add_argument("--kind", choices=get_args(bundle.NetKind), default="q", help="what the heads say (q)")
    parser.add_argument("--golden", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation; 0 skips them")
    parser.add_argument("--seed", type=int, default=0)
    frontier.add_arguments(parser)
    return parser.parse_args(argv)


def _score(returns: npt.NDArray[np.float64]) -> dict[str, float | None]:
    sem = round(float(returns.std(ddof=1) / len(returns) ** 0.5), 3) if len(returns) > 1 else None
    return {"mean": round(float(returns.mean()), 3), "sem": sem}


def _check(args: argparse.Namespace, spec: NetSpec, arena: str) -> None:
    """What would otherwise fail after hours of playing."""
    counts = {"watch-episodes": 1, "calibration": 1, "golden": 1, "episodes": 0}
    for name, least in counts.items():
        if (said := getattr(args, name.replace("-", "_"))) < least:
            raise UsageError(f"--{name} {said}: at least {least}")
    if not 0 <= args.regret < float("inf"):
        raise UsageError(f"--regret {args.regret}: a share, at least 0")
    frontier.check(args)
    env = worlds.make(arena)
    shown, n_actions = env.observation_space.shape, int(env.action_space.n)
    env.close()
    if (shown, n_actions) != (spec.input_shape, spec.n_actions):
        raise UsageError(
            f"{arena} shows {shown} and takes {n_actions} actions, the network was trained for "
            f"{spec.input_shape} and {spec.n_actions}"
        )


def main(argv: list[str] | None = None) -> int:
    """Read the command line and export."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    try:
        return run(args, argv)
    except EdgertError as error:
        print(f"tools.export: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Collect, quantize, fit thresholds, evaluate, write."""
    params, trained = kept(args.run)
    params = strip_exits(params) if args.without_exits else params
    arena = args.judged_in or trained["env"]
    spec = params.spec
    last = spec.n_exits - 1
    _check(args, spec, arena)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(error, "make", args.out.parent) from error

    # Seeds apart from those of training, of its evaluations and of its test.
    met = watch(
        params,
        trained["env"],
        episodes=args.watch_episodes,
        wanted=2 * args.calibration,
        seed=30_000_000 + args.seed * 1000,
    )
    calibration, held_out = met[: len(met) // 2], met[len(met) // 2 :]
    ranges, tensors = quant.fit(params, calibration)
    net = quant.IntNet(spec, tensors)
    heads, float_heads = net.heads(held_out), forward(params, held_out)
    thresholds = fit_thresholds(heads, args.regret)
    exit_of = taken(heads, thresholds)

    best = heads[last][:, :-1].argmax(1)
    rows = []
    for k, cost in enumerate(macs(spec)):
        chosen, here = heads[k][:, :-1].argmax(1), exit_of == k
        rows.append(
            {
                "exit": k,
                "macs": cost,
                "threshold": round(thresholds[k], 4) if k < last else None,
                "share": round(float(here.mean()), 4),
                "agrees_when_taken": round(float((chosen == best)[here].mean()), 4) if here.any() else None,
                "agrees_always": round(float((chosen == best).mean()), 4),
                "int8_is_float": round(float((chosen == float_heads[k][:, :-1].argmax(1)).mean()), 4),
                "max_head_error": round(float(np.abs(heads[k] - float_heads[k]).max()), 4),
            }
        )
    scores: dict[str, dict[str, float | None]] = {}
    if args.episodes:
        seed = 40_000_000 + args.seed * 1000

        def always(k: int) -> Chooser:
            return lambda obs: np.asarray(net.heads(obs, k)[k][:, :-1].argmax(1))

        choosers: dict[str, Chooser] = {
            "float, last exit": lambda obs: forward(params, obs, exits=(last,))[last][:, :-1].argmax(1),
            "int8, with thresholds": lambda obs: decide(net.heads(obs), thresholds),
            **{f"int8, exit {k}": always(k) for k in range(spec.n_exits)},
        }
        scores = {name: _score(play(choose, arena, args.episodes, seed=seed)) for name, choose in choosers.items()}

    manifest = bundle.Manifest(
        name=args.name or args.run.name,
        task=args.task,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgert=edgert.__version__,
        observation=bundle.Observation(spec.input_shape, spec.input_scale, channels=tuple(args.channels)),
        action=bundle.Action(spec.n_actions, tuple(args.action_names)),
        control_rate_hz=args.control_rate_hz,
        gamma=args.gamma,
        net=msgspec.to_builtins(spec),
        kind=args.kind,
        thresholds=thresholds,
        exits=tuple(map(bundle.Exit, macs(spec), ops(spec))),
        safe_action=args.safe_action,
        ranges=ranges,
        golden=bundle.Golden(args.golden, 0.0),
        provenance={
            "run": trained,
            "export": {
                "command": "python -m tools.export " + " ".join(argv),
                "commit": commit(),
                "observations": len(met),
                "exits": rows,
                "returns": scores,
                "episodes": args.episodes,
            },
        },
    )
    golden, float_onnx = held_out[: args.golden], build_float(params)
    pack = partial(artifact.pack, tflite=tflite.build(spec, tensors), float_onnx=float_onnx)
    pack(manifest, params, build(spec, tensors), golden)  # what is wrong with it is found before the long part
    measured, risk, setting = frontier.measure(args, spec, tensors, arena, held_out, Operating(thresholds))
    settled = {name: getattr(setting, name) for name in Operating.__struct_fields__}
    manifest = msgspec.structs.replace(manifest, frontier=measured, risk=risk, **settled)
    data = pack(manifest, params, build(spec, tensors), golden)
    write_atomic(args.out, data, mode=0o644)
    if args.float:
        write_atomic(args.out.with_suffix(".float.onnx"), float_onnx, mode=0o644)

    print("exit       MACs  threshold  share  agrees: taken  always  int8=float  max head error")
    for row in ({key: "-" if value is None else value for key, value in row.items()} for row in rows):
        print(
            f"{row['exit']:>4} {row['macs']:>10} {row['threshold']:>10} {row['share']:>6} "
            f"{row['agrees_when_taken']:>14} {row['agrees_always']:>7} {row['int8_is_float']:>11} "
            f"{row['max_head_error']:>15}"
        )
    print(f"mean MACs with thresholds: {np.array(macs(spec))[exit_of].mean():.0f}")
    for name, score in scores.items():
        print(f"return, {name:<24} {score['mean']:8} +- {score['sem']} over {args.episodes} episodes")
    if measured is not None:
        print(frontier.table(measured))
    if risk is not None:
        promised = str(setting) if risk.holds else "only the full network"
        print(f"at most {risk.max_loss_frac:g} of the return lost, with probability {1 - risk.delta:g}: {promised}")
    print(f"{args.out}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
