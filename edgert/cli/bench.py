"""`edgert bench`: what a device costs on this machine; with a word after it, one thing in particular."""

from __future__ import annotations

import importlib
import sys

from edgert.cli import BAD_CONFIG, OK

PARTS = {
    "device": ("edgert.programs.bench", "a device that plays, asks and trains, next to bare onnxruntime (the default)"),
    "footprint": (
        "edgert.programs.footprint",
        "memory, start, wake-ups, CPU and writes of a device, beside their budgets",
    ),
    "soak": ("edgert.programs.soak", "a device under load for a long time: does anything grow?"),
    "board": (
        "edgert.programs.boardbench",
        "this board: cost tables, jitter, heat, training step, energy; --report FILE",
    ),
}


def main(argv: list[str]) -> int:
    """Run one benchmark; its own `--help` has its options."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: edgert bench [PART] [OPTION ...]\n\nMeasure on this machine.\n")
        for name, (_, what) in PARTS.items():
            print(f"  {name:<10} {what}")
        print("\n`edgert bench PART --help` has its options.")
        return OK
    if argv and not argv[0].startswith("-"):
        name, rest = argv[0], argv[1:]
    else:
        name, rest = "device", argv
    if name not in PARTS:
        print(f"edgert bench: no part {name!r}; choose one of {', '.join(PARTS)}", file=sys.stderr)
        return BAD_CONFIG
    return int(importlib.import_module(PARTS[name][0]).main(rest))
