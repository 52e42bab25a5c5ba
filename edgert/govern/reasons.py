"""The named reasons of the governor: what each means, and what a person can do about it. The failure catalogue."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """One entry of the catalogue.

    Attributes:
        means: what is so, and what was taken away because of it.
        do: what helps.
    """

    means: str
    do: str


_SENSOR = "Look at the sensor, or remove it from the configuration: a sensor that never answered limits nothing."
_PLAN = "Charge, state an earlier time, or accept less in goals.min_return_frac."

REASONS: dict[str, Reason] = {
    "ok": Reason("Nothing takes anything away.", "Nothing."),
    "paused": Reason("A person paused the training.", "`edgert train resume`."),
    "cpu-high": Reason(
        "The processor is busy beyond govern.cpu_high_frac: training is slowed. Decisions are not: see `deadline`.",
        "Find who keeps it busy (`top`); move it to another machine or give it a lower priority.",
    ),
    "cpu-unknown": Reason("The CPU load cannot be read any more: judged as full load.", _SENSOR),
    "temp-high": Reason(
        "Hotter than govern.temp_high_c, or near the temperature where the kernel slows the clock: training and "
        "asking are cut in proportion, and then the depth of decisions.",
        "Heat sink, fan, shade, a slower control rate.",
    ),
    "temp-critical": Reason(
        "Hotter than govern.temp_critical_c: no training, no asking, the first exit only.",
        "Cool the board; look at its fan before it is switched off by its own protection.",
    ),
    "temp-unknown": Reason("A thermometer that worked is silent: judged as critical heat.", _SENSOR),
    "battery-low": Reason(
        "The charge is below govern.battery_low_frac: training and asking are cut in proportion, and then the depth of "
        "decisions.",
        "Charge.",
    ),
    "battery-critical": Reason(
        "The charge is below govern.battery_critical_frac: no training, no asking, the first exit only.", "Charge now."
    ),
    "battery-unknown": Reason(
        "It runs on a battery whose charge cannot be read: judged as critical.",
        "Look at the gauge and its bus (`edgert board show`), or state that it runs on mains.",
    ),
    "link-down": Reason("There is no session with the broker: teachers are not asked.", "Look at link.reason."),
    "link-slow": Reason(
        "The round trip to the broker is long or not measured yet: teachers are asked less.",
        "A nearer broker; a better radio.",
    ),
    "link-lossy": Reason(
        "A part of what is sent is lost: teachers are asked less.", "Look at rssi_dbm; move the aerial."
    ),
    "link-capacity": Reason(
        "Teachers may take half of what the link was seen to carry, and no more.", "A faster link, or fewer questions."
    ),
    "link-metered": Reason(
        "Every byte of this link costs money: teachers are not asked.", "goals.use_metered = true, if that is worth it."
    ),
    "memory-pressure": Reason(
        "Tasks wait for memory: training is off before the kernel kills something.",
        "A smaller learn.ring_transitions or learn.batch; find who holds the memory.",
    ),
    "memory-unknown": Reason("The pressure on memory cannot be read any more: judged as high.", _SENSOR),
    "goal-memory": Reason(
        "Supervisor, actor and trainer together hold more than goals.memory_max_bytes: training is off.",
        "A smaller learn.ring_transitions, or a larger goal.",
    ),
    "under-voltage": Reason(
        "The firmware sees too low a supply voltage, from which memory cards and results suffer: training is off.",
        "A stronger power supply and a shorter, thicker cable.",
    ),
    "throttled": Reason(
        "The firmware or the kernel has taken the clock down: training is slowed so that the actor has what is left.",
        "Cooling and the power supply; `edgert board show` says which of the two.",
    ),
    "deadline": Reason(
        "As slow as the board is now, a dearer setting would be late more often than goals.miss_frac allows: a cheaper "
        "one was chosen, and training yields.",
        "Find who slows the board; a later goals.deadline_s; a faster runtime (`edgert policy bench`).",
    ),
    "deadline-missed": Reason(
        "More deadlines were missed than goals.miss_frac allows, although the decisions should have been in time: "
        "training yields, then cheaper settings are in force, a step back for each half hour without more of it.",
        "Find who takes the processor away (`top`); give edgert a higher priority; a larger goals.miss_frac.",
    ),
    "goal-power": Reason(
        "A dearer setting, or more training, would draw more than goals.max_power_w.", "A larger goal."
    ),
    "goal-until": Reason("A dearer setting, or more training, would empty the battery before goals.last_until.", _PLAN),
    "goal-least-energy": Reason(
        "goals.least_energy: the cheapest setting that has goals.min_return_frac is in force, and no dearer one.",
        "Nothing.",
    ),
    "goal-bytes": Reason("Teachers and telemetry share what goals.bytes_per_day leaves of this day.", "A larger goal."),
    "on-mains": Reason("Something charges the battery: goals.last_until is suspended.", "Nothing."),
    "no-battery": Reason(
        "goals.last_until without a battery means nothing.", "Set [battery] kind, or remove the goal."
    ),
    "clock-unknown": Reason(
        "The time of the day is not known: the battery is made to last a whole day from now on, and again from each "
        "look on.",
        "Set the clock (NTP, RTC), or say hours (`6.5 h`).",
    ),
    "until-infeasible": Reason(
        "Even the cheapest setting reaches the reserve (govern.battery_critical_frac) before goals.last_until: the "
        "cheapest is in force, without training and asking.",
        "Charge, state an earlier time, or switch off what else runs on the board.",
    ),
    "until-uncertain": Reason(
        "The battery may last until goals.last_until, but not with nine chances in ten, or its gauge has just jumped: "
        "the cheapest setting is in force, without training and asking.",
        _PLAN,
    ),
    "goal-power-unmet": Reason(
        "Even the cheapest setting draws more than goals.max_power_w: the cheapest is in force.",
        "A larger goal; switch off what else runs on the board.",
    ),
    "goal-return-unmet": Reason(
        "Safety, the deadline or the energy comes first and does not leave goals.min_return_frac, or no setting of the "
        "network has it: the best there is is in force.",
        "See the reason of `point`; where that is `ok`, another network or a smaller goal.",
    ),
    "goal-return-unknown": Reason(
        "Nobody measured the return of the acting network, as it learned here: no frontier, no figure.",
        "`python -m tools.export` on a workstation measures a frontier.",
    ),
    "goal-deadline-unmet": Reason(
        "More deadlines are missed than goals.miss_frac allows, or would be even at the cheapest setting.",
        "Find who slows the board; a later goals.deadline_s.",
    ),
    "goal-memory-unmet": Reason(
        "They hold more than goals.memory_max_bytes although training is off: what is held is not given back.",
        "Restart the trainer with a smaller learn.ring_transitions.",
    ),
    "goal-bytes-unmet": Reason(
        "The day's bytes are used up: nothing is asked, telemetry comes every ten minutes.", "A larger goal."
    ),
}
"""Name -> what it means. Every name that a budget or a verdict carries is one of these."""
