"""What a supervisor knows, as one document: for the terminal, the broker and the report."""

from __future__ import annotations

import msgspec

from edgert.children import Child
from edgert.control import World
from edgert.govern import trial
from edgert.govern.governor import PAUSED, Governor, setup
from edgert.values import Role, TrainOrder


def document(world: World, now_s: float) -> dict[str, object]:
    """The document that `edgert status --json` prints and telemetry carries.

    Args:
        world: the state.
        now_s: monotonic seconds.

    Returns:
        Plain maps, lists, numbers and text; unknown values are None.

    Raises:
        nothing.
    Source:
        ours: one document for the terminal, the broker and the report.
    """
    builtins = msgspec.to_builtins
    config, readings = world.config, world.governor.readings
    return {
        "device": config.device.id,
        "fleet": config.device.fleet,
        "task": world.task,
        "up_s": round(now_s - world.started_s, 3),
        "ready": world.ready,
        "link": {
            "up": world.link_up,
            "reason": world.link_reason,
            "ups": world.link_ups,
            "rtt_s": readings.link_rtt_s.value,
            "events_waiting": sum(box.last - box.floor for box in world.outboxes.values()),
        },
        "board": {
            "load_frac": readings.load_frac.value,
            "temp_c": readings.temp_c.value,
            "battery_frac": readings.battery_frac.value if readings.has_battery else None,
            "power_w": readings.power_w.value,
            "throttled": [] if readings.throttle is None else list(readings.throttle.now),
            "throttled_since_boot": [] if readings.throttle is None else list(readings.throttle.since_boot),
        },
        "budget": builtins(world.budget),
        **governed(world.governor),
        "children": {role: builtins(child) for role, child in world.children.items()},
        "actor": builtins(world.actor),
        "actor_age_s": _age_s(world, "actor", now_s),
        "trainer": builtins(world.trainer),
        "trainer_age_s": _age_s(world, "trainer", now_s),
        "services": {role: report.detail for role, report in world.services.items()},
        "policy": {
            "generation": world.networks.target.generation,
            "pending": None if world.networks.pending is None else world.networks.pending.generation,
            "last_swap": builtins(world.last_swap),
            **trial.shown(world.networks),
            "exits_order": None if world.order is None else world.order.told.id,
        },
        "training": {
            "paused": world.paused,
            "idle_because": idle_because(world),
            "networks_rolled_back": world.counters.get("networks-rolled-back", 0),
        },
        "counters": dict(world.counters),
    }


def _age_s(world: World, role: Role, now_s: float) -> float | None:
    heard_s = world.children.get(role, Child()).heard_s
    return None if heard_s is None else round(now_s - heard_s, 3)


def governed(governor: Governor) -> dict[str, object]:
    """What the governor wants, believes, and doubts.

    Args:
        governor: of the supervisor.

    Returns:
        `goals`: in force, whose wish they are, and of each what became of it; `estimates`: name with its unit ->
        mean, standard deviation, age and source; `refused`: sensor -> samples that were not believed.

    Raises:
        nothing.
    Source:
        ours: who asks why a device is slow reads goals, then reasons, then what they rest on.
    """
    state, goals = governor.state, setup(governor).goals
    return {
        "goals": {
            "wanted": msgspec.to_builtins(goals),
            "order": None if governor.wish is None else governor.wish.id,
            "verdicts": msgspec.to_builtins(state.verdicts),
        },
        "estimates": {name: msgspec.to_builtins(each) for name, each in state.figures.items()},
        "refused": governor.seen.refused,
    }


def idle_because(world: World) -> str:
    """Why nothing is learned now, in words.

    Args:
        world: the state.

    Returns:
        Empty while gradient steps may be taken.

    Raises:
        nothing.
    Source:
        ours: the first of the reasons that would have to go.
    """
    trainer, child, budget = world.trainer, world.children.get("trainer"), world.budget
    if child is None:
        return "learn.enabled is false in the configuration"
    if world.paused:
        return PAUSED
    if trainer is None or not child.connected:
        return "the trainer is not there (yet)"
    if budget is not None and budget.train_steps_hz <= 0:
        return f"budget: {budget.why.get('train_steps_hz', 'no steps')}"
    if trainer.replay < trainer.needed:
        return f"{trainer.replay} transitions, it takes {trainer.needed}"
    return ""


def refusal(world: World, order: TrainOrder) -> str:
    """Why an order about the training is of no use, in words.

    Args:
        world: the state.
        order: a person's word.

    Returns:
        Empty when it can be obeyed.

    Raises:
        nothing.
    Source:
        ours: pausing needs no trainer, it holds for the one that comes.
    """
    child = world.children.get("trainer")
    if child is None:
        return "this device does not learn: learn.enabled is false in the configuration"
    if order.verb == "now" and not child.connected:
        return "the trainer is not there (yet)"
    return ""
