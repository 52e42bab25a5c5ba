from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uv", reason="uv is not installed (pip install -e '.[release]'): no resolution was tried")
pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (pip install -e '.[release]')")

import itertools

from edgert.errors import ArtifactError
from tools import wheelhouse


def resolved(python: str, *extras: str) -> dict[str, str]:
    try:
        text = wheelhouse.resolve(python, extras, hashes=False)
    except ArtifactError as error:
        if "Failed to fetch" in str(error) or "error sending request" in str(error):
            pytest.skip("the package index does not answer: no resolution was tried")
        raise
    return dict(line.split("==") for line in text.split() if "==" in line)


def test_a_board_with_python_3_10_gets_the_last_onnxruntime_for_it() -> None:
    found = resolved("3.10", "onnx", "ui", "i2c", "trust")
    assert found["onnxruntime"].startswith("1.23.") and "tomli" in found


def test_a_newer_board_needs_no_tomli_and_gets_a_newer_onnxruntime() -> None:
    found = resolved("3.13", "onnx")
    assert "tomli" not in found and int(found["onnxruntime"].split(".")[1]) > 23


def test_litert_is_resolved_as_pip_will_take_it() -> None:
    assert resolved("3.11", "litert")["backports-strenum"].startswith("1.2.")


def test_tflite_runtime_keeps_to_an_old_numpy_and_ends_with_python_3_11() -> None:
    assert resolved("3.11", "tflite")["numpy"].startswith("1.")
    with pytest.raises(ArtifactError, match=r"Python 3\.13, tflite"):
        resolved("3.13", "tflite")


def test_pip_is_told_the_board_not_this_machine() -> None:
    options = wheelhouse.tags("3.11", "aarch64")
    platforms = [value for key, value in itertools.pairwise(options) if key == "--platform"]
    assert platforms[0] == "manylinux_2_36_aarch64" and platforms[-1] == "any"
    assert "manylinux_2_17_aarch64" in platforms and not [name for name in platforms if "x86" in name]
    assert "cp311" in options and "abi3" in options and "--only-binary=:all:" in options


def test_the_matrix_is_a_table_of_every_python_and_runtime() -> None:
    found = {
        (python, extra): f"{python}{extra}" for python in wheelhouse.GLIBCS for extra in ("", *wheelhouse.RUNTIMES)
    }
    rows = wheelhouse.table(found).splitlines()
    assert len(rows) == 2 + len(wheelhouse.GLIBCS)
    assert rows[3] == "| 3.11 | 2.36 | 3.11 | 3.11onnx | 3.11litert | 3.11tflite |"


def test_the_readme_says_which_runtime_each_python_can_have() -> None:
    written = wheelhouse.TABLE.search(wheelhouse.README.read_text())
    assert written is not None, "README.md lacks the marks of the table"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in written[0].splitlines()[2:] if line]
    assert [row[0] for row in rows] == list(wheelhouse.GLIBCS), "run `python -m tools.wheelhouse --matrix`"
    resolved("3.11")  # or nothing is to be had of the index
    said = {
        (row[0], extra): cell for row in rows for extra, cell in zip(("", *wheelhouse.RUNTIMES), row[2:], strict=True)
    }
    found = wheelhouse.matrix()
    # Newer versions come by themselves; that there is one, or none, may not change unsaid.
    none = [{pair for pair, cell in cells.items() if cell == "none"} for cells in (said, found)]
    assert said.keys() == found.keys() and none[0] == none[1], "run `python -m tools.wheelhouse --matrix`"


def test_the_script_for_the_board_uses_no_network_and_checks_hashes(tmp_path: Path) -> None:
    text = wheelhouse.INSTALL.format(python="3.11")
    assert "--no-index" in text and "--require-hashes" in text and "python3.11 -m venv" in text
