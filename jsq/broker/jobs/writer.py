"""Jobs on their way: waiting on the queue, due later, claimed by an id."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from jsq.broker.delivery.delivery import LEVEL, Delivery
from jsq.broker.jobs.backpressure import Backpressure, WaitForRoom
from jsq.broker.jobs.event_log import EXPECTED, MOST_KEYS, TTL, EventLog, expected
from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.topology.configs import ID_SECONDS
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope, events
from jsq.errors import (
    BadArguments,
    BadEnvelope,
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    JobNotFound,
    NewerEnvelope,
    NotAllowed,
    QueueFull,
    SubmitUnknown,
)
from jsq.model.event import FINAL_STATES, Event, LoggedEvent, first_event
from jsq.model.job import PRIORITIES, Job, Priority
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import FULL, NoReply, NoResponders, Reply, WrongSequence, block, line
from jsq.transport.server_clock import PAST
from jsq.transport.wire import DEADLINE_SECONDS, Headers

T = TypeVar("T")

RECHECK = 5.0
"""Seconds after which one who waits looks at the log again, in case a message was lost on its way."""

SCHEDULE = "Nats-Schedule"
TARGET = "Nats-Schedule-Target"
"""When the server puts a message in its place, and where."""

ROOM_FOR_HEADERS = 2_048
"""Bytes of a message left for the headers that the server and retries add."""


@dataclass(frozen=True, slots=True)
class IdClaim:
    """Who holds a caller's own id: `new` when it is us; `stored` when the job's message has been stored."""

    new: bool
    queue: str
    stored: bool
    revision: int


class Jobs:
    """Puts jobs where they belong, and finds them again."""

    def __init__(self, namespace: Namespace, log: EventLog, room: Backpressure) -> None:
        self._wire = namespace.wire
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._event_log = log
        self._room = room
        self._expiries = JobExpiry(namespace, log)

    # -- submit ------------------------------------------------------------------------------------------

    async def submit(
        self, job: Job, due: datetime | None = None, patience: WaitForRoom | None = None
    ) -> None:
        """Store a job with an id of its own making, to run at once or when due; wait for room with patience.

        Raises `QueueFull`, `BrokerFull`, `BadArguments` (too large), `SubmitUnknown`, `BrokerUnavailable`.
        """
        self.check_size(job)
        if job.waits_for_key:
            await self._streams.ensure_line(job.queue)
        put = self._put if patience is None else self._put_patiently
        await self._submit(job, lambda: put(job, due), patience)

    async def submit_alone(
        self, job: Job, due: datetime | None = None, patience: WaitForRoom | None = None, *, expect: int = 0
    ) -> bool:
        """Store a job as `submit` does, unless a message with its id stands: then False, and ours is lost.

        In the place of its schedule that has the sequence `expect`, see `replace_later`.
        """
        return await self._submit(job, lambda: self._put_alone(job, due, expect), patience)

    async def _submit(self, job: Job, put: Callable[[], Awaitable[T]], patience: WaitForRoom | None) -> T:
        self.check_size(job)
        try:
            return await self._room.find(job.queue, put, patience)
        except NoReply as error:
            if not error.sent:
                raise
            raise SubmitUnknown(job.id, DEADLINE_SECONDS, str(error)) from error
        except NoResponders as error:
            raise BrokerUnavailable(f"queue {job.queue} has had no leader for long: {error}") from error
        except QueueFull as full:
            raise await self._room.told(full) from None

    async def submit_once(
        self, job: Job, due: datetime | None = None, patience: WaitForRoom | None = None
    ) -> tuple[str, bool]:
        """Store a job under the caller's own id, once; returns its queue, and whether it was there."""
        self.check_size(job)
        keep = str(round(ID_SECONDS + seconds_until(due)))
        claim = await self._room.find(job.queue, lambda: self._claim(job, keep), patience)
        if not claim.new and (
            claim.stored or await self._event_log.last_run(claim.queue, job.id) is not None
        ):
            return claim.queue, True
        stood = not claim.new and await self._by_message(job.id, claim.queue, consistent=False) is not None
        # New, or claimed by one who may have died before storing it. If it stands, this stores nothing.
        await self.submit(replace(job, queue=claim.queue), due, patience)
        stored = json.dumps({"queue": claim.queue, "stored": True}).encode()
        key = self._subjects.key("ids", f"id.{job.id}")
        self._wire.send(key, stored, {EXPECTED: str(claim.revision), TTL: keep})
        return claim.queue, stood

    async def put_ready(self, job: Job, *, until: Callable[[], bool] | None = None) -> bool:
        """Put a job's message on its queue, or into its key's line, unless one with its id stands there.

        Returns whether that took more than one try.
        """
        if job.waits_for_key:
            await self._streams.ensure_line(job.queue)
        message = self.message(job)
        with contextlib.suppress(WrongSequence):
            return await self._store(
                job.current_queue, message.subject, job.arguments, block(message.lines), until
            )
        return False

    async def put_later(
        self, job: Job, due: datetime | None, *, until: Callable[[], bool] | None = None
    ) -> bool:
        """Have the server put a job's message on its queue when it is due, unless that stands already.

        Returns whether that took more than one try.
        """
        if job.waits_for_key:
            await self._streams.ensure_line(job.queue)
        message = self.message(job, due or PAST)
        with contextlib.suppress(WrongSequence):
            return await self._store(
                job.current_queue, message.subject, job.arguments, block(message.lines), until
            )
        return False

    async def replace_later(self, job: Job, due: datetime, *, expect: int) -> bool:
        """Put a job in the place of its schedule that has the sequence `expect`; 0 where there is none yet.

        False if that has fired, or is another by now.
        """
        subject = self._subjects.scheduled(job.current_queue, job.id)
        headers = {**envelope.encode(job), **scheduled(due, self._target(job)), EXPECTED: str(expect)}
        try:
            await self._store(job.current_queue, subject, job.arguments, headers, None)
        except WrongSequence:  # perhaps our own first try, whose answer was lost
            found = await self._wire.last(
                self._subjects.scheduled_stream(job.current_queue), subject, consistent=True
            )
            return found is not None and same(found, headers, job.arguments)
        return True

    async def put_once(self, job: Job, *, until: Callable[[], bool]) -> None:
        """Store a job whose id follows from what it is submitted for; done again, it is there once.

        One that stands is not stored again, and one that has run its log refuses to run again.
        """
        self.check_size(job)
        await self.put_ready(job, until=until)
        self._event_log.note_submitted(job, None)

    async def put_shared(self, subject: str, payload: bytes, headers: Headers) -> int:
        """Store what belongs to no queue, as a claim; returns its sequence. Raises `WrongSequence`."""
        return (await self._publish(None, subject, payload, headers))[0]

    async def ensure_scheduled(
        self, job: Job, due: datetime | None, *, until: Callable[[], bool] | None = None
    ) -> None:
        """See that the next attempt of a job stands, which its log promises at `job.after`.

        One that was cancelled meanwhile is taken away again: its record may expire before it is due.
        """
        await self.put_later(job, due, until=until)
        last = await self._event_log.last_run(job.queue, job.id)
        if last is not None and last.sequence > job.previous_sequence and last.state in FINAL_STATES:
            await self._streams.purge(
                self._subjects.scheduled_stream(job.current_queue),
                self._subjects.scheduled(job.current_queue, job.id),
            )

    async def remove(self, lane: str, id: str, *, keyed: bool = True) -> None:
        """Take a job's messages off a queue: what waits, in its key's line too, and what is due later.

        One that is known not to be `keyed` was never in a line.
        """
        names = self._subjects
        await self._streams.purge(names.scheduled_stream(lane), names.scheduled(lane, id))
        if keyed and await self._streams.has_line(lane):
            await self._streams.purge(names.scheduled_stream(lane), names.group_due(lane, "*", id))
            await self._streams.purge(names.groups_stream(lane), names.group_job(lane, "*", id))
        await self._streams.purge(names.ready_stream(lane), names.ready(lane, "*", id))

    async def put_aside(
        self,
        delivery: Delivery,
        delay: float,
        *,
        level: Priority | None = None,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Have a message come again after some seconds, under a new number: as it is, or at another priority
        and with other headers; one that is empty is taken off.
        """
        target = self._subjects.due(delivery.queue, level or delivery.priority, delivery.id)
        headers = own(delivery.headers) | dict(marks or {})
        kept = {name: value for name, value in headers.items() if value}
        await self.put_again(target, delivery.payload, kept, delay)

    async def put_again(
        self, target: str, payload: bytes, headers: Mapping[str, str], delay: float = 0.0
    ) -> None:
        """Have the server put a message on its queue after some seconds, unless one of its job is due."""
        _, _, queue, _, id = target.split(".")
        due = self._wire.clock.moment() + timedelta(seconds=delay)
        with contextlib.suppress(WrongSequence):
            subject = self._subjects.scheduled(queue, id)
            await self._store(queue, subject, payload, {**headers, **scheduled(due, target)}, None)

    def message(self, job: Job, due: datetime | None = None) -> OutgoingMessage:
        """A job's message for its queue or its key's line, or one that the server puts there when due.

        It is stored unless one with the job's id stands in the same place.
        """
        names = self._subjects
        order = b"".join([line(name, value) for name, value in envelope.encode(job).items()])
        if due is None and job.waits_for_key:
            subject = names.group_job(job.queue, job.key_token, job.id)
            return OutgoingMessage(subject, job.arguments, order + expected(0, subject))
        if due is None:
            lines = order + expected(0, names.ready(job.current_queue, "*", job.id))
            return OutgoingMessage(names.ready(job.current_queue, job.priority, job.id), job.arguments, lines)
        due_there = scheduled(due, self._target(job))
        lines = order + b"".join([line(name, value) for name, value in due_there.items()])
        return OutgoingMessage(names.scheduled(job.current_queue, job.id), job.arguments, lines)

    def _target(self, job: Job) -> str:
        """Where the server puts a job that was due later."""
        if job.waits_for_key:
            return self._subjects.group_due(job.queue, job.key_token, job.id)
        return self._subjects.due(job.current_queue, job.priority, job.id)

    def check_size(self, job: Job, place: int = 0) -> None:
        """Raises `BadArguments` for a job that is larger than the server takes."""
        limit = self._wire.max_payload - ROOM_FOR_HEADERS
        if len(job.arguments) < limit // 2:
            return
        headers = sum(len(name) + len(value) + 4 for name, value in envelope.encode(job).items())
        if len(job.arguments) + headers > limit:
            raise BadArguments(
                f"{job.task}: the arguments take {len(job.arguments):,} bytes, the options {headers:,}; "
                f"the server takes {limit:,} in all: put the content elsewhere and send its address",
                place,
            )

    # -- find --------------------------------------------------------------------------------------------

    async def find(self, id: str, queue: str = "*", *, consistent: bool = False) -> LoggedEvent | None:
        """A job's last event, as it reads now. One without a first event (yet) is found by its message.

        What a replica does not know of, the leaders may; to be `consistent`, they alone are asked.
        """
        try:
            found = None if consistent else await self._find(id, queue)
            if found is None or (await self._expiries.apply_expiry(found)).state != found.state:
                found = await self._find(
                    id, queue, consistent=True
                )  # it may have begun, and the replica be behind
        except NoResponders:
            if await self._streams.info(self._subjects.events_stream) is not None:
                raise  # it has no leader just now
            await self._streams.ensure_shared()
            return None
        return found if found is None else await self._expiries.apply_expiry(found)

    async def outcome(self, id: str, queue: str) -> LoggedEvent:
        """Wait for a job's final event. Raises `JobNotFound`."""
        async for found in self.follow(id, queue):
            if found.state in FINAL_STATES:
                return found
        raise JobNotFound(id)

    async def follow(self, id: str, queue: str) -> AsyncIterator[LoggedEvent]:
        """A job's last event, then each that the server stores, to the final one. Raises `JobNotFound`."""
        arrived: asyncio.Queue[LoggedEvent] = asyncio.Queue()
        seen, consistent = -1, False
        last: LoggedEvent | None = None
        async with self._event_log.hearing(id, queue, arrived):
            while True:
                if self._wire.closed:
                    raise BrokerUnavailable(f"the connection to {self._wire.login.shown} was closed")
                with contextlib.suppress(NoReply, NoResponders):
                    last = await self.find(id, queue, consistent=consistent)
                    if last is None:
                        raise JobNotFound(id)
                    arrived.put_nowait(last)
                    self._wire.check_denied(self._subjects.stored_events(queue, id))
                    consistent = True  # nothing came: the replica that was asked may be far behind
                with contextlib.suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(self._expiries.left(last, RECHECK)):
                            event = await arrived.get()
                        if event.sequence > seen or event.state == "expired":
                            seen, last = event.sequence, event
                            yield event
                            if event.state in FINAL_STATES:
                                return

    async def stands(self, queue: str, sequence: int) -> bool:
        """Whether the message with a sequence is still on its queue."""
        return await self._wire.at(self._subjects.ready_stream(queue), sequence, consistent=True) is not None

    async def in_line(self, queue: str, id: str) -> Reply | None:
        """The message of a job with a key that is due, or waits in its line, as the leaders know."""
        if not await self._streams.has_line(queue):
            return None
        names = self._subjects
        for stream, subject in (
            (names.scheduled_stream(queue), names.group_due(queue, "*", id)),
            (names.groups_stream(queue), names.group_job(queue, "*", id)),
        ):
            found = await self._wire.last(stream, subject, consistent=True)
            if found is not None:
                return found
        return None

    async def on_queue(self, queue: str, ids: Sequence[str]) -> set[str]:
        """Those of some ids whose message stands on a queue; none where we may not look."""
        found: set[str] = set()
        with contextlib.suppress(NoResponders, NotAllowed):
            for start in range(0, len(ids), MOST_KEYS):
                subjects = [self._subjects.ready(queue, "*", id) for id in ids[start : start + MOST_KEYS]]
                replies = await self._wire.last_of(self._subjects.ready_stream(queue), subjects)
                found.update(reply.headers["Nats-Subject"].rpartition(".")[2] for reply in replies)
        return found

    async def known(self, queue: str, ids: Sequence[str]) -> set[str]:
        """Those of some ids of which there is a job: on the queue, due later, running or ended."""
        # In this order: what leaves the queue in between has begun, and the log knows of it.
        standing = await self.on_queue(queue, ids)
        return standing | await self._event_log.known(queue, [id for id in ids if id not in standing])

    async def waiting(self, queue: str) -> list[str]:
        """The ids of the jobs whose message stands on a queue or is due later: waiting or running."""
        return [found.job for found in await self.standing(queue)]

    async def standing(self, queue: str) -> list[LoggedEvent]:
        """The jobs whose message stands on a queue or is due later (waiting or running)."""
        found: list[LoggedEvent] = []
        for stream, subject, state in await self._places(queue, "*"):
            with contextlib.suppress(NoResponders):
                for reply in await self._wire.each(stream, subject):
                    id = reply.headers["Nats-Subject"].rpartition(".")[2]
                    found.append(told(queue, id, reply, state))
        return found

    # -- inside ------------------------------------------------------------------------------------------

    async def _put(self, job: Job, due: datetime | None) -> None:
        """Store a job, its first event beside it.

        Both go in one turn of the loop, so that the event never covers what a worker has written.
        """
        self._event_log.note_submitted(job, due)
        try:
            if await (self.put_later(job, due) if due else self.put_ready(job)):
                # There was no log yet for the first one, or no connection.
                self._event_log.note_submitted(job, due)
        except FULL:
            with contextlib.suppress(BrokerError):
                await self._event_log.note_refused(job, due)
            raise

    async def _put_patiently(self, job: Job, due: datetime | None) -> None:
        """Store a job, then its first event: a try that finds no room leaves nothing to be taken back."""
        await (self.put_later(job, due) if due else self.put_ready(job))
        self._event_log.note_submitted(job, due)

    async def _put_alone(self, job: Job, due: datetime | None, expect: int) -> bool:
        """Store a job, then its first event; False where another message of it stands."""
        if due is not None:
            if not await self.replace_later(job, due, expect=expect):
                return False
        else:
            message = self.message(job)
            try:
                await self._store(
                    job.current_queue, message.subject, job.arguments, block(message.lines), None
                )
            except WrongSequence:
                return False
        if expect:
            self._event_log.note_moved(job, due)
        else:
            self._event_log.note_submitted(job, due)
        return True

    async def _places(self, queue: str, id: str) -> tuple[tuple[str, str, str], ...]:
        """Where a job's message may stand: a stream, a subject of it, and what the job is then."""
        names = self._subjects
        later = names.scheduled_stream(queue)
        places = (
            (names.ready_stream(queue), names.ready(queue, "*", id), "queued"),
            (later, names.scheduled(queue, id), "scheduled"),
            # Due, and not yet taken over by the queue: after a restart of the server that takes seconds.
            (later, names.due(queue, "*", id), "queued"),
        )
        if not await self._streams.has_line(queue):
            return places
        line = (names.groups_stream(queue), names.group_job(queue, "*", id), "queued")
        # Where it goes from a place to the next one, it is looked for in this order.
        return ((later, names.group_due(queue, "*", id), "queued"), line, *places)

    async def _store(
        self,
        queue: str,
        subject: str,
        payload: bytes,
        headers: Headers,
        until: Callable[[], bool] | None,
    ) -> bool:
        """Store a message. Returns whether that took a second try.

        Raises `NoReply` where it may have been stored, `NoResponders` where it was not, and what it was told.
        """
        return (await self._publish(queue, subject, payload, headers, until))[1]

    async def _publish(
        self,
        queue: str | None,
        subject: str,
        payload: bytes,
        headers: Headers,
        until: Callable[[], bool] | None = None,
    ) -> tuple[int, bool]:
        """Store a message; makes its queue, or what is shared, where that is missing.

        Returns its sequence, and whether that took a second try.
        """
        try:
            return await self._wire.publish(subject, payload, headers), False
        except NoResponders as error:
            failed: NoReply | NoResponders | BrokerFull = error
            await self._streams.make_anew(queue)
        except NoReply as error:
            failed = error
        except BrokerFull as error:
            if until is None:
                raise
            failed = error
        return await self._wire.publish_with_retry(
            subject, payload, headers, until=until, failed=failed
        ), True

    async def _claim(self, job: Job, keep: str) -> IdClaim:
        key = self._subjects.key("ids", f"id.{job.id}")
        value = json.dumps({"queue": job.queue, "stored": False}).encode()
        try:
            revision = await self.put_shared(key, value, {EXPECTED: "0", TTL: keep})
            return IdClaim(True, job.queue, False, revision)
        except WrongSequence:
            reply = await self._wire.last(self._subjects.bucket("ids"), key, consistent=True)
            if reply is None:
                return await self._claim(job, keep)
            held = json.loads(reply.payload)
            return IdClaim(False, held["queue"], held["stored"], int(reply.headers["Nats-Sequence"]))

    async def _find(self, id: str, queue: str, *, consistent: bool = False) -> LoggedEvent | None:
        """A job by its events, by its message, or by the event that was written in between."""
        found = await self._event_log.last(id, queue, consistent=consistent) or await self._by_message(
            id, queue, consistent=consistent
        )
        return found or await self._event_log.last(id, queue, consistent=consistent)

    async def _by_message(self, id: str, queue: str, *, consistent: bool) -> LoggedEvent | None:
        """A job that waits without an event, by its message."""
        queues = [queue] if queue != "*" else await self._streams.queue_names()
        for name in queues:
            # A queue may have been removed; to be sure, one without a leader is no reason to pass it over.
            with contextlib.suppress(*() if consistent else (NoResponders,)):
                for stream, subject, state in await self._places(name, id):
                    message = await self._wire.last(stream, subject, consistent=consistent)
                    if message is not None:
                        return told(name, id, message, state)
        return None


def same(found: Reply, headers: Mapping[str, str], payload: bytes) -> bool:
    """Whether a schedule that stands is the one that was written, but for what it expected."""
    told = found.headers
    written = {name: value for name, value in headers.items() if name != EXPECTED}
    return found.payload == payload and all(told.get(name) == value for name, value in written.items())


def own(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message without those of the server."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")}


def scheduled(due: datetime, target: str) -> dict[str, str]:
    """The headers of a message that the server fires into `target` when due, unless one stands already."""
    return {EXPECTED: "0", SCHEDULE: f"@at {events.format_time(due)}", TARGET: target}


def seconds_until(due: datetime | None) -> float:
    return max(0.0, (due - datetime.now(UTC)).total_seconds()) if due is not None else 0.0


def told(queue: str, id: str, message: Reply, state: str) -> LoggedEvent:
    """The first event of a job as its message tells it; its sequence is 0, for it is not in the log."""
    at = events.parse_time(message.headers["Nats-Time-Stamp"])
    event, due = Event(state), None
    with contextlib.suppress(BadEnvelope, NewerEnvelope):
        job = envelope.decode(message.headers, message.payload, id=id, queue=queue)
        queue, event = job.queue, first_event(job, state)
    if SCHEDULE in message.headers and due_of(message.headers) != PAST:
        due = due_of(message.headers)
    return LoggedEvent(queue, id, 0, at, replace(event, due=due))


def level_of(message: Reply) -> Priority:
    """The priority of a message, by its subject, or by that which it is due on."""
    headers = message.headers
    return envelope.priority_of(headers, headers.get(TARGET, headers["Nats-Subject"]))


def own_level_of(message: Reply) -> Priority:
    """The priority that a job was submitted with. One whose turn has come stands in front of the others."""
    told = message.headers.get(LEVEL, "")
    return told if told in PRIORITIES else level_of(message)


def due_of(headers: Mapping[str, str]) -> datetime:
    """When a schedule with these headers fires; `PAST` for one that is to fire at once."""
    return events.parse_time(headers[SCHEDULE].removeprefix("@at "))
