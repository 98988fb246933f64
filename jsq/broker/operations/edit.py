"""Edits jobs that have not started: their arguments, options or priority, or their queue.

A job that is due more than a second from now, and has no record, is one schedule. The editor replaces it by
compare-and-set, in one write. Any other edit goes through the job's record, because a worker may hold the
message already. The editor writes a revision that holds the changed job and expects the revision that was
read. The start of the job, a cancel and another edit expect the same revision, so only one of them is stored.
Then the editor stores a message that builds on the new revision, and deletes the old message. If the editor
dies in between, the server refuses the start of the old message. The worker that holds it then stores the new
message from the record, before it settles the old one (`jsq.worker.stages.next_attempt`).

The message of a job with a key has a place in the order of its key group. So an edit of such a job writes
only the record, and the message stays. The worker that receives the message stores the new one, which keeps
the slot of the key group. On another queue, the job is not in the order of its key.

The server delivers a priority of a queue in the order of its stream, and no message can be stored before
others. So the front of the queue is a higher priority.
"""

import contextlib
from dataclasses import replace
from datetime import datetime, timedelta

from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.jobs.messages import SCHEDULE, job_message, scheduled_time, submitted_priority
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.reschedule import with_absolute_deadline
from jsq.broker.operations.schedule_replacement import ScheduleReplacement
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope, revisions
from jsq.codec.subject_token import STEM
from jsq.errors import BadArguments, BadOption, JobNotFound, NotAllowed, QueueFull, WrongState
from jsq.model.edit import JobEdit, is_edited
from jsq.model.job import Job
from jsq.model.revision import (
    EDITED,
    FINAL_STATES,
    SUBMITTED_STATES,
    Revision,
    StoredRevision,
    first_revision,
)
from jsq.transport.replies import NoResponders, Reply, WrongSequence, block, sequence_of
from jsq.transport.retrying import publish_with_retry
from jsq.transport.server_clock import PAST

EDIT_TRIES = 5
"""How often an edit reads the message of a job that moves from one stream to the next."""

IMMINENT = timedelta(seconds=1)
"""A schedule that fires within this time is not replaced: the job is edited through its record."""

ONLY_UNSTARTED = "only a job that has not started can"
CHANGED_MEANWHILE = "it was changed meanwhile"


class Editor:
    """Changes jobs that have not started."""

    def __init__(self, namespace: Namespace, store: JobStore, key_groups: KeyGroups) -> None:
        self._namespace = namespace
        self._key_groups = key_groups
        self._replacement = ScheduleReplacement(namespace, store)
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._records = store.records
        self._expiry = store.expiry

    async def edit(self, id: str, edit: JobEdit, queue: str = "*") -> StoredRevision:
        """Change a job; returns its state after the edit.

        Raises `JobNotFound`; `WrongState` if the job has started, or was changed meanwhile; `BadOption`;
        `BadArguments` (too large).
        """
        for _ in range(EDIT_TRIES):
            found = await self._job_reader.find(id, queue, consistent=True)
            if found is None:
                raise JobNotFound(id)
            if found.state not in SUBMITTED_STATES:
                raise WrongState(id, found.state, f"{edit.verb}: {ONLY_UNSTARTED}")
            if edit.queue is not None:
                await self._namespace.streams.ensure_queue(edit.queue)
            message = await self._message(found)
            if message is None and not (is_edited(found) and found.revision.has_arguments):
                continue  # the job is moving to its queue, or has just started
            edited = await self._edit_at(found, message, edit)
            if edited is not None:
                return edited
        raise WrongState(id, "on its way to its queue", f"{edit.verb} now")

    # -- inside ------------------------------------------------------------------------------------------

    async def _edit_at(
        self, found: StoredRevision, message: Reply | None, edit: JobEdit
    ) -> StoredRevision | None:
        """Change a job whose message was read; returns None if the message has moved since.

        If there is no message, an earlier edit stopped half way, and the record has the job.
        """
        now = await self._expiry.now(found.queue)
        due = due_of(found, message)
        due = due if due is not None and due > now else None
        old = current_order(message, found, due) if message is not None else envelope.edited_order(found)
        job = edit.apply(old, due, now)
        await self._check(found, old, job)
        is_schedule = message is not None and SCHEDULE in message.headers
        stays = due is not None and due > now + IMMINENT and job.quarantine == old.quarantine
        if message is not None and due is not None and is_schedule and not found.sequence and stays:
            return await self._replace_schedule(found, message, job, due, edit)
        return await self._edit_record(found, message, job, due, edit)

    async def _check(self, found: StoredRevision, old: Job, job: Job) -> None:
        """Raise an error if a job cannot be changed to this one."""
        self._job_writer.check_size(job)
        if job.arguments != old.arguments:
            kept = job.keep_arguments is not False
            if not kept or not (await self._namespace.streams.settings(found.queue)).keep_arguments:
                rule = "must not be changed with keep_arguments=False; cancel the job, and submit it again"
                raise BadOption("arguments", "***", rule)

    async def _replace_schedule(
        self, found: StoredRevision, message: Reply, job: Job, due: datetime, edit: JobEdit
    ) -> StoredRevision | None:
        """Replace the schedule of a job without a record; returns None if the schedule is firing."""
        if await self._job_writer.replace_scheduled(job, due, expect=sequence_of(message)):
            if await self._replacement.is_too_late(found, due, due):
                return None
            event = replace(first_revision(job, found.state, due), submitted=found.revision.submitted)
            event = replace(event, options=envelope.recorded_options(job))
            return replace(found, revision=revisions.with_arguments(event, job.arguments))
        now = await self._message(found)
        if now is not None and SCHEDULE in now.headers:
            raise WrongState(found.job, found.state, f"{edit.verb}: {CHANGED_MEANWHILE}")
        return None

    async def _edit_record(
        self, found: StoredRevision, message: Reply | None, job: Job, due: datetime | None, edit: JobEdit
    ) -> StoredRevision:
        """Record the changed job, then replace its message."""
        changed = edit.arguments is not None
        holds = found.revision.has_arguments and bool(found.sequence)
        event = edit_event(job, found, due, with_arguments=changed or holds)
        event = event if changed or holds else await self._expiry.with_kept_arguments(found.queue, event)
        try:
            sequence = await self._records.write(found.queue, found.job, event, expect=found.sequence)
        except WrongSequence:
            last = await self._job_reader.find(found.job, found.queue, consistent=True)
            if last is not None and last.state in SUBMITTED_STATES:
                raise WrongState(found.job, last.state, f"{edit.verb}: {CHANGED_MEANWHILE}") from None
            state = last.state if last else "removed"
            raise WrongState(found.job, state, f"{edit.verb}: {ONLY_UNSTARTED}") from None
        await self._replace_message(found, message, replace(job, previous_sequence=sequence), due)
        return StoredRevision(found.queue, found.job, sequence, await self._expiry.now(found.queue), event)

    async def _replace_message(
        self, found: StoredRevision, old: Reply | None, job: Job, due: datetime | None
    ) -> None:
        """Store the message of a recorded edit, and delete the old one."""
        queue, streams = found.current_queue, self._namespace.subjects.streams
        scheduled = old is not None and SCHEDULE in old.headers
        if old is not None and scheduled and job.current_queue == queue and not has_slot(old):
            expect = sequence_of(old)
            if await self._job_writer.replace_scheduled(job, due or PAST, expect=expect):
                return
        if old is not None and job.key and not job.quarantine and job.current_queue == queue:
            return  # the old message has the job's place; the worker that receives it stores the new one
        waits = old is not None and old.headers["Nats-Subject"].startswith(self._ready_prefix(queue))
        expect = sequence_of(old) if old is not None and job.current_queue == queue and waits else 0
        if due is not None or not await self._enqueue(job, expect):
            await self._job_writer.ensure_scheduled(job, due)
        if old is not None:
            is_due = old.headers["Nats-Subject"].startswith(self._due_prefix(queue))
            stream = streams.ready(queue) if waits else streams.scheduled(queue)
            with contextlib.suppress(NotAllowed):  # a worker settles it instead
                if job.key and not found.revision.quarantine:
                    await self._key_groups.remove(queue, job.key, job.id)
                if scheduled or is_due or waits:
                    await self._namespace.jetstream.delete_message(stream, sequence_of(old))

    async def _enqueue(self, job: Job, expect: int) -> bool:
        """Store a job on its queue, behind its older message `expect`.

        Returns False if that message is gone, or the queue is full. A job that was cancelled meanwhile is
        deleted again.
        """
        if job.waits_for_key:
            await self._namespace.streams.ensure_groups(job.queue)
        message = job_message(self._namespace.subjects, job, expect=expect)
        try:
            await publish_with_retry(
                self._namespace.wire, message.subject, job.arguments, block(message.lines)
            )
        except (WrongSequence, QueueFull):
            return False
        last = await self._records.last(job.id, job.queue, consistent=True)
        if last is not None and last.state in FINAL_STATES:
            await self._job_writer.remove(job.current_queue, job.id, keyed=bool(job.key))
        return True

    def _ready_prefix(self, queue: str) -> str:
        """The prefix of the subjects of a queue's messages; those of its key groups have another one."""
        return self._namespace.subjects.of_groups(queue).ready_prefix

    def _due_prefix(self, queue: str) -> str:
        """The prefix of the subjects of a queue's due jobs that no worker has moved yet."""
        return self._namespace.subjects.due(queue, "", STEM).removesuffix(".")

    async def _message(self, found: StoredRevision) -> Reply | None:
        """The message of a job on its queue, in the SCHEDULED stream, or in its key group.

        A due job stays in the SCHEDULED stream until a worker moves it.
        """
        subjects, queue, id = self._namespace.subjects, found.current_queue, found.job
        ready = subjects.streams.ready(queue), subjects.ready(queue, "*", id)
        later = subjects.streams.scheduled(queue)
        scheduled, due = (later, subjects.scheduled(queue, id)), (later, subjects.due(queue, "*", id))
        of_group = later, subjects.groups.due(queue, "*", id)
        for stream, subject in (ready, scheduled, due, of_group, ("", ""), ready):
            with contextlib.suppress(NoResponders):
                message = (
                    await self._namespace.reads.last(stream, subject, consistent=True)
                    if stream
                    else await self._job_reader.find_in_group(queue, id)
                )
                if message is not None:
                    return message
        return None


def has_slot(message: Reply) -> bool:
    """Whether a message belongs to a job that has a slot of its key group."""
    return envelope.GROUP_SLOT in message.headers


def due_of(found: StoredRevision, message: Reply | None) -> datetime | None:
    """When a job is due by its message, or else by its record."""
    if message is None:
        return found.revision.due
    return scheduled_time(message.headers) if SCHEDULE in message.headers else None


def current_order(message: Reply, found: StoredRevision, due: datetime | None) -> Job:
    """The job of a message, with the changes that an earlier edit has recorded."""
    job = envelope.decode(
        message.headers,
        message.payload,
        id=found.job,
        queue=found.current_queue,
        priority=submitted_priority(message),
    )
    job = with_absolute_deadline(job, due or revisions.parse_time(message.headers["Nats-Time-Stamp"]))
    job = replace(job, submitted=job.submitted or revisions.milliseconds(stored_at(found)))
    return envelope.edited_job(job, found) if found.sequence else job


def stored_at(found: StoredRevision) -> float:
    """When a job was submitted, in seconds since the epoch."""
    return (found.revision.submitted or found.at).timestamp()


def edit_event(job: Job, found: StoredRevision, due: datetime | None, *, with_arguments: bool) -> Revision:
    """The revision of an edit. `with_arguments` stores the arguments, however large they are."""
    options = envelope.recorded_options(job)
    if isinstance(job.deadline, datetime):
        options["deadline"] = revisions.format_time(job.deadline)
    event = replace(
        first_revision(job, "queued" if due is None else "scheduled", due),
        reason=EDITED,
        token=found.sequence,
        headers=dict(job.headers),
        options=options,
        submitted=revisions.moment_of(job.submitted),
        retry_until=job.retry_until,
    )
    if not with_arguments:
        return revisions.with_arguments(event, job.arguments)
    try:
        return revisions.with_whole_arguments(event, job.arguments)
    except ValueError as error:
        raise BadArguments(f"{job.task}: the arguments are nested too deep to be recorded") from error
