"""What numpy's OpenBLAS is told before it loads: one thread, and the kernels that the processor can run.

OpenBLAS 0.3.31 takes Zen 4 and Zen 5 for processors without AVX-512 and multiplies matrices at half their speed. Boards
with ARM processors need none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}  # what OpenBLAS's SkylakeX kernels use


def environment(given: Mapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Variables to set before numpy is imported; what is set already stays as it is.

    Args:
        given: the environment.
        cpuinfo: where Linux describes the processor.

    Returns:
        Only what is to be added.
    """
    wanted = {"OPENBLAS_NUM_THREADS": "1"}
    try:
        lines = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    processor = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if processor.get("vendor_id") == "AuthenticAMD" and set(processor.get("flags", "").split()) >= _AVX512:
        wanted["OPENBLAS_CORETYPE"] = "SkylakeX"
    return {name: value for name, value in wanted.items() if name not in given}
