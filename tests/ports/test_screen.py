from __future__ import annotations

import io
from typing import Any

import pytest

from edgert.ports import screen
from edgert.ports.screen import History


def document(ticks: int, **more: Any) -> dict[str, Any]:
    actor = {
        "pid": 7,
        "ticks": ticks,
        "missed": 2,
        "safe": 0,
        "exits": [ticks // 2, ticks - ticks // 2],
        "latency_p50_s": 0.001,
        "latency_p99_s": 0.002,
        "latency_max_s": 0.003,
        "episodes": 0,
        "returns": [],
        "faults": {},
        "generation": 0,
        "acting": True,
        "first_action_s": 1.0,
        "cpu_s": ticks / 1000,
        "rss_bytes": 1 << 20,
        **more.pop("actor", {}),
    }
    budget = {"max_exit": 1, "train_steps_hz": 5.0, "teacher_bytes_per_s": 0.0, "why": {"train_steps_hz": "cpu-high"}}
    return {"actor": actor, "actor_age_s": 0.0, "link": {"up": True, "rtt_s": 0.01}, "budget": budget, **more}


def history(*documents: dict[str, Any]) -> History:
    made = History()
    for i, each in enumerate(documents):
        made.add(each, 1000.0 + i)
    return made


@pytest.mark.parametrize(
    ("column", "growth"),
    [
        ([], 0),
        ([5], 0),
        ([5, 7, 7, 10], 5),
        ([None, 5, None, 7], 2),
        ([5, 9, 1, 3], 7),  # restarted in between: 4, then 1 and 2 more
    ],
)
def test_growth_counts_on_over_a_restart(column: list[float | None], growth: float) -> None:
    assert screen.grown(column) == growth


def test_each_return_counts_once_though_reports_are_repeated_and_skipped() -> None:
    first, third = {"episodes": 2, "returns": [3.0, 4.0]}, {"episodes": 5, "returns": [3.0, 4.0, 5.0, 6.0, 7.0]}
    seen = history(
        document(20, actor=first), document(20, actor=first), document(60, actor=third), document(60, actor=third)
    )
    assert [value for _, value in seen.returns] == [3.0, 4.0, 5.0, 6.0, 7.0]


def test_a_restarted_actor_counts_from_zero() -> None:
    old, new = {"episodes": 1, "returns": [3.0]}, {"episodes": 1, "returns": [4.0], "pid": 8}
    assert [value for _, value in history(document(20, actor=old), document(20, actor=new)).returns] == [3.0, 4.0]


def test_rates_are_taken_on_the_clock_of_the_reports() -> None:
    late = {**document(40), "actor_age_s": 0.5}
    assert history(document(20), late).rate("ticks") == pytest.approx(40.0)
    assert history(document(20)).rate("ticks") is None
    assert History().rate("ticks") is None


def test_cpu_is_a_share_of_one_core() -> None:
    assert history(document(100), document(150)).cpu_frac("actor") == pytest.approx(0.05)
    assert history(document(100), document(150)).cpu_frac("trainer") is None


def test_a_bounded_history_forgets_the_oldest() -> None:
    seen = History(keep=3)
    for i in range(10):
        seen.add(document(i, actor={"episodes": i, "returns": [float(i)]}), float(i))
    assert [s.ticks for s in seen.samples] == [7, 8, 9]
    assert [value for _, value in seen.returns] == [7.0, 8.0, 9.0]


def test_a_line_says_it_in_plain_words() -> None:
    told = screen.line("arm-7", history(document(80), document(100, actor={"episodes": 1, "returns": [4.0]})))
    assert "return 4.0 over 1 episodes" in told
    assert "decisions 20.0/s, 2 missed (2.00 %)" in told
    assert "p99 2.0 ms" in told
    assert screen.line("arm-8", History()) == "arm-8: not heard of yet"


def test_what_is_wrong_is_said() -> None:
    down = {"up": False, "reason": "refused"}
    seen = history(document(100, link=down, actor={"acting": False, "faults": {"output-not-finite": 3}}))
    rows = dict(screen.cells(seen))
    assert rows["link"].startswith("DOWN: refused")
    assert "SAFE ACTION ONLY" in rows["decisions"]
    assert rows["faults"] == "output-not-finite 3"
    assert rows["because"] == "cpu-high"


@pytest.mark.parametrize(
    "told", [{}, {"actor": None, "trainer": None, "budget": None, "link": None, "actor_age_s": None}]
)
def test_an_empty_document_is_shown_as_unknown(told: dict[str, Any]) -> None:
    rows = dict(screen.cells(history(told)))
    assert rows["latency"] == "p50 -, p99 -"
    assert rows["link"] == "DOWN: not connected, rtt -, 0 events wait"


def test_plain_cells_have_no_drawings() -> None:
    told = " ".join(
        text for _, text in screen.cells(history(document(100, actor={"episodes": 2, "returns": [1.0, 2.0]})))
    )
    assert not set(told) & set("▁▂▃▄▅▆▇█░▒▓")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")]
)
def test_amounts(value: float | None, text: str) -> None:
    assert screen.amount(value) == text


def test_a_bar_is_as_wide_as_its_shares() -> None:
    assert len(screen.bar([0.3, 0.3, 0.4], 10)) == 10
    assert screen.bar([1.0], 4) == "░░░░"
    assert screen.spark([1.0, 1.0]) == "▁▁"
    assert screen.spark([0.0, 1.0]) == "▁█"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_where_they_are_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert screen.paint("x", "red", Terminal()) == "\x1b[31mx\x1b[0m"
    assert screen.paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert screen.paint("x", "red", Terminal()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert screen.paint("x", "red", Terminal()) == "x"
    assert not screen.can_live(Terminal())


def test_the_picture_shows_every_device_and_fact() -> None:
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=120, record=True)
    devices = {"device-1": history(document(80), document(100)), "device-2": History()}
    console.print(screen.picture("a title", devices, [("running", "broker")], ["12:00 device-1 swapped"]))
    told = console.export_text()
    for word in ("a title", "device-1", "device-2", "20.0/s", "running", "broker", "swapped", "cpu-high"):
        assert word in told


def test_a_learning_curve_has_a_figure_a_minute() -> None:
    points = [(0.0, 1.0), (59.0, 3.0), (130.0, 7.0)]
    assert screen.per_minute(points) == [2.0, 7.0]
    assert screen.binned(points, 60.0) == [(30.0, (1.0, 3.0, 2.0)), (150.0, (7.0, 7.0, 7.0))]
    assert screen.binned([], 60.0) == []


def test_what_is_learned_is_one_row_with_trust_and_why_not() -> None:
    told = History()
    for minute in range(3):
        actor = {"episodes": minute + 1, "returns": [float(minute)]}
        trainer = {"trust": 0.25, "loss": 1.0 / (minute + 1)}
        more = {"training": {"idle_because": "paused"}, "counters": {"networks-rolled-back": 1}}
        told.add(document(20, actor=actor, trainer=trainer, policy={"refused": [4]}, **more), 60.0 * minute)
    plain, fancy = dict(screen.cells(told)), dict(screen.cells(told, fancy=True))
    assert plain["learning"] == "return a minute 0.0 → 2.0, trust 0.25, idle: paused"
    assert "▁▅█" in fancy["learning"] and "loss █" in fancy["learning"]
    assert plain["rolled back"] == "1; generations 4 never act again"


@pytest.mark.parametrize(
    ("update", "wanted"),
    [
        ({"stage": "fetching", "have_bytes": 500, "size_bytes": 1000}, "n release 3: fetching 500 B of 1,000 B"),
        ({"stage": "held", "code": "no-space", "why": "full"}, "n release 3: held, no-space, full"),
        ({"stage": "kept", "why": "it earns no less"}, "n release 3: kept, it earns no less"),
    ],
)
def test_a_policy_from_the_fleet_is_shown_where_there_is_one(update: dict[str, Any], wanted: str) -> None:
    known = {"name": "n", "version": 3, "code": "", "why": "", **update}
    assert screen._update(known) == wanted
