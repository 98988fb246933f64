"""Reads one job: for its handle, and for a process that does nothing else.

A command with a `Client` imports the code of every operation. `open_lookup` imports only the code that reads
records, so `jsq job get` needs much less CPU time than such a command.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.reader import JobReader
from jsq.broker.jobs.records import RecordStore
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import Subjects
from jsq.errors import JobNotFound, NotAllowed
from jsq.model.attempts import JobAttempt, attempts_of
from jsq.model.job import JobRecord
from jsq.model.revision import StoredRevision, record_fields
from jsq.settings import Login
from jsq.transport.wire import Wire


@dataclass(frozen=True, slots=True)
class JobLookup:
    """Reads single jobs by their ids."""

    reader: JobReader
    records: RecordStore

    async def last(self, id: str, queue: str) -> StoredRevision:
        """The last revision of a job. Raises `JobNotFound`."""
        found = await self.reader.find(id, queue, pending=True)
        if found is None:
            raise JobNotFound(id)
        return found

    async def history(self, id: str, queue: str, *, after: int = 0) -> list[StoredRevision]:
        """The revisions of a job that the server keeps; none if the user may not read them."""
        with contextlib.suppress(NotAllowed):
            return await self.records.history(id, queue, after=after)
        return []

    async def attempts(self, id: str, queue: str) -> list[JobAttempt]:
        """The attempts of a job so far, or the last one for a user who may not read the history."""
        found = attempts_of(await self.history(id, queue))
        if found:
            return found
        last = await self.last(id, queue)
        return attempts_of([last]) if last.sequence else []


@contextlib.asynccontextmanager
async def open_lookup(login: Login, *, namespace: str, name: str) -> AsyncIterator[JobLookup]:
    """Connect, for the time of the block. Raises the errors of `Client.connect`."""
    Subjects(namespace)
    wire = await Wire(login, name=name).open()
    try:
        opened = Namespace.on(wire, namespace)
        records = RecordStore(opened)
        yield JobLookup(JobReader(opened, records, JobExpiry(opened, records)), records)
    finally:
        await wire.close()


def job_record(found: StoredRevision) -> JobRecord:
    """A job's record, from its last revision."""
    return JobRecord(**record_fields(found))
