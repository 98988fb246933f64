"""The reads of a scan: slices of streams, and the messages and records of many jobs in one request."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from jsq.broker.jobs.messages import id_of
from jsq.broker.jobs.records import read_revision
from jsq.broker.topology.configs import DUE_CONSUMER
from jsq.broker.topology.namespace import Namespace
from jsq.model.job import PRIORITIES, Priority
from jsq.model.repair import is_older
from jsq.model.revision import StoredRevision
from jsq.transport.replies import NoResponders, Reply, sequence_of

SCAN_SLICE_MESSAGES = 5_000
"""Messages of each stream that one scan reads."""

SCAN_SLICE_BYTES = 16 * 2**20
SCAN_PAGE_BYTES = 4 * 2**20
"""Bytes of each stream that one scan reads, and the bytes of one page."""

SCAN_PAGE_MESSAGES = 250
"""Messages of one page. Decoding and judging them holds up the event loop for about 10 ms."""

SCAN_BATCH_JOBS = 300
"""Jobs in one request for messages or records. A job may have one message of each priority."""


@dataclass
class Scan:
    """A scan in progress, with its position in each stream.

    It skips entries younger than `age` seconds. A slice has at most `limit` messages of a stream. A
    `complete` scan reads every stream to the end.
    """

    age: float
    now: datetime
    limit: int = SCAN_SLICE_MESSAGES
    complete: bool = False
    positions: dict[str, int] = field(default_factory=dict)
    scanned: int = 0
    read_bytes: int = 0
    finished: set[str] = field(default_factory=set)

    @property
    def settled_before(self) -> datetime:
        """The time before which an entry is old enough to be judged."""
        return self.now - timedelta(seconds=self.age)

    def has_read(self, scanned: int, read_bytes: int) -> bool:
        """Whether a whole slice was read since the counts were `scanned` and `read_bytes`."""
        return self.scanned - scanned >= self.limit or self.read_bytes - read_bytes >= SCAN_SLICE_BYTES

    def is_old(self, at: datetime) -> bool:
        return is_older(at, self.now, self.age)


class ScanReads:
    """The reads of a scan, in pages and batches that do not hold up a worker's event loop."""

    def __init__(self, namespace: Namespace) -> None:
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams

    async def delivered_up_to(self, queue: str) -> dict[Priority, int]:
        """The sequence up to which each priority has no message left to deliver, if it has a consumer.

        Messages that a worker holds, or that the server will deliver again, have higher sequences.
        """
        bounds: dict[Priority, int] = {}
        for level in PRIORITIES:
            known = await self._jetstream.consumer_info(self._subjects.streams.ready(queue), level)
            if known is not None:
                bounds[level] = nothing_left_up_to(known)
        return bounds

    async def due_delivered_up_to(self, queue: str) -> int | None:
        """The same for the due jobs of a queue; None if they have no consumer."""
        stream = self._subjects.streams.scheduled(queue)
        known = await self._jetstream.consumer_info(stream, DUE_CONSUMER)
        return None if known is None else nothing_left_up_to(known)

    async def last_records(self, queue: str, ids: Sequence[str]) -> dict[str, StoredRevision]:
        """The last revisions of many records of a queue."""
        keys = [self._subjects.record(queue, id) for id in ids]
        replies = await self.last_per_subject(self._subjects.streams.records, keys)
        read = await self.read_events(replies)
        return {event.job: event for event in read}

    async def jobs_with_message(self, queue: str, jobs: Mapping[str, str]) -> set[str]:
        """The jobs that have a message; `jobs` maps each id to the token of its key.

        The streams are read in the order in which a job that becomes due passes through them.
        """
        subjects, ids = self._subjects, list(jobs)
        keyed = {id: token for id, token in jobs.items() if token}
        later, ready = subjects.streams.scheduled(queue), subjects.streams.ready(queue)
        found = await self.last_per_subject(later, [subjects.scheduled(queue, id) for id in ids])
        found += await self.last_per_subject(later, [subjects.due(queue, "*", id) for id in ids])
        if keyed and await self._streams.has_groups(queue):
            groups = subjects.streams.groups(queue)
            found += await self.last_per_subject(
                later, [subjects.groups.due(queue, token, id) for id, token in keyed.items()]
            )
            found += await self.last_per_subject(
                groups, [subjects.groups.job(queue, token, id) for id, token in keyed.items()]
            )
        found += await self.last_per_subject(ready, [subjects.ready(queue, "*", id) for id in ids])
        return {id_of(reply) for reply in found}

    async def last_per_subject(self, stream: str, subjects: Sequence[str]) -> list[Reply]:
        found: list[Reply] = []
        try:
            for start in range(0, len(subjects), SCAN_BATCH_JOBS):
                found += await self._reads.last_per_subject(stream, subjects[start : start + SCAN_BATCH_JOBS])
        except NoResponders:
            await self._jetstream.check_absent(stream)
        return found

    async def read_events(self, replies: Sequence[Reply]) -> list[StoredRevision]:
        """The events in messages, decoded page by page, so that jobs on the same loop run in between."""
        read = []
        for first in range(0, len(replies), SCAN_PAGE_MESSAGES):
            read += [
                event
                for reply in replies[first : first + SCAN_PAGE_MESSAGES]
                if (event := read_revision(reply))
            ]
            await asyncio.sleep(0)
        return read

    async def next_slice(self, stream: str, subject: str, scan: Scan, *, once: bool = False) -> list[Reply]:
        """The next page of a stream. After its last page the scan starts again, unless it reads `once`."""
        place = f"{stream} {subject}"
        after, more = scan.positions.get(place, 0), place not in scan.finished
        found: list[Reply] = []
        try:
            if more:
                most = min(SCAN_PAGE_MESSAGES, scan.limit)
                found, more = await self._reads.page(
                    stream, subject, after=after, limit=most, max_bytes=SCAN_PAGE_BYTES
                )
                more = more and bool(found)
                after = sequence_of(found[-1]) if found else after
        except NoResponders:
            await self._jetstream.check_absent(stream)
            more = False
        if not more:
            scan.finished.add(place)
        scan.positions[place] = after if more or once else 0
        scan.scanned += len(found)
        scan.read_bytes += sum(len(reply.payload) for reply in found)
        return found


def nothing_left_up_to(consumer: Mapping[str, Any]) -> int:
    """The sequence up to which a consumer has no message left to deliver."""
    floor = "ack_floor" if consumer["num_ack_pending"] else "delivered"
    return int(consumer[floor]["stream_seq"])
