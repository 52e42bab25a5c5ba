"""A device and its fleet, with a real broker and real processes: one effect and one end, whoever is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert import cli, wire
from edgert.cli import ERROR, OK, RETRY_LATER, fleet
from edgert.fleet.ledger import State
from edgert.fleet.records import read_job
from edgert.ports.cluster import Collector
from edgert.ports.jobs import JobStore

pytestmark = pytest.mark.system

spec = importlib.util.spec_from_file_location("system_conftest", Path(__file__).with_name("conftest.py"))
assert spec is not None and spec.loader is not None
shared = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = shared
spec.loader.exec_module(shared)


class Unit:
    """One device, as a service manager has it, and somebody who collects its events."""

    def __init__(self, folder: Path, url: str, *, learns: bool = False) -> None:
        self.url = url
        settings = {"broker__url": url, "learn__enabled": learns, "policy__runtime": "numpy"}
        self.lone = shared.Lone(folder, **settings)
        self.collector = Collector(url, "default")
        self.former: set[int] = set()
        self.lone.start()

    def kill(self) -> None:
        """The supervisor alone, and as a power cut would; its children go on."""
        process = self.lone.process
        self.former |= set(self.lone.group())
        process.kill()
        process.wait(20)

    def again(self) -> None:
        self.kill()
        self.lone.start()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.lone.end()
        self.collector.close()
        for pid in self.former:
            with contextlib.suppress(OSError):
                if str(self.lone.config).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        self.lone.clean()

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = 60.0) -> Any:
        try:
            return shared.wait(condition, what, patience_s, self.collector.poll)
        except AssertionError:
            print(self.lone.log()[-6000:])
            raise

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.until(
            lambda: shared.ask_status(self.lone.run / "control.sock"), "a supervisor that answers"
        )
        return found

    def job(self, id_: str) -> str | None:
        return next((job["state"] for job in self.status()["jobs"] if job["id"] == id_), None)

    def ended(self, id_: str) -> list[dict[str, Any]]:
        """What the collector was told of a job's end."""
        events = [event for _, event in self.collector.events if event.name == "job-ended"]
        return [event.detail for event in events if event.detail["id"] == id_]

    def say(self, *words: str, timeout_s: float = 40.0) -> int:
        return fleet.main([*words, "--device", "lone", "--broker", self.url, "--timeout-s", str(timeout_s)])


@pytest.fixture
def unit(tmp_path: Path, fresh_mosquitto: Any) -> Iterator[Unit]:
    made = Unit(tmp_path / "lone", fresh_mosquitto.url)
    try:
        made.until(lambda: made.status()["link"]["up"], "a device with its broker", 120)
        yield made
    finally:
        made.close()


def test_a_job_outlives_the_supervisor_and_is_done_once(unit: Unit, capsys: pytest.CaptureFixture[str]) -> None:
    assert unit.say("job", "start", "bench", "--id", "j1", "--arg", "for_s=8") == OK
    unit.until(lambda: unit.job("j1") == "running", "a job that runs")
    outcomes = unit.lone.state / "jobs"
    unit.until(lambda: (outcomes / "j1.lock").exists(), "somebody at it")
    worker = (outcomes / "j1.lock").read_text()
    unit.again()
    assert unit.job("j1") == "running"
    assert (outcomes / "j1.lock").read_text() == worker
    assert unit.say("job", "start", "bench", "--id", "j1", "--arg", "for_s=8", "--wait", timeout_s=120) == OK
    capsys.readouterr()
    unit.until(lambda: unit.ended("j1"), "the event of its end")
    unit.again()
    assert unit.say("job", "show", "j1", "--json") == OK
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["attempt"]) == ("done", 1), "it was adopted, not begun again"
    assert told["result"]["winner"]["runtime"]
    time.sleep(2.0)  # whatever a third supervisor would do about it, it would do at once
    unit.until(lambda: unit.status()["link"]["events_waiting"] == 0, "an empty spool")
    assert [each["state"] for each in unit.ended("j1")] == ["done"]


def test_when_everybody_is_killed_a_job_is_begun_again_and_ends_once(unit: Unit) -> None:
    assert unit.say("job", "start", "bench", "--id", "j2", "--arg", "for_s=5") == OK
    lock = unit.lone.state / "jobs" / "j2.lock"
    unit.until(lambda: lock.exists() and lock.read_text().strip(), "somebody at it")
    unit.kill()
    os.kill(int(lock.read_text()), signal.SIGKILL)
    unit.lone.start()
    unit.until(lambda: unit.ended("j2"), "the end", 120)
    assert [(each["state"], each["attempt"]) for each in unit.ended("j2")] == [("done", 2)]


def test_an_upload_is_there_once_although_the_supervisor_dies_all_the_time(unit: Unit) -> None:
    for i in range(4):
        assert unit.say("job", "start", "upload", "--id", f"u{i}") == OK
        unit.again()
    unit.until(lambda: all(unit.ended(f"u{i}") for i in range(4)), "four ends", 120)

    def uploads() -> list[str]:
        return sorted(event.detail["id"] for _, event in unit.collector.events if event.name == "uploaded")

    unit.until(lambda: len(uploads()) >= 4, "four uploads, in a stream of their own", 60)
    assert uploads() == ["u0", "u1", "u2", "u3"]
    detail = next(event.detail for _, event in unit.collector.events if event.name == "uploaded")
    assert detail["status"]["device"] == "lone" and detail["status"]["log"]


def test_what_needs_no_command_is_done_by_the_device_itself(unit: Unit, capsys: pytest.CaptureFixture[str]) -> None:
    assert unit.say("job", "start", "evaluate", "--arg", "episodes=2", "--wait", "--json", timeout_s=90) == OK
    told = json.loads(capsys.readouterr().out)
    assert (told["result"]["n"], told["result"]["of"]) == (2, "returns")
    assert unit.say("job", "start", "train", "--wait") == ERROR
    assert "cannot train" in capsys.readouterr().out


def test_a_trainer_that_outlives_the_supervisor_is_told_twice_and_obeys_once(
    tmp_path: Path, fresh_mosquitto: Any
) -> None:
    unit = Unit(tmp_path / "lone", fresh_mosquitto.url, learns=True)
    try:
        unit.until(lambda: (unit.status()["trainer"] or {}).get("steps"), "a trainer that learns", 180)
        before = unit.status()["trainer"]
        assert unit.say("job", "start", "train", "--id", "t1") == OK
        unit.until(lambda: unit.job("t1") != "scheduled", "a job that runs")
        unit.again()
        unit.until(lambda: unit.ended("t1"), "the end", 180)
        after = unit.until(lambda: unit.status()["trainer"], "a report of the trainer")
        assert after["pid"] == before["pid"]
        assert unit.ended("t1")[0]["result"]["code"] == after["order_code"]
        assert {each["state"] for each in unit.ended("t1")} <= {"done", "failed"}
        assert len(unit.ended("t1")) == 1
    finally:
        unit.close()


def test_a_running_job_is_cancelled_and_nobody_goes_on_with_it(unit: Unit) -> None:
    assert unit.say("job", "start", "bench", "--id", "j3", "--arg", "for_s=300") == OK
    lock = unit.lone.state / "jobs" / "j3.lock"
    unit.until(lambda: lock.exists() and lock.read_text().strip(), "somebody at it")
    worker = int(lock.read_text())
    assert unit.say("job", "cancel", "j3") == OK
    unit.until(lambda: not Path(f"/proc/{worker}").exists(), "nobody at it")
    assert unit.job("j3") == "cancelled"
    assert unit.say("job", "start", "bench", "--id", "j3", "--wait") == ERROR


def test_wishes_outlive_the_supervisor_and_the_broker(unit: Unit, fresh_mosquitto: Any) -> None:
    words = ['labels.site="north"', "goals.max_power_w=2.5", "exits.max_ops_frac=0.9"]
    assert unit.say("twin", "set", *words) == OK
    assert unit.say("schedule", "add", "often", "upload", "--every-s", "3600", "--open-s", "60") == OK
    unit.until(lambda: unit.ended("often.1"), "the first job of the schedule")
    unit.again()
    assert unit.status()["twin"]["labels"] == {"site": "north"}
    assert unit.status()["schedules"]["often"]["next_s"] > 0
    unit.until(lambda: unit.status()["policy"]["exits_order"] == "twin", "exits as wished")
    ups = unit.status()["link"]["ups"]
    fresh_mosquitto.kill9()
    fresh_mosquitto.restart()
    unit.until(lambda: unit.status()["link"]["ups"] > ups, "a link to the new broker")
    # Whatever the broker has forgotten, the device says again, and the operator's next word still counts.
    assert unit.say("twin", "set", "goals.max_power_w=3.5") == OK
    assert unit.say("twin", "get") == OK
    unit.again()
    time.sleep(2.0)
    assert not unit.ended("often.2"), "an hour has not passed"


def test_what_is_acknowledged_is_on_the_disk(unit: Unit) -> None:
    words = ["job", "start", "upload", "--id", "later", "--battery-below", "0.01"]
    assert unit.say(*words) == OK
    unit.kill()
    with JobStore(unit.lone.state / "jobs.db") as store:
        assert read_job("later", store.jobs()["later"]).state is State.SCHEDULED
    assert unit.say("job", "cancel", "later", timeout_s=3) == RETRY_LATER
    unit.lone.start()
    # The broker kept the cancel for the device's session.
    unit.until(lambda: unit.ended("later"), "the end")
    assert unit.ended("later")[0]["state"] == "cancelled"
    assert wire.is_name("later")


def test_its_fleet_sees_it_reads_its_log_and_updates_it_by_a_job(
    unit: Unit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(["fleet", *words, "--broker", unit.url]) == OK
        return capsys.readouterr().out

    (row,) = json.loads(told("status", "--json"))
    assert (row["device"], row["state"], row["task"]) == ("lone", "online", unit.status()["task"])
    session = json.loads(told("show", "lone", "--json"))["known"]["sighting"]["session"]
    assert session == unit.status()["session"]
    capsys.readouterr()
    assert unit.say("logs", "--lines", "20") == OK
    assert "device lone" in (logged := capsys.readouterr().out) and len(logged.splitlines()) <= 20

    # Killed and started anew it has another session; the will of the former, whenever it comes, is not believed.
    unit.again()
    unit.until(lambda: unit.status()["link"]["up"], "its broker")
    (row,) = json.loads(told("status", "--json", "--for-s", "4"))
    assert row["state"] == "online" and unit.status()["session"] != session

    bundle = str(shared.MODELS / "breakout.edgert")
    words = ["job", "start", "update", "--bundle", bundle, "--release", "5", "--id", "up"]
    assert unit.say(*words) == OK
    assert unit.until(lambda: (unit.status()["trust"]["update"] or {}).get("id") == "up", "the offer of the job")
    stage = unit.until(lambda: unit.status()["trust"]["update"]["stage"] in ("trial", "kept"), "its trial")
    assert stage and unit.job("up") in ("running", "done")
