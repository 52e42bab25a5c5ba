"""A device behind its guard: who is obeyed, and how a policy from the fleet comes to act or does not."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import bundle, bus, control, offers, wire
from edgert import device as devices
from edgert import guard as guards
from edgert.config import Config, parse
from edgert.fleet import fetch, policies, presence, trust, update
from edgert.guard import Guard
from edgert.values import ActorReport, Candidate, Outcome, Stop, Swap, Swapped

CONFIG: Config = parse(
    '[device]\nid = "d1"\nfleet = "f"\n[policy]\nbundle = "/x"\n[plant]\nkind = "simulated"\nenv = "e"\n', "test"
)
MANIFEST = bundle.Manifest(
    name="n",
    task="t",
    created="",
    edgert="0",
    observation=bundle.Observation((2, 2, 1), 1.0),
    action=bundle.Action(3),
    control_rate_hz=20.0,
    gamma=0.99,
    net={},
    thresholds=(0.5,),
    exits=(bundle.Exit(10), bundle.Exit(20)),
    safe_action=0,
    ranges={},
    golden=bundle.Golden(1, 0.1),
)
CONTENT = {"policy.onnx": b"graph", "params.f32": b"\0" * 64, "golden.obs": b"", "golden.head": b"h"}
PUBLIC = bytes(32)
KEYS = wire.KeyList(
    serial=1, keys=(wire.Key(id=trust.key_id(PUBLIC), public=PUBLIC, uses=("bundle", "command", "keys")),)
)
NEW = update.GENERATIONS + 1


def mark(message: bytes) -> bytes:
    return hashlib.sha512(PUBLIC + message).digest()


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    return signature == hashlib.sha512(key + message).digest()


def say(payload: bytes, counter: int = 1, to: str = "d1") -> bytes:
    plain = wire.Signed(fleet="f", to=to, counter=counter, not_after_s=2e9, payload=payload, key=trust.key_id(PUBLIC))
    return wire.encode(msgspec.structs.replace(plain, signature=mark(wire.signed_bytes(plain))))


def file_of(version: int = 1, **changed: Any) -> bytes:
    data = bundle.write(msgspec.structs.replace(MANIFEST, **changed), CONTENT)
    release = trust.Release(version=version)
    value = mark(trust.sealed_bytes(bundle.read(data).encoded, release)).hex()
    seal = trust.Seal(release=release, signatures=(trust.Signature(trust.key_id(PUBLIC), value),))
    return bundle.with_signature(data, trust.encode_seal(seal))


class Rig:
    """A guarded device, a disk, a broker that has every chunk, and an actor whose networks play as they are told."""

    def __init__(self, keys: wire.KeyList | None = KEYS) -> None:
        self.keys, self.files, self.parts = keys, dict[str, bytes](), dict[int, bytes]()
        self.note = self.seen = b""
        self.now_s, self.ticks, self.missed, self.episodes = 0.0, 0, 0, 0
        self.returns: list[float] = []
        self.played: list[int | None] = []
        self.acting = Swap(0, "/x", "")
        self.plays: dict[int, float] = {}
        self.late: set[int] = set()
        self.not_finite: set[int] = set()
        self.refuses: set[int] = set()
        self.faults = self.stops = 0
        self.events: list[bus.Record] = []
        self.told: list[Outcome] = []
        self.sent: list[bus.Publish] = []
        self.jobs: dict[str, bytes] = {}
        self.boot()

    def boot(self) -> None:
        world = control.open_world(
            CONFIG, task="t", n_exits=2, note=None, streams={"events": ("s", 1, 0)}, now_s=self.now_s
        )
        device, effects = devices.open_device(world, self.jobs, {}, {}, {}, self.now_s)
        state, faults = policies.open_policies(
            CONFIG, MANIFEST, board=None, keys=self.keys, found=policies.Found(b"", self.seen, self.note)
        )
        assert not faults
        self.guard = Guard(device=device, policies=state, verify=verify)
        for effect in effects:
            for told in self.perform(effect):
                self.step(told)
        self.step(bus.LinkUp())
        self.step(bus.Connected("actor", 7))

    def step(self, event: Any) -> None:
        todo = [event]
        while todo:
            self.guard, effects = guards.step(self.guard, todo.pop(0), self.now_s)
            for effect in effects:
                todo += self.perform(effect)

    def perform(self, effect: bus.Effect) -> list[Any]:
        match effect:
            case bus.Record():
                self.events.append(effect)
            case bus.Publish():
                self.sent.append(effect)
            case bus.Tell("trainer", Outcome() as told):
                self.told.append(told)
            case bus.Tell("trainer", Stop()):
                self.stops += 1
            case bus.Tell("actor", Swap() as swap):
                ok = swap.generation not in self.refuses
                self.acting = swap if ok else self.acting
                return [bus.Heard("actor", Swapped(swap.generation, ok, "" if ok else "golden", self.ticks, 0, 0.1))]
            case bus.PolicyDo(do):
                return [bus.PolicyTold(told) for told in self.do(do)]
            case bus.WriteJob(id_, body):
                self.jobs[id_] = body
                return [bus.JobWritten(id_)]
            case _:
                pass
        return []

    def do(self, do: offers.Do) -> list[Any]:
        match do:
            case offers.Note(data):
                self.note = data
                return [offers.Noted()]
            case offers.SeenNote(data):
                self.seen = data
            case offers.Open(offer):
                return [offers.Found(offer.sha256, (), 1 << 40)]
            case offers.Ask(index, sha256):
                data = self.files[sha256][index * 4096 : (index + 1) * 4096]
                return [offers.Arrived(index, data)]
            case offers.Keep(index, data):
                self.parts[index] = data
                return [offers.Kept(index)]
            case offers.Check(offer):
                data = b"".join(part for _, part in sorted(self.parts.items()))
                found = bundle.read(data)
                told = policies.check(self.guard.policies, found, offer, "/new", wall_s=None, verify=verify)
                return [told]
            case _:
                pass
        return []

    def receive(self, where: str, payload: bytes, retained: bool = False) -> None:
        self.step(bus.Received(f"edgert/v1/f/{where}", payload, None, retained))

    def offer(self, data: bytes, version: int = 1, id_: str = "r1") -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        self.files[sha256] = data
        self.parts.clear()
        offer = wire.PolicyOffer(
            id=id_,
            name="n",
            sha256=sha256,
            size_bytes=len(data),
            chunk_bytes=4096,
            hashes=fetch.hashes(data, 4096),
            version=version,
            budget_bytes=1 << 20,
        )
        self.receive("d1/policy/offer/-", say(wire.encode(offer)), retained=True)

    def play(self, reports: int = 60) -> None:
        """A report every five seconds, with an episode each."""
        for _ in range(reports):
            self.now_s += 5.0
            generation = self.acting.generation
            self.ticks += 100
            self.missed += 30 if generation in self.late else 0
            self.faults += generation in self.not_finite
            self.episodes += 1
            self.returns = [*self.returns, self.plays.get(generation, 10.0)][-32:]
            self.played = [*self.played, generation][-32:]
            report = ActorReport(
                pid=7, ticks=self.ticks, missed=self.missed, safe=0, exits=[0, 0], latency_p50_s=0.0,
                latency_p99_s=0.0, latency_max_s=0.0, episodes=self.episodes, returns=self.returns,
                faults={"output-not-finite": self.faults} if self.faults else {}, generation=generation, acting=True,
                first_action_s=0.1, cpu_s=0.0, rss_bytes=0, network=self.acting, played=self.played,
            )  # fmt: skip
            self.step(bus.Heard("actor", report))
            self.step(bus.Tick())

    @property
    def document(self) -> update.Document:
        return self.guard.policies.updates.document

    def names(self) -> list[str]:
        return [event.name for event in self.events]


def report_of(rig: Rig) -> wire.PolicyReport:
    last = [each for each in rig.sent if each.topic.endswith("/policy/report/-")][-1]
    assert last.retain and last.qos == 1
    return wire.decode(last.payload, wire.PolicyReport)[0]


def test_a_good_policy_acts_stands_its_trial_and_is_kept() -> None:
    rig = Rig()
    rig.play(40)
    rig.offer(file_of(3), 3)
    assert rig.acting == Swap(NEW, "/new", rig.document.offer.sha256 if rig.document.offer else "")
    assert rig.document.stage == "trial" and report_of(rig).stage == "trial"
    rig.play()
    assert (rig.document.stage, rig.document.floor) == ("kept", 3)
    assert report_of(rig).stage == "kept" and rig.acting.generation == NEW
    assert rig.stops == 1  # the trainer begins anew, from this one
    assert {"update-offered", "update-fetched", "swapped", "policy-kept", "update-kept"} <= set(rig.names())


BAD = {
    "biased: it earns less": ("plays", "rolled-back", "returns"),
    "slow: it misses deadlines": ("late", "rolled-back", "deadlines"),
    "not finite while it acts": ("not_finite", "rolled-back", "finite"),
    "not what its golden answers say": ("refuses", "refused", "golden"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_policy_is_put_out_again_and_never_comes_back(bad: str) -> None:
    field, stage, why = BAD[bad]
    rig = Rig()
    rig.play(40)
    if field == "plays":
        rig.plays[NEW] = 0.0
    else:
        getattr(rig, field).add(NEW)
    rig.offer(file_of())
    rig.play()
    assert rig.document.stage == stage and why in rig.document.why
    assert rig.acting.generation == 0 and rig.document.floor == 0 and rig.stops == 0
    rig.offer(file_of(), id_="again")
    assert rig.document.code == "rolled-back-before" and rig.acting.generation == 0


@pytest.mark.parametrize(
    ("data", "version", "code"),
    [
        (file_of(1, control_rate_hz=5.0), 1, "wrong-shape"),
        (file_of(1), 2, "older-version"),
        (bundle.with_signature(file_of(1), None), 1, "unsigned"),
    ],
)
def test_a_policy_that_is_not_believed_never_acts(data: bytes, version: int, code: str) -> None:
    rig = Rig()
    rig.play(5)
    rig.offer(data, version)
    rig.play(5)
    assert (rig.document.stage, rig.document.code) == ("refused", code) and rig.acting.generation == 0
    assert report_of(rig).code == code


def test_while_it_is_on_trial_no_candidate_of_the_trainers_takes_its_place_and_none_learns_of_its_fate() -> None:
    rig = Rig()
    rig.play(40)
    rig.plays[NEW] = 0.0
    rig.offer(file_of())
    rig.step(bus.Heard("trainer", Candidate(5, "/gen-5", "sha-5", {}, {})))
    assert rig.acting.generation == NEW
    (refused,) = (told for told in rig.told if told.generation == 5)
    assert refused.what == "refused" and guards.ON_TRIAL in refused.why
    rig.play()
    assert rig.document.stage == "rolled-back"
    assert {told.generation for told in rig.told} == {0, 5}
    rig.step(bus.Heard("trainer", Candidate(6, "/gen-6", "sha-6", {}, {})))
    assert rig.acting.generation == 6


def job_of(rig: Rig, data: bytes, version: int, **more: Any) -> bytes:
    sha256 = hashlib.sha256(data).hexdigest()
    rig.files[sha256] = data
    rig.parts.clear()
    args = {
        "sha256": sha256, "size_bytes": len(data), "version": version, "chunk_bytes": 4096, "budget_bytes": 1 << 20,
        "hashes": fetch.hashes(data, 4096).hex(), **more,
    }  # fmt: skip
    return wire.encode(wire.JobOrder(id="j1", kind="update", args=args, issued_s=1.0))


def states(rig: Rig) -> list[str]:
    found = [each for each in rig.sent if each.topic.endswith("/job/state/j1") and each.payload]
    return [wire.decode(each.payload, wire.JobState)[0].state for each in found]


def test_a_job_of_kind_update_takes_a_policy_up_as_an_offer_does() -> None:
    rig = Rig()
    rig.receive("d1/job/order/j1", job_of(rig, file_of(3), 3))
    assert states(rig) == []  # nobody signed it
    rig.receive("d1/job/order/j1", say(job_of(rig, file_of(3), 3), 2))
    assert states(rig)[-1] == "running" and rig.document.stage == "trial"
    rig.play()
    assert rig.document.stage == "kept" and rig.document.offer is not None and rig.document.offer.id == "j1"
    assert states(rig)[-1] == "done"
    rig.receive("d1/job/order/j1", say(job_of(rig, file_of(3), 3), 3))
    assert states(rig)[-1] == "done" and rig.names().count("update-offered") == 1


@pytest.mark.parametrize(
    ("version", "more", "why"),
    [(3, {"hashes": "abc"}, "half a byte"), (3, {"hashes": "ab"}, "hashes"), (9, {}, "refused")],
)
def test_a_job_whose_policy_is_none_fails_by_name(version: int, more: dict[str, Any], why: str) -> None:
    rig = Rig()
    data = bundle.with_signature(file_of(3), b"{}") if version == 9 else file_of(version)
    rig.receive("d1/job/order/j1", say(job_of(rig, data, version, **more), 2))
    rig.play(2)
    assert states(rig)[-1] == "failed"
    last = [each for each in rig.sent if each.topic.endswith("/job/state/j1")][-1]
    assert why in wire.decode(last.payload, wire.JobState)[0].why


def test_a_cancelled_job_takes_its_policy_back_until_it_acts() -> None:
    rig = Rig()
    rig.files[hashlib.sha256(file_of(3)).hexdigest()] = b""
    order = job_of(rig, file_of(3), 3)
    rig.files.clear()  # nothing comes
    rig.do = lambda do: [] if isinstance(do, offers.Ask) else Rig.do(rig, do)  # type: ignore[method-assign]
    rig.receive("d1/job/order/j1", say(order, 2))
    assert rig.document.stage == "fetching"
    rig.receive("d1/job/cancel/j1", say(wire.encode(wire.JobCancel(id="j1", issued_s=2.0)), 3))
    assert rig.document.stage == "withdrawn" and states(rig)[-1] == "cancelled"


def test_an_old_offer_that_the_broker_kept_does_not_end_a_job_that_is_on_its_way() -> None:
    rig = Rig()
    rig.offer(file_of(2), 2, "r0")
    rig.play()
    assert rig.document.stage == "kept"
    order = job_of(rig, file_of(3), 3)
    rig.do = lambda do: [] if isinstance(do, offers.Ask) else Rig.do(rig, do)  # type: ignore[method-assign]
    rig.receive("d1/job/order/j1", say(order, 2))
    rig.offer(file_of(1), 1, "r-1")
    assert rig.document.stage == "fetching" and rig.document.offer is not None and rig.document.offer.id == "j1"


@pytest.mark.parametrize("reports", [0, 1, 20, 60])
def test_a_job_of_kind_update_outlives_a_power_cut_wherever_it_stands(reports: int) -> None:
    rig = Rig()
    rig.receive("d1/job/order/j1", say(job_of(rig, file_of(3), 3), 2))
    rig.play(reports)
    rig.boot()
    rig.step(bus.Tick())
    rig.play()
    assert rig.document.stage == "kept" and states(rig)[-1] == "done"
    assert rig.names().count("update-offered") == 1 and rig.names().count("update-kept") == 1
    assert rig.names().count("job-ended") == 1


def test_a_job_that_another_offer_came_before_says_so() -> None:
    rig = Rig()
    order = job_of(rig, file_of(3), 3)
    real = rig.do
    rig.do = lambda do: [] if isinstance(do, offers.Ask) else real(do)  # type: ignore[method-assign]
    rig.receive("d1/job/order/j1", say(order, 2))
    rig.offer(file_of(4), 4, "r4")
    assert states(rig)[-1] == "failed"
    rig.do = real  # type: ignore[method-assign]


# ---- that it is there


def rig_that_tells() -> Rig:
    rig = Rig()
    birth = wire.Status(online=True, session="mine")
    rig.guard = msgspec.structs.replace(rig.guard, herald=presence.Herald(birth=birth))
    rig.sent.clear()
    rig.step(bus.LinkDown("x"))
    rig.step(bus.LinkUp())
    return rig


def births(rig: Rig) -> list[int]:
    found = [each for each in rig.sent if each.topic == "edgert/v1/f/d1/status/device/-"]
    assert all(each.retain and each.qos == 1 for each in found)
    return [wire.decode(each.payload, wire.Status)[0].seq for each in found]


def test_the_birth_is_the_first_word_of_each_connection() -> None:
    rig = rig_that_tells()
    assert rig.sent[0].topic.endswith("/status/device/-") and births(rig) == [1]
    rig.step(bus.LinkDown("x"))
    rig.step(bus.LinkUp())
    assert births(rig) == [1, 2]


def test_a_will_of_an_old_session_is_answered_and_a_clone_is_an_event() -> None:
    rig = rig_that_tells()
    rig.now_s += 60.0
    rig.receive("d1/status/device/-", wire.encode(wire.Status(online=False, session="old")))
    rig.step(bus.Tick())
    assert births(rig) == [1, 2]
    rig.receive("d1/status/device/-", wire.encode(wire.Status(online=True, session="mine", seq=2)))
    rig.receive("d1/status/device/-", wire.encode(wire.Status(online=True, session="theirs", seq=1)))
    assert rig.names().count("duplicate-identity") == 1
    assert rig.guard.device.world.counters["duplicate-identity"] == 1
    rig.receive("d1/status/device/-", b"\xff")
    assert rig.guard.device.world.counters["malformed-messages"] == 1


def test_who_lost_sight_is_told_everything_unsigned_but_not_often() -> None:
    rig = rig_that_tells()
    rig.now_s += 60.0
    rig.sent.clear()
    for _ in range(5):
        rig.receive("d1/cmd/rebirth/-", wire.encode(wire.Rebirth()))
    kinds = [each.topic.split("/")[4:6] for each in rig.sent]
    assert kinds == [["status", "device"], ["twin", "reported"], ["policy", "report"]]


def test_a_device_that_hears_itself_no_more_makes_another_connection() -> None:
    rig = rig_that_tells()
    rig.receive("d1/status/device/-", wire.encode(wire.Status(online=True, session="mine", seq=1)))
    wanted: list[bus.Effect] = []
    for _ in range(200):
        rig.now_s += 10.0
        rig.guard, effects = guards.step(rig.guard, bus.Tick(), rig.now_s)
        wanted += [each for each in effects if isinstance(each, bus.Reconnect)]
    assert len(wanted) == 1 and "deaf" in wanted[0].why


def test_the_log_is_shown_to_whom_the_device_believes() -> None:
    rig = rig_that_tells()
    shown: list[bus.Effect] = []
    for payload in (wire.encode(wire.LogsCommand(id="l1", lines=7)), say(wire.encode(wire.LogsCommand(id="l2")), 5)):
        message = bus.Received("edgert/v1/f/d1/cmd/logs/-", payload, None, False)
        rig.guard, effects = guards.step(rig.guard, message, rig.now_s)
        shown += [each for each in effects if isinstance(each, bus.ShowLog)]
    assert shown == [bus.ShowLog("l2", 50)]
    for bad in (b"\xff", wire.encode(wire.LogsCommand(id="a/b"))):
        rig.receive("d1/cmd/logs/-", say(bad, 6))
    assert rig.guard.device.world.counters["malformed-messages"] >= 1


# ---- whom it obeys


def test_a_device_with_keys_obeys_no_command_that_is_not_signed() -> None:
    rig = Rig()
    goals = wire.encode(wire.GoalsCommand(id="g1", goals={"least_energy": True}))
    rig.receive("d1/cmd/goals/-", goals)
    assert rig.events[-1].name == "command-refused" and rig.events[-1].detail["code"] == "unsigned"
    rig.receive("d1/cmd/goals/-", say(goals))
    assert "goals-set" in rig.names() and rig.seen
    count = rig.names().count("goals-set")
    rig.boot()
    rig.receive("d1/cmd/goals/-", say(goals))
    assert rig.events[-1].detail["code"] == "replayed" and rig.names().count("goals-set") == count
    for where in ("d1/cmd/exits/-", "d1/twin/desired/-", "d1/job/order/j1", "d1/job/cancel/j1"):
        rig.receive(where, b"\xa0")
        assert rig.events[-1].detail["code"] == "unsigned", where


def test_what_only_makes_it_forget_or_answer_needs_no_signature() -> None:
    rig = Rig()
    before = len(rig.events)
    rig.receive("d1/cmd/ack/-", wire.encode(wire.EventAck(stream="other", up_to=1)))
    assert rig.guard.device.world.counters == {"foreign-ack": 1} and len(rig.events) == before


def test_a_device_without_keys_obeys_as_it_always_did() -> None:
    rig = Rig(keys=None)
    rig.receive("d1/cmd/goals/-", wire.encode(wire.GoalsCommand(id="g1", goals={"least_energy": True})))
    assert "goals-set" in rig.names()


def test_nonsense_on_the_channel_of_policies_is_counted() -> None:
    rig = Rig()
    for where in ("d1/policy/offer/-", "-/policy/keys/1", "d1/policy/report/-"):
        rig.receive(where, b"\xff")
    assert rig.guard.device.world.counters == {"malformed-messages": 3}
    rig.receive("-/policy/chunk/" + "0" * 32 + ".0", b"\xff")
    assert rig.document.stage == "none"


def test_a_supervisor_that_starts_anew_in_the_middle_of_a_trial_sees_it_to_its_end() -> None:
    rig = Rig()
    rig.play(40)
    rig.offer(file_of(3), 3)
    rig.boot()  # its note of the acting network is lost here, so the actor is told once more
    assert rig.document.stage == "trial"
    rig.play(120)
    assert rig.document.stage == "kept"


def test_labels_that_it_is_given_are_those_it_reports() -> None:
    rig = Rig()
    wanted = wire.TwinDesired(epoch=1, version=1, settings={"labels": {"site": "north"}})
    rig.receive("d1/twin/desired/-", say(wire.encode(wanted)), retained=True)
    assert report_of(rig).labels == ("site=north",)
    before = len(rig.sent)
    rig.receive("d1/twin/desired/-", say(wire.encode(wanted)), retained=True)  # the broker says it at each connection
    assert rig.events[-1].name != "command-refused" and len(rig.sent) <= before + 1


def test_it_listens_to_everything_it_obeys() -> None:
    filters = guards.subscriptions(CONFIG)
    assert "edgert/v1/f/d1/policy/offer/-" in filters and "edgert/v1/f/d1/cmd/+/+" in filters
    assert len(filters) == len(set(filters))


def test_floods_of_nonsense_are_counted_and_fill_no_store() -> None:
    rig = Rig()
    for n in range(500):
        rig.now_s += 1.0
        rig.receive("d1/cmd/goals/-", b"\xff")
        rig.receive("-/policy/keys/9", b"%d" % n)
    assert rig.guard.policies.refused["unsigned"] == 500
    assert rig.guard.device.world.counters["malformed-messages"] == 500
    assert len(rig.events) <= 2 * guards.NOISY_MAX
    rig.now_s += guards.NOISY_S
    rig.receive("d1/cmd/goals/-", b"\xff")
    assert rig.events[-1].detail["left_out_before"] > 300


@given(
    st.sampled_from(
        [
            "d1/policy/offer/-",
            "-/policy/keys/7",
            "-/policy/chunk/x.0",
            "d1/cmd/goals/-",
            "d1/job/order/j",
            "d1/twin/desired/-",
            "d1/status/device/-",
            "d1/cmd/logs/-",
            "d1/cmd/rebirth/-",
        ]
    ),
    st.binary(max_size=80) | st.just(say(b"\xa1")) | st.binary(max_size=40).map(lambda junk: say(junk, counter=9)),
    st.sampled_from([KEYS, None]),
)
def test_no_bytes_break_it(where: str, payload: bytes, keys: wire.KeyList | None) -> None:
    rig = Rig(keys)
    rig.guard = msgspec.structs.replace(rig.guard, herald=presence.Herald(up=True))
    rig.receive(where, payload)
    rig.step(bus.Tick())
    assert rig.document.stage in ("none", "withdrawn") and rig.acting.generation == 0
