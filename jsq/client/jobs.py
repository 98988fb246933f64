"""`client.jobs`: find jobs, follow their events, and cancel, retry, promote, reschedule or remove them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar, Unpack

from jsq.broker.operations.cancel import CancelCount
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.connection import Connection
from jsq.client.handle import BlockingJobHandle, JobHandle
from jsq.client.lookup import job_record
from jsq.codec.subject_token import ANY
from jsq.errors import BadOption, JobNotFound, WrongState
from jsq.model.attempts import JobAttempt
from jsq.model.durations import Duration
from jsq.model.edit import JobChanges
from jsq.model.job import JobRecord, Priority, check_id, check_queue
from jsq.model.job_filter import DELAYED_STATES, UNFINISHED_STATES, JobFilter, read_criteria
from jsq.model.revision import FINAL_STATES

T = TypeVar("T")

CONCURRENT_CALLS = 100
"""How many jobs a `_many` method acts on at the same time."""

JobRecords: TypeAlias = list[JobRecord]
JobAttempts: TypeAlias = list[JobAttempt]


class JobsClient:
    """The jobs of a namespace.

    A method whose name ends in `_many` acts on all jobs that match every criterion of its `JobFilter`. A
    method with an id searches all queues, unless `queue` names one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def handle(self, id: str, queue: str = "*") -> JobHandle[Any]:
        """The handle of a job, by its id. Sends nothing: its methods raise `JobNotFound` if there is no such
        job.

        Raises `BadName`.
        """
        check_id(id)
        return JobHandle(self._connection, id, queue_filter(None if queue == "*" else queue))

    async def get(self, id: str, queue: str = "*") -> JobRecord:
        """The record of a job. Raises `JobNotFound`, `BadName`."""
        return await self.handle(id, queue).status()

    async def attempts(self, id: str, queue: str = "*") -> JobAttempts:
        """The attempts of a job; see `JobHandle.attempts`."""
        return await self.handle(id, queue).attempts()

    async def list(self, *, limit: int | None = 100, **which: Unpack[JobFilter]) -> JobRecords:
        """The newest jobs that match, the newest last; with `limit=None` all of them.

        `list(task="emails.send", state=["failed", "expired"], arg={"to": "a@b.c"})`; see `JobFilter`.
        Raises `BadOption`, `BadName`.
        """
        criteria = read_criteria(**which)
        if limit is not None and limit < 1:
            raise BadOption("limit", limit, "must be 1 or more, or None for all")
        broker = await self._connection.broker()
        return [job_record(event) for event in await broker.query.newest(criteria, limit)]

    async def list_open(self, **which: Unpack[JobFilter]) -> JobRecords:
        """The jobs that match and have not ended, oldest first: those that `cancel_many` would cancel.

        Raises `BadOption` without a filter, and for a state in which a job has ended.
        """
        criteria = read_criteria(UNFINISHED_STATES, named=True, **which)
        broker = await self._connection.broker()
        return [job_record(event) for event in await broker.query.open_jobs(criteria)]

    async def cancel(self, id: str, queue: str = "*") -> JobRecord:
        """Cancel a job; see `JobHandle.cancel`."""
        return await self.handle(id, queue).cancel()

    async def cancel_many(self, **which: Unpack[JobFilter]) -> CancelCount:
        """Cancel every job that matches and has not ended, running jobs too; returns how many, once certain.

        With a state in the filter, a job that has left that state meanwhile is skipped. After an error, the
        call can be repeated. Raises `BadOption` without a filter, and for a state in which a job has ended.
        """
        criteria = read_criteria(UNFINISHED_STATES, named=True, **which)
        broker = await self._connection.broker()
        return await broker.cancel.cancel_many(await broker.query.open_jobs(criteria), criteria.matches)

    async def retry(self, id: str, queue: str = "*", *, again: bool = False) -> JobRecord:
        """Run a failed job again, with `again` any job that has ended; see `JobHandle.retry`."""
        return await self.handle(id, queue).retry(again=again)

    async def retry_many(self, *, again: bool = False, **which: Unpack[JobFilter]) -> int:
        """Run every failed job that matches again, with all its retries; returns how many.

        With `again`, every job that matches and has ended. A job is skipped if it was retried already, its
        dead letter is gone, or its record does not hold its arguments. Raises `BadOption` without a filter,
        and for a state other than failed; with `again` for a state in which a job has not ended.
        """
        why = "jobs that have ended can be run again" if again else "failed jobs can be tried again"
        states = FINAL_STATES if again else ("failed",)
        criteria = read_criteria(states, named=True, why=f"; only {why}", **which)
        broker = await self._connection.broker()
        retry = broker.second_runs.run_again if again else broker.dead_letters.retry
        return await count_acted(
            lambda found: count_unless_gone(retry(found.job, found.queue)),
            await broker.query.newest(criteria),
        )

    async def promote(self, id: str, queue: str = "*") -> JobRecord:
        """Run a job now that is due later; see `JobHandle.promote`."""
        return await self.handle(id, queue).promote()

    async def promote_many(self, **which: Unpack[JobFilter]) -> int:
        """Run every job now that matches and is due later; returns how many. See `JobHandle.promote`.

        Raises `BadOption` without a filter, and for a state in which no job is due later.
        """
        criteria = read_criteria(DELAYED_STATES, named=True, why="; only those are due later", **which)
        broker = await self._connection.broker()
        return await count_acted(
            lambda found: count_unless_gone(
                broker.reschedule.reschedule(found.job, found.queue, asked="promoted")
            ),
            await broker.query.open_jobs(criteria),
        )

    async def reschedule(
        self, id: str, *, delay: Duration | None = None, at: datetime | None = None, queue: str = "*"
    ) -> JobRecord:
        """Start a job that is due later at another time; see `JobHandle.reschedule`."""
        return await self.handle(id, queue).reschedule(delay=delay, at=at)

    async def edit(
        self,
        id: str,
        arguments: Sequence[object] | Mapping[str, object] | None = None,
        queue: str = "*",
        **options: Unpack[JobChanges],
    ) -> JobRecord:
        """Change the arguments, options or priority of a job that has not started; see `JobHandle.edit`.

        `queue` is the queue to search for the job.
        """
        return await self.handle(id, queue).edit(arguments, **options)

    async def move(self, id: str, *, queue: str | None = None, priority: Priority | None = None) -> JobRecord:
        """Move a job that has not started to another queue or priority; see `JobHandle.move`."""
        return await self.handle(id).move(queue=queue, priority=priority)

    async def remove(self, id: str, queue: str = "*") -> None:
        """Remove a job that has ended; see `JobHandle.remove`."""
        await self.handle(id, queue).remove()

    async def remove_many(self, **which: Unpack[JobFilter]) -> int:
        """Remove every job that matches and has ended; returns how many. See `JobHandle.remove`.

        Raises `BadOption` without a filter, and for a state in which a job has not ended.
        """
        why = "; only a job that has ended can be removed"
        criteria = read_criteria(FINAL_STATES, named=True, why=why, **which)
        broker = await self._connection.broker()
        return await count_acted(
            lambda found: count_unless_gone(broker.remove.remove(found.job, found.queue)),
            await broker.query.newest(criteria),
        )

    async def events(
        self,
        *,
        job: str | None = None,
        queue: str | None = None,
        task: str | Iterable[str] | None = None,
        state: str | Iterable[str] | None = None,
        since: datetime | None = None,
        follow: bool = True,
    ) -> AsyncIterator[JobRecord]:
        """New events of jobs, as the server stores them; with `since`, the events since that time first.

        Past events come from the records, and from the event log, if there is one. `task` and `state` take
        one value, or several of which an event must have one. The iterator never ends; with `follow=False` it
        ends after the events so far. Raises `BadOption`, `BadName`.
        """
        criteria = read_criteria(task=task, state=state)
        id, queue_name = ANY if job is None else check_id(job), queue_filter(queue)
        broker = await self._connection.broker()
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        async with broker.records.subscribe(id, queue_name, arrived):
            await broker.records.check_subscription(id, queue_name)
            seen = 0
            if since is not None or not follow:
                for event in await broker.event_log.history(id, queue_name, since=since):
                    seen = event.sequence
                    if criteria.matches(event):
                        yield job_record(event)
            while follow:
                event = await arrived.get()
                if event.sequence > seen and criteria.matches(event):
                    yield job_record(event)


class BlockingJobs(BlockingWrapper[JobsClient]):
    """`client.blocking.jobs`: the methods of `client.jobs`, which block."""

    get = BlockingMethod(JobsClient.get)
    attempts = BlockingMethod(JobsClient.attempts)
    list = BlockingMethod(JobsClient.list)
    list_open = BlockingMethod(JobsClient.list_open)
    cancel = BlockingMethod(JobsClient.cancel)
    cancel_many = BlockingMethod(JobsClient.cancel_many)
    retry = BlockingMethod(JobsClient.retry)
    retry_many = BlockingMethod(JobsClient.retry_many)
    promote = BlockingMethod(JobsClient.promote)
    promote_many = BlockingMethod(JobsClient.promote_many)
    reschedule = BlockingMethod(JobsClient.reschedule)
    edit = BlockingMethod(JobsClient.edit)
    move = BlockingMethod(JobsClient.move)
    remove = BlockingMethod(JobsClient.remove)
    remove_many = BlockingMethod(JobsClient.remove_many)

    def handle(self, id: str, queue: str = "*") -> BlockingJobHandle[Any]:
        """As `JobsClient.handle`."""
        return self._wrapped.handle(id, queue).blocking

    def events(
        self,
        *,
        job: str | None = None,
        queue: str | None = None,
        task: str | Iterable[str] | None = None,
        state: str | Iterable[str] | None = None,
        since: datetime | None = None,
        follow: bool = True,
    ) -> Iterator[JobRecord]:
        """As `JobsClient.events`."""
        events = self._wrapped.events(
            job=job, queue=queue, task=task, state=state, since=since, follow=follow
        )
        return self._iterate(events, "events")


async def count_acted(
    act: Callable[[T], Awaitable[int]], things: Iterable[T], at_once: int = CONCURRENT_CALLS
) -> int:
    """Await `act` for each thing, `at_once` at the same time; returns the sum of the results."""
    left = iter(things)

    async def act_on_next() -> int:
        return sum([await act(thing) for thing in left])

    return sum(await asyncio.gather(*(act_on_next() for _ in range(at_once))))


async def count_unless_gone(act: Awaitable[object]) -> int:
    """Await an action on a job; returns 1, or 0 if the job is gone or in another state by then."""
    with contextlib.suppress(WrongState, JobNotFound):
        await act
        return 1
    return 0


def queue_filter(queue: str | None) -> str:
    """The name of a queue, or `*` for all queues. An empty name is refused, and never means all queues."""
    return "*" if queue is None else check_queue(queue)
