"""The server's clock, as far as it can be told from here: deadlines are judged by it."""

import math
import time

from jsq.codec import events

TOO_SLOW = 1.0
"""Seconds after which an answer tells too little of the time at which it was given."""


class Clock:
    """How far the server's clock is ahead of ours, learned from the answers that tell the time.

    It may be off by the seconds of `doubt`; `learned` is when it was, in `time.monotonic`.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.doubt = 0.0
        self.learned = -math.inf

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return time.time() + self.ahead

    def learn(self, told: str, asked: float, answered: float) -> None:
        """Learn from an answer that told the time, between two moments of our own clock."""
        if 0 <= answered - asked < TOO_SLOW:
            self.ahead = events.moment(told).timestamp() - (asked + answered) / 2
            self.doubt = (answered - asked) / 2
            self.learned = time.monotonic()
