"""The judge's world: SimGrid shares processors and links, this only tells it what to run.

A program of its own, because SimGrid comes with the system's Python: JSON lines in, JSON lines out. It imports nothing
of the project, so that what it does is its own. Each job is an actor that, step by step, lets its parts compute and
then moves what they exchange. Heat and paging slow a part from its next step on.
"""

import json
import sys
from typing import Any

from simgrid import Actor, Comm, Engine, NetZone, this_actor

LATENCY_S = 5e-4


class Cluster:
    """Hosts around a switch, and the jobs on them."""

    def __init__(self, engine: Engine, told: dict[str, Any]) -> None:
        """Build the platform from what the first line says."""
        self.nodes, self.hot, self.page = told["nodes"], told["hot_speed_frac"], told["page_bytes"]
        zone = NetZone.create_star_zone("lan")
        self.hosts = []
        for i, node in enumerate(self.nodes):
            host = zone.create_host(f"h{i}", node["speed"] * 1e9)
            host.core_count = int(node["cores"])
            link = zone.create_link(f"l{i}", node["link"])
            link.set_latency(LATENCY_S)
            zone.add_route(host.netpoint, None, None, None, [_in_route(link)], True)
            self.hosts.append(host)
        self.judge = zone.create_host("judge", 1e9)
        link = zone.create_link("judge", 1e12)
        zone.add_route(self.judge.netpoint, None, None, None, [_in_route(link)], True)
        zone.seal()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ended: list[tuple[float, str]] = []
        self.kept: list[Any] = []

    def slow(self, n: int) -> float:
        """By how much heat and paging slow a node down at present."""
        heat = memory = 0.0
        for job in self.jobs.values():
            if job["live"]:
                for where, _, cores, size in job["parts"]:
                    if where == n:
                        heat += cores * self.nodes[n]["watts"]
                        memory += size
        hot: float = self.hot if heat > self.nodes[n]["heat_w"] * 1.001 else 1.0
        pages: float = max(0.0, memory - self.nodes[n]["memory"]) / self.page
        return hot / (1 + pages)

    def conduct(self, name: str) -> None:
        """Run one job."""
        job = self.jobs[name]
        this_actor.sleep_for(job["delay_s"])
        job["live"] = True
        while job["left"] > 0:
            began = Engine.clock
            share = min(1.0, job["left"])
            todo = [[part] for part in job["parts"]] if job["layers"] else [job["parts"]]
            for parts in todo:
                # Where it is slow a step is long, and what slows it may end before it does.
                slices = max(1, min(16, round(1 / min(self.slow(part[0]) for part in parts))))
                for _ in range(slices):
                    for each in [self._exec(part, share / slices) for part in parts]:
                        each.wait()
            moves = [Comm.sendto_async(self.hosts[a], self.hosts[b], int(size * share)) for a, b, size in job["flows"]]
            self.kept += moves
            for each in moves:
                each.wait()
            job["left"] -= share
            job["step_s"] = (Engine.clock - began) / share
        self.ended.append((Engine.clock, name))
        del self.jobs[name]

    def _exec(self, part: list[Any], share: float) -> Any:
        n, work_s, _, _ = part
        made = this_actor.exec_init(work_s * share * 1e9 / self.slow(n))
        made.host = self.hosts[n]
        made.start()
        self.kept.append(made)  # collected while the simulation runs, an activity can block it for ever
        return made

    def serve(self) -> None:
        """Answer until there is nothing more to answer."""
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            if "advance" in asked:
                if asked["advance"] > Engine.clock:
                    this_actor.sleep_until(asked["advance"])
                ended, self.ended = self.ended, []
                left = {name: job["left"] * job["step_s"] for name, job in self.jobs.items()}
                print(json.dumps({"ended": ended, "left_s": left}), flush=True)
            elif "start" in asked:
                job = {**asked["start"], "live": False, "step_s": asked["start"]["step_s"]}
                self.jobs[job["id"]] = job
                job["actor"] = Actor.create(job["id"], self.judge, self.conduct, job["id"])
            else:
                job = self.jobs.pop(asked["stop"])
                job["actor"].kill()
                print(json.dumps({"left": job["left"]}), flush=True)
        Actor.kill_all()


def _in_route(link: Any) -> Any:
    from simgrid import LinkInRoute

    return LinkInRoute(link)


def main() -> None:
    """Read the platform, build it, and run."""
    told = json.loads(sys.stdin.readline())
    engine = Engine(["judge", "--log=root.thres:critical", "--cfg=network/model:CM02"])
    cluster = Cluster(engine, told)
    Actor.create("judge", cluster.judge, cluster.serve)
    engine.run()


main()
