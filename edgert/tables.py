"""Typed sections out of TOML tables: every fault at once, and what each key means in the words of its struct.

A struct's docstring is the one place where a key is explained: its `Attributes` become the comments of a written file,
the words of a fault, and the table of keys in the documentation.
"""

from __future__ import annotations

import collections
import functools
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgert.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def document(text: str, source: str) -> dict[str, Any]:
    """Take a TOML text apart.

    Args:
        text: TOML 1.0.
        source: the file's name, for messages only.

    Returns:
        Its tables and keys.

    Raises:
        ConfigError: it is not TOML.

    Source:
        TOML v1.0.0.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not TOML: {error}; strings need quotes, and a key may appear once") from error


def read(
    name: str, cls: Any, table: object, faults: list[str], elsewhere: Mapping[str, Any] = types.MappingProxyType({})
) -> dict[str, Any]:
    """One table's values by key.

    Args:
        name: dotted path of the table, for messages.
        cls: the msgspec struct that describes it; a field may be a struct or a tuple of structs itself.
        table: what the file has in that place.
        faults: lengthened by one line for each fault.
        elsewhere: name -> struct of the file's other tables, where a misplaced key may belong.

    Returns:
        Every field's value: defaults where absent or wrong (None where there is none), so that relations between keys
        can still be looked at.

    Raises:
        nothing.

    Source:
        ours: all faults at once, because each attempt on a remote board costs a restart.
    """
    hints, fields = _described(cls)
    values = {key: None if f.default is msgspec.NODEFAULT else f.default for key, f in fields.items()}
    if not isinstance(table, dict):
        faults.append(f"{name}: is {shown(table)}; must be a section, [{name}]")
        table = {}
    for key, value in table.items():
        if key not in fields:
            faults.append(f"{name}.{key}: unknown key{did_you_mean(key, fields, value, elsewhere)}")
            continue
        inner, is_many = nested(hints[key])
        if inner is not None:
            values[key] = _nested(f"{name}.{key}", inner, is_many, value, faults)
            continue
        try:
            if not _finite(value):
                raise msgspec.ValidationError
            values[key] = msgspec.convert(value, hints[key])
        except msgspec.ValidationError:
            faults.append(f"{name}.{key}: is {shown(value)}; must be {wanted(hints[key])}")
    for key, field in fields.items():
        if field.default is msgspec.NODEFAULT and key not in table:
            faults.append(f"{name}.{key}: missing; must be {wanted(hints[key])}. {docs(cls)[key]}")
    return values


@functools.cache
def _described(cls: Any) -> tuple[dict[str, Any], dict[str, msgspec.structs.FieldInfo]]:
    """Types and fields of a struct by key; finding them out takes longer than reading a table."""
    return typing.get_type_hints(cls, include_extras=True), {field.name: field for field in msgspec.structs.fields(cls)}


def nested(hint: Any) -> tuple[Any, bool]:
    """What kind of table a field holds.

    Args:
        hint: the field's type.

    Returns:
        The struct and whether there may be many of it; (None, False) for a plain value.

    Raises:
        nothing.

    Source:
        TOML v1.0.0, tables and arrays of tables.
    """
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint, False
    if typing.get_origin(hint) is tuple:
        (kind, *_) = typing.get_args(hint)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind, True
    return None, False


def _nested(path: str, cls: Any, is_many: bool, value: object, faults: list[str]) -> Any:
    if not is_many:
        before = len(faults)
        values = read(path, cls, value, faults)
        return cls(**values) if len(faults) == before else None
    if not isinstance(value, list):
        faults.append(f"{path}: is {shown(value)}; must be tables, [[{path}]]")
        return ()
    made = [_nested(f"{path}[{i}]", cls, False, each, faults) for i, each in enumerate(value)]
    return tuple(each for each in made if each is not None)


def did_you_mean(name: str, known: Mapping[str, object], value: object, elsewhere: Mapping[str, Any]) -> str:
    """A hint for a misspelt or misplaced name.

    Args:
        name: as it is written.
        known: what it could be.
        value: what it was given.
        elsewhere: name -> struct of other tables.

    Returns:
        The end of a sentence, beginning with "; ".

    Raises:
        nothing.

    Source:
        Ratcliff and Metzener 1988 (difflib): likeness of words.
    """
    import difflib  # 1 MB that only a faulty file needs

    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    homes = [
        section for section, cls in elsewhere.items() if name in cls.__struct_fields__ and not isinstance(value, dict)
    ]
    if homes:
        return f"; it belongs in [{homes[0]}]"
    return f"; known: {', '.join(known)}"


def docs(cls: Any) -> dict[str, str]:
    """What a struct's docstring says of its keys.

    Args:
        cls: the struct.

    Returns:
        Key -> its explanation, and "" -> the struct's own.

    Raises:
        nothing.

    Source:
        ours: one place, so that a comment can never contradict the check.
    """
    import inspect  # 2 MB that only a faulty file and `edgert init` need

    summary, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:\n")
    lines = (line.strip().partition(": ") for line in attributes.splitlines())
    return collections.defaultdict(str, {key: text for key, _, text in lines}, **{"": summary})


def wanted(hint: Any) -> str:
    """What a right value looks like, in words.

    Args:
        hint: the field's type, with its bounds.

    Returns:
        Words that follow "must be".

    Raises:
        nothing.

    Source:
        ours: made from the type that is checked.
    """
    inner, is_many = nested(hint)
    if inner is not None:
        return "tables, one for each" if is_many else "a table"
    options = [each for each in typing.get_args(hint) if each is not types.NoneType]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return wanted(options[0])
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{each}"' for each in options)
    if typing.get_origin(hint) is tuple:
        return "a list of " + wanted(options[0]).replace("a number", "numbers").replace("a whole number", "numbers")
    if hint in (bool, str):
        return "true or false" if hint is bool else "text in quotes"
    kind, meta = options
    if meta.title:
        return str(meta.title)
    if kind is str:
        return f"text of {meta.min_length} to {meta.max_length} characters"
    words = "a whole number" if kind is int else "a number"
    return (
        f"{words} above {meta.gt}, at most {meta.le}" if meta.gt is not None else f"{words} from {meta.ge} to {meta.le}"
    )


def shown(value: object) -> str:
    """A value as a fault names it.

    Args:
        value: anything that TOML has.

    Returns:
        At most 60 characters.

    Raises:
        nothing.

    Source:
        ours: long enough to be recognised.
    """
    text = "a section" if isinstance(value, dict) else toml(value)
    return text if len(text) <= 60 else text[:57] + "..."


def toml(value: object) -> str:
    """One TOML value.

    Args:
        value: bool, number, text, or a list of them.

    Returns:
        Its text.

    Raises:
        nothing.

    Source:
        TOML v1.0.0; strings escape as JSON's do, which TOML's basic strings accept.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return str(value)


def _finite(value: object) -> bool:
    """TOML has inf and nan; no key of ours means anything with them."""
    if isinstance(value, list):
        return all(_finite(each) for each in value)
    return not isinstance(value, float) or math.isfinite(value)
