"""`edgert policy`: look at a bundle, and measure it on the board this runs on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgert import modelfile
from edgert.cli import ERROR, OK
from edgert.errors import ArtifactError, ConfigError, UsageError
from edgert.ports import screen
from edgert.ports.process import Layout, load_config
from edgert.ports.store import store_error, write_atomic

if TYPE_CHECKING:
    from edgert.policy.artifact import Policy
    from edgert.programs.policy_bench import Runner


def policy(argv: list[str]) -> int:
    """Check, measure, sign or verify a bundle.

    Returns:
        0; 1 when no runtime can run it, 77 when a device would not believe it.

    Raises:
        ArtifactError: the file is no sound bundle.
        ConfigError: a configuration was named that cannot be read, or a runtime that does not exist.
        StoreError: the result cannot be written.
    """
    args = _parse(argv)
    try:
        data = args.bundle.read_bytes()
    except OSError as error:
        raise store_error(error, "read", args.bundle) from error
    if args.verb in ("sign", "verify"):
        from edgert.cli import seal

        return seal.run(args, data)
    if args.core is not None:
        try:
            os.sched_setaffinity(0, {args.core})
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"--core {args.core}: {error}; there are {os.cpu_count()} cores") from error
    if modelfile.is_model(data):
        return _check_model(data, args)
    # Here, because `edgert policy --help` should not wait for numpy.
    from edgert.policy import artifact

    loaded = artifact.load(data)
    return _check(loaded, args) if args.verb == "check" else _bench(loaded, args)


def _check_model(data: bytes, args: argparse.Namespace) -> int:
    """What is in a model bundle, and which runtimes give its golden answers."""
    from edgert.ports.runtime import PACKAGES
    from edgert.ports.runtime.model import open_model, row_s

    if args.verb != "check":
        raise ConfigError(f"{args.bundle} is a model: `edgert serve` and [offload] measure it where it runs")
    found = modelfile.read(data)
    said = found.manifest
    runs: dict[str, float | str] = {}
    for kind in PACKAGES:
        try:
            runs[kind] = row_s(open_model(found, kind))
        except (UsageError, ArtifactError) as error:
            runs[kind] = str(error)
    best = said.accuracy[0]
    if args.json:
        document = {"model": modelfile.model_id(found.encoded), "manifest": msgspec.to_builtins(said), "runtimes": runs}
        print(json.dumps(document, indent=2))
    else:
        print(f"model {said.name}, task {said.task}, id {modelfile.model_id(found.encoded)}")
        print(f"  {said.input.dtype} {said.input.shape} -> {said.output.dtype} {said.output.shape}, {said.macs} MAC")
        how = f"measured on {best.samples}" if best.measured else "quoted"
        print(f"  {best.metric} {best.value_frac:.1%}, {how}: {best.source}")
        for name, told in runs.items():
            print(f"  {name:<8} {told if isinstance(told, str) else f'{1e3 * told:.3f} ms a row'}")
    return OK if any(not isinstance(each, str) for each in runs.values()) else ERROR


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert policy", description="Look at a bundle, measure it, or sign it.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser("check", help="verify a bundle on every runtime here, and say what is in it")
    bench = verbs.add_parser("bench", help="race all runtimes and precisions at the control rate; remember the fastest")
    for one in (check, bench):
        one.add_argument("bundle", type=Path, metavar="BUNDLE")
        one.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    check.set_defaults(core=None)
    from edgert.cli import seal

    seal.add_verbs(verbs)
    bench.add_argument("--rate", type=float, metavar="HZ", help="decisions a second (the bundle's)")
    bench.add_argument("--seconds", type=float, default=60.0, metavar="S", help="for all runners together (60)")
    bench.add_argument("--runtimes", nargs="+", metavar="NAME", help="only these (all that are installed)")
    bench.add_argument("--core", type=int, help="stay on this core")
    bench.add_argument("--config", type=Path, help="of the device that should use the result (/etc/edgert/edgert.toml)")
    bench.add_argument("--dry-run", action="store_true", help="only measure: remember nothing")
    bench.add_argument("--write", action="store_true", help="also write the costs into the bundle")
    return parser.parse_args(argv)


def _check(loaded: Policy, args: argparse.Namespace) -> int:
    """Golden vectors on every runtime, and the manifest in short."""
    from edgert.nets import ops
    from edgert.ports.runtime.choice import candidates
    from edgert.programs.policy_bench import line_up

    manifest, runners = loaded.manifest, line_up(loaded, candidates(loaded))
    points, measured_on = _frontier(loaded)
    runs = [runner for runner in runners if runner.runtime is not None]
    document: dict[str, Any] = {
        "name": manifest.name,
        "task": manifest.task,
        "created": manifest.created,
        "edgert": manifest.edgert,
        "observation": list(manifest.observation.shape),
        "actions": manifest.action.n,
        "control_rate_hz": manifest.control_rate_hz,
        "golden": manifest.golden.count,
        "exits": [
            {"macs": each.macs, "ops": each.ops or counted, "threshold": threshold}
            for each, counted, threshold in zip(
                manifest.exits, ops(loaded.spec), (*manifest.thresholds, None), strict=True
            )
        ],
        "frontier": points,
        "frontier_cost_on": measured_on,
        "costs": msgspec.to_builtins(manifest.costs),
        "provenance": manifest.provenance,
        "runtimes": {runner.name: runner.why or "ok" for runner in runners},
    }
    if args.json:
        print(json.dumps(document, indent=1))
        return OK if runs else ERROR
    made = f"made {manifest.created} by edgert {manifest.edgert}"
    print(f"{screen.paint(manifest.name, 'bold')}: {manifest.task}, {made}")
    print(
        f"  observation {' x '.join(map(str, manifest.observation.shape))} uint8, {manifest.action.n} actions, "
        f"{manifest.control_rate_hz:g} decisions/s, {manifest.golden.count} golden observations"
    )
    print(f"  {'exit':<6}{'MACs':>12}{'operations':>12}{'threshold':>11}")
    for k, row in enumerate(document["exits"]):
        threshold = "-" if row["threshold"] is None else f"{row['threshold']:.3f}"
        print(f"  {k:<6}{row['macs']:>12}{row['ops']:>12}{threshold:>11}")
    if points:
        _show_frontier(points, measured_on)
    found = manifest.provenance.get("export") or manifest.provenance
    told = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
    print("  from: " + (", ".join(f"{key} {value}" for key, value in told.items()) or "nothing is said"))
    for runner in runners:
        _print_verdict(runner)
    return OK if runs else ERROR


def _frontier(loaded: Policy) -> tuple[list[dict[str, Any]], str | None]:
    """The points of the frontier, each with the mean seconds of a tick if this board was measured, and on what."""
    from edgert.policy.frontier import cost_s
    from edgert.ports.runtime.choice import key_of

    if loaded.manifest.frontier is None:
        return [], None
    points, key = loaded.manifest.frontier.points, key_of(loaded)
    taken_s = {
        f"{cost.runtime} {cost.precision}": [cost_s(point, [each.p50_s for each in cost.exits]) for point in points]
        for cost in loaded.manifest.costs
        if (cost.board, cost.cpu) == (key.board, key.cpu)
    }
    fastest = min(taken_s, key=lambda name: sum(taken_s[name]), default=None)
    costs_s = taken_s[fastest] if fastest else [None] * len(points)
    return [
        {**msgspec.to_builtins(point), "cost_s": cost} for point, cost in zip(points, costs_s, strict=True)
    ], fastest


def _show_frontier(points: list[dict[str, Any]], measured_on: str | None) -> None:
    """What `edgert fleet exits --point` chooses from."""
    timed = f"mean us, {measured_on}" if measured_on else ""
    print(f"  {'point':<6}{'operations':>11}{'return':>8}   {'95 %':<14}{'held':>5}  {timed:<22}setting")
    for i, point in enumerate(points):
        time_us = f"{1e6 * point['cost_s']:.1f}" if measured_on else ""
        setting = " ".join(f"{each:.3f}" for each in point["thresholds"])
        if point["repeat"] > 1:
            setting += f", {point['repeat']} ticks from {point['hold_threshold']:.3f} on"
        interval = f"{point['return_low']:.2f} .. {point['return_high']:.2f}"
        print(
            f"  {i:<6}{point['ops_frac']:>11.3f}{point['return_frac']:>8.3f}   {interval:<14}"
            f"{point['held_share']:>5.2f}  {time_us:<22}{setting}"
        )


def _bench(loaded: Policy, args: argparse.Namespace) -> int:
    """Race, tell, remember."""
    from edgert.ports.runtime import PACKAGES
    from edgert.ports.runtime.choice import Choice, candidates, key_of, remember
    from edgert.programs import policy_bench as program

    wanted = candidates(loaded)
    if args.runtimes:
        if strange := [name for name in args.runtimes if name not in PACKAGES]:
            raise ConfigError(f"--runtimes: there is no {', '.join(strange)}; choose from {', '.join(PACKAGES)}")
        # One that is asked for by name appears, if only with the reason why it cannot run.
        found = {kind for kind, _ in wanted}
        wanted = [one for one in wanted if one[0] in args.runtimes]
        wanted += [(kind, "int8") for kind in PACKAGES if kind in args.runtimes and kind not in found]
    measured_at, note = (None, "not remembered: --dry-run") if args.dry_run else _where(args.config)
    rate_hz = loaded.manifest.control_rate_hz if args.rate is None else args.rate
    runners = program.line_up(loaded, wanted)
    try:
        program.race(loaded, runners, rate_hz, args.seconds)
    except UsageError as error:
        raise ConfigError(f"--rate, --seconds: {error}") from error
    share, key = program.shares(loaded), key_of(loaded)
    first = program.winner(runners, share, 0.8 / rate_hz)
    costs = program.measured(runners, key, rate_hz)
    document = {
        "bundle": str(args.bundle),
        "key": msgspec.to_builtins(key),
        "rate_hz": rate_hz,
        "core": args.core,
        "exit_shares": share,
        "costs": msgspec.to_builtins(costs),
        "failed": {runner.name: runner.why for runner in runners if runner.why},
        "winner": None if first is None else {"runtime": first.kind, "precision": first.precision},
        "remembered": None if first is None or measured_at is None else str(measured_at),
    }
    if not args.json:
        _show(loaded, runners, first, share, f"{key.board}, {key.cpu}, {rate_hz:g} calls/s")
    if first is not None and measured_at is not None:
        remember(measured_at, Choice(key, first.kind, first.precision, costs))
        note = f'remembered in {measured_at}; policy.runtime = "auto" uses it from the next start on'
    if args.write and costs:
        from edgert.policy.artifact import with_costs

        write_atomic(args.bundle, with_costs(loaded, costs), mode=0o644)
    if args.json:
        print(json.dumps(document, indent=1))
    elif first is None:
        print("no runtime can run this bundle here", file=sys.stderr)
    else:
        print(f"\nfastest here: {screen.paint(first.name, 'bold')}; {note}")
        if args.write:
            print(f"costs written into {args.bundle}")
    return ERROR if first is None else OK


def _where(path: Path | None) -> tuple[Path | None, str]:
    """The file to remember the result in; without a configuration there is none, and why.

    Raises:
        ConfigError: a configuration was named that cannot be read.
    """
    try:
        return Layout(load_config(path or Path("/etc/edgert/edgert.toml"))).measured, ""
    except ConfigError:
        if path is not None:
            raise
        return None, "not remembered: name the device's configuration with --config"


def _show(loaded: Policy, runners: list[Runner], first: Runner | None, share: tuple[float, ...], where: str) -> None:
    """The race as a table."""
    from edgert.programs.policy_bench import expected_s

    print(f"{screen.paint(loaded.manifest.name, 'bold')} on {where}")
    parts = ", ".join(f"exit {k} {100 * part:.0f} %" for k, part in enumerate(share))
    print(f"share of golden observations: {parts}\n")
    print(f"{'runtime':<14}{'exit':>6}{'p50 us':>10}{'p99 us':>10}{'CPU us':>10}{'calls':>8}{'mean us':>10}")
    for runner in runners:
        costs = runner.costs()
        if not costs:
            _print_verdict(runner)
        for k, cost in enumerate(costs):
            # Padded before it is painted: a colour has a length, but no width.
            name = f"{runner.name if k == 0 else '':<14}"
            figures = "".join(f"{1e6 * value:>10.1f}" for value in (cost.p50_s, cost.p99_s, cost.cpu_s))
            mean = f"{1e6 * expected_s(costs, share):.1f}" if k == 0 else ""
            line = f"{k:>6}{figures}{len(runner.took_s[k]):>8}{mean:>10}"
            print((screen.paint(name, "green") if runner is first else name) + line)


def _print_verdict(runner: Runner) -> None:
    """One line: does it run?"""
    ok = screen.paint("ok", "green") if runner.runtime else screen.paint("fails", "red")
    print(f"{runner.name:<14}  {ok}{': ' + runner.why if runner.why else ''}")
