"""The safety bands: what heat, charge, load, memory and link leave of everything, whatever anybody wants."""

from __future__ import annotations

import math

import msgspec

from edgert.config import Govern
from edgert.govern.estimate import Belief, Estimate, Scale, scales
from edgert.values import Budget

BUSY_FLOOR_FRAC = 0.25
"""Share of the gradient steps left at full CPU load. Not zero: the load counts our own niced trainer, which the actor
does not feel, and switching it off for its own load would only make it oscillate (ours)."""

SLOW_FLOOR_FRAC = 0.1
"""Share of the teacher's bytes left on a link however slow, or of unmeasured delay, as long as it is up (ours)."""


class _Limit(msgspec.Struct, frozen=True):
    """What one quantity leaves of each figure: shares 0..1, and how many of the deepest exits it takes away."""

    reason: str
    train_frac: float = 1.0
    teacher_frac: float = 1.0
    exits_off: float = 0
    ops_frac: float = 1.0


def allot(
    estimate: Estimate,
    govern: Govern,
    *,
    n_exits: int,
    train_steps_hz: float,
    teacher_bytes_per_s: float,
    link_up: bool,
    has_frontier: bool = False,
) -> Budget:
    """Decide what the device may spend until the next look.

    Args:
        estimate: what is believed of the board.
        govern: the limits; the same that `estimate.update` was given.
        n_exits: exits of the acting network, at least 1.
        train_steps_hz: gradient steps a second when nothing is scarce; 0 when training is off.
        teacher_bytes_per_s: bytes a second for teachers when nothing is scarce; 0 when they are not asked.
        link_up: the session with the broker stands.
        has_frontier: the acting network can be made cheaper by choosing another setting of its exits, of known return,
            within `max_ops_frac`. Without, and always when something is critical, the deepest exits are forbidden.

    Returns:
        The budget. Exit 0 is always allowed. Hotter, emptier, busier or slower never buys more. `why` names for each
        figure the reason of the tightest limit, or `ok`: cpu-high, cpu-unknown, temp-high, temp-critical,
        temp-unknown, battery-low, battery-critical, battery-unknown, link-slow, link-down, memory-pressure,
        memory-unknown.

    Raises:
        nothing.

    Source:
        ours: training gives way first and gradually, being the largest consumer and the only one that can wait; the
        deepest exit next; the first exit never. Load alone makes no decision cheaper: what it costs is time, and the
        deadline sees to that.
    """
    limits = scales(govern)
    found = [
        _slow(estimate.link_rtt_s, limits.link_rtt_s) if link_up else _Limit("link-down", teacher_frac=0.0),
        _busy(estimate.load_frac, limits.load_frac),
        _scarce(estimate.temp_c, limits.temp_c),
        _scarce(estimate.battery_frac, limits.battery_frac),
        _pressed(estimate.memory_pressure_frac, limits.memory_pressure_frac),
    ]
    train = min(found, key=lambda limit: limit.train_frac)
    teacher = min(found, key=lambda limit: limit.teacher_frac)
    # Forbidding an exit changes what every measured setting brings, so it is left to what leaves no choice.
    off = [limit.exits_off if limit.exits_off == math.inf or not has_frontier else 0 for limit in found]
    exits_off = max(off)
    exits = found[off.index(exits_off)]
    ops = min(found, key=lambda limit: limit.ops_frac)
    deepest = max(0, n_exits - 1)
    return Budget(
        max_exit=int(max(0, deepest - exits_off)),
        train_steps_hz=train.train_frac * max(0.0, train_steps_hz),
        teacher_bytes_per_s=teacher.teacher_frac * max(0.0, teacher_bytes_per_s),
        why={
            "max_exit": exits.reason if exits_off > 0 else "ok",
            "train_steps_hz": train.reason if train.train_frac < 1.0 else "ok",
            "teacher_bytes_per_s": teacher.reason if teacher.teacher_frac < 1.0 else "ok",
            "max_ops_frac": ops.reason if ops.ops_frac < 1.0 else "ok",
        },
        max_ops_frac=ops.ops_frac,
    )


def _scarce(belief: Belief, scale: Scale) -> _Limit:
    """Heat and charge: from the first limit on less training, then less depth; from the second exit 0 alone."""
    if belief.level == 0:
        return _Limit("ok")
    mild, worst = scale.bands
    if belief.level == 1 and belief.value is not None:
        half = (mild.leave + worst.enter) / 2
        train_frac, ops_frac = _ramp(belief.value, mild.leave, half), _ramp(belief.value, half, worst.enter)
        return _Limit(mild.reason, train_frac, train_frac, exits_off=int(ops_frac < 1.0), ops_frac=ops_frac)
    return _Limit(_worst_reason(belief, scale), 0.0, 0.0, exits_off=math.inf, ops_frac=0.0)


def _busy(belief: Belief, scale: Scale) -> _Limit:
    """CPU load: slower training."""
    if belief.level == 0:
        return _Limit("ok")
    left_frac = 0.0 if belief.value is None else _ramp(belief.value, scale.bands[0].leave, 1.0)
    train_frac = BUSY_FLOOR_FRAC + (1.0 - BUSY_FLOOR_FRAC) * left_frac
    return _Limit(_worst_reason(belief, scale), train_frac=train_frac)


def _pressed(belief: Belief, scale: Scale) -> _Limit:
    """Waiting for memory: training holds the most of what can be done without."""
    return _Limit("ok") if belief.level == 0 else _Limit(_worst_reason(belief, scale), train_frac=0.0)


def _slow(belief: Belief, scale: Scale) -> _Limit:
    """Round trip: bytes in inverse proportion to it, so that the bytes under way at any time stay bounded."""
    if belief.value is None:
        return _Limit(scale.unknown, teacher_frac=SLOW_FLOOR_FRAC)
    if belief.level == 0:
        return _Limit("ok")
    share_frac = scale.bands[0].leave / belief.value if belief.value > 0 else 1.0
    return _Limit(_worst_reason(belief, scale), teacher_frac=min(1.0, max(SLOW_FLOOR_FRAC, share_frac)))


def _worst_reason(belief: Belief, scale: Scale) -> str:
    return scale.unknown if belief.value is None else scale.bands[belief.level - 1].reason


def _ramp(value: float, full_at: float, none_at: float) -> float:
    """1 at `full_at`, 0 at `none_at`, straight in between and flat beyond."""
    if full_at == none_at:
        return 0.0
    return min(1.0, max(0.0, (value - none_at) / (full_at - none_at)))
