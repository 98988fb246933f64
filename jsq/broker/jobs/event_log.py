"""The event log: the truth about every job, and the view of it that holds each job's last event.

A write expects what its writer last read. What is refused was not stored, and nobody who reads the log, or
listens to what the server stored, ever sees it.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import TypeAlias

from jsq.broker.topology.namespace import Namespace
from jsq.codec import events
from jsq.errors import BadEnvelope, BrokerError, BrokerFull, NotAllowed
from jsq.model.event import FINAL_STATES, Event, LoggedEvent
from jsq.model.job import Job
from jsq.settings import WriteGrouping
from jsq.transport.batch_publish import OutgoingMessage, parts
from jsq.transport.group_commit import BUSY, GroupCommit
from jsq.transport.publish_many import AT_A_TIME, BulkPublisher
from jsq.transport.replies import (
    HEADERS_END,
    HEADERS_START,
    NoReply,
    NoResponders,
    Reply,
    WrongSequence,
    block,
    header_line,
)
from jsq.transport.retrying import READ_SECONDS, publish_with_retry
from jsq.transport.server_clock import steady
from jsq.transport.wire import Headers

log = logging.getLogger("jsq.broker")

Message: TypeAlias = tuple[str, bytes, Headers]
"""A message as it is published: its subject, its body and its headers."""

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_ON = "Nats-Expected-Last-Subject-Sequence-Subject"
TTL = "Nats-TTL"

MOST_KEYS = 500
"""Jobs that are asked for together: the server looks for so many in some 20 ms."""

TELLING = ("run.running", "run.cancelled", "run.expired", "scheduled", "waiting")
"""Events one of which each job has whose message may not be on its queue (any more)."""

SETTLING = 60.0
"""An open event younger than this may not have reached the view yet."""


class EventLog:
    """Writes and reads the events of jobs."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self.view = JobView(namespace)
        self._subjects = namespace.subjects
        self._stream, self._prefix = self._subjects.streams.events, self._subjects.event_prefix
        self._stored_prefix = self._subjects.stored_event_prefix
        self._commits = GroupCommit(namespace.wire)
        self._bulk = BulkPublisher(namespace.wire)
        self._unwritten: deque[tuple[str, str, bytes]] = deque()
        self._writing: asyncio.Task[None] | None = None

    def group_writes(self, way: WriteGrouping) -> None:
        """Whether writes go in groups where many are under way: where that is faster, always, or never."""
        self._commits = GroupCommit(self._wire, way)

    # -- write -------------------------------------------------------------------------------------------

    async def write(
        self,
        queue: str,
        id: str,
        event: Event,
        *,
        expect: int,
        ttl: float | None = None,
        while_: Callable[[], bool] | None = None,
    ) -> int:
        """Write a `run.` event on top of the sequence `expect`; returns its own.

        `ttl` is how many seconds a final event stays. Raises `WrongSequence` when the log has moved on, and
        what `Wire.publish_with_retry` raises when `while_` says that it is no use to go on.
        """
        body = events.encode(event)
        return await self.put(queue, id, event.state, body, expect=expect, ttl=ttl, while_=while_)

    async def put(
        self,
        queue: str,
        id: str,
        state: str,
        body: bytes,
        *,
        expect: int,
        ttl: float | None = None,
        while_: Callable[[], bool] | None = None,
    ) -> int:
        """Write a `run.` event that is encoded already; see `write`."""
        events, commits = f"{self._prefix}{queue}.{id}.run.", self._commits
        subject, lines = events + state, expected(expect, events + "*")
        if ttl is not None:
            lines += header_line(TTL, str(max(1, round(ttl))))
        headers = b"".join((HEADERS_START, lines, HEADERS_END))
        try:
            if commits.under_way >= BUSY or not commits.pace.quiet:
                return await commits.store(OutgoingMessage(subject, body, lines))
            commits.under_way += 1
            try:
                return await self._wire.publish(subject, body, headers)
            finally:
                commits.under_way -= 1
        except (NoReply, NoResponders, BrokerFull) as failed:
            if while_ is None and isinstance(failed, BrokerFull):
                raise
            return await publish_with_retry(self._wire, subject, body, headers, while_=while_, failed=failed)

    def submitted_message(self, job: Job, due: datetime | None) -> Message:
        """The first event of a job as a message. A worker may be faster: then the server refuses it."""
        subject = f"{self._prefix}{job.queue}.{job.id}."
        headers = block(expected(0, subject + ">"))
        return subject + ("scheduled" if due else "queued"), events.encode_submit(job, due), headers

    def write_submitted(self, job: Job, due: datetime | None) -> None:
        """Write the first event of a job. A worker may have been faster: then nothing is written."""
        self._wire.send(*self.submitted_message(job, due))

    def write_rescheduled(self, job: Job, due: datetime | None) -> None:
        """Write that a job which has not begun is due at another moment."""
        headers = block(expected(0, self._subjects.event(job.queue, job.id, "run.*")))
        body = events.encode_submit(job, due)
        self._wire.send(self._subjects.event(job.queue, job.id, "scheduled"), body, headers)

    async def write_found(self, found: LoggedEvent) -> bool:
        """Write the first event of a job whose message was found; False if it has a record meanwhile."""
        subject = self._subjects.event(found.queue, found.job, found.state)
        headers = expecting(0, self._subjects.event(found.queue, found.job, ">"))
        try:
            await publish_with_retry(self._wire, subject, events.encode(found.event), headers)
        except WrongSequence:
            return False
        return True

    def write_submitted_later(self, pattern: Job, ids: Sequence[str]) -> None:
        """Write the first events of jobs like `pattern`, after this; until then their messages tell of them.

        `finish` waits for it.
        """
        body = events.encode_submit(pattern, None)
        self._unwritten.extend((pattern.queue, id, body) for id in ids)
        if self._unwritten and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write_later())

    async def flush(self) -> None:
        """Wait until what was to be noted is written, or the server has fallen silent."""
        if self._writing is not None:
            await self._writing

    async def _write_later(self) -> None:
        while self._unwritten:
            part = [self._unwritten.popleft() for _ in range(min(len(self._unwritten), AT_A_TIME))]
            try:
                for messages in parts([self._first_message(*one) for one in part]):
                    await self._bulk.store(messages)
            except BrokerError as error:
                log.warning("first events not written", extra={"jobs": len(part), "why": str(error)})
                self._unwritten.clear()

    def _first_message(self, queue: str, id: str, body: bytes) -> OutgoingMessage:
        """The first event of a job that is queued. A worker may have been faster: then it is refused."""
        lines = expected(0, self._subjects.event(queue, id, ">"))
        return OutgoingMessage(self._subjects.event(queue, id, "queued"), body, lines)

    async def withdraw_submitted(self, subject: str) -> None:
        """Take back the first event of a job that was not stored: from the log, and from the view."""
        _, _, queue, id, _ = subject.split(".")
        try:
            await self._delete_from_view(queue, id)
        finally:
            await self._jetstream.purge(self._stream, subject)

    async def delete(self, queue: str, id: str) -> None:
        """Remove all events of a job, from the log and from the view, and what it keeps beside them."""
        subjects = self._subjects
        await self._jetstream.purge(subjects.streams.events, subjects.checkpoint(queue, id, ">"))
        await self._jetstream.purge(subjects.streams.events, subjects.event(queue, id, ">"))
        await self._delete_from_view(queue, id)

    async def _delete_from_view(self, queue: str, id: str) -> None:
        subject = self._subjects.event(queue, id, "refused")
        await self._wire.publish(subject, b"", {"KV-Operation": "DEL", TTL: "1"})

    def write_progress(self, queue: str, id: str, event: Event, *, token: int) -> None:
        """Tell how far a running attempt is. Refused by the log when the attempt's token is stale."""
        headers = expecting(token, self._subjects.event(queue, id, "run.*"))
        self._wire.send(self._subjects.event(queue, id, "progress"), events.encode(event), headers)

    # -- read --------------------------------------------------------------------------------------------

    async def last(self, id: str, queue: str = "*", *, consistent: bool = False) -> LoggedEvent | None:
        """The last event of a job: from the log, or from the view when it has left the log.

        None for a job without a record. The events before a final one outlive it in the log; an open event
        which the view no longer holds is what is left of a job whose outcome has expired. A replica may not
        know of it yet: to be `consistent`, the leader is asked.
        """
        found = await self._read(self._stream, f"{self._prefix}{queue}.{id}.>", consistent=consistent)
        if found is not None and (found.event.state in FINAL_STATES or self._fresh(found)):
            return found
        return await self.view.last(id, queue, consistent=consistent)

    async def last_run(self, queue: str, id: str, state: str = "*", *, least: int = 0) -> LoggedEvent | None:
        """The last event that a worker or an operator wrote, or the last of a state.

        The replica that answers may be behind. Where the log is known to have come to a sequence at `least`,
        it is asked until it knows that too. Raises `NoReply` if it does not for 5 s.
        """
        subject, end = self._subjects.event(queue, id, f"run.{state}"), time.monotonic() + READ_SECONDS
        while True:
            for consistent in (False, True) if least else (False,):
                found = await self._read(self._subjects.streams.events, subject, consistent=consistent)
                if (found.sequence if found is not None else 0) >= least:
                    return found
            if time.monotonic() > end:
                raise NoReply(f"no replica that was asked has come to {least} in the log of job {id}")
            await asyncio.sleep(0.1)

    async def is_over(self, last: LoggedEvent) -> bool:
        """Whether a job has ended whose last event in the log is this one: what came before a final event
        stays for longer than that, and then the view has forgotten the job.
        """
        if last.state in FINAL_STATES:
            return True
        if self._fresh(last) or await self.view.last(last.job, last.queue) is not None:
            return False
        with contextlib.suppress(BrokerError):
            # By our clock: it may be wrong, and the server tells its own.
            await self._jetstream.stream_info(self._subjects.streams.events)
        return not self._fresh(last)

    async def known_ids(self, queue: str, ids: Sequence[str]) -> set[str]:
        """Those of some ids of a queue whose jobs have begun, ended, or are due later: the log knows of them.

        Unlike the view it is not behind. Of a job that only waits on its queue, its message tells.
        """
        found: set[str] = set()
        most = MOST_KEYS // len(TELLING)
        for start in range(0, len(ids), most):
            some = ids[start : start + most]
            subjects = [self._subjects.event(queue, id, state) for id in some for state in TELLING]
            try:
                replies = await self._reads.last_per_subject(self._subjects.streams.events, subjects)
                found.update(reply.headers["Nats-Subject"].split(".")[3] for reply in replies)
            except NoResponders:
                return found  # there were no jobs yet
            except NotAllowed:  # who may read of one queue only asks for each by itself
                events = await asyncio.gather(*(self.last(id, queue) for id in some))
                found.update(event.job for event in events if event is not None and event.state != "queued")
        return found

    async def history(
        self, id: str = "*", queue: str = "*", *, after: int = 0, since: datetime | None = None
    ) -> list[LoggedEvent]:
        """The events of a job (or of all), in the order the server stored them."""
        subject = self._subjects.event(queue, id, ">")
        start = events.format_time(since) if since is not None else ""
        found = await self._reads.fetch(self._subjects.streams.events, subject, after=after, since=start)
        return [event for reply in found if (event := read_event(reply)) is not None]

    # -- wait --------------------------------------------------------------------------------------------

    async def check_subscription(self, id: str, queue: str) -> None:
        """Raise `NotAllowed` if we may not hear what `hearing` listens for."""
        await self._wire.flush()
        self._wire.refusals.check_subscription(self._subjects.stored_events(queue, id))

    @contextlib.asynccontextmanager
    async def subscribe(
        self, id: str, queue: str, arrived: asyncio.Queue[LoggedEvent], *, final_only: bool = False
    ) -> AsyncIterator[str]:
        """Put a job's events into `arrived` as the server stores them, from now on; or only a final one.

        Returns the subject of the subscription.
        """
        subject = f"{self._stored_prefix}{queue}.{id}." + ("run.*" if final_only else ">")

        def hear(message: Reply) -> None:
            if final_only and message.subject.rpartition(".")[2] not in FINAL_STATES:
                return
            event = read_event(message)
            if event is not None:
                arrived.put_nowait(event)

        wire = self._wire
        subscription = await wire.subscribe(subject, hear)
        try:
            yield subject
            if wire.refusals.subscriptions:
                wire.refusals.check_subscription(subject)
        finally:
            await wire.unsubscribe(subscription)

    # -- inside ------------------------------------------------------------------------------------------

    def _fresh(self, found: LoggedEvent) -> bool:
        """Whether the view may not know of an open event yet, or never will (a submitter's)."""
        return steady() + self._wire.clock.offset - found.at.timestamp() < SETTLING

    async def _read(self, stream: str, subject: str, *, consistent: bool) -> LoggedEvent | None:
        reply = await self._reads.last(stream, subject, consistent=consistent)
        return read_event(reply) if reply is not None else None


class JobView:
    """The last event of each job, in the bucket `<ns>_jobs`: about a millisecond behind the log."""

    def __init__(self, namespace: Namespace) -> None:
        self._reads = namespace.reads
        self._subjects = namespace.subjects

    async def last(self, id: str, queue: str = "*", *, consistent: bool = False) -> LoggedEvent | None:
        """The last event of a job; None for a job without a record."""
        key = self._subjects.key("jobs", f"{queue}.{id}")
        reply = await self._reads.last(self._subjects.streams.bucket("jobs"), key, consistent=consistent)
        return read_event(reply) if reply is not None else None

    async def last_each(self, queue: str, ids: Sequence[str]) -> dict[str, LoggedEvent]:
        """The last events of some jobs of a queue, by their ids; without the jobs that have no record."""
        found: list[Reply] = []
        for start in range(0, len(ids), MOST_KEYS):
            keys = [self._subjects.key("jobs", f"{queue}.{id}") for id in ids[start : start + MOST_KEYS]]
            try:
                found += await self._reads.last_per_subject(self._subjects.streams.bucket("jobs"), keys)
            except NoResponders:
                return {}  # no job was submitted yet
            except NotAllowed:  # a user of one queue may only read the key of each job
                asked = (self._reads.last(self._subjects.streams.bucket("jobs"), key) for key in keys)
                found += [reply for reply in await asyncio.gather(*asked) if reply is not None]
        return {event.job: event for reply in found if (event := read_event(reply)) is not None}

    async def list_last(self, queue: str = "*", most: int | None = None) -> list[LoggedEvent]:
        """The last event of each job, oldest first."""
        key = self._subjects.key("jobs", f"{queue}.*")
        found = await self._reads.fetch(self._subjects.streams.bucket("jobs"), key, limit=most)
        return [event for reply in found if (event := read_event(reply)) is not None]


def expecting(sequence: int, subject: str) -> dict[str, str]:
    return {EXPECTED: str(sequence), EXPECTED_ON: subject}


def expected(sequence: int, subject: str) -> bytes:
    """`expecting`, as the headers' lines go over the wire."""
    return f"{EXPECTED}: {sequence}\r\n{EXPECTED_ON}: {subject}\r\n".encode()


def read_event(reply: Reply) -> LoggedEvent | None:
    """An event from the log or from the view; None for what jsq did not write."""
    headers = reply.headers
    subject = headers.get("Nats-Subject", "")
    tokens = subject.split(".")
    try:
        queue, id = (tokens[2], tokens[3])
        sequence = int(headers["Nats-Sequence"])
        source = headers.get("Nats-Stream-Source")
        if source and subject.startswith("$KV."):
            sequence = int(source.split()[1])
        at = events.parse_time(headers["Nats-Time-Stamp"])
        return LoggedEvent(queue, id, sequence, at, events.decode(reply.payload))
    except (BadEnvelope, IndexError, KeyError, ValueError):
        return None
