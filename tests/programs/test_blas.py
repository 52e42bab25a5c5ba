from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgert.programs.blas import environment

ALL = "fpu avx512f avx512cd avx512bw avx512dq avx512vl"
KERNELS = {"OPENBLAS_CORETYPE": "SkylakeX"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: {ALL}\n\nprocessor\t: 1\n", KERNELS),
        (f"vendor_id\t: AuthenticAMD\nflags\t\t: {ALL.replace('avx512vl', 'avx2')}\n", {}),
        (f"vendor_id\t: GenuineIntel\nflags\t\t: {ALL}\n", {}),
        ("processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\n", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_amd_with_avx512_is_told_and_nobody_else(tmp_path: Path, text: str | None, wanted: dict[str, str]) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert environment({}, cpuinfo) == {"OPENBLAS_NUM_THREADS": "1", **wanted}
    chosen = {"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"}
    assert environment(chosen, cpuinfo) == {}


def test_it_comes_before_numpy() -> None:
    code = "import sys, edgert.programs.blas; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False"]
