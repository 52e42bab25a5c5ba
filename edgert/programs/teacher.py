"""The teacher: big networks that answer the questions of small boards over MQTT. Any number of them share the work.

One process teaches any number of tasks. Replicas need not know of one another: for each task they are one shared
subscription, and the broker hands each question to one of them. Questions that wait take turns, by task and by student,
and what is taken at once is answered by one forward pass. A replica that dies takes the few questions in its hand with
it; their students ask again when their time is up.
"""

from __future__ import annotations

import os

from edgert.programs import blas

os.environ.update(blas.environment(os.environ))  # before numpy; replicas, not threads, are how teachers scale

import argparse
import contextlib
import json
import logging
import re
import secrets
import select
import socket
import sys
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgert import wire
from edgert.errors import ArtifactError, ConfigError, MessageError, StoreError, UsageError
from edgert.knowledge.teaching import Model, Subject, TeacherCache, answer_all, refusal
from edgert.knowledge.turns import Allowances, Turns
from edgert.nets import F32, U8
from edgert.ports.metrics import Exposition, Metric, Sample, histogram, render
from edgert.ports.models import describe_keys, open_subject, parse_source
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Published, Received
from edgert.ports.process import Stopping, run_program, usage
from edgert.ports.store import write_atomic
from edgert.programs import replica

ANSWER_EXPIRY_S = 30
CACHE_BYTES = 32 << 20
ROWS_AT_ONCE = 2048
"""Observations decoded at once, over all questions of a batch; bounds memory, not the size of a question."""
BACKLOG_BYTES = 8 * wire.MAX_PAYLOAD_BYTES
ITEM_BYTES = 1600
"""Memory of a question or an answer that waits, beside its payload."""
WAITING_EACH = 64
"""Questions of one student and task that may wait; those beyond are refused."""
BUSY_RETRY_S = 5.0
STUDENTS_KNOWN = 16_384
STATUS_EVERY_S = 1.0
DRAIN_S = 5.0
QUIET_S = 0.3
"""How long nothing more must arrive after unsubscribing; MQTT promises no last message."""
RUN_BOUNDS = (1, 4, 16, 64, 256, 1024)
"""Of the histogram of rows in one run of a model."""

log = logging.getLogger("edgert.teacher")


class Asked(NamedTuple):
    """A question that waits for its turn."""

    topic: wire.Topic
    ask: wire.KnowAsk
    correlation: bytes | None


class Answered(NamedTuple):
    """An answer until the broker has it. Its identity is the token of its publish."""

    topic: str
    payload: bytes
    correlation: bytes | None
    until_s: float
    task: str


class Tally:
    """What was done for one task since start.

    Attributes:
        counts: totals by name.
        faults: named fault -> count: `response-topic`, `malformed` (no answer is given), the named refusals that were
            answered, and what went wrong with answers on their way out.
        runs: runs of the model by their rows, one count a bound of RUN_BOUNDS and one for more.
        largest_batch: questions answered at once.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.model_s = 0.0
        self.runs = [0] * (len(RUN_BOUNDS) + 1)
        self.largest_batch = 0


class Teacher:
    """One replica: counts everything, is stopped by nothing a peer can send.

    Attributes:
        tallies: one a task, and one under the empty name for what belongs to none.
    """

    def __init__(
        self,
        subjects: Iterable[Subject],
        mqtt: Mqtt,
        *,
        fleet: str,
        name: str,
        cache_bytes: int = CACHE_BYTES,
        student_bytes_per_s: float = 0.0,
    ) -> None:
        """Check that it can be reached.

        Args:
            subjects: what is taught, one a task.
            mqtt: not necessarily started.
            fleet: whose questions are answered; `+` for all.
            name: of this replica, in its telemetry.
            cache_bytes: most memory for answers given before, over all tasks.
            student_bytes_per_s: what one device may send and receive; 0 for no limit.

        Raises:
            ConfigError: two models of one task; fleet or name cannot be part of a topic.
        """
        self.subjects: dict[str, Subject] = {}
        self.tallies = {"": Tally()}
        for subject in subjects:
            if subject.task in self.subjects:
                raise ConfigError(
                    f"two models of task {subject.task}: a process teaches a task with one; start another"
                )
            self.tallies[subject.task] = tally = Tally()
            self.subjects[subject.task] = subject._replace(model=_counted(subject.model, tally))
        self.fleet, self.name, self.mqtt = fleet, name, mqtt
        for said, word in (("name", name), ("fleet", "all" if fleet == "+" else fleet)):
            if not wire.is_name(word):
                raise ConfigError(f"{said} {word!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
        self.filters = [
            f"$share/teachers-{task}/{wire.Topic(fleet, '+', 'know', 'ask', task)}" for task in self.subjects
        ]
        self.cache = TeacherCache(cache_bytes)
        self.allowances = Allowances(student_bytes_per_s, STUDENTS_KNOWN) if student_bytes_per_s > 0 else None
        self.up = False
        self.turns: Turns[Asked] = Turns(WAITING_EACH)
        self.answers: deque[Answered] = deque()
        self.answers_bytes = 0  # memory of them
        self.started_s = time.monotonic()

    def turn(self, timeout_s: float) -> bool:
        """Wait for something to happen unless questions wait, and answer one batch of them.

        Args:
            timeout_s: most time to wait.

        Returns:
            True when a question had come or was answered.

        Blocks:
            `timeout_s`, then as long as the network takes.
        """
        if self.answers_bytes > BACKLOG_BYTES:
            # Until the broker takes answers, no questions are taken from it: they stay there, unacknowledged.
            time.sleep(min(timeout_s, 0.05))
            self._send()
            return False
        came = self.turns.size_bytes <= BACKLOG_BYTES and self._listen(0.0 if self.turns else timeout_s)
        task, batch = self.turns.take(ROWS_AT_ONCE)
        if batch:
            self._answer(self.subjects[task], batch)
        self._send()
        return came or bool(batch)

    def _listen(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self.mqtt.fileno(), select.POLLIN)
        poller.poll(timeout_s * 1000)
        came = False
        for event in self.mqtt.events():
            match event:
                case Received():
                    came = True
                    self._take_in(event)
                case LinkUp():
                    self.up = True
                    log.info("connected; answering %s", ", ".join(self.filters))
                case LinkDown(reason=reason, retry_s=retry_s, unconfirmed=unconfirmed):
                    self.up = False
                    log.info("%s; again in %.1f s", reason, retry_s)
                    # The broker may have them already: a student ignores what comes twice.
                    for each in unconfirmed:
                        if isinstance(each, Answered):
                            self._keep(each)
                case Published(ok=False, reason_code=code, token=token):
                    task = token.task if isinstance(token, Answered) else ""
                    self._fault(task, "answer-refused", f"the broker refused an answer: reason code 0x{code:02x}")
        return came

    def _take_in(self, event: Received) -> None:
        """Let a question wait, refuse it, or, where it makes no sense, count it."""
        task = ""
        try:
            topic = wire.parse_topic(event.topic)
            task = topic.id if topic.id in self.subjects else ""
        except MessageError as error:
            self._fault("", "topic", error)
            topic = None
        self.tallies[task].counts["asks"] += 1
        self.tallies[task].counts["bytes_in"] += len(event.payload)
        if topic is None or not task:
            return
        if event.response_topic not in (None, str(_answer_topic(topic))):
            self._fault(task, "response-topic", f"{event.topic} wants its answer at {event.response_topic!r:.120}")
            return
        try:
            ask, _ = wire.decode(event.payload, wire.KnowAsk)
        except MessageError as error:
            self._fault(task, "malformed", f"{event.topic}: {error}")
            return
        asked, student = Asked(topic, ask, event.correlation), (topic.fleet, topic.device)
        wait_s = self.allowances.wait_s(student, time.monotonic()) if self.allowances is not None else 0.0
        if not wait_s and not self.turns.put(task, student, asked, ask.count, ITEM_BYTES + len(event.payload)):
            wait_s = BUSY_RETRY_S
        if wait_s:
            self._put(asked, refusal(self.subjects[task], "over-budget", round(wait_s, 3)))
        elif self.allowances is not None:
            self.allowances.charge(student, len(event.payload), time.monotonic())

    def _answer(self, subject: Subject, batch: list[Asked]) -> None:
        tally, hits, misses = self.tallies[subject.task], self.cache.hits, self.cache.misses
        for asked, told in zip(batch, answer_all([each.ask for each in batch], subject, self.cache), strict=True):
            self._put(asked, told)
        tally.counts["cache_hits"] += self.cache.hits - hits
        tally.counts["cache_misses"] += self.cache.misses - misses
        tally.counts["batches"] += 1
        tally.counts["batched_asks"] += len(batch)
        tally.largest_batch = max(tally.largest_batch, len(batch))

    def _put(self, asked: Asked, told: wire.KnowAnswer) -> None:
        """Count an answer and let it wait for the broker."""
        task, topic = asked.topic.id, str(_answer_topic(asked.topic))
        try:
            payload, limit_bytes = wire.encode(told), self.mqtt.max_payload_bytes(topic)
        except UsageError:  # a codec that keeps no bound must not end the process, and with it every task's lessons
            payload, limit_bytes = b"", 0
        if not payload or (limit_bytes is not None and len(payload) > limit_bytes):
            told = refusal(self.subjects[task], "too-many")
            payload = wire.encode(told)
        if told.error:
            about = f"{asked.topic.device} asked about {asked.ask.count} observations of {asked.ask.task!r:.80}"
            self._fault(task, told.error, about)
        self.tallies[task].counts["observations"] += told.count
        now_s = time.monotonic()
        if self.allowances is not None and told.error != "over-budget":
            self.allowances.charge((asked.topic.fleet, asked.topic.device), len(payload), now_s)
        self._keep(Answered(topic, payload, asked.correlation, now_s + ANSWER_EXPIRY_S, task))

    def _keep(self, answer: Answered) -> None:
        """Until the broker takes it."""
        self.answers.append(answer)
        self.answers_bytes += ITEM_BYTES + len(answer.payload)

    def _send(self) -> None:
        """Hand answers to the broker as far as it takes them; nobody waits for what is older than its expiry."""
        now_s = time.monotonic()
        while self.answers:
            answer = self.answers[0]
            tally = self.tallies[answer.task]
            left_s = answer.until_s - now_s
            if left_s < 1:
                tally.faults["answer-too-late"] += 1
            elif not self.mqtt.publish(
                answer.topic,
                answer.payload,
                qos=1,
                expiry_s=int(left_s),
                content_type=wire.CONTENT_TYPE,
                correlation=answer.correlation,
                token=answer,
            ):
                return
            else:
                tally.counts["answers"] += 1
                tally.counts["bytes_out"] += len(answer.payload)
            self.answers.popleft()
            self.answers_bytes -= ITEM_BYTES + len(answer.payload)

    def _fault(self, task: str, name: str, why: object) -> None:
        faults = self.tallies[task].faults
        faults[name] += 1
        # A broken student repeats itself; the first of each kind says enough.
        log.log(logging.WARNING if faults[name] == 1 else logging.DEBUG, "%s: %s: %s", task or "-", name, why)

    def status(self, task: str = "") -> dict[str, Any]:
        """What is published and written once a second; counters are totals since start.

        Args:
            task: only what was done for this one; all of it by default.
        """
        cpu_s, rss_bytes = usage()
        tallies = [self.tallies[task]] if task else list(self.tallies.values())
        taught = [self.subjects[task]] if task else list(self.subjects.values())
        counts = sum((tally.counts for tally in tallies), Counter())
        faults = sum((tally.faults for tally in tallies), Counter())
        return {
            "teacher": ",".join(subject.teacher for subject in taught),
            "task": ",".join(subject.task for subject in taught),
            "kind": ",".join(subject.kind for subject in taught),
            "up": self.up,
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "asks": counts["asks"],
            "answers": counts["answers"],
            "observations": counts["observations"],
            "bytes_in": counts["bytes_in"],
            "bytes_out": counts["bytes_out"],
            "cache_hits": counts["cache_hits"],
            "cache_misses": counts["cache_misses"],
            "batches": counts["batches"],
            "asks_per_batch": round(counts["batched_asks"] / max(1, counts["batches"]), 2),
            "largest_batch": max(tally.largest_batch for tally in tallies),
            "forward_rows": counts["forward_rows"],
            "model_s": round(sum(tally.model_s for tally in tallies), 3),
            "waiting_asks": self.turns.waiting(task) if task else len(self.turns),
            "waiting_answers": sum(not task or answer.task == task for answer in self.answers),
            "faults": {**faults, **self.mqtt.faults()},
            "cpu_s": round(cpu_s, 2),
            "rss_bytes": rss_bytes,
        }

    def metrics(self) -> str:
        """The same for Prometheus."""
        taught = [(subject, self.tallies[task], {"task": task}) for task, subject in self.subjects.items()]
        cpu_s, rss_bytes = usage()

        def counter(name: str, help_: str, key: str, tasks: Iterable[str] = self.subjects) -> Metric:
            samples = [Sample({"task": task}, self.tallies[task].counts[key]) for task in tasks]
            return Metric(name, "counter", help_, samples)

        refused = [
            Sample({"task": task, "reason": reason}, count)
            for task, tally in self.tallies.items()
            for reason, count in tally.faults.items()
        ]
        runs = [
            sample
            for _, tally, each in taught
            for sample in histogram(each, RUN_BOUNDS, tally.runs, tally.counts["forward_rows"])
        ]
        infos = [Sample({**each, "teacher": said.teacher, "kind": said.kind}, 1) for said, _, each in taught]
        model_s = [Sample(each, tally.model_s) for _, tally, each in taught]
        waiting = [Sample(each, self.turns.waiting(said.task)) for said, _, each in taught]
        link = [Sample({"fault": name}, count) for name, count in self.mqtt.faults().items()]
        return render(
            [
                Metric("edgert_teacher_info", "gauge", "What is taught, and by which model.", infos),
                Metric("edgert_teacher_up", "gauge", "The broker is connected.", [Sample({}, self.up)]),
                # Of what made no sense nobody knows the task: it goes under an empty one, as its faults do.
                counter("edgert_teacher_asks_total", "Questions received.", "asks", self.tallies),
                counter("edgert_teacher_answers_total", "Answers given to the broker.", "answers"),
                counter("edgert_teacher_rows_total", "Observations answered.", "observations"),
                counter("edgert_teacher_received_bytes_total", "Payload bytes of questions.", "bytes_in", self.tallies),
                counter("edgert_teacher_sent_bytes_total", "Payload bytes of answers.", "bytes_out"),
                counter("edgert_teacher_cache_hits_total", "Rows known from before.", "cache_hits"),
                counter("edgert_teacher_cache_misses_total", "Rows that a model was run for.", "cache_misses"),
                Metric(
                    "edgert_teacher_cache_bytes", "gauge", "Memory of the cache.", [Sample({}, self.cache.size_bytes)]
                ),
                counter("edgert_teacher_batches_total", "Batches of questions answered.", "batches"),
                Metric("edgert_teacher_run_rows", "histogram", "Rows in one run of a model.", runs),
                Metric("edgert_teacher_model_seconds_total", "counter", "Time spent in a model.", model_s),
                Metric("edgert_teacher_faults_total", "counter", "Refusals and other faults by name.", refused),
                Metric("edgert_teacher_link_faults_total", "counter", "Faults of the link by name.", link),
                Metric("edgert_teacher_waiting_asks", "gauge", "Questions that wait for their turn.", waiting),
                Metric(
                    "edgert_teacher_waiting_answers",
                    "gauge",
                    "Answers that wait for the broker.",
                    [Sample({}, len(self.answers))],
                ),
                Metric("edgert_teacher_cpu_seconds_total", "counter", "CPU time of the process.", [Sample({}, cpu_s)]),
                Metric("edgert_teacher_resident_bytes", "gauge", "Memory of the process.", [Sample({}, rss_bytes)]),
            ]
        )

    def report(self, status_file: Path | None, exposition: Exposition | None) -> None:
        """Publish each task's status, and write all of it where it is wanted."""
        for task in self.subjects:
            topic = wire.Topic("-" if self.fleet == "+" else self.fleet, self.name, "tele", "teacher", task)
            payload = wire.encode(wire.Telemetry(at_s=time.time(), status=self.status(task)))
            self.mqtt.publish(str(topic), payload, qos=0, expiry_s=10, content_type=wire.CONTENT_TYPE)
        try:
            if status_file is not None:
                status = {**self.status(), "tasks": {task: self.status(task) for task in self.subjects}}
                write_atomic(status_file, json.dumps(status, indent=1).encode(), 0o644)
            if exposition is not None:
                exposition.publish(self.metrics())
        except StoreError as error:
            self._fault("", "status-not-written", error)

    def drain(self) -> None:
        """Take no more questions, and answer those that wait or are on their way, as far as the time goes."""
        self.mqtt.unsubscribe(self.filters)
        end_s = time.monotonic() + DRAIN_S
        quiet_s = max(QUIET_S, 4 * (self.mqtt.rtt_s() or 0.0))
        while self.mqtt.is_up() and time.monotonic() < end_s and self.turn(quiet_s):
            pass
        while self.turns:
            task, batch = self.turns.take(ROWS_AT_ONCE)
            for asked in batch:
                self._put(asked, refusal(self.subjects[task], "draining"))
        self._send()


def _counted(model: Model, tally: Tally) -> Model:
    """Count what a model is run for, and how long it takes."""

    def run(obs: U8) -> F32:
        began_s = time.perf_counter()
        try:
            return model(obs)
        except ArtifactError as error:
            log.log(logging.DEBUG if tally.faults["model-failed"] else logging.ERROR, "%s", error)
            raise
        finally:
            tally.model_s += time.perf_counter() - began_s
            tally.counts["forward_rows"] += len(obs)
            tally.runs[bisect_left(RUN_BOUNDS, len(obs))] += 1

    return run


def _answer_topic(asked: wire.Topic) -> wire.Topic:
    return asked._replace(type="answer")


def _own_name() -> str:
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:48]
    return f"{host or 'teacher'}-{os.getpid()}"


def run(args: argparse.Namespace) -> int:
    """Answer until told to stop."""
    sources = [parse_source(text) for text in args.model]
    if args.task:
        if len(sources) > 1:
            raise ConfigError("--task names the task of one model; say --model TASK=FILE for each of several")
        if not wire.is_name(args.task):
            raise ConfigError(f"task {args.task!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
        sources = [sources[0]._replace(task=args.task)]
    if args.cache_bytes < 0 or not 0 <= args.student_bytes_per_s < 1e12:
        raise ConfigError("--cache-bytes and --student-bytes-per-s: 0 or more")
    # A replica that is away must not be handed questions, so its session ends with its connection. The client id is
    # drawn: two replicas of one name would throw each other out.
    mqtt = Mqtt(
        args.broker,
        f"edgert-teacher-{secrets.token_hex(8)}",
        session_expiry_s=0,
        max_packet_bytes=wire.MAX_PAYLOAD_BYTES + 4096,
        max_queue_bytes=BACKLOG_BYTES,
        max_events=256,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(mqtt))
        teacher = Teacher(
            map(open_subject, sources),
            mqtt,
            fleet=args.fleet,
            name=args.name,
            cache_bytes=args.cache_bytes,
            student_bytes_per_s=args.student_bytes_per_s,
        )
        for subject in teacher.subjects.values():
            shape = "x".join(map(str, subject.obs_shape))
            log.info(
                "teacher %s of %s: %s of %d actions from %s",
                subject.teacher,
                subject.task,
                subject.kind,
                subject.n_actions,
                shape,
            )
        exposition = stack.enter_context(contextlib.closing(Exposition(args.metrics))) if args.metrics else None
        return replica.serve(
            teacher,
            mqtt,
            teacher.filters,
            stopping=Stopping(),
            report_every_s=STATUS_EVERY_S,
            status_file=args.status_file,
            exposition=exposition,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one teacher.

    Returns:
        0 stopped in good order, 1 error, 78 wrong arguments or a model that cannot teach.
    """
    parser = argparse.ArgumentParser(
        prog="edgert teacher",
        description="Answer the questions of students over MQTT. Start more of them to share the work.",
        epilog="A model is a .edgert bundle, an .onnx file with its weights inside, or a file of torch.export (.pt2) "
        "or TorchScript (.pt), which may run code that it brings along. All but bundles say behind a '?' how they are "
        "used, as pong=dqn.onnx?layout=nchw&scale=1/255; an ONNX file may say it in metadata properties edgert.layout "
        f"and so on. Keys: {describe_keys()}.",
    )
    parser.add_argument(
        "--model",
        "--bundle",
        dest="model",
        action="append",
        required=True,
        metavar="MODEL",
        help="what to teach, [TASK=]FILE[?KEY=VALUE&...]; once a task",
    )
    parser.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
    parser.add_argument("--fleet", default="default", help="whose questions to answer; + for all (default)")
    parser.add_argument("--task", default="", help="the task of the only model (the file's)")
    parser.add_argument("--name", "--id", dest="name", default=_own_name(), help="of this replica (host and process)")
    parser.add_argument("--cache-bytes", type=int, default=CACHE_BYTES, help="for answers given before (%(default)s)")
    parser.add_argument(
        "--student-bytes-per-s",
        type=float,
        default=0.0,
        metavar="BYTES",
        help="what one device may send to and receive from this replica, bursts of 10 s allowed (no limit)",
    )
    parser.add_argument("--status-file", type=Path, help="where to write a status document once a second")
    parser.add_argument(
        "--metrics",
        metavar="PORT|FILE",
        help="for Prometheus: a port of 127.0.0.1 or HOST:PORT to be scraped, or a .prom file for node_exporter's "
        "textfile collector",
    )
    args = parser.parse_args(argv)
    return run_program("teacher", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
