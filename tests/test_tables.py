from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from edgert import tables
from edgert.errors import ConfigError


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    """One of many.

    Attributes:
        name: What it is called.
        size_bytes: How big it is.
    """

    name: str
    size_bytes: Annotated[int, Meta(ge=0, le=9)] = 0


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    """A section.

    Attributes:
        one: Exactly one.
        many: As many as you like.
        words: Of any length.
    """

    one: Inner = Inner(name="x")
    many: tuple[Inner, ...] = ()
    words: tuple[Annotated[str, Meta(min_length=1, max_length=3)], ...] = ()


def read(text: str) -> tuple[dict[str, object], list[str]]:
    faults: list[str] = []
    return tables.read("outer", Outer, tables.document(text, "f").get("outer", {}), faults), faults


def test_tables_within_tables_are_typed() -> None:
    values, faults = read(
        '[outer.one]\nname = "a"\n[[outer.many]]\nname = "b"\nsize_bytes = 3\n[[outer.many]]\nname = "c"'
    )
    assert faults == []
    assert values["one"] == Inner(name="a")
    assert values["many"] == (Inner(name="b", size_bytes=3), Inner(name="c"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[outer.many]]\nsize_bytes = 1", "outer.many[0].name: missing; must be text in quotes. What it is called."),
        (
            '[[outer.many]]\nname = "a"\nsize_bytes = 10',
            "outer.many[0].size_bytes: is 10; must be a whole number from 0",
        ),
        (
            '[[outer.many]]\nname = "a"\nsice_bytes = 1',
            "outer.many[0].sice_bytes: unknown key; did you mean 'size_bytes'?",
        ),
        ("[outer]\nmany = 3", "outer.many: is 3; must be tables, [[outer.many]]"),
        ("[outer]\none = 3", "outer.one: is 3; must be a section, [outer.one]"),
        ('[outer]\nwords = ["abcd"]', 'outer.words: is ["abcd"]; must be a list of text of 1 to 3 characters'),
    ],
)
def test_a_fault_deep_inside_says_where_it_is(text: str, fault: str) -> None:
    values, faults = read(text)
    assert any(each.startswith(fault) for each in faults), faults
    assert set(values) == {"one", "many", "words"}


def test_what_is_not_toml_is_said_with_the_files_name() -> None:
    with pytest.raises(ConfigError, match=r"board\.toml: not TOML"):
        tables.document("[", "board.toml")


@given(st.text(max_size=20), st.lists(st.booleans() | st.integers() | st.text(max_size=5), max_size=3))
def test_a_value_reads_back_as_it_was_written(text: str, values: list[object]) -> None:
    written = f"a = {tables.toml(text)}\nb = {tables.toml(values)}"
    read_back = tables.document(written, "f")
    assert read_back == {"a": text, "b": values}
