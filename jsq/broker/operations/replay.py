"""The revision by which a job that has ended runs again under its id."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from jsq.broker.jobs.records import RecordStore
from jsq.codec import revisions
from jsq.errors import WrongState
from jsq.model.job import Job
from jsq.model.revision import Revision, StoredRevision, first_revision
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import WrongSequence

REPLAYED = "replayed"
"""The reason of the revision by which a job runs again."""


def is_replayed(found: StoredRevision) -> bool:
    """Whether a job will run again, and has not started yet."""
    return found.state == "retrying" and found.revision.reason == REPLAYED


def replayed_event(job: Job, now: datetime, expect: int) -> Revision:
    """The revision by which a job runs again, on top of the revision `expect`."""
    submitted = revisions.moment_of(job.submitted) if job.submitted else None
    first = first_revision(job, "retrying", now)
    return replace(first, reason=REPLAYED, token=expect, submitted=submitted)


async def write_replay(
    records: RecordStore,
    job: Job,
    event: Revision,
    others: Sequence[OutgoingMessage] = (),
    *,
    asked: str,
) -> int:
    """Write a revision that `replayed_event` made; returns its sequence.

    `others` are stored with it. A second call returns the sequence that the first call wrote, even if it was
    another caller's. If the record has changed, raises `WrongState` with `asked`, the requested change.
    """
    queue, id, body = job.queue, job.id, revisions.encode(event)
    try:
        if others:
            return await records.put_with(queue, id, body, others, expect=event.token)
        return await records.put(queue, id, body, expect=event.token)
    except WrongSequence as refused:
        last = await records.last(id, queue, consistent=True)
        if last is not None and last.revision.reason == REPLAYED and last.revision.token == event.token:
            return last.sequence
        raise WrongState(id, last.state if last is not None else "removed", asked) from refused
