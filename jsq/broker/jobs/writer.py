"""Stores jobs: on their queue, in the SCHEDULED stream, or under an id that a caller chose."""

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias, TypeVar

from jsq.broker.delivery.delivery import REQUEUED, Delivery
from jsq.broker.jobs.backpressure import Backpressure, WaitForRoom
from jsq.broker.jobs.messages import (
    ROOM_FOR_HEADERS,
    JobTemplate,
    check_size,
    job_message,
    job_template,
    matches,
    schedule_headers,
    schedule_target,
    seconds_until,
)
from jsq.broker.jobs.reader import JobReader
from jsq.broker.jobs.records import EXPECTED, TTL, RecordStore
from jsq.broker.topology.configs import ID_SECONDS
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.codec.subject_token import Token
from jsq.errors import (
    BrokerFull,
    BrokerUnavailable,
    QueueFull,
    SubmitUnknown,
)
from jsq.model.job import Job, Priority
from jsq.model.revision import FINAL_STATES
from jsq.transport.replies import NoReply, NoResponders, WrongSequence, block, own_headers, sequence_of
from jsq.transport.retrying import DEADLINE_SECONDS, publish_with_retry
from jsq.transport.server_clock import PAST, has_outlived_ttl
from jsq.transport.wire import Headers

T = TypeVar("T")

Message: TypeAlias = tuple[str, bytes, Headers]
"""A message as it is published: its subject, its body and its headers."""


@dataclass(frozen=True, slots=True)
class IdClaim:
    """The claim of an id that a caller chose: `new` if this call wrote it, `stored` if the job is stored."""

    new: bool
    queue: str
    stored: bool
    revision: int


class JobWriter:
    """Stores, schedules, requeues and removes jobs."""

    def __init__(
        self, namespace: Namespace, records: RecordStore, reader: JobReader, backpressure: Backpressure
    ) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = records
        self._backpressure = backpressure
        self._reader = reader

    # -- submit ------------------------------------------------------------------------------------------

    async def submit(self, job: Job, due: datetime | None = None, wait: WaitForRoom | None = None) -> None:
        """Store a job with a generated id, to run at once or when due; with `wait`, wait for room.

        Raises `QueueFull`, `BrokerFull`, `BadArguments` (too large), `SubmitUnknown` and `BrokerUnavailable`.
        """
        self.check_size(job)
        if job.waits_for_key:
            await self._streams.ensure_groups(job.queue)
        stored = job_message(self._subjects, self.dated(job, due), due)
        message: Message = stored.subject, job.arguments, block(stored.lines)
        await self._submit(job.queue, job.id, lambda: self._store(job.current_queue, message), wait)

    def dated(self, job: Job, due: datetime | None) -> Job:
        """A job with the time of its submit, if the server will not store its first message at that time."""
        if due is None or job.submitted:
            return job
        return replace(job, submitted=round(1000 * self._wire.clock.now()))

    def template(self, job: Job) -> JobTemplate:
        """The template of jobs like this one, for `submit_like`."""
        return job_template(self._subjects, job)

    async def submit_like(self, template: JobTemplate, id: str, arguments: bytes) -> None:
        """Store a job with this id and these arguments, and everything else from a template; see `submit`.

        The id must be generated: a generated id is its own token.
        """
        job = template.job
        if 2 * len(arguments) >= self._wire.max_payload - ROOM_FOR_HEADERS:
            self.check_size(replace(job, id=id, arguments=arguments))
        if job.key and job.queue not in self._streams.with_groups:
            await self._streams.ensure_groups(job.queue)
        message = f"{template.subject}{id}", arguments, f"{template.headers}{id}\r\n\r\n".encode()
        await self._submit(job.queue, id, lambda: self._store(job.queue, message), None)

    async def submit_if_absent(
        self, job: Job, due: datetime | None = None, wait: WaitForRoom | None = None, *, expect: int = 0
    ) -> bool:
        """Store a job as `submit` does. Returns False, and stores nothing, if a message with its id exists.

        With `expect`, replaces the schedule that has this sequence; see `replace_scheduled`.
        """
        self.check_size(job)
        return await self._submit(job.queue, job.id, lambda: self._store_if_absent(job, due, expect), wait)

    async def _submit(
        self, queue: str, id: str, put: Callable[[], Awaitable[T]], wait: WaitForRoom | None
    ) -> T:
        """Store a job; translates an error into what it means for the job."""
        try:
            return await (put() if wait is None else self._backpressure.wait(queue, put, wait))
        except NoReply as error:
            if not error.sent:
                raise
            raise SubmitUnknown(id, DEADLINE_SECONDS, str(error)) from error
        except NoResponders as error:
            raise no_leader_error(queue, error) from error
        except QueueFull as full:
            raise await self._backpressure.with_limit(full) from None

    async def submit_once(
        self, job: Job, due: datetime | None = None, wait: WaitForRoom | None = None
    ) -> tuple[str, bool]:
        """Store a job with an id that the caller chose, once; returns its queue, and whether it existed."""
        self.check_size(job)
        keep = str(round(ID_SECONDS + seconds_until(due, self._wire.clock.moment())))
        claim = await self._backpressure.wait(job.queue, lambda: self._claim(job, keep), wait)
        if (not claim.new and claim.stored) or await self._records.last(
            job.id, claim.queue, consistent=True
        ) is not None:
            # Checked for a new claim, too: a record may outlive the claim of its id.
            return claim.queue, True
        existed = (
            not claim.new
            and await self._reader.find_by_message(job.id, claim.queue, consistent=False) is not None
        )
        # The claim is new, or its client may have died before it stored the job. If the job exists, this
        # stores nothing.
        await self.submit(replace(job, queue=claim.queue), due, wait)
        stored = json.dumps({"queue": claim.queue, "stored": True}).encode()
        key = self._subjects.own_id(job.id)
        self._wire.send(key, stored, {EXPECTED: str(claim.revision), TTL: keep})
        return claim.queue, existed

    async def enqueue(self, job: Job, *, while_: Callable[[], bool] | None = None) -> bool:
        """Store a job on its queue, or in its key group, unless its message exists there.

        Returns whether that took more than one try.
        """
        return await self._store_job(job, None, while_)

    async def schedule(
        self, job: Job, due: datetime | None, *, while_: Callable[[], bool] | None = None
    ) -> bool:
        """Schedule a job for its queue, unless a schedule with its id exists.

        Returns whether that took more than one try.
        """
        return await self._store_job(job, due or PAST, while_)

    async def _store_job(self, job: Job, due: datetime | None, while_: Callable[[], bool] | None) -> bool:
        if job.waits_for_key:
            await self._streams.ensure_groups(job.queue)
        message = job_message(self._subjects, job, due)
        with contextlib.suppress(WrongSequence):
            headers = block(message.lines)
            _, retried = await self._publish(
                job.current_queue, message.subject, job.arguments, headers, while_
            )
            return retried
        return False

    async def replace_scheduled(self, job: Job, due: datetime, *, expect: int) -> bool:
        """Replace the schedule of a job that has the sequence `expect`; 0 if the job has no schedule yet.

        Returns False if the server has published that schedule, or another client has replaced it.
        """
        subject = self._subjects.scheduled(job.current_queue, job.id)
        headers = {
            **envelope.encode(job),
            **schedule_headers(due, schedule_target(self._subjects, job)),
            EXPECTED: str(expect),
        }
        try:
            await self._publish(job.current_queue, subject, job.arguments, headers, None)
        except WrongSequence:  # perhaps because of the first try of this call, whose answer was lost
            found = await self._reads.last(
                self._subjects.streams.scheduled(job.current_queue), subject, consistent=True
            )
            return found is not None and matches(found, headers, job.arguments)
        return True

    async def enqueue_once(self, job: Job, *, while_: Callable[[], bool]) -> None:
        """Store a job whose id is derived from its cause. Calling twice stores it once.

        The server refuses the message while the first one exists. Once the job has run, its record prevents
        another start.
        """
        self.check_size(job)
        await self.enqueue(job, while_=while_)

    async def publish_shared(self, subject: str, payload: bytes, headers: Headers) -> int:
        """Store a value that belongs to no queue, such as a claim; returns its sequence.

        Raises `WrongSequence`.
        """
        return (await self._publish(None, subject, payload, headers))[0]

    async def ensure_scheduled(
        self, job: Job, due: datetime | None, *, while_: Callable[[], bool] | None = None
    ) -> None:
        """Schedule the next attempt of a job, which its record announces at `job.previous_sequence`.

        If the job was cancelled meanwhile, removes the schedule: the record may expire before it is due.
        """
        await self.schedule(job, due, while_=while_)
        last = await self._records.last(job.id, job.queue)
        if last is not None and last.sequence > job.previous_sequence and last.state in FINAL_STATES:
            await self._jetstream.purge(
                self._subjects.streams.scheduled(job.current_queue),
                self._subjects.scheduled(job.current_queue, job.id),
            )

    async def remove(self, queue: str, id: str, *, keyed: bool = True) -> None:
        """Remove a job's messages from a queue, its key group and its SCHEDULED stream.

        A job that is not `keyed` was never in a key group.
        """
        subjects, purge = self._subjects, self._jetstream.purge
        ready, scheduled = subjects.streams.ready(queue), subjects.streams.scheduled(queue)
        await purge(scheduled, subjects.scheduled(queue, id))
        if keyed and await self._streams.has_groups(queue):
            await purge(scheduled, subjects.groups.due(queue, "*", id))
            await purge(subjects.streams.groups(queue), subjects.groups.job(queue, "*", id))
        # A due message stays for a moment after a worker has stored it in the READY stream.
        await purge(scheduled, subjects.due(queue, "*", id))
        await purge(ready, subjects.ready(queue, "*", id))

    async def requeue(
        self,
        delivery: Delivery,
        delay: float,
        *,
        level: Priority | None = None,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Schedule a copy of a delivered message for its queue after `delay` seconds.

        It keeps its priority, or gets the one of `level`. `marks` are headers to add or replace; an empty
        value removes the header.
        """
        target = self._subjects.due(delivery.queue, level or delivery.priority, delivery.id)
        headers = own_headers(delivery.headers) | dict(marks or {})
        kept = {name: value for name, value in headers.items() if value} | {REQUEUED: "1"}
        await self.requeue_message(target, delivery.payload, kept, delay)

    async def requeue_message(
        self, target: str, payload: bytes, headers: Mapping[str, str], delay: float = 0.0
    ) -> None:
        """Schedule a message for its queue after `delay` seconds, unless its job is scheduled."""
        _, _, queue, _, token = target.split(".")
        due = self._wire.clock.moment() + timedelta(seconds=delay)
        with contextlib.suppress(WrongSequence):
            subject = self._subjects.scheduled(queue, Token(token))
            await self._publish(queue, subject, payload, {**headers, **schedule_headers(due, target)}, None)

    def check_size(self, job: Job, index: int = 0) -> None:
        """Raise `BadArguments` if a job is larger than the server accepts."""
        check_size(job, self._wire.max_payload, index)

    # -- inside ------------------------------------------------------------------------------------------

    async def _store(self, queue: str, message: Message) -> None:
        """Store a job, unless its message exists."""
        with contextlib.suppress(WrongSequence):
            await self._publish(queue, *message)

    async def _store_if_absent(self, job: Job, due: datetime | None, expect: int) -> bool:
        """Store a job; returns False if its message exists."""
        if due is not None:
            return await self.replace_scheduled(self.dated(job, due), due, expect=expect)
        message = job_message(self._subjects, job)
        try:
            await self._publish(job.current_queue, message.subject, job.arguments, block(message.lines), None)
        except WrongSequence:
            return False
        return True

    async def _publish(
        self,
        queue: str | None,
        subject: str,
        payload: bytes,
        headers: Headers,
        while_: Callable[[], bool] | None = None,
    ) -> tuple[int, bool]:
        """Store a message; creates its queue, or the shared streams, if they are missing.

        Returns its sequence, and whether that took a second try. Raises `NoReply` if the server may have
        stored it, `NoResponders` if it has not, and the error of the server if it refuses the message.
        """
        try:
            return await self._wire.publish(subject, payload, headers), False
        except NoResponders as error:
            failed: NoReply | NoResponders | BrokerFull = error
            await self._streams.recreate(queue)
        except NoReply as error:
            failed = error
        except BrokerFull as error:
            if while_ is None:
                raise
            failed = error
        return await publish_with_retry(
            self._wire, subject, payload, headers, while_=while_, failed=failed
        ), True

    async def _claim(self, job: Job, keep: str, *, expect: int = 0) -> IdClaim:
        key = self._subjects.own_id(job.id)
        value = json.dumps({"queue": job.queue, "stored": False}).encode()
        try:
            revision = await self.publish_shared(key, value, {EXPECTED: str(expect), TTL: keep})
            return IdClaim(True, job.queue, False, revision)
        except WrongSequence:
            reply = await self._reads.last(self._subjects.streams.bucket("ids"), key, consistent=True)
            if reply is None:
                return await self._claim(job, keep)
            if has_outlived_ttl(reply, self._wire.clock):
                return await self._claim(job, keep, expect=sequence_of(reply))
            held = json.loads(reply.payload)
            return IdClaim(False, held["queue"], held["stored"], sequence_of(reply))


def no_leader_error(queue: str, error: NoResponders) -> BrokerUnavailable:
    """The error of a submit that no leader has answered until the deadline."""
    return BrokerUnavailable(f"queue {queue} has had no leader for {DEADLINE_SECONDS:g} s: {error}")
