from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgert import bundle, cli, offers, wire
from edgert.cli import rollout as verbs
from edgert.config import parse
from edgert.errors import ConfigError, LinkError, MessageError, UsageError
from edgert.fleet import policies, rollout, update
from edgert.ports.ipc import single_instance
from edgert.ports.keyring import Keyring
from edgert.ports.link import LinkDown, LinkUp, Received
from edgert.ports.mqtt import Mqtt
from edgert.ports.policies import Store
from edgert.ports.signing import verify
from edgert.programs import operator

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: nothing was signed")
pytestmark = pytest.mark.system
MODEL = Path(__file__).parents[2] / "models" / "breakout.edgert"
MANIFEST = bundle.read(MODEL.read_bytes()).manifest


class Device:
    """The update of a device over a real broker, without its other processes; `verdict` is the trial's."""

    def __init__(self, folder: Path, url: str, fleet: str, name: str, label: str, keys: wire.KeyList | None) -> None:
        text = f'[device]\nid = "{name}"\nfleet = "{fleet}"\nlabels = ["{label}"]\n[policy]\nbundle = "/x"\n'
        self.config = parse(text, "test")
        self.verdict: Any = "kept"
        self.mqtt = Mqtt(url, f"device-{fleet}-{name}", session_expiry_s=0).start()
        self.mqtt.subscribe([(topic, 1) for topic in policies.subscriptions(self.config)])
        self.store = Store(folder / name, fleet, self.mqtt)
        found = self.store.found()
        self.state, faults = policies.open_policies(self.config, MANIFEST, board=None, keys=keys, found=found)
        assert not faults
        self.said: list[str] = []

    def turn(self) -> None:
        for event in self.mqtt.events():
            match event:
                case LinkUp():
                    self.step(update.LinkUp())
                case LinkDown():
                    self.step(update.LinkDown())
                case Received():
                    with contextlib.suppress(MessageError):
                        self.state, effects = policies.received(
                            self.state,
                            wire.parse_topic(event.topic),
                            event.payload,
                            now_s=0.0,
                            wall_s=None,
                            verify=verify,
                        )
                        self.perform([*effects])
                case _:
                    pass
        generation = self.state.updates.on_trial
        if generation is not None:
            self.step(update.Verdict(generation, self.verdict, "as it played"))

    def step(self, event: Any) -> None:
        self.state, effects = policies.stepped(self.state, event, 0.0)
        self.perform([*effects])

    def perform(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case update.Say(name):
                    self.said.append(name)
                case update.Report():
                    payload = wire.encode(policies.report(self.state))
                    self.mqtt.publish(policies.report_topic(self.state), payload, qos=1, retain=True)
                case update.Activate():
                    pass
                case _:
                    for told in self.store.perform(effect, self.judge):
                        self.step(told)

    def judge(self, found: bundle.Bundle, offer: wire.PolicyOffer, path: str) -> offers.Checked:
        return policies.check(self.state, found, offer, path, wall_s=None, verify=verify)

    def close(self) -> None:
        self.mqtt.close()
        self.store.close()


class Fleet:
    """Devices that live while the operator waits."""

    def __init__(self, folder: Path, url: str, name: str, ring: Keyring, labels: list[str]) -> None:
        self.folder, self.url, self.name, self.ring = folder, url, name, ring
        keys = ring.keys()
        self.devices = [Device(folder, url, name, f"d{i}", label, keys) for i, label in enumerate(labels)]

    def live(self, operator_: operator.Operator) -> None:
        """Whenever the operator turns, the devices do."""
        own = operator_.turn

        def turn(timeout_s: float) -> None:
            for device in self.devices:
                device.turn()
            own(min(timeout_s, 0.01))

        operator_.turn = turn  # type: ignore[method-assign]  # one thread is enough for a whole fleet


@pytest.fixture
def make(tmp_path: Path, mosquitto: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fleet]]:
    """A fleet of its own for each test at the one broker; whoever connects as an operator makes it live."""
    made: list[Fleet] = []
    init = operator.Operator.__init__

    def live(self: operator.Operator, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        made[-1].live(self)

    def make_fleet(name: str, labels: list[str]) -> Fleet:
        ring = Keyring(tmp_path / "keys")
        ring.new("ann", ())
        made.append(Fleet(tmp_path, mosquitto.url, name, ring, labels))
        return made[-1]

    monkeypatch.setattr(operator.Operator, "__init__", live)
    yield make_fleet
    for fleet in made:
        for device in fleet.devices:
            device.close()


def words(fleet: Fleet, *more: str) -> list[str]:
    here = ["--fleet", fleet.name, "--broker", fleet.url, "--keys", str(fleet.ring.folder)]
    return [*more, *here, "--folder", str(fleet.folder / "rollouts"), "--json"]


def signed(fleet: Fleet, release: int) -> Path:
    path = fleet.folder / f"release-{release}.edgert"
    path.write_bytes(MODEL.read_bytes())
    command = ["policy", "sign", str(path), "--release", str(release), "--keys", str(fleet.ring.folder)]
    assert cli.main(command) == cli.OK
    return path


def test_a_push_reaches_those_it_is_for_and_they_keep_it(
    make: Callable[..., Fleet], capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = make("push", ["lab", "lab", "field"])
    path = signed(fleet, 3)
    assert verbs.push(words(fleet, str(path), "--to", "label:lab", "--wait-s", "60")) == cli.OK
    text = capsys.readouterr().out
    assert set(json.loads(text[text.index("{") :])["devices"].values()) == {"kept"}
    assert [device.state.updates.document.floor for device in fleet.devices] == [3, 3, 0]
    with pytest.raises(ConfigError, match="no device"):
        verbs.push(words(fleet, str(path), "--to", "label:none"))


def test_a_bad_policy_stops_at_the_canary(make: Callable[..., Fleet], capsys: pytest.CaptureFixture[str]) -> None:
    fleet = make("canary", ["x"] * 4)
    for device in fleet.devices:
        device.verdict = "rolled-back"
    capsys.readouterr()
    start = words(fleet, "start", str(signed(fleet, 1)), "--id", "bad", "--soak-s", "0", "--wait-s", "60")
    assert verbs.staged(start) == cli.ERROR
    stages = [device.state.updates.document.stage for device in fleet.devices]
    assert sorted(stages) == ["none", "none", "none", "rolled-back"]
    assert verbs.staged(["status", "bad", "--json", "--folder", str(fleet.folder / "rollouts")]) == cli.OK
    text = capsys.readouterr().out
    told = json.loads(text[text.rindex("\n[") :])
    assert told[0]["phase"] == "aborted"


def test_a_rollout_that_was_left_goes_on_where_it_stood(make: Callable[..., Fleet]) -> None:
    fleet = make("left", ["x"] * 4)
    folder = fleet.folder / "rollouts"
    start = ["start", str(signed(fleet, 1)), "--id", "r", "--soak-s", "0", "--wave", "0.5"]
    assert verbs.staged(words(fleet, *start, "--wait-s", "0")) == cli.RETRY_LATER
    assert operator.read_record(folder, "r").rollout.waves == 1
    assert verbs.staged(["pause", "r", "--folder", str(folder)]) == cli.OK
    assert verbs.staged(words(fleet, "drive", "r", "--wait-s", "1.5")) == cli.RETRY_LATER
    state = operator.read_record(folder, "r").rollout
    assert (state.phase, state.waves) == ("paused", 1)
    assert verbs.staged(["resume", "r", "--folder", str(folder)]) == cli.OK
    assert verbs.staged(words(fleet, "drive", "r", "--wait-s", "60")) == cli.OK
    assert all(device.state.updates.document.stage == "kept" for device in fleet.devices)
    assert all(device.said.count("update-offered") == 1 for device in fleet.devices)


def test_only_one_process_drives_a_rollout(make: Callable[..., Fleet]) -> None:
    fleet = make("alone", ["x"])
    folder = fleet.folder / "rollouts"
    start = words(fleet, "start", str(signed(fleet, 1)), "--id", "r", "--wait-s", "0")
    assert verbs.staged(start) in (cli.RETRY_LATER, cli.OK)
    lock = single_instance(folder / "r.lock")
    with pytest.raises(UsageError, match="held"):
        verbs.staged(words(fleet, "drive", "r", "--wait-s", "0"))
    assert lock >= 0


def test_devices_follow_to_newer_keys_and_then_believe_nobody_else(make: Callable[..., Fleet]) -> None:
    fleet = make("keys", ["x"])
    old = signed(fleet, 1)
    fleet.ring.new("bob", ("bundle", "command", "keys"))
    fleet.ring.revoke("ann")
    assert verbs.keys(words(fleet)) == cli.OK
    # Signed by a key that is revoked: refused, whatever the offer says, which the new key signs.
    code = verbs.push(words(fleet, str(old), "--wait-s", "60"))
    assert code == cli.ERROR and fleet.devices[0].state.updates.document.code == "revoked-key"
    assert verbs.push(words(fleet, str(signed(fleet, 2)), "--wait-s", "60")) == cli.OK


def test_without_keys_a_device_that_has_some_refuses(make: Callable[..., Fleet]) -> None:
    fleet = make("nokeys", ["x"])
    path = signed(fleet, 1)
    other = [str(fleet.folder / "none") if word == str(fleet.ring.folder) else word for word in words(fleet, str(path))]
    assert verbs.push([*other, "--wait-s", "1"]) == cli.RETRY_LATER
    assert fleet.devices[0].state.refused == {"unknown-key": 1}


def test_a_broker_that_is_not_there_is_told() -> None:
    with pytest.raises(LinkError, match="no broker"):
        operator.Operator("mqtt://127.0.0.1:1", "f", None, 0.3)


def test_what_a_report_means(tmp_path: Path) -> None:
    fates = {stage: operator.fate_of(wire.PolicyReport(id="r", stage=stage)) for stage in ("kept", "held", "trial")}
    assert fates == {"kept": "kept", "held": "offered", "trial": "offered"}
    with pytest.raises(ConfigError, match="cannot be read"):
        operator.wish(tmp_path, "none", "abort")
    operator.path_of(tmp_path, "r").write_text("{}")
    with pytest.raises(ConfigError, match="no rollout"):
        operator.read_record(tmp_path, "r")
    plan = rollout.Plan(id="r")
    assert msgspec.json.decode(msgspec.json.encode(plan), type=rollout.Plan) == plan


def test_a_release_is_what_the_signature_says(make: Callable[..., Fleet]) -> None:
    fleet = make("release", [])
    data = signed(fleet, 4).read_bytes()
    assert operator.make_offer(data, id_="r").version == 4
    assert operator.make_offer(MODEL.read_bytes(), id_="r", release=9).version == 9
    with pytest.raises(ConfigError, match="signed as release 4"):
        operator.make_offer(data, id_="r", release=5)
