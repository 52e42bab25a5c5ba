"""An edge or cloud node: runs the models of devices that would rather not, over MQTT. Any number of them share a place.

A node takes a question only when it can answer it in time, and says at once, by name, when it cannot: the device then
falls back on a model of its own. Nodes of one place are one shared subscription, so they must offer the same models.
What a node offers and how busy it is, it says in a retained message that expires with it.
"""

from __future__ import annotations

import os

from edgert.programs import blas

os.environ.update(blas.environment(os.environ))  # before numpy; replicas, not threads, are how nodes scale

import argparse
import contextlib
import json
import logging
import re
import secrets
import select
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, get_args

import numpy as np

from edgert import wire
from edgert.errors import ConfigError, MessageError, StoreError, UsageError
from edgert.inference import REFUSALS
from edgert.knowledge.turns import Allowances
from edgert.nets import F32
from edgert.offload.admission import Queue
from edgert.offload.space import Place
from edgert.ports.link import drain as drain_wakes
from edgert.ports.link import wake_pair
from edgert.ports.metrics import Exposition, Metric, Sample, render
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Published, Received
from edgert.ports.process import Stopping, run_program, usage
from edgert.ports.runtime import Kind
from edgert.ports.runtime import model as models
from edgert.ports.signing import read_keys
from edgert.ports.store import write_atomic
from edgert.ports.variants import read_variant
from edgert.programs import replica

REMOTE = tuple(place for place in get_args(Place) if place != "device")
BACKLOG_BYTES = 16 * wire.MAX_PAYLOAD_BYTES
ITEM_BYTES = 1600
"""Memory of a question that waits, beside its payload."""
WAITING_EACH = 16
"""Questions of one device that may wait; those beyond are refused."""
DEVICES_KNOWN = 16_384
LOAD_S, LOAD_LIVES = 1.0, 3
"""Between two words about the load, and how many of these may be lost before the broker forgets it."""
SMOOTH = 0.5
"""Weight of the last second in the busy share."""
DRAIN_S, QUIET_S = 5.0, 0.3

log = logging.getLogger("edgert.serve")


class Asked(NamedTuple):
    """A question that waits for its turn."""

    topic: wire.Topic
    ask: wire.InferAsk
    correlation: bytes | None
    rows: models.Rows
    came_s: float
    until_s: float


class Ran(NamedTuple):
    """What came of a batch; `answers` is None where the model failed."""

    model: str
    batch: list[Asked]
    answers: F32 | None
    began_s: float
    run_s: float


class Node:
    """One node: counts everything, is stopped by nothing a peer can send.

    Thread: the one that made it; a worker of its own runs the models.
    """

    def __init__(
        self,
        offered: Iterable[tuple[str, models.Model]],
        mqtt: Mqtt,
        *,
        fleet: str,
        name: str,
        place: str,
        batch_rows: int = 16,
        device_bytes_per_s: float = 0.0,
    ) -> None:
        """Check that it can be reached, and see what a row of each model takes.

        Args:
            offered: the models, each with its id.
            mqtt: not necessarily started.
            fleet: whose questions are answered; `+` for all.
            name: of this node, in its topics.
            place: `edge` or `cloud`.
            batch_rows: most rows run at once.
            device_bytes_per_s: what one device may send and receive; 0 for no limit.

        Raises:
            ConfigError: two models with one id; fleet, name or place cannot be part of a topic.

        Blocks: for a few runs of each model.
        """
        self.fleet, self.name, self.place, self.mqtt = fleet, name, place, mqtt
        for said, word in (("name", name), ("fleet", "all" if fleet == "+" else fleet)):
            if not wire.is_name(word):
                raise ConfigError(f"{said} {word!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
        if place not in REMOTE:
            raise ConfigError(f"place {place!r}: choose {' or '.join(REMOTE)}")
        if not 1 <= batch_rows <= 256:
            raise ConfigError(f"batch {batch_rows}: 1 to 256 rows")
        self.served: dict[str, models.Model] = {}
        for id_, model in offered:
            if id_ in self.served:
                raise ConfigError(f"model {model.manifest.name} is named twice")
            self.served[id_] = model
        self.filter = f"$share/serve-{place}/{wire.Topic(fleet, '+', 'infer', 'ask', place)}"
        self.queue: Queue[Asked] = Queue(max_bytes=BACKLOG_BYTES, max_each=WAITING_EACH)
        self.batch_rows = batch_rows
        self.allowances = Allowances(device_bytes_per_s, DEVICES_KNOWN) if device_bytes_per_s > 0 else None
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.up = self.draining = False
        self.busy_frac = 0.0
        self.started_s = self._load_s = self._busy_since_s = time.monotonic()
        self._busy_s = self._model_s = 0.0
        self._running: tuple[float, float] | None = None  # since when, and until when by what is known
        self._todo: SimpleQueue[tuple[str, list[Asked]] | None] = SimpleQueue()
        self._done: deque[Ran] = deque()
        for id_, model in self.served.items():
            self.queue.ran(id_, models.row_s(model), 1)
        self._woken, self._waker = wake_pair()
        self._worker = threading.Thread(target=self._work, name="models", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        """Thread body: what a model raises is a refusal, whatever it is."""
        while (todo := self._todo.get()) is not None:
            id_, batch = todo
            began_s = time.monotonic()
            try:
                answers: F32 | None = self.served[id_].run(np.concatenate([each.rows for each in batch]))
            except Exception as error:  # without this thread nothing is ever answered again
                log.error("model %s: %s: %s", self.served[id_].manifest.name, type(error).__name__, error)
                answers = None
            self._done.append(Ran(id_, batch, answers, began_s, time.monotonic() - began_s))
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")

    def turn(self, timeout_s: float) -> bool:
        """Wait for something to happen, and see to it.

        Args:
            timeout_s: most time to wait.

        Returns:
            True when a question had come or was answered.

        Blocks: `timeout_s`.
        """
        poller = select.poll()
        for source in (self.mqtt.fileno(), self._woken.fileno()):
            poller.register(source, select.POLLIN)
        poller.poll(timeout_s * 1000)
        drain_wakes(self._woken)
        came = bool(self._done)
        while self._done:
            self._finish(self._done.popleft())
        for event in self.mqtt.events():
            match event:
                case Received():
                    came = True
                    self._take_in(event)
                case LinkUp():
                    self.up, self._load_s = True, 0.0
                    log.info("connected; answering %s", self.filter)
                case LinkDown(reason=reason, retry_s=retry_s):
                    self.up = False
                    log.info("%s; again in %.1f s", reason, retry_s)
                case Published(ok=False, reason_code=code):
                    self._fault("answer-refused", f"the broker refused an answer: reason code 0x{code:02x}")
        self._begin()
        if time.monotonic() >= self._load_s:
            self._tell_load()
        return came

    def _begin(self) -> None:
        """Give the worker something to do."""
        if self._running is not None:
            return
        now_s = time.monotonic()
        model, batch, late = self.queue.take(now_s, self.batch_rows)
        for asked in late:
            self._refuse(asked.topic, asked.ask, asked.correlation, "late")
        if batch:
            rows = sum(asked.ask.rows for asked in batch)
            self._running = now_s, now_s + rows * self.queue.paces[model].likely_s
            self._todo.put((model, batch))

    def _take_in(self, event: Received) -> None:
        """Let a question wait, refuse it, or, where it makes no sense, count it."""
        now_s = time.monotonic()
        self.counts["asks"] += 1
        self.counts["bytes_in"] += len(event.payload)
        try:
            topic = wire.parse_topic(event.topic)
            ask, _ = wire.decode(event.payload, wire.InferAsk)
        except MessageError as error:
            self._fault("malformed", f"{event.topic:.120}: {error}")
            return
        if event.response_topic not in (None, str(_answer_topic(topic))):
            self._fault("response-topic", f"{event.topic} wants its answer at {event.response_topic!r:.120}")
            return
        model, device = self.served.get(ask.model), (topic.fleet, topic.device)

        def refuse(why: str, retry_s: float = 0.0) -> None:
            self._refuse(topic, ask, event.correlation, why, retry_s)

        if self.draining:
            return refuse("draining")
        if model is None:
            return refuse("unknown-model")
        if not ask.rows or len(ask.data) != ask.rows * model.manifest.input.row_bytes:
            return refuse("rows")
        if ask.rows * model.manifest.output.row_bytes > wire.MAX_PAYLOAD_BYTES - 4096:
            return refuse("too-large")
        try:
            rows = models.rows_of(ask.data, model.manifest.input, ask.rows)
        except UsageError:
            return refuse("not-finite")
        wait_s = self.allowances.wait_s(device, now_s) if self.allowances is not None else 0.0
        if wait_s:
            return refuse("over-budget", round(wait_s, 3))
        if self.allowances is not None:
            self.allowances.charge(device, len(event.payload), now_s)
        asked = Asked(topic, ask, event.correlation, rows, now_s, now_s + ask.left_s)
        busy_s = max(0.0, self._running[1] - now_s) if self._running is not None else 0.0
        size_bytes = ITEM_BYTES + len(event.payload)
        told = self.queue.put(
            ask.model,
            device,
            asked,
            rows=ask.rows,
            size_bytes=size_bytes,
            left_s=ask.left_s,
            busy_s=busy_s,
            now_s=now_s,
        )
        if told.refusal:
            return refuse(told.refusal, round(min(told.retry_s, 60.0), 3))
        self._begin()

    def _finish(self, ran: Ran) -> None:
        self._running = None
        self._busy_s += ran.run_s
        self._model_s += ran.run_s
        self.counts["runs"] += 1
        rows = sum(asked.ask.rows for asked in ran.batch)
        self.counts["rows"] += rows
        self.queue.ran(ran.model, ran.run_s, rows)
        self._begin()  # the worker first: encoding can wait for it
        at = 0
        for asked in ran.batch:
            answer = None if ran.answers is None else ran.answers[at : at + asked.ask.rows]
            at += asked.ask.rows
            if answer is None:
                self._refuse(asked.topic, asked.ask, asked.correlation, "model-failed")
            elif not np.isfinite(answer).all():
                self._refuse(asked.topic, asked.ask, asked.correlation, "not-finite")
            else:
                told = wire.InferAnswer(
                    model=ran.model,
                    rows=asked.ask.rows,
                    data=answer.astype("<f4").tobytes(),
                    waited_s=max(0.0, ran.began_s - asked.came_s),
                    run_s=ran.run_s,
                )
                self._send(asked.topic, told, asked.correlation, asked.until_s - time.monotonic())

    def _refuse(
        self, topic: wire.Topic, ask: wire.InferAsk, correlation: bytes | None, why: str, retry_s: float = 0.0
    ) -> None:
        self.counts[f"refused:{why}"] += 1
        told = wire.InferAnswer(
            model=ask.model,
            rows=0,
            data=b"",
            error=why,  # type: ignore[arg-type]  # all that are said here are in REFUSALS, a test looks
            retry_s=retry_s,
        )
        self._send(topic, told, correlation, ask.left_s)

    def _send(self, topic: wire.Topic, told: wire.InferAnswer, correlation: bytes | None, left_s: float) -> None:
        payload = wire.encode(told)
        if self.allowances is not None and told.error != "over-budget":
            self.allowances.charge((topic.fleet, topic.device), len(payload), time.monotonic())
        # A second at least: MQTT counts whole ones, and the device's own clock decides what is too late for it.
        sent = self.mqtt.publish(
            str(_answer_topic(topic)),
            payload,
            qos=0,
            expiry_s=max(1, int(left_s) + 1),
            content_type=wire.CONTENT_TYPE,
            correlation=correlation,
        )
        if not sent:
            self._fault("answer-lost", "the broker does not take an answer; the device has its own model")
            return
        self.counts["answers"] += not told.error
        self.counts["bytes_out"] += len(payload)

    def _tell_load(self) -> None:
        """Say what is on offer, and how busy this node is."""
        now_s = time.monotonic()
        self._load_s = now_s + LOAD_S
        ran_s = self._busy_s + (0.0 if self._running is None else now_s - max(self._running[0], self._busy_since_s))
        window_s = max(1e-3, now_s - self._busy_since_s)
        self.busy_frac += SMOOTH * (min(1.0, ran_s / window_s) - self.busy_frac)
        self._busy_s, self._busy_since_s = 0.0, now_s
        if self._running is not None:
            self._running = now_s, self._running[1]
        waiting_s = self.queue.waiting_s()
        offered = tuple(
            wire.Offered(id=id_, name=model.manifest.name, row_s=self.queue.paces[id_].row_s)
            for id_, model in self.served.items()
        )
        load = wire.InferLoad(
            place=self.place,
            accepts=not self.draining,
            models=offered,
            cpu_frac=min(1.0, max(self.busy_frac, waiting_s / LOAD_S)),
            memory_frac=_memory_frac(),
            waiting_s=min(waiting_s, 86_400.0),
            rtt_s=self.mqtt.rtt_s(),
            every_s=LOAD_S,
        )
        payload = wire.encode(load)
        # QoS 1, so that its acknowledgement measures the round trip.
        if self.mqtt.publish(
            self.load_topic,
            payload,
            qos=1,
            retain=True,
            expiry_s=int(LOAD_LIVES * LOAD_S),
            content_type=wire.CONTENT_TYPE,
        ):
            self.counts["load_bytes"] += len(payload) + len(self.load_topic)
            self.counts["loads"] += 1

    @property
    def load_topic(self) -> str:
        """Where the load is said; the will is said there as well."""
        return load_topic(self.fleet, self.name, self.place)

    def _fault(self, name: str, why: object) -> None:
        self.faults[name] += 1
        # A broken device repeats itself; the first of each kind says enough.
        log.log(logging.WARNING if self.faults[name] == 1 else logging.DEBUG, "%s: %s", name, why)

    def status(self) -> dict[str, Any]:
        """What is written once a second; counters are totals since start."""
        cpu_s, rss_bytes = usage()
        return {
            "node": self.name,
            "place": self.place,
            "up": self.up,
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "models": {model.manifest.name: self.queue.paces[id_].row_s for id_, model in self.served.items()},
            "waiting": len(self.queue),
            "busy_frac": round(self.busy_frac, 3),
            "model_s": round(self._model_s, 3),
            **{name: self.counts[name] for name in _COUNTS},
            "refused": {why: self.counts[f"refused:{why}"] for why in REFUSALS if self.counts[f"refused:{why}"]},
            "faults": {**self.faults, **self.mqtt.faults()},
            "cpu_s": round(cpu_s, 2),
            "rss_bytes": rss_bytes,
        }

    def metrics(self) -> str:
        """The same for Prometheus."""
        cpu_s, rss_bytes = usage()

        def single(name: str, kind: Any, help_: str, value: float) -> Metric:
            return Metric(f"edgert_serve_{name}", kind, help_, [Sample({}, value)])

        rows = [
            Sample({"model": model.manifest.name}, self.queue.paces[id_].row_s or 0.0)
            for id_, model in self.served.items()
        ]
        refused = [Sample({"reason": why}, self.counts[f"refused:{why}"]) for why in REFUSALS]
        faults = [Sample({"fault": name}, n) for name, n in {**self.faults, **self.mqtt.faults()}.items()]
        return render(
            [
                Metric("edgert_serve_info", "gauge", "Where this node is.", [Sample({"place": self.place}, 1)]),
                single("up", "gauge", "The broker is connected.", self.up),
                *(single(f"{name}_total", "counter", help_, self.counts[key]) for name, key, help_ in _COUNTED),
                Metric("edgert_serve_refusals_total", "counter", "Questions refused by name.", refused),
                Metric("edgert_serve_faults_total", "counter", "Faults by name, those of the link too.", faults),
                Metric("edgert_serve_row_seconds", "gauge", "What a row takes lately.", rows),
                single("model_seconds_total", "counter", "Time spent in models.", self._model_s),
                single("waiting_asks", "gauge", "Questions that wait for their turn.", len(self.queue)),
                single("busy_ratio", "gauge", "Share of the last seconds spent in models.", self.busy_frac),
                single("cpu_seconds_total", "counter", "CPU time of the process.", cpu_s),
                single("resident_bytes", "gauge", "Memory of the process.", rss_bytes),
            ]
        )

    def report(self, status_file: Path | None, exposition: Exposition | None) -> None:
        """Write the status where it is wanted."""
        try:
            if status_file is not None:
                write_atomic(status_file, json.dumps(self.status(), indent=1).encode(), 0o644)
            if exposition is not None:
                exposition.publish(self.metrics())
        except StoreError as error:
            self._fault("status-not-written", error)

    def drain(self) -> None:
        """Say so, take no more questions, and answer those that wait or are on their way, as far as the time goes."""
        self.mqtt.unsubscribe([self.filter])
        end_s = time.monotonic() + DRAIN_S
        quiet_s = max(QUIET_S, 4 * (self.mqtt.rtt_s() or 0.0))
        while self.mqtt.is_up() and time.monotonic() < end_s and (self.turn(quiet_s) or self._running is not None):
            pass
        self.draining = True
        for asked in self.queue.drop():
            self._refuse(asked.topic, asked.ask, asked.correlation, "draining")
        # Nothing retained: whoever connects later must not wait for a node that has gone.
        self.mqtt.publish(self.load_topic, b"", qos=1, retain=True)

    def close(self) -> None:
        """End the worker."""
        self._todo.put(None)
        self._worker.join(DRAIN_S)
        self._woken.close()
        self._waker.close()


_COUNTED = (
    ("asks", "asks", "Questions received."),
    ("answers", "answers", "Questions answered."),
    ("runs", "runs", "Batches run."),
    ("rows", "rows", "Rows run."),
    ("received_bytes", "bytes_in", "Payload bytes of questions."),
    ("sent_bytes", "bytes_out", "Payload bytes of answers."),
    ("load_bytes", "load_bytes", "Bytes of words about the load."),
)
_COUNTS = ("asks", "answers", "runs", "rows", "bytes_in", "bytes_out", "loads", "load_bytes")


def load_topic(fleet: str, name: str, place: str) -> str:
    """Where a node says its load."""
    return str(wire.Topic("-" if fleet == "+" else fleet, name, "infer", "load", place))


def _answer_topic(asked: wire.Topic) -> wire.Topic:
    return asked._replace(type="answer")


def _memory_frac() -> float | None:
    """Share of the machine's memory in use; None where Linux does not say."""
    try:
        lines: Mapping[str, str] = dict(
            line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines()[:5] if ":" in line
        )
        free, total = (float(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    return min(1.0, max(0.0, 1 - free / total)) if total > 0 else None


def _own_name(place: str) -> str:
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:40]
    return f"{host or 'node'}-{place}-{os.getpid()}"


def run(args: argparse.Namespace) -> int:
    """Answer until told to stop."""
    if not 0 <= args.device_bytes_per_s < 1e12:
        raise ConfigError("--device-bytes-per-s: 0 or more")
    name = args.name or _own_name(args.place)
    if not wire.is_name(name):
        raise ConfigError(f"--name {name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
    keys = None if args.trust is None else read_keys(args.trust)
    found = [read_variant(path, args.runtime, keys, required=keys is not None) for path in args.model]
    offered = [(each.id, each.open()) for each in found]
    # A node that is away must not be handed questions, so its session ends with its connection. The client id is drawn:
    # two nodes of one name would throw each other out.
    mqtt = Mqtt(
        args.broker,
        f"edgert-serve-{secrets.token_hex(8)}",
        will=(load_topic(args.fleet, name, args.place), b""),
        session_expiry_s=0,
        max_packet_bytes=wire.MAX_PAYLOAD_BYTES + 4096,
        max_queue_bytes=BACKLOG_BYTES,
        max_events=256,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(mqtt))
        node = Node(
            offered,
            mqtt,
            fleet=args.fleet,
            name=name,
            place=args.place,
            batch_rows=args.batch,
            device_bytes_per_s=args.device_bytes_per_s,
        )
        stack.enter_context(contextlib.closing(node))
        for id_, model in node.served.items():
            row_s = node.queue.paces[id_].row_s or 0.0
            log.info("%s (%s), %s, %.1f ms a row", model.manifest.name, id_, model.runtime, 1e3 * row_s)
        exposition = stack.enter_context(contextlib.closing(Exposition(args.metrics))) if args.metrics else None
        return replica.serve(
            node,
            mqtt,
            [node.filter],
            stopping=Stopping(),
            report_every_s=LOAD_S,
            status_file=args.status_file,
            exposition=exposition,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one node.

    Returns:
        0 stopped in good order, 1 error, 78 wrong arguments or a model that cannot be run.
    """
    parser = argparse.ArgumentParser(
        prog="edgert serve",
        description="Run the models of devices over MQTT, on an edge box or in the cloud. Nodes of one place share the "
        "work and must offer the same models.",
        epilog="A model is a bundle of `tools.digits` or `tools.mobilenet`, or a policy's.",
    )
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="BUNDLE", help="once a model")
    parser.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
    parser.add_argument("--place", choices=REMOTE, default="edge", help="what devices call this node (%(default)s)")
    parser.add_argument("--fleet", default="default", help="whose questions to answer; + for all (%(default)s)")
    parser.add_argument("--name", default="", help="of this node (host, place and process)")
    parser.add_argument("--runtime", choices=get_args(Kind), default="auto", help="what runs the models (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, metavar="ROWS", help="most rows run at once (%(default)s)")
    parser.add_argument(
        "--trust", type=Path, help="key list (see `edgert key`): serve only what one of them vouches for"
    )
    parser.add_argument(
        "--device-bytes-per-s",
        type=float,
        default=0.0,
        metavar="BYTES",
        help="what one device may send to and receive from this node, bursts of 10 s allowed (no limit)",
    )
    parser.add_argument("--status-file", type=Path, help="where to write a status document once a second")
    parser.add_argument("--metrics", metavar="PORT|FILE", help="for Prometheus, as `edgert teacher --metrics`")
    args = parser.parse_args(argv)
    return run_program("serve", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
