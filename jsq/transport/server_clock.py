"""An estimate of the server's clock, which counts for deadlines, limits and schedules."""

import functools
import math
import time
from datetime import UTC, datetime

from jsq.codec import revisions
from jsq.transport.replies import Reply

TOO_SLOW = 1.0
"""Seconds of a round trip from which a reply is too inexact to set the clock."""

DRIFT = 0.0002
"""Seconds by which two clocks may drift apart per second, so that new replies are more exact."""

OUTLIVED_SECONDS = 60.0
"""Seconds after the end of its TTL from which a stored message counts as expired; clocks differ by less."""

PAST = datetime.fromtimestamp(0, UTC)
"""A time that has passed by any clock. The local present may be the server's future."""

steady = functools.partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Seconds on a clock that is never set."""


class Clock:
    """How far the server's clock is ahead of the local clock, estimated from replies with a time.

    The fastest reply is the most exact, because a busy event loop reads many replies late. Between replies a
    steady clock counts, because the local clock may be set at any time. The estimate may be off by
    `uncertainty` seconds; `learned` is when it was last updated, in `time.monotonic`. `steady() + offset` is
    the server's time.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.uncertainty = 0.0
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
        """Update the estimate from a reply with a time, between two times of the local clock."""
        if not 0 <= answered - asked < TOO_SLOW:
            return
        self.learned, now_apart = time.monotonic(), apart()
        ahead, uncertainty = (
            revisions.parse_time(timestamp).timestamp() - (asked + answered) / 2,
            (answered - asked) / 2,
        )
        known = self.ahead + self._apart - now_apart
        old = self._best + DRIFT * abs(answered - self._answered)
        # A reply that contradicts the best one shows that a clock was set.
        if uncertainty <= old or abs(ahead - known) > uncertainty + old:
            self.ahead, self._apart, self._best, self._answered, old = (
                ahead,
                now_apart,
                uncertainty,
                answered,
                uncertainty,
            )
            self.offset = self._apart + self.ahead
        self.uncertainty = old


def has_outlived_ttl(message: Reply, clock: Clock) -> bool:
    """Whether a message is stored long after its TTL has passed.

    A server that is killed may restore expired messages without their TTL: seen with nats-server 2.15.1.
    A key that holds a lease then remains until another holder overwrites it.
    """
    headers = message.headers
    ttl = headers.get("Nats-TTL", "")
    if not ttl.isdigit():
        return False
    stored = revisions.parse_time(headers["Nats-Time-Stamp"]).timestamp()
    return clock.now() > stored + int(ttl) + OUTLIVED_SECONDS


def apart() -> float:
    """How far the local clock is ahead of the steady clock."""
    return time.time() - steady()
