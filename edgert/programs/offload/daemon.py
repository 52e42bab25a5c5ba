"""Where an inference runs, and with which model: sockets, broker and models around `chooser`.

Programs ask over a Unix socket (`edgert.client.infer`). For each request one of {variant x place} is chosen, by what
was learned of all of them, within an accuracy floor, a deadline and what may be sent. What runs elsewhere goes over a
link of this process: pictures must not pass through the supervisor, whose loop feeds the watchdog. When no answer has
come by the time the local model must begin, it begins; whoever is first answers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import select
import time
from pathlib import Path
from typing import NamedTuple

from edgert import wire
from edgert.config import Config
from edgert.errors import ArtifactError, ConfigError, MessageError, UsageError
from edgert.offload import promise
from edgert.offload.space import Floor, Load
from edgert.ports import ipc
from edgert.ports.credentials import address_of
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Published, Received
from edgert.ports.process import Layout, Parent, Stopping, run_role, usage
from edgert.ports.runtime.model import Model, Rows, rows_of
from edgert.ports.signing import read_keys
from edgert.ports.variants import Variant, read_variant
from edgert.programs.offload.chooser import LOOK_S, REMOTE, Chooser, Chosen, Known, Refused
from edgert.programs.offload.local_models import Done, LocalModels, Work
from edgert.values import Budget, ServiceReport, Stop

MAX_CLIENTS, MAX_EACH = 16, 32
"""Programs connected, and requests of one of them that may wait."""
MAX_ROWS = 256
REPORT_S, PROBE_S, SAVE_S = 1.0, 5.0, 30.0
NOBODY_LISTENS = 0x10
"""MQTT 5.0, 3.4.2.1: the broker took it, and there is no subscriber."""

log = logging.getLogger("edgert.offload")


class Sent(NamedTuple):
    """Token of a message whose acknowledgement measures the link, and of which question it was, if of one."""

    at_s: float
    correlation: bytes | None = None


class Request:
    """One request until it is answered.

    Attributes:
        chosen: what was; None before.
        local: the choice that runs here for it, if any.
        cut_s: when the local model must begin; None where it need not, or has begun.
        away: the question that is on its way, by its correlation.
    """

    def __init__(self, key: int, client: ipc.Channel, id_: int, rows: Rows, due_s: float, floor: Floor) -> None:
        self.key, self.client, self.id, self.rows = key, client, id_, rows
        self.came_s, self.due_s, self.floor = time.monotonic(), due_s, floor
        self.chosen: Chosen | None = None
        self.local: int | None = None
        self.cut_s: float | None = None
        self.away: bytes | None = None
        self.spent_bytes = 0
        self.run_s = 0.0
        self.why = ""
        self.over = False

    @property
    def choice(self) -> int | None:
        """What was chosen; None before."""
        return None if self.chosen is None else self.chosen.choice


class Daemon:
    """Ports on one side, `offload.promise` and a learner on the other.

    Thread: the one that made it; the models run on another.
    """

    def __init__(self, config: Config, layout: Layout, parent: Parent) -> None:
        """Load everything; nothing is asked or answered yet.

        Args:
            config: checked.
            layout: of this device.
            parent: the supervisor, or nobody.

        Raises:
            ConfigError, ArtifactError, StoreError, UsageError: with what to do about it.

        Blocks: as long as loading the local models takes.
        """
        self.config, self.said, self.parent = config, config.offload, parent
        found, opened, faults = _load(config, parent)
        self.schema = found[0].manifest
        # In a space, choices at home come first, in the order of the variants.
        self.local = LocalModels({i: opened[variant] for i, variant in enumerate(sorted(opened))})
        known = [Known(each.id, each.manifest) for each in found]
        self.chooser = Chooser(config, known, set(opened), self.local, layout.state / "offload.cbor")
        if faults:
            self.chooser.faults["variant-failed"] += faults
        self.requests: dict[int, Request] = {}
        self.away: dict[bytes, Request] = {}
        self.clients: dict[ipc.Channel, int] = {}
        self._key = secrets.randbits(40) << 20  # drawn, so that an answer to a predecessor matches none of ours
        self._look_s = self._report_s = self._probe_s = 0.0
        self._save_s = time.monotonic() + SAVE_S
        self._listens = True
        device = config.device
        self.asks = {place: wire.Topic(device.fleet, device.id, "infer", "ask", place) for place in REMOTE}
        self.answers = wire.Topic(device.fleet, device.id, "infer", "answer", "+")
        self.loads = wire.Topic(device.fleet, "+", "infer", "load", "+")
        self.mqtt = Mqtt(
            address_of(config.broker),
            f"edgert-{device.fleet}-{device.id}-offload",
            session_expiry_s=0,  # an answer that comes after a new connection comes too late
            max_packet_bytes=wire.MAX_PAYLOAD_BYTES + 4096,
            max_queue_bytes=4 * wire.MAX_PAYLOAD_BYTES,
            keepalive_s=config.broker.keepalive_s,
        )
        self.listener = ipc.listen(config.offload.socket, 0o660)

    # The loop.

    def run(self, stopping: Stopping) -> int:
        """Answer until told to stop."""
        self.mqtt.subscribe([(str(self.answers), 0), (str(self.loads), 1)])
        self.mqtt.start()
        log.info(
            "%d variants, %d of them here, at %s", len(self.chooser.known), len(self.local.models), self.said.socket
        )
        try:
            while not stopping:
                self._wait()
                if self._heard_parent():
                    break
                for done in self.local.done():
                    self._done(done)
                self._hear_broker()
                self._hear_clients()
                self._cut_over()
                self._by_the_clock()
                if not self.mqtt.healthy():
                    log.error("the link's thread stands still")
                    return 1
        finally:
            self.chooser.save()
            self.listener.close()
            for client in self.clients:
                client.close()
            self.local.close()
            self.mqtt.close(flush_s=0.2)
            self.parent.close()
        return 0

    def _wait(self) -> None:
        now_s = time.monotonic()
        times = [self._look_s, self._report_s, *(r.cut_s for r in self.requests.values() if r.cut_s is not None)]
        poller = select.poll()
        for fd in (self.local.fileno(), self.mqtt.fileno(), self.listener.fileno()):
            poller.register(fd, select.POLLIN)
        if (fd_parent := self.parent.fileno()) is not None:
            poller.register(fd_parent, select.POLLIN)
        for client in self.clients:
            poller.register(client.fileno(), select.POLLIN | (select.POLLOUT if client.wants_write else 0))
        poller.poll(math.ceil(1e3 * min(0.5, max(0.0, min(times) - now_s))))

    def _heard_parent(self) -> bool:
        """Whether the supervisor wants an end of it."""
        told = self.parent.receive()
        for each in told:
            if isinstance(each, Budget):
                self.chooser.granted(each)
        return any(isinstance(each, Stop) for each in told)

    def _by_the_clock(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self.chooser.look(now_s)
        if now_s >= self._report_s:
            self._report_s = now_s + REPORT_S
            self.parent.send(ServiceReport(self._report(), self.chooser.counts["bytes"]))
        if self.chooser.may_send(now_s) != self._listens:
            self._listens = not self._listens
            # Loads cost bytes as well: over a link that is to carry nothing, nobody need tell them.
            loads = str(self.loads)
            self.mqtt.subscribe([(loads, 1)]) if self._listens else self.mqtt.unsubscribe([loads])
            self.chooser.nodes.clear()
        if now_s >= self._probe_s and self.chooser.up and self._listens:
            self._probe(now_s)
        if now_s >= self._save_s:
            self._save_s = now_s + SAVE_S
            self.chooser.save()

    def _report(self) -> dict[str, object]:
        cpu_s, rss_bytes = usage()
        faults = {**self.chooser.faults, **self.mqtt.faults()}
        own = {"faults": faults, "cpu_s": round(cpu_s, 2), "rss_bytes": rss_bytes, "pid": os.getpid()}
        return {**self.chooser.report(), **own}

    def _probe(self, now_s: float) -> None:
        """Say how it goes; the broker's acknowledgement is what the link is measured by while nothing is asked."""
        self._probe_s = now_s + PROBE_S
        topic = str(self.answers._replace(channel="tele", type="offload", id="-"))
        payload = wire.encode(wire.Telemetry(at_s=time.time(), status=self._report()))
        kind = wire.CONTENT_TYPE
        if self.mqtt.publish(topic, payload, qos=1, expiry_s=10, content_type=kind, token=Sent(now_s)):
            self.chooser.spend(len(topic) + len(payload), now_s)

    # Programs.

    def _hear_clients(self) -> None:
        while (client := ipc.accept(self.listener, wire.MAX_PAYLOAD_BYTES + 4096)) is not None:
            if len(self.clients) >= MAX_CLIENTS:
                client.send_map({"id": 0, "error": "too-many-clients", "detail": f"{MAX_CLIENTS} are connected"})
                client.close()
                continue
            self.clients[client] = 0
        for client in list(self.clients):
            client.flush()
            for message in client.receive_maps():
                self._asked(client, message)
            if client.closed:
                del self.clients[client]

    def _asked(self, client: ipc.Channel, message: dict[str, object]) -> None:
        id_ = message.get("id")
        said = id_ if isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) < 1 << 62 else 0
        if "show" in message:
            client.send_map({"id": said, "show": {**self._report(), **self.chooser.shown()}})
            return
        try:
            if self.clients.get(client, 0) >= MAX_EACH:
                raise Refused("too-many-requests", f"{MAX_EACH} of this program wait for their answers")
            request, pinned = self._request(client, said, message)
            left_s = request.due_s - request.came_s
            request.chosen = chosen = self.chooser.choose(len(request.rows), request.floor, left_s, pinned)
        except Refused as refused:
            self.chooser.counts["refused"] += 1
            client.send_map({"id": said, "error": refused.name, "detail": str(refused)})
            return
        request.why = chosen.why
        self.chooser.counts["requests"] += 1
        self.clients[client] += 1
        self.requests[request.key] = request
        if self.chooser.space.choices[chosen.choice].place == "device":
            self._here(request, chosen.choice)
        else:
            self._elsewhere(request, chosen.choice)

    def _request(
        self, client: ipc.Channel, id_: int, message: dict[str, object]
    ) -> tuple[Request, tuple[object, object]]:
        data, n = message.get("data"), message.get("rows", 1)
        left, floor = message.get("deadline_s"), message.get("floor")
        if not isinstance(data, bytes) or not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_ROWS:
            raise Refused("malformed", f"data is a byte string of 1 to {MAX_ROWS} rows")
        if n * max(self.schema.input.row_bytes, self.schema.output.row_bytes) > wire.MAX_PAYLOAD_BYTES - 4096:
            raise Refused("too-large", f"{n} rows do not fit a message; ask for fewer at once")
        for name, value, most in (("deadline_s", left, 600.0), ("floor", floor, 1.0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise Refused("malformed", f"{name} is a number")
            if isinstance(value, (int, float)) and not 0 <= value <= most:
                raise Refused("malformed", f"{name} is 0 to {most:g}")
        if message.get("dtype") not in (None, self.schema.input.dtype):
            raise Refused("shape", f"a row is {self.schema.input.dtype} {self.schema.input.shape}")
        shape = message.get("shape")
        if shape is not None and shape != list(self.schema.input.shape):
            raise Refused("shape", f"a row is {self.schema.input.dtype} {self.schema.input.shape}")
        try:
            rows = rows_of(data, self.schema.input, n)
        except UsageError as error:
            raise Refused("not-finite" if "finite" in str(error) else "shape", str(error)) from error
        self._key += 1
        left_s = float(left) if isinstance(left, (int, float)) else self.said.deadline_s
        accuracy_frac = float(floor) if isinstance(floor, (int, float)) else self.said.accuracy_frac
        request = Request(self._key, client, id_, rows, time.monotonic() + left_s, Floor(accuracy_frac))
        return request, (message.get("variant"), message.get("place"))

    def _here(self, request: Request, choice: int) -> None:
        request.local, request.cut_s = choice, None
        self.local.put(Work(request.key, choice, request.rows, lambda: not request.over), request.due_s)

    def _elsewhere(self, request: Request, choice: int) -> None:
        one, now_s = self.chooser.space.choices[choice], time.monotonic()
        topic, left_s = str(self.asks[one.place]), max(0.0, request.due_s - now_s)
        ask = wire.InferAsk(
            model=self.chooser.known[one.variant].id,
            rows=len(request.rows),
            data=request.rows.tobytes(),
            left_s=min(86_400.0, left_s),
        )
        payload = wire.encode(ask)
        correlation = request.key.to_bytes(8, "big")
        sent = self.mqtt.publish(
            topic,
            payload,
            qos=1,
            expiry_s=max(1, math.ceil(left_s)),
            content_type=wire.CONTENT_TYPE,
            correlation=correlation,
            response_topic=str(self.answers._replace(id=one.place)),
            token=Sent(now_s, correlation),
        )
        if not sent:
            self._failed(request, "not sent")
            return
        request.away = correlation
        self.away[correlation] = request
        request.spent_bytes += len(topic) + len(payload)
        self.chooser.spend(len(topic) + len(payload), now_s)
        home = self.chooser.home(len(request.rows), request.floor, left_s)
        fallback_s = None if home is None else len(request.rows) * self.local.paces[home].likely_s
        request.cut_s = now_s + promise.cut_over_s(left_s, fallback_s, self.local.waits_s(now_s))

    def _cut_over(self) -> None:
        now_s = time.monotonic()
        for request in list(self.requests.values()):
            if request.cut_s is not None and now_s >= request.cut_s:
                self._failed(request, "no answer in time", may_come=True)

    def _failed(self, request: Request, why: str, *, may_come: bool = False) -> None:
        """Nothing has come of what was chosen: the device's own model it is; the other may still be first."""
        request.cut_s = None
        if request.away is not None and not may_come:
            self.away.pop(request.away, None)
        if request.over or request.local is not None:
            return
        self.chooser.counts["fell_back"] += 1
        request.why = f"{request.why}; {why}"
        now_s = time.monotonic()
        home = self.chooser.home(len(request.rows), request.floor, request.due_s - now_s)
        if home is not None:
            self._here(request, home)
            return
        # A choice that fails at once is no quick one: who gets no answer has waited for the whole deadline in vain.
        self._learn(request, False, max(now_s, request.due_s))
        self._reply(request, {"error": "no-answer", "detail": f"{request.why}, and no local model is good enough"})

    # Answers.

    def _done(self, done: Done) -> None:
        request = self.requests.get(done.key)
        if done.failed:
            self.chooser.fault("model-failed", self.chooser.label(done.choice))
            if request is not None:
                request.local = None
                self._failed(request, f"{self.chooser.label(done.choice)} failed", may_come=True)
            return
        if request is None or done.run_s is None:
            return
        if done.answer is None:
            self._learn(request, False, max(time.monotonic(), request.due_s))
            self._reply(request, {"error": "not-finite", "detail": "an answer to this would not be finite"})
            return
        request.run_s, now_s = done.run_s or 0.0, time.monotonic()
        self._answered(request, done.choice, done.answer.astype("<f4", copy=False).tobytes(), now_s)
        self._learn(request, done.choice == request.choice, now_s)

    def _hear_broker(self) -> None:
        for event in self.mqtt.events():
            match event:
                case LinkUp():
                    self.chooser.up, self._probe_s = True, 0.0
                case LinkDown(reason=reason, retry_s=retry_s):
                    if self.chooser.up:
                        log.info("%s; again in %.1f s", reason, retry_s)
                    self.chooser.up = False
                    self.chooser.nodes.clear()  # those that are still there say so again: it is retained
                    for request in list(self.away.values()):
                        self._failed(request, "the link is down")
                case Received() if event.correlation is not None and event.correlation in self.away:
                    self._heard_answer(event, self.away.pop(event.correlation))
                case Received():
                    self._heard_load(event)
                case Published(token=Sent(at_s, correlation), ok=ok, reason_code=code):
                    now_s = time.monotonic()
                    self.chooser.measured(now_s - at_s, now_s)
                    if correlation in self.away and (not ok or code == NOBODY_LISTENS):
                        self._failed(self.away[correlation], "nobody listens" if ok else "the broker refused it")
                case _:
                    pass

    def _heard_load(self, event: Received) -> None:
        now_s = time.monotonic()
        try:
            topic = wire.parse_topic(event.topic)
            if topic.type == "answer":
                self.chooser.counts["too_late"] += 1  # or of a predecessor's question
                self.chooser.spend(len(event.topic) + len(event.payload), now_s)
                return
            if not event.payload:
                self.chooser.nodes.pop(topic.device, None)
                return
            load, _ = wire.decode(event.payload, wire.InferLoad)
        except MessageError as error:
            self.chooser.fault("load-malformed", f"{event.topic:.120}: {error}")
            return
        place = next((place for place in REMOTE if place == load.place == topic.id), None)
        if place is None or (topic.device not in self.chooser.nodes and len(self.chooser.nodes) >= 64):
            self.chooser.fault("load-malformed", f"{event.topic:.120}: place {load.place!r:.80}, or too many nodes")
            return
        self.chooser.spend(len(event.topic) + len(event.payload), now_s)
        self.chooser.nodes[topic.device] = promise.Node(
            place=place,
            accepts=load.accepts,
            models=frozenset(each.id for each in load.models),
            load=Load(cpu_frac=load.cpu_frac, memory_frac=load.memory_frac, rtt_s=load.rtt_s),
            at_s=now_s,
            lives_s=promise.LOAD_LIVES * load.every_s + 1.0,
        )

    def _heard_answer(self, event: Received, request: Request) -> None:
        now_s = time.monotonic()
        size_bytes = len(event.topic) + len(event.payload)
        request.spent_bytes += size_bytes
        self.chooser.spend(size_bytes, now_s)
        choice = request.choice
        if request.over or choice is None:
            return
        one, n = self.chooser.space.choices[choice], len(request.rows)
        try:
            told, _ = wire.decode(event.payload, wire.InferAnswer)
            if told.error:
                self.chooser.counts[f"refused:{told.error}"] += 1
                if told.retry_s > 0:
                    self.chooser.shy[choice] = now_s + min(told.retry_s, 60.0)
                self._failed(request, f"{one.place} refused: {told.error}")
                return
            if wire.parse_topic(event.topic).id != one.place or told.model != self.chooser.known[one.variant].id:
                raise MessageError("of another place or model")
            if told.rows != n:
                raise MessageError(f"{told.rows} rows instead of {n}")
            rows_of(told.data, self.schema.output, n)
        except (MessageError, UsageError) as error:
            self.chooser.fault("answer-malformed", f"{event.topic:.120}: {error}")
            self._failed(request, f"{one.place} answered nonsense")
            return
        self._answered(request, choice, told.data, now_s)
        self._learn(request, True, now_s)  # afterwards: nobody waits for it

    def _learn(self, request: Request, came: bool, now_s: float) -> None:
        if request.chosen is not None:
            took_s = now_s - request.came_s
            spent = request.spent_bytes
            self.chooser.learn(request.chosen, took_s, came=came, run_s=request.run_s, spent_bytes=spent)

    def _answered(self, request: Request, choice: int, data: bytes, now_s: float) -> None:
        one = self.chooser.space.choices[choice]
        said = self.chooser.known[one.variant].manifest
        took_s, fell_back, late = now_s - request.came_s, choice != request.choice, now_s > request.due_s
        self.chooser.note(choice, request.floor, took_s, late=late, fell_back=fell_back)
        self._reply(
            request,
            {
                "data": data,
                "shape": [len(request.rows), *said.output.shape],
                "variant": said.name,
                "place": one.place,
                "accuracy_frac": said.accuracy_frac,
                "response_s": took_s,
                "fell_back": fell_back,
                "late": late,
                "why": request.why,
            },
        )

    def _reply(self, request: Request, told: dict[str, object]) -> None:
        self._forget(request)
        if not request.client.closed:
            request.client.send_map({"id": request.id, **told})

    def _forget(self, request: Request) -> None:
        request.over = True
        self.requests.pop(request.key, None)
        if request.away is not None:
            self.away.pop(request.away, None)
        if request.client in self.clients:
            self.clients[request.client] -= 1


def _load(config: Config, parent: Parent) -> tuple[list[Variant], dict[int, Model], int]:
    """Read every variant, and open those that run here; those that fail are left out, and counted."""
    trusted = config.trust
    keys = None if trusted.keys_file is None else read_keys(Path(trusted.keys_file))
    found: list[Variant] = []
    opened: dict[int, Model] = {}
    faults, why = 0, ""
    for each in config.offload.variants:
        parent.receive()  # says hello
        try:
            variant = read_variant(Path(each.bundle), config.offload.runtime, keys, required=trusted.require_signed)
            if any(other.id == variant.id for other in found):
                raise ConfigError(f"{each.bundle} is named twice")
            model = variant.open() if each.local else None
        except (ConfigError, ArtifactError) as error:
            log.error("%s", error)
            faults, why = faults + 1, str(error)
            continue
        if model is not None:
            opened[len(found)] = model
        found.append(variant)
    if not opened:
        raise ConfigError(f"no local variant can be used: {why}")
    first = found[0].manifest
    for variant in found:
        said = variant.manifest
        if (said.task, said.input.shape, said.input.dtype, said.output.shape) != (
            first.task,
            first.input.shape,
            first.input.dtype,
            first.output.shape,
        ):
            raise ConfigError(f"{said.name} answers another task than {first.name}, or in another shape")
    return found, opened, faults


def _run(config: Config, config_path: Path, layout: Layout, stopping: Stopping) -> int:
    if not config.offload.variants:
        raise ConfigError(f"{config_path}: offload.variants is empty: there is no model to run")
    parent = Parent(layout.control, "offload")
    parent.receive()
    with contextlib.closing(parent):
        return Daemon(config, layout, parent).run(stopping)


def main(argv: list[str] | None = None) -> int:
    """Run the chooser of one device."""
    return run_role("offload", "edgert-offload", argv, _run)
