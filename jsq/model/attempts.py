"""The attempts of a job, derived from the history of its record."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from jsq.model.revision import Revision, StoredRevision


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """One attempt of a job, from its start to its end.

    `number` is that of `Context.attempt`: an attempt that was snoozed or interrupted shares it with the next
    one. `state` is the state of the job after the attempt; `running` while it lasts, and `crashed` if its
    worker died or stalled. Times are those of the server. A crashed attempt ends when another worker reclaims
    the job.
    """

    number: int
    worker: str
    started: datetime | None
    ended: datetime | None = None
    state: str = "running"
    reason: str = ""
    error: str = ""
    traceback: str = ""

    @property
    def ran(self) -> float | None:
        """Seconds from the start of the attempt to its end; None before that."""
        if self.started is None or self.ended is None:
            return None
        return (self.ended - self.started).total_seconds()


CRASHED = "crashed"


def attempts_of(revisions: Sequence[StoredRevision]) -> list[JobAttempt]:
    """The attempts in the revisions of one record, oldest first.

    Revisions that end no attempt are skipped: a reschedule, an edit, a retry by an operator, and the end of a
    job that was not running. If the start of an attempt is not kept any more, it is derived from its end.
    """
    found: list[JobAttempt] = []
    open_token = 0
    for one in revisions:
        event = one.revision
        if event.state == "running":
            if event.token and open_token:
                continue  # a report of progress, or a renewal
            if open_token:
                found[-1] = replace(found[-1], state=CRASHED, ended=one.at)
            found.append(started_attempt(event))
            open_token = one.sequence
        elif open_token:
            found[-1] = ended(found[-1], one)
            open_token = 0
        elif event.started is not None and event.token and not found:
            found.append(ended(started_attempt(event), one))
    return found


def started_attempt(event: Revision) -> JobAttempt:
    """The attempt that an event belongs to, at its start."""
    return JobAttempt(event.attempt, event.worker, event.started)


def ended(attempt: JobAttempt, end: StoredRevision) -> JobAttempt:
    """An attempt with its end."""
    event = end.revision
    state = CRASHED if event.reason in ("crashed", "quarantined") else event.state
    return replace(
        attempt, ended=end.at, state=state, reason=event.reason, error=event.error, traceback=event.traceback
    )
