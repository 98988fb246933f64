"""The next attempt: a job that is retried, snoozed or quarantined is scheduled again."""

from jsq.model.event import Event
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState
from jsq.worker.transitions import next_attempt_of


class NextAttemptStage(Stage):
    """Schedules the next attempt that an event announces.

    Callbacks come first: once the next attempt has begun, no worker returns to this event.
    """

    exceptional = True

    async def finish(self, attempt: AttemptState, event: Event) -> Requeue | None:
        if event.state in ("retrying", "snoozed"):
            job = next_attempt_of(attempt.job, event, attempt.token)
            await attempt.resources.broker.job_writer.ensure_scheduled(
                job, event.due, while_=attempt.has_lease
            )
        return None
