"""Play everything that is compared, for one task and training seed, and keep what came of it.

Thresholds are proposed from observations, chosen on validation episodes, and judged on test episodes, each kind with
seeds of its own. The learnt confidence and the other gates are treated alike: as many proposals, as many validation
episodes. Whatever was played is kept in a file under a key made of the network's bytes and of how it was played, so a
benchmark that was interrupted, or whose network was trained anew, plays what is missing and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgert import quant
from edgert.errors import UsageError
from edgert.nets import F32, U8, NetSpec, Params
from edgert.policy.exits import confidence, taken
from edgert.policy.frontier import candidates, full_ops
from edgert.quant import Tensors
from edgert.values import Operating
from tools.bench.rapidrl import latency
from tools.bench.rapidrl.plan import TASKS, folder
from tools.bench.rapidrl.policies import Gate, Policy, Trial, by_chance, costs, judged
from tools.frontier import Played
from tools.train import kept

CALIBRATION_SEED, VALIDATION_SEED, TEST_SEED, SEEDS = 110_000_000, 120_000_000, 130_000_000, 100_000
"""Of the first episode of each kind, and how many a training seed may use: apart from training's and the export's."""
SCOUTED = (0.25, 0.34, 0.5)
PROPOSED_AT = (0.95, 0.8)
"""Settings are proposed for costs this much below each limit: in their own episodes they cost other than foreseen."""
WITHIN = 0.97
"""A setting is chosen for a limit if its validation episodes cost at most this share of it."""
CALIBRATION_BINS = 10
GATES: tuple[Gate, ...] = ("gap", "entropy")


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """How much is played, by training seed.

    Attributes:
        episodes: tests of each policy.
        reference_times: the references divide everything, so they are played this many times as long.
        validation_episodes: of each proposed setting.
        scout_episodes: of each of the settings whose observations the others are proposed from.
        watched_episodes: of each float network, to quantize it.
        observations: kept of those.
        max_steps: an episode is cut here.
        limits: share of the network without exits that a setting may cost; one is chosen for each.
        gate_limits: the same for the other gates, and for the ablations.
        latency_samples: hot pairs of calls.
        paced_samples: pairs of calls at the control rate.
        choice_episodes: of each confidence, where those are compared; with 0 they are only ranked.
    """

    episodes: int = 30
    reference_times: int = 2
    validation_episodes: int = 16
    scout_episodes: int = 4
    watched_episodes: int = 8
    observations: int = 2048
    max_steps: int = 10_000
    limits: tuple[float, ...] = (0.2, 0.25, 0.34, 0.45, 0.55, 0.65, 0.8, 1.0)
    gate_limits: tuple[float, ...] = (0.25, 0.34, 0.5, 0.7)
    latency_samples: int = 2000
    paced_samples: int = 150
    choice_episodes: int = 500


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one policy.

    Attributes:
        key: of the network and how it was played.
        network: of its parameters; empty for random actions.
        policy: see `Policy`.
        costs: operations of an answer at each exit.
        returns: by episode.
        exit_ticks: ticks that each exit answered, by episode.
        held_ticks: ticks without inference, by episode.
    """

    key: str
    network: str = ""
    policy: Policy
    costs: list[int]
    returns: list[float]
    exit_ticks: list[list[int]]
    held_ticks: list[int]


class Note(msgspec.Struct, frozen=True):
    """Anything else that was worked out, and what from."""

    key: str
    value: Any


class Book(msgspec.Struct):
    """The file of one task and training seed.

    Attributes:
        records: name -> what came of a policy.
        notes: name -> anything else.
    """

    records: dict[str, Record] = {}
    notes: dict[str, Note] = {}


class Network(NamedTuple):
    """A trained network in both precisions.

    Attributes:
        spec: what it looks like.
        params: float32.
        tensors: int8.
        sha: of the parameters.
    """

    spec: NetSpec
    params: Params
    tensors: Tensors
    sha: str


Run = Callable[[Iterable[Trial]], Iterator[Played]]


def digest(*parts: Any) -> str:
    """A key: equal for equal parts."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]


def book_path(runs: Path, task: str, seed: int) -> Path:
    """Where a task's and seed's figures are kept."""
    return runs / task / f"eval-s{seed}.json"


def read_book(path: Path) -> Book:
    """The file, or an empty book where there is none.

    Raises:
        UsageError: it is not one of ours.
    """
    if not path.exists():
        return Book()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Book)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {error}; remove it to evaluate anew") from error


class Evaluation:
    """One task and training seed.

    Attributes:
        networks: role -> network, of the runs that are finished.
        book: what is known.
    """

    def __init__(self, runs: Path, task: str, seed: int, protocol: Protocol, run: Run) -> None:
        """Read what is there, and quantize the networks.

        Args:
            runs: folder of all runs.
            task: its name.
            seed: of training.
            protocol: how much is played.
            run: plays trials, and gives what came of each in their order.
        """
        self.name, self.seed, self.task, self.protocol, self._run = task, seed, TASKS[task], protocol, run
        self._runs, self._path = runs, book_path(runs, task, seed)
        self.book = read_book(self._path)
        self.networks: dict[str, Network] = {}

    def _save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self.book), indent=0))
        part.replace(self._path)

    def network(self, role: str) -> Network | None:
        """A role's network, quantized on what it meets itself; None where the run is not finished."""
        if role in self.networks:
            return self.networks[role]
        run = folder(self._runs, self.name, role, self.seed)
        try:
            params, _ = kept(run)
        except UsageError:
            return None
        sha = hashlib.sha256(params.flat.tobytes()).hexdigest()
        for name, record in list(self.book.records.items()):
            if record.policy.role == role and record.network != sha:
                del self.book.records[name]  # of a network that was trained anew since
        protocol = self.protocol
        key = digest(sha, self.task.env, protocol.watched_episodes, protocol.observations, protocol.max_steps)
        cached = self._path.with_name(f"int8-{role}-s{self.seed}.npz")
        if cached.exists():
            with np.load(cached) as held:
                tensors = {name: held[name] for name in held.files}
            if tensors.pop("key").item() == key:
                self.networks[role] = Network(params.spec, params, tensors, sha)
                return self.networks[role]
        last = params.spec.n_exits - 1
        float_policy = Policy(role=role, precision="fp32", only=last)
        seeds = self.seeds(CALIBRATION_SEED, protocol.watched_episodes)
        trial = Trial(
            self.task, float_policy, params.spec, params.flat, None, seeds, protocol.max_steps, protocol.observations
        )
        met = next(self._run([trial])).met
        chosen = met[np.random.default_rng(self.seed).permutation(len(met))[: protocol.observations]]
        tensors = dict(quant.fit(params, chosen).tensors)
        np.savez(cached, key=np.array(key), **tensors)
        np.savez_compressed(self._path.with_name(f"met-{role}-s{self.seed}.npz"), obs=chosen)
        self.networks[role] = Network(params.spec, params, tensors, sha)
        return self.networks[role]

    def _met(self, role: str) -> U8:
        with np.load(self._path.with_name(f"met-{role}-s{self.seed}.npz")) as held:
            return np.asarray(held["obs"])

    def observed(self, trial: Trial) -> U8:
        """What a trial that keeps observations met, in random order."""
        met = next(self._run([trial])).met
        return np.asarray(met[np.random.default_rng(self.seed).permutation(len(met))])

    def seeds(self, first: int, n: int) -> range:
        """Of episodes of this training seed."""
        return range(first + self.seed * SEEDS, first + self.seed * SEEDS + n)

    def note(self, name: str, key: str, work: Callable[[], Any]) -> Any:
        """Something that is worked out once."""
        held = self.book.notes.get(name)
        if held is None or held.key != key:
            held = self.book.notes[name] = Note(key, msgspec.to_builtins(work()))
            self._save()
        return held.value

    def play(self, wanted: Mapping[str, Policy], first_seed: int, episodes: int) -> dict[str, Record]:
        """What comes of policies, by name; only what is not known yet is played."""
        seeds = self.seeds(first_seed, episodes)
        # Two names of one policy, such as two limits with the same best setting, are played once.
        known = {record.key: record for record in self.book.records.values()}
        keys: dict[str, str] = {}
        trials: dict[str, Trial] = {}
        for name, policy in wanted.items():
            network = self.network(policy.role or "full")
            if network is None:
                continue
            sha = network.sha if policy.role else ""
            # The precision that is not used does not belong to the trial, and is not sent to another process.
            flat = network.params.flat if policy.precision == "fp32" else None
            tensors = network.tensors if policy.precision == "int8" else None
            ranges = "" if flat is not None or not policy.role else _digest_of(network.tensors)
            env = self.task.arena
            key = digest(sha, ranges, policy, env, seeds.start, episodes, self.protocol.max_steps)
            keys[name] = key
            if key not in known:
                trials.setdefault(
                    key, Trial(self.task, policy, network.spec, flat, tensors, seeds, self.protocol.max_steps)
                )
        for (key, trial), played in zip(trials.items(), self._run(trials.values()), strict=True):
            known[key] = Record(
                key=key,
                network=self.networks[trial.policy.role].sha if trial.policy.role else "",
                policy=trial.policy,
                costs=costs(trial.policy, trial.spec) if trial.policy.role else [0],
                returns=played.returns.tolist(),
                exit_ticks=played.exit_ticks.tolist(),
                held_ticks=played.held_ticks.tolist(),
            )
            names = [name for name in wanted if keys.get(name) == key]
            self.book.records.update(dict.fromkeys(names, known[key]))
            print(f"{self.name} seed {self.seed}: {', '.join(names)}: {played.returns.mean():.3f}", flush=True)
            self._save()
        self.book.records.update({name: known[key] for name, key in keys.items()})
        self._save()
        return {name: self.book.records[name] for name in wanted if name in self.book.records}

    def test(self, wanted: Mapping[str, Policy], times: int = 1) -> dict[str, Record]:
        """Play on the test episodes."""
        return self.play(wanted, TEST_SEED, times * self.protocol.episodes)

    # choosing --------------------------------------------------------------------------------------------------------

    def scale(self, role: str) -> float:
        """Typical spread of a network's Q-values."""
        network = self.network(role)
        assert network is not None
        last = network.spec.n_exits - 1
        q = quant.IntNet(network.spec, network.tensors).heads(self._met(role)[:512])[last][:, :-1]
        return max(float((q.max(1) - q.min(1)).mean()), 1e-6)

    def whole(self) -> int:
        """Operations of the network without exits: that of `full`, whatever exits the others have."""
        full = self.network("full")
        assert full is not None
        return full_ops(full.spec)

    def tune(self, role: str, gate: Gate, limits: Sequence[float]) -> dict[str, Policy]:
        """Find the best setting within each limit, on validation episodes.

        Returns:
            Name of each limit -> policy; nothing when the network is missing.
        """
        network = self.network(role)
        if network is None or network.spec.n_exits == 1:
            return {}
        protocol = self.protocol
        played = (protocol.validation_episodes, protocol.scout_episodes, protocol.observations, protocol.max_steps)
        key = digest(network.sha, _digest_of(network.tensors), gate, limits, played, self.task.arena)

        def work() -> dict[str, Policy]:
            base = Policy(role=role, gate=gate, scale=1.0 if gate == "confidence" else self.scale(role))

            def proposals(obs: U8, wanted: Sequence[float]) -> list[Policy]:
                heads = all_heads(network, obs, base)
                return [
                    msgspec.structs.replace(base, operating=setting)
                    for setting in propose(heads, costs(base, network.spec), self.whole(), wanted)
                ]

            watched = self._met(role)
            scouts = [
                Trial(
                    self.task,
                    policy,
                    network.spec,
                    None,
                    network.tensors,
                    self.seeds(CALIBRATION_SEED + SEEDS // 2, protocol.scout_episodes),
                    protocol.max_steps,
                    protocol.observations,
                )
                for policy in proposals(watched, SCOUTED)
            ]
            met = np.concatenate([played.met for played in self._run(scouts)] or [watched])
            some = met[np.random.default_rng(self.seed).permutation(len(met))[: 2 * protocol.observations]]
            found = proposals(some, sorted({at * limit for limit in limits for at in PROPOSED_AT}))
            named = {f"validation {role} {gate} {i}": policy for i, policy in enumerate(found)}
            for name in [old for old in self.book.records if old.startswith(f"validation {role} {gate} ")]:
                if name not in named:
                    del self.book.records[name]
            judged_on = list(self.play(named, VALIDATION_SEED, protocol.validation_episodes).values())
            return choose(judged_on, self.whole(), limits)

        chosen = self.note(f"chosen {role} {gate}", key, work)
        return {name: msgspec.convert(policy, Policy) for name, policy in chosen.items()}

    # the whole -------------------------------------------------------------------------------------------------------

    @property
    def exits_role(self) -> str:
        """Whose exits are judged: those with confidences taught apart, where they are trained."""
        return "exits" if self.network("judged") is None else "judged"

    def main(self) -> None:
        """References, our frontier, distilled nets, fixed and random exits, the net trained alone, latency."""
        full = self.network("full")
        if full is None:
            return
        last = full.spec.n_exits - 1
        times = self.protocol.reference_times
        self.test({"random": Policy(role=""), "full-int8": Policy(role="full", only=last)}, times)
        ours = self.tune(self.exits_role, "confidence", self.protocol.limits)
        self.test({f"ours@{limit}": policy for limit, policy in ours.items()})
        chosen = self.test(self.chosen()).get("chosen")
        self.test({role: Policy(role=role, only=0) for role in ("small34", "small20", "small55")})
        exits = self.network(self.exits_role)
        if exits is not None and chosen is not None:
            fixed = {f"always-exit-{k}": Policy(role=self.exits_role, only=k) for k in range(exits.spec.n_exits)}
            ticks = np.sum(chosen.exit_ticks, 0)
            shares = (ticks / ticks.sum()).tolist()
            chance = Policy(role=self.exits_role, gate="chance", operating=by_chance(shares))
            self.test({**fixed, "random-exit": chance})
            self._measure(full, exits, chosen.policy)
        self.test({"full-fp32": Policy(role="full", precision="fp32", only=last)})
        self.test({"alone34": Policy(role="alone34", only=0)})

    def chosen(self) -> dict[str, Policy]:
        """The one setting that the headline is about."""
        ours = self.tune(self.exits_role, "confidence", self.protocol.limits)
        policy = ours.get(f"{self.task.max_ops_frac:g}")
        return {} if policy is None else {"chosen": policy}

    def rest(self) -> None:
        """The other gates, repetition of sure decisions, and the ablations."""
        if self.network("exits") is None or self.network("full") is None:
            return
        limits = self.protocol.gate_limits
        for gate in GATES:
            tuned = self.tune(self.exits_role, gate, limits)
            self.test({f"{gate}@{limit}": policy for limit, policy in tuned.items()})
        for chosen in self.chosen().values():
            self.test(self._holds(chosen))
        for role in ("exits-agreement", "joint"):
            if self.task.ablated and (network := self.network(role)) is not None:
                whole = {f"{role}-full": Policy(role=role, only=network.spec.n_exits - 1)}
                tuned = self.tune(role, "confidence", limits)
                self.test({**whole, **{f"{role}@{limit}": policy for limit, policy in tuned.items()}})

    def _holds(self, chosen: Policy) -> dict[str, Policy]:
        """The chosen setting with sure decisions repeated: the surer half of the early ones, and all of them."""
        network = self.network(chosen.role)
        assert network is not None
        heads = all_heads(network, self._met(chosen.role), chosen)
        exit_of = taken(heads, chosen.operating.thresholds)
        early = [float(heads[k][i, -1]) for i, k in enumerate(exit_of) if k < len(heads) - 1]
        median = confidence(float(np.median(early))) if early else 1.0
        settings = {"hold2-half": (2, median), "hold2-all": (2, 0.0), "hold4-half": (4, median)}
        return {
            name: msgspec.structs.replace(
                chosen, operating=msgspec.structs.replace(chosen.operating, repeat=repeat, hold_threshold=bar)
            )
            for name, (repeat, bar) in settings.items()
        }

    def _measure(self, full: Network, exits: Network, chosen: Policy) -> None:
        """Latency of the chosen setting, and how well confidences are calibrated where it leads."""
        protocol = self.protocol
        key = digest(
            exits.sha, full.sha, chosen, protocol.latency_samples, protocol.paced_samples, protocol.observations
        )

        if all((held := self.book.notes.get(name)) and held.key == key for name in ("latency", "confidence")):
            return
        seeds = self.seeds(CALIBRATION_SEED + 3 * SEEDS // 4, protocol.watched_episodes)
        obs = self.observed(
            Trial(self.task, chosen, exits.spec, None, exits.tensors, seeds, protocol.max_steps, protocol.observations)
        )
        self.note("confidence", key, lambda: calibration(all_heads(exits, obs, chosen), chosen.operating.thresholds))
        thresholds = chosen.operating.thresholds
        self.note(
            "latency",
            key,
            lambda: latency.measure(
                exits.spec,
                exits.tensors,
                full.spec,
                full.tensors,
                thresholds,
                obs,
                samples=protocol.latency_samples,
                paced_samples=protocol.paced_samples,
                rate_hz=self.task.rate_hz,
            ),
        )


def _digest_of(tensors: Tensors) -> str:
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(tensors[name].tobytes())
    return hashed.hexdigest()[:24]


def all_heads(network: Network, obs: U8, policy: Policy) -> dict[int, F32]:
    """What every exit of the int8 network says, with the policy's gate in the place of the confidence."""
    net, rng = quant.IntNet(network.spec, network.tensors), np.random.default_rng(0)
    parts = [net.heads(obs[at : at + 256]) for at in range(0, len(obs), 256)]
    return {
        k: judged(np.concatenate([part[k] for part in parts]), policy.gate, policy.scale, rng)
        for k in range(network.spec.n_exits)
    }


def propose(heads: Mapping[int, F32], cost: Sequence[int], whole: int, limits: Sequence[float]) -> list[Operating]:
    """For each limit the dearest setting within it, of those that give away the least for what they cost.

    Args:
        heads: exit -> (n, n_actions + 1), every exit.
        cost: operations of an answer at each exit.
        whole: operations of the network without exits.
        limits: shares of it.

    Returns:
        Settings, each once, from cheap to dear; the first exit alone and the full network among them.
    """
    settings = candidates(heads, cost, 64, ())
    priced = sorted(
        (float(np.asarray(cost, float)[taken(heads, setting.thresholds)].mean()) / whole, setting.thresholds)
        for setting in settings
    )
    found = [priced[0][1]]
    found += [max(each for each in priced if each[0] <= limit)[1] for limit in limits if limit >= priced[0][0]]
    return [Operating(thresholds) for thresholds in dict.fromkeys([*found, priced[-1][1]])]


def ops_frac(record: Record, whole: int) -> float:
    """Mean operations of a tick as a share of the network without exits."""
    ticks = np.asarray(record.exit_ticks)
    return float((ticks @ np.asarray(record.costs)).sum() / (ticks.sum() + sum(record.held_ticks)) / whole)


def choose(validated: Sequence[Record], whole: int, limits: Sequence[float]) -> dict[str, Policy]:
    """The best setting within each limit, by validation; the cheapest of all where none is within.

    Of those that are within one standard error of the best the dearest is taken: more computing gives away less, and
    differences as small as that are chance.

    Returns:
        The limit as text -> policy; `full` -> all exits but the last forbidden.
    """
    priced = sorted(((ops_frac(record, whole), record) for record in validated), key=lambda each: each[0])
    found = {}
    for limit in limits:
        within = [record for cost, record in priced if cost <= WITHIN * limit] or [priced[0][1]]
        best = max(within, key=lambda record: np.mean(record.returns))
        error = float(np.std(best.returns, ddof=1)) / len(best.returns) ** 0.5 if len(best.returns) > 1 else 0.0
        good = [record for record in within if np.mean(record.returns) >= np.mean(best.returns) - error]
        found[f"{limit:g}"] = good[-1].policy
    found["full"] = priced[-1][1].policy
    return found


def calibration(heads: Mapping[int, F32], thresholds: Sequence[float]) -> list[dict[str, float]]:
    """Of each exit but the last, over the observations that reach it: do its confidences mean agreement?

    Returns:
        An exit each: share that reaches it, agreement with the last exit, mean confidence, and expected calibration
        error (Naeini et al. 2015) over bins of equal width.
    """
    last = len(heads) - 1
    exit_of, best = taken(heads, thresholds), heads[last][:, :-1].argmax(1)
    found = []
    for k in range(last):
        here = exit_of >= k
        if not here.any():
            continue
        said = np.array([confidence(float(logit)) for logit in heads[k][here, -1]])
        agrees = (heads[k][here, :-1].argmax(1) == best[here]).astype(float)
        bins = np.minimum((said * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        error = sum(abs((said - agrees)[bins == b].sum()) for b in range(CALIBRATION_BINS)) / len(said)
        found.append(
            {
                "exit": k,
                "reached": round(float(here.mean()), 4),
                "agreement": round(float(agrees.mean()), 4),
                "confidence": round(float(said.mean()), 4),
                "ece": round(float(error), 4),
            }
        )
    return found
