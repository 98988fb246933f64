"""The pauses of a queue: by an operator, or for some time by `RateLimited`. Pure: no I/O.

A pause applies to the whole queue, to one task, or to one key. It ends at its end time, or by a resume.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from jsq.errors import BadOption
from jsq.model.durations import MAX_DURATION, Duration, check_moment, seconds

PauseReason = Literal["paused", "rate_limited"]

WHOLE_QUEUE = "queue"
"""The scope of a pause of a whole queue."""

MAX_PAUSES = 1_000
"""Maximum number of pauses of a queue."""

FOREVER = datetime(2200, 1, 1, tzinfo=UTC)
"""The time that the server gets for a pause without an end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a queue, or of a `task` or a `key` of it; `until` a time (UTC), None without end.

    `reason` is `paused` or `rate_limited`.
    """

    task: str = ""
    key: str = ""
    until: datetime | None = None
    reason: PauseReason = "paused"

    @property
    def scope(self) -> str:
        """The scope of the pause, as text: each scope has one pause at most."""
        return pause_scope(self.task, self.key)

    @property
    def end(self) -> datetime:
        return self.until or FOREVER

    def is_active(self, now: datetime) -> bool:
        return self.end > now


def pause_scope(task: str = "", key: str = "") -> str:
    return f"task {task}" if task else f"key {key}" if key else WHOLE_QUEUE


@dataclass(frozen=True, slots=True)
class PauseSet:
    """All pauses of a queue, by their scope."""

    pauses: Mapping[str, Pause] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pauses)

    def of_queue(self, now: datetime) -> Pause | None:
        """The pause of the whole queue, if there is one now."""
        return self._at(WHOLE_QUEUE, now)

    def of_job(self, task: str, key: str, now: datetime) -> Pause | None:
        """The longest pause of a job's task or key, if there is one now."""
        places = [pause_scope(task=task)] + ([pause_scope(key=key)] if key else [])
        found = [pause for place in places if (pause := self._at(place, now)) is not None]
        return max(found, key=lambda pause: pause.end, default=None)

    def active(self, now: datetime) -> "PauseSet":
        """The pauses that have not ended."""
        return PauseSet({place: pause for place, pause in self.pauses.items() if pause.is_active(now)})

    def with_pause(self, pause: Pause, now: datetime) -> "PauseSet":
        """These pauses with one more. A hold by `RateLimited` is never shortened; a pause replaces another.

        Raises `BadOption` for more than `MAX_PAUSES`.
        """
        lasting = self.active(now)
        old = lasting.pauses.get(pause.scope)
        if old is not None and "rate_limited" in (old.reason, pause.reason):
            pause = max(old, pause, key=lambda one: one.end)
        if old is None and len(lasting.pauses) >= MAX_PAUSES:
            raise BadOption(
                pause.scope.partition(" ")[0],
                pause.task or pause.key,
                f"must not be paused: the queue has {MAX_PAUSES:,} pauses, the maximum",
            )
        return PauseSet({**lasting.pauses, pause.scope: pause})

    def without(self, place: str, now: datetime) -> "PauseSet":
        lasting = self.active(now)
        return PauseSet({other: pause for other, pause in lasting.pauses.items() if other != place})

    def _at(self, place: str, now: datetime) -> Pause | None:
        pause = self.pauses.get(place)
        return pause if pause is not None and pause.is_active(now) else None


def read_pause_end(until: Duration | datetime | None, now: datetime) -> datetime | None:
    """The end of a pause, from a datetime or a duration from now. Raises `BadOption`."""
    if until is None:
        return None
    if not isinstance(until, datetime):
        left = seconds("until", until, least=0.001)
        return now + timedelta(seconds=left or 0.0)
    check_moment("until", until)
    left = (until - now).total_seconds()
    if left <= 0:
        raise BadOption("until", until, "must be in the future")
    if left > MAX_DURATION:
        raise BadOption("until", until, f"must be at most {MAX_DURATION / 86_400:g} days ahead")
    return until.astimezone(UTC)


def ends_earlier(before: PauseSet, after: PauseSet, place: str) -> bool:
    """Whether jobs that were requeued because of a pause may return earlier than planned."""
    old, new = before.pauses.get(place), after.pauses.get(place)
    return old is not None and (new is None or new.end < old.end)


def pauses_ttl(pauses: PauseSet, now: datetime) -> float | None:
    """Seconds until all pauses have ended; None if one has no end."""
    if any(pause.until is None for pause in pauses.pauses.values()):
        return None
    ends = [pause.end for pause in pauses.pauses.values()]
    return max(1.0, math.ceil((max(ends, default=now) - now).total_seconds()) + 1.0)


def rate_limit_pause(pause: Pause, delay: float, now: datetime) -> Pause:
    """The pause for `delay` seconds that `RateLimited` requests."""
    return replace(pause, until=now + timedelta(seconds=delay), reason="rate_limited")
