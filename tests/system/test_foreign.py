"""A program of the user's learns on the device beside its trainer, through the same daemon, broker and teacher."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert.ports import broker as brokers
from edgert.ports import ipc
from edgert.ports.cluster import Cluster
from edgert.values import Ask, StatusReply, StatusRequest

pytestmark = pytest.mark.system

DEVICE = "device-1"
BYTES_PER_S = 2000.0

PROGRAM = """
import json, sys, time
import numpy as np
from edgert.client.gym import Taught
from edgert.client.teacher import Teacher
from edgert.ports.plant import worlds

with Teacher(sys.argv[1], task="breakout", n_actions=3) as teacher:
    env = Taught(worlds.make("MinAtar/Breakout-v1"), teacher)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    while True:
        for _ in range(100):
            _, _, terminated, truncated, info = env.step(int(rng.integers(3)))
            if terminated or truncated:
                env.reset()
        print(json.dumps(teacher.status()), flush=True)
        time.sleep(0.2)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if brokers.mosquitto_path() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto): no program has met a real device")
    settings = {"teacher.max_bytes_per_s": BYTES_PER_S, "learn.min_transitions": 64}
    made = Cluster(tmp_path, devices=1, teachers=1, broker="mosquitto", device_config=settings)
    made.start()
    yield made
    made.stop()


def status(cluster: Cluster) -> dict[str, Any] | None:
    cluster.poll()
    channel = ipc.connect(cluster.run_dir(DEVICE) / "control.sock")
    if channel is None:
        return None
    channel.send(StatusRequest())
    for _ in range(50):
        channel.wait(0.1)
        for told in channel.receive():
            if isinstance(told, StatusReply):
                channel.close()
                return told.status
    channel.close()
    return None


def test_it_is_taught_within_the_budget_that_it_shares_and_a_vandal_beside_it_changes_nothing(
    cluster: Cluster, tmp_path: Path, until: Any
) -> None:
    pytest.importorskip("minatar", reason="the program plays a game of MinAtar")
    knowledge = cluster.run_dir(DEVICE) / "knowledge.sock"
    until(lambda: ((status(cluster) or {}).get("trainer") or {}).get("answered"), "the trainer to be taught", 60.0)
    until(knowledge.exists, "the desk")
    at_s, before = time.monotonic(), status(cluster)
    log = tmp_path / "program.log"
    with log.open("wb") as out:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(knowledge)], stdout=out, stderr=out, env={**os.environ}
        )
    try:

        def answered() -> bool:
            assert program.poll() is None, log.read_text()
            # Questions that make no sense, without end, by somebody who is thrown out and comes again.
            vandal = ipc.connect(knowledge)
            if vandal is not None:
                for i in range(200):
                    vandal.send(Ask(i, b"junk"))
                vandal.close()
            status(cluster)
            lines = log.read_text().splitlines()
            return any('"known": ' in line and int(line.split('"known": ')[1].split(",")[0]) > 200 for line in lines)

        until(answered, "the program to be taught", 60.0)
    finally:
        program.kill()
        program.wait()
    after, took_s = status(cluster), time.monotonic() - at_s
    assert before is not None and after is not None
    spent, taught = (
        {key: after["counters"].get(key, 0) - before["counters"].get(key, 0) for key in ("ask-bytes", "answer-bytes")},
        after["trainer"]["answered"] - before["trainer"]["answered"],
    )
    assert taught > 0, "the trainer goes on being taught"
    # What may be saved up, and a question of each on its way, come on top.
    assert sum(spent.values()) < BYTES_PER_S * took_s + 12 * BYTES_PER_S + 20_000
    assert after["children"]["actor"]["failures"] == 0 and after["children"]["trainer"]["failures"] == 0
