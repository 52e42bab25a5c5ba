"""`edgert fleet twin|job|schedule|drain`: what a device should be, do, do by itself, and not begin any more."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER
from edgert.cli.talk import Talk, clean, conversation, edit, named, read_toml, shown, table
from edgert.errors import ConfigError
from edgert.fleet import ledger, schedule, twin
from edgert.fleet.kinds import Kind
from edgert.fleet.schedule import Schedule
from edgert.fleet.when import When
from edgert.ports.store import store_error

VERBS = ("twin", "job", "schedule", "drain")
ENDS = frozenset(state.value for state in ledger.ENDS)
WAITS = ("received",)
RESULT_LETTERS = 200
"""Of each thing that came of a job, for people: a measurement has thousands."""


def add(verbs: Any) -> list[argparse.ArgumentParser]:
    """Add the verbs to a parser.

    Args:
        verbs: what `add_subparsers` gave.

    Returns:
        The parsers that need the arguments which every command to a device has.
    """
    parsers = []

    def verb(group: Any, name: str, help_: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = group.add_parser(name, help=help_, description=help_[0].upper() + help_[1:])
        parsers.append(parser)
        return parser

    def group(name: str, help_: str) -> Any:
        return verbs.add_parser(name, help=help_).add_subparsers(dest="action", required=True, metavar="ACTION")

    twins = group("twin", "what a device should be, and what it is")
    verb(twins, "get", "what is wished, what is in force, and what is refused")
    setting = verb(twins, "set", "change wishes; they hold until they are changed again")
    setting.add_argument("setting", nargs="*", metavar="name=value", help="such as labels.site=north")
    setting.add_argument(
        "--unset", nargs="+", action="extend", default=[], metavar="NAME", help="leave it to the configuration again"
    )
    jobs = group("job", "something to do once, however often it is said")
    start = verb(jobs, "start", "have a device do something")
    start.add_argument("kind", choices=[kind.value for kind in Kind])
    start.add_argument("--arg", nargs="+", action="extend", default=[], metavar="name=value", help="such as for_s=600")
    start.add_argument("--bundle", type=Path, metavar="FILE", help="of `update`: put where devices find it, and meant")
    start.add_argument("--release", type=int, metavar="N", help="of a bundle that nobody signed (the time)")
    start.set_defaults(offer=None)
    start.add_argument("--id", help="the job's name for ever; the same one again does nothing twice (drawn)")
    start.add_argument("--valid-s", type=float, help="how long it may wait for its conditions (a day)")
    start.add_argument("--limit-s", type=float, help="patience with it once it runs (the kind's own)")
    start.add_argument("--wait", action="store_true", help="wait until it has ended, for up to --timeout-s")
    _conditions(start)
    verb(jobs, "list", "the jobs that a device has not forgotten, and the last of each schedule")
    for name, help_ in (("show", "where a job stands"), ("cancel", "have a job not done, or not gone on with")):
        verb(jobs, name, help_).add_argument("id")
    schedules = group("schedule", "what a device does by itself")
    adding = verb(schedules, "add", "add a schedule, or replace the one of this name")
    adding.add_argument("name")
    adding.add_argument("kind", choices=[kind.value for kind in Kind])
    adding.add_argument("--arg", nargs="+", action="extend", default=[], metavar="name=value", help="of the jobs")
    adding.add_argument("--bundle", type=Path, metavar="FILE", help="of `update`: put where devices find it, and meant")
    adding.add_argument("--release", type=int, metavar="N", help="of a bundle that nobody signed (the time)")
    adding.set_defaults(offer=None)
    due = adding.add_mutually_exclusive_group(required=True)
    due.add_argument("--cron", help="five fields, such as '0 3 * * *'")
    due.add_argument("--every-s", type=float, help="seconds between two jobs")
    adding.add_argument("--tz", help="time zone of --cron, such as Europe/Berlin (UTC)")
    adding.add_argument("--open-s", type=float, help="so long after its time a job may still start (300)")
    adding.add_argument("--jitter-s", type=float, help="each device is late by its own share of this (0)")
    adding.add_argument(
        "--misfire", choices=["skip", "run_once", "run_all"], help="what was missed is made up for (skip)"
    )
    adding.add_argument("--run-max", type=int, help="of run_all: for so many at most (3)")
    adding.add_argument("--not-before-s", type=float, help="Unix time from which it holds")
    adding.add_argument("--not-after-s", type=float, help="Unix time until which it holds")
    adding.add_argument("--limit-s", type=float, help="patience with a job once it runs (the kind's own)")
    _conditions(adding)
    drain = verb(verbs, "drain", "let a device begin no job any more, and wait until those it runs have ended")
    drain.add_argument("--undo", action="store_true", help="let it take jobs again")
    drain.set_defaults(action=None)
    verb(schedules, "list", "what a device does by itself")
    verb(schedules, "remove", "remove a schedule").add_argument("name")
    return parsers


def _conditions(parser: argparse.ArgumentParser) -> None:
    when = parser.add_argument_group("it starts only while")
    when.add_argument("--battery-above", type=float, metavar="FRAC", dest="battery_above_frac")
    when.add_argument("--battery-below", type=float, metavar="FRAC", dest="battery_below_frac")
    when.add_argument("--temp-below", type=float, metavar="C", dest="temp_below_c")
    when.add_argument("--link", choices=["any", "up", "unmetered"])
    when.add_argument("--idle", action="store_true", default=None)
    when.add_argument("--charging", action="store_true", default=None)


def run(args: argparse.Namespace) -> int:
    """Carry a verb out.

    Args:
        args: `args.verb` is one of those that `add` added.

    Returns:
        0 done, 1 refused or failed, 2 there is nothing, 75 no answer in time.

    Raises:
        ConfigError: something is wrong with what was asked for.
        LinkError: no broker in time.
    """
    with conversation(args) as talk:
        try:
            match args.verb, args.action:
                case "twin", "get":
                    return _show_twin(args, *talk.documents())
                case "twin", _:
                    changes = read_toml(args.setting, "setting")
                    return edit(args, talk, lambda settings: _changed(settings, changes, args.unset))
                case "job", "start":
                    return _start(args, talk)
                case "job", "cancel":
                    cancel = wire.JobCancel(id=named(args.id), issued_s=time.time())
                    talk.publish("job", "cancel", args.id, wire.encode(cancel))
                    return _show_job(args, talk.state(args.id, lambda state: state in ENDS), {"cancelled"})
                case "job", "show":
                    found = talk.jobs(named(args.id))
                    return _show_job(args, found[0] if found else None, None)
                case "job", _:
                    return _show_jobs(args, talk.jobs())
                case "drain", _:
                    return _drain(args, talk)
                case "schedule", "list":
                    return _show_schedules(args, *talk.documents())
                case "schedule", _:
                    return _edit_schedules(args, talk)
        except TimeoutError as error:
            print(clean(f"edgert: {error}"), file=sys.stderr)
            return RETRY_LATER
    raise ConfigError(f"no such verb: {args.verb} {args.action}")


def _drain(args: argparse.Namespace, talk: Talk) -> int:
    """Wish it, and listen until the device itself says that nothing runs."""
    code = edit(args, talk, lambda settings: {**settings, twin.DRAINED: not args.undo})
    if args.undo or code == ERROR:
        return code
    said = ""
    for told in talk.telemetry():
        jobs = told.status.get("jobs")
        if not isinstance(jobs, list):
            continue
        running = [str(job.get("id")) for job in jobs if isinstance(job, Mapping) and job.get("state") == "running"]
        if not running:
            return shown(args, {"drained": True}, f"{talk.device}: drained, nothing runs", OK)
        if said != (said := ", ".join(running)):
            print(clean(f"{talk.device}: {said} still run"), file=sys.stderr)
    return RETRY_LATER


def _changed(settings: dict[str, object], changes: Mapping[str, Any], unset: list[str]) -> Mapping[str, object]:
    """The settings after: maps are merged, everything else is replaced."""
    after = dict(settings)
    for key in unset:
        owner = next((known for known in twin.KEYS if key == known or key.startswith(known + ".")), None)
        inside = after.get(owner) if owner is not None else None
        if owner is None or owner not in after:
            raise ConfigError(f"--unset {key}: it is not set; there is {', '.join(after) or 'nothing'}")
        if key == owner:
            del after[owner]
        elif isinstance(inside, dict):
            after[owner] = {name: value for name, value in inside.items() if name != key[len(owner) + 1 :]}
    left: dict[str, Any] = json.loads(json.dumps(changes, default=str))
    for known in twin.KEYS:
        at, parts = left, known.split(".")
        for part in parts[:-1]:
            at = at.get(part, {}) if isinstance(at, dict) else {}
        if isinstance(at, dict) and parts[-1] in at:
            value, former = at.pop(parts[-1]), after.get(known)
            both = isinstance(value, dict) and isinstance(former, dict)
            after[known] = {**former, **value} if both else value  # type: ignore[dict-item]  # both are maps
    strange = [name for name, value in left.items() if value != {}]
    if strange:
        raise ConfigError(f"{', '.join(strange)}: cannot be set from afar; there is {', '.join(twin.KEYS)}")
    return after


def _edit_schedules(args: argparse.Namespace, talk: Talk) -> int:
    name = named(args.name)
    if args.action == "add":
        told = {
            "kind": args.kind,
            "args": _args(args),
            "when": _when(args),
            "timeout_s": args.limit_s,
            **{key: getattr(args, key) for key in Schedule.__struct_fields__ if hasattr(args, key) and key != "kind"},
        }
        told = {key: value for key, value in told.items() if value not in (None, {})}
        try:
            read = msgspec.convert(told, Schedule)
        except msgspec.ValidationError as error:
            raise ConfigError(f"schedule {name}: {error}") from error
        if why := schedule.fault(name, read):
            raise ConfigError(f"schedule {name}: {why}")
        return edit(args, talk, lambda settings: _with_schedules(settings, lambda all_: {**all_, name: told}))

    def without(all_: dict[str, object]) -> dict[str, object]:
        return {other: each for other, each in all_.items() if other != name}

    return edit(args, talk, lambda settings: _with_schedules(settings, without))


def _with_schedules(
    settings: dict[str, object], change: Callable[[dict[str, object]], dict[str, object]]
) -> dict[str, object]:
    former = settings.get(twin.SCHEDULES)
    return {**settings, twin.SCHEDULES: change(dict(former) if isinstance(former, dict) else {})}


def _start(args: argparse.Namespace, talk: Talk) -> int:
    order = wire.JobOrder(
        id=named(args.id or secrets.token_hex(8)),
        kind=args.kind,
        args=_args(args),
        issued_s=time.time(),
        valid_s=args.valid_s,
        timeout_s=args.limit_s,
        when=_when(args),
    )
    try:
        when = msgspec.convert(order.when, When)
    except msgspec.ValidationError as error:
        raise ConfigError(f"conditions: {error}") from error
    judged = ledger.Order(
        id=order.id, kind=order.kind, args=order.args, valid_s=order.valid_s, timeout_s=order.timeout_s, when=when
    )
    if why := ledger.refusal(judged):
        raise ConfigError(f"a job that no device could do: {why}")
    talk.listen("job", "state", order.id)  # a refusal that nobody remembers is said once
    talk.publish("job", "order", order.id, wire.encode(order))
    wanted = ENDS if args.wait else None
    state = talk.state(order.id, lambda state: state in wanted if wanted else state not in WAITS)
    return _show_job(args, state, {"done"} if args.wait else {"scheduled", "running", "done"})


def _args(args: argparse.Namespace) -> dict[str, Any]:
    """What a job is told; of an `update` with a bundle all of it, once the bundle is where devices find it."""
    told = read_toml(args.arg, "--arg")
    if args.bundle is None:
        return told
    if args.kind != Kind.UPDATE.value:
        raise ConfigError(f"--bundle: only a job of kind {Kind.UPDATE.value} takes one")
    from edgert.programs.operator import Operator, make_offer

    try:
        data = args.bundle.read_bytes()
    except OSError as error:
        raise store_error(error, "read", args.bundle) from error
    with contextlib.closing(Operator(args.broker, args.fleet, None, args.timeout_s)) as operator:
        if args.offer is None:  # one version for all devices that are meant, and one way of the file to the broker
            offer = make_offer(data, id_="update", release=args.release, url=str(told.get("url", "")))
            operator.publish_bundle(offer, data)
            args.offer = offer
        operator.withdraw([args.device])  # an offer that waits there would come between with every connection
    kept = ("sha256", "size_bytes", "version", "chunk_bytes", "name")
    return {**{name: getattr(args.offer, name) for name in kept}, "hashes": args.offer.hashes.hex(), **told}


def _when(args: argparse.Namespace) -> dict[str, object]:
    return {key: getattr(args, key) for key in When.__struct_fields__ if getattr(args, key) is not None}


def _show_twin(args: argparse.Namespace, desired: wire.TwinDesired | None, reported: wire.TwinReported | None) -> int:
    if desired is None and reported is None:
        return shown(args, {}, f"nothing is known of a twin of {args.fleet}/{args.device}", NOTHING_TO_DO)
    taken = None if desired is None else twin.settled(desired, reported)
    document = {"desired": msgspec.to_builtins(desired), "reported": msgspec.to_builtins(reported), "taken": taken}
    wished = {} if desired is None else desired.settings
    in_force = {} if reported is None else reported.settings
    refused = {} if reported is None else reported.refused
    rows = [
        (key, json.dumps(wished[key], default=str) if key in wished else "", json.dumps(in_force.get(key), default=str))
        for key in twin.KEYS
        if key in wished or key in in_force
    ]
    words = table(("setting", "wished", "in force"), rows)
    words += "".join("\n" + clean(f"refused {key}: {why}") for key, why in refused.items())
    if taken is not True and desired is not None:
        words += f"\nthe device has not taken version {desired.version} yet"
    return shown(args, document, words, OK)


def _show_job(args: argparse.Namespace, state: wire.JobState | None, good: set[str] | None) -> int:
    if state is None:
        return shown(args, {}, "no such job", NOTHING_TO_DO)
    result = [f"  {name}: {json.dumps(value, default=str)}" for name, value in state.result.items()]
    words = "\n".join(
        [
            clean(f"{state.id} {state.kind or '-'}: {state.state}{f', {state.why}' if state.why else ''}"),
            *(line if len(line) <= RESULT_LETTERS else f"{line[:RESULT_LETTERS]}… (--json)" for line in result),
        ]
    )
    return shown(args, msgspec.to_builtins(state), words, OK if good is None or state.state in good else ERROR)


def _show_jobs(args: argparse.Namespace, jobs: list[wire.JobState]) -> int:
    rows = [(job.id, job.kind or "-", job.state, job.origin or "-", job.why) for job in jobs]
    words = table(("job", "kind", "state", "schedule", "why"), rows) if rows else "no jobs"
    return shown(args, [msgspec.to_builtins(job) for job in jobs], words, OK if jobs else NOTHING_TO_DO)


def _show_schedules(
    args: argparse.Namespace, desired: wire.TwinDesired | None, reported: wire.TwinReported | None
) -> int:
    wished = {} if desired is None else desired.settings.get(twin.SCHEDULES, {})
    in_force = {} if reported is None else reported.settings.get(twin.SCHEDULES, {})
    refused = {} if reported is None else reported.refused
    rows, document = [], {}
    for name, each in (wished if isinstance(wished, dict) else {}).items():
        if not isinstance(each, Mapping):  # what lies at the broker is whatever somebody put there
            continue
        why = refused.get(f"{twin.SCHEDULES}.{name}", "")
        state = "refused" if why else "in force" if isinstance(in_force, dict) and name in in_force else "not taken yet"
        document[name] = {"schedule": each, "state": state, "why": why}
        due = each.get("cron") or f"every {each.get('every_s')} s"
        rows.append((name, str(each.get("kind")), f"{due} {each.get('tz', '')}".strip(), state, why))
    words = table(("schedule", "kind", "due", "state", "why"), rows) if rows else "no schedules"
    return shown(args, document, words, OK if rows else NOTHING_TO_DO)
