"""The teacher: a big network that answers the questions of small boards over MQTT. Any number of them share the work.

Replicas need not know of one another: they are one shared subscription, and the broker hands each question to one of
them. Whatever questions are waiting are answered by one forward pass of the bundle's float parameters. A replica that
dies takes the few questions in its hand with it; their students ask again when their time is up.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: replicas, not threads, are how teachers scale

import argparse
import contextlib
import hashlib
import json
import logging
import re
import secrets
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgert import wire
from edgert.errors import ConfigError, MessageError, StoreError
from edgert.knowledge.codec import CODEC_FRAMES_ZSTD
from edgert.knowledge.teaching import TeacherCache, answer_all
from edgert.nets import F32, U8, forward
from edgert.policy import artifact
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Published, Received
from edgert.ports.process import Stopping, run_program, usage
from edgert.ports.store import write_atomic

ANSWER_EXPIRY_S = 30
CACHED_ANSWERS = 65_536
ROWS_AT_ONCE = 2048
"""Observations decoded at once, over all questions; bounds memory, not the size of a question."""
FORWARD_ROWS = 256
BACKLOG_BYTES = 8 * wire.MAX_PAYLOAD_BYTES
STATUS_EVERY_S = 1.0
DRAIN_S = 5.0
QUIET_S = 0.3
"""How long nothing more must arrive after unsubscribing; MQTT promises no last message."""

log = logging.getLogger("edgert.teacher")


class Answered(NamedTuple):
    """An answer until the broker has it. Its identity is the token of its publish."""

    topic: str
    payload: bytes
    correlation: bytes | None
    until_s: float


class Teacher:
    """One replica: counts everything, is stopped by nothing a peer can send.

    Attributes:
        counts: what was done, since start.
        faults: named fault -> count: `topic`, `response-topic`, `malformed` (no answer is given), the named refusals
            that were answered, and what went wrong with answers on their way out.
    """

    def __init__(self, data: bytes, mqtt: Mqtt, *, fleet: str, name: str, task: str) -> None:
        """Check the bundle and warm the network.

        Args:
            data: the bundle file.
            mqtt: not necessarily started.
            fleet: whose questions are answered; `+` for all.
            name: of this replica, in its telemetry.
            task: what is taught; empty for what the bundle was made for.

        Raises:
            ArtifactError: the bundle is not sound.
            ConfigError: fleet, name or task cannot be part of a topic.
        """
        policy = artifact.load(data)
        self.params, self.spec = policy.params, policy.spec
        self.teacher, self.task = hashlib.sha256(data).hexdigest()[:16], task or policy.manifest.task
        self.fleet, self.name, self.mqtt = fleet, name, mqtt
        for said, word in (("task", self.task), ("name", name), ("fleet", "all" if fleet == "+" else fleet)):
            if not wire.is_name(word):
                raise ConfigError(f"{said} {word!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
        self.filter = f"$share/teachers-{self.task}/{wire.Topic(fleet, '+', 'know', 'ask', self.task)}"
        self.status_topic = str(wire.Topic("-" if fleet == "+" else fleet, name, "tele", "teacher", self.task))
        self.cache = TeacherCache(CACHED_ANSWERS)
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.largest_batch = self.up = 0
        self.asks: deque[Received] = deque()
        self.answers: deque[Answered] = deque()
        self.started_s = time.monotonic()
        self._model(policy.golden_obs)

    def turn(self, timeout_s: float) -> bool:
        """Wait for something to happen, and do everything there is to do.

        Args:
            timeout_s: most time to wait.

        Returns:
            True when a question had come.

        Blocks:
            `timeout_s`, then as long as the network takes.
        """
        if sum(len(answer.payload) for answer in self.answers) > BACKLOG_BYTES:
            # Until the broker takes answers, no questions are taken from it: they stay there, unacknowledged.
            time.sleep(min(timeout_s, 0.05))
            self._send()
            return False
        poller = select.poll()
        poller.register(self.mqtt.fileno(), select.POLLIN)
        poller.poll(timeout_s * 1000)
        for event in self.mqtt.events():
            match event:
                case Received():
                    self.asks.append(event)
                case LinkUp():
                    self.up = 1
                    log.info("connected; answering %s as %s", self.filter, self.teacher)
                case LinkDown(reason=reason, retry_s=retry_s, unconfirmed=unconfirmed):
                    self.up = 0
                    log.info("%s; again in %.1f s", reason, retry_s)
                    # The broker may have them already: a student ignores what comes twice.
                    self.answers.extend(each for each in unconfirmed if isinstance(each, Answered))
                case Published(ok=False, reason_code=code):
                    self.faults["answer-refused"] += 1
                    log.warning("the broker refused an answer: reason code 0x%02x", code)
        came = bool(self.asks)
        while self.asks:
            self._answer(list(self._next_asks()))
        self._send()
        return came

    def _next_asks(self) -> Iterator[tuple[wire.Topic, wire.KnowAsk, bytes | None]]:
        """As many waiting questions as may be decoded at once, at least one; those that make no sense are counted."""
        rows = 0
        while self.asks and rows < ROWS_AT_ONCE:
            event = self.asks.popleft()
            self.counts["asks"] += 1
            self.counts["bytes_in"] += len(event.payload)
            try:
                topic = wire.parse_topic(event.topic)
            except MessageError as error:
                self._fault("topic", error)
                continue
            if event.response_topic not in (None, str(_answer_topic(topic))):
                self._fault("response-topic", f"{event.topic} wants its answer at {event.response_topic!r:.120}")
                continue
            try:
                ask, _ = wire.decode(event.payload, wire.KnowAsk)
            except MessageError as error:
                self._fault("malformed", f"{event.topic}: {error}")
                continue
            rows += ask.count
            yield topic, ask, event.correlation

    def _answer(self, asks: list[tuple[wire.Topic, wire.KnowAsk, bytes | None]]) -> None:
        if not asks:
            return
        told = answer_all(
            [ask for _, ask, _ in asks],
            self._model,
            teacher=self.teacher,
            task=self.task,
            obs_shape=self.spec.input_shape,
            n_actions=self.spec.n_actions,
            cache=self.cache,
        )
        until_s = time.monotonic() + ANSWER_EXPIRY_S
        for (asked, ask, correlation), answer in zip(asks, told, strict=True):
            topic = str(_answer_topic(asked))
            payload = wire.encode(answer)
            limit_bytes = self.mqtt.max_payload_bytes(topic)
            if limit_bytes is not None and len(payload) > limit_bytes:
                answer = _refusal(self.teacher, "too-many")
                payload = wire.encode(answer)
            if answer.error:
                self._fault(answer.error, f"{asked.device} asked about {ask.count} observations of {ask.task!r:.80}")
            self.counts["observations"] += answer.count
            self.answers.append(Answered(topic, payload, correlation, until_s))
        self.counts["batches"] += 1
        self.largest_batch = max(self.largest_batch, len(asks))

    def _send(self) -> None:
        """Hand answers to the broker as far as it takes them; nobody waits for what is older than its expiry."""
        now_s = time.monotonic()
        while self.answers:
            answer = self.answers[0]
            left_s = answer.until_s - now_s
            if left_s < 1:
                self.faults["answer-too-late"] += 1
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
                self.counts["answers"] += 1
                self.counts["bytes_out"] += len(answer.payload)
            self.answers.popleft()

    def _model(self, obs: U8) -> F32:
        last, n_actions = self.spec.n_exits - 1, self.spec.n_actions
        parts = (obs[first : first + FORWARD_ROWS] for first in range(0, len(obs), FORWARD_ROWS))
        q = [forward(self.params, part, exits=(last,))[last][:, :n_actions] for part in parts]
        self.counts["forward_rows"] += len(obs)
        return np.concatenate(q)

    def _fault(self, name: str, why: object) -> None:
        self.faults[name] += 1
        # A broken student repeats itself; the first of each kind says enough.
        log.log(logging.WARNING if self.faults[name] == 1 else logging.DEBUG, "%s: %s", name, why)

    def status(self) -> dict[str, Any]:
        """What is published and written once a second; counters are totals since start."""
        cpu_s, rss_bytes = usage()
        counts, batches = self.counts, max(1, self.counts["batches"])
        return {
            "teacher": self.teacher,
            "task": self.task,
            "up": bool(self.up),
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "asks": counts["asks"],
            "answers": counts["answers"],
            "observations": counts["observations"],
            "bytes_in": counts["bytes_in"],
            "bytes_out": counts["bytes_out"],
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "batches": counts["batches"],
            "asks_per_batch": round(counts["asks"] / batches, 2),
            "largest_batch": self.largest_batch,
            "forward_rows": counts["forward_rows"],
            "waiting_answers": len(self.answers),
            "faults": {**self.faults, **self.mqtt.faults()},
            "cpu_s": round(cpu_s, 2),
            "rss_bytes": rss_bytes,
        }

    def report(self, status_file: Path | None) -> None:
        """Publish the status, and write it to a file where one is wanted."""
        status = self.status()
        payload = wire.encode(wire.Telemetry(at_s=time.time(), status=status))
        self.mqtt.publish(self.status_topic, payload, qos=0, expiry_s=10, content_type=wire.CONTENT_TYPE)
        if status_file is not None:
            try:
                write_atomic(status_file, json.dumps(status, indent=1).encode(), 0o644)
            except StoreError as error:
                self._fault("status-not-written", error)

    def drain(self) -> None:
        """Take no more questions, and answer those that are on their way."""
        self.mqtt.unsubscribe([self.filter])
        end_s = time.monotonic() + DRAIN_S
        quiet_s = max(QUIET_S, 4 * (self.mqtt.rtt_s() or 0.0))
        while self.mqtt.is_up() and time.monotonic() < end_s and self.turn(quiet_s):
            pass


def _answer_topic(asked: wire.Topic) -> wire.Topic:
    return asked._replace(type="answer")


def _refusal(teacher: str, error: str) -> wire.KnowAnswer:
    return wire.KnowAnswer(teacher=teacher, count=0, codec=CODEC_FRAMES_ZSTD, data=b"", error=error)


def _own_name() -> str:
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:48]
    return f"{host or 'teacher'}-{os.getpid()}"


def run(args: argparse.Namespace) -> int:
    """Answer until told to stop."""
    try:
        data = args.model.read_bytes()
    except OSError as error:
        raise ConfigError(f"{args.model}: {error.strerror}; --model takes a .edgert file") from error
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
    with contextlib.closing(mqtt):
        teacher = Teacher(data, mqtt, fleet=args.fleet, name=args.name, task=args.task)
        log.info("teacher %s of %s, %d parameters", teacher.teacher, teacher.task, teacher.params.flat.size)
        mqtt.subscribe([(teacher.filter, 1)])
        mqtt.start()
        stopping = Stopping()
        report_s = time.monotonic()
        while not stopping:
            teacher.turn(0.25)
            if time.monotonic() >= report_s:
                report_s = time.monotonic() + STATUS_EVERY_S
                teacher.report(args.status_file)
            if not mqtt.healthy():
                log.error("the link's thread stands still")
                return 1
        teacher.drain()
        teacher.report(args.status_file)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one teacher.

    Returns:
        0 stopped in good order, 1 error, 78 wrong arguments or bundle.
    """
    parser = argparse.ArgumentParser(prog="edgert teacher", description="Answer the questions of students over MQTT.")
    parser.add_argument("--model", "--bundle", dest="model", type=Path, required=True, help="what to teach")
    parser.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
    parser.add_argument("--fleet", default="default", help="whose questions to answer; + for all (default)")
    parser.add_argument("--task", default="", help="what to teach (the bundle's)")
    parser.add_argument("--name", "--id", dest="name", default=_own_name(), help="of this replica (host and process)")
    parser.add_argument("--status-file", type=Path, help="where to write a status document once a second")
    args = parser.parse_args(argv)
    return run_program("teacher", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
