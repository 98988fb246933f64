"""The next attempt: a job that is retried, snoozed or quarantined is scheduled again."""

from dataclasses import replace
from datetime import UTC, datetime

from jsq.codec import envelope
from jsq.model.revision import EDITED, SUBMITTED_STATES, Revision, StoredRevision
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState
from jsq.worker.transitions import next_attempt_of


class NextAttemptStage(Stage):
    """Schedules the next attempt that an event announces.

    Callbacks come first: once the next attempt has begun, no worker returns to this event.
    """

    exceptional = True

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        if event.state in ("retrying", "snoozed"):
            job = next_attempt_of(attempt.job, event, attempt.token)
            await attempt.resources.broker.job_writer.ensure_scheduled(
                job, event.due, while_=attempt.has_lease
            )
        elif event.reason == EDITED and event.state in SUBMITTED_STATES:
            await ensure_edited(attempt, event)
        return None


async def ensure_edited(attempt: AttemptState, event: Revision) -> None:
    """Store the message of an edit, whose older message was delivered: the editor may have died."""
    job, writer = attempt.job, attempt.resources.broker.job_writer
    found = StoredRevision(job.queue, job.id, attempt.token, datetime.now(UTC), event)
    edited = envelope.edited_job(job, found)
    if not edited.quarantine:
        edited = replace(edited, group_slot=job.group_slot)
    await writer.ensure_scheduled(edited, event.due, while_=attempt.has_lease)
