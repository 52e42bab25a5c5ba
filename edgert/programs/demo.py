"""The demo: a fleet on one machine for a few minutes, what it did as a live table, a report, and a verdict.

Exit code 0 says that every check of the verdict passed; the report says how each was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgert import __version__, wire
from edgert.config import Learn
from edgert.errors import StoreError, UsageError
from edgert.fleet.session import Collector as Collected
from edgert.ports import report, screen
from edgert.ports.cluster import GAMES, WEAK, Cluster, Collector, Running, Stopped, student, teacher_bundle
from edgert.ports.models import teacher_name
from edgert.ports.process import Stopping
from edgert.ports.screen import History, grown
from edgert.programs.events import opened
from edgert.programs.scenes import SCENES, Stage

RATE_FRAC, MISSED_FRAC, HOG_MISSED_FRAC = 0.99, 0.005, 0.01
"""What the verdict asks of a device's act loop: share of the nominal rate, and of ticks missed at most; the same beside
real hogs."""
DRAIN_S = 5.0
"""How long to wait at the end for events that are still on their way."""
LINE_S, REFRESH_S = 10.0, 1.0
DEMO = {
    "policy.explore_frac": 0.02,
    "learn.train_steps_hz": 25.0,
    "learn.candidate_s": 20.0,
    "learn.checkpoint_s": 10.0,
    "learn.min_transitions": 200,
    "teacher.max_bytes_per_s": 8000.0,
    "battery.capacity_j": 7200.0,
    "battery.initial_frac": 0.9,
}


RING_BYTES = 64 << 20
"""Of observations that a device keeps at most, on disk and again in memory."""
ASKED_PER_S = 4
"""Observations a second that go to the teacher at least, though nothing in them compresses."""


def settings(obs_bytes: int) -> dict[str, object]:
    """`DEMO`, with room for observations of this size."""
    fitting = max(int(DEMO["learn.min_transitions"]), RING_BYTES // obs_bytes)
    return {
        **DEMO,
        "learn.ring_transitions": min(Learn().ring_transitions, fitting),
        "teacher.max_bytes_per_s": max(DEMO["teacher.max_bytes_per_s"], float(ASKED_PER_S * obs_bytes)),
    }


class Check(NamedTuple):
    """One condition of the verdict, and what was measured."""

    name: str
    passed: bool
    why: str


def verdict(
    devices: Mapping[str, Mapping[str, Any]], stopped: Stopped, *, weak: bool, stage: Stage | None = None
) -> list[Check]:
    """Was everything as it should be?

    Args:
        devices: name -> `totals` and `swaps`, see `summarise`.
        stopped: how the processes ended.
        weak: the networks started weak, so a trained one must have taken over.
        stage: what was made go wrong: then devices must have named it, and nobody expects them to train as usual.

    Returns:
        One check a promise; all must have passed.
    """
    totals = {name: device["totals"] for name, device in devices.items()}
    rates = {n: (t["decisions_hz"] or 0.0) / t["nominal_hz"] for n, t in totals.items()}
    missed = {n: t["missed_frac"] for n, t in totals.items()}
    joined = {n: t["joined"] for n, t in totals.items()}
    swaps = [(n, s) for n, device in devices.items() for s in device["swaps"] if s["ok"] and s["generation"] > 0]
    clean = [f"{n}'s network {s['generation']}" for n, s in swaps if s["missed"] == 0]
    judged = sum(t["candidates"] for t in totals.values())
    lost = {
        n: "its spool could not be read"
        if t["events_recorded"] is None
        else f"{t['events_skipped']} lost, {t['events_recorded']} recorded"
        for n, t in totals.items()
        if t["events_recorded"] is None
        or t["events_skipped"]
        or t["events_arrived"] + t["events_waiting"] != t["events_recorded"]
    }
    waiting, arrived = (sum(t[key] or 0 for t in totals.values()) for key in ("events_waiting", "events_arrived"))
    bad = [f"{name} exited with {code}" for name, code in stopped.codes.items() if code != 0]
    bad += [f"{name} had to be killed" for name in stopped.killed]
    there = bool(devices)
    bearable = HOG_MISSED_FRAC if stage is not None and stage.name == "cpu-hog" else MISSED_FRAC
    kept = [
        Check(
            "every device held its rate",
            there and all(rate >= RATE_FRAC for rate in rates.values()),
            f"{_each({n: f'{100 * r:.2f} %' for n, r in rates.items()})} of the nominal rate; at least "
            f"{100 * RATE_FRAC:g} %",
        ),
        Check(
            "every device met its deadlines",
            there and all(share is not None and share <= bearable for share in missed.values()),
            f"{_each({n: '-' if m is None else f'{100 * m:.3f} %' for n, m in missed.items()})} of ticks missed; "
            f"at most {100 * bearable:g} %",
        ),
    ]
    learned = [
        Check(
            "the teacher taught",
            there and all(count > 0 for count in joined.values()),
            f"{_each({n: f'{c:,.0f}' for n, c in joined.items()})} answers joined to what was seen",
        ),
        Check(
            "a network trained on a device took over without a missed tick"
            if weak
            else "networks were trained on a device, and the gate judged them",
            bool(clean) or (not weak and not swaps and judged > 0),
            ", ".join(clean[:4]) + (f" and {len(clean) - 4} more" if len(clean) > 4 else "")
            if clean
            else f"{len(swaps)} swaps, none with 0 missed ticks"
            if swaps
            else f"{judged:,.0f} networks were judged and none was swapped in"
            + ("; a longer run offers more of them" if weak else ", since none was found better than the shipped one"),
        ),
    ]
    if stage is not None:
        passed, why = stage.adapted(list(devices))
        learned = [Check(f"every device noticed the {stage.name} and gave the reason", passed, why)]
    return [
        *kept,
        *learned,
        Check(
            "every event arrived exactly once",
            there and not lost,
            _each(lost) if lost else f"{arrived} arrived in order, {waiting} still safe on the devices, none lost",
        ),
        Check(
            "every process stopped by itself",
            not bad,
            "; ".join(bad) or f"{len(stopped.codes)} of {len(stopped.codes)}",
        ),
    ]


def _each(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "no device was heard of"


def summarise(
    history: History, *, started_s: float, nominal_hz: float, events: list[wire.Event], receiver: Collected, spool: Path
) -> dict[str, Any]:
    """What a device did, as plain data.

    Args:
        history: all its samples.
        started_s: the run's start, seconds since the Unix epoch.
        nominal_hz: its control rate.
        events: those of this device that were delivered.
        receiver: the state after them.
        spool: the device's event store; read now that nobody else has it open.

    Returns:
        `totals`, `series` (columns of equal length), `returns` ((second, return) pairs) and `swaps`.
    """
    samples = list(history.samples)
    acted = [s for s in samples if sum(s.exits)]
    decided = grown([sum(s.exits) for s in acted])
    # From the very first tick on: those missed while the policy was still loading are missed too.
    ticks, missed = grown([0, *(s.ticks for s in samples)]), grown([0, *(s.missed for s in samples)])
    elapsed_s = acted[-1].reported_s - acted[0].reported_s if acted else 0.0
    values = [value for _, value in history.returns]
    third = max(1, len(values) // 3)
    recorded = waiting = None
    with contextlib.suppress(StoreError), opened(spool) as store:
        held, wanted = store.streams.values(), receiver.streams
        if not wanted or any(each.id in wanted for each in held):
            recorded = sum(each.last_seq for each in held)
            waiting = sum(each.last_seq - max(wanted.get(each.id, 1), each.first_seq) + 1 for each in held)
    names = [
        f
        for f in screen.Sample.__struct_fields__
        if f not in ("t_s", "reported_s", "returns", "cpu_s", "rss_bytes", "faults")
    ]
    series: dict[str, list[Any]] = {"t_s": [round(s.t_s - started_s, 3) for s in samples]}
    series["reported_s"] = [round(s.reported_s - started_s, 3) for s in samples]
    series |= {name: [getattr(s, name) for s in samples] for name in names}
    series["decided"] = [sum(s.exits) for s in samples]
    for kind in ("cpu_s", "rss_bytes"):
        series |= {f"{kind}.{p}": [getattr(s, kind).get(p) for s in samples] for p in screen.PROCESSES}
    last = acted[-1] if acted else None
    totals: dict[str, Any] = {
        "nominal_hz": nominal_hz,
        "decisions_hz": decided / elapsed_s if elapsed_s > 0 else None,
        "elapsed_s": elapsed_s,
        "ticks": int(ticks),
        "missed": int(missed),
        "missed_frac": missed / ticks if ticks else None,
        "first_action_s": next((s.first_action_s for s in samples if s.first_action_s is not None), None),
        "p50_s": None if last is None else last.p50_s,
        "p99_s": None if last is None else last.p99_s,
        "max_s": max((s.max_s for s in acted if s.max_s is not None), default=None),
        "episodes": len(values),
        "return_first": sum(values[:third]) / third if values else None,
        "return_last": sum(values[-third:]) / third if values else None,
        "rss_bytes": {p: max((s.rss_bytes.get(p, 0) for s in samples), default=0) for p in screen.PROCESSES},
        "events_arrived": len(events),
        "events_skipped": receiver.skipped,
        "events_recorded": recorded,
        "events_waiting": waiting,
        "swaps": sum(e.name == "swapped" for e in events),
        "rolled_back": sum(e.name == "policy-rolled-back" for e in events),
        "faults": dict(samples[-1].faults) if samples else {},
    }
    for name in ("steps", "asked", "answered", "joined", "candidates", "accepted", "ask_bytes", "answer_bytes"):
        totals[name] = grown([0, *(getattr(s, name) for s in samples)])
    swaps = [{"t_s": round(e.at_s - started_s, 3), **e.detail} for e in events if e.name == "swapped"]
    returns = [(round(t_s - started_s, 3), value) for t_s, value in history.returns]
    return {"totals": totals, "series": series, "returns": returns, "swaps": swaps}


def document(
    cluster: Cluster,
    collector: Collector,
    stopped: Stopped,
    *,
    game: str,
    kind: str,
    started_s: float,
    wanted_s: float,
    stage: Stage | None = None,
) -> dict[str, Any]:
    """The whole report of a run that has ended, as plain data."""
    devices = {
        name: summarise(
            collector.devices.get(name, History()),
            started_s=started_s,
            nominal_hz=cluster.nominal_hz,
            events=[event for device, event in collector.events if device == name],
            receiver=collector.collected.get(name, Collected()),
            spool=cluster.state(name) / "events.db",
        )
        for name in cluster.devices
    }
    checks = verdict(devices, stopped, weak=game in WEAK, stage=stage)
    versions = {"edgert": __version__, "python": platform.python_version()}
    for package in ("numpy", "onnxruntime", "paho-mqtt", "gymnasium", "minatar", "ale-py", "vizdoom"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    capabilities = None if cluster.capabilities is None else msgspec.to_builtins(cluster.capabilities)
    ran_s = time.time() - started_s
    passed = all(check.passed for check in checks)
    return {
        "title": f"edgert demo: {game.replace('_', ' ')}" + (f", {stage.name}" if stage else ""),
        "summary": f"{len(devices)} devices, {len(cluster.teachers)} teacher(s) and a broker on one machine for "
        f"{ran_s:.0f} s; {'every check passed' if passed else 'NOT every check passed'}.",
        "passed": passed,
        "checks": [check._asdict() for check in checks],
        "facts": {
            "game": GAMES[game],
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
            "wanted, ran": f"{wanted_s:.0f} s, {ran_s:.1f} s",
            "broker": kind,
            "broker, measured": capabilities,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "versions": versions,
            "emulated": "plant, temperature, battery; CPU load, time, network and disk are this machine's",
            "events that arrived again and were told apart": collector.again,
            "malformed messages": collector.malformed,
        },
        "config": {name: cluster.config(name).read_text() for name in cluster.devices},
        "devices": devices,
        "adaptation": None if stage is None else _adaptation(stage, cluster.devices),
        "teachers": {name: told[-1][1] for name, told in collector.teachers.items()},
        "events": [
            {"t_s": round(e.at_s - started_s, 3), "device": d, "seq": e.seq, "name": e.name, "detail": e.detail}
            for d, e in collector.events
        ],
        "exit_codes": stopped.codes,
        "killed": stopped.killed,
    }


def _adaptation(stage: Stage, devices: list[str]) -> dict[str, Any]:
    scene = SCENES[stage.name]
    told = f"{stage.name}: {scene.hint}. {scene.hours:g} hours of it passed {stage.speed:.0f} times as fast."
    return {"told": told, "devices": {name: stage.columns(name) for name in devices}}


def main(argv: list[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: without the program's name; sys.argv when None.

    Returns:
        0 when every check passed, 1 otherwise.

    Raises:
        EdgertError: it could not be started at all; the message says what to do.
    """
    args = _parse(argv)
    out: Path = args.out or Path(time.strftime("edgert-demo-%Y%m%d-%H%M%S"))
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: choose another folder with --out, so that no former run is taken up")
    stopping = Stopping()
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    stage = None if args.scenario is None else Stage(args.scenario, out, args.minutes)
    obs_bytes = math.prod(student(args.game, args.models).observation.shape)
    cluster = Cluster(
        out,
        args.game,
        devices=args.devices,
        teachers=args.teachers,
        broker=args.broker,
        models=args.models,
        device_config={
            **settings(obs_bytes),
            # Whoever starts both stands up for the one before the other; a stranger proves itself in a minute or two.
            "teacher.vouched": [teacher_name(teacher_bundle(args.game, args.models).read_bytes())],
            **(stage.config if stage else {}),
        },
    )
    try:
        cluster.start()
        kind = cluster.broker.kind if cluster.broker else ""
        able = [name for name, does in msgspec.to_builtins(cluster.capabilities).items() if does is True]
        print(f"broker: {kind} on port {cluster.port}, measured to do {', '.join(able)}", flush=True)
        print(
            f"devices: {', '.join(cluster.devices)}; teachers: {', '.join(cluster.teachers)}; files in {out}/",
            flush=True,
        )
        if stage is not None:
            stage.start(cluster.port)
            print(f"{stage.name}: {SCENES[stage.name].hint}", flush=True)
        collector = Collector(cluster.url, cluster.fleet)
        started_s = time.time()
        try:
            _watch(cluster, collector, stopping, args, f"edgert demo: {args.game}, {kind}", stage)
            _drain(cluster, collector)
            print("stopping ...", flush=True)
            stopped = cluster.halt()
            collector.poll()
        finally:
            collector.close()
    finally:
        if stage is not None:
            stage.stop()
        cluster.stop()
    told = document(
        cluster,
        collector,
        stopped,
        game=args.game,
        kind=kind,
        started_s=started_s,
        wanted_s=args.minutes * 60,
        stage=stage,
    )
    page = report.write(out / "report", told)
    for check in told["checks"]:
        mark = screen.paint("ok  ", "green") if check["passed"] else screen.paint("FAIL", "red")
        print(f"{mark} {check['name']}: {check['why']}")
    print(f"report: {page}")
    return 0 if told["passed"] else 1


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgert demo",
        description="See edgert work: a fleet of simulated devices on this machine, for a few minutes.",
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (2)")
    parser.add_argument(
        "--game", choices=GAMES, default="breakout", help="any whose bundles are among the models (breakout)"
    )
    parser.add_argument("--scenario", choices=SCENES, help="let something go wrong, and see what devices do about it")
    parser.add_argument("--devices", type=int, default=2, help="how many (2)")
    parser.add_argument("--teachers", type=int, default=1, help="replicas (1)")
    parser.add_argument("--out", type=Path, help="a new folder for logs, state and report (edgert-demo-<time>)")
    parser.add_argument(
        "--models", type=Path, help="folder with <game>.edgert and <game>-teacher.edgert (the shipped ones)"
    )
    parser.add_argument("--broker", choices=("auto", "mosquitto", "iotcore"), default="auto")
    parser.add_argument("--no-view", action="store_true", help="lines of text, also in a terminal")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not (args.minutes > 0 and args.devices > 0 and args.teachers >= 0):
        parser.error("--minutes and --devices must be above 0")
    return args


def _watch(
    cluster: Cluster,
    collector: Collector,
    stopping: Stopping,
    args: argparse.Namespace,
    title: str,
    stage: Stage | None,
) -> None:
    """Keep the cluster running and show it, until the time is over or somebody has had enough."""
    begun_s = draw_s = time.monotonic()
    end_s = begun_s + args.minutes * 60
    started_s, happens = time.time(), ""
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(screen.live()) if screen.can_live() and not args.no_view else None
        while not stopping and (now_s := time.monotonic()) < end_s:
            running = cluster.poll()
            collector.poll()
            if stage is not None:
                happens = stage.poll(now_s - begun_s)
                stage.note(collector.devices, started_s)
            if failed := [each.name for each in running if each.failed]:
                stack.close()
                for name in failed:
                    print(f"{name} cannot run:\n{cluster.tail(name)}", file=sys.stderr)
                return
            if now_s >= draw_s:
                draw_s = now_s + (REFRESH_S if display else LINE_S)
                devices = {name: collector.devices.get(name, History()) for name in cluster.devices}
                left = f"{max(0.0, end_s - now_s):.0f} s left"
                if display:
                    facts = [*([(stage.name, happens)] if stage else []), *_facts(running, collector)]
                    display.show(f"{title}, {left} (Ctrl-C stops)", devices, facts, _last_events(collector))
                else:
                    if happens:
                        print(f"{left}  {happens}", flush=True)
                    for name, history in devices.items():
                        print(f"{left}  {screen.line(name, history)}", flush=True)
            time.sleep(0.1)


def _drain(cluster: Cluster, collector: Collector) -> None:
    """Give events that are on their way the time to arrive."""
    until_s = time.monotonic() + DRAIN_S
    while time.monotonic() < until_s and collector.waiting():
        cluster.poll()
        collector.poll()
        time.sleep(0.1)


def _facts(running: list[Running], collector: Collector) -> list[tuple[str, str]]:
    def state(each: Running) -> str:
        if each.pid is None:
            return f"{each.name} DOWN (exit code {each.code})"
        return each.name + (f" (restarted {each.restarts} times)" if each.restarts else "")

    facts = [("running", ", ".join(state(each) for each in running))]
    for name, (*_, (_, status)) in sorted(collector.teachers.items()):
        rate = screen.number(collector.answer_rate(name))
        seen = status["cache_hits"] + status["cache_misses"]
        cached = screen.percent(status["cache_hits"] / seen if seen else None)
        batches = f"{status['asks_per_batch']} questions a batch, {status['largest_batch']} at most"
        facts.append(
            (
                name,
                f"{status['answers']} answers, {rate}/s; {batches}; {status['observations']} observations, "
                f"{cached} from the cache",
            )
        )
    return facts


def _last_events(collector: Collector, count: int = 6) -> list[str]:
    return [
        f"{time.strftime('%H:%M:%S', time.localtime(event.at_s))} {device} {event.name}: {report.text(event.detail)}"
        for device, event in collector.events[-count:]
    ]
