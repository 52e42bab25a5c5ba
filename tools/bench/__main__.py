"""`python -m tools.bench NAME`: run one benchmark."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "overview": "all committed figures beside what was aimed at; measures nothing",
    "learning": "what 20 minutes on the device make of a student, with a teacher and without",
    "exits": "how much time early exits save, and cost the deepest one",
    "teacher": "how fast one replica of a teacher answers, by itself and through a broker",
    "rlink": "how much faster, and on how few bytes, a student learns from a teacher behind a bad link",
    "train": "what a training step costs on one core, against PyTorch",
    "fleet": "how many devices a broker holds, how they come back, and what power cuts, losses and nonsense do to them",
    "govern": "what one budget for everything brings on boards, against simpler rules and an oracle",
    "offload": "where to infer and with which model, against everything comparable and an oracle",
    "hybrid": "how few real samples Hybrid Learning needs, against tables, networks and least squares",
    "srole": "how long training jobs take when devices place them over one another, with shields and without",
    "rapidrl": "what early exits save and lose on Atari, a drone and MinAtar, against everything comparable",
}


def main() -> int:
    """Find the benchmark and hand it the rest of the command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        print("usage: python -m tools.bench NAME [options]; --help after the name\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:<10} {what}")
        return 2
    return int(importlib.import_module(f"tools.bench.{sys.argv[1]}").main(sys.argv[2:]))


raise SystemExit(main())
