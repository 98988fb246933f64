"""Many jobs that differ in their arguments only: stored in bulk, and one by one where that cannot be."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime

from jsq.broker.answers import NoAnswer, NobodyThere, line
from jsq.broker.batches import Message, parts
from jsq.broker.bulk import AT_A_TIME, Bulk
from jsq.broker.jobs import ROOM_FOR_HEADERS, Jobs
from jsq.broker.log import Log
from jsq.broker.names import Names
from jsq.broker.streams import Streams
from jsq.broker.wire import DEADLINE_SECONDS, Wire
from jsq.codec import envelope
from jsq.errors import BrokerError, NotAllowed, QueueFull, SubmitUnknown
from jsq.job import Job

AT_ONCE = 200
"""Jobs that are under way together where each is stored by itself."""


class Many:
    """Puts many jobs on a queue."""

    def __init__(self, wire: Wire, names: Names, streams: Streams, log: Log, jobs: Jobs) -> None:
        self._wire = wire
        self._names = names
        self._streams = streams
        self._log = log
        self._jobs = jobs
        self._bulk = Bulk(wire)

    async def submit(
        self, pattern: Job, calls: Sequence[tuple[str, bytes]], due: datetime | None = None
    ) -> dict[int, BrokerError]:
        """Store a job for each call, an id of our own making and its arguments; the rest is as in `pattern`.

        Returns the errors of those not stored, by their place. Raises `BadArguments` before anything is sent.
        """
        most = (self._wire.max_payload - ROOM_FOR_HEADERS) // 2
        for place, (id, arguments) in enumerate(calls):
            if len(arguments) >= most:
                self._jobs.check_size(replace(pattern, id=id, arguments=arguments), place)
        if due is not None:
            return await self._each_by_itself(pattern, calls, lambda job: self._jobs.submit(job, due))
        refused: dict[int, BrokerError] = {}
        for start in range(0, len(calls), AT_A_TIME):
            part = calls[start : start + AT_A_TIME]
            found = await self._store(pattern, part)
            refused |= {start + place: error for place, error in found.items()}
            full = next((error for error in found.values() if isinstance(error, QueueFull)), None)
            if full is not None:
                refused |= dict.fromkeys(range(start + len(part), len(calls)), full)
                break
        self._log.note_many(pattern, [id for place, (id, _) in enumerate(calls) if place not in refused])
        return refused

    async def _store(self, pattern: Job, calls: Sequence[tuple[str, bytes]]) -> dict[int, BrokerError]:
        """Store jobs; returns the errors of those that were not, by their place."""
        # Ids of our own making that were not sent before: their messages need expect nothing.
        lines = line(envelope.JOB, envelope.order_of(pattern))
        stem = self._names.ready(pattern.queue, pattern.priority, "")
        messages = [Message(stem + id, arguments, lines) for id, arguments in calls]
        refused: dict[int, BrokerError] = {}
        start = 0
        for part in parts(messages):
            by_hand = calls[start : start + len(part)]
            try:
                found = await self._bulk.store(part)
            except NotAllowed as error:
                found = dict.fromkeys(range(len(part)), error)
            except (NoAnswer, NobodyThere) as error:
                if isinstance(error, NobodyThere):
                    await self._streams.make_anew(pattern.queue)
                # Some may stand already: now each expects that it does not.
                put = functools.partial(self._put, sent=isinstance(error, NoAnswer) and error.sent)
                found = await self._each_by_itself(pattern, by_hand, put)
            refused |= {start + place: error for place, error in found.items()}
            start += len(part)
        return refused

    async def _each_by_itself(
        self, pattern: Job, calls: Sequence[tuple[str, bytes]], store: Callable[[Job], Awaitable[object]]
    ) -> dict[int, BrokerError]:
        """Store jobs one by one, many at once; returns their errors."""
        refused: dict[int, BrokerError] = {}
        left = iter(enumerate(calls))

        async def store_next() -> None:
            for place, (id, arguments) in left:
                try:
                    await store(replace(pattern, id=id, arguments=arguments))
                except BrokerError as error:
                    refused[place] = error

        await asyncio.gather(*(store_next() for _ in range(AT_ONCE)))
        return refused

    async def _put(self, job: Job, *, sent: bool) -> None:
        """Store a job that may have been sent before: then no error tells that it does not stand."""
        try:
            await self._jobs.put_ready(job)
        except BrokerError as error:
            if sent or (isinstance(error, NoAnswer) and error.sent):
                raise SubmitUnknown(job.id, DEADLINE_SECONDS) from error
            raise
