"""Reschedules jobs that are due later, as long as their schedule has not fired.

The schedule on the server decides (`jsq.broker.operations.schedule_replacement`). The record of a job that
waits for a later attempt gets the new due time afterwards, unless the job has started or was cancelled
meanwhile.
"""

import asyncio
import time
from dataclasses import replace
from datetime import datetime, timedelta

from jsq.broker.jobs.messages import scheduled_time, submitted_priority
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.schedule_replacement import ScheduleReplacement
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope, revisions
from jsq.errors import BadOption, JobNotFound, WrongState
from jsq.model.job import Job
from jsq.model.job_filter import DELAYED_STATES
from jsq.model.revision import StoredRevision
from jsq.transport.replies import Reply, WrongSequence

SCHEDULE_WAIT = 1.0
"""Seconds within which a worker that recorded a retry stores the schedule of the next attempt."""

RESCHEDULE_POLL_SECONDS = 0.02


class Rescheduler:
    """Changes the due time of jobs that are due later."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._wire = namespace.wire
        self._replacement = ScheduleReplacement(namespace, store)
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._records = store.records
        self._expiry = store.expiry

    async def reschedule(
        self, id: str, queue: str = "*", *, due: datetime | float | None = None, asked: str = "rescheduled"
    ) -> StoredRevision:
        """Have a job start at a time, after some seconds, or at once; returns its last revision.

        Raises `JobNotFound`; `WrongState` if the job is not due later, or its schedule has fired meanwhile;
        `BadOption` if the job may not start at that time.
        """
        found, message = await self._find_schedule(id, queue, asked)
        job = envelope.decode(
            message.headers,
            message.payload,
            id=id,
            queue=found.current_queue,
            priority=submitted_priority(message),
        )
        now = await self._expiry.now(found.queue)
        old_due = scheduled_time(message.headers)
        job = with_absolute_deadline(job, max(old_due, now))
        moment = due if isinstance(due, datetime) else now + timedelta(seconds=due or 0)
        when = revisions.parse_time(revisions.format_time(moment))
        check_due(job, when, now)
        if when > now >= old_due:
            raise WrongState(id, (await self._after_firing(found)).state, asked)  # the schedule is firing
        if not await self._job_writer.replace_scheduled(
            job, when, expect=int(message.headers["Nats-Sequence"])
        ):
            raise WrongState(id, (await self._after_firing(found)).state, asked)
        if when > now and await self._replacement.is_too_late(found, old_due, when):
            raise WrongState(id, (await self._after_firing(found)).state, asked)
        return await self._record_due(found, when, asked)

    async def repair_record(self, id: str, queue: str) -> bool:
        """Write the due time to a job's record, if a reschedule stopped before it did.

        Returns False if the record has the due time. Raises `WrongState` if the job was cancelled.
        """
        found = await self._job_reader.find(id, queue, consistent=True)
        if found is None or found.state not in DELAYED_STATES:
            return False
        message = await self._replacement.schedule(found)
        if message is None or found.revision.due == scheduled_time(message.headers):
            return False
        await self._record_due(found, scheduled_time(message.headers), "rescheduled")
        return True

    # -- inside ------------------------------------------------------------------------------------------

    async def _find_schedule(self, id: str, queue: str, asked: str) -> tuple[StoredRevision, Reply]:
        """A job that is due later, and its schedule. Waits for a schedule that is stored after the record."""
        end = time.monotonic() + SCHEDULE_WAIT
        while True:
            found = await self._job_reader.find(id, queue)
            if found is None:
                raise JobNotFound(id)
            if found.state not in DELAYED_STATES:
                raise WrongState(id, found.state, asked)
            message = await self._replacement.schedule(found)
            if message is not None:
                return found, message
            due = found.revision.due
            if due is None or due <= self._wire.clock.moment() or time.monotonic() > end:
                raise WrongState(id, (await self._after_firing(found)).state, asked)
            await asyncio.sleep(RESCHEDULE_POLL_SECONDS)

    async def _after_firing(self, found: StoredRevision) -> StoredRevision:
        """The present state of a job whose schedule is gone; `queued` if the job has not started."""
        now = await self._job_reader.find(found.job, found.queue) or found
        return (
            replace(now, revision=replace(now.revision, state="queued"))
            if now.state in DELAYED_STATES
            else now
        )

    async def _record_due(self, found: StoredRevision, due: datetime, asked: str) -> StoredRevision:
        """Write the due time to a job's record, if it has one and the job has not started meanwhile.

        Raises `WrongState` if the job was cancelled.
        """
        while found.sequence:
            revision = replace(found.revision, due=due)
            try:
                sequence = await self._records.write(found.queue, found.job, revision, expect=found.sequence)
                return StoredRevision(found.queue, found.job, sequence, self._wire.clock.moment(), revision)
            except WrongSequence:
                pass
            last = await self._job_reader.find(found.job, found.queue, consistent=True)
            if last is None or last.state == "cancelled":
                raise WrongState(found.job, "cancelled", asked)
            if (
                last.state not in DELAYED_STATES
                or last.revision.due == due
                or not await self._is_due(last, due)
            ):
                return last
            found = last  # another call rescheduled the job just before this one
        last = await self._records.last(found.job, found.queue, consistent=True)
        if last is not None and last.state == "cancelled":
            raise WrongState(found.job, "cancelled", asked)
        return last or replace(found, revision=replace(found.revision, due=due))

    async def _is_due(self, found: StoredRevision, due: datetime) -> bool:
        """Whether a job has a schedule that fires at that time."""
        message = await self._replacement.schedule(found)
        return message is not None and scheduled_time(message.headers) == due


def with_absolute_deadline(job: Job, due: datetime) -> Job:
    """The job with its deadline as a time: a deadline in seconds would count from the new due time."""
    if not isinstance(job.deadline, float):
        return job
    return replace(job, deadline=due + timedelta(seconds=job.deadline))


def check_due(job: Job, due: datetime, now: datetime) -> None:
    """Raise `BadOption` if a job may not start at its due time, or could not end in time."""
    for name, limit in (("expires", job.expires), ("deadline", job.deadline)):
        if isinstance(limit, datetime) and due > now and due >= limit:
            what = "expiry" if name == "expires" else "deadline"
            raise BadOption(
                "due", due, f"must be before the {what} of the job, {revisions.format_time(limit)}"
            )
