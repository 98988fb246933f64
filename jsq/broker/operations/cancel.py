"""Cancels jobs. A job that has not started never starts; a running job is stopped by its worker.

The record decides: the start by a worker and the cancel are writes that expect the same revision, and the
server accepts only one of them.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from jsq.broker.flow.checkpoints import CheckpointStore
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.jobs.messages import seconds_until
from jsq.broker.jobs.records import RECORD_SECONDS, TTL
from jsq.broker.jobs.store import JobStore
from jsq.broker.jobs.wakeups import wake_job
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import CANCELLED, Subjects, read_id
from jsq.codec import revisions
from jsq.codec.subject_token import ANY
from jsq.errors import JobNotFound, NotAllowed, WrongState
from jsq.model.revision import EDITED, FINAL_STATES, Revision, StoredRevision
from jsq.model.workflow import WORKFLOW_TASK
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import NoReply, NoResponders, Reply, WrongSequence, header_line

MARK_SECONDS = 3_600.0
"""Seconds for which the mark of a cancelled run is stored. Its worker learns of it by the write itself."""

CONCURRENT_CANCELS = 100
"""Jobs that are cancelled concurrently."""

Matches = Callable[[StoredRevision], bool]


@dataclass(frozen=True, slots=True)
class CancelCount:
    """The results of a bulk cancel.

    `cancelled` counts the jobs that are cancelled now, `ended` those that had another outcome first.
    `unmatched` counts the jobs that were skipped because they no longer match: a job that was selected as
    `queued` has started, for example.
    """

    cancelled: int = 0
    ended: int = 0
    unmatched: int = 0


class Canceller:
    """Cancels jobs, one or many."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        checkpoints: CheckpointStore,
        key_groups: KeyGroups,
    ) -> None:
        self._namespace = namespace
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = store.records
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._checkpoints = checkpoints
        self._key_groups = key_groups
        self._expiry = store.expiry
        self._removable: dict[str, bool] = {}

    async def cancel(self, id: str, queue: str = "*", *, seconds: float = 10.0) -> StoredRevision:
        """Cancel a job; returns its final revision. A second call has no effect.

        A job that has not started never starts. A running job is cancelled by its worker, or by this client
        if the worker does not answer. Raises `JobNotFound`, and `WrongState` if the job has another outcome.
        """
        while True:
            found = await self._job_reader.find(id, queue)
            if found is None:
                raise JobNotFound(id)
            if found.state == "cancelled":
                await self._remove_messages(found)  # the client that recorded the cancel may have died before
                return found
            if found.state in FINAL_STATES:
                raise WrongState(id, found.state, "cancelled")
            await self._try(found, seconds)

    async def cancel_many(self, jobs: Iterable[StoredRevision], fits: Matches) -> CancelCount:
        """Cancel jobs, running ones too. A job that no longer `fits` when it is read again is skipped."""
        counts: Counter[str] = Counter()
        remaining = iter(jobs)

        async def cancel_next() -> None:
            for found in remaining:
                counts[await self._cancel_fitting(found, fits)] += 1

        await asyncio.gather(*(cancel_next() for _ in range(CONCURRENT_CANCELS)))
        return CancelCount(**counts)

    async def open_jobs(self, queue: str, fits: Matches) -> list[StoredRevision]:
        """The jobs of a queue (`*`: of all queues) that have not ended and fit, oldest first.

        A job is read from its record, or from its message if it has no record.
        """
        queues = [queue] if queue != "*" else await self._streams.queue_names()
        waiting = {
            (job.queue, job.job): job for name in queues for job in await self._job_reader.waiting_jobs(name)
        }
        with contextlib.suppress(NoResponders):
            known = {(one.queue, one.job): one for one in await self._records.list_last(queue)}
            # Jobs of other queues that are in quarantine on this one.
            quarantined = [key for key in waiting if queue not in ("*", key[0])]
            last = await asyncio.gather(*(self._records.last(id, origin) for origin, id in quarantined))
            known |= {(one.queue, one.job): one for one in last if one is not None}
            waiting = known | {key: one for key, one in waiting.items() if key not in known}
        read = await self._expiry.apply_expiry_to_all([*waiting.values()])
        return [one for one in read if one.state not in FINAL_STATES and fits(one)]

    async def cancel_waiting(self, found: StoredRevision) -> bool:
        """Record a job as cancelled on top of the revision that was found, and delete its message.

        Returns False if the record has another revision meanwhile. A worker that holds the message cannot
        start the job any more.
        """
        try:
            await self._record(found)
        except WrongSequence:
            return False
        # A worker may hold the message of the job that has not started: it can settle the message now.
        self._wire.send(self._subjects.cancel(found.current_queue), found.job.encode())
        await self._remove_messages(found)
        if found.revision.parent:
            await self._wake_workflow(found.revision.parent)
        return True

    async def subscribe(self, queue: str, stop: Callable[[str], bool]) -> Callable[[], Awaitable[None]]:
        """Call `stop` with the id of each job to be cancelled; it returns whether this worker runs that job.

        A client requests a cancel first. A client in another account, whose requests do not arrive, records
        the cancel itself; the subscription includes such records. Returns a function that ends the
        subscription.
        """

        def requested(message: Reply) -> None:
            if stop(message.payload.decode(errors="replace")) and message.reply:
                self._wire.send(message.reply)

        def recorded(message: Reply) -> None:
            stop(read_id(message.subject.split(".")[3]))

        wire, subjects = self._wire, self._subjects
        subscriptions = [
            await wire.subscribe(subjects.cancel(queue), requested),
            await wire.subscribe(f"{subjects.stored_record(queue, ANY)}.{CANCELLED}", recorded),
        ]

        async def end() -> None:
            for subscription in subscriptions:
                await wire.unsubscribe(subscription)

        return end

    # -- inside ------------------------------------------------------------------------------------------

    async def _cancel_fitting(self, found: StoredRevision | None, fits: Matches) -> str:
        """Cancel one job of a bulk cancel; returns the field of `CancelCount` in which it counts."""
        while found is not None and found.state not in FINAL_STATES:
            if not fits(found):
                return "unmatched"
            if await self._try(found, 10.0):
                return "cancelled"
            found = await self._job_reader.find(found.job, found.queue)
        if found is None or found.state != "cancelled":
            return "ended"
        await self._remove_messages(found)
        return "cancelled"

    async def _try(self, found: StoredRevision, seconds: float) -> bool:
        """Try once to cancel a job that has not ended. Returns True if it is cancelled for certain."""
        if found.state == "running" and await self._stop_holder(found, seconds):
            return False  # the job has ended; its record has the outcome
        return await self.cancel_waiting(found)

    async def _record(self, found: StoredRevision) -> None:
        last = await self._final_fields(found)
        event = replace(last, state="cancelled", progress=None, text="", due=None, token=0)
        if event.reason == EDITED:
            event = replace(event, reason="")
        # A message that this client may not delete stays until a worker receives it: so must its record.
        deletable = all([await self._may_remove(name) for name in {found.queue, found.current_queue}])
        first = deletable and not found.sequence
        keep = (
            RECORD_SECONDS + seconds_until(found.revision.due, self._wire.clock.moment()) if first else None
        )
        queue, id, expect, body = found.queue, found.job, found.sequence, revisions.encode(event)
        if found.state == "running":
            # Workers listen for these marks, not for each revision of each job.
            mark = cancel_mark(self._subjects, found)
            await self._records.put_with(queue, id, body, [mark], expect=expect, ttl=keep)
        else:
            await self._records.put(queue, id, body, expect=expect, ttl=keep)

    async def _final_fields(self, found: StoredRevision) -> Revision:
        """The last event of a job with the arguments and options of its message, if a record may hold them.

        The record of a job that waits for a later attempt does not have them.
        """
        event = found.revision
        if found.sequence and not event.has_arguments and found.state != "running":
            with contextlib.suppress(NoResponders, NotAllowed):
                message = await self._job_reader.find_by_message(
                    found.job, found.current_queue, consistent=False
                )
                if message is not None:
                    event = with_order(event, message.revision)
        return await self._expiry.with_kept_arguments(found.queue, event)

    async def _remove_messages(self, found: StoredRevision) -> None:
        """Delete a job's messages on its queue and in quarantine, and its checkpoints, if the login may."""
        if found.revision.task == WORKFLOW_TASK and found.revision.attempt:
            await wake_job(self._namespace, found.queue, found.job)  # its worker cancels the nodes
            return
        queues = [name for name in {found.queue, found.current_queue} if await self._may_remove(name)]
        keyed = found.may_wait_for_key
        await asyncio.gather(*(self._job_writer.remove(name, found.job, keyed=keyed) for name in queues))
        if found.revision.key and found.queue in queues:
            # Last, because it admits the next job of the key: by then this job has no message on the queue.
            await self._key_groups.remove(found.queue, found.revision.key, found.job)
        if found.revision.attempt:
            with contextlib.suppress(NotAllowed):
                await self._checkpoints.delete(found.queue, found.job)

    async def _wake_workflow(self, id: str) -> None:
        """Let a worker judge what the cancel of a node means for its workflow."""
        with contextlib.suppress(NotAllowed):
            found = await self._records.last(id)
            if found is not None and found.state == "waiting":
                await wake_job(self._namespace, found.queue, id)

    async def _may_remove(self, queue: str) -> bool:
        """Whether the login may delete messages of a queue; found out once, by a purge that matches none."""
        if queue not in self._removable:
            subjects = self._subjects
            try:
                for stream in (subjects.streams.scheduled(queue), subjects.streams.ready(queue)):
                    await self._jetstream.purge(stream, subjects.scheduled(queue, "_"), below=1)
                self._removable[queue] = True
            except NotAllowed:
                self._removable[queue] = False
        return self._removable[queue]

    async def _stop_holder(self, found: StoredRevision, seconds: float) -> bool:
        """Request that the worker of a job cancels it, and wait until it has. Returns False if none answers.

        The answer of a worker in another account does not arrive, but its record does.
        """
        arrived: asyncio.Queue[StoredRevision] = asyncio.Queue()
        ask = self._wire.ask(self._subjects.cancel(found.current_queue), found.job.encode(), timeout=1.0)
        async with self._records.subscribe(found.job, found.queue, arrived):
            ended, asked = asyncio.ensure_future(wait_for_final(arrived)), asyncio.ensure_future(ask)
            try:
                await asyncio.wait((ended, asked), return_when="FIRST_COMPLETED")
                if not ended.done():
                    asked.result()
                await asyncio.wait_for(ended, seconds)
            except (NoReply, NoResponders, TimeoutError):
                return False
            finally:
                ended.cancel()
                asked.cancel()
                await asyncio.gather(ended, asked, return_exceptions=True)
        return True


def with_order(event: Revision, order: Revision) -> Revision:
    """An event with the arguments and options of the job's message."""
    return replace(
        event,
        options=order.options,
        has_arguments=order.has_arguments,
        arguments=order.arguments,
        arguments_size=order.arguments_size,
        arguments_hash=order.arguments_hash,
    )


def cancel_mark(subjects: Subjects, found: StoredRevision) -> OutgoingMessage:
    """The message that is stored with the cancel of a running job, for its worker."""
    key = f"{subjects.record(found.queue, found.job)}.{CANCELLED}"
    return OutgoingMessage(key, b"", header_line(TTL, str(round(MARK_SECONDS))))


async def wait_for_final(arrived: asyncio.Queue[StoredRevision]) -> None:
    """Wait for a job's final event."""
    while (await arrived.get()).state not in FINAL_STATES:
        pass
