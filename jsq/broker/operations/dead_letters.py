"""Dead letters: the whole job and why it failed. A job is failed if and only if it has one.

A letter and the record of the failure are one atomic batch. So are the end of a letter and the revision that
follows the failure: the batch overwrites the letter by one that is marked as closed. A closed letter is read
by nobody but a repair, which completes a retry from it. The messages are purged afterwards.
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
from jsq.errors import BadEnvelope, BadOption, JobNotFound, NewerEnvelope, NotAllowed, WrongState
from jsq.model.job import Job, check_queue, check_task
from jsq.model.revision import REASONS, Revision, StoredRevision
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import NoResponders, Reply, WrongSequence, header_line, size_of
from jsq.transport.retrying import publish_with_retry

DEATH = "Jsq-Dead"
CLOSED = "Jsq-Dead-Closed"
"""The header of a letter whose job was retried or removed."""

CALLBACK_SECONDS = 10.0
CALLBACK_POLL_SECONDS = 0.02
"""How long a retry waits for a worker to submit the callbacks of a failure, and how often it looks."""

MAX_DEATH_BYTES = 8_000
HEADER_MARGIN_BYTES = 512


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that will not be tried again by itself. `job` is None for a message that was not a job.

    `death` is the reason as it is stored. `closed` marks a letter whose job was retried since.
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
    death: str = field(default="", repr=False)
    closed: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetterCriteria:
    """Which dead letters: what is said of them goes together, None says nothing.

    `error` is the type of the exception by its name, as in `ValueError: no such year`. A job has all of
    `tags`. `since` and `until` are aware moments of the death. Raises `BadName`, `BadOption`.
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

    def matches(self, letter: DeadLetter) -> bool:
        return (
            self.task in (None, letter.task)
            and self.reason in (None, letter.reason)
            and self.error in (None, letter.error.partition(":")[0])
            and all(letter.job is not None and tag in letter.job.tags for tag in self.tags)
            and (self.since is None or letter.at >= self.since)
            and (self.until is None or letter.at < self.until)
        )


class DeadLetterStore:
    """Writes, reads and replays dead letters."""

    def __init__(self, namespace: Namespace, store: JobStore, lines: KeyGroups) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._records = store.records
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._key_groups = lines

    def message(self, job: Job, failed: Revision) -> OutgoingMessage:
        """The letter of a job whose failure is about to be recorded, for one batch with the record."""
        why = {
            "reason": failed.reason,
            "attempt": failed.attempt,
            "worker": failed.worker,
            "priority": job.priority,
            "error": failed.error,
            "traceback": failed.traceback,
        }
        # A retry begins on the job's own queue, and at the end of its key group.
        submitted = (
            revisions.milliseconds(failed.submitted.timestamp()) if failed.submitted else job.submitted
        )
        headers = envelope.encode(
            replace(job, quarantine="", forgiven_crashes=0, group_slot=None, submitted=submitted)
        )
        headers[DEATH] = encode_death(
            why, self._wire.max_payload - len(job.arguments) - size_of(headers) - HEADER_MARGIN_BYTES
        )
        return letter_message(self._subjects.dead(job.queue, job.task, job.id), job.arguments, headers)

    async def write_raw(self, delivery: Delivery, reason: str, error: str) -> None:
        """Write the letter of a message that is not a job, with its raw bytes, and the record of a failure.

        If the job has a record already, that stands, and only the letter is written.
        """
        id, lease = delivery.id, delivery.lease
        if not delivery.token:
            id = hashlib.sha256(id.encode()).hexdigest()[:32]
        headers = {DEATH: encode_death({"reason": reason, "attempt": 0, "error": error}, MAX_DEATH_BYTES)}
        payload = delivery.payload[: self._wire.max_payload - size_of(headers) - HEADER_MARGIN_BYTES]
        subject = self._subjects.dead(delivery.queue, "_", id)
        if delivery.token:
            body = revisions.encode(Revision("failed", "", reason=reason, error=error))
            letter = letter_message(subject, payload, headers)
            with contextlib.suppress(WrongSequence):
                await self._records.put_with(
                    delivery.queue, id, body, [letter], expect=0, while_=lambda: not lease.lapsed()
                )
                return
        await publish_with_retry(self._wire, subject, payload, headers, while_=lambda: not lease.lapsed())

    async def list(
        self, which: DeadLetterCriteria = DeadLetterCriteria(), most: int | None = None
    ) -> list[DeadLetter]:
        """The letters that fit, oldest first; the first `most` of them."""
        subject = self._subjects.dead(which.queue or "*", which.task or "*", ANY)
        try:
            found = await self._reads.fetch(self._subjects.streams.records, subject)
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.records)
            return []
        newest = {reply.headers["Nats-Subject"]: reply for reply in found}
        letters = [read_dead_letter(reply) for reply in newest.values() if CLOSED not in reply.headers]
        return [one for one in letters if which.matches(one)][:most]

    async def count(self, queue: str = "*") -> int:
        """How many letters there are."""
        try:
            return await self._reads.count(
                self._subjects.streams.records, self._subjects.dead(queue, "*", ANY)
            )
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.records)
            return 0

    async def find(self, id: str, queue: str = "*", *, closed: bool = False) -> DeadLetter | None:
        """The letter of a job; with `closed`, also one that a retry has closed."""
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
        """Remove letters; returns how many. The records of their jobs stay `failed`."""
        subject = self._subjects.dead(queue, "*", id)
        return await self._jetstream.purge(self._subjects.streams.records, subject)

    async def delete(self, found: DeadLetter) -> int:
        """Remove this letter, and none that the same job left later; returns how many."""
        subject = self._subjects.dead(found.queue, "*", found.id)
        return await self._jetstream.purge(self._subjects.streams.records, subject, below=found.sequence + 1)

    async def delete_job(self, found: DeadLetter) -> int:
        """Remove a letter with all that is known of its job, so that its id is free for another.

        Call it again after a crash half way. Raises `WrongState` for a job that has a new life already.
        """
        subjects, queue, id = self._subjects, found.queue, found.id
        last = await self.settled(queue, id)
        if last is not None and last.state != "failed":
            raise WrongState(id, last.state, "removed: only a failed job can")
        # First what could run it again, last what keeps the id from another.
        for lane in {queue, last.current_queue if last is not None else queue}:
            await self._job_writer.remove(lane, id)
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
        """Purge what is left of a job whose record was deleted, and free its id; False if there is none.

        The deletion goes last, so a call after one that broke off finds what is left to do.
        """
        deleted = await self._records.deleted(id, queue)
        if deleted is None:
            return False
        subjects, (queue, sequence) = self._subjects, deleted
        record, stream = subjects.record(queue, id), subjects.streams.records
        for subject in (f"{record}.>", subjects.dead(queue, "*", id)):
            await self._jetstream.purge(stream, subject)
        await self._jetstream.purge(subjects.streams.bucket("ids"), subjects.own_id(id))
        # From here on another job may have the id, and a record of its own.
        await self._jetstream.purge(stream, record, below=sequence + 1)
        return True

    async def delete_record(self, last: StoredRevision, letter: DeadLetter | None) -> None:
        """Delete the record of a job and its letter together. Raises `WrongState` if the record changed."""
        closing = closed_letter(self._subjects, letter) if letter is not None else None
        try:
            await self._records.delete(last.queue, last.job, last, closing)
        except WrongSequence as error:
            raise WrongState(last.job, "changed", "removed: it was retried meanwhile") from error

    async def retry(self, id: str, queue: str = "*", *, arguments: bytes | None = None) -> DeadLetter:
        """Give a failed job a new life under its own id, with all its retries; its letter is removed.

        Its deadline and its expiry are removed. With `arguments`, those replace its own. A second call, and
        one after a crash half way, retries it once. Raises `JobNotFound`, `WrongState`, `BadArguments` (too
        large).
        """
        found = await self.find(id, queue, closed=True)
        if found is None:
            last = await self._job_reader.find(id, queue)
            if last is None:
                raise JobNotFound(id)
            raise WrongState(id, last.state, "tried again: only a failed job, which has a dead letter, can")
        if found.job is None:
            raise WrongState(id, "not a job", f"tried again: {found.error}")
        if arguments is not None:
            self._job_writer.check_size(replace(found.job, arguments=arguments))
            found = replace(found, payload=arguments, job=replace(found.job, arguments=arguments))
        assert found.job is not None
        job = reset_job(found.job)
        job = replace(job, previous_sequence=await self._record_retry(found, job))
        # By way of SCHEDULED: the message that failed may still stand on the queue, unsettled.
        await self._job_writer.schedule(job, None)
        await self._purge_closed(found)
        return found

    async def _record_retry(self, found: DeadLetter, job: Job) -> int:
        """Record that the job is to run again, and close its letter; returns the revision."""
        last = await self.settled(found.queue, found.id)
        if last is not None and last.state == "retrying" and found.closed:
            return last.sequence  # an earlier call broke off before it stored the message
        if last is not None and last.state != "failed":
            raise WrongState(found.id, last.state, "tried again")
        if found.closed:
            raise WrongState(found.id, "retried already", "tried again")
        expect = last.sequence if last is not None else 0
        event = replayed_event(job, self._wire.clock.moment(), expect)
        return await write_replay(self._records, job, event, [self._closing(found, job)], asked="tried again")

    async def settled(self, queue: str, id: str) -> StoredRevision | None:
        """The record of a job, once the worker that recorded its failure has submitted its callbacks.

        That worker settles the message after them. The wait has a limit, because it may have died.
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
        """The closed letter of a job that is retried. A repair can complete the retry from it."""
        headers = envelope.encode(job) | {DEATH: found.death, CLOSED: "retried"}
        return letter_message(self._subjects.dead(found.queue, found.task, found.id), job.arguments, headers)

    async def _purge_closed(self, found: DeadLetter) -> None:
        """Remove a letter that was closed; a user without that permission leaves it to a sweep."""
        subject = self._subjects.dead(found.queue, "*", found.id)
        with contextlib.suppress(NotAllowed):
            reply = await self._reads.last(self._subjects.streams.records, subject, consistent=True)
            if reply is not None and CLOSED in reply.headers:
                below = int(reply.headers["Nats-Sequence"]) + 1
                await self._jetstream.purge(self._subjects.streams.records, subject, below=below)


def closed_letter(subjects: Subjects, found: DeadLetter) -> OutgoingMessage:
    """What overwrites the letter of a job that is removed."""
    return letter_message(subjects.dead(found.queue, found.task, found.id), b"", {CLOSED: "removed"})


def letter_message(subject: str, payload: bytes, headers: Mapping[str, str]) -> OutgoingMessage:
    lines = b"".join([header_line(name, value) for name, value in headers.items()])
    return OutgoingMessage(subject, payload, lines)


def reset_job(job: Job) -> Job:
    """A dead job as its replay begins: nothing counted, and no end set to it."""
    again = replace(job, failures=0, crashes=0, interruptions=0)
    return replace(again, deadline=None, expires=None, retry_until=None)


def read_dead_letter(reply: Reply) -> DeadLetter:
    """A dead letter from its message."""
    _, _, queue, task, token = reply.headers["Nats-Subject"].split(".")
    id = read_id(token)
    why = from_json(reply.headers.get(DEATH, "{}"))
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
        death=reply.headers.get(DEATH, "{}"),
        closed=CLOSED in reply.headers,
    )


def encode_death(why: Mapping[str, object], room: int) -> str:
    """Why a job died, as a header's JSON of at most `room` bytes.

    What is too long is cut: of the traceback the outer frames first, then the error's end.
    """
    told = {name: value for name, value in why.items() if value != ""}
    for name in ("traceback", "error"):
        text = str(told.get(name, ""))
        while text and len(ascii_json(to_json(told))) > min(room, MAX_DEATH_BYTES):
            half = len(text) // 2
            text = text[-half:] if name == "traceback" and half else text[:half]
            told[name] = text
    return ascii_json(to_json(told))
