"""Simulated devices, without a broker: what they promise when the power goes at any point."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from edgert import bundle, bus, wire
from edgert.fleet.kinds import Kind
from edgert.ports.link import LinkUp, Received
from edgert.programs import simdevices
from edgert.programs.simdevices import Device, Disk, Town

MANIFEST = bundle.read((Path(__file__).parents[2] / "models" / "breakout.edgert").read_bytes()).manifest
NOBODY = "mqtt://127.0.0.1:1"


@pytest.fixture
def town():
    made = Town(NOBODY, 0, 2, 0, MANIFEST)
    yield made
    made.close()


def order(device: Device, id_: str, kind: Kind) -> Received:
    told = wire.JobOrder(id=id_, kind=kind.value, issued_s=time.time())
    return Received(topic=f"edgert/v1/sim/{device.id}/job/order/{id_}", payload=wire.encode(told))


def give(device: Device, message: Received, now_s: float) -> None:
    """As if the broker had delivered it."""
    device._inputs.append(bus.Received(message.topic, message.payload, None, False))
    device.work(now_s)


@pytest.mark.parametrize("kind", [Kind.UPLOAD, Kind.FETCH])
def test_a_job_is_carried_out_once_wherever_the_power_goes(town: Town, kind: Kind, monkeypatch) -> None:
    monkeypatch.setattr(simdevices, "JOB_S", 0.0)
    device, now_s = town.devices[0], 0.0
    cuts = 0
    for after in range(simdevices.CUT_EFFECTS):
        device.disk = Disk(random.Random(after))
        device.boot(now_s)
        message = order(device, f"job-{after}", kind)
        device._cut_after = after
        give(device, message, now_s)
        for _ in range(8):
            now_s += 10.0
            device.beat(now_s)
            if device.link is None:
                cuts += 1
                device.boot(now_s)
            give(device, message, now_s)  # the broker delivers again, and so does whoever wants it done
        assert device.disk.effects[f"job-{after}"] == 1
        device.power_cut(now_s, 0.0)
    assert cuts > 4, "the power went in the middle of things"


def test_a_device_that_hears_slowly_hears_later(town: Town) -> None:
    device = town.devices[0]
    device.boot(0.0)
    assert device.link is not None
    device.link._tell(LinkUp(session_present=False, server_max_packet_bytes=None, shared_subscriptions_available=True))
    device.slow_until_s = 5.0
    device.hear(1.0)
    assert not device.up
    device.hear(6.0)
    assert device.up


def test_time_stands_still_on_a_machine_that_is_too_busy(town: Town, monkeypatch) -> None:
    town.turn(0.0)
    before_s = town.now_s
    town._real_s -= 100.0
    town.turn(0.0)
    assert simdevices.LAG_S <= town.now_s - before_s < 2 * simdevices.LAG_S


def test_what_befalls_devices_befalls_those_that_are_on(town: Town) -> None:
    for what in ("kick", "partition", "clone", "slow", "power"):
        town.befall(what, 2, 1.0)
    assert (town.clones, town._kicks) == ([], [])
    for device in town.devices:
        device.boot(town.now_s)
    for what in ("kick", "partition", "clone", "slow", "power"):
        town.befall(what, 2, 1.0)
    assert len(town.clones) == len(town._kicks) == 2
    assert all(device.away() and device.slow_until_s > town.now_s for device in town.devices)
    town.befall("clone", 2, 1.0)
    assert len(town.clones) == 2, "one at a time"
    town._end_chaos(town.now_s + 2.0)
    assert (town.named, town.unnamed, town.clones) == (0, 2, []), "nobody was there to notice"
    told = town.report()
    assert told["clones_unnamed"] == 2
    assert told["devices"] == told["away"] == 2
