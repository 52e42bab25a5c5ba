from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ConfigError, StoreError
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import SCENARIOS, Row, Scenario, cells, load, make, parse

TRACES = Path(__file__).parents[2] / "traces"


@pytest.mark.parametrize("name", SCENARIOS)
def test_equal_seeds_give_equal_scenarios_and_others_do_not(name: str) -> None:
    one, same, other = (make(name, Model(), seed=seed, hours=4.0) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert [row.t_s for row in one.rows] == sorted({row.t_s for row in one.rows})
    assert one.rows[-1].t_s < 4 * 3600


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_written_is_read_back(name: str) -> None:
    made = make(name, Model(), seed=3, hours=2.0)
    text = io.StringIO()
    writer = csv.DictWriter(text, cells(Row()))
    writer.writeheader()
    writer.writerows(cells(row) for row in made.rows)
    assert parse(text.getvalue(), "t").rows == made.rows


def test_rows_hold_until_the_next() -> None:
    trace = parse("t_s,ambient_c,charger\n0,20,1\n10,,\n20,30,0\n", "t")
    assert [trace.at(t_s).ambient_c for t_s in (-5, 0, 19.9, 20, 1e9)] == [20, 20, 20, 30, 30]
    assert [trace.at(t_s).charger for t_s in (0, 10, 20)] == [True, True, False]
    assert [(row.t_s, lasted_s) for row, lasted_s in trace.pieces(5.0, 25.0)] == [(0, 5), (10, 10), (20, 5)]
    assert list(trace.pieces(5.0, 5.0)) == []


@given(st.floats(0, 100), st.floats(0, 100))
def test_pieces_fill_the_time(from_s: float, to_s: float) -> None:
    trace = Scenario(name="t", rows=tuple(Row(t_s=t_s) for t_s in (0, 1.5, 40, 90)))
    assert math.isclose(sum(s for _, s in trace.pieces(from_s, to_s)), max(0, to_s - from_s), abs_tol=1e-9)


def test_json_lines_mean_the_same() -> None:
    lines = '# recorded\n{"t_s": 0, "ambient_c": 20, "link_up": 0, "out_temp_c": 50}\n\n{"t_s": 5, "hog_cores": 2}\n'
    rows = parse(lines, "t.jsonl", jsonl=True).rows
    assert rows == (Row(ambient_c=20.0, link_up=False), Row(t_s=5.0, ambient_c=20.0, link_up=False, hog_cores=2.0))


def test_the_first_row_may_bring_a_battery() -> None:
    trace = parse("t_s,capacity_j,charge_frac\n0,5000,0.5\n9,,\n", "t")
    assert (trace.capacity_j, trace.charge_frac) == (5000.0, 0.5)
    assert parse("t_s\n0\n", "t").capacity_j is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ("t_s,ambient_c\n", "no rows"),
        ("t_s,warmth\n0,1\n", "line 1: a trace does not know 'warmth'"),
        ("ambient_c\n1\n", "line 1: a trace needs t_s"),
        ("t_s,t_s\n1,1\n", "line 1: a trace needs t_s, and each name once"),
        ("t_s,ambient_c\n0,20\n60,2", None),
        ("t_s,ambient_c\n0,20\n60", "line 3: 1 cells for 2 columns; is it torn"),
        ("t_s,ambient_c\n0,20\n60,hot\n", "line 3: Expected"),
        ("t_s,ambient_c\n0,nan\n", "line 2: ambient_c is nan"),
        ("t_s,ambient_c\n0,2000\n", "line 2: ambient_c is 2000; it lies between"),
        ("t_s\n5\n5\n", "line 3: t_s is 5 after 5; it must rise"),
        ("t_s,ambient_c\n,20\n", "line 2: Object missing required field `t_s`"),
        ("t_s,faults\n0,nose=stuck\n", "line 2: fault 'nose=stuck'"),
        ("t_s,faults\n0,temp_c\n", "line 2: fault 'temp_c'"),
        ('t_s,faults\n0,"temp_c=stuck\n', "line 2: unexpected end of data; is it torn"),
        ("t_s,capacity_j\n0,\n1,5\n", "line 3: capacity_j and charge_frac belong into the first row"),
    ],
)
def test_a_bad_line_is_named(text: str, said: str | None) -> None:
    if said is None:
        assert parse(text, "t").rows[-1].ambient_c == 2.0, "a number that lost its end cannot be told from another"
        return
    with pytest.raises(ConfigError) as caught:
        parse(text, "trace.csv")
    assert said in str(caught.value)
    assert str(caught.value).startswith("trace.csv")


@pytest.mark.parametrize("line", ['{"t_s": 0', "[1]", '{"t_s": "x"}', '{"t_s": 0, "warmth": 1}'])
def test_a_bad_json_line_is_named(line: str) -> None:
    with pytest.raises(ConfigError, match=r"^t, line 2: "):
        parse(f'{{"t_s": 0}}\n{line}\n', "t", jsonl=True)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        load(tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"t_s\n0\n\xff\n")
    with pytest.raises(ConfigError, match="line 3: not UTF-8"):
        load(tmp_path / "b.csv")


def test_unknown_scenarios_and_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of heatwave"):
        make("rain", Model())
    with pytest.raises(ConfigError, match="hours"):
        make("heatwave", Model(), hours=0.0)


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.csv")), ids=lambda path: path.name)
def test_the_shipped_traces_are_sound_and_say_that_they_are_simulated(path: Path) -> None:
    assert len(load(path).rows) > 10
    assert "simulated" in path.read_text().splitlines()[0]
