"""The race on a clock of its own; no time of this machine is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgert.bundle import ExitCost
from edgert.errors import ArtifactError, UsageError
from edgert.nets import F32, U8
from edgert.policy import artifact
from edgert.policy.exits import choose
from edgert.ports.runtime import Inference
from edgert.ports.runtime.choice import Key
from edgert.programs import policy_bench
from edgert.programs.policy_bench import BURST, Clock, Runner

POLICY = artifact.load((Path(__file__).parents[2] / "models" / "breakout.edgert").read_bytes())
KEY = Key("b", "c", {}, "m")


class Time:
    """Passes when someone sleeps or computes; CPU time only for the latter."""

    def __init__(self) -> None:
        self.now_s, self.used_s = 100.0, 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: self.used_s, self.sleep)


class Paced:
    """Needs `costs_s[exit]`, half of it waiting, and longer at its first call after another's."""

    rounds_as_reference = True

    def __init__(self, name: str, time: Time, costs_s: list[float], order: list[str] | None = None) -> None:
        self.name, self.time, self.costs_s = name, time, costs_s
        self.order = order if order is not None else []
        self.breaks = False

    def infer(self, obs: U8, threshold_logits: F32) -> Inference:
        if self.breaks:
            raise ArtifactError("broken")
        exit_ = int(np.append(np.isneginf(threshold_logits), True).argmax())
        cost_s = self.costs_s[exit_] * (10 if self.order[-1:] != [self.name] else 1)
        self.order.append(self.name)
        self.time.now_s += cost_s
        self.time.used_s += cost_s / 2
        return Inference(np.zeros(4, np.float32), exit_)

    def close(self) -> None: ...


def runner(kind: str, precision: str = "int8", *costs_s: float, time: Time, order: list[str] | None = None) -> Runner:
    return Runner(kind, precision, "1", runtime=Paced(f"{kind} {precision}", time, list(costs_s), order))  # type: ignore[arg-type]  # a name and a precision of the test's own


def test_every_exit_of_every_runner_is_measured_at_the_rate_in_turns() -> None:
    time, order = Time(), list[str]()
    two = [
        runner("onnx", "int8", 1e-3, 2e-3, 3e-3, time=time, order=order),
        runner("numpy", "fp32", 2e-3, 4e-3, 6e-3, time=time, order=order),
    ]
    turns = policy_bench.race(POLICY, two, 20.0, 10.0, time.clock())
    assert turns * 2 * 3 * BURST == pytest.approx(200, abs=36) == len(order)
    assert {name: order.count(name) for name in order} == {"onnx int8": len(order) / 2, "numpy fp32": len(order) / 2}
    assert order[: 2 * BURST] == ["onnx int8"] * BURST + ["numpy fp32"] * BURST
    assert time.now_s - 100 == pytest.approx(len(order) / 20, abs=0.1)
    # The first call of a burst cost ten times as much, and no figure knows of it.
    assert two[0].costs() == tuple(ExitCost(*(pytest.approx(x) for x in (s, s, s / 2))) for s in (1e-3, 2e-3, 3e-3))
    made = policy_bench.measured(two, KEY, 20.0)
    assert [(cost.runtime, cost.precision, cost.samples) for cost in made] == [
        ("onnx", "int8", turns * (BURST - 1)),
        ("numpy", "fp32", turns * (BURST - 1)),
    ]


def test_what_is_slower_than_the_rate_is_called_without_pause_and_the_time_is_kept() -> None:
    time = Time()
    slow = runner("onnx", "int8", 0.2, 0.2, 0.2, time=time)
    assert policy_bench.race(POLICY, [slow], 20.0, 1.0, time.clock()) == 1  # one turn takes longer than that
    assert sum(time.slept) < 0.3


def test_a_runner_that_breaks_leaves_and_the_others_go_on() -> None:
    time = Time()
    good, bad = runner("onnx", "int8", 1e-3, 1e-3, 1e-3, time=time), runner("numpy", "int8", 1, 1, 1, time=time)
    assert isinstance(bad.runtime, Paced)
    bad.runtime.breaks = True
    policy_bench.race(POLICY, [bad, good], 20.0, 2.0, time.clock())
    assert (bad.why, bad.runtime, bad.costs()) == ("broken", None, ())
    assert policy_bench.winner([bad, good], (1.0, 0.0, 0.0), 1.0) is good
    assert policy_bench.race(POLICY, [bad], 20.0, 2.0, time.clock()) == 1
    assert policy_bench.winner([bad], (1.0, 0.0, 0.0), 1.0) is None


@pytest.mark.parametrize(("rate_hz", "seconds_s"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (20.0, 0.0)])
def test_a_rate_that_is_none_is_refused(rate_hz: float, seconds_s: float) -> None:
    with pytest.raises(UsageError):
        policy_bench.race(POLICY, [], rate_hz, seconds_s)


def finished(kind: str, precision: str, *p50_s: float, p99_s: float = 0.01) -> Runner:
    made = Runner(kind, precision, "1")  # type: ignore[arg-type]  # as above
    made.took_s = {k: [each] * 200 + [p99_s] * 8 for k, each in enumerate(p50_s)}
    made.cpu_s = {k: [each] for k, each in enumerate(p50_s)}
    return made


def test_the_winner_decides_fastest_on_average_within_the_deadline() -> None:
    shallow, deep = finished("onnx", "int8", 1e-3, 9e-3), finished("numpy", "int8", 2e-3, 3e-3)
    assert policy_bench.winner([shallow, deep], (0.9, 0.1), 0.04) is shallow
    assert policy_bench.winner([shallow, deep], (0.1, 0.9), 0.04) is deep
    late = finished("onnx", "int8", 1e-3, 2e-3, p99_s=0.05)
    assert policy_bench.winner([late, deep], (0.5, 0.5), 0.04) is deep
    assert policy_bench.winner([late], (0.5, 0.5), 0.04) is late  # something must act
    for float_s, wins in ((1.9e-3, False), (1.7e-3, True)):
        as_float = finished("numpy", "fp32", float_s, float_s)
        assert (policy_bench.winner([finished("onnx", "int8", 2e-3, 2e-3), as_float], (1, 0), 1) is as_float) == wins


def test_runners_that_cannot_run_stand_in_the_list_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(policy: artifact.Policy, kind: str, precision: str) -> Paced:
        if kind == "litert":
            raise SystemError("built for another numpy")
        if kind == "tflite":
            raise ArtifactError("off by 3")
        return Paced(kind, Time(), [])

    monkeypatch.setattr(policy_bench, "open_one", opened)
    found = policy_bench.line_up(POLICY, [("litert", "int8"), ("tflite", "int8"), ("numpy", "int8")])
    assert [one.why for one in found] == ["SystemError: built for another numpy", "off by 3", ""]
    assert [one.runtime is None for one in found] == [True, True, False]


def test_shares_are_those_of_the_golden_observations_through_the_thresholds() -> None:
    share = policy_bench.shares(POLICY)
    assert sum(share) == pytest.approx(1)
    first = np.mean([choose(head).confidence >= POLICY.manifest.thresholds[0] for head in POLICY.golden_head[:, 0]])
    assert share[0] == pytest.approx(first)
