"""How the C files of edgert are built where a compiler works; pyproject.toml names these two classes."""

from __future__ import annotations

import sys
import sysconfig

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
"""A free-threaded Python has no limited API."""


class OptionalBuildExt(build_ext):
    """A board without a compiler gets the numpy twin, not a failed install."""

    def run(self) -> None:
        """Build, or say what failed and go on without the extension."""
        if not LIMITED:
            for extension in self.extensions:
                extension.define_macros, extension.py_limited_api = [], False
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

    def finalize_options(self) -> None:
        """One wheel for every Python from 3.10 on, where there is a limited API."""
        self.py_limited_api = "cp310" if LIMITED else ""
        super().finalize_options()

    def run(self) -> None:
        """Build the extension first, so that a wheel without it is tagged as pure."""
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()
