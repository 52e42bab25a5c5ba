"""`edgert fleet export`: a fleet's events and telemetry, for files and for other systems."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgert import wire
from edgert.cli import NOTHING_TO_DO, OK
from edgert.cli.look import options
from edgert.cli.talk import named
from edgert.errors import ConfigError, MessageError
from edgert.fleet import homeassistant, roster
from edgert.fleet.session import Collector, collect
from edgert.ports.collected import Rows
from edgert.ports.exporters import Otlp, Prometheus
from edgert.ports.onlooker import Onlooker

EVENT = ("device", "stream", "seq", "at_s", "name", "detail")
TELEMETRY = ("at_s", "device", "state", "version", "task", "labels", "policy", "jobs", "why", *roster.FIGURES)
TURN_S = 0.5
Row = dict[str, Any]


def export(argv: list[str]) -> int:
    """Collect, and show to others, until Ctrl-C or for a while.

    Returns:
        0; 2 when nothing was heard of anybody.

    Raises:
        ConfigError: names, files, ports or urls are wrong, or there is nothing to do.
        UsageError: another process collects into the same file.
        LinkError: no broker in time.
        StoreError: a file cannot be written.
    """
    args = _parse(argv)
    with contextlib.ExitStack() as stack:
        events: _Events | None = None
        telemetry: Rows | None = None
        shows: list[Callable[[Sequence[Row]], None]] = []
        if args.events:
            events = _Events(args.events, args.acknowledge)
            stack.callback(events.close)
        if args.telemetry:
            telemetry = Rows(args.telemetry, TELEMETRY)
            stack.callback(telemetry.close)
        if args.prometheus or args.textfile:
            prometheus = Prometheus(args.fleet, port=args.prometheus, textfile=args.textfile)
            stack.callback(prometheus.close)
            shows.append(prometheus.show)
        if args.otlp:
            otlp = Otlp(args.fleet, args.otlp, args.every_s)
            stack.callback(otlp.close)
            shows.append(otlp.show)
        will = (homeassistant.topic(args.fleet, homeassistant.EXPORTER, "availability"), homeassistant.OFFLINE)
        seen = stack.enter_context(
            Onlooker(args.broker, args.fleet, patience_s=args.timeout_s, will=will if args.home_assistant else None)
        )
        if args.home_assistant:
            shows.append(_Home(seen, args.fleet, args.home_assistant).show)
            stack.callback(seen.say, *will)  # a broker forgets the will of who leaves in good order
        _run(args, seen, events, telemetry, shows)
        return OK if seen.entries else NOTHING_TO_DO


def _run(
    args: argparse.Namespace,
    seen: Onlooker,
    events: _Events | None,
    telemetry: Rows | None,
    shows: Sequence[Callable[[Sequence[Row]], None]],
) -> None:
    begun_s = time.monotonic()
    end_s = begun_s + args.for_s if args.for_s else None
    next_s = begun_s + min(args.every_s, args.for_s or args.every_s) / 2
    heard: set[str] = set()
    refused = False
    while end_s is None or time.monotonic() < end_s:
        for told in seen.turn(TURN_S):
            if isinstance(told.said, wire.Telemetry):
                heard.add(told.device)
            elif isinstance(told.said, wire.Event) and events is not None:
                events.take(told.device, told.said)
        if events is not None:
            events.settle(seen)
        if time.monotonic() < next_s:
            continue
        next_s = time.monotonic() + args.every_s
        rows = seen.rows()
        for show in shows:
            show(rows)
        if telemetry is not None:
            telemetry.append(
                {**row, "at_s": seen.entries[row["device"]].at_s} for row in rows if row["device"] in heard
            )
        heard.clear()
        if not refused and seen.faults().get("publish-refused"):
            refused = True
            print("edgert: the broker refuses to take some of this: see its access list", file=sys.stderr)


class _Events:
    """Events on their way into a file, each once."""

    def __init__(self, path: Path, acknowledge: bool) -> None:
        self._file, self._acknowledge = Rows(path, EVENT, noted=acknowledge), acknowledge
        self._collectors: dict[str, Collector] = dict(self._file.collectors)
        self._rows: list[Row] = []
        self._acks = {
            (device, stream): wanted - 1
            for device, collector in self._collectors.items()
            for stream, wanted in collector.streams.items()
        }

    def take(self, device: str, event: wire.Event) -> None:
        """One came, perhaps again."""
        try:
            collector, deliver, ack = collect(
                self._collectors.get(device, Collector()), event.stream, event.first, event.seq
            )
        except MessageError:
            return  # numbers that cannot be true
        self._collectors[device] = collector
        if deliver:
            self._rows.append({"device": device, **{name: getattr(event, name) for name in EVENT[1:]}})
        self._acks[device, event.stream] = ack

    def settle(self, seen: Onlooker) -> None:
        """Put on the disk what came, and then say that it is there."""
        if self._rows:
            self._file.append(self._rows, {row["device"]: self._collectors[row["device"]] for row in self._rows})
            self._rows.clear()
        if self._acknowledge:
            for (device, stream), up_to in self._acks.items():
                seen.publish(device, "cmd", "ack", wire.encode(wire.EventAck(stream=stream, up_to=up_to)))
        self._acks.clear()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _Home:
    """What Home Assistant is told, where it is news."""

    def __init__(self, seen: Onlooker, fleet: str, prefix: str) -> None:
        self._seen, self._fleet, self._prefix = seen, fleet, prefix
        self._said: dict[str, bytes] = {}
        self._links = seen.links

    def show(self, rows: Sequence[Row]) -> None:
        """Say what is not said yet; over a new link everything, as nobody knows what came of the last words."""
        if self._links != self._seen.links:
            self._links = self._seen.links
            self._said.clear()
        # Each time: the will of one that was here before may come at any moment, and it says that nobody is.
        self._seen.say(homeassistant.topic(self._fleet, homeassistant.EXPORTER, "availability"), homeassistant.ONLINE)
        told: dict[str, bytes] = {}
        for row in rows:
            told |= homeassistant.discovery(self._fleet, row, self._prefix)
            told |= homeassistant.values(self._fleet, row)
        for topic, payload in told.items():
            if self._said.get(topic) != payload and self._seen.say(topic, payload):
                self._said[topic] = payload


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgert fleet export",
        description="Collect a fleet's events and telemetry into files, or show them to other systems.",
    )
    options(parser)
    parser.add_argument("--events", type=Path, metavar="FILE", help=".jsonl or .csv: every event, once")
    parser.add_argument(
        "--acknowledge",
        action="store_true",
        help="be the fleet's collector: devices forget events that are in the file; one at a time",
    )
    parser.add_argument("--telemetry", type=Path, metavar="FILE", help=".jsonl or .csv: a row a device each --every-s")
    parser.add_argument("--prometheus", metavar="[HOST:]PORT", help="to be scraped there")
    parser.add_argument("--textfile", type=Path, metavar="FILE", help=".prom, for node_exporter's textfile collector")
    parser.add_argument("--otlp", metavar="URL", help="of an OpenTelemetry collector, http://HOST:4318")
    parser.add_argument(
        "--home-assistant",
        nargs="?",
        const=homeassistant.PREFIX,
        metavar="PREFIX",
        help=f"have Home Assistant find the devices ({homeassistant.PREFIX})",
    )
    parser.add_argument("--every-s", type=float, default=15.0, help="between two looks (15)")
    parser.add_argument("--for-s", type=float, default=0.0, help="for so long (until Ctrl-C)")
    args = parser.parse_args(argv)
    named(args.fleet)
    targets = (args.events, args.telemetry, args.prometheus, args.textfile, args.otlp, args.home_assistant)
    if not any(targets):
        raise ConfigError("nothing to export to: --events, --telemetry, --prometheus, --textfile, --otlp, ...")
    if args.acknowledge and not args.events:
        raise ConfigError("--acknowledge: devices forget what is acknowledged; name a file with --events")
    if not args.every_s > 0 or not args.for_s >= 0 or not args.timeout_s > 0:
        raise ConfigError("--every-s, --for-s and --timeout-s are seconds")
    return args
