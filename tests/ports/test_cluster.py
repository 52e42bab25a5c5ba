"""What needs no whole fleet; a whole one is tested in tests/system."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert import bundle, wire
from edgert.config import parse
from edgert.errors import UsageError
from edgert.ports import cluster as clusters
from edgert.ports.cluster import Cluster, Collector
from edgert.ports.mqtt import LinkUp, Mqtt, Received


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Bundles that are sound as files, with nothing sensible inside."""
    manifest = bundle.Manifest(
        name="p",
        task="breakout",
        created="2026-01-01T00:00:00Z",
        edgert="0",
        observation=bundle.Observation((10, 10, 4), 1.0),
        action=bundle.Action(3),
        control_rate_hz=20.0,
        gamma=0.99,
        net={},
        thresholds=(),
        exits=(bundle.Exit(1),),
        safe_action=0,
        ranges={},
        golden=bundle.Golden(1, 0.0),
    )
    for name in ("breakout", "breakout-teacher"):
        (tmp_path / f"{name}.edgert").write_bytes(bundle.write(manifest, dict.fromkeys(bundle.MEMBERS, b"x")))
    return tmp_path


@pytest.fixture
def cluster(models: Path) -> Iterator[Cluster]:
    made = Cluster(models / "out", devices=2, models=models, device_config={"learn.candidate_s": 7.0})
    yield made
    made.stop()


def test_every_device_gets_a_configuration_of_its_own(cluster: Cluster) -> None:
    configs = [parse(cluster.config(name).read_text(), name) for name in cluster.devices]
    assert [config.device.id for config in configs] == ["device-1", "device-2"]
    assert len({config.device.run_dir for config in configs}) == len({config.plant.seed for config in configs}) == 2
    assert {(c.learn.candidate_s, c.plant.env, c.broker.url) for c in configs} == {
        (7.0, "MinAtar/Breakout-v1", cluster.url)
    }
    assert cluster.nominal_hz == 20.0


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"breakout\.edgert and no .*breakout-teacher\.edgert.*--models"):
        Cluster(tmp_path / "out", models=tmp_path)
    with pytest.raises(UsageError, match="space_invaders"):
        Cluster(tmp_path / "out", "chess", models=tmp_path)


def test_a_game_without_bundles_names_those_that_can_be_played(models: Path) -> None:
    (models / "pong.edgert").write_bytes((models / "breakout.edgert").read_bytes())  # a student without a teacher
    assert clusters.playable(models) == ["breakout"]
    with pytest.raises(UsageError, match=r"no \S*pong-teacher\.edgert: play breakout, whose bundles are there, or"):
        Cluster(models / "out", "pong", models=models)
    assert not (models / "out").exists()
    assert clusters.student("breakout", models).observation.shape == (10, 10, 4)


def test_the_shipped_games_can_be_played() -> None:
    assert {"breakout", "space_invaders"} <= set(clusters.playable())


def test_what_ends_is_started_again_a_second_later_and_what_is_badly_configured_is_not(
    tmp_path: Path, until: Callable[..., None]
) -> None:
    fine = clusters._Service("fine", ["--version"], tmp_path / "log", "mark")
    wrong = clusters._Service("wrong", ["no-such-verb"], tmp_path / "log", "mark")
    for service in (fine, wrong):
        service.start()
        until(lambda s=service: s.process is not None and s.process.poll() is not None, "its end")
    seen = fine.poll(100.0)
    assert (seen.pid, seen.code, seen.restarts, seen.failed) == (None, 0, 0, False)
    assert fine.poll(100.9).pid is None
    seen = fine.poll(101.0)
    assert seen.restarts == 1
    assert seen.pid is not None
    assert fine.process is not None
    fine.process.wait()
    seen = wrong.poll(100.0)
    assert (seen.pid, seen.code, seen.failed) == (None, 78, True)
    assert wrong.poll(1000.0).restarts == 0
    assert "no verb 'no-such-verb'" in wrong.tail()


STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"


def test_who_outlived_its_parent_is_found_and_ended(cluster: Cluster, until: Callable[..., None]) -> None:
    # As the actor of a killed supervisor: no child of ours, but it carries the cluster's mark.
    env = {**os.environ, clusters._MARK: f"{cluster._mark}/device-2"}
    orphan = subprocess.Popen([sys.executable, "-c", STUBBORN, "x"], env=env, stdout=subprocess.PIPE)
    assert orphan.stdout is not None
    orphan.stdout.read(1)
    assert [(pid, name) for pid, name, _ in cluster.members()] == [(orphan.pid, "device-2")]
    stopped = cluster.halt()
    orphan.wait()
    orphan.stdout.close()
    assert len(stopped.killed) == 1
    assert stopped.killed[0].startswith("device-2's ")
    assert cluster.members() == []


def test_killing_what_does_not_run_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="no trainer device-1 runs"):
        cluster.kill("trainer", "device-1")


def test_the_collector_takes_each_event_once_and_says_so(mosquitto: Any, until: Callable[..., None]) -> None:
    fleet = "collected"
    collector = Collector(mosquitto.url, fleet)
    device = Mqtt(mosquitto.url, "collected-device").start()
    heard: list[Any] = []

    def look() -> None:
        collector.poll()
        heard.extend(device.events())

    def acks() -> list[int]:
        look()
        return [wire.decode(e.payload, wire.EventAck)[0].up_to for e in heard if isinstance(e, Received)]

    def say(channel: str, message: wire.Message | bytes) -> None:
        payload = message if isinstance(message, bytes) else wire.encode(message)
        until(
            lambda: device.publish(str(wire.Topic(fleet, "d", channel, "device")), payload, qos=1), "room in the queue"
        )

    try:
        device.subscribe([(str(wire.Topic(fleet, "d", "cmd", "ack")), 1)])
        until(lambda: look() or any(isinstance(e, LinkUp) for e in heard), "the link")
        # Its subscription is in force once a retained birth came through.
        status = wire.Status(online=True, session="s")
        until(lambda: say("status", status) or look() or collector.online.get("d"), "the collector")

        def event(seq: int) -> wire.Event:
            return wire.Event(stream="a", seq=seq, first=1, at_s=1.0, name=f"e{seq}")

        for seq in (1, 3, 2, 2, 3):
            say("evt", event(seq))
        say("evt", b"nonsense")
        say("tele", wire.Telemetry(at_s=5.0, status={"link": {"up": True, "events_waiting": 4}}))
        until(lambda: len(acks()) >= 5 and "d" in collector.devices, "five acknowledgements")
        assert [e.name for _, e in collector.events] == ["e1", "e2", "e3"]
        assert acks() == [1, 1, 2, 2, 3]
        assert (collector.again, collector.malformed, collector.waiting()) == (2, 1, 4)
        assert collector.collected["d"].skipped == 0
    finally:
        collector.close()
        device.close()
