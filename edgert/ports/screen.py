"""What a person sees of running devices: their status documents over time, as a live table or as plain lines.

Only this file knows rich; without it, or in a pipe, everything is plain text, in the same words and figures.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TextIO

import msgspec

RATE_WINDOW_S = 5.0
MEAN_EPISODES = 10
PROCESSES = ("supervisor", "actor", "trainer")
CURVE = 20
"""Bars of a sparkline."""
_RAMP = "▁▂▃▄▅▆▇█"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One status document, flattened; None is unknown.

    Attributes:
        t_s: when the document was written, seconds since the Unix epoch, by the device's clock.
        reported_s: when the actor made the report in it, on the same clock.
        returns: of episodes that no earlier sample told of.
        cpu_s, rss_bytes: process -> CPU seconds since its start, resident bytes.
        ask_bytes, answer_bytes: to and from teachers, since the supervisor started.
        max_exit, train_steps_hz, teacher_bytes_per_s: the budget.
        faults: named fault -> count, all processes together.
        trust: weight of the teacher, 0..1.
        rolled_back: networks that were taken back since the supervisor started.
        idle_because: why nothing is learned now; empty while something may be.
    """

    t_s: float
    reported_s: float
    acting: bool = False
    ticks: int | None = None
    missed: int | None = None
    safe: int | None = None
    exits: list[int] = []
    generation: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None
    first_action_s: float | None = None
    returns: list[float] = []
    cpu_s: dict[str, float] = {}
    rss_bytes: dict[str, int] = {}
    steps: int | None = None
    loss: float | None = None
    transitions: int | None = None
    asked: int | None = None
    answered: int | None = None
    joined: int | None = None
    candidates: int | None = None
    accepted: int | None = None
    ask_bytes: int = 0
    answer_bytes: int = 0
    swaps: int = 0
    max_exit: int | None = None
    train_steps_hz: float | None = None
    teacher_bytes_per_s: float | None = None
    link_up: bool = False
    rtt_s: float | None = None
    load_frac: float | None = None
    temp_c: float | None = None
    battery_frac: float | None = None
    power_w: float | None = None
    faults: dict[str, int] = {}
    trust: float | None = None
    rolled_back: int = 0
    idle_because: str = ""


def grown(column: Sequence[float | None]) -> float:
    """How much a counter grew from the first to the last value, when it may have started again from zero in between."""
    known = [value for value in column if value is not None]
    return sum(after - before if after >= before else after for before, after in pairwise(known))


class History:
    """What is known of one device: its last status document and a sample of each one before."""

    def __init__(self, keep: int | None = None) -> None:
        """Start with nothing.

        Args:
            keep: samples and returns to remember at most; None keeps all.
        """
        self.status: dict[str, Any] = {}
        self.samples: deque[Sample] = deque(maxlen=keep)
        self.returns: deque[tuple[float, float]] = deque(maxlen=keep)
        self._told: tuple[object, int] = (None, 0)

    def add(self, status: Mapping[str, Any], at_s: float) -> Sample:
        """Take in a status document.

        Args:
            status: of `status.document`, with the supervisor's own cost.
            at_s: when it was written, seconds since the Unix epoch.
        """
        self.status = dict(status)
        actor, trainer = status.get("actor") or {}, status.get("trainer") or {}
        # Documents repeat a report, or miss one: the count of episodes says which returns are new.
        pid, episodes, returns = actor.get("pid"), actor.get("episodes", 0), actor.get("returns", [])
        unseen = episodes - (self._told[1] if pid == self._told[0] else 0)
        new = returns[-unseen:] if unseen > 0 else []
        self._told = (pid, episodes)
        sample = _sample(status, actor, trainer, at_s, new)
        self.samples.append(sample)
        self.returns.extend((sample.reported_s, value) for value in new)
        return sample

    def rate(self, name: str) -> float | None:
        """How fast a counter of the samples grew lately, per second; None before two samples."""
        if not self.samples:
            return None
        recent = [s for s in self.samples if s.t_s >= self.samples[-1].t_s - RATE_WINDOW_S]
        clock = "reported_s" if name == "ticks" else "t_s"
        elapsed_s = getattr(recent[-1], clock) - getattr(recent[0], clock)
        return grown([getattr(s, name) for s in recent]) / elapsed_s if elapsed_s > 0 else None

    def cpu_frac(self, process: str) -> float | None:
        """The share of one core a process took lately; None while unknown."""
        recent = [s for s in self.samples if process in s.cpu_s and s.t_s >= self.samples[-1].t_s - RATE_WINDOW_S]
        if len(recent) < 2 or recent[-1].t_s <= recent[0].t_s:
            return None
        return grown([s.cpu_s[process] for s in recent]) / (recent[-1].t_s - recent[0].t_s)


def _sample(
    status: Mapping[str, Any], actor: dict[str, Any], trainer: dict[str, Any], t_s: float, returns: list[float]
) -> Sample:
    own, counters = status.get("supervisor") or {}, status.get("counters") or {}
    parts = {"supervisor": own, "actor": actor, "trainer": trainer}
    faults: dict[str, int] = {}
    for source in (actor.get("faults"), trainer.get("faults"), own.get("link_faults")):
        for fault, count in (source or {}).items():
            faults[fault] = faults.get(fault, 0) + count
    training = status.get("training") or {}
    budget, board, link = status.get("budget") or {}, status.get("board") or {}, status.get("link") or {}
    # A report of zeros before the first decision is no latency.
    decided = bool(sum(actor.get("exits", [])))
    return Sample(
        t_s=t_s,
        reported_s=t_s - (status.get("actor_age_s") or 0.0),
        acting=bool(actor.get("acting")),
        returns=list(returns),
        exits=list(actor.get("exits", [])),
        generation=actor.get("generation", 0),
        p50_s=actor["latency_p50_s"] if decided else None,
        p99_s=actor["latency_p99_s"] if decided else None,
        max_s=actor["latency_max_s"] if decided else None,
        **{name: actor.get(name) for name in ("ticks", "missed", "safe", "first_action_s")},
        **{
            name: trainer.get(name)
            for name in ("steps", "loss", "transitions", "asked", "answered", "joined", "candidates", "accepted")
        },
        cpu_s={name: part["cpu_s"] for name, part in parts.items() if "cpu_s" in part},
        rss_bytes={name: part["rss_bytes"] for name, part in parts.items() if "rss_bytes" in part},
        ask_bytes=counters.get("ask-bytes", 0),
        answer_bytes=counters.get("answer-bytes", 0),
        swaps=counters.get("swaps", 0),
        **{name: budget.get(name) for name in ("max_exit", "train_steps_hz", "teacher_bytes_per_s")},
        link_up=bool(link.get("up")),
        rtt_s=link.get("rtt_s"),
        **{name: board.get(name) for name in ("load_frac", "temp_c", "battery_frac", "power_w")},
        faults=faults,
        trust=trainer.get("trust"),
        rolled_back=counters.get("networks-rolled-back", 0),
        idle_because=training.get("idle_because", ""),
    )


def number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """A figure for people; `-` when unknown."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share for people; `-` when unknown."""
    return number(None if value is None else 100 * value, " %", digits)


def amount(value: float | None) -> str:
    """Bytes for people; `-` when unknown."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def per_minute(points: Sequence[tuple[float, float]]) -> list[float]:
    """The mean of each minute in which there was anything.

    Args:
        points: (second, value) pairs in order.
    """
    return [mean for _, (*_, mean) in binned(points, 60.0)]


def binned(points: Sequence[tuple[float, float]], width_s: float) -> list[tuple[float, tuple[float, float, float]]]:
    """Figures over time, a bin each: what a learning curve is drawn of.

    Args:
        points: (second, value) pairs in order.
        width_s: of a bin; bins begin at multiples of it.

    Returns:
        (middle of the bin in seconds, (lower quartile, upper quartile, mean)), for each bin that is not empty.
    """
    bins: dict[int, list[float]] = {}
    for t_s, value in points:
        bins.setdefault(int(t_s // width_s), []).append(value)
    drawn = []
    for k, values in sorted(bins.items()):
        ranked = sorted(values)
        low, high = (ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in (0.25, 0.75))
        drawn.append(((k + 0.5) * width_s, (low, high, sum(values) / len(values))))
    return drawn


def spark(values: Sequence[float], width: int = CURVE) -> str:
    """The last values as a row of little bars."""
    shown = list(values)[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    span = (high - low) or 1.0
    return "".join(_RAMP[round((value - low) / span * (len(_RAMP) - 1))] for value in shown)


def bar(shares: Sequence[float], width: int = 18) -> str:
    """Shares as one bar in as many shades as there are shares."""
    shades = "░▒▓█"
    ends = [round(sum(shares[: k + 1]) * width) for k in range(len(shares))]
    return "".join(shades[min(k, 3)] * (end - start) for k, (start, end) in enumerate(pairwise([0, *ends])))


def cells(history: History, fancy: bool = False) -> list[tuple[str, str]]:
    """Everything there is to say about one device now: (what, figures) rows, in one fixed order.

    Args:
        history: with one document at least.
        fancy: draw little bars too; needs a terminal that shows block characters.
    """
    status, last = history.status, history.samples[-1]
    link, policy = status.get("link") or {}, status.get("policy") or {}
    recent = [value for _, value in history.returns][-MEAN_EPISODES:]
    mean = number(sum(recent) / len(recent)) if recent else "-"
    drawn = f"  {spark([value for _, value in history.returns])}" if fancy and len(history.returns) > 1 else ""
    total = sum(last.exits)
    shares = [count / total for count in last.exits] if total else []
    exits = " / ".join(percent(share) for share in shares) or "-"
    share = None if not last.ticks or last.missed is None else last.missed / last.ticks
    swap = policy.get("last_swap") or {}
    swapped = "none yet"
    if swap:
        swapped = f"{last.swaps} (last: {swap['missed']} ticks missed)" if swap.get("ok") else f"refused: {swap['why']}"
    why = (status.get("budget") or {}).get("why") or {}
    reasons = ", ".join(sorted({reason for reason in why.values() if reason != "ok"})) or "nothing scarce"
    cpu = ", ".join(f"{name} {percent(history.cpu_frac(name))}" for name in PROCESSES if name in last.cpu_s)
    up_bytes, down_bytes = (
        grown([0, *(getattr(s, n) for s in history.samples)]) for n in ("ask_bytes", "answer_bytes")
    )
    state = "up" if link.get("up") else f"DOWN: {link.get('reason') or 'not connected'}"
    battery = f"{percent(last.battery_frac)} battery, " if last.battery_frac is not None else ""
    restarts = {role: child["restarts"] for role, child in (status.get("children") or {}).items() if child["restarts"]}
    rows = [
        ("return", f"{mean} over {len(recent)} episodes{drawn}"),
        (
            "decisions",
            f"{number(history.rate('ticks'))}/s, {last.missed or 0} missed ({percent(share, 2)})"
            + ("" if last.acting else ", SAFE ACTION ONLY"),
        ),
        ("exits", f"{exits}  {bar(shares)}" if fancy and shares else exits),
        ("latency", f"p50 {_ms(last.p50_s)}, p99 {_ms(last.p99_s)}"),
        ("CPU", cpu or "-"),
        ("board", f"{battery}{number(last.temp_c, ' °C')}, load {percent(last.load_frac)}"),
        (
            "budget",
            f"{_point(status)}exit ≤ {'-' if last.max_exit is None else last.max_exit}, "
            f"train {number(last.train_steps_hz)}/s, ask {amount(last.teacher_bytes_per_s)}/s",
        ),
        ("because", reasons),
        ("goals", _goals(status)),
        ("expected", _expected(status)),
        ("link", f"{state}, rtt {_ms(last.rtt_s)}, {link.get('events_waiting', 0)} events wait"),
        ("teacher", f"{last.answered or 0} of {last.asked or 0} answered, {last.joined or 0} joined"),
        ("bytes", f"{amount(up_bytes)} up, {amount(down_bytes)} down"),
        ("training", f"{last.steps or 0} steps, {number(history.rate('steps'))}/s, loss {number(last.loss, digits=4)}"),
        ("learning", _learning(history, fancy)),
        ("networks", f"{last.accepted or 0} of {last.candidates or 0} passed, generation {last.generation} acts"),
        ("swaps", swapped),
    ]
    if update := (status.get("trust") or {}).get("update"):
        rows.append(("update", _update(update)))
    if last.rolled_back:
        rows.append(("rolled back", f"{last.rolled_back}; generations {_refused(policy)} never act again"))
    if restarts:
        rows.append(("restarts", ", ".join(f"{role} {count}" for role, count in restarts.items())))
    if last.faults:
        rows.append(("faults", ", ".join(f"{fault} {count}" for fault, count in sorted(last.faults.items()))))
    return rows


def _point(status: Mapping[str, Any]) -> str:
    point = (status.get("budget") or {}).get("point")
    return "" if point is None else f"point {point}, "


def _goals(status: Mapping[str, Any]) -> str:
    """Every stated goal, whether it is met, and why not."""
    found = []
    for name, each in ((status.get("goals") or {}).get("verdicts") or {}).items():
        mark = {True: "met", False: "NOT MET", None: "unsure"}[each["met"]]
        because = f", {each['why']}" if each["why"] else ""
        found.append(f"{name} {each['wanted']}: {mark} ({each['found']}{because})")
    order = (status.get("goals") or {}).get("order")
    return ("" if order is None else f"by command {order}: ") + ("; ".join(found) or "-")


def _expected(status: Mapping[str, Any]) -> str:
    """What the governor believes, with its doubt."""
    estimates = status.get("estimates") or {}
    shown = []
    for name, what, unit, scale in (
        ("slowdown", "slower than its table ×", "", 1.0),
        ("power_w", "", " W", 1.0),
        ("decision_j", "a decision ", " mJ", 1e3),
        ("train_step_j", "a step ", " mJ", 1e3),
        ("empty_s", "empty in ", " h", 1 / 3600),
    ):
        each = estimates.get(name) or {}
        if each.get("mean") is not None:
            doubt = number(scale * each["std"], unit, 2) if each.get("std") is not None else "-"
            shown.append(f"{what}{number(scale * each['mean'], digits=2)} ± {doubt} ({each['source']})")
    return ", ".join(shown) or "-"


def _learning(history: History, fancy: bool) -> str:
    """The learning curve in one line: returns by the minute, what the teacher is trusted with, the loss."""
    last, minutes = history.samples[-1], per_minute(list(history.returns))
    parts = []
    if minutes:
        curve = f" {spark(minutes)}" if fancy and len(minutes) > 1 else ""
        parts.append(f"return a minute {number(minutes[0])} → {number(minutes[-1])}{curve}")
    if last.trust is not None:
        parts.append(f"trust {last.trust:.2f}")
    losses = [sample.loss for sample in history.samples if sample.loss is not None]
    if fancy and len(losses) > 1:
        stride = max(1, len(losses) // CURVE)
        parts.append(f"loss {spark(losses[::-1][::stride][::-1])}")
    if last.idle_because:
        parts.append(f"idle: {last.idle_because}")
    return ", ".join(parts) or "-"


def _refused(policy: Mapping[str, Any]) -> str:
    return ", ".join(map(str, policy.get("refused") or [])) or "-"


def _update(update: Mapping[str, Any]) -> str:
    """The policy from the fleet that came last, or is under way."""
    said = f"{update['name']} release {update['version']}: {update['stage']}"
    if update["stage"] == "fetching":
        said += f" {amount(update['have_bytes'])} of {amount(update['size_bytes'])}"
    return said + "".join(f", {update[key]}" for key in ("code", "why") if update[key])


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:.1f} ms"


def line(device: str, history: History) -> str:
    """One device as one line of plain text."""
    if not history.samples:
        return f"{device}: not heard of yet"
    shown = dict(cells(history))
    return f"{device}: " + "; ".join(
        f"{name} {shown[name]}"
        for name in ("return", "decisions", "latency", "teacher", "training", "networks", "link")
    )


def has_colour(stream: TextIO | None = None) -> bool:
    """Whether colours are welcome: a terminal, and nobody set NO_COLOR or said TERM=dumb."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in a colour (red, green, yellow, bold), where colours are welcome."""
    code = {"red": 31, "green": 32, "yellow": 33, "bold": 1}[colour]
    return f"\x1b[{code}m{text}\x1b[0m" if has_colour(stream) else text


def can_live(stream: TextIO | None = None) -> bool:
    """Whether a live table can be shown: a terminal that moves its cursor, and rich installed."""
    stream = stream or sys.stdout
    return stream.isatty() and os.environ.get("TERM") != "dumb" and find_spec("rich") is not None


class Screen:
    """A live table; made by `live`."""

    def __init__(self, inner: Any, fancy: bool) -> None:
        """Wrap a `rich.live.Live`."""
        self._inner, self._fancy = inner, fancy

    def show(
        self,
        title: str,
        devices: Mapping[str, History],
        facts: Sequence[tuple[str, str]] = (),
        events: Sequence[str] = (),
    ) -> None:
        """Draw everything anew.

        Args:
            title: first line.
            devices: a column each.
            facts: (what, figures) rows that belong to no device.
            events: the last ones, oldest first.
        """
        self._inner.update(picture(title, devices, facts, events, self._fancy), refresh=True)


@contextlib.contextmanager
def live() -> Iterator[Screen]:
    """Take the terminal for a live table; ask `can_live` first."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    fancy = (console.encoding or "").lower().startswith("utf")
    with Live(console=console, auto_refresh=False, screen=True) as inner:
        yield Screen(inner, fancy)


def picture(
    title: str,
    devices: Mapping[str, History],
    facts: Sequence[tuple[str, str]],
    events: Sequence[str],
    fancy: bool = True,
) -> Any:
    """What `Screen.show` draws, as something rich can print."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if fancy else box.ASCII, expand=True, pad_edge=False)
    table.add_column("", style="dim", no_wrap=True)
    columns: dict[str, dict[str, str]] = {}
    for name, history in devices.items():
        table.add_column(name, ratio=1, overflow="fold")
        columns[name] = dict(cells(history, fancy)) if history.samples else {}
    names: list[str] = []
    for column in columns.values():
        names += [name for name in column if name not in names]
    for name in names:
        table.add_row(name, *(_coloured(name, column.get(name, "")) for column in columns.values()))
    parts: list[Any] = [Text(title, style="bold", no_wrap=True), table]
    if not names and (devices or not facts):
        parts.append(Text("waiting for the first reports ...", style="dim"))
    for what, figures in facts:
        parts.append(Text.assemble((f"{what:<9} ", "dim"), figures))
    if events:
        parts += [Text(""), Text("last events", style="dim")]
        parts += [Text(event, overflow="ellipsis", no_wrap=True) for event in events]
    return Group(*parts)


def _coloured(name: str, text: str) -> Any:
    from rich.text import Text

    style = ""
    bad = any(word in text for word in ("DOWN", "SAFE ACTION", "NOT MET"))
    if bad or name == "faults" or text.startswith("refused"):
        style = "red"
    elif name == "because" and text != "nothing scarce":
        style = "yellow"
    elif name == "swaps" and text != "none yet":
        style = "green"
    return Text(text, style=style)
