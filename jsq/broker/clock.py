"""The server's clock, as far as it can be told from here: deadlines and limits are judged by it."""

import math
import time

from jsq.codec import events

TOO_SLOW = 1.0
"""Seconds after which an answer tells too little of the time at which it was given."""

DRIFT = 0.0002
"""Seconds by which two clocks may part in each second: an old answer tells less than a new one."""


class Clock:
    """How far the server's clock is ahead of ours, learned from the answers that tell the time.

    The answer that came soonest tells it best: a busy loop reads many of them late. It may be off by the
    seconds of `doubt`; `learned` is when it was told last, in `time.monotonic`.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.doubt = 0.0
        self.learned = -math.inf
        self._best = TOO_SLOW
        self._answered = 0.0

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return time.time() + self.ahead

    def learn(self, told: str, asked: float, answered: float) -> None:
        """Learn from an answer that told the time, between two moments of our own clock."""
        if not 0 <= answered - asked < TOO_SLOW:
            return
        self.learned = time.monotonic()
        ahead, doubt = events.moment(told).timestamp() - (asked + answered) / 2, (answered - asked) / 2
        old = self._best + DRIFT * abs(answered - self._answered)
        # An answer that cannot be true beside the last one shows that a clock was set.
        if doubt <= old or abs(ahead - self.ahead) > doubt + old:
            self.ahead, self._best, self._answered, old = ahead, doubt, answered, doubt
        self.doubt = old
