from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ConfigError, StoreError
from edgert.hardware import Fragment
from edgert.ports import boardfile
from edgert.ports.boardfile import BACKUP, Change, Detected, with_block, with_words

HOUSE = Path(__file__).parents[2]
PLACES = [HOUSE / "firmware_configs"]
BOARDS = boardfile.load_all(PLACES)
OF_TREE = {"raspberry-pi-zero-2w": "raspberry-pi-zero-2-w", "x86-laptop": "generic-x86-64", "nothing": "generic-x86-64"}
TREES = sorted((HOUSE / "tests/boards").glob("*.tree"))


def identity(tree: Path, root: Path) -> None:
    """The files of a recorded tree that say which board it is."""
    for line in tree.read_text().splitlines():
        name, mark, text = line.partition(" = ")
        if mark and name.startswith(("proc/device-tree/", "sys/class/dmi/")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text.replace("\\0", "\0"))


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree.stem))
def test_every_recorded_board_is_recognised(tree: Path, tmp_path: Path) -> None:
    identity(tree, tmp_path)
    expected = OF_TREE.get(tree.stem, tree.stem)
    machine = "x86_64" if expected == "generic-x86-64" else "aarch64"
    found, why = boardfile.match(boardfile.detect(tmp_path, machine), BOARDS.values())
    assert found is not None, why
    assert found.name == expected
    assert ("no file knows" in why) == expected.startswith("generic")


def test_the_most_exact_compatible_decides_whatever_the_order_of_the_files() -> None:
    found = Detected("", ("nvidia,p3767-0005", "raspberrypi,4-model-b"), "aarch64", "")
    for boards in (list(BOARDS.values()), list(BOARDS.values())[::-1]):
        board, why = boardfile.match(found, boards)
        assert board is not None
        assert (board.name, "p3767-0005" in why) == ("jetson-orin-nano", True)


def test_a_board_that_nobody_knows_is_said_and_not_guessed() -> None:
    board, why = boardfile.match(Detected("Frobnicator 9", (), "riscv64", "x"), BOARDS.values())
    assert board is None
    assert "Frobnicator 9" in why and "riscv64" in why


def test_a_pc_is_named_by_its_firmware(tmp_path: Path) -> None:
    for name, text in (("sys_vendor", "ACME\n"), ("product_name", "Box 3\n")):
        (tmp_path / "sys/class/dmi/id").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/class/dmi/id" / name).write_text(text)
    assert boardfile.detect(tmp_path, "x86_64").model == "ACME Box 3"


def test_a_users_own_file_hides_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    shipped = (PLACES[0] / "raspberry-pi-4.toml").read_text()
    (tmp_path / "raspberry-pi-4.toml").write_text(shipped.replace("Raspberry Pi 4 Model B", "mine"))
    board, _ = boardfile.load("raspberry-pi-4", places=[tmp_path, *PLACES])
    assert board is not None
    assert board.hardware.title == "mine"
    with pytest.raises(ConfigError, match="there are"):
        boardfile.load("raspberry-pi-9", places=PLACES)


_REAL = os.access
LINES = st.lists(st.text(alphabet="ab=#[] ", max_size=8), max_size=3)


@given(st.lists(st.text(alphabet="ab=#[]\n ", max_size=20)).map("\n".join), LINES, LINES)
def test_a_block_is_set_once_replaced_in_its_place_and_taken_back(
    text: str, lines: list[str], other: list[str]
) -> None:
    once = with_block(text, lines)
    assert with_block(once, lines) == once
    assert with_block(with_block(text, other), lines) == once or not other or not lines
    taken = with_block(once, [])
    assert taken in (text, text + "\n")


@given(
    st.lists(st.sampled_from(["a", "b=1", "quiet", "root=/dev/x"]), max_size=4),
    st.lists(st.sampled_from(["psi=1", "quiet", "z"]), max_size=3, unique=True),
)
def test_words_join_the_one_line_once_and_leave_it_again(own: list[str], words: list[str]) -> None:
    text = " ".join(own) + "\nsecond\n"
    once = with_words(text, words)
    assert with_words(once, words) == once
    assert once.count("\n") == text.count("\n")
    assert set(words) <= set(once.partition("\n")[0].split())
    assert once.split().count("psi=1") <= 1
    assert with_words(once, []) == text


CMDLINE = Fragment(name="p", why="x", file=("/boot/firmware/cmdline.txt", "/boot/cmdline.txt"), words=("psi=1",))
CONFIG = Fragment(name="i", why="x", file=("/boot/config.txt",), lines=("[all]", "dtparam=i2c_arm=on"))
MADE = Fragment(name="m", why="x", file=("/etc/modules-load.d/edgert.conf",), create=True, lines=("i2c-dev",))
ALL = [CMDLINE, CONFIG, MADE]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/cmdline.txt").write_text("console=tty1 root=/dev/x\n")
    (tmp_path / "boot/config.txt").write_text("arm_64bit=1\n[pi4]\narm_boost=1\n")
    (tmp_path / "boot/config.txt").chmod(0o640)
    return tmp_path


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_is_set_can_be_set_again_and_undone_without_a_trace(root: Path) -> None:
    before = everything(root)
    changes = boardfile.plan(ALL, root)
    assert everything(root) == before, "a plan changes nothing"
    boardfile.carry_out(changes)
    assert (root / "boot/cmdline.txt").read_text() == "console=tty1 root=/dev/x edgert.begin psi=1 edgert.end\n"
    assert (root / "boot/config.txt").read_text().splitlines()[3:6] == [boardfile.BEGIN, "[all]", "dtparam=i2c_arm=on"]
    assert (root / "boot/config.txt").stat().st_mode & 0o777 == 0o640
    assert (root / f"boot/config.txt{BACKUP}").read_bytes() == before["boot/config.txt"]
    assert boardfile.plan(ALL, root) == []
    boardfile.carry_out(boardfile.plan_undo(ALL, root))
    assert everything(root) == before
    assert boardfile.plan_undo(ALL, root) == []


def test_what_the_user_changed_meanwhile_survives_undoing(root: Path) -> None:
    boardfile.carry_out(boardfile.plan(ALL, root))
    config = root / "boot/config.txt"
    config.write_text(config.read_text() + "[all]\nmine=1\n")
    boardfile.carry_out(boardfile.plan_undo(ALL, root))
    assert config.read_text() == "arm_64bit=1\n[pi4]\narm_boost=1\n[all]\nmine=1\n"
    assert (root / f"boot/config.txt{BACKUP}").exists(), "the text of before is still worth something"


def test_a_file_that_is_not_there_is_not_made_unless_the_fragment_says_so(tmp_path: Path) -> None:
    assert [change.path.name for change in boardfile.plan(ALL, tmp_path)] == ["edgert.conf"]


def test_a_text_that_is_none_is_left_alone(root: Path) -> None:
    (root / "boot/config.txt").write_bytes(b"\xff\x00")
    with pytest.raises(StoreError, match="not text"):
        boardfile.plan(ALL, root)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not write")
def test_without_permission_nothing_at_all_is_changed(folder: Path) -> None:
    folder.chmod(0o755)
    free, closed = folder / "free", folder / "config.txt"
    free.mkdir()
    free.chmod(0o777)
    closed.write_text("a=1\n")
    changes = [Change(free / "a", None, "x\n"), Change(closed, "a=1\n", "b=1\n")]
    os.seteuid(65534)
    try:
        # As a program would find it that was started by somebody else; access(2) itself asks for the real user.
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StoreError, match="run it as root") as raised:
            patch.setattr(os, "access", lambda path, mode: _REAL(path, mode, effective_ids=True))
            boardfile.carry_out(changes)
    finally:
        os.seteuid(0)
    assert isinstance(raised.value.__cause__, PermissionError)
    assert not (free / "a").exists()
    assert closed.read_text() == "a=1\n"
