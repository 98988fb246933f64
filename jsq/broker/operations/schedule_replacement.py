"""Replaces the schedule of a job, unless it has fired.

The schedule on the server decides: it is replaced by compare-and-set, so either the replacement or the firing
happens. With replicas, the server may do both if the due time passes while the replacement is stored. It
fires a schedule that it has not replaced on all replicas yet. So a replacement that took until the due time
checks whether the job has fired, and withdraws the new schedule if it has.
"""

import asyncio
import contextlib
from datetime import datetime

from jsq.broker.jobs.messages import revision_from_message, scheduled_time
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology.namespace import Namespace
from jsq.codec.revisions import format_time, parse_time
from jsq.errors import NotAllowed
from jsq.model.revision import StoredRevision
from jsq.transport.replies import NoResponders, Reply, sequence_of

FIRE_SECONDS = 0.25
"""Seconds after its due time within which a schedule fires: the resolution of the server's timer."""

FIRED_POLL_SECONDS = 0.02


class ScheduleReplacement:
    """Finds out whether a replaced schedule has fired, and withdraws the replacement."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._clock = namespace.wire.clock
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._job_reader = store.reader

    async def schedule(self, found: StoredRevision) -> Reply | None:
        """The schedule of a job, from the leader."""
        subjects = self._subjects
        try:
            subject = subjects.scheduled(found.current_queue, found.job)
            return await self._reads.last(
                subjects.streams.scheduled(found.current_queue), subject, consistent=True
            )
        except NoResponders:
            return None

    async def is_too_late(self, found: StoredRevision, old: datetime, new: datetime) -> bool:
        """Whether a job fired by its `old` due time though its schedule was replaced.

        `found` is the job as it was before. If it fired, the `new` schedule is removed. Returns at once if
        the old due time has yet to come. The `new` schedule may fire during the check. Its message counts as
        fired before, unless it has another time of submit.
        """
        if not await self._has_fired(found, old):
            return False
        message = await self.schedule(found)
        if message is not None and scheduled_time(message.headers) == parse_time(format_time(new)):
            subjects, queue = self._subjects, found.current_queue
            stream, subject = subjects.streams.scheduled(queue), subjects.scheduled(queue, found.job)
            with contextlib.suppress(NotAllowed):  # then the job's record refuses the start
                await self._jetstream.purge(stream, subject, below=sequence_of(message) + 1)
        return True

    # -- inside ------------------------------------------------------------------------------------------

    async def _has_fired(self, found: StoredRevision, due: datetime) -> bool:
        clock = self._clock
        end = clock.now() + clock.uncertainty + FIRE_SECONDS
        while due.timestamp() <= clock.now() + clock.uncertainty:
            if await self._is_on_its_way(found):
                return True
            if clock.now() > end:
                return False
            await asyncio.sleep(FIRED_POLL_SECONDS)
        return False

    async def _is_on_its_way(self, found: StoredRevision) -> bool:
        """Whether a job has left its schedule. The reads follow the order in which a message moves on."""
        subjects, queue, id = self._subjects, found.current_queue, found.job
        for stream, subject in (
            (subjects.streams.scheduled(queue), subjects.due(queue, "*", id)),
            (subjects.streams.ready(queue), subjects.ready(queue, "*", id)),
        ):
            if (message := await self._reads.last(stream, subject, consistent=True)) is not None:
                return is_of_same_submit(revision_from_message(queue, id, message, "queued"), found)
        if (message := await self._job_reader.find_in_group(queue, id)) is not None:
            return is_of_same_submit(revision_from_message(queue, id, message, "queued"), found)
        last = await self._job_reader.find(id, found.queue, consistent=True)
        return (
            last is not None
            and (last.state, last.revision.attempt) != (found.state, found.revision.attempt)
            and is_of_same_submit(last, found)
        )


def is_of_same_submit(one: StoredRevision, other: StoredRevision) -> bool:
    """Whether two revisions of a job have the same time of submit. A debounced submit replaces it."""
    return one.revision.submitted == other.revision.submitted
