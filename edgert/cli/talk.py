"""A conversation with one device by way of its broker, and how its words are shown: what all verbs of a fleet share."""

from __future__ import annotations

import argparse
import json
import os
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

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK
from edgert.cli.key import KEPT_S, VALID_S, WAITING_S, unwrapped, vouched
from edgert.errors import ConfigError, LinkError, MessageError
from edgert.fleet import twin
from edgert.ports import screen
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Received

QUIET_S = 1.0
"""What the broker keeps has come when nothing more comes for so long: MQTT has no word for that."""
EDITS = 3
"""Times that a document is written again because somebody else wrote a greater one meanwhile."""
EXPIRY_S = 60
"""A device that is away for longer never hears of a command: nobody waits for its reply by then."""

Heard = wire.TwinDesired | wire.TwinReported | wire.JobState | wire.CommandReply | wire.Telemetry
Reader = Callable[[bytes], Heard]


def _desired(payload: bytes) -> wire.TwinDesired:
    return wire.decode(unwrapped(payload), wire.TwinDesired)[0]


def _reported(payload: bytes) -> wire.TwinReported:
    return wire.decode(payload, wire.TwinReported)[0]


def _state(payload: bytes) -> wire.JobState:
    return wire.decode(payload, wire.JobState)[0]


def _telemetry(payload: bytes) -> wire.Telemetry:
    return wire.decode(payload, wire.Telemetry)[0]


def _reply(payload: bytes) -> wire.CommandReply:
    return wire.decode(payload, wire.CommandReply)[0]


class Talk:
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
        """Of this device."""
        return str(wire.Topic(self._args.fleet, self._args.device, channel, kind, id_))

    def listen(self, channel: str, kind: str, id_: str) -> None:
        """Hear what comes from now on, before anything is asked."""
        self._mqtt.subscribe([(self.topic(channel, kind, id_), 1)])

    def publish(
        self,
        channel: str,
        kind: str,
        id_: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int | None = None,
    ) -> None:
        """Sign where there are keys, and say it as soon as the broker takes it.

        Raises:
            TimeoutError: it takes nothing in time.
        """
        valid_s = KEPT_S if retain else WAITING_S if channel == "job" else VALID_S
        payload = vouched(self._args, payload, valid_s)
        topic = self.topic(channel, kind, id_)
        while not self._mqtt.publish(
            topic, payload, qos=1, retain=retain, expiry_s=expiry_s, content_type=wire.CONTENT_TYPE
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
                    print(clean(f"edgert: {event.topic}: {error}"), file=sys.stderr)

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

    def command(self, verb: str, id_: str, payload: bytes) -> wire.CommandReply:
        """Have a device obey, or say why not.

        Raises:
            TimeoutError: it says nothing in time.
        """
        self.listen("tele", "reply", id_)
        self.publish("cmd", verb, "-", payload, expiry_s=EXPIRY_S)
        for reply in self._received({self.topic("tele", "reply", id_): _reply}, quiet=False):
            if isinstance(reply, wire.CommandReply):
                return reply
        raise TimeoutError(f"no reply of {self.device} within {self._args.timeout_s:g} s")

    def telemetry(self) -> Iterator[wire.Telemetry]:
        """Status documents of the device, as they come.

        Raises:
            TimeoutError: time is over.
        """
        for told in self._received({self.topic("tele", "device"): _telemetry}, quiet=False):
            if isinstance(told, wire.Telemetry):
                yield told
        raise TimeoutError(f"{self.device} did not say so within {self._args.timeout_s:g} s")

    def jobs(self, id_: str = "+") -> list[wire.JobState]:
        """What the broker keeps of a device's jobs."""
        found = self._received({self.topic("job", "state", id_): _state}, quiet=True)
        return list({state.id: state for state in found if isinstance(state, wire.JobState)}.values())


@contextmanager
def conversation(args: argparse.Namespace) -> Iterator[Talk]:
    """Connect; `args` has `broker`, `fleet`, `device`, `keys` and `timeout_s`.

    Raises:
        ConfigError: the patience or the url is wrong.
        LinkError: no broker in time.
    """
    if not args.timeout_s > 0:
        raise ConfigError(f"--timeout-s {args.timeout_s:g}: it must be above 0")
    with Mqtt(args.broker, f"edgert-fleet-{secrets.token_hex(8)}", session_expiry_s=0) as mqtt:
        talk = Talk(args, mqtt)
        talk.wait_up()
        yield talk


def edit(args: argparse.Namespace, talk: Talk, change: Callable[[dict[str, object]], Mapping[str, object]]) -> int:
    """Write a greater document until the device has taken it, and show what it says.

    Returns:
        0; 1 where it refuses some of it, 2 where nothing was to be changed.

    Raises:
        TimeoutError: it says nothing in time, or somebody else keeps writing.
    """
    desired, reported = talk.documents()
    before = {} if desired is None else desired.settings
    for _ in range(EDITS):
        wanted = twin.edit(desired, reported, change, time.time())
        if desired is not None and wanted.settings == before and twin.settled(desired, reported):
            return shown(args, {"epoch": desired.epoch, "version": desired.version}, "nothing to change", NOTHING_TO_DO)
        talk.publish("twin", "desired", "-", wire.encode(wanted), retain=True)
        told = talk.answer(wanted)
        if told is not None:
            touched = {key for key in {*before, *wanted.settings} if before.get(key) != wanted.settings.get(key)}
            refused = {
                key: why for key, why in told.refused.items() if key.partition(".")[0] in touched or key in touched
            }
            document = {"epoch": told.epoch, "version": told.version, "settings": told.settings, "refused": refused}
            words = [clean(f"{key} refused: {why}") for key, why in refused.items()] or [
                f"{talk.device}: version {told.version}"
            ]
            return shown(args, document, "\n".join(words), ERROR if refused else OK)
        desired, reported = talk.documents()
    raise TimeoutError(f"somebody else keeps writing wishes for {talk.device}: try again")


def read_toml(pairs: list[str], what: str) -> dict[str, Any]:
    """Names and values as in a configuration file; what is none of its values is text, also without quotes.

    Raises:
        ConfigError: they are none.
    """
    try:
        return tomllib.loads("\n".join(_quoted(pair) for pair in pairs))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}; write name=value, such as labels.site=north") from error


def _quoted(pair: str) -> str:
    name, sign, value = pair.partition("=")
    try:
        tomllib.loads(f"x={value}")
    except ValueError:
        return (
            f"{name}{sign}{json.dumps(value.strip(), ensure_ascii=False)}"
            if sign and value.strip().isprintable()
            else pair
        )
    return pair


def named(name: str) -> str:
    """The name.

    Raises:
        ConfigError: it could not stand in a topic.
    """
    if not wire.is_name(name):
        raise ConfigError(f"{name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    return name


def shown(args: argparse.Namespace, document: object, words: str, code: int) -> int:
    """Print the words, or with `--json` the document, a line a device where several are meant; the code comes back."""
    if args.json and getattr(args, "many", False):
        document = {"device": args.device, "told": document}
    print(json.dumps(document, default=_plain) if args.json else words)
    return code


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def clean(text: str) -> str:
    """Text of a device's, without what could command a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Rows under each other; on a terminal no wider than it is, in a pipe whole."""
    rows = [tuple(map(clean, row)) for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    if sys.stdout.isatty():
        columns = os.get_terminal_size().columns or 80  # a serial line may not know
        lines = [line if len(line) <= columns else f"{line[: columns - 1]}…" for line in lines]
        lines[0] = screen.paint(lines[0], "bold")
    return "\n".join(lines)
