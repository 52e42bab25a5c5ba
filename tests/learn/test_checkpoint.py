"""A killed training that resumes ends where an undisturbed one ends, to the bit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import ArtifactError
from edgert.learn.checkpoint import Checkpoint, pack
from edgert.learn.dqn import Learner
from edgert.nets import Dense, NetSpec, Relu, initialise

STEPS = 120

TRAINING = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    from edgert.learn.checkpoint import Checkpoint, pack
    from edgert.learn.dqn import Hyper, Learner
    from edgert.learn.replay import Replay
    from edgert.nets import Conv, Dense, NetSpec, Relu, initialise
    from edgert.ports.store import Generations, write_atomic

    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    spec = NetSpec((6, 6, 2), 3, trunk=((Conv(4, 3), Relu()), (Dense(16), Relu())), heads=((), ()))
    world = np.random.default_rng(7)
    replay = Replay(200, spec.input_shape, 3)
    n = 150
    replay.add(np.arange(1, n + 1), world.integers(0, 2, (n, 6, 6, 2)).astype(np.uint8), world.integers(0, 3, n),
               world.random(n).astype(np.float32), world.random(n) < 0.1, np.zeros(n, bool))
    answers = world.random((n, 4)).astype(np.float32)
    learner, rng = Learner(initialise(spec, np.random.default_rng(1))), np.random.default_rng(2)
    generations = Generations(folder / "checkpoints")
    found = generations.latest()
    if found:
        Checkpoint(found[1], schema="s").restore(learner, rng)
        for i in range(learner.steps):                              # what was said has a file of its own
            replay.teach(i + 1, answers[i])
        print("resumed", learner.steps, flush=True)
    while learner.steps < steps:
        replay.teach(learner.steps + 1, answers[learner.steps])     # knowledge comes in while it trains
        learner.step(replay.sample(rng, 8), Hyper(target_every=17))
        if learner.steps % 5 == 0:
            generations.commit(pack(learner, rng, newest_seq=n, schema="s", counters={"steps": learner.steps}))
            print("committed", learner.steps, flush=True)
    write_atomic(folder / "end.f32", learner.params.flat.tobytes() + learner.m.tobytes() + learner.v.tobytes())
""")


def train(folder: Path, kill_after_s: float | None = None) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    command = [sys.executable, "-c", TRAINING, str(folder), str(STEPS)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        if kill_after_s is not None:
            lines.append(process.stdout.readline())  # it is past its imports: kill it while it works
            time.sleep(kill_after_s)
            process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]  # the kill may have torn the last one


def test_kill_9_at_any_point_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    wanted = (tmp_path / "whole" / "end.f32").read_bytes()
    chance, killed, acknowledged = random.Random(3), 0, 0
    folder = tmp_path / "killed"
    for _ in range(12):
        lines = train(folder, kill_after_s=chance.uniform(0, 0.03))
        resumed = [int(line.split()[1]) for line in lines if line.startswith("resumed")]
        if resumed:
            assert resumed[0] >= acknowledged, "a committed checkpoint was lost"
        acknowledged = max([acknowledged, *(int(line.split()[1]) for line in lines if line.startswith("committed"))])
        killed += not (folder / "end.f32").exists()
    assert killed, "never killed in the middle: the test proves nothing"
    train(folder)
    assert (folder / "end.f32").read_bytes() == wanted


SPEC = NetSpec((2, 2, 1), 2, trunk=((Dense(3), Relu()),), heads=((),))


def small() -> tuple[Learner, np.random.Generator]:
    return Learner(initialise(SPEC, np.random.default_rng(0))), np.random.default_rng(1)


def test_another_policy_is_refused() -> None:
    data = pack(*small(), newest_seq=5, schema="a", counters={"x": 3}, tutor=b"thinks so")
    opened = Checkpoint(data, schema="a")
    assert (opened.counters, opened.tutor, opened.newest_seq) == ({"x": 3}, b"thinks so", 5)
    with pytest.raises(ArtifactError, match="another policy"):
        Checkpoint(data, schema="b")
    bigger = NetSpec((2, 2, 1), 2, trunk=((Dense(4), Relu()),), heads=((),))
    with pytest.raises(ArtifactError, match="does not fit"):
        Checkpoint(data, schema="a").restore(
            Learner(initialise(bigger, np.random.default_rng(0))), np.random.default_rng()
        )


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 2000), junk=st.binary(max_size=30))
def test_damage_is_an_artifact_error(cut: int, junk: bytes) -> None:
    data = pack(*small(), newest_seq=5, schema="a", counters={})
    damaged = data[: cut % len(data)] + junk
    with contextlib.suppress(ArtifactError):
        Checkpoint(damaged, schema="a").restore(*small())


def test_a_map_with_wrong_fields_is_an_artifact_error() -> None:
    for document in ({}, {"format": 1}, [], {"format": 1, "schema": "a", "steps": "x"}):
        with pytest.raises(ArtifactError):
            Checkpoint(cbor2.dumps(document), schema="a")
