"""Which board this is, which file describes it, and what `edgert board apply` would change on it.

Detection reads the device tree, or the processor where there is none; it never guesses from what happens to work.
Changes to a system's files are planned as pure text first, so that a plan can be shown, and are kept in marked blocks,
so that they can be found again and taken back.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgert.errors import ConfigError, StoreError
from edgert.hardware import BoardFile, Fragment, parse_board
from edgert.ports.store import remove, store_error, write_atomic

BEGIN = "# edgert begin: `edgert board apply --undo` removes this block"
END = "# edgert end"
# A parameter with a dot is for a module; the kernel ignores it where no such module asks (init/main.c).
WORD_BEGIN, WORD_END = "edgert.begin", "edgert.end"
BACKUP = ".before-edgert"
_TEXT_BYTES = 1 << 20


class Detected(NamedTuple):
    """What the machine says it is.

    Attributes:
        model: by the device tree, else by the firmware's tables (DMI); empty when neither says.
        compatible: of the device tree's root, the most exact first.
        machine: as uname -m says.
        source: where the model was read.
    """

    model: str
    compatible: tuple[str, ...]
    machine: str
    source: str


class Change(NamedTuple):
    """A file as it is and as it would be; None is no file."""

    path: Path
    before: str | None
    after: str | None


def detect(root: str | Path = "/", machine: str | None = None) -> Detected:
    """Look what this machine says it is.

    Args:
        root: directory that holds `proc` and `sys`.
        machine: as uname -m says; None asks the kernel, and of another root the kernel that its files are of.
    """
    root = Path(root)
    if machine is None:
        # Of a copy of another machine's files, this one's processor says nothing (/proc/sys/kernel/arch: Linux 6.1).
        machine = platform.machine() if root == Path("/") else (_text(root / "proc/sys/kernel/arch") or "").strip()
    for folder in (root / "proc/device-tree", root / "sys/firmware/devicetree/base"):
        compatible = tuple(filter(None, (_text(folder / "compatible") or "").split("\0")))
        if model := (_text(folder / "model") or "").strip("\0 \n"):
            return Detected(model, compatible, machine, str(folder / "model"))
    dmi = root / "sys/class/dmi/id"
    words = [(_text(dmi / name) or "").strip() for name in ("sys_vendor", "product_name")]
    return Detected(" ".join(filter(None, words)), (), machine, str(dmi) if any(words) else "uname -m")


def match(found: Detected, boards: Iterable[BoardFile]) -> tuple[BoardFile | None, str]:
    """The file that fits best, and why it does.

    Args:
        found: by `detect`.
        boards: to choose from.

    Returns:
        A board and the reason; without a board the reason says what was looked for. The device tree's own order
        decides: its first compatible is the most exact. Then the model's name, then the processor.
    """
    boards = list(boards)
    for compatible in found.compatible:
        for board in boards:
            if compatible in board.hardware.match.compatible:
                return board, f'the device tree is compatible with "{compatible}"'
    for board in boards:
        for beginning in board.hardware.match.model:
            if found.model.startswith(beginning):
                return board, f'its model begins with "{beginning}"'
    for board in boards:
        if found.machine in board.hardware.match.machine:
            return board, f"no file knows this board, but its processor is {found.machine}"
    return None, f"no file knows {found.model or 'a machine without a name'} ({found.machine or 'processor unknown'})"


def folders() -> list[Path]:
    """Where boards' files lie; a name found earlier hides the same name later."""
    return [
        Path("/etc/edgert/boards"),
        Path(sys.prefix) / "share/edgert/firmware_configs",
        Path(__file__).parents[2] / "firmware_configs",
    ]


def load_all(places: Sequence[Path] | None = None) -> dict[str, BoardFile]:
    """Every board that there is a file for, by name.

    Args:
        places: folders to look in; None: `folders()`.

    Raises:
        ConfigError: a file is wrong.
    """
    found: dict[str, BoardFile] = {}
    for folder in folders() if places is None else places:
        for path in sorted(folder.glob("*.toml")):
            if path.stem in found:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: cannot be read: {error}") from error
            if "[hardware]" in text:  # others are plain configurations
                found[path.stem] = parse_board(text, path.stem)
    return found


def load(
    name: str | None, root: str | Path = "/", places: Sequence[Path] | None = None
) -> tuple[BoardFile | None, str]:
    """The board of this name, or the one that is detected.

    Args:
        name: of its file; None detects.
        root: directory that holds `proc` and `sys`.
        places: see `load_all`.

    Returns:
        As `match`.

    Raises:
        ConfigError: there is no file of this name, or one is wrong.
    """
    boards = load_all(places)
    if name is None:
        return match(detect(root), boards.values())
    if name not in boards:
        raise ConfigError(f"no board {name!r}; there are {', '.join(boards) or 'none'}")
    return boards[name], "it was named"


def plan(fragments: Sequence[Fragment], root: str | Path = "/") -> list[Change]:
    """What setting these fragments would change.

    Args:
        fragments: the whole of what should be in the marked blocks.
        root: directory that stands for /.

    Returns:
        One change for each file that would differ; none when everything is as it should be.

    Raises:
        StoreError: a file is there but cannot be read.
    """
    wanted: dict[Path, tuple[list[str], list[str]]] = {}
    for fragment in fragments:
        path = plan_target(fragment, Path(root))
        if path is not None:
            lines, words = wanted.setdefault(path, ([], []))
            lines += [line for line in fragment.lines if line not in lines]
            words += [word for word in fragment.words if word not in words]
    changes = []
    for path, (lines, words) in wanted.items():
        before = _existing(path)
        after = with_block(before or "", lines) if lines else with_words(before or "", words)
        if after != (before or ""):
            changes.append(Change(path, before, after))
    return changes


def plan_undo(fragments: Sequence[Fragment], root: str | Path = "/") -> list[Change]:
    """What taking back everything that was ever set by these fragments would change; as `plan`."""
    changes = {}
    for fragment in fragments:
        for name in fragment.file:
            path = Path(root) / name.lstrip("/")
            before = _existing(path)
            after = None if before is None else with_words(with_block(before, []), [])
            if before is not None and after != before:
                changes[path] = Change(path, before, after if after and after.strip() else None)
    return list(changes.values())


def carry_out(changes: Sequence[Change]) -> None:
    """Change the files, each all at once, after a copy of each was put beside it.

    Args:
        changes: from `plan` or `plan_undo`.

    Raises:
        StoreError: one may not be written; then none was.

    Blocks: until the device has the data.
    """
    for change in changes:
        folder = change.path.parent
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK):
            raise StoreError(f"{change.path} may not be written: run it as root") from PermissionError(str(folder))
    for change in changes:
        backup = change.path.with_name(change.path.name + BACKUP)
        try:
            change.path.parent.mkdir(parents=True, exist_ok=True)
            mode = change.path.stat().st_mode & 0o777 if change.before is not None else 0o644
            had = backup.read_text(encoding="utf-8") if backup.exists() else None
        except OSError as error:
            raise store_error(error, "change", change.path) from error
        is_own = change.before is not None and not {BEGIN, WORD_BEGIN} & {
            *change.before.split("\n"),
            *change.before.split(),
        }
        if change.before is not None and is_own and had is None:
            write_atomic(backup, change.before.encode(), mode=mode)
        if change.after is None:
            remove(change.path)
        else:
            write_atomic(change.path, change.after.encode(), mode=mode)
        if had is not None and had == change.after:
            remove(backup)


def with_block(text: str, lines: Sequence[str]) -> str:
    """A text whose marked block holds these lines; with none, without the block.

    Args:
        text: of the file.
        lines: of the block.

    Returns:
        The text; the same for a second time. Where there was a block, the new one is in its place; else at the end.
    """
    head, found, rest = text.partition(BEGIN)
    if found:
        rest = rest.partition(END)[2].removeprefix("\n")
    else:
        head, rest = text, ""
        if lines and head and not head.endswith("\n"):
            head += "\n"
    block = "\n".join([BEGIN, *lines, END, ""]) if lines else ""
    return head + block + rest


def with_words(text: str, words: Sequence[str]) -> str:
    """A kernel command line whose marked words are these, less those that are there anyway.

    Args:
        text: of the file; its first line is the command line.
        words: parameters, without spaces in them.

    Returns:
        The text; the same for a second time.
    """
    line, newline, rest = text.partition("\n")
    own = line.split(" ")
    while WORD_BEGIN in own and WORD_END in own[own.index(WORD_BEGIN) :]:
        first = own.index(WORD_BEGIN)
        del own[first : own.index(WORD_END, first) + 1]
    missing = [word for word in words if word not in own]
    if missing:
        own = [*(own if own != [""] else []), WORD_BEGIN, *missing, WORD_END]
    return " ".join(own) + newline + rest


def plan_target(fragment: Fragment, root: Path) -> Path | None:
    """The file that a fragment edits: the first that exists, or else may be made."""
    paths = [root / name.lstrip("/") for name in fragment.file]
    return next((path for path in paths if path.exists()), paths[0] if fragment.create else None)


def _existing(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not text: {error}") from error
    except OSError as error:
        raise store_error(error, "read", path) from error


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_BYTES).decode(errors="replace")
    except OSError:
        return None
