"""A network that passed the gate and plays badly all the same, on a device of real processes.

The test plays the trainer: what it offers has passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import quant
from edgert.cli import OK, train
from edgert.policy import artifact
from edgert.ports import ipc
from edgert.ports.process import INSTALLED, identity
from edgert.values import Candidate, Hello, Note, Outcome

pytestmark = pytest.mark.system

EPISODES_MAX = 18
"""A network that earns nothing must be gone by then; after the 3rd, 5th, 8th, 12th and 18th it is looked at."""


def network(models: Path, folder: Path, generation: int, sign: float) -> Candidate:
    """The shipped one, with the preferences of every exit as they are or turned round."""
    policy = artifact.load((models / "breakout.edgert").read_bytes())
    params = policy.params.copy()
    for name, view in params.views.items():
        if ".out." in name:
            view[..., : policy.spec.n_actions] *= np.float32(sign)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gen-{generation:08d}.edgert"
    provenance = {INSTALLED: identity(policy.manifest), "generation": generation}
    made = quant.fit(params, policy.golden_obs)
    path.write_bytes(artifact.derive(policy, params, made, created="2025-01-01T00:00:00Z", provenance=provenance))
    return Candidate(generation, str(path), hashlib.sha256(path.read_bytes()).hexdigest(), {}, {})


class Offering:
    """The trainer's end of the line."""

    def __init__(self, control: Path) -> None:
        channel = ipc.connect(control)
        assert channel is not None
        self.channel, self.told = channel, list[Outcome]()
        self.channel.send(Hello("trainer", os.getpid()))

    def fates(self, generation: int) -> list[Outcome]:
        self.channel.flush()
        self.told += [told for told in self.channel.receive() if isinstance(told, Outcome)]
        return [told for told in self.told if told.generation == generation]


def test_a_bad_network_is_rolled_back_and_does_not_return(
    make_lone: Callable[..., Any],
    acting: Callable[[dict[str, Any]], bool],
    models: Path,
    tmp_path: Path,
    measured: Callable[..., None],
) -> None:
    device = make_lone(tmp_path, learn__enabled=False, plant__lockstep_hz=200.0)
    device.start()
    device.until_status(lambda s: acting(s) and s["policy"]["returns"] >= 20, "20 episodes of the installed network")
    trainer = Offering(device.run / "control.sock")
    policies = device.state / "policies"
    bad = network(models, policies, 1, -1.0)
    trainer.channel.send(bad)
    back = device.until_status(
        lambda s: s["policy"]["refused"] == [1] and s["actor"]["generation"] == 0 and trainer.fates(1)[-1:],
        "the roll-back",
    )
    swapped, rolled_back = trainer.fates(1)
    assert (swapped.what, rolled_back.what, rolled_back.acting) == ("swapped", "rolled-back", None)
    assert rolled_back.return_before is not None and rolled_back.return_after is not None
    assert rolled_back.return_after < rolled_back.return_before and rolled_back.n <= EPISODES_MAX
    assert back["counters"]["networks-rolled-back"] == 1 and "policy-rolled-back" in device.log()
    measured(episodes=rolled_back.n, before=rolled_back.return_before, after=rolled_back.return_after)

    # Whoever dies now, it does not come back: not by itself, and not under another number.
    trainer.channel.close()
    os.kill(back["actor"]["pid"], signal.SIGKILL)
    device.process.kill()
    device.process.wait()
    note = msgspec.json.decode((policies / "acting.json").read_bytes(), type=Note)
    assert note.generation == 0 and [each.generation for each in note.refused] == [1]
    device.start()
    device.until_status(lambda s: acting(s) and s["actor"]["generation"] == 0, "the installed network, again")
    trainer = Offering(device.run / "control.sock")
    trainer.channel.send(msgspec.structs.replace(bad, generation=2))
    device.until_status(lambda s: [told.what for told in trainer.fates(2)] == ["refused"], "a refusal by name")
    trainer.channel.send(network(models, policies, 3, 1.0))
    device.until_status(lambda s: s["policy"]["generation"] == s["actor"]["generation"] == 3, "a sound network")
    trainer.channel.close()
    assert device.end() == 0


def test_a_person_has_a_word_in_the_training_of_a_running_device(
    make_lone: Callable[..., Any],
    acting: Callable[[dict[str, Any]], bool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = make_lone(tmp_path, learn__candidate_s=600.0, learn__checkpoint_s=600.0)
    device.start()
    device.until_status(
        lambda s: acting(s) and s["trainer"] and s["trainer"]["steps"] > 20 and s["trainer"]["replay"] >= 550,
        "enough to judge a candidate by",
        90.0,
    )
    said = ["--config", str(device.config), "--json"]
    assert train.main(["now", *said]) == OK
    assert "candidate" in (told := json.loads(capsys.readouterr().out)["told"]) and told.endswith("checkpoint 1")
    assert train.main(["pause", *said]) == OK
    before = device.until_status(lambda s: s["trainer"]["steps_hz"] == 0, "no more steps")["trainer"]["steps"]
    assert device.end() == 0
    device.start()
    device.until_status(lambda s: acting(s) and s["trainer"] and s["trainer"]["replay"] > 0, "the device, again")
    capsys.readouterr()
    assert train.main(["status", *said]) == OK
    status = json.loads(capsys.readouterr().out)
    assert (status["paused"], status["idle_because"], status["steps"]) == (True, "paused", before)
    assert train.main(["resume", *said]) == OK
    device.until_status(lambda s: s["trainer"]["steps"] > before, "steps again")
    assert device.end() == 0
