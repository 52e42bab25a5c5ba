"""SimGrid as a world: a child process that runs under the system's Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgert.errors import UsageError
from tools.bench.srole.boards import HOT_SPEED_FRAC, PAGE_BYTES_PER_S, PASS_S, Node
from tools.bench.srole.fluid import Ended, Start

SERVER = Path(__file__).with_name("simgrid_server.py")
PYTHON = "/usr/bin/python3"  # where the distribution puts python3-simgrid


def available() -> bool:
    """Whether SimGrid is installed."""
    found = shutil.which(PYTHON)
    return (
        found is not None
        and not subprocess.run([PYTHON, "-c", "import simgrid"], capture_output=True, check=False).returncode
    )


class SimGrid:
    """The world of `fluid.Fluid` again, run by SimGrid."""

    def __init__(self, nodes: list[Node]) -> None:
        """Start the child and tell it the platform.

        Raises:
            UsageError: SimGrid is not installed.
        """
        self.nodes, self.now_s = nodes, 0.0
        self.left: dict[str, float] = {}
        self.child = subprocess.Popen(
            [PYTHON, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._say(
            {
                "nodes": [
                    {
                        "cores": node.cores,
                        "speed": node.speed,
                        "memory": node.memory_bytes,
                        "link": node.link_bytes_per_s,
                        "heat_w": node.heat_w,
                        "watts": node.watts_per_core,
                    }
                    for node in nodes
                ],
                "hot_speed_frac": HOT_SPEED_FRAC,
                "page_bytes": PAGE_BYTES_PER_S * PASS_S,
            }
        )
        self._hear()

    def _say(self, message: dict[str, Any]) -> None:
        if self.child.stdin is None:
            raise UsageError("the judge has no input")
        self.child.stdin.write(json.dumps(message) + "\n")
        self.child.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        line = self.child.stdout.readline() if self.child.stdout else ""
        if not line:
            raise UsageError(f"the judge fell silent: apt-get install python3-simgrid, and try {PYTHON} {SERVER}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def start(self, start: Start) -> None:
        """Run a job from `delay_s` on."""
        busy = [work_s / self.nodes[n].speed for n, work_s, _, _ in start.parts]
        step_s = sum(busy) if start.layers else max(busy)
        self.left[start.id] = start.delay_s + start.steps * step_s
        made = {
            "id": start.id,
            "layers": start.layers,
            "left": start.steps,
            "parts": start.parts,
            "flows": start.flows,
            "delay_s": start.delay_s,
            "step_s": step_s,
        }
        self._say({"start": made})

    def stop(self, job: str) -> float:
        """End a job before its end; gives the steps that are left."""
        self._say({"stop": job})
        self.left.pop(job, None)
        return float(self._hear()["left"])

    def left_s(self, job: str) -> float:
        """How long a job would still take at the pace of its last step."""
        return self.left.get(job, 0.0)

    def advance(self, until_s: float) -> list[Ended]:
        """Let time pass; gives the jobs that ended, in order."""
        self._say({"advance": until_s})
        heard = self._hear()
        self.now_s = until_s
        self.left = {str(name): float(left) for name, left in heard["left_s"].items()}
        return [Ended(float(at_s), str(name)) for at_s, name in heard["ended"]]

    def close(self) -> None:
        """End the child."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        self.child.kill()
        self.child.wait()
        if self.child.stdout is not None:
            self.child.stdout.close()
