"""The rules of the house that no linter knows. Reads source only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
FILES = sorted((HOUSE / "edgert").rglob("*.py"))
MAX_LINES = 600

CORE = (
    "offers",
    "inference",
    "placing",
    "wire",
    "tables",
    "hardware",
    "sections",
    "config",
    "kernels",
    "nets",
    "onnxfile",
    "quant",
    "archive",
    "bundle",
    "modelfile",
    "policy",
    "learn",
    "knowledge",
    "govern",
    "fleet",
    "offload",
    "placement",
    "control",
    "guard",
    "device",
)
BANNED_CALLS = ("open", "print", "input", "breakpoint", "datetime.now", "datetime.utcnow", "date.today", "time.time")
BANNED_MODULES = ("np.random", "numpy.random")
BANNED_NUMPY = ("np.load", "np.save", "np.savez", "np.savez_compressed", "np.fromfile", "np.memmap", "np.loadtxt")

UNITS = ("_s", "_hz", "_bytes", "_frac", "_c", "_j", "_w", "_v", "_a", "_ns", "_bytes_per_s")
DIMENSIONLESS = {
    "gamma", "learning_rate", "distill_weight", "td_weight", "temperature", "threshold", "thresholds", "scale", "value",
    "x", "rate", "epsilon", "eps", "beta1", "beta2", "weight", "delta", "tau", "alpha", "loss", "q", "u", "lr", "logit",
    "decay", "max_grad_norm", "squared", "clip", "entropy_weight",
    "allowed_regret", "claim", "return_before", "return_after",  # in the unit of a return, whatever the plant pays in
}  # fmt: skip


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def is_core(path: Path) -> bool:
    return path.relative_to(HOUSE / "edgert").with_suffix("").parts[0] in CORE


CORE_FILES = [path for path in FILES if is_core(path)]
TOLD_FILES = [path for path in CORE_FILES if path.name == "__init__.py" or not path.name.startswith("_")]


def public_functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in module.body:
        inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
        for each in (node, *inside):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_"):
                yield each


def missing_sections(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    if {"property", "functools.cached_property"} & {ast.unparse(each) for each in function.decorator_list}:
        return []
    taken = [arg for arg in (*function.args.posonlyargs, *function.args.args) if arg.arg not in ("self", "cls")]
    taken += [*function.args.kwonlyargs, *filter(None, (function.args.vararg, function.args.kwarg))]
    returns = not (isinstance(function.returns, ast.Constant) and function.returns.value is None)
    needed = {"Args": bool(taken), "Returns": returns, "Raises": True, "Source": True}
    doc = ast.get_docstring(function) or ""
    if re.search(rf"see `[A-Z]\w+\.{function.name}`", doc):  # told once, in the Protocol
        needed = {"Source": True}
    return [section for section, needs in needed.items() if needs and f"{section}:" not in doc]


def test_this_test_sees_the_house() -> None:
    assert any(is_core(path) for path in FILES)
    assert HOUSE / "edgert" / "govern" / "budget.py" in CORE_FILES


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_are_small(path: Path) -> None:
    assert path.read_text().count("\n") <= MAX_LINES


@pytest.mark.parametrize("path", [path for path in FILES if not path.name.startswith("_")], ids=name)
def test_every_module_has_its_mirror(path: Path) -> None:
    if path.name in ("errors.py", "values.py", "bus.py"):
        pytest.skip("declarations only: nothing in it can be wrong by itself")
    mirror = HOUSE / "tests" / path.relative_to(HOUSE / "edgert").with_name(f"test_{path.name}")
    assert mirror.exists(), f"{name(path)} needs {name(mirror)}"


@pytest.mark.parametrize("path", TOLD_FILES, ids=name)
def test_public_functions_of_the_core_say_what_they_take_give_and_stand_on(path: Path) -> None:
    faults = [f"{f.name}: no {', '.join(gaps)}" for f in public_functions(tree(path)) if (gaps := missing_sections(f))]
    assert not faults


@pytest.mark.parametrize("path", CORE_FILES, ids=name)
def test_the_core_asks_no_clock_no_dice_and_no_file(path: Path) -> None:
    calls = [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    faults = [
        f"line {line}: {call}()"
        for line, call in calls
        if call.removeprefix("datetime.") in BANNED_CALLS
        or call in (*BANNED_CALLS, *BANNED_NUMPY)
        or call.startswith(tuple(f"{module}." for module in BANNED_MODULES))
    ]
    assert not faults


@pytest.mark.parametrize("path", TOLD_FILES, ids=name)
def test_floats_of_the_core_name_their_unit(path: Path) -> None:
    faults = [
        f"{function.name}({arg.arg}: float)"
        for function in public_functions(tree(path))
        for arg in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if arg.annotation is not None
        and ast.unparse(arg.annotation) in ("float", "float | None")
        and not arg.arg.endswith(UNITS)
        and arg.arg not in DIMENSIONLESS
    ]
    assert not faults, "add the unit to the name, or list the name as dimensionless"


def test_no_file_names_the_machine_it_was_written_on() -> None:
    own = Path(__file__).resolve()
    here = [f"{folder}/".encode() for folder in (HOUSE, Path.home())]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    faults = []
    for line in listed.stdout.splitlines():
        path = HOUSE / line
        if path.is_file() and path.resolve() != own and path.suffix not in (".png", ".so"):
            faults += [line for word in here if word in path.read_bytes()]
    assert not faults


def test_the_supervisor_imports_no_numpy() -> None:
    code = "import edgert.programs.supervisor, sys; assert 'numpy' not in sys.modules, 'the supervisor imports numpy'"
    found = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
