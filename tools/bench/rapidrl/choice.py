"""Does it matter which decisions leave early? Rankings on states that the exits lead to, and returns at one rate.

A confidence is worth something if the decisions it holds back are those that an early exit would spoil. Whether it is
can be read off states, with little noise: what the first exit gives away in each by the full network's values, and in
which order a score would hand them to the last exit. Returns then say whether those values mean anything: every score,
and chance, hands over the same share of decisions, and all of them play the same episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgert.nets import F32, forward
from edgert.policy.exits import confidence
from edgert.values import Operating
from tools.bench.rapidrl.evaluation import (
    CALIBRATION_SEED,
    GATES,
    SEEDS,
    TEST_SEED,
    Book,
    Evaluation,
    all_heads,
    digest,
)
from tools.bench.rapidrl.policies import Policy, Trial, by_chance

F64 = npt.NDArray[np.float64]

JUDGED = ("judged", "judged-agreement", "apart", "apart-agreement", "exits", "exits-agreement")
"""Roles whose confidences are compared; all but the last have the actions of `exits`."""
PLAYED = ("judged", "judged-agreement", "apart", "exits", "exits-agreement", "gap")
"""Whose returns are measured as well."""
SHARES = (0.1, 0.25)
"""Of the decisions, handed to the last exit."""
WATCHED_AT = (0.8, 0.2)
"""Exit shares, at random, of the episodes whose states are judged: about those of the settings that are compared."""
FIRST_EPISODE = SEEDS // 2
"""Of the test episodes that are played here, apart from those of the other policies."""


def auroc(score: F64, wrong: npt.NDArray[np.bool_]) -> float | None:
    """Probability that a wrong answer has the lower score than a right one; ties count half.

    Args:
        score: (n,) larger is surer.
        wrong: (n,).

    Returns:
        0..1, or None where all are right or all wrong.
    """
    n_wrong = int(wrong.sum())
    if not 0 < n_wrong < len(wrong):
        return None
    _, at, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[at]
    above = ranks[~wrong].sum() - (len(wrong) - n_wrong) * (len(wrong) - n_wrong + 1) / 2
    return float(above / (n_wrong * (len(wrong) - n_wrong)))


def left(score: F64, regret: F64) -> F64:
    """Mean regret over all decisions when the least sure i of n are handed over at no regret: (n + 1,), i = 0..n."""
    order = np.argsort(score, kind="stable")
    handed = np.concatenate(([0.0], np.cumsum(regret[order])))
    return np.asarray((regret.sum() - handed) / len(regret))


def avoided(score: F64, regret: F64) -> float | None:
    """What an order avoids over chance, as a share of what the best order would, over all rates alike.

    Returns:
        At most 1; 0 is chance. None where there is nothing to avoid.
    """
    chance, best = float(regret.mean()) / 2, float(left(-regret, regret).mean())
    return None if chance - best <= 1e-9 * chance else float((chance - left(score, regret).mean()) / (chance - best))


def ranking(score: F64, regret: F64, wrong: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """Everything that is said of one order."""
    found: dict[str, float | None] = {"auroc": auroc(score, wrong), "avoided": avoided(score, regret)}
    total = float(regret.mean())
    for share in SHARES:
        gone = 1 - float(left(score, regret)[round(share * len(score))]) / total if total else None
        found[f"avoided_at_{share:g}"] = gone
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def evaluate(played: Evaluation) -> None:
    """Rank the states of one task and training seed by every score, and play all scores at one rate."""
    full, exits = played.network("full"), played.network("exits")
    if full is None or exits is None:
        return
    task, protocol = played.task, played.protocol
    networks = {role: network for role in JUDGED if (network := played.network(role)) is not None}
    policies = {role: Policy(role=role) for role in networks}
    policies |= {gate: Policy(role="exits", gate=gate, scale=played.scale("exits")) for gate in (*GATES, "chance")}
    watched = (protocol.scout_episodes, protocol.observations, protocol.max_steps, WATCHED_AT)
    key = digest([full.sha, *(network.sha for network in networks.values())], watched)
    trial = Trial(
        task,
        Policy(role="exits", gate="chance", operating=by_chance(WATCHED_AT)),
        exits.spec,
        None,
        exits.tensors,
        played.seeds(CALIBRATION_SEED + SEEDS // 4, 4 * protocol.scout_episodes),
        protocol.max_steps,
        2 * protocol.observations,
    )

    def judge() -> dict[str, Any]:
        obs = played.observed(trial)
        deepest = full.spec.n_exits - 1
        parts = [forward(full.params, obs[at : at + 256], exits=(deepest,)) for at in range(0, len(obs), 256)]
        values = np.concatenate([part[deepest] for part in parts])[:, :-1]
        found: dict[str, Any] = {}
        for name, policy in policies.items():
            heads = all_heads(networks[policy.role], obs, policy)
            found[name] = _ranked(heads[0], values)
            score = heads[0][:, -1]
            found[name]["thresholds"] = [confidence(float(np.quantile(score, share))) for share in SHARES]
        return found

    found = played.note("choice", key, judge)
    for i, share in enumerate(SHARES if protocol.choice_episodes else ()):
        wanted = {}
        for name, policy in policies.items():
            if name in PLAYED:
                setting = Operating((found[name]["thresholds"][i],))
                wanted[f"choice {name}@{share:g}"] = Policy(
                    role=policy.role, gate=policy.gate, scale=policy.scale, operating=setting
                )
        first, n = TEST_SEED + FIRST_EPISODE, protocol.choice_episodes
        records = played.play(wanted, first, n)
        main = records[f"choice {next(iter(networks))}@{share:g}"]
        ticks = np.sum(main.exit_ticks, 0)
        chance = Policy(role="exits", gate="chance", operating=by_chance((ticks / ticks.sum()).tolist()))
        played.play({f"choice chance@{share:g}": chance}, first, n)


def _ranked(head: F32, values: F32) -> dict[str, Any]:
    chosen, rows = head[:, :-1].argmax(1), np.arange(len(head))
    regret = (values.max(1) - values[rows, chosen]).astype(np.float64)
    return dict(ranking(head[:, -1].astype(np.float64), regret, chosen != values.argmax(1)))


def document(books: Mapping[int, Book], rng: np.random.Generator, draws: int = 2000) -> dict[str, Any]:
    """What all training seeds of a task say: rankings, and returns over those of leaving by chance.

    Args:
        books: training seed -> what was played.
        rng: of the bootstrap, over training seeds and over episodes, which are the same for all policies.
        draws: of it.

    Returns:
        Nothing but empty dicts where nothing was played.
    """
    notes = {seed: book.notes["choice"].value for seed, book in books.items() if "choice" in book.notes}
    names = list(dict.fromkeys(name for note in notes.values() for name in note))
    orders: dict[str, dict[str, Any]] = {}
    for name in names:
        known = [note[name] for note in notes.values() if name in note]
        orders[name] = {"seeds": len(known)}
        for figure in ("auroc", "avoided", *(f"avoided_at_{share:g}" for share in SHARES)):
            values = [each[figure] for each in known if each[figure] is not None]
            orders[name][figure] = round(float(np.mean(values)), 3) if values else None
            orders[name][f"{figure}_by_seed"] = [each[figure] for each in known]
    gains: dict[str, dict[str, Any]] = {}
    for share in SHARES:
        for name in names:
            pairs = [found for book in books.values() if (found := _pair(book, name, share)) is not None]
            if name != "chance" and pairs:
                gains[f"{name}@{share:g}"] = _gain(pairs, rng, draws)
    return {"order": orders, "over_chance": gains}


def _pair(book: Book, name: str, share: float) -> tuple[F64, float, list[float]] | None:
    """Differences of normalised return by episode, its mean by chance, and the shares of the last exit."""
    records = book.records
    ours, chance = (records.get(f"choice {which}@{share:g}") for which in (name, "chance"))
    if ours is None or chance is None or not {"random", "full-int8"} <= records.keys():
        return None
    low, high = (float(np.mean(records[which].returns)) for which in ("random", "full-int8"))
    scale = high - low
    if scale <= 0 or len(ours.returns) != len(chance.returns):
        return None
    differences = (np.asarray(ours.returns) - np.asarray(chance.returns)) / scale
    shares = [float(ticks[-1] / ticks.sum()) for each in (ours, chance) for ticks in (np.sum(each.exit_ticks, 0),)]
    return differences, (float(np.mean(chance.returns)) - low) / scale, shares


def _gain(pairs: list[tuple[F64, float, list[float]]], rng: np.random.Generator, draws: int) -> dict[str, Any]:
    differences = [each[0] for each in pairs]
    means = [
        np.mean(
            [rng.choice(differences[i], len(differences[i])).mean() for i in rng.integers(len(pairs), size=len(pairs))]
        )
        for _ in range(draws)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return {
        "gain": round(float(np.mean([each.mean() for each in differences])), 4),
        "gain_ci": [round(float(low), 4), round(float(high), 4)],
        "chance": round(float(np.mean([each[1] for each in pairs])), 4),
        "last_exit_share": [round(float(np.mean([each[2][k] for each in pairs])), 4) for k in range(2)],
        "seeds": len(pairs),
        "episodes": sum(len(each) for each in differences),
        "by_seed": [round(float(each.mean()), 4) for each in differences],
    }
