"""What must be the same on every machine: the actions of the shipped bundles, and the bytes of the codec.

Run by the Python of the machine to be judged. Only edgert and the standard library are needed.
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


def facts(models: Path, kind: Kind) -> dict[str, Any]:
    """Bundle -> its actions and the codes of its vectors."""
    found = {}
    for name in BUNDLES:
        policy = artifact.load((models / name).read_bytes())
        found[name] = {"actions": actions(policy, kind), **codes(policy)}
    return found


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
                same = actions(policy, kind) == wants["actions"]
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
    parser.add_argument("--write", action="store_true", help="write the file, as this machine's numpy runtime has it")
    parser.add_argument("--runtimes", nargs="+", default=["numpy"])
    args = parser.parse_args(argv)
    if args.write:
        args.golden.write_text(json.dumps(facts(args.models, "numpy"), indent=1) + "\n")
        return 0
    faults = compare(json.loads(args.golden.read_text()), args.models, args.runtimes)
    for fault in faults:
        print(f"  DIFFERS: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
