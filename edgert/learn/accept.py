"""The gate: may a network trained on this device replace the one that acts?"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.learn.dqn import softmax
from edgert.learn.offpolicy import Gain
from edgert.nets import F32

Actions = npt.NDArray[np.integer]


class Limits(msgspec.Struct, frozen=True):
    """How strict the gate is.

    Attributes:
        min_held_out: held-out observations it takes to judge at all.
        min_taught: taught ones among them, to judge by the teacher rather than by temporal difference.
        clear_errors: a candidate that the teacher prefers to the installed network on so many standard errors more of
            the observations than it does not, as a coin would fall, needs neither.
        rounding_regret_frac: what rounding to int8 may give away, by the float network's own judgement, as a share of
            the mean spread of its Q-values. Agreement of actions would refuse harmless choices between near equals.
        td_slack_frac: how much the mean absolute TD error may grow when no teacher can judge.
        regret_slack_frac: how much the regret by a teacher's judgement may grow, as a share of the mean spread of its
            Q-values: a choice between near equals is no reason to keep what was learned from acting.
        rounding_divergence: what rounding to int8 may move a policy's probabilities, as the mean divergence, in nats.
        beat_frac: by what share the acting network's regret must be beaten. Above 0 after a roll-back, since what
            passed for as good was not; without a teacher `td_slack_frac` is then taken away.
    """

    min_held_out: int = 50
    min_taught: int = 30
    clear_errors: float = 2.0
    regret_slack_frac: float = 0.01
    rounding_regret_frac: float = 0.05
    td_slack_frac: float = 0.1
    rounding_divergence: float = 0.02
    beat_frac: float = 0.0


class Evidence(NamedTuple):
    """What both networks do on the same `n` held-out observations.

    Attributes:
        installed: (n,) actions of the installed network, int8, exits as on the board.
        acting: (n,) actions of the network that acts, likewise.
        candidate: (n,) actions of the candidate, int8, exits as on the board.
        candidate_float: (n,) actions of the candidate's float network through the same exits.
        candidate_head: (n, n_actions + 1) float32 outputs of the candidate's last exit, int8.
        float_q: (n, n_actions) float32 Q-values of the candidate's float network at its last exit.
        teacher_q: (n, n_actions) float32; anything where not taught.
        taught: (n,) bool.
        acting_td: (n,) absolute TD errors of the acting network, by targets from the acting network.
        candidate_td: (n,) absolute TD errors of the candidate, by the same targets.
        acting_unexplained: what the acting network's own values leave unexplained (`unexplained`); NaN is not known.
        candidate_unexplained: the candidate's.
        gain: what the candidate would have earned more, off-policy; None where nobody looked.
    """

    installed: Actions
    acting: Actions
    candidate: Actions
    candidate_float: Actions
    candidate_head: F32
    float_q: F32
    teacher_q: F32
    taught: npt.NDArray[np.bool_]
    acting_td: F32
    candidate_td: F32
    acting_unexplained: float = math.nan
    candidate_unexplained: float = math.nan
    gain: Gain | None = None


class PolicyEvidence(NamedTuple):
    """What both networks of kind `policy` say to the same `n` held-out observations.

    Attributes:
        acting: (n, n_actions + 1) float32, the head of the acting network that answers, int8, exits as on the board.
        candidate: (n, n_actions + 1) float32, of the candidate, likewise.
        candidate_float: (n, n_actions + 1) float32, of the candidate's float network through the same exits.
        gain: what the candidate would have earned more, off-policy; None where nobody looked.
    """

    acting: F32
    candidate: F32
    candidate_float: F32
    gain: Gain | None = None


class Verdict(NamedTuple):
    """Accepted when every named check passed.

    Attributes:
        checks: name -> passed.
        detail: name -> figure, for the log.
    """

    checks: dict[str, bool]
    detail: dict[str, float]

    @property
    def accepted(self) -> bool:
        """Every check passed."""
        return all(self.checks.values())


def regret(teacher_q: F32, action: Actions) -> F32:
    """What an action gives away by the teacher's judgement.

    Args:
        teacher_q: (n, n_actions) float32.
        action: (n,) integer.

    Returns:
        (n,) float32, in units of return, 0 where the action is the teacher's own.

    Raises:
        Nothing.
    Source:
        ours: the advantage gap max_a T(s,a) - T(s,action); unlike agreement it forgives a choice between equals.
    """
    return np.asarray(teacher_q.max(1) - teacher_q[np.arange(len(action)), action], np.float32)


def unexplained(value: npt.NDArray[np.floating], target: npt.NDArray[np.floating]) -> float:
    """How badly a network's values fit what followed, in their own unit.

    Args:
        value: (n,) float, of the actions taken.
        target: (n,) float, what followed, by the same network.

    Returns:
        Mean absolute TD error as a share of the values' standard deviation: infinite for a network that says the same
        of everything, so that collapsing is no way to be consistent. 0 where there is nothing.

    Raises:
        Nothing.
    Source:
        ours: by another network's targets, a student that has learned that its world is worth more looks worse than
        one that knows nothing.
    """
    error = float(np.abs(value - target).mean()) if len(value) else 0.0
    spread = float(value.std()) if len(value) else 0.0
    return error / spread if spread > 0 else (math.inf if error else 0.0)


def judge(evidence: Evidence, limits: Limits) -> Verdict:
    """Compare candidate and acting network on observations that neither was trained on here.

    Args:
        evidence: both networks on the same observations.
        limits: how strict to be.

    Returns:
        Named checks and the figures behind them. With enough taught observations the teacher judges (`regret`),
        otherwise the temporal difference does (`td-error`), by the acting network's targets or by what each network's
        own leave unexplained: it takes both to refuse. `off-policy-return` refuses only on evidence; without
        enough of it there is no figure `off_policy_gain`.

    Raises:
        Nothing.
    Source:
        ours: a paired comparison, because the difference of two policies on the same states varies far less than each.
    """
    n, taught = len(evidence.candidate), int(evidence.taught.sum())
    teacher_q = evidence.teacher_q[evidence.taught]
    installed, before, after = (
        regret(teacher_q, actions[evidence.taught])
        for actions in (evidence.installed, evidence.acting, evidence.candidate)
    )
    clear = _is_clear(installed - after, limits.clear_errors)
    checks = {
        "held-out": n >= limits.min_held_out or clear,
        "finite": bool(np.isfinite(evidence.candidate_head).all()),
    }
    detail = {"held_out": float(n), "taught": float(taught)}
    if not n:
        return Verdict(checks, detail)
    q = evidence.float_q
    lost = float(regret(q, evidence.candidate).mean() - regret(q, evidence.candidate_float).mean())
    allowed = limits.rounding_regret_frac * float((q.max(1) - q.min(1)).mean())
    checks["rounding"] = lost <= allowed and allowed > 0  # a network without preferences has nothing to offer
    detail |= {"rounding_regret": lost, "rounding_allowed": allowed}
    detail["int8_agreement"] = float((evidence.candidate == evidence.candidate_float).mean())
    detail["changed"] = float((evidence.candidate != evidence.acting).mean())
    if taught >= limits.min_taught or clear:
        lost_installed, lost_before, lost_after = (float(each.mean()) for each in (installed, before, after))
        slack = limits.regret_slack_frac * float((teacher_q.max(1) - teacher_q.min(1)).mean())
        checks["regret"] = (
            lost_before - lost_after > limits.beat_frac * lost_before
            if limits.beat_frac
            else lost_after <= lost_before + slack
        )
        checks["regret-installed"] = lost_after <= lost_installed  # or small steps back could add up
        detail |= {"regret_installed": lost_installed, "regret_before": lost_before, "regret_after": lost_after}
    else:
        before_td, after_td = float(evidence.acting_td.mean()), float(evidence.candidate_td.mean())
        slack_frac = 0.0 if limits.beat_frac else limits.td_slack_frac
        left = evidence.candidate_unexplained <= evidence.acting_unexplained * (1 + slack_frac)
        checks["td-error"] = left or after_td <= before_td * (1 + slack_frac)
        detail |= {"td_before": before_td, "td_after": after_td}
        parts = {"unexplained_before": evidence.acting_unexplained, "unexplained_after": evidence.candidate_unexplained}
        detail |= {name: part for name, part in parts.items() if math.isfinite(part)}
    _look_at(evidence.gain, checks, detail)
    return Verdict(checks, detail)


def _is_clear(gain: F32, errors: float) -> bool:
    """By signs, because few differences are large and rule every mean."""
    better, worse = np.count_nonzero(gain > 0), np.count_nonzero(gain < 0)
    return bool(better > worse and better - worse >= errors * (better + worse) ** 0.5)


def _look_at(gain: Gain | None, checks: dict[str, bool], detail: dict[str, float]) -> None:
    if gain is None:
        return
    checks["off-policy-return"] = not gain.harmful
    detail["off_policy_n"] = float(gain.n)
    if gain.gain is not None:
        figures = {"off_policy_gain": gain.gain, "off_policy_error": gain.error, "off_policy_acting": gain.acting}
        detail.update(figures)


def judge_policy(evidence: PolicyEvidence, limits: Limits) -> Verdict:
    """Look at a candidate that learns on-policy: is it sound, and is there evidence that it earns less?

    No teacher is asked, and the candidate need not beat anything: it learns from what the acting network does, so one
    that is held back a while is trained on ever older behaviour, and a student that is to overtake its teacher must be
    allowed to disagree with it. It is near the acting network by construction; if it earns less all the same, the
    trial that every network is on puts the former one back.

    Args:
        evidence: both networks on observations that the candidate was not trained on.
        limits: how strict to be.

    Returns:
        Named checks and the figures behind them, as `judge`.

    Raises:
        Nothing.
    Source:
        ours; the divergence's direction is that of TRPO (Schulman et al. 2015, arXiv 1502.05477, equation 11).
    """
    n = len(evidence.candidate)
    finite = bool(np.isfinite(evidence.candidate).all())
    checks, detail = {"held-out": n >= limits.min_held_out, "finite": finite}, {"held_out": float(n)}
    if not n or not finite:
        return Verdict(checks, detail)
    acting, candidate, in_float = (
        softmax(heads[:, :-1]) for heads in (evidence.acting, evidence.candidate, evidence.candidate_float)
    )
    lost = float((in_float[0] * (in_float[1] - candidate[1])).sum(1).mean())
    checks["rounding"] = lost <= limits.rounding_divergence
    detail |= {"rounding_divergence": lost, "rounding_allowed": limits.rounding_divergence}
    detail["changed"] = float((acting[0] * (acting[1] - candidate[1])).sum(1).mean())
    detail["entropy"] = float(-(candidate[0] * candidate[1]).sum(1).mean())
    _look_at(evidence.gain, checks, detail)
    return Verdict(checks, detail)
