"""The position of a job in its life, read from the leaders of its streams.

Unique keys depend on leader reads: a replica that is behind could report a started job as missing.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime

from jsq.broker.jobs.messages import revision_from_message, scheduled_time
from jsq.broker.jobs.records import expectation_headers, read_revision
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology.namespace import Namespace
from jsq.errors import BrokerUnavailable
from jsq.model.edit import is_edited
from jsq.model.expiry import has_expired
from jsq.model.revision import FINAL_STATES, StoredRevision
from jsq.model.unique import JobLife
from jsq.transport.replies import Reply, WrongSequence
from jsq.transport.retrying import READ_SECONDS, publish_with_retry
from jsq.transport.server_clock import PAST

NEVER_SEQUENCE = 10**18
"""A sequence above all others: the server refuses a write that expects it, and reports the last sequence."""

SUBMITTER_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Seconds between reads of a claimed job that is missing: its submitter is probably about to store it."""


@dataclass(frozen=True, slots=True)
class JobPosition:
    """The position of a job in its life.

    `found` is the state of a waiting job. `schedule` is the sequence of the schedule of a delayed job, and
    `due` its time. A job that was requeued until the end of a pause has a schedule too, but no due time in
    its state.
    """

    life: JobLife
    found: StoredRevision | None = None
    schedule: int = 0
    due: datetime = PAST


class JobPositions:
    """Reads the positions of jobs from the leaders of their streams."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._job_reader = store.reader
        self._expiry = store.expiry

    async def find(self, queue: str, id: str) -> JobPosition:
        """The position of a job."""
        seen = await self.find_started(queue, id) or await self._find_waiting(queue, id)
        if seen is not None and seen.found is not None and await self._is_expired(seen.found):
            # If the job started in time, it started before this read found that it has expired.
            return await self.find_started(queue, id) or JobPosition(JobLife.ENDED)
        if seen is not None:
            return seen
        last = await self._job_reader.find(id, queue, consistent=True)
        return JobPosition(
            JobLife.ENDED if last is not None and last.state in FINAL_STATES else JobLife.MISSING
        )

    async def find_after_wait(self, queue: str, id: str) -> JobPosition:
        """The position of a job; waits for a missing job for a moment."""
        for pause in SUBMITTER_WAITS:
            seen = await self.find(queue, id)
            if seen.life is not JobLife.MISSING:
                return seen
            await asyncio.sleep(pause)
        return await self.find(queue, id)

    async def find_started(self, queue: str, id: str) -> JobPosition | None:
        """The position of a job that has started or ended; None if it has not started."""
        last = await self._last(queue, id)
        if last is not None and await self._is_expired(last):
            again = await self._last(queue, id)  # it may have started just before it expired
            if again is None or again.sequence == last.sequence:
                return JobPosition(JobLife.ENDED)
            last = again
        if last is None or is_edited(last):
            return None
        return JobPosition(JobLife.ENDED if last.state in FINAL_STATES else JobLife.STARTED)

    async def _last(self, queue: str, id: str) -> StoredRevision | None:
        record = self._subjects.record(queue, id)
        found = await self.last_message(self._subjects.streams.records, record, record)
        return read_revision(found) if found is not None else None

    async def _is_expired(self, found: StoredRevision) -> bool:
        return found.revision.expires is not None and has_expired(found, await self._expiry.now(found.queue))

    async def _find_waiting(self, queue: str, id: str) -> JobPosition | None:
        """The position of a job by its message. Reads the streams in the order in which a message moves.

        The job may start while this method reads, so it checks the record again at the end.
        """
        subjects = self._subjects
        ready, scheduled = subjects.streams.ready(queue), subjects.streams.scheduled(queue)
        pattern, probe = subjects.ready(queue, "*", id), subjects.ready(queue, "normal", id)
        found = await self._job_reader.find_in_group(queue, id) or await self.last_message(
            ready, pattern, probe
        )
        if found is None:
            subject = subjects.scheduled(queue, id)
            found = await self.last_message(scheduled, subject, subject)
            if found is not None:
                return await self.find_started(queue, id) or JobPosition(
                    JobLife.DELAYED,
                    revision_from_message(queue, id, found, "scheduled"),
                    sequence_or_zero(found),
                    scheduled_time(found.headers),
                )
            found = await self._reads.last(scheduled, subjects.due(queue, "*", id), consistent=True)
            found = found or await self._job_reader.find_in_group(queue, id)
            found = found or await self.last_message(ready, pattern, probe)
        if found is not None:
            return JobPosition(JobLife.WAITING, revision_from_message(queue, id, found, "queued"))
        return await self.find_started(queue, id)

    async def last_message(self, stream: str, pattern: str, probe: str) -> Reply | None:
        """The last message on a subject, from the leader of its stream.

        If the user may not read from the leader, sends a write to `probe`, which the leader refuses with the
        last sequence. Then reads from replicas until one has reached that sequence.
        """
        found = await self._reads.last(stream, pattern, consistent=True)
        if self._reads.may_ask_leader(stream):
            return found
        least, end = await self._last_sequence(pattern, probe), time.monotonic() + READ_SECONDS
        while least and sequence_or_zero(found) < least:
            if time.monotonic() > end:
                raise BrokerUnavailable(
                    f"no replica of {stream} has reached sequence {least} in {READ_SECONDS:g} s"
                )
            await asyncio.sleep(0.02)
            found = await self._reads.last(stream, pattern)
        return found if least else None

    async def _last_sequence(self, pattern: str, probe: str) -> int:
        try:
            await publish_with_retry(self._wire, probe, b"", expectation_headers(NEVER_SEQUENCE, pattern))
        except WrongSequence as refused:
            return refused.last
        raise BrokerUnavailable(f"the server stored a write to {probe} that expected {NEVER_SEQUENCE}")


def sequence_or_zero(found: Reply | None) -> int:
    return int(found.headers["Nats-Sequence"]) if found is not None else 0
