"""The event log that a namespace may have: a stream that copies every revision of every record.

The log has a retention of its own. So it keeps revisions that the bucket does not: those of records that have
expired, and those before the last 64 of a record. The timestamp of a copy is the time of copying. For this
reason, a revision that the bucket holds too is read from the bucket.

The log sources the bucket, and the server resumes a source by itself. It does so within 0.07 s after a kill
of a single server (12 restarts), and within 0.3 s after a kill of all three servers of a cluster. If only the
leader of the log has died, it takes 5 to 10 s.

Workers resume the source of wake-ups (`jsq.broker.flow.wakeup_source`), but not the source of the log. No job
waits for the log, it catches up by itself, and `follow` and `history` read the bucket meanwhile. Only a
record that is deleted within these seconds is missing in the log.
"""

from dataclasses import replace
from datetime import datetime

from jsq.broker.jobs.records import RecordStore, read_revision
from jsq.broker.topology.namespace import Namespace
from jsq.codec.revisions import format_time
from jsq.errors import NotAllowed
from jsq.model.revision import StoredRevision
from jsq.transport.replies import NoResponders, Reply

ORIGIN = "Nats-Stream-Source"
"""The header of a copy. It begins with the stream and the sequence of the original."""


class EventLog:
    """Reads the history of jobs, also from the event log if there is one."""

    def __init__(self, namespace: Namespace, records: RecordStore) -> None:
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._records = records

    async def history(self, id: str, queue: str, *, since: datetime | None = None) -> list[StoredRevision]:
        """The revisions of a job's record and its reported progress, in order; see `RecordStore.history`."""
        # Reads the log first: a revision that the server deletes from the bucket meanwhile has been copied.
        copies = await self._copies(id, queue, since)
        try:
            held = await self._records.history(id, queue, since=since)
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.records)
            held = []
        known = {one.sequence for one in held}
        found = held + [one for one in copies if one.sequence not in known]
        return sorted(found, key=lambda one: one.sequence)

    async def _copies(self, id: str, queue: str, since: datetime | None) -> list[StoredRevision]:
        stream = self._subjects.streams.events
        try:
            if await self._jetstream.stream_info(stream) is None:
                return []
            start = format_time(since) if since is not None else ""
            replies = await self._reads.fetch(stream, self._subjects.event(queue, id), since=start)
        except (NoResponders, NotAllowed):
            return []
        return [stored for reply in replies if (stored := read_copy(reply)) is not None]


def read_copy(reply: Reply) -> StoredRevision | None:
    """The revision in a copy, with the sequence of the original."""
    origin = reply.headers.get(ORIGIN, "").split()
    if len(origin) < 2 or not origin[1].isdecimal():
        return None
    found = read_revision(reply)
    return replace(found, sequence=int(origin[1])) if found is not None else None
