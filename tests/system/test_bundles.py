"""Broken bundles and broken observations, offered to real processes: each is named, and the device goes on.

The test plays the supervisor: it listens on the control socket of an actor whose plant is the socket of
`edgert.client`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import bundle, onnxfile
from edgert.client import Policy
from edgert.config import commented_default
from edgert.errors import UsageError
from edgert.policy import artifact
from edgert.ports import ipc
from edgert.programs.world import World
from edgert.values import ActorReport, Budget, Happened, Hello, Stop, Swap, Swapped

pytestmark = pytest.mark.system

HOUSE = Path(__file__).parents[2]
SHAPE = (10, 10, 4)


class Supervised:
    """An actor process, its supervisor being the test."""

    def __init__(self, folder: Path, bundle_path: Path) -> None:
        self.run = Path(tempfile.mkdtemp(prefix="edgert-", dir="/tmp"))
        self.config, self.log = folder / "edgert.toml", folder / "log"
        self.config.write_text(
            commented_default(
                {
                    "device.id": "d",
                    "device.state_dir": str(folder / "state"),
                    "device.run_dir": str(self.run),
                    "policy.bundle": str(bundle_path),
                    "learn.ring_transitions": 1000,
                }
            )
        )
        self.listener = ipc.listen(self.run / "control.sock")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgert.programs.actor", "--config", str(self.config)],
                stderr=log,
                cwd=HOUSE,
                env={**os.environ, "PYTHONPATH": str(HOUSE)},
            )
        self.channel: ipc.Channel | None = None
        self.heard: list[Any] = []

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = 30.0) -> Any:
        deadline_s = time.monotonic() + patience_s
        while True:
            assert self.process.poll() is None, self.log.read_text()
            if self.channel is None:
                self.channel = ipc.accept(self.listener)
            else:
                self.channel.flush()
                self.heard += self.channel.receive()
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline_s, f"{what} did not come true in {patience_s} s: {self.log.read_text()}"
            time.sleep(0.01)

    def of(self, kind: type) -> list[Any]:
        return [told for told in self.heard if isinstance(told, kind)]

    def tell(self, told: Any) -> None:
        assert self.channel is not None
        assert self.channel.send(told)

    def swap(self, generation: int, path: Path, sha256: str | None = None, meanwhile: Any = lambda: None) -> Swapped:
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
        self.tell(Swap(generation, str(path), sha256 or found))

        def answered() -> Any:
            meanwhile()
            return [told for told in self.of(Swapped) if told.generation == generation]

        outcome: Swapped = self.until(answered, f"the outcome of swap {generation}")[0]
        return outcome

    def policy(self) -> Policy:
        return Policy(self.run / "policy.sock", timeout_s=5.0)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.close()
        if self.channel is not None:
            self.channel.close()
        shutil.rmtree(self.run, ignore_errors=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Supervised]]:
    started: list[Supervised] = []

    def make(bundle_path: Path) -> Supervised:
        started.append(Supervised(tmp_path_factory.mktemp("actor"), bundle_path))
        actor = started[-1]
        actor.until(lambda: actor.of(Hello), "a hello")
        actor.tell(Budget(max_exit=2, train_steps_hz=0.0, teacher_bytes_per_s=0.0))
        return actor

    yield make
    for actor in started:
        actor.end()


@pytest.fixture(scope="module")
def actor(start: Callable[[Path], Supervised], models: Path) -> Supervised:
    made = start(models / "breakout.edgert")
    made.until(lambda: any(report.acting for report in made.of(ActorReport)), "an acting policy")
    return made


def rewritten(data: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The same archive with one member changed, sound as a ZIP."""
    packed = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename == name else content)
    return packed.getvalue()


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def flipped_in_place(data: bytes, name: str) -> bytes:
    """One bit of a member changed on the disk, as flash does it."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        info = archive.getinfo(name)
    at = info.header_offset + 30 + len(name) + info.file_size // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def with_manifest(data: bytes, **changes: object) -> bytes:
    return rewritten(data, "manifest.json", lambda old: json.dumps({**json.loads(old), **changes}).encode())


def patched(data: bytes) -> bytes:
    """Every hash is right, and the network answers something else than its golden vectors."""
    policy = artifact.load(data)
    halved = {**policy.tensors, "h1.out.w": (policy.tensors["h1.out.w"] // 2).astype(np.int8)}
    members = {**policy.bundle.members, "policy.onnx": onnxfile.patch(policy.onnx, halved)}
    # Without the LiteRT stages, which would be found to say something else before anything is run.
    return bundle.write(policy.manifest, {name: each for name, each in members.items() if ".tflite" not in name})


def malformed(models: Path) -> dict[str, tuple[bytes, str]]:
    """What is wrong -> the bundle, and the words that must say so."""
    good = (models / "breakout.edgert").read_bytes()
    other = (models / "space_invaders.edgert").read_bytes()
    cases = {
        "empty": (b"", "not a readable ZIP"),
        "noise": (bytes(range(256)) * 40, "not a readable ZIP"),
        "truncated": (good[: len(good) // 2], "not a readable ZIP"),
        "thresholds": (with_manifest(good, thresholds=[0.5]), "thresholds: 1 for 3 exits"),
        "threshold-range": (with_manifest(good, thresholds=[0.5, 1.5]), "thresholds"),
        "schema": (other, "another observation or action schema"),
        "golden": (patched(good), "the bundle or the runtime is broken"),
    }
    for name in (*bundle.MEMBERS, "manifest.json"):
        cases[f"flipped {name}"] = (flipped_in_place(good, name), "not a readable ZIP")
    for name in bundle.MEMBERS:
        cases[f"other {name}"] = (rewritten(good, name, flipped), f"member {name} is not what the manifest says")
    return cases


def test_no_malformed_bundle_takes_the_place_of_the_policy_that_acts(
    actor: Supervised, models: Path, tmp_path: Path, measured: Callable[..., None]
) -> None:
    obs = np.random.default_rng(0).integers(0, 2, SHAPE, np.uint8)
    refusals = {}
    with actor.policy() as policy:
        wanted = policy.decide(obs)
        assert wanted.generation == 0
        assert wanted.confidence is not None

        def still_the_same() -> None:
            assert policy.decide(obs) == wanted

        for generation, (what, (data, words)) in enumerate(malformed(models).items(), 1):
            path = tmp_path / "offered.edgert"
            path.write_bytes(data)
            outcome = actor.swap(generation, path, meanwhile=still_the_same)
            assert not outcome.ok, what
            assert outcome.why.startswith("ArtifactError: "), what
            assert words in outcome.why, what
            refusals[what] = outcome.why[:80]
            still_the_same()
        good = tmp_path / "good.edgert"
        shutil.copy(models / "breakout.edgert", good)
        for outcome, words in (
            (actor.swap(50, good, "0" * 64), "not the file that was offered"),
            (actor.swap(51, tmp_path / "gone.edgert"), "No such file"),
        ):
            assert not outcome.ok
            assert words in outcome.why
        still_the_same()
        report = actor.until(
            lambda: [r for r in actor.of(ActorReport) if r.faults.get("policy-refused") == len(refusals) + 2],
            "the count",
        )[-1]
        outcome = actor.swap(99, good, meanwhile=lambda: policy.decide(obs))
        assert outcome.ok
        assert policy.decide(obs).generation == 99
    measured(refused=len(refusals) + 2, missed=report.missed, prepare_s=round(outcome.prepare_s, 3))


def test_a_broken_observation_is_named_to_its_sender_and_to_nobody_else(actor: Supervised) -> None:
    obs = np.zeros(SHAPE, np.uint8)
    with actor.policy() as careless, actor.policy() as other:
        assert 0 <= other.act(obs) < 3
        for wrong, words in (
            ({"obs": np.zeros((10, 10, 6), np.uint8)}, "observation-shape: the policy takes"),
            ({"obs": bytes(12), "shape": (2, 2, 3)}, "observation-shape"),
            ({"obs": np.zeros(SHAPE, np.float32)}, "convert it"),
            ({"obs": obs, "reward": float("nan")}, "reward-not-finite"),
            ({"obs": obs, "reward": float("inf")}, "reward-not-finite"),
            ({"obs": obs, "reward": 1e39}, "reward-not-finite"),
        ):
            with pytest.raises(UsageError, match=words):
                careless.act(**wrong)  # type: ignore[arg-type]  # the point of the test
            assert 0 <= careless.act(obs) < 3
            assert 0 <= other.act(obs, reward=1.0) < 3
    # Another language's client need not check anything itself.
    raw = ipc.connect(actor.run / "policy.sock")
    assert raw is not None
    frame = {"obs": obs.tobytes(), "shape": list(SHAPE), "reward": 0.0, "terminated": False, "truncated": False}
    for wrong_frame, name in (
        ({**frame, "dtype": "float32"}, "observation-dtype"),
        ({**frame, "dtype": "uint8", "obs": 7}, "malformed-frame"),
        ({"hello": 1}, "malformed-frame"),
        ({**frame, "dtype": "uint8"}, None),
    ):
        raw.send_map(wrong_frame)
        answers: list[dict[str, object]] = []
        actor.until(lambda a=answers: a.extend(raw.receive_maps()) or a, "an answer")  # type: ignore[misc]  # a lambda's default
        assert answers[0].get("error") == name
    raw.close()
    faults = actor.until(
        lambda: [r.faults for r in actor.of(ActorReport) if r.faults.get("observation-dtype")], "a report"
    )[-1]
    assert faults["observation-shape"] == 2
    assert faults["reward-not-finite"] == 3
    assert faults["malformed-frame"] == 2


def test_a_program_of_a_few_lines_plays_a_game(actor: Supervised) -> None:
    pytest.importorskip("gymnasium")
    world, exits = World("MinAtar/Breakout-v1", 1), set()
    shown: dict[str, Any] = world.now()
    with actor.policy() as policy:
        for _ in range(300):
            told = (shown[key] for key in ("obs", "reward", "terminated", "truncated"))
            decision = policy.decide(*told, shape=shown["shape"])
            shown = world.step(decision.action)
            exits.add(decision.exit)
    world.close()
    assert exits <= {0, 1, 2}
    reports = actor.until(lambda: [r for r in actor.of(ActorReport) if sum(r.exits) >= 300], "a report")
    assert reports[-1].episodes >= 1


def test_an_installed_policy_that_fails_its_golden_vectors_leaves_the_safe_action(
    start: Callable[[Path], Supervised], models: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.edgert"
    broken.write_bytes(patched((models / "breakout.edgert").read_bytes()))
    actor = start(broken)
    told = actor.until(lambda: actor.of(Happened), "an event")[0]
    assert told.name == "policy-refused"
    assert "is broken" in str(told.detail["why"])
    with actor.policy() as policy:
        decision = policy.decide(np.zeros(SHAPE, np.uint8))
        assert decision.confidence is None
        assert decision.action == artifact.load((models / "breakout.edgert").read_bytes()).manifest.safe_action
    # A sound network that is offered later is taken.
    assert actor.swap(1, models / "breakout.edgert").ok
    actor.tell(Stop())
    assert actor.process.wait(10) == 0


def test_what_no_device_can_start_with_is_exit_code_78_and_a_sentence(
    models: Path, tmp_path: Path, make_lone: Callable[..., Any], measured: Callable[..., None]
) -> None:
    good = (models / "breakout.edgert").read_bytes()
    cases: list[tuple[bytes | None, dict[str, object], str]] = [
        (good[:5000], {}, "not a readable ZIP archive"),
        (flipped_in_place(good, "params.f32"), {}, "bundle: not a readable ZIP"),
        (rewritten(good, "golden.head", flipped), {}, "member golden.head is not what the manifest says"),
        (with_manifest(good, thresholds=[]), {}, "thresholds: 0 for 3 exits"),
        (good, {"policy__thresholds": [0.5]}, "policy.thresholds has 1 numbers"),
        (None, {}, "cannot be read: No such file or directory; policy.bundle names"),
    ]
    said = []
    for number, (data, settings, words) in enumerate(cases):
        path = tmp_path / f"{number}.edgert"
        if data is not None:
            path.write_bytes(data)
        device = make_lone(tmp_path / str(number), policy__bundle=str(path), **settings)
        device.start()
        assert device.process.wait(30) == 78
        assert words in device.log()
        assert str(path) in device.log()
        assert "Traceback" not in device.log()
        assert device.group() == []
        said.append(device.log().strip()[:100])
    measured(said=said)
