"""Expiry and deadline: a job that may not start any more is recorded as expired instead of started.

The deadline also ends a run, and prevents a retry after it. Both are times of the server's clock.
"""

import math

from jsq.declaration import Declaration
from jsq.model.expiry import has_not_started
from jsq.model.job import Job
from jsq.model.outcome import Expired, Outcome, apply_deadline
from jsq.task import AnyTask
from jsq.worker.run import seconds_left
from jsq.worker.stages.base import RUN, Admission, Proceed, Stage
from jsq.worker.state import AttemptState
from jsq.worker.transitions import EXPIRED_UNSTARTED, PAST_DEADLINE, with_deadline, with_declared_expiry

CLOSE = 1.0
"""Seconds before the expiry of a job in which the server is asked for the exact time of the start."""


class ExpiryStage(Stage):
    """Ends jobs that are too late to start, and prevents retries that would be too late."""

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        asked = (job.deadline, job.expires, options.deadline, options.expires)
        return asked != (None, None, None, None)

    async def admit(self, attempt: AttemptState) -> Admission:
        """Turn the seconds that the task declares into times, counted from when the job was stored."""
        since = attempt.delivery.waiting_since
        job = with_deadline(attempt.job, attempt.options.deadline, since)
        attempt.job = with_declared_expiry(job, attempt.options.expires, since)
        return RUN

    async def instead(self, attempt: AttemptState) -> Outcome | None:
        return too_late(attempt)

    async def started(self, attempt: AttemptState) -> Outcome | None:
        """Expired, if the server stored the start after the job had: every reader judges by that."""
        if seconds_to_start(attempt) > CLOSE:
            return None
        last = await attempt.read(attempt.token)
        if last is None or last.sequence != attempt.token or not has_not_started(last):
            return None
        return EXPIRED_UNSTARTED

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        return apply_deadline(await proceed(), seconds_left(attempt.resources, attempt.job))


def too_late(attempt: AttemptState) -> Expired | None:
    """The outcome of a job that may not start any more."""
    left = seconds_left(attempt.resources, attempt.job)
    if left is not None and left <= 0:
        return PAST_DEADLINE
    return EXPIRED_UNSTARTED if seconds_to_start(attempt) <= 0 else None


def seconds_to_start(attempt: AttemptState) -> float:
    """Seconds in which the job may start, by the server's clock."""
    expires = attempt.job.expires
    if expires is None:
        return math.inf
    return expires.timestamp() - attempt.resources.broker.wire.clock.now()
