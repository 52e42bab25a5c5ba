"""`python -m tools.bench teacher`: how fast one replica answers, by itself and through a broker on this machine.

CPU seconds for what it does by itself, so that a busy machine says the same as an idle one; wall seconds for round
trips, which a busy machine makes longer.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, as in the teacher itself

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgert import wire
from edgert.knowledge.codec import CODEC_FRAMES_ZSTD, CODECS
from edgert.knowledge.teaching import Subject, answer_all
from edgert.nets import U8
from edgert.policy import artifact
from edgert.ports import broker
from edgert.ports.models import open_subject, parse_source
from edgert.ports.mqtt import Mqtt, Received

MODELS = Path(__file__).parents[2] / "models"
BATCHES = (1, 32, 256)
ROUNDS = 9
FLIGHT = 16
"""Questions under way at once where throughput is measured."""


def distinct(golden: U8, n: int, rng: np.random.Generator) -> U8:
    """Observations like the golden ones, each with one pixel changed, so that no cache knows them."""
    obs: U8 = golden[rng.integers(0, len(golden), n)].copy()
    rows = obs.reshape(n, -1)
    for _ in range(3):
        rows[np.arange(n), rng.integers(0, rows.shape[1], n)] ^= 1
    return obs


def question(subject: Subject, obs: U8) -> wire.KnowAsk:
    """As a student asks."""
    return wire.KnowAsk(
        task=subject.task,
        obs_shape=subject.obs_shape,
        n_actions=subject.n_actions,
        count=len(obs),
        codec=CODEC_FRAMES_ZSTD,
        data=CODECS[CODEC_FRAMES_ZSTD].encode_obs(obs),
    )


def by_itself(subject: Subject, golden: U8, rows: int, rng: np.random.Generator) -> tuple[float, float]:
    """Rows a CPU second: the model's, and with decoding, hashing and encoding."""
    took_s = []
    for _ in range(ROUNDS):
        obs = distinct(golden, rows, rng)
        ask = question(subject, obs)
        began_s = time.thread_time()
        subject.model(obs)
        middle_s = time.thread_time()
        answer_all([ask], subject)
        took_s.append((middle_s - began_s, time.thread_time() - middle_s))
    model_s, whole_s = np.median(took_s, axis=0)
    return rows / model_s, rows / whole_s


def over_the_broker(url: str, subject: Subject, golden: U8, rng: np.random.Generator, seconds: float) -> list[float]:
    """Quartiles of the round trip of a question about one observation, in milliseconds; then rows a wall second."""
    topic = str(wire.Topic("bench", "student", "know", "ask", subject.task))
    trips_s: list[float] = []
    answered = 0
    with Mqtt(url, "student", session_expiry_s=0) as mqtt:
        mqtt.subscribe([(topic.replace("/ask/", "/answer/"), 1)])

        def hear(n: int, until_s: float) -> int:
            heard = 0
            while heard < n and time.monotonic() < until_s:
                told = [
                    wire.decode(each.payload, wire.KnowAnswer)[0]
                    for each in mqtt.events()
                    if isinstance(each, Received)
                ]
                if any(each.error for each in told):
                    raise SystemExit(f"refused: {[each.error for each in told]}")
                heard += len(told)
                time.sleep(0 if told else 0.0001)
            return heard

        def ask(rows: int) -> None:
            payload = wire.encode(question(subject, distinct(golden, rows, rng)))
            while not mqtt.publish(topic, payload, qos=1):
                time.sleep(0.01)

        ask(1)
        while not hear(1, time.monotonic() + 1):  # the subscriptions of either side may not stand yet
            ask(1)
        hear(FLIGHT, time.monotonic() + 1)
        while len(trips_s) < 300:
            payload = wire.encode(question(subject, distinct(golden, 1, rng)))
            began_s = time.monotonic()
            mqtt.publish(topic, payload, qos=1)
            hear(1, began_s + 10)
            trips_s.append(time.monotonic() - began_s)
        ready = [wire.encode(question(subject, distinct(golden, 32, rng))) for _ in range(200)]
        began_s, sent = time.monotonic(), 0
        while time.monotonic() - began_s < seconds and answered < len(ready):
            while sent < len(ready) and sent - answered < FLIGHT and mqtt.publish(topic, ready[sent], qos=1):
                sent += 1
            answered += hear(1, time.monotonic() + 10)
        took_s = time.monotonic() - began_s
    return [*(1000 * np.quantile(trips_s, (0.25, 0.5, 0.75))), 32 * answered / took_s]


def main(argv: Sequence[str]) -> int:
    """Measure the shipped teachers."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench teacher", description=__doc__)
    parser.add_argument("--games", nargs="+", default=["breakout", "space_invaders", "pong"])
    parser.add_argument("--seconds", type=float, default=10.0, help="most time for one throughput (10)")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    files = {game: MODELS / f"{game}-teacher.edgert" for game in args.games}
    subjects = {game: open_subject(parse_source(str(file))) for game, file in files.items()}
    golden = {game: artifact.load(file.read_bytes()).golden_obs for game, file in files.items()}
    for game, subject in subjects.items():
        for rows in BATCHES:
            model, whole = by_itself(subject, golden[game], rows, rng)
            print(f"{game}: {rows} rows at once: {model:.0f} rows/CPU-s in the model, {whole:.0f} with codec and hash")
    with tempfile.TemporaryDirectory() as folder:
        server = broker.start("mosquitto", Path(folder))
        models = [word for file in files.values() for word in ("--model", str(file))]
        command = [sys.executable, "-m", "edgert.programs.teacher", *models, "--broker", server.url, "--fleet", "bench"]
        replica = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            for game, subject in subjects.items():
                low, mid, high, rate = over_the_broker(server.url, subject, golden[game], rng, args.seconds)
                print(f"{game}: round trip {low:.2f} / {mid:.2f} / {high:.2f} ms (quartiles); {rate:.0f} rows/s")
        finally:
            replica.terminate()
            replica.wait(20)
            server.stop()
    return 0
