"""Has something changed? A test on residuals that may be looked at after every request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
SLACK = 1.0
"""Standard deviations by which a mean may be off unnoticed: half the smallest jump that matters."""
ALARM = 10.0
"""Sum of excess that raises an alarm: with normal residuals once in about 10^5 looks at a stream."""
MOST = 4.0
"""One residual counts so much at most: a single answer that was lost is no change."""


class Cusum:
    """Cumulative sums of standardised residuals, upward and downward, of many streams at once.

    Attributes:
        up, down: (S,) sums so far, >= 0.
    """

    def __init__(self, streams: int) -> None:
        """Begin with no suspicion.

        Args:
            streams: how many are watched.

        Raises:
            nothing.
        """
        self.up, self.down = np.zeros(streams), np.zeros(streams)

    def feed(self, z: F64) -> npt.NDArray[np.bool_]:
        """Take one residual of each stream.

        Args:
            z: (S,) residuals in standard deviations; nan where a stream has none.

        Returns:
            (S,) which streams have changed; they begin anew.

        Raises:
            nothing.
        Source:
            Page 1954, Continuous inspection schemes, Biometrika 41, two-sided; clipped residuals after Huber.
        """
        seen = ~np.isnan(z)
        each = np.clip(np.where(seen, z, 0.0), -MOST, MOST)
        slack = np.where(seen, SLACK, 0.0)
        self.up = np.maximum(0.0, self.up + each - slack)
        self.down = np.maximum(0.0, self.down - each - slack)
        alarm = (self.up > ALARM) | (self.down > ALARM)
        self.up[alarm] = self.down[alarm] = 0.0
        return np.asarray(alarm)
