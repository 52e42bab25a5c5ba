"""What the trainer hears of the networks it offered, through the whole of the supervisor's brain."""

from __future__ import annotations

import msgspec

from edgert import bus, children, config, control
from edgert.bus import Effect
from edgert.control import World
from edgert.govern import trial
from edgert.values import ActorReport, Candidate, Fate, Note, Outcome, Record, Swap, Swapped

CONFIG = config.parse('[device]\nid = "d1"\n[policy]\nbundle = "/p.edgert"\n[plant]\nkind = "socket"\n', "test")
INSTALLED = Swap(0, "/p.edgert", "")


class Device:
    """The brain, and what it tells its two children."""

    def __init__(self, *, gated: bool = True, note: Note | None = None) -> None:
        learn = msgspec.structs.replace(CONFIG.learn, gated=gated)
        self.world: World = control.open_world(
            msgspec.structs.replace(CONFIG, learn=learn),
            task="t", n_exits=3, note=note, streams={"events": ("s", 1, 0)}, now_s=0.0,
        )  # fmt: skip
        self.now_s, self.pid = 0.0, 11
        self.outcomes: list[Outcome] = []
        self.swaps: list[Swap] = []
        self.step(bus.Tick(), bus.Spawned("actor", 11), bus.Connected("actor", 11))
        self.step(bus.Spawned("trainer", 12), bus.Connected("trainer", 12))
        self.outcomes.clear()

    def step(self, *events: bus.Input) -> list[Effect]:
        self.now_s += 1.0
        effects: list[Effect] = []
        for event in events:
            self.world, new = control.step(self.world, event, self.now_s)
            effects += new
        for effect in effects:
            if isinstance(effect, bus.Tell) and isinstance(effect.told, Outcome):
                self.outcomes.append(effect.told)
            if isinstance(effect, bus.Tell) and isinstance(effect.told, Swap):
                self.swaps.append(effect.told)
        return effects

    def offer(self, generation: int) -> Swap:
        swap = Swap(generation, f"/gen-{generation}", f"sha-{generation}")
        self.step(bus.Heard("trainer", Candidate(generation, swap.path, swap.sha256, {}, {})))
        return swap

    def answer(self, generation: int, ok: bool = True) -> None:
        self.step(bus.Heard("actor", Swapped(generation, ok, "" if ok else "golden", 1, 0, 0.1)))

    def die(self) -> list[Effect]:
        self.pid += 1
        effects = self.step(bus.Exited("actor", self.pid - 1, -11))
        self.now_s = self.world.children["actor"].next_start_s
        return effects + self.step(bus.Spawned("actor", self.pid), bus.Connected("actor", self.pid))

    def fates(self, generation: int) -> list[Fate]:
        return [told.what for told in self.outcomes if told.generation == generation]


def test_a_candidate_that_a_newer_one_overtakes_is_heard_of() -> None:
    device = Device()
    first, _, third = (device.offer(generation) for generation in (1, 2, 3))
    assert device.fates(2) == ["replaced"] and device.swaps == [first]
    device.answer(1)
    device.answer(3)
    assert device.swaps == [first, third] and device.world.networks.target == third
    assert (device.fates(1), device.fates(3)) == (["swapped", "replaced"], ["swapped"])


def test_after_a_roll_back_for_deaths_the_former_network_has_all_its_chances() -> None:
    good = Swap(1, "/gen-1", "sha-1")
    device = Device(note=Note(2, "/gen-2", "sha-2", Record(good, returns=(1.0,))))
    for _ in range(trial.DEATHS_MAX):
        device.die()
    assert device.fates(2) == ["rolled-back"] and device.world.networks.target == device.swaps[-1] == good
    for _ in range(trial.DEATHS_MAX - 1):
        device.die()
        assert device.world.networks.target == device.swaps[-1] == good
    effects = device.die()
    assert "swap-refused" in [effect.name for effect in effects if isinstance(effect, bus.Record)]
    assert device.world.networks.target == device.swaps[-1] == INSTALLED
    assert device.world.counters["swaps-refused"] == 1 and device.world.counters["networks-rolled-back"] == 1


def test_deaths_before_it_was_told_of_a_network_are_not_held_against_it() -> None:
    device = Device()
    for _ in range(2 * trial.DEATHS_MAX):
        device.die()
    device.offer(1)
    for _ in range(trial.DEATHS_MAX - 1):
        device.die()
        assert device.fates(1) == []
    device.die()
    assert device.fates(1) == ["refused"]


def test_an_actor_that_hung_after_a_long_life_is_forgiven_like_one_that_died() -> None:
    device = Device()
    for _ in range(trial.DEATHS_MAX):
        device.die()
    assert device.world.children["actor"].failures == trial.DEATHS_MAX
    device.now_s += children.STABLE_S
    effects = device.step(bus.Tick())
    assert bus.Kill("actor", device.pid) in effects
    device.die()
    assert device.world.children["actor"].failures == 1


def test_a_network_that_no_gate_judged_is_kept_at_once_and_so_noted() -> None:
    device = Device(gated=False)
    device.offer(1)
    effects = device.step(bus.Heard("actor", Swapped(1, True, "", 1, 0, 0.1)))
    assert device.fates(1) == ["swapped", "kept"]
    notes = [effect.note for effect in effects if isinstance(effect, bus.Commit)]
    assert notes[-1] == Note(1, "/gen-1", "sha-1"), "a successor finds no trial either"


def test_a_network_on_trial_is_one_that_acts() -> None:
    device = Device()
    swap = device.offer(1)
    device.answer(1)
    report = ActorReport(
        pid=11, ticks=20, missed=0, safe=0, exits=[20], latency_p50_s=0.0, latency_p99_s=0.0, latency_max_s=0.0,
        episodes=0, returns=[], faults={}, generation=1, acting=True, first_action_s=0.1, cpu_s=0.0, rss_bytes=1,
        network=swap,
    )  # fmt: skip
    device.step(bus.Heard("actor", report))
    device.offer(2)
    device.answer(2, ok=False)
    assert (device.fates(1), device.fates(2)) == (["swapped"], ["refused"]), "the first goes on as it was"
    assert device.world.networks.target == swap and device.world.networks.best is not None
