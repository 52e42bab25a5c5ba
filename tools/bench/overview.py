"""`python -m tools.bench overview`: every committed figure beside what was aimed at, from the result files themselves.

Nothing is measured here. `--write` renews the table of the README.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HOUSE = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
TABLE = re.compile(r"(?<=<!-- OVERVIEW:BEGIN -->\n).*?(?=<!-- OVERVIEW:END -->)", re.DOTALL)


class Aim(NamedTuple):
    """One figure and its aims.

    Attributes:
        what: in words.
        path: keys into `summary` of the result file.
        match: the aim.
        beat: the higher one; None where there is but one.
        more: whether more is better.
        unit: behind the number.
        scale: what the number is multiplied with, for its unit.
    """

    what: str
    path: tuple[str, ...]
    match: float
    beat: float | None = None
    more: bool = False
    unit: str = ""
    scale: float = 1.0


AIMS: dict[str, tuple[str, tuple[Aim, ...]]] = {
    "rapidrl": (
        "Early exits (RAPID-RL)",
        (
            Aim("Atari: operations, of the network without exits", ("atari_ops_ratio",), 0.34),
            Aim("Atari: normalised return, mean of games", ("atari_return_ratio",), 0.88, 0.95, more=True),
            Aim("the same, worst game", ("atari_return_ratio_min",), 0.88, more=True),
            Aim("Atari: latency p50, hot", ("atari_latency_ratio",), 0.5),
            Aim("drone: operations", ("drone_ops_ratio",), 0.25),
            Aim("drone: mean safe flight", ("drone_return_ratio",), 0.91, 0.97, more=True),
            Aim("drone: latency p50, hot", ("drone_latency_ratio",), 0.4),
            Aim("deepest exit: latency", ("deepest_exit_latency_ratio",), 1.10, 1.03),
            Aim(
                "frontier over distilled small networks, where it is least",
                ("frontier_min_gain_over_distilled",),
                0.0,
                more=True,
            ),
        ),
    ),
    "rlink": (
        "Learning from a teacher (RLink)",
        (
            Aim("steps of learning alone by ours, median task", ("convergence_median_x",), 2, 10, more=True, unit="x"),
            Aim("the same, best task", ("convergence_best_x",), 10, 20, more=True, unit="x"),
            Aim("steps of the best distillation by ours", ("steps_vs_best_distillation_x",), 1.2, more=True, unit="x"),
            Aim("return with the worst teacher, of learning alone", ("harm_worst_ratio",), 0.95, more=True),
            Aim("decisions kept at a round trip of 500 ms", ("async_step_rate_at_500ms",), 0.95, more=True),
            Aim("steps at 64 kbit/s, 500 ms, 20 % loss, of a good link", ("bad_link_convergence_ratio",), 1.2),
            Aim("codec: zstd -3 a message, by ours", ("codec_vs_zstd3_min_x",), 3, more=True, unit="x"),
            Aim("codec: zstd -9 stream, by ours", ("codec_vs_zstd9_stream_min_x",), 3, more=True, unit="x"),
            Aim("codec: the same, frames sent once", ("codec_vs_dedup_stream_min_x",), 1.5, more=True, unit="x"),
            Aim("codec: time, of zstd -9, worst game", ("codec_time_vs_zstd9",), 1.0),
            Aim("codec: a frame, worst game", ("codec_encode_us_max",), 50, unit=" us"),
            Aim("bytes a taught transition on the wire", ("wire_bytes_per_transition",), 200, unit=" B"),
            Aim("gradient step of Nature-DQN, of eager PyTorch", ("train_time_vs_torch_nature",), 1.0),
            Aim("its peak memory", ("train_peak_memory_vs_torch_max",), 1 / 3),
        ),
    ),
    "govern": (
        "One budget",
        (
            Aim("return below the oracle's, worst trace", ("oracle_gap_max",), 10, 3, unit=" %", scale=100),
            Aim("decisions late beside a hog, real run", ("miss_rate_hog",), 1, 0.1, unit=" %", scale=100),
            Aim("energy at 0.95 of the return, of full depth", ("energy_ratio",), 0.7, 0.5),
            Aim("goals kept where they can be", ("goals_met_frac",), 95, 100, more=True, unit=" %", scale=100),
            Aim("switches an hour, steady", ("switches_per_hour",), 6, 2),
            Aim("looking at the sensors, of a core", ("probe_core_frac",), 0.5, 0.1, unit=" %", scale=100),
        ),
    ),
    "fleet": (
        "Fleet",
        (
            Aim("devices on one broker", ("devices",), 5000, more=True),
            Aim("reconnected and settled after the broker's death", ("storm_settled_s",), 60, unit=" s"),
            Aim("effects twice", ("duplicate_effects",), 0),
            Aim("acknowledged events lost, 10,000 power cuts", ("lost_acknowledged",), 0),
            Aim("bytes of an update, of its size, worst device", ("update_bytes_ratio",), 1.02),
            Aim("crashes by a million bent messages", ("fuzz_crashes",), 0),
            Aim("written in an idle day", ("idle_bytes_per_day",), 1000, unit=" kB", scale=1e-3),
        ),
    ),
    "srole": (
        "Placing training jobs (SROLE)",
        (
            Aim("job time, of agents without a shield", ("time_vs_marl",), 0.41, 0.35),
            Aim("job time, of central RL", ("time_vs_central",), 0.41, 0.35),
            Aim("the same without a shield, real daemons", ("real_time_vs_marl",), 0.47),
            Aim("collisions, of agents without a shield", ("collisions_vs_marl",), 0.52),
            Aim("overloads where a feasible placement exists", ("overloads_when_feasible",), 0),
            Aim("job time, of the best rule", ("time_vs_best_heuristic",), 1.0, 0.9),
            Aim("job time, of the optimum, small cases", ("time_vs_optimum",), 1.15, 1.05),
            Aim("regional shields, of one shield", ("d_vs_c_time",), 1.05, 1.03),
            Aim("messages of a regional shield, of one", ("d_vs_c_messages",), 0.2),
            Aim("a judgement at 25 nodes, median", ("shield_ms_25_nodes",), 1.0, unit=" ms"),
            Aim("error of the simulator", ("simulator_mape",), 15, unit=" %", scale=100),
        ),
    ),
    "offload": (
        "Where to infer (online orchestration)",
        (
            Aim("response time, of offload-only RL, best", ("response_vs_offload_rl_best",), 0.65),
            Aim("the same, service times of an idle core", ("idle_core", "response_vs_offload_rl_best"), 0.65),
            Aim("response time, of offload-only RL, worst", ("response_vs_offload_rl_worst",), 1.0),
            Aim("p99, of offload-only RL", ("p99_vs_offload_rl",), 1.0, 0.65),
            Aim("above the oracle, worst setting", ("oracle_gap_max",), 2, unit=" %", scale=100),
            Aim("below the floor after the warm-up", ("violations_after_warmup",), 0),
            Aim("requests to recover from a flip, worst setting", ("recovery_requests",), 500, 50),
            Aim("a decision for five users", ("decision_ms",), 1.0, unit=" ms"),
        ),
    ),
    "hybrid": (
        "Few real samples (Hybrid Learning)",
        (
            Aim("samples, of a joint table, best", ("samples_vs_tabular_best",), 1 / 166.6, 1 / 300),
            Aim("samples, of DQN, middle", ("samples_vs_dqn", "median"), 1 / 10, 1 / 20),
            Aim("samples, of DQN with as many updates, middle", ("samples_vs_matched_dqn", "median"), 1 / 2, 1 / 4.8),
            Aim("samples, of structured least squares, middle", ("samples_vs_structured", "median"), 1.2, 1.0),
            Aim("the same, worst", ("samples_vs_structured", "worst"), 1.2, 1.0),
            Aim("time, of DQN, middle", ("time_vs_dqn", "median"), 1 / 21),
        ),
    ),
}


class Found(NamedTuple):
    """One figure as it was measured.

    Attributes:
        benchmark: its name.
        aim: what was aimed at.
        value: measured, in the aim's unit.
        low: end of the 95 % interval; None where there is none.
        high: likewise.
        verdict: `beaten`, `met` or `missed`; by the value, not by the interval.
    """

    benchmark: str
    aim: Aim
    value: float
    low: float | None
    high: float | None
    verdict: str


def found() -> Iterator[Found]:
    """Every figure of every committed result.

    Raises:
        KeyError: a result file lacks a figure.
    """
    for benchmark, (_, aims) in AIMS.items():
        summary = json.loads((RESULTS / f"{benchmark}.json").read_text())["summary"]
        for aim in aims:
            value, interval = _read(summary, aim.path)
            # One run drawn again and again is always itself: that is no interval.
            spread = interval and interval[0] < interval[-1]
            low, high = (aim.scale * each for each in interval) if spread else (None, None)
            yield Found(benchmark, aim, aim.scale * value, low, high, _verdict(aim, aim.scale * value))


def _read(summary: dict[str, Any], path: Sequence[str]) -> tuple[float, list[float]]:
    """Benchmarks write an interval behind a value, beside it, or under a key of its own."""
    *folders, name = path
    for folder in folders:
        summary = summary[folder]
    value, interval = summary[name], summary.get(f"{name}_ci")
    if isinstance(value, dict):
        interval = value.get("ci") or [value[end] for end in ("low", "high") if end in value]
        value = value["value"]
    elif isinstance(value, list):
        # Behind the shield's median stand p99 and the longest, which are no interval.
        value, interval = value[0], value[1:] if name != "shield_ms_25_nodes" else None
    return float(value), list(interval or [])


def _verdict(aim: Aim, value: float) -> str:
    def reached(goal: float) -> bool:
        return value >= goal if aim.more else value <= goal

    if aim.beat is not None and reached(aim.beat):
        return "beaten"
    return "met" if reached(aim.match) else "missed"


def _number(value: float) -> str:
    if 0 < value < 0.01:
        return f"1/{1 / value:,.0f}"
    if abs(value) < 1:
        return f"{value:.2g}" if abs(value) < 0.995 else f"{value:.3g}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def table() -> str:
    """The figures as Markdown."""
    lines = ["| | figure | aimed at | measured, 95 % | |", "|---|---|---|---|---|"]
    last = ""
    for each in found():
        aim = each.aim
        title = AIMS[each.benchmark][0]
        sign = ">=" if aim.more else "<="
        goals = f"{sign} {_number(aim.match)}" + (f", better {_number(aim.beat)}" if aim.beat is not None else "")
        measured = f"{_number(each.value)}{aim.unit}"
        if each.low is not None and each.high is not None:
            measured += f" [{_number(each.low)}, {_number(each.high)}]"
        verdict = "**missed**" if each.verdict == "missed" else each.verdict
        lines.append(f"| {title if title != last else ''} | {aim.what} | {goals}{aim.unit} | {measured} | {verdict} |")
        last = title
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures, or renew them in the README.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.bench overview", description=__doc__.partition("\n")[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="as JSON")
    kind.add_argument("--write", action="store_true", help="into README.md")
    args = parser.parse_args(argv)
    if args.json:
        rows = [{"benchmark": each.benchmark, **each.aim._asdict(), **each._asdict()} for each in found()]
        print(json.dumps([{k: v for k, v in row.items() if k != "aim"} for row in rows], indent=2))
    elif args.write:
        page = HOUSE / "README.md"
        page.write_text(TABLE.sub(lambda _: table(), page.read_text()))
    else:
        print(table(), end="")
    return 0
