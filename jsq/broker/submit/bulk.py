"""Bulk submit: stores many jobs that differ in their ids and arguments only.

It stores the jobs in batches. Delayed jobs, and jobs of a batch that failed, are stored one by one.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.jobs.messages import ROOM_FOR_HEADERS, job_message
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.codec.subject_token import STEM
from jsq.errors import BrokerError, BrokerFull, BrokerUnavailable, NotAllowed, QueueFull, SubmitUnknown
from jsq.model.job import Job
from jsq.transport.batch_publish import OutgoingMessage, parts
from jsq.transport.publish_many import AT_A_TIME, BulkPublisher
from jsq.transport.replies import FULL, NoReply, NoResponders, WrongSequence, header_line
from jsq.transport.retrying import DEADLINE_SECONDS

CONCURRENT_SUBMITS = 200
"""Jobs in flight while the jobs are stored one by one."""

PROBE_JOBS = 100
"""Jobs of the first try after a try that found no room."""


class BulkSubmit:
    """Stores many jobs on a queue."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._wire = namespace.wire
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._backpressure = store.backpressure
        self._bulk = BulkPublisher(namespace.wire)

    async def submit(
        self,
        pattern: Job,
        calls: Sequence[tuple[str, bytes]],
        due: datetime | None = None,
        room: WaitForRoom | None = None,
        *,
        ids_are_new: bool = True,
    ) -> tuple[dict[int, BrokerError], set[int]]:
        """Store a job for each call, which is an id and arguments; everything else is as in `pattern`.

        Returns the errors of the jobs that were not stored, by position, and the positions of the jobs whose
        message existed before. With `ids_are_new`, the ids were generated for this call, so no message
        exists.

        Raises `BadArguments` before it sends anything. With `room`, jobs wait while the queue is full.
        """
        unchecked_size = (self._wire.max_payload - ROOM_FOR_HEADERS) // 2
        for index, (id, arguments) in enumerate(calls):
            if len(arguments) >= unchecked_size:
                self._job_writer.check_size(replace(pattern, id=id, arguments=arguments), index)
        if due is not None:
            errors = await self._store_one_by_one(
                pattern, calls, lambda job: self._job_writer.submit(job, due, room)
            )
            return errors, set()
        refused: dict[int, BrokerError] = {}
        for start in range(0, len(calls), AT_A_TIME):
            part = calls[start : start + AT_A_TIME]
            found = await self._store_with_room(pattern, part, room, ids_are_new=ids_are_new)
            refused |= {start + index: error for index, error in found.items()}
            reason = next((found[index] for index in full_indexes(found)), None) or unavailable_error(found)
            if reason is not None:  # the remaining jobs are not sent
                refused |= dict.fromkeys(range(start + len(part), len(calls)), reason)
                break
        duplicates = {index for index, error in refused.items() if isinstance(error, WrongSequence)}
        refused = {index: error for index, error in refused.items() if index not in duplicates}
        return await self._with_limit_value(refused), duplicates

    async def _with_limit_value(self, refused: dict[int, BrokerError]) -> dict[int, BrokerError]:
        """The errors, where each `QueueFull` gets the present value of its limit."""
        full = next((error for error in refused.values() if isinstance(error, QueueFull)), None)
        if full is None:
            return refused
        limited = await self._backpressure.with_limit(full)
        return {index: limited if isinstance(error, QueueFull) else error for index, error in refused.items()}

    async def _store_with_room(
        self, pattern: Job, calls: Sequence[tuple[str, bytes]], room: WaitForRoom | None, *, ids_are_new: bool
    ) -> dict[int, BrokerError]:
        """Store jobs, waiting for room; returns the errors of the jobs that were not stored."""
        refused = await self._store(pattern, calls, ids_are_new=ids_are_new)
        size = PROBE_JOBS
        while room is not None and (full := full_indexes(refused)):
            indexes = full[:size]
            part = [calls[index] for index in indexes]
            try:
                found = await self._backpressure.wait(
                    pattern.queue,
                    functools.partial(self._store_some, pattern, part, ids_are_new=ids_are_new),
                    room,
                )
            except FULL:
                break
            for index in indexes:
                del refused[index]
            refused |= {indexes[index]: error for index, error in found.items()}
            size = max(PROBE_JOBS // 10, 2 * (len(part) - len(found)))
        return refused

    async def _store_some(
        self, pattern: Job, calls: Sequence[tuple[str, bytes]], *, ids_are_new: bool
    ) -> dict[int, BrokerError]:
        """Store as many jobs as have room. Raises `QueueFull` or `BrokerFull` if no job has room."""
        refused = await self._store(pattern, calls, ids_are_new=ids_are_new, full=True)
        indexes = full_indexes(refused)
        if len(indexes) == len(calls):
            raise refused[indexes[0]]
        return refused

    async def _store(
        self, pattern: Job, calls: Sequence[tuple[str, bytes]], *, ids_are_new: bool, full: bool = False
    ) -> dict[int, BrokerError]:
        """Store jobs; returns the errors of the jobs that were not stored, by position."""
        if pattern.waits_for_key:
            await self._streams.ensure_groups(pattern.queue)
        messages = self._messages(pattern, calls, ids_are_new=ids_are_new)
        refused: dict[int, BrokerError] = {}
        start = 0
        for part in parts(messages):
            part_calls = calls[start : start + len(part)]
            if unavailable := unavailable_error(refused):
                refused |= dict.fromkeys(range(start, len(calls)), unavailable)
                break
            try:
                found = await self._bulk.store(part, full=full)
            except NotAllowed as error:
                found = dict.fromkeys(range(len(part)), error)
            except (NoReply, NoResponders, BrokerFull) as error:
                if isinstance(error, NoResponders):
                    await self._streams.recreate(pattern.queue)
                # Some messages may be stored: each of the next ones expects that no message has its id.
                sent = isinstance(error, NoReply) and error.sent
                put = functools.partial(self._store_one, sent=sent)
                found = await self._store_one_by_one(pattern, part_calls, put, sent=sent)
            refused |= {start + index: error for index, error in found.items()}
            start += len(part)
        return refused

    def _messages(
        self, pattern: Job, calls: Sequence[tuple[str, bytes]], *, ids_are_new: bool
    ) -> list[OutgoingMessage]:
        if not ids_are_new:
            jobs = (replace(pattern, id=id, arguments=arguments) for id, arguments in calls)
            return [job_message(self._subjects, job) for job in jobs]
        # No message has one of these ids: the messages need no expected sequence, and have the same headers.
        lines = b"".join([header_line(name, value) for name, value in envelope.encode(pattern).items()])
        if pattern.waits_for_key:
            stem = self._subjects.groups.job(pattern.queue, pattern.key_token, STEM)
        else:
            stem = self._subjects.ready(pattern.queue, pattern.priority, STEM)
        return [OutgoingMessage(stem + id, arguments, lines) for id, arguments in calls]

    async def _store_one_by_one(
        self,
        pattern: Job,
        calls: Sequence[tuple[str, bytes]],
        store: Callable[[Job], Awaitable[object]],
        *,
        sent: bool = False,
    ) -> dict[int, BrokerError]:
        """Store jobs with one request each, `CONCURRENT_SUBMITS` at a time; returns their errors.

        Once the queue is full, or the server has not answered until the deadline, sends no other job. Jobs
        that were `sent` before may be stored nevertheless.
        """
        refused: dict[int, BrokerError] = {}
        left = iter(enumerate(calls))

        async def store_next() -> None:
            for index, (id, arguments) in left:
                if (full := full_indexes(refused)) and not sent:
                    refused[index] = refused[full[0]]
                elif unavailable := unavailable_error(refused):
                    refused[index] = (
                        SubmitUnknown(id, DEADLINE_SECONDS, str(unavailable)) if sent else unavailable
                    )
                else:
                    try:
                        await store(replace(pattern, id=id, arguments=arguments))
                    except BrokerError as error:
                        refused[index] = error

        await asyncio.gather(*(store_next() for _ in range(CONCURRENT_SUBMITS)))
        return refused

    async def _store_one(self, job: Job, *, sent: bool) -> None:
        """Store a job. If it was `sent` before, an error does not mean that it is not stored."""
        try:
            await self._job_writer.enqueue(job)
        except FULL:
            if not sent or await self._job_reader.find(job.id, job.queue, consistent=True) is None:
                raise
        except BrokerError as error:
            if sent or (isinstance(error, NoReply) and error.sent):
                raise SubmitUnknown(job.id, DEADLINE_SECONDS, str(error)) from error
            raise


def full_indexes(refused: Mapping[int, BrokerError]) -> list[int]:
    """The positions of the jobs that had no room, in order."""
    return sorted(index for index, error in refused.items() if isinstance(error, FULL))


def unavailable_error(refused: Mapping[int, BrokerError]) -> BrokerError | None:
    """The error for the jobs that were not sent, if no server answered for one of these jobs in time."""
    for error in refused.values():
        if isinstance(error, (SubmitUnknown, BrokerUnavailable)):
            return BrokerUnavailable(
                f"not submitted, because no server answered for other jobs of the bulk: {error}"
            )
    return None
