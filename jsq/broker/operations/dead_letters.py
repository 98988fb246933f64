"""Dead letters: the whole job and why it died. A job is failed if and only if it has one."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic_core import from_json, to_json

from jsq.broker.delivery.delivery import Delivery
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope, events
from jsq.codec.envelope import ascii_json
from jsq.errors import BadEnvelope, BadName, BadOption, JobNotFound, NewerEnvelope, NotAllowed, WrongState
from jsq.model.event import FINAL_STATES, REASONS, Event, LoggedEvent, first_event
from jsq.model.job import Job, check_id, check_queue, check_task
from jsq.transport.replies import NoResponders, Reply, WrongSequence, size_of
from jsq.transport.retrying import publish_with_retry

log = logging.getLogger("jsq.broker")

DEATH = "Jsq-Dead"
MAX_DEATH_BYTES = 8_000
HEADER_MARGIN_BYTES = 512
UNPARSED_RECORD_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that will not be tried again by itself. `job` is None for a message that was no job."""

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
            raise BadOption("reason", self.reason, f"it takes one of {', '.join(REASONS)}")
        for name, moment in (("since", self.since), ("until", self.until)):
            if moment is not None and moment.tzinfo is None:
                raise BadOption(name, moment, "it takes a moment with a time zone")

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
        self._event_log = store.event_log
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._key_groups = lines

    async def write(
        self, job: Job, failed: Event, sequence: int, *, while_: Callable[[], bool] | None = None
    ) -> None:
        """Write the letter of a job whose failure is recorded at `sequence`. Done again, it changes nothing.

        One whose failure was replayed meanwhile is taken back: the replay knew only of an earlier letter.
        """
        why = {
            "reason": failed.reason,
            "attempt": failed.attempt,
            "worker": failed.worker,
            "priority": job.priority,
            "error": failed.error,
            "traceback": failed.traceback,
        }
        # A replay begins at home, and at the end of its line.
        headers = envelope.encode(replace(job, quarantine="", forgiven_crashes=0, group_slot=None))
        headers[DEATH] = encode_death(
            why, self._wire.max_payload - len(job.arguments) - size_of(headers) - HEADER_MARGIN_BYTES
        )
        subject = self._subjects.dead(job.queue, job.task, job.id)
        letter = await publish_with_retry(self._wire, subject, job.arguments, headers, while_=while_)
        last = await self._event_log.last_run(job.queue, job.id)
        if last is not None and last.sequence > sequence:
            try:
                await self._jetstream.purge(self._subjects.streams.dead, subject, below=letter + 1)
            except NotAllowed as error:  # who serves some queues only may not touch what all have died of
                log.warning("stale dead letter not deleted", extra={"job": job.id, "why": str(error)})

    async def write_raw(self, delivery: Delivery, reason: str, error: str) -> None:
        """Write the letter of a message that is no job, with its raw bytes."""
        id, legal = delivery.id, True
        try:
            check_id(id)
        except BadName:
            id, legal = hashlib.sha256(id.encode()).hexdigest()[:32], False
        headers = {DEATH: encode_death({"reason": reason, "attempt": 0, "error": error}, MAX_DEATH_BYTES)}
        payload = delivery.payload[: self._wire.max_payload - size_of(headers) - HEADER_MARGIN_BYTES]
        subject, lease = self._subjects.dead(delivery.queue, "_", id), delivery.lease
        if legal:
            # Someone may wait for it. What the log says already stands.
            event = Event("failed", "", reason=reason, error=error)
            with contextlib.suppress(WrongSequence):
                await self._event_log.write(
                    delivery.queue, id, event, expect=0, ttl=UNPARSED_RECORD_SECONDS, while_=lambda: False
                )
        await publish_with_retry(self._wire, subject, payload, headers, while_=lambda: not lease.lapsed())

    async def list(
        self, which: DeadLetterCriteria = DeadLetterCriteria(), most: int | None = None
    ) -> list[DeadLetter]:
        """The letters that fit, oldest first; the first `most` of them."""
        subject = self._subjects.dead(which.queue or "*", which.task or "*", "*")
        by_subject = which == DeadLetterCriteria(
            which.queue, which.task
        )  # then the server need not send them all
        try:
            found = await self._reads.fetch(
                self._subjects.streams.dead, subject, limit=most if by_subject else None
            )
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.dead)
            return []
        return [one for reply in found if which.matches(one := read_dead_letter(reply))][:most]

    async def count(self, queue: str = "*") -> int:
        """How many letters there are."""
        try:
            return await self._reads.count(self._subjects.streams.dead, self._subjects.dead(queue, "*", "*"))
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.dead)
            return 0

    async def find(self, id: str, queue: str = "*") -> DeadLetter | None:
        try:
            subject = self._subjects.dead(queue, "*", id)
            reply = await self._reads.last(self._subjects.streams.dead, subject, consistent=True)
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.dead)
            return None
        return read_dead_letter(reply) if reply is not None else None

    async def purge(self, queue: str = "*", id: str = "*") -> int:
        """Remove letters; returns how many. The records of their jobs stay `failed`."""
        return await self._jetstream.purge(self._subjects.streams.dead, self._subjects.dead(queue, "*", id))

    async def delete(self, found: DeadLetter) -> int:
        """Remove this letter, and none that the same job left later; returns how many."""
        subject = self._subjects.dead(found.queue, "*", found.id)
        return await self._jetstream.purge(self._subjects.streams.dead, subject, below=found.sequence + 1)

    async def delete_job(self, found: DeadLetter) -> int:
        """Remove a letter with all that is known of its job, so that its id is free for another.

        A crash half way leaves the letter, to be forgotten again. Raises `WrongState` for a job that has a
        new life already.
        """
        subjects, queue, id = self._subjects, found.queue, found.id
        last = await self._event_log.last_run(queue, id)
        if last is not None and last.state != "failed":
            raise WrongState(id, last.state, "forgotten: only a failed job can")
        # First what could run it again, last what keeps the id from another.
        for lane in {queue, last.current_queue if last is not None else queue}:
            await self._job_writer.remove(lane, id)
        if found.job is not None and found.job.key:
            await self._key_groups.remove(queue, found.job.key, id)
        await self._event_log.delete(queue, id)
        await self._jetstream.purge(subjects.streams.bucket("ids"), subjects.key("ids", f"id.{id}"))
        return await self.delete(found)

    async def retry(self, id: str, queue: str = "*", *, arguments: bytes | None = None) -> DeadLetter:
        """Give a dead job a new life under its own id, with all its retries; its letter is removed.

        Its deadline is taken from it, and that it expires. With `arguments`, those take the place of its own.
        Done twice, or again after a crash half way, it is done once. Raises `JobNotFound`, `WrongState`,
        `BadArguments` (too large).
        """
        found = await self.find(id, queue)
        if found is None:
            last = await self._job_reader.find(id, queue)
            if last is None:
                raise JobNotFound(id)
            raise WrongState(id, last.state, "tried again: only a failed job, which has a dead letter, can")
        if found.job is None:
            raise WrongState(id, "not a job", f"tried again: {found.error}")
        if arguments is not None:
            self._job_writer.check_size(replace(found.job, arguments=arguments))
        job = reset_job(found.job)
        job = replace(job, previous_sequence=await self._record_retry(found, job))
        # By way of SCHEDULED: the message that failed may still stand on the queue, unsettled.
        await self._job_writer.schedule(job if arguments is None else replace(job, arguments=arguments), None)
        # This letter alone: the job may have failed again already.
        await self.delete(found)
        return found

    async def _record_retry(self, found: DeadLetter, job: Job) -> int:
        """Record that the job is to run again; returns the sequence that its next attempt builds on."""
        last = await self._event_log.last_run(found.queue, found.id)
        if last is not None and last.state not in FINAL_STATES and await self._is_current(last):
            if last.state == "retrying":
                return last.sequence
            raise WrongState(found.id, last.state, "tried again")
        if last is not None and last.state in ("succeeded", "cancelled", "expired"):
            raise WrongState(found.id, last.state, "tried again")
        event = first_event(job, "retrying", self._wire.clock.moment())
        expect = last.sequence if last is not None else 0
        return await self._event_log.write(found.queue, found.id, event, expect=expect)

    async def _is_current(self, last: LoggedEvent) -> bool:
        """Whether an open event is a job's last word, and not what is left of an expired record."""
        now = await self._event_log.last(last.job, last.queue)
        return now is not None and now.state not in FINAL_STATES


def reset_job(job: Job) -> Job:
    """A dead job as its replay begins: nothing counted, and no end set to it."""
    again = replace(job, failures=0, crashes=0, interruptions=0)
    return replace(again, deadline=None, expires=None, retry_until=None)


def read_dead_letter(reply: Reply) -> DeadLetter:
    """A dead letter from its message."""
    _, _, queue, task, id = reply.headers["Nats-Subject"].split(".")
    why = from_json(reply.headers.get(DEATH, "{}"))
    job = None
    with contextlib.suppress(BadEnvelope, NewerEnvelope):
        priority = why.get("priority", "normal")
        job = envelope.decode(reply.headers, reply.payload, id=id, queue=queue, priority=priority)
    return DeadLetter(
        queue=queue,
        task=task.replace("/", "."),
        id=id,
        at=events.parse_time(reply.headers["Nats-Time-Stamp"]),
        reason=why.get("reason", ""),
        error=why.get("error", ""),
        attempt=why.get("attempt", 0),
        payload=reply.payload,
        job=job,
        sequence=int(reply.headers["Nats-Sequence"]),
        traceback=why.get("traceback", ""),
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
