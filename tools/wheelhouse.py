"""A folder from which a board installs edgert without a network: every wheel, pinned, with its hash.

What fits together is decided for the board (its Python, its C library, 64-bit ARM), not for the machine that this runs
on; uv decides it. Then pip fetches the wheels, and refuses one whose hash is another.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgert.errors import ArtifactError, EdgertError, UsageError
from tools import wheels
from tools.bill import Part, bill

GLIBCS = {"3.10": (2, 35), "3.11": (2, 36), "3.12": (2, 39), "3.13": (2, 40), "3.14": (2, 40)}
"""Python -> the C library of the system that it is usual on: JetPack 6, Raspberry Pi OS bookworm, Ubuntu 24.04,
Raspberry Pi OS trixie (2.41; 2.40 is the newest that uv knows)."""
EXTRAS = ("onnx", "litert", "tflite", "ui", "i2c", "trust")
"""What a board may want; the others are for workstations."""
RUNTIMES = {"onnx": "onnxruntime", "litert": "ai-edge-litert", "tflite": "tflite-runtime"}
UPPER = "backports-strenum<1.3; python_version >= '3.11'\n"
"""What LiteRT asks for has an upper bound in its Requires-Python, which pip obeys and uv does not."""
README = wheels.HOUSE / "README.md"
TABLE = re.compile(r"(?<=<!-- MATRIX:BEGIN python -m tools\.wheelhouse --matrix -->\n).*?(?=<!-- MATRIX:END -->)", re.S)


def resolve(python: str, extras: Sequence[str], *, arch: str = "aarch64", hashes: bool = True) -> str:
    """Decide which versions of everything go together on a board.

    Args:
        python: such as "3.11", key of `GLIBCS`.
        extras: of `EXTRAS`.
        arch: aarch64 or x86_64.
        hashes: with the SHA-256 of each file.

    Returns:
        Lines of a requirements file, edgert itself not among them.

    Raises:
        ArtifactError: nothing goes together; the message is uv's.
        UsageError: uv is not installed.
    """
    libc = "_".join(map(str, GLIBCS[python]))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--no-python-downloads", "--python", sys.executable, "--python-version", python]
    command += ["--python-platform", f"{arch}-manylinux_{libc}", "--only-binary", ":all:"]
    command += ["--generate-hashes"] if hashes else []
    command += [argument for extra in extras for argument in ("--extra", extra)]
    command += ["--constraint", "-", str(wheels.HOUSE / "pyproject.toml")]
    # Another folder's uv.toml or a variable must not change what is decided.
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    told = subprocess.run(command, input=UPPER, capture_output=True, text=True, check=False, env=environment)
    if "No module named uv" in told.stderr:
        raise UsageError("uv is not installed: pip install -e '.[release]'")
    if told.returncode:
        raise ArtifactError(f"Python {python}, {', '.join(extras) or 'no extra'}: {told.stderr.strip()}")
    return told.stdout


def tags(python: str, arch: str) -> list[str]:
    """The options that make pip fetch for a board: its Python, its ABIs, and every C library up to its own."""
    major, minor = GLIBCS[python]
    platforms = [f"manylinux_{major}_{older}_{arch}" for older in range(minor, 16, -1)]
    platforms += [f"manylinux2014_{arch}", "any"]
    bare = python.replace(".", "")
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    options += [argument for abi in (f"cp{bare}", "abi3", "none") for argument in ("--abi", abi)]
    return options + [argument for platform in platforms for argument in ("--platform", platform)]


def gather(python: str, extras: Sequence[str], out: Path, *, arch: str, wheel: Path) -> list[Part]:
    """Fill a folder: wheels, `requirements.txt` with hashes, `install.sh`, bill of materials.

    Args:
        python: key of `GLIBCS`.
        extras: of `EXTRAS`.
        out: the folder; what is in it goes.
        arch: aarch64 or x86_64.
        wheel: edgert's own, for that arch.

    Returns:
        What is in the folder now.

    Raises:
        ArtifactError: it cannot be resolved or fetched.
        UsageError: a tool is missing.
    """
    pinned = resolve(python, extras, arch=arch)
    with tempfile.TemporaryDirectory(prefix="edgert-house-") as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(pinned)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--dest", folder, "-r", str(wanted), *tags(python, arch)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise ArtifactError(f"pip could not fetch the wheels: {told.stderr.strip()[-2000:]}")
        shutil.copy(wheel, folder)
        parts = sorted(Part.of(path) for path in Path(folder).glob("*.whl"))
        # One line and one hash for each: the file that is in the folder, not all that the maker offers.
        lines = [f"{part.name}=={part.version} --hash=sha256:{part.sha256}\n" for part in parts]
        wanted.write_text("".join(lines))
        Path(folder, "edgert.cdx.json").write_text(bill(parts, time_s=int(wheels.epoch())))
        Path(folder, "install.sh").write_text(INSTALL.format(python=python))
        Path(folder, "install.sh").chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)
    return parts


INSTALL = """#!/bin/sh
# On the board: sh install.sh [FOLDER] makes the virtual environment FOLDER (/opt/edgert); no network is needed.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python{python} -m venv "${{1:-/opt/edgert}}"
"${{1:-/opt/edgert}}/bin/python" -m pip --disable-pip-version-check install --no-index --find-links "$here" \\
  --require-hashes -r "$here/requirements.txt"
"""


def matrix() -> dict[tuple[str, str], str]:
    """(Python, extra) -> the version of its runtime and of numpy, or why there is none."""
    asked = [(python, extra) for python in GLIBCS for extra in ("", *RUNTIMES)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(asked, pool.map(lambda pair: _cell(*pair), asked), strict=True))


def _cell(python: str, extra: str) -> str:
    # A board has screen, buses and keys as well: with them it must still go together.
    extras = [extra] * bool(extra) + ["ui", "i2c", "trust"]
    try:
        pinned = resolve(python, extras, hashes=False)
    except ArtifactError:
        return "none"
    versions = dict(line.split("==") for line in pinned.split() if "==" in line)
    if extra and RUNTIMES[extra] not in versions:
        return "none"
    return f"{versions[RUNTIMES[extra]]}, numpy {versions['numpy']}" if extra else f"numpy {versions['numpy']}"


def table(found: dict[tuple[str, str], str]) -> str:
    """The matrix as Markdown."""
    heads = ["Python", "glibc", "no runtime", *(f"`[{extra}]`" for extra in RUNTIMES)]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for python, libc in GLIBCS.items():
        cells = [found[python, extra] for extra in ("", *RUNTIMES)]
        rows.append("| " + " | ".join([python, ".".join(map(str, libc)), *cells]) + " |")
    return "\n".join(rows) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Gather a wheelhouse, or tell what each Python can have."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheelhouse", description=__doc__.splitlines()[0])
    parser.add_argument("--python", choices=GLIBCS, default="3.11", help="of the board (3.11)")
    parser.add_argument("--extra", action="append", choices=EXTRAS, default=[], help="may be repeated")
    parser.add_argument("--arch", choices=("aarch64", "x86_64"), default="aarch64")
    parser.add_argument("--wheel", type=Path, help="edgert's own wheel; without it one is built")
    parser.add_argument("--out", type=Path, help="folder (dist/wheelhouse-ARCH-PYTHON)")
    parser.add_argument("--matrix", action="store_true", help="instead: what each Python can have; into README.md")
    args = parser.parse_args(argv)
    try:
        if args.matrix:
            print(f"resolving {len(GLIBCS) * (1 + len(RUNTIMES))} combinations", flush=True)
            made = table(matrix())
            README.write_text(TABLE.sub(lambda _: made, README.read_text()))
            print(made, end="")
            return 0
        out = args.out or wheels.HOUSE / "dist" / f"wheelhouse-{args.arch}-{args.python}"
        with tempfile.TemporaryDirectory() as folder:
            if args.wheel is None:
                print(f"{args.arch}: compiling", flush=True)
            wheel = args.wheel or wheels.build(args.arch, Path(folder))
            print(f"resolving and fetching for Python {args.python}", flush=True)
            parts = gather(args.python, args.extra, out, arch=args.arch, wheel=wheel)
    except EdgertError as error:
        print(f"tools.wheelhouse: {error}", file=sys.stderr)
        return 1
    for part in parts:
        print(f"  {part.name} {part.version}")
    size_bytes = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {len(parts)} wheels, {size_bytes / 1e6:.0f} MB; on the board: sh install.sh")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
