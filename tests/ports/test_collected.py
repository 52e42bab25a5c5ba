from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from edgert.errors import ConfigError, StoreError, UsageError
from edgert.fleet.session import Collector
from edgert.ports.collected import Rows

COLUMNS = ("device", "n", "detail")


def read(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv"])
@pytest.mark.parametrize("noted", [False, True])
def test_rows_are_there_and_the_file_is_gone_on_with(tmp_path: Path, name: str, noted: bool) -> None:
    for n in range(3):
        rows = Rows(tmp_path / name, COLUMNS, noted=noted)
        assert rows.collectors == ({"a": Collector("s", n)} if noted and n else {})
        rows.append([{"device": "a", "n": n, "detail": {"x": b"\1"}, "more": 1}], {"a": Collector("s", n + 1)})
        rows.close()
    found = read(tmp_path / name)
    assert [str(each["n"]) for each in found] == ["0", "1", "2"] and set(found[0]) == set(COLUMNS)
    assert "01" in str(found[0]["detail"])


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv"])
def test_what_was_not_noted_when_the_power_went_is_cut_off(tmp_path: Path, name: str) -> None:
    rows = Rows(tmp_path / name, COLUMNS, noted=True)
    rows.append([{"device": "a", "n": 1}], {"a": Collector("s", 2)})
    rows.close()
    with (tmp_path / name).open("ab") as file:
        file.write(b'{"device": "a", "n": 2}\n{"dev')
    rows = Rows(tmp_path / name, COLUMNS, noted=True)
    assert rows.collectors == {"a": Collector("s", 2)}
    rows.append([{"device": "a", "n": 2}], {"a": Collector("s", 3)})
    rows.close()
    assert [str(each["n"]) for each in read(tmp_path / name)] == ["1", "2"]


def test_a_file_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text("mine\n")
    with pytest.raises(ConfigError, match="name another file"):
        Rows(path, COLUMNS, noted=True)
    assert path.read_text() == "mine\n"


def test_a_file_that_lost_what_was_noted_is_told(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    rows = Rows(path, COLUMNS, noted=True)
    rows.append([{"n": 1}])
    rows.close()
    path.write_text("")
    with pytest.raises(StoreError, match="shorter"):
        Rows(path, COLUMNS, noted=True)
    (tmp_path / "e.jsonl.state").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Rows(path, COLUMNS, noted=True)


def test_one_process_writes_a_file(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "e.jsonl", COLUMNS)
    with pytest.raises(UsageError):
        Rows(tmp_path / "e.jsonl", COLUMNS)
    rows.close()
    Rows(tmp_path / "e.jsonl", COLUMNS).close()


def test_other_endings_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jsonl"):
        Rows(tmp_path / "e.parquet", COLUMNS)
    with pytest.raises(StoreError):
        Rows(tmp_path / "no" / "e.csv", COLUMNS)


def test_no_text_of_a_strangers_becomes_a_formula(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "e.csv", COLUMNS)
    rows.append([{"device": '=HYPERLINK("http://x")', "n": -1, "detail": "@x"}])
    rows.close()
    assert read(tmp_path / "e.csv") == [{"device": '\'=HYPERLINK("http://x")', "n": "-1", "detail": "'@x"}]


def test_a_row_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"device": "a"}\n{"dev')
    rows = Rows(path, COLUMNS)
    rows.append([{"device": "b"}])
    rows.close()
    assert json.loads(path.read_text().splitlines()[-1])["device"] == "b"


@pytest.mark.parametrize("noted", [False, True])
def test_rows_are_never_put_below_other_columns(tmp_path: Path, noted: bool) -> None:
    path = tmp_path / "e.csv"
    Rows(path, COLUMNS, noted=noted).close()
    with pytest.raises(ConfigError, match="other columns"):
        Rows(path, (*COLUMNS, "new"), noted=noted)
    Rows(path, COLUMNS, noted=noted).close()


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").symlink_to("/dev/full")
    rows = Rows(tmp_path / "e.jsonl", COLUMNS)
    with pytest.raises(StoreError, match="write"):
        rows.append([{"device": "a"}])
    rows.close()
    Rows(tmp_path / "e.jsonl", COLUMNS).close()
