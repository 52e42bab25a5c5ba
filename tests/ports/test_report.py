from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgert.errors import StoreError
from edgert.ports import report


def device(seconds: int, swaps: list[dict[str, Any]]) -> dict[str, Any]:
    """A device that decided 20 times a second, learned, and was restarted in the middle."""
    half = seconds // 2
    decided = [20 * (i if i < half else i - half) for i in range(seconds)]
    series: dict[str, list[Any]] = {
        "t_s": [float(i) for i in range(seconds)],
        "reported_s": [i - 0.5 for i in range(seconds)],
        "decided": decided,
        "exits": [[] if i == 0 else [n // 4, n // 4, n - 2 * (n // 4)] for i, n in enumerate(decided)],
        "generation": [0 if i < half else 1 for i in range(seconds)],
        "battery_frac": [None if i < 3 else 0.9 for i in range(seconds)],
        "loss": [None if i < half else 1.0 / (i + 1) for i in range(seconds)],
    }
    for name in ("missed", "steps", "asked", "answered", "joined", "ask_bytes", "answer_bytes"):
        series[name] = list(range(seconds))
    for name in ("p50_s", "p99_s", "cpu_s.supervisor", "cpu_s.actor", "cpu_s.trainer"):
        series[name] = [None if i < 2 else i * 1e-3 for i in range(seconds)]
    counts = ("ticks", "missed", "episodes", "steps", "asked", "answered", "joined", "candidates", "accepted", "swaps")
    totals: dict[str, Any] = dict.fromkeys((*counts, "ask_bytes", "answer_bytes", "events_arrived"), 3)
    unknown = ("missed_frac", "first_action_s", "p50_s", "p99_s", "return_first", "return_last", "events_recorded")
    totals |= dict.fromkeys(unknown) | {"nominal_hz": 20.0, "decisions_hz": 19.9, "rss_bytes": {"actor": 1 << 26}}
    returns = [(float(i), float(i % 5)) for i in range(0, seconds, 4)]
    return {"totals": totals, "series": series, "returns": returns, "swaps": swaps}


def document(**devices: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": "edgert demo: breakout",
        "summary": "some devices",
        "checks": [
            {"name": "every device held its rate", "passed": True, "why": "100 %"},
            {"name": "it <b>taught</b>", "passed": False, "why": "0 & none"},
        ],
        "facts": {"broker": "mosquitto", "versions": {"edgert": "0.1.0"}, "measured": {"mqtt5": True}},
        "devices": devices,
        "teachers": {"teacher-1": {"answers": 3}},
        "events": [{"t_s": 1.0, "device": "device-1", "seq": 1, "name": "swapped", "detail": {"why": "<script>"}}],
    }


class Tags(HTMLParser):
    """Opens and closes every tag in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "use", "rect", "br"):
            assert self.open.pop() == tag


@pytest.fixture(autouse=True)
def drawn() -> None:
    pytest.importorskip("matplotlib")


def test_the_page_is_whole_self_contained_and_has_every_figure(tmp_path: Path) -> None:
    swap = {"t_s": 6.0, "generation": 1, "ok": True, "missed": 0}
    told = document(**{"device-1": device(12, [swap]), "device-2": device(12, [])})
    page = report.write(tmp_path / "report", told).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.seen.count("svg") == 8
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert "@import" not in page
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(json.dumps(told))


def test_what_devices_say_is_text_and_not_markup() -> None:
    page = report.render(document(**{"device-1": device(4, [])}))
    assert "<script>" not in page
    assert "it &lt;b&gt;taught&lt;/b&gt;" in page
    assert "0 &amp; none" in page


def test_checks_come_first() -> None:
    page = report.render(document(**{"device-1": device(4, [])}))
    assert page.index("every device held its rate") < page.index("<svg")
    assert ">pass<" in page
    assert ">FAIL<" in page


@pytest.mark.parametrize("seconds", [0, 1, 2])
def test_a_device_that_hardly_said_anything_is_drawn_too(seconds: int) -> None:
    quiet = device(seconds, [])
    assert report.render(document(**{"device-1": quiet})).count("<svg") == 8


def test_no_device_at_all_is_a_page_too() -> None:
    assert "some devices" in report.render(document())


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        report.write(tmp_path / "file" / "report", document())


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (0, "0"), (1234.5, "1,234"), ({"a": 1, "b": None}, "a 1, b -"), ("x", "x")],
)
def test_any_plain_value_has_words(value: object, text: str) -> None:
    assert report.text(value) == text


def test_a_roll_back_is_marked_and_an_actor_that_takes_up_its_network_again_is_not() -> None:
    swaps = [{"t_s": float(t), "ok": True, "generation": g} for t, g in ((5, 1), (6, 1), (9, 2), (15, 1), (20, 3))]
    drawn = device(30, swaps)
    drawn["series"]["trust"] = [None if i < 10 else 0.5 for i in range(30)]
    page = report.render(document(**{"device-1": drawn}))
    learning = page[page.index("<h2>Learning") : page.index("<h2>Decisions")]
    assert learning.count("rolled back</text>") == 1 and learning.count("trust in the teacher</text>") == 1
    assert [learning.count(f"> {generation}</text>") for generation in (1, 2, 3)] == [2, 1, 1]
    before = report.render(document(**{"device-1": device(30, swaps[:3])}))
    assert "rolled back</text>" not in before
