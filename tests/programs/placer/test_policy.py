"""Who chooses: the rules, and what stands in for a network that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle as manifests
from edgert import quant
from edgert.config import Config, commented_default, parse
from edgert.errors import ConfigError
from edgert.nets import initialise, macs, ops
from edgert.placement import agent
from edgert.placement.jobs import Flow, Job, Part, Split
from edgert.placement.load import Capacity, Load, Resources
from edgert.policy import artifact
from edgert.programs.placer import policy as module
from edgert.programs.placer.policy import PlacementPolicy
from tools.export import build

PART = Part(compute_core_s=0.01, memory_bytes=5e7)
JOB = Job(
    id="j", owner="a", splits=(Split(kind="data", parts=(PART,)), Split(kind="data", parts=(PART, PART))), steps=50
)


def config(**settings: Any) -> Config:
    named = {f"placement.{name}": value for name, value in settings.items()}
    return parse(commented_default({"device.id": "a", "policy.bundle": "/b", **named}), "test")


def load(node: str, used: float = 0.0, *, at_s: float = 10.0, cores: float = 2.0, speed: float = 1.0) -> Load:
    capacity = Capacity(cores=cores, speed=speed, memory_bytes=1e9, link_bytes_per_s=1e7)
    return Load(node=node, session=1, seq=1, at_s=at_s, capacity=capacity, used=Resources(used, 5e7 * used))


def choose(policy: PlacementPolicy, *loads: Load, now_s: float = 10.0, job: Job = JOB) -> tuple[str, ...] | None:
    found = policy.choose(job, {each.node: each for each in loads}, now_s, 1, 7, 5.0)
    return None if found is None else found.nodes


def test_the_least_loaded_is_the_one_with_the_most_to_give() -> None:
    policy = PlacementPolicy(config(agent="least-loaded"), "a")
    assert choose(policy, load("a", 1.0), load("b"), load("c", 2.0)) == ("b",)
    # What it has just proposed is in no report yet.
    other = Job(id="k", owner="a", splits=JOB.splits, steps=50)
    assert choose(policy, load("a", 0.5), load("b"), job=other) == ("a",)
    assert choose(policy, load("a", 0.5), load("b"), now_s=16.0, job=other) == ("a",), "a silent device is none"
    fast = PlacementPolicy(config(agent="least-loaded"), "a")
    assert choose(fast, load("a"), load("b", 1.0, speed=4.0), load("c", cores=0.0)) == ("b",)
    closed = PlacementPolicy(config(agent="least-loaded"), "a")
    assert choose(closed, load("a", cores=0.0), load("b", 3.0)) == ("b",), "who takes nothing is not idle"


def test_at_random_means_anything_and_always_the_same_things() -> None:
    drawn = [PlacementPolicy(config(agent="random"), "a") for _ in range(2)]
    loads = [load(name) for name in "abc"]
    found = [[choose(policy, *loads) for _ in range(30)] for policy in drawn]
    assert found[0] == found[1]
    assert {len(nodes or ()) for nodes in found[0]} == {1, 2}
    assert {node for nodes in found[0] for node in nodes or ()} == {"a", "b", "c"}


def test_without_its_network_the_least_loaded_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(module, "BUNDLE", tmp_path / "none.edgert")
    assert PlacementPolicy(config(), "a").name == "least-loaded"
    with pytest.raises(ConfigError, match=r"placement\.bundle"):
        PlacementPolicy(config(bundle=str(tmp_path / "none.edgert")), "a")


def test_another_device_may_be_chosen_for() -> None:
    policy = PlacementPolicy(config(agent="least-loaded"), "a")
    loads = {"a": load("a", 2.0), "b": load("b", cores=0.0), "c": load("c", 1.0)}
    found = policy.choose(JOB, loads, 10.0, 1, 7, 5.0, me="b")
    assert found is not None and found.nodes == ("c",)


def test_a_cut_that_finds_no_room_gives_way_to_another() -> None:
    heavy = Split(kind="data", parts=(Part(compute_core_s=0.01, memory_bytes=5e7, flows=(Flow(1, 1e9),)), PART))
    job = Job(id="j", owner="a", splits=(*JOB.splits, heavy), steps=50)
    policy = PlacementPolicy(config(agent="random"), "a")
    loads = {name: load(name) for name in "abc"}

    def splits() -> set[int]:
        found = [policy.choose(job, loads, 10.0, 1, 7, 5.0) for _ in range(40)]
        return {each.split for each in found if each is not None}

    assert splits() == {0, 1}, "no link carries the third"
    policy.refused("j", 1)
    assert splits() == {0}
    policy.refused("j", 0)
    assert splits() == {0, 1}, "where nothing is left all is tried again"
    policy.refused("j", 0)
    policy.forget("j")
    assert splits() == {0, 1}


def bundle(path: Path) -> Path:
    """A network of the right shape that knows nothing."""
    params = initialise(agent.SPEC, np.random.default_rng(2))
    obs = np.random.default_rng(1).integers(0, 255, (64, 1, 1, agent.FEATURES), dtype=np.uint8)
    ranges, tensors = quant.fit(params, obs)
    manifest = manifests.Manifest(
        name="placer",
        task="placer",
        created="2026-01-01T00:00:00+00:00",
        edgert="0",
        observation=manifests.Observation(agent.SPEC.input_shape, agent.SPEC.input_scale),
        action=manifests.Action(1, ("place",)),
        control_rate_hz=1.0,
        gamma=0.0,
        net=msgspec.to_builtins(agent.SPEC),
        thresholds=(),
        exits=tuple(map(manifests.Exit, macs(agent.SPEC), ops(agent.SPEC))),
        safe_action=0,
        ranges=ranges,
        golden=manifests.Golden(8, 0.0),
    )
    path.write_bytes(artifact.pack(manifest, params, build(agent.SPEC, tensors), obs[:8]))
    return path


def test_what_became_of_its_jobs_teaches_the_network_and_outlives_it(tmp_path: Path) -> None:
    named = config(bundle=str(bundle(tmp_path / "placer.edgert")))
    policy = PlacementPolicy(named, "a", tmp_path / "state")
    assert policy.name == "learned" and policy.params is not None and policy.draws
    before = policy.params.flat.copy()
    for k in range(module.LESSON + 1):
        job = Job(id=f"j{k}", owner="a", splits=JOB.splits, steps=50, born_s=9.0)
        nodes = choose(policy, load("a"), load("b"), load("c"), now_s=10.0, job=job)
        if nodes is None:
            continue
        policy.ended(job.id, ("elsewhere",), 1.0, 1.0)  # the shield moved it: nothing is learned
        policy._decided[job.id] = nodes, policy._decided.get(job.id, (nodes, ()))[1]
    assert np.array_equal(policy.params.flat, before)
    for k in range(4 * module.LESSON):
        job = Job(id=f"k{k}", owner="a", splits=JOB.splits, steps=50, born_s=9.0)
        nodes = choose(policy, load("a"), load("b"), load("c"), now_s=100.0 + 6 * k, job=job) or ()
        policy.ended(job.id, nodes, 1.0 + k % 3, 1.0)
    assert not np.array_equal(policy.params.flat, before)
    again = PlacementPolicy(named, "a", tmp_path / "state")
    assert again.params is not None and np.array_equal(again.params.flat, policy.params.flat)
    (tmp_path / "state").write_bytes(b"torn")
    fresh = PlacementPolicy(named, "a", tmp_path / "state")
    assert fresh.params is not None and np.array_equal(fresh.params.flat, before)
    assert not PlacementPolicy(named, "a").draws, "without learning the best is taken"
