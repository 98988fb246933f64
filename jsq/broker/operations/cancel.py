"""Cancelling jobs: one that has not started never does, one that runs is stopped by its worker.

The record decides: a worker's start and a cancel are writes that expect the same revision, and the server
takes one of them.
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
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import CANCELLED, Subjects, read_id
from jsq.codec import revisions
from jsq.codec.subject_token import ANY
from jsq.errors import JobNotFound, NotAllowed, WrongState
from jsq.model.revision import EDITED, FINAL_STATES, Revision, StoredRevision
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import NoReply, NoResponders, Reply, WrongSequence, header_line

MARK_SECONDS = 3_600.0
"""Seconds for which the mark of a cancelled run stays: its worker is told by the write, not by the mark."""

CONCURRENT_CANCELS = 100
"""Jobs that are being cancelled together."""

Matches = Callable[[StoredRevision], bool]


@dataclass(frozen=True, slots=True)
class CancelCount:
    """What became of jobs that were to be cancelled.

    `cancelled` are cancelled now; `ended` came to another end first; `unmatched` were let be, for they no
    longer fitted what was asked for: one that was to be cancelled as `queued` had begun to run.
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
        steps: CheckpointStore,
        lines: KeyGroups,
    ) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = store.records
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._steps = steps
        self._key_groups = lines
        self._expiry = store.expiry
        self._removable: dict[str, bool] = {}

    async def cancel(self, id: str, queue: str = "*", *, seconds: float = 10.0) -> StoredRevision:
        """Cancel a job; returns its final event.

        One that has not started never does. One that runs is cancelled by the worker that holds it, and by us
        where that worker does not answer. Cancelling twice is as good as once. Raises `JobNotFound`,
        `WrongState` for one that has ended otherwise.
        """
        while True:
            found = await self._job_reader.find(id, queue)
            if found is None:
                raise JobNotFound(id)
            if found.state == "cancelled":
                await self._remove_messages(found)  # who recorded it may have died before he did
                return found
            if found.state in FINAL_STATES:
                raise WrongState(id, found.state, "cancelled")
            await self._try(found, seconds)

    async def cancel_many(self, jobs: Iterable[StoredRevision], fits: Matches) -> CancelCount:
        """Cancel jobs, as long as each is one that `fits`; running ones too."""
        counted: Counter[str] = Counter()
        left = iter(jobs)

        async def cancel_next() -> None:
            for found in left:
                counted[await self._cancel_fitting(found, fits)] += 1

        await asyncio.gather(*(cancel_next() for _ in range(CONCURRENT_CANCELS)))
        return CancelCount(**counted)

    async def open_jobs(self, queue: str, fits: Matches) -> list[StoredRevision]:
        """The jobs of a queue (`*`: of all) that have not ended and fit, oldest first.

        By their records; a job without one by its message.
        """
        queues = [queue] if queue != "*" else await self._streams.queue_names()
        standing = {
            (job.queue, job.job): job for name in queues for job in await self._job_reader.waiting_jobs(name)
        }
        with contextlib.suppress(NoResponders):
            known = {(one.queue, one.job): one for one in await self._records.list_last(queue)}
            guests = [key for key in standing if queue not in ("*", key[0])]  # in quarantine here
            told = await asyncio.gather(*(self._records.last(id, home) for home, id in guests))
            known |= {(one.queue, one.job): one for one in told if one is not None}
            standing = known | {key: one for key, one in standing.items() if key not in known}
        read = await self._expiry.apply_expiry_to_all([*standing.values()])
        return [one for one in read if one.state not in FINAL_STATES and fits(one)]

    async def cancel_waiting(self, found: StoredRevision) -> bool:
        """Record a job as cancelled on top of the revision that was found, and remove its message.

        False if the record has another revision meanwhile. A worker that has the message cannot start the job
        any more.
        """
        try:
            await self._record(found)
        except WrongSequence:
            return False
        # A worker may have taken the message, and not begun the job: it need not hold it any longer.
        self._wire.send(self._subjects.cancel(found.current_queue), found.job.encode())
        await self._remove_messages(found)
        return True

    async def subscribe(self, queue: str, stop: Callable[[str], bool]) -> Callable[[], Awaitable[None]]:
        """Listen for jobs to be cancelled: `stop` is called with an id, and says whether we run that job.

        We are asked first. Who cannot reach us, being in another account, records the cancel by himself: that
        is heard too. Returns what ends the listening.
        """

        def asked(message: Reply) -> None:
            if stop(message.payload.decode(errors="replace")) and message.reply:
                self._wire.send(message.reply)

        def recorded(message: Reply) -> None:
            stop(read_id(message.subject.split(".")[3]))

        wire, subjects = self._wire, self._subjects
        heard = [
            await wire.subscribe(subjects.cancel(queue), asked),
            await wire.subscribe(f"{subjects.stored_record(queue, ANY)}.{CANCELLED}", recorded),
        ]

        async def end() -> None:
            for subscription in heard:
                await wire.unsubscribe(subscription)

        return end

    # -- inside ------------------------------------------------------------------------------------------

    async def _cancel_fitting(self, found: StoredRevision | None, fits: Matches) -> str:
        """Cancel one of many; returns the field of `CancelCount` that it counts for."""
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
        """Go one step on with a job that has not ended. True if it is cancelled for certain."""
        if found.state == "running" and await self._stop_holder(found, seconds):
            return False  # it has ended; how, its record says
        return await self.cancel_waiting(found)

    async def _record(self, found: StoredRevision) -> None:
        told = await self._final_fields(found)
        event = replace(told, state="cancelled", progress=None, text="", due=None, token=0)
        if event.reason == EDITED:
            event = replace(event, reason="")
        # A message that we may not remove stays until a worker meets it: so does the record, as long as any.
        free = all([await self._may_remove(lane) for lane in {found.queue, found.current_queue}])
        first = free and not found.sequence
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
        """Take a job's messages off its queue and its quarantine, and remove what it kept, where we may."""
        lanes = [lane for lane in {found.queue, found.current_queue} if await self._may_remove(lane)]
        keyed = found.may_wait_for_key
        await asyncio.gather(*(self._job_writer.remove(lane, found.job, keyed=keyed) for lane in lanes))
        if found.revision.key and found.queue in lanes:
            # Last, for it lets the next one on: by then nothing of this one is left on the queue.
            await self._key_groups.remove(found.queue, found.revision.key, found.job)
        if found.revision.attempt:
            with contextlib.suppress(NotAllowed):
                await self._steps.delete(found.queue, found.job)

    async def _may_remove(self, queue: str) -> bool:
        """Whether we may take messages off a queue; found out once, by asking for none."""
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
        """Ask the worker that runs a job to cancel it, and wait until it has. False if none answers.

        The answer of one in another account does not reach us: what it records does.
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
    """An event with the arguments and options that the job's message tells."""
    return replace(
        event,
        options=order.options,
        has_arguments=order.has_arguments,
        arguments=order.arguments,
        arguments_size=order.arguments_size,
        arguments_hash=order.arguments_hash,
    )


def cancel_mark(subjects: Subjects, found: StoredRevision) -> OutgoingMessage:
    """What is stored with the cancel of a running job, for its worker."""
    key = f"{subjects.record(found.queue, found.job)}.{CANCELLED}"
    return OutgoingMessage(key, b"", header_line(TTL, str(round(MARK_SECONDS))))


async def wait_for_final(arrived: asyncio.Queue[StoredRevision]) -> None:
    """Wait for a job's final event."""
    while (await arrived.get()).state not in FINAL_STATES:
        pass
