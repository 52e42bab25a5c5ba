from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from edgert import bus, config
from edgert.config import Goals
from edgert.fleet import twin
from edgert.govern import cost, governor
from edgert.govern.governor import Governor, Wish
from edgert.values import Budget, Carried, Clock, Reading, Readings, Swap

TEXT = '[device]\nid = "d1"\n[policy]\nbundle = "/p.edgert"\n'
CALM = Readings(load_frac=Reading(0.1), temp_c=Reading(40.0), link_rtt_s=Reading(0.01))
NOON = Clock(9, 43_200.0)


@dataclass
class Desk:
    """A governor, what it wants done, and its last budget."""

    held: Governor
    effects: list[bus.Effect] = field(default_factory=list)
    budget: Budget | None = None

    def look(self, now_s: float, readings: Readings = CALM, carried_bytes: int = 0, paused: bool = False) -> Budget:
        self.effects.clear()
        self.held = governor.sensed(self.held, bus.Sensed(readings, NOON, carried_bytes), now_s)
        self.held, self.budget = governor.allot(
            self.held, actor=None, trainer=None, link_up=True, paused=paused, now_s=now_s,
            effects=self.effects,
        )  # fmt: skip
        return self.budget

    def events(self) -> dict[str, dict[str, object]]:
        return {effect.name: effect.detail for effect in self.effects if isinstance(effect, bus.Record)}


def desk(text: str = TEXT, carried: Carried | None = None) -> Desk:
    made = config.parse(text, "x")
    return Desk(governor.open_governor(made, n_exits=3, prices=None, cores=2, carried=carried))


def test_a_pause_is_a_reason_like_any_other() -> None:
    device = desk()
    assert device.look(0.0).train_steps_hz == 20.0 and not device.events()
    budget = device.look(1.0, paused=True)
    assert (budget.train_steps_hz, budget.teacher_bytes_per_s) == (0.0, 0.0)
    assert device.events()["budget-changed"]["train_steps_hz"] == governor.PAUSED


def test_a_goal_that_cannot_be_met_is_an_event_at_once_and_so_is_its_end() -> None:
    device = desk()
    device.look(0.0)
    wish = Wish("c1", Goals(max_power_w=0.1), ("max_power_w",), 0.0, 5.0)
    device.held = msgspec.structs.replace(device.held, wish=wish)
    device.look(1.0)
    assert device.events()["goals-changed"]["unmet"] == {"power": "goal-power-unmet"}
    device.look(2.0)
    assert "goals-changed" not in device.events(), "once"
    device.look(6.0)
    assert device.held.wish is None and device.events()["goals-order-ended"]["id"] == "c1"
    assert device.events()["goals-changed"]["unmet"] == {}


def test_one_reading_of_nonsense_takes_nothing_away() -> None:
    device = desk()
    for second in range(10):
        device.look(float(second))
    assert device.look(10.0, msgspec.structs.replace(CALM, temp_c=Reading(149.0))).max_exit == 2


def test_bytes_are_noted_once_a_minute_and_found_again() -> None:
    device = desk(TEXT + "[goals]\nbytes_per_day = 1000000\n", carried=Carried(9, 700))
    noted = []
    for second in range(0, 181, 10):
        device.look(100.0 + second, carried_bytes=second)
        noted += [effect.carried for effect in device.effects if isinstance(effect, bus.Carry)]
    assert [each.total_bytes for each in noted] == [710, 770, 830]
    unlimited = desk()
    unlimited.look(100.0, carried_bytes=5)
    assert not any(isinstance(effect, bus.Carry) for effect in unlimited.effects)


def test_prices_of_another_network_are_asked_for_once_and_taken_only_if_it_still_acts() -> None:
    one, two = Swap(1, "/g1", "a"), Swap(2, "/g2", "b")
    held: list[bus.Effect] = []
    made = governor.acting(desk().held, one, held)
    made = governor.acting(made, one, held)
    assert held == [bus.Price(one)]
    dear = cost.unknown(3, 5.0)
    assert governor.priced(made, bus.Priced(two, dear)).prices.rate_hz == 20.0
    assert governor.priced(made, bus.Priced(one, None)).prices.rate_hz == 20.0
    assert governor.priced(made, bus.Priced(one, dear)).prices.rate_hz == 5.0


def test_hours_of_the_fleet_are_counted_from_its_order_and_those_of_the_file_from_the_start() -> None:
    device = desk(TEXT + '[goals]\nlast_until = "2 h"\n').held
    assert governor.setup(device).goals_since_s == 0.0
    wish = Wish("c", Goals(last_until="1 h"), ("last_until",), 50.0, None)
    assert governor.setup(msgspec.structs.replace(device, wish=wish)).goals_since_s == 50.0
    other = Wish("c", Goals(last_until="1 h", max_power_w=3.0), ("max_power_w",), 50.0, None)
    assert governor.setup(msgspec.structs.replace(device, wish=other)).goals_since_s == 0.0


def test_a_command_goes_before_the_twin_and_the_twin_before_the_file_each_goal_by_itself() -> None:
    filed = desk(TEXT + "[goals]\nmax_power_w = 5.0\nmin_return_frac = 0.5\n").held
    wished = twin.configured(filed.config, twin.Wishes(goals=Goals(max_power_w=4.0, min_return_frac=0.5)))
    wish = Wish("c", Goals(max_power_w=5.0, min_return_frac=0.7), ("min_return_frac",), 0.0, None)
    both = msgspec.structs.replace(filed, config=wished, wish=wish)
    goals = governor.setup(both).goals
    assert (goals.max_power_w, goals.min_return_frac) == (4.0, 0.7), "the twin came after the command, and is not lost"
    assert governor.setup(msgspec.structs.replace(both, wish=None)).goals.min_return_frac == 0.5
    assert governor.setup(filed).goals.max_power_w == 5.0


def test_a_budget_that_flutters_is_told_a_few_times_and_as_it_ends() -> None:
    device = desk()
    told = []
    for second in range(100):
        device.look(float(second), paused=second < 95 and second % 2 == 0)
        told += [effect.detail for effect in device.effects if isinstance(effect, bus.Record)]
    device.look(110.0)
    told += device.events().values()
    assert 2 <= len(told) <= 12 and told[-1]["train_steps_hz"] == "ok"


def test_a_goal_that_flutters_is_told_once_and_its_end_when_it_has_lasted() -> None:
    device = desk(TEXT + "[goals]\nmemory_max_bytes = 1000\n")
    told = []
    for second in range(200):
        held = 2000 if second % 2 and second < 100 else 500
        event = bus.Sensed(CALM, NOON, 0, held)
        device.effects.clear()
        device.held = governor.sensed(device.held, event, float(second))
        device.held, device.budget = governor.allot(
            device.held, actor=None, trainer=None, link_up=True, paused=False, now_s=float(second),
            effects=device.effects,
        )  # fmt: skip
        told += [(second, each["unmet"]) for name, each in device.events().items() if name == "goals-changed"]
    assert [unmet for _, unmet in told] == [{"memory": "goal-memory-unmet"}, {}]
    assert told[0][0] == 1 and 99 + 60 <= told[1][0] <= 99 + 62
