"""Finds jobs by their records, or by their messages while they have no record."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.messages import id_of, revision_from_message
from jsq.broker.jobs.records import MAX_RECORDS_READ, RecordStore, read_revision
from jsq.broker.topology.namespace import Namespace
from jsq.codec.subject_token import ANY
from jsq.errors import BrokerUnavailable, JobNotFound, NotAllowed
from jsq.model.callback import parse_fallback_id
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision
from jsq.transport.replies import NoReply, NoResponders, Reply, sequence_of

RECHECK_SECONDS = 5.0
"""Seconds after which a waiting caller reads the record again, in case a revision did not arrive."""

PASS_SECONDS = 0.3
"""Seconds in which a job moves at most once. A search that took longer may have missed it: it is repeated."""

PASSES = 3

FALLBACK_SECONDS = 2.0
FALLBACK_POLL_SECONDS = 0.02
"""Seconds to wait for a fallback that a record names, and seconds between two reads."""


MessageLocation: TypeAlias = tuple[str, str, str]
"""Where a job's message may be: the stream, the subject, and the state of the job there."""


class JobReader:
    """Finds jobs, and follows their revisions."""

    def __init__(self, namespace: Namespace, records: RecordStore, expiry: JobExpiry) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = records
        self._expiry = expiry

    async def find(
        self, id: str, queue: str = "*", *, consistent: bool = False, pending: bool = False
    ) -> StoredRevision | None:
        """The state of a job by its record, or else by its message; with expiry and progress applied.

        Reads from replicas first. If the replica does not know the job, or reports that it has failed, reads
        from the leaders too; with `consistent`, reads only from the leaders. Waits for a fallback that a
        worker is about to submit; with `pending`, returns it as queued at once.
        """
        try:
            found = None if consistent else await self._find(id, queue)
            if found is None or await self._may_be_stale(found):
                found = await self._find_slowly(id, queue) or await self._find_fallback(
                    id, queue, pending=pending
                )
        except NoResponders:
            if not await self._jetstream.is_absent(self._subjects.streams.records):
                raise
            return None
        if found is None:
            return None
        return await self._records.progress(await self._records.with_result(await self._as_of_now(found)))

    async def wait_for_outcome(self, id: str, queue: str) -> StoredRevision:
        """Wait for a job's final revision. Raises `JobNotFound`."""
        async for found in self.follow(id, queue, final_only=True):
            if found.revision.state in FINAL_STATES:
                return await self._records.with_result(found) if found.revision.separate_result else found
        raise JobNotFound(id)

    async def follow(
        self, id: str, queue: str, *, final_only: bool = False
    ) -> AsyncGenerator[StoredRevision, None]:
        """Yield a job's last revision, then each new one up to the final revision.

        With `final_only`, yields the final revision only after the last one. Raises `JobNotFound`.
        """
        arrived: asyncio.Queue[StoredRevision] = asyncio.Queue()
        refusals, seen, consistent = self._wire.refusals, -1, False
        last: StoredRevision | None = None
        async with self._records.subscribe(id, queue, arrived, final_only=final_only) as subject:
            while True:
                with contextlib.suppress(NoReply, NoResponders):
                    last = await self.find(id, queue, consistent=consistent, pending=True)
                    if last is None:
                        raise JobNotFound(id)
                    arrived.put_nowait(last)
                    if refusals.subscriptions:
                        refusals.check_subscription(subject)
                    consistent = True  # if no revision arrives, the replica that answered may be far behind
                with contextlib.suppress(TimeoutError):
                    while True:
                        expires = last is not None and last.revision.expires is not None
                        async with asyncio.timeout(
                            self._expiry.seconds_to_wait(last, RECHECK_SECONDS)
                            if expires
                            else RECHECK_SECONDS
                        ):
                            stored = await arrived.get()
                        state = stored.revision.state
                        if stored.sequence > seen or state == "expired":
                            seen, last = stored.sequence, stored
                            yield stored
                            if state in FINAL_STATES:
                                return
                if self._wire.closed:
                    raise BrokerUnavailable(f"the connection to {self._wire.login.shown} was closed")

    async def is_queued(self, queue: str, sequence: int) -> bool:
        """Whether the message with this sequence is still on its queue."""
        return (
            await self._reads.get(self._subjects.streams.ready(queue), sequence, consistent=True) is not None
        )

    async def find_in_group(self, queue: str, id: str) -> Reply | None:
        """The message of a job that waits in its key group, or that is due there. Reads from the leaders."""
        if not await self._streams.has_groups(queue):
            return None
        subjects = self._subjects
        for stream, subject in (
            (subjects.streams.scheduled(queue), subjects.groups.due(queue, "*", id)),
            (subjects.streams.groups(queue), subjects.groups.job(queue, "*", id)),
        ):
            found = await self._reads.last(stream, subject, consistent=True)
            if found is not None:
                return found
        return None

    async def queued_ids(self, queue: str, ids: Sequence[str]) -> set[str]:
        """The ids whose message is on a queue; none if the user may not read it."""
        found: set[str] = set()
        with contextlib.suppress(NoResponders, NotAllowed):
            for start in range(0, len(ids), MAX_RECORDS_READ):
                subjects = [
                    self._subjects.ready(queue, "*", id) for id in ids[start : start + MAX_RECORDS_READ]
                ]
                replies = await self._reads.last_per_subject(self._subjects.streams.ready(queue), subjects)
                found.update(id_of(reply) for reply in replies)
        return found

    async def known_ids(self, queue: str, ids: Sequence[str]) -> set[str]:
        """The ids for which a job exists: on the queue, scheduled, running or ended."""
        # Reads the streams in the order in which a job moves, so that it misses no job.
        known = await self._scheduled_ids(queue, ids)
        known |= await self.queued_ids(queue, [id for id in ids if id not in known])
        recorded = await self._records.last_each(queue, [id for id in ids if id not in known])
        return known | recorded.keys()

    async def _scheduled_ids(self, queue: str, ids: Sequence[str]) -> set[str]:
        """The ids whose message is scheduled, or is due and on its way to the queue."""
        subjects, found = self._subjects, set[str]()
        stream = subjects.streams.scheduled(queue)
        with contextlib.suppress(NoResponders, NotAllowed):
            for start in range(0, len(ids), MAX_RECORDS_READ // 2):
                part = ids[start : start + MAX_RECORDS_READ // 2]
                patterns = [subjects.scheduled(queue, id) for id in part]
                patterns += [subjects.due(queue, "*", id) for id in part]
                replies = await self._reads.last_per_subject(stream, patterns)
                found.update(id_of(reply) for reply in replies)
        return found

    async def waiting_ids(self, queue: str) -> list[str]:
        """The ids of the jobs with a message on a queue or scheduled for it: waiting or running."""
        return [found.job for found in await self.waiting_jobs(queue)]

    async def waiting_jobs(self, queue: str) -> list[StoredRevision]:
        """The jobs with a message on a queue or scheduled for it: waiting or running."""
        found: dict[str, StoredRevision] = {}
        read: dict[str, int] = {}
        for stream, subject, state in await self.message_locations(queue):
            with contextlib.suppress(NoResponders):
                for reply in await self._reads.fetch(stream, subject, after=read.get(subject, 0)):
                    id = id_of(reply)
                    found[id] = revision_from_message(queue, id, reply, state)
                    read[subject] = sequence_of(reply)
        return list(found.values())

    async def _may_be_stale(self, found: StoredRevision) -> bool:
        """Whether the replica that answered may lack a change that callers rely on.

        An expired job may have started in time. A failed job may have been retried, perhaps by this caller,
        which must not get the earlier failure.
        """
        return found.state == "failed" or (await self._as_of_now(found)).state != found.state

    async def _as_of_now(self, found: StoredRevision) -> StoredRevision:
        """The last revision of a job, or its expiry if the job has expired by now."""
        return found if found.revision.expires is None else await self._expiry.apply_expiry(found)

    async def _find(self, id: str, queue: str, *, consistent: bool = False) -> StoredRevision | None:
        """A job by its record, by its message, or by a record that was written between these two reads."""
        found = await self._records.last(id, queue, consistent=consistent) or await self.find_by_message(
            id, queue, consistent=consistent
        )
        return found or await self._records.last(id, queue, consistent=consistent)

    async def _find_slowly(self, id: str, queue: str) -> StoredRevision | None:
        """A job by the leaders' copies. During an election a search takes seconds.

        Meanwhile a job that waits for a rate limit may move between its queue and the SCHEDULED stream
        several times.
        """
        for _ in range(PASSES):
            began = time.monotonic()
            found = await self._find(id, queue, consistent=True)
            if found is not None or time.monotonic() - began < PASS_SECONDS:
                return found
        return None

    async def _find_fallback(self, id: str, queue: str, *, pending: bool) -> StoredRevision | None:
        """A fallback that the record of another job names, and that the worker has not submitted yet.

        The worker submits a fallback after it has recorded the failure, and before it settles the message of
        the failed job.
        """
        failed, end = await self._owner_of_fallback(id), time.monotonic() + FALLBACK_SECONDS
        while failed is not None and await self.is_queued(failed.current_queue, failed.revision.message):
            if pending:
                origin = failed.queue if queue == "*" else queue
                return StoredRevision(origin, id, 0, failed.at, Revision("queued", submitted=failed.at))
            if time.monotonic() > end:
                return None
            await asyncio.sleep(FALLBACK_POLL_SECONDS)
            found = await self._find(id, queue, consistent=True)
            if found is not None:
                return found
        return await self._find(id, queue, consistent=True) if failed is not None else None

    async def _owner_of_fallback(self, id: str) -> StoredRevision | None:
        """The failed job whose fallback has this id, if the fallback may not be submitted yet."""
        named = parse_fallback_id(id)
        if named is None:
            return None
        job, token = named
        queue, start = "*", None
        with contextlib.suppress(NotAllowed):
            # The token is a revision of the job's record. It identifies the job even if its id is hashed.
            start = (
                await self._reads.get(self._subjects.streams.records, token, consistent=True)
                if token
                else None
            )
        started = read_revision(start) if start is not None else None
        if started is not None:
            queue, job = started.queue, started.job
        last = await self._records.last(job, queue, consistent=True)
        if last is None or last.state != "failed" or last.revision.fallback != id:
            return None
        return last if last.revision.callbacks_pending else None

    async def find_by_message(self, id: str, queue: str, *, consistent: bool) -> StoredRevision | None:
        """A job without a record, by its message."""
        queues = [queue] if queue != "*" else await self._streams.queue_names()
        for name in queues:
            # A queue may have been removed. But a consistent read must not skip a queue without a leader.
            with contextlib.suppress(*() if consistent else (NoResponders,)):
                usual = self._usual_locations(name, id)
                found = await self._find_at(usual, name, id, consistent=consistent)
                if found is None:
                    others = await self._other_locations(name, id)
                    found = await self._find_at(others, name, id, consistent=consistent)
                if found is not None:
                    return found
        return None

    async def _find_at(
        self, locations: Sequence[MessageLocation], queue: str, id: str, *, consistent: bool
    ) -> StoredRevision | None:
        for stream, subject, state in locations:
            message = await self._reads.last(stream, subject, consistent=consistent)
            if message is not None:
                return revision_from_message(queue, id, message, state)
        return None

    async def message_locations(self, queue: str) -> Sequence[MessageLocation]:
        """The locations of the messages of a queue.

        A caller that reads them in this order finds each job, even if it becomes due or is requeued
        meanwhile. The first location is also the last one; there, the caller may skip the messages that it
        has read.
        """
        return (*self._usual_locations(queue, ANY), *await self._other_locations(queue, ANY))

    def _usual_locations(self, queue: str, id: str) -> Sequence[MessageLocation]:
        """Where a job's message usually is: its queue, where most jobs are, and its SCHEDULED stream."""
        subjects = self._subjects
        scheduled = subjects.streams.scheduled(queue)
        return (
            (subjects.streams.ready(queue), subjects.ready(queue, "*", id), "queued"),
            (scheduled, subjects.scheduled(queue, id), "scheduled"),
            # Due, but no worker has moved it to the READY stream yet.
            (scheduled, subjects.due(queue, "*", id), "queued"),
        )

    async def _other_locations(self, queue: str, id: str) -> Sequence[MessageLocation]:
        """The other locations: the key group, and the queue again, in case the job has moved meanwhile."""
        subjects = self._subjects
        ready = (subjects.streams.ready(queue), subjects.ready(queue, "*", id), "queued")
        if not await self._streams.has_groups(queue):
            return (ready,)
        due = subjects.streams.scheduled(queue), subjects.groups.due(queue, "*", id), "queued"
        return due, (subjects.streams.groups(queue), subjects.groups.job(queue, "*", id), "queued"), ready
