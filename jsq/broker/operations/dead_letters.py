"""Dead letters: the whole job and why it failed. A job is failed if and only if it has a dead letter.

A dead letter and the record of the failure are one atomic batch. So are the closing of the dead letter and
the revision that follows the failure. That batch overwrites the dead letter with one that is marked as
closed. Only a repair reads a closed dead letter, to complete a retry from it. The messages are purged
afterwards.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic_core import from_json, to_json

from jsq.broker.delivery.delivery import Delivery
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.replay import replayed_event, write_replay
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import Subjects, read_id
from jsq.codec import envelope, revisions
from jsq.codec.envelope import ascii_json
from jsq.codec.subject_token import ANY
from jsq.errors import (
    BadEnvelope,
    BadOption,
    JobNotFound,
    NewerEnvelope,
    NotAllowed,
    WrongState,
)
from jsq.model.job import Job, check_queue, check_task
from jsq.model.revision import FINAL_STATES, REASONS, Revision, StoredRevision
from jsq.model.workflow import PARKED
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import NoResponders, Reply, WrongSequence, header_line, size_of
from jsq.transport.retrying import publish_with_retry

CAUSE = "Jsq-Dead-Letter"
CLOSED = "Jsq-Dead-Letter-Closed"
"""The header of a dead letter whose job was retried or removed."""

CALLBACK_SECONDS = 10.0
CALLBACK_POLL_SECONDS = 0.02
"""How long a retry waits for a worker to submit the callbacks of a failure, and how often it checks."""

MAX_CAUSE_BYTES = 8_000
HEADER_MARGIN_BYTES = 512


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that is not retried automatically. `job` is None for a message that was not a job.

    `cause` is the reason as it is stored. `closed` marks a dead letter whose job was retried since.
    """

    queue: str
    task: str
    id: str
    at: datetime
    reason: str
    error: str
    attempt: int
    payload: bytes
    job: Job | None
    sequence: int
    traceback: str = ""
    cause: str = field(default="", repr=False)
    closed: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetterCriteria:
    """Criteria of dead letters. A dead letter must match all of them; None matches every one.

    `error` is the name of the exception's type, such as `ValueError`. A job must have all of `tags`. `since`
    and `until` are aware times of the failure. Raises `BadName`, `BadOption`.
    """

    queue: str | None = None
    task: str | None = None
    reason: str | None = None
    error: str | None = None
    tags: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_queue(self.queue)
        if self.task is not None:
            check_task(self.task)
        if self.reason is not None and self.reason not in REASONS:
            raise BadOption("reason", self.reason, f"must be one of {', '.join(REASONS)}")
        for name, moment in (("since", self.since), ("until", self.until)):
            if moment is not None and moment.tzinfo is None:
                raise BadOption(name, moment, "must be a datetime with a time zone")

    def matches(self, dead_letter: DeadLetter) -> bool:
        return (
            self.task in (None, dead_letter.task)
            and self.reason in (None, dead_letter.reason)
            and self.error in (None, dead_letter.error.partition(":")[0])
            and all(dead_letter.job is not None and tag in dead_letter.job.tags for tag in self.tags)
            and (self.since is None or dead_letter.at >= self.since)
            and (self.until is None or dead_letter.at < self.until)
        )


class DeadLetterStore:
    """Writes, reads and retries dead letters."""

    def __init__(self, namespace: Namespace, store: JobStore, key_groups: KeyGroups) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._records = store.records
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._key_groups = key_groups

    def message(self, job: Job, failed: Revision) -> OutgoingMessage:
        """The dead letter of a job, for one batch with the record of its failure."""
        why = {
            "reason": failed.reason,
            "attempt": failed.attempt,
            "worker": failed.worker,
            "priority": job.priority,
            "error": failed.error,
            "traceback": failed.traceback,
        }
        # A retry starts on the job's own queue, and at the end of its key group.
        submitted = (
            revisions.milliseconds(failed.submitted.timestamp()) if failed.submitted else job.submitted
        )
        headers = envelope.encode(
            replace(
                job,
                quarantine="",
                forgiven_crashes=0,
                group_slot=None,
                submitted=submitted,
                first_started=job.first_started or envelope.first_start(failed),
            )
        )
        headers[CAUSE] = encode_cause(
            why, self._wire.max_payload - len(job.arguments) - size_of(headers) - HEADER_MARGIN_BYTES
        )
        return dead_letter_message(self._subjects.dead(job.queue, job.task, job.id), job.arguments, headers)

    async def write_raw(self, delivery: Delivery, reason: str, error: str) -> None:
        """Write the dead letter of a message that is not a job, with its raw bytes, and a record as `failed`.

        If there is a record already, keeps it and writes only the dead letter.
        """
        id, lease = delivery.id, delivery.lease
        if not delivery.token:
            id = hashlib.sha256(id.encode()).hexdigest()[:32]
        headers = {CAUSE: encode_cause({"reason": reason, "attempt": 0, "error": error}, MAX_CAUSE_BYTES)}
        payload = delivery.payload[: self._wire.max_payload - size_of(headers) - HEADER_MARGIN_BYTES]
        subject = self._subjects.dead(delivery.queue, "_", id)
        if delivery.token:
            body = revisions.encode(Revision("failed", "", reason=reason, error=error))
            dead_letter = dead_letter_message(subject, payload, headers)
            with contextlib.suppress(WrongSequence):
                await self._records.put_with(
                    delivery.queue, id, body, [dead_letter], expect=0, while_=lambda: not lease.lapsed()
                )
                return
        await publish_with_retry(self._wire, subject, payload, headers, while_=lambda: not lease.lapsed())

    async def list(
        self, criteria: DeadLetterCriteria = DeadLetterCriteria(), most: int | None = None
    ) -> list[DeadLetter]:
        """The dead letters that match, oldest first; at most the first `most`."""
        subject = self._subjects.dead(criteria.queue or "*", criteria.task or "*", ANY)
        try:
            found = await self._reads.fetch(self._subjects.streams.records, subject)
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.records)
            return []
        newest = {reply.headers["Nats-Subject"]: reply for reply in found}
        letters = [read_dead_letter(reply) for reply in newest.values() if CLOSED not in reply.headers]
        return [one for one in letters if criteria.matches(one)][:most]

    async def count(self, queue: str = "*") -> int:
        """How many dead letters there are."""
        try:
            return await self._reads.count(
                self._subjects.streams.records, self._subjects.dead(queue, "*", ANY)
            )
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.records)
            return 0

    async def find(self, id: str, queue: str = "*", *, closed: bool = False) -> DeadLetter | None:
        """The dead letter of a job; with `closed`, also a dead letter that a retry has closed."""
        try:
            subject = self._subjects.dead(queue, "*", id)
            reply = await self._reads.last(self._subjects.streams.records, subject, consistent=True)
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.records)
            return None
        if reply is None or (CLOSED in reply.headers and not (closed and reply.payload)):
            return None
        return read_dead_letter(reply)

    async def purge(self, queue: str = "*", id: str = ANY) -> int:
        """Delete dead letters; returns how many. The records of their jobs stay `failed`."""
        subject = self._subjects.dead(queue, "*", id)
        return await self._jetstream.purge(self._subjects.streams.records, subject)

    async def delete(self, found: DeadLetter) -> int:
        """Delete this dead letter, but not a later one of the same job; returns how many were deleted."""
        subject = self._subjects.dead(found.queue, "*", found.id)
        return await self._jetstream.purge(self._subjects.streams.records, subject, below=found.sequence + 1)

    async def delete_job(self, found: DeadLetter) -> int:
        """Delete a dead letter with all data of its job, so that another job can have its id.

        Call it again after a crash half way. Raises `WrongState` if the job was retried already.
        """
        subjects, queue, id = self._subjects, found.queue, found.id
        last = await self.settled(queue, id)
        if last is not None and last.state != "failed":
            raise WrongState(id, last.state, "removed: only a failed job can")
        # The messages are deleted first, because they could run the job again; the claim on the id is last.
        for name in {queue, last.current_queue if last is not None else queue}:
            await self._job_writer.remove(name, id)
        if found.job is not None and found.job.key:
            await self._key_groups.remove(queue, found.job.key, id)
        if last is not None:
            await self.delete_record(last, found)
            await self.finish_removal(id, queue)
        else:
            await self._jetstream.purge(subjects.streams.bucket("ids"), subjects.own_id(id))
            await self.delete(found)
        return 1

    async def finish_removal(self, id: str, queue: str = "*") -> bool:
        """Purge the remaining data of a job whose record was deleted, and release its id.

        Returns False if there is no deleted record. The mark of the deletion is purged last, so that another
        call can complete this one.
        """
        deleted = await self._records.deleted(id, queue)
        if deleted is None:
            return False
        subjects, (queue, sequence) = self._subjects, deleted
        record, stream = subjects.record(queue, id), subjects.streams.records
        for subject in (f"{record}.>", subjects.dead(queue, "*", id)):
            await self._jetstream.purge(stream, subject)
        await self._jetstream.purge(subjects.streams.bucket("ids"), subjects.own_id(id))
        # From here on another job may have the id and a record.
        await self._jetstream.purge(stream, record, below=sequence + 1)
        return True

    async def delete_record(self, last: StoredRevision, dead_letter: DeadLetter | None) -> None:
        """Delete the record of a job with its dead letter. Raises `WrongState` if the record changed."""
        closing = closed_dead_letter(self._subjects, dead_letter) if dead_letter is not None else None
        try:
            await self._records.delete(last.queue, last.job, last, closing)
        except WrongSequence as error:
            raise WrongState(last.job, "changed", "removed: it was retried meanwhile") from error

    async def retry(self, id: str, queue: str = "*", *, arguments: bytes | None = None) -> DeadLetter:
        """Run a failed job again under its id, with all its retries, and delete its dead letter.

        Its deadline and its expiry are removed. `arguments` replace its arguments, if given. A second call,
        also after a crash half way, does not run the job twice. Raises `JobNotFound`, `WrongState`,
        `BadArguments` (too large).
        """
        found = await self.find(id, queue, closed=True)
        if found is None:
            last = await self._job_reader.find(id, queue)
            if last is None:
                raise JobNotFound(id)
            raise WrongState(id, last.state, why_not_retried(last.state))
        if found.job is None:
            raise WrongState(id, "not a job", f"retried: {found.error}")
        if arguments is not None:
            self._job_writer.check_size(replace(found.job, arguments=arguments))
            found = replace(found, payload=arguments, job=replace(found.job, arguments=arguments))
        assert found.job is not None
        job = reset_job(found.job)
        job = replace(job, previous_sequence=await self._record_retry(found, job))
        # The job goes through SCHEDULED: the message that failed may still be on the queue, not settled yet.
        await self._job_writer.schedule(job, None)
        await self._purge_closed(found)
        return found

    async def _record_retry(self, found: DeadLetter, job: Job) -> int:
        """Record that the job will run again, and close its dead letter; returns the revision."""
        last = await self.settled(found.queue, found.id)
        if last is not None and last.state == "retrying" and found.closed:
            return last.sequence  # an earlier call stopped before it stored the message
        if last is not None and last.state != "failed":
            raise WrongState(found.id, last.state, "retried")
        if found.closed:
            raise WrongState(found.id, "retried already", "retried again")
        expect = last.sequence if last is not None else 0
        event = replayed_event(job, self._wire.clock.moment(), expect)
        return await write_replay(self._records, job, event, [self._closing(found, job)], asked="retried")

    async def settled(self, queue: str, id: str) -> StoredRevision | None:
        """The record of a job, when the worker that recorded its failure has submitted its callbacks.

        That worker settles the message afterwards. The wait has a limit, because the worker may have died.
        """
        end = time.monotonic() + CALLBACK_SECONDS
        while True:
            last = await self._records.last(id, queue, consistent=True)
            pending = last is not None and last.state == "failed" and last.revision.callbacks_pending
            if last is None or not pending or time.monotonic() > end:
                return last
            if not await self._job_reader.is_queued(last.current_queue, last.revision.message):
                return last
            await asyncio.sleep(CALLBACK_POLL_SECONDS)

    def _closing(self, found: DeadLetter, job: Job) -> OutgoingMessage:
        """The closed dead letter of a job that is retried. A repair can complete the retry from it."""
        headers = envelope.encode(job) | {CAUSE: found.cause, CLOSED: "retried"}
        return dead_letter_message(
            self._subjects.dead(found.queue, found.task, found.id), job.arguments, headers
        )

    async def _purge_closed(self, found: DeadLetter) -> None:
        """Delete a closed dead letter. If the login may not, a sweep deletes it."""
        subject = self._subjects.dead(found.queue, "*", found.id)
        with contextlib.suppress(NotAllowed):
            reply = await self._reads.last(self._subjects.streams.records, subject, consistent=True)
            if reply is not None and CLOSED in reply.headers:
                below = int(reply.headers["Nats-Sequence"]) + 1
                await self._jetstream.purge(self._subjects.streams.records, subject, below=below)


def why_not_retried(state: str) -> str:
    """Why a job in a state, which has no dead letter, cannot be retried: the end of an error."""
    if state == "failed":
        return "retried: its dead letter was purged; submit it again under another id"
    if state in FINAL_STATES:
        return "retried: only a failed job can; with again (`jsq job retry --again`) any ended job runs again"
    return "retried: only a failed job can"


def closed_dead_letter(subjects: Subjects, found: DeadLetter) -> OutgoingMessage:
    """The message that overwrites the dead letter of a job that is removed."""
    return dead_letter_message(subjects.dead(found.queue, found.task, found.id), b"", {CLOSED: "removed"})


def dead_letter_message(subject: str, payload: bytes, headers: Mapping[str, str]) -> OutgoingMessage:
    lines = b"".join([header_line(name, value) for name, value in headers.items()])
    return OutgoingMessage(subject, payload, lines)


def reset_job(job: Job) -> Job:
    """A failed job as its retry starts: with all its attempts, and without a deadline or an expiry."""
    again = replace(job, failures=0, crashes=0, interruptions=0)
    if job.flow == PARKED:  # a workflow begins with what has not succeeded
        again = replace(again, flow="")
    return replace(again, deadline=None, expires=None, retry_until=None)


def read_dead_letter(reply: Reply) -> DeadLetter:
    """A dead letter from its message."""
    _, _, queue, task, token = reply.headers["Nats-Subject"].split(".")
    id = read_id(token)
    why = from_json(reply.headers.get(CAUSE, "{}"))
    job = None
    with contextlib.suppress(BadEnvelope, NewerEnvelope):
        priority = why.get("priority", "normal")
        job = envelope.decode(reply.headers, reply.payload, id=id, queue=queue, priority=priority)
    return DeadLetter(
        queue=queue,
        task=task.replace("/", "."),
        id=id,
        at=revisions.parse_time(reply.headers["Nats-Time-Stamp"]),
        reason=why.get("reason", ""),
        error=why.get("error", ""),
        attempt=why.get("attempt", 0),
        payload=reply.payload,
        job=job,
        sequence=int(reply.headers["Nats-Sequence"]),
        traceback=why.get("traceback", ""),
        cause=reply.headers.get(CAUSE, "{}"),
        closed=CLOSED in reply.headers,
    )


def encode_cause(why: Mapping[str, object], room: int) -> str:
    """The reason why a job failed, as a header's JSON of at most `room` bytes.

    If it is too long, it loses the outer frames of the traceback first, then the end of the error.
    """
    fields = {name: value for name, value in why.items() if value != ""}
    for name in ("traceback", "error"):
        text = str(fields.get(name, ""))
        while text and len(ascii_json(to_json(fields))) > min(room, MAX_CAUSE_BYTES):
            half = len(text) // 2
            text = text[-half:] if name == "traceback" and half else text[:half]
            fields[name] = text
    return ascii_json(to_json(fields))
