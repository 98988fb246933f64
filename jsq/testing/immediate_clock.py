"""The clock of immediate mode: it moves only when a test, or a job that waits, moves it."""

import math
import time
from datetime import datetime

from jsq.transport.server_clock import Clock


class VirtualClock(Clock):
    """The time in the block of immediate mode. It never moves back, and not by itself."""

    def __init__(self, start: datetime | None = None) -> None:
        super().__init__()
        self.learned = math.inf  # no request to a server makes it more exact
        self._now = round(time.time() if start is None else start.timestamp(), 3)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def move_to(self, moment: float) -> None:
        """Move to a time, in seconds since the epoch, unless it has passed."""
        self._now = max(self._now, round(moment, 6))
