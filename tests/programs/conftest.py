"""An actor without a process: a scripted plant, stubs for networks, and a line to the supervisor that only listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, config
from edgert.nets import F32, U8
from edgert.policy import artifact
from edgert.ports.plant import Observation
from edgert.ports.process import Layout
from edgert.ports.ring import RingReader
from edgert.ports.runtime import Inference
from edgert.programs import actor as program
from edgert.programs.actor import Actor
from edgert.programs.loader import Prepared
from edgert.values import Swap

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
MANIFEST = bundle.read(DATA).manifest


class Told:
    """Takes the place of the line to the supervisor."""

    lost_s = None

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.says: list[Any] = []

    def send(self, told: Any, *, keep: bool = False) -> bool:
        self.told.append(told)
        return True

    def receive(self) -> list[Any]:
        said, self.says = self.says, []
        return said

    def close(self) -> None:
        pass

    def of(self, *kinds: type) -> list[Any]:
        return [told for told in self.told if isinstance(told, kinds)]


class Plant:
    """Shows what the test put on its list, and remembers what it was told to do."""

    paced = True
    last_fault = ""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.shows: list[Observation | None] = []
        self.applied: list[tuple[int, int, float | None, int]] = []
        self.calls: list[str] = []
        self.closed = False

    def observe(self, timeout_s: float) -> Observation | None:
        self.calls.append("observe")
        return self.shows.pop(0) if self.shows else None

    def apply(self, action: int, *, exit: int, confidence: float | None, generation: int) -> None:
        self.calls.append("apply")
        self.applied.append((action, exit, confidence, generation))

    def close(self) -> None:
        self.closed = True


class Stub:
    """Answers with what it was given, at the first exit whose threshold is -inf, or the last."""

    name = "stub"

    def __init__(self, head: list[float]) -> None:
        self.head = head
        self.asked: list[F32] = []
        self.closed = False

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        self.asked.append(threshold_logits.copy())
        taken = [*np.isneginf(threshold_logits), True].index(True)
        return Inference(np.array(self.head, np.float32), taken)

    def close(self) -> None:
        self.closed = True


class Sure(Stub):
    """Exit 0 answers whenever its threshold allows, with this confidence logit; the best action counts upwards."""

    def __init__(self, logit: float) -> None:
        super().__init__([])
        self.logit = logit

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        self.asked.append(threshold_logits.copy())
        head = np.zeros(4, np.float32)
        head[(len(self.asked) - 1) % 3], head[3] = 1.0, self.logit
        return Inference(head, 0 if self.logit >= threshold_logits[0] else 2)


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def show(seq: int, **fields: Any) -> Observation:
    """What follows from an action of episode 1, without a reward; `fields` change that."""
    base = {"reward": 0.0, "terminated": False, "truncated": False, "episode": 1, "action": 1, "stream": 0}
    base["obs"] = np.full(MANIFEST.observation.shape, seq % 2, np.uint8)
    return Observation(seq=seq, **{**base, **fields})


class Rig(Actor):
    """An actor with handles for its tests."""

    plant: Any
    parent: Any

    def told(self, *kinds: type) -> list[Any]:
        """What it tells from now on goes to a list; what of these kinds is on it."""
        if not isinstance(self.parent, Told):
            self.parent = Told()
        return self.parent.of(*kinds)

    def take(self, swap: Swap, runtime: Any, policy: artifact.Policy, costs_s: tuple[float, ...] = ()) -> None:
        """As the loader does."""
        self.loader.done.put(Prepared(swap, runtime, policy, "", 0.1, costs_s))
        self._swap_if_ready()

    def give(self, network: Any, generation: int = 0) -> Any:
        """A network that was learnt here and that nobody has measured: a runtime, or the head of a `Stub`."""
        runtime = Stub(network) if isinstance(network, list) else network
        policy = artifact.load(DATA)
        manifest = msgspec.structs.replace(policy.manifest, frontier=None)
        self.take(Swap(generation, "", ""), runtime, policy._replace(bundle=policy.bundle._replace(manifest=manifest)))
        return runtime

    def sure(self, logit: float, generation: int = 0) -> Any:
        """A `Sure` network, alike."""
        return self.give(Sure(logit), generation)

    def load(self, swap: Swap, until: Callable[..., None]) -> None:
        """Let the real loader prepare it, and swap."""
        if not self.loader.is_alive():
            self.loader.start()
        self._heed(swap)
        until(lambda: self.loader.done.qsize(), "the loader")
        self._swap_if_ready()

    def tick(self, seq: int | None, *, within_s: float = 1.0, **fields: Any) -> None:
        """One tick that sees `show(seq, **fields)`, or nothing."""
        self._tick(None if seq is None else show(seq, **fields), program.time.monotonic() + within_s)

    def applied(self) -> list[int]:
        return [action for action, *_ in self.plant.applied]

    def records(self) -> Any:
        reader = RingReader(self.config.device.state_dir + "/ring.bin")
        return reader.read(1, reader.newest_seq())


@pytest.fixture
def line() -> Callable[[], Told]:
    return Told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The actor's time."""
    made = Clock()
    monkeypatch.setattr(program.time, "monotonic", made)
    return made


@pytest.fixture
def shown() -> Callable[..., Observation]:
    return show


@pytest.fixture
def configured(folder: Path) -> Callable[..., config.Config]:
    def make(**settings: object) -> config.Config:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        base = {
            "device.id": "d",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder),
            "policy.bundle": str(BUNDLE),
            "policy.runtime": "numpy",
            "learn.ring_transitions": 100,
            "learn.min_transitions": 50,
        }
        made = config.parse(config.commented_default({**base, **named}), "test")
        Layout(made).make()
        return made

    return make


@pytest.fixture
def make_actor(configured: Callable[..., config.Config]) -> Callable[..., Rig]:
    def make(plant: Any = None, **settings: object) -> Rig:
        conf = configured(**settings)
        return Rig(conf, Layout(conf), MANIFEST, plant or Plant())

    return make
