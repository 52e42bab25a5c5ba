"""Builds the one C file of edgert where a compiler works; everything else is in pyproject.toml."""

from __future__ import annotations

import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# A free-threaded Python has no limited API.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")


class OptionalBuildExt(build_ext):
    """A board without a compiler gets the numpy twin, not a failed install."""

    def run(self) -> None:
        """Build, or say what failed and go on without the extension."""
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:
            print(
                f"WARNING: the C kernels of edgert were not built ({error}). edgert works without them, but learns "
                "more slowly. To mend it, install a C compiler and the Python headers, and reinstall.",
                file=sys.stderr,
            )
            self.extensions = []
            self.distribution.ext_modules = []


class HonestWheel(bdist_wheel):
    """Tags the wheel after the build, when it is known whether an extension is inside."""

    def run(self) -> None:
        """Build the extension first, so that a wheel without it is tagged as pure."""
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setup(
    ext_modules=[
        Extension(
            "edgert.kernels._kernels",
            ["edgert/kernels/_kernels.c"],
            define_macros=[("Py_LIMITED_API", "0x030a0000")] if LIMITED else [],
            py_limited_api=LIMITED,
            # No fused multiply-add: the results must equal the twin's. No errno from sqrtf: it keeps the loop scalar.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno"],
        )
    ],
    cmdclass={"build_ext": OptionalBuildExt, "bdist_wheel": HonestWheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
)
