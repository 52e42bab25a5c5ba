"""`edgert fleet twin|job|schedule`: what a device should be, should do, and should do by itself."""

from __future__ import annotations

import argparse
import json
import secrets
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import msgspec

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER
from edgert.cli.key import KEPT_S, WAITING_S, unwrapped, vouched
from edgert.errors import ConfigError, LinkError, MessageError
from edgert.fleet import ledger, schedule, twin
from edgert.fleet.kinds import Kind
from edgert.fleet.schedule import Schedule
from edgert.fleet.when import When
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received

QUIET_S = 1.0
"""What the broker keeps has come when nothing more comes for so long: MQTT has no word for that."""
EDITS = 3
"""Times that a document is written again because somebody else wrote a greater one meanwhile."""
ENDS = frozenset(state.value for state in ledger.ENDS)
WAITS = ("received",)


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
    setting.add_argument("setting", nargs="*", metavar="name=value", help="TOML, such as 'labels.site=\"north\"'")
    setting.add_argument("--unset", nargs="+", default=[], metavar="NAME", help="leave it to the configuration again")
    jobs = group("job", "something to do once, however often it is said")
    start = verb(jobs, "start", "have a device do something")
    start.add_argument("kind", choices=[kind.value for kind in Kind])
    start.add_argument("--arg", nargs="+", default=[], metavar="name=value", help="TOML, such as for_s=600")
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
    adding.add_argument("--arg", nargs="+", default=[], metavar="name=value", help="of the jobs, TOML")
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
    with _talk(args) as talk:
        try:
            match args.verb, args.action:
                case "twin", "get":
                    return _show_twin(args, *talk.documents())
                case "twin", _:
                    changes = _toml(args.setting, "setting")
                    return _edit(args, talk, lambda settings: _changed(settings, changes, args.unset))
                case "job", "start":
                    return _start(args, talk)
                case "job", "cancel":
                    cancel = wire.JobCancel(id=_named(args.id), issued_s=time.time())
                    talk.publish("job", "cancel", args.id, wire.encode(cancel))
                    return _show_job(args, talk.state(args.id, lambda state: state in ENDS), {"cancelled"})
                case "job", "show":
                    found = talk.jobs(_named(args.id))
                    return _show_job(args, found[0] if found else None, None)
                case "job", _:
                    return _show_jobs(args, talk.jobs())
                case "schedule", "list":
                    return _show_schedules(args, *talk.documents())
                case "schedule", _:
                    return _edit_schedules(args, talk)
        except TimeoutError as error:
            print(f"edgert: {error}", file=sys.stderr)
            return RETRY_LATER
    raise ConfigError(f"no such verb: {args.verb} {args.action}")


Heard = wire.TwinDesired | wire.TwinReported | wire.JobState
Reader = Callable[[bytes], Heard]


def _desired(payload: bytes) -> wire.TwinDesired:
    return wire.decode(unwrapped(payload), wire.TwinDesired)[0]


def _reported(payload: bytes) -> wire.TwinReported:
    return wire.decode(payload, wire.TwinReported)[0]


def _state(payload: bytes) -> wire.JobState:
    return wire.decode(payload, wire.JobState)[0]


class _Talk:
    """A conversation with one device, by way of the broker.

    Blocks: every method, up to `--timeout-s`.
    """

    def __init__(self, args: argparse.Namespace, mqtt: Mqtt) -> None:
        self._args, self._mqtt = args, mqtt
        self._poller = select.poll()
        self._poller.register(mqtt.fileno(), select.POLLIN)
        self._deadline_s = time.monotonic() + args.timeout_s
        self.device = f"{args.fleet}/{args.device}"

    def topic(self, channel: str, kind: str, id_: str = "-") -> str:
        return str(wire.Topic(self._args.fleet, self._args.device, channel, kind, id_))

    def listen(self, channel: str, kind: str, id_: str) -> None:
        self._mqtt.subscribe([(self.topic(channel, kind, id_), 1)])

    def publish(self, channel: str, kind: str, id_: str, payload: bytes, *, retain: bool = False) -> None:
        payload = vouched(self._args, payload, KEPT_S if retain else WAITING_S)
        while not self._mqtt.publish(
            self.topic(channel, kind, id_), payload, qos=1, retain=retain, content_type=wire.CONTENT_TYPE
        ):
            time.sleep(0.05)
            if time.monotonic() > self._deadline_s:
                raise TimeoutError(f"the broker took nothing within {self._args.timeout_s:g} s")

    def wait_up(self) -> None:
        """Until the broker accepted us.

        Raises:
            LinkError: not in time.
        """
        why = f"no broker at {self._args.broker.rpartition('@')[2]} within {self._args.timeout_s:g} s"
        for event in self._events(self._deadline_s):
            if isinstance(event, LinkUp):
                return
            if isinstance(event, LinkDown):
                why = f"no link to the broker: {event.fault or event.reason}"
        raise LinkError(why)

    def _events(self, until_s: float) -> Iterator[object]:
        while (left_s := min(until_s, self._deadline_s) - time.monotonic()) > 0:
            self._poller.poll(1000 * min(left_s, 60.0))
            yield from self._mqtt.events()

    def _received(self, readers: Mapping[str, Reader], *, quiet: bool) -> Iterator[Heard]:
        """What comes under these filters; `quiet` ends it when what the broker keeps has come."""
        self._mqtt.subscribe([(each, 1) for each in readers])
        until_s = time.monotonic() + QUIET_S if quiet else self._deadline_s
        while (left_s := min(until_s, self._deadline_s) - time.monotonic()) > 0:
            for event in self._events(time.monotonic() + left_s):
                if not isinstance(event, Received) or not event.payload:
                    continue
                read = next((readers[each] for each in readers if event.topic.startswith(each.removesuffix("+"))), None)
                if read is None:
                    continue
                until_s = max(until_s, time.monotonic() + QUIET_S / 2) if quiet else until_s
                try:
                    yield read(event.payload)
                except MessageError as error:
                    print(f"edgert: {event.topic}: {error}", file=sys.stderr)

    def documents(self) -> tuple[wire.TwinDesired | None, wire.TwinReported | None]:
        """What the broker keeps of the twin."""
        desired, reported = None, None
        readers: dict[str, Reader] = {
            self.topic("twin", "desired"): _desired,
            self.topic("twin", "reported"): _reported,
        }
        for document in self._received(readers, quiet=True):
            match document:
                case wire.TwinDesired():
                    desired = document
                case wire.TwinReported():
                    reported = document
        return desired, reported

    def answer(self, desired: wire.TwinDesired) -> wire.TwinReported | None:
        """What the device makes of a document; None when it answers a greater one.

        Raises:
            TimeoutError: it says nothing in time.
        """
        for reported in self._received({self.topic("twin", "reported"): _reported}, quiet=False):
            if isinstance(reported, wire.TwinReported):
                taken = twin.settled(desired, reported)
                if taken is not None:
                    return reported if taken else None
        raise TimeoutError(
            f"no answer of {self.device} within {self._args.timeout_s:g} s: the wish waits at the broker"
        )

    def state(self, id_: str, enough: Callable[[str], bool]) -> wire.JobState:
        """Where a job stands, once that is enough to know.

        Raises:
            TimeoutError: that did not come about in time.
        """
        last = "nothing"
        for state in self._received({self.topic("job", "state", id_): _state}, quiet=False):
            if isinstance(state, wire.JobState):
                if enough(state.state):
                    return state
                last = state.state
        raise TimeoutError(f"job {id_} of {self.device}: {last} within {self._args.timeout_s:g} s")

    def jobs(self, id_: str = "+") -> list[wire.JobState]:
        """What the broker keeps of a device's jobs."""
        found = self._received({self.topic("job", "state", id_): _state}, quiet=True)
        return list({state.id: state for state in found if isinstance(state, wire.JobState)}.values())


@contextmanager
def _talk(args: argparse.Namespace) -> Iterator[_Talk]:
    if not args.timeout_s > 0:
        raise ConfigError(f"--timeout-s {args.timeout_s:g}: it must be above 0")
    with Mqtt(args.broker, f"edgert-fleet-{secrets.token_hex(8)}", session_expiry_s=0) as mqtt:
        talk = _Talk(args, mqtt)
        talk.wait_up()
        yield talk


def _edit(args: argparse.Namespace, talk: _Talk, change: Callable[[dict[str, object]], Mapping[str, object]]) -> int:
    """Write a greater document until the device has taken it."""
    desired, reported = talk.documents()
    before = {} if desired is None else desired.settings
    for _ in range(EDITS):
        wanted = twin.edit(desired, reported, change, time.time())
        if desired is not None and wanted.settings == before and twin.settled(desired, reported):
            return _shown(
                args, {"epoch": desired.epoch, "version": desired.version}, "nothing to change", NOTHING_TO_DO
            )
        talk.publish("twin", "desired", "-", wire.encode(wanted), retain=True)
        told = talk.answer(wanted)
        if told is not None:
            touched = {key for key in {*before, *wanted.settings} if before.get(key) != wanted.settings.get(key)}
            refused = {
                key: why for key, why in told.refused.items() if key.partition(".")[0] in touched or key in touched
            }
            document = {"epoch": told.epoch, "version": told.version, "settings": told.settings, "refused": refused}
            words = [f"{key} refused: {why}" for key, why in refused.items()] or [
                f"{talk.device}: version {told.version}"
            ]
            return _shown(args, document, "\n".join(words), ERROR if refused else OK)
        desired, reported = talk.documents()
    raise TimeoutError(f"somebody else keeps writing wishes for {talk.device}: try again")


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


def _edit_schedules(args: argparse.Namespace, talk: _Talk) -> int:
    name = _named(args.name)
    if args.action == "add":
        told = {
            "kind": args.kind,
            "args": _toml(args.arg, "--arg"),
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
        return _edit(args, talk, lambda settings: _with_schedules(settings, lambda all_: {**all_, name: told}))

    def without(all_: dict[str, object]) -> dict[str, object]:
        return {other: each for other, each in all_.items() if other != name}

    return _edit(args, talk, lambda settings: _with_schedules(settings, without))


def _with_schedules(
    settings: dict[str, object], change: Callable[[dict[str, object]], dict[str, object]]
) -> dict[str, object]:
    former = settings.get(twin.SCHEDULES)
    return {**settings, twin.SCHEDULES: change(dict(former) if isinstance(former, dict) else {})}


def _start(args: argparse.Namespace, talk: _Talk) -> int:
    order = wire.JobOrder(
        id=_named(args.id or secrets.token_hex(8)),
        kind=args.kind,
        args=_toml(args.arg, "--arg"),
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


def _when(args: argparse.Namespace) -> dict[str, object]:
    return {key: getattr(args, key) for key in When.__struct_fields__ if getattr(args, key) is not None}


def _toml(pairs: list[str], what: str) -> dict[str, Any]:
    try:
        return tomllib.loads("\n".join(pairs))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}; write name=value as in TOML, text in quotes") from error


def _named(name: str) -> str:
    if not wire.is_name(name):
        raise ConfigError(f"{name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    return name


def _shown(args: argparse.Namespace, document: object, words: str, code: int) -> int:
    print(json.dumps(document, default=lambda value: value.hex()) if args.json else words)
    return code


def _show_twin(args: argparse.Namespace, desired: wire.TwinDesired | None, reported: wire.TwinReported | None) -> int:
    if desired is None and reported is None:
        return _shown(args, {}, f"nothing is known of a twin of {args.fleet}/{args.device}", NOTHING_TO_DO)
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
    words = _table(("setting", "wished", "in force"), rows)
    words += "".join(f"\nrefused {key}: {why}" for key, why in refused.items())
    if taken is not True and desired is not None:
        words += f"\nthe device has not taken version {desired.version} yet"
    return _shown(args, document, words, OK)


def _show_job(args: argparse.Namespace, state: wire.JobState | None, good: set[str] | None) -> int:
    if state is None:
        return _shown(args, {}, "no such job", NOTHING_TO_DO)
    words = f"{state.id} {state.kind or '-'}: {state.state}"
    words += (f", {state.why}" if state.why else "") + (
        f"\n{json.dumps(state.result, default=str)}" if state.result else ""
    )
    return _shown(args, msgspec.to_builtins(state), words, OK if good is None or state.state in good else ERROR)


def _show_jobs(args: argparse.Namespace, jobs: list[wire.JobState]) -> int:
    rows = [(job.id, job.kind or "-", job.state, job.origin or "-", job.why) for job in jobs]
    words = _table(("job", "kind", "state", "schedule", "why"), rows) if rows else "no jobs"
    return _shown(args, [msgspec.to_builtins(job) for job in jobs], words, OK if jobs else NOTHING_TO_DO)


def _show_schedules(
    args: argparse.Namespace, desired: wire.TwinDesired | None, reported: wire.TwinReported | None
) -> int:
    wished = {} if desired is None else desired.settings.get(twin.SCHEDULES, {})
    in_force = {} if reported is None else reported.settings.get(twin.SCHEDULES, {})
    refused = {} if reported is None else reported.refused
    rows, document = [], {}
    for name, each in (wished if isinstance(wished, dict) else {}).items():
        why = refused.get(f"{twin.SCHEDULES}.{name}", "")
        state = "refused" if why else "in force" if isinstance(in_force, dict) and name in in_force else "not taken yet"
        document[name] = {"schedule": each, "state": state, "why": why}
        due = each.get("cron") or f"every {each.get('every_s')} s"
        rows.append((name, str(each.get("kind")), f"{due} {each.get('tz', '')}".strip(), state, why))
    words = _table(("schedule", "kind", "due", "state", "why"), rows) if rows else "no schedules"
    return _shown(args, document, words, OK if rows else NOTHING_TO_DO)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )
