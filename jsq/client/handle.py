"""The handle of a job: a submit returns it, and a caller can make one from a job's id."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, Unpack, cast

from pydantic_core import from_json

from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.bulk import pack_calls
from jsq.client.connection import Connection
from jsq.client.lookup import JobLookup, job_record
from jsq.codec.signature import Signature, pack_call
from jsq.errors import (
    BadOption,
    BrokerUnavailable,
    JobCancelled,
    JobExpired,
    JobFailed,
    ResultDropped,
    ResultGone,
    ResultTimeout,
)
from jsq.model.attempts import JobAttempt
from jsq.model.durations import Duration, seconds
from jsq.model.edit import JobChanges, JobEdit, check_changes
from jsq.model.job import JobRecord, Priority, check_queue
from jsq.model.options import read_options
from jsq.model.peer_terms import JOB_TERMS, explain_missing
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision
from jsq.model.workflow import WORKFLOW_TASK

R = TypeVar("R")


class JobHandle(Generic[R]):
    """A submitted job, by its id. A handle may be used on any event loop.

    `duplicate` is true if the id or the unique key was taken: the handle is that of the existing job.
    """

    __slots__ = ("__weakref__", "_connection", "_signature", "duplicate", "id", "queue")

    def __init__(
        self,
        connection: Connection,
        id: str,
        queue: str = "*",
        *,
        signature: Signature | None = None,
        duplicate: bool = False,
    ) -> None:
        self.id = id
        self.queue = queue
        self.duplicate = duplicate
        self._connection = connection
        self._signature = signature

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    @property
    def blocking(self) -> "BlockingJobHandle[R]":
        """This handle for callers without an event loop: its methods block."""
        return BlockingJobHandle(self)

    async def status(self) -> JobRecord:
        """The record of the job as it is now. Raises `JobNotFound`."""
        return job_record(await self._find())

    async def result(self, timeout: Duration | None = None) -> R:
        """Wait for the job to end, and return its result.

        A `timeout` of 0 reads the record once. Raises `JobFailed`, `JobCancelled`, `JobExpired`,
        `ResultGone` (`ResultDropped` if the result could not be stored), `ResultTimeout`, `JobNotFound`;
        `BrokerUnavailable` if no server answers when the timeout ends.
        """
        return cast(R, self.result_of((await self._outcome(timeout)).revision))

    async def wait(self, timeout: Duration | None = None) -> JobRecord:
        """Wait for the job to end, with any outcome; `timeout` works as in `result`.

        Raises `ResultTimeout`, `JobNotFound`; `BrokerUnavailable` if no server answers when the timeout ends.
        """
        return job_record(await self._outcome(timeout))

    async def _outcome(self, timeout: Duration | None) -> StoredRevision:
        """Wait for the final event of the job; see `wait`."""
        limit = None if timeout is None else seconds("timeout", timeout)
        if limit == 0:
            return await self._outcome_now()
        broker = self._connection.open_broker() or await self._connection.broker()
        try:
            async with asyncio.timeout(limit):
                return await broker.job_reader.wait_for_outcome(self.id, self.queue)
        except TimeoutError as error:
            wire = broker.wire
            if wire.connected:
                raise ResultTimeout(self.id, limit or 0) from error
            unknown = f"job {self.id} may or may not have ended"
            raise BrokerUnavailable(f"no NATS server answers at {wire.login.shown}: {unknown}") from error

    async def _outcome_now(self) -> StoredRevision:
        """The final event of the job, if it has ended. Raises `ResultTimeout`, `JobNotFound`."""
        found = await self._find()
        if found.state not in FINAL_STATES:
            raise ResultTimeout(self.id, 0)
        return found

    async def _find(self) -> StoredRevision:
        return await (await self._lookup()).last(self.id, self.queue)

    async def _lookup(self) -> JobLookup:
        broker = await self._connection.broker()
        return JobLookup(broker.job_reader, broker.records)

    async def checkpoint(self) -> Any:
        """The last value that the job stored with `ctx.checkpoint`; None if there is none, or it has expired.

        Raises `JobNotFound`.
        """
        found = await (await self._connection.broker()).checkpoints.checkpoint(self.queue, self.id)
        if not found:
            await self.status()
        return from_json(found) if found else None

    async def attempts(self) -> list[JobAttempt]:
        """The attempts of the job so far, oldest first; the last one may be running. Raises `JobNotFound`.

        The server keeps the last 64 changes of a job. A user without permission to read the history of a job
        gets the last attempt only.
        """
        return await (await self._lookup()).attempts(self.id, self.queue)

    async def cancel(self) -> JobRecord:
        """Cancel the job; returns its record once the cancel is certain.

        A job that has not started never starts. The cancel of a workflow cancels its nodes, running ones too.
        Raises `WrongState` if the job ended with another outcome,
        `JobNotFound`.
        """
        broker = await self._connection.broker()
        found = await broker.cancel.cancel(self.id, self.queue)
        if found.revision.task == WORKFLOW_TASK:
            await broker.workflows.cancel_nodes(found.queue, self.id)
        return job_record(found)

    async def retry(self, *, again: bool = False) -> JobRecord:
        """Run a failed job again, with all its retries; with `again` also a job that ended with another
        outcome.

        A job that succeeded, expired or was cancelled runs from the arguments and options in its record; its
        unique key, deadline and expiry are dropped, and its result is replaced. Raises `WrongState`,
        `ArgumentsNotKept`, `JobNotFound`.
        """
        broker = await self._connection.broker()
        if again:
            await broker.second_runs.run_again(self.id, self.queue)
        else:
            await broker.dead_letters.retry(self.id, self.queue)
        return await self.status()

    async def remove(self) -> None:
        """Remove a job that has ended: its record, its checkpoints, its dead letter, and the claim on its id.

        Raises `WrongState` if the job has not ended, `JobNotFound`.
        """
        await (await self._connection.broker()).remove.remove(self.id, self.queue)

    async def promote(self) -> JobRecord:
        """Run a job now that is due later (delayed, or waiting for a retry); returns its record.

        Raises `WrongState` if the job waits in its queue, runs, or has ended; `JobNotFound`.
        """
        broker = await self._connection.broker()
        return job_record(await broker.reschedule.reschedule(self.id, self.queue, asked="promoted"))

    async def reschedule(self, *, delay: Duration | None = None, at: datetime | None = None) -> JobRecord:
        """Start a job that is due later at another time: `delay` seconds from now, or `at` an aware datetime.

        Its deadline and its expiry do not change. Raises `WrongState` if the job waits in its queue, runs, or
        has ended; `JobNotFound`; `BadOption`.
        """
        due = reschedule_time(delay, at)
        broker = await self._connection.broker()
        return job_record(await broker.reschedule.reschedule(self.id, self.queue, due=due))

    async def edit(
        self,
        arguments: Sequence[object] | Mapping[str, object] | None = None,
        **options: Unpack[JobChanges],
    ) -> JobRecord:
        """Change the arguments, options or priority of a job that has not started; returns its record.

        `arguments` replace the job's own: a list of positional ones, or a dictionary of named ones. A handle
        made by the task checks that they fit the task; otherwise the worker does, when the job starts. If an
        edit, the start of the job, a cancel and another edit happen at the same time, one of them comes
        first, and the others are judged by its result. A job with a key keeps its place in the order of the
        key. Raises `WrongState` if the job has started or was changed meanwhile; `JobNotFound`,
        `BadArguments`, `BadOption`.
        """
        check_changes(options)
        packed = None
        if arguments is not None:
            pack = self._signature.pack if self._signature else pack_call
            packed = pack_calls(self.id, [arguments], pack)[0]
        return await self._edit(JobEdit(read_options(datetime.now(UTC), **options), packed))

    async def move(self, *, queue: str | None = None, priority: Priority | None = None) -> JobRecord:
        """Move a job that has not started to another queue, to the end of another priority, or both.

        `priority="high"` moves the job to the front of its queue, behind the jobs of that priority. A job on
        another queue keeps its id and its record. The record stays under the first queue, and its
        `quarantine` names the other queue. There, the order of a job's key does not apply.
        Raises the errors of `edit`, and `BadName`.
        """
        options = read_options(datetime.now(UTC), priority=priority)
        target = check_queue(queue) if queue is not None else None
        return await self._edit(JobEdit(options, queue=target, verb="moved"))

    async def _edit(self, edit: JobEdit) -> JobRecord:
        if edit.changes_nothing:
            raise BadOption(
                "edit", None, "an edit must change the arguments, an option, the queue or the priority"
            )
        return job_record(await (await self._connection.broker()).edit.edit(self.id, edit, self.queue))

    async def events(self) -> AsyncIterator[JobRecord]:
        """The events of the job so far, then each new event, until the job ends. Raises `JobNotFound`.

        A user without permission to read the history of a job gets the last event, then each new one.
        """
        lookup = await self._lookup()
        seen = 0
        for event in await lookup.history(self.id, self.queue):
            seen = event.sequence
            yield job_record(event)
            if event.state in FINAL_STATES and event == await lookup.records.last(self.id, self.queue):
                return
        async for event in lookup.reader.follow(self.id, self.queue):
            if event.sequence > seen:
                for missed in await lookup.history(self.id, self.queue, after=seen) or [event]:
                    # Progress reported before the subscription has a later sequence than the start.
                    if missed.sequence <= event.sequence or event.state not in FINAL_STATES:
                        seen = missed.sequence
                        yield job_record(missed)
            elif event.state == "expired":  # derived from the expiry time; no worker has recorded it yet
                yield job_record(event)

    async def follow(self) -> AsyncIterator[JobRecord]:
        """The record of the job as it is now, then each change and each report of progress, until its end.

        Follows by a subscription. An outage of the server delays the records. Changes during that time may be
        left out, but never the last one. Raises `JobNotFound`; `BrokerUnavailable` if the client is closed.
        """
        lookup = await self._lookup()
        async with contextlib.aclosing(lookup.reader.follow(self.id, self.queue)) as found:
            async for one in found:
                is_final = one.revision.state in FINAL_STATES
                yield job_record(await lookup.records.with_result(one) if is_final else one)

    def result_of(self, found: Revision) -> Any:
        """The result of the job, from its final event. Raises the errors of `result`."""
        if found.state == "failed":
            raise JobFailed(self.id, found.reason, found.error, found.traceback, found.fallback)
        if found.state == "cancelled":
            raise JobCancelled(self.id)
        if found.state == "expired":
            raise JobExpired(self.id, found.error)
        if found.result_dropped:
            raise ResultDropped(self.id, found.result_dropped)
        if not found.has_result:
            raise ResultGone(self.id)
        return self._signature.unpack_result(found.result) if self._signature else found.result


class BlockingJobHandle(BlockingWrapper[JobHandle[R]], Generic[R]):
    """A `JobHandle` whose methods block."""

    def __init__(self, handle: JobHandle[R]) -> None:
        super().__init__(handle, handle._connection.portal, "job")
        self.id = handle.id
        self.queue = handle.queue
        self.duplicate = handle.duplicate

    def __repr__(self) -> str:
        return f"<BlockingJobHandle {self.id}>"

    status = BlockingMethod(JobHandle[R].status)
    attempts = BlockingMethod(JobHandle[R].attempts)
    checkpoint = BlockingMethod(JobHandle[R].checkpoint)
    wait = BlockingMethod(JobHandle[R].wait)
    cancel = BlockingMethod(JobHandle[R].cancel)
    retry = BlockingMethod(JobHandle[R].retry)
    remove = BlockingMethod(JobHandle[R].remove)
    promote = BlockingMethod(JobHandle[R].promote)
    reschedule = BlockingMethod(JobHandle[R].reschedule)
    edit = BlockingMethod(JobHandle[R].edit)
    move = BlockingMethod(JobHandle[R].move)

    def result(self, timeout: Duration | None = None) -> R:
        """As `JobHandle.result`."""
        return self._call(self._wrapped.result(timeout), "result")

    def events(self) -> Iterator[JobRecord]:
        """As `JobHandle.events`."""
        return self._iterate(self._wrapped.events(), "events")

    def follow(self) -> Iterator[JobRecord]:
        """As `JobHandle.follow`."""
        return self._iterate(self._wrapped.follow(), "follow")


explain_missing(JobHandle, JOB_TERMS)
explain_missing(BlockingJobHandle, JOB_TERMS)


def reschedule_time(delay: Duration | None, at: datetime | None) -> datetime | float | None:
    """The requested start: a datetime, seconds from now, or None for at once. Raises `BadOption`."""
    if delay is None and at is None:
        raise BadOption("at", None, "either delay or at must be given")
    options = read_options(datetime.now(UTC), delay=delay, at=at)
    return options.at or options.delay or None
