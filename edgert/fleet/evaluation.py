"""How well a network does from now on, as the reports of its actor tell."""

from __future__ import annotations

import msgspec

from edgert.values import ActorReport


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation as far as it has come; counters of reports begin anew with each actor.

    Attributes:
        wanted: episodes to see, or windows.
        windows: it is windows: stretches between two reports in which there were rewards.
        last: the newest report that was counted.
        returns: of the episodes seen.
        rewards: mean reward a step of the windows seen.
        ticks, missed: while it was watched.
    """

    wanted: int
    windows: bool = False
    last: ActorReport | None = None
    returns: tuple[float, ...] = ()
    rewards: tuple[float, ...] = ()
    ticks: int = 0
    missed: int = 0

    def seen(self, report: ActorReport) -> Watched:
        """Take in a report.

        Args:
            report: the newest.

        Returns:
            The evaluation after; of an actor that was not seen before only the counters are noted.

        Raises:
            nothing.
        Source:
            ours: what an actor did before it was watched is not of this evaluation.
        """
        last = self.last
        if last is None or last.pid != report.pid:
            return msgspec.structs.replace(self, last=report)
        ended = max(0, min(report.episodes - last.episodes, len(report.returns)))
        rewarded = report.rewarded - last.rewarded
        rewards = ((report.reward - last.reward) / rewarded,) if rewarded > 0 else ()
        return msgspec.structs.replace(
            self,
            last=report,
            returns=(*self.returns, *report.returns[len(report.returns) - ended :]),
            rewards=(*self.rewards, *rewards),
            ticks=self.ticks + report.ticks - last.ticks,
            missed=self.missed + report.missed - last.missed,
        )

    def result(self) -> dict[str, object] | None:
        """What came of it.

        Returns:
            Named figures; None while more is to be seen.

        Raises:
            nothing.
        Source:
            ours.
        """
        figures = self.rewards if self.windows else self.returns
        if len(figures) < self.wanted or self.last is None:
            return None
        return {
            "mean": sum(figures) / len(figures),
            "of": "rewards a step" if self.windows else "returns",
            "n": len(figures),
            "missed_frac": self.missed / max(1, self.ticks),
            "generation": self.last.generation,
        }
