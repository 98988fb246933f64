"""The retry window (`retry_for`): a failed job is not retried once its window has closed."""

from jsq.declaration import Declaration
from jsq.model.callback import is_failed_attempt
from jsq.model.job import Job
from jsq.model.outcome import Outcome, apply_deadline
from jsq.task import AnyTask
from jsq.worker.run import seconds_left
from jsq.worker.stages.base import RUN, Admission, Proceed, Stage
from jsq.worker.state import AttemptState
from jsq.worker.transitions import overdue_failure, with_retry_window


class RetryWindowStage(Stage):
    """Fails a job whose next attempt is, or would be, after its window.

    Exceptional, because the record may have the window of a job whose message does not.
    """

    exceptional = True

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return options.retry.retry_for is not None or job.retry_until is not None

    async def admit(self, attempt: AttemptState) -> Admission:
        retry_for = attempt.options.retry.retry_for
        if retry_for is not None:
            now = attempt.resources.broker.wire.clock.now()
            attempt.job = with_retry_window(attempt.job, retry_for, now)
        return RUN

    async def instead(self, attempt: AttemptState) -> Outcome | None:
        """The failure of a retry after the window, and before the deadline if there is one."""
        window, left = seconds_of_window(attempt), seconds_left(attempt.resources, attempt.job)
        if window is None or window > 0 or (left is not None and left <= window):
            return None
        job = attempt.job
        last = await attempt.read(job.previous_sequence)
        if last is None or last.sequence not in (job.previous_sequence, attempt.token):
            return None
        if not is_failed_attempt(last.revision):
            return None
        return overdue_failure(last.revision)

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        outcome = await proceed()
        left = seconds_left(attempt.resources, attempt.job)
        return apply_deadline(outcome, left, seconds_of_window(attempt))


def seconds_of_window(attempt: AttemptState) -> float | None:
    """Seconds until the retry window of the job closes; None if it has none."""
    until = attempt.job.retry_until
    return until.timestamp() - attempt.resources.broker.wire.clock.now() if until is not None else None
