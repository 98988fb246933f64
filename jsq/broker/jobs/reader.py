"""Finds jobs: by their events in the log, or by their messages while no event of them is stored."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from jsq.broker.jobs.event_log import MOST_KEYS, EventLog
from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.messages import event_from_message
from jsq.broker.topology.namespace import Namespace
from jsq.errors import BrokerUnavailable, JobNotFound, NotAllowed
from jsq.model.event import FINAL_STATES, LoggedEvent
from jsq.transport.replies import NoReply, NoResponders, Reply

RECHECK_SECONDS = 5.0
"""Seconds after which a waiting caller reads the log again, in case an event was lost on its way."""


class JobReader:
    """Finds jobs, and follows their events."""

    def __init__(self, namespace: Namespace, log: EventLog, expiry: JobExpiry) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._event_log = log
        self._expiry = expiry

    async def find(self, id: str, queue: str = "*", *, consistent: bool = False) -> LoggedEvent | None:
        """A job's last event, with expiry applied. A job without a first event is found by its message.

        If no replica knows the job, the leaders are asked; with `consistent`, only they are.
        """
        try:
            found = None if consistent else await self._find(id, queue)
            if found is None or (await self._as_of_now(found)).event.state != found.event.state:
                found = await self._find(
                    id, queue, consistent=True
                )  # it may have begun, and the replica be behind
        except NoResponders:
            if await self._jetstream.stream_info(self._subjects.streams.events) is not None:
                raise  # it has no leader just now
            await self._streams.ensure_shared()
            return None
        return found if found is None else await self._as_of_now(found)

    async def wait_for_outcome(self, id: str, queue: str) -> LoggedEvent:
        """Wait for a job's final event. Raises `JobNotFound`."""
        async for found in self.follow(id, queue, final_only=True):
            if found.event.state in FINAL_STATES:
                return found
        raise JobNotFound(id)

    async def follow(self, id: str, queue: str, *, final_only: bool = False) -> AsyncIterator[LoggedEvent]:
        """A job's last event, then each new one up to the final event, or only that. Raises `JobNotFound`."""
        arrived: asyncio.Queue[LoggedEvent] = asyncio.Queue()
        refusals, seen, consistent = self._wire.refusals, -1, False
        last: LoggedEvent | None = None
        async with self._event_log.subscribe(id, queue, arrived, final_only=final_only) as subject:
            while True:
                with contextlib.suppress(NoReply, NoResponders):
                    last = await self.find(id, queue, consistent=consistent)
                    if last is None:
                        raise JobNotFound(id)
                    arrived.put_nowait(last)
                    if refusals.subscriptions:
                        refusals.check_subscription(subject)
                    consistent = True  # no event arrived: the replica that answered may be far behind
                with contextlib.suppress(TimeoutError):
                    while True:
                        expires = last is not None and last.event.expires is not None
                        async with asyncio.timeout(
                            self._expiry.left(last, RECHECK_SECONDS) if expires else RECHECK_SECONDS
                        ):
                            event = await arrived.get()
                        state = event.event.state
                        if event.sequence > seen or state == "expired":
                            seen, last = event.sequence, event
                            yield event
                            if state in FINAL_STATES:
                                return
                if self._wire.closed:
                    raise BrokerUnavailable(f"the connection to {self._wire.login.shown} was closed")

    async def is_queued(self, queue: str, sequence: int) -> bool:
        """Whether the message with a sequence is still on its queue."""
        return (
            await self._reads.get(self._subjects.streams.ready(queue), sequence, consistent=True) is not None
        )

    async def find_in_group(self, queue: str, id: str) -> Reply | None:
        """The message of a job that waits in its key group, or is due there, from the leaders."""
        if not await self._streams.has_groups(queue):
            return None
        subjects = self._subjects
        for stream, subject in (
            (subjects.streams.scheduled(queue), subjects.groups.due(queue, "*", id)),
            (subjects.streams.groups(queue), subjects.groups.job(queue, "*", id)),
        ):
            found = await self._reads.last(stream, subject, consistent=True)
            if found is not None:
                return found
        return None

    async def queued_ids(self, queue: str, ids: Sequence[str]) -> set[str]:
        """The ids whose message is on a queue; none if the user may not read it."""
        found: set[str] = set()
        with contextlib.suppress(NoResponders, NotAllowed):
            for start in range(0, len(ids), MOST_KEYS):
                subjects = [self._subjects.ready(queue, "*", id) for id in ids[start : start + MOST_KEYS]]
                replies = await self._reads.last_per_subject(self._subjects.streams.ready(queue), subjects)
                found.update(reply.headers["Nats-Subject"].rpartition(".")[2] for reply in replies)
        return found

    async def known_ids(self, queue: str, ids: Sequence[str]) -> set[str]:
        """The ids for which a job exists: on the queue, scheduled, running or ended."""
        # In this order: a job that leaves the queue in between has started, and the log has its event.
        queued = await self.queued_ids(queue, ids)
        return queued | await self._event_log.known_ids(queue, [id for id in ids if id not in queued])

    async def waiting_ids(self, queue: str) -> list[str]:
        """The ids of the jobs with a message on a queue or scheduled for it: waiting or running."""
        return [found.job for found in await self.waiting_jobs(queue)]

    async def waiting_jobs(self, queue: str) -> list[LoggedEvent]:
        """The jobs with a message on a queue or scheduled for it: waiting or running."""
        found: list[LoggedEvent] = []
        for stream, subject, state in await self._places(queue, "*"):
            with contextlib.suppress(NoResponders):
                for reply in await self._reads.fetch(stream, subject):
                    id = reply.headers["Nats-Subject"].rpartition(".")[2]
                    found.append(event_from_message(queue, id, reply, state))
        return found

    async def _as_of_now(self, found: LoggedEvent) -> LoggedEvent:
        """A job's last event as it reads now: the job may have expired."""
        return found if found.event.expires is None else await self._expiry.apply_expiry(found)

    async def _find(self, id: str, queue: str, *, consistent: bool = False) -> LoggedEvent | None:
        """A job by its events, by its message, or by an event that was written in between."""
        found = await self._event_log.last(id, queue, consistent=consistent) or await self.find_by_message(
            id, queue, consistent=consistent
        )
        return found or await self._event_log.last(id, queue, consistent=consistent)

    async def find_by_message(self, id: str, queue: str, *, consistent: bool) -> LoggedEvent | None:
        """A waiting job without an event, by its message."""
        queues = [queue] if queue != "*" else await self._streams.queue_names()
        for name in queues:
            # A queue may have been removed. A consistent read does not skip a queue without a leader.
            with contextlib.suppress(*() if consistent else (NoResponders,)):
                for stream, subject, state in await self._places(name, id):
                    message = await self._reads.last(stream, subject, consistent=consistent)
                    if message is not None:
                        return event_from_message(name, id, message, state)
        return None

    async def _places(self, queue: str, id: str) -> tuple[tuple[str, str, str], ...]:
        """The places of a job's message: stream, subject, and the state of the job there."""
        subjects = self._subjects
        later = subjects.streams.scheduled(queue)
        places = (
            (subjects.streams.ready(queue), subjects.ready(queue, "*", id), "queued"),
            (later, subjects.scheduled(queue, id), "scheduled"),
            # Due, but not yet sourced by the READY stream: after a restart of the server that takes seconds.
            (later, subjects.due(queue, "*", id), "queued"),
        )
        if not await self._streams.has_groups(queue):
            return places
        line = (subjects.streams.groups(queue), subjects.groups.job(queue, "*", id), "queued")
        # The message moves from one place to the next, so they are read in this order.
        return ((later, subjects.groups.due(queue, "*", id), "queued"), line, *places)
