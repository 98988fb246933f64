"""The server's clock, as far as it is known here: deadlines, limits and schedules are judged by it."""

import functools
import math
import time
from datetime import UTC, datetime

from jsq.codec import events

TOO_SLOW = 1.0
"""Seconds after which an answer tells too little of the time at which it was given."""

DRIFT = 0.0002
"""Seconds by which two clocks may part in each second: an old answer tells less than a new one."""

PAST = datetime.fromtimestamp(0, UTC)
"""A moment that has passed by any clock. What is now by ours may come later by the server's."""

steady = functools.partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Seconds on a clock that nobody sets."""


class Clock:
    """How far the server's clock is ahead of ours, learned from the answers that tell the time.

    The answer that came soonest tells it best: a busy loop reads many of them late. In between it goes by a
    clock that nobody sets: ours may be put right, or wrong, at any moment. It may be off by the seconds of
    `doubt`; `learned` is when it was told last, in `time.monotonic`. `steady() + offset` is its time.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.doubt = 0.0
        self.learned = -math.inf
        self._apart = apart()
        self.offset = self._apart
        self._best = TOO_SLOW
        self._answered = 0.0

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return steady() + self.offset

    def moment(self) -> datetime:
        """The time by the server's clock."""
        return datetime.fromtimestamp(self.now(), UTC)

    def update(self, timestamp: str, asked: float, answered: float) -> None:
        """Learn from an answer that told the time, between two moments of our own clock."""
        if not 0 <= answered - asked < TOO_SLOW:
            return
        self.learned, now_apart = time.monotonic(), apart()
        ahead, doubt = (
            events.parse_time(timestamp).timestamp() - (asked + answered) / 2,
            (answered - asked) / 2,
        )
        known = self.ahead + self._apart - now_apart
        old = self._best + DRIFT * abs(answered - self._answered)
        # An answer that cannot be true beside the best one shows that a clock was set.
        if doubt <= old or abs(ahead - known) > doubt + old:
            self.ahead, self._apart, self._best, self._answered, old = (
                ahead,
                now_apart,
                doubt,
                answered,
                doubt,
            )
            self.offset = self._apart + self.ahead
        self.doubt = old


def apart() -> float:
    """How far our clock is ahead of the one that nobody sets."""
    return time.time() - steady()
