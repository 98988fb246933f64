"""Rate limits: how often jobs may start, and when the next one may.

A limiter is a small state on the server that all workers share, and only `reserve` changes it: it gives each
job the time at which it may start. A job that starts more than `Rate.margin` after its time must reserve
again. The margin is part of the calculation, so the limit holds for actual starts, not only for reserved
times. Times are reserved for the near future only. A job that would wait longer gets the time at which to ask
again, in the order of the requests.
"""

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from jsq.errors import BadOption
from jsq.model.durations import MAX_DURATION

RateKind = Literal["sliding", "bucket"]

RESERVE_AHEAD = 0.3
"""Seconds ahead for which times are reserved. A job with a reserved time waits for it in its worker."""

SLICES = 200
"""Number of slices of a sliding window, in which its starts are counted."""

BURST_RATE = 500.0
"""Starts per second in a burst of a sliding window: jobs that are due at one instant start late."""

MAX_COUNT = 1_000_000
MAX_SLACK = 1.0
MAX_MARGIN = 0.1
ABANDONED = 5.0

RATE_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
RATE_RULE = 'must be a Rate, or text such as "10/s", "100/m", "1000/h", "5/10s" or "10/s burst 20"'
_text = re.compile(r"(\d{1,9})/(\d{1,9}(?:\.\d{1,3})?)?([smhd])(?: burst (\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """No more than `count` starts in any `per` seconds, over all workers.

    `sliding` keeps the limit in every window of that length. `bucket` is a token bucket: it fills at that
    rate and holds `burst` starts (by default `count`), so a window may have `burst` more. Raises `BadOption`.
    """

    count: int
    per: float = 1.0
    kind: RateKind = "sliding"
    burst: int | None = None

    def __post_init__(self) -> None:
        check_count("rate.count", self.count, MAX_COUNT)
        if (
            isinstance(self.per, bool)
            or not isinstance(self.per, (int, float))
            or not 1 <= self.per <= MAX_DURATION
        ):
            raise BadOption("rate.per", self.per, f"must be 1 to {MAX_DURATION:.10g} seconds")
        if self.kind not in get_args(RateKind):
            raise BadOption("rate.kind", self.kind, f"must be {' or '.join(get_args(RateKind))}")
        if self.burst is not None:
            check_count("rate.burst", self.burst, MAX_COUNT)
            if self.kind != "bucket":
                raise BadOption("rate.burst", self.burst, "must be set for kind='bucket' only")

    def __str__(self) -> str:
        unit = next(
            (name for name, seconds in RATE_UNITS.items() if seconds == self.per), f"{self.per:.10g}s"
        )
        burst = f" burst {self.burst or self.count}" if self.kind == "bucket" else ""
        return f"{self.count}/{unit}{burst}"

    @property
    def spacing(self) -> float:
        """Seconds between two starts if they are even, at the highest rate that the limit allows."""
        return (
            self.slices_per_window * self.slice_seconds if self.kind == "sliding" else self.per
        ) / self.count

    @property
    def slack(self) -> float:
        """Seconds by which a start may follow its reserved time without breaking the limit."""
        if self.kind == "sliding":
            return min(MAX_SLACK, 0.035 * self.per)
        return min(MAX_SLACK, max(0.05, 0.035 * (self.burst or self.count) * self.per / self.count))

    @property
    def margin(self) -> float:
        """Seconds after its reserved time from which a job reserves again: starting a function takes time."""
        return min(MAX_MARGIN, 0.4 * self.slack)

    @property
    def slice_seconds(self) -> float:
        """Seconds of a slice."""
        return self.per / SLICES

    @property
    def slices_per_window(self) -> int:
        """Slices that may hold `count` starts: those of a window, one that it cuts, and the slack."""
        return SLICES + 1 + math.ceil(self.slack / self.slice_seconds - 1e-9)


def check_count(field: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadOption(field, value, f"must be a whole number from 1 to {most:,}")


def read_rate(field: str, value: object) -> Rate | None:
    """Read a rate. Raises `BadOption` with the name of the field."""
    if value is None or isinstance(value, Rate):
        return value
    found = _text.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise BadOption(field, value, RATE_RULE)
    count, times, unit, burst = found.groups()
    try:
        return Rate(
            int(count),
            float(times or 1) * RATE_UNITS[unit],
            "bucket" if burst else "sliding",
            int(burst) if burst else None,
        )
    except BadOption as error:
        raise BadOption(field, value, f"must be a valid rate; {error}") from error


@dataclass(frozen=True, slots=True)
class RateLimitState:
    """The state of a limiter. Times are seconds since the epoch, by the server's clock.

    `slices` has the slices of a sliding window with the number of starts in each; `full_at` is when a bucket
    will be full. `deferred_until` is the latest time at which a deferred job was asked to return,
    `last_return` the time of the last return.
    """

    slices: tuple[tuple[int, int], ...] = ()
    full_at: float = 0.0
    deferred_until: float = 0.0
    last_return: float = 0.0


@dataclass(frozen=True, slots=True)
class RateRequest:
    """A request to start at `earliest` or later; `deferred` if the job has waited for its turn already.

    `returned_moment` is a time that the job reserved before and has not used. Jobs that start `simultaneous`,
    in one call, are not spread over time as jobs are that only happen to be due at one instant.
    """

    earliest: float = 0.0
    deferred: bool = False
    returned_moment: float | None = None
    needs_moment: bool = True
    simultaneous: bool = False


@dataclass(frozen=True, slots=True)
class RateReply:
    """The time when a job may start; if it is not `reserved`, the job must ask again at that time."""

    moment: float
    reserved: bool


class StartCounter(Protocol):
    """A counter of starts."""

    def find(self, earliest: float, together: bool = False) -> float:
        """The first time that has room."""
        ...

    def add(self, moment: float) -> None: ...

    def remove(self, moment: float) -> None: ...

    def updated(self, state: RateLimitState) -> RateLimitState: ...


def reserve(
    state: RateLimitState, rate: Rate, now: float, asks: Sequence[RateRequest]
) -> tuple[RateLimitState, list[RateReply]]:
    """Reserve a time for each request, or answer when to ask again; returns the new state."""
    places: StartCounter = (
        SlidingWindow(state, rate, now) if rate.kind == "sliding" else TokenBucket(state, rate)
    )
    line, seen = state.deferred_until, state.last_return
    if line > now and now > seen + 2 * rate.slices_per_window * rate.slice_seconds + ABANDONED:
        line = 0.0  # no deferred job has returned: they were cancelled, or wait for workers
    answers = []
    for ask in asks:
        if ask.returned_moment is not None:
            places.remove(ask.returned_moment)
        soonest = max(now, ask.earliest)
        waits = line > now and not ask.deferred
        moment = places.find(max(soonest, line) if waits else soonest, ask.simultaneous)
        firm = moment <= soonest + RESERVE_AHEAD and ask.needs_moment
        if firm:
            places.add(moment)
            seen = max(seen, now) if ask.deferred else seen
        if ask.needs_moment and not ask.deferred and (waits or not firm):
            seen = seen if line > now else moment
            line = moment + rate.spacing
        answers.append(RateReply(moment, firm))
    return replace(places.updated(state), deferred_until=line, last_return=seen), answers


class SlidingWindow:
    """The starts of a sliding window, counted in slices of it."""

    def __init__(self, state: RateLimitState, rate: Rate, now: float) -> None:
        self._count = rate.count
        self._span = rate.slices_per_window
        self._width = rate.slice_seconds
        self._most = min(
            rate.count, max(math.ceil(BURST_RATE * rate.slice_seconds), math.ceil(2 * rate.count / SLICES))
        )
        first = self._slice(now) - rate.slices_per_window
        self._taken = {part: count for part, count in state.slices if part > first}
        self._order = sorted(self._taken)
        self._all = sum(self._taken.values())

    def find(self, earliest: float, together: bool = False) -> float:
        part = self._slice(earliest)
        while (later := self._blocked(part, together)) is not None:
            part = later
        return max(earliest, part * self._width)

    def add(self, moment: float) -> None:
        part = self._slice(moment)
        if part not in self._taken:
            bisect.insort(self._order, part)
        self._taken[part] = self._taken.get(part, 0) + 1
        self._all += 1

    def remove(self, moment: float) -> None:
        part = self._slice(moment)
        left = self._taken.get(part, 0) - 1
        self._all -= left >= 0
        if left > 0:
            self._taken[part] = left
        elif left == 0:
            del self._taken[part]
            self._order.remove(part)

    def updated(self, state: RateLimitState) -> RateLimitState:
        return replace(state, slices=tuple((part, self._taken[part]) for part in self._order))

    def _slice(self, moment: float) -> int:
        # The start of a slice, as a product of large numbers, may be rounded to a little before it.
        return math.floor(moment / self._width + 1e-3)

    def _blocked(self, part: int, together: bool) -> int | None:
        """None if one more may start in a slice; else the next slice that may have room.

        Checks every range of `span` slices that contains this one and begins with a start, the last range
        first.
        """
        if self._taken.get(part, 0) >= self._most and not together:
            return part + 1
        if self._all < self._count:
            return None
        order, taken = self._order, self._taken
        here, end = bisect.bisect_left(order, part), bisect.bisect_left(order, part + self._span)
        inside = sum(taken[one] for one in order[here:end])
        if inside >= self._count:
            return order[here] + 1
        for first in range(here - 1, bisect.bisect_right(order, part - self._span) - 1, -1):
            inside += taken[order[first]]
            while end > here and order[end - 1] >= order[first] + self._span:
                end -= 1
                inside -= taken[order[end]]
            if inside >= self._count:
                return order[first] + self._span
        return None


class TokenBucket:
    """A token bucket, by the time at which it will be full (a generic cell rate algorithm)."""

    def __init__(self, state: RateLimitState, rate: Rate) -> None:
        self._full = state.full_at
        self._each = rate.per / rate.count
        # The slack of a start reduces the burst, if there is one.
        burst = max(1.0, (rate.burst or rate.count) - rate.slack / self._each)
        self._slack = (burst - 1) * self._each

    def find(self, earliest: float, together: bool = False) -> float:
        return max(earliest, self._full - self._slack)

    def add(self, moment: float) -> None:
        self._full = max(self._full, moment) + self._each

    def remove(self, moment: float) -> None:
        self._full -= self._each

    def updated(self, state: RateLimitState) -> RateLimitState:
        return replace(state, full_at=self._full)


def convert_state(state: RateLimitState, before: Rate, rate: Rate, now: float) -> RateLimitState:
    """The state of a limiter after its rate has changed: its starts, without the deferred jobs."""
    if before.kind != rate.kind or rate.kind == "bucket":
        ahead = min(max(0.0, state.full_at - now), rate.per)
        return RateLimitState(full_at=now + ahead if before.kind == rate.kind else 0.0)
    counts: dict[int, int] = {}
    for part, count in state.slices:
        # By the end of the slice, so that no start counts as older than it is.
        moved = math.floor(((part + 1) * before.slice_seconds + before.slack) / rate.slice_seconds)
        counts[moved] = counts.get(moved, 0) + count
    return RateLimitState(tuple(sorted(counts.items())))


def state_ttl(state: RateLimitState, rate: Rate, now: float) -> float:
    """Seconds after which a state equals an empty one."""
    window = 2 * rate.slices_per_window * rate.slice_seconds + ABANDONED
    return max(state.full_at, state.deferred_until, state.last_return, now) - now + window
