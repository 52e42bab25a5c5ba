from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.placement import view
from edgert.placement.jobs import HOST, Flow, Job, Part, Proposal, Split
from edgert.placement.load import Capacity, Load, Resources


def capacity(speed: float = 1.0, cores: float = 4.0, link: float = 1e7) -> Capacity:
    return Capacity(cores=cores, memory_bytes=1e9, link_bytes_per_s=link, speed=speed)


def loads(*speeds: float, **more: Resources) -> dict[str, Load]:
    return {
        name: Load(node=name, session=1, seq=1, capacity=capacity(speed), used=more.get(name, Resources()))
        for name, speed in zip("abcdefgh", speeds, strict=False)
    }


def job(workers: tuple[int, ...] = (1, 2), moved: float = 1e5) -> Job:
    splits = tuple(
        Split(
            kind="data",
            parts=(Part(compute_core_s=4 / count, memory_bytes=1e8, flows=(Flow(HOST, moved),)),) * count,
        )
        for count in workers
    )
    return Job(id="j", owner="a", splits=splits, steps=10, ship_bytes=1_000_000)


def test_what_one_proposed_oneself_is_taken() -> None:
    sight = view.look("a", loads(1.0, 1.0), 0.0)
    proposal = Proposal(job=job(), attempt=0, split=1, nodes=("b", "b"))
    after = view.taken(sight, proposal)
    assert after.free_cores.tolist() == [4.0, 2.0] and after.free_memory.tolist() == [1e9, 8e8]
    assert sight.free_cores.tolist() == [4.0, 4.0]


def test_the_estimate_knows_speed_crowds_and_links() -> None:
    busy = Resources(cores=6.0)
    sight = view.look("a", loads(1.0, 2.0, 1.0, c=busy), 0.0)
    fit = view.estimate(job((1,), moved=0.0), job((1,), moved=0.0).splits, (), sight)
    alone, fast, crowded = fit.step_s[0]
    assert fast == pytest.approx(alone / 2) and crowded == pytest.approx(alone * 7 / 4)
    assert fit.fits[0].tolist() == [True, True, False]
    far = view.estimate(job((1,), moved=1e7), job((1,), moved=1e7).splits, (), sight)
    assert far.step_s[0][0] == pytest.approx(alone) and far.step_s[0][1] == pytest.approx(alone / 2 + 1)


def test_layers_wait_for_one_another_and_workers_do_not() -> None:
    parts = (Part(compute_core_s=2.0, memory_bytes=1.0), Part(compute_core_s=2.0, memory_bytes=1.0))
    sight = view.look("a", loads(1.0, 1.0), 0.0)
    found = {}
    for kind in ("data", "layers"):
        split = msgspec.convert({"kind": kind, "parts": parts}, Split)
        made = msgspec.structs.replace(job(), splits=(split,))
        found[kind] = float(view.estimate(made, made.splits, (0,), sight).step_s[0][1])
    assert found == {"data": pytest.approx(2.0), "layers": pytest.approx(4.0)}


def test_a_device_that_does_not_know_itself_is_an_error() -> None:
    with pytest.raises(UsageError):
        view.look("z", loads(1.0), 0.0)


def test_the_look_ahead_gives_the_other_parts_the_best_that_is_left() -> None:
    one_free = Resources(cores=3.0)
    sight = view.look("a", loads(1.0, 4.0, 2.0, b=one_free), 0.0)
    made = job((2,), moved=0.0)
    fit = view.estimate(made, made.splits, (), sight)
    whole_s, takes_s = view.completion(made, made.splits, (), fit)[0], (fit.step_s * made.steps + fit.ship_s)[0]
    assert whole_s[1] == pytest.approx(takes_s[2]), "the second part finds no room beside the first on the fastest"
    assert whole_s[2] == pytest.approx(takes_s[2]) and whole_s[0] == pytest.approx(takes_s[0])
    full = view.look("a", loads(1.0, a=one_free), 0.0)
    lonely = view.estimate(made, made.splits, (), full)
    assert np.isinf(view.completion(made, made.splits, (), lonely)).all()


def test_what_to_hope_for_is_the_best_node_empty_or_the_first_to_be_free() -> None:
    known = loads(1.0, 4.0)
    known["b"] = msgspec.structs.replace(known["b"], used=Resources(cores=4.0), left_s=(30.0,))
    hoped = view.prospect(job((1,)), view.look("a", known, 10.0))
    assert 10.0 < hoped.ideal_s < 20.0 and hoped.later_s == pytest.approx(20.0 + hoped.ideal_s)
    assert view.prospect(job((1,)), view.look("a", loads(1.0), 0.0)).later_s == np.inf
