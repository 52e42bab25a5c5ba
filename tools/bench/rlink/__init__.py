"""Learning from a remote teacher over a bad link: `python -m tools.bench rlink`.

`rlink codec` is about bytes, `rlink foreign` about students of another library.
"""

from __future__ import annotations

import importlib

PARTS = ("codec", "foreign")


def main(argv: list[str]) -> int:
    """Hand the command line to the part that it names, or to the runs."""
    # Imported only now: the emulated link is a module of this package and a process of its own, which needs none of it.
    part, rest = (argv[0], argv[1:]) if argv and argv[0] in PARTS else ("command", argv)
    return int(importlib.import_module(f"tools.bench.rlink.{part}").main(rest))
