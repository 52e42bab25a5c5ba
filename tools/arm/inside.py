"""What must be the same on every machine: the actions of the shipped bundles, and the bytes of the codec.

Run by the Python of the machine to be judged. Only edgert and the standard library are needed.

A runtime that rounds as the reference does gives the reference's actions. tflite-runtime does not: its XNNPACK leaves
the int8 layers to TFLite's own kernels, whose fixed-point scaling rounds in other places. Where two actions are worth
the same within the bundle's bound, which opening it checks, it may take the other one, and then does so everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgert import kernels
from edgert.errors import EdgertError
from edgert.kernels import codec as coder
from edgert.knowledge import codec
from edgert.policy import artifact
from edgert.policy.exits import effective_thresholds
from edgert.ports.runtime import PACKAGES, Kind, open_runtime

GAMES = ("breakout", "drone", "pong", "space_invaders")
OWN: tuple[Kind, ...] = ("tflite",)
"""Runtimes whose actions are their own, and in the golden file under their name; those of all others are numpy's."""
BUNDLES = tuple(f"{game}{who}.edgert" for game in GAMES for who in ("", "-teacher"))


def actions(policy: artifact.Policy, kind: Kind) -> str:
    """What a runtime answers to every golden observation: action and exit, a pair of digits each.

    Args:
        policy: loaded; its runtime is verified against the bundle's own answers as it is opened.
        kind: the runtime.
    """
    runtime = open_runtime(policy, kind)
    logits = effective_thresholds(policy.manifest.thresholds, policy.spec.n_exits - 1)
    answers = [runtime.infer(obs, logits) for obs in policy.golden_obs]
    runtime.close()
    return " ".join(f"{int(np.argmax(answer.head[:-1]))}{answer.exit}" for answer in answers)


def codes(policy: artifact.Policy) -> dict[str, str]:
    """SHA-256 of what the codec of our own makes of a bundle's golden observations and values."""
    made = {
        "observations": codec.encode_obs_mixed(policy.golden_obs),
        "values": codec.encode_q_mixed(np.ascontiguousarray(policy.golden_head[:, -1, :-1])),
    }
    again = codec.decode_obs_mixed(made["observations"], len(policy.golden_obs), policy.golden_obs.shape[1:])
    assert np.array_equal(again, policy.golden_obs), "the codec is lossless"
    return {name: hashlib.sha256(data).hexdigest() for name, data in made.items()}


def facts(models: Path) -> dict[str, Any]:
    """Bundle -> its actions by the reference and by each of `OWN`, and the codes of its vectors."""
    found = {}
    for name in BUNDLES:
        policy = artifact.load((models / name).read_bytes())
        kinds: tuple[Kind, ...] = ("numpy", *OWN)
        found[name] = {"actions": {kind: actions(policy, kind) for kind in kinds}, **codes(policy)}
    return found


def apart(golden: dict[str, Any], kind: Kind) -> tuple[int, int]:
    """For how many golden observations a runtime and the reference differ in action or exit, and of how many."""
    pairs = [
        (one, other)
        for wants in golden.values()
        for one, other in zip(wants["actions"]["numpy"].split(), wants["actions"].get(kind, "").split(), strict=False)
    ]
    return sum(one != other for one, other in pairs), len(pairs)


def installed() -> list[Kind]:
    """The runtimes of this machine."""
    return [kind for kind, package in PACKAGES.items() if kind == "numpy" or find_spec(package) is not None]


def compare(golden: dict[str, Any], models: Path, wanted: list[Kind]) -> list[str]:
    """Hold this machine to what another one found.

    Args:
        golden: `facts` of the other.
        models: folder of bundles.
        wanted: runtimes that must be there.

    Returns:
        What differs; empty when nothing does.
    """
    faults = []
    if not kernels.NATIVE or not coder.NATIVE:
        faults.append("the C kernels are not in use")
    for kind in wanted:
        for name, wants in golden.items():
            try:
                policy = artifact.load((models / name).read_bytes())
                same = actions(policy, kind) == wants["actions"].get(kind, wants["actions"]["numpy"])
            except EdgertError as error:
                faults.append(f"{name} on {kind}: {error}")
                continue
            if not same:
                faults.append(f"{name} on {kind}: other actions")
        print(f"  {kind}: {len(golden)} bundles", flush=True)
    for name, wants in golden.items():
        found = codes(artifact.load((models / name).read_bytes()))
        faults += [f"{name}: other bytes of {part}" for part in found if found[part] != wants[part]]
    return faults


def main(argv: list[str] | None = None) -> int:
    """Write the golden file, or compare with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write the file, as this machine has it; needs tflite")
    parser.add_argument("--runtimes", nargs="+", default=["numpy"])
    args = parser.parse_args(argv)
    if args.write:
        args.golden.write_text(json.dumps(facts(args.models), indent=1) + "\n")
        return 0
    faults = compare(json.loads(args.golden.read_text()), args.models, args.runtimes)
    for fault in faults:
        print(f"  DIFFERS: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
