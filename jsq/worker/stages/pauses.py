"""Pauses that a task requests: `RateLimited` pauses its key, or its queue, before the job is retried.

A job with a history may have waited here for its former worker, or to run alone: a pause that started
meanwhile applies to it too.
"""

from jsq.model.outcome import RATE_LIMITED
from jsq.model.revision import Revision
from jsq.worker.duties.queue_rules import QueueRules
from jsq.worker.stages.base import HAND_BACK, RUN, Admission, Requeue, Stage
from jsq.worker.state import AttemptState


class PauseStage(Stage):
    """Stores the pause that an event requests, and hands back a job that was paused while it waited."""

    exceptional = True

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules

    async def admit_again(self, attempt: AttemptState) -> Admission:
        rules, queue, job = self._rules, attempt.delivery.queue, attempt.job
        paused = rules.queue_pause(queue) or rules.job_pause(queue, job.task, job.key)
        return HAND_BACK if paused is not None else RUN

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        asks = event.state in ("retrying", "snoozed") and event.reason == RATE_LIMITED
        if asks and event.due is not None:
            await self._rules.pause(attempt.delivery.queue, attempt.job.key, event.due)
        return None
