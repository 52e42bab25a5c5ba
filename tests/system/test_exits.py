"""The fleet sets how early a running device answers, with the operator's own command and a real broker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgert import bundle
from edgert.cli import ERROR, OK, fleet

pytestmark = pytest.mark.system

WANTED = {"thresholds": [0.0, 0.5], "repeat": 3, "hold_threshold": 0.0}


def test_the_exits_are_set_while_the_device_acts_and_stay_set_when_the_actor_is_killed(
    mosquitto: Any,
    make_lone: Callable[..., Any],
    acting: Callable[[dict[str, Any]], bool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Without a frontier the governor cannot choose a cheaper setting than the fleet's when this machine is busy.
    shipped = bundle.read((Path(__file__).parents[2] / "models" / "breakout.edgert").read_bytes())
    unmeasured = tmp_path / "unmeasured.edgert"
    unmeasured.write_bytes(bundle.write(msgspec.structs.replace(shipped.manifest, frontier=None), shipped.members))
    device = make_lone(tmp_path, broker__url=mosquitto.url, learn__enabled=False, policy__bundle=str(unmeasured))
    device.start()
    pid = device.until_status(lambda s: acting(s) and s["link"]["up"], "a device that acts and is connected")["actor"][
        "pid"
    ]
    asking = ["exits", "--device", "lone", "--broker", mosquitto.url, "--json", "--timeout-s", "30"]
    assert fleet.main([*asking, "--thresholds", "0.0", "0.5", "--repeat", "3", "--hold-threshold", "0.0"]) == OK
    reply = json.loads(capsys.readouterr().out)
    assert {name: reply[name] for name in WANTED} == WANTED

    # Exit 0 always answers and is always held: one decision in three ticks, and no other exit any more.
    def held(status: dict[str, Any]) -> bool:
        actor = status["actor"]
        return bool(actor["operating"] == WANTED and actor["held"] > 30)

    before = device.until_status(lambda s: s["actor"]["operating"] == WANTED, "a report of the new setting")["actor"]
    after = device.until_status(lambda s: s["actor"]["held"] > before["held"] + 30, "repeated actions")["actor"]
    decided = [now - then for now, then in zip(after["exits"], before["exits"], strict=True)]
    assert decided[1:] == [0, 0] and decided[0] < after["held"] - before["held"]
    assert after["pid"] == pid and after["generation"] == 0, "nothing was loaded anew"

    assert fleet.main([*asking, "--thresholds", "0.5"]) == ERROR
    assert "1 thresholds for 3 exits" in capsys.readouterr().out
    assert device.status()["counters"]["bad-command"] == 1

    os.kill(pid, signal.SIGKILL)
    again = device.until_status(lambda s: s["actor"]["pid"] != pid and acting(s) and held(s), "the setting, again")
    assert again["policy"]["exits_order"] == reply["id"]

    assert fleet.main(asking) == OK
    device.until_status(lambda s: s["actor"]["operating"]["repeat"] == 1, "the bundle's own setting")
    assert device.end() == 0
