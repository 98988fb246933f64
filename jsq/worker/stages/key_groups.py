"""Key groups: a job with a key waits in its group until it gets a slot, and releases the slot at its end.

The slot is released before the delivery is settled. After a crash between the two, the delivery comes back
and the slot is released again.
"""

import asyncio
import logging

from jsq.codec import envelope
from jsq.declaration import Declaration
from jsq.errors import BrokerError
from jsq.model.job import Job
from jsq.model.key_group import SlotKind
from jsq.model.outcome import Outcome
from jsq.model.revision import Revision, StoredRevision
from jsq.task import AnyTask
from jsq.worker.stages.base import DROP, RUN, Admission, Requeue, Stage
from jsq.worker.state import AttemptState

log = logging.getLogger("jsq.job")


class KeyGroupStage(Stage):
    """Moves a job without a slot to its key group, and releases the slot of a job that has one."""

    def __init__(self) -> None:
        self._releases: dict[AttemptState, asyncio.Task[None]] = {}

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return bool(job.key) and not job.quarantine

    async def admit(self, attempt: AttemptState) -> Admission:
        job = attempt.job
        if job.waits_for_key:
            await attempt.resources.broker.job_writer.enqueue(job, while_=attempt.has_lease)
            log.info("job moved to its key group", extra=attempt.log_fields(key=job.key))
            return DROP
        if attempt.options.batch is not None:
            self._release_early(attempt)  # the job waits for its batch, and no longer on the queue
        return RUN

    async def started(self, attempt: AttemptState) -> Outcome | None:
        self._release_early(attempt)
        return None

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        place = attempt.job.group_slot
        if place is not None and not keeps(place, event) and not await self._is_released(attempt):
            await release(attempt, attempt.token - 1)
        return None

    async def dropped(self, attempt: AttemptState, last: StoredRevision) -> None:
        """Release a slot that is held until the start. Any other belongs to the message that runs."""
        if attempt.job.group_slot == "start":
            await release(attempt, last.sequence - 1)

    async def close(self, attempt: AttemptState) -> None:
        releasing = self._releases.pop(attempt, None)
        if releasing is not None:
            releasing.cancel()
            await asyncio.gather(releasing, return_exceptions=True)

    def _release_early(self, attempt: AttemptState) -> None:
        """Release the slot while the task runs, if it was held until the start."""
        if attempt.job.group_slot == "start" and attempt not in self._releases:
            releasing = release(attempt, attempt.job.previous_sequence)
            self._releases[attempt] = asyncio.get_running_loop().create_task(releasing)

    async def _is_released(self, attempt: AttemptState) -> bool:
        """Whether the slot was released while the task ran."""
        releasing = self._releases.get(attempt)
        if releasing is None:
            return False
        try:
            await releasing
        except BrokerError:
            return False
        return True


def keeps(place: SlotKind, event: Revision) -> bool:
    """Whether a job keeps its slot after an event."""
    match event.state:
        case "interrupted":
            return place != "start"
        case "retrying" | "snoozed":
            return place == "job" and not event.quarantine
        case "queued" | "scheduled":  # an edit: the message that follows keeps the place of this one
            return not event.quarantine
    return False


async def release(attempt: AttemptState, over: int) -> None:
    """Release the slot of the attempts that build on the sequence `over`, or on an earlier one."""
    job, groups = attempt.job, attempt.resources.broker.key_groups
    await groups.release_slot(job.queue, job.key_token, job.id, up_to=over, while_=attempt.has_lease)


async def release_unread(attempt: AttemptState) -> None:
    """Release the slot of a message that cannot be decoded, as far as its headers name one."""
    place, token, _ = envelope.parse_group_slot(attempt.delivery.headers)
    if place is not None:
        groups = attempt.resources.broker.key_groups
        await groups.release_slot(attempt.job.queue, token, attempt.job.id, while_=attempt.has_lease)
