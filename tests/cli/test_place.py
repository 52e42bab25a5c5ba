"""`edgert fleet place`: what is said of jobs, drawn and told, and what is submitted."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER
from edgert.cli import place as verbs
from edgert.errors import ArtifactError, ConfigError
from edgert.ports import shards
from edgert.ports.mqtt import Mqtt, Received

HISTORY: tuple[dict[str, object], ...] = (
    {"at_s": 100.0, "what": "submitted", "steps": 300, "rows": 900},
    {"at_s": 101.0, "what": "proposed", "attempt": 1, "nodes": ["d2"], "kind": "data", "cut": [0]},
    {
        "at_s": 101.5,
        "what": "judged",
        "attempt": 1,
        "outcome": "moved",
        "nodes": ["d3"],
        "region": "hall",
        "reasons": [{"name": "memory", "part": 0, "node": "d2", "need": 5e7, "room": 1e6}],
    },
    {"at_s": 101.6, "what": "granted", "attempt": 1, "nodes": ["d3"], "alone": False},
    {"at_s": 103.0, "what": "running", "attempt": 1},
    {"at_s": 108.0, "what": "checkpoint", "step": 100},
    {"at_s": 110.0, "what": "broke-off", "attempt": 1, "why": "d3 is gone", "step": 100},
    {"at_s": 111.0, "what": "proposed", "attempt": 2, "nodes": ["d1", "d2"], "kind": "layers", "cut": [0, 2]},
    {"at_s": 112.0, "what": "judged", "outcome": "deferred", "region": "hall", "reasons": [{"name": "no_room"}]},
    {"at_s": 113.0, "what": "granted", "attempt": 2, "nodes": ["d1", "d2"], "alone": True},
)
JOB = wire.PlaceJob(
    id="j1", owner="d1", state="running", attempt=2, step=120, steps=300, nodes=("d1", "d2"), history=HISTORY
)


def test_why_a_job_is_where_it_is() -> None:
    said = "\n".join(verbs._why(JOB))
    assert "1.00 s  attempt 1: the agent proposes d2" in said
    assert "the shield of hall moves it to d3: part 0: memory at d2, where 5e+07 is needed and 1e+06 left" in said
    assert "room is kept at d3" in said and "broke-off: attempt 1, why d3 is gone, step 100" in said
    assert "attempt 2: the agent, cut before stages 2, proposes d1, d2" in said
    assert "the shield of hall puts it off: no room" in said
    assert "alone, as no shield answers at d1, d2" in said


def test_a_line_a_job() -> None:
    assert [line.split() for line in verbs._table({"j1": JOB}).splitlines()][1][:5] == [
        "j1",
        "d1",
        "running",
        "120/300",
        "d1",
    ]


def test_the_timeline_is_drawn() -> None:
    drawn = verbs.timeline({"j1": JOB, "j2": wire.PlaceJob(id="j2", owner="d1", state="waiting")})
    assert drawn.lstrip().startswith("<") and "<svg" in drawn
    assert verbs.timeline({}).count("<svg") == 1


def test_labelled_observations_become_a_shard(tmp_path: Path) -> None:
    obs, label = np.zeros((9, 8, 8, 1), np.uint8), np.arange(9) % 3
    np.savez(tmp_path / "a.npz", obs=obs, label=label)
    batch = shards.unpack_shard(verbs._read_data(tmp_path / "a.npz"))
    assert batch.teacher_q.argmax(1).tolist() == label.tolist() and batch.terminated.all() and batch.taught.all()
    (tmp_path / "shard").write_bytes(shards.pack_shard(batch))
    assert verbs._read_data(tmp_path / "shard") == (tmp_path / "shard").read_bytes()
    np.savez(tmp_path / "b.npz", obs=obs[:3], label=label)
    np.savez(tmp_path / "c.npz", obs=obs)
    (tmp_path / "d.npz").write_bytes(b"no")
    for name in ("b.npz", "c.npz", "d.npz"):
        with pytest.raises(ArtifactError):
            verbs._read_data(tmp_path / name)
    with pytest.raises(ConfigError):
        verbs._read_data(tmp_path / "none.npz")


class Owner(threading.Thread):
    """A device that takes a job on, by its word."""

    def __init__(self, url: str, fleet: str, state: str) -> None:
        super().__init__(daemon=True)
        self.fleet, self.state, self.heard = fleet, state, list[wire.PlaceSubmit]()
        self.mqtt = Mqtt(url, f"owner-{fleet}", session_expiry_s=0)
        self.mqtt.subscribe([(str(wire.Topic(fleet, "d1", "place", "submit", "+")), 1)])
        self.mqtt.start()

    def run(self) -> None:
        end_s = time.monotonic() + 20
        while not self.heard and time.monotonic() < end_s:
            time.sleep(0.02)
            for event in self.mqtt.events():
                if isinstance(event, Received):
                    self.heard.append(wire.decode(event.payload, wire.PlaceSubmit)[0])
        job = wire.PlaceJob(id=self.heard[0].id, owner="d1", state=self.state, history=HISTORY)
        topic = str(wire.Topic(self.fleet, "d1", "place", "job", job.id))
        self.mqtt.publish(topic, wire.encode(job), qos=1, retain=True)


@pytest.mark.parametrize(("state", "code"), [("done", OK), ("refused", ERROR), ("waiting", OK)])
def test_a_job_is_submitted_and_found_again(
    mosquitto: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], until: Any, state: str, code: int
) -> None:
    fleet = f"place-{state}"
    np.savez(tmp_path / "a.npz", obs=np.zeros((9, 8, 8, 1), np.uint8), label=np.arange(9) % 3)
    owner = Owner(mosquitto.url, fleet, state)
    owner.start()
    common = ["--fleet", fleet, "--broker", mosquitto.url]
    told = ["--device", "d1", "--data", str(tmp_path / "a.npz"), "--steps", "30", "--id", "j1", "--set", "gamma=0.5"]
    keys = ["--keys", str(tmp_path / "none")]
    assert verbs.place(["submit", *told, *common, *keys]) == code
    (job,) = owner.heard
    assert (job.steps, job.hyper, job.bundle) == (30, {"gamma": 0.5}, None) and job.shard is not None
    owner.join()
    owner.mqtt.close()
    # The verbs listen for a second: on a crowded machine a broker may need longer than that.
    until(lambda: capsys.readouterr() and verbs.place(["show", *common, "--json"]) == OK)
    assert json.loads(capsys.readouterr().out)[0]["state"] == state
    until(lambda: verbs.place(["show", *common, "--plot", str(tmp_path / "t.svg")]) == OK)
    assert (tmp_path / "t.svg").exists()
    until(lambda: verbs.place(["why", "j1", *common]) == OK)
    assert "the agent proposes d2" in capsys.readouterr().out
    assert verbs.place(["why", "j9", *common]) == NOTHING_TO_DO
    if state != "done":
        assert verbs.place(["take", "j1", *common, *keys]) == NOTHING_TO_DO


def test_who_is_not_there_takes_no_job(mosquitto: Any, tmp_path: Path) -> None:
    common = ["--fleet", "nobody", "--broker", mosquitto.url, "--timeout-s", "0.5"]
    keys = ["--keys", str(tmp_path / "none")]
    assert verbs.place(["submit", "--device", "d1", "--steps", "3", *common, *keys]) == RETRY_LATER
    assert verbs.place(["show", *common]) == NOTHING_TO_DO
    with pytest.raises(ConfigError):
        verbs.place(["submit", "--device", "d1", "--steps", "0", *common, *keys])
